#include "mahal/window_estimators.hpp"

#include <algorithm>
#include <atomic>
#include <limits>
#include <string>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/estimators.hpp"
#include "core/image_checks.hpp"
#include "core/threads.hpp"
#include "core/windows.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/window_estimators_cuda.hpp"
#include "ops/window_estimators_kernel.hpp"

namespace mahal {

namespace {

// Rounding leaves the pivots of windows without full rank near 1e-14 of their diagonal entries.
constexpr double window_pivot = 1e-12;

int target_count(const WindowEstimatorsParams& params) {
  return is_given(params.target) ? static_cast<int>(params.target.shape[0]) : 0;
}
// Whitened targets that a window needs at a time: only a basis is needed as a whole.
int kept_targets(const WindowEstimatorsParams& params) {
  const int targets = target_count(params);
  return params.kind == MatchedScore::subspace_ace ? targets : std::min(targets, 1);
}
// Scores of a pixel, side by side.
int score_maps(const WindowEstimatorsParams& params) {
  if (!is_given(params.target)) return params.window_count;
  return params.kind == MatchedScore::subspace_ace ? 1 : target_count(params);
}

struct Plan {
  Moments moments;  // for the states of the pixels
  WindowTables tables;
  double* targets;  // targets x padded bands
  char* room;
  std::size_t worker_bytes;
};

Plan make_plan(Scratch& scratch, const WindowEstimatorsParams& params, const Window& window,
               const TensorView& image, int threads) {
  Plan p{};
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  p.moments =
      plan_moments(scratch, static_cast<std::int64_t>(rows) * cols, real_bands(image), threads);
  p.tables = plan_windows(scratch, window, params.border, rows, cols);
  p.targets =
      scratch.take<double>(static_cast<std::int64_t>(target_count(params)) * p.moments.padded);
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return WindowEstimatorsKernel<I>::scratch_bytes(real_bands(image), is_complex(image.dtype),
                                                    window_samples(window), window.outer,
                                                    kept_targets(params));
  });
  p.worker_bytes = (bytes + 63) / 64 * 64;
  p.room = scratch.take<char>(static_cast<std::int64_t>(p.worker_bytes) * threads);
  return p;
}

void check_inputs(const WindowEstimatorsParams& params, const TensorView& image) {
  const char* op = params.caller;
  check_pixels(op, "image", image, {3});
  check_estimation(op, params.estimation);
  if (params.window_count < 1) throw_value_error(op, "window", "must name at least one", "none");
  if (params.ddof < 0) {
    throw_value_error(op, "ddof", "must not be negative", std::to_string(params.ddof));
  }
  std::int64_t least = least_samples(params.estimation.estimator, image.shape[2], params.center);
  if (is_given(params.target)) {
    check_targets(op, params.target, image);
    if (params.window_count != 1) {
      throw_value_error(op, "window", "must be one with a target",
                        std::to_string(params.window_count));
    }
    if (params.kind == MatchedScore::cem || params.kind == MatchedScore::centered_cem) {
      throw_value_error(op, "kind", "must not be cem", "cem");
    }
    if (params.kind == MatchedScore::signed_ace && is_complex(image.dtype)) {
      throw_value_error(op, "kind", "must not be signed for complex images",
                        dtype_name(image.dtype));
    }
    // Nothing is scored without an inverse.
    if (params.estimation.estimator == Estimator::scm) least += image.shape[2] - 1;
  }
  for (int k = 0; k < params.window_count; ++k) {
    check_window(op, params.windows[k], image.shape[0], image.shape[1]);
    if (window_samples(params.windows[k]) < least) {
      throw_value_error(op, "window", "must hold " + std::to_string(least) + " samples or more",
                        std::to_string(window_samples(params.windows[k])) + " samples");
    }
  }
}

void load_window_targets(const WindowEstimatorsParams& params, const Plan& p) {
  const std::int64_t padded = p.moments.padded;
  load_targets(params.caller, params.target, padded, p.targets);
  if (params.center) return;
  for (int k = 0; k < target_count(params); ++k) {
    const double* row = p.targets + k * padded;
    if (std::all_of(row, row + padded, [](double value) { return value == 0; })) {
      throw_value_error(params.caller, "target", "must not be zero",
                        "zeros at " + std::to_string(k));
    }
  }
}

// Where the results of a window go; strides in elements of the outputs.
template <class T>
struct Results {
  T* mean;
  T* covariance;
  T* score;
  std::uint8_t* status;
  std::ptrdiff_t mean_stride, covariance_stride, score_stride, status_stride;
  int maps;  // scores of a pixel for this window
};

template <class T>
void estimate_window(const WindowEstimatorsParams& params, const Window& window, const Plan& p,
                     const TensorView& image, const Results<T>& out,
                     std::atomic<std::int64_t>& done, int threads) {
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  const WindowTables& t = p.tables;
  fill_windows(t, window, params.border, rows, cols);
  WindowEstimatorsBlock<T> common{};
  common.pixels = pixel_list<T>(image);
  common.status = p.moments.status;
  common.rows = t.rows;
  common.cols = t.cols;
  common.outer = window.outer;
  common.inner = window.inner;
  common.hermitian = is_complex(image.dtype);
  common.center = params.center;
  common.ddof = params.ddof;
  common.estimation = params.estimation;
  common.smallest_pivot = window_pivot;
  common.mean_stride = out.mean_stride;
  common.covariance_stride = out.covariance_stride;
  common.score_stride = out.score_stride;
  common.result_stride = out.status_stride;
  common.targets = p.targets;
  common.target_stride = p.moments.padded;
  common.target_count = target_count(params);
  common.aims = kept_targets(params);
  common.kind = params.kind;
  const int height = t.rows_end - t.rows_begin;
  const std::int64_t total = static_cast<std::int64_t>(params.window_count) * height;
  dispatch_isa([&]<Isa I>() {
    const int lanes = WindowEstimatorsKernel<I>::lanes();
    const int packs = (t.cols_end - t.cols_begin + lanes - 1) / lanes;
    std::atomic<std::int64_t> packs_done{0};
    parallel_for(
        threads, static_cast<std::int64_t>(height) * packs, [&](std::int64_t task, int worker) {
          WindowEstimatorsBlock<T> block = common;
          block.row = t.rows_begin + static_cast<int>(task / packs);
          block.col_begin = t.cols_begin + static_cast<int>(task % packs) * lanes;
          block.col_end = std::min(t.cols_end, block.col_begin + lanes);
          const std::int64_t pixel = static_cast<std::int64_t>(block.row) * cols + block.col_begin;
          if (out.covariance) {
            block.mean = out.mean + pixel * out.mean_stride;
            block.covariance = out.covariance + pixel * out.covariance_stride;
          } else {
            block.score = out.score + pixel * out.score_stride;
          }
          block.result = out.status + pixel * out.status_stride;
          block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
          WindowEstimatorsKernel<I>::run(block);
          if ((packs_done.fetch_add(1) + 1) % packs != 0) return;
          const std::int64_t now = done.fetch_add(1) + 1;
          if (worker == 0 && params.progress.report) {
            params.progress.report(params.progress.context, now, total);
          }
        });
  });
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      const std::int64_t pixel = static_cast<std::int64_t>(r) * cols + c;
      const bool inside =
          r >= t.rows_begin && r < t.rows_end && c >= t.cols_begin && c < t.cols_end;
      const std::uint8_t own = p.moments.status[pixel];
      const bool unusable = !out.covariance && own != status_ok;
      if (inside && !unusable) continue;
      const std::uint8_t edge = status_masked;
      out.status[pixel * out.status_stride] = unusable ? own : edge;
      if (out.covariance) {
        std::fill_n(out.mean + pixel * out.mean_stride, common.pixels.bands, nan);
        std::fill_n(out.covariance + pixel * out.covariance_stride,
                    image.shape[2] * common.pixels.bands, nan);
      } else {
        std::fill_n(out.score + pixel * out.score_stride, out.maps, nan);
      }
    }
  }
}

// Arguments of the CUDA kernels, which serve the device and the emulator alike; without outputs.
WindowEstimatorsLaunch launch_of(const WindowEstimatorsParams& params, const TensorView& image) {
  const std::int64_t parts = is_complex(image.dtype) ? 2 : 1;
  WindowEstimatorsLaunch launch;
  launch.image = image.data;
  launch.single = real_dtype(image.dtype) == DType::f32;
  launch.rows = image.shape[0];
  launch.cols = image.shape[1];
  launch.bands = static_cast<int>(image.shape[2]);
  launch.complex = is_complex(image.dtype);
  launch.row_stride = parts * image.strides[0];
  launch.col_stride = parts * image.strides[1];
  launch.band_stride = parts * image.strides[2];
  launch.windows = params.windows;
  launch.window_count = params.window_count;
  launch.border = params.border;
  launch.estimation = params.estimation;
  launch.ddof = params.ddof;
  launch.center = params.center;
  launch.smallest_pivot = window_pivot;
  if (is_given(params.target)) {
    launch.targets = params.target.data;
    launch.targets_single = real_dtype(params.target.dtype) == DType::f32;
    launch.target_stride = parts * params.target.strides[0];
    launch.target_band_stride = parts * params.target.strides[1];
    launch.target_count = target_count(params);
    launch.kind = params.kind;
    launch.maps = score_maps(params);
  }
  return launch;
}

// Room of the CUDA kernels, zero where nothing runs them.
std::size_t device_room(const WindowEstimatorsParams& params, const TensorView& image) {
  [[maybe_unused]] const WindowEstimatorsLaunch launch = launch_of(params, image);
  if constexpr (built_with_cuda) {
    if (image.device.kind == DeviceKind::cuda) {
      launch_device = image.device.index;
      return cuda::window_estimators_room(launch) + 64;
    }
  }
  if constexpr (built_with_emulator) return emulator::window_estimators_room(launch) + 64;
  return 0;
}

}  // namespace

std::size_t window_estimators_workspace(const WindowEstimatorsParams& params,
                                        const TensorView& image, int threads) {
  check_inputs(params, image);
  std::size_t most = device_room(params, image);
  if (image.device.kind == DeviceKind::cuda) return most;
  for (int k = 0; k < params.window_count; ++k) {
    Scratch scratch;
    make_plan(scratch, params, params.windows[k], image, resolve_threads(params.caller, threads));
    most = std::max(most, scratch.bytes());
  }
  return most;
}

void window_estimators(const WindowEstimatorsParams& params, const TensorView& image,
                       const TensorView& mask, const TensorView& mean, const TensorView& covariance,
                       const TensorView& score, const TensorView& status,
                       const Workspace& workspace, const Execution& execution) {
  const char* op = params.caller;
  check_inputs(params, image);
  check_mask(op, mask, image);
  const std::int64_t rows = image.shape[0];
  const std::int64_t cols = image.shape[1];
  const std::int64_t bands = image.shape[2];
  const std::int64_t windows = params.window_count;
  if (is_given(params.target)) {
    check_scores(op, "score", score, real_dtype(image.dtype), rows * cols * score_maps(params));
  } else if (is_given(score)) {
    check_output(op, "score", score, real_dtype(image.dtype), {rows, cols, windows});
  } else {
    check_output(op, "mean", mean, image.dtype, {rows, cols, windows, bands});
    check_output(op, "covariance", covariance, image.dtype, {rows, cols, windows, bands, bands});
  }
  if (is_given(params.target)) {
    check_status(op, status, rows * cols);
  } else {
    check_output(op, "status", status, DType::u8, {rows, cols, windows});
  }
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, window_estimators_workspace(params, image, threads));

  if (route != Route::cpu) {
    WindowEstimatorsLaunch launch = launch_of(params, image);
    if (is_given(mask)) {
      launch.mask = static_cast<const std::uint8_t*>(mask.data);
      launch.mask_row_stride = mask.strides[0];
      launch.mask_col_stride = mask.strides[1];
    }
    launch.mean = mean.data;
    launch.covariance = covariance.data;
    launch.score = score.data;
    launch.status = static_cast<std::uint8_t*>(status.data);
    launch.room = Scratch(workspace).take<char>(1);
    if constexpr (built_with_cuda) {
      if (route == Route::cuda) cuda::window_estimators(launch, execution.stream);
    }
    if constexpr (built_with_emulator) {
      if (route == Route::emulator) emulator::window_estimators(launch, execution.stream);
    }
    return;
  }
  std::atomic<std::int64_t> done{0};
  dispatch_float(image.dtype, [&]<class T>() {
    for (int k = 0; k < params.window_count; ++k) {
      Scratch scratch(workspace);
      Plan p = make_plan(scratch, params, params.windows[k], image, threads);
      // The mean is computed in memory that the targets and what follows them take afterwards.
      compute_mean(p.moments, image, mask, threads);
      if (is_given(params.target)) load_window_targets(params, p);
      const std::ptrdiff_t spectrum = real_bands(image);
      Results<T> out{};
      if (is_given(score)) {
        out.score = static_cast<T*>(score.data) + k;
      } else {
        out.mean = static_cast<T*>(mean.data) + k * spectrum;
        out.covariance = static_cast<T*>(covariance.data) + k * bands * spectrum;
      }
      out.status = static_cast<std::uint8_t*>(status.data) + k;
      out.mean_stride = windows * spectrum;
      out.covariance_stride = windows * bands * spectrum;
      out.score_stride = score_maps(params);
      out.status_stride = windows;
      out.maps = is_given(params.target) ? score_maps(params) : 1;
      estimate_window<T>(params, params.windows[k], p, image, out, done, threads);
    }
  });
}

}  // namespace mahal

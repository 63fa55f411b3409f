#include "mahal/local_covariance_backward.hpp"

#include <algorithm>
#include <string>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/image_checks.hpp"
#include "core/threads.hpp"
#include "core/window_spans.hpp"
#include "ops/local_covariance_backward_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "local_covariance_backward";

struct Shape {
  int rows, cols, bands;  // a complex band is two
  std::int64_t pixels;
};

Shape shape_of(const TensorView& image) {
  Shape s;
  s.rows = static_cast<int>(image.shape[0]);
  s.cols = static_cast<int>(image.shape[1]);
  s.bands = real_bands(image);
  s.pixels = static_cast<std::int64_t>(s.rows) * s.cols;
  return s;
}

struct ImagePlan {
  Moments moments;
  double* samples;  // bands of every pixel relative to the mean of the image
};

struct WindowPlan {
  WindowTables tables;
  WindowCounter unusable, nonfinite;
  std::int32_t* count;
  double* means;
  WindowSpans rows[2], cols[2];
  WindowSpans adjoint_rows[2], adjoint_cols[2];
  AdjointTiles tiles, mean_tiles;
  char* room;
  std::size_t worker_bytes;
};

ImagePlan plan_image(Scratch& scratch, const Shape& s, int threads) {
  ImagePlan p;
  p.samples = scratch.take<double>(s.pixels * s.bands);
  p.moments = plan_moments(scratch, s.pixels, s.bands, threads);
  return p;
}

int channels(const Shape& s, bool matrices) {
  return (matrices ? s.bands * (s.bands + 1) / 2 : 0) + s.bands + 1;
}

template <class T>
std::size_t worker_bytes(const Shape& s, const Window& window, const AdjointTiles& tiles,
                         bool matrices) {
  WindowAdjointBlock<T> block{};
  block.bands = s.bands;
  block.windows = window.inner > 0 ? 2 : 1;
  block.col_end = tiles.columns;
  block.source_end = tiles.source_columns;
  block.matrices = matrices;
  const T any{};
  if (matrices) block.covariance = &any;
  return dispatch_isa([&]<Isa I>() { return WindowAdjointKernel<I>::scratch_bytes(block); });
}

WindowPlan plan_window(Scratch& scratch, const LocalCovarianceParams& params, const Window& window,
                       const TensorView& image, int threads) {
  const Shape s = shape_of(image);
  WindowPlan p{};
  p.tables = plan_windows(scratch, window, params.border, s.rows, s.cols);
  p.unusable = plan_counter(scratch, window, s.rows, s.cols);
  p.nonfinite = plan_counter(scratch, window, s.rows, s.cols);
  p.count = scratch.take<std::int32_t>(s.pixels);
  if (params.center) p.means = scratch.take<double>(s.pixels * s.bands);
  for (int w = 0; w < (window.inner > 0 ? 2 : 1); ++w) {
    p.rows[w] = plan_spans(scratch, params.border, s.rows);
    p.cols[w] = plan_spans(scratch, params.border, s.cols);
    p.adjoint_rows[w] = plan_spans(scratch, params.border, s.rows);
    p.adjoint_cols[w] = plan_spans(scratch, params.border, s.cols);
  }
  p.tiles = cut_adjoint(window, s.rows, s.cols, channels(s, true));
  p.mean_tiles = cut_adjoint(window, s.rows, s.cols, channels(s, false));
  const std::size_t bytes = dispatch_float(image.dtype, [&]<class T>() {
    return std::max(worker_bytes<T>(s, window, p.tiles, true),
                    worker_bytes<double>(s, window, p.mean_tiles, false));
  });
  p.worker_bytes = (bytes + 63) / 64 * 64;
  p.room = scratch.take<char>(static_cast<std::int64_t>(p.worker_bytes) * threads);
  return p;
}

void check_inputs(const LocalCovarianceParams& params, const TensorView& image) {
  check_pixels(op, "image", image, {3});
  if (params.window_count < 1) throw_value_error(op, "window", "must name at least one", "none");
  for (int k = 0; k < params.window_count; ++k) {
    check_window(op, params.windows[k], image.shape[0], image.shape[1]);
    if (params.center && (params.ddof < 0 || window_samples(params.windows[k]) <= params.ddof)) {
      throw_value_error(op, "ddof",
                        "must be from 0 to below the samples of the window (" +
                            std::to_string(window_samples(params.windows[k])) + ")",
                        std::to_string(params.ddof));
    }
  }
}

template <class T>
void load_samples(const ImagePlan& p, const Shape& s, const TensorView& image, bool center,
                  int threads) {
  const PixelList<T> list = pixel_list<T>(image);
  parallel_for(threads, s.rows, [&](std::int64_t row, int) {
    for (int c = 0; c < s.cols; ++c) {
      const std::int64_t pixel = row * s.cols + c;
      const T* from = list.data + row * list.row_stride + c * list.col_stride;
      double* to = p.samples + pixel * s.bands;
      const bool used = p.moments.status[pixel] == status_ok;
      for (int j = 0; j < s.bands; ++j) {
        const double offset = center ? p.moments.mean[j] : 0.0;
        to[j] = used ? static_cast<double>(from[band_offset(list, j)]) - offset : 0.0;
      }
    }
  });
}

// Samples of every window, none where it has no result; nullptr when all have all.
const std::int32_t* fill_counts(const ImagePlan& image, const WindowPlan& p, const Shape& s,
                                const Window& window) {
  if (image.moments.count == image.moments.pixels) return nullptr;
  const std::uint8_t* status = image.moments.status;
  fill_counter(p.unusable, p.tables, s.rows, [&](int r, int c) {
    return status[static_cast<std::int64_t>(r) * s.cols + c] != status_ok;
  });
  fill_counter(p.nonfinite, p.tables, s.rows, [&](int r, int c) {
    return status[static_cast<std::int64_t>(r) * s.cols + c] == status_nonfinite;
  });
  for (int r = 0; r < s.rows; ++r) {
    for (int c = 0; c < s.cols; ++c) {
      const bool broken = count_window(p.nonfinite, p.tables, window, r, c) > 0;
      p.count[static_cast<std::int64_t>(r) * s.cols + c] =
          broken ? 0 : window_samples(window) - count_window(p.unusable, p.tables, window, r, c);
    }
  }
  return p.count;
}

// Strides in real elements of a gradient whose last axes belong to a window of a pixel.
template <class T>
const T* first_element(const TensorView& gradient, int window) {
  const int parts = is_complex(gradient.dtype) ? 2 : 1;
  return static_cast<const T*>(gradient.data) + parts * window * gradient.strides[2];
}

template <class T>
void add_window(const LocalCovarianceParams& params, int k, const ImagePlan& image_plan,
                const WindowPlan& p, const TensorView& image, const TensorView& mean_gradient,
                const TensorView& covariance_gradient, const TensorView& gradient, int threads) {
  const Shape s = shape_of(image);
  const Window& window = params.windows[k];
  const WindowTables& t = p.tables;
  fill_windows(t, window, params.border, s.rows, s.cols);
  const int sides[2] = {window.outer, window.inner};
  const int windows = window.inner > 0 ? 2 : 1;
  for (int w = 0; w < windows; ++w) {
    const std::int32_t* row_starts = w == 0 ? t.rows.outer_start : t.rows.inner_start;
    const std::int32_t* col_starts = w == 0 ? t.cols.outer_start : t.cols.inner_start;
    fill_spans(p.rows[w], row_starts, sides[w]);
    fill_spans(p.cols[w], col_starts, sides[w]);
    fill_adjoint_spans(p.adjoint_rows[w], row_starts, sides[w], t.rows_begin, t.rows_end);
    fill_adjoint_spans(p.adjoint_cols[w], col_starts, sides[w], t.cols_begin, t.cols_end);
  }

  WindowAdjointBlock<T> common{};
  common.bands = s.bands;
  common.cols = s.cols;
  common.samples = image_plan.samples;
  common.sample_stride = s.bands;
  common.windows = windows;
  common.count = fill_counts(image_plan, p, s, window);
  common.samples_each = window_samples(window);
  const bool matrices = is_given(covariance_gradient);
  if (params.center && matrices) {
    WindowAdjointBlock<double> means{};
    means.bands = s.bands;
    means.cols = s.cols;
    means.samples = image_plan.samples;
    means.sample_stride = s.bands;
    means.windows = windows;
    means.count = common.count;
    means.samples_each = common.samples_each;
    means.out_means = p.means;
    for (int w = 0; w < windows; ++w) {
      means.row_spans[w] = p.rows[w];
      means.col_spans[w] = p.cols[w];
    }
    dispatch_isa([&]<Isa I>() {
      const std::int64_t tasks =
          static_cast<std::int64_t>(p.mean_tiles.strips) * p.mean_tiles.column_tiles;
      parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
        WindowAdjointBlock<double> block = means;
        place_tile(block, p.mean_tiles, s.rows, s.cols, task);
        block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
        WindowAdjointKernel<I>::means(block);
      });
    });
    common.means = p.means;
  }

  for (int w = 0; w < windows; ++w) {
    common.row_spans[w] = p.adjoint_rows[w];
    common.col_spans[w] = p.adjoint_cols[w];
  }
  common.status = image_plan.moments.count == s.pixels ? nullptr : image_plan.moments.status;
  common.matrices = matrices;
  common.ddof = params.center ? params.ddof : 0;
  common.hermitian = is_complex(image.dtype);
  const int parts = common.hermitian ? 2 : 1;
  if (matrices) {
    common.covariance = first_element<T>(covariance_gradient, k);
    common.covariance_row = parts * covariance_gradient.strides[0];
    common.covariance_col = parts * covariance_gradient.strides[1];
    common.covariance_i = parts * covariance_gradient.strides[3];
    common.covariance_j = parts * covariance_gradient.strides[4];
  }
  if (is_given(mean_gradient) && params.center) {
    common.mean = first_element<T>(mean_gradient, k);
    common.mean_row = parts * mean_gradient.strides[0];
    common.mean_col = parts * mean_gradient.strides[1];
    common.mean_i = parts * mean_gradient.strides[3];
  }
  common.out = static_cast<T*>(gradient.data);
  common.accumulate = k > 0;
  dispatch_isa([&]<Isa I>() {
    const std::int64_t tasks = static_cast<std::int64_t>(p.tiles.strips) * p.tiles.column_tiles;
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      WindowAdjointBlock<T> block = common;
      place_tile(block, p.tiles, s.rows, s.cols, task);
      block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      WindowAdjointKernel<I>::adjoint(block);
    });
  });
}

// Workspace of the CUDA kernels, which serve the device and the emulator alike.
template <class T>
void plan_launch(Scratch& scratch, const LocalCovarianceParams& params, const TensorView& image,
                 LocalCovarianceBackwardLaunch<T>& launch) {
  const Shape s = shape_of(image);
  launch.states = scratch.take<std::uint8_t>(s.pixels);
  launch.broken = scratch.take<std::uint8_t>(s.pixels);
  launch.weights = scratch.take<double>(2 * s.pixels);
  launch.origin = scratch.take<double>(s.bands);
  if (params.center) launch.means = scratch.take<double>(s.pixels * s.bands);
  std::int64_t most = 0;
  for (int k = 0; k < params.window_count; ++k) {
    const Window& window = params.windows[k];
    const std::int64_t rows = adjoint_strip_rows(window, s.rows, s.cols, s.bands);
    most = std::max(most, rows * (window.inner > 0 ? 2 : 1));
  }
  launch.sums = scratch.take<double>(most * s.cols * adjoint_channels(s.bands, true));
}

template <class T>
void launch_kernels(const LocalCovarianceParams& params, const TensorView& image,
                    const TensorView& mask, const TensorView& mean_gradient,
                    const TensorView& covariance_gradient, const TensorView& gradient,
                    const Workspace& workspace, Route route, std::uintptr_t stream) {
  const Shape s = shape_of(image);
  const int parts = is_complex(image.dtype) ? 2 : 1;
  LocalCovarianceBackwardLaunch<T> launch;
  Scratch scratch(workspace);
  plan_launch(scratch, params, image, launch);
  launch.image = static_cast<const T*>(image.data);
  launch.rows = s.rows;
  launch.cols = s.cols;
  launch.channels = s.bands;
  launch.complex = parts == 2;
  launch.row_stride = parts * image.strides[0];
  launch.col_stride = parts * image.strides[1];
  launch.band_stride = parts * image.strides[2];
  if (is_given(mask)) {
    launch.mask = static_cast<const std::uint8_t*>(mask.data);
    launch.mask_row_stride = mask.strides[0];
    launch.mask_col_stride = mask.strides[1];
  }
  launch.border = params.border;
  launch.ddof = params.center ? params.ddof : 0;
  launch.center = params.center;
  launch.gradient = static_cast<T*>(gradient.data);
  for (int k = 0; k < params.window_count; ++k) {
    launch.window = params.windows[k];
    launch.strip_rows = adjoint_strip_rows(launch.window, s.rows, s.cols, s.bands);
    if (is_given(mean_gradient) && params.center) {
      launch.mean = first_element<T>(mean_gradient, k);
      launch.mean_row = parts * mean_gradient.strides[0];
      launch.mean_col = parts * mean_gradient.strides[1];
      launch.mean_i = parts * mean_gradient.strides[3];
    }
    if (is_given(covariance_gradient)) {
      launch.covariance = first_element<T>(covariance_gradient, k);
      launch.covariance_row = parts * covariance_gradient.strides[0];
      launch.covariance_col = parts * covariance_gradient.strides[1];
      launch.covariance_i = parts * covariance_gradient.strides[3];
      launch.covariance_j = parts * covariance_gradient.strides[4];
    }
    launch.first = k == 0;
    launch.accumulate = k > 0;
    if constexpr (built_with_cuda) {
      if (route == Route::cuda) cuda::local_covariance_backward(launch, stream);
    }
    if constexpr (built_with_emulator) {
      if (route == Route::emulator) emulator::local_covariance_backward(launch, stream);
    }
  }
}

}  // namespace

std::size_t local_covariance_backward_workspace(const LocalCovarianceParams& params,
                                                const TensorView& image, int threads) {
  check_inputs(params, image);
  threads = resolve_threads(op, threads);
  const std::size_t kernels = dispatch_float(image.dtype, [&]<class T>() {
    Scratch scratch;
    LocalCovarianceBackwardLaunch<T> launch;
    plan_launch(scratch, params, image, launch);
    return scratch.bytes();
  });
  if (image.device.kind == DeviceKind::cuda) return kernels;
  Scratch scratch;
  plan_image(scratch, shape_of(image), threads);
  const std::size_t image_done = scratch.mark();
  for (int k = 0; k < params.window_count; ++k) {
    scratch.rewind(image_done);
    plan_window(scratch, params, params.windows[k], image, threads);
  }
  // Host arrays may go to the emulator.
  return built_with_emulator ? std::max(kernels, scratch.bytes()) : scratch.bytes();
}

void local_covariance_backward(const LocalCovarianceParams& params, const TensorView& image,
                               const TensorView& mask, const TensorView& mean_gradient,
                               const TensorView& covariance_gradient, const TensorView& gradient,
                               const Workspace& workspace, const Execution& execution) {
  check_inputs(params, image);
  check_mask(op, mask, image);
  const std::int64_t rows = image.shape[0];
  const std::int64_t cols = image.shape[1];
  const std::int64_t bands = image.shape[2];
  const std::int64_t windows = params.window_count;
  if (is_given(mean_gradient)) {
    check_same_dtype(op, "mean_gradient", mean_gradient, "image", image);
    check_same_device(op, "mean_gradient", mean_gradient, "image", image);
    check_shape(op, "mean_gradient", mean_gradient, {rows, cols, windows, bands});
  }
  if (is_given(covariance_gradient)) {
    check_same_dtype(op, "covariance_gradient", covariance_gradient, "image", image);
    check_same_device(op, "covariance_gradient", covariance_gradient, "image", image);
    check_shape(op, "covariance_gradient", covariance_gradient,
                {rows, cols, windows, bands, bands});
  }
  check_output(op, "gradient", gradient, image.dtype, {rows, cols, bands});
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, local_covariance_backward_workspace(params, image, threads));

  if (route != Route::cpu) {
    dispatch_float(image.dtype, [&]<class T>() {
      launch_kernels<T>(params, image, mask, mean_gradient, covariance_gradient, gradient,
                        workspace, route, execution.stream);
    });
    return;
  }

  Scratch scratch(workspace);
  const Shape s = shape_of(image);
  const ImagePlan p = [&] {
    ImagePlan plan = plan_image(scratch, s, threads);
    compute_mean(plan.moments, image, mask, threads);
    return plan;
  }();
  const std::size_t image_done = scratch.mark();
  dispatch_float(image.dtype, [&]<class T>() {
    load_samples<T>(p, s, image, params.center, threads);
    for (int k = 0; k < params.window_count; ++k) {
      scratch.rewind(image_done);
      const WindowPlan plan = plan_window(scratch, params, params.windows[k], image, threads);
      add_window<T>(params, k, p, plan, image, mean_gradient, covariance_gradient, gradient,
                    threads);
    }
  });
}

}  // namespace mahal

#include "mahal/local_covariance.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/image_checks.hpp"
#include "core/threads.hpp"
#include "core/windows.hpp"
#include "ops/local_covariance_cuda.hpp"
#include "ops/local_covariance_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "local_covariance";

// The sums of a tile should stay in the second-level cache.
constexpr std::int64_t tile_bytes = 512 << 10;
constexpr int rows_per_strip = 128;
constexpr int band_rows = 8;  // of the covariance, at least

struct Tiles {
  int strips, strip_rows, columns, column_tiles, bands, band_groups;
};

// Cuts the map by the sizes of the problem alone.
Tiles cut(const WindowTables& t, const Window& window, int bands, int padded) {
  Tiles tiles;
  const int rows = t.rows_end - t.rows_begin;
  const int cols = t.cols_end - t.cols_begin;
  tiles.strips = std::max(1, (rows + rows_per_strip - 1) / rows_per_strip);
  tiles.strip_rows = (rows + tiles.strips - 1) / tiles.strips;
  const std::int64_t windows = window.inner > 0 ? 2 : 1;
  const std::int64_t column_bytes = 8 * windows * padded * band_rows;
  tiles.columns =
      static_cast<int>(std::clamp<std::int64_t>(tile_bytes / column_bytes - window.outer, 32, 512));
  tiles.columns = std::min(tiles.columns, cols);
  tiles.column_tiles = tiles.columns > 0 ? (cols + tiles.columns - 1) / tiles.columns : 0;
  const std::int64_t fitting = tile_bytes / (8 * windows * padded * (tiles.columns + window.outer));
  tiles.bands = static_cast<int>(std::max<std::int64_t>(fitting / band_rows, 1)) * band_rows;
  tiles.band_groups = (bands + tiles.bands - 1) / tiles.bands;
  return tiles;
}

struct Plan {
  Moments moments;
  WindowTables tables;
  WindowCounter unusable, nonfinite;
  std::int32_t* count;
  char* room;
  std::size_t worker_bytes;
};

template <class T>
LocalCovarianceBlock<T> block_of(const TensorView& image, const Window& window) {
  LocalCovarianceBlock<T> block{};
  block.pixels = pixel_list<T>(image);
  block.pixels.padded = (block.pixels.bands + 7) / 8 * 8;
  block.outer = window.outer;
  block.inner = window.inner;
  block.hermitian = is_complex(image.dtype);
  block.samples = window_samples(window);
  block.count_stride = image.shape[1];
  return block;
}

template <class T>
std::size_t worker_bytes(const TensorView& image, const Window& window, const WindowTables& t) {
  // The widest tile, at the place that has the most columns: away from the edges. The tables may
  // not exist yet, so stand-ins with that width take their place.
  LocalCovarianceBlock<T> block = block_of<T>(image, window);
  const Tiles tiles = cut(t, window, block.pixels.bands, block.pixels.padded);
  if (tiles.columns == 0) return 0;
  const std::int32_t starts[2] = {0, tiles.columns - 1};
  block.cols = {starts, starts, nullptr};
  block.col_begin = 0;
  block.col_end = 2;
  block.band_end = std::min(tiles.bands, block.pixels.bands);
  const std::size_t bytes =
      dispatch_isa([&]<Isa I>() { return LocalCovarianceKernel<I>::scratch_bytes(block); });
  return (bytes + 63) / 64 * 64;
}

Plan make_plan(Scratch& scratch, const LocalCovarianceParams& params, const Window& window,
               const TensorView& image, int threads) {
  Plan p{};
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  p.moments =
      plan_moments(scratch, static_cast<std::int64_t>(rows) * cols, real_bands(image), threads);
  p.tables = plan_windows(scratch, window, params.border, rows, cols);
  p.unusable = plan_counter(scratch, window, rows, cols);
  p.nonfinite = plan_counter(scratch, window, rows, cols);
  p.count = scratch.take<std::int32_t>(static_cast<std::int64_t>(rows) * cols);
  p.worker_bytes = dispatch_float(
      image.dtype, [&]<class T>() { return worker_bytes<T>(image, window, p.tables); });
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
void map_window(const LocalCovarianceParams& params, int k, const Plan& p, const TensorView& image,
                const TensorView& mean, const TensorView& covariance, int threads) {
  const Window& window = params.windows[k];
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  const std::int64_t bands = real_bands(image);
  const std::int64_t matrix = image.shape[2] * bands;  // elements
  const WindowTables& t = p.tables;
  fill_windows(t, window, params.border, rows, cols);
  const std::uint8_t* status = p.moments.status;
  const bool all_usable = p.moments.count == p.moments.pixels;
  if (!all_usable) {
    fill_counter(p.unusable, t, rows, [&](int r, int c) {
      return status[static_cast<std::int64_t>(r) * cols + c] != status_ok;
    });
    fill_counter(p.nonfinite, t, rows, [&](int r, int c) {
      return status[static_cast<std::int64_t>(r) * cols + c] == status_nonfinite;
    });
    for (int r = 0; r < rows; ++r) {
      for (int c = 0; c < cols; ++c) {
        p.count[static_cast<std::int64_t>(r) * cols + c] =
            window_samples(window) - count_window(p.unusable, t, window, r, c);
      }
    }
  }
  LocalCovarianceBlock<T> common = block_of<T>(image, window);
  common.status = all_usable ? nullptr : status;
  common.offset = p.moments.mean;
  common.rows = t.rows;
  common.cols = t.cols;
  common.count = all_usable ? nullptr : p.count;
  common.ddof = params.center ? params.ddof : 0;
  common.center = params.center;
  common.mean_stride = params.window_count * bands;
  common.covariance_stride = params.window_count * matrix;
  T* const means = static_cast<T*>(mean.data) + k * bands;
  common.covariance = static_cast<T*>(covariance.data) + k * matrix;
  const Tiles tiles = cut(t, window, common.pixels.bands, common.pixels.padded);
  const std::int64_t tasks =
      static_cast<std::int64_t>(tiles.strips) * tiles.column_tiles * tiles.band_groups;
  dispatch_isa([&]<Isa I>() {
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      LocalCovarianceBlock<T> block = common;
      const int group = static_cast<int>(task % tiles.band_groups);
      const int tile = static_cast<int>(task / tiles.band_groups % tiles.column_tiles);
      const int strip = static_cast<int>(task / tiles.band_groups / tiles.column_tiles);
      block.row_begin = t.rows_begin + strip * tiles.strip_rows;
      block.row_end = std::min(t.rows_end, block.row_begin + tiles.strip_rows);
      block.col_begin = t.cols_begin + tile * tiles.columns;
      block.col_end = std::min(t.cols_end, block.col_begin + tiles.columns);
      block.band_begin = group * tiles.bands;
      block.band_end = std::min(static_cast<int>(bands), block.band_begin + tiles.bands);
      block.mean = group == 0 && params.center ? means : nullptr;
      block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      LocalCovarianceKernel<I>::run(block);
    });
  });
  const T nan = std::numeric_limits<T>::quiet_NaN();
  if (!params.center) {
    for (std::int64_t pixel = 0; pixel < p.moments.pixels; ++pixel) {
      std::fill_n(means + pixel * common.mean_stride, bands,
                  all_usable || p.count[pixel] > 0 ? T(0) : nan);
    }
  }
  const bool edges = params.border == Border::valid;
  if (all_usable && !edges) return;
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      const bool inside =
          r >= t.rows_begin && r < t.rows_end && c >= t.cols_begin && c < t.cols_end;
      if (inside && (all_usable || count_window(p.nonfinite, t, window, r, c) == 0)) continue;
      const std::int64_t pixel = static_cast<std::int64_t>(r) * cols + c;
      std::fill_n(means + pixel * common.mean_stride, bands, nan);
      std::fill_n(common.covariance + pixel * common.covariance_stride, matrix, nan);
    }
  }
}

// Arguments of the CUDA kernels, which serve the device and the emulator alike.
template <class T>
LocalCovarianceLaunch<T> launch_of(const LocalCovarianceParams& params, const TensorView& image,
                                   const TensorView& mask, const TensorView& mean,
                                   const TensorView& covariance, Scratch& scratch) {
  const bool complex = is_complex(image.dtype);
  const std::int64_t parts = complex ? 2 : 1;
  LocalCovarianceLaunch<T> launch;
  launch.image = static_cast<const T*>(image.data);
  launch.rows = image.shape[0];
  launch.cols = image.shape[1];
  launch.bands = static_cast<int>(image.shape[2]);
  launch.complex = complex;
  launch.row_stride = parts * image.strides[0];
  launch.col_stride = parts * image.strides[1];
  launch.band_stride = parts * image.strides[2];
  if (is_given(mask)) {
    launch.mask = static_cast<const std::uint8_t*>(mask.data);
    launch.mask_row_stride = mask.strides[0];
    launch.mask_col_stride = mask.strides[1];
  }
  launch.windows = params.windows;
  launch.window_count = params.window_count;
  launch.border = params.border;
  launch.ddof = params.center ? params.ddof : 0;
  launch.center = params.center;
  launch.mean = static_cast<T*>(mean.data);
  launch.covariance = static_cast<T*>(covariance.data);
  launch.pixel_states = scratch.take<std::uint8_t>(launch.rows * launch.cols);
  return launch;
}

}  // namespace

std::size_t local_covariance_workspace(const LocalCovarianceParams& params, const TensorView& image,
                                       int threads) {
  check_inputs(params, image);
  // A state for every pixel, which is less than what the threads of the CPU take.
  std::size_t most = image.shape[0] * image.shape[1] + 64;
  if (image.device.kind == DeviceKind::cuda) return most;
  for (int k = 0; k < params.window_count; ++k) {
    Scratch scratch;
    make_plan(scratch, params, params.windows[k], image, resolve_threads(op, threads));
    most = std::max(most, scratch.bytes());
  }
  return most;
}

void local_covariance(const LocalCovarianceParams& params, const TensorView& image,
                      const TensorView& mask, const TensorView& mean, const TensorView& covariance,
                      const Workspace& workspace, const Execution& execution) {
  check_inputs(params, image);
  check_mask(op, mask, image);
  const std::int64_t rows = image.shape[0];
  const std::int64_t cols = image.shape[1];
  const std::int64_t bands = image.shape[2];
  const std::int64_t windows = params.window_count;
  check_output(op, "mean", mean, image.dtype, {rows, cols, windows, bands});
  check_output(op, "covariance", covariance, image.dtype, {rows, cols, windows, bands, bands});
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, local_covariance_workspace(params, image, threads));

  dispatch_float(image.dtype, [&]<class T>() {
    Scratch scratch(workspace);
    if (route != Route::cpu) {
      const auto launch = launch_of<T>(params, image, mask, mean, covariance, scratch);
      if constexpr (built_with_cuda) {
        if (route == Route::cuda) cuda::local_covariance(launch, execution.stream);
      }
      if constexpr (built_with_emulator) {
        if (route == Route::emulator) emulator::local_covariance(launch, execution.stream);
      }
      return;
    }
    for (int k = 0; k < params.window_count; ++k) {
      Scratch mine(workspace);
      Plan p = make_plan(mine, params, params.windows[k], image, threads);
      compute_mean(p.moments, image, mask, threads);
      if (!params.center) std::fill_n(p.moments.mean, p.moments.padded, 0.0);
      map_window<T>(params, k, p, image, mean, covariance, threads);
    }
  });
}

}  // namespace mahal

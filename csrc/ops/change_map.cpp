#include "mahal/change_map.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/background.hpp"
#include "core/checks.hpp"
#include "core/dispatch.hpp"
#include "core/image_checks.hpp"
#include "core/map_edges.hpp"
#include "core/threads.hpp"
#include "core/windows.hpp"
#include "ops/change_map_cuda.hpp"
#include "ops/change_map_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "change_map";

// Smallest pivot of a window's covariance, as in rx.
constexpr double smallest_window_pivot = 1e-10;

// The sums of a tile should stay in the second-level cache.
constexpr std::int64_t tile_bytes = 384 << 10;
constexpr int most_tile_rows = 32;
constexpr int most_tile_cols = 64;

void check_inputs(const ChangeMapParams& params, const TensorView& first,
                  const TensorView& second) {
  check_field(op, "first", first);
  check_rank(op, "first", first, {3});
  check_not_empty(op, "first", first);
  check_field(op, "second", second);
  check_same_dtype(op, "second", second, "first", first);
  check_same_device(op, "second", second, "first", first);
  check_shape(op, "second", second, {first.shape[0], first.shape[1], first.shape[2]});
  check_window(op, {params.window, 0}, first.shape[0], first.shape[1]);
  const int samples = params.window * params.window;
  if (params.ddof < 0 || samples <= params.ddof) {
    throw_value_error(
        op, "ddof",
        "must be from 0 to below the samples of the window (" + std::to_string(samples) + ")",
        std::to_string(params.ddof));
  }
  if (params.channel_divisor && first.shape[2] < 2) {
    throw_value_error(op, "compat", "the published divisor, channels - 1, needs two channels", "1");
  }
  if (params.metric == Metric::box_m && is_complex(first.dtype)) {
    throw_type_error(op, "metric", "'box_m' is for real data, take 'wishart'",
                     dtype_name(first.dtype));
  }
}

ChangeMapTile cut(const ChangeMapParams& params, const TensorView& image) {
  const std::int64_t planes =
      change_map_planes(params.metric, image.shape[2], is_complex(image.dtype));
  const std::int64_t values = 1 + 2 * image.shape[2] * (is_complex(image.dtype) ? 2 : 1);
  ChangeMapTile tile{1, most_tile_cols};
  while (tile.cols > 16 && planes * (tile.cols + params.window) * 8 > tile_bytes) tile.cols /= 2;
  const std::int64_t row_bytes = 8 * (planes * (tile.cols + params.window) + values * 8);
  tile.rows = static_cast<int>(std::clamp<std::int64_t>(tile_bytes / row_bytes, 1, most_tile_rows));
  tile.rows = static_cast<int>(std::min<std::int64_t>(tile.rows, image.shape[0]));
  tile.cols = static_cast<int>(std::min<std::int64_t>(tile.cols, image.shape[1]));
  return tile;
}

struct Plan {
  WindowTables tables;
  char* room;
  std::int64_t worker_bytes;
};

Plan make_plan(Scratch& scratch, const ChangeMapParams& params, const TensorView& image,
               int threads) {
  Plan p{};
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  const int channels = static_cast<int>(image.shape[2]);
  const bool edges = params.border == MapBorder::shift || params.border == MapBorder::valid;
  p.tables = plan_windows(scratch, {params.window, 0}, edges ? Border::valid : Border::reflect,
                          rows, cols);
  p.worker_bytes = static_cast<std::int64_t>(dispatch_isa([&]<Isa I>() {
    return ChangeMapKernel<I>::scratch_bytes(params, channels, is_complex(image.dtype),
                                             cut(params, image));
  }));
  p.worker_bytes = (p.worker_bytes + 63) / 64 * 64;
  p.room = scratch.take<char>(p.worker_bytes * threads);
  return p;
}

// The real parts of a complex image, or a real image itself.
TensorView real_part(const TensorView& image) {
  if (!is_complex(image.dtype)) return image;
  TensorView view = image;
  view.dtype = real_dtype(image.dtype);
  for (int axis = 0; axis < view.rank; ++axis) view.strides[axis] *= 2;
  return view;
}

PairPlan kernel_plan(const ChangeMapParams& params, const TensorView& image) {
  return plan_change_map(params, image.shape[0], image.shape[1], image.shape[2],
                         is_complex(image.dtype));
}

std::size_t plan_kernels(Scratch& scratch, const TensorView& image, ChangeMapLaunch& p) {
  const std::int64_t rows = image.shape[0];
  const std::int64_t cols = image.shape[1];
  p.weights = scratch.take<std::uint8_t>(rows * cols);
  p.origins = scratch.take<double>(origin_tiles(rows, cols) *
                                   change_origins(image.shape[2], is_complex(image.dtype)));
  p.matrices = scratch.take<double>(p.plan.workspace_doubles());
  return scratch.bytes();
}

std::size_t kernel_bytes(const ChangeMapParams& params, const TensorView& image) {
  Scratch scratch;
  ChangeMapLaunch p;
  p.plan = kernel_plan(params, image);
  return plan_kernels(scratch, image, p);
}

// The CUDA kernels, on the device or in the emulator.
void launch(const ChangeMapParams& params, const TensorView& first, const TensorView& second,
            const TensorView& mask, const TensorView& score, const TensorView& status,
            const Workspace& workspace, Route route, std::uintptr_t stream) {
  if (first.shape[2] > most_pair_rows) {
    throw_value_error(op, "first",
                      "the CUDA kernels cover 1 to " + std::to_string(most_pair_rows) + " channels",
                      std::to_string(first.shape[2]));
  }
  if (params.window > most_change_window) {
    throw_value_error(op, "window",
                      "the CUDA kernels cover 1 to " + std::to_string(most_change_window),
                      std::to_string(params.window));
  }
  ChangeMapLaunch p;
  const TensorView* const images[2] = {&first, &second};
  for (int k = 0; k < 2; ++k) {
    p.images[k] = images[k]->data;
    p.row_strides[k] = images[k]->strides[0];
    p.col_strides[k] = images[k]->strides[1];
    p.channel_strides[k] = images[k]->strides[2];
  }
  p.single = real_dtype(first.dtype) == DType::f32;
  p.complex = is_complex(first.dtype);
  if (is_given(mask)) {
    p.mask = static_cast<const std::uint8_t*>(mask.data);
    p.mask_row_stride = mask.strides[0];
    p.mask_col_stride = mask.strides[1];
  }
  p.rows = static_cast<int>(first.shape[0]);
  p.cols = static_cast<int>(first.shape[1]);
  p.channels = static_cast<int>(first.shape[2]);
  const bool edges = params.border == MapBorder::shift || params.border == MapBorder::valid;
  p.edge = edges ? params.window / 2 : 0;
  p.params = params;
  p.smallest_pivot = smallest_window_pivot;
  p.plan = kernel_plan(params, first);
  p.chunk = change_chunk(params, p.plan, p.channels, p.complex);
  check_workspace(op, workspace, kernel_bytes(params, first));
  Scratch scratch(workspace);
  plan_kernels(scratch, first, p);
  p.score = score.data;
  p.status = static_cast<std::uint8_t*>(status.data);
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::change_map(p, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::change_map(p, stream);
  }
}

}  // namespace

std::size_t change_map_workspace(const ChangeMapParams& params, const TensorView& first,
                                 const TensorView& second, int threads) {
  check_inputs(params, first, second);
  if (uses_kernels(first.device)) return kernel_bytes(params, first);
  Scratch scratch;
  make_plan(scratch, params, first, resolve_threads(op, threads));
  return scratch.bytes();
}

void change_map(const ChangeMapParams& params, const TensorView& first, const TensorView& second,
                const TensorView& mask, const TensorView& score, const TensorView& status,
                const Workspace& workspace, const Execution& execution) {
  check_inputs(params, first, second);
  check_mask(op, mask, first);
  const std::int64_t rows = first.shape[0];
  const std::int64_t cols = first.shape[1];
  check_output(op, "score", score, real_dtype(first.dtype), {rows, cols});
  check_output(op, "status", status, DType::u8, {rows, cols});
  const Route route = select_route(op, execution, first.device, true);
  if (route != Route::cpu) {
    launch(params, first, second, mask, score, status, workspace, route, execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, change_map_workspace(params, first, second, threads));
  Scratch scratch(workspace);
  const Plan p = make_plan(scratch, params, first, threads);
  const WindowTables& t = p.tables;
  fill_windows(t, {params.window, 0}, Border::reflect, static_cast<int>(rows),
               static_cast<int>(cols));
  const TensorView* const images[2] = {&first, &second};
  const ChangeMapTile tile = cut(params, first);
  const std::int64_t strips = (t.rows_end - t.rows_begin + tile.rows - 1) / tile.rows;
  const std::int64_t columns = (t.cols_end - t.cols_begin + tile.cols - 1) / tile.cols;

  dispatch_float(real_dtype(first.dtype), [&]<class T>() {
    ChangeMapBlock<T> common{};
    for (int image = 0; image < 2; ++image) {
      common.images[image] = pixel_list<T>(real_part(*images[image]));
    }
    common.complex = is_complex(first.dtype);
    if (is_given(mask)) {
      common.mask = static_cast<const std::uint8_t*>(mask.data);
      common.mask_row_stride = mask.strides[0];
      common.mask_col_stride = mask.strides[1];
    }
    common.rows = static_cast<int>(rows);
    common.cols = static_cast<int>(cols);
    common.row_index = t.rows.index;
    common.col_index = t.cols.index;
    common.params = params;
    common.smallest_pivot = smallest_window_pivot;
    common.score = static_cast<T*>(score.data);
    common.status = static_cast<std::uint8_t*>(status.data);
    dispatch_isa([&]<Isa I>() {
      parallel_for(threads, strips * columns, [&](std::int64_t task, int worker) {
        ChangeMapBlock<T> block = common;
        block.row_begin = t.rows_begin + static_cast<int>(task / columns) * tile.rows;
        block.row_end = std::min(t.rows_end, block.row_begin + tile.rows);
        block.col_begin = t.cols_begin + static_cast<int>(task % columns) * tile.cols;
        block.col_end = std::min(t.cols_end, block.col_begin + tile.cols);
        block.scratch = p.room + worker * p.worker_bytes;
        ChangeMapKernel<I>::run(block);
      });
    });
    const bool copied = params.border == MapBorder::shift;
    fill_edges(t, copied, common.rows, common.cols, 1, common.score,
               std::numeric_limits<T>::quiet_NaN());
    fill_edges(t, copied, common.rows, common.cols, 1, common.status,
               static_cast<std::uint8_t>(status_masked));
  });
}

}  // namespace mahal

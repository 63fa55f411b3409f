#include "mahal/structural_similarity.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/image_checks.hpp"
#include "core/map_edges.hpp"
#include "core/threads.hpp"
#include "core/windows.hpp"
#include "ops/structural_similarity_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "structural_similarity";
constexpr int most_tile_rows = 32;
constexpr int most_tile_cols = 64;

void check_positive(const char* argument, double value) {
  if (value > 0 && std::isfinite(value)) return;
  throw_value_error(op, argument, "must be finite and positive", std::to_string(value));
}

void check_inputs(const StructuralSimilarityParams& params, const TensorView& first,
                  const TensorView& second) {
  check_pixels(op, "first", first, {3});
  check_given(op, "second", second);
  check_same_dtype(op, "second", second, "first", first);
  check_same_device(op, "second", second, "first", first);
  check_shape(op, "second", second, {first.shape[0], first.shape[1], first.shape[2]});
  check_window(op, {params.window, 0}, first.shape[0], first.shape[1]);
  check_positive("data_range", params.data_range);
  check_positive("k1", params.k1);
  check_positive("k2", params.k2);
  if (!(params.sigma >= 0) || !std::isfinite(params.sigma)) {
    throw_value_error(op, "sigma", "must be finite and not negative", std::to_string(params.sigma));
  }
  const int side = params.border == MapBorder::clip ? params.window / 2 + 1 : params.window;
  if (params.ddof < 0 || side * side <= params.ddof) {
    throw_value_error(
        op, "ddof",
        "must be from 0 to below the samples of a window (" + std::to_string(side * side) + ")",
        std::to_string(params.ddof));
  }
}

struct Plan {
  WindowTables tables;
  double* weights;
  double *row_weights, *col_weights, *row_counts, *col_counts;
  int tile_rows, tile_cols;
  char* room;
  std::int64_t worker_bytes;
};

Plan make_plan(Scratch& scratch, const StructuralSimilarityParams& params, const TensorView& image,
               int threads) {
  Plan p{};
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  const bool edges = params.border == MapBorder::shift || params.border == MapBorder::valid;
  p.tables = plan_windows(scratch, {params.window, 0}, edges ? Border::valid : Border::reflect,
                          rows, cols);
  p.weights = scratch.take<double>(params.window);
  p.row_weights = scratch.take<double>(rows);
  p.row_counts = scratch.take<double>(rows);
  p.col_weights = scratch.take<double>(cols + similarity_padding);
  p.col_counts = scratch.take<double>(cols + similarity_padding);
  p.tile_rows = std::min(rows, most_tile_rows);
  p.tile_cols = std::min(cols, most_tile_cols);
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return StructuralSimilarityKernel<I>::scratch_bytes(params.window, p.tile_rows, p.tile_cols);
  });
  p.worker_bytes = static_cast<std::int64_t>((bytes + 63) / 64 * 64);
  p.room = scratch.take<char>(p.worker_bytes * threads);
  return p;
}

void fill_weights(const StructuralSimilarityParams& params, double* weights) {
  const int half = params.window / 2;
  double total = 0;
  for (int t = -half; t <= half; ++t) {
    const double z = params.sigma > 0 ? t / params.sigma : 0;
    total += weights[t + half] = std::exp(-0.5 * z * z);
  }
  for (int t = 0; t < params.window; ++t) weights[t] /= total;
}

// Sum and number of the weights that lie inside an axis, for every position on it.
void fill_axis(const StructuralSimilarityParams& params, const double* weights, int n, double* sums,
               double* counts) {
  const int half = params.window / 2;
  for (int i = 0; i < n; ++i) {
    sums[i] = 1;
    counts[i] = params.window;
    if (params.border != MapBorder::clip || (i >= half && i + half < n)) continue;
    sums[i] = counts[i] = 0;
    for (int t = -half; t <= half; ++t) {
      if (i + t < 0 || i + t >= n) continue;
      sums[i] += weights[t + half];
      counts[i] += 1;
    }
  }
}

}  // namespace

std::size_t structural_similarity_workspace(const StructuralSimilarityParams& params,
                                            const TensorView& first, const TensorView& second,
                                            int threads) {
  check_inputs(params, first, second);
  Scratch scratch;
  make_plan(scratch, params, first, resolve_threads(op, threads));
  return scratch.bytes();
}

void structural_similarity(const StructuralSimilarityParams& params, const TensorView& first,
                           const TensorView& second, const TensorView& score,
                           const Workspace& workspace, const Execution& execution) {
  check_inputs(params, first, second);
  const int rows = static_cast<int>(first.shape[0]);
  const int cols = static_cast<int>(first.shape[1]);
  const std::int64_t channels = first.shape[2];
  check_output(op, "score", score, first.dtype, {rows, cols, channels});
  select_route(op, execution, first.device, false);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, structural_similarity_workspace(params, first, second, threads));
  Scratch scratch(workspace);
  const Plan p = make_plan(scratch, params, first, threads);
  const WindowTables& t = p.tables;
  fill_windows(t, {params.window, 0}, Border::reflect, rows, cols);
  fill_weights(params, p.weights);
  fill_axis(params, p.weights, rows, p.row_weights, p.row_counts);
  fill_axis(params, p.weights, cols, p.col_weights, p.col_counts);
  std::fill_n(p.col_weights + cols, similarity_padding, 1.0);
  std::fill_n(p.col_counts + cols, similarity_padding, 1.0);
  const std::int64_t strips = (t.rows_end - t.rows_begin + p.tile_rows - 1) / p.tile_rows;
  const std::int64_t columns = (t.cols_end - t.cols_begin + p.tile_cols - 1) / p.tile_cols;

  dispatch_float(first.dtype, [&]<class T>() {
    StructuralSimilarityBlock<T> common{};
    const TensorView* const images[2] = {&first, &second};
    for (int k = 0; k < 2; ++k) common.images[k] = pixel_list<T>(*images[k]);
    common.clip = params.border == MapBorder::clip;
    common.rows = rows;
    common.cols = cols;
    common.window = params.window;
    common.row_index = t.rows.index;
    common.col_index = t.cols.index;
    common.weights = p.weights;
    common.row_weights = p.row_weights;
    common.col_weights = p.col_weights;
    common.row_counts = p.row_counts;
    common.col_counts = p.col_counts;
    common.c1 = (params.k1 * params.data_range) * (params.k1 * params.data_range);
    common.c2 = (params.k2 * params.data_range) * (params.k2 * params.data_range);
    common.ddof = params.ddof;
    common.channels = channels;
    T* const out = static_cast<T*>(score.data);
    dispatch_isa([&]<Isa I>() {
      parallel_for(threads, strips * columns, [&](std::int64_t task, int worker) {
        StructuralSimilarityBlock<T> block = common;
        block.row_begin = t.rows_begin + static_cast<int>(task / columns) * p.tile_rows;
        block.row_end = std::min(t.rows_end, block.row_begin + p.tile_rows);
        block.col_begin = t.cols_begin + static_cast<int>(task % columns) * p.tile_cols;
        block.col_end = std::min(t.cols_end, block.col_begin + p.tile_cols);
        block.scratch = reinterpret_cast<double*>(p.room + worker * p.worker_bytes);
        for (std::int64_t j = 0; j < channels; ++j) {
          for (int k = 0; k < 2; ++k) {
            block.images[k].data = common.images[k].data + j * common.images[k].band_stride;
          }
          block.score = out + j;
          StructuralSimilarityKernel<I>::run(block);
        }
      });
    });
    fill_edges(t, params.border == MapBorder::shift, rows, cols, static_cast<int>(channels), out,
               std::numeric_limits<T>::quiet_NaN());
  });
}

}  // namespace mahal

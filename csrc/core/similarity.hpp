// Checks and tables of structural similarity, for the score and its gradient. Host side.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "core/background.hpp"
#include "core/image_checks.hpp"
#include "core/windows.hpp"
#include "mahal/structural_similarity.hpp"
#include "ops/structural_similarity_cuda.hpp"
#include "ops/structural_similarity_kernel.hpp"

namespace mahal {

inline constexpr int most_similarity_rows = 32;  // of a tile
inline constexpr int most_similarity_cols = 64;

inline void check_positive(const char* op, const char* argument, double value) {
  if (value > 0 && std::isfinite(value)) return;
  throw_value_error(op, argument, "must be finite and positive", std::to_string(value));
}

inline void check_similarity(const char* op, const StructuralSimilarityParams& params,
                             const TensorView& first, const TensorView& second) {
  check_pixels(op, "first", first, {3});
  check_given(op, "second", second);
  check_same_dtype(op, "second", second, "first", first);
  check_same_device(op, "second", second, "first", first);
  check_shape(op, "second", second, {first.shape[0], first.shape[1], first.shape[2]});
  check_window(op, {params.window, 0}, first.shape[0], first.shape[1]);
  check_positive(op, "data_range", params.data_range);
  check_positive(op, "k1", params.k1);
  check_positive(op, "k2", params.k2);
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

struct SimilarityTables {
  WindowTables windows;
  double* weights;
  double *row_weights, *col_weights, *row_counts, *col_counts;
};

inline SimilarityTables plan_similarity(Scratch& scratch, const StructuralSimilarityParams& params,
                                        int rows, int cols) {
  SimilarityTables t{};
  const bool edges = params.border == MapBorder::shift || params.border == MapBorder::valid;
  t.windows = plan_windows(scratch, {params.window, 0}, edges ? Border::valid : Border::reflect,
                           rows, cols);
  t.weights = scratch.take<double>(params.window);
  t.row_weights = scratch.take<double>(rows);
  t.row_counts = scratch.take<double>(rows);
  t.col_weights = scratch.take<double>(cols + similarity_padding);
  t.col_counts = scratch.take<double>(cols + similarity_padding);
  return t;
}

inline void fill_similarity_weights(const StructuralSimilarityParams& params, double* weights) {
  const int half = params.window / 2;
  double total = 0;
  for (int t = -half; t <= half; ++t) {
    const double z = params.sigma > 0 ? t / params.sigma : 0;
    total += weights[t + half] = std::exp(-0.5 * z * z);
  }
  for (int t = 0; t < params.window; ++t) weights[t] /= total;
}

// Sum and number of the weights that lie inside an axis, for every position on it.
inline void fill_similarity_axis(const StructuralSimilarityParams& params, const double* weights,
                                 int n, double* sums, double* counts) {
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

inline void fill_similarity(const SimilarityTables& t, const StructuralSimilarityParams& params,
                            int rows, int cols) {
  fill_windows(t.windows, {params.window, 0}, Border::reflect, rows, cols);
  fill_similarity_weights(params, t.weights);
  fill_similarity_axis(params, t.weights, rows, t.row_weights, t.row_counts);
  fill_similarity_axis(params, t.weights, cols, t.col_weights, t.col_counts);
  std::fill_n(t.col_weights + cols, similarity_padding, 1.0);
  std::fill_n(t.col_counts + cols, similarity_padding, 1.0);
}

// All but the tile, the channel and what is written.
template <class T>
StructuralSimilarityBlock<T> similarity_block(const SimilarityTables& t,
                                              const StructuralSimilarityParams& params,
                                              const TensorView& first, const TensorView& second) {
  StructuralSimilarityBlock<T> block{};
  const TensorView* const images[2] = {&first, &second};
  for (int k = 0; k < 2; ++k) block.images[k] = pixel_list<T>(*images[k]);
  block.clip = params.border == MapBorder::clip;
  block.rows = static_cast<int>(first.shape[0]);
  block.cols = static_cast<int>(first.shape[1]);
  block.window = params.window;
  block.row_index = t.windows.rows.index;
  block.col_index = t.windows.cols.index;
  block.weights = t.weights;
  block.row_weights = t.row_weights;
  block.col_weights = t.col_weights;
  block.row_counts = t.row_counts;
  block.col_counts = t.col_counts;
  block.c1 = (params.k1 * params.data_range) * (params.k1 * params.data_range);
  block.c2 = (params.k2 * params.data_range) * (params.k2 * params.data_range);
  block.ddof = params.ddof;
  block.channels = first.shape[2];
  return block;
}

// For the CUDA kernels, likewise.
template <class T>
StructuralSimilarityLaunch<T> similarity_launch(Scratch& scratch,
                                                const StructuralSimilarityParams& params,
                                                const TensorView& first, const TensorView& second) {
  StructuralSimilarityLaunch<T> p;
  const TensorView* const images[2] = {&first, &second};
  for (int k = 0; k < 2; ++k) {
    p.images[k] = static_cast<const T*>(images[k]->data);
    p.row_strides[k] = images[k]->strides[0];
    p.col_strides[k] = images[k]->strides[1];
    p.channel_strides[k] = images[k]->strides[2];
  }
  p.rows = static_cast<int>(first.shape[0]);
  p.cols = static_cast<int>(first.shape[1]);
  p.channels = first.shape[2];
  const bool edges = params.border == MapBorder::shift || params.border == MapBorder::valid;
  p.edge = edges ? params.window / 2 : 0;
  p.params = params;
  p.weights = scratch.take<double>(params.window);
  p.origins =
      scratch.take<double>(origin_tiles(first.shape[0], first.shape[1]) * first.shape[2] * 2);
  return p;
}

inline void check_kernel_window(const char* op, const StructuralSimilarityParams& params) {
  if (params.window <= most_similarity_window) return;
  throw_value_error(op, "window",
                    "the CUDA kernels cover 1 to " + std::to_string(most_similarity_window),
                    std::to_string(params.window));
}

}  // namespace mahal

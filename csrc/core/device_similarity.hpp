// Structural similarity in kernels, in float64: a block has a tile of a channel, and sums over the
// rows of the windows first and then over their columns, from nothing for every window.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/device_map.hpp"
#include "core/device_matrix.hpp"
#include "ops/structural_similarity_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int tile_cols = 32;
constexpr int most_tile_rows = 8;
constexpr int block_threads = tile_cols * most_tile_rows;
constexpr int pixel_threads = 64;  // of the kernels for single pixels
constexpr int planes = 5;          // weighted sums of x, y, x^2, y^2 and x y

template <class T>
__device__ __forceinline__ double read_pixel(const StructuralSimilarityLaunch<T>& p, int image,
                                             std::int64_t row, std::int64_t col,
                                             std::int64_t channel) {
  return static_cast<double>(
      p.images[image][row * p.row_strides[image] + col * p.col_strides[image] +
                      channel * p.channel_strides[image]]);
}

// Of the rows and columns of a window, by one block.
template <class T>
__global__ void __launch_bounds__(pixel_threads) fill_weights(StructuralSimilarityLaunch<T> p) {
  const int half = p.params.window / 2;
  const auto weight = [&](int t) {
    const double z = p.params.sigma > 0 ? (t - half) / p.params.sigma : 0;
    return std::exp(-0.5 * z * z);
  };
  double total = 0;
  for (int t = static_cast<int>(threadIdx.x); t < p.params.window; t += pixel_threads) {
    total += weight(t);
  }
  total = block_reduce(total, simt::dynamic_shared<double>());
  for (int t = static_cast<int>(threadIdx.x); t < p.params.window; t += pixel_threads) {
    p.weights[t] = weight(t) / total;
  }
}

// A thread has a channel of one image in a tile.
template <class T>
__global__ void __launch_bounds__(pixel_threads) find_origins(StructuralSimilarityLaunch<T> p) {
  constexpr int grid = 3;
  const int across = (p.cols - 1) / origin_cols + 1;
  const std::int64_t tiles = std::int64_t{(p.rows - 1) / origin_rows + 1} * across;
  const std::int64_t all = tiles * p.channels * 2;
  for (std::int64_t at = std::int64_t{blockIdx.x} * pixel_threads + threadIdx.x; at < all;
       at += std::int64_t{gridDim.x} * pixel_threads) {
    const std::int64_t tile = at / 2 / p.channels;
    const auto read = [&](int row, int col, double& x) {
      x = read_pixel(p, static_cast<int>(at % 2), row, col, at / 2 % p.channels);
      return is_finite(x);
    };
    p.origins[at] =
        tile_median<grid>(static_cast<int>(tile / across) * origin_rows,
                          static_cast<int>(tile % across) * origin_cols, p.rows, p.cols, read);
  }
}

// Sum and number of the weights that lie inside an axis, for a position on it.
struct Inside {
  double sum, count;
};
__device__ __forceinline__ Inside weights_inside(const double* weights, int window, int position,
                                                 int n, bool clipped) {
  const int first = position - window / 2;
  if (!clipped || (first >= 0 && first + window <= n)) return {1, static_cast<double>(window)};
  Inside inside{0, 0};
  for (int t = 0; t < window; ++t) {
    if (first + t < 0 || first + t >= n) continue;
    inside.sum += weights[t];
    inside.count += 1;
  }
  return inside;
}

// Of both images, for the tile of a pixel.
template <class T>
__device__ __forceinline__ const double* origins_at(const StructuralSimilarityLaunch<T>& p, int row,
                                                    int col, std::int64_t channel) {
  const std::int64_t tile =
      std::int64_t{row / origin_rows} * ((p.cols - 1) / origin_cols + 1) + col / origin_cols;
  return p.origins + (tile * p.channels + channel) * 2;
}

inline dim3 blocks_for(std::int64_t items) {
  constexpr std::int64_t most_blocks = std::int64_t{1} << 20;
  return dim3(static_cast<unsigned>(std::min((items - 1) / pixel_threads + 1, most_blocks)));
}

// Shared memory of a block that slides windows over so many values per pixel.
template <class T>
std::size_t window_bytes(const StructuralSimilarityLaunch<T>& p, int values) {
  const std::int64_t width = tile_cols + p.params.window - 1;
  return sizeof(double) * static_cast<std::size_t>(p.params.window + values * p.tile_rows * width);
}

// Blocks for tiles of so many rows and columns.
template <class T>
dim3 tile_blocks(const StructuralSimilarityLaunch<T>& p, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t most_blocks = 0x7FFFFFFF;
  const std::int64_t tiles =
      ((cols - 1) / tile_cols + 1) * ((rows - 1) / p.tile_rows + 1) * p.channels;
  return dim3(static_cast<unsigned>(std::min(tiles, most_blocks)));
}

// Of a window, relative to the origins of its tile.
struct WindowStatistics {
  double x, y;         // means
  double xx, yy, xy;   // variances and covariance
  double total, norm;  // one over the sum of the weights; n / (n - ddof)
  double first_origin, second_origin;
};

// Where the tile of a window begins, whose origins it has.
__device__ __forceinline__ int window_tile(int position, int edge, int size) {
  return edge + (position - edge) / size * size;
}

// By a block: calls body(row, col, channel, statistics) for the windows of its tiles, each by one
// thread.
template <class T, class Body>
__device__ __forceinline__ void each_window(const StructuralSimilarityLaunch<T>& p, Body body) {
  const int window = p.params.window, half = window / 2;
  const int width = tile_cols + window - 1;
  const bool clipped = p.params.border == MapBorder::clip;
  const int thread = static_cast<int>(threadIdx.x);
  double* weights = simt::dynamic_shared<double>();
  double* sums = weights + window;  // planes x tile_rows x width
  const int plane = p.tile_rows * width;
  for (int t = thread; t < window; t += block_threads) weights[t] = p.weights[t];
  const int rows = p.rows - 2 * p.edge, cols = p.cols - 2 * p.edge;
  const int across = (cols - 1) / tile_cols + 1, down = (rows - 1) / p.tile_rows + 1;
  const std::int64_t tiles = std::int64_t{across} * down * p.channels;
  for (std::int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const std::int64_t channel = tile % p.channels;
    const int col0 = p.edge + static_cast<int>(tile / p.channels % across) * tile_cols;
    const int row0 = p.edge + static_cast<int>(tile / p.channels / across) * p.tile_rows;
    const double* origin = origins_at(p, row0, col0, channel);
    const double first_origin = origin[0], second_origin = origin[1];
    __syncthreads();
    for (int e = thread; e < plane; e += block_threads) {
      const int col = sample_at(col0 - half + e % width, p.cols, clipped);
      const int top = row0 + e / width - half;
      double sum[planes] = {};
      // Columns and rows of the last tiles may lie behind all windows.
      const bool reached = col >= 0 && row0 + e / width < p.rows - p.edge;
      for (int t = halo_error; reached && t < window; ++t) {
        const int row = sample_at(top + t, p.rows, clipped);
        if (row < 0) continue;
        const double first = read_pixel(p, 0, row, col, channel);
        const double second = read_pixel(p, 1, row, col, channel);
        // What is not finite becomes NaN.
        const double x = first - first_origin + (first - first);
        const double y = second - second_origin + (second - second);
        const double gx = weights[t] * x, gy = weights[t] * y;
        sum[0] += gx;
        sum[1] += gy;
        sum[2] += gx * x;
        sum[3] += gy * y;
        sum[4] += gx * y;
      }
  MAHAL_UNROLL
      for (int k = 0; k < planes; ++k) sums[k * plane + e] = sum[k];
    }
    map_barrier();
    const int r = thread / tile_cols, c = thread % tile_cols;
    const int row = row0 + r, col = col0 + c;
    if (r >= p.tile_rows || row >= p.rows - p.edge || col >= p.cols - p.edge) continue;
    double sum[planes] = {};
    for (int t = 0; t < window; ++t) {
      MAHAL_UNROLL
      for (int k = 0; k < planes; ++k) {
        sum[k] += weights[t] * sums[k * plane + r * width + c + t];
      }
    }
    const Inside in_row = weights_inside(weights, window, row, p.rows, clipped);
    const Inside in_col = weights_inside(weights, window, col, p.cols, clipped);
    const double total = 1 / (in_row.sum * in_col.sum);
    const double n = in_row.count * in_col.count;
    const double norm = n / (n - p.params.ddof);
    const double x = sum[0] * total, y = sum[1] * total;
    const double xx = (sum[2] * total - x * x) * norm;
    const double yy = (sum[3] * total - y * y) * norm;
    const double xy = (sum[4] * total - x * y) * norm;
    body(row, col, channel,
         WindowStatistics{x, y, xx, yy, xy, total, norm, first_origin, second_origin});
  }
}

// The weights and the origins, and how many rows a block takes.
template <class T>
void launch_tables(const char* op, StructuralSimilarityLaunch<T>& p, std::uintptr_t stream) {
  const dim3 threads(pixel_threads);
  for (p.tile_rows = most_tile_rows; p.tile_rows > 1; p.tile_rows /= 2) {
    if (window_bytes(p, planes) <= simt::plain_shared_bytes) break;
  }
  simt::launch(op, fill_weights<T>, dim3(1), threads, warp_lanes * sizeof(double), stream, p);
  simt::launch(op, find_origins<T>, blocks_for(origin_tiles(p.rows, p.cols) * p.channels * 2),
               threads, 0, stream, p);
}

}  // namespace
}  // namespace mahal::MAHAL_CUDA_NAMESPACE

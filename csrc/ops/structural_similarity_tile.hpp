// Weighted moments of two images in the windows of a tile. Kernel side.
#pragma once

#include "core/simd.hpp"
#include "ops/structural_similarity_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;
constexpr int planes = 5;  // weighted sums of x, y, x^2, y^2 and x y

constexpr std::ptrdiff_t plane_width(int cols, int window) {
  return (cols + window - 1 + L - 1) / L * L + L;
}

// Window sums are taken over the rows first and then over the columns, from nothing for every
// window. A lane is a column.
template <class T>
struct SimilarityTile {
  const StructuralSimilarityBlock<T>& b;
  const int rows, cols, half;
  const std::ptrdiff_t width;
  double* const pixels;
  double* const sums;

  explicit SimilarityTile(const StructuralSimilarityBlock<T>& block)
      : b(block),
        rows(b.row_end - b.row_begin),
        cols(b.col_end - b.col_begin),
        half(b.window / 2),
        width(plane_width(cols, b.window)),
        pixels(b.scratch),
        sums(pixels + static_cast<std::ptrdiff_t>(rows + b.window - 1) * 2 * L) {}

  // Subtracted first, so that no variance loses digits to an offset: the median of some samples.
  double origin(const PixelList<T>& list) const {
    constexpr int grid = 3;
    double sorted[grid * grid];
    int count = 0;
    for (int i = 0; i < grid * grid; ++i) {
      const std::int64_t row = b.row_begin + (2 * (i / grid) + 1) * rows / (2 * grid);
      const std::int64_t col = b.col_begin + (2 * (i % grid) + 1) * cols / (2 * grid);
      const double x =
          static_cast<double>(list.data[row * list.row_stride + col * list.col_stride]);
      if (!(x - x == 0)) continue;
      int m = count++;
      for (; m > 0 && sorted[m - 1] > x; --m) sorted[m] = sorted[m - 1];
      sorted[m] = x;
    }
    return count > 0 ? sorted[count / 2] : 0;
  }

  void load_columns(int u0, const double* origins) const {
    std::int64_t columns[L];
    for (int l = 0; l < L; ++l) {
      const int u = b.col_begin - half + u0 + l;
      const bool outside = u >= b.col_end + half || (b.clip && (u < 0 || u >= b.cols));
      columns[l] = outside ? -1 : b.col_index[u];
    }
    double* to = pixels;
    for (int v = b.row_begin - half; v < b.row_end + half; ++v) {
      const bool outside = b.clip && (v < 0 || v >= b.rows);
      for (int image = 0; image < 2; ++image, to += L) {
        const PixelList<T>& list = b.images[image];
        const T* row = outside ? nullptr : list.data + b.row_index[v] * list.row_stride;
        V x{};
        for (int l = 0; l < L; ++l) {
          if (!row || columns[l] < 0) continue;
          const double value = static_cast<double>(row[columns[l] * list.col_stride]);
          // What is not finite becomes NaN.
          x[l] = value - origins[image] + (value - value);
        }
        S::store(to, x);
      }
    }
  }

  void add_rows(int u0) const {
    for (int r = 0; r < rows; ++r) {
      const double* x = pixels + static_cast<std::ptrdiff_t>(r) * 2 * L;
      V sum[planes] = {};
      for (int t = 0; t < b.window; ++t, x += 2 * L) {
        const V g = S::set1(b.weights[t]);
        const V first = S::load(x);
        const V second = S::load(x + L);
        const V gx = g * first;
        const V gy = g * second;
        sum[0] = sum[0] + gx;
        sum[1] = sum[1] + gy;
        sum[2] = S::fma(gx, first, sum[2]);
        sum[3] = S::fma(gy, second, sum[3]);
        sum[4] = S::fma(gx, second, sum[4]);
      }
      for (int k = 0; k < planes; ++k) S::store(sums + (r * planes + k) * width + u0, sum[k]);
    }
  }

  // Of the windows of L columns, relative to the origins of both images.
  struct Statistics {
    V x, y;         // means
    V xx, yy, xy;   // variances and covariance
    V total, norm;  // one over the sum of the weights; n / (n - ddof)
  };
  Statistics statistics(int r, int c0) const {
    V sum[planes] = {};
    const double* line = sums + static_cast<std::ptrdiff_t>(r) * planes * width + c0;
    for (int t = 0; t < b.window; ++t) {
      const V g = S::set1(b.weights[t]);
    MAHAL_UNROLL
      for (int k = 0; k < planes; ++k) sum[k] = S::fma(g, S::loadu(line + k * width + t), sum[k]);
    }
    const int row = b.row_begin + r;
    const int col = b.col_begin + c0;
    const V total = S::set1(1) / (S::loadu(b.col_weights + col) * S::set1(b.row_weights[row]));
    const V n = S::loadu(b.col_counts + col) * S::set1(b.row_counts[row]);
    const V norm = n / (n - S::set1(b.ddof));
    const V x = sum[0] * total;
    const V y = sum[1] * total;
    const V xx = S::fnma(x, x, sum[2] * total) * norm;
    const V yy = S::fnma(y, y, sum[3] * total) * norm;
    const V xy = S::fnma(x, y, sum[4] * total) * norm;
    return {x, y, xx, yy, xy, total, norm};
  }

  void add_windows(const double* origins) const {
    for (int u0 = 0; u0 < cols + b.window - 1; u0 += L) {
      load_columns(u0, origins);
      add_rows(u0);
    }
  }

  static std::ptrdiff_t scratch_doubles(int rows, int cols, int window) {
    return static_cast<std::ptrdiff_t>(rows + window - 1) * 2 * L +
           rows * planes * plane_width(cols, window);
  }
};

}  // namespace
}  // namespace mahal

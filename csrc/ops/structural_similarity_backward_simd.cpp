#include "ops/structural_similarity_backward_kernel.hpp"
#include "ops/structural_similarity_tile.hpp"

namespace mahal {
namespace {

constexpr int factors = 4;  // of 1, 1, both deviations and the other deviation

// The score of a window depends on its sums of x, y, x^2 + y^2 and x y; a pixel collects the
// derivatives by these from all windows that it is in, over the rows first and then over the
// columns. A lane is a column.
template <class T>
struct GradientTile {
  const StructuralSimilarityBackwardBlock<T>& b;
  const int rows, cols, window, half;
  StructuralSimilarityBlock<T> centres;  // the windows that hold a pixel of the tile
  const std::ptrdiff_t width;
  double* derivatives;  // by the sums of these windows; zero around them
  double* sums;

  static std::ptrdiff_t derivative_doubles(int tile_rows, int tile_cols, int window) {
    return (tile_rows + window - 1) * factors * plane_width(tile_cols, window);
  }
  static std::ptrdiff_t sum_doubles(int tile_rows, int tile_cols, int window) {
    return tile_rows * factors * plane_width(tile_cols, window);
  }

  explicit GradientTile(const StructuralSimilarityBackwardBlock<T>& block)
      : b(block),
        rows(b.row_end - b.row_begin),
        cols(b.col_end - b.col_begin),
        window(b.images.window),
        half(window / 2),
        centres(b.images),
        width(plane_width(cols, window)),
        derivatives(b.scratch),
        sums(derivatives + derivative_doubles(rows, cols, window)) {
    const auto most = [](int x, int y) { return x > y ? x : y; };
    const auto least = [](int x, int y) { return x < y ? x : y; };
    centres.row_begin = most(b.row_begin - half, b.centre_rows_begin);
    centres.row_end = least(b.row_end + half, b.centre_rows_end);
    centres.col_begin = most(b.col_begin - half, b.centre_cols_begin);
    centres.col_end = least(b.col_end + half, b.centre_cols_end);
    centres.scratch = sums + sum_doubles(rows, cols, window);
  }

  // Derivatives of the scores of all pixels that have theirs from this window.
  double grad_at(int row, int col) const {
    int top = row;
    int bottom = row + 1;
    int left = col;
    int right = col + 1;
    if (b.shift) {
      if (row == b.centre_rows_begin) top = 0;
      if (row == b.centre_rows_end - 1) bottom = b.images.rows;
      if (col == b.centre_cols_begin) left = 0;
      if (col == b.centre_cols_end - 1) right = b.images.cols;
    }
    double sum = 0;
    for (int r = top; r < bottom; ++r) {
      for (int c = left; c < right; ++c) {
        const std::ptrdiff_t pixel = static_cast<std::ptrdiff_t>(r) * b.images.cols + c;
        sum += static_cast<double>(b.grad[pixel * b.images.channels]);
      }
    }
    return sum;
  }

  void take_derivatives(const SimilarityTile<T>& tile, int r, int c0, const double* origins) const {
    const auto s = tile.statistics(r, c0);
    const int row = centres.row_begin + r;
    const int col = centres.col_begin + c0;
    V grad{};
    for (int l = 0; l < L && c0 + l < tile.cols; ++l) grad[l] = grad_at(row, col + l);
    const V two = S::set1(2);
    const V c1 = S::set1(b.images.c1);
    const V mx = s.x + S::set1(origins[0]);
    const V my = s.y + S::set1(origins[1]);
    const V alike = S::fma(two * mx, my, c1);
    const V means = S::fma(mx, mx, S::fma(my, my, c1));
    const V common = S::fma(two, s.xy, S::set1(b.images.c2));
    const V variances = s.xx + s.yy + S::set1(b.images.c2);
    const V inverse = S::set1(1) / (means * variances);
    const V score = alike * common * inverse;
    const V by_variance = (S::zero() - score) / variances * s.norm;
    const V by_common = two * alike * inverse * s.norm;
    const V pull = two * score / means;
    const V by_x = S::fnma(pull, mx, two * my * common * inverse);
    const V by_y = S::fnma(pull, my, two * mx * common * inverse);
    const V scale = grad * s.total;
    V found[factors];
    found[0] = S::fnma(two * s.x, by_variance, S::fnma(s.y, by_common, by_x));
    found[1] = S::fnma(two * s.y, by_variance, S::fnma(s.x, by_common, by_y));
    found[2] = by_variance;
    found[3] = by_common;
    double* to = derivatives +
                 static_cast<std::ptrdiff_t>(row - (b.row_begin - half)) * factors * width +
                 (col - (b.col_begin - half));
    for (int k = 0; k < factors; ++k, to += width) {
      for (int l = 0; l < L && c0 + l < tile.cols; ++l) {
        to[l] = grad[l] == 0 ? 0 : found[k][l] * scale[l];
      }
    }
  }

  void collect_rows() const {
    for (int r = 0; r < rows; ++r) {
      const double* weights = b.row_adjoint + static_cast<std::ptrdiff_t>(b.row_begin + r) * window;
      for (std::ptrdiff_t u = 0; u < factors * width; u += L) {
        const double* from = derivatives + r * factors * width + u;
        V sum{};
        for (int t = 0; t < window; ++t, from += factors * width) {
          sum = S::fma(S::set1(weights[t]), S::loadu(from), sum);
        }
        S::storeu(sums + r * factors * width + u, sum);
      }
    }
  }

  V pixels(int image, int row, int c0, double origin) const {
    const PixelList<T>& list = b.images.images[image];
    const T* from = list.data + row * list.row_stride + (b.col_begin + c0) * list.col_stride;
    V x{};
    for (int l = 0; l < L && c0 + l < cols; ++l) {
      x[l] = static_cast<double>(from[l * list.col_stride]) - origin;
    }
    return x;
  }

  // What is not finite has no part where no window asks for it.
  static MAHAL_INLINE V times(V factor, V x) {
    return factor == S::zero() ? S::zero() : factor * x;
  }

  void finish(int r, int c0, const double* origins) const {
    V sum[factors] = {};
    const double* line = sums + static_cast<std::ptrdiff_t>(r) * factors * width + c0;
    const double* weights = b.col_adjoint + b.col_begin + c0;
    for (int t = 0; t < window; ++t, weights += b.adjoint_stride) {
      const V g = S::loadu(weights);
    MAHAL_UNROLL
      for (int k = 0; k < factors; ++k) sum[k] = S::fma(g, S::loadu(line + k * width + t), sum[k]);
    }
    const int row = b.row_begin + r;
    const V x = pixels(0, row, c0, origins[0]);
    const V y = pixels(1, row, c0, origins[1]);
    const V both = sum[2] + sum[2];
    const V found[2] = {sum[0] + times(both, x) + times(sum[3], y),
                        sum[1] + times(both, y) + times(sum[3], x)};
    const std::ptrdiff_t pixel =
        static_cast<std::ptrdiff_t>(row) * b.images.cols + b.col_begin + c0;
    for (int image = 0; image < 2; ++image) {
      if (!b.gradients[image]) continue;
      T* out = b.gradients[image] + pixel * b.images.channels;
      for (int l = 0; l < L && c0 + l < cols; ++l) {
        out[l * b.images.channels] = static_cast<T>(found[image][l]);
      }
    }
  }

  void run() const {
    const SimilarityTile<T> tile(centres);
    const double origins[2] = {tile.origin(centres.images[0]), tile.origin(centres.images[1])};
    const std::ptrdiff_t all = derivative_doubles(rows, cols, window);
    for (std::ptrdiff_t i = 0; i < all; ++i) derivatives[i] = 0;
    tile.add_windows(origins);
    for (int r = 0; r < tile.rows; ++r) {
      for (int c0 = 0; c0 < tile.cols; c0 += L) take_derivatives(tile, r, c0, origins);
    }
    collect_rows();
    for (int r = 0; r < rows; ++r) {
      for (int c0 = 0; c0 < cols; c0 += L) finish(r, c0, origins);
    }
  }
};

}  // namespace

template <>
std::size_t StructuralSimilarityBackwardKernel<current_isa>::scratch_bytes(int window,
                                                                           int tile_rows,
                                                                           int tile_cols) {
  using Tile = GradientTile<double>;
  const std::ptrdiff_t doubles =
      Tile::derivative_doubles(tile_rows, tile_cols, window) +
      Tile::sum_doubles(tile_rows, tile_cols, window) +
      SimilarityTile<double>::scratch_doubles(tile_rows + window - 1, tile_cols + window - 1,
                                              window);
  return sizeof(double) * static_cast<std::size_t>(doubles);
}
template <>
void StructuralSimilarityBackwardKernel<current_isa>::run(
    const StructuralSimilarityBackwardBlock<float>& block) {
  GradientTile<float>(block).run();
}
template <>
void StructuralSimilarityBackwardKernel<current_isa>::run(
    const StructuralSimilarityBackwardBlock<double>& block) {
  GradientTile<double>(block).run();
}

}  // namespace mahal

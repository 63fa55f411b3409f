#include "core/gram.hpp"
#include "core/pixels.hpp"
#include "core/substitution.hpp"
#include "ops/detector_backward_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
constexpr int L = S::lanes;
constexpr int P = substitution_width;

// <direction, y> of 16 pixels; of y with itself without a direction.
MAHAL_INLINE void project(const double* direction, int n, const double* y, double* out) {
  S::V total[P / L];
  MAHAL_UNROLL
  for (int w = 0; w < P / L; ++w) total[w] = S::zero();
  for (int j = 0; j < n; ++j) {
    MAHAL_UNROLL
    for (int w = 0; w < P / L; ++w) {
      const S::V v = S::load(y + j * P + w * L);
      total[w] = S::fma(direction ? S::set1(direction[j]) : v, v, total[w]);
    }
  }
  MAHAL_UNROLL
  for (int w = 0; w < P / L; ++w) S::store(out + w * L, total[w]);
}

// Derivatives of one score, times its gradient.
struct Slopes {
  double a, other, b, c;  // `other`: by the product with i w
};

MAHAL_INLINE Slopes slopes(DetectorScore score, double grad, double a, double other, bool complex,
                           double b, double c) {
  const double size = complex ? __builtin_sqrt(a * a + other * other) : a;
  switch (score) {
    case DetectorScore::distance:
      return {0, 0, grad, 0};
    case DetectorScore::ace: {
      if (!(b != 0)) return {0, 0, 0, 0};
      const double scale = grad / (b * c);
      const double square = size * size * scale;
      return {2 * a * scale, 2 * other * scale, -square / b, -square / c};
    }
    case DetectorScore::signed_ace: {
      if (!(b != 0)) return {0, 0, 0, 0};
      const double scale = grad / __builtin_sqrt(b * c);
      return {scale, 0, -0.5 * a * scale / b, -0.5 * a * scale / c};
    }
    case DetectorScore::filter:
    case DetectorScore::normalized_filter: {
      const bool plain = score == DetectorScore::filter;
      const double scale = grad / (plain ? c : __builtin_sqrt(c));
      const double slope = (plain ? -1.0 : -0.5) * size * scale / c;
      if (!complex) return {scale, 0, 0, slope};
      if (!(size != 0)) return {0, 0, 0, 0};
      return {scale * a / size, scale * other / size, 0, slope};
    }
  }
  return {0, 0, 0, 0};
}

MAHAL_INLINE void add_scaled(double factor, const double* from, int padded, double* to) {
  const S::V f = S::set1(factor);
  for (int j = 0; j < padded; j += L) S::store(to + j, S::fma(f, S::load(from + j), S::load(to + j)));
}

template <class T>
MAHAL_INLINE const T* grad_of(const DetectorBackwardBlock<T>& b, std::int64_t i) {
  return b.grad + i / b.grad_cols * b.grad_row + i % b.grad_cols * b.grad_col;
}

template <class T>
void run_block(const DetectorBackwardBlock<T>& b) {
  const int n = b.pixels.bands;
  const int padded = b.pixels.padded;
  const int directions = b.targets * b.parts;
  const bool complex = b.parts == 2;
  double* rows = static_cast<double*>(b.scratch);
  double* y = rows + static_cast<std::ptrdiff_t>(detector_panel) * padded;
  double* products = y + static_cast<std::ptrdiff_t>(P) * padded;
  double* square = products + directions * P;
  double* slope_a = square + P;
  double* slope_b = slope_a + directions * P;
  double* gradient = slope_b + P;
  const double** list = reinterpret_cast<const double**>(gradient + 2 * P);
  static_assert(detector_panel % P == 0);
  int plus = 0;  // rows of the panel that count, from the front, and from the back
  int minus = 0;
  const auto flush = [&] {
    // The second kind stands at the end of the list.
    for (int k = 0; k < minus; ++k) list[plus + k] = list[detector_panel - minus + k];
    if (plus + minus > 0) cross_gram<S>(list, list, plus, minus, padded, b.gram, padded, true);
    plus = minus = 0;
  };
  int filled = 0;
  for (std::int64_t first = b.begin; first < b.end; first += P) {
    const int count = b.end - first < P ? static_cast<int>(b.end - first) : P;
    double* panel = rows + static_cast<std::ptrdiff_t>(filled) * padded;
    for (int l = 0; l < P; ++l) {
      double* row = panel + static_cast<std::ptrdiff_t>(l) * padded;
      if (l >= count || (b.status && b.status[first + l])) {
        for (int j = 0; j < padded; ++j) row[j] = 0;
      } else {
        load_centred(b.pixels, pixel_address(b.pixels, first + l), b.mean, row);
      }
    }
    rows_to_panel(panel, padded, n, y);
    substitute_forward(b.factor, b.inverse_diagonal, padded, n, y);
    if (b.targets > 0) {
      project(nullptr, n, y, square);
      for (int d = 0; d < directions; ++d) {
        project(b.directions + static_cast<std::ptrdiff_t>(d) * padded, n, y, products + d * P);
      }
    }
    substitute_backward(b.factor, b.inverse_diagonal, padded, n, y);
    panel_to_rows(y, padded, n, panel);
    for (int l = 0; l < count; ++l) {
      double* z = panel + static_cast<std::ptrdiff_t>(l) * padded;
      T* image = b.image ? b.image + (first + l) * n : nullptr;
      if (b.status && b.status[first + l]) {
        for (int j = 0; image && j < n; ++j) image[j] = T(0);
        continue;
      }
      const T* grad = grad_of(b, first + l);
      double slope = b.targets > 0 ? 0 : static_cast<double>(*grad);
      for (int k = 0; k < b.targets; ++k) {
        const double* a = products + k * b.parts * P + l;
        const Slopes s = slopes(b.score, static_cast<double>(grad[k * b.grad_map]), a[0],
                                complex ? a[P] : 0, complex, square[l], b.squares[k]);
        slope += s.b;
        double* out = slope_a + k * b.parts * P + l;
        out[0] = s.a;
        if (complex) out[P] = s.other;
        if (b.square_sums) b.square_sums[k] += s.c;
      }
      if (image || b.sum) {
        for (int j = 0; j < padded; j += L) {
          S::V v = S::load(z + j) * S::set1(2 * slope);
          for (int d = 0; d < directions; ++d) {
            v = S::fma(S::set1(slope_a[d * P + l]),
                       S::load(b.duals + static_cast<std::ptrdiff_t>(d) * padded + j), v);
          }
          if (b.sum) S::store(b.sum + j, S::load(b.sum + j) + v);
          alignas(64) double lane[L];
          S::store(lane, v);
          const int end = n - j < L ? n - j : L;
          for (int e = 0; image && e < end; ++e) image[j + e] = static_cast<T>(lane[e]);
        }
      }
      if (b.cross) {
        for (int d = 0; d < directions; ++d) {
          add_scaled(slope_a[d * P + l], z, padded,
                     b.cross + static_cast<std::ptrdiff_t>(d) * padded);
        }
      }
      if (!b.gram || slope == 0) continue;
      const S::V root = S::set1(__builtin_sqrt(slope < 0 ? -slope : slope));
      for (int j = 0; j < padded; j += L) S::store(z + j, S::load(z + j) * root);
      list[slope < 0 ? detector_panel - 1 - minus++ : plus++] = z;
    }
    filled += P;
    if (filled == detector_panel) {
      if (b.gram) flush();
      filled = 0;
    }
  }
  if (b.gram) flush();
}

}  // namespace

template <>
void DetectorBackwardKernel<current_isa>::run(const DetectorBackwardBlock<float>& b) {
  run_block(b);
}
template <>
void DetectorBackwardKernel<current_isa>::run(const DetectorBackwardBlock<double>& b) {
  run_block(b);
}

}  // namespace mahal

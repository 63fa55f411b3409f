#include "core/gram.hpp"
#include "core/pixels.hpp"
#include "core/substitution.hpp"
#include "ops/whiten_backward_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
constexpr int L = S::lanes;
constexpr int P = substitution_width;
constexpr int panel_pixels = whiten_backward_panel;

template <class T>
void run_block(const WhitenBackwardBlock<T>& b) {
  const int n = b.grad.bands;
  const std::ptrdiff_t padded = b.grad.padded;
  double* rows = static_cast<double*>(b.scratch);
  double* whitened = rows + panel_pixels * padded;
  double* y = whitened + panel_pixels * padded;
  const double** left = reinterpret_cast<const double**>(y + P * padded);
  const double** right = left + panel_pixels;
  for (int k = 0; k < panel_pixels; ++k) {
    left[k] = rows + k * padded;
    right[k] = whitened + k * padded;
  }
  static_assert(panel_pixels % P == 0);
  for (std::int64_t start = b.begin; start < b.end; start += panel_pixels) {
    const int filled =
        b.end - start < panel_pixels ? static_cast<int>(b.end - start) : panel_pixels;
    for (int first = 0; first < filled; first += P) {
      double* panel = rows + first * padded;
      for (int l = 0; l < P; ++l) {
        double* row = panel + l * padded;
        const std::int64_t i = start + first + l;
        if (first + l < filled) {
          load_centred(b.grad, pixel_address(b.grad, i), b.zeros, row);
          if (b.gram) {
            load_centred(b.whitened, pixel_address(b.whitened, i), b.zeros,
                         whitened + (first + l) * padded);
          }
        } else {
          for (int j = 0; j < padded; ++j) row[j] = 0;
        }
      }
      rows_to_panel(panel, padded, n, y);
      substitute_backward(b.factor, b.inverse_diagonal, padded, n, y);
      panel_to_rows(y, padded, n, panel);
    }
    for (int l = 0; l < filled; ++l) {
      const double* row = rows + l * padded;
      if (b.out) {
        T* out = b.out + (start + l) * n;
        for (int j = 0; j < n; ++j) out[j] = static_cast<T>(row[j]);
      }
      if (b.sum) {
        for (int j = 0; j < padded; j += L) {
          S::store(b.sum + j, S::load(b.sum + j) - S::load(row + j));
        }
      }
    }
    if (b.gram) {
      cross_gram<S>(left, right, 0, filled, static_cast<int>(padded), b.gram, padded, true);
    }
  }
}

}  // namespace

template <>
void WhitenBackwardKernel<current_isa>::run(const WhitenBackwardBlock<float>& b) {
  run_block(b);
}
template <>
void WhitenBackwardKernel<current_isa>::run(const WhitenBackwardBlock<double>& b) {
  run_block(b);
}

}  // namespace mahal

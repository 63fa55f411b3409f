#include "core/pixels.hpp"
#include "core/substitution.hpp"
#include "ops/whiten_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;
constexpr int P = whiten_width;
constexpr int W = P / L;  // vectors per band
static_assert(P == substitution_width);

// |y|^2 of P pixels.
MAHAL_INLINE void squares(int n, const double* y, double* out) {
  V total[W];
  MAHAL_UNROLL
  for (int w = 0; w < W; ++w) total[w] = S::zero();
  for (int j = 0; j < n; ++j) {
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) {
      const V v = S::load(y + j * P + w * L);
      total[w] = S::fma(v, v, total[w]);
    }
  }
  MAHAL_UNROLL
  for (int w = 0; w < W; ++w) S::store(out + w * L, total[w]);
}

// <direction, y> of P pixels.
MAHAL_INLINE void project(const double* direction, int n, const double* y, double* out) {
  V total[W];
  MAHAL_UNROLL
  for (int w = 0; w < W; ++w) total[w] = S::zero();
  for (int j = 0; j < n; ++j) {
    const V a = S::set1(direction[j]);
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) total[w] = S::fma(a, S::load(y + j * P + w * L), total[w]);
  }
  MAHAL_UNROLL
  for (int w = 0; w < W; ++w) S::store(out + w * L, total[w]);
}

template <class In, class Out>
void whiten_block(const WhitenBlock<In, Out>& b) {
  const int n = b.pixels.bands;
  const int padded = b.pixels.padded;
  double* rows = static_cast<double*>(b.scratch);  // P spectra
  double* y = rows + static_cast<std::ptrdiff_t>(P) * padded;
  for (std::int64_t first = b.begin; first < b.end; first += P) {
    const int count = b.end - first < P ? static_cast<int>(b.end - first) : P;
    for (int l = 0; l < P; ++l) {
      double* row = rows + static_cast<std::ptrdiff_t>(l) * padded;
      if (l >= count || (b.status && b.status[first + l])) {
        for (int j = 0; j < padded; ++j) row[j] = 0;
      } else {
        load_centred(b.pixels, pixel_address(b.pixels, first + l), b.mean, row);
      }
    }
    rows_to_panel(rows, padded, n, y);
    substitute_forward(b.factor, b.inverse_diagonal, b.factor_stride, n, y);
    if (b.projections) {
      double* out = b.projections + (first - b.begin);
      for (int d = 0; d < b.direction_count; ++d, out += b.projection_stride) {
        project(b.directions + static_cast<std::ptrdiff_t>(d) * padded, n, y, out);
      }
      squares(n, y, out);
    }
    if (b.score) {
      alignas(64) double q[P];
      squares(n, y, q);
      for (int l = 0; l < count; ++l) b.score[(first + l) * b.score_stride] = static_cast<Out>(q[l]);
    }
    if (b.whitened) {
      panel_to_rows(y, padded, n, rows);
      for (int l = 0; l < count; ++l) {
        const double* row = rows + static_cast<std::ptrdiff_t>(l) * padded;
        Out* out = b.whitened + (first + l) * b.out_stride;
        for (int j = 0; j < n; ++j) out[j] = static_cast<Out>(row[j]);
        for (int j = n; j < b.out_bands; ++j) out[j] = Out(0);
      }
    }
  }
}

}  // namespace

template <>
void WhitenKernel<current_isa>::run(const WhitenBlock<float, float>& b) {
  whiten_block(b);
}
template <>
void WhitenKernel<current_isa>::run(const WhitenBlock<float, double>& b) {
  whiten_block(b);
}
template <>
void WhitenKernel<current_isa>::run(const WhitenBlock<double, double>& b) {
  whiten_block(b);
}

}  // namespace mahal

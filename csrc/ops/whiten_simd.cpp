#include "core/pixels.hpp"
#include "ops/whiten_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;
constexpr int P = whiten_width;
constexpr int W = P / L;  // vectors per band
// Rows solved together: accumulators W * R and one broadcast within the registers.
constexpr int rows_per_tile = vector_registers == 32 ? 16 / W : 8 / W;
constexpr int R0 = rows_per_tile < 1 ? 1 : rows_per_tile;

// y holds P pixels per band; rows [0, i0) are solved already.
template <int R>
MAHAL_INLINE void solve_rows(const double* factor, const double* inverse, std::ptrdiff_t n, int i0,
                             double* y) {
  V acc[R][W];
  MAHAL_UNROLL
  for (int r = 0; r < R; ++r)
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) acc[r][w] = S::load(y + (i0 + r) * P + w * L);
  const double* l = factor + i0 * n;
  for (int k = 0; k < i0; ++k) {
    V x[W];
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) x[w] = S::load(y + k * P + w * L);
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const V a = S::set1(l[r * n + k]);
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, x[w], acc[r][w]);
    }
  }
  MAHAL_UNROLL
  for (int b = 0; b < R; ++b) {
    const V d = S::set1(inverse[i0 + b]);
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) {
      acc[b][w] = acc[b][w] * d;
      S::store(y + (i0 + b) * P + w * L, acc[b][w]);
    }
    MAHAL_UNROLL
    for (int r = b + 1; r < R; ++r) {
      const V a = S::set1(l[r * n + i0 + b]);
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, acc[b][w], acc[r][w]);
    }
  }
}

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
    const double* sources[P];
    for (int l = 0; l < P; ++l) {
      double* row = rows + static_cast<std::ptrdiff_t>(l) * padded;
      sources[l] = row;
      if (l >= count || (b.status && b.status[first + l])) {
        for (int j = 0; j < padded; ++j) row[j] = 0;
      } else {
        load_centred(b.pixels, pixel_address(b.pixels, first + l), b.mean, row);
      }
    }
    for (int w = 0; w < W; ++w) interleave<S, true>(sources + w * L, n, y + w * L, P);
    int i = 0;
    for (; i + R0 <= n; i += R0) solve_rows<R0>(b.factor, b.inverse_diagonal, b.factor_stride, i, y);
    for (; i < n; ++i) solve_rows<1>(b.factor, b.inverse_diagonal, b.factor_stride, i, y);
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
      for (int l = 0; l < count; ++l) b.score[first + l] = static_cast<Out>(q[l]);
    }
    if (b.whitened) {
      int k = 0;
      for (; k < n; k += L) {  // y has padded rows; those past n are never read back
        for (int w = 0; w < W; ++w) {
          V r[L];
          MAHAL_UNROLL
          for (int a = 0; a < L; ++a) r[a] = k + a < n ? S::load(y + (k + a) * P + w * L) : V{};
          S::transpose(r);
          MAHAL_UNROLL
          for (int l = 0; l < L; ++l) {
            S::store(rows + static_cast<std::ptrdiff_t>(w * L + l) * padded + k, r[l]);
          }
        }
      }
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

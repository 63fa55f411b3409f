// Triangular solves and products for a panel of 16 vectors in float64, element k of all of them at
// y[k * 16]. Matrices are row-major. Kernel side.
#pragma once

#include <cstddef>

#include "core/simd.hpp"

namespace mahal {
namespace {

inline constexpr int substitution_width = 16;

struct PanelTiles {
  using S = Simd<double>;
  using V = S::V;
  static constexpr int P = substitution_width;
  static constexpr int L = S::lanes;
  static constexpr int W = P / L;  // vectors per element
  // Rows at once: accumulators W * R and one broadcast within the registers.
  static constexpr int fitting = (vector_registers == 32 ? 16 : 8) / W;
  static constexpr int R = fitting < 1 ? 1 : fitting;

  template <int N>
  static MAHAL_INLINE void load(V (&acc)[N][W], const double* y) {
    MAHAL_UNROLL
    for (int r = 0; r < N; ++r)
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) acc[r][w] = S::load(y + r * P + w * L);
  }

  // Row i of the lower factor: y_i = (y_i - sum over k < i of l_ik y_k) / l_ii.
  template <int N>
  static MAHAL_INLINE void forward(const double* factor, const double* inverse, std::ptrdiff_t ld,
                                   int i0, double* y) {
    V acc[N][W];
    load(acc, y + i0 * P);
    const double* l = factor + i0 * ld;
    for (int k = 0; k < i0; ++k) {
      V x[W];
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) x[w] = S::load(y + k * P + w * L);
      MAHAL_UNROLL
      for (int r = 0; r < N; ++r) {
        const V a = S::set1(l[r * ld + k]);
        MAHAL_UNROLL
        for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, x[w], acc[r][w]);
      }
    }
    MAHAL_UNROLL
    for (int b = 0; b < N; ++b) {
      const V d = S::set1(inverse[i0 + b]);
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) {
        acc[b][w] = acc[b][w] * d;
        S::store(y + (i0 + b) * P + w * L, acc[b][w]);
      }
      MAHAL_UNROLL
      for (int r = b + 1; r < N; ++r) {
        const V a = S::set1(l[r * ld + i0 + b]);
        MAHAL_UNROLL
        for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, acc[b][w], acc[r][w]);
      }
    }
  }

  // Column i of it: y_i = (y_i - sum over k > i of l_ki y_k) / l_ii.
  template <int N>
  static MAHAL_INLINE void backward(const double* factor, const double* inverse, std::ptrdiff_t ld,
                                    int n, int i0, double* y) {
    V acc[N][W];
    load(acc, y + i0 * P);
    for (int k = i0 + N; k < n; ++k) {
      V x[W];
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) x[w] = S::load(y + k * P + w * L);
      const double* l = factor + k * ld + i0;
      MAHAL_UNROLL
      for (int r = 0; r < N; ++r) {
        const V a = S::set1(l[r]);
        MAHAL_UNROLL
        for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, x[w], acc[r][w]);
      }
    }
    MAHAL_UNROLL
    for (int b = N - 1; b >= 0; --b) {
      const V d = S::set1(inverse[i0 + b]);
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) {
        acc[b][w] = acc[b][w] * d;
        S::store(y + (i0 + b) * P + w * L, acc[b][w]);
      }
      const double* l = factor + (i0 + b) * ld + i0;
      MAHAL_UNROLL
      for (int r = 0; r < b; ++r) {
        const V a = S::set1(l[r]);
        MAHAL_UNROLL
        for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, acc[b][w], acc[r][w]);
      }
    }
  }

  // out_i = offset_i + sum over k of m_ik y_k.
  template <int N>
  static MAHAL_INLINE void product(const double* matrix, const double* offset, std::ptrdiff_t ld,
                                   int n, int i0, const double* y, double* out) {
    V acc[N][W];
    MAHAL_UNROLL
    for (int r = 0; r < N; ++r)
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) acc[r][w] = S::set1(offset[i0 + r]);
    const double* m = matrix + i0 * ld;
    for (int k = 0; k < n; ++k) {
      V x[W];
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) x[w] = S::load(y + k * P + w * L);
      MAHAL_UNROLL
      for (int r = 0; r < N; ++r) {
        const V a = S::set1(m[r * ld + k]);
        MAHAL_UNROLL
        for (int w = 0; w < W; ++w) acc[r][w] = S::fma(a, x[w], acc[r][w]);
      }
    }
    MAHAL_UNROLL
    for (int r = 0; r < N; ++r)
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) S::store(out + (i0 + r) * P + w * L, acc[r][w]);
  }
};

// L^-1 of every vector, in place.
MAHAL_INLINE void substitute_forward(const double* factor, const double* inverse_diagonal,
                                     std::ptrdiff_t ld, int n, double* y) {
  constexpr int R = PanelTiles::R;
  int i = 0;
  for (; i + R <= n; i += R) PanelTiles::forward<R>(factor, inverse_diagonal, ld, i, y);
  for (; i < n; ++i) PanelTiles::forward<1>(factor, inverse_diagonal, ld, i, y);
}

// L^-T of every vector, in place.
MAHAL_INLINE void substitute_backward(const double* factor, const double* inverse_diagonal,
                                      std::ptrdiff_t ld, int n, double* y) {
  constexpr int R = PanelTiles::R;
  int i = n;
  for (; i >= R; i -= R) PanelTiles::backward<R>(factor, inverse_diagonal, ld, n, i - R, y);
  for (; i > 0; --i) PanelTiles::backward<1>(factor, inverse_diagonal, ld, n, i - 1, y);
}

// offset + M y of every vector y.
MAHAL_INLINE void multiply_panel(const double* matrix, const double* offset, std::ptrdiff_t ld,
                                 int n, const double* y, double* out) {
  constexpr int R = PanelTiles::R;
  int i = 0;
  for (; i + R <= n; i += R) PanelTiles::product<R>(matrix, offset, ld, n, i, y, out);
  for (; i < n; ++i) PanelTiles::product<1>(matrix, offset, ld, n, i, y, out);
}

// 16 rows of `padded` elements, a multiple of 16, to the panel and back. Elements from n on are
// neither read from the panel nor written to it.
MAHAL_INLINE void rows_to_panel(const double* rows, std::ptrdiff_t padded, int n, double* y) {
  using S = Simd<double>;
  constexpr int L = S::lanes;
  const double* sources[substitution_width];
  for (int l = 0; l < substitution_width; ++l) sources[l] = rows + l * padded;
  for (int w = 0; w < PanelTiles::W; ++w) {
    interleave<S, true>(sources + w * L, n, y + w * L, substitution_width);
  }
}

MAHAL_INLINE void panel_to_rows(const double* y, std::ptrdiff_t padded, int n, double* rows) {
  using S = Simd<double>;
  constexpr int L = S::lanes;
  for (int k = 0; k < padded; k += L) {
    for (int w = 0; w < PanelTiles::W; ++w) {
      S::V r[L];
      MAHAL_UNROLL
      for (int a = 0; a < L; ++a) {
        r[a] = k + a < n ? S::load(y + (k + a) * substitution_width + w * L) : S::V{};
      }
      S::transpose(r);
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) S::store(rows + (w * L + l) * padded + k, r[l]);
    }
  }
}

}  // namespace
}  // namespace mahal

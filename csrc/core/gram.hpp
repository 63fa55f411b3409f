// Signed Gram matrices of lists of spectra: sum over the first `plus` of x x^T minus the rest.
// Serves covariances, starts and steps of sliding windows alike.
#pragma once

#include "core/simd.hpp"

namespace mahal {
namespace {

template <class S, int R, int W>
MAHAL_INLINE void gram_tile(const typename S::value_type* const* left,
                            const typename S::value_type* const* right, int plus, int minus, int i0,
                            int j0, typename S::value_type* out, std::ptrdiff_t ld,
                            bool accumulate) {
  using V = typename S::V;
  constexpr int L = S::lanes;
  V acc[R][W];
  MAHAL_UNROLL
  for (int r = 0; r < R; ++r)
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w)
      acc[r][w] = accumulate ? S::load(out + (i0 + r) * ld + j0 + w * L) : S::zero();
  for (int k = 0; k < plus; ++k) {
    const auto* p = right[k];
    const auto* q = left[k];
    V b[W];
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) b[w] = S::load(p + j0 + w * L);
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const V a = S::set1(q[i0 + r]);
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) acc[r][w] = S::fma(a, b[w], acc[r][w]);
    }
  }
  for (int k = plus; k < plus + minus; ++k) {
    const auto* p = right[k];
    const auto* q = left[k];
    V b[W];
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) b[w] = S::load(p + j0 + w * L);
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const V a = S::set1(q[i0 + r]);
      MAHAL_UNROLL
      for (int w = 0; w < W; ++w) acc[r][w] = S::fnma(a, b[w], acc[r][w]);
    }
  }
  MAHAL_UNROLL
  for (int r = 0; r < R; ++r)
    MAHAL_UNROLL
    for (int w = 0; w < W; ++w) S::store(out + (i0 + r) * ld + j0 + w * L, acc[r][w]);
}

// Sum over the first `plus` of left right^T minus the rest: out[i * ld + j] for j <= i < padded;
// spectra and rows of `out` are aligned and hold `padded` (a multiple of 16) elements, of which
// those past the bands are zero. Entries right of the diagonal are written only where they share a
// vector with it.
template <class S>
MAHAL_INLINE void cross_gram(const typename S::value_type* const* left,
                             const typename S::value_type* const* right, int plus, int minus,
                             int padded, typename S::value_type* out, std::ptrdiff_t ld,
                             bool accumulate) {
  constexpr int L = S::lanes;
  constexpr int R = vector_registers == 32 ? 8 : 4;
  for (int i0 = 0; i0 < padded; i0 += R) {
    int j0 = 0;
    const int end = i0 + R;  // first column not needed
    for (; j0 + L < end; j0 += 2 * L)
      gram_tile<S, R, 2>(left, right, plus, minus, i0, j0, out, ld, accumulate);
    if (j0 < end) gram_tile<S, R, 1>(left, right, plus, minus, i0, j0, out, ld, accumulate);
  }
}

// The same of a list with itself.
template <class S>
MAHAL_INLINE void signed_gram(const typename S::value_type* const* x, int plus, int minus,
                              int padded, typename S::value_type* out, std::ptrdiff_t ld,
                              bool accumulate) {
  cross_gram<S>(x, x, plus, minus, padded, out, ld, accumulate);
}

}  // namespace
}  // namespace mahal

// The complex twin of interleaved_cholesky.hpp: Hermitian matrices, one per SIMD lane. The real
// part of element (i, j) of every matrix lies at a[(i * ld + j) * 2 * lanes], the imaginary part
// `lanes` elements further; the lower triangle is replaced, and its diagonal becomes real.
#pragma once

#include "core/simd.hpp"

namespace mahal {
namespace {

template <class S>
struct InterleavedHermitian {
  using T = typename S::value_type;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  // Square register tile of complex accumulators.
  static constexpr int B = vector_registers == 32 ? 3 : 2;

  T* a;
  std::ptrdiff_t ld;
  T* inverse_pivots;  // n * lanes
  T tolerance;        // a pivot must exceed tolerance times its diagonal entry
  V margin;           // per lane: positive when every pivot did

  struct Complex {
    V re, im;
  };
  MAHAL_INLINE T* at(std::ptrdiff_t i, std::ptrdiff_t j) const { return a + (i * ld + j) * 2 * L; }
  static MAHAL_INLINE Complex load(const T* p) { return {S::load(p), S::load(p + L)}; }
  static MAHAL_INLINE void store(T* p, Complex z) {
    S::store(p, z.re);
    S::store(p + L, z.im);
  }
  // sum - x conj(y)
  static MAHAL_INLINE Complex subtract(Complex x, Complex y, Complex sum) {
    sum.re = S::fnma(x.im, y.im, S::fnma(x.re, y.re, sum.re));
    sum.im = S::fma(x.re, y.im, S::fnma(x.im, y.re, sum.im));
    return sum;
  }

  // Rows i0 and columns j0 onwards, without those of the columns before: divided by the diagonal
  // block, which is finished.
  template <int R, int C>
  MAHAL_INLINE void tile(int i0, int j0) const {
    Complex acc[R][C];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c) acc[r][c] = load(at(i0 + r, j0 + c));
    for (int k = 0; k < j0; ++k) {
      Complex y[C];
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c) y[c] = load(at(j0 + c, k));
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        const Complex x = load(at(i0 + r, k));
        MAHAL_UNROLL
        for (int c = 0; c < C; ++c) acc[r][c] = subtract(x, y[c], acc[r][c]);
      }
    }
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) {
      MAHAL_UNROLL
      for (int p = 0; p < c; ++p) {
        const Complex y = load(at(j0 + c, j0 + p));
        MAHAL_UNROLL
        for (int r = 0; r < R; ++r) acc[r][c] = subtract(acc[r][p], y, acc[r][c]);
      }
      const V inverse = S::load(inverse_pivots + (j0 + c) * L);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        acc[r][c] = {acc[r][c].re * inverse, acc[r][c].im * inverse};
        store(at(i0 + r, j0 + c), acc[r][c]);
      }
    }
  }

  template <int R>
  MAHAL_INLINE void diagonal(int i0) {
    Complex acc[R][R];
    V original[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      MAHAL_UNROLL
      for (int c = 0; c < r; ++c) acc[r][c] = load(at(i0 + r, i0 + c));
      original[r] = S::load(at(i0 + r, i0 + r));
      acc[r][r] = {original[r], S::zero()};
    }
    for (int k = 0; k < i0; ++k) {
      Complex x[R];
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) x[r] = load(at(i0 + r, k));
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r)
        MAHAL_UNROLL
        for (int c = 0; c <= r; ++c) acc[r][c] = subtract(x[r], x[c], acc[r][c]);
    }
    MAHAL_UNROLL
    for (int c = 0; c < R; ++c) {
      const V pivot = acc[c][c].re;
      const V excess = S::fnma(S::set1(tolerance), original[c], pivot);
      // A comparison with NaN is false, so a broken lane turns negative and stays so.
      margin = S::min(excess > S::zero() ? excess : S::set1(T(-1)), margin);
      const V inverse = S::rsqrt(pivot);
      S::store(inverse_pivots + (i0 + c) * L, inverse);
      acc[c][c] = {pivot * inverse, S::zero()};
      MAHAL_UNROLL
      for (int r = c + 1; r < R; ++r) {
        acc[r][c] = {acc[r][c].re * inverse, acc[r][c].im * inverse};
      }
      MAHAL_UNROLL
      for (int r = c + 1; r < R; ++r)
        MAHAL_UNROLL
        for (int q = c + 1; q <= r; ++q) acc[r][q] = subtract(acc[r][c], acc[q][c], acc[r][q]);
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int c = 0; c <= r; ++c) store(at(i0 + r, i0 + c), acc[r][c]);
  }

  template <int R>
  MAHAL_INLINE void row_block(int i0, int rows_left) {
    if (rows_left >= R) {
      for (int j0 = 0; j0 < i0; j0 += B) tile<R, B>(i0, j0);
      diagonal<R>(i0);
    } else if constexpr (R > 1) {
      row_block<R - 1>(i0, rows_left);
    }
  }

  MAHAL_INLINE void factor(int n) {
    margin = S::set1(T(1));
    for (int i0 = 0; i0 < n; i0 += B) row_block<B>(i0, n - i0);
  }
};

}  // namespace
}  // namespace mahal

// Cholesky factorisation of `lanes` matrices at once, one matrix per SIMD lane: the pivots of all
// lanes run in one vector, nothing is padded and no horizontal operation is needed.
// Element (i, j) of every matrix lies at a[(i * ld + j) * lanes]; the lower triangle is replaced.
#pragma once

#include "core/simd.hpp"

namespace mahal {
namespace {

// Square register tile: 25 accumulators of 32 registers, or 9 of 16.
inline constexpr int cholesky_tile = vector_registers == 32 ? 5 : 3;
// Columns per pass, so that the rows of a tile stay in the first-level cache.
inline constexpr int cholesky_columns = 8 * cholesky_tile;

template <class S>
struct Interleaved {
  using T = typename S::value_type;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  static constexpr int B = cholesky_tile;

  T* a;
  std::ptrdiff_t ld;
  T* inverse_pivots;  // n * lanes
  T tolerance;        // a pivot must exceed tolerance times its scale
  const T* scale;     // n * lanes, or nullptr: the diagonal entry itself
  V margin;           // per lane: positive when every pivot did

  MAHAL_INLINE T* at(std::ptrdiff_t i, std::ptrdiff_t j) const { return a + (i * ld + j) * L; }

  // Tile (i0, j0): subtract columns [ka, kb); divide by the diagonal block when Solve.
  template <int R, bool Solve>
  MAHAL_INLINE void tile(int i0, int j0, int ka, int kb) const {
    V acc[R][B];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int b = 0; b < B; ++b) acc[r][b] = S::load(at(i0 + r, j0 + b));
    const T* pi = at(i0, 0);
    const T* pj = at(j0, 0);
    for (int k = ka; k < kb; ++k) {
      V bv[B];
      MAHAL_UNROLL
      for (int b = 0; b < B; ++b) bv[b] = S::load(pj + (b * ld + k) * L);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        const V av = S::load(pi + (r * ld + k) * L);
        MAHAL_UNROLL
        for (int b = 0; b < B; ++b) acc[r][b] = S::fnma(av, bv[b], acc[r][b]);
      }
    }
    if constexpr (Solve) {
      MAHAL_UNROLL
      for (int b = 0; b < B; ++b) {
        MAHAL_UNROLL
        for (int p = 0; p < b; ++p) {
          const V l = S::load(at(j0 + b, j0 + p));
          MAHAL_UNROLL
          for (int r = 0; r < R; ++r) acc[r][b] = S::fnma(acc[r][p], l, acc[r][b]);
        }
        const V inverse = S::load(inverse_pivots + (j0 + b) * L);
        MAHAL_UNROLL
        for (int r = 0; r < R; ++r) acc[r][b] = acc[r][b] * inverse;
      }
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int b = 0; b < B; ++b) S::store(at(i0 + r, j0 + b), acc[r][b]);
  }

  // Diagonal block. With Border its last row is a right-hand side d and not a matrix row: it
  // becomes y = L^-1 d, and its corner entry, zero before, becomes -|y|^2.
  template <int R, bool Border>
  MAHAL_INLINE void diagonal(int i0) {
    V acc[R][R];
    V original[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      MAHAL_UNROLL
      for (int b = 0; b <= r; ++b) acc[r][b] = S::load(at(i0 + r, i0 + b));
      if (!Border || r + 1 < R) original[r] = scale ? S::load(scale + (i0 + r) * L) : acc[r][r];
    }
    const T* pi = at(i0, 0);
    for (int k = 0; k < i0; ++k) {
      V bv[R];
      MAHAL_UNROLL
      for (int b = 0; b < R; ++b) bv[b] = S::load(pi + (b * ld + k) * L);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r)
        MAHAL_UNROLL
        for (int b = 0; b <= r; ++b) acc[r][b] = S::fnma(bv[r], bv[b], acc[r][b]);
    }
    constexpr int pivots = Border ? R - 1 : R;
    MAHAL_UNROLL
    for (int b = 0; b < pivots; ++b) {
      const V pivot = acc[b][b];
      const V excess = S::fnma(S::set1(tolerance), original[b], pivot);
      // A comparison with NaN is false, so a broken lane turns negative and stays so.
      margin = S::min(excess > S::zero() ? excess : S::set1(T(-1)), margin);
      const V inverse = S::rsqrt(pivot);
      S::store(inverse_pivots + (i0 + b) * L, inverse);
      acc[b][b] = pivot * inverse;
      MAHAL_UNROLL
      for (int r = b + 1; r < R; ++r) acc[r][b] = acc[r][b] * inverse;
      MAHAL_UNROLL
      for (int r = b + 1; r < R; ++r)
        MAHAL_UNROLL
        for (int c = b + 1; c <= r; ++c) acc[r][c] = S::fnma(acc[r][b], acc[c][b], acc[r][c]);
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int b = 0; b <= r; ++b) S::store(at(i0 + r, i0 + b), acc[r][b]);
  }

  template <int R, bool Border>
  MAHAL_INLINE void row_block(int i0) {
    for (int ka = 0; ka < i0; ka += cholesky_columns) {
      const int kb = ka + cholesky_columns;
      int j0 = ka;
      for (; j0 < i0 && j0 < kb; j0 += B) tile<R, true>(i0, j0, ka, j0);
      for (; j0 < i0; j0 += B) tile<R, false>(i0, j0, ka, kb);
    }
    diagonal<R, Border>(i0);
  }

  template <int R, bool Border>
  MAHAL_INLINE void last_block(int i0, int rows_left) {
    if (rows_left == R) {
      row_block<R, Border>(i0);
    } else if constexpr (R > 1) {
      last_block<R - 1, Border>(i0, rows_left);
    }
  }

  // n matrix rows, then one right-hand side row when Border.
  template <bool Border>
  MAHAL_INLINE void factor(int n) {
    margin = S::set1(T(1));
    const int rows = Border ? n + 1 : n;
    int i0 = 0;
    for (; i0 + B < rows; i0 += B) row_block<B, false>(i0);
    last_block<B, Border>(i0, rows - i0);
  }
};

}  // namespace
}  // namespace mahal

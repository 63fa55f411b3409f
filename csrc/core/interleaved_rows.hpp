// Right-hand sides of interleaved Cholesky factors: rows of `n` lane vectors, kept below the factor
// with its leading dimension.
#pragma once

#include "core/simd.hpp"

namespace mahal {
namespace {

template <class S>
struct InterleavedRows {
  using T = typename S::value_type;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  static constexpr int rows_at_once = 4;
  static constexpr int columns_at_once = vector_registers == 32 ? 5 : 2;

  const T* factor;  // element (i, j) at factor[(i * ld + j) * lanes]
  std::ptrdiff_t ld;
  const T* inverse_pivots;
  int n;

  MAHAL_INLINE const T* at(std::ptrdiff_t i, std::ptrdiff_t j) const {
    return factor + (i * ld + j) * L;
  }

  // Columns [j, j + C) of R rows, whose columns before j are solved.
  template <int R, int C>
  MAHAL_INLINE void columns(T* rows, int j) const {
    V acc[R][C];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c) acc[r][c] = S::load(rows + (r * ld + j + c) * L);
    for (int k = 0; k < j; ++k) {
      V l[C];
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c) l[c] = S::load(at(j + c, k));
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        const V x = S::load(rows + (r * ld + k) * L);
        MAHAL_UNROLL
        for (int c = 0; c < C; ++c) acc[r][c] = S::fnma(x, l[c], acc[r][c]);
      }
    }
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) {
      const V inverse = S::load(inverse_pivots + (j + c) * L);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        MAHAL_UNROLL
        for (int p = 0; p < c; ++p) {
          acc[r][c] = S::fnma(acc[r][p], S::load(at(j + c, j + p)), acc[r][c]);
        }
        acc[r][c] = acc[r][c] * inverse;
        S::store(rows + (r * ld + j + c) * L, acc[r][c]);
      }
    }
  }

  template <int R>
  MAHAL_INLINE void solve(T* rows) const {
    int j = 0;
    for (; j + columns_at_once <= n; j += columns_at_once) columns<R, columns_at_once>(rows, j);
    for (; j < n; ++j) columns<R, 1>(rows, j);
  }

  // L^-1 s of every row s in place.
  __attribute__((noinline)) void forward(T* rows, int count) const {
    int r = 0;
    for (; r + rows_at_once <= count; r += rows_at_once) solve<rows_at_once>(rows + r * ld * L);
    for (; r < count; ++r) solve<1>(rows + r * ld * L);
  }

  MAHAL_INLINE V dot(const T* a, const T* b) const {
    V even = S::zero();
    V odd = S::zero();
    int j = 0;
    for (; j + 2 <= n; j += 2) {
      even = S::fma(S::load(a + j * L), S::load(b + j * L), even);
      odd = S::fma(S::load(a + (j + 1) * L), S::load(b + (j + 1) * L), odd);
    }
    if (j < n) even = S::fma(S::load(a + j * L), S::load(b + j * L), even);
    return even + odd;
  }

  // a -= share * b
  MAHAL_INLINE void subtract(T* a, V share, const T* b) const {
    for (int j = 0; j < n; ++j) {
      S::store(a + j * L, S::fnma(share, S::load(b + j * L), S::load(a + j * L)));
    }
  }

  MAHAL_INLINE void scale(T* a, V factor_of_it) const {
    for (int j = 0; j < n; ++j) S::store(a + j * L, S::load(a + j * L) * factor_of_it);
  }
};

}  // namespace
}  // namespace mahal

// Numbers, reductions and small triangular systems for kernels: what a block or a warp does with
// one real symmetric or complex Hermitian matrix in shared memory. All sums have a fixed order, so
// results do not depend on timing. Blocks are one-dimensional, of whole warps.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/simt.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

inline constexpr unsigned whole_warp = 0xFFFFFFFFu;
inline constexpr int warp_lanes = 32;

// A pair of T in memory, as in the arrays of every library.
template <class T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

template <class N>
struct NumberTraits {
  using Real = N;
  static constexpr bool complex = false;
};
template <class T>
struct NumberTraits<Complex<T>> {
  using Real = T;
  static constexpr bool complex = true;
};

// N stands for float, double, Complex<float> or Complex<double>.
template <class N>
using Real = typename NumberTraits<N>::Real;
template <class N>
inline constexpr bool is_complex_number = NumberTraits<N>::complex;

template <class T>
__device__ __forceinline__ Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class T>
__device__ __forceinline__ Complex<T> operator*(Complex<T> a, Complex<T> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class T>
__device__ __forceinline__ Complex<T> operator*(Complex<T> a, T b) {
  return {a.re * b, a.im * b};
}

template <class T>
__device__ __forceinline__ T real_part(T a) {
  return a;
}
template <class T>
__device__ __forceinline__ T real_part(Complex<T> a) {
  return a.re;
}
template <class T>
__device__ __forceinline__ T conjugate(T a) {
  return a;
}
template <class T>
__device__ __forceinline__ Complex<T> conjugate(Complex<T> a) {
  return {a.re, -a.im};
}
// |a|^2
template <class T>
__device__ __forceinline__ T squared(T a) {
  return a * a;
}
template <class T>
__device__ __forceinline__ T squared(Complex<T> a) {
  return a.re * a.re + a.im * a.im;
}
template <class T>
__device__ __forceinline__ bool is_finite(T a) {
  return a - a == T(0);
}
template <class T>
__device__ __forceinline__ bool is_finite(Complex<T> a) {
  return is_finite(a.re) && is_finite(a.im);
}

// To another kind of number: a real one has no imaginary part, and precision may change.
template <class N, class T>
__device__ __forceinline__ N to_number(T a) {
  if constexpr (is_complex_number<N>) {
    return {static_cast<Real<N>>(a), Real<N>(0)};
  } else {
    return static_cast<N>(a);
  }
}
template <class N, class T>
__device__ __forceinline__ N to_number(Complex<T> a) {
  return {static_cast<Real<N>>(a.re), static_cast<Real<N>>(a.im)};
}

// The value of another lane of the warp; every lane takes part.
template <class T>
__device__ __forceinline__ T from_lane(T a, int lane) {
  return __shfl_sync(whole_warp, a, lane);
}
template <class T>
__device__ __forceinline__ Complex<T> from_lane(Complex<T> a, int lane) {
  return {from_lane(a.re, lane), from_lane(a.im, lane)};
}
template <class T>
__device__ __forceinline__ T from_partner(T a, int bits) {
  return __shfl_xor_sync(whole_warp, a, bits);
}
template <class T>
__device__ __forceinline__ Complex<T> from_partner(Complex<T> a, int bits) {
  return {from_partner(a.re, bits), from_partner(a.im, bits)};
}

struct Sum {
  template <class N>
  __device__ __forceinline__ N operator()(N a, N b) const {
    return a + b;
  }
};
struct Least {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Greatest {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

// A commutative operation over the groups of `Lanes` neighbouring lanes; each lane gets the result
// of its group.
template <int Lanes = warp_lanes, class N, class Operation = Sum>
__device__ __forceinline__ N warp_reduce(N value, Operation operation = {}) {
  MAHAL_UNROLL
  for (int bits = Lanes / 2; bits > 0; bits /= 2) {
    value = operation(value, from_partner(value, bits));
  }
  return value;
}

// The same over the block, for every thread. `room` is shared memory for one N per warp, free for
// other use when the function returns.
template <class N, class Operation = Sum>
__device__ __forceinline__ N block_reduce(N value, N* room, Operation operation = {}) {
  const int thread = static_cast<int>(threadIdx.x);
  const int warps = static_cast<int>(blockDim.x) / warp_lanes;
  value = warp_reduce(value, operation);
  if (thread % warp_lanes == 0) room[thread / warp_lanes] = value;
  __syncthreads();
  value = room[0];
  for (int warp = 1; warp < warps; ++warp) value = operation(value, room[warp]);
  __syncthreads();
  return value;
}

// The rule of every factorisation here. `least` is the tolerance times what the pivot is compared
// with, as a rule the diagonal entry: rounding leaves about n eps of it in a pivot that should be
// zero.
template <class T>
__device__ __forceinline__ bool is_pivot(T pivot, T least) {
  return pivot > least && pivot > T(0) && pivot <= simt::largest<T>;
}

// Where entry (row, column), column <= row, of a lower matrix lies.
struct PitchedRows {
  int pitch;  // an odd one keeps a column of 4-byte entries off one memory bank
  __device__ __forceinline__ int operator()(int row, int column) const {
    return row * pitch + column;
  }
};
// The triangle of n rows without gaps; more rows, of n entries each, follow it.
struct PackedRows {
  int n;
  __device__ __forceinline__ int operator()(int row, int column) const {
    return row < n ? row * (row + 1) / 2 + column : n * (n + 1) / 2 + (row - n) * n + column;
  }
};

// Columns that are factored between two updates of the rest.
template <class N>
inline constexpr int cholesky_panel = sizeof(N) > 8 ? 8 : 16;

// The hook by which tests/cpp/test_simt.cpp proves that its comparisons notice a lost barrier.
__device__ __forceinline__ void block_panel_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

// Factors A = L L^H in place, by the whole block. a: entries of the lower triangle of n rows, then
// `rows` - n right-hand sides b, as rows of conj(b): they become conj(L^-1 b). pivots: n reals, on
// entry what each pivot is compared with (see is_pivot), on exit the reciprocals of the diagonal of
// L. flag: one int. All of it in shared memory (or in global memory that is this block's own).
// Returns, for every thread, whether each pivot was one; where not, the numbers are of no use. The
// memory may be filled just before the call, and read just after it.
template <class N, class Layout>
__device__ __forceinline__ bool block_cholesky(N* a, Layout at, int n, int rows, Real<N> tolerance, Real<N>* pivots,
                               int* flag) {
  using R = Real<N>;
  constexpr int width = cholesky_panel<N>;
  // A thread updates a square of so many rows and columns, a warp 4 x 8 of these.
  constexpr int tile = is_complex_number<N> ? 2 : 4;
  constexpr int tile_rows = 4 * tile;
  constexpr int tile_cols = 8 * tile;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int lane = thread % warp_lanes;
  if (thread == 0) *flag = 1;
  for (int first = 0; first < n; first += width) {
    const int columns = n - first < width ? n - first : width;
    block_panel_barrier();
    if (thread < warp_lanes) {
      // The square on the diagonal, and the rows below it that are left of the lanes.
      const int r = first + lane;
      N row[width] = {};
      R inverse = R(1);
      bool positive = true;
      if (r < rows) {
        MAHAL_UNROLL
        for (int c = 0; c < width; ++c) {
          if (c < columns && c <= lane) row[c] = a[at(r, first + c)];
        }
      }
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) {
        if (c >= columns) break;
        R pivot = from_lane(real_part(row[c]), c);
        if (!is_pivot(pivot, tolerance * pivots[first + c])) {
          positive = false;
          pivot = R(1);
        }
        const R root = std::sqrt(pivot);
        const R reciprocal = R(1) / root;
        if (lane == c) inverse = reciprocal;
        row[c] = lane == c ? to_number<N>(root) : row[c] * reciprocal;
        MAHAL_UNROLL
        for (int d = c + 1; d < width; ++d) {
          if (d >= columns) break;
          row[d] = row[d] - row[c] * conjugate(from_lane(row[c], d));
        }
      }
      __syncwarp();
      if (lane < columns) pivots[first + lane] = inverse;
      if (r < rows) {
        MAHAL_UNROLL
        for (int c = 0; c < width; ++c) {
          if (c < columns && c <= lane) a[at(r, first + c)] = row[c];
        }
      }
      if (!positive && lane == 0) *flag = 0;
    }
    __syncthreads();
    for (int r = first + warp_lanes + thread; r < rows; r += threads) {
      N row[width];
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) {
        if (c >= columns) break;
        row[c] = a[at(r, first + c)];
        MAHAL_UNROLL
        for (int k = 0; k < c; ++k) row[c] = row[c] - row[k] * conjugate(a[at(first + c, first + k)]);
        row[c] = row[c] * pivots[first + c];
        a[at(r, first + c)] = row[c];
      }
    }
    block_panel_barrier();
    const int base = first + columns;
    int next = thread / warp_lanes;
    for (int r0 = base; r0 < rows; r0 += tile_rows) {
      const int end = r0 + tile_rows < n ? r0 + tile_rows : n;
      for (int c0 = base; c0 < end; c0 += tile_cols) {
        if (next-- != 0) continue;
        next = threads / warp_lanes - 1;
        const int r1 = r0 + lane / 8 * tile;
        const int c1 = c0 + lane % 8 * tile;
        N sum[tile][tile] = {};
        for (int k = first; k < base; ++k) {
          N left[tile], right[tile];
          MAHAL_UNROLL
          for (int s = 0; s < tile; ++s) {
            left[s] = a[at(r1 + s < rows ? r1 + s : rows - 1, k)];
            right[s] = conjugate(a[at(c1 + s < n ? c1 + s : n - 1, k)]);
          }
          MAHAL_UNROLL
          for (int s = 0; s < tile; ++s) {
            MAHAL_UNROLL
            for (int t = 0; t < tile; ++t) sum[s][t] = sum[s][t] + left[s] * right[t];
          }
        }
        MAHAL_UNROLL
        for (int s = 0; s < tile; ++s) {
          MAHAL_UNROLL
          for (int t = 0; t < tile; ++t) {
            const int r = r1 + s, c = c1 + t;
            if (r < rows && c < n && c <= r) a[at(r, c)] = a[at(r, c)] - sum[s][t];
          }
        }
      }
    }
  }
  __syncthreads();
  return *flag != 0;
}

// x := conj(L^-1 conj(x)) for one row x of n entries, as block_cholesky does it to rows below the
// triangle: by one warp, column by column. x is the warp's own and may be read right after.
template <class N, class Layout>
__device__ void warp_forward(const N* l, Layout at, const Real<N>* inverse_pivots, int n, N* x) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  __syncwarp();
  for (int k = 0; k < n; ++k) {
    const N solved = x[k] * inverse_pivots[k];
    for (int j = k + 1 + lane; j < n; j += warp_lanes) {
      x[j] = x[j] - solved * conjugate(l[at(j, k)]);
    }
    __syncwarp();
    if (lane == 0) x[k] = solved;
  }
  __syncwarp();
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

// Factors and singular values of small symmetric and Hermitian matrices, in kernels: by a thread, a
// warp or a block for each matrix.
#pragma once

#include "core/device_matrix.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

// The hook by which tests prove that their comparisons notice a lost barrier.
__device__ __forceinline__ void team_warp_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncwarp();
#endif
}

// The threads that share a matrix: 1, the lanes of a warp, or a block of so many.
template <int Size>
struct Team {
  static_assert(Size == 1 || Size % warp_lanes == 0);
  // Entries of a matrix are shared out in rows of at most a warp.
  static constexpr int col_step = Size < warp_lanes ? Size : warp_lanes;
  static constexpr int row_step = Size / col_step;

  double* room;  // of a block: shared memory for one number per warp

  __device__ __forceinline__ int rank() const {
    return Size == 1 ? 0 : static_cast<int>(threadIdx.x) % Size;
  }
  __device__ __forceinline__ int row() const { return rank() / col_step; }
  __device__ __forceinline__ int col() const { return rank() % col_step; }
  __device__ __forceinline__ void sync() const {
    if constexpr (Size == warp_lanes) team_warp_barrier();
    if constexpr (Size > warp_lanes) __syncthreads();
  }
  template <class Operation = Sum>
  __device__ __forceinline__ double reduce(double value, Operation operation = {}) const {
    if constexpr (Size == warp_lanes) return warp_reduce(value, operation);
    if constexpr (Size > warp_lanes) return block_reduce(value, room, operation);
    return value;
  }
};

__device__ MAHAL_DEVICE_CALL inline double logarithm(double x) { return std::log(x); }

// Entry (i, j) of a square matrix; matrices of the threads of a block lie interleaved.
template <class N>
struct Entries {
  N* data;
  int ld, stride;
  __device__ __forceinline__ N& operator()(int i, int j) const {
    return data[(i * ld + j) * stride];
  }
};
struct Reals {
  double* data;
  int stride;
  __device__ __forceinline__ double& operator[](int i) const { return data[i * stride]; }
};

// N: double or Complex<double>. Every function is called by the whole team, finds its arguments
// complete after a sync() of the caller, and leaves what it wrote complete.
template <int Size, class N>
struct HermitianTeam {
  Team<Size> team;
  int n;

  // body(i, j) for the entries of the lower triangle from (first, first) on.
  template <class Body>
  __device__ __forceinline__ void each_lower(int first, Body body) const {
    for (int i = first + team.row(); i < n; i += Team<Size>::row_step) {
      for (int j = first + team.col(); j <= i; j += Team<Size>::col_step) body(i, j);
    }
  }
  template <class Body>
  __device__ __forceinline__ void each_entry(Body body) const {
    for (int i = team.row(); i < n; i += Team<Size>::row_step) {
      for (int j = team.col(); j < n; j += Team<Size>::col_step) body(i, j);
    }
  }
  template <class Body>
  __device__ __forceinline__ void each_column(Body body) const {
    for (int j = team.rank(); j < n; j += Size) body(j);
  }

  // A = L L^H in the lower triangle. pivots: what they are compared with before, the reciprocals of
  // the diagonal after. Whether every pivot exceeds `tolerance` times that.
  __device__ MAHAL_DEVICE_CALL bool factor(Entries<N> a, Reals pivots, double tolerance) const {
    bool positive = true;
    for (int j = 0; j < n; ++j) {
      double pivot = real_part(a(j, j));
      if (!is_pivot(pivot, tolerance * pivots[j])) {
        positive = false;
        pivot = 1;
      }
      const double root = std::sqrt(pivot);
      const double reciprocal = 1 / root;
      team.sync();
      for (int i = j + 1 + team.rank(); i < n; i += Size) a(i, j) = a(i, j) * reciprocal;
      if (team.rank() == 0) {
        a(j, j) = to_number<N>(root);
        pivots[j] = reciprocal;
      }
      team.sync();
      each_lower(j + 1, [&](int i, int k) { a(i, k) = a(i, k) - a(i, j) * conjugate(a(k, j)); });
      team.sync();
    }
    return positive;
  }

  __device__ MAHAL_DEVICE_CALL void clear_upper(Entries<N> a) const {
    each_entry([&](int i, int j) {
      if (j > i) a(i, j) = N{};
    });
    team.sync();
  }

  // X := L^-1 X for lower triangular L and X, the entries of X above the diagonal being ignored.
  __device__ MAHAL_DEVICE_CALL void solve_lower(Entries<N> l, Reals inverse_pivots,
                                                Entries<N> x) const {
    each_column([&](int j) {
      for (int i = j; i < n; ++i) {
        N sum = x(i, j);
        for (int k = j; k < i; ++k) sum = sum - l(i, k) * x(k, j);
        x(i, j) = sum * inverse_pivots[i];
      }
    });
    team.sync();
  }

  // Squared norms of the columns.
  __device__ MAHAL_DEVICE_CALL void column_norms(Entries<N> x, Reals norms) const {
    each_column([&](int k) {
      double sum = 0;
      for (int i = 0; i < n; ++i) sum += squared(x(i, k));
      norms[k] = sum;
    });
    team.sync();
  }

  // Turns pairs of columns of X until all are orthogonal, and the columns of Y with them (which may
  // be none: data is null): one-sided Jacobi, which finds small singular values as exactly as large
  // ones. Pairs (p, q) with one p + q modulo n are disjoint; this order is equivalent to the one by
  // rows, which converges (Luk and Park, 1989). Whether it got there.
  __device__ MAHAL_DEVICE_CALL bool jacobi(Entries<N> x, Entries<N> y) const {
    constexpr int most_sweeps = 60;
    const double smallest = 2.3e-16 * n;
    const double bound = smallest * smallest;
    int lanes = 1;  // per pair
    while (Size > 1 && lanes < warp_lanes && lanes * 2 * ((n + 1) / 2) <= Size) lanes *= 2;
    const int slots = Size / lanes;
    const int slot = team.rank() / lanes, lane = team.rank() % lanes;
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      double turned = 0;
      for (int r = 0; r < n; ++r) {
        const int low = (r + 1) / 2;  // pairs with p + q = r, and those with r + n
        const int pairs = low + (n - r - 1) / 2;
        for (int first = 0; first < pairs; first += slots) {
          const int k = first + slot;
          const bool used = k < pairs;
          const int p = k < low ? k : r + 1 + k - low;
          const int q = k < low ? r - p : r - p + n;
          turned += turn(x, y, p, q, used, lane, lanes, bound);
        }
        team.sync();
      }
      if (team.reduce(turned, Greatest{}) == 0) return true;
    }
    return false;
  }

  // From a factor L of A, turned into columns x_k = sqrt(lambda_k) u_k, to weights with
  // log A = sum_k w_k x_k x_k^H. Whether it got there.
  __device__ bool decompose(Entries<N> x, Reals weights) const {
    clear_upper(x);
    const bool found = jacobi(x, Entries<N>{});
    column_norms(x, weights);
    each_column([&](int k) { weights[k] = logarithm(weights[k]) / weights[k]; });
    team.sync();
    return found;
  }

  __device__ __forceinline__ double turn(Entries<N> x, Entries<N> y, int p, int q, bool used,
                                         int lane, int lanes, double bound) const {
    double alpha = 0, beta = 0;
    N g{};
    if (used) {
      for (int i = lane; i < n; i += lanes) {
        const N u = x(i, p), w = x(i, q);
        alpha += squared(u);
        beta += squared(w);
        g = g + conjugate(u) * w;
      }
    }
    if constexpr (Size > 1) {
      for (int bits = lanes / 2; bits > 0; bits /= 2) {
        alpha += from_partner(alpha, bits);
        beta += from_partner(beta, bits);
        g = g + from_partner(g, bits);
      }
    }
    const double size = squared(g);
    if (!used || !(size > bound * alpha * beta)) return 0;
    // The tangent of the angle is 2 g / (b + sign(b) sqrt(b^2 + 4 |g|^2)), b = beta - alpha.
    const double b = beta - alpha;
    const double h = std::sqrt(b * b + 4 * size);
    const N tangent = g * (b < 0 ? -2 / (h - b) : 2 / (h + b));
    const double cosine = 1 / std::sqrt(1 + squared(tangent));
    const N sine = tangent * cosine;
    rotate(x, p, q, lane, lanes, cosine, sine);
    if (y.data != nullptr) rotate(y, p, q, lane, lanes, cosine, sine);
    return 1;
  }

  __device__ __forceinline__ void rotate(Entries<N> x, int p, int q, int lane, int lanes,
                                         double cosine, N sine) const {
    for (int i = lane; i < n; i += lanes) {
      const N u = x(i, p), w = x(i, q);
      x(i, p) = u * cosine - conjugate(sine) * w;
      x(i, q) = w * cosine + sine * u;
    }
  }
};

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

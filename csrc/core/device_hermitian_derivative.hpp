// Inverses of small matrices and derivatives of their logarithms, in kernels: the formulas of
// core/hermitian_derivative.hpp.
#pragma once

#include <cmath>

#include "core/device_hermitian.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

// (ln a - ln b) / (a - b) of positive a and b; 1 / a where they are equal.
__device__ MAHAL_DEVICE_CALL inline double log_slope(double a, double b) {
  const double sum = a + b;
  const double r = (a - b) / sum;
  const double z = r * r;
  if (z >= 0.15 * 0.15) return logarithm(a / b) / (a - b);
  // 2 artanh(r) / (r (a + b))
  double series = 1.0 / 21;
  for (int i = 19; i >= 1; i -= 2) series = series * z + 1.0 / i;
  return 2 * series / sum;
}

// Every function is called by the whole team, finds its arguments complete after a sync() of the
// caller, and leaves what it wrote complete.
template <int Size, class N>
struct DerivativeTeam {
  HermitianTeam<Size, N> math;
  int n;

  // to(i, j) = sum_k left(i, k) right(k, j)
  template <class Left, class Right>
  __device__ __forceinline__ void multiply(Left left, Right right, Entries<N> to) const {
    math.each_entry([&](int i, int j) {
      N sum{};
      for (int k = 0; k < n; ++k) sum = sum + left(i, k) * right(k, j);
      to(i, j) = sum;
    });
    math.team.sync();
  }

  __device__ MAHAL_DEVICE_CALL void multiply_all(Entries<N> left, Entries<N> right,
                                                 Entries<N> to) const {
    multiply(left, right, to);
  }

  // x = L^-1, whose entries above the diagonal are not written.
  __device__ MAHAL_DEVICE_CALL void invert_factor(Entries<N> l, Reals inverse_pivots,
                                                  Entries<N> x) const {
    math.each_lower(0, [&](int i, int j) { x(i, j) = to_number<N>(i == j ? 1.0 : 0.0); });
    math.team.sync();
    math.solve_lower(l, inverse_pivots, x);
  }

  // Factor L of A to the inverse of A, all of it. `room` becomes L^-1.
  __device__ MAHAL_DEVICE_CALL void invert(Entries<N> l, Reals inverse_pivots,
                                           Entries<N> room) const {
    invert_factor(l, inverse_pivots, room);
    math.each_entry([&](int i, int j) {
      N sum{};
      for (int k = i > j ? i : j; k < n; ++k) sum = sum + conjugate(room(k, i)) * room(k, j);
      l(i, j) = sum;
    });
    math.team.sync();
  }

  // Factor L of A to the eigenvectors of A, and its eigenvalues.
  __device__ MAHAL_DEVICE_CALL void eigenvectors(Entries<N> l, Reals values) const {
    math.clear_upper(l);
    math.jacobi(l, Entries<N>{});
    math.column_norms(l, values);
    math.each_column([&](int k) {
      const double unit = 1 / std::sqrt(values[k]);
      for (int i = 0; i < n; ++i) l(i, k) = l(i, k) * unit;
    });
    math.team.sync();
  }

  // half u^H is the derivative of the logarithm at the matrix with these eigenvectors and values in
  // the Hermitian direction x. `middle` may be x.
  __device__ MAHAL_DEVICE_CALL void log_derivative(Entries<N> u, Reals values, Entries<N> x,
                                                   Entries<N> middle, Entries<N> half) const {
    multiply_all(x, u, half);
    math.each_entry([&](int k, int l) {
      N sum{};
      for (int i = 0; i < n; ++i) sum = sum + conjugate(u(i, k)) * half(i, l);
      middle(k, l) = sum * log_slope(values[k], values[l]);
    });
    math.team.sync();
    multiply_all(u, middle, half);
  }

  // Entry (i, j) of x y^H
  __device__ MAHAL_DEVICE_CALL N row_product(Entries<N> x, Entries<N> y, int i, int j) const {
    N sum{};
    for (int k = 0; k < n; ++k) sum = sum + x(i, k) * conjugate(y(j, k));
    return sum;
  }
};

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

// Products of small matrices, one pair per float64 lane, and derivatives of their logarithms.
// Kernel side.
#pragma once

#include "core/hermitian_eigen.hpp"

namespace mahal {
namespace {

// Rows or columns of a matrix: vector i begins at i * vector, its elements are `element` apart.
struct LaneVectors {
  const double* data;
  std::ptrdiff_t vector, element;
};

template <class S, int C>
struct HermitianProducts {
  using V = typename S::V;
  using Num = Number<S, C>;
  using H = Hermitian<S, C>;
  using Math = LaneMath<S>;
  static constexpr int L = S::lanes;

  static MAHAL_INLINE LaneVectors rows(const double* a, int ld) {
    return {a, static_cast<std::ptrdiff_t>(ld) * C * L, C * L};
  }
  static MAHAL_INLINE LaneVectors columns(const double* a, int ld) {
    return {a, C * L, static_cast<std::ptrdiff_t>(ld) * C * L};
  }

  // out(i, j) = sum_k conj(x_j[k]) y_i[k], or its transpose.
  template <bool Transposed = false>
  __attribute__((noinline)) static void products(LaneVectors x, LaneVectors y, int n, int ld,
                                                 double* out) {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(ld) * C * L;
    const std::ptrdiff_t down = Transposed ? C * L : row;
    const std::ptrdiff_t across = Transposed ? row : C * L;
    for (int i = 0; i < n; ++i) {
      int j = 0;
      for (; j + 4 <= n; j += 4) {
        some_products<4>(x, y, i, j, n, out + i * down + j * across, across);
      }
      for (; j < n; ++j) some_products<1>(x, y, i, j, n, out + i * down + j * across, across);
    }
  }

  // Upper triangle from the lower one.
  static void mirror(double* a, int n, int ld) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < i; ++j) {
        Num::load(H::at(a, ld, i, j)).conj().store(H::at(a, ld, j, i));
      }
    }
  }

  // The inverse of a Cholesky factor, column by column.
  static void invert_factor(const double* l, const double* inverse_pivots, int n, int ld,
                            double* room) {
    for (int j = 0; j < n; ++j) {
      double* x = H::at(room, ld, j, 0);
      for (int i = 0; i < j; ++i) Num::zero().store(x + i * C * L);
      Num::real(S::load(inverse_pivots + j * L)).store(x + j * C * L);
      for (int i = j + 1; i < n; ++i) {
        Num sum = Num::zero();
        for (int k = j; k < i; ++k) {
          sum.sub_product(Num::load(H::at(l, ld, i, k)), Num::load(x + k * C * L));
        }
        sum.scaled(S::load(inverse_pivots + i * L)).store(x + i * C * L);
      }
    }
  }

  // Inverse of the matrix with this Cholesky factor, whose own inverse comes to `room`.
  static void invert(const double* l, const double* inverse_pivots, int n, int ld, double* room,
                     double* inverse) {
    invert_factor(l, inverse_pivots, n, ld, room);
    // (L^-H L^-1)(i, j) = sum_k conj(r_i[k]) r_j[k]
    products<true>(rows(room, ld), rows(room, ld), n, ld, inverse);
  }

  // Columns sqrt(norm_k) u_k to u_k, and norms to values, but in the lanes that were found.
  static void unit_columns(const double* columns, const double* norms, typename Math::W found,
                           int n, int ld, double* u, double* values) {
    for (int k = 0; k < n; ++k) {
      const V norm = S::load(norms + k * L);
      S::store(values + k * L, found ? S::load(values + k * L) : norm);
      const V unit = S::rsqrt(norm);
      const double* x = H::at(columns, ld, k, 0);
      double* out = H::at(u, ld, k, 0);
      for (int i = 0; i < n * C; ++i) {
        S::store(out + i * L, found ? S::load(out + i * L) : S::load(x + i * L) * unit);
      }
    }
  }

  // Eigenvectors u and eigenvalues of positive definite a, exact enough for their logarithms. Of a
  // the lower triangle is read; it and the room are overwritten. Norms: room for n numbers.
  static void eigenvectors(double* a, int n, int ld, double* u, double* values, double* room,
                           double* norms, double* eigen) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) Num::load(H::at(a, ld, i, j)).store(H::at(room, ld, i, j));
    }
    const V converged = Eigen<S, C>::template decompose<true, 1>(room, 0, n, ld, values, u, eigen);
    const auto found = Eigen<S, C>::well_found(values, n, converged);
    if (!S::any_greater(found ? S::zero() : S::set1(1), S::zero())) return;
    H::factor(a, n, ld, norms, 0.0, nullptr);
    H::columns_of(a, n, ld, room, ld);
    H::template jacobi<1>(room, 0, n, n, n, ld, norms);
    unit_columns(room, norms, found, n, ld, u, values);
  }

  // (ln a - ln b) / (a - b) of positive a and b; 1 / a where they are equal.
  static MAHAL_INLINE V log_slope(V a, V b) {
    const V sum = a + b;
    const V difference = a - b;
    const V r = difference / sum;
    const V z = r * r;
    // 2 artanh(r) / (r (a + b)): ten terms for |r| up to 0.15.
    V series = S::set1(1.0 / 21);
    MAHAL_UNROLL
    for (int i = 19; i >= 1; i -= 2) series = S::fma(series, z, S::set1(1.0 / i));
    const auto near = z < S::set1(0.15 * 0.15);
    const V apart = near ? S::set1(1) : difference;
    return near ? (series + series) / sum : Math::log(a / b) / apart;
  }

  // x := derivative of the logarithm at sum_k values_k u_k u_k^H, in the direction of the
  // Hermitian x (all of it): in the basis of the u_k every entry is multiplied by a divided
  // difference (Daleckii and Krein). The derivative is its own adjoint. u: column k is row k.
  static void log_derivative(const double* u, const double* values, int n, int ld, double* x,
                             double* room) {
    // (x u_l)[i] = sum_j conj(x(j, i)) u_l[j]
    products(columns(x, ld), rows(u, ld), n, ld, room);
    // w(k, l) = sum_i conj(u_k[i]) (x u_l)[i]
    products<true>(rows(u, ld), rows(room, ld), n, ld, x);
    for (int k = 0; k < n; ++k) {
      for (int l = 0; l <= k; ++l) {
        const V slope = log_slope(S::load(values + k * L), S::load(values + l * L));
        Num::load(H::at(x, ld, k, l)).scaled(slope).store(H::at(x, ld, k, l));
        if (l < k) Num::load(H::at(x, ld, l, k)).scaled(slope).store(H::at(x, ld, l, k));
      }
    }
    // (u w)(i, l) = sum_k conj(w(l, k)) u_k[i]
    products(rows(x, ld), columns(u, ld), n, ld, room);
    // out(i, j) = sum_l conj(u_l[j]) (u w)(i, l)
    products(columns(u, ld), rows(room, ld), n, ld, x);
  }

 private:
  template <int N>
  static MAHAL_INLINE void some_products(LaneVectors x, LaneVectors y, int i, int j, int n,
                                         double* out, std::ptrdiff_t across) {
    Num sum[N];
    MAHAL_UNROLL
    for (int m = 0; m < N; ++m) sum[m] = Num::zero();
    const double* first = x.data + j * x.vector;
    const double* second = y.data + i * y.vector;
    for (int k = 0; k < n; ++k, first += x.element, second += y.element) {
      const Num right = Num::load(second);
      MAHAL_UNROLL
      for (int m = 0; m < N; ++m) sum[m].add_conj_first(Num::load(first + m * x.vector), right);
    }
    MAHAL_UNROLL
    for (int m = 0; m < N; ++m) sum[m].store(out + m * across);
  }
};

}  // namespace
}  // namespace mahal

// Gradients of the scores of PairMetric with respect to both matrices. Kernel side.
#pragma once

#include "core/hermitian_derivative.hpp"
#include "core/pair_metric.hpp"

namespace mahal {
namespace {

// With D = A - B and the inverses P of A, Q of B and R of their weighted mean:
//   frobenius         2 D, -2 D
//   logeuclid         2 log'(A)[log A - log B], -2 log'(B)[log A - log B]
//   affine_invariant  sums of -2 ln(l) y y^H and 2 ln(l) / l y y^H, with y = L_A^-H u and l, u of
//                     L_A^-1 B L_A^-H
//   logdet, wishart, box_m   c R D P, -c R D Q
//   wasserstein       (X - Y) X^H P, (Y - X) Y^H Q, with X = L_A V and Y = L_B U, where
//                     L_B^H L_A = U S V^H
//   symmetric_kl      P D (P + Q) / 2, -Q D (P + Q) / 2
//   hotelling_lawley  Q, -Q A Q
// Those are of the squared distances; no difference of large terms is left in any of them.
template <class S, int C>
struct PairGradient {
  using V = typename S::V;
  using Pair = PairMetric<S, C>;
  using H = Hermitian<S, C>;
  using Num = Number<S, C>;
  using Math = LaneMath<S>;
  using Products = HermitianProducts<S, C>;
  static constexpr int L = S::lanes;

  Pair pair;
  const int n;
  const int ld;
  double* difference;  // all of A - B
  double* first;       // the gradients, Hermitian up to rounding
  double* second;
  double* room[3];
  double* inverse_m;

  static std::ptrdiff_t scratch_doubles(int n) {
    return Pair::scratch_doubles(n) + 6 * Pair::matrix_doubles(n) +
           static_cast<std::ptrdiff_t>(n) * L;
  }
  MAHAL_INLINE PairGradient(int size, double* scratch)
      : pair(size, scratch, 0.0), n(size), ld(pair.ld) {
    const std::ptrdiff_t matrix = Pair::matrix_doubles(n);
    difference = scratch + Pair::scratch_doubles(n);
    first = difference + matrix;
    second = first + matrix;
    for (int k = 0; k < 3; ++k) room[k] = second + (k + 1) * matrix;
    inverse_m = room[2] + matrix;
  }

  // The matrices lie in pair.a and pair.b. Gives the lanes where they are the same.
  typename Math::W run(Metric metric, V looks_a, V looks_b) {
    V size = S::zero();
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        const Num d = Num::load(H::at(pair.a, ld, i, j)) - Num::load(H::at(pair.b, ld, i, j));
        d.store(H::at(difference, ld, i, j));
    MAHAL_UNROLL
        for (int c = 0; c < C; ++c) size = size + Math::abs(d.v[c]);
      }
    }
    Products::mirror(difference, n, ld);
    const V one = S::set1(1);
    switch (metric) {
      case Metric::frobenius:
        put(difference, S::set1(2), first);
        put(difference, S::set1(-2), second);
        break;
      case Metric::logeuclid:
        logeuclid();
        break;
      case Metric::affine_invariant:
        affine_invariant();
        break;
      case Metric::wasserstein:
        wasserstein();
        break;
      case Metric::symmetric_kl:
        symmetric_kl();
        break;
      case Metric::hotelling_lawley:
        hotelling_lawley();
        break;
      case Metric::logdet:
        determinants(S::set1(0.5), S::set1(0.5), one);
        break;
      case Metric::wishart:
        determinants(looks_a, looks_b, pair.wishart_factor(looks_a, looks_b));
        break;
      case Metric::box_m:
        determinants(looks_a, looks_b, pair.box_factor(looks_a, looks_b));
        break;
    }
    return size == S::zero();
  }

 private:
  void put(const double* from, V factor, double* to) const {
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < n * C; ++k) {
        const std::ptrdiff_t at = H::at(to, ld, i, 0) - to + k * L;
        S::store(to + at, S::load(from + at) * factor);
      }
    }
  }
  // x y of Hermitian x, and of any x and Hermitian y, where the result is Hermitian.
  void times(const double* x, const double* y, double* out) const {
    Products::template products<true>(Products::columns(x, ld), Products::columns(y, ld), n, ld,
                                      out);
  }
  void times_hermitian(const double* x, const double* y, double* out) const {
    Products::products(Products::rows(x, ld), Products::rows(y, ld), n, ld, out);
  }

  void invert_both(double* p, double* q) {
    pair.factor_both();
    Products::invert(pair.a, pair.inverse_a, n, ld, room[2], p);
    Products::invert(pair.b, pair.inverse_b, n, ld, room[2], q);
  }

  // Of c ((wa + wb) ln|M| - wa ln|A| - wb ln|B|) with M = (wa A + wb B) / (wa + wb).
  void determinants(V wa, V wb, V c) {
    const V both = S::set1(1) / (wa + wb);
    pair.mix(wa * both, wb * both);
    H::factor(pair.work, n, ld, inverse_m, 0.0, nullptr);
    double* const p = pair.work + Pair::matrix_doubles(n);
    double* const q = p + Pair::matrix_doubles(n);
    Products::invert(pair.work, inverse_m, n, ld, room[2], room[0]);
    invert_both(p, q);
    times(room[0], difference, room[1]);
    times_hermitian(room[1], p, first);
    times_hermitian(room[1], q, second);
    const V factor = c * wa * wb * both;
    put(first, factor, first);
    put(second, -factor, second);
  }

  void symmetric_kl() {
    double* const p = room[0];
    double* const q = room[1];
    double* const sum = pair.work;
    double* const half = pair.work + Pair::matrix_doubles(n);
    invert_both(p, q);
    for (int i = 0; i < n; ++i) {
      for (int k = 0; k < n * C; ++k) {
        const std::ptrdiff_t at = H::at(p, ld, i, 0) - p + k * L;
        S::store(sum + at, S::set1(0.5) * (S::load(p + at) + S::load(q + at)));
      }
    }
    times(p, difference, half);
    times_hermitian(half, sum, first);
    times(q, difference, half);
    times_hermitian(half, sum, second);
    put(second, S::set1(-1), second);
  }

  void hotelling_lawley() {
    double* const copy = pair.work;
    put(pair.a, S::set1(1), copy);
    Products::mirror(copy, n, ld);
    invert_both(room[0], first);
    times(first, copy, room[1]);
    times_hermitian(room[1], first, second);
    put(second, S::set1(-1), second);
  }

  // Of E = L_A^-1 (B - A) L_A^-H instead of E + I, so that eigenvalues near one lose nothing.
  void affine_invariant() {
    pair.factor_both();
    double* const inverse = room[0];
    Products::invert_factor(pair.a, pair.inverse_a, n, ld, inverse);
    // (T D)(j, k) = sum_l conj(D(k, l)) T(j, l) of T = L_A^-1, which lies there by columns.
    Products::products(Products::rows(difference, ld), Products::columns(inverse, ld), n, ld,
                       room[1]);
    Products::products(Products::columns(inverse, ld), Products::rows(room[1], ld), n, ld,
                       pair.work);
    put(pair.work, S::set1(-1), pair.work);
    double* const u = pair.work + Pair::matrix_doubles(n);
    double* const values = pair.norms;
    const V converged = Eigen<S, C>::template decompose<true, 1, false>(pair.work, 0, n, ld, values,
                                                                        u, pair.eigen);
    double* const logs = inverse_m;
    const V one = S::set1(1);
    for (int k = 0; k < n; ++k) {
      const V excess = S::load(values + k * L);
      const V value = one + excess;
      const V kept = value - one;
      S::store(values + k * L, value);
      // ln(1 + x) without loss
      const V log = Math::log(value) * (excess / (kept == S::zero() ? one : kept));
      S::store(logs + k * L, kept == S::zero() ? excess : log);
    }
    const auto found = Eigen<S, C>::well_found(values, n, converged);
    if (pair.any_left(found)) {
      double* const columns = room[1];
      H::solve_lower(pair.a, pair.inverse_a, pair.b, n, ld, columns, ld);
      double* const norms = pair.inverse_b;
      H::template jacobi<1>(columns, 0, n, n, n, ld, norms);
      Products::unit_columns(columns, norms, found, n, ld, u, values);
      for (int k = 0; k < n; ++k) {
        const V log = Math::log(S::load(values + k * L));
        S::store(logs + k * L, found ? S::load(logs + k * L) : log);
      }
    }
    // y_k[i] = sum_j conj(T(j, i)) u_k[j]
    double* const y = room[1];
    Products::products(Products::rows(inverse, ld), Products::rows(u, ld), n, ld, y);
    double* const scaled = room[2];
    for (int k = 0; k < n; ++k) {
      const V log = S::load(logs + k * L);
      scale_row(y, k, S::set1(-2) * log, scaled);
    }
    Products::products(Products::columns(y, ld), Products::columns(scaled, ld), n, ld, first);
    for (int k = 0; k < n; ++k) {
      const V log = S::load(logs + k * L);
      scale_row(y, k, S::set1(2) * log / S::load(values + k * L), scaled);
    }
    Products::products(Products::columns(y, ld), Products::columns(scaled, ld), n, ld, second);
  }
  void scale_row(const double* from, int k, V factor, double* to) const {
    const double* x = H::at(from, ld, k, 0);
    double* out = H::at(to, ld, k, 0);
    for (int i = 0; i < n * C; ++i) S::store(out + i * L, S::load(x + i * L) * factor);
  }

  void logeuclid() {
    const std::ptrdiff_t size = Pair::matrix_doubles(n);
    double* const u = pair.work;
    double* const values = pair.inverse_a;  // and inverse_b behind it
    double* const matrices[2] = {pair.a, pair.b};
    for (int m = 0; m < 2; ++m) {
      Products::eigenvectors(matrices[m], n, ld, u + m * size, values + m * n * L, room[0],
                             pair.norms, pair.eigen);
    }
    double* const weighted = room[0];
    double* const logs[2] = {room[1], room[2]};
    for (int m = 0; m < 2; ++m) {
      const double* const own = u + m * size;
      for (int k = 0; k < n; ++k) {
        scale_row(own, k, Math::log(S::load(values + (m * n + k) * L)), weighted);
      }
      Products::products(Products::columns(own, ld), Products::columns(weighted, ld), n, ld,
                         logs[m]);
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        const Num d = Num::load(H::at(logs[0], ld, i, j)) - Num::load(H::at(logs[1], ld, i, j));
        d.scaled(S::set1(2)).store(H::at(first, ld, i, j));
        d.scaled(S::set1(-2)).store(H::at(second, ld, i, j));
      }
    }
    Products::log_derivative(u, values, n, ld, first, room[0]);
    Products::log_derivative(u + size, values + n * L, n, ld, second, room[0]);
  }

  void wasserstein() {
    double* const p = room[0];
    double* const q = room[1];
    pair.turn_transport();
    Products::invert(pair.a, pair.inverse_a, n, ld, room[2], p);
    Products::invert(pair.b, pair.inverse_b, n, ld, room[2], q);
    const int x_ld = 2 * n;
    double* const gap = difference;  // x_k - y_k; what it held is not used
    double* const y = room[2];
    for (int k = 0; k < n; ++k) {
      const V inverse = S::rsqrt(S::load(pair.norms + k * L));
      for (int i = 0; i < n; ++i) {
        const Num moved = pair.transported(k, i, inverse);
        moved.store(H::at(y, ld, k, i));
        (Num::load(H::at(pair.work, x_ld, k, n + i)) - moved).store(H::at(gap, ld, k, i));
      }
    }
    const LaneVectors x{pair.work + n * C * L, static_cast<std::ptrdiff_t>(x_ld) * C * L, C * L};
    // z_k[i] = sum_j conj(P(j, i)) x_k[j]; the gradient is the sum of gap_k z_k^H.
    double* const z = second;
    Products::products(Products::columns(p, ld), x, n, ld, z);
    Products::products(Products::columns(z, ld), Products::columns(gap, ld), n, ld, first);
    double* const other = p;
    Products::products(Products::columns(q, ld), Products::rows(y, ld), n, ld, other);
    Products::products(Products::columns(other, ld), Products::columns(gap, ld), n, ld, second);
    put(second, S::set1(-1), second);
  }
};

}  // namespace
}  // namespace mahal

// Scores of pairs of small covariance matrices, one pair per float64 lane. Kernel side.
#pragma once

#include "core/hermitian_eigen.hpp"
#include "mahal/covariance_distance.hpp"

namespace mahal {
namespace {

template <class S, int C>
struct PairMetric {
  using V = typename S::V;
  using H = Hermitian<S, C>;
  using Num = Number<S, C>;
  using Math = LaneMath<S>;
  static constexpr int L = S::lanes;

  int n;
  int ld;
  double* a;  // lower triangles, which are overwritten
  double* b;
  double* work;  // four matrices
  double* inverse_a;
  double* inverse_b;
  double* norms;
  double* eigen;
  double tolerance;       // of the Cholesky factors
  const double* scale_a;  // likewise; may be null
  const double* scale_b;
  V margin;  // positive in the lanes whose matrices are positive definite

  static std::ptrdiff_t matrix_doubles(int n) {
    return static_cast<std::ptrdiff_t>(n) * lane_leading(n) * (C * L);
  }
  static std::ptrdiff_t scratch_doubles(int n) {
    return 6 * matrix_doubles(n) + 3 * static_cast<std::ptrdiff_t>(n) * L +
           Eigen<S, C>::template scratch_doubles<2>(n);
  }
  MAHAL_INLINE PairMetric(int size, double* scratch, double smallest_pivot)
      : n(size), ld(lane_leading(size)), tolerance(smallest_pivot) {
    a = scratch;
    b = a + matrix_doubles(n);
    work = b + matrix_doubles(n);
    inverse_a = work + 4 * matrix_doubles(n);
    inverse_b = inverse_a + n * L;
    norms = inverse_b + n * L;
    eigen = norms + n * L;
    scale_a = nullptr;
    scale_b = nullptr;
    margin = S::set1(1);
  }

  MAHAL_INLINE void require(V one) { margin = S::min(margin, one); }

  V frobenius() {
    V sum = S::zero();
    for (int i = 0; i < n; ++i) {
      V off = S::zero();
      for (int j = 0; j < i; ++j) {
        off = (Num::load(H::at(a, ld, i, j)) - Num::load(H::at(b, ld, i, j))).add_square(off);
      }
      const V d = S::load(H::at(a, ld, i, i)) - S::load(H::at(b, ld, i, i));
      sum = S::fma(d, d, sum) + (off + off);
    }
    return sum;
  }

  void factor_both() {
    require(H::factor(a, n, ld, inverse_a, tolerance, scale_a));
    require(H::factor(b, n, ld, inverse_b, tolerance, scale_b));
  }

  // work = wa a + wb b
  void mix(V wa, V wb) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        Num sum = Num::load(H::at(a, ld, i, j)).scaled(wa);
        const Num other = Num::load(H::at(b, ld, i, j));
    MAHAL_UNROLL
        for (int c = 0; c < C; ++c) sum.v[c] = S::fma(wb, other.v[c], sum.v[c]);
        sum.store(H::at(work, ld, i, j));
      }
    }
  }
  // Sum of wa ln(m / a) + wb ln(m / b) over the pivots of the factors of a, b and their mix m:
  // differences of logarithms of determinants that do not cancel where a and b are alike.
  V log_pivots(V wa, V wb) {
    require(H::factor(work, n, ld, norms, 0.0, nullptr));
    V sum = S::zero();
    for (int i = 0; i < n; ++i) {
      const V m = S::load(H::at(work, ld, i, i));
      sum = S::fma(wa, Math::log(m * S::load(inverse_a + i * L)), sum);
      sum = S::fma(wb, Math::log(m * S::load(inverse_b + i * L)), sum);
    }
    return S::max(sum, S::zero());
  }
  V logdet() {
    mix(S::set1(0.5), S::set1(0.5));
    factor_both();
    return log_pivots(S::set1(1), S::set1(1));
  }
  // -ln Q = (n + m) ln|pooled| - n ln|a| - m ln|b|
  V likelihood_ratio(V looks_a, V looks_b) {
    const V both = S::set1(1) / (looks_a + looks_b);
    mix(looks_a * both, looks_b * both);
    factor_both();
    return log_pivots(looks_a + looks_a, looks_b + looks_b);
  }
  MAHAL_INLINE V inverse_looks(V looks_a, V looks_b) const {
    const V one = S::set1(1);
    return one / looks_a + one / looks_b - one / (looks_a + looks_b);
  }
  MAHAL_INLINE V wishart_factor(V looks_a, V looks_b) const {
    const V rho = S::fnma(S::set1((2.0 * n * n - 1) / (6.0 * n)), inverse_looks(looks_a, looks_b),
                          S::set1(1));
    return rho + rho;
  }
  MAHAL_INLINE V box_factor(V looks_a, V looks_b) const {
    const double factor = (2.0 * n * n + 3.0 * n - 1) / (6.0 * (n + 1));
    return S::fnma(S::set1(factor), inverse_looks(looks_a, looks_b), S::set1(1));
  }
  V wishart(V looks_a, V looks_b) {
    return wishart_factor(looks_a, looks_b) * likelihood_ratio(looks_a, looks_b);
  }
  V box_m(V looks_a, V looks_b) {
    return box_factor(looks_a, looks_b) * likelihood_ratio(looks_a, looks_b);
  }

  V hotelling_lawley() {
    factor_both();
    H::solve_lower(b, inverse_b, a, n, ld, work, ld);
    V sum = S::zero();
    for (int j = 0; j < n; ++j) sum = sum + H::square(H::at(work, ld, j, j), n - j);
    return sum;
  }

  // Half the squared norm of E = L_A^-1 (A - B) L_B^-H, so that nothing cancels.
  V symmetric_kl() {
    double* difference = work;
    double* e = work + matrix_doubles(n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        (Num::load(H::at(a, ld, i, j)) - Num::load(H::at(b, ld, i, j)))
            .store(H::at(difference, ld, i, j));
      }
    }
    factor_both();
    V total = S::zero();
    for (int i = 0; i < n; ++i) {
      const V pivot = S::load(inverse_a + i * L);
      for (int j = 0; j < n; ++j) {
        Num sum = j <= i ? Num::load(H::at(difference, ld, i, j))
                         : Num::load(H::at(difference, ld, j, i)).conj();
        for (int k = 0; k < i; ++k) {
          sum.sub_product(Num::load(H::at(a, ld, i, k)), Num::load(H::at(e, ld, k, j)));
        }
        sum.scaled(pivot).store(H::at(e, ld, i, j));
      }
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        Num sum = Num::load(H::at(e, ld, i, j));
        for (int k = 0; k < j; ++k) {
          sum.sub_conj(Num::load(H::at(e, ld, i, k)), Num::load(H::at(b, ld, j, k)));
        }
        sum = sum.scaled(S::load(inverse_b + j * L));
        sum.store(H::at(e, ld, i, j));
        total = sum.add_square(total);
      }
    }
    return S::set1(0.5) * total;
  }

  using Mask = typename Math::W;
  // Whether a regular pair needs the slower way.
  MAHAL_INLINE bool any_left(Mask found) const {
    return S::any_greater(found ? S::zero() : margin, S::zero());
  }

  static V log_norm(const double* values, int n) {
    V sum = S::zero();
    for (int k = 0; k < n; ++k) {
      const V l = Math::log(S::load(values + k * L));
      sum = S::fma(l, l, sum);
    }
    return sum;
  }
  // The eigenvalues of A^-1 B are those of M M^H with M = L_A^-1 L_B, and the squared singular
  // values of M.
  V affine_invariant() {
    factor_both();
    H::solve_lower(a, inverse_a, b, n, ld, work, ld);
    double* product = work + matrix_doubles(n);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        Num sum = Num::zero();
        for (int k = 0; k <= j; ++k) {
          sum.add_conj_first(Num::load(H::at(work, ld, k, j)), Num::load(H::at(work, ld, k, i)));
        }
        sum.store(H::at(product, ld, i, j));
      }
    }
    const V converged =
        Eigen<S, C>::template decompose<false, 1>(product, 0, n, ld, norms, nullptr, eigen);
    const Mask found = Eigen<S, C>::well_found(norms, n, converged);
    const V sum = log_norm(norms, n);
    if (!any_left(found)) return sum;
    const V turned = H::template jacobi<1>(work, 0, n, n, n, ld, norms);
    require(found ? S::set1(1) : turned);
    return found ? sum : log_norm(norms, n);
  }

  // ||sum_k w_k x_k x_k^H - sum_k v_k y_k y_k^H||^2, for n columns x_k and n columns y_k behind
  // them, with as many weights; `scaled` is room for as much.
  V log_difference(const double* x, const double* weights, double* scaled) const {
    const std::ptrdiff_t size = matrix_doubles(n);
    for (int k = 0; k < 2 * n; ++k) {
      const V weight = S::load(weights + k * L);
      const std::ptrdiff_t column = (k < n ? 0 : size) + k % n * static_cast<std::ptrdiff_t>(ld) * C * L;
      for (int i = 0; i < n * C; ++i) {
        S::store(scaled + column + i * L, S::load(x + column + i * L) * weight);
      }
    }
    V sum = S::zero();
    for (int i = 0; i < n; ++i) {
      V off = S::zero();
      for (int j = 0; j <= i; ++j) {
        Num first = Num::zero();
        Num second = Num::zero();
        const double* xi = H::at(scaled, ld, 0, i);
        const double* xj = H::at(x, ld, 0, j);
        for (int k = 0; k < n; ++k, xi += ld * C * L, xj += ld * C * L) {
          first.add_conj_first(Num::load(xj), Num::load(xi));
          second.add_conj_first(Num::load(xj + size), Num::load(xi + size));
        }
        const Num d = first - second;
        if (j < i) {
          off = d.add_square(off);
        } else {
          sum = S::fma(d.v[0], d.v[0], sum);
        }
      }
      sum = sum + (off + off);
    }
    return sum;
  }
  // Where eigenvalues are exact enough for their logarithms and the matrix has a factor: no pivot
  // is smaller than the least eigenvalue, and no diagonal entry larger than the largest.
  Mask definite(const double* values, V converged, const double* scale) const {
    V least = S::load(values);
    V most = S::zero();
    for (int k = 0; k < n; ++k) {
      least = S::min(least, S::load(values + k * L));
      most = S::max(most, S::load((scale ? scale : values) + k * L));
    }
    const V allowed = most * S::set1(2 * tolerance);  // twice, for the rounding of pivots
    return Eigen<S, C>::well_found(values, n, converged) & (least > allowed);
  }
  V logeuclid() {
    const std::ptrdiff_t size = matrix_doubles(n);
    double* const vectors = work + 2 * size;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        Num::load(H::at(a, ld, i, j)).store(H::at(work, ld, i, j));
        Num::load(H::at(b, ld, i, j)).store(H::at(work + size, ld, i, j));
      }
    }
    // Eigenvalues lie where factors would have their reciprocal pivots, one after the other.
    double* const weights = inverse_a;
    const V converged =
        Eigen<S, C>::template decompose<true, 2>(work, size, n, ld, weights, vectors, eigen);
    const Mask found = definite(weights, converged, scale_a) &
                       definite(weights + n * L, converged, scale_b);
    for (int k = 0; k < 2 * n; ++k) {
      S::store(weights + k * L, Math::log(S::load(weights + k * L)));
    }
    const V sum = log_difference(vectors, weights, work);
    if (!any_left(found)) return sum;
    factor_both();
    if (!any_left(found)) return sum;
    // Jacobi rotations turn the factors into columns sqrt(lambda_k) u_k.
    H::columns_of(a, n, ld, work, ld);
    H::columns_of(b, n, ld, work + size, ld);
    const V turned = H::template jacobi<2>(work, size, n, n, n, ld, weights);
    require(found ? S::set1(1) : turned);
    H::log_weights(weights, 2 * n);
    return found ? sum : log_difference(work, weights, vectors);
  }

  // The columns of L_B^H L_A V = U S with those of L_A V below them, in `work`, and the squared
  // singular values in `norms`.
  void turn_transport() {
    factor_both();
    double* x = work;
    const int x_ld = 2 * n;
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < n; ++i) {
        Num sum = Num::zero();
        for (int k = i > j ? i : j; k < n; ++k) {
          sum.add_conj_first(Num::load(H::at(b, ld, k, i)), Num::load(H::at(a, ld, k, j)));
        }
        sum.store(H::at(x, x_ld, j, i));
      }
      for (int i = 0; i < n; ++i) {
        const Num l = i < j ? Num::zero() : Num::load(H::at(a, ld, i, j));
        l.store(H::at(x, x_ld, j, n + i));
      }
    }
    require(H::template jacobi<1>(x, 0, n, 2 * n, n, x_ld, norms));
  }
  // Element i of column k of L_B U, from the inverse of its singular value.
  MAHAL_INLINE Num transported(int k, int i, V inverse) const {
    Num sum = Num::zero();
    for (int j = 0; j <= i; ++j) {
      sum.add_product(Num::load(H::at(b, ld, i, j)), Num::load(H::at(work, 2 * n, k, j)));
    }
    return sum.scaled(inverse);
  }
  // The squared distance is ||L_A V - L_B U||^2, the sum of squares behind tr A + tr B - 2 tr S.
  V wasserstein() {
    turn_transport();
    V total = S::zero();
    for (int k = 0; k < n; ++k) {
      const V inverse = S::rsqrt(S::load(norms + k * L));
      for (int i = 0; i < n; ++i) {
        const Num moved = transported(k, i, inverse);
        total = (Num::load(H::at(work, 2 * n, k, n + i)) - moved).add_square(total);
      }
    }
    return total;
  }

  // The score, of which the distances are squared first.
  V squared_score(Metric metric, V looks_a, V looks_b) {
    switch (metric) {
      case Metric::frobenius:
        return frobenius();
      case Metric::logeuclid:
        return logeuclid();
      case Metric::affine_invariant:
        return affine_invariant();
      case Metric::logdet:
        return logdet();
      case Metric::wasserstein:
        return wasserstein();
      case Metric::symmetric_kl:
        return symmetric_kl();
      case Metric::hotelling_lawley:
        return hotelling_lawley();
      case Metric::wishart:
        return wishart(looks_a, looks_b);
      case Metric::box_m:
        return box_m(looks_a, looks_b);
    }
    return S::zero();
  }
  V score(Metric metric, bool squared, V looks_a, V looks_b) {
    const V result = squared_score(metric, looks_a, looks_b);
    return squared || metric > Metric::wasserstein ? result : S::sqrt(result);
  }
};

}  // namespace
}  // namespace mahal

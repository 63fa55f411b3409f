// Scores of pairs of small covariance matrices, in kernels: the formulas of core/pair_metric.hpp,
// where Jacobi rotations take the place of the QL algorithm.
#pragma once

#include "core/device_hermitian.hpp"
#include "core/pair_metric_size.hpp"
#include "mahal/covariance_distance.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

template <int Size, class N>
struct PairMetric {
  HermitianTeam<Size, N> math;
  int n;
  Entries<N> a, b, work;                 // lower triangles of the matrices, which are overwritten
  Reals pivots_a, pivots_b, pivots_mix;  // what pivots are compared with before
  double tolerance;
  bool regular = true;

  // memory: PairPlan::doubles for each of `stride` matrices, of which this one has number `offset`.
  __device__ PairMetric(Team<Size> team, int size, int ld, int matrices, double* memory, int stride,
                        int offset, double smallest_pivot)
      : math{team, size}, n(size), tolerance(smallest_pivot) {
    N* const entries = reinterpret_cast<N*>(memory);
    const std::int64_t one = std::int64_t{size} * ld * stride;
    a = {entries + offset, ld, stride};
    b = {entries + one + offset, ld, stride};
    work = {entries + 2 * one + offset, ld, stride};
    double* const reals = reinterpret_cast<double*>(entries + matrices * one) + offset;
    const int vector = size * stride;
    pivots_a = {reals, stride};
    pivots_b = {reals + vector, stride};
    pivots_mix = {reals + 2 * vector, stride};
  }

  __device__ __forceinline__ double total(double part) const { return math.team.reduce(part); }

  __device__ MAHAL_DEVICE_CALL void factor_both() {
    regular = math.factor(a, pivots_a, tolerance) && regular;
    regular = math.factor(b, pivots_b, tolerance) && regular;
  }

  // Sum of |entry(i, j)|^2 over a Hermitian matrix.
  template <class Entry>
  __device__ __forceinline__ double norm(Entry entry) const {
    double sum = 0;
    math.each_lower(0, [&](int i, int j) {
      const double square = squared(entry(i, j));
      sum += i == j ? square : 2 * square;
    });
    return total(sum);
  }
  __device__ double frobenius() const {
    return norm([&](int i, int j) { return a(i, j) - b(i, j); });
  }

  // Sum of wa ln(m / a) + wb ln(m / b) over the pivots of the factors of a, b and their mix
  // m = share_a a + share_b b.
  __device__ MAHAL_DEVICE_CALL double log_pivots(double share_a, double share_b, double wa,
                                                 double wb) {
    math.each_lower(0, [&](int i, int j) {
      work(i, j) = a(i, j) * share_a + b(i, j) * share_b;
      if (i == j) pivots_mix[i] = 0;
    });
    math.team.sync();
    factor_both();
    regular = math.factor(work, pivots_mix, 0) && regular;
    double sum = 0;
    math.each_column([&](int i) {
      const double m = real_part(work(i, i));
      sum += wa * logarithm(m * pivots_a[i]) + wb * logarithm(m * pivots_b[i]);
    });
    sum = total(sum);
    return sum > 0 ? sum : 0;
  }
  // -ln Q = (n + m) ln|pooled| - n ln|a| - m ln|b|
  __device__ double likelihood_ratio(double looks_a, double looks_b) {
    const double both = 1 / (looks_a + looks_b);
    return log_pivots(looks_a * both, looks_b * both, 2 * looks_a, 2 * looks_b);
  }
  __device__ double inverse_looks(double looks_a, double looks_b) const {
    return 1 / looks_a + 1 / looks_b - 1 / (looks_a + looks_b);
  }
  __device__ double wishart(double looks_a, double looks_b) {
    const double rho = 1 - (2.0 * n * n - 1) / (6.0 * n) * inverse_looks(looks_a, looks_b);
    return 2 * rho * likelihood_ratio(looks_a, looks_b);
  }
  __device__ double box_m(double looks_a, double looks_b) {
    const double factor = (2.0 * n * n + 3.0 * n - 1) / (6.0 * (n + 1));
    return (1 - factor * inverse_looks(looks_a, looks_b)) * likelihood_ratio(looks_a, looks_b);
  }

  __device__ double hotelling_lawley() {
    factor_both();
    math.solve_lower(b, pivots_b, a);
    double sum = 0;
    math.each_lower(0, [&](int i, int j) { sum += squared(a(i, j)); });
    return total(sum);
  }

  // Half the squared norm of E = L_A^-1 (A - B) L_B^-H, so that nothing cancels.
  __device__ double symmetric_kl() {
    math.each_entry([&](int i, int j) {
      work(i, j) = j <= i ? a(i, j) - b(i, j) : conjugate(a(j, i) - b(j, i));
    });
    math.team.sync();
    factor_both();
    math.each_column([&](int j) {
      for (int i = 0; i < n; ++i) {
        N sum = work(i, j);
        for (int k = 0; k < i; ++k) sum = sum - a(i, k) * work(k, j);
        work(i, j) = sum * pivots_a[i];
      }
    });
    math.team.sync();
    double part = 0;
    math.each_column([&](int i) {  // here a row
      for (int j = 0; j < n; ++j) {
        N sum = work(i, j);
        for (int k = 0; k < j; ++k) sum = sum - work(i, k) * conjugate(b(j, k));
        work(i, j) = sum * pivots_b[j];
        part += squared(work(i, j));
      }
    });
    return 0.5 * total(part);
  }

  // The eigenvalues of A^-1 B are the squared singular values of L_A^-1 L_B.
  __device__ double affine_invariant() {
    factor_both();
    math.solve_lower(a, pivots_a, b);
    math.clear_upper(b);
    regular = math.jacobi(b, Entries<N>{}) && regular;
    math.column_norms(b, pivots_b);
    double sum = 0;
    math.each_column([&](int k) {
      const double l = logarithm(pivots_b[k]);
      sum += l * l;
    });
    return total(sum);
  }

  // Rotations turn the factors into columns sqrt(lambda_k) u_k.
  __device__ double logeuclid() {
    factor_both();
    regular = math.decompose(a, pivots_a) && regular;
    regular = math.decompose(b, pivots_b) && regular;
    return norm([&](int i, int j) {
      N sum{};
      for (int k = 0; k < n; ++k) {
        sum = sum + a(i, k) * conjugate(a(j, k)) * pivots_a[k];
        sum = sum - b(i, k) * conjugate(b(j, k)) * pivots_b[k];
      }
      return sum;
    });
  }
  // With the singular value decomposition L_B^H L_A = U S V^H the squared distance is
  // ||L_A V - L_B U||^2, the sum of squares behind tr A + tr B - 2 tr S.
  __device__ double wasserstein() {
    factor_both();
    math.each_entry([&](int i, int j) {
      N sum{};
      for (int k = i > j ? i : j; k < n; ++k) sum = sum + conjugate(b(k, i)) * a(k, j);
      work(i, j) = sum;
    });
    math.team.sync();
    math.clear_upper(a);
    regular = math.jacobi(work, a) && regular;
    math.column_norms(work, pivots_a);
    double part = 0;
    math.each_entry([&](int i, int k) {
      N sum{};
      for (int j = 0; j <= i; ++j) sum = sum + b(i, j) * work(j, k);
      part += squared(a(i, k) - sum * (1 / std::sqrt(pivots_a[k])));
    });
    return total(part);
  }

  // For every thread of the team. The matrices are complete; `regular` tells whether they are
  // positive definite.
  __device__ double score(Metric metric, bool as_square, double looks_a, double looks_b) {
    double result = 0;
    switch (metric) {
      case Metric::frobenius:
        result = frobenius();
        break;
      case Metric::logeuclid:
        result = logeuclid();
        break;
      case Metric::affine_invariant:
        result = affine_invariant();
        break;
      case Metric::logdet:
        result = log_pivots(0.5, 0.5, 1, 1);
        break;
      case Metric::wasserstein:
        result = wasserstein();
        break;
      case Metric::symmetric_kl:
        result = symmetric_kl();
        break;
      case Metric::hotelling_lawley:
        result = hotelling_lawley();
        break;
      case Metric::wishart:
        result = wishart(looks_a, looks_b);
        break;
      case Metric::box_m:
        result = box_m(looks_a, looks_b);
        break;
    }
    return as_square || metric > Metric::wasserstein ? result : std::sqrt(result);
  }
};

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

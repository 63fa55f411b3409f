// Gradients of the scores of pairs of small covariance matrices, in kernels: the formulas of
// core/pair_gradient.hpp, where Jacobi rotations take the place of the QL algorithm.
#pragma once

#include "core/device_hermitian_derivative.hpp"
#include "core/pair_metric_size.hpp"
#include "mahal/covariance_distance.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

template <int Size, class N>
struct PairGradient {
  using M = Entries<N>;

  HermitianTeam<Size, N> math;
  DerivativeTeam<Size, N> derivative;
  int n;
  M a, b;  // lower triangles of the matrices, which are overwritten
  M room[4];
  Reals pivots_a, pivots_b, pivots_mix;  // zeros before

  // memory: PairPlan::doubles for each of `stride` matrices, of which this one has number `offset`.
  __device__ PairGradient(Team<Size> team, int size, int ld, int matrices, double* memory,
                          int stride, int offset)
      : math{team, size}, derivative{{team, size}, size}, n(size) {
    N* const entries = reinterpret_cast<N*>(memory);
    const std::int64_t one = std::int64_t{size} * ld * stride;
    a = {entries + offset, ld, stride};
    b = {entries + one + offset, ld, stride};
    for (int k = 0; k < 4; ++k) {
      const bool there = k + 2 < matrices;
      room[k] = {there ? entries + (k + 2) * one + offset : nullptr, ld, stride};
    }
    double* const reals = reinterpret_cast<double*>(entries + matrices * one) + offset;
    const int vector = size * stride;
    pivots_a = {reals, stride};
    pivots_b = {reals + vector, stride};
    pivots_mix = {reals + 2 * vector, stride};
  }

  // Whether the matrices are the same.
  __device__ bool same() const {
    double largest = 0;
    math.each_lower(0, [&](int i, int j) {
      largest = squared(a(i, j) - b(i, j)) == 0 && largest == 0 ? 0 : 1;
    });
    return math.team.reduce(largest, Greatest{}) == 0;
  }

  // Calls first(i, j, value) and then second(i, j, value) for the lower triangles of the gradients
  // by A and by B of the squared distances, or of the other scores.
  template <class First, class Second>
  __device__ void run(Metric metric, double looks_a, double looks_b, First first, Second second) {
    switch (metric) {
      case Metric::frobenius:
        math.each_lower(0, [&](int i, int j) {
          const N gap = (a(i, j) - b(i, j)) * 2.0;
          first(i, j, gap);
          second(i, j, gap * -1.0);
        });
        return;
      case Metric::logeuclid:
        return logeuclid(first, second);
      case Metric::affine_invariant:
        return affine_invariant(first, second);
      case Metric::wasserstein:
        return wasserstein(first, second);
      case Metric::symmetric_kl:
        return symmetric_kl(first, second);
      case Metric::hotelling_lawley:
        return hotelling_lawley(first, second);
      case Metric::logdet:
        return determinants(0.5, 0.5, 1, first, second);
      case Metric::wishart:
        return determinants(
            looks_a, looks_b,
            2 * (1 - (2.0 * n * n - 1) / (6.0 * n) * inverse_looks(looks_a, looks_b)), first,
            second);
      case Metric::box_m:
        return determinants(
            looks_a, looks_b,
            1 - (2.0 * n * n + 3.0 * n - 1) / (6.0 * (n + 1)) * inverse_looks(looks_a, looks_b),
            first, second);
    }
  }

 private:
  __device__ static double inverse_looks(double looks_a, double looks_b) {
    return 1 / looks_a + 1 / looks_b - 1 / (looks_a + looks_b);
  }
  __device__ MAHAL_DEVICE_CALL void factor_both() {
    math.factor(a, pivots_a, 0);
    math.factor(b, pivots_b, 0);
  }
  // All of A - B, from the lower triangles.
  __device__ MAHAL_DEVICE_CALL void take_difference(M to) const {
    math.each_entry([&](int i, int j) {
      to(i, j) = j <= i ? a(i, j) - b(i, j) : conjugate(a(j, i) - b(j, i));
    });
    math.team.sync();
  }
  // Entry (i, j) of x y
  __device__ MAHAL_DEVICE_CALL N product(M x, M y, int i, int j) const {
    N sum{};
    for (int k = 0; k < n; ++k) sum = sum + x(i, k) * y(k, j);
    return sum;
  }

  template <class First, class Second>
  __device__ void determinants(double wa, double wb, double c, First first, Second second) {
    const M mix = room[0], gap = room[1], half = room[2];
    const double both = 1 / (wa + wb);
    take_difference(gap);
    math.each_lower(0, [&](int i, int j) {
      mix(i, j) = a(i, j) * (wa * both) + b(i, j) * (wb * both);
      if (i == j) pivots_mix[i] = 0;
    });
    math.team.sync();
    factor_both();
    math.factor(mix, pivots_mix, 0);
    derivative.invert(a, pivots_a, half);
    derivative.invert(b, pivots_b, half);
    derivative.invert(mix, pivots_mix, half);
    derivative.multiply_all(mix, gap, half);
    const double factor = c * wa * wb * both;
    math.each_lower(0, [&](int i, int j) {
      first(i, j, product(half, a, i, j) * factor);
      second(i, j, product(half, b, i, j) * -factor);
    });
  }

  template <class First, class Second>
  __device__ void symmetric_kl(First first, Second second) {
    const M gap = room[0], half = room[1];
    take_difference(gap);
    factor_both();
    derivative.invert(a, pivots_a, half);
    derivative.invert(b, pivots_b, half);
    const auto sum = [&](int i, int j) { return (a(i, j) + b(i, j)) * 0.5; };
    const auto with_sum = [&](int i, int j) {
      N total{};
      for (int k = 0; k < n; ++k) total = total + half(i, k) * sum(k, j);
      return total;
    };
    derivative.multiply_all(a, gap, half);
    math.each_lower(0, [&](int i, int j) { first(i, j, with_sum(i, j)); });
    math.team.sync();
    derivative.multiply_all(b, gap, half);
    math.each_lower(0, [&](int i, int j) { second(i, j, with_sum(i, j) * -1.0); });
  }

  template <class First, class Second>
  __device__ void hotelling_lawley(First first, Second second) {
    const M half = room[0];
    math.factor(b, pivots_b, 0);
    derivative.invert(b, pivots_b, half);
    const M lower = a;
    derivative.multiply(
        b, [&](int i, int j) { return j <= i ? lower(i, j) : conjugate(lower(j, i)); }, half);
    math.each_lower(0, [&](int i, int j) {
      first(i, j, b(i, j));
      second(i, j, product(half, b, i, j) * -1.0);
    });
  }

  template <class First, class Second>
  __device__ void affine_invariant(First first, Second second) {
    const M inverse = room[0];
    factor_both();
    derivative.invert_factor(a, pivots_a, inverse);
    math.solve_lower(a, pivots_a, b);
    derivative.eigenvectors(b, pivots_b);
    const M y = a;  // L_A^-H u
    math.each_entry([&](int i, int k) {
      N sum{};
      for (int j = i; j < n; ++j) sum = sum + conjugate(inverse(j, i)) * b(j, k);
      y(i, k) = sum;
    });
    math.each_column([&](int k) {
      pivots_a[k] = -2 * logarithm(pivots_b[k]);
      pivots_b[k] = -pivots_a[k] / pivots_b[k];
    });
    math.team.sync();
    math.each_lower(0, [&](int i, int j) {
      N by_a{}, by_b{};
      for (int k = 0; k < n; ++k) {
        const N entry = y(i, k) * conjugate(y(j, k));
        by_a = by_a + entry * pivots_a[k];
        by_b = by_b + entry * pivots_b[k];
      }
      first(i, j, by_a);
      second(i, j, by_b);
    });
  }

  template <class First, class Second>
  __device__ void logeuclid(First first, Second second) {
    const M gap = room[0], middle = room[1], half = room[2];
    factor_both();
    derivative.eigenvectors(a, pivots_a);
    derivative.eigenvectors(b, pivots_b);
    math.each_column([&](int k) { pivots_mix[k] = logarithm(pivots_a[k]); });
    math.team.sync();
    math.each_entry([&](int i, int j) {
      N sum{};
      for (int k = 0; k < n; ++k) sum = sum + a(i, k) * conjugate(a(j, k)) * pivots_mix[k];
      gap(i, j) = sum;
    });
    math.team.sync();
    math.each_column([&](int k) { pivots_mix[k] = logarithm(pivots_b[k]); });
    math.team.sync();
    math.each_entry([&](int i, int j) {
      N sum{};
      for (int k = 0; k < n; ++k) sum = sum + b(i, k) * conjugate(b(j, k)) * pivots_mix[k];
      gap(i, j) = (gap(i, j) - sum) * 2.0;
    });
    math.team.sync();
    derivative.log_derivative(a, pivots_a, gap, middle, half);
    math.each_lower(0, [&](int i, int j) { first(i, j, derivative.row_product(half, a, i, j)); });
    math.team.sync();
    derivative.log_derivative(b, pivots_b, gap, middle, half);
    math.each_lower(
        0, [&](int i, int j) { second(i, j, derivative.row_product(half, b, i, j) * -1.0); });
  }

  template <class First, class Second>
  __device__ void wasserstein(First first, Second second) {
    const M p = room[0], q = room[1], y = room[2], work = room[3];
    factor_both();
    // Inverses beside the factors, which are still needed.
    const M factors[2] = {a, b};
    const M inverses[2] = {p, q};
    const Reals pivots[2] = {pivots_a, pivots_b};
    for (int m = 0; m < 2; ++m) {
      const M own = factors[m], to = inverses[m];
      derivative.invert_factor(own, pivots[m], y);
      math.each_entry([&](int i, int j) {
        N sum{};
        for (int k = i > j ? i : j; k < n; ++k) sum = sum + conjugate(y(k, i)) * y(k, j);
        to(i, j) = sum;
      });
      math.team.sync();
    }
    math.each_entry([&](int i, int j) {
      N sum{};
      for (int k = i > j ? i : j; k < n; ++k) sum = sum + conjugate(b(k, i)) * a(k, j);
      work(i, j) = sum;
    });
    math.team.sync();
    math.clear_upper(a);
    math.jacobi(work, a);
    math.column_norms(work, pivots_a);
    const M x = a;
    math.each_entry([&](int i, int k) {
      N sum{};
      for (int j = 0; j <= i; ++j) sum = sum + b(i, j) * work(j, k);
      y(i, k) = sum * (1 / std::sqrt(pivots_a[k]));
    });
    math.team.sync();
    const auto with_gap = [&](int i, int j) {  // of (x - y) work^H
      N sum{};
      for (int k = 0; k < n; ++k) sum = sum + (x(i, k) - y(i, k)) * conjugate(work(j, k));
      return sum;
    };
    derivative.multiply_all(p, x, work);
    math.each_lower(0, [&](int i, int j) { first(i, j, with_gap(i, j)); });
    math.team.sync();
    derivative.multiply_all(q, y, work);
    math.each_lower(0, [&](int i, int j) { second(i, j, with_gap(i, j) * -1.0); });
  }
};

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

#include "core/hermitian_eigen.hpp"
#include "ops/covariance_log_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

template <int C>
struct Pack {
  using H = Hermitian<S, C>;
  using E = Eigen<S, C>;
  using Num = Number<S, C>;
  using Math = LaneMath<S>;

  int n, ld;
  double *a, *x, *vectors, *inverse, *weights, *eigen;

  static std::ptrdiff_t matrix_doubles(int n) {
    return static_cast<std::ptrdiff_t>(n) * lane_leading(n) * (C * L);
  }
  static std::ptrdiff_t scratch_doubles(int n) {
    return 3 * matrix_doubles(n) + 2 * static_cast<std::ptrdiff_t>(n) * L +
           E::template scratch_doubles<1>(n);
  }
  Pack(int size, double* scratch) : n(size), ld(lane_leading(size)) {
    a = scratch;
    x = a + matrix_doubles(n);
    vectors = x + matrix_doubles(n);
    inverse = vectors + matrix_doubles(n);
    weights = inverse + n * L;
    eigen = weights + n * L;
  }

  // Lower triangle of sum_k w_k x_k x_k^H to `out`, in the chosen lanes.
  void put_sum(const double* columns, Math::W chosen, double* out) const {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        Num sum = Num::zero();
        for (int k = 0; k < n; ++k) {
          const Num u = Num::load(H::at(columns, ld, k, i)).scaled(S::load(weights + k * L));
          sum.add_conj_first(Num::load(H::at(columns, ld, k, j)), u);
        }
        double* to = H::at(out, ld, i, j);
        for (int c = 0; c < C; ++c) {
          S::store(to + c * L, chosen ? sum.v[c] : S::load(to + c * L));
        }
      }
    }
  }

  template <class T>
  void run(const CovarianceLogBlock<T>& b) {
    load_lower<S, C>(b.a, b.row_stride, b.col_stride, n, ld, a);
    if (b.loading != 0) {
      V trace = S::zero();
      for (int i = 0; i < n; ++i) trace = trace + S::load(H::at(a, ld, i, i));
      const V extra = trace * S::set1(b.loading / n);
      for (int i = 0; i < n; ++i) {
        S::store(H::at(a, ld, i, i), S::load(H::at(a, ld, i, i)) + extra);
      }
    }
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) Num::load(H::at(a, ld, i, j)).store(H::at(x, ld, i, j));
    }
    V margin = H::factor(a, n, ld, inverse, b.tolerance, nullptr);
    const V converged = E::template decompose<true, 1>(x, 0, n, ld, weights, vectors, eigen);
    const Math::W found = E::well_found(weights, n, converged);
    for (int k = 0; k < n; ++k) {
      S::store(weights + k * L, Math::log(S::load(weights + k * L)));
    }
    double* result = x;
    put_sum(vectors, margin == margin, result);
    if (S::any_greater(found ? S::zero() : margin, S::zero())) {
      H::columns_of(a, n, ld, vectors, ld);
      const V turned = H::template jacobi<1>(vectors, 0, n, n, n, ld, weights);
      margin = S::min(margin, found ? S::set1(1) : turned);
      H::log_weights(weights, n);
      put_sum(vectors, ~found, result);
    }
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n) * n * C;
    for (int l = 0; l < b.count; ++l) {
      const bool regular = margin[l] > 0;
      b.status[l] = regular ? status_ok : status_singular;
      T* out = b.out + l * size;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
          const double* from = H::at(result, ld, i, j) + l;
          for (int c = 0; c < C; ++c) {
            const double part = regular ? from[c * L] : __builtin_nan("");
            const bool real = c == 0 || (j == i && regular);
            const T value = c == 1 && j == i && regular ? T(0) : static_cast<T>(part);
            out[(i * n + j) * C + c] = value;
            out[(j * n + i) * C + c] = real ? value : -value;
          }
        }
      }
    }
  }
};

template <class T>
void run_block(const CovarianceLogBlock<T>& block) {
  if (block.complex) {
    Pack<2>(block.n, static_cast<double*>(block.scratch)).run(block);
  } else {
    Pack<1>(block.n, static_cast<double*>(block.scratch)).run(block);
  }
}

}  // namespace

template <>
int CovarianceLogKernel<current_isa>::lanes() {
  return L;
}
template <>
std::size_t CovarianceLogKernel<current_isa>::scratch_bytes(int n, bool complex) {
  return sizeof(double) * static_cast<std::size_t>(complex ? Pack<2>::scratch_doubles(n)
                                                           : Pack<1>::scratch_doubles(n));
}
template <>
void CovarianceLogKernel<current_isa>::run(const CovarianceLogBlock<float>& block) {
  run_block(block);
}
template <>
void CovarianceLogKernel<current_isa>::run(const CovarianceLogBlock<double>& block) {
  run_block(block);
}

}  // namespace mahal

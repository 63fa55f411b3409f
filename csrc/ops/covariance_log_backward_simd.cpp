#include "core/hermitian_derivative.hpp"
#include "ops/covariance_log_backward_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

template <int C>
struct Pack {
  using H = Hermitian<S, C>;
  using Products = HermitianProducts<S, C>;

  int n, ld;
  double *a, *x, *u, *room, *values, *norms, *eigen;

  static std::ptrdiff_t matrix_doubles(int n) {
    return static_cast<std::ptrdiff_t>(n) * lane_leading(n) * (C * L);
  }
  static std::ptrdiff_t scratch_doubles(int n) {
    return 4 * matrix_doubles(n) + 2 * static_cast<std::ptrdiff_t>(n) * L +
           Eigen<S, C>::template scratch_doubles<1>(n);
  }
  Pack(int size, double* scratch) : n(size), ld(lane_leading(size)) {
    a = scratch;
    x = a + matrix_doubles(n);
    u = x + matrix_doubles(n);
    room = u + matrix_doubles(n);
    values = room + matrix_doubles(n);
    norms = values + n * L;
    eigen = norms + n * L;
  }

  // The Hermitian part of the gradients, and the lanes where all of it is zero.
  template <class T>
  void load_gradients(const CovarianceLogBackwardBlock<T>& b, bool* zero) const {
    for (int l = 0; l < L; ++l) {
      zero[l] = true;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
          const T* lower = b.grad[l] + (i * n + j) * C;
          const T* upper = b.grad[l] + (j * n + i) * C;
          for (int c = 0; c < C; ++c) {
            const double sign = c == 0 ? 1 : -1;
            const double part =
                0.5 * (static_cast<double>(lower[c]) + sign * static_cast<double>(upper[c]));
            H::at(x, ld, i, j)[c * L + l] = part;
            H::at(x, ld, j, i)[c * L + l] = i == j ? part : sign * part;
            zero[l] &= lower[c] == 0 && upper[c] == 0;
          }
        }
      }
    }
  }

  template <class T>
  void run(const CovarianceLogBackwardBlock<T>& b) {
    load_lower<S, C>(b.a, b.row_stride, b.col_stride, n, ld, a);
    V trace = S::zero();
    for (int i = 0; i < n; ++i) trace = trace + S::load(H::at(a, ld, i, i));
    const V loading = S::set1(b.loading / n);
    for (int i = 0; i < n; ++i) {
      S::store(H::at(a, ld, i, i), S::fma(trace, loading, S::load(H::at(a, ld, i, i))));
    }
    bool zero[L];
    load_gradients(b, zero);
    Products::eigenvectors(a, n, ld, u, values, room, norms, eigen);
    Products::log_derivative(u, values, n, ld, x, room);
    // The loading passes the mean of the diagonal on.
    trace = S::zero();
    for (int i = 0; i < n; ++i) trace = trace + S::load(H::at(x, ld, i, i));
    const V extra = trace * loading;
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n) * n * C;
    for (int l = 0; l < b.count; ++l) {
      const bool regular = b.status[l] == status_ok;
      T* out = b.grad_a + l * size;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
          for (int c = 0; c < C; ++c) {
            const double sign = c == 0 ? 1 : -1;
            double part =
                0.5 * (H::at(x, ld, i, j)[c * L + l] + sign * H::at(x, ld, j, i)[c * L + l]);
            if (i == j) part = c == 0 ? part + extra[l] : 0;
            if (!regular) part = __builtin_nan("");
            if (zero[l]) part = 0;
            out[(i * n + j) * C + c] = static_cast<T>(part);
            out[(j * n + i) * C + c] = static_cast<T>(i == j ? part : sign * part);
          }
        }
      }
    }
  }
};

template <class T>
void run_block(const CovarianceLogBackwardBlock<T>& block) {
  if (block.complex) {
    Pack<2>(block.n, static_cast<double*>(block.scratch)).run(block);
  } else {
    Pack<1>(block.n, static_cast<double*>(block.scratch)).run(block);
  }
}

}  // namespace

template <>
int CovarianceLogBackwardKernel<current_isa>::lanes() {
  return L;
}
template <>
std::size_t CovarianceLogBackwardKernel<current_isa>::scratch_bytes(int n, bool complex) {
  return sizeof(double) * static_cast<std::size_t>(complex ? Pack<2>::scratch_doubles(n)
                                                           : Pack<1>::scratch_doubles(n));
}
template <>
void CovarianceLogBackwardKernel<current_isa>::run(const CovarianceLogBackwardBlock<float>& block) {
  run_block(block);
}
template <>
void CovarianceLogBackwardKernel<current_isa>::run(
    const CovarianceLogBackwardBlock<double>& block) {
  run_block(block);
}

}  // namespace mahal

#include "core/pair_gradient.hpp"
#include "ops/covariance_distance_backward_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

template <class T, int C>
void run_pairs(const CovarianceDistanceBackwardBlock<T>& b) {
  PairGradient<S, C> gradient(b.n, static_cast<double*>(b.scratch));
  load_lower<S, C>(b.a, b.a_row_stride, b.a_col_stride, b.n, gradient.ld, gradient.pair.a);
  load_lower<S, C>(b.b, b.b_row_stride, b.b_col_stride, b.n, gradient.ld, gradient.pair.b);
  const Metric metric = b.params.metric;
  const auto same = gradient.run(metric, S::set1(b.params.looks_a), S::set1(b.params.looks_b));
  const bool root = !b.params.squared && metric <= Metric::wasserstein;
  double scale[L];
  for (int l = 0; l < L; ++l) {
    const double grad = static_cast<double>(*b.grad[l]);
    const double score = static_cast<double>(*b.score[l]);
    scale[l] = root ? 0.5 * grad / score : grad;
    const bool flat = same[l] != 0 && metric != Metric::hotelling_lawley;
    if (flat || (root && score == 0) || grad == 0) scale[l] = 0;
    if (b.status[l] != status_ok && grad != 0) scale[l] = __builtin_nan("");
  }
  T* const outputs[2] = {b.grad_a, b.grad_b};
  const double* const found[2] = {gradient.first, gradient.second};
  const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(b.n) * b.n * C;
  for (int m = 0; m < 2; ++m) {
    if (!outputs[m]) continue;
    for (int i = 0; i < b.n; ++i) {
      for (int j = 0; j <= i; ++j) {
        const double* lower = Hermitian<S, C>::at(found[m], gradient.ld, i, j);
        const double* upper = Hermitian<S, C>::at(found[m], gradient.ld, j, i);
        for (int l = 0; l < b.count; ++l) {
          T* const out = outputs[m] + l * size;
          for (int c = 0; c < C; ++c) {
            const double sign = c == 0 ? 1 : -1;
            const double both = lower[c * L + l] + sign * upper[c * L + l];
            const T value = static_cast<T>(scale[l] == 0 ? 0 : 0.5 * scale[l] * both);
            out[(i * b.n + j) * C + c] = value;
            out[(j * b.n + i) * C + c] = static_cast<T>(sign) * value;
          }
        }
      }
    }
  }
}

template <class T>
void run_block(const CovarianceDistanceBackwardBlock<T>& block) {
  if (block.complex) {
    run_pairs<T, 2>(block);
  } else {
    run_pairs<T, 1>(block);
  }
}

}  // namespace

template <>
int CovarianceDistanceBackwardKernel<current_isa>::lanes() {
  return L;
}
template <>
std::size_t CovarianceDistanceBackwardKernel<current_isa>::scratch_bytes(int n, bool complex) {
  return sizeof(double) * static_cast<std::size_t>(complex
                                                       ? PairGradient<S, 2>::scratch_doubles(n)
                                                       : PairGradient<S, 1>::scratch_doubles(n));
}
template <>
void CovarianceDistanceBackwardKernel<current_isa>::run(
    const CovarianceDistanceBackwardBlock<float>& block) {
  run_block(block);
}
template <>
void CovarianceDistanceBackwardKernel<current_isa>::run(
    const CovarianceDistanceBackwardBlock<double>& block) {
  run_block(block);
}

}  // namespace mahal

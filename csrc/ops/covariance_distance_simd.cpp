#include "core/pair_metric.hpp"
#include "ops/covariance_distance_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;

template <class T, int C>
void run_pairs(const CovarianceDistanceBlock<T>& block) {
  PairMetric<S, C> pair(block.n, static_cast<double*>(block.scratch), block.tolerance);
  load_lower<S, C>(block.a, block.a_row_stride, block.a_col_stride, block.n, pair.ld, pair.a);
  load_lower<S, C>(block.b, block.b_row_stride, block.b_col_stride, block.n, pair.ld, pair.b);
  prefetch_next<S, C>(block.a, block.a_row_stride, block.a_col_stride, block.n);
  prefetch_next<S, C>(block.b, block.b_row_stride, block.b_col_stride, block.n);
  const CovarianceDistanceParams& p = block.params;
  const V score = pair.score(p.metric, p.squared, S::set1(p.looks_a), S::set1(p.looks_b));
  for (int l = 0; l < block.count; ++l) {
    const bool regular = pair.margin[l] > 0;
    block.status[l] = regular ? status_ok : status_singular;
    block.score[l] = static_cast<T>(regular ? score[l] : __builtin_nan(""));
  }
}

template <class T>
void run_block(const CovarianceDistanceBlock<T>& block) {
  if (block.complex) {
    run_pairs<T, 2>(block);
  } else {
    run_pairs<T, 1>(block);
  }
}

}  // namespace

template <>
int CovarianceDistanceKernel<current_isa>::lanes() {
  return S::lanes;
}
template <>
std::size_t CovarianceDistanceKernel<current_isa>::scratch_bytes(int n, bool complex) {
  return sizeof(double) * static_cast<std::size_t>(complex ? PairMetric<S, 2>::scratch_doubles(n)
                                                           : PairMetric<S, 1>::scratch_doubles(n));
}
template <>
void CovarianceDistanceKernel<current_isa>::run(const CovarianceDistanceBlock<float>& block) {
  run_block(block);
}
template <>
void CovarianceDistanceKernel<current_isa>::run(const CovarianceDistanceBlock<double>& block) {
  run_block(block);
}

}  // namespace mahal

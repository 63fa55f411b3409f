#include "core/pair_metric.hpp"
#include "ops/covariance_distance_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

// Lower triangles of the matrices of all lanes, in float64. The diagonal is taken for real.
template <class T, int C>
void load_lower(const T* const* sources, std::ptrdiff_t row_stride, std::ptrdiff_t col_stride,
                int n, int ld, double* to) {
  constexpr int size = C * L;
  const int entries = n * n * C;
  if (ld == n && entries >= L && col_stride == C && row_stride == n * C) {
    // Small and contiguous: all entries in whole vectors, the last of which is moved back.
    for (int e = 0; e < entries; e += L) {
      const int from = e + L <= entries ? e : entries - L;
      V r[L];
  MAHAL_UNROLL
      for (int l = 0; l < L; ++l) r[l] = S::widen(sources[l] + from);
      S::transpose(r);
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) S::store(to + (from + l) * L, r[l]);
    }
    if constexpr (C == 2) {
      for (int i = 0; i < n; ++i) S::store(to + (i * (n + 1) * C + 1) * L, S::zero());
    }
    return;
  }
  for (int i = 0; i < n; ++i) {
    const int length = (i + 1) * C;
    double* row = to + static_cast<std::ptrdiff_t>(i) * ld * size;
    int k = 0;
    if (col_stride == C) {
      for (; k < length && i * row_stride + k + L <= (n - 1) * row_stride + n * C; k += L) {
        V r[L];
  MAHAL_UNROLL
        for (int l = 0; l < L; ++l) r[l] = S::widen(sources[l] + i * row_stride + k);
        S::transpose(r);
        MAHAL_UNROLL
        for (int l = 0; l < L; ++l)
          if (k + l < length) S::store(row + (k + l) * L, r[l]);
      }
    }
    for (; k < length; ++k) {
      for (int l = 0; l < L; ++l) {
        row[k * L + l] =
            static_cast<double>(sources[l][i * row_stride + k / C * col_stride + k % C]);
      }
    }
    if constexpr (C == 2) S::store(row + (length - 1) * L, S::zero());
  }
}

template <class T, int C>
void run_pairs(const CovarianceDistanceBlock<T>& block) {
  PairMetric<S, C> pair(block.n, static_cast<double*>(block.scratch), block.tolerance);
  load_lower<T, C>(block.a, block.a_row_stride, block.a_col_stride, block.n, pair.ld, pair.a);
  load_lower<T, C>(block.b, block.b_row_stride, block.b_col_stride, block.n, pair.ld, pair.b);
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
  return L;
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

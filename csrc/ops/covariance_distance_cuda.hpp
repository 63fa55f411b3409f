// Entry of the kernels in csrc/ops/covariance_distance.cu. The op has checked every argument;
// nothing here allocates or waits.
#pragma once

#include <cstdint>

#include "core/matrix_batch.hpp"
#include "core/pair_metric_size.hpp"

namespace mahal {

// The arrays hold float where `single` and double elsewhere, the matrices pairs of these where
// `hermitian`. Strides, those of the batch included, are in entries. The results are those of the
// op.
struct CovarianceDistanceLaunch {
  const void* a = nullptr;
  const void* b = nullptr;
  bool single = false;
  MatrixBatch batch;
  std::int64_t a_row_stride = 0, a_col_stride = 0, b_row_stride = 0, b_col_stride = 0;
  int n = 0;
  bool hermitian = false;
  CovarianceDistanceParams params;
  PairPlan plan{};
  double* workspace = nullptr;  // plan.workspace_doubles()
  void* score = nullptr;
  std::uint8_t* status = nullptr;
};

inline PairPlan plan_distances(Metric metric, std::int64_t n, bool hermitian, std::int64_t count) {
  return plan_pairs(needs_third_matrix(metric) ? 3 : 2, n, hermitian, count,
                    [](std::int64_t pairs, std::int64_t doubles) {
                      return pairs * doubles <= pair_shared_doubles;
                    });
}

namespace cuda {
void covariance_distance(const CovarianceDistanceLaunch& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void covariance_distance(const CovarianceDistanceLaunch& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

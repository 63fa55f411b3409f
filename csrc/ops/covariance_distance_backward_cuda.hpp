// Entry of the kernels in csrc/ops/covariance_distance_backward.cu. The op has checked every
// argument; nothing here allocates or waits.
#pragma once

#include <cstdint>

#include "core/matrix_batch.hpp"
#include "core/pair_metric_size.hpp"
#include "mahal/covariance_distance.hpp"

namespace mahal {

// The arrays hold float where `single` and double elsewhere, the matrices pairs of these where
// `hermitian`. Strides, those of the batch included, are in entries. The results are those of the
// op.
struct CovarianceDistanceBackwardLaunch {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* score = nullptr;
  const std::uint8_t* status = nullptr;
  const void* grad = nullptr;
  bool single = false;
  MatrixBatch batch;
  std::int64_t a_row_stride = 0, a_col_stride = 0, b_row_stride = 0, b_col_stride = 0;
  int n = 0;
  bool hermitian = false;
  CovarianceDistanceParams params;
  PairPlan plan{};
  double* workspace = nullptr;  // plan.workspace_doubles()
  void* grad_a = nullptr;       // null where not wanted
  void* grad_b = nullptr;
};

constexpr int gradient_matrices(Metric metric) {
  switch (metric) {
    case Metric::frobenius:
      return 2;
    case Metric::hotelling_lawley:
    case Metric::affine_invariant:
      return 3;
    case Metric::symmetric_kl:
      return 4;
    case Metric::wasserstein:
      return 6;
    default:
      return 5;
  }
}

inline PairPlan plan_distance_gradients(Metric metric, std::int64_t n, bool hermitian,
                                        std::int64_t count) {
  return plan_pairs(gradient_matrices(metric), n, hermitian, count,
                    [](std::int64_t pairs, std::int64_t doubles) {
                      return pairs * doubles <= pair_shared_doubles;
                    });
}

namespace cuda {
void covariance_distance_backward(const CovarianceDistanceBackwardLaunch& arguments,
                                  std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void covariance_distance_backward(const CovarianceDistanceBackwardLaunch& arguments,
                                  std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

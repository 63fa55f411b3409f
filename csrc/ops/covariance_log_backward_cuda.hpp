// Entry of the kernels in csrc/ops/covariance_log_backward.cu. The op has checked every argument;
// nothing here allocates or waits.
#pragma once

#include <cstdint>

#include "core/matrix_batch.hpp"
#include "core/pair_metric_size.hpp"

namespace mahal {

// The arrays hold float where `single` and double elsewhere, or pairs of these where `hermitian`.
// Strides, those of the batch included, are in entries. The results are those of the op.
struct CovarianceLogBackwardLaunch {
  const void* a = nullptr;
  const std::uint8_t* status = nullptr;
  const void* grad = nullptr;
  bool single = false;
  MatrixBatch batch;
  std::int64_t row_stride = 0, col_stride = 0;
  int n = 0;
  bool hermitian = false;
  double loading = 0;
  PairPlan plan{};
  double* workspace = nullptr;  // plan.workspace_doubles()
  void* grad_a = nullptr;
};

// The matrix, the direction, and half of the product.
inline PairPlan plan_log_gradients(std::int64_t n, bool hermitian, std::int64_t count) {
  return plan_pairs(3, n, hermitian, count, [](std::int64_t pairs, std::int64_t doubles) {
    return pairs * doubles <= pair_shared_doubles;
  });
}

namespace cuda {
void covariance_log_backward(const CovarianceLogBackwardLaunch& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void covariance_log_backward(const CovarianceLogBackwardLaunch& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

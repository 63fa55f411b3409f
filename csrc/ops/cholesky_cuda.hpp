// Entry of the batched Cholesky kernels in csrc/ops/cholesky.cu. The op has checked every argument;
// nothing here allocates or waits.
#pragma once

#include <cstdint>

namespace mahal {

// Factors a + loading * trace(a) / n * I = L L^T for every matrix of the batch, reading the lower
// triangle only. Strides are in elements and may have any sign; the factor is contiguous, batch x n
// x n, with zeros above the diagonal. The status is
//   0  factored
//   2  not positive definite: a pivot is at most n * eps times its diagonal entry (after loading),
//      or the arithmetic overflowed
//   3  the lower triangle holds a non-finite value
// and the lower triangle of the factor is NaN where it is not 0.
template <class T>
struct CholeskyLaunch {
  const T* a = nullptr;
  std::int64_t batch = 0;
  int n = 0;  // 1 .. 256
  std::int64_t batch_stride = 0, row_stride = 0, col_stride = 0;
  T loading = 0;

  T* factor = nullptr;
  std::uint8_t* status = nullptr;  // batch
};

namespace cuda {
void cholesky(const CholeskyLaunch<float>& arguments, std::uintptr_t stream);
void cholesky(const CholeskyLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void cholesky(const CholeskyLaunch<float>& arguments, std::uintptr_t stream);
void cholesky(const CholeskyLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

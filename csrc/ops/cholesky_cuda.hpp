// Entry of the batched Cholesky kernels in csrc/ops/cholesky.cu. The op has checked every argument;
// nothing here allocates or waits.
#pragma once

#include <cstdint>

namespace mahal {

inline constexpr int most_cholesky_rows = 32768;
// Up to here a matrix is factored by one block; larger ones take several launches for each panel of
// so many bytes per row.
inline constexpr int most_block_rows = 256;
inline constexpr int cholesky_panel_bytes = 256;

// Elements of T: the square of a panel and the diagonal of every matrix.
template <class T>
constexpr std::int64_t cholesky_kernel_workspace(std::int64_t batch, std::int64_t n,
                                                 bool hermitian) {
  if (n <= most_block_rows) return 0;
  const std::int64_t parts = hermitian ? 2 : 1;
  const std::int64_t panel = cholesky_panel_bytes / (parts * static_cast<std::int64_t>(sizeof(T)));
  return batch * (parts * panel * panel + n);
}

// Factors a + loading * trace(a) / n * I = L L^H for every matrix of the batch, reading the lower
// triangle only. T is the real type; the entries are T or, where `hermitian`, pairs of T. Strides
// are in entries and may have any sign; the factor is contiguous, batch x n x n, with zeros above
// the diagonal. The status is
//   0  factored
//   2  not positive definite: a pivot is at most n * eps times its diagonal entry (after loading),
//      or the arithmetic overflowed
//   3  the lower triangle holds a non-finite value
// and the lower triangle of the factor is NaN where it is not 0.
template <class T>
struct CholeskyLaunch {
  const T* a = nullptr;
  std::int64_t batch = 0;
  int n = 0;  // 1 .. most_cholesky_rows
  bool hermitian = false;
  std::int64_t batch_stride = 0, row_stride = 0, col_stride = 0;
  T loading = 0;

  T* factor = nullptr;
  std::uint8_t* status = nullptr;  // batch
  T* workspace = nullptr;          // cholesky_kernel_workspace()
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

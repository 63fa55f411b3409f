// Entry of the kernel in csrc/ops/cholesky_backward.cu. The op has checked every argument; nothing
// here allocates or waits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/matrix_batch.hpp"

namespace mahal {

// The arrays hold float where `single` and double elsewhere, or pairs of these where `hermitian`.
// Strides, those of the batch included, are in entries; in the batch a is the factor and b the
// gradient. The result is that of the op.
struct CholeskyBackwardLaunch {
  const void* factor = nullptr;
  const void* grad = nullptr;
  bool single = false;
  bool hermitian = false;
  MatrixBatch batch;
  std::int64_t factor_row = 0, factor_col = 0, grad_row = 0, grad_col = 0;
  int n = 0;
  double loading = 0;
  void* out = nullptr;          // contiguous
  double* workspace = nullptr;  // pull_room(n, hermitian, count)
};

// A block of threads works in shared memory where a matrix fits there, else in its share of the
// workspace.
inline constexpr std::size_t pull_shared_bytes = 47 * 1024;
inline constexpr std::int64_t pull_blocks = 128;

// Both triangles of n x (n + 1) numbers, and the reciprocals of the diagonal: pairs of doubles.
constexpr std::int64_t pull_doubles(std::int64_t n, bool hermitian) {
  return n * (n + 1) * (hermitian ? 2 : 1) + n + n % 2;
}
constexpr bool pulls_in_shared(std::int64_t n, bool hermitian) {
  return sizeof(double) * static_cast<std::size_t>(pull_doubles(n, hermitian)) <= pull_shared_bytes;
}
constexpr std::int64_t pull_room(std::int64_t n, bool hermitian, std::int64_t count) {
  if (pulls_in_shared(n, hermitian)) return 0;
  return std::min(count, pull_blocks) * pull_doubles(n, hermitian);
}

namespace cuda {
void cholesky_backward(const CholeskyBackwardLaunch& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void cholesky_backward(const CholeskyBackwardLaunch& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

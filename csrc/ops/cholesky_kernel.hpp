// Kernels of the Cholesky factorisation. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"

namespace mahal {

// `count` matrices, `matrix_stride` elements apart, at most `lanes` of them. An entry of a complex
// matrix is two elements.
template <class T>
struct CholeskyBlock {
  const T* in;
  std::ptrdiff_t matrix_stride, row_stride, col_stride;
  T* out;  // contiguous, upper triangle zero
  bool hermitian;
  int n;
  int count;
  T tolerance;  // smallest pivot, relative to its original diagonal entry
  T loading;    // times trace / n, added to the diagonal
  bool stream;  // out need not stay in cache
  std::uint8_t* failed;
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct CholeskyKernel {
  static int lanes(float);
  static int lanes(double);
  static std::size_t scratch_bytes(const CholeskyBlock<float>&);
  static std::size_t scratch_bytes(const CholeskyBlock<double>&);
  static void factor(const CholeskyBlock<float>&);
  static void factor(const CholeskyBlock<double>&);
  // One matrix, lower triangle in place (row-major, leading dimension ld a multiple of 8, aligned),
  // with the reciprocals of its diagonal. False when a pivot is not above tolerance * diagonal.
  static bool factor_one(double* a, int n, std::ptrdiff_t ld, double tolerance, double* inverse);
};

}  // namespace mahal

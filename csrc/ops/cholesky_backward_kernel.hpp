// Kernels of the gradient of the Cholesky factorisation. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "ops/covariance_distance_kernel.hpp"

namespace mahal {

// `count` matrices, at most `lanes` of them; the last one fills the lanes that are left. T is the
// real type; strides are in elements of it.
template <class T>
struct CholeskyBackwardBlock {
  const T* factor[most_matrix_lanes];
  const T* grad[most_matrix_lanes];
  std::ptrdiff_t factor_row, factor_col, grad_row, grad_col;
  int n;
  int count;
  bool complex;
  double loading;
  T* out;         // contiguous
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

// One matrix. All arrays are row-major with `padded` elements to a row, a multiple of 16.
struct FactorGradient {
  const double* lower;             // zero above the diagonal and past n
  const double* inverse_diagonal;  // n
  int n, padded;
  double* matrix;  // in: gradient of the factor, zero above the diagonal and past n; out: of the
                   // matrix, symmetric
  double* work;    // padded x padded
  void* scratch;   // factor_gradient_scratch_bytes(padded)
};

constexpr std::size_t factor_gradient_scratch_bytes(int padded) {
  return static_cast<std::size_t>(padded) * (16 * sizeof(double) + 2 * sizeof(void*));
}

template <Isa I>
struct CholeskyBackwardKernel {
  static int lanes();
  static std::size_t scratch_bytes(int n, bool complex);
  static void run(const CholeskyBackwardBlock<float>&);
  static void run(const CholeskyBackwardBlock<double>&);
  static void one(const FactorGradient&);
};

}  // namespace mahal

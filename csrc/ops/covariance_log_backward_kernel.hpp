// Gradients of logarithms of covariance matrices. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "ops/covariance_distance_kernel.hpp"

namespace mahal {

// `count` matrices, at most `lanes` of them; the last one fills the lanes that are left. T is the
// real type; strides are in elements of it. Gradients are contiguous.
template <class T>
struct CovarianceLogBackwardBlock {
  const T* a[most_matrix_lanes];
  const T* grad[most_matrix_lanes];
  std::uint8_t status[most_matrix_lanes];
  std::ptrdiff_t row_stride, col_stride;
  int n;
  int count;
  bool complex;
  double loading;
  T* grad_a;      // of the first matrix
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct CovarianceLogBackwardKernel {
  static int lanes();
  static std::size_t scratch_bytes(int n, bool complex);
  static void run(const CovarianceLogBackwardBlock<float>&);
  static void run(const CovarianceLogBackwardBlock<double>&);
};

}  // namespace mahal

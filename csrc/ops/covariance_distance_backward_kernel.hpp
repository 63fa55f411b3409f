// Gradients of scores of pairs of covariance matrices. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "mahal/covariance_distance.hpp"
#include "ops/covariance_distance_kernel.hpp"

namespace mahal {

// `count` pairs, at most `lanes` of them; the last one fills the lanes that are left. T is the real
// type; strides are in elements of it.
template <class T>
struct CovarianceDistanceBackwardBlock {
  const T* a[most_matrix_lanes];
  const T* b[most_matrix_lanes];
  const T* score[most_matrix_lanes];
  const T* grad[most_matrix_lanes];
  std::uint8_t status[most_matrix_lanes];
  std::ptrdiff_t a_row_stride, a_col_stride, b_row_stride, b_col_stride;
  int n;
  int count;
  bool complex;
  CovarianceDistanceParams params;
  T* grad_a;  // of the first pair; null where not wanted
  T* grad_b;
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct CovarianceDistanceBackwardKernel {
  static int lanes();
  static std::size_t scratch_bytes(int n, bool complex);
  static void run(const CovarianceDistanceBackwardBlock<float>&);
  static void run(const CovarianceDistanceBackwardBlock<double>&);
};

}  // namespace mahal

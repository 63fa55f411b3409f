// Logarithms of covariance matrices. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "ops/covariance_distance_kernel.hpp"

namespace mahal {

// `count` matrices, at most `lanes` of them; the last one fills the lanes that are left. T is the
// real type; strides are in elements of it.
template <class T>
struct CovarianceLogBlock {
  const T* a[most_matrix_lanes];
  std::ptrdiff_t row_stride, col_stride;
  int n;
  int count;
  bool complex;
  double loading;
  double tolerance;      // smallest pivot, relative to its original diagonal entry
  T* out;                // contiguous
  std::uint8_t* status;  // status_ok or status_singular
  void* scratch;         // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct CovarianceLogKernel {
  static int lanes();
  static std::size_t scratch_bytes(int n, bool complex);
  static void run(const CovarianceLogBlock<float>&);
  static void run(const CovarianceLogBlock<double>&);
};

}  // namespace mahal

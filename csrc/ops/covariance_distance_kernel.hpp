// Scores of pairs of covariance matrices. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "mahal/covariance_distance.hpp"

namespace mahal {

inline constexpr int most_matrix_lanes = 8;  // float64 lanes of the widest vectors

// `count` pairs, at most `lanes` of them; the last one fills the lanes that are left. T is the real
// type; strides are in elements of it.
template <class T>
struct CovarianceDistanceBlock {
  const T* a[most_matrix_lanes];
  const T* b[most_matrix_lanes];
  std::ptrdiff_t a_row_stride, a_col_stride, b_row_stride, b_col_stride;
  int n;
  int count;
  bool complex;
  CovarianceDistanceParams params;
  double tolerance;  // smallest pivot, relative to its original diagonal entry
  T* score;
  std::uint8_t* status;  // status_ok or status_singular
  void* scratch;         // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct CovarianceDistanceKernel {
  static int lanes();
  static std::size_t scratch_bytes(int n, bool complex);
  static void run(const CovarianceDistanceBlock<float>&);
  static void run(const CovarianceDistanceBlock<double>&);
};

}  // namespace mahal

// Kernels of stationary fields on a torus. Plain data only: included by the per-ISA sources.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/hartley.hpp"
#include "core/isa.hpp"

namespace mahal {

// One plane. Null pointers: not wanted, not given.
template <class T>
struct GrfBlock {
  HartleyPlan<T> rows, cols;  // along each axis
  const T* field;
  std::ptrdiff_t row_stride, col_stride;
  bool centered;
  // For every group of `lanes` row frequencies: (cols / 2 + 1) x lanes.
  const T* precision;
  const T* slope;
  T field_scale;
  T* field_gradient;  // contiguous

  const T* log_variance;
  std::ptrdiff_t log_row_stride, log_col_stride;
  double shift;
  T log_scale;
  T* log_variance_gradient;  // contiguous

  bool stream;   // the gradients need not stay in cache
  bool ahead;    // planes are small and follow each other: ask for the next one meanwhile
  T* scratch;    // scratch_elements(), 64-byte aligned, zero at the first call
  double* sums;  // quad, slope, rise, excess
};

template <Isa I>
struct GrfKernel {
  static int lanes(float);
  static int lanes(double);
  static std::int64_t scratch_elements(const GrfBlock<float>&);
  static std::int64_t scratch_elements(const GrfBlock<double>&);
  static void field(const GrfBlock<float>&);
  static void field(const GrfBlock<double>&);
  static void log_variance(const GrfBlock<float>&);
  static void log_variance(const GrfBlock<double>&);
};

}  // namespace mahal

// Entries of the kernels of stationary fields in csrc/ops/grf.cu. The op has checked every
// argument; nothing here allocates or waits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/hartley.hpp"
#include "core/matrix_batch.hpp"

namespace mahal {

// Planes of up to grf_small x grf_small pixels take one launch.
inline constexpr int grf_small = 64;
// Pixels of a plane's log-variance that one block of a larger plane sums.
inline constexpr int grf_chunk = 8192;

// The arguments of the op, with strides in elements. Null pointers: not given, not wanted. The
// plans have no tables and start from single elements.
template <class T>
struct GrfLaunch {
  MatrixBatch batch;
  HartleyPlan<T> rows, cols;
  const T* field = nullptr;
  std::int64_t row_stride = 0, col_stride = 0;
  const T* log_variance = nullptr;
  std::int64_t log_row_stride = 0, log_col_stride = 0;
  bool centered = false;
  double shift = 0;
  const T* precision = nullptr;  // quarters
  const T* slope = nullptr;
  const T* weight = nullptr;
  double value_terms[3]{}, range_terms[3]{}, variance_terms[3]{};
  double field_scale = 1;

  T *value = nullptr, *range_slope = nullptr, *variance_slope = nullptr;
  T *field_gradient = nullptr, *log_variance_gradient = nullptr;

  // Of larger planes only.
  T* means = nullptr;                // one per plane
  T* between = nullptr;              // like the field, contiguous; may be field_gradient
  double* sums = nullptr;            // quad and slope of every tile of columns
  double* excesses = nullptr;        // rise and excess of every chunk
  int row_lines = 0, col_lines = 0;  // lines of a block along each axis, from plan_grf_lines
};

// Tiles of columns and chunks of pixels that one plane is cut into.
template <class T>
std::int64_t grf_tiles(const GrfLaunch<T>& p) {
  return (p.cols.n + p.col_lines - 1) / p.col_lines;
}
template <class T>
std::int64_t grf_chunks(const GrfLaunch<T>& p) {
  return (static_cast<std::int64_t>(p.rows.n) * p.cols.n + grf_chunk - 1) / grf_chunk;
}

namespace cuda {
// Lines of n elements that a block holds at once, up to 16; 0 where not one fits.
int grf_lines(const HartleyPlan<float>& plan);
int grf_lines(const HartleyPlan<double>& plan);
void grf(const GrfLaunch<float>& arguments, std::uintptr_t stream);
void grf(const GrfLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
int grf_lines(const HartleyPlan<float>& plan);
int grf_lines(const HartleyPlan<double>& plan);
void grf(const GrfLaunch<float>& arguments, std::uintptr_t stream);
void grf(const GrfLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

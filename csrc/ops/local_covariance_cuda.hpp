// Entry of the local covariance kernels in csrc/ops/local_covariance.cu: one call for any number of
// windows. The op has checked every argument; nothing here allocates or waits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/windows.hpp"

namespace mahal {

// Strides are in elements of T and may have any sign; complex bands are pairs of neighbours in
// memory. The outputs are contiguous:
//   mean        rows x cols x window_count x bands
//   covariance  rows x cols x window_count x bands x bands
// A window that holds an unmasked non-finite pixel gives NaN in both; one without any sample gives
// NaN in both; one with no more than ddof samples gives NaN in the covariance. With the border
// `valid`, pixels whose outer window does not lie inside the image give NaN in both.
template <class T>
struct LocalCovarianceLaunch {
  const T* image = nullptr;
  std::int64_t rows = 0, cols = 0;
  int bands = 0;
  bool complex = false;
  std::int64_t row_stride = 0, col_stride = 0, band_stride = 0;

  const std::uint8_t* mask = nullptr;  // nonzero: use the pixel; nullptr: use all
  std::int64_t mask_row_stride = 0, mask_col_stride = 0;

  const Window* windows = nullptr;  // in host memory, read before the call returns
  int window_count = 0;
  Border border = Border::shift;
  int ddof = 1;
  bool center = true;  // false: zero mean assumed

  T* mean = nullptr;
  T* covariance = nullptr;
  std::uint8_t* pixel_states = nullptr;  // workspace, rows x cols bytes
};

namespace cuda {
void local_covariance(const LocalCovarianceLaunch<float>& arguments, std::uintptr_t stream);
void local_covariance(const LocalCovarianceLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void local_covariance(const LocalCovarianceLaunch<float>& arguments, std::uintptr_t stream);
void local_covariance(const LocalCovarianceLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

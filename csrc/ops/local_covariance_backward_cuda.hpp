// Entry of the kernels in csrc/ops/local_covariance_backward.cu, for one window. The op has checked
// every argument; nothing here allocates or waits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "mahal/windows.hpp"

namespace mahal {

// Strides are in real elements and may have any sign; complex numbers are pairs of neighbours.
template <class T>
struct LocalCovarianceBackwardLaunch {
  const T* image = nullptr;
  int rows = 0, cols = 0;
  int channels = 0;  // real ones: two for a complex band
  bool complex = false;
  std::int64_t row_stride = 0, col_stride = 0, band_stride = 0;
  const std::uint8_t* mask = nullptr;
  std::int64_t mask_row_stride = 0, mask_col_stride = 0;
  Window window;
  Border border = Border::shift;
  int ddof = 1;
  bool center = true;
  const T* mean = nullptr;  // gradients, or nullptr
  std::int64_t mean_row = 0, mean_col = 0, mean_i = 0;
  const T* covariance = nullptr;
  std::int64_t covariance_row = 0, covariance_col = 0, covariance_i = 0, covariance_j = 0;
  T* gradient = nullptr;  // contiguous
  bool accumulate = false;
  bool first = true;  // of the windows: pixel states and origin are not there yet

  // Workspace.
  std::uint8_t* states = nullptr;  // per pixel
  std::uint8_t* broken = nullptr;  // per pixel: its gradient is not finite
  double* weights = nullptr;       // two per pixel: 1 / (n - ddof) and 1 / n, or 0
  double* origin = nullptr;        // channels
  double* means = nullptr;         // channels of every pixel, relative to the origin
  double* sums = nullptr;          // windows x strip_rows x cols x adjoint_channels
  int strip_rows = 0;
};

// Packed symmetric matrix, vector, and whether either is broken.
inline std::int64_t adjoint_channels(std::int64_t channels, bool matrices) {
  return (matrices ? channels * (channels + 1) / 2 : 0) + channels + 1;
}

// Rows whose sums are kept at a time: what fits into the second-level cache of a large device, but
// not so few that the windows start over all the time.
inline int adjoint_strip_rows(const Window& window, std::int64_t rows, std::int64_t cols,
                              std::int64_t channels) {
  constexpr std::int64_t bytes = 32 << 20;
  const std::int64_t row_bytes =
      8 * cols * adjoint_channels(channels, true) * (window.inner > 0 ? 2 : 1);
  return static_cast<int>(std::min(rows, std::max<std::int64_t>(bytes / row_bytes, window.outer)));
}

namespace cuda {
void local_covariance_backward(const LocalCovarianceBackwardLaunch<float>& arguments,
                               std::uintptr_t stream);
void local_covariance_backward(const LocalCovarianceBackwardLaunch<double>& arguments,
                               std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void local_covariance_backward(const LocalCovarianceBackwardLaunch<float>& arguments,
                               std::uintptr_t stream);
void local_covariance_backward(const LocalCovarianceBackwardLaunch<double>& arguments,
                               std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

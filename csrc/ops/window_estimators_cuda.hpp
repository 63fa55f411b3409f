// Entry of the kernels in csrc/ops/window_estimators.cu. The op has checked every argument; nothing
// here allocates or waits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/estimators.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/windows.hpp"

namespace mahal {

// Numbers are float or double, or pairs of them where complex. Strides are in floats or doubles and
// may have any sign. Either mean and covariance or score is given; all of them are contiguous:
//   mean        rows x cols x window_count x bands
//   covariance  rows x cols x window_count x bands x bands
//   score       rows x cols x window_count, or of one window and targets rows x cols x maps
//   status      rows x cols x window_count
struct WindowEstimatorsLaunch {
  const void* image = nullptr;
  bool single = false;  // float, not double: the image and all results but the status
  std::int64_t rows = 0, cols = 0;
  int bands = 0;
  bool complex = false;
  std::int64_t row_stride = 0, col_stride = 0, band_stride = 0;

  const std::uint8_t* mask = nullptr;  // nonzero: use the pixel; nullptr: use all
  std::int64_t mask_row_stride = 0, mask_col_stride = 0;

  const Window* windows = nullptr;  // in host memory, read before the call returns
  int window_count = 0;
  Border border = Border::shift;
  Estimation estimation;
  int ddof = 1;
  bool center = true;
  double smallest_pivot = 0;  // relative to the diagonal entry

  const void* targets = nullptr;  // spectra that the scores are about; nullptr: squared distances
  bool targets_single = false;
  std::int64_t target_stride = 0, target_band_stride = 0;
  int target_count = 0;
  MatchedScore kind{};
  int maps = 1;  // scores of a pixel: one for each target, or one of a subspace

  void* mean = nullptr;
  void* covariance = nullptr;
  void* score = nullptr;
  std::uint8_t* status = nullptr;
  void* room = nullptr;  // window_estimators_room(...) bytes, 16-byte aligned
};

namespace cuda {
std::size_t window_estimators_room(const WindowEstimatorsLaunch& arguments);
void window_estimators(const WindowEstimatorsLaunch& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
std::size_t window_estimators_room(const WindowEstimatorsLaunch& arguments);
void window_estimators(const WindowEstimatorsLaunch& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

// Maps of window means and covariances. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"
#include "core/window_axis.hpp"

namespace mahal {

// Rows [row_begin, row_end) of columns [col_begin, col_end), and the covariance rows
// [band_begin, band_end) of every pixel in them.
template <class T>
struct LocalCovarianceBlock {
  PixelList<T> pixels;         // `padded` is a multiple of 8 here
  const std::uint8_t* status;  // per pixel, or nullptr; pixels not 0 are left out
  const double* offset;        // bands; subtracted first, so that large offsets cost no digits
  WindowAxis rows, cols;
  int outer, inner;
  int row_begin, row_end, col_begin, col_end, band_begin, band_end;
  const std::int32_t* count;  // samples per pixel, or nullptr: `samples` everywhere
  std::ptrdiff_t count_stride;
  int samples;
  int ddof;
  bool center;     // false: the mean is zero and `offset` too
  bool hermitian;  // bands are real and imaginary parts by turns, the covariance is complex
  T* mean;         // rows x cols pixels, `mean_stride` elements apart; nullptr: not wanted
  T* covariance;   // likewise, bands x bands each; half the rows where hermitian
  std::ptrdiff_t mean_stride, covariance_stride;
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct LocalCovarianceKernel {
  static std::size_t scratch_bytes(const LocalCovarianceBlock<float>&);
  static std::size_t scratch_bytes(const LocalCovarianceBlock<double>&);
  static void run(const LocalCovarianceBlock<float>&);
  static void run(const LocalCovarianceBlock<double>&);
};

}  // namespace mahal

// A strided image as the kernels see it. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mahal {

// A strided image seen as a list of pixels in row-major order. Strides in elements.
template <class T>
struct PixelList {
  const T* data;
  std::int64_t cols;  // pixels per row
  std::ptrdiff_t row_stride, col_stride, band_stride;
  int bands;
  int padded;  // bands rounded up to a multiple of 16
};

}  // namespace mahal

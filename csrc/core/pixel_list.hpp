// A strided image as the kernels see it. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mahal {

// A strided image seen as a list of pixels in row-major order. Strides in elements. A complex image
// is one of twice the bands, real and imaginary parts by turns.
template <class T>
struct PixelList {
  const T* data;
  std::int64_t cols;  // pixels per row
  std::ptrdiff_t row_stride, col_stride, band_stride;
  int parts;  // 1: bands are pairs of neighbours in memory, `band_stride` from pair to pair; else 0
  int bands;
  int padded;  // bands rounded up to a multiple of 16
};

namespace {

// Where band j of a pixel lies.
template <class List>
__attribute__((always_inline)) inline std::ptrdiff_t band_offset(const List& p, int j) {
  return (j >> p.parts) * p.band_stride + (j & p.parts);
}

}  // namespace
}  // namespace mahal

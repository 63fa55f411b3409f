// Access to the pixels of a strided image as centred float64 spectra. Kernel side.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/pixel_list.hpp"
#include "core/simd.hpp"

namespace mahal {

namespace {

template <class T>
MAHAL_INLINE const T* pixel_address(const PixelList<T>& p, std::int64_t index) {
  return p.data + index / p.cols * p.row_stride + index % p.cols * p.col_stride;
}

// dst[j] = pixel[j] - offset[j] in float64, zeros up to `padded`. All of dst is whole vectors.
template <class T>
MAHAL_INLINE void load_centred(const PixelList<T>& p, const T* src, const double* offset,
                               double* dst) {
  using S = Simd<double>;
  constexpr int L = S::lanes;
  const int bands = p.bands;
  const int padded = p.padded;
  int j = 0;
  if (p.band_stride == 1) {
    for (; j + L <= bands; j += L) {
      S::store(dst + j, S::widen(src + j) - S::loadu(offset + j));
    }
  }
  for (; j < bands; ++j) dst[j] = static_cast<double>(src[band_offset(p, j)]) - offset[j];
  for (; j < padded; ++j) dst[j] = 0;
}

}  // namespace
}  // namespace mahal

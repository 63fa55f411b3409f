// How kernels read the pixels of a strided image: tiles of pixels by bands, neighbouring threads at
// neighbouring elements.
#pragma once

#include <cstdint>

#include "core/device_background.hpp"
#include "core/simt.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

// padded_rows, which is for the host.
__device__ __forceinline__ int row_length(int bands) {
  return (bands + factor_block - 1) / factor_block * factor_block;
}

// Two neighbours in one load, where the first lies on 16 bytes.
struct alignas(16) Pair {
  double even, odd;
};

template <class T>
__device__ __forceinline__ std::int64_t pixel_offset(const PixelList<T>& p, std::int64_t pixel) {
  return pixel / p.cols * p.row_stride + pixel % p.cols * p.col_stride;
}

template <class T>
__device__ __forceinline__ std::int64_t band_element(const PixelList<T>& p, int band) {
  return (band >> p.parts) * static_cast<std::int64_t>(p.band_stride) + (band & p.parts);
}

// Calls visit(pixel, band, value) for the bands `first` to first + bands - 1 of `pixels` pixels, at
// most Pixels of them, that lie at `offsets`. A thread has Flight loads under way at a time.
template <int Pixels, int Threads, int Flight = 4, class T, class Visit>
__device__ __forceinline__ void visit_tile(const DevicePixels<T>& x, const std::int64_t* offsets,
                                           int pixels, int first, int bands, const Visit& visit) {
  const int thread = static_cast<int>(threadIdx.x);
  int pixel = x.along_bands ? thread / bands : thread % Pixels;
  int band = x.along_bands ? thread % bands : thread / Pixels;
  const int pixel_step = x.along_bands ? Threads / bands : 0;
  const int band_step = x.along_bands ? Threads % bands : Threads / Pixels;
  while (x.along_bands ? pixel < pixels : band < bands) {
    T value[Flight];
    int at_pixel[Flight], at_band[Flight];
  MAHAL_UNROLL
    for (int f = 0; f < Flight; ++f) {
      at_pixel[f] = pixel < pixels && band < bands ? pixel : -1;
      at_band[f] = band;
      value[f] = T(0);
      if (at_pixel[f] >= 0) {
        value[f] = x.list.data[offsets[pixel] + band_element(x.list, first + band)];
      }
      pixel += pixel_step;
      band += band_step;
      if (x.along_bands && band >= bands) {
        band -= bands;
        ++pixel;
      }
    }
    MAHAL_UNROLL
    for (int f = 0; f < Flight; ++f) {
      if (at_pixel[f] >= 0) visit(at_pixel[f], at_band[f], value[f]);
    }
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

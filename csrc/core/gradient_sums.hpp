// Partial sums over the pixels of an image, one set per chunk, which are joined in their order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/background.hpp"
#include "core/scratch.hpp"

namespace mahal {

// At most 16 chunks where there are sums; their number follows from the image alone.
inline std::int64_t gradient_chunk_pixels(std::int64_t pixels, bool sums) {
  return sums ? std::max<std::int64_t>(1024, (pixels + 15) / 16) : pixels_per_task;
}

inline std::int64_t gradient_chunks(std::int64_t pixels, std::int64_t chunk_pixels) {
  return std::max<std::int64_t>(1, (pixels + chunk_pixels - 1) / chunk_pixels);
}

// `chunks` runs of `size` elements to the first one.
inline void join_chunks(double* sums, std::int64_t size, std::int64_t chunks) {
  for (std::int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (std::int64_t j = 0; j < size; ++j) sums[j] += sums[chunk * size + j];
  }
}

}  // namespace mahal

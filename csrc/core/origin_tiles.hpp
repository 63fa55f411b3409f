// Tiles of an image whose pixels share an origin in CUDA kernels. Host side too.
#pragma once

#include <cstdint>

namespace mahal {

// Pixels that share an origin: what is subtracted from them, so that no sum of squares loses digits
// to an offset.
inline constexpr int origin_rows = 32, origin_cols = 128;

inline std::int64_t origin_tiles(std::int64_t rows, std::int64_t cols) {
  return ((rows - 1) / origin_rows + 1) * ((cols - 1) / origin_cols + 1);
}

}  // namespace mahal

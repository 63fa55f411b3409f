// The pixels of a map that have no window of their own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/windows.hpp"

namespace mahal {

// They take what the nearest pixel with a window has, or `none`. `values` per pixel.
template <class T>
void fill_edges(const WindowTables& t, bool copied, int rows, int cols, int values, T* map,
                T none) {
  for (int r = 0; r < rows; ++r) {
    const int from_row = std::clamp(r, t.rows_begin, t.rows_end - 1);
    for (int c = 0; c < cols; ++c) {
      const int from_col = std::clamp(c, t.cols_begin, t.cols_end - 1);
      if (from_row == r && from_col == c) continue;
      T* to = map + (static_cast<std::int64_t>(r) * cols + c) * values;
      const T* from = map + (static_cast<std::int64_t>(from_row) * cols + from_col) * values;
      for (int k = 0; k < values; ++k) to[k] = copied ? from[k] : none;
    }
  }
}

}  // namespace mahal

// Window positions along the two axes of an image, and counts of pixels in windows.
#pragma once

#include <cstdint>

#include "core/scratch.hpp"
#include "core/window_axis.hpp"
#include "mahal/windows.hpp"

namespace mahal {

struct WindowTables {
  WindowAxis rows, cols;
  int rows_begin, rows_end, cols_begin, cols_end;  // pixels that have a result
};

// Throws ValueError in the name of `op` unless the sides are odd, ordered and inside the image.
void check_window(const char* op, const Window& window, std::int64_t rows, std::int64_t cols);

WindowTables plan_windows(Scratch& scratch, const Window& window, Border border, int rows,
                          int cols);
void fill_windows(const WindowTables& tables, const Window& window, Border border, int rows,
                  int cols);

inline int window_samples(const Window& window) {
  return window.outer * window.outer - window.inner * window.inner;
}

// Integral image over the virtual positions of the windows, so that counts are exact.
struct WindowCounter {
  std::int32_t* table;  // (virtual rows + 1) x (virtual cols + 1)
  int margin, width;
};
WindowCounter plan_counter(Scratch& scratch, const Window& window, int rows, int cols);
// Counts pixels for which counted(row, col) is true.
template <class F>
void fill_counter(const WindowCounter& counter, const WindowTables& tables, int rows, F&& counted) {
  const int height = rows + 2 * counter.margin;
  const int width = counter.width;
  for (int c = 0; c <= width; ++c) counter.table[c] = 0;
  for (int v = 0; v < height; ++v) {
    const std::int32_t* above = counter.table + static_cast<std::int64_t>(v) * (width + 1);
    std::int32_t* line = counter.table + static_cast<std::int64_t>(v + 1) * (width + 1);
    const int row = tables.rows.index[v - counter.margin];
    std::int32_t sum = 0;
    line[0] = 0;
    for (int u = 0; u < width; ++u) {
      sum += counted(row, tables.cols.index[u - counter.margin]) ? 1 : 0;
      line[u + 1] = above[u + 1] + sum;
    }
  }
}
std::int32_t count_window(const WindowCounter& counter, const WindowTables& tables,
                          const Window& window, int row, int col);

}  // namespace mahal

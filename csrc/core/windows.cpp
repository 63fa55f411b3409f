#include "core/windows.hpp"

#include <algorithm>
#include <string>

#include "mahal/error.hpp"

namespace mahal {

namespace {

// Mirror about the edge samples, which are not repeated.
int mirrored(int position, int n) {
  if (n == 1) return 0;
  const int period = 2 * (n - 1);
  const int p = ((position % period) + period) % period;
  return p < n ? p : period - p;
}

void fill_axis(const WindowAxis& axis, const Window& window, Border border, int n) {
  auto* outer = const_cast<std::int32_t*>(axis.outer_start);
  auto* inner = const_cast<std::int32_t*>(axis.inner_start);
  auto* index = const_cast<std::int32_t*>(axis.index);
  const int half = window.outer / 2;
  for (int v = -half; v < n + half; ++v) index[v] = mirrored(v, n);
  const auto start = [&](int i, int side) {
    return border == Border::reflect ? i - side / 2 : std::min(std::max(i - side / 2, 0), n - side);
  };
  for (int i = 0; i < n; ++i) {
    outer[i] = start(i, window.outer);
    inner[i] = window.inner > 0 ? start(i, window.inner) : 0;
  }
}

WindowAxis plan_axis(Scratch& scratch, const Window& window, int n) {
  WindowAxis axis;
  axis.outer_start = scratch.take<std::int32_t>(n);
  axis.inner_start = scratch.take<std::int32_t>(n);
  const int half = window.outer / 2;
  std::int32_t* index = scratch.take<std::int32_t>(n + 2 * half);
  axis.index = index ? index + half : nullptr;
  return axis;
}

}  // namespace

void check_window(const char* op, const Window& window, std::int64_t rows, std::int64_t cols) {
  const std::string came = window.inner > 0 ? "(" + std::to_string(window.inner) + ", " +
                                                  std::to_string(window.outer) + ")"
                                            : std::to_string(window.outer);
  if (window.outer < 1 || window.outer % 2 == 0 || window.inner < 0 ||
      (window.inner > 0 && window.inner % 2 == 0)) {
    throw_value_error(op, "window", "sides must be odd and positive", came);
  }
  if (window.inner >= window.outer) {
    throw_value_error(op, "window", "must be (inner, outer) with inner smaller than outer", came);
  }
  if (window.outer > rows || window.outer > cols) {
    throw_value_error(
        op, "window", "must not be larger than the image",
        came + " for " + std::to_string(rows) + " x " + std::to_string(cols) + " pixels");
  }
}

WindowTables plan_windows(Scratch& scratch, const Window& window, Border border, int rows,
                          int cols) {
  WindowTables tables;
  tables.rows = plan_axis(scratch, window, rows);
  tables.cols = plan_axis(scratch, window, cols);
  const int edge = border == Border::valid ? window.outer / 2 : 0;
  tables.rows_begin = edge;
  tables.rows_end = rows - edge;
  tables.cols_begin = edge;
  tables.cols_end = cols - edge;
  return tables;
}

void fill_windows(const WindowTables& tables, const Window& window, Border border, int rows,
                  int cols) {
  fill_axis(tables.rows, window, border, rows);
  fill_axis(tables.cols, window, border, cols);
}

WindowCounter plan_counter(Scratch& scratch, const Window& window, int rows, int cols) {
  WindowCounter counter;
  counter.margin = window.outer / 2;
  counter.width = cols + 2 * counter.margin;
  counter.table = scratch.take<std::int32_t>(
      (static_cast<std::int64_t>(rows) + 2 * counter.margin + 1) * (counter.width + 1));
  return counter;
}

std::int32_t count_window(const WindowCounter& counter, const WindowTables& tables,
                          const Window& window, int row, int col) {
  const auto box = [&](int top, int left, int side) {
    const std::int64_t stride = counter.width + 1;
    const std::int32_t* a = counter.table + (top + counter.margin) * stride + left + counter.margin;
    const std::int32_t* b = a + side * stride;
    return b[side] - b[0] - a[side] + a[0];
  };
  std::int32_t n = box(tables.rows.outer_start[row], tables.cols.outer_start[col], window.outer);
  if (window.inner > 0) {
    n -= box(tables.rows.inner_start[row], tables.cols.inner_start[col], window.inner);
  }
  return n;
}

}  // namespace mahal

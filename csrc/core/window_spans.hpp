// The windows of an axis as intervals of samples, and the other way round: for every sample the
// pixels whose windows hold it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/scratch.hpp"
#include "core/windows.hpp"
#include "ops/window_adjoint_kernel.hpp"

namespace mahal {

inline WindowSpans plan_spans(Scratch& scratch, Border border, std::int64_t length) {
  WindowSpans spans;
  spans.count = border == Border::reflect ? window_spans : 1;
  spans.length = length;
  spans.begin = scratch.take<std::int32_t>(spans.count * length);
  spans.end = scratch.take<std::int32_t>(spans.count * length);
  return spans;
}

namespace detail {

inline void set_span(const WindowSpans& spans, int span, std::int64_t i, int begin, int end) {
  const bool empty = begin >= end;
  const_cast<std::int32_t*>(spans.begin)[span * spans.length + i] = empty ? 0 : begin;
  const_cast<std::int32_t*>(spans.end)[span * spans.length + i] = empty ? 0 : end;
}

}  // namespace detail

// The samples of the window of `side` that starts at start[i], for every pixel i. Mirrored samples
// have intervals of their own.
inline void fill_spans(const WindowSpans& spans, const std::int32_t* start, int side) {
  const int n = static_cast<int>(spans.length);
  for (int i = 0; i < n; ++i) {
    const int end = start[i] + side;
    detail::set_span(spans, 0, i, std::max(start[i], 0), std::min(end, n));
    if (spans.count == 1) continue;
    detail::set_span(spans, 1, i, 1 - std::min(0, end), 1 - start[i]);
    detail::set_span(spans, 2, i, 2 * n - 1 - end, 2 * n - 1 - std::max(n, start[i]));
  }
}

// The pixels of [first, last) whose windows hold sample i. A pixel that holds it more than once, as
// a mirrored one, is in as many intervals. `start` never decreases.
inline void fill_adjoint_spans(const WindowSpans& spans, const std::int32_t* start, int side,
                               int first, int last) {
  const int n = static_cast<int>(spans.length);
  const auto holders = [&](int span, int i, int position) {
    const std::int32_t* begin = start + first;
    const std::int32_t* end = start + last;
    detail::set_span(spans, span, i,
                     static_cast<int>(std::upper_bound(begin, end, position - side) - start),
                     static_cast<int>(std::upper_bound(begin, end, position) - start));
  };
  for (int i = 0; i < n; ++i) {
    holders(0, i, i);
    if (spans.count == 1) continue;
    // The edge samples are not repeated.
    if (i > 0) {
      holders(1, i, -i);
    } else {
      detail::set_span(spans, 1, i, 0, 0);
    }
    if (i < n - 1) {
      holders(2, i, 2 * (n - 1) - i);
    } else {
      detail::set_span(spans, 2, i, 0, 0);
    }
  }
}

// How a result of the window adjoint is cut into tasks: by the sizes of the problem alone.
struct AdjointTiles {
  int strips, strip_rows, column_tiles, columns, source_columns;
};

inline AdjointTiles cut_adjoint(const Window& window, int rows, int cols, int channels) {
  // The sums of a tile should stay in the second-level cache.
  constexpr std::int64_t tile_bytes = 512 << 10;
  AdjointTiles t;
  // The windows at an edge reach further than half their side.
  const int reach = window.outer + window.outer / 2;
  const std::int64_t column_bytes = 8LL * channels * (window.inner > 0 ? 2 : 1);
  t.columns =
      static_cast<int>(std::clamp<std::int64_t>(tile_bytes / column_bytes - reach, 32, 256));
  t.column_tiles = (cols + t.columns - 1) / t.columns;
  t.columns = std::min(cols, ((cols + t.column_tiles - 1) / t.column_tiles + 7) / 8 * 8);
  t.column_tiles = (cols + t.columns - 1) / t.columns;
  t.source_columns = std::min(cols, t.columns + reach);
  const int most = std::clamp(2 * window.outer, 32, 128);
  t.strips = (rows + most - 1) / most;
  t.strip_rows = (rows + t.strips - 1) / t.strips;
  return t;
}

// Rows, columns and sources of one task.
template <class Block>
void place_tile(Block& block, const AdjointTiles& t, int rows, int cols, std::int64_t task) {
  const int strip = static_cast<int>(task / t.column_tiles);
  const int tile = static_cast<int>(task % t.column_tiles);
  block.row_begin = strip * t.strip_rows;
  block.row_end = std::min(rows, block.row_begin + t.strip_rows);
  block.col_begin = tile * t.columns;
  block.col_end = std::min(cols, block.col_begin + t.columns);
  block.source_begin = cols;
  block.source_end = 0;
  for (int w = 0; w < block.windows; ++w) {
    const WindowSpans& spans = block.col_spans[w];
    for (int k = 0; k < spans.count; ++k) {
      for (int c = block.col_begin; c < block.col_end; ++c) {
        const std::int64_t i = k * spans.length + c;
        if (spans.begin[i] >= spans.end[i]) continue;
        block.source_begin = std::min(block.source_begin, static_cast<int>(spans.begin[i]));
        block.source_end = std::max(block.source_end, static_cast<int>(spans.end[i]));
      }
    }
  }
}

}  // namespace mahal

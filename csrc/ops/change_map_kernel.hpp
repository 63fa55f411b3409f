// Change maps. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"
#include "mahal/change_map.hpp"

namespace mahal {

// Rows [row_begin, row_end) of columns [col_begin, col_end), all of them pixels on which a window
// is centred. T is the real type; strides are in elements of it.
template <class T>
struct ChangeMapBlock {
  PixelList<T> images[2];
  bool complex;
  const std::uint8_t* mask;  // nonzero: use; or nullptr
  std::ptrdiff_t mask_row_stride, mask_col_stride;
  int rows, cols;
  const std::int32_t* row_index;  // virtual position -> sample
  const std::int32_t* col_index;
  int row_begin, row_end, col_begin, col_end;
  ChangeMapParams params;
  double smallest_pivot;
  T* score;
  std::uint8_t* status;
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

// Rows and columns of a tile: they follow from the sizes of the problem alone.
struct ChangeMapTile {
  int rows, cols;
};

template <Isa I>
struct ChangeMapKernel {
  static std::size_t scratch_bytes(const ChangeMapParams&, int channels, bool complex,
                                   ChangeMapTile);
  static void run(const ChangeMapBlock<float>&);
  static void run(const ChangeMapBlock<double>&);
};

// Float64 sums per column of a tile: samples, channels of both images, products.
constexpr std::int64_t change_map_planes(Metric metric, std::int64_t channels, bool complex) {
  const std::int64_t parts = complex ? 2 : 1;
  const std::int64_t products = complex ? channels * channels : channels * (channels + 1) / 2;
  return 1 + 2 * parts * channels + (metric == Metric::frobenius ? 1 : 2) * products;
}

}  // namespace mahal

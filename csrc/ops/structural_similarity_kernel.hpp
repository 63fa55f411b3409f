// Structural similarity. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

inline constexpr int similarity_padding = 8;  // of the tables of columns: a vector of lanes

// One channel of rows [row_begin, row_end) of columns [col_begin, col_end), all of them pixels on
// which a window is centred.
template <class T>
struct StructuralSimilarityBlock {
  PixelList<T> images[2];  // `data` at the channel
  bool clip;
  int rows, cols, window;
  const std::int32_t* row_index;  // virtual position -> sample
  const std::int32_t* col_index;
  const double* weights;  // of the rows and columns of a window
  // Per row and column of the image: sum of the weights inside, and their number.
  const double* row_weights;
  const double* col_weights;
  const double* row_counts;
  const double* col_counts;
  int row_begin, row_end, col_begin, col_end;
  double c1, c2, ddof;
  T* score;  // at the channel
  std::ptrdiff_t channels;
  double* scratch;
};

template <Isa I>
struct StructuralSimilarityKernel {
  static std::size_t scratch_bytes(int window, int tile_rows, int tile_cols);
  static void run(const StructuralSimilarityBlock<float>&);
  static void run(const StructuralSimilarityBlock<double>&);
};

}  // namespace mahal

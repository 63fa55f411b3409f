// Gradients of structural similarity. Plain data only.
#pragma once

#include <cstddef>

#include "core/isa.hpp"
#include "ops/structural_similarity_kernel.hpp"

namespace mahal {

// One channel of rows [row_begin, row_end) of columns [col_begin, col_end).
template <class T>
struct StructuralSimilarityBackwardBlock {
  StructuralSimilarityBlock<T> images;  // without a tile; its scratch is not used
  int row_begin, row_end, col_begin, col_end;
  int centre_rows_begin, centre_rows_end;  // pixels on which a window is centred
  int centre_cols_begin, centre_cols_end;
  bool shift;  // others have the score of the nearest one
  // What pixel q adds to the sums of the window on q - window / 2 + t, along an axis: element
  // q * window + t for rows, and t * adjoint_stride + q for columns.
  const double* row_adjoint;
  const double* col_adjoint;
  std::ptrdiff_t adjoint_stride;
  const T* grad;    // at the channel
  T* gradients[2];  // likewise; null where not wanted
  double* scratch;
};

template <Isa I>
struct StructuralSimilarityBackwardKernel {
  static std::size_t scratch_bytes(int window, int tile_rows, int tile_cols);
  static void run(const StructuralSimilarityBackwardBlock<float>&);
  static void run(const StructuralSimilarityBackwardBlock<double>&);
};

}  // namespace mahal

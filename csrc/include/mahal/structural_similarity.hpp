// Structural similarity of two images.
#pragma once

#include <cstddef>

#include "mahal/change_map.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

struct StructuralSimilarityParams {
  int window = 7;    // side, odd
  double sigma = 0;  // of Gaussian weights in pixels; 0: all weights are equal
  double data_range = 1;
  double k1 = 0.01;
  double k2 = 0.03;
  int ddof = 1;  // covariances are multiplied by n / (n - ddof) for the n pixels of a window
  MapBorder border = MapBorder::reflect;
};

MAHAL_API std::size_t structural_similarity_workspace(const StructuralSimilarityParams& params,
                                                      const TensorView& first,
                                                      const TensorView& second, int threads);
// first, second, score: (rows, cols, channels) of one shape and dtype (float32, float64). NaN where
// a window holds a value that is not finite, or where Border::valid gives none. Sums run in
// float64.
MAHAL_API void structural_similarity(const StructuralSimilarityParams& params,
                                     const TensorView& first, const TensorView& second,
                                     const TensorView& score, const Workspace& workspace,
                                     const Execution& execution);

}  // namespace mahal

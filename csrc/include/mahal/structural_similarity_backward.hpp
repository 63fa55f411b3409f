// Gradients of the structural similarity of two images.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/structural_similarity.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t structural_similarity_backward_workspace(
    const StructuralSimilarityParams& params, const TensorView& first, const TensorView& second,
    int threads);
// first, second: as structural_similarity took them. grad: (rows, cols, channels) of their dtype,
// contiguous, the derivative of a number by every score. grad_first, grad_second: like grad; one of
// them may be left out. A window whose score is NaN gives NaN to all of its pixels, but nothing
// where its grad is zero; nor do pixels that have no window of their own with MapBorder::valid.
MAHAL_API void structural_similarity_backward(const StructuralSimilarityParams& params,
                                              const TensorView& first, const TensorView& second,
                                              const TensorView& grad, const TensorView& grad_first,
                                              const TensorView& grad_second,
                                              const Workspace& workspace,
                                              const Execution& execution);

}  // namespace mahal

// Gradient of a function of local RX, ACE and matched filter scores.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/tensor.hpp"
#include "mahal/windows.hpp"

namespace mahal {

struct WindowScoresBackwardParams {
  Window window;
  Border border = Border::shift;
  MatchedScore score = MatchedScore::ace;  // with targets only; not cem
  bool center = true;                      // false: zero mean assumed, covariance with divisor N
};

MAHAL_API std::size_t window_scores_backward_workspace(const WindowScoresBackwardParams& params,
                                                       const TensorView& image,
                                                       const TensorView& target,
                                                       const TensorView& covariance, int threads);
// image: (rows, cols, bands), real. target: (targets, bands), or not given: the score is RX.
// covariance: (bands, bands) where it was given in place of that of the windows. mask: as for rx.
// status: (rows, cols) uint8 of the scores: pixels whose status is not 0 give nothing.
// score_gradient: (rows, cols, targets), of one map with RX and subspace_ace, dtype of the image,
// any strides. gradient: the shape and dtype of the image. target_gradient, covariance_gradient:
// shapes of these in float64, or not given. A gradient of a score that is not finite makes NaN of
// the pixels of its window alone. Works in float64. On a CUDA device a covariance that is not
// positive definite is no error: it has no scores, and so no gradients.
MAHAL_API void window_scores_backward(const WindowScoresBackwardParams& params,
                                      const TensorView& image, const TensorView& target,
                                      const TensorView& covariance, const TensorView& mask,
                                      const TensorView& status, const TensorView& score_gradient,
                                      const TensorView& gradient, const TensorView& target_gradient,
                                      const TensorView& covariance_gradient,
                                      const Workspace& workspace, const Execution& execution);

}  // namespace mahal

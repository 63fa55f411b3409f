// Detectors of known targets: adaptive cosine, matched filter, constrained energy minimisation.
#pragma once

#include <cstddef>

#include "mahal/estimators.hpp"
#include "mahal/export.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/rx.hpp"
#include "mahal/tensor.hpp"
#include "mahal/windows.hpp"

namespace mahal {

struct MatchedParams {
  MatchedScore score = MatchedScore::ace;
  Window window;  // outer 0: global statistics
  Border border = Border::shift;
  Singular singular = Singular::load;
  bool center = true;     // false: zero mean assumed, covariance with divisor N
  Estimation estimation;  // of S; not for cem
  Progress progress;      // with a window only
};

MAHAL_API std::size_t matched_workspace(const MatchedParams& params, const TensorView& image,
                                        const TensorView& target, const TensorView& background,
                                        const TensorView& covariance, int threads);
// image, background, covariance, mask and status: as for rx; cem takes neither covariance nor
// window. Windows of complex images, without a mean or with another estimator than scm are those of
// window_estimators: singular ones get NaN.
// target: (targets, bands), dtype of the image or float64, in the units of the image. score: the
// shape of the pixels and one last axis of targets (none for subspace_ace), dtype of the image.
// Throws ValueError when a target lies on the mean, or when the targets of a subspace are linearly
// dependent; with a window or on a device such pixels get NaN and the status 2.
MAHAL_API void matched(const MatchedParams& params, const TensorView& image,
                       const TensorView& target, const TensorView& background,
                       const TensorView& covariance, const TensorView& mask,
                       const TensorView& score, const TensorView& status,
                       const Workspace& workspace, const Execution& execution);

}  // namespace mahal

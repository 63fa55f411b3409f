// Covariance estimators beyond the sample covariance, for the window of every pixel.
#pragma once

#include <cstddef>

#include "mahal/estimators.hpp"
#include "mahal/export.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/rx.hpp"
#include "mahal/tensor.hpp"
#include "mahal/windows.hpp"

namespace mahal {

struct WindowEstimatorsParams {
  const char* caller = "window_estimators";  // the op that messages name
  const Window* windows = nullptr;
  int window_count = 0;
  Border border = Border::shift;
  Estimation estimation;
  int ddof = 1;        // of scm and loading
  bool center = true;  // false: zero mean assumed, divisor N
  // (targets, bands), dtype of the image or its double: what `score` is about. Not given: RX.
  TensorView target{};
  MatchedScore kind = MatchedScore::ace;  // of the target; not cem
  Progress progress;
};

MAHAL_API std::size_t window_estimators_workspace(const WindowEstimatorsParams& params,
                                                  const TensorView& image, int threads);
// image: (rows, cols, bands), real or complex; mask: boolean (rows, cols), false leaves a pixel
// out. Either mean: (rows, cols, windows, bands) and covariance: (rows, cols, windows, bands,
// bands), dtype of the image, or, with one window, score: (rows, cols, windows), real: the squared
// Mahalanobis distance of the pixel to its window. There Tyler's S is scaled so that the samples
// have a mean distance of p. With a target, score is that of every target, (rows, cols, targets),
// or (rows, cols) for a subspace, and status has an element per pixel. status: uint8 (rows, cols,
// windows): 0 done; 1 too few samples; 2 a singular or vanishing estimate; 3 a value that is not
// finite; 4 at the edge with Border::valid or, with score, a masked pixel; 5 not converged. A
// sample covariance of fewer samples than bands has the status 1 with a target, and a target on the
// mean of its window, or one that depends on the others of a subspace, the status 2. Results are
// NaN for 1 to 4, apart from the estimate 0 of identical samples under a shrinkage estimator, and
// the last iterate for 5. All arithmetic is in float64.
MAHAL_API void window_estimators(const WindowEstimatorsParams& params, const TensorView& image,
                                 const TensorView& mask, const TensorView& mean,
                                 const TensorView& covariance, const TensorView& score,
                                 const TensorView& status, const Workspace& workspace,
                                 const Execution& execution);

}  // namespace mahal

// Detectors of known targets: adaptive cosine, matched filter, constrained energy minimisation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/export.hpp"
#include "mahal/rx.hpp"
#include "mahal/tensor.hpp"
#include "mahal/windows.hpp"

namespace mahal {

// With y = L^-1 (x - m), w = L^-1 (t - m) and the covariance S = L L^T of the background:
//   ace                <w, y>^2 / (|w|^2 |y|^2)
//   signed_ace         <w, y> / (|w| |y|)
//   subspace_ace       |Q^T y|^2 / |y|^2, Q an orthonormal basis of all w: one map for all targets
//   filter             <w, y> / |w|^2
//   normalized_filter  <w, y> / |w|
//   cem                filter with m = 0 and the correlation matrix 1 / N sum x x^T for S
//   centered_cem       filter under another name
// A pixel on the mean (y = 0) has the score 0.
enum class MatchedScore : std::uint8_t {
  ace,
  signed_ace,
  subspace_ace,
  filter,
  normalized_filter,
  cem,
  centered_cem
};

struct MatchedParams {
  MatchedScore score = MatchedScore::ace;
  Singular singular = Singular::load;
};

MAHAL_API std::size_t matched_workspace(const MatchedParams& params, const TensorView& image,
                                        const TensorView& target, const TensorView& background,
                                        const TensorView& covariance, int threads);
// image, background, covariance, mask and status: as for rx; cem takes no covariance.
// target: (targets, bands), dtype of the image or float64, in the units of the image. score: the
// shape of the pixels and one last axis of targets (none for subspace_ace), dtype of the image.
// Throws ValueError when a target lies on the mean, or when the targets of a subspace are linearly
// dependent.
MAHAL_API void matched(const MatchedParams& params, const TensorView& image,
                       const TensorView& target, const TensorView& background,
                       const TensorView& covariance, const TensorView& mask,
                       const TensorView& score, const TensorView& status,
                       const Workspace& workspace, const Execution& execution);

}  // namespace mahal

// Detectors of targets against the window of every pixel: everything but the last step is local RX.
#pragma once

#include <cstddef>

#include "mahal/matched_score.hpp"
#include "mahal/rx.hpp"

namespace mahal {

struct RxTargets {
  const char* op = "rx";  // in whose name errors are thrown
  MatchedScore score{};
  TensorView target{};  // (targets, bands); not given: RX itself
};

// As rx_workspace and rx. score: (rows, cols, targets), or (rows, cols) for a subspace.
std::size_t rx_targets_workspace(const RxTargets& targets, const RxParams& params,
                                 const TensorView& image, const TensorView& background,
                                 const TensorView& covariance, int threads);
void rx_targets(const RxTargets& targets, const RxParams& params, const TensorView& image,
                const TensorView& background, const TensorView& covariance, const TensorView& mask,
                const TensorView& score, const TensorView& status, const Workspace& workspace,
                const Execution& execution);

}  // namespace mahal

// Squared Mahalanobis distance to a fixed mean and covariance.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t mahalanobis_workspace(const TensorView& x, int threads);
// |L^-1 (x - mean)|^2 with covariance = L L^H; arguments as for whiten. score: the shape of the
// pixels of x, its dtype or that of its parts.
MAHAL_API void mahalanobis(const TensorView& x, const TensorView& mean,
                           const TensorView& covariance, const TensorView& score,
                           const Workspace& workspace, const Execution& execution);

}  // namespace mahal

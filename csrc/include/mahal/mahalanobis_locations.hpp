// Squared Mahalanobis distance where every location has a mean and covariance of its own.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t mahalanobis_locations_workspace(const TensorView& x, int threads);
// x: (samples, locations, bands), real or complex; mean (locations, bands) and covariance
// (locations, bands, bands) of its dtype or in double precision. score: (samples, locations), real
// dtype of x. Factors and substitution are in double precision. Throws ValueError when a covariance
// is not symmetric (Hermitian) and positive definite to working precision.
MAHAL_API void mahalanobis_locations(const TensorView& x, const TensorView& mean,
                                     const TensorView& covariance, const TensorView& score,
                                     const Workspace& workspace, const Execution& execution);

}  // namespace mahal

// Whitening by a fixed mean and covariance.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t whiten_workspace(const TensorView& x, int threads);
// y = L^-1 (x - mean) with covariance = L L^T. x: (bands,), (n, bands) or (rows, cols, bands),
// float32 or float64; mean (bands,) and covariance (bands, bands) float32 or float64; y like x.
// The factor and the substitution are float64. Throws ValueError when the covariance is not
// positive definite to working precision.
MAHAL_API void whiten(const TensorView& x, const TensorView& mean, const TensorView& covariance,
                      const TensorView& y, const Workspace& workspace, const Execution& execution);

}  // namespace mahal

// Whitening by a fixed mean and covariance.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t whiten_workspace(const TensorView& x, int threads);
// y = L^-1 (x - mean) with covariance = L L^H. x: (bands,), (n, bands) or (rows, cols, bands), real
// or complex; mean (bands,) and covariance (bands, bands) of its dtype or in double precision; y
// like x. The factor and the substitution are in double precision. Throws ValueError when the
// covariance is not symmetric and positive definite to working precision; on a device y is NaN
// then.
MAHAL_API void whiten(const TensorView& x, const TensorView& mean, const TensorView& covariance,
                      const TensorView& y, const Workspace& workspace, const Execution& execution);

}  // namespace mahal

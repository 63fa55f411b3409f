// Gradient of the mean and sample covariance of many pixels.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

struct MeanCovarianceBackwardParams {
  double ddof = 1;
  bool center = true;  // as in MeanCovarianceParams
};

MAHAL_API std::size_t mean_covariance_backward_workspace(const TensorView& x, int threads);
// x and mask: as for mean_covariance. grad_mean (bands,) and grad_covariance (bands, bands): of the
// dtype of x or in double precision; either may be left out. grad_x: contiguous, like x: grad_mean
// / N + (G + G^H) (x - mean) / divisor with G = grad_covariance; zero for pixels that are not used.
// For complex numbers a gradient is that of the real part plus i times that of the imaginary part.
MAHAL_API void mean_covariance_backward(const MeanCovarianceBackwardParams& params,
                                        const TensorView& x, const TensorView& mask,
                                        const TensorView& grad_mean,
                                        const TensorView& grad_covariance, const TensorView& grad_x,
                                        const Workspace& workspace, const Execution& execution);

}  // namespace mahal

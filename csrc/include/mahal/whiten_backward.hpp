// Gradient of whitening by a fixed mean and covariance.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t whiten_backward_workspace(const TensorView& y, int threads);
// y: the whitened pixels, (bands,), (n, bands) or (rows, cols, bands); grad: of its shape and
// dtype, any strides; covariance as for whiten. Outputs are contiguous, and those left out are not
// computed. grad_x = v = L^-H grad, like y; in double precision grad_mean (bands,) = -sum v, and
// grad_covariance (bands, bands): that of the factor, -tril(sum v y^H), taken back through the
// factorisation as in cholesky_backward. Throws ValueError when the covariance is not positive
// definite.
MAHAL_API void whiten_backward(const TensorView& grad, const TensorView& y,
                               const TensorView& covariance, const TensorView& grad_x,
                               const TensorView& grad_mean, const TensorView& grad_covariance,
                               const Workspace& workspace, const Execution& execution);

}  // namespace mahal

// Gradient of the batched Cholesky factorisation.
#pragma once

#include <cstddef>

#include "mahal/cholesky.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t cholesky_backward_workspace(const CholeskyParams& params,
                                                  const TensorView& factor, int threads);
// factor: (..., n, n), lower triangular with a real diagonal, as cholesky gives it; grad: the same
// shape and dtype, of which the lower triangle is read. grad_a: the same shape: the gradient of the
// loaded matrix, symmetric or Hermitian, S = L^-H (P + P^H) L^-1 / 2 with the lower triangle P of
// L^H grad, its diagonal real and halved (I. Murray, 2016, arXiv:1602.07527, eq. 10). For complex
// numbers a gradient is that of the real part plus i times that of the imaginary part. Computed in
// float64; a factor of NaN gives NaN.
MAHAL_API void cholesky_backward(const CholeskyParams& params, const TensorView& factor,
                                 const TensorView& grad, const TensorView& grad_a,
                                 const Workspace& workspace, const Execution& execution);

}  // namespace mahal

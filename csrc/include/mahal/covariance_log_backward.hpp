// Gradients of logarithms of covariance matrices.
#pragma once

#include <cstddef>

#include "mahal/covariance_log.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t covariance_log_backward_workspace(const CovarianceLogParams& params,
                                                        const TensorView& a, int threads);
// a, status: as covariance_log took and gave them, status contiguous. grad: contiguous and like a,
// the derivative of a number z by the logarithm. grad_a: contiguous and like a, the Hermitian
// matrix G for which dz = Re tr(G^H dA) for every Hermitian dA; NaN where the status is not 0, but
// zero where all of grad is.
MAHAL_API void covariance_log_backward(const CovarianceLogParams& params, const TensorView& a,
                                       const TensorView& status, const TensorView& grad,
                                       const TensorView& grad_a, const Workspace& workspace,
                                       const Execution& execution);

}  // namespace mahal

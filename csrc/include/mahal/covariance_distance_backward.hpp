// Gradients of distances, divergences and test statistics between covariance matrices.
#pragma once

#include <cstddef>

#include "mahal/covariance_distance.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t covariance_distance_backward_workspace(const CovarianceDistanceParams& params,
                                                             const TensorView& a,
                                                             const TensorView& b, int threads);
// a, b, score, status: as covariance_distance took and gave them, the last two contiguous. grad:
// like score, the derivative of a number z by every score. grad_a, grad_b: (..., p, p) of the dtype
// of a, contiguous; one of them may be left out. They hold the Hermitian matrices G for which
// dz = Re tr(G^H dA) for every Hermitian dA; zero where A = B (but for hotelling_lawley, which is
// not least there) or where grad is zero, NaN where the status is not 0 and grad is not zero.
MAHAL_API void covariance_distance_backward(const CovarianceDistanceParams& params,
                                            const TensorView& a, const TensorView& b,
                                            const TensorView& score, const TensorView& status,
                                            const TensorView& grad, const TensorView& grad_a,
                                            const TensorView& grad_b, const Workspace& workspace,
                                            const Execution& execution);

}  // namespace mahal

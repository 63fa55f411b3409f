// Logarithms of covariance matrices.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

struct CovarianceLogParams {
  double loading = 0;  // times trace(a) / p, added to the diagonal first
};

MAHAL_API std::size_t covariance_log_workspace(const CovarianceLogParams& params,
                                               const TensorView& a, int threads);
// a: (..., p, p) float32, float64, complex64 or complex128, of which the lower triangles are read.
// logarithm: the same shape and dtype. status: uint8 (...,): 0, or 2 where a matrix is not positive
// definite to working precision (a pivot not above p * epsilon times its diagonal entry), or 3
// where it holds a value that is not finite; such logarithms are NaN. Computed in float64.
MAHAL_API void covariance_log(const CovarianceLogParams& params, const TensorView& a,
                              const TensorView& logarithm, const TensorView& status,
                              const Workspace& workspace, const Execution& execution);

}  // namespace mahal

// Batched Cholesky factorisation.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

struct CholeskyParams {
  double loading = 0;  // times trace(a) / n, added to the diagonal first
};

MAHAL_API std::size_t cholesky_workspace(const CholeskyParams& params, const TensorView& a,
                                         int threads);
// a: (..., n, n), real symmetric or complex Hermitian, of which the lower triangle is read, without
// the imaginary part of the diagonal. factor: the same shape, lower triangular, real diagonal.
// status: uint8 (...,): 0, or 2 where a matrix is not positive definite to working precision (a
// pivot not above n * epsilon times its diagonal entry), or 3 where its lower triangle holds a
// value that is not finite; such factors are NaN.
MAHAL_API void cholesky(const CholeskyParams& params, const TensorView& a, const TensorView& factor,
                        const TensorView& status, const Workspace& workspace,
                        const Execution& execution);

}  // namespace mahal

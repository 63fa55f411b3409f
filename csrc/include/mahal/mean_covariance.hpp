// Mean and covariance of a list of spectra.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/estimators.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

struct MeanCovarianceParams {
  double ddof = 1;
  bool center = true;  // false: zero mean assumed, divisor n whatever ddof is
  Estimation estimation;
};

MAHAL_API std::size_t mean_covariance_workspace(const MeanCovarianceParams& params,
                                                const TensorView& x, int threads);
// x: (n, bands) or (rows, cols, bands), real or complex; mask: boolean, (n,) or (rows, cols).
// mean: (bands,), covariance: (bands, bands), dtype of x; Hermitian, S_jk the mean of z_j
// conj(z_k), where x is complex. Masked pixels and pixels that are not finite are left out. Sums
// run in float64 over two passes. Returns 0; 2 where the estimate is zero (identical pixels) or,
// for tyler and student_t, does not exist, and is NaN; 5 where it has not converged. Throws
// ValueError when there are too few pixels. On a device the answer is 0 before anything is known:
// there too few usable pixels give NaN.
MAHAL_API std::uint8_t mean_covariance(const MeanCovarianceParams& params, const TensorView& x,
                                       const TensorView& mask, const TensorView& mean,
                                       const TensorView& covariance, const Workspace& workspace,
                                       const Execution& execution);

}  // namespace mahal

// Mean and covariance of a list of spectra.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

struct MeanCovarianceParams {
  double ddof = 1;
  bool center = true;  // false: zero mean assumed, divisor n whatever ddof is
};

MAHAL_API std::size_t mean_covariance_workspace(const MeanCovarianceParams& params,
                                                const TensorView& x, int threads);
// x: (n, bands) or (rows, cols, bands), real or complex; mask: boolean, (n,) or (rows, cols).
// mean: (bands,), covariance: (bands, bands), dtype of x; Hermitian, S_jk the mean of z_j
// conj(z_k), where x is complex. Masked pixels and pixels that are not finite are left out. Sums
// run in float64 over two passes.
MAHAL_API void mean_covariance(const MeanCovarianceParams& params, const TensorView& x,
                               const TensorView& mask, const TensorView& mean,
                               const TensorView& covariance, const Workspace& workspace,
                               const Execution& execution);

}  // namespace mahal

// Gradient of a function of window means and covariances with respect to the image.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/local_covariance.hpp"

namespace mahal {

MAHAL_API std::size_t local_covariance_backward_workspace(const LocalCovarianceParams& params,
                                                          const TensorView& image, int threads);
// params, image, mask: those of local_covariance. mean_gradient: (rows, cols, windows, bands),
// covariance_gradient: (rows, cols, windows, bands, bands), dtype of the image, any strides; either
// may be missing. gradient: (rows, cols, bands), dtype of the image:
//   sum over the windows p that hold q of g_p / n + (G_p + G_p^H) (x_q - m_p) / (n - ddof)
// for real functions f with df = Re sum conj(G_jk) dS_jk. Pixels that are not samples get 0, and
// windows without a result give nothing; a gradient that is not finite makes NaN of the pixels of
// its window alone. Means are taken again from the image, and sums run in double precision.
MAHAL_API void local_covariance_backward(const LocalCovarianceParams& params,
                                         const TensorView& image, const TensorView& mask,
                                         const TensorView& mean_gradient,
                                         const TensorView& covariance_gradient,
                                         const TensorView& gradient, const Workspace& workspace,
                                         const Execution& execution);

}  // namespace mahal

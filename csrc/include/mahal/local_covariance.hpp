// Maps of window means and covariances.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"
#include "mahal/windows.hpp"

namespace mahal {

struct LocalCovarianceParams {
  const Window* windows = nullptr;
  int window_count = 0;
  Border border = Border::shift;
  int ddof = 1;
  bool center = true;  // false: zero mean assumed, divisor N whatever ddof is
};

MAHAL_API std::size_t local_covariance_workspace(const LocalCovarianceParams& params,
                                                 const TensorView& image, int threads);
// image: (rows, cols, bands), real or complex; mask: boolean (rows, cols), false leaves a pixel
// out. mean: (rows, cols, windows, bands), covariance: (rows, cols, windows, bands, bands), dtype
// of the image. NaN where a window holds a value that is not finite or no sample, or, with
// Border::valid, is not centred on the pixel; the covariance also where a window has no more
// samples than ddof. Complex images give Hermitian matrices, S_jk the mean of
// z_j conj(z_k). Sums run in double precision.
MAHAL_API void local_covariance(const LocalCovarianceParams& params, const TensorView& image,
                                const TensorView& mask, const TensorView& mean,
                                const TensorView& covariance, const Workspace& workspace,
                                const Execution& execution);

}  // namespace mahal

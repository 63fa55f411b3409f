#include "mahal/mean_covariance.hpp"

#include <string>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/image_checks.hpp"
#include "core/threads.hpp"

namespace mahal {

namespace {

constexpr const char* op = "mean_covariance";

}  // namespace

std::size_t mean_covariance_workspace(const MeanCovarianceParams&, const TensorView& x,
                                      int threads) {
  check_pixels(op, "x", x, {2, 3});
  Scratch scratch;
  plan_moments(scratch, pixel_count(x), real_bands(x), resolve_threads(op, threads));
  return scratch.bytes();
}

void mean_covariance(const MeanCovarianceParams& params, const TensorView& x,
                     const TensorView& mask, const TensorView& mean, const TensorView& covariance,
                     const Workspace& workspace, const Execution& execution) {
  check_pixels(op, "x", x, {2, 3});
  check_mask(op, mask, x);
  const std::int64_t bands = x.shape[x.rank - 1];
  check_output(op, "mean", mean, x.dtype, {bands});
  check_output(op, "covariance", covariance, x.dtype, {bands, bands});
  select_route(op, execution, x.device, false);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, mean_covariance_workspace(params, x, threads));

  Scratch scratch(workspace);
  Moments moments = plan_moments(scratch, pixel_count(x), real_bands(x), threads);
  if (!compute_moments(moments, x, mask, {params.ddof, params.center}, threads)) {
    throw_value_error(op, "x", "needs more usable pixels than ddof",
                      std::to_string(moments.count) + " usable pixels");
  }
  dispatch_float(x.dtype, [&]<class T>() {
    T* m = static_cast<T*>(mean.data);
    T* c = static_cast<T*>(covariance.data);
    for (int i = 0; i < real_bands(x); ++i) m[i] = static_cast<T>(moments.mean[i]);
    for (std::int64_t i = 0; i < bands; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        if (is_complex(x.dtype)) {
          const double* even = moments.covariance + 2 * i * moments.padded + 2 * j;
          T* lower = c + 2 * (i * bands + j);
          T* upper = c + 2 * (j * bands + i);
          lower[0] = upper[0] = static_cast<T>(even[0]);
          upper[1] = static_cast<T>(-even[moments.padded]);
          lower[1] = static_cast<T>(even[moments.padded]);
        } else {
          c[i * bands + j] = c[j * bands + i] =
              static_cast<T>(moments.covariance[i * moments.padded + j]);
        }
      }
    }
  });
}

}  // namespace mahal

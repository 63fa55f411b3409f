#include "mahal/mean_covariance.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "core/background.hpp"
#include "core/device_plan.hpp"
#include "core/dispatch.hpp"
#include "core/estimators.hpp"
#include "core/image_checks.hpp"
#include "core/threads.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "mean_covariance";

struct Plan {
  Moments moments;
  EstimationRoom room;
};

Plan make_plan(Scratch& scratch, const MeanCovarianceParams& params, const TensorView& x,
               int threads) {
  Plan p;
  p.moments = plan_moments(scratch, pixel_count(x), real_bands(x), threads,
                           is_fixed_point(params.estimation.estimator));
  p.room = plan_estimation(scratch, params.estimation, pixel_count(x), real_bands(x), threads);
  return p;
}

// Fewer usable pixels than this are told by an error, on a device by NaN.
std::int64_t needed_samples(const MeanCovarianceParams& params, const TensorView& x) {
  const Estimator estimator = params.estimation.estimator;
  const bool simple = estimator == Estimator::scm || estimator == Estimator::loading;
  return simple ? 1 : least_samples(estimator, x.shape[x.rank - 1], params.center);
}

[[noreturn]] void throw_few_samples(const MeanCovarianceParams& params, const TensorView& x,
                                    std::int64_t count) {
  throw_value_error(
      op, "x", few_samples_rule(params.estimation.estimator, x.shape[x.rank - 1], params.center),
      std::to_string(count) + " usable pixels");
}

template <class T>
EstimateLaunch<T> plan_device(Scratch& scratch, const MeanCovarianceParams& params,
                              const TensorView& x, const TensorView& mask) {
  const DeviceBackground background = plan_device_background(scratch, real_bands(x));
  return plan_estimate<T>(scratch, background, x, mask, {params.ddof, params.center},
                          params.estimation, Scale::unit_trace, needed_samples(params, x), false);
}

}  // namespace

std::size_t mean_covariance_workspace(const MeanCovarianceParams& params, const TensorView& x,
                                      int threads) {
  check_pixels(op, "x", x, {2, 3});
  check_estimation(op, params.estimation);
  Scratch scratch;
  if (runs_on_device(x.device)) {
    dispatch_float(x.dtype, [&]<class T>() { plan_device<T>(scratch, params, x, TensorView{}); });
    return scratch.bytes();
  }
  make_plan(scratch, params, x, resolve_threads(op, threads));
  return scratch.bytes();
}

std::uint8_t mean_covariance(const MeanCovarianceParams& params, const TensorView& x,
                             const TensorView& mask, const TensorView& mean,
                             const TensorView& covariance, const Workspace& workspace,
                             const Execution& execution) {
  check_pixels(op, "x", x, {2, 3});
  check_estimation(op, params.estimation);
  check_mask(op, mask, x);
  const std::int64_t bands = x.shape[x.rank - 1];
  check_output(op, "mean", mean, x.dtype, {bands});
  check_output(op, "covariance", covariance, x.dtype, {bands, bands});
  const Route route = select_route(op, execution, x.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, mean_covariance_workspace(params, x, threads));

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    const std::int64_t pixels = pixel_count(x);
    if (pixels < needed_samples(params, x) ||
        static_cast<double>(pixels) <= (params.center ? params.ddof : 0.0)) {
      throw_few_samples(params, x, pixels);
    }
    dispatch_float(x.dtype, [&]<class T>() {
      const EstimateLaunch<T> launch = plan_device<T>(scratch, params, x, mask);
      with_background(route, op, execution.stream, [&](const auto& device) {
        device.estimate(launch);
        device.store(launch, static_cast<T*>(mean.data), static_cast<T*>(covariance.data));
      });
    });
    return status_ok;
  }
  Plan p = make_plan(scratch, params, x, threads);
  Moments& moments = p.moments;
  const std::uint8_t status =
      estimate_moments(moments, x, mask, {params.ddof, params.center}, params.estimation,
                       Scale::unit_trace, p.room, threads);
  if (status == status_few_samples) {
    throw_few_samples(params, x, moments.count);
  }
  const bool missing = status == status_singular && is_fixed_point(params.estimation.estimator);
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
    if (missing) {
      const std::int64_t elements = bands * real_bands(x);
      std::fill_n(c, elements, std::numeric_limits<T>::quiet_NaN());
    }
  });
  return status;
}

}  // namespace mahal

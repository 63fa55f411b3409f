#include "mahal/mean_covariance_backward.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/device_gradients.hpp"
#include "core/device_plan.hpp"
#include "core/image_checks.hpp"
#include "core/real_form.hpp"
#include "core/spread.hpp"

namespace mahal {

namespace {

constexpr const char* op = "mean_covariance_backward";

struct Plan {
  Moments moments;
  double* matrix;
  double* offset;
  char* room;
};

Plan make_plan(Scratch& scratch, const TensorView& x, int threads) {
  Plan p;
  const int bands = real_bands(x);
  p.moments = plan_moments(scratch, pixel_count(x), bands, threads);
  const std::int64_t padded = padded_bands(bands);
  p.matrix = scratch.take<double>(padded * padded);
  p.offset = scratch.take<double>(padded);
  p.room = plan_spread(scratch, bands, threads);
  return p;
}

template <class T>
struct DevicePlan {
  DeviceBackground background;
  EstimateLaunch<T> estimate;
  double* spread;
  double* offset;
};

template <class T>
DevicePlan<T> plan_device(Scratch& scratch, const MeanCovarianceBackwardParams& params,
                          const TensorView& x, const TensorView& mask) {
  DevicePlan<T> p{};
  const std::int64_t n = real_bands(x);
  p.background = plan_device_background(scratch, real_bands(x));
  p.estimate = plan_estimate<T>(scratch, p.background, x, mask, {params.ddof, params.center},
                                Estimation{}, Scale::samples, 1, true);
  p.spread = scratch.take<double>(n * n);
  p.offset = scratch.take<double>(n);
  return p;
}

template <class T>
void run_on_device(const MeanCovarianceBackwardParams& params, const DevicePlan<T>& p,
                   const TensorView& x, const TensorView& grad_mean,
                   const TensorView& grad_covariance, const TensorView& grad_x, Route route,
                   std::uintptr_t stream) {
  const int n = real_bands(x);
  with_background(route, op, stream, [&](const auto& device) {
    const auto gradients = gradients_of(device);
    device.estimate(p.estimate);
    // The two may differ in precision.
    const auto prepare = [&](const TensorView& grad, bool of_mean) {
      dispatch_float(grad.dtype, [&]<class G>() {
        SpreadMatrixLaunch<G> launch{};
        const G* data = static_cast<const G*>(grad.data);
        if (of_mean) {
          launch.mean = data;
          launch.mean_stride = grad.strides[0];
          launch.offset = p.offset;
        } else {
          launch.covariance = data;
          launch.row_stride = grad.strides[0];
          launch.col_stride = grad.strides[1];
          launch.spread = p.spread;
        }
        launch.bands = n;
        launch.parts = is_complex(x.dtype) ? 2 : 1;
        launch.ddof = params.ddof;
        launch.center = params.center;
        launch.state = p.background.state;
        gradients.spread(launch);
      });
    };
    const bool shifts = is_given(grad_mean) && params.center;
    if (shifts) prepare(grad_mean, true);
    if (is_given(grad_covariance)) prepare(grad_covariance, false);
    RowsLaunch<T, T> launch{};
    launch.pixels = device_pixels<T>(x);
    launch.mean = params.center ? p.background.mean : nullptr;
    launch.matrix = is_given(grad_covariance) ? p.spread : nullptr;
    launch.matrix_row = n;
    launch.matrix_col = 1;
    launch.offset = shifts ? p.offset : nullptr;
    launch.status = p.estimate.samples.status;
    launch.out = static_cast<T*>(grad_x.data);
    gradients.rows(launch);
  });
}

}  // namespace

std::size_t mean_covariance_backward_workspace(const TensorView& x, int threads) {
  check_pixels(op, "x", x, {2, 3});
  Scratch scratch;
  if (runs_on_device(x.device)) {
    dispatch_float(x.dtype, [&]<class T>() { plan_device<T>(scratch, {}, x, TensorView{}); });
    return scratch.bytes();
  }
  make_plan(scratch, x, resolve_threads(op, threads));
  return scratch.bytes();
}

void mean_covariance_backward(const MeanCovarianceBackwardParams& params, const TensorView& x,
                              const TensorView& mask, const TensorView& grad_mean,
                              const TensorView& grad_covariance, const TensorView& grad_x,
                              const Workspace& workspace, const Execution& execution) {
  check_pixels(op, "x", x, {2, 3});
  check_mask(op, mask, x);
  const std::int64_t bands = x.shape[x.rank - 1];
  const DType precise = is_complex(x.dtype) ? DType::c128 : DType::f64;
  if (is_given(grad_mean)) {
    check_dtype(op, "grad_mean", grad_mean, {x.dtype, precise});
    check_shape(op, "grad_mean", grad_mean, {bands});
    check_same_device(op, "grad_mean", grad_mean, "x", x);
  }
  if (is_given(grad_covariance)) {
    check_dtype(op, "grad_covariance", grad_covariance, {x.dtype, precise});
    check_shape(op, "grad_covariance", grad_covariance, {bands, bands});
    check_same_device(op, "grad_covariance", grad_covariance, "x", x);
  }
  check_given(op, "grad_x", grad_x);
  check_same_dtype(op, "grad_x", grad_x, "x", x);
  if (element_count(grad_x) != element_count(x) || !is_contiguous(grad_x) || grad_x.read_only) {
    throw_value_error(op, "grad_x", "must be a contiguous array like x", shape_text(grad_x));
  }
  const Route route = select_route(op, execution, x.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, mean_covariance_backward_workspace(x, threads));

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    dispatch_float(x.dtype, [&]<class T>() {
      run_on_device<T>(params, plan_device<T>(scratch, params, x, mask), x, grad_mean,
                       grad_covariance, grad_x, route, execution.stream);
    });
    return;
  }
  Plan p = make_plan(scratch, x, threads);
  Moments& moments = p.moments;
  compute_mean(moments, x, mask, threads);
  const auto samples = static_cast<double>(moments.count);
  const double divisor = samples - (params.center ? params.ddof : 0.0);
  if (!(divisor > 0)) {
    throw_value_error(op, "x", "needs more usable pixels than ddof", std::to_string(moments.count));
  }
  const std::int64_t padded = moments.padded;
  const int parts = is_complex(x.dtype) ? 2 : 1;
  if (!params.center) std::fill_n(moments.mean, padded, 0.0);
  std::fill_n(p.offset, padded, 0.0);
  if (is_given(grad_mean) && params.center) {
    dispatch_float(grad_mean.dtype, [&]<class G>() {
      const PixelList<G> list = pixel_list<G>(grad_mean);
      for (int j = 0; j < list.bands; ++j) {
        p.offset[j] = static_cast<double>(list.data[band_offset(list, j)]) / samples;
      }
    });
  }
  if (is_given(grad_covariance)) {
    std::fill_n(p.matrix, padded * padded, 0.0);
    dispatch_float(grad_covariance.dtype, [&]<class G>() {
      const G* data = static_cast<const G*>(grad_covariance.data);
      const auto part = [&](std::int64_t i, std::int64_t j, int which) {
        const std::int64_t at = i * grad_covariance.strides[0] + j * grad_covariance.strides[1];
        return static_cast<double>(data[parts * at + which]);
      };
      for (int i = 0; i < bands; ++i) {
        for (int j = 0; j < bands; ++j) {
          RealForm sum{part(i, j, 0) + part(j, i, 0), 0};
          if (parts == 2) sum.imaginary = part(i, j, 1) - part(j, i, 1);
          put_real_form(p.matrix, padded, parts, i, j,
                        {sum.real / divisor, sum.imaginary / divisor});
        }
      }
    });
  }
  dispatch_float(x.dtype, [&]<class T>() {
    SpreadBlock<T> block{};
    block.pixels = pixel_list<T>(x);
    block.status = moments.status;
    block.mean = moments.mean;
    block.matrix = is_given(grad_covariance) ? p.matrix : nullptr;
    block.offset = p.offset;
    block.out = static_cast<T*>(grad_x.data);
    spread_gradient(block, pixel_count(x), p.room, threads);
  });
}

}  // namespace mahal

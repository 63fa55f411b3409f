#include "mahal/mean_covariance_backward.hpp"

#include <algorithm>
#include <cmath>
#include <string>

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

}  // namespace

std::size_t mean_covariance_backward_workspace(const TensorView& x, int threads) {
  check_pixels(op, "x", x, {2, 3});
  Scratch scratch;
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
  select_route(op, execution, x.device, false);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, mean_covariance_backward_workspace(x, threads));

  Scratch scratch(workspace);
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

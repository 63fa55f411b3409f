#include "mahal/whiten.hpp"

#include "core/device_plan.hpp"
#include "core/image_checks.hpp"
#include "core/whitening.hpp"

namespace mahal {

namespace {

constexpr const char* op = "whiten";

struct DevicePlan {
  DeviceBackground background;
  double* tiles;
};

DevicePlan plan_device(Scratch& scratch, const TensorView& x) {
  DevicePlan p{};
  p.background = plan_device_background(scratch, real_bands(x));
  p.tiles = plan_whiten_tiles(scratch, pixel_count(x), real_bands(x));
  return p;
}

template <class T>
WhitenLaunch<T, T> launch_of(const DevicePlan& p, const TensorView& x, const TensorView& y) {
  WhitenLaunch<T, T> launch{};
  launch.pixels = device_pixels<T>(x);
  launch.mean = p.background.mean;
  launch.lower = p.background.lower;
  launch.inverse = p.background.inverse;
  launch.verdicts.state = p.background.state;
  launch.whitened = static_cast<T*>(y.data);
  launch.out_stride = launch.out_bands = real_bands(x);
  launch.tiles = p.tiles;
  return launch;
}

}  // namespace

std::size_t whiten_workspace(const TensorView& x, int threads) {
  check_pixels(op, "x", x, {1, 2, 3});
  Scratch scratch;
  if (runs_on_device(x.device)) {
    plan_device(scratch, x);
    return scratch.bytes();
  }
  plan_fixed_background(scratch, real_bands(x), resolve_threads(op, threads));
  return scratch.bytes();
}

void whiten(const TensorView& x, const TensorView& mean, const TensorView& covariance,
            const TensorView& y, const Workspace& workspace, const Execution& execution) {
  check_pixels(op, "x", x, {1, 2, 3});
  check_given(op, "mean", mean);
  check_mean_and_covariance(op, x, mean, covariance);
  check_given(op, "y", y);
  if (y.dtype != x.dtype || element_count(y) != element_count(x) || !is_contiguous(y) ||
      y.read_only) {
    throw_value_error(op, "y", "must be a contiguous array like x", shape_text(y));
  }
  const Route route = select_route(op, execution, x.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, whiten_workspace(x, threads));

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    const DevicePlan p = plan_device(scratch, x);
    with_background(route, op, execution.stream, [&](const auto& device) {
      load_mean(device, p.background, mean);
      load_covariance(device, p.background, covariance);
      dispatch_float(x.dtype, [&]<class T>() { device.whiten(launch_of<T>(p, x, y)); });
    });
    return;
  }
  const int bands = real_bands(x);
  const FixedBackground background = plan_fixed_background(scratch, bands, threads);
  load_fixed_background(op, background, mean, covariance);
  dispatch_float(x.dtype, [&]<class T>() {
    WhitenBlock<T, T> block{};
    block.pixels = pixel_list<T>(x);
    block.mean = background.mean;
    block.factor = background.factor.lower;
    block.factor_stride = background.factor.padded;
    block.inverse_diagonal = background.factor.inverse_diagonal;
    block.whitened = static_cast<T*>(y.data);
    block.out_stride = block.out_bands = bands;
    whiten_pixels(block, pixel_count(x), background.room, threads);
  });
}

}  // namespace mahal

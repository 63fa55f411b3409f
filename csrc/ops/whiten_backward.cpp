#include "mahal/whiten_backward.hpp"

#include <algorithm>
#include <type_traits>

#include "core/device_gradients.hpp"
#include "core/device_plan.hpp"
#include "core/dispatch.hpp"
#include "core/gradient_sums.hpp"
#include "core/image_checks.hpp"
#include "core/real_form.hpp"
#include "core/threads.hpp"
#include "ops/cholesky_backward_cuda.hpp"
#include "ops/cholesky_backward_kernel.hpp"
#include "ops/whiten_backward_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "whiten_backward";

struct Plan {
  Factor factor;
  double* zeros;
  std::int64_t chunk_pixels, chunks;
  double* sums;
  double* grams;
  double* work;
  char* factor_room;
  char* room;
  std::int64_t room_bytes;
};

Plan make_plan(Scratch& scratch, const TensorView& y, int threads) {
  Plan p;
  const int bands = real_bands(y);
  const std::int64_t padded = padded_bands(bands);
  p.factor = plan_factor(scratch, bands);
  p.zeros = scratch.take<double>(padded);
  p.chunk_pixels = gradient_chunk_pixels(pixel_count(y), true);
  p.chunks = gradient_chunks(pixel_count(y), p.chunk_pixels);
  p.sums = scratch.take<double>(p.chunks * padded);
  p.grams = scratch.take<double>(p.chunks * padded * padded);
  p.work = scratch.take<double>(padded * padded);
  p.factor_room = scratch.take<char>(
      static_cast<std::int64_t>(factor_gradient_scratch_bytes(static_cast<int>(padded))));
  p.room_bytes = static_cast<std::int64_t>(
      (whiten_backward_scratch_bytes(static_cast<int>(padded)) + 63) / 64 * 64);
  p.room = scratch.take<char>(p.room_bytes * threads);
  return p;
}

template <class T>
void run_pixels(const Plan& p, const TensorView& grad, const TensorView& y,
                const TensorView& grad_x, bool mean, bool covariance, int threads) {
  const std::int64_t pixels = pixel_count(y);
  const std::int64_t padded = p.factor.padded;
  WhitenBackwardBlock<T> common{};
  common.grad = pixel_list<T>(grad);
  common.whitened = pixel_list<T>(y);
  common.factor = p.factor.lower;
  common.inverse_diagonal = p.factor.inverse_diagonal;
  common.zeros = p.zeros;
  common.out = static_cast<T*>(grad_x.data);
  const std::int64_t chunk_pixels = gradient_chunk_pixels(pixels, mean || covariance);
  dispatch_isa([&]<Isa I>() {
    parallel_for(threads, gradient_chunks(pixels, chunk_pixels),
                 [&](std::int64_t chunk, int worker) {
                   WhitenBackwardBlock<T> block = common;
                   block.begin = chunk * chunk_pixels;
                   block.end = std::min(pixels, block.begin + chunk_pixels);
                   block.scratch = p.room + worker * p.room_bytes;
                   if (mean) {
                     block.sum = p.sums + chunk * padded;
                     std::fill_n(block.sum, padded, 0.0);
                   }
                   if (covariance) {
                     block.gram = p.grams + chunk * padded * padded;
                     std::fill_n(block.gram, padded * padded, 0.0);
                   }
                   WhitenBackwardKernel<I>::run(block);
                 });
  });
}

// What the kernels need: v = L^-H grad in double precision among it.
struct DevicePlan {
  DeviceBackground background;
  double* tiles;
  double* identity;  // bands x bands, as all that follow
  double* inverse;   // L^-1
  double* v;
  double* parts;
  double* gram;
  double* matrix;
  double* pull;
};

DevicePlan plan_device(Scratch& scratch, const TensorView& y) {
  DevicePlan p{};
  const std::int64_t pixels = pixel_count(y);
  const std::int64_t n = real_bands(y);
  p.background = plan_device_background(scratch, real_bands(y));
  p.tiles = plan_whiten_tiles(scratch, std::max(pixels, n), real_bands(y));
  p.identity = scratch.take<double>(n * n);
  p.inverse = scratch.take<double>(n * n);
  p.v = scratch.take<double>(pixels * n);
  p.parts = scratch.take<double>(cross_chunks(pixels) * n * n);
  p.gram = scratch.take<double>(n * n);
  p.matrix = scratch.take<double>(n * n);
  p.pull = scratch.take<double>(pull_room(n, false, 1));
  return p;
}

template <class T>
void run_on_device(const DevicePlan& p, const TensorView& grad, const TensorView& y,
                   const TensorView& covariance, const TensorView& grad_x,
                   const TensorView& grad_mean, const TensorView& grad_covariance, Route route,
                   std::uintptr_t stream) {
  const int n = real_bands(y);
  const std::int64_t pixels = pixel_count(y);
  with_background(route, op, stream, [&](const auto& device) {
    const auto gradients = gradients_of(device);
    gradients.identity(p.identity, n);
    // Starts the state; the mean itself does not matter here.
    device.load(MeanLaunch<double>{device_rows(p.identity, 1, n, n).list, p.background.mean,
                                   p.background.state});
    load_covariance(device, p.background, covariance);
    WhitenLaunch<double, double> invert{};
    invert.pixels = device_rows(p.identity, n, n, n);
    invert.lower = p.background.lower;
    invert.inverse = p.background.inverse;
    invert.verdicts.state = p.background.state;
    invert.verdicts.nan_when_loaded = true;
    invert.whitened = p.inverse;
    invert.out_stride = invert.out_bands = n;
    invert.tiles = p.tiles;
    device.whiten(invert);
    // Row i of the inverse of L, by columns: g^T L^-1 is the transpose of L^-T g.
    const auto back = [&](auto* out) {
      RowsLaunch<T, std::remove_pointer_t<decltype(out)>> launch{};
      launch.pixels = device_pixels<T>(grad);
      launch.matrix = p.inverse;
      launch.matrix_row = 1;
      launch.matrix_col = n;
      launch.out = out;
      gradients.rows(launch);
    };
    if (is_given(grad_x)) back(static_cast<T*>(grad_x.data));
    if (!is_given(grad_mean) && !is_given(grad_covariance)) return;
    back(p.v);
    if (is_given(grad_mean)) {
      CrossLaunch<double> sum{nullptr, 1,  device_rows(p.v, pixels, n, n),       n,      nullptr,
                              0,       -1, static_cast<double*>(grad_mean.data), p.parts};
      gradients.cross(sum);
    }
    if (!is_given(grad_covariance)) return;
    CrossLaunch<T> products{p.v, n, device_pixels<T>(y), n, nullptr, 0, -1, p.gram, p.parts};
    gradients.cross(products);
    CholeskyBackwardLaunch pull;
    pull.factor = p.background.lower;
    pull.factor_row = 1;
    pull.factor_col = padded_rows(n);
    pull.grad = p.gram;
    pull.grad_row = n;
    pull.grad_col = 1;
    pull.n = n;
    pull.out = p.matrix;
    pull.workspace = p.pull;
    if constexpr (built_with_cuda) {
      if (route == Route::cuda) cuda::cholesky_backward(pull, stream);
    }
    if constexpr (built_with_emulator) {
      if (route == Route::emulator) emulator::cholesky_backward(pull, stream);
    }
    gradients.fold(
        {p.matrix, n, is_complex(y.dtype) ? 2 : 1, static_cast<double*>(grad_covariance.data)});
  });
}

}  // namespace

std::size_t whiten_backward_workspace(const TensorView& y, int threads) {
  check_pixels(op, "y", y, {1, 2, 3});
  Scratch scratch;
  if (runs_on_device(y.device)) {
    plan_device(scratch, y);
    return scratch.bytes();
  }
  make_plan(scratch, y, resolve_threads(op, threads));
  return scratch.bytes();
}

void whiten_backward(const TensorView& grad, const TensorView& y, const TensorView& covariance,
                     const TensorView& grad_x, const TensorView& grad_mean,
                     const TensorView& grad_covariance, const Workspace& workspace,
                     const Execution& execution) {
  check_pixels(op, "y", y, {1, 2, 3});
  check_given(op, "grad", grad);
  check_same_dtype(op, "grad", grad, "y", y);
  check_same_device(op, "grad", grad, "y", y);
  bool same = grad.rank == y.rank;
  for (int axis = 0; same && axis < y.rank; ++axis) same = grad.shape[axis] == y.shape[axis];
  if (!same) throw_value_error(op, "grad", "must have the shape of y", shape_text(grad));
  check_mean_and_covariance(op, y, TensorView{}, covariance);
  const std::int64_t bands = y.shape[y.rank - 1];
  const DType precise = is_complex(y.dtype) ? DType::c128 : DType::f64;
  if (is_given(grad_x)) {
    check_same_dtype(op, "grad_x", grad_x, "y", y);
    if (element_count(grad_x) != element_count(y) || !is_contiguous(grad_x) || grad_x.read_only) {
      throw_value_error(op, "grad_x", "must be a contiguous array like y", shape_text(grad_x));
    }
  }
  if (is_given(grad_mean)) check_output(op, "grad_mean", grad_mean, precise, {bands});
  if (is_given(grad_covariance)) {
    check_output(op, "grad_covariance", grad_covariance, precise, {bands, bands});
  }
  const Route route = select_route(op, execution, y.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, whiten_backward_workspace(y, threads));

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    const DevicePlan p = plan_device(scratch, y);
    dispatch_float(y.dtype, [&]<class T>() {
      run_on_device<T>(p, grad, y, covariance, grad_x, grad_mean, grad_covariance, route,
                       execution.stream);
    });
    return;
  }
  const Plan p = make_plan(scratch, y, threads);
  const int real = real_bands(y);
  const std::int64_t padded = p.factor.padded;
  std::fill_n(p.zeros, padded, 0.0);
  std::fill_n(p.factor.lower, padded * padded, 0.0);
  load_covariance(op, p.factor, covariance);
  dispatch_float(y.dtype, [&]<class T>() {
    run_pixels<T>(p, grad, y, grad_x, is_given(grad_mean), is_given(grad_covariance), threads);
  });
  if (is_given(grad_mean)) {
    join_chunks(p.sums, padded, p.chunks);
    std::copy_n(p.sums, real, static_cast<double*>(grad_mean.data));
  }
  if (!is_given(grad_covariance)) return;
  join_chunks(p.grams, padded * padded, p.chunks);
  for (int i = 0; i < real; ++i) {
    std::fill_n(p.grams + i * padded + i + 1, padded - i - 1, 0.0);
    std::fill_n(p.factor.lower + i * padded + i + 1, padded - i - 1, 0.0);
  }
  FactorGradient g;
  g.lower = p.factor.lower;
  g.inverse_diagonal = p.factor.inverse_diagonal;
  g.n = real;
  g.padded = static_cast<int>(padded);
  g.matrix = p.grams;
  g.work = p.work;
  g.scratch = p.factor_room;
  dispatch_isa([&]<Isa I>() { CholeskyBackwardKernel<I>::one(g); });
  write_real_form(p.grams, padded, is_complex(y.dtype) ? 2 : 1, static_cast<int>(bands),
                  static_cast<double*>(grad_covariance.data));
}

}  // namespace mahal

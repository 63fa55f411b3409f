#include "mahal/detector_backward.hpp"

#include <algorithm>
#include <string>

#include "core/device_gradients.hpp"
#include "core/device_plan.hpp"
#include "core/gradient_sums.hpp"
#include "core/image_checks.hpp"
#include "core/real_form.hpp"
#include "core/spread.hpp"
#include "ops/detector_backward_kernel.hpp"
#include "ops/matched_rows.hpp"

namespace mahal {

namespace {

using Params = DetectorBackwardParams;
using Inputs = DetectorBackwardInputs;
using Outputs = DetectorBackwardOutputs;

struct Shape {
  int bands, padded, parts, targets;
  std::int64_t pixels;
};

Shape shape_of(const Inputs& in) {
  Shape s;
  s.bands = real_bands(in.image);
  s.padded = padded_bands(s.bands);
  s.parts = is_complex(in.image.dtype) ? 2 : 1;
  s.targets = is_given(in.target) ? static_cast<int>(in.target.shape[0]) : 0;
  s.pixels = pixel_count(in.image);
  return s;
}

int directions_of(const Shape& s) { return s.targets * s.parts; }

struct Plan {
  Moments moments;             // of the image
  Moments background_moments;  // of other pixels, where given
  Factor factor;
  double* mean;
  double* directions;
  double* duals;
  double* squares;
  std::int64_t chunk_pixels, chunks;
  double* sums;
  double* grams;
  double* crosses;
  double* square_sums;
  double* matrix;
  char* room;
  std::int64_t room_bytes;
  char* spread_room;
};

Plan make_plan(Scratch& scratch, const Params& params, const Inputs& in, int threads) {
  const Shape s = shape_of(in);
  const std::int64_t padded = s.padded;
  const std::int64_t rows = directions_of(s) * padded;
  Plan p{};
  p.factor = plan_factor(scratch, s.bands);
  p.mean = scratch.take<double>(padded);
  p.directions = scratch.take<double>(rows);
  p.duals = scratch.take<double>(rows);
  p.squares = scratch.take<double>(s.targets);
  if (params.estimate) {
    p.moments = plan_moments(scratch, s.pixels, s.bands, threads);
    if (is_given(in.background)) {
      p.background_moments = plan_moments(scratch, pixel_count(in.background), s.bands, threads);
    }
  }
  p.chunk_pixels = gradient_chunk_pixels(s.pixels, true);
  p.chunks = gradient_chunks(s.pixels, p.chunk_pixels);
  p.sums = scratch.take<double>(p.chunks * padded);
  p.grams = scratch.take<double>(p.chunks * padded * padded);
  p.crosses = scratch.take<double>(p.chunks * rows);
  p.square_sums = scratch.take<double>(p.chunks * s.targets);
  p.matrix = scratch.take<double>(padded * padded);
  p.room_bytes = static_cast<std::int64_t>(
      (detector_scratch_bytes(s.padded, directions_of(s)) + 63) / 64 * 64);
  p.room = scratch.take<char>(p.room_bytes * threads);
  p.spread_room = plan_spread(scratch, s.bands, threads);
  return p;
}

void check_inputs(const Params& params, const Inputs& in) {
  const char* op = params.caller;
  if (params.estimate) {
    check_pixels(op, "image", in.image, {2, 3});
    check_mask(op, in.mask, in.image);
    if (is_given(in.background)) check_background(op, in.background, in.image);
    if (is_given(in.covariance)) {
      check_mean_and_covariance(op, in.image, TensorView{}, in.covariance);
    }
  } else {
    check_pixels(op, "x", in.image, {1, 2, 3});
    check_given(op, "mean", in.mean);
    check_mean_and_covariance(op, in.image, in.mean, in.covariance);
  }
  const bool distance = params.score == DetectorScore::distance;
  if (!distance) check_targets(op, in.target, in.image);
  if (distance && is_given(in.target)) {
    throw_value_error(op, "target", "must not be given for a distance", "one");
  }
  check_given(op, "grad", in.grad);
  check_dtype(op, "grad", in.grad, {real_dtype(in.image.dtype)});
  check_same_device(op, "grad", in.grad, "the pixels", in.image);
  const int rank = in.image.rank - 1;
  bool same = in.grad.rank == rank + (distance ? 0 : 1);
  for (int axis = 0; same && axis < rank; ++axis) {
    same = in.grad.shape[axis] == in.image.shape[axis];
  }
  if (same && !distance) same = in.grad.shape[rank] == in.target.shape[0];
  if (!same)
    throw_value_error(op, "grad", "must have the shape of the scores", shape_text(in.grad));
}

void check_outputs(const Params& params, const Inputs& in, const Outputs& out) {
  const char* op = params.caller;
  const std::int64_t bands = in.image.shape[in.image.rank - 1];
  const DType precise = is_complex(in.image.dtype) ? DType::c128 : DType::f64;
  const auto check_like = [&](const char* name, const TensorView& view, const TensorView& like) {
    if (!is_given(view)) return;
    check_same_dtype(op, name, view, "the pixels", like);
    if (element_count(view) != element_count(like) || !is_contiguous(view) || view.read_only) {
      throw_value_error(op, name, "must be a contiguous array like the pixels", shape_text(view));
    }
  };
  check_like("grad_image", out.image, in.image);
  check_like("grad_background", out.background, in.background);
  if (is_given(out.target)) {
    check_output(op, "grad_target", out.target, precise, {in.target.shape[0], bands});
  }
  if (is_given(out.mean)) check_output(op, "grad_mean", out.mean, precise, {bands});
  if (is_given(out.covariance)) {
    check_output(op, "grad_covariance", out.covariance, precise, {bands, bands});
  }
}

// Mean, factor and the pixels they come from.
Moments* load_background(const Params& params, const Inputs& in, Plan& p, const Shape& s,
                         int threads) {
  const char* op = params.caller;
  std::fill_n(p.mean, s.padded, 0.0);
  Moments* source = nullptr;
  if (params.estimate) {
    const bool external = is_given(in.background);
    source = external ? &p.background_moments : &p.moments;
    const TensorView& samples = external ? in.background : in.image;
    const TensorView usable = external ? TensorView{} : in.mask;
    if (external) compute_mean(p.moments, in.image, in.mask, threads);
    if (is_given(in.covariance)) {
      compute_mean(*source, samples, usable, threads);
    } else if (!compute_moments(*source, samples, usable, {1, params.center}, threads)) {
      throw_value_error(op, external ? "background" : "image", "needs more usable pixels",
                        std::to_string(source->count));
    }
    if (params.center) std::copy_n(source->mean, s.padded, p.mean);
  } else {
    dispatch_float(in.mean.dtype, [&]<class T>() {
      const PixelList<T> list = pixel_list<T>(in.mean);
      for (int j = 0; j < s.bands; ++j) {
        p.mean[j] = static_cast<double>(list.data[band_offset(list, j)]);
      }
    });
  }
  if (is_given(in.covariance)) {
    load_covariance(op, p.factor, in.covariance);
  } else {
    std::copy_n(source->covariance, static_cast<std::int64_t>(s.padded) * s.padded, p.factor.lower);
    if (!factor_covariance(p.factor, s.bands)) {
      throw_value_error(op, is_given(in.background) ? "background" : "image",
                        "must have a covariance that is positive definite to have a gradient",
                        "a singular one");
    }
  }
  return source;
}

void load_directions(const Params& params, const Inputs& in, const Plan& p, const Shape& s) {
  if (s.targets == 0) return;
  const std::int64_t step = static_cast<std::int64_t>(s.parts) * s.padded;
  std::fill_n(p.duals, s.targets * step, 0.0);
  load_targets(params.caller, in.target, step, p.directions);
  for (int k = 0; k < s.targets; ++k) {
    double* w = p.directions + k * step;
    double* u = p.duals + k * step;
    subtract(w, p.mean, s.bands);
    forward(p.factor.lower, p.factor.padded, p.factor.inverse_diagonal, s.bands, w);
    p.squares[k] = dot(w, w, s.bands);
    std::copy_n(w, s.bands, u);
    backward(p.factor.lower, p.factor.padded, p.factor.inverse_diagonal, s.bands, u);
    if (s.parts == 2) {
      std::fill_n(w + s.padded, s.padded, 0.0);
      turn(w, s.bands, w + s.padded);
      turn(u, s.bands, u + s.padded);
    }
  }
}

// Where the gradient of a score lies.
template <class T>
DetectorBackwardBlock<T> grad_layout(const Inputs& in, const Shape& s) {
  DetectorBackwardBlock<T> block{};
  const int rank = in.image.rank;
  block.grad = static_cast<const T*>(in.grad.data);
  block.grad_cols = rank >= 2 ? in.image.shape[rank - 2] : 1;
  block.grad_row = rank == 3 ? in.grad.strides[0] : 0;
  block.grad_col = rank >= 2 ? in.grad.strides[rank - 2] : 0;
  block.grad_map = s.targets > 0 ? in.grad.strides[in.grad.rank - 1] : 0;
  return block;
}

template <class T>
void run_pixels(const Params& params, const Inputs& in, const Outputs& out, const Plan& p,
                const Shape& s, bool sums, int threads) {
  const std::int64_t padded = s.padded;
  const std::int64_t rows = directions_of(s) * padded;
  DetectorBackwardBlock<T> common = grad_layout<T>(in, s);
  common.pixels = pixel_list<T>(in.image);
  common.mean = p.mean;
  common.factor = p.factor.lower;
  common.inverse_diagonal = p.factor.inverse_diagonal;
  common.status = params.estimate ? p.moments.status : nullptr;
  common.score = params.score;
  common.targets = s.targets;
  common.parts = s.parts;
  common.directions = p.directions;
  common.duals = p.duals;
  common.squares = p.squares;
  common.image = static_cast<T*>(out.image.data);
  const std::int64_t chunk_pixels = gradient_chunk_pixels(s.pixels, sums);
  const std::int64_t chunks = gradient_chunks(s.pixels, chunk_pixels);
  dispatch_isa([&]<Isa I>() {
    parallel_for(threads, chunks, [&](std::int64_t chunk, int worker) {
      DetectorBackwardBlock<T> block = common;
      block.begin = chunk * chunk_pixels;
      block.end = std::min(s.pixels, block.begin + chunk_pixels);
      block.scratch = p.room + worker * p.room_bytes;
      if (sums) {
        block.sum = p.sums + chunk * padded;
        block.gram = p.grams + chunk * padded * padded;
        block.cross = p.crosses + chunk * rows;
        block.square_sums = p.square_sums + chunk * s.targets;
        std::fill_n(block.sum, padded, 0.0);
        std::fill_n(block.gram, padded * padded, 0.0);
        std::fill_n(block.cross, rows, 0.0);
        std::fill_n(block.square_sums, s.targets, 0.0);
      }
      DetectorBackwardKernel<I>::run(block);
    });
  });
}

// Gradients of target, mean and the real form of the covariance from the joined sums.
void finish(const Plan& p, const Shape& s) {
  const std::int64_t padded = s.padded;
  const int directions = directions_of(s);
  join_chunks(p.sums, padded, p.chunks);
  join_chunks(p.grams, padded * padded, p.chunks);
  join_chunks(p.crosses, directions * padded, p.chunks);
  join_chunks(p.square_sums, s.targets, p.chunks);
  std::fill_n(p.matrix, padded * padded, 0.0);
  for (int i = 0; i < s.bands; ++i) {
    for (int j = 0; j <= i; ++j) {
      double sum = p.grams[i * padded + j];
      for (int d = 0; d < directions; ++d) {
        const double* r = p.crosses + d * padded;
        const double* u = p.duals + d * padded;
        sum += 0.5 * (r[i] * u[j] + r[j] * u[i]);
      }
      for (int k = 0; k < s.targets; ++k) {
        const double* u = p.duals + k * s.parts * padded;
        sum += p.square_sums[k] * u[i] * u[j];
      }
      p.matrix[i * padded + j] = p.matrix[j * padded + i] = -sum;
    }
  }
  // From here on the first row of a target is its gradient.
  for (int k = 0; k < s.targets; ++k) {
    double* r = p.crosses + k * s.parts * padded;
    const double* u = p.duals + k * s.parts * padded;
    for (int j = 0; s.parts == 2 && j < s.bands; j += 2) {
      r[j] += r[padded + j + 1];
      r[j + 1] -= r[padded + j];
    }
    for (int j = 0; j < s.bands; ++j) r[j] += 2 * p.square_sums[k] * u[j];
  }
  for (int j = 0; j < s.bands; ++j) {
    double sum = p.sums[j];
    for (int k = 0; k < s.targets; ++k) sum += p.crosses[k * s.parts * padded + j];
    p.sums[j] = -sum;
  }
}

void write_outputs(const Outputs& out, const Plan& p, const Shape& s) {
  if (is_given(out.target)) {
    for (int k = 0; k < s.targets; ++k) {
      std::copy_n(p.crosses + static_cast<std::int64_t>(k) * s.parts * s.padded, s.bands,
                  static_cast<double*>(out.target.data) + static_cast<std::int64_t>(k) * s.bands);
    }
  }
  if (is_given(out.mean)) std::copy_n(p.sums, s.bands, static_cast<double*>(out.mean.data));
  if (is_given(out.covariance)) {
    write_real_form(p.matrix, s.padded, s.parts, s.bands / s.parts,
                    static_cast<double*>(out.covariance.data));
  }
}

// What mean and covariance of the samples add to the gradient of the samples.
template <class T>
void spread_statistics(const Params& params, const Inputs& in, const Outputs& out, const Plan& p,
                       const Shape& s, const Moments& source, int threads) {
  const bool external = is_given(in.background);
  const TensorView& to = external ? out.background : out.image;
  if (!is_given(to)) return;
  const bool fixed = is_given(in.covariance);
  const double samples = static_cast<double>(source.count);
  const double divisor = samples - (params.center ? 1 : 0);
  const int variables = s.bands / s.parts;
  for (int i = 0; i < variables && !fixed; ++i) {
    for (int j = 0; j <= i; ++j) {
      const RealForm g = from_real_form(p.matrix, s.padded, s.parts, i, j);
      const RealForm scaled{2 * g.real / divisor, 2 * g.imaginary / divisor};
      put_real_form(p.grams, s.padded, s.parts, i, j, scaled);
      put_real_form(p.grams, s.padded, s.parts, j, i, {scaled.real, -scaled.imaginary});
    }
  }
  for (int j = 0; j < s.padded; ++j) p.sums[j] = params.center ? p.sums[j] / samples : 0.0;
  SpreadBlock<T> block{};
  block.pixels = pixel_list<T>(external ? in.background : in.image);
  block.status = source.status;
  block.mean = p.mean;
  block.matrix = fixed ? nullptr : p.grams;
  block.offset = p.sums;
  block.add = !external;
  block.out = static_cast<T*>(to.data);
  spread_gradient(block, source.pixels, p.spread_room, threads);
}

// What the kernels need: the whitened pixels and S^-1 (x - m) among it.
template <class T>
struct DevicePlan {
  DeviceBackground background;
  EstimateLaunch<T> estimate;
  ClassifyLaunch<T> own;  // of the image, where a background has the samples
  double* differences;    // targets x padded_rows
  double* whitened;       // likewise
  double* directions;     // targets x parts x padded_rows
  double* duals;          // targets x bands
  double* squares;
  double* tiles;
  double* identity;  // bands x bands, as all that follow
  double* inverse;   // L^-1
  double* y;
  double* z;
  double* slopes;
  double* parts;
  double* gram;
  double* cross;
  double* matrix;
  double* spread;
  double* target;
  double* mean;
  double* offset;
};

template <class T>
DevicePlan<T> plan_device(Scratch& scratch, const Params& params, const Inputs& in) {
  const Shape s = shape_of(in);
  const bool external = is_given(in.background);
  DevicePlan<T> p{};
  p.background = plan_device_background(scratch, s.bands);
  if (params.estimate) {
    const bool fixed = is_given(in.covariance);
    if (external) p.own = plan_classify<T>(scratch, in.image, in.mask);
    const int variables = s.bands / s.parts;
    p.estimate =
        plan_estimate<T>(scratch, p.background, external ? in.background : in.image,
                         external ? TensorView{} : in.mask, {1, params.center}, Estimation{},
                         Scale::samples, fixed ? 1 : variables + (params.center ? 1 : 0), fixed);
  }
  const std::int64_t n = s.bands;
  const std::int64_t rows = std::int64_t{s.targets} * padded_rows(s.bands);
  const int slopes = slope_count(s.targets, s.parts);
  p.differences = scratch.take<double>(rows);
  p.whitened = scratch.take<double>(rows);
  p.directions = scratch.take<double>(rows * s.parts);
  p.duals = scratch.take<double>(s.targets * n);
  p.squares = scratch.take<double>(s.targets);
  p.tiles = plan_whiten_tiles(scratch, std::max<std::int64_t>({s.pixels, s.targets, n}), s.bands);
  p.identity = scratch.take<double>(n * n);
  p.inverse = scratch.take<double>(n * n);
  p.y = scratch.take<double>(s.pixels * n);
  p.z = scratch.take<double>(s.pixels * n);
  p.slopes = scratch.take<double>(s.pixels * slopes);
  p.parts = scratch.take<double>(cross_chunks(s.pixels) * std::max(n * n, slopes * (n + 1)));
  p.gram = scratch.take<double>(n * n);
  p.cross = scratch.take<double>(slopes * (n + 1));
  p.matrix = scratch.take<double>(n * n);
  p.spread = scratch.take<double>(n * n);
  p.target = scratch.take<double>(s.targets * n);
  p.mean = scratch.take<double>(n);
  p.offset = scratch.take<double>(n);
  return p;
}

// Rows y = L^-1 (x - m) in double precision; NaN where there is no factor.
template <class T, class Plan>
WhitenLaunch<T, double> whiten_rows(const Plan& p, const DevicePixels<T>& pixels,
                                    const double* mean, double* out) {
  WhitenLaunch<T, double> launch{};
  launch.pixels = pixels;
  launch.mean = mean;
  launch.lower = p.background.lower;
  launch.inverse = p.background.inverse;
  launch.verdicts.state = p.background.state;
  launch.verdicts.nan_when_loaded = true;
  launch.whitened = out;
  launch.out_stride = launch.out_bands = pixels.list.bands;
  launch.tiles = p.tiles;
  return launch;
}

template <class T>
SlopesLaunch<T> slopes_of(const Params& params, const Inputs& in, const Outputs& out,
                          const DevicePlan<T>& p, const Shape& s, const std::uint8_t* status) {
  const DetectorBackwardBlock<T> grad = grad_layout<T>(in, s);
  SlopesLaunch<T> launch{};
  launch.score = params.score;
  launch.bands = s.bands;
  launch.targets = s.targets;
  launch.parts = s.parts;
  launch.pixels = s.pixels;
  launch.y = p.y;
  launch.z = p.z;
  launch.w = p.whitened;
  launch.u = p.duals;
  launch.squares = p.squares;
  launch.status = status;
  launch.grad = grad.grad;
  launch.grad_cols = grad.grad_cols;
  launch.grad_row = grad.grad_row;
  launch.grad_col = grad.grad_col;
  launch.grad_map = grad.grad_map;
  launch.slopes = p.slopes;
  launch.image = static_cast<T*>(out.image.data);
  return launch;
}

template <class T>
void run_on_device(const Params& params, const Inputs& in, const Outputs& out,
                   const DevicePlan<T>& p, Route route, std::uintptr_t stream) {
  const Shape s = shape_of(in);
  const int n = s.bands;
  const bool external = is_given(in.background);
  const bool fixed = is_given(in.covariance);
  const std::uint8_t* samples = params.estimate ? p.estimate.samples.status : nullptr;
  const std::uint8_t* status = external ? p.own.status : samples;
  const double* mean = params.center ? p.background.mean : nullptr;
  const DevicePixels<double> z = device_rows(p.z, s.pixels, n, n);
  const int slopes = slope_count(s.targets, s.parts);
  with_background(route, params.caller, stream, [&](const auto& device) {
    const auto gradients = gradients_of(device);
    if (params.estimate) {
      if (external) device.classify(p.own);
      device.estimate(p.estimate);
    } else {
      load_mean(device, p.background, in.mean);
    }
    if (fixed) {
      load_covariance(device, p.background, in.covariance);
    } else {
      device.factor(factor_of(p.background, n, false));
    }
    gradients.identity(p.identity, n);
    device.whiten(whiten_rows<double>(p, device_rows(p.identity, n, n, n), nullptr, p.inverse));
    device.whiten(whiten_rows<T>(p, device_pixels<T>(in.image), mean, p.y));
    // Row i of the inverse of L, by columns: y^T L^-1 is the transpose of L^-T y.
    RowsLaunch<double, double> back{};
    back.pixels = device_rows(p.y, s.pixels, n, n);
    back.matrix = p.inverse;
    back.matrix_row = 1;
    back.matrix_col = n;
    back.status = status;
    back.out = p.z;
    gradients.rows(back);
    if (s.targets > 0) {
      dispatch_float(in.target.dtype, [&]<class Target>() {
        device.prepare(TargetLaunch<Target>{device_pixels<Target>(in.target), MatchedScore::ace,
                                            s.parts, p.background.mean, p.background.lower,
                                            p.background.inverse, p.differences, p.whitened,
                                            p.directions, p.tiles});
      });
      gradients.squares(p.whitened, s.targets, n, padded_rows(n), p.squares);
      back.pixels = device_rows(p.whitened, s.targets, n, padded_rows(n));
      back.status = nullptr;
      back.out = p.duals;
      gradients.rows(back);
    }
    gradients.slopes(slopes_of<T>(params, in, out, p, s, status));
    CrossLaunch<double> sums{p.z, n, z, n, p.slopes, slopes, 1, p.gram, p.parts};
    gradients.cross(sums);
    sums = {p.slopes, slopes, z, n + 1, nullptr, 0, 1, p.cross, p.parts};
    gradients.cross(sums);
    const TensorView& to = external ? out.background : out.image;
    const bool spreads = params.estimate && is_given(to);
    gradients.finish({n, s.targets, s.parts, p.gram, p.cross, p.duals, p.background.state, p.matrix,
                      is_given(out.target) ? static_cast<double*>(out.target.data) : p.target,
                      is_given(out.mean) ? static_cast<double*>(out.mean.data) : p.mean,
                      static_cast<double*>(out.covariance.data), spreads ? p.spread : nullptr,
                      p.offset, params.center ? 1 : 0, params.center});
    if (!spreads) return;
    RowsLaunch<T, T> spread{};
    spread.pixels = device_pixels<T>(external ? in.background : in.image);
    spread.mean = mean;
    spread.matrix = fixed ? nullptr : p.spread;
    spread.matrix_row = n;
    spread.matrix_col = 1;
    spread.offset = p.offset;
    spread.status = samples;
    spread.add = !external;
    spread.out = static_cast<T*>(to.data);
    gradients.rows(spread);
  });
}

}  // namespace

std::size_t detector_backward_workspace(const DetectorBackwardParams& params,
                                        const DetectorBackwardInputs& in, int threads) {
  check_inputs(params, in);
  Scratch scratch;
  if (runs_on_device(in.image.device)) {
    dispatch_float(in.image.dtype, [&]<class T>() { plan_device<T>(scratch, params, in); });
    return scratch.bytes();
  }
  make_plan(scratch, params, in, resolve_threads(params.caller, threads));
  return scratch.bytes();
}

void detector_backward(const DetectorBackwardParams& params, const DetectorBackwardInputs& in,
                       const DetectorBackwardOutputs& out, const Workspace& workspace,
                       const Execution& execution) {
  const char* op = params.caller;
  check_inputs(params, in);
  check_outputs(params, in, out);
  if (is_complex(in.image.dtype) && params.score == DetectorScore::signed_ace) {
    throw_value_error(op, "signed", "must be false for complex images, which know no sign",
                      dtype_name(in.image.dtype));
  }
  const Route route = select_route(op, execution, in.image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, detector_backward_workspace(params, in, threads));
  Scratch scratch(workspace);
  if (route != Route::cpu) {
    dispatch_float(in.image.dtype, [&]<class T>() {
      run_on_device<T>(params, in, out, plan_device<T>(scratch, params, in), route,
                       execution.stream);
    });
    return;
  }
  Plan p = make_plan(scratch, params, in, threads);
  const Shape s = shape_of(in);
  const Moments* source = load_background(params, in, p, s, threads);
  load_directions(params, in, p, s);
  const bool sums =
      params.estimate || is_given(out.target) || is_given(out.mean) || is_given(out.covariance);
  dispatch_float(in.image.dtype, [&]<class T>() {
    run_pixels<T>(params, in, out, p, s, sums, threads);
    if (!sums) return;
    finish(p, s);
    write_outputs(out, p, s);
    if (source) spread_statistics<T>(params, in, out, p, s, *source, threads);
  });
}

}  // namespace mahal

#include "mahal/matched.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/background.hpp"
#include "core/device_plan.hpp"
#include "core/estimators.hpp"
#include "core/image_checks.hpp"
#include "core/whitening.hpp"
#include "mahal/window_estimators.hpp"
#include "ops/matched_kernel.hpp"
#include "ops/matched_rows.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/rx_targets.hpp"

namespace mahal {

namespace {

// The names of the functions in Python.
const char* op_name(const MatchedParams& params) {
  switch (params.score) {
    case MatchedScore::filter:
    case MatchedScore::normalized_filter:
      return "matched_filter";
    case MatchedScore::cem:
    case MatchedScore::centered_cem:
      return "cem";
    default:
      return "ace";
  }
}

bool is_centered(const MatchedParams& params) {
  return params.center && params.score != MatchedScore::cem;
}

bool is_cosine(MatchedScore score) {
  return score == MatchedScore::ace || score == MatchedScore::signed_ace ||
         score == MatchedScore::subspace_ace;
}

// Bands are real ones: a complex band is two of them, and one variable. A complex target is two
// directions (see matched_rows.hpp).
struct Shape {
  int bands, padded, variables, targets, parts;
  std::int64_t pixels;
};

Shape shape_of(const TensorView& image, const TensorView& target) {
  Shape s;
  s.bands = real_bands(image);
  s.variables = static_cast<int>(image.shape[image.rank - 1]);
  s.parts = is_complex(image.dtype) ? 2 : 1;
  s.padded = padded_bands(s.bands);
  s.targets = static_cast<int>(target.shape[0]);
  s.pixels = pixel_count(image);
  return s;
}

// Products with all directions, and the square.
std::int64_t projection_rows(const Shape& s) { return s.targets * s.parts + 1LL; }

struct Plan {
  Moments moments;             // of the image
  Moments background_moments;  // of other pixels, where given
  EstimationRoom estimation;
  Factor factor;
  double* directions;  // targets x parts x padded
  double* offset;      // what the scores are relative to
  double* unloaded;    // copy of the covariance while it is tried
  char* whiten_room;
  double* projections;  // of the workers
  double* rows;         // of the workers
};

Plan make_plan(Scratch& scratch, const MatchedParams& params, const TensorView& image,
               const TensorView& target, const TensorView& background, int threads) {
  const Shape s = shape_of(image, target);
  Plan p{};
  p.factor = plan_factor(scratch, s.bands);
  p.directions = scratch.take<double>(static_cast<std::int64_t>(s.targets) * s.parts * s.padded);
  p.offset = scratch.take<double>(s.padded);
  const bool again = is_fixed_point(params.estimation.estimator);
  p.moments = plan_moments(scratch, s.pixels, s.bands, threads, again);
  if (is_given(background)) {
    p.background_moments = plan_moments(scratch, pixel_count(background), s.bands, threads, again);
  }
  const std::int64_t samples = pixel_count(is_given(background) ? background : image);
  p.estimation = plan_estimation(scratch, params.estimation, samples, s.bands, threads);
  // Whatever belongs to one phase alone shares its memory with the others.
  const std::size_t statistics_done = scratch.mark();
  p.unloaded = scratch.take<double>(static_cast<std::int64_t>(s.padded) * s.padded);
  scratch.rewind(statistics_done);
  p.whiten_room = plan_whitening(scratch, s.bands, threads);
  p.projections = scratch.take<double>(projection_rows(s) * pixels_per_task * threads);
  p.rows = scratch.take<double>(static_cast<std::int64_t>(s.padded) * threads);
  return p;
}

// Samples that the matrix needs to be regular.
std::int64_t needed_samples(const MatchedParams& params, const Shape& s, bool fixed) {
  if (fixed) return 1;
  const bool center = is_centered(params);
  if (params.estimation.estimator == Estimator::scm) return s.variables + (center ? 1 : 0);
  return least_samples(params.estimation.estimator, s.variables, center);
}

bool is_local(const MatchedParams& params) {
  return params.window.outer > 0 || params.window.inner > 0;
}

// Windows that the engine of local RX cannot score targets against.
bool has_estimated_windows(const MatchedParams& params, const TensorView& image,
                           const TensorView& covariance) {
  return is_local(params) && !is_given(covariance) &&
         (is_complex(image.dtype) || !params.center ||
          params.estimation.estimator != Estimator::scm);
}

WindowEstimatorsParams window_params(const MatchedParams& params, const TensorView& target) {
  WindowEstimatorsParams local;
  local.caller = op_name(params);
  local.windows = &params.window;
  local.window_count = 1;
  local.border = params.border;
  local.estimation = params.estimation;
  local.ddof = params.center ? 1 : 0;
  local.center = params.center;
  local.target = target;
  local.kind = params.score;
  local.progress = params.progress;
  return local;
}

RxTargets local_targets(const MatchedParams& params, const TensorView& target) {
  return {op_name(params), params.score, target};
}

RxParams local_params(const MatchedParams& params) {
  RxParams local;
  local.window = params.window;
  local.border = params.border;
  local.singular = params.singular;
  local.center = params.center;
  local.progress = params.progress;
  return local;
}

void check_inputs(const MatchedParams& params, const TensorView& image, const TensorView& target,
                  const TensorView& background, const TensorView& covariance) {
  const char* op = op_name(params);
  check_pixels(op, "image", image, {2, 3});
  check_targets(op, target, image);
  if (is_given(background)) check_background(op, background, image);
  const bool energy = op_name(params) == std::string("cem");
  if (energy && is_given(covariance)) {
    throw_value_error(op, "covariance", "must not be given", "one");
  }
  if (energy && is_local(params)) throw_value_error(op, "window", "must not be given", "one");
  if (is_local(params) && is_given(background)) {
    throw_value_error(op, "background", "cannot be combined with window", "both");
  }
  check_estimation(op, params.estimation);
  if ((energy || is_given(covariance)) && params.estimation.estimator != Estimator::scm) {
    throw_value_error(op, "estimator", "must be the sample covariance with a covariance or for cem",
                      "another");
  }
  if (is_complex(image.dtype) && params.score == MatchedScore::signed_ace) {
    throw_value_error(op, "signed", "must be false for complex images, which know no sign",
                      dtype_name(image.dtype));
  }
  if (is_given(covariance)) check_mean_and_covariance(op, image, TensorView{}, covariance);
}

// From targets to the directions whose products with a pixel make the score: unit vectors w / |w|
// in whitened coordinates, or what a linear score multiplies the difference x - offset with.
void prepare_directions(const MatchedParams& params, const Plan& p, const Shape& s,
                        const TensorView& target) {
  const char* op = op_name(params);
  const std::int64_t step = static_cast<std::int64_t>(s.parts) * s.padded;
  load_targets(op, target, step, p.directions);
  for (int k = 0; k < s.targets; ++k) {
    double* w = p.directions + k * step;
    if (!subtract(w, p.offset, s.bands)) {
      throw_value_error(op, "target",
                        is_centered(params) ? "must differ from the mean" : "must not be zero",
                        "equal values at " + std::to_string(k));
    }
    forward(p.factor.lower, p.factor.padded, p.factor.inverse_diagonal, s.bands, w);
    if (params.score == MatchedScore::subspace_ace) {
      if (!orthonormalize(p.directions, k * s.parts, s.padded, s.bands, w)) {
        throw_value_error(op, "target", "must hold linearly independent differences to the mean",
                          "a dependent one at " + std::to_string(k));
      }
    } else {
      const double square = dot(w, w, s.bands);
      const bool unit = is_cosine(params.score) || params.score == MatchedScore::normalized_filter;
      const double length = unit ? std::sqrt(square) : square;
      for (int j = 0; j < s.bands; ++j) w[j] /= length;
      if (!is_cosine(params.score))
        backward(p.factor.lower, p.factor.padded, p.factor.inverse_diagonal, s.bands, w);
    }
    if (s.parts == 2) {
      std::fill_n(w + s.padded, s.padded, 0.0);
      turn(w, s.bands, w + s.padded);
    }
  }
}

// Scores of the pixels of one task from their products with the directions, one row each, and their
// squares in the row after them.
template <class T>
void cosine_scores(MatchedScore kind, const double* projections, const Shape& s,
                   std::int64_t pixels, T* out) {
  const double* square = projections + (projection_rows(s) - 1) * pixels_per_task;
  for (std::int64_t i = 0; i < pixels; ++i) {
    double total = 0;
    for (int k = 0; k < s.targets; ++k) {
      const double* c = projections + k * s.parts * pixels_per_task + i;
      double value;
      if (kind == MatchedScore::signed_ace) {
        value = std::clamp(*c / std::sqrt(square[i]), -1.0, 1.0);
      } else {
        const double other = s.parts == 2 ? c[pixels_per_task] : 0;
        value = std::min((*c * *c + other * other) / square[i], 1.0);
      }
      if (square[i] == 0) value = 0;
      total += value;
      if (kind != MatchedScore::subspace_ace) out[i * s.targets + k] = static_cast<T>(value);
    }
    if (kind == MatchedScore::subspace_ace) out[i] = static_cast<T>(std::min(total, 1.0));
  }
}

template <class T>
void score_pixels(const MatchedParams& params, const Plan& p, const Shape& s,
                  const TensorView& image, T* score, int threads) {
  const PixelList<T> pixels = pixel_list<T>(image);
  const std::int64_t tasks = (s.pixels + pixels_per_task - 1) / pixels_per_task;
  dispatch_isa([&]<Isa I>() {
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      const std::int64_t begin = task * pixels_per_task;
      const std::int64_t end = std::min(s.pixels, begin + pixels_per_task);
      if (!is_cosine(params.score)) {
        LinearBlock<T> block{};
        block.pixels = pixels;
        block.begin = begin;
        block.end = end;
        block.mean = p.offset;
        block.directions = p.directions;
        block.count = s.targets;
        block.pairs = s.parts == 2;
        block.score = score;
        block.row = p.rows + static_cast<std::int64_t>(s.padded) * worker;
        MatchedKernel<I>::linear(block);
        return;
      }
      WhitenBlock<T, T> block{};
      block.pixels = pixels;
      block.begin = begin;
      block.end = end;
      block.mean = p.offset;
      block.factor = p.factor.lower;
      block.factor_stride = p.factor.padded;
      block.inverse_diagonal = p.factor.inverse_diagonal;
      block.projections = p.projections + projection_rows(s) * pixels_per_task * worker;
      block.projection_stride = pixels_per_task;
      block.directions = p.directions;
      block.direction_count = s.targets * s.parts;
      block.scratch =
          p.whiten_room + worker * static_cast<std::int64_t>(whiten_scratch_bytes(s.padded));
      WhitenKernel<I>::run(block);
      const bool one = params.score == MatchedScore::subspace_ace;
      cosine_scores(params.score, block.projections, s, end - begin,
                    score + begin * (one ? 1 : s.targets));
    });
  });
}

// Global scores on a device.
template <class T>
struct DevicePlan {
  DeviceBackground background;
  EstimateLaunch<T> estimate;
  ClassifyLaunch<T> own;  // of the image, where a background has the samples
  double* differences;    // targets x padded_rows
  double* whitened;       // likewise
  double* directions;     // targets x parts x padded_rows
  double* tiles;
};

template <class T>
DevicePlan<T> plan_device(Scratch& scratch, const MatchedParams& params, const TensorView& image,
                          const TensorView& target, const TensorView& background,
                          const TensorView& covariance, const TensorView& mask) {
  const Shape s = shape_of(image, target);
  const bool external = is_given(background);
  const bool fixed = is_given(covariance);
  DevicePlan<T> p{};
  p.background = plan_device_background(scratch, s.bands);
  if (external) p.own = plan_classify<T>(scratch, image, mask);
  p.estimate =
      plan_estimate<T>(scratch, p.background, external ? background : image,
                       external ? TensorView{} : mask, {1, is_centered(params)}, params.estimation,
                       Scale::samples, needed_samples(params, s, fixed), fixed);
  const std::int64_t rows = std::int64_t{s.targets} * padded_rows(s.bands);
  p.differences = scratch.take<double>(rows);
  p.whitened = scratch.take<double>(rows);
  p.directions = scratch.take<double>(rows * s.parts);
  p.tiles = plan_whiten_tiles(scratch, std::max<std::int64_t>(s.pixels, s.targets), s.bands);
  return p;
}

template <class T>
void score_on_device(const MatchedParams& params, const DevicePlan<T>& p, const TensorView& image,
                     const TensorView& target, const TensorView& background,
                     const TensorView& covariance, const TensorView& score,
                     const TensorView& status, Route route, std::uintptr_t stream) {
  const Shape s = shape_of(image, target);
  const bool external = is_given(background);
  WhitenLaunch<T, T> launch{};
  launch.pixels = device_pixels<T>(image);
  launch.mean = p.background.mean;
  if (is_cosine(params.score)) {
    launch.lower = p.background.lower;
    launch.inverse = p.background.inverse;
  }
  launch.verdicts.pixel = external ? p.own.status : p.estimate.samples.status;
  launch.verdicts.state = p.background.state;
  launch.verdicts.nan_when_loaded = params.singular == Singular::nan;
  launch.verdicts.status = static_cast<std::uint8_t*>(status.data);
  launch.directions = {p.directions, s.targets, s.parts, params.score};
  launch.matched = static_cast<T*>(score.data);
  launch.tiles = p.tiles;
  with_background(route, op_name(params), stream, [&](const auto& device) {
    if (external) device.classify(p.own);
    device.estimate(p.estimate);
    if (is_given(covariance)) {
      load_covariance(device, p.background, covariance);
    } else {
      // Loading stands in for a sample covariance only.
      const bool load = params.estimation.estimator == Estimator::scm;
      device.factor(factor_of(p.background, s.bands, load));
    }
    dispatch_float(target.dtype, [&]<class Target>() {
      device.prepare(TargetLaunch<Target>{device_pixels<Target>(target), params.score, s.parts,
                                          p.background.mean, p.background.lower,
                                          p.background.inverse, p.differences, p.whitened,
                                          p.directions, p.tiles});
    });
    device.whiten(launch);
  });
}

}  // namespace

std::size_t matched_workspace(const MatchedParams& params, const TensorView& image,
                              const TensorView& target, const TensorView& background,
                              const TensorView& covariance, int threads) {
  check_inputs(params, image, target, background, covariance);
  if (has_estimated_windows(params, image, covariance)) {
    return window_estimators_workspace(window_params(params, target), image, threads);
  }
  if (is_local(params)) {
    return rx_targets_workspace(local_targets(params, target), local_params(params), image,
                                background, covariance, threads);
  }
  Scratch scratch;
  if (runs_on_device(image.device)) {
    dispatch_float(image.dtype, [&]<class T>() {
      plan_device<T>(scratch, params, image, target, background, covariance, TensorView{});
    });
    return scratch.bytes();
  }
  make_plan(scratch, params, image, target, background, resolve_threads(op_name(params), threads));
  return scratch.bytes();
}

void matched(const MatchedParams& params, const TensorView& image, const TensorView& target,
             const TensorView& background, const TensorView& covariance, const TensorView& mask,
             const TensorView& score, const TensorView& status, const Workspace& workspace,
             const Execution& execution) {
  const char* op = op_name(params);
  check_inputs(params, image, target, background, covariance);
  if (has_estimated_windows(params, image, covariance)) {
    window_estimators(window_params(params, target), image, mask, TensorView{}, TensorView{}, score,
                      status, workspace, execution);
    return;
  }
  if (is_local(params)) {
    rx_targets(local_targets(params, target), local_params(params), image, background, covariance,
               mask, score, status, workspace, execution);
    return;
  }
  check_mask(op, mask, image);
  const Shape s = shape_of(image, target);
  const int maps = params.score == MatchedScore::subspace_ace ? 1 : s.targets;
  check_scores(op, "score", score, real_dtype(image.dtype), s.pixels * maps);
  check_status(op, status, s.pixels);
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace,
                  matched_workspace(params, image, target, background, covariance, threads));

  const bool fixed = is_given(covariance);
  const bool external = is_given(background);
  const std::int64_t needed = needed_samples(params, s, fixed);
  const auto throw_few_samples = [&](std::int64_t count) {
    throw_value_error(op, external ? "background" : "image",
                      "needs " + std::to_string(needed) + " usable pixels or more",
                      std::to_string(count));
  };

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    const std::int64_t count = pixel_count(external ? background : image);
    if (count < needed) throw_few_samples(count);
    dispatch_float(image.dtype, [&]<class T>() {
      const DevicePlan<T> p =
          plan_device<T>(scratch, params, image, target, background, covariance, mask);
      score_on_device(params, p, image, target, background, covariance, score, status, route,
                      execution.stream);
    });
    return;
  }
  Plan p = make_plan(scratch, params, image, target, background, threads);
  Moments* source = external ? &p.background_moments : &p.moments;
  if (external) compute_mean(p.moments, image, mask, threads);
  const TensorView& samples = external ? background : image;
  const TensorView& usable = external ? TensorView{} : mask;
  const bool center = is_centered(params);
  std::uint8_t outcome = status_ok;
  if (fixed) {
    compute_mean(*source, samples, usable, threads);
  } else {
    outcome = estimate_moments(*source, samples, usable, {1, center}, params.estimation,
                               Scale::samples, p.estimation, threads);
  }
  const bool sample_covariance = params.estimation.estimator == Estimator::scm;
  if (source->count < needed || outcome == status_few_samples) throw_few_samples(source->count);
  std::fill_n(p.offset, s.padded, 0.0);
  if (center) std::copy_n(source->mean, s.padded, p.offset);
  bool singular = false;
  if (fixed) {
    load_covariance(op, p.factor, covariance);
  } else {
    std::copy_n(source->covariance, static_cast<std::int64_t>(s.padded) * s.padded, p.factor.lower);
    singular = sample_covariance
                   ? factor_unit(p.factor, p.unloaded, s.bands)
                   : outcome == status_singular || !factor_covariance(p.factor, s.bands);
  }
  // Of the pixels that are usable.
  std::uint8_t found = status_ok;
  if (outcome == status_not_converged) found = outcome;
  if (singular) found = status_singular;
  // Loading stands in for a sample covariance only.
  const bool hopeless = singular && (params.singular == Singular::nan || !sample_covariance);
  if (sample_covariance || !singular) prepare_directions(params, p, s, target);
  dispatch_float(image.dtype, [&]<class T>() {
    T* out = static_cast<T*>(score.data);
    std::uint8_t* state = static_cast<std::uint8_t*>(status.data);
    if (!hopeless) score_pixels<T>(params, p, s, image, out, threads);
    for (std::int64_t i = 0; i < s.pixels; ++i) {
      state[i] = p.moments.status[i];
      if (state[i] == status_ok) {
        state[i] = found;
        if (!hopeless) continue;
      }
      std::fill_n(out + i * maps, maps, std::numeric_limits<T>::quiet_NaN());
    }
  });
}

}  // namespace mahal

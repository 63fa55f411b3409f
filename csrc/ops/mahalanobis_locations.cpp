#include "mahal/mahalanobis_locations.hpp"

#include <cstdint>

#include "core/image_checks.hpp"
#include "core/whitening.hpp"

namespace mahal {

namespace {

constexpr const char* op = "mahalanobis";

// Memory of one worker.
std::int64_t room_bytes(const TensorView& x) {
  Scratch scratch;
  plan_fixed_background(scratch, real_bands(x), 1);
  return static_cast<std::int64_t>((scratch.bytes() + 63) / 64 * 64);
}

// The part of an array that belongs to one index of its axis.
TensorView part_of(const TensorView& view, int axis, std::int64_t index) {
  TensorView part = view;
  part.data = static_cast<char*>(view.data) +
              index * view.strides[axis] * static_cast<std::int64_t>(item_size(view.dtype));
  part.rank = view.rank - 1;
  for (int k = axis; k < part.rank; ++k) {
    part.shape[k] = view.shape[k + 1];
    part.strides[k] = view.strides[k + 1];
  }
  return part;
}

void check_statistics(const TensorView& x, const TensorView& mean, const TensorView& covariance) {
  const std::int64_t locations = x.shape[1], bands = x.shape[2];
  const DType precise = is_complex(x.dtype) ? DType::c128 : DType::f64;
  check_given(op, "mean", mean);
  check_dtype(op, "mean", mean, {x.dtype, precise});
  check_shape(op, "mean", mean, {locations, bands});
  check_same_device(op, "mean", mean, "x", x);
  check_given(op, "covariance", covariance);
  check_dtype(op, "covariance", covariance, {x.dtype, precise});
  check_shape(op, "covariance", covariance, {locations, bands, bands});
  check_same_device(op, "covariance", covariance, "x", x);
}

}  // namespace

std::size_t mahalanobis_locations_workspace(const TensorView& x, int threads) {
  check_pixels(op, "x", x, {3});
  Scratch scratch;
  scratch.take<char>(room_bytes(x) * resolve_threads(op, threads));
  return scratch.bytes();
}

void mahalanobis_locations(const TensorView& x, const TensorView& mean,
                           const TensorView& covariance, const TensorView& score,
                           const Workspace& workspace, const Execution& execution) {
  check_pixels(op, "x", x, {3});
  check_statistics(x, mean, covariance);
  check_output(op, "score", score, real_dtype(x.dtype), {x.shape[0], x.shape[1]});
  select_route(op, execution, x.device, false);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, mahalanobis_locations_workspace(x, threads));
  Scratch scratch(workspace);
  const std::int64_t bytes = room_bytes(x);
  const std::int64_t samples = x.shape[0], locations = x.shape[1];
  char* memory = scratch.take<char>(bytes * threads);
  dispatch_float(x.dtype, [&]<class T>() {
    parallel_for(threads, locations, [&](std::int64_t location, int worker) {
      Scratch room({memory + worker * bytes, static_cast<std::size_t>(bytes)});
      const FixedBackground background = plan_fixed_background(room, real_bands(x), 1);
      load_fixed_background(op, background, part_of(mean, 0, location),
                            part_of(covariance, 0, location));
      WhitenBlock<T, T> block{};
      block.pixels = pixel_list<T>(part_of(x, 1, location));
      block.mean = background.mean;
      block.factor = background.factor.lower;
      block.factor_stride = background.factor.padded;
      block.inverse_diagonal = background.factor.inverse_diagonal;
      block.score = static_cast<T*>(score.data) + location;
      block.score_stride = locations;
      whiten_pixels(block, samples, background.room, 1);
    });
  });
}

}  // namespace mahal

// Checks of image arguments that several ops share.
#pragma once

#include <string>

#include "core/checks.hpp"

namespace mahal {

inline void check_pixels(const char* op, const char* argument, const TensorView& x,
                         std::initializer_list<int> ranks) {
  check_given(op, argument, x);
  check_rank(op, argument, x, ranks);
  check_dtype(op, argument, x, {DType::f32, DType::f64, DType::c64, DType::c128});
  check_not_empty(op, argument, x);
}

// A boolean array with the shape of the pixels of `x`.
inline void check_mask(const char* op, const TensorView& mask, const TensorView& x) {
  if (!is_given(mask)) return;
  check_dtype(op, "mask", mask, {DType::boolean, DType::u8});
  check_same_device(op, "mask", mask, "image", x);
  bool same = mask.rank == x.rank - 1;
  for (int axis = 0; same && axis < mask.rank; ++axis) same = mask.shape[axis] == x.shape[axis];
  if (!same) {
    throw_value_error(op, "mask", "must have the shape of the pixels", shape_text(mask));
  }
}

// Statistics may be more precise than the pixels.
inline void check_mean_and_covariance(const char* op, const TensorView& x, const TensorView& mean,
                                      const TensorView& covariance) {
  const std::int64_t bands = x.shape[x.rank - 1];
  const DType precise = is_complex(x.dtype) ? DType::c128 : DType::f64;
  if (is_given(mean)) {
    check_dtype(op, "mean", mean, {x.dtype, precise});
    check_shape(op, "mean", mean, {bands});
    check_same_device(op, "mean", mean, "x", x);
  }
  check_given(op, "covariance", covariance);
  check_dtype(op, "covariance", covariance, {x.dtype, precise});
  check_shape(op, "covariance", covariance, {bands, bands});
  check_same_device(op, "covariance", covariance, "x", x);
}

// Other pixels that give the statistics.
inline void check_background(const char* op, const TensorView& background,
                             const TensorView& image) {
  check_pixels(op, "background", background, {2, 3});
  check_same_dtype(op, "background", background, "image", image);
  check_same_device(op, "background", background, "image", image);
  const std::string bands = std::to_string(image.shape[image.rank - 1]);
  if (background.shape[background.rank - 1] != image.shape[image.rank - 1]) {
    throw_value_error(op, "background", "must have the bands of the image (" + bands + ")",
                      shape_text(background));
  }
}

// One or more spectra (targets, bands), which may be more precise than the pixels.
inline void check_targets(const char* op, const TensorView& target, const TensorView& image) {
  check_given(op, "target", target);
  check_rank(op, "target", target, {2});
  check_dtype(op, "target", target,
              {image.dtype, is_complex(image.dtype) ? DType::c128 : DType::f64});
  check_same_device(op, "target", target, "image", image);
  check_not_empty(op, "target", target);
  check_shape(op, "target", target, {target.shape[0], image.shape[image.rank - 1]});
}

inline void check_scores(const char* op, const char* argument, const TensorView& scores,
                         DType dtype, std::int64_t count) {
  check_given(op, argument, scores);
  if (scores.dtype != dtype || element_count(scores) != count || !is_contiguous(scores) ||
      scores.read_only) {
    throw_value_error(
        op, argument,
        "must be contiguous with " + std::to_string(count) + " elements of " + dtype_name(dtype),
        shape_text(scores));
  }
}

inline void check_status(const char* op, const TensorView& status, std::int64_t pixels) {
  check_given(op, "status", status);
  if (status.dtype != DType::u8 || element_count(status) != pixels || !is_contiguous(status) ||
      status.read_only) {
    throw_value_error(op, "status", "must be contiguous uint8 with one element per pixel",
                      shape_text(status));
  }
}

}  // namespace mahal

// Checks of image arguments that several ops share.
#pragma once

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

}  // namespace mahal

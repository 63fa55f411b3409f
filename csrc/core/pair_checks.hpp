// Checks of pairs of covariance matrices. Host side.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "core/checks.hpp"
#include "mahal/covariance_distance.hpp"

namespace mahal {

// Arguments of covariance_distance and of its gradient.
inline void check_matrix_pairs(const char* op, const CovarianceDistanceParams& params,
                               const TensorView& a, const TensorView& b) {
  check_field(op, "a", a);
  check_field(op, "b", b);
  check_same_dtype(op, "b", b, "a", a);
  check_same_device(op, "b", b, "a", a);
  if (a.rank < 2 || a.shape[a.rank - 1] != a.shape[a.rank - 2] || a.shape[a.rank - 1] == 0) {
    throw_value_error(op, "a", "must have shape (..., p, p) with p > 0", shape_text(a));
  }
  if (a.rank != b.rank || !std::equal(a.shape, a.shape + a.rank, b.shape)) {
    throw_value_error(op, "b", "must have the shape of a " + shape_text(a), shape_text(b));
  }
  if (params.metric == Metric::box_m && is_complex(a.dtype)) {
    throw_type_error(op, "metric", "'box_m' is for real matrices, take 'wishart'",
                     dtype_name(a.dtype));
  }
  if (params.metric == Metric::wishart || params.metric == Metric::box_m) {
    const double least = std::min(params.looks_a, params.looks_b);
    const double p = static_cast<double>(a.shape[a.rank - 1]);
    if (!(least >= p) || !std::isfinite(params.looks_a + params.looks_b)) {
      throw_value_error(op, "looks", "must be finite and at least p",
                        std::to_string(least) + " for p = " + std::to_string(a.shape[a.rank - 1]));
    }
  }
}

}  // namespace mahal

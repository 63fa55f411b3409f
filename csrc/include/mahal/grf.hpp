// Gaussian fields that are stationary on a torus: quadratic forms with the inverse covariance, and
// the likelihood terms and gradients that are made of them, one plane at a time.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// With the covariance S of a plane of N pixels and
//   quad  = z^T S^-1 z,                  slope = -z^T (d S^-1 / d log range) z,
//   rise  = sum (e^u - 1),               excess = sum (e^u - 1 - u),   u = log_variance + shift,
// every result of a plane is affine in these sums: constant, times (quad or slope), times
// (excess or rise). z is the field, minus its mean where `centered`. Without log_variance the last
// two sums are zero.
struct GrfParams {
  bool centered = false;
  double shift = 0;
  double value[3] = {0, 0.5, 0.5};          // with quad, excess
  double range_slope[3] = {0, -0.5, 0};     // with slope, rise
  double variance_slope[3] = {0, -0.5, 0};  // with quad, rise
  double field_scale = 1;                   // field_gradient = field_scale * weight * S^-1 z
};

// Outputs that are not given are not computed.
struct GrfOutputs {
  TensorView value, range_slope, variance_slope;     // one element per plane
  TensorView field_gradient, log_variance_gradient;  // like the field
};

MAHAL_API std::size_t grf_workspace(const TensorView& field, const TensorView& slope,
                                    const TensorView& field_gradient, int threads);

// field: (..., rows, cols), float32 or float64, any strides. log_variance: not given, or like the
// field. precision: (rows / 2 + 1, cols / 2 + 1), 1 / (N eigenvalue) for the eigenvalues of S in
// the order of a Fourier transform, which are even along both axes; its first element is ignored
// where `centered`. slope: not given, or alike, -d precision / d log range; range_slope needs it.
// weight: not given, or one factor per plane for the two gradients. All of one dtype. With
// log_variance, log_variance_gradient = weight * (e^u - 1) / 2. The CUDA kernels take sides of
// which a block holds a line in shared memory. A plane with a value that is not finite gives NaN or
// infinity for itself alone.
MAHAL_API void grf(const GrfParams& params, const TensorView& field, const TensorView& log_variance,
                   const TensorView& precision, const TensorView& slope, const TensorView& weight,
                   const GrfOutputs& outputs, const Workspace& workspace,
                   const Execution& execution);

}  // namespace mahal

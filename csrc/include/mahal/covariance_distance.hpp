// Distances, divergences and test statistics between pairs of covariance matrices.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// A, B: the two matrices, p x p; lambda: eigenvalues of A^-1 B; n, m: looks of A and B.
//   frobenius:        ||A - B||
//   logeuclid:        ||log A - log B||
//   affine_invariant: sqrt(sum ln^2 lambda)
//   logdet:           sqrt(ln|(A + B) / 2| - (ln|A| + ln|B|) / 2)
//   wasserstein:      sqrt(tr A + tr B - 2 tr (B^1/2 A B^1/2)^1/2)
//   symmetric_kl:     sum (lambda + 1 / lambda) / 2 - p
//   hotelling_lawley: tr(B^-1 A)
//   wishart:          -2 rho ln Q of two complex Wishart matrices
//   box_m:            C M of two real covariances
enum class Metric : std::uint8_t {
  frobenius,
  logeuclid,
  affine_invariant,
  logdet,
  wasserstein,
  symmetric_kl,
  hotelling_lawley,
  wishart,
  box_m
};

struct CovarianceDistanceParams {
  Metric metric = Metric::frobenius;
  bool squared = false;  // of the first five, which are distances
  double looks_a = 0;    // of wishart and box_m
  double looks_b = 0;
};

MAHAL_API std::size_t covariance_distance_workspace(const CovarianceDistanceParams& params,
                                                    const TensorView& a, const TensorView& b,
                                                    int threads);
// a, b: (..., p, p) of one shape and dtype (float32, float64, complex64, complex128), of which the
// lower triangles are read; strides may be zero. score: (...,) real; status: uint8 (...,): 0, or 2
// where a matrix is not positive definite to working precision (a pivot not above p * epsilon times
// its diagonal entry; frobenius asks for none), or 3 where one holds a value that is not finite or
// the score overflows; such scores are NaN. Computed in float64.
MAHAL_API void covariance_distance(const CovarianceDistanceParams& params, const TensorView& a,
                                   const TensorView& b, const TensorView& score,
                                   const TensorView& status, const Workspace& workspace,
                                   const Execution& execution);

}  // namespace mahal

// Covariance estimators beyond the sample covariance, for all pixels of an image together, and the
// rules that they share with those of windows.
#pragma once

#include <cstdint>
#include <string>

#include "core/background.hpp"
#include "mahal/estimators.hpp"

namespace mahal {

// Throws ValueError in the name of `op`.
void check_estimation(const char* op, const Estimation& estimation);

// Fixed points exist for more samples than bands, one more when their mean is estimated; a sum of
// products needs one sample.
std::int64_t least_samples(Estimator estimator, std::int64_t variables, bool center);

// What to tell the user who gave less: for the sample covariance in the words of its divisor.
std::string few_samples_rule(Estimator estimator, std::int64_t variables, bool center);
bool is_fixed_point(Estimator estimator);

struct EstimationRoom {
  Factor factor;
  double* previous;   // padded x padded
  double* distances;  // per pixel
  char* whiten_room;
};
// Nothing for the sample covariance.
EstimationRoom plan_estimation(Scratch& scratch, const Estimation& estimation, std::int64_t pixels,
                               int bands, int threads);

// The scale of Tyler's estimate: trace p, or such that the samples have a mean squared Mahalanobis
// distance of p, as those of a sample covariance have.
enum class Scale : std::uint8_t { unit_trace, samples };

// compute_moments for any estimator; the divisor applies to the sample covariance, loaded or not.
// Returns status_ok, status_few_samples or status_singular (no covariance), or
// status_not_converged. The vanishing estimate of a constant image counts as singular.
std::uint8_t estimate_moments(Moments& moments, const TensorView& x, const TensorView& mask,
                              const Normalization& normalization, const Estimation& estimation,
                              Scale scale, const EstimationRoom& room, int threads);

}  // namespace mahal

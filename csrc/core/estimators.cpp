#include "core/estimators.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/dispatch.hpp"
#include "core/whitening.hpp"
#include "mahal/error.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

void check_estimation(const char* op, const Estimation& e) {
  const auto check = [&](const char* argument, bool holds, const char* rule, double came) {
    if (!holds) throw_value_error(op, argument, rule, std::to_string(came));
  };
  check("loading", e.loading >= 0 && std::isfinite(e.loading), "must be finite and not negative",
        e.loading);
  check("nu", e.nu > 0 && std::isfinite(e.nu), "must be finite and positive", e.nu);
  check("tolerance", e.tolerance > 0 && e.tolerance < 1, "must be between 0 and 1", e.tolerance);
  check("max_iterations", e.max_iterations >= 1, "must be at least 1", e.max_iterations);
}

bool is_fixed_point(Estimator estimator) {
  return estimator == Estimator::tyler || estimator == Estimator::student_t;
}

std::int64_t least_samples(Estimator estimator, std::int64_t variables, bool center) {
  return (is_fixed_point(estimator) ? variables + 1 : 1) + (center ? 1 : 0);
}

std::string few_samples_rule(Estimator estimator, std::int64_t variables, bool center) {
  if (estimator <= Estimator::loading && center) return "needs more usable pixels than ddof";
  return "needs " + std::to_string(least_samples(estimator, variables, center)) +
         " usable pixels or more";
}

EstimationRoom plan_estimation(Scratch& scratch, const Estimation& estimation, std::int64_t pixels,
                               int bands, int threads) {
  EstimationRoom room{};
  if (estimation.estimator == Estimator::scm) return room;
  const std::int64_t padded = padded_bands(bands);
  room.factor = plan_factor(scratch, bands);
  room.previous = scratch.take<double>(padded * padded);
  room.distances = scratch.take<double>(pixels);
  room.whiten_room = plan_whitening(scratch, bands, threads);
  return room;
}

namespace {

// Everything about one call.
struct Estimate {
  Moments& m;
  const TensorView& x;
  const TensorView& mask;
  const Estimation& estimation;
  const EstimationRoom& room;
  int threads;
  int bands;         // real ones
  double variables;  // as the user counts them
  double parts;      // 2 where they are complex

  double& at(double* a, std::int64_t i, std::int64_t j) const { return a[i * m.padded + j]; }

  double trace(double* a) const {
    double sum = 0;
    for (int j = 0; j < bands; ++j) sum += at(a, j, j);
    return sum / parts;
  }
  // Squared Frobenius norm of the matrix with the lower triangle value(i, j), less `shift` on its
  // diagonal.
  template <class F>
  double sum_squares(const F& value, double shift) const {
    double sum = 0;
    for (int i = 0; i < bands; ++i) {
      for (int j = 0; j < i; ++j) sum += 2 * value(i, j) * value(i, j);
      sum += (value(i, i) - shift) * (value(i, i) - shift);
    }
    return sum / parts;
  }

  // |L^-1 (x - m)|^2 of every usable pixel, zero for the others. With L of the factor, or I.
  bool find_distances(bool identity) const {
    const std::int64_t size = static_cast<std::int64_t>(m.padded) * m.padded;
    if (identity) {
      std::fill_n(room.factor.lower, size, 0.0);
      for (int j = 0; j < bands; ++j) {
        at(room.factor.lower, j, j) = room.factor.inverse_diagonal[j] = 1.0;
      }
    } else {
      std::copy_n(m.covariance, size, room.factor.lower);
      if (!factor_covariance(room.factor, bands)) return false;
    }
    dispatch_float(x.dtype, [&]<class T>() {
      WhitenBlock<T, double> block{};
      block.pixels = pixel_list<T>(x);
      block.mean = m.mean;
      block.factor = room.factor.lower;
      block.factor_stride = room.factor.padded;
      block.inverse_diagonal = room.factor.inverse_diagonal;
      block.status = m.status;
      block.score = room.distances;
      whiten_pixels(block, m.pixels, room.whiten_room, threads);
    });
    return true;
  }
  template <class F>
  double sum_distances(const F& term) const {
    double sum = 0;
    for (std::int64_t i = 0; i < m.pixels; ++i) sum += term(room.distances[i]);
    return sum;
  }

  void scale(double factor) const {
    const std::int64_t size = static_cast<std::int64_t>(m.padded) * m.padded;
    for (std::int64_t k = 0; k < size; ++k) m.covariance[k] *= factor;
  }
  void add_to_diagonal(double amount) const {
    for (int j = 0; j < bands; ++j) at(m.covariance, j, j) += amount;
  }

  std::uint8_t shrink(double count) const {
    const double total = trace(m.covariance);
    const double average = total / variables;
    if (estimation.estimator == Estimator::loading) {
      add_to_diagonal(estimation.loading * average);
    } else {
      const auto value = [&](int i, int j) { return at(m.covariance, i, j); };
      const double square = sum_squares(value, 0);
      const double distance = sum_squares(value, average);
      double spread = (square + total * total) / (count + 1);
      if (estimation.estimator == Estimator::ledoit_wolf) {
        find_distances(true);
        const double fourth = sum_distances([](double d) { return d * d; });
        spread = std::max(0.0, (fourth / count - square) / count);
      } else if (parts > 1) {
        spread = (total * total - square / variables) / (count - 1 / variables);
      }
      const double rho = distance > 0 ? std::min(1.0, spread / distance) : 1.0;
      scale(1 - rho);
      add_to_diagonal(rho * average);
    }
    return total > 0 ? status_ok : status_singular;
  }

  // The weighted products of all samples in place of the covariance; returns the sum of the
  // weights. `room.distances` becomes their square roots.
  template <class F>
  double weigh(const F& weight) const {
    double total = 0;
    for (std::int64_t i = 0; i < m.pixels; ++i) {
      const double w = m.status[i] == status_ok ? weight(room.distances[i]) : 0.0;
      room.distances[i] = std::sqrt(w);
      total += w;
    }
    weighted_moments(m, x, mask, room.distances, threads);
    return total;
  }

  std::uint8_t iterate(bool center) const {
    const bool tyler = estimation.estimator == Estimator::tyler;
    const auto direction = [](double d) { return d > 0 ? 1 / d : 0.0; };
    if (tyler) {
      find_distances(true);
      const double used = sum_distances([](double d) { return d > 0 ? 1.0 : 0.0; });
      if (used - (center ? 1 : 0) <= variables) return status_singular;
      weigh(direction);
      scale(variables / trace(m.covariance));
    }
    const double nu = estimation.nu;
    const std::int64_t size = static_cast<std::int64_t>(m.padded) * m.padded;
    for (int k = 1; k < estimation.max_iterations; ++k) {
      if (!find_distances(false)) return status_singular;
      std::copy_n(m.covariance, size, room.previous);
      if (tyler) {
        weigh(direction);
        scale(variables / trace(m.covariance));
      } else {
        const double numerator = parts * variables + nu;
        // The mean weight is 1 at the fixed point; dividing by it takes far fewer steps.
        scale(1 / weigh([&](double d) { return numerator / (nu + parts * d); }));
      }
      const double change = sum_squares(
          [&](int i, int j) { return at(m.covariance, i, j) - at(room.previous, i, j); }, 0);
      const double total = sum_squares([&](int i, int j) { return at(room.previous, i, j); }, 0);
      if (change <= estimation.tolerance * estimation.tolerance * total) return status_ok;
      if (!(change > 0)) return status_singular;
    }
    return status_not_converged;
  }
};

}  // namespace

std::uint8_t estimate_moments(Moments& m, const TensorView& x, const TensorView& mask,
                              const Normalization& normalization, const Estimation& estimation,
                              Scale scale, const EstimationRoom& room, int threads) {
  const Estimator estimator = estimation.estimator;
  const bool simple = estimator == Estimator::scm || estimator == Estimator::loading;
  const Normalization own{simple ? normalization.ddof : 0, normalization.center};
  const bool divisible = compute_moments(m, x, mask, own, threads);
  const std::int64_t variables = x.shape[x.rank - 1];
  // The sample covariance of one pixel is zero when its divisor is not.
  const std::int64_t least = simple ? 0 : least_samples(estimator, variables, normalization.center);
  if (!divisible || m.count < least) {
    return status_few_samples;
  }
  if (estimator == Estimator::scm) return status_ok;
  const Estimate e{m,
                   x,
                   mask,
                   estimation,
                   room,
                   threads,
                   real_bands(x),
                   static_cast<double>(variables),
                   is_complex(x.dtype) ? 2.0 : 1.0};
  const double count = static_cast<double>(m.count);
  if (!is_fixed_point(estimator)) return e.shrink(count);
  const std::uint8_t status = e.iterate(normalization.center);
  if (estimator == Estimator::tyler && scale == Scale::samples && status != status_singular) {
    if (!e.find_distances(false)) return status_singular;
    e.scale(e.sum_distances([](double d) { return d; }) / (count * e.variables));
  }
  return status;
}

}  // namespace mahal

// The estimators of a covariance that the ops share.
#pragma once

#include <cstdint>

namespace mahal {

// From samples z_1 .. z_N of p bands about their mean (or about zero), S0 = 1/N sum z z^H and
// a = tr(S0) / p:
//   scm: sum z z^H / (N - ddof);
//   loading: the same, plus `loading` times its mean variance on the diagonal;
//   ledoit_wolf, oas: (1 - rho) S0 + rho a I, with rho of Ledoit and Wolf (2004) or of Chen,
//   Wiesel,
//     Eldar and Hero (2010; without the terms 2 / p, as in scikit-learn; complex: for complex
//     Gaussian data);
//   tyler: the fixed point of S = p / N sum z z^H / (z^H S^-1 z) with trace p. Zero samples are
//   left
//     out;
//   student_t: the fixed point of S = 1 / N sum u z z^H, u = (p + nu) / (nu + z^H S^-1 z), complex
//     u = (2 p + nu) / (nu + 2 z^H S^-1 z).
// Fixed points are reached when the Frobenius norm of a step is not above `tolerance` of S. Tyler's
// iteration starts at I, that of Student at S0, and the latter divides by the sum of the weights
// (Kent, Tyler and Vardi 1994), which is N at the fixed point, so as to reach it in fewer steps.
enum class Estimator : std::uint8_t { scm, loading, ledoit_wolf, oas, tyler, student_t };

struct Estimation {
  Estimator estimator = Estimator::scm;
  double loading = 1e-3;
  double nu = 5;
  double tolerance = 1e-6;
  int max_iterations = 100;
};

}  // namespace mahal

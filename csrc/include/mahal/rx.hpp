// RX anomaly scores: squared Mahalanobis distances to a global or a local background.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/estimators.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"
#include "mahal/windows.hpp"

namespace mahal {

// What happens to a pixel whose window covariance S is not positive definite.
//   load: S + loading * G is used, G being the covariance of all usable pixels of the image, so
//         that the score keeps its invariance under affine maps of the data. A singular G gets
//         1e-10 trace(G) / bands on its diagonal first, and stands in for a global S;
//   nan:  the score is NaN.
enum class Singular : std::uint8_t { load, nan };

inline constexpr double rx_loading = 1e-6;

// Called from the thread that called the op, with the tasks done so far. What it throws ends the
// op and reaches the caller.
struct Progress {
  void (*report)(void* context, std::int64_t done, std::int64_t total) = nullptr;
  void* context = nullptr;
};

struct RxParams {
  Window window;  // outer 0: global statistics
  Border border = Border::shift;
  Singular singular = Singular::load;
  bool center = true;     // false: zero mean assumed, covariance with divisor N
  Estimation estimation;  // of the global S; with a window see window_estimators
  Progress progress;
  std::uint64_t* ticks = nullptr;  // for benchmarks: two counters per thread
};

MAHAL_API std::size_t rx_workspace(const RxParams& params, const TensorView& image,
                                   const TensorView& background, const TensorView& covariance,
                                   int threads);
// image: (n, bands) or, with a window, (rows, cols, bands), real or complex.
// background: other pixels (n, bands) or (rows, cols, bands) whose statistics are used, without a
// window only. covariance: (bands, bands), dtype of the image or its double, used in place of the
// estimate; the mean stays that of the background or of the window. mask: boolean, the shape of the
// pixels; false leaves a pixel out. score: the shape of the pixels, dtype of the image or of its
// parts; status: uint8, likewise: 0 scored, 1 too few samples, 2 singular covariance (see
// Singular), 3 a value that is not finite in the pixel or its window, 4 masked or, with
// Border::valid, at the edge, 5 scored with an estimate that has not converged. Scores of 1, 3, 4
// are NaN, and those of 2 unless the estimator is scm. On a device too few usable pixels of the
// whole image and a bad covariance are told by the status, not by an error.
MAHAL_API void rx(const RxParams& params, const TensorView& image, const TensorView& background,
                  const TensorView& covariance, const TensorView& mask, const TensorView& score,
                  const TensorView& status, const Workspace& workspace, const Execution& execution);

}  // namespace mahal

// Entry of the kernels in csrc/ops/window_scores_backward.cu, on an image that is whitened already.
// The op has checked every argument; nothing here allocates or waits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/device_gradients.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/windows.hpp"

namespace mahal {

template <class T>
struct WindowScoresBackwardLaunch {
  int rows = 0, cols = 0, bands = 0;
  int pitch = 0;  // elements of a whitened pixel or target
  Border border = Border::shift;
  Window window;
  bool center = true;
  bool fixed = false;  // the covariance is the unit matrix, and only the mean that of the window
  MatchedScore score{};
  const double* targets = nullptr;  // whitened; of none the score is RX
  int target_count = 0;
  int rank = 1;                                // vectors that a pixel gives: window_rank()
  const std::uint8_t* pixel_status = nullptr;  // status_ok, status_nonfinite or status_masked
  const std::uint8_t* status = nullptr;        // of the scores: those not 0 give nothing
  const T* score_gradient = nullptr;
  std::int64_t gradient_row = 0, gradient_col = 0, gradient_map = 0;  // strides

  // On entry the whitened image, afterwards its gradient.
  double* image = nullptr;
  std::uint8_t* quiet =
      nullptr;  // per pixel: 1 where the gradient is zero because nothing is given
  // Gradients of the whitened targets, and of a fixed covariance that is the unit matrix.
  double* target_sums = nullptr;      // target_count x bands, or nullptr
  double* covariance_sums = nullptr;  // bands x bands, or nullptr

  // Room.
  std::uint8_t* states = nullptr;  // per pixel
  double* vectors = nullptr;       // per pixel: rank x pitch
  double* coefficients = nullptr;  // per pixel: 4 x rank
  double* weights = nullptr;       // per pixel: 2 x target_count
  double* matrices = nullptr;      // of window_blocks, window_solve_room each
  double* parts = nullptr;         // cross_chunks x the elements of the larger sums
};

// left right^T of contiguous rows of n elements. Products with zero are zero.
struct RowProducts {
  const double* left;
  const double* right;
  int left_rows, right_rows, n;
  double* out;
};

constexpr int window_rank(int targets, bool subspace) { return subspace ? 2 : 1 + targets; }

// A covariance, the pixel and the targets, and their products.
constexpr std::int64_t window_solve_room(int bands, int targets, bool subspace) {
  const std::int64_t n = bands, t = targets;
  return n * (n + 1) / 2 + (1 + t) * n + (subspace ? t * t : 0) + 2 + 4 * t;
}

namespace cuda {
void window_scores_backward(const WindowScoresBackwardLaunch<float>& arguments,
                            std::uintptr_t stream);
void window_scores_backward(const WindowScoresBackwardLaunch<double>& arguments,
                            std::uintptr_t stream);
void multiply_rows(const RowProducts& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void window_scores_backward(const WindowScoresBackwardLaunch<float>& arguments,
                            std::uintptr_t stream);
void window_scores_backward(const WindowScoresBackwardLaunch<double>& arguments,
                            std::uintptr_t stream);
void multiply_rows(const RowProducts& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

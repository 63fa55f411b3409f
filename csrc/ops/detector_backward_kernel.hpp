// Gradients of scores for many pixels at once, in float64. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"
#include "mahal/detector_backward.hpp"

namespace mahal {

// With z = S^-1 (x - m) and u = S^-1 (t - m), a score depends on a = <w, y>, b = |y|^2 and
// c = |w|^2, so that its gradient is 2 s_b z + s_a u. A complex target is two directions, w and
// i w. Row-major matrices with `padded` elements to a row.
template <class T>
struct DetectorBackwardBlock {
  PixelList<T> pixels;
  std::int64_t begin, end;
  const double* mean;
  const double* factor;
  const double* inverse_diagonal;
  const std::uint8_t* status;  // per pixel, or nullptr; pixels not 0 take no part
  const T* grad;               // pixel i at grad + i * grad_pixel, map k at + k * grad_map
  std::int64_t grad_cols;      // pixels per row
  std::ptrdiff_t grad_row, grad_col, grad_map;
  DetectorScore score;
  int targets, parts;
  const double* directions;  // targets x parts rows w
  const double* duals;       // targets x parts rows u
  const double* squares;     // targets: |w|^2
  T* image;                  // gradient of the pixels, contiguous, or nullptr
  // Added to, nullptr where not wanted: sum of the gradients of the pixels (padded), sum of
  // s_b z z^T (padded x padded, lower triangle), of s_a z (targets x parts rows), of s_c (targets).
  double* sum;
  double* gram;
  double* cross;
  double* square_sums;
  void* scratch;  // detector_scratch_bytes(padded, directions)
};

inline constexpr int detector_panel = 64;  // pixels whose products are summed at once

constexpr std::size_t detector_scratch_bytes(int padded, int directions) {
  return sizeof(double) * static_cast<std::size_t>(padded) * (detector_panel + 16) +
         sizeof(double) * 16 * static_cast<std::size_t>(2 * directions + 4) +
         sizeof(void*) * detector_panel;
}

template <Isa I>
struct DetectorBackwardKernel {
  static void run(const DetectorBackwardBlock<float>&);
  static void run(const DetectorBackwardBlock<double>&);
};

}  // namespace mahal

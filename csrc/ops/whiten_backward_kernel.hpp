// Back substitution for many pixels at once, in float64. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

// v = L^-T g for the pixels [begin, end).
template <class T>
struct WhitenBackwardBlock {
  PixelList<T> grad, whitened;
  std::int64_t begin, end;
  const double* factor;  // padded elements to a row
  const double* inverse_diagonal;
  const double* zeros;  // padded
  T* out;               // v, contiguous, or nullptr
  // Where given: minus the sum of v (padded), and of v y^T (padded x padded, lower triangle); added
  // to.
  double* sum;
  double* gram;
  void* scratch;  // whiten_backward_scratch_bytes(padded)
};

inline constexpr int whiten_backward_panel = 64;  // pixels whose products are summed at once

constexpr std::size_t whiten_backward_scratch_bytes(int padded) {
  return sizeof(double) * static_cast<std::size_t>(padded) * (2 * whiten_backward_panel + 16) +
         sizeof(void*) * 2 * whiten_backward_panel;
}

template <Isa I>
struct WhitenBackwardKernel {
  static void run(const WhitenBackwardBlock<float>&);
  static void run(const WhitenBackwardBlock<double>&);
};

}  // namespace mahal

// What a gradient of mean and covariance means for every pixel, in float64. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

// out = offset + matrix (x - mean) for the pixels [begin, end) whose status is 0, else zeros; or
// added to what is there.
template <class T>
struct SpreadBlock {
  PixelList<T> pixels;
  std::int64_t begin, end;
  const std::uint8_t* status;
  const double* mean;    // padded
  const double* matrix;  // padded x padded, symmetric, or nullptr: zero
  const double* offset;  // padded
  bool add;
  T* out;         // contiguous
  void* scratch;  // spread_scratch_bytes(padded)
};

constexpr std::size_t spread_scratch_bytes(int padded) {
  return sizeof(double) * 3 * 16 * static_cast<std::size_t>(padded);
}

template <Isa I>
struct MeanCovarianceBackwardKernel {
  static void run(const SpreadBlock<float>&);
  static void run(const SpreadBlock<double>&);
};

}  // namespace mahal

// Sums and Gram matrices of many pixels, in float64. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

// Status of a pixel, shared by all ops that give one.
enum : std::uint8_t {
  status_ok,
  status_few_samples,
  status_singular,
  status_nonfinite,
  status_masked,
  status_not_converged
};

// One chunk of pixels [begin, end), all taken relative to `mean`. First pass, with any spectrum of
// the image for a mean: fills `status` and adds up the usable pixels. Second pass: Gram matrix of
// the usable pixels and their sum.
template <class T>
struct MomentBlock {
  PixelList<T> pixels;
  std::int64_t begin, end;
  const std::uint8_t* mask;  // nonzero: use; or nullptr
  std::int64_t mask_cols;
  std::ptrdiff_t mask_row_stride, mask_col_stride;
  std::uint8_t* status;  // per pixel
  const double* mean;    // padded
  const double* scale;   // per pixel, or nullptr; second pass: of the centred pixel
  double* sum;           // padded
  double* gram;          // padded x padded, lower triangle
  std::int64_t count;    // out, first pass
  void* scratch;         // moment_scratch_bytes(padded)
};

inline constexpr int moment_pixels = 128;  // a panel that stays in the second-level cache

constexpr std::size_t moment_scratch_bytes(int padded) {
  return (sizeof(double) * static_cast<std::size_t>(padded) + sizeof(void*)) * moment_pixels;
}

template <Isa I>
struct MeanCovarianceKernel {
  static void sum(MomentBlock<float>&);
  static void sum(MomentBlock<double>&);
  static void gram(const MomentBlock<float>&);
  static void gram(const MomentBlock<double>&);
};

}  // namespace mahal

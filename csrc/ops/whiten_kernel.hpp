// Forward substitution for many pixels at once, in float64. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

// y = L^-1 (x - m) for the pixels [begin, end), and |y|^2.
template <class In, class Out>
struct WhitenBlock {
  PixelList<In> pixels;
  std::int64_t begin, end;
  const double* mean;    // padded
  const double* factor;  // lower triangular, row-major
  std::ptrdiff_t factor_stride;
  const double* inverse_diagonal;  // bands
  const std::uint8_t* status;      // per pixel, or nullptr; pixels not 0 give zeros
  Out* whitened;                   // pixel i of the list at whitened + i * out_stride, or nullptr
  std::ptrdiff_t out_stride;
  int out_bands;  // elements to write per pixel: bands, or padded with zeros
  Out* score;     // |y|^2 per pixel, or nullptr
  std::ptrdiff_t score_stride = 1;
  // Where given, row k holds <direction k, y> for the pixels [begin, end), and one more row |y|^2.
  double* projections;
  std::ptrdiff_t projection_stride;  // a multiple of whiten_width
  const double* directions;          // direction_count x padded
  int direction_count;
  void* scratch;  // whiten_scratch_bytes(padded)
};

inline constexpr int whiten_width = 16;

constexpr std::size_t whiten_scratch_bytes(int padded) {
  return sizeof(double) * 2 * whiten_width * static_cast<std::size_t>(padded);
}

template <Isa I>
struct WhitenKernel {
  static void run(const WhitenBlock<float, float>&);
  static void run(const WhitenBlock<float, double>&);
  static void run(const WhitenBlock<double, double>&);
};

}  // namespace mahal

// Scores that are linear in the pixel. Plain data only: included by the per-ISA sources.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

// score[i * count + k] = <direction k, pixel i - mean> for the pixels [begin, end). With `pairs`
// the length of the products with the directions 2k and 2k + 1.
template <class T>
struct LinearBlock {
  PixelList<T> pixels;
  std::int64_t begin, end;
  const double* mean;        // padded
  const double* directions;  // count x padded, twice as many with pairs
  int count;
  bool pairs;
  T* score;
  double* row;  // padded elements of scratch, 64-byte aligned
};

template <Isa I>
struct MatchedKernel {
  static void linear(const LinearBlock<float>&);
  static void linear(const LinearBlock<double>&);
};

}  // namespace mahal

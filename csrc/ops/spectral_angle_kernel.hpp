// Angles between spectra. Plain data only: included by the per-ISA sources.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"

namespace mahal {

// chord[i - begin][k] = {|u - t_k|^2, |u + t_k|^2} for the pixels [begin, end), with the unit
// vectors u along the pixel and t_k. NaN where the pixel is zero or not finite.
template <class T>
struct AngleBlock {
  PixelList<T> pixels;
  std::int64_t begin, end;
  const double* zeros;    // padded
  const double* targets;  // count x padded
  int count;
  double* chord;
  double* row;  // padded elements of scratch, 64-byte aligned
};

template <Isa I>
struct SpectralAngleKernel {
  // Brings one spectrum of `padded` elements to unit length.
  static void normalize(double* row, int padded);
  static void chords(const AngleBlock<float>&);
  static void chords(const AngleBlock<double>&);
};

}  // namespace mahal

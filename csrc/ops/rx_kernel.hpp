// Kernels of the fused dual-window RX. Plain data only: included by the per-ISA sources.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/window_axis.hpp"
#include "mahal/matched_score.hpp"

namespace mahal {

// One block of rows times one group of `lanes` columns; a pixel per SIMD lane.
template <class T>
struct LocalRxBlock {
  const T* image;  // whitened
  std::ptrdiff_t row_stride;
  const std::uint8_t* status;  // per pixel of the image, or nullptr; pixels not 0 are left out
  std::ptrdiff_t status_stride;
  int padded;  // elements per pixel: bands rounded up to a multiple of 16, the rest zero
  int bands;
  bool hermitian;  // bands are real and imaginary parts by turns, whitened by a Hermitian matrix
  bool center;     // false: the mean is zero, and the divisor the number of samples
  WindowAxis rows, cols;
  int outer, inner;           // sides of the windows; inner 0: no guard window
  int row_begin, row_end;     // rows to score
  int col_begin, col_end;     // first column of the group; end of the columns to score
  const std::int32_t* count;  // samples per pixel, or nullptr: `samples` everywhere
  std::ptrdiff_t count_stride;
  int samples;
  // A pivot below tolerance times the largest sum of squares that its entry was made from marks
  // the pixel in `weak`: what is left of it is rounding.
  T tolerance;
  // So does a score whose estimated error, in units of rounding, exceeds this share of it.
  T trust;
  T loading;  // added to every diagonal entry of the covariance
  // Without targets the score is RX. Otherwise the scores of a pixel lie side by side: one for each
  // target, or for subspace_ace one alone.
  const double* targets;  // whitened: target_count x padded
  int target_count;
  MatchedScore kind;
  T* score;  // rows x cols x scores of a pixel
  std::uint8_t* weak;
  std::ptrdiff_t score_stride, weak_stride;
  // What gradients take in place of scores, or nullptr: for every pixel S^-1 (x - m) and, for each
  // target, S^-1 (t - m), padded elements each, padding untouched; and (x - m)^T S^-1 (x - m), then
  // for each target (t - m)^T S^-1 (x - m) and (t - m)^T S^-1 (t - m). Not for a subspace.
  T* solved;
  T* forms;
  std::uint64_t* ticks;  // time stamps spent sliding and factoring, or nullptr
  void* scratch;         // scratch_bytes(), 64-byte aligned
};

// The window of one pixel in float64, for windows that are singular or nearly so: two passes over
// its own samples, nothing carried over from other windows.
struct WindowStatistics {
  double* samples;     // count spectra of `padded` elements; centred in place
  const double* test;  // the pixel itself
  int count, bands, padded;
  bool hermitian, center;   // as above
  double* covariance;       // padded x padded, lower triangle
  double* difference;       // padded: test minus mean
  const double** pointers;  // count entries of scratch
};

template <Isa I>
struct RxKernel {
  static int lanes(float);
  static int lanes(double);
  static std::size_t scratch_bytes(const LocalRxBlock<float>&);
  static std::size_t scratch_bytes(const LocalRxBlock<double>&);
  static void local(const LocalRxBlock<float>&);
  static void local(const LocalRxBlock<double>&);
  static void window_statistics(const WindowStatistics&);
};

}  // namespace mahal

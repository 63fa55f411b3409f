// Covariance estimators of windows, one window per SIMD lane. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"
#include "core/pixel_list.hpp"
#include "core/window_axis.hpp"
#include "mahal/estimators.hpp"
#include "mahal/matched_score.hpp"

namespace mahal {

// Pixels [col_begin, col_end) of one row, at most `lanes` of them.
template <class T>
struct WindowEstimatorsBlock {
  PixelList<T> pixels;
  const std::uint8_t* status;  // per pixel of the image: status_ok where it is a sample
  WindowAxis rows, cols;
  int outer, inner;
  int row, col_begin, col_end;
  bool hermitian;  // bands are real and imaginary parts by turns
  bool center;
  int ddof;
  Estimation estimation;
  double smallest_pivot;  // relative to the diagonal entry
  // Results of the first pixel, the next ones the given strides further; null: not wanted.
  T* mean;
  T* covariance;
  T* score;
  std::uint8_t* result;  // status
  std::ptrdiff_t mean_stride, covariance_stride, score_stride, result_stride;
  // Spectra that the scores are about, a stride apart; none: squared Mahalanobis distances.
  const double* targets;
  std::ptrdiff_t target_stride;
  int target_count;
  int aims;  // whitened targets that are kept at a time
  MatchedScore kind;
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

template <Isa I>
struct WindowEstimatorsKernel {
  static int lanes();
  static std::size_t scratch_bytes(int bands, bool hermitian, int samples, int outer, int aims);
  static void run(const WindowEstimatorsBlock<float>&);
  static void run(const WindowEstimatorsBlock<double>&);
};

}  // namespace mahal

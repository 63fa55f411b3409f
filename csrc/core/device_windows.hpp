// Where the windows of a pixel lie, for kernels. The counterpart of core/windows.hpp.
#pragma once

#include <cstdint>

#include "core/simt.hpp"
#include "mahal/windows.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

// First position of a window of `side` pixels about `centre`. Positions beyond the image, which
// only mirrored borders have, stand for the samples that `mirrored` names.
__device__ __forceinline__ int window_start(int centre, int size, int side, Border border) {
  const int start = centre - side / 2;
  if (border == Border::reflect) return start;
  return start < 0 ? 0 : start > size - side ? size - side : start;
}

__device__ __forceinline__ int mirrored(int position, int size) {
  if (position >= 0 && position < size) return position;
  if (size == 1) return 0;
  const int period = 2 * (size - 1);
  const int p = (position % period + period) % period;
  return p < size ? p : period - p;
}

// `Image` below has rows, cols, window, border and pixel_status, the states of its pixels.

// The pixel at a position of the windows, or -1 where it is no sample.
template <class Image>
__device__ __forceinline__ std::int64_t sample_at(const Image& a, int row, int col) {
  const std::int64_t pixel = std::int64_t{mirrored(row, a.rows)} * a.cols + mirrored(col, a.cols);
  return a.pixel_status[pixel] == status_ok ? pixel : -1;
}

// The windows of one pixel.
struct Place {
  int top, left, guard_top, guard_left;

  template <class Image>
  __device__ __forceinline__ Place(const Image& a, int row, int col) {
    top = window_start(row, a.rows, a.window.outer, a.border);
    left = window_start(col, a.cols, a.window.outer, a.border);
    guard_top = window_start(row, a.rows, a.window.inner, a.border);
    guard_left = window_start(col, a.cols, a.window.inner, a.border);
  }
  // Sample `k` of the square of the outer window, row by row, or -1 in the guard window.
  template <class Image>
  __device__ __forceinline__ std::int64_t sample(const Image& a, int k) const {
    const int row = top + k / a.window.outer, col = left + k % a.window.outer;
    const bool guarded = row >= guard_top && row < guard_top + a.window.inner &&
                         col >= guard_left && col < guard_left + a.window.inner;
    return guarded ? -1 : sample_at(a, row, col);
  }
};

struct Span {
  int begin, end;
};

// The positions of windows at which sample i stands: k of at most three, the second and third of
// mirrored borders.
__device__ __forceinline__ int position_of(int i, int size, int k) {
  return k == 0 ? i : k == 1 ? -i : 2 * (size - 1) - i;
}

// The pixels whose windows of `side` pixels hold that position. `reach` is half the outer window.
__device__ __forceinline__ Span holders_of(int i, int size, int side, int reach, Border border,
                                           int k) {
  // Edge samples are not repeated.
  if ((k == 1 && i == 0) || (k == 2 && i == size - 1)) return {0, 0};
  const int position = position_of(i, size, k);
  const int half = side / 2;
  const bool slides = border != Border::reflect;
  int begin = slides && position < side ? 0 : position - side + 1 + half;
  int end = slides && position >= size - side ? size : position + half + 1;
  const int edge = border == Border::valid ? reach : 0;
  if (begin < edge) begin = edge;
  if (end > size - edge) end = size - edge;
  return {begin, end};
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

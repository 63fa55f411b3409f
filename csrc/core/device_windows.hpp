// Where the windows of a pixel lie, for kernels. The counterpart of core/windows.hpp.
#pragma once

#include "core/simt.hpp"
#include "mahal/windows.hpp"

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

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

// What kernels that slide windows over images share.
#pragma once

#include "core/origin_tiles.hpp"
#include "core/simt.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

// The hooks by which tests/cpp/test_simt.cpp proves that its comparisons notice an error.
__device__ __forceinline__ void map_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}
#if defined(MAHAL_MUTATE_HALO)
inline constexpr int halo_error = 1;
#else
inline constexpr int halo_error = 0;
#endif

// The sample at a position that may lie outside, mirrored about the edge samples, which are not
// repeated; or -1 where windows are clipped.
__device__ __forceinline__ int sample_at(int position, int n, bool clipped) {
  if (position >= 0 && position < n) return position;
  if (clipped) return -1;
  if (n == 1) return 0;
  const int period = 2 * (n - 1);
  const int p = (position % period + period) % period;
  return p < n ? p : period - p;
}

// The nearest position that has a window of its own, where `edge` at each side have none.
__device__ __forceinline__ int nearest_window(int position, int n, int edge) {
  return position < edge ? edge : position >= n - edge ? n - edge - 1 : position;
}

// The median of some pixels of the origin tile at (row0, col0), which a few bright ones do not
// move. read(row, col, value) tells whether the pixel counts.
template <int Grid, class Read>
__device__ __forceinline__ double tile_median(int row0, int col0, int rows, int cols, Read read) {
  const int height = rows - row0 < origin_rows ? rows - row0 : origin_rows;
  const int width = cols - col0 < origin_cols ? cols - col0 : origin_cols;
  double sorted[Grid * Grid];
  int count = 0;
  for (int i = 0; i < Grid * Grid; ++i) {
    double x;
    if (!read(row0 + (2 * (i / Grid) + 1) * height / (2 * Grid),
              col0 + (2 * (i % Grid) + 1) * width / (2 * Grid), x)) {
      continue;
    }
    int m = count++;
    for (; m > 0 && sorted[m - 1] > x; --m) sorted[m] = sorted[m - 1];
    sorted[m] = x;
  }
  return count > 0 ? sorted[count / 2] : 0;
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

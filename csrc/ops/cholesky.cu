// Batched Cholesky factorisation: up to 64 x 64 by a warp or a part of one in shared memory, up to
// 256 x 256 by a block that keeps only a panel of columns there. Both go left-looking, panel by
// panel: subtract what the finished columns contribute, factor the panel, store it.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/simt.hpp"
#include "ops/cholesky_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr unsigned whole_warp = 0xFFFFFFFFu;
constexpr int warp_lanes = 32;
constexpr int block_threads = 256;
constexpr int small_panel = 4;
constexpr int large_panel = 16;
constexpr std::size_t shared_budget = 48 * 1024;

enum Status : std::uint8_t { factored = 0, not_positive_definite = 2, non_finite = 3 };

template <class T>
__device__ __forceinline__ bool is_finite(T value) {
  return value - value == T(0);
}

// Rounding leaves about n eps a_kk in a pivot that should be zero: no more than that is no pivot.
template <class T>
__device__ __forceinline__ bool is_positive(T pivot, T diagonal, int n) {
  return pivot > static_cast<T>(n) * simt::epsilon<T> * diagonal && pivot > T(0) &&
         pivot <= simt::largest<T>;
}

// The hooks by which tests/cpp/test_simt.cpp proves that its comparisons notice a lost barrier.
__device__ __forceinline__ void panel_warp_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncwarp();
#endif
}

__device__ __forceinline__ void chunk_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

// Factors the rows a group of lanes holds in registers: lane l of the group has rows l, l + Lanes,
// ... and the columns first .. first + Panel - 1 of each in `row`. The rows of those columns are
// all in `slot`. diagonal(k) is entry (k, k) before the factorisation. Returns whether every pivot
// was positive; where not, the numbers are of no use.
template <class T, int Lanes, int Rows, int Panel, class Diagonal>
__device__ __forceinline__ bool factor_panel(T (&row)[Rows][Panel], int slot, int first, int end,
                                             int n, int lane, int first_lane, Diagonal diagonal) {
  bool positive = true;
  MAHAL_UNROLL
  for (int c = 0; c < Panel; ++c) {
    const int k = first + c;
    if (k >= end) break;
    // Read before the shuffle: a lane that is ahead may store over it afterwards.
    const T before = diagonal(k);
    T pivot = __shfl_sync(whole_warp, row[slot][c], first_lane + k % Lanes);
    if (!is_positive(pivot, before, n)) {
      positive = false;
      pivot = T(1);
    }
    const T root = std::sqrt(pivot);
    const T inverse = T(1) / root;
    MAHAL_UNROLL
    for (int s = slot; s < Rows; ++s) {
      row[s][c] = lane + s * Lanes == k ? root : row[s][c] * inverse;
    }
    MAHAL_UNROLL
    for (int d = c + 1; d < Panel; ++d) {
      if (first + d >= end) break;
      const T factor = __shfl_sync(whole_warp, row[slot][c], first_lane + (first + d) % Lanes);
      MAHAL_UNROLL
      for (int s = slot; s < Rows; ++s) row[s][d] -= row[s][c] * factor;
    }
  }
  return positive;
}

// The second launch bound is the number of blocks that shared memory lets onto a multiprocessor;
// without it ptxas spills registers for an occupancy out of reach.

// One matrix per group of Lanes lanes, Rows rows of it per lane: n <= Lanes * Rows.
template <class T, int Lanes, int Rows>
__global__ void __launch_bounds__(block_threads, 4) small_cholesky(CholeskyLaunch<T> p) {
  const T nan = simt::nan<T>;
  const int n = p.n;
  const int pitch = n | 1;  // odd: the rows of a warp start in different banks
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % Lanes;
  const int first_lane = thread % warp_lanes / Lanes * Lanes;
  const int groups = static_cast<int>(blockDim.x) / Lanes;
  const std::int64_t index = std::int64_t{blockIdx.x} * groups + thread / Lanes;
  const bool active = index < p.batch;
  T* matrix = simt::dynamic_shared<T>() + thread / Lanes * n * pitch;

  // Groups behind the end of the batch factor the identity, to stay in step with their warp.
  int finite = 1;
  for (int r = 0; r < n; ++r) {
    for (int c = lane; c <= r; c += Lanes) {
      const T value =
          active ? p.a[index * p.batch_stride + r * p.row_stride + c * p.col_stride] : T(r == c);
      if (!is_finite(value)) finite = 0;
      matrix[r * pitch + c] = value;
    }
  }
  __syncwarp();
  T mean_diagonal = T(0);
  for (int r = lane; r < n; r += Lanes) mean_diagonal += matrix[r * pitch + r] / static_cast<T>(n);
  MAHAL_UNROLL
  for (int d = Lanes / 2; d > 0; d /= 2) {
    finite &= __shfl_xor_sync(whole_warp, finite, d);
    mean_diagonal += __shfl_xor_sync(whole_warp, mean_diagonal, d);
  }
  for (int r = lane; r < n; r += Lanes) matrix[r * pitch + r] += p.loading * mean_diagonal;
  __syncwarp();

  bool positive = true;
  // The slot of a panel's rows is a constant once this loop is unrolled; earlier slots are
  // finished.
  MAHAL_UNROLL
  for (int slot = 0; slot < Rows; ++slot) {
    const int slot_end = n < (slot + 1) * Lanes ? n : (slot + 1) * Lanes;
    for (int first = slot * Lanes; first < slot_end; first += small_panel) {
      T row[Rows][small_panel] = {};
      MAHAL_UNROLL
      for (int s = slot; s < Rows; ++s) {
        const int r = lane + s * Lanes;
        if (r >= first && r < n) {
          MAHAL_UNROLL
          for (int c = 0; c < small_panel; ++c) {
            if (first + c <= r) row[s][c] = matrix[r * pitch + first + c];
          }
          for (int j = 0; j < first; ++j) {
            const T own = matrix[r * pitch + j];
            MAHAL_UNROLL
            for (int c = 0; c < small_panel; ++c) {
              // Columns behind the row's diagonal are computed for nothing; they stay inside.
              const int other = first + c < n ? first + c : n - 1;
              row[s][c] -= own * matrix[other * pitch + j];
            }
          }
        }
      }
      const bool panel_positive = factor_panel<T, Lanes, Rows, small_panel>(
          row, slot, first, n, n, lane, first_lane, [&](int k) { return matrix[k * pitch + k]; });
      positive = positive && panel_positive;
      MAHAL_UNROLL
      for (int s = slot; s < Rows; ++s) {
        const int r = lane + s * Lanes;
        MAHAL_UNROLL
        for (int c = 0; c < small_panel; ++c) {
          if (first + c <= r && r < n) matrix[r * pitch + first + c] = row[s][c];
        }
      }
      panel_warp_barrier();
    }
  }

  if (!active) return;
  const bool good = positive && finite != 0;
  T* factor = p.factor + index * n * n;
  for (int r = 0; r < n; ++r) {
    for (int c = lane; c < n; c += Lanes) {
      factor[r * n + c] = c > r ? T(0) : good ? matrix[r * pitch + c] : nan;
    }
  }
  if (lane == 0) {
    p.status[index] = finite == 0 ? non_finite : positive ? factored : not_positive_definite;
  }
}

// One matrix per block, one row per thread. Finished columns are read back from the factor.
template <class T>
__global__ void __launch_bounds__(block_threads, 2) large_cholesky(CholeskyLaunch<T> p) {
  const T nan = simt::nan<T>;
  constexpr int width = large_panel;
  constexpr int pitch = width + 1;
  const int n = p.n;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t index = blockIdx.x;
  const T* a = p.a + index * p.batch_stride;
  T* factor = p.factor + index * n * n;

  T* panel = simt::dynamic_shared<T>();                  // n rows of `pitch`
  T* block = panel + n * pitch;                          // the panel's square on the diagonal
  T* diagonal = block + width * pitch;                   // its diagonal before the factorisation
  T* inverse = diagonal + width;                         // 1 / its diagonal after it
  int* flags = reinterpret_cast<int*>(inverse + width);  // finite, positive

  if (thread < n) {
    panel[thread] = a[thread * (p.row_stride + p.col_stride)] / static_cast<T>(n);
  }
  if (thread < 2) flags[thread] = 1;
  __syncthreads();
  T load = T(0);
  for (int k = 0; k < n; ++k) load += panel[k];
  load *= p.loading;

  for (int first = 0; first < n; first += width) {
    const int rows = n - first;
    const int columns = rows < width ? rows : width;
    const int panel_size = rows * width;
    __syncthreads();
    for (int e = thread; e < panel_size; e += block_threads) {
      const int r = e / width, c = e % width;
      T value = T(0);
      if (c <= r) {
        value = a[(first + r) * p.row_stride + (first + c) * p.col_stride];
        if (!is_finite(value)) flags[0] = 0;
        if (c == r) value += load;
      }
      panel[r * pitch + c] = value;
    }
    chunk_barrier();
    T row[1][width] = {};
    if (thread < rows) {
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) row[0][c] = panel[thread * pitch + c];
    }
    if (thread < columns) diagonal[thread] = panel[thread * pitch + thread];
    for (int done = 0; done < first; done += width) {
      __syncthreads();
      for (int e = thread; e < panel_size; e += block_threads) {
        const int r = e / width, c = e % width;
        panel[r * pitch + c] = factor[(first + r) * n + done + c];
      }
      chunk_barrier();
      if (thread < rows) {
        for (int j = 0; j < width; ++j) {
          const T own = panel[thread * pitch + j];
          MAHAL_UNROLL
          for (int c = 0; c < width; ++c) {
            if (c < columns) row[0][c] -= own * panel[c * pitch + j];
          }
        }
      }
    }
    __syncthreads();
    if (thread < warp_lanes) {
      const bool positive = factor_panel<T, warp_lanes, 1, width>(
          row, 0, 0, columns, n, thread, 0, [&](int k) { return diagonal[k]; });
      if (!positive && thread == 0) flags[1] = 0;
      if (thread < columns) {
        MAHAL_UNROLL
        for (int c = 0; c < width; ++c) block[thread * pitch + c] = row[0][c];
        inverse[thread] = T(1) / block[thread * pitch + thread];
      }
    }
    __syncthreads();
    // The first warp has carried its rows below the square along.
    if (thread >= warp_lanes && thread < rows) {
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) {
        MAHAL_UNROLL
        for (int j = 0; j < c; ++j) row[0][c] -= row[0][j] * block[c * pitch + j];
        row[0][c] *= inverse[c];
      }
    }
    if (thread < rows) {
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) panel[thread * pitch + c] = row[0][c];
    }
    __syncthreads();
    for (int e = thread; e < n * width; e += block_threads) {
      const int r = e / width, c = e % width;
      if (c >= columns) continue;
      factor[r * n + first + c] = first + c <= r ? panel[(r - first) * pitch + c] : T(0);
    }
  }

  __syncthreads();
  if (flags[0] == 0 || flags[1] == 0) {
    for (int e = thread; e < n * n; e += block_threads) {
      if (e % n <= e / n) factor[e] = nan;
    }
  }
  if (thread == 0) {
    p.status[index] = flags[0] == 0 ? non_finite : flags[1] == 0 ? not_positive_definite : factored;
  }
}

template <class T, int Lanes, int Rows>
void launch_small(const CholeskyLaunch<T>& p, std::uintptr_t stream) {
  const std::size_t matrix_bytes = sizeof(T) * p.n * (p.n | 1);
  const int groups =
      static_cast<int>(std::min<std::size_t>(block_threads / Lanes, shared_budget / matrix_bytes));
  const std::int64_t blocks = (p.batch + groups - 1) / groups;
  simt::launch("cholesky", small_cholesky<T, Lanes, Rows>, dim3(static_cast<unsigned>(blocks)),
               dim3(static_cast<unsigned>(groups * Lanes)), groups * matrix_bytes, stream, p);
}

template <class T>
void launch_large(const CholeskyLaunch<T>& p, std::uintptr_t stream) {
  const std::size_t elements = (p.n + large_panel) * (large_panel + 1) + 2 * large_panel;
  simt::launch("cholesky", large_cholesky<T>, dim3(static_cast<unsigned>(p.batch)),
               dim3(block_threads), elements * sizeof(T) + 2 * sizeof(int), stream, p);
}

template <class T>
void launch_any(const CholeskyLaunch<T>& p, std::uintptr_t stream) {
  if (p.batch == 0) return;
  if (p.n <= 8) {
    launch_small<T, 8, 1>(p, stream);
  } else if (p.n <= 16) {
    launch_small<T, 16, 1>(p, stream);
  } else if (p.n <= 32) {
    launch_small<T, 32, 1>(p, stream);
  } else if (p.n <= 64) {
    launch_small<T, 32, 2>(p, stream);
  } else {
    launch_large(p, stream);
  }
}

}  // namespace

void cholesky(const CholeskyLaunch<float>& arguments, std::uintptr_t stream) {
  launch_any(arguments, stream);
}

void cholesky(const CholeskyLaunch<double>& arguments, std::uintptr_t stream) {
  launch_any(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

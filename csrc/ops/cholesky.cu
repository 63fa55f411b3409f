// Batched Cholesky factorisation: up to 64 x 64 by a warp or a part of one in shared memory, up to
// 256 x 256 by a block that keeps only a panel of columns there. Both go left-looking, panel by
// panel: subtract what the finished columns contribute, factor the panel, store it. Larger matrices
// are spread over blocks and launches, right-looking.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/device_matrix.hpp"
#include "core/simt.hpp"
#include "ops/cholesky_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int block_threads = 256;
constexpr int small_panel = 4;
template <class N>
constexpr int large_panel = sizeof(N) > 8 ? 8 : 16;
constexpr std::size_t shared_budget = 48 * 1024;

enum Status : std::uint8_t { factored = 0, not_positive_definite = 2, non_finite = 3 };

template <class T>
__device__ __forceinline__ T least_pivot(T diagonal, int n) {
  return static_cast<T>(n) * simt::epsilon<T> * diagonal;
}

// Entry (row, column) of matrix `a`; the diagonal is real by definition.
template <class N>
__device__ __forceinline__ N read_entry(const CholeskyLaunch<Real<N>>& p, const N* a, int row,
                                        int column) {
  const N value = a[row * p.row_stride + column * p.col_stride];
  return row == column ? to_number<N>(real_part(value)) : value;
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
template <class N, int Lanes, int Rows, int Panel, class Diagonal>
__device__ __forceinline__ bool factor_panel(N (&row)[Rows][Panel], int slot, int first, int end,
                                             int n, int lane, int first_lane, Diagonal diagonal) {
  using T = Real<N>;
  bool positive = true;
  MAHAL_UNROLL
  for (int c = 0; c < Panel; ++c) {
    const int k = first + c;
    if (k >= end) break;
    // Read before the shuffle: a lane that is ahead may store over it afterwards.
    const T before = diagonal(k);
    T pivot = from_lane(real_part(row[slot][c]), first_lane + k % Lanes);
    if (!is_pivot(pivot, least_pivot(before, n))) {
      positive = false;
      pivot = T(1);
    }
    const T root = std::sqrt(pivot);
    const T inverse = T(1) / root;
    MAHAL_UNROLL
    for (int s = slot; s < Rows; ++s) {
      row[s][c] = lane + s * Lanes == k ? to_number<N>(root) : row[s][c] * inverse;
    }
    MAHAL_UNROLL
    for (int d = c + 1; d < Panel; ++d) {
      if (first + d >= end) break;
      const N factor = conjugate(from_lane(row[slot][c], first_lane + (first + d) % Lanes));
      MAHAL_UNROLL
      for (int s = slot; s < Rows; ++s) row[s][d] = row[s][d] - row[s][c] * factor;
    }
  }
  return positive;
}

// The second launch bound is the number of blocks that shared memory lets onto a multiprocessor;
// without it ptxas spills registers for an occupancy out of reach.

// One matrix per group of Lanes lanes, Rows rows of it per lane: n <= Lanes * Rows.
template <class N, int Lanes, int Rows>
__global__ void __launch_bounds__(block_threads, sizeof(N) > 8 ? 2 : 4) small_cholesky(CholeskyLaunch<Real<N>> p) {
  using T = Real<N>;
  const T nan = simt::nan<T>;
  const int n = p.n;
  const int pitch = n | 1;  // odd: the rows of a warp start in different banks
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % Lanes;
  const int first_lane = thread % warp_lanes / Lanes * Lanes;
  const int groups = static_cast<int>(blockDim.x) / Lanes;
  const std::int64_t index = std::int64_t{blockIdx.x} * groups + thread / Lanes;
  const bool active = index < p.batch;
  N* matrix = simt::dynamic_shared<N>() + thread / Lanes * n * pitch;

  // Groups behind the end of the batch factor the identity, to stay in step with their warp.
  const N* a = reinterpret_cast<const N*>(p.a) + (active ? index * p.batch_stride : 0);
  int finite = 1;
  for (int r = 0; r < n; ++r) {
    for (int c = lane; c <= r; c += Lanes) {
      const N value = active ? read_entry(p, a, r, c) : to_number<N>(T(r == c));
      if (!is_finite(value)) finite = 0;
      matrix[r * pitch + c] = value;
    }
  }
  __syncwarp();
  T mean_diagonal = T(0);
  for (int r = lane; r < n; r += Lanes) {
    mean_diagonal += real_part(matrix[r * pitch + r]) / static_cast<T>(n);
  }
  finite = warp_reduce<Lanes>(finite, Least{});
  const T load = p.loading * warp_reduce<Lanes>(mean_diagonal);
  for (int r = lane; r < n; r += Lanes) {
    matrix[r * pitch + r] = matrix[r * pitch + r] + to_number<N>(load);
  }
  __syncwarp();

  bool positive = true;
  // The slot of a panel's rows is a constant once this loop is unrolled; earlier slots are
  // finished.
  MAHAL_UNROLL
  for (int slot = 0; slot < Rows; ++slot) {
    const int slot_end = n < (slot + 1) * Lanes ? n : (slot + 1) * Lanes;
    for (int first = slot * Lanes; first < slot_end; first += small_panel) {
      N row[Rows][small_panel] = {};
      MAHAL_UNROLL
      for (int s = slot; s < Rows; ++s) {
        const int r = lane + s * Lanes;
        if (r >= first && r < n) {
          MAHAL_UNROLL
          for (int c = 0; c < small_panel; ++c) {
            if (first + c <= r) row[s][c] = matrix[r * pitch + first + c];
          }
          for (int j = 0; j < first; ++j) {
            const N own = matrix[r * pitch + j];
            MAHAL_UNROLL
            for (int c = 0; c < small_panel; ++c) {
              // Columns behind the row's diagonal are computed for nothing; they stay inside.
              const int other = first + c < n ? first + c : n - 1;
              row[s][c] = row[s][c] - own * conjugate(matrix[other * pitch + j]);
            }
          }
        }
      }
      const bool panel_positive = factor_panel<N, Lanes, Rows, small_panel>(
          row, slot, first, n, n, lane, first_lane, [&](int k) { return real_part(matrix[k * pitch + k]); });
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
  N* factor = reinterpret_cast<N*>(p.factor) + index * n * n;
  for (int r = 0; r < n; ++r) {
    for (int c = lane; c < n; c += Lanes) {
      factor[r * n + c] = c > r ? N{} : good ? matrix[r * pitch + c] : to_number<N>(nan);
    }
  }
  if (lane == 0) {
    p.status[index] = finite == 0 ? non_finite : positive ? factored : not_positive_definite;
  }
}

// One matrix per block, one row per thread. Finished columns are read back from the factor.
template <class N>
__global__ void __launch_bounds__(block_threads, 2) large_cholesky(CholeskyLaunch<Real<N>> p) {
  using T = Real<N>;
  const T nan = simt::nan<T>;
  constexpr int width = large_panel<N>;
  constexpr int pitch = width + 1;
  const int n = p.n;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t index = blockIdx.x;
  const N* a = reinterpret_cast<const N*>(p.a) + index * p.batch_stride;
  N* factor = reinterpret_cast<N*>(p.factor) + index * n * n;

  N* panel = simt::dynamic_shared<N>();                  // n rows of `pitch`
  N* block = panel + n * pitch;                          // the panel's square on the diagonal
  T* diagonal = reinterpret_cast<T*>(block + width * pitch);  // its diagonal before the factorisation
  T* inverse = diagonal + width;                         // 1 / its diagonal after it
  int* flags = reinterpret_cast<int*>(inverse + width);  // finite, positive

  if (thread < n) {
    panel[thread] = read_entry(p, a, thread, thread) * (T(1) / static_cast<T>(n));
  }
  if (thread < 2) flags[thread] = 1;
  __syncthreads();
  T load = T(0);
  for (int k = 0; k < n; ++k) load += real_part(panel[k]);
  load *= p.loading;

  for (int first = 0; first < n; first += width) {
    const int rows = n - first;
    const int columns = rows < width ? rows : width;
    const int panel_size = rows * width;
    __syncthreads();
    for (int e = thread; e < panel_size; e += block_threads) {
      const int r = e / width, c = e % width;
      N value{};
      if (c <= r) {
        value = read_entry(p, a, first + r, first + c);
        if (!is_finite(value)) flags[0] = 0;
        if (c == r) value = value + to_number<N>(load);
      }
      panel[r * pitch + c] = value;
    }
    chunk_barrier();
    N row[1][width] = {};
    if (thread < rows) {
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) row[0][c] = panel[thread * pitch + c];
    }
    if (thread < columns) diagonal[thread] = real_part(panel[thread * pitch + thread]);
    for (int done = 0; done < first; done += width) {
      __syncthreads();
      for (int e = thread; e < panel_size; e += block_threads) {
        const int r = e / width, c = e % width;
        panel[r * pitch + c] = factor[(first + r) * n + done + c];
      }
      chunk_barrier();
      if (thread < rows) {
        for (int j = 0; j < width; ++j) {
          const N own = panel[thread * pitch + j];
          MAHAL_UNROLL
          for (int c = 0; c < width; ++c) {
            if (c < columns) row[0][c] = row[0][c] - own * conjugate(panel[c * pitch + j]);
          }
        }
      }
    }
    __syncthreads();
    if (thread < warp_lanes) {
      const bool positive = factor_panel<N, warp_lanes, 1, width>(
          row, 0, 0, columns, n, thread, 0, [&](int k) { return diagonal[k]; });
      if (!positive && thread == 0) flags[1] = 0;
      if (thread < columns) {
        MAHAL_UNROLL
        for (int c = 0; c < width; ++c) block[thread * pitch + c] = row[0][c];
        inverse[thread] = T(1) / real_part(block[thread * pitch + thread]);
      }
    }
    __syncthreads();
    // The first warp has carried its rows below the square along.
    if (thread >= warp_lanes && thread < rows) {
      MAHAL_UNROLL
      for (int c = 0; c < width; ++c) {
        MAHAL_UNROLL
        for (int j = 0; j < c; ++j) {
          row[0][c] = row[0][c] - row[0][j] * conjugate(block[c * pitch + j]);
        }
        row[0][c] = row[0][c] * inverse[c];
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
      factor[r * n + first + c] = first + c <= r ? panel[(r - first) * pitch + c] : N{};
    }
  }

  __syncthreads();
  if (flags[0] == 0 || flags[1] == 0) {
    for (int e = thread; e < n * n; e += block_threads) {
      if (e % n <= e / n) factor[e] = to_number<N>(nan);
    }
  }
  if (thread == 0) {
    p.status[index] = flags[0] == 0 ? non_finite : flags[1] == 0 ? not_positive_definite : factored;
  }
}

// Beyond, the factor itself holds what is left of a matrix, and each panel takes two launches: one
// solves its rows, the next takes them out of the columns that follow.
template <class N>
constexpr int panel_width = cholesky_panel_bytes / static_cast<int>(sizeof(N));
constexpr int panel_rows = 96;  // per block
template <class N>
constexpr int update_tile = is_complex_number<N> ? 2 : 4;  // per thread, in each direction
template <class N>
constexpr int update_side = 16 * update_tile<N>;

template <class N>
struct PanelLaunch {
  CholeskyLaunch<Real<N>> matrices;
  std::int64_t first_matrix;  // of this launch
  int first, end;             // columns of the panel
  int blocks;                 // per matrix

  __device__ __forceinline__ std::int64_t index() const {
    return first_matrix + blockIdx.x / static_cast<unsigned>(blocks);
  }
  __device__ __forceinline__ int block() const {
    return static_cast<int>(blockIdx.x % static_cast<unsigned>(blocks));
  }
  __device__ __forceinline__ N* factor() const {
    const std::int64_t n = matrices.n;
    return reinterpret_cast<N*>(matrices.factor) + index() * n * n;
  }
  // The factor of the panel's square, on its way to its place, which others still read.
  __device__ __forceinline__ N* square() const {
    return reinterpret_cast<N*>(matrices.workspace) + index() * panel_width<N> * panel_width<N>;
  }
  // After loading.
  __device__ __forceinline__ Real<N>* diagonal() const {
    constexpr int square = panel_width<N> * panel_width<N>;
    return reinterpret_cast<Real<N>*>(reinterpret_cast<N*>(matrices.workspace) +
                                      matrices.batch * square) +
           index() * matrices.n;
  }
};

template <class N>
__global__ void __launch_bounds__(block_threads) load_diagonal(PanelLaunch<N> p) {
  using T = Real<N>;
  const CholeskyLaunch<T>& m = p.matrices;
  const N* a = reinterpret_cast<const N*>(m.a) + p.index() * m.batch_stride;
  T* diagonal = p.diagonal();
  T sum = T(0);
  for (int k = static_cast<int>(threadIdx.x); k < m.n; k += block_threads) {
    diagonal[k] = real_part(read_entry(m, a, k, k));
    sum += diagonal[k] / static_cast<T>(m.n);
  }
  const T load = m.loading * block_reduce(sum, simt::dynamic_shared<T>());
  for (int k = static_cast<int>(threadIdx.x); k < m.n; k += block_threads) diagonal[k] += load;
  if (threadIdx.x == 0) m.status[p.index()] = factored;
}

// A band of rows; every thread that meets a value that is not finite writes the same status.
template <class N>
__global__ void __launch_bounds__(block_threads) copy_lower(PanelLaunch<N> p) {
  const CholeskyLaunch<Real<N>>& m = p.matrices;
  const N* a = reinterpret_cast<const N*>(m.a) + p.index() * m.batch_stride;
  N* factor = p.factor();
  const Real<N>* diagonal = p.diagonal();
  for (int r = p.block(); r < m.n; r += p.blocks) {
    for (int c = static_cast<int>(threadIdx.x); c < m.n; c += block_threads) {
      N value{};
      if (c <= r) value = read_entry(m, a, r, c);
      if (!is_finite(value)) m.status[p.index()] = non_finite;
      if (c == r) value = to_number<N>(diagonal[r]);
      factor[std::int64_t{r} * m.n + c] = value;
    }
  }
}

// Every block factors the square and carries its own rows along.
template <class N>
__global__ void __launch_bounds__(block_threads) solve_panel(PanelLaunch<N> p) {
  using T = Real<N>;
  constexpr int pitch = panel_width<N> + 1;
  const CholeskyLaunch<T>& m = p.matrices;
  const int thread = static_cast<int>(threadIdx.x);
  const int width = p.end - p.first;
  const int below = p.end + p.block() * panel_rows;
  const int rows = width + (m.n - below < panel_rows ? m.n - below : panel_rows);
  const auto row_of = [&](int r) { return std::int64_t{r < width ? p.first + r : below + r - width}; };
  N* a = simt::dynamic_shared<N>();
  T* pivots = reinterpret_cast<T*>(a + (panel_width<N> + panel_rows) * pitch);
  int* flag = reinterpret_cast<int*>(pivots + panel_width<N>);
  N* factor = p.factor() + p.first;
  for (int e = thread; e < rows * panel_width<N>; e += block_threads) {
    const int r = e / panel_width<N>, c = e % panel_width<N>;
    if (c < width && c <= r) a[r * pitch + c] = factor[row_of(r) * m.n + c];
  }
  for (int c = thread; c < width; c += block_threads) pivots[c] = p.diagonal()[p.first + c];
  const bool positive = block_cholesky(a, PitchedRows{pitch}, width, rows,
                                       static_cast<T>(m.n) * simt::epsilon<T>, pivots, flag);
  N* square = p.square();
  for (int e = thread; e < rows * panel_width<N>; e += block_threads) {
    const int r = e / panel_width<N>, c = e % panel_width<N>;
    if (c >= width || c > r) continue;
    if (r >= width) {
      factor[row_of(r) * m.n + c] = a[r * pitch + c];
    } else if (p.block() == 0) {
      square[e] = a[r * pitch + c];
    }
  }
  if (p.block() == 0 && thread == 0 && !positive && m.status[p.index()] == factored) {
    m.status[p.index()] = not_positive_definite;
  }
}

// One square of the columns behind the panel per block; the first one puts the panel's own square
// into its place as well.
template <class N>
__global__ void __launch_bounds__(block_threads) update_columns(PanelLaunch<N> p) {
  constexpr int side = update_side<N>, tile = update_tile<N>;
  constexpr int pitch = panel_width<N> + 1;
  const CholeskyLaunch<Real<N>>& m = p.matrices;
  const int thread = static_cast<int>(threadIdx.x);
  const int width = p.end - p.first;
  N* factor = p.factor();
  if (p.block() == 0) {
    const N* square = p.square();
    for (int e = thread; e < width * panel_width<N>; e += block_threads) {
      const int r = e / panel_width<N>, c = e % panel_width<N>;
      if (c <= r) factor[(p.first + std::int64_t{r}) * m.n + p.first + c] = square[e];
    }
  }
  int block_row = 0, block_col = p.block();
  while (block_col > block_row) block_col -= ++block_row;
  const int r0 = p.end + block_row * side;
  const int c0 = p.end + block_col * side;
  if (r0 >= m.n) return;
  N* left = simt::dynamic_shared<N>();
  N* right = left + side * pitch;
  for (int e = thread; e < side * panel_width<N>; e += block_threads) {
    const int r = e / panel_width<N>, c = e % panel_width<N>;
    if (c >= width) continue;
    left[r * pitch + c] = r0 + r < m.n ? factor[std::int64_t{r0 + r} * m.n + p.first + c] : N{};
    right[r * pitch + c] = c0 + r < m.n ? factor[std::int64_t{c0 + r} * m.n + p.first + c] : N{};
  }
  chunk_barrier();
  // Rows and columns 16 apart: neighbouring threads read and write neighbouring entries.
  const int own_row = thread / 16, own_col = thread % 16;
  N sum[tile][tile] = {};
  for (int k = 0; k < width; ++k) {
    N x[tile], y[tile];
    MAHAL_UNROLL
    for (int s = 0; s < tile; ++s) {
      x[s] = left[(own_row + 16 * s) * pitch + k];
      y[s] = conjugate(right[(own_col + 16 * s) * pitch + k]);
    }
    MAHAL_UNROLL
    for (int s = 0; s < tile; ++s) {
      MAHAL_UNROLL
      for (int t = 0; t < tile; ++t) sum[s][t] = sum[s][t] + x[s] * y[t];
    }
  }
  MAHAL_UNROLL
  for (int s = 0; s < tile; ++s) {
    MAHAL_UNROLL
    for (int t = 0; t < tile; ++t) {
      const int r = r0 + own_row + 16 * s, c = c0 + own_col + 16 * t;
      if (r >= m.n || c > r) continue;
      N& entry = factor[std::int64_t{r} * m.n + c];
      entry = entry - sum[s][t];
    }
  }
}

template <class N>
__global__ void __launch_bounds__(block_threads) spoil_failed(PanelLaunch<N> p) {
  const CholeskyLaunch<Real<N>>& m = p.matrices;
  if (m.status[p.index()] == factored) return;
  const N nan = to_number<N>(simt::nan<Real<N>>);
  for (int r = p.block(); r < m.n; r += p.blocks) {
    for (int c = static_cast<int>(threadIdx.x); c <= r; c += block_threads) {
      p.factor()[std::int64_t{r} * m.n + c] = nan;
    }
  }
}

template <class N, int Lanes, int Rows>
void launch_small(const CholeskyLaunch<Real<N>>& p, std::uintptr_t stream) {
  const std::size_t matrix_bytes = sizeof(N) * p.n * (p.n | 1);
  const int groups =
      static_cast<int>(std::min<std::size_t>(block_threads / Lanes, shared_budget / matrix_bytes));
  const std::int64_t blocks = (p.batch + groups - 1) / groups;
  simt::launch("cholesky", small_cholesky<N, Lanes, Rows>, dim3(static_cast<unsigned>(blocks)),
               dim3(static_cast<unsigned>(groups * Lanes)), groups * matrix_bytes, stream, p);
}

template <class N>
void launch_large(const CholeskyLaunch<Real<N>>& p, std::uintptr_t stream) {
  constexpr std::size_t width = large_panel<N>;
  const std::size_t bytes = (p.n + width) * (width + 1) * sizeof(N) + 2 * width * sizeof(Real<N>) +
                            2 * sizeof(int);
  simt::launch("cholesky", large_cholesky<N>, dim3(static_cast<unsigned>(p.batch)),
               dim3(block_threads), bytes, stream, p);
}

// The same number of blocks for every matrix, and as many matrices at a time as a grid takes.
template <class N>
void launch_panels(void (*kernel)(PanelLaunch<N>), PanelLaunch<N> p, std::int64_t blocks,
                   std::size_t bytes, std::uintptr_t stream) {
  constexpr std::int64_t most_blocks = 0x7FFFFFFF;
  p.blocks = static_cast<int>(blocks);
  for (p.first_matrix = 0; p.first_matrix < p.matrices.batch;) {
    const std::int64_t count =
        std::min(p.matrices.batch - p.first_matrix, most_blocks / blocks);
    simt::launch("cholesky", kernel, dim3(static_cast<unsigned>(count * blocks)),
                 dim3(block_threads), bytes, stream, p);
    p.first_matrix += count;
  }
}

template <class N>
void launch_blocked(const CholeskyLaunch<Real<N>>& matrices, std::uintptr_t stream) {
  constexpr std::int64_t width = panel_width<N>;
  constexpr std::size_t pitch = width + 1;
  constexpr std::size_t panel_bytes =
      (width + panel_rows) * pitch * sizeof(N) + width * sizeof(Real<N>) + sizeof(int);
  constexpr std::size_t update_bytes = 2 * update_side<N> * pitch * sizeof(N);
  constexpr std::int64_t copy_blocks = 64;
  PanelLaunch<N> p{matrices, 0, 0, 0, 1};
  launch_panels(load_diagonal<N>, p, 1, warp_lanes * sizeof(Real<N>), stream);
  launch_panels(copy_lower<N>, p, copy_blocks, 0, stream);
  for (p.first = 0; p.first < matrices.n; p.first = p.end) {
    p.end = static_cast<int>(std::min<std::int64_t>(matrices.n, p.first + width));
    const std::int64_t left = matrices.n - p.end;
    const std::int64_t chunks = std::max<std::int64_t>(1, (left + panel_rows - 1) / panel_rows);
    launch_panels(solve_panel<N>, p, chunks, panel_bytes, stream);
    const std::int64_t sides = std::max<std::int64_t>(1, (left + update_side<N> - 1) / update_side<N>);
    launch_panels(update_columns<N>, p, sides * (sides + 1) / 2, update_bytes, stream);
  }
  launch_panels(spoil_failed<N>, p, copy_blocks, 0, stream);
}

template <class N>
void launch_entries(const CholeskyLaunch<Real<N>>& p, std::uintptr_t stream) {
  const bool fits = sizeof(N) * p.n * (p.n | 1) <= shared_budget;
  if (p.n <= 8) {
    launch_small<N, 8, 1>(p, stream);
  } else if (p.n <= 16) {
    launch_small<N, 16, 1>(p, stream);
  } else if (p.n <= 32) {
    launch_small<N, 32, 1>(p, stream);
  } else if (p.n <= 64 && fits) {
    launch_small<N, 32, 2>(p, stream);
  } else if (p.n <= most_block_rows) {
    launch_large<N>(p, stream);
  } else {
    launch_blocked<N>(p, stream);
  }
}

template <class T>
void launch_any(const CholeskyLaunch<T>& p, std::uintptr_t stream) {
  if (p.batch == 0) return;
  if (p.hermitian) {
    launch_entries<Complex<T>>(p, stream);
  } else {
    launch_entries<T>(p, stream);
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

// Local mean and covariance of every pixel's window.
//
// A block owns a small tile of pixels and one pair of band blocks. It brings the union of the
// tile's windows into shared memory chunk by chunk (any window fits, however large) and walks the
// taps twice: first for the means, then for the centred products, where a thread owns one pixel and
// a square of band pairs in registers. The second walk also sums the deviations, which removes what
// rounding left in the mean (Chan, Golub and LeVeque 1983, "corrected two-pass"). The order of
// every sum follows from the sizes alone, so results repeat bit for bit.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/simt.hpp"
#include "ops/local_covariance_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int block_threads = 256;
constexpr int max_band_block = 32;
constexpr std::size_t shared_budget = 48 * 1024;
constexpr unsigned whole_warp = 0xFFFFFFFFu;

enum PixelState : std::uint8_t { usable = 0, masked = 1, non_finite = 2 };

template <class T>
struct StateParameters {
  LocalCovarianceLaunch<T> a;
  int lanes;  // threads that share one pixel: 1, or 8 where its bands are contiguous
};

template <class T>
__global__ void __launch_bounds__(block_threads, 4) pixel_states(StateParameters<T> p) {
  const LocalCovarianceLaunch<T>& a = p.a;
  const std::int64_t worker = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  const std::int64_t pixel = worker / p.lanes;
  const int lane = static_cast<int>(worker % p.lanes);
  const bool inside = pixel < a.rows * a.cols;
  const std::int64_t y = pixel / a.cols, x = pixel % a.cols;
  const bool left_out =
      inside && a.mask != nullptr && a.mask[y * a.mask_row_stride + x * a.mask_col_stride] == 0;
  int finite = 1;
  if (inside && !left_out) {
    const T* bands = a.image + y * a.row_stride + x * a.col_stride;
    for (int b = lane; b < a.bands; b += p.lanes) {
      const T value = bands[b * a.band_stride];
      if (!(value - value == T(0))) finite = 0;
    }
  }
  for (int d = p.lanes / 2; d > 0; d /= 2) finite &= __shfl_xor_sync(whole_warp, finite, d);
  if (inside && lane == 0) {
    a.pixel_states[pixel] = left_out ? masked : finite != 0 ? usable : non_finite;
  }
}

// What one launch for one window needs; the offsets into shared memory are in bytes.
template <class T>
struct WindowParameters {
  LocalCovarianceLaunch<T> a;
  Window window;
  int scale;
  int tile_rows, tile_cols, col_tiles;
  int band_block;
  int band_pitch;  // elements of one pixel in shared memory
  int chunk_rows, chunk_cols;
  unsigned references_at, counts_at, states_at, chunk_at;
};

// Window [lo, hi) along both axes without the hole [inner_lo, inner_hi).
struct Ring {
  int row_lo, row_hi, col_lo, col_hi;
  int inner_row_lo, inner_row_hi, inner_col_lo, inner_col_hi;
};

// The part of the image in shared memory.
struct Chunk {
  int row_lo, row_hi, col_lo, col_hi;
};

// Both windows of a ring slide inside the image; only `reflect` lets them reach beyond it.
__device__ __forceinline__ int window_start(int centre, int size, int width, Border border) {
  const int start = centre - width / 2;
  if (border == Border::reflect) return start;
  return start < 0 ? 0 : start > size - width ? size - width : start;
}

__device__ __forceinline__ int mirrored(int i, int size) {
  if (size == 1) return 0;
  const int period = 2 * (size - 1);
  int k = i % period;
  if (k < 0) k += period;
  return k < size ? k : period - k;
}

// The hooks by which tests/cpp/test_simt.cpp proves that its comparisons notice a lost barrier and
// a halo that is off by one.
__device__ __forceinline__ void chunk_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

__device__ __forceinline__ int halo_column(int col, [[maybe_unused]] int cols) {
#if defined(MAHAL_MUTATE_HALO)
  return col + 1 < cols ? col + 1 : col;
#else
  return col;
#endif
}

// The bands of one block: those of band block A and, off the diagonal, those of band block B behind
// them, each padded with zeros to whole tiles.
template <int Tile>
struct BandPair {
  int first_a, count_a, slots_a;
  int first_b, count_b, slots_b;
  bool diagonal;

  __device__ BandPair(int pair, int bands, int band_block) {
    int block = 0;
    while (pair > block) pair -= ++block;
    first_a = block * band_block;
    first_b = pair * band_block;
    count_a = bands - first_a < band_block ? bands - first_a : band_block;
    count_b = bands - first_b < band_block ? bands - first_b : band_block;
    slots_a = (count_a + Tile - 1) / Tile * Tile;
    slots_b = (count_b + Tile - 1) / Tile * Tile;
    diagonal = block == pair;
  }
  __device__ int slots() const { return diagonal ? slots_a : slots_a + slots_b; }
  // -1 for padding.
  __device__ int band(int slot) const {
    if (slot < slots_a) return slot < count_a ? first_a + slot : -1;
    return slot - slots_a < count_b ? first_b + slot - slots_a : -1;
  }
};

template <class T, int Tile>
__device__ void load_chunk(const WindowParameters<T>& p, const BandPair<Tile>& bands,
                           const Chunk& chunk, T* values, std::uint8_t* states) {
  const LocalCovarianceLaunch<T>& a = p.a;
  const int rows = static_cast<int>(a.rows), cols = static_cast<int>(a.cols);
  const int chunk_cols = chunk.col_hi - chunk.col_lo;
  const int cells = (chunk.row_hi - chunk.row_lo) * chunk_cols;
  const int slots = bands.slots();
  const bool reflect = a.border == Border::reflect;
  // Neighbouring threads read neighbouring memory, whichever axis that is.
  const bool band_fastest = a.band_stride == 1;
  for (int e = static_cast<int>(threadIdx.x); e < cells * slots; e += block_threads) {
    const int cell = band_fastest ? e / slots : e % cells;
    const int slot = band_fastest ? e % slots : e / cells;
    int y = chunk.row_lo + cell / chunk_cols, x = chunk.col_lo + cell % chunk_cols;
    if (reflect) {
      y = mirrored(y, rows);
      x = mirrored(x, cols);
    }
    x = halo_column(x, cols);
    const int band = bands.band(slot);
    values[cell * p.band_pitch + slot] =
        band < 0 ? T(0) : a.image[y * a.row_stride + x * a.col_stride + band * a.band_stride];
  }
  for (int cell = static_cast<int>(threadIdx.x); cell < cells; cell += block_threads) {
    int y = chunk.row_lo + cell / chunk_cols, x = chunk.col_lo + cell % chunk_cols;
    if (reflect) {
      y = mirrored(y, rows);
      x = mirrored(x, cols);
    }
    states[cell] = a.pixel_states[y * a.cols + x];
  }
}

// Calls visit(first cell, end cell) for every run of neighbouring taps of the ring in the chunk.
template <class Visit>
__device__ __forceinline__ void visit_runs(const Ring& ring, const Chunk& chunk, Visit visit) {
  const int row_lo = ring.row_lo > chunk.row_lo ? ring.row_lo : chunk.row_lo;
  const int row_hi = ring.row_hi < chunk.row_hi ? ring.row_hi : chunk.row_hi;
  const int col_lo = ring.col_lo > chunk.col_lo ? ring.col_lo : chunk.col_lo;
  const int col_hi = ring.col_hi < chunk.col_hi ? ring.col_hi : chunk.col_hi;
  const int chunk_cols = chunk.col_hi - chunk.col_lo;
  for (int y = row_lo; y < row_hi; ++y) {
    const int row = (y - chunk.row_lo) * chunk_cols - chunk.col_lo;
    if (y >= ring.inner_row_lo && y < ring.inner_row_hi) {
      const int left_hi = col_hi < ring.inner_col_lo ? col_hi : ring.inner_col_lo;
      const int right_lo = col_lo > ring.inner_col_hi ? col_lo : ring.inner_col_hi;
      if (col_lo < left_hi) visit(row + col_lo, row + left_hi);
      if (right_lo < col_hi) visit(row + right_lo, row + col_hi);
    } else if (col_lo < col_hi) {
      visit(row + col_lo, row + col_hi);
    }
  }
}

// Neighbouring bands, read from shared memory in as few loads as the alignment allows.
template <class T, int Tile>
struct alignas(sizeof(T) * Tile) Bands {
  T value[Tile];
};

// The second launch bound keeps ptxas from spilling registers for more blocks at a time.
template <class T, int Tile, bool Masked>
__global__ void __launch_bounds__(block_threads, 1) window_statistics(WindowParameters<T> p) {
  const LocalCovarianceLaunch<T>& a = p.a;
  unsigned char* shared = simt::dynamic_shared<unsigned char>();
  T* means = reinterpret_cast<T*>(shared);                         // pixel, slot
  T* references = reinterpret_cast<T*>(shared + p.references_at);  // pixel, slot
  int* counts = reinterpret_cast<int*>(shared + p.counts_at);      // pixel; -1: the window is bad
  std::uint8_t* states = shared + p.states_at;                     // chunk row, chunk column
  T* values = reinterpret_cast<T*>(shared + p.chunk_at);           // chunk row, chunk column, slot
  T* results = values;                                             // pixel, band of A, band of B
  const T nan = simt::nan<T>;

  const int thread = static_cast<int>(threadIdx.x);
  const int rows = static_cast<int>(a.rows), cols = static_cast<int>(a.cols);
  const BandPair<Tile> bands(static_cast<int>(blockIdx.y), a.bands, p.band_block);
  const int slots = bands.slots();
  const int first_row = static_cast<int>(blockIdx.x / p.col_tiles) * p.tile_rows;
  const int first_col = static_cast<int>(blockIdx.x % p.col_tiles) * p.tile_cols;
  const int tile_rows = rows - first_row < p.tile_rows ? rows - first_row : p.tile_rows;
  const int tile_cols = cols - first_col < p.tile_cols ? cols - first_col : p.tile_cols;
  const int pixels = tile_rows * tile_cols;
  const int outer = p.window.outer, inner = p.window.inner;

  const auto ring_of = [&](int pixel) {
    const int y = first_row + pixel / tile_cols, x = first_col + pixel % tile_cols;
    Ring ring;
    ring.row_lo = window_start(y, rows, outer, a.border);
    ring.row_hi = ring.row_lo + outer;
    ring.col_lo = window_start(x, cols, outer, a.border);
    ring.col_hi = ring.col_lo + outer;
    ring.inner_row_lo = window_start(y, rows, inner, a.border);
    ring.inner_row_hi = ring.inner_row_lo + inner;
    ring.inner_col_lo = window_start(x, cols, inner, a.border);
    ring.inner_col_hi = ring.inner_col_lo + inner;
    return ring;
  };
  const int union_row_lo = window_start(first_row, rows, outer, a.border);
  const int union_row_hi = window_start(first_row + tile_rows - 1, rows, outer, a.border) + outer;
  const int union_col_lo = window_start(first_col, cols, outer, a.border);
  const int union_col_hi = window_start(first_col + tile_cols - 1, cols, outer, a.border) + outer;
  const bool one_chunk =
      union_row_hi - union_row_lo <= p.chunk_rows && union_col_hi - union_col_lo <= p.chunk_cols;

  // Brings in one chunk after the other and calls work(chunk) on each.
  const auto over_chunks = [&](bool load, auto work) {
    for (int y = union_row_lo; y < union_row_hi; y += p.chunk_rows) {
      for (int x = union_col_lo; x < union_col_hi; x += p.chunk_cols) {
        const Chunk chunk{y, y + p.chunk_rows < union_row_hi ? y + p.chunk_rows : union_row_hi, x,
                          x + p.chunk_cols < union_col_hi ? x + p.chunk_cols : union_col_hi};
        if (load) {
          __syncthreads();
          load_chunk(p, bands, chunk, values, states);
          chunk_barrier();
        }
        work(chunk);
      }
    }
  };

  // Means. A thread keeps the same (pixel, slot) items in every chunk, so it alone touches their
  // sums; the slot behind the bands counts the samples. Sums are taken from the window's first
  // sample: exact for a constant band, and free of cancellation at a large offset.
  const int items = pixels * (slots + 1);
  for (int i = thread; i < items; i += block_threads) {
    const int pixel = i / (slots + 1), slot = i % (slots + 1);
    if (slot == slots) {
      const int y = first_row + pixel / tile_cols, x = first_col + pixel % tile_cols;
      const int half = outer / 2;
      const bool whole = y >= half && y + half < rows && x >= half && x + half < cols;
      counts[pixel] = a.border == Border::valid && !whole ? -1 : 0;
    } else {
      means[pixel * p.band_pitch + slot] = T(0);
      references[pixel * p.band_pitch + slot] = nan;
    }
  }
  over_chunks(true, [&](const Chunk& chunk) {
    for (int i = thread; i < items; i += block_threads) {
      const int pixel = i / (slots + 1), slot = i % (slots + 1);
      const Ring ring = ring_of(pixel);
      if (slot == slots) {
        int count = 0;
        bool bad = counts[pixel] < 0;
        visit_runs(ring, chunk, [&](int cell, int end) {
          for (; cell < end; ++cell) {
            count += states[cell] == usable;
            bad = bad || states[cell] == non_finite;
          }
        });
        counts[pixel] = bad ? -1 : counts[pixel] + count;
        continue;
      }
      T reference = references[pixel * p.band_pitch + slot];
      T sum = means[pixel * p.band_pitch + slot];
      visit_runs(ring, chunk, [&](int cell, int end) {
        T partial = T(0);
        for (; cell < end; ++cell) {
          if (Masked && states[cell] != usable) continue;
          const T value = values[cell * p.band_pitch + slot];
          if (reference != reference) reference = value;
          partial += value - reference;
        }
        sum += partial;
      });
      references[pixel * p.band_pitch + slot] = reference;
      means[pixel * p.band_pitch + slot] = sum;
    }
  });
  __syncthreads();
  for (int i = thread; i < items; i += block_threads) {
    const int pixel = i / (slots + 1), slot = i % (slots + 1);
    if (slot == slots) continue;
    const int at = pixel * p.band_pitch + slot;
    const int count = counts[pixel];
    means[at] = count > 0 ? references[at] + means[at] / static_cast<T>(count) : nan;
  }
  __syncthreads();

  // Centred products: one (pixel, tile of band pairs) per thread.
  const int tiles_a = bands.slots_a / Tile, tiles_b = bands.slots_b / Tile;
  const int tiles = bands.diagonal ? tiles_a * (tiles_a + 1) / 2 : tiles_a * tiles_b;
  const bool active = thread < pixels * tiles;
  const int pixel = active ? thread / tiles : 0;
  int tile_a = 0, tile_b = active ? thread % tiles : 0;
  if (bands.diagonal) {
    while (tile_b > tile_a) tile_b -= ++tile_a;
  } else {
    tile_a = tile_b / tiles_b;
    tile_b %= tiles_b;
  }
  const int slot_a = tile_a * Tile;
  const int slot_b = tile_b * Tile + (bands.diagonal ? 0 : bands.slots_a);
  const Ring ring = ring_of(pixel);
  using Vector = Bands<T, Tile>;
  const Vector mean_a = *reinterpret_cast<const Vector*>(means + pixel * p.band_pitch + slot_a);
  const Vector mean_b = *reinterpret_cast<const Vector*>(means + pixel * p.band_pitch + slot_b);
  T product[Tile][Tile] = {};
  T sum_a[Tile] = {};
  T sum_b[Tile] = {};
  over_chunks(!one_chunk, [&](const Chunk& chunk) {
    if (!active) return;
    visit_runs(ring, chunk, [&](int cell, int end) {
      T partial[Tile][Tile] = {};
      for (; cell < end; ++cell) {
        if (Masked && states[cell] != usable) continue;
        const T* at = values + cell * p.band_pitch;
        Vector da = *reinterpret_cast<const Vector*>(at + slot_a);
        Vector db = *reinterpret_cast<const Vector*>(at + slot_b);
  MAHAL_UNROLL
        for (int i = 0; i < Tile; ++i) {
          da.value[i] -= mean_a.value[i];
          db.value[i] -= mean_b.value[i];
          sum_a[i] += da.value[i];
          sum_b[i] += db.value[i];
        }
        MAHAL_UNROLL
        for (int i = 0; i < Tile; ++i) {
          MAHAL_UNROLL
          for (int j = 0; j < Tile; ++j) partial[i][j] += da.value[i] * db.value[j];
        }
      }
      MAHAL_UNROLL
      for (int i = 0; i < Tile; ++i) {
        MAHAL_UNROLL
        for (int j = 0; j < Tile; ++j) product[i][j] += partial[i][j];
      }
    });
  });
  __syncthreads();

  // Results go through shared memory, over the chunk, so that global memory is written in order.
  const int pitch = p.band_block + 1;
  if (active) {
    const int count = counts[pixel];
    const T n = static_cast<T>(count);
    MAHAL_UNROLL
    for (int i = 0; i < Tile; ++i) {
      MAHAL_UNROLL
      for (int j = 0; j < Tile; ++j) {
        const int band_a = slot_a + i, band_b = tile_b * Tile + j;
        if (band_a >= bands.count_a || band_b >= bands.count_b) continue;
        const T covariance = count > a.ddof ? (product[i][j] - sum_a[i] * (sum_b[j] / n)) /
                                                  static_cast<T>(count - a.ddof)
                                            : nan;
        // A tile on the diagonal holds both halves, which need not be equal to the last bit.
        if (bands.diagonal && band_b > band_a) continue;
        results[(pixel * p.band_block + band_a) * pitch + band_b] = covariance;
        if (bands.diagonal) results[(pixel * p.band_block + band_b) * pitch + band_a] = covariance;
      }
      if (bands.diagonal && tile_a == tile_b) {
        means[pixel * p.band_pitch + slot_a + i] = mean_a.value[i] + sum_a[i] / n;
      }
    }
  }
  __syncthreads();
  const auto output_pixel = [&](int local) {
    const std::int64_t y = first_row + local / tile_cols, x = first_col + local % tile_cols;
    return (y * a.cols + x) * a.window_count + p.scale;
  };
  const int pairs = bands.count_a * bands.count_b;
  for (int e = thread; e < pixels * pairs; e += block_threads) {
    const int local = e / pairs, i = e % pairs / bands.count_b, j = e % pairs % bands.count_b;
    a.covariance[(output_pixel(local) * a.bands + bands.first_a + i) * a.bands + bands.first_b +
                 j] = results[(local * p.band_block + i) * pitch + j];
  }
  if (bands.diagonal) {
    for (int e = thread; e < pixels * bands.count_a; e += block_threads) {
      const int local = e / bands.count_a, i = e % bands.count_a;
      a.mean[output_pixel(local) * a.bands + bands.first_a + i] = means[local * p.band_pitch + i];
    }
  } else {
    for (int e = thread; e < pixels * pairs; e += block_threads) {
      const int local = e / pairs, j = e % pairs / bands.count_a, i = e % pairs % bands.count_a;
      a.covariance[(output_pixel(local) * a.bands + bands.first_b + j) * a.bands + bands.first_a +
                   i] = results[(local * p.band_block + i) * pitch + j];
    }
  }
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

constexpr unsigned aligned(std::size_t bytes) {
  return static_cast<unsigned>((bytes + 31) / 32 * 32);
}

template <class T, int Tile>
void launch_window(const LocalCovarianceLaunch<T>& a, int scale, std::uintptr_t stream) {
  WindowParameters<T> p{};
  p.a = a;
  p.scale = scale;
  p.window = a.windows[scale];
  p.band_block = std::min(a.bands, max_band_block);
  const int blocks = static_cast<int>(divide_up(a.bands, p.band_block));
  const int block_slots = static_cast<int>(divide_up(p.band_block, Tile)) * Tile;
  const int block_tiles = block_slots / Tile;
  const int tiles = blocks == 1 ? block_tiles * (block_tiles + 1) / 2 : block_tiles * block_tiles;
  p.band_pitch = blocks == 1 ? block_slots : 2 * block_slots;
  // Neighbouring columns in different banks.
  if (p.band_pitch * sizeof(T) % 128 == 0) p.band_pitch += Tile;

  const auto per_pixel = [&](int pixels) {
    return std::size_t{2} * aligned(sizeof(T) * p.band_pitch * pixels) +
           aligned(sizeof(int) * pixels);
  };
  const auto results = [&](int pixels) {
    return sizeof(T) * pixels * p.band_block * (p.band_block + 1);
  };
  int pixels = block_threads / tiles;
  while (pixels > 1 && per_pixel(pixels) + results(pixels) + 32 > shared_budget) --pixels;
  p.tile_cols = static_cast<int>(std::min<std::int64_t>(a.cols, std::min(pixels, 16)));
  p.tile_rows = static_cast<int>(std::min<std::int64_t>(a.rows, pixels / p.tile_cols));
  pixels = p.tile_cols * p.tile_rows;
  p.col_tiles = static_cast<int>(divide_up(a.cols, p.tile_cols));
  const std::int64_t row_tiles = divide_up(a.rows, p.tile_rows);

  const int union_rows = p.tile_rows + p.window.outer - 1;
  const int union_cols = p.tile_cols + p.window.outer - 1;
  const std::size_t cell_bytes = sizeof(T) * p.band_pitch + 1;
  const int cells = static_cast<int>((shared_budget - per_pixel(pixels) - 32) / cell_bytes);
  p.chunk_cols = std::min(union_cols, cells);
  p.chunk_rows = std::min(union_rows, cells / p.chunk_cols);
  p.references_at = aligned(sizeof(T) * p.band_pitch * pixels);
  p.counts_at = 2 * p.references_at;
  p.states_at = p.counts_at + aligned(sizeof(int) * pixels);
  p.chunk_at = p.states_at + aligned(std::size_t{1} * p.chunk_rows * p.chunk_cols);
  const std::size_t chunk_bytes = sizeof(T) * p.chunk_rows * p.chunk_cols * p.band_pitch;
  const std::size_t shared = p.chunk_at + std::max(chunk_bytes, results(pixels));

  simt::launch(
      "local_covariance",
      a.mask == nullptr ? window_statistics<T, Tile, false> : window_statistics<T, Tile, true>,
      dim3(static_cast<unsigned>(p.col_tiles * row_tiles),
           static_cast<unsigned>(blocks * (blocks + 1) / 2)),
      dim3(block_threads), shared, stream, p);
}

template <class T>
void launch_all(const LocalCovarianceLaunch<T>& a, std::uintptr_t stream) {
  if (a.rows == 0 || a.cols == 0) return;
  const int lanes = a.band_stride == 1 && a.bands >= 8 ? 8 : 1;
  simt::launch("local_covariance", pixel_states<T>,
               dim3(static_cast<unsigned>(divide_up(a.rows * a.cols * lanes, block_threads))),
               dim3(block_threads), 0, stream, StateParameters<T>{a, lanes});
  for (int scale = 0; scale < a.window_count; ++scale) {
    if (a.bands < 4) {
      launch_window<T, 1>(a, scale, stream);
    } else {
      launch_window<T, 4>(a, scale, stream);
    }
  }
}

}  // namespace

void local_covariance(const LocalCovarianceLaunch<float>& arguments, std::uintptr_t stream) {
  launch_all(arguments, stream);
}

void local_covariance(const LocalCovarianceLaunch<double>& arguments, std::uintptr_t stream) {
  launch_all(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

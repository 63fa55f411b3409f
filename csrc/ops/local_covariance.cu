// Local mean and covariance of every pixel's window.
//
// A channel is a band, or the real or the imaginary part of a complex one: the kernel sums products
// of channels, and what it writes puts the parts together. A block owns a strip of columns, a
// segment of its rows, a pair of channel blocks and a window. A warp owns a square of channel
// pairs, a lane of it two neighbouring pixels, whose window sums stay in registers while the
// window moves down: the row that enters is added and the row that leaves taken away, each summed
// over the columns of the window. All sums are in float64 about an origin near the pixels, so that
// nothing cancels and what has passed through them leaves no trace. Their order follows from the
// sizes alone, so results repeat bit for bit.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/device_matrix.hpp"
#include "core/simt.hpp"
#include "ops/local_covariance_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr const char* op = "local_covariance";
constexpr int state_threads = 256;
constexpr int lane_columns = 2;
constexpr int strip_columns = warp_lanes * lane_columns;
constexpr int block_channels = 8;
constexpr int max_windows = 8;  // of one launch
constexpr int origin_samples = 1024;
constexpr int max_threads = 6 * warp_lanes;

// Where rows are staged.
enum Place : int { outer_enter, outer_leave, inner_enter, inner_leave };
enum PixelState : std::uint8_t { usable = 0, masked = 1, non_finite = 2 };

template <class T>
__device__ __forceinline__ std::int64_t channel_offset(const LocalCovarianceLaunch<T>& a, int c) {
  return a.complex ? c / 2 * a.band_stride + c % 2 : c * a.band_stride;
}

template <class T>
__device__ __forceinline__ bool is_left_out(const LocalCovarianceLaunch<T>& a, std::int64_t y,
                                            std::int64_t x) {
  return a.mask != nullptr && a.mask[y * a.mask_row_stride + x * a.mask_col_stride] == 0;
}

template <class T>
struct StateParameters {
  LocalCovarianceLaunch<T> a;
  int lanes;  // threads that share one pixel: 1, or 8 where its channels are contiguous
};

// Of images with more channels than a block looks at.
template <class T>
__global__ void __launch_bounds__(state_threads, 4) pixel_states(StateParameters<T> p) {
  const LocalCovarianceLaunch<T>& a = p.a;
  const std::int64_t worker = std::int64_t{blockIdx.x} * state_threads + threadIdx.x;
  const std::int64_t pixel = worker / p.lanes;
  const int lane = static_cast<int>(worker % p.lanes);
  const bool inside = pixel < a.rows * a.cols;
  const std::int64_t y = pixel / a.cols, x = pixel % a.cols;
  const bool left_out = inside && is_left_out(a, y, x);
  int finite = 1;
  if (inside && !left_out) {
    const T* values = a.image + y * a.row_stride + x * a.col_stride;
    const int channels = a.bands * (a.complex ? 2 : 1);
    for (int c = lane; c < channels; c += p.lanes) {
      if (!is_finite(values[channel_offset(a, c)])) finite = 0;
    }
  }
  for (int d = p.lanes / 2; d > 0; d /= 2) finite &= __shfl_xor_sync(whole_warp, finite, d);
  if (inside && lane == 0) {
    a.pixel_states[pixel] = left_out ? masked : finite != 0 ? usable : non_finite;
  }
}

template <class T>
struct MapParameters {
  LocalCovarianceLaunch<T> a;
  Window windows[max_windows];
  int first_window, window_count;  // of this launch
  int channels, pairs;             // of channels and of channel blocks
  int strips, segment_rows;
  int width;     // columns of a staged row
  int pitch;     // its elements for one quad
  bool aligned;  // matrices start at multiples of 16 bytes
  // Where things lie in shared memory, in bytes behind the staged rows.
  unsigned sums_at, counts_at, states_at;
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
__device__ __forceinline__ void row_barrier() {
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

// The channels of one block: those of channel block A and, off the diagonal, those of channel
// block B behind them, each padded to whole quads of Side channels.
template <int Side>
struct ChannelPair {
  int first_a, count_a, quads_a;
  int first_b, count_b, quads_b;
  bool diagonal;

  __device__ ChannelPair(int pair, int channels) {
    int block = 0;
    while (pair > block) pair -= ++block;
    first_a = block * block_channels;
    first_b = pair * block_channels;
    count_a = channels - first_a < block_channels ? channels - first_a : block_channels;
    count_b = channels - first_b < block_channels ? channels - first_b : block_channels;
    quads_a = (count_a + Side - 1) / Side;
    quads_b = (count_b + Side - 1) / Side;
    diagonal = block == pair;
  }
  __device__ int quads() const { return diagonal ? quads_a : quads_a + quads_b; }
  __device__ int tiles() const {
    return diagonal ? quads_a * (quads_a + 1) / 2 : quads_a * quads_b;
  }
  // -1 for padding.
  __device__ int channel(int slot) const {
    const int b = slot - quads_a * Side;
    if (b < 0) return slot < count_a ? first_a + slot : -1;
    return b < count_b ? first_b + b : -1;
  }
};

// A quad of channels of one pixel of a staged row. Every second pixel is followed by a gap, so that
// lanes, which are two pixels apart, read from different memory banks.
template <int Side>
struct alignas(Side > 1 ? 16 : 8) Quad {
  double value[Side];
};
template <int Side>
inline constexpr int quad_gap = Side > 1 ? 2 : 1;
template <int Side>
__device__ __forceinline__ const Quad<Side>& quad_at(const double* row, int column) {
  return *reinterpret_cast<const Quad<Side>*>(row + column * Side +
                                              column / lane_columns * quad_gap<Side>);
}

// A row that the block has staged.
struct Row {
  const double* values;
  const std::uint8_t* states;
};

// Calls visit(column, scale) for what makes up the sums of a row over the windows of the lane's
// pixels, and done(k) once they are those of pixel k.
template <class Visit, class Done>
__device__ __forceinline__ void slide(const int (&starts)[lane_columns], int side, double scale,
                                      Visit visit, Done done) {
  for (int u = starts[0]; u < starts[0] + side; ++u) visit(u, scale);
  done(0);
  MAHAL_UNROLL
  for (int k = 1; k < lane_columns; ++k) {
    // At an edge of the image neighbours may share their window.
    if (starts[k] != starts[k - 1]) {
      visit(starts[k - 1], -scale);
      visit(starts[k] + side - 1, scale);
    }
    done(k);
  }
}

// The window sums of a lane: products of two quads, or, with the quads of one block, the sums of
// its channels.
template <int Side>
struct LaneSums {
  double value[lane_columns][Side * Side > block_channels ? Side * Side : block_channels];
  int count[lane_columns];
  int bad[lane_columns];
};

template <int Side, bool Diagonal>
__device__ __forceinline__ void add_products(LaneSums<Side>& sums, const double* row_a,
                                             const double* row_b,
                                             const int (&starts)[lane_columns], int side,
                                             double scale) {
  double moved[Side][Side] = {};
  slide(
      starts, side, scale,
      [&](int column, double factor) {
        const Quad<Side> a = quad_at<Side>(row_a, column);
        const Quad<Side> b = Diagonal ? a : quad_at<Side>(row_b, column);
        MAHAL_UNROLL
        for (int i = 0; i < Side; ++i) {
          const double scaled = factor * a.value[i];
          MAHAL_UNROLL
          for (int j = 0; j < Side; ++j) {
            if (!Diagonal || j <= i) moved[i][j] += scaled * b.value[j];
          }
        }
      },
      [&](int k) {
        MAHAL_UNROLL
        for (int i = 0; i < Side; ++i) {
          MAHAL_UNROLL
          for (int j = 0; j < Side; ++j) {
            if (!Diagonal || j <= i) sums.value[k][i * Side + j] += moved[i][j];
          }
        }
      });
}

template <int Side>
__device__ __forceinline__ void add_channels(LaneSums<Side>& sums, const Row& row, int quads,
                                             int pitch, const int (&starts)[lane_columns],
                                             int side, double scale) {
  double moved[block_channels] = {};
  int count = 0, bad = 0;
  slide(
      starts, side, scale,
      [&](int column, double factor) {
        MAHAL_UNROLL
        for (int q = 0; q < block_channels / Side; ++q) {
          if (q >= quads) break;
          const Quad<Side> a = quad_at<Side>(row.values + q * pitch, column);
          MAHAL_UNROLL
          for (int i = 0; i < Side; ++i) moved[q * Side + i] += factor * a.value[i];
        }
        const int state = row.states[column], sign = factor > 0 ? 1 : -1;
        count += state == usable ? sign : 0;
        bad += state == non_finite ? sign : 0;
      },
      [&](int k) {
        MAHAL_UNROLL
        for (int c = 0; c < block_channels; ++c) sums.value[k][c] += moved[c];
        sums.count[k] += count;
        sums.bad[k] += bad;
      });
}

// The mean of finite values that the mask does not hide, of about origin_samples pixels of the
// part of the image that the block reads; 0 where there are none. From the first of them: exact
// where all are the same. By a warp.
template <class T>
__device__ double find_origin(const LocalCovarianceLaunch<T>& a, int channel, int row_lo,
                              int row_hi, int col_lo, int col_hi) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const std::int64_t offset = channel_offset(a, channel);
  const int rows = static_cast<int>(a.rows), cols = static_cast<int>(a.cols);
  const int width = col_hi - col_lo;
  const std::int64_t pixels = std::int64_t{row_hi - row_lo} * width;
  // NaN where the pixel does not count.
  const auto value_of = [&](std::int64_t i) {
    if (i >= pixels) return simt::nan<double>;
    const int y = mirrored(row_lo + static_cast<int>(i / width), rows);
    const int x = mirrored(col_lo + static_cast<int>(i % width), cols);
    const T value = a.image[y * a.row_stride + x * a.col_stride + offset];
    return is_left_out(a, y, x) || !is_finite(value) ? simt::nan<double>
                                                     : static_cast<double>(value);
  };
  double first = simt::nan<double>;
  for (std::int64_t i = lane; i - lane < pixels; i += warp_lanes) {
    const double value = value_of(i);
    const int holder = warp_reduce(value == value ? lane : warp_lanes, Least{});
    if (holder == warp_lanes) continue;
    first = __shfl_sync(whole_warp, value, holder);
    break;
  }
  if (first != first) return 0;
  const std::int64_t stride = pixels / origin_samples + 1;
  double sum = 0;
  int count = 0;
  for (std::int64_t i = lane * stride; i < pixels; i += warp_lanes * stride) {
    const double value = value_of(i);
    if (value != value) continue;
    sum += value - first;
    ++count;
  }
  count = warp_reduce(count);
  sum = warp_reduce(sum);
  return count > 0 ? first + sum / count : first;
}

// The second launch bound keeps ptxas from spilling registers for more blocks at a time.
template <class T, int Side>
__global__ void __launch_bounds__(max_threads, 1) window_maps(MapParameters<T> p) {
  const LocalCovarianceLaunch<T>& a = p.a;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warp = thread / warp_lanes, lane = thread % warp_lanes;
  const int rows = static_cast<int>(a.rows), cols = static_cast<int>(a.cols);

  // Blocks of the same pixels are neighbours, so that these come from the second-level cache.
  std::int64_t index = blockIdx.x;
  const int scale = p.first_window + static_cast<int>(index % p.window_count);
  const Window window = p.windows[index % p.window_count];
  index /= p.window_count;
  const ChannelPair<Side> channels(static_cast<int>(index % p.pairs), p.channels);
  index /= p.pairs;
  const int first_col = static_cast<int>(index % p.strips) * strip_columns;
  const int first_row = static_cast<int>(index / p.strips) * p.segment_rows;
  const int end_row = first_row + p.segment_rows < rows ? first_row + p.segment_rows : rows;
  const int columns = cols - first_col < strip_columns ? cols - first_col : strip_columns;

  const int quads = channels.quads(), slots = quads * Side;
  const int pitch = p.pitch;
  double* staged = simt::dynamic_shared<double>();  // outer and inner, enter and leave; quad; column
  unsigned char* bytes = simt::dynamic_shared<unsigned char>();
  double* sums = reinterpret_cast<double*>(bytes + p.sums_at);     // slot, column
  double* origins = sums + 2 * block_channels * strip_columns;     // slot
  int* counts = reinterpret_cast<int*>(bytes + p.counts_at);       // column; -1: the window is bad
  std::uint8_t* states = bytes + p.states_at;                      // row, column

  const int col_lo = window_start(first_col, cols, window.outer, a.border);
  const int col_hi =
      window_start(first_col + columns - 1, cols, window.outer, a.border) + window.outer;
  const int row_lo = window_start(first_row, rows, window.outer, a.border);
  const int row_hi = window_start(end_row - 1, rows, window.outer, a.border) + window.outer;
  for (int slot = warp; slot < slots; slot += threads / warp_lanes) {
    const int channel = channels.channel(slot);
    const double origin = a.center && channel >= 0
                              ? find_origin(a, channel, row_lo, row_hi, col_lo, col_hi)
                              : 0.0;
    if (lane == 0) origins[slot] = origin;
  }
  __syncthreads();

  // Brings row `row` of the windows into place `place` of the staged rows, as float64 less the
  // origin; pixels that are no samples as zeros.
  const auto stage = [&](int place, int row) {
    const std::int64_t y = mirrored(row, rows);
    double* to = staged + static_cast<std::int64_t>(place) * quads * pitch;
    for (int u = thread; u < col_hi - col_lo; u += threads) {
      const int x = halo_column(mirrored(col_lo + u, cols), cols);
      const T* values = a.image + y * a.row_stride + x * a.col_stride;
      int state = usable;
      if (a.pixel_states != nullptr) {
        state = a.pixel_states[y * a.cols + x];
      } else if (is_left_out(a, y, x)) {
        state = masked;
      } else {
        for (int c = 0; c < p.channels; ++c) {
          if (!is_finite(values[channel_offset(a, c)])) state = non_finite;
        }
      }
      states[place * p.width + u] = static_cast<std::uint8_t>(state);
      for (int slot = 0; slot < slots; ++slot) {
        const int channel = channels.channel(slot);
        const bool present = state == usable && channel >= 0;
        to[slot / Side * pitch + u * Side + u / lane_columns * quad_gap<Side> + slot % Side] =
            present ? static_cast<double>(values[channel_offset(a, channel)]) - origins[slot] : 0.0;
      }
    }
  };

  // What this warp sums: a tile of products, or behind these the channels of A or of B.
  const int tiles = channels.tiles();
  const bool of_products = warp < tiles;
  const bool of_first = warp == tiles;
  const bool of_second = warp == tiles + 1 && !channels.diagonal;
  int quad_a = 0, quad_b = of_products ? warp : 0;
  if (channels.diagonal) {
    while (quad_b > quad_a) quad_b -= ++quad_a;
  } else {
    quad_a = quad_b / channels.quads_b;
    quad_b %= channels.quads_b;
  }
  const bool on_diagonal = channels.diagonal && quad_a == quad_b;
  const int staged_b = channels.diagonal ? quad_b : channels.quads_a + quad_b;
  const int first_quad = of_second ? channels.quads_a : 0;
  const int own_quads = of_second ? channels.quads_b : channels.quads_a;

  // Columns behind the strip repeat its last one.
  int outer_starts[lane_columns], inner_starts[lane_columns];
  MAHAL_UNROLL
  for (int k = 0; k < lane_columns; ++k) {
    const int column = lane * lane_columns + k;
    const int x = first_col + (column < columns ? column : columns - 1);
    outer_starts[k] = window_start(x, cols, window.outer, a.border) - col_lo;
    inner_starts[k] = window_start(x, cols, window.inner, a.border) - col_lo;
  }

  LaneSums<Side> own = {};
  // Adds a staged row to the window sums, or takes it away.
  const auto move = [&](int place, double scale) {
    const bool inner = place >= inner_enter;
    const int side = inner ? window.inner : window.outer;
    const double* values = staged + static_cast<std::int64_t>(place) * quads * pitch;
    int starts[lane_columns];
    MAHAL_UNROLL
    for (int k = 0; k < lane_columns; ++k) starts[k] = inner ? inner_starts[k] : outer_starts[k];
    if (of_products && on_diagonal) {
      add_products<Side, true>(own, values + quad_a * pitch, nullptr, starts, side, scale);
    } else if (of_products) {
      add_products<Side, false>(own, values + quad_a * pitch, values + staged_b * pitch, starts,
                                side, scale);
    } else if (of_first || of_second) {
      const Row row{values + first_quad * pitch, states + place * p.width};
      add_channels<Side>(own, row, own_quads, pitch, starts, side, scale);
    }
  };

  // Results lie over the staged rows: per column, pixels of equal place in their lane together.
  T* results = reinterpret_cast<T*>(bytes);
  const int parts = a.complex ? 2 : 1;
  const int rows_a = channels.count_a / parts, cols_b = channels.count_b / parts;
  const int entries = rows_a * cols_b * parts;
  const int result_pitch = (entries + block_channels) | 1;  // odd: lanes use different banks
  const auto result_of = [&](int column) {
    return results + (column % lane_columns * warp_lanes + column / lane_columns) * result_pitch;
  };

  int outer_row = row_lo, inner_row = window_start(first_row, rows, window.inner, a.border);
  for (int y = first_row; y < end_row; ++y) {
    // The first windows are built row by row, the others move by a row or stay.
    const int next_outer = window_start(y, rows, window.outer, a.border);
    const int next_inner = window_start(y, rows, window.inner, a.border);
    const bool fresh = y == first_row;
    const int steps = fresh ? window.outer : 1;
    for (int step = 0; step < steps; ++step) {
      const bool outer_moves = fresh || next_outer != outer_row;
      const bool inner_moves = fresh ? step < window.inner
                                     : window.inner > 0 && next_inner != inner_row;
      if (!outer_moves && !inner_moves) continue;
      __syncthreads();
      if (outer_moves) stage(outer_enter, fresh ? row_lo + step : next_outer + window.outer - 1);
      if (outer_moves && !fresh) stage(outer_leave, outer_row);
      if (inner_moves) {
        stage(inner_enter, fresh ? next_inner + step : next_inner + window.inner - 1);
      }
      if (inner_moves && !fresh) stage(inner_leave, inner_row);
      row_barrier();
      for (int place = outer_enter; place <= inner_leave; ++place) {
        const bool leaves = place == outer_leave || place == inner_leave;
        if (place >= inner_enter ? !inner_moves : !outer_moves) continue;
        if (leaves && fresh) continue;
        move(place, leaves == (place >= inner_enter) ? 1.0 : -1.0);
      }
    }
    outer_row = next_outer;
    inner_row = next_inner;

    if (of_first || of_second) {
      const int half = window.outer / 2;
      MAHAL_UNROLL
      for (int k = 0; k < lane_columns; ++k) {
        const int column = lane * lane_columns + k, x = first_col + column;
        const bool whole = y >= half && y + half < rows && x >= half && x + half < cols;
        if (of_first) {
          counts[column] = own.bad[k] > 0 || (a.border == Border::valid && !whole) ? -1
                                                                                   : own.count[k];
        }
        MAHAL_UNROLL
        for (int c = 0; c < block_channels; ++c) {
          if (c < own_quads * Side) {
            sums[((first_quad * Side + c) * lane_columns + k) * warp_lanes + lane] =
                own.value[k][c];
          }
        }
      }
    }
    __syncthreads();

    const T nan = simt::nan<T>;
    MAHAL_UNROLL
    for (int k = 0; k < lane_columns; ++k) {
      const int column = lane * lane_columns + k;
      const int count = counts[column];
      T* result = result_of(column);
      const auto sum = [&](int slot) {
        return sums[(slot * lane_columns + k) * warp_lanes + lane];
      };
      if (of_first) {
        for (int c = 0; c < channels.count_a; ++c) {
          const double mean = a.center ? origins[c] + sum(c) / count : 0.0;
          result[entries + c] = count > 0 ? static_cast<T>(mean) : nan;
        }
      }
      if (!of_products) continue;
      const bool divisible = count > a.ddof;
      const double inverse = 1.0 / (count - a.ddof);
      const double correction = a.center ? 1.0 / count : 0.0;
      double products[Side][Side];
      MAHAL_UNROLL
      for (int i = 0; i < Side; ++i) {
        MAHAL_UNROLL
        for (int j = 0; j < Side; ++j) {
          if (on_diagonal && j > i) continue;
          const double without_mean = own.value[k][i * Side + j] -
                                      correction * sum(quad_a * Side + i) *
                                          sum(staged_b * Side + j);
          products[i][j] = inverse * without_mean;
          // Rounding must not make a variance negative.
          if (on_diagonal && i == j && without_mean < 0) products[i][j] = 0;
        }
      }
      const int r0 = quad_a * Side, c0 = quad_b * Side;
      if constexpr (Side > 1) {
        if (a.complex) {
          MAHAL_UNROLL
          for (int i = 0; i < Side; i += 2) {
            MAHAL_UNROLL
            for (int j = 0; j < Side; j += 2) {
              if (on_diagonal && j > i) continue;
              const int r = (r0 + i) / 2, c = (c0 + j) / 2;
              if (r >= rows_a || c >= cols_b) continue;
              const bool real = on_diagonal && i == j;
              const T re = divisible ? static_cast<T>(products[i][j] + products[i + 1][j + 1]) : nan;
              const T im = !divisible ? nan
                           : real     ? T(0)
                                      : static_cast<T>(products[i + 1][j] - products[i][j + 1]);
              result[(r * cols_b + c) * 2] = re;
              result[(r * cols_b + c) * 2 + 1] = im;
              if (channels.diagonal && !real) {
                result[(c * cols_b + r) * 2] = re;
                result[(c * cols_b + r) * 2 + 1] = -im;
              }
            }
          }
          continue;
        }
      }
      MAHAL_UNROLL
      for (int i = 0; i < Side; ++i) {
        MAHAL_UNROLL
        for (int j = 0; j < Side; ++j) {
          const int r = r0 + i, c = c0 + j;
          if ((on_diagonal && j > i) || r >= rows_a || c >= cols_b) continue;
          const T covariance = divisible ? static_cast<T>(products[i][j]) : nan;
          result[r * cols_b + c] = covariance;
          if (channels.diagonal) result[c * cols_b + r] = covariance;
        }
      }
    }
    __syncthreads();

    const std::int64_t matrix = std::int64_t{p.channels} * a.bands;
    const std::int64_t map = std::int64_t{y} * a.cols * a.window_count + scale;
    const auto output_pixel = [&](int column) {
      return map + static_cast<std::int64_t>(first_col + column) * a.window_count;
    };
    constexpr int wide = 16 / sizeof(T);
    if (p.pairs == 1 && p.aligned) {
      // Whole matrices, past the caches: nothing reads them back.
      const int chunks = entries / wide;
      for (int e = thread; e < columns * chunks; e += threads) {
        const int column = e / chunks, first = e % chunks * wide;
        const T* from = result_of(column) + first;
        simt::Chunk<T> chunk;
        MAHAL_UNROLL
        for (int i = 0; i < wide; ++i) chunk.value[i] = from[i];
        simt::store_streaming(a.covariance + output_pixel(column) * matrix + first, chunk);
      }
    } else {
      for (int e = thread; e < columns * entries; e += threads) {
        const int column = e / entries, at = e % entries;
        const int part = at % parts, r = at / parts / cols_b, c = at / parts % cols_b;
        const T value = result_of(column)[at];
        T* covariance = a.covariance + output_pixel(column) * matrix;
        covariance[((channels.first_a / parts + r) * std::int64_t{a.bands} +
                    channels.first_b / parts + c) * parts + part] = value;
      }
      if (!channels.diagonal) {
        for (int e = thread; e < columns * entries; e += threads) {
          const int column = e / entries, at = e % entries;
          const int part = at % parts, c = at / parts / rows_a, r = at / parts % rows_a;
          const T value = result_of(column)[(r * cols_b + c) * parts + part];
          T* covariance = a.covariance + output_pixel(column) * matrix;
          covariance[((channels.first_b / parts + c) * std::int64_t{a.bands} +
                      channels.first_a / parts + r) * parts + part] = part == 1 ? -value : value;
        }
      }
    }
    if (channels.diagonal) {
      for (int e = thread; e < columns * channels.count_a; e += threads) {
        const int column = e / channels.count_a, c = e % channels.count_a;
        a.mean[output_pixel(column) * p.channels + channels.first_a + c] =
            result_of(column)[entries + c];
      }
    }
    // The next row is staged over the results.
  }
}

constexpr std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

constexpr unsigned aligned(std::size_t bytes) {
  return static_cast<unsigned>((bytes + 15) / 16 * 16);
}

template <class T, int Side>
void launch_windows(MapParameters<T> p, std::uintptr_t stream) {
  const LocalCovarianceLaunch<T>& a = p.a;
  const int blocks = static_cast<int>(divide_up(p.channels, block_channels));
  p.pairs = blocks * (blocks + 1) / 2;
  p.strips = static_cast<int>(divide_up(a.cols, strip_columns));
  int outer = 0;
  bool dual = false;
  for (int k = 0; k < p.window_count; ++k) {
    outer = std::max(outer, p.windows[k].outer);
    dual = dual || p.windows[k].inner > 0;
  }
  // A start costs as much as moving down by half the window: long segments, but enough blocks.
  p.segment_rows = 64;
  const auto grid = [&] {
    return divide_up(a.rows, p.segment_rows) * p.strips * p.pairs * p.window_count;
  };
  while (p.segment_rows > 16 && grid() < 1024) p.segment_rows /= 2;

  const int quads = p.pairs > 1 ? 2 * block_channels / Side
                                : static_cast<int>(divide_up(p.channels, Side));
  p.width = static_cast<int>(std::min<std::int64_t>(a.cols, strip_columns)) + outer - 1;
  p.pitch = (p.width * Side + p.width / lane_columns * quad_gap<Side> + 2) / 2 * 2;
  const int places = dual ? 4 : 2;
  const std::size_t staged = sizeof(double) * places * quads * p.pitch;
  const int most = std::min(p.channels, block_channels);
  const int entries = most * most / (a.complex ? 2 : 1);
  const std::size_t results = sizeof(T) * strip_columns * ((entries + block_channels) | 1);
  p.sums_at = aligned(std::max(staged, results));
  p.counts_at = p.sums_at + static_cast<unsigned>(sizeof(double)) * 2 * block_channels * (strip_columns + 1);
  p.states_at = p.counts_at + static_cast<unsigned>(sizeof(int)) * strip_columns;
  const std::size_t shared = p.states_at + aligned(std::size_t{1} * places * p.width);
  if (shared > simt::shared_limit(op)) {
    throw_device_error(op, "window",
                       "the CUDA kernels cover windows whose rows fit into the shared memory of a "
                       "block (" + std::to_string(simt::shared_limit(op)) + " bytes)",
                       std::to_string(outer) + ", which takes " + std::to_string(shared));
  }
  if (grid() > 0x7FFFFFFF) {
    throw_device_error(op, "image", "the CUDA kernels cover up to 2^31 - 1 blocks of a launch",
                       std::to_string(grid()));
  }
  p.aligned = entries * sizeof(T) % 16 == 0 &&
              reinterpret_cast<std::uintptr_t>(a.covariance) % 16 == 0;
  // Tiles of products, and one or two warps for the sums of the channels.
  const int warps = p.pairs > 1 ? max_threads / warp_lanes : quads * (quads + 1) / 2 + 1;
  simt::launch(op, window_maps<T, Side>, dim3(static_cast<unsigned>(grid())),
               dim3(static_cast<unsigned>(warps * warp_lanes)), shared, stream, p);
}

template <class T>
void launch_all(const LocalCovarianceLaunch<T>& a, std::uintptr_t stream) {
  if (a.rows == 0 || a.cols == 0 || a.window_count == 0) return;
  MapParameters<T> p{};
  p.a = a;
  p.channels = a.bands * (a.complex ? 2 : 1);
  if (p.channels <= block_channels) {
    p.a.pixel_states = nullptr;
  } else {
    const int lanes = a.band_stride == (a.complex ? 2 : 1) ? 8 : 1;
    const std::int64_t blocks = divide_up(a.rows * a.cols * lanes, state_threads);
    simt::launch(op, pixel_states<T>, dim3(static_cast<unsigned>(blocks)), dim3(state_threads), 0,
                 stream, StateParameters<T>{a, lanes});
  }
  for (int first = 0; first < a.window_count; first += max_windows) {
    p.first_window = first;
    p.window_count = std::min(a.window_count - first, max_windows);
    std::copy_n(a.windows + first, p.window_count, p.windows);
    if (p.channels == 1) {
      launch_windows<T, 1>(p, stream);
    } else if (p.channels == 2) {
      launch_windows<T, 2>(p, stream);
    } else {
      launch_windows<T, 4>(p, stream);
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

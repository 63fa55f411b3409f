// Stationary fields on a torus by discrete Hartley transforms (core/hartley.hpp). Planes of up to
// 64 x 64 pixels stay in shared memory, one to a warp, from the loads of their pixels to the stores
// of their gradients. Larger ones go through memory between the axes: rows, then columns there and
// back with the weights in between, then rows again.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/simt.hpp"
#include "ops/grf_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr const char* op = "grf";
constexpr unsigned whole_warp = 0xFFFFFFFFu;
constexpr int warp_lanes = 32;
constexpr int most_warps = 4;
constexpr int block_threads = 256;
constexpr int most_lines = 16;
constexpr double full_turn = 6.28318530717958647692;

// cos and sin of 2 pi k / 64 for k = 0 .. 16; constants once the loops around them are unrolled.
__device__ __forceinline__ double turn_cosine(int k) {
  switch (k) {
    case 0:
      return 1.0;
    case 1:
      return 0.99518472667219688624;
    case 2:
      return 0.98078528040323044913;
    case 3:
      return 0.95694033573220886494;
    case 4:
      return 0.92387953251128675613;
    case 5:
      return 0.88192126434835502971;
    case 6:
      return 0.83146961230254523708;
    case 7:
      return 0.77301045336273696081;
    case 8:
      return 0.70710678118654752440;
    case 9:
      return 0.63439328416364549822;
    case 10:
      return 0.55557023301960222474;
    case 11:
      return 0.47139673682599764856;
    case 12:
      return 0.38268343236508977173;
    case 13:
      return 0.29028467725446236764;
    case 14:
      return 0.19509032201612826785;
    case 15:
      return 0.09801714032956060199;
    default:
      return 0.0;
  }
}

// out[f] of N elements in[0], in[step], ..., by halves.
template <int N, int step, class T>
__device__ __forceinline__ void in_registers(const T* in, T* out) {
  if constexpr (N == 1) {
    out[0] = in[0];
  } else if constexpr (N == 2) {
    out[0] = in[0] + in[step];
    out[1] = in[0] - in[step];
  } else {
    constexpr int m = N / 2;
    T even[m], odd[m];
    in_registers<m, 2 * step>(in, even);
    in_registers<m, 2 * step>(in + step, odd);
    out[0] = even[0] + odd[0];
    out[m] = even[0] - odd[0];
    out[m / 2] = even[m / 2] + odd[m / 2];
    out[m / 2 + m] = even[m / 2] - odd[m / 2];
  MAHAL_UNROLL
    for (int k = 1; k < m / 2; ++k) {
      const T c = static_cast<T>(turn_cosine(k * (64 / N)));
      const T s = static_cast<T>(turn_cosine(16 - k * (64 / N)));
      const T up = odd[k] * c + odd[m - k] * s;
      const T down = odd[m - k] * c - odd[k] * s;
      out[k] = even[k] + up;
      out[k + m] = even[k] - up;
      out[N - k] = even[m - k] + down;
      out[m - k] = even[m - k] - down;
    }
  }
}

struct Offsets {
  std::int64_t field, log_variance;
};

template <class T>
__device__ __forceinline__ Offsets offsets_of(const GrfLaunch<T>& p, std::int64_t plane) {
  Offsets at{0, 0};
  for (int axis = p.batch.rank - 1; axis >= 0; --axis) {
    const std::int64_t k = axis > 0 ? plane % p.batch.shape[axis] : plane;
    plane /= p.batch.shape[axis];
    at.field += k * p.batch.a_strides[axis];
    at.log_variance += k * p.batch.b_strides[axis];
  }
  return at;
}

// Element of a quarter spectrum.
template <class T>
__device__ __forceinline__ std::int64_t quarter_at(const GrfLaunch<T>& p, int row, int col) {
  const int near_row = row < p.rows.n - row ? row : p.rows.n - row;
  const int near_col = col < p.cols.n - col ? col : p.cols.n - col;
  return static_cast<std::int64_t>(near_row) * (p.cols.n / 2 + 1) + near_col;
}

template <class T>
__device__ __forceinline__ T precision_at(const GrfLaunch<T>& p, std::int64_t at) {
  return p.centered && at == 0 ? T(0) : p.precision[at];
}

template <class T>
__device__ __forceinline__ T slope_at(const GrfLaunch<T>& p, std::int64_t at) {
  return p.centered && at == 0 ? T(0) : p.slope[at];
}

__device__ __forceinline__ double warp_sum(double value) {
  MAHAL_UNROLL
  for (int d = warp_lanes / 2; d > 0; d /= 2) value += __shfl_xor_sync(whole_warp, value, d);
  return value;
}

// quad, slope, rise, excess
template <class T>
__device__ __forceinline__ void write_results(const GrfLaunch<T>& p, std::int64_t plane,
                                              const double (&sums)[4]) {
  const auto affine = [](const double* terms, double first, double second) {
    return static_cast<T>(terms[0] + terms[1] * first + terms[2] * second);
  };
  if (p.value) p.value[plane] = affine(p.value_terms, sums[0], sums[3]);
  if (p.range_slope) p.range_slope[plane] = affine(p.range_terms, sums[1], sums[2]);
  if (p.variance_slope) p.variance_slope[plane] = affine(p.variance_terms, sums[0], sums[2]);
}

template <class T>
__device__ __forceinline__ T weight_of(const GrfLaunch<T>& p, std::int64_t plane) {
  return p.weight ? p.weight[plane] : T(1);
}

// The terms of one pixel's variance, and its gradient.
template <class T>
__device__ __forceinline__ void weigh_variance(const GrfLaunch<T>& p, T log_variance, T weight,
                                               std::int64_t at, double& rise, double& excess) {
  const T u = log_variance + static_cast<T>(p.shift);
  const T up = std::exp(u) - T(1);
  rise += static_cast<double>(up);
  excess += static_cast<double>(up - u);
  if (p.log_variance_gradient) p.log_variance_gradient[at] = up * (weight / T(2));
}

// Small planes.

// Transforms `count` lines of N elements, one by each lane.
template <int N, class T>
__device__ __forceinline__ void transform_in_registers(T* line, int count, int along, int across,
                                                       int lane) {
  for (int l = lane; l < count; l += warp_lanes) {
    T in[N], out[N];
    T* w = line + l * across;
    MAHAL_UNROLL
    for (int j = 0; j < N; ++j) in[j] = w[j * along];
    in_registers<N, 1>(in, out);
    MAHAL_UNROLL
    for (int j = 0; j < N; ++j) w[j * along] = out[j];
  }
}

// The same for any n up to 64, a line at a time by the whole warp: cas[k] = cos + sin of 2 pi k / n.
template <class T>
__device__ __forceinline__ void transform_by_sums(T* line, int n, int count, int along, int across,
                                                  const T* cas, int lane) {
  const int second = lane + warp_lanes;
  for (int l = 0; l < count; ++l) {
    T* w = line + l * across;
    T low = T(0), high = T(0);
    int low_at = 0, high_at = 0;
    for (int j = 0; j < n; ++j) {
      const T x = w[j * along];
      low += x * cas[low_at];
      high += x * cas[high_at];
      low_at = (low_at + lane) % n;
      high_at = (high_at + second) % n;
    }
    __syncwarp();
    if (lane < n) w[lane * along] = low;
    if (second < n) w[second * along] = high;
  }
}

template <int largest, class T>
__device__ __forceinline__ void transform_small(T* line, int n, int count, int along, int across,
                                                const T* cas, int lane) {
  switch (n) {
    case 1:
      break;
    case 2:
      transform_in_registers<2>(line, count, along, across, lane);
      break;
    case 4:
      transform_in_registers<4>(line, count, along, across, lane);
      break;
    case 8:
      transform_in_registers<8>(line, count, along, across, lane);
      break;
    case 16:
      transform_in_registers<16>(line, count, along, across, lane);
      break;
    case 32:
      transform_in_registers<32>(line, count, along, across, lane);
      break;
    case 64:
      if constexpr (largest == 64) {
        transform_in_registers<64>(line, count, along, across, lane);
      }
      break;
    default:
      transform_by_sums(line, n, count, along, across, cas, lane);
  }
}

template <class T>
std::size_t small_plane_elements(const GrfLaunch<T>& p) {
  return static_cast<std::size_t>(p.rows.n) * (p.cols.n | 1);
}

// Blocks whose lines have room in the registers of a multiprocessor; left alone, ptxas spills some
// of them to fit one block more.
template <class T, int largest>
inline constexpr int resident_blocks =
    sizeof(T) == 4 ? (largest == 32 ? 5 : 3) : (largest == 32 ? 3 : 2);

template <class T, int largest>
__global__ void
__launch_bounds__(most_warps* warp_lanes, resident_blocks<T, largest>) small_planes(GrfLaunch<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int warps = static_cast<int>(blockDim.x) / warp_lanes;
  const int rows = p.rows.n, cols = p.cols.n, pitch = cols | 1;  // odd: rows in different banks
  const int pixels = rows * cols;
  T* cas_rows = simt::dynamic_shared<T>();
  T* cas_cols = cas_rows + rows;
  T* plane = cas_cols + cols + static_cast<std::ptrdiff_t>(warp) * rows * pitch;
  for (int k = static_cast<int>(threadIdx.x); k < rows + cols; k += static_cast<int>(blockDim.x)) {
    const double angle = k < rows ? full_turn * k / rows : full_turn * (k - rows) / cols;
    cas_rows[k] = static_cast<T>(std::cos(angle) + std::sin(angle));
  }
  __syncthreads();
  const std::int64_t index = std::int64_t{blockIdx.x} * warps + warp;
  if (index >= p.batch.count) return;
  const Offsets offset = offsets_of(p, index);
  const T* field = p.field + offset.field;
  const T weight = weight_of(p, index);
  double sums[4] = {};

  const bool sums_wanted = p.value || p.range_slope || p.variance_slope;
  if (sums_wanted || p.field_gradient) {
    const T origin = p.centered ? field[0] : T(0);
    double total = 0;
    for (int e = lane; e < pixels; e += warp_lanes) {
      const int i = e / cols, j = e % cols;
      const T value = field[i * p.row_stride + j * p.col_stride] - origin;
      if (p.centered) total += static_cast<double>(value);
      plane[i * pitch + j] = value;
    }
    if (p.centered) {
      // Pixels of one lane, which no other lane has touched yet.
      const T mean = static_cast<T>(warp_sum(total) / pixels);
      for (int e = lane; e < pixels; e += warp_lanes) plane[e / cols * pitch + e % cols] -= mean;
    }
    __syncwarp();
    // Rows axis, columns axis, weights, columns axis, rows axis; one copy of the code.
    const int passes = p.field_gradient ? 4 : 2;
    for (int pass = 0; pass < passes; ++pass) {
      const bool along_rows = pass == 0 || pass == 3;
      transform_small<largest>(plane, along_rows ? rows : cols, along_rows ? cols : rows,
                               along_rows ? pitch : 1, along_rows ? 1 : pitch,
                               along_rows ? cas_rows : cas_cols, lane);
      __syncwarp();
      if (pass != 1) continue;
      for (int e = lane; e < pixels; e += warp_lanes) {
        const int i = e / cols, j = e % cols;
        const std::int64_t at = quarter_at(p, i, j);
        const T x = plane[i * pitch + j];
        const T y = x * precision_at(p, at);
        sums[0] += static_cast<double>(x * y);
        if (p.range_slope) sums[1] += static_cast<double>(x * x * slope_at(p, at));
        plane[i * pitch + j] = y;
      }
      __syncwarp();
    }
    if (p.field_gradient) {
      const T scale = static_cast<T>(p.field_scale) * weight;
      T* out = p.field_gradient + index * pixels;
      for (int e = lane; e < pixels; e += warp_lanes) {
        out[e] = plane[e / cols * pitch + e % cols] * scale;
      }
    }
  }
  if (p.log_variance && (sums_wanted || p.log_variance_gradient)) {
    const T* log_variance = p.log_variance + offset.log_variance;
    for (int e = lane; e < pixels; e += warp_lanes) {
      const T value = log_variance[e / cols * p.log_row_stride + e % cols * p.log_col_stride];
      weigh_variance(p, value, weight, index * pixels + e, sums[2], sums[3]);
    }
  }
  if (!sums_wanted) return;
  for (double& sum : sums) sum = warp_sum(sum);
  if (lane == 0) write_results(p, index, sums);
}

// Large planes.

// Sum over the threads of a block, for thread 0; `room` holds a double per warp.
__device__ __forceinline__ double block_sum(double value, double* room) {
  value = warp_sum(value);
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (thread % warp_lanes == 0) room[thread / warp_lanes] = value;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < block_threads / warp_lanes; ++w) total += room[w];
  return total;
}

template <class T>
__global__ void __launch_bounds__(block_threads) plane_means(GrfLaunch<T> p) {
  double* room = simt::dynamic_shared<double>();
  const std::int64_t index = blockIdx.x;
  const T* field = p.field + offsets_of(p, index).field;
  const double origin = field[0];
  const std::int64_t pixels = static_cast<std::int64_t>(p.rows.n) * p.cols.n;
  double total = 0;
  for (std::int64_t e = threadIdx.x; e < pixels; e += block_threads) {
    total += field[e / p.cols.n * p.row_stride + e % p.cols.n * p.col_stride] - origin;
  }
  total = block_sum(total, room);
  if (threadIdx.x == 0) {
    p.means[index] = static_cast<T>(origin + total / static_cast<double>(pixels));
  }
}

// Where element j of a line starts, so that its stages end in order.
template <class T>
__device__ __forceinline__ int place_of(const HartleyPlan<T>& plan, int j) {
  int place = 0, size = plan.n;
  for (int s = plan.stages - 1; s >= 0; --s) {
    size /= plan.radix[s];
    place += j % plan.radix[s] * size;
    j /= plan.radix[s];
  }
  return place;
}

// The turned pair of element k of sub-transform r: see core/hartley_lanes.hpp.
template <class T>
struct Pair {
  T u, v;
};

template <class T>
__device__ __forceinline__ Pair<T> turned(const T* w, int lines, int k, int other, int turn,
                                          const T* turns) {
  const T a = w[k * lines], b = w[other * lines], c = turns[2 * turn], s = turns[2 * turn + 1];
  return {a * c + b * s, b * c - a * s};
}

// All stages over `lines` lines in w, element by element; `other` is as large where the plan has an
// odd radix. turns: cos and sin of 2 pi k / n. Returns where the result is.
template <class T>
__device__ T* join_stages(const HartleyPlan<T>& plan, T* w, T* spare, int lines, const T* turns) {
  const int thread = static_cast<int>(threadIdx.x);
  int m = 1;
  for (int s = 0; s < plan.stages; ++s) {
    const int radix = plan.radix[s];
    const int size = m * radix, step = plan.n / size;
    __syncthreads();
    if (radix == 4 || radix == 2) {
      const int each = m / 2 + 1;
      const int tasks = plan.n / size * each * lines;
      for (int task = thread; task < tasks; task += block_threads) {
        const int line = task % lines, k = task / lines % each;
        const int other = k == 0 ? 0 : m - k;
        T* part = w + static_cast<std::ptrdiff_t>(task / lines / each) * size * lines + line;
        const T u0 = part[k * lines], v0 = part[other * lines];
        const auto next = [&](int r) {
          return turned(part + static_cast<std::ptrdiff_t>(r) * m * lines, lines, k, other,
                        r * k * step, turns);
        };
        if (radix == 2) {
          const Pair<T> a = next(1);
          part[k * lines] = u0 + a.u;
          part[(k + m) * lines] = u0 - a.u;
          if (other == k) continue;
          part[(m - k) * lines] = v0 - a.v;
          part[(2 * m - k) * lines] = v0 + a.v;
          continue;
        }
        const Pair<T> a = next(1), b = next(2), c = next(3);
        part[k * lines] = (u0 + b.u) + (a.u + c.u);
        part[(k + m) * lines] = (u0 - b.u) + (a.v - c.v);
        part[(k + 2 * m) * lines] = (u0 + b.u) - (a.u + c.u);
        part[(k + 3 * m) * lines] = (u0 - b.u) - (a.v - c.v);
        if (other == k) continue;
        part[(m - k) * lines] = (v0 - b.v) + (a.u - c.u);
        part[(2 * m - k) * lines] = (v0 + b.v) - (a.v + c.v);
        part[(3 * m - k) * lines] = (v0 - b.v) - (a.u - c.u);
        part[(4 * m - k) * lines] = (v0 + b.v) + (a.v + c.v);
      }
    } else {
      for (int task = thread; task < plan.n * lines; task += block_threads) {
        const int line = task % lines, at = task / lines, within = at % size;
        const int k = within % m, other = k == 0 ? 0 : m - k;
        const T* part = w + static_cast<std::ptrdiff_t>(at - within) * lines + line;
        T total = part[k * lines];
        int turn = 0;
        for (int r = 1; r < radix; ++r) {
          turn = (turn + within) % size;
          const T* sub = part + static_cast<std::ptrdiff_t>(r) * m * lines;
          total += sub[k * lines] * turns[2 * turn * step] +
                   sub[other * lines] * turns[2 * turn * step + 1];
        }
        spare[static_cast<std::ptrdiff_t>(at) * lines + line] = total;
      }
      T* result = spare;
      spare = w;
      w = result;
    }
    m = size;
  }
  __syncthreads();
  return w;
}

template <class T>
bool has_odd_radix(const HartleyPlan<T>& plan) {
  return std::any_of(plan.radix, plan.radix + plan.stages, [](int r) { return r % 2 == 1; });
}

template <class T>
std::size_t line_bytes(const HartleyPlan<T>& plan, int lines) {
  const std::size_t buffers = has_odd_radix(plan) ? 2 : 1;
  return block_threads / warp_lanes * sizeof(double) +
         sizeof(T) * plan.n * (2 + buffers * static_cast<std::size_t>(lines));
}

template <class T>
struct LineMemory {
  double* room;
  T* turns;
  T *w, *spare;
};

template <class T>
__device__ __forceinline__ LineMemory<T> line_memory(const HartleyPlan<T>& plan, int lines) {
  LineMemory<T> memory;
  memory.room = simt::dynamic_shared<double>();
  memory.turns = reinterpret_cast<T*>(memory.room + block_threads / warp_lanes);
  memory.w = memory.turns + 2 * plan.n;
  memory.spare = memory.w + static_cast<std::ptrdiff_t>(lines) * plan.n;
  for (int k = static_cast<int>(threadIdx.x); k < plan.n; k += block_threads) {
    const double angle = full_turn * k / plan.n;
    memory.turns[2 * k] = static_cast<T>(std::cos(angle));
    memory.turns[2 * k + 1] = static_cast<T>(std::sin(angle));
  }
  return memory;
}

// Rows of the field to `between`, or of `between` to the gradient.
template <class T, bool back>
__global__ void __launch_bounds__(block_threads) plane_rows(GrfLaunch<T> p) {
  const int lines = p.row_lines, n = p.cols.n;
  const int groups = (p.rows.n + lines - 1) / lines;
  const std::int64_t index = blockIdx.x / groups;
  const int first = static_cast<int>(blockIdx.x % groups) * lines;
  const std::int64_t pixels = static_cast<std::int64_t>(p.rows.n) * n;
  const LineMemory<T> memory = line_memory(p.cols, lines);
  const T* field = p.field + offsets_of(p, index).field;
  T* between = p.between + index * pixels;
  const T mean = p.centered && !back ? p.means[index] : T(0);
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int line = e / n, j = e % n, row = first + line;
    T value = T(0);
    if (row < p.rows.n) {
      value = back ? between[static_cast<std::int64_t>(row) * n + j]
                   : field[row * p.row_stride + j * p.col_stride] - mean;
    }
    memory.w[place_of(p.cols, j) * lines + line] = value;
  }
  const T* result = join_stages(p.cols, memory.w, memory.spare, lines, memory.turns);
  T* out = back ? p.field_gradient + index * pixels : between;
  const T scale = back ? static_cast<T>(p.field_scale) * weight_of(p, index) : T(1);
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int line = e / n, j = e % n, row = first + line;
    if (row < p.rows.n) out[static_cast<std::int64_t>(row) * n + j] = result[j * lines + line] * scale;
  }
}

// Columns of `between`, in place: transform, sums and weights, transform.
template <class T>
__global__ void __launch_bounds__(block_threads) plane_cols(GrfLaunch<T> p) {
  const int lines = p.col_lines, n = p.rows.n, cols = p.cols.n;
  const int tiles = (cols + lines - 1) / lines;
  const std::int64_t index = blockIdx.x / tiles;
  const int first = static_cast<int>(blockIdx.x % tiles) * lines;
  const LineMemory<T> memory = line_memory(p.rows, lines);
  T* between = p.between + index * n * cols;
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int line = e % lines, i = e / lines, col = first + line;
    memory.w[place_of(p.rows, i) * lines + line] =
        col < cols ? between[static_cast<std::int64_t>(i) * cols + col] : T(0);
  }
  T* spectrum = join_stages(p.rows, memory.w, memory.spare, lines, memory.turns);
  T* other = spectrum == memory.w ? memory.spare : memory.w;
  double quad = 0, slope = 0;
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int col = first + e % lines;
    if (col >= cols) continue;
    const std::int64_t at = quarter_at(p, e / lines, col);
    const T x = spectrum[e];
    const T y = x * precision_at(p, at);
    quad += static_cast<double>(x * y);
    if (p.range_slope) slope += static_cast<double>(x * x * slope_at(p, at));
    spectrum[e] = y;
  }
  quad = block_sum(quad, memory.room);
  slope = block_sum(slope, memory.room);
  if (threadIdx.x == 0) {
    p.sums[2 * std::int64_t{blockIdx.x}] = quad;
    p.sums[2 * std::int64_t{blockIdx.x} + 1] = slope;
  }
  if (!p.field_gradient) return;
  // The order of the stages once more: through memory, in which the tile is nobody else's.
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int col = first + e % lines;
    if (col < cols) between[static_cast<std::int64_t>(e / lines) * cols + col] = spectrum[e];
  }
  __syncthreads();
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int line = e % lines, i = e / lines, col = first + line;
    spectrum[place_of(p.rows, i) * lines + line] =
        col < cols ? between[static_cast<std::int64_t>(i) * cols + col] : T(0);
  }
  const T* result = join_stages(p.rows, spectrum, other, lines, memory.turns);
  for (int e = static_cast<int>(threadIdx.x); e < lines * n; e += block_threads) {
    const int col = first + e % lines;
    if (col < cols) between[static_cast<std::int64_t>(e / lines) * cols + col] = result[e];
  }
}

template <class T>
__global__ void __launch_bounds__(block_threads) plane_variances(GrfLaunch<T> p) {
  double* room = simt::dynamic_shared<double>();
  const std::int64_t pixels = static_cast<std::int64_t>(p.rows.n) * p.cols.n;
  const std::int64_t chunks = (pixels + grf_chunk - 1) / grf_chunk;
  const std::int64_t index = blockIdx.x / chunks;
  const std::int64_t first = blockIdx.x % chunks * grf_chunk;
  const std::int64_t end = first + grf_chunk < pixels ? first + grf_chunk : pixels;
  const T* log_variance = p.log_variance + offsets_of(p, index).log_variance;
  const T weight = weight_of(p, index);
  double rise = 0, excess = 0;
  for (std::int64_t e = first + threadIdx.x; e < end; e += block_threads) {
    const T value = log_variance[e / p.cols.n * p.log_row_stride + e % p.cols.n * p.log_col_stride];
    weigh_variance(p, value, weight, index * pixels + e, rise, excess);
  }
  rise = block_sum(rise, room);
  excess = block_sum(excess, room);
  if (threadIdx.x == 0) {
    p.excesses[2 * std::int64_t{blockIdx.x}] = rise;
    p.excesses[2 * std::int64_t{blockIdx.x} + 1] = excess;
  }
}

// One warp for the results of a plane.
template <class T>
__global__ void __launch_bounds__(warp_lanes) plane_results(GrfLaunch<T> p) {
  const std::int64_t index = blockIdx.x;
  const std::int64_t tiles = (p.cols.n + p.col_lines - 1) / p.col_lines;
  const std::int64_t pixels = static_cast<std::int64_t>(p.rows.n) * p.cols.n;
  const std::int64_t chunks = p.log_variance ? (pixels + grf_chunk - 1) / grf_chunk : 0;
  double sums[4] = {};
  for (std::int64_t t = threadIdx.x; t < tiles; t += warp_lanes) {
    sums[0] += p.sums[2 * (index * tiles + t)];
    sums[1] += p.sums[2 * (index * tiles + t) + 1];
  }
  for (std::int64_t t = threadIdx.x; t < chunks; t += warp_lanes) {
    sums[2] += p.excesses[2 * (index * chunks + t)];
    sums[3] += p.excesses[2 * (index * chunks + t) + 1];
  }
  for (double& sum : sums) sum = warp_sum(sum);
  if (threadIdx.x == 0) write_results(p, index, sums);
}

template <class T>
void launch_small(const GrfLaunch<T>& p, std::uintptr_t stream) {
  const std::size_t tables = (static_cast<std::size_t>(p.rows.n) + p.cols.n) * sizeof(T);
  const std::size_t each = small_plane_elements(p) * sizeof(T);
  const auto warps = static_cast<unsigned>(
      std::min<std::size_t>(most_warps, (simt::plain_shared_bytes - tables) / each));
  const dim3 grid(static_cast<unsigned>((p.batch.count + warps - 1) / warps));
  const dim3 block(warps * warp_lanes);
  const auto kernel =
      std::max(p.rows.n, p.cols.n) <= 32 ? small_planes<T, 32> : small_planes<T, 64>;
  simt::launch(op, kernel, grid, block, tables + warps * each, stream, p);
}

template <class T>
void launch_large(const GrfLaunch<T>& p, std::uintptr_t stream) {
  const std::size_t room = block_threads / warp_lanes * sizeof(double);
  const dim3 block(block_threads);
  const auto planes = static_cast<unsigned>(p.batch.count);
  const auto row_groups = static_cast<unsigned>((p.rows.n + p.row_lines - 1) / p.row_lines);
  const auto tiles = static_cast<unsigned>(grf_tiles(p));
  const bool sums = p.value || p.range_slope || p.variance_slope;
  if (sums || p.field_gradient) {
    if (p.centered) simt::launch(op, plane_means<T>, dim3(planes), block, room, stream, p);
    const std::size_t row_bytes = line_bytes(p.cols, p.row_lines);
    simt::launch(op, plane_rows<T, false>, dim3(planes * row_groups), block, row_bytes, stream, p);
    simt::launch(op, plane_cols<T>, dim3(planes * tiles), block, line_bytes(p.rows, p.col_lines),
                 stream, p);
    if (p.field_gradient) {
      simt::launch(op, plane_rows<T, true>, dim3(planes * row_groups), block, row_bytes, stream, p);
    }
  }
  if (p.log_variance && (sums || p.log_variance_gradient)) {
    const auto chunks = static_cast<unsigned>(grf_chunks(p));
    simt::launch(op, plane_variances<T>, dim3(planes * chunks), block, room, stream, p);
  }
  if (sums) simt::launch(op, plane_results<T>, dim3(planes), dim3(warp_lanes), 0, stream, p);
}

template <class T>
void launch_any(const GrfLaunch<T>& p, std::uintptr_t stream) {
  if (std::max(p.rows.n, p.cols.n) <= grf_small) {
    launch_small(p, stream);
  } else {
    launch_large(p, stream);
  }
}

template <class T>
int lines_of(const HartleyPlan<T>& plan) {
  const std::size_t limit = simt::shared_limit(op);
  // Two blocks beside each other hide the loads of one behind the work of the other.
  int lines = most_lines;
  while (lines > 4 && line_bytes(plan, lines) > limit / 2) lines /= 2;
  while (lines > 0 && line_bytes(plan, lines) > limit) lines /= 2;
  return lines;
}

}  // namespace

int grf_lines(const HartleyPlan<float>& plan) { return lines_of(plan); }
int grf_lines(const HartleyPlan<double>& plan) { return lines_of(plan); }
void grf(const GrfLaunch<float>& arguments, std::uintptr_t stream) {
  launch_any(arguments, stream);
}
void grf(const GrfLaunch<double>& arguments, std::uintptr_t stream) {
  launch_any(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

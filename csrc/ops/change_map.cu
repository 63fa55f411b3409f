// Change maps, in float64: a block has a few pixels of a row. It sums over the rows of the windows
// first, a chunk of the products of channels at a time, then over their columns, from nothing for
// every window; the covariances stay in shared memory, where a thread, a warp or the block turns
// those of a pixel into its score.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/device_map.hpp"
#include "core/device_matrix_batch.hpp"
#include "core/device_pair_metric.hpp"
#include "ops/change_map_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int pixel_threads = 64;  // of the kernels for single pixels

// What a pixel counts for.
enum Weight : std::uint8_t { left_out = 0, used = 1, spoilt = 2 };
// Counts as no sample, and shows in the sum of the samples of a window.
constexpr double spoilt_weight = 4294967296.0;

template <class N>
__device__ __forceinline__ N read_channel(const ChangeMapLaunch& p, int image, std::int64_t row,
                                          std::int64_t col, int channel) {
  return read_number<N>(
      p.images[image], p.single,
      row * p.row_strides[image] + col * p.col_strides[image] + channel * p.channel_strides[image]);
}

template <class N>
__global__ void __launch_bounds__(pixel_threads) weigh_pixels(ChangeMapLaunch p) {
  const std::int64_t pixels = std::int64_t{p.rows} * p.cols;
  for (std::int64_t at = std::int64_t{blockIdx.x} * pixel_threads + threadIdx.x; at < pixels;
       at += std::int64_t{gridDim.x} * pixel_threads) {
    const std::int64_t row = at / p.cols, col = at % p.cols;
    std::uint8_t weight = used;
    if (p.mask != nullptr && p.mask[row * p.mask_row_stride + col * p.mask_col_stride] == 0) {
      weight = left_out;
    }
    for (int k = 0; weight == used && k < 2 * p.channels; ++k) {
      if (!is_finite(read_channel<N>(p, k / p.channels, row, col, k % p.channels))) weight = spoilt;
    }
    p.weights[at] = weight;
  }
}

// A thread has a channel of a tile.
template <class N>
__global__ void __launch_bounds__(pixel_threads) find_origins(ChangeMapLaunch p) {
  constexpr int grid = 5;
  constexpr int parts = is_complex_number<N> ? 2 : 1;
  const int tile_cols = (p.cols - 1) / origin_cols + 1;
  const std::int64_t tiles = std::int64_t{(p.rows - 1) / origin_rows + 1} * tile_cols;
  const std::int64_t all = tiles * 2 * p.channels * parts;
  for (std::int64_t at = std::int64_t{blockIdx.x} * pixel_threads + threadIdx.x; at < all;
       at += std::int64_t{gridDim.x} * pixel_threads) {
    const int part = static_cast<int>(at % parts);
    const int channel = static_cast<int>(at / parts % (2 * p.channels));
    const std::int64_t tile = at / parts / (2 * p.channels);
    const auto read = [&](int row, int col, double& x) {
      if (!p.params.center || p.weights[std::int64_t{row} * p.cols + col] != used) return false;
      const N value = read_channel<N>(p, channel / p.channels, row, col, channel % p.channels);
      x = real_part(value);
      if constexpr (parts == 2) {
        if (part == 1) x = value.im;
      }
      return true;
    };
    p.origins[at] =
        tile_median<grid>(static_cast<int>(tile / tile_cols) * origin_rows,
                          static_cast<int>(tile % tile_cols) * origin_cols, p.rows, p.cols, read);
  }
}

// A window's column of samples: body(row, weight, col) for those that are used, or spoilt.
struct Column {
  int row, col;  // of its middle; col is a sample or -1
};
template <class Body>
__device__ __forceinline__ void each_sample(const ChangeMapLaunch& p, const Column& at, Body body) {
  if (at.col < 0) return;
  const int half = p.params.window / 2;
  const bool clipped = p.params.border == MapBorder::clip;
  for (int v = at.row - half + halo_error; v <= at.row + half; ++v) {
    const int row = sample_at(v, p.rows, clipped);
    if (row < 0) continue;
    const std::uint8_t weight = p.weights[std::int64_t{row} * p.cols + at.col];
    if (weight != left_out) body(row, weight);
  }
}

// Group number `group` of the products of an image: channel i with j, j + 1, ...
struct Group {
  int image, i, j;
};
__device__ __forceinline__ Group find_group(int group, int channels) {
  int image = 0, i = 0;
  while (group > i / change_group) {
    group -= i / change_group + 1;
    if (++i == channels) {
      i = 0;
      ++image;
    }
  }
  return {image, i, group * change_group};
}

template <class N, int Size>
struct PixelRow {
  static constexpr bool interleaved = Size == 1;
  const ChangeMapLaunch& p;
  int threads, thread;
  int pairs, pitch;  // pixels of a block; columns of their windows
  N* area;           // sums over rows
  N* moments;        // per pixel: samples, then sums of the channels of both images
  double* matrices;
  double* room;
  const N* origin;
  int row, col0, count, width;

  __device__ __forceinline__ N& moment(int k, int pixel) const {
    return moments[k * pairs + pixel];
  }
  __device__ __forceinline__ Column column(int u) const {
    return {row,
            sample_at(col0 - p.params.window / 2 + u, p.cols, p.params.border == MapBorder::clip)};
  }
  __device__ __forceinline__ N centred(int image, int at_row, int at_col, int channel) const {
    return read_channel<N>(p, image, at_row, at_col, channel) -
           origin[image * p.channels + channel];
  }

  __device__ __forceinline__ void sum_values() const {
    const int values = 1 + 2 * p.channels;
    const int planes = p.chunk * change_group;
    for (int first = 0; first < values; first += planes) {
      const int now = values - first < planes ? values - first : planes;
      for (int e = thread; e < now * width; e += threads) {
        const int k = first + e / width - 1, u = e % width;
        const Column at = column(u);
        N sum{};
        each_sample(p, at, [&](int at_row, std::uint8_t weight) {
          if (k < 0) {
            sum = sum + to_number<N>(weight == used ? 1.0 : spoilt_weight);
          } else if (weight == used) {
            sum = sum + centred(k / p.channels, at_row, at.col, k % p.channels);
          }
        });
        area[e / width * pitch + u] = sum;
      }
      map_barrier();
      for (int e = thread; e < now * count; e += threads) {
        const int pixel = e % count;
        moment(first + e / count, pixel) = across(area + e / count * pitch + pixel);
      }
      __syncthreads();
    }
  }

  __device__ __forceinline__ N across(const N* sums) const {
    N sum{};
    for (int t = 0; t < p.params.window; ++t) sum = sum + sums[t];
    return sum;
  }

  // Sums over rows of group number first + e / width, for every column.
  __device__ __forceinline__ void sum_products(int first, int groups) const {
    const bool difference = p.params.metric == Metric::frobenius;
    for (int e = thread; e < groups * width; e += threads) {
      const Group group = find_group(first + e / width, p.channels);
      const int u = e % width;
      const Column at = column(u);
      N sum[change_group] = {};
      each_sample(p, at, [&](int at_row, std::uint8_t weight) {
        if (weight != used) return;
        for (int image = group.image; image <= (difference ? 1 : group.image); ++image) {
          N x = centred(image, at_row, at.col, group.i);
          if (difference && image == 1) x = N{} - x;
    MAHAL_UNROLL
          for (int s = 0; s < change_group; ++s) {
            if (group.j + s > group.i) continue;
            sum[s] = sum[s] + x * conjugate(centred(image, at_row, at.col, group.j + s));
          }
        }
      });
      MAHAL_UNROLL
      for (int s = 0; s < change_group; ++s) {
        area[(e / width * change_group + s) * pitch + u] = sum[s];
      }
    }
  }

  __device__ __forceinline__ void run() const {
    const Team<Size> team{room};
    const int pixel = thread / Size;
    const bool own = pixel < count;
    sum_values();
    const double samples = own ? real_part(moment(0, pixel)) : 1;
    const double per_sample = p.params.center ? 1 / (samples > 1 ? samples : 1) : 0;
    const double per_degree =
        1 / (p.params.channel_divisor ? p.channels - 1 : samples - p.params.ddof);
    const bool difference = p.params.metric == Metric::frobenius;
    PairMetric<Size, N> pair(
        team, p.channels, p.plan.ld, p.plan.matrices,
        interleaved || Size > warp_lanes ? matrices : matrices + pixel * p.plan.doubles,
        interleaved ? pairs : 1, interleaved ? pixel : 0, p.smallest_pivot);

    double score = 0;
    const int groups = all_groups();
    for (int first = 0; first < groups; first += p.chunk) {
      const int now = groups - first < p.chunk ? groups - first : p.chunk;
      sum_products(first, now);
      map_barrier();
      for (int e = team.rank(); own && e < now * change_group; e += Size) {
        const Group group = find_group(first + e / change_group, p.channels);
        const int i = group.i, j = group.j + e % change_group;
        if (j > i) continue;
        const N raw = across(area + e * pitch + pixel);
        const int from = 1 + group.image * p.channels;
        N mean = moment(from + i, pixel) * conjugate(moment(from + j, pixel));
        if (difference) {
          const int other = 1 + p.channels;
          mean = mean - moment(other + i, pixel) * conjugate(moment(other + j, pixel));
        }
        N entry = (raw - mean * per_sample) * per_degree;
        if (i == j) entry = to_number<N>(real_part(entry));
        if (difference) {
          score += (i == j ? 1 : 2) * squared(entry);
          continue;
        }
        (group.image == 0 ? pair.a : pair.b)(i, j) = entry;
        // What pivots are compared with: the variances, and a share of the raw second moments,
        // below which there is nothing but rounding.
        const double share = 0.01 * real_part(raw) * per_degree;
        if (i == j) {
          (group.image == 0 ? pair.pivots_a : pair.pivots_b)[i] =
              real_part(entry) > share ? real_part(entry) : share;
        }
      }
      __syncthreads();
    }
    if (!own) return;
    const double least = p.params.channel_divisor ? 0 : p.params.ddof;
    std::uint8_t status = status_ok;
    if (samples >= spoilt_weight) {
      status = status_nonfinite;
    } else if (!(samples > least)) {
      status = status_few_samples;
    } else if (difference) {
      score = team.reduce(score);
      if (!p.params.squared) score = std::sqrt(score);
    } else {
      const double looks = p.params.center ? samples - 1 : samples;
      score = pair.score(p.params.metric, p.params.squared, looks, looks);
      if (!pair.regular) status = status_singular;
    }
    if (team.rank() != 0) return;
    if (p.single) score = static_cast<float>(score);
    if (status == status_ok && !is_finite(score)) status = status_nonfinite;
    const std::int64_t at = std::int64_t{row} * p.cols + col0 + pixel;
    p.status[at] = status;
    write_number(p.score, p.single, at, status == status_ok ? score : simt::nan<double>);
  }

  __device__ __forceinline__ int all_groups() const {
    const int full = p.channels / change_group, rest = p.channels % change_group;
    const int one = change_group * full * (full + 1) / 2 + rest * (full + 1);
    return p.params.metric == Metric::frobenius ? one : 2 * one;
  }
};

template <class N, int Size>
__global__ void __launch_bounds__(pair_block_threads) score_pixels(ChangeMapLaunch p) {
  const int pairs = p.plan.pairs;
  const int pitch = pairs + p.params.window - 1;
  double* room = simt::dynamic_shared<double>();
  N* area = reinterpret_cast<N*>(room + warp_lanes);
  N* moments = area + p.chunk * change_group * pitch;
  double* matrices = reinterpret_cast<double*>(moments + (1 + 2 * p.channels) * pairs);
  if constexpr (Size > warp_lanes) matrices = p.matrices + blockIdx.x * p.plan.doubles;
  const int rows = p.rows - 2 * p.edge, cols = p.cols - 2 * p.edge;
  const int row_tiles = (cols + pairs - 1) / pairs;
  const std::int64_t tiles = std::int64_t{rows} * row_tiles;
  const int tile_cols = (p.cols - 1) / origin_cols + 1;
  for (std::int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int row = p.edge + static_cast<int>(tile / row_tiles);
    const int first = static_cast<int>(tile % row_tiles) * pairs;
    const int count = cols - first < pairs ? cols - first : pairs;
    const std::int64_t origin_tile =
        std::int64_t{row / origin_rows} * tile_cols + (p.edge + first) / origin_cols;
    const N* origin = reinterpret_cast<const N*>(p.origins) + origin_tile * 2 * p.channels;
    PixelRow<N, Size>{p,
                      static_cast<int>(blockDim.x),
                      static_cast<int>(threadIdx.x),
                      pairs,
                      pitch,
                      area,
                      moments,
                      matrices,
                      room,
                      origin,
                      row,
                      p.edge + first,
                      count,
                      count + p.params.window - 1}
        .run();
    __syncthreads();
  }
}

// Pixels without a window of their own take what the nearest one with a window has, or nothing.
__global__ void __launch_bounds__(pixel_threads) fill_map_edges(ChangeMapLaunch p) {
  const std::int64_t pixels = std::int64_t{p.rows} * p.cols;
  const bool copied = p.params.border == MapBorder::shift;
  for (std::int64_t at = std::int64_t{blockIdx.x} * pixel_threads + threadIdx.x; at < pixels;
       at += std::int64_t{gridDim.x} * pixel_threads) {
    const int row = static_cast<int>(at / p.cols), col = static_cast<int>(at % p.cols);
    const std::int64_t from = std::int64_t{nearest_window(row, p.rows, p.edge)} * p.cols +
 nearest_window(col, p.cols, p.edge);
    if (from == at) continue;
    p.status[at] = copied ? p.status[from] : static_cast<std::uint8_t>(status_masked);
    write_number(p.score, p.single, at,
                 copied ? read_number<double>(p.score, p.single, from) : simt::nan<double>);
  }
}

unsigned blocks_for(std::int64_t items) {
  return static_cast<unsigned>(std::min<std::int64_t>((items - 1) / pixel_threads + 1, 1 << 20));
}

template <class N>
void launch_numbers(const ChangeMapLaunch& p, std::uintptr_t stream) {
  constexpr const char* op = "change_map";
  constexpr std::int64_t most_blocks = 0x7FFFFFFF;
  const std::int64_t pixels = std::int64_t{p.rows} * p.cols;
  const dim3 threads(pixel_threads);
  simt::launch(op, weigh_pixels<N>, dim3(blocks_for(pixels)), threads, 0, stream, p);
  simt::launch(op, find_origins<N>,
               dim3(blocks_for(origin_tiles(p.rows, p.cols) *
 change_origins(p.channels, p.complex))), threads, 0,
               stream, p);
  const PairPlan& plan = p.plan;
  auto* kernel = score_pixels<N, 1>;
  if (plan.team == PairTeam::warp) kernel = score_pixels<N, warp_lanes>;
  if (plan.team == PairTeam::block) kernel = score_pixels<N, pair_block_threads>;
  const std::int64_t cols = p.cols - 2 * p.edge;
  const std::int64_t tiles =
      (p.rows - 2 * p.edge) * std::int64_t{(cols + plan.pairs - 1) / plan.pairs};
  const std::int64_t blocks =
      plan.team == PairTeam::block ? plan.slots : std::min(tiles, most_blocks);
  const std::int64_t doubles =
      warp_lanes + p.chunk * change_group_doubles(plan.pairs, p.params.window, p.complex) +
      change_moments(plan.pairs, p.channels, p.complex) + plan.shared_doubles();
  simt::launch(op, kernel, dim3(static_cast<unsigned>(blocks)),
               dim3(static_cast<unsigned>(plan.threads)),
               static_cast<std::size_t>(doubles) * sizeof(double), stream, p);
  if (p.edge > 0) {
    simt::launch(op, fill_map_edges, dim3(blocks_for(pixels)), threads, 0, stream, p);
  }
}

}  // namespace

void change_map(const ChangeMapLaunch& arguments, std::uintptr_t stream) {
  if (arguments.complex) {
    launch_numbers<Complex<double>>(arguments, stream);
  } else {
    launch_numbers<double>(arguments, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

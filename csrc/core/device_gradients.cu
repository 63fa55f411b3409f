// Gradients of scores against one background, in float64. Sums over pixels are cut into chunks that
// are joined in their order.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/device_gradients.hpp"
#include "core/device_matrix.hpp"
#include "core/device_pixels.hpp"
#include "core/simt.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int tile = 32;
constexpr int tile_pitch = tile + 1;
constexpr int block_threads = 128;
constexpr int own = tile * tile / block_threads;  // elements of a tile for one thread
constexpr std::size_t tile_bytes = sizeof(double) * tile * tile_pitch;
constexpr int lanes_per_row = block_threads / tile;
static_assert(cross_tile == tile);

// The hook by which a test proves that its comparisons notice a lost barrier.
__device__ __forceinline__ void tile_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

// A block makes 32 bands of 32 pixels; thread t has pixel t % 32 of every product and the bands
// t / 32, + 4, ...
template <class In, class Out>
__global__ void __launch_bounds__(block_threads) make_rows(RowsLaunch<In, Out> p) {
  const int bands = p.pixels.list.bands;
  const int thread = static_cast<int>(threadIdx.x);
  const int pixel = thread % tile;
  const int group = thread / tile;
  double* in = simt::dynamic_shared<double>();  // by pixels
  double* factor = in + tile * tile_pitch;      // by bands of the input
  std::int64_t* offsets = reinterpret_cast<std::int64_t*>(factor + tile * tile_pitch);
  const std::int64_t tiles = (p.pixels.count + tile - 1) / tile;
  const int first_band = static_cast<int>(blockIdx.y) * tile;
  const int out_bands = bands - first_band < tile ? bands - first_band : tile;
  for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const std::int64_t begin = t * tile;
    const int pixels =
        static_cast<int>(p.pixels.count - begin < tile ? p.pixels.count - begin : tile);
    double sum[own] = {};
    for (int first = 0; first < bands && p.matrix != nullptr; first += tile) {
      const int depth = bands - first < tile ? bands - first : tile;
      tile_barrier();
      if (thread < pixels) offsets[thread] = pixel_offset(p.pixels.list, begin + thread);
      tile_barrier();
      visit_tile<tile, block_threads>(
          p.pixels, offsets, pixels, first, depth, [&](int i, int k, In value) {
            const double mean = p.mean == nullptr ? 0.0 : p.mean[first + k];
            in[i * tile_pitch + k] = static_cast<double>(value) - mean;
          });
      for (int e = thread; e < depth * out_bands; e += block_threads) {
        const int k = e / out_bands, j = e % out_bands;
        factor[k * tile_pitch + j] =
            p.matrix[(first + k) * p.matrix_row + (first_band + j) * p.matrix_col];
      }
      tile_barrier();
      for (int k = 0; k < depth && pixel < pixels; ++k) {
        const double value = in[pixel * tile_pitch + k];
  MAHAL_UNROLL
        for (int s = 0; s < own; ++s) {
          const int j = group + s * lanes_per_row;
          if (j < out_bands) sum[s] += value * factor[k * tile_pitch + j];
        }
      }
    }
    // Through shared memory, so that neighbouring threads write neighbouring bands.
    tile_barrier();
    MAHAL_UNROLL
    for (int s = 0; s < own; ++s) in[pixel * tile_pitch + group + s * lanes_per_row] = sum[s];
    tile_barrier();
    for (int e = thread; e < pixels * out_bands; e += block_threads) {
      const int i = e / out_bands, j = e % out_bands;
      const double offset = p.offset == nullptr ? 0.0 : p.offset[first_band + j];
      const bool used = p.status == nullptr || p.status[begin + i] == 0;
      Out* out = p.out + (begin + i) * bands + first_band + j;
      const double value = used ? in[i * tile_pitch + j] + offset : 0.0;
      *out = static_cast<Out>(p.add ? static_cast<double>(*out) + value : value);
    }
  }
}

template <class Right>
struct CrossParameters {
  CrossLaunch<Right> call;
  std::int64_t chunk_pixels;
};

// One tile of the sums over one chunk.
template <class Right>
__global__ void __launch_bounds__(block_threads) cross_tiles(CrossParameters<Right> parameters) {
  const CrossLaunch<Right>& p = parameters.call;
  const int thread = static_cast<int>(threadIdx.x);
  const int col = thread % tile;
  const int group = thread / tile;
  double* left = simt::dynamic_shared<double>();  // by pixels
  double* right = left + tile * tile_pitch;
  std::int64_t* offsets = reinterpret_cast<std::int64_t*>(right + tile * tile_pitch);
  const int col_tiles = (p.cols + tile - 1) / tile;
  const int first_row = static_cast<int>(blockIdx.x) / col_tiles * tile;
  const int first_col = static_cast<int>(blockIdx.x) % col_tiles * tile;
  const int rows = p.rows - first_row < tile ? p.rows - first_row : tile;
  const int cols = p.cols - first_col < tile ? p.cols - first_col : tile;
  const int bands = p.right.list.bands;
  const int loaded = bands - first_col < cols ? bands - first_col : cols;
  const std::int64_t chunk = blockIdx.y;
  const std::int64_t last =
      p.right.count - chunk * parameters.chunk_pixels < parameters.chunk_pixels
          ? p.right.count
          : (chunk + 1) * parameters.chunk_pixels;
  double sum[own] = {};
  for (std::int64_t begin = chunk * parameters.chunk_pixels; begin < last; begin += tile) {
    const int pixels = static_cast<int>(last - begin < tile ? last - begin : tile);
    tile_barrier();
    if (thread < pixels) offsets[thread] = pixel_offset(p.right.list, begin + thread);
    const auto weight = [&](int i) {
      return p.weight == nullptr ? 1.0 : p.weight[(begin + i) * p.weight_stride];
    };
    for (int e = thread; e < pixels * rows; e += block_threads) {
      const int i = e / rows, r = e % rows;
      const double value = p.left == nullptr ? 1.0 : p.left[(begin + i) * p.rows + first_row + r];
      const double w = weight(i);
      left[i * tile_pitch + r] = w == 0 ? 0.0 : w * value;
    }
    tile_barrier();
    if (loaded > 0) {
      visit_tile<tile, block_threads>(
          p.right, offsets, pixels, first_col, loaded, [&](int i, int k, Right value) {
            right[i * tile_pitch + k] = weight(i) == 0 ? 0.0 : static_cast<double>(value);
          });
    }
    for (int i = thread; i < pixels && loaded < cols; i += block_threads) {
      right[i * tile_pitch + cols - 1] = 1.0;
    }
    tile_barrier();
    for (int i = 0; i < pixels && col < cols; ++i) {
      const double value = right[i * tile_pitch + col];
      MAHAL_UNROLL
      for (int s = 0; s < own; ++s) {
        const int r = group + s * lanes_per_row;
        if (r < rows) sum[s] += left[i * tile_pitch + r] * value;
      }
    }
  }
  double* out = p.parts + chunk * p.rows * p.cols;
  for (int s = 0; s < own && col < cols; ++s) {
    const int r = group + s * lanes_per_row;
    if (r < rows) out[static_cast<std::int64_t>(first_row + r) * p.cols + first_col + col] = sum[s];
  }
}

struct JoinParameters {
  const double* parts;
  std::int64_t chunks, size;
  double scale;
  double* sums;
};

__global__ void __launch_bounds__(block_threads) join_parts(JoinParameters p) {
  const std::int64_t step = std::int64_t{gridDim.x} * block_threads;
  for (std::int64_t e = std::int64_t{blockIdx.x} * block_threads + threadIdx.x; e < p.size; e += step) {
    double sum = 0;
    for (std::int64_t chunk = 0; chunk < p.chunks; ++chunk) sum += p.parts[chunk * p.size + e];
    p.sums[e] = sum * p.scale;
  }
}

struct Slopes {
  double a, other, b, c;
};

// As in detector_backward_simd.cpp.
__device__ __forceinline__ Slopes slopes_of(DetectorScore score, double grad, double a, double other,
                                            bool complex, double b, double c) {
  const double size = complex ? std::sqrt(a * a + other * other) : a;
  if (score == DetectorScore::ace) {
    if (!(b != 0)) return {0, 0, 0, 0};
    const double scale = grad / (b * c);
    const double square = size * size * scale;
    return {2 * a * scale, 2 * other * scale, -square / b, -square / c};
  }
  if (score == DetectorScore::signed_ace) {
    if (!(b != 0)) return {0, 0, 0, 0};
    const double scale = grad / std::sqrt(b * c);
    return {scale, 0, -0.5 * a * scale / b, -0.5 * a * scale / c};
  }
  const bool plain = score == DetectorScore::filter;
  const double scale = grad / (plain ? c : std::sqrt(c));
  const double slope = (plain ? -1.0 : -0.5) * size * scale / c;
  if (!complex) return {scale, 0, 0, slope};
  if (!(size != 0)) return {0, 0, 0, 0};
  return {scale * a / size, scale * other / size, 0, slope};
}

// Element j of i times the complex numbers in `row`.
__device__ __forceinline__ double turned(const double* row, int j) {
  return j % 2 == 0 ? -row[j + 1] : row[j - 1];
}

// One warp for each pixel.
template <class T>
__global__ void __launch_bounds__(block_threads) make_slopes(SlopesLaunch<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  const int padded = row_length(p.bands);
  const int count = 1 + p.targets * (p.parts + 1);
  const std::int64_t step = std::int64_t{gridDim.x} * (block_threads / warp_lanes);
  for (std::int64_t i = std::int64_t{blockIdx.x} * (block_threads / warp_lanes) + warp; i < p.pixels;
       i += step) {
    double* slopes = p.slopes + i * count;
    T* image = p.image == nullptr ? nullptr : p.image + i * p.bands;
    if (p.status != nullptr && p.status[i] != 0) {
      for (int k = lane; k < count; k += warp_lanes) slopes[k] = 0;
      for (int j = lane; image != nullptr && j < p.bands; j += warp_lanes) image[j] = T(0);
      __syncwarp();
      continue;
    }
    const double* y = p.y + i * p.bands;
    const T* grad = p.grad + i / p.grad_cols * p.grad_row + i % p.grad_cols * p.grad_col;
    double total = p.targets == 0 ? static_cast<double>(*grad) : 0.0;
    double square = 0;
    for (int j = lane; j < p.bands && p.targets > 0; j += warp_lanes) square += y[j] * y[j];
    square = warp_reduce(square);
    for (int k = 0; k < p.targets; ++k) {
      const double* w = p.w + static_cast<std::int64_t>(k) * padded;
      double a = 0, other = 0;
      for (int j = lane; j < p.bands; j += warp_lanes) {
        a += w[j] * y[j];
        if (p.parts == 2) other += turned(w, j) * y[j];
      }
      a = warp_reduce(a);
      other = warp_reduce(other);
      const Slopes s = slopes_of(p.score, static_cast<double>(grad[k * p.grad_map]), a, other,
                                 p.parts == 2, square, p.squares[k]);
      total += s.b;
      if (lane == 0) {
        slopes[1 + k * p.parts] = s.a;
        if (p.parts == 2) slopes[2 + k * p.parts] = s.other;
        slopes[1 + p.targets * p.parts + k] = s.c;
      }
    }
    if (lane == 0) slopes[0] = 2 * total;
    __syncwarp();
    for (int j = lane; image != nullptr && j < p.bands; j += warp_lanes) {
      double value = 2 * total * p.z[i * p.bands + j];
      for (int k = 0; k < p.targets; ++k) {
        const double* u = p.u + static_cast<std::int64_t>(k) * p.bands;
        value += slopes[1 + k * p.parts] * u[j];
        if (p.parts == 2) value += slopes[2 + k * p.parts] * turned(u, j);
      }
      image[j] = static_cast<T>(value);
    }
  }
}

// Entry (i, j) of the gradient of a real form, summed over what stands for the same number.
__device__ __forceinline__ double folded(const double* m, int n, int parts, int i, int j) {
  const std::int64_t at = static_cast<std::int64_t>(i) * n + j;
  if (parts == 1) return m[at];
  const int other_i = i ^ 1, other_j = j ^ 1;
  const double other = m[static_cast<std::int64_t>(other_i) * n + other_j];
  return i % 2 == j % 2 ? m[at] + other : m[at] - other;
}

// To contiguous numbers: of a real form its columns 2j, of which row 2i is the real part.
__device__ __forceinline__ void write_folded(const double* m, int n, int parts, double* out) {
  for (int e = static_cast<int>(threadIdx.x); e < n / parts * n; e += block_threads) {
    const int i = e / n, rest = e % n;
    const int j = rest / parts, part = rest % parts;
    out[e] = folded(m, n, parts, i * parts + part, j * parts);
  }
}

__global__ void __launch_bounds__(block_threads) finish_sums(FinishLaunch p) {
  const int thread = static_cast<int>(threadIdx.x);
  const int n = p.bands;
  const int width = n + 1;
  const auto sum = [&](int row, int j) { return p.cross[static_cast<std::int64_t>(row) * width + j]; };
  const auto dual = [&](int k, int part, int j) {
    const double* u = p.u + static_cast<std::int64_t>(k) * n;
    return part == 0 ? u[j] : turned(u, j);
  };
  const auto square_sum = [&](int k) { return sum(1 + p.targets * p.parts + k, n); };
  for (std::int64_t e = thread; e < std::int64_t{n} * n; e += block_threads) {
    const int i = static_cast<int>(e / n), j = static_cast<int>(e % n);
    double total = 0.25 * (p.gram[e] + p.gram[static_cast<std::int64_t>(j) * n + i]);
    for (int k = 0; k < p.targets; ++k) {
      for (int part = 0; part < p.parts; ++part) {
        const int row = 1 + k * p.parts + part;
        total += 0.5 * (sum(row, i) * dual(k, part, j) + sum(row, j) * dual(k, part, i));
      }
      total += square_sum(k) * dual(k, 0, i) * dual(k, 0, j);
    }
    p.matrix[e] = -total;
  }
  for (int j = thread; j < n; j += block_threads) {
    // The pixels' own gradients, then those of the targets.
    double total = sum(0, j);
    for (int k = 0; k < p.targets; ++k) {
      const int row = 1 + k * p.parts;
      total += sum(row, n) * dual(k, 0, j);
      double target = sum(row, j) + 2 * square_sum(k) * dual(k, 0, j);
      if (p.parts == 2) {
        total += sum(row + 1, n) * dual(k, 1, j);
        target += j % 2 == 0 ? sum(row + 1, j + 1) : -sum(row + 1, j - 1);
      }
      p.target[static_cast<std::int64_t>(k) * n + j] = target;
      total += target;
    }
    p.mean[j] = -total;
  }
  __syncthreads();
  if (p.out != nullptr) write_folded(p.matrix, n, p.parts, p.out);
  if (p.spread == nullptr) return;
  const auto samples = static_cast<double>(p.state->count);
  const double divisor = samples - p.ddof;
  for (std::int64_t e = thread; e < std::int64_t{n} * n; e += block_threads) {
    p.spread[e] = 2 / divisor * folded(p.matrix, n, p.parts, static_cast<int>(e / n), static_cast<int>(e % n));
  }
  for (int j = thread; j < n; j += block_threads) p.offset[j] = p.center ? p.mean[j] / samples : 0.0;
}

template <class G>
__global__ void __launch_bounds__(block_threads) make_spread(SpreadMatrixLaunch<G> p) {
  const int n = p.bands;
  const int thread = static_cast<int>(threadIdx.x);
  const auto samples = static_cast<double>(p.state->count);
  const double divisor = samples - (p.center ? p.ddof : 0.0);
  const auto part = [&](int i, int j, int which) {
    return static_cast<double>(p.covariance[p.parts * (i * p.row_stride + j * p.col_stride) + which]);
  };
  for (std::int64_t e = thread; p.spread != nullptr && e < std::int64_t{n} * n; e += block_threads) {
    const int row = static_cast<int>(e / n), col = static_cast<int>(e % n);
    const int i = row / p.parts, j = col / p.parts;
    double value = 0;
    if (p.covariance != nullptr && row % p.parts == col % p.parts) {
      value = part(i, j, 0) + part(j, i, 0);
    } else if (p.covariance != nullptr) {
      value = part(i, j, 1) - part(j, i, 1);
      if (row % 2 == 0) value = -value;
    }
    p.spread[e] = value / divisor;
  }
  for (int j = thread; p.offset != nullptr && j < n; j += block_threads) {
    const double value =
        p.mean == nullptr || !p.center
            ? 0.0
            : static_cast<double>(p.mean[p.parts * (j / p.parts) * p.mean_stride + j % p.parts]);
    p.offset[j] = value / samples;
  }
}

__global__ void __launch_bounds__(block_threads) fold_matrix(FoldLaunch p) {
  write_folded(p.matrix, p.bands, p.parts, p.out);
}

struct SimpleParameters {
  const double* in;
  double* out;
  int count, bands, padded;
};

__global__ void __launch_bounds__(block_threads) write_identity(SimpleParameters p) {
  const std::int64_t size = std::int64_t{p.bands} * p.bands;
  for (std::int64_t e = threadIdx.x; e < size; e += block_threads) {
    p.out[e] = e / p.bands == e % p.bands ? 1.0 : 0.0;
  }
}

__global__ void __launch_bounds__(block_threads) row_squares(SimpleParameters p) {
  double* room = simt::dynamic_shared<double>();
  for (int k = 0; k < p.count; ++k) {
    const double* row = p.in + static_cast<std::int64_t>(k) * p.padded;
    double sum = 0;
    for (int j = static_cast<int>(threadIdx.x); j < p.bands; j += block_threads) sum += row[j] * row[j];
    sum = block_reduce(sum, room);
    if (threadIdx.x == 0) p.out[k] = sum;
  }
}

unsigned blocks_for(std::int64_t work) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(work, 1, 4096));
}

}  // namespace

template <class In, class Out>
void Gradients::rows(const RowsLaunch<In, Out>& launch) const {
  const int tiles = (launch.pixels.list.bands + tile - 1) / tile;
  simt::launch(op, make_rows<In, Out>,
               dim3(blocks_for((launch.pixels.count + tile - 1) / tile),
                    static_cast<unsigned>(tiles)),
               dim3(block_threads), 2 * tile_bytes + sizeof(std::int64_t) * tile, stream, launch);
}

template <class Right>
void Gradients::cross(const CrossLaunch<Right>& launch) const {
  const std::int64_t pixels = launch.right.count;
  const std::int64_t tiles = std::int64_t{(launch.rows + tile - 1) / tile} * ((launch.cols + tile - 1) / tile);
  const auto chunks = cross_chunks(pixels);
  simt::launch(op, cross_tiles<Right>,
               dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(chunks)),
               dim3(block_threads), 2 * tile_bytes + sizeof(std::int64_t) * tile, stream,
               CrossParameters<Right>{launch, cross_chunk_pixels(pixels)});
  const std::int64_t size = std::int64_t{launch.rows} * launch.cols;
  simt::launch(op, join_parts, dim3(blocks_for((size + block_threads - 1) / block_threads)),
               dim3(block_threads), 0, stream,
               JoinParameters{launch.parts, chunks, size, launch.scale, launch.sums});
}

template <class T>
void Gradients::slopes(const SlopesLaunch<T>& launch) const {
  constexpr int warps = block_threads / warp_lanes;
  simt::launch(op, make_slopes<T>, dim3(blocks_for((launch.pixels + warps - 1) / warps)),
               dim3(block_threads), 0, stream, launch);
}

void Gradients::finish(const FinishLaunch& launch) const {
  simt::launch(op, finish_sums, dim3(1), dim3(block_threads), 0, stream, launch);
}

template <class G>
void Gradients::spread(const SpreadMatrixLaunch<G>& launch) const {
  simt::launch(op, make_spread<G>, dim3(1), dim3(block_threads), 0, stream, launch);
}

void Gradients::fold(const FoldLaunch& launch) const {
  simt::launch(op, fold_matrix, dim3(1), dim3(block_threads), 0, stream, launch);
}

void Gradients::identity(double* matrix, int n) const {
  simt::launch(op, write_identity, dim3(1), dim3(block_threads), 0, stream,
               SimpleParameters{nullptr, matrix, n, n, n});
}

void Gradients::squares(const double* rows, int count, int bands, int padded, double* out) const {
  simt::launch(op, row_squares, dim3(1), dim3(block_threads),
               sizeof(double) * (block_threads / warp_lanes), stream,
               SimpleParameters{rows, out, count, bands, padded});
}

template void Gradients::rows(const RowsLaunch<float, float>&) const;
template void Gradients::rows(const RowsLaunch<float, double>&) const;
template void Gradients::rows(const RowsLaunch<double, float>&) const;
template void Gradients::rows(const RowsLaunch<double, double>&) const;
template void Gradients::cross(const CrossLaunch<float>&) const;
template void Gradients::cross(const CrossLaunch<double>&) const;
template void Gradients::spread(const SpreadMatrixLaunch<float>&) const;
template void Gradients::spread(const SpreadMatrixLaunch<double>&) const;
template void Gradients::slopes(const SlopesLaunch<float>&) const;
template void Gradients::slopes(const SlopesLaunch<double>&) const;

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

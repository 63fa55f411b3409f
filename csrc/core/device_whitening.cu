// Whitening of pixels by the factor of a background, in float64, and the scores that come of it. A
// block of threads takes 32 pixels at a time and solves 32 bands together: it subtracts what the
// solved bands contribute, then multiplies by the inverse of the factor's block on the diagonal. Up
// to 16 bands a thread has a pixel to itself.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/device_background.hpp"
#include "core/device_matrix.hpp"
#include "core/device_pixels.hpp"
#include "core/simt.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int block_threads = 128;
constexpr int warps = block_threads / warp_lanes;
constexpr int rows_per_warp = factor_block / warps;
constexpr std::int64_t most_blocks = 1 << 16;
static_assert(whiten_tile == warp_lanes && rows_per_warp % 2 == 0);

// The hook by which tests/cpp/test_simt.cpp proves that its comparisons notice a lost barrier.
__device__ __forceinline__ void solve_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

struct Verdict {
  std::uint8_t status;
  bool scored;
};

__device__ Verdict verdict_of(const Verdicts& v, std::int64_t pixel) {
  const std::uint8_t own = v.pixel == nullptr ? std::uint8_t{status_ok} : v.pixel[pixel];
  if (own != status_ok) return {own, false};
  if (v.state == nullptr) return {status_ok, true};
  if (v.state->outcome == status_few_samples) return {status_few_samples, false};
  if (v.state->unfactored != 0 || v.state->outcome == status_singular) {
    return {status_singular, false};
  }
  if (v.state->loaded != 0) return {status_singular, !v.nan_when_loaded};
  return {static_cast<std::uint8_t>(v.state->outcome), true};
}

// y -= what the bands before `first` contribute, for rows_per_warp rows of one pixel.
__device__ __forceinline__ void subtract_columns(const double* lower, int padded, int row,
                                                 int first, const double* y,
                                                 double (&own)[rows_per_warp]) {
  const double* l = lower + row;
  for (int k = 0; k < first; ++k) {
    const double solved = y[k * whiten_pitch];
  MAHAL_UNROLL
    for (int r = 0; r < rows_per_warp; r += 2) {
      const Pair pair = *reinterpret_cast<const Pair*>(l + r);
      own[r] -= pair.even * solved;
      own[r + 1] -= pair.odd * solved;
    }
    l += padded;
  }
}

// In place, for all pixels of the tile; returns the thread's share of |y|^2 of its pixel.
__device__ double solve(const double* lower, const double* inverse, int bands, double* tile) {
  const int padded = row_length(bands);
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int warp = static_cast<int>(threadIdx.x) / warp_lanes;
  double square = 0;
  for (int first = 0; first < bands; first += factor_block) {
    const int row = first + warp * rows_per_warp;
    double own[rows_per_warp], solved[rows_per_warp];
    MAHAL_UNROLL
    for (int r = 0; r < rows_per_warp; ++r) {
      own[r] = row + r < bands ? tile[(row + r) * whiten_pitch + lane] : 0.0;
      solved[r] = 0.0;
    }
    if (row < bands) subtract_columns(lower, padded, row, first, tile + lane, own);
    MAHAL_UNROLL
    for (int r = 0; r < rows_per_warp; ++r) {
      if (row + r < bands) tile[(row + r) * whiten_pitch + lane] = own[r];
    }
    solve_barrier();
    if (row < bands) {
      const double* block = inverse + first * factor_block + warp * rows_per_warp;
      for (int k = 0; k < warp * rows_per_warp; ++k) {
        const double other = tile[(first + k) * whiten_pitch + lane];
        MAHAL_UNROLL
        for (int r = 0; r < rows_per_warp; ++r) solved[r] += block[k * factor_block + r] * other;
      }
      block += warp * rows_per_warp * factor_block;
      // Not the zeros above the diagonal: a NaN in a band must not reach the bands before it.
      MAHAL_UNROLL
      for (int k = 0; k < rows_per_warp; ++k) {
        MAHAL_UNROLL
        for (int r = k; r < rows_per_warp; ++r) solved[r] += block[k * factor_block + r] * own[k];
      }
    }
    solve_barrier();
    MAHAL_UNROLL
    for (int r = 0; r < rows_per_warp; ++r) {
      if (row + r < bands) {
        tile[(row + r) * whiten_pitch + lane] = solved[r];
        square += solved[r] * solved[r];
      }
    }
    solve_barrier();
  }
  return square;
}

// Scores of one pixel against the targets `first`, first + step, ...; false when one of them has
// no direction. product(row) is that of a direction with the pixel.
template <class Product, class Out>
__device__ __forceinline__ bool match(const Directions& d, const Product& product, int bands,
                                      double square, const Verdict& verdict, int first, int step,
                                      Out* out) {
  const int padded = row_length(bands);
  const bool subspace = d.kind == MatchedScore::subspace_ace;
  bool known = true;
  double total = 0;
  for (int k = first; k < d.targets; k += step) {
    const double* row = d.rows + static_cast<std::int64_t>(k) * d.parts * padded;
    const double c = product(row);
    const double other = d.parts == 2 ? product(row + padded) : 0.0;
    const double both = c * c + other * other;
    const bool directed = row[0] == row[0];
    double value = 0;
    switch (d.kind) {
      case MatchedScore::ace:
      case MatchedScore::subspace_ace:
        value = both / square;
        if (value > 1) value = 1;
        if (square == 0) value = 0;
        break;
      case MatchedScore::signed_ace:
        value = c / std::sqrt(square);
        if (value > 1) value = 1;
        if (value < -1) value = -1;
        if (square == 0) value = 0;
        break;
      default:
        value = d.parts == 2 ? std::sqrt(both) : c;
    }
    if (!directed || !verdict.scored) value = simt::nan<double>;
    known = known && directed;
    total += value;
    if (!subspace) out[k] = static_cast<Out>(value);
  }
  if (subspace) out[0] = static_cast<Out>(total > 1 ? 1.0 : total);
  return known;
}

template <class In, class Out>
__global__ void __launch_bounds__(block_threads) whiten_tiles(WhitenLaunch<In, Out> p) {
  if (p.iterating && p.verdicts.state->finished != 0) return;
  const int bands = p.pixels.list.bands;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warp_lanes;
  const int warp = thread / warp_lanes;
  double* squares = simt::dynamic_shared<double>();  // a row for each warp
  std::int64_t* offsets = reinterpret_cast<std::int64_t*>(squares + warps * whiten_tile);
  int* undirected = reinterpret_cast<int*>(offsets + whiten_tile);  // one for each pixel
  double* tile = p.tiles == nullptr
                     ? reinterpret_cast<double*>(undirected + whiten_tile)
                     : p.tiles + std::int64_t{blockIdx.x} * bands * whiten_pitch;

  const std::int64_t tiles = (p.pixels.count + whiten_tile - 1) / whiten_tile;
  for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const std::int64_t begin = t * whiten_tile;
    const int pixels =
        static_cast<int>(p.pixels.count - begin < whiten_tile ? p.pixels.count - begin : whiten_tile);
    __syncthreads();
    if (thread < whiten_tile) {
      if (thread < pixels) offsets[thread] = pixel_offset(p.pixels.list, begin + thread);
      undirected[thread] = 0;
    }
    __syncthreads();
    visit_tile<whiten_tile, block_threads>(
        p.pixels, offsets, pixels, 0, bands, [&](int pixel, int band, In value) {
          const double mean = p.mean == nullptr ? 0.0 : p.mean[band];
          tile[band * whiten_pitch + pixel] = static_cast<double>(value) - mean;
        });
    if (lane >= pixels) {
      for (int j = warp; j < bands; j += warps) tile[j * whiten_pitch + lane] = 0.0;
    }
    __syncthreads();
    double square = 0;
    if (p.lower != nullptr) {
      square = solve(p.lower, p.inverse, bands, tile);
    } else {
      for (int j = warp; j < bands; j += warps) {
        const double y = tile[j * whiten_pitch + lane];
        square += y * y;
      }
    }
    squares[warp * whiten_tile + lane] = square;
    __syncthreads();
    square = squares[lane];
    for (int w = 1; w < warps; ++w) square += squares[w * whiten_tile + lane];

    if (p.whitened != nullptr) {
      int pixel = thread / p.out_bands, band = thread % p.out_bands;
      while (pixel < pixels) {
        const bool scored = verdict_of(p.verdicts, begin + pixel).scored;
        const double y = band < bands ? tile[band * whiten_pitch + pixel] : 0.0;
        p.whitened[(begin + pixel) * p.out_stride + band] =
            static_cast<Out>(scored ? y : simt::nan<double>);
        pixel += block_threads / p.out_bands;
        band += block_threads % p.out_bands;
        if (band >= p.out_bands) {
          band -= p.out_bands;
          ++pixel;
        }
      }
    }
    if (p.matched != nullptr && lane < pixels) {
      const bool subspace = p.directions.kind == MatchedScore::subspace_ace;
      const std::int64_t maps = subspace ? 1 : p.directions.targets;
      const Verdict verdict = verdict_of(p.verdicts, begin + lane);
      const auto product = [&](const double* direction) {
        double total = 0;
        for (int j = 0; j < bands; ++j) total += direction[j] * tile[j * whiten_pitch + lane];
        return total;
      };
      if ((!subspace || warp == 0) &&
          !match(p.directions, product, bands, square, verdict, subspace ? 0 : warp,
                 subspace ? 1 : warps, p.matched + (begin + lane) * maps)) {
        undirected[lane] = 1;
      }
    }
    __syncthreads();
    if (thread < pixels) {
      const Verdict verdict = verdict_of(p.verdicts, begin + thread);
      if (p.score != nullptr) {
        p.score[begin + thread] = static_cast<Out>(verdict.scored ? square : simt::nan<double>);
      }
      if (p.verdicts.status != nullptr) {
        const bool bad = verdict.scored && undirected[thread] != 0;
        p.verdicts.status[begin + thread] = bad ? std::uint8_t{status_singular} : verdict.status;
      }
    }
  }
}

// A pixel per thread, where its bands fit into registers and the factor is one block.
template <class In, class Out, int Bands>
__global__ void __launch_bounds__(block_threads) whiten_few_bands(WhitenLaunch<In, Out> p) {
  static_assert(Bands <= factor_block && Bands % 2 == 0);
  if (p.iterating && p.verdicts.state->finished != 0) return;
  const PixelList<In>& list = p.pixels.list;
  const std::int64_t pixel = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (pixel >= p.pixels.count) return;
  const In* from = list.data + pixel_offset(list, pixel);
  double x[Bands];
  MAHAL_UNROLL
  for (int j = 0; j < Bands; ++j) {
    x[j] = j < list.bands ? static_cast<double>(from[band_element(list, j)]) : 0.0;
  }
  double y[Bands];
  MAHAL_UNROLL
  for (int j = 0; j < Bands; ++j) {
    if (p.mean != nullptr && j < list.bands) x[j] -= p.mean[j];
    y[j] = p.lower == nullptr ? x[j] : 0.0;
  }
  if (p.lower != nullptr) {
    MAHAL_UNROLL
    for (int k = 0; k < Bands; ++k) {
      if (k >= list.bands) break;
      MAHAL_UNROLL
      for (int r = k / 2 * 2; r < Bands; r += 2) {
        const Pair pair = *reinterpret_cast<const Pair*>(p.inverse + k * factor_block + r);
        // Not the zeros above the diagonal, as above.
        if (r >= k) y[r] += pair.even * x[k];
        y[r + 1] += pair.odd * x[k];
      }
    }
  }
  double square = 0;
  MAHAL_UNROLL
  for (int j = 0; j < Bands; ++j) {
    if (j < list.bands) square += y[j] * y[j];
  }
  const Verdict verdict = verdict_of(p.verdicts, pixel);
  if (p.whitened != nullptr) {
    Out* to = p.whitened + pixel * p.out_stride;
    MAHAL_UNROLL
    for (int j = 0; j < Bands; ++j) {
      if (j < list.bands) to[j] = static_cast<Out>(verdict.scored ? y[j] : simt::nan<double>);
    }
    for (int j = list.bands; j < p.out_bands; ++j) {
      to[j] = static_cast<Out>(verdict.scored ? 0.0 : simt::nan<double>);
    }
  }
  bool known = true;
  if (p.matched != nullptr) {
    const auto product = [&](const double* direction) {
      double total = 0;
      MAHAL_UNROLL
      for (int j = 0; j < Bands; ++j) {
        if (j < list.bands) total += direction[j] * y[j];
      }
      return total;
    };
    const bool subspace = p.directions.kind == MatchedScore::subspace_ace;
    const std::int64_t maps = subspace ? 1 : p.directions.targets;
    known = match(p.directions, product, list.bands, square, verdict, 0, 1,
                  p.matched + pixel * maps);
  }
  if (p.score != nullptr) {
    p.score[pixel] = static_cast<Out>(verdict.scored ? square : simt::nan<double>);
  }
  if (p.verdicts.status != nullptr) {
    const bool bad = verdict.scored && !known;
    p.verdicts.status[pixel] = bad ? std::uint8_t{status_singular} : verdict.status;
  }
}

// t - m in double precision.
template <class T>
__global__ void __launch_bounds__(block_threads) subtract_mean(TargetLaunch<T> p) {
  int* flags = simt::dynamic_shared<int>();  // differs, not finite
  const PixelList<T>& list = p.targets.list;
  const int padded = row_length(list.bands);
  const int thread = static_cast<int>(threadIdx.x);
  const T* target = list.data + pixel_offset(list, blockIdx.x);
  double* out = p.differences + static_cast<std::int64_t>(blockIdx.x) * padded;
  if (thread < 2) flags[thread] = 0;
  __syncthreads();
  for (int j = thread; j < list.bands; j += block_threads) {
    constexpr double rounding = 16 * simt::epsilon<double>;
    const double value = static_cast<double>(target[band_element(list, j)]);
    const double size = std::fmax(std::abs(value), std::abs(p.mean[j]));
    out[j] = value - p.mean[j];
    if (!is_finite(value)) flags[1] = 1;
    if (std::abs(out[j]) > rounding * size) flags[0] = 1;
  }
  __syncthreads();
  const bool good = flags[0] == 1 && flags[1] == 0;
  for (int j = thread; j < padded; j += block_threads) {
    if (!good || j >= list.bands) out[j] = j < list.bands ? simt::nan<double> : 0.0;
  }
}

struct DirectionParameters {
  const double* whitened;
  const double* lower;
  double* directions;
  int bands, targets, parts;
  MatchedScore kind;
};

__device__ double block_dot(const double* a, const double* b, int bands, double* room) {
  double total = 0;
  for (int j = static_cast<int>(threadIdx.x); j < bands; j += block_threads) total += a[j] * b[j];
  return block_reduce(total, room);
}

// g = L^-T w in place, by one warp.
__device__ void solve_transposed(const double* lower, int bands, double* g) {
  const int padded = row_length(bands);
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  for (int i = bands - 1; i >= 0; --i) {
    const double* column = lower + static_cast<std::int64_t>(i) * padded;
    double rest = 0;
    for (int k = i + 1 + lane; k < bands; k += warp_lanes) rest += column[k] * g[k];
    rest = warp_reduce(rest);
    if (lane == 0) g[i] = (g[i] - rest) / column[i];
    __syncwarp();
  }
}

// Unit vectors along the whitened targets, or what a linear score multiplies x - m with. One block
// for each target, or one for all targets of a subspace.
__global__ void __launch_bounds__(block_threads) make_directions(DirectionParameters p) {
  double* room = simt::dynamic_shared<double>();
  const int thread = static_cast<int>(threadIdx.x);
  const int padded = row_length(p.bands);
  const bool subspace = p.kind == MatchedScore::subspace_ace;
  const bool cosine =
      subspace || p.kind == MatchedScore::ace || p.kind == MatchedScore::signed_ace;
  const int begin = subspace ? 0 : static_cast<int>(blockIdx.x);
  const int end = subspace ? p.targets : begin + 1;
  for (int k = begin; k < end; ++k) {
    const double* w = p.whitened + static_cast<std::int64_t>(k) * padded;
    double* row = p.directions + static_cast<std::int64_t>(k) * p.parts * padded;
    for (int j = thread; j < padded; j += block_threads) row[j] = w[j];
    __syncthreads();
    const double square = block_dot(row, row, p.bands, room);
    double divisor = cosine || p.kind == MatchedScore::normalized_filter ? std::sqrt(square) : square;
    bool good = square > 0;
    if (subspace) {
      // What rounding leaves of a direction that depends on others, relative to its length.
      constexpr double dependent = 64 * simt::epsilon<double>;
      for (int pass = 0; pass < 2; ++pass) {
        for (int q = 0; q < k * p.parts; ++q) {
          const double* other = p.directions + static_cast<std::int64_t>(q) * padded;
          const double share = block_dot(other, row, p.bands, room);
          for (int j = thread; j < p.bands; j += block_threads) row[j] -= share * other[j];
          __syncthreads();
        }
      }
      const double rest = std::sqrt(block_dot(row, row, p.bands, room));
      good = rest > dependent * std::sqrt(static_cast<double>(p.bands)) * divisor;
      divisor = rest;
    }
    for (int j = thread; j < p.bands; j += block_threads) {
      row[j] = good ? row[j] / divisor : simt::nan<double>;
    }
    __syncthreads();
    if (!cosine && good && thread < warp_lanes) solve_transposed(p.lower, p.bands, row);
    __syncthreads();
    if (p.parts == 2) {
      // i w
      for (int j = thread; j < padded; j += block_threads) {
        row[padded + j] = j >= p.bands ? 0.0 : j % 2 == 0 ? -row[j + 1] : row[j - 1];
      }
      __syncthreads();
    }
  }
}

}  // namespace

template <class In, class Out>
void Background::whiten(const WhitenLaunch<In, Out>& launch) const {
  constexpr int few = 8, several = 16;
  const int bands = launch.pixels.list.bands;
  if (bands <= several) {
    const std::int64_t blocks = (launch.pixels.count + block_threads - 1) / block_threads;
    simt::launch(op, bands <= few ? whiten_few_bands<In, Out, few> : whiten_few_bands<In, Out, several>,
                 dim3(static_cast<unsigned>(blocks)), dim3(block_threads), 0, stream, launch);
    return;
  }
  WhitenLaunch<In, Out> mine = launch;
  std::size_t bytes = sizeof(double) * warps * whiten_tile +
                      (sizeof(std::int64_t) + sizeof(int)) * whiten_tile;
  const std::size_t tile = sizeof(double) * whiten_pitch * bands;
  std::int64_t blocks = whiten_grid(launch.pixels.count);
  // Where two blocks fit beside each other, shared memory is the better place.
  if (whitens_in_shared(bands) || bytes + tile <= simt::shared_limit(op) / 2) {
    bytes += tile;
    mine.tiles = nullptr;
    blocks = std::min((launch.pixels.count + whiten_tile - 1) / whiten_tile, most_blocks);
  }
  simt::launch(op, whiten_tiles<In, Out>, dim3(static_cast<unsigned>(blocks)),
               dim3(block_threads), bytes, stream, mine);
}

template <class T>
void Background::prepare(const TargetLaunch<T>& launch) const {
  const int bands = launch.targets.list.bands;
  const int targets = static_cast<int>(launch.targets.count);
  const int padded = padded_rows(bands);
  simt::launch(op, subtract_mean<T>, dim3(static_cast<unsigned>(targets)), dim3(block_threads),
               2 * sizeof(int), stream, launch);
  WhitenLaunch<double, double> rows{};
  rows.pixels = {{launch.differences, targets, 0, padded, 1, 0, bands, padded}, targets, true};
  rows.lower = launch.lower;
  rows.inverse = launch.inverse;
  rows.whitened = launch.whitened;
  rows.out_stride = rows.out_bands = padded;
  rows.tiles = launch.tiles;
  whiten(rows);
  const DirectionParameters directions{launch.whitened, launch.lower,  launch.directions, bands,
                                       targets,         launch.parts, launch.kind};
  const bool together = launch.kind == MatchedScore::subspace_ace;
  simt::launch(op, make_directions, dim3(static_cast<unsigned>(together ? 1 : targets)),
               dim3(block_threads), sizeof(double) * warps, stream, directions);
}

template void Background::whiten(const WhitenLaunch<float, float>&) const;
template void Background::whiten(const WhitenLaunch<float, double>&) const;
template void Background::whiten(const WhitenLaunch<double, double>&) const;
template void Background::prepare(const TargetLaunch<float>&) const;
template void Background::prepare(const TargetLaunch<double>&) const;

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

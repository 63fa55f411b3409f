// Angles between pixels and targets: a block of threads brings 32 pixels to unit length in memory
// of its own, each warp every fourth band, then sums the chords to every target.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/device_matrix.hpp"
#include "core/device_pixels.hpp"
#include "core/simt.hpp"
#include "ops/spectral_angle_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int block_threads = 128;
constexpr int warps = block_threads / warp_lanes;
constexpr std::int64_t most_blocks = 1 << 16;
static_assert(whiten_tile == warp_lanes);

// The largest element goes first, so that no square leaves the range of the type.
template <class T>
__global__ void __launch_bounds__(block_threads) make_unit_targets(UnitLaunch<T> p) {
  double* room = simt::dynamic_shared<double>();
  const PixelList<T>& list = p.targets.list;
  const int thread = static_cast<int>(threadIdx.x);
  const T* target = list.data + pixel_offset(list, blockIdx.x);
  double* out = p.rows + std::int64_t{blockIdx.x} * row_length(list.bands);
  const auto value = [&](int j) { return static_cast<double>(target[band_element(list, j)]); };
  double largest = 0;
  for (int j = thread; j < list.bands; j += block_threads) {
    largest = std::fmax(largest, std::abs(value(j)));
  }
  largest = block_reduce(largest, room, Greatest{});
  double square = 0;
  for (int j = thread; j < list.bands; j += block_threads) {
    const double v = value(j) / largest;
    square += v * v;
  }
  const double length = std::sqrt(block_reduce(square, room));
  for (int j = thread; j < list.bands; j += block_threads) out[j] = value(j) / largest / length;
}

template <class T>
__global__ void __launch_bounds__(block_threads) measure_angles(AngleLaunch<T> p) {
  const int bands = p.pixels.list.bands;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warp_lanes;
  const int warp = thread / warp_lanes;
  double* rooms = simt::dynamic_shared<double>();  // four times one for each thread
  std::int64_t* offsets = reinterpret_cast<std::int64_t*>(rooms + 4 * block_threads);
  double* tile = p.tiles == nullptr ? reinterpret_cast<double*>(offsets + whiten_tile)
                                    : p.tiles + std::int64_t{blockIdx.x} * bands * whiten_pitch;
  const auto over_warps = [&](const double* room) {
    double total = room[lane];
    for (int w = 1; w < warps; ++w) total += room[w * warp_lanes + lane];
    return total;
  };

  const std::int64_t tiles = (p.pixels.count + whiten_tile - 1) / whiten_tile;
  for (std::int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const std::int64_t begin = t * whiten_tile;
    const std::int64_t rest = p.pixels.count - begin;
    const int pixels = static_cast<int>(rest < whiten_tile ? rest : whiten_tile);
    __syncthreads();
    if (thread < pixels) offsets[thread] = pixel_offset(p.pixels.list, begin + thread);
    __syncthreads();
    visit_tile<whiten_tile, block_threads>(
        p.pixels, offsets, pixels, 0, bands, [&](int pixel, int band, T value) {
          tile[band * whiten_pitch + pixel] = static_cast<double>(value);
        });
    __syncthreads();
    double largest = 0;
    if (lane < pixels) {
      for (int j = warp; j < bands; j += warps) {
        largest = std::fmax(largest, std::abs(tile[j * whiten_pitch + lane]));
      }
    }
    rooms[thread] = largest;
    __syncthreads();
    for (int w = 0; w < warps; ++w) largest = std::fmax(largest, rooms[w * warp_lanes + lane]);
    double square = 0;
    if (lane < pixels) {
      for (int j = warp; j < bands; j += warps) {
        const double v = tile[j * whiten_pitch + lane] / largest;
        tile[j * whiten_pitch + lane] = v;
        square += v * v;
      }
    }
    rooms[block_threads + thread] = square;
    __syncthreads();
    const double length = std::sqrt(over_warps(rooms + block_threads));
    if (lane < pixels) {
      for (int j = warp; j < bands; j += warps) tile[j * whiten_pitch + lane] /= length;
    }
    for (int k = 0; k < p.count; ++k) {
      const double* target = p.targets + static_cast<std::int64_t>(k) * row_length(bands);
      double apart = 0, across = 0;
      if (lane < pixels) {
        for (int j = warp; j < bands; j += warps) {
          const double u = tile[j * whiten_pitch + lane];
          apart += (u - target[j]) * (u - target[j]);
          across += (u + target[j]) * (u + target[j]);
        }
      }
      // By turns, so that a warp may write its next sums while these are read.
      double* room = rooms + k % 2 * 2 * block_threads;
      if (k == 0) __syncthreads();
      room[thread] = apart;
      room[block_threads + thread] = across;
      __syncthreads();
      if (warp == k % warps && lane < pixels) {
        // Exact at both ends of the range, where the arc cosine loses half of the digits.
        const double angle = 2 * std::atan2(std::sqrt(over_warps(room)),
                                            std::sqrt(over_warps(room + block_threads)));
        p.angle[(begin + lane) * p.count + k] = static_cast<T>(angle);
      }
    }
  }
}

template <class T>
void launch_units(const UnitLaunch<T>& p, std::uintptr_t stream) {
  simt::launch("spectral_angle", make_unit_targets<T>, dim3(static_cast<unsigned>(p.targets.count)),
               dim3(block_threads), sizeof(double) * warps, stream, p);
}

template <class T>
void launch_angles(const AngleLaunch<T>& p, std::uintptr_t stream) {
  AngleLaunch<T> mine = p;
  std::size_t bytes = sizeof(double) * 4 * block_threads + sizeof(std::int64_t) * whiten_tile;
  const std::size_t tile = sizeof(double) * whiten_pitch * p.pixels.list.bands;
  std::int64_t blocks = whiten_grid(p.pixels.count);
  if (p.tiles == nullptr || bytes + tile <= simt::shared_limit("spectral_angle") / 2) {
    bytes += tile;
    mine.tiles = nullptr;
    blocks = std::min((p.pixels.count + whiten_tile - 1) / whiten_tile, most_blocks);
  }
  simt::launch("spectral_angle", measure_angles<T>, dim3(static_cast<unsigned>(blocks)),
               dim3(block_threads), bytes, stream, mine);
}

}  // namespace

void unit_targets(const UnitLaunch<float>& p, std::uintptr_t stream) { launch_units(p, stream); }
void unit_targets(const UnitLaunch<double>& p, std::uintptr_t stream) { launch_units(p, stream); }
void spectral_angle(const AngleLaunch<float>& p, std::uintptr_t stream) {
  launch_angles(p, stream);
}
void spectral_angle(const AngleLaunch<double>& p, std::uintptr_t stream) {
  launch_angles(p, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

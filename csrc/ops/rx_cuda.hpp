// Entry of the kernels in csrc/ops/rx.cu: scores of every pixel against its own window, on an image
// that is whitened already. The op has checked every argument; nothing here allocates or waits.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/device_background.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/windows.hpp"

namespace mahal {

// The image, its windows and what they are scored for. Bands are real ones: a complex band is two
// of them.
struct WindowsOfImage {
  int rows = 0, cols = 0, bands = 0;
  int pitch = 0;  // elements of a whitened pixel: window_pitch(bands), zero past the bands
  const double* exact = nullptr;  // the whitened image in float64; not for a fixed covariance
  const std::uint8_t* pixel_status = nullptr;  // status_ok, status_nonfinite or status_masked
  const BackgroundState* state = nullptr;      // of what the image is whitened by
  int parts = 1;                               // of a number: real and imaginary by turns if 2
  bool center = true;
  bool fixed = false;  // the covariance is the unit matrix, and only the mean that of the window
  bool nan_when_singular = false;
  Border border = Border::shift;
  Window window;
  int needed = 0;  // samples without which there is no score

  const double* targets = nullptr;  // whitened: target_count x pitch
  int target_count = 0;
  MatchedScore kind{};
  int maps = 1;  // scores of a pixel: one for each target; without any, and for a subspace, one

  std::uint8_t* status = nullptr;  // result, per pixel

  // Room.
  std::int32_t* count = nullptr;  // per pixel: samples of its window
  std::uint8_t* weak = nullptr;   // per pixel: to be scored again
  double* matrices = nullptr;     // of window_blocks, window_matrix or window_rows each
};

template <class T>
struct WindowScoresLaunch : WindowsOfImage {
  const T* whitened = nullptr;
  T* score = nullptr;  // those of a pixel side by side
  T* sums = nullptr;   // room: window_sums_room
};

constexpr int window_pitch(int bands) { return (bands + 7) / 8 * 8; }

// How the sliding kernel cuts its work. A team of threads, a warp or a block, walks along a strip
// of one row; every thread owns a square of `tile` x `tile` band pairs of the scatter matrix, or of
// the rows below it: the pixel and the targets. Follows from the sizes alone.
struct StripPlan {
  int tile = 0;  // 0: no team is large enough, each pixel is scored from its own samples
  bool warp = false;
  int tiles = 0;      // of the bands
  int tile_rows = 0;  // of the bands and the rows below
  int squares = 0;
  int strip_cols = 0, strips_per_row = 0;
  std::int64_t strips = 0;
};

// Threads of the largest team, as the registers of the kernels allow.
template <class T>
constexpr int most_squares(int tile) {
  return sizeof(T) == 4 ? 512 : tile == 4 ? 384 : 0;
}

template <class T>
constexpr StripPlan plan_strips(int rows, int cols, int bands, int targets) {
  StripPlan p{};
  for (const int tile : {4, 8}) {
    p.tiles = (bands + tile - 1) / tile;
    p.tile_rows = p.tiles + (1 + targets + tile - 1) / tile;
    p.squares = p.tiles * (p.tiles + 1) / 2 + p.tiles * (p.tile_rows - p.tiles);
    // Large matrices have more arithmetic per load in large squares.
    const bool small = sizeof(T) == 8 || bands <= 64;
    if ((tile == 8 || small) && p.squares <= most_squares<T>(tile)) {
      p.tile = tile;
      break;
    }
  }
  p.warp = p.tile == 4 && p.squares <= 32;
  // Short strips keep all multiprocessors busy, but a strip begins with the sum of a whole window.
  const std::int64_t wanted = p.warp ? 4096 : 512;
  const std::int64_t pixels = static_cast<std::int64_t>(rows) * cols;
  const int length =
      static_cast<int>(std::clamp<std::int64_t>((pixels + wanted - 1) / wanted, 8, 64));
  p.strips_per_row = (cols + length - 1) / length;
  p.strip_cols = (cols + p.strips_per_row - 1) / p.strips_per_row;
  p.strips = static_cast<std::int64_t>(rows) * p.strips_per_row;
  return p;
}

// Blocks that keep their scatter matrices in global memory, where shared memory has no room.
inline constexpr std::int64_t most_sum_blocks = 264;

constexpr std::int64_t strip_sums(const StripPlan& p) {
  return static_cast<std::int64_t>(p.tile) * p.tile * p.squares;
}

// Elements of `sums`.
constexpr std::int64_t window_sums_room(const StripPlan& p) {
  return p.warp ? 0 : strip_sums(p) * std::min(p.strips, most_sum_blocks);
}

// A covariance without its upper triangle, and the rows below it.
constexpr std::int64_t window_matrix(int bands, int targets) {
  return static_cast<std::int64_t>(bands) * (bands + 1) / 2 +
         (1 + static_cast<std::int64_t>(targets)) * bands;
}

// Blocks of the kernels that score pixel by pixel.
constexpr std::int64_t window_blocks(std::int64_t pixels, std::int64_t elements) {
  constexpr std::int64_t most_elements = 1 << 25;
  return std::clamp<std::int64_t>(most_elements / elements, 1, std::min<std::int64_t>(pixels, 528));
}

// Sum, mean, pixel and targets, where only the mean is that of the window.
constexpr std::int64_t window_rows(int pitch, int targets, int parts) {
  return static_cast<std::int64_t>(pitch) * (3 + targets * parts);
}

namespace cuda {
void window_scores(const WindowScoresLaunch<float>& arguments, std::uintptr_t stream);
void window_scores(const WindowScoresLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void window_scores(const WindowScoresLaunch<float>& arguments, std::uintptr_t stream);
void window_scores(const WindowScoresLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

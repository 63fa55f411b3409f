// The Gaussian background of a whole image on a device: statistics, factor in float64, and what is
// scored against it. The counterpart of core/background.hpp, core/estimators.hpp and
// core/whitening.hpp. The ops have checked every argument; nothing here allocates or waits, and
// what depends on the data is decided on the device.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/estimators.hpp"
#include "core/pixel_list.hpp"
#include "core/scratch.hpp"
#include "mahal/estimators.hpp"
#include "mahal/matched_score.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// Rows of a block of the factor. Matrices of n bands stand in memory of padded_rows(n) rows, and
// complex bands are pairs of real ones, as in Moments.
inline constexpr int factor_block = 32;

constexpr int padded_rows(int bands) {
  return (bands + factor_block - 1) / factor_block * factor_block;
}

// What the kernels find out and what later kernels go by. In device memory.
struct BackgroundState {
  std::int64_t count;       // usable samples
  std::int32_t outcome;     // status_ok, few_samples, singular or not_converged of the estimate
  std::int32_t unfactored;  // the covariance is not positive definite
  std::int32_t loaded;      // it is with what was added to its diagonal
  std::int32_t finished;    // an iteration has come to its end
};

template <class T>
struct DevicePixels {
  PixelList<T> list;
  std::int64_t count;
  bool along_bands;  // the bands of a pixel are nearer in memory than its neighbours
};

struct DeviceMask {
  const std::uint8_t* data;  // nonzero: use; or nullptr
  std::int64_t cols;
  std::int64_t row_stride, col_stride;
};

// The pixels are cut by their number and that of the bands alone, so that sums do not depend on the
// device: into scans, which find the usable ones, and into chunks, which give partial sums.
struct SampleChunks {
  int scans;
  std::int64_t scan_pixels;
  int chunks;
  std::int64_t chunk_pixels;
  int tile;   // bands of a tile of the products: 16, 32 or 64
  int pairs;  // tiles of their lower triangle
};

constexpr SampleChunks sample_chunks(std::int64_t pixels, int bands) {
  constexpr std::int64_t least_pixels = 256, most_blocks = 1024, least_chunks = 4,
                         most_scans = 2048;
  SampleChunks c{};
  c.tile = bands <= 16 ? 16 : bands <= 32 ? 32 : 64;
  const int tiles = (bands + c.tile - 1) / c.tile;
  c.pairs = tiles * (tiles + 1) / 2;
  const std::int64_t most =
      most_blocks / c.pairs > least_chunks ? most_blocks / c.pairs : least_chunks;
  c.chunk_pixels = (pixels + most - 1) / most;
  if (c.chunk_pixels < least_pixels) c.chunk_pixels = least_pixels;
  c.chunks = static_cast<int>((pixels + c.chunk_pixels - 1) / c.chunk_pixels);
  c.scan_pixels = (pixels + most_scans - 1) / most_scans;
  if (c.scan_pixels < least_pixels) c.scan_pixels = least_pixels;
  c.scans = static_cast<int>((pixels + c.scan_pixels - 1) / c.scan_pixels);
  return c;
}

// Which pixels are usable, and how many there are.
template <class T>
struct ClassifyLaunch {
  DevicePixels<T> pixels;
  DeviceMask mask;
  SampleChunks cut;
  std::uint8_t* status;  // per pixel: status_ok, status_nonfinite or status_masked
  std::int64_t* counts;  // per scan: usable pixels, and the first of them or the number of pixels
  std::int64_t* firsts;
};

// Mean and covariance of the usable pixels of an image, as estimate_moments.
template <class T>
struct EstimateLaunch {
  ClassifyLaunch<T> samples;
  Estimation estimation;
  double ddof;
  bool center;
  bool mean_only;
  Scale scale;
  std::int64_t needed;  // fewer samples give status_few_samples
  int parts;            // of a number: 1 or 2

  double* mean;        // padded_rows, zero past the bands
  double* covariance;  // padded_rows x padded_rows, both triangles
  BackgroundState* state;

  // Room: of the chunks, and of the estimators that need it.
  double* sums;       // chunks x padded_rows
  double* products;   // pairs x chunks x tile x tile
  double* previous;   // padded_rows x padded_rows
  double* distances;  // per pixel
  double* terms;      // 2 x chunks
  double* lower;
  double* inverse;
  double* tiles;  // of whitening
};

// covariance = L L^T in blocks. `lower` holds L by columns: entry (i, k) at k * padded_rows + i;
// `inverse` the inverses of its blocks on the diagonal, each by columns. Past the bands both
// continue with the identity.
struct FactorLaunch {
  const double* covariance;
  int bands;
  bool load;  // as factor_unit; otherwise as factor_covariance
  double* lower;
  double* inverse;
  BackgroundState* state;
  bool iterating;  // nothing is done once the state says finished
};

// Reads a mean, and starts the state of the background.
template <class T>
struct MeanLaunch {
  PixelList<T> list;
  double* mean;
  BackgroundState* state;
};

// Reads a matrix for FactorLaunch. One that is not symmetric (Hermitian) gets NaN there, and
// thereby fails.
template <class T>
struct MatrixLaunch {
  const T* data;
  std::int64_t row_stride, col_stride;  // in real elements
  int bands;                            // real ones
  int parts;
  double* covariance;
};

// What becomes of the scores of a pixel.
struct Verdicts {
  const std::uint8_t* pixel;     // its own status, or nullptr
  const BackgroundState* state;  // of the background
  bool nan_when_loaded;
  std::uint8_t* status;  // per pixel, or nullptr
};

// Row d of `directions`: padded_rows elements. A target has `parts` rows.
struct Directions {
  const double* rows;
  int targets, parts;
  MatchedScore kind;
};

// y = L^-1 (x - m) of every pixel, and what is made of it: whichever of the outputs are given.
template <class In, class Out>
struct WhitenLaunch {
  DevicePixels<In> pixels;
  const double* mean;   // or nullptr: zero
  const double* lower;  // or nullptr: y = x - m
  const double* inverse;
  Verdicts verdicts;
  Out* whitened;  // pixel i at i * out_stride, `out_bands` elements, zero past the bands
  std::int64_t out_stride;
  int out_bands;
  Out* score;  // |y|^2
  Directions directions;
  Out* matched;    // targets per pixel, or one of a subspace
  bool iterating;  // nothing is done once the state says finished

  double* tiles;  // room: whiten_room(pixels, bands) elements
};

// Pixels that a block of threads whitens at once, and the elements of one of its bands in memory.
// They lie in shared memory where they fit beside what else a kernel keeps there, or in a tile of
// the workspace for each block.
inline constexpr int whiten_tile = 32;
inline constexpr int whiten_pitch = whiten_tile + 1;
inline constexpr std::size_t whiten_shared_bytes = 48 * 1024 - 4352;
inline constexpr std::int64_t whiten_blocks = 1024;  // with a tile in the workspace

constexpr bool whitens_in_shared(int bands) {
  return sizeof(double) * whiten_pitch * static_cast<std::size_t>(bands) <= whiten_shared_bytes;
}
constexpr std::int64_t whiten_grid(std::int64_t pixels) {
  const std::int64_t tiles = (pixels + whiten_tile - 1) / whiten_tile;
  return tiles < whiten_blocks ? tiles : whiten_blocks;
}
constexpr std::int64_t whiten_room(std::int64_t pixels, int bands) {
  return whitens_in_shared(bands) ? 0 : whiten_grid(pixels) * whiten_pitch * bands;
}

// From targets to the rows of Directions. Where a target is not finite, lies on the mean or depends
// on the others of a subspace, its rows are NaN.
template <class T>
struct TargetLaunch {
  DevicePixels<T> targets;
  MatchedScore kind;
  int parts;
  const double* mean;
  const double* lower;
  const double* inverse;
  double* differences;  // targets x padded_rows
  double* whitened;     // likewise
  double* directions;   // targets x parts x padded_rows
  double* tiles;        // room: whiten_room(targets, bands)
};

// Everything above, on the device and in the emulator.
namespace cuda {
struct Background {
  // Errors of a launch are in the name of `op`.
  const char* op;
  std::uintptr_t stream;

  template <class T>
  void classify(const ClassifyLaunch<T>&) const;
  template <class T>
  void estimate(const EstimateLaunch<T>&) const;
  // The results, contiguous, in the dtype of the image; NaN where there are none.
  template <class T>
  void store(const EstimateLaunch<T>&, T* mean, T* covariance) const;
  template <class T>
  void load(const MeanLaunch<T>&) const;
  template <class T>
  void load(const MatrixLaunch<T>&) const;
  void factor(const FactorLaunch&) const;
  template <class In, class Out>
  void whiten(const WhitenLaunch<In, Out>&) const;
  template <class T>
  void prepare(const TargetLaunch<T>&) const;
};
}  // namespace cuda

namespace emulator {
struct Background {
  // Errors of a launch are in the name of `op`.
  const char* op;
  std::uintptr_t stream;

  template <class T>
  void classify(const ClassifyLaunch<T>&) const;
  template <class T>
  void estimate(const EstimateLaunch<T>&) const;
  // The results, contiguous, in the dtype of the image; NaN where there are none.
  template <class T>
  void store(const EstimateLaunch<T>&, T* mean, T* covariance) const;
  template <class T>
  void load(const MeanLaunch<T>&) const;
  template <class T>
  void load(const MatrixLaunch<T>&) const;
  void factor(const FactorLaunch&) const;
  template <class In, class Out>
  void whiten(const WhitenLaunch<In, Out>&) const;
  template <class T>
  void prepare(const TargetLaunch<T>&) const;
};
}  // namespace emulator

// function(Background of the route), which is not Route::cpu.
template <class F>
void with_background(Route route, const char* op, std::uintptr_t stream, const F& function) {
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) function(cuda::Background{op, stream});
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) function(emulator::Background{op, stream});
  }
}

}  // namespace mahal

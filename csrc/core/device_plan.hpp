// From the arguments of an op to the launches of core/device_background.hpp, with their memory cut
// from its workspace. Host side.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/device_background.hpp"
#include "mahal/context.hpp"

namespace mahal {

// Whether a call with arrays on `device` runs the CUDA kernels, as far as its workspace knows.
inline bool runs_on_device(Device device) {
  return device.kind == DeviceKind::cuda || active_backend() == Backend::emulator;
}

template <class T>
DevicePixels<T> device_pixels(const TensorView& x) {
  DevicePixels<T> pixels{};
  pixels.list = pixel_list<T>(x);
  pixels.count = pixel_count(x);
  const std::int64_t across =
      pixels.list.cols > 1 ? pixels.list.col_stride : pixels.list.row_stride;
  pixels.along_bands =
      pixels.count == 1 ||
      std::abs(static_cast<std::int64_t>(pixels.list.band_stride)) <= std::abs(across);
  return pixels;
}

template <class T>
ClassifyLaunch<T> plan_classify(Scratch& scratch, const TensorView& x, const TensorView& mask) {
  ClassifyLaunch<T> launch{};
  launch.pixels = device_pixels<T>(x);
  if (mask.data != nullptr) {
    launch.mask.data = static_cast<const std::uint8_t*>(mask.data);
    launch.mask.cols = mask.shape[mask.rank - 1];
    launch.mask.row_stride = mask.rank == 2 ? mask.strides[0] : 0;
    launch.mask.col_stride = mask.strides[mask.rank - 1];
  }
  launch.cut = sample_chunks(launch.pixels.count, real_bands(x));
  launch.status = scratch.take<std::uint8_t>(launch.pixels.count);
  launch.counts = scratch.take<std::int64_t>(launch.cut.scans);
  launch.firsts = scratch.take<std::int64_t>(launch.cut.scans);
  return launch;
}

// What a background is, once its memory is there: for estimates and given ones alike.
struct DeviceBackground {
  double* mean;        // padded_rows
  double* covariance;  // padded_rows x padded_rows
  double* lower;       // likewise
  double* inverse;     // padded_rows x factor_block
  BackgroundState* state;
};

inline DeviceBackground plan_device_background(Scratch& scratch, int bands) {
  const std::int64_t padded = padded_rows(bands);
  DeviceBackground b{};
  b.mean = scratch.take<double>(padded);
  b.covariance = scratch.take<double>(padded * padded);
  b.lower = scratch.take<double>(padded * padded);
  b.inverse = scratch.take<double>(padded * factor_block);
  b.state = scratch.take<BackgroundState>(1);
  return b;
}

inline FactorLaunch factor_of(const DeviceBackground& b, int bands, bool load) {
  return {b.covariance, bands, load, b.lower, b.inverse, b.state, false};
}

// The divisor, the estimator and the scale are those of estimate_moments; fewer than `needed`
// samples are too few.
template <class T>
EstimateLaunch<T> plan_estimate(Scratch& scratch, const DeviceBackground& background,
                                const TensorView& x, const TensorView& mask,
                                const Normalization& normalization, const Estimation& estimation,
                                Scale scale, std::int64_t needed, bool mean_only) {
  const Estimator estimator = estimation.estimator;
  const bool simple = estimator == Estimator::scm || estimator == Estimator::loading;
  const std::int64_t padded = padded_rows(real_bands(x));
  EstimateLaunch<T> launch{};
  launch.samples = plan_classify<T>(scratch, x, mask);
  launch.estimation = estimation;
  launch.ddof = simple ? normalization.ddof : 0;
  launch.center = normalization.center;
  launch.mean_only = mean_only;
  launch.scale = scale;
  launch.needed = needed;
  launch.parts = is_complex(x.dtype) ? 2 : 1;
  launch.mean = background.mean;
  launch.covariance = background.covariance;
  launch.lower = background.lower;
  launch.inverse = background.inverse;
  launch.state = background.state;
  const SampleChunks& cut = launch.samples.cut;
  launch.sums = scratch.take<double>(cut.chunks * padded);
  if (mean_only) return launch;
  launch.products =
      scratch.take<double>(std::int64_t{cut.pairs} * cut.chunks * cut.tile * cut.tile);
  if (is_fixed_point(estimator)) launch.previous = scratch.take<double>(padded * padded);
  if (is_fixed_point(estimator) || estimator == Estimator::ledoit_wolf) {
    launch.distances = scratch.take<double>(launch.samples.pixels.count);
    launch.terms = scratch.take<double>(cut.chunks);
    const std::int64_t room = whiten_room(launch.samples.pixels.count, real_bands(x));
    if (room > 0) launch.tiles = scratch.take<double>(room);
  }
  return launch;
}

// Room of the whitening of an image; what is taken for earlier phases alone may be rewound before.
inline double* plan_whiten_tiles(Scratch& scratch, std::int64_t pixels, int bands) {
  const std::int64_t room = whiten_room(pixels, bands);
  return room > 0 ? scratch.take<double>(room) : nullptr;
}

// Reads a mean, and starts the state of the background.
template <class Device>
void load_mean(const Device& device, const DeviceBackground& b, const TensorView& mean) {
  dispatch_float(mean.dtype, [&]<class T>() {
    device.load(MeanLaunch<T>{pixel_list<T>(mean), b.mean, b.state});
  });
}
// Reads and factors a covariance. One that is not symmetric (Hermitian) and positive definite is
// told by the state alone.
template <class Device>
void load_covariance(const Device& device, const DeviceBackground& b,
                     const TensorView& covariance) {
  const int parts = is_complex(covariance.dtype) ? 2 : 1;
  const int bands = static_cast<int>(covariance.shape[0]) * parts;
  dispatch_float(covariance.dtype, [&]<class T>() {
    device.load(MatrixLaunch<T>{static_cast<const T*>(covariance.data),
                                parts * covariance.strides[0], parts * covariance.strides[1], bands,
                                parts, b.covariance});
  });
  device.factor(factor_of(b, bands, false));
}

}  // namespace mahal

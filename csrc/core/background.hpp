// The Gaussian background of a whole image: mean, covariance and factor in float64, and whitening
// by it. What rx, whiten, mahalanobis and mean_covariance have in common.
#pragma once

#include <cstdint>

#include "core/pixel_list.hpp"
#include "core/scratch.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// Pixels per task of the work that runs over all pixels; part of the partition, not of the machine.
inline constexpr std::int64_t pixels_per_task = 512;

constexpr int padded_bands(std::int64_t bands) { return static_cast<int>((bands + 15) / 16 * 16); }

// Bands as the kernels count them: two for every complex one.
inline int real_bands(const TensorView& x) {
  return static_cast<int>(x.shape[x.rank - 1]) * (is_complex(x.dtype) ? 2 : 1);
}

// Last axis: bands. The axes before it, at most two, are pixels.
template <class T>
PixelList<T> pixel_list(const TensorView& x) {
  PixelList<T> list{};
  list.data = static_cast<const T*>(x.data);
  list.cols = x.rank >= 2 ? x.shape[x.rank - 2] : 1;
  list.row_stride = x.rank == 3 ? x.strides[0] : 0;
  list.col_stride = x.rank >= 2 ? x.strides[x.rank - 2] : 0;
  list.band_stride = x.strides[x.rank - 1];
  if (is_complex(x.dtype)) {
    list.row_stride *= 2;
    list.col_stride *= 2;
    list.parts = list.band_stride == 1 || x.shape[x.rank - 1] == 1 ? 0 : 1;
    list.band_stride = list.parts ? 2 * list.band_stride : 1;
  }
  list.bands = real_bands(x);
  list.padded = padded_bands(list.bands);
  return list;
}

inline std::int64_t pixel_count(const TensorView& x) {
  std::int64_t count = 1;
  for (int axis = 0; axis + 1 < x.rank; ++axis) count *= x.shape[axis];
  return count;
}

// Reads (targets, bands) spectra into rows of `padded` real elements, the rest zero. Throws
// ValueError in the name of `op` unless all are finite.
void load_targets(const char* op, const TensorView& target, std::int64_t padded, double* rows);

struct Moments {
  // Results. A Hermitian covariance S of complex bands stands in its real form, which is symmetric
  // too: Re S_jk at (2j, 2k) and (2j + 1, 2k + 1), Im S_jk at (2j + 1, 2k), its negative at
  // (2j, 2k + 1). Its Cholesky factor is the real form of that of S.
  double* mean;          // padded
  double* covariance;    // padded x padded, lower triangle
  std::uint8_t* status;  // per pixel: status_ok, status_nonfinite or status_masked
  std::int64_t count;    // usable pixels
  // Partial results of the chunks, and room for the workers.
  std::int64_t pixels, chunks, chunk_pixels;
  int padded;
  double* chunk_sums;
  double* chunk_grams;
  std::int64_t* chunk_counts;
  char* worker_scratch;
};

// What follows in the scratch may share the memory of the partial results, unless they are needed
// `again`, by weighted_moments.
Moments plan_moments(Scratch& scratch, std::int64_t pixels, int bands, int threads,
                     bool again = false);
// Status of every pixel, and count and mean of the usable ones.
void compute_mean(Moments& moments, const TensorView& x, const TensorView& mask, int threads);
// The divisor of the products: with `center` the mean is estimated and the divisor is the number of
// samples less ddof, otherwise the mean is zero by assumption and the divisor is the number.
struct Normalization {
  double ddof = 1;
  bool center = true;
};
// The same, and the sum of the products about the mean over its divisor. False, with a covariance
// left unset, when the divisor is not positive.
bool compute_moments(Moments& moments, const TensorView& x, const TensorView& mask,
                     const Normalization& normalization, int threads);

// After compute_mean or compute_moments: the sum of the products about the mean of every usable
// pixel, both factors scaled by its `scale`.
void weighted_moments(Moments& moments, const TensorView& x, const TensorView& mask,
                      const double* scale, int threads);

struct Factor {
  double* lower;  // padded leading dimension
  double* inverse_diagonal;
  int padded;
};

Factor plan_factor(Scratch& scratch, int bands);
// In place; false when a pivot is not above `smallest_pivot` of its diagonal entry.
bool factor_covariance(const Factor& factor, int bands);
// The same for the covariance of a whole image, loaded as far as it takes to make it invertible:
// true when it was. Of a covariance that is not finite the factor is NaN. `unloaded`: padded x
// padded of scratch.
bool factor_unit(const Factor& factor, double* unloaded, int bands);
// Reads a bands x bands matrix and factors it. Throws ValueError in the name of `op` when it is not
// symmetric (Hermitian) or not positive definite.
void load_covariance(const char* op, const Factor& factor, const TensorView& covariance);

// In the units of the image, where covariances of real scenes go down to 1e-9.
inline constexpr double smallest_pivot = 1e-13;

// Relative to trace / bands: makes a singular covariance of the whole image invertible, so that it
// can serve as the unit of the data. Far below what `rx_loading` then adds to single windows.
inline constexpr double unit_loading = 1e-10;

}  // namespace mahal

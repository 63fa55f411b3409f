#include "core/background.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/dispatch.hpp"
#include "core/threads.hpp"
#include "core/whitening.hpp"
#include "mahal/error.hpp"
#include "ops/cholesky_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

void load_targets(const char* op, const TensorView& target, std::int64_t padded, double* rows) {
  const int bands = real_bands(target);
  dispatch_float(target.dtype, [&]<class T>() {
    const PixelList<T> list = pixel_list<T>(target);
    for (std::int64_t k = 0; k < target.shape[0]; ++k) {
      double* row = rows + k * padded;
      for (int j = 0; j < bands; ++j) {
        row[j] = static_cast<double>(list.data[k * list.col_stride + band_offset(list, j)]);
        if (!std::isfinite(row[j])) {
          throw_value_error(op, "target", "must be finite", std::to_string(row[j]));
        }
      }
      std::fill(row + bands, row + padded, 0.0);
    }
  });
}

namespace {

// At most so many partial Gram matrices are kept; their number follows from the image alone.
constexpr std::int64_t max_chunks = 16;
constexpr std::int64_t min_chunk_pixels = 1024;

}  // namespace

Moments plan_moments(Scratch& scratch, std::int64_t pixels, int bands, int threads, bool again) {
  Moments m{};
  m.pixels = pixels;
  m.padded = padded_bands(bands);
  m.chunk_pixels = std::max(min_chunk_pixels, (pixels + max_chunks - 1) / max_chunks);
  m.chunks = std::max<std::int64_t>(1, (pixels + m.chunk_pixels - 1) / m.chunk_pixels);
  const std::int64_t padded = m.padded;
  m.mean = scratch.take<double>(padded);
  m.covariance = scratch.take<double>(padded * padded);
  m.status = scratch.take<std::uint8_t>(pixels);
  const auto mark = scratch.mark();
  m.chunk_sums = scratch.take<double>(m.chunks * padded);
  m.chunk_grams = scratch.take<double>(m.chunks * padded * padded);
  m.chunk_counts = scratch.take<std::int64_t>(m.chunks);
  m.worker_scratch =
      scratch.take<char>(static_cast<std::int64_t>(moment_scratch_bytes(m.padded)) * threads);
  if (!again) scratch.rewind(mark);
  return m;
}

namespace {

template <class T>
MomentBlock<T> block_of(const Moments& m, const TensorView& x, const TensorView& mask,
                        std::int64_t chunk, int worker) {
  const std::int64_t padded = m.padded;
  MomentBlock<T> block{};
  block.pixels = pixel_list<T>(x);
  block.begin = chunk * m.chunk_pixels;
  block.end = std::min(m.pixels, block.begin + m.chunk_pixels);
  if (mask.data) {
    block.mask = static_cast<const std::uint8_t*>(mask.data);
    block.mask_cols = mask.shape[mask.rank - 1];
    block.mask_row_stride = mask.rank == 2 ? mask.strides[0] : 0;
    block.mask_col_stride = mask.strides[mask.rank - 1];
  }
  block.status = m.status;
  block.mean = m.mean;
  block.sum = m.chunk_sums + chunk * padded;
  block.gram = m.chunk_grams + chunk * padded * padded;
  block.scratch =
      m.worker_scratch + worker * static_cast<std::int64_t>(moment_scratch_bytes(m.padded));
  return block;
}

template <class T>
void load_first_usable(const MomentBlock<T>& b, std::int64_t pixels, double* spectrum) {
  const PixelList<T>& list = b.pixels;
  for (std::int64_t i = 0; i < pixels; ++i) {
    if (b.mask &&
        !b.mask[i / b.mask_cols * b.mask_row_stride + i % b.mask_cols * b.mask_col_stride]) {
      continue;
    }
    const T* pixel = list.data + i / list.cols * list.row_stride + i % list.cols * list.col_stride;
    bool finite = true;
    for (int j = 0; j < list.bands && finite; ++j)
      finite = std::isfinite(pixel[band_offset(list, j)]);
    if (!finite) continue;
    for (int j = 0; j < list.bands; ++j) {
      spectrum[j] = static_cast<double>(pixel[band_offset(list, j)]);
    }
    return;
  }
}

}  // namespace

void compute_mean(Moments& m, const TensorView& x, const TensorView& mask, int threads) {
  const std::int64_t padded = m.padded;
  // Relative to a pixel of its own, a constant image has sums that are exactly zero.
  std::fill_n(m.mean, padded, 0.0);
  dispatch_float(x.dtype, [&]<class T>() {
    load_first_usable(block_of<T>(m, x, mask, 0, 0), m.pixels, m.mean);
  });
  dispatch_float(x.dtype, [&]<class T>() {
    dispatch_isa([&]<Isa I>() {
      parallel_for(threads, m.chunks, [&](std::int64_t chunk, int worker) {
        MomentBlock<T> block = block_of<T>(m, x, mask, chunk, worker);
        MeanCovarianceKernel<I>::sum(block);
        m.chunk_counts[chunk] = block.count;
      });
    });
  });
  // Chunks are joined in their order, so the result does not depend on the threads.
  m.count = 0;
  for (std::int64_t chunk = 0; chunk < m.chunks; ++chunk) m.count += m.chunk_counts[chunk];
  for (std::int64_t j = 0; j < padded; ++j) {
    double sum = 0;
    for (std::int64_t chunk = 0; chunk < m.chunks; ++chunk) sum += m.chunk_sums[chunk * padded + j];
    if (m.count > 0) m.mean[j] += sum / static_cast<double>(m.count);
  }
}

namespace {

// From the products of the real and imaginary parts to z z^H.
void make_hermitian(double* covariance, int bands, std::int64_t padded) {
  for (int i = 0; i < bands; i += 2) {
    double* even = covariance + i * padded;
    double* odd = even + padded;
    for (int j = 0; j <= i; j += 2) {
      const double real = even[j] + odd[j + 1];
      // Only the lower triangle is there.
      const double imaginary = i == j ? 0.0 : odd[j] - even[j + 1];
      even[j] = odd[j + 1] = real;
      odd[j] = imaginary;
      even[j + 1] = -imaginary;
    }
  }
}

void sum_products(const Moments& m, const TensorView& x, const TensorView& mask,
                  const double* scale, int threads) {
  dispatch_float(x.dtype, [&]<class T>() {
    dispatch_isa([&]<Isa I>() {
      parallel_for(threads, m.chunks, [&](std::int64_t chunk, int worker) {
        MomentBlock<T> block = block_of<T>(m, x, mask, chunk, worker);
        block.scale = scale;
        MeanCovarianceKernel<I>::gram(block);
      });
    });
  });
}

// The products of all chunks, less those of the sum `rest` of all pixels, over the divisor.
void join_products(Moments& m, const TensorView& x, const double* rest, double divisor) {
  const std::int64_t padded = m.padded;
  const double samples = static_cast<double>(m.count);
  for (std::int64_t i = 0; i < padded; ++i) {
    for (std::int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (std::int64_t chunk = 0; chunk < m.chunks; ++chunk) {
        sum += m.chunk_grams[(chunk * padded + i) * padded + j];
      }
      m.covariance[i * padded + j] = (sum - rest[i] * rest[j] / samples) / divisor;
    }
  }
  if (is_complex(x.dtype)) make_hermitian(m.covariance, real_bands(x), padded);
}

}  // namespace

bool compute_moments(Moments& m, const TensorView& x, const TensorView& mask,
                     const Normalization& normalization, int threads) {
  compute_mean(m, x, mask, threads);
  const bool center = normalization.center;
  const double degrees = static_cast<double>(m.count) - (center ? normalization.ddof : 0.0);
  if (!(degrees > 0)) return false;
  if (!center) std::fill_n(m.mean, m.padded, 0.0);
  sum_products(m, x, mask, nullptr, threads);
  // What rounding left in the mean is taken out of the products.
  const std::int64_t padded = m.padded;
  double* rest = m.chunk_sums;
  for (std::int64_t j = 0; j < padded; ++j) {
    for (std::int64_t chunk = 1; chunk < m.chunks; ++chunk) {
      rest[j] += m.chunk_sums[chunk * padded + j];
    }
    if (!center) rest[j] = 0;
  }
  join_products(m, x, rest, degrees);
  return true;
}

void weighted_moments(Moments& m, const TensorView& x, const TensorView& mask, const double* scale,
                      int threads) {
  sum_products(m, x, mask, scale, threads);
  std::fill_n(m.chunk_sums, m.padded, 0.0);
  join_products(m, x, m.chunk_sums, 1);
}

Factor plan_factor(Scratch& scratch, int bands) {
  Factor factor;
  factor.padded = padded_bands(bands);
  factor.lower = scratch.take<double>(static_cast<std::int64_t>(factor.padded) * factor.padded);
  factor.inverse_diagonal = scratch.take<double>(factor.padded);
  return factor;
}

bool factor_covariance(const Factor& factor, int bands) {
  return dispatch_isa([&]<Isa I>() {
    return CholeskyKernel<I>::factor_one(factor.lower, bands, factor.padded, smallest_pivot,
                                         factor.inverse_diagonal);
  });
}

bool factor_unit(const Factor& factor, double* unloaded, int bands) {
  const std::int64_t size = static_cast<std::int64_t>(factor.padded) * factor.padded;
  std::copy_n(factor.lower, size, unloaded);
  if (factor_covariance(factor, bands)) return false;
  double trace = 0;
  for (int j = 0; j < bands; ++j) trace += unloaded[j * (factor.padded + 1LL)];
  // A constant image has no scale of its own.
  double extra = trace > 0 ? unit_loading * trace / bands : 1.0;
  for (; std::isfinite(extra); extra *= 10) {
    std::copy_n(unloaded, size, factor.lower);
    for (int j = 0; j < bands; ++j) factor.lower[j * (factor.padded + 1LL)] += extra;
    if (factor_covariance(factor, bands)) return true;
  }
  // The products of the image have left the range of the type.
  std::fill_n(factor.lower, size, std::numeric_limits<double>::quiet_NaN());
  std::fill_n(factor.inverse_diagonal, factor.padded, std::numeric_limits<double>::quiet_NaN());
  return true;
}

void load_covariance(const char* op, const Factor& factor, const TensorView& covariance) {
  const bool hermitian = is_complex(covariance.dtype);
  const std::int64_t bands = covariance.shape[0];
  dispatch_float(covariance.dtype, [&]<class T>() {
    const T* data = static_cast<const T*>(covariance.data);
    const auto part = [&](std::int64_t i, std::int64_t j, int which) {
      const std::int64_t at = i * covariance.strides[0] + j * covariance.strides[1];
      return static_cast<double>(data[hermitian ? 2 * at + which : at]);
    };
    const auto real = [&](std::int64_t i, std::int64_t j) { return part(i, j, 0); };
    const auto imaginary = [&](std::int64_t i, std::int64_t j) {
      return hermitian ? part(i, j, 1) : 0.0;
    };
    const double rounding = 64.0 * static_cast<double>(std::numeric_limits<T>::epsilon());
    for (std::int64_t i = 0; i < bands; ++i) {
      for (std::int64_t j = 0; j <= i; ++j) {
        if (hermitian) {
          double* even = factor.lower + 2 * i * factor.padded + 2 * j;
          double* odd = even + factor.padded;
          even[0] = odd[1] = real(i, j);
          odd[0] = imaginary(i, j);
          even[1] = -odd[0];
        } else {
          factor.lower[i * factor.padded + j] = real(i, j);
        }
        const double difference =
            std::hypot(real(i, j) - real(j, i), imaginary(i, j) + imaginary(j, i));
        if (difference > rounding * std::sqrt(std::abs(real(i, i) * real(j, j)))) {
          throw_value_error(op, "covariance", hermitian ? "must be Hermitian" : "must be symmetric",
                            "entries (" + std::to_string(i) + ", " + std::to_string(j) + ") and (" +
                                std::to_string(j) + ", " + std::to_string(i) + ") that differ");
        }
      }
    }
  });
  if (!factor_covariance(factor, real_bands(covariance))) {
    throw_value_error(op, "covariance", "must be positive definite to working precision",
                      "a singular or non-finite matrix");
  }
}

void load_fixed_background(const char* op, const FixedBackground& background,
                           const TensorView& mean, const TensorView& covariance) {
  const int bands = real_bands(mean);
  std::fill_n(background.mean, padded_bands(bands), 0.0);
  dispatch_float(mean.dtype, [&]<class T>() {
    const PixelList<T> list = pixel_list<T>(mean);
    for (int j = 0; j < bands; ++j) {
      background.mean[j] = static_cast<double>(list.data[band_offset(list, j)]);
    }
  });
  load_covariance(op, background.factor, covariance);
}

}  // namespace mahal

#include "core/gram.hpp"
#include "core/pixels.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
constexpr int L = S::lanes;

template <class T>
MAHAL_INLINE bool used(const MomentBlock<T>& b, std::int64_t i) {
  return !b.mask ||
         b.mask[i / b.mask_cols * b.mask_row_stride + i % b.mask_cols * b.mask_col_stride];
}

// A panel of usable pixels is summed on its own before it joins the total, so that rounding grows
// with the number of panels and not of pixels.
template <class T>
void sum_pixels(MomentBlock<T>& b) {
  const int padded = b.pixels.padded;
  double* row = static_cast<double*>(b.scratch);
  double* part = row + padded;
  for (int j = 0; j < padded; ++j) part[j] = b.sum[j] = 0;
  b.count = 0;
  int in_part = 0;
  for (std::int64_t i = b.begin; i < b.end; ++i) {
    if (!used(b, i)) {
      b.status[i] = status_masked;
      continue;
    }
    load_centred(b.pixels, pixel_address(b.pixels, i), b.mean, row);
    auto poison = S::zero();
    for (int j = 0; j < padded; j += L) poison = S::fma(S::load(row + j), S::zero(), poison);
    alignas(64) double lane[L];
    S::store(lane, poison);
    double total = 0;
    for (int l = 0; l < L; ++l) total += lane[l];
    if (!(total == 0)) {
      b.status[i] = status_nonfinite;
      continue;
    }
    b.status[i] = status_ok;
    ++b.count;
    for (int j = 0; j < padded; j += L) {
      S::store(part + j, S::load(part + j) + S::load(row + j));
    }
    if (++in_part == moment_pixels) {
      in_part = 0;
      for (int j = 0; j < padded; ++j) {
        b.sum[j] += part[j];
        part[j] = 0;
      }
    }
  }
  for (int j = 0; j < padded; ++j) b.sum[j] += part[j];
}

template <class T>
void gram_pixels(const MomentBlock<T>& b) {
  const int padded = b.pixels.padded;
  double* panel = static_cast<double*>(b.scratch);
  const double** list =
      reinterpret_cast<const double**>(panel + static_cast<std::ptrdiff_t>(moment_pixels) * padded);
  for (int k = 0; k < moment_pixels; ++k) list[k] = panel + static_cast<std::ptrdiff_t>(k) * padded;
  for (int j = 0; j < padded; ++j) b.sum[j] = 0;
  bool fresh = true;
  std::int64_t i = b.begin;
  do {
    int n = 0;
    for (; i < b.end && n < moment_pixels; ++i) {
      if (b.status[i] != status_ok) continue;
      double* row = panel + static_cast<std::ptrdiff_t>(n++) * padded;
      load_centred(b.pixels, pixel_address(b.pixels, i), b.mean, row);
      if (!b.scale) continue;
      const auto scale = S::set1(b.scale[i]);
      for (int j = 0; j < padded; j += L) S::store(row + j, S::load(row + j) * scale);
    }
    signed_gram<S>(list, n, 0, padded, b.gram, padded, !fresh);
    fresh = false;
    for (int j = 0; j < padded; j += L) {
      auto v = S::load(b.sum + j);
      for (int k = 0; k < n; ++k) v = v + S::load(list[k] + j);
      S::store(b.sum + j, v);
    }
  } while (i < b.end);
}

}  // namespace

template <>
void MeanCovarianceKernel<current_isa>::sum(MomentBlock<float>& b) {
  sum_pixels(b);
}
template <>
void MeanCovarianceKernel<current_isa>::sum(MomentBlock<double>& b) {
  sum_pixels(b);
}
template <>
void MeanCovarianceKernel<current_isa>::gram(const MomentBlock<float>& b) {
  gram_pixels(b);
}
template <>
void MeanCovarianceKernel<current_isa>::gram(const MomentBlock<double>& b) {
  gram_pixels(b);
}

}  // namespace mahal

// Gradients of what core/device_background.hpp scores: the kernels that the backward ops share. All
// intermediate results are in float64, rows of one pixel after the other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/device_background.hpp"
#include "mahal/detector_backward.hpp"

namespace mahal {

// out = offset + sum over k of (in_k - mean_k) matrix[k * matrix_row + j * matrix_col] for every
// pixel, or added to what is there. Pixels whose status is not 0 become, or stay, zero.
template <class In, class Out>
struct RowsLaunch {
  DevicePixels<In> pixels;
  const double* mean;    // or nullptr: zero
  const double* matrix;  // or nullptr: zero
  std::int64_t matrix_row, matrix_col;
  const double* offset;        // or nullptr: zero
  const std::uint8_t* status;  // per pixel, or nullptr
  bool add;
  Out* out;  // pixel i at i * bands
};

// sums[i * cols + j] = sum over the pixels of weight * left_i * right_j. Pixels of weight 0 take no
// part, whatever they hold.
template <class Right>
struct CrossLaunch {
  const double* left;  // pixel p at p * rows; or nullptr: ones, one row
  int rows;
  DevicePixels<Right> right;
  int cols;              // the bands, or one more, which is 1
  const double* weight;  // pixel p at p * weight_stride; or nullptr: ones
  std::int64_t weight_stride;
  double scale;
  double* sums;
  double* parts;  // room: cross_chunks(pixels) x rows x cols
};

inline constexpr int cross_tile = 32;

// Follows from the number of pixels alone, so that sums do not depend on the device.
constexpr std::int64_t cross_chunk_pixels(std::int64_t pixels) {
  return std::max<std::int64_t>(256, (pixels + 63) / 64);
}
constexpr std::int64_t cross_chunks(std::int64_t pixels) {
  const std::int64_t chunk = cross_chunk_pixels(pixels);
  return (pixels + chunk - 1) / chunk;
}

// What the scores of a pixel depend on. Whitened targets w and their duals u = S^-1 (t - m) are
// rows of padded_rows(bands); i w and i u follow from them where parts = 2.
template <class T>
struct SlopesLaunch {
  DetectorScore score;
  int bands, targets, parts;
  std::int64_t pixels;
  const double* y;  // whitened pixels
  const double* z;  // S^-1 (x - m)
  const double* w;
  const double* u;
  const double* squares;       // targets: |w|^2
  const std::uint8_t* status;  // per pixel, or nullptr
  const T* grad;
  std::int64_t grad_cols, grad_row, grad_col, grad_map;
  // Rows of slope_count(): 2 s_b, s_a of every direction, s_c of every target.
  double* slopes;
  T* image;  // 2 s_b z + s_a u, or nullptr
};

constexpr int slope_count(int targets, int parts) { return 1 + targets * (parts + 1); }

// Gradients of targets, mean and covariance from the sums over the pixels.
struct FinishLaunch {
  int bands, targets, parts;
  const double* gram;   // bands x bands: sum of 2 s_b z z^T
  const double* cross;  // slope_count x (bands + 1): sums of slope * (z, 1)
  const double* u;
  const BackgroundState* state;
  double* matrix;  // bands x bands, room for the gradient of the real form
  double* target;  // targets x bands
  double* mean;    // bands
  double* out;     // covariance, in parts; or nullptr
  double* spread;  // bands x bands: 2 H / divisor, and
  double* offset;  // bands: mean / samples; or nullptr
  int ddof;
  bool center;
};

// What gradients of mean and covariance mean for every pixel, from where they lie. Strides are in
// numbers of `parts` elements.
template <class G>
struct SpreadMatrixLaunch {
  const G* mean;        // or nullptr: zero
  const G* covariance;  // or nullptr: zero
  std::int64_t mean_stride, row_stride, col_stride;
  int bands, parts;
  double ddof;
  bool center;
  const BackgroundState* state;
  double* spread;  // bands x bands: (G + G^H) / divisor, in its real form, or nullptr
  double* offset;  // bands: mean / samples, or nullptr
};

// From the gradient of a real form to that of the matrix, contiguous.
struct FoldLaunch {
  const double* matrix;  // bands x bands
  int bands, parts;
  double* out;
};

namespace cuda {
struct Gradients {
  const char* op;
  std::uintptr_t stream;

  template <class In, class Out>
  void rows(const RowsLaunch<In, Out>&) const;
  template <class Right>
  void cross(const CrossLaunch<Right>&) const;
  template <class T>
  void slopes(const SlopesLaunch<T>&) const;
  void finish(const FinishLaunch&) const;
  template <class G>
  void spread(const SpreadMatrixLaunch<G>&) const;
  void fold(const FoldLaunch&) const;
  // Contiguous rows of the identity, and |w|^2 of the rows of `padded` elements.
  void identity(double* matrix, int n) const;
  void squares(const double* rows, int count, int bands, int padded, double* out) const;
};
}  // namespace cuda

namespace emulator {
struct Gradients {
  const char* op;
  std::uintptr_t stream;

  template <class In, class Out>
  void rows(const RowsLaunch<In, Out>&) const;
  template <class Right>
  void cross(const CrossLaunch<Right>&) const;
  template <class T>
  void slopes(const SlopesLaunch<T>&) const;
  void finish(const FinishLaunch&) const;
  template <class G>
  void spread(const SpreadMatrixLaunch<G>&) const;
  void fold(const FoldLaunch&) const;
  // Contiguous rows of the identity, and |w|^2 of the rows of `padded` elements.
  void identity(double* matrix, int n) const;
  void squares(const double* rows, int count, int bands, int padded, double* out) const;
};
}  // namespace emulator

// The gradients that go with a Background of core/device_background.hpp.
inline cuda::Gradients gradients_of(const cuda::Background& b) { return {b.op, b.stream}; }
inline emulator::Gradients gradients_of(const emulator::Background& b) { return {b.op, b.stream}; }

// Contiguous rows of `bands` elements, or of more.
inline DevicePixels<double> device_rows(const double* rows, std::int64_t count, int bands,
                                        std::int64_t stride) {
  return {{rows, count, 0, stride, 1, 0, bands, padded_bands(bands)}, count, true};
}

}  // namespace mahal

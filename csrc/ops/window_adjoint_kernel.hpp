// Sums over windows, and the adjoint of window covariances: what a gradient of every window does to
// the samples in it. Plain data only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.hpp"

namespace mahal {

// For every position of one axis the positions that it is summed over: at most three intervals, one
// unless borders are mirrored. Interval s of position i: [begin[s * length + i],
// end[s * length + i]).
struct WindowSpans {
  const std::int32_t* begin;
  const std::int32_t* end;
  int count;
  std::int64_t length;
};

inline constexpr int window_spans = 3;

// Rows [row_begin, row_end) and columns [col_begin, col_end) of the result. Every pixel p gives a
// symmetric matrix M_p and a vector b_p, and the sample at q gets A x_q - b, where A and b are the
// sums of M_p and b_p over the windows p that hold q, those of the inner window less.
template <class T>
struct WindowAdjointBlock {
  int bands;
  std::int64_t cols;      // of the image: every map below is row-major
  const double* samples;  // zero where a pixel is not a sample
  std::ptrdiff_t sample_stride;
  WindowSpans row_spans[2], col_spans[2];  // of the outer and the inner window
  int windows;                             // 2 with an inner one
  int row_begin, row_end, col_begin, col_end;
  int source_begin, source_end;  // columns of all spans of [col_begin, col_end)
  bool matrices;                 // false: all M_p are zero
  const std::uint8_t* status;    // per pixel, or nullptr; those not 0 get 0

  // Sources of adjoint(): gradients of window means and covariances. M = (G + G^H) / (n - ddof) and
  // b = M m - g / n. A complex G is one of real and imaginary parts by turns.
  const T* covariance;  // or nullptr, and then `matrices` is false
  std::ptrdiff_t covariance_row, covariance_col, covariance_i, covariance_j;  // strides
  bool hermitian;
  const T* mean;  // or nullptr
  std::ptrdiff_t mean_row, mean_col, mean_i;
  const double* means;        // bands of every pixel, or nullptr: zero
  const std::int32_t* count;  // samples per pixel, 0: gives nothing; or nullptr: `samples_each`
  int samples_each;
  int ddof;

  // Sources of low_rank(): `rank` vectors a_i per pixel, and
  // M = sum_ij a_i C_ij a_j^T, b = sum_i beta_i a_i, C_ij = 0 for 0 < i != j > 0. The result gets
  // sum_i delta_i a_i of its own pixel on top.
  const double* vectors;  // zeros where a pixel gives nothing
  std::ptrdiff_t vector_pixel, vector_stride;
  int rank;
  const double* coefficients;  // adjoint_coefficients(rank) per pixel: C_0i, C_ii from i = 1,
                               // beta, delta, and 1 where they are not finite and stand as zeros

  // Result of means(): sum over the window / count. That of the others is multiplied by L^-T where
  // a factor is given.
  double* out_means;  // bands per pixel
  T* out;             // bands per pixel
  bool accumulate;
  const double* factor;
  std::ptrdiff_t factor_stride;
  const double* inverse_diagonal;
  void* scratch;  // scratch_bytes(), 64-byte aligned
};

constexpr int adjoint_coefficients(int rank) { return 4 * rank; }

template <Isa I>
struct WindowAdjointKernel {
  static std::size_t scratch_bytes(const WindowAdjointBlock<float>&);
  static std::size_t scratch_bytes(const WindowAdjointBlock<double>&);
  static void means(const WindowAdjointBlock<double>&);
  static void adjoint(const WindowAdjointBlock<float>&);
  static void adjoint(const WindowAdjointBlock<double>&);
  static void low_rank(const WindowAdjointBlock<float>&);
  static void low_rank(const WindowAdjointBlock<double>&);
};

}  // namespace mahal

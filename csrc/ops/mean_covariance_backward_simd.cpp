#include "core/pixels.hpp"
#include "core/substitution.hpp"
#include "ops/mean_covariance_backward_kernel.hpp"

namespace mahal {
namespace {

constexpr int P = substitution_width;

template <class T>
void spread(const SpreadBlock<T>& b) {
  const int n = b.pixels.bands;
  const std::ptrdiff_t padded = b.pixels.padded;
  double* rows = static_cast<double*>(b.scratch);
  double* x = rows + P * padded;
  double* y = x + P * padded;
  for (std::int64_t first = b.begin; first < b.end; first += P) {
    const int count = b.end - first < P ? static_cast<int>(b.end - first) : P;
    for (int l = 0; l < P; ++l) {
      double* row = rows + l * padded;
      if (l < count && b.status[first + l] == 0 && b.matrix) {
        load_centred(b.pixels, pixel_address(b.pixels, first + l), b.mean, row);
      } else {
        for (int j = 0; j < padded; ++j) row[j] = 0;
      }
    }
    if (b.matrix) {
      rows_to_panel(rows, padded, n, x);
      multiply_panel(b.matrix, b.offset, padded, n, x, y);
      panel_to_rows(y, padded, n, rows);
    } else {
      for (int l = 0; l < count; ++l) {
        for (int j = 0; j < n; ++j) rows[l * padded + j] = b.offset[j];
      }
    }
    for (int l = 0; l < count; ++l) {
      const double* row = rows + l * padded;
      const bool used = b.status[first + l] == 0;
      T* out = b.out + (first + l) * n;
      for (int j = 0; j < n; ++j) {
        const double before = b.add ? static_cast<double>(out[j]) : 0.0;
        out[j] = static_cast<T>(used ? before + row[j] : before);
      }
    }
  }
}

}  // namespace

template <>
void MeanCovarianceBackwardKernel<current_isa>::run(const SpreadBlock<float>& b) {
  spread(b);
}
template <>
void MeanCovarianceBackwardKernel<current_isa>::run(const SpreadBlock<double>& b) {
  spread(b);
}

}  // namespace mahal

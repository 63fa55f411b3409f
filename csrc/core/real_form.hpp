// Complex matrices as real ones of twice the size: Re a_ij at (2i, 2j) and (2i + 1, 2j + 1),
// Im a_ij at (2i + 1, 2j), its negative at (2i, 2j + 1). Products, inverses and Cholesky factors of
// the real form are the real form of theirs. Real matrices (parts = 1) are their own.
#pragma once

#include <cstdint>

namespace mahal {

struct RealForm {
  double real, imaginary;
};

// Writes one entry; of a `triangular` matrix only what is not above the diagonal.
inline void put_real_form(double* matrix, std::int64_t ld, int parts, int i, int j, RealForm value,
                          bool triangular = false) {
  if (parts == 1) {
    matrix[i * ld + j] = value.real;
    return;
  }
  double* even = matrix + 2 * i * ld + 2 * j;
  double* odd = even + ld;
  even[0] = odd[1] = value.real;
  odd[0] = value.imaginary;
  if (i != j || !triangular) even[1] = -value.imaginary;
}

// From the gradient of every entry of a real form to that of one complex entry.
inline RealForm from_real_form(const double* matrix, std::int64_t ld, int parts, int i, int j) {
  if (parts == 1) return {matrix[i * ld + j], 0};
  const double* even = matrix + 2 * i * ld + 2 * j;
  const double* odd = even + ld;
  return {even[0] + odd[1], odd[0] - even[1]};
}

// The same of all n x n entries, to a contiguous matrix.
inline void write_real_form(const double* matrix, std::int64_t ld, int parts, int n, double* out) {
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j, out += parts) {
      const RealForm value = from_real_form(matrix, ld, parts, i, j);
      out[0] = value.real;
      if (parts == 2) out[1] = value.imaginary;
    }
  }
}

}  // namespace mahal

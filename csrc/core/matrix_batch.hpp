// Batches of small matrices with any strides.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "mahal/tensor.hpp"

namespace mahal {

// The axes before the matrices of two arrays of one shape, joined where both allow.
struct MatrixBatch {
  int rank = 0;
  std::int64_t count = 1;
  std::int64_t shape[max_rank], a_strides[max_rank], b_strides[max_rank];
};

inline MatrixBatch matrix_batch(const TensorView& a, const TensorView& b) {
  MatrixBatch batch;
  for (int axis = 0; axis + 2 < a.rank; ++axis) {
    const std::int64_t n = a.shape[axis];
    batch.count *= n;
    if (n == 1) continue;
    const int last = batch.rank - 1;
    if (last >= 0 && batch.a_strides[last] == n * a.strides[axis] &&
        batch.b_strides[last] == n * b.strides[axis]) {
      batch.shape[last] *= n;
      batch.a_strides[last] = a.strides[axis];
      batch.b_strides[last] = b.strides[axis];
    } else {
      batch.shape[batch.rank] = n;
      batch.a_strides[batch.rank] = a.strides[axis];
      batch.b_strides[batch.rank++] = b.strides[axis];
    }
  }
  return batch;
}

struct MatrixOffsets {
  std::int64_t a, b;
};
inline MatrixOffsets matrix_offsets(const MatrixBatch& batch, std::int64_t index) {
  MatrixOffsets at{0, 0};
  for (int axis = batch.rank - 1; axis >= 0; --axis) {
    const std::int64_t k = axis > 0 ? index % batch.shape[axis] : index;
    index /= batch.shape[axis];
    at.a += k * batch.a_strides[axis];
    at.b += k * batch.b_strides[axis];
  }
  return at;
}

// Keeps a task near 10^5 operations.
inline std::int64_t matrix_packs_per_task(std::int64_t p) {
  return std::max<std::int64_t>(1, 8192 / (p * p));
}

// Of a matrix of real (parts = 1) or complex numbers; strides are in elements of T.
template <class T>
bool lower_is_finite(const T* m, std::ptrdiff_t rows, std::ptrdiff_t cols, int n, int parts) {
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      const T* element = m + i * rows + j * cols;
      if (!std::isfinite(element[0])) return false;
      if (parts == 2 && j < i && !std::isfinite(element[1])) return false;
    }
  }
  return true;
}

}  // namespace mahal

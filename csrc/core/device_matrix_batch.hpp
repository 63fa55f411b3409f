// Batches of small matrices with any strides, in kernels.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/device_hermitian.hpp"
#include "core/matrix_batch.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

__device__ __forceinline__ MatrixOffsets device_matrix_offsets(const MatrixBatch& batch,
                                                               std::int64_t index) {
  MatrixOffsets at{0, 0};
  for (int axis = batch.rank - 1; axis >= 0; --axis) {
    const std::int64_t k = axis > 0 ? index % batch.shape[axis] : index;
    index /= batch.shape[axis];
    at.a += k * batch.a_strides[axis];
    at.b += k * batch.b_strides[axis];
  }
  return at;
}

// Entry `at` of an array of float or double, or of pairs of these where N is complex.
template <class N>
__device__ __forceinline__ N read_number(const void* array, bool single, std::int64_t at) {
  using Single = std::conditional_t<is_complex_number<N>, Complex<float>, float>;
  return single ? to_number<N>(static_cast<const Single*>(array)[at])
                : static_cast<const N*>(array)[at];
}
template <class N>
__device__ __forceinline__ void write_number(void* array, bool single, std::int64_t at, N value) {
  using Single = std::conditional_t<is_complex_number<N>, Complex<float>, float>;
  if (single) {
    static_cast<Single*>(array)[at] = to_number<Single>(value);
  } else {
    static_cast<N*>(array)[at] = value;
  }
}

// A matrix in memory; its strides are in entries.
struct MatrixSource {
  const void* data;
  bool single;
  std::int64_t offset, row_stride, col_stride;
};

// Copies a lower triangle, whose diagonal is taken for real, and the diagonal itself. Returns 0 in
// threads that met a value that is not finite, and 1 in others.
template <int Size, class N>
__device__ __forceinline__ double load_lower(const HermitianTeam<Size, N>& math,
                                             const MatrixSource& from, Entries<N> to,
                                             Reals diagonal) {
  double finite = 1;
  math.each_lower(0, [&](int i, int j) {
    N value = read_number<N>(from.data, from.single,
                             from.offset + i * from.row_stride + j * from.col_stride);
    if (i == j) {
      diagonal[i] = real_part(value);
      value = to_number<N>(diagonal[i]);
    }
    if (!is_finite(value)) finite = 0;
    to(i, j) = value;
  });
  return finite;
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

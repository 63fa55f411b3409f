// Entry of the kernels in csrc/ops/structural_similarity.cu. The op has checked every argument;
// nothing here allocates or waits.
#pragma once

#include <cstdint>

#include "core/origin_tiles.hpp"
#include "mahal/structural_similarity.hpp"

namespace mahal {

inline constexpr int most_similarity_window = 1023;

// Strides are in elements; the score is contiguous.
template <class T>
struct StructuralSimilarityLaunch {
  const T* images[2] = {nullptr, nullptr};
  std::int64_t row_strides[2] = {0, 0}, col_strides[2] = {0, 0}, channel_strides[2] = {0, 0};
  int rows = 0, cols = 0;
  std::int64_t channels = 0;
  int edge = 0;  // rows and columns at each side that have no window of their own
  StructuralSimilarityParams params;
  int tile_rows = 0;          // of the pixels of a block
  double* weights = nullptr;  // window
  double* origins = nullptr;  // tiles x channels x 2
  T* score = nullptr;
};

namespace cuda {
void structural_similarity(const StructuralSimilarityLaunch<float>& arguments,
                           std::uintptr_t stream);
void structural_similarity(const StructuralSimilarityLaunch<double>& arguments,
                           std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void structural_similarity(const StructuralSimilarityLaunch<float>& arguments,
                           std::uintptr_t stream);
void structural_similarity(const StructuralSimilarityLaunch<double>& arguments,
                           std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

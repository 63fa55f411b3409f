// Entry of the kernels in csrc/ops/structural_similarity_backward.cu. The op has checked every
// argument; nothing here allocates or waits.
#pragma once

#include <cstdint>

#include "ops/structural_similarity_cuda.hpp"

namespace mahal {

inline constexpr int similarity_factors = 4;

// Gradients are contiguous.
template <class T>
struct StructuralSimilarityBackwardLaunch {
  StructuralSimilarityLaunch<T> images;  // without a score
  // By the sums of every window: factors x channels x rows x columns. Those of pixels without a
  // window are not used.
  double* derivatives = nullptr;
  const T* grad = nullptr;
  T* gradients[2] = {nullptr, nullptr};  // null where not wanted
};

namespace cuda {
void structural_similarity_backward(const StructuralSimilarityBackwardLaunch<float>& arguments,
                                    std::uintptr_t stream);
void structural_similarity_backward(const StructuralSimilarityBackwardLaunch<double>& arguments,
                                    std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void structural_similarity_backward(const StructuralSimilarityBackwardLaunch<float>& arguments,
                                    std::uintptr_t stream);
void structural_similarity_backward(const StructuralSimilarityBackwardLaunch<double>& arguments,
                                    std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

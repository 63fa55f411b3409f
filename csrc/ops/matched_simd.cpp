#include "core/isa.hpp"
#include "core/pixels.hpp"
#include "ops/matched_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

template <class T>
void linear_scores(const LinearBlock<T>& b) {
  const int padded = b.pixels.padded;
  for (std::int64_t i = b.begin; i < b.end; ++i) {
    load_centred(b.pixels, pixel_address(b.pixels, i), b.mean, b.row);
    for (int k = 0; k < b.count; ++k) {
      const double* direction = b.directions + static_cast<std::ptrdiff_t>(k) * padded;
      V even = S::zero();
      V odd = S::zero();
      for (int j = 0; j < padded; j += 2 * L) {
        even = S::fma(S::load(direction + j), S::load(b.row + j), even);
        odd = S::fma(S::load(direction + j + L), S::load(b.row + j + L), odd);
      }
      b.score[i * b.count + k] = static_cast<T>(S::sum(even + odd));
    }
  }
}

}  // namespace

template <>
void MatchedKernel<current_isa>::linear(const LinearBlock<float>& b) {
  linear_scores(b);
}
template <>
void MatchedKernel<current_isa>::linear(const LinearBlock<double>& b) {
  linear_scores(b);
}

}  // namespace mahal

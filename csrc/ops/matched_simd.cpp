#include "core/isa.hpp"
#include "core/pixels.hpp"
#include "ops/matched_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

MAHAL_INLINE double product(const double* a, const double* b, int n) {
  V even = S::zero();
  V odd = S::zero();
  for (int j = 0; j < n; j += 2 * L) {
    even = S::fma(S::load(a + j), S::load(b + j), even);
    odd = S::fma(S::load(a + j + L), S::load(b + j + L), odd);
  }
  return S::sum(even + odd);
}

template <class T>
void linear_scores(const LinearBlock<T>& b) {
  const int padded = b.pixels.padded;
  for (std::int64_t i = b.begin; i < b.end; ++i) {
    load_centred(b.pixels, pixel_address(b.pixels, i), b.mean, b.row);
    const double* direction = b.directions;
    for (int k = 0; k < b.count; ++k, direction += padded) {
      double value = product(direction, b.row, padded);
      if (b.pairs) {
        direction += padded;
        const double other = product(direction, b.row, padded);
        value = __builtin_sqrt(value * value + other * other);
      }
      b.score[i * b.count + k] = static_cast<T>(value);
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

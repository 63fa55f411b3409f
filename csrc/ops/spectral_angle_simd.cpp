#include "core/isa.hpp"
#include "core/pixels.hpp"
#include "ops/spectral_angle_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

// The largest element goes first, so that no square leaves the range of the type.
MAHAL_INLINE void unit(double* row, int padded) {
  V top = S::zero();
  for (int j = 0; j < padded; j += L) {
    const V v = S::load(row + j);
    top = S::max(top, S::max(v, -v));
  }
  alignas(64) double lane[L];
  S::store(lane, top);
  double largest = 0;
  for (int l = 0; l < L; ++l) largest = lane[l] > largest ? lane[l] : largest;
  V total = S::zero();
  for (int j = 0; j < padded; j += L) {
    const V v = S::load(row + j) / S::set1(largest);
    total = S::fma(v, v, total);
    S::store(row + j, v);
  }
  const V length = S::set1(__builtin_sqrt(S::sum(total)));
  for (int j = 0; j < padded; j += L) S::store(row + j, S::load(row + j) / length);
}

template <class T>
void chords_of(const AngleBlock<T>& b) {
  const int padded = b.pixels.padded;
  for (std::int64_t i = b.begin; i < b.end; ++i) {
    load_centred(b.pixels, pixel_address(b.pixels, i), b.zeros, b.row);
    unit(b.row, padded);
    for (int k = 0; k < b.count; ++k) {
      const double* target = b.targets + static_cast<std::ptrdiff_t>(k) * padded;
      V apart = S::zero();
      V across = S::zero();
      for (int j = 0; j < padded; j += L) {
        const V u = S::load(b.row + j);
        const V t = S::load(target + j);
        apart = S::fma(u - t, u - t, apart);
        across = S::fma(u + t, u + t, across);
      }
      double* chord = b.chord + 2 * ((i - b.begin) * b.count + k);
      chord[0] = S::sum(apart);
      chord[1] = S::sum(across);
    }
  }
}

}  // namespace

template <>
void SpectralAngleKernel<current_isa>::normalize(double* row, int padded) {
  unit(row, padded);
}
template <>
void SpectralAngleKernel<current_isa>::chords(const AngleBlock<float>& b) {
  chords_of(b);
}
template <>
void SpectralAngleKernel<current_isa>::chords(const AngleBlock<double>& b) {
  chords_of(b);
}

}  // namespace mahal

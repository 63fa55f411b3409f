// Elementary functions of float64 lanes. Kernel side.
#pragma once

#include "core/simd.hpp"

namespace mahal {
namespace {

template <class S>
struct LaneMath {
  using V = typename S::V;
  using W = typename VectorOf<std::int64_t, static_cast<int>(sizeof(V))>::type;

  static MAHAL_INLINE V select(W mask, V a, V b) { return mask ? a : b; }
  static MAHAL_INLINE V abs(V x) {
    return reinterpret_cast<V>(reinterpret_cast<W>(x) & 0x7fffffffffffffff);
  }

  // ln x of positive normal numbers, within 3 ulp: the mantissa m is taken between sqrt(1/2) and
  // sqrt(2), where ln m = 2 artanh((m - 1) / (m + 1)) needs eleven terms.
  static MAHAL_INLINE V log(V x) {
    constexpr std::int64_t root_half = 0x3fe6a09e667f3bcd;
    // Unsigned, as other numbers, whose result does not count, may wrap around.
    using U = typename VectorOf<std::uint64_t, static_cast<int>(sizeof(V))>::type;
    const W shifted =
        reinterpret_cast<W>(reinterpret_cast<U>(x) - static_cast<std::uint64_t>(root_half));
    const W exponent = shifted >> 52;
    const V m = reinterpret_cast<V>((shifted & 0x000fffffffffffff) + root_half);
    const V k = __builtin_convertvector(exponent, V);
    const V f = m - S::set1(1);
    const V s = f / (m + S::set1(1));
    const V z = s * s;
    V p = S::set1(1.0 / 23);
    MAHAL_UNROLL
    for (int i = 21; i >= 3; i -= 2) p = S::fma(p, z, S::set1(1.0 / i));
    // 2 s + 2 s z p, with k ln 2 in two parts of which the first is exact.
    const V two_s = s + s;
    const V tail = S::fma(k, S::set1(1.90821492927058770002e-10), two_s * z * p);
    return S::fma(k, S::set1(6.93147180369123816490e-01), two_s + tail);
  }

  // Estimates for angles, which need not be exact.
  static MAHAL_INLINE V rough_rsqrt(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      const V y = _mm512_maskz_rsqrt14_pd(0xff, x);
      return S::fma(y, S::fnma(x * S::set1(0.5) * y, y, S::set1(0.5)), y);
    }
#endif
    return S::set1(1) / S::sqrt(x);
  }
  static MAHAL_INLINE V rough_reciprocal(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      const V y = _mm512_maskz_rcp14_pd(0xff, x);
      return S::fma(y, S::fnma(x, y, S::set1(1)), y);
    }
#endif
    return S::set1(1) / x;
  }
  // 1 / sqrt(x) within 2 ulp: an estimate y of 14 bits times the series of 1 / sqrt(1 - f), where
  // f = 1 - x y^2.
  static MAHAL_INLINE V inverse_root(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) {
      const V y = _mm512_maskz_rsqrt14_pd(0xff, x);
      const V f = S::fnma(x * y, y, S::set1(1));
      const V series = S::fma(S::fma(S::set1(5.0 / 16), f, S::set1(3.0 / 8)), f, S::set1(0.5));
      return S::fma(y * f, series, y);
    }
#endif
    return S::set1(1) / S::sqrt(x);
  }
};

}  // namespace
}  // namespace mahal

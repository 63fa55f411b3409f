// The exponential of float32 and float64 lanes. Kernel side.
#pragma once

#include "core/simd.hpp"

namespace mahal {
namespace {

template <class S>
struct LaneExp {
  using T = typename S::value_type;
  using V = typename S::V;
  static constexpr bool wide = sizeof(T) == 8;
  template <class A, bool first, class B>
  struct Either {
    using type = A;
  };
  template <class A, class B>
  struct Either<A, false, B> {
    using type = B;
  };
  using I = typename Either<std::int64_t, wide, std::int32_t>::type;
  using W = typename VectorOf<I, static_cast<int>(sizeof(V))>::type;

  // exp x within 2 ulp; 0 below the normal range, infinity above it, NaN of NaN. x = k ln 2 + r
  // with |r| <= ln 2 / 2, the series of exp r, and 2^k in two factors, as it may leave the range.
  static MAHAL_INLINE V exp(V x) {
    constexpr int mantissa = wide ? 52 : 23;
    constexpr int bias = wide ? 1023 : 127;
    constexpr T lowest = wide ? T(-708.5) : T(-87.5);
    constexpr T highest = wide ? T(710) : T(89);
    constexpr T magic = wide ? T(6755399441055744.0) : T(12582912.0);
    // The order of the arguments lets NaN through.
    x = S::min(S::set1(highest), S::max(S::set1(lowest), x));
    const V shifted = S::fma(x, S::set1(T(1.44269504088896340736)), S::set1(magic));
    const V k = shifted - S::set1(magic);
    constexpr T high = wide ? T(6.93147180369123816490e-01) : T(0.693359375);
    constexpr T low = wide ? T(1.90821492927058770002e-10) : T(-2.12194440054690583e-4);
    const V r = S::fnma(k, S::set1(low), S::fnma(k, S::set1(high), x));
    constexpr int terms = wide ? 13 : 7;
    V p = S::set1(reciprocal_factorial(terms));
    MAHAL_UNROLL
    for (int i = terms - 1; i >= 0; --i) p = S::fma(p, r, S::set1(reciprocal_factorial(i)));
    // The low bits of `shifted` hold k.
    const W whole = reinterpret_cast<W>(shifted) - reinterpret_cast<W>(S::set1(magic));
    const W half = whole >> 1;
    const V first = reinterpret_cast<V>((half + bias) << mantissa);
    const V second = reinterpret_cast<V>((whole - half + bias) << mantissa);
    return p * first * second;
  }

 private:
  static constexpr T reciprocal_factorial(int n) {
    double product = 1;
    for (int i = 2; i <= n; ++i) product *= i;
    return static_cast<T>(1 / product);
  }
};

}  // namespace
}  // namespace mahal

// One SIMD type for every kernel. Included by *_simd.cpp only, which are compiled once per
// instruction set; everything here has internal linkage, so no copy can leak into another level.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define MAHAL_INLINE inline __attribute__((always_inline))
#define MAHAL_UNROLL _Pragma("GCC unroll 16")

namespace mahal {
namespace {

#if defined(__AVX512F__)
inline constexpr int native_bytes = 64;
#elif defined(__AVX__)
inline constexpr int native_bytes = 32;
#else
inline constexpr int native_bytes = 16;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
inline constexpr int vector_registers = 32;
#else
inline constexpr int vector_registers = 16;
#endif

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes), may_alias));
  typedef T unaligned __attribute__((vector_size(Bytes), aligned(alignof(T)), may_alias));
};

template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

template <class T, int Bytes = native_bytes>
struct Simd {
  using value_type = T;
  using V = typename VectorOf<T, Bytes>::type;
  static constexpr int lanes = Bytes / static_cast<int>(sizeof(T));

  static MAHAL_INLINE V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static MAHAL_INLINE V loadu(const T* p) {
    return *reinterpret_cast<const typename VectorOf<T, Bytes>::unaligned*>(p);
  }
  static MAHAL_INLINE void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }
  static MAHAL_INLINE void storeu(T* p, V v) {
    *reinterpret_cast<typename VectorOf<T, Bytes>::unaligned*>(p) = v;
  }
  template <int... I>
  static MAHAL_INLINE V broadcast(T x, Indices<I...>) {
    return V{(static_cast<void>(I), x)...};
  }
  static MAHAL_INLINE V set1(T x) { return broadcast(x, typename MakeIndices<lanes>::type{}); }
  static MAHAL_INLINE V zero() { return V{}; }
  static MAHAL_INLINE V min(V a, V b) { return a < b ? a : b; }
  static MAHAL_INLINE V max(V a, V b) { return a > b ? a : b; }
  // Whether a > b in any lane.
  static MAHAL_INLINE bool any_greater(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (Bytes == 64 && sizeof(T) == 8) return _mm512_cmp_pd_mask(a, b, _CMP_GT_OQ) != 0;
#endif
#if defined(__AVX__)
    if constexpr (Bytes == 32 && sizeof(T) == 8) return _mm256_movemask_pd(a > b) != 0;
#endif
    bool any = false;
    MAHAL_UNROLL
    for (int i = 0; i < lanes; ++i) any |= a[i] > b[i];
    return any;
  }

  // Conversions between float64 lanes and as many lanes of U.
  template <class U>
  using Lanes = typename VectorOf<U, static_cast<int>(sizeof(U)) * lanes>::type;
  template <class U>
  static MAHAL_INLINE V widen(const U* p) {
    const Lanes<U> v = Simd<U, static_cast<int>(sizeof(U)) * lanes>::loadu(p);
#if defined(__AVX512F__)
    if constexpr (Bytes == 64 && sizeof(T) == 8 && sizeof(U) == 4) return _mm512_cvtps_pd(v);
#endif
    return __builtin_convertvector(v, V);
  }
  static MAHAL_INLINE Lanes<float> narrow(V v) {
#if defined(__AVX512F__)
    if constexpr (Bytes == 64 && sizeof(T) == 8) return _mm512_cvtpd_ps(v);
#endif
    return __builtin_convertvector(v, Lanes<float>);
  }

  // a * b + c, fused where the instruction set can.
  static MAHAL_INLINE V fma(V a, V b, V c) {
#if defined(__FMA__)
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
      if constexpr (Bytes == 64) return _mm512_fmadd_ps(a, b, c);
#endif
      if constexpr (Bytes == 32) return _mm256_fmadd_ps(a, b, c);
    } else {
#if defined(__AVX512F__)
      if constexpr (Bytes == 64) return _mm512_fmadd_pd(a, b, c);
#endif
      if constexpr (Bytes == 32) return _mm256_fmadd_pd(a, b, c);
    }
#endif
    return a * b + c;
  }
  // c - a * b
  static MAHAL_INLINE V fnma(V a, V b, V c) {
#if defined(__FMA__)
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
      if constexpr (Bytes == 64) return _mm512_fnmadd_ps(a, b, c);
#endif
      if constexpr (Bytes == 32) return _mm256_fnmadd_ps(a, b, c);
    } else {
#if defined(__AVX512F__)
      if constexpr (Bytes == 64) return _mm512_fnmadd_pd(a, b, c);
#endif
      if constexpr (Bytes == 32) return _mm256_fnmadd_pd(a, b, c);
    }
#endif
    return c - a * b;
  }

  static MAHAL_INLINE V sqrt(V x) {
#if defined(__x86_64__)
    if constexpr (sizeof(T) == 4) {
#if defined(__AVX512F__)
      if constexpr (Bytes == 64) return _mm512_sqrt_ps(x);
#endif
#if defined(__AVX__)
      if constexpr (Bytes == 32) return _mm256_sqrt_ps(x);
#endif
      if constexpr (Bytes == 16) return _mm_sqrt_ps(x);
    } else {
#if defined(__AVX512F__)
      if constexpr (Bytes == 64) return _mm512_sqrt_pd(x);
#endif
#if defined(__AVX__)
      if constexpr (Bytes == 32) return _mm256_sqrt_pd(x);
#endif
      if constexpr (Bytes == 16) return _mm_sqrt_pd(x);
    }
#else
    V r;
    for (int i = 0; i < lanes; ++i)
      r[i] = sizeof(T) == 4 ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
    return r;
#endif
  }

  // 1 / sqrt(x). float32 on AVX-512: 14-bit estimate and one Newton step (about one ulp), which
  // keeps the chain of pivots short; elsewhere square root and division.
  static MAHAL_INLINE V rsqrt(V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4 && Bytes == 64) {
      V y = _mm512_rsqrt14_ps(x);
      const V t = fnma(x * T(0.5) * y, y, set1(T(0.5)));
      return fma(y, t, y);
    }
#endif
#if defined(__AVX512VL__)
    if constexpr (sizeof(T) == 4 && Bytes == 32) {
      V y = _mm256_rsqrt14_ps(x);
      const V t = fnma(x * T(0.5) * y, y, set1(T(0.5)));
      return fma(y, t, y);
    }
#endif
    return T(1) / sqrt(x);
  }

  template <int K, int... I>
  static MAHAL_INLINE V shift_up_impl(V v, Indices<I...>) {
    return __builtin_shufflevector(v, V{}, (I < K ? lanes + I : I - K)...);
  }
  // Lane l takes lane l - K; the first K lanes become zero.
  template <int K>
  static MAHAL_INLINE V shift_up(V v) {
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) {
      const __m512i w = reinterpret_cast<__m512i>(v);
      if constexpr (sizeof(T) == 4) {
        return reinterpret_cast<V>(_mm512_alignr_epi32(w, _mm512_setzero_si512(), 16 - K));
      } else {
        return reinterpret_cast<V>(_mm512_alignr_epi64(w, _mm512_setzero_si512(), 8 - K));
      }
    }
#endif
    return shift_up_impl<K>(v, typename MakeIndices<lanes>::type{});
  }

  // The same value, which the compiler must keep in a register and not load once per use.
  static MAHAL_INLINE V in_register(V v) {
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#endif
    return v;
  }

  // Inclusive prefix sum over the lanes.
  static MAHAL_INLINE V prefix_sum(V v) {
    v = v + shift_up<1>(v);
    if constexpr (lanes > 2) v = v + shift_up<2>(v);
    if constexpr (lanes > 4) v = v + shift_up<4>(v);
    if constexpr (lanes > 8) v = v + shift_up<8>(v);
    return v;
  }

  // Sum over the lanes, always in the same order.
  static MAHAL_INLINE T sum(V v) {
    T total = v[0];
    MAHAL_UNROLL
    for (int i = 1; i < lanes; ++i) total += v[i];
    return total;
  }

  template <int S, int... I>
  static MAHAL_INLINE void exchange(V& a, V& b, Indices<I...>) {
    const V lo = __builtin_shufflevector(a, b, ((I & S) ? lanes + I - S : I)...);
    const V hi = __builtin_shufflevector(a, b, ((I & S) ? lanes + I : I + S)...);
    a = lo;
    b = hi;
  }
  template <int S>
  static MAHAL_INLINE void transpose_stage(V* r) {
    MAHAL_UNROLL
    for (int i = 0; i < lanes; ++i)
      if (!(i & S)) exchange<S>(r[i], r[i + S], typename MakeIndices<lanes>::type{});
  }
  // In-register transposition of a lanes x lanes block held in r[0 .. lanes).
  static MAHAL_INLINE void transpose(V* r) {
    transpose_stage<1>(r);
    if constexpr (lanes > 2) transpose_stage<2>(r);
    if constexpr (lanes > 4) transpose_stage<4>(r);
    if constexpr (lanes > 8) transpose_stage<8>(r);
  }

  // Store past the cache where the address allows it.
  static MAHAL_INLINE void stream(T* p, V v) {
#if defined(__AVX512F__)
    if constexpr (Bytes == 64) {
      if ((reinterpret_cast<std::uintptr_t>(p) & 63) == 0) {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i>(v));
        return;
      }
    }
#endif
#if defined(__x86_64__)
    if constexpr (Bytes == 16) {
      if ((reinterpret_cast<std::uintptr_t>(p) & 15) == 0) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(v));
        return;
      }
    }
#endif
#if defined(__AVX__)
    if constexpr (Bytes == 32) {
      if ((reinterpret_cast<std::uintptr_t>(p) & 31) == 0) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(v));
        return;
      }
    }
#endif
    storeu(p, v);
  }
};

// Asks for memory that is read a while later. Any address will do.
MAHAL_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

MAHAL_INLINE void store_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Ticks of a clock of constant rate.
MAHAL_INLINE std::uint64_t time_stamp() {
#if defined(__x86_64__)
  return __rdtsc();
#else
  return 0;
#endif
}

// dst[k * stride + l] = src[l][k] for k in [0, n): L strided sources become lane-interleaved.
// Sources must be readable in whole vectors up to round_up(n, lanes) when `padded` is set.
template <class S, bool padded>
MAHAL_INLINE void interleave(const typename S::value_type* const* src, int n,
                             typename S::value_type* dst, std::ptrdiff_t stride) {
  using V = typename S::V;
  constexpr int L = S::lanes;
  int k = 0;
  for (; k + L <= n; k += L) {
    V r[L];
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) r[l] = S::loadu(src[l] + k);
    S::transpose(r);
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) S::store(dst + (k + l) * stride, r[l]);
  }
  if (k == n) return;
  if constexpr (padded) {
    V r[L];
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) r[l] = S::loadu(src[l] + k);
    S::transpose(r);
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l)
      if (k + l < n) S::store(dst + (k + l) * stride, r[l]);
  } else {
    for (; k < n; ++k)
      for (int l = 0; l < L; ++l) dst[k * stride + l] = src[l][k];
  }
}

}  // namespace
}  // namespace mahal

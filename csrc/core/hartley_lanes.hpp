// The discrete Hartley transform of every lane. Kernel side; core/hartley.hpp has the plan.
#pragma once

#include "core/hartley.hpp"
#include "core/simd.hpp"

namespace mahal {
namespace {

// cos(2 pi k / 16), k = 0 .. 4
inline constexpr double hartley_cosines[5] = {
    1.0, 0.92387953251128675613, 0.70710678118654752440, 0.38268343236508977173, 0.0,
};

template <class S>
struct Hartley {
  using T = typename S::value_type;
  using V = typename S::V;
  static constexpr int L = S::lanes;

  // out[f] of N elements in[0], in[step], ..., by halves: with the transforms even and odd of every
  // second element, H[f] = even[f] + odd[f] cos + odd[-f] sin.
  template <int N, int step>
  static MAHAL_INLINE void in_registers(const V* in, V* out) {
    if constexpr (N == 1) {
      out[0] = in[0];
    } else if constexpr (N == 2) {
      out[0] = in[0] + in[step];
      out[1] = in[0] - in[step];
    } else {
      constexpr int m = N / 2;
      V even[m], odd[m];
      in_registers<m, 2 * step>(in, even);
      in_registers<m, 2 * step>(in + step, odd);
      out[0] = even[0] + odd[0];
      out[m] = even[0] - odd[0];
      out[m / 2] = even[m / 2] + odd[m / 2];
      out[m / 2 + m] = even[m / 2] - odd[m / 2];
    MAHAL_UNROLL
      for (int k = 1; k < (m + 1) / 2; ++k) {
        const V c = S::set1(static_cast<T>(hartley_cosines[k * (16 / N)]));
        const V s = S::set1(static_cast<T>(hartley_cosines[4 - k * (16 / N)]));
        const V up = S::fma(odd[k], c, odd[m - k] * s);
        const V down = S::fnma(odd[k], s, odd[m - k] * c);
        out[k] = even[k] + up;
        out[k + m] = even[k] - up;
        out[N - k] = even[m - k] + down;
        out[m - k] = even[m - k] - down;
      }
    }
  }

  // Joins `radix` transforms of size m, one after the other in w, for one k: with A_r turned by the
  // angle 2 pi r k / n into the pair (u, v) at k and -k, the result at k + q m is the sum of
  // u cos(2 pi r q / radix) + v sin(2 pi r q / radix), and at -k + q m the same with u and v
  // exchanged. `count` such groups follow each other and share the angles.
  static MAHAL_INLINE void join_4(T* w, std::ptrdiff_t ld, int m, int k, int count,
                                  const T* twiddle) {
    const int other = k == 0 ? 0 : m - k;
    V c[3], s[3];
    MAHAL_UNROLL
    for (int r = 0; r < 3; ++r) {
      c[r] = S::in_register(S::set1(twiddle[2 * r]));
      s[r] = S::in_register(S::set1(twiddle[2 * r + 1]));
    }
    for (int group = 0; group < count; ++group, w += 4 * m * ld) {
      T* near = w + k * ld;
      T* far = w + other * ld;
      const std::ptrdiff_t step = m * ld;
      const V u0 = S::load(near);
      const V v0 = S::load(far);
      V u[3], v[3];
      MAHAL_UNROLL
      for (int r = 0; r < 3; ++r) {
        const V a = S::load(near + (r + 1) * step);
        const V b = S::load(far + (r + 1) * step);
        u[r] = S::fma(a, c[r], b * s[r]);
        v[r] = S::fnma(a, s[r], b * c[r]);
      }
      const V even_u = u0 + u[1], odd_u = u0 - u[1], sum_u = u[0] + u[2], gap_v = v[0] - v[2];
      S::store(near, even_u + sum_u);
      S::store(near + step, odd_u + gap_v);
      S::store(near + 2 * step, even_u - sum_u);
      S::store(near + 3 * step, odd_u - gap_v);
      if (other == k) continue;
      const V even_v = v0 + v[1], odd_v = v0 - v[1], sum_v = v[0] + v[2], gap_u = u[0] - u[2];
      S::store(far, odd_v + gap_u);
      S::store(far + step, even_v - sum_v);
      S::store(far + 2 * step, odd_v - gap_u);
      S::store(far + 3 * step, even_v + sum_v);
    }
  }

  static MAHAL_INLINE void join_2(T* w, std::ptrdiff_t ld, int m, int k, int count,
                                  const T* twiddle) {
    const int other = k == 0 ? 0 : m - k;
    const V c = S::set1(twiddle[0]);
    const V s = S::set1(twiddle[1]);
    for (int group = 0; group < count; ++group, w += 2 * m * ld) {
      T* near = w + k * ld;
      T* far = w + other * ld;
      const V u0 = S::load(near);
      const V v0 = S::load(far);
      const V a = S::load(near + m * ld);
      const V b = S::load(far + m * ld);
      const V u = S::fma(a, c, b * s);
      const V v = S::fnma(a, s, b * c);
      S::store(near, u0 + u);
      S::store(near + m * ld, u0 - u);
      if (other == k) continue;
      S::store(far, v0 - v);
      S::store(far + m * ld, v0 + v);
    }
  }

  // Any odd radix; room holds 2 radix vectors. r and radix - r have the same cosine and opposite
  // sines, as have q and radix - q.
  static void join_odd(T* w, std::ptrdiff_t ld, int m, int k, int radix, const T* roots,
                       const T* twiddle, T* room) {
    const int other = k == 0 ? 0 : m - k;
    const int half = radix / 2;
    const V u0 = S::load(w + k * ld);
    const V v0 = S::load(w + other * ld);
    V total_u = u0, total_v = v0;
    for (int r = 1; r <= half; ++r) {
      V u[2], v[2];
      MAHAL_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int at = i == 0 ? r : radix - r;
        const V a = S::load(w + (static_cast<std::ptrdiff_t>(at) * m + k) * ld);
        const V b = S::load(w + (static_cast<std::ptrdiff_t>(at) * m + other) * ld);
        const V c = S::set1(twiddle[2 * (at - 1)]);
        const V s = S::set1(twiddle[2 * (at - 1) + 1]);
        u[i] = S::fma(a, c, b * s);
        v[i] = S::fnma(a, s, b * c);
      }
      T* pair = room + 4 * (r - 1) * L;
      S::store(pair, u[0] + u[1]);
      S::store(pair + L, u[0] - u[1]);
      S::store(pair + 2 * L, v[0] + v[1]);
      S::store(pair + 3 * L, v[0] - v[1]);
      total_u = total_u + u[0] + u[1];
      total_v = total_v + v[0] + v[1];
    }
    const auto at = [&](int q, int offset) {
      return w + (static_cast<std::ptrdiff_t>(q) * m + offset) * ld;
    };
    S::store(at(0, k), total_u);
    // -k + q m is element m - k of the block before q.
    if (other != k) S::store(at(radix - 1, other), total_v);
    for (int q = 1; q <= half; ++q) {
      V cos_u = u0, sin_v = S::zero(), cos_v = v0, sin_u = S::zero();
      int root = 0;
      for (int r = 1; r <= half; ++r) {
        root += q;
        if (root >= radix) root -= radix;
        const V c = S::set1(roots[2 * root]);
        const V s = S::set1(roots[2 * root + 1]);
        const T* pair = room + 4 * (r - 1) * L;
        cos_u = S::fma(S::load(pair), c, cos_u);
        sin_u = S::fma(S::load(pair + L), s, sin_u);
        cos_v = S::fma(S::load(pair + 2 * L), c, cos_v);
        sin_v = S::fma(S::load(pair + 3 * L), s, sin_v);
      }
      S::store(at(q, k), cos_u + sin_v);
      S::store(at(radix - q, k), cos_u - sin_v);
      if (other != k) {
        S::store(at(q - 1, other), cos_v + sin_u);
        S::store(at(radix - q - 1, other), cos_v - sin_u);
      }
    }
  }

  // All stages over w, which holds the transforms of the base size, block after block. room holds
  // 2 * largest vectors.
  static MAHAL_INLINE void join(const HartleyPlan<T>& plan, T* w, std::ptrdiff_t ld, T* room) {
    const T* twiddles = plan.twiddles;
    int m = plan.base;
    for (int s = 0; s < plan.stages; ++s) {
      const int radix = plan.radix[s];
      const T* roots = twiddles;
      if (radix % 2 == 1) twiddles += 2 * radix;
      const int size = radix * m, count = plan.n / size;
      const T* twiddle = twiddles;
      for (int k = 0; k <= m / 2; ++k, twiddle += 2 * (radix - 1)) {
        if (radix == 4) {
          join_4(w, ld, m, k, count, twiddle);
        } else if (radix == 2) {
          join_2(w, ld, m, k, count, twiddle);
        } else {
          for (int group = 0; group < count; ++group) {
            join_odd(w + static_cast<std::ptrdiff_t>(group) * size * ld, ld, m, k, radix, roots,
                     twiddle, room);
          }
        }
      }
      twiddles += 2 * (radix - 1) * (m / 2 + 1);
      m = size;
    }
  }

  // w[f] of the rows that load(j) gives, j = 0 .. n - 1.
  template <int base, class Load>
  static MAHAL_INLINE void transform(const HartleyPlan<T>& plan, Load load, T* w,
                                     std::ptrdiff_t ld, T* room) {
    for (int b = 0; b < plan.blocks; ++b) {
      const int first = plan.first[b];
      V in[base], out[base];
      MAHAL_UNROLL
      for (int t = 0; t < base; ++t) in[t] = load(first + t * plan.blocks);
      in_registers<base, 1>(in, out);
      T* to = w + static_cast<std::ptrdiff_t>(b) * base * ld;
      MAHAL_UNROLL
      for (int t = 0; t < base; ++t) S::store(to + t * ld, out[t]);
    }
    join(plan, w, ld, room);
  }
};

}  // namespace
}  // namespace mahal

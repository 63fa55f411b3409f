// Small symmetric (C = 1) and Hermitian (C = 2) matrices, one per float64 lane. Component c of
// element (i, j) of every matrix lies at a[((i * ld + j) * C + c) * lanes]. Kernel side.
#pragma once

#include "core/interleaved_cholesky.hpp"
#include "core/lane_math.hpp"

namespace mahal {
namespace {

// A real or complex number per lane.
template <class S, int C>
struct Number {
  using V = typename S::V;
  static constexpr int L = S::lanes;
  V v[C];

  static MAHAL_INLINE Number zero() {
    Number r;
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) r.v[c] = S::zero();
    return r;
  }
  static MAHAL_INLINE Number load(const double* p) {
    Number r;
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) r.v[c] = S::load(p + c * L);
    return r;
  }
  static MAHAL_INLINE Number real(V x) {
    Number r = zero();
    r.v[0] = x;
    return r;
  }
  MAHAL_INLINE void store(double* p) const {
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) S::store(p + c * L, v[c]);
  }
  MAHAL_INLINE Number conj() const {
    Number r = *this;
    if constexpr (C == 2) r.v[1] = -v[1];
    return r;
  }
  MAHAL_INLINE Number scaled(V x) const {
    Number r;
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) r.v[c] = v[c] * x;
    return r;
  }
  MAHAL_INLINE Number operator-(const Number& o) const {
    Number r;
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) r.v[c] = v[c] - o.v[c];
    return r;
  }
  // sum + |x|^2
  MAHAL_INLINE V add_square(V sum) const {
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) sum = S::fma(v[c], v[c], sum);
    return sum;
  }
  // += a b, -= a b, -= a conj(b), += conj(a) b, -= conj(a) b
  MAHAL_INLINE void add_product(const Number& a, const Number& b) {
    v[0] = S::fma(a.v[0], b.v[0], v[0]);
    if constexpr (C == 2) {
      v[0] = S::fnma(a.v[1], b.v[1], v[0]);
      v[1] = S::fma(a.v[0], b.v[1], S::fma(a.v[1], b.v[0], v[1]));
    }
  }
  MAHAL_INLINE void sub_product(const Number& a, const Number& b) {
    v[0] = S::fnma(a.v[0], b.v[0], v[0]);
    if constexpr (C == 2) {
      v[0] = S::fma(a.v[1], b.v[1], v[0]);
      v[1] = S::fnma(a.v[0], b.v[1], S::fnma(a.v[1], b.v[0], v[1]));
    }
  }
  MAHAL_INLINE void sub_conj(const Number& a, const Number& b) {
    v[0] = S::fnma(a.v[0], b.v[0], v[0]);
    if constexpr (C == 2) {
      v[0] = S::fnma(a.v[1], b.v[1], v[0]);
      v[1] = S::fma(a.v[0], b.v[1], S::fnma(a.v[1], b.v[0], v[1]));
    }
  }
  MAHAL_INLINE void add_conj_first(const Number& a, const Number& b) {
    v[0] = S::fma(a.v[0], b.v[0], v[0]);
    if constexpr (C == 2) {
      v[0] = S::fma(a.v[1], b.v[1], v[0]);
      v[1] = S::fma(a.v[0], b.v[1], S::fnma(a.v[1], b.v[0], v[1]));
    }
  }
  MAHAL_INLINE void sub_conj_first(const Number& a, const Number& b) {
    v[0] = S::fnma(a.v[0], b.v[0], v[0]);
    if constexpr (C == 2) {
      v[0] = S::fnma(a.v[1], b.v[1], v[0]);
      v[1] = S::fnma(a.v[0], b.v[1], S::fma(a.v[1], b.v[0], v[1]));
    }
  }
};

// Leading dimension that spreads the rows over the sets of the cache.
MAHAL_INLINE int lane_leading(int n) { return n < 8 ? n : n | 1; }

template <class S, int C>
struct Hermitian {
  using V = typename S::V;
  using Num = Number<S, C>;
  using Math = LaneMath<S>;
  static constexpr int L = S::lanes;

  static MAHAL_INLINE double* at(double* a, int ld, int i, int j) {
    return a + (static_cast<std::ptrdiff_t>(i) * ld + j) * (C * L);
  }
  static MAHAL_INLINE const double* at(const double* a, int ld, int i, int j) {
    return a + (static_cast<std::ptrdiff_t>(i) * ld + j) * (C * L);
  }

  // Lower Cholesky factor in place, with the reciprocals of its diagonal. A pivot must exceed
  // `tolerance` times the entry of `scale`, by default its diagonal entry; the margin is positive
  // in the lanes where every pivot does.
  __attribute__((noinline)) static V factor(double* a, int n, int ld, double* inverse,
                                            double tolerance, const double* scale) {
    if constexpr (C == 1) {
      Interleaved<S> cholesky{a, ld, inverse, tolerance, scale, S::zero()};
      cholesky.template factor<false>(n);
      return cholesky.margin;
    } else {
      // Column by column, each taken out of all that is right of it: no sum waits for another.
      V margin = S::set1(1);
      for (int i = 0; i < n; ++i) {
        const V original = scale ? S::load(scale + i * L) : S::load(at(a, ld, i, i));
        S::store(inverse + i * L, original);
      }
      for (int j = 0; j < n; ++j) {
        const V pivot = S::load(at(a, ld, j, j));
        const V excess = S::fnma(S::set1(tolerance), S::load(inverse + j * L), pivot);
        margin = S::min(excess > S::zero() ? excess : S::set1(-1), margin);
        const V reciprocal = S::rsqrt(pivot);
        S::store(inverse + j * L, reciprocal);
        Num::real(pivot * reciprocal).store(at(a, ld, j, j));
        for (int i = j + 1; i < n; ++i) {
          const Num l = Num::load(at(a, ld, i, j)).scaled(reciprocal);
          l.store(at(a, ld, i, j));
          for (int k = j + 1; k < i; ++k) {
            Num r = Num::load(at(a, ld, i, k));
            r.sub_conj(l, Num::load(at(a, ld, k, j)));
            r.store(at(a, ld, i, k));
          }
          double* diagonal = at(a, ld, i, i);
          V d = S::load(diagonal);
          MAHAL_UNROLL
          for (int c = 0; c < C; ++c) d = S::fnma(l.v[c], l.v[c], d);
          S::store(diagonal, d);
        }
      }
      return margin;
    }
  }

  // x = l^-1 m for lower triangular l (with its reciprocal pivots) and m. Columns of x follow each
  // other `x_ld` elements apart; the entries above its diagonal are zero.
  __attribute__((noinline)) static void solve_lower(const double* l, const double* inverse,
                                                    const double* m, int n, int ld, double* x,
                                                    int x_ld) {
    for (int i = 0; i < n; ++i) {
      const V pivot = S::load(inverse + i * L);
      for (int j = 0; j <= i; ++j) {
        Num sum = Num::load(at(m, ld, i, j));
        for (int k = j; k < i; ++k) {
          sum.sub_product(Num::load(at(l, ld, i, k)), Num::load(at(x, x_ld, j, k)));
        }
        sum.scaled(pivot).store(at(x, x_ld, j, i));
      }
      for (int j = i + 1; j < n; ++j) Num::zero().store(at(x, x_ld, j, i));
    }
  }

  // Turns pairs of the n columns of every matrix x (`rows` entries, the first `dotted` of which
  // count) until all are orthogonal, and gives their squared norms: one-sided Jacobi, which finds
  // small singular values as exactly as large ones. Pairs (p, q) with one p + q modulo n are
  // disjoint; this order is equivalent to the one by rows, which converges (Luk and Park, 1989).
  // Pairs are worked on in groups, as every angle is a long chain of operations. Matrices follow
  // each other `step` elements apart. Returns 1 in the lanes that got there, -1 in others.
  template <int Matrices>
  __attribute__((noinline)) static V jacobi(double* x, std::ptrdiff_t step, int n, int rows,
                                            int dotted, int ld, double* norms) {
    constexpr int most_sweeps = 60;
    const double smallest = 2.3e-16 * dotted;
    const V bound = S::set1(smallest * smallest);
    Pairs pairs;
    V left = S::zero();
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      left = S::zero();
      take_norms<Matrices>(x, step, n, dotted, ld, norms);
      for (int r = 0; r < n; ++r) {
        pairs.count = 0;
        for (int p = 0; p < n; ++p) {
          const int q = r >= p ? r - p : r - p + n;
          if (p >= q) continue;
          for (int m = 0; m < Matrices; ++m) {
            double* one = x + m * step;
            pairs.add(at(one, ld, p, 0), at(one, ld, q, 0), norms + (m * n + p) * L,
                      norms + (m * n + q) * L);
          }
          if (pairs.count + Matrices > Pairs::most) left = turn(pairs, rows, dotted, bound, left);
        }
        left = turn(pairs, rows, dotted, bound, left);
      }
      if (!S::any_greater(left, S::zero())) break;
    }
    take_norms<Matrices>(x, step, n, dotted, ld, norms);
    return left > S::zero() ? S::set1(-1) : S::set1(1);
  }

  template <int Matrices>
  static MAHAL_INLINE void take_norms(const double* x, std::ptrdiff_t step, int n, int dotted,
                                      int ld, double* norms) {
    for (int m = 0; m < Matrices; ++m) {
      for (int k = 0; k < n; ++k) {
        S::store(norms + (m * n + k) * L, square(at(x + m * step, ld, k, 0), dotted));
      }
    }
  }

  // Disjoint pairs of columns, their scalar products, and then the rotations.
  struct Pairs {
    static constexpr int most = 8;
    int count;
    double* x[most];
    double* y[most];
    double* x_norm[most];
    double* y_norm[most];
    bool turning[most];
    Num sine[most];
    V cosine[most];

    MAHAL_INLINE void add(double* first, double* second, double* norm, double* other) {
      x[count] = first;
      y[count] = second;
      x_norm[count] = norm;
      y_norm[count++] = other;
    }
  };

  // Makes the pairs orthogonal and forgets them. Returns `left` with 1 where a lane was turned.
  static MAHAL_INLINE V turn(Pairs& pairs, int rows, int dotted, V bound, V left) {
    const int count = pairs.count;
    pairs.count = 0;
    bool any = false;
    for (int k = 0; k < count; ++k) {
      const Num g = dot(pairs.x[k], pairs.y[k], dotted);
      const V limit = bound * S::load(pairs.x_norm[k]) * S::load(pairs.y_norm[k]);
      pairs.sine[k] = g;
      pairs.turning[k] = S::any_greater(g.add_square(S::zero()), limit);
      any |= pairs.turning[k];
    }
    if (!any) return left;
    for (int k = 0; k < count; ++k) {
      const Num g = pairs.sine[k];
      const V alpha = S::load(pairs.x_norm[k]);
      const V beta = S::load(pairs.y_norm[k]);
      const V size = g.add_square(S::zero());
      const auto wanted = size > bound * alpha * beta;
      left = wanted ? S::set1(1) : left;
      // The tangent of the angle is 2 g / (b + sign(b) sqrt(b^2 + 4 |g|^2)), b = beta - alpha.
      const V b = beta - alpha;
      const V h2 = S::fma(b, b, S::set1(4) * size);
      const V h = h2 * Math::rough_rsqrt(h2);
      const V slope = (b < S::zero() ? S::set1(-2) : S::set1(2)) *
                      Math::rough_reciprocal(Math::abs(b) + h);
      const V t = wanted ? slope : S::zero();
      const Num tangent = g.scaled(t);
      // Lanes that stand still stay as they are, to the bit.
      const V cosine =
          wanted ? Math::inverse_root(tangent.add_square(S::set1(1))) : S::set1(1);
      pairs.cosine[k] = cosine;
      pairs.sine[k] = tangent.scaled(cosine);
      S::store(pairs.x_norm[k], S::fnma(t, size, alpha));
      S::store(pairs.y_norm[k], S::fma(t, size, beta));
    }
    for (int k = 0; k < count; ++k) {
      if (!pairs.turning[k]) continue;
      double* x = pairs.x[k];
      double* y = pairs.y[k];
      const V cosine = pairs.cosine[k];
      const Num sine = pairs.sine[k];
      const Num minus = Num::zero() - sine.conj();
      for (int i = 0; i < rows; ++i) {
        const Num u = Num::load(x + i * (C * L));
        const Num w = Num::load(y + i * (C * L));
        Num first = u.scaled(cosine);
        Num second = w.scaled(cosine);
        first.add_product(minus, w);
        second.add_product(sine, u);
        first.store(x + i * (C * L));
        second.store(y + i * (C * L));
      }
    }
    return left;
  }

  // Factor l of A to the columns that `jacobi` turns into sqrt(lambda_k) u_k.
  static MAHAL_INLINE void columns_of(const double* l, int n, int ld, double* x, int x_ld) {
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < j; ++i) Num::zero().store(at(x, x_ld, j, i));
      for (int i = j; i < n; ++i) Num::load(at(l, ld, i, j)).store(at(x, x_ld, j, i));
    }
  }

  // norms lambda_k to the weights ln(lambda_k) / lambda_k of the logarithm of A.
  static MAHAL_INLINE void log_weights(double* norms, int n) {
    for (int k = 0; k < n; ++k) {
      const V d = S::load(norms + k * L);
      S::store(norms + k * L, Math::log(d) / d);
    }
  }

  static MAHAL_INLINE V square(const double* x, int rows) {
    V even = S::zero();
    V odd = S::zero();
    int i = 0;
    for (; i + 2 <= rows * C; i += 2) {
      const V u = S::load(x + i * L);
      const V w = S::load(x + (i + 1) * L);
      even = S::fma(u, u, even);
      odd = S::fma(w, w, odd);
    }
    if (i < rows * C) {
      const V u = S::load(x + i * L);
      even = S::fma(u, u, even);
    }
    return even + odd;
  }
  static MAHAL_INLINE Num dot(const double* x, const double* y, int rows) {
    Num even = Num::zero();
    Num odd = Num::zero();
    int i = 0;
    for (; i + 2 <= rows; i += 2) {
      even.add_conj_first(Num::load(x + i * (C * L)), Num::load(y + i * (C * L)));
      odd.add_conj_first(Num::load(x + (i + 1) * (C * L)), Num::load(y + (i + 1) * (C * L)));
    }
    if (i < rows) even.add_conj_first(Num::load(x + i * (C * L)), Num::load(y + i * (C * L)));
    Num sum;
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) sum.v[c] = even.v[c] + odd.v[c];
    return sum;
  }
};

// Lower triangles of the matrices of all lanes, in float64. Strides are in elements
// of T. The diagonal is taken for real.
template <class S, int C, class T>
void load_lower(const T* const* sources, std::ptrdiff_t row_stride, std::ptrdiff_t col_stride,
                int n, int ld, double* to) {
  using V = typename S::V;
  constexpr int L = S::lanes;
  constexpr int size = C * L;
  const int entries = n * n * C;
  if (ld == n && entries >= L && col_stride == C && row_stride == n * C) {
    // Small and contiguous: all entries in whole vectors, the last of which is moved back.
    for (int e = 0; e < entries; e += L) {
      const int from = e + L <= entries ? e : entries - L;
      V r[L];
  MAHAL_UNROLL
      for (int l = 0; l < L; ++l) r[l] = S::widen(sources[l] + from);
      S::transpose(r);
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) S::store(to + (from + l) * L, r[l]);
    }
    if constexpr (C == 2) {
      for (int i = 0; i < n; ++i) S::store(to + (i * (n + 1) * C + 1) * L, S::zero());
    }
    return;
  }
  for (int i = 0; i < n; ++i) {
    const int length = (i + 1) * C;
    double* row = to + static_cast<std::ptrdiff_t>(i) * ld * size;
    int k = 0;
    if (col_stride == C) {
      for (; k < length && i * row_stride + k + L <= (n - 1) * row_stride + n * C; k += L) {
        V r[L];
  MAHAL_UNROLL
        for (int l = 0; l < L; ++l) r[l] = S::widen(sources[l] + i * row_stride + k);
        S::transpose(r);
        MAHAL_UNROLL
        for (int l = 0; l < L; ++l)
          if (k + l < length) S::store(row + (k + l) * L, r[l]);
      }
    }
    for (; k < length; ++k) {
      for (int l = 0; l < L; ++l) {
        row[k * L + l] =
            static_cast<double>(sources[l][i * row_stride + k / C * col_stride + k % C]);
      }
    }
    if constexpr (C == 2) S::store(row + (length - 1) * L, S::zero());
  }
}

// Asks for matrices that follow those of the lanes in a batch, of a size where neither the hardware
// sees them coming nor arithmetic takes all the time.
template <class S, int C, class T>
MAHAL_INLINE void prefetch_next(const T* const* sources, std::ptrdiff_t row_stride,
                                std::ptrdiff_t col_stride, int n) {
  constexpr std::uintptr_t line = 64;
  const std::uintptr_t bytes = sizeof(T) * static_cast<std::uintptr_t>(n * row_stride);
  if (col_stride != C || row_stride < n * C || bytes < 256 || bytes > 4096) return;
  const auto start = reinterpret_cast<std::uintptr_t>(sources[0]);
  const std::uintptr_t step = reinterpret_cast<std::uintptr_t>(sources[1]) - start;
  for (int l = 0; l < S::lanes; ++l) {
    const std::uintptr_t next = reinterpret_cast<std::uintptr_t>(sources[l]) + S::lanes * step;
    for (std::uintptr_t at = 0; at < bytes; at += line) {
      prefetch(reinterpret_cast<const void*>(next + at));
    }
  }
}

}  // namespace
}  // namespace mahal

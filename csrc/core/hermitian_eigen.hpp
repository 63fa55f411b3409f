// Eigenvalues and eigenvectors of small symmetric and Hermitian matrices, one per float64 lane:
// Householder tridiagonalisation and the QL algorithm (Bowdler, Martin, Reinsch and Wilkinson,
// Numer. Math. 11, 1968). Exact relative to the norm of a matrix; Hermitian::jacobi is
// slower and exact relative to every eigenvalue. Kernel side.
#pragma once

#include "core/hermitian.hpp"

namespace mahal {
namespace {

template <class S, int C>
struct Eigen {
  using V = typename S::V;
  using Num = Number<S, C>;
  using H = Hermitian<S, C>;
  using Math = LaneMath<S>;
  static constexpr int L = S::lanes;

  // Doubles of scratch memory beside the matrix and its eigenvectors.
  template <int Matrices>
  static std::ptrdiff_t scratch_doubles(int n) {
    return static_cast<std::ptrdiff_t>(n) * (Matrices * (3 + C)) * L;
  }

  // a: lower triangles of so many matrices per lane, `step` elements apart, overwritten; values: n
  // for each; vectors: n columns for each, `ld` elements apart like the rows of a, or unused.
  // Returns 1 in the lanes that converged, -1 in others. Diagonal entries of definite matrices tell
  // their size.
  template <bool Vectors, int Matrices, bool Definite = true>
  __attribute__((noinline)) static V decompose(double* a, std::ptrdiff_t step, int n, int ld,
                                               double* values, double* vectors, double* scratch) {
    double* e = scratch;  // real off-diagonals
    double* phases = e + Matrices * n * L;
    const std::ptrdiff_t phases_step = static_cast<std::ptrdiff_t>(n) * C * L;
    double* room = phases + Matrices * phases_step;
    V traces[Matrices];
    for (int m = 0; m < Matrices; ++m) {
      double* one = a + m * step;
      // Entries of order one: no square can leave the range.
      V trace = S::zero();
      for (int i = 0; i < n; ++i) trace = trace + Math::abs(S::load(H::at(one, ld, i, i)));
      if constexpr (!Definite) {
        for (int i = 0; i < n; ++i) {
          const double* row = H::at(one, ld, i, 0);
          for (int k = 0; k < i * C; ++k) trace = trace + Math::abs(S::load(row + k * L));
        }
        trace = trace == S::zero() ? S::set1(1) : trace;
      }
      traces[m] = trace;
      const V unit = S::set1(1) / trace;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
          Num::load(H::at(one, ld, i, j)).scaled(unit).store(H::at(one, ld, i, j));
        }
      }
      double* own = phases + m * phases_step;
      tridiagonalise(one, n, ld, values + m * n * L, e + m * n * L, own, room);
      if constexpr (Vectors) {
        double* q = vectors + m * step;
        for (int j = 0; j < n; ++j) {
          double* column = H::at(q, ld, j, 0);
          for (int i = 0; i < n; ++i) S::store(column + i * L, S::set1(i == j ? 1 : 0));
        }
        if constexpr (C == 1) back_transform<true>(one, n, ld, own, q);
      }
    }
    const V done = iterate<Vectors, Matrices>(values, e, n, ld, vectors, step, room);
    for (int m = 0; m < Matrices; ++m) {
      // Rotations are real, and cost twice as much once the columns are complex.
      if constexpr (Vectors && C == 2) {
        back_transform<false>(a + m * step, n, ld, phases + m * phases_step, vectors + m * step);
      }
      for (int i = m * n; i < (m + 1) * n; ++i) {
        S::store(values + i * L, S::load(values + i * L) * traces[m]);
      }
    }
    return done;
  }

  // Where the eigenvalues are exact enough for their logarithms; in other lanes Hermitian::jacobi
  // is called for.
  static MAHAL_INLINE typename Math::W well_found(const double* values, int n, V converged) {
    V least = S::load(values);
    V most = least;
    for (int k = 1; k < n; ++k) {
      least = S::min(least, S::load(values + k * L));
      most = S::max(most, S::load(values + k * L));
    }
    return (least > most * S::set1(1e-6)) & (converged > S::zero());
  }

  // Reflections H_k = I - beta_k v v^H, with v below the diagonal of column k and beta_k on it.
  // Off-diagonal entries become real by unit phases of the columns.
  static void tridiagonalise(double* a, int n, int ld, double* d, double* e, double* phases,
                             double* p) {
    Num phase = Num::real(S::set1(1));
    phase.store(phases);
    for (int k = 0; k + 1 < n; ++k) {
      S::store(d + k * L, S::load(H::at(a, ld, k, k)));
      V norm2 = S::zero();
      for (int i = k + 1; i < n; ++i) norm2 = Num::load(H::at(a, ld, i, k)).add_square(norm2);
      const V norm = S::sqrt(norm2);
      const Num head = Num::load(H::at(a, ld, k + 1, k));
      const V size = S::sqrt(head.add_square(S::zero()));
      Num direction = head.scaled(S::set1(1) / size);
      if constexpr (C == 1) direction.v[0] = head.v[0] < S::zero() ? S::set1(-1) : S::set1(1);
      const auto flat = size == S::zero();
      direction.v[0] = flat ? S::set1(1) : direction.v[0];
      if constexpr (C == 2) direction.v[1] = flat ? S::zero() : direction.v[1];
      const bool last = k + 2 == n;
      // The entry becomes -direction * norm; the last one stays as it is.
      Num turned = Num::zero();
      turned.add_product(phase, last ? direction : Num::zero() - direction);
      phase = turned;
      phase.store(phases + static_cast<std::ptrdiff_t>(k + 1) * C * L);
      S::store(e + k * L, last ? size : norm);
      if (last) break;
      direction.scaled(size + norm).store(H::at(a, ld, k + 1, k));
      const V product = S::fma(norm, size, norm2);
      const V beta = product > S::zero() ? S::set1(1) / product : S::zero();
      Num::real(beta).store(H::at(a, ld, k, k));
      reflect(a, n, ld, k, beta, p);
    }
    S::store(d + (n - 1) * L, S::load(H::at(a, ld, n - 1, n - 1)));
    S::store(e + (n - 1) * L, S::zero());
  }

  // A := H A H below row k: with q = beta A v and w = q - (beta / 2)(q^H v) v, A -= v w^H + w v^H.
  static MAHAL_INLINE void reflect(double* a, int n, int ld, int k, V beta, double* p) {
    constexpr int size = C * L;
    for (int i = k + 1; i < n; ++i) Num::zero().store(p + i * size);
    for (int i = k + 1; i < n; ++i) {
      const Num vi = Num::load(H::at(a, ld, i, k));
      Num sum = Num::zero();
      for (int j = k + 1; j < i; ++j) {
        const Num entry = Num::load(H::at(a, ld, i, j));
        sum.add_product(entry, Num::load(H::at(a, ld, j, k)));
        Num other = Num::load(p + j * size);
        other.add_conj_first(entry, vi);
        other.store(p + j * size);
      }
      const V diagonal = S::load(H::at(a, ld, i, i));
      const Num own = Num::load(p + i * size);
    MAHAL_UNROLL
      for (int c = 0; c < C; ++c) sum.v[c] = S::fma(diagonal, vi.v[c], sum.v[c] + own.v[c]);
      sum.store(p + i * size);
    }
    V inner = S::zero();  // v^H A v is real
    for (int i = k + 1; i < n; ++i) {
      const Num q = Num::load(p + i * size).scaled(beta);
      q.store(p + i * size);
      const Num v = Num::load(H::at(a, ld, i, k));
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c) inner = S::fma(v.v[c], q.v[c], inner);
    }
    const V half = S::set1(0.5) * beta * inner;
    for (int i = k + 1; i < n; ++i) {
      Num w = Num::load(p + i * size);
      const Num v = Num::load(H::at(a, ld, i, k));
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c) w.v[c] = S::fnma(half, v.v[c], w.v[c]);
      w.store(p + i * size);
    }
    for (int i = k + 1; i < n; ++i) {
      const Num vi = Num::load(H::at(a, ld, i, k));
      const Num wi = Num::load(p + i * size);
      for (int j = k + 1; j <= i; ++j) {
        Num entry = Num::load(H::at(a, ld, i, j));
        entry.sub_conj(vi, Num::load(p + j * size));
        entry.sub_conj(wi, Num::load(H::at(a, ld, j, k)));
        entry.store(H::at(a, ld, i, j));
      }
    }
  }

  // x := Q x with Q = H_0 H_1 ... times the phases, for n columns of real entries, which become
  // complex in place. Identity: x is the unit matrix.
  template <bool Identity>
  static void back_transform(const double* a, int n, int ld, const double* phases, double* x) {
    for (int j = 0; j < n; ++j) {
      double* column = H::at(x, ld, j, 0);
      for (int i = n - 1; i >= 0; --i) {
        const Num phase = Num::load(phases + static_cast<std::ptrdiff_t>(i) * C * L);
        phase.scaled(S::load(column + i * L)).store(column + i * C * L);
      }
    }
    for (int k = n - 3; k >= 0; --k) {
      const V beta = S::load(H::at(a, ld, k, k));
      for (int j = Identity ? k + 1 : 0; j < n; ++j) {
        Num sum = Num::zero();
        for (int i = k + 1; i < n; ++i) {
          sum.add_conj_first(Num::load(H::at(a, ld, i, k)), Num::load(H::at(x, ld, j, i)));
        }
        sum = sum.scaled(beta);
        for (int i = k + 1; i < n; ++i) {
          Num entry = Num::load(H::at(x, ld, j, i));
          entry.sub_product(Num::load(H::at(a, ld, i, k)), sum);
          entry.store(H::at(x, ld, j, i));
        }
      }
    }
  }

  // The rotations of columns i and i + 1 for i from last - 1 down to l, on a few rows at a time.
  static MAHAL_INLINE void turn_columns(double* z, int n, int ld, const double* turns, int l,
                                        int last) {
    int k = 0;
    for (; k + 4 <= n; k += 4) turn_rows<4>(z + k * L, ld, turns, l, last);
    if (k + 2 <= n) {
      turn_rows<2>(z + k * L, ld, turns, l, last);
      k += 2;
    }
    if (k < n) turn_rows<1>(z + k * L, ld, turns, l, last);
  }
  template <int R>
  static MAHAL_INLINE void turn_rows(double* z, int ld, const double* turns, int l, int last) {
    const std::ptrdiff_t column = static_cast<std::ptrdiff_t>(ld) * C * L;
    V right[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) right[r] = S::load(z + last * column + r * L);
    for (int i = last - 1; i >= l; --i) {
      const V c = S::load(turns + 2 * i * L);
      const V s = S::load(turns + (2 * i + 1) * L);
      double* x = z + i * column;
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        const V u = S::load(x + r * L);
        S::store(x + column + r * L, S::fma(s, u, c * right[r]));
        right[r] = S::fnma(s, right[r], c * u);
      }
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) S::store(z + l * column + r * L, right[r]);
  }

  // QL with explicit shifts; d becomes the eigenvalues. Every lane takes the shift of its own first
  // block, and rows without off-diagonal entries rest, to the bit, while others are worked on. As
  // each rotation waits for the one before it, several matrices fill the time.
  template <bool Vectors, int Matrices>
  static V iterate(double* d, double* e, int n, int ld, double* z, std::ptrdiff_t z_step,
                   double* turns) {
    const V one = S::set1(1);
    const V zero = S::zero();
    const std::ptrdiff_t next = static_cast<std::ptrdiff_t>(n) * L;
    V size = zero;
    for (int i = 0; i < n * Matrices; ++i) size = size + Math::abs(S::load(e + i * L));
    const V sound = size < S::set1(1e300) ? one : S::set1(-1);
    const int most_sweeps = 60 * n;
    int first = 0;
    int last = n - 1;
    for (int sweep = 0;; ++sweep) {
      V shift[Matrices], g[Matrices], h[Matrices], s[Matrices], c[Matrices];
      int low = last;
      int high = first;
      for (int m = 0; m < Matrices; ++m) {
        shift[m] = start(d + m * next, e + m * next, first, last, low, high);
      }
      first = low;
      last = high;
      if (first >= last) return sound;
      if (sweep == most_sweeps) break;
      for (int m = 0; m < Matrices; ++m) {
        g[m] = S::load(d + m * next + last * L) - shift[m];
        h[m] = g[m];
        s[m] = zero;
        c[m] = one;
      }
      for (int i = last - 1; i >= first; --i) {
        MAHAL_UNROLL
        for (int m = 0; m < Matrices; ++m) {
          double* di = d + m * next + i * L;
          double* ei = e + m * next + i * L;
          const V off = S::load(ei);
          const V off2 = off * off;
          const auto split = !(off2 > S::set1(least_square));
          const auto rests = split & (s[m] == zero);
          const V r2 = S::fma(g[m], g[m], off2);
          const V inverse = Math::inverse_root(r2);
          const V sine = split ? zero : off * inverse;
          const V cosine = split ? one : g[m] * inverse;
          const V b = c[m] * off;
          S::store(ei + L, s[m] * (split ? g[m] : r2 * inverse));
          const V old = S::load(di);
          g[m] = S::fnma(sine, b, cosine * (old - shift[m]));
          const V kept = cosine * g[m];
          const V found = h[m] + (split ? shift[m] : old - kept);
          S::store(di + L, rests ? S::load(di + L) : found);
          h[m] = kept;
          s[m] = sine;
          c[m] = cosine;
          if constexpr (Vectors) {
            double* turn = turns + 2 * (m * next + i * L);
            S::store(turn, cosine);
            S::store(turn + L, sine);
          }
        }
      }
      for (int m = 0; m < Matrices; ++m) {
        double* top = d + m * next + first * L;
        S::store(top, s[m] == zero ? S::load(top) : h[m] + shift[m]);
        S::store(e + m * next + first * L, s[m] * g[m]);
        if constexpr (Vectors) {
          turn_columns(z + m * z_step, n, ld, turns + 2 * m * next, first, last);
        }
      }
    }
    V left = zero;
    for (int i = 0; i < n * Matrices; ++i) left = left + Math::abs(S::load(e + i * L));
    return left > zero ? S::set1(-1) : sound;
  }
  // Squares of off-diagonal entries below this one might lose digits.
  static constexpr double least_square = 1e-290;
  // Clears the off-diagonal entries between rows `first` and `last` that are negligible and gives
  // the shift: the eigenvalue nearer to its first entry of the 2 x 2 block where the first block
  // of a lane begins, and zero in lanes that have converged. Widens [low, high] to the rows that
  // hold blocks.
  static MAHAL_INLINE V start(const double* d, double* e, int first, int last, int& low,
                              int& high) {
    constexpr double epsilon = 1.1e-16;
    const V zero = S::zero();
    V off2 = zero;
    V here = zero;
    V there = zero;
    V below = S::load(d + last * L);
    int top = last;
    for (int i = last - 1; i >= first; --i) {
      const V di = S::load(d + i * L);
      const V off = S::load(e + i * L);
      const V square = off * off;
      const V bound = S::fma(Math::abs(di * below), S::set1(epsilon * epsilon),
                             S::set1(least_square));
      const auto active = square > bound;
      S::store(e + i * L, active ? off : zero);
      off2 = active ? square : off2;
      here = active ? di : here;
      there = active ? below : there;
      // All bits, or none; branches would often be mispredicted.
      const int held = -static_cast<int>(S::any_greater(square, bound));
      top += (i - top) & held;
      const int end = (i + 1) & held;
      high = end > high ? end : high;
      below = di;
    }
    low = top < low ? top : low;
    const V half = S::set1(0.5) * (there - here);
    const V root2 = S::fma(half, half, off2);
    const V root = root2 * Math::rough_rsqrt(root2);
    const V sum = half + (half < zero ? -root : root);
    const V shift = S::fnma(off2, Math::rough_reciprocal(sum), here);
    return off2 > zero ? shift : zero;
  }
};

}  // namespace
}  // namespace mahal

#include "core/gram.hpp"
#include "core/interleaved_cholesky.hpp"
#include "core/interleaved_rows.hpp"
#include "core/isa.hpp"
#include "core/simd.hpp"
#include "ops/rx_kernel.hpp"

namespace mahal {
namespace {

// Bands whose strips are kept in the first-level cache while the others pass by.
inline constexpr int band_block = 24;
inline constexpr int rows_at_once = vector_registers == 32 ? 2 : 1;
// Spectra of a Gram matrix that are centred at a time.
inline constexpr int spectra_at_once = 64;

// Doubles and floats share the layout rules; all offsets are in elements.
struct Layout {
  std::ptrdiff_t ld, sums, matrix, inverse, peak, strips, base, base_sums, origin, spectra,
      pointers, lengths, products, total;
};

MAHAL_INLINE Layout layout_of(int bands, int padded, int outer, int inner, int targets, int lanes,
                              int element_bytes) {
  Layout s;
  std::ptrdiff_t at = 0;
  auto take = [&](std::ptrdiff_t n) {
    const std::ptrdiff_t here = at;
    at += (n + 15) / 16 * 16;
    return here;
  };
  s.ld = (bands + 1) | 1;  // an odd leading dimension spreads the rows over the cache sets
  s.sums = take(static_cast<std::ptrdiff_t>(bands) * lanes);
  s.matrix = take((bands + 1 + targets) * s.ld * lanes);
  s.inverse = take(static_cast<std::ptrdiff_t>(bands) * lanes);
  s.peak = take(static_cast<std::ptrdiff_t>(bands) * lanes);
  s.strips = take(static_cast<std::ptrdiff_t>(bands) * 8 * lanes);
  s.base = take(static_cast<std::ptrdiff_t>(padded) * padded);
  s.base_sums = take(padded);
  s.origin = take(padded);
  s.spectra = take(static_cast<std::ptrdiff_t>(spectra_at_once) * padded);
  const std::ptrdiff_t list = static_cast<std::ptrdiff_t>(outer) * outer + 2 * (outer + inner);
  s.pointers = take(list * static_cast<int>(sizeof(void*)) / element_bytes);
  s.lengths = take(static_cast<std::ptrdiff_t>(targets) * lanes);
  s.products = take(static_cast<std::ptrdiff_t>(targets) * lanes);
  s.total = at;
  return s;
}

enum class Pass { first, more, last, step };

// Slides the scatter matrices of one group of pixels.
//
// With T(r, c) the change of the scatter matrix from row r - 1 to row r at column c, the change
// from lane l - 1 to lane l of T consists of the window corners alone: the entering and leaving
// rows differ, between neighbouring columns, by one pixel on each side. So a step costs, per band
// pair, one product per corner, a prefix sum over the lanes, and T of lane 0 (`base`), whatever
// the size of the windows.
//
// All spectra are taken relative to `origin`, the mean of the block, so that a region that lies far
// from the mean of the image loses no digits to its distance. A sample that does not count points
// to the origin itself.
template <class S>
struct LocalRx {
  using T = typename S::value_type;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  const LocalRxBlock<T>& b;
  const Layout s;
  T* const mem;

  MAHAL_INLINE explicit LocalRx(const LocalRxBlock<T>& block)
      : b(block),
        s(layout_of(block.bands, block.padded, block.outer, block.inner, block.target_count, L,
                    sizeof(T))),
        mem(static_cast<T*>(block.scratch)) {}

  MAHAL_INLINE const T* spectrum(std::ptrdiff_t row, std::ptrdiff_t col) const {
    if (b.status && b.status[row * b.status_stride + col]) return mem + s.origin;
    return b.image + row * b.row_stride + col * b.padded;
  }
  MAHAL_INLINE const T* pixel(int row, int col) const {
    return spectrum(b.rows.index[row], b.cols.index[col]);
  }
  MAHAL_INLINE int column(int lane) const {
    const int c = b.col_begin + lane;
    return c < b.col_end ? c : b.col_end - 1;
  }

  // Strip `slot`: per lane the sample at `row` on one side of the window, where the window of this
  // lane lies one column further than that of the lane before; zero elsewhere, and everywhere
  // unless `present`.
  template <int Slots>
  MAHAL_INLINE void pack(int slot, bool present, int row, const std::int32_t* start,
                         int offset) const {
    const T* src[L];
    src[0] = mem + s.origin;
    for (int l = 1; l < L; ++l) {
      const int before = start[column(l - 1)];
      const int here = start[column(l)];
      src[l] = present && here != before ? pixel(row, here + offset) : mem + s.origin;
    }
    T* strip = mem + s.strips + slot * L;
    interleave<S, true>(src, b.bands, strip, Slots * L);
    for (int j = 0; j < b.bands; ++j) {
      T* p = strip + static_cast<std::ptrdiff_t>(j) * Slots * L;
      S::store(p, S::load(p) - S::set1(mem[s.origin + j]));
    }
  }

  // Signed sum of the strips of band j alone: the same corners for the sums of the samples.
  template <int Plus>
  MAHAL_INLINE V strip_sum(int j) const {
    const T* p = mem + s.strips + static_cast<std::ptrdiff_t>(j) * 2 * Plus * L;
    V v = S::zero();
    MAHAL_UNROLL
    for (int k = 0; k < Plus; ++k) v = v + S::load(p + k * L);
    MAHAL_UNROLL
    for (int k = Plus; k < 2 * Plus; ++k) v = v - S::load(p + k * L);
    return v;
  }

  template <int Plus, Pass P>
  MAHAL_INLINE void slide_sums() const {
    for (int j = 0; j < b.bands; ++j) {
      T* sum = mem + s.sums + j * L;
      V v = strip_sum<Plus>(j);
      if constexpr (P == Pass::more || P == Pass::last) v = v + S::load(sum);
      if constexpr (P == Pass::last || P == Pass::step) {
        v = S::prefix_sum(v) + S::set1(mem[s.base_sums + j]);
      }
      if constexpr (P == Pass::step) v = v + S::load(sum);
      S::store(sum, v);
    }
  }

  // The triangle of the state stands above the diagonal of the matrix, its rows from the last to the
  // first: the factorisation leaves that part alone.
  MAHAL_INLINE T* state_row(std::ptrdiff_t i) const {
    return mem + s.matrix + ((b.bands - 1 - i) * (s.ld + 1) + 1) * L;
  }

  // Rows i .. i + R of the state, columns [j0, j1).
  template <int Plus, Pass P, int R>
  MAHAL_INLINE void slide_rows(int i, int j0, int j1, V reciprocal) const {
    constexpr int K = 2 * Plus;
    const T* const strips = mem + s.strips;
    const T* const sums = mem + s.sums;
    V xi[R][K];
    V mean[R];
    T* state[R];
    T* matrix[R];
    const T* base[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const std::ptrdiff_t row = i + r;
      MAHAL_UNROLL
      for (int k = 0; k < K; ++k) xi[r][k] = S::load(strips + (row * K + k) * L);
      mean[r] = S::load(sums + row * L) * reciprocal;
      state[r] = state_row(row);
      matrix[r] = mem + s.matrix + row * s.ld * L;
      base[r] = mem + s.base + row * b.padded;
    }
    for (int j = j0; j < j1; ++j) {
      const T* xj = strips + static_cast<std::ptrdiff_t>(j) * K * L;
      V plus[R];
      V minus[R];
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) plus[r] = minus[r] = S::zero();
      MAHAL_UNROLL
      for (int k = 0; k < Plus; ++k) {
        // One load each for all rows: the loads are what this loop waits for.
        const V p = S::in_register(S::load(xj + k * L));
        const V m = S::in_register(S::load(xj + (Plus + k) * L));
        MAHAL_UNROLL
        for (int r = 0; r < R; ++r) {
          plus[r] = S::fma(xi[r][k], p, plus[r]);
          minus[r] = S::fma(xi[r][Plus + k], m, minus[r]);
        }
      }
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        V v = plus[r] - minus[r];
        if constexpr (P == Pass::more || P == Pass::last) v = v + S::load(state[r] + j * L);
        if constexpr (P == Pass::last || P == Pass::step) {
          v = S::prefix_sum(v) + S::set1(base[r][j]);
        }
        if constexpr (P == Pass::step) v = v + S::load(state[r] + j * L);
        S::store(state[r] + j * L, v);
        if constexpr (P == Pass::last || P == Pass::step) {
          S::store(matrix[r] + j * L, S::fnma(mean[r], S::load(sums + j * L), v));
        }
      }
    }
  }

  template <int Plus, Pass P>
  __attribute__((noinline)) void slide(V reciprocal) const {
    slide_sums<Plus, P>();
    constexpr int R = rows_at_once;
    const int n = b.bands;
    for (int j0 = 0; j0 < n; j0 += band_block) {
      const int block_end = j0 + band_block < n ? j0 + band_block : n;
      int i = j0;
      for (; i + R <= n; i += R) {
        slide_rows<Plus, P, R>(i, j0, i + 1 < block_end ? i + 1 : block_end, reciprocal);
        for (int r = 1; r < R; ++r) {
          // The diagonal entry of the lower rows of the pair.
          if (i + r < block_end) slide_rows<Plus, P, 1>(i + r, i + r, i + r + 1, reciprocal);
        }
      }
      for (; i < n; ++i) {
        slide_rows<Plus, P, 1>(i, j0, i + 1 < block_end ? i + 1 : block_end, reciprocal);
      }
    }
  }

  // Signed sum and Gram matrix of the samples of lane 0.
  MAHAL_INLINE void base(const T* const* x, int plus, int minus) const {
    const T* list[spectra_at_once];
    for (int j = 0; j < b.padded; j += L) S::store(mem + s.base_sums + j, S::zero());
    int k = 0;
    do {
      int n = 0;
      for (; n < spectra_at_once && k + n < plus + minus; ++n) {
        T* copy = mem + s.spectra + static_cast<std::ptrdiff_t>(n) * b.padded;
        const bool subtract = k + n >= plus;
        for (int j = 0; j < b.padded; j += L) {
          const V v = S::load(x[k + n] + j) - S::load(mem + s.origin + j);
          S::store(copy + j, v);
          T* sum = mem + s.base_sums + j;
          S::store(sum, subtract ? S::load(sum) - v : S::load(sum) + v);
        }
        list[n] = copy;
      }
      const int positive = plus - k < 0 ? 0 : plus - k < n ? plus - k : n;
      signed_gram<S>(list, positive, n - positive, b.padded, mem + s.base, b.padded, k > 0);
      k += n;
    } while (k < plus + minus);
  }

  MAHAL_INLINE void start(int r, V reciprocal) const {
    const T** list = reinterpret_cast<const T**>(mem + s.pointers);
    const int top = b.rows.outer_start[r];
    const int left = b.cols.outer_start[b.col_begin];
    const int inner_top = b.inner ? b.rows.inner_start[r] : 0;
    const int inner_left = b.inner ? b.cols.inner_start[b.col_begin] : 0;
    int n = 0;
    for (int v = top; v < top + b.outer; ++v) {
      const bool guarded = v >= inner_top && v < inner_top + b.inner;
      for (int u = left; u < left + b.outer; ++u) {
        if (!(guarded && u >= inner_left && u < inner_left + b.inner)) list[n++] = pixel(v, u);
      }
    }
    base(list, n, 0);
    // The other lanes: full-height columns that enter and leave, four of each sign a pass.
    const int terms = b.outer + b.inner;
    for (int t = 0; t < terms; t += 4) {
      for (int k = 0; k < 4; ++k) {
        const int e = t + k;
        const bool present = e < terms;
        if (e < b.outer) {
          pack<8>(k, present, top + e, b.cols.outer_start, b.outer - 1);
          pack<8>(4 + k, present, top + e, b.cols.outer_start, -1);
        } else {
          const int row = inner_top + e - b.outer;
          pack<8>(k, present, row, b.cols.inner_start, -1);
          pack<8>(4 + k, present, row, b.cols.inner_start, b.inner - 1);
        }
      }
      const bool last = t + 4 >= terms;
      if (t == 0 && !last) {
        slide<4, Pass::first>(reciprocal);
      } else if (!last) {
        slide<4, Pass::more>(reciprocal);
      } else {
        if (t == 0) {
          clear();
        }
        slide<4, Pass::last>(reciprocal);
      }
    }
  }

  MAHAL_INLINE void clear() const {
    for (int i = 0; i < b.bands; ++i)
      for (int j = 0; j <= i; ++j) S::store(state_row(i) + j * L, S::zero());
    for (int j = 0; j < b.bands; ++j) S::store(mem + s.sums + j * L, S::zero());
  }

  MAHAL_INLINE void step(int r, V reciprocal) const {
    const T** list = reinterpret_cast<const T**>(mem + s.pointers);
    const int top = b.rows.outer_start[r];
    const bool outer_moves = top != b.rows.outer_start[r - 1];
    const int left = b.cols.outer_start[b.col_begin];
    const int inner_top = b.inner ? b.rows.inner_start[r] : 0;
    const bool inner_moves = b.inner && inner_top != b.rows.inner_start[r - 1];
    const int inner_left = b.inner ? b.cols.inner_start[b.col_begin] : 0;
    int plus = 0;
    if (outer_moves)
      for (int u = 0; u < b.outer; ++u) list[plus++] = pixel(top + b.outer - 1, left + u);
    if (inner_moves)
      for (int u = 0; u < b.inner; ++u) list[plus++] = pixel(inner_top - 1, inner_left + u);
    int minus = 0;
    if (outer_moves)
      for (int u = 0; u < b.outer; ++u) list[plus + minus++] = pixel(top - 1, left + u);
    if (inner_moves) {
      for (int u = 0; u < b.inner; ++u) {
        list[plus + minus++] = pixel(inner_top + b.inner - 1, inner_left + u);
      }
    }
    base(list, plus, minus);
    const std::int32_t* oc = b.cols.outer_start;
    if (b.inner) {
      const std::int32_t* ic = b.cols.inner_start;
      pack<8>(0, outer_moves, top + b.outer - 1, oc, b.outer - 1);
      pack<8>(1, outer_moves, top - 1, oc, -1);
      pack<8>(2, inner_moves, inner_top + b.inner - 1, ic, -1);
      pack<8>(3, inner_moves, inner_top - 1, ic, b.inner - 1);
      pack<8>(4, outer_moves, top + b.outer - 1, oc, -1);
      pack<8>(5, outer_moves, top - 1, oc, b.outer - 1);
      pack<8>(6, inner_moves, inner_top + b.inner - 1, ic, b.inner - 1);
      pack<8>(7, inner_moves, inner_top - 1, ic, -1);
      slide<4, Pass::step>(reciprocal);
    } else {
      pack<4>(0, outer_moves, top + b.outer - 1, oc, b.outer - 1);
      pack<4>(1, outer_moves, top - 1, oc, -1);
      pack<4>(2, outer_moves, top + b.outer - 1, oc, -1);
      pack<4>(3, outer_moves, top - 1, oc, b.outer - 1);
      slide<2, Pass::step>(reciprocal);
    }
  }

  // A change dA of the matrix changes d^T A^-1 d by z^T dA z with z = A^-1 d. Rounding of the sums
  // and of the factorisation is a change of entry (i, j) in proportion to the square root of
  // peak_i peak_j, with signs at random: what adds up is z_i^2 peak_i. Takes L^-1 d and leaves z.
  MAHAL_INLINE V error(T* z) const {
    const auto back = [&](int k) {
      const V v = S::load(z + k * L) * S::load(mem + s.inverse + k * L);
      S::store(z + k * L, v);
      return v;
    };
    const auto row = [&](int k) { return mem + s.matrix + k * s.ld * L; };
    V total = S::zero();
    int k = b.bands;
    for (; k >= 4; k -= 4) {
      V v[4];
      MAHAL_UNROLL
      for (int a = 0; a < 4; ++a) {
        v[a] = back(k - 1 - a);
        MAHAL_UNROLL
        for (int c = a + 1; c < 4; ++c) {
          T* p = z + (k - 1 - c) * L;
          S::store(p, S::fnma(S::load(row(k - 1 - a) + (k - 1 - c) * L), v[a], S::load(p)));
        }
        total = S::fma(v[a] * v[a], S::load(mem + s.peak + (k - 1 - a) * L), total);
      }
      const T* l[4] = {row(k - 1), row(k - 2), row(k - 3), row(k - 4)};
      for (int j = 0; j < k - 4; ++j) {
        V w = S::load(z + j * L);
        MAHAL_UNROLL
        for (int a = 0; a < 4; ++a) w = S::fnma(S::load(l[a] + j * L), v[a], w);
        S::store(z + j * L, w);
      }
    }
    for (; k >= 1; --k) {
      const V v = back(k - 1);
      for (int j = 0; j < k - 1; ++j) {
        S::store(z + j * L, S::fnma(S::load(row(k - 1) + j * L), v, S::load(z + j * L)));
      }
      total = S::fma(v * v, S::load(mem + s.peak + (k - 1) * L), total);
    }
    return total;
  }

  // The smaller of two margins, -1 where the new one is not positive: NaN is not.
  static MAHAL_INLINE V narrowed(V margin, V excess) {
    return S::min(excess > S::zero() ? excess : S::set1(T(-1)), margin);
  }

  MAHAL_INLINE T* target_row(int k) const {
    return mem + s.matrix + (b.bands + 1 + k) * s.ld * L;
  }

  // Element j of target k relative to the origin.
  MAHAL_INLINE V target(int k, int j) const {
    const double t = b.targets[static_cast<std::ptrdiff_t>(k) * b.padded + j];
    return S::set1(static_cast<T>(t - static_cast<double>(mem[s.origin + j])));
  }

  // Leaves the unit vectors q along L^-1 (t - m) in the rows below the pixel, orthogonal to each
  // other for a subspace, the squares of what was their lengths, and their products with y.
  __attribute__((noinline)) V solve_targets(V reciprocal, V margin) const {
    const InterleavedRows<S> rows{mem + s.matrix, s.ld, mem + s.inverse, b.bands};
    const T* y = mem + s.matrix + b.bands * s.ld * L;
    for (int k = 0; k < b.target_count; ++k) {
      T* w = target_row(k);
      for (int j = 0; j < b.bands; ++j) {
        S::store(w + j * L, S::fnma(S::load(mem + s.sums + j * L), reciprocal, target(k, j)));
      }
    }
    rows.forward(target_row(0), b.target_count);
    for (int k = 0; k < b.target_count; ++k) {
      T* w = target_row(k);
      V square = rows.dot(w, w);
      if (b.kind == MatchedScore::subspace_ace) {
        const V before = square;
        for (int pass = 0; pass < 2; ++pass) {
          for (int p = 0; p < k; ++p) rows.subtract(w, rows.dot(target_row(p), w), target_row(p));
        }
        square = rows.dot(w, w);
        // What is left of a target that all but depends on the others has lost its digits.
        constexpr T independent = sizeof(T) == 4 ? T(1e-4) : T(1e-12);
        margin = narrowed(margin, S::fnma(before, S::set1(independent), square));
      }
      rows.scale(w, T(1) / S::sqrt(square));
      S::store(mem + s.lengths + k * L, square);
      S::store(mem + s.products + k * L, rows.dot(w, y));
    }
    return margin;
  }

  // The whitened pixel is rounded, by as much as the origin is large: so is its product with what A^-1
  // makes z from, in proportion to this.
  MAHAL_INLINE V blur(const T* z) const {
    V total = S::zero();
    for (int j = 0; j < b.bands; ++j) {
      const V v = S::load(z + j * L) * S::set1(mem[s.origin + j]);
      total = S::fma(v, v, total);
    }
    const T unit = T(1) / (4 * b.trust);
    return total * S::set1(unit * unit);
  }

  // What a change of the matrix does to the cosine c between the unit vectors along y and w: with
  // e_y and e_w the errors of their squares, relative to these, at most
  // sqrt(e_y e_w) + |c| max(e_y, e_w). Then what rounding of t and m does to w and to its product with
  // y, whose square and error are given and whose z = A^-1 d stands in its row.
  __attribute__((noinline)) V check_targets(V reciprocal, V square, V error_of_y, V margin) const {
    const T* z = mem + s.matrix + b.bands * s.ld * L;
    const V share = S::set1(T(1) / b.trust);
    const V error_y = error_of_y / square;
    for (int k = 0; k < b.target_count; ++k) {
      T* q = target_row(k);
      const V error_w = error(q);
      const V larger = S::max(error_y, error_w);
      const V c = S::load(mem + s.products + k * L) / S::sqrt(square);
      const V sum = S::fma(S::max(c, -c), larger, S::sqrt(error_y * error_w));
      margin = narrowed(margin, S::fnma(share, sum, S::set1(T(1))));
      // Beyond this the estimate, which is of first order, says little.
      margin = narrowed(margin, S::fnma(share, larger, S::set1(T(16))));
      margin = narrowed(margin, square - blur(q));
      V own = S::zero();
      V across = S::zero();
      for (int j = 0; j < b.bands; ++j) {
        const V t = target(k, j);
        const V size = S::max(t * t, S::load(mem + s.peak + j * L) * reciprocal);
        const V a = S::load(q + j * L);
        const V x = S::load(z + j * L);
        own = S::fma(a * a, size, own);
        across = S::fma(x * x, size, across);
      }
      const V length = S::load(mem + s.lengths + k * L);
      margin = narrowed(margin, S::fnma(T(4) * share * share, own, length));
      margin = narrowed(margin, S::fnma(share * share, across, length * square));
    }
    return margin;
  }

  __attribute__((noinline)) void store_targets(int r, V square, V dof) const {
    const int maps = b.kind == MatchedScore::subspace_ace ? 1 : b.target_count;
    const V one = S::set1(T(1));
    V total = S::zero();
    for (int k = 0; k < b.target_count; ++k) {
      const V c = S::load(mem + s.products + k * L);
      const V length = S::load(mem + s.lengths + k * L);
      V v;
      switch (b.kind) {
        case MatchedScore::signed_ace:
          v = S::max(S::min(c / S::sqrt(square), one), -one);
          break;
        case MatchedScore::subspace_ace:
          total = S::fma(c, c / square, total);
          v = S::min(total, one);
          break;
        case MatchedScore::normalized_filter:
          v = c * S::sqrt(dof);
          break;
        case MatchedScore::filter:
          v = c / S::sqrt(length);
          break;
        default:
          v = S::min(c * (c / square), one);
      }
      alignas(64) T value[L];
      S::store(value, v);
      for (int l = 0; l < L && b.col_begin + l < b.col_end; ++l) {
        b.score[(r * b.score_stride + b.col_begin + l) * maps + (maps == 1 ? 0 : k)] = value[l];
      }
    }
  }

  // See LocalRxBlock. S is the matrix over `dof`; its inverse times the differences stands in the
  // rows, those of targets divided by the roots of their lengths.
  __attribute__((noinline)) void store_solved(int r, V square, V dof) const {
    const std::ptrdiff_t vectors = 1 + b.target_count;
    alignas(64) T value[L];
    const auto pixel_of = [&](int l) { return r * b.score_stride + b.col_begin + l; };
    const auto each = [&](V v, auto&& put) {
      S::store(value, v);
      for (int l = 0; l < L && b.col_begin + l < b.col_end; ++l) put(pixel_of(l), value[l]);
    };
    for (int k = 0; k < vectors; ++k) {
      const V length = k ? S::sqrt(S::load(mem + s.lengths + (k - 1) * L)) : S::set1(T(1));
      const T* row = k ? target_row(k - 1) : mem + s.matrix + b.bands * s.ld * L;
      const V scale = length * dof;
      for (int j = 0; j < b.bands; ++j) {
        each(S::load(row + j * L) * scale, [&](std::ptrdiff_t pixel, T v) {
          b.solved[(pixel * vectors + k) * b.padded + j] = v;
        });
      }
      const std::ptrdiff_t forms = 1 + 2 * b.target_count;
      const V form = k ? S::load(mem + s.products + (k - 1) * L) * scale : square * dof;
      each(form, [&](std::ptrdiff_t pixel, T v) {
        b.forms[pixel * forms + (k ? 2 * k - 1 : 0)] = v;
      });
      if (k == 0) continue;
      each(length * scale,
           [&](std::ptrdiff_t pixel, T v) { b.forms[pixel * forms + 2 * k] = v; });
    }
  }

  // From the products of the real and imaginary parts to the real form of z z^H.
  __attribute__((noinline)) void make_hermitian() const {
    for (int i = 0; i < b.bands; i += 2) {
      T* even = mem + s.matrix + i * s.ld * L;
      T* odd = even + s.ld * L;
      for (int j = 0; j <= i; j += 2) {
        T* upper = even + (j + 1) * L;
        T* lower = odd + j * L;
        const V real = S::load(even + j * L) + S::load(odd + (j + 1) * L);
        S::store(even + j * L, real);
        S::store(odd + (j + 1) * L, real);
        // Only the lower triangle is there.
        const V imaginary = i == j ? S::zero() : S::load(lower) - S::load(upper);
        S::store(lower, imaginary);
        if (i != j) S::store(upper, -imaginary);
      }
    }
  }

  // Sum of the squares of band j.
  MAHAL_INLINE const T* diagonal(std::ptrdiff_t j) const {
    return state_row(j) + j * L;
  }

  MAHAL_INLINE void score(int r, V reciprocal, const T* samples) const {
    T* matrix = mem + s.matrix;
    const int n = b.bands;
    if (b.hermitian) make_hermitian();
    // The pixel itself, minus the mean of its window, as the row below the matrix.
    const T* src[L];
    for (int l = 0; l < L; ++l) src[l] = spectrum(r, column(l));
    T* border = matrix + static_cast<std::ptrdiff_t>(n) * s.ld * L;
    interleave<S, true>(src, n, border, L);
    for (int j = 0; j < n; ++j) {
      const V x = S::load(border + j * L) - S::set1(mem[s.origin + j]);
      S::store(border + j * L, S::fnma(S::load(mem + s.sums + j * L), reciprocal, x));
    }
    S::store(border + n * L, S::zero());
    alignas(64) T degrees[L];
    for (int l = 0; l < L; ++l) degrees[l] = samples[l] - T(b.center ? 1 : 0);
    const V dof = S::load(degrees);
    if (b.loading > T(0)) {
      const V extra = dof * b.loading;
      for (int j = 0; j < n; ++j) {
        T* d = matrix + (j * s.ld + j) * L;
        S::store(d, S::load(d) + extra);
      }
    }
    // Rounding passes from lane to lane with the prefix sums, so the largest lane counts for all.
    for (int j = 0; j < n; ++j) {
      T* peak = mem + s.peak + j * L;
      const T* sums = diagonal(j);
      const T* others = b.hermitian ? diagonal(j ^ 1) : nullptr;
      T largest = peak[0];
      for (int l = 0; l < L; ++l) {
        const T sum = others ? sums[l] + others[l] : sums[l];
        largest = sum > largest ? sum : largest;
      }
      S::store(peak, S::set1(largest));
    }
    Interleaved<S> cholesky{matrix, s.ld, mem + s.inverse, b.tolerance, mem + s.peak, S::zero()};
    cholesky.template factor<true>(n);
    const V square = -S::load(border + n * L);
    alignas(64) T value[L];
    alignas(64) T margin[L];
    if (b.target_count) cholesky.margin = solve_targets(reciprocal, cholesky.margin);
    const V rounding = error(border);
    V least = narrowed(cholesky.margin, S::fma(square, square, -blur(border)));
    if (b.target_count) {
      least = check_targets(reciprocal, square, rounding, least);
      if (!b.solved) store_targets(r, square, dof);
    } else {
      least = S::min(least, S::fnma(S::set1(T(1) / b.trust), rounding, square));
    }
    if (b.solved) store_solved(r, square, dof);
    S::store(value, square * dof);
    S::store(margin, least);
    for (int l = 0; l < L && b.col_begin + l < b.col_end; ++l) {
      const std::ptrdiff_t col = b.col_begin + l;
      if (!b.target_count && !b.solved) b.score[r * b.score_stride + col] = value[l];
      b.weak[r * b.weak_stride + col] = !(margin[l] > T(0));
    }
  }

  // Mean of the usable pixels of the block; zero where the mean is.
  MAHAL_INLINE void find_origin() const {
    T* origin = mem + s.origin;
    for (int j = 0; j < b.padded; j += L) S::store(origin + j, S::zero());
    if (!b.center) return;
    int n = 0;
    for (int r = b.row_begin; r < b.row_end; ++r) {
      for (int l = 0; l < L && b.col_begin + l < b.col_end; ++l) {
        const T* x = spectrum(r, b.col_begin + l);
        if (x == origin) continue;
        ++n;
        for (int j = 0; j < b.padded; j += L) {
          S::store(origin + j, S::load(origin + j) + S::load(x + j));
        }
      }
    }
    const V share = S::set1(n > 0 ? T(1) / static_cast<T>(n) : T(0));
    for (int j = 0; j < b.padded; j += L) S::store(origin + j, S::load(origin + j) * share);
  }

  MAHAL_INLINE void run() const {
    find_origin();
    // The whitened samples themselves are rounded: below that there is no variance to speak of.
    constexpr T rounding = 16 * (sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52));
    for (int j = 0; j < b.bands; ++j) {
      const T noise = rounding * mem[s.origin + j];
      S::store(mem + s.peak + j * L,
               S::set1(static_cast<T>(b.samples) * noise * noise / b.tolerance));
    }
    for (int r = b.row_begin; r < b.row_end; ++r) {
      alignas(64) T samples[L];
      for (int l = 0; l < L; ++l) {
        const std::int32_t n =
            b.count ? b.count[r * b.count_stride + column(l)] : b.samples;
        samples[l] = static_cast<T>(n);
      }
      const V reciprocal = b.center ? T(1) / S::load(samples) : S::zero();
      const std::uint64_t begin = b.ticks ? time_stamp() : 0;
      if (r == b.row_begin) {
        start(r, reciprocal);
      } else {
        step(r, reciprocal);
      }
      const std::uint64_t middle = b.ticks ? time_stamp() : 0;
      score(r, reciprocal, samples);
      if (b.ticks) {
        b.ticks[0] += middle - begin;
        b.ticks[1] += time_stamp() - middle;
      }
    }
  }
};

using D = Simd<double>;

void centre_and_gram(const WindowStatistics& w) {
  constexpr int L = D::lanes;
  for (int j = 0; j < w.padded; j += L) {
    // Relative to the first sample, so that a band without variance has exactly none.
    const auto first = w.center ? D::load(w.samples + j) : D::zero();
    auto mean = D::zero();
    for (int k = 0; k < w.count; ++k) {
      double* x = w.samples + static_cast<std::ptrdiff_t>(k) * w.padded + j;
      const auto d = D::load(x) - first;
      mean = mean + d;
      D::store(x, d);
    }
    mean = w.center ? mean / D::set1(w.count) : D::zero();
    for (int k = 0; k < w.count; ++k) {
      double* x = w.samples + static_cast<std::ptrdiff_t>(k) * w.padded + j;
      D::store(x, D::load(x) - mean);
    }
    D::store(w.difference + j, D::load(w.test + j) - first - mean);
  }
  for (int k = 0; k < w.count; ++k) {
    w.pointers[k] = w.samples + static_cast<std::ptrdiff_t>(k) * w.padded;
  }
  signed_gram<D>(w.pointers, w.count, 0, w.padded, w.covariance, w.padded, false);
  const auto scale = D::set1(1.0 / (w.count - (w.center ? 1 : 0)));
  for (int i = 0; i < w.bands; ++i) {
    for (int j = 0; j <= i; j += L) {
      double* c = w.covariance + static_cast<std::ptrdiff_t>(i) * w.padded + j;
      D::store(c, D::load(c) * scale);
    }
  }
  if (!w.hermitian) return;
  for (int i = 0; i < w.bands; i += 2) {
    double* even = w.covariance + static_cast<std::ptrdiff_t>(i) * w.padded;
    double* odd = even + w.padded;
    for (int j = 0; j <= i; j += 2) {
      const double real = even[j] + odd[j + 1];
      const double imaginary = i == j ? 0.0 : odd[j] - even[j + 1];
      even[j] = odd[j + 1] = real;
      odd[j] = imaginary;
      even[j + 1] = -imaginary;
    }
  }
}

// The last group of a row may have few columns: then vectors of half the width waste fewer lanes.
template <class T>
void run_local(const LocalRxBlock<T>& b) {
  constexpr int half = native_bytes / 2;
  if constexpr (half >= 16) {
    if (b.col_end - b.col_begin <= Simd<T, half>::lanes) {
      LocalRx<Simd<T, half>>(b).run();
      return;
    }
  }
  LocalRx<Simd<T>>(b).run();
}

}  // namespace

template <>
int RxKernel<current_isa>::lanes(float) {
  return Simd<float>::lanes;
}
template <>
int RxKernel<current_isa>::lanes(double) {
  return Simd<double>::lanes;
}

template <>
std::size_t RxKernel<current_isa>::scratch_bytes(const LocalRxBlock<float>& b) {
  return layout_of(b.bands, b.padded, b.outer, b.inner, b.target_count, Simd<float>::lanes, 4).total *
         4;
}
template <>
std::size_t RxKernel<current_isa>::scratch_bytes(const LocalRxBlock<double>& b) {
  return layout_of(b.bands, b.padded, b.outer, b.inner, b.target_count, Simd<double>::lanes, 8).total *
         8;
}

template <>
void RxKernel<current_isa>::local(const LocalRxBlock<float>& b) {
  run_local(b);
}
template <>
void RxKernel<current_isa>::local(const LocalRxBlock<double>& b) {
  run_local(b);
}

template <>
void RxKernel<current_isa>::window_statistics(const WindowStatistics& w) {
  centre_and_gram(w);
}
}  // namespace mahal

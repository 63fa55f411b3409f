#include "core/pixels.hpp"
#include "ops/local_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

// Per column of the tile the samples and their products are summed over the rows of the window: one
// row enters and one leaves as the window moves down. Those column sums slide along the row.
//
// Sums are kept in float64: what entered is taken out again, and a mean far from the offset may not
// cost digits.
template <class T>
MAHAL_INLINE int first_column(const LocalCovarianceBlock<T>& b) {
  return b.cols.outer_start[b.col_begin];
}
template <class T>
MAHAL_INLINE std::int64_t tile_columns(const LocalCovarianceBlock<T>& b) {
  return b.cols.outer_start[b.col_end - 1] + b.outer - first_column(b);
}

// No degree of freedom left: NaN marks the whole matrix.
struct Divisors {
  double per_sample, per_degree;
  double per_square;  // of the products of the sums: what the mean has of them
  MAHAL_INLINE Divisors(int n, int ddof, bool center)
      : per_sample(n > 0 ? 1.0 / n : __builtin_nan("")),
        per_degree(n > ddof ? 1.0 / (n - ddof) : __builtin_nan("")),
        per_square(center ? per_sample : 0.0) {}
};

// Up to 8 bands: the whole covariance slides along the row in registers. Of its N x N entries
// (bands rounded up to N = 4 or 8) the cyclic diagonals 0 .. N/2 are kept: entry i of diagonal k
// belongs to the bands i and (i + k) mod N, so that every pair of bands is there.
//
// Complex bands are pairs of lanes, and the diagonals those of the N/2 x N/2 Hermitian matrix:
// entry i of diagonal k is z_i conj(z_(i + k)). The main one is kept as the squares of the parts.
//
// Taking a sample out leaves its rounding error behind. Where a sum of squares shrinks by more than
// `lost`, as when a very bright pixel leaves (or stands in the inner window), the sums are taken
// anew, so that no pixel leaves a trace.
template <class T, int N, bool Complex>
struct PackedMap {
  static constexpr int width = N * 8 < native_bytes ? N * 8 : native_bytes;
  using S = Simd<double, width>;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  static constexpr int chunks = N / L;                      // vectors per spectrum
  static constexpr int half = chunks > 1 ? chunks / 2 : 1;  // of diagonal N/2, which repeats itself
  static constexpr int products = (Complex ? N / 4 : N / 2) * chunks + half;
  static constexpr int column_size = (products + chunks) * L;  // products, then plain sums
  using Products = typename MakeIndices<products>::type;
  using Lanes = typename MakeIndices<L>::type;

  // Columns moved down at a time, ahead of the pixels that need them: two short loops keep more of
  // the work in flight than one long one.
  static constexpr int ahead = 16;
  static constexpr double lost = 1 << 20;

  static std::size_t bytes(const LocalCovarianceBlock<T>& b) {
    const std::int64_t windows = b.inner ? 2 : 1;
    return sizeof(double) * static_cast<std::size_t>(windows * tile_columns(b) * column_size);
  }

  struct Sums {
    V product[products];
    V sample[chunks];
  };

  const LocalCovarianceBlock<T>& b;
  const std::int64_t columns;
  double* column_sums[2];  // of the outer and the inner window: per column, over its rows
  V offset[chunks];

  MAHAL_INLINE explicit PackedMap(const LocalCovarianceBlock<T>& block)
      : b(block), columns(tile_columns(block)) {
    for (int j = 0; j < N; ++j) offset[j / L][j % L] = j < b.pixels.bands ? b.offset[j] : 0;
    column_sums[0] = static_cast<double*>(b.scratch);
    column_sums[1] = column_sums[0] + columns * column_size;
  }

  // One image row of the tile.
  struct Line {
    const T* data;
    const std::uint8_t* status;
    const std::int32_t* index;
    std::ptrdiff_t col_stride, band_stride;
    int parts;
    int bands;
    bool dense;
  };
  MAHAL_INLINE Line line(int row) const {
    const std::int64_t r = b.rows.index[row];
    return {b.pixels.data + r * b.pixels.row_stride,
            b.status ? b.status + r * b.pixels.cols : nullptr,
            b.cols.index + first_column(b),
            b.pixels.col_stride,
            b.pixels.band_stride,
            b.pixels.parts,
            b.pixels.bands,
            b.pixels.bands == N && b.pixels.band_stride == 1 && !b.status};
  }
  // A centred spectrum, zero where the pixel is left out.
  static MAHAL_INLINE void load_pixel(const Line& l, std::int64_t u, const V* offset, V* x) {
    const std::int64_t c = l.index[u];
    const T* p = l.data + c * l.col_stride;
    if (l.dense) {
    MAHAL_UNROLL
      for (int q = 0; q < chunks; ++q) x[q] = S::widen(p + q * L) - offset[q];
      return;
    }
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) x[q] = V{};
    if (l.status && l.status[c]) return;
    MAHAL_UNROLL
    for (int j = 0; j < N; ++j)
      if (j < l.bands) x[j / L][j % L] = static_cast<double>(p[band_offset(l, j)]);
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) x[q] = x[q] - offset[q];
  }

  // The partners in the products: p[k * chunks + q] is chunk q of x rotated down by k bands. Odd
  // rotations are put together from the even ones next to them, which stays within 16 bytes.
  template <int K, int Q, int... J>
  static MAHAL_INLINE V rotated_even(const V* x, Indices<J...>) {
    constexpr int from = (Q + K / L) % chunks;
    if constexpr (K % L == 0) {
      return x[from];
    } else {
      return __builtin_shufflevector(x[from], x[(from + 1) % chunks], (J + K % L)...);
    }
  }
  template <int... J>
  static MAHAL_INLINE V between(V a, V c, Indices<J...>) {
    return __builtin_shufflevector(a, c, (J % 2 ? L + J - 1 : J + 1)...);
  }
  template <int I>
  static MAHAL_INLINE V rotated(const V* x) {
    constexpr int k = I / chunks;
    constexpr int q = I % chunks;
    if constexpr (k % 2 == 0) {
      return rotated_even<k, q>(x, Lanes{});
    } else {
      return between(rotated_even<k - 1, q>(x, Lanes{}), rotated_even<k + 1, q>(x, Lanes{}),
                     Lanes{});
    }
  }
  template <int... I>
  static MAHAL_INLINE void partners(const V* x, V* p, Indices<I...>) {
    ((p[I] = rotated<I>(x)), ...);
  }

  template <int Sign>
  static MAHAL_INLINE V multiply_add(V a, V c, V sum) {
    return Sign > 0 ? S::fma(a, c, sum) : S::fnma(a, c, sum);
  }
  template <int... J>
  static MAHAL_INLINE V real_parts(V v, Indices<J...>) {
    return __builtin_shufflevector(v, v, (J & ~1)...);
  }
  template <int... J>
  static MAHAL_INLINE V imaginary_parts(V v, Indices<J...>) {
    return __builtin_shufflevector(v, v, (J | 1)...);
  }
  // z / i
  template <int... J>
  static MAHAL_INLINE V turned(V v, Indices<J...>) {
    return __builtin_shufflevector(v, v, (J ^ 1)...) * V{(J % 2 ? -1.0 : 1.0)...};
  }
  template <int Sign, int I>
  static MAHAL_INLINE void multiply_complex(const V* x, const V* y, V* sum) {
    const V a = x[I % chunks];
    if constexpr (I < chunks) {
      sum[I] = multiply_add<Sign>(a, y[I], sum[I]);
    } else {
      const V partner = rotated_even<I / chunks * 2, I % chunks>(y, Lanes{});
      sum[I] = multiply_add<Sign>(a, real_parts(partner, Lanes{}), sum[I]);
      sum[I] =
          multiply_add<Sign>(turned(a, Lanes{}), imaginary_parts(partner, Lanes{}), sum[I]);
    }
  }
  template <int Sign, int... I>
  static MAHAL_INLINE void multiply_all_complex(const V* x, const V* y, V* sum, Indices<I...>) {
    (multiply_complex<Sign, I>(x, y, sum), ...);
  }
  // sum += x y^H, or -= with Sign < 0.
  template <int Sign>
  static MAHAL_INLINE void multiply(const V* x, const V* y, V* sum) {
    if constexpr (Complex) {
      multiply_all_complex<Sign>(x, y, sum, Products{});
    } else {
      V p[products];
      partners(y, p, Products{});
      MAHAL_UNROLL
      for (int i = 0; i < products; ++i) sum[i] = multiply_add<Sign>(x[i % chunks], p[i], sum[i]);
    }
  }

  // s += x x^H, or -= with Sign < 0.
  template <int Sign>
  static MAHAL_INLINE void join(const V* x, Sums& s) {
    multiply<Sign>(x, x, s.product);
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q)
      s.sample[q] = Sign > 0 ? s.sample[q] + x[q] : s.sample[q] - x[q];
  }
  static MAHAL_INLINE void load(const double* p, Sums& s) {
    MAHAL_UNROLL
    for (int i = 0; i < products; ++i) s.product[i] = S::load(p + i * L);
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) s.sample[q] = S::load(p + (products + q) * L);
  }
  static MAHAL_INLINE void store(double* p, const Sums& s) {
    MAHAL_UNROLL
    for (int i = 0; i < products; ++i) S::store(p + i * L, s.product[i]);
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) S::store(p + (products + q) * L, s.sample[q]);
  }
  template <int Sign>
  static MAHAL_INLINE void accumulate(Sums& total, const Sums& s) {
    MAHAL_UNROLL
    for (int i = 0; i < products; ++i) {
      total.product[i] =
          Sign > 0 ? total.product[i] + s.product[i] : total.product[i] - s.product[i];
    }
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) {
      total.sample[q] = Sign > 0 ? total.sample[q] + s.sample[q] : total.sample[q] - s.sample[q];
    }
  }

  struct Squares {
    V value[chunks];
  };
  static MAHAL_INLINE Squares squares(const Sums& s) {
    Squares d;
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) d.value[q] = s.product[q];
    return d;
  }
  static MAHAL_INLINE bool shrank(const Squares& before, const Sums& now) {
    bool any = false;
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) {
      any |= S::any_greater(before.value[q], now.product[q] * S::set1(lost));
    }
    return __builtin_expect(any, 0);
  }

  // Adds the samples of rows [v0, v1) and columns [u0, u1) one by one.
  __attribute__((noinline)) void add_samples(int v0, int v1, std::int64_t u0, std::int64_t u1,
                                             Sums& s) const {
    for (int v = v0; v < v1; ++v) {
      const Line in = line(v);
      for (std::int64_t u = u0; u < u1; ++u) {
        V x[chunks];
        load_pixel(in, u, offset, x);
        join<1>(x, s);
      }
    }
  }
  __attribute__((noinline)) Sums window_sums(int row, int c) const {
    const int first = first_column(b);
    const int v = b.rows.outer_start[row];
    const int u = b.cols.outer_start[c] - first;
    const int iv = b.inner ? b.rows.inner_start[row] : v + b.outer;
    const int iu = b.inner ? b.cols.inner_start[c] - first : u;
    Sums s{};
    add_samples(v, iv, u, u + b.outer, s);
    add_samples(iv, iv + b.inner, u, iu, s);
    add_samples(iv, iv + b.inner, iu + b.inner, u + b.outer, s);
    add_samples(iv + b.inner, v + b.outer, u, u + b.outer, s);
    return s;
  }

  // Column sums of the window whose first row is `row`, from nothing.
  __attribute__((noinline)) void start(double* sums, int row, int side) const {
    for (std::int64_t i = 0; i < columns * column_size; i += L) S::store(sums + i, V{});
    constexpr int group = 4;  // rows at a time
    for (int v = 0; v < side; v += group) {
      const int rows = v + group < side ? group : side - v;
      Line in[group];
      for (int k = 0; k < rows; ++k) in[k] = line(row + v + k);
      for (std::int64_t u = 0; u < columns; ++u) {
        V x[chunks];
        Sums s;
        load(sums + u * column_size, s);
        for (int k = 0; k < rows; ++k) {
          load_pixel(in[k], u, offset, x);
          join<1>(x, s);
        }
        store(sums + u * column_size, s);
      }
    }
  }

  // Moves columns [begin, end) of a window down to first row `row`.
  __attribute__((noinline)) void move_down(double* sums, int row, int side, std::int64_t begin,
                                           std::int64_t end) const {
    const Line entering = line(row + side - 1);
    const Line leaving = line(row - 1);
    V o[chunks];
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) o[q] = offset[q];
    Squares excess{};
    for (std::int64_t u = begin; u < end; ++u) {
      V x[chunks];
      Sums s;
      load(sums + u * column_size, s);
      load_pixel(entering, u, o, x);
      join<1>(x, s);
      const Squares before = squares(s);
      load_pixel(leaving, u, o, x);
      join<-1>(x, s);
      store(sums + u * column_size, s);
      MAHAL_UNROLL
      for (int q = 0; q < chunks; ++q) {
        const V e = S::fnma(s.product[q], S::set1(lost), before.value[q]);
        excess.value[q] = S::max(excess.value[q], e);
      }
    }
    bool any = false;
    for (int q = 0; q < chunks; ++q) any |= S::any_greater(excess.value[q], V{});
    if (__builtin_expect(any, 0)) {
      for (std::int64_t u = begin; u < end; ++u) {
        Sums s{};
        add_samples(row, row + side, u, u + 1, s);
        store(sums + u * column_size, s);
      }
    }
  }

  // Takes column u of a window into the total, or out of it with Sign < 0.
  template <int Sign>
  static MAHAL_INLINE void add_column(const double* sums, std::int64_t u, Sums& total) {
    Sums s;
    load(sums + u * column_size, s);
    accumulate<Sign>(total, s);
  }

  // ---- The full matrix, from its diagonals.
  static constexpr int out_width = sizeof(T) == 8         ? width
                                   : N * 4 < native_bytes ? N * 4
                                                          : native_bytes;
  using Out = Simd<T, out_width>;
  using O = typename Out::V;
  static constexpr int out_lanes = Out::lanes;
  static constexpr int out_chunks = N / out_lanes;
  using OutLanes = typename MakeIndices<out_lanes>::type;

  static MAHAL_INLINE O narrowed(V v) {
    if constexpr (sizeof(T) == 8) {
      return v;
    } else {
      return S::narrow(v);
    }
  }
  template <int... K>
  static MAHAL_INLINE O join_halves(V a, V c, Indices<K...>) {
    using Half = typename VectorOf<T, out_width / 2>::type;
    return __builtin_shufflevector(__builtin_convertvector(a, Half),
                                   __builtin_convertvector(c, Half), K...);
  }
  // Diagonal N/2 holds every pair twice, in either order: one of them, or rounding would tell.
  template <int... J>
  static MAHAL_INLINE O lower_twice(O v, Indices<J...>) {
    return __builtin_shufflevector(v, v, (J % (N / 2))...);
  }
  static constexpr int spectrum = N / 2 + 1;
  // Chunk Q of diagonal K as output.
  template <int K, int Q>
  static MAHAL_INLINE O to_output(const V* c) {
    constexpr int per = out_lanes / L;
    constexpr int length = K == N / 2 ? half : chunks;
    const V* d = c + K * chunks;
    if constexpr (K == N / 2 && chunks == 1) {
      return lower_twice(narrowed(d[0]), OutLanes{});
    } else if constexpr (per == 1) {
      return narrowed(d[Q % length]);
    } else {
      return join_halves(d[Q * per % length], d[(Q * per + 1) % length], OutLanes{});
    }
  }
  template <int... I>
  static MAHAL_INLINE void store_diagonals(const V* c, T* p, Indices<I...>) {
    (Out::store(p + I * out_lanes, to_output<I / out_chunks, I % out_chunks>(c)), ...);
  }
  template <int K, int Q>
  static MAHAL_INLINE O diagonal(const O* c) {
    return c[K * out_chunks + Q];
  }
  // Chunk Q of diagonal K with entry j at place j + K.
  template <int K, int Q, int... J>
  static MAHAL_INLINE O shifted(const O* c, Indices<J...>) {
    constexpr int place = (Q * out_lanes - K + N) % N;
    constexpr int from = place / out_lanes;
    if constexpr (place % out_lanes == 0) {
      return diagonal<K, from>(c);
    } else {
      return __builtin_shufflevector(diagonal<K, from>(c), diagonal<K, (from + 1) % out_chunks>(c),
                                     (J + place % out_lanes)...);
    }
  }
  // Entry j of step M (chunk Q) belongs to the bands j - M and j.
  template <int M, int Q>
  static MAHAL_INLINE O step(const O* c) {
    if constexpr (M == 0 || M == N / 2) {
      return diagonal<M, Q>(c);
    } else if constexpr (M < N / 2) {
      return shifted<M, Q>(c, OutLanes{});
    } else {
      return diagonal<N - M, Q>(c);
    }
  }
  template <int Bit, int... J>
  static MAHAL_INLINE O blend(O a, O c, Indices<J...>) {
    return __builtin_shufflevector(a, c, ((J & Bit) ? out_lanes + J : J)...);
  }
  // d[m] takes d[m + Bit] in the lanes with that bit.
  template <int Bit>
  static MAHAL_INLINE void blend_steps(O* d) {
    if constexpr (Bit < out_lanes) {
      O old[N];
      MAHAL_UNROLL
      for (int m = 0; m < N; ++m) old[m] = d[m];
      MAHAL_UNROLL
      for (int m = 0; m < N; ++m) d[m] = blend<Bit>(old[m], old[(m + Bit) % N], OutLanes{});
    }
  }
  // Chunk Q of every row of the matrix: lane l of row i is lane l of step Q * lanes + l - i.
  template <int Q, int... M>
  static MAHAL_INLINE void rows(const O* c, O* row, Indices<M...>) {
    O d[N] = {step<M, Q>(c)...};
    blend_steps<1>(d);
    blend_steps<2>(d);
    blend_steps<4>(d);
    MAHAL_UNROLL
    for (int i = 0; i < N; ++i) row[i * out_chunks + Q] = d[(Q * out_lanes - i + N) % N];
  }
  template <int... Q>
  static MAHAL_INLINE void all_rows(const O* c, O* row, Indices<Q...>) {
    (rows<Q>(c, row, typename MakeIndices<N>::type{}), ...);
  }

  static MAHAL_INLINE void write_full(T* out, const O* row) {
    MAHAL_UNROLL
    for (int i = 0; i < N * out_chunks; ++i) Out::stream(out + i * out_lanes, row[i]);
  }
  // Rows [i_begin, i_end) of fewer than N bands. Whole vectors run into the row below, which comes
  // next, and never past the last row.
  static MAHAL_INLINE void write_part(T* out, const O* row, int bands, int i_begin, int i_end) {
    for (int i = i_begin; i < i_end; ++i) {
      if ((i_end - i) * bands >= N) {
        for (int q = 0; q < out_chunks; ++q) {
          Out::storeu(out + i * bands + q * out_lanes, row[i * out_chunks + q]);
        }
      } else {
        for (int j = 0; j < bands; ++j) {
          out[i * bands + j] = row[i * out_chunks + j / out_lanes][j % out_lanes];
        }
      }
    }
  }

  // The Hermitian matrix, from its diagonals. Real and imaginary parts by turns.
  static MAHAL_INLINE void write_hermitian(T* out, const V* cov, int bands) {
    constexpr int M = N / 2;
    alignas(64) double c[products * L];
    MAHAL_UNROLL
    for (int i = 0; i < products; ++i) S::store(c + i * L, cov[i]);
    MAHAL_UNROLL
    for (int i = 0; i < M; ++i) {
      if (2 * i >= bands) return;
      T* diagonal = out + i * bands + 2 * i;
      diagonal[0] = static_cast<T>(c[2 * i] + c[2 * i + 1]);
      diagonal[1] = T(0);
      MAHAL_UNROLL
      for (int j = i + 1; j < M; ++j) {
        if (2 * j >= bands) break;
        const int k = j - i;
        const double* entry = k <= M / 2 ? c + k * N + 2 * i : c + (M - k) * N + 2 * j;
        const T real = static_cast<T>(entry[0]);
        const T imaginary = static_cast<T>(k <= M / 2 ? entry[1] : -entry[1]);
        T* upper = out + i * bands + 2 * j;
        T* lower = out + j * bands + 2 * i;
        upper[0] = lower[0] = real;
        upper[1] = imaginary;
        lower[1] = -imaginary;
      }
    }
  }

  template <int... Q>
  static MAHAL_INLINE void mean_chunks(const V* m, O* mean, Indices<Q...>) {
    if constexpr (out_lanes == L) {
      ((mean[Q] = narrowed(m[Q])), ...);
    } else {
      ((mean[Q] = join_halves(m[2 * Q], m[2 * Q + 1], OutLanes{})), ...);
    }
  }
  static MAHAL_INLINE void write_mean(T* out, const V* m, int bands) {
    O mean[out_chunks];
    mean_chunks(m, mean, typename MakeIndices<out_chunks>::type{});
    if (bands == N) {
      MAHAL_UNROLL
      for (int q = 0; q < out_chunks; ++q) Out::stream(out + q * out_lanes, mean[q]);
      return;
    }
    MAHAL_UNROLL
    for (int j = 0; j < N; ++j)
      if (j < bands) out[j] = mean[j / out_lanes][j % out_lanes];
  }

  template <bool Inner>
  __attribute__((noinline)) void slide(int row, const bool* moves) const {
    // Everything in locals: the stores below could alias the members.
    const int bands = b.pixels.bands;
    const int i_begin = b.band_begin;
    const int i_end = b.band_end;
    const bool whole = bands == N && i_begin == 0 && i_end == N;
    const int outer = b.outer;
    const int inner = b.inner;
    const int c0 = b.col_begin;
    const int c1 = b.col_end;
    const std::int32_t* const outer_start = b.cols.outer_start;
    const std::int32_t* const inner_start = b.cols.inner_start;
    const std::int32_t* const count = b.count ? b.count + row * b.count_stride : nullptr;
    double* const outer_sums = column_sums[0];
    double* const inner_sums = column_sums[1];
    const int first = outer_start[c0];
    const std::int64_t pixel = static_cast<std::int64_t>(row) * b.pixels.cols + c0;
    T* covariance = b.covariance + pixel * b.covariance_stride;
    T* mean = b.mean ? b.mean + pixel * b.mean_stride : nullptr;
    const std::ptrdiff_t covariance_stride = b.covariance_stride;
    const std::ptrdiff_t mean_stride = b.mean_stride;
    const int ddof = b.ddof;
    const bool center = b.center;
    Divisors d(b.samples, ddof, center);
    V per_sample = S::set1(d.per_sample);
    V per_degree = S::set1(d.per_degree);
    V per_both = S::set1(d.per_square * d.per_degree);
    V centre[chunks];
    MAHAL_UNROLL
    for (int q = 0; q < chunks; ++q) centre[q] = offset[q];

    constexpr int buffer_size = spectrum * N;
    alignas(64) T diagonals[ahead * buffer_size];
    // The sums of the first window.
    const int outer_row = b.rows.outer_start[row];
    const int inner_row = Inner ? b.rows.inner_start[row] : 0;
    const std::int64_t first_inner = Inner ? inner_start[c0] - first : 0;
    std::int64_t outer_ready = outer;
    std::int64_t inner_ready = first_inner + inner;
    if (moves[0]) move_down(outer_sums, outer_row, outer, 0, outer_ready);
    if (moves[1]) move_down(inner_sums, inner_row, inner, first_inner, inner_ready);
    Sums total{};
    for (std::int64_t u = 0; u < outer_ready; ++u) add_column<1>(outer_sums, u, total);
    if constexpr (Inner) {
      const Squares before = squares(total);
      for (std::int64_t u = first_inner; u < inner_ready; ++u) {
        add_column<-1>(inner_sums, u, total);
      }
      if (shrank(before, total)) total = window_sums(row, c0);
    }

    for (int begin = c0; begin < c1; begin += ahead) {
      const int end = begin + ahead < c1 ? begin + ahead : c1;
      const int outer_end = outer_start[end - 1] - first + outer;
      if (moves[0]) move_down(outer_sums, outer_row, outer, outer_ready, outer_end);
      outer_ready = outer_end;
      if constexpr (Inner) {
        const int inner_end = inner_start[end - 1] - first + inner;
        if (moves[1]) move_down(inner_sums, inner_row, inner, inner_ready, inner_end);
        inner_ready = inner_end;
      }
      for (int c = begin; c < end; ++c) {
        if (c > c0) {
          const std::int64_t o = outer_start[c] - first;
          const bool outer_slides = outer_start[c] != outer_start[c - 1];
          if constexpr (Inner) {
            // What joins first, then what goes.
            const std::int64_t g = inner_start[c] - first;
            const bool inner_slides = inner_start[c] != inner_start[c - 1];
            if (outer_slides) add_column<1>(outer_sums, o + outer - 1, total);
            if (inner_slides) add_column<1>(inner_sums, g - 1, total);
            const Squares before = squares(total);
            if (outer_slides) add_column<-1>(outer_sums, o - 1, total);
            if (inner_slides) add_column<-1>(inner_sums, g + inner - 1, total);
            if (shrank(before, total)) total = window_sums(row, c);
          } else if (outer_slides) {
            add_column<1>(outer_sums, o + outer - 1, total);
            const Squares before = squares(total);
            add_column<-1>(outer_sums, o - 1, total);
            if (shrank(before, total)) total = window_sums(row, c);
          }
        }
        if (count) {
          d = Divisors(count[c], ddof, center);
          per_sample = S::set1(d.per_sample);
          per_degree = S::set1(d.per_degree);
          per_both = S::set1(d.per_square * d.per_degree);
        }
        V m[chunks];
        V cov[products];
        MAHAL_UNROLL
        for (int q = 0; q < chunks; ++q) m[q] = total.sample[q] * per_both;
        MAHAL_UNROLL
        for (int i = 0; i < products; ++i) cov[i] = total.product[i] * per_degree;
        multiply<-1>(total.sample, m, cov);
        // Rounding leaves no variance below zero; NaN passes.
        MAHAL_UNROLL
        for (int q = 0; q < chunks; ++q) cov[q] = S::max(V{}, cov[q]);
        if constexpr (Complex) {
          write_hermitian(covariance, cov, bands);
          covariance += covariance_stride;
        } else {
          store_diagonals(cov, diagonals + (c - begin) * buffer_size,
                          typename MakeIndices<spectrum * out_chunks>::type{});
        }
        if (mean) {
          MAHAL_UNROLL
          for (int q = 0; q < chunks; ++q) m[q] = S::fma(total.sample[q], per_sample, centre[q]);
          write_mean(mean, m, bands);
          mean += mean_stride;
        }
      }
      for (int c = begin; c < end && !Complex; ++c) {
        O diag[spectrum * out_chunks];
        MAHAL_UNROLL
        for (int i = 0; i < spectrum * out_chunks; ++i)
          diag[i] = Out::load(diagonals + (c - begin) * buffer_size + i * out_lanes);
        O matrix[N * out_chunks];
        all_rows(diag, matrix, typename MakeIndices<out_chunks>::type{});
        if (whole) {
          write_full(covariance, matrix);
        } else {
          write_part(covariance, matrix, bands, i_begin, i_end);
        }
        covariance += covariance_stride;
      }
    }
  }

  void run() const {
    for (int r = b.row_begin; r < b.row_end; ++r) {
      bool moves[2] = {false, false};
      for (int w = 0; w < (b.inner ? 2 : 1); ++w) {
        const std::int32_t* starts = w ? b.rows.inner_start : b.rows.outer_start;
        if (r == b.row_begin) {
          start(column_sums[w], starts[r], w ? b.inner : b.outer);
        } else {
          moves[w] = starts[r] != starts[r - 1];
        }
      }
      if (b.inner) {
        slide<true>(r, moves);
      } else {
        slide<false>(r, moves);
      }
    }
    store_fence();
  }
};

template <class T, bool Complex>
std::size_t bytes(const LocalCovarianceBlock<T>& b) {
  if (b.pixels.bands <= 4) return PackedMap<T, 4, Complex>::bytes(b);
  if (b.pixels.bands <= 8) return PackedMap<T, 8, Complex>::bytes(b);
  const std::int64_t columns = tile_columns(b);
  const std::int64_t padded = b.pixels.padded;
  constexpr int R = 8;
  const std::int64_t band_rows = (b.band_end - b.band_begin + R - 1) / R * R;
  const std::int64_t windows = b.inner ? 2 : 1;
  const std::int64_t lines = 4 * columns * padded;
  const std::int64_t sums = windows * columns * padded;
  const std::int64_t squares = windows * columns * band_rows * padded;
  return sizeof(double) * static_cast<std::size_t>(lines + sums + squares + columns * padded);
}

// More bands: blocks of R rows by one vector of columns of the covariance are carried through the
// tile one after the other.
template <class T>
struct Map {
  static constexpr int R = 8;

  const LocalCovarianceBlock<T>& b;
  const int padded;
  const std::int64_t columns;
  double* entering[2];  // columns x padded, of the outer and the inner window
  double* leaving[2];
  double* sums[2];         // per column: sum of the samples over the rows of the window
  double* squares[2];      // per block and column: R x L sums of products
  double* pixel_sum_line;  // per pixel of the tile: sum of the samples of its window
  int blocks_per_row;

  MAHAL_INLINE explicit Map(const LocalCovarianceBlock<T>& block)
      : b(block), padded(block.pixels.padded), columns(tile_columns(block)) {
    double* at = static_cast<double*>(block.scratch);
    auto take = [&](std::int64_t n) {
      double* here = at;
      at += n;
      return here;
    };
    blocks_per_row = padded / L;
    const std::int64_t line = columns * padded;
    const std::int64_t band_rows = (b.band_end - b.band_begin + R - 1) / R * R;
    const int windows = b.inner ? 2 : 1;
    for (int w = 0; w < 2; ++w) entering[w] = take(line);
    for (int w = 0; w < 2; ++w) leaving[w] = take(line);
    for (int w = 0; w < windows; ++w) sums[w] = take(line);
    for (int w = 0; w < windows; ++w) squares[w] = take(columns * band_rows * padded);
    pixel_sum_line = take(static_cast<std::int64_t>(b.col_end - b.col_begin) * padded);
  }

  // One image row of the tile, centred, zero where a pixel is left out.
  MAHAL_INLINE void load_line(int row, double* line) const {
    const int first = first_column(b);
    const std::int64_t r = b.rows.index[row];
    for (std::int64_t u = 0; u < columns; ++u) {
      const std::int64_t c = b.cols.index[first + u];
      double* dst = line + u * padded;
      if (b.status && b.status[r * b.pixels.cols + c]) {
        for (int j = 0; j < padded; ++j) dst[j] = 0;
        continue;
      }
      load_centred(b.pixels, b.pixels.data + r * b.pixels.row_stride + c * b.pixels.col_stride,
                   b.offset, dst);
    }
  }

  MAHAL_INLINE void add_sums(int w, bool enter, bool leave) const {
    for (std::int64_t i = 0; i < columns * padded; i += L) {
      V v = S::load(sums[w] + i);
      if (enter) v = v + S::load(entering[w] + i);
      if (leave) v = v - S::load(leaving[w] + i);
      S::store(sums[w] + i, v);
    }
  }

  // Products of one line joined to the column sums of block (i0, j0).
  MAHAL_INLINE void add_line(const double* line, int i0, int j0, double* square) const {
    for (std::int64_t u = 0; u < columns; ++u) {
      const double* x = line + u * padded;
      const V xj = S::load(x + j0);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        double* p = square + (u * R + r) * L;
        S::store(p, S::fma(S::set1(x[i0 + r]), xj, S::load(p)));
      }
    }
  }

  MAHAL_INLINE double* block_squares(int w, int i0, int j0) const {
    const std::int64_t index = (i0 - b.band_begin) / R * blocks_per_row + j0 / L;
    return squares[w] + index * columns * R * L;
  }

  void start(int row) const {
    const int starts[2] = {b.rows.outer_start[row], b.inner ? b.rows.inner_start[row] : 0};
    const int sides[2] = {b.outer, b.inner};
    for (int w = 0; w < (b.inner ? 2 : 1); ++w) {
      const std::int64_t band_rows = (b.band_end - b.band_begin + R - 1) / R * R;
      for (std::int64_t i = 0; i < columns * padded; i += L) S::store(sums[w] + i, V{});
      for (std::int64_t i = 0; i < columns * band_rows * padded; i += L) {
        S::store(squares[w] + i, V{});
      }
      for (int v = 0; v < sides[w]; ++v) {
        load_line(starts[w] + v, entering[w]);
        add_sums(w, true, false);
        for (int i0 = b.band_begin; i0 < b.band_end; i0 += R) {
          for (int j0 = 0; j0 < b.pixels.bands; j0 += L) {
            add_line(entering[w], i0, j0, block_squares(w, i0, j0));
          }
        }
      }
    }
  }

  // One column of a window: takes the entering row and drops the leaving one when the window moved
  // down, then joins the sum of the pixel (or leaves it, for the inner window).
  template <bool Update, bool Subtract>
  static MAHAL_INLINE void enter_column(double* p, const double* e, const double* d, int i0, int j0,
                                        V* total) {
    V v[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) v[r] = S::load(p + r * L);
    if constexpr (Update) {
      const double* ei = e + i0;
      const double* di = d + i0;
      const V ej = S::load(e + j0);
      const V dj = S::load(d + j0);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) v[r] = S::fma(S::set1(ei[r]), ej, v[r]);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) v[r] = S::fnma(S::set1(di[r]), dj, v[r]);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) S::store(p + r * L, v[r]);
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) total[r] = Subtract ? total[r] - v[r] : total[r] + v[r];
  }
  template <bool Subtract>
  static MAHAL_INLINE void leave_column(const double* p, V* total) {
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const V v = S::load(p + r * L);
      total[r] = Subtract ? total[r] + v : total[r] - v;
    }
  }

  using Narrow = Simd<float, L * 4 < 16 ? 16 : L * 4>;

  template <int... J>
  static MAHAL_INLINE V swapped(V v, Indices<J...>) {
    return __builtin_shufflevector(v, v, (J ^ 1)...);
  }
  template <int... J>
  static MAHAL_INLINE V signs(Indices<J...>) {
    return V{(J % 2 ? -1.0 : 1.0)...};
  }
  // Writes R rows of L entries of one covariance of n bands. Where they are parts of complex bands,
  // two rows make one: entry z_j conj(z_k) of the parts' products.
  static MAHAL_INLINE void write(T* out, int n, int i0, int i_end, int j0, const V* c,
                                 bool hermitian) {
    if (hermitian) {
      using Lanes = typename MakeIndices<L>::type;
      MAHAL_UNROLL
      for (int r = 0; r < R; r += 2) {
        if (i0 + r >= i_end) continue;
        // The signed zero of a diagonal entry that cancels is positive this way round.
        const V v = S::fma(c[r], signs(Lanes{}), swapped(c[r + 1], Lanes{}));
        write_row(out + static_cast<std::ptrdiff_t>((i0 + r) / 2) * n + j0, n - j0, v);
      }
      return;
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      if (i0 + r < i_end)
        write_row(out + static_cast<std::ptrdiff_t>(i0 + r) * n + j0, n - j0, c[r]);
    }
  }
  static MAHAL_INLINE void write_row(T* p, int left, V v) {
    if (left >= L) {
      if constexpr (sizeof(T) == 8) {
        S::storeu(p, v);
        return;
      } else if constexpr (L >= 4) {
        Narrow::storeu(p, S::narrow(v));
        return;
      }
    }
    MAHAL_UNROLL
    for (int k = 0; k < L; ++k)
      if (k < left) p[k] = static_cast<T>(v[k]);
  }

  // Zero in lane `lane`, if there is such a lane, and no bound elsewhere: rounding leaves no variance
  // below zero. As the first argument of max it lets NaN through.
  static MAHAL_INLINE V diagonal_floor(int lane) {
    V v = S::set1(-__builtin_inf());
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l)
      if (l == lane) v[l] = 0;
    return v;
  }

  // Slides one block of the covariance along a row of pixels.
  template <bool Inner, bool OuterMoves, bool InnerMoves>
  MAHAL_INLINE void slide_block(int row, int i0, int j0) const {
    // Everything in locals: the stores below could alias the members.
    const int n = b.pixels.bands;
    const int i_end = b.band_end;
    const int stride = padded;
    const int outer = b.outer;
    const int inner = b.inner;
    const int c0 = b.col_begin;
    const int c1 = b.col_end;
    const std::int32_t* outer_start = b.cols.outer_start;
    const std::int32_t* inner_start = b.cols.inner_start;
    const std::int32_t* count = b.count ? b.count + row * b.count_stride : nullptr;
    double* const os = block_squares(0, i0, j0);
    double* const is = Inner ? block_squares(1, i0, j0) : nullptr;
    const double* const oe = entering[0];
    const double* const ol = leaving[0];
    const double* const ie = entering[1];
    const double* const il = leaving[1];
    const int first = outer_start[c0];
    T* out =
        b.covariance + (static_cast<std::int64_t>(row) * b.pixels.cols + c0) * b.covariance_stride;
    const std::ptrdiff_t out_stride = b.covariance_stride;
    const double* sums_of_pixel = pixel_sum_line;
    const bool hermitian = b.hermitian;
    Divisors d(b.samples, b.ddof, b.center);
    constexpr int block = R * L;

    V total[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) total[r] = V{};
    for (int u = 0; u < outer; ++u) {
      enter_column<OuterMoves, false>(os + u * block, oe + u * stride, ol + u * stride, i0, j0,
                                      total);
    }
    if constexpr (Inner) {
      const int g = inner_start[c0] - first;
      for (int u = g; u < g + inner; ++u) {
        enter_column<InnerMoves, true>(is + u * block, ie + u * stride, il + u * stride, i0, j0,
                                       total);
      }
    }
    for (int c = c0; c < c1; ++c) {
      if (c > c0) {
        const int o = outer_start[c] - first;
        if (o != outer_start[c - 1] - first) {
          const int u = o + outer - 1;
          enter_column<OuterMoves, false>(os + u * block, oe + u * stride, ol + u * stride, i0, j0,
                                          total);
          leave_column<false>(os + (o - 1) * block, total);
        }
        if constexpr (Inner) {
          const int g = inner_start[c] - first;
          if (g != inner_start[c - 1] - first) {
            const int u = g + inner - 1;
            enter_column<InnerMoves, true>(is + u * block, ie + u * stride, il + u * stride, i0, j0,
                                           total);
            leave_column<true>(is + (g - 1) * block, total);
          }
        }
      }
      if (count) d = Divisors(count[c], b.ddof, b.center);
      const V mj = S::load(sums_of_pixel + j0);
      const V per_square = S::set1(d.per_square);
      const V per_degree = S::set1(d.per_degree);
      const double* mi = sums_of_pixel + i0;
      V cov[R];
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        // The product of the means first: it is the same either way round.
        cov[r] = S::fnma(S::set1(mi[r]) * mj, per_square, total[r]) * per_degree;
        cov[r] = S::max(diagonal_floor(i0 + r - j0), cov[r]);
      }
      write(out, n, i0, i_end, j0, cov, hermitian);
      out += out_stride;
      sums_of_pixel += stride;
    }
  }

  template <bool Inner, bool OuterMoves, bool InnerMoves>
  __attribute__((noinline)) void slide(int row) const {
    for (int i0 = b.band_begin; i0 < b.band_end; i0 += R) {
      for (int j0 = 0; j0 < b.pixels.bands; j0 += L) {
        slide_block<Inner, OuterMoves, InnerMoves>(row, i0, j0);
      }
    }
  }

  // Sums of the samples of the window of every pixel, and the means.
  template <bool Inner>
  __attribute__((noinline)) void slide_sums(int row) const {
    const int n = b.pixels.bands;
    const int stride = padded;
    const int outer = b.outer;
    const int inner = b.inner;
    const int c0 = b.col_begin;
    const int c1 = b.col_end;
    const std::int32_t* outer_start = b.cols.outer_start;
    const std::int32_t* inner_start = b.cols.inner_start;
    const std::int32_t* count = b.count ? b.count + row * b.count_stride : nullptr;
    const std::ptrdiff_t out_stride = b.mean_stride;
    const int first = outer_start[c0];
    Divisors d(b.samples, b.ddof, b.center);
    for (int j0 = 0; j0 < stride; j0 += L) {
      const double* os = sums[0] + j0;
      const double* is = Inner ? sums[1] + j0 : nullptr;
      V offset{};
      for (int l = 0; l < L && j0 + l < n; ++l) offset[l] = b.offset[j0 + l];
      double* sums_of_pixel = pixel_sum_line + j0;
      T* out =
          b.mean ? b.mean + (static_cast<std::int64_t>(row) * b.pixels.cols + c0) * out_stride + j0
                 : nullptr;
      V total{};
      for (int u = 0; u < outer; ++u) total = total + S::load(os + u * stride);
      if constexpr (Inner) {
        const int g = inner_start[c0] - first;
        for (int u = g; u < g + inner; ++u) total = total - S::load(is + u * stride);
      }
      for (int c = c0; c < c1; ++c) {
        if (c > c0) {
          const int o = outer_start[c] - first;
          if (o != outer_start[c - 1] - first) {
            total = total + S::load(os + (o + outer - 1) * stride) - S::load(os + (o - 1) * stride);
          }
          if constexpr (Inner) {
            const int g = inner_start[c] - first;
            if (g != inner_start[c - 1] - first) {
              total =
                  total - S::load(is + (g + inner - 1) * stride) + S::load(is + (g - 1) * stride);
            }
          }
        }
        S::store(sums_of_pixel, total);
        sums_of_pixel += stride;
        if (out) {
          if (count) d = Divisors(count[c], b.ddof, b.center);
          write_row(out, n - j0, S::fma(total, S::set1(d.per_sample), offset));
          out += out_stride;
        }
      }
    }
  }

  void run() {
    for (int r = b.row_begin; r < b.row_end; ++r) {
      bool outer_moves = false;
      bool inner_moves = false;
      if (r == b.row_begin) {
        start(r);
      } else {
        const int o = b.rows.outer_start[r];
        outer_moves = o != b.rows.outer_start[r - 1];
        if (outer_moves) {
          load_line(o + b.outer - 1, entering[0]);
          load_line(o - 1, leaving[0]);
          add_sums(0, true, true);
        }
        if (b.inner) {
          const int g = b.rows.inner_start[r];
          inner_moves = g != b.rows.inner_start[r - 1];
          if (inner_moves) {
            load_line(g + b.inner - 1, entering[1]);
            load_line(g - 1, leaving[1]);
            add_sums(1, true, true);
          }
        }
      }
      if (b.inner) {
        slide_sums<true>(r);
        if (outer_moves && inner_moves) slide<true, true, true>(r);
        if (outer_moves && !inner_moves) slide<true, true, false>(r);
        if (!outer_moves && inner_moves) slide<true, false, true>(r);
        if (!outer_moves && !inner_moves) slide<true, false, false>(r);
      } else {
        slide_sums<false>(r);
        if (outer_moves) {
          slide<false, true, false>(r);
        } else {
          slide<false, false, false>(r);
        }
      }
    }
    store_fence();
  }
};

template <class T, bool Complex>
void run_map(const LocalCovarianceBlock<T>& b) {
  if (b.pixels.bands <= 4) {
    PackedMap<T, 4, Complex>(b).run();
  } else if (b.pixels.bands <= 8) {
    PackedMap<T, 8, Complex>(b).run();
  } else {
    Map<T>(b).run();
  }
}

}  // namespace

template <>
std::size_t LocalCovarianceKernel<current_isa>::scratch_bytes(
    const LocalCovarianceBlock<float>& b) {
  return b.hermitian ? bytes<float, true>(b) : bytes<float, false>(b);
}
template <>
std::size_t LocalCovarianceKernel<current_isa>::scratch_bytes(
    const LocalCovarianceBlock<double>& b) {
  return b.hermitian ? bytes<double, true>(b) : bytes<double, false>(b);
}
template <>
void LocalCovarianceKernel<current_isa>::run(const LocalCovarianceBlock<float>& b) {
  b.hermitian ? run_map<float, true>(b) : run_map<float, false>(b);
}
template <>
void LocalCovarianceKernel<current_isa>::run(const LocalCovarianceBlock<double>& b) {
  b.hermitian ? run_map<double, true>(b) : run_map<double, false>(b);
}

}  // namespace mahal

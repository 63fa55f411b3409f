#include "core/isa.hpp"
#include "core/simd.hpp"
#include "ops/window_adjoint_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
inline constexpr int L = S::lanes;

enum class Source { samples, dense, low_rank };

// Offsets in doubles.
struct Layout {
  std::ptrdiff_t ld, columns;  // of the sums; of the result
  int channels;
  std::ptrdiff_t sums, prefix, line, x, y, means, shift, left, right, weights, gradient, kinds,
      total;
};

// Lines of whole vectors, an odd number of 64 bytes: neighbouring lines then lie in different sets
// of the first-level cache.
constexpr std::ptrdiff_t line_of(std::ptrdiff_t n) { return ((n + 7) / 8 | 1) * 8; }

template <class T>
MAHAL_INLINE Layout layout_of(const WindowAdjointBlock<T>& b) {
  Layout s;
  std::ptrdiff_t at = 0;
  auto take = [&](std::ptrdiff_t n) {
    const std::ptrdiff_t here = at;
    at += (n + 7) / 8 * 8;
    return here;
  };
  const std::ptrdiff_t n = b.bands;
  s.ld = line_of(b.source_end - b.source_begin);
  s.columns = line_of(b.col_end - b.col_begin);
  s.channels = static_cast<int>((b.matrices ? n * (n + 1) / 2 : 0) + n + 1);
  s.sums = take(b.windows * s.channels * s.ld);
  s.prefix = take(s.ld + L);
  s.line = take(s.columns);
  s.x = take(n * s.columns);
  s.y = take(n * s.columns);
  s.means = take(n * L);
  s.shift = take(n * L);
  s.left = take(b.rank * n * L);
  s.right = take(b.rank * n * L);
  s.weights = take(adjoint_coefficients(b.rank) * L);
  const std::ptrdiff_t elements = (b.matrices && b.covariance ? n * n : 0) + n;
  s.gradient = take(elements * L);
  s.kinds = take(2 * window_spans * s.columns / L + 8);
  s.total = at;
  return s;
}

enum Kind : int { empty, moving, any };  // of the spans of L neighbouring columns

// The sums over the rows of the windows, one line per channel with the columns in the lanes, slide
// from row to row of the result; the sums over their columns are differences of prefix sums along
// the line, which start anew in every tile.
template <class T>
struct Adjoint {
  const WindowAdjointBlock<T>& b;
  const Layout s;
  double* const mem;

  MAHAL_INLINE explicit Adjoint(const WindowAdjointBlock<T>& block)
      : b(block), s(layout_of(block)), mem(static_cast<double*>(block.scratch)) {}

  MAHAL_INLINE std::int64_t pixel(std::int64_t row, std::int64_t col) const {
    return row * b.cols + col;
  }
  MAHAL_INLINE double* sums(int window) const {
    return mem + s.sums + static_cast<std::ptrdiff_t>(window) * s.channels * s.ld;
  }
  // Columns past the end repeat the last one: nothing reads their sums.
  MAHAL_INLINE int source(std::ptrdiff_t c) const {
    const std::ptrdiff_t col = b.source_begin + c;
    return static_cast<int>(col < b.source_end ? col : b.source_end - 1);
  }

  MAHAL_INLINE void add(double* channel, V sign, V v) const {
    S::store(channel, S::fma(sign, v, S::load(channel)));
  }

  MAHAL_INLINE void add_samples(double* at, int row, std::ptrdiff_t c, V sign) const {
    const double* src[L];
    for (int l = 0; l < L; ++l) src[l] = b.samples + pixel(row, source(c + l)) * b.sample_stride;
    double* x = mem + s.means;
    interleave<S, false>(src, b.bands, x, L);
    for (int j = 0; j < b.bands; ++j) add(at + j * s.ld, sign, S::load(x + j * L));
  }

  // Reads `rows` x `row_elements` numbers per lane, and tells which lanes hold one that is not
  // finite.
  MAHAL_INLINE void gather(const T* const* src, int rows, std::ptrdiff_t row_stride,
                           int row_elements, std::ptrdiff_t stride, T* dst, bool* broken) const {
    using N = Simd<T, static_cast<int>(sizeof(T)) * L>;
    const int elements = rows * row_elements;
    if (stride == 1 && (rows == 1 || row_stride == row_elements)) {
      interleave<N, false>(src, elements, dst, L);
    } else {
      for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < row_elements; ++j) {
          for (int l = 0; l < L; ++l) {
            dst[(i * row_elements + j) * L + l] = src[l][i * row_stride + j * stride];
          }
        }
      }
    }
    typename N::V rest = N::zero();
    for (int e = 0; e < elements; ++e) {
      const typename N::V v = N::load(dst + e * L);
      rest = rest + (v - v);
    }
    for (int l = 0; l < L; ++l) broken[l] |= !(rest[l] == T(0));
  }
  static MAHAL_INLINE void clear(T* values, int elements, int lane) {
    for (int e = 0; e < elements; ++e) values[e * L + lane] = T(0);
  }

  // Complex numbers are read with their parts as neighbours; strides are in real elements.
  MAHAL_INLINE void gather_entries(const T* const* src, int rows, std::ptrdiff_t row_stride,
                                   int row_entries, std::ptrdiff_t stride, T* dst,
                                   bool* broken) const {
    if (!b.hermitian) {
      gather(src, rows, row_stride, row_entries, stride, dst, broken);
    } else if (stride == 2 && (rows == 1 || row_stride == 2 * row_entries)) {
      gather(src, 1, 0, 2 * rows * row_entries, 1, dst, broken);
    } else {
      for (int e = 0; e < rows * row_entries; ++e) {
        const T* entry[L];
        for (int l = 0; l < L; ++l) {
          entry[l] = src[l] + e / row_entries * row_stride + e % row_entries * stride;
        }
        gather(entry, 1, 0, 2, 1, dst + 2 * e * L, broken);
      }
    }
  }

  MAHAL_INLINE void add_dense(double* at, int row, std::ptrdiff_t c, V sign) const {
    const int n = b.bands;
    const T* matrix[L];
    const T* vector[L];
    const double* means[L];
    alignas(64) double of_matrix[L];
    alignas(64) double of_vector[L];
    alignas(64) double broken[L];
    bool bad_matrix[L] = {};
    bool bad_vector[L] = {};
    for (int l = 0; l < L; ++l) {
      const int col = source(c + l);
      if (b.covariance) matrix[l] = b.covariance + row * b.covariance_row + col * b.covariance_col;
      if (b.mean) vector[l] = b.mean + row * b.mean_row + col * b.mean_col;
      if (b.means) means[l] = b.means + pixel(row, col) * n;
      const int samples = b.count ? b.count[pixel(row, col)] : b.samples_each;
      of_matrix[l] = samples > b.ddof ? 1.0 / (samples - b.ddof) : 0.0;
      of_vector[l] = samples > 0 ? 1.0 / samples : 0.0;
    }
    T* const gradient = reinterpret_cast<T*>(mem + s.gradient);
    T* const matrices = gradient + static_cast<std::ptrdiff_t>(n) * L;
    const int elements = b.hermitian ? n * n / 2 : n * n;
    const int entries = b.hermitian ? n / 2 : n;
    if (b.matrices) {
      gather_entries(matrix, entries, b.covariance_i, entries, b.covariance_j, matrices,
                     bad_matrix);
    }
    if (b.mean) gather_entries(vector, 1, 0, entries, b.mean_i, gradient, bad_vector);
    for (int l = 0; l < L; ++l) {
      bad_matrix[l] &= of_matrix[l] > 0;
      bad_vector[l] &= of_vector[l] > 0;
      broken[l] = bad_matrix[l] || bad_vector[l];
      // A window without a result passes nothing, whatever its gradient is.
      if (b.matrices && (of_matrix[l] == 0 || broken[l] > 0)) clear(matrices, elements, l);
      if (b.mean && (of_vector[l] == 0 || broken[l] > 0)) clear(gradient, n, l);
    }

    double* const shift = mem + s.shift;
    const V reciprocal = -S::load(of_vector);
    for (int j = 0; j < n; ++j) {
      S::store(shift + j * L, b.mean ? S::widen(gradient + j * L) * reciprocal : S::zero());
    }
    if (b.matrices) {
      double* const m = mem + s.means;
      if (b.means) {
        interleave<S, false>(means, n, m, L);
      } else {
        for (int j = 0; j < n; ++j) S::store(m + j * L, S::zero());
      }
      const V weight = S::load(of_matrix);
      double* channel = at;
      const auto emit = [&](int j, int k, V v) {
        add(channel, sign, v);
        channel += s.ld;
        S::store(shift + j * L, S::fma(v, S::load(m + k * L), S::load(shift + j * L)));
        if (k == j) return;
        S::store(shift + k * L, S::fma(v, S::load(m + j * L), S::load(shift + k * L)));
      };
      if (!b.hermitian) {
        for (int j = 0; j < n; ++j) {
          for (int k = 0; k <= j; ++k) {
            const V one = S::widen(matrices + (j * n + k) * L);
            emit(j, k, (one + S::widen(matrices + (k * n + j) * L)) * weight);
          }
        }
      } else {
        const auto real = [&](int j, int k) {
          return (S::widen(matrices + (j / 2 * n + k / 2 * 2) * L) +
                  S::widen(matrices + (k / 2 * n + j / 2 * 2) * L)) *
                 weight;
        };
        const auto imaginary = [&](int j, int k) {
          return (S::widen(matrices + (j / 2 * n + k / 2 * 2 + 1) * L) -
                  S::widen(matrices + (k / 2 * n + j / 2 * 2 + 1) * L)) *
                 weight;
        };
        for (int j = 0; j < n; ++j) {
          for (int k = 0; k <= j; ++k) {
            if (j % 2 == k % 2) {
              emit(j, k, real(j, k));
            } else {
              emit(j, k, j % 2 ? imaginary(j, k) : -imaginary(j, k));
            }
          }
        }
      }
    }
    double* channel = at + (s.channels - 1 - n) * s.ld;
    for (int j = 0; j < n; ++j) add(channel + j * s.ld, sign, S::load(shift + j * L));
    add(channel + n * s.ld, sign, S::load(broken));
  }

  // Element k of the coefficients of L pixels.
  MAHAL_INLINE V coefficient(int k) const { return S::load(mem + s.weights + k * L); }
  MAHAL_INLINE V c0(int i) const { return coefficient(i); }
  MAHAL_INLINE V cii(int i) const { return coefficient(b.rank - 1 + i); }
  MAHAL_INLINE V beta(int i) const { return coefficient(2 * b.rank - 1 + i); }
  MAHAL_INLINE V delta(int i) const { return coefficient(3 * b.rank - 1 + i); }
  MAHAL_INLINE V broken() const { return coefficient(4 * b.rank - 1); }

  MAHAL_INLINE void load_vectors(const std::int64_t* pixels) const {
    const int n = b.bands;
    const int coefficients = adjoint_coefficients(b.rank);
    for (int i = 0; i < b.rank; ++i) {
      const double* src[L];
      for (int l = 0; l < L; ++l)
        src[l] = b.vectors + pixels[l] * b.vector_pixel + i * b.vector_stride;
      interleave<S, false>(src, n, mem + s.left + static_cast<std::ptrdiff_t>(i) * n * L, L);
    }
    for (int k = 0; k < coefficients; ++k) {
      for (int l = 0; l < L; ++l) {
        mem[s.weights + k * L + l] = b.coefficients[pixels[l] * coefficients + k];
      }
    }
  }

  template <int Rank>
  MAHAL_INLINE void add_products(double* at, V sign) const {
    const int n = b.bands;
    const int rank = Rank ? Rank : b.rank;
    const double* const left = mem + s.left;
    const double* const right = mem + s.right;
    double* channel = at;
    for (int j = 0; j < n; ++j) {
      V a[Rank ? Rank : 1];
      if constexpr (Rank > 0) {
    MAHAL_UNROLL
        for (int i = 0; i < Rank; ++i) a[i] = S::load(left + (i * n + j) * L) * sign;
      }
      for (int k = 0; k <= j; ++k) {
        V v = S::load(channel);
        if constexpr (Rank > 0) {
          MAHAL_UNROLL
          for (int i = 0; i < Rank; ++i) v = S::fma(a[i], S::load(right + (i * n + k) * L), v);
        } else {
          for (int i = 0; i < rank; ++i) {
            v = S::fma(S::load(left + (i * n + j) * L) * sign, S::load(right + (i * n + k) * L), v);
          }
        }
        S::store(channel, v);
        channel += s.ld;
      }
    }
  }

  MAHAL_INLINE void add_low_rank(double* at, int row, std::ptrdiff_t c, V sign) const {
    const int n = b.bands;
    std::int64_t pixels[L];
    for (int l = 0; l < L; ++l) pixels[l] = pixel(row, source(c + l));
    load_vectors(pixels);
    const double* const left = mem + s.left;
    if (b.matrices) {
      double* const right = mem + s.right;
      for (int j = 0; j < n; ++j) {
        const V first = S::load(left + j * L);
        V f = c0(0) * first;
        for (int i = 1; i < b.rank; ++i) {
          const V a = S::load(left + (i * n + j) * L);
          f = S::fma(c0(i), a, f);
          S::store(right + (i * n + j) * L, S::fma(c0(i), first, cii(i) * a));
        }
        S::store(right + j * L, f);
      }
      if (b.rank == 1) {
        add_products<1>(at, sign);
      } else if (b.rank == 2) {
        add_products<2>(at, sign);
      } else {
        add_products<0>(at, sign);
      }
    }
    double* const channel = at + (s.channels - 1 - n) * s.ld;
    for (int j = 0; j < n; ++j) {
      V v = S::zero();
      for (int i = 0; i < b.rank; ++i) v = S::fma(beta(i), S::load(left + (i * n + j) * L), v);
      add(channel + j * s.ld, sign, v);
    }
    add(channel + n * s.ld, sign, broken());
  }

  template <Source F>
  __attribute__((noinline)) void add_row(int window, int row, double sign) const {
    double* const at = sums(window);
    for (std::ptrdiff_t c = 0; c < s.ld; c += L) {
      if constexpr (F == Source::samples) add_samples(at + c, row, c, S::set1(sign));
      if constexpr (F == Source::dense) add_dense(at + c, row, c, S::set1(sign));
      if constexpr (F == Source::low_rank) add_low_rank(at + c, row, c, S::set1(sign));
    }
  }
  template <Source F>
  MAHAL_INLINE void add_rows(int window, int begin, int end, double sign) const {
    for (int row = begin; row < end; ++row) add_row<F>(window, row, sign);
  }

  // From the rows of the spans of r - 1 to those of r.
  template <Source F>
  MAHAL_INLINE void slide(int window, int r) const {
    const WindowSpans& spans = b.row_spans[window];
    if (r == b.row_begin) {
      double* at = sums(window);
      for (std::ptrdiff_t e = 0; e < s.channels * s.ld; e += L) S::store(at + e, S::zero());
    }
    for (int k = 0; k < spans.count; ++k) {
      const std::int64_t i = k * spans.length + r;
      const int begin = spans.begin[i];
      const int end = spans.end[i];
      if (r == b.row_begin || spans.end[i - 1] <= begin || end <= spans.begin[i - 1]) {
        if (r > b.row_begin) add_rows<F>(window, spans.begin[i - 1], spans.end[i - 1], -1);
        add_rows<F>(window, begin, end, 1);
        continue;
      }
      add_rows<F>(window, begin, spans.begin[i - 1], 1);
      add_rows<F>(window, spans.end[i - 1], end, 1);
      add_rows<F>(window, spans.begin[i - 1], begin, -1);
      add_rows<F>(window, end, spans.end[i - 1], -1);
    }
  }

  MAHAL_INLINE int* kinds(int window, int span) const {
    return reinterpret_cast<int*>(mem + s.kinds) + (window * window_spans + span) * s.columns / L;
  }
  MAHAL_INLINE void find_kinds() const {
    for (int w = 0; w < b.windows; ++w) {
      const WindowSpans& spans = b.col_spans[w];
      for (int k = 0; k < spans.count; ++k) {
        const std::int32_t* begin = spans.begin + k * spans.length;
        const std::int32_t* end = spans.end + k * spans.length;
        for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
          Kind kind = empty;
          for (int l = 0; l < L && b.col_begin + c + l < b.col_end; ++l) {
            const std::ptrdiff_t col = b.col_begin + c + l;
            if (begin[col] < end[col]) kind = any;
          }
          if (kind == any && b.col_begin + c + L <= b.col_end) {
            const std::ptrdiff_t col = b.col_begin + c;
            bool regular = true;
            for (int l = 0; l < L; ++l) {
              regular &= begin[col + l] == begin[col] + l && end[col + l] == end[col] + l;
            }
            if (regular) kind = moving;
          }
          kinds(w, k)[c / L] = kind;
        }
      }
    }
  }

  // Sums of one channel over the columns of all spans, those of the inner window less.
  MAHAL_INLINE void sum_columns(int channel) const {
    double* const line = mem + s.line;
    double* const prefix = mem + s.prefix;
    for (int w = 0; w < b.windows; ++w) {
      const double* const from = sums(w) + channel * s.ld;
      prefix[0] = 0;
      V carry = S::zero();
      for (std::ptrdiff_t c = 0; c < s.ld; c += L) {
        const V v = S::prefix_sum(S::load(from + c));
        S::storeu(prefix + c + 1, v + carry);
        // Only this addition waits for the vector before.
        carry = carry + S::set1(v[L - 1]);
      }
      const WindowSpans& spans = b.col_spans[w];
      for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
        V total = S::zero();
        for (int k = 0; k < spans.count; ++k) {
          const int kind = kinds(w, k)[c / L];
          if (kind == empty) continue;
          const std::int32_t* begin = spans.begin + k * spans.length + b.col_begin;
          const std::int32_t* end = spans.end + k * spans.length + b.col_begin;
          if (kind == moving) {
            total = total + (S::loadu(prefix + end[c] - b.source_begin) -
                             S::loadu(prefix + begin[c] - b.source_begin));
            continue;
          }
          alignas(64) double sum[L];
          for (int l = 0; l < L; ++l) {
            const bool inside = b.col_begin + c + l < b.col_end && begin[c + l] < end[c + l];
            sum[l] = inside ? prefix[end[c + l] - b.source_begin] -
                                  prefix[begin[c + l] - b.source_begin]
                            : 0.0;
          }
          total = total + S::load(sum);
        }
        S::store(line + c, w == 0 ? total : S::load(line + c) - total);
      }
    }
  }

  // y += line * x
  MAHAL_INLINE void add_line(std::ptrdiff_t y, std::ptrdiff_t x) const {
    for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
      double* to = mem + s.y + y * s.columns + c;
      const V v = S::load(mem + s.x + x * s.columns + c);
      S::store(to, S::fma(S::load(mem + s.line + c), v, S::load(to)));
    }
  }

  MAHAL_INLINE std::int64_t result(int r, std::ptrdiff_t c) const {
    const std::ptrdiff_t col = b.col_begin + c;
    return pixel(r, col < b.col_end ? col : b.col_end - 1);
  }

  __attribute__((noinline)) void apply(int r) const {
    const int n = b.bands;
    for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
      const double* src[L];
      for (int l = 0; l < L; ++l) src[l] = b.samples + result(r, c + l) * b.sample_stride;
      interleave<S, false>(src, n, mem + s.x + c, s.columns);
    }
    const int vector = s.channels - 1 - n;
    for (int j = 0; j < n; ++j) {
      sum_columns(vector + j);
      for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
        S::store(mem + s.y + j * s.columns + c, -S::load(mem + s.line + c));
      }
    }
    if (!b.matrices) return;
    int channel = 0;
    for (int j = 0; j < n; ++j) {
      for (int k = 0; k <= j; ++k) {
        sum_columns(channel++);
        add_line(j, k);
        if (k < j) add_line(k, j);
      }
    }
  }

  // What the score of a pixel itself passes to it.
  MAHAL_INLINE void add_own(int r) const {
    const int n = b.bands;
    for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
      std::int64_t pixels[L];
      for (int l = 0; l < L; ++l) pixels[l] = result(r, c + l);
      load_vectors(pixels);
      // NaN where the gradient of the score is not finite, and else zero.
      const V nan = S::zero() / (S::set1(1.0) - broken());
      for (int j = 0; j < n; ++j) {
        double* y = mem + s.y + j * s.columns + c;
        V v = S::load(y) + nan;
        for (int i = 0; i < b.rank; ++i) {
          v = S::fma(delta(i), S::load(mem + s.left + (i * n + j) * L), v);
        }
        S::store(y, v);
      }
    }
  }

  // L^-T y of every column.
  __attribute__((noinline)) void unwhiten() const {
    double* const y = mem + s.y;
    for (int i = b.bands - 1; i >= 0; --i) {
      const double* row = b.factor + i * b.factor_stride;
      const V inverse = S::set1(b.inverse_diagonal[i]);
      double* const yi = y + i * s.columns;
      for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
        S::store(yi + c, S::load(yi + c) * inverse);
      }
      for (int j = 0; j < i; ++j) {
        const V share = S::set1(row[j]);
        double* const yj = y + j * s.columns;
        for (std::ptrdiff_t c = 0; c < s.columns; c += L) {
          S::store(yj + c, S::fnma(share, S::load(yi + c), S::load(yj + c)));
        }
      }
    }
  }

  __attribute__((noinline)) void store(int r) const {
    const int n = b.bands;
    sum_columns(s.channels - 1);
    const double* const broken = mem + s.line;
    for (int c = 0; b.col_begin + c < b.col_end; ++c) {
      const std::int64_t at = pixel(r, b.col_begin + c);
      T* to = b.out + at * n;
      const bool used = !b.status || b.status[at] == 0;
      const double* y = mem + s.y + c;
      for (int j = 0; j < n; ++j) {
        double v = used ? y[j * s.columns] : 0.0;
        if (used && broken[c] > 0.5) v = __builtin_nan("");
        to[j] = b.accumulate ? static_cast<T>(static_cast<double>(to[j]) + v) : static_cast<T>(v);
      }
    }
  }

  MAHAL_INLINE void store_means(int r) const {
    const int n = b.bands;
    for (int j = 0; j < n; ++j) {
      sum_columns(j);
      const double* line = mem + s.line;
      for (int c = 0; b.col_begin + c < b.col_end; ++c) {
        const std::int64_t at = pixel(r, b.col_begin + c);
        const int samples = b.count ? b.count[at] : b.samples_each;
        b.out_means[at * n + j] = samples > 0 ? line[c] / samples : 0.0;
      }
    }
  }

  template <Source F>
  MAHAL_INLINE void run() const {
    find_kinds();
    for (int r = b.row_begin; r < b.row_end; ++r) {
      for (int w = 0; w < b.windows; ++w) slide<F>(w, r);
      if constexpr (F == Source::samples) {
        store_means(r);
        continue;
      }
      apply(r);
      if constexpr (F == Source::low_rank) {
        add_own(r);
        if (b.factor) unwhiten();
      }
      store(r);
    }
  }
};

}  // namespace

template <>
std::size_t WindowAdjointKernel<current_isa>::scratch_bytes(const WindowAdjointBlock<float>& b) {
  return layout_of(b).total * sizeof(double);
}
template <>
std::size_t WindowAdjointKernel<current_isa>::scratch_bytes(const WindowAdjointBlock<double>& b) {
  return layout_of(b).total * sizeof(double);
}

template <>
void WindowAdjointKernel<current_isa>::means(const WindowAdjointBlock<double>& b) {
  Adjoint<double>(b).run<Source::samples>();
}
template <>
void WindowAdjointKernel<current_isa>::adjoint(const WindowAdjointBlock<float>& b) {
  Adjoint<float>(b).run<Source::dense>();
}
template <>
void WindowAdjointKernel<current_isa>::adjoint(const WindowAdjointBlock<double>& b) {
  Adjoint<double>(b).run<Source::dense>();
}
template <>
void WindowAdjointKernel<current_isa>::low_rank(const WindowAdjointBlock<float>& b) {
  Adjoint<float>(b).run<Source::low_rank>();
}
template <>
void WindowAdjointKernel<current_isa>::low_rank(const WindowAdjointBlock<double>& b) {
  Adjoint<double>(b).run<Source::low_rank>();
}
}  // namespace mahal

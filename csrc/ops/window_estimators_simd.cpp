#include "core/interleaved_cholesky.hpp"
#include "core/interleaved_hermitian.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/window_estimators_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;
constexpr int chunk = 32;  // samples between weighing and summing, so that they stay in cache
constexpr int together = 4;

// Every array holds L windows, a lane each. E: elements per band, 2 where it is complex.
template <int E>
struct Pack {
  // Rows of a register tile of the sums.
  static constexpr int B =
      E == 2 ? (vector_registers == 32 ? 3 : 2) : (vector_registers == 32 ? 4 : 3);

  const int width;      // elements per sample
  const int variables;  // bands as the user counts them
  const int capacity;   // samples
  const int pitch;      // of a staged pixel
  double* samples;      // capacity x width; zero past the samples of a window
  double* norms;        // capacity: squared length of the samples before they were scaled
  double* weights;      // chunk
  double* solved;       // together x width
  double* current;      // the estimate: variables x variables x E, lower triangle
  double* next;
  double* factor;
  double* inverse;  // variables
  double* mean;     // width, relative to the origin
  double* test;     // width
  double* origin;   // width
  double* aims;     // whitened targets, each width
  double* staged;   // one row of the pixels of all windows, not interleaved

  static int padded(int bands) { return (bands + 7) / 8 * 8; }
  static std::size_t elements(int bands, int samples, int outer, int aims) {
    const std::size_t n = static_cast<std::size_t>(bands);
    const std::size_t matrix = n * n / E;
    const std::size_t interleaved = static_cast<std::size_t>(samples) * (n + 1) + chunk +
                                    together * n + 3 * matrix + (5 + aims) * n;
    return interleaved * L + static_cast<std::size_t>(outer + L) * padded(bands);
  }
  Pack(int bands, int sample_count, int aim_count, void* scratch)
      : width(bands), variables(bands / E), capacity(sample_count), pitch(padded(bands)) {
    double* at = static_cast<double*>(scratch);
    const auto take = [&](std::int64_t count) {
      double* here = at;
      at += count * L;
      return here;
    };
    const std::int64_t matrix = static_cast<std::int64_t>(variables) * variables * E;
    samples = take(static_cast<std::int64_t>(capacity) * width);
    norms = take(capacity);
    weights = take(chunk);
    solved = take(together * width);
    current = take(matrix);
    next = take(matrix);
    factor = take(matrix);
    inverse = take(width);
    mean = take(width);
    test = take(width);
    origin = take(width);
    aims = take(static_cast<std::int64_t>(aim_count) * width);
    staged = take(0);
  }

  MAHAL_INLINE double* sample(int k) const {
    return samples + static_cast<std::ptrdiff_t>(k) * width * L;
  }
  MAHAL_INLINE std::ptrdiff_t at(int i, int j) const {
    return (static_cast<std::ptrdiff_t>(i) * variables + j) * E * L;
  }

  // ---- Sums of weighted products.
  template <int R, int C, bool Diagonal>
  MAHAL_INLINE void sum_tile(int i0, int j0, int begin, int end) const {
    V acc[R][C][E];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c)
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e)
          acc[r][c][e] =
              begin > 0 && (!Diagonal || c <= r) ? S::load(next + at(i0 + r, j0 + c) + e * L) : V{};
    for (int k = begin; k < end; ++k) {
      const V weight = S::load(weights + (k - begin) * L);
      const double* x = sample(k);
      V y[C][E];
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c)
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e) y[c][e] = S::load(x + ((j0 + c) * E + e) * L);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        V z[E];
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e) z[e] = S::load(x + ((i0 + r) * E + e) * L) * weight;
        MAHAL_UNROLL
        for (int c = 0; c < C; ++c) {
          if (Diagonal && c > r) continue;
          acc[r][c][0] = S::fma(z[0], y[c][0], acc[r][c][0]);
          if constexpr (E == 2) {
            acc[r][c][0] = S::fma(z[1], y[c][1], acc[r][c][0]);
            if (!Diagonal || c < r) {
              acc[r][c][1] = S::fma(z[1], y[c][0], acc[r][c][1]);
              acc[r][c][1] = S::fnma(z[0], y[c][1], acc[r][c][1]);
            }
          }
        }
      }
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r)
      MAHAL_UNROLL
      for (int c = 0; c < C; ++c)
        if (!Diagonal || c <= r)
          MAHAL_UNROLL
          for (int e = 0; e < E; ++e) S::store(next + at(i0 + r, j0 + c) + e * L, acc[r][c][e]);
  }
  template <int R>
  MAHAL_INLINE void sum_rows(int i0, int begin, int end) const {
    if (variables - i0 >= R) {
      for (int j0 = 0; j0 < i0; j0 += B) sum_tile<R, B, false>(i0, j0, begin, end);
      sum_tile<R, R, true>(i0, i0, begin, end);
    } else if constexpr (R > 1) {
      sum_rows<R - 1>(i0, begin, end);
    }
  }
  // next += sum of weight z z^H over the samples [begin, end), a chunk at most; from nothing when
  // begin is 0. The imaginary part of the diagonal stays zero.
  MAHAL_INLINE void sum_chunk(int begin, int end) const {
    if constexpr (E == 2 && vector_registers == 32) {
      // The whole triangle fits.
      if (variables == 4) return sum_tile<4, 4, true>(0, 0, begin, end);
    }
    for (int i0 = 0; i0 < variables; i0 += B) sum_rows<B>(i0, begin, end);
  }

  // ---- Triangular systems.
  // Per lane positive where `current` is positive definite; leaves its factor.
  __attribute__((noinline)) V factor_current(double tolerance) const {
    each_entry([&](std::ptrdiff_t k) { S::store(factor + k, S::load(current + k)); });
    if constexpr (E == 2) {
      InterleavedHermitian<S> cholesky{factor, variables, inverse, tolerance, V{}};
      cholesky.factor(variables);
      return cholesky.margin;
    } else {
      Interleaved<S> cholesky{factor, variables, inverse, tolerance, nullptr, V{}};
      cholesky.template factor<false>(variables);
      return cholesky.margin;
    }
  }
  // |L^-1 x|^2 of G spectra one after the other in memory.
  template <int G>
  MAHAL_INLINE void distances(const double* x, V* q) const {
    MAHAL_UNROLL
    for (int g = 0; g < G; ++g) q[g] = V{};
    for (int i = 0; i < variables; ++i) {
      V acc[G][E];
      MAHAL_UNROLL
      for (int g = 0; g < G; ++g)
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e) acc[g][e] = S::load(x + (g * width + i * E + e) * L);
      for (int k = 0; k < i; ++k) {
        V l[E];
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e) l[e] = S::load(factor + at(i, k) + e * L);
        const double* y = solved + k * G * E * L;
        MAHAL_UNROLL
        for (int g = 0; g < G; ++g) {
          const V re = S::load(y + g * E * L);
          acc[g][0] = S::fnma(l[0], re, acc[g][0]);
          if constexpr (E == 2) {
            const V im = S::load(y + (g * E + 1) * L);
            acc[g][0] = S::fma(l[1], im, acc[g][0]);
            acc[g][1] = S::fnma(l[0], im, S::fnma(l[1], re, acc[g][1]));
          }
        }
      }
      const V scale = S::load(inverse + i * L);
      double* y = solved + i * G * E * L;
      MAHAL_UNROLL
      for (int g = 0; g < G; ++g)
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e) {
          acc[g][e] = acc[g][e] * scale;
          S::store(y + (g * E + e) * L, acc[g][e]);
          q[g] = S::fma(acc[g][e], acc[g][e], q[g]);
        }
    }
  }
  // L^-1 x in place; returns its squared length.
  MAHAL_INLINE V solve(double* x) const {
    V q[1];
    distances<1>(x, q);
    for (int j = 0; j < width; ++j) S::store(x + j * L, S::load(solved + j * L));
    return q[0];
  }
  // a^H b, its parts where complex.
  MAHAL_INLINE void product(const double* a, const double* b, V* parts) const {
    MAHAL_UNROLL
    for (int e = 0; e < E; ++e) parts[e] = V{};
    for (int j = 0; j < width; j += E) {
      const V re = S::load(a + j * L);
      const V other = S::load(b + j * L);
      parts[0] = S::fma(re, other, parts[0]);
      if constexpr (E == 2) {
        const V im = S::load(a + (j + 1) * L);
        const V turned = S::load(b + (j + 1) * L);
        parts[0] = S::fma(im, turned, parts[0]);
        parts[1] = S::fnma(im, other, S::fma(re, turned, parts[1]));
      }
    }
  }
  // b -= c a
  MAHAL_INLINE void take_out(const V* c, const double* a, double* b) const {
    for (int j = 0; j < width; j += E) {
      const V re = S::load(a + j * L);
      V rest = S::fnma(c[0], re, S::load(b + j * L));
      if constexpr (E == 2) {
        const V im = S::load(a + (j + 1) * L);
        rest = S::fma(c[1], im, rest);
        S::store(b + (j + 1) * L,
                 S::fnma(c[1], re, S::fnma(c[0], im, S::load(b + (j + 1) * L))));
      }
      S::store(b + j * L, rest);
    }
  }
  // visit(k, distance) for the samples [begin, end).
  template <class F>
  MAHAL_INLINE void each_distance(int begin, int end, const F& visit) const {
    int k = begin;
    for (; k + together <= end; k += together) {
      V q[together];
      distances<together>(sample(k), q);
      MAHAL_UNROLL
      for (int g = 0; g < together; ++g) visit(k + g, q[g]);
    }
    for (; k < end; ++k) {
      V q[1];
      distances<1>(sample(k), q);
      visit(k, q[0]);
    }
  }

  // ---- Whole matrices.
  MAHAL_INLINE V trace(const double* a) const {
    V sum{};
    for (int i = 0; i < variables; ++i) sum = sum + S::load(a + at(i, i));
    return sum;
  }
  // Squared Frobenius norm of the matrix with the lower triangle value(offset), less `shift` on its
  // diagonal.
  template <class F>
  MAHAL_INLINE V sum_squares(const F& value, V shift = V{}) const {
    V sum{};
    for (int i = 0; i < variables; ++i) {
      for (int j = 0; j < i; ++j) {
        MAHAL_UNROLL
        for (int e = 0; e < E; ++e) {
          const V v = value(at(i, j) + e * L);
          sum = S::fma(v + v, v, sum);
        }
      }
      const V v = value(at(i, i)) - shift;
      sum = S::fma(v, v, sum);
    }
    return sum;
  }
  template <class F>
  MAHAL_INLINE void each_entry(const F& visit) const {
    for (int i = 0; i < variables; ++i)
      for (std::ptrdiff_t k = at(i, 0); k < at(i, i) + E * L; k += L) visit(k);
  }
};

MAHAL_INLINE V where(V condition_positive, V yes, V no) {
  return condition_positive > V{} ? yes : no;
}

template <class T, int E>
struct PixelPack {
  const WindowEstimatorsBlock<T>& b;
  Pack<E> p;
  alignas(64) double count[L];  // samples of each window
  std::uint8_t state[L];
  int longest = 0;
  V samples, active;
  V used;    // samples that are not zero, for Tyler
  V fourth;  // sum of their norms to the fourth power, for Ledoit and Wolf

  explicit PixelPack(const WindowEstimatorsBlock<T>& block)
      : b(block),
        p(block.pixels.bands, block.outer * block.outer - block.inner * block.inner,
          block.aims, block.scratch) {}

  MAHAL_INLINE bool iterates() const {
    return b.estimation.estimator == Estimator::tyler ||
           b.estimation.estimator == Estimator::student_t;
  }

  // One pixel in float64; what follows its last band is never used.
  MAHAL_INLINE void stage_pixel(const T* src, double* dst) const {
    const PixelList<T>& list = b.pixels;
    int j = 0;
    if (list.band_stride == 1)
      for (; j + L <= p.width; j += L) S::store(dst + j, S::widen(src + j));
    for (; j < p.width; ++j) dst[j] = static_cast<double>(src[band_offset(list, j)]);
  }
  // The next sample of all lanes, which have as many so far.
  MAHAL_INLINE void add_to_all(const double* const* src, int n) const {
    double* dst = p.sample(n);
    for (int j = 0; j < p.width; j += L) {
      V x[L];
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) x[l] = S::load(src[l] + j);
      S::transpose(x);
      MAHAL_UNROLL
      for (int i = 0; i < L; ++i) {
        if (j + i >= p.width) continue;
        double* origin = p.origin + (j + i) * L;
        if (n == 0 && b.center) S::store(origin, x[i]);
        const V d = x[i] - S::load(origin);
        S::store(dst + (j + i) * L, d);
        double* sum = p.mean + (j + i) * L;
        S::store(sum, S::load(sum) + d);
      }
    }
  }

  // The samples of every lane relative to the first of them, or as they are without a mean.
  __attribute__((noinline)) void gather() {
    const PixelList<T>& list = b.pixels;
    const int width = p.width;
    const int top = b.rows.outer_start[b.row];
    const int guard_top = b.rows.inner_start[b.row];
    int cols[L];
    int n[L];
    for (int l = 0; l < L; ++l) {
      cols[l] = b.col_begin + l < b.col_end ? b.col_begin + l : b.col_end - 1;
      n[l] = 0;
      state[l] = status_ok;
      for (int j = 0; j < width; ++j) p.origin[j * L + l] = p.mean[j * L + l] = 0;
    }
    const int first = b.cols.outer_start[cols[0]];
    const int span = b.cols.outer_start[cols[L - 1]] + b.outer - first;
    for (int v = top; v < top + b.outer; ++v) {
      const bool guarded = v >= guard_top && v < guard_top + b.inner;
      const std::int64_t r = b.rows.index[v];
      const T* line = list.data + r * list.row_stride;
      const std::uint8_t* line_status = b.status + r * list.cols;
      // Neighbouring windows share most of their pixels.
      bool level = !guarded;
      for (int u = 0; u < span; ++u) {
        const std::int64_t c = b.cols.index[first + u];
        stage_pixel(line + c * list.col_stride, p.staged + u * p.pitch);
        level &= line_status[c] == status_ok;
      }
      for (int l = 1; l < L; ++l) level &= n[l] == n[0];
      if (level) {
        for (int k = 0; k < b.outer; ++k) {
          const double* src[L];
          for (int l = 0; l < L; ++l) {
            src[l] = p.staged + (b.cols.outer_start[cols[l]] + k - first) * p.pitch;
          }
          add_to_all(src, n[0] + k);
        }
        for (int l = 0; l < L; ++l) n[l] += b.outer;
        continue;
      }
      for (int k = 0; k < b.outer; ++k) {
        for (int l = 0; l < L; ++l) {
          const int u = b.cols.outer_start[cols[l]] + k;
          const int guard_left = b.cols.inner_start[cols[l]];
          if (guarded && u >= guard_left && u < guard_left + b.inner) continue;
          const std::uint8_t usable = line_status[b.cols.index[u]];
          if (usable == status_nonfinite) state[l] = status_nonfinite;
          if (usable != status_ok) continue;
          const double* src = p.staged + (u - first) * p.pitch;
          double* origin = p.origin + l;
          if (n[l] == 0 && b.center)
            for (int j = 0; j < width; ++j) origin[j * L] = src[j];
          double* dst = p.sample(n[l]++) + l;
          for (int j = 0; j < width; ++j) {
            const double d = src[j] - origin[j * L];
            dst[j * L] = d;
            p.mean[j * L + l] += d;
          }
        }
      }
    }
    for (int l = 0; l < L; ++l) longest = n[l] > longest ? n[l] : longest;
    for (int l = 0; l < L; ++l) {
      for (int k = n[l]; k < longest; ++k)
        for (int j = 0; j < width; ++j) p.sample(k)[j * L + l] = 0;
      const T* own = list.data + b.row * list.row_stride + cols[l] * list.col_stride;
      for (int j = 0; j < width; ++j) {
        p.test[j * L + l] =
            static_cast<double>(own[band_offset(list, j)]) - p.origin[j * L + l];
      }
      count[l] = n[l];
      if (state[l] != status_ok) continue;
      const int rank = n[l] - (b.center ? 1 : 0);
      // A sample covariance of less than full rank has no inverse to score with.
      const bool full = b.target_count > 0 && b.estimation.estimator == Estimator::scm;
      const bool enough = iterates() ? rank > p.variables : rank >= (full ? p.variables : 1);
      const bool divisible =
          b.estimation.estimator > Estimator::loading || !b.center || n[l] > b.ddof;
      if (!enough || !divisible) state[l] = status_few_samples;
    }
  }

  // From the sums of the samples to their mean, which the test pixel loses here and the samples later.
  void find_mean() const {
    for (int j = 0; j < p.width; ++j) {
      double* mean = p.mean + j * L;
      S::store(mean, b.center ? S::load(mean) / samples : V{});
      double* test = p.test + j * L;
      S::store(test, S::load(test) - S::load(mean));
    }
  }
  MAHAL_INLINE void center(int begin, int end) const {
    for (int k = begin; k < end; ++k) {
      const V there = samples - S::set1(k);
      double* x = p.sample(k);
      for (int j = 0; j < p.width; ++j) {
        S::store(x + j * L, where(there, S::load(x + j * L) - S::load(p.mean + j * L), V{}));
      }
    }
  }
  // Tyler's estimate knows the directions of the samples only: unit length keeps all in range.
  MAHAL_INLINE void scale_to_unit(int begin, int end) {
    constexpr double smallest = 1e-300;
    for (int k = begin; k < end; ++k) {
      double* x = p.sample(k);
      V largest{};
      for (int j = 0; j < p.width; ++j) {
        const V v = S::load(x + j * L);
        largest = S::max(largest, S::max(v, -v));
      }
      const V there = largest - S::set1(smallest);
      const V shrink = where(there, S::set1(1.0) / largest, V{});
      V square{};
      for (int j = 0; j < p.width; ++j) {
        const V v = S::load(x + j * L) * shrink;
        square = S::fma(v, v, square);
      }
      const V scale = where(there, S::set1(1.0) / S::sqrt(square), V{}) * shrink;
      for (int j = 0; j < p.width; ++j) S::store(x + j * L, S::load(x + j * L) * scale);
      S::store(p.norms + k * L, square * largest * largest);
      used = used + where(there, S::set1(1.0), V{});
    }
  }
  MAHAL_INLINE void add_fourth_powers(int begin, int end) {
    for (int k = begin; k < end; ++k) {
      V norm{};
      for (int j = 0; j < p.width; ++j) {
        const V v = S::load(p.sample(k) + j * L);
        norm = S::fma(v, v, norm);
      }
      fourth = S::fma(norm, norm, fourth);
    }
  }
  // Makes the samples ready and leaves the sum of their products, unweighted, in `next`.
  __attribute__((noinline)) void first_sum() {
    used = fourth = V{};
    for (int k = 0; k < chunk; ++k) S::store(p.weights + k * L, S::set1(1.0));
    for (int begin = 0; begin < longest; begin += chunk) {
      const int end = begin + chunk < longest ? begin + chunk : longest;
      if (b.center) center(begin, end);
      if (b.estimation.estimator == Estimator::tyler) scale_to_unit(begin, end);
      if (b.estimation.estimator == Estimator::ledoit_wolf) add_fourth_powers(begin, end);
      p.sum_chunk(begin, end);
    }
  }

  // next takes the place of current in the lanes that are still active.
  MAHAL_INLINE void accept() const {
    p.each_entry([&](std::ptrdiff_t k) {
      S::store(p.current + k, where(active, S::load(p.next + k), S::load(p.current + k)));
    });
  }
  MAHAL_INLINE void scale_next(V scale) const {
    p.each_entry([&](std::ptrdiff_t k) { S::store(p.next + k, S::load(p.next + k) * scale); });
  }

  // The weighted products of all samples in `next`; returns the sum of the weights.
  template <class Weight>
  __attribute__((noinline)) V step(const Weight& weight) const {
    V total{};
    for (int begin = 0; begin < longest; begin += chunk) {
      const int end = begin + chunk < longest ? begin + chunk : longest;
      p.each_distance(begin, end, [&](int k, V q) {
        const V w = where(samples - S::set1(k), weight(q), V{});
        S::store(p.weights + (k - begin) * L, w);
        total = total + w;
      });
      p.sum_chunk(begin, end);
    }
    return total;
  }

  void iterate() {
    const bool tyler = b.estimation.estimator == Estimator::tyler;
    const double bands = p.variables;
    active = S::set1(1.0);
    first_sum();
    if (tyler) {
      scale_next(S::set1(bands) / p.trace(p.next));
    } else {
      scale_next(S::set1(1.0) / samples);
    }
    accept();
    // Lanes that have no window to estimate, or too few directions in it, wait.
    alignas(64) double waits[L];
    S::store(waits, used);
    for (int l = 0; l < L; ++l) {
      if (state[l] == status_ok && tyler && !(waits[l] - (b.center ? 1 : 0) > bands)) {
        state[l] = status_singular;
      }
      waits[l] = state[l] == status_ok ? 1.0 : 0.0;
    }
    active = S::load(waits);
    const double nu = b.estimation.nu;
    const V numerator = S::set1(E * bands + nu);
    const V tolerance = S::set1(b.estimation.tolerance);
    for (int k = 1; k < b.estimation.max_iterations && S::any_greater(active, V{}); ++k) {
      const V margin = p.factor_current(b.smallest_pivot);
      settle(margin, status_singular);
      if (tyler) {
        step([&](V q) { return where(q, S::set1(1.0) / q, V{}); });
        scale_next(S::set1(bands) / p.trace(p.next));
      } else {
        // The mean weight is 1 at the fixed point; dividing by it takes far fewer steps.
        const V total = step(
            [&](V q) { return numerator / S::fma(S::set1(static_cast<double>(E)), q, S::set1(nu)); });
        scale_next(S::set1(1.0) / total);
      }
      const V change = p.sum_squares(
          [&](std::ptrdiff_t i) { return S::load(p.next + i) - S::load(p.current + i); });
      const V size = p.sum_squares([&](std::ptrdiff_t i) { return S::load(p.current + i); });
      accept();
      settle(change - tolerance * tolerance * size, status_ok);
    }
    alignas(64) double left[L];
    S::store(left, active);
    for (int l = 0; l < L; ++l)
      if (left[l] > 0) state[l] = status_not_converged;
  }
  // Active lanes that are not positive are done, for the reason given.
  MAHAL_INLINE void settle(V positive, std::uint8_t why) {
    alignas(64) double value[L];
    alignas(64) double going[L];
    S::store(value, positive);
    S::store(going, active);
    for (int l = 0; l < L; ++l) {
      if (!(going[l] > 0) || value[l] > 0) continue;
      going[l] = 0;
      // What is not a number has not converged to anything.
      state[l] = why;
      if (value[l] != value[l]) state[l] = status_singular;
    }
    active = S::load(going);
  }

  void shrink() {
    const Estimation& e = b.estimation;
    const V bands = S::set1(p.variables);
    first_sum();
    V divisor = samples;
    if (e.estimator <= Estimator::loading && b.center) divisor = samples - S::set1(b.ddof);
    scale_next(S::set1(1.0) / divisor);
    const V trace = p.trace(p.next);
    const V average = trace / bands;
    V keep = S::set1(1.0);
    V add{};
    if (e.estimator == Estimator::loading) {
      add = S::set1(e.loading) * average;
    } else if (e.estimator != Estimator::scm) {
      const V one = S::set1(1.0);
      const auto entry = [&](std::ptrdiff_t i) { return S::load(p.next + i); };
      const V square = p.sum_squares(entry);
      const V distance = p.sum_squares(entry, average);  // from S0 to a I
      V spread;
      if (e.estimator == Estimator::ledoit_wolf) {
        spread = (fourth / samples - square) / samples;
      } else if (E == 1) {
        spread = (square + trace * trace) / (samples + one);
      } else {
        spread = (trace * trace - square / bands) / (samples - one / bands);
      }
      const V share = where(distance, S::max(V{}, spread) / distance, one);
      const V rho = S::min(share, one);
      keep = one - rho;
      add = rho * average;
    }
    active = S::set1(1.0);
    scale_next(keep);
    for (int i = 0; i < p.variables; ++i) {
      double* d = p.next + p.at(i, i);
      S::store(d, S::load(d) + add);
    }
    accept();
    alignas(64) double left[L];
    S::store(left, trace);
    for (int l = 0; l < L; ++l)
      if (state[l] == status_ok && !(left[l] > 0)) state[l] = status_singular;
  }

  void write_covariance(int lane) const {
    const std::ptrdiff_t width = p.width;
    T* covariance = b.covariance + lane * b.covariance_stride;
    T* mean = b.mean + lane * b.mean_stride;
    const T nan = static_cast<T>(__builtin_nan(""));
    const bool vanished = state[lane] == status_singular && !iterates();
    if (state[lane] != status_ok && state[lane] != status_not_converged && !vanished) {
      const bool known = state[lane] == status_singular ||
                         (state[lane] == status_few_samples && count[lane] > 0);
      for (std::ptrdiff_t k = 0; k < width * p.variables; ++k) covariance[k] = nan;
      write_mean(lane, mean, known);
      return;
    }
    write_mean(lane, mean, true);
    for (int i = 0; i < p.variables; ++i) {
      for (int j = 0; j <= i; ++j) {
        const double* entry = p.current + p.at(i, j) + lane;
        T* lower = covariance + i * width + j * E;
        T* upper = covariance + j * width + i * E;
        lower[0] = upper[0] = static_cast<T>(entry[0]);
        if constexpr (E == 2) {
          upper[1] = i == j ? T(0) : static_cast<T>(-entry[L]);
          lower[1] = i == j ? T(0) : static_cast<T>(entry[L]);
        }
      }
    }
  }
  void write_mean(int lane, T* mean, bool known) const {
    for (int j = 0; j < p.width; ++j) {
      const double value = p.origin[j * L + lane] + p.mean[j * L + lane];
      mean[j] = known ? static_cast<T>(value) : static_cast<T>(__builtin_nan(""));
    }
  }

  // What scores are multiplied by: 1 but for Tyler.
  MAHAL_INLINE V score_scale() const {
    if (b.estimation.estimator != Estimator::tyler) return S::set1(1.0);
    V sum{};
    p.each_distance(0, longest, [&](int k, V d) { sum = S::fma(d, S::load(p.norms + k * L), sum); });
    return S::set1(p.variables) * samples / sum;
  }
  bool estimated(int lane) const {
    return state[lane] == status_ok || state[lane] == status_not_converged;
  }

  void score_pixels() {
    const V margin = p.factor_current(b.smallest_pivot);
    const V square = p.solve(p.test);
    if (b.target_count > 0) return score_targets(margin, square);
    alignas(64) double score[L];
    alignas(64) double good[L];
    S::store(score, square * score_scale());
    S::store(good, margin);
    for (int l = 0; l < b.col_end - b.col_begin; ++l) {
      // A distance beyond the range of the numbers has no value either.
      const bool scored = estimated(l) && good[l] > 0 && score[l] - score[l] == 0;
      if (estimated(l) && !scored) state[l] = status_singular;
      b.score[l * b.score_stride] =
          scored ? static_cast<T>(score[l]) : static_cast<T>(__builtin_nan(""));
    }
  }

  // Leaves w = L^-1 (t - m) of a target; returns its squared length, zero where nothing but
  // rounding is left of the difference.
  MAHAL_INLINE V whiten_target(const double* target, double* w) const {
    constexpr double rounding = 0x1p-48;  // 16 of float64
    V apart{};
    for (int j = 0; j < p.width; ++j) {
      const V t = S::set1(target[j]);
      const V origin = S::load(p.origin + j * L);
      const V shift = S::load(p.mean + j * L);
      const V m = origin + shift;
      const V size = S::max(S::max(t, -t), S::max(m, -m));
      const V d = t - origin - shift;
      apart = S::max(apart, S::max(d, -d) - S::set1(rounding) * size);
      S::store(w + j * L, d);
    }
    return where(apart, p.solve(w), V{});
  }
  // Takes the first `count` of the rows, which are orthonormal, out of w, twice, as once leaves
  // rounding behind, and brings it to unit length. Per lane positive, unless nothing but rounding
  // is left.
  MAHAL_INLINE V orthonormalize(int count, V length, double* w) const {
    constexpr double dependent = 0x1p-46;  // 64 of float64
    V parts[E];
    for (int pass = 0; pass < 2; ++pass) {
      for (int k = 0; k < count; ++k) {
        const double* q = p.aims + static_cast<std::ptrdiff_t>(k) * p.width * L;
        p.product(q, w, parts);
        p.take_out(parts, q, w);
      }
    }
    p.product(w, w, parts);
    const V rest = S::sqrt(parts[0]);
    const V limit = S::set1(dependent) * S::sqrt(S::set1(p.width) * length);
    const V scale = where(rest - limit, S::set1(1.0) / rest, V{});
    for (int j = 0; j < p.width; ++j) S::store(w + j * L, S::load(w + j * L) * scale);
    return scale;
  }
  // <w, y>, its magnitude where complex, to what the kind of score makes of it.
  MAHAL_INLINE V score_of(V c, V length, V square, V scale) const {
    switch (b.kind) {
      case MatchedScore::ace:
        return where(square, S::min((c / length) * (c / square), S::set1(1.0)), V{});
      case MatchedScore::signed_ace: {
        const V cosine = c / S::sqrt(length) / S::sqrt(square);
        return where(square, S::max(S::min(cosine, S::set1(1.0)), S::set1(-1.0)), V{});
      }
      case MatchedScore::subspace_ace:
        return where(square, c * (c / square), V{});
      case MatchedScore::normalized_filter:
        return c / S::sqrt(length) * S::sqrt(scale);
      default:
        return c / length;
    }
  }
  __attribute__((noinline)) void score_targets(V margin, V square) {
    const bool subspace = b.kind == MatchedScore::subspace_ace;
    // Only one kind of score depends on the scale of the covariance.
    const V scale = b.kind == MatchedScore::normalized_filter ? score_scale() : S::set1(1.0);
    const T nan = static_cast<T>(__builtin_nan(""));
    const int lanes = b.col_end - b.col_begin;
    alignas(64) double good[L];
    alignas(64) double power[L];
    alignas(64) double value[L];
    bool scored[L];
    S::store(good, margin);
    S::store(power, square);
    for (int l = 0; l < lanes; ++l) {
      scored[l] = estimated(l) && good[l] > 0 && power[l] - power[l] == 0;
      if (estimated(l) && !scored[l]) state[l] = status_singular;
    }
    V total{};
    V all = S::set1(1.0);
    for (int k = 0; k < b.target_count; ++k) {
      double* w = p.aims + (subspace ? static_cast<std::ptrdiff_t>(k) * p.width * L : 0);
      const V length = whiten_target(b.targets + k * b.target_stride, w);
      V regular = length;
      if (subspace) regular = where(regular, orthonormalize(k, length, w), V{});
      V parts[E];
      p.product(w, p.test, parts);
      V c = parts[0];
      if constexpr (E == 2) c = S::sqrt(S::fma(c, c, parts[1] * parts[1]));
      const V score = score_of(c, length, square, scale);
      if (subspace) {
        total = total + score;
        all = S::min(all, regular);
        if (k + 1 < b.target_count) continue;
      }
      S::store(value, subspace ? S::min(total, S::set1(1.0)) : score);
      S::store(good, subspace ? all : regular);
      T* out = b.score + (subspace ? 0 : k);
      for (int l = 0; l < lanes; ++l) {
        const bool there = scored[l] && good[l] > 0 && good[l] - good[l] == 0 &&
                           value[l] - value[l] == 0;
        if (scored[l] && !there) state[l] = status_singular;
        out[l * b.score_stride] = there ? static_cast<T>(value[l]) : nan;
      }
    }
  }

  void run() {
    gather();
    samples = S::load(count);
    find_mean();
    if (iterates()) {
      iterate();
    } else {
      shrink();
    }
    if (b.score) score_pixels();
    for (int l = 0; l < b.col_end - b.col_begin; ++l) {
      if (b.covariance) write_covariance(l);
      b.result[l * b.result_stride] = state[l];
    }
  }
};

template <class T>
void run_block(const WindowEstimatorsBlock<T>& b) {
  if (b.hermitian) {
    PixelPack<T, 2>(b).run();
  } else {
    PixelPack<T, 1>(b).run();
  }
}

}  // namespace

template <>
int WindowEstimatorsKernel<current_isa>::lanes() {
  return L;
}
template <>
std::size_t WindowEstimatorsKernel<current_isa>::scratch_bytes(int bands, bool hermitian,
                                                               int samples, int outer,
                                                               int aims) {
  const std::size_t elements = hermitian ? Pack<2>::elements(bands, samples, outer, aims)
                                         : Pack<1>::elements(bands, samples, outer, aims);
  return elements * sizeof(double);
}
template <>
void WindowEstimatorsKernel<current_isa>::run(const WindowEstimatorsBlock<float>& b) {
  run_block(b);
}
template <>
void WindowEstimatorsKernel<current_isa>::run(const WindowEstimatorsBlock<double>& b) {
  run_block(b);
}

}  // namespace mahal

#include "core/interleaved_cholesky.hpp"
#include "ops/cholesky_kernel.hpp"

namespace mahal {
namespace {

template <class T>
struct Pack {
  // Up to here the second-level cache holds the next pack too.
  static constexpr std::ptrdiff_t near_elements = (1 << 18) / static_cast<int>(sizeof(T));
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  const CholeskyBlock<T>& b;
  const int n;
  const std::ptrdiff_t ld;
  T* const matrix;
  T* const inverse;
  const std::ptrdiff_t size;
  const bool stream;
  const std::ptrdiff_t ahead;

  static std::ptrdiff_t leading(int n) { return n < L ? n : n | 1; }
  explicit Pack(const CholeskyBlock<T>& block)
      : b(block),
        n(block.n),
        ld(leading(block.n)),
        matrix(static_cast<T*>(block.scratch)),
        inverse(matrix + n * ld * L),
        size(static_cast<std::ptrdiff_t>(n) * n),
        stream(b.stream && (n >= L ? n : n * n) % L == 0 &&
               reinterpret_cast<std::uintptr_t>(b.out) % (L * sizeof(T)) == 0),
        ahead(size * L <= near_elements ? L * b.matrix_stride : 4 * b.row_stride) {}

  const T* source(int lane) const {
    return b.in + (lane < b.count ? lane : b.count - 1) * b.matrix_stride;
  }

  // L consecutive entries of every matrix, from element `from` on, to the vectors at `to`. The
  // entries `ahead` are on their way from then on.
  MAHAL_INLINE void gather(std::ptrdiff_t from, T* to) const {
    V r[L];
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) {
      r[l] = S::loadu(source(l) + from);
      prefetch(source(l) + from + ahead);
    }
    S::transpose(r);
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) S::store(to + l * L, r[l]);
  }
  // The reverse; entries from `kept` on become zero.
  MAHAL_INLINE void scatter(const T* from, int kept, std::ptrdiff_t to) const {
    V r[L];
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) r[l] = l < kept ? S::load(from + l * L) : S::zero();
    S::transpose(r);
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l)
      if (l < b.count) put(b.out + l * size + to, r[l]);
  }
  MAHAL_INLINE void put(T* to, V v) const {
    if (stream) {
      S::stream(to, v);
    } else {
      S::storeu(to, v);
    }
  }

  MAHAL_INLINE void load() const {
    if (n >= L && b.col_stride == 1) {
      // Whole vectors; the last one of a row that ends inside the triangle is moved back.
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; j += L) {
          const int at = j + L <= n ? j : n - L;
          gather(i * b.row_stride + at, matrix + (i * ld + at) * L);
        }
      }
    } else if (n < L && n * n >= L && b.col_stride == 1 && b.row_stride == n) {
      for (int e = 0; e < n * n; e += L) {
        const int at = e + L <= n * n ? e : n * n - L;
        gather(at, matrix + at * L);
      }
    } else {
      for (int l = 0; l < L; ++l) {
        const T* src = source(l);
        for (int i = 0; i < n; ++i) {
          for (int j = 0; j <= i; ++j) {
            matrix[(i * ld + j) * L + l] = src[i * b.row_stride + j * b.col_stride];
          }
        }
      }
    }
  }

  MAHAL_INLINE void save() const {
    if (n >= L) {
      for (int i = 0; i < n; ++i) {
        int j = 0;
        for (; j <= i; j += L) {
          const int at = j + L <= n ? j : n - L;
          scatter(matrix + (i * ld + at) * L, i - at + 1, i * static_cast<std::ptrdiff_t>(n) + at);
        }
        for (int l = 0; l < b.count; ++l) {
          T* row = b.out + l * size + i * static_cast<std::ptrdiff_t>(n);
          int k = j;
          for (; k + L <= n; k += L) put(row + k, S::zero());
          for (; k < n; ++k) row[k] = T(0);
        }
      }
      return;
    }
    for (int i = 0; i < n; ++i)
      for (int j = i + 1; j < n; ++j) S::store(matrix + (i * ld + j) * L, S::zero());
    if (n * n >= L) {
      for (int e = 0; e < n * n; e += L) {
        const int at = e + L <= n * n ? e : n * n - L;
        scatter(matrix + at * L, L, at);
      }
    } else {
      for (int l = 0; l < b.count; ++l)
        for (int e = 0; e < n * n; ++e) b.out[l * size + e] = matrix[e * L + l];
    }
  }

  void run() const {
    load();
    if (b.loading != T(0)) {
      V trace = S::zero();
      for (int i = 0; i < n; ++i) trace = trace + S::load(matrix + (i * ld + i) * L);
      const V extra = trace * S::set1(b.loading / static_cast<T>(n));
      for (int i = 0; i < n; ++i) {
        T* d = matrix + (i * ld + i) * L;
        S::store(d, S::load(d) + extra);
      }
    }
    Interleaved<S> cholesky{matrix, ld, inverse, b.tolerance, nullptr, S::zero()};
    cholesky.template factor<false>(n);
    alignas(64) T margin[L];
    S::store(margin, cholesky.margin);
    for (int l = 0; l < b.count; ++l) b.failed[l] = !(margin[l] > T(0));
    save();
    if (stream) store_fence();
  }
};

template <class T>
std::size_t bytes(const CholeskyBlock<T>& b) {
  return static_cast<std::size_t>((b.n * Pack<T>::leading(b.n) + b.n) * Pack<T>::L) * sizeof(T);
}

using S = Simd<double>;

MAHAL_INLINE double dot(const double* x, const double* y, int n) {
  constexpr int L = S::lanes;
  auto a = S::zero();
  auto c = S::zero();
  int k = 0;
  for (; k + 2 * L <= n; k += 2 * L) {
    a = S::fma(S::load(x + k), S::load(y + k), a);
    c = S::fma(S::load(x + k + L), S::load(y + k + L), c);
  }
  a = a + c;
  alignas(64) double lane[L];
  S::store(lane, a);
  double sum = 0;
  for (int l = 0; l < L; ++l) sum += lane[l];
  for (; k < n; ++k) sum += x[k] * y[k];
  return sum;
}

}  // namespace

template <>
int CholeskyKernel<current_isa>::lanes(float) {
  return Simd<float>::lanes;
}
template <>
int CholeskyKernel<current_isa>::lanes(double) {
  return Simd<double>::lanes;
}
template <>
std::size_t CholeskyKernel<current_isa>::scratch_bytes(const CholeskyBlock<float>& b) {
  return bytes(b);
}
template <>
std::size_t CholeskyKernel<current_isa>::scratch_bytes(const CholeskyBlock<double>& b) {
  return bytes(b);
}
template <>
void CholeskyKernel<current_isa>::factor(const CholeskyBlock<float>& b) {
  Pack<float>(b).run();
}
template <>
void CholeskyKernel<current_isa>::factor(const CholeskyBlock<double>& b) {
  Pack<double>(b).run();
}

template <>
bool CholeskyKernel<current_isa>::factor_one(double* a, int n, std::ptrdiff_t ld, double tolerance,
                                             double* inverse) {
  for (int i = 0; i < n; ++i) {
    double* row = a + i * ld;
    for (int j = 0; j < i; ++j) row[j] = (row[j] - dot(row, a + j * ld, j)) * inverse[j];
    const double diagonal = row[i];
    const double pivot = diagonal - dot(row, row, i);
    if (!(pivot > tolerance * diagonal)) return false;
    row[i] = __builtin_sqrt(pivot);
    inverse[i] = 1 / row[i];
  }
  return true;
}

}  // namespace mahal

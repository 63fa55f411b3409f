#include "core/interleaved_cholesky.hpp"
#include "core/interleaved_hermitian.hpp"
#include "ops/cholesky_kernel.hpp"

namespace mahal {
namespace {

// E: elements per entry of the matrices, 2 where they are complex.
template <class T, int E>
struct Pack {
  // Up to here the second-level cache holds the next pack too.
  static constexpr std::ptrdiff_t near_elements = (1 << 18) / static_cast<int>(sizeof(T));
  using S = Simd<T>;
  using V = typename S::V;
  static constexpr int L = S::lanes;
  const CholeskyBlock<T>& b;
  const int n;
  const int width;  // elements per row
  const std::ptrdiff_t ld;
  T* const matrix;
  T* const inverse;
  const std::ptrdiff_t size;
  const bool stream;
  const std::ptrdiff_t ahead;

  static std::ptrdiff_t leading(int n) { return E * (E * n < L ? n : n | 1); }
  explicit Pack(const CholeskyBlock<T>& block)
      : b(block),
        n(block.n),
        width(E * block.n),
        ld(leading(block.n)),
        matrix(static_cast<T*>(block.scratch)),
        inverse(matrix + n * ld * L),
        size(static_cast<std::ptrdiff_t>(n) * width),
        stream(b.stream && (width >= L ? width : size) % L == 0 &&
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

  // Of row i the first E * (i + 1) elements matter.
  MAHAL_INLINE void load() const {
    if (width >= L && b.col_stride == E) {
      // Whole vectors; the last one of a row that ends inside the triangle is moved back.
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j < E * (i + 1); j += L) {
          const int at = j + L <= width ? j : width - L;
          gather(i * b.row_stride + at, matrix + (i * ld + at) * L);
        }
      }
    } else if (width < L && size >= L && b.col_stride == E && b.row_stride == width) {
      for (int e = 0; e < size; e += L) {
        const int at = e + L <= size ? e : size - L;
        gather(at, matrix + at * L);
      }
    } else {
      for (int l = 0; l < L; ++l) {
        const T* src = source(l);
        for (int i = 0; i < n; ++i) {
          for (int j = 0; j < E * (i + 1); ++j) {
            matrix[(i * ld + j) * L + l] = src[i * b.row_stride + j / E * b.col_stride + j % E];
          }
        }
      }
    }
  }

  MAHAL_INLINE void save() const {
    if (width >= L) {
      for (int i = 0; i < n; ++i) {
        const std::ptrdiff_t row_start = static_cast<std::ptrdiff_t>(i) * width;
        int j = 0;
        for (; j < E * (i + 1); j += L) {
          const int at = j + L <= width ? j : width - L;
          scatter(matrix + (i * ld + at) * L, E * (i + 1) - at, row_start + at);
        }
        for (int l = 0; l < b.count; ++l) {
          T* row = b.out + l * size + row_start;
          int k = j;
          for (; k + L <= width; k += L) put(row + k, S::zero());
          for (; k < width; ++k) row[k] = T(0);
        }
      }
      return;
    }
    for (int i = 0; i < n; ++i)
      for (int j = E * (i + 1); j < width; ++j) S::store(matrix + (i * ld + j) * L, S::zero());
    if (size >= L) {
      for (int e = 0; e < size; e += L) {
        const int at = static_cast<int>(e + L <= size ? e : size - L);
        scatter(matrix + at * L, L, at);
      }
    } else {
      for (int l = 0; l < b.count; ++l)
        for (int e = 0; e < size; ++e) b.out[l * size + e] = matrix[e * L + l];
    }
  }

  void run() const {
    load();
    if (b.loading != T(0)) {
      V trace = S::zero();
      for (int i = 0; i < n; ++i) trace = trace + S::load(matrix + (i * ld + E * i) * L);
      const V extra = trace * S::set1(b.loading / static_cast<T>(n));
      for (int i = 0; i < n; ++i) {
        T* d = matrix + (i * ld + E * i) * L;
        S::store(d, S::load(d) + extra);
      }
    }
    alignas(64) T margin[L];
    if constexpr (E == 2) {
      InterleavedHermitian<S> cholesky{matrix, ld / 2, inverse, b.tolerance, S::zero()};
      cholesky.factor(n);
      S::store(margin, cholesky.margin);
    } else {
      Interleaved<S> cholesky{matrix, ld, inverse, b.tolerance, nullptr, S::zero()};
      cholesky.template factor<false>(n);
      S::store(margin, cholesky.margin);
    }
    for (int l = 0; l < b.count; ++l) b.failed[l] = !(margin[l] > T(0));
    save();
    if (stream) store_fence();
  }
};

template <class T>
std::size_t bytes(const CholeskyBlock<T>& b) {
  const std::ptrdiff_t ld = b.hermitian ? Pack<T, 2>::leading(b.n) : Pack<T, 1>::leading(b.n);
  return static_cast<std::size_t>((b.n * ld + b.n) * Simd<T>::lanes) * sizeof(T);
}
template <class T>
void factor_pack(const CholeskyBlock<T>& b) {
  if (b.hermitian) {
    Pack<T, 2>(b).run();
  } else {
    Pack<T, 1>(b).run();
  }
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
  factor_pack(b);
}
template <>
void CholeskyKernel<current_isa>::factor(const CholeskyBlock<double>& b) {
  factor_pack(b);
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

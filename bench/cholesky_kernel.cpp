// Times the project's own interleaved Cholesky factor on matrices that stay in cache, without the
// transposition from and to row-major memory, for bench_cholesky.py.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "core/interleaved_cholesky.hpp"

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds per matrix, the best of `repeats`. The factor works in place, so every round begins
// with a copy, and the time of the copy alone is taken off.
template <class T>
double seconds_per_matrix(int n, int rounds, int repeats) {
  using S = mahal::Simd<T>;
  constexpr int L = S::lanes;
  const std::ptrdiff_t ld = n | 1;
  const std::size_t bytes = (static_cast<std::size_t>(n * ld * L) * sizeof(T) + 4095) / 4096 * 4096;
  T* const start = static_cast<T*>(std::aligned_alloc(4096, bytes));
  T* const work = static_cast<T*>(std::aligned_alloc(4096, bytes));
  T* const inverse =
      static_cast<T*>(std::aligned_alloc(4096, 4096 + n * L * sizeof(T) / 4096 * 4096));
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      for (int l = 0; l < L; ++l) {
        start[(i * ld + j) * L + l] = i == j ? T(2) : T(1) / T(2 + l + i - j + n);
      }
    }
  }
  const auto copy = [&] {
    for (int i = 0; i < n; ++i) {
      std::memcpy(work + i * ld * L, start + i * ld * L,
                  static_cast<std::size_t>((i + 1) * L) * sizeof(T));
    }
    asm volatile("" ::: "memory");
  };
  double best = 1e300;
  double best_copy = 1e300;
  for (int r = 0; r < repeats; ++r) {
    double t = now();
    for (int k = 0; k < rounds; ++k) copy();
    best_copy = std::min(best_copy, now() - t);
    t = now();
    for (int k = 0; k < rounds; ++k) {
      copy();
      mahal::Interleaved<S> cholesky{work, ld, inverse, T(0), nullptr, S::zero()};
      cholesky.template factor<false>(n);
      asm volatile("" ::: "memory");
    }
    best = std::min(best, now() - t);
  }
  const double seconds = (best - best_copy) / rounds / L;
  std::free(start);
  std::free(work);
  std::free(inverse);
  return seconds;
}

}  // namespace

extern "C" {

double cholesky_seconds_float(int n, int rounds, int repeats) {
  return seconds_per_matrix<float>(n, rounds, repeats);
}

double cholesky_seconds_double(int n, int rounds, int repeats) {
  return seconds_per_matrix<double>(n, rounds, repeats);
}

}  // extern "C"

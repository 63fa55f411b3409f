// Ceilings of this machine: fused multiply-add rate and memory bandwidth, for peaks.py.
// x86-64 only. Every function returns the best rate seen, per second, over all threads together.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds from the common start to the last finish, the best of `repeats`.
template <class F>
double best_of(int threads, int repeats, F work) {
  double best = 1e300;
  for (int r = 0; r < repeats; ++r) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<double> end(static_cast<std::size_t>(threads));
    std::vector<std::thread> others;
    const auto run = [&](int id) {
      ready.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) {
      }
      work(id);
      end[static_cast<std::size_t>(id)] = now();
    };
    for (int id = 1; id < threads; ++id) others.emplace_back(run, id);
    while (ready.load() != threads - 1) {
    }
    const double begin = now();
    go.store(true, std::memory_order_release);
    run(0);
    for (auto& t : others) t.join();
    best = std::min(best, *std::max_element(end.begin(), end.end()) - begin);
  }
  return best;
}

// Twelve independent chains hide the latency of two pipes. The empty assembly keeps each
// accumulator in a register of its own and the loop as it stands.
#define CHAINS(V, ZERO, STEP)                                                                 \
  V a0 = ZERO, a1 = ZERO, a2 = ZERO, a3 = ZERO, a4 = ZERO, a5 = ZERO;                         \
  V a6 = ZERO, a7 = ZERO, a8 = ZERO, a9 = ZERO, b0 = ZERO, b1 = ZERO;                         \
  for (long i = 0; i < count; ++i) {                                                          \
    STEP(a0)                                                                                  \
    STEP(a1)                                                                                  \
    STEP(a2) STEP(a3) STEP(a4) STEP(a5) STEP(a6) STEP(a7) STEP(a8) STEP(a9) STEP(b0) STEP(b1) \
  }                                                                                           \
  asm volatile("" ::"x"(a0), "x"(a1), "x"(a2), "x"(a3), "x"(a4), "x"(a5), "x"(a6));           \
  asm volatile("" ::"x"(a7), "x"(a8), "x"(a9), "x"(b0), "x"(b1));
#define CHAINS_512(V, ZERO, STEP)                                                             \
  V a0 = ZERO, a1 = ZERO, a2 = ZERO, a3 = ZERO, a4 = ZERO, a5 = ZERO;                         \
  V a6 = ZERO, a7 = ZERO, a8 = ZERO, a9 = ZERO, b0 = ZERO, b1 = ZERO;                         \
  for (long i = 0; i < count; ++i) {                                                          \
    STEP(a0)                                                                                  \
    STEP(a1)                                                                                  \
    STEP(a2) STEP(a3) STEP(a4) STEP(a5) STEP(a6) STEP(a7) STEP(a8) STEP(a9) STEP(b0) STEP(b1) \
  }                                                                                           \
  asm volatile("" ::"v"(a0), "v"(a1), "v"(a2), "v"(a3), "v"(a4), "v"(a5), "v"(a6));           \
  asm volatile("" ::"v"(a7), "v"(a8), "v"(a9), "v"(b0), "v"(b1));

__attribute__((target("avx512f"), noinline)) void chain_512f(long count) {
  const __m512 x = _mm512_set1_ps(0.5f);
#define STEP(a)                 \
  a = _mm512_fmadd_ps(x, x, a); \
  asm("" : "+v"(a));
  CHAINS_512(__m512, _mm512_setzero_ps(), STEP)
#undef STEP
}
__attribute__((target("avx512f"), noinline)) void chain_512d(long count) {
  const __m512d x = _mm512_set1_pd(0.5);
#define STEP(a)                 \
  a = _mm512_fmadd_pd(x, x, a); \
  asm("" : "+v"(a));
  CHAINS_512(__m512d, _mm512_setzero_pd(), STEP)
#undef STEP
}
__attribute__((target("avx2,fma"), noinline)) void chain_256f(long count) {
  const __m256 x = _mm256_set1_ps(0.5f);
#define STEP(a)                 \
  a = _mm256_fmadd_ps(x, x, a); \
  asm("" : "+x"(a));
  CHAINS(__m256, _mm256_setzero_ps(), STEP)
#undef STEP
}
__attribute__((target("avx2,fma"), noinline)) void chain_256d(long count) {
  const __m256d x = _mm256_set1_pd(0.5);
#define STEP(a)                 \
  a = _mm256_fmadd_pd(x, x, a); \
  asm("" : "+x"(a));
  CHAINS(__m256d, _mm256_setzero_pd(), STEP)
#undef STEP
}
// Without fused operations a multiplication and an addition make the pair.
__attribute__((noinline)) void chain_128f(long count) {
  const __m128 x = _mm_set1_ps(0.5f);
#define STEP(a)                          \
  {                                      \
    __m128 p = x;                        \
    asm("" : "+x"(p));                   \
    a = _mm_add_ps(a, _mm_mul_ps(p, x)); \
  }                                      \
  asm("" : "+x"(a));
  CHAINS(__m128, _mm_setzero_ps(), STEP)
#undef STEP
}
__attribute__((noinline)) void chain_128d(long count) {
  const __m128d x = _mm_set1_pd(0.5);
#define STEP(a)                          \
  {                                      \
    __m128d p = x;                       \
    asm("" : "+x"(p));                   \
    a = _mm_add_pd(a, _mm_mul_pd(p, x)); \
  }                                      \
  asm("" : "+x"(a));
  CHAINS(__m128d, _mm_setzero_pd(), STEP)
#undef STEP
}

struct Buffer {
  explicit Buffer(std::size_t bytes)
      : data(static_cast<char*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096))) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* data;
};

__attribute__((noinline)) void fill(char* to, std::size_t bytes) {
  const __m128i v = _mm_set1_epi32(1);
  for (std::size_t i = 0; i < bytes; i += 64) {
    for (std::size_t k = 0; k < 64; k += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + k), v);
    }
  }
  _mm_sfence();
}

__attribute__((noinline)) void copy_through(char* to, const char* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) {
    for (std::size_t k = 0; k < 64; k += 16) {
      const __m128i v = _mm_load_si128(reinterpret_cast<const __m128i*>(from + i + k));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + k), v);
    }
  }
  _mm_sfence();
}

}  // namespace

extern "C" {

// Floating point operations per second; `bits` is the vector width, `size` 4 or 8 bytes.
double peak_flops(int bits, int size, int threads, int repeats) {
  void (*chain)(long) = nullptr;
  if (bits == 512) chain = size == 4 ? chain_512f : chain_512d;
  if (bits == 256) chain = size == 4 ? chain_256f : chain_256d;
  if (bits == 128) chain = size == 4 ? chain_128f : chain_128d;
  if (chain == nullptr) return 0;
  // Half a millisecond: on a busy machine some of the runs still go through undisturbed.
  constexpr long count = 200000;
  const double seconds = best_of(threads, repeats, [&](int) { chain(count); });
  return 12.0 * 2.0 * (bits / 8.0 / size) * count * threads / seconds;
}

// Bytes per second of streaming stores ("store") or of a copy with them, read plus written
// bytes counted, over `bytes` per buffer shared among the threads.
double peak_bandwidth(int copy, std::size_t bytes, int threads, int repeats) {
  const std::size_t part = bytes / static_cast<std::size_t>(threads) / 4096 * 4096;
  if (part == 0) return 0;
  const Buffer to(part * static_cast<std::size_t>(threads));
  const Buffer from(copy != 0 ? part * static_cast<std::size_t>(threads) : 4096);
  const auto each = [&](int id) {
    const std::size_t at = part * static_cast<std::size_t>(id);
    if (copy != 0) {
      copy_through(to.data + at, from.data + at, part);
    } else {
      fill(to.data + at, part);
    }
  };
  if (copy != 0) fill(from.data, part * static_cast<std::size_t>(threads));
  best_of(threads, 1, each);  // touches the pages
  const double seconds = best_of(threads, repeats, each);
  return (copy != 0 ? 2.0 : 1.0) * static_cast<double>(part) * threads / seconds;
}

}  // extern "C"

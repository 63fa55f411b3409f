// Tests of the SIMT emulator and, on it, of the kernels in csrc/ops/*.cu against plain loops.
//
//   g++ -std=c++20 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -DMAHAL_EMULATED=1
//       -Icsrc/include -Icsrc -o test_simt tests/cpp/test_simt.cpp
//       -x c++ csrc/core/device_*.cu csrc/ops/*.cu
//
// With -DMAHAL_MUTATE_BARRIER or -DMAHAL_MUTATE_HALO the kernels carry a planted error, and this
// program must fail.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/device_background.hpp"
#include "core/device_matrix.hpp"
#include "core/simt.hpp"
#include "ops/change_map_cuda.hpp"
#include "ops/cholesky_cuda.hpp"
#include "ops/covariance_distance_cuda.hpp"
#include "ops/local_covariance_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/rx_cuda.hpp"
#include "ops/structural_similarity_cuda.hpp"

namespace {

int passed = 0;
int failed = 0;

void check(bool good, const std::string& what) {
  if (good) {
    ++passed;
  } else {
    ++failed;
    std::printf("FAILED: %s\n", what.c_str());
  }
}

std::string text(long double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.9Lg", value);
  return buffer;
}

template <class Error>
void check_throws(const std::function<void()>& action, const std::string& wanted,
                  const std::string& what) {
  std::string message = "nothing thrown";
  bool good = false;
  try {
    action();
  } catch (const Error& error) {
    message = error.what();
    good = message.find(wanted) != std::string::npos;
  }
  check(good, what + ": wanted '" + wanted + "', got '" + message + "'");
}

// Runs the action in a child process: it must die by SIGABRT and say what is wanted; where nothing
// is, any abnormal end will do.
void check_dies(const std::function<void()>& action, const std::string& wanted,
                const std::string& what) {
  int ends[2];
  if (pipe(ends) != 0) throw std::runtime_error("pipe failed");
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    close(ends[0]);
    close(ends[1]);
    action();
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  char buffer[512];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) {
    said.append(buffer, static_cast<std::size_t>(n));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool ended_badly = WIFSIGNALED(status) || WEXITSTATUS(status) != 0;
  const bool aborted = WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
  check(wanted.empty() ? ended_badly : aborted && said.find(wanted) != std::string::npos,
        what + ": wanted '" + wanted + "', status " + std::to_string(status) + ", said '" + said +
            "'");
}

struct Environment {
  std::string name;
  Environment(const std::string& name_, const std::string& value) : name(name_) {
    setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() { unsetenv(name.c_str()); }
};

}  // namespace

// ---------------------------------------------------------------------------- the emulator itself
namespace mahal::emulator {
namespace {

struct Indices {
  int* visits;
};
__global__ void count_visits(Indices p) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  ++p.visits[block * (blockDim.x * blockDim.y * blockDim.z) + thread];
}

struct Poison {
  int* fresh;
};
__global__ void look_at_fresh_memory(Poison p) {
  float* shared = simt::dynamic_shared<float>();
  p.fresh[blockIdx.x * blockDim.x + threadIdx.x] = std::isnan(shared[threadIdx.x]);
  shared[threadIdx.x] = 1.0f;
}

struct Reversal {
  int* out;
  bool barrier;
};
__global__ void reverse_twice(Reversal p) {
  int* shared = simt::dynamic_shared<int>();
  const int t = static_cast<int>(threadIdx.x), last = static_cast<int>(blockDim.x) - 1;
  for (int round = 0; round < 2; ++round) {
    shared[t] = t + 1000 * round;
    if (p.barrier) __syncthreads();
    p.out[round * (last + 1) + t] = shared[last - t];
    if (p.barrier) __syncthreads();
  }
}

struct Exchanges {
  int* out;  // 6 x 32
};
__global__ void exchange_all(Exchanges p) {
  const int t = static_cast<int>(threadIdx.x);
  p.out[t] = __shfl_xor_sync(0xFFFFFFFFu, 10 * t, 5);
  p.out[32 + t] = __shfl_up_sync(0xFFFFFFFFu, 10 * t, 3);
  p.out[64 + t] = __shfl_down_sync(0xFFFFFFFFu, 10 * t, 30);
  p.out[96 + t] = __shfl_sync(0xFFFFFFFFu, 10 * t, 7);
  // Half warps on their own, one more often than the other, before all meet again.
  double sum = t;
  const unsigned half = t < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  for (int round = 0; round < (t < 16 ? 3 : 1); ++round) {
    for (int d = 8; d > 0; d /= 2) sum += __shfl_xor_sync(half, sum, d);
    __syncwarp(half);
  }
  p.out[128 + t] = static_cast<int>(sum);
  __syncwarp();
  p.out[160 + t] = static_cast<int>(__shfl_sync(0xFFFFFFFFu, sum, 31 - t));
}

struct Schedule {
  std::vector<unsigned>* order;
};
__global__ void record_order(Schedule p) {
  for (int round = 0; round < 3; ++round) {
    p.order->push_back(threadIdx.x);
    __syncthreads();
  }
}

enum class Fault {
  half_at_barrier,
  two_barriers,
  exit_before_barrier,
  warp_against_block,
  outside_mask,
  lane_exited,
  lane_not_in_mask,
  absent_lane,
  exception
};
struct Faulty {
  Fault fault;
};
__global__ void do_fault(Faulty p) {
  const unsigned t = threadIdx.x;
  switch (p.fault) {
    case Fault::half_at_barrier:
      if (t % 2 == 0) __syncthreads();
      break;
    case Fault::two_barriers:
      if (t % 2 == 0) {
        __syncthreads();
      } else {
        __syncthreads();
      }
      break;
    case Fault::exit_before_barrier:
      if (t == 5) return;
      __syncthreads();
      break;
    case Fault::warp_against_block:
      if (t < 32) {
        __syncwarp();
        __syncthreads();
      } else if (t % 2 == 0) {
        __syncwarp();
      } else {
        __syncthreads();
      }
      break;
    case Fault::outside_mask:
      __syncwarp(0x0000FFFFu);
      break;
    case Fault::lane_exited:
      if (t % 32 != 3) __syncwarp();
      break;
    case Fault::lane_not_in_mask:
      if (t < 16) __shfl_sync(0x0000FFFFu, t, 20);
      break;
    case Fault::absent_lane:
      __shfl_xor_sync(0xFFFFFFFFu, t, 16);
      break;
    case Fault::exception:
      throw std::runtime_error("no");
  }
}

struct Recursion {
  int depth;
  int* out;
};
__attribute__((noinline)) int descend(int depth) {
  volatile char frame[1024];
  frame[0] = static_cast<char>(depth);
  const int below = depth == 0 ? 0 : descend(depth - 1);
  return below + (frame[0] == static_cast<char>(depth) ? 1 : 0);
}
__global__ void recurse(Recursion p) { p.out[threadIdx.x] = descend(p.depth); }

void test_emulator() {
  std::vector<int> visits(3 * 2 * 2 * 4 * 3 * 2, 0);
  simt::launch("test", count_visits, dim3(3, 2, 2), dim3(4, 3, 2), 0, 0, Indices{visits.data()});
  check(std::all_of(visits.begin(), visits.end(), [](int v) { return v == 1; }),
        "every thread of every block runs once");
  visits.assign(1024, 0);
  simt::launch("test", count_visits, dim3(1), dim3(1024), 0, 0, Indices{visits.data()});
  check(std::all_of(visits.begin(), visits.end(), [](int v) { return v == 1; }), "1024 threads");

  std::vector<int> fresh(5 * 40, 0);
  simt::launch("test", look_at_fresh_memory, dim3(5), dim3(40), 40 * sizeof(float), 0,
               Poison{fresh.data()});
  check(std::all_of(fresh.begin(), fresh.end(), [](int v) { return v == 1; }),
        "shared memory is NaN at the start of every block");
  check_dies(
      [] {
        int one = 0;
        simt::launch("test", look_at_fresh_memory, dim3(1), dim3(1), 0, 0, Poison{&one});
    // Without the sanitizer an access behind the end goes unseen: end badly all the same.
#if !defined(MAHAL_SIMT_ASAN)
        _exit(1);
#endif
      },
      "", "an access behind shared memory is found");

  int wrong_without_barrier = 0;
  for (int seed = 1; seed <= 20; ++seed) {
    const Environment environment("MAHAL_SIMT_SEED", std::to_string(seed));
    for (const bool barrier : {true, false}) {
      constexpr int n = 70;
      std::vector<int> out(2 * n, -1);
      simt::launch("test", reverse_twice, dim3(1), dim3(n), n * sizeof(int), 0,
                   Reversal{out.data(), barrier});
      bool right = true;
      for (int i = 0; i < 2 * n; ++i) right = right && out[i] == n - 1 - i % n + 1000 * (i / n);
      if (barrier) check(right, "reversal with barriers, seed " + std::to_string(seed));
      if (!barrier) wrong_without_barrier += !right;
    }
  }
  check(wrong_without_barrier == 20, "a missing barrier shows at every seed");

  for (int seed = 1; seed <= 5; ++seed) {
    const Environment environment("MAHAL_SIMT_SEED", std::to_string(seed));
    std::vector<int> out(6 * 32, -1);
    simt::launch("test", exchange_all, dim3(1), dim3(32), 0, 0, Exchanges{out.data()});
    bool right = true;
    for (int t = 0; t < 32; ++t) {
      // Three sums over 16 lanes multiply the sum by 16 twice more.
      const int low = 120 * 16 * 16, high = 376;
      right = right && out[t] == 10 * (t ^ 5) && out[32 + t] == 10 * (t < 3 ? t : t - 3) &&
              out[64 + t] == 10 * (t > 1 ? t : t + 30) && out[96 + t] == 70 &&
              out[128 + t] == (t < 16 ? low : high) && out[160 + t] == (t < 16 ? high : low);
    }
    check(right, "shuffles, seed " + std::to_string(seed));
  }

  const auto schedule = [](const char* seed) {
    const Environment environment("MAHAL_SIMT_SEED", seed);
    std::vector<unsigned> order;
    simt::launch("test", record_order, dim3(1), dim3(64), 0, 0, Schedule{&order});
    return order;
  };
  const std::vector<unsigned> first = schedule("1");
  check(first == schedule("1"), "the same seed gives the same schedule");
  check(first != schedule("2"), "another seed gives another schedule");
  check(!std::equal(first.begin(), first.begin() + 64, first.begin() + 64),
        "the schedule changes at a barrier");

  const auto fault = [](Fault kind, unsigned threads) {
    return [kind, threads] {
      simt::launch("test", do_fault, dim3(1, 3), dim3(threads), 0, 0, Faulty{kind});
    };
  };
  check_dies(fault(Fault::half_at_barrier, 64), "divergent barrier: block (0,",
             "half at a barrier");
  check_dies(fault(Fault::half_at_barrier, 64), "32 exited", "half at a barrier, the others named");
  check_dies(fault(Fault::two_barriers, 64), "32 at the block barrier of test_simt.cpp",
             "two different barriers");
  check_dies(fault(Fault::exit_before_barrier, 64), "1 exited", "a thread left before the barrier");
  check_dies(fault(Fault::warp_against_block, 64), "16 at the warp collective",
             "warp barrier against block barrier");
  check_dies(fault(Fault::outside_mask, 32), "whose mask omits it", "caller outside the mask");
  check_dies(fault(Fault::lane_exited, 32), "exited", "a lane of the mask has exited");
  check_dies(fault(Fault::lane_not_in_mask, 32), "takes no part", "source lane outside the mask");
  check_dies(fault(Fault::absent_lane, 20), "takes no part", "source lane behind a partial warp");
  check_dies(fault(Fault::exception, 4), "an exception left the kernel", "exception in a kernel");

  int one = 0;
  const Indices target{&one};
  const auto launch = [&](dim3 grid, dim3 block, std::size_t shared) {
    return [=] { simt::launch("test", count_visits, grid, block, shared, 0, target); };
  };
  const char* limits = "test: emulated launch failed";
  check_throws<DeviceError>(launch(dim3(1), dim3(1025), 0), limits, "too many threads");
  check_throws<DeviceError>(launch(dim3(1), dim3(0), 0), limits, "no threads");
  check_throws<DeviceError>(launch(dim3(0), dim3(1), 0), limits, "no blocks");
  check_throws<DeviceError>(launch(dim3(1, 65536), dim3(1), 0), limits, "too many blocks");
  check_throws<DeviceError>(launch(dim3(1), dim3(1), 227 * 1024 + 1), limits, "too much memory");
  {
    const Environment environment("MAHAL_SIMT_SHARED_KIB", "99");
    check(simt::shared_limit("test") == 99 * 1024, "the limit of a smaller device");
    check_throws<DeviceError>(launch(dim3(1), dim3(1), 99 * 1024 + 1), limits,
                              "too much memory for a smaller device");
  }
  fresh.assign(1, 0);
  simt::launch("test", look_at_fresh_memory, dim3(1), dim3(1), simt::shared_limit("test"), 0,
               Poison{fresh.data()});
  check(fresh[0] == 1, "launches work after failed ones, up to the limit");
  {
    const Environment environment("MAHAL_SIMT_SEED", "x1");
    check_throws<DeviceError>(launch(dim3(1), dim3(1), 0), "must be a whole number, got 'x1'",
                              "seed that is no number");
  }
  {
    const Environment environment("MAHAL_SIMT_STACK_KIB", "4");
    check_throws<DeviceError>(launch(dim3(1), dim3(1), 0), "must be 8 to 65536, got 4",
                              "stack too small");
  }

  std::vector<int> depths(3, 0);
  const Recursion deep{1000, depths.data()};
  {
    const Environment environment("MAHAL_SIMT_STACK_KIB", "8192");
    simt::launch("test", recurse, dim3(1), dim3(3), 0, 0, deep);
    check(depths == std::vector<int>(3, 1001), "a larger stack holds a deep recursion");
  }
  check_dies([&] { simt::launch("test", recurse, dim3(1), dim3(3), 0, 0, deep); }, "",
             "a stack that overflows hits the guard page");
}

}  // namespace
}  // namespace mahal::emulator

// ------------------------------------------------------------------------------ local covariance
namespace {

using mahal::Border;
using mahal::Window;
using Long = long double;

enum class Layout { bip, bsq, bil, reversed, sliced };

const char* name(Layout layout) {
  switch (layout) {
    case Layout::bip:
      return "bip";
    case Layout::bsq:
      return "bsq";
    case Layout::bil:
      return "bil";
    case Layout::reversed:
      return "reversed";
    case Layout::sliced:
      return "sliced";
  }
  return "";
}

const char* name(Border border) {
  return border == Border::shift ? "shift" : border == Border::reflect ? "reflect" : "valid";
}

template <class T>
struct Image {
  int rows, cols, bands;
  std::vector<T> memory;
  const T* data = nullptr;
  std::int64_t row_stride = 0, col_stride = 0, band_stride = 0;

  Image(int rows_, int cols_, int bands_, Layout layout) : rows(rows_), cols(cols_), bands(bands_) {
    const std::size_t size = std::size_t{1} * rows * cols * bands;
    // Elements a stride steps over must never be read.
    memory.assign(layout == Layout::sliced ? 4 * size : size, std::numeric_limits<T>::quiet_NaN());
    data = memory.data();
    switch (layout) {
      case Layout::bip:
        row_stride = cols * bands, col_stride = bands, band_stride = 1;
        break;
      case Layout::bsq:
        band_stride = rows * cols, row_stride = cols, col_stride = 1;
        break;
      case Layout::bil:
        row_stride = bands * cols, band_stride = cols, col_stride = 1;
        break;
      case Layout::reversed:
        row_stride = -cols * bands, col_stride = -bands, band_stride = -1;
        data += size - 1;
        break;
      case Layout::sliced:
        row_stride = 4 * cols * bands, col_stride = 2 * bands, band_stride = 2;
        break;
    }
  }
  T& at(int y, int x, int b) {
    return const_cast<T&>(data[y * row_stride + x * col_stride + b * band_stride]);
  }
};

struct Case {
  int rows, cols, bands;
  std::vector<Window> windows;
  Border border = Border::shift;
  Layout layout = Layout::bip;
  int ddof = 1;
  double offset = 0;
  bool mask = false;
  bool bad_pixel = false;
};

int start(int centre, int size, int width, Border border) {
  const int lo = centre - width / 2;
  return border == Border::reflect ? lo : std::min(std::max(lo, 0), size - width);
}

// By walking back and forth, unlike the kernel.
int mirror(int i, int size) {
  while (size > 1 && (i < 0 || i >= size)) i = i < 0 ? -i : 2 * (size - 1) - i;
  return size > 1 ? i : 0;
}

template <class T>
struct Outputs {
  std::vector<T> mean, covariance;
};

template <class T>
Outputs<T> run(const Case& c, const Image<T>& image, const std::vector<std::uint8_t>& mask) {
  const std::size_t pixels = std::size_t{1} * c.rows * c.cols;
  Outputs<T> out{std::vector<T>(pixels * c.windows.size() * c.bands, T(-77)),
                 std::vector<T>(pixels * c.windows.size() * c.bands * c.bands, T(-77))};
  std::vector<std::uint8_t> states(pixels, 99);
  mahal::LocalCovarianceLaunch<T> a;
  a.image = image.data;
  a.rows = c.rows;
  a.cols = c.cols;
  a.bands = c.bands;
  a.row_stride = image.row_stride;
  a.col_stride = image.col_stride;
  a.band_stride = image.band_stride;
  if (c.mask) {  // stored column by column
    a.mask = mask.data();
    a.mask_row_stride = 1;
    a.mask_col_stride = c.rows;
  }
  a.windows = c.windows.data();
  a.window_count = static_cast<int>(c.windows.size());
  a.border = c.border;
  a.ddof = c.ddof;
  a.mean = out.mean.data();
  a.covariance = out.covariance.data();
  a.pixel_states = states.data();
  mahal::emulator::local_covariance(a, 0);
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// One window by plain loops in long double against the kernel's result. Returns what is wrong.
template <class T>
std::string compare_window(const Case& c, Image<T>& image, const std::vector<std::uint8_t>& mask,
                           const Window& window, int y, int x, const std::vector<Long>& range,
                           const T* mean, const T* covariance) {
  const int oy = start(y, c.rows, window.outer, c.border);
  const int ox = start(x, c.cols, window.outer, c.border);
  const int iy = start(y, c.rows, window.inner, c.border);
  const int ix = start(x, c.cols, window.inner, c.border);
  std::vector<std::vector<Long>> samples;
  bool bad = c.border == Border::valid && (y < window.outer / 2 || y + window.outer / 2 >= c.rows ||
                                           x < window.outer / 2 || x + window.outer / 2 >= c.cols);
  for (int r = oy; r < oy + window.outer; ++r) {
    for (int q = ox; q < ox + window.outer; ++q) {
      if (r >= iy && r < iy + window.inner && q >= ix && q < ix + window.inner) continue;
      const int sy = c.border == Border::reflect ? mirror(r, c.rows) : r;
      const int sx = c.border == Border::reflect ? mirror(q, c.cols) : q;
      if (c.mask && mask[sx * c.rows + sy] == 0) continue;
      std::vector<Long> sample(c.bands);
      for (int b = 0; b < c.bands; ++b) {
        sample[b] = image.at(sy, sx, b);
        bad = bad || !std::isfinite(sample[b]);
      }
      samples.push_back(sample);
    }
  }
  const auto n = static_cast<Long>(samples.size());
  const bool no_mean = bad || samples.empty();
  const bool no_covariance = bad || static_cast<int>(samples.size()) <= c.ddof;
  std::vector<Long> m(c.bands, 0), spread(c.bands, 0);
  if (!no_mean) {
    for (const auto& s : samples) {
      for (int b = 0; b < c.bands; ++b) m[b] += (s[b] - samples[0][b]) / n;
    }
    // From the first sample, as a constant band must have no variance here either.
    for (int b = 0; b < c.bands; ++b) m[b] += samples[0][b];
    for (const auto& s : samples) {
      for (int b = 0; b < c.bands; ++b) spread[b] = std::max(spread[b], std::abs(s[b] - m[b]));
    }
  }
  // The mean and the covariance are rounded once; in float64, where rows are summed on their own
  // and then the rows, there are 2 w additions in sequence, and a few roundings more.
  const Long unit = std::numeric_limits<T>::epsilon() * Long(2 * window.outer + 8);
  for (int b = 0; b < c.bands; ++b) {
    const Long limit =
        unit * 2 * spread[b] + 2 * std::numeric_limits<T>::epsilon() * std::abs(m[b]);
    if (no_mean ? !std::isnan(mean[b]) : !(std::abs(mean[b] - m[b]) <= limit)) {
      return "mean of band " + std::to_string(b) + ": got " + text(mean[b]) + ", wanted " +
             (no_mean ? "nan" : text(m[b]));
    }
  }
  std::vector<Long> s(std::size_t{1} * c.bands * c.bands, 0);
  if (!no_covariance) {
    for (const auto& sample : samples) {
      for (int i = 0; i < c.bands; ++i) {
        for (int j = 0; j < c.bands; ++j) {
          s[i * c.bands + j] += (sample[i] - m[i]) * (sample[j] - m[j]) / (n - c.ddof);
        }
      }
    }
  }
  for (int i = 0; i < c.bands; ++i) {
    for (int j = 0; j < c.bands; ++j) {
      const T got = covariance[i * c.bands + j];
      const Long wanted = s[i * c.bands + j];
      // Cauchy-Schwarz bounds the sum of the magnitudes of the products. Sums in float64 that slide
      // down the rows keep the rounding errors of what has passed through them.
      const Long passed_by = std::numeric_limits<double>::epsilon() * Long(window.outer + c.rows) *
                             range[i] * range[j];
      const Long limit = unit * std::sqrt(s[i * c.bands + i] * s[j * c.bands + j]) + passed_by;
      if (no_covariance ? !std::isnan(got) : !(std::abs(got - wanted) <= limit)) {
        return "covariance of bands " + std::to_string(i) + ", " + std::to_string(j) + ": got " +
               text(got) + ", wanted " + (no_covariance ? "nan" : text(wanted)) + " within " +
               text(limit);
      }
      if (!no_covariance && got != covariance[j * c.bands + i])
        return "covariance is not symmetric";
    }
  }
  return "";
}

template <class T>
void test_case(const Case& c) {
  std::string label = std::string(sizeof(T) == 4 ? "float " : "double ") + std::to_string(c.rows) +
                      "x" + std::to_string(c.cols) + "x" + std::to_string(c.bands) + " " +
                      name(c.border) + " " + name(c.layout) + " ddof " + std::to_string(c.ddof) +
                      (c.mask ? " mask" : "") + (c.bad_pixel ? " bad pixel" : "") + " windows";
  for (const Window& w : c.windows) {
    label += " (" + std::to_string(w.inner) + "," + std::to_string(w.outer) + ")";
  }
  std::mt19937 rng(static_cast<unsigned>(c.rows * 1000 + c.cols * 10 + c.bands));
  std::normal_distribution<double> normal;
  Image<T> image(c.rows, c.cols, c.bands, c.layout);
  std::vector<std::uint8_t> mask(std::size_t{1} * c.rows * c.cols, 1);
  for (int y = 0; y < c.rows; ++y) {
    for (int x = 0; x < c.cols; ++x) {
      const double common = normal(rng);
      for (int b = 0; b < c.bands; ++b) {
        // The first band is constant: its covariances must be exactly zero.
        image.at(y, x, b) = static_cast<T>(
            b == 0 && c.bands > 1 ? 0.1 + c.offset : common + (1 + b % 3) * normal(rng) + c.offset);
      }
      if (c.mask && rng() % 3 == 0) {
        mask[x * c.rows + y] = 0;
        // What the mask hides may be anything.
        image.at(y, x, c.bands - 1) = std::numeric_limits<T>::quiet_NaN();
      }
    }
  }
  if (c.bad_pixel) {
    image.at(c.rows / 3, c.cols / 2, c.bands / 2) = std::numeric_limits<T>::infinity();
    mask[c.cols / 2 * c.rows + c.rows / 3] = 1;
  }
  std::vector<Long> range(c.bands, 0);
  for (int b = 0; b < c.bands; ++b) {
    Long lowest = std::numeric_limits<Long>::infinity(), highest = -lowest;
    for (int y = 0; y < c.rows; ++y) {
      for (int x = 0; x < c.cols; ++x) {
        const Long value = image.at(y, x, b);
        if (!std::isfinite(value)) continue;
        lowest = std::min(lowest, value);
        highest = std::max(highest, value);
      }
    }
    if (lowest <= highest) range[b] = highest - lowest;
  }
  const Outputs<T> out = run(c, image, mask);
  std::string wrong;
  int wrong_windows = 0;
  for (int y = 0; y < c.rows; ++y) {
    for (int x = 0; x < c.cols; ++x) {
      for (std::size_t k = 0; k < c.windows.size(); ++k) {
        const std::size_t at = (std::size_t{1} * y * c.cols + x) * c.windows.size() + k;
        const T* covariance = &out.covariance[at * c.bands * c.bands];
        const std::string message = compare_window(c, image, mask, c.windows[k], y, x, range,
                                                   &out.mean[at * c.bands], covariance);
        if (message.empty()) continue;
        if (wrong_windows++ == 0) {
          wrong = " at (" + std::to_string(y) + "," + std::to_string(x) + "): " + message;
        }
      }
    }
  }
  check(wrong_windows == 0, "local_covariance " + label + ": " + std::to_string(wrong_windows) +
                                " wrong windows, the first" + wrong);
  const Environment environment("MAHAL_SIMT_SEED", "2");
  const Outputs<T> again = run(c, image, mask);
  check(same_bits(out.mean, again.mean) && same_bits(out.covariance, again.covariance),
        "local_covariance " + label + ": not the same bits under another schedule");
}

void test_local_covariance() {
  const auto both = [](const Case& c) {
    test_case<float>(c);
    test_case<double>(c);
  };
  both({.rows = 1, .cols = 1, .bands = 3, .windows = {{1, 0}}, .ddof = 0});
  both({.rows = 1, .cols = 1, .bands = 8, .windows = {{1, 0}}});
  both({.rows = 1, .cols = 1, .bands = 2, .windows = {{3, 0}}, .border = Border::reflect});
  both({.rows = 1, .cols = 9, .bands = 1, .windows = {{1, 0}}, .ddof = 0});
  both({.rows = 7, .cols = 7, .bands = 3, .windows = {{7, 0}}});
  both({.rows = 7, .cols = 7, .bands = 8, .windows = {{7, 1}}, .border = Border::valid});
  for (const int bands : {1, 3, 8, 17, 40}) {
    for (const Layout layout :
         {Layout::bip, Layout::bsq, Layout::bil, Layout::reversed, Layout::sliced}) {
      const Layout next = layout == Layout::sliced ? Layout::bip : Layout::bsq;
      both({.rows = 9, .cols = 11, .bands = bands, .windows = {{5, 3}}, .layout = layout});
      both({.rows = 12,
            .cols = 8,
            .bands = bands,
            .windows = {{7, 3}},
            .border = Border::reflect,
            .layout = next,
            .offset = 10000});
    }
    both({.rows = 10, .cols = 19, .bands = bands, .windows = {{3, 0}}, .mask = true});
    both({.rows = 11,
          .cols = 9,
          .bands = bands,
          .windows = {{5, 1}},
          .ddof = 2,
          .mask = true,
          .bad_pixel = true});
    both({.rows = 13,
          .cols = 9,
          .bands = bands,
          .windows = {{3, 1}, {5, 0}, {9, 5}},
          .border = Border::valid,
          .bad_pixel = true});
    both({.rows = 9,
          .cols = 10,
          .bands = bands,
          .windows = {{7, 5}},
          .border = Border::reflect,
          .offset = 10000,
          .mask = true});
  }
  // More pixels than a tile, more bands than two band blocks, windows that take several chunks.
  both({.rows = 33, .cols = 35, .bands = 4, .windows = {{5, 0}, {11, 3}}, .offset = 10000});
  both({.rows = 5, .cols = 6, .bands = 70, .windows = {{5, 1}}, .layout = Layout::bsq});
  both({.rows = 41, .cols = 42, .bands = 2, .windows = {{41, 21}}, .mask = true});
  Case wide{.rows = 64, .cols = 3, .bands = 36, .windows = {{3, 1}}};
  both(wide);
  both({.rows = 3, .cols = 2, .bands = 33, .windows = {{31, 5}}, .border = Border::reflect});
  both({.rows = 2, .cols = 3, .bands = 40, .windows = {{101, 21}}, .border = Border::reflect});
}

// ------------------------------------------------------------------- matrices in shared memory
constexpr int right_hand_sides = 3;

// Factors one matrix with right-hand sides below it, and solves for the last of these again.
template <class N>
struct OneMatrix {
  const N* a;      // n + right_hand_sides rows of n
  N* out;          // the same, and a row for the solution by a warp
  double* sums;    // per thread: a sum over the block
  bool* factored;  // per thread
  int n;
  bool packed;
};

template <class N, class Layout>
void factor_one(const OneMatrix<N>& p, Layout at, int entries) {
  using namespace mahal::emulator;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int n = p.n, rows = n + right_hand_sides;
  double* room = simt::dynamic_shared<double>();
  int* flag = reinterpret_cast<int*>(room + warp_lanes);
  N* a = reinterpret_cast<N*>(room + warp_lanes + 2);
  N* alone = a + entries;
  auto* pivots = reinterpret_cast<Real<N>*>(alone + n);
  for (int e = thread; e < rows * n; e += threads) {
    const int i = e / n, j = e % n;
    if (j <= i) a[at(i, j)] = p.a[e];
    if (j == i) pivots[i] = real_part(p.a[e]);
    if (i == rows - 1) alone[j] = p.a[e];
  }
  const auto tolerance = static_cast<Real<N>>(n) * simt::epsilon<Real<N>>;
  p.factored[thread] = block_cholesky(a, at, n, rows, tolerance, pivots, flag);
  if (thread / warp_lanes == threads / warp_lanes - 1) warp_forward(a, at, pivots, n, alone);
  p.sums[thread] = block_reduce(double(thread), room) +
                   1e6 * block_reduce(double(thread), room, Greatest{}) +
                   1e12 * block_reduce(double(thread + 1), room, Least{});
  for (int e = thread; e < (rows + 1) * n; e += threads) {
    const int i = e / n, j = e % n;
    p.out[e] = i == rows ? alone[j] : j <= i ? a[at(i, j)] : N{};
  }
}

template <class N>
__global__ void factor_one_kernel(OneMatrix<N> p) {
  if (p.packed) {
    factor_one(p, mahal::emulator::PackedRows{p.n}, p.n * (p.n + 1) / 2 + right_hand_sides * p.n);
  } else {
    factor_one(p, mahal::emulator::PitchedRows{p.n | 1}, (p.n + right_hand_sides) * (p.n | 1));
  }
}

using LongComplex = std::complex<Long>;
template <class T>
LongComplex widened(T x) {
  return {x, 0};
}
template <class T>
LongComplex widened(mahal::emulator::Complex<T> x) {
  return {x.re, x.im};
}

// |A - L L^H| as in factor_error below; |b - L y| <= (n + 1) eps |L| |y| row by row (theorem 8.5
// there), and twice as much. A complex product has four times the rounding of a real one.
template <class N>
void test_matrix_of(int n, int threads, bool packed, bool regular) {
  using namespace mahal::emulator;
  const int rows = n + right_hand_sides;
  const auto size = static_cast<std::size_t>(n);
  std::mt19937 rng(static_cast<unsigned>(n));
  std::normal_distribution<double> normal;
  const auto draw = [&] {
    N x = to_number<N>(normal(rng));
    if constexpr (is_complex_number<N>) x.im = static_cast<Real<N>>(normal(rng));
    return x;
  };
  std::vector<N> samples((size + 8) * size), a(rows * size);
  for (N& x : samples) x = draw();
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) {
      LongComplex sum = i == j && regular ? 0.1 : 0;
      const int count = regular ? n + 8 : n - 1;
      for (int s = 0; s < count; ++s) {
        sum += widened(samples[s * n + i]) * std::conj(widened(samples[s * n + j]));
      }
      a[i * n + j] = to_number<N>(static_cast<double>(sum.real()));
      if constexpr (is_complex_number<N>) {
        if (j < i) a[i * n + j].im = static_cast<Real<N>>(sum.imag());
      }
    }
  }
  for (int e = n * n; e < rows * n; ++e) a[e] = draw();
  std::vector<N> l((rows + 1) * size);
  std::vector<double> sums(static_cast<std::size_t>(threads));
  const auto factored = std::make_unique<bool[]>(static_cast<std::size_t>(threads));
  const std::size_t entries = packed ? size * (size + 1) / 2 + right_hand_sides * size
                                     : static_cast<std::size_t>(rows * (n | 1));
  simt::launch("test", factor_one_kernel<N>, dim3(1), dim3(static_cast<unsigned>(threads)),
               (entries + 2 * size) * sizeof(N) + (warp_lanes + 2) * sizeof(double), 0,
               {a.data(), l.data(), sums.data(), factored.get(), n, packed});

  const std::string label = "matrix of " + std::to_string(sizeof(N)) +
                            " bytes per entry, n = " + std::to_string(n) + ", " +
                            std::to_string(threads) + " threads" + (packed ? ", packed" : "");
  bool same = true;
  const double expected = threads * (threads - 1) / 2 + 1e6 * (threads - 1) + 1e12;
  for (int t = 0; t < threads; ++t) same &= factored[t] == regular && sums[t] == expected;
  check(same, label + ": flag and reductions");
  if (!regular) return;
  const Long unit =
      Long(2 * (n + 4)) * (is_complex_number<N> ? 4 : 1) * std::numeric_limits<Real<N>>::epsilon();
  std::string wrong;
  for (int i = 0; i < rows + 1; ++i) {
    const N* wanted = &a[static_cast<std::size_t>(i < rows ? i : rows - 1) * size];
    for (int j = 0; j < n && (i >= n || j <= i); ++j) {
      LongComplex sum = 0;
      Long magnitude = 0;
      for (int k = 0; k <= j; ++k) {
        const LongComplex term = widened(l[i * n + k]) * std::conj(widened(l[j * n + k]));
        sum += term;
        magnitude += std::abs(term);
      }
      if (!(std::abs(sum - widened(wanted[j])) <= unit * magnitude)) {
        wrong = ": entry (" + std::to_string(i) + "," + std::to_string(j) + ")";
      }
    }
  }
  check(wrong.empty(), label + wrong);
}

void test_matrices() {
  for (const int n : {1, 2, 15, 16, 17, 33, 50}) {
    for (const bool packed : {false, true}) {
      const int threads = n < 16 ? 32 : n < 40 ? 64 : 96;
      test_matrix_of<float>(n, threads, packed, true);
      test_matrix_of<double>(n, threads, packed, true);
      test_matrix_of<mahal::emulator::Complex<float>>(n, threads, packed, true);
      test_matrix_of<mahal::emulator::Complex<double>>(n, threads, packed, true);
    }
  }
  test_matrix_of<float>(20, 64, true, false);
  test_matrix_of<mahal::emulator::Complex<double>>(20, 64, false, false);
}

// ------------------------------------------------------------------------------------- Cholesky
template <class T>
struct Matrices {
  int n;
  std::int64_t batch;
  std::vector<T> values;  // batch x n x n

  T& at(std::int64_t k, int i, int j) { return values[(k * n + i) * n + j]; }
};

template <class T>
Matrices<T> random_matrices(int n, std::int64_t batch) {
  Matrices<T> m{n, batch, std::vector<T>(static_cast<std::size_t>(batch * n * n))};
  std::mt19937 rng(static_cast<unsigned>(100 * n + batch));
  std::normal_distribution<double> normal;
  const int samples = n + 8;
  for (std::int64_t k = 0; k < batch; ++k) {
    std::vector<double> x(static_cast<std::size_t>(samples * n));
    for (double& v : x) v = normal(rng);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        double sum = i == j ? 0.1 : 0;
        for (int s = 0; s < samples; ++s) sum += x[s * n + i] * x[s * n + j] / samples;
        // Scales that differ from band to band must not matter.
        m.at(k, i, j) = m.at(k, j, i) = static_cast<T>(std::ldexp(sum, i % 5 + j % 5));
      }
    }
  }
  return m;
}

template <class T>
struct Factors {
  Matrices<T> factor;
  std::vector<std::uint8_t> status;
};

template <class T>
Factors<T> factorise(const Matrices<T>& m, T loading, const T* data, std::int64_t batch_stride,
                     std::int64_t row_stride, std::int64_t col_stride) {
  Factors<T> out{{m.n, m.batch, std::vector<T>(m.values.size(), T(-77))},
                 std::vector<std::uint8_t>(static_cast<std::size_t>(m.batch), 99)};
  mahal::CholeskyLaunch<T> launch;
  launch.a = data;
  launch.batch = m.batch;
  launch.n = m.n;
  launch.batch_stride = batch_stride;
  launch.row_stride = row_stride;
  launch.col_stride = col_stride;
  launch.loading = loading;
  launch.factor = out.factor.values.data();
  launch.status = out.status.data();
  mahal::emulator::cholesky(launch, 0);
  return out;
}

template <class T>
Factors<T> factorise(const Matrices<T>& m, T loading = 0) {
  return factorise(m, loading, m.values.data(), std::int64_t{m.n} * m.n, m.n, 1);
}

// |A - L L^T| <= (n + 1) eps |L| |L^T| entry by entry, and |L| |L^T| <= sqrt(a_ii a_jj) (Higham,
// Accuracy and Stability of Numerical Algorithms, theorem 10.3); twice that for the multiplication
// by a reciprocal and for the loading.
template <class T>
std::string factor_error(Matrices<T>& m, Matrices<T>& l, std::int64_t k, T loading) {
  const int n = m.n;
  Long load = 0;
  for (int i = 0; i < n; ++i) load += Long(loading) * m.at(k, i, i) / n;
  for (int i = 0; i < n; ++i) {
    if (!(l.at(k, i, i) > 0)) return "the diagonal is not positive";
    for (int j = 0; j < n; ++j) {
      if (j > i && l.at(k, i, j) != 0) return "above the diagonal is not zero";
      if (j > i) continue;
      Long sum = 0;
      for (int s = 0; s <= j; ++s) sum += Long(l.at(k, i, s)) * l.at(k, j, s);
      const Long wanted = m.at(k, i, j) + (i == j ? load : 0);
      const Long limit = Long(2 * (n + 4)) * std::numeric_limits<T>::epsilon() *
                         std::sqrt((m.at(k, i, i) + load) * (m.at(k, j, j) + load));
      if (!(std::abs(sum - wanted) <= limit)) {
        return "entry (" + std::to_string(i) + "," + std::to_string(j) + ") of L L^T: got " +
               text(sum) + ", wanted " + text(wanted) + " within " + text(limit);
      }
    }
  }
  return "";
}

template <class T>
void check_factors(const std::string& what, Matrices<T>& m, Factors<T>& f, T loading = 0) {
  std::string wrong;
  for (std::int64_t k = 0; k < m.batch && wrong.empty(); ++k) {
    wrong = f.status[k] != 0 ? "status " + std::to_string(f.status[k])
                             : factor_error(m, f.factor, k, loading);
    if (!wrong.empty()) wrong = " matrix " + std::to_string(k) + ": " + wrong;
  }
  check(wrong.empty(), what + wrong);
}

template <class T>
bool all_nan_below(Matrices<T>& l, std::int64_t k) {
  for (int i = 0; i < l.n; ++i) {
    for (int j = 0; j < l.n; ++j) {
      if (j > i ? l.at(k, i, j) != 0 : !std::isnan(l.at(k, i, j))) return false;
    }
  }
  return true;
}

template <class T>
void test_cholesky_of(int n, std::int64_t batch) {
  const std::string label = std::string("cholesky ") + (sizeof(T) == 4 ? "float" : "double") +
                            " n " + std::to_string(n) + " batch " + std::to_string(batch);
  Matrices<T> m = random_matrices<T>(n, batch);
  Factors<T> f = factorise(m);
  check_factors(label, m, f);
  {
    const Environment environment("MAHAL_SIMT_SEED", "2");
    const Factors<T> again = factorise(m);
    check(same_bits(f.factor.values, again.factor.values) && f.status == again.status,
          label + ": not the same bits under another schedule");
  }
  const T loading = T(0.25);
  Factors<T> loaded = factorise(m, loading);
  check_factors(label + " loaded", m, loaded, loading);

  // The batch backwards, and each matrix transposed with its other half unreadable.
  Matrices<T> half = m;
  for (std::int64_t k = 0; k < batch; ++k) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < i; ++j) half.at(k, i, j) = std::numeric_limits<T>::quiet_NaN();
    }
  }
  const std::int64_t size = std::int64_t{n} * n;
  const Factors<T> backwards =
      factorise(half, T(0), half.values.data() + (batch - 1) * size, -size, 1, n);
  bool same = true;
  for (std::int64_t k = 0; k < batch; ++k) {
    same = same && std::memcmp(&backwards.factor.values[k * size],
                               &f.factor.values[(batch - 1 - k) * size], size * sizeof(T)) == 0;
  }
  check(same, label + " with strides");

  // Broken matrices in a batch leave their neighbours as they are.
  Matrices<T> broken = m;
  const auto spoil = [&](std::int64_t k, const std::function<T(int, int)>& entry) {
    if (k >= batch) return;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) broken.at(k, i, j) = entry(i, j);
    }
  };
  spoil(0, [&](int i, int j) {  // one negative eigenvalue, found at the last pivot
    return i == j ? (i == n - 1 ? T(-1) : T(1)) : T(0);
  });
  spoil(1, [&](int i, int j) {  // rank one; for n = 1 zero
    return n == 1 ? T(0) : static_cast<T>((1 + i % 7) * (1 + j % 7));
  });
  spoil(2, [&](int i, int j) {  // not a number in the corner
    return i == j ? T(2) : i == n - 1 && j == 0 ? std::numeric_limits<T>::quiet_NaN() : T(0);
  });
  if (n == 1 && batch > 2) broken.at(2, 0, 0) = std::numeric_limits<T>::infinity();
  Factors<T> g = factorise(broken);
  for (std::int64_t k = 0; k < batch; ++k) {
    const int wanted = k < 2 ? 2 : k == 2 ? 3 : 0;
    const bool good = g.status[k] == wanted &&
                      (k < 3 ? all_nan_below(g.factor, k)
                             : std::memcmp(&g.factor.values[k * size], &f.factor.values[k * size],
                                           size * sizeof(T)) == 0);
    if (!good || k < 3) {
      check(good, label + " broken matrix " + std::to_string(k) + ": status " +
                      std::to_string(g.status[k]) + ", wanted " + std::to_string(wanted));
    }
  }
  if (n > 1 && batch > 1) {
    Matrices<T> rank_one{n, 1, {broken.values.begin() + size, broken.values.begin() + 2 * size}};
    Factors<T> h = factorise(rank_one, T(0.01));
    check_factors(label + " rank one, loaded", rank_one, h, T(0.01));
  }
}

void test_cholesky() {
  for (const int n : {1, 2, 3, 5, 8, 9, 16, 17, 31, 32, 33, 48, 63, 64}) {
    for (const std::int64_t batch : {1, 5, 37}) {
      test_cholesky_of<float>(n, batch);
      test_cholesky_of<double>(n, batch);
    }
  }
  for (const int n : {65, 80, 97, 129, 162, 255, 256}) {
    test_cholesky_of<float>(n, 4);
    test_cholesky_of<double>(n, 4);
  }
}

// The background of `pixels` spectra and whitening by it.
void test_background(int pixels, int bands, bool along_bands) {
  using namespace mahal;
  const std::string label = "background of " + std::to_string(pixels) + " x " +
                            std::to_string(bands) + (along_bands ? "" : " by bands");
  std::mt19937 rng(7);
  std::normal_distribution<double> normal;
  std::vector<double> x(static_cast<std::size_t>(pixels) * bands);
  const auto at = [&](int i, int j) -> double& {
    return x[static_cast<std::size_t>(along_bands ? i * bands + j : j * pixels + i)];
  };
  for (int i = 0; i < pixels; ++i) {
    const double common = normal(rng);
    for (int j = 0; j < bands; ++j) at(i, j) = 100.0 + normal(rng) + common;
  }
  const int bad = pixels / 2;
  at(bad, bands - 1) = std::numeric_limits<double>::quiet_NaN();

  const int padded = padded_rows(bands);
  EstimateLaunch<double> e{};
  e.samples.pixels.list = {
      x.data(), pixels, 0, along_bands ? bands : 1, along_bands ? 1 : pixels, 0, bands, bands};
  e.samples.pixels.count = pixels;
  e.samples.pixels.along_bands = along_bands;
  e.samples.cut = sample_chunks(pixels, bands);
  const int chunks = e.samples.cut.chunks;
  std::vector<std::uint8_t> status(pixels);
  std::vector<std::int64_t> counts(e.samples.cut.scans), firsts(e.samples.cut.scans);
  // On 64 bytes, as in the workspace of an op.
  std::vector<std::unique_ptr<double[], void (*)(double*)>> memory;
  const auto room = [&](std::int64_t elements) {
    auto* data = static_cast<double*>(
        std::aligned_alloc(64, static_cast<std::size_t>((elements * 8 + 63) / 64 * 64)));
    std::fill_n(data, elements, std::numeric_limits<double>::quiet_NaN());
    memory.emplace_back(data, [](double* p) { std::free(p); });
    return data;
  };
  BackgroundState state{};
  e.samples.status = status.data();
  e.samples.counts = counts.data();
  e.samples.firsts = firsts.data();
  e.ddof = 1;
  e.center = true;
  e.needed = bands + 1;
  e.parts = 1;
  e.mean = room(padded);
  e.covariance = room(std::int64_t{padded} * padded);
  e.state = &state;
  e.sums = room(std::int64_t{chunks} * padded);
  const SampleChunks& cut = e.samples.cut;
  e.products = room(std::int64_t{chunks} * cut.pairs * cut.tile * cut.tile);
  FactorLaunch f{};
  f.covariance = e.covariance;
  f.bands = bands;
  f.lower = room(std::int64_t{padded} * padded);
  f.inverse = room(std::int64_t{padded} * factor_block);
  f.state = &state;
  WhitenLaunch<double, double> w{};
  w.pixels = e.samples.pixels;
  w.mean = e.mean;
  w.lower = f.lower;
  w.inverse = f.inverse;
  w.verdicts.pixel = status.data();
  w.verdicts.state = &state;
  w.whitened = room(std::int64_t{pixels} * bands);
  w.out_stride = w.out_bands = bands;
  w.score = room(pixels);
  const emulator::Background device{"test", 0};
  device.estimate(e);
  device.factor(f);
  device.whiten(w);

  check(state.count == pixels - 1 && state.outcome == status_ok && state.unfactored == 0,
        label + ": state");
  check(status[bad] == status_nonfinite && !(w.score[bad] == w.score[bad]),
        label + ": a bad pixel");
  // Plain loops in extended precision. The part that all bands share makes for a condition of about
  // the number of bands.
  const long double allowed =
      8.0L * std::numeric_limits<double>::epsilon() * bands * (bands + pixels);
  long double worst = 0;
  const auto compare = [&](double found, long double wanted, long double limit) {
    const long double error = std::abs(found - wanted);
    if (!(error <= limit)) worst = std::fmax(worst, error == error ? error : 1e30L);
  };
  std::vector<long double> m(bands), s(static_cast<std::size_t>(bands) * bands), y(bands);
  for (int i = 0; i < pixels; ++i) {
    for (int j = 0; i != bad && j < bands; ++j) m[j] += at(i, j) / (pixels - 1.0L);
  }
  for (int i = 0; i < pixels; ++i) {
    if (i == bad) continue;
    for (int j = 0; j < bands; ++j) {
      for (int k = 0; k < bands; ++k) {
        s[j * bands + k] += (at(i, j) - m[j]) * (at(i, k) - m[k]) / (pixels - 2);
      }
    }
  }
  for (int j = 0; j < bands; ++j) {
    compare(e.mean[j], m[j], allowed * 100);
    for (int k = 0; k < bands; ++k) {
      compare(e.covariance[j * padded + k], s[j * bands + k], allowed);
    }
  }
  check(worst == 0, label + ": statistics off by " + text(worst));
  worst = 0;
  for (int j = 0; j < bands; ++j) {
    for (int k = 0; k <= j; ++k) {
      long double& entry = s[j * bands + k];
      for (int i = 0; i < k; ++i) entry -= s[j * bands + i] * s[k * bands + i];
      entry = j == k ? std::sqrt(entry) : entry / s[k * bands + k];
    }
  }
  for (int i = 0; i < pixels; ++i) {
    if (i == bad) continue;
    long double square = 0;
    for (int j = 0; j < bands; ++j) {
      y[j] = at(i, j) - m[j];
      for (int k = 0; k < j; ++k) y[j] -= s[j * bands + k] * y[k];
      y[j] /= s[j * bands + j];
      square += y[j] * y[j];
      compare(w.whitened[static_cast<std::size_t>(i) * bands + j], y[j], allowed * bands);
    }
    compare(w.score[i], square, allowed * bands * square);
  }
  check(worst == 0, label + ": whitening off by " + text(worst));
}

void test_backgrounds() {
  test_background(60, 7, true);
  test_background(300, 40, true);
  test_background(120, 40, false);
  test_background(150, 70, true);
  test_background(600, 20, false);
}

// --------------------------------------------------------------------------- scores of windows
// Rings of windows that slide inside the image, in extended precision.
std::vector<double> ring_scores(const std::vector<double>& x, int rows, int cols, int n,
                                mahal::Window window) {
  std::vector<double> scores;
  const auto start = [](int i, int size, int side) {
    return std::min(std::max(i - side / 2, 0), size - side);
  };
  for (int row = 0; row < rows; ++row) {
    for (int col = 0; col < cols; ++col) {
      const int top = start(row, rows, window.outer), left = start(col, cols, window.outer);
      const int hole_top = start(row, rows, window.inner);
      const int hole_left = start(col, cols, window.inner);
      std::vector<const double*> samples;
      for (int r = top; r < top + window.outer; ++r) {
        for (int c = left; c < left + window.outer; ++c) {
          const bool hole = r >= hole_top && r < hole_top + window.inner && c >= hole_left &&
                            c < hole_left + window.inner;
          if (!hole) samples.push_back(&x[static_cast<std::size_t>((r * cols + c) * n)]);
        }
      }
      std::vector<Long> mean(static_cast<std::size_t>(n), 0);
      for (const double* s : samples) {
        for (int b = 0; b < n; ++b) mean[b] += s[b] / static_cast<Long>(samples.size());
      }
      std::vector<Long> a(static_cast<std::size_t>((n + 1) * n), 0);
      for (const double* s : samples) {
        for (int i = 0; i < n; ++i) {
          for (int j = 0; j <= i; ++j) a[i * n + j] += (s[i] - mean[i]) * (s[j] - mean[j]);
        }
      }
      for (Long& value : a) value /= static_cast<Long>(samples.size() - 1);
      for (int b = 0; b < n; ++b) a[n * n + b] = x[(row * cols + col) * n + b] - mean[b];
      Long score = 0;
      for (int i = 0; i <= n; ++i) {
        for (int j = 0; j < n && j <= i; ++j) {
          Long value = a[i * n + j];
          for (int k = 0; k < j; ++k) value -= a[i * n + k] * a[j * n + k];
          a[i * n + j] = i == j ? std::sqrt(value) : value / a[j * n + j];
          if (i == n) score += a[i * n + j] * a[i * n + j];
        }
      }
      scores.push_back(static_cast<double>(score));
    }
  }
  return scores;
}

// `quiet`: all pixels far from the mean of the image, as seen from their spread.
template <class T>
void test_window_scores_of(int rows, int cols, int n, mahal::Window window, bool quiet) {
  const std::string label = std::string("rx ") + (sizeof(T) == 4 ? "float" : "double") + ' ' +
                            std::to_string(n) + (quiet ? " bands, quiet" : " bands");
  const int pixels = rows * cols, pitch = mahal::window_pitch(n);
  std::mt19937 rng(static_cast<std::uint32_t>(n));
  std::normal_distribution<double> normal;
  std::vector<double> x(static_cast<std::size_t>(pixels * n));
  std::vector<double> exact(static_cast<std::size_t>(pixels * pitch), 0);
  std::vector<T> whitened(exact.size(), T(0));
  for (int i = 0; i < pixels * n; ++i) {
    x[i] = quiet ? 3 + 1e-6 * normal(rng) : normal(rng);
    exact[i / n * pitch + i % n] = x[i];
    whitened[i / n * pitch + i % n] = static_cast<T>(x[i]);
  }
  const mahal::StripPlan plan = mahal::plan_strips<T>(rows, cols, n, 0);
  const std::int64_t elements = mahal::window_matrix(n, 0);
  std::vector<double> matrices(elements * mahal::window_blocks(pixels, elements));
  std::vector<T> sums(mahal::window_sums_room(plan)), score(pixels, T(-77));
  std::vector<std::uint8_t> usable(pixels, 0), status(pixels, 99), weak(pixels, 99);
  std::vector<std::int32_t> count(pixels);
  const mahal::BackgroundState state{};
  mahal::WindowScoresLaunch<T> launch;
  launch.rows = rows;
  launch.cols = cols;
  launch.bands = n;
  launch.pitch = pitch;
  launch.exact = exact.data();
  launch.pixel_status = usable.data();
  launch.state = &state;
  launch.window = window;
  launch.needed = n + 1;
  launch.status = status.data();
  launch.count = count.data();
  launch.weak = weak.data();
  launch.matrices = matrices.data();
  launch.whitened = whitened.data();
  launch.score = score.data();
  launch.sums = sums.data();
  mahal::emulator::window_scores(launch, 0);

  const std::vector<double> want = ring_scores(x, rows, cols, n, window);
  const double largest = *std::max_element(want.begin(), want.end());
  // Four samples for each band leave a condition of about ((1 + 1/2) / (1 - 1/2))^2.
  const double allowed =
      8.0 * n * 9 * static_cast<double>(std::numeric_limits<T>::epsilon()) * largest;
  double error = 0;
  bool scored = true;
  for (int i = 0; i < pixels; ++i) {
    const double e = std::abs(static_cast<double>(score[i]) - want[i]);
    if (!(e <= error)) error = e;
    scored = scored && status[i] == 0;
  }
  check(error <= allowed, label + ": error " + text(error) + ", allowed " + text(allowed));
  check(scored, label + ": a pixel is not scored");
  const auto marked = std::count_if(weak.begin(), weak.end(), [](auto w) { return w != 0; });
  check(marked == (quiet ? pixels : 0),
        label + ": " + std::to_string(marked) + " pixels scored twice");
}

void test_window_scores() {
  test_window_scores_of<float>(8, 19, 5, {7, 1}, false);
  test_window_scores_of<double>(8, 19, 5, {7, 1}, false);
  test_window_scores_of<float>(13, 14, 36, {13, 3}, false);
  test_window_scores_of<double>(13, 14, 36, {13, 3}, false);
  test_window_scores_of<float>(8, 11, 3, {5, 1}, true);
}

// ------------------------------------------------------------- distances between covariances
// tr(A^-1 A) is the number of rows, whoever works on the matrix: a thread, a warp or a block.
void test_distances() {
  for (const int n : {3, 12, 60}) {
    constexpr std::int64_t batch = 5;
    Matrices<double> m = random_matrices<double>(n, batch);
    std::vector<double> score(batch, -77);
    std::vector<std::uint8_t> status(batch, 99);
    mahal::CovarianceDistanceLaunch launch;
    launch.a = launch.b = m.values.data();
    launch.batch.rank = 1;
    launch.batch.count = launch.batch.shape[0] = batch;
    launch.batch.a_strides[0] = launch.batch.b_strides[0] = std::int64_t{n} * n;
    launch.a_row_stride = launch.b_row_stride = n;
    launch.a_col_stride = launch.b_col_stride = 1;
    launch.n = n;
    launch.params.metric = mahal::Metric::hotelling_lawley;
    launch.plan = mahal::plan_distances(launch.params.metric, n, false, batch);
    std::vector<double> workspace(static_cast<std::size_t>(launch.plan.workspace_doubles()));
    launch.workspace = workspace.data();
    launch.score = score.data();
    launch.status = status.data();
    mahal::emulator::covariance_distance(launch, 0);
    bool good = true;
    // Rounding grows with the condition of the matrices, which is below 1000.
    for (int k = 0; k < batch; ++k) {
      good &= status[k] == 0 && std::abs(score[k] - n) < 1e3 * n * n * 2.3e-16;
    }
    check(good, "Hotelling-Lawley of equal matrices, n = " + std::to_string(n));
  }
}

// ------------------------------------------------------------------------ two images in windows
// Squared Frobenius distances of clipped windows of two channels, and structural similarity of one
// with mirrored windows, by plain loops.
void test_image_pairs() {
  constexpr int rows = 11, cols = 45, channels = 2, window = 5;
  std::mt19937 rng(7);
  std::normal_distribution<double> normal(50, 4);
  std::vector<double> images[2];
  for (auto& image : images) {
    image.resize(std::size_t{rows} * cols * channels);
    for (double& x : image) x = normal(rng);
  }
  // Mean and covariance of x_i and x_j, of channels first and second.
  struct Moments {
    Long mean[2], covariance[2][2];
  };
  const auto moments = [&](int row, int col, bool clipped,
                           const std::function<Long(int, int)>& at) {
    std::vector<int> places;
    for (int v = row - window / 2; v <= row + window / 2; ++v) {
      for (int u = col - window / 2; u <= col + window / 2; ++u) {
        const auto mirrored = [](int k, int n) { return k < 0 ? -k : k >= n ? 2 * n - 2 - k : k; };
        const int r = mirrored(v, rows), c = mirrored(u, cols);
        if (!clipped || (r == v && c == u)) places.push_back(r * cols + c);
      }
    }
    Moments m{};
    const Long n = static_cast<Long>(places.size());
    for (int place : places) {
      for (int i = 0; i < 2; ++i) m.mean[i] += at(place, i) / n;
    }
    for (int place : places) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
          m.covariance[i][j] += (at(place, i) - m.mean[i]) * (at(place, j) - m.mean[j]) / (n - 1);
        }
      }
    }
    return m;
  };

  std::vector<double> score(std::size_t{rows} * cols, -77);
  std::vector<std::uint8_t> status(score.size(), 99), weights(score.size());
  mahal::ChangeMapLaunch map;
  mahal::StructuralSimilarityLaunch<double> similarity;
  for (int k = 0; k < 2; ++k) {
    map.images[k] = similarity.images[k] = images[k].data();
    map.row_strides[k] = similarity.row_strides[k] = cols * channels;
    map.col_strides[k] = similarity.col_strides[k] = channels;
    map.channel_strides[k] = similarity.channel_strides[k] = 1;
  }
  map.rows = similarity.rows = rows;
  map.cols = similarity.cols = cols;
  map.channels = channels;
  map.params.window = window;
  map.plan = mahal::plan_change_map(map.params, rows, cols, channels, false);
  map.chunk = mahal::change_chunk(map.params, map.plan, channels, false);
  map.weights = weights.data();
  std::vector<double> origins(static_cast<std::size_t>(mahal::origin_tiles(rows, cols) *
                                                       mahal::change_origins(channels, false)));
  map.origins = origins.data();
  map.score = score.data();
  map.status = status.data();
  mahal::emulator::change_map(map, 0);
  bool good = true;
  for (int e = 0; e < rows * cols; ++e) {
    Long wanted = 0;
    Moments m[2];
    for (int k = 0; k < 2; ++k) {
      m[k] = moments(e / cols, e % cols, true,
                     [&](int place, int i) { return images[k][place * channels + i]; });
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        const Long d = m[0].covariance[i][j] - m[1].covariance[i][j];
        wanted += d * d;
      }
    }
    good &= status[e] == 0 && std::abs(score[e] - wanted) <= 1e-12 * (1 + wanted);
  }
  check(good, "change map");

  similarity.channels = 1;
  similarity.params.window = window;
  similarity.params.data_range = 100;
  std::vector<double> window_weights(window), similarity_origins(origins.size());
  similarity.weights = window_weights.data();
  similarity.origins = similarity_origins.data();
  similarity.score = score.data();
  mahal::emulator::structural_similarity(similarity, 0);
  good = true;
  for (int e = 0; e < rows * cols; ++e) {
    const Moments m = moments(e / cols, e % cols, false, [&](int place, int image) {
      return images[image][place * channels];
    });
    const Long c1 = 1, c2 = 9;  // (0.01 * 100)^2 and (0.03 * 100)^2
    const Long wanted = (2 * m.mean[0] * m.mean[1] + c1) * (2 * m.covariance[0][1] + c2) /
                        ((m.mean[0] * m.mean[0] + m.mean[1] * m.mean[1] + c1) *
                         (m.covariance[0][0] + m.covariance[1][1] + c2));
    good &= std::abs(score[e] - wanted) <= 1e-12;
  }
  check(good, "structural similarity");
}

}  // namespace

int main() {
  mahal::emulator::test_emulator();
  test_local_covariance();
  test_matrices();
  test_cholesky();
  test_backgrounds();
  test_window_scores();
  test_distances();
  test_image_pairs();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 ? 0 : 1;
}

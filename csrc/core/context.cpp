#include "mahal/context.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <string>

#include "core/build_config.hpp"
#include "mahal/error.hpp"

namespace mahal {
namespace {

std::string threads_rule() {
  return "must be a whole number from 1 to " + std::to_string(max_threads);
}

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
}

int initial_threads() {
  const char* wanted = std::getenv("MAHAL_THREADS");
  if (wanted == nullptr || *wanted == '\0') return std::min(usable_cpus(), max_threads);
  int threads = 0;
  const char* end = wanted + std::strlen(wanted);
  const auto [stop, failure] = std::from_chars(wanted, end, threads);
  if (failure != std::errc{} || stop != end || threads < 1 || threads > max_threads) {
    throw_value_error("", "MAHAL_THREADS", threads_rule(), std::string("'") + wanted + "'");
  }
  return threads;
}

constexpr int unset = 0;
std::atomic<int> selected_threads{unset};
std::atomic<Backend> selected_backend{Backend::automatic};

}  // namespace

int default_threads() {
  int current = selected_threads.load(std::memory_order_relaxed);
  if (current == unset) {
    const int initial = initial_threads();
    if (selected_threads.compare_exchange_strong(current, initial, std::memory_order_relaxed)) {
      current = initial;
    }
  }
  return current;
}

void set_default_threads(int threads) {
  if (threads < 1 || threads > max_threads) {
    throw_value_error("set_default_threads", "threads", threads_rule(), std::to_string(threads));
  }
  selected_threads.store(threads, std::memory_order_relaxed);
}

Backend active_backend() { return selected_backend.load(std::memory_order_relaxed); }

void set_backend(Backend backend) {
  if (backend == Backend::emulator && !built_with_emulator) {
    throw_device_error("set_backend", "backend",
                       "the emulator needs a build with MAHAL_EMULATOR=ON", "");
  }
  selected_backend.store(backend, std::memory_order_relaxed);
}

BuildInfo build_info() {
  return {.version = MAHAL_VERSION,
          .compiler = MAHAL_COMPILER,
          .cuda_toolkit = MAHAL_CUDA_TOOLKIT,
          .cuda_architectures = MAHAL_CUDA_ARCHITECTURES,
          .cuda = built_with_cuda,
          .emulator = built_with_emulator};
}

}  // namespace mahal

// One kernel source, two builds.
//
// nvcc compiles a .cu file for the device; with -DMAHAL_EMULATED=1 the host compiler compiles the
// same file as plain C++ and this header supplies what the language lacks: one fibre per CUDA
// thread and a scheduler that is as unhelpful as a real device may be. Kernels and their entry
// points live in `namespace mahal::MAHAL_CUDA_NAMESPACE` (cuda or emulator), so both builds fit in
// one library.
//
// What a kernel may use:
//   threadIdx, blockIdx, blockDim, gridDim; __syncthreads, __syncwarp;
//   __shfl_sync, __shfl_xor_sync, __shfl_up_sync, __shfl_down_sync over the whole warp;
//   MAHAL_UNROLL in front of a loop, MAHAL_DEVICE_CALL of a function; simt::nan<T>,
//   simt::epsilon<T>, simt::largest<T>; simt::reciprocal_root;
//   simt::store_streaming of 16 bytes;
//   simt::dynamic_shared<T>() for shared memory. Static __shared__ arrays are left out on purpose:
//   the emulator could not poison them or let the address sanitizer see their ends.
// A kernel takes one parameter, a struct by value, and is started by simt::launch, which throws
// DeviceError when the launch is impossible; launches after a failed one work. Each thread of a
// block reaches every __syncthreads.
//
// A block may have simt::shared_limit(op) bytes of shared memory on the device of the launch. Every
// device has simt::plain_shared_bytes; where more is asked for, fewer blocks fit beside each other.
//
// The emulator reads three environment variables at every launch:
//   MAHAL_SIMT_SEED        seed of the schedule, default 1
//   MAHAL_SIMT_STACK_KIB   stack of one fibre in KiB, default 64 (256 under the address sanitizer)
//   MAHAL_SIMT_SHARED_KIB  shared memory that a block may have, default 227 as on an H200
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "mahal/error.hpp"

#if defined(MAHAL_EMULATED)

#define MAHAL_CUDA_NAMESPACE emulator

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <source_location>
#include <type_traits>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define MAHAL_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MAHAL_SIMT_ASAN 1
#endif
#endif
#if defined(MAHAL_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the SIMT emulator switches fibres in x86-64 code: build with MAHAL_EMULATOR=OFF here"
#endif

#define __global__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define MAHAL_UNROLL
#define MAHAL_DEVICE_CALL __attribute__((noinline))

namespace mahal::emulator {

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline thread_local constinit uint3 threadIdx{}, blockIdx{};
inline thread_local constinit dim3 blockDim{}, gridDim{};

namespace simt {

inline constexpr std::size_t plain_shared_bytes = 48 * 1024;
inline constexpr std::size_t max_block_threads = 1024;
inline constexpr int warp_size = 32;

enum class State : std::uint8_t { ready, at_block_barrier, at_warp_collective, finished };

struct Fibre {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest usable byte; the page below it faults
  void* fake_stack = nullptr;
  State state = State::ready;
  uint3 index{};
  std::source_location where{};
  unsigned lanes = 0;  // mask of the warp collective it waits at
  int source_lane = -1;
  std::array<unsigned char, 8> value{};
  std::array<unsigned char, 8> received{};
};

// Saves the registers a callee must keep and the stack pointer, then continues on another stack.
// Not swapcontext: that costs two system calls a switch, and the address sanitizer intercepts it
// with a warning and by clearing the shadow of the whole stack.
__attribute__((naked, noinline)) inline void switch_stack([[maybe_unused]] void** from,
                                                          [[maybe_unused]] void* to) {
  asm volatile(
      "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\t"
      "ret");
}

inline std::size_t environment_number(const char* name, std::size_t fallback) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return fallback;
  char* end = nullptr;
  const unsigned long long number = std::strtoull(text, &end, 10);
  if (*end != '\0' || *text == '-') {
    throw DeviceError(std::string("emulator: ") + name + ": must be a whole number, got '" + text +
                      "'");
  }
  return static_cast<std::size_t>(number);
}

inline std::size_t shared_limit(const char* /*op*/) {
  constexpr std::size_t fallback_kib = 227;
  return environment_number("MAHAL_SIMT_SHARED_KIB", fallback_kib) * 1024;
}

// All threads of one block at a time; the same fibres serve one block after the other.
class Machine {
 public:
  Machine(std::size_t threads, std::size_t shared_bytes, void (*body)(const void*),
          const void* data)
      : threads_(threads), shared_bytes_(shared_bytes), body_(body), data_(data) {
    rng_.seed(static_cast<std::uint32_t>(environment_number("MAHAL_SIMT_SEED", 1)));
    fibres_.resize(threads_);
    ready_.reserve(threads_);
    shared_.reset(static_cast<unsigned char*>(::operator new(shared_bytes_, shared_alignment)));
    map_stacks();
    running() = this;
    for (std::size_t i = 0; i < threads_; ++i) prepare(i);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() {
    stopping_ = true;
    for (std::size_t i = 0; i < threads_; ++i) resume(i);
    running() = nullptr;
#if defined(MAHAL_SIMT_ASAN)
    __asan_unpoison_memory_region(stacks_, mapped_bytes_);
#endif
    munmap(stacks_, mapped_bytes_);
  }

  static Machine*& running() {
    static thread_local constinit Machine* machine = nullptr;
    return machine;
  }

  unsigned char* shared() { return shared_.get(); }

  void run_block() {
    // All bits set is a NaN, and as an index far outside: what is read before it is written shows.
    std::memset(shared_.get(), 0xFF, shared_bytes_);
    ready_.clear();
    waiting_ = finished_ = 0;
    for (std::size_t i = 0; i < threads_; ++i) make_ready(i);
    order_ = draw_order();
    while (!ready_.empty()) {
      const std::size_t at =
          order_ == Order::last_first ? ready_.size() - 1 : rng_() % ready_.size();
      const std::size_t i = ready_[at];
      ready_[at] = ready_.back();
      ready_.pop_back();
      resume(i);
      switch (fibres_[i].state) {
        case State::finished:
          ++finished_;
          break;
        case State::at_block_barrier:
          if (++waiting_ == threads_) release_block();
          break;
        case State::at_warp_collective:
          release_warp(i);
          break;
        case State::ready:
          break;
      }
    }
    if (finished_ != threads_) die_of_divergence();
  }

  // The functions below run on a fibre.
  void wait_for_block(const std::source_location& where) {
    Fibre& self = fibres_[current_];
    self.state = State::at_block_barrier;
    self.where = where;
    leave(self);
  }

  void wait_for_warp(unsigned lanes, int source_lane, const std::source_location& where) {
    Fibre& self = fibres_[current_];
    self.where = where;
    if ((lanes >> lane() & 1u) == 0)
      die("a thread calls a warp collective whose mask omits it", self);
    self.state = State::at_warp_collective;
    self.lanes = lanes;
    self.source_lane = source_lane;
    leave(self);
  }

  template <class T>
  T exchange(unsigned lanes, T value, int source_lane, const std::source_location& where) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    Fibre& self = fibres_[current_];
    std::memcpy(self.value.data(), &value, sizeof(T));
    wait_for_warp(lanes, source_lane, where);
    std::memcpy(&value, self.received.data(), sizeof(T));
    return value;
  }

  int lane() const { return static_cast<int>(current_ % warp_size); }

 private:
  // Random order lets any two threads race; newest first lets one warp run far ahead of the others.
  enum class Order : std::uint8_t { random, last_first };
  Order draw_order() { return rng_() % 4 == 0 ? Order::last_first : Order::random; }

  void map_stacks() {
#if defined(MAHAL_SIMT_ASAN)
    constexpr std::size_t fallback_kib = 256;
#else
    constexpr std::size_t fallback_kib = 64;
#endif
    const std::size_t kib = environment_number("MAHAL_SIMT_STACK_KIB", fallback_kib);
    if (kib < 8 || kib > 64 * 1024) {
      throw DeviceError("emulator: MAHAL_SIMT_STACK_KIB: must be 8 to 65536, got " +
                        std::to_string(kib));
    }
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    stack_bytes_ = (kib * 1024 + page - 1) / page * page;
    mapped_bytes_ = threads_ * (stack_bytes_ + page);
    void* mapped = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    stacks_ = static_cast<char*>(mapped);
    for (std::size_t i = 0; i < threads_; ++i) {
      char* guard = stacks_ + i * (stack_bytes_ + page);
      if (mprotect(guard, page, PROT_NONE) != 0) {
        munmap(stacks_, mapped_bytes_);
        throw std::bad_alloc();
      }
      fibres_[i].stack = guard + page;
    }
  }

  void prepare(std::size_t i) {
    Fibre& fibre = fibres_[i];
    const auto t = static_cast<unsigned>(i);
    fibre.index = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
    // What switch_stack pops: six registers, then its return address, then that of entry(), which
    // never returns.
    void (*start)() = &Machine::entry;
    auto* top = reinterpret_cast<void**>(fibre.stack + stack_bytes_);
    top[-1] = nullptr;
    std::memcpy(&top[-2], &start, sizeof start);
    std::memset(&top[-8], 0, 6 * sizeof(void*));
    fibre.stack_pointer = &top[-8];
  }

  static void entry() {
    Machine& machine = *running();
    const std::size_t me = machine.current_;
    machine.arrived(nullptr);
    while (!machine.stopping_) machine.run_thread(me);
    Fibre& self = machine.fibres_[me];
#if defined(MAHAL_SIMT_ASAN)
    __sanitizer_start_switch_fiber(nullptr, machine.home_bottom_, machine.home_bytes_);
#endif
    switch_stack(&self.stack_pointer, machine.home_);
    std::abort();
  }

  // No exception may leave a fibre: there is no frame above it to catch one.
  void run_thread(std::size_t me) {
    try {
      body_(data_);
    } catch (...) {
      die("an exception left the kernel", fibres_[me]);
    }
    fibres_[me].state = State::finished;
    leave(fibres_[me]);
  }

  void resume(std::size_t i) {
    current_ = i;
    threadIdx = fibres_[i].index;
#if defined(MAHAL_SIMT_ASAN)
    __sanitizer_start_switch_fiber(&home_fake_stack_, fibres_[i].stack, stack_bytes_);
#endif
    switch_stack(&home_, fibres_[i].stack_pointer);
#if defined(MAHAL_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(home_fake_stack_, nullptr, nullptr);
#endif
  }

  void leave(Fibre& self) {
#if defined(MAHAL_SIMT_ASAN)
    __sanitizer_start_switch_fiber(&self.fake_stack, home_bottom_, home_bytes_);
#endif
    switch_stack(&self.stack_pointer, home_);
    arrived(self.fake_stack);
  }

  void arrived([[maybe_unused]] void* fake_stack) {
#if defined(MAHAL_SIMT_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack, &home_bottom_, &home_bytes_);
#endif
  }

  void make_ready(std::size_t i) {
    fibres_[i].state = State::ready;
    ready_.push_back(i);
  }

  static bool same_place(const std::source_location& a, const std::source_location& b) {
    return a.line() == b.line() && a.column() == b.column() &&
           std::strcmp(a.file_name(), b.file_name()) == 0;
  }

  void release_block() {
    for (std::size_t i = 1; i < threads_; ++i) {
      if (!same_place(fibres_[i].where, fibres_[0].where)) die_of_divergence();
    }
    waiting_ = 0;
    for (std::size_t i = 0; i < threads_; ++i) make_ready(i);
    order_ = draw_order();
  }

  // Releases the collective thread i waits at once every lane of its mask has arrived there.
  void release_warp(std::size_t i) {
    const std::size_t first = i / warp_size * warp_size;
    const Fibre& self = fibres_[i];
    for (int l = 0; l < warp_size; ++l) {
      if ((self.lanes >> l & 1u) == 0) continue;
      // A mask may name lanes that a last, partial warp does not have, as on the device.
      if (first + l >= threads_) continue;
      const Fibre& other = fibres_[first + l];
      if (other.state == State::finished)
        die("a lane in the mask of a warp collective has exited", self);
      if (other.state != State::at_warp_collective) return;
      // It may still be on its way through a collective of fewer lanes. If not, nothing is ready in
      // the end, and run_block reports who stands where.
      if (other.lanes != self.lanes || !same_place(other.where, self.where)) return;
    }
    for (int l = 0; l < warp_size; ++l) {
      if ((self.lanes >> l & 1u) == 0 || first + l >= threads_) continue;
      Fibre& lane = fibres_[first + l];
      if (lane.source_lane < 0) continue;
      const std::size_t source = first + static_cast<std::size_t>(lane.source_lane);
      if ((self.lanes >> lane.source_lane & 1u) == 0 || source >= threads_) {
        die("a shuffle reads a lane that takes no part in it", lane);
      }
      lane.received = fibres_[source].value;
    }
    const unsigned lanes = self.lanes;
    for (int l = 0; l < warp_size; ++l) {
      if ((lanes >> l & 1u) != 0 && first + l < threads_) make_ready(first + l);
    }
  }

  static const char* base_name(const char* path) {
    const char* slash = std::strrchr(path, '/');
    return slash == nullptr ? path : slash + 1;
  }

  [[noreturn]] void die(const char* what, const Fibre& fibre) const {
    std::fprintf(stderr, "simt: %s: block (%u,%u,%u), thread (%u,%u,%u), %s:%u\n", what, blockIdx.x,
                 blockIdx.y, blockIdx.z, fibre.index.x, fibre.index.y, fibre.index.z,
                 base_name(fibre.where.file_name()), static_cast<unsigned>(fibre.where.line()));
    std::abort();
  }

  // Names every place where threads of the block stand.
  [[noreturn]] void die_of_divergence() const {
    std::fprintf(stderr, "simt: divergent barrier: block (%u,%u,%u):", blockIdx.x, blockIdx.y,
                 blockIdx.z);
    std::vector<const Fibre*> places;
    std::size_t finished = 0, running = 0;
    for (const Fibre& fibre : fibres_) {
      if (fibre.state == State::finished) ++finished;
      if (fibre.state == State::ready) ++running;
      if (fibre.state == State::finished || fibre.state == State::ready) continue;
      bool known = false;
      for (const Fibre* place : places) {
        known = known || (place->state == fibre.state && same_place(place->where, fibre.where));
      }
      if (!known) places.push_back(&fibre);
    }
    for (const Fibre* place : places) {
      std::size_t count = 0;
      for (const Fibre& fibre : fibres_) {
        count += fibre.state == place->state && same_place(place->where, fibre.where);
      }
      std::fprintf(stderr, " %zu at the %s of %s:%u;", count,
                   place->state == State::at_block_barrier ? "block barrier" : "warp collective",
                   base_name(place->where.file_name()), static_cast<unsigned>(place->where.line()));
    }
    std::fprintf(stderr, " %zu running; %zu exited\n", running, finished);
    std::abort();
  }

  std::size_t threads_;
  std::size_t shared_bytes_;
  void (*body_)(const void*);
  const void* data_;
  std::vector<Fibre> fibres_;
  std::vector<std::size_t> ready_;
  std::mt19937 rng_;
  Order order_ = Order::random;
  std::size_t current_ = 0;
  std::size_t waiting_ = 0;
  std::size_t finished_ = 0;
  bool stopping_ = false;
  static constexpr std::align_val_t shared_alignment{128};
  struct SharedDelete {
    void operator()(unsigned char* p) const { ::operator delete(p, shared_alignment); }
  };
  std::unique_ptr<unsigned char, SharedDelete> shared_;
  char* stacks_ = nullptr;
  std::size_t stack_bytes_ = 0;
  std::size_t mapped_bytes_ = 0;
  void* home_ = nullptr;
#if defined(MAHAL_SIMT_ASAN)
  void* home_fake_stack_ = nullptr;
  const void* home_bottom_ = nullptr;
  std::size_t home_bytes_ = 0;
#endif
};

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(Machine::running()->shared());
}

// Runs the grid on the calling thread, blocks in a shuffled order. The stream is ignored: the
// launch has finished when it returns.
template <class P>
void launch(const char* op, void (*kernel)(P), dim3 grid, dim3 block, std::size_t shared_bytes,
            std::uintptr_t /*stream*/, const std::type_identity_t<P>& parameters) {
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
  if (threads == 0 || threads > max_block_threads || block.z > 64 || blocks == 0 ||
      grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535 || shared_bytes > shared_limit(op)) {
    throw DeviceError(std::string(op) + ": emulated launch failed: grid (" +
                      std::to_string(grid.x) + "," + std::to_string(grid.y) + "," +
                      std::to_string(grid.z) + "), " + std::to_string(threads) + " threads and " +
                      std::to_string(shared_bytes) +
                      " bytes of shared memory are outside the limits");
  }
  struct Call {
    void (*kernel)(P);
    const P* parameters;
  } call{kernel, &parameters};
  gridDim = grid;
  blockDim = block;
  Machine machine(
      threads, shared_bytes,
      [](const void* data) {
        const auto* c = static_cast<const Call*>(data);
        c->kernel(*c->parameters);
      },
      &call);
  // Blocks may run in any order: a stride coprime to their number visits each of them once.
  std::size_t stride = blocks / 2 + 1;
  while (std::gcd(stride, blocks) != 1) ++stride;
  for (std::size_t n = 0, i = blocks - 1; n < blocks; ++n, i = (i + stride) % blocks) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    machine.run_block();
  }
}

}  // namespace simt

inline void __syncthreads(std::source_location where = std::source_location::current()) {
  simt::Machine::running()->wait_for_block(where);
}

inline void __syncwarp(unsigned lanes = 0xFFFFFFFFu,
                       std::source_location where = std::source_location::current()) {
  simt::Machine::running()->wait_for_warp(lanes, -1, where);
}

template <class T>
T __shfl_sync(unsigned lanes, T value, int source,
              std::source_location where = std::source_location::current()) {
  return simt::Machine::running()->exchange(lanes, value, source & 31, where);
}

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int bits,
                  std::source_location where = std::source_location::current()) {
  simt::Machine* machine = simt::Machine::running();
  return machine->exchange(lanes, value, (machine->lane() ^ bits) & 31, where);
}

// A lane without a partner keeps its own value.
template <class T>
T __shfl_up_sync(unsigned lanes, T value, unsigned distance,
                 std::source_location where = std::source_location::current()) {
  simt::Machine* machine = simt::Machine::running();
  const int source = machine->lane() - static_cast<int>(distance);
  return machine->exchange(lanes, value, source < 0 ? machine->lane() : source, where);
}

template <class T>
T __shfl_down_sync(unsigned lanes, T value, unsigned distance,
                   std::source_location where = std::source_location::current()) {
  simt::Machine* machine = simt::Machine::running();
  const int source = machine->lane() + static_cast<int>(distance);
  return machine->exchange(lanes, value, source > 31 ? machine->lane() : source, where);
}

}  // namespace mahal::emulator

#elif defined(__CUDACC__)

#define MAHAL_CUDA_NAMESPACE cuda

#include <cuda_runtime.h>

#include <type_traits>

#include "core/launch_device.hpp"

// In front of a loop: unroll it whole, so that the array it indexes stays in registers.
#define MAHAL_UNROLL _Pragma("unroll")
// A function that is compiled once and called, as copies of it would cost minutes of ptxas.
#define MAHAL_DEVICE_CALL __noinline__

namespace mahal::cuda::simt {

template <class T>
__device__ inline T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char mahal_shared_bytes[];
  return reinterpret_cast<T*>(mahal_shared_bytes);
}

inline constexpr std::size_t plain_shared_bytes = 48 * 1024;

inline void check(const char* op, const char* call, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that nobody takes it for the error of a later call
  throw DeviceError(std::string(op) + ": " + call + " failed with code " +
                    std::to_string(static_cast<int>(status)) + " (" + cudaGetErrorString(status) +
                    ")");
}

inline std::size_t shared_limit(const char* op) {
  int bytes = 0;
  check(op, "cudaDeviceGetAttribute",
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, launch_device));
  return static_cast<std::size_t>(bytes);
}

// Makes launch_device the current device of the thread, and restores the one before.
class CurrentDevice {
 public:
  explicit CurrentDevice(const char* op) {
    check(op, "cudaGetDevice", cudaGetDevice(&before_));
    if (before_ == launch_device) return;
    check(op, "cudaSetDevice", cudaSetDevice(launch_device));
    changed_ = true;
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Starts the kernel on the stream (a cudaStream_t as an integer) and returns without waiting.
// Nothing here is refused while the stream is captured into a graph.
template <class P>
void launch(const char* op, void (*kernel)(P), dim3 grid, dim3 block, std::size_t shared_bytes,
            std::uintptr_t stream, const std::type_identity_t<P>& parameters) {
  const CurrentDevice device(op);
  if (shared_bytes > plain_shared_bytes) {
    // Always to the limit: threads that launch the kernel with other sizes then do not interfere.
    check(op, "cudaFuncSetAttribute",
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_limit(op))));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  check(op, "cudaLaunchKernelEx", cudaLaunchKernelEx(&config, kernel, parameters));
}

}  // namespace mahal::cuda::simt

#else
#error "compile this file with nvcc, or with the host compiler and -DMAHAL_EMULATED=1"
#endif

namespace mahal::MAHAL_CUDA_NAMESPACE::simt {

// Device code may use constants, not the host functions of std::numeric_limits.
template <class T>
inline constexpr T nan = std::numeric_limits<T>::quiet_NaN();
template <class T>
inline constexpr T epsilon = std::numeric_limits<T>::epsilon();
template <class T>
inline constexpr T largest = std::numeric_limits<T>::max();

// 1 / sqrt(x) to two units in the last place, in a fraction of the time of root and division.
template <class T>
__device__ __forceinline__ T reciprocal_root(T x) {
#if defined(MAHAL_EMULATED)
  return T(1) / std::sqrt(x);
#else
  return ::rsqrt(x);
#endif
}

// 16 bytes at a time.
template <class T>
struct alignas(16) Chunk {
  T value[16 / sizeof(T)];
};

// To a multiple of 16 bytes, past the caches: for results that no kernel reads soon.
template <class T>
__device__ __forceinline__ void store_streaming(T* at, const Chunk<T>& chunk) {
#if defined(MAHAL_EMULATED)
  *reinterpret_cast<Chunk<T>*>(at) = chunk;
#else
  __stcs(reinterpret_cast<uint4*>(at), *reinterpret_cast<const uint4*>(&chunk));
#endif
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE::simt

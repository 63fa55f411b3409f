// What this build of mahal holds, what this machine can run, and the process-wide settings.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mahal/export.hpp"
#include "mahal/isa.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// Threads of a call with Execution::threads == 0: MAHAL_THREADS, or the CPUs this process may use.
// Throws ValueError when MAHAL_THREADS is not a whole number from 1 to max_threads.
MAHAL_API int default_threads();
MAHAL_API void set_default_threads(int threads);
inline constexpr int max_threads = 1024;

MAHAL_API const char* isa_name(Isa isa);
// Whether kernels for this level were built and this machine, its system included, can run them.
MAHAL_API bool isa_supported(Isa isa);
// The best supported level, or the one that MAHAL_ISA=base|avx2|avx512 names. Throws ValueError
// when MAHAL_ISA names an unknown or an unsupported level.
MAHAL_API Isa active_isa();
// For tests: overrules MAHAL_ISA. Throws ValueError when the level is not supported.
MAHAL_API void set_isa(Isa isa);

// For tests: what Backend::automatic means for host arrays. Throws DeviceError when the emulator
// is asked for and was not built.
MAHAL_API Backend active_backend();
MAHAL_API void set_backend(Backend backend);

struct BuildInfo {
  const char* version;
  const char* compiler;
  const char* cuda_toolkit;        // empty without CUDA
  const char* cuda_architectures;  // as given to CMake, empty without CUDA
  bool cuda;
  bool emulator;
};

MAHAL_API BuildInfo build_info();

struct DeviceInfo {
  std::string name;
  int compute_major, compute_minor;
  std::uint64_t memory_bytes;
};

// CUDA devices; none without a driver, and none in a build without CUDA.
MAHAL_API int device_count();
MAHAL_API std::vector<DeviceInfo> devices();

}  // namespace mahal

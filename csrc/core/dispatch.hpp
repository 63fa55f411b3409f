// From run-time facts (dtype, instruction set, device) to template arguments and branches.
#pragma once

#include <utility>

#include "core/build_config.hpp"
#include "core/launch_device.hpp"
#include "mahal/context.hpp"
#include "mahal/error.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// function.template operator()<float or double>(), of the parts where the dtype is complex. The op
// has checked the dtype.
template <class F>
decltype(auto) dispatch_float(DType dtype, F&& function) {
  if (real_dtype(dtype) == DType::f64)
    return std::forward<F>(function).template operator()<double>();
  if (real_dtype(dtype) == DType::f32)
    return std::forward<F>(function).template operator()<float>();
  throw_type_error("", "array", "must be of floating point", dtype_name(dtype));
}

// function.template operator()<Isa>() for the active instruction set.
template <class F>
decltype(auto) dispatch_isa(F&& function) {
#if defined(__x86_64__)
  switch (active_isa()) {
    case Isa::avx512:
      return std::forward<F>(function).template operator()<Isa::avx512>();
    case Isa::avx2:
      return std::forward<F>(function).template operator()<Isa::avx2>();
    case Isa::base:
      break;
  }
#endif
  return std::forward<F>(function).template operator()<Isa::base>();
}

// Which kernels serve a call.
enum class Route : std::uint8_t { cpu, cuda, emulator };

// The route for arrays on `device`. `has_kernel` tells whether the op has a CUDA kernel. Throws
// DeviceError when there is no way; guard the branches with `if constexpr (built_with_cuda)` and
// `if constexpr (built_with_emulator)`, as the kernels exist in such builds only. Kernels that this
// thread launches afterwards go to `device`.
inline Route select_route(const char* op, const Execution& execution, Device device,
                          bool has_kernel) {
  const Backend backend =
      execution.backend == Backend::automatic ? active_backend() : execution.backend;
  if (device.kind == DeviceKind::cpu && backend == Backend::automatic) return Route::cpu;
  if (!has_kernel) {
    throw_device_error(op, "device", "the op has no CUDA kernel, pass host arrays", "");
  }
  if (device.kind == DeviceKind::cuda) {
    if (backend == Backend::emulator) {
      throw_device_error(op, "backend", "the emulator takes host arrays", "CUDA arrays");
    }
    if (!built_with_cuda) {
      throw_device_error(op, "device", "this build of mahal has no CUDA kernels", "CUDA arrays");
    }
    launch_device = device.index;
    return Route::cuda;
  }
  if (!built_with_emulator) {
    throw_device_error(op, "backend", "the emulator needs a build with MAHAL_EMULATOR=ON", "");
  }
  return Route::emulator;
}

// Whether X_workspace should answer for the CUDA kernels: Execution::backend is not known to it.
inline bool uses_kernels(Device device) {
  return device.kind == DeviceKind::cuda || active_backend() == Backend::emulator;
}

}  // namespace mahal

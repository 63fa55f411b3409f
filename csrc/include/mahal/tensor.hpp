// Views of arrays that somebody else owns: what every op of mahal takes and fills.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mahal {

// Integers and booleans serve as masks, counts and states; the arithmetic is in floating point.
enum class DType : std::uint8_t { boolean, u8, i16, u16, i32, i64, f32, f64, c64, c128 };

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;

  friend constexpr bool operator==(Device a, Device b) {
    return a.kind == b.kind && a.index == b.index;
  }
};

inline constexpr int max_rank = 8;

// Strides are in elements and may be zero or negative. A null pointer means that the argument was
// not given; an array without elements has a pointer that must not be read.
struct TensorView {
  void* data = nullptr;
  DType dtype{};
  Device device{};
  int rank = 0;
  bool read_only = false;
  std::int64_t shape[max_rank]{};
  std::int64_t strides[max_rank]{};
};

// Memory of the caller for the intermediate results of one call, on the device of its arrays. Ops
// ask for 64 bytes more than they use and align the start themselves.
struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

// `automatic` follows the device of the arrays; `emulator` runs the CUDA kernels on host arrays.
enum class Backend : std::uint8_t { automatic, emulator };

struct Execution {
  Backend backend = Backend::automatic;
  int threads = 0;            // 0: default_threads()
  std::uintptr_t stream = 0;  // CUDA stream to launch on
};

constexpr std::size_t item_size(DType dtype) {
  switch (dtype) {
    case DType::boolean:
    case DType::u8:
      return 1;
    case DType::i16:
    case DType::u16:
      return 2;
    case DType::i32:
    case DType::f32:
      return 4;
    case DType::i64:
    case DType::f64:
    case DType::c64:
      return 8;
    case DType::c128:
      return 16;
  }
  return 0;
}

constexpr bool is_complex(DType dtype) { return dtype == DType::c64 || dtype == DType::c128; }

// The dtype of the real and the imaginary part; a real dtype is its own.
constexpr DType real_dtype(DType dtype) {
  return dtype == DType::c64 ? DType::f32 : dtype == DType::c128 ? DType::f64 : dtype;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::boolean:
      return "bool";
    case DType::u8:
      return "uint8";
    case DType::i16:
      return "int16";
    case DType::u16:
      return "uint16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::c64:
      return "complex64";
    case DType::c128:
      return "complex128";
  }
  return "unknown";
}

inline std::int64_t element_count(const TensorView& view) {
  std::int64_t count = 1;
  for (int axis = 0; axis < view.rank; ++axis) count *= view.shape[axis];
  return count;
}

}  // namespace mahal

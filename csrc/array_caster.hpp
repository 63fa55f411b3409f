// Arrays of any library as views, without a copy and without importing that library.
//
// Three ways in, fastest first: the C exchange interface of DLPack (torch), the buffer protocol
// (numpy), and a __dlpack__ capsule (cupy and the rest). None, as argument, gives a view without
// data.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>

#include "mahal/tensor.hpp"

namespace mahal::python {

namespace py = pybind11;

// The parts of the DLPack interface that are read here, by our names. Layouts are those of
// DLPack 1.x, where a change of layout comes with another major version.
namespace dlpack {

inline constexpr std::uint32_t major_version = 1;

enum DeviceType : std::int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };
enum TypeCode : std::uint8_t {
  integer = 0,
  natural = 1,
  real = 2,
  bfloat = 4,
  complex = 5,
  boolean = 6
};

struct DeviceField {
  std::int32_t type;
  std::int32_t index;
};

struct TypeField {
  std::uint8_t code;
  std::uint8_t bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  DeviceField device;
  std::int32_t rank;
  TypeField type;
  std::int64_t* shape;
  std::int64_t* strides;  // null: C order
  std::uint64_t byte_offset;
};

struct Version {
  std::uint32_t major;
  std::uint32_t minor;
};

struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  std::uint64_t flags;
  Tensor tensor;
};

inline constexpr std::uint64_t flag_read_only = 1;
inline constexpr std::uint64_t flag_copied = 2;

struct ExchangeHeader {
  Version version;
  ExchangeHeader* older;  // the same interface for an earlier version, or null
};

struct Exchange {
  ExchangeHeader header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*borrow)(void* object, Tensor* out);  // may be null; sets a Python error and returns -1
  void* current_stream;
};

}  // namespace dlpack

// How an array came in, for tests.
enum class Path : std::uint8_t { none, exchange, buffer, capsule };

constexpr const char* path_name(Path path) {
  switch (path) {
    case Path::none:
      return "none";
    case Path::exchange:
      return "exchange";
    case Path::buffer:
      return "buffer";
    case Path::capsule:
      return "capsule";
  }
  return "unknown";
}

// A view together with what keeps its memory alive for the time of a call. Made and destroyed with
// the GIL held.
class Array {
 public:
  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { release(); }

  const TensorView& view() const { return view_; }
  operator const TensorView&() const { return view_; }
  Path path() const { return path_; }

  // Throws TypeError or ValueError, as Python errors, for what cannot be viewed.
  void load(PyObject* object) {
    release();
    if (object == Py_None) return;
    if (load_exchange(object)) {
      path_ = Path::exchange;
    } else if (load_buffer(object)) {
      path_ = Path::buffer;
    } else if (load_capsule(object)) {
      path_ = Path::capsule;
    } else {
      throw py::type_error(
          "array: must be an array that supports DLPack or the buffer protocol, got " +
          std::string(Py_TYPE(object)->tp_name));
    }
  }

 private:
  void release() {
    if (holds_buffer_) {
      PyBuffer_Release(&buffer_);
      holds_buffer_ = false;
    }
    if (managed_ != nullptr) {
      if (managed_->deleter != nullptr) managed_->deleter(managed_);
      managed_ = nullptr;
    }
    if (versioned_ != nullptr) {
      if (versioned_->deleter != nullptr) versioned_->deleter(versioned_);
      versioned_ = nullptr;
    }
    view_ = TensorView{};
    path_ = Path::none;
  }

  // The interface of a type is looked up once. The table holds a reference to each type, so that no
  // other type can take its address; types beyond its size are looked up every time.
  static const dlpack::Exchange* exchange_of(PyTypeObject* type) {
    static auto& known = *new std::unordered_map<PyTypeObject*, const dlpack::Exchange*>;
    static PyTypeObject* last_type = nullptr;
    static const dlpack::Exchange* last = nullptr;
    if (type == last_type) return last;
    constexpr std::size_t table_size = 256;
    const auto found = known.find(type);
    if (found == known.end() && known.size() >= table_size) return query_exchange(type);
    if (found == known.end()) {
      last = query_exchange(type);
      known.emplace(type, last);
      Py_INCREF(reinterpret_cast<PyObject*>(type));
    } else {
      last = found->second;
    }
    last_type = type;
    return last;
  }

  static const dlpack::Exchange* query_exchange(PyTypeObject* type) {
    auto capsule = py::reinterpret_steal<py::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
    if (!capsule) {
      PyErr_Clear();
      return nullptr;
    }
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
    auto* header = static_cast<dlpack::ExchangeHeader*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (header != nullptr && header->version.major != dlpack::major_version) {
      header = header->older;
    }
    const auto* exchange = reinterpret_cast<const dlpack::Exchange*>(header);
    return exchange != nullptr && exchange->borrow != nullptr ? exchange : nullptr;
  }

  bool load_exchange(PyObject* object) {
    const dlpack::Exchange* exchange = exchange_of(Py_TYPE(object));
    if (exchange == nullptr) return false;
    dlpack::Tensor tensor{};
    if (exchange->borrow(object, &tensor) != 0) refuse_object(object, py::error_already_set());
    set_from(tensor);
    // torch defers negation and conjugation, and what is borrowed does not tell.
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    static PyObject* const is_conj = PyUnicode_InternFromString("is_conj");
    refuse_pending(object, is_neg, "negation", "resolve_neg()");
    if (view_.dtype == DType::c64 || view_.dtype == DType::c128) {
      refuse_pending(object, is_conj, "conjugation", "resolve_conj()");
    }
    return true;
  }

  static void refuse_pending(PyObject* object, PyObject* query, const char* what,
                             const char* remedy) {
    auto answer = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(object, query));
    if (!answer) {
      PyErr_Clear();  // a library that defers nothing
    } else if (answer.is(py::handle(Py_True))) {
      throw py::value_error(std::string("array: must hold its values, got a tensor with pending ") +
                            what + ", call " + remedy);
    }
  }

  // One line, whatever the library wrote.
  [[noreturn]] static void refuse_object(PyObject* object, const py::error_already_set& error) {
    std::string reason = py::str(error.value());
    reason.resize(std::min(reason.find('\n'), reason.size()));
    throw py::value_error("array: must have memory that can be viewed, got " +
                          std::string(Py_TYPE(object)->tp_name) + " (" + reason + ")");
  }

  bool load_buffer(PyObject* object) {
    if (!PyObject_CheckBuffer(object)) return false;
    if (PyObject_GetBuffer(object, &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
      const py::error_already_set error;
      // numpy has dtypes without a buffer format.
      if (PyObject_HasAttrString(object, "dtype")) refuse_dtype(dtype_text(object, ""));
      refuse_object(object, error);
    }
    holds_buffer_ = true;
    set_rank(buffer_.ndim);
    view_.dtype = dtype_of_format(object);
    view_.read_only = buffer_.readonly != 0;
    for (int axis = 0; axis < buffer_.ndim; ++axis) {
      view_.shape[axis] = buffer_.shape[axis];
      const Py_ssize_t stride = buffer_.strides[axis];
      if (stride % buffer_.itemsize == 0) {
        view_.strides[axis] = stride / buffer_.itemsize;
      } else if (buffer_.shape[axis] > 1) {
        throw py::value_error("array: strides must be multiples of the item size (" +
                              std::to_string(buffer_.itemsize) + " bytes), got " +
                              std::to_string(stride) + " bytes");
      }
    }
    set_data(buffer_.buf);
    return true;
  }

  bool load_capsule(PyObject* object) {
    if (!PyObject_HasAttrString(object, "__dlpack__") ||
        !PyObject_HasAttrString(object, "__dlpack_device__")) {
      return false;
    }
    const py::handle array(object);
    py::dict arguments;
    const py::tuple device = array.attr("__dlpack_device__")();
    const int type = py::int_(py::object(device[0]));
    // -1: no hidden wait, since the kernels go to the stream that the caller names.
    if (type == dlpack::cuda || type == dlpack::cuda_managed) arguments["stream"] = -1;
    const py::object method = array.attr("__dlpack__");
    try {
      try {
        take(method(**arguments, py::arg("max_version") = py::make_tuple(1, 0)));
      } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
        take(method(**arguments));  // a library older than DLPack 1.0
      }
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_BufferError)) throw;
      refuse_object(object, error);
    }
    return true;
  }

  void take(const py::object& capsule) {
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
      auto* taken = static_cast<dlpack::ManagedVersioned*>(
          PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      if (taken->version.major != dlpack::major_version) {
        throw py::type_error("array: must come with DLPack version 1, got version " +
                             std::to_string(taken->version.major));
      }
      if (PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned") != 0) {
        throw py::error_already_set();
      }
      versioned_ = taken;
      set_from(taken->tensor);
      // What is written to a copy never reaches the array of the caller.
      view_.read_only = (taken->flags & (dlpack::flag_read_only | dlpack::flag_copied)) != 0;
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
      auto* taken = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
      if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
      managed_ = taken;
      set_from(taken->tensor);
    } else {
      throw py::type_error("array: __dlpack__ must return an unused DLPack capsule, got " +
                           std::string(Py_TYPE(capsule.ptr())->tp_name));
    }
  }

  void set_from(const dlpack::Tensor& tensor) {
    set_rank(tensor.rank);
    view_.dtype = dtype_of_code(tensor.type);
    switch (tensor.device.type) {
      case dlpack::cpu:
      case dlpack::cuda_host:
        break;
      case dlpack::cuda:
      case dlpack::cuda_managed:
        view_.device = {DeviceKind::cuda, tensor.device.index};
        break;
      default:
        throw py::value_error(
            "array: must be on the host or on a CUDA device, got DLPack device type " +
            std::to_string(tensor.device.type));
    }
    std::int64_t step = 1;
    for (int axis = tensor.rank - 1; axis >= 0; --axis) {
      view_.shape[axis] = tensor.shape[axis];
      view_.strides[axis] = tensor.strides != nullptr ? tensor.strides[axis] : step;
      step *= tensor.shape[axis];
    }
    set_data(tensor.data == nullptr ? nullptr
                                    : static_cast<char*>(tensor.data) + tensor.byte_offset);
  }

  void set_rank(int rank) {
    if (rank > max_rank) {
      throw py::value_error("array: must have at most " + std::to_string(max_rank) + " axes, got " +
                            std::to_string(rank));
    }
    view_.rank = rank;
  }

  void set_data(void* data) {
    alignas(16) static char nothing[16];
    const bool empty = element_count(view_) == 0;
    view_.data = empty ? nothing : data;
    const std::size_t item = item_size(view_.dtype);
    // CUDA kernels read a complex number at once.
    const std::size_t alignment = item > 8 && view_.device.kind == DeviceKind::cpu ? 8 : item;
    if (!empty && reinterpret_cast<std::uintptr_t>(data) % alignment != 0) {
      throw py::value_error(std::string("array: memory of ") + dtype_name(view_.dtype) +
                            " must be aligned to " + std::to_string(alignment) +
                            " bytes, got an address that is not");
    }
  }

  [[noreturn]] static void refuse_dtype(const std::string& name) {
    throw py::type_error(
        "array: dtype must be bool, uint8, int16, uint16, int32, int64, float32, float64, "
        "complex64 "
        "or complex128 in the byte order of the machine, got " +
        name);
  }

  static DType dtype_of_code(dlpack::TypeField type) {
    const auto is = [&](dlpack::TypeCode code, int bits) {
      return type.code == code && type.bits == bits && type.lanes == 1;
    };
    if (is(dlpack::real, 32)) return DType::f32;
    if (is(dlpack::real, 64)) return DType::f64;
    if (is(dlpack::boolean, 8)) return DType::boolean;
    if (is(dlpack::natural, 8)) return DType::u8;
    if (is(dlpack::natural, 16)) return DType::u16;
    if (is(dlpack::integer, 16)) return DType::i16;
    if (is(dlpack::integer, 32)) return DType::i32;
    if (is(dlpack::integer, 64)) return DType::i64;
    if (is(dlpack::complex, 64)) return DType::c64;
    if (is(dlpack::complex, 128)) return DType::c128;
    const char* family = type.code == dlpack::integer   ? "int"
                         : type.code == dlpack::natural ? "uint"
                         : type.code == dlpack::real    ? "float"
                         : type.code == dlpack::bfloat  ? "bfloat"
                         : type.code == dlpack::complex ? "complex"
                         : type.code == dlpack::boolean ? "bool"
                                                        : "DLPack type ";
    std::string name = family;
    if (*family == 'D') name += std::to_string(type.code) + " of bits ";
    name += std::to_string(type.bits);
    if (type.lanes != 1) name += " x " + std::to_string(type.lanes);
    refuse_dtype(name);
  }

  static std::string dtype_text(PyObject* object, const std::string& otherwise) {
    if (!PyObject_HasAttrString(object, "dtype")) return otherwise;
    return py::str(py::handle(object).attr("dtype"));
  }

  DType dtype_of_format(PyObject* object) const {
    if (buffer_.format == nullptr) return DType::u8;  // as the buffer protocol has it
    const char* code = buffer_.format;
    bool native = true;
    if (*code != '\0' && std::strchr("@=<>!", *code) != nullptr) {
      constexpr bool big_endian = PY_BIG_ENDIAN;
      native = big_endian ? *code != '<' : *code != '>' && *code != '!';
      ++code;
    }
    const auto is = [&](const char* codes, Py_ssize_t bytes) {
      return native && code[0] != '\0' && code[1] == '\0' &&
             std::strchr(codes, code[0]) != nullptr && buffer_.itemsize == bytes;
    };
    if (is("f", 4)) return DType::f32;
    if (is("d", 8)) return DType::f64;
    if (is("?", 1)) return DType::boolean;
    if (is("B", 1)) return DType::u8;
    if (is("h", 2)) return DType::i16;
    if (is("H", 2)) return DType::u16;
    if (is("il", 4)) return DType::i32;
    if (is("lq", 8)) return DType::i64;
    if (native && std::strcmp(code, "Zf") == 0) return DType::c64;
    if (native && std::strcmp(code, "Zd") == 0) return DType::c128;
    refuse_dtype(dtype_text(object, std::string("buffer format '") + buffer_.format + "'"));
  }

  TensorView view_;
  Path path_ = Path::none;
  Py_buffer buffer_{};
  bool holds_buffer_ = false;
  dlpack::Managed* managed_ = nullptr;
  dlpack::ManagedVersioned* versioned_ = nullptr;
};

}  // namespace mahal::python

namespace pybind11::detail {

template <>
struct type_caster<mahal::python::Array> {
  static constexpr auto name = const_name("object");
  template <class>
  using cast_op_type = mahal::python::Array&;

  operator mahal::python::Array&() { return value_; }

  bool load(handle source, bool) {
    value_.load(source.ptr());
    return true;
  }

 private:
  mahal::python::Array value_;
};

}  // namespace pybind11::detail

// Checks that ops share, so that the same mistake gets the same words everywhere. Every function
// takes the name of the op and of the argument, and throws ValueError or TypeError.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "mahal/error.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

inline bool is_given(const TensorView& view) { return view.data != nullptr; }

inline std::string shape_text(const TensorView& view) {
  std::string text = "(";
  for (int axis = 0; axis < view.rank; ++axis) {
    if (axis > 0) text += ", ";
    text += std::to_string(view.shape[axis]);
  }
  return text + (view.rank == 1 ? ",)" : ")");
}

inline std::string device_text(Device device) {
  return device.kind == DeviceKind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
}

inline void check_given(const char* op, const char* argument, const TensorView& view) {
  if (!is_given(view)) throw_type_error(op, argument, "must be an array", "None");
}

inline void check_rank(const char* op, const char* argument, const TensorView& view,
                       std::initializer_list<int> allowed) {
  std::string ranks;
  for (int rank : allowed) {
    if (view.rank == rank) return;
    ranks += (ranks.empty() ? "" : " or ") + std::to_string(rank);
  }
  throw_value_error(op, argument, "must have " + ranks + " axes", "shape " + shape_text(view));
}

inline void check_dtype(const char* op, const char* argument, const TensorView& view,
                        std::initializer_list<DType> allowed) {
  std::string names;
  for (DType dtype : allowed) {
    if (view.dtype == dtype) return;
    names += (names.empty() ? "" : " or ") + std::string(dtype_name(dtype));
  }
  throw_type_error(op, argument, "must have dtype " + names, dtype_name(view.dtype));
}

inline void check_same_dtype(const char* op, const char* argument, const TensorView& view,
                             const char* other_argument, const TensorView& other) {
  if (view.dtype == other.dtype) return;
  throw_type_error(op, argument,
                   std::string("must have the dtype of ") + other_argument + " (" +
                       dtype_name(other.dtype) + ")",
                   dtype_name(view.dtype));
}

inline void check_same_device(const char* op, const char* argument, const TensorView& view,
                              const char* other_argument, const TensorView& other) {
  if (view.device == other.device) return;
  throw_value_error(op, argument,
                    std::string("must be on the device of ") + other_argument + " (" +
                        device_text(other.device) + ")",
                    device_text(view.device));
}

inline void check_shape(const char* op, const char* argument, const TensorView& view,
                        std::initializer_list<std::int64_t> shape) {
  TensorView wanted;
  bool same = view.rank == static_cast<int>(shape.size());
  for (std::int64_t extent : shape) {
    same = same && view.shape[wanted.rank] == extent;
    wanted.shape[wanted.rank++] = extent;
  }
  if (same) return;
  throw_value_error(op, argument, "must have shape " + shape_text(wanted), shape_text(view));
}

inline void check_not_empty(const char* op, const char* argument, const TensorView& view) {
  if (element_count(view) > 0) return;
  throw_value_error(op, argument, "must not be empty", "shape " + shape_text(view));
}

inline bool is_contiguous(const TensorView& view) {
  std::int64_t step = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    if (view.shape[axis] > 1 && view.strides[axis] != step) return false;
    step *= view.shape[axis];
  }
  return true;
}

// Outputs are made by the caller's library for this one call: C order, writable.
inline void check_output(const char* op, const char* argument, const TensorView& view, DType dtype,
                         std::initializer_list<std::int64_t> shape) {
  check_given(op, argument, view);
  check_dtype(op, argument, view, {dtype});
  check_shape(op, argument, view, shape);
  if (view.read_only) throw_value_error(op, argument, "must be writable", "a read-only array");
  if (element_count(view) > 0 && !is_contiguous(view)) {
    throw_value_error(op, argument, "must be contiguous in C order", "other strides");
  }
}

inline void check_workspace(const char* op, const Workspace& workspace, std::size_t bytes) {
  if (workspace.bytes >= bytes && (workspace.data != nullptr || bytes == 0)) return;
  throw_value_error(op, "workspace", "must have at least " + std::to_string(bytes) + " bytes",
                    std::to_string(workspace.data == nullptr ? 0 : workspace.bytes));
}

// Real or complex numbers.
inline void check_field(const char* op, const char* argument, const TensorView& view) {
  check_given(op, argument, view);
  check_dtype(op, argument, view, {DType::f32, DType::f64, DType::c64, DType::c128});
}

}  // namespace mahal

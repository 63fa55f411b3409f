// Real and complex arrays side by side.
#pragma once

#include "core/checks.hpp"
#include "core/dispatch.hpp"

namespace mahal {

constexpr bool is_complex(DType dtype) { return dtype == DType::c64 || dtype == DType::c128; }

// The dtype of the parts of a number.
constexpr DType real_dtype(DType dtype) {
  return dtype == DType::c64 ? DType::f32 : dtype == DType::c128 ? DType::f64 : dtype;
}

inline void check_field(const char* op, const char* argument, const TensorView& view) {
  check_given(op, argument, view);
  check_dtype(op, argument, view, {DType::f32, DType::f64, DType::c64, DType::c128});
}

}  // namespace mahal

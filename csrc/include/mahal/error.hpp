// The kinds of errors that mahal throws, and the one form of their messages:
//   op: argument: rule, got what came
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

#include "mahal/export.hpp"

namespace mahal {

// A shape or a value that breaks a rule.
struct MAHAL_API ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A dtype that the op does not take.
struct MAHAL_API TypeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// A device that is missing, or a CUDA call that failed.
struct MAHAL_API DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string error_message(std::string_view op, std::string_view argument,
                                 std::string_view rule, std::string_view came) {
  std::string text;
  text.reserve(op.size() + argument.size() + rule.size() + came.size() + 12);
  if (!op.empty()) text.append(op).append(": ");
  text.append(argument).append(": ").append(rule);
  if (!came.empty()) text.append(", got ").append(came);
  return text;
}

[[noreturn]] inline void throw_value_error(std::string_view op, std::string_view argument,
                                           std::string_view rule, std::string_view came) {
  throw ValueError(error_message(op, argument, rule, came));
}

[[noreturn]] inline void throw_type_error(std::string_view op, std::string_view argument,
                                          std::string_view rule, std::string_view came) {
  throw TypeError(error_message(op, argument, rule, came));
}

[[noreturn]] inline void throw_device_error(std::string_view op, std::string_view argument,
                                            std::string_view rule, std::string_view came) {
  throw DeviceError(error_message(op, argument, rule, came));
}

}  // namespace mahal

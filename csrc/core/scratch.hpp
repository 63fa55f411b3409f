// Cuts one workspace into 64-byte aligned pieces. The same plan run without memory measures it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "mahal/tensor.hpp"

namespace mahal {

class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(const Workspace& workspace) {
    const auto address = reinterpret_cast<std::uintptr_t>(workspace.data);
    base_ = reinterpret_cast<char*>((address + 63) / 64 * 64);
  }

  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    peak_ = std::max(peak_, used_);
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }

  // What was taken after the mark may be overwritten by what is taken after the rewind.
  std::size_t mark() const { return used_; }
  void rewind(std::size_t mark) { used_ = mark; }

  // What to ask the caller for: room to align the start is part of it.
  std::size_t bytes() const { return peak_ + 64; }

 private:
  char* base_ = nullptr;
  std::size_t used_ = 0;
  std::size_t peak_ = 0;
};

}  // namespace mahal

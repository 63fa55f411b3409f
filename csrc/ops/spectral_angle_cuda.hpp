// Entry of the spectral angle kernels in csrc/ops/spectral_angle.cu. The op has checked every
// argument; nothing here allocates or waits.
#pragma once

#include <cstdint>

#include "core/device_background.hpp"

namespace mahal {

// NaN where a pixel or a target is zero or not finite.
template <class T>
struct AngleLaunch {
  DevicePixels<T> pixels;
  const double* targets;  // count rows of padded_rows elements, brought to unit length by the call
  int count;
  T* angle;       // pixels x count
  double* tiles;  // room: whiten_room(pixels, bands) elements
};
template <class T>
struct UnitLaunch {
  DevicePixels<T> targets;
  double* rows;
};

namespace cuda {
void unit_targets(const UnitLaunch<float>& arguments, std::uintptr_t stream);
void unit_targets(const UnitLaunch<double>& arguments, std::uintptr_t stream);
void spectral_angle(const AngleLaunch<float>& arguments, std::uintptr_t stream);
void spectral_angle(const AngleLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void unit_targets(const UnitLaunch<float>& arguments, std::uintptr_t stream);
void unit_targets(const UnitLaunch<double>& arguments, std::uintptr_t stream);
void spectral_angle(const AngleLaunch<float>& arguments, std::uintptr_t stream);
void spectral_angle(const AngleLaunch<double>& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

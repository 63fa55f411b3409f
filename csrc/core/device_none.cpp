// Stands for device.cu in a build without CUDA.
#include <vector>

#include "mahal/context.hpp"

namespace mahal {

int device_count() { return 0; }

std::vector<DeviceInfo> devices() { return {}; }

}  // namespace mahal

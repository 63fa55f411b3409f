// Which CUDA devices there are. Without a driver the answer is none, which is not an error.
#include <cuda_runtime.h>

#include <vector>

#include "mahal/context.hpp"

namespace mahal {

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // so that no later launch check reports it
    return 0;
  }
  return count;
}

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> found;
  for (int index = 0; index < device_count(); ++index) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) {
      cudaGetLastError();
      continue;
    }
    found.push_back({properties.name, properties.major, properties.minor,
                     static_cast<std::uint64_t>(properties.totalGlobalMem)});
  }
  return found;
}

}  // namespace mahal

// Where the windows of a pixel lie along one axis. Kernel side: plain data only.
#pragma once

#include <cstdint>

namespace mahal {

// Positions are virtual: with mirrored borders they run outside the image, and `index[position]`
// (defined there too) tells the sample to read.
struct WindowAxis {
  const std::int32_t* outer_start;  // per pixel
  const std::int32_t* inner_start;  // per pixel; unused without an inner window
  const std::int32_t* index;        // virtual position -> sample
};

}  // namespace mahal

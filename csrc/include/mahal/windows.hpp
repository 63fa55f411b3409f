// The vocabulary of sliding windows that the local ops share.
#pragma once

#include <cstdint>

namespace mahal {

// What happens where a window would reach over the edge of the image.
//   shift: the window slides inside the image, so that every pixel has the same number of samples
//          (the rule of Spectral Python, for the outer and the inner window separately);
//   reflect: the image is mirrored about its edge pixels;
//   valid: pixels whose window is not centred on them get NaN.
enum class Border : std::uint8_t { shift, reflect, valid };

// A square outer window, less a square inner one (0: none). Sides are odd.
struct Window {
  int outer = 0;
  int inner = 0;
};

}  // namespace mahal

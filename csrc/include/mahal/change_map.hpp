// Change maps: how far the window covariances of two images are apart, pixel by pixel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/covariance_distance.hpp"
#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// What happens where a window would reach over the edge of the image: it is cut there and has
// fewer samples (clip), it slides inside the image (shift), the image is mirrored about its edge
// pixels (reflect), or the pixel gets NaN (valid).
enum class MapBorder : std::uint8_t { clip, shift, reflect, valid };

struct ChangeMapParams {
  Metric metric = Metric::frobenius;
  int window = 0;  // side, odd
  MapBorder border = MapBorder::clip;
  bool squared = true;           // of the metrics that are distances
  bool center = true;            // subtract the mean of the window
  int ddof = 1;                  // divisor: samples - ddof
  bool channel_divisor = false;  // divisor: channels - 1, as in published code
};

MAHAL_API std::size_t change_map_workspace(const ChangeMapParams& params, const TensorView& first,
                                           const TensorView& second, int threads);
// first, second: (rows, cols, channels) of one shape and dtype (float32, float64, complex64,
// complex128); mask: boolean (rows, cols), false leaves a pixel out of both. score: (rows, cols)
// real; status: uint8 (rows, cols): 0, or 1 where a window has no more samples than ddof, 2 where a
// covariance is not positive definite (frobenius asks for none), 3 where a window holds a value
// that is not finite or the score overflows, 4 where Border::valid gives none; such scores are NaN.
// No covariance is written. Every window is summed on its own, in float64.
MAHAL_API void change_map(const ChangeMapParams& params, const TensorView& first,
                          const TensorView& second, const TensorView& mask, const TensorView& score,
                          const TensorView& status, const Workspace& workspace,
                          const Execution& execution);

}  // namespace mahal

// Angles between spectra.
#pragma once

#include <cstddef>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

MAHAL_API std::size_t spectral_angle_workspace(const TensorView& image, const TensorView& target,
                                               int threads);
// The angle in radians between every pixel and every target. image: (n, bands) or
// (rows, cols, bands), float32 or float64; target: (targets, bands), dtype of the image or float64;
// angle: the shape of the pixels and one last axis of targets, dtype of the image. NaN where a
// pixel is zero or not finite. Throws ValueError for such a target; on a device it has NaN.
MAHAL_API void spectral_angle(const TensorView& image, const TensorView& target,
                              const TensorView& angle, const Workspace& workspace,
                              const Execution& execution);

}  // namespace mahal

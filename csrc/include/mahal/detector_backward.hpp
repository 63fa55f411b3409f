// Gradients of scores against one background: Mahalanobis distance, RX, ACE, matched filter, CEM.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mahal/export.hpp"
#include "mahal/tensor.hpp"

namespace mahal {

// With y = L^-1 (x - m), w = L^-1 (t - m) and S = L L^H:
//   distance           |y|^2, without targets
//   ace                |<w, y>|^2 / (|w|^2 |y|^2)
//   signed_ace         <w, y> / (|w| |y|), real only
//   filter             <w, y> / |w|^2, the magnitude where complex
//   normalized_filter  <w, y> / |w|, the magnitude where complex
enum class DetectorScore : std::uint8_t { distance, ace, signed_ace, filter, normalized_filter };

struct DetectorBackwardParams {
  const char* caller = "detector_backward";  // in messages
  DetectorScore score = DetectorScore::distance;
  bool center = true;  // false: m = 0, S with divisor N
  // False: m is `mean` and S is `covariance`, both given, and all pixels are used. True: m is the
  // mean of the usable pixels of `background` or of the image, and so is S where `covariance` is
  // not given.
  bool estimate = false;
};

struct DetectorBackwardInputs {
  TensorView grad;        // the shape of the scores, real dtype of the image, any strides
  TensorView image;       // (n, bands) or (rows, cols, bands), without `estimate` also (bands,)
  TensorView target;      // (targets, bands), dtype of the image or in double precision
  TensorView mean;        // (bands,)
  TensorView background;  // as the image
  TensorView covariance;  // (bands, bands)
  TensorView mask;        // with `estimate`: pixels of the image that are used
};

// Contiguous arrays; those left out are not computed. Gradients of target, mean and covariance
// are in double precision.
struct DetectorBackwardOutputs {
  TensorView image, target, mean, background, covariance;
};

MAHAL_API std::size_t detector_backward_workspace(const DetectorBackwardParams& params,
                                                  const DetectorBackwardInputs& in, int threads);
// For complex numbers a gradient is that of the real part plus i times that of the imaginary part;
// that of the covariance is symmetric or Hermitian. A pixel on the mean, where a cosine has none,
// gets the gradient zero, and so does one that is not used. Throws ValueError when S is not
// positive definite.
MAHAL_API void detector_backward(const DetectorBackwardParams& params,
                                 const DetectorBackwardInputs& in,
                                 const DetectorBackwardOutputs& out, const Workspace& workspace,
                                 const Execution& execution);

}  // namespace mahal

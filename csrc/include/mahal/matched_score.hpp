// What detectors of known targets make of a pixel.
#pragma once

#include <cstdint>

namespace mahal {

// With y = L^-1 (x - m), w = L^-1 (t - m) and the covariance S = L L^T of the background:
//   ace                <w, y>^2 / (|w|^2 |y|^2)
//   signed_ace         <w, y> / (|w| |y|)
//   subspace_ace       |Q^T y|^2 / |y|^2, Q an orthonormal basis of all w: one map for all targets
//   filter             <w, y> / |w|^2
//   normalized_filter  <w, y> / |w|
//   cem                filter with m = 0 and the correlation matrix 1 / N sum x x^T for S
//   centered_cem       filter under another name
// A pixel on the mean (y = 0) has the score 0.
enum class MatchedScore : std::uint8_t {
  ace,
  signed_ace,
  subspace_ace,
  filter,
  normalized_filter,
  cem,
  centered_cem
};

}  // namespace mahal

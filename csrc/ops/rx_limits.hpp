// When the scores of a window are trusted.
#pragma once

#include <limits>

namespace mahal {

// Smallest pivot of a regular window, relative to its diagonal entry on the whitened image.
// Rounding leaves the pivots of rank-deficient windows within 1e-10 of zero; those of regular
// windows of real scenes start near 1e-2.
inline constexpr double window_pivot = 1e-10;

// The sliding sums of a window whose pivots fall below this share of their diagonal are not
// trusted: such pixels are scored again from their own samples in float64.
template <class T>
inline constexpr T weak_pivot = sizeof(T) == 4 ? T(1e-3) : T(1e-9);

// Nor is a score whose estimated relative error exceeds this. The estimate is in units of rounding;
// on public scenes the largest error is 4 of these units, twice that is allowed for.
template <class T>
inline constexpr T accuracy = sizeof(T) == 4 ? T(1e-3) : T(1e-8);
template <class T>
inline constexpr T trusted_error = accuracy<T> / (8 * std::numeric_limits<T>::epsilon());

}  // namespace mahal

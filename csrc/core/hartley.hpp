// Plans of the discrete Hartley transform H[f] = sum_j x[j] (cos + sin)(2 pi f j / n).
//
// It is real, its own inverse up to the factor n, and diagonalises what is circulant and even, so
// it does here what a real Fourier transform does, with one kind of array and one direction.
// A transform is a power of two up to 16 in registers, then stages of radix 4, 2 and odd primes.
#pragma once

#include <cstdint>

namespace mahal {

inline constexpr int hartley_stages = 24;

// Stage s joins `radix[s]` transforms of the size m reached before it. Its twiddles are, for k = 0
// .. m / 2 and r = 1 .. radix - 1, cos and sin of 2 pi r k / (radix m); those of an odd radix are
// preceded by cos and sin of 2 pi q / radix for q = 0 .. radix - 1.
template <class T>
struct HartleyPlan {
  int n = 1;
  int base = 1;    // size of the transforms in registers
  int blocks = 1;  // n / base of them; block b takes every `blocks`-th element from first[b]
  int stages = 0;
  int largest = 1;  // radix
  int radix[hartley_stages]{};
  const std::int32_t* first = nullptr;
  const T* twiddles = nullptr;
};

}  // namespace mahal

// How a Hartley transform of any size is cut into stages, and its tables. Host side.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "core/hartley.hpp"

namespace mahal {

// `largest_base` is a power of two up to 16; with 1 there are stages alone. Transforms of 32 would
// not stay in registers.
template <class T>
HartleyPlan<T> hartley_factors(int n, int largest_base = 16) {
  HartleyPlan<T> plan;
  plan.n = n;
  int rest = n;
  while (rest % 2 == 0 && plan.base < largest_base) {
    plan.base *= 2;
    rest /= 2;
  }
  plan.blocks = rest;
  const auto add = [&](int radix) {
    plan.radix[plan.stages++] = radix;
    plan.largest = radix > plan.largest ? radix : plan.largest;
    rest /= radix;
  };
  while (rest % 4 == 0) add(4);
  while (rest % 2 == 0) add(2);
  for (int odd = 3; static_cast<std::int64_t>(odd) * odd <= rest; odd += 2) {
    while (rest % odd == 0) add(odd);
  }
  if (rest > 1) add(rest);
  return plan;
}

template <class T>
std::int64_t hartley_twiddles(const HartleyPlan<T>& plan) {
  std::int64_t count = 0;
  std::int64_t m = plan.base;
  for (int s = 0; s < plan.stages; ++s) {
    const int radix = plan.radix[s];
    count += (radix % 2 == 1 ? 2 * radix : 0) + 2 * (radix - 1) * (m / 2 + 1);
    m *= radix;
  }
  return count;
}

// Fills the tables, of `blocks` and hartley_twiddles() elements, and points the plan at them.
template <class T>
void fill_hartley(HartleyPlan<T>& plan, std::int32_t* first, T* twiddles) {
  const auto put = [&](std::int64_t step, std::int64_t size) {
    const double angle =
        2 * std::numbers::pi * static_cast<double>(step % size) / static_cast<double>(size);
    *twiddles++ = static_cast<T>(std::cos(angle));
    *twiddles++ = static_cast<T>(std::sin(angle));
  };
  plan.first = first;
  plan.twiddles = twiddles;
  std::int64_t m = plan.base;
  for (int s = 0; s < plan.stages; ++s) {
    const int radix = plan.radix[s];
    if (radix % 2 == 1) {
      for (int q = 0; q < radix; ++q) put(q, radix);
    }
    for (std::int64_t k = 0; k <= m / 2; ++k) {
      for (int r = 1; r < radix; ++r) put(r * k, radix * m);
    }
    m *= radix;
  }
  // The last stage cuts the elements by their number modulo its radix, the one before it what is
  // left, and so on.
  for (int b = 0; b < plan.blocks; ++b) {
    int size = plan.blocks, at = b, start = 0, step = 1;
    for (int s = plan.stages - 1; s >= 0; --s) {
      size /= plan.radix[s];
      start += at / size * step;
      at %= size;
      step *= plan.radix[s];
    }
    first[b] = start;
  }
}

}  // namespace mahal

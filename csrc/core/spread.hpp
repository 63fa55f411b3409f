// From gradients of the mean and covariance of many pixels to those of the pixels.
#pragma once

#include <algorithm>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/threads.hpp"
#include "ops/mean_covariance_backward_kernel.hpp"

namespace mahal {

inline char* plan_spread(Scratch& scratch, int bands, int threads) {
  return scratch.take<char>(static_cast<std::int64_t>(spread_scratch_bytes(padded_bands(bands))) *
                            threads);
}

// `block` describes the whole image; begin, end and scratch are set here.
template <class T>
void spread_gradient(SpreadBlock<T> block, std::int64_t pixels, char* room, int threads) {
  const std::int64_t tasks = (pixels + pixels_per_task - 1) / pixels_per_task;
  const auto bytes = static_cast<std::int64_t>(spread_scratch_bytes(block.pixels.padded));
  dispatch_isa([&]<Isa I>() {
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      SpreadBlock<T> mine = block;
      mine.begin = task * pixels_per_task;
      mine.end = std::min(pixels, mine.begin + pixels_per_task);
      mine.scratch = room + worker * bytes;
      MeanCovarianceBackwardKernel<I>::run(mine);
    });
  });
}

}  // namespace mahal

// Whitening of all pixels of an image by one factor, in tasks of a fixed number of pixels.
#pragma once

#include <algorithm>

#include "core/background.hpp"
#include "core/dispatch.hpp"
#include "core/threads.hpp"
#include "ops/whiten_kernel.hpp"

namespace mahal {

inline char* plan_whitening(Scratch& scratch, int bands, int threads) {
  return scratch.take<char>(static_cast<std::int64_t>(whiten_scratch_bytes(padded_bands(bands))) *
                            threads);
}

// `block` describes the whole image; begin, end and scratch are set here.
template <class In, class Out>
void whiten_pixels(WhitenBlock<In, Out> block, std::int64_t pixels, char* room, int threads) {
  const std::int64_t tasks = (pixels + pixels_per_task - 1) / pixels_per_task;
  const std::size_t bytes = whiten_scratch_bytes(block.pixels.padded);
  dispatch_isa([&]<Isa I>() {
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      WhitenBlock<In, Out> mine = block;
      mine.begin = task * pixels_per_task;
      mine.end = std::min(pixels, mine.begin + pixels_per_task);
      mine.scratch = room + worker * static_cast<std::int64_t>(bytes);
      WhitenKernel<I>::run(mine);
    });
  });
}

// What whiten and mahalanobis share: reads mean and covariance, factors, and runs over the pixels.
struct FixedBackground {
  double* mean;
  Factor factor;
  char* room;
};

inline FixedBackground plan_fixed_background(Scratch& scratch, int bands, int threads) {
  FixedBackground background;
  background.mean = scratch.take<double>(padded_bands(bands));
  background.factor = plan_factor(scratch, bands);
  background.room = plan_whitening(scratch, bands, threads);
  return background;
}

// Throws ValueError in the name of `op` when the covariance is not positive definite.
void load_fixed_background(const char* op, const FixedBackground& background,
                           const TensorView& mean, const TensorView& covariance);

}  // namespace mahal

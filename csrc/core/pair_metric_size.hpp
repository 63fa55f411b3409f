// How the kernels for pairs of covariance matrices share out threads and memory. Host side too.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mahal/covariance_distance.hpp"

namespace mahal {

inline constexpr int most_pair_rows = 1024;
inline constexpr int pair_block_threads = 256;
// Room for matrices in the shared memory that every device has, beside that of reductions.
inline constexpr std::int64_t pair_shared_doubles = 48 * 1024 / 8 - 32;

// Who works on a pair: a thread, a warp, or a block with matrices in the caller's workspace.
enum class PairTeam : std::uint8_t { thread, warp, block };

struct PairPlan {
  PairTeam team;
  int matrices;          // per pair
  int ld;                // of the matrices
  std::int64_t doubles;  // per pair
  int pairs;             // per block
  int threads;           // per block
  std::int64_t slots;    // blocks of PairTeam::block, which take one pair after the other

  std::int64_t blocks(std::int64_t count) const {
    constexpr std::int64_t most_blocks = 0x7FFFFFFF;
    return team == PairTeam::block ? slots : std::min(most_blocks, (count - 1) / pairs + 1);
  }
  std::int64_t workspace_doubles() const { return team == PairTeam::block ? slots * doubles : 0; }
  // Of the matrices in shared memory.
  std::int64_t shared_doubles() const { return team == PairTeam::block ? 0 : pairs * doubles; }
};

constexpr bool needs_third_matrix(Metric metric) {
  return metric == Metric::logdet || metric == Metric::wasserstein ||
         metric == Metric::symmetric_kl || metric == Metric::wishart || metric == Metric::box_m;
}

// `matrices` of n rows and 3 n more numbers per pair, in `shared` doubles at most for a block,
// `extra` doubles of which every pair takes for other things.
inline PairPlan plan_pairs(int matrices, std::int64_t n, bool complex, std::int64_t count,
                           std::int64_t shared, std::int64_t extra) {
  constexpr int most_threads = 128, fewest_threads = 32, most_warps = 4;

  constexpr std::int64_t most_slots = 264;  // two for each multiprocessor of a large device
  constexpr std::int64_t most_doubles = std::int64_t{32} << 20;
  const int parts = complex ? 2 : 1;
  PairPlan plan{
      PairTeam::thread, matrices, static_cast<int>(n), (matrices * n * parts + 3) * n, 0, 0, 0};
  for (int threads = most_threads; threads >= fewest_threads; threads /= 2) {
    if (threads * (plan.doubles + extra) > shared) continue;
    plan.pairs = plan.threads = threads;
    return plan;
  }
  plan.ld = static_cast<int>(n | 1);
  plan.doubles = (matrices * plan.ld * parts + 3) * n;
  plan.doubles += plan.doubles % 2;  // complex numbers stay aligned
  plan.team = PairTeam::warp;
  plan.pairs =
      static_cast<int>(std::min<std::int64_t>(most_warps, shared / (plan.doubles + extra)));
  plan.threads = plan.pairs * 32;
  if (plan.pairs > 0) return plan;
  plan.team = PairTeam::block;
  plan.pairs = 1;
  plan.threads = pair_block_threads;
  plan.slots = std::min(most_slots, std::max<std::int64_t>(1, most_doubles / plan.doubles));
  plan.slots = std::max<std::int64_t>(1, std::min(plan.slots, count));
  return plan;
}

}  // namespace mahal

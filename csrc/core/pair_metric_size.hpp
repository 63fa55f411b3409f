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

// `matrices` of n rows and, where there are any, 3 n more numbers per pair; fits(pairs, doubles)
// tells whether a block has shared memory for so many pairs of so many doubles.
template <class Fits>
PairPlan plan_pairs(int matrices, std::int64_t n, bool complex, std::int64_t count, Fits fits) {
  constexpr int most_threads = 128, fewest_threads = 32, most_warps = 4, lanes = 32;
  constexpr std::int64_t most_slots = 264;  // two for each multiprocessor of a large device
  constexpr std::int64_t most_doubles = std::int64_t{32} << 20;
  const int parts = complex ? 2 : 1;
  const int vectors = matrices > 0 ? 3 : 0;
  PairPlan plan{PairTeam::thread, matrices, static_cast<int>(n), 0, 0, 0, 0};
  plan.doubles = (matrices * n * parts + vectors) * n;
  for (int threads = most_threads; threads >= fewest_threads; threads /= 2) {
    plan.pairs = plan.threads = threads;
    if (fits(plan.pairs, plan.doubles)) return plan;
  }
  plan.ld = static_cast<int>(n | 1);
  plan.doubles = (matrices * plan.ld * parts + vectors) * n;
  plan.doubles += plan.doubles % 2;  // complex numbers stay aligned
  plan.team = PairTeam::warp;
  for (plan.pairs = most_warps; plan.pairs > 0; plan.pairs /= 2) {
    plan.threads = plan.pairs * lanes;
    if (fits(plan.pairs, plan.doubles)) return plan;
  }
  plan.team = PairTeam::block;
  plan.pairs = 1;
  plan.threads = pair_block_threads;
  const std::int64_t slots = most_doubles / std::max<std::int64_t>(1, plan.doubles);
  plan.slots = std::max<std::int64_t>(1, std::min({slots, most_slots, count}));
  return plan;
}

}  // namespace mahal

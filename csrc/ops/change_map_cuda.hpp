// Entry of the kernels in csrc/ops/change_map.cu. The op has checked every argument; nothing here
// allocates or waits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/origin_tiles.hpp"
#include "core/pair_metric_size.hpp"
#include "mahal/change_map.hpp"

namespace mahal {

inline constexpr int most_change_window = 511;

// Products of one channel with so many others are summed at a time.
inline constexpr int change_group = 4;
// The images hold float where `single` and double elsewhere, or pairs of these where `complex`;
// strides are in entries. Results are those of the op.
struct ChangeMapLaunch {
  const void* images[2] = {nullptr, nullptr};
  std::int64_t row_strides[2] = {0, 0}, col_strides[2] = {0, 0}, channel_strides[2] = {0, 0};
  bool single = false;
  bool complex = false;
  const std::uint8_t* mask = nullptr;  // nonzero: use; or nullptr
  std::int64_t mask_row_stride = 0, mask_col_stride = 0;
  int rows = 0, cols = 0, channels = 0;
  int edge = 0;  // rows and columns at each side that have no window of their own
  ChangeMapParams params;
  double smallest_pivot = 0;
  PairPlan plan{};
  int chunk = 0;  // groups of products whose sums over rows are in shared memory at a time
  std::uint8_t* weights = nullptr;  // rows x cols
  double* origins = nullptr;        // tiles x change_origins()
  double* matrices = nullptr;       // plan.workspace_doubles()
  void* score = nullptr;
  std::uint8_t* status = nullptr;
};

// Doubles beside the matrices of so many pixels, and of a group of products.
inline std::int64_t change_moments(std::int64_t pixels, std::int64_t channels, bool complex) {
  return pixels * (1 + 2 * channels) * (complex ? 2 : 1);
}
inline std::int64_t change_group_doubles(std::int64_t pixels, int window, bool complex) {
  return (pixels + window - 1) * change_group * (complex ? 2 : 1);
}
inline std::int64_t change_groups(const ChangeMapParams& params, std::int64_t channels) {
  std::int64_t groups = 0;
  for (std::int64_t i = 0; i < channels; ++i) groups += i / change_group + 1;
  return params.metric == Metric::frobenius ? groups : 2 * groups;
}
// Per tile of pixels that share an origin.
inline std::int64_t change_origins(std::int64_t channels, bool complex) {
  return 2 * channels * (complex ? 2 : 1);
}

inline PairPlan plan_change_map(const ChangeMapParams& params, std::int64_t rows, std::int64_t cols,
                                std::int64_t channels, bool complex) {
  const int matrices = params.metric == Metric::frobenius  ? 0
                       : needs_third_matrix(params.metric) ? 3
                                                           : 2;
  const auto fits = [&](std::int64_t pairs, std::int64_t doubles) {
    return pairs * doubles + change_moments(pairs, channels, complex) +
               change_group_doubles(pairs, params.window, complex) <=
           pair_shared_doubles;
  };
  return plan_pairs(matrices, channels, complex, rows * cols, fits);
}
// As many groups as fit.
inline int change_chunk(const ChangeMapParams& params, const PairPlan& plan, std::int64_t channels,
                        bool complex) {
  const std::int64_t left =
      pair_shared_doubles - plan.shared_doubles() - change_moments(plan.pairs, channels, complex);
  const std::int64_t fit = left / change_group_doubles(plan.pairs, params.window, complex);
  return static_cast<int>(
      std::max<std::int64_t>(1, std::min(fit, change_groups(params, channels))));
}

namespace cuda {
void change_map(const ChangeMapLaunch& arguments, std::uintptr_t stream);
}  // namespace cuda

namespace emulator {
void change_map(const ChangeMapLaunch& arguments, std::uintptr_t stream);
}  // namespace emulator

}  // namespace mahal

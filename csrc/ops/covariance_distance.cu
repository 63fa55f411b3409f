// Scores of pairs of covariance matrices, in float64: small ones by a thread each, interleaved in
// shared memory, larger ones by a warp, and those that do not fit there by a block.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/device_matrix_batch.hpp"
#include "core/device_pair_metric.hpp"
#include "ops/covariance_distance_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

template <class N, int Size>
__global__ void score_pairs(CovarianceDistanceLaunch p) {
  constexpr bool interleaved = Size == 1;
  double* shared = simt::dynamic_shared<double>();
  const Team<Size> team{shared};
  const int slot = static_cast<int>(threadIdx.x) / Size;
  double* memory = interleaved ? shared : shared + slot * p.plan.doubles;
  if constexpr (Size > warp_lanes) memory = p.workspace + blockIdx.x * p.plan.doubles;

  for (std::int64_t index = std::int64_t{blockIdx.x} * p.plan.pairs + slot; index < p.batch.count;
       index += std::int64_t{gridDim.x} * p.plan.pairs) {
    PairMetric<Size, N> pair(
        team, p.n, p.plan.ld, p.plan.matrices, memory, interleaved ? p.plan.pairs : 1,
        interleaved ? slot : 0,
        p.n * (p.single ? static_cast<double>(simt::epsilon<float>) : simt::epsilon<double>));
    const MatrixOffsets at = device_matrix_offsets(p.batch, index);
    team.sync();
    double finite = load_lower(pair.math, {p.a, p.single, at.a, p.a_row_stride, p.a_col_stride},
                               pair.a, pair.pivots_a);
    finite = std::fmin(
        finite, load_lower(pair.math, {p.b, p.single, at.b, p.b_row_stride, p.b_col_stride}, pair.b,
                           pair.pivots_b));
    finite = team.reduce(finite, Least{});
    team.sync();
    double score =
        pair.score(p.params.metric, p.params.squared, p.params.looks_a, p.params.looks_b);
    if (team.rank() != 0) continue;
    if (p.single) score = static_cast<float>(score);
    const std::uint8_t status = finite == 0         ? status_nonfinite
                                : !pair.regular     ? status_singular
                                : !is_finite(score) ? status_nonfinite
                                                    : status_ok;
    p.status[index] = status;
    write_number(p.score, p.single, index, status == status_ok ? score : simt::nan<double>);
  }
}

template <class N>
void launch_entries(const CovarianceDistanceLaunch& p, std::uintptr_t stream) {
  const PairPlan& plan = p.plan;
  auto* kernel = score_pairs<N, 1>;
  if (plan.team == PairTeam::warp) kernel = score_pairs<N, warp_lanes>;
  if (plan.team == PairTeam::block) kernel = score_pairs<N, pair_block_threads>;
  const std::int64_t doubles = std::max<std::int64_t>(plan.shared_doubles(), warp_lanes);
  simt::launch("covariance_distance", kernel,
               dim3(static_cast<unsigned>(plan.blocks(p.batch.count))),
               dim3(static_cast<unsigned>(plan.threads)),
               static_cast<std::size_t>(doubles) * sizeof(double), stream, p);
}

}  // namespace

void covariance_distance(const CovarianceDistanceLaunch& arguments, std::uintptr_t stream) {
  if (arguments.batch.count == 0) return;
  if (arguments.hermitian) {
    launch_entries<Complex<double>>(arguments, stream);
  } else {
    launch_entries<double>(arguments, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

// Gradients of scores of pairs of covariance matrices, in float64: small ones by a thread each,
// interleaved in shared memory, larger ones by a warp, and those that do not fit there by a block.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/device_matrix_batch.hpp"
#include "core/device_pair_gradient.hpp"
#include "ops/covariance_distance_backward_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

// Lower triangles in, whole Hermitian matrices out.
template <class N>
struct GradientWriter {
  void* out;  // may be null
  bool single;
  std::int64_t offset;
  int n;
  double scale;

  __device__ MAHAL_DEVICE_CALL void operator()(int i, int j, N value) const {
    if (out == nullptr) return;
    N scaled = value * scale;
    if (i == j) scaled = to_number<N>(real_part(scaled));
    write_number(out, single, offset + std::int64_t{i} * n + j, scaled);
    if (j < i) write_number(out, single, offset + std::int64_t{j} * n + i, conjugate(scaled));
  }
};

template <class N, int Size>
__global__ void differentiate_pairs(CovarianceDistanceBackwardLaunch p) {
  constexpr bool interleaved = Size == 1;
  double* shared = simt::dynamic_shared<double>();
  const Team<Size> team{shared};
  const int slot = static_cast<int>(threadIdx.x) / Size;
  double* memory = interleaved ? shared : shared + slot * p.plan.doubles;
  if constexpr (Size > warp_lanes) memory = p.workspace + blockIdx.x * p.plan.doubles;
  const Metric metric = p.params.metric;
  const bool root = !p.params.squared && metric <= Metric::wasserstein;

  for (std::int64_t index = std::int64_t{blockIdx.x} * p.plan.pairs + slot; index < p.batch.count;
       index += std::int64_t{gridDim.x} * p.plan.pairs) {
    PairGradient<Size, N> pair(team, p.n, p.plan.ld, p.plan.matrices, memory,
                               interleaved ? p.plan.pairs : 1, interleaved ? slot : 0);
    const MatrixOffsets at = device_matrix_offsets(p.batch, index);
    team.sync();
    load_lower(pair.math, {p.a, p.single, at.a, p.a_row_stride, p.a_col_stride}, pair.a,
               pair.pivots_a);
    load_lower(pair.math, {p.b, p.single, at.b, p.b_row_stride, p.b_col_stride}, pair.b,
               pair.pivots_b);
    team.sync();
    const double grad = read_number<double>(p.grad, p.single, index);
    const double score = read_number<double>(p.score, p.single, index);
    const bool flat = pair.same() && metric != Metric::hotelling_lawley;
    double scale = root ? 0.5 * grad / score : grad;
    if (flat || (root && score == 0) || grad == 0) scale = 0;
    const bool spoilt = p.status[index] != status_ok && grad != 0;
    const std::int64_t offset = index * p.n * p.n;
    const GradientWriter<N> first{p.grad_a, p.single, offset, p.n, scale};
    const GradientWriter<N> second{p.grad_b, p.single, offset, p.n, scale};
    if (spoilt || scale == 0) {
      N value = to_number<N>(spoilt ? simt::nan<double> : 0.0);
      const GradientWriter<N> plain[2] = {{p.grad_a, p.single, offset, p.n, 1},
                                          {p.grad_b, p.single, offset, p.n, 1}};
      for (int m = 0; m < 2; ++m) {
        pair.math.each_lower(0, [&](int i, int j) { plain[m](i, j, value); });
      }
      continue;
    }
    pair.math.each_column([&](int i) { pair.pivots_a[i] = pair.pivots_b[i] = 0; });
    team.sync();
    pair.run(metric, p.params.looks_a, p.params.looks_b, first, second);
  }
}

template <class N>
void launch_entries(const CovarianceDistanceBackwardLaunch& p, std::uintptr_t stream) {
  const PairPlan& plan = p.plan;
  auto* kernel = differentiate_pairs<N, 1>;
  if (plan.team == PairTeam::warp) kernel = differentiate_pairs<N, warp_lanes>;
  if (plan.team == PairTeam::block) kernel = differentiate_pairs<N, pair_block_threads>;
  const std::int64_t doubles = std::max<std::int64_t>(plan.shared_doubles(), warp_lanes);
  simt::launch("covariance_distance_backward", kernel,
               dim3(static_cast<unsigned>(plan.blocks(p.batch.count))),
               dim3(static_cast<unsigned>(plan.threads)),
               static_cast<std::size_t>(doubles) * sizeof(double), stream, p);
}

}  // namespace

void covariance_distance_backward(const CovarianceDistanceBackwardLaunch& arguments,
                                  std::uintptr_t stream) {
  if (arguments.batch.count == 0) return;
  if (arguments.hermitian) {
    launch_entries<Complex<double>>(arguments, stream);
  } else {
    launch_entries<double>(arguments, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

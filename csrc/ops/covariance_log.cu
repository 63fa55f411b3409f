// Logarithms of covariance matrices, in float64: small ones by a thread each, interleaved in shared
// memory, larger ones by a warp, and those that do not fit there by a block.
#include <algorithm>
#include <cstdint>

#include "core/device_matrix_batch.hpp"
#include "ops/covariance_log_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

template <class N, int Size>
__global__ void take_logarithms(CovarianceLogLaunch p) {
  constexpr bool interleaved = Size == 1;
  double* shared = simt::dynamic_shared<double>();
  const HermitianTeam<Size, N> math{{shared}, p.n};
  const int slot = static_cast<int>(threadIdx.x) / Size;
  const int stride = interleaved ? p.plan.pairs : 1;
  double* memory = interleaved ? shared : shared + slot * p.plan.doubles;
  if constexpr (Size > warp_lanes) memory = p.workspace + blockIdx.x * p.plan.doubles;
  N* const entries = reinterpret_cast<N*>(memory);
  const Entries<N> x{entries + (interleaved ? slot : 0), p.plan.ld, stride};
  const Reals weights{reinterpret_cast<double*>(entries + std::int64_t{p.n} * p.plan.ld * stride) +
                          (interleaved ? slot : 0),
                      stride};
  const double tolerance =
      p.n * (p.single ? static_cast<double>(simt::epsilon<float>) : simt::epsilon<double>);

  for (std::int64_t index = std::int64_t{blockIdx.x} * p.plan.pairs + slot; index < p.batch.count;
       index += std::int64_t{gridDim.x} * p.plan.pairs) {
    const std::int64_t offset = device_matrix_offsets(p.batch, index).a;
    math.team.sync();
    const double finite = math.team.reduce(
        load_lower(math, {p.a, p.single, offset, p.row_stride, p.col_stride}, x, weights), Least{});
    math.team.sync();
    double load = 0;
    math.each_column([&](int i) { load += weights[i]; });
    load = math.team.reduce(load) * (p.loading / p.n);
    math.each_column([&](int i) {
      weights[i] += load;
      x(i, i) = to_number<N>(weights[i]);
    });
    math.team.sync();
    bool regular = math.factor(x, weights, tolerance);
    regular = math.decompose(x, weights) && regular;
    const std::uint8_t status = finite == 0 ? status_nonfinite
                                : !regular  ? status_singular
                                            : status_ok;
    if (math.team.rank() == 0) p.status[index] = status;
    const std::int64_t out = index * p.n * p.n;
    const double spoilt = status == status_ok ? 0 : simt::nan<double>;
    math.each_lower(0, [&](int i, int j) {
      N sum = to_number<N>(spoilt);
      if constexpr (is_complex_number<N>) sum.im = spoilt;
      if (status == status_ok) {
        for (int k = 0; k < p.n; ++k) sum = sum + x(i, k) * conjugate(x(j, k)) * weights[k];
        if (i == j) sum = to_number<N>(real_part(sum));
      }
      write_number(p.logarithm, p.single, out + std::int64_t{i} * p.n + j, sum);
      if (j < i)
        write_number(p.logarithm, p.single, out + std::int64_t{j} * p.n + i, conjugate(sum));
    });
  }
}

template <class N>
void launch_entries(const CovarianceLogLaunch& p, std::uintptr_t stream) {
  const PairPlan& plan = p.plan;
  auto* kernel = take_logarithms<N, 1>;
  if (plan.team == PairTeam::warp) kernel = take_logarithms<N, warp_lanes>;
  if (plan.team == PairTeam::block) kernel = take_logarithms<N, pair_block_threads>;
  const std::int64_t doubles = std::max<std::int64_t>(plan.shared_doubles(), warp_lanes);
  simt::launch("covariance_log", kernel, dim3(static_cast<unsigned>(plan.blocks(p.batch.count))),
               dim3(static_cast<unsigned>(plan.threads)),
               static_cast<std::size_t>(doubles) * sizeof(double), stream, p);
}

}  // namespace

void covariance_log(const CovarianceLogLaunch& arguments, std::uintptr_t stream) {
  if (arguments.batch.count == 0) return;
  if (arguments.hermitian) {
    launch_entries<Complex<double>>(arguments, stream);
  } else {
    launch_entries<double>(arguments, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

// Gradients of logarithms of covariance matrices, in float64: small ones by a thread each,
// interleaved in shared memory, larger ones by a warp, and those that do not fit there by a block.
#include <algorithm>
#include <cstdint>

#include "core/device_hermitian_derivative.hpp"
#include "core/device_matrix_batch.hpp"
#include "ops/covariance_log_backward_cuda.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

template <class N, int Size>
__global__ void differentiate_logarithms(CovarianceLogBackwardLaunch p) {
  constexpr bool interleaved = Size == 1;
  double* shared = simt::dynamic_shared<double>();
  const HermitianTeam<Size, N> math{{shared}, p.n};
  const DerivativeTeam<Size, N> derivative{math, p.n};
  const int slot = static_cast<int>(threadIdx.x) / Size;
  const int stride = interleaved ? p.plan.pairs : 1;
  const int place = interleaved ? slot : 0;
  double* memory = interleaved ? shared : shared + slot * p.plan.doubles;
  if constexpr (Size > warp_lanes) memory = p.workspace + blockIdx.x * p.plan.doubles;
  N* const entries = reinterpret_cast<N*>(memory);
  const std::int64_t one = std::int64_t{p.n} * p.plan.ld * stride;
  const Entries<N> a{entries + place, p.plan.ld, stride};
  const Entries<N> x{entries + one + place, p.plan.ld, stride};
  const Entries<N> half{entries + 2 * one + place, p.plan.ld, stride};
  const Reals values{reinterpret_cast<double*>(entries + 3 * one) + place, stride};

  for (std::int64_t index = std::int64_t{blockIdx.x} * p.plan.pairs + slot; index < p.batch.count;
       index += std::int64_t{gridDim.x} * p.plan.pairs) {
    const std::int64_t offset = device_matrix_offsets(p.batch, index).a;
    const std::int64_t whole = index * p.n * p.n;
    math.team.sync();
    load_lower(math, {p.a, p.single, offset, p.row_stride, p.col_stride}, a, values);
    double there = 0;
    math.each_entry([&](int i, int j) {
      const N own = read_number<N>(p.grad, p.single, whole + std::int64_t{i} * p.n + j);
      const N other = read_number<N>(p.grad, p.single, whole + std::int64_t{j} * p.n + i);
      if (!(squared(own) == 0)) there = 1;
      x(i, j) = (own + conjugate(other)) * 0.5;
    });
    there = math.team.reduce(there, Greatest{});
    math.team.sync();
    const auto put = [&](int i, int j, N value) {
      if (i == j) value = to_number<N>(real_part(value));
      write_number(p.grad_a, p.single, whole + std::int64_t{i} * p.n + j, value);
      if (j < i) {
        write_number(p.grad_a, p.single, whole + std::int64_t{j} * p.n + i, conjugate(value));
      }
    };
    const bool regular = p.status[index] == status_ok;
    if (!regular || there == 0) {
      const N value = to_number<N>(there == 0 ? 0.0 : simt::nan<double>);
      math.each_lower(0, [&](int i, int j) { put(i, j, value); });
      continue;
    }
    double load = 0;
    math.each_column([&](int i) { load += values[i]; });
    load = math.team.reduce(load) * (p.loading / p.n);
    math.each_column([&](int i) {
      a(i, i) = to_number<N>(values[i] + load);
      values[i] = 0;
    });
    math.team.sync();
    math.factor(a, values, 0);
    derivative.eigenvectors(a, values);
    derivative.log_derivative(a, values, x, x, half);
    // The loading passes the mean of the diagonal on.
    double trace = 0;
    math.each_column([&](int i) { trace += real_part(derivative.row_product(half, a, i, i)); });
    const double extra = math.team.reduce(trace) * (p.loading / p.n);
    math.each_lower(0, [&](int i, int j) {
      const N value = derivative.row_product(half, a, i, j);
      put(i, j, i == j ? value + to_number<N>(extra) : value);
    });
  }
}

template <class N>
void launch_entries(const CovarianceLogBackwardLaunch& p, std::uintptr_t stream) {
  const PairPlan& plan = p.plan;
  auto* kernel = differentiate_logarithms<N, 1>;
  if (plan.team == PairTeam::warp) kernel = differentiate_logarithms<N, warp_lanes>;
  if (plan.team == PairTeam::block) kernel = differentiate_logarithms<N, pair_block_threads>;
  const std::int64_t doubles = std::max<std::int64_t>(plan.shared_doubles(), warp_lanes);
  simt::launch("covariance_log_backward", kernel,
               dim3(static_cast<unsigned>(plan.blocks(p.batch.count))),
               dim3(static_cast<unsigned>(plan.threads)),
               static_cast<std::size_t>(doubles) * sizeof(double), stream, p);
}

}  // namespace

void covariance_log_backward(const CovarianceLogBackwardLaunch& arguments, std::uintptr_t stream) {
  if (arguments.batch.count == 0) return;
  if (arguments.hermitian) {
    launch_entries<Complex<double>>(arguments, stream);
  } else {
    launch_entries<double>(arguments, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

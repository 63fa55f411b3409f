// Gradient of the batched Cholesky factorisation, in float64: a block of threads for each matrix.
// With the Hermitian H = P + P^H of the op, S = L^-H H L^-1 goes from the last row to the first: a
// row is divided by its pivot and taken out of the rows above it from both sides, then every row is
// multiplied by the inverse of the factor above it.
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/device_matrix.hpp"
#include "core/device_matrix_batch.hpp"
#include "core/simt.hpp"
#include "ops/cholesky_backward_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int most_threads = 256;

// The hook by which a test proves that its comparisons notice a lost barrier.
__device__ __forceinline__ void row_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

struct Parameters : CholeskyBackwardLaunch {
  std::int64_t share;  // of the workspace, for one block
};

template <class N>
__global__ void __launch_bounds__(most_threads, 2) pull_matrices(Parameters p) {
  const int n = p.n;
  const int pitch = n + 1;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int lane = thread % warp_lanes;
  const int warp = thread / warp_lanes;
  const int warps = threads / warp_lanes;
  // Row i, column j <= i of the gradient stands at i * pitch + j, that of the factor transposed,
  // at j * pitch + i + 1.
  N* h = p.workspace == nullptr ? simt::dynamic_shared<N>()
                                : reinterpret_cast<N*>(p.workspace + blockIdx.x * p.share);
  double* inverse = reinterpret_cast<double*>(h + std::int64_t{n} * pitch);
  // One for each warp.
  double* room = p.workspace == nullptr ? inverse + n : simt::dynamic_shared<double>();
  const auto grad = [&](int i, int j) -> N& { return h[static_cast<std::int64_t>(i) * pitch + j]; };
  const auto lower = [&](int i, int j) -> N& {
    return h[static_cast<std::int64_t>(j) * pitch + i + 1];
  };

  for (std::int64_t index = blockIdx.x; index < p.batch.count; index += gridDim.x) {
    const MatrixOffsets at = device_matrix_offsets(p.batch, index);
    __syncthreads();
    for (int i = warp; i < n; i += warps) {
      for (int j = lane; j <= i; j += warp_lanes) {
        const N l = read_number<N>(p.factor, p.single, at.a + i * p.factor_row + j * p.factor_col);
        const N g = read_number<N>(p.grad, p.single, at.b + i * p.grad_row + j * p.grad_col);
        lower(i, j) = i == j ? to_number<N>(real_part(l)) : l;
        grad(i, j) = i == j ? to_number<N>(real_part(g)) : g;
        if (i == j) inverse[i] = 1.0 / real_part(l);
      }
    }
    __syncthreads();
    // Lower triangle of L^H grad. The rows below i are still the gradient.
    for (int i = 0; i < n; ++i) {
      for (int j = thread; j <= i; j += threads) {
        N sum{};
        for (int k = i; k < n; ++k) sum = sum + conjugate(lower(k, i)) * grad(k, j);
        grad(i, j) = i == j ? to_number<N>(real_part(sum)) : sum;
      }
      row_barrier();
    }
    for (int k = n - 1; k >= 0; --k) {
      const double pivot = inverse[k];
      const double corner = real_part(grad(k, k)) * pivot * pivot;
      const auto half = [&](int j) { return lower(k, j) * (0.5 * corner); };
      for (int j = thread; j < k; j += threads) grad(k, j) = grad(k, j) * pivot - half(j);
      row_barrier();
      for (int i = warp; i < k; i += warps) {
        const N left = conjugate(grad(k, i)), right = conjugate(lower(k, i));
        for (int j = lane; j <= i; j += warp_lanes) {
          const N rest = grad(i, j) - left * lower(k, j) - right * grad(k, j);
          grad(i, j) = i == j ? to_number<N>(real_part(rest)) : rest;
        }
      }
      row_barrier();
      for (int j = thread; j < k; j += threads) grad(k, j) = grad(k, j) - half(j);
      if (thread == 0) grad(k, k) = to_number<N>(corner);
    }
    __syncthreads();
    for (int i = warp; i < n; i += warps) {
      for (int j = i - 1; j >= 0; --j) {
        const N solved = grad(i, j) * inverse[j];
        for (int c = lane; c < j; c += warp_lanes) grad(i, c) = grad(i, c) - solved * lower(j, c);
        __syncwarp();
        if (lane == 0) grad(i, j) = solved;
      }
    }
    __syncthreads();
    double trace = 0;
    for (int i = thread; i < n; i += threads) trace += real_part(grad(i, i));
    trace = block_reduce(trace, room);
    const double extra = p.loading == 0 ? 0.0 : trace * (p.loading / n);
    const std::int64_t begin = index * n * n;
    for (int i = warp; i < n; i += warps) {
      for (int j = lane; j < n; j += warp_lanes) {
        N value = j <= i ? grad(i, j) : conjugate(grad(j, i));
        if (i == j) value = to_number<N>(real_part(value) + extra);
        write_number(p.out, p.single, begin + i * std::int64_t{n} + j, value * 0.5);
      }
    }
  }
}

template <class N>
void launch_matrices(const CholeskyBackwardLaunch& p, std::uintptr_t stream) {
  const bool shared = pulls_in_shared(p.n, p.hermitian);
  const int threads = p.n <= 16 ? 32 : p.n <= 32 ? 64 : p.n <= 64 ? 128 : most_threads;
  const std::int64_t most = shared ? std::int64_t{1} << 20 : pull_blocks;
  const std::int64_t doubles = threads / warp_lanes + (shared ? pull_doubles(p.n, p.hermitian) : 0);
  Parameters mine{p, pull_doubles(p.n, p.hermitian)};
  if (shared) mine.workspace = nullptr;
  simt::launch("cholesky_backward", pull_matrices<N>,
               dim3(static_cast<unsigned>(std::min(p.batch.count, most))), dim3(threads),
               sizeof(double) * static_cast<std::size_t>(doubles), stream, mine);
}

}  // namespace

void cholesky_backward(const CholeskyBackwardLaunch& arguments, std::uintptr_t stream) {
  if (arguments.batch.count == 0) return;
  if (arguments.hermitian) {
    launch_matrices<Complex<double>>(arguments, stream);
  } else {
    launch_matrices<double>(arguments, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

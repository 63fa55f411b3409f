#include "mahal/covariance_distance.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/dispatch.hpp"
#include "core/matrix_batch.hpp"
#include "core/pair_checks.hpp"
#include "core/scratch.hpp"
#include "core/threads.hpp"
#include "ops/covariance_distance_cuda.hpp"
#include "ops/covariance_distance_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "covariance_distance";

std::size_t worker_bytes(const TensorView& a) {
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return CovarianceDistanceKernel<I>::scratch_bytes(static_cast<int>(a.shape[a.rank - 1]),
                                                      is_complex(a.dtype));
  });
  return (bytes + 63) / 64 * 64;
}

PairPlan kernel_plan(const CovarianceDistanceParams& params, const TensorView& a,
                     const MatrixBatch& batch) {
  return plan_distances(params.metric, a.shape[a.rank - 1], is_complex(a.dtype), batch.count);
}

std::size_t kernel_bytes(const PairPlan& plan) {
  Scratch scratch;
  scratch.take<double>(plan.workspace_doubles());
  return scratch.bytes();
}

// The CUDA kernels, on the device or in the emulator.
void launch(const CovarianceDistanceParams& params, const TensorView& a, const TensorView& b,
            const MatrixBatch& batch, const TensorView& score, const TensorView& status,
            const Workspace& workspace, Route route, std::uintptr_t stream) {
  const std::int64_t n = a.shape[a.rank - 1];
  if (n > most_pair_rows) {
    throw_value_error(op, "a", "the CUDA kernels cover p = 1 to " + std::to_string(most_pair_rows),
                      std::to_string(n));
  }
  CovarianceDistanceLaunch arguments;
  arguments.a = a.data;
  arguments.b = b.data;
  arguments.single = real_dtype(a.dtype) == DType::f32;
  arguments.batch = batch;
  arguments.a_row_stride = a.strides[a.rank - 2];
  arguments.a_col_stride = a.strides[a.rank - 1];
  arguments.b_row_stride = b.strides[b.rank - 2];
  arguments.b_col_stride = b.strides[b.rank - 1];
  arguments.n = static_cast<int>(n);
  arguments.hermitian = is_complex(a.dtype);
  arguments.params = params;
  arguments.plan = kernel_plan(params, a, batch);
  check_workspace(op, workspace, kernel_bytes(arguments.plan));
  Scratch scratch(workspace);
  arguments.workspace = scratch.take<double>(arguments.plan.workspace_doubles());
  arguments.score = score.data;
  arguments.status = static_cast<std::uint8_t*>(status.data);
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::covariance_distance(arguments, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::covariance_distance(arguments, stream);
  }
}

}  // namespace

std::size_t covariance_distance_workspace(const CovarianceDistanceParams& params,
                                          const TensorView& a, const TensorView& b, int threads) {
  check_matrix_pairs(op, params, a, b);
  if (uses_kernels(a.device)) return kernel_bytes(kernel_plan(params, a, matrix_batch(a, b)));
  Scratch scratch;
  scratch.take<char>(static_cast<std::int64_t>(worker_bytes(a)) * resolve_threads(op, threads));
  return scratch.bytes();
}

void covariance_distance(const CovarianceDistanceParams& params, const TensorView& a,
                         const TensorView& b, const TensorView& score, const TensorView& status,
                         const Workspace& workspace, const Execution& execution) {
  check_matrix_pairs(op, params, a, b);
  check_given(op, "score", score);
  check_given(op, "status", status);
  const MatrixBatch batch = matrix_batch(a, b);
  if (score.dtype != real_dtype(a.dtype) || element_count(score) != batch.count ||
      !is_contiguous(score) || score.read_only) {
    throw_value_error(op, "score", "must be contiguous and real with one element per pair",
                      shape_text(score));
  }
  if (status.dtype != DType::u8 || element_count(status) != batch.count || !is_contiguous(status) ||
      status.read_only) {
    throw_value_error(op, "status", "must be uint8 with one element per pair", shape_text(status));
  }
  const Route route = select_route(op, execution, a.device, true);
  if (route != Route::cpu) {
    launch(params, a, b, batch, score, status, workspace, route, execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, covariance_distance_workspace(params, a, b, threads));
  Scratch scratch(workspace);
  const auto room = static_cast<std::int64_t>(worker_bytes(a));
  char* memory = scratch.take<char>(room * threads);

  dispatch_float(real_dtype(a.dtype), [&]<class T>() {
    dispatch_isa([&]<Isa I>() {
      const int lanes = CovarianceDistanceKernel<I>::lanes();
      const int parts = is_complex(a.dtype) ? 2 : 1;
      CovarianceDistanceBlock<T> common{};
      common.n = static_cast<int>(a.shape[a.rank - 1]);
      common.complex = parts == 2;
      common.params = params;
      common.tolerance = common.n * static_cast<double>(std::numeric_limits<T>::epsilon());
      common.a_row_stride = parts * a.strides[a.rank - 2];
      common.a_col_stride = parts * a.strides[a.rank - 1];
      common.b_row_stride = parts * b.strides[b.rank - 2];
      common.b_col_stride = parts * b.strides[b.rank - 1];
      const T* const a_data = static_cast<const T*>(a.data);
      const T* const b_data = static_cast<const T*>(b.data);
      const std::int64_t packs = (batch.count + lanes - 1) / lanes;
      const std::int64_t per_task = matrix_packs_per_task(common.n);
      const std::int64_t tasks = (packs + per_task - 1) / per_task;
      parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
        CovarianceDistanceBlock<T> block = common;
        block.scratch = memory + worker * room;
        const std::int64_t end = std::min(packs, (task + 1) * per_task);
        for (std::int64_t pack = task * per_task; pack < end; ++pack) {
          const std::int64_t first = pack * lanes;
          block.count = static_cast<int>(std::min<std::int64_t>(lanes, batch.count - first));
          for (int k = 0; k < lanes; ++k) {
            const MatrixOffsets at = matrix_offsets(batch, first + std::min(k, block.count - 1));
            block.a[k] = a_data + parts * at.a;
            block.b[k] = b_data + parts * at.b;
          }
          block.score = static_cast<T*>(score.data) + first;
          block.status = static_cast<std::uint8_t*>(status.data) + first;
          CovarianceDistanceKernel<I>::run(block);
          for (int k = 0; k < block.count; ++k) {
            if (block.status[k] == status_ok && std::isfinite(block.score[k])) continue;
            const bool finite =
                lower_is_finite(block.a[k], block.a_row_stride, block.a_col_stride, block.n,
                                parts) &&
                lower_is_finite(block.b[k], block.b_row_stride, block.b_col_stride, block.n, parts);
            if (block.status[k] == status_ok || !finite) block.status[k] = status_nonfinite;
            block.score[k] = std::numeric_limits<T>::quiet_NaN();
          }
        }
      });
    });
  });
}

}  // namespace mahal

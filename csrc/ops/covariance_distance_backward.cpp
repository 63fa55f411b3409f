#include "mahal/covariance_distance_backward.hpp"

#include <algorithm>
#include <string>

#include "core/dispatch.hpp"
#include "core/matrix_batch.hpp"
#include "core/pair_checks.hpp"
#include "core/scratch.hpp"
#include "core/threads.hpp"
#include "ops/covariance_distance_backward_cuda.hpp"
#include "ops/covariance_distance_backward_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "covariance_distance_backward";

std::int64_t worker_bytes(const TensorView& a) {
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return CovarianceDistanceBackwardKernel<I>::scratch_bytes(static_cast<int>(a.shape[a.rank - 1]),
                                                              is_complex(a.dtype));
  });
  return static_cast<std::int64_t>((bytes + 63) / 64 * 64);
}

void check_per_pair(const char* argument, const TensorView& view, DType dtype, std::int64_t count) {
  check_given(op, argument, view);
  check_dtype(op, argument, view, {dtype});
  if (element_count(view) != count || !is_contiguous(view)) {
    throw_value_error(op, argument, "must be contiguous with one element per pair",
                      shape_text(view));
  }
}

void check_gradient(const char* argument, const TensorView& view, const TensorView& a) {
  if (!is_given(view)) return;
  if (view.dtype != a.dtype || element_count(view) != element_count(a) || !is_contiguous(view) ||
      view.read_only) {
    throw_value_error(op, argument, "must be a contiguous array like a", shape_text(view));
  }
}

PairPlan kernel_plan(const CovarianceDistanceParams& params, const TensorView& a,
                     const MatrixBatch& batch) {
  return plan_distance_gradients(params.metric, a.shape[a.rank - 1], is_complex(a.dtype),
                                 batch.count);
}

std::size_t kernel_bytes(const PairPlan& plan) {
  Scratch scratch;
  scratch.take<double>(plan.workspace_doubles());
  return scratch.bytes();
}

// The CUDA kernels, on the device or in the emulator.
void launch(const CovarianceDistanceParams& params, const TensorView& a, const TensorView& b,
            const MatrixBatch& batch, const TensorView& score, const TensorView& status,
            const TensorView& grad, const TensorView& grad_a, const TensorView& grad_b,
            const Workspace& workspace, Route route, std::uintptr_t stream) {
  const std::int64_t n = a.shape[a.rank - 1];
  if (n > most_pair_rows) {
    throw_value_error(op, "a", "the CUDA kernels cover p = 1 to " + std::to_string(most_pair_rows),
                      std::to_string(n));
  }
  CovarianceDistanceBackwardLaunch arguments;
  arguments.a = a.data;
  arguments.b = b.data;
  arguments.score = score.data;
  arguments.status = static_cast<const std::uint8_t*>(status.data);
  arguments.grad = grad.data;
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
  arguments.grad_a = grad_a.data;
  arguments.grad_b = grad_b.data;
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::covariance_distance_backward(arguments, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::covariance_distance_backward(arguments, stream);
  }
}

}  // namespace

std::size_t covariance_distance_backward_workspace(const CovarianceDistanceParams& params,
                                                   const TensorView& a, const TensorView& b,
                                                   int threads) {
  check_matrix_pairs(op, params, a, b);
  if (uses_kernels(a.device)) return kernel_bytes(kernel_plan(params, a, matrix_batch(a, b)));
  Scratch scratch;
  scratch.take<char>(worker_bytes(a) * resolve_threads(op, threads));
  return scratch.bytes();
}

void covariance_distance_backward(const CovarianceDistanceParams& params, const TensorView& a,
                                  const TensorView& b, const TensorView& score,
                                  const TensorView& status, const TensorView& grad,
                                  const TensorView& grad_a, const TensorView& grad_b,
                                  const Workspace& workspace, const Execution& execution) {
  check_matrix_pairs(op, params, a, b);
  const MatrixBatch batch = matrix_batch(a, b);
  check_per_pair("score", score, real_dtype(a.dtype), batch.count);
  check_per_pair("status", status, DType::u8, batch.count);
  check_per_pair("grad", grad, real_dtype(a.dtype), batch.count);
  check_gradient("grad_a", grad_a, a);
  check_gradient("grad_b", grad_b, a);
  const Route route = select_route(op, execution, a.device, true);
  if (route != Route::cpu) {
    launch(params, a, b, batch, score, status, grad, grad_a, grad_b, workspace, route,
           execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, covariance_distance_backward_workspace(params, a, b, threads));
  Scratch scratch(workspace);
  const std::int64_t room = worker_bytes(a);
  char* memory = scratch.take<char>(room * threads);

  dispatch_float(real_dtype(a.dtype), [&]<class T>() {
    dispatch_isa([&]<Isa I>() {
      using Kernel = CovarianceDistanceBackwardKernel<I>;
      const int lanes = Kernel::lanes();
      const int parts = is_complex(a.dtype) ? 2 : 1;
      CovarianceDistanceBackwardBlock<T> common{};
      common.n = static_cast<int>(a.shape[a.rank - 1]);
      common.complex = parts == 2;
      common.params = params;
      common.a_row_stride = parts * a.strides[a.rank - 2];
      common.a_col_stride = parts * a.strides[a.rank - 1];
      common.b_row_stride = parts * b.strides[b.rank - 2];
      common.b_col_stride = parts * b.strides[b.rank - 1];
      const std::int64_t size = static_cast<std::int64_t>(common.n) * common.n * parts;
      const std::int64_t packs = (batch.count + lanes - 1) / lanes;
      const std::int64_t per_task = matrix_packs_per_task(common.n);
      parallel_for(threads, (packs + per_task - 1) / per_task, [&](std::int64_t task, int worker) {
        CovarianceDistanceBackwardBlock<T> block = common;
        block.scratch = memory + worker * room;
        const std::int64_t end = std::min(packs, (task + 1) * per_task);
        for (std::int64_t pack = task * per_task; pack < end; ++pack) {
          const std::int64_t first = pack * lanes;
          block.count = static_cast<int>(std::min<std::int64_t>(lanes, batch.count - first));
          for (int k = 0; k < lanes; ++k) {
            const std::int64_t index = first + std::min(k, block.count - 1);
            const MatrixOffsets at = matrix_offsets(batch, index);
            block.a[k] = static_cast<const T*>(a.data) + parts * at.a;
            block.b[k] = static_cast<const T*>(b.data) + parts * at.b;
            block.score[k] = static_cast<const T*>(score.data) + index;
            block.grad[k] = static_cast<const T*>(grad.data) + index;
            block.status[k] = static_cast<const std::uint8_t*>(status.data)[index];
          }
          if (is_given(grad_a)) block.grad_a = static_cast<T*>(grad_a.data) + first * size;
          if (is_given(grad_b)) block.grad_b = static_cast<T*>(grad_b.data) + first * size;
          Kernel::run(block);
        }
      });
    });
  });
}

}  // namespace mahal

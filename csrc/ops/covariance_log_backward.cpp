#include "mahal/covariance_log_backward.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/checks.hpp"
#include "core/dispatch.hpp"
#include "core/matrix_batch.hpp"
#include "core/scratch.hpp"
#include "core/threads.hpp"
#include "ops/covariance_log_backward_cuda.hpp"
#include "ops/covariance_log_backward_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "covariance_log_backward";

void check_inputs(const CovarianceLogParams& params, const TensorView& a) {
  check_field(op, "a", a);
  if (a.rank < 2 || a.shape[a.rank - 1] != a.shape[a.rank - 2] || a.shape[a.rank - 1] == 0) {
    throw_value_error(op, "a", "must have shape (..., p, p) with p > 0", shape_text(a));
  }
  if (!(params.loading >= 0) || !std::isfinite(params.loading)) {
    throw_value_error(op, "loading", "must be finite and not negative",
                      std::to_string(params.loading));
  }
}

void check_like(const char* argument, const TensorView& view, const TensorView& a) {
  check_given(op, argument, view);
  if (view.dtype != a.dtype || element_count(view) != element_count(a) || !is_contiguous(view)) {
    throw_value_error(op, argument, "must be a contiguous array like a", shape_text(view));
  }
}

std::int64_t worker_bytes(const TensorView& a) {
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return CovarianceLogBackwardKernel<I>::scratch_bytes(static_cast<int>(a.shape[a.rank - 1]),
                                                         is_complex(a.dtype));
  });
  return static_cast<std::int64_t>((bytes + 63) / 64 * 64);
}

PairPlan kernel_plan(const TensorView& a, const MatrixBatch& batch) {
  return plan_log_gradients(a.shape[a.rank - 1], is_complex(a.dtype), batch.count);
}

std::size_t kernel_bytes(const PairPlan& plan) {
  Scratch scratch;
  scratch.take<double>(plan.workspace_doubles());
  return scratch.bytes();
}

// The CUDA kernels, on the device or in the emulator.
void launch(const CovarianceLogParams& params, const TensorView& a, const MatrixBatch& batch,
            const TensorView& status, const TensorView& grad, const TensorView& grad_a,
            const Workspace& workspace, Route route, std::uintptr_t stream) {
  const std::int64_t n = a.shape[a.rank - 1];
  if (n > most_pair_rows) {
    throw_value_error(op, "a", "the CUDA kernels cover p = 1 to " + std::to_string(most_pair_rows),
                      std::to_string(n));
  }
  CovarianceLogBackwardLaunch arguments;
  arguments.a = a.data;
  arguments.status = static_cast<const std::uint8_t*>(status.data);
  arguments.grad = grad.data;
  arguments.single = real_dtype(a.dtype) == DType::f32;
  arguments.batch = batch;
  arguments.row_stride = a.strides[a.rank - 2];
  arguments.col_stride = a.strides[a.rank - 1];
  arguments.n = static_cast<int>(n);
  arguments.hermitian = is_complex(a.dtype);
  arguments.loading = params.loading;
  arguments.plan = kernel_plan(a, batch);
  check_workspace(op, workspace, kernel_bytes(arguments.plan));
  Scratch scratch(workspace);
  arguments.workspace = scratch.take<double>(arguments.plan.workspace_doubles());
  arguments.grad_a = grad_a.data;
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::covariance_log_backward(arguments, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::covariance_log_backward(arguments, stream);
  }
}

}  // namespace

std::size_t covariance_log_backward_workspace(const CovarianceLogParams& params,
                                              const TensorView& a, int threads) {
  check_inputs(params, a);
  if (uses_kernels(a.device)) return kernel_bytes(kernel_plan(a, matrix_batch(a, a)));
  Scratch scratch;
  scratch.take<char>(worker_bytes(a) * resolve_threads(op, threads));
  return scratch.bytes();
}

void covariance_log_backward(const CovarianceLogParams& params, const TensorView& a,
                             const TensorView& status, const TensorView& grad,
                             const TensorView& grad_a, const Workspace& workspace,
                             const Execution& execution) {
  check_inputs(params, a);
  const MatrixBatch batch = matrix_batch(a, a);
  check_given(op, "status", status);
  if (status.dtype != DType::u8 || element_count(status) != batch.count || !is_contiguous(status)) {
    throw_value_error(op, "status", "must be uint8 with one element per matrix",
                      shape_text(status));
  }
  check_like("grad", grad, a);
  check_like("grad_a", grad_a, a);
  if (grad_a.read_only) throw_value_error(op, "grad_a", "must be writable", "a read-only array");
  const Route route = select_route(op, execution, a.device, true);
  if (route != Route::cpu) {
    launch(params, a, batch, status, grad, grad_a, workspace, route, execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, covariance_log_backward_workspace(params, a, threads));
  Scratch scratch(workspace);
  const std::int64_t room = worker_bytes(a);
  char* memory = scratch.take<char>(room * threads);

  dispatch_float(real_dtype(a.dtype), [&]<class T>() {
    dispatch_isa([&]<Isa I>() {
      using Kernel = CovarianceLogBackwardKernel<I>;
      const int lanes = Kernel::lanes();
      const int parts = is_complex(a.dtype) ? 2 : 1;
      CovarianceLogBackwardBlock<T> common{};
      common.n = static_cast<int>(a.shape[a.rank - 1]);
      common.complex = parts == 2;
      common.loading = params.loading;
      common.row_stride = parts * a.strides[a.rank - 2];
      common.col_stride = parts * a.strides[a.rank - 1];
      const std::int64_t size = static_cast<std::int64_t>(common.n) * common.n * parts;
      const std::int64_t packs = (batch.count + lanes - 1) / lanes;
      const std::int64_t per_task = matrix_packs_per_task(common.n);
      parallel_for(threads, (packs + per_task - 1) / per_task, [&](std::int64_t task, int worker) {
        CovarianceLogBackwardBlock<T> block = common;
        block.scratch = memory + worker * room;
        const std::int64_t end = std::min(packs, (task + 1) * per_task);
        for (std::int64_t pack = task * per_task; pack < end; ++pack) {
          const std::int64_t first = pack * lanes;
          block.count = static_cast<int>(std::min<std::int64_t>(lanes, batch.count - first));
          for (int k = 0; k < lanes; ++k) {
            const std::int64_t index = first + std::min(k, block.count - 1);
            block.a[k] = static_cast<const T*>(a.data) + parts * matrix_offsets(batch, index).a;
            block.grad[k] = static_cast<const T*>(grad.data) + index * size;
            block.status[k] = static_cast<const std::uint8_t*>(status.data)[index];
          }
          block.grad_a = static_cast<T*>(grad_a.data) + first * size;
          Kernel::run(block);
        }
      });
    });
  });
}

}  // namespace mahal

#include "mahal/cholesky.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/checks.hpp"
#include "core/dispatch.hpp"
#include "core/scratch.hpp"
#include "core/threads.hpp"
#include "ops/cholesky_cuda.hpp"
#include "ops/cholesky_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "cholesky";

void check_input(const TensorView& a) {
  check_given(op, "a", a);
  check_dtype(op, "a", a, {DType::f32, DType::f64, DType::c64, DType::c128});
  if (a.rank < 2 || a.shape[a.rank - 1] != a.shape[a.rank - 2] || a.shape[a.rank - 1] == 0) {
    throw_value_error(op, "a", "must have shape (..., n, n) with n > 0", shape_text(a));
  }
}

std::int64_t elements_per_entry(const TensorView& a) { return is_complex(a.dtype) ? 2 : 1; }

struct Batch {
  std::int64_t outer = 1;  // runs of matrices
  std::int64_t inner = 1;  // matrices per run, a fixed stride apart
};

Batch batch_of(const TensorView& a) {
  Batch batch;
  for (int axis = 0; axis + 3 < a.rank; ++axis) batch.outer *= a.shape[axis];
  if (a.rank >= 3) batch.inner = a.shape[a.rank - 3];
  return batch;
}

template <class T>
CholeskyBlock<T> block_of(const CholeskyParams& params, const TensorView& a) {
  CholeskyBlock<T> block{};
  block.n = static_cast<int>(a.shape[a.rank - 1]);
  block.hermitian = is_complex(a.dtype);
  const std::int64_t entry = elements_per_entry(a);
  block.matrix_stride = a.rank >= 3 ? entry * a.strides[a.rank - 3] : 0;
  block.row_stride = entry * a.strides[a.rank - 2];
  block.col_stride = entry * a.strides[a.rank - 1];
  block.tolerance = static_cast<T>(block.n) * std::numeric_limits<T>::epsilon();
  block.loading = static_cast<T>(params.loading);
  return block;
}

template <class T>
std::size_t worker_bytes(const CholeskyParams& params, const TensorView& a) {
  const std::size_t bytes = dispatch_isa(
      [&]<Isa I>() { return CholeskyKernel<I>::scratch_bytes(block_of<T>(params, a)); });
  return (bytes + 63) / 64 * 64;
}

// Larger results do not fit into the caches and are written past them.
constexpr std::int64_t streamed_bytes = 8 << 20;

// Keeps a task near 10^5 operations, so that small matrices are not one task each.
std::int64_t packs_per_task(int n) {
  return std::max<std::int64_t>(1, 32768 / (static_cast<std::int64_t>(n) * n));
}

template <class T>
bool lower_is_finite(const CholeskyBlock<T>& b, const T* a) {
  for (int i = 0; i < b.n; ++i)
    for (int j = 0; j <= i; ++j) {
      const T* entry = a + i * b.row_stride + j * b.col_stride;
      if (!std::isfinite(entry[0])) return false;
      // The diagonal is real by definition.
      if (b.hermitian && j < i && !std::isfinite(entry[1])) return false;
    }
  return true;
}

// Offset of run `run` of matrices.
std::int64_t run_offset(const TensorView& a, std::int64_t run) {
  std::int64_t offset = 0;
  for (int axis = a.rank - 4; axis >= 0; --axis) {
    offset += run % a.shape[axis] * a.strides[axis];
    run /= a.shape[axis];
  }
  return offset;
}

template <class T>
std::int64_t kernel_workspace(const TensorView& a) {
  return cholesky_kernel_workspace<T>(batch_of(a).inner, a.shape[a.rank - 1], is_complex(a.dtype));
}

std::size_t kernel_bytes(const TensorView& a) {
  return dispatch_float(a.dtype, [&]<class T>() {
    Scratch scratch;
    scratch.take<T>(kernel_workspace<T>(a));
    return scratch.bytes();
  });
}

// The CUDA kernels, on the device or in the emulator.
void launch(const CholeskyParams& params, const TensorView& a, const Batch& batch,
            const TensorView& factor, const TensorView& status, Route route,
            const Workspace& workspace, std::uintptr_t stream) {
  const std::int64_t n = a.shape[a.rank - 1];
  dispatch_float(a.dtype, [&]<class T>() {
    CholeskyLaunch<T> arguments;
    arguments.batch = batch.inner;
    arguments.n = static_cast<int>(n);
    arguments.hermitian = is_complex(a.dtype);
    arguments.batch_stride = a.rank >= 3 ? a.strides[a.rank - 3] : 0;
    arguments.row_stride = a.strides[a.rank - 2];
    arguments.col_stride = a.strides[a.rank - 1];
    arguments.loading = static_cast<T>(params.loading);
    Scratch scratch(workspace);
    arguments.workspace = scratch.take<T>(kernel_workspace<T>(a));
    for (std::int64_t run = 0; run < batch.outer; ++run) {
      arguments.a = static_cast<const T*>(a.data) + elements_per_entry(a) * run_offset(a, run);
      arguments.factor =
          static_cast<T*>(factor.data) + elements_per_entry(a) * run * batch.inner * n * n;
      arguments.status = static_cast<std::uint8_t*>(status.data) + run * batch.inner;
      if constexpr (built_with_cuda) {
        if (route == Route::cuda) cuda::cholesky(arguments, stream);
      }
      if constexpr (built_with_emulator) {
        if (route == Route::emulator) emulator::cholesky(arguments, stream);
      }
    }
  });
}

}  // namespace

std::size_t cholesky_workspace(const CholeskyParams& params, const TensorView& a, int threads) {
  check_input(a);
  if (uses_kernels(a.device)) return kernel_bytes(a);
  return dispatch_float(a.dtype, [&]<class T>() {
    Scratch scratch;
    scratch.take<char>(static_cast<std::int64_t>(worker_bytes<T>(params, a)) *
                       resolve_threads(op, threads));
    return scratch.bytes();
  });
}

void cholesky(const CholeskyParams& params, const TensorView& a, const TensorView& factor,
              const TensorView& status, const Workspace& workspace, const Execution& execution) {
  check_input(a);
  check_given(op, "factor", factor);
  if (!(params.loading >= 0) || !std::isfinite(params.loading)) {
    throw_value_error(op, "loading", "must be finite and not negative",
                      std::to_string(params.loading));
  }
  const Batch batch = batch_of(a);
  if (factor.dtype != a.dtype || element_count(factor) != element_count(a) ||
      !is_contiguous(factor) || factor.read_only) {
    throw_value_error(op, "factor", "must be a contiguous array like a", shape_text(factor));
  }
  if (status.dtype != DType::u8 || element_count(status) != batch.outer * batch.inner ||
      !is_contiguous(status)) {
    throw_value_error(op, "status", "must be uint8 with one element per matrix",
                      shape_text(status));
  }
  const Route route = select_route(op, execution, a.device, true);
  if (route != Route::cpu) {
    if (a.shape[a.rank - 1] > most_cholesky_rows) {
      throw_value_error(op, "a",
                        "the CUDA kernels cover n = 1 to " + std::to_string(most_cholesky_rows),
                        std::to_string(a.shape[a.rank - 1]));
    }
    check_workspace(op, workspace, kernel_bytes(a));
    launch(params, a, batch, factor, status, route, workspace, execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, cholesky_workspace(params, a, threads));
  Scratch scratch(workspace);

  dispatch_float(a.dtype, [&]<class T>() {
    const std::size_t room = worker_bytes<T>(params, a);
    char* memory = scratch.take<char>(static_cast<std::int64_t>(room) * threads);
    dispatch_isa([&]<Isa I>() {
      const int lanes = CholeskyKernel<I>::lanes(T{});
      const CholeskyBlock<T> common = block_of<T>(params, a);
      const std::int64_t size =
          static_cast<std::int64_t>(common.n) * common.n * elements_per_entry(a);
      const std::int64_t packs = (batch.inner + lanes - 1) / lanes;
      const std::int64_t per_task = packs_per_task(common.n);
      const std::int64_t tasks_per_run = (packs + per_task - 1) / per_task;
      parallel_for(threads, batch.outer * tasks_per_run, [&](std::int64_t task, int worker) {
        const std::int64_t run = task / tasks_per_run;
        const std::int64_t first_pack = task % tasks_per_run * per_task;
        for (std::int64_t pack = first_pack; pack < std::min(packs, first_pack + per_task);
             ++pack) {
          const std::int64_t first = pack * lanes;
          const std::int64_t matrix = run * batch.inner + first;
          CholeskyBlock<T> block = common;
          block.in = static_cast<const T*>(a.data) + elements_per_entry(a) * run_offset(a, run) +
                     first * common.matrix_stride;
          block.out = static_cast<T*>(factor.data) + matrix * size;
          block.stream =
              element_count(factor) * static_cast<std::int64_t>(sizeof(T)) > streamed_bytes;
          block.count = static_cast<int>(std::min<std::int64_t>(lanes, batch.inner - first));
          block.failed = static_cast<std::uint8_t*>(status.data) + matrix;
          block.scratch = memory + worker * static_cast<std::int64_t>(room);
          CholeskyKernel<I>::factor(block);
          for (int k = 0; k < block.count; ++k) {
            if (!block.failed[k]) continue;
            const bool finite = lower_is_finite(common, block.in + k * common.matrix_stride);
            block.failed[k] = finite ? status_singular : status_nonfinite;
            std::fill_n(block.out + k * size, size, std::numeric_limits<T>::quiet_NaN());
          }
        }
      });
    });
  });
}

}  // namespace mahal

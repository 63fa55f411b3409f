#include "mahal/cholesky_backward.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/background.hpp"
#include "core/checks.hpp"
#include "core/device_plan.hpp"
#include "core/dispatch.hpp"
#include "core/matrix_batch.hpp"
#include "core/real_form.hpp"
#include "core/scratch.hpp"
#include "core/threads.hpp"
#include "ops/cholesky_backward_cuda.hpp"
#include "ops/cholesky_backward_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "cholesky_backward";

// Larger matrices are worked on one by one, in panels, since a pack of them leaves the caches.
constexpr std::int64_t largest_in_lanes = 48;

void check_factor(const TensorView& factor) {
  check_field(op, "factor", factor);
  if (factor.rank < 2 || factor.shape[factor.rank - 1] != factor.shape[factor.rank - 2] ||
      factor.shape[factor.rank - 1] == 0) {
    throw_value_error(op, "factor", "must have shape (..., n, n) with n > 0", shape_text(factor));
  }
}

// Memory of one worker for a matrix of its own.
struct Single {
  FactorGradient gradient;
  double* lower;
  double* inverse_diagonal;
};

Single plan_single(Scratch& scratch, const TensorView& factor) {
  Single s{};
  FactorGradient& g = s.gradient;
  g.n = real_bands(factor);
  g.padded = padded_bands(g.n);
  const std::int64_t size = static_cast<std::int64_t>(g.padded) * g.padded;
  g.lower = s.lower = scratch.take<double>(size);
  g.inverse_diagonal = s.inverse_diagonal = scratch.take<double>(g.padded);
  g.matrix = scratch.take<double>(size);
  g.work = scratch.take<double>(size);
  g.scratch =
      scratch.take<char>(static_cast<std::int64_t>(factor_gradient_scratch_bytes(g.padded)));
  return s;
}

bool fits_lanes(const TensorView& factor) { return real_bands(factor) <= largest_in_lanes; }

std::int64_t worker_bytes(const TensorView& factor) {
  if (!fits_lanes(factor)) {
    Scratch scratch;
    plan_single(scratch, factor);
    return static_cast<std::int64_t>(scratch.bytes());
  }
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return CholeskyBackwardKernel<I>::scratch_bytes(static_cast<int>(factor.shape[factor.rank - 1]),
                                                    is_complex(factor.dtype));
  });
  return static_cast<std::int64_t>((bytes + 63) / 64 * 64);
}

template <class T>
void pull_packs(const CholeskyParams& params, const TensorView& factor, const TensorView& grad,
                const TensorView& grad_a, char* memory, std::int64_t room, int threads) {
  const MatrixBatch batch = matrix_batch(factor, grad);
  dispatch_isa([&]<Isa I>() {
    const int lanes = CholeskyBackwardKernel<I>::lanes();
    const int parts = is_complex(factor.dtype) ? 2 : 1;
    CholeskyBackwardBlock<T> common{};
    common.n = static_cast<int>(factor.shape[factor.rank - 1]);
    common.complex = parts == 2;
    common.loading = params.loading;
    common.factor_row = parts * factor.strides[factor.rank - 2];
    common.factor_col = parts * factor.strides[factor.rank - 1];
    common.grad_row = parts * grad.strides[grad.rank - 2];
    common.grad_col = parts * grad.strides[grad.rank - 1];
    const std::int64_t size = static_cast<std::int64_t>(common.n) * common.n * parts;
    const std::int64_t packs = (batch.count + lanes - 1) / lanes;
    const std::int64_t per_task = matrix_packs_per_task(common.n);
    parallel_for(threads, (packs + per_task - 1) / per_task, [&](std::int64_t task, int worker) {
      CholeskyBackwardBlock<T> block = common;
      block.scratch = memory + worker * room;
      const std::int64_t end = std::min(packs, (task + 1) * per_task);
      for (std::int64_t pack = task * per_task; pack < end; ++pack) {
        const std::int64_t first = pack * lanes;
        block.count = static_cast<int>(std::min<std::int64_t>(lanes, batch.count - first));
        for (int k = 0; k < lanes; ++k) {
          const auto at = matrix_offsets(batch, first + std::min(k, block.count - 1));
          block.factor[k] = static_cast<const T*>(factor.data) + parts * at.a;
          block.grad[k] = static_cast<const T*>(grad.data) + parts * at.b;
        }
        block.out = static_cast<T*>(grad_a.data) + first * size;
        CholeskyBackwardKernel<I>::run(block);
      }
    });
  });
}

template <class T>
void pull_single(const CholeskyParams& params, const TensorView& factor, const TensorView& grad,
                 const TensorView& grad_a, char* memory, std::int64_t room, int threads) {
  const MatrixBatch batch = matrix_batch(factor, grad);
  const int n = static_cast<int>(factor.shape[factor.rank - 1]);
  const int parts = is_complex(factor.dtype) ? 2 : 1;
  parallel_for(threads, batch.count, [&](std::int64_t index, int worker) {
    Scratch scratch({memory + worker * room, static_cast<std::size_t>(room)});
    const Single s = plan_single(scratch, factor);
    const FactorGradient& g = s.gradient;
    const auto at = matrix_offsets(batch, index);
    const std::int64_t size = static_cast<std::int64_t>(g.padded) * g.padded;
    std::fill_n(s.lower, size, 0.0);
    std::fill_n(g.matrix, size, 0.0);
    const auto entry = [&](const TensorView& view, std::int64_t offset, int i, int j) {
      const T* data = static_cast<const T*>(view.data);
      const std::int64_t where =
          offset + i * view.strides[view.rank - 2] + j * view.strides[view.rank - 1];
      return RealForm{static_cast<double>(data[parts * where]),
                      parts == 2 && i != j ? static_cast<double>(data[2 * where + 1]) : 0.0};
    };
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        const RealForm l = entry(factor, at.a, i, j);
        const RealForm d = entry(grad, at.b, i, j);
        put_real_form(s.lower, g.padded, parts, i, j, l, true);
        // The real form holds every number twice.
        put_real_form(g.matrix, g.padded, parts, i, j, {d.real / parts, d.imaginary / parts}, true);
      }
    }
    for (int i = 0; i < g.n; ++i) s.inverse_diagonal[i] = 1 / s.lower[i * (g.padded + 1LL)];
    dispatch_isa([&]<Isa I>() { CholeskyBackwardKernel<I>::one(g); });
    double trace = 0;
    for (int i = 0; i < g.n; ++i) trace += g.matrix[i * (g.padded + 1LL)];
    const double extra = params.loading == 0 ? 0 : params.loading / n * trace;
    T* out = static_cast<T*>(grad_a.data) + index * n * n * parts;
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) {
        const RealForm d = from_real_form(g.matrix, g.padded, parts, i, j);
        T* to = out + (static_cast<std::int64_t>(i) * n + j) * parts;
        to[0] = static_cast<T>(d.real + (i == j ? extra : 0.0));
        if (parts == 2) to[1] = static_cast<T>(d.imaginary);
      }
    }
  });
}

double* plan_kernel(Scratch& scratch, const TensorView& factor) {
  const MatrixBatch batch = matrix_batch(factor, factor);
  return scratch.take<double>(
      pull_room(factor.shape[factor.rank - 1], is_complex(factor.dtype), batch.count));
}

// The CUDA kernel, on the device or in the emulator.
void launch(const CholeskyParams& params, const TensorView& factor, const TensorView& grad,
            const TensorView& grad_a, Route route, const Workspace& workspace,
            std::uintptr_t stream) {
  Scratch scratch(workspace);
  CholeskyBackwardLaunch arguments;
  arguments.factor = factor.data;
  arguments.grad = grad.data;
  arguments.single = real_dtype(factor.dtype) == DType::f32;
  arguments.hermitian = is_complex(factor.dtype);
  arguments.batch = matrix_batch(factor, grad);
  arguments.factor_row = factor.strides[factor.rank - 2];
  arguments.factor_col = factor.strides[factor.rank - 1];
  arguments.grad_row = grad.strides[grad.rank - 2];
  arguments.grad_col = grad.strides[grad.rank - 1];
  arguments.n = static_cast<int>(factor.shape[factor.rank - 1]);
  arguments.loading = params.loading;
  arguments.out = grad_a.data;
  arguments.workspace = plan_kernel(scratch, factor);
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::cholesky_backward(arguments, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::cholesky_backward(arguments, stream);
  }
}

}  // namespace

std::size_t cholesky_backward_workspace(const CholeskyParams&, const TensorView& factor,
                                        int threads) {
  check_factor(factor);
  Scratch scratch;
  if (runs_on_device(factor.device)) {
    plan_kernel(scratch, factor);
    return scratch.bytes();
  }
  scratch.take<char>(worker_bytes(factor) * resolve_threads(op, threads));
  return scratch.bytes();
}

void cholesky_backward(const CholeskyParams& params, const TensorView& factor,
                       const TensorView& grad, const TensorView& grad_a, const Workspace& workspace,
                       const Execution& execution) {
  check_factor(factor);
  check_given(op, "grad", grad);
  check_same_dtype(op, "grad", grad, "factor", factor);
  check_same_device(op, "grad", grad, "factor", factor);
  check_given(op, "grad_a", grad_a);
  for (const auto& [name, view] : {std::pair{"grad", grad}, std::pair{"grad_a", grad_a}}) {
    bool same = view.rank == factor.rank;
    for (int axis = 0; same && axis < factor.rank; ++axis) {
      same = view.shape[axis] == factor.shape[axis];
    }
    if (!same) throw_value_error(op, name, "must have the shape of factor", shape_text(view));
  }
  check_same_dtype(op, "grad_a", grad_a, "factor", factor);
  if (!is_contiguous(grad_a) || grad_a.read_only) {
    throw_value_error(op, "grad_a", "must be contiguous and writable", "one that is not");
  }
  if (!(params.loading >= 0) || !std::isfinite(params.loading)) {
    throw_value_error(op, "loading", "must be finite and not negative",
                      std::to_string(params.loading));
  }
  const Route route = select_route(op, execution, factor.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, cholesky_backward_workspace(params, factor, threads));
  if (element_count(factor) == 0) return;
  if (route != Route::cpu) {
    launch(params, factor, grad, grad_a, route, workspace, execution.stream);
    return;
  }
  Scratch scratch(workspace);
  const std::int64_t room = worker_bytes(factor);
  char* memory = scratch.take<char>(room * threads);
  dispatch_float(factor.dtype, [&]<class T>() {
    if (fits_lanes(factor)) {
      pull_packs<T>(params, factor, grad, grad_a, memory, room, threads);
    } else {
      pull_single<T>(params, factor, grad, grad_a, memory, room, threads);
    }
  });
}

}  // namespace mahal

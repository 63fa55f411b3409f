#include "mahal/structural_similarity_backward.hpp"

#include <algorithm>

#include "core/dispatch.hpp"
#include "core/similarity.hpp"
#include "core/threads.hpp"
#include "ops/structural_similarity_backward_cuda.hpp"
#include "ops/structural_similarity_backward_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "structural_similarity_backward";

struct Plan {
  SimilarityTables tables;
  double *row_adjoint, *col_adjoint;
  std::int64_t adjoint_stride;
  int tile_rows, tile_cols;
  char* room;
  std::int64_t worker_bytes;
};

Plan make_plan(Scratch& scratch, const StructuralSimilarityParams& params, const TensorView& image,
               int threads) {
  Plan p{};
  const int rows = static_cast<int>(image.shape[0]);
  const int cols = static_cast<int>(image.shape[1]);
  p.tables = plan_similarity(scratch, params, rows, cols);
  p.row_adjoint = scratch.take<double>(static_cast<std::int64_t>(rows) * params.window);
  p.adjoint_stride = cols + similarity_padding;
  p.col_adjoint = scratch.take<double>(p.adjoint_stride * params.window);
  p.tile_rows = std::min(rows, most_similarity_rows);
  p.tile_cols = std::min(cols, most_similarity_cols);
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return StructuralSimilarityBackwardKernel<I>::scratch_bytes(params.window, p.tile_rows,
                                                                p.tile_cols);
  });
  p.worker_bytes = static_cast<std::int64_t>((bytes + 63) / 64 * 64);
  p.room = scratch.take<char>(p.worker_bytes * threads);
  return p;
}

// Element (q, t), at those strides: the weights that the window on q - window / 2 + t gives to
// position q, more than one where the image is mirrored.
void fill_adjoint(const StructuralSimilarityParams& params, const double* weights,
                  const std::int32_t* index, int begin, int end, int n, double* adjoint,
                  std::int64_t position, std::int64_t step) {
  const int half = params.window / 2;
  for (int q = 0; q < n; ++q) {
    for (int t = 0; t < params.window; ++t) adjoint[q * position + t * step] = 0;
  }
  for (int centre = begin; centre < end; ++centre) {
    for (int t = -half; t <= half; ++t) {
      const int at = centre + t;
      if (params.border == MapBorder::clip && (at < 0 || at >= n)) continue;
      const int q = index[at];
      adjoint[q * position + (centre - q + half) * step] += weights[t + half];
    }
  }
}

void check_gradient(const char* argument, const TensorView& view, const TensorView& image) {
  check_output(op, argument, view, image.dtype, {image.shape[0], image.shape[1], image.shape[2]});
}

template <class T>
StructuralSimilarityBackwardLaunch<T> plan_kernels(Scratch& scratch,
                                                   const StructuralSimilarityParams& params,
                                                   const TensorView& first,
                                                   const TensorView& second) {
  StructuralSimilarityBackwardLaunch<T> p;
  p.images = similarity_launch<T>(scratch, params, first, second);
  p.derivatives = scratch.take<double>(similarity_factors * element_count(first));
  return p;
}

std::size_t kernel_bytes(const StructuralSimilarityParams& params, const TensorView& image) {
  Scratch scratch;
  plan_kernels<float>(scratch, params, image, image);  // the same for both kinds of floats
  return scratch.bytes();
}

// The CUDA kernels, on the device or in the emulator.
void launch(const StructuralSimilarityParams& params, const TensorView& first,
            const TensorView& second, const TensorView& grad, const TensorView& grad_first,
            const TensorView& grad_second, const Workspace& workspace, Route route,
            std::uintptr_t stream) {
  check_kernel_window(op, params);
  check_workspace(op, workspace, kernel_bytes(params, first));
  dispatch_float(first.dtype, [&]<class T>() {
    Scratch scratch(workspace);
    auto p = plan_kernels<T>(scratch, params, first, second);
    p.grad = static_cast<const T*>(grad.data);
    p.gradients[0] = static_cast<T*>(grad_first.data);
    p.gradients[1] = static_cast<T*>(grad_second.data);
    if constexpr (built_with_cuda) {
      if (route == Route::cuda) cuda::structural_similarity_backward(p, stream);
    }
    if constexpr (built_with_emulator) {
      if (route == Route::emulator) emulator::structural_similarity_backward(p, stream);
    }
  });
}

}  // namespace

std::size_t structural_similarity_backward_workspace(const StructuralSimilarityParams& params,
                                                     const TensorView& first,
                                                     const TensorView& second, int threads) {
  check_similarity(op, params, first, second);
  if (uses_kernels(first.device)) return kernel_bytes(params, first);
  Scratch scratch;
  make_plan(scratch, params, first, resolve_threads(op, threads));
  return scratch.bytes();
}

void structural_similarity_backward(const StructuralSimilarityParams& params,
                                    const TensorView& first, const TensorView& second,
                                    const TensorView& grad, const TensorView& grad_first,
                                    const TensorView& grad_second, const Workspace& workspace,
                                    const Execution& execution) {
  check_similarity(op, params, first, second);
  const int rows = static_cast<int>(first.shape[0]);
  const int cols = static_cast<int>(first.shape[1]);
  const std::int64_t channels = first.shape[2];
  check_given(op, "grad", grad);
  check_same_dtype(op, "grad", grad, "first", first);
  check_shape(op, "grad", grad, {rows, cols, channels});
  if (!is_contiguous(grad)) {
    throw_value_error(op, "grad", "must be contiguous in C order", "other strides");
  }
  if (is_given(grad_first)) check_gradient("grad_first", grad_first, first);
  if (is_given(grad_second)) check_gradient("grad_second", grad_second, first);
  const Route route = select_route(op, execution, first.device, true);
  if (route != Route::cpu) {
    launch(params, first, second, grad, grad_first, grad_second, workspace, route,
           execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace,
                  structural_similarity_backward_workspace(params, first, second, threads));
  Scratch scratch(workspace);
  const Plan p = make_plan(scratch, params, first, threads);
  const WindowTables& t = p.tables.windows;
  fill_similarity(p.tables, params, rows, cols);
  fill_adjoint(params, p.tables.weights, t.rows.index, t.rows_begin, t.rows_end, rows,
               p.row_adjoint, params.window, 1);
  fill_adjoint(params, p.tables.weights, t.cols.index, t.cols_begin, t.cols_end, cols,
               p.col_adjoint, 1, p.adjoint_stride);
  for (int k = 0; k < params.window; ++k) {
    std::fill_n(p.col_adjoint + k * p.adjoint_stride + cols, similarity_padding, 0.0);
  }
  const std::int64_t strips = (rows + p.tile_rows - 1) / p.tile_rows;
  const std::int64_t columns = (cols + p.tile_cols - 1) / p.tile_cols;

  dispatch_float(first.dtype, [&]<class T>() {
    StructuralSimilarityBackwardBlock<T> common{};
    common.images = similarity_block<T>(p.tables, params, first, second);
    common.centre_rows_begin = t.rows_begin;
    common.centre_rows_end = t.rows_end;
    common.centre_cols_begin = t.cols_begin;
    common.centre_cols_end = t.cols_end;
    common.shift = params.border == MapBorder::shift;
    common.row_adjoint = p.row_adjoint;
    common.col_adjoint = p.col_adjoint;
    common.adjoint_stride = p.adjoint_stride;
    const TensorView* const outputs[2] = {&grad_first, &grad_second};
    dispatch_isa([&]<Isa I>() {
      parallel_for(threads, strips * columns, [&](std::int64_t task, int worker) {
        StructuralSimilarityBackwardBlock<T> block = common;
        block.row_begin = static_cast<int>(task / columns) * p.tile_rows;
        block.row_end = std::min(rows, block.row_begin + p.tile_rows);
        block.col_begin = static_cast<int>(task % columns) * p.tile_cols;
        block.col_end = std::min(cols, block.col_begin + p.tile_cols);
        block.scratch = reinterpret_cast<double*>(p.room + worker * p.worker_bytes);
        for (std::int64_t j = 0; j < channels; ++j) {
          block.grad = static_cast<const T*>(grad.data) + j;
          for (int k = 0; k < 2; ++k) {
            const PixelList<T>& all = common.images.images[k];
            block.images.images[k].data = all.data + j * all.band_stride;
            if (is_given(*outputs[k])) {
              block.gradients[k] = static_cast<T*>(outputs[k]->data) + j;
            }
          }
          StructuralSimilarityBackwardKernel<I>::run(block);
        }
      });
    });
  });
}

}  // namespace mahal

#include "mahal/structural_similarity.hpp"

#include <algorithm>
#include <limits>

#include "core/dispatch.hpp"
#include "core/map_edges.hpp"
#include "core/similarity.hpp"
#include "core/threads.hpp"
#include "core/windows.hpp"
#include "ops/structural_similarity_cuda.hpp"
#include "ops/structural_similarity_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "structural_similarity";

struct Plan {
  SimilarityTables tables;
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
  p.tile_rows = std::min(rows, most_similarity_rows);
  p.tile_cols = std::min(cols, most_similarity_cols);
  const std::size_t bytes = dispatch_isa([&]<Isa I>() {
    return StructuralSimilarityKernel<I>::scratch_bytes(params.window, p.tile_rows, p.tile_cols);
  });
  p.worker_bytes = static_cast<std::int64_t>((bytes + 63) / 64 * 64);
  p.room = scratch.take<char>(p.worker_bytes * threads);
  return p;
}

std::size_t kernel_bytes(const StructuralSimilarityParams& params, const TensorView& image) {
  Scratch scratch;
  similarity_launch<float>(scratch, params, image, image);  // the same for both kinds of floats
  return scratch.bytes();
}

// The CUDA kernels, on the device or in the emulator.
void launch(const StructuralSimilarityParams& params, const TensorView& first,
            const TensorView& second, const TensorView& score, const Workspace& workspace,
            Route route, std::uintptr_t stream) {
  check_kernel_window(op, params);
  check_workspace(op, workspace, kernel_bytes(params, first));
  dispatch_float(first.dtype, [&]<class T>() {
    Scratch scratch(workspace);
    auto p = similarity_launch<T>(scratch, params, first, second);
    p.score = static_cast<T*>(score.data);
    if constexpr (built_with_cuda) {
      if (route == Route::cuda) cuda::structural_similarity(p, stream);
    }
    if constexpr (built_with_emulator) {
      if (route == Route::emulator) emulator::structural_similarity(p, stream);
    }
  });
}

}  // namespace

std::size_t structural_similarity_workspace(const StructuralSimilarityParams& params,
                                            const TensorView& first, const TensorView& second,
                                            int threads) {
  check_similarity(op, params, first, second);
  if (uses_kernels(first.device)) return kernel_bytes(params, first);
  Scratch scratch;
  make_plan(scratch, params, first, resolve_threads(op, threads));
  return scratch.bytes();
}

void structural_similarity(const StructuralSimilarityParams& params, const TensorView& first,
                           const TensorView& second, const TensorView& score,
                           const Workspace& workspace, const Execution& execution) {
  check_similarity(op, params, first, second);
  const int rows = static_cast<int>(first.shape[0]);
  const int cols = static_cast<int>(first.shape[1]);
  const std::int64_t channels = first.shape[2];
  check_output(op, "score", score, first.dtype, {rows, cols, channels});
  const Route route = select_route(op, execution, first.device, true);
  if (route != Route::cpu) {
    launch(params, first, second, score, workspace, route, execution.stream);
    return;
  }
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, structural_similarity_workspace(params, first, second, threads));
  Scratch scratch(workspace);
  const Plan p = make_plan(scratch, params, first, threads);
  const WindowTables& t = p.tables.windows;
  fill_similarity(p.tables, params, rows, cols);
  const std::int64_t strips = (t.rows_end - t.rows_begin + p.tile_rows - 1) / p.tile_rows;
  const std::int64_t columns = (t.cols_end - t.cols_begin + p.tile_cols - 1) / p.tile_cols;

  dispatch_float(first.dtype, [&]<class T>() {
    const auto common = similarity_block<T>(p.tables, params, first, second);
    T* const out = static_cast<T*>(score.data);
    dispatch_isa([&]<Isa I>() {
      parallel_for(threads, strips * columns, [&](std::int64_t task, int worker) {
        StructuralSimilarityBlock<T> block = common;
        block.row_begin = t.rows_begin + static_cast<int>(task / columns) * p.tile_rows;
        block.row_end = std::min(t.rows_end, block.row_begin + p.tile_rows);
        block.col_begin = t.cols_begin + static_cast<int>(task % columns) * p.tile_cols;
        block.col_end = std::min(t.cols_end, block.col_begin + p.tile_cols);
        block.scratch = reinterpret_cast<double*>(p.room + worker * p.worker_bytes);
        for (std::int64_t j = 0; j < channels; ++j) {
          for (int k = 0; k < 2; ++k) {
            block.images[k].data = common.images[k].data + j * common.images[k].band_stride;
          }
          block.score = out + j;
          StructuralSimilarityKernel<I>::run(block);
        }
      });
    });
    fill_edges(t, params.border == MapBorder::shift, rows, cols, static_cast<int>(channels), out,
               std::numeric_limits<T>::quiet_NaN());
  });
}

}  // namespace mahal

#include "mahal/grf.hpp"

#include <algorithm>
#include <limits>
#include <string>

#include "core/checks.hpp"
#include "core/device_plan.hpp"
#include "core/dispatch.hpp"
#include "core/hartley_plan.hpp"
#include "core/matrix_batch.hpp"
#include "core/scratch.hpp"
#include "core/threads.hpp"
#include "ops/grf_cuda.hpp"
#include "ops/grf_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "grf";
constexpr int max_side = 1 << 24;

void check_field_view(const TensorView& field) {
  check_given(op, "field", field);
  check_dtype(op, "field", field, {DType::f32, DType::f64});
  const bool fits = field.rank >= 2 && field.shape[field.rank - 1] > 0 &&
                    field.shape[field.rank - 2] > 0 && field.shape[field.rank - 1] <= max_side &&
                    field.shape[field.rank - 2] <= max_side;
  if (!fits) {
    throw_value_error(op, "field", "must have shape (..., rows, cols) with 1 to 2^24 of each",
                      shape_text(field));
  }
}

int rows_of(const TensorView& field) { return static_cast<int>(field.shape[field.rank - 2]); }
int cols_of(const TensorView& field) { return static_cast<int>(field.shape[field.rank - 1]); }

std::int64_t plane_count(const TensorView& field) {
  std::int64_t count = 1;
  for (int axis = 0; axis + 2 < field.rank; ++axis) count *= field.shape[axis];
  return count;
}

void check_like_field(const char* argument, const TensorView& view, const TensorView& field) {
  check_same_dtype(op, argument, view, "field", field);
  check_same_device(op, argument, view, "field", field);
  bool same = view.rank == field.rank;
  for (int axis = 0; same && axis < field.rank; ++axis) {
    same = view.shape[axis] == field.shape[axis];
  }
  if (!same) {
    throw_value_error(op, argument, "must have the shape of field " + shape_text(field),
                      shape_text(view));
  }
}

void check_dense(const char* argument, const TensorView& view) {
  if (!is_contiguous(view)) {
    throw_value_error(op, argument, "must be contiguous in C order", "other strides");
  }
}

void check_table(const char* argument, const TensorView& table, const TensorView& field) {
  check_same_dtype(op, argument, table, "field", field);
  check_same_device(op, argument, table, "field", field);
  check_shape(op, argument, table, {rows_of(field) / 2 + 1, cols_of(field) / 2 + 1});
  check_dense(argument, table);
}

void check_per_plane(const char* argument, const TensorView& view, const TensorView& field) {
  check_same_dtype(op, argument, view, "field", field);
  check_same_device(op, argument, view, "field", field);
  if (element_count(view) != plane_count(field)) {
    throw_value_error(op, argument, "must have one element per plane", shape_text(view));
  }
  check_dense(argument, view);
}

void check_writable(const char* argument, const TensorView& view) {
  if (view.read_only) throw_value_error(op, argument, "must be writable", "a read-only array");
}

template <class T>
struct Plan {
  HartleyPlan<T> rows, cols;
  std::int32_t *rows_first, *cols_first;
  T *rows_twiddles, *cols_twiddles;
  T *precision, *slope;
  std::int64_t table;  // elements of each
  T* scratch;
  std::int64_t scratch_elements;
};

template <class T>
Plan<T> make_plan(Scratch& scratch, const TensorView& field, bool sloped, int threads) {
  Plan<T> plan{};
  plan.rows = hartley_factors<T>(rows_of(field));
  plan.cols = hartley_factors<T>(cols_of(field));
  GrfBlock<T> block{};
  block.rows = plan.rows;
  block.cols = plan.cols;
  const auto [lanes, elements] = dispatch_isa([&]<Isa I>() {
    return std::pair(GrfKernel<I>::lanes(T{}), GrfKernel<I>::scratch_elements(block));
  });
  plan.rows_first = scratch.take<std::int32_t>(plan.rows.blocks);
  plan.cols_first = scratch.take<std::int32_t>(plan.cols.blocks);
  plan.rows_twiddles = scratch.take<T>(hartley_twiddles(plan.rows));
  plan.cols_twiddles = scratch.take<T>(hartley_twiddles(plan.cols));
  const std::int64_t groups = (rows_of(field) + lanes - 1) / lanes;
  plan.table = groups * lanes * (cols_of(field) / 2 + 1);
  plan.precision = scratch.take<T>(plan.table);
  plan.slope = sloped ? scratch.take<T>(plan.table) : nullptr;
  plan.scratch_elements = (elements + 15) / 16 * 16;
  plan.scratch = scratch.take<T>(plan.scratch_elements * threads);
  return plan;
}

// A quarter spectrum in groups of `lanes` row frequencies, of which those behind the last are zero.
template <class T>
void spread(const TensorView& quarter, const TensorView& field, int lanes, bool centered, T* out) {
  const auto* in = static_cast<const T*>(quarter.data);
  const int rows = rows_of(field);
  const int half = cols_of(field) / 2 + 1;
  for (int group = 0; group < rows; group += lanes) {
    for (int f = 0; f < half; ++f) {
      for (int l = 0; l < lanes; ++l) {
        const int row = group + l;
        const int even = std::min(row, rows - row);
        *out++ = row < rows ? in[static_cast<std::int64_t>(even) * half + f] : T(0);
      }
    }
  }
  if (centered) out[-static_cast<std::int64_t>((rows + lanes - 1) / lanes) * lanes * half] = T(0);
}

bool is_small(const TensorView& field) {
  return std::max(rows_of(field), cols_of(field)) <= grf_small;
}

// Lines per block along an axis of a larger plane.
template <class T>
int lines_of(const HartleyPlan<T>& plan, bool on_device) {
  int lines = 0;
  if constexpr (built_with_cuda) {
    if (on_device) lines = cuda::grf_lines(plan);
  }
  if constexpr (built_with_emulator) {
    if (!on_device) lines = emulator::grf_lines(plan);
  }
  if (lines == 0) {
    throw_value_error(op, "field", "must have sides of which the CUDA kernels hold a line on chip",
                      std::to_string(plan.n));
  }
  return lines;
}

// The launch without the pointers of the caller.
template <class T>
GrfLaunch<T> plan_launch(Scratch& scratch, const TensorView& field,
                         const TensorView& field_gradient) {
  GrfLaunch<T> launch;
  launch.rows = hartley_factors<T>(rows_of(field), 1);
  launch.cols = hartley_factors<T>(cols_of(field), 1);
  if (is_small(field)) return launch;
  const bool on_device = field.device.kind == DeviceKind::cuda;
  launch.row_lines = lines_of(launch.cols, on_device);
  launch.col_lines = lines_of(launch.rows, on_device);
  const std::int64_t planes = plane_count(field);
  launch.means = scratch.take<T>(planes);
  launch.sums = scratch.take<double>(2 * planes * grf_tiles(launch));
  launch.excesses = scratch.take<double>(2 * planes * grf_chunks(launch));
  launch.between = is_given(field_gradient) ? static_cast<T*>(field_gradient.data)
                                            : scratch.take<T>(element_count(field));
  return launch;
}

// The CUDA kernels, on the device or in the emulator.
template <class T>
void launch(const GrfParams& params, const TensorView& field, const TensorView& log_variance,
            const TensorView& precision, const TensorView& slope, const TensorView& weight,
            const GrfOutputs& outputs, Scratch& memory, Route route, std::uintptr_t stream) {
  GrfLaunch<T> arguments = plan_launch<T>(memory, field, outputs.field_gradient);
  const auto pointer = [](const TensorView& view) { return static_cast<T*>(view.data); };
  arguments.batch = matrix_batch(field, is_given(log_variance) ? log_variance : field);
  if (arguments.batch.count == 0) return;
  const std::int64_t largest =
      is_small(field) ? 1
                      : std::max({std::int64_t{rows_of(field)}, std::int64_t{cols_of(field)},
                                  grf_chunks(arguments)});
  if (arguments.batch.count > std::numeric_limits<std::int32_t>::max() / largest) {
    throw_value_error(op, "field", "has more planes than one launch of the CUDA kernels takes",
                      shape_text(field));
  }
  arguments.field = pointer(field);
  arguments.row_stride = field.strides[field.rank - 2];
  arguments.col_stride = field.strides[field.rank - 1];
  if (is_given(log_variance)) {
    arguments.log_variance = pointer(log_variance);
    arguments.log_row_stride = log_variance.strides[field.rank - 2];
    arguments.log_col_stride = log_variance.strides[field.rank - 1];
  }
  arguments.centered = params.centered;
  arguments.shift = params.shift;
  arguments.precision = pointer(precision);
  arguments.slope = pointer(slope);
  arguments.weight = pointer(weight);
  std::copy_n(params.value, 3, arguments.value_terms);
  std::copy_n(params.range_slope, 3, arguments.range_terms);
  std::copy_n(params.variance_slope, 3, arguments.variance_terms);
  arguments.field_scale = params.field_scale;
  arguments.value = pointer(outputs.value);
  arguments.range_slope = pointer(outputs.range_slope);
  arguments.variance_slope = pointer(outputs.variance_slope);
  arguments.field_gradient = pointer(outputs.field_gradient);
  arguments.log_variance_gradient = pointer(outputs.log_variance_gradient);
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::grf(arguments, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::grf(arguments, stream);
  }
}

double affine(const double (&terms)[3], double first, double second) {
  return terms[0] + terms[1] * first + terms[2] * second;
}

// Larger gradients do not fit into the caches and are written past them.
constexpr std::int64_t streamed_bytes = 8 << 20;

// Keeps a task near 10^5 operations.
std::int64_t planes_per_task(const TensorView& field) {
  const std::int64_t pixels = static_cast<std::int64_t>(rows_of(field)) * cols_of(field);
  return std::max<std::int64_t>(1, 4096 / pixels);
}

}  // namespace

std::size_t grf_workspace(const TensorView& field, const TensorView& slope,
                          const TensorView& field_gradient, int threads) {
  check_field_view(field);
  return dispatch_float(field.dtype, [&]<class T>() {
    Scratch scratch;
    if (runs_on_device(field.device)) {
      plan_launch<T>(scratch, field, field_gradient);
      return scratch.bytes();
    }
    make_plan<T>(scratch, field, is_given(slope), resolve_threads(op, threads));
    return scratch.bytes();
  });
}

void grf(const GrfParams& params, const TensorView& field, const TensorView& log_variance,
         const TensorView& precision, const TensorView& slope, const TensorView& weight,
         const GrfOutputs& outputs, const Workspace& workspace, const Execution& execution) {
  check_field_view(field);
  if (is_given(log_variance)) check_like_field("log_variance", log_variance, field);
  check_given(op, "precision", precision);
  check_table("precision", precision, field);
  if (is_given(slope)) check_table("slope", slope, field);
  if (is_given(weight)) check_per_plane("weight", weight, field);
  const auto check_sums = [&](const char* name, const TensorView& view) {
    if (!is_given(view)) return;
    check_per_plane(name, view, field);
    check_writable(name, view);
  };
  check_sums("value", outputs.value);
  check_sums("range_slope", outputs.range_slope);
  check_sums("variance_slope", outputs.variance_slope);
  const auto check_gradient = [&](const char* name, const TensorView& view) {
    if (!is_given(view)) return;
    check_like_field(name, view, field);
    check_dense(name, view);
    check_writable(name, view);
  };
  check_gradient("field_gradient", outputs.field_gradient);
  check_gradient("log_variance_gradient", outputs.log_variance_gradient);
  if (is_given(outputs.range_slope) && !is_given(slope)) {
    throw_type_error(op, "slope", "must be given with range_slope", "None");
  }
  if (is_given(outputs.log_variance_gradient) && !is_given(log_variance)) {
    throw_type_error(op, "log_variance", "must be given with its gradient", "None");
  }
  const Route route = select_route(op, execution, field.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, grf_workspace(field, slope, outputs.field_gradient, threads));

  Scratch memory(workspace);
  if (route != Route::cpu) {
    dispatch_float(field.dtype, [&]<class T>() {
      launch<T>(params, field, log_variance, precision, slope, weight, outputs, memory, route,
                execution.stream);
    });
    return;
  }
  dispatch_float(field.dtype, [&]<class T>() {
    Plan<T> plan = make_plan<T>(memory, field, is_given(slope), threads);
    fill_hartley(plan.rows, plan.rows_first, plan.rows_twiddles);
    fill_hartley(plan.cols, plan.cols_first, plan.cols_twiddles);
    dispatch_isa([&]<Isa I>() {
      const int lanes = GrfKernel<I>::lanes(T{});
      spread<T>(precision, field, lanes, params.centered, plan.precision);
      if (is_given(slope)) spread<T>(slope, field, lanes, params.centered, plan.slope);
      std::fill_n(plan.scratch, plan.scratch_elements * threads, T(0));

      GrfBlock<T> common{};
      common.rows = plan.rows;
      common.cols = plan.cols;
      common.row_stride = field.strides[field.rank - 2];
      common.col_stride = field.strides[field.rank - 1];
      common.centered = params.centered;
      common.precision = plan.precision;
      common.slope = is_given(outputs.range_slope) ? plan.slope : nullptr;
      common.shift = params.shift;
      if (is_given(log_variance)) {
        common.log_row_stride = log_variance.strides[field.rank - 2];
        common.log_col_stride = log_variance.strides[field.rank - 1];
      }
      const bool sums = is_given(outputs.value) || is_given(outputs.range_slope) ||
                        is_given(outputs.variance_slope);
      const bool whole_field = sums || is_given(outputs.field_gradient);
      const bool whole_log =
          is_given(log_variance) && (sums || is_given(outputs.log_variance_gradient));
      const MatrixBatch batch = matrix_batch(field, is_given(log_variance) ? log_variance : field);
      const std::int64_t pixels = static_cast<std::int64_t>(rows_of(field)) * cols_of(field);
      const std::int64_t per_task = planes_per_task(field);
      common.stream = element_count(field) * static_cast<std::int64_t>(sizeof(T)) > streamed_bytes;
      // The hardware looks ahead within a page only.
      common.ahead = pixels * static_cast<std::int64_t>(sizeof(T)) <= 8192;
      const auto at = [](const TensorView& view, std::int64_t offset) {
        return is_given(view) ? static_cast<T*>(view.data) + offset : nullptr;
      };
      parallel_for(
          threads, (batch.count + per_task - 1) / per_task, [&](std::int64_t task, int worker) {
            double found[4];
            GrfBlock<T> block = common;
            block.scratch = plan.scratch + worker * plan.scratch_elements;
            block.sums = found;
            const std::int64_t end = std::min(batch.count, (task + 1) * per_task);
            for (std::int64_t index = task * per_task; index < end; ++index) {
              const MatrixOffsets offset = matrix_offsets(batch, index);
              const T factor = is_given(weight) ? *at(weight, index) : T(1);
              block.field = at(field, offset.a);
              block.field_scale = static_cast<T>(params.field_scale) * factor;
              block.field_gradient = at(outputs.field_gradient, index * pixels);
              block.log_variance = at(log_variance, offset.b);
              block.log_scale = T(0.5) * factor;
              block.log_variance_gradient = at(outputs.log_variance_gradient, index * pixels);
              std::fill_n(found, 4, 0.0);
              if (whole_field) GrfKernel<I>::field(block);
              if (whole_log) GrfKernel<I>::log_variance(block);
              if (T* out = at(outputs.value, index)) {
                *out = static_cast<T>(affine(params.value, found[0], found[3]));
              }
              if (T* out = at(outputs.range_slope, index)) {
                *out = static_cast<T>(affine(params.range_slope, found[1], found[2]));
              }
              if (T* out = at(outputs.variance_slope, index)) {
                *out = static_cast<T>(affine(params.variance_slope, found[0], found[2]));
              }
            }
          });
    });
  });
}

}  // namespace mahal

#include "mahal/rx.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <utility>

#include "core/background.hpp"
#include "core/device_plan.hpp"
#include "core/estimators.hpp"
#include "core/image_checks.hpp"
#include "core/whitening.hpp"
#include "core/windows.hpp"
#include "ops/cholesky_kernel.hpp"
#include "ops/matched_rows.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/rx_cuda.hpp"
#include "ops/rx_kernel.hpp"
#include "ops/rx_limits.hpp"
#include "ops/rx_targets.hpp"

namespace mahal {

namespace {

// Rows between two fresh starts of the sliding sums: keeps their rounding errors from adding up.
constexpr int rows_per_strip = 64;

// With more weak pixels than this in a block, the whole block is done again in float64.
constexpr int few_weak_pixels = 64;

// Bands are real ones: a complex band is two of them, and one variable.
struct Shape {
  int rows, cols, bands, padded, variables;
  bool center;
  std::int64_t pixels;
  int parts;  // of a complex number 2
  MatchedScore kind;
  int targets, maps;  // none and one: RX
};

Shape shape_of(const RxParams& params, const TensorView& image, const RxTargets& targets) {
  Shape s;
  s.center = params.center;
  s.bands = real_bands(image);
  s.variables = static_cast<int>(image.shape[image.rank - 1]);
  s.padded = padded_bands(s.bands);
  s.cols = static_cast<int>(image.shape[image.rank - 2]);
  s.rows = image.rank == 3 ? static_cast<int>(image.shape[0]) : 1;
  s.pixels = pixel_count(image);
  s.parts = is_complex(image.dtype) ? 2 : 1;
  s.kind = targets.score;
  s.targets = is_given(targets.target) ? static_cast<int>(targets.target.shape[0]) : 0;
  s.maps = s.targets == 0 || s.kind == MatchedScore::subspace_ace ? 1 : s.targets;
  return s;
}

struct Plan {
  Moments moments;             // of the image
  Moments background_moments;  // of other pixels, where given
  Factor factor;
  double* unloaded;  // copy of the covariance while it is tried
  double* targets;   // whitened: targets x padded
  EstimationRoom estimation;
  char* whiten_room;
  // With a window only.
  WindowTables tables;
  WindowCounter unusable, nonfinite;
  std::int32_t* count;
  std::int32_t* weak_list;
  void* whitened;
  char* room;  // of the workers
  std::size_t worker_bytes;
};

std::int64_t target_elements(const Shape& s) {
  return static_cast<std::int64_t>(s.targets) * s.parts * s.padded;
}

// One pixel from its own samples.
struct OwnWindow {
  double* raw;      // spectra as they are in the image; the pixel itself comes last
  double* samples;  // whitened
  const double** pointers;
  double* covariance;
  double* trial;
  double* inverse_diagonal;
  double* difference;
  double* mean;
  double* targets;
  char* whiten_room;
};

OwnWindow plan_own_window(Scratch& scratch, const Shape& s, const Window& window) {
  OwnWindow w;
  const std::int64_t spectra = window_samples(window) + 1;
  w.raw = scratch.take<double>(spectra * s.padded);
  w.samples = scratch.take<double>(spectra * s.padded);
  w.pointers = scratch.take<const double*>(spectra);
  w.covariance = scratch.take<double>(static_cast<std::int64_t>(s.padded) * s.padded);
  w.trial = scratch.take<double>(static_cast<std::int64_t>(s.padded) * s.padded);
  w.inverse_diagonal = scratch.take<double>(s.padded);
  w.difference = scratch.take<double>(s.padded);
  w.mean = scratch.take<double>(s.padded);
  w.targets = scratch.take<double>(target_elements(s));
  w.whiten_room = plan_whitening(scratch, s.bands, 1);
  return w;
}

// Sums over the windows of one row for a fixed covariance.
struct MeanWindow {
  double* column_sums[2];  // (cols + margin) x padded, outer and inner
  double* sum;
  double* mean;
  double* difference;
  double* targets;
};

MeanWindow plan_mean_window(Scratch& scratch, const Shape& s, const Window& window) {
  MeanWindow w;
  const std::int64_t columns = s.cols + 2 * (window.outer / 2);
  for (double*& sums : w.column_sums) sums = scratch.take<double>(columns * s.padded);
  w.sum = scratch.take<double>(s.padded);
  w.mean = scratch.take<double>(s.padded);
  w.difference = scratch.take<double>(s.padded);
  w.targets = scratch.take<double>(target_elements(s));
  return w;
}

template <class T, Isa I>
LocalRxBlock<T> local_block(const Shape& s, const Window& window) {
  LocalRxBlock<T> block{};
  block.bands = s.bands;
  block.hermitian = s.parts == 2;
  block.center = s.center;
  block.padded = s.padded;
  block.outer = window.outer;
  block.inner = window.inner;
  block.row_stride = static_cast<std::ptrdiff_t>(s.cols) * s.padded;
  block.samples = window_samples(window);
  block.count_stride = s.cols;
  block.score_stride = block.weak_stride = s.cols;
  block.tolerance = weak_pivot<T>;
  block.trust = trusted_error<T>;
  block.target_count = s.targets;
  block.kind = s.kind;
  return block;
}

// A block of float32 pixels and everything their windows reach, whitened in float64.
struct ExactTile {
  double* whitened;
  double* score;  // rows x lanes
  char* whiten_room;
  char* kernel_room;
};

template <Isa I>
ExactTile plan_exact_tile(Scratch& scratch, const Shape& s, const Window& window) {
  const int lanes = RxKernel<I>::lanes(float{});
  ExactTile tile;
  const std::int64_t rows = std::min(s.rows, rows_per_strip + window.outer);
  const std::int64_t cols = std::min(s.cols, lanes + window.outer);
  tile.whitened = scratch.take<double>(rows * cols * s.padded);
  tile.score = scratch.take<double>(static_cast<std::int64_t>(rows_per_strip) * lanes * s.maps);
  tile.whiten_room = plan_whitening(scratch, s.bands, 1);
  tile.kernel_room = scratch.take<char>(
      static_cast<std::int64_t>(RxKernel<I>::scratch_bytes(local_block<double, I>(s, window))));
  return tile;
}

template <class T>
std::size_t worker_bytes(const Shape& s, const Window& window, bool fixed) {
  Scratch scratch;
  if (fixed) {
    plan_mean_window(scratch, s, window);
  } else {
    plan_own_window(scratch, s, window);
    scratch.rewind(0);
    dispatch_isa([&]<Isa I>() {
      scratch.take<char>(
          static_cast<std::int64_t>(RxKernel<I>::scratch_bytes(local_block<T, I>(s, window))));
      scratch.rewind(0);
      if (sizeof(T) == 4) plan_exact_tile<I>(scratch, s, window);
    });
  }
  return (scratch.bytes() + 63) / 64 * 64;
}

Plan make_plan(Scratch& scratch, const Shape& s, const RxParams& params, const TensorView& image,
               const TensorView& background, const TensorView& covariance, int threads) {
  Plan p{};
  const bool local = params.window.outer > 0;
  const bool fixed = is_given(covariance);
  p.factor = plan_factor(scratch, s.bands);
  p.targets = scratch.take<double>(static_cast<std::int64_t>(s.targets) * s.padded);
  if (local) {
    p.tables = plan_windows(scratch, params.window, params.border, s.rows, s.cols);
    p.unusable = plan_counter(scratch, params.window, s.rows, s.cols);
    p.nonfinite = plan_counter(scratch, params.window, s.rows, s.cols);
    p.count = scratch.take<std::int32_t>(s.pixels);
    p.weak_list = scratch.take<std::int32_t>(s.pixels);
    p.whitened = scratch.take<char>(s.pixels * s.padded *
                                    static_cast<std::int64_t>(item_size(real_dtype(image.dtype))));
  }
  // Whatever belongs to one phase alone shares its memory with the others.
  const bool again = is_fixed_point(params.estimation.estimator);
  p.moments = plan_moments(scratch, s.pixels, s.bands, threads, again);
  if (is_given(background)) {
    p.background_moments = plan_moments(scratch, pixel_count(background), s.bands, threads, again);
  }
  if (!fixed) {
    const std::int64_t samples = pixel_count(is_given(background) ? background : image);
    p.estimation = plan_estimation(scratch, params.estimation, samples, s.bands, threads);
  }
  const std::size_t statistics_done = scratch.mark();
  p.unloaded = scratch.take<double>(static_cast<std::int64_t>(s.padded) * s.padded);
  scratch.rewind(statistics_done);
  p.whiten_room = plan_whitening(scratch, s.bands, threads);
  scratch.rewind(statistics_done);
  if (local) {
    p.worker_bytes = dispatch_float(
        image.dtype, [&]<class T>() { return worker_bytes<T>(s, params.window, fixed); });
    p.room = scratch.take<char>(static_cast<std::int64_t>(p.worker_bytes) * threads);
  }
  return p;
}

// Samples that a covariance of full rank takes.
std::int64_t needed_samples(const RxParams& params, std::int64_t variables) {
  const Estimator estimator = params.estimation.estimator;
  if (estimator != Estimator::scm) return least_samples(estimator, variables, params.center);
  return variables + (params.center ? 1 : 0);
}

void check_inputs(const RxTargets& targets, const RxParams& params, const TensorView& image,
                  const TensorView& background, const TensorView& covariance) {
  const char* op = targets.op;
  const bool local = params.window.outer > 0 || params.window.inner > 0;
  check_estimation(op, params.estimation);
  if ((local || is_given(covariance)) && params.estimation.estimator != Estimator::scm) {
    throw_value_error(op, "estimator",
                      "must be the sample covariance with a window or a covariance", "another");
  }
  if (local) {
    check_pixels(op, "image", image, {3});
    check_window(op, params.window, image.shape[0], image.shape[1]);
  } else {
    check_pixels(op, "image", image, {2, 3});
  }
  if (is_given(background)) {
    if (local) {
      throw_value_error(op, "background", "cannot be combined with window", "both");
    }
    check_background(op, background, image);
  }
  if (is_given(covariance)) {
    check_mean_and_covariance(op, image, TensorView{}, covariance);
  }
  const std::int64_t needed = needed_samples(params, image.shape[image.rank - 1]);
  if (local && !is_given(covariance) && window_samples(params.window) < needed) {
    throw_value_error(op, "window", "must hold " + std::to_string(needed) + " samples or more",
                      std::to_string(window_samples(params.window)) + " samples");
  }
  if (local && is_given(covariance) && !params.center) {
    throw_value_error(op, "center", "must be true with a window and a covariance", "false");
  }
}

template <class In, class Out>
WhitenBlock<In, Out> whiten_block(const Plan& p, const double* mean) {
  WhitenBlock<In, Out> block{};
  block.mean = mean;
  block.factor = p.factor.lower;
  block.factor_stride = p.factor.padded;
  block.inverse_diagonal = p.factor.inverse_diagonal;
  return block;
}

template <class T>
struct Scores {
  T* score;
  std::uint8_t* status;

  int maps;  // scores of a pixel, side by side

  T* of(std::int64_t pixel) const { return score + pixel * maps; }
  void mark(std::int64_t pixel, std::uint8_t why) const {
    std::fill_n(of(pixel), maps, std::numeric_limits<T>::quiet_NaN());
    status[pixel] = why;
  }
};

template <class T>
void global_scores(const Plan& p, const Shape& s, const TensorView& image, const double* mean,
                   std::uint8_t status, bool hopeless, const Scores<T>& out, int threads) {
  WhitenBlock<T, T> block = whiten_block<T, T>(p, mean);
  block.pixels = pixel_list<T>(image);
  block.status = p.moments.status;
  block.score = out.score;
  if (!hopeless) whiten_pixels(block, s.pixels, p.whiten_room, threads);
  for (std::int64_t i = 0; i < s.pixels; ++i) {
    out.status[i] = status;
    if (p.moments.status[i] != status_ok) {
      out.mark(i, p.moments.status[i]);
    } else if (hopeless) {
      out.mark(i, status_singular);
    }
  }
}

// Gathers, whitens and scores the window of one pixel in float64. Returns its status.
template <class T, Isa I>
std::uint8_t own_window_score(const RxParams& params, const Plan& p, const Shape& s,
                              const TensorView& image, int row, int col, bool always_load,
                              const OwnWindow& w, T* score) {
  const PixelList<T> list = pixel_list<T>(image);
  const auto gather = [&](int r, int c, double* dst) {
    const T* src = list.data + r * list.row_stride + c * list.col_stride;
    for (int j = 0; j < s.bands; ++j) dst[j] = static_cast<double>(src[band_offset(list, j)]);
  };
  const int top = p.tables.rows.outer_start[row];
  const int left = p.tables.cols.outer_start[col];
  const int guard_top = p.tables.rows.inner_start[row];
  const int guard_left = p.tables.cols.inner_start[col];
  int n = 0;
  for (int v = top; v < top + params.window.outer; ++v) {
    const bool guarded = v >= guard_top && v < guard_top + params.window.inner;
    const int r = p.tables.rows.index[v];
    for (int u = left; u < left + params.window.outer; ++u) {
      if (guarded && u >= guard_left && u < guard_left + params.window.inner) continue;
      const int c = p.tables.cols.index[u];
      if (p.moments.status[static_cast<std::int64_t>(r) * s.cols + c] != status_ok) continue;
      gather(r, c, w.raw + static_cast<std::int64_t>(n++) * s.padded);
    }
  }
  gather(row, col, w.raw + static_cast<std::int64_t>(n) * s.padded);

  WhitenBlock<double, double> block = whiten_block<double, double>(p, p.moments.mean);
  block.pixels = {w.raw, n + 1, 0, s.padded, 1, 0, s.bands, s.padded};
  block.end = n + 1;
  block.whitened = w.samples;
  block.out_stride = block.out_bands = s.padded;
  block.scratch = w.whiten_room;
  WhitenKernel<I>::run(block);

  WindowStatistics statistics{};
  statistics.samples = w.samples;
  statistics.test = w.samples + static_cast<std::int64_t>(n) * s.padded;
  statistics.count = n;
  statistics.bands = s.bands;
  statistics.hermitian = s.parts == 2;
  statistics.center = s.center;
  statistics.padded = s.padded;
  statistics.covariance = w.covariance;
  statistics.difference = w.difference;
  statistics.pointers = w.pointers;
  RxKernel<I>::window_statistics(statistics);

  const auto factor = [&](double loading) {
    std::copy_n(w.covariance, static_cast<std::int64_t>(s.padded) * s.padded, w.trial);
    for (int j = 0; j < s.bands; ++j) w.trial[j * (s.padded + 1LL)] += loading;
    return CholeskyKernel<I>::factor_one(w.trial, s.bands, s.padded, window_pivot,
                                         w.inverse_diagonal);
  };
  std::uint8_t status = status_ok;
  if (always_load || !factor(0)) {
    status = status_singular;
    if (params.singular == Singular::nan || !factor(rx_loading)) {
      std::fill_n(score, s.maps, std::numeric_limits<T>::quiet_NaN());
      return status;
    }
  }
  const auto solve = [&](double* d) { forward(w.trial, s.padded, w.inverse_diagonal, s.bands, d); };
  // Before the pixel gives its place to y: targets relative to the mean, which it is relative to.
  for (int k = 0; k < s.targets; ++k) {
    double* row = w.targets + static_cast<std::int64_t>(k) * s.padded;
    std::copy_n(p.targets + static_cast<std::int64_t>(k) * s.padded, s.padded, row);
    for (int j = 0; j < s.bands; ++j) w.mean[j] = statistics.test[j] - w.difference[j];
    if (subtract(row, w.mean, s.bands)) solve(row);
  }
  solve(w.difference);
  if (s.targets == 0) {
    *score = static_cast<T>(dot(w.difference, w.difference, s.bands));
    return status;
  }
  const TargetRows rows{s.kind, s.targets, 1, s.bands, s.padded, w.targets};
  if (!score_rows(rows, w.difference, score)) status = status_singular;
  return status;
}

void report(const RxParams& params, std::atomic<std::int64_t>& done, std::int64_t total,
            int worker) {
  const std::int64_t now = done.fetch_add(1) + 1;
  if (worker == 0 && params.progress.report) {
    params.progress.report(params.progress.context, now, total);
  }
}

// Counts of usable pixels in the windows; nullptr when every pixel is usable.
const std::int32_t* fill_counts(const RxParams& params, const Plan& p, const Shape& s) {
  const std::uint8_t* status = p.moments.status;
  if (p.moments.count == s.pixels) return nullptr;
  fill_counter(p.unusable, p.tables, s.rows, [&](int r, int c) {
    return status[static_cast<std::int64_t>(r) * s.cols + c] != status_ok;
  });
  fill_counter(p.nonfinite, p.tables, s.rows, [&](int r, int c) {
    return status[static_cast<std::int64_t>(r) * s.cols + c] == status_nonfinite;
  });
  for (int r = 0; r < s.rows; ++r) {
    for (int c = 0; c < s.cols; ++c) {
      p.count[static_cast<std::int64_t>(r) * s.cols + c] =
          window_samples(params.window) - count_window(p.unusable, p.tables, params.window, r, c);
    }
  }
  return p.count;
}

// Why pixel (row, col) has no score, or status_ok.
std::uint8_t window_status(const RxParams& params, const Plan& p, const Shape& s,
                           const std::int32_t* count, int row, int col, int needed) {
  const std::int64_t pixel = static_cast<std::int64_t>(row) * s.cols + col;
  if (p.moments.status[pixel] != status_ok) return p.moments.status[pixel];
  if (row < p.tables.rows_begin || row >= p.tables.rows_end || col < p.tables.cols_begin ||
      col >= p.tables.cols_end) {
    return status_masked;
  }
  if (!count) return status_ok;
  if (count_window(p.nonfinite, p.tables, params.window, row, col) > 0) return status_nonfinite;
  return count[pixel] < needed ? status_few_samples : status_ok;
}

template <class T>
void whiten_image(const Plan& p, const Shape& s, const TensorView& image, int threads) {
  WhitenBlock<T, T> block = whiten_block<T, T>(p, p.moments.mean);
  block.pixels = pixel_list<T>(image);
  block.status = p.moments.status;
  block.whitened = static_cast<T*>(p.whitened);
  block.out_stride = block.out_bands = s.padded;
  whiten_pixels(block, s.pixels, p.whiten_room, threads);
}

// Targets go the way of the pixels, so that a target that is a pixel stays one.
void whiten_targets(const char* op, const Plan& p, const Shape& s, const TensorView& target,
                    int threads) {
  load_targets(op, target, s.padded, p.targets);
  WhitenBlock<double, double> block = whiten_block<double, double>(p, p.moments.mean);
  block.pixels = {p.targets, s.targets, 0, s.padded, 1, 0, s.bands, s.padded};
  block.whitened = p.targets;
  block.out_stride = block.out_bands = s.padded;
  whiten_pixels(block, s.targets, p.whiten_room, threads);
}

// Scores a block of a float32 image in float64.
template <Isa I>
void score_exactly(const Plan& p, const Shape& s, const Window& window, const TensorView& image,
                   const LocalRxBlock<float>& done, const Workspace& room) {
  Scratch scratch(room);
  const ExactTile tile = plan_exact_tile<I>(scratch, s, window);
  const int lanes = RxKernel<I>::lanes(float{});
  const int col_end = std::min(done.col_end, done.col_begin + lanes);
  // Smallest and largest sample that the windows of [begin, end) reach along one axis.
  const auto reach = [&](const WindowAxis& axis, int begin, int end) {
    int low = axis.index[axis.outer_start[begin]];
    int high = low;
    for (int v = axis.outer_start[begin]; v < axis.outer_start[end - 1] + window.outer; ++v) {
      low = std::min<int>(low, axis.index[v]);
      high = std::max<int>(high, axis.index[v]);
    }
    return std::pair(low, high + 1);
  };
  const auto [top, bottom] = reach(done.rows, done.row_begin, done.row_end);
  const auto [left, right] = reach(done.cols, done.col_begin, col_end);
  const std::int64_t cols = right - left;
  const PixelList<float> list = pixel_list<float>(image);
  for (int r = top; r < bottom; ++r) {
    WhitenBlock<float, double> block = whiten_block<float, double>(p, p.moments.mean);
    block.pixels = list;
    block.pixels.data = list.data + r * list.row_stride + left * list.col_stride;
    block.pixels.cols = cols;
    block.end = cols;
    block.status = p.moments.status + static_cast<std::int64_t>(r) * s.cols + left;
    block.whitened = tile.whitened + (r - top) * cols * s.padded;
    block.out_stride = block.out_bands = s.padded;
    block.scratch = tile.whiten_room;
    WhitenKernel<I>::run(block);
  }
  LocalRxBlock<double> block = local_block<double, I>(s, window);
  block.row_stride = cols * s.padded;
  block.image = tile.whitened - (top * block.row_stride + left * s.padded);
  block.status = done.status;
  block.status_stride = done.status_stride;
  block.rows = done.rows;
  block.cols = done.cols;
  block.row_begin = done.row_begin;
  block.row_end = done.row_end;
  block.col_end = col_end;
  block.count = done.count;
  block.loading = done.loading;
  block.targets = p.targets;
  block.score =
      tile.score - static_cast<std::int64_t>(done.row_begin * lanes + done.col_begin) * s.maps;
  block.score_stride = lanes;
  block.weak = done.weak;
  block.scratch = tile.kernel_room;
  for (block.col_begin = done.col_begin; block.col_begin < col_end;
       block.col_begin += RxKernel<I>::lanes(double{})) {
    RxKernel<I>::local(block);
  }
  for (int r = done.row_begin; r < done.row_end; ++r) {
    for (int c = done.col_begin; c < col_end; ++c) {
      const double* from = block.score + (static_cast<std::int64_t>(r) * lanes + c) * s.maps;
      float* to = done.score + (r * done.score_stride + c) * s.maps;
      for (int k = 0; k < s.maps; ++k) to[k] = static_cast<float>(from[k]);
    }
  }
}

template <class T>
void local_scores(const RxParams& params, const Plan& p, const Shape& s, const TensorView& image,
                  bool singular, const Scores<T>& out, int threads) {
  const WindowTables& t = p.tables;
  fill_windows(t, params.window, params.border, s.rows, s.cols);
  const std::int32_t* count = fill_counts(params, p, s);
  const bool hopeless = singular && params.singular == Singular::nan;
  std::atomic<std::int64_t> done{0};
  dispatch_isa([&]<Isa I>() {
    const int rows = t.rows_end - t.rows_begin;
    const int cols = t.cols_end - t.cols_begin;
    const int lanes = RxKernel<I>::lanes(T{});
    const int strips = (rows + rows_per_strip - 1) / rows_per_strip;
    const int strip_rows = (rows + strips - 1) / strips;
    const int groups = (cols + lanes - 1) / lanes;
    const std::int64_t tasks = static_cast<std::int64_t>(strips) * groups;
    if (!hopeless) {
      whiten_image<T>(p, s, image, threads);
      parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
        LocalRxBlock<T> block = local_block<T, I>(s, params.window);
        block.image = static_cast<const T*>(p.whitened);
        block.rows = t.rows;
        block.cols = t.cols;
        block.row_begin = t.rows_begin + static_cast<int>(task % strips) * strip_rows;
        block.row_end = std::min(t.rows_end, block.row_begin + strip_rows);
        // The last group may be narrow: its short tasks come last, where they even out the load.
        block.col_begin = t.cols_begin + static_cast<int>(task / strips) * lanes;
        block.col_end = t.cols_end;
        block.status = count ? p.moments.status : nullptr;
        block.status_stride = s.cols;
        block.count = count;
        block.loading = singular ? static_cast<T>(rx_loading) : T(0);
        block.targets = p.targets;
        block.score = out.score;
        block.weak = out.status;
        block.ticks = params.ticks ? params.ticks + 2 * worker : nullptr;
        block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
        RxKernel<I>::local(block);
        if constexpr (sizeof(T) == 4) {
          int weak = 0;
          for (int r = block.row_begin; r < block.row_end; ++r) {
            for (int c = block.col_begin; c < std::min(block.col_end, block.col_begin + lanes);
                 ++c) {
              weak += block.weak[r * block.weak_stride + c];
            }
          }
          if (weak > few_weak_pixels) {
            score_exactly<I>(p, s, params.window, image, block, {block.scratch, p.worker_bytes});
          }
        }
        report(params, done, tasks, worker);
      });
    }
    std::int64_t weak = 0;
    for (int r = 0; r < s.rows; ++r) {
      for (int c = 0; c < s.cols; ++c) {
        const std::int64_t pixel = static_cast<std::int64_t>(r) * s.cols + c;
        const std::uint8_t why = window_status(
            params, p, s, count, r, c, static_cast<int>(needed_samples(params, s.variables)));
        if (why != status_ok) {
          out.mark(pixel, why);
        } else if (hopeless) {
          out.mark(pixel, status_singular);
        } else if (out.status[pixel]) {
          p.weak_list[weak++] = static_cast<std::int32_t>(pixel);
        } else {
          out.status[pixel] = singular ? status_singular : status_ok;
        }
      }
    }
    parallel_for(threads, weak, [&](std::int64_t task, int worker) {
      Workspace mine;
      mine.data = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      Scratch scratch(mine);
      const OwnWindow w = plan_own_window(scratch, s, params.window);
      const std::int32_t pixel = p.weak_list[task];
      out.status[pixel] = own_window_score<T, I>(params, p, s, image, pixel / s.cols,
                                                 pixel % s.cols, singular, w, out.of(pixel));
    });
  });
}

// Local mean, fixed covariance: the image is whitened by it, and the score is the squared distance
// of a whitened pixel to the mean of its window.
template <class T>
void local_mean_scores(const RxParams& params, const Plan& p, const Shape& s,
                       const TensorView& image, const Scores<T>& out, int threads) {
  const WindowTables& t = p.tables;
  const Window& window = params.window;
  fill_windows(t, window, params.border, s.rows, s.cols);
  const std::int32_t* count = fill_counts(params, p, s);
  whiten_image<T>(p, s, image, threads);
  const T* whitened = static_cast<const T*>(p.whitened);
  const int margin = window.outer / 2;
  const auto spectrum = [&](int row, int col) {
    return whitened + (static_cast<std::int64_t>(row) * s.cols + col) * s.padded;
  };
  const std::int64_t strips = (s.rows + rows_per_strip - 1) / rows_per_strip;
  std::atomic<std::int64_t> done{0};
  parallel_for(threads, strips, [&](std::int64_t strip, int worker) {
    Workspace mine;
    mine.data = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
    Scratch scratch(mine);
    const MeanWindow w = plan_mean_window(scratch, s, window);
    const int begin = static_cast<int>(strip) * rows_per_strip;
    const int end = std::min(s.rows, begin + rows_per_strip);
    const std::int32_t* starts[2] = {t.rows.outer_start, t.rows.inner_start};
    const int sides[2] = {window.outer, window.inner};
    const auto add_row = [&](int k, int v, double sign) {
      for (int u = -margin; u < s.cols + margin; ++u) {
        const T* x = spectrum(t.rows.index[v], t.cols.index[u]);
        double* sum = w.column_sums[k] + static_cast<std::int64_t>(u + margin) * s.padded;
        for (int j = 0; j < s.padded; ++j) sum[j] += sign * static_cast<double>(x[j]);
      }
    };
    const auto add_column = [&](int k, int u, double sign) {
      const double* sum = w.column_sums[k] + static_cast<std::int64_t>(u + margin) * s.padded;
      for (int j = 0; j < s.padded; ++j) w.sum[j] += sign * sum[j];
    };
    for (int r = begin; r < end; ++r) {
      for (int k = 0; k < 2; ++k) {
        if (sides[k] == 0) continue;
        if (r == begin) {
          std::fill_n(w.column_sums[k], static_cast<std::int64_t>(s.cols + 2 * margin) * s.padded,
                      0.0);
          for (int v = 0; v < sides[k]; ++v) add_row(k, starts[k][r] + v, 1);
        } else if (starts[k][r] != starts[k][r - 1]) {
          add_row(k, starts[k][r] + sides[k] - 1, 1);
          add_row(k, starts[k][r] - 1, -1);
        }
      }
      for (int c = 0; c < s.cols; ++c) {
        for (int k = 0; k < 2; ++k) {
          if (sides[k] == 0) continue;
          const std::int32_t* start = k == 0 ? t.cols.outer_start : t.cols.inner_start;
          const double sign = k == 0 ? 1 : -1;
          if (c == 0) {
            if (k == 0) std::fill_n(w.sum, s.padded, 0.0);
            for (int u = 0; u < sides[k]; ++u) add_column(k, start[c] + u, sign);
          } else if (start[c] != start[c - 1]) {
            add_column(k, start[c] + sides[k] - 1, sign);
            add_column(k, start[c] - 1, -sign);
          }
        }
        const std::int64_t pixel = static_cast<std::int64_t>(r) * s.cols + c;
        const std::uint8_t why = window_status(params, p, s, count, r, c, 1);
        if (why != status_ok) {
          out.mark(pixel, why);
          continue;
        }
        const double reciprocal = 1.0 / (count ? count[pixel] : window_samples(window));
        const T* x = spectrum(r, c);
        for (int j = 0; j < s.bands; ++j) {
          w.mean[j] = w.sum[j] * reciprocal;
          w.difference[j] = static_cast<double>(x[j]) - w.mean[j];
        }
        out.status[pixel] = status_ok;
        if (s.targets == 0) {
          out.score[pixel] = static_cast<T>(dot(w.difference, w.difference, s.bands));
          continue;
        }
        for (int k = 0; k < s.targets; ++k) {
          double* row = w.targets + static_cast<std::int64_t>(k) * s.parts * s.padded;
          std::copy_n(p.targets + static_cast<std::int64_t>(k) * s.padded, s.bands, row);
          subtract(row, w.mean, s.bands);
        }
        const TargetRows rows{s.kind, s.targets, s.parts, s.bands, s.padded, w.targets};
        if (!score_rows(rows, w.difference, out.of(pixel))) out.status[pixel] = status_singular;
      }
    }
    report(params, done, strips, worker);
  });
}

// Global scores on a device.
template <class T>
struct DevicePlan {
  DeviceBackground background;
  EstimateLaunch<T> estimate;
  ClassifyLaunch<T> own;  // of the image, where a background has the samples
  double* tiles;
};

template <class T>
DevicePlan<T> plan_device(Scratch& scratch, const RxParams& params, const TensorView& image,
                          const TensorView& background, const TensorView& covariance,
                          const TensorView& mask) {
  const bool external = is_given(background);
  const bool fixed = is_given(covariance);
  const std::int64_t needed = fixed ? 1 : needed_samples(params, image.shape[image.rank - 1]);
  DevicePlan<T> p{};
  p.background = plan_device_background(scratch, real_bands(image));
  if (external) p.own = plan_classify<T>(scratch, image, mask);
  p.estimate = plan_estimate<T>(scratch, p.background, external ? background : image,
                                external ? TensorView{} : mask, {1, params.center},
                                params.estimation, Scale::samples, needed, fixed);
  p.tiles = plan_whiten_tiles(scratch, pixel_count(image), real_bands(image));
  return p;
}

template <class T>
void score_on_device(const RxParams& params, const DevicePlan<T>& p, const TensorView& image,
                     const TensorView& background, const TensorView& covariance,
                     const TensorView& score, const TensorView& status, Route route,
                     std::uintptr_t stream) {
  const bool external = is_given(background);
  WhitenLaunch<T, T> launch{};
  launch.pixels = device_pixels<T>(image);
  launch.mean = p.background.mean;
  launch.lower = p.background.lower;
  launch.inverse = p.background.inverse;
  launch.verdicts.pixel = external ? p.own.status : p.estimate.samples.status;
  launch.verdicts.state = p.background.state;
  launch.verdicts.nan_when_loaded = params.singular == Singular::nan;
  launch.verdicts.status = static_cast<std::uint8_t*>(status.data);
  launch.score = static_cast<T*>(score.data);
  launch.tiles = p.tiles;
  with_background(route, "rx", stream, [&](const auto& device) {
    if (external) device.classify(p.own);
    device.estimate(p.estimate);
    if (is_given(covariance)) {
      load_covariance(device, p.background, covariance);
    } else {
      // Loading stands in for a sample covariance only.
      const bool load = params.estimation.estimator == Estimator::scm;
      device.factor(factor_of(p.background, real_bands(image), load));
    }
    device.whiten(launch);
  });
}

// Windows on a device: the same steps, each a launch.
template <class T>
struct DeviceWindows {
  DeviceBackground background;
  EstimateLaunch<T> estimate;
  WindowScoresLaunch<T> scores;
  double* targets;
  double* tiles;  // of whitening
};

template <class T>
DeviceWindows<T> plan_device_windows(Scratch& scratch, const Shape& s, const RxParams& params,
                                     const TensorView& image, const TensorView& covariance,
                                     const TensorView& mask) {
  DeviceWindows<T> d{};
  const bool fixed = is_given(covariance);
  const std::int64_t needed = fixed ? 1 : needed_samples(params, s.variables);
  d.background = plan_device_background(scratch, s.bands);
  d.estimate = plan_estimate<T>(scratch, d.background, image, mask, Normalization{1, params.center},
                                params.estimation, Scale::samples, needed, fixed);
  WindowScoresLaunch<T>& w = d.scores;
  w.rows = s.rows;
  w.cols = s.cols;
  w.bands = s.bands;
  w.pitch = window_pitch(s.bands);
  w.pixel_status = d.estimate.samples.status;
  w.state = d.background.state;
  w.parts = s.parts;
  w.center = s.center;
  w.fixed = fixed;
  w.nan_when_singular = params.singular == Singular::nan;
  w.border = params.border;
  w.window = params.window;
  w.needed = static_cast<int>(needed);
  w.target_count = s.targets;
  w.kind = s.kind;
  w.maps = s.maps;
  w.whitened = scratch.take<T>(s.pixels * w.pitch);
  w.targets = d.targets = scratch.take<double>(static_cast<std::int64_t>(s.targets) * w.pitch);
  w.count = scratch.take<std::int32_t>(s.pixels);
  w.weak = scratch.take<std::uint8_t>(s.pixels);
  d.tiles = plan_whiten_tiles(scratch, std::max<std::int64_t>(s.pixels, s.targets), s.bands);
  const StripPlan plan = plan_strips<T>(s.rows, s.cols, s.bands, s.targets);
  if (fixed) {
    const std::int64_t elements = window_rows(w.pitch, s.targets, s.parts);
    w.matrices = scratch.take<double>(elements * window_blocks(plan.strips, elements));
    return d;
  }
  if constexpr (sizeof(T) == 8) {
    w.exact = w.whitened;
  } else {
    w.exact = scratch.take<double>(s.pixels * w.pitch);
  }
  w.sums = scratch.take<T>(window_sums_room(plan));
  const std::int64_t elements = window_matrix(s.bands, s.targets);
  w.matrices = scratch.take<double>(elements * window_blocks(s.pixels, elements));
  return d;
}

// Whitens a list of pixels into rows of `pitch` elements.
template <class In, class Out, class T, class Device>
void whiten_rows(const Device& device, const DeviceWindows<T>& d, const TensorView& x,
                 const Out* rows) {
  WhitenLaunch<In, Out> launch{};
  launch.pixels = device_pixels<In>(x);
  launch.mean = d.background.mean;
  launch.lower = d.background.lower;
  launch.inverse = d.background.inverse;
  launch.verdicts.state = d.background.state;
  launch.whitened = const_cast<Out*>(rows);
  launch.out_stride = launch.out_bands = d.scores.pitch;
  launch.tiles = d.tiles;
  device.whiten(launch);
}

template <class T>
void launch_device_windows(const RxTargets& targets, const DeviceWindows<T>& d,
                           const TensorView& image, const TensorView& covariance, Route route,
                           std::uintptr_t stream) {
  const WindowScoresLaunch<T>& w = d.scores;
  with_background(route, targets.op, stream, [&](const auto& device) {
    device.estimate(d.estimate);
    if (w.fixed) {
      load_covariance(device, d.background, covariance);
    } else {
      device.factor(factor_of(d.background, w.bands, true));
    }
    whiten_rows<T>(device, d, image, w.whitened);
    if constexpr (sizeof(T) == 4) {
      if (!w.fixed) whiten_rows<T>(device, d, image, w.exact);
    }
    if (w.target_count > 0) {
      dispatch_float(targets.target.dtype,
                     [&]<class In>() { whiten_rows<In>(device, d, targets.target, w.targets); });
    }
  });
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::window_scores(w, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::window_scores(w, stream);
  }
}

}  // namespace

std::size_t rx_targets_workspace(const RxTargets& targets, const RxParams& params,
                                 const TensorView& image, const TensorView& background,
                                 const TensorView& covariance, int threads) {
  check_inputs(targets, params, image, background, covariance);
  Scratch scratch;
  if (runs_on_device(image.device)) {
    dispatch_float(image.dtype, [&]<class T>() {
      if (params.window.outer > 0) {
        plan_device_windows<T>(scratch, shape_of(params, image, targets), params, image, covariance,
                               TensorView{});
      } else {
        plan_device<T>(scratch, params, image, background, covariance, TensorView{});
      }
    });
    return scratch.bytes();
  }
  make_plan(scratch, shape_of(params, image, targets), params, image, background, covariance,
            resolve_threads(targets.op, threads));
  return scratch.bytes();
}

std::size_t rx_workspace(const RxParams& params, const TensorView& image,
                         const TensorView& background, const TensorView& covariance, int threads) {
  return rx_targets_workspace({}, params, image, background, covariance, threads);
}

void rx(const RxParams& params, const TensorView& image, const TensorView& background,
        const TensorView& covariance, const TensorView& mask, const TensorView& score,
        const TensorView& status, const Workspace& workspace, const Execution& execution) {
  rx_targets({}, params, image, background, covariance, mask, score, status, workspace, execution);
}

void rx_targets(const RxTargets& targets, const RxParams& params, const TensorView& image,
                const TensorView& background, const TensorView& covariance, const TensorView& mask,
                const TensorView& score, const TensorView& status, const Workspace& workspace,
                const Execution& execution) {
  const char* op = targets.op;
  check_inputs(targets, params, image, background, covariance);
  check_mask(op, mask, image);
  const Shape s = shape_of(params, image, targets);
  check_scores(op, "score", score, real_dtype(image.dtype), s.pixels * s.maps);
  check_status(op, status, s.pixels);
  const bool local = params.window.outer > 0;
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace,
                  rx_targets_workspace(targets, params, image, background, covariance, threads));

  const bool fixed = is_given(covariance);
  const bool external = is_given(background);
  const std::int64_t needed = fixed ? 1 : needed_samples(params, s.variables);
  const auto throw_few_samples = [&](std::int64_t count) {
    throw_value_error(op, external ? "background" : "image",
                      "needs " + std::to_string(needed) + " usable pixels or more",
                      std::to_string(count));
  };

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    const std::int64_t samples = pixel_count(external ? background : image);
    if (samples < needed) throw_few_samples(samples);
    dispatch_float(image.dtype, [&]<class T>() {
      if (local) {
        DeviceWindows<T> d = plan_device_windows<T>(scratch, s, params, image, covariance, mask);
        d.scores.score = static_cast<T*>(score.data);
        d.scores.status = static_cast<std::uint8_t*>(status.data);
        launch_device_windows(targets, d, image, covariance, route, execution.stream);
        return;
      }
      const DevicePlan<T> p = plan_device<T>(scratch, params, image, background, covariance, mask);
      score_on_device(params, p, image, background, covariance, score, status, route,
                      execution.stream);
    });
    return;
  }
  Plan p = make_plan(scratch, s, params, image, background, covariance, threads);

  const Normalization normalization{1, params.center};
  Moments* source = &p.moments;
  const TensorView* samples = &image;
  const TensorView* samples_mask = &mask;
  const TensorView no_mask{};
  if (external) {
    compute_mean(p.moments, image, mask, threads);
    source = &p.background_moments;
    samples = &background;
    samples_mask = &no_mask;
  }
  const std::uint8_t outcome =
      estimate_moments(*source, *samples, *samples_mask, normalization, params.estimation,
                       Scale::samples, p.estimation, threads);
  if (source->count < needed || (!fixed && outcome == status_few_samples)) {
    throw_few_samples(source->count);
  }
  bool singular = false;
  std::uint8_t found = status_ok;  // of the pixels that are scored
  if (fixed) {
    load_covariance(op, p.factor, covariance);
  } else {
    std::copy_n(source->covariance, static_cast<std::int64_t>(s.padded) * s.padded, p.factor.lower);
    if (params.estimation.estimator == Estimator::scm) {
      singular = factor_unit(p.factor, p.unloaded, s.bands);
    } else {
      singular = outcome == status_singular || !factor_covariance(p.factor, s.bands);
      if (outcome == status_not_converged) found = outcome;
    }
  }
  if (s.targets > 0) whiten_targets(op, p, s, targets.target, threads);
  if (singular) found = status_singular;
  // Loading stands in for a sample covariance only.
  const bool hopeless = singular && (params.singular == Singular::nan ||
                                     params.estimation.estimator != Estimator::scm);
  dispatch_float(image.dtype, [&]<class T>() {
    const Scores<T> out{static_cast<T*>(score.data), static_cast<std::uint8_t*>(status.data),
                        s.maps};
    if (!local) {
      global_scores<T>(p, s, image, source->mean, found, hopeless, out, threads);
    } else if (fixed) {
      local_mean_scores<T>(params, p, s, image, out, threads);
    } else {
      local_scores<T>(params, p, s, image, singular, out, threads);
    }
  });
}

}  // namespace mahal

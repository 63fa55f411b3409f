#include "mahal/window_scores_backward.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/background.hpp"
#include "core/device_plan.hpp"
#include "core/image_checks.hpp"
#include "core/whitening.hpp"
#include "core/window_spans.hpp"
#include "core/windows.hpp"
#include "ops/cholesky_kernel.hpp"
#include "ops/matched_rows.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/rx_cuda.hpp"
#include "ops/rx_kernel.hpp"
#include "ops/rx_limits.hpp"
#include "ops/window_scores_backward_cuda.hpp"

namespace mahal {

namespace {

constexpr const char* op = "window_scores_backward";

// Rows between two fresh starts of the sliding sums of the windows.
constexpr int rows_per_strip = 64;

// Sums over all pixels are cut into so many parts, at most.
constexpr int most_parts = 16;

struct Shape {
  int rows, cols, bands, padded, targets, maps;
  std::int64_t pixels;
  bool subspace;
  int vectors;  // kept of every pixel: S^-1 (x - m), and S^-1 (t - m) for every target
  int rank;     // of what a pixel gives to its samples
  int forms;    // products of these
  int parts, part_rows;
};

Shape shape_of(const WindowScoresBackwardParams& params, const TensorView& image,
               const TensorView& target) {
  Shape s;
  s.rows = static_cast<int>(image.shape[0]);
  s.cols = static_cast<int>(image.shape[1]);
  s.bands = static_cast<int>(image.shape[2]);
  s.padded = padded_bands(s.bands);
  s.pixels = static_cast<std::int64_t>(s.rows) * s.cols;
  s.targets = is_given(target) ? static_cast<int>(target.shape[0]) : 0;
  s.subspace = s.targets > 0 && params.score == MatchedScore::subspace_ace;
  s.maps = s.targets == 0 || s.subspace ? 1 : s.targets;
  s.vectors = 1 + s.targets;
  s.rank = s.subspace ? 2 : s.vectors;
  s.forms = 1 + 2 * s.targets;
  s.part_rows = (s.rows + most_parts - 1) / most_parts;
  s.parts = (s.rows + s.part_rows - 1) / s.part_rows;
  return s;
}

// The window of one pixel from its own samples.
struct OwnWindow {
  double* samples;
  const double** pointers;
  double* covariance;
  double* inverse_diagonal;
  double* difference;
};

OwnWindow plan_own_window(Scratch& scratch, const Shape& s, const Window& window) {
  OwnWindow w;
  w.samples = scratch.take<double>(window_samples(window) * static_cast<std::int64_t>(s.padded));
  w.pointers = scratch.take<const double*>(window_samples(window));
  w.covariance = scratch.take<double>(static_cast<std::int64_t>(s.padded) * s.padded);
  w.inverse_diagonal = scratch.take<double>(s.padded);
  w.difference = scratch.take<double>(s.padded);
  return w;
}

// Room of the coefficients of one pixel, for its worker.
struct PixelRoom {
  double* of_alpha;     // per target
  double* of_beta;      // per target
  double* shares;       // per target
  double* mean_forms;   // products of the vectors with the mean of the window
  double* matrix;       // targets x targets
  double* combination;  // padded
};

PixelRoom plan_pixel(Scratch& scratch, const Shape& s) {
  PixelRoom p;
  p.of_alpha = scratch.take<double>(s.targets);
  p.of_beta = scratch.take<double>(s.targets);
  p.shares = scratch.take<double>(s.targets);
  p.mean_forms = scratch.take<double>(s.vectors);
  p.matrix = scratch.take<double>(static_cast<std::int64_t>(s.targets) * s.targets);
  p.combination = scratch.take<double>(s.padded);
  return p;
}

struct Plan {
  Moments moments;
  Factor factor;
  double* unloaded;
  double* targets;  // whitened: targets x padded
  WindowTables tables;
  WindowCounter unusable;
  std::int32_t* count;
  std::int32_t* weak_list;
  std::uint8_t* weak;
  double* whitened;
  double* vectors;       // vectors x padded per pixel
  double* forms;         // per pixel
  double* coefficients;  // per pixel
  double* means;         // of the windows, with a fixed covariance
  double* target_parts;
  double* covariance_parts;
  double* column;
  WindowSpans rows[2], cols[2], adjoint_rows[2], adjoint_cols[2];
  AdjointTiles tiles, mean_tiles;
  char* whiten_room;
  char* room;
  std::size_t worker_bytes;
};

template <Isa I>
LocalRxBlock<double> local_block(const WindowScoresBackwardParams& params, const Shape& s) {
  LocalRxBlock<double> block{};
  block.bands = s.bands;
  block.padded = s.padded;
  block.center = params.center;
  block.outer = params.window.outer;
  block.inner = params.window.inner;
  block.row_stride = static_cast<std::ptrdiff_t>(s.cols) * s.padded;
  block.samples = window_samples(params.window);
  block.count_stride = block.status_stride = s.cols;
  block.score_stride = block.weak_stride = s.cols;
  block.tolerance = weak_pivot<double>;
  block.trust = trusted_error<double>;
  block.target_count = s.targets;
  block.kind = MatchedScore::filter;
  return block;
}

int channels(const Shape& s, bool matrices) {
  return (matrices ? s.bands * (s.bands + 1) / 2 : 0) + s.bands + 1;
}

template <class T>
std::size_t worker_bytes(const WindowScoresBackwardParams& params, const Shape& s, const Plan& p,
                         bool fixed) {
  WindowAdjointBlock<T> block{};
  block.bands = s.bands;
  block.windows = params.window.inner > 0 ? 2 : 1;
  block.rank = s.rank;
  block.matrices = !fixed;
  block.col_end = p.tiles.columns;
  block.source_end = p.tiles.source_columns;
  WindowAdjointBlock<double> means{};
  means.bands = s.bands;
  means.windows = block.windows;
  means.col_end = p.mean_tiles.columns;
  means.source_end = p.mean_tiles.source_columns;
  const std::size_t kernels = dispatch_isa([&]<Isa I>() {
    return std::max({WindowAdjointKernel<I>::scratch_bytes(block),
                     WindowAdjointKernel<I>::scratch_bytes(means),
                     RxKernel<I>::scratch_bytes(local_block<I>(params, s))});
  });
  Scratch own;
  plan_own_window(own, s, params.window);
  Scratch pixel;
  plan_pixel(pixel, s);
  return (std::max({kernels, own.bytes(), pixel.bytes()}) + 63) / 64 * 64;
}

Plan make_plan(Scratch& scratch, const WindowScoresBackwardParams& params, const TensorView& image,
               const TensorView& target, const TensorView& covariance, int threads) {
  const Shape s = shape_of(params, image, target);
  const bool fixed = is_given(covariance);
  Plan p{};
  p.factor = plan_factor(scratch, s.bands);
  p.targets = scratch.take<double>(static_cast<std::int64_t>(s.targets) * s.padded);
  p.tables = plan_windows(scratch, params.window, params.border, s.rows, s.cols);
  p.unusable = plan_counter(scratch, params.window, s.rows, s.cols);
  p.count = scratch.take<std::int32_t>(s.pixels);
  p.weak_list = scratch.take<std::int32_t>(s.pixels);
  p.weak = scratch.take<std::uint8_t>(s.pixels);
  p.whitened = scratch.take<double>(s.pixels * s.padded);
  p.vectors = scratch.take<double>(s.pixels * s.vectors * s.padded);
  p.forms = scratch.take<double>(s.pixels * s.forms);
  p.coefficients = scratch.take<double>(s.pixels * adjoint_coefficients(s.rank));
  if (fixed) p.means = scratch.take<double>(s.pixels * s.bands);
  p.target_parts = scratch.take<double>(static_cast<std::int64_t>(s.parts) * s.targets * s.padded);
  if (fixed) {
    p.covariance_parts =
        scratch.take<double>(static_cast<std::int64_t>(s.parts) * s.padded * s.padded);
    p.column = scratch.take<double>(s.padded);
  }
  for (int w = 0; w < (params.window.inner > 0 ? 2 : 1); ++w) {
    p.rows[w] = plan_spans(scratch, params.border, s.rows);
    p.cols[w] = plan_spans(scratch, params.border, s.cols);
    p.adjoint_rows[w] = plan_spans(scratch, params.border, s.rows);
    p.adjoint_cols[w] = plan_spans(scratch, params.border, s.cols);
  }
  p.tiles = cut_adjoint(params.window, s.rows, s.cols, channels(s, !fixed));
  p.mean_tiles = cut_adjoint(params.window, s.rows, s.cols, channels(s, false));
  // Whatever belongs to one phase alone shares its memory with the others.
  p.moments = plan_moments(scratch, s.pixels, s.bands, threads);
  const std::size_t statistics_done = scratch.mark();
  p.unloaded = scratch.take<double>(static_cast<std::int64_t>(s.padded) * s.padded);
  scratch.rewind(statistics_done);
  p.whiten_room = plan_whitening(scratch, s.bands, threads);
  scratch.rewind(statistics_done);
  p.worker_bytes =
      dispatch_float(image.dtype, [&]<class T>() { return worker_bytes<T>(params, s, p, fixed); });
  p.room = scratch.take<char>(static_cast<std::int64_t>(p.worker_bytes) * threads);
  return p;
}

void check_inputs(const WindowScoresBackwardParams& params, const TensorView& image,
                  const TensorView& target, const TensorView& covariance) {
  check_given(op, "image", image);
  check_rank(op, "image", image, {3});
  check_dtype(op, "image", image, {DType::f32, DType::f64});
  check_not_empty(op, "image", image);
  check_window(op, params.window, image.shape[0], image.shape[1]);
  if (is_given(target)) check_targets(op, target, image);
  if (is_given(covariance)) check_mean_and_covariance(op, image, TensorView{}, covariance);
}

// Samples of every window; nullptr when all have all. A window with a sample that is not finite has
// no score, so its count does not matter.
const std::int32_t* fill_counts(const WindowScoresBackwardParams& params, const Plan& p,
                                const Shape& s) {
  if (p.moments.count == s.pixels) return nullptr;
  fill_counter(p.unusable, p.tables, s.rows, [&](int r, int c) {
    return p.moments.status[static_cast<std::int64_t>(r) * s.cols + c] != status_ok;
  });
  for (int r = 0; r < s.rows; ++r) {
    for (int c = 0; c < s.cols; ++c) {
      p.count[static_cast<std::int64_t>(r) * s.cols + c] =
          window_samples(params.window) - count_window(p.unusable, p.tables, params.window, r, c);
    }
  }
  return p.count;
}

template <class In>
void whiten_all(const Plan& p, const Shape& s, const PixelList<In>& pixels, std::int64_t count,
                const std::uint8_t* status, double* whitened, int threads) {
  WhitenBlock<In, double> block{};
  block.mean = p.moments.mean;
  block.factor = p.factor.lower;
  block.factor_stride = p.factor.padded;
  block.inverse_diagonal = p.factor.inverse_diagonal;
  block.pixels = pixels;
  block.status = status;
  block.whitened = whitened;
  block.out_stride = block.out_bands = s.padded;
  whiten_pixels(block, count, p.whiten_room, threads);
}

void unwhiten(const Factor& f, int bands, double* s) {
  backward(f.lower, f.padded, f.inverse_diagonal, bands, s);
}

double* vectors_of(const Plan& p, const Shape& s, std::int64_t pixel) {
  return p.vectors + pixel * s.vectors * s.padded;
}

// The vectors and forms of one pixel in float64 from the samples of its window; false when the
// window is singular.
template <Isa I>
bool solve_own_window(const WindowScoresBackwardParams& params, const Plan& p, const Shape& s,
                      std::int64_t pixel, const OwnWindow& w) {
  const int row = static_cast<int>(pixel / s.cols);
  const int col = static_cast<int>(pixel % s.cols);
  const int top = p.tables.rows.outer_start[row];
  const int left = p.tables.cols.outer_start[col];
  const int guard_top = p.tables.rows.inner_start[row];
  const int guard_left = p.tables.cols.inner_start[col];
  int n = 0;
  for (int v = top; v < top + params.window.outer; ++v) {
    const bool guarded = v >= guard_top && v < guard_top + params.window.inner;
    for (int u = left; u < left + params.window.outer; ++u) {
      if (guarded && u >= guard_left && u < guard_left + params.window.inner) continue;
      const std::int64_t sample =
          static_cast<std::int64_t>(p.tables.rows.index[v]) * s.cols + p.tables.cols.index[u];
      if (p.moments.status[sample] != status_ok) continue;
      std::copy_n(p.whitened + sample * s.padded, s.padded,
                  w.samples + static_cast<std::int64_t>(n++) * s.padded);
    }
  }
  const double* x = p.whitened + pixel * s.padded;
  WindowStatistics statistics{};
  statistics.samples = w.samples;
  statistics.test = x;
  statistics.count = n;
  statistics.bands = s.bands;
  statistics.center = params.center;
  statistics.padded = s.padded;
  statistics.covariance = w.covariance;
  statistics.difference = w.difference;
  statistics.pointers = w.pointers;
  RxKernel<I>::window_statistics(statistics);
  double* u = vectors_of(p, s, pixel);
  for (int k = 0; k < s.vectors; ++k) {
    double* to = u + static_cast<std::int64_t>(k) * s.padded;
    const double* aim = p.targets + static_cast<std::int64_t>(k - 1) * s.padded;
    for (int j = 0; j < s.bands; ++j) {
      to[j] = k == 0 ? w.difference[j] : aim[j] - (x[j] - w.difference[j]);
    }
  }
  const bool regular = CholeskyKernel<I>::factor_one(w.covariance, s.bands, s.padded, window_pivot,
                                                     w.inverse_diagonal);
  if (!regular) return false;
  double* forms = p.forms + pixel * s.forms;
  for (int k = 0; k < s.vectors; ++k) {
    forward(w.covariance, s.padded, w.inverse_diagonal, s.bands, u + k * s.padded);
  }
  forms[0] = dot(u, u, s.bands);
  for (int k = 1; k < s.vectors; ++k) {
    const double* v = u + static_cast<std::int64_t>(k) * s.padded;
    forms[2 * k - 1] = dot(v, u, s.bands);
    forms[2 * k] = dot(v, v, s.bands);
  }
  for (int k = 0; k < s.vectors; ++k) {
    backward(w.covariance, s.padded, w.inverse_diagonal, s.bands, u + k * s.padded);
  }
  return true;
}

// S^-1 (x - m), S^-1 (t - m) and their products, on the whitened image. Afterwards `weak` tells the
// pixels that give nothing.
void solve_windows(const WindowScoresBackwardParams& params, const Plan& p, const Shape& s,
                   const std::uint8_t* status, const std::int32_t* count, int threads) {
  const WindowTables& t = p.tables;
  dispatch_isa([&]<Isa I>() {
    const int rows = t.rows_end - t.rows_begin;
    const int cols = t.cols_end - t.cols_begin;
    const int lanes = RxKernel<I>::lanes(double{});
    const int strips = (rows + rows_per_strip - 1) / rows_per_strip;
    const int strip_rows = (rows + strips - 1) / strips;
    const std::int64_t tasks = static_cast<std::int64_t>(strips) * ((cols + lanes - 1) / lanes);
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      LocalRxBlock<double> block = local_block<I>(params, s);
      block.image = p.whitened;
      block.rows = t.rows;
      block.cols = t.cols;
      block.row_begin = t.rows_begin + static_cast<int>(task % strips) * strip_rows;
      block.row_end = std::min(t.rows_end, block.row_begin + strip_rows);
      block.col_begin = t.cols_begin + static_cast<int>(task / strips) * lanes;
      block.col_end = t.cols_end;
      block.status = count ? p.moments.status : nullptr;
      block.count = count;
      block.targets = p.targets;
      block.solved = p.vectors;
      block.forms = p.forms;
      block.weak = p.weak;
      block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      RxKernel<I>::local(block);
    });
    std::int64_t weak = 0;
    for (std::int64_t pixel = 0; pixel < s.pixels; ++pixel) {
      const std::int64_t r = pixel / s.cols;
      const std::int64_t c = pixel % s.cols;
      const bool edge = r < t.rows_begin || r >= t.rows_end || c < t.cols_begin || c >= t.cols_end;
      if (edge || status[pixel] != status_ok) {
        p.weak[pixel] = 1;
      } else if (p.weak[pixel]) {
        p.weak_list[weak++] = static_cast<std::int32_t>(pixel);
      }
    }
    parallel_for(threads, weak, [&](std::int64_t task, int worker) {
      Workspace mine;
      mine.data = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      Scratch scratch(mine);
      const OwnWindow w = plan_own_window(scratch, s, params.window);
      const std::int32_t pixel = p.weak_list[task];
      p.weak[pixel] = !solve_own_window<I>(params, p, s, pixel, w);
    });
  });
}

// The same for a fixed covariance, by which the image is whitened.
void subtract_means(const WindowScoresBackwardParams& params, const Plan& p, const Shape& s,
                    const std::uint8_t* status, const std::int32_t* count, int threads) {
  WindowAdjointBlock<double> means{};
  means.bands = s.bands;
  means.cols = s.cols;
  means.samples = p.whitened;
  means.sample_stride = s.padded;
  means.windows = params.window.inner > 0 ? 2 : 1;
  means.count = count;
  means.samples_each = window_samples(params.window);
  means.out_means = p.means;
  for (int w = 0; w < means.windows; ++w) {
    means.row_spans[w] = p.rows[w];
    means.col_spans[w] = p.cols[w];
  }
  dispatch_isa([&]<Isa I>() {
    const std::int64_t tasks =
        static_cast<std::int64_t>(p.mean_tiles.strips) * p.mean_tiles.column_tiles;
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      WindowAdjointBlock<double> block = means;
      place_tile(block, p.mean_tiles, s.rows, s.cols, task);
      block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      WindowAdjointKernel<I>::means(block);
    });
  });
  parallel_for(threads, s.rows, [&](std::int64_t row, int) {
    for (std::int64_t pixel = row * s.cols; pixel < (row + 1) * s.cols; ++pixel) {
      p.weak[pixel] = status[pixel] != status_ok;
      double* u = vectors_of(p, s, pixel);
      double* forms = p.forms + pixel * s.forms;
      const double* mean = p.means + pixel * s.bands;
      for (int k = 0; k < s.vectors; ++k) {
        const double* from = k == 0 ? p.whitened + pixel * s.padded
                                    : p.targets + static_cast<std::int64_t>(k - 1) * s.padded;
        double* v = u + static_cast<std::int64_t>(k) * s.padded;
        for (int j = 0; j < s.bands; ++j) v[j] = from[j] - mean[j];
        if (k > 0) forms[2 * k - 1] = dot(v, u, s.bands);
        forms[2 * k] = dot(v, v, s.bands);
      }
    }
  });
}

// Partial derivatives of a score with respect to alpha = (t - m)^T S^-1 (x - m),
// beta = (t - m)^T S^-1 (t - m) and gamma = (x - m)^T S^-1 (x - m).
struct Slopes {
  double alpha, beta, gamma;
};

Slopes slopes_of(MatchedScore kind, double alpha, double beta, double gamma) {
  switch (kind) {
    case MatchedScore::ace: {
      // A pixel on the mean has the score 0.
      if (!(gamma > 0)) return {0, 0, 0};
      const double score = alpha / beta * (alpha / gamma);
      return {2 * (alpha / beta) / gamma, -score / beta, -score / gamma};
    }
    case MatchedScore::signed_ace: {
      if (!(gamma > 0)) return {0, 0, 0};
      const double slope = 1 / (std::sqrt(beta) * std::sqrt(gamma));
      return {slope, -slope * alpha / (2 * beta), -slope * alpha / (2 * gamma)};
    }
    case MatchedScore::normalized_filter: {
      const double slope = 1 / std::sqrt(beta);
      return {slope, -slope * alpha / (2 * beta), 0};
    }
    default:
      return {1 / beta, -alpha / beta / beta, 0};
  }
}

// Solves A x = b for a small symmetric A, of which the lower triangle is read and lost; x for b.
void solve_small(double* a, int n, double* b) {
  for (int j = 0; j < n; ++j) {
    double* row = a + static_cast<std::int64_t>(j) * n;
    for (int k = 0; k < j; ++k) {
      const double* other = a + static_cast<std::int64_t>(k) * n;
      row[k] = (row[k] - dot(row, other, k)) / other[k];
    }
    row[j] = std::sqrt(row[j] - dot(row, row, j));
    b[j] = (b[j] - dot(row, b, j)) / row[j];
  }
  for (int j = n - 1; j >= 0; --j) {
    const double* row = a + static_cast<std::int64_t>(j) * n;
    b[j] /= row[j];
    for (int k = 0; k < j; ++k) b[k] -= row[k] * b[j];
  }
}

// From the gradient g of the scores of a pixel to what it gives: see WindowAdjointBlock. With
// score = f(alpha, beta, gamma), where d stands for x - m and w for t - m:
//   to d:  f_alpha S^-1 w + 2 f_gamma S^-1 d,   to w:  f_alpha S^-1 d + 2 f_beta S^-1 w,
//   to S:  -(f_alpha / 2 (u v^T + v u^T) + f_beta v v^T + f_gamma u u^T), u = S^-1 d, v = S^-1 w,
// to m the first two with their sign changed, and from S and m to the samples as for
// local_covariance_backward. The gradients to targets and to a fixed S are added to their sums.
template <class T>
void set_coefficients(const WindowScoresBackwardParams& params, const Plan& p, const Shape& s,
                      std::int64_t pixel, const T* g, std::ptrdiff_t g_stride, double samples,
                      bool fixed, const PixelRoom& room, double* target_sums,
                      double* covariance_sums) {
  double* u = vectors_of(p, s, pixel);
  const double* forms = p.forms + pixel * s.forms;
  const double gamma = forms[0];
  double* c = p.coefficients + pixel * adjoint_coefficients(s.rank);
  double* corner = c + s.rank - 1;  // C_ii
  double* beta = c + 2 * s.rank - 1;
  double* delta = c + 3 * s.rank - 1;
  double* broken = c + 4 * s.rank - 1;
  const double* x = p.whitened + pixel * s.padded;
  const auto vector = [&](int k) { return u + static_cast<std::int64_t>(k) * s.padded; };
  // Products with the mean, which is x - d.
  for (int k = 0; k < s.vectors; ++k) {
    room.mean_forms[k] =
        params.center ? dot(vector(k), x, s.bands) - (k == 0 ? gamma : forms[2 * k - 1]) : 0.0;
  }
  double to_u = 0;  // of the gradient to the mean, as the coefficient of u
  // First C without its divisor -(n - ddof), and in beta the part of the mean without -1 / n.
  if (s.subspace) {
    // A pixel on the mean has the score 0.
    const double inverse = gamma > 0 ? 1 / gamma : 0.0;
    const double slope = static_cast<double>(g[0]) * inverse;
    for (int k = 0; k < s.targets; ++k) {
      room.shares[k] = forms[2 * k + 1];
      for (int l = 0; l <= k; ++l) {
        const double* aim = p.targets + static_cast<std::int64_t>(l) * s.padded;
        room.matrix[k * s.targets + l] = dot(vector(k + 1), aim, s.bands) - room.mean_forms[k + 1];
      }
    }
    solve_small(room.matrix, s.targets, room.shares);
    double power = 0;
    double total = 0;
    double mean_form = 0;
    std::fill_n(room.combination, s.padded, 0.0);
    for (int k = 0; k < s.targets; ++k) {
      power += room.shares[k] * forms[2 * k + 1];
      total += room.shares[k];
      mean_form += room.shares[k] * room.mean_forms[k + 1];
      for (int j = 0; j < s.bands; ++j) room.combination[j] += room.shares[k] * vector(k + 1)[j];
    }
    for (int k = 0; k < s.targets; ++k) {
      double* sum = target_sums + static_cast<std::int64_t>(k) * s.padded;
      for (int j = 0; j < s.bands; ++j) {
        sum[j] += 2 * slope * room.shares[k] * (u[j] - room.combination[j]);
      }
    }
    std::copy_n(room.combination, s.padded, vector(1));
    room.mean_forms[1] = mean_form;
    c[0] = -2 * slope * (power * inverse);
    c[1] = 2 * slope;
    corner[1] = -2 * slope;
    delta[0] = c[0];
    delta[1] = c[1];
    to_u = c[0] + 2 * slope * total;
    beta[1] = 2 * slope * (1 - total);
  } else {
    double of_gamma = s.targets == 0 ? static_cast<double>(g[0]) : 0.0;
    for (int k = 0; k < s.targets; ++k) {
      const double one = static_cast<double>(g[k * g_stride]);
      const Slopes f = slopes_of(params.score, forms[2 * k + 1], forms[2 * k + 2], gamma);
      room.of_alpha[k] = one * f.alpha;
      room.of_beta[k] = one * f.beta;
      of_gamma += one * f.gamma;
    }
    c[0] = delta[0] = 2 * of_gamma;
    to_u = c[0];
    for (int k = 0; k < s.targets; ++k) {
      c[k + 1] = delta[k + 1] = room.of_alpha[k];
      corner[k + 1] = 2 * room.of_beta[k];
      to_u += room.of_alpha[k];
      beta[k + 1] = room.of_alpha[k] + 2 * room.of_beta[k];
      double* sum = target_sums + static_cast<std::int64_t>(k) * s.padded;
      const double* v = vector(k + 1);
      for (int j = 0; j < s.bands; ++j) {
        sum[j] += room.of_alpha[k] * u[j] + 2 * room.of_beta[k] * v[j];
      }
    }
  }
  beta[0] = to_u;
  if (covariance_sums) {
    // -C / 2 in the vectors.
    for (int i = 0; i < s.rank; ++i) {
      const double* a = vector(i);
      for (int j = 0; j < s.bands; ++j) {
        double f = 0;
        if (i == 0) {
          for (int k = 0; k < s.rank; ++k) f += c[k] * vector(k)[j];
        } else {
          f = c[i] * u[j] + corner[i] * vector(i)[j];
        }
        double* row = covariance_sums + static_cast<std::int64_t>(j) * s.padded;
        for (int k = 0; k < s.bands; ++k) row[k] -= 0.5 * f * a[k];
      }
    }
  }
  const double divisor = fixed ? 0.0 : -1.0 / (samples - (params.center ? 1 : 0));
  c[0] *= divisor;
  for (int k = 1; k < s.rank; ++k) {
    c[k] *= divisor;
    corner[k] *= divisor;
  }
  const double share = params.center ? 1.0 / samples : 0.0;
  beta[0] = c[0] * room.mean_forms[0] + beta[0] * share;
  for (int k = 1; k < s.rank; ++k) {
    beta[0] += c[k] * room.mean_forms[k];
    beta[k] = c[k] * room.mean_forms[0] + corner[k] * room.mean_forms[k] + beta[k] * share;
  }
  double rest = 0;
  for (double* e = c; e < broken; ++e) rest += *e - *e;
  *broken = rest == 0 ? 0.0 : 1.0;
  if (*broken > 0) {
    std::fill(c, broken, 0.0);
    std::fill_n(u, s.rank * s.padded, 0.0);
  }
}

template <class T>
void give(const WindowScoresBackwardParams& params, const Plan& p, const Shape& s,
          const std::int32_t* count, bool fixed, const TensorView& score_gradient,
          bool covariance_wanted, int threads) {
  const T* const gradients = static_cast<const T*>(score_gradient.data);
  parallel_for(threads, s.parts, [&](std::int64_t part, int worker) {
    Workspace mine;
    mine.data = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
    Scratch scratch(mine);
    const PixelRoom room = plan_pixel(scratch, s);
    double* target_sums = p.target_parts + part * s.targets * s.padded;
    std::fill_n(target_sums, s.targets * s.padded, 0.0);
    double* covariance_sums = nullptr;
    if (covariance_wanted) {
      covariance_sums = p.covariance_parts + part * s.padded * s.padded;
      std::fill_n(covariance_sums, static_cast<std::int64_t>(s.padded) * s.padded, 0.0);
    }
    const int end = std::min<int>(s.rows, (static_cast<int>(part) + 1) * s.part_rows);
    for (int r = static_cast<int>(part) * s.part_rows; r < end; ++r) {
      for (int c = 0; c < s.cols; ++c) {
        const std::int64_t pixel = static_cast<std::int64_t>(r) * s.cols + c;
        if (p.weak[pixel]) {
          std::fill_n(p.coefficients + pixel * adjoint_coefficients(s.rank),
                      adjoint_coefficients(s.rank), 0.0);
          std::fill_n(vectors_of(p, s, pixel), s.rank * s.padded, 0.0);
          continue;
        }
        const T* g = gradients + r * score_gradient.strides[0] + c * score_gradient.strides[1];
        set_coefficients(params, p, s, pixel, g, score_gradient.strides[2],
                         count ? count[pixel] : window_samples(params.window), fixed, room,
                         target_sums, covariance_sums);
      }
    }
  });
}

template <class T>
void spread(const WindowScoresBackwardParams& params, const Plan& p, const Shape& s, bool fixed,
            const TensorView& gradient, int threads) {
  WindowAdjointBlock<T> common{};
  common.bands = s.bands;
  common.cols = s.cols;
  common.samples = p.whitened;
  common.sample_stride = s.padded;
  common.windows = params.window.inner > 0 ? 2 : 1;
  for (int w = 0; w < common.windows; ++w) {
    common.row_spans[w] = p.adjoint_rows[w];
    common.col_spans[w] = p.adjoint_cols[w];
  }
  common.matrices = !fixed;
  common.status = p.moments.count == s.pixels ? nullptr : p.moments.status;
  common.vectors = p.vectors;
  common.vector_pixel = static_cast<std::ptrdiff_t>(s.vectors) * s.padded;
  common.vector_stride = s.padded;
  common.rank = s.rank;
  common.coefficients = p.coefficients;
  common.factor = p.factor.lower;
  common.factor_stride = p.factor.padded;
  common.inverse_diagonal = p.factor.inverse_diagonal;
  common.out = static_cast<T*>(gradient.data);
  dispatch_isa([&]<Isa I>() {
    const std::int64_t tasks = static_cast<std::int64_t>(p.tiles.strips) * p.tiles.column_tiles;
    parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
      WindowAdjointBlock<T> block = common;
      place_tile(block, p.tiles, s.rows, s.cols, task);
      block.scratch = p.room + worker * static_cast<std::int64_t>(p.worker_bytes);
      WindowAdjointKernel<I>::low_rank(block);
    });
  });
}

void store_target_gradient(const Plan& p, const Shape& s, double* out) {
  for (int k = 0; k < s.targets; ++k) {
    double* sum = p.target_parts + static_cast<std::int64_t>(k) * s.padded;
    for (int part = 1; part < s.parts; ++part) {
      const double* more = sum + static_cast<std::int64_t>(part) * s.targets * s.padded;
      for (int j = 0; j < s.bands; ++j) sum[j] += more[j];
    }
    unwhiten(p.factor, s.bands, sum);
    std::copy_n(sum, s.bands, out + static_cast<std::int64_t>(k) * s.bands);
  }
}

// L^-T G L^-1 of the sums G.
void store_covariance_gradient(const Plan& p, const Shape& s, double* out) {
  const std::int64_t matrix = static_cast<std::int64_t>(s.padded) * s.padded;
  double* g = p.covariance_parts;
  for (int part = 1; part < s.parts; ++part) {
    for (std::int64_t e = 0; e < matrix; ++e) g[e] += g[part * matrix + e];
  }
  for (int i = 0; i < s.bands; ++i) unwhiten(p.factor, s.bands, g + i * s.padded);
  for (int j = 0; j < s.bands; ++j) {
    for (int i = 0; i < s.bands; ++i) p.column[i] = g[static_cast<std::int64_t>(i) * s.padded + j];
    unwhiten(p.factor, s.bands, p.column);
    // Symmetric, so that a column of the result may stand as a row.
    std::copy_n(p.column, s.bands, out + static_cast<std::int64_t>(j) * s.bands);
  }
}

// The same on a device: each step a launch.
template <class T>
struct DevicePlan {
  DeviceBackground background;
  EstimateLaunch<T> estimate;
  WindowScoresBackwardLaunch<T> windows;
  double* targets;  // whitened
  double* tiles;    // of whitening
  double* identity;
  double* inverse;  // L^-1
  double* products;
};

template <class T>
DevicePlan<T> plan_device(Scratch& scratch, const WindowScoresBackwardParams& params,
                          const TensorView& image, const TensorView& target,
                          const TensorView& covariance, const TensorView& mask) {
  const Shape s = shape_of(params, image, target);
  const bool fixed = is_given(covariance);
  const std::int64_t n = s.bands;
  DevicePlan<T> p{};
  p.background = plan_device_background(scratch, s.bands);
  const std::int64_t needed = fixed ? 1 : n + (params.center ? 1 : 0);
  p.estimate = plan_estimate<T>(scratch, p.background, image, mask, {1, params.center}, {},
                                Scale::samples, needed, fixed);
  WindowScoresBackwardLaunch<T>& w = p.windows;
  w.rows = s.rows;
  w.cols = s.cols;
  w.bands = s.bands;
  w.pitch = window_pitch(s.bands);
  w.border = params.border;
  w.window = params.window;
  w.center = params.center;
  w.fixed = fixed;
  w.score = params.score;
  w.target_count = s.targets;
  w.rank = window_rank(s.targets, s.subspace);
  w.pixel_status = p.estimate.samples.status;
  w.image = scratch.take<double>(s.pixels * w.pitch);
  w.targets = p.targets = scratch.take<double>(static_cast<std::int64_t>(s.targets) * w.pitch);
  p.tiles = plan_whiten_tiles(scratch, std::max<std::int64_t>({s.pixels, s.targets, n}), s.bands);
  p.identity = scratch.take<double>(n * n);
  p.inverse = scratch.take<double>(n * n);
  w.quiet = scratch.take<std::uint8_t>(s.pixels);
  w.states = scratch.take<std::uint8_t>(s.pixels);
  w.vectors = scratch.take<double>(s.pixels * w.rank * w.pitch);
  w.coefficients = scratch.take<double>(s.pixels * 4 * w.rank);
  w.weights = scratch.take<double>(s.pixels * 2 * s.targets);
  const std::int64_t room = window_solve_room(s.bands, s.targets, s.subspace);
  w.matrices = scratch.take<double>(window_blocks(s.pixels, room) * room);
  const std::int64_t matrix = fixed ? n * n : 0;
  w.parts = scratch.take<double>(cross_chunks(s.pixels) * std::max(matrix, s.targets * n));
  w.target_sums = scratch.take<double>(s.targets * n);
  if (fixed) {
    w.covariance_sums = scratch.take<double>(matrix);
    p.products = scratch.take<double>(matrix);
  }
  return p;
}

// y = L^-1 (x - m), as rows of `bands` elements.
template <class In, class Plan>
WhitenLaunch<In, double> whiten_rows(const Plan& p, const DevicePixels<In>& pixels,
                                     const double* mean, double* out, int bands) {
  WhitenLaunch<In, double> launch{};
  launch.pixels = pixels;
  launch.mean = mean;
  launch.lower = p.background.lower;
  launch.inverse = p.background.inverse;
  launch.verdicts.state = p.background.state;
  launch.whitened = out;
  launch.out_stride = launch.out_bands = bands;
  launch.tiles = p.tiles;
  return launch;
}

void multiply_rows(Route route, const RowProducts& products, std::uintptr_t stream) {
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::multiply_rows(products, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::multiply_rows(products, stream);
  }
}

template <class T>
void launch_kernels(const DevicePlan<T>& p, const TensorView& image, const TensorView& target,
                    const TensorView& covariance, const TensorView& gradient,
                    const TensorView& target_gradient, const TensorView& covariance_gradient,
                    Route route, std::uintptr_t stream) {
  const WindowScoresBackwardLaunch<T>& w = p.windows;
  const int n = w.bands;
  const std::int64_t pixels = static_cast<std::int64_t>(w.rows) * w.cols;
  with_background(route, op, stream, [&](const auto& device) {
    device.estimate(p.estimate);
    if (w.fixed) {
      load_covariance(device, p.background, covariance);
    } else {
      device.factor(factor_of(p.background, n, true));
    }
    const double* mean = p.background.mean;
    device.whiten(whiten_rows<T>(p, device_pixels<T>(image), mean, w.image, w.pitch));
    if (w.target_count > 0) {
      dispatch_float(target.dtype, [&]<class Target>() {
        device.whiten(
            whiten_rows<Target>(p, device_pixels<Target>(target), mean, p.targets, w.pitch));
      });
    }
    gradients_of(device).identity(p.identity, n);
    device.whiten(whiten_rows<double>(p, device_rows(p.identity, n, n, n), nullptr, p.inverse, n));
  });
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) cuda::window_scores_backward(w, stream);
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) emulator::window_scores_backward(w, stream);
  }
  // Row i of the inverse is column i of L^-1: with it the rows are multiplied by L^-T.
  with_background(route, op, stream, [&](const auto& device) {
    RowsLaunch<double, T> back{};
    back.pixels = device_rows(w.image, pixels, n, w.pitch);
    back.matrix = p.inverse;
    back.matrix_row = 1;
    back.matrix_col = n;
    back.status = w.quiet;
    back.out = static_cast<T*>(gradient.data);
    gradients_of(device).rows(back);
  });
  if (w.target_sums) {
    auto* out = static_cast<double*>(target_gradient.data);
    multiply_rows(route, {w.target_sums, p.inverse, w.target_count, n, n, out}, stream);
  }
  if (w.covariance_sums) {
    auto* out = static_cast<double*>(covariance_gradient.data);
    multiply_rows(route, {p.inverse, w.covariance_sums, n, n, n, p.products}, stream);
    multiply_rows(route, {p.inverse, p.products, n, n, n, out}, stream);
  }
}

}  // namespace

std::size_t window_scores_backward_workspace(const WindowScoresBackwardParams& params,
                                             const TensorView& image, const TensorView& target,
                                             const TensorView& covariance, int threads) {
  check_inputs(params, image, target, covariance);
  Scratch scratch;
  if (runs_on_device(image.device)) {
    dispatch_float(image.dtype, [&]<class T>() {
      plan_device<T>(scratch, params, image, target, covariance, TensorView{});
    });
    return scratch.bytes();
  }
  make_plan(scratch, params, image, target, covariance, resolve_threads(op, threads));
  return scratch.bytes();
}

void window_scores_backward(const WindowScoresBackwardParams& params, const TensorView& image,
                            const TensorView& target, const TensorView& covariance,
                            const TensorView& mask, const TensorView& status,
                            const TensorView& score_gradient, const TensorView& gradient,
                            const TensorView& target_gradient,
                            const TensorView& covariance_gradient, const Workspace& workspace,
                            const Execution& execution) {
  check_inputs(params, image, target, covariance);
  check_mask(op, mask, image);
  const Shape s = shape_of(params, image, target);
  check_status(op, status, s.pixels);
  check_given(op, "score_gradient", score_gradient);
  check_same_dtype(op, "score_gradient", score_gradient, "image", image);
  check_same_device(op, "score_gradient", score_gradient, "image", image);
  check_shape(op, "score_gradient", score_gradient, {s.rows, s.cols, s.maps});
  check_output(op, "gradient", gradient, image.dtype, {s.rows, s.cols, s.bands});
  if (is_given(target_gradient)) {
    check_output(op, "target_gradient", target_gradient, DType::f64, {s.targets, s.bands});
  }
  const bool fixed = is_given(covariance);
  if (is_given(covariance_gradient)) {
    if (!fixed) {
      throw_value_error(op, "covariance_gradient", "must come with a covariance", "none");
    }
    check_output(op, "covariance_gradient", covariance_gradient, DType::f64, {s.bands, s.bands});
  }
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace,
                  window_scores_backward_workspace(params, image, target, covariance, threads));

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    dispatch_float(image.dtype, [&]<class T>() {
      DevicePlan<T> p = plan_device<T>(scratch, params, image, target, covariance, mask);
      WindowScoresBackwardLaunch<T>& w = p.windows;
      w.status = static_cast<const std::uint8_t*>(status.data);
      w.score_gradient = static_cast<const T*>(score_gradient.data);
      w.gradient_row = score_gradient.strides[0];
      w.gradient_col = score_gradient.strides[1];
      w.gradient_map = score_gradient.strides[2];
      if (!is_given(target_gradient)) w.target_sums = nullptr;
      if (!is_given(covariance_gradient)) w.covariance_sums = nullptr;
      launch_kernels(p, image, target, covariance, gradient, target_gradient, covariance_gradient,
                     route, execution.stream);
    });
    return;
  }
  Plan p = make_plan(scratch, params, image, target, covariance, threads);
  if (fixed) {
    compute_mean(p.moments, image, mask, threads);
    load_covariance(op, p.factor, covariance);
  } else {
    if (!compute_moments(p.moments, image, mask, {1, params.center}, threads)) {
      std::fill_n(p.moments.covariance, static_cast<std::int64_t>(s.padded) * s.padded, 0.0);
    }
    std::copy_n(p.moments.covariance, static_cast<std::int64_t>(s.padded) * s.padded,
                p.factor.lower);
    factor_unit(p.factor, p.unloaded, s.bands);
  }
  const Window& window = params.window;
  fill_windows(p.tables, window, params.border, s.rows, s.cols);
  for (int w = 0; w < (window.inner > 0 ? 2 : 1); ++w) {
    const int side = w == 0 ? window.outer : window.inner;
    const WindowTables& t = p.tables;
    const std::int32_t* row_starts = w == 0 ? t.rows.outer_start : t.rows.inner_start;
    const std::int32_t* col_starts = w == 0 ? t.cols.outer_start : t.cols.inner_start;
    fill_spans(p.rows[w], row_starts, side);
    fill_spans(p.cols[w], col_starts, side);
    fill_adjoint_spans(p.adjoint_rows[w], row_starts, side, t.rows_begin, t.rows_end);
    fill_adjoint_spans(p.adjoint_cols[w], col_starts, side, t.cols_begin, t.cols_end);
  }
  const std::int32_t* count = fill_counts(params, p, s);
  const auto* states = static_cast<const std::uint8_t*>(status.data);
  if (s.targets > 0) {
    load_targets(op, target, s.padded, p.targets);
    const PixelList<double> list{p.targets, s.targets, 0, s.padded, 1, 0, s.bands, s.padded};
    whiten_all(p, s, list, s.targets, nullptr, p.targets, threads);
  }
  dispatch_float(image.dtype, [&]<class T>() {
    whiten_all(p, s, pixel_list<T>(image), s.pixels, p.moments.status, p.whitened, threads);
    if (fixed) {
      subtract_means(params, p, s, states, count, threads);
    } else {
      solve_windows(params, p, s, states, count, threads);
    }
    give<T>(params, p, s, count, fixed, score_gradient, is_given(covariance_gradient), threads);
    spread<T>(params, p, s, fixed, gradient, threads);
  });
  if (is_given(target_gradient)) {
    store_target_gradient(p, s, static_cast<double*>(target_gradient.data));
  }
  if (is_given(covariance_gradient)) {
    store_covariance_gradient(p, s, static_cast<double*>(covariance_gradient.data));
  }
}

}  // namespace mahal

// Covariance estimators for the window of every pixel.
//
// A block takes one window after the other. It reads the samples in chunks, less their mean, into
// shared memory, where they stay when they are one chunk. A thread weighs whole samples, solving
// with the factor of the estimate, and then sums products for its entries of the matrix, sample by
// sample, so that the order of the sums follows from the sizes alone. The matrices are in shared
// memory too, or, with very many bands, in the room of the caller. All arithmetic is in float64.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/device_matrix.hpp"
#include "core/device_targets.hpp"
#include "core/simt.hpp"
#include "ops/window_estimators_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr const char* op = "window_estimators";
constexpr int max_threads = 256;
constexpr int max_windows = 8;  // of one launch
// Blocks of a launch whose matrices are in the room, two for every multiprocessor of a large
// device.
constexpr std::int64_t room_blocks = 264;
// What lets two blocks share a multiprocessor of 227 KiB, for a chunk that is not whole.
constexpr std::size_t chunk_budget = 100 * 1024;

// As in core/window_axis.hpp and the public header.
enum Status : std::uint8_t {
  done = 0,
  few_samples = 1,
  singular = 2,
  non_finite = 3,
  masked = 4,
  not_converged = 5
};

struct EstimatorParameters {
  WindowEstimatorsLaunch a;
  Window windows[max_windows];
  int first_window, window_count;  // of this launch
  int capacity;                    // samples of a chunk
  bool in_room;                    // the matrices are there
  std::int64_t matrix;             // numbers of one
};

__device__ __forceinline__ int window_start(int centre, int size, int width, Border border) {
  const int start = centre - width / 2;
  if (border == Border::reflect) return start;
  return start < 0 ? 0 : start > size - width ? size - width : start;
}

__device__ __forceinline__ int mirrored(int i, int size) {
  if (size == 1) return 0;
  const int period = 2 * (size - 1);
  int k = i % period;
  if (k < 0) k += period;
  return k < size ? k : period - k;
}

// Where the parts of a block's memory lie, in bytes; sizes in numbers.
struct Layout {
  std::size_t matrices, vectors, samples, solved, weights, norms, states, end;
};
std::int64_t matrix_numbers(int n) { return (std::int64_t{n} * (n + 1) / 2 + 1) / 2 * 2; }
template <class N>
Layout layout_of(int n, int slots, int capacity, int threads, bool in_room, int targets) {
  Layout l{};
  const auto after = [](std::size_t at, std::size_t bytes) { return at + (bytes + 15) / 16 * 16; };
  l.vectors = in_room ? 0 : 3 * matrix_numbers(n) * sizeof(N);
  // Mean, origin, pivots, the pixel itself, and a double per warp to reduce with.
  l.samples = after(l.vectors, 4 * n * sizeof(N) + 40 * sizeof(double));
  l.solved = after(l.samples, std::size_t{1} * capacity * (n | 1) * sizeof(N));
  const int rows = std::max(std::min(threads, capacity), targets);
  l.weights = after(l.solved, std::size_t{1} * rows * (n | 1) * sizeof(N));
  l.norms = after(l.weights, capacity * sizeof(double));
  l.states = after(l.norms, capacity * sizeof(double));
  l.end = after(l.states, slots);
  return l;
}

struct BlockParameters {
  EstimatorParameters p;
  Layout layout;
};

template <class N, class T>
__device__ __forceinline__ N number_at(const T* at) {
  if constexpr (is_complex_number<N>) {
    return {static_cast<double>(at[0]), static_cast<double>(at[1])};
  } else {
    return static_cast<double>(at[0]);
  }
}
template <class N, class T>
__device__ __forceinline__ void put_number(T* at, N value) {
  at[0] = static_cast<T>(real_part(value));
  if constexpr (is_complex_number<N>) at[1] = static_cast<T>(value.im);
}

__device__ __forceinline__ double largest_part(double a) { return std::fabs(a); }
__device__ __forceinline__ double largest_part(Complex<double> a) {
  return std::fmax(std::fabs(a.re), std::fabs(a.im));
}

// The window of one pixel, as its block sees it.
template <class N>
struct Estimate {
  const WindowEstimatorsLaunch& a;
  const Window window;
  const int n;
  const int capacity;
  N *current, *next, *factor;  // lower triangles, rows without gaps
  N *mean, *origin, *own;      // own: the pixel less the mean
  double* pivots;
  double* room;  // to reduce with, and a flag behind
  N *samples, *solved;
  double *weights, *norms;
  std::uint8_t* states;  // per place of the outer window: done where it is a sample

  int row, col, row_lo, col_lo, inner_row_lo, inner_col_lo;
  double count;

  static constexpr double parts = is_complex_number<N> ? 2 : 1;

  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  __device__ int places() const { return window.outer * window.outer; }
  __device__ PackedRows at() const { return {n}; }
  __device__ int pitch() const { return n | 1; }  // odd: threads use different memory banks
  __device__ bool iterates() const {
    return a.estimation.estimator == Estimator::tyler ||
           a.estimation.estimator == Estimator::student_t;
  }
  __device__ double sum(double value) const { return block_reduce(value, room); }

  // Where a pixel or a place of the window begins.
  __device__ std::int64_t pixel_at(int y, int x) const {
    return y * a.row_stride + x * a.col_stride;
  }
  __device__ std::int64_t place_at(int place) const {
    return pixel_at(mirrored(row_lo + place / window.outer, static_cast<int>(a.rows)),
                    mirrored(col_lo + place % window.outer, static_cast<int>(a.cols)));
  }
  __device__ N read(std::int64_t pixel, int band) const {
    const std::int64_t at = pixel + band * a.band_stride;
    return a.single ? number_at<N>(static_cast<const float*>(a.image) + at)
                    : number_at<N>(static_cast<const double*>(a.image) + at);
  }
  __device__ void write(void* to, std::int64_t index, N value) const {
    const std::int64_t at = index * (is_complex_number<N> ? 2 : 1);
    if (a.single) {
      put_number(static_cast<float*>(to) + at, value);
    } else {
      put_number(static_cast<double*>(to) + at, value);
    }
  }
  __device__ int state_of(int y, int x) const {
    if (a.mask != nullptr && a.mask[y * a.mask_row_stride + x * a.mask_col_stride] == 0) {
      return masked;
    }
    const std::int64_t pixel = pixel_at(y, x);
    for (int j = 0; j < n; ++j) {
      if (!is_finite(read(pixel, j))) return non_finite;
    }
    return done;
  }

  // States of the places, number, origin and mean of the samples.
  __device__ int gather() {
    const int rows = static_cast<int>(a.rows), cols = static_cast<int>(a.cols);
    row_lo = window_start(row, rows, window.outer, a.border);
    col_lo = window_start(col, cols, window.outer, a.border);
    inner_row_lo = window_start(row, rows, window.inner, a.border);
    inner_col_lo = window_start(col, cols, window.inner, a.border);
    int first = places(), found = 0, bad = 0;
    for (int k = thread(); k < places(); k += threads()) {
      const int y = row_lo + k / window.outer, x = col_lo + k % window.outer;
      int state = masked;
      if (y < inner_row_lo || y >= inner_row_lo + window.inner || x < inner_col_lo ||
          x >= inner_col_lo + window.inner) {
        state = state_of(mirrored(y, rows), mirrored(x, cols));
      }
      states[k] = static_cast<std::uint8_t>(state);
      found += state == done;
      bad += state == non_finite;
      if (state == done && k < first) first = k;
    }
    int* integers = reinterpret_cast<int*>(room);
    first = block_reduce(first, integers, Least{});
    found = block_reduce(found, integers);
    bad = block_reduce(bad, integers);
    count = found;

    const bool shifted = a.center && found > 0;
    for (int j = thread(); j < n; j += threads()) {
      origin[j] = shifted ? read(place_at(first), j) : N{};
    }
    __syncthreads();
    // A warp per band.
    const int lane = thread() % warp_lanes;
    for (int j = thread() / warp_lanes; j < n; j += threads() / warp_lanes) {
      N total{};
      for (int k = lane; shifted && k < places(); k += warp_lanes) {
        if (states[k] != done) continue;
        total = total + (read(place_at(k), j) - origin[j]);
      }
      total = warp_reduce(total);
      if (lane == 0) mean[j] = shifted ? total * (1 / count) : N{};
    }
    __syncthreads();
    for (int j = thread(); j < n; j += threads()) {
      own[j] = read(pixel_at(row, col), j) - origin[j] - mean[j];
    }
    if (bad > 0) return non_finite;
    const int rank = found - (a.center ? 1 : 0);
    // A sample covariance of less than full rank has no inverse to score with.
    const bool full = a.targets != nullptr && a.estimation.estimator == Estimator::scm;
    const bool enough = iterates() ? rank > n : rank >= (full ? n : 1);
    const bool divisible =
        a.estimation.estimator > Estimator::loading || !a.center || found > a.ddof;
    return enough && divisible ? done : few_samples;
  }

  // The samples [begin, end) of the places less their mean, zeros where there is none. Returns what
  // this thread has seen: of Tyler's estimate, which knows directions only, the samples that are
  // not zero; of Ledoit and Wolf's the fourth powers of the lengths.
  __device__ double stage(int begin, int end) const {
    constexpr double smallest = 1e-300;
    const bool tyler = a.estimation.estimator == Estimator::tyler;
    double seen = 0;
    for (int k = begin + thread(); k < end; k += threads()) {
      N* x = samples + (k - begin) * pitch();
      const bool present = states[k] == done;
      const std::int64_t pixel = place_at(k);
      double largest = 0, square = 0;
      for (int j = 0; j < n; ++j) {
        x[j] = present ? read(pixel, j) - origin[j] - mean[j] : N{};
        const double size = largest_part(x[j]);
        if (size > largest) largest = size;
        if (!tyler) square += squared(x[j]);
      }
      if (!tyler) {
        seen += square * square;
        continue;
      }
      // Of unit length, so that no sample is out of range; first by the largest entry, for the same
      // reason.
      const double shrink = largest > smallest ? 1 / largest : 0.0;
      square = 0;
      for (int j = 0; j < n; ++j) square += squared(x[j] * shrink);
      const double scale = largest > smallest ? shrink / std::sqrt(square) : 0.0;
      for (int j = 0; j < n; ++j) x[j] = x[j] * scale;
      norms[k - begin] = square * largest * largest;
      seen += largest > smallest ? 1 : 0;
    }
    return seen;
  }
  __device__ bool kept() const { return capacity >= places(); }

  // next += sum of weight z z^H over a chunk. A thread sums squares of Tile entries.
  template <int Tile>
  __device__ void add_tiles(int chunk) const {
    const int side = (n + Tile - 1) / Tile;
    for (int t = thread(); t < side * side; t += threads()) {
      const int r0 = t / side * Tile, c0 = t % side * Tile;
      if (c0 > r0) continue;
      N total[Tile][Tile] = {};
      for (int k = 0; k < chunk; ++k) {
        const double weight = weights[k];
        const N* x = samples + k * pitch();
        N left[Tile], right[Tile];
    MAHAL_UNROLL
        for (int s = 0; s < Tile; ++s) {
          left[s] = x[r0 + s < n ? r0 + s : n - 1] * weight;
          right[s] = conjugate(x[c0 + s < n ? c0 + s : n - 1]);
        }
        MAHAL_UNROLL
        for (int s = 0; s < Tile; ++s) {
          MAHAL_UNROLL
          for (int u = 0; u < Tile; ++u) total[s][u] = total[s][u] + left[s] * right[u];
        }
      }
      MAHAL_UNROLL
      for (int s = 0; s < Tile; ++s) {
        MAHAL_UNROLL
        for (int u = 0; u < Tile; ++u) {
          const int r = r0 + s, c = c0 + u;
          if (r < n && c <= r) next[at()(r, c)] = next[at()(r, c)] + total[s][u];
        }
      }
    }
  }

  // Squared length of L^-1 z for a sample of the chunk, by one thread.
  __device__ double distance(int k) const {
    const N* x = samples + k * pitch();
    N* y = solved + thread() * pitch();
    double square = 0;
    for (int i = 0; i < n; ++i) {
      N value = x[i];
      const N* l = factor + at()(i, 0);
      for (int j = 0; j < i; ++j) value = value - l[j] * y[j];
      value = value * pivots[i];
      y[i] = value;
      square += squared(value);
    }
    return square;
  }

  // Leaves the sum of the weighted products of all samples in `next`, and returns the sum of the
  // weights: 1 the first time, when the samples are not staged yet; *seen is then the sum of what
  // `stage` returns.
  __device__ double step(bool first, double* seen) const {
    const bool tyler = a.estimation.estimator == Estimator::tyler;
    const double numerator = parts * n + a.estimation.nu;
    for (int e = thread(); e < at()(n, 0); e += threads()) next[e] = N{};
    double total = 0, noticed = 0;
    for (int begin = 0; begin < places(); begin += capacity) {
      const int end = begin + capacity < places() ? begin + capacity : places();
      __syncthreads();
      if (first || !kept()) noticed += stage(begin, end);
      __syncthreads();
      for (int k = begin + thread(); k < end; k += threads()) {
        double weight = states[k] == done ? 1 : 0;
        if (!first && states[k] == done) {
          const double d = distance(k - begin);
          weight = !tyler ? numerator / (a.estimation.nu + parts * d) : d > 0 ? 1 / d : 0.0;
        }
        weights[k - begin] = weight;
        total += weight;
      }
      __syncthreads();
      if (n > 16) {
        add_tiles<is_complex_number<N> ? 2 : 4>(end - begin);
      } else {
        add_tiles<1>(end - begin);
      }
    }
    __syncthreads();
    if (first) *seen = sum(noticed);
    return sum(total);
  }

  __device__ static N not_a_number() {
    if constexpr (is_complex_number<N>) return {simt::nan<double>, simt::nan<double>};
    return to_number<N>(simt::nan<double>);
  }

  // visit(entry offset, weight in the squared Frobenius norm, whether it is on the diagonal)
  template <class Visit>
  __device__ void each_entry(Visit visit) const {
    for (int e = thread(); e < n * n; e += threads()) {
      const int i = e / n, j = e % n;
      if (j <= i) visit(at()(i, j), i == j ? 1.0 : 2.0, i == j);
    }
  }
  __device__ double trace(const N* matrix) const {
    double total = 0;
    for (int i = thread(); i < n; i += threads()) total += real_part(matrix[at()(i, i)]);
    return sum(total);
  }
  __device__ void scale_next(double scale) const {
    each_entry([&](int e, double, bool) { next[e] = next[e] * scale; });
    __syncthreads();
  }
  // Leaves the factor of `current` and the reciprocals of its diagonal.
  __device__ bool factor_current() const {
    each_entry([&](int e, double, bool) { factor[e] = current[e]; });
    for (int i = thread(); i < n; i += threads()) pivots[i] = real_part(current[at()(i, i)]);
    __syncthreads();
    int* flag = reinterpret_cast<int*>(room + 32);
    return block_cholesky(factor, at(), n, n, a.smallest_pivot, pivots, flag);
  }

  // From the unweighted sum of products in `next`, and the sum of the fourth powers of the lengths.
  __device__ int shrink(double fourth) const {
    const Estimation& e = a.estimation;
    const bool simple = e.estimator <= Estimator::loading;
    scale_next(1 / (simple && a.center ? count - a.ddof : count));
    const double total = trace(next), average = total / n;
    double keep = 1, add = 0;
    if (e.estimator == Estimator::loading) {
      add = e.loading * average;
    } else if (!simple) {
      double squares = 0, distances = 0;
      each_entry([&](int k, double twice, bool diagonal) {
        const double value = squared(next[k]);
        squares += twice * value;
        const double apart = real_part(next[k]) - average;
        distances += diagonal ? apart * apart : twice * value;
      });
      const double square = sum(squares), apart = sum(distances);  // of S0, and from it to a I
      double spread = 0;
      if (e.estimator == Estimator::ledoit_wolf) {
        spread = (fourth / count - square) / count;
      } else if (parts == 1) {
        spread = (square + total * total) / (count + 1);
      } else {
        spread = (total * total - square / n) / (count - 1.0 / n);
      }
      const double share = !(apart > 0) ? 1.0 : spread > 0 ? spread / apart : 0.0;
      const double rho = share < 1 ? share : 1.0;
      keep = 1 - rho;
      add = rho * average;
    }
    each_entry([&](int k, double, bool diagonal) {
      current[k] = next[k] * keep;
      if (diagonal) current[k] = to_number<N>(real_part(current[k]) + add);
    });
    __syncthreads();
    return total > 0 ? done : singular;
  }

  // The samples have been gathered.
  __device__ int estimate() const {
    const Estimation& e = a.estimation;
    const bool tyler = e.estimator == Estimator::tyler;
    for (int k = 0; k == 0 || k < e.max_iterations; ++k) {
      if (k > 0 && !factor_current()) return singular;
      double seen = 0;
      const double total = step(k == 0, &seen);
      if (!iterates()) return shrink(seen);
      // The mean weight of Student's estimate is 1 at the fixed point; dividing by it takes far
      // fewer steps.
      scale_next(tyler ? n / trace(next) : 1 / total);
      double changes = 0, sizes = 0;
      each_entry([&](int entry, double twice, bool) {
        if (k > 0) changes += twice * squared(next[entry] - current[entry]);
        if (k > 0) sizes += twice * squared(current[entry]);
        current[entry] = next[entry];
      });
      const double change = sum(changes), size = sum(sizes);
      if (k == 0) {
        // Too few directions.
        if (tyler && !(seen - (a.center ? 1 : 0) > n)) return singular;
        continue;
      }
      const double left = change - e.tolerance * e.tolerance * size;
      // What is not a number has not converged to anything.
      if (left != left) return singular;
      if (!(left > 0)) return done;
    }
    return not_converged;
  }

  __device__ void write_maps(std::int64_t result, int state, bool edge) const {
    const N nan = not_a_number();
    const bool vanished = state == singular && !iterates();
    const bool estimated = !edge && (state == done || state == not_converged || vanished);
    const bool known =
        !edge && (estimated || state == singular || (state == few_samples && count > 0));
    for (int j = thread(); j < n; j += threads()) {
      write(a.mean, result * n + j, known ? origin[j] + mean[j] : nan);
    }
    for (int e = thread(); e < n * n; e += threads()) {
      const int i = e / n, j = e % n;
      N value = nan;
      if (estimated) value = j <= i ? current[at()(i, j)] : conjugate(current[at()(j, i)]);
      // The diagonal is real, without a sign on its zeros.
      if (estimated && i == j) value = to_number<N>(real_part(value));
      write(a.covariance, result * n * n + e, value);
    }
  }

  // x = conj(L^-1 conj(x)), by one warp, of a row less its mean: products keep their magnitudes.
  __device__ void whiten_row(N* x) const {
    for (int j = thread(); j < n; j += warp_lanes) x[j] = conjugate(x[j]);
    warp_forward(factor, at(), pivots, n, x);
  }

  // Leaves L^-1 (t - m) of a target in x, by one warp; zeros where nothing but rounding is left.
  __device__ void whiten_target(int target, N* x) const {
    constexpr double rounding = 16 * simt::epsilon<double>;
    const auto number = [&](int j) {
      const std::int64_t offset =
          std::int64_t{target} * a.target_stride + j * a.target_band_stride;
      return a.targets_single ? number_at<N>(static_cast<const float*>(a.targets) + offset)
                              : number_at<N>(static_cast<const double*>(a.targets) + offset);
    };
    const auto part = [](const N& value, int k) {
      return reinterpret_cast<const double*>(&value)[k];
    };
    int differs = 0;
    for (int j = thread(); j < n; j += warp_lanes) {
      const N t = number(j), m = origin[j] + mean[j];
      x[j] = t - origin[j] - mean[j];
      for (int k = 0; k < static_cast<int>(parts); ++k) {
        const double size = std::fmax(std::fabs(part(t, k)), std::fabs(part(m, k)));
        // NaN counts as a difference.
        if (!(std::fabs(part(x[j], k)) <= rounding * size)) differs = 1;
      }
    }
    if (warp_reduce(differs, Greatest{}) == 0) {
      for (int j = thread(); j < n; j += warp_lanes) x[j] = N{};
    }
    whiten_row(x);
  }

  __device__ void put_score(std::int64_t to, double value) const {
    if (a.single) {
      static_cast<float*>(a.score)[to] = static_cast<float>(value);
    } else {
      static_cast<double*>(a.score)[to] = value;
    }
  }

  // The scores of all targets, by one warp. False where one has no direction of its own.
  __device__ bool score_targets(double scale, std::int64_t to) const {
    constexpr int halves = static_cast<int>(parts);
    const int length = n * halves;
    double* rows = reinterpret_cast<double*>(solved);
    const double* y = reinterpret_cast<const double*>(own);
    const bool subspace = a.kind == MatchedScore::subspace_ace;
    // Only a basis is needed as a whole.
    const int together = subspace ? a.target_count : 1;
    bool all = true;
    for (int k = 0; k < a.target_count; k += together) {
      for (int m = 0; m < together; ++m) {
        whiten_target(k + m, reinterpret_cast<N*>(rows + m * halves * length));
      }
      const TargetRows targets{a.kind, together, halves, length, length, rows, scale};
      const auto put = [&](int m, double value) { put_score(to + k + m, value); };
      if (!targets.score(y, put)) all = false;
      __syncwarp();
    }
    return all;
  }

  // The squared Mahalanobis distance of the pixel, or what its targets score; the scale of Tyler's
  // estimate is such that the samples have a distance of n on average.
  __device__ int write_score(std::int64_t to, int state) const {
    const bool estimated = state == done || state == not_converged;
    bool scored = false;
    if (estimated) {
      const bool regular = factor_current();
      double scale = 1;
      if (regular && a.estimation.estimator == Estimator::tyler) {
        double weighted = 0;
        for (int begin = 0; begin < places(); begin += capacity) {
          const int end = begin + capacity < places() ? begin + capacity : places();
          __syncthreads();
          if (!kept()) stage(begin, end);
          __syncthreads();
          for (int k = begin + thread(); k < end; k += threads()) {
            weighted += distance(k - begin) * norms[k - begin];
          }
        }
        scale = n * count / sum(weighted);
      }
      double square = 0;
      if (thread() < warp_lanes) {
        whiten_row(own);
        for (int j = thread(); j < n; j += warp_lanes) square += squared(own[j]);
      }
      const double found = sum(square) * scale;
      // A distance beyond the range of the numbers has no value either.
      scored = regular && is_finite(found);
      if (!scored) state = singular;
      if (scored && a.targets == nullptr) {
        if (thread() == 0) put_score(to, found);
      } else if (scored && thread() < warp_lanes) {
        // The other warps do not look at the state.
        if (!score_targets(scale, to)) state = singular;
      }
    }
    for (int k = thread(); !scored && k < a.maps; k += threads()) {
      put_score(to + k, simt::nan<double>);
    }
    return state;
  }
};

template <class N>
__global__ void __launch_bounds__(max_threads, 1) estimate_windows(BlockParameters parameters) {
  const EstimatorParameters& p = parameters.p;
  const WindowEstimatorsLaunch& a = p.a;
  const Layout& l = parameters.layout;
  unsigned char* shared = simt::dynamic_shared<unsigned char>();
  const int n = a.bands;
  const std::int64_t size = p.matrix;
  N* matrices = reinterpret_cast<N*>(shared);
  if (p.in_room) matrices = reinterpret_cast<N*>(a.room) + 3 * size * blockIdx.x;
  N* vectors = reinterpret_cast<N*>(shared + l.vectors);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t total = a.rows * a.cols * p.window_count;
  for (std::int64_t index = blockIdx.x; index < total; index += gridDim.x) {
    const std::int64_t pixel = index / p.window_count;
    const int which = static_cast<int>(index % p.window_count);
    const std::int64_t result = pixel * a.window_count + p.first_window + which;
    double* pivots = reinterpret_cast<double*>(vectors + 3 * n);
    Estimate<N> e{a,
                     p.windows[which],
                     n,
                     p.capacity,
                     matrices,
                     matrices + size,
                     matrices + 2 * size,
                     vectors,
                     vectors + n,
                     vectors + 2 * n,
                     pivots,
                     reinterpret_cast<double*>(vectors + 4 * n),
                     reinterpret_cast<N*>(shared + l.samples),
                     reinterpret_cast<N*>(shared + l.solved),
                     reinterpret_cast<double*>(shared + l.weights),
                     reinterpret_cast<double*>(shared + l.norms),
                     shared + l.states,
                     static_cast<int>(pixel / a.cols),
                     static_cast<int>(pixel % a.cols),
                     0,
                     0,
                     0,
                     0,
                     0.0};
    const int half = e.window.outer / 2;
    const bool edge = a.border == Border::valid &&
                      (e.row < half || e.row + half >= a.rows || e.col < half ||
                       e.col + half >= a.cols);
    // The state of a pixel that is scored comes before that of its window.
    const int unusable = a.score != nullptr ? e.state_of(e.row, e.col) : static_cast<int>(done);
    int state = unusable != done ? unusable : masked;
    if (!edge && unusable == done) {
      state = e.gather();
      if (state == done) state = e.estimate();
    }
    if (a.score != nullptr) {
      state = e.write_score(result * a.maps, state);
    } else {
      e.write_maps(result, state, edge);
    }
    if (thread == 0) a.status[result] = static_cast<std::uint8_t>(state);
    __syncthreads();
  }
}

int largest_window(const WindowEstimatorsLaunch& a) {
  int outer = 1;
  for (int k = 0; k < a.window_count; ++k) outer = std::max(outer, a.windows[k].outer);
  return outer;
}

struct Plan {
  int threads, capacity;
  bool in_room;
  Layout layout;
};

template <class N>
Plan plan_windows(const WindowEstimatorsLaunch& a) {
  Plan plan{};
  const int n = a.bands, outer = largest_window(a), slots = outer * outer;
  // Whitened targets that are kept at a time.
  const int aims = (a.kind == MatchedScore::subspace_ace ? a.target_count : 1) *
                   (is_complex_number<N> ? 2 : 1);
  plan.threads = n <= 8 ? 32 : n <= 16 ? 64 : n <= 32 ? 128 : max_threads;
  const std::size_t limit = simt::shared_limit(op);
  const auto fits = [&](int capacity, bool in_room, std::size_t budget) {
    plan.capacity = capacity;
    plan.in_room = in_room;
    plan.layout = layout_of<N>(n, slots, capacity, plan.threads, in_room, aims);
    return plan.layout.end <= budget;
  };
  const std::size_t budget = std::min(limit, chunk_budget);
  if (fits(slots, false, budget)) return plan;
  for (const bool in_room : {false, true}) {
    for (int capacity = plan.threads; capacity >= 8; capacity /= 2) {
      if (fits(std::min(capacity, slots), in_room, capacity == 8 ? limit : budget)) return plan;
    }
  }
  throw_device_error(op, "window",
                     "the CUDA kernels cover windows whose states fit into the shared memory of a "
                     "block (" + std::to_string(limit) + " bytes)",
                     "a side of " + std::to_string(outer) + " with " + std::to_string(n) + " bands");
}

template <class N>
std::size_t room_of(const WindowEstimatorsLaunch& a) {
  const bool in_room = plan_windows<N>(a).in_room;
  return in_room ? room_blocks * 3 * matrix_numbers(a.bands) * sizeof(N) : 0;
}

template <class N>
void launch_all(const WindowEstimatorsLaunch& a, std::uintptr_t stream) {
  const Plan plan = plan_windows<N>(a);
  BlockParameters b{};
  b.layout = plan.layout;
  b.p.a = a;
  b.p.capacity = plan.capacity;
  b.p.in_room = plan.in_room;
  b.p.matrix = matrix_numbers(a.bands);
  for (int first = 0; first < a.window_count; first += max_windows) {
    b.p.first_window = first;
    b.p.window_count = std::min(a.window_count - first, max_windows);
    std::copy_n(a.windows + first, b.p.window_count, b.p.windows);
    const std::int64_t total = a.rows * a.cols * b.p.window_count;
    const std::int64_t blocks =
        std::min<std::int64_t>(total, plan.in_room ? room_blocks : 0x7FFFFFFF);
    if (blocks == 0) return;
    simt::launch(op, estimate_windows<N>, dim3(static_cast<unsigned>(blocks)),
                 dim3(static_cast<unsigned>(plan.threads)), plan.layout.end, stream, b);
  }
}

}  // namespace

std::size_t window_estimators_room(const WindowEstimatorsLaunch& a) {
  return a.complex ? room_of<Complex<double>>(a) : room_of<double>(a);
}

void window_estimators(const WindowEstimatorsLaunch& a, std::uintptr_t stream) {
  if (a.complex) {
    launch_all<Complex<double>>(a, stream);
  } else {
    launch_all<double>(a, stream);
  }
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

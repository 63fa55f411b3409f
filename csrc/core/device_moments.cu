// Mean and covariance of all pixels of an image in float64. Three passes over the image: which
// pixels are usable, their mean about one of them, and the products about the mean; chunks of
// pixels give partial sums, which are joined in a fixed order. What the estimators do with the
// covariance is decided on the device: iterations are a fixed number of launches that return at
// once when the state says that they have come to their end.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/device_background.hpp"
#include "core/device_matrix.hpp"
#include "core/device_pixels.hpp"
#include "core/simt.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int tile_pixels = 128;
constexpr int tile_bands = 32;
constexpr int sum_threads = 256;
constexpr int sum_parts = sum_threads / tile_bands;
constexpr int sum_flight = 8;
constexpr int join_threads = 256;
constexpr int join_width = 32;
constexpr int join_parts = join_threads / join_width;
constexpr int matrix_threads = 256;

// The hook by which tests/cpp/test_simt.cpp proves that its comparisons notice a lost barrier.
__device__ __forceinline__ void load_barrier() {
#if !defined(MAHAL_MUTATE_BARRIER)
  __syncthreads();
#endif
}

__device__ __forceinline__ std::int64_t chunk_begin(const SampleChunks& cut, std::int64_t chunk) {
  return chunk * cut.chunk_pixels;
}
__device__ __forceinline__ std::int64_t chunk_end(const SampleChunks& cut, std::int64_t chunk,
                                                  std::int64_t pixels) {
  const std::int64_t end = (chunk + 1) * cut.chunk_pixels;
  return end < pixels ? end : pixels;
}
__device__ __forceinline__ int tile_size(std::int64_t begin, std::int64_t end, int most) {
  return static_cast<int>(end - begin < most ? end - begin : most);
}

template <class T>
__global__ void __launch_bounds__(sum_threads) classify_pixels(ClassifyLaunch<T> p) {
  std::int64_t* offsets = simt::dynamic_shared<std::int64_t>();
  int* masked = reinterpret_cast<int*>(offsets + tile_pixels);
  int* broken = masked + tile_pixels;
  const int thread = static_cast<int>(threadIdx.x);
  const int bands = p.pixels.list.bands;
  const std::int64_t last = (std::int64_t{blockIdx.x} + 1) * p.cut.scan_pixels;
  const std::int64_t end = last < p.pixels.count ? last : p.pixels.count;
  std::int64_t count = 0;
  std::int64_t first = p.pixels.count;
  for (std::int64_t begin = blockIdx.x * p.cut.scan_pixels; begin < end; begin += tile_pixels) {
    const int pixels = tile_size(begin, end, tile_pixels);
    const std::int64_t pixel = begin + thread;
    if (thread < pixels) {
      offsets[thread] = pixel_offset(p.pixels.list, pixel);
      masked[thread] =
          p.mask.data != nullptr && p.mask.data[pixel / p.mask.cols * p.mask.row_stride +
                                                pixel % p.mask.cols * p.mask.col_stride] == 0;
      broken[thread] = 0;
    }
    __syncthreads();
    visit_tile<tile_pixels, sum_threads, sum_flight>(p.pixels, offsets, pixels, 0, bands,
                                                     [&](int k, int, T value) {
                                                       if (!is_finite(value)) broken[k] = 1;
                                                     });
    __syncthreads();
    if (thread < pixels) {
      const bool usable = masked[thread] == 0 && broken[thread] == 0;
      p.status[pixel] = usable ? status_ok : masked[thread] != 0 ? status_masked : status_nonfinite;
      count += usable;
      if (usable && pixel < first) first = pixel;
    }
    __syncthreads();
  }
  count = block_reduce(count, offsets);
  first = block_reduce(first, offsets, Least{});
  if (thread == 0) {
    p.counts[blockIdx.x] = count;
    p.firsts[blockIdx.x] = first;
  }
}

// Sums of the usable pixels of one chunk less the first usable one of the image, for 32 bands.
template <class T>
__global__ void __launch_bounds__(sum_threads) sum_pixels(EstimateLaunch<T> p) {
  const ClassifyLaunch<T>& samples = p.samples;
  const PixelList<T>& list = samples.pixels.list;
  double* tile = simt::dynamic_shared<double>();
  std::int64_t* offsets = reinterpret_cast<std::int64_t*>(tile + tile_bands * (tile_pixels + 1));
  int* usable = reinterpret_cast<int*>(offsets + tile_pixels);
  const int thread = static_cast<int>(threadIdx.x);
  const int chunk = static_cast<int>(blockIdx.x);
  const int first_band = static_cast<int>(blockIdx.y) * tile_bands;
  const int bands = list.bands - first_band < tile_bands ? list.bands - first_band : tile_bands;
  const int band = thread % tile_bands, part = thread / tile_bands;

  std::int64_t first = samples.pixels.count;
  for (int k = thread; k < samples.cut.scans; k += sum_threads) {
    first = samples.firsts[k] < first ? samples.firsts[k] : first;
  }
  first = block_reduce(first, offsets, Least{});
  double origin = 0;
  if (first < samples.pixels.count && band < bands) {
    origin = static_cast<double>(
        list.data[pixel_offset(list, first) + band_element(list, first_band + band)]);
  }

  double sum = 0;
  const std::int64_t end = chunk_end(samples.cut, chunk, samples.pixels.count);
  for (std::int64_t begin = chunk_begin(samples.cut, chunk); begin < end; begin += tile_pixels) {
    const int pixels = tile_size(begin, end, tile_pixels);
    if (thread < pixels) {
      offsets[thread] = pixel_offset(list, begin + thread);
      usable[thread] = samples.status[begin + thread] == status_ok;
    }
    __syncthreads();
    visit_tile<tile_pixels, sum_threads, sum_flight>(
        samples.pixels, offsets, pixels, first_band, bands, [&](int k, int j, T value) {
          tile[j * (tile_pixels + 1) + k] = static_cast<double>(value);
        });
    __syncthreads();
    if (band < bands) {
      for (int k = part; k < pixels; k += sum_parts) {
        if (usable[k] != 0) sum += tile[band * (tile_pixels + 1) + k] - origin;
      }
    }
    __syncthreads();
  }
  tile[part * tile_bands + band] = sum;
  __syncthreads();
  if (part == 0 && band < bands) {
    for (int k = 1; k < sum_parts; ++k) sum += tile[k * tile_bands + band];
    const std::int64_t padded = row_length(list.bands);
    p.sums[chunk * padded + first_band + band] = sum;
    if (chunk == 0) p.mean[first_band + band] = origin;
  }
}

// What the kernels below need of an EstimateLaunch.
struct JoinParameters {
  SampleChunks cut;
  int bands, parts;
  double ddof;
  bool center, mean_only;
  bool weighted;  // the products are those of one step of a fixed point
  std::int64_t needed;
  const std::int64_t* counts;
  const double* sums;
  const double* products;
  double* mean;
  double* covariance;
  double* previous;
  const std::uint8_t* status;
  std::int64_t pixels;
  double* distances;
  double* terms;
  BackgroundState* state;
  Estimation estimation;
};

__global__ void __launch_bounds__(join_threads) join_sums(JoinParameters p) {
  double* room = simt::dynamic_shared<double>();
  std::int64_t* count_room = reinterpret_cast<std::int64_t*>(room + join_threads);
  const int thread = static_cast<int>(threadIdx.x);
  const int padded = row_length(p.bands);
  const int band = static_cast<int>(blockIdx.x) * join_width + thread % join_width;
  std::int64_t count = 0;
  for (int k = thread; k < p.cut.scans; k += join_threads) count += p.counts[k];
  count = block_reduce(count, count_room);
  double sum = 0;
  if (band < p.bands) {
    for (int k = thread / join_width; k < p.cut.chunks; k += join_parts) {
      sum += p.sums[static_cast<std::int64_t>(k) * padded + band];
    }
  }
  room[thread] = sum;
  __syncthreads();
  if (thread < join_width) {
    for (int k = 1; k < join_parts; ++k) sum += room[k * join_width + thread];
    const bool estimated = p.center && band < p.bands && count > 0;
    p.mean[band] = estimated ? p.mean[band] + sum / static_cast<double>(count) : 0.0;
  }
  if (blockIdx.x == 0 && thread == 0) {
    const double degrees = static_cast<double>(count) - (p.center ? p.ddof : 0.0);
    const bool few = count < p.needed || (!p.mean_only && !(degrees > 0));
    // An iteration has not converged until it has.
    const bool iterative = p.estimation.estimator == Estimator::tyler ||
                           p.estimation.estimator == Estimator::student_t;
    const int outcome = few ? status_few_samples : iterative ? status_not_converged : status_ok;
    *p.state = {};
    p.state->count = count;
    p.state->outcome = outcome;
    p.state->finished = few;
  }
}

template <class T>
struct ProductParameters {
  ClassifyLaunch<T> samples;
  const double* mean;
  const double* scales;  // per pixel, of the centred pixel; or nullptr
  double* products;
  const BackgroundState* state;
};

// Sum of (x - m)(x - m)^T over the usable pixels of one chunk, for one tile of bands by bands. The
// threads are groups that take every so many pixels, each with 4 x 4 entries per thread.
template <class T, int Tile>
__global__ void __launch_bounds__(matrix_threads, 2) sum_products(ProductParameters<T> p) {
  constexpr int side = Tile / 4;
  constexpr int group_threads = side * side;
  constexpr int groups = matrix_threads / group_threads;
  constexpr int pixels_per_step = 2048 / Tile;
  constexpr int pitch = Tile + 2;
  if (p.state->finished != 0) return;
  const ClassifyLaunch<T>& samples = p.samples;
  const PixelList<T>& list = samples.pixels.list;
  const int thread = static_cast<int>(threadIdx.x);
  const int chunk = static_cast<int>(blockIdx.y);
  int pair = static_cast<int>(blockIdx.x);
  int row_tile = 0;
  while (pair > row_tile) pair -= ++row_tile;
  const int first_row = row_tile * Tile, first_col = pair * Tile;
  const bool diagonal = first_row == first_col;

  double* rows = simt::dynamic_shared<double>();
  double* cols = diagonal ? rows : rows + pixels_per_step * pitch;
  std::int64_t* offsets =
      reinterpret_cast<std::int64_t*>(rows + (Tile == 64 ? 2 : 1) * pixels_per_step * pitch);
  double* scales = reinterpret_cast<double*>(offsets + pixels_per_step);

  // Bands that the last tile does not have.
  for (int e = thread; e < (diagonal ? 1 : 2) * pixels_per_step * pitch; e += matrix_threads) {
    rows[e] = 0.0;
  }
  double sum[4][4] = {};
  const int group = thread / group_threads;
  // Rows r, r + 1 and the same in the other half of the tile, and columns likewise: what the
  // threads of a warp load together lies side by side.
  constexpr int half = Tile / 2;
  const int r = thread % group_threads / side * 2, c = thread % side * 2;
  const auto place = [](int s) { return s / 2 * half + s % 2; };
  const std::int64_t end = chunk_end(samples.cut, chunk, samples.pixels.count);
  for (std::int64_t begin = chunk_begin(samples.cut, chunk); begin < end;
       begin += pixels_per_step) {
    const int pixels = tile_size(begin, end, pixels_per_step);
    if (thread < pixels) {
      const std::int64_t pixel = begin + thread;
      const bool usable = samples.status[pixel] == status_ok;
      offsets[thread] = pixel_offset(list, pixel);
      scales[thread] = !usable ? 0.0 : p.scales != nullptr ? p.scales[pixel] : 1.0;
    }
    __syncthreads();
    const auto load = [&](int first, double* out) {
      const int bands = list.bands - first < Tile ? list.bands - first : Tile;
      visit_tile<pixels_per_step, matrix_threads>(
          samples.pixels, offsets, pixels, first, bands, [&](int k, int j, T value) {
            const double centred = static_cast<double>(value) - p.mean[first + j];
            // What is not usable may not be finite either.
            out[k * pitch + j] = scales[k] == 0.0 ? 0.0 : scales[k] * centred;
          });
    };
    load(first_row, rows);
    if (!diagonal) load(first_col, cols);
    load_barrier();
    for (int k = group; k < pixels; k += groups) {
      double a[4];
      double b[4];
  MAHAL_UNROLL
      for (int s = 0; s < 4; s += 2) {
        const Pair row = *reinterpret_cast<const Pair*>(rows + k * pitch + r + place(s));
        const Pair col = *reinterpret_cast<const Pair*>(cols + k * pitch + c + place(s));
        a[s] = row.even;
        a[s + 1] = row.odd;
        b[s] = col.even;
        b[s + 1] = col.odd;
      }
      MAHAL_UNROLL
      for (int s = 0; s < 4; ++s) {
        MAHAL_UNROLL
        for (int t = 0; t < 4; ++t) sum[s][t] += a[s] * b[t];
      }
    }
    __syncthreads();
  }

  double* out = p.products + (static_cast<std::int64_t>(blockIdx.x) * samples.cut.chunks + chunk) *
                                 (Tile * Tile);
  if constexpr (groups == 1) {
    MAHAL_UNROLL
    for (int s = 0; s < 4; ++s) {
      MAHAL_UNROLL
      for (int t = 0; t < 4; ++t) out[(r + place(s)) * Tile + c + place(t)] = sum[s][t];
    }
  } else {
    MAHAL_UNROLL
    for (int s = 0; s < 4; ++s) {
      MAHAL_UNROLL
      for (int t = 0; t < 4; ++t) {
        rows[(group * Tile + r + place(s)) * Tile + c + place(t)] = sum[s][t];
      }
    }
    __syncthreads();
    for (int e = thread; e < Tile * Tile; e += matrix_threads) {
      double total = rows[e];
      for (int g = 1; g < groups; ++g) total += rows[g * Tile * Tile + e];
      out[e] = total;
    }
  }
}

// The products of all chunks over the divisor, in both triangles. Complex numbers: from the
// products of real and imaginary parts to the real form of z z^H.
__global__ void __launch_bounds__(join_threads) join_products(JoinParameters p) {
  double* room = simt::dynamic_shared<double>();
  if (p.weighted && p.state->finished != 0) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int tile = p.cut.tile;
  const std::int64_t e = std::int64_t{blockIdx.x} * join_width + thread % join_width;
  const int i = static_cast<int>(e / p.bands), j = static_cast<int>(e % p.bands);
  const bool inside = i < p.bands && j <= i;
  double sum = 0;
  const auto add = [&](int row, int col, double sign) {
    if (row < col) {
      const int other = row;
      row = col;
      col = other;
    }
    const std::int64_t row_tile = row / tile;
    const std::int64_t pair = row_tile * (row_tile + 1) / 2 + col / tile;
    const double* entry =
        p.products + pair * p.cut.chunks * tile * tile + row % tile * tile + col % tile;
    for (int k = thread / join_width; k < p.cut.chunks; k += join_parts) {
      sum += sign * entry[static_cast<std::int64_t>(k) * tile * tile];
    }
  };
  if (inside && p.state->outcome != status_few_samples) {
    add(i, j, 1.0);
    if (p.parts == 2) add(i ^ 1, j ^ 1, i % 2 == j % 2 ? 1.0 : -1.0);
  }
  room[thread] = sum;
  __syncthreads();
  if (thread >= join_width || !inside) return;
  for (int k = 1; k < join_parts; ++k) sum += room[k * join_width + thread];
  const std::int64_t padded = row_length(p.bands);
  const double degrees = static_cast<double>(p.state->count) - (p.center ? p.ddof : 0.0);
  double value = p.weighted ? sum : sum / degrees;
  if (p.state->outcome == status_few_samples) value = simt::nan<double>;
  const std::int64_t lower = i * padded + j, upper = j * padded + i;
  if (p.weighted) p.previous[lower] = p.previous[upper] = p.covariance[lower];
  p.covariance[lower] = p.covariance[upper] = value;
}

// Sums over the pixels of one chunk of what the estimators make of their squared distances.
enum class Term : std::uint8_t { square, positive, distance, weight };

struct TermParameters {
  JoinParameters join;
  Term term;
};

__global__ void __launch_bounds__(join_threads) sum_terms(TermParameters q) {
  double* room = simt::dynamic_shared<double>();
  const JoinParameters& p = q.join;
  if (p.state->finished != 0 && q.term != Term::distance) return;
  const bool tyler = p.estimation.estimator == Estimator::tyler;
  const double variables = p.bands;
  double total = 0;
  const std::int64_t end = chunk_end(p.cut, blockIdx.x, p.pixels);
  for (std::int64_t i = chunk_begin(p.cut, blockIdx.x) + threadIdx.x; i < end; i += join_threads) {
    const bool usable = p.status[i] == status_ok;
    const double d = usable ? p.distances[i] : 0.0;
    switch (q.term) {
      case Term::square:
        total += d * d;
        break;
      case Term::positive:
        total += d > 0 ? 1.0 : 0.0;
        break;
      case Term::distance:
        total += d;
        break;
      case Term::weight: {
        // Complex variables count for two real ones, and so do their distances.
        const double nu = p.estimation.nu;
        const double top = tyler ? 1.0 : variables + nu;
        const double bottom = tyler ? d : nu + p.parts * d;
        const double w = usable && bottom > 0 ? top / bottom : 0.0;
        p.distances[i] = std::sqrt(w);
        total += w;
        break;
      }
    }
  }
  total = block_reduce(total, room);
  if (threadIdx.x == 0) p.terms[blockIdx.x] = total;
}

__device__ double total_terms(const JoinParameters& p, double* room) {
  double total = 0;
  for (int k = static_cast<int>(threadIdx.x); k < p.cut.chunks; k += matrix_threads) {
    total += p.terms[k];
  }
  return block_reduce(total, room);
}

// Sum of value(entry) over the matrix, by one block.
template <class Value>
__device__ double sum_matrix(int bands, const Value& value, double* room) {
  const std::int64_t padded = row_length(bands);
  double total = 0;
  for (int i = 0; i < bands; ++i) {
    for (int j = static_cast<int>(threadIdx.x); j < bands; j += matrix_threads) {
      total += value(i * padded + j, i == j);
    }
  }
  return block_reduce(total, room);
}

template <class Change>
__device__ void change_matrix(int bands, const Change& change) {
  const std::int64_t padded = row_length(bands);
  for (int i = 0; i < bands; ++i) {
    for (int j = static_cast<int>(threadIdx.x); j < bands; j += matrix_threads) {
      change(i * padded + j, i == j);
    }
  }
}

__device__ double trace_of(const JoinParameters& p, double* room) {
  double trace = 0;
  for (int j = static_cast<int>(threadIdx.x); j < p.bands; j += matrix_threads) {
    trace += p.covariance[j * (row_length(p.bands) + std::int64_t{1})];
  }
  return block_reduce(trace, room) / p.parts;
}

// The estimators with a diagonal that is loaded, or a matrix that is shrunk towards it.
__global__ void __launch_bounds__(matrix_threads) shrink_covariance(JoinParameters p) {
  double* room = simt::dynamic_shared<double>();
  if (p.state->outcome != status_ok) return;
  const double parts = p.parts;
  const double variables = p.bands / parts;
  const double count = static_cast<double>(p.state->count);
  const double total = trace_of(p, room);
  const double average = total / variables;
  double keep = 1, add = p.estimation.loading * average;
  if (p.estimation.estimator != Estimator::loading) {
    const double* s = p.covariance;
    const double square =
        sum_matrix(p.bands, [&](std::int64_t e, bool) { return s[e] * s[e]; }, room) / parts;
    const double distance = sum_matrix(
                                p.bands,
                                [&](std::int64_t e, bool diagonal) {
                                  const double rest = diagonal ? s[e] - average : s[e];
                                  return rest * rest;
                                },
                                room) /
                            parts;
    double spread = (square + total * total) / (count + 1);
    if (p.estimation.estimator == Estimator::ledoit_wolf) {
      const double fourth = total_terms(p, room);
      spread = (fourth / count - square) / count;
      if (!(spread > 0)) spread = 0;
    } else if (parts > 1) {
      spread = (total * total - square / variables) / (count - 1 / variables);
    }
    double rho = distance > 0 ? spread / distance : 1.0;
    if (rho > 1) rho = 1;
    keep = 1 - rho;
    add = rho * average;
  }
  change_matrix(p.bands, [&](std::int64_t e, bool diagonal) {
    p.covariance[e] = keep * p.covariance[e] + (diagonal ? add : 0.0);
  });
  if (threadIdx.x == 0 && !(total > 0)) p.state->outcome = status_singular;
}

// A step of a fixed point: the weighted products become the next estimate.
enum class Step : std::uint8_t { start, iterate, rescale };

struct StepParameters {
  JoinParameters join;
  Step step;
};

// Ends Tyler's iteration before it begins where too few directions are left.
__global__ void __launch_bounds__(matrix_threads) count_directions(JoinParameters p) {
  double* room = simt::dynamic_shared<double>();
  if (p.state->finished != 0) return;
  const double used = total_terms(p, room);
  if (threadIdx.x == 0 && used - (p.center ? 1 : 0) <= p.bands / p.parts) {
    p.state->outcome = status_singular;
    p.state->finished = 1;
  }
}

__global__ void __launch_bounds__(matrix_threads) finish_step(StepParameters q) {
  double* room = simt::dynamic_shared<double>();
  const JoinParameters& p = q.join;
  const double parts = p.parts;
  const double variables = p.bands / parts;
  const bool tyler = p.estimation.estimator == Estimator::tyler;
  double* s = p.covariance;
  if (q.step == Step::rescale) {
    if (p.state->outcome == status_singular || p.state->outcome == status_few_samples) return;
    if (p.state->unfactored != 0) {
      __syncthreads();
      if (threadIdx.x == 0) p.state->outcome = status_singular;
      return;
    }
    const double count = static_cast<double>(p.state->count);
    const double scale = total_terms(p, room) / (count * variables);
    change_matrix(p.bands, [&](std::int64_t e, bool) { s[e] *= scale; });
    return;
  }
  if (p.state->finished != 0) return;
  const bool regular = q.step == Step::start || p.state->unfactored == 0;
  const double scale = tyler ? variables / trace_of(p, room) : 1 / total_terms(p, room);
  change_matrix(p.bands, [&](std::int64_t e, bool) { s[e] *= scale; });
  if (q.step == Step::start) return;
  __syncthreads();
  const double* before = p.previous;
  const double change = sum_matrix(
      p.bands,
      [&](std::int64_t e, bool) { return (s[e] - before[e]) * (s[e] - before[e]); }, room);
  const double total =
      sum_matrix(p.bands, [&](std::int64_t e, bool) { return before[e] * before[e]; }, room);
  const double tolerance = p.estimation.tolerance;
  if (threadIdx.x != 0) return;
  if (regular && change <= tolerance * tolerance * total) {
    p.state->outcome = status_ok;
    p.state->finished = 1;
  } else if (!regular || !(change > 0)) {
    p.state->outcome = status_singular;
    p.state->finished = 1;
  }
}

template <class T>
JoinParameters join_of(const EstimateLaunch<T>& p) {
  const ClassifyLaunch<T>& s = p.samples;
  JoinParameters j{};
  j.cut = s.cut;
  j.bands = s.pixels.list.bands;
  j.parts = p.parts;
  j.ddof = p.ddof;
  j.center = p.center;
  j.mean_only = p.mean_only;
  j.needed = p.needed;
  j.counts = s.counts;
  j.sums = p.sums;
  j.products = p.products;
  j.mean = p.mean;
  j.covariance = p.covariance;
  j.previous = p.previous;
  j.status = s.status;
  j.pixels = s.pixels.count;
  j.distances = p.distances;
  j.terms = p.terms;
  j.state = p.state;
  j.estimation = p.estimation;
  return j;
}

template <class T, int Tile>
void launch_products(const Background& background, const ProductParameters<T>& p) {
  constexpr std::size_t pixels = 2048 / Tile, operands = Tile == 64 ? 2 : 1;
  constexpr std::size_t groups = 16 * matrix_threads / (Tile * Tile);
  constexpr std::size_t staged =
      sizeof(double) * (operands * pixels * (Tile + 2) + pixels) + sizeof(std::int64_t) * pixels;
  constexpr std::size_t joined = groups > 1 ? sizeof(double) * groups * Tile * Tile : 0;
  const SampleChunks& cut = p.samples.cut;
  simt::launch(background.op, sum_products<T, Tile>,
               dim3(static_cast<unsigned>(cut.pairs), static_cast<unsigned>(cut.chunks)),
               dim3(matrix_threads), std::max(staged, joined), background.stream, p);
}

constexpr std::size_t matrix_room = sizeof(double) * matrix_threads / warp_lanes;

// The launches of one call of Background::estimate.
template <class T>
class Estimate {
 public:
  Estimate(const Background& background, const EstimateLaunch<T>& launch)
      : background_(background), p_(launch), join_(join_of(launch)) {}

  void mean() const {
    const int padded = padded_rows(join_.bands);
    const std::size_t tile =
        sizeof(double) * tile_bands * (tile_pixels + 1) +
        (sizeof(std::int64_t) + sizeof(int)) * tile_pixels;
    simt::launch(
        background_.op, sum_pixels<T>,
        dim3(static_cast<unsigned>(join_.cut.chunks), static_cast<unsigned>(padded / tile_bands)),
        dim3(sum_threads), tile, background_.stream, p_);
    simt::launch(background_.op, join_sums, dim3(static_cast<unsigned>(padded / join_width)),
                 dim3(join_threads),
                 sizeof(double) * join_threads + sizeof(std::int64_t) * join_threads / warp_lanes,
                 background_.stream, join_);
  }

  // The covariance of the samples, or with `weighted` the products of the samples that are scaled
  // by what stands in place of their distances.
  void products(bool weighted) const {
    const ProductParameters<T> parameters{p_.samples, p_.mean, weighted ? p_.distances : nullptr,
                                          p_.products, p_.state};
    if (join_.cut.tile == 16) {
      launch_products<T, 16>(background_, parameters);
    } else if (join_.cut.tile == 32) {
      launch_products<T, 32>(background_, parameters);
    } else {
      launch_products<T, 64>(background_, parameters);
    }
    JoinParameters join = join_;
    join.weighted = weighted;
    const std::int64_t elements = std::int64_t{join.bands} * join.bands;
    simt::launch(background_.op, join_products,
                 dim3(static_cast<unsigned>((elements + join_width - 1) / join_width)),
                 dim3(join_threads), sizeof(double) * join_threads, background_.stream, join);
  }

  void shrink() const {
    if (p_.estimation.estimator == Estimator::ledoit_wolf) {
      find_distances(true, false);
      terms(Term::square);
    }
    simt::launch(background_.op, shrink_covariance, dim3(1), dim3(matrix_threads), matrix_room,
                 background_.stream, join_);
  }

  void iterate() const {
    if (p_.estimation.estimator == Estimator::tyler) {
      find_distances(true, true);
      terms(Term::positive);
      simt::launch(background_.op, count_directions, dim3(1), dim3(matrix_threads), matrix_room,
                   background_.stream, join_);
      weigh(Step::start);
    }
    for (int k = 1; k < p_.estimation.max_iterations; ++k) {
      find_distances(false, true);
      weigh(Step::iterate);
    }
    if (p_.estimation.estimator == Estimator::tyler && p_.scale == Scale::samples) {
      find_distances(false, false);
      terms(Term::distance);
      finish(Step::rescale);
    }
  }

 private:
  // |L^-1 (x - m)|^2 of every pixel, with L of the covariance, or I.
  void find_distances(bool identity, bool iterating) const {
    WhitenLaunch<T, double> w{};
    w.pixels = p_.samples.pixels;
    w.mean = p_.mean;
    w.verdicts.pixel = p_.samples.status;
    w.verdicts.state = p_.state;
    w.score = p_.distances;
    w.tiles = p_.tiles;
    w.iterating = iterating;
    if (!identity) {
      const FactorLaunch factor{p_.covariance, join_.bands, false,   p_.lower,
                                p_.inverse,    p_.state,    iterating};
      background_.factor(factor);
      w.lower = p_.lower;
      w.inverse = p_.inverse;
    }
    background_.whiten(w);
  }

  void terms(Term term) const {
    simt::launch(background_.op, sum_terms, dim3(static_cast<unsigned>(join_.cut.chunks)),
                 dim3(join_threads), matrix_room, background_.stream, TermParameters{join_, term});
  }

  void finish(Step step) const {
    simt::launch(background_.op, finish_step, dim3(1), dim3(matrix_threads), matrix_room,
                 background_.stream, StepParameters{join_, step});
  }

  void weigh(Step step) const {
    terms(Term::weight);
    products(true);
    finish(step);
  }

  const Background& background_;
  const EstimateLaunch<T>& p_;
  JoinParameters join_;
};

// mean and covariance in the precision and the form of the image.
template <class T>
struct ResultParameters {
  const double* mean;
  const double* covariance;
  const BackgroundState* state;
  int bands, parts;
  bool missing;  // a singular estimate is none
  T* mean_out;
  T* covariance_out;
};

template <class T>
__global__ void __launch_bounds__(matrix_threads) store_estimate(ResultParameters<T> p) {
  const std::int64_t e = std::int64_t{blockIdx.x} * matrix_threads + threadIdx.x;
  const bool few = p.state->outcome == status_few_samples;
  const bool missing = few || (p.missing && p.state->outcome == status_singular);
  if (e < p.bands) p.mean_out[e] = few ? simt::nan<T> : static_cast<T>(p.mean[e]);
  const std::int64_t i = e / p.bands * p.parts, j = e % p.bands;
  if (i >= p.bands) return;
  // Row i of the matrix is every second row of its real form, of pairs by turns real and minus
  // imaginary.
  const double value = p.covariance[i * row_length(p.bands) + j];
  const double sign = p.parts == 2 && j % 2 == 1 ? -1.0 : 1.0;
  p.covariance_out[e] = missing ? simt::nan<T> : static_cast<T>(sign * value);
}

}  // namespace

template <class T>
void Background::classify(const ClassifyLaunch<T>& launch) const {
  simt::launch(op, classify_pixels<T>, dim3(static_cast<unsigned>(launch.cut.scans)),
               dim3(sum_threads), (sizeof(std::int64_t) + 2 * sizeof(int)) * tile_pixels, stream,
               launch);
}

template <class T>
void Background::estimate(const EstimateLaunch<T>& launch) const {
  classify(launch.samples);
  const Estimate<T> estimate(*this, launch);
  estimate.mean();
  if (launch.mean_only) return;
  estimate.products(false);
  switch (launch.estimation.estimator) {
    case Estimator::scm:
      break;
    case Estimator::tyler:
    case Estimator::student_t:
      estimate.iterate();
      break;
    default:
      estimate.shrink();
  }
}

template <class T>
void Background::store(const EstimateLaunch<T>& launch, T* mean, T* covariance) const {
  const int bands = launch.samples.pixels.list.bands;
  const Estimator estimator = launch.estimation.estimator;
  const ResultParameters<T> parameters{
      launch.mean,  launch.covariance,
      launch.state, bands,
      launch.parts, estimator == Estimator::tyler || estimator == Estimator::student_t,
      mean,         covariance};
  const std::int64_t elements = std::int64_t{bands} * bands / launch.parts;
  const std::int64_t most = std::max<std::int64_t>(elements, bands);
  simt::launch(op, store_estimate<T>,
               dim3(static_cast<unsigned>((most + matrix_threads - 1) / matrix_threads)),
               dim3(matrix_threads), 0, stream, parameters);
}

template void Background::classify(const ClassifyLaunch<float>&) const;
template void Background::classify(const ClassifyLaunch<double>&) const;
template void Background::estimate(const EstimateLaunch<float>&) const;
template void Background::estimate(const EstimateLaunch<double>&) const;
template void Background::store(const EstimateLaunch<float>&, float*, float*) const;
template void Background::store(const EstimateLaunch<double>&, double*, double*) const;

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

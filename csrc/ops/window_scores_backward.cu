// Gradients of local RX, ACE and matched filter scores, on a whitened image and in float64.
//
// solve_windows: a block takes one pixel p after the other, makes the covariance of its window from
// its samples in two passes, factors it, and keeps what p gives to others: a few vectors a_i, among
// them S^-1 (x - m), and the coefficients of M_p = sum_ij a_i C_ij a_j^T and b_p = sum_i beta_i
// a_i.
//
// gather: a warp takes one pixel q after the other and adds M_p x_q - b_p over all p whose windows
// hold q, by products of vectors alone, and what the score of q itself passes to it. See
// window_adjoint_kernel.hpp, which does the same with sums of matrices on the CPU.
//
// sum_targets, sum_covariance: sums over chunks of pixels, which join_sums adds in their order.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/device_matrix.hpp"
#include "core/device_targets.hpp"
#include "core/device_windows.hpp"
#include "core/simt.hpp"
#include "ops/rx_cuda.hpp"
#include "ops/rx_limits.hpp"
#include "ops/window_scores_backward_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr const char* op = "window_scores_backward";
constexpr int threads = 128;
constexpr int warps = threads / warp_lanes;
constexpr int stage_samples = 16;  // in shared memory at a time

// What a pixel gives. A broken one would give numbers that are not finite.
enum PixelState : std::uint8_t { gives, nothing, broken };

// Where the coefficients of a pixel lie: C_0i, C_ii from i = 1, beta and delta. C_ij = 0 for
// 0 < i != j > 0; delta are the shares of its own gradient.
struct Coefficients {
  double* c;
  int rank;
  __device__ __forceinline__ double& first(int i) const { return c[i]; }
  __device__ __forceinline__ double& corner(int i) const { return c[rank - 1 + i]; }
  __device__ __forceinline__ double& beta(int i) const { return c[2 * rank - 1 + i]; }
  __device__ __forceinline__ double& delta(int i) const { return c[3 * rank - 1 + i]; }
};

template <class T>
__device__ __forceinline__ Coefficients coefficients_of(const WindowScoresBackwardLaunch<T>& a,
                                                        std::int64_t pixel) {
  return {a.coefficients + pixel * 4 * a.rank, a.rank};
}
template <class T>
__device__ __forceinline__ double* vectors_of(const WindowScoresBackwardLaunch<T>& a,
                                              std::int64_t pixel) {
  return a.vectors + pixel * a.rank * a.pitch;
}
template <class T>
__device__ __forceinline__ std::int64_t pixels_of(const WindowScoresBackwardLaunch<T>& a) {
  return std::int64_t{a.rows} * a.cols;
}

// Partial derivatives of a score with respect to alpha = w^T S^-1 d, beta = w^T S^-1 w and
// gamma = d^T S^-1 d, for d = x - m and w = t - m.
struct Slopes {
  double alpha, beta, gamma;
};

__device__ inline Slopes slopes_of(MatchedScore kind, double alpha, double beta, double gamma) {
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
__device__ inline void solve_small(double* a, int n, double* b) {
  const auto dot = [](const double* x, const double* y, int count) {
    double sum = 0;
    for (int k = 0; k < count; ++k) sum += x[k] * y[k];
    return sum;
  };
  for (int j = 0; j < n; ++j) {
    double* row = a + std::int64_t{j} * n;
    for (int k = 0; k < j; ++k) {
      const double* other = a + std::int64_t{k} * n;
      row[k] = (row[k] - dot(row, other, k)) / other[k];
    }
    row[j] = std::sqrt(row[j] - dot(row, row, j));
    b[j] = (b[j] - dot(row, b, j)) / row[j];
  }
  for (int j = n - 1; j >= 0; --j) {
    const double* row = a + std::int64_t{j} * n;
    b[j] /= row[j];
    for (int k = 0; k < j; ++k) b[k] -= row[k] * b[j];
  }
}

// Products of one window, in the memory of its block.
struct Forms {
  double* alpha;  // per target, as beta
  double* beta;
  double* gamma;
  double* means;   // S^-1 d and S^-1 w times the mean of the window
  double* shares;  // of the targets in their projection, for a subspace
  double* gram;    // targets x targets: w_k^T S^-1 w_l
};

// By one thread. With score = f(alpha, beta, gamma), u = S^-1 d and v = S^-1 w:
//   to d:  f_alpha v + 2 f_gamma u,   to w:  f_alpha u + 2 f_beta v,
//   to S:  -(f_alpha / 2 (u v^T + v u^T) + f_beta v v^T + f_gamma u u^T),
// to m the first two with their sign changed, and from S and m to the samples as for
// local_covariance_backward. The second vector of a subspace is the sum of the targets' by shares.
template <class T>
__device__ void set_coefficients(const WindowScoresBackwardLaunch<T>& a, std::int64_t pixel,
                                 int count, const Forms& forms) {
  const std::int64_t row = pixel / a.cols, col = pixel % a.cols;
  const T* g = a.score_gradient + row * a.gradient_row + col * a.gradient_col;
  const Coefficients c = coefficients_of(a, pixel);
  double* weights = a.weights + pixel * 2 * a.target_count;
  const int rank = a.rank;
  for (int k = 0; k < 4 * rank; ++k) c.c[k] = 0;
  const double gamma = *forms.gamma;
  // First C without its divisor -(n - ddof), and in beta the part of the mean without -1 / n.
  if (a.target_count > 0 && a.score == MatchedScore::subspace_ace) {
    const double inverse = gamma > 0 ? 1 / gamma : 0.0;
    const double slope = static_cast<double>(*g) * inverse;
    for (int k = 0; k < a.target_count; ++k) forms.shares[k] = forms.alpha[k];
    solve_small(forms.gram, a.target_count, forms.shares);
    double power = 0, total = 0, mean = 0;
    for (int k = 0; k < a.target_count; ++k) {
      const double share = forms.shares[k];
      power += share * forms.alpha[k];
      total += share;
      mean += share * forms.means[k + 1];
      weights[2 * k] = 2 * slope * share;
      weights[2 * k + 1] = -2 * slope * share;
    }
    forms.means[1] = mean;
    c.first(0) = c.delta(0) = -2 * slope * (power * inverse);
    c.first(1) = c.delta(1) = 2 * slope;
    c.corner(1) = -2 * slope;
    c.beta(0) = c.first(0) + 2 * slope * total;
    c.beta(1) = 2 * slope * (1 - total);
  } else {
    double of_gamma = a.target_count == 0 ? static_cast<double>(*g) : 0.0;
    for (int k = 0; k < a.target_count; ++k) {
      const double one = static_cast<double>(g[k * a.gradient_map]);
      const Slopes f = slopes_of(a.score, forms.alpha[k], forms.beta[k], gamma);
      of_gamma += one * f.gamma;
      c.first(k + 1) = c.delta(k + 1) = weights[2 * k] = one * f.alpha;
      c.corner(k + 1) = weights[2 * k + 1] = 2 * one * f.beta;
      c.beta(0) += one * f.alpha;
      c.beta(k + 1) = one * f.alpha + 2 * one * f.beta;
    }
    c.first(0) = c.delta(0) = 2 * of_gamma;
    c.beta(0) += c.first(0);
  }
  // Of a fixed covariance C stays what it is, for the gradient of that.
  const double divisor = a.fixed ? 0.0 : -1.0 / (count - (a.center ? 1 : 0));
  const double share = a.center ? 1.0 / count : 0.0;
  c.beta(0) = c.first(0) * divisor * forms.means[0] + c.beta(0) * share;
  for (int k = 1; k < rank; ++k) {
    c.beta(0) += c.first(k) * divisor * forms.means[k];
    c.beta(k) =
        (c.first(k) * forms.means[0] + c.corner(k) * forms.means[k]) * divisor + c.beta(k) * share;
  }
  for (int k = 0; k < 2 * rank - 1 && !a.fixed; ++k) c.c[k] *= divisor;
  bool finite = true;
  for (int k = 0; k < 4 * rank - 1; ++k) finite = finite && is_finite(c.c[k]);
  a.states[pixel] = finite ? gives : broken;
}

// L^-T x for one row x, by one warp.
__device__ inline void warp_backward(const double* l, PackedRows at, const double* inverse_pivots,
                                     int n, double* x) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  for (int k = n - 1; k >= 0; --k) {
    __syncwarp();
    const double solved = x[k] * inverse_pivots[k];
    for (int j = lane; j < k; j += warp_lanes) x[j] -= solved * l[at(k, j)];
    __syncwarp();
    if (lane == 0) x[k] = solved;
  }
  __syncwarp();
}

template <class T>
struct SolveParameters {
  WindowScoresBackwardLaunch<T> a;
  int tiles;              // of the bands
  std::int64_t squares;   // of the lower triangle
  std::int64_t elements;  // of `matrices` for one block
  // In shared memory, in doubles.
  int samples_at, stage_at, mean_at, pivots_at, flag_at, room_at, matrix_at;
  bool matrix_shared;
};

template <class T, int Tile>
__global__ void __launch_bounds__(threads) solve_windows(SolveParameters<T> p) {
  const WindowScoresBackwardLaunch<T>& a = p.a;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % warp_lanes, warp = thread / warp_lanes;
  const int n = a.bands, targets = a.target_count;
  const int width = p.tiles * Tile;
  double* shared = simt::dynamic_shared<double>();
  std::int64_t* samples = reinterpret_cast<std::int64_t*>(shared + p.samples_at);
  double* stage = shared + p.stage_at;
  double* mean = shared + p.mean_at;
  double* pivots = shared + p.pivots_at;
  int* flag = reinterpret_cast<int*>(shared + p.flag_at);
  int* room = reinterpret_cast<int*>(shared + p.room_at);
  double* matrix = p.matrix_shared ? shared + p.matrix_at : a.matrices + p.elements * blockIdx.x;
  const PackedRows at{n};
  double* rows = matrix + at(n, 0);  // those of the pixel and the targets
  const auto row_of = [&](int k) { return rows + std::int64_t{k} * n; };
  Forms forms;
  forms.gamma = row_of(1 + targets);
  forms.alpha = forms.gamma + 1;
  forms.beta = forms.alpha + targets;
  forms.means = forms.beta + targets;
  forms.shares = forms.means + 1 + targets;
  forms.gram = forms.shares + targets;
  const bool subspace = targets > 0 && a.score == MatchedScore::subspace_ace;
  const int all_samples = a.window.outer * a.window.outer;
  const int half = a.window.outer / 2;

  for (std::int64_t pixel = blockIdx.x; pixel < pixels_of(a); pixel += gridDim.x) {
    const int row = static_cast<int>(pixel / a.cols), col = static_cast<int>(pixel % a.cols);
    const bool whole = row >= half && row + half < a.rows && col >= half && col + half < a.cols;
    if (thread == 0) a.states[pixel] = nothing;
    if (a.status[pixel] != status_ok || (a.border == Border::valid && !whole)) continue;
    const Place place(a, row, col);
    int first = all_samples, count = 0;
    for (int k = thread; k < all_samples; k += threads) {
      if (place.sample(a, k) < 0) continue;
      if (k < first) first = k;
      ++count;
    }
    first = block_reduce(first, room, Least());
    count = block_reduce(count, room);
    if (count == 0) continue;

    const auto list_samples = [&](int begin) {
      __syncthreads();
      for (int k = thread; k < stage_samples; k += threads) {
        samples[k] = begin + k < all_samples ? place.sample(a, begin + k) : -1;
      }
      __syncthreads();
    };
    // Relative to one of the samples, so that a band without variance has exactly none.
    const double* reference = a.image + place.sample(a, first) * a.pitch;
    for (int b = thread; b < n; b += threads) mean[b] = 0;
    for (int begin = 0; begin < all_samples && a.center; begin += stage_samples) {
      list_samples(begin);
      for (int b = thread; b < n; b += threads) {
        double sum = mean[b];
        for (int k = 0; k < stage_samples; ++k) {
          if (samples[k] >= 0) sum += a.image[samples[k] * a.pitch + b] - reference[b];
        }
        mean[b] = sum;
      }
    }
    for (int b = thread; b < n && a.center; b += threads) mean[b] = reference[b] + mean[b] / count;
    __syncthreads();

    const double divisor = count - (a.center ? 1 : 0);
    for (std::int64_t group = 0; group < p.squares && !a.fixed; group += threads) {
      // Row by row.
      std::int64_t rest = group + thread;
      const bool owner = rest < p.squares;
      int i = 0;
      while (owner && rest > i) rest -= ++i;
      const int j = owner ? static_cast<int>(rest) : 0;
      double c[Tile][Tile] = {};
      for (int begin = 0; begin < all_samples; begin += stage_samples) {
        list_samples(begin);
        for (int e = thread; e < stage_samples * width; e += threads) {
          const int k = e / width, b = e % width;
          stage[e] = samples[k] >= 0 && b < n ? a.image[samples[k] * a.pitch + b] - mean[b] : 0.0;
        }
        __syncthreads();
        for (int k = 0; k < stage_samples && owner; ++k) {
          double left[Tile], right[Tile];
  MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) {
            left[r] = stage[k * width + i * Tile + r];
            right[r] = stage[k * width + j * Tile + r];
          }
          MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) {
            MAHAL_UNROLL
            for (int q = 0; q < Tile; ++q) c[r][q] += left[r] * right[q];
          }
        }
      }
      if (!owner) continue;
      MAHAL_UNROLL
      for (int r = 0; r < Tile; ++r) {
        MAHAL_UNROLL
        for (int q = 0; q < Tile; ++q) {
          const int y = i * Tile + r, x = j * Tile + q;
          if (y >= n || x > y) continue;
          const double value = c[r][q] / divisor;
          if (x == y) pivots[y] = value;
          matrix[at(y, x)] = value;
        }
      }
    }
    for (int e = thread; e < (1 + targets) * n; e += threads) {
      const int k = e / n, b = e % n;
      const double* from = k == 0 ? a.image + pixel * a.pitch
                                  : a.targets + (std::int64_t{k} - 1) * a.pitch;
      rows[e] = from[b] - mean[b];
    }
    if (!a.fixed &&
        !block_cholesky(matrix, at, n, n + 1 + targets, window_pivot, pivots, flag)) {
      continue;
    }
    __syncthreads();
    for (int k = warp; k <= targets; k += warps) {
      const double square = warp_dot(row_of(k), row_of(k), n);
      const double product = warp_dot(row_of(k), row_of(0), n);
      if (lane == 0 && k == 0) *forms.gamma = square;
      if (lane == 0 && k > 0) {
        forms.alpha[k - 1] = product;
        forms.beta[k - 1] = square;
      }
      for (int l = 1; l <= k && subspace; ++l) {
        const double mixed = warp_dot(row_of(k), row_of(l), n);
        if (lane == 0) forms.gram[std::int64_t{k - 1} * targets + l - 1] = mixed;
      }
    }
    __syncthreads();
    for (int k = warp; k <= targets; k += warps) {
      if (!a.fixed) warp_backward(matrix, at, pivots, n, row_of(k));
      const double product = a.center ? warp_dot(row_of(k), mean, n) : 0.0;
      if (lane == 0) forms.means[k] = product;
    }
    __syncthreads();
    if (thread == 0) set_coefficients(a, pixel, count, forms);
    __syncthreads();
    double* kept = vectors_of(a, pixel);
    for (int e = thread; e < a.rank * n; e += threads) {
      const int k = e / n, b = e % n;
      double value = row_of(k)[b];
      if (subspace && k == 1) {
        value = 0;
        for (int l = 0; l < targets; ++l) value += forms.shares[l] * row_of(l + 1)[b];
      }
      kept[std::int64_t{k} * a.pitch + b] = value;
    }
    __syncthreads();
  }
}

template <class T>
__global__ void __launch_bounds__(threads, 4) gather(WindowScoresBackwardLaunch<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const int in_block = static_cast<int>(threadIdx.x) / warp_lanes;
  const int block_warps = static_cast<int>(blockDim.x) / warp_lanes;
  const int n = a.bands, outer = a.window.outer, inner = a.window.inner;
  const int spans = a.border == Border::reflect ? 3 : 1;
  // A lane reads and writes bands of its own alone.
  double* x = simt::dynamic_shared<double>() + std::int64_t{in_block} * 2 * a.pitch;
  double* y = x + a.pitch;
  const std::int64_t step = std::int64_t{gridDim.x} * block_warps;
  for (std::int64_t q = std::int64_t{blockIdx.x} * block_warps + in_block; q < pixels_of(a);
       q += step) {
    if (a.pixel_status[q] != status_ok) {
      if (lane == 0) a.quiet[q] = 1;
      continue;
    }
    const int row = static_cast<int>(q / a.cols), col = static_cast<int>(q % a.cols);
    for (int b = lane; b < n; b += warp_lanes) {
      x[b] = a.image[q * a.pitch + b];
      y[b] = 0;
    }
    bool quiet = true, is_broken = false;
    const auto add = [&](double weight, const double* vector) {
      for (int b = lane; b < n; b += warp_lanes) y[b] += weight * vector[b];
    };
    for (int k = 0; k < spans * spans; ++k) {
      const int v = position_of(row, a.rows, k / spans), u = position_of(col, a.cols, k % spans);
      const Span down = holders_of(row, a.rows, outer, outer / 2, a.border, k / spans);
      const Span across = holders_of(col, a.cols, outer, outer / 2, a.border, k % spans);
      for (int r = down.begin; r < down.end; ++r) {
        const int guard_top = window_start(r, a.rows, inner, a.border);
        const bool guard_row = v >= guard_top && v < guard_top + inner;
        for (int c = across.begin; c < across.end; ++c) {
          const int guard_left = window_start(c, a.cols, inner, a.border);
          if (guard_row && u >= guard_left && u < guard_left + inner) continue;
          const std::int64_t pixel = std::int64_t{r} * a.cols + c;
          const std::uint8_t state = a.states[pixel];
          if (state == nothing) continue;
          quiet = false;
          if (state == broken) {
            is_broken = true;
            continue;
          }
          const double* vectors = vectors_of(a, pixel);
          const Coefficients given = coefficients_of(a, pixel);
          const double product = a.fixed ? 0.0 : warp_dot(vectors, x, n);
          double to_first = given.first(0) * product;
          for (int i = 1; i < a.rank; ++i) {
            const double* vector = vectors + std::int64_t{i} * a.pitch;
            double weight = -given.beta(i);
            if (!a.fixed) {
              const double other = warp_dot(vector, x, n);
              to_first += given.first(i) * other;
              weight += given.first(i) * product + given.corner(i) * other;
            }
            add(weight, vector);
          }
          add(to_first - given.beta(0), vectors);
        }
      }
    }
    const std::uint8_t own = a.states[q];
    if (own == broken) is_broken = true;
    if (own == gives) {
      const Coefficients given = coefficients_of(a, q);
      for (int i = 0; i < a.rank; ++i) {
        add(given.delta(i), vectors_of(a, q) + std::int64_t{i} * a.pitch);
      }
    }
    if (lane == 0) a.quiet[q] = quiet && own == nothing ? 1 : 0;
    for (int b = lane; b < n; b += warp_lanes) {
      a.image[q * a.pitch + b] = is_broken ? simt::nan<double> : y[b];
    }
  }
}

template <class T>
struct SumParameters {
  WindowScoresBackwardLaunch<T> a;
  std::int64_t chunk_pixels;
};

// function(pixel) for what a block of a sum has to add, in its order.
template <class T, class F>
__device__ __forceinline__ void visit_chunk(const SumParameters<T>& p, std::int64_t chunk,
                                            const F& function) {
  const std::int64_t pixels = pixels_of(p.a);
  const std::int64_t end = (chunk + 1) * p.chunk_pixels;
  for (std::int64_t pixel = chunk * p.chunk_pixels; pixel < end && pixel < pixels; ++pixel) {
    if (p.a.states[pixel] != nothing) function(pixel);
  }
}

// A block for every target and chunk. In a subspace all have the vector of the pixel's projection.
template <class T>
__global__ void __launch_bounds__(threads) sum_targets(SumParameters<T> p) {
  const WindowScoresBackwardLaunch<T>& a = p.a;
  const int k = static_cast<int>(blockIdx.x);
  const int vector = a.score == MatchedScore::subspace_ace ? 1 : k + 1;
  double* out = a.parts + (std::int64_t{blockIdx.y} * a.target_count + k) * a.bands;
  for (int b = static_cast<int>(threadIdx.x); b < a.bands; b += threads) {
    double sum = 0;
    visit_chunk(p, blockIdx.y, [&](std::int64_t pixel) {
      const double* weights = a.weights + (pixel * a.target_count + k) * 2;
      const double* vectors = vectors_of(a, pixel);
      const double* own = vectors + std::int64_t{vector} * a.pitch;
      sum += weights[0] * vectors[b] + weights[1] * own[b];
    });
    out[b] = sum;
  }
}

// -C / 2 in the vectors; a thread for every entry.
template <class T>
__global__ void __launch_bounds__(threads) sum_covariance(SumParameters<T> p) {
  const WindowScoresBackwardLaunch<T>& a = p.a;
  const std::int64_t n = a.bands;
  const std::int64_t e = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (e >= n * n) return;
  const std::int64_t i = e / n, j = e % n;
  double sum = 0;
  visit_chunk(p, blockIdx.y, [&](std::int64_t pixel) {
    const double* first = vectors_of(a, pixel);
    const Coefficients given = coefficients_of(a, pixel);
    sum += given.first(0) * first[i] * first[j];
    for (int k = 1; k < a.rank; ++k) {
      const double* vector = first + std::int64_t{k} * a.pitch;
      sum += given.first(k) * (first[i] * vector[j] + vector[i] * first[j]) +
             given.corner(k) * vector[i] * vector[j];
    }
  });
  a.parts[blockIdx.y * n * n + e] = -0.5 * sum;
}

struct JoinParameters {
  const double* parts;
  std::int64_t chunks, size;
  double* out;
};

__global__ void __launch_bounds__(threads) join_sums(JoinParameters p) {
  const std::int64_t e = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (e >= p.size) return;
  double sum = 0;
  for (std::int64_t chunk = 0; chunk < p.chunks; ++chunk) sum += p.parts[chunk * p.size + e];
  p.out[e] = sum;
}

__global__ void __launch_bounds__(threads) multiply(RowProducts p) {
  const std::int64_t e = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (e >= std::int64_t{p.left_rows} * p.right_rows) return;
  const double* left = p.left + e / p.right_rows * p.n;
  const double* right = p.right + e % p.right_rows * p.n;
  double sum = 0;
  for (int k = 0; k < p.n; ++k) {
    if (left[k] != 0 && right[k] != 0) sum += left[k] * right[k];
  }
  p.out[e] = sum;
}

dim3 blocks_of(std::int64_t work, int each) {
  const std::int64_t blocks = (work + each - 1) / each;
  return dim3(static_cast<unsigned>(std::min<std::int64_t>(blocks, 0x7FFFFFFF)));
}

// Cuts shared memory into pieces of whole doubles, 16 bytes at a time.
struct Cut {
  std::size_t bytes = 0;
  int take(std::int64_t elements, std::size_t element_bytes) {
    const std::size_t here = bytes;
    bytes += (static_cast<std::size_t>(elements) * element_bytes + 15) / 16 * 16;
    return static_cast<int>(here / sizeof(double));
  }
};

template <class T, int Tile>
void launch_solve(const WindowScoresBackwardLaunch<T>& a, std::uintptr_t stream) {
  SolveParameters<T> p{};
  p.a = a;
  p.tiles = (a.bands + Tile - 1) / Tile;
  p.squares = std::int64_t{p.tiles} * (p.tiles + 1) / 2;
  const bool subspace = a.target_count > 0 && a.score == MatchedScore::subspace_ace;
  p.elements = window_solve_room(a.bands, a.target_count, subspace);
  Cut cut;
  p.samples_at = cut.take(stage_samples, sizeof(std::int64_t));
  p.stage_at = cut.take(std::int64_t{stage_samples} * p.tiles * Tile, sizeof(double));
  p.mean_at = cut.take(a.bands, sizeof(double));
  p.pivots_at = cut.take(a.bands, sizeof(double));
  p.flag_at = cut.take(1, sizeof(int));
  p.room_at = cut.take(warp_lanes, sizeof(int));
  const std::size_t without = cut.bytes;
  p.matrix_at = cut.take(p.elements, sizeof(double));
  const std::size_t limit = simt::shared_limit(op);
  if (without > limit) {
    throw_device_error(
        op, "image",
        "windows on this device take about " + std::to_string(limit / (without / a.bands)) +
            " bands",
        std::to_string(a.bands));
  }
  p.matrix_shared = cut.bytes <= limit;
  const std::int64_t blocks = window_blocks(std::int64_t{a.rows} * a.cols, p.elements);
  simt::launch(op, solve_windows<T, Tile>, blocks_of(blocks, 1), dim3(threads),
               p.matrix_shared ? cut.bytes : without, stream, p);
}

template <class T>
void launch_all(const WindowScoresBackwardLaunch<T>& a, std::uintptr_t stream) {
  const std::int64_t pixels = std::int64_t{a.rows} * a.cols;
  const std::int64_t n = a.bands;
  if (a.bands <= 32) {
    launch_solve<T, 2>(a, stream);
  } else {
    launch_solve<T, 4>(a, stream);
  }
  const auto pixel_bytes = 2 * sizeof(double) * static_cast<std::size_t>(a.pitch);
  const int side = static_cast<int>(
      std::clamp<std::size_t>(simt::plain_shared_bytes / pixel_bytes, 1, warps));
  simt::launch(op, gather<T>, blocks_of(pixels, side),
               dim3(static_cast<unsigned>(side * warp_lanes)),
               pixel_bytes * static_cast<std::size_t>(side), stream, a);
  const SumParameters<T> sums{a, cross_chunk_pixels(pixels)};
  const std::int64_t chunks = cross_chunks(pixels);
  const auto join = [&](std::int64_t size, double* out) {
    simt::launch(op, join_sums, blocks_of(size, threads), dim3(threads), 0, stream,
                 JoinParameters{a.parts, chunks, size, out});
  };
  if (a.target_sums != nullptr) {
    const dim3 grid(static_cast<unsigned>(a.target_count), static_cast<unsigned>(chunks));
    simt::launch(op, sum_targets<T>, grid, dim3(threads), 0, stream, sums);
    join(a.target_count * n, a.target_sums);
  }
  if (a.covariance_sums != nullptr) {
    const dim3 grid(blocks_of(n * n, threads).x, static_cast<unsigned>(chunks));
    simt::launch(op, sum_covariance<T>, grid, dim3(threads), 0, stream, sums);
    join(n * n, a.covariance_sums);
  }
}

}  // namespace

void window_scores_backward(const WindowScoresBackwardLaunch<float>& arguments,
                            std::uintptr_t stream) {
  launch_all(arguments, stream);
}
void window_scores_backward(const WindowScoresBackwardLaunch<double>& arguments,
                            std::uintptr_t stream) {
  launch_all(arguments, stream);
}
void multiply_rows(const RowProducts& arguments, std::uintptr_t stream) {
  const std::int64_t size = std::int64_t{arguments.left_rows} * arguments.right_rows;
  simt::launch(op, multiply, blocks_of(size, threads), dim3(threads), 0, stream, arguments);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

// Gradient of window means and covariances.
//
// Every pixel p gives a symmetric matrix M_p and a vector b_p, and the sample at q gets A x_q - b
// with their sums over the windows that hold q: see window_adjoint_kernel.hpp, which does the same
// on the CPU. First the sums over the rows of the windows: a thread owns a column and a channel and
// slides down a segment of rows. Then those over the columns: a block owns some pixels of one row,
// a thread of it channels that slide along the row, and the sums meet in shared memory. Segments
// start anew, sums are in float64 about an origin near the pixels, and their order follows from the
// sizes alone.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "core/device_matrix.hpp"
#include "core/device_windows.hpp"
#include "core/simt.hpp"
#include "ops/local_covariance_backward_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr const char* op = "local_covariance_backward";
constexpr int threads = 128;
constexpr int warps = threads / warp_lanes;
constexpr int segment_rows = 32;
constexpr int most_columns = 32;  // of one block
constexpr int origin_samples = 1024;

enum PixelState : std::uint8_t { usable = 0, masked = 1, non_finite = 2 };

template <class T>
struct Parameters {
  LocalCovarianceBackwardLaunch<T> a;
  int windows;           // 2 with an inner one
  int adjoint_channels;  // of the sums that are being made
  int row_begin, row_end;
  int columns;  // of one block
};

// The samples of the window of pixel i as interval k of at most three; mirrored ones have their
// own.
__device__ __forceinline__ Span samples_of(int i, int n, int side, Border border, int k) {
  const int start = window_start(i, n, side, border);
  const int end = start + side;
  if (k == 0) return {start < 0 ? 0 : start, end > n ? n : end};
  if (k == 1) return {1 - (end < 0 ? end : 0), 1 - start};
  return {2 * n - 1 - end, 2 * n - 1 - (start > n ? start : n)};
}

template <class Of, class Add>
__device__ __forceinline__ void add_span(Of of, int k, double sign, Add add) {
  const Span span = of(k);
  for (int i = span.begin; i < span.end; ++i) add(i, sign);
}

// The sum over the spans of a position from that over the spans of the one before.
template <class Before, class Now, class Add>
__device__ __forceinline__ void move_spans(Before before, Now now, int spans, Add add) {
  for (int k = 0; k < spans; ++k) {
    const Span old = before(k), span = now(k);
    const bool apart = old.begin >= old.end || span.begin >= span.end || old.end <= span.begin ||
                       span.end <= old.begin;
    if (apart) {
      add_span(before, k, -1, add);
      add_span(now, k, 1, add);
      continue;
    }
    for (int i = span.begin; i < old.begin; ++i) add(i, 1);
    for (int i = old.end; i < span.end; ++i) add(i, 1);
    for (int i = old.begin; i < span.begin; ++i) add(i, -1);
    for (int i = span.end; i < old.end; ++i) add(i, -1);
  }
}

template <class T>
__device__ __forceinline__ std::int64_t pixel_of(const LocalCovarianceBackwardLaunch<T>& a, int row,
                                                 int col) {
  return static_cast<std::int64_t>(row) * a.cols + col;
}

template <class T>
__device__ __forceinline__ T value_of(const LocalCovarianceBackwardLaunch<T>& a, int row, int col,
                                      int channel) {
  const std::int64_t band =
      a.complex ? channel / 2 * a.band_stride + channel % 2 : channel * a.band_stride;
  return a.image[row * a.row_stride + col * a.col_stride + band];
}

// Relative to the origin; zero where the pixel is no sample.
template <class T>
__device__ __forceinline__ double sample_of(const LocalCovarianceBackwardLaunch<T>& a, int row,
                                            int col, int channel) {
  if (a.states[pixel_of(a, row, col)] != usable) return 0;
  return static_cast<double>(value_of(a, row, col, channel)) - (a.center ? a.origin[channel] : 0);
}

// Entry (i, j) of G + G^H in its real form.
template <class T>
__device__ __forceinline__ double symmetric_entry(const LocalCovarianceBackwardLaunch<T>& a,
                                                  const T* g, int i, int j) {
  if (!a.complex) {
    return static_cast<double>(g[i * a.covariance_i + j * a.covariance_j]) +
           static_cast<double>(g[j * a.covariance_i + i * a.covariance_j]);
  }
  const T* one = g + i / 2 * a.covariance_i + j / 2 * a.covariance_j;
  const T* other = g + j / 2 * a.covariance_i + i / 2 * a.covariance_j;
  if (i % 2 == j % 2) return static_cast<double>(one[0]) + static_cast<double>(other[0]);
  const double imaginary = static_cast<double>(one[1]) - static_cast<double>(other[1]);
  return i % 2 ? imaginary : -imaginary;
}

template <class T>
__device__ __forceinline__ const T* matrix_of(const LocalCovarianceBackwardLaunch<T>& a, int row,
                                              int col) {
  return a.covariance + row * a.covariance_row + col * a.covariance_col;
}

template <class T>
__device__ __forceinline__ T mean_gradient(const LocalCovarianceBackwardLaunch<T>& a, int row,
                                           int col, int channel) {
  const std::int64_t i = a.complex ? channel / 2 * a.mean_i + channel % 2 : channel * a.mean_i;
  return a.mean[row * a.mean_row + col * a.mean_col + i];
}

template <class T>
__global__ void __launch_bounds__(threads) pixel_states(Parameters<T> p) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  const std::int64_t pixel = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (pixel >= pixel_of(a, a.rows, 0)) return;
  const int row = static_cast<int>(pixel / a.cols), col = static_cast<int>(pixel % a.cols);
  std::uint8_t state = usable;
  if (a.mask != nullptr && a.mask[row * a.mask_row_stride + col * a.mask_col_stride] == 0) {
    state = masked;
  } else {
    for (int c = 0; c < a.channels; ++c) {
      if (!is_finite(value_of(a, row, col, c))) state = non_finite;
    }
  }
  a.states[pixel] = state;
}

// A block per channel: the mean of some pixels.
template <class T>
__global__ void __launch_bounds__(threads) find_origin(Parameters<T> p) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  double* partial = simt::dynamic_shared<double>();  // sums, counts
  const int channel = static_cast<int>(blockIdx.x);
  const std::int64_t pixels = pixel_of(a, a.rows, 0);
  const std::int64_t step = pixels > origin_samples ? pixels / origin_samples : 1;
  double sum = 0, count = 0;
  for (std::int64_t k = threadIdx.x; k < origin_samples && k * step < pixels; k += threads) {
    const std::int64_t pixel = k * step;
    if (a.states[pixel] != usable) continue;
    sum += static_cast<double>(
        value_of(a, static_cast<int>(pixel / a.cols), static_cast<int>(pixel % a.cols), channel));
    count += 1;
  }
  partial[threadIdx.x] = sum;
  partial[threads + threadIdx.x] = count;
  for (unsigned half = threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      partial[threadIdx.x] += partial[threadIdx.x + half];
      partial[threads + threadIdx.x] += partial[threads + threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0)
    a.origin[channel] = partial[threads] > 0 ? partial[0] / partial[threads] : 0;
}

// A warp per pixel: what its window weighs, and whether the gradient of it is finite.
template <class T>
__global__ void __launch_bounds__(threads) find_weights(Parameters<T> p) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  const std::int64_t pixel =
      std::int64_t{blockIdx.x} * warps + static_cast<int>(threadIdx.x) / warp_lanes;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  const bool inside = pixel < pixel_of(a, a.rows, 0);
  const int row = inside ? static_cast<int>(pixel / a.cols) : 0;
  const int col = inside ? static_cast<int>(pixel % a.cols) : 0;
  const int spans = a.border == Border::reflect ? 3 : 1;
  int samples = 0, missing = 0;
  for (int w = 0; w < p.windows; ++w) {
    const int side = w == 0 ? a.window.outer : a.window.inner;
    for (int i = 0; i < spans * spans; ++i) {
      const Span down = samples_of(row, a.rows, side, a.border, i / spans);
      const Span across = samples_of(col, a.cols, side, a.border, i % spans);
      const int width = across.end - across.begin;
      if (width <= 0) continue;
      for (int e = lane; e < (down.end - down.begin) * width; e += warp_lanes) {
        const int state = a.states[pixel_of(a, down.begin + e / width, across.begin + e % width)];
        const int sign = w == 0 ? 1 : -1;
        samples += state == usable ? sign : 0;
        missing += state == non_finite ? sign : 0;
      }
    }
  }
  int finite_matrix = 1, finite_vector = 1;
  if (inside && a.covariance != nullptr) {
    const int n = a.complex ? a.channels / 2 : a.channels;
    const int parts = a.complex ? 2 : 1;
    for (int e = lane; e < n * n * parts; e += warp_lanes) {
      const T* g = matrix_of(a, row, col) + e / parts / n * a.covariance_i +
                   e / parts % n * a.covariance_j + e % parts;
      if (!is_finite(*g)) finite_matrix = 0;
    }
  }
  if (inside && a.mean != nullptr) {
    for (int c = lane; c < a.channels; c += warp_lanes) {
      if (!is_finite(mean_gradient(a, row, col, c))) finite_vector = 0;
    }
  }
  for (int d = warp_lanes / 2; d > 0; d /= 2) {
    samples += __shfl_xor_sync(whole_warp, samples, d);
    missing += __shfl_xor_sync(whole_warp, missing, d);
    finite_matrix &= __shfl_xor_sync(whole_warp, finite_matrix, d);
    finite_vector &= __shfl_xor_sync(whole_warp, finite_vector, d);
  }
  if (!inside || lane != 0) return;
  // A window without a result passes nothing, whatever its gradient is.
  const bool vector = missing == 0 && samples > 0;
  const bool matrix = missing == 0 && samples > a.ddof;
  const bool broken = (matrix && finite_matrix == 0) || (vector && finite_vector == 0);
  a.broken[pixel] = broken ? 1 : 0;
  a.weights[2 * pixel] = matrix && !broken ? 1.0 / (samples - a.ddof) : 0.0;
  a.weights[2 * pixel + 1] = vector ? (broken ? -1.0 : 1.0) / samples : 0.0;
}

// One channel of what pixel (row, col) gives.
struct Channel {
  int kind;  // 0: a sample, 1: entry (i, j) of a matrix, 2: element i of a vector, 3: broken
  int i, j;
};

template <class T>
__device__ __forceinline__ Channel channel_at(const Parameters<T>& p, int channel, bool samples) {
  const int n = p.a.channels;
  if (samples) return {0, channel, 0};
  const int packed = p.adjoint_channels - n - 1;
  if (channel >= packed + n) return {3, 0, 0};
  if (channel >= packed) return {2, channel - packed, 0};
  int i = 0;
  while (channel > i) channel -= ++i;
  return {1, i, channel};
}

template <class T>
__device__ __forceinline__ double given_by(const Parameters<T>& p, int row, int col, Channel c) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  if (c.kind == 0) return sample_of(a, row, col, c.i);
  const std::int64_t pixel = pixel_of(a, row, col);
  if (c.kind == 3) return a.broken[pixel];
  const double weight = a.weights[2 * pixel];
  if (c.kind == 1) {
    return weight > 0 ? symmetric_entry(a, matrix_of(a, row, col), c.i, c.j) * weight : 0;
  }
  double v = 0;
  if (a.mean != nullptr && a.weights[2 * pixel + 1] > 0) {
    v = -static_cast<double>(mean_gradient(a, row, col, c.i)) * a.weights[2 * pixel + 1];
  }
  if (a.covariance == nullptr || !a.center || !(weight > 0)) return v;
  double product = 0;
  for (int k = 0; k < a.channels; ++k) {
    product += symmetric_entry(a, matrix_of(a, row, col), c.i, k) * a.means[pixel * a.channels + k];
  }
  return v + product * weight;
}

// Sums over the rows of the windows; `Samples`: of the samples that a pixel has, or else of what
// the pixels that hold a sample give to it.
template <class T, bool Samples>
__global__ void __launch_bounds__(threads, 4) sum_rows(Parameters<T> p) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  const std::int64_t worker = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  const int window = static_cast<int>(blockIdx.y) % p.windows;
  const int first = p.row_begin + static_cast<int>(blockIdx.y) / p.windows * segment_rows;
  if (worker >= static_cast<std::int64_t>(a.cols) * p.adjoint_channels) return;
  const int col = static_cast<int>(worker / p.adjoint_channels);
  const Channel channel = channel_at(p, static_cast<int>(worker % p.adjoint_channels), Samples);
  const int side = window == 0 ? a.window.outer : a.window.inner;
  const int reach = a.window.outer / 2;
  const int spans = a.border == Border::reflect ? 3 : 1;
  const std::int64_t line = static_cast<std::int64_t>(a.cols) * p.adjoint_channels;
  double* out = a.sums + window * (p.row_end - p.row_begin) * line + worker;
  double sum = 0;
  const auto add = [&](int row, double sign) { sum += sign * given_by(p, row, col, channel); };
  const auto of = [&](int row) {
    return [&a, row, side, reach](int k) {
      return Samples ? samples_of(row, a.rows, side, a.border, k)
                     : holders_of(row, a.rows, side, reach, a.border, k);
    };
  };
  for (int row = first; row < first + segment_rows && row < p.row_end; ++row) {
    if (row == first) {
      for (int k = 0; k < spans; ++k) add_span(of(row), k, 1, add);
    } else {
      move_spans(of(row - 1), of(row), spans, add);
    }
    out[(row - p.row_begin) * line] = sum;
  }
}

// The same over the columns, of one channel, for the columns [begin, end) of a row.
template <class T, bool Samples, class Store>
__device__ __forceinline__ void sum_columns(const Parameters<T>& p, int row, int channel, int begin,
                                            int end, Store store) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  const int spans = a.border == Border::reflect ? 3 : 1;
  const int reach = a.window.outer / 2;
  const std::int64_t line = static_cast<std::int64_t>(a.cols) * p.adjoint_channels;
  double sum = 0;
  for (int col = begin; col < end; ++col) {
    for (int w = 0; w < p.windows; ++w) {
      const int side = w == 0 ? a.window.outer : a.window.inner;
      const double* from =
          a.sums + (w * (p.row_end - p.row_begin) + (row - p.row_begin)) * line + channel;
      const double of_window = w == 0 ? 1 : -1;
      const auto add = [&](int c, double sign) {
        sum += of_window * sign * from[static_cast<std::int64_t>(c) * p.adjoint_channels];
      };
      const auto of = [&](int c) {
        return [&a, c, side, reach](int k) {
          return Samples ? samples_of(c, a.cols, side, a.border, k)
                         : holders_of(c, a.cols, side, reach, a.border, k);
        };
      };
      if (col == begin) {
        for (int k = 0; k < spans; ++k) add_span(of(col), k, 1, add);
      } else {
        move_spans(of(col - 1), of(col), spans, add);
      }
    }
    store(col, sum);
  }
}

template <class T>
__global__ void __launch_bounds__(threads) find_means(Parameters<T> p) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  const int tiles = (a.cols + p.columns - 1) / p.columns;
  const int row = p.row_begin + static_cast<int>(blockIdx.x) / tiles;
  const int begin = static_cast<int>(blockIdx.x) % tiles * p.columns;
  const int end = begin + p.columns < a.cols ? begin + p.columns : a.cols;
  for (int c = static_cast<int>(threadIdx.x); c < a.channels; c += threads) {
    sum_columns<T, true>(p, row, c, begin, end, [&](int col, double sum) {
      const std::int64_t pixel = pixel_of(a, row, col);
      const double weight = a.weights[2 * pixel + 1];
      a.means[pixel * a.channels + c] = sum * (weight < 0 ? -weight : weight);
    });
  }
}

template <class T>
__global__ void __launch_bounds__(threads) apply(Parameters<T> p) {
  const LocalCovarianceBackwardLaunch<T>& a = p.a;
  double* sums = simt::dynamic_shared<double>();  // column, channel
  const int tiles = (a.cols + p.columns - 1) / p.columns;
  const int row = p.row_begin + static_cast<int>(blockIdx.x) / tiles;
  const int begin = static_cast<int>(blockIdx.x) % tiles * p.columns;
  const int end = begin + p.columns < a.cols ? begin + p.columns : a.cols;
  for (int c = static_cast<int>(threadIdx.x); c < p.adjoint_channels; c += threads) {
    sum_columns<T, false>(p, row, c, begin, end, [&](int col, double sum) {
      sums[(col - begin) * p.adjoint_channels + c] = sum;
    });
  }
  __syncthreads();
  const int n = a.channels;
  for (int e = static_cast<int>(threadIdx.x); e < (end - begin) * n; e += threads) {
    const int col = begin + e / n, j = e % n;
    const double* sum = sums + (col - begin) * p.adjoint_channels;
    const std::int64_t pixel = pixel_of(a, row, col);
    double v = -sum[p.adjoint_channels - 1 - n + j];
    if (a.covariance != nullptr) {
      for (int k = 0; k < n; ++k) {
        const int entry = k < j ? j * (j + 1) / 2 + k : k * (k + 1) / 2 + j;
        v += sum[entry] * sample_of(a, row, col, k);
      }
    }
    if (sum[p.adjoint_channels - 1] > 0.5) v = simt::nan<double>;
    if (a.states[pixel] != usable) v = 0;
    T* to = a.gradient + pixel * n + j;
    *to = static_cast<T>(a.accumulate ? static_cast<double>(*to) + v : v);
  }
}

unsigned blocks_of(std::int64_t work, std::int64_t each) {
  const std::int64_t blocks = (work + each - 1) / each;
  if (blocks > 0x7FFFFFFF) {
    throw_device_error(op, "image", "the CUDA kernels cover up to 2^31 - 1 blocks of a launch",
                       std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

template <class T>
void launch_all(const LocalCovarianceBackwardLaunch<T>& a, std::uintptr_t stream) {
  Parameters<T> p{};
  p.a = a;
  p.windows = a.window.inner > 0 ? 2 : 1;
  const std::int64_t pixels = static_cast<std::int64_t>(a.rows) * a.cols;
  const dim3 block(threads);
  const int channels = static_cast<int>(adjoint_channels(a.channels, a.covariance != nullptr));
  const std::size_t pixel_bytes = sizeof(double) * static_cast<std::size_t>(channels);
  if (pixel_bytes > simt::shared_limit(op)) {
    throw_device_error(op, "image",
                       "the CUDA kernels cover images of which one packed matrix in float64 fits "
                       "into the shared memory of a block (" +
                           std::to_string(simt::shared_limit(op)) + " bytes)",
                       std::to_string(pixel_bytes) + " bytes");
  }
  if (a.first) {
    simt::launch(op, pixel_states<T>, dim3(blocks_of(pixels, threads)), block, 0, stream, p);
    simt::launch(op, find_origin<T>, dim3(static_cast<unsigned>(a.channels)), block,
                 2 * threads * sizeof(double), stream, p);
  }
  simt::launch(op, find_weights<T>, dim3(blocks_of(pixels, warps)), block, 0, stream, p);
  // Strips of the image, so that their sums fit into the workspace.
  const auto each_strip = [&](auto&& launch_strip) {
    for (p.row_begin = 0; p.row_begin < a.rows; p.row_begin = p.row_end) {
      p.row_end = std::min(a.rows, p.row_begin + a.strip_rows);
      const int segments = (p.row_end - p.row_begin + segment_rows - 1) / segment_rows;
      if (segments * p.windows > 65535) p.row_end = p.row_begin + 65535 / p.windows * segment_rows;
      const int left = (p.row_end - p.row_begin + segment_rows - 1) / segment_rows;
      const std::int64_t work = static_cast<std::int64_t>(a.cols) * p.adjoint_channels;
      const dim3 rows(blocks_of(work, threads), static_cast<unsigned>(left * p.windows));
      const std::int64_t tiles = (a.cols + p.columns - 1) / p.columns;
      launch_strip(rows, dim3(blocks_of((p.row_end - p.row_begin) * tiles, 1)));
    }
  };
  if (a.covariance != nullptr && a.center) {
    p.adjoint_channels = a.channels;
    p.columns = most_columns;
    each_strip([&](dim3 rows, dim3 columns) {
      simt::launch(op, sum_rows<T, true>, rows, block, 0, stream, p);
      simt::launch(op, find_means<T>, columns, block, 0, stream, p);
    });
  }
  p.adjoint_channels = channels;
  const std::size_t fitting = simt::plain_shared_bytes / pixel_bytes;
  p.columns =
      static_cast<int>(std::min<std::size_t>(most_columns, std::max<std::size_t>(fitting, 1)));
  each_strip([&](dim3 rows, dim3 columns) {
    simt::launch(op, sum_rows<T, false>, rows, block, 0, stream, p);
    simt::launch(op, apply<T>, columns, block, pixel_bytes * static_cast<std::size_t>(p.columns),
                 stream, p);
  });
}

}  // namespace

void local_covariance_backward(const LocalCovarianceBackwardLaunch<float>& arguments,
                               std::uintptr_t stream) {
  launch_all(arguments, stream);
}
void local_covariance_backward(const LocalCovarianceBackwardLaunch<double>& arguments,
                               std::uintptr_t stream) {
  launch_all(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

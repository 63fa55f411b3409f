// The Cholesky factor of one matrix of any size in float64, in blocks of 32: one launch for every
// column of blocks, one thread block for each of its blocks.
#include <cmath>
#include <cstdint>

#include "core/device_background.hpp"
#include "core/device_matrix.hpp"
#include "core/device_pixels.hpp"
#include "core/simt.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int width = factor_block;
constexpr int pitch = width + 1;
constexpr int block_threads = 256;

// Shared memory of a thread block, in doubles.
struct Room {
  double* own;    // the block on the diagonal, and the rows that are solved with it
  double* left;   // of the factor: the block of columns that is subtracted, of the diagonal's rows
  double* below;  // and of the own rows
  double* pivots;
  int* flag;

  static constexpr int elements = 2 * width * pitch + 2 * width * pitch + width;
  static constexpr std::size_t bytes = sizeof(double) * elements + sizeof(int);

  __device__ explicit Room(double* memory)
      : own(memory),
        left(own + 2 * width * pitch),
        below(left + width * pitch),
        pivots(below + width * pitch),
        flag(reinterpret_cast<int*>(pivots + width)) {}
};

// Block (row, column) of the factor of covariance + extra I, from the columns before it. Every
// block of a column factors the block on the diagonal for itself. False when a pivot is none.
__device__ bool factor_one_block(const FactorLaunch& p, double extra, int row, int column,
                                 const Room& room) {
  const int padded = row_length(p.bands);
  const int thread = static_cast<int>(threadIdx.x);
  const int r = thread / 16 * 2, c = thread % 16 * 2;
  const bool diagonal = row == column;
  const auto entry = [&](int i, int j) {
    if (i >= p.bands || j >= p.bands) return i == j ? 1.0 : 0.0;
    const double value = p.covariance[static_cast<std::int64_t>(i) * padded + j];
    return i == j ? value + extra : value;
  };
  double square[2][2], own[2][2];
  MAHAL_UNROLL
  for (int s = 0; s < 2; ++s) {
    MAHAL_UNROLL
    for (int t = 0; t < 2; ++t) {
      square[s][t] = entry(column * width + r + s, column * width + c + t);
      own[s][t] = diagonal ? (r + s == c + t ? 1.0 : 0.0)
                           : entry(row * width + r + s, column * width + c + t);
    }
  }
  if (thread < width) room.pivots[thread] = entry(column * width + thread, column * width + thread);
  for (int k = 0; k < column * width; k += width) {
    __syncthreads();
    for (int e = thread; e < width * width; e += block_threads) {
      const std::int64_t from = static_cast<std::int64_t>(k + e / width) * padded + e % width;
      room.left[e / width * pitch + e % width] = p.lower[from + column * width];
      if (!diagonal) room.below[e / width * pitch + e % width] = p.lower[from + row * width];
    }
    __syncthreads();
    for (int j = 0; j < width; ++j) {
      const double* left = room.left + j * pitch;
      const double* below = room.below + j * pitch;
      MAHAL_UNROLL
      for (int s = 0; s < 2; ++s) {
        MAHAL_UNROLL
        for (int t = 0; t < 2; ++t) {
          square[s][t] -= left[r + s] * left[c + t];
          if (!diagonal) own[s][t] -= below[r + s] * left[c + t];
        }
      }
    }
  }
  __syncthreads();
  MAHAL_UNROLL
  for (int s = 0; s < 2; ++s) {
    MAHAL_UNROLL
    for (int t = 0; t < 2; ++t) {
      room.own[(r + s) * pitch + c + t] = square[s][t];
      room.own[(width + r + s) * pitch + c + t] = own[s][t];
    }
  }
  // Rows of the identity below the triangle become the columns of its inverse.
  const bool good = block_cholesky(room.own, PitchedRows{pitch}, width, 2 * width, smallest_pivot,
                                   room.pivots, room.flag);
  for (int e = thread; e < width * width; e += block_threads) {
    const int i = e % width, k = e / width;
    const double* solved = room.own + width * pitch;
    double* out = p.lower + static_cast<std::int64_t>(column * width + k) * padded + row * width;
    if (diagonal) {
      out[i] = i < k ? 0.0 : room.own[i * pitch + k];
      p.inverse[(column * width + k) * width + i] = solved[k * pitch + i];
    } else {
      out[i] = solved[i * pitch + k];
    }
  }
  __syncthreads();
  return good;
}

struct ColumnParameters {
  FactorLaunch launch;
  int column;
};

__global__ void __launch_bounds__(block_threads) factor_column(ColumnParameters p) {
  BackgroundState& state = *p.launch.state;
  if (p.launch.iterating && state.finished != 0) return;
  if (p.column > 0 && state.unfactored != 0) return;
  const Room room(simt::dynamic_shared<double>());
  const int row = p.column + static_cast<int>(blockIdx.x);
  const bool good = factor_one_block(p.launch, 0.0, row, p.column, room);
  if (row == p.column && threadIdx.x == 0) {
    if (p.column == 0) state.loaded = 0;
    if (p.column == 0 || !good) state.unfactored = good ? 0 : 1;
  }
}

// A covariance of the whole image that is singular is rare: one block loads it as far as it takes.
__global__ void __launch_bounds__(block_threads) factor_loaded(FactorLaunch p) {
  constexpr int attempts = 20;
  BackgroundState& state = *p.state;
  if (state.unfactored == 0 || state.outcome != status_ok) return;
  double* memory = simt::dynamic_shared<double>();
  const Room room(memory);
  const int blocks = row_length(p.bands) / width;
  const int thread = static_cast<int>(threadIdx.x);
  double trace = 0;
  for (int j = thread; j < p.bands; j += block_threads) {
    trace += p.covariance[j * (row_length(p.bands) + std::int64_t{1})];
  }
  trace = block_reduce(trace, memory);
  // A constant image has no scale of its own.
  double extra = trace > 0 ? unit_loading * trace / p.bands : 1.0;
  bool good = false;
  for (int attempt = 0; attempt < attempts && !good; ++attempt, extra *= 10) {
    good = true;
    for (int column = 0; column < blocks && good; ++column) {
      for (int row = column; row < blocks && good; ++row) {
        good = factor_one_block(p, extra, row, column, room);
      }
    }
  }
  if (thread == 0 && good) {
    state.unfactored = 0;
    state.loaded = 1;
  }
}

constexpr int load_threads = 256;

// The real form of the matrix.
template <class T>
__global__ void __launch_bounds__(load_threads) load_matrix(MatrixLaunch<T> p) {
  const std::int64_t e = std::int64_t{blockIdx.x} * load_threads + threadIdx.x;
  const std::int64_t i = e / p.bands, j = e % p.bands;
  if (i >= p.bands) return;
  const auto part = [&](std::int64_t row, std::int64_t col, int which) {
    return static_cast<double>(p.data[row * p.row_stride + col * p.col_stride + which]);
  };
  const std::int64_t row = i / p.parts, col = j / p.parts;
  const double real = part(row, col, 0);
  const double imaginary = p.parts == 2 ? part(row, col, 1) : 0.0;
  const double difference =
      std::hypot(real - part(col, row, 0), p.parts == 2 ? imaginary + part(col, row, 1) : 0.0);
  const double rounding = 64.0 * static_cast<double>(simt::epsilon<T>);
  const double size = std::sqrt(std::abs(part(row, row, 0) * part(col, col, 0)));
  double value = real;
  if (i % p.parts != j % p.parts) value = i % p.parts == 1 ? imaginary : -imaginary;
  if (difference > rounding * size) value = simt::nan<double>;
  p.covariance[i * row_length(p.bands) + j] = value;
}

template <class T>
__global__ void __launch_bounds__(load_threads) load_vector(MeanLaunch<T> p) {
  const int bands = p.list.bands;
  for (int j = static_cast<int>(threadIdx.x); j < row_length(bands); j += load_threads) {
    p.mean[j] = j < bands ? static_cast<double>(p.list.data[band_element(p.list, j)]) : 0.0;
  }
  if (threadIdx.x == 0) *p.state = {};
}

}  // namespace

void Background::factor(const FactorLaunch& launch) const {
  const int blocks = padded_rows(launch.bands) / width;
  for (int column = 0; column < blocks; ++column) {
    simt::launch(op, factor_column, dim3(static_cast<unsigned>(blocks - column)),
                 dim3(block_threads), Room::bytes, stream, ColumnParameters{launch, column});
  }
  if (launch.load) {
    simt::launch(op, factor_loaded, dim3(1), dim3(block_threads), Room::bytes, stream, launch);
  }
}

template <class T>
void Background::load(const MeanLaunch<T>& launch) const {
  simt::launch(op, load_vector<T>, dim3(1), dim3(load_threads), 0, stream, launch);
}

template <class T>
void Background::load(const MatrixLaunch<T>& launch) const {
  const std::int64_t elements = std::int64_t{launch.bands} * launch.bands;
  const std::int64_t blocks = (elements + load_threads - 1) / load_threads;
  simt::launch(op, load_matrix<T>, dim3(static_cast<unsigned>(blocks)), dim3(load_threads), 0,
               stream, launch);
}

template void Background::load(const MeanLaunch<float>&) const;
template void Background::load(const MeanLaunch<double>&) const;
template void Background::load(const MatrixLaunch<float>&) const;
template void Background::load(const MatrixLaunch<double>&) const;

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

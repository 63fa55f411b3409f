// Gradients of structural similarity: the derivative of every window by its sums, and then what
// every pixel collects of these, over the rows first and then over the columns.
#include "core/device_similarity.hpp"
#include "ops/structural_similarity_backward_cuda.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int factors = similarity_factors;  // of 1, 1, both deviations and the other deviation

// The first derivative of a window; the others follow `plane_size` apart.
template <class T>
__device__ __forceinline__ double* derivatives_at(const StructuralSimilarityBackwardLaunch<T>& p,
                                                  std::int64_t channel, int row, int col) {
  return p.derivatives + (channel * p.images.rows + row) * p.images.cols + col;
}
template <class T>
__device__ __forceinline__ std::int64_t plane_size(const StructuralSimilarityBackwardLaunch<T>& p) {
  return p.images.channels * p.images.rows * p.images.cols;
}

// Derivatives of the scores of all pixels that have theirs from this window.
template <class T>
__device__ __forceinline__ double grad_at(const StructuralSimilarityBackwardLaunch<T>& p, int row,
                                          int col, std::int64_t channel) {
  const auto& images = p.images;
  int top = row, bottom = row + 1, left = col, right = col + 1;
  if (images.params.border == MapBorder::shift) {
    if (row == images.edge) top = 0;
    if (row == images.rows - images.edge - 1) bottom = images.rows;
    if (col == images.edge) left = 0;
    if (col == images.cols - images.edge - 1) right = images.cols;
  }
  double sum = 0;
  for (int r = top; r < bottom; ++r) {
    for (int c = left; c < right; ++c) {
      sum += static_cast<double>(
          p.grad[(std::int64_t{r} * images.cols + c) * images.channels + channel]);
    }
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    differentiate_windows(StructuralSimilarityBackwardLaunch<T> p) {
  const StructuralSimilarityParams& params = p.images.params;
  const double k1 = params.k1 * params.data_range, k2 = params.k2 * params.data_range;
  const double c1 = k1 * k1, c2 = k2 * k2;
  each_window(p.images, [&](int row, int col, std::int64_t channel, const WindowStatistics& s) {
    const double mx = s.x + s.first_origin, my = s.y + s.second_origin;
    const double alike = 2 * mx * my + c1, means = mx * mx + my * my + c1;
    const double common = 2 * s.xy + c2, variances = s.xx + s.yy + c2;
    const double inverse = 1 / (means * variances);
    const double score = alike * common * inverse;
    const double by_variance = -score / variances * s.norm;
    const double by_common = 2 * alike * inverse * s.norm;
    const double pull = 2 * score / means;
    const double by_x = 2 * my * common * inverse - pull * mx;
    const double by_y = 2 * mx * common * inverse - pull * my;
    const double grad = grad_at(p, row, col, channel);
    const double found[factors] = {by_x - 2 * s.x * by_variance - s.y * by_common,
                                   by_y - 2 * s.y * by_variance - s.x * by_common, by_variance,
                                   by_common};
    const double scale = grad * s.total;
    const std::int64_t step = plane_size(p);
    double* to = derivatives_at(p, channel, row, col);
  MAHAL_UNROLL
    for (int k = 0; k < factors; ++k, to += step) *to = grad == 0 ? 0 : found[k] * scale;
  });
}

// What the window on `centre` gives to position q of an axis: more than one of its weights where
// the image is mirrored.
__device__ __forceinline__ double adjoint_weight(const double* weights, int window, int centre,
                                                 int q, int n, bool mirrored) {
  const int half = window / 2;
  const auto at = [&](int position) {
    const int t = position - centre + half;
    return t >= 0 && t < window ? weights[t] : 0.0;
  };
  double sum = at(q);
  if (mirrored && q > 0) sum += at(-q);
  if (mirrored && q < n - 1) sum += at(2 * (n - 1) - q);
  return sum;
}

// What is not finite has no part where no window asks for it.
__device__ __forceinline__ double times(double factor, double x) {
  return factor == 0 ? 0 : factor * x;
}

template <class T>
__global__ void __launch_bounds__(block_threads)
    collect_gradients(StructuralSimilarityBackwardLaunch<T> p) {
  const StructuralSimilarityLaunch<T>& images = p.images;
  const int window = images.params.window, half = window / 2;
  const int width = tile_cols + window - 1;
  const bool mirrored = images.params.border == MapBorder::reflect;
  const int thread = static_cast<int>(threadIdx.x);
  double* weights = simt::dynamic_shared<double>();
  double* sums = weights + window;  // factors x tile_rows x width
  const int plane = images.tile_rows * width;
  const std::int64_t step = plane_size(p);
  for (int t = thread; t < window; t += block_threads) weights[t] = images.weights[t];
  const int across = (images.cols - 1) / tile_cols + 1;
  const int down = (images.rows - 1) / images.tile_rows + 1;
  const int rows_end = images.rows - images.edge, cols_end = images.cols - images.edge;
  const std::int64_t tiles = std::int64_t{across} * down * images.channels;
  for (std::int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const std::int64_t channel = tile % images.channels;
    const int col0 = static_cast<int>(tile / images.channels % across) * tile_cols;
    const int row0 = static_cast<int>(tile / images.channels / across) * images.tile_rows;
    const double* origin = origins_at(images, row0, col0, channel);
    __syncthreads();
    for (int e = thread; e < plane; e += block_threads) {
      const int col = col0 - half + e % width;
      const int row = row0 + e / width;
      double sum[factors] = {};
      const bool reached = col >= images.edge && col < cols_end && row < images.rows;
      for (int t = halo_error; reached && t < window; ++t) {
        const int centre = row - half + t;
        if (centre < images.edge || centre >= rows_end) continue;
        const double weight =
            adjoint_weight(weights, window, centre, row, images.rows, mirrored);
        double found[factors];
        const double* from = derivatives_at(p, channel, centre, col);
  MAHAL_UNROLL
        for (int k = 0; k < factors; ++k, from += step) found[k] = *from;
        // From the origins of that window to those of this tile. Tiles of windows begin at the
        // edge of the map.
        const double* other =
            origins_at(images, window_tile(centre, images.edge, images.tile_rows),
                       window_tile(col, images.edge, tile_cols), channel);
        const double dx = origin[0] - other[0], dy = origin[1] - other[1];
        sum[0] += weight * (found[0] + 2 * dx * found[2] + dy * found[3]);
        sum[1] += weight * (found[1] + 2 * dy * found[2] + dx * found[3]);
        sum[2] += weight * found[2];
        sum[3] += weight * found[3];
      }
      for (int k = 0; k < factors; ++k) sums[k * plane + e] = sum[k];
    }
    map_barrier();
    const int r = thread / tile_cols, c = thread % tile_cols;
    const int row = row0 + r, col = col0 + c;
    if (r >= images.tile_rows || row >= images.rows || col >= images.cols) continue;
    double sum[factors] = {};
    for (int t = 0; t < window; ++t) {
      const int centre = col - half + t;
      if (centre < images.edge || centre >= cols_end) continue;
      const double weight = adjoint_weight(weights, window, centre, col, images.cols, mirrored);
      for (int k = 0; k < factors; ++k) sum[k] += weight * sums[k * plane + r * width + c + t];
    }
    const double x = read_pixel(images, 0, row, col, channel) - origin[0];
    const double y = read_pixel(images, 1, row, col, channel) - origin[1];
    const double found[2] = {sum[0] + times(2 * sum[2], x) + times(sum[3], y),
                             sum[1] + times(2 * sum[2], y) + times(sum[3], x)};
    const std::int64_t at = (std::int64_t{row} * images.cols + col) * images.channels + channel;
    for (int k = 0; k < 2; ++k) {
      if (p.gradients[k] != nullptr) p.gradients[k][at] = static_cast<T>(found[k]);
    }
  }
}

template <class T>
void launch_any(StructuralSimilarityBackwardLaunch<T> p, std::uintptr_t stream) {
  constexpr const char* op = "structural_similarity_backward";
  StructuralSimilarityLaunch<T>& images = p.images;
  launch_tables(op, images, stream);
  simt::launch(op, differentiate_windows<T>,
               tile_blocks(images, images.rows - 2 * images.edge, images.cols - 2 * images.edge),
               dim3(block_threads), window_bytes(images, planes), stream, p);
  simt::launch(op, collect_gradients<T>, tile_blocks(images, images.rows, images.cols),
               dim3(block_threads), window_bytes(images, factors), stream, p);
}

}  // namespace

void structural_similarity_backward(const StructuralSimilarityBackwardLaunch<float>& arguments,
                                    std::uintptr_t stream) {
  launch_any(arguments, stream);
}

void structural_similarity_backward(const StructuralSimilarityBackwardLaunch<double>& arguments,
                                    std::uintptr_t stream) {
  launch_any(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

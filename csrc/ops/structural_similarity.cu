// Structural similarity of two images.
#include "core/device_similarity.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

template <class T>
__global__ void __launch_bounds__(block_threads) compare_windows(StructuralSimilarityLaunch<T> p) {
  const double k1 = p.params.k1 * p.params.data_range, k2 = p.params.k2 * p.params.data_range;
  const double c1 = k1 * k1, c2 = k2 * k2;
  each_window(p, [&](int row, int col, std::int64_t channel, const WindowStatistics& s) {
    const double mx = s.x + s.first_origin, my = s.y + s.second_origin;
    const double score =
        (2 * mx * my + c1) * (2 * s.xy + c2) / ((mx * mx + my * my + c1) * (s.xx + s.yy + c2));
    p.score[(std::int64_t{row} * p.cols + col) * p.channels + channel] = static_cast<T>(score);
  });
}

// Pixels without a window of their own take what the nearest one with a window has, or NaN.
template <class T>
__global__ void __launch_bounds__(pixel_threads) fill_map_edges(StructuralSimilarityLaunch<T> p) {
  const bool copied = p.params.border == MapBorder::shift;
  const std::int64_t all = std::int64_t{p.rows} * p.cols * p.channels;
  for (std::int64_t at = std::int64_t{blockIdx.x} * pixel_threads + threadIdx.x; at < all;
       at += std::int64_t{gridDim.x} * pixel_threads) {
    const std::int64_t pixel = at / p.channels;
    const std::int64_t row = nearest_window(static_cast<int>(pixel / p.cols), p.rows, p.edge);
    const std::int64_t col = nearest_window(static_cast<int>(pixel % p.cols), p.cols, p.edge);
    const std::int64_t from = row * p.cols + col;
    if (from == pixel) continue;
    p.score[at] = copied ? p.score[from * p.channels + at % p.channels] : simt::nan<T>;
  }
}

template <class T>
void launch_any(StructuralSimilarityLaunch<T> p, std::uintptr_t stream) {
  constexpr const char* op = "structural_similarity";
  launch_tables(op, p, stream);
  simt::launch(op, compare_windows<T>, tile_blocks(p, p.rows - 2 * p.edge, p.cols - 2 * p.edge),
               dim3(block_threads), window_bytes(p, planes), stream, p);
  if (p.edge > 0) {
    simt::launch(op, fill_map_edges<T>, blocks_for(std::int64_t{p.rows} * p.cols * p.channels),
                 dim3(pixel_threads), 0, stream, p);
  }
}

}  // namespace

void structural_similarity(const StructuralSimilarityLaunch<float>& arguments,
                           std::uintptr_t stream) {
  launch_any(arguments, stream);
}

void structural_similarity(const StructuralSimilarityLaunch<double>& arguments,
                           std::uintptr_t stream) {
  launch_any(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

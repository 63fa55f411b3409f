#include "ops/structural_similarity_tile.hpp"

namespace mahal {
namespace {

template <class T>
void finish(const SimilarityTile<T>& tile, int r, int c0, const double* origins) {
  const StructuralSimilarityBlock<T>& b = tile.b;
  const auto s = tile.statistics(r, c0);
  const V mx = s.x + S::set1(origins[0]);
  const V my = s.y + S::set1(origins[1]);
  const V c1 = S::set1(b.c1);
  const V c2 = S::set1(b.c2);
  const V two = S::set1(2);
  const V score = S::fma(two * mx, my, c1) * S::fma(two, s.xy, c2) /
                  (S::fma(mx, mx, S::fma(my, my, c1)) * (s.xx + s.yy + c2));
  const std::ptrdiff_t pixel =
      static_cast<std::ptrdiff_t>(b.row_begin + r) * b.cols + b.col_begin + c0;
  T* out = b.score + pixel * b.channels;
  for (int l = 0; l < L && c0 + l < tile.cols; ++l) out[l * b.channels] = static_cast<T>(score[l]);
}

template <class T>
void run_block(const StructuralSimilarityBlock<T>& block) {
  const SimilarityTile<T> tile(block);
  const double origins[2] = {tile.origin(block.images[0]), tile.origin(block.images[1])};
  tile.add_windows(origins);
  for (int r = 0; r < tile.rows; ++r) {
    for (int c0 = 0; c0 < tile.cols; c0 += L) finish(tile, r, c0, origins);
  }
}

}  // namespace

template <>
std::size_t StructuralSimilarityKernel<current_isa>::scratch_bytes(int window, int tile_rows,
                                                                   int tile_cols) {
  const std::ptrdiff_t doubles =
      SimilarityTile<double>::scratch_doubles(tile_rows, tile_cols, window);
  return sizeof(double) * static_cast<std::size_t>(doubles);
}
template <>
void StructuralSimilarityKernel<current_isa>::run(const StructuralSimilarityBlock<float>& block) {
  run_block(block);
}
template <>
void StructuralSimilarityKernel<current_isa>::run(const StructuralSimilarityBlock<double>& block) {
  run_block(block);
}

}  // namespace mahal

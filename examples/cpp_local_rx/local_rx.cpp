// Local RX on an image of one's own, and what an error looks like.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <random>
#include <string>
#include <vector>

#include "mahal/context.hpp"
#include "mahal/error.hpp"
#include "mahal/rx.hpp"
#include "mahal/tensor.hpp"
#include "mahal/version.hpp"

namespace {

// A contiguous array that the caller owns, as mahal sees it.
template <class T>
mahal::TensorView view_of(std::vector<T>& values, mahal::DType dtype,
                          std::initializer_list<std::int64_t> shape) {
  mahal::TensorView view;
  view.data = values.data();
  view.dtype = dtype;
  for (const std::int64_t side : shape) view.shape[view.rank++] = side;
  std::int64_t step = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    view.strides[axis] = step;
    step *= view.shape[axis];
  }
  return view;
}

constexpr std::int64_t rows = 60, cols = 50, bands = 12;
constexpr std::int64_t odd_row = 31, odd_col = 17;

// Scores of all pixels against their surroundings: a square of `outer` pixels without the inner
// one.
std::vector<float> local_rx(std::vector<float>& image, int inner, int outer) {
  mahal::RxParams params;
  params.window.inner = inner;
  params.window.outer = outer;
  const mahal::TensorView pixels = view_of(image, mahal::DType::f32, {rows, cols, bands});
  std::vector<float> scores(rows * cols);
  std::vector<std::uint8_t> states(rows * cols);
  // An argument that is not given is an empty view. The library itself allocates nothing.
  std::vector<char> memory(mahal::rx_workspace(params, pixels, {}, {}, 0));
  mahal::rx(params, pixels, {}, {}, {}, view_of(scores, mahal::DType::f32, {rows, cols}),
            view_of(states, mahal::DType::u8, {rows, cols}), {memory.data(), memory.size()}, {});
  return scores;
}

}  // namespace

int main() {
  // What was compiled against must be what is loaded: the layout of structs may differ.
  const std::string built = std::to_string(MAHAL_VERSION_MAJOR) + "." +
                            std::to_string(MAHAL_VERSION_MINOR) + "." +
                            std::to_string(MAHAL_VERSION_PATCH);
  if (built != mahal::build_info().version) {
    std::printf("compiled with mahal %s, loaded %s\n", built.c_str(), mahal::build_info().version);
    return 1;
  }

  std::mt19937 generator(1);
  std::normal_distribution<float> noise;
  std::vector<float> image(rows * cols * bands);
  for (float& value : image) value = 100 + noise(generator);
  for (std::int64_t band = 0; band < bands; ++band) {
    image[(odd_row * cols + odd_col) * bands + band] += band % 2 == 0 ? 6.f : -6.f;
  }

  const std::vector<float> scores = local_rx(image, 5, 15);
  std::size_t best = 0;
  for (std::size_t k = 0; k < scores.size(); ++k) {
    if (scores[k] > scores[best]) best = k;
  }
  const auto row = static_cast<long>(best / cols), col = static_cast<long>(best % cols);
  std::printf("mahal %s: highest score %.0f at row %ld, column %ld\n", built.c_str(), scores[best],
              row, col);
  if (row != odd_row || col != odd_col) return 1;

  try {
    local_rx(image, 5, 14);
  } catch (const mahal::ValueError& error) {
    std::printf("refused: %s\n", error.what());
    return std::string(error.what()).find("rx: window: ") == 0 ? 0 : 1;
  }
  std::printf("a window with an even side was taken\n");
  return 1;
}

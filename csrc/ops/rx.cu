// Scores of every pixel against its own window, on a whitened image.
//
// strip_scores: a team of threads walks along a strip of one row. The scatter matrix of the window
// stays with the team: pixels that enter and leave add and subtract their products, and every strip
// begins anew, so that rounding does not add up along a row. A thread owns one square of the
// matrix. It corrects a copy in registers for the mean, the team factors it with the pixel and the
// targets as further rows, and only the scores leave the chip. What rounding does to them is
// estimated as on the CPU; pixels whose estimate is too large are marked.
//
// exact_scores: marked pixels again, from their own samples in two passes and in float64.
//
// mean_scores: for a fixed covariance the score is a distance to the mean of the window.
//
// The order of every sum follows from the sizes alone, so results repeat bit for bit.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/device_matrix.hpp"
#include "core/device_targets.hpp"
#include "core/device_windows.hpp"
#include "core/simt.hpp"
#include "mahal/rx.hpp"
#include "ops/mean_covariance_kernel.hpp"
#include "ops/rx_cuda.hpp"
#include "ops/rx_limits.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {
namespace {

constexpr int warps_per_block = 4;
// Samples in shared memory at a time: of a strip, and of a pixel in float64.
constexpr int strip_samples = 32;
constexpr int stage_samples = 16;

// What is left of the square of a target that all but depends on the others has lost its digits.
template <class T>
constexpr T independent = sizeof(T) == 4 ? T(1e-4) : T(1e-12);

// Elements of simt::Chunk.
template <class T>
constexpr int piece = 16 / static_cast<int>(sizeof(T));

// The threads that work on one strip.
template <bool Warp>
struct Team {
  int rank, size, in_block;
  std::int64_t index, count;

  __device__ __forceinline__ Team() {
    const int thread = static_cast<int>(threadIdx.x);
    rank = Warp ? thread % warp_lanes : thread;
    size = Warp ? warp_lanes : static_cast<int>(blockDim.x);
    in_block = Warp ? thread / warp_lanes : 0;
    const int teams = Warp ? static_cast<int>(blockDim.x) / warp_lanes : 1;
    index = std::int64_t{blockIdx.x} * teams + in_block;
    count = std::int64_t{gridDim.x} * teams;
  }
  __device__ __forceinline__ void wait() const {
    if constexpr (Warp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
  // The hook by which tests/cpp/test_simt.cpp proves that its comparisons notice a lost barrier.
  __device__ __forceinline__ void wait_for_stage() const {
#if !defined(MAHAL_MUTATE_BARRIER)
    wait();
#endif
  }
};

// Whether no pixel can have a score, for want of a background.
__device__ __forceinline__ bool is_hopeless(const WindowsOfImage& a) {
  const BackgroundState& state = *a.state;
  return state.outcome == status_few_samples || state.unfactored != 0 ||
         (state.loaded != 0 && a.nan_when_singular);
}

template <class T>
__global__ void __launch_bounds__(256, 4) window_states(WindowScoresLaunch<T> a) {
  const std::int64_t pixels = std::int64_t{a.rows} * a.cols;
  const std::int64_t pixel = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (pixel >= pixels) return;
  const int row = static_cast<int>(pixel / a.cols), col = static_cast<int>(pixel % a.cols);
  const Place place(a, row, col);
  const int outer = a.window.outer, inner = a.window.inner;
  int count = 0;
  bool finite = true;
  for (int v = place.top; v < place.top + outer; ++v) {
    const bool guarded = v >= place.guard_top && v < place.guard_top + inner;
    const std::uint8_t* line = a.pixel_status + std::int64_t{mirrored(v, a.rows)} * a.cols;
    for (int u = place.left; u < place.left + outer; ++u) {
      if (guarded && u >= place.guard_left && u < place.guard_left + inner) continue;
      const std::uint8_t status = line[mirrored(u, a.cols)];
      count += status == status_ok;
      finite = finite && status != status_nonfinite;
    }
  }
  const int half = outer / 2;
  const bool whole = row >= half && row + half < a.rows && col >= half && col + half < a.cols;
  std::uint8_t status = a.pixel_status[pixel];
  if (status == status_ok && a.border == Border::valid && !whole) status = status_masked;
  if (status == status_ok && !finite) status = status_nonfinite;
  if (status == status_ok && (count < a.needed || a.state->outcome == status_few_samples)) {
    status = status_few_samples;
  }
  if (status == status_ok && is_hopeless(a)) status = status_singular;
  a.count[pixel] = count;
  a.weak[pixel] = 0;
  a.status[pixel] = status;
  if (status == status_ok) return;
  for (int k = 0; k < a.maps; ++k) a.score[pixel * a.maps + k] = simt::nan<T>;
}

template <class T>
struct StripParameters {
  WindowScoresLaunch<T> a;
  StripPlan plan;
  // In the shared memory of a team, in elements.
  int samples_at, stage_at, square_at, inverse_at, sums_at, origin_at, peak_at, sides_at, solved_at,
      lengths_at, products_at, broken_at, scatter_at;
  int team_elements;
  std::int64_t scatter_elements;
  bool scatter_shared;
};

// In shared memory the bands of a sample lie such that neighbouring threads, which own neighbouring
// squares, read neighbouring pieces.
template <class T, int Tile>
struct Rows {
  static constexpr int pieces = Tile / piece<T>;
  T* rows;
  int span;  // elements of the first, second, ... pieces of all squares

  __device__ __forceinline__ simt::Chunk<T>* at(int row, int which, int square) const {
    return reinterpret_cast<simt::Chunk<T>*>(rows + (row * pieces + which) * span +
                                             square * piece<T>);
  }
  __device__ __forceinline__ T& element(int row, int band) const {
    const int in_square = band % Tile;
    return at(row, in_square / piece<T>, band / Tile)->value[in_square % piece<T>];
  }
  __device__ __forceinline__ void read(int row, int square, T (&out)[Tile]) const {
    MAHAL_UNROLL
    for (int h = 0; h < pieces; ++h) {
      const simt::Chunk<T> p = *at(row, h, square);
      MAHAL_UNROLL
      for (int e = 0; e < piece<T>; ++e) out[h * piece<T> + e] = p.value[e];
    }
  }
  __device__ __forceinline__ void write(int row, int square, const T (&in)[Tile]) const {
    MAHAL_UNROLL
    for (int h = 0; h < pieces; ++h) {
      simt::Chunk<T> p;
      MAHAL_UNROLL
      for (int e = 0; e < piece<T>; ++e) p.value[e] = in[h * piece<T> + e];
      *at(row, h, square) = p;
    }
  }
};

// c += x_i x_j^T over the rows [begin, end), or c -= it.
template <bool Add, class T, int Tile>
__device__ __forceinline__ void add_products(const Rows<T, Tile>& x, int begin, int end, int i,
                                             int j, T (&c)[Tile][Tile]) {
  for (int k = begin; k < end; ++k) {
    T left[Tile], right[Tile];
    x.read(k, i, left);
    x.read(k, j, right);
    MAHAL_UNROLL
    for (int r = 0; r < Tile; ++r) {
      MAHAL_UNROLL
      for (int q = 0; q < Tile; ++q) {
        if constexpr (Add) {
          c[r][q] += left[r] * right[q];
        } else {
          c[r][q] -= left[r] * right[q];
        }
      }
    }
  }
}

// From the products of the real and imaginary parts to the real form of z z^H; `diagonal` where the
// square lies on it.
template <class T, int Tile>
__device__ __forceinline__ void make_hermitian(bool diagonal, T (&c)[Tile][Tile]) {
  MAHAL_UNROLL
  for (int r = 0; r < Tile; r += 2) {
    MAHAL_UNROLL
    for (int q = 0; q < Tile; q += 2) {
      const T real = c[r][q] + c[r + 1][q + 1];
      const T imaginary = diagonal && r == q ? T(0) : c[r + 1][q] - c[r][q + 1];
      c[r][q] = c[r + 1][q + 1] = real;
      c[r + 1][q] = imaginary;
      c[r][q + 1] = -imaginary;
    }
  }
}

// sum z_j^2 size_j
template <class T, class Size>
__device__ __forceinline__ T warp_error(const T* z, int n, Size size) {
  T sum = T(0);
  for (int j = static_cast<int>(threadIdx.x) % warp_lanes; j < n; j += warp_lanes) {
    sum += z[j] * z[j] * size(j);
  }
  return warp_reduce(sum);
}

// What is left to do with one pixel once its matrix is factored, by one warp of its team.
template <class T>
struct SideRows {
  const WindowsOfImage& a;
  int length;       // of a row
  const T* origin;  // of the strip
  const T* peak;
  T* sides;   // y = L^-1 (x - m), then those of the targets
  T* solved;  // A^-1 of the same
  T* lengths;
  T* products;

  // Brings the targets to unit length, orthogonal to each other for a subspace. False where they
  // have lost their digits.
  __device__ bool prepare() const {
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    bool good = true;
    for (int k = 0; k < a.target_count; ++k) {
      T* w = sides + (1 + k) * length;
      T square = warp_dot(w, w, length);
      if (a.kind == MatchedScore::subspace_ace) {
        const T before = square;
        for (int pass = 0; pass < 2; ++pass) {
          for (int p = 0; p < k; ++p) {
            const T* q = sides + (1 + p) * length;
            warp_subtract(w, warp_dot(q, w, length), q, length);
          }
        }
        square = warp_dot(w, w, length);
        good = good && square - before * independent<T> > T(0);
      }
      const T scale = T(1) / std::sqrt(square);
      for (int j = lane; j < length; j += warp_lanes) w[j] *= scale;
      const T product = warp_dot(w, sides, length);
      if (lane == 0) {
        lengths[k] = square;
        products[k] = product;
      }
      // The next target is made orthogonal to this one.
      __syncwarp();
    }
    for (int k = 0; k <= a.target_count; ++k) {
      for (int j = lane; j < length; j += warp_lanes) {
        solved[k * length + j] = sides[k * length + j];
      }
    }
    return good;
  }

  // The scores of the pixel; false where rounding may have spoiled them. With z = A^-1 d for the
  // pixel or a target d:
  // - A change dA changes the square of L^-1 d by z^T dA z. Rounding is a change of entry (i, j) in
  //   proportion to the square root of peak_i peak_j, with signs at random.
  // - The whitened pixel is rounded, by as much as the origin is large, and so is a target; what
  //   that does to products is in proportion to z again.
  __device__ bool score(T reciprocal, T degrees, T* out) const {
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const auto spread = [&](int j) { return peak[j]; };
    const auto place = [&](int j) { return origin[j] * origin[j]; };
    const T square = warp_dot(sides, sides, length);
    const T rounding = warp_error(solved, length, spread);
    const T share = T(1) / trusted_error<T>;
    const T unit = share / 4 * (share / 4);
    const T blur = unit * warp_error(solved, length, place);
    bool good = square * square - blur > T(0);
    if (a.target_count == 0) {
      if (lane == 0) *out = square * degrees;
      return good && square - share * rounding > T(0);
    }
    const T error_y = rounding / square;
    T total = T(0);
    for (int k = 0; k < a.target_count; ++k) {
      const T* z = solved + (1 + k) * length;
      const auto size = [&](int j) {
        const T t = j < a.bands ? static_cast<T>(a.targets[std::int64_t{k} * a.pitch + j] -
                                                 static_cast<double>(origin[j]))
                                : T(0);
        return Greatest()(t * t, peak[j] * reciprocal);
      };
      const T error_w = warp_error(z, length, spread);
      const T own = warp_error(z, length, size);
      const T across = warp_error(solved, length, size);
      const T blur_w = unit * warp_error(z, length, place);
      const T length_w = lengths[k], c = products[k];
      const T cosine = c / std::sqrt(square);
      const T larger = Greatest()(error_y, error_w);
      const T change = (cosine < T(0) ? -cosine : cosine) * larger + std::sqrt(error_y * error_w);
      // The estimate is of first order: where it is large it says little.
      good = good && T(1) - share * change > T(0) && T(16) - share * larger > T(0) &&
             square - blur_w > T(0) && length_w - T(4) * share * share * own > T(0) &&
             length_w * square - share * share * across > T(0);
      T value;
      switch (a.kind) {
        case MatchedScore::signed_ace:
          value = cosine > T(1) ? T(1) : cosine < T(-1) ? T(-1) : cosine;
          break;
        case MatchedScore::subspace_ace:
          total += c * (c / square);
          value = total > T(1) ? T(1) : total;
          break;
        case MatchedScore::normalized_filter:
          value = c * std::sqrt(degrees);
          break;
        case MatchedScore::filter:
          value = c / std::sqrt(length_w);
          break;
        default:
          value = c * (c / square);
          value = value > T(1) ? T(1) : value;
      }
      if (lane == 0) out[a.kind == MatchedScore::subspace_ace ? 0 : k] = value;
    }
    return good;
  }
};

template <class T, int Tile, bool Warp>
__global__ void __launch_bounds__(Warp ? warps_per_block * warp_lanes : most_squares<T>(Tile),
                                  Warp && sizeof(T) == 4 ? 4 : 1)
    strip_scores(StripParameters<T> p) {
  const WindowScoresLaunch<T>& a = p.a;
  if (is_hopeless(a)) return;
  const StripPlan& plan = p.plan;
  const Team<Warp> team;
  const int tiles = plan.tiles, length = tiles * Tile;
  T* shared = simt::dynamic_shared<T>() + team.in_block * p.team_elements;
  std::int64_t* samples = reinterpret_cast<std::int64_t*>(shared + p.samples_at);
  // Samples, later the columns of the factor that others need.
  const Rows<T, Tile> stage{shared + p.stage_at, plan.tile_rows * piece<T>};
  T* square = shared + p.square_at;       // the factor of the square on the diagonal
  T* inverse = shared + p.inverse_at;     // 1 / diagonal of the factor
  T* sums = shared + p.sums_at;           // of the samples, relative to the origin
  T* origin = shared + p.origin_at;       // mean of the strip
  T* peak = shared + p.peak_at;           // largest sums of squares so far
  T* sides = shared + p.sides_at;         // rows below the factor
  T* solved = shared + p.solved_at;
  T* broken = shared + p.broken_at;
  const SideRows<T> rest{a, length, origin, peak, sides, solved, shared + p.lengths_at,
                         shared + p.products_at};
  // The scatter matrix, element by element of all squares.
  T* scatter = p.scatter_shared ? shared + p.scatter_at
                                : a.sums + p.scatter_elements * blockIdx.x;
  scatter += team.rank;

  // Square (i, j) belongs to this thread: column by column, so that threads retire in order.
  int i = team.rank, j = 0;
  while (j < tiles && i >= plan.tile_rows - j) {
    i -= plan.tile_rows - j;
    ++j;
  }
  i += j;
  const bool owner = j < tiles;
  const bool below = i >= tiles;  // rows below the matrix
  if (!owner) i = j = -1;

  const int outer = a.window.outer, inner = a.window.inner;
  const int all_samples = outer * outer;
  const int full = all_samples - inner * inner;
  const bool loaded = a.state->loaded != 0;
  const int pieces = tiles * (Tile / piece<T>);  // of one sample

  for (std::int64_t strip = team.index; strip < plan.strips; strip += team.count) {
    const int row = static_cast<int>(strip / plan.strips_per_row);
    const int first = static_cast<int>(strip % plan.strips_per_row) * plan.strip_cols;
    const int last = first + plan.strip_cols < a.cols ? first + plan.strip_cols : a.cols;
    const std::int64_t line = std::int64_t{row} * a.cols;
    if (first >= last) continue;

    // All samples are taken relative to the mean of the strip, so that a region that lies far from
    // the mean of the image loses no digits to its distance.
    for (int b = team.rank; b < length; b += team.size) {
      T sum = T(0);
      int n = 0;
      for (int col = first; col < last && a.center; ++col) {
        if (a.pixel_status[line + col] != status_ok) continue;
        sum += a.whitened[(line + col) * a.pitch + b];
        ++n;
      }
      origin[b] = n > 0 ? sum / static_cast<T>(n) : T(0);
      sums[b] = T(0);
      // The whitened samples themselves are rounded: below that there is no variance to speak of.
      const T noise = 16 * simt::epsilon<T> * origin[b];
      peak[b] = static_cast<T>(full) * noise * noise / weak_pivot<T>;
    }
    team.wait();

    for (int col = first; col < last; ++col) {
      // The samples that enter the window, then those that leave it.
      const Place now(a, row, col), before(a, row, col > first ? col - 1 : col);
      const bool begins = col == first;
      const int entering = begins ? all_samples
                                  : (now.left != before.left ? outer : 0) +
                                        (now.guard_left != before.guard_left ? inner : 0);
      const int moving = begins ? entering : 2 * entering;
      const int outer_moving = now.left != before.left ? outer : 0;
      const auto sample = [&](int k) {
        if (begins) return now.sample(a, k);
        const bool enters = k < entering;
        if (!enters) k -= entering;
        if (k < outer_moving) {
          return sample_at(a, now.top + k, enters ? now.left + outer - 1 : before.left);
        }
        return sample_at(a, now.guard_top + k - outer_moving,
                         enters ? before.guard_left : now.guard_left + inner - 1);
      };

      T c[Tile][Tile];
      MAHAL_UNROLL
      for (int r = 0; r < Tile; ++r) {
        MAHAL_UNROLL
        for (int q = 0; q < Tile; ++q) {
          c[r][q] = begins || !owner || below ? T(0) : scatter[(r * Tile + q) * plan.squares];
        }
      }
      for (int base = 0; base < moving; base += strip_samples) {
        const int n = moving - base < strip_samples ? moving - base : strip_samples;
        const int positive = entering - base < 0 ? 0 : entering - base < n ? entering - base : n;
        team.wait();
        for (int k = team.rank; k < n; k += team.size) samples[k] = sample(base + k);
        team.wait();
        for (int e = team.rank; e < n * pieces; e += team.size) {
          const int k = e / pieces, at = e % pieces;
          simt::Chunk<T> x{};
          if (samples[k] >= 0) {
            x = *reinterpret_cast<const simt::Chunk<T>*>(a.whitened + samples[k] * a.pitch +
                                                   at * piece<T>);
            MAHAL_UNROLL
            for (int m = 0; m < piece<T>; ++m) {
              x.value[m] -= origin[at * piece<T> + m];
            }
          }
          *stage.at(k, at % Rows<T, Tile>::pieces, at / Rows<T, Tile>::pieces) = x;
        }
        team.wait_for_stage();
        for (int b = team.rank; b < length; b += team.size) {
          T sum = sums[b];
          for (int k = 0; k < positive; ++k) sum += stage.element(k, b);
          for (int k = positive; k < n; ++k) sum -= stage.element(k, b);
          sums[b] = sum;
        }
        if (owner && !below) {
          add_products<true>(stage, 0, positive, i, j, c);
          add_products<false>(stage, positive, n, i, j, c);
        }
      }
      if (owner && !below) {
        MAHAL_UNROLL
        for (int r = 0; r < Tile; ++r) {
          MAHAL_UNROLL
          for (int q = 0; q < Tile; ++q) scatter[(r * Tile + q) * plan.squares] = c[r][q];
        }
        if (i == j) {
          // Rounding stays in the sums, so the largest ones so far count.
          MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) {
            const T sum = a.parts == 2 ? c[r][r] + c[r ^ 1][r ^ 1] : c[r][r];
            T& largest = peak[i * Tile + r];
            if (sum > largest) largest = sum;
          }
        }
      }
      if (team.rank == 0) *broken = T(0);
      team.wait();
      const std::int64_t pixel = line + col;
      if (a.status[pixel] != status_ok) continue;

      const T count = static_cast<T>(a.count[pixel]);
      const T reciprocal = a.center ? T(1) / count : T(0);
      const T degrees = count - T(a.center ? 1 : 0);
      if (owner && !below) {
        MAHAL_UNROLL
        for (int q = 0; q < Tile; ++q) {
          const T mean = sums[j * Tile + q] * reciprocal;
          MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) c[r][q] -= sums[i * Tile + r] * mean;
        }
        if (a.parts == 2) make_hermitian(i == j, c);
        if (i == j) {
          MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) {
            if (loaded) c[r][r] += degrees * static_cast<T>(rx_loading);
            if (i * Tile + r >= a.bands) c[r][r] = T(1);
          }
        }
      } else if (owner) {
        // The pixel itself and the targets, minus the mean of the window.
        MAHAL_UNROLL
        for (int q = 0; q < Tile; ++q) {
          const int b = j * Tile + q;
          const T mean = sums[b] * reciprocal;
          MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) {
            const int side = (i - tiles) * Tile + r;
            T x = T(0);
            if (side == 0) x = a.whitened[pixel * a.pitch + b] - origin[b];
            if (side > 0 && side <= a.target_count) {
              x = static_cast<T>(a.targets[std::int64_t{side - 1} * a.pitch + b] -
                                 static_cast<double>(origin[b]));
            }
            c[r][q] = side > a.target_count ? T(0) : x - mean;
          }
        }
      }

      for (int k = 0; k < tiles; ++k) {
        // Two panels by turns: the one before is still being read.
        const int panel = k % 2 * Tile;
        if (owner && j == k && i > k) {
          MAHAL_UNROLL
          for (int d = 0; d < Tile; ++d) {
            T column[Tile];
            MAHAL_UNROLL
            for (int r = 0; r < Tile; ++r) column[r] = c[r][d];
            stage.write(panel + d, i, column);
          }
        }
        if (owner && j == k && i == k) {
          MAHAL_UNROLL
          for (int d = 0; d < Tile; ++d) {
            const T pivot = c[d][d];
            if (!(pivot - weak_pivot<T> * peak[k * Tile + d] > T(0))) *broken = T(1);
            const T scale = simt::reciprocal_root(pivot);
            inverse[k * Tile + d] = scale;
            c[d][d] = pivot * scale;
            MAHAL_UNROLL
            for (int r = d + 1; r < Tile; ++r) c[r][d] *= scale;
            MAHAL_UNROLL
            for (int r = d + 1; r < Tile; ++r) {
              MAHAL_UNROLL
              for (int q = d + 1; q <= r; ++q) c[r][q] -= c[r][d] * c[q][d];
            }
          }
          MAHAL_UNROLL
          for (int r = 1; r < Tile; ++r) {
            MAHAL_UNROLL
            for (int q = 0; q < r; ++q) square[r * Tile + q] = c[r][q];
          }
        }
        team.wait();
        // The rows of the panel, each by a thread.
        const int rows_end = length + 1 + a.target_count;
        for (int y = (k + 1) * Tile + team.rank; y < rows_end; y += team.size) {
          T x[Tile];
          MAHAL_UNROLL
          for (int d = 0; d < Tile; ++d) x[d] = stage.element(panel + d, y);
          MAHAL_UNROLL
          for (int d = 0; d < Tile; ++d) {
            x[d] *= inverse[k * Tile + d];
            MAHAL_UNROLL
            for (int q = d + 1; q < Tile; ++q) x[q] -= x[d] * square[q * Tile + d];
          }
          MAHAL_UNROLL
          for (int d = 0; d < Tile; ++d) {
            stage.element(panel + d, y) = x[d];
            if (y >= length) sides[(y - length) * length + k * Tile + d] = x[d];
          }
        }
        team.wait();
        if (owner && j > k) add_products<false>(stage, panel, panel + Tile, i, j, c);
        if (owner && j == k && i > k) {
          MAHAL_UNROLL
          for (int d = 0; d < Tile; ++d) {
            T column[Tile];
            stage.read(panel + d, i, column);
            MAHAL_UNROLL
            for (int r = 0; r < Tile; ++r) c[r][d] = column[r];
          }
        }
      }

      if (team.rank < warp_lanes) {
        const bool good = rest.prepare();
        if (team.rank == 0 && !good) *broken = T(1);
      }
      team.wait();
      // z = L^-T y for every row, square by square from the last to the first.
      for (int k = tiles - 1; k >= 0; --k) {
        if (owner && i == k && j == k) {
          for (int side = 0; side <= a.target_count; ++side) {
            T* z = solved + side * length + k * Tile;
            T value[Tile];
            MAHAL_UNROLL
            for (int r = 0; r < Tile; ++r) value[r] = z[r];
            MAHAL_UNROLL
            for (int d = Tile - 1; d >= 0; --d) {
              value[d] *= inverse[k * Tile + d];
              MAHAL_UNROLL
              for (int q = 0; q < d; ++q) value[q] -= c[d][q] * value[d];
            }
            MAHAL_UNROLL
            for (int r = 0; r < Tile; ++r) z[r] = value[r];
          }
        }
        team.wait();
        if (owner && i == k && j < k) {
          for (int side = 0; side <= a.target_count; ++side) {
            const T* z = solved + side * length + k * Tile;
            T* other = solved + side * length + j * Tile;
            T value[Tile];
            MAHAL_UNROLL
            for (int q = 0; q < Tile; ++q) value[q] = other[q];
            MAHAL_UNROLL
            for (int r = 0; r < Tile; ++r) {
              MAHAL_UNROLL
              for (int q = 0; q < Tile; ++q) value[q] -= c[r][q] * z[r];
            }
            MAHAL_UNROLL
            for (int q = 0; q < Tile; ++q) other[q] = value[q];
          }
        }
        team.wait();
      }
      if (team.rank < warp_lanes) {
        const bool good = rest.score(reciprocal, degrees, a.score + pixel * a.maps);
        if (team.rank == 0) {
          a.weak[pixel] = !good || *broken != T(0);
          if (loaded) a.status[pixel] = status_singular;
        }
      }
      team.wait();
    }
  }
}

struct ExactParameters {
  WindowsOfImage a;
  float* single;  // the scores are float, or
  double* twice;  // double
  bool all;                // every pixel that has a score, not only the marked ones
  int tiles;               // of the bands
  std::int64_t squares;    // of the lower triangle
  std::int64_t elements;   // of `matrices` for one block
  // In shared memory, in doubles.
  int samples_at, stage_at, mean_at, pivots_at, flags_at, room_at, matrix_at;
  bool matrix_shared;
};

template <int Tile>
__global__ void __launch_bounds__(256, 1) exact_scores(ExactParameters p) {
  const WindowsOfImage& a = p.a;
  if (is_hopeless(a)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int n = a.bands;
  double* shared = simt::dynamic_shared<double>();
  std::int64_t* samples = reinterpret_cast<std::int64_t*>(shared + p.samples_at);
  const Rows<double, Tile> stage{shared + p.stage_at, p.tiles * piece<double>};
  double* mean = shared + p.mean_at;
  double* pivots = shared + p.pivots_at;
  int* flag = reinterpret_cast<int*>(shared + p.flags_at);
  int* room = reinterpret_cast<int*>(shared + p.room_at);
  double* matrix = p.matrix_shared ? shared + p.matrix_at
                                   : a.matrices + p.elements * blockIdx.x;
  const PackedRows at{n};
  const int all_samples = a.window.outer * a.window.outer;
  const std::int64_t pixels = std::int64_t{a.rows} * a.cols;
  const bool loaded = a.state->loaded != 0;
  const int pieces = p.tiles * Tile / piece<double>;

  // A thread looks at one pixel of a batch; the block then takes the marked ones together.
  std::uint8_t* marked = reinterpret_cast<std::uint8_t*>(room + warp_lanes);
  for (std::int64_t base = 0; base * gridDim.x < pixels; base += threads) {
    const std::int64_t mine = (base + thread) * gridDim.x + blockIdx.x;
    int found = 0;
    if (mine < pixels) {
      found = p.all ? a.status[mine] == status_ok : a.weak[mine] != 0;
    }
    marked[thread] = static_cast<std::uint8_t>(found);
    if (block_reduce(found, room, Greatest()) == 0) continue;

    for (int which = 0; which < threads; ++which) {
      if (marked[which] == 0) continue;
      const std::int64_t pixel = (base + which) * gridDim.x + blockIdx.x;
      const int row = static_cast<int>(pixel / a.cols), col = static_cast<int>(pixel % a.cols);
      const Place place(a, row, col);
      const int count = a.count[pixel];

      // Relative to one of the samples, so that a band without variance has exactly none.
      int first = all_samples;
      for (int k = thread; k < all_samples; k += threads) {
        if (place.sample(a, k) >= 0) {
          first = k;
          break;
        }
      }
      first = block_reduce(first, room, Least());
      const double* reference = a.exact + place.sample(a, first) * a.pitch;
      const auto list_samples = [&](int begin) {
        __syncthreads();
        for (int k = thread; k < stage_samples; k += threads) {
          samples[k] = begin + k < all_samples ? place.sample(a, begin + k) : -1;
        }
        __syncthreads();
      };
      for (int b = thread; b < a.pitch; b += threads) mean[b] = 0;
      for (int begin = 0; begin < all_samples && a.center; begin += stage_samples) {
        list_samples(begin);
        for (int b = thread; b < n; b += threads) {
          double sum = mean[b];
          for (int k = 0; k < stage_samples; ++k) {
            if (samples[k] >= 0) sum += a.exact[samples[k] * a.pitch + b] - reference[b];
          }
          mean[b] = sum;
        }
      }
      for (int b = thread; b < n && a.center; b += threads) {
        mean[b] = reference[b] + mean[b] / count;
      }
      __syncthreads();

      // Once more with loading, where it does not work without.
      const int attempts = a.nan_when_singular ? 1 : 2;
      bool factored = false;
      int attempt = loaded ? 1 : 0;
      for (; attempt < attempts && !factored; ++attempt) {
        const double divisor = count - (a.center ? 1 : 0);
        for (std::int64_t group = 0; group < p.squares; group += threads) {
          // Row by row.
          std::int64_t rest = group + thread;
          const bool owner = rest < p.squares;
          int i = 0;
          while (owner && rest > i) rest -= ++i;
          const int j = owner ? static_cast<int>(rest) : 0;
          double c[Tile][Tile] = {};
          for (int begin = 0; begin < all_samples; begin += stage_samples) {
            list_samples(begin);
            for (int e = thread; e < stage_samples * pieces; e += threads) {
              const int k = e / pieces, where = e % pieces;
              simt::Chunk<double> x{};
              if (samples[k] >= 0) {
                x = *reinterpret_cast<const simt::Chunk<double>*>(a.exact + samples[k] * a.pitch +
                                                            where * piece<double>);
                MAHAL_UNROLL
                for (int m = 0; m < piece<double>; ++m) {
                  x.value[m] -= mean[where * piece<double> + m];
                }
              }
              constexpr int halves = Rows<double, Tile>::pieces;
              *stage.at(k, where % halves, where / halves) = x;
            }
            __syncthreads();
            if (owner) add_products<true>(stage, 0, stage_samples, i, j, c);
          }
          if (!owner) continue;
          if (a.parts == 2) make_hermitian(i == j, c);
          MAHAL_UNROLL
          for (int r = 0; r < Tile; ++r) {
            MAHAL_UNROLL
            for (int q = 0; q < Tile; ++q) {
              const int y = i * Tile + r, x = j * Tile + q;
              if (y >= n || x > y) continue;
              double value = c[r][q] / divisor;
              if (x == y) {
                if (attempt == 1) value += rx_loading;
                pivots[y] = value;
              }
              matrix[at(y, x)] = value;
            }
          }
        }
        // The pixel, and the targets, relative to the mean.
        __syncthreads();
        if (thread < warp_lanes) {
          double* y = matrix + at(n, 0);
          for (int b = thread; b < n; b += warp_lanes) {
            y[b] = a.exact[pixel * a.pitch + b] - mean[b];
          }
          for (int k = 0; k < a.target_count; ++k) {
            double* w = matrix + at(n + 1 + k, 0);
            for (int b = thread; b < n; b += warp_lanes) {
              w[b] = a.targets[std::int64_t{k} * a.pitch + b];
            }
            warp_differs(w, mean, n);
          }
        }
        factored = block_cholesky(matrix, at, n, n + 1 + a.target_count, window_pivot, pivots, flag);
      }
      const bool singular = !factored || attempt == 2;
      if (thread < warp_lanes) {
        std::uint8_t status = singular ? status_singular : status_ok;
        const double* y = matrix + at(n, 0);
        const auto put = [&](int k, double value) {
          const std::int64_t to = pixel * a.maps + k;
          if (p.single != nullptr) {
            p.single[to] = static_cast<float>(value);
          } else {
            p.twice[to] = value;
          }
        };
        if (!factored) {
          for (int k = thread; k < a.maps; k += warp_lanes) put(k, simt::nan<double>);
        } else if (a.target_count == 0) {
          const double square = warp_dot(y, y, n);
          if (thread == 0) put(0, square);
        } else {
          const TargetRows rows{a.kind, a.target_count, 1, n, n, matrix + at(n + 1, 0)};
          if (!rows.score(y, put)) status = status_singular;
        }
        if (thread == 0) a.status[pixel] = status;
      }
      __syncthreads();
    }
    __syncthreads();
  }
}

// A warp walks along a strip, and a lane adds up its own bands.
template <class T>
struct MeanParameters {
  WindowScoresLaunch<T> a;
  StripPlan plan;
  std::int64_t elements;  // of `matrices` for one warp
  std::int64_t teams;
};

template <class T>
__global__ void __launch_bounds__(warps_per_block* warp_lanes, 1) mean_scores(MeanParameters<T> p) {
  const WindowScoresLaunch<T>& a = p.a;
  if (is_hopeless(a)) return;
  const Team<true> team;
  const int n = a.bands;
  const int outer = a.window.outer, inner = a.window.inner;
  if (team.index >= p.teams) return;
  double* sum = a.matrices + p.elements * team.index;
  double* mean = sum + a.pitch;
  double* y = mean + a.pitch;
  const TargetRows rows{a.kind, a.target_count, a.parts, n, a.pitch, y + a.pitch};

  for (std::int64_t strip = team.index; strip < p.plan.strips; strip += p.teams) {
    const int row = static_cast<int>(strip / p.plan.strips_per_row);
    const int first = static_cast<int>(strip % p.plan.strips_per_row) * p.plan.strip_cols;
    const int last = first + p.plan.strip_cols < a.cols ? first + p.plan.strip_cols : a.cols;
    for (int col = first; col < last; ++col) {
      const Place now(a, row, col), before(a, row, col > first ? col - 1 : col);
      const auto add_column = [&](int top, int side, int u, double sign) {
        for (int v = top; v < top + side; ++v) {
          const std::int64_t sample = sample_at(a, v, u);
          if (sample < 0) continue;
          for (int b = team.rank; b < n; b += warp_lanes) {
            sum[b] += sign * static_cast<double>(a.whitened[sample * a.pitch + b]);
          }
        }
      };
      if (col == first) {
        for (int b = team.rank; b < n; b += warp_lanes) sum[b] = 0;
        for (int u = 0; u < outer; ++u) add_column(now.top, outer, now.left + u, 1);
        for (int u = 0; u < inner; ++u) add_column(now.guard_top, inner, now.guard_left + u, -1);
      } else {
        if (now.left != before.left) {
          add_column(now.top, outer, now.left + outer - 1, 1);
          add_column(now.top, outer, before.left, -1);
        }
        if (now.guard_left != before.guard_left) {
          add_column(now.guard_top, inner, now.guard_left + inner - 1, -1);
          add_column(now.guard_top, inner, before.guard_left, 1);
        }
      }
      const std::int64_t pixel = std::int64_t{row} * a.cols + col;
      if (a.status[pixel] != status_ok) continue;
      const double reciprocal = 1.0 / a.count[pixel];
      for (int b = team.rank; b < n; b += warp_lanes) {
        mean[b] = sum[b] * reciprocal;
        y[b] = static_cast<double>(a.whitened[pixel * a.pitch + b]) - mean[b];
      }
      T* out = a.score + pixel * a.maps;
      if (a.target_count == 0) {
        const double square = warp_dot(y, y, n);
        if (team.rank == 0) *out = static_cast<T>(square);
        continue;
      }
      for (int k = 0; k < a.target_count; ++k) {
        double* w = rows.rows + std::int64_t{k} * a.parts * a.pitch;
        for (int b = team.rank; b < n; b += warp_lanes) {
          w[b] = a.targets[std::int64_t{k} * a.pitch + b];
        }
        warp_differs(w, mean, n);
      }
      __syncwarp();
      const bool good =
          rows.score(y, [&](int k, double value) { out[k] = static_cast<T>(value); });
      if (team.rank == 0 && !good) a.status[pixel] = status_singular;
      __syncwarp();
    }
  }
}

// Cuts shared memory into pieces that 16-byte accesses can begin at.
struct Cut {
  std::size_t bytes = 0;

  template <class T>
  int take(std::int64_t elements, std::size_t element_bytes) {
    const std::size_t here = bytes;
    bytes += (static_cast<std::size_t>(elements) * element_bytes + 15) / 16 * 16;
    return static_cast<int>(here / sizeof(T));
  }
};

dim3 blocks_of(std::int64_t count) { return dim3(static_cast<unsigned>(count)); }

// False where the rows below the matrix have no room in shared memory.
template <class T, int Tile, bool Warp>
bool launch_strips(const WindowScoresLaunch<T>& a, const StripPlan& plan, std::uintptr_t stream) {
  StripParameters<T> p{};
  p.a = a;
  p.plan = plan;
  const std::int64_t length = plan.tiles * Tile;
  const std::int64_t sides = 1 + a.target_count;
  Cut cut;
  p.samples_at = cut.take<T>(strip_samples, sizeof(std::int64_t));
  p.stage_at = cut.take<T>(std::int64_t{strip_samples} * plan.tile_rows * Tile, sizeof(T));
  p.square_at = cut.take<T>(Tile * Tile, sizeof(T));
  p.inverse_at = cut.take<T>(length, sizeof(T));
  p.sums_at = cut.take<T>(length, sizeof(T));
  p.origin_at = cut.take<T>(length, sizeof(T));
  p.peak_at = cut.take<T>(length, sizeof(T));
  p.sides_at = cut.take<T>(sides * length, sizeof(T));
  p.solved_at = cut.take<T>(sides * length, sizeof(T));
  p.lengths_at = cut.take<T>(a.target_count, sizeof(T));
  p.products_at = cut.take<T>(a.target_count, sizeof(T));
  p.broken_at = cut.take<T>(1, sizeof(T));
  p.scatter_elements = strip_sums(plan);
  const std::size_t without = cut.bytes;
  p.scatter_at = cut.take<T>(p.scatter_elements, sizeof(T));
  if constexpr (Warp) {
    p.scatter_shared = true;
    p.team_elements = static_cast<int>(cut.bytes / sizeof(T));
    const std::size_t limit = simt::shared_limit("rx");
    if (cut.bytes > limit) return false;
    const int warps =
        static_cast<int>(std::min<std::size_t>(limit / cut.bytes, warps_per_block));
    const std::int64_t blocks = (plan.strips + warps - 1) / warps;
    simt::launch("rx", strip_scores<T, Tile, Warp>, blocks_of(std::min<std::int64_t>(blocks, 1 << 20)),
                 dim3(static_cast<unsigned>(warps * warp_lanes)), warps * cut.bytes, stream, p);
  } else {
    const std::size_t limit = simt::shared_limit("rx");
    if (without > limit) return false;
    p.scatter_shared = cut.bytes <= limit;
    const std::int64_t blocks =
        std::min<std::int64_t>(plan.strips, p.scatter_shared ? 1 << 20 : most_sum_blocks);
    const int threads = (plan.squares + warp_lanes - 1) / warp_lanes * warp_lanes;
    simt::launch("rx", strip_scores<T, Tile, Warp>, blocks_of(blocks),
                 dim3(static_cast<unsigned>(threads)), p.scatter_shared ? cut.bytes : without,
                 stream, p);
  }
  return true;
}

template <int Tile>
void launch_exact(ExactParameters p, bool all, std::uintptr_t stream) {
  const WindowsOfImage& a = p.a;
  p.all = all;
  p.tiles = (a.bands + Tile - 1) / Tile;
  p.squares = std::int64_t{p.tiles} * (p.tiles + 1) / 2;
  p.elements = window_matrix(a.bands, a.target_count);
  const std::int64_t pixels = std::int64_t{a.rows} * a.cols;
  const int threads = Tile == 8 ? 256 : 128;
  Cut cut;
  p.samples_at = cut.take<double>(stage_samples, sizeof(std::int64_t));
  p.stage_at = cut.take<double>(std::int64_t{stage_samples} * p.tiles * Tile, sizeof(double));
  p.mean_at = cut.take<double>(a.pitch, sizeof(double));
  p.pivots_at = cut.take<double>(a.bands, sizeof(double));
  p.flags_at = cut.take<double>(1, sizeof(int));
  p.room_at = cut.take<double>(warp_lanes + threads / 4, sizeof(int));
  const std::size_t without = cut.bytes;
  p.matrix_at = cut.take<double>(p.elements, sizeof(double));
  const std::size_t limit = simt::shared_limit("rx");
  if (without > limit) {
    throw_device_error("rx", "image",
                       "windows on this device take about " +
                           std::to_string(limit / (without / a.bands)) + " bands",
                       std::to_string(a.bands));
  }
  p.matrix_shared = cut.bytes <= limit;
  simt::launch("rx", exact_scores<Tile>, blocks_of(window_blocks(pixels, p.elements)),
               dim3(static_cast<unsigned>(threads)), p.matrix_shared ? cut.bytes : without, stream,
               p);
}

template <class T>
void launch_any(const WindowScoresLaunch<T>& a, std::uintptr_t stream) {
  const std::int64_t pixels = std::int64_t{a.rows} * a.cols;
  simt::launch("rx", window_states<T>, blocks_of((pixels + 255) / 256), dim3(256), 0, stream, a);
  const StripPlan plan = plan_strips<T>(a.rows, a.cols, a.bands, a.target_count);
  if (a.fixed) {
    MeanParameters<T> p{};
    p.a = a;
    p.plan = plan;
    p.elements = window_rows(a.pitch, a.target_count, a.parts);
    p.teams = window_blocks(plan.strips, p.elements);
    simt::launch("rx", mean_scores<T>, blocks_of((p.teams + warps_per_block - 1) / warps_per_block),
                 dim3(warps_per_block * warp_lanes), 0, stream, p);
    return;
  }
  bool slides = false;
  if (plan.tile == 8) {
    if constexpr (sizeof(T) == 4) slides = launch_strips<T, 8, false>(a, plan, stream);
  } else if (plan.warp) {
    slides = launch_strips<T, 4, true>(a, plan, stream);
  } else if (plan.tile == 4) {
    slides = launch_strips<T, 4, false>(a, plan, stream);
  }
  ExactParameters exact{};
  exact.a = a;
  if constexpr (sizeof(T) == 4) {
    exact.single = a.score;
  } else {
    exact.twice = a.score;
  }
  if (a.bands <= 64) {
    launch_exact<4>(exact, !slides, stream);
  } else {
    launch_exact<8>(exact, !slides, stream);
  }
}

}  // namespace

void window_scores(const WindowScoresLaunch<float>& arguments, std::uintptr_t stream) {
  launch_any(arguments, stream);
}

void window_scores(const WindowScoresLaunch<double>& arguments, std::uintptr_t stream) {
  launch_any(arguments, stream);
}

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

#include "core/pair_metric.hpp"
#include "ops/change_map_kernel.hpp"
#include "ops/mean_covariance_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

// Counts as no sample, and shows in the sum of the samples of a window.
constexpr double nonfinite_weight = 4294967296.0;

constexpr int round_up(int n) { return (n + L - 1) / L * L; }

// Where things lie in the scratch memory, in doubles.
struct Layout {
  int parts, channels, rows, cols, window;
  std::int64_t planes, width;
  std::int64_t origin, pixels, sums, moments, scales, pair, end;

  Layout(const ChangeMapParams& params, int p, bool complex, ChangeMapTile tile)
      : parts(complex ? 2 : 1),
        channels(p),
        rows(tile.rows),
        cols(tile.cols),
        window(params.window),
        planes(change_map_planes(params.metric, p, complex)),
        width(round_up(tile.cols + params.window - 1) + L) {
    origin = 0;
    pixels = round_up(values());
    sums = pixels + static_cast<std::int64_t>(rows + window - 1) * values() * L;
    moments = sums + rows * planes * width;
    scales = moments + static_cast<std::int64_t>(values()) * L;
    pair = scales + 2 * static_cast<std::int64_t>(p) * L;
    end = pair;
    if (params.metric != Metric::frobenius) {
      end += complex ? PairMetric<S, 2>::scratch_doubles(p) : PairMetric<S, 1>::scratch_doubles(p);
    }
  }
  // Vectors per pixel: its weight, then the channels of both images.
  int values() const { return 1 + 2 * channels * parts; }
};

// Window sums are taken over the rows first and then over the columns, from nothing for every
// window: no value stays behind where it has left. A lane is a column.
template <class T, int C>
struct ChangeTile {
  using Num = Number<S, C>;
  using Pair = PairMetric<S, C>;
  const ChangeMapBlock<T>& b;
  const Layout at;
  const int p;
  const int w;
  const int half;
  const bool difference;  // of the products of both images: all that frobenius needs
  double* const scratch;

  MAHAL_INLINE explicit ChangeTile(const ChangeMapBlock<T>& block)
      : b(block),
        at(block.params, block.images[0].bands, C == 2,
           {block.row_end - block.row_begin, block.col_end - block.col_begin}),
        p(block.images[0].bands),
        w(block.params.window),
        half(w / 2),
        difference(block.params.metric == Metric::frobenius),
        scratch(static_cast<double*>(block.scratch)) {}

  static MAHAL_INLINE std::int64_t row_of_products(std::int64_t i) {
    return C == 1 ? i * (i + 1) / 2 : i * i;
  }

  MAHAL_INLINE bool masked(std::int64_t row, std::int64_t col) const {
    return b.mask && !b.mask[row * b.mask_row_stride + col * b.mask_col_stride];
  }
  MAHAL_INLINE const T* pixel(int image, std::int64_t row, std::int64_t col) const {
    const PixelList<T>& list = b.images[image];
    return list.data + row * list.row_stride + col * list.col_stride;
  }
  MAHAL_INLINE std::ptrdiff_t place(int image, int k) const {
    return k / C * b.images[image].band_stride + k % C;
  }
  MAHAL_INLINE bool finite(std::int64_t row, std::int64_t col) const {
    T sum = 0;
    for (int image = 0; image < 2; ++image) {
      const T* from = pixel(image, row, col);
      for (int k = 0; k < p * C; ++k) sum += from[place(image, k)] * T(0);
    }
    return sum == 0;
  }

  // What is subtracted from the pixels, so that no sum of squares loses digits to an offset: per
  // channel the median of some samples of the tile, which a few bright pixels do not move.
  void find_origin() const {
    double* origin = scratch + at.origin;
    for (int k = 0; k < 2 * p * C; ++k) origin[k] = 0;
    if (!b.params.center) return;
    constexpr int grid = 5;
    std::int64_t rows[grid * grid], cols[grid * grid];
    int count = 0;
    for (int i = 0; i < grid * grid; ++i) {
      const std::int64_t row = b.row_begin + (2 * (i / grid) + 1) * (b.row_end - b.row_begin) / 10;
      const std::int64_t col = b.col_begin + (2 * (i % grid) + 1) * (b.col_end - b.col_begin) / 10;
      if (masked(row, col) || !finite(row, col)) continue;
      rows[count] = row;
      cols[count++] = col;
    }
    if (count == 0) return;
    for (int k = 0; k < 2 * p * C; ++k) {
      const int image = k / (p * C);
      double sorted[grid * grid];
      for (int i = 0; i < count; ++i) {
        const double x =
            static_cast<double>(pixel(image, rows[i], cols[i])[place(image, k - image * p * C)]);
        int m = i;
        for (; m > 0 && sorted[m - 1] > x; --m) sorted[m] = sorted[m - 1];
        sorted[m] = x;
      }
      origin[k] = sorted[count / 2];
    }
  }

  // Weights and centred channels of L columns of all rows that the tile's windows reach.
  void load_columns(int u0) const {
    std::int64_t columns[L];
    bool all_inside = true;
    for (int l = 0; l < L; ++l) {
      const int u = b.col_begin - half + u0 + l;
      const bool reached = u < b.col_end + half;
      const bool clipped = b.params.border == MapBorder::clip && (u < 0 || u >= b.cols);
      columns[l] = reached && !clipped ? b.col_index[u] : -1;
      all_inside &= columns[l] >= 0;
    }
    const int values = at.values();
    double* to = scratch + at.pixels;
    for (int v = b.row_begin - half; v < b.row_end + half; ++v, to += values * L) {
      if (b.params.border == MapBorder::clip && (v < 0 || v >= b.rows)) {
        for (int k = 0; k < values; ++k) S::store(to + k * L, V{});
        continue;
      }
      const std::int64_t row = b.row_index[v];
      if (!all_inside || b.mask || !load_row(row, columns, to)) load_some(row, columns, to);
    }
  }

  // Of pixels that are all used. False when a value is not finite.
  MAHAL_INLINE bool load_row(std::int64_t row, const std::int64_t* columns, double* to) const {
    S::store(to, S::set1(1));
    const int count = p * C;
    V check{};
    for (int image = 0; image < 2; ++image) {
      const T* from[L];
    MAHAL_UNROLL
      for (int l = 0; l < L; ++l) from[l] = pixel(image, row, columns[l]);
      double* out = to + (1 + image * count) * L;
      const double* origin = scratch + at.origin + image * count;
      int k = 0;
      if constexpr (L >= 4) {
        using Four = Simd<T, 4 * sizeof(T)>;
        using Wide = Simd<double, 32>;
        if (b.images[image].band_stride == C) {
          for (; k + 4 <= count; k += 4) {
            MAHAL_UNROLL
            for (int l = 0; l < L; l += 4) {
              typename Four::V r[4];
              MAHAL_UNROLL
              for (int i = 0; i < 4; ++i) r[i] = Four::loadu(from[l + i] + k);
              Four::transpose(r);
              MAHAL_UNROLL
              for (int i = 0; i < 4; ++i) {
                Wide::store(out + (k + i) * L + l, __builtin_convertvector(r[i], typename Wide::V));
              }
            }
          }
        }
      }
      for (; k < count; ++k) {
        const std::ptrdiff_t offset = place(image, k);
        MAHAL_UNROLL
        for (int l = 0; l < L; ++l) out[k * L + l] = static_cast<double>(from[l][offset]);
      }
      for (k = 0; k < count; ++k) {
        const V x = S::load(out + k * L);
        check = S::fma(x, V{}, check);
        S::store(out + k * L, x - S::set1(origin[k]));
      }
    }
    bool all = true;
    MAHAL_UNROLL
    for (int l = 0; l < L; ++l) all &= check[l] == 0;
    return all;
  }

  // Of pixels that are outside, masked or not finite in part.
  __attribute__((noinline)) void load_some(std::int64_t row, const std::int64_t* columns,
                                           double* to) const {
    const int count = p * C;
    for (int l = 0; l < L; ++l) {
      const bool sample = columns[l] >= 0 && !masked(row, columns[l]);
      const bool used = sample && finite(row, columns[l]);
      to[l] = used ? 1 : sample ? nonfinite_weight : 0;
      for (int image = 0; image < 2; ++image) {
        double* out = to + (1 + image * count) * L + l;
        const double* origin = scratch + at.origin + image * count;
        for (int k = 0; k < count; ++k) {
          out[k * L] = used ? static_cast<double>(
                                  pixel(image, row, columns[l])[place(image, k)]) -
                                  origin[k]
                            : 0;
        }
      }
    }
  }

  // acc += sum over the rows of a window of x_i conj(x_j), for channels [i0, i0 + R) and
  // [j0, j0 + K); -= for Sign < 0. With Diagonal i0 = j0 and entries right of it are left alone.
  template <int R, int K, bool Diagonal, int Sign>
  MAHAL_INLINE void products(const double* x, int i0, int j0, Num (&acc)[R][K]) const {
    const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(at.values()) * L;
    for (int v = 0; v < w; ++v, x += step) {
      Num xi[R], xj[K];
      MAHAL_UNROLL
      for (int i = 0; i < R; ++i) xi[i] = Num::load(x + (i0 + i) * (C * L));
      MAHAL_UNROLL
      for (int j = 0; j < K; ++j) xj[j] = Diagonal ? xi[j] : Num::load(x + (j0 + j) * (C * L));
      MAHAL_UNROLL
      for (int i = 0; i < R; ++i) {
        MAHAL_UNROLL
        for (int j = 0; j < K; ++j) {
          if (Diagonal && j > i) continue;
          if (Diagonal && j == i) {
            MAHAL_UNROLL
            for (int c = 0; c < C; ++c) {
              acc[i][j].v[0] = Sign > 0 ? S::fma(xi[i].v[c], xi[i].v[c], acc[i][j].v[0])
                                        : S::fnma(xi[i].v[c], xi[i].v[c], acc[i][j].v[0]);
            }
          } else if (Sign > 0) {
            acc[i][j].add_conj_first(xj[j], xi[i]);
          } else {
            acc[i][j].sub_conj_first(xj[j], xi[i]);
          }
        }
      }
    }
  }
  template <int R, int K, bool Diagonal>
  void product_block(const double* window, double* line, int i0, int j0) const {
    const std::int64_t first = 1 + 2 * static_cast<std::int64_t>(p) * C;
    const double* x[2] = {window + L, window + (1 + p * C) * L};
    double* out = line + first * at.width;
    Num acc[R][K];
    for (int image = 0; image < 2; ++image) {
      if (image == 0 || !difference) {
        for (int i = 0; i < R; ++i)
          for (int j = 0; j < K; ++j) acc[i][j] = Num::zero();
        products<R, K, Diagonal, 1>(x[image], i0, j0, acc);
      } else {
        products<R, K, Diagonal, -1>(x[image], i0, j0, acc);
      }
      if (image == 0 && difference) continue;
      for (int i = 0; i < R; ++i) {
        for (int j = 0; j < (Diagonal ? i + 1 : K); ++j) {
          double* to = out + (row_of_products(i0 + i) + (j0 + j) * C) * at.width;
          const int parts = Diagonal && j == i ? 1 : C;
          for (int c = 0; c < parts; ++c) S::store(to + c * at.width, acc[i][j].v[c]);
        }
      }
      out += row_of_products(p) * at.width;
    }
  }
  template <int R, int B>
  void product_rows(const double* window, double* line, int i0) const {
    for (int j0 = 0; j0 < i0; j0 += B) product_block<R, B, false>(window, line, i0, j0);
    product_block<R, R, true>(window, line, i0, i0);
  }
  template <int R, int B>
  void last_rows(const double* window, double* line, int i0) const {
    if (p - i0 == R) {
      product_rows<R, B>(window, line, i0);
    } else if constexpr (R > 1) {
      last_rows<R - 1, B>(window, line, i0);
    }
  }
  template <int B>
  void all_products(const double* window, double* line) const {
    int i0 = 0;
    for (; i0 + B < p; i0 += B) product_rows<B, B>(window, line, i0);
    last_rows<B, B>(window, line, i0);
  }

  // Sums over the rows of the windows, of L columns.
  void add_rows(int u0) const {
    constexpr int group = 4;
    const int values = at.values();
    for (int r = 0; r < b.row_end - b.row_begin; ++r) {
      const double* window = scratch + at.pixels + static_cast<std::ptrdiff_t>(r) * values * L;
      double* line = scratch + at.sums + r * at.planes * at.width + u0;
      for (int k0 = 0; k0 < values; k0 += group) {
        V sum[group] = {};
        const int count = values - k0 < group ? values - k0 : group;
        const double* x = window + k0 * L;
        if (count == group) {
          for (int v = 0; v < w; ++v, x += values * L) {
            MAHAL_UNROLL
            for (int k = 0; k < group; ++k) sum[k] = sum[k] + S::load(x + k * L);
          }
        } else {
          for (int v = 0; v < w; ++v, x += values * L) {
            for (int k = 0; k < count; ++k) sum[k] = sum[k] + S::load(x + k * L);
          }
        }
        for (int k = 0; k < count; ++k) S::store(line + (k0 + k) * at.width, sum[k]);
      }
      // Complex blocks of four channels fit in the registers on the diagonal alone.
      if (C == 1 || p <= 4) {
        all_products<4>(window, line);
      } else {
        all_products<2>(window, line);
      }
    }
  }

  // Sum over the columns of the windows of L pixels.
  MAHAL_INLINE V across(const double* plane) const {
    V even = S::loadu(plane);
    V odd = S::zero();
    int t = 1;
    for (; t + 2 <= w; t += 2) {
      odd = odd + S::loadu(plane + t);
      even = even + S::loadu(plane + t + 1);
    }
    if (t < w) odd = odd + S::loadu(plane + t);
    return even + odd;
  }
  MAHAL_INLINE Num across_number(const double* plane) const {
    Num sum;
    MAHAL_UNROLL
    for (int c = 0; c < C; ++c) sum.v[c] = across(plane + c * at.width);
    return sum;
  }

  void finish(int r, int c0) const {
    const double* line = scratch + at.sums + r * at.planes * at.width + c0;
    double* sums = scratch + at.moments;
    const V samples = across(line);
    for (int k = 1; k < at.values(); ++k) S::store(sums + k * L, across(line + k * at.width));
    const V one = S::set1(1);
    const V per_sample = b.params.center ? one / S::max(samples, one) : S::zero();
    const V divisor = b.params.channel_divisor ? S::set1(p - 1) : samples - S::set1(b.params.ddof);
    const V per_degree = one / divisor;
    const V least = S::set1(b.params.channel_divisor ? 0 : b.params.ddof);
    const double* products = line + (1 + 2 * static_cast<std::int64_t>(p) * C) * at.width;
    const double* x = sums + L;
    const double* y = sums + (1 + p * C) * L;
    V score;
    V margin = one;
    if (difference) {
      score = S::zero();
      for (int i = 0; i < p; ++i) {
        V off = S::zero();
        for (int j = 0; j <= i; ++j) {
          const double* plane = products + (row_of_products(i) + j * C) * at.width;
          Num mean = Num::zero();
          mean.add_conj_first(Num::load(x + j * (C * L)), Num::load(x + i * (C * L)));
          mean.sub_conj_first(Num::load(y + j * (C * L)), Num::load(y + i * (C * L)));
          if (j == i) {
            const V d = S::fnma(mean.v[0], per_sample, across(plane)) * per_degree;
            score = S::fma(d, d, score);
          } else {
            const Num d = (across_number(plane) - mean.scaled(per_sample)).scaled(per_degree);
            off = d.add_square(off);
          }
        }
        score = score + (off + off);
      }
      if (!b.params.squared) score = S::sqrt(score);
    } else {
      Pair pair(p, scratch + at.pair, b.smallest_pivot);
      double* scale = scratch + at.scales;
      covariance(products, x, per_sample, per_degree, pair.a, pair.ld, scale);
      covariance(products + row_of_products(p) * at.width, y, per_sample, per_degree, pair.b,
                 pair.ld, scale + p * L);
      pair.scale_a = scale;
      pair.scale_b = scale + p * L;
      const V looks = b.params.center ? samples - one : samples;
      score = pair.score(b.params.metric, b.params.squared, looks, looks);
      margin = pair.margin;
    }
    const std::int64_t first = static_cast<std::int64_t>(b.row_begin + r) * b.cols + b.col_begin;
    for (int l = 0; l < L && c0 + l < b.col_end - b.col_begin; ++l) {
      std::uint8_t status = status_ok;
      if (samples[l] >= nonfinite_weight) {
        status = status_nonfinite;
      } else if (!(samples[l] > least[l])) {
        status = status_few_samples;
      } else if (!(margin[l] > 0)) {
        status = status_singular;
      }
      const T value = static_cast<T>(score[l]);
      if (status == status_ok && !(value - value == 0)) status = status_nonfinite;
      b.status[first + c0 + l] = status;
      b.score[first + c0 + l] = status == status_ok ? value : static_cast<T>(__builtin_nan(""));
    }
  }

  // Lower triangle of a covariance, and what its pivots are compared with: the variances, and a
  // share of the raw second moments, below which there is nothing but rounding.
  MAHAL_INLINE void covariance(const double* products, const double* x, V per_sample, V per_degree,
                               double* to, int ld, double* scale) const {
    for (int i = 0; i < p; ++i) {
      for (int j = 0; j <= i; ++j) {
        const double* plane = products + (row_of_products(i) + j * C) * at.width;
        Num mean = Num::zero();
        mean.add_conj_first(Num::load(x + j * (C * L)), Num::load(x + i * (C * L)));
        double* entry = Hermitian<S, C>::at(to, ld, i, j);
        if (j == i) {
          const V raw = across(plane);
          const V d = S::fnma(mean.v[0], per_sample, raw) * per_degree;
          Num::real(d).store(entry);
          S::store(scale + i * L, S::max(d, S::set1(0.01) * raw * per_degree));
        } else {
          (across_number(plane) - mean.scaled(per_sample)).scaled(per_degree).store(entry);
        }
      }
    }
  }

  void run() const {
    find_origin();
    const int cols = b.col_end - b.col_begin;
    for (int u0 = 0; u0 < cols + w - 1; u0 += L) {
      load_columns(u0);
      add_rows(u0);
    }
    for (int r = 0; r < b.row_end - b.row_begin; ++r) {
      for (int c0 = 0; c0 < cols; c0 += L) finish(r, c0);
    }
  }
};

template <class T>
void run_block(const ChangeMapBlock<T>& block) {
  if (block.complex) {
    ChangeTile<T, 2>(block).run();
  } else {
    ChangeTile<T, 1>(block).run();
  }
}

}  // namespace

template <>
std::size_t ChangeMapKernel<current_isa>::scratch_bytes(const ChangeMapParams& params, int channels,
                                                        bool complex, ChangeMapTile tile) {
  return sizeof(double) * static_cast<std::size_t>(Layout(params, channels, complex, tile).end);
}
template <>
void ChangeMapKernel<current_isa>::run(const ChangeMapBlock<float>& block) {
  run_block(block);
}
template <>
void ChangeMapKernel<current_isa>::run(const ChangeMapBlock<double>& block) {
  run_block(block);
}

}  // namespace mahal

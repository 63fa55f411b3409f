#include "ops/local_covariance_kernel.hpp"

#include "core/pixels.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

// Sums are kept in float64: each window loses and gains whole columns of products, and a bright
// pixel that left must leave no trace.
//
// A block of the covariance, R rows by one vector of columns, is carried through the tile: per
// image column the products are summed over the rows of the window (one row enters, one leaves),
// and those column sums slide along the row.
template <class T>
MAHAL_INLINE int first_column(const LocalCovarianceBlock<T>& b) {
  return b.cols.outer_start[b.col_begin];
}
template <class T>
MAHAL_INLINE std::int64_t tile_columns(const LocalCovarianceBlock<T>& b) {
  return b.cols.outer_start[b.col_end - 1] + b.outer - first_column(b);
}

MAHAL_INLINE int rows_of(int bands) { return bands > 4 ? 8 : bands > 2 ? 4 : bands; }

template <class T>
std::size_t bytes(const LocalCovarianceBlock<T>& b) {
  const std::int64_t columns = tile_columns(b);
  const std::int64_t padded = b.pixels.padded;
  const int R = rows_of(b.pixels.bands);
  const std::int64_t band_rows = (b.band_end - b.band_begin + R - 1) / R * R;
  const std::int64_t windows = b.inner ? 2 : 1;
  const std::int64_t lines = 4 * columns * padded;
  const std::int64_t sums = windows * columns * padded;
  const std::int64_t squares = windows * columns * band_rows * padded;
  return sizeof(double) * static_cast<std::size_t>(lines + sums + squares + columns * padded);
}

template <class T, int R>
struct Map {
  const LocalCovarianceBlock<T>& b;
  const int padded;
  const std::int64_t columns;
  double* entering[2];  // columns x padded, of the outer and the inner window
  double* leaving[2];
  double* sums[2];     // per column: sum of the samples over the rows of the window
  double* squares[2];  // per block and column: R x L sums of products
  double* pixel_sum_line;  // per pixel of the tile: sum of the samples of its window
  int blocks_per_row;

  MAHAL_INLINE explicit Map(const LocalCovarianceBlock<T>& block)
      : b(block), padded(block.pixels.padded), columns(tile_columns(block)) {
    double* at = static_cast<double*>(block.scratch);
    auto take = [&](std::int64_t n) {
      double* here = at;
      at += n;
      return here;
    };
    blocks_per_row = padded / L;
    const std::int64_t line = columns * padded;
    const std::int64_t band_rows = (b.band_end - b.band_begin + R - 1) / R * R;
    const int windows = b.inner ? 2 : 1;
    for (int w = 0; w < 2; ++w) entering[w] = take(line);
    for (int w = 0; w < 2; ++w) leaving[w] = take(line);
    for (int w = 0; w < windows; ++w) sums[w] = take(line);
    for (int w = 0; w < windows; ++w) squares[w] = take(columns * band_rows * padded);
    pixel_sum_line = take(static_cast<std::int64_t>(b.col_end - b.col_begin) * padded);
  }

  // One image row of the tile, centred, zero where a pixel is left out.
  MAHAL_INLINE void load_line(int row, double* line) const {
    const int first = first_column(b);
    const std::int64_t r = b.rows.index[row];
    for (std::int64_t u = 0; u < columns; ++u) {
      const std::int64_t c = b.cols.index[first + u];
      double* dst = line + u * padded;
      if (b.status && b.status[r * b.pixels.cols + c]) {
        for (int j = 0; j < padded; ++j) dst[j] = 0;
        continue;
      }
      load_centred(b.pixels, b.pixels.data + r * b.pixels.row_stride + c * b.pixels.col_stride,
                   b.offset, dst);
    }
  }

  MAHAL_INLINE void add_sums(int w, bool enter, bool leave) const {
    for (std::int64_t i = 0; i < columns * padded; i += L) {
      V v = S::load(sums[w] + i);
      if (enter) v = v + S::load(entering[w] + i);
      if (leave) v = v - S::load(leaving[w] + i);
      S::store(sums[w] + i, v);
    }
  }

  // Products of one line joined to the column sums of block (i0, j0).
  MAHAL_INLINE void add_line(const double* line, int i0, int j0, double* square) const {
    for (std::int64_t u = 0; u < columns; ++u) {
      const double* x = line + u * padded;
      const V xj = S::load(x + j0);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        double* p = square + (u * R + r) * L;
        S::store(p, S::fma(S::set1(x[i0 + r]), xj, S::load(p)));
      }
    }
  }

  MAHAL_INLINE double* block_squares(int w, int i0, int j0) const {
    const std::int64_t index = (i0 - b.band_begin) / R * blocks_per_row + j0 / L;
    return squares[w] + index * columns * R * L;
  }

  void start(int row) const {
    const int starts[2] = {b.rows.outer_start[row], b.inner ? b.rows.inner_start[row] : 0};
    const int sides[2] = {b.outer, b.inner};
    for (int w = 0; w < (b.inner ? 2 : 1); ++w) {
      const std::int64_t band_rows = (b.band_end - b.band_begin + R - 1) / R * R;
      for (std::int64_t i = 0; i < columns * padded; i += L) S::store(sums[w] + i, V{});
      for (std::int64_t i = 0; i < columns * band_rows * padded; i += L) {
        S::store(squares[w] + i, V{});
      }
      for (int v = 0; v < sides[w]; ++v) {
        load_line(starts[w] + v, entering[w]);
        add_sums(w, true, false);
        for (int i0 = b.band_begin; i0 < b.band_end; i0 += R) {
          for (int j0 = 0; j0 < b.pixels.bands; j0 += L) {
            add_line(entering[w], i0, j0, block_squares(w, i0, j0));
          }
        }
      }
    }
  }

  // One column of a window: takes the entering row and drops the leaving one when the window moved
  // down, then joins the sum of the pixel (or leaves it, for the inner window).
  template <bool Update, bool Subtract>
  static MAHAL_INLINE void enter_column(double* p, const double* e, const double* d, int i0, int j0,
                                        V* total) {
    V v[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) v[r] = S::load(p + r * L);
    if constexpr (Update) {
      const double* ei = e + i0;
      const double* di = d + i0;
      const V ej = S::load(e + j0);
      const V dj = S::load(d + j0);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) v[r] = S::fma(S::set1(ei[r]), ej, v[r]);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) v[r] = S::fnma(S::set1(di[r]), dj, v[r]);
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) S::store(p + r * L, v[r]);
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) total[r] = Subtract ? total[r] - v[r] : total[r] + v[r];
  }
  template <bool Subtract>
  static MAHAL_INLINE void leave_column(const double* p, V* total) {
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      const V v = S::load(p + r * L);
      total[r] = Subtract ? total[r] + v : total[r] - v;
    }
  }

  using Narrow = Simd<float, L * 4 < 16 ? 16 : L * 4>;

  template <int... I>
  static MAHAL_INLINE typename Narrow::V convert(V v, Indices<I...>) {
    return typename Narrow::V{static_cast<float>(v[I])...};
  }
  static MAHAL_INLINE typename Narrow::V narrow(V v) {
    return convert(v, typename MakeIndices<L>::type{});
  }
  template <int... I>
  static MAHAL_INLINE void stream_pair(float* p, typename Narrow::V a, typename Narrow::V b,
                                       Indices<I...>) {
    Simd<float, L * 8>::stream(p, __builtin_shufflevector(a, b, I...));
  }

  // Writes R rows of L entries of one covariance of n bands.
  static MAHAL_INLINE void write(T* out, int n, int i0, int i_end, int j0, const V* c) {
    if constexpr (sizeof(T) == 4 && L >= 4 && R % 2 == 0) {
      if (n == L && i0 + R <= i_end) {
        // Whole rows side by side: two make one full vector, stored past the cache.
        MAHAL_UNROLL
        for (int r = 0; r < R; r += 2) {
          stream_pair(out + (i0 + r) * n, narrow(c[r]), narrow(c[r + 1]),
                      typename MakeIndices<2 * L>::type{});
        }
        return;
      }
    }
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) {
      if (i0 + r < i_end) write_row(out + static_cast<std::ptrdiff_t>(i0 + r) * n + j0, n - j0, c[r]);
    }
  }
  static MAHAL_INLINE void write_row(T* p, int left, V v) {
    if (left >= L) {
      if constexpr (sizeof(T) == 8) {
        S::storeu(p, v);
        return;
      } else if constexpr (L >= 4) {
        Narrow::storeu(p, narrow(v));
        return;
      }
    }
    MAHAL_UNROLL
    for (int k = 0; k < L; ++k)
      if (k < left) p[k] = static_cast<T>(v[k]);
  }

  struct Divisors {
    double per_sample, per_degree;
  };
  // No degree of freedom left: NaN marks the whole matrix.
  MAHAL_INLINE Divisors divisors(int n) const {
    return {n > 0 ? 1.0 / n : __builtin_nan(""),
            n > b.ddof ? 1.0 / (n - b.ddof) : __builtin_nan("")};
  }

  // Slides one block of the covariance along a row of pixels.
  template <bool Inner, bool OuterMoves, bool InnerMoves>
  MAHAL_INLINE void slide_block(int row, int i0, int j0) const {
    // Everything in locals: the stores below could alias the members.
    const int n = b.pixels.bands;
    const int i_end = b.band_end;
    const int stride = padded;
    const int outer = b.outer;
    const int inner = b.inner;
    const int c0 = b.col_begin;
    const int c1 = b.col_end;
    const std::int32_t* outer_start = b.cols.outer_start;
    const std::int32_t* inner_start = b.cols.inner_start;
    const std::int32_t* count = b.count ? b.count + row * b.count_stride : nullptr;
    double* const os = block_squares(0, i0, j0);
    double* const is = Inner ? block_squares(1, i0, j0) : nullptr;
    const double* const oe = entering[0];
    const double* const ol = leaving[0];
    const double* const ie = entering[1];
    const double* const il = leaving[1];
    const int first = outer_start[c0];
    T* out = b.covariance + (static_cast<std::int64_t>(row) * b.pixels.cols + c0) * b.covariance_stride;
    const std::ptrdiff_t out_stride = b.covariance_stride;
    const double* sums_of_pixel = pixel_sum_line;
    Divisors d = divisors(b.samples);
    constexpr int block = R * L;

    V total[R];
    MAHAL_UNROLL
    for (int r = 0; r < R; ++r) total[r] = V{};
    for (int u = 0; u < outer; ++u) {
      enter_column<OuterMoves, false>(os + u * block, oe + u * stride, ol + u * stride, i0, j0,
                                      total);
    }
    if constexpr (Inner) {
      const int g = inner_start[c0] - first;
      for (int u = g; u < g + inner; ++u) {
        enter_column<InnerMoves, true>(is + u * block, ie + u * stride, il + u * stride, i0, j0,
                                       total);
      }
    }
    for (int c = c0; c < c1; ++c) {
      if (c > c0) {
        const int o = outer_start[c] - first;
        if (o != outer_start[c - 1] - first) {
          const int u = o + outer - 1;
          enter_column<OuterMoves, false>(os + u * block, oe + u * stride, ol + u * stride, i0, j0,
                                          total);
          leave_column<false>(os + (o - 1) * block, total);
        }
        if constexpr (Inner) {
          const int g = inner_start[c] - first;
          if (g != inner_start[c - 1] - first) {
            const int u = g + inner - 1;
            enter_column<InnerMoves, true>(is + u * block, ie + u * stride, il + u * stride, i0, j0,
                                           total);
            leave_column<true>(is + (g - 1) * block, total);
          }
        }
      }
      if (count) d = divisors(count[c]);
      const V mj = S::load(sums_of_pixel + j0) * S::set1(d.per_sample * d.per_degree);
      const V scale = S::set1(d.per_degree);
      const double* mi = sums_of_pixel + i0;
      V cov[R];
      MAHAL_UNROLL
      for (int r = 0; r < R; ++r) {
        cov[r] = S::fnma(S::set1(mi[r]), mj, total[r] * scale);
      }
      write(out, n, i0, i_end, j0, cov);
      out += out_stride;
      sums_of_pixel += stride;
    }
  }

  template <bool Inner, bool OuterMoves, bool InnerMoves>
  __attribute__((noinline)) void slide(int row) const {
    for (int i0 = b.band_begin; i0 < b.band_end; i0 += R) {
      for (int j0 = 0; j0 < b.pixels.bands; j0 += L) {
        slide_block<Inner, OuterMoves, InnerMoves>(row, i0, j0);
      }
    }
  }

  // Sums of the samples of the window of every pixel, and the means.
  template <bool Inner>
  __attribute__((noinline)) void slide_sums(int row) const {
    const int n = b.pixels.bands;
    const int stride = padded;
    const int outer = b.outer;
    const int inner = b.inner;
    const int c0 = b.col_begin;
    const int c1 = b.col_end;
    const std::int32_t* outer_start = b.cols.outer_start;
    const std::int32_t* inner_start = b.cols.inner_start;
    const std::int32_t* count = b.count ? b.count + row * b.count_stride : nullptr;
    const std::ptrdiff_t out_stride = b.mean_stride;
    const int first = outer_start[c0];
    Divisors d = divisors(b.samples);
    for (int j0 = 0; j0 < stride; j0 += L) {
      const double* os = sums[0] + j0;
      const double* is = Inner ? sums[1] + j0 : nullptr;
      const V offset = j0 < n ? S::loadu(b.offset + j0) : V{};
      double* sums_of_pixel = pixel_sum_line + j0;
      T* out = b.mean ? b.mean + (static_cast<std::int64_t>(row) * b.pixels.cols + c0) * out_stride + j0
                      : nullptr;
      V total{};
      for (int u = 0; u < outer; ++u) total = total + S::load(os + u * stride);
      if constexpr (Inner) {
        const int g = inner_start[c0] - first;
        for (int u = g; u < g + inner; ++u) total = total - S::load(is + u * stride);
      }
      for (int c = c0; c < c1; ++c) {
        if (c > c0) {
          const int o = outer_start[c] - first;
          if (o != outer_start[c - 1] - first) {
            total = total + S::load(os + (o + outer - 1) * stride) - S::load(os + (o - 1) * stride);
          }
          if constexpr (Inner) {
            const int g = inner_start[c] - first;
            if (g != inner_start[c - 1] - first) {
              total =
                  total - S::load(is + (g + inner - 1) * stride) + S::load(is + (g - 1) * stride);
            }
          }
        }
        S::store(sums_of_pixel, total);
        sums_of_pixel += stride;
        if (out) {
          if (count) d = divisors(count[c]);
          write_row(out, n - j0, S::fma(total, S::set1(d.per_sample), offset));
          out += out_stride;
        }
      }
    }
  }

  void run() {
    for (int r = b.row_begin; r < b.row_end; ++r) {
      bool outer_moves = false;
      bool inner_moves = false;
      if (r == b.row_begin) {
        start(r);
      } else {
        const int o = b.rows.outer_start[r];
        outer_moves = o != b.rows.outer_start[r - 1];
        if (outer_moves) {
          load_line(o + b.outer - 1, entering[0]);
          load_line(o - 1, leaving[0]);
          add_sums(0, true, true);
        }
        if (b.inner) {
          const int g = b.rows.inner_start[r];
          inner_moves = g != b.rows.inner_start[r - 1];
          if (inner_moves) {
            load_line(g + b.inner - 1, entering[1]);
            load_line(g - 1, leaving[1]);
            add_sums(1, true, true);
          }
        }
      }
      if (b.inner) {
        slide_sums<true>(r);
        if (outer_moves && inner_moves) slide<true, true, true>(r);
        if (outer_moves && !inner_moves) slide<true, true, false>(r);
        if (!outer_moves && inner_moves) slide<true, false, true>(r);
        if (!outer_moves && !inner_moves) slide<true, false, false>(r);
      } else {
        slide_sums<false>(r);
        if (outer_moves) {
          slide<false, true, false>(r);
        } else {
          slide<false, false, false>(r);
        }
      }
    }
    store_fence();
  }
};

template <class T>
void run_map(const LocalCovarianceBlock<T>& b) {
  switch (rows_of(b.pixels.bands)) {
    case 8:
      Map<T, 8>(b).run();
      break;
    case 4:
      Map<T, 4>(b).run();
      break;
    case 2:
      Map<T, 2>(b).run();
      break;
    default:
      Map<T, 1>(b).run();
  }
}

}  // namespace

template <>
std::size_t LocalCovarianceKernel<current_isa>::scratch_bytes(const LocalCovarianceBlock<float>& b) {
  return bytes(b);
}
template <>
std::size_t LocalCovarianceKernel<current_isa>::scratch_bytes(
    const LocalCovarianceBlock<double>& b) {
  return bytes(b);
}
template <>
void LocalCovarianceKernel<current_isa>::run(const LocalCovarianceBlock<float>& b) {
  run_map(b);
}
template <>
void LocalCovarianceKernel<current_isa>::run(const LocalCovarianceBlock<double>& b) {
  run_map(b);
}

}  // namespace mahal

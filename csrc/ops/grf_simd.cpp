#include "core/hartley_lanes.hpp"
#include "core/isa.hpp"
#include "core/lane_exp.hpp"
#include "ops/grf_kernel.hpp"

namespace mahal {
namespace {

MAHAL_INLINE std::ptrdiff_t round_up(std::ptrdiff_t n, int lanes) {
  return (n + lanes - 1) / lanes * lanes;
}

// A plane in scratch has an odd number of vectors a row, so that the elements of a column lie in
// different sets of the cache.
template <class S>
MAHAL_INLINE std::ptrdiff_t plane_pitch(int cols) {
  return (round_up(cols, S::lanes) / S::lanes | 1) * S::lanes;
}

template <class S, class T>
std::int64_t scratch_of(const GrfBlock<T>& b) {
  constexpr int L = S::lanes;
  const std::ptrdiff_t longer = b.rows.n > b.cols.n ? b.rows.n : b.cols.n;
  const int radix = b.rows.largest > b.cols.largest ? b.rows.largest : b.cols.largest;
  return round_up(b.rows.n, L) * plane_pitch<S>(b.cols.n) + 2 * round_up(longer, L) * L +
         2 * L * static_cast<std::int64_t>(radix);
}

template <class S, class T>
struct Plane {
  using V = typename S::V;
  using H = Hartley<S>;
  static constexpr int L = S::lanes;

  const GrfBlock<T>& b;
  T* plane;
  std::ptrdiff_t pitch;
  T *first, *second;  // the longer axis of one group of lanes each
  T* room;
  T mean = 0;

  explicit MAHAL_INLINE Plane(const GrfBlock<T>& block)
      : b(block), plane(block.scratch), pitch(plane_pitch<S>(block.cols.n)) {
    const std::ptrdiff_t longer = b.rows.n > b.cols.n ? b.rows.n : b.cols.n;
    first = plane + round_up(b.rows.n, L) * pitch;
    second = first + round_up(longer, L) * L;
    room = second + round_up(longer, L) * L;
  }

  // The mean without loss: float64 sums of what exceeds the first pixel.
  MAHAL_INLINE void find_mean() {
    const double origin = b.field[0];
    double total = 0;
    for (int i = 0; i < b.rows.n; ++i) {
      const T* row = b.field + i * b.row_stride;
      double part[8] = {};
      int j = 0;
      if (b.col_stride == 1) {
        for (; j + 8 <= b.cols.n; j += 8) {
    MAHAL_UNROLL
          for (int l = 0; l < 8; ++l) part[l] += static_cast<double>(row[j + l]) - origin;
        }
      }
      for (; j < b.cols.n; ++j) part[0] += static_cast<double>(row[j * b.col_stride]) - origin;
      total += ((part[0] + part[1]) + (part[2] + part[3])) +
               ((part[4] + part[5]) + (part[6] + part[7]));
    }
    mean = static_cast<T>(origin + total / (static_cast<double>(b.rows.n) * b.cols.n));
  }

  // Lanes behind the last column are zero.
  MAHAL_INLINE V field_row(int i, int column) const {
    const T* row = b.field + i * b.row_stride + column * b.col_stride;
    if (b.col_stride == 1 && column + L <= b.cols.n) {
      if (b.ahead) prefetch(row + b.rows.n * b.row_stride);
      return S::loadu(row) - S::set1(mean);
    }
    alignas(64) T lane[L] = {};
    for (int l = 0; l < L && column + l < b.cols.n; ++l) lane[l] = row[l * b.col_stride] - mean;
    return S::load(lane);
  }

  template <int base>
  MAHAL_INLINE void along_rows() {
    for (int c = 0; c < b.cols.n; c += L) {
      H::template transform<base>(
          b.rows, [&](int i) { return field_row(i, c); }, plane + c, pitch, room);
    }
  }

  // Parts of lines from many rows at once would leave the write buffers half full.
  MAHAL_INLINE void put(T* to, V v) const {
    if (sizeof(V) == 64 && b.stream) {
      S::stream(to, v);
    } else {
      S::storeu(to, v);
    }
  }

  MAHAL_INLINE void back_along_rows_block(const T* from, std::ptrdiff_t ld, int count, int c) {
    T* out = b.field_gradient + c;
    for (int i = 0; i < b.rows.n; ++i) {
      T* row = out + static_cast<std::ptrdiff_t>(i) * b.cols.n;
      if (count == L) {
        put(row, S::load(from + i * ld) * S::set1(b.field_scale));
      } else {
        for (int l = 0; l < count; ++l) row[l] = from[i * ld + l] * b.field_scale;
      }
    }
  }

  template <int base>
  MAHAL_INLINE void back_along_rows() {
    for (int c = 0; c < b.cols.n; c += L) {
      const int count = b.cols.n - c < L ? b.cols.n - c : L;
      H::template transform<base>(
          b.rows, [&](int i) { return S::load(plane + i * pitch + c); }, first, L, room);
      back_along_rows_block(first, L, count, c);
    }
  }

  // first[j] = column j of the rows r .. r + L of the plane
  MAHAL_INLINE void gather(int r) {
    for (int j = 0; j < b.cols.n; j += L) {
      V v[L];
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) v[l] = S::load(plane + (r + l) * pitch + j);
      S::transpose(v);
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) S::store(first + (j + l) * L, v[l]);
    }
  }
  MAHAL_INLINE void scatter(int r) {
    for (int j = 0; j < b.cols.n; j += L) {
      V v[L];
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) v[l] = S::load(first + (j + l) * L);
      S::transpose(v);
      MAHAL_UNROLL
      for (int l = 0; l < L; ++l) S::store(plane + (r + l) * pitch + j, v[l]);
    }
  }

  static MAHAL_INLINE double widened_sum(V v) {
    alignas(64) T lane[L];
    S::store(lane, v);
    double total = lane[0];
    MAHAL_UNROLL
    for (int l = 1; l < L; ++l) total += lane[l];
    return total;
  }

  // Spectrum times precision, and the sums over it.
  template <bool sloped>
  MAHAL_INLINE void weigh(T* spectrum, int r) {
    const std::ptrdiff_t group = static_cast<std::ptrdiff_t>(r / L) * (b.cols.n / 2 + 1) * L;
    const T* precision = b.precision + group;
    const T* slope = b.slope + group;
    V quad = S::zero(), steep = S::zero();
    double quads = 0, slopes = 0;
    for (int f = 0; f < b.cols.n; ++f) {
      const int even = f < b.cols.n - f ? f : b.cols.n - f;
      const V x = S::load(spectrum + f * L);
      const V y = x * S::load(precision + even * L);
      quad = S::fma(x, y, quad);
      if constexpr (sloped) steep = S::fma(x * x, S::load(slope + even * L), steep);
      S::store(spectrum + f * L, y);
      if (f % 64 == 63) {
        quads += widened_sum(quad);
        quad = S::zero();
        if constexpr (sloped) {
          slopes += widened_sum(steep);
          steep = S::zero();
        }
      }
    }
    b.sums[0] += quads + widened_sum(quad);
    if constexpr (sloped) b.sums[1] += slopes + widened_sum(steep);
  }

  template <int base>
  MAHAL_INLINE void along_cols() {
    for (int r = 0; r < b.rows.n; r += L) {
      gather(r);
      H::template transform<base>(
          b.cols, [&](int j) { return S::load(first + j * L); }, second, L, room);
      if (b.slope != nullptr) {
        weigh<true>(second, r);
      } else {
        weigh<false>(second, r);
      }
      if (b.field_gradient == nullptr) continue;
      H::template transform<base>(
          b.cols, [&](int j) { return S::load(second + j * L); }, first, L, room);
      scatter(r);
    }
  }
};

// function.operator()<base>() for the size that is in the plan.
template <class F>
MAHAL_INLINE void with_base(int base, F function) {
  switch (base) {
    case 1:
      return function.template operator()<1>();
    case 2:
      return function.template operator()<2>();
    case 4:
      return function.template operator()<4>();
    case 8:
      return function.template operator()<8>();
    default:
      return function.template operator()<16>();
  }
}

template <class S, class T>
void field_of(const GrfBlock<T>& block) {
  Plane<S, T> plane(block);
  block.sums[0] = block.sums[1] = 0;
  if (block.centered) plane.find_mean();
  with_base(block.rows.base, [&]<int base>() { plane.template along_rows<base>(); });
  with_base(block.cols.base, [&]<int base>() { plane.template along_cols<base>(); });
  if (block.field_gradient == nullptr) return;
  with_base(block.rows.base, [&]<int base>() { plane.template back_along_rows<base>(); });
  if (block.stream) store_fence();
}

template <class S, class T>
void log_variance_of(const GrfBlock<T>& b) {
  using V = typename S::V;
  constexpr int L = S::lanes;
  const V shift = S::set1(static_cast<T>(b.shift));
  const V scale = S::set1(b.log_scale);
  double rises = 0, excesses = 0;
  V rise = S::zero(), excess = S::zero();
  int filled = 0;
  const auto flush = [&] {
    rises += Plane<S, T>::widened_sum(rise);
    excesses += Plane<S, T>::widened_sum(excess);
    rise = excess = S::zero();
    filled = 0;
  };
  // A plane without gaps is one long row.
  const bool joined = b.log_col_stride == 1 && b.log_row_stride == b.cols.n;
  const std::int64_t rows = joined ? 1 : b.rows.n;
  const std::int64_t cols = joined ? static_cast<std::int64_t>(b.rows.n) * b.cols.n : b.cols.n;
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* row = b.log_variance + i * b.log_row_stride;
    T* out = b.log_variance_gradient + i * cols;
    for (std::int64_t j = 0; j < cols; j += L) {
      const bool whole = j + L <= cols;
      V u;
      if (whole && b.log_col_stride == 1) {
        if (b.ahead) prefetch(row + j + b.rows.n * b.log_row_stride);
        u = S::loadu(row + j) + shift;
      } else {
        // Lanes behind the end add nothing at u = 0.
        alignas(64) T lane[L] = {};
        for (int l = 0; l < L && j + l < cols; ++l) {
          lane[l] = row[(j + l) * b.log_col_stride] + static_cast<T>(b.shift);
        }
        u = S::load(lane);
      }
      const V up = LaneExp<S>::exp(u) - S::set1(1);
      rise = rise + up;
      excess = excess + (up - u);
      if (b.log_variance_gradient != nullptr) {
        const V gradient = up * scale;
        if (whole && b.stream) {
          S::stream(out + j, gradient);
        } else if (whole) {
          S::storeu(out + j, gradient);
        } else {
          alignas(64) T lane[L];
          S::store(lane, gradient);
          for (int l = 0; j + l < cols; ++l) out[j + l] = lane[l];
        }
      }
      if (++filled == 32) flush();
    }
  }
  flush();
  if (b.stream) store_fence();
  b.sums[2] = rises;
  b.sums[3] = excesses;
}

}  // namespace

template <>
int GrfKernel<current_isa>::lanes(float) {
  return Simd<float>::lanes;
}
template <>
int GrfKernel<current_isa>::lanes(double) {
  return Simd<double>::lanes;
}
template <>
std::int64_t GrfKernel<current_isa>::scratch_elements(const GrfBlock<float>& b) {
  return scratch_of<Simd<float>>(b);
}
template <>
std::int64_t GrfKernel<current_isa>::scratch_elements(const GrfBlock<double>& b) {
  return scratch_of<Simd<double>>(b);
}
template <>
void GrfKernel<current_isa>::field(const GrfBlock<float>& b) {
  field_of<Simd<float>>(b);
}
template <>
void GrfKernel<current_isa>::field(const GrfBlock<double>& b) {
  field_of<Simd<double>>(b);
}
template <>
void GrfKernel<current_isa>::log_variance(const GrfBlock<float>& b) {
  log_variance_of<Simd<float>>(b);
}
template <>
void GrfKernel<current_isa>::log_variance(const GrfBlock<double>& b) {
  log_variance_of<Simd<double>>(b);
}

}  // namespace mahal

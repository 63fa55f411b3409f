// Whitened targets and pixels as rows of doubles. A complex target w is two rows, w and i w, whose
// real products with y are the parts of w^H y.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/background.hpp"
#include "mahal/matched_score.hpp"

namespace mahal {

inline double dot(const double* a, const double* b, int n) {
  double total = 0;
  for (int j = 0; j < n; ++j) total += a[j] * b[j];
  return total;
}

// L^-1 s in place.
inline void forward(const double* lower, std::ptrdiff_t stride, const double* inverse_diagonal,
                    int bands, double* s) {
  for (int i = 0; i < bands; ++i)
    s[i] = (s[i] - dot(lower + i * stride, s, i)) * inverse_diagonal[i];
}

// L^-T s in place.
inline void backward(const double* lower, std::ptrdiff_t stride, const double* inverse_diagonal,
                     int bands, double* s) {
  for (int i = bands - 1; i >= 0; --i) {
    s[i] *= inverse_diagonal[i];
    for (int j = 0; j < i; ++j) s[j] -= lower[i * stride + j] * s[i];
  }
}

// Takes `count` orthonormal rows out of `row`, twice, as once leaves rounding behind, and brings it
// to unit length. False when nothing but rounding is left.
inline bool orthonormalize(const double* rows, int count, int padded, int bands, double* row) {
  // What rounding leaves of a direction that depends on others, relative to its length.
  constexpr double dependent = 64 * std::numeric_limits<double>::epsilon();
  const double length = std::sqrt(dot(row, row, bands));
  for (int pass = 0; pass < 2; ++pass) {
    for (int k = 0; k < count; ++k) {
      const double* q = rows + static_cast<std::int64_t>(k) * padded;
      const double share = dot(q, row, bands);
      for (int j = 0; j < bands; ++j) row[j] -= share * q[j];
    }
  }
  const double rest = std::sqrt(dot(row, row, bands));
  if (!(rest > dependent * std::sqrt(bands) * length)) return false;
  for (int j = 0; j < bands; ++j) row[j] /= rest;
  return true;
}

// i w
inline void turn(const double* w, int bands, double* turned) {
  for (int j = 0; j < bands; j += 2) {
    turned[j] = -w[j + 1];
    turned[j + 1] = w[j];
  }
}

// a -= b; false, and zeros, when nothing but rounding is left.
inline bool subtract(double* a, const double* b, int bands) {
  constexpr double rounding = 16 * std::numeric_limits<double>::epsilon();
  bool differs = false;
  for (int j = 0; j < bands; ++j) {
    const double size = std::max(std::abs(a[j]), std::abs(b[j]));
    a[j] -= b[j];
    differs |= std::abs(a[j]) > rounding * size;
  }
  if (!differs) std::fill_n(a, bands, 0.0);
  return differs;
}

struct TargetRows {
  MatchedScore kind;
  int targets, parts, bands, padded;
  double* rows;  // targets x parts x padded, the whitened targets in the first part
};

// The scores of one whitened pixel. Those of targets without a direction of their own are NaN, and
// the answer false.
template <class T>
bool score_rows(const TargetRows& t, const double* y, T* out) {
  const double square = dot(y, y, t.bands);
  bool all = true;
  double total = 0;
  for (int k = 0; k < t.targets; ++k) {
    double* w = t.rows + static_cast<std::int64_t>(k) * t.parts * t.padded;
    const double length = dot(w, w, t.bands);
    bool good = length > 0;
    if (t.kind == MatchedScore::subspace_ace) {
      good = good && orthonormalize(t.rows, k * t.parts, t.padded, t.bands, w);
    }
    double c = dot(w, y, t.bands);
    if (t.parts == 2) {
      turn(w, t.bands, w + t.padded);
      c = std::hypot(c, dot(w + t.padded, y, t.bands));
    }
    double value = 0;
    switch (t.kind) {
      case MatchedScore::ace:
        if (square > 0) value = std::min((c / length) * (c / square), 1.0);
        break;
      case MatchedScore::signed_ace:
        if (square > 0) value = std::clamp(c / std::sqrt(length) / std::sqrt(square), -1.0, 1.0);
        break;
      case MatchedScore::subspace_ace:
        if (square > 0) total += c * (c / square);
        break;
      case MatchedScore::normalized_filter:
        value = c / std::sqrt(length);
        break;
      default:
        value = c / length;
    }
    if (!good) value = total = std::numeric_limits<double>::quiet_NaN();
    all &= good;
    if (t.kind != MatchedScore::subspace_ace) out[k] = static_cast<T>(value);
  }
  if (t.kind == MatchedScore::subspace_ace) {
    *out = static_cast<T>(total > 1 ? 1 : total);
  }
  return all;
}

}  // namespace mahal

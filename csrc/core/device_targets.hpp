// Products of rows and scores of targets, by one warp. The counterpart of ops/matched_rows.hpp.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/device_matrix.hpp"
#include "core/simt.hpp"
#include "mahal/matched_score.hpp"

namespace mahal::MAHAL_CUDA_NAMESPACE {

// The same sum for every lane.
template <class T>
__device__ __forceinline__ T warp_dot(const T* a, const T* b, int n) {
  T sum = T(0);
  for (int j = static_cast<int>(threadIdx.x) % warp_lanes; j < n; j += warp_lanes) {
    sum += a[j] * b[j];
  }
  return warp_reduce(sum);
}

// a -= share b
template <class T>
__device__ __forceinline__ void warp_subtract(T* a, T share, const T* b, int n) {
  for (int j = static_cast<int>(threadIdx.x) % warp_lanes; j < n; j += warp_lanes) {
    a[j] -= share * b[j];
  }
}

// a -= b, element by element; false, and zeros, when nothing but rounding is left.
__device__ inline bool warp_differs(double* a, const double* b, int n) {
  constexpr double rounding = 16 * simt::epsilon<double>;
  const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
  int differs = 0;
  for (int j = lane; j < n; j += warp_lanes) {
    const double size = Greatest()(a[j] < 0 ? -a[j] : a[j], b[j] < 0 ? -b[j] : b[j]);
    a[j] -= b[j];
    // NaN counts as a difference.
    if (!((a[j] < 0 ? -a[j] : a[j]) <= rounding * size)) differs = 1;
  }
  differs = warp_reduce(differs, Greatest());
  if (differs == 0) {
    for (int j = lane; j < n; j += warp_lanes) a[j] = 0;
  }
  return differs != 0;
}

// Whitened targets and a whitened pixel, in the memory of one warp. As matched_rows.hpp: a complex
// target w is two rows, w and i w.
struct TargetRows {
  MatchedScore kind;
  int targets, parts, bands;
  int length;        // of a row
  double* rows;      // targets x parts
  double scale = 1;  // of the inverse of the covariance

  // Takes `count` orthonormal rows out of `row` and brings it to unit length. False when nothing
  // but rounding is left.
  __device__ bool orthonormalize(int count, double* row) const {
    constexpr double dependent = 64 * simt::epsilon<double>;
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const double before = std::sqrt(warp_dot(row, row, bands));
    for (int pass = 0; pass < 2; ++pass) {
      for (int k = 0; k < count; ++k) {
        const double* q = rows + std::int64_t{k} * length;
        warp_subtract(row, warp_dot(q, row, bands), q, bands);
      }
    }
    const double rest = std::sqrt(warp_dot(row, row, bands));
    if (!(rest > dependent * std::sqrt(static_cast<double>(bands)) * before)) return false;
    for (int j = lane; j < bands; j += warp_lanes) row[j] /= rest;
    return true;
  }

  // put(k, score), by one lane, for the scores of y. Those of targets without a direction of their
  // own are NaN, and the answer false.
  template <class Put>
  __device__ bool score(const double* y, const Put& put) const {
    const int lane = static_cast<int>(threadIdx.x) % warp_lanes;
    const double square = warp_dot(y, y, bands);
    bool all = true;
    double total = 0;
    for (int k = 0; k < targets; ++k) {
      double* w = rows + std::int64_t{k} * parts * length;
      const double own = warp_dot(w, w, bands);
      bool good = own > 0;
      if (kind == MatchedScore::subspace_ace) good = good && orthonormalize(k * parts, w);
      double c = warp_dot(w, y, bands);
      if (parts == 2) {
        __syncwarp();
        for (int j = lane; j < bands; j += warp_lanes) {
          w[length + j] = j % 2 == 0 ? -w[j + 1] : w[j - 1];
        }
        const double other = warp_dot(w + length, y, bands);
        c = std::sqrt(c * c + other * other);
      }
      double value = 0;
      switch (kind) {
        case MatchedScore::ace:
          if (square > 0) value = (c / own) * (c / square);
          if (value > 1) value = 1;
          break;
        case MatchedScore::signed_ace:
          if (square > 0) value = c / std::sqrt(own) / std::sqrt(square);
          if (value > 1) value = 1;
          if (value < -1) value = -1;
          break;
        case MatchedScore::subspace_ace:
          if (square > 0) total += c * (c / square);
          break;
        case MatchedScore::normalized_filter:
          value = c / std::sqrt(own) * std::sqrt(scale);
          break;
        default:
          value = c / own;
      }
      // What is beyond the range of the numbers has no value either.
      good = good && is_finite(value);
      if (!good) value = total = simt::nan<double>;
      all = all && good;
      if (kind != MatchedScore::subspace_ace && lane == 0) put(k, value);
    }
    if (kind == MatchedScore::subspace_ace && lane == 0) put(0, total > 1 ? 1 : total);
    return all;
  }
};

}  // namespace mahal::MAHAL_CUDA_NAMESPACE

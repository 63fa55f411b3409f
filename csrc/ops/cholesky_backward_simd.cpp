#include "core/gram.hpp"
#include "core/hermitian.hpp"
#include "core/substitution.hpp"
#include "ops/cholesky_backward_kernel.hpp"

namespace mahal {
namespace {

using S = Simd<double>;
using V = S::V;
constexpr int L = S::lanes;

// One matrix per lane.
template <int C>
struct Pack {
  using H = Hermitian<S, C>;
  using Num = Number<S, C>;

  int n, ld;
  double *lower, *matrix, *inverse;

  static std::ptrdiff_t matrix_doubles(int n) {
    return static_cast<std::ptrdiff_t>(n) * lane_leading(n) * (C * L);
  }
  static std::ptrdiff_t scratch_doubles(int n) {
    return 2 * matrix_doubles(n) + static_cast<std::ptrdiff_t>(n) * L;
  }
  Pack(int size, double* scratch) : n(size), ld(lane_leading(size)) {
    lower = scratch;
    matrix = lower + matrix_doubles(n);
    inverse = matrix + matrix_doubles(n);
  }

  Num factor(int i, int j) const { return Num::load(H::at(lower, ld, i, j)); }
  Num entry(int i, int j) const { return Num::load(H::at(matrix, ld, i, j)); }
  void put(int i, int j, const Num& value) const { value.store(H::at(matrix, ld, i, j)); }

  // Lower triangle of the Hermitian L^H grad, whose rows below i are still the gradient.
  void pull_product() const {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j <= i; ++j) {
        Num sum = Num::zero();
        for (int k = i; k < n; ++k) sum.add_conj_first(factor(k, i), entry(k, j));
        put(i, j, i == j ? Num::real(sum.v[0]) : sum);
      }
    }
  }

  // L^-H times it; only rows below take part in the lower triangle.
  void solve_left() const {
    for (int i = n - 1; i >= 0; --i) {
      const V pivot = S::load(inverse + i * L);
      for (int j = 0; j <= i; ++j) {
        Num sum = entry(i, j);
        for (int k = i + 1; k < n; ++k) sum.sub_conj_first(factor(k, i), entry(k, j));
        put(i, j, sum.scaled(pivot));
      }
    }
  }

  // Times L^-1. The result is Hermitian: what is right of the diagonal stands in the rows below.
  void solve_right() const {
    for (int i = n - 1; i >= 0; --i) {
      for (int j = i; j >= 0; --j) {
        Num sum = entry(i, j);
        for (int k = j + 1; k <= i; ++k) sum.sub_product(entry(i, k), factor(k, j));
        for (int k = i + 1; k < n; ++k) sum.sub_product(entry(k, i).conj(), factor(k, j));
        sum = sum.scaled(S::load(inverse + j * L));
        put(i, j, i == j ? Num::real(sum.v[0]) : sum);
      }
    }
  }

  template <class T>
  void run(const CholeskyBackwardBlock<T>& b) const {
    load_lower<S, C>(b.factor, b.factor_row, b.factor_col, n, ld, lower);
    load_lower<S, C>(b.grad, b.grad_row, b.grad_col, n, ld, matrix);
    for (int i = 0; i < n; ++i) {
      S::store(inverse + i * L, S::set1(1) / S::load(H::at(lower, ld, i, i)));
    }
    pull_product();
    solve_left();
    solve_right();
    V trace = S::zero();
    for (int i = 0; i < n; ++i) trace = trace + S::load(H::at(matrix, ld, i, i));
    const V extra = b.loading == 0 ? S::zero() : trace * S::set1(b.loading / n);
    for (int i = 0; i < n; ++i) {
      double* d = H::at(matrix, ld, i, i);
      S::store(d, S::load(d) + extra);
    }
    const std::ptrdiff_t size = static_cast<std::ptrdiff_t>(n) * n * C;
    for (int l = 0; l < b.count; ++l) {
      T* out = b.out + l * size;
      for (int i = 0; i < n; ++i) {
        for (int j = 0; j <= i; ++j) {
          const double* from = H::at(matrix, ld, i, j) + l;
          for (int c = 0; c < C; ++c) {
            const T value = static_cast<T>(0.5 * from[c * L]);
            out[(i * n + j) * C + c] = value;
            out[(j * n + i) * C + c] = c == 0 || i == j ? value : -value;
          }
        }
      }
    }
  }
};

template <class T>
void run_block(const CholeskyBackwardBlock<T>& block) {
  if (block.complex) {
    Pack<2>(block.n, static_cast<double*>(block.scratch)).run(block);
  } else {
    Pack<1>(block.n, static_cast<double*>(block.scratch)).run(block);
  }
}

}  // namespace

template <>
int CholeskyBackwardKernel<current_isa>::lanes() {
  return L;
}
template <>
std::size_t CholeskyBackwardKernel<current_isa>::scratch_bytes(int n, bool complex) {
  return sizeof(double) * static_cast<std::size_t>(complex ? Pack<2>::scratch_doubles(n)
                                                           : Pack<1>::scratch_doubles(n));
}
template <>
void CholeskyBackwardKernel<current_isa>::run(const CholeskyBackwardBlock<float>& block) {
  run_block(block);
}
template <>
void CholeskyBackwardKernel<current_isa>::run(const CholeskyBackwardBlock<double>& block) {
  run_block(block);
}

template <>
void CholeskyBackwardKernel<current_isa>::one(const FactorGradient& g) {
  constexpr int P = substitution_width;
  const std::ptrdiff_t ld = g.padded;
  double* panel = static_cast<double*>(g.scratch);
  const double** left = reinterpret_cast<const double**>(panel + P * ld);
  const double** right = left + g.padded;
  for (int k = 0; k < g.n; ++k) {
    left[k] = g.lower + k * ld;
    right[k] = g.matrix + k * ld;
  }
  cross_gram<S>(left, right, g.n, 0, g.padded, g.work, ld, false);
  // P + P^T, halved here already.
  for (int i = 0; i < g.n; ++i) {
    g.work[i * ld + i] *= 0.5;
    for (int j = 0; j < i; ++j) g.work[j * ld + i] = g.work[i * ld + j] *= 0.5;
  }
  // Columns of it, then rows of the result, are solved for 16 at a time.
  for (int first = 0; first < g.n; first += P) {
    for (int i = 0; i < g.n; ++i) {
      for (int p = 0; p < P; p += L)
        S::store(panel + i * P + p, S::load(g.work + i * ld + first + p));
    }
    substitute_backward(g.lower, g.inverse_diagonal, ld, g.n, panel);
    for (int i = 0; i < g.n; ++i) {
      for (int p = 0; p < P; p += L)
        S::store(g.work + i * ld + first + p, S::load(panel + i * P + p));
    }
  }
  for (int first = 0; first < g.n; first += P) {
    rows_to_panel(g.work + first * ld, ld, g.n, panel);
    substitute_backward(g.lower, g.inverse_diagonal, ld, g.n, panel);
    panel_to_rows(panel, ld, g.n, g.matrix + first * ld);
  }
  for (int i = 0; i < g.n; ++i) {
    for (int j = 0; j < i; ++j) {
      double& one = g.matrix[i * ld + j];
      double& other = g.matrix[j * ld + i];
      one = other = 0.5 * (one + other);
    }
  }
}

}  // namespace mahal

// log |A| of many symmetric matrices, by the batched Cholesky factorisation of mahal.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "mahal/cholesky.hpp"
#include "mahal/context.hpp"

namespace nb = nanobind;

using Matrices = nb::ndarray<const double, nb::ndim<3>, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, double, nb::ndim<1>>;

namespace {

mahal::TensorView view_of(void* data, mahal::DType dtype, std::vector<std::int64_t> shape) {
  mahal::TensorView view;
  view.data = data;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  std::int64_t step = 1;
  for (int axis = view.rank - 1; axis >= 0; --axis) {
    view.shape[axis] = shape[axis];
    view.strides[axis] = step;
    step *= shape[axis];
  }
  return view;
}

Result log_determinants(const Matrices& matrices) {
  const auto count = static_cast<std::int64_t>(matrices.shape(0));
  const auto size = static_cast<std::int64_t>(matrices.shape(1));
  mahal::TensorView a = view_of(const_cast<double*>(matrices.data()), mahal::DType::f64,
                                {count, size, static_cast<std::int64_t>(matrices.shape(2))});
  a.read_only = true;
  for (int axis = 0; axis < 3; ++axis) a.strides[axis] = matrices.stride(axis);

  std::vector<double> factors(count * size * size);
  std::vector<std::uint8_t> states(count);
  const mahal::CholeskyParams params;
  std::vector<char> memory(mahal::cholesky_workspace(params, a, 0));
  mahal::cholesky(params, a, view_of(factors.data(), mahal::DType::f64, {count, size, size}),
                  view_of(states.data(), mahal::DType::u8, {count}), {memory.data(), memory.size()},
                  {});

  auto* values = new double[count];
  nb::capsule owner(values, [](void* p) noexcept { delete[] static_cast<double*>(p); });
  for (std::int64_t k = 0; k < count; ++k) {
    values[k] = states[k] == 0 ? 0.0 : std::numeric_limits<double>::quiet_NaN();
    for (std::int64_t i = 0; i < size; ++i) {
      values[k] += 2 * std::log(factors[(k * size + i) * size + i]);
    }
  }
  return Result(values, {static_cast<std::size_t>(count)}, owner);
}

}  // namespace

NB_MODULE(embedded_cholesky, m) {
  m.def("log_determinants", &log_determinants, nb::arg("matrices"));
  m.def("version", [] { return mahal::build_info().version; });
}

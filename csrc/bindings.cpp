// The Python module: one line per entry point. Arguments are checked by the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <vector>

#include "array_caster.hpp"
#include "core/checks.hpp"
#include "core/threads.hpp"
#include "mahal/context.hpp"
#include "mahal/error.hpp"

namespace {

namespace py = pybind11;
using mahal::python::Array;

// Around every op: other Python threads run meanwhile.
using Unlocked = py::call_guard<py::gil_scoped_release>;

void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const mahal::ValueError& error) {
    py::set_error(PyExc_ValueError, error.what());
  } catch (const mahal::TypeError& error) {
    py::set_error(PyExc_TypeError, error.what());
  } catch (const mahal::DeviceError& error) {
    py::set_error(PyExc_RuntimeError, error.what());
  }
}

mahal::Isa isa_from_name(const std::string& name) {
  for (mahal::Isa isa : {mahal::Isa::base, mahal::Isa::avx2, mahal::Isa::avx512}) {
    if (name == mahal::isa_name(isa)) return isa;
  }
  mahal::throw_value_error("set_isa", "isa", "must be base, avx2 or avx512", "'" + name + "'");
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (mahal::Isa isa : {mahal::Isa::base, mahal::Isa::avx2, mahal::Isa::avx512}) {
    if (mahal::isa_supported(isa)) names.emplace_back(mahal::isa_name(isa));
  }
  return names;
}

const char* backend_name(mahal::Backend backend) {
  return backend == mahal::Backend::emulator ? "emulator" : "automatic";
}

mahal::Backend backend_from_name(const std::string& name) {
  for (mahal::Backend backend : {mahal::Backend::automatic, mahal::Backend::emulator}) {
    if (name == backend_name(backend)) return backend;
  }
  mahal::throw_value_error("set_backend", "backend", "must be automatic or emulator",
                           "'" + name + "'");
}

py::dict build_facts() {
  const mahal::BuildInfo info = mahal::build_info();
  py::dict facts;
  facts["version"] = info.version;
  facts["compiler"] = info.compiler;
  facts["cuda"] = info.cuda;
  facts["cuda_toolkit"] = info.cuda_toolkit;
  facts["cuda_architectures"] = info.cuda_architectures;
  facts["emulator"] = info.emulator;
  return facts;
}

py::list device_facts() {
  py::list facts;
  for (const mahal::DeviceInfo& device : mahal::devices()) {
    py::dict one;
    one["name"] = device.name;
    one["compute_capability"] = py::make_tuple(device.compute_major, device.compute_minor);
    one["memory_bytes"] = device.memory_bytes;
    facts.append(one);
  }
  return facts;
}

py::object describe(const Array& array) {
  const mahal::TensorView& view = array.view();
  if (!mahal::is_given(view)) return py::none();
  py::tuple shape(view.rank), strides(view.rank);
  for (int axis = 0; axis < view.rank; ++axis) {
    shape[axis] = view.shape[axis];
    strides[axis] = view.strides[axis];
  }
  return py::make_tuple(shape, strides, mahal::dtype_name(view.dtype),
                        mahal::device_text(view.device), view.read_only,
                        mahal::python::path_name(array.path()));
}

// Tasks done by each worker: for tests of the pool.
std::vector<std::int64_t> count_tasks(int threads, std::int64_t tasks) {
  std::vector<std::int64_t> counts(threads, 0);
  mahal::parallel_for(threads, tasks, [&](std::int64_t, int worker) { ++counts[worker]; });
  return counts;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::register_local_exception_translator(&translate);

  m.def("build_info", &build_facts);
  m.def("devices", &device_facts);
  m.def("device_count", &mahal::device_count);
  m.def("emulator_built", [] { return mahal::build_info().emulator; });
  m.def("supported_isas", &supported_isas);
  m.def("active_isa", [] { return mahal::isa_name(mahal::active_isa()); });
  m.def("set_isa", [](const std::string& name) { mahal::set_isa(isa_from_name(name)); });
  m.def("active_backend", [] { return backend_name(mahal::active_backend()); });
  m.def("set_backend",
        [](const std::string& name) { mahal::set_backend(backend_from_name(name)); });
  m.def("default_threads", &mahal::default_threads);
  m.def("set_default_threads", &mahal::set_default_threads, py::arg("threads"));

  // For tests.
  m.def("_describe", &describe, py::arg("array"));
  m.def("_count_tasks", &count_tasks, py::arg("threads"), py::arg("tasks"), Unlocked());
}

// The Python module: one line per entry point. Arguments are checked by the ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "array_caster.hpp"
#include "core/checks.hpp"
#include "core/threads.hpp"
#include "mahal/change_map.hpp"
#include "mahal/cholesky.hpp"
#include "mahal/cholesky_backward.hpp"
#include "mahal/context.hpp"
#include "mahal/covariance_distance.hpp"
#include "mahal/covariance_distance_backward.hpp"
#include "mahal/covariance_log.hpp"
#include "mahal/covariance_log_backward.hpp"
#include "mahal/detector_backward.hpp"
#include "mahal/error.hpp"
#include "mahal/grf.hpp"
#include "mahal/local_covariance.hpp"
#include "mahal/local_covariance_backward.hpp"
#include "mahal/mahalanobis.hpp"
#include "mahal/mahalanobis_locations.hpp"
#include "mahal/matched.hpp"
#include "mahal/mean_covariance.hpp"
#include "mahal/mean_covariance_backward.hpp"
#include "mahal/rx.hpp"
#include "mahal/spectral_angle.hpp"
#include "mahal/structural_similarity.hpp"
#include "mahal/structural_similarity_backward.hpp"
#include "mahal/whiten.hpp"
#include "mahal/whiten_backward.hpp"
#include "mahal/window_estimators.hpp"
#include "mahal/window_scores_backward.hpp"

namespace {

namespace py = pybind11;
using mahal::python::Array;

// Around every op: other Python threads run meanwhile.
using Unlock = py::gil_scoped_release;
using Unlocked = py::call_guard<Unlock>;

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

std::string quoted(const std::string& name) {
  std::string text(1, '\'');
  return text.append(name).append(1, '\'');
}

mahal::Isa isa_from_name(const std::string& name) {
  for (mahal::Isa isa : {mahal::Isa::base, mahal::Isa::avx2, mahal::Isa::avx512}) {
    if (name == mahal::isa_name(isa)) return isa;
  }
  mahal::throw_value_error("set_isa", "isa", "must be base, avx2 or avx512", quoted(name));
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
  mahal::throw_value_error("set_backend", "backend", "must be automatic or emulator", quoted(name));
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

mahal::Workspace workspace_of(const Array& array) {
  const mahal::TensorView& view = array.view();
  return {view.data,
          static_cast<std::size_t>(mahal::element_count(view)) * mahal::item_size(view.dtype)};
}

mahal::Execution execution_of(int threads, std::uintptr_t stream) {
  mahal::Execution execution;
  execution.threads = threads;
  execution.stream = stream;
  return execution;
}

mahal::Border border_from_name(const char* op, const std::string& name) {
  if (name == "shift") return mahal::Border::shift;
  if (name == "reflect") return mahal::Border::reflect;
  if (name == "valid") return mahal::Border::valid;
  mahal::throw_value_error(op, "border", "must be 'shift', 'reflect' or 'valid'", quoted(name));
}

// (inner, outer), as Python writes it.
using Sides = std::pair<int, int>;

mahal::Window window_of(Sides sides) { return {sides.second, sides.first}; }

// Name, loading, nu, tolerance and cap of the iterations.
using EstimationFields = std::tuple<std::string, double, double, double, int>;

mahal::Estimation estimation_of(const char* op, const EstimationFields& fields) {
  mahal::Estimation e;
  std::string name;
  std::tie(name, e.loading, e.nu, e.tolerance, e.max_iterations) = fields;
  constexpr std::pair<const char*, mahal::Estimator> known[] = {
      {"scm", mahal::Estimator::scm},
      {"loading", mahal::Estimator::loading},
      {"ledoit_wolf", mahal::Estimator::ledoit_wolf},
      {"oas", mahal::Estimator::oas},
      {"tyler", mahal::Estimator::tyler},
      {"student_t", mahal::Estimator::student_t},
  };
  for (const auto& [known_name, estimator] : known) {
    if (name != known_name) continue;
    e.estimator = estimator;
    return e;
  }
  mahal::throw_value_error(op, "estimator",
                           "must be 'scm', 'loading', 'ledoit_wolf', 'oas', 'tyler' or 'student_t'",
                           quoted(name));
}

mahal::MeanCovarianceParams mean_covariance_params(double ddof, bool center,
                                                   const EstimationFields& estimation) {
  return {ddof, center, estimation_of("mean_covariance", estimation)};
}

std::size_t mean_covariance_workspace(const Array& x, const EstimationFields& estimation,
                                      int threads) {
  return mahal::mean_covariance_workspace(mean_covariance_params(1, true, estimation), x, threads);
}

int mean_covariance(const Array& x, const Array& mask, const Array& mean, const Array& covariance,
                    const Array& workspace, double ddof, bool center,
                    const EstimationFields& estimation, int threads, std::uintptr_t stream) {
  const mahal::MeanCovarianceParams params = mean_covariance_params(ddof, center, estimation);
  const Unlock unlock;
  return mahal::mean_covariance(params, x, mask, mean, covariance, workspace_of(workspace),
                                execution_of(threads, stream));
}

struct LocalCovariance {
  std::vector<mahal::Window> windows;
  mahal::LocalCovarianceParams params;

  LocalCovariance(const std::vector<Sides>& sides, const std::string& border, int ddof,
                  bool center) {
    for (const Sides& pair : sides) windows.push_back(window_of(pair));
    params.windows = windows.data();
    params.window_count = static_cast<int>(windows.size());
    params.border = border_from_name("local_covariance", border);
    params.ddof = ddof;
    params.center = center;
  }
};

std::size_t local_covariance_workspace(const Array& image, const std::vector<Sides>& windows,
                                       const std::string& border, int ddof, bool center,
                                       int threads) {
  const LocalCovariance call(windows, border, ddof, center);
  return mahal::local_covariance_workspace(call.params, image, threads);
}

void local_covariance(const Array& image, const Array& mask, const Array& mean,
                      const Array& covariance, const Array& workspace,
                      const std::vector<Sides>& windows, const std::string& border, int ddof,
                      bool center, int threads, std::uintptr_t stream) {
  const LocalCovariance call(windows, border, ddof, center);
  const Unlock unlock;
  mahal::local_covariance(call.params, image, mask, mean, covariance, workspace_of(workspace),
                          execution_of(threads, stream));
}

std::size_t local_covariance_backward_workspace(const Array& image,
                                                const std::vector<Sides>& windows,
                                                const std::string& border, int ddof, bool center,
                                                int threads) {
  const LocalCovariance call(windows, border, ddof, center);
  return mahal::local_covariance_backward_workspace(call.params, image, threads);
}

void local_covariance_backward(const Array& image, const Array& mask, const Array& mean_gradient,
                               const Array& covariance_gradient, const Array& gradient,
                               const Array& workspace, const std::vector<Sides>& windows,
                               const std::string& border, int ddof, bool center, int threads,
                               std::uintptr_t stream) {
  const LocalCovariance call(windows, border, ddof, center);
  const Unlock unlock;
  mahal::local_covariance_backward(call.params, image, mask, mean_gradient, covariance_gradient,
                                   gradient, workspace_of(workspace),
                                   execution_of(threads, stream));
}

std::size_t cholesky_workspace(const Array& a, int threads) {
  return mahal::cholesky_workspace({}, a, threads);
}

void cholesky(const Array& a, const Array& factor, const Array& status, const Array& workspace,
              double loading, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::cholesky({loading}, a, factor, status, workspace_of(workspace),
                  execution_of(threads, stream));
}

std::size_t cholesky_backward_workspace(const Array& factor, int threads) {
  return mahal::cholesky_backward_workspace({}, factor, threads);
}

void cholesky_backward(const Array& factor, const Array& grad, const Array& grad_a,
                       const Array& workspace, double loading, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::cholesky_backward({loading}, factor, grad, grad_a, workspace_of(workspace),
                           execution_of(threads, stream));
}

std::size_t mean_covariance_backward_workspace(const Array& x, int threads) {
  return mahal::mean_covariance_backward_workspace(x, threads);
}

void mean_covariance_backward(const Array& x, const Array& mask, const Array& grad_mean,
                              const Array& grad_covariance, const Array& grad_x,
                              const Array& workspace, double ddof, bool center, int threads,
                              std::uintptr_t stream) {
  const Unlock unlock;
  mahal::mean_covariance_backward({ddof, center}, x, mask, grad_mean, grad_covariance, grad_x,
                                  workspace_of(workspace), execution_of(threads, stream));
}

mahal::DetectorBackwardParams detector_params(const std::string& caller, const std::string& score,
                                              bool center, bool estimate) {
  using mahal::DetectorScore;
  static constexpr std::pair<const char*, DetectorScore> scores[] = {
      {"distance", DetectorScore::distance},
      {"ace", DetectorScore::ace},
      {"signed_ace", DetectorScore::signed_ace},
      {"filter", DetectorScore::filter},
      {"normalized_filter", DetectorScore::normalized_filter}};
  for (const auto& [known, kind] : scores) {
    if (score == known) return {caller.c_str(), kind, center, estimate};
  }
  mahal::throw_value_error(caller.c_str(), "score", "must be one of DetectorScore", quoted(score));
}

std::size_t detector_backward_workspace(const std::string& caller, const std::string& score,
                                        const Array& grad, const Array& image, const Array& target,
                                        const Array& mean, const Array& background,
                                        const Array& covariance, const Array& mask, bool center,
                                        bool estimate, int threads) {
  return mahal::detector_backward_workspace(
      detector_params(caller, score, center, estimate),
      {grad, image, target, mean, background, covariance, mask}, threads);
}

void detector_backward(const std::string& caller, const std::string& score, const Array& grad,
                       const Array& image, const Array& target, const Array& mean,
                       const Array& background, const Array& covariance, const Array& mask,
                       const Array& grad_image, const Array& grad_target, const Array& grad_mean,
                       const Array& grad_background, const Array& grad_covariance,
                       const Array& workspace, bool center, bool estimate, int threads,
                       std::uintptr_t stream) {
  const mahal::DetectorBackwardParams params = detector_params(caller, score, center, estimate);
  const Unlock unlock;
  mahal::detector_backward(params, {grad, image, target, mean, background, covariance, mask},
                           {grad_image, grad_target, grad_mean, grad_background, grad_covariance},
                           workspace_of(workspace), execution_of(threads, stream));
}

mahal::Metric metric_from_name(const char* op, const std::string& name) {
  using mahal::Metric;
  static constexpr std::pair<const char*, Metric> metrics[] = {
      {"frobenius", Metric::frobenius},
      {"logeuclid", Metric::logeuclid},
      {"affine_invariant", Metric::affine_invariant},
      {"logdet", Metric::logdet},
      {"wasserstein", Metric::wasserstein},
      {"symmetric_kl", Metric::symmetric_kl},
      {"hotelling_lawley", Metric::hotelling_lawley},
      {"wishart", Metric::wishart},
      {"box_m", Metric::box_m}};
  for (const auto& [known, metric] : metrics) {
    if (name == known) return metric;
  }
  mahal::throw_value_error(op, "metric", "must be a known metric", quoted(name));
}

std::size_t covariance_distance_workspace(const Array& a, const Array& b, const std::string& metric,
                                          double looks_a, double looks_b, int threads) {
  return mahal::covariance_distance_workspace(
      {metric_from_name("covariance_distance", metric), false, looks_a, looks_b}, a, b, threads);
}

void covariance_distance(const Array& a, const Array& b, const Array& score, const Array& status,
                         const Array& workspace, const std::string& metric, bool squared,
                         double looks_a, double looks_b, int threads, std::uintptr_t stream) {
  const mahal::Metric chosen = metric_from_name("covariance_distance", metric);
  const Unlock unlock;
  mahal::covariance_distance({chosen, squared, looks_a, looks_b}, a, b, score, status,
                             workspace_of(workspace), execution_of(threads, stream));
}

std::size_t covariance_distance_backward_workspace(const Array& a, const Array& b,
                                                   const std::string& metric, double looks_a,
                                                   double looks_b, int threads) {
  return mahal::covariance_distance_backward_workspace(
      {metric_from_name("covariance_distance_backward", metric), false, looks_a, looks_b}, a, b,
      threads);
}

void covariance_distance_backward(const Array& a, const Array& b, const Array& score,
                                  const Array& status, const Array& grad, const Array& grad_a,
                                  const Array& grad_b, const Array& workspace,
                                  const std::string& metric, bool squared, double looks_a,
                                  double looks_b, int threads, std::uintptr_t stream) {
  const mahal::Metric chosen = metric_from_name("covariance_distance_backward", metric);
  const Unlock unlock;
  mahal::covariance_distance_backward({chosen, squared, looks_a, looks_b}, a, b, score, status,
                                      grad, grad_a, grad_b, workspace_of(workspace),
                                      execution_of(threads, stream));
}

std::size_t covariance_log_workspace(const Array& a, int threads) {
  return mahal::covariance_log_workspace({}, a, threads);
}

void covariance_log(const Array& a, const Array& logarithm, const Array& status,
                    const Array& workspace, double loading, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::covariance_log({loading}, a, logarithm, status, workspace_of(workspace),
                        execution_of(threads, stream));
}

std::size_t covariance_log_backward_workspace(const Array& a, int threads) {
  return mahal::covariance_log_backward_workspace({}, a, threads);
}

void covariance_log_backward(const Array& a, const Array& status, const Array& grad,
                             const Array& grad_a, const Array& workspace, double loading,
                             int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::covariance_log_backward({loading}, a, status, grad, grad_a, workspace_of(workspace),
                                 execution_of(threads, stream));
}

mahal::MapBorder map_border_from_name(const char* op, const std::string& name) {
  if (name == "clip") return mahal::MapBorder::clip;
  if (name == "shift") return mahal::MapBorder::shift;
  if (name == "reflect") return mahal::MapBorder::reflect;
  if (name == "valid") return mahal::MapBorder::valid;
  mahal::throw_value_error(op, "border", "must be 'clip', 'shift', 'reflect' or 'valid'",
                           quoted(name));
}

mahal::StructuralSimilarityParams similarity_params(int window, double sigma, double data_range,
                                                    double k1, double k2, int ddof,
                                                    const std::string& border) {
  return {window,
          sigma,
          data_range,
          k1,
          k2,
          ddof,
          map_border_from_name("structural_similarity", border)};
}

std::size_t structural_similarity_workspace(const Array& first, const Array& second, int window,
                                            double sigma, double data_range, double k1, double k2,
                                            int ddof, const std::string& border, int threads) {
  return mahal::structural_similarity_workspace(
      similarity_params(window, sigma, data_range, k1, k2, ddof, border), first, second, threads);
}

void structural_similarity(const Array& first, const Array& second, const Array& score,
                           const Array& workspace, int window, double sigma, double data_range,
                           double k1, double k2, int ddof, const std::string& border, int threads,
                           std::uintptr_t stream) {
  const auto params = similarity_params(window, sigma, data_range, k1, k2, ddof, border);
  const Unlock unlock;
  mahal::structural_similarity(params, first, second, score, workspace_of(workspace),
                               execution_of(threads, stream));
}

std::size_t structural_similarity_backward_workspace(const Array& first, const Array& second,
                                                     int window, double sigma, double data_range,
                                                     double k1, double k2, int ddof,
                                                     const std::string& border, int threads) {
  return mahal::structural_similarity_backward_workspace(
      similarity_params(window, sigma, data_range, k1, k2, ddof, border), first, second, threads);
}

void structural_similarity_backward(const Array& first, const Array& second, const Array& grad,
                                    const Array& grad_first, const Array& grad_second,
                                    const Array& workspace, int window, double sigma,
                                    double data_range, double k1, double k2, int ddof,
                                    const std::string& border, int threads, std::uintptr_t stream) {
  const auto params = similarity_params(window, sigma, data_range, k1, k2, ddof, border);
  const Unlock unlock;
  mahal::structural_similarity_backward(params, first, second, grad, grad_first, grad_second,
                                        workspace_of(workspace), execution_of(threads, stream));
}

struct ChangeMap {
  mahal::ChangeMapParams params;

  ChangeMap(const std::string& metric, int window, const std::string& border, bool squared,
            bool center, int ddof, bool channel_divisor) {
    params.metric = metric_from_name("change_map", metric);
    params.window = window;
    params.border = map_border_from_name("change_map", border);
    params.squared = squared;
    params.center = center;
    params.ddof = ddof;
    params.channel_divisor = channel_divisor;
  }
};

std::size_t change_map_workspace(const Array& first, const Array& second, const std::string& metric,
                                 int window, const std::string& border, bool squared, bool center,
                                 int ddof, bool channel_divisor, int threads) {
  const ChangeMap call(metric, window, border, squared, center, ddof, channel_divisor);
  return mahal::change_map_workspace(call.params, first, second, threads);
}

void change_map(const Array& first, const Array& second, const Array& mask, const Array& score,
                const Array& status, const Array& workspace, const std::string& metric, int window,
                const std::string& border, bool squared, bool center, int ddof,
                bool channel_divisor, int threads, std::uintptr_t stream) {
  const ChangeMap call(metric, window, border, squared, center, ddof, channel_divisor);
  const Unlock unlock;
  mahal::change_map(call.params, first, second, mask, score, status, workspace_of(workspace),
                    execution_of(threads, stream));
}

std::size_t whiten_workspace(const Array& x, int threads) {
  return mahal::whiten_workspace(x, threads);
}

void whiten(const Array& x, const Array& mean, const Array& covariance, const Array& y,
            const Array& workspace, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::whiten(x, mean, covariance, y, workspace_of(workspace), execution_of(threads, stream));
}

std::size_t whiten_backward_workspace(const Array& y, int threads) {
  return mahal::whiten_backward_workspace(y, threads);
}

void whiten_backward(const Array& grad, const Array& y, const Array& covariance,
                     const Array& grad_x, const Array& grad_mean, const Array& grad_covariance,
                     const Array& workspace, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::whiten_backward(grad, y, covariance, grad_x, grad_mean, grad_covariance,
                         workspace_of(workspace), execution_of(threads, stream));
}

std::size_t mahalanobis_workspace(const Array& x, int threads) {
  return mahal::mahalanobis_workspace(x, threads);
}

void mahalanobis(const Array& x, const Array& mean, const Array& covariance, const Array& score,
                 const Array& workspace, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::mahalanobis(x, mean, covariance, score, workspace_of(workspace),
                     execution_of(threads, stream));
}

std::size_t mahalanobis_locations_workspace(const Array& x, int threads) {
  return mahal::mahalanobis_locations_workspace(x, threads);
}

void mahalanobis_locations(const Array& x, const Array& mean, const Array& covariance,
                           const Array& score, const Array& workspace, int threads,
                           std::uintptr_t stream) {
  const Unlock unlock;
  mahal::mahalanobis_locations(x, mean, covariance, score, workspace_of(workspace),
                               execution_of(threads, stream));
}

mahal::RxParams rx_params(Sides window, const std::string& border, bool load, bool center,
                          const EstimationFields& estimation) {
  mahal::RxParams params;
  params.window = window_of(window);
  params.border = border_from_name("rx", border);
  params.singular = load ? mahal::Singular::load : mahal::Singular::nan;
  params.center = center;
  params.estimation = estimation_of("rx", estimation);
  return params;
}

std::size_t rx_workspace(const Array& image, const Array& background, const Array& covariance,
                         Sides window, const std::string& border, bool center,
                         const EstimationFields& estimation, int threads) {
  return mahal::rx_workspace(rx_params(window, border, true, center, estimation), image, background,
                             covariance, threads);
}

// Lets Ctrl-C in, and tells a Python callable how far a call is.
void report_progress(void* context, std::int64_t done, std::int64_t total) {
  py::gil_scoped_acquire locked;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  const auto& callable = *static_cast<const py::object*>(context);
  if (!callable.is_none()) callable(done, total);
}

void rx(const Array& image, const Array& background, const Array& covariance, const Array& mask,
        const Array& score, const Array& status, const Array& workspace, Sides window,
        const std::string& border, bool load, bool center, const EstimationFields& estimation,
        int threads, std::uintptr_t stream, py::object progress, const Array& ticks) {
  mahal::RxParams params = rx_params(window, border, load, center, estimation);
  params.progress = {&report_progress, &progress};
  params.ticks = static_cast<std::uint64_t*>(ticks.view().data);
  const Unlock unlock;
  mahal::rx(params, image, background, covariance, mask, score, status, workspace_of(workspace),
            execution_of(threads, stream));
}

mahal::MatchedScore matched_score_from_name(const std::string& name) {
  if (name == "ace") return mahal::MatchedScore::ace;
  if (name == "signed_ace") return mahal::MatchedScore::signed_ace;
  if (name == "subspace_ace") return mahal::MatchedScore::subspace_ace;
  if (name == "filter") return mahal::MatchedScore::filter;
  if (name == "normalized_filter") return mahal::MatchedScore::normalized_filter;
  if (name == "cem") return mahal::MatchedScore::cem;
  if (name == "centered_cem") return mahal::MatchedScore::centered_cem;
  mahal::throw_value_error("matched", "score", "must be one of MatchedScore", quoted(name));
}

mahal::MatchedParams matched_params(const std::string& score, Sides window,
                                    const std::string& border, bool center, bool load,
                                    const EstimationFields& estimation) {
  mahal::MatchedParams params;
  params.estimation = estimation_of("matched", estimation);
  params.center = center;
  params.score = matched_score_from_name(score);
  params.window = window_of(window);
  params.border = border_from_name("matched", border);
  params.singular = load ? mahal::Singular::load : mahal::Singular::nan;
  return params;
}

std::size_t matched_workspace(const Array& image, const Array& target, const Array& background,
                              const Array& covariance, const std::string& score, Sides window,
                              const std::string& border, bool center,
                              const EstimationFields& estimation, int threads) {
  return mahal::matched_workspace(matched_params(score, window, border, center, true, estimation),
                                  image, target, background, covariance, threads);
}

void matched(const Array& image, const Array& target, const Array& background,
             const Array& covariance, const Array& mask, const Array& scores, const Array& status,
             const Array& workspace, const std::string& score, Sides window,
             const std::string& border, bool center, bool load, const EstimationFields& estimation,
             int threads, std::uintptr_t stream, py::object progress) {
  mahal::MatchedParams params = matched_params(score, window, border, center, load, estimation);
  params.progress = {&report_progress, &progress};
  const Unlock unlock;
  mahal::matched(params, image, target, background, covariance, mask, scores, status,
                 workspace_of(workspace), execution_of(threads, stream));
}

std::size_t spectral_angle_workspace(const Array& image, const Array& target, int threads) {
  return mahal::spectral_angle_workspace(image, target, threads);
}

void spectral_angle(const Array& image, const Array& target, const Array& angle,
                    const Array& workspace, int threads, std::uintptr_t stream) {
  const Unlock unlock;
  mahal::spectral_angle(image, target, angle, workspace_of(workspace),
                        execution_of(threads, stream));
}

std::size_t grf_workspace(const Array& field, const Array& slope, const Array& field_gradient,
                          int threads) {
  return mahal::grf_workspace(field, slope, field_gradient, threads);
}

using Terms = std::tuple<double, double, double>;

void set_terms(double (&terms)[3], const Terms& from) {
  std::tie(terms[0], terms[1], terms[2]) = from;
}

void grf(const Array& field, const Array& log_variance, const Array& precision, const Array& slope,
         const Array& weight, const Array& value, const Array& range_slope,
         const Array& variance_slope, const Array& field_gradient,
         const Array& log_variance_gradient, const Array& workspace, bool centered, double shift,
         const Terms& value_terms, const Terms& range_terms, const Terms& variance_terms,
         double field_scale, int threads, std::uintptr_t stream) {
  mahal::GrfParams params;
  params.centered = centered;
  params.shift = shift;
  set_terms(params.value, value_terms);
  set_terms(params.range_slope, range_terms);
  set_terms(params.variance_slope, variance_terms);
  params.field_scale = field_scale;
  const Unlock unlock;
  mahal::grf(params, field, log_variance, precision, slope, weight,
             {value, range_slope, variance_slope, field_gradient, log_variance_gradient},
             workspace_of(workspace), execution_of(threads, stream));
}

struct WindowEstimators {
  std::vector<mahal::Window> windows;
  mahal::WindowEstimatorsParams params;

  WindowEstimators(const std::string& caller, const std::vector<Sides>& sides,
                   const std::string& border, const EstimationFields& estimation, int ddof,
                   bool center) {
    for (const Sides& pair : sides) windows.push_back(window_of(pair));
    params.caller = caller.c_str();
    params.windows = windows.data();
    params.window_count = static_cast<int>(windows.size());
    params.border = border_from_name(params.caller, border);
    params.estimation = estimation_of(params.caller, estimation);
    params.ddof = ddof;
    params.center = center;
  }
};

std::size_t window_estimators_workspace(const std::string& caller, const Array& image,
                                        const std::vector<Sides>& windows,
                                        const std::string& border,
                                        const EstimationFields& estimation, int ddof, bool center,
                                        int threads) {
  const WindowEstimators call(caller, windows, border, estimation, ddof, center);
  return mahal::window_estimators_workspace(call.params, image, threads);
}

void window_estimators(const std::string& caller, const Array& image, const Array& mask,
                       const Array& mean, const Array& covariance, const Array& score,
                       const Array& status, const Array& workspace,
                       const std::vector<Sides>& windows, const std::string& border,
                       const EstimationFields& estimation, int ddof, bool center, int threads,
                       std::uintptr_t stream, py::object progress) {
  WindowEstimators call(caller, windows, border, estimation, ddof, center);
  call.params.progress = {&report_progress, &progress};
  const Unlock unlock;
  mahal::window_estimators(call.params, image, mask, mean, covariance, score, status,
                           workspace_of(workspace), execution_of(threads, stream));
}

mahal::WindowScoresBackwardParams window_scores_backward_params(const std::string& score,
                                                                Sides window,
                                                                const std::string& border,
                                                                bool center) {
  return {window_of(window), border_from_name("window_scores_backward", border),
          matched_score_from_name(score), center};
}

std::size_t window_scores_backward_workspace(const Array& image, const Array& target,
                                             const Array& covariance, const std::string& score,
                                             Sides window, const std::string& border, bool center,
                                             int threads) {
  return mahal::window_scores_backward_workspace(
      window_scores_backward_params(score, window, border, center), image, target, covariance,
      threads);
}

void window_scores_backward(const Array& image, const Array& target, const Array& covariance,
                            const Array& mask, const Array& status, const Array& score_gradient,
                            const Array& gradient, const Array& target_gradient,
                            const Array& covariance_gradient, const Array& workspace,
                            const std::string& score, Sides window, const std::string& border,
                            bool center, int threads, std::uintptr_t stream) {
  const auto params = window_scores_backward_params(score, window, border, center);
  const Unlock unlock;
  mahal::window_scores_backward(params, image, target, covariance, mask, status, score_gradient,
                                gradient, target_gradient, covariance_gradient,
                                workspace_of(workspace), execution_of(threads, stream));
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

  m.def("mean_covariance_workspace", &mean_covariance_workspace);
  m.def("mean_covariance", &mean_covariance);
  m.def("mean_covariance_backward_workspace", &mean_covariance_backward_workspace);
  m.def("mean_covariance_backward", &mean_covariance_backward);
  m.def("local_covariance_workspace", &local_covariance_workspace);
  m.def("local_covariance", &local_covariance);
  m.def("local_covariance_backward_workspace", &local_covariance_backward_workspace);
  m.def("local_covariance_backward", &local_covariance_backward);
  m.def("cholesky_workspace", &cholesky_workspace);
  m.def("cholesky", &cholesky);
  m.def("cholesky_backward_workspace", &cholesky_backward_workspace);
  m.def("cholesky_backward", &cholesky_backward);
  m.def("change_map_workspace", &change_map_workspace);
  m.def("change_map", &change_map);
  m.def("covariance_distance_workspace", &covariance_distance_workspace);
  m.def("covariance_distance", &covariance_distance);
  m.def("covariance_distance_backward_workspace", &covariance_distance_backward_workspace);
  m.def("covariance_distance_backward", &covariance_distance_backward);
  m.def("covariance_log_workspace", &covariance_log_workspace);
  m.def("covariance_log", &covariance_log);
  m.def("covariance_log_backward_workspace", &covariance_log_backward_workspace);
  m.def("covariance_log_backward", &covariance_log_backward);
  m.def("grf_workspace", &grf_workspace);
  m.def("grf", &grf);
  m.def("detector_backward_workspace", &detector_backward_workspace);
  m.def("detector_backward", &detector_backward);
  m.def("structural_similarity_workspace", &structural_similarity_workspace);
  m.def("structural_similarity", &structural_similarity);
  m.def("structural_similarity_backward_workspace", &structural_similarity_backward_workspace);
  m.def("structural_similarity_backward", &structural_similarity_backward);
  m.def("whiten_workspace", &whiten_workspace);
  m.def("whiten", &whiten);
  m.def("whiten_backward_workspace", &whiten_backward_workspace);
  m.def("whiten_backward", &whiten_backward);
  m.def("mahalanobis_workspace", &mahalanobis_workspace);
  m.def("mahalanobis", &mahalanobis);
  m.def("mahalanobis_locations_workspace", &mahalanobis_locations_workspace);
  m.def("mahalanobis_locations", &mahalanobis_locations);
  m.def("matched_workspace", &matched_workspace);
  m.def("matched", &matched);
  m.def("rx_workspace", &rx_workspace);
  m.def("rx", &rx);
  m.def("spectral_angle_workspace", &spectral_angle_workspace);
  m.def("spectral_angle", &spectral_angle);
  m.def("window_estimators_workspace", &window_estimators_workspace);
  m.def("window_estimators", &window_estimators);
  m.def("window_scores_backward_workspace", &window_scores_backward_workspace);
  m.def("window_scores_backward", &window_scores_backward);

  // For tests.
  m.def("_describe", &describe, py::arg("array"));
  m.def("_count_tasks", &count_tasks, py::arg("threads"), py::arg("tasks"), Unlocked());
}

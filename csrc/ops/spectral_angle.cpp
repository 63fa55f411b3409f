#include "mahal/spectral_angle.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/background.hpp"
#include "core/device_plan.hpp"
#include "core/dispatch.hpp"
#include "core/image_checks.hpp"
#include "core/threads.hpp"
#include "ops/spectral_angle_cuda.hpp"
#include "ops/spectral_angle_kernel.hpp"

namespace mahal {

namespace {

constexpr const char* op = "spectral_angle";

struct Plan {
  double* zeros;
  double* targets;
  double* chords;  // of the workers
  double* rows;
};

Plan make_plan(Scratch& scratch, const TensorView& image, const TensorView& target, int threads) {
  const std::int64_t padded = padded_bands(image.shape[image.rank - 1]);
  Plan p;
  p.zeros = scratch.take<double>(padded);
  p.targets = scratch.take<double>(target.shape[0] * padded);
  p.chords = scratch.take<double>(2 * pixels_per_task * target.shape[0] * threads);
  p.rows = scratch.take<double>(padded * threads);
  return p;
}

void check_inputs(const TensorView& image, const TensorView& target) {
  check_pixels(op, "image", image, {2, 3});
  check_dtype(op, "image", image, {DType::f32, DType::f64});
  check_targets(op, target, image);
}

struct DevicePlan {
  double* targets;
  double* tiles;
};

DevicePlan plan_device(Scratch& scratch, const TensorView& image, const TensorView& target) {
  const int bands = real_bands(image);
  DevicePlan p{};
  p.targets = scratch.take<double>(target.shape[0] * padded_rows(bands));
  p.tiles = plan_whiten_tiles(scratch, pixel_count(image), bands);
  return p;
}

// The CUDA kernels, on the device or in the emulator.
void launch(const DevicePlan& p, const TensorView& image, const TensorView& target,
            const TensorView& angle, Route route, std::uintptr_t stream) {
  const auto call = [&](auto units, auto angles) {
    dispatch_float(target.dtype,
                   [&]<class T>() { units(UnitLaunch<T>{device_pixels<T>(target), p.targets}); });
    dispatch_float(image.dtype, [&]<class T>() {
      angles(AngleLaunch<T>{device_pixels<T>(image), p.targets, static_cast<int>(target.shape[0]),
                            static_cast<T*>(angle.data), p.tiles});
    });
  };
  if constexpr (built_with_cuda) {
    if (route == Route::cuda) {
      call([&](const auto& a) { cuda::unit_targets(a, stream); },
           [&](const auto& a) { cuda::spectral_angle(a, stream); });
    }
  }
  if constexpr (built_with_emulator) {
    if (route == Route::emulator) {
      call([&](const auto& a) { emulator::unit_targets(a, stream); },
           [&](const auto& a) { emulator::spectral_angle(a, stream); });
    }
  }
}

}  // namespace

std::size_t spectral_angle_workspace(const TensorView& image, const TensorView& target,
                                     int threads) {
  check_inputs(image, target);
  Scratch scratch;
  if (runs_on_device(image.device)) {
    plan_device(scratch, image, target);
    return scratch.bytes();
  }
  make_plan(scratch, image, target, resolve_threads(op, threads));
  return scratch.bytes();
}

void spectral_angle(const TensorView& image, const TensorView& target, const TensorView& angle,
                    const Workspace& workspace, const Execution& execution) {
  check_inputs(image, target);
  const std::int64_t pixels = pixel_count(image);
  const int count = static_cast<int>(target.shape[0]);
  check_scores(op, "angle", angle, image.dtype, pixels * count);
  const Route route = select_route(op, execution, image.device, true);
  const int threads = resolve_threads(op, execution.threads);
  check_workspace(op, workspace, spectral_angle_workspace(image, target, threads));

  Scratch scratch(workspace);
  if (route != Route::cpu) {
    launch(plan_device(scratch, image, target), image, target, angle, route, execution.stream);
    return;
  }
  const Plan p = make_plan(scratch, image, target, threads);
  const std::int64_t padded = padded_bands(image.shape[image.rank - 1]);
  std::fill_n(p.zeros, padded, 0.0);
  load_targets(op, target, padded, p.targets);
  dispatch_isa([&]<Isa I>() {
    for (int k = 0; k < count; ++k) {
      double* row = p.targets + k * padded;
      if (std::all_of(row, row + padded, [](double v) { return v == 0; })) {
        throw_value_error(op, "target", "must not be zero",
                          "a zero spectrum at " + std::to_string(k));
      }
      SpectralAngleKernel<I>::normalize(row, static_cast<int>(padded));
    }
    dispatch_float(image.dtype, [&]<class T>() {
      const std::int64_t tasks = (pixels + pixels_per_task - 1) / pixels_per_task;
      parallel_for(threads, tasks, [&](std::int64_t task, int worker) {
        AngleBlock<T> block{};
        block.pixels = pixel_list<T>(image);
        block.begin = task * pixels_per_task;
        block.end = std::min(pixels, block.begin + pixels_per_task);
        block.zeros = p.zeros;
        block.targets = p.targets;
        block.count = count;
        block.chord = p.chords + 2 * pixels_per_task * count * worker;
        block.row = p.rows + padded * worker;
        SpectralAngleKernel<I>::chords(block);
        T* out = static_cast<T*>(angle.data) + block.begin * count;
        for (std::int64_t i = 0; i < (block.end - block.begin) * count; ++i) {
          // Exact at both ends of the range, where the arc cosine loses half of the digits.
          const double* chord = block.chord + 2 * i;
          out[i] = static_cast<T>(2 * std::atan2(std::sqrt(chord[0]), std::sqrt(chord[1])));
        }
      });
    });
  });
}

}  // namespace mahal

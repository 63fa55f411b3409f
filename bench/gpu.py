"""The CUDA kernels on a GPU: time, share of what the chip allows, rivals and error of every op.

    python bench/gpu.py              # builds this checkout for the GPU at hand, then measures
    python bench/gpu.py --installed  # measures the mahal that is installed
    python bench/gpu.py --dry-run    # tiny sizes on the CPU: does the script run?

Needs torch with CUDA; for the build CMake, Ninja, pybind11, scikit-build-core and nvcc, but no
network; cupy, where installed, is a rival and compiles the kernel that measures the arithmetic
peak. The build goes to a temporary folder.

The bound of an op is the larger of its bytes over the copy bandwidth and its operations over the
rate of fused multiply-adds, both measured first. Times are medians of CUDA events, with another
array written between runs, larger than the second-level cache. The error is that of float32 results
against mahal on the CPU in float64, relative to the largest value, on a smaller input of the kind.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
FLUSH_BYTES = 256 << 20

FMA = """
extern "C" __global__ void multiply_add(REAL* out, int rounds) {
  REAL sum[16];
  for (int i = 0; i < 16; ++i) sum[i] = threadIdx.x + i;
  const REAL factor = REAL(0.999), term = REAL(blockIdx.x);
  for (int r = 0; r < rounds; ++r) {
#pragma unroll
    for (int i = 0; i < 16; ++i) sum[i] = sum[i] * factor + term;
  }
  REAL total = 0;
  for (int i = 0; i < 16; ++i) total += sum[i];
  if (total == REAL(-1)) out[0] = total;
}
"""


@dataclass
class Op:
    """One line of the table.

    Attributes
    ----------
    name : str
        Function of mahal; the op is left out where there is none.
    case : str
        Sizes and options.
    arrays : callable
        Random generator and whether small to numpy arrays in float64.
    call : callable
        mahal and the arrays on a device to the result.
    bytes, flops : callable
        Arrays to what must be moved and computed at least, for float32.
    rivals : mapping
        Name to a function of the arrays on the device; those of cupy get cupy arrays.
    aim : float or None
        Seconds, or with ``of_copy`` the share of the copy bandwidth.
    """

    name: str
    case: str
    arrays: Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]
    call: Callable[..., Any]
    bytes: Callable[..., float]
    flops: Callable[..., float] = lambda *arrays: 0.0
    rivals: dict[str, Callable[..., Any]] = field(default_factory=dict)
    aim: float | None = None
    of_copy: bool = False


def scene(*shape: int) -> Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]:
    """Correlated bands about an offset; when small 24 pixels a side and 12 bands at most."""

    def make(rng: np.random.Generator, small: bool) -> tuple[np.ndarray, ...]:
        sides = (min(24, shape[0]), min(24, shape[1])) if small else shape[:2]
        bands = min(shape[2], 12) if small else shape[2]
        mixing = rng.standard_normal((bands, bands)) / np.sqrt(bands) + np.eye(bands)
        pixels = rng.standard_normal((sides[0] * sides[1], bands), dtype=np.float32)
        return ((pixels @ mixing.astype(np.float32) + 10.0).reshape(*sides, bands),)

    return make


def matrices(
    count: int, size: int, several: int = 1
) -> Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]:
    """Positive definite matrices, of which 64 differ."""

    def make(rng: np.random.Generator, small: bool) -> tuple[np.ndarray, ...]:
        def batch() -> np.ndarray:
            half = rng.standard_normal((64, size, size))
            some = half @ np.swapaxes(half, 1, 2) / size + np.eye(size)
            return np.tile(some, (1 if small else -(-count // 64), 1, 1))[: 64 if small else count]

        return tuple(batch() for _ in range(several))

    return make


def with_background(
    make: Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]],
) -> Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]:
    """An image with the mean and covariance of its pixels."""

    def both(rng: np.random.Generator, small: bool) -> tuple[np.ndarray, ...]:
        (image,) = make(rng, small)
        pixels = image.reshape(-1, image.shape[-1])
        return image, pixels.mean(axis=0), np.cov(pixels[:20000].T)

    return both


def with_target(
    make: Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]],
) -> Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]:
    """An image and a spectrum."""

    def both(rng: np.random.Generator, small: bool) -> tuple[np.ndarray, ...]:
        (image,) = make(rng, small)
        return image, image[0, 0] + rng.standard_normal(image.shape[-1])

    return both


def two(
    make: Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]],
) -> Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]:
    """Two images."""
    return lambda rng, small: (*make(rng, small), *make(rng, small))


def fields(rng: np.random.Generator, small: bool) -> tuple[np.ndarray, ...]:
    """Mean and log-variance of latent maps."""
    shape = (2, 3, 32, 32) if small else (16, 256, 32, 32)
    return rng.standard_normal(shape), rng.standard_normal(shape)


def once(*arrays: Any) -> float:
    """Bytes of the arrays, read once."""
    return float(sum(a.nbytes for a in arrays))


def factor_flops(a: Any) -> float:
    """Operations of the Cholesky factors of a batch."""
    n = a.shape[-1]
    return float(a.numel() // n**2) * (n**3 / 3 + n**2 / 2 + n / 6)


def window_flops(image: Any, *_: Any) -> float:
    """Of local RX: two sliding updates of 2 (5 + 21) samples, a factor and a solve per pixel."""
    rows, cols, n = image.shape
    return float(rows * cols) * (52 * n * (n + 1) + n**3 / 3 + 1.5 * n**2)


def torch_maps(image: Any) -> Any:
    """Covariance maps from box means of products, as a torch user would write them."""
    import torch

    planes = image.permute(2, 0, 1)
    planes = planes - planes.mean(dim=(1, 2), keepdim=True)
    i, j = torch.triu_indices(len(planes), len(planes)).unbind()
    means = torch.nn.functional.avg_pool2d(planes[None], 7, 1)[0]
    products = torch.nn.functional.avg_pool2d((planes[i] * planes[j])[None], 7, 1)[0]
    return (products - means[i] * means[j]) * (49 / 48)


def torch_local_rx(image: Any) -> Any:
    """Local RX by unfold, bmm and Cholesky, in chunks of rows; windows inside the image only."""
    import torch

    outer, inner = 21, 5
    rows, cols, bands = image.shape
    keep = torch.ones(outer, outer, dtype=torch.bool, device=image.device)
    low = (outer - inner) // 2
    keep[low : low + inner, low : low + inner] = False
    keep = keep.reshape(-1)
    half = outer // 2
    scores = []
    for first in range(0, rows - outer + 1, 4):
        strip = image[first : first + outer + 3]
        windows = strip.unfold(0, outer, 1).unfold(1, outer, 1)
        shape = windows.shape[:2]
        x = windows.reshape(-1, bands, outer * outer)[:, :, keep]
        mean = x.mean(dim=2, keepdim=True)
        x = x - mean
        covariance = torch.bmm(x, x.transpose(1, 2)) / (x.shape[2] - 1)
        factor = torch.linalg.cholesky_ex(covariance).L
        centre = image[first + half : first + half + shape[0], half : cols - half]
        d = centre.reshape(-1, bands, 1) - mean
        y = torch.linalg.solve_triangular(factor, d, upper=False)
        scores.append((y * y).sum(dim=(1, 2)))
    return torch.cat(scores)


def torch_kl(mean: Any, logvar: Any) -> Any:
    """The transforms alone of a divergence of fields."""
    import torch

    return torch.fft.rfft2(mean).abs().square().sum() + logvar.exp().sum() - logvar.sum()


def torch_distance(x: Any, mean: Any, covariance: Any) -> Any:
    """Squared Mahalanobis distances by a triangular solve."""
    import torch

    factor = torch.linalg.cholesky_ex(covariance).L
    d = (x - mean).reshape(-1, x.shape[-1]).T
    return torch.linalg.solve_triangular(factor, d, upper=False).square().sum(dim=0)


def torch_log(a: Any) -> Any:
    """Logarithms of matrices from their eigenvectors."""
    import torch

    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.log()[..., None, :]) @ vectors.mT


def pixels_of(image: Any) -> Any:
    """The pixels as columns."""
    return image.reshape(-1, image.shape[-1]).T


def torch_module() -> Any:
    """torch, imported when a rival runs."""
    return sys.modules["torch"]


def cupy_module() -> Any:
    """cupy, imported when a rival runs."""
    return sys.modules["cupy"]


def ops(tiny: bool) -> list[Op]:
    """All lines; tiny ones to try the script."""

    def size(large: int, small: int) -> int:
        return small if tiny else large

    map_side, side = size(2048, 24), size(512, 12)
    bands, some = size(162, 8), size(100, 12)
    local = {"window": (5, 21) if not tiny else (3, 7), "singular": "nan"}

    def matrix_rivals(*names: str) -> dict[str, Callable[..., Any]]:
        all_of_them: dict[str, Callable[..., Any]] = {
            "torch cholesky_ex": lambda a: torch_module().linalg.cholesky_ex(a).L,
            "torch cholesky": lambda a: torch_module().linalg.cholesky(a),
            "cupy cholesky": lambda a: cupy_module().linalg.cholesky(a),
        }
        return {name: all_of_them[name] for name in names or all_of_them}

    def cholesky(count: int, n: int, aim: float | None) -> Op:
        return Op(
            "cholesky",
            f"{count} x {n} x {n}",
            matrices(count, n),
            lambda m, a: m.cholesky(a, singular="nan"),
            lambda a: 2.0 * a.nbytes,
            factor_flops,
            matrix_rivals(),
            aim,
        )

    maps = [
        Op(
            "local_covariance",
            f"{map_side} x {map_side} x 8, window 7",
            scene(map_side, map_side, 8),
            lambda m, image: m.local_covariance(image, 7),
            lambda image: 10.0 * image.nbytes,
            rivals={"torch avg_pool2d": torch_maps},
            aim=0.8,
            of_copy=True,
        ),
        Op(
            "local_covariance",
            f"{map_side // 2} x {map_side // 2} x 8, windows 3, (1, 7), (5, 11)",
            scene(map_side // 2, map_side // 2, 8),
            lambda m, image: m.local_covariance(image, [3, (1, 7), (5, 11)]),
            lambda image: 28.0 * image.nbytes,
        ),
        Op(
            "local_covariance",
            f"{side} x {side} x 4, window 7, tyler",
            scene(side, side, 4),
            lambda m, image: m.local_covariance(image, 7, estimator="tyler", tolerance=1e-3),
            lambda image: 6.0 * image.nbytes,
        ),
    ]
    factors = [
        cholesky(size(100000, 70), size(32, 9), None if tiny else 240e-6),
        cholesky(size(10000, 4), size(162, 40), None if tiny else 0.8e-3),
    ]
    pixels = scene(side, side, bands)
    scores = [
        Op(
            "mean_covariance",
            f"{side} x {side} x {bands}",
            pixels,
            lambda m, image: m.mean_covariance(image),
            once,
            lambda image: float(image.numel()) * image.shape[-1],
            {
                "torch cov": lambda image: torch_module().cov(pixels_of(image)),
                "cupy cov": lambda image: cupy_module().cov(pixels_of(image)),
            },
        ),
        Op(
            "whiten",
            f"{side} x {side} x {bands}",
            with_background(pixels),
            lambda m, image, mean, covariance: m.whiten(image, mean, covariance),
            lambda image, *_: 2.0 * image.nbytes,
            lambda image, *_: float(image.numel()) * image.shape[-1],
        ),
        Op(
            "mahalanobis",
            f"{side} x {side} x {bands}",
            with_background(pixels),
            lambda m, image, mean, covariance: m.mahalanobis(image, mean, covariance),
            lambda image, *_: once(image),
            lambda image, *_: float(image.numel()) * image.shape[-1],
            {"torch solve_triangular": torch_distance},
        ),
        Op(
            "rx",
            f"{side} x {side} x {bands}",
            pixels,
            lambda m, image: m.rx(image),
            lambda image: 2.0 * image.nbytes,
            lambda image: 2.0 * image.numel() * image.shape[-1],
        ),
        Op(
            "rx",
            f"{some} x {some} x {bands}, window {local['window']}",
            scene(some, some, bands),
            lambda m, image: m.rx(image, **local),
            once,
            window_flops,
            {} if tiny else {"torch unfold + bmm + cholesky": torch_local_rx},
            None if tiny else 0.6e-3,
        ),
    ]
    targets = [
        Op(
            name,
            f"{side} x {side} x {bands}",
            with_target(pixels),
            lambda m, image, target, name=name: getattr(m, name)(image, target),
            # All but the angle first take the statistics of the image.
            lambda image, _, name=name: (1 + (name != "spectral_angle")) * once(image),
            lambda image, _, name=name: (name != "spectral_angle") * 2.0 * image.numel() * bands,
        )
        for name in ("ace", "matched_filter", "cem", "spectral_angle")
    ]
    targets.append(
        Op(
            "ace",
            f"{some} x {some} x {bands}, window {local['window']}",
            with_target(scene(some, some, bands)),
            lambda m, image, target: m.ace(image, target, **local),
            lambda image, _: once(image),
            window_flops,
        )
    )
    count = size(100000, 40)
    changes = [
        Op(
            "covariance_log",
            f"{count} x 8 x 8",
            matrices(count, 8),
            lambda m, a: m.covariance_log(a),
            lambda a: 2.0 * a.nbytes,
            rivals={"torch eigh": torch_log},
        ),
        *(
            Op(
                "covariance_distance",
                f"{count} x 8 x 8, {metric}",
                matrices(count, 8, 2),
                lambda m, a, b, metric=metric: m.covariance_distance(a, b, metric=metric),
                once,
            )
            for metric in ("affine_invariant", "logdet")
        ),
        Op(
            "change_map",
            f"{map_side // 2} x {map_side // 2} x 4, window 11, logeuclid",
            two(scene(map_side // 2, map_side // 2, 4)),
            lambda m, a, b: m.change_map(a, b, 11, metric="logeuclid"),
            once,
        ),
        Op(
            "structural_similarity",
            f"{map_side} x {map_side} x 1, window 11",
            two(scene(map_side, map_side, 1)),
            lambda m, a, b: m.structural_similarity(a[..., 0], b[..., 0], 11, data_range=10.0),
            lambda a, b: 1.5 * once(a, b),
        ),
        Op(
            "grf_kl",
            "2 x 3 x 32 x 32" if tiny else "16 x 256 x 32 x 32, value and gradients",
            lambda rng, small: fields(rng, small or tiny),
            lambda m, mean, logvar: m.grf_kl(
                mean, logvar, range=4.0, reduction="mean", gradients=True
            ),
            lambda mean, logvar: 2.0 * once(mean, logvar),
            rivals={"torch rfft2, value alone": torch_kl},
        ),
    ]
    return [*maps, *factors, *scores, *targets, *changes]


class Chip:
    """Where ops run, how they are timed, and what the chip allows."""

    def __init__(self, dry: bool, repeats: int) -> None:
        import torch

        self.torch = torch
        self.dry = dry
        self.repeats = 2 if dry else repeats
        self.device = "cpu" if dry else "cuda"
        self.flush = torch.empty(1 if dry else FLUSH_BYTES // 4, device=self.device)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Median time of a call, whose input is not in a cache."""
        for _ in range(1 if self.dry else 3):
            call()
        if self.dry:
            begin = time.perf_counter()
            call()
            return time.perf_counter() - begin
        cuda = self.torch.cuda
        times = []
        cuda.synchronize()
        while len(times) < self.repeats and sum(times) < 5.0:
            self.flush.zero_()
            # Time for the host to launch what is measured, so that only the device is.
            cuda._sleep(1_000_000)
            begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        return statistics.median(times)

    def copy_bandwidth(self) -> float:
        """Bytes read and written per second by a copy of 1 GiB."""
        count = 1 << (12 if self.dry else 28)
        source = self.torch.zeros(count, device=self.device)
        target = self.torch.empty_like(source)
        return 2.0 * source.nbytes / self.seconds(lambda: target.copy_(source))

    def arithmetic(self, dtype: str) -> tuple[float, str]:
        """Operations per second of fused multiply-adds, and how they were measured."""
        real = {"float32": "float", "float64": "double"}[dtype]
        if not self.dry and importlib.util.find_spec("cupy") is not None:
            import cupy

            kernel = cupy.RawKernel(FMA.replace("REAL", real), "multiply_add")
            stream = cupy.cuda.ExternalStream(self.torch.cuda.current_stream().cuda_stream)
            blocks, threads, rounds = 4096, 256, 4096
            out = cupy.empty(1, dtype=dtype)

            def run() -> None:
                with stream:
                    kernel((blocks,), (threads,), (out, np.int32(rounds)))

            return 2.0 * 16 * blocks * threads * rounds / self.seconds(run), "own kernel"
        n = 64 if self.dry else 8192
        a = self.torch.ones(n, n, dtype=getattr(self.torch, dtype), device=self.device)
        return 2.0 * n**3 / self.seconds(lambda: a @ a), "torch matmul"

    def describe(self) -> dict[str, Any]:
        """Name of the chip, driver and versions."""
        import mahal

        versions = {"torch": str(self.torch.__version__), "numpy": np.__version__}
        with contextlib.suppress(ImportError):
            import cupy

            versions["cupy"] = cupy.__version__
        facts: dict[str, Any] = {"versions": versions, "mahal": mahal.info()}
        if self.dry:
            return {"cpu": "the CPU, to try the script", **facts}
        chip = self.torch.cuda.get_device_properties(0)
        versions["CUDA of torch"] = str(self.torch.version.cuda)
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            versions["driver"] = answer.splitlines()[0].split(",")[0].strip()
            facts["clock"] = answer.splitlines()[0].split(",")[1].strip()
        return {
            "cpu": chip.name,
            "multiprocessors": chip.multi_processor_count,
            "memory": chip.total_memory,
            **facts,
        }


def parts_of(result: Any) -> list[Any]:
    """The arrays of a result: one, several, or those of a record."""
    if isinstance(result, tuple | list):
        return [part for one in result for part in parts_of(one)]
    return [] if result is None else [result]


def largest_error(chip: Chip, op: Op, rng: np.random.Generator) -> float:
    """Of float32 results on the device against mahal on the CPU in float64."""
    import mahal

    torch = chip.torch
    arrays = [a.astype(np.float32) for a in op.arrays(rng, True)]
    on_device = op.call(mahal, *(torch.from_numpy(a).to(chip.device) for a in arrays))
    with mahal.testing.backend("cpu"):
        exact = op.call(mahal, *(a.astype(np.float64) for a in arrays))
    worst = 0.0
    for found, want in zip(parts_of(on_device), parts_of(exact), strict=True):
        found, want = found.cpu().numpy(), np.asarray(want)
        if want.dtype.kind == "f" and np.isfinite(want).any():
            gap = np.nanmax(np.abs(found.astype(np.float64) - want))
            worst = max(worst, float(gap / max(np.nanmax(np.abs(want)), 1e-300)))
    return worst


def measure(chip: Chip, op: Op, copy: float, peak: float) -> Iterator[dict[str, Any]]:
    """Rows of one op: mahal, then the rivals."""
    import mahal

    torch = chip.torch
    rng = np.random.default_rng(0)
    arrays = [torch.from_numpy(a.astype(np.float32)).to(chip.device) for a in op.arrays(rng, False)]
    case = f"{op.name}, {op.case}"

    def row(name: str, seconds: float, facts: dict[str, Any]) -> dict[str, Any]:
        return {
            "case": case,
            "name": name,
            "threads": 1,
            "seconds": seconds,
            "median": seconds,
            "measured": "",
            "facts": facts,
        }

    # A first call shows what the kernels do not cover.
    op.call(mahal, *arrays)
    ours = chip.seconds(lambda: op.call(mahal, *arrays))
    bound = max(op.bytes(*arrays) / copy, op.flops(*arrays) / peak)
    facts = {"share of bound": bound / ours, "error": largest_error(chip, op, rng), "ratio": 1.0}
    aim = op.aim if not op.of_copy or op.aim is None else op.bytes(*arrays) / copy / op.aim
    if aim is not None:
        facts["aim, ms"] = 1e3 * aim
    yield row("mahal", ours, facts)
    for name, rival in op.rivals.items():
        inputs = arrays
        if name.startswith("cupy"):
            if chip.dry or importlib.util.find_spec("cupy") is None:
                continue
            import cupy

            inputs = [cupy.from_dlpack(a) for a in arrays]
            stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        else:
            stream = contextlib.nullcontext()
        try:
            with stream:
                seconds = chip.seconds(lambda rival=rival, inputs=inputs: rival(*inputs))
        except Exception as error:
            print(f"{case}, {name}: left out: {[*str(error).splitlines(), ''][0]}")
            continue
        yield row(name, seconds, {"ratio": seconds / ours})


def build() -> Path:
    """This checkout, built for the GPU at hand, in a temporary folder."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    target = Path(tempfile.mkdtemp(prefix="mahal-gpu-"))
    begin = time.perf_counter()
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps",
            "--no-index", "--target", str(target / "site"), str(ROOT),
            f"--config-settings=build-dir={target / 'build'}",
            "--config-settings=cmake.define.MAHAL_CUDA=ON",
            f"--config-settings=cmake.define.MAHAL_CUDA_ARCHITECTURES={major}{minor}-real",
        ],
        check=True,
        env={"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1), **os.environ},
    )  # fmt: skip
    print(f"built in {time.perf_counter() - begin:.0f} s: {target}")
    return target / "site"


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table as text."""
    facts = list(dict.fromkeys(k for r in rows for k in r["facts"]))
    lines = [["case", "implementation", "time, ms", *facts]]
    for r in rows:
        cells = [f"{r['facts'][k]:.3g}" if k in r["facts"] else "" for k in facts]
        lines.append([r["case"], r["name"], f"{1e3 * r['seconds']:.4g}", *cells])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    options.add_argument("--installed", action="store_true", help="measure the installed mahal")
    options.add_argument("--repeats", type=int, default=20, help="runs of every call")
    options.add_argument("--only", default="", help="ops whose case holds this regular expression")
    options.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    chosen = options.parse_args()
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        options.error("torch sees no CUDA device (--dry-run tries the script without one)")
    if not chosen.dry_run and not chosen.installed:
        paths = [str(build()), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--installed"], env=environment, check=False
        ).returncode

    import mahal
    import mahal.testing

    torch.backends.cuda.matmul.allow_tf32 = False
    warnings.simplefilter("ignore")
    chip = Chip(chosen.dry_run, chosen.repeats)
    copy = chip.copy_bandwidth()
    peak, how = chip.arithmetic("float32")
    double, _ = chip.arithmetic("float64")
    ceilings = {
        "copy, B/s": copy,
        f"float32 multiply-adds by {how}, flop/s": peak,
        f"float64 multiply-adds by {how}, flop/s": double,
    }
    for label, value in ceilings.items():
        print(f"{label}: {value:.4g}")
    rows: list[dict[str, Any]] = []
    backend = "emu" if chosen.dry_run and "emu" in mahal.testing.backends() else "cpu"
    for op in ops(chosen.dry_run):
        if not hasattr(mahal, op.name) or not re.search(chosen.only, f"{op.name}, {op.case}"):
            continue
        try:
            with mahal.testing.backend(backend):
                rows += measure(chip, op, copy, peak)
        except Exception as error:
            # What is not covered, or wrong, must not cost the other lines.
            print(f"{op.name}, {op.case}: left out: {[*str(error).splitlines(), ''][0]}")
        if not chosen.dry_run:
            torch.cuda.empty_cache()
    print_rows(rows)
    content = {
        "bench": "gpu",
        "environment": chip.describe(),
        "ceilings": ceilings,
        "rows": rows,
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Forward and backward of the differentiable ops against plain torch.

    python bench/bench_autograd.py

The rival is a composition of torch's own differentiable operations, in the dtype of the inputs. All
inputs get a gradient. Peaks are of memory beyond the inputs, each in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mahal
import numpy as np
import torch
from _harness import Candidate, Row, add_ratios, compare, finish, parser
from mahal.testing import random_spd

Loss = Callable[..., Any]


class Case(NamedTuple):
    """Two functions of the same tensors, made for a size; the second one small."""

    ours: Loss
    torch: Loss
    inputs: Callable[..., tuple[torch.Tensor, ...]]
    sizes: tuple[tuple[int, ...], tuple[int, ...]]


def plain_whiten(x: Any, mean: Any, covariance: Any) -> Any:
    """Rows of x, whitened."""
    factor = torch.linalg.cholesky(covariance)
    centred = (x.reshape(-1, x.shape[-1]) - mean).T
    return torch.linalg.solve_triangular(factor, centred, upper=False).T


def plain_background(x: Any) -> tuple[Any, Any]:
    """Mean and covariance of all pixels."""
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(0)
    moved = rows - mean
    return mean, moved.T @ moved / (len(rows) - 1)


def plain_ace(x: Any, target: Any) -> Any:
    """Squared cosines with one target."""
    mean, covariance = plain_background(x)
    both = plain_whiten(torch.cat([x.reshape(-1, x.shape[-1]), target[None]]), mean, covariance)
    y, w = both[:-1], both[-1]
    return (y @ w).square() / (y.square().sum(-1) * w.square().sum())


def plain_windows(x: Any, inner: int, outer: int) -> Any:
    """Samples of the window of every pixel: (rows, cols, samples, bands)."""
    half = outer // 2
    padded = torch.nn.functional.pad(x.permute(2, 0, 1)[None], [half] * 4, mode="reflect")[0]
    windows = padded.unfold(1, outer, 1).unfold(2, outer, 1).flatten(3).permute(1, 2, 3, 0)
    if inner == 0:
        return windows
    apart = torch.arange(outer).sub(half).abs()
    return windows[:, :, torch.maximum(apart[:, None], apart).flatten() > inner // 2]


def plain_moments(samples: Any) -> tuple[Any, Any]:
    """Means and covariances of windows."""
    mean = samples.mean(2)
    moved = samples - mean[:, :, None]
    return mean, moved.mT @ moved / (samples.shape[2] - 1)


def pooled_covariance(x: Any, side: int) -> Any:
    """Covariances of windows from mean products, which costs digits in float32."""
    half = side // 2

    def pooled(maps: Any) -> Any:
        padded = torch.nn.functional.pad(maps.permute(2, 0, 1)[None], [half] * 4, mode="reflect")
        return torch.nn.functional.avg_pool2d(padded, side, 1)[0].permute(1, 2, 0)

    x = x - x.mean((0, 1))
    mean = pooled(x)
    products = pooled((x[..., None] * x[..., None, :]).flatten(2)).unflatten(2, [x.shape[2]] * 2)
    return (products - mean[..., None] * mean[..., None, :]) * (side**2 / (side**2 - 1))


def plain_local_scores(x: Any, inner: int, outer: int, target: Any = None) -> Any:
    """RX or ACE of every pixel against its window."""
    mean, covariance = plain_moments(plain_windows(x, inner, outer))
    factor = torch.linalg.cholesky(covariance)
    y = torch.linalg.solve_triangular(factor, (x - mean)[..., None], upper=False)[..., 0]
    if target is None:
        return y.square().sum(-1)
    w = torch.linalg.solve_triangular(factor, (target - mean)[..., None], upper=False)[..., 0]
    return (w * y).sum(-1).square() / (w.square().sum(-1) * y.square().sum(-1))


def plain_log(a: Any) -> Any:
    """Logarithms through eigenvectors."""
    values, vectors = torch.linalg.eigh(a)
    return (vectors * values.log()[..., None, :]) @ vectors.mT


def plain_distance(a: Any, b: Any, metric: str) -> Any:
    """Squared distances of pairs of covariances."""
    if metric == "logeuclid":
        return (plain_log(a) - plain_log(b)).square().sum((-2, -1))
    factor = torch.linalg.cholesky(a)
    if metric == "affine_invariant":
        half = torch.linalg.solve_triangular(factor, b, upper=False)
        middle = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        return torch.linalg.eigvalsh(middle).log().square().sum(-1)
    middle = torch.linalg.eigvalsh(factor.mT @ b @ factor).sqrt().sum(-1)
    return (a + b).diagonal(dim1=-2, dim2=-1).sum(-1) - 2 * middle


def plain_similarity(x: Any, y: Any, side: int) -> Any:
    """Structural similarity with equal weights, (rows, cols, channels)."""
    planes = torch.cat([x, y, x * x, y * y, x * y], -1).permute(2, 0, 1)[None]
    padded = torch.nn.functional.pad(planes, [side // 2] * 4, mode="reflect")
    mx, my, xx, yy, xy = torch.nn.functional.avg_pool2d(padded, side, stride=1)[0].chunk(5)
    norm = side**2 / (side**2 - 1)
    c1, c2 = 0.01**2, 0.03**2
    common = 2 * norm * (xy - mx * my) + c2
    spread = norm * (xx + yy - mx * mx - my * my) + c2
    return (2 * mx * my + c1) * common / ((mx * mx + my * my + c1) * spread)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Seeded values."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def spd(bands: int) -> torch.Tensor:
    """A covariance."""
    matrix = random_spd(bands, 1e2, np.random.default_rng(1))
    return torch.from_numpy(matrix.astype(np.float32))


def matrices(batch: int, n: int) -> tuple[torch.Tensor, ...]:
    """Covariances of their own."""
    x = normal(batch, n, 2 * n)
    return (x @ x.mT / (2 * n) + 0.1 * torch.eye(n),)


def pairs(batch: int, n: int) -> tuple[torch.Tensor, ...]:
    """Two batches of covariances."""
    both = matrices(2 * batch, n)[0]
    return both[:batch].clone(), both[batch:].clone()


def fixed(*shape: int) -> tuple[torch.Tensor, ...]:
    """Pixels, mean and covariance."""
    return normal(*shape), 0.1 * normal(shape[-1], seed=2), spd(shape[-1])


CASES = {
    "cholesky": Case(mahal.cholesky, torch.linalg.cholesky, matrices, ((20000, 16), (50, 16))),
    "cholesky, large": Case(mahal.cholesky, torch.linalg.cholesky, matrices, ((8, 256), (2, 64))),
    "whiten": Case(mahal.whiten, plain_whiten, fixed, ((256, 256, 64), (16, 16, 64))),
    "mahalanobis": Case(
        mahal.mahalanobis,
        lambda *a: plain_whiten(*a).square().sum(-1),
        fixed,
        ((256, 256, 64), (16, 16, 64)),
    ),
    "rx": Case(
        mahal.rx,
        lambda x: plain_whiten(x, *plain_background(x)).square().sum(-1),
        lambda *shape: (normal(*shape),),
        ((256, 256, 64), (16, 16, 64)),
    ),
    "ace": Case(
        mahal.ace,
        plain_ace,
        lambda *shape: (normal(*shape), 1 + normal(shape[-1], seed=3)),
        ((256, 256, 64), (16, 16, 64)),
    ),
    "local_covariance": Case(
        lambda x: mahal.local_covariance(x, 11, border="reflect")[1],
        lambda x: plain_moments(plain_windows(x, 0, 11))[1],
        lambda *shape: (normal(*shape),),
        ((256, 256, 8), (16, 16, 8)),
    ),
    "local_covariance, pooled": Case(
        lambda x: mahal.local_covariance(x, 11, border="reflect")[1],
        lambda x: pooled_covariance(x, 11),
        lambda *shape: (normal(*shape),),
        ((256, 256, 8), (16, 16, 8)),
    ),
    "local rx": Case(
        lambda x: mahal.rx(x, window=(5, 21), border="reflect"),
        lambda x: plain_local_scores(x, 5, 21),
        lambda *shape: (normal(*shape),),
        ((64, 64, 30), (24, 24, 30)),
    ),
    "local ace": Case(
        lambda x, t: mahal.ace(x, t, window=(5, 21), border="reflect"),
        lambda x, t: plain_local_scores(x, 5, 21, t),
        lambda *shape: (normal(*shape), 1 + normal(shape[-1], seed=3)),
        ((64, 64, 30), (24, 24, 30)),
    ),
    **{
        f"covariance_distance, {metric}": Case(
            lambda a, b, metric=metric: mahal.covariance_distance(a, b, metric, squared=True),
            lambda a, b, metric=metric: plain_distance(a, b, metric),
            pairs,
            ((20000, 8), (50, 8)),
        )
        for metric in ("affine_invariant", "logeuclid", "wasserstein")
    },
    "covariance_log": Case(mahal.covariance_log, plain_log, matrices, ((20000, 8), (50, 8))),
    "structural_similarity": Case(
        lambda x, y: mahal.structural_similarity(x, y, 11, data_range=1.0, channels="each").permute(
            2, 0, 1
        ),
        lambda x, y: plain_similarity(x, y, 11),
        lambda *shape: (normal(*shape), normal(*shape, seed=4)),
        ((512, 512, 3), (32, 32, 3)),
    ),
}
NAMES = ("mahal", "torch")


def loss(output: torch.Tensor) -> torch.Tensor:
    """A number from the output of an op."""
    return (output.square() * (1 + output)).mean()


def step(case: str, name: str, size: tuple[int, ...]) -> Callable[[], Any]:
    """One forward and backward pass."""
    chosen = CASES[case]
    inputs = tuple(t.requires_grad_() for t in chosen.inputs(*size))
    function = chosen.ours if name == "mahal" else chosen.torch

    def run() -> Any:
        return torch.autograd.grad(loss(function(*inputs)), inputs)

    return run


def resident(field: str) -> int:
    """Memory of this process in bytes, as the kernel counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def report_peak(case: str, name: str, quick: bool) -> None:
    """Print the memory of one pass beyond its inputs."""
    torch.set_num_threads(1)
    mahal._core.set_default_threads(1)
    # A small pass loads the code first.
    step(case, name, CASES[case].sizes[1])()
    run = step(case, name, CASES[case].sizes[int(quick)])
    # Resets the peak, which a process otherwise inherits from its parent.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    run()
    print(resident("VmHWM") - before)


def peak(case: str, name: str, quick: bool) -> int:
    """The same, from a process of its own."""
    command = [sys.executable, __file__, "--peak", case, name, str(int(quick))]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def error(found: tuple[Any, ...], expected: tuple[Any, ...]) -> float:
    """Largest over all gradients, relative to the largest element of each."""
    return max(
        float((f.double() - e.double()).abs().max() / e.double().abs().max())
        for f, e in zip(found, expected, strict=True)
    )


def main() -> None:
    """Time all cases."""
    if sys.argv[1:2] == ["--peak"]:
        report_peak(sys.argv[2], sys.argv[3], sys.argv[4] == "1")
        return
    args = parser(__doc__).parse_args()
    rows: list[Row] = []
    for threads in args.threads:
        for case, chosen in CASES.items():
            size = chosen.sizes[int(args.quick)]
            label = f"{case} " + "x".join(map(str, size)) + " float32"
            runs = {name: step(case, name, size) for name in NAMES}
            found = compare(
                label,
                [Candidate(name, run) for name, run in runs.items()],
                threads=threads,
                repeats=args.repeats,
            )
            add_ratios(found)
            inputs = tuple(t.double().requires_grad_() for t in chosen.inputs(*size))
            exact = torch.autograd.grad(loss(chosen.torch(*inputs)), inputs)
            for row in found:
                if threads == args.threads[0]:
                    row.facts["peak MB"] = peak(case, row.name, args.quick) / 1e6
                    row.facts["error"] = error(runs[row.name](), exact)
            rows += found
    finish("autograd", rows, {})


if __name__ == "__main__":
    main()

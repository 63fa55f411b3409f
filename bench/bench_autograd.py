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

"""Whitening of all pixels of a scene with one covariance.

python bench/bench_whiten.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mahal
import numpy as np
import peaks
from _harness import Candidate, Row, add_ratios, compare, finish, isa, optional, parser
from mahal.testing import random_spd

SHAPES = ((512, 512, 8), (200, 200, 64), (100, 100, 162))

Finish = Callable[[Any], Any]


def problem(shape: tuple[int, ...], dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, mean and covariance."""
    rng = np.random.default_rng(0)
    bands = shape[-1]
    x = rng.standard_normal(shape).astype(dtype)
    mean = np.full(bands, 0.1, dtype=dtype)
    return x, mean, random_spd(bands, 1e3, rng).astype(dtype)


def numpy_program(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray, finish: Finish) -> Any:
    """Cholesky by numpy, one triangular solve by scipy for all pixels."""
    linalg: Any = optional("scipy.linalg")
    lower = np.linalg.cholesky(covariance)
    centred = (x.reshape(-1, x.shape[-1]) - mean).T
    return finish(linalg.solve_triangular(lower, centred, lower=True, check_finite=False))


def torch_program(torch: Any, x: Any, mean: Any, covariance: Any, finish: Finish) -> Any:
    """The same in torch."""
    lower = torch.linalg.cholesky(covariance)
    centred = (x.reshape(-1, x.shape[-1]) - mean).T
    return finish(torch.linalg.solve_triangular(lower, centred, upper=False))


def run(
    name: str,
    description: str | None,
    ours: Callable[..., Any],
    numpy_finish: Finish,
    torch_finish: Finish,
    written: int,
) -> None:
    """Time one op of pixels, mean and covariance.

    ``written`` is 1 when the result is as large as the pixels, and 0 when it is small.
    """
    args = parser(description).parse_args()
    torch = optional("torch")
    rows: list[Row] = []
    ceilings = {}
    cases = [(t, d, s) for t in args.threads for d in ("float32", "float64") for s in SHAPES]
    for threads, dtype, full in cases:
        shape = (full[0] // 4, full[1] // 4, full[2]) if args.quick else full
        arrays = problem(shape, dtype)
        peak = peaks.flops(isa(), arrays[0].itemsize, threads)
        ceilings[f"fused multiply-add {isa()} {dtype}, {threads} threads, flop/s"] = peak
        candidates = [
            Candidate("mahal", lambda a=arrays: ours(*a)),
            Candidate("numpy + scipy", lambda a=arrays: numpy_program(*a, numpy_finish)),
        ]
        if torch is not None:
            tensors = [torch.from_numpy(a) for a in arrays]
            candidates.append(
                Candidate("torch", lambda t=tensors: torch_program(torch, *t, torch_finish))
            )
        case = "x".join(map(str, shape)) + f" {dtype}"
        found = compare(case, candidates, threads=threads, repeats=args.repeats)
        add_ratios(found)
        x = arrays[0]
        arithmetic = x.size * shape[-1] / peak
        copy = peaks.bandwidth("copy", x.nbytes, threads)
        memory = (1 + written) * x.nbytes / copy
        found[0].facts["share of floor"] = max(arithmetic, memory) / found[0].seconds
        rows += found
    finish(name, rows, ceilings)


if __name__ == "__main__":
    run("whiten", __doc__, mahal.whiten, lambda white: white.T, lambda white: white.T, written=1)

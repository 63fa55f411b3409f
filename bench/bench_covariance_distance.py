"""Distances between covariance matrices: mahal and pyRiemann on the same batch, one process.

    python bench/bench_covariance_distance.py

Needs pyRiemann 0.12 or later for the comparison.
"""

from __future__ import annotations

import warnings
from typing import Any

import mahal
import numpy as np
from _harness import Candidate, Row, add_ratios, compare, finish, optional, parser

# Our name, and that of pyRiemann.
METRICS = {
    "frobenius": "euclid",
    "logeuclid": "logeuclid",
    "affine_invariant": "riemann",
    "logdet": "logdet",
    "wasserstein": "wasserstein",
    "symmetric_kl": "kullback_sym",
    "wishart": "",
}


def covariances(count: int, size: int, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Sample covariances of 3 p + 2 white samples."""
    samples = 3 * size + 2
    x: Any = rng.standard_normal((count, size, samples))
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(x.shape)
    return np.asarray(x @ x.conj().swapaxes(1, 2) / samples).astype(dtype)


def rows_of(count: int, size: int, dtype: str, threads: int, repeats: int) -> list[Row]:
    """All metrics on one batch."""
    rng = np.random.default_rng(size)
    a, b = (covariances(count, size, dtype, rng) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rival = optional("pyriemann.geometry.distance")
    rows = []
    for ours, theirs in METRICS.items():
        params = {"looks": 3 * size + 2} if ours == "wishart" else {}
        candidates = [
            Candidate("mahal", lambda m=ours, p=params: mahal.covariance_distance(a, b, m, **p))
        ]
        if rival is not None and theirs:
            function = getattr(rival, f"distance_{theirs}")
            candidates.append(Candidate("pyRiemann", lambda f=function: f(a, b)))
        case = f"{ours}, {count} pairs {size} x {size} {dtype}"
        some = compare(case, candidates, threads=threads, repeats=repeats, budget=10.0)
        add_ratios(some)
        some[0].facts["ns per pair"] = some[0].seconds / count * 1e9
        rows += some
    return rows


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(threads=[1])
    args = options.parse_args()
    count = 1000 if args.quick else 10_000
    rows = []
    for size in (3, 4, 10) if not args.quick else (4,):
        for dtype in ("float64", "complex128"):
            for threads in args.threads:
                rows += rows_of(count, size, dtype, threads, args.repeats)
    finish("covariance_distance", rows, {})


if __name__ == "__main__":
    main()

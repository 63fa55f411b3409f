"""Mean and covariance of all pixels of a scene.

    python bench/bench_mean_covariance.py

The ceiling is arithmetic: bands^2 operations per pixel for the triangle that is needed.
"""

from __future__ import annotations

import mahal
import numpy as np
import peaks
from _harness import Candidate, Row, add_ratios, compare, finish, isa, optional, parser

SHAPES = ((512, 512, 8), (200, 200, 64), (100, 100, 162))


def main() -> None:
    args = parser(__doc__).parse_args()
    rows: list[Row] = []
    ceilings = {}
    for threads in args.threads:
        for dtype, itemsize in (("float32", 4), ("float64", 8)):
            peak = peaks.flops(isa(), itemsize, threads)
            ceilings[f"fused multiply-add {isa()} {dtype}, {threads} threads, flop/s"] = peak
            for full in SHAPES:
                shape = (full[0] // 4, full[1] // 4, full[2]) if args.quick else full
                rng = np.random.default_rng(0)
                x = (rng.standard_normal(shape) + 10).astype(dtype)
                flat = x.reshape(-1, shape[-1])
                candidates = [
                    Candidate("mahal", lambda x=x: mahal.mean_covariance(x)),
                    Candidate(
                        "numpy.cov",
                        lambda flat=flat: (
                            flat.mean(axis=0),
                            np.cov(flat, rowvar=False, dtype=flat.dtype),
                        ),
                    ),
                ]
                torch = optional("torch")
                if torch is not None:
                    tensor = torch.from_numpy(flat)
                    candidates.append(
                        Candidate("torch.cov", lambda t=tensor: (t.mean(dim=0), t.T.cov()))
                    )
                case = "x".join(map(str, shape)) + f" {dtype}"
                found = compare(case, candidates, threads=threads, repeats=args.repeats)
                add_ratios(found)
                work = len(flat) * shape[-1] ** 2
                found[0].facts["share of FMA peak"] = work / found[0].seconds / peak
                exact = np.cov(flat, rowvar=False, dtype=np.float64)
                scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
                error = np.abs(mahal.mean_covariance(x)[1] - exact) / scale
                found[0].facts["largest error"] = float(error.max())
                rows += found
    finish("mean_covariance", rows, ceilings)


if __name__ == "__main__":
    main()

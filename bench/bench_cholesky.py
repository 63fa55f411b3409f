"""Batched Cholesky: the factor in cache, and end to end from and to row-major memory.

    python bench/bench_cholesky.py

The first table compiles the project's kernel on its own (needs the source tree) and sets it
against the fused multiply-add peak; the second calls mahal, torch and numpy on the same batch.
"""

from __future__ import annotations

import ctypes

import mahal
import numpy as np
import peaks
from _harness import Candidate, Row, add_ratios, compare, finish, isa, optional, parser

SIZES = (32, 64, 100, 128, 162, 200)
BATCH_BYTES = 64 << 20


def flops(n: int) -> float:
    """Operations of one factor."""
    return n**3 / 3 + n**2 / 2 + n / 6


def in_cache(repeats: int) -> list[Row]:
    """The interleaved factor alone, on matrices that stay in cache."""
    source = peaks.HERE.parent / "csrc"
    native = peaks.compile_library(
        "cholesky_kernel.cpp",
        f"-march={peaks.MARCH[isa()]}",
        "-ffp-contract=off",
        f"-I{source}",
        f"-I{source / 'include'}",
    )
    rows = []
    for name, itemsize in (("float", 4), ("double", 8)):
        call = getattr(native, f"cholesky_seconds_{name}")
        call.restype = ctypes.c_double
        peak = peaks.flops(isa(), itemsize)
        for n in SIZES:
            lanes = peaks.VECTOR_BITS[isa()] // 8 // itemsize
            rounds = max(1, int(2e8 / (flops(n) * lanes)))
            seconds = call(n, rounds, repeats)
            row = Row(f"n = {n} float{8 * itemsize} in cache", "mahal", 1, seconds, seconds)
            row.facts["GF/s"] = flops(n) / seconds / 1e9
            row.facts["share of FMA peak"] = flops(n) / seconds / peak
            rows.append(row)
    return rows


def end_to_end(n: int, dtype: str, threads: int, repeats: int, batch_bytes: int) -> list[Row]:
    """A batch in row-major memory, every library with its own function."""
    itemsize = np.dtype(dtype).itemsize
    count = max(16, batch_bytes // (n * n * itemsize))
    rng = np.random.default_rng(n)
    half = rng.standard_normal((min(count, 64), n, n), dtype=np.float64)
    some = half @ np.swapaxes(half, 1, 2) / n + np.eye(n)
    a = np.tile(some, (-(-count // len(some)), 1, 1))[:count].astype(dtype)
    out = np.zeros_like(a)
    fresh = [
        Candidate("mahal", lambda: mahal.cholesky(a)),
        Candidate("numpy", lambda: np.linalg.cholesky(a)),
    ]
    reused = [Candidate("mahal", lambda: mahal.cholesky(a, out=out))]
    torch = optional("torch")
    if torch is not None:
        tensor, factor = torch.from_numpy(a), torch.from_numpy(out)
        fresh.append(Candidate("torch", lambda: torch.linalg.cholesky(tensor)))
        reused.append(Candidate("torch", lambda: torch.linalg.cholesky(tensor, out=factor)))
    memory = 2 * a.nbytes / peaks.bandwidth("copy", a.nbytes, threads)
    arithmetic = count * flops(n) / peaks.flops(isa(), itemsize, threads)
    found = []
    for result, candidates in (("new result", fresh), ("out=", reused)):
        case = f"{count} x {n} x {n} {dtype}, {result}"
        rows = compare(case, candidates, threads=threads, repeats=repeats, budget=10.0)
        add_ratios(rows)
        rows[0].facts["share of floor"] = max(memory, arithmetic) / rows[0].seconds
        found += rows
    return found


def main() -> None:
    args = parser(__doc__).parse_args()
    rows = in_cache(args.repeats)
    batch_bytes = BATCH_BYTES // 16 if args.quick else BATCH_BYTES
    for dtype in ("float32", "float64"):
        for n in (8, 16, *SIZES):
            for threads in args.threads:
                rows += end_to_end(n, dtype, threads, args.repeats, batch_bytes)
    ceilings = {
        f"fused multiply-add {isa()} {name}, 1 thread, flop/s": peaks.flops(isa(), itemsize)
        for name, itemsize in (("float32", 4), ("float64", 8))
    }
    finish("cholesky", rows, ceilings)


if __name__ == "__main__":
    main()

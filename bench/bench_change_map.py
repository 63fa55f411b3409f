"""Change maps: mahal, the published loop over pixels, and box sums with numpy.

    python bench/bench_change_map.py

The published form forms both covariances of every pixel with numpy; a part of the image is run
and scaled. The box sums are those of products by cumulative sums in float64, without a loop.
"""

from __future__ import annotations

import mahal
import numpy as np
from _harness import Candidate, Row, add_ratios, compare, finish, parser

SIDE = 11
LOOP_PIXELS = 32  # side of the part that the loop runs on


def loop(first: np.ndarray, second: np.ndarray, side: int) -> np.ndarray:
    """Squared Frobenius score, pixel by pixel, in clipped windows."""
    half = side // 2
    rows, cols, channels = first.shape
    score = np.zeros((rows, cols))
    for r in range(rows):
        for c in range(cols):
            window = np.s_[max(r - half, 0) : r + half + 1, max(c - half, 0) : c + half + 1]
            a, b = (np.cov(x[window].reshape(-1, channels).T) for x in (first, second))
            score[r, c] = (np.abs(a - b) ** 2).sum()
    return score


def box(x: np.ndarray, side: int) -> np.ndarray:
    """Sums over clipped windows by cumulative sums."""
    half = side // 2
    for axis in (0, 1):
        n = x.shape[axis]
        total = np.cumsum(x, axis=axis, dtype=np.result_type(x, np.float64))
        total = np.concatenate([np.zeros_like(np.take(total, [0], axis)), total], axis)
        ends = np.minimum(np.arange(n) + half + 1, n)
        starts = np.maximum(np.arange(n) - half, 0)
        x = np.take(total, ends, axis) - np.take(total, starts, axis)
    return x


def boxes(first: np.ndarray, second: np.ndarray, side: int) -> np.ndarray:
    """The same score from box sums of the channels and of their products."""
    n = box(np.ones(first.shape[:2]), side)
    covariances = []
    for x in (first, second):
        x = x - x.mean(axis=(0, 1))
        sums = [box(x[..., j], side) for j in range(x.shape[-1])]
        covariances.append(
            [
                (box(x[..., i] * x[..., j].conj(), side) - sums[i] * sums[j].conj() / n) / (n - 1)
                for i in range(x.shape[-1])
                for j in range(i + 1)
            ]
        )
    score = np.zeros(first.shape[:2])
    weights = [1 if i == j else 2 for i in range(first.shape[-1]) for j in range(i + 1)]
    for weight, a, b in zip(weights, *covariances, strict=True):
        score += weight * np.abs(a - b) ** 2
    return score


def images(pixels: int, channels: int, dtype: str) -> list[np.ndarray]:
    """Two images of white noise."""
    rng = np.random.default_rng(channels)
    shape = (2, pixels, pixels, channels)
    x = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        x = x + 1j * rng.standard_normal(shape)
    return list(x.astype(dtype))


def rivals(pixels: int, channels: int, dtype: str, threads: int, repeats: int) -> list[Row]:
    """The published score by three ways."""
    first, second = images(pixels, channels, dtype)
    parts = [x[:LOOP_PIXELS, :LOOP_PIXELS] for x in (first, second)]
    candidates = [
        Candidate("mahal", lambda: mahal.change_map(first, second, SIDE)),
        Candidate("numpy box sums", lambda: boxes(first, second, SIDE)),
        Candidate(
            "published loop",
            lambda: loop(parts[0], parts[1], SIDE),
            scale=(pixels / LOOP_PIXELS) ** 2,
            measured=f"{LOOP_PIXELS} x {LOOP_PIXELS} pixels",
        ),
    ]
    case = f"frobenius, window {SIDE}, {pixels} x {pixels} x {channels} {dtype}"
    rows = compare(case, candidates, threads=threads, repeats=repeats, budget=10.0)
    add_ratios(rows)
    for row in rows:
        row.facts["ns per pixel"] = row.seconds / pixels**2 * 1e9
    return rows


def own(pixels: int, channels: int, dtype: str, threads: int, repeats: int) -> list[Row]:
    """Further metrics and a larger window."""
    first, second = images(pixels, channels, dtype)
    rows = []
    for metric, side in [("frobenius", 31), ("wishart", SIDE), ("affine_invariant", SIDE)]:
        case = f"{metric}, window {side}, {pixels} x {pixels} x {channels} {dtype}"
        candidate = Candidate(
            "mahal", lambda m=metric, s=side: mahal.change_map(first, second, s, metric=m)
        )
        some = compare(case, [candidate], threads=threads, repeats=repeats, budget=10.0)
        some[0].facts["ns per pixel"] = some[0].seconds / pixels**2 * 1e9
        rows += some
    return rows


def main() -> None:
    args = parser(__doc__).parse_args()
    pixels = 128 if args.quick else 512
    rows = []
    for channels, dtype in [(4, "float32"), (3, "complex64"), (4, "complex64")]:
        for threads in args.threads:
            rows += rivals(pixels, channels, dtype, threads, args.repeats)
            rows += own(pixels, channels, dtype, threads, args.repeats)
    finish("change_map", rows, {})


if __name__ == "__main__":
    main()

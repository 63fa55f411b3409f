"""ACE and matched filter of a 100 x 100 x 162 float32 scene, global and in windows of (5, 21).

Also local ACE of single-look radar, 256 x 256 x 3 complex64, mean zero, in windows of (5, 11).

    python bench/bench_matched.py

The scene is that of bench_rx. Everything from the user's array to the score map is timed. Slow
rivals run on some pixels only; the table says on how many and gives the time for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mahal
import numpy as np
from _harness import Candidate, Row, add_ratios, compare, finish, optional, parser
from bench_rx import INNER, OUTER, SPECTRAL_COLS, SPECTRAL_ROWS, ring, scene


def global_ace(image: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The careful numpy program: float64 statistics, Cholesky, one solve for all pixels."""
    linalg: Any = optional("scipy.linalg")
    pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
    mean = pixels.mean(axis=0)
    pixels -= mean
    lower = np.linalg.cholesky(pixels.T @ pixels / (len(pixels) - 1))
    y = linalg.solve_triangular(lower, pixels.T, lower=True, check_finite=False)
    w = linalg.solve_triangular(lower, (targets - mean).T, lower=True, check_finite=False)
    scores = (w.T @ y) ** 2 / (w**2).sum(axis=0)[:, None] / (y**2).sum(axis=0)
    return np.asarray(scores.T.reshape(*image.shape[:-1], len(targets)))


def global_filter(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The same for the matched filter, which needs one vector and no solve per pixel."""
    linalg: Any = optional("scipy.linalg")
    pixels = image.reshape(-1, image.shape[-1]).astype(np.float64)
    mean = pixels.mean(axis=0)
    pixels -= mean
    factor = linalg.cho_factor(pixels.T @ pixels / (len(pixels) - 1), lower=True)
    weights = linalg.cho_solve(factor, target - mean)
    scores = pixels @ weights / (weights @ (target - mean))
    return np.asarray(scores.reshape(image.shape[:-1]))


def local_ace(image: np.ndarray, pixels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """One Cholesky factor and two solves per pixel, float64."""
    linalg: Any = optional("scipy.linalg")
    scores = np.empty(len(pixels))
    for k, (row, col) in enumerate(pixels):
        samples = ring(image, row, col).astype(np.float64)
        mean = samples.mean(axis=0)
        samples -= mean
        lower = np.linalg.cholesky(samples.T @ samples / (len(samples) - 1))
        both = np.stack([image[row, col] - mean, target - mean], axis=1)
        y, w = linalg.solve_triangular(lower, both, lower=True, check_finite=False).T
        scores[k] = (w @ y) ** 2 / ((w @ w) * (y @ y))
    return scores


def radar_ace(image: np.ndarray, pixels: np.ndarray, target: np.ndarray) -> np.ndarray:
    """One matrix and one solve per pixel about a mean of zero, complex128."""
    scores = np.empty(len(pixels))
    for k, (row, col) in enumerate(pixels):
        samples = image[row - 5 : row + 6, col - 5 : col + 6].astype(np.complex128)
        keep = np.ones((11, 11), bool)
        keep[3:8, 3:8] = False
        z = samples[keep]
        x = samples[5, 5]
        solved = np.linalg.solve(z.T @ z.conj() / len(z), np.stack([x, target], axis=1))
        power = (x.conj() @ solved[:, 0]).real * (target.conj() @ solved[:, 1]).real
        scores[k] = abs(target.conj() @ solved[:, 0]) ** 2 / power
    return scores


def spectral_local(spectral: Any, image: np.ndarray, target: np.ndarray) -> Callable[[], Any]:
    """Spectral Python's ace on a block of pixels in the middle of the scene."""
    spectral.settings.show_progress = False
    detectors: Any = optional("spectral.algorithms.detectors")
    detector = detectors.ACE(target)
    top, left = image.shape[0] // 2 - SPECTRAL_ROWS // 2, image.shape[1] // 2

    def score(background: Any, x: np.ndarray) -> Any:
        detector.set_background(background)
        return detector(x)

    return lambda: spectral.map_outer_window_stats(
        score,
        image,
        INNER,
        OUTER,
        dim_out=1,
        rslice=(top, top + SPECTRAL_ROWS),
        cslice=(left, left + SPECTRAL_COLS),
    )


def main() -> None:
    args = parser(__doc__).parse_args()
    shape = (40, 44, 40) if args.quick else (100, 100, 162)
    rows, cols, bands = shape
    image = scene(*shape)
    rng = np.random.default_rng(2)
    targets = image[rng.integers(rows, size=10), rng.integers(cols, size=10)] * np.float32(1.1)
    target = targets[0]
    few = np.argwhere(np.ones((rows, cols), bool))[rng.choice(rows * cols, 64, replace=False)]
    size = f"{rows}x{cols}x{bands} float32"
    side = 64 if args.quick else 256
    white = rng.standard_normal((side, side, 3, 2)) @ np.array([1.0, 1.0j])
    slc = white.astype(np.complex64)
    steering = np.array([1.0, 1.0j, -1.0])
    inner = rng.integers(5, side - 5, (256, 2))
    spectral = optional("spectral")

    cases: dict[str, list[Candidate]] = {
        f"ACE, global, {size}": [
            Candidate("mahal", lambda: mahal.ace(image, target)),
            Candidate("numpy + Cholesky", lambda: global_ace(image, target[None])),
        ],
        f"ACE, global, 10 targets, {size}": [
            Candidate("mahal", lambda: mahal.ace(image, targets)),
            Candidate("numpy + Cholesky", lambda: global_ace(image, targets)),
        ],
        f"matched filter, global, {size}": [
            Candidate("mahal", lambda: mahal.matched_filter(image, target)),
            Candidate("numpy + Cholesky", lambda: global_filter(image, target)),
        ],
        f"ACE, window ({INNER}, {OUTER}), {size}": [
            Candidate("mahal", lambda: mahal.ace(image, target, window=(INNER, OUTER))),
            Candidate("mahal rx", lambda: mahal.rx(image, window=(INNER, OUTER))),
            Candidate(
                "numpy + Cholesky",
                lambda: local_ace(image, few, target),
                rows * cols / len(few),
                f"{len(few)} pixels",
            ),
        ],
        f"ACE, window ({INNER}, {OUTER}), 10 targets, {size}": [
            Candidate("mahal", lambda: mahal.ace(image, targets, window=(INNER, OUTER))),
        ],
        f"ACE, window (5, 11), mean zero, {side}x{side}x3 complex64": [
            Candidate("mahal", lambda: mahal.ace(slc, steering, window=(5, 11), center=False)),
            Candidate(
                "mahal tyler",
                lambda: mahal.ace(slc, steering, window=(5, 11), center=False, estimator="tyler"),
            ),
            Candidate(
                "numpy",
                lambda: radar_ace(slc, inner, steering),
                side * side / len(inner),
                f"{len(inner)} pixels",
            ),
        ],
    }
    if spectral is not None:
        name = f"SPy {spectral.__version__}"
        block = SPECTRAL_ROWS * SPECTRAL_COLS
        one, ten, filtered, local, *_ = cases.values()
        one.append(Candidate(name, lambda: spectral.ace(image, target)))
        ten.append(Candidate(name, lambda: spectral.ace(image, list(targets))))
        filtered.append(Candidate(name, lambda: spectral.matched_filter(image, target)))
        local.append(
            Candidate(
                name,
                spectral_local(spectral, image, target),
                rows * cols / block,
                f"{block} pixels",
            )
        )

    result: list[Row] = []
    for threads in args.threads:
        for case, candidates in cases.items():
            result += compare(case, candidates, threads=threads, repeats=args.repeats)
    add_ratios(result)
    exact = local_ace(image, few, target)
    scores = mahal.ace(image, target, window=(INNER, OUTER))[few[:, 0], few[:, 1]]
    local_row = next(row for row in result if "window" in row.case)
    local_row.facts["largest error"] = float(np.abs(scores - exact).max())
    finish("matched", result, {})


if __name__ == "__main__":
    main()

"""Local RX of a 100 x 100 x 162 float32 scene, window (5, 21), end to end.

    python bench/bench_rx.py [--spectral-024 FOLDER]

Everything from the user's array to the score map is timed: whitening, re-layout, allocation.
Slow rivals run on some pixels only; the table says on how many and gives the time for all.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import mahal
import numpy as np
import peaks
from _harness import (
    Candidate,
    Row,
    add_ratios,
    compare,
    finish,
    isa,
    optional,
    parser,
    spectral_from,
)
from mahal.testing import reference

INNER, OUTER = 5, 21


def scene(rows: int, cols: int, bands: int) -> np.ndarray:
    """Smooth spectra, four materials with soft borders and band noise, float32."""
    rng = np.random.default_rng(0)
    wavelength = np.linspace(0.0, 1.0, bands)
    centres, widths = rng.random((24, 1)), 0.05 + 0.2 * rng.random((24, 1))
    shapes = np.exp(-(((wavelength - centres) / widths) ** 2))
    materials = 0.3 + 0.4 * rng.random((4, 24)) @ shapes / 24
    r, c = np.mgrid[0:rows, 0:cols] / max(rows, cols)
    fields = np.stack([np.sin(3 * r + k) + np.cos(4 * c - k) for k in range(4)], axis=-1)
    shares = np.exp(2 * fields) / np.exp(2 * fields).sum(axis=-1, keepdims=True)
    texture = 0.01 * rng.standard_normal((rows, cols, 24)) @ shapes
    noise = 0.002 * rng.standard_normal((rows, cols, bands))
    return (shares @ materials + texture + noise).astype(np.float32)


def flops(bands: int) -> float:
    """Operations of one Cholesky factor and one forward substitution."""
    return bands**3 / 3 + bands**2 / 2 + bands / 6 + bands**2


def ring(image: np.ndarray, row: int, col: int) -> np.ndarray:
    """Background samples of one pixel by the rule of Spectral Python."""
    rows, cols, bands = image.shape
    index = reference.ring_indices(row, col, rows, cols, (INNER, OUTER))
    return image.reshape(-1, bands)[index]


def numpy_loop(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The careful numpy program: float64, one Cholesky and one solve per pixel."""
    linalg: Any = optional("scipy.linalg")
    scores = np.empty(len(pixels))
    for k, (row, col) in enumerate(pixels):
        samples = ring(image, row, col).astype(np.float64)
        mean = samples.mean(axis=0)
        samples -= mean
        lower = np.linalg.cholesky(samples.T @ samples / (len(samples) - 1))
        difference = image[row, col] - mean
        white = linalg.solve_triangular(lower, difference, lower=True, check_finite=False)
        scores[k] = white @ white
    return scores


def torch_batch(torch: Any, image: Any, index: Any, pixels: Any) -> Any:
    """The batched torch program: gather, bmm, cholesky, triangular solve, in float32."""
    flat = image.reshape(-1, image.shape[-1])
    samples = flat[index]
    mean = samples.mean(dim=1, keepdim=True)
    samples = samples - mean
    covariance = torch.bmm(samples.transpose(1, 2), samples) / (index.shape[1] - 1)
    lower = torch.linalg.cholesky_ex(covariance)[0]
    difference = (flat[pixels] - mean[:, 0]).unsqueeze(-1)
    white = torch.linalg.solve_triangular(lower, difference, upper=False)
    return (white[..., 0] ** 2).sum(dim=1)


# Spectral Python cannot run less than ten rows at once.
SPECTRAL_ROWS, SPECTRAL_COLS = 10, 5


def spectral_call(spectral: Any, image: np.ndarray) -> Callable[[], Any]:
    """Spectral Python's rx on a block of pixels in the middle of the scene."""
    spectral.settings.show_progress = False
    detector = spectral.RX()
    top, left = image.shape[0] // 2 - SPECTRAL_ROWS // 2, image.shape[1] // 2

    def score(background: Any, x: np.ndarray) -> Any:
        detector.set_background(background)
        return detector(x)

    def call() -> Any:
        return spectral.map_outer_window_stats(
            score,
            image,
            INNER,
            OUTER,
            dim_out=1,
            rslice=(top, top + SPECTRAL_ROWS),
            cslice=(left, left + SPECTRAL_COLS),
        )

    return call


MEMORY = """
import sys
import numpy as np
import mahal
rows, cols, bands, threads = map(int, sys.argv[1:])
def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024
image = np.random.default_rng(0).standard_normal((rows, cols, bands), dtype=np.float32)
mahal.rx(image[:30, :30].copy(), window=(5, 21), threads=threads)
with open("/proc/self/clear_refs", "w") as control:
    control.write("5")
before = status("VmRSS")
scores = mahal.rx(image, window=(5, 21), threads=threads)
print("extra", status("VmHWM") - before - scores.nbytes)
"""


def extra_memory(shape: tuple[int, int, int], threads: int) -> float:
    """Peak memory beyond image and scores, in sizes of the image, in a process of its own."""
    command = [sys.executable, "-c", MEMORY, *map(str, (*shape, threads))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"extra (-?\d+)", output)
    assert found is not None
    return max(0, int(found.group(1))) / (4 * np.prod(shape))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--spectral-024", metavar="FOLDER", help="spectral 0.24 from there")
    args = options.parse_args()
    shape = (40, 44, 40) if args.quick else (100, 100, 162)
    rows, cols, bands = shape
    image = scene(*shape)
    total = rows * cols
    rng = np.random.default_rng(1)
    few = np.argwhere(np.ones((rows, cols), bool))[rng.choice(total, 64, replace=False)]
    case = f"{rows}x{cols}x{bands} float32, window ({INNER}, {OUTER})"

    candidates = [
        Candidate("mahal", lambda: mahal.rx(image, window=(INNER, OUTER))),
        Candidate(
            "numpy + Cholesky",
            lambda: numpy_loop(image, few),
            total / len(few),
            f"{len(few)} pixels",
        ),
    ]
    torch = optional("torch")
    if torch is not None:
        index = torch.from_numpy(
            np.stack([reference.ring_indices(r, c, rows, cols, (INNER, OUTER)) for r, c in few])
        )
        index = index.repeat(4, 1)
        chosen = torch.from_numpy(few[:, 0] * cols + few[:, 1]).repeat(4)
        tensor = torch.from_numpy(image)
        candidates.append(
            Candidate(
                "torch batched",
                lambda: torch_batch(torch, tensor, index, chosen),
                total / len(index),
                f"{len(index)} pixels",
            )
        )
    block = SPECTRAL_ROWS * SPECTRAL_COLS
    rivals = [optional("spectral")]
    rivals += [spectral_from(args.spectral_024)] if args.spectral_024 else []
    candidates += [
        Candidate(
            f"SPy {spectral.__version__}",
            spectral_call(spectral, image),
            total / block,
            f"{block} pixels",
        )
        for spectral in rivals
        if spectral is not None
    ]

    result: list[Row] = []
    ceilings: dict[str, float] = {}
    for threads in args.threads:
        peak = peaks.flops(isa(), 4, threads)
        ceilings[f"fused multiply-add {isa()} float32, {threads} threads, flop/s"] = peak
        found = compare(case, candidates, threads=threads, repeats=args.repeats)
        add_ratios(found)
        ours = found[0]
        ours.facts["share of Cholesky + solve floor"] = total * flops(bands) / peak / ours.seconds
        ours.facts["extra memory, images"] = extra_memory(shape, threads)
        result += found
    scores = mahal.rx(image, window=(INNER, OUTER))
    exact = numpy_loop(image, few)
    errors = np.abs(scores[few[:, 0], few[:, 1]] - exact) / exact
    result[0].facts["median error"] = float(np.median(errors))
    result[0].facts["largest error"] = float(errors.max())
    if len(args.threads) > 1:
        ours = [row for row in result if row.name == "mahal"]
        ours[-1].facts["speed-up"] = ours[0].seconds / ours[-1].seconds
    finish("rx", result, ceilings)


if __name__ == "__main__":
    main()

"""Covariance maps of a 512 x 512 x 8 float32 image for windows of 5 to 31.

    python bench/bench_local_covariance.py

The result is 64 times as large per pixel as the image is per band, so the ceiling is the
bandwidth of memory: bytes of image, means and covariances over the copy rate at that size.
"""

from __future__ import annotations

from typing import Any

import mahal
import numpy as np
import peaks
from _harness import Candidate, Row, add_ratios, compare, finish, optional, parser

WINDOWS = (5, 7, 11, 15, 21, 31)


def integral_image(image: np.ndarray, window: int) -> np.ndarray:
    """Interior covariances by float64 prefix sums of the products of all band pairs."""
    bands = image.shape[-1]
    work = image.astype(np.float64)
    work -= work.mean(axis=(0, 1))
    first, second = np.triu_indices(bands)
    planes = np.concatenate([work, work[..., first] * work[..., second]], axis=-1)
    sums = np.zeros((planes.shape[0] + 1, planes.shape[1] + 1, planes.shape[2]))
    np.cumsum(np.cumsum(planes, axis=0), axis=1, out=sums[1:, 1:])
    w = window
    box = sums[w:, w:] - sums[:-w, w:] - sums[w:, :-w] + sums[:-w, :-w]
    count = window * window
    mean = box[..., :bands] / count
    packed = box[..., bands:] / (count - 1)
    packed -= mean[..., first] * mean[..., second] * (count / (count - 1))
    full = np.empty((*packed.shape[:2], bands, bands), dtype=image.dtype)
    full[..., first, second] = full[..., second, first] = packed
    return full


def average_pooling(torch: Any, image: Any, window: int) -> Any:
    """Interior covariances by average pooling of all band pairs, left packed."""
    bands = image.shape[-1]
    planes = image.permute(2, 0, 1)
    planes = planes - planes.mean(dim=(1, 2), keepdim=True)
    first, second = torch.triu_indices(bands, bands)
    stacked = torch.cat([planes, planes[first] * planes[second]])[None]
    pooled = torch.nn.functional.avg_pool2d(stacked, window, stride=1)[0]
    mean = pooled[:bands]
    count = window * window
    return (pooled[bands:] - mean[first] * mean[second]) * (count / (count - 1))


def main() -> None:
    args = parser(__doc__).parse_args()
    side = 96 if args.quick else 512
    shape = (side, side, 8)
    image = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) + 10
    pixels = side * side
    output = pixels * (8 * 8 + 8) * 4
    torch = optional("torch")
    tensor = None if torch is None else torch.from_numpy(image)
    rows: list[Row] = []
    ceilings = {}
    for threads in args.threads:
        copy = peaks.bandwidth("copy", output // 2, threads)
        store = peaks.bandwidth("store", output, threads)
        ceilings[f"copy of {output >> 20} MiB, {threads} threads, B/s"] = copy
        ceilings[f"store of {output >> 20} MiB, {threads} threads, B/s"] = store
        for window in WINDOWS:
            candidates = [
                Candidate("mahal", lambda w=window: mahal.local_covariance(image, w)),
                Candidate("numpy integral image", lambda w=window: integral_image(image, w)),
            ]
            if torch is not None:
                candidates.append(
                    Candidate(
                        "torch avg_pool2d, packed",
                        lambda w=window: average_pooling(torch, tensor, w),
                    )
                )
            case = f"{side}x{side}x8 float32, window {window}"
            settings: dict[str, Any] = {"threads": threads, "repeats": args.repeats}
            found = compare(case, candidates, budget=15.0, **settings)
            add_ratios(found)
            out = mahal.local_covariance(image, window)
            reused = Candidate(
                "mahal", lambda w=window, o=out: mahal.local_covariance(image, w, out=o)
            )
            found += compare(f"{case}, out=", [reused], **settings)
            moved = output + image.nbytes
            for row in (found[0], found[-1]):
                row.facts["GB/s"] = moved / row.seconds / 1e9
                row.facts["share of copy"] = moved / row.seconds / copy
                row.facts["share of store"] = output / row.seconds / store
            rows += found
        several = compare(
            f"{side}x{side}x8 float32, windows 5, 11, 21 in one call",
            [Candidate("mahal", lambda: mahal.local_covariance(image, [5, 11, 21]))],
            threads=threads,
            repeats=args.repeats,
        )
        several[0].facts["GB/s"] = (3 * output + image.nbytes) / several[0].seconds / 1e9
        rows += several
    finish("local_covariance", rows, ceilings)


if __name__ == "__main__":
    main()

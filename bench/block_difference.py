"""How far scores of blocks are from those of the whole image.

python bench/block_difference.py [--out bench/results/block_difference.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import dask
import dask.array
import mahal
import numpy as np
from mahal import blocks, scenes

SIDE, CHUNK, BANDS = 160, 48, 60
WINDOW = (5, 21)


def calls(target):
    """Name, function and arguments after the image, and options."""
    return [
        ("rx, global", "rx", (), {}),
        ("ace, global", "ace", (target,), {}),
        ("matched_filter, global", "matched_filter", (target,), {}),
        ("cem", "cem", (target,), {}),
        ("spectral_angle", "spectral_angle", (target,), {}),
        ("rx, window", "rx", (), {"window": WINDOW}),
        ("ace, window", "ace", (target,), {"window": WINDOW}),
        ("matched_filter, window", "matched_filter", (target,), {"window": WINDOW}),
        ("rx, window, covariance given", "rx", (), {"window": WINDOW, "covariance": np.eye(BANDS)}),
        ("rx, window, oas", "rx", (), {"window": WINDOW, "estimator": "oas"}),
        ("ace, window, uncentred", "ace", (target,), {"window": WINDOW, "center": False}),
        ("fused_rx", "fused_rx", (), {}),
        ("local_covariance", "local_covariance", (21,), {}),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench/results/block_difference.json"))
    args = parser.parse_args()
    image = scenes.simulate(SIDE, SIDE, BANDS, seed=1).image.astype(np.float32)
    lazy = dask.array.from_array(image, chunks=(CHUNK, CHUNK, BANDS))
    rows = []

    def compare(name, whole, found):
        whole = whole[1] if isinstance(whole, tuple) else whole
        found = found[1] if isinstance(found, tuple) else found
        (found,) = dask.compute(found)
        size = np.abs(whole)
        rows.append(
            {
                "case": name,
                "share_identical": float(np.mean(found == whole)),
                "largest_difference": float(np.nanmax(np.abs(found - whole))),
                "of_the_median": float(np.nanmax(np.abs(found - whole)) / np.nanmedian(size)),
            }
        )
        print(json.dumps(rows[-1]), flush=True)

    for name, op, more, options in calls(image[40, 50].astype(np.float64) + 50):
        compare(
            name,
            getattr(mahal, op)(image, *more, **options),
            getattr(blocks, op)(lazy, *more, **options),
        )
    first, second = image[..., :4], image[::-1, :, :4].copy()
    lazies = [dask.array.from_array(one, chunks=(CHUNK, CHUNK, 4)) for one in (first, second)]
    compare("change_map", mahal.change_map(first, second, 11), blocks.change_map(*lazies, 11))
    span = {"data_range": float(np.ptp(image))}
    compare(
        "structural_similarity",
        mahal.structural_similarity(first, second, **span),
        blocks.structural_similarity(*lazies, **span),
    )
    content = {"rows": SIDE, "cols": SIDE, "bands": BANDS, "chunk": CHUNK, "cases": rows}
    args.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

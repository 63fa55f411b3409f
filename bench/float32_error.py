"""Error of local RX in float32 against float64 on public scenes.

    python bench/float32_error.py FOLDER [--window INNER OUTER]

FOLDER holds scenes that `mahal.scenes.read` knows; one line each, relative errors over all pixels
with a regular window.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import mahal
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--window", type=int, nargs=2, default=(5, 21))
    args = parser.parse_args()
    print("| scene | size | singular | median | 99 % | largest |")
    print("|---|---|--:|--:|--:|--:|")
    for path in sorted(args.folder.glob("*.mat")):
        try:
            scene = mahal.scenes.read(path)
        except mahal.scenes.SceneError:
            continue
        image = scene.image.astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mahal.SingularWarning)
            window = tuple(args.window)
            exact, status = mahal.rx(image, window=window, return_status=True)
            single = mahal.rx(image.astype(np.float32), window=window)
        regular = status == 0
        error = np.abs(single - exact)[regular] / exact[regular]
        size = " x ".join(map(str, image.shape))
        figures = " | ".join(f"{q:.1e}" for q in np.quantile(error, [0.5, 0.99, 1.0]))
        print(f"| {scene.name} | {size} | {int((status == 2).sum())} | {figures} |")


if __name__ == "__main__":
    main()

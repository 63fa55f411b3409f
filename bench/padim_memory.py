"""Memory and time of the statistics of PaDiM, with made-up feature maps.

    python bench/padim_memory.py --dimensions 550 --locations 56 --images 128

prints the highest resident memory of the process and the processor time of the steps.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mahal.models import PadimACE


def peak() -> float:
    """Highest resident memory so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """Fit, score and save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dimensions", type=int, default=550)
    parser.add_argument("--locations", type=int, default=56, help="rows and columns of the grid")
    parser.add_argument("--images", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    side, d = arguments.locations, arguments.dimensions
    random = torch.Generator().manual_seed(0)

    def features(x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.randn(len(x), d, side, side, generator=random)]

    images = [np.zeros((4 * side, 4 * side), np.uint8)] * arguments.images
    print(f"before: {peak():.2f} GB")
    begin = time.process_time()
    model = PadimACE(backbone=features, dimensions=d, score_kind="mahalanobis", batch_size=16)
    pictures = model._read_many("fit", images, None)
    model._fit(pictures, False, None, {})
    print(f"statistics and factors: {time.process_time() - begin:.1f} s, {peak():.2f} GB")
    begin = time.process_time()
    model.score(images[0])
    print(f"one image: {time.process_time() - begin:.2f} s, {peak():.2f} GB")
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        size = path.stat().st_size / 1e9
    print(f"file of {size:.2f} GB: {time.process_time() - begin:.1f} s, {peak():.2f} GB")


if __name__ == "__main__":
    main()

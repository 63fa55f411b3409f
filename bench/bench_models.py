"""Hyperspectral models: time of fit and score on a scene, and where the time of the training goes.

    python bench/bench_models.py [--rows 100 --cols 100 --bands 200]

The scene is simulated, the parameters are the defaults. Lightning's profiler tells how long the
trainer waits for batches (the data path) and how long it computes on them.
"""

from __future__ import annotations

import time
import warnings

import _harness
from lightning.pytorch.profilers import SimpleProfiler
from mahal import models, scenes

DATA_PATH = ("train_dataloader_next", ".batch_to_device")


def profile(profiler: SimpleProfiler) -> dict[str, float]:
    """Shares of the training: waiting for batches, computing on them, and the rest."""
    sums = {"data": 0.0, "batches": 0.0}
    for name, seconds in profiler.recorded_durations.items():
        if name.endswith(DATA_PATH):
            sums["data"] += sum(seconds)
        elif name == "run_training_batch":
            sums["batches"] += sum(seconds)
    return sums


def main() -> None:
    parser = _harness.parser(__doc__)
    for name, size in (("rows", 100), ("cols", 100), ("bands", 200)):
        parser.add_argument(f"--{name}", type=int, default=size)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.cols, args.bands = 30, 30, 40
    scene = scenes.simulate(args.rows, args.cols, args.bands, seed=0)
    image = scene.image.astype("float32")
    rows = []
    for model in (models.SpectralAutoencoder(), models.SpectralVAE(), models.MTGAN()):
        profiler = SimpleProfiler()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            begin = time.perf_counter()
            model.fit(image, trainer={"profiler": profiler})
            fitted = time.perf_counter()
            model.score(image)
            end = time.perf_counter()
        sums = profile(profiler)
        facts = {
            "fit": _harness.show_seconds(fitted - begin),
            "score": _harness.show_seconds(end - fitted),
            "share in batches": sums["batches"] / (fitted - begin),
            "share waiting for data": sums["data"] / (fitted - begin),
        }
        case = f"{args.rows}x{args.cols}x{args.bands} float32"
        row = _harness.Row(case, type(model).__name__, 1, end - begin, end - begin, facts=facts)
        rows.append(row)
    _harness.finish("models", rows, {})


if __name__ == "__main__":
    main()

"""ROC areas of RX on public scenes, beside the figures a paper printed for three of them.

Reads every hyperspectral scene under a data folder, scores it with global and local RX on its raw
digital numbers in float64, and writes the areas as a markdown table and as JSON:

    python bench/real_scenes.py --data ../shared/data --output real_scenes

makes real_scenes.md and real_scenes.json.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import mahal
import numpy as np
from mahal import metrics, scenes

WINDOW = (5, 21)


@dataclass(frozen=True)
class Source:
    """A scene file, its separate truth file, and what a paper printed for global RX on it."""

    file: str
    truth: str | None = None
    printed_df: float | None = None
    printed_ftau: float | None = None


SOURCES = (
    Source("hydice-100x80-19px.mat", None, 0.97637, 0.03798),
    Source("abu-urban-2.mat", None, 0.99463, 0.01351),
    Source("abu-urban-4.mat", None, 0.98870, 0.01140),
    Source("abu-airport-1.mat"),
    Source("abu-beach-1.mat"),
    Source("sandiego-57px.mat"),
    Source("muufl-gulfport-crop-269px.mat"),
    Source("hydice-autoad-17px.mat"),
    Source("pavia-105x120-43px.mat", "pavia-105x120-43px.mask.mat"),
    Source("envi/SDData.hdr", "envi/SDDataGt.bmp"),
    Source("envi/LHData.hdr", "envi/LHDataGt.bmp"),
)


def read(folder: Path, source: Source) -> scenes.Scene:
    """Scene of a source, with its truth."""
    truth = None if source.truth is None else folder / source.truth
    return scenes.read(folder / source.file, truth=truth)


def measure(scene: scenes.Scene, source: Source, *, local: bool = True) -> dict[str, object]:
    """Areas of the distance to the mean, of global RX and of local RX on one scene."""
    assert scene.truth is not None
    rows, cols, bands = scene.image.shape
    image = scene.image.astype(np.float64)
    found: dict[str, object] = {
        "scene": scene.name,
        "rows": rows,
        "cols": cols,
        "bands": bands,
        "targets": int(scene.truth.sum()),
        "printed_df": source.printed_df,
        "printed_ftau": source.printed_ftau,
    }
    distance = np.sum((image - image.mean(axis=(0, 1))) ** 2, axis=2)
    found["distance_df"] = metrics.roc_areas(distance, scene.truth).auc_df
    begin = time.perf_counter()
    scores = mahal.rx(image)
    found["global_seconds"] = time.perf_counter() - begin
    exact = metrics.roc_areas(scores, scene.truth)
    found["global_df"], found["global_ftau"] = exact.auc_df, exact.auc_ftau
    found["global_df_1001"] = metrics.roc_areas(scores, scene.truth, thresholds=1001).auc_df
    if local:
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mahal.SingularWarning)
            scores, status = mahal.rx(image, window=WINDOW, return_status=True)
        found["local_seconds"] = time.perf_counter() - begin
        areas = metrics.roc_areas(scores, scene.truth)
        found["local_df"], found["local_ftau"] = areas.auc_df, areas.auc_ftau
        found["local_singular"] = int((status == 2).sum())
    return found


def table(measured: list[dict[str, object]]) -> str:
    """Markdown table of the measured areas."""
    inner, outer = WINDOW
    lines = [
        "| scene | size | targets | distance to the mean | RX: printed | RX: 1001 thresholds "
        f"| RX: exact | local RX ({inner}, {outer}) | singular windows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def pair(first: object, second: object) -> str:
        return f"{first:.5f} / {second:.5f}"

    for row in measured:
        printed = row["printed_df"] is not None
        cells = (
            row["scene"],
            f"{row['rows']} x {row['cols']} x {row['bands']}",
            row["targets"],
            f"{row['distance_df']:.5f}",
            pair(row["printed_df"], row["printed_ftau"]) if printed else "",
            f"{row['global_df_1001']:.5f}",
            pair(row["global_df"], row["global_ftau"]),
            pair(row["local_df"], row["local_ftau"]),
            row["local_singular"],
        )
        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every scene and write both files."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=Path("real_scenes"))
    args = parser.parse_args()
    measured = []
    for source in SOURCES:
        scene = read(args.data / "hyperspectral", source)
        measured.append(measure(scene, source))
        print(table(measured[-1:]).splitlines()[-1], flush=True)
    args.output.with_suffix(".md").write_text(table(measured), encoding="utf-8")
    args.output.with_suffix(".json").write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Which detector `mahal detect` should use when none is named.

Global RX and local RX on leading principal components are combined by several rules, with several
numbers of components and windows, on every public scene at hand. The figures of a scene "left out"
are those of the setting that is best on average over the other scenes, so that no scene chooses for
itself.

    python bench/default_detector.py FOLDER [--out bench/results/default_detector.json]

FOLDER holds the scenes that bench/real_scenes.py names.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import mahal
import numpy as np
from mahal import metrics
from mahal.ops.fused_rx import COMPONENTS, WINDOW

COUNTS = (5, 10, 20)
WINDOWS = ((5, 21), (11, 31), (15, 25))
RATES = (1e-2, 1e-3)
RULES = ("product", "sum", "fisher")


def shares(scores):
    """Share of the pixels that score at least as high."""
    ordered = np.sort(scores.ravel())
    return (scores.size - np.searchsorted(ordered, scores)) / scores.size


def combined(rule, whole, near):
    """One score of two."""
    if rule == "product":
        return whole * near
    if rule == "sum":
        return whole / np.median(whole) + near / np.median(near)
    return -np.log(shares(whole)) - np.log(shares(near))


def areas(scene):
    """AUC(D,F) of every setting, and of the single detectors."""
    image = scene.image.astype(np.float64)
    whole = mahal.rx(image)
    mean, covariance = mahal.mean_covariance(image)
    axes = np.linalg.eigh(covariance)[1]
    found = {"rx": metrics.roc_areas(whole, scene.truth).auc_df}
    default = mahal.fused_rx(image)
    found["default"] = metrics.roc_areas(default, scene.truth).auc_df
    tail = mahal.significance.score_tail(default)
    for rate in RATES:
        found[f"alarms {rate}"] = float(np.mean(default[~scene.truth] >= tail.threshold(rate)))
    for count, window in itertools.product(COUNTS, WINDOWS):
        near = mahal.rx((image - mean) @ axes[:, -count:], window=window)
        for rule in RULES:
            name = f"{rule}, {count} components, window {window[0]} {window[1]}"
            found[name] = metrics.roc_areas(combined(rule, whole, near), scene.truth).auc_df
    return found


def main():
    import real_scenes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = {}
    for source in real_scenes.SOURCES:
        if (args.folder / source.file).exists():
            table[source.file] = areas(real_scenes.read(args.folder, source))
    settings = [name for name in next(iter(table.values())) if "components" in name]
    rows = []
    for name, found in table.items():
        others = [row for other, row in table.items() if other != name]
        best = max(settings, key=lambda s: np.mean([row[s] for row in others]))
        rows.append(
            {"scene": name, "rx": found["rx"], "default": found["default"],
             "left_out": found[best], "chosen": best}
        )  # fmt: skip
        print(f"{name:34} rx {found['rx']:.4f}  default {found['default']:.4f}  "
              f"left out {found[best]:.4f}  {best}")  # fmt: skip
    for key in ("rx", "default", "left_out"):
        values = [row[key] for row in rows]
        print(f"{key:10} mean {np.mean(values):.4f}, worst {np.min(values):.4f}")
    for rate in RATES:
        ratios = [row[f"alarms {rate}"] / rate for row in table.values()]
        print(
            f"share of background above the threshold for {rate}, over the rate: "
            f"mean {np.mean(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        )
    means = {s: float(np.mean([row[s] for row in table.values()])) for s in settings}
    for name, value in sorted(means.items(), key=lambda item: -item[1]):
        print(f"{value:.4f}  worst {min(row[name] for row in table.values()):.4f}  {name}")
    if args.out:
        text = {"components": COMPONENTS, "window": WINDOW, "scenes": rows, "means": means}
        args.out.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Put what `mahal benchmark` found on the public scenes into docs/benchmark.md.

    mahal benchmark FOLDER FOLDER/envi --runs 5 -o table \\
        --detectors rx,local-rx,fused-rx,spectral-autoencoder,spectral-vae,mtgan
    python bench/benchmark_page.py table --scenes FOLDER

FOLDER holds the scenes that bench/real_scenes.py names. The figures are kept in
bench/results/benchmark.csv and benchmark_printed.json (areas from 1001 thresholds, as the paper of
MTGAN has them), and the page is made from these alone: without a folder it is made again, with
--check it is compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from mahal import metrics, scenes

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results" / "benchmark.csv"
THRESHOLDS = HERE / "results" / "benchmark_printed.json"
PAGE = HERE.parent / "docs" / "benchmark.md"
BLOCK = re.compile(r"(<!-- benchmark:(\w+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
ORDER = (
    "distance",
    "angle",
    "rx",
    "local_rx",
    "fused_rx",
    "spectral_autoencoder",
    "spectral_vae",
    "mtgan",
)
# AUC(D,F) and AUC(F,tau) that paper 004 prints in its Tables 1 and 2.
PRINTED = {
    "hydice-100x80-19px": {"rx": (0.97637, 0.03798), "mtgan": (0.99945, 0.01541)},
    "abu-urban-2": {"rx": (0.99463, 0.01351), "mtgan": (0.99816, 0.00200)},
    "abu-urban-4": {"rx": (0.98870, 0.01140), "mtgan": (0.99312, 0.00145)},
}


def figure(row: dict[str, str], column: str) -> str:
    """Mean and, of several runs, deviation."""
    mean, deviation = float(row[f"{column} mean"]), float(row[f"{column} deviation"])
    return f"{mean:.4f}" + (f" ± {deviation:.4f}" if int(row["runs"]) > 1 else "")


def table(rows: list[dict[str, str]], column: str, best: str) -> list[str]:
    """A row for every scene, a column for every detector, and the means."""
    names = [name for name in ORDER if any(row["detector"] == name for row in rows)]
    heads = [name.replace("_", " ") for name in names]
    lines = ["| scene | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(names)]
    for scene in dict.fromkeys(row["scene"] for row in rows):
        own = {row["detector"]: row for row in rows if row["scene"] == scene}
        lines.append(f"| {scene} | " + " | ".join(figure(own[n], column) for n in names) + " |")
    for label, fold in (
        ("mean", lambda v: sum(v) / len(v)),
        (best, min if best == "worst" else max),
    ):
        values = [
            fold([float(r[f"{column} mean"]) for r in rows if r["detector"] == n]) for n in names
        ]
        lines.append(f"| **{label}** | " + " | ".join(f"**{v:.4f}**" for v in values) + " |")
    return lines


def with_thresholds(folder: Path, data: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Both areas of every run that the paper has a figure for, from 1001 thresholds."""
    found: dict[str, dict[str, list[list[float]]]] = {}
    for scene, methods in PRINTED.items():
        truth = scenes.read(data / f"{scene}.mat").truth
        for name in methods:
            maps = sorted((folder / "runs").glob(f"{scene}-{name}-*.npy"))
            areas = [metrics.roc_areas(np.load(one), truth, thresholds=1001) for one in maps]
            pairs = [[one.auc_df, one.auc_ftau] for one in areas]
            found.setdefault(scene, {})[name] = pairs
    return found


def printed() -> list[str]:
    """What the paper prints beside ours."""
    lines = [
        "| scene | detector | AUC(D,F) printed | ours | AUC(F,tau) printed | ours |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for scene, methods in json.loads(THRESHOLDS.read_text(encoding="utf-8")).items():
        for name, runs in methods.items():
            cells = []
            for theirs, values in zip(PRINTED[scene][name], np.transpose(runs), strict=True):
                spread = f" ± {values.std():.5f}" if len(values) > 1 else ""
                cells.append(f"{theirs:.5f} | {values.mean():.5f}{spread}")
            lines.append(f"| {scene} | {name} | {' | '.join(cells)} |")
    return lines


def page() -> str:
    """The page with its tables made anew."""
    with KEPT.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = {
        "df": table(rows, "AUC(D,F)", "worst"),
        "ftau": table(rows, "AUC(F,tau)", "highest"),
        "printed": printed(),
    }
    return BLOCK.sub(
        lambda m: m[1] + "\n".join(made[m[2]]) + "\n" + m[3], PAGE.read_text(encoding="utf-8")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what `mahal benchmark` wrote")
    parser.add_argument("--scenes", type=Path, help="the folder of the scenes")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if (args.folder is None) != (args.scenes is None):
        parser.error("a folder needs --scenes")
    if args.folder:
        shutil.copyfile(args.folder / "table.csv", KEPT)
        found = with_thresholds(args.folder, args.scenes)
        THRESHOLDS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = page()
    if args.check:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

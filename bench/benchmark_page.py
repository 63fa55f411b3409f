"""Put what `mahal benchmark` found on the public scenes into docs/benchmark.md.

    mahal benchmark FOLDER FOLDER/envi --runs 5 -o table \\
        --detectors rx,local-rx,fused-rx,spectral-autoencoder,spectral-vae,mtgan
    python bench/benchmark_page.py table

FOLDER holds the scenes that bench/real_scenes.py names. The figures are kept in
bench/results/benchmark.csv, and the page is made from that file alone: without a folder it is made
again, with --check it is compared.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results" / "benchmark.csv"
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


def printed(rows: list[dict[str, str]]) -> list[str]:
    """What the paper prints beside ours."""
    lines = [
        "| scene | detector | AUC(D,F) printed | ours | AUC(F,tau) printed | ours |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for scene, methods in PRINTED.items():
        for name, (df, ftau) in methods.items():
            row = next(r for r in rows if (r["scene"], r["detector"]) == (scene, name))
            ours = [figure(row, "AUC(D,F)"), figure(row, "AUC(F,tau)")]
            lines.append(f"| {scene} | {name} | {df:.5f} | {ours[0]} | {ftau:.5f} | {ours[1]} |")
    return lines


def page() -> str:
    """The page with its tables made anew."""
    with KEPT.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = {
        "df": table(rows, "AUC(D,F)", "worst"),
        "ftau": table(rows, "AUC(F,tau)", "highest"),
        "printed": printed(rows),
    }
    return BLOCK.sub(
        lambda m: m[1] + "\n".join(made[m[2]]) + "\n" + m[3], PAGE.read_text(encoding="utf-8")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="what `mahal benchmark` wrote")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.folder:
        shutil.copyfile(args.folder / "table.csv", KEPT)
    text = page()
    if args.check:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

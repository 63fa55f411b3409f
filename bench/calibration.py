"""Share of background pixels above thresholds that promise a false-alarm rate.

    python bench/calibration.py [--data FOLDER] [--out bench/results/calibration.json]

The first table draws Gaussian scenes, on which the laws must hold. The second takes the public
scenes that bench/real_scenes.py names, less their true targets, where FOLDER has them. Prints both
as Markdown.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mahal
import numpy as np
import real_scenes
from mahal import significance

RATES = (1e-2, 1e-3, 1e-4)
SIDE, BANDS, DRAWS = 200, 10, 10
WINDOW = (3, 11)


def simulated():
    """Rows of name and observed shares on Gaussian scenes with correlated bands."""
    rng = np.random.default_rng(0)
    factor = np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(range(BANDS), range(BANDS))))
    target = rng.standard_normal(BANDS)
    near = WINDOW[1] ** 2 - WINDOW[0] ** 2
    laws = {
        "global RX": (significance.rx_pvalue, SIDE**2, {"background": "global"}),
        "local RX": (significance.rx_pvalue, near, {}),
        "local RX, complex, mean zero": (
            significance.rx_pvalue,
            near,
            {"mean": "known", "complex_data": True},
        ),
        "ACE": (significance.ace_pvalue, SIDE**2, {"background": "global"}),
        "local ACE": (significance.ace_pvalue, near, {}),
        "local ACE, Tyler, complex, mean zero": (
            significance.ace_pvalue,
            near,
            {"mean": "known", "complex_data": True, "estimator": "tyler"},
        ),
        "matched filter": (
            significance.amf_pvalue,
            SIDE**2,
            {"background": "global", "signed": True},
        ),
    }
    counts = {name: np.zeros(len(RATES)) for name in (*laws, "local RX, chi-square law")}
    for _ in range(DRAWS):
        image = rng.standard_normal((SIDE, SIDE, BANDS)) @ factor.T
        slc = (image + 1j * rng.standard_normal((SIDE, SIDE, BANDS)) @ factor.T) / np.sqrt(2)
        zero = {"window": WINDOW, "center": False}
        local = mahal.rx(image, window=WINDOW)
        maps = {
            "global RX": mahal.rx(image),
            "local RX": local,
            "local RX, complex, mean zero": mahal.rx(slc, **zero),
            "ACE": mahal.ace(image, target),
            "local ACE": mahal.ace(image, target, window=WINDOW),
            "local ACE, Tyler, complex, mean zero": mahal.ace(
                slc, target.astype(complex), estimator="tyler", **zero
            ),
            "matched filter": mahal.matched_filter(image, target, normalized=True),
        }
        for name, (pvalue, samples, options) in laws.items():
            found = pvalue(maps[name], BANDS, samples, **options)
            counts[name] += [(found <= rate).sum() for rate in RATES]
        known = significance.rx_pvalue(local, BANDS, 10**9)
        counts["local RX, chi-square law"] += [(known <= rate).sum() for rate in RATES]
    return [
        {"name": name, "shares": list(found / (DRAWS * SIDE**2))} for name, found in counts.items()
    ]


def real(folder):
    """Rows of scene, detector and observed shares among pixels that are no targets."""
    rows = []
    for source in real_scenes.SOURCES:
        if not (folder / source.file).exists():
            continue
        scene = real_scenes.read(folder, source)
        image = scene.image.astype(np.float64)
        lines, cols, bands = image.shape
        law = {"background": "global"}
        maps = {
            "global RX": mahal.rx(image),
            "local RX 5 21": mahal.rx(image, window=(5, 21)),
            "fused RX": mahal.fused_rx(image),
        }
        found = {
            "global RX, law": significance.rx_pvalue(maps["global RX"], bands, lines * cols, **law),
            "local RX 5 21, law": significance.rx_pvalue(
                maps["local RX 5 21"], bands, 21**2 - 5**2
            ),
        }
        for name, scores in maps.items():
            found[f"{name}, tail"] = significance.score_tail(scores).pvalue(scores)
        for name, pvalues in found.items():
            background = pvalues[~scene.truth]
            shares = [float(np.mean(background <= rate)) for rate in RATES]
            rows.append({"scene": scene.name, "name": name, "shares": shares})
    return rows


def table(head, rows):
    """Markdown of rows of words and shares."""
    lines = ["| " + " | ".join([*head, *(f"{rate:g}" for rate in RATES)]) + " |"]
    lines.append("|" + "---|" * len(head) + "--:|" * len(RATES))
    for words, shares in rows:
        lines.append("| " + " | ".join([*words, *(f"{share:.2g}" for share in shares)]) + " |")
    return "\n".join(lines)


def summed(rows):
    """Median, lowest and highest share over the scenes, for each detector."""
    for name in dict.fromkeys(row["name"] for row in rows):
        shares = np.array([row["shares"] for row in rows if row["name"] == name])
        for word, of in (("lowest", np.min), ("median", np.median), ("highest", np.max)):
            yield (name, word), of(shares, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of public scenes")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    gaussian = simulated()
    print(table(["Gaussian scenes"], [([row["name"]], row["shares"]) for row in gaussian]))
    scenes = [] if args.data is None else real(args.data)
    if scenes:
        print("\n" + table(["public scenes", ""], list(summed(scenes))))
    if args.out is not None:
        found = {"rates": RATES, "gaussian": gaussian, "scenes": scenes}
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

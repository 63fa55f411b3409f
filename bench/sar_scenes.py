"""Radar scenes: false-alarm rates beside the nominal ones, ROC areas, and change maps.

Reads the radar scenes under a data folder and writes three tables, as markdown and as JSON:

    python bench/sar_scenes.py --data ../shared/data --output sar_scenes

makes sar_scenes.md and sar_scenes.json.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import mahal
import numpy as np
from mahal import metrics, scenes, significance

RATES = (1e-2, 1e-3)
WINDOWS = (None, (5, 11), (31, 39))
ESTIMATORS = ("scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t")
LAWFUL = ("scm", "tyler")  # estimators that `mahal.significance` has a law of local ACE for
METRICS = (
    "frobenius",
    "logeuclid",
    "affine_invariant",
    "logdet",
    "symmetric_kl",
    "hotelling_lawley",
    "wasserstein",
)
PAIRS = ("bern", "san")
SIDE = 11
PAULI = ("surface", "dihedral", "cross-pol")  # classes 1, 2, 3 of the simulated scene


def quiet(function: Callable[..., object], *args: object, **options: object) -> np.ndarray:
    """Scores without the warnings about singular windows and iterations that did not end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.SingularWarning)
        warnings.simplefilter("ignore", mahal.ConvergenceWarning)
        return np.asarray(function(*args, **options))


def simulated(folder: Path) -> scenes.Scene:
    """Simulated single-look quad-pol scene with 16 labelled crosses."""
    path = folder / "sar" / "simulated_quadpol" / "scene.npz"
    return scenes.read(path, "slc", "mask", channels="first")


def homogeneous(folder: Path, size: int = 256, seed: int = 0) -> np.ndarray:
    """Complex clutter with one covariance everywhere: that of the first pixel of the scene."""
    with np.load(folder / "sar" / "simulated_quadpol" / "scene.npz") as file:
        covariance = file["covariance"][0, 0].astype(np.complex128)
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(size, size, 3, 2)) @ np.array([1.0, 1.0j]) / np.sqrt(2)
    return (white @ np.linalg.cholesky(covariance).T).astype(np.complex64)


def two_dates(folder: Path, size: int = 256, seed: int = 3) -> tuple[np.ndarray, ...]:
    """Two independent single-look draws from the matrices of AIRSAR, and where they differ.

    In 16 crosses of 25 x 4 pixels the cross-polarised power of the second is four times the first.
    """
    scene = scenes.read(folder / "sar" / "airsar_sanfrancisco_t3")
    factor = np.linalg.cholesky(scene.covariance[:size, :size].astype(np.complex128))
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(2, size, size, 3, 2)) @ np.array([1.0, 1.0j]) / np.sqrt(2)
    first, second = np.einsum("rcij,drcj->drci", factor, white).astype(np.complex64)
    truth = np.zeros((size, size), dtype=bool)
    centres = size // 8 + size // 4 * np.arange(4)
    for row in centres:
        for col in centres:
            truth[row - 12 : row + 13, col - 2 : col + 2] = True
            truth[row - 2 : row + 2, col - 12 : col + 13] = True
    second[..., 2][truth] *= 2
    return first, second, truth


def law_of(
    window: tuple[int, int] | None, image: np.ndarray, mean: str = "known"
) -> dict[str, object]:
    """Arguments of `mahal.significance` for scores of an image."""
    rows, cols, bands = image.shape
    return {
        "bands": bands,
        "samples": rows * cols if window is None else window[1] ** 2 - window[0] ** 2,
        "background": "global" if window is None else "local",
        "mean": mean,
        "complex_data": image.dtype.kind == "c",
    }


def false_alarms(folder: Path, windows: tuple[tuple[int, int] | None, ...] = WINDOWS) -> list[dict]:
    """Share of clutter pixels above the threshold for each nominal rate."""
    scene = simulated(folder)
    with np.load(scene.path) as file:
        varying = np.moveaxis(file["clutter"], 0, -1)
    real = scenes.read(folder / "sar" / "uavsar_nisar_rslc" / "winnipeg.h5")
    matrices = scenes.read(folder / "sar" / "airsar_sanfrancisco_t3")
    images = (
        ("homogeneous clutter", homogeneous(folder)),
        ("clutter with the covariance of AIRSAR", np.ascontiguousarray(varying)),
        ("Winnipeg, HH", real.image),
        ("AIRSAR, amplitudes", matrices.image),
    )
    rows = []
    for name, image in images:
        for window in windows:
            zero = image.dtype.kind == "c"
            scores = quiet(mahal.rx, image, window=window, center=not zero)
            law = law_of(window, image, "known" if zero else "estimated")
            shares = [np.mean(scores >= significance.rx_threshold(r, **law)) for r in RATES]
            rows.append({"data": name, "detector": "RX", "window": window, "shares": shares})
        if name != "homogeneous clutter":
            continue
        target = np.ones(image.shape[2], dtype=np.complex128)
        law = law_of(None, image, "estimated")
        ace = quiet(mahal.ace, image, target)
        amf = quiet(mahal.matched_filter, image, target, normalized=True) ** 2
        for label, scores, threshold in (
            ("ACE", ace, significance.ace_threshold),
            ("matched filter", amf, significance.amf_threshold),
        ):
            shares = [np.mean(scores >= threshold(r, **law)) for r in RATES]
            rows.append({"data": name, "detector": label, "window": None, "shares": shares})
        for window in filter(None, windows):
            for estimator in LAWFUL:
                options = {"window": window, "estimator": estimator, "center": False}
                scores = quiet(mahal.ace, image, target, **options)
                law = law_of(window, image)
                shares = [
                    np.mean(scores >= significance.ace_threshold(r, estimator=estimator, **law))
                    for r in RATES
                ]
                label = f"ACE, {estimator}"
                rows.append({"data": name, "detector": label, "window": window, "shares": shares})
    return rows


def areas(
    folder: Path,
    windows: tuple[tuple[int, int] | None, ...] = WINDOWS,
    estimators: tuple[str, ...] = ESTIMATORS,
) -> list[dict]:
    """AUC(D,F) of RX with each estimator on the simulated scene, and of ACE for each kind."""
    scene = simulated(folder)
    assert scene.truth is not None
    rows = []
    for estimator in estimators:
        for window in windows:
            options = {} if estimator == "scm" else {"estimator": estimator}
            scores = quiet(mahal.rx, scene.image, window=window, center=False, **options)
            auc = metrics.roc_areas(scores, scene.truth).auc_df
            rows.append({"detector": f"RX, {estimator}", "window": window, "auc": auc})
    classes = scene.metadata["classes"]
    targets = np.eye(3, dtype=np.complex128)
    for window in windows:
        for estimator in estimators if window else ("scm",):
            options = {"window": window, "estimator": estimator, "center": window is None}
            scores = quiet(mahal.ace, scene.image, targets, **options)
            for kind, name in enumerate(PAULI):
                counted = (classes == 0) | (classes == kind + 1)
                truth = (classes == kind + 1)[counted]
                auc = metrics.roc_areas(scores[counted, kind], truth).auc_df
                label = f"ACE, {name} crosses" + (f", {estimator}" if window else "")
                rows.append({"detector": label, "window": window, "auc": auc})
    return rows


def changes(folder: Path, names: tuple[str, ...] = METRICS) -> list[dict]:
    """AUC(D,F) of change maps on pairs of pictures, and on a scene with and without crosses."""
    rows = []
    for pair in PAIRS:
        place = folder / "sar" / "change_pairs_8bit"
        truth = place / f"{pair}_gt.bmp"
        first = scenes.read(place / f"{pair}_1.bmp", truth=truth)
        second = scenes.read(place / f"{pair}_2.bmp")
        assert first.truth is not None
        images = [scene.image.astype(np.float64) for scene in (first, second)]
        ratio = np.abs(np.log((images[0] + 1.0) / (images[1] + 1.0)))[:, :, 0]
        found = {"log ratio": metrics.roc_areas(ratio, first.truth).auc_df}
        for metric in names:
            # Amplitudes are positive: their second moments about zero change with their level.
            scores = quiet(mahal.change_map, *images, SIDE, metric=metric, center=False)
            found[metric] = metrics.roc_areas(scores, first.truth).auc_df
        rows.append({"pair": pair, "areas": found})
    scene = simulated(folder)
    with np.load(scene.path) as file:
        clutter = np.ascontiguousarray(np.moveaxis(file["clutter"], 0, -1))
    size = clutter.shape[:2]
    image = np.ascontiguousarray(scene.image[: size[0], : size[1]])
    assert scene.truth is not None
    truth = scene.truth[: size[0], : size[1]]
    found = {}
    for metric in names:
        scores = quiet(mahal.change_map, image, clutter, SIDE, metric=metric, center=False)
        found[metric] = metrics.roc_areas(scores, truth).auc_df
    rows.append({"pair": "simulated quad-pol, with and without crosses", "areas": found})
    *images, truth = two_dates(folder)
    found = {}
    for metric in names:
        scores = quiet(mahal.change_map, *images, SIDE, metric=metric, center=False)
        found[metric] = metrics.roc_areas(scores, truth).auc_df
    rows.append({"pair": "AIRSAR, two simulated dates", "areas": found})
    return rows


def change_alarms(folder: Path) -> list[dict]:
    """Share of unchanged pixels that the likelihood ratio calls changed at each nominal rate."""
    rows = []
    # Two seeds give two independent first dates, without any change between them.
    for name, (first, second) in (
        ("homogeneous clutter", [homogeneous(folder, seed=seed) for seed in (1, 2)]),
        ("AIRSAR, two simulated dates", [two_dates(folder, seed=seed)[0] for seed in (3, 4)]),
    ):
        scores = quiet(mahal.change_map, first, second, SIDE, metric="wishart", center=False)
        samples = significance.window_samples(first.shape[:2], SIDE, border="clip")
        law = {"mean": "known", "complex_data": True}
        shares = [
            np.mean(
                scores
                >= significance.covariance_equality_threshold(rate, 3, samples, samples, **law)
            )
            for rate in RATES
        ]
        rows.append({"data": name, "detector": "Wishart ratio", "window": SIDE, "shares": shares})
    return rows


def tables(alarms: list[dict], found: list[dict], changed: list[dict]) -> str:
    """The three tables in markdown."""

    def sizes(window: int | tuple[int, int] | None) -> str:
        return "whole image" if window is None else str(window)

    lines = ["| data | detector | window | " + " | ".join(f"at {r:g}" for r in RATES) + " |"]
    lines.append("|---|---|---|" + "---|" * len(RATES))
    for row in alarms:
        shares = " | ".join(f"{share:.5f}" for share in row["shares"])
        lines.append(f"| {row['data']} | {row['detector']} | {sizes(row['window'])} | {shares} |")
    lines += ["", "| detector | window | AUC(D,F) |", "|---|---|---|"]
    lines += [f"| {r['detector']} | {sizes(r['window'])} | {r['auc']:.5f} |" for r in found]
    columns = list(dict.fromkeys(name for row in changed for name in row["areas"]))
    lines += ["", f"| pair | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in changed:
        cells = [f"{row['areas'][name]:.5f}" if name in row["areas"] else "" for name in columns]
        lines.append(f"| {row['pair']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print and write both files."""
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--output", type=Path, default=Path("sar_scenes"))
    args = parser.parse_args()
    alarms = false_alarms(args.data) + change_alarms(args.data)
    measured = alarms, areas(args.data), changes(args.data)
    text = tables(*measured)
    print(text)
    args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    named = dict(zip(("false_alarms", "areas", "changes"), measured, strict=True))
    args.output.with_suffix(".json").write_text(json.dumps(named, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Adversarial autoencoder of radar images beside local RX, on a simulated and on a real scene.

    python bench/sar_models.py --data ../shared/data [--figures FOLDER]

The simulated single-look quad-pol scene has 16 crosses with known places: areas under ROC curves,
mean and deviation over seeds, each with its own despeckler and autoencoder. Of the real single-look
scene there is no truth; with --figures its maps are drawn, and those of the simulated one. The
times are CPU times of fit and score, or of RX.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import _harness
import mahal
import numpy as np
from mahal import metrics, models, pictures, scenes

RX = {"RX, scm": "scm", "RX, Tyler": "tyler"}
WINDOW = (31, 39)
SCORES = {
    "frobenius 11, published": {},
    "frobenius 5, second moments": {"window": 5, "center": False},
    "affine_invariant 5, second moments": {
        "metric": "affine_invariant",
        "window": 5,
        "center": False,
    },
}
KINDS = ("despeckled", "guided", "speckled")
DRAWN = "frobenius 11, published"
SHARE = 0.01  # of the pixels, outlined in the figures


def simulated(folder: Path) -> scenes.Scene:
    """Single-look quad-pol scene, Pauli basis, with 16 crosses."""
    path = folder / "sar" / "simulated_quadpol" / "scene.npz"
    return scenes.read(path, "slc", "mask", channels="first")


def real(folder: Path) -> scenes.Scene:
    """Single-look scene of one polarisation with buildings."""
    path = folder / "sar" / "onera_slc_muzeau" / "slc_256x256_c128.npy"
    image = np.load(path).astype(np.complex64)
    return scenes.Scene(image[..., None], "airborne", "npy")


def local_rx(image: np.ndarray, estimator: str) -> np.ndarray:
    """Local RX of single-look data without a mean."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.SingularWarning)
        warnings.simplefilter("ignore", mahal.ConvergenceWarning)
        return np.asarray(mahal.rx(image, window=WINDOW, estimator=estimator, center=False))


def timed(function: Callable[..., np.ndarray], *args: object) -> tuple[np.ndarray, float]:
    """Result and CPU time."""
    begin = time.process_time()
    result = function(*args)
    return result, time.process_time() - begin


def maps(model: models.SARAutoencoder, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every score of one training; the parameters are those of the published one again."""
    found = {}
    for name, options in SCORES.items():
        model.set_params(window=11, metric="frobenius", center=True).set_params(**options)
        found[name] = model.score(image)
    return found


def trained(
    image: np.ndarray, args: argparse.Namespace, seed: int
) -> Iterator[tuple[str, models.SARAutoencoder, np.ndarray, float]]:
    """Every kind of training: its name, model, what it scores, and the CPU time."""
    for kind in args.kinds:
        begin = time.process_time()
        model = models.SARAutoencoder(
            epochs=args.epochs,
            seed=seed,
            despeckling="none" if kind == "speckled" else "merlin",
            despeckling_iterations=args.iterations,
            guidance="binary" if kind == "guided" else "none",
        ).fit(image)
        yield kind, model, image, time.process_time() - begin


def draw_real(args: argparse.Namespace) -> None:
    """The figures of the real scene."""
    scene = real(args.data)
    model = models.SARAutoencoder(
        epochs=args.epochs,
        stride=8,
        despeckling="merlin",
        despeckling_iterations=args.iterations,
    ).fit(scene.image)
    shown = {name: local_rx(scene.image, estimator) for name, estimator in RX.items()}
    shown["autoencoder, despeckled"] = maps(model, scene.image)[DRAWN]
    draw(scene, model, scene.image, shown, args.figures, "despeckled")


def draw(
    scene: scenes.Scene,
    model: models.SARAutoencoder,
    image: np.ndarray,
    shown: dict[str, np.ndarray],
    folder: Path,
    kind: str,
) -> None:
    """Image, reconstruction and change; all maps beside each other; the latent space."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{scene.name}_{kind.replace(' ', '_').replace(',', '')}"
    first, second = (
        scenes.Scene(found, label, "npy", polarisations=scene.polarisations or ("channel",))
        for found, label in (
            (model.despeckled(image), "seen"),
            (model.reconstruct(image), "rebuilt"),
        )
    )
    model.set_params(window=11, metric="frobenius", center=True).set_params(**SCORES[DRAWN])
    scores = model.score(image)
    level = np.nanquantile(scores, 1 - SHARE)
    figure = pictures.change_figure(first, second, scores, level, truth=scene.truth)
    pictures.save(figure, folder / f"{name}_change.png")
    pictures.save(pictures.map_sheet([(scene, shown)], side=3.2), folder / f"{name}_maps.png")
    if scene.truth is not None:
        figure = pictures.comparison_figure(shown, scene.truth)
        pictures.save(figure, folder / f"{name}_roc.png")
    step = model.patch // 2
    codes = model.patch_codes(image, stride=step)
    side = model.patch
    heights = [
        [np.nanmax(scores[r * step :, c * step :][:side, :side]) for c in range(codes.shape[1])]
        for r in range(codes.shape[0])
    ]
    figure = pictures.latent_figure(codes, scores=np.log10(heights), label="log10 of highest score")
    pictures.save(figure, folder / f"{name}_codes.png")


def main() -> None:
    root = Path(__file__).resolve().parents[1]
    parser = _harness.parser(__doc__)
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data")
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--size", type=int, default=512, help="rows and columns from the corner")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--iterations", type=int, default=300, help="of the despeckler")
    args = parser.parse_args()
    scene = simulated(args.data)
    if args.quick:
        args.epochs, args.iterations, args.seeds, args.size = 1, 2, args.seeds[:1], 96
    crop = np.s_[: args.size, : args.size]
    assert scene.truth is not None
    scene = scenes.Scene(
        np.ascontiguousarray(scene.image[crop]), "simulated", "npz", truth=scene.truth[crop]
    )
    case = f"{scene.image.shape[0]}x{scene.image.shape[1]}x3"
    if args.figures is not None and not args.quick:
        draw_real(args)
    rows = []
    shown = {}
    for name, estimator in RX.items():
        shown[name], seconds = timed(local_rx, scene.image, estimator)
        area = metrics.roc_areas(shown[name], scene.truth).auc_df
        facts = {"AUC(D,F)": f"{area:.4f}"}
        rows.append(_harness.Row(case, f"{name}, 39/31", 1, seconds, seconds, facts=facts))
    areas: dict[tuple[str, str], list[float]] = {}
    times: dict[str, list[float]] = {}
    for done, seed in enumerate(args.seeds, 1):
        for kind, model, image, seconds in trained(scene.image, args, seed):
            begin = time.process_time()
            found = maps(model, image)
            times.setdefault(kind, []).append(seconds + time.process_time() - begin)
            for name, scores in found.items():
                area = metrics.roc_areas(scores, scene.truth).auc_df
                areas.setdefault((kind, name), []).append(area)
            if done == 1:
                shown[f"autoencoder, {kind}"] = found[DRAWN]
                if args.figures is not None:
                    draw(scene, model, image, dict(shown), args.figures, kind)
        results = list(rows)
        for (kind, name), values in areas.items():
            facts = {
                "AUC(D,F)": f"{np.mean(values):.4f}",
                "deviation": f"{np.std(values):.4f}",
                "seeds": str(done),
            }
            seconds = float(np.mean(times[kind]))
            label = f"autoencoder, {kind}; {name}"
            results.append(_harness.Row(case, label, 1, seconds, seconds, facts=facts))
        _harness.finish("sar_models", results, {})


if __name__ == "__main__":
    main()

"""`mahal detect` in tiles."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mahal._detectors import DETECTORS, Learner
from mahal.blocks import _stream
from mahal.scenes import Scene, SceneError, extra, read_target
from mahal.scenes import open as open_scene
from mahal.scenes._target import PIXEL

# Options of `detect` that need the whole scene at once, or files beside it.
REFUSED = (
    ("demo", "--demo"),
    ("truth", "--truth"),
    ("map_key", "--map-key"),
    ("mask_key", "--mask-key"),
    ("channels", "--channels"),
    ("polarisations", "--polarisations"),
    ("frequency", "--frequency"),
    ("background", "--background"),
    ("false_discovery_rate", "--false-discovery-rate"),
    ("report", "--report"),
)


def detect(args: argparse.Namespace, report: Callable[[str], Any]) -> list[tuple[str, str]]:
    """Run `mahal detect` in tiles.

    Parameters
    ----------
    args : Namespace
        Arguments of the command.
    report : callable
        See `mahal.blocks._stream.detect`.

    Returns
    -------
    list of (str, str)
        Lines to print.

    Raises
    ------
    ValueError
        Options that do not go together.
    """
    for name, option in REFUSED:
        if getattr(args, name, None):
            raise ValueError(f"detect: {option}: not for a scene in tiles")
    if args.model is not None and args.detector is not None:
        raise ValueError("detect: --model and --detector exclude each other")
    extra("scipy.special")
    path = Path(args.scene)
    output = Path(args.output or f"{path.stem}_scores.zarr")
    if output.suffix != ".zarr":
        raise SceneError(f"{output}: --output: must end in .zarr for a scene in tiles")
    if path.exists() and output.resolve() == path.resolve():
        raise SceneError(f"{output}: --output: must not replace an input file")
    if not output.parent.is_dir():
        raise SceneError(f"--output: folder {output.parent} does not exist")
    scene = open_scene(path, key=args.key)
    rows, cols, bands = scene.shape
    name = _detector(args, scene)
    detector = DETECTORS[name]
    job = _stream.Job(
        scene=str(path.resolve()),
        key=args.key,
        output=str(output.resolve()),
        detector=name,
        model=None if args.model is None else str(Path(args.model).resolve()),
        target=_target(args, detector, scene),
        window=args.window,
        border=args.border,
        singular=args.singular,
        estimator=args.estimator,
        center=not args.uncentred,
        rate=1e-3 if args.false_alarm_rate is None else float(args.false_alarm_rate),
        rows=rows,
        cols=cols,
        bands=bands,
        stored=scene.dtype.str,
        nodata=scene.attrs.get("nodata"),
        threads=args.threads,
    )
    told: list[Any] = []

    def progress(stage: str) -> Any:
        told.append(report(stage))
        return told[-1]

    try:
        summary = _stream.detect(job, tile=args.tile, scheduler=args.scheduler, report=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"{output} keeps the tiles that are finished: the same command goes on from there"
        ) from None
    finally:
        for one in told:
            if one is not None:
                one.clear()
    return _rows(args, summary, output)


def _detector(args: argparse.Namespace, scene: Any) -> str:
    """The name of the detector, its options checked."""
    if args.model is not None:
        from mahal.models import load

        model = load(args.model)
        model._check_bands(f"{type(model).__name__}.score", scene.shape[2])
        model._reach()
        name = next(
            d.name
            for d in DETECTORS.values()
            if isinstance(d, Learner) and d.function == type(model).__name__
        )
    else:
        asked = args.window is not None or args.estimator != "scm" or args.uncentred
        asked = asked or args.target is not None or scene.dtype.kind == "c"
        name = args.detector or ("rx" if asked else "fused_rx")
        if DETECTORS[name].learned:
            raise ValueError(
                f"detect: --detector: {name} has to be trained first (mahal train), for a scene in "
                "tiles; give the file by --model"
            )
    detector = DETECTORS[name]
    for option, parameter, used in (
        ("--window", "window", args.window is not None),
        ("--estimator", "estimator", args.estimator != "scm"),
        ("--uncentred", "center", args.uncentred),
    ):
        if used and (not detector.takes(parameter) or (name == "cem" and parameter == "center")):
            raise ValueError(f"detect: {option}: not for {name}")
    if args.estimator != "scm" and args.window is None:
        raise ValueError("detect: --estimator: needs --window for a scene in tiles")
    if args.target is not None and not detector.needs_target:
        raise ValueError(f"detect: --target: not for {name}")
    return name


def _target(args: argparse.Namespace, detector: Any, scene: Any) -> Any:
    if not detector.needs_target:
        return None
    if args.target is None:
        raise ValueError(f"detect: --target: {detector.name} needs one")
    pixel = PIXEL.fullmatch(args.target)
    if pixel is not None:
        row, col = int(pixel[1]), int(pixel[2])
        if row >= scene.shape[0] or col >= scene.shape[1]:
            raise SceneError(
                f"{args.target}: target: must lie in the {scene.shape[0]} x {scene.shape[1]} pixels"
            )
        found = scene.data[row, col].compute(scheduler="synchronous")
        if not np.isfinite(found).all():
            raise SceneError(f"{args.target}: target: must be finite")
    else:
        # A scene of one pixel tells the bands and their wavelengths.
        wavelengths = scene.coords.get("wavelength")
        one = Scene(
            np.zeros((1, 1, scene.shape[2]), scene.dtype),
            Path(args.scene).stem,
            "npy",
            wavelengths=None if wavelengths is None else np.asarray(wavelengths.values, float),
        )
        found = read_target(args.target, one, args.target_name)
        if found.ndim > 1:
            raise ValueError(
                f"detect: --target: must be one spectrum, got {len(found)}; --target-name chooses "
                "one of a library"
            )
    if scene.dtype.kind != "c" and found.dtype.kind == "c":
        raise SceneError("--target: must be real for a real image, got complex numbers")
    return tuple(found.astype(np.complex128 if found.dtype.kind == "c" else float).tolist())


def _rows(args: argparse.Namespace, summary: dict[str, Any], output: Path) -> list[tuple[str, str]]:
    size = f"{summary['rows']} x {summary['cols']} pixels, {summary['bands']} bands"
    window = summary["window"]
    method = summary["detector"].replace("_", " ")
    if window is not None:
        sizes = str(window) if isinstance(window, int) else f"{window[0]} {window[1]}"
        method += f", window {sizes}, border {summary['border']}"
    if summary["estimator"] != "scm":
        method += f", {summary['estimator']}"
    rows = [
        ("scene", args.scene),
        ("size", f"{size}, {np.dtype(summary['dtype'])}"),
        ("detector", method),
        ("tiles", f"{summary['tiles']} of {summary['tile']} x {summary['tile']} pixels"),
    ]
    if summary["tiles_from_before"]:
        rows.append(("found", f"{summary['tiles_from_before']} finished by the run before"))
    rows.append(("time", f"{summary['seconds']:.3g} s"))
    for field, word in (
        ("pixels_singular", "singular"),
        ("pixels_left_out", "left out"),
        ("pixels_not_finite", "not finite"),
        ("pixels_with_too_few_samples", "too few"),
        ("pixels_not_converged", "unconverged"),
    ):
        if summary[field]:
            rows.append((word, f"{summary[field]} pixels"))
    level = "none" if summary["threshold"] is None else f"{summary['threshold']:.6g}"
    rule = f"{summary['threshold_rule']}, rate {summary['false_alarm_rate']:g}"
    scored, detections = summary["pixels_scored"], summary["detections"]
    share = f", {100 * detections / scored:.3g} % of {scored} scored" if scored else ""
    return [
        *rows,
        ("threshold", f"{level} ({rule})"),
        ("detections", f"{detections} pixels{share}"),
        ("written", str(output)),
    ]

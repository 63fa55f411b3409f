"""The ``mahal`` command: detect anomalies in a scene, evaluate a score map, describe the build."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
import numpy.typing as npt

import mahal
from mahal import metrics, pictures, scenes, significance
from mahal.scenes import Scene

Array = npt.NDArray[Any]
Rows = list[tuple[str, str]]

DEMO = "mahal-demo"
# Values of the status map of mahal.rx.
TOO_FEW, SINGULAR, NOT_FINITE, LEFT_OUT = 1, 2, 3, 4
AREAS = {
    "auc_df": "AUC(D,F)",
    "auc_dtau": "AUC(D,tau)",
    "auc_ftau": "AUC(F,tau)",
    "td": "TD",
    "bs": "BS",
    "tdbs": "TDBS",
    "odp": "ODP",
    "od": "OD",
    "snpr": "SNPR",
}
OUTPUT_RULE = (
    "An existing folder, or a path that ends in a separator: files are named after the scene in "
    "that folder. Anything else is the beginning of the file names; its folder must exist."
)


class _UsageError(ValueError):
    """A command line that cannot be parsed."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``mahal`` command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program name; those of the process when not given.

    Returns
    -------
    int
        Exit code: 0 done, 2 a one-line error was printed to stderr, 130 interrupted.
    """
    try:
        args = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
        args.run(args)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"mahal: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mahal: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="mahal", description="Anomaly detection in remote-sensing images.")
    parser.add_argument("--version", action="version", version=f"mahal {mahal.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    detect = commands.add_parser(
        "detect",
        help="score a scene, outline what exceeds the threshold",
        description="Scores every pixel of a scene with RX, sets the threshold for a false-alarm "
        "rate, and writes OUT_scores (in the scene's own kind of file), OUT_detections.png and "
        "OUT_summary.json; with ground truth also OUT_roc.png.",
    )
    detect.add_argument("scene", nargs="?", metavar="SCENE", help=f"one of {scenes.KINDS}")
    detect.add_argument("--demo", action="store_true", help="simulate a scene instead")
    detect.add_argument("--key", help="MATLAB variable with the image")
    detect.add_argument("--map-key", help="MATLAB variable with the ground truth")
    detect.add_argument("--mask-key", help="MATLAB variable with the pixels to use (non-zero)")
    detect.add_argument("--truth", metavar="FILE", help="separate file with the ground truth")
    detect.add_argument("--detector", choices=["rx"], default="rx", help="default: rx")
    detect.add_argument(
        "--window",
        type=_window,
        metavar="INNER OUTER",
        help="odd sizes of guard and background window around every pixel; one odd "
        "size: no guard. Not given: statistics of the whole image",
    )
    detect.add_argument(
        "--border",
        choices=["shift", "reflect", "valid"],
        default="shift",
        help="windows at the border: shifted inside (default), mirrored, or not scored",
    )
    detect.add_argument(
        "--singular",
        choices=["load", "nan", "raise"],
        default="load",
        help="covariances that are not positive definite: add a small share of the global one "
        "(default), no score, or stop",
    )
    detect.add_argument("--background", metavar="SCENE2", help="take the statistics from here")
    detect.add_argument(
        "--false-alarm-rate", type=_rate, default=1e-3, metavar="RATE", help="default: 0.001"
    )
    detect.add_argument("--threads", type=_threads, metavar="N", help="default: all cores")
    detect.add_argument("-o", "--output", metavar="OUT", help=OUTPUT_RULE)
    detect.set_defaults(run=_detect)

    evaluate = commands.add_parser(
        "evaluate",
        help="ROC areas of a score map",
        description="Prints the areas of 3-D ROC analysis of a score map against a truth map. "
        "With -o it also writes OUT_roc.png and OUT_summary.json.",
    )
    evaluate.add_argument("scores", metavar="SCORES", help="a score map")
    evaluate.add_argument("truth", metavar="TRUTH", help="a truth map, or a file that has one")
    evaluate.add_argument("--key", help="MATLAB variable with the scores")
    evaluate.add_argument("--map-key", help="MATLAB variable with the truth")
    evaluate.add_argument(
        "--thresholds",
        type=int,
        metavar="N",
        help="AUC(D,F) from N equally spaced thresholds, as papers do with 1001; default: exact",
    )
    evaluate.add_argument("-o", "--output", metavar="OUT", help=OUTPUT_RULE)
    evaluate.set_defaults(run=_evaluate)

    info = commands.add_parser("info", help="what was built and what runs here")
    info.set_defaults(run=_info)
    return parser


def _joined(argv: Sequence[str]) -> list[str]:
    """Arguments with the one or two sizes of --window in one, so that a SCENE may follow them."""
    joined: list[str] = []
    sizes = False
    for text in argv:
        if sizes and text.lstrip("+-").isdecimal():
            joined[-1] += ("" if joined[-1].endswith("=") else ",") + text
            continue
        sizes = text == "--window"
        joined.append("--window=" if sizes else text)
    return joined


def _window(text: str) -> int | tuple[int, int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    raise argparse.ArgumentTypeError(f"must be one size or INNER OUTER, got {text or 'nothing'}")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be more than 0 and less than 1, got {text}")
    return value


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


# detect


def _detect(args: argparse.Namespace) -> None:
    if args.demo == (args.scene is not None):
        raise _UsageError("detect: needs either SCENE or --demo")
    window = args.window
    if window is not None and args.background is not None:
        raise _UsageError("detect: --window and --background exclude each other")
    name = DEMO if args.demo else Path(args.scene).stem
    prefix = _prefix(args.output, name)
    for module in ("scipy.special", "matplotlib.figure"):
        scenes.extra(module)
    scene = _scene(args)
    background = None if args.background is None else _background(args, scene)
    score_files = scenes.score_paths(f"{prefix}_scores", scene)
    inputs = [Path(path).resolve() for path in (scene.path, args.truth, args.background) if path]
    for path in score_files:
        if path.resolve() in inputs:
            raise scenes.SceneError(f"{path}: --output: must not replace an input file")

    with scenes.staged(prefix.parent) as stage:
        scores, status, seconds = _score(args, scene, window, background)
        samples, inside = _samples(scene, window, args.border, background)
        threshold = np.asarray(
            significance.rx_threshold(
                args.false_alarm_rate,
                scene.image.shape[2],
                samples,
                background="global" if inside else "local",
            )
        )
        with np.errstate(invalid="ignore"):
            detected = scores >= threshold
        truth = scene.truth
        if truth is not None and not _both(truth[np.isfinite(scores)]):
            truth = None
        areas = None if truth is None else metrics.roc_areas(scores, truth)

        masked = 0 if scene.mask is None else int((~scene.mask).sum())
        files = scenes.write(stage / score_files[0].name, scores, like=scene)
        title = f"{scene.name} · {_method(window)} · false-alarm rate {args.false_alarm_rate:g}"
        figure = pictures.detection_figure(
            scene, scores, threshold, truth=scene.truth, title=title, label="RX score"
        )
        files += (stage / f"{prefix.name}_detections.png",)
        pictures.save(figure, files[-1])
        if truth is not None:
            level = float(np.nanmedian(threshold))
            files += (stage / f"{prefix.name}_roc.png",)
            pictures.save(
                pictures.roc_figure(scores, truth, threshold=level, title=title), files[-1]
            )
        files += (stage / f"{prefix.name}_summary.json",)
        scored = np.isfinite(scores)
        summary = {
            "mahal": mahal.__version__,
            "scene": scene.name,
            "file": None if scene.path is None else str(scene.path),
            "key": scene.key,
            "map_key": scene.map_key,
            "rows": scene.image.shape[0],
            "cols": scene.image.shape[1],
            "bands": scene.image.shape[2],
            "dtype": str(scene.image.dtype),
            "detector": args.detector,
            "window": window,
            "border": None if window is None else args.border,
            "background": args.background,
            "singular_rule": args.singular,
            "samples": _range(samples, scored),
            "seconds": seconds,
            "pixels_scored": int(scored.sum()),
            "pixels_masked": masked,
            "pixels_at_the_edge": int((status == LEFT_OUT).sum()) - masked,
            "pixels_not_finite": int((status == NOT_FINITE).sum()),
            "pixels_with_too_few_samples": int((status == TOO_FEW).sum()),
            "pixels_singular": int((status == SINGULAR).sum()),
            "false_alarm_rate": args.false_alarm_rate,
            "threshold": _range(threshold, scored),
            "detections": int(detected.sum()),
            "targets": None if scene.truth is None else int(scene.truth.sum()),
            "targets_detected": None if scene.truth is None else int(detected[scene.truth].sum()),
            "areas": None if areas is None else dataclasses.asdict(areas),
            "files": [file.name for file in files],
        }
        _write_json(files[-1], summary)
    _print(_detect_rows(scene, summary, _method(window)))
    _print([("written", str(prefix.parent / file.name)) for file in files])


def _method(window: int | tuple[int, int] | None) -> str:
    if window is None:
        return "global RX"
    if isinstance(window, int):
        return f"local RX, window {window}"
    return f"local RX, window {window[0]} {window[1]}"


def _prefix(output: str | None, name: str) -> Path:
    """Path that every output file starts with, after `OUTPUT_RULE`."""
    if output is None:
        return _writable(Path(name))
    if Path(output).is_dir() or output.endswith(("/", os.sep)):
        return _writable(Path(output) / name)
    return _writable(Path(output))


def _writable(prefix: Path) -> Path:
    folder = prefix.parent
    if not folder.is_dir():
        raise scenes.SceneError(f"--output: folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise scenes.SceneError(f"--output: folder {folder} cannot be written")
    return prefix


def _scene(args: argparse.Namespace) -> Scene:
    if not args.demo:
        return scenes.read(
            args.scene, args.key, args.map_key, mask_key=args.mask_key, truth=args.truth
        )
    for option in ("key", "map_key", "mask_key", "truth"):
        if getattr(args, option) is not None:
            raise _UsageError(f"detect: --{option.replace('_', '-')}: not for --demo")
    return dataclasses.replace(scenes.simulate(), name=DEMO)


def _background(args: argparse.Namespace, scene: Scene) -> Array:
    """Pixels (n, bands) of the background scene that can be used."""
    path = Path(args.background)
    other = scenes.read(path, args.key if path.suffix.lower() == ".mat" else None)
    if other.image.shape[2] != scene.image.shape[2]:
        raise scenes.SceneError(
            f"{path}: --background: must have the {scene.image.shape[2]} bands of the scene, "
            f"got {other.image.shape[2]}"
        )
    kind = np.result_type(scene.image.dtype, other.image.dtype)
    return other.image[_used(other)].astype(kind, copy=False)


def _used(scene: Scene) -> npt.NDArray[np.bool_]:
    used: npt.NDArray[np.bool_] = np.isfinite(scene.image).all(axis=2)
    return used if scene.mask is None else used & scene.mask


def _score(
    args: argparse.Namespace,
    scene: Scene,
    window: int | tuple[int, int] | None,
    background: Array | None,
) -> tuple[Array, Array, float]:
    image = scene.image
    kind = image.dtype if background is None else background.dtype
    if kind.kind in "iu":
        # Twice the time of float32, and no scene is too ill-conditioned for it.
        kind = np.dtype(np.float64)
    image = image.astype(kind, copy=False)
    background = None if background is None else background.astype(kind, copy=False)
    progress = _Progress(sys.stderr) if sys.stderr.isatty() else None
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # The summary counts the singular pixels.
            warnings.simplefilter("ignore", mahal.SingularWarning)
            scores, status = mahal.rx(
                image,
                window=window,
                background=background,
                mask=scene.mask,
                border=args.border,
                singular=args.singular,
                return_status=True,
                threads=args.threads,
                progress=progress,
            )
    finally:
        if progress is not None:
            progress.clear()
    return scores, status, time.perf_counter() - begin


class _Progress:
    """Percentage on one line of a terminal, shown once a run takes longer than a moment."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.perf_counter) -> None:
        self.stream = stream
        self.clock = clock
        self.begin = self.last = clock()
        self.shown = False

    def __call__(self, done: int, total: int) -> None:
        now = self.clock()
        if now - self.begin < 0.5 or now - self.last < 0.1:
            return
        self.last, self.shown = now, True
        left = (now - self.begin) * (total - done) / max(done, 1)
        line = f"\rscoring {100 * done / max(total, 1):3.0f} %, {left:.0f} s left  "
        print(line, end="", file=self.stream, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r" + " " * 40 + "\r", end="", file=self.stream, flush=True)


def _samples(
    scene: Scene,
    window: int | tuple[int, int] | None,
    border: Any,
    background: Array | None,
) -> tuple[Array, bool]:
    """Background samples behind each score, and whether the pixel is one of them."""
    if background is not None:
        return np.asarray(len(background)), False
    if window is None:
        return np.asarray(_used(scene).sum()), True
    inside = isinstance(window, int) or window[0] == 0
    if scene.mask is None and border != "valid":
        inner, outer = (0, window) if isinstance(window, int) else window
        return np.asarray(outer**2 - inner**2), inside
    counts = significance.window_samples(
        scene.image.shape[:2], window, border=border, mask=scene.mask
    )
    return counts, inside


def _both(labels: Array) -> bool:
    return bool(labels.any() and not labels.all())


def _range(values: Array, scored: Array) -> float | list[float] | None:
    """One number, or the smallest and largest of a map over the pixels that have a score."""
    usable = values[scored] if values.ndim else values
    if usable.size == 0:
        return None
    low, high = usable.min().item(), usable.max().item()
    return low if low == high else [low, high]


def _detect_rows(scene: Scene, summary: Mapping[str, Any], method: str) -> Rows:
    pixels = summary["rows"] * summary["cols"]
    source = "simulated" if scene.path is None else str(scene.path)
    keys = [f"{word} {key}" for word, key in (("key", scene.key), ("truth", scene.map_key)) if key]
    rows = [
        ("scene", ", ".join([source, *keys])),
        (
            "size",
            f"{summary['rows']} x {summary['cols']} pixels, {summary['bands']} bands, "
            f"{summary['dtype']}",
        ),
    ]
    if scene.metadata.get("bad_bands"):
        rows.append(("bad bands", f"{scene.metadata['bad_bands']} left out (bbl in the header)"))
    if scene.unused:
        rows.append(("not used", ", ".join(scene.unused)))
    border = f", border {summary['border']}" if summary["border"] else ""
    other = f", background {summary['background']}" if summary["background"] else ""
    rows += [
        ("detector", method + border + other),
        ("samples", _span(summary["samples"], "{:d}")),
        ("time", f"{summary['seconds']:.3g} s"),
        ("singular", f"{summary['pixels_singular']} pixels (rule: {summary['singular_rule']})"),
    ]
    for field, word in (
        ("pixels_masked", "masked"),
        ("pixels_at_the_edge", "at the edge"),
        ("pixels_not_finite", "not finite"),
        ("pixels_with_too_few_samples", "too few"),
    ):
        if summary[field]:
            rows.append((word, f"{summary[field]} pixels"))
    rate = summary["false_alarm_rate"]
    scored, found = summary["pixels_scored"], summary["detections"]
    share = f"{100 * found / scored:.3g} % of {scored} scored" if scored else f"of {pixels}"
    rows += [
        ("threshold", f"{_span(summary['threshold'], '{:.6g}')} at false-alarm rate {rate:g}"),
        ("detections", f"{found} pixels, {share}"),
    ]
    if summary["targets"] is not None:
        rows.append(("targets", f"{summary['targets_detected']} of {summary['targets']} pixels"))
    if summary["areas"] is not None:
        rows += _area_rows(summary["areas"])
    elif summary["targets"] is not None:
        rows.append(("areas", "none: the truth has only one kind of scored pixel"))
    return rows


def _span(value: float | list[float] | None, form: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"{form.format(value[0])} to {form.format(value[1])}"
    return form.format(value)


def _area_rows(areas: Mapping[str, float]) -> Rows:
    return [(name, f"{areas[field]:.5f}") for field, name in AREAS.items()]


# evaluate and info


def _evaluate(args: argparse.Namespace) -> None:
    prefix = None if args.output is None else _prefix(args.output, Path(args.scores).stem)
    scores = scenes.read_map(args.scores, args.key)
    truth = scenes.read_truth(args.truth, args.map_key)
    areas = metrics.roc_areas(scores, truth, thresholds=args.thresholds)
    rows = [
        ("scores", args.scores),
        ("truth", args.truth),
        ("pixels", f"{areas.positives} target, {areas.negatives} background"),
    ]
    if args.thresholds is not None:
        rows.append(("thresholds", str(args.thresholds)))
    if areas.left_out:
        rows.append(("not scored", f"{areas.left_out} pixels"))
    rows += _area_rows(dataclasses.asdict(areas))
    if prefix is not None:
        with scenes.staged(prefix.parent) as stage:
            files = [stage / f"{prefix.name}_{ending}" for ending in ("roc.png", "summary.json")]
            figure = pictures.roc_figure(scores, truth, title=Path(args.scores).name)
            pictures.save(figure, files[0])
            summary = {
                "mahal": mahal.__version__,
                "scores": args.scores,
                "truth": args.truth,
                "thresholds": args.thresholds,
                "areas": dataclasses.asdict(areas),
                "files": [file.name for file in files],
            }
            _write_json(files[1], summary)
        rows += [("written", str(prefix.parent / file.name)) for file in files]
    _print(rows)


def _info(args: argparse.Namespace) -> None:
    def rows(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from rows(value, f"{prefix}{name}.")
            elif isinstance(value, (list, tuple)):
                yield prefix + name, ", ".join(map(str, value)) or "none"
            else:
                yield prefix + name, str(value) or "none"

    _print(list(rows(mahal.info())))


def _write_json(path: Path, summary: Mapping[str, Any]) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, float) and not np.isfinite(value):
            return None  # JSON has no NaN
        return value

    path.write_text(json.dumps(plain(dict(summary)), indent=2) + "\n", encoding="utf-8")


def _print(rows: Rows) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    previous = None
    for name, text in rows:
        print(f"{'' if name == previous else name:<{max(width, 10)}}  {text}")
        previous = name

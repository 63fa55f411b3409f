"""The ``mahal`` command: detect, train, compare, map changes, evaluate scores."""

from __future__ import annotations

import argparse
import contextlib
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
import mahal.benchmark
import mahal.tuning
from mahal import _image_folders, metrics, pictures, report, scenes, significance
from mahal._detectors import DETECTORS, Detector, Learner
from mahal.ops._estimators import ESTIMATORS
from mahal.ops.covariance_distance import METRICS
from mahal.scenes import Scene

Array = npt.NDArray[Any]
Rows = list[tuple[str, str]]

DEMO = "mahal-demo"
# Values of the status maps.
TOO_FEW, SINGULAR, NOT_FINITE, LEFT_OUT, NOT_CONVERGED = 1, 2, 3, 4, 5
SMALLEST = 1e-300  # stands for the p-value 0 where a threshold is asked for
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
ESTIMATOR_HELP = (
    "covariance: sample (default), diagonal loading, Ledoit-Wolf, OAS, Tyler, Student-t; exact "
    "thresholds for the sample covariance, and for ACE with Tyler in a window with a hole"
)
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
    except (ArithmeticError, ValueError, OSError, ImportError, MemoryError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"mahal: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        # Who keeps something says so.
        print(f"mahal: interrupted, {str(error) or 'nothing was written'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> _Parser:
    parser = _Parser(prog="mahal", description="Anomaly detection in remote-sensing images.")
    parser.add_argument("--version", action="version", version=f"mahal {mahal.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    detect = commands.add_parser(
        "detect",
        help="score a scene, outline what exceeds the threshold",
        description="Scores every pixel of a scene, sets the threshold for a false-alarm rate or a "
        "false-discovery rate, and writes OUT_scores (in the scene's own kind of file), "
        "OUT_detections.png and OUT_summary.json; with ground truth also OUT_roc.png, for models "
        "with a latent space of pixels also OUT_latent.png.",
    )
    detect.add_argument(
        "scene",
        nargs="?",
        metavar="SCENE",
        help=f"one of {scenes.KINDS}, or with --model a folder of images",
    )
    detect.add_argument("--demo", action="store_true", help="simulate a scene instead")
    _scene_options(detect)
    detect.add_argument(
        "--detector",
        type=_detector_name,
        metavar="NAME",
        help="one that `mahal detectors` lists; default: fused_rx, or rx where a window, an "
        "estimator, a background or complex values ask for it",
    )
    detect.add_argument(
        "--model",
        metavar="FILE",
        action="append",
        help="score with a model that `train` wrote; a folder of images also with several, such as "
        "one of each seed",
    )
    detect.add_argument("--estimator", choices=ESTIMATORS, default="scm", help=ESTIMATOR_HELP)
    _score_options(detect)
    detect.add_argument("--background", metavar="SCENE2", help="take the statistics from here")
    rates = detect.add_mutually_exclusive_group()
    rates.add_argument(
        "--false-alarm-rate",
        type=_rate,
        metavar="RATE",
        help="share of background pixels above the threshold; default: 0.001",
    )
    rates.add_argument(
        "--false-discovery-rate",
        type=_rate,
        metavar="RATE",
        help="share of false ones among the detections (Benjamini and Hochberg)",
    )
    detect.add_argument(
        "--report",
        type=_report,
        metavar="FILE",
        help="also write one HTML page: images, threshold slider, spectra; opens without network",
    )
    detect.add_argument("--threads", type=_threads, metavar="N", help="default: all cores")
    detect.add_argument(
        "--tile",
        type=_threads,
        metavar="N",
        help="score in tiles of N x N pixels, into a Zarr group, without reading the scene as a "
        "whole; .zarr scenes are always scored so, by default in tiles that fit into memory",
    )
    detect.add_argument(
        "--scheduler", metavar="ADDRESS", help="score the tiles on a dask.distributed cluster"
    )
    detect.add_argument("-o", "--output", metavar="OUT", help=OUTPUT_RULE)
    detect.set_defaults(run=_detect)

    compare = commands.add_parser(
        "compare",
        help="ROC areas and curves of several detectors on one scene",
        description="Scores a scene that has ground truth with several detectors, each with the "
        "statistics of the whole image and, with --window, of a window as well. Prints AUC(D,F), "
        "AUC(D,tau) and AUC(F,tau), and writes OUT_roc.png and OUT_summary.json.",
    )
    compare.add_argument("scene", metavar="SCENE", help=f"one of {scenes.KINDS}")
    _scene_options(compare)
    compare.add_argument(
        "--detectors",
        type=_names(list(DETECTORS)),
        metavar="A,B,...",
        help="default: all, or those without a target when none is given",
    )
    compare.add_argument(
        "--estimators",
        type=_names(ESTIMATORS),
        default=("scm",),
        metavar="A,B,...",
        help="of detectors that have a choice; default: scm",
    )
    _score_options(compare)
    compare.add_argument("--threads", type=_threads, metavar="N", help="default: all cores")
    compare.add_argument("-o", "--output", metavar="OUT", help=OUTPUT_RULE)
    compare.set_defaults(run=_compare)

    change = commands.add_parser(
        "change",
        help="map of the change between two images",
        description="Compares the covariances of two images of one size in a window around every "
        "pixel, and writes OUT_scores, OUT_change.png and OUT_summary.json; with ground truth also "
        "OUT_roc.png.",
    )
    change.add_argument("first", metavar="FIRST", help=f"one of {scenes.KINDS}")
    change.add_argument("second", metavar="SECOND", help="a scene of the same size and bands")
    _scene_options(change)
    change.add_argument("--window", type=_side, default=11, metavar="SIDE", help="default: 11")
    change.add_argument("--metric", choices=METRICS, default="frobenius", help="default: frobenius")
    change.add_argument(
        "--domain",
        choices=["stored", "amplitude", "log"],
        default="stored",
        help="values as stored (default), their moduli, or the logarithms of these",
    )
    change.add_argument(
        "--uncentred", action="store_true", help="the mean is zero by assumption (single-look SAR)"
    )
    change.add_argument(
        "--border",
        choices=["clip", "shift", "reflect", "valid"],
        default="clip",
        help="windows at the border: cut (default), shifted inside, mirrored, or not scored",
    )
    change.add_argument(
        "--compat", choices=["muzeau"], help="divisor of the published code, see `mahal.change_map`"
    )
    change.add_argument(
        "--false-alarm-rate",
        type=_rate,
        default=1e-2,
        metavar="RATE",
        help="by the law of wishart (complex images) and box_m (real ones), else the share of "
        "pixels that is outlined; default: 0.01",
    )
    change.add_argument("--threads", type=_threads, metavar="N", help="default: all cores")
    change.add_argument("-o", "--output", metavar="OUT", help=OUTPUT_RULE)
    change.set_defaults(run=_change)

    train = commands.add_parser(
        "train",
        help="train a model on a scene or on a folder of images",
        description="Trains a model and writes it into one file, for `mahal detect --model FILE`.",
    )
    learned = [name for name, detector in DETECTORS.items() if detector.learned]
    train.add_argument("model", metavar="MODEL", type=_detector_name, help=", ".join(learned))
    train.add_argument(
        "scene",
        metavar="SCENE",
        help=f"one of {scenes.KINDS}, or for models of images a folder of them",
    )
    _scene_options(train)
    train.add_argument(
        "--anomalous", metavar="FOLDER", help="images with anomalies, for models that take them"
    )
    train.add_argument(
        "--set",
        dest="params",
        type=_param,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="parameter of the model, as epochs=5; may be given several times",
    )
    train.add_argument("--seed", type=int, metavar="N", help="default: 0")
    train.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        help="keep the state of every epoch here; a run that was interrupted goes on from it",
    )
    train.add_argument(
        "-o", "--output", metavar="FILE", help="default: SCENE_MODEL.safetensors in this folder"
    )
    train.set_defaults(run=_train)

    bench = commands.add_parser(
        "benchmark",
        help="table of detectors on scenes with ground truth",
        description="Scores every scene with every detector and the trivial baselines, and writes "
        "table.md, table.csv, maps.png and SCENE_roc.png into a folder. Runs that are there "
        "already are not done again.",
    )
    bench.add_argument("scenes", nargs="+", metavar="SCENE", help="scene files, or folders of them")
    bench.add_argument(
        "--detectors",
        type=_names(mahal.benchmark.NAMES),
        default=mahal.benchmark.DEFAULT,
        metavar="A,B,...",
        help=f"of {', '.join(mahal.benchmark.NAMES)}; default: {','.join(mahal.benchmark.DEFAULT)}",
    )
    bench.add_argument("--runs", type=_threads, default=5, metavar="N", help="default: 5")
    bench.add_argument("-o", "--output", default="benchmark", metavar="FOLDER")
    bench.set_defaults(run=_benchmark)

    tune = commands.add_parser(
        "tune",
        help="grid search over the parameters of a model",
        description="Trains every combination of parameters with several seeds on scenes with "
        "ground truth, and writes grid.md, grid.csv, grid_roc.png and grid_auc.png into a folder. "
        "Runs that are there already are not done again.",
    )
    tune.add_argument("model", metavar="MODEL", type=_detector_name, help=", ".join(learned))
    tune.add_argument("scenes", nargs="+", metavar="SCENE", help="scene files, or folders of them")
    tune.add_argument(
        "--grid",
        type=_values,
        action="append",
        required=True,
        metavar="NAME=A,B,...",
        help="values of a parameter, as layers=2,3,4; may be given several times",
    )
    tune.add_argument("--runs", type=_threads, default=5, metavar="N", help="default: 5")
    tune.add_argument("-o", "--output", default="tuning", metavar="FOLDER")
    tune.set_defaults(run=_tune)

    listing = commands.add_parser("detectors", help="the detectors, one line each")
    listing.set_defaults(run=_list_detectors)

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


def _scene_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key", help="MATLAB or .npz variable with the image")
    parser.add_argument("--map-key", help="MATLAB or .npz variable with the ground truth")
    parser.add_argument("--mask-key", help="MATLAB variable with the pixels to use (non-zero)")
    parser.add_argument("--truth", metavar="FILE", help="separate file with the ground truth")
    parser.add_argument(
        "--channels", choices=["last", "first"], help="axis of the bands in .npy and .npz files"
    )
    parser.add_argument(
        "--polarisations",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B,...",
        help="channels to keep of radar products that name them, as HH,HV,VV",
    )
    parser.add_argument("--frequency", choices=["A", "B"], help="band of a NISAR product")


def _score_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="ROW,COL of a pixel, truth (mean of the true targets), or a file: text, .npy, ENVI "
        "library",
    )
    parser.add_argument("--target-name", metavar="NAME", help="spectrum of an ENVI library")
    parser.add_argument(
        "--window",
        type=_window,
        metavar="INNER OUTER",
        help="odd sizes of guard and background window around every pixel; one odd "
        "size: no guard. Not given: statistics of the whole image",
    )
    parser.add_argument(
        "--border",
        choices=["shift", "reflect", "valid"],
        default="shift",
        help="windows at the border: shifted inside (default), mirrored, or not scored",
    )
    parser.add_argument(
        "--singular",
        choices=["load", "nan", "raise"],
        default="load",
        help="covariances that are not positive definite: add a small share of the global one "
        "(default), no score, or stop",
    )
    parser.add_argument(
        "--uncentred", action="store_true", help="the mean is zero by assumption (single-look SAR)"
    )


def _detector_name(text: str) -> str:
    name = text.replace("-", "_")
    if name not in DETECTORS:
        raise argparse.ArgumentTypeError(f"no {text!r}, has {', '.join(DETECTORS)}")
    return name


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text}")
    try:
        found = json.loads(value)
    except ValueError:
        return name, value
    return name, tuple(found) if isinstance(found, list) else found


def _values(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    if not name or not equals or not values:
        raise argparse.ArgumentTypeError(f"must be NAME=A,B,..., got {text}")
    return name, [_param(f"{name}={value}")[1] for value in values.split(",")]


def _names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.replace("-", "_").split(","))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"no {name!r}, has {', '.join(allowed)}")
        return names

    return parse


def _side(text: str) -> int:
    if not text.isdecimal() or int(text) % 2 == 0:
        raise argparse.ArgumentTypeError(f"must be an odd size, got {text}")
    return int(text)


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


def _report(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"must end in .html, got {text}")
    return path


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)


# detect


def _detect(args: argparse.Namespace) -> None:
    if args.demo == (args.scene is not None):
        raise _UsageError("detect: needs either SCENE or --demo")
    if args.tile or args.scheduler or Path(args.scene or "").suffix == ".zarr":
        args.model = _one_model(args)
        _detect_in_tiles(args)
        return
    if not args.demo and scenes.is_image_folder(args.scene):
        _detect_folder(args)
        return
    args.model = _one_model(args)
    window = args.window
    if window is not None and args.background is not None:
        raise _UsageError("detect: --window and --background exclude each other")
    if args.model is not None and args.detector is not None:
        raise _UsageError("detect: --model and --detector exclude each other")
    if args.model is not None:
        detector: Detector = Learner.read(args.model)
    name = DEMO if args.demo else Path(args.scene).stem
    prefix = _prefix(args.output, name)
    for module in ("scipy.special", "matplotlib.figure"):
        scenes.extra(module)
    if args.report is not None:
        _writable(args.report, "--report")
        scenes.extra("bokeh")
    scene = _scene(args)
    if args.model is None:
        detector = DETECTORS[args.detector or _default_detector(args, scene)]
    args.detector = detector.name
    _check_options("detect", detector, args)
    law = _has_law(args)
    if args.false_discovery_rate is not None and not law and not detector.continued:
        raise _UsageError(
            f"detect: --false-discovery-rate: needs the law of the scores, and {detector.name} "
            f"with {args.estimator} has none"
        )
    target = _target("detect", args, detector, scene)
    background = None if args.background is None else _background(args, scene)
    score_files = scenes.score_paths(f"{prefix}_scores", scene)
    given = (scene.path, args.truth, args.background, args.target)
    _keep_inputs(score_files, given)

    with contextlib.ExitStack() as stages:
        stage = stages.enter_context(scenes.staged(prefix.parent))
        begin = time.perf_counter()
        if isinstance(detector, Learner):
            progress = sys.stderr.isatty()
            detector = detector.fitted(_floats(scene.image), scene.mask, progress=progress)
        training = time.perf_counter() - begin
        scores, status, seconds = _score(args, detector, scene, target, window, background)
        samples, inside = _samples(scene, window, args.border, background)
        counts = samples[np.isfinite(scores)] if samples.ndim else samples
        if counts.size and counts.min() == counts.max():
            samples = counts.min()  # one threshold for all
        pvalue = None
        if law:
            threshold_of, pvalue = _by_law(args, detector, scene, samples, inside)
            threshold, detected = _decide(args, scores, threshold_of, pvalue)
        elif (tail := detector.tail(scores)) is not None:
            pvalue = tail.pvalue
            threshold, detected = _decide(args, scores, tail.threshold, pvalue)
        else:
            threshold = _empirical(scores, _alarm_rate(args))
            detected = scores >= threshold
        truth = scene.truth
        if truth is not None and not _both(truth[np.isfinite(scores)]):
            truth = None
        areas = None if truth is None else metrics.roc_areas(scores, truth)

        masked = 0 if scene.mask is None else int((~scene.mask).sum())
        files = scenes.write(stage / score_files[0].name, scores, like=scene)
        method = _method(detector, window, args.estimator, args.uncentred)
        title = f"{scene.name} · {method} · {_rule(args)}"
        label = "RX score" if detector.name == "rx" else detector.name.replace("_", " ")
        figure = pictures.detection_figure(
            scene,
            scores,
            threshold,
            truth=scene.truth,
            title=title,
            label=label,
            scale=detector.scale,
        )
        files += (stage / f"{prefix.name}_detections.png",)
        pictures.save(figure, files[-1])
        if truth is not None:
            finite = threshold[np.isfinite(threshold)]
            level = float(np.median(finite)) if finite.size else None
            files += (stage / f"{prefix.name}_roc.png",)
            pictures.save(
                pictures.roc_figure(scores, truth, threshold=level, title=title), files[-1]
            )
        codes = _codes(detector, scene)
        if codes is not None:
            files += (stage / f"{prefix.name}_latent.png",)
            shown: dict[str, Any] = {"scores": scores}
            if truth is not None:
                shown = {"labels": np.where(truth, "target", "background")}
            pictures.save(pictures.latent_figure(codes, title=title, **shown), files[-1])
        files += (stage / f"{prefix.name}_summary.json",)
        scored = np.isfinite(scores)
        summary = {
            **_scene_summary(scene),
            "detector": args.detector,
            "estimator": args.estimator,
            "centred": not args.uncentred,
            "target": args.target,
            "target_name": args.target_name,
            "window": window,
            "border": None if window is None else args.border,
            "background": args.background,
            "singular_rule": args.singular,
            "samples": _range(samples, scored),
            "seconds": training + seconds,
            "pixels_scored": int(scored.sum()),
            "pixels_masked": masked,
            "pixels_at_the_edge": int((status == LEFT_OUT).sum()) - masked,
            "pixels_not_finite": int((status == NOT_FINITE).sum()),
            "pixels_with_too_few_samples": int((status == TOO_FEW).sum()),
            "pixels_singular": int((status == SINGULAR).sum()),
            "pixels_not_converged": int((status == NOT_CONVERGED).sum()),
            "false_alarm_rate": None if args.false_discovery_rate else _alarm_rate(args),
            "false_discovery_rate": args.false_discovery_rate,
            "threshold_rule": "law of the scores"
            if law
            else "tail of the scores"
            if detector.continued
            else "share of the pixels",
            "threshold": _range(threshold, scored),
            "detections": int(detected.sum()),
            "targets": None if scene.truth is None else int(scene.truth.sum()),
            "targets_detected": None if scene.truth is None else int(detected[scene.truth].sum()),
            "areas": None if areas is None else dataclasses.asdict(areas),
            "files": [file.name for file in files],
        }
        _write_json(files[-1], summary)
        written = [prefix.parent / file.name for file in files]
        rows = _detect_rows(scene, summary, method, _rule(args))
        if args.report is not None:
            page = report.page(
                scene,
                scores,
                threshold,
                pvalue=pvalue,
                window=window,
                border=args.border,
                title=title,
                rule=_rule(args),
                label=label,
                scale=detector.scale,
                facts=rows,
            )
            stage = stages.enter_context(scenes.staged(args.report.parent))
            (stage / args.report.name).write_text(page, encoding="utf-8")
            written.append(args.report)
    _print(rows)
    _print([("written", str(path)) for path in written])


def _one_model(args: argparse.Namespace) -> str | None:
    if args.model is not None and len(args.model) > 1:
        raise _UsageError("detect: several --model: only with a folder of images")
    return None if args.model is None else str(args.model[0])


def _codes(detector: Detector, scene: Scene) -> Array | None:
    """Where every pixel lies in the latent space of the first network, where there is one."""
    if not isinstance(detector, Learner) or not hasattr(detector.model, "codes"):
        return None
    codes: Array = detector.model.codes(_floats(scene.image), mask=scene.mask)[0]
    return codes if codes.shape[-1] > 1 else None


def _detect_folder(args: argparse.Namespace) -> None:
    if args.model is None:
        raise _UsageError("detect: a folder of images needs --model, see `mahal train`")
    detectors = [Learner.read(path) for path in args.model]
    detector = detectors[0]
    if any(other.name != detector.name for other in detectors):
        raise _UsageError("detect: several --model: must be trainings of one model")
    args.detector = detector.name
    _check_options("detect", detector, args)
    others = (
        *(name for name in SCENE_OPTIONS if name != "truth"),
        "false_discovery_rate",
        "report",
    )
    for option in others:
        if getattr(args, option) is not None:
            raise _UsageError(f"detect: --{option.replace('_', '-')}: not for a folder of images")
    scenes.extra("matplotlib.figure")
    folder = scenes.Folder(args.scene, args.truth)
    output = Path(args.output or f"{Path(args.scene).resolve().name}_{detector.name}")
    options: dict[str, Any] = {"rate": _alarm_rate(args), "report": _tell}
    names = [Path(path).stem for path in args.model]
    if len(set(names)) < len(names):
        raise _UsageError("detect: several --model: their files need different names")
    if len(names) == 1:
        found, _ = _image_folders.detect(detector.model, folder, output, **options)
        runs = [found]
    else:
        models = dict(zip(names, (other.model for other in detectors), strict=True))
        found = _image_folders.detect_runs(models, folder, output, **options)
        runs = found["runs"]
    _tell("")
    rows = [("images", f"{len(folder)} of {args.scene}")]
    for run in runs:
        detections = [row["detections"] for row in run["images"]]
        rows += [
            ("model", run["model"]),
            (
                "threshold",
                f"{run['threshold']:.6g} for a false-alarm rate of {_alarm_rate(args):g}",
            ),
            ("detections", f"{sum(detections)} pixels in {np.count_nonzero(detections)} images"),
        ]
    for key, label in _image_folders.AREAS.items():
        area = found[key]
        if isinstance(area, dict):
            rows.append((label, f"{area['mean']:.5f} ± {area['deviation']:.5f}"))
        elif area is not None:
            rows.append((label, f"{area:.5f}"))
    _print([*rows, ("written", f"{output}{os.sep}")])


def _detect_in_tiles(args: argparse.Namespace) -> None:
    from mahal.blocks import _command

    def report(stage: str) -> _Progress | None:
        return _Progress(sys.stderr, stage=stage) if sys.stderr.isatty() else None

    _print(_command.detect(args, report))


def _default_detector(args: argparse.Namespace, scene: Scene) -> str:
    """Global and local RX together, unless an option asks for one of them."""
    asked = (
        args.window is not None
        or args.background is not None
        or args.estimator != "scm"
        or args.uncentred
        or args.target is not None
        or scene.image.dtype.kind == "c"
    )
    return "rx" if asked else "fused_rx"


def _alarm_rate(args: argparse.Namespace) -> float:
    return 1e-3 if args.false_alarm_rate is None else float(args.false_alarm_rate)


def _has_law(args: argparse.Namespace) -> bool:
    inside = args.background is None and _is_sample(args.window)
    return DETECTORS[args.detector].has_law(args.estimator, inside)


def _rule(args: argparse.Namespace) -> str:
    if args.false_discovery_rate is not None:
        return f"false-discovery rate {args.false_discovery_rate:g}"
    if not _has_law(args) and not DETECTORS[args.detector].continued:
        return f"share of pixels {_alarm_rate(args):g}"
    return f"false-alarm rate {_alarm_rate(args):g}"


def _check_options(command: str, detector: Detector, args: argparse.Namespace) -> None:
    """Refuse options that the detector would ignore."""
    for option, name, used in (
        ("--window", "window", args.window is not None),
        ("--background", "background", args.background is not None),
        ("--estimator", "estimator", args.estimator != "scm"),
    ):
        if used and not detector.takes(name):
            raise _UsageError(f"{command}: {option}: not for {detector.name}")
    if args.uncentred and (detector.name == "cem" or not detector.takes("center")):
        raise _UsageError(f"{command}: --uncentred: not for {detector.name}")
    if args.target is not None and not detector.needs_target:
        raise _UsageError(f"{command}: --target: not for {detector.name}")


def _target(
    command: str, args: argparse.Namespace, detector: Detector, scene: Scene
) -> Array | None:
    if not detector.needs_target:
        return None
    if args.target is None:
        raise _UsageError(f"{command}: --target: {detector.name} needs one")
    target = scenes.read_target(args.target, scene, args.target_name)
    if target.ndim > 1:
        raise _UsageError(
            f"{command}: --target: must be one spectrum, got {len(target)}; "
            "--target-name chooses one of a library"
        )
    return target


def _by_law(
    args: argparse.Namespace, detector: Detector, scene: Scene, samples: Array, inside: bool
) -> tuple[Callable[[float], Any], Callable[[Array], Any]]:
    """Threshold for a rate and p-value of scores, by the law of the scores."""
    law = detector.law
    assert law is not None
    bands = scene.image.shape[2]
    options = {
        "background": "global" if inside else "local",
        "mean": "known" if args.uncentred else "estimated",
        "complex_data": scene.image.dtype.kind == "c",
    }
    if args.estimator != "scm":
        options["estimator"] = args.estimator
    return (
        lambda rate: law.threshold(rate, bands, samples, **options),
        lambda scores: law.pvalue(scores, bands, samples, **options),
    )


def _decide(
    args: argparse.Namespace,
    scores: Array,
    threshold_of: Callable[[float], Any],
    pvalue: Callable[[Array], Any],
) -> tuple[Array, Array]:
    """Threshold for the false-alarm or false-discovery rate, one or a map, and what reaches it."""
    rate = _alarm_rate(args)
    found = None
    if args.false_discovery_rate is not None:
        found = significance.false_discovery(pvalue(scores), args.false_discovery_rate)
        rate = float(np.clip(found.threshold, SMALLEST, 1.0 - np.finfo(float).eps))
    threshold = np.asarray(threshold_of(rate))
    if found is None:
        return threshold, np.asarray(scores >= threshold)
    # The score at the threshold itself is detected, whatever rounding says.
    if threshold.ndim:
        threshold = np.where(found.detected, np.minimum(threshold, scores), threshold)
    elif found.detected.any():
        threshold = np.asarray(scores[found.detected].min(), dtype=np.float64)
    return threshold, found.detected


def _empirical(scores: Array, rate: float) -> Array:
    """Score that a share of the pixels reaches."""
    scored = scores[np.isfinite(scores)]
    return np.asarray(np.quantile(scored, 1.0 - rate) if scored.size else np.nan)


def _keep_inputs(files: Iterable[Path], given: Iterable[Any]) -> None:
    inputs = [Path(path).resolve() for path in given if path]
    for path in files:
        if path.resolve() in inputs:
            raise scenes.SceneError(f"{path}: --output: must not replace an input file")


def _scene_summary(scene: Scene) -> dict[str, Any]:
    return {
        "mahal": mahal.__version__,
        "scene": scene.name,
        "file": None if scene.path is None else str(scene.path),
        "key": scene.key,
        "map_key": scene.map_key,
        "polarisations": scene.polarisations,
        "rows": scene.image.shape[0],
        "cols": scene.image.shape[1],
        "bands": scene.image.shape[2],
        "dtype": str(scene.image.dtype),
    }


def _method(
    detector: Detector, window: int | tuple[int, int] | None, estimator: str, uncentred: bool
) -> str:
    name = "RX" if detector.name == "rx" else detector.name.replace("_", " ")
    if estimator != "scm":
        name += f" ({estimator})"
    if uncentred:
        name += ", mean zero"
    if window is None:
        return f"global {name}" if detector.takes("background") else name
    sizes = str(window) if isinstance(window, int) else f"{window[0]} {window[1]}"
    return f"local {name}, window {sizes}"


def _prefix(output: str | None, name: str) -> Path:
    """Path that every output file starts with, after `OUTPUT_RULE`."""
    if output is None:
        return _writable(Path(name))
    if Path(output).is_dir() or output.endswith(("/", os.sep)):
        return _writable(Path(output) / name)
    return _writable(Path(output))


def _writable(prefix: Path, option: str = "--output") -> Path:
    folder = prefix.parent
    if not folder.is_dir():
        raise scenes.SceneError(f"{option}: folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise scenes.SceneError(f"{option}: folder {folder} cannot be written")
    return prefix


SCENE_OPTIONS = (
    "key",
    "map_key",
    "mask_key",
    "truth",
    "channels",
    "polarisations",
    "frequency",
)


def _scene(args: argparse.Namespace) -> Scene:
    given = {option: getattr(args, option) for option in SCENE_OPTIONS}
    if not args.demo:
        return scenes.read(args.scene, **given)
    for option, value in given.items():
        if value is not None:
            raise _UsageError(f"detect: --{option.replace('_', '-')}: not for --demo")
    return dataclasses.replace(scenes.simulate(), name=DEMO)


def _background(args: argparse.Namespace, scene: Scene) -> Array:
    """Pixels (n, bands) of the background scene that can be used."""
    path = Path(args.background)
    same_kind = path.suffix.lower() == (scene.path or path).suffix.lower()
    given = ("key", "channels", "polarisations", "frequency")
    options = {option: getattr(args, option) for option in given if same_kind}
    other = scenes.read(path, **options)
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
    detector: Detector,
    scene: Scene,
    target: Array | None,
    window: int | tuple[int, int] | None,
    background: Array | None,
) -> tuple[Array, Array, float]:
    image = _floats(scene.image)
    if background is not None:
        background = _floats(background)
        kind = np.result_type(image.dtype, background.dtype)
        image, background = image.astype(kind, copy=False), background.astype(kind, copy=False)
    if target is not None:
        target = _as_kind(target, image.dtype)
    options: dict[str, Any] = {"mask": scene.mask, "singular": args.singular}
    if window is not None:
        options |= {"window": window, "border": args.border}
    if background is not None:
        options["background"] = background
    if args.estimator != "scm":
        options["estimator"] = args.estimator
    if args.uncentred:
        options["center"] = False
    progress = _Progress(sys.stderr) if sys.stderr.isatty() else None
    begin = time.perf_counter()
    try:
        with warnings.catch_warnings():
            # The summary counts these pixels.
            warnings.simplefilter("ignore", mahal.SingularWarning)
            warnings.simplefilter("ignore", mahal.ConvergenceWarning)
            scores, status = detector.score(
                image, target, threads=args.threads, progress=progress, **options
            )
    finally:
        if progress is not None:
            progress.clear()
    return scores, status, time.perf_counter() - begin


def _floats(values: Array) -> Array:
    # Twice the time of float32, and no scene is too ill-conditioned for it.
    return values.astype(np.float64) if values.dtype.kind in "iu" else values


def _as_kind(target: Array, kind: np.dtype[Any]) -> Array:
    """Target in the double of the image's dtype."""
    if kind.kind != "c" and target.dtype.kind == "c":
        raise scenes.SceneError("--target: must be real for a real image, got complex numbers")
    return target.astype(np.complex128 if kind.kind == "c" else np.float64)


class _Progress:
    """Percentage on one line of a terminal, shown once a run takes longer than a moment."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.perf_counter,
        *,
        stage: str = "scoring",
    ) -> None:
        self.stream = stream
        self.stage = stage
        self.clock = clock
        self.begin = self.last = clock()
        self.shown = False

    def __call__(self, done: int, total: int) -> None:
        now = self.clock()
        if now - self.begin < 0.5 or now - self.last < 0.1:
            return
        self.last, self.shown = now, True
        left = (now - self.begin) * (total - done) / max(done, 1)
        line = f"\r{self.stage} {100 * done / max(total, 1):3.0f} %, {left:.0f} s left  "
        print(line, end="", file=self.stream, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r" + " " * 40 + "\r", end="", file=self.stream, flush=True)


def _is_sample(window: int | tuple[int, int] | None) -> bool:
    """Whether a pixel is among the samples of its own background."""
    return window is None or isinstance(window, int) or window[0] == 0


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
    inside = _is_sample(window)
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


def _detect_rows(scene: Scene, summary: Mapping[str, Any], method: str, rule: str) -> Rows:
    pixels = summary["rows"] * summary["cols"]
    rows = _scene_rows("scene", scene)
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
        ("pixels_not_converged", "unconverged"),
    ):
        if summary[field]:
            rows.append((word, f"{summary[field]} pixels"))
    scored, found = summary["pixels_scored"], summary["detections"]
    share = f"{100 * found / scored:.3g} % of {scored} scored" if scored else f"of {pixels}"
    rows += [
        ("threshold", f"{_span(summary['threshold'], '{:.6g}')} at {rule}"),
        ("detections", f"{found} pixels, {share}"),
    ]
    if summary["targets"] is not None:
        rows.append(("targets", f"{summary['targets_detected']} of {summary['targets']} pixels"))
    if summary["areas"] is not None:
        rows += _area_rows(summary["areas"])
    elif summary["targets"] is not None:
        rows.append(("areas", "none: the truth has only one kind of scored pixel"))
    return rows


def _scene_rows(word: str, scene: Scene) -> Rows:
    source = "simulated" if scene.path is None else str(scene.path)
    keys = [f"{text} {key}" for text, key in (("key", scene.key), ("truth", scene.map_key)) if key]
    rows, cols, bands = scene.image.shape
    lines = [
        (word, ", ".join([source, *keys])),
        ("size", f"{rows} x {cols} pixels, {bands} bands, {scene.image.dtype}"),
    ]
    if scene.polarisations:
        lines.append(("channels", ", ".join(scene.polarisations)))
    return lines


def _span(value: float | list[float] | None, form: str) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"{form.format(value[0])} to {form.format(value[1])}"
    return form.format(value)


def _area_rows(areas: Mapping[str, float]) -> Rows:
    return [(name, f"{areas[field]:.5f}") for field, name in AREAS.items()]


# compare, change, detectors


def _compare(args: argparse.Namespace) -> None:
    names = args.detectors
    if names is None:
        names = [
            name
            for name, detector in DETECTORS.items()
            if not detector.learned and (args.target is not None or not detector.needs_target)
        ]
    prefix = _prefix(args.output, Path(args.scene).stem)
    for module in ("scipy.special", "matplotlib.figure"):
        scenes.extra(module)
    scene = scenes.read(args.scene, **{option: getattr(args, option) for option in SCENE_OPTIONS})
    if scene.truth is None or not _both(scene.truth):
        raise scenes.SceneError(f"{args.scene}: needs ground truth with targets and background")
    with scenes.staged(prefix.parent) as stage:
        maps: dict[str, Array] = {}
        table: list[dict[str, Any]] = []
        for variant, detector, window, estimator in _variants(names, args, scene):
            one = argparse.Namespace(**{**vars(args), "estimator": estimator})
            one.uncentred = args.uncentred and detector.name != "cem" and detector.takes("center")
            target = _target("compare", args, detector, scene)
            scores, status, seconds = _score(one, detector, scene, target, window, None)
            if not _both(scene.truth[np.isfinite(scores)]):
                continue
            maps[variant] = scores
            areas = dataclasses.asdict(metrics.roc_areas(scores, scene.truth))
            singular = int((status == SINGULAR).sum())
            table.append(
                {
                    "name": variant,
                    "detector": detector.name,
                    "estimator": estimator,
                    "window": window,
                    "seconds": seconds,
                    "singular": singular,
                    "areas": areas,
                }
            )
        if not maps:
            raise scenes.SceneError(f"{args.scene}: no detector scored targets and background")
        files = [stage / f"{prefix.name}_{ending}" for ending in ("roc.png", "summary.json")]
        title = f"{scene.name}: {int(scene.truth.sum())} target pixels"
        pictures.save(pictures.comparison_figure(maps, scene.truth, title=title), files[0])
        summary = {
            **_scene_summary(scene),
            "target": args.target,
            "target_name": args.target_name,
            "results": table,
            "files": [file.name for file in files],
        }
        _write_json(files[-1], summary)
    _print(_scene_rows("scene", scene))
    width = max(len(row["name"]) for row in table)
    print(f"{'':<{width}}  AUC(D,F)  AUC(D,tau)  AUC(F,tau)  seconds")
    for row in sorted(table, key=lambda item: -item["areas"]["auc_df"]):
        numbers = row["areas"]
        print(
            f"{row['name']:<{width}}  {numbers['auc_df']:8.5f}  {numbers['auc_dtau']:10.5f}  "
            f"{numbers['auc_ftau']:10.5f}  {row['seconds']:7.3g}"
        )
    _print([("written", str(prefix.parent / file.name)) for file in files])


def _variants(
    names: Sequence[str], args: argparse.Namespace, scene: Scene
) -> Iterable[tuple[str, Detector, int | tuple[int, int] | None, str]]:
    """Every detector, with each estimator and window that it takes."""
    for name in names:
        detector = DETECTORS[name]
        if detector.options.get("signed") and scene.image.dtype.kind == "c":
            continue
        local = args.window is not None and detector.takes("window")
        estimators = args.estimators if detector.takes("estimator") else ("scm",)
        for window in (None, args.window) if local else (None,):
            for estimator in estimators:
                uncentred = args.uncentred and detector.name != "cem" and detector.takes("center")
                yield _method(detector, window, estimator, uncentred), detector, window, estimator


def _change(args: argparse.Namespace) -> None:
    prefix = _prefix(args.output, f"{Path(args.first).stem}_{Path(args.second).stem}")
    for module in ("scipy.special", "matplotlib.figure"):
        scenes.extra(module)
    given = {option: getattr(args, option) for option in SCENE_OPTIONS}
    first = scenes.read(args.first, **given)
    second = scenes.read(args.second, **{**given, "truth": None, "map_key": None})
    if first.image.shape != second.image.shape:
        raise scenes.SceneError(
            f"{args.second}: must have the shape of the first image {first.image.shape}, "
            f"got {second.image.shape}"
        )
    score_files = scenes.score_paths(f"{prefix}_scores", first)
    _keep_inputs(score_files, (first.path, second.path, args.truth))
    bands = first.image.shape[2]
    images = [_in_domain(scene.image, args.domain) for scene in (first, second)]
    kind = np.result_type(*images)
    images = [image.astype(kind, copy=False) for image in images]
    masks = [scene.mask for scene in (first, second) if scene.mask is not None]
    mask = np.logical_and.reduce(masks) if masks else None
    with scenes.staged(prefix.parent) as stage:
        begin = time.perf_counter()
        scores, status = mahal.change_map(
            images[0],
            images[1],
            args.window,
            metric=args.metric,
            center=not args.uncentred,
            border=args.border,
            mask=mask,
            compat=args.compat,
            return_status=True,
            threads=args.threads,
        )
        seconds = time.perf_counter() - begin
        law = args.metric == ("wishart" if kind.kind == "c" else "box_m")
        if law:
            samples = significance.window_samples(
                first.image.shape[:2], args.window, border=args.border, mask=mask
            )
            threshold = np.asarray(
                significance.covariance_equality_threshold(
                    args.false_alarm_rate,
                    bands,
                    samples,
                    samples,
                    mean="known" if args.uncentred else "estimated",
                    complex_data=kind.kind == "c",
                )
            )
        else:
            threshold = _empirical(scores, args.false_alarm_rate)
        changed = scores >= threshold
        truth = first.truth
        if truth is not None and not _both(truth[np.isfinite(scores)]):
            truth = None
        areas = None if truth is None else metrics.roc_areas(scores, truth)
        files = scenes.write(stage / score_files[0].name, scores, like=first)
        rule = "false-alarm rate" if law else "share of pixels"
        method = f"{args.metric}, window {args.window}, {args.domain} values"
        title = f"{first.name} to {second.name} · {method} · {rule} {args.false_alarm_rate:g}"
        figure = pictures.change_figure(
            first, second, scores, threshold, truth=first.truth, title=title, label=args.metric
        )
        files += (stage / f"{prefix.name}_change.png",)
        pictures.save(figure, files[-1])
        if truth is not None:
            files += (stage / f"{prefix.name}_roc.png",)
            pictures.save(pictures.roc_figure(scores, truth, title=title), files[-1])
        files += (stage / f"{prefix.name}_summary.json",)
        scored = np.isfinite(scores)
        summary = {
            **_scene_summary(first),
            "second": str(second.path),
            "metric": args.metric,
            "domain": args.domain,
            "centred": not args.uncentred,
            "compat": args.compat,
            "window": args.window,
            "border": args.border,
            "seconds": seconds,
            "pixels_scored": int(scored.sum()),
            "pixels_singular": int((status == SINGULAR).sum()),
            "pixels_not_finite": int((status == NOT_FINITE).sum()),
            "false_alarm_rate": args.false_alarm_rate,
            "threshold_rule": "law of the scores" if law else "share of the pixels",
            "threshold": _range(threshold, scored),
            "changes": int(changed.sum()),
            "areas": None if areas is None else dataclasses.asdict(areas),
            "files": [file.name for file in files],
        }
        _write_json(files[-1], summary)
    share = 100 * changed.sum() / max(int(scored.sum()), 1)
    rows = [
        *_scene_rows("first", first),
        ("second", str(second.path)),
        ("metric", f"{method}, border {args.border}"),
        ("time", f"{seconds:.3g} s"),
        ("singular", f"{summary['pixels_singular']} pixels"),
        (
            "threshold",
            f"{_span(summary['threshold'], '{:.6g}')} at {rule} {args.false_alarm_rate:g}",
        ),
        ("changes", f"{summary['changes']} pixels, {share:.3g} % of {scored.sum()} scored"),
    ]
    if areas is not None:
        rows += _area_rows(dataclasses.asdict(areas))
    _print(rows)
    _print([("written", str(prefix.parent / file.name)) for file in files])


def _in_domain(image: Array, domain: str) -> Array:
    """Values as the change map compares them."""
    values = _floats(image)
    if domain == "stored":
        return values
    values = np.abs(values)
    if domain == "amplitude":
        return values
    positive = values[values > 0]
    if positive.size == 0:
        raise scenes.SceneError("--domain: log needs values that are not zero")
    # Zero has no logarithm: it counts as the smallest value there is.
    logarithm: Array = np.log(np.maximum(values, positive.min()))
    return logarithm


def _train(args: argparse.Namespace) -> None:
    detector = DETECTORS[args.model]
    if not isinstance(detector, Learner):
        raise _UsageError(f"train: MODEL: {detector.name} has nothing to learn")
    params = dict(args.params)
    if args.seed is not None:
        params["seed"] = args.seed
    try:
        model = detector.create(**params)
    except TypeError as error:
        raise _UsageError(f"train: --set: {error}") from None
    path = Path(args.output or f"{Path(args.scene).stem}_{detector.name}.safetensors")
    _writable(path)
    given = {option: getattr(args, option) for option in SCENE_OPTIONS}
    progress = sys.stderr.isatty()
    begin = time.perf_counter()
    if detector.images and scenes.is_image_folder(args.scene):
        for option, value in given.items():
            if value is not None:
                name = option.replace("_", "-")
                raise _UsageError(f"train: --{name}: not for a folder of images")
        folder = scenes.Folder(args.scene)
        rows = [("images", f"{len(folder)} of {args.scene}")]
        _image_folders.train(
            model,
            folder,
            anomalous=args.anomalous,
            progress=progress,
            checkpoint=args.checkpoint,
        )
    else:
        if args.anomalous is not None:
            raise _UsageError("train: --anomalous: only with a folder of images")
        scene = scenes.read(args.scene, **given)
        rows = [*_scene_rows("scene", scene)]
        detector.trained(
            model, scene.image, scene.mask, progress=progress, checkpoint=args.checkpoint
        )
    seconds = time.perf_counter() - begin
    model.save(path)
    rows += [("model", repr(model)), ("time", f"{seconds:.3g} s"), ("written", str(path))]
    _print(rows)


def _benchmark(args: argparse.Namespace) -> None:
    scenes.extra("matplotlib.figure")
    mahal.benchmark.run(
        args.scenes, args.detectors, runs=args.runs, output=args.output, report=_tell
    )
    _show_table(args, "table.md")


def _tune(args: argparse.Namespace) -> None:
    scenes.extra("matplotlib.figure")
    if not DETECTORS[args.model].learned:
        raise _UsageError(f"tune: MODEL: {args.model} has nothing to learn")
    mahal.tuning.grid_search(
        args.model,
        args.scenes,
        dict(args.grid),
        runs=args.runs,
        output=args.output,
        report=_tell,
    )
    _show_table(args, "grid.md")


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)


def _show_table(args: argparse.Namespace, name: str) -> None:
    _tell("")
    print((Path(args.output) / name).read_text(encoding="utf-8"), end="")
    _print([("written", f"{args.output}{os.sep}")])


def _list_detectors(args: argparse.Namespace) -> None:
    rows = []
    for name, detector in DETECTORS.items():
        notes = ["needs a target"] if detector.needs_target else []
        notes += ["takes a window"] if detector.takes("window") else []
        notes += ["takes an estimator"] if detector.takes("estimator") else []
        notes += ["learns"] if detector.learned else []
        notes += ["exact thresholds"] if detector.law else []
        rows.append((name, f"{detector.summary} ({', '.join(notes) or 'no threshold law'})"))
    _print(rows)


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

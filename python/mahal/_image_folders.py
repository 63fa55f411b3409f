"""Folders of images on the command line: training a model on them, scoring them with one."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mahal
from mahal import metrics, pictures, scenes
from mahal.scenes import Folder, SceneError

Array = npt.NDArray[Any]
ROC_PIXELS = 1 << 23
"""Pixels of all images together that the pooled curve is made of at most."""
AREAS = {
    "pixel_auc_pooled": "AUC of pixels, pooled",
    "pixel_auc_mean": "AUC of pixels, mean over images",
    "image_auc": "AUC of images",
}


def train(
    model: Any,
    folder: Folder,
    *,
    anomalous: str | Path | None,
    progress: bool,
    checkpoint: str | None,
) -> None:
    """Fit a model of images to a folder; some models also want images with anomalies."""
    given = {}
    if anomalous is not None:
        if "anomalous" not in inspect.signature(model.fit).parameters:
            raise ValueError(f"train: --anomalous: not for {type(model).__name__}")
        given["anomalous"] = Folder(anomalous)
    model.fit(folder, progress=progress, checkpoint=checkpoint, **given)


def detect(
    model: Any,
    folder: Folder,
    output: Path,
    *,
    rate: float,
    report: Callable[[str], object],
) -> tuple[dict[str, Any], list[Array]]:
    """Score every image, and write maps, pictures of detections, and a summary.

    With truth also areas: of single pixels, pooled and as a mean over the images that have both
    kinds, and of whole images by their highest score. Returns the summary, and pooled scores and
    truth where there are areas.
    """
    if output.exists() and not output.is_dir():
        raise SceneError(f"{output}: --output: must be a folder")
    output.mkdir(parents=True, exist_ok=True)
    threshold = model.threshold(rate)
    rows, pooled, labels = [], [], []
    single: list[float] = []
    highest, strange = [], []
    stride = 1
    for index, path in enumerate(folder.paths):
        report(f"{path.name}, {index + 1} of {len(folder)}")
        scene = scenes.read(path)
        truth = folder.truth(index) if folder.truths else None
        scene = dataclasses.replace(scene, name=path.stem, truth=truth)
        scores = model.score(scene.image, mask=scene.mask)
        with scenes.staged(output) as stage:
            named = scenes.score_paths(output / f"{path.stem}_scores", scene)
            if any(file.resolve() == path.resolve() for file in named):
                raise SceneError(f"{path}: --output: must not replace an input file")
            files = scenes.write(stage / named[0].name, scores, like=scene)
            title = f"{path.stem} · {model!r} · false-alarm rate {rate:g}"
            figure = pictures.detection_figure(
                scene,
                scores,
                np.asarray(threshold),
                truth=truth,
                title=title,
                label="score",
                scale="linear" if (scores < 0).any() else "log",
            )
            files += (stage / f"{path.stem}_detections.png",)
            pictures.save(figure, files[-1])
        used = np.isfinite(scores)
        row: dict[str, Any] = {
            "file": str(path),
            "highest_score": float(scores[used].max()),
            "detections": int((scores >= threshold).sum()),
            "files": [file.name for file in files],
        }
        if truth is not None:
            stride = max(1, -(-scores.size * len(folder) // ROC_PIXELS))
            pooled.append(scores[used][::stride])
            labels.append(truth[used][::stride])
            highest.append(row["highest_score"])
            strange.append(bool(truth.any()))
            row["anomalous_pixels"] = int(truth.sum())
            if truth[used].any() and not truth[used].all():
                row["auc_df"] = metrics.roc_areas(scores, truth).auc_df
                single.append(row["auc_df"])
        rows.append(row)
    summary: dict[str, Any] = {
        "mahal": mahal.__version__,
        "model": repr(model),
        "false_alarm_rate": rate,
        "threshold": threshold,
        "pixel_auc_pooled": None,
        "pixel_auc_mean": float(np.mean(single)) if single else None,
        "image_auc": None,
        "images": rows,
    }
    both: list[Array] = []
    with scenes.staged(output) as stage:
        if single:
            both = [np.concatenate(pooled), np.concatenate(labels)]
            summary["pixel_auc_pooled"] = metrics.roc_areas(*both).auc_df
            title = f"pixels of {len(folder)} images" + (f", every {stride}th" * (stride > 1))
            figure = pictures.roc_figure(*both, threshold=threshold, title=title)
            pictures.save(figure, stage / "roc.png")
        if len(set(strange)) == 2:
            summary["image_auc"] = metrics.roc_areas(np.array(highest), np.array(strange)).auc_df
        _write(stage / "summary.json", summary)
    return summary, both


def detect_runs(
    models: Mapping[str, Any],
    folder: Folder,
    output: Path,
    *,
    rate: float,
    report: Callable[[str], object],
) -> dict[str, Any]:
    """The same with several trainings of one model: a folder for each, areas over the runs."""
    found, scores, truth = [], [], None
    for name, model in models.items():

        def told(text: str, run: str = name) -> object:
            return report(f"{run}: {text}")

        one, both = detect(model, folder, output / name, rate=rate, report=told)
        found.append({"run": name, **one})
        if both:
            scores.append(both[0])
            truth = both[1]
    summary: dict[str, Any] = {"mahal": mahal.__version__, "false_alarm_rate": rate}
    for area in AREAS:
        values = [one[area] for one in found]
        known = None not in values
        summary[area] = dataclasses.asdict(metrics.over_runs(values)) if known else None
    summary["runs"] = found
    with scenes.staged(output) as stage:
        if truth is not None:
            name = type(next(iter(models.values()))).__name__
            title = f"pixels of {len(folder)} images, mean of {len(scores)} runs"
            figure = pictures.comparison_figure({name: scores}, truth, title=title)
            pictures.save(figure, stage / "roc.png")
        _write(stage / "summary.json", summary)
    return summary


def _write(path: Path, summary: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")

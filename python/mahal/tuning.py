"""Grid search over the parameters of a model, on scenes with ground truth.

The way Galuppini, Laurent and Senatore (2025) choose epochs, layers, batch size, learning rate and
latent size: every combination is trained with several seeds, and ROC curves averaged over the runs
are compared. A choice made with the truth of a scene flatters the figures of that scene; with
several scenes `grid_search` also tells what the choice gives on a scene that had no part in it.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mahal import metrics, pictures, scenes
from mahal._detectors import DETECTORS, Learner
from mahal.benchmark import measure, replace_file, with_truth

__all__ = ["Setting", "grid_search"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Setting:
    """What one combination of parameters reaches.

    Attributes
    ----------
    params : dict
        The parameters of the grid.
    auc_df : float
        AUC(D,F), mean over runs and scenes.
    deviation : float
        Standard deviation over the runs, mean over the scenes.
    worst : float
        Least of the means of single scenes.
    seconds : float
        Mean time of one training and scoring.
    """

    params: dict[str, Any]
    auc_df: float
    deviation: float
    worst: float
    seconds: float


@dataclass(frozen=True)
class _Found:
    params: dict[str, Any]
    areas: Array  # (scenes, runs)
    curves: list[metrics.MeanRoc]
    seconds: float

    def setting(self) -> Setting:
        means = self.areas.mean(axis=1)
        deviation = float(self.areas.std(axis=1).mean())
        worst = float(means.min())
        return Setting(self.params, float(means.mean()), deviation, worst, self.seconds)


def grid_search(
    name: str,
    sources: Sequence[str | Path],
    grid: Mapping[str, Sequence[Any]],
    *,
    runs: int = 5,
    output: str | Path,
    report: Callable[[str], object] = lambda text: None,
) -> list[Setting]:
    """Train every combination of parameters, and write a table and figures.

    Parameters
    ----------
    name : str
        A detector that learns, such as "spectral_autoencoder".
    sources : sequence of path
        Scene files or folders of them; those without ground truth are named in a warning and left
        out.
    grid : mapping of str to sequence
        Values of each parameter of the model.
    runs : int
        Trainings of every combination, with the seeds 0, 1, ...
    output : path
        Folder, made where it is missing. Gets grid.md, grid.csv, grid_roc.png (averaged ROC curves,
        a panel for each value of the first parameter), grid_auc.png (area over each parameter) and
        in ``runs`` what every run has found: a search that is started again goes on from there.
    report : callable, optional
        Called with a line of text before every run.

    Returns
    -------
    list of Setting
        By falling area.

    Raises
    ------
    ValueError
        Not a model, a parameter or value that it does not have, an empty grid, no scenes with
        ground truth, or ``runs`` below 1.
    """
    op = "grid_search"
    detector = DETECTORS.get(name)
    if not isinstance(detector, Learner):
        learned = ", ".join(n for n, d in DETECTORS.items() if d.learned)
        raise ValueError(f"{op}: name: must be one of {learned}, got {name!r}")
    if not grid or not all(len(values) for values in grid.values()):
        raise ValueError(f"{op}: grid: needs at least one parameter with at least one value")
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise ValueError(f"{op}: runs: must be a whole number of at least 1, got {runs!r}")
    chosen = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    for params in chosen:
        detector.create().set_params(**params)
    folder = Path(output)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    shown = list(with_truth(op, sources))
    found: list[_Found] = []
    for params in chosen:
        areas, curves, seconds = [], [], []
        for scene in shown:
            figures, maps = measure(
                folder / "runs",
                scene,
                name,
                runs,
                params=params,
                label=f" {_words(params)}",
                report=report,
            )
            areas.append([one["areas"]["auc_df"] for one in figures])
            seconds += [one["seconds"] for one in figures]
            assert scene.truth is not None
            curves.append(metrics.mean_roc(maps, scene.truth))
        found.append(_Found(params, np.array(areas), curves, float(np.mean(seconds))))
    settings = sorted((one.setting() for one in found), key=lambda one: -one.auc_df)
    _write_tables(folder, settings, found, runs, len(shown))
    pictures.save(_roc_panels(found, grid, f"{name}, {runs} runs"), folder / "grid_roc.png")
    pictures.save(_area_panels(found, grid), folder / "grid_auc.png")
    return settings


def _words(params: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in params.items())


def left_out(areas: Array) -> Array:
    """Area on each scene of the setting that is best on the others; areas (settings, scenes)."""
    rest = areas.sum(axis=1, keepdims=True) - areas
    return np.asarray(areas[rest.argmax(axis=0), np.arange(areas.shape[1])])


def _write_tables(
    folder: Path, settings: Sequence[Setting], found: Sequence[_Found], runs: int, count: int
) -> None:
    names = list(settings[0].params)
    lines = [
        "| " + " | ".join(names) + " | AUC(D,F) | deviation | worst scene | s |",
        "|" + "---|" * len(names) + "---:|---:|---:|---:|",
    ]
    for one in settings:
        cells = " | ".join(str(one.params[name]) for name in names)
        figures = f"{one.auc_df:.5f} | {one.deviation:.5f} | {one.worst:.5f} | {one.seconds:.3g}"
        lines.append(f"| {cells} | {figures} |")
    lines += ["", f"{runs} runs on {count} scene{'s' * (count > 1)}."]
    if count > 1:
        own = left_out(np.array([one.areas.mean(axis=1) for one in found]))
        lines.append(
            f"The setting that is best on the other scenes gives {own.mean():.5f} on the scene "
            f"left out, {own.min():.5f} at worst."
        )
    content = "\n".join(lines) + "\n"
    replace_file(folder / "grid.md", lambda path: path.write_text(content, encoding="utf-8"))

    def table(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*names, "AUC(D,F)", "deviation", "worst scene", "seconds"])
            for one in settings:
                values = [one.params[name] for name in names]
                writer.writerow([*values, one.auc_df, one.deviation, one.worst, one.seconds])

    replace_file(folder / "grid.csv", table)


def _roc_panels(found: Sequence[_Found], grid: Mapping[str, Sequence[Any]], title: str) -> Any:
    """Curves of every setting, averaged over runs and scenes; a panel for the first parameter."""
    first = next(iter(grid))
    panels = list(grid[first])
    figure, axes = _grid_of_axes(len(panels), (4.6, 4.2))
    for ax, value in zip(axes, panels, strict=False):
        own = [one for one in found if one.params[first] == value]
        for one in sorted(own, key=lambda one: -one.setting().auc_df):
            rates = np.unique(np.concatenate([curve.false_alarm_rate for curve in one.curves]))
            mean = np.mean(
                [
                    c.detection_rate[np.searchsorted(c.false_alarm_rate, rates, "right") - 1]
                    for c in one.curves
                ],
                axis=0,
            )
            rest = {key: v for key, v in one.params.items() if key != first}
            label = f"{_words(rest)}: {one.setting().auc_df:.4f}".lstrip(": ")
            ax.plot(np.maximum(rates, rates[1] / 2), mean, drawstyle="steps-post", label=label)
        ax.set_xscale("log")
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(f"{first} = {value}", fontsize="medium")
        ax.set_xlabel("false alarm rate $P_F$")
        ax.set_ylabel("detection rate $P_D$")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="xx-small")
    figure.suptitle(title)
    return figure


def _area_panels(found: Sequence[_Found], grid: Mapping[str, Sequence[Any]]) -> Any:
    """Area over every parameter: each setting a point, their mean a line."""
    figure, axes = _grid_of_axes(len(grid), (3.6, 3.2))
    for ax, (name, values) in zip(axes, grid.items(), strict=False):
        places = range(len(values))
        means = []
        for place, value in enumerate(values):
            own = [one.setting() for one in found if one.params[name] == value]
            offsets = np.linspace(-0.15, 0.15, len(own)) if len(own) > 1 else [0.0]
            ax.errorbar(
                np.add(place, offsets),
                [one.auc_df for one in own],
                [one.deviation for one in own],
                fmt=".",
                color="C0",
                alpha=0.6,
            )
            means.append(np.mean([one.auc_df for one in own]))
        ax.plot(places, means, color="C1", marker="o", label="mean")
        ax.set_xticks(places, [str(value) for value in values])
        ax.set_xlabel(name)
        ax.set_ylabel("AUC(D,F)")
        ax.grid(alpha=0.3)
    return figure


def _grid_of_axes(count: int, size: tuple[float, float]) -> tuple[Any, list[Any]]:
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    shape = (size[0] * columns, size[1] * rows)
    figure = scenes.extra("matplotlib.figure").Figure(shape, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes

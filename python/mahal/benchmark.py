"""Detectors side by side on scenes with ground truth, trivial baselines always among them."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mahal
from mahal import metrics, pictures, scenes
from mahal._detectors import DETECTORS, Learner
from mahal.scenes import Scene, SceneError

__all__ = ["BASELINES", "DEFAULT", "NAMES", "Row", "find_scenes", "run"]

Array = npt.NDArray[Any]
SUFFIXES = (".mat", ".hdr", ".tif", ".tiff", ".npy", ".npz")
# How files with the truth of a scene beside it are named.
TRUTH_ENDINGS = (".mask", "_mask", "_gt", "_GT", "Gt", "_truth", "_map")
LOCAL_WINDOW = (5, 21)


def _distance(image: Array, mask: Array | None) -> Array:
    used = image if mask is None else image[mask]
    mean = used.reshape(-1, image.shape[2]).mean(axis=0, dtype=np.float64)
    return np.asarray(((image - mean) ** 2).sum(axis=2))


def _angle(image: Array, mask: Array | None) -> Array:
    used = image if mask is None else image[mask]
    mean = used.reshape(-1, image.shape[2]).mean(axis=0, dtype=np.float64)
    return np.asarray(mahal.spectral_angle(image, mean))


def _local_rx(image: Array, mask: Array | None) -> Array:
    return np.asarray(mahal.rx(image, window=LOCAL_WINDOW, mask=mask))


BASELINES: dict[str, Callable[[Array, Array | None], Array]] = {
    "distance": _distance,
    "angle": _angle,
}
"""Always in a table: squared distance and spectral angle to the mean spectrum."""

PLAIN = {**BASELINES, "local_rx": _local_rx}
NAMES = (
    *PLAIN,
    *(n for n, d in DETECTORS.items() if not (d.needs_target or getattr(d, "images", False))),
)
DEFAULT = ("rx", "local_rx", "fused_rx")


@dataclass(frozen=True)
class Row:
    """Figures of one detector on one scene.

    Attributes
    ----------
    scene, detector : str
    runs : int
        Trainings with the seeds 0, 1, ...; 1 for a detector that learns nothing.
    areas : dict of str to (float, float)
        Mean and standard deviation over the runs of each field of `mahal.metrics.RocAreas`.
    seconds : float
        Mean time of training and scoring.
    memory : float or None
        Largest growth of the resident memory in MiB, where the system tells.
    """

    scene: str
    detector: str
    runs: int
    areas: dict[str, tuple[float, float]]
    seconds: float
    memory: float | None


def find_scenes(paths: Iterable[str | Path]) -> list[tuple[Path, Path | None]]:
    """Scene files and the files with their truth, where that is a file of its own.

    Parameters
    ----------
    paths : iterable of path
        Files, or folders whose scene files are taken.

    Returns
    -------
    list of (path, path or None)

    Raises
    ------
    SceneError
        A path that does not exist, or a folder without scenes.
    """
    found: list[tuple[Path, Path | None]] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            files = [p for p in files if not p.stem.endswith(TRUTH_ENDINGS)]
            if not files:
                raise SceneError(f"{path}: has no scene ({', '.join(SUFFIXES)})")
        elif path.is_file():
            files = [path]
        else:
            raise SceneError(f"{path}: no such file or folder")
        found += [(p, _truth_beside(p)) for p in files]
    return found


def _truth_beside(path: Path) -> Path | None:
    for ending in TRUTH_ENDINGS:
        for other in sorted(path.parent.glob(f"{path.stem}{ending}.*")):
            if other.suffix.lower() not in (".hdr",):
                return other
    return None


def run(
    sources: Sequence[str | Path],
    detectors: Sequence[str] = DEFAULT,
    *,
    runs: int = 5,
    output: str | Path,
    report: Callable[[str], object] = lambda text: None,
) -> list[Row]:
    """Score scenes with detectors, and write a table, ROC curves and a sheet of maps.

    Parameters
    ----------
    sources : sequence of path
        Scene files or folders of them. Scenes without ground truth are named in a warning and left
        out.
    detectors : sequence of str
        Of `NAMES`; the `BASELINES` are added.
    runs : int
        Trainings of each detector that learns.
    output : path
        Folder, made where it is missing. Gets table.md, table.csv, maps.png and SCENE_roc.png, and
        in ``runs`` what every run has found: a benchmark that is started again takes it from there
        unless the scene, the detector or the version of mahal has changed.
    report : callable, optional
        Called with a line of text before every run.

    Returns
    -------
    list of Row
        By scene, then by detector.

    Raises
    ------
    ValueError
        Unknown detectors, no scenes with ground truth, or ``runs`` below 1.
    """
    op = "benchmark"
    names = tuple(dict.fromkeys((*BASELINES, *detectors)))
    for name in names:
        if name not in NAMES:
            raise ValueError(f"{op}: detectors: no {name!r}, has {', '.join(NAMES)}")
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise ValueError(f"{op}: runs: must be a whole number of at least 1, got {runs!r}")
    folder = Path(output)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    shown: list[tuple[Scene, dict[str, Array]]] = []
    for scene in with_truth(op, sources):
        truth = scene.truth
        assert truth is not None
        maps: dict[str, list[Array]] = {}
        for name in names:
            found, maps[name] = measure(folder / "runs", scene, name, runs, report=report)
            rows.append(_row(scene.name, name, found))
        shown.append((scene, {name: several[0] for name, several in maps.items()}))
        figure = pictures.comparison_figure(maps, truth, title=scene.name)
        pictures.save(figure, folder / f"{scene.name}_roc.png")
    pictures.save(pictures.map_sheet(shown), folder / "maps.png")
    _write_tables(folder, rows, names)
    return rows


def with_truth(op: str, sources: Iterable[str | Path]) -> Iterator[Scene]:
    """The scenes that have ground truth; the others are named in a warning."""
    none = True
    for path, truth_file in find_scenes(sources):
        scene = scenes.read(path, truth=truth_file)
        if scene.truth is None or not scene.truth.any() or scene.truth.all():
            warnings.warn(f"{op}: {path}: has no ground truth and is left out", stacklevel=3)
        else:
            none = False
            yield scene
    if none:
        raise ValueError(f"{op}: sources: has no scene with ground truth")


def measure(
    folder: Path,
    scene: Scene,
    name: str,
    runs: int,
    *,
    params: Mapping[str, Any] | None = None,
    label: str = "",
    report: Callable[[str], object],
) -> tuple[list[dict[str, Any]], list[Array]]:
    """Figures and score maps of every run of a detector, from the folder or anew."""
    detector = DETECTORS.get(name)
    figures, maps = [], []
    for number in range(runs if isinstance(detector, Learner) else 1):
        counted = f", run {number + 1} of {runs}" if isinstance(detector, Learner) else ""
        report(f"{scene.name}: {name}{label}{counted}")
        model = None
        if isinstance(detector, Learner):
            model = detector.create(**{**(params or {}), "seed": number})
        found, scores = _measured(
            folder / f"{scene.name}-{name}{label}-{number}", scene, name, model
        )
        figures.append(found)
        maps.append(scores)
    return figures, maps


def _measured(base: Path, scene: Scene, name: str, model: Any) -> tuple[dict[str, Any], Array]:
    """Figures and scores of one run."""
    state = hashlib.blake2b(scene.image.tobytes(), digest_size=8)
    for part in (scene.truth, scene.mask):
        state.update(b"" if part is None else part.tobytes())
    key = {"mahal": mahal.__version__, "scene": state.hexdigest(), "detector": repr(model or name)}
    notes, map_file = base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.npy")
    if notes.exists() and map_file.exists():
        kept = json.loads(notes.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept, np.load(map_file)
    image = scene.image.astype(np.float64) if scene.image.dtype.kind in "iu" else scene.image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = _reset_peak()
        begin = time.perf_counter()
        if model is not None:
            detector = DETECTORS[name]
            assert isinstance(detector, Learner)
            detector.trained(model, image, scene.mask)
            scores = model.score(image, mask=scene.mask)
        elif name in PLAIN:
            scores = PLAIN[name](image, scene.mask)
        else:
            scores, _ = DETECTORS[name].score(image, None, mask=scene.mask)
        seconds = time.perf_counter() - begin
        after = _peak()
    if scene.mask is not None:
        scores = np.where(scene.mask, scores, np.nan)
    areas = metrics.roc_areas(scores, scene.truth if scene.truth is not None else [])
    kept = {
        "key": key,
        "areas": {k: float(v) for k, v in dataclasses.asdict(areas).items()},
        "seconds": seconds,
        "memory": None if before is None or after is None else max(after - before, 0.0),
    }
    replace_file(map_file, lambda path: np.save(path, np.asarray(scores, np.float32)))
    replace_file(notes, lambda path: path.write_text(json.dumps(kept), encoding="utf-8"))
    return kept, np.asarray(scores, np.float32)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is there when it is complete."""
    part = path.with_name(f"part-{path.name}")
    write(part)
    os.replace(part, path)


def _peak() -> float | None:
    """Largest resident memory of this process in MiB since the last reset."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return float(found[0]) / 1024 if found else None


def _reset_peak() -> float | None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _peak()


def _row(scene: str, detector: str, found: Sequence[dict[str, Any]]) -> Row:
    fields = [f.name for f in dataclasses.fields(metrics.RocAreas)]
    values = {name: np.array([one["areas"][name] for one in found]) for name in fields}
    areas = {name: (float(v.mean()), float(v.std())) for name, v in values.items()}
    memory = [one["memory"] for one in found if one["memory"] is not None]
    seconds = float(np.mean([one["seconds"] for one in found]))
    return Row(scene, detector, len(found), areas, seconds, max(memory) if memory else None)


COLUMNS = {
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


def _write_tables(folder: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    def text(row: Row, field: str) -> str:
        mean, deviation = row.areas[field]
        return f"{mean:.5f}" + (f" ± {deviation:.5f}" if row.runs > 1 else "")

    short = ("auc_df", "auc_dtau", "auc_ftau")
    lines = [
        "| scene | detector | runs | " + " | ".join(COLUMNS[f] for f in short) + " | s | MiB |",
        "|---|---|---:|" + "---:|" * (len(short) + 2),
    ]
    for row in rows:
        memory = "" if row.memory is None else f"{row.memory:.0f}"
        cells = " | ".join(text(row, field) for field in short)
        ends = f"{row.seconds:.3g} | {memory}"
        lines.append(f"| {row.scene} | {row.detector} | {row.runs} | {cells} | {ends} |")
    lines += ["", "| detector | mean AUC(D,F) | worst | mean AUC(F,tau) |", "|---|---:|---:|---:|"]
    means = []
    for name in names:
        own = [row.areas for row in rows if row.detector == name]
        df = np.array([areas["auc_df"][0] for areas in own])
        means.append((df.mean(), df.min(), np.mean([a["auc_ftau"][0] for a in own]), name))
    for mean, worst, ftau, name in sorted(means, reverse=True):
        lines.append(f"| {name} | {mean:.5f} | {worst:.5f} | {ftau:.5f} |")
    content = "\n".join(lines) + "\n"
    replace_file(folder / "table.md", lambda path: path.write_text(content, encoding="utf-8"))

    def table(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            heads = [f"{c} {part}" for c in COLUMNS.values() for part in ("mean", "deviation")]
            writer.writerow(["scene", "detector", "runs", *heads, "seconds", "MiB"])
            for row in rows:
                numbers = [value for field in COLUMNS for value in row.areas[field]]
                writer.writerow(
                    [row.scene, row.detector, row.runs, *numbers, row.seconds, row.memory]
                )

    replace_file(folder / "table.csv", table)

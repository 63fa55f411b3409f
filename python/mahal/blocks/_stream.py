"""Detection on a scene of any size, tile by tile, into a Zarr group that remembers what is done."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mahal
from mahal import _core, significance
from mahal._detectors import DETECTORS
from mahal.blocks._models import feature_moments, model_scores
from mahal.blocks._moments import Background, Moments, background_of, merge_all, moments_of
from mahal.blocks._ops import fused_parts, principal_axes
from mahal.blocks._score import SINGULAR, float_dtype, score_global, score_windows, usable
from mahal.ops.fused_rx import COMPONENTS, WINDOW, fitting
from mahal.scenes import SceneError
from mahal.scenes import open as open_scene
from mahal.scenes._lazy import big, missing

Array = npt.NDArray[Any]
Report = Callable[[int, int], object]

FORMAT = "mahal-scores-1"
MEMORY = 512 << 20
"""What the tiles that are under way together may take, in bytes."""
TAIL_SCORES = 1 << 23
"""How many scores a threshold without a law comes from at most."""
RETRIES = 3
# Stages of a run, in the order of the record of finished tiles.
STATISTICS, SCORES = 0, 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: all that a tile needs to know, but for the statistics of the scene."""

    scene: str
    key: str | None
    output: str
    detector: str
    model: str | None
    target: tuple[float, ...] | tuple[complex, ...] | None
    window: int | tuple[int, int] | None
    border: str
    singular: str
    estimator: str
    center: bool
    rate: float
    rows: int
    cols: int
    bands: int
    stored: str  # dtype of the scene
    nodata: float | None
    tile: int = 0
    threads: int | None = None

    @property
    def kind(self) -> np.dtype[Any]:
        """What is computed with: integers become doubles, as in `mahal detect` of small scenes."""
        stored = np.dtype(self.stored)
        return np.dtype(np.float64) if stored.kind in "iu" else float_dtype(stored)

    @property
    def score_kind(self) -> np.dtype[Any]:
        if self.model is not None:
            return np.dtype(np.float32)
        return np.empty(0, self.kind).real.dtype

    @property
    def reach(self) -> int:
        """Pixels from the centre of a window to its edge."""
        if self.model is not None:
            return int(_model(self.model)._reach())
        window = self.window
        if self.detector == "fused_rx":
            window = fitting(WINDOW, min(self.rows, self.cols))
        return 0 if window is None else (window if isinstance(window, int) else window[1]) // 2

    @property
    def needs_scene(self) -> bool:
        """Whether statistics of the scene come before the scores."""
        if self.model is not None:
            return bool(_model(self.model)._needs_scene())
        return self.window is None and self.detector != "spectral_angle"

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles from top to bottom and from left to right."""
        return -(-self.rows // self.tile), -(-self.cols // self.tile)

    @property
    def tiles(self) -> list[tuple[int, int]]:
        return list(np.ndindex(*self.grid))

    def identity(self) -> str:
        """What makes two runs the same: the tile size and the threads do not matter."""
        facts = dataclasses.asdict(self)
        for name in ("output", "tile", "threads"):
            del facts[name]
        facts["target"] = None if self.target is None else [str(value) for value in self.target]
        facts["version"] = mahal.__version__
        return json.dumps(facts, sort_keys=True)


@dataclasses.dataclass(frozen=True)
class Known:
    """What the statistics of the scene come to."""

    background: Background | None = None
    pixels: int = 0
    features: tuple[tuple[Array, Array], ...] = ()
    fused: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def extent(job: Job, tile: tuple[int, int]) -> tuple[slice, slice]:
    """Pixels of a tile."""
    return tuple(  # type: ignore[return-value]
        slice(index * job.tile, min((index + 1) * job.tile, size))
        for index, size in zip(tile, (job.rows, job.cols), strict=True)
    )


def surroundings(job: Job, tile: tuple[int, int]) -> tuple[slice, slice]:
    """The same with every pixel that their windows reach, those that slide at the border too."""
    reach, side = job.reach, 2 * job.reach + 1
    found = []
    for part, size in zip(extent(job, tile), (job.rows, job.cols), strict=True):
        last = max(size - side, 0)
        start = min(max(part.start - reach, 0), last)
        stop = min(max(part.stop - 1 - reach, 0), last) + side
        found.append(slice(start, min(stop, size)))
    return found[0], found[1]


# What a tile does; in threads here, or on the workers of a cluster


@lru_cache(maxsize=4)
def _source(path: str, key: str | None) -> Any:
    return open_scene(path, key=key)


@lru_cache(maxsize=4)
def _model(path: str) -> Any:
    from mahal.models import load

    return load(path)


def _output(job: Job) -> Any:
    return big("zarr").open_group(job.output, mode="r+")


def _read(job: Job, where: tuple[slice, slice]) -> tuple[Array, Array | None]:
    """Pixels of the scene, and False where they are declared missing."""
    values = _source(job.scene, job.key).data[where].compute(scheduler="synchronous")
    mask = None
    if job.nodata is not None:
        mask = np.asarray(~missing(values, job.nodata).any(axis=-1))
        mask = None if mask.all() else mask
    return values.astype(job.kind, copy=False), mask


def _done(output: Any, stage: int, tile: tuple[int, int]) -> None:
    row, col = tile
    output["finished"][stage, row, col] = 1


def tile_statistics(job: Job, tile: tuple[int, int]) -> None:
    """Moments of a tile into the output."""
    block, mask = _read(job, extent(job, tile))
    if job.model is None:
        parts = [moments_of(block, mask, job.threads)]
    else:
        parts = feature_moments(_model(job.model), block, mask)
    output = _output(job)
    if parts:
        flat = [np.r_[one.pixels, one.mean, one.scatter.ravel()] for one in parts]
        output["moments"][tile] = np.concatenate(flat)
    _done(output, STATISTICS, tile)


def tile_scores(job: Job, tile: tuple[int, int], known: Known) -> None:
    """Scores, status and, where the threshold is known already, detections into the output."""
    wide, where = surroundings(job, tile), extent(job, tile)
    block, mask = _read(job, wide)
    maps = _block_scores(job, block, mask, known)
    inner = tuple(
        slice(part.start - whole.start, part.stop - whole.start)
        for part, whole in zip(where, wide, strict=True)
    )
    output = _output(job)
    threshold = _threshold(job, known, block.shape[:2], mask)
    if threshold is not None:
        reached = maps["scores"] >= threshold
        output["detections"][where] = reached[inner]
    for name, values in maps.items():
        output[name][where] = values[inner]
    _done(output, SCORES, tile)


def _block_scores(job: Job, block: Array, mask: Array | None, known: Known) -> dict[str, Array]:
    detector = DETECTORS[job.detector]
    target = None if job.target is None else _as_target(job)
    options: dict[str, Any] = {"singular": job.singular, "threads": job.threads}
    if job.model is not None:
        shared = (_model(job.model), list(known.features))
        (scores,) = model_scores((block,), mask, shared)
        status = np.where(np.isnan(scores), 3, 0).astype(np.uint8)
        if mask is not None:
            status[~mask] = 4
        return {"scores": scores, "status": status}
    if job.detector == "fused_rx":
        assert known.background is not None
        how = {**known.fused, "options": options}
        whole, whole_status, near, near_status = fused_parts(
            (block,), mask, (known.background, how)
        )
        status = np.maximum(whole_status, near_status)
        return {"global_rx": whole, "local_rx": near, "status": status}
    options = {**detector.options, **options}
    if job.detector == "spectral_angle":
        scores = mahal.spectral_angle(block, target, threads=job.threads)
        status = np.where(usable(block, mask), 0, 3).astype(np.uint8)
        if mask is not None:
            scores[~mask], status[~mask] = np.nan, 4
    elif job.window is not None:
        options |= {"window": job.window, "border": job.border, "center": job.center}
        if job.estimator != "scm":
            options["estimator"] = job.estimator
        scores, status = score_windows(detector.function, block, mask, target, options)
    else:
        assert known.background is not None
        function = detector.function
        scores, status = score_global(function, block, mask, target, known.background, options)
    return {"scores": detector.sign * scores, "status": status}


def _as_target(job: Job) -> Array:
    kind = np.complex128 if job.kind.kind == "c" else np.float64
    return np.array(job.target).astype(kind)


def _threshold(job: Job, known: Known, shape: tuple[int, ...], mask: Array | None) -> Any:
    """What a score has to reach, one number or a map; None where it comes from the scores."""
    detector = DETECTORS[job.detector]
    if job.model is not None:
        return float(_model(job.model).calibration_.threshold(job.rate))
    window = job.window
    inside = window is None or isinstance(window, int)
    if not detector.has_law(job.estimator, inside):
        return None
    assert detector.law is not None
    options = {
        "background": "global" if inside else "local",
        "mean": "estimated" if job.center else "known",
        "complex_data": job.kind.kind == "c",
    }
    if job.estimator != "scm":
        options["estimator"] = job.estimator
    if window is None:
        whole = known.pixels
    else:
        inner, outer = (0, window) if isinstance(window, int) else window
        whole = outer**2 - inner**2
    samples = np.array(whole)
    if window is not None and mask is not None:
        border: Any = job.border
        samples = significance.window_samples(
            (shape[0], shape[1]), window, border=border, mask=mask
        )
    # Too few samples have no threshold, which is an error where all have too few: whole windows
    # are always asked for.
    counts, places = np.unique(np.append(samples, whole), return_inverse=True)
    levels = np.asarray(detector.law.threshold(job.rate, job.bands, counts, **options))
    return levels[places[:-1].reshape(samples.shape)]


# The run


def detect(
    job: Job,
    *,
    tile: int | None = None,
    scheduler: str | None = None,
    report: Callable[[str], Report | None] = lambda stage: None,
) -> dict[str, Any]:
    """Score a scene tile by tile and outline what exceeds the threshold.

    Parameters
    ----------
    job : Job
        What to do; its tile size and threads are set here.
    tile : int, optional
        Side of the tiles in pixels; chosen for 512 MB of tiles under way when not given.
    scheduler : str, optional
        Address of a `dask.distributed` scheduler whose workers see the same files; threads of this
        process when not given.
    report : callable
        Called with the name of a stage; gives what is told ``(done, total)`` of its tiles.

    Returns
    -------
    dict
        The summary, which is also the attribute ``summary`` of the output.

    Raises
    ------
    SceneError
        The output exists and belongs to another run.
    """
    begin = time.perf_counter()
    # Opened here first: the tiles find it in the cache.
    scene = _source(job.scene, job.key)
    workers = _workers(job)
    if job.model is None:
        # The workers of a cluster have their own threads.
        share = max(1, _cores(job) // workers) if scheduler is None else 1
        job = dataclasses.replace(job, threads=share)
    job = dataclasses.replace(job, tile=tile or _tile(job, scene, workers))
    job, output = _prepare(job, scene, given=tile is not None)
    if output.attrs.get("complete"):
        return dict(output.attrs["summary"])
    with warnings.catch_warnings(), _pool(scheduler, workers) as pool:
        # The status tells of these pixels.
        for kind in (mahal.SingularWarning, mahal.ConvergenceWarning):
            warnings.simplefilter("ignore", kind)
        skipped = 0
        known = Known()
        if job.needs_scene:
            skipped += _run(job, STATISTICS, tile_statistics, (), pool, report("statistics"))
            known = _known(job, output)
        skipped += _run(job, SCORES, tile_scores, (known,), pool, report("scoring"))
    summary = _finish(job, output, known)
    summary |= {
        "seconds": time.perf_counter() - begin,
        "tile": job.tile,
        "tiles": len(job.tiles),
        "tiles_from_before": skipped,
    }
    output.attrs["summary"] = summary
    output.attrs["complete"] = True
    for name in ("global_rx", "local_rx", "moments"):
        if name in output:
            del output[name]
    return summary


def _cores(job: Job) -> int:
    return job.threads or int(_core.default_threads())


def _workers(job: Job) -> int:
    # The threads of a tile share its work; a few tiles together keep them busy while one reads.
    return 1 if job.model is not None else min(_cores(job), 4)


def _tile(job: Job, scene: Any, workers: int) -> int:
    """Side of a tile: what fits, in whole pieces of the file where these fit."""
    # Read, copied, whitened and summed; networks have their layers.
    copies = 16 if job.model is not None else 5
    pixels = MEMORY // (workers * copies * job.bands * job.kind.itemsize)
    side = math.isqrt(pixels) - 2 * job.reach
    piece = max(scene.data.chunksize[:2])
    side = side // piece * piece if side >= piece else max(side // 16 * 16, 32)
    return min(side, max(job.rows, job.cols))


def _prepare(job: Job, scene: Any, *, given: bool) -> tuple[Job, Any]:
    """The output of this run: the one that is there, or a new one."""
    zarr = big("zarr")
    path = Path(job.output)
    if path.exists():
        try:
            output = zarr.open_group(str(path), mode="r+")
            facts = dict(output.attrs)
        except Exception:
            facts = {}
        if facts.get("format") != FORMAT or facts.get("run") != job.identity():
            raise SceneError(
                f"{path}: --output: is there and not of a run with the same scene and options, "
                "remove it or name another"
            )
        if given and facts["tile"] != job.tile:
            raise SceneError(
                f"{path}: --tile: the run that is there has tiles of {facts['tile']}, "
                f"got {job.tile}"
            )
        return dataclasses.replace(job, tile=facts["tile"]), output
    output = zarr.create_group(str(path))
    names = ["y", "x"]
    size, piece = (job.rows, job.cols), (min(job.tile, job.rows), min(job.tile, job.cols))
    kinds: dict[str, Any] = {"status": "uint8", "detections": "bool"}
    maps = ("scores", "global_rx", "local_rx") if job.detector == "fused_rx" else ("scores",)
    for name in maps:
        kinds[name] = job.score_kind
    for name, kind in kinds.items():
        fill = np.nan if name not in ("status", "detections") else 0
        array = output.create_array(
            name, shape=size, chunks=piece, dtype=kind, fill_value=fill, dimension_names=names
        )
        for fact in ("crs", "transform"):
            if fact in scene.attrs:
                array.attrs[fact] = scene.attrs[fact]
    for name, coordinate in scene.coords.items():
        if coordinate.dims in (("y",), ("x",)):
            values = np.asarray(coordinate.values)
            if values.dtype.kind in "fiu":
                output.create_array(name, data=values, dimension_names=list(coordinate.dims))
    if job.needs_scene:
        length, kind = _moments_size(job)
        output.create_array(
            "moments",
            shape=(*job.grid, length),
            chunks=(1, 1, length),
            dtype=kind,
            fill_value=0,
            dimension_names=["tile_y", "tile_x", "moment"],
        )
    # A piece for every tile: tiles that end at the same time do not meet.
    output.create_array(
        "finished",
        shape=(2, *job.grid),
        chunks=(1, 1, 1),
        dtype="uint8",
        fill_value=0,
        dimension_names=["stage", "tile_y", "tile_x"],
    )
    output.attrs.update(
        {"format": FORMAT, "run": job.identity(), "tile": job.tile, "complete": False}
    )
    return job, output


def _moments_size(job: Job) -> tuple[int, Any]:
    """Numbers that the moments of a tile are, and their dtype."""
    sizes = [job.bands]
    if job.model is not None:
        model = _model(job.model)
        one = model._read("score", np.ones((1, 1, job.bands), np.float32), None)
        sizes = [features.shape[1] for features in model._scene_features(one)]
    kind = np.complex128 if job.kind.kind == "c" and job.model is None else np.float64
    return sum(1 + n + n * n for n in sizes), kind


def _known(job: Job, output: Any) -> Known:
    """The moments of all tiles, merged in their order."""
    length, _ = _moments_size(job)
    parts: list[list[Moments]] = []
    array = output["moments"]
    bands = job.bands
    if job.model is None:
        merged = merge_all(_unpacked(array[tile], bands) for tile in job.tiles)
        background = background_of(
            job.detector, merged, center=_centred(job), singular=job.singular
        )
        fused = {}
        if job.detector == "fused_rx":
            fused = {
                "axes": principal_axes(background.covariance, COMPONENTS, job.kind),
                "window": fitting(WINDOW, min(job.rows, job.cols)),
            }
        return Known(background, merged.pixels, (), fused)
    runs = int(_model(job.model).runs)
    n = math.isqrt(length // runs)
    for run in range(runs):
        step = length // runs
        parts.append(
            [_unpacked(array[tile][run * step : (run + 1) * step], n) for tile in job.tiles]
        )
    features = []
    for same in parts:
        found = background_of(job.detector, merge_all(same))
        features.append((found.mean, found.covariance))
    return Known(features=tuple(features))


def _centred(job: Job) -> bool:
    return job.center and job.detector != "cem"


def _unpacked(values: Array, n: int) -> Moments:
    return Moments(int(values[0].real), values[1 : 1 + n], values[1 + n :].reshape(n, n))


def _finish(job: Job, output: Any, known: Known) -> dict[str, Any]:
    """What needs the scores of the whole scene: their medians, the threshold, the counts."""
    if job.detector == "fused_rx":
        medians = [_median(job, output[name]) for name in ("global_rx", "local_rx")]
        for tile in job.tiles:
            where = extent(job, tile)
            whole, near = (
                output[name][where] / (median if median > 0 else 1)
                for name, median in zip(("global_rx", "local_rx"), medians, strict=True)
            )
            output["scores"][where] = np.sqrt(whole * near)
    threshold = _threshold(job, known, (), None)
    rule = "law of the scores"
    if job.model is not None:
        rule = "tail of the scores of the training"
    elif threshold is None:
        continued = DETECTORS[job.detector].continued
        rule = "tail of the scores" if continued else "share of the pixels"
        threshold = _threshold_of_scores(job, output, continued)
        for tile in job.tiles:
            where = extent(job, tile)
            output["detections"][where] = output["scores"][where] >= threshold
    scored = detections = 0
    states = np.zeros(6, np.int64)
    for tile in job.tiles:
        where = extent(job, tile)
        scored += int(np.isfinite(output["scores"][where]).sum())
        detections += int(output["detections"][where].sum())
        states += np.bincount(output["status"][where].ravel(), minlength=6)
    level = float(np.max(threshold))
    return {
        "scene": job.scene,
        "detector": job.detector,
        "model": job.model,
        "window": job.window,
        "border": None if job.window is None else job.border,
        "estimator": job.estimator,
        "centred": job.center,
        "rows": job.rows,
        "cols": job.cols,
        "bands": job.bands,
        "dtype": job.stored,
        "samples": known.pixels or None,
        "pixels_scored": scored,
        "pixels_with_too_few_samples": int(states[1]),
        "pixels_singular": int(states[SINGULAR]),
        "pixels_not_finite": int(states[3]),
        "pixels_left_out": int(states[4]),
        "pixels_not_converged": int(states[5]),
        "false_alarm_rate": job.rate,
        "threshold_rule": rule,
        "threshold": level if math.isfinite(level) else None,
        "detections": detections,
    }


def _threshold_of_scores(job: Job, output: Any, continued: bool) -> float:
    """From the tail of the scores or their quantile; of every k-th score in a large scene."""
    step = max(1, -(-job.rows * job.cols // TAIL_SCORES))
    parts = []
    for tile in job.tiles:
        values = output["scores"][extent(job, tile)].ravel()[::step]
        parts.append(values[np.isfinite(values)])
    scores = np.concatenate(parts)
    if continued:
        return float(significance.score_tail(scores).threshold(job.rate))
    return float(np.quantile(scores, 1 - job.rate)) if scores.size else math.nan


def _median(job: Job, array: Any) -> float:
    """Median of the scores that are known, as `numpy.median` has it, without sorting them.

    Numbers that are not negative are in the order of their bits. Each pass over the map counts 16
    of them, from the highest down, among the scores that share those above.
    """
    kind = np.dtype(array.dtype)
    bits = np.dtype(f"u{kind.itemsize}")
    width = 8 * kind.itemsize

    def known() -> Iterator[Array]:
        for tile in job.tiles:
            values = array[extent(job, tile)]
            yield np.abs(values[~np.isnan(values)]).view(bits)

    def at(rank: int) -> float:
        above = 0
        for shift in range(width - 16, -1, -16):
            counts = np.zeros(1 << 16, np.int64)
            for values in known():
                high = values >> bits.type(shift)
                if shift < width - 16:
                    high = high[high >> bits.type(16) == above] & bits.type(0xFFFF)
                counts += np.bincount(high.astype(np.int64), minlength=1 << 16)
            below = np.cumsum(counts)
            cell = int(np.searchsorted(below, rank, side="right"))
            rank -= int(below[cell - 1]) if cell else 0
            above = above << 16 | cell
        return float(np.array(above, bits).view(kind))

    total = sum(values.size for values in known())
    if not total:
        return 0.0
    low, high = at((total - 1) // 2), at(total // 2)
    return float(np.mean(np.array([low, high], kind)))


def _run(
    job: Job, stage: int, task: Callable[..., None], more: Sequence[Any], pool: Any, told: Any
) -> int:
    """Every tile of a stage that is not finished; returns how many were."""
    finished = _output(job)["finished"][stage]
    left = [tile for tile in job.tiles if not finished[tile]]
    total = len(job.tiles)
    done = total - len(left)
    for _ in pool.run(task, job, left, more):
        done += 1
        if told is not None:
            told(done, total)
    return total - len(left)


class _Threads:
    """Tiles in threads of this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> _Threads:
        self.pool = ThreadPoolExecutor(self.workers)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def run(
        self, task: Callable[..., None], job: Job, tiles: list[tuple[int, int]], more: Sequence[Any]
    ) -> Iterable[None]:
        waiting = {self.pool.submit(task, job, tile, *more) for tile in tiles}
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                yield future.result()


class _Cluster:
    """Tiles on the workers of a cluster; those of a worker that dies go to another."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> _Cluster:
        distributed = big("distributed")
        try:
            self.client = distributed.Client(self.address, set_as_default=False, timeout=20)
        except (OSError, TimeoutError, ValueError) as error:
            raise SceneError(f"--scheduler: no answer from {self.address} ({error})") from error
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def run(
        self, task: Callable[..., None], job: Job, tiles: list[tuple[int, int]], more: Sequence[Any]
    ) -> Iterable[None]:
        # The statistics go to the workers once, not with every tile, and as a task: one that is
        # lost with a worker is made again.
        sent = [self.client.submit(_itself, item, pure=False) for item in more]
        futures = [
            self.client.submit(task, job, tile, *sent, retries=RETRIES, pure=False)
            for tile in tiles
        ]
        for future in big("distributed").as_completed(futures, loop=self.client.loop):
            yield future.result()


def _itself(item: Any) -> Any:
    return item


def _pool(scheduler: str | None, workers: int) -> _Threads | _Cluster:
    return _Threads(workers) if scheduler is None else _Cluster(scheduler)

"""A report to look at: one HTML file that shows a detection and lets the threshold move.

The plots are bokeh's: its runtime is 1.3 MB where plotly's is 4.5 MB, arrays travel in binary and
not as text, an image can be changed in place from JavaScript, and the panels share their axes. The
page holds the runtime and all data, and its content policy forbids the browser any connection.

The slider runs over thresholds from the median score to the highest. What each of them detects is
counted here, on the whole scene; the page only looks the counts up. Pictures and spectra are those
of the whole scene while they fit into 13.5 MB (18 MB in the file): 6 bytes for every pixel and
band and 24 for every pixel. Larger scenes keep every second or fourth band, as long as 64 remain,
and are then cut into square blocks, each shown by its pixel of the highest score.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mahal.metrics import roc, roc_areas
from mahal.ops.local_covariance import local_covariance
from mahal.pictures import MISSING, false_colour
from mahal.scenes import Scene, extra

__all__ = ["page"]

Array = npt.NDArray[Any]

BUDGET = 13_500_000  # bytes of arrays
LEAST_BANDS = 64  # that thinning leaves
STEPS = 400  # of the slider
CURVE = 2000  # points of the ROC curve
LISTED = 20  # rows of the table of detections
WINDOW = (5, 21)  # of the surroundings where the detector has none
SIDE = 360  # CSS pixels along the longer side of an image
NO_VALUE = 65535  # of a quantised spectrum
MAGNITUDE = 300.0  # -log10 of the smallest p-value that counts
# By Okabe and Ito, told apart by the colour-blind: not scored, background, detected, detected
# target, missed target.
CLASSES = (MISSING, "#1b1b1b", "#e69f00", "#56b4e9", "#cc79a7")
MARK = "#d55e00"


@dataclass(frozen=True)
class _Steps:
    """Thresholds of the slider and what they detect on the whole scene."""

    grid: Array  # (steps,), increasing
    begin: int  # step of the threshold that was given
    reached: Array  # (rows, cols), number of steps that a pixel reaches; step k detects those > k
    rates: Array | None  # (steps,), probability that a background pixel is detected
    by_rate: bool  # the grid is of -log10 of the false-alarm rate, not of scores

    def count(self, among: Array) -> list[int]:
        """Detections at every step."""
        bins = np.bincount(self.reached[among], minlength=self.grid.size + 1)
        return [int(n) for n in np.cumsum(bins[::-1])[::-1][1:]]


def page(
    scene: Scene,
    scores: npt.ArrayLike,
    threshold: npt.ArrayLike,
    *,
    pvalue: Callable[[Array], Any] | None = None,
    window: int | tuple[int, int] | None = None,
    border: str = "shift",
    title: str = "",
    rule: str = "",
    label: str = "score",
    scale: Literal["log", "linear"] = "log",
    facts: Iterable[tuple[str, str]] = (),
) -> str:
    """Page with false colour, scores, detections, spectra and, with truth, the ROC curve.

    Parameters
    ----------
    scene : Scene
        Scene the scores belong to; its truth gives the ROC curve and colours the detections.
    scores : array_like (rows, cols)
        Anomaly scores, higher for a detection; NaN is drawn grey and never detected.
    threshold : float or array_like (rows, cols)
        Where the slider begins. A pixel is detected when its score is >= threshold. A map needs
        `pvalue`, and the slider then runs over false-alarm rates.
    pvalue : callable, optional
        Gives the p-values of an array of scores: any array for one threshold, the map of scores
        or of thresholds otherwise. Expected false alarms need it.
    window : int or (inner, outer), optional
        Window of the surroundings whose mean and standard deviation stand beside the spectrum of a
        pixel, (5, 21) when not given; cut to the size of the scene.
    border : {"shift", "reflect", "valid"}
        Windows at the border, as for `mahal.local_covariance`.
    title : str
        Heading of the page.
    rule : str
        What set the threshold, as "false-alarm rate 0.001".
    label : str
        Name of the scores.
    scale : {"log", "linear"}
        Colours and steps by the logarithm of the scores, or by scores that may be negative.
    facts : iterable of (str, str)
        Names and values for the table at the end of the page.

    Returns
    -------
    str
        HTML5 in UTF-8 that needs no other file and no network.

    Raises
    ------
    ValueError
        Scores of another size than the scene, no pixel with a score, or a threshold map without
        `pvalue`.
    ImportError
        bokeh is not installed.
    """
    values = np.asarray(scores, dtype=np.float64)
    size = scene.image.shape[:2]
    if values.shape != size:
        raise ValueError(
            f"report.page: scores: must have the size of the scene {size}, got {values.shape}"
        )
    scored = np.isfinite(values)
    if not scored.any():
        raise ValueError("report.page: scores: needs a pixel with a score, got none")
    steps = _steps(values, np.asarray(threshold, dtype=np.float64), pvalue, scale)
    truth = scene.truth
    if truth is not None and (truth[scored].all() or not truth[scored].any()):
        truth = None
    side, thin = _reduction(scene.image.shape)
    cells = _cells(values, side)
    magnitude = None if pvalue is None else _magnitude(pvalue(values))[cells]

    models = extra("bokeh.models")
    spectra = _spectra(scene, cells, thin, window, border)
    sources = _sources(scene, values, steps, truth, cells, side, magnitude, spectra)
    plots = _plots(scene, sources, scale, label, side)
    lines = _spectrum_plot(scene, sources, thin)
    curve = None if truth is None else _roc_plot(values, truth, sources)
    numbers = {
        "sides": [side, *size],
        "grid": steps.grid.tolist(),
        "begin": steps.begin,
        "by_rate": steps.by_rate,
        "counts": steps.count(scored),
        "scored": int(scored.sum()),
        "expected": None if steps.rates is None else (steps.rates * scored.sum()).tolist(),
        "rates": None if steps.rates is None else steps.rates.tolist(),
        "hits": None if truth is None else steps.count(scored & truth),
        "targets": None if truth is None else int(truth[scored].sum()),
        "label": label,
        "quantised": spectra.ranges,
        "coordinates": spectra.coordinates,
        "unit": spectra.unit,
    }
    shown = [*plots, lines, *([] if curve is None else [curve])]
    script, pieces = _embedded(models, shown, sources, numbers)
    found = _objects(values, steps, truth)
    highest = np.unravel_index(np.nanargmax(np.where(scored, values, np.nan)), size)
    return _filled(
        scene=scene,
        title=title or scene.name,
        rule=rule,
        label=label,
        steps=steps,
        script=script,
        pieces=pieces,
        truth=truth,
        areas=None if truth is None else roc_areas(values, truth).auc_df,
        highest=(int(highest[0]), int(highest[1]), float(values[highest])),
        found=found,
        facts=list(facts),
        reduction=_reduction_text(scene.image.shape, side, thin),
        surroundings=spectra.surroundings,
    )


# what the slider does


def _steps(
    values: Array, threshold: Array, pvalue: Callable[[Array], Any] | None, scale: str
) -> _Steps:
    scored = np.isfinite(values)
    limits = np.broadcast_to(threshold, values.shape)[scored]
    limits = limits[np.isfinite(limits)]
    by_rate = threshold.ndim > 0 and pvalue is not None
    if not by_rate and limits.size and limits.min() < limits.max():
        raise ValueError("report.page: threshold: a map needs pvalue, got none")
    statistic = values
    begin = float(limits[0]) if limits.size else float(values[scored].max())
    if by_rate:
        assert pvalue is not None
        statistic = _magnitude(pvalue(values))
        begin = float(np.nanmedian(_magnitude(pvalue(np.broadcast_to(threshold, values.shape)))))
        scale = "linear"
    known = statistic[scored & np.isfinite(statistic)]
    low = min(float(np.median(known)), begin)
    high = max(float(known.max()), begin)
    if scale == "log" and low <= 0 < high:
        low = float(min(known[known > 0].min(initial=high), high))
    if scale == "log" and low > 0:
        grid = np.geomspace(low, high, STEPS)
    else:
        grid = np.linspace(low, high, STEPS)
    # The ends to the last bit, the threshold that was given, and one that nothing reaches.
    grid[0], grid[-1] = low, high
    grid = np.unique(np.concatenate([grid, [begin, np.nextafter(high, np.inf)]]))
    first = int(np.searchsorted(grid, begin))
    reached = np.searchsorted(grid, statistic, side="right")
    reached[~scored] = 0
    # Rounding of p-values may not change what the given threshold detects.
    detected = scored & (values >= threshold)
    reached = np.where(detected, np.maximum(reached, first + 1), np.minimum(reached, first))
    rates = None
    if by_rate:
        rates = 10.0**-grid
    elif pvalue is not None:
        rates = np.asarray(pvalue(grid), dtype=np.float64)
    return _Steps(grid, first, reached, rates, by_rate)


def _magnitude(pvalues: Any) -> Array:
    """-log10 of p-values, no more than 300."""
    found = np.asarray(pvalues, dtype=np.float64)
    result: Array = -np.log10(np.maximum(found, 10.0**-MAGNITUDE)) + 0.0
    return result


# what of the scene is shown


def _reduction(shape: tuple[int, ...]) -> tuple[int, int]:
    """Side of the blocks that a pixel stands for, and which bands are kept, every n-th."""
    rows, cols, bands = shape
    thin = 1
    for thin in (1, 2, 4):
        if _bytes(shape, 1, thin) <= BUDGET or -(-bands // (2 * thin)) < LEAST_BANDS:
            break
    side = 1
    while _bytes(shape, side, thin) > BUDGET and side < max(rows, cols):
        side += 1
    return side, thin


def _bytes(shape: tuple[int, ...], side: int, thin: int) -> int:
    rows, cols, bands = shape
    return -(-rows // side) * -(-cols // side) * (6 * -(-bands // thin) + 24)


def _reduction_text(shape: tuple[int, ...], side: int, thin: int) -> str:
    parts = []
    if side > 1:
        parts.append(
            f"The pictures show one pixel of every block of {side} x {side}, that of the highest "
            "score; the counts are those of all pixels."
        )
    if thin > 1:
        parts.append(f"The spectra show {-(-shape[2] // thin)} of {shape[2]} bands.")
    return " ".join(parts)


def _cells(values: Array, side: int) -> tuple[Array, Array]:
    """Rows and columns of the pixels that are shown, each of the shape of the picture."""
    rows, cols = values.shape
    down, across = -(-rows // side), -(-cols // side)
    padded = np.full((down * side, across * side), -np.inf)
    padded[:rows, :cols] = np.where(np.isfinite(values), values, -np.inf)
    blocks = padded.reshape(down, side, across, side).swapaxes(1, 2).reshape(down, across, -1)
    best = blocks.argmax(axis=2)
    return (
        best // side + side * np.arange(down)[:, None],
        best % side + side * np.arange(across),
    )


@dataclass(frozen=True)
class _Spectra:
    values: dict[str, Array]  # uint16 (cells * bands,) each
    ranges: dict[str, list[list[float]]]  # lowest value and step of every band
    coordinates: list[float]
    unit: str
    surroundings: str


def _spectra(
    scene: Scene,
    cells: tuple[Array, Array],
    thin: int,
    window: int | tuple[int, int] | None,
    border: str,
) -> _Spectra:
    """Spectrum, mean and standard deviation of the surroundings of every pixel that is shown."""
    bands = range(0, scene.image.shape[2], thin)
    inner, outer = _fitting(WINDOW if window is None else window, scene.image.shape)
    used = np.isfinite(scene.image).all(axis=2)
    if scene.mask is not None:
        used &= scene.mask
    found: dict[str, list[Array]] = {"spectrum": [], "mean": [], "spread": []}
    for band in bands:
        values = scene.image[:, :, band]
        values = (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float64)
        found["spectrum"].append(values[cells].ravel())
        mean, covariance = local_covariance(
            np.where(used, values, 0.0)[:, :, None],
            outer if inner == 0 else (inner, outer),
            border=border,
            mask=None if used.all() else used,
        )
        found["mean"].append(mean[cells].ravel())
        found["spread"].append(np.sqrt(np.maximum(covariance[cells].ravel(), 0.0)))
    packed, ranges = {}, {}
    for name, columns in found.items():
        packed[name], ranges[name] = _quantised(np.stack(columns, axis=1))
    if scene.wavelengths is not None:
        coordinates, unit = [float(w) for w in scene.wavelengths[::thin]], "wavelength in nm"
    else:
        coordinates = [float(band + 1) for band in bands]
        unit = "channel" if scene.polarisations is not None else "band"
    ring = f"{outer} x {outer} pixels" + (f" without the inner {inner} x {inner}" if inner else "")
    return _Spectra(packed, ranges, coordinates, unit, ring)


def _fitting(window: int | tuple[int, int], shape: tuple[int, ...]) -> tuple[int, int]:
    """Inner and outer side, no larger than the image."""
    inner, outer = (0, window) if isinstance(window, int) else window
    least = min(shape[:2])
    outer = min(outer, least - 1 + least % 2)
    return (inner if inner < outer else 0), outer


def _quantised(values: Array) -> tuple[Array, list[list[float]]]:
    """Values (pixels, bands) in 16 bits, with the lowest value and the step of every band."""
    known = np.isfinite(values)
    low = np.min(values, axis=0, where=known, initial=np.inf)
    high = np.max(values, axis=0, where=known, initial=-np.inf)
    low, high = np.where(low <= high, low, 0.0), np.where(low <= high, high, 0.0)
    step = np.where(high > low, (high - low) / (NO_VALUE - 1), 1.0)
    codes = np.full(values.shape, NO_VALUE, dtype=np.uint16)
    codes[known] = np.rint((values - low) / step)[known]
    return codes.ravel(), [low.tolist(), step.tolist()]


# the plots


def _sources(
    scene: Scene,
    values: Array,
    steps: _Steps,
    truth: Array | None,
    cells: tuple[Array, Array],
    side: int,
    magnitude: Array | None,
    spectra: _Spectra,
) -> dict[str, Any]:
    models = extra("bokeh.models")
    rows, cols = cells
    rgb, _ = false_colour(scene)
    bytes_ = np.full((*rows.shape, 4), 255, dtype=np.uint8)
    bytes_[:, :, :3] = np.rint(255 * rgb[cells])
    state = np.isfinite(values)[cells].astype(np.uint8)
    if truth is not None:
        # A block with a target in it is one.
        at = np.zeros((rows.shape[0] * side, rows.shape[1] * side), dtype=np.bool_)
        at[: truth.shape[0], : truth.shape[1]] = truth
        target = at.reshape(rows.shape[0], side, rows.shape[1], side).any(axis=(1, 3))
        state[target & (state == 1)] = 4
    extent = {"x": [0], "y": [0], "dw": [rows.shape[1] * side], "dh": [rows.shape[0] * side]}
    maps = {
        "rgb": [bytes_.view(np.uint32)[:, :, 0]],
        "score": [np.where(np.isfinite(values), values, np.nan)[cells].astype(np.float32)],
        "state": [state],
        **extent,
    }
    pixels = {
        "row": rows.ravel().astype(np.uint32),
        "column": cols.ravel().astype(np.uint32),
        "reached": steps.reached[cells].ravel().astype(np.uint16),
    }
    if magnitude is not None:
        pixels["magnitude"] = magnitude.ravel().astype(np.float32)
    empty: dict[str, list[float]] = {"x0": [], "y0": [], "x1": [], "y1": []}
    line: dict[str, list[float]] = {"x": [], "pixel": [], "mean": [], "low": [], "high": []}
    data: dict[str, dict[str, Any]] = {
        "maps": maps,
        "pixels": pixels,
        "spectra": dict(spectra.values),
        "outline": empty,
        "pointer": {"x": [], "y": []},
        "line": line,
        "operating": {"x": [], "y": []},
    }
    return {name: models.ColumnDataSource(columns, name=name) for name, columns in data.items()}


def _figure(**options: Any) -> Any:
    models = extra("bokeh.models")
    figure = extra("bokeh.plotting").figure(toolbar_location="above", **options)
    figure.toolbar.logo = None
    figure.add_tools(models.PanTool(), models.BoxZoomTool(), models.WheelZoomTool())
    figure.add_tools(models.ResetTool(), models.SaveTool())
    return figure


def _plots(
    scene: Scene, sources: dict[str, Any], scale: str, label: str, side: int
) -> tuple[Any, Any, Any]:
    """False colour, scores and detections on shared axes."""
    models = extra("bokeh.models")
    rows, cols = scene.image.shape[:2]
    ratio = max(rows, cols)
    wide, tall = (max(60, round(SIDE * length / ratio)) for length in (cols, rows))
    space = {"tools": "", "frame_width": wide, "frame_height": tall, "height": tall + 90}
    # Rows count downwards.
    across, down = models.Range1d(0, cols), models.Range1d(rows, 0)
    figures = []
    maps = sources["maps"]
    values = maps.data["score"][0]
    known = values[np.isfinite(values)]
    log = scale == "log" and bool((known > 0).any())
    if log:
        known = known[known > 0]
    low, high = (float(v) for v in np.percentile(known, (0.5, 99.9)))
    high = max(high, low + 1e-6 * max(abs(low), 1e-30))
    mapper = (models.LogColorMapper if log else models.LinearColorMapper)(
        palette="Cividis256", low=low, high=high, nan_color=MISSING
    )
    states = models.LinearColorMapper(palette=CLASSES, low=-0.5, high=len(CLASSES) - 0.5)
    for place in range(3):
        room = 120 if place == 1 else 65  # of the axis, and of the colour bar
        figure = _figure(x_range=across, y_range=down, width=wide + room, **space)
        figure.xgrid.visible = figure.ygrid.visible = False
        figure.xaxis.axis_label, figure.yaxis.axis_label = "column", "row"
        box = {"x": "x", "y": "y", "dw": "dw", "dh": "dh", "source": maps}
        if place == 0:
            figure.image_rgba(image="rgb", **box)
        elif place == 1:
            figure.image(image="score", color_mapper=mapper, **box)
            bar = models.ColorBar(color_mapper=mapper, width=10, title=None, padding=4)
            figure.add_layout(bar, "right")
        else:
            figure.image(image="state", color_mapper=states, **box)
        if place < 2:
            ends = {name: name for name in ("x0", "y0", "x1", "y1")}
            for colour, width in (("black", 3.2), ("white", 1.4)):
                figure.segment(
                    source=sources["outline"], color=colour, line_width=width, line_cap="square",
                    **ends,
                )  # fmt: skip
        figure.rect(
            "x", "y", side, side, source=sources["pointer"], fill_alpha=0, line_color=MARK,
            line_width=2.5,
        )  # fmt: skip
        figures.append(figure)
    return figures[0], figures[1], figures[2]


def _spectrum_plot(scene: Scene, sources: dict[str, Any], thin: int) -> Any:
    figure = _figure(width=620, height=330, tools="", sizing_mode="stretch_width")
    source = sources["line"]
    figure.varea("x", "low", "high", source=source, color="#0072b2", alpha=0.2,
                 legend_label="background, mean ± one standard deviation")  # fmt: skip
    figure.line("x", "mean", source=source, color="#0072b2", line_width=2, line_dash="dashed",
                legend_label="background, mean")  # fmt: skip
    figure.line("x", "pixel", source=source, color=MARK, line_width=2, legend_label="pixel")
    if -(-scene.image.shape[2] // thin) < 12:
        figure.scatter("x", "pixel", source=source, color=MARK, size=8)
        figure.scatter("x", "mean", source=source, color="#0072b2", size=8, marker="square")
    figure.yaxis.axis_label = "modulus" if scene.image.dtype.kind == "c" else "value as stored"
    # Above the axes: the lines leave no corner free.
    legend = figure.legend[0]
    legend.orientation, legend.border_line_alpha = "horizontal", 0.0
    figure.add_layout(legend, "above")
    return figure


def _roc_plot(values: Array, truth: Array, sources: dict[str, Any]) -> Any:
    curve = roc(values, truth)
    start = 0.5 / curve.negatives
    kept = np.unique(np.linspace(0, curve.thresholds.size - 1, CURVE).astype(int))
    if curve.thresholds.size > CURVE:
        # Where detections grow, all points that there is room for.
        rises = 1 + np.flatnonzero(np.diff(curve.detection_rate))
        kept = np.unique(np.concatenate([kept, rises[:: 1 + rises.size // CURVE]]))
    figure = _figure(
        width=420, height=330, tools="", x_axis_type="log", x_range=(start, 1.0),
        y_range=(-0.02, 1.02),
    )  # fmt: skip
    alarm = np.maximum(curve.false_alarm_rate[kept], start)
    figure.step(alarm, curve.detection_rate[kept], mode="after", color="#0072b2", line_width=2)
    figure.scatter("x", "y", source=sources["operating"], size=11, color=MARK, line_color="black")
    figure.xaxis.axis_label = "false alarm rate"
    figure.yaxis.axis_label = "detection rate"
    return figure


def _embedded(
    models: Any, shown: Sequence[Any], sources: dict[str, Any], facts: dict[str, Any]
) -> tuple[str, list[str]]:
    """The script that draws, and the element of every plot."""
    events = extra("bokeh.events")
    document = extra("bokeh.document").Document()
    for figure in shown[:3]:
        for event in (events.MouseMove, events.Tap):
            figure.js_on_event(event, models.CustomJS(code="mahal.point(cb_obj.x, cb_obj.y)"))
    code = files("mahal.report").joinpath("page.js").read_text(encoding="utf-8")
    ready = models.CustomJS(
        args={**sources, "facts": facts, "axis": shown[3].xaxis[0]},
        code=code,
    )
    document.js_on_event(events.DocumentReady, ready)
    for figure in shown:
        document.add_root(figure)
    script, pieces = extra("bokeh.embed").components(tuple(shown))
    return str(script), list(pieces)


# the text


def _objects(values: Array, steps: _Steps, truth: Array | None) -> list[tuple[str, ...]]:
    """Connected detections at the given threshold, highest score first."""
    label = extra("scipy.ndimage").label
    parts, count = label(steps.reached > steps.begin, structure=np.ones((3, 3)))
    order = np.argsort(-np.where(parts > 0, values, -np.inf), axis=None, kind="stable")
    rows, seen = [], set()
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    hit = None if truth is None else np.bincount(parts[truth], minlength=count + 1)
    for place in order[: int((parts > 0).sum())]:
        row, col = divmod(int(place), values.shape[1])
        part = int(parts[row, col])
        if part in seen:
            continue
        seen.add(part)
        cells = [str(row), str(col), str(sizes[part]), f"{values[row, col]:.6g}"]
        if hit is not None:
            cells.append(str(hit[part]))
        rows.append(tuple(cells))
        if len(rows) == LISTED:
            break
    return rows


def _filled(
    *,
    scene: Scene,
    title: str,
    rule: str,
    label: str,
    steps: _Steps,
    script: str,
    pieces: list[str],
    truth: Array | None,
    areas: float | None,
    highest: tuple[int, int, float],
    found: list[tuple[str, ...]],
    facts: list[tuple[str, str]],
    reduction: str,
    surroundings: str,
) -> str:
    escape = html.escape
    rows, cols, bands = scene.image.shape
    _, composite = false_colour(scene)
    entries = [(CLASSES[1], "not detected"), (CLASSES[2], "detected")]
    if truth is not None:
        entries = [
            (CLASSES[3], "detected target"),
            (CLASSES[2], "detected, not a target"),
            (CLASSES[4], "target not detected"),
            (CLASSES[1], "neither"),
        ]
    entries.append((CLASSES[0], "no score"))
    legend = "".join(
        f'<li><span style="background:{colour}"></span>{text}</li>' for colour, text in entries
    )
    heads = ["row", "column", "pixels", f"highest {label}"] + ["target pixels"] * (
        truth is not None
    )
    listed = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in line)
        + f'<td><button type="button" data-row="{line[0]}" data-column="{line[1]}">show'
        f'<span class="hidden"> the spectrum of row {line[0]}, column {line[1]}</span>'
        "</button></td></tr>"
        for line in found
    )
    curve = ""
    if len(pieces) > 4:
        curve = (
            f"<figure><figcaption>ROC curve, area {areas:.5f}; the dot is the threshold of the "
            f'slider</figcaption><div role="img" aria-label="Detection rate over false alarm rate, '
            f'area under the curve {areas:.5f}">{pieces[4]}</div></figure>'
        )
    row, col, score = highest
    template = Template(files("mahal.report").joinpath("page.html").read_text(encoding="utf-8"))
    resources = extra("bokeh.resources").Resources(mode="inline", components=["bokeh"])
    return template.substitute(
        title=escape(title),
        runtime=resources.render_js(),
        script=script,
        size=f"{rows} x {cols} pixels, {bands} bands",
        rule=escape(rule),
        last=steps.grid.size - 1,
        begin=steps.begin,
        composite=escape(composite),
        label=escape(label),
        picture=pieces[0],
        scores=pieces[1],
        detections=pieces[2],
        spectrum=pieces[3],
        curve=curve,
        legend=legend,
        highest=f"highest {score:.6g} at row {row}, column {col}",
        rows=rows - 1,
        columns=cols - 1,
        row=row,
        column=col,
        surroundings=escape(surroundings),
        reduction=escape(reduction),
        heads="".join(f'<th scope="col">{escape(head)}</th>' for head in heads),
        listed=listed or f'<tr><td colspan="{len(heads) + 1}">none</td></tr>',
        facts="".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts),
    )

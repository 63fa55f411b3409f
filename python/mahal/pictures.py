"""Pictures of detections, changes and ROC curves, as matplotlib figures that need no display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from mahal.metrics import mean_roc, roc, roc_areas
from mahal.ops.mean_covariance import mean_covariance
from mahal.scenes import Scene, extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "change_figure",
    "comparison_figure",
    "detection_figure",
    "false_colour",
    "latent_figure",
    "roc_figure",
    "save",
]

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Scale = Literal["log", "linear"]

# Red, green and blue of each composite by wavelength in nm, and how far a band may be from it.
COMPOSITES = {"true colour": (640.0, 550.0, 460.0), "colour infrared": (860.0, 650.0, 550.0)}
REACH = 30.0
# Without wavelengths: where near infrared, red and green lie in a sensor from 400 to 2500 nm.
POSITIONS = (0.25, 0.14, 0.08)
# Red, green and blue of quad-polarised radar: double bounce, volume, surface; and as measured.
PAULI, LINEAR = ("HH-VV", "HV", "HH+VV"), ("HH", "HV", "VV")
STRETCH = (2.0, 98.0)  # per cent of the pixels between black and white
GAMMA = 0.75  # lifts the dark parts beside a few bright roofs
DETECTED, TRUTH, MISSING = "#00e5ff", "#76ff03", "#8c8c8c"
PANEL = 5.4  # inches along the longer side of an image
WIDE = 1.9  # columns per row above which the panels go below each other
POINTS = 20_000  # drawn at most: more hide each other


def false_colour(scene: Scene) -> tuple[Array, str]:
    """Red, green and blue of a scene for display.

    Parameters
    ----------
    scene : Scene
        Bands are chosen by wavelength (640, 550, 460 nm, else 860, 650, 550 nm) when the scene has
        wavelengths that reach them, by position otherwise; one or two bands give grey. Radar
        (complex values, or named polarisations) is shown in dB: the Pauli basis HH-VV, HV, HH+VV
        where the polarisations give it, else HH, HV, VV, else the first three channels.

    Returns
    -------
    rgb : ndarray of float32 (rows, cols, 3)
        Values in [0, 1], each band stretched from its 2nd to its 98th percentile and, but for
        radar, raised to the power 0.75. Grey where the scene has no data, and where the power of a
        channel is zero.
    caption : str
        Which bands were taken.
    """
    radar = scene.image.dtype.kind == "c" or scene.polarisations is not None
    if radar:
        values, caption = _radar(scene)
    else:
        bands, caption = _composite(scene)
        values = scene.image[:, :, list(bands)].astype(np.float32)
    usable = np.isfinite(values).all(axis=2)
    if scene.mask is not None:
        usable &= scene.mask
    rgb = np.empty_like(values)
    for index in range(3):
        band = values[:, :, index]
        low, high = np.percentile(band[usable], STRETCH) if usable.any() else (0.0, 1.0)
        with np.errstate(invalid="ignore", over="ignore"):
            rgb[:, :, index] = (band - low) / (high - low if high > low else 1.0)
    rgb = np.clip(rgb, 0.0, 1.0) ** (1.0 if radar else GAMMA)
    rgb[~usable] = int(MISSING[1:3], 16) / 255
    return rgb, caption


def detection_figure(
    scene: Scene,
    scores: npt.ArrayLike,
    threshold: npt.ArrayLike,
    *,
    truth: npt.ArrayLike | None = None,
    title: str = "",
    label: str = "score",
    scale: Scale = "log",
) -> Figure:
    """False colour image beside the score map, with the detections outlined on both.

    Parameters
    ----------
    scene : Scene
        Scene the scores belong to.
    scores : array_like (rows, cols)
        Anomaly scores; NaN is drawn grey and never detected.
    threshold : float or array_like (rows, cols)
        A pixel is detected when its score is >= threshold. A map's median is marked on the colour
        bar.
    truth : array_like of bool (rows, cols), optional
        Targets, outlined one pixel further out in a second colour.
    title : str
        Line above both panels.
    label : str
        Name of the scores on the colour bar.
    scale : {"log", "linear"}
        Colours by the logarithm of the scores, or by scores that may be negative.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; `save` writes it.

    Raises
    ------
    ValueError
        Scores or truth of another size than the scene.
    ImportError
        matplotlib is not installed.
    """
    values, limit = _scores("detection_figure", [scene], scores, threshold, truth)
    figure, (left, right) = _panels(values.shape, 2)
    rgb, caption = false_colour(scene)
    left.imshow(rgb, interpolation="nearest")
    left.set_title(caption, fontsize="medium")
    _draw_scores(figure, right, values, limit, label, scale)
    _mark(figure, (left, right), "detections", values >= limit, truth)
    if title:
        figure.suptitle(title, fontsize="large")
    return figure


def change_figure(
    first: Scene,
    second: Scene,
    scores: npt.ArrayLike,
    threshold: npt.ArrayLike,
    *,
    truth: npt.ArrayLike | None = None,
    title: str = "",
    label: str = "change",
) -> Figure:
    """Two images beside the map of the change between them, with the changes outlined on all.

    Parameters
    ----------
    first, second : Scene
        Scenes of one size, drawn as by `false_colour`.
    scores : array_like (rows, cols)
        Change scores; NaN is drawn grey and never outlined.
    threshold : float or array_like (rows, cols)
        A pixel has changed when its score is >= threshold.
    truth : array_like of bool (rows, cols), optional
        True changes, outlined one pixel further out in a second colour.
    title : str
        Line above the panels.
    label : str
        Name of the scores on the colour bar.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; `save` writes it.

    Raises
    ------
    ValueError
        Scenes, scores or truth of different sizes.
    ImportError
        matplotlib is not installed.
    """
    values, limit = _scores("change_figure", [first, second], scores, threshold, truth)
    figure, panels = _panels(values.shape, 3)
    for axes, scene in zip(panels, (first, second), strict=False):
        rgb, caption = false_colour(scene)
        axes.imshow(rgb, interpolation="nearest")
        axes.set_title(f"{scene.name}: {caption}", fontsize="medium")
    _draw_scores(figure, panels[2], values, limit, label, "log")
    _mark(figure, panels, "changes", values >= limit, truth)
    if title:
        figure.suptitle(title, fontsize="large")
    return figure


def roc_figure(
    scores: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    threshold: float | None = None,
    title: str = "",
) -> Figure:
    """Detection over false alarms, and both over the normalised threshold.

    Parameters
    ----------
    scores, truth : array_like
        As for `mahal.metrics.roc`.
    threshold : float, optional
        Operating point to mark, in the units of the scores.
    title : str
        Line above both panels.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; `save` writes it.

    Raises
    ------
    ValueError
        As for `mahal.metrics.roc`.
    ImportError
        matplotlib is not installed.
    """
    curve, areas = roc(scores, truth), roc_areas(scores, truth)
    figure: Figure = _matplotlib("figure").Figure((10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    detection, alarm = curve.detection_rate, curve.false_alarm_rate
    smallest = 1.0 / curve.negatives
    # Zero has no place on the logarithmic axis: the curve enters half a pixel below the first.
    start = smallest / 2
    left.plot(np.maximum(alarm, start), detection, color="C0", drawstyle="steps-post")
    chance = np.geomspace(start, 1.0, 200)
    left.plot(chance, chance, color="0.6", linestyle=":", label="chance")
    left.set_xscale("log")
    left.set_xlim(start, 1.0)
    left.set_xlabel("false alarm rate $P_F$")
    left.set_ylabel("detection rate $P_D$")
    left.set_title(f"AUC(D,F) = {areas.auc_df:.5f}", fontsize="medium")
    low, high = curve.thresholds[-1], curve.thresholds[1]
    span = high - low if high > low else 1.0
    tau = np.concatenate(([1.0], (curve.thresholds[1:] - low) / span))
    for rate, name, area, colour in (
        (detection, "$P_D$: AUC(D,$\\tau$)", areas.auc_dtau, "C0"),
        (alarm, "$P_F$: AUC(F,$\\tau$)", areas.auc_ftau, "C3"),
    ):
        right.plot(tau, rate, color=colour, drawstyle="steps-post", label=f"{name} = {area:.5f}")
    right.set_xlim(0.0, 1.0)
    right.set_xlabel("normalised threshold $\\tau$")
    right.set_ylabel("rate")
    right.set_title("rates over the threshold", fontsize="medium")
    if threshold is not None:
        at = int(np.searchsorted(-curve.thresholds, -threshold, side="right")) - 1
        left.plot(
            max(float(alarm[at]), start),
            detection[at],
            "o",
            color="C1",
            label=f"threshold {threshold:.4g}",
        )
        if low <= threshold <= high:
            right.axvline((threshold - low) / span, color="C1", linewidth=1.0)
    for axes in (left, right):
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    if title:
        figure.suptitle(title, fontsize="large")
    return figure


def comparison_figure(
    scores: Mapping[str, npt.ArrayLike | Sequence[npt.ArrayLike]],
    truth: npt.ArrayLike,
    *,
    title: str = "",
) -> Figure:
    """ROC curves of several detectors on one scene.

    Parameters
    ----------
    scores : mapping of str to array_like, or to a list of them
        Name and score map of each detector; each is compared on the pixels where it has a score.
        Of a list, the maps of several runs, the mean curve is drawn in a band of one standard
        deviation (`mahal.metrics.mean_roc`).
    truth : array_like
        As for `mahal.metrics.roc`.
    title : str
        Line above the curves.

    Returns
    -------
    matplotlib.figure.Figure
        Detection rate over false-alarm rate, by descending area in the legend. Not known to
        pyplot; `save` writes it.

    Raises
    ------
    ValueError
        No detector, or as for `mahal.metrics.roc`.
    ImportError
        matplotlib is not installed.
    """
    if not scores:
        raise ValueError("comparison_figure: scores: needs at least one detector, got none")
    curves = [
        (name, mean_roc(maps if isinstance(maps, list) else [np.asarray(maps)], truth))
        for name, maps in scores.items()
    ]
    curves.sort(key=lambda item: -item[1].auc_df)
    figure: Figure = _matplotlib("figure").Figure(
        (7.5, 5.2 + 0.13 * len(curves)), layout="constrained"
    )
    axes = figure.subplots()
    start = 0.5 * min(curve.false_alarm_rate[1] for _, curve in curves)
    for index, (name, curve) in enumerate(curves):
        alarm = np.maximum(curve.false_alarm_rate, start)
        spread = f" ± {curve.auc_deviation:.5f}" if curve.runs > 1 else ""
        axes.plot(
            alarm,
            curve.detection_rate,
            color=f"C{index % 10}",
            linestyle=("-", "--", ":", "-.")[index // 10 % 4],
            drawstyle="steps-post",
            label=f"{name}: {curve.auc_df:.5f}{spread}",
        )
        if curve.runs > 1:
            axes.fill_between(
                alarm,
                curve.detection_rate - curve.deviation,
                curve.detection_rate + curve.deviation,
                color=f"C{index % 10}",
                alpha=0.15,
                linewidth=0,
                step="post",
            )
    chance = np.geomspace(start, 1.0, 200)
    axes.plot(chance, chance, color="0.6", linestyle=":", label="chance")
    axes.set_xscale("log")
    axes.set_xlim(start, 1.0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("false alarm rate $P_F$")
    axes.set_ylabel("detection rate $P_D$")
    axes.grid(alpha=0.3)
    # Below the axes: curves of good and of poor detectors leave no corner free.
    figure.legend(loc="outside lower center", ncols=2, title="AUC(D,F)")
    if title:
        axes.set_title(title, fontsize="large")
    return figure


def map_sheet(shown: Sequence[tuple[Scene, Mapping[str, Array]]], *, side: float = 1.6) -> Figure:
    """Score maps of several detectors beside image and truth, a row for every scene.

    Parameters
    ----------
    shown : sequence of (Scene, mapping of str to ndarray)
        Scenes, and the score map of each detector. Every map has a scale of its own, from its
        median to its highest score, logarithmic where the scores are positive. A scene without
        truth has no panel for it.
    side : float
        Of each panel, in inches.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; `save` writes it.
    """
    columns = max(1 + (scene.truth is not None) + len(maps) for scene, maps in shown)
    figure: Figure = _matplotlib("figure").Figure(
        (side * columns, (side + 0.25) * len(shown)), layout="constrained"
    )
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for place, (line, (scene, maps)) in enumerate(zip(grid, shown, strict=True)):
        picture, _ = false_colour(scene)
        known = [] if scene.truth is None else [("truth", scene.truth)]
        panels = [(scene.name, picture), *known, *maps.items()]
        for axes in line:
            axes.set_axis_off()
        for axes, (name, values) in zip(line, panels, strict=False):
            if name in maps:
                values = _spread_out(np.asarray(values, np.float64))
            axes.imshow(values, cmap="magma" if name in maps else "gray", interpolation="nearest")
            if place == 0 or axes is line[0]:
                axes.set_title(name, fontsize="x-small")
    return figure


def _spread_out(values: Array) -> Array:
    """Scores on a scale that shows background and anomalies."""
    known = values[np.isfinite(values)]
    if known.size and known.min() >= 0 and known.max() > 0:
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
        known = values[np.isfinite(values)]
    low = float(np.median(known)) if known.size else 0.0
    return np.clip(values, low, None)


def latent_figure(
    codes: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    scores: npt.ArrayLike | None = None,
    title: str = "",
    label: str = "score",
) -> Figure:
    """Codes of a latent space in the plane that shows most of their variance.

    Parameters
    ----------
    codes : array_like (..., units)
        Codes of samples, of pixels or of patches, with two units or more; left out where a value
        is not finite. Two units are drawn as they are, more as their two leading principal
        components.
    labels : array_like (...), optional
        Class of each code, in colours with a legend; rare classes are drawn over frequent ones.
    scores : array_like (...), optional
        Score of each code, in colours with a bar from its 1st to its 99th percentile; high ones
        are drawn over low ones.
    title : str
        Line above the points.
    label : str
        Name of the scores on the colour bar.

    Returns
    -------
    matplotlib.figure.Figure
        Not known to pyplot; `save` writes it. Of more than 20 000 codes every k-th is drawn.

    Raises
    ------
    ValueError
        Fewer than two units or three finite codes, both labels and scores, or their wrong shape.
    ImportError
        matplotlib is not installed.
    """
    values = np.asarray(codes, dtype=np.float64)
    if values.ndim < 2 or values.shape[-1] < 2:
        raise ValueError(
            f"latent_figure: codes: must have shape (..., units) with 2 units or more, "
            f"got {values.shape}"
        )
    if labels is not None and scores is not None:
        raise ValueError("latent_figure: labels: must not be given together with scores, got both")
    name, given = ("labels", labels) if labels is not None else ("scores", scores)
    kinds = None if given is None else np.asarray(given)
    if kinds is not None and kinds.shape != values.shape[:-1]:
        raise ValueError(
            f"latent_figure: {name}: must have the shape of the codes without units, "
            f"{values.shape[:-1]}, got {kinds.shape}"
        )
    usable = np.isfinite(values).all(axis=-1)
    if scores is not None and kinds is not None:
        usable &= np.isfinite(kinds.astype(np.float64))
    values = values[usable]
    if len(values) < 3:
        raise ValueError(f"latent_figure: codes: needs 3 finite ones or more, got {len(values)}")
    points, names = _plane(values)
    step = -(-len(points) // POINTS)
    kinds = None if kinds is None else kinds[usable]
    points, drawn = points[::step], None if kinds is None else kinds[::step]
    figure: Figure = _matplotlib("figure").Figure((7.4, 6.2), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(4e4 / len(points), 4.0, 40.0))
    style: dict[str, Any] = {"s": size, "linewidths": 0}
    if kinds is None or drawn is None:
        axes.scatter(points[:, 0], points[:, 1], alpha=0.7, **style)
    elif labels is not None:
        found, counts = np.unique(kinds, return_counts=True)
        for place in np.argsort(-counts, kind="stable"):
            chosen = drawn == found[place]
            text = f"{found[place]}: {counts[place]}"
            style |= {"color": f"C{place % 10}", "label": text, "alpha": 0.7}
            axes.scatter(points[chosen, 0], points[chosen, 1], **style)
        shown = axes.legend(loc="best", title="class: codes", markerscale=(30.0 / size) ** 0.5)
        shown.get_frame().set_alpha(0.9)
    else:
        order = np.argsort(drawn, kind="stable")
        low, high = np.percentile(drawn, (1, 99))
        style |= {"c": drawn[order], "cmap": "viridis", "vmin": low, "vmax": high}
        cloud = axes.scatter(points[order, 0], points[order, 1], **style)
        figure.colorbar(cloud, ax=axes, extend="both", label=label)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, fontsize="large")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file that is the same for the same content.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : path
        Its folder must exist.
    """
    figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _plane(codes: Array) -> tuple[Array, tuple[str, str]]:
    """Codes in two dimensions, and names of the axes."""
    if codes.shape[1] == 2:
        return codes, ("unit 1", "unit 2")
    mean, covariance = mean_covariance(codes)
    variances, directions = np.linalg.eigh(covariance)
    directions = directions[:, :-3:-1]
    # The sign of a direction is arbitrary: the largest entry is positive.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, (0, 1)] < 0, -1.0, 1.0)
    total = variances.sum()
    shares = 100 * variances[:-3:-1] / total if total > 0 else np.zeros(2)
    first, second = (f"component {k + 1}: {s:.0f} % of the variance" for k, s in enumerate(shares))
    return (codes - mean) @ directions, (first, second)


def _matplotlib(name: str) -> ModuleType:
    return extra(f"matplotlib.{name}")


def _composite(scene: Scene) -> tuple[tuple[int, int, int], str]:
    count = scene.image.shape[2]
    if count < 3:
        return (0, 0, 0), "band 1"
    if count == 3 and scene.format == "picture":
        return (0, 1, 2), "colour"
    if scene.wavelengths is not None:
        for name, wanted in COMPOSITES.items():
            nearest = [int(np.abs(scene.wavelengths - w).argmin()) for w in wanted]
            centres = scene.wavelengths[nearest]
            if np.all(np.abs(centres - wanted) <= REACH) and len(set(nearest)) == 3:
                red, green, blue = nearest
                return (red, green, blue), f"{name} ({', '.join(f'{c:.0f}' for c in centres)} nm)"
    blue = int(POSITIONS[2] * (count - 1))
    green = max(int(POSITIONS[1] * (count - 1)), blue + 1)
    red = max(int(POSITIONS[0] * (count - 1)), green + 1)
    return (red, green, blue), f"false colour (bands {red + 1}, {green + 1}, {blue + 1})"


def _radar(scene: Scene) -> tuple[Array, str]:
    """Powers in dB (rows, cols, 3) of a radar scene; NaN where a channel has no power."""
    image = scene.image
    names = scene.polarisations or ()
    at = {name: image[:, :, index] for index, name in enumerate(names)}
    at.setdefault("HV", at.get("VH", np.empty(0)))
    if all(name in names for name in PAULI):
        layers, caption = [at[name] for name in PAULI], "Pauli"
    elif image.dtype.kind == "c" and {"HH", "VV"} <= set(names) and at["HV"].size:
        hh, vv = at["HH"], at["VV"]
        layers = [(hh - vv) / np.sqrt(2), np.sqrt(2) * at["HV"], (hh + vv) / np.sqrt(2)]
        caption = "Pauli"
    elif {"HH", "VV"} <= set(names) and at["HV"].size:
        layers, caption = [at[name] for name in LINEAR], ", ".join(LINEAR)
    elif image.shape[2] >= 3:
        layers = [image[:, :, index] for index in range(3)]
        caption = ", ".join(names[:3]) or "channels 1, 2, 3"
    else:
        layers, caption = [image[:, :, 0]] * 3, names[0] if names else "channel 1"
    with np.errstate(divide="ignore"):
        level = 20.0 * np.log10(np.abs(np.stack(layers, axis=-1)))
    return np.where(np.isneginf(level), np.nan, level).astype(np.float32), f"{caption} in dB"


def _scores(
    op: str,
    scenes: Sequence[Scene],
    scores: npt.ArrayLike,
    threshold: npt.ArrayLike,
    truth: npt.ArrayLike | None,
) -> tuple[Array, Array]:
    """Scores and thresholds in float64, once all sizes agree."""
    values = np.asarray(scores, dtype=np.float64)
    size = scenes[0].image.shape[:2]
    checked = [("scores", values), ("truth", truth)]
    checked += [("second", scene.image[:, :, 0]) for scene in scenes[1:]]
    for name, given in checked:
        if given is not None and np.shape(given) != size:
            raise ValueError(
                f"{op}: {name}: must have the size of the scene {size}, got {np.shape(given)}"
            )
    return values, np.asarray(threshold, dtype=np.float64)


def _mark(
    figure: Figure, panels: Sequence[Axes], name: str, found: Bools, truth: npt.ArrayLike | None
) -> None:
    """Outline what was found, and the truth around it, on every panel."""
    grow = max(found.shape) // 250  # keeps single pixels of a large image visible
    marks = [(name, DETECTED, found, grow)]
    if truth is not None:
        marks.append(("truth", TRUTH, np.asarray(truth, dtype=np.bool_), grow + 1))
    for axes in panels:
        for _, colour, mask, out in reversed(marks):
            _outline(axes, _grown(mask, out), colour)
    _legend(figure, [(f"{text}: {mask.sum()} pixels", c) for text, c, mask, _ in marks])


def _panel_size(rows: int, cols: int) -> tuple[float, float]:
    """Width and height in inches of an image of these proportions."""
    return PANEL * min(1.0, cols / rows), PANEL * min(1.0, rows / cols)


def _panels(size: tuple[int, ...], count: int) -> tuple[Figure, Sequence[Axes]]:
    """Panels of the image's own proportions, room for labels, legend and colour bar."""
    rows, cols = size
    wide, tall = _panel_size(rows, cols)
    below = cols > WIDE * rows
    across = wide + 1.3 if below else count * wide + 1.2 + 0.8 * count
    up = count * tall + 1.4 + count if below else tall + 1.7
    # The pad keeps the legend off the colour bar.
    layout = _matplotlib("layout_engine").ConstrainedLayoutEngine(h_pad=0.08)
    figure: Figure = _matplotlib("figure").Figure((max(across, 6.0), up), layout=layout)
    panels: Sequence[Axes] = figure.subplots(*((count, 1) if below else (1, count)))
    for axes in panels:
        axes.set_xlabel("column")
        axes.set_ylabel("row")
        axes.locator_params(axis="x", nbins=max(2, int(1.1 * wide)), integer=True)
        axes.locator_params(axis="y", nbins=max(2, int(1.1 * tall)), integer=True)
    return figure, panels


def _draw_scores(
    figure: Figure, axes: Axes, values: Array, limit: Array, label: str, scale: Scale
) -> None:
    colours = _matplotlib("colors")
    log = scale == "log"
    shown = values[np.isfinite(values) & ((values > 0) | (not log))]
    mark = float(np.median(limit[np.isfinite(limit)])) if np.isfinite(limit).any() else float("nan")
    low, high = np.percentile(shown, (0.5, 99.9)) if shown.size else (1.0, 10.0)
    if not log:
        if np.isfinite(mark):
            room = 0.05 * max(high - low, abs(mark - high), abs(low - mark))
            low, high = min(low, mark - room), max(high, mark + room)
        high = max(high, low + 1e-6 * max(abs(low), 1e-30))
    else:
        if mark > 0:
            low, high = min(low, mark / 1.2), max(high, mark * 1.2)
        high = max(high, low * 1.01)
    palette = _matplotlib("cm").ScalarMappable(cmap="magma").get_cmap()
    picture = axes.imshow(
        np.ma.masked_invalid(np.maximum(values, low)),
        norm=colours.LogNorm(low, high) if log else colours.Normalize(low, high),
        cmap=palette.with_extremes(bad=MISSING),
        interpolation="nearest",
    )
    axes.set_title(label, fontsize="medium")
    wide, tall = _panel_size(*values.shape)
    # An inset keeps the bar as long as the image, whatever the proportions.
    if values.shape[1] > WIDE * values.shape[0]:
        place, side = (0.0, -0.85 / tall, 1.0, 0.16 / tall), "horizontal"
    else:
        place, side = (1.0 + 0.15 / wide, 0.0, 0.18 / wide, 1.0), "vertical"
    bar = figure.colorbar(
        picture, cax=axes.inset_axes(place), orientation=side, extend="both", extendfrac=0.02
    )
    ticker = _matplotlib("ticker")
    if not log:
        bar.locator = ticker.MaxNLocator(6)
    elif np.log10(high / low) < 0.5:
        bar.set_ticks(list(np.geomspace(low, high, 5)))
    else:
        steps = (1.0, 2.0, 5.0) if np.log10(high / low) < 2 else (1.0,)
        bar.locator = ticker.LogLocator(subs=steps, numticks=12)
    bar.formatter = ticker.FuncFormatter(lambda value, _: f"{float(f'{value:.3g}'):g}")
    bar.minorticks_off()
    bar.update_ticks()
    if np.isfinite(mark):
        mark_line = bar.ax.axvline if side == "horizontal" else bar.ax.axhline
        mark_line(mark, color=DETECTED, linewidth=2.0)
        bar.set_label(f"{label} (line: threshold {mark:.4g})")
    else:
        bar.set_label(label)


def _grown(mask: Bools, steps: int) -> Bools:
    """The mask with every pixel grown to a square of side 2 steps + 1."""
    for axis in (0, 1):
        grown = mask.copy()
        for step in range(1, steps + 1):
            ahead, behind = [slice(None)] * 2, [slice(None)] * 2
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= mask[tuple(behind)]
            grown[tuple(behind)] |= mask[tuple(ahead)]
        mask = grown
    return mask


def _outline(axes: Axes, mask: Bools, colour: str) -> None:
    """Draw the borders of the connected parts along the edges of their pixels."""
    framed = np.pad(mask, 1)
    r, c = np.nonzero(framed[1:] != framed[:-1])
    across = np.stack([np.stack([c - 1.5, r - 0.5], -1), np.stack([c - 0.5, r - 0.5], -1)], 1)
    r, c = np.nonzero(framed[:, 1:] != framed[:, :-1])
    down = np.stack([np.stack([c - 0.5, r - 1.5], -1), np.stack([c - 0.5, r - 0.5], -1)], 1)
    effects = _matplotlib("patheffects")
    lines = _matplotlib("collections").LineCollection(
        np.concatenate([across, down]), colors=colour, linewidths=1.1, capstyle="projecting"
    )
    # A dark rim keeps the line visible on bright pixels.
    lines.set_path_effects(
        [effects.withStroke(linewidth=2.2, foreground="black"), effects.Normal()]
    )
    axes.add_collection(lines)


def _legend(figure: Figure, entries: list[tuple[str, str]]) -> None:
    lines = _matplotlib("lines")
    handles = [lines.Line2D([], [], color=colour, linewidth=2.5) for _, colour in entries]
    figure.legend(
        handles,
        [text for text, _ in entries],
        loc="outside lower center",
        ncols=len(entries),
        facecolor="0.3",
        labelcolor="white",
    )

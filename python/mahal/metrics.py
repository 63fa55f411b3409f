"""Areas under two- and three-dimensional receiver operating characteristic (ROC) curves.

A detector gives every pixel a score. The smallest and largest score of the image bring it to
``[0, 1]``, and a threshold ``tau`` in that range gives two probabilities:

- ``P_D(tau)``: the share of target pixels with normalised score >= tau (detection),
- ``P_F(tau)``: the share of background pixels with normalised score >= tau (false alarm).

The three curves (P_D over P_F, P_D over tau, P_F over tau) and the areas made of them are those of
C.-I Chang, "An effective evaluation tool for hyperspectral target detection: 3D receiver operating
characteristic curve analysis", IEEE TGRS 59(6), 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "ImageAreas",
    "MeanRoc",
    "Roc",
    "RocAreas",
    "Spread",
    "image_areas",
    "mean_roc",
    "over_runs",
    "roc",
    "roc_areas",
]


@dataclass(frozen=True)
class Roc:
    """One ROC curve, from the strictest threshold to the loosest.

    Attributes
    ----------
    thresholds : ndarray (points,)
        Decreasing, in the units of the scores; a pixel is detected when its score is >= threshold.
    detection_rate, false_alarm_rate : ndarray (points,)
        P_D and P_F at each threshold, both increasing.
    positives, negatives : int
        Number of target and background pixels that were counted.
    left_out : int
        Number of pixels whose score is NaN; they are counted nowhere else.
    """

    thresholds: npt.NDArray[np.float64]
    detection_rate: npt.NDArray[np.float64]
    false_alarm_rate: npt.NDArray[np.float64]
    positives: int
    negatives: int
    left_out: int


@dataclass(frozen=True)
class MeanRoc:
    """ROC curves of several runs, averaged at equal false-alarm rates.

    Attributes
    ----------
    false_alarm_rate : ndarray (points,)
        0, 1/n, 2/n, ..., 1 with n the background pixels of a run (the fewest of all runs).
    detection_rate, deviation : ndarray (points,)
        Mean and standard deviation over the runs of the highest P_D that a run reaches without
        exceeding that rate.
    auc_df, auc_deviation : float
        Mean and standard deviation over the runs of the exact AUC(D,F).
    runs : int
    """

    false_alarm_rate: npt.NDArray[np.float64]
    detection_rate: npt.NDArray[np.float64]
    deviation: npt.NDArray[np.float64]
    auc_df: float
    auc_deviation: float
    runs: int


@dataclass(frozen=True)
class RocAreas:
    """Areas of 3-D ROC analysis, all dimensionless.

    Attributes
    ----------
    auc_df : float
        AUC(D,F), area of P_D over P_F in [0, 1]: the probability that a target pixel scores higher
        than a background pixel, ties counting one half. Overall quality, blind to the threshold.
    auc_dtau : float
        AUC(D,tau), area of P_D over tau in [0, 1]: the mean normalised score of the targets.
    auc_ftau : float
        AUC(F,tau), area of P_F over tau in [0, 1]: the mean normalised score of the background.
        Lower is better.
    td : float
        Target detection, AUC(D,F) + AUC(D,tau), in [0, 2].
    bs : float
        Background suppression, AUC(D,F) - AUC(F,tau), in [-1, 1].
    tdbs : float
        Target detection with background suppression, AUC(D,tau) - AUC(F,tau), in [-1, 1].
    odp : float
        Overall detection probability, AUC(D,tau) + (1 - AUC(F,tau)), in [0, 2].
    od : float
        Overall detection, AUC(D,F) + AUC(D,tau) - AUC(F,tau), in [-1, 2]. Some published scripts
        print this figure under the name ODP.
    snpr : float
        Signal to noise probability ratio, AUC(D,tau) / AUC(F,tau), a plain ratio (some papers
        print 10 log10 of it); NaN when AUC(F,tau) is 0.
    positives, negatives, left_out : int
        Pixels counted as target, counted as background, and left out because their score is NaN.
    """

    auc_df: float
    auc_dtau: float
    auc_ftau: float
    td: float
    bs: float
    tdbs: float
    odp: float
    od: float
    snpr: float
    positives: int
    negatives: int
    left_out: int


@dataclass(frozen=True)
class ImageAreas:
    """Areas under the ROC curves of a set of images, AUROC in the anomaly detection literature.

    Attributes
    ----------
    image : float
        AUC(D,F) with one score per image, the highest of its map; an image with any target pixel is
        a target.
    pixel : float
        AUC(D,F) of the pixels of all images together.
    pixel_mean : float
        Mean of the AUC(D,F) of every image that has target and background pixels.
    targets, images : int
        Number of images with target pixels, and of all.
    """

    image: float
    pixel: float
    pixel_mean: float
    targets: int
    images: int


@dataclass(frozen=True)
class Spread:
    """Mean and deviation of a figure over several runs.

    Attributes
    ----------
    mean : float
    deviation : float
        Standard deviation, with divisor ``runs``.
    runs : int
    """

    mean: float
    deviation: float
    runs: int

    def __str__(self) -> str:
        """With four decimals, and the deviation of more than one run."""
        return f"{self.mean:.4f}" + (f" ± {self.deviation:.4f}" if self.runs > 1 else "")


@dataclass(frozen=True)
class _Split:
    targets: npt.NDArray[np.float64]  # sorted
    background: npt.NDArray[np.float64]  # sorted
    left_out: int

    @property
    def low(self) -> float:
        return float(min(self.targets[0], self.background[0]))

    @property
    def high(self) -> float:
        return float(max(self.targets[-1], self.background[-1]))


def roc(scores: npt.ArrayLike, truth: npt.ArrayLike, *, thresholds: int | None = None) -> Roc:
    """Receiver operating characteristic of a score map.

    Parameters
    ----------
    scores : array_like, any shape
        Real scores, higher is more anomalous. NaN pixels are left out and counted.
    truth : array_like, shape of `scores`
        Boolean, or numbers that are all 0 or 1; 1 marks a target.
    thresholds : int, optional
        Not given: the exact curve, one point per distinct score and (0, 0) in front. Given (at
        least 2): that many equally spaced thresholds from the highest score to the lowest, as many
        papers do with 1001.

    Returns
    -------
    Roc

    Raises
    ------
    ValueError
        Shapes differ, truth is not two-valued, a score is infinite, or there is no target or no
        background pixel left.
    """
    split = _split("roc", scores, truth)
    if thresholds is None:
        values = np.unique(np.concatenate((split.targets, split.background)))[::-1]
        detected = _at_least(split.targets, values)
        alarms = _at_least(split.background, values)
        values = np.concatenate(([np.inf], values))
        detected = np.concatenate(([0], detected))
        alarms = np.concatenate(([0], alarms))
    else:
        tau = _grid("roc", thresholds)[::-1]
        low, span = split.low, split.high - split.low
        detected = _at_least(_normalised(split.targets, split), tau)
        alarms = _at_least(_normalised(split.background, split), tau)
        values = low + tau * span
    return Roc(
        thresholds=values,
        detection_rate=detected / split.targets.size,
        false_alarm_rate=alarms / split.background.size,
        positives=split.targets.size,
        negatives=split.background.size,
        left_out=split.left_out,
    )


def mean_roc(scores: Sequence[npt.ArrayLike], truth: npt.ArrayLike) -> MeanRoc:
    """Vertical average of the ROC curves of several runs.

    Parameters
    ----------
    scores : sequence of array_like, each of the shape of `truth`
        Score map of each run.
    truth : array_like
        As for `roc`.

    Returns
    -------
    MeanRoc

    Raises
    ------
    ValueError
        No run, or as for `roc`.

    References
    ----------
    T. Fawcett, "An introduction to ROC analysis", Pattern Recognition Letters 27(8), 2006,
    section 8.1.
    """
    if len(scores) == 0:
        raise ValueError("mean_roc: scores: needs at least one run, got none")
    curves = [roc(one, truth) for one in scores]
    areas = np.array([roc_areas(one, truth).auc_df for one in scores])
    background = min(curve.negatives for curve in curves)
    rates = np.arange(background + 1) / background
    # Half a pixel of tolerance: k / n must find itself.
    found = np.stack(
        [
            curve.detection_rate[
                np.searchsorted(curve.false_alarm_rate, rates + 0.25 / background, "right") - 1
            ]
            for curve in curves
        ]
    )
    return MeanRoc(
        false_alarm_rate=rates,
        detection_rate=found.mean(axis=0),
        deviation=found.std(axis=0),
        auc_df=float(areas.mean()),
        auc_deviation=float(areas.std()),
        runs=len(curves),
    )


def roc_areas(
    scores: npt.ArrayLike, truth: npt.ArrayLike, *, thresholds: int | None = None
) -> RocAreas:
    """Areas of 3-D ROC analysis of a score map, see `RocAreas` for their definitions.

    Parameters
    ----------
    scores : array_like, any shape
        Real scores, higher is more anomalous. NaN pixels are left out and counted. A map with one
        single value is normalised to 0.
    truth : array_like, shape of `scores`
        Boolean, or numbers that are all 0 or 1; 1 marks a target.
    thresholds : int, optional
        Not given: the exact AUC(D,F), ties included. Given (at least 2): the trapezoid through the
        points at that many equally spaced thresholds in [0, 1], for parity with papers that use
        1001; it can be wrong in the third digit when a few very large scores squeeze the others
        together. The areas over tau are exact either way: they are means of the scores.

    Returns
    -------
    RocAreas

    Raises
    ------
    ValueError
        As for `roc`.
    """
    split = _split("roc_areas", scores, truth)
    targets, background = _normalised(split.targets, split), _normalised(split.background, split)
    auc_dtau, auc_ftau = float(targets.mean()), float(background.mean())
    if thresholds is None:
        below = np.searchsorted(split.background, split.targets, side="left").astype(np.int64)
        not_above = np.searchsorted(split.background, split.targets, side="right")
        # Twice the number of won pairs: an integer, so the area is exact.
        wins = int((below + not_above).sum())
        auc_df = wins / (2 * targets.size * background.size)
    else:
        tau = _grid("roc_areas", thresholds)
        detection = _at_least(targets, tau) / targets.size
        alarm = _at_least(background, tau) / background.size
        auc_df = -_trapezoid(detection, alarm)
    return RocAreas(
        auc_df=auc_df,
        auc_dtau=auc_dtau,
        auc_ftau=auc_ftau,
        td=auc_df + auc_dtau,
        bs=auc_df - auc_ftau,
        tdbs=auc_dtau - auc_ftau,
        odp=auc_dtau + (1.0 - auc_ftau),
        od=auc_df + auc_dtau - auc_ftau,
        snpr=auc_dtau / auc_ftau if auc_ftau > 0.0 else float("nan"),
        positives=targets.size,
        negatives=background.size,
        left_out=split.left_out,
    )


def image_areas(
    scores: Sequence[npt.ArrayLike],
    truths: Sequence[npt.ArrayLike],
    *,
    image_scores: npt.ArrayLike | None = None,
) -> ImageAreas:
    """Areas under the ROC curves of images and of their pixels.

    Parameters
    ----------
    scores : sequence of array_like
        Score maps, of any sizes, higher is more anomalous. NaN pixels are left out.
    truths : sequence of array_like
        Truth of every map, of its shape, boolean or all 0 and 1.
    image_scores : array_like (images,), optional
        Scores of the images; the highest of each map where not given.

    Returns
    -------
    ImageAreas
        `image` is NaN where all images are targets, or none is.

    Raises
    ------
    ValueError
        No image, as many truths as maps, or as for `roc` of all pixels together.
    """
    op = "image_areas"
    maps, labels = [np.asarray(s) for s in scores], [np.asarray(t) for t in truths]
    if not maps or len(maps) != len(labels):
        raise ValueError(
            f"{op}: truths: must be as many as the scores and at least one, got {len(labels)} for "
            f"{len(maps)}"
        )
    for index, (values, truth) in enumerate(zip(maps, labels, strict=True)):
        if values.shape != truth.shape:
            raise ValueError(
                f"{op}: truths[{index}]: must have the shape of its scores {values.shape}, got "
                f"{truth.shape}"
            )
    pixel = roc_areas(
        np.concatenate([m.ravel() for m in maps]), np.concatenate([t.ravel() for t in labels])
    )
    single = [
        roc_areas(values, truth).auc_df
        for values, truth in zip(maps, labels, strict=True)
        if _two_valued(truth[~np.isnan(values)])
    ]
    if image_scores is None:
        known = [m[~np.isnan(m)] for m in maps]
        highest = np.array([m.max() if m.size else np.nan for m in known])
    else:
        highest = np.asarray(image_scores)
    strange = np.array([bool(t.any()) for t in labels])
    both = _two_valued(strange)
    return ImageAreas(
        image=roc_areas(highest, strange).auc_df if both else float("nan"),
        pixel=pixel.auc_df,
        pixel_mean=float(np.mean(single)) if single else float("nan"),
        targets=int(strange.sum()),
        images=len(maps),
    )


def over_runs(values: npt.ArrayLike) -> Spread:
    """Mean and deviation of a figure over runs, such as the areas of several seeds.

    Parameters
    ----------
    values : array_like (runs,)

    Returns
    -------
    Spread

    Raises
    ------
    ValueError
        No value, or values that are not in one row.
    """
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(
            f"over_runs: values: must have shape (runs,) with at least one run, got {found.shape}"
        )
    return Spread(float(found.mean()), float(found.std()), int(found.size))


def _two_valued(labels: npt.NDArray[np.generic]) -> bool:
    return bool(labels.any() and not labels.all())


def _split(op: str, scores: npt.ArrayLike, truth: npt.ArrayLike) -> _Split:
    values, labels = np.asarray(scores), np.asarray(truth)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{op}: scores: must be real numbers, got dtype {values.dtype}")
    if values.shape != labels.shape:
        raise ValueError(
            f"{op}: truth: must have the shape of scores {values.shape}, got {labels.shape}"
        )
    if labels.dtype.kind not in "bfiu" or not np.all((labels == 0) | (labels == 1)):
        raise ValueError(f"{op}: truth: must be boolean or all 0 and 1, got {_describe(labels)}")
    values = values.astype(np.float64)
    infinite = int(np.isinf(values).sum())
    if infinite:
        raise ValueError(f"{op}: scores: must be finite or NaN, got {infinite} infinite values")
    used = ~np.isnan(values)
    target = labels != 0
    targets, background = np.sort(values[used & target]), np.sort(values[used & ~target])
    left_out = int(values.size - used.sum())
    for name, part in (("target", targets), ("background", background)):
        if part.size == 0:
            raise ValueError(
                f"{op}: truth: needs at least one {name} pixel whose score is not NaN, got none"
            )
    return _Split(targets, background, left_out)


def _describe(labels: npt.NDArray[np.generic]) -> str:
    if labels.dtype.kind not in "bfiu":
        return f"dtype {labels.dtype}"
    values = np.unique(labels)
    shown = ", ".join(str(v) for v in values[:4])
    return f"values {shown}{', ...' if values.size > 4 else ''}"


def _normalised(part: npt.NDArray[np.float64], split: _Split) -> npt.NDArray[np.float64]:
    low, high = split.low, split.high
    if high == low:
        return np.zeros_like(part)
    # Halves first: the span of two huge scores of opposite sign must not overflow.
    return (part / 2 - low / 2) / (high / 2 - low / 2)


def _grid(op: str, thresholds: int) -> npt.NDArray[np.float64]:
    if not isinstance(thresholds, (int, np.integer)) or thresholds < 2:
        raise ValueError(f"{op}: thresholds: must be an integer of at least 2, got {thresholds!r}")
    return np.linspace(0.0, 1.0, int(thresholds))


def _at_least(
    ordered: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]
) -> npt.NDArray[np.intp]:
    return ordered.size - np.searchsorted(ordered, thresholds, side="left")


def _trapezoid(y: npt.NDArray[np.float64], x: npt.NDArray[np.float64]) -> float:
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)

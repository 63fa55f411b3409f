"""Laws of the matched detectors: ACE, adaptive matched filter, Kelly's ratio."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mahal.significance._checks import (
    Background,
    Floats,
    Mean,
    as_bands,
    as_rate,
    as_samples,
    as_scores,
    check_option,
)
from mahal.significance._mixture import Mixture, distinct, solve
from mahal.significance._rx import score_scale

Estimator = Literal["scm", "tyler"]
_LOGIT = 700.0  # beyond it 1 - score underflows


def ace_threshold(
    false_alarm_rate: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
    estimator: Estimator = "scm",
    signed: bool = False,
) -> Any:
    """Score that ACE exceeds with a chosen probability on a pure Gaussian background.

    Parameters
    ----------
    false_alarm_rate : array_like
        Probability, more than 0 and less than 1.
    bands : int
        Number of bands p, at least 2: with one band ACE is 1 everywhere.
    samples : array_like
        Number of background samples N behind each covariance, or a map of counts. ``np.inf``
        stands for a known covariance.
    background : {"local", "global"}
        Whether the pixel is outside ("local") or inside ("global") its own background.
    mean : {"estimated", "known"}
        Whether the mean was estimated with the covariance or given.
    complex_data : bool
        Circular complex samples instead of real ones.
    estimator : {"scm", "tyler"}
        Sample covariance, or Tyler's estimator, which scatters like a sample covariance of
        ``N p / (p + 1)`` complex or ``N p / (p + 2)`` real samples. That holds for many samples;
        only for ``background="local"``.
    signed : bool
        Threshold on the signed score in [-1, 1] of real data instead of its square.

    Returns
    -------
    float or ndarray of float64
        Threshold, for `false_alarm_rate` and `samples` broadcast together. NaN where a map entry of
        `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A rate out of range, bands below 2, an unknown option, or too few samples everywhere.

    Notes
    -----
    The law holds for a target that is fixed before the image is seen. Local ACE takes the target
    relative to the local mean, which is itself random: the squared score hardly changes its law,
    the signed score of a target close to the mean does.
    """
    op = "ace_threshold"
    _check_signed(op, signed, complex_data)
    rate = as_rate(op, false_alarm_rate)
    p = as_bands(op, bands, 2)
    (rates, counts), spread = distinct(rate, samples)
    squared_rates = 2.0 * np.minimum(rates, 1.0 - rates) if signed else rates
    law = _ace(op, p, counts, background, mean, complex_data, estimator)
    logit = solve(lambda t: _exceeds(law, t), squared_rates, -_LOGIT, _LOGIT)
    score = np.where(np.isnan(law.second), np.nan, 1.0 / (1.0 + np.exp(-logit)))
    if signed:
        # Half of the excesses of the square are positive, and the law is symmetric.
        score = np.where(rates <= 0.5, 1.0, -1.0) * np.sqrt(score)
    return spread(score)[()]


def ace_pvalue(
    scores: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
    estimator: Estimator = "scm",
    signed: bool = False,
) -> Any:
    """Probability that a pure Gaussian background pixel scores at least this high under ACE.

    Parameters
    ----------
    scores : array_like
        Scores in [0, 1], or in [-1, 1] with ``signed``; NaN gives NaN.
    bands, samples, background, mean, complex_data, estimator, signed
        As for `ace_threshold`; `samples` broadcasts with `scores`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1]. NaN where the score is NaN or `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A score out of range, bands below 2, an unknown option, or too few samples everywhere.
    """
    op = "ace_pvalue"
    _check_signed(op, signed, complex_data)
    values = as_scores(op, scores, -1.0 if signed else 0.0, 1.0)
    p = as_bands(op, bands, 2)
    count = np.asarray(samples, dtype=np.float64)
    law = _ace(op, p, count, background, mean, complex_data, estimator)
    size = np.abs(values)
    squared = size * size if signed else values
    rest = (1.0 - size) * (1.0 + size) if signed else 1.0 - values
    return _one_sided(law.exceedance(squared, rest), values, signed)[()]


def amf_threshold(
    false_alarm_rate: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
    signed: bool = False,
) -> Any:
    """Score that the adaptive matched filter exceeds with a chosen probability on background.

    The score is ``|s^H S^-1 d|^2 / (s^H S^-1 s)``, the squared modulus of `mahal.matched_filter`
    with ``normalized=True``.

    Parameters
    ----------
    false_alarm_rate : array_like
        Probability, more than 0 and less than 1.
    bands : int
        Number of bands p.
    samples : array_like
        Number of background samples N behind each covariance, or a map of counts.
    background : {"local", "global"}
        Whether the pixel is outside ("local") or inside ("global") its own background.
    mean : {"estimated", "known"}
        From the samples, with the divisor N - 1 in S; or given, with the divisor N.
    complex_data : bool
        Circular complex samples instead of real ones.
    signed : bool
        Threshold on the score before squaring, of real data.

    Returns
    -------
    float or ndarray of float64
        Threshold, for `false_alarm_rate` and `samples` broadcast together. NaN where a map entry of
        `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A rate out of range, bands below 1, an unknown option, or too few samples everywhere.

    Notes
    -----
    As for `ace_threshold`, the target is fixed before the image is seen.
    """
    op = "amf_threshold"
    _check_signed(op, signed, complex_data)
    rate = as_rate(op, false_alarm_rate)
    p = as_bands(op, bands)
    (rates, counts), spread = distinct(rate, samples)
    squared_rates = 2.0 * np.minimum(rates, 1.0 - rates) if signed else rates
    law, scale, inside = _amf(op, p, counts, background, mean, complex_data)
    logit = solve(lambda t: _exceeds(law, t), squared_rates, -_LOGIT, _LOGIT)
    share = 1.0 / (1.0 + np.exp(-logit)) if inside else np.exp(logit)
    score = np.where(np.isnan(law.second), np.nan, scale * share)
    if signed:
        # Half of the excesses of the square are positive, and the law is symmetric.
        score = np.where(rates <= 0.5, 1.0, -1.0) * np.sqrt(score)
    return spread(score)[()]


def amf_pvalue(
    scores: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
    signed: bool = False,
) -> Any:
    """Probability that background scores at least this high under the adaptive matched filter.

    Parameters
    ----------
    scores : array_like
        Scores as in `amf_threshold`; not negative unless ``signed``; NaN gives NaN.
    bands, samples, background, mean, complex_data, signed
        As for `amf_threshold`; `samples` broadcasts with `scores`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1]. NaN where the score is NaN or `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A negative score, bands below 1, an unknown option, or too few samples everywhere.
    """
    op = "amf_pvalue"
    _check_signed(op, signed, complex_data)
    values = as_scores(op, scores, -np.inf if signed else 0.0)
    p = as_bands(op, bands)
    count = np.asarray(samples, dtype=np.float64)
    law, scale, inside = _amf(op, p, count, background, mean, complex_data)
    squared = values * values if signed else values
    if inside:
        share = np.minimum(squared / scale, 1.0)
        found = law.exceedance(share, 1.0 - share)
    else:
        rest = scale / (scale + squared)
        found = law.exceedance(squared / (scale + squared), rest)
    return _one_sided(found, values, signed)[()]


def kelly_threshold(
    false_alarm_rate: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Value that Kelly's likelihood ratio exceeds with a chosen probability on background.

    The ratio is ``a / (k + r)`` with the scores ``a`` of the adaptive matched filter and ``r`` of
    RX for one covariance: ``k = N`` for ``mean="known"`` (divisor N), and ``k = (N - 1) (N + 1) /
    N`` for ``mean="estimated"`` (divisor N - 1). The pixel is outside its own background.

    Parameters
    ----------
    false_alarm_rate, bands, samples, mean, complex_data
        As for `amf_threshold`.

    Returns
    -------
    float or ndarray of float64
        Threshold in (0, 1), for `false_alarm_rate` and `samples` broadcast together. NaN where a
        map entry of `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A rate out of range, bands below 1, an unknown option, or too few samples everywhere.

    References
    ----------
    E. J. Kelly, "An adaptive detection algorithm", IEEE Trans. AES 22(2), 1986.
    """
    op = "kelly_threshold"
    rate = as_rate(op, false_alarm_rate)
    shape, degrees = _kelly(op, bands, samples, mean, complex_data)
    from scipy import special

    return special.betainccinv(shape, degrees, rate)[()]


def kelly_pvalue(
    scores: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Probability that background reaches this value of Kelly's likelihood ratio.

    Parameters
    ----------
    scores : array_like
        Ratios in [0, 1] as in `kelly_threshold`; NaN gives NaN.
    bands, samples, mean, complex_data
        As for `kelly_threshold`; `samples` broadcasts with `scores`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1]. NaN where the ratio is NaN or `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A ratio out of range, bands below 1, an unknown option, or too few samples everywhere.
    """
    op = "kelly_pvalue"
    values = as_scores(op, scores, 0.0, 1.0)
    shape, degrees = _kelly(op, bands, samples, mean, complex_data)
    from scipy import special

    return special.betaincc(shape, degrees, values)[()]


def _exceeds(law: Mixture, logit: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return law.exceedance(1.0 / (1.0 + np.exp(-logit)), 1.0 / (1.0 + np.exp(logit)))


def _check_signed(op: str, signed: bool, complex_data: bool) -> None:
    if signed and complex_data:
        raise ValueError(f"{op}: signed: must be False for complex data, got True")


def _one_sided(found: Floats, values: Floats, signed: bool) -> Floats:
    if not signed:
        return found
    return np.where(values >= 0, 0.5 * found, 1.0 - 0.5 * found)


def _options(op: str, background: str, mean: str) -> tuple[bool, bool]:
    check_option(op, "background", background, ("local", "global"))
    check_option(op, "mean", mean, ("estimated", "known"))
    return background == "global", mean == "estimated"


def _plain(second: Floats, shape: float) -> Mixture:
    """Beta(shape, second): a mixture of one term."""
    zero, one = np.zeros_like(second), np.ones_like(second)
    return Mixture(shape, one, one, one, second, zero, one)


def _ace(
    op: str,
    p: int,
    samples: Floats,
    background: str,
    mean: str,
    complex_data: bool,
    estimator: str,
) -> Mixture:
    inside, estimated = _options(op, background, mean)
    check_option(op, "estimator", estimator, ("scm", "tyler"))
    if estimator == "tyler" and inside:
        raise ValueError(f"{op}: background: must be 'local' for 'tyler', got 'global'")
    shape = 1.0 if complex_data else 0.5
    count = as_samples(op, samples, p, p + inside + estimated)
    free = count - estimated
    if estimator == "tyler":
        free = free * (p / (p + 1.0 / shape))
        free = np.where(free > p - 1, free, np.nan)
    if inside:
        # A pixel among its own samples: given the scatter, these are a random orthonormal frame,
        # so the whitened pixel has a uniform direction, as for a known covariance.
        free = np.where(np.isnan(free), np.nan, np.inf)
    degrees = shape * (free - p + 1)
    hidden = np.where(np.isnan(free), np.nan, shape * (p - 1.0))
    v = (hidden, shape * (free - p + 2))
    return Mixture(shape, degrees, *v, hidden, hidden + shape, shape * (free + 2))


def _amf(
    op: str, p: int, samples: Floats, background: str, mean: str, complex_data: bool
) -> tuple[Mixture, Floats, bool]:
    inside, estimated = _options(op, background, mean)
    shape = 1.0 if complex_data else 0.5
    count = as_samples(op, samples, p, p + inside + estimated)
    scale = score_scale(count, inside, estimated)
    free = count - estimated
    if inside:
        return _plain(shape * (free - 1), shape), scale, True
    degrees = shape * (free - p + 1)
    lost = np.where(np.isnan(free), np.nan, shape * (p - 1.0))
    v = (shape * (free - p + 2), lost)
    return Mixture(shape, degrees, *v, degrees, lost, shape * (free + 2)), scale, False


def _kelly(
    op: str, bands: int, samples: npt.ArrayLike, mean: str, complex_data: bool
) -> tuple[float, Floats]:
    p = as_bands(op, bands)
    _, estimated = _options(op, "local", mean)
    count = as_samples(op, samples, p, p + estimated)
    shape = 1.0 if complex_data else 0.5
    return shape, shape * (count - estimated - p + 1)

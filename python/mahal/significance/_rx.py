"""Laws of RX scores."""

from __future__ import annotations

from typing import Any, NamedTuple

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


class _Law(NamedTuple):
    """D = scale q for a bounded law, scale q / (1 - q) otherwise, with q ~ Beta(first, second)."""

    first: Floats
    second: Floats
    scale: Floats
    bounded: bool


def rx_threshold(
    false_alarm_rate: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Score that RX exceeds with a chosen probability on a pure Gaussian background.

    Parameters
    ----------
    false_alarm_rate : array_like
        Probability, more than 0 and less than 1.
    bands : int
        Number of bands p.
    samples : array_like
        Number of background samples N behind each covariance: ``outer**2 - inner**2`` for a window,
        all used pixels for global statistics, or a map of counts (see `window_samples`).
    background : {"local", "global"}
        Whether the pixel is outside ("local") or inside ("global") its own background.
    mean : {"estimated", "known"}
        Whether the mean was estimated with the covariance or given.
    complex_data : bool
        Circular complex samples instead of real ones.

    Returns
    -------
    float or ndarray of float64
        Threshold on the squared Mahalanobis distance, for `false_alarm_rate` and `samples`
        broadcast together. NaN where a map entry of `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A rate out of range, bands below 1, an unknown option, or too few samples everywhere.
    """
    rate = as_rate("rx_threshold", false_alarm_rate)
    law = _law("rx_threshold", bands, samples, background, mean, complex_data)
    from scipy import special

    if law.bounded:
        return (law.scale * special.betainccinv(law.first, law.second, rate))[()]
    # The complement 1 - q keeps its digits where q comes close to 1 (small rates).
    rest = special.betaincinv(law.second, law.first, rate)
    return (law.scale * (1.0 - rest) / rest)[()]


def rx_pvalue(
    scores: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Probability that a pure Gaussian background pixel scores at least this high under RX.

    Parameters
    ----------
    scores : array_like
        Squared Mahalanobis distances, not negative; NaN gives NaN.
    bands, samples, background, mean, complex_data
        As for `rx_threshold`; `samples` broadcasts with `scores`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1]. NaN where the score is NaN or `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A negative score, bands below 1, an unknown option, or too few samples everywhere.
    """
    values = as_scores("rx_pvalue", scores, 0.0)
    law = _law("rx_pvalue", bands, samples, background, mean, complex_data)
    from scipy import special

    if law.bounded:
        # Rounding may carry the largest score an ulp past the end of the law.
        share = np.minimum(values / law.scale, 1.0)
        return special.betaincc(law.first, law.second, share)[()]
    return special.betainc(law.second, law.first, law.scale / (law.scale + values))[()]


def _law(
    op: str, bands: int, samples: npt.ArrayLike, background: str, mean: str, complex_data: bool
) -> _Law:
    p = as_bands(op, bands)
    check_option(op, "background", background, ("local", "global"))
    check_option(op, "mean", mean, ("estimated", "known"))
    inside, estimated = background == "global", mean == "estimated"
    count = as_samples(op, samples, p, p + inside + estimated)
    half = 1.0 if complex_data else 0.5
    scale = score_scale(count, inside, estimated)
    return _Law(np.asarray(half * p), half * (count - p + 1 - inside - estimated), scale, inside)


def score_scale(count: Floats, inside: bool, estimated: bool) -> Floats:
    """Factor between a score with the divisor that `mahal` uses and its law's own variable."""
    if not estimated:
        return count
    return (count - 1) * ((count - 1) if inside else (count + 1)) / count

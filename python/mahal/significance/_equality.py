"""Laws of the tests whether two covariances, or two intensities, are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mahal.significance._checks import (
    Floats,
    Mean,
    as_bands,
    as_rate,
    as_samples,
    as_scores,
    check_option,
)
from mahal.significance._mixture import distinct, solve


def covariance_equality_threshold(
    false_alarm_rate: npt.ArrayLike,
    bands: int,
    first_samples: npt.ArrayLike,
    second_samples: npt.ArrayLike,
    *,
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Value that the corrected likelihood ratio exceeds with a chosen probability on equal maps.

    The statistic is ``-2 rho ln Q`` for complex samples (metric "wishart" of
    `mahal.covariance_distance`) and Box's ``C M`` for real ones (metric "box_m"), of the two sample
    covariances of independent samples. ``v`` stands for the samples of a map, less one where their
    mean was estimated.

    Parameters
    ----------
    false_alarm_rate : array_like
        Probability, more than 0 and less than 1.
    bands : int
        Number of bands p.
    first_samples, second_samples : array_like
        Independent samples behind each covariance: pixels of the window, or looks.
    mean : {"estimated", "known"}
        Whether the means were estimated with the covariances or given (zero).
    complex_data : bool
        Circular complex samples instead of real ones.

    Returns
    -------
    float or ndarray of float64
        Threshold, for all three arrays broadcast together. NaN where a count is too small.

    Raises
    ------
    ValueError
        A rate out of range, bands below 1, an unknown option, or too few samples everywhere.

    Notes
    -----
    Box's expansion ``(1 - w) F_f(z) + w F_{f+4}(z)`` of the law, with ``F_k`` the chi-square law of
    k degrees; the error is of the order ``v^-3``. Complex: ``f = p^2``,
    ``rho = 1 - (2 p^2 - 1) / (6 p) (1/v1 + 1/v2 - 1/(v1 + v2))``. Real: ``f = p (p + 1) / 2``,
    ``C = 1 - (2 p^2 + 3 p - 1) / (6 (p + 1)) (1/v1 + 1/v2 - 1/(v1 + v2))``.
    The law is for two acquisitions; an image and a reconstruction made from it are dependent.

    References
    ----------
    G. E. P. Box, "A general distribution theory for a class of likelihood criteria", Biometrika
    36, 1949. K. Conradsen et al., "A test statistic in the complex Wishart distribution and its
    application to change detection in polarimetric SAR data", IEEE TGRS 41(1), 2003.
    """
    op = "covariance_equality_threshold"
    rate = as_rate(op, false_alarm_rate)
    p = as_bands(op, bands)
    (rates, first, second), spread = distinct(rate, first_samples, second_samples)
    freedom, extra = _expansion(op, p, first, second, mean, complex_data)
    # The chi-square laws beyond 1e4 times their degrees are zero to any rate.
    level = solve(lambda z: _exceeds(z, freedom, extra), rates, 0.0, 1e4 * freedom)
    return spread(np.where(np.isnan(extra), np.nan, level))[()]


def covariance_equality_pvalue(
    statistic: npt.ArrayLike,
    bands: int,
    first_samples: npt.ArrayLike,
    second_samples: npt.ArrayLike,
    *,
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Probability that equal covariances give at least this corrected likelihood ratio.

    Parameters
    ----------
    statistic : array_like
        ``-2 rho ln Q`` (complex) or ``C M`` (real), see `covariance_equality_threshold`; NaN gives
        NaN, and what rounding left below zero counts as zero.
    bands, first_samples, second_samples, mean, complex_data
        As for `covariance_equality_threshold`; the counts broadcast with `statistic`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1]. NaN where the statistic is NaN or a count is too small.

    Raises
    ------
    ValueError
        Bands below 1, an unknown option, or too few samples everywhere.
    """
    op = "covariance_equality_pvalue"
    p = as_bands(op, bands)
    first, second = (np.asarray(n, dtype=np.float64) for n in (first_samples, second_samples))
    freedom, extra = _expansion(op, p, first, second, mean, complex_data)
    # Equal matrices give zero up to the rounding of two logarithms of determinants.
    value = np.maximum(np.asarray(statistic, dtype=np.float64), 0.0)
    return _exceeds(value, freedom, extra)[()]


def intensity_ratio_threshold(
    false_alarm_rate: npt.ArrayLike,
    first_samples: npt.ArrayLike,
    second_samples: npt.ArrayLike,
    *,
    mean: Mean = "known",
    complex_data: bool = True,
) -> Any:
    """Ratio of two intensities that equal ones exceed with a chosen probability.

    Parameters
    ----------
    false_alarm_rate : array_like
        Probability, more than 0 and less than 1.
    first_samples, second_samples : array_like
        Independent samples, or looks, behind the mean intensity above and below the fraction bar.
    mean : {"known", "estimated"}
        Mean squares about a known mean (zero), or unbiased variances.
    complex_data : bool
        Intensities of circular complex samples: the ratio is F(2n, 2m); of real ones: F(n, m).

    Returns
    -------
    float or ndarray of float64
        Threshold on first / second, for all three arrays broadcast together.

    Raises
    ------
    ValueError
        A rate out of range, an unknown option, or too few samples everywhere.
    """
    op = "intensity_ratio_threshold"
    rate = as_rate(op, false_alarm_rate)
    first, second = _degrees(op, first_samples, second_samples, mean, complex_data)
    from scipy import special

    rest = special.betaincinv(second, first, rate)
    return (second / first * (1.0 - rest) / rest)[()]


def intensity_ratio_pvalue(
    ratio: npt.ArrayLike,
    first_samples: npt.ArrayLike,
    second_samples: npt.ArrayLike,
    *,
    mean: Mean = "known",
    complex_data: bool = True,
) -> Any:
    """Probability that equal intensities give at least this ratio.

    Parameters
    ----------
    ratio : array_like
        First over second intensity, not negative; NaN gives NaN. For changes both ways take twice
        the smaller of the p-values of the ratio and of its inverse with the counts exchanged.
    first_samples, second_samples, mean, complex_data
        As for `intensity_ratio_threshold`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1].

    Raises
    ------
    ValueError
        A negative ratio, an unknown option, or too few samples everywhere.
    """
    op = "intensity_ratio_pvalue"
    values = as_scores(op, ratio, 0.0)
    first, second = _degrees(op, first_samples, second_samples, mean, complex_data)
    from scipy import special

    return special.betainc(second, first, 1.0 / (1.0 + values * first / second))[()]


def _degrees(
    op: str, first: npt.ArrayLike, second: npt.ArrayLike, mean: str, complex_data: bool
) -> tuple[Floats, Floats]:
    """Shape parameters of the two gamma laws."""
    check_option(op, "mean", mean, ("estimated", "known"))
    estimated = mean == "estimated"
    half = 1.0 if complex_data else 0.5
    n = as_samples(op, first, 1, 1 + estimated, "first_samples")
    m = as_samples(op, second, 1, 1 + estimated, "second_samples")
    return half * (n - estimated), half * (m - estimated)


def _expansion(
    op: str, p: int, first: Floats, second: Floats, mean: str, complex_data: bool
) -> tuple[int, Floats]:
    """Degrees of the leading chi-square law, and the weight of the correction."""
    check_option(op, "mean", mean, ("estimated", "known"))
    estimated = mean == "estimated"
    n = as_samples(op, first, p, p + estimated, "first_samples") - estimated
    m = as_samples(op, second, p, p + estimated, "second_samples") - estimated
    one, two = 1 / n + 1 / m - 1 / (n + m), 1 / n**2 + 1 / m**2 - 1 / (n + m) ** 2
    if complex_data:
        freedom = p * p
        rho = 1 - (2 * p * p - 1) / (6 * p) * one
        extra = p * p * (p * p - 1) / 24 * two / rho**2 - p * p / 4 * (1 - 1 / rho) ** 2
    else:
        freedom = p * (p + 1) // 2
        rho = 1 - (2 * p * p + 3 * p - 1) / (6 * (p + 1)) * one
        extra = (p - 1) * (p + 2) * two - 6 * (1 - rho) ** 2
        extra = p * (p + 1) / 48 * extra / rho**2
    # Fewer samples than the correction can bear: no law.
    return freedom, np.where(rho > 0, extra, np.nan)


def _exceeds(level: Floats, freedom: int, extra: Floats) -> Floats:
    from scipy import special

    leading = special.gammaincc(0.5 * freedom, 0.5 * level)
    higher = special.gammaincc(0.5 * freedom + 2.0, 0.5 * level)
    return np.asarray(np.clip(leading + extra * (higher - leading), 0.0, 1.0))

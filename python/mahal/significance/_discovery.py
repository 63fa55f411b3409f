"""Detection by the share of false ones among the detections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mahal.significance._checks import as_rate, first


class FalseDiscovery(NamedTuple):
    """Result of `false_discovery`.

    Attributes
    ----------
    detected : ndarray of bool
        p-value <= threshold.
    threshold : float
        Largest p-value that is detected; 0 when there is none.
    """

    detected: npt.NDArray[np.bool_]
    threshold: float


def false_discovery(
    pvalues: npt.ArrayLike, rate: float, *, dependent: bool = False
) -> FalseDiscovery:
    """Detect so that the expected share of false ones among the detections stays below a rate.

    Parameters
    ----------
    pvalues : array_like, any shape
        p-values in [0, 1]. NaN is left out: neither counted nor detected.
    rate : float
        Expected share of false detections, more than 0 and less than 1.
    dependent : bool
        False: Benjamini and Hochberg, for p-values that are independent or positively dependent, as
        those of overlapping windows are taken to be. True: Benjamini and Yekutieli, for any
        dependence; stricter by about the logarithm of the number of p-values.

    Returns
    -------
    FalseDiscovery
        ``(detected, threshold)``: booleans of the shape of `pvalues`, and the p-value up to which
        pixels are detected.

    Raises
    ------
    ValueError
        A p-value or a rate out of range.

    References
    ----------
    Y. Benjamini and Y. Hochberg, "Controlling the false discovery rate", J. R. Statist. Soc. B 57,
    1995. Y. Benjamini and D. Yekutieli, Ann. Statist. 29(4), 2001.
    """
    op = "false_discovery"
    level = float(as_rate(op, rate, "rate"))
    values = np.asarray(pvalues, dtype=np.float64)
    bad = (values < 0) | (values > 1)
    if np.any(bad):
        raise ValueError(f"{op}: pvalues: must lie in [0, 1], got {first(values, bad)}")
    ordered = np.sort(values[~np.isnan(values)])
    rank = np.arange(1, ordered.size + 1)
    if dependent:
        level /= float(np.sum(1.0 / rank)) if ordered.size else 1.0
    passed = np.flatnonzero(ordered <= rank * (level / max(ordered.size, 1)))
    if passed.size == 0:
        return FalseDiscovery(np.zeros(values.shape, dtype=np.bool_), 0.0)
    threshold = float(ordered[passed[-1]])
    return FalseDiscovery(np.asarray(values <= threshold), threshold)

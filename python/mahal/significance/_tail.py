"""Scores without a law: the tail of a scene's own scores, continued."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mahal.significance._checks import Floats, as_rate, as_scores

# The tail is fitted between these shares of the scores: beyond the body of the background, before
# the anomalies.
BEGIN, END = 0.10, 0.03
POINTS = 98


@dataclass(frozen=True)
class ScoreTail:
    """Survival function of scores: the share of a scene's scores, then a Pareto tail.

    Attributes
    ----------
    quantiles : ndarray (98,)
        Scores that the shares 1, 0.99, ... 0.03 of the scene reach.
    index : float
        Pareto index a: beyond the last quantile q the share above a score t is
        ``0.03 (q / t)^a``; infinite where the scores have no tail.
    cosine : bool
        The scores t are cosines c, as ``t = sqrt((1 + c) / (1 - c))``, the cotangent of half the
        angle, which is positive and unbounded.
    """

    quantiles: Floats
    index: float
    cosine: bool = False

    def threshold(self, false_alarm_rate: npt.ArrayLike) -> npt.NDArray[np.float64] | np.float64:
        """Score that a share of background pixels reaches.

        Parameters
        ----------
        false_alarm_rate : array_like
            More than 0 and less than 1.

        Returns
        -------
        float64 or ndarray
            Of the shape of the rate.
        """
        rate = as_rate("ScoreTail.threshold", false_alarm_rate)
        inside = np.interp(1 - rate, np.linspace(0, 1 - END, POINTS), self.quantiles)
        beyond = self.quantiles[-1] * (END / np.minimum(rate, END)) ** (1 / self.index)
        found = np.where(rate < END, beyond, inside)[()]
        return (found**2 - 1) / (found**2 + 1) if self.cosine else found

    def pvalue(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64] | np.float64:
        """Share of background pixels that reach each score.

        Parameters
        ----------
        scores : array_like
            Not negative, or cosines; NaN stays NaN.

        Returns
        -------
        float64 or ndarray
            Of the shape of the scores, at least the smallest normal number.
        """
        values = _positive("ScoreTail.pvalue", scores, self.cosine)
        inside = 1 - np.interp(values, self.quantiles, np.linspace(0, 1 - END, POINTS))
        last = max(self.quantiles[-1], np.finfo(np.float64).tiny)
        with np.errstate(over="ignore", under="ignore"):
            beyond = END * (np.maximum(values, last) / last) ** -self.index
        beyond = np.maximum(beyond, np.finfo(np.float64).tiny)
        return np.where(values > self.quantiles[-1], beyond, inside)[()]


def score_tail(scores: npt.ArrayLike, *, cosine: bool = False) -> ScoreTail:
    """Fit the tail of the scores of a scene, for thresholds and p-values where no law is known.

    Scores of real backgrounds fall off like a power. The index of the power is the maximum
    likelihood estimate from the scores that 10 % to 3 % of the pixels reach; the highest 3 %, where
    the anomalies are, only count as being above.

    Parameters
    ----------
    scores : array_like
        Scores of a scene, not negative; NaN is left out.
    cosine : bool
        The scores are cosines, in [-1, 1], such as those of signed ACE.

    Returns
    -------
    ScoreTail

    Raises
    ------
    ValueError
        Fewer than 100 scores.

    References
    ----------
    B. M. Hill, Ann. Statist. 3(5) (1975), with the highest scores censored.
    """
    op = "score_tail"
    values = _positive(op, scores, cosine)
    values = np.sort(values[np.isfinite(values)])
    if values.size < 100:
        raise ValueError(f"{op}: scores: needs at least 100 that are finite, got {values.size}")
    begin, end = np.quantile(values, [1 - BEGIN, 1 - END])
    index = np.inf
    if 0 < begin < end:
        tail = values[values > begin]
        excess = np.log(np.minimum(tail, end) / begin).sum()
        index = float((tail <= end).sum() / excess)
    return ScoreTail(np.quantile(values, np.linspace(0, 1 - END, POINTS)), index, cosine)


def _positive(op: str, scores: npt.ArrayLike, cosine: bool) -> Floats:
    """Scores as the Pareto law takes them."""
    if not cosine:
        return as_scores(op, scores, 0.0)
    values = as_scores(op, scores, -1.0, 1.0)
    # A cosine in float32 is not known better than this.
    return np.asarray(np.sqrt((1 + values) / np.maximum(1 - values, np.finfo(np.float32).eps)))

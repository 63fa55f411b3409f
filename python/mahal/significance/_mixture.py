"""The law that the matched detectors share, evaluated to full precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mahal.significance._checks import Floats

MAX_TERMS = 400
SCAN, NODES = 128, 320
TINY = 1e-60  # smaller probabilities are not told apart
EPS = float(np.finfo(np.float64).eps)


class Mixture(NamedTuple):
    """Law of a variable x in (0, 1) whose second parameter is itself random.

    Given v ~ Beta(v_first, v_second), x exceeds a level with the probability that a variable
    Beta(shape, degrees) exceeds ``x v / (1 - x + x v)``. Expanding the density in powers of x gives
    a mixture of laws Beta(shape + j, second), j = 0, 1, ..., with positive weights that do not
    depend on x: ``w_{j+1} / w_j = (a + j) (shape + j) / ((c + j) (1 + j))``.
    """

    shape: float
    degrees: Floats
    v_first: Floats
    v_second: Floats
    second: Floats
    a: Floats
    c: Floats

    def exceedance(self, x: Floats, rest: Floats) -> Floats:
        """P(variable > x) elementwise; `rest` is 1 - x with the digits that x lost near 1."""
        parts = np.broadcast_arrays(x, rest, *(np.asarray(part) for part in self))
        flat = [np.ravel(part).astype(np.float64) for part in parts]
        found = np.full(flat[0].size, np.nan)
        usable = ~np.isnan(sum(flat))
        for start in range(0, found.size, 1 << 16):
            index = start + np.flatnonzero(usable[start : start + (1 << 16)])
            if index.size:
                here = [part[index] for part in flat]
                found[index] = _series(here[0], here[1], Mixture(self.shape, *here[3:]))
        for index in np.array_split(
            np.flatnonzero(usable & np.isnan(found)), max(1, found.size >> 8)
        ):
            if index.size:
                here = [part[index] for part in flat]
                found[index] = _integral(here[0], here[1], Mixture(self.shape, *here[3:]))
        return found.reshape(parts[0].shape)


def _series(x: Floats, rest: Floats, law: Mixture) -> Floats:
    """Sum of the mixture; NaN where it needs more than MAX_TERMS terms."""
    from scipy import special

    first = law.shape
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        # Survival function of Beta(first + j, second), and what it gains from j to j + 1, from the
        # one of x and 1 - x that is small: the other has lost digits.
        far = rest < 0.5
        survival = special.betaincc(first, law.second, np.where(far, 0.5, x))
        survival[far] = special.betainc(law.second[far], first, rest[far])
        power = np.where(far, special.xlogy(law.second, rest), special.xlog1py(law.second, -x))
        gain = np.exp(first * np.log(x) + power)
        gain *= special.poch(law.second, first) / special.gamma(first + 1.0)
        found = np.full(x.size, np.nan)
        index = np.arange(x.size)
        weight, total, value = np.ones(x.size), np.ones(x.size), survival.copy()
        a, c, second = law.a, law.c, law.second
        surplus = c - a - first
        log_last = (
            special.gammaln(a + MAX_TERMS) - special.gammaln(a) - special.gammaln(c + MAX_TERMS)
        )
        log_last += special.gammaln(c) + (first - 1.0) * math.log(MAX_TERMS)
        for j in range(MAX_TERMS):
            following = weight * (a + j) * (first + j) / ((c + j) * (j + 1.0))
            # Sum of all weights from j + 1 on, from above (Raabe's test made a bound).
            slope = (j + 1.0) * surplus - a * first
            left = following * (j + 1.0) * (c + j + 1.0) / slope
            enough = left <= np.maximum(0.125 * EPS * value, TINY)
            done = ((slope > 0) & enough) | (following == 0) | (rest == 0)
            # The size of the last term tells soon which sums will not end in time.
            hopeless = (log_last > np.log(np.maximum(EPS * value, TINY))) & (j == 8) & ~done
            if done.any() or hopeless.any():
                found[index[done]] = value[done] / total[done]
                keep = ~(done | hopeless)
                if not keep.any():
                    break
                index, following = index[keep], following[keep]
                survival, gain, x, rest, total, value = (
                    part[keep] for part in (survival, gain, x, rest, total, value)
                )
                a, c, second, surplus, log_last = (
                    part[keep] for part in (a, c, second, surplus, log_last)
                )
            survival = survival + gain
            gain = gain * x * (first + j + second) / (first + j + 1.0)
            weight = following
            value = value + weight * survival
            total = total + weight
    return found


def _integral(x: Floats, rest: Floats, law: Mixture) -> Floats:
    """Mean over v by the trapezoidal rule in its logit, which converges geometrically.

    The integrand is analytic within pi of the real axis and falls off exponentially on both sides.
    """
    from scipy import special

    def log_integrand(logit: Floats) -> Floats:
        v = special.expit(logit)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # 1 / (1 + (x / rest) v): exact to the last digits at both ends.
            share = rest[:, None] / (rest[:, None] + x[:, None] * v)
            # For complex data the incomplete beta function is a power.
            power = law.degrees[:, None]
            tail = share**power if law.shape == 1.0 else special.betainc(power, law.shape, share)
            return np.asarray(
                np.log(tail)
                - law.v_first[:, None] * np.logaddexp(0.0, -logit)
                - law.v_second[:, None] * np.logaddexp(0.0, logit)
                - special.betaln(law.v_first, law.v_second)[:, None]
            )

    peak = np.log(law.v_first / law.v_second)
    # The survival function moves the peak of the density by less than log(x / rest) to the left.
    reach = np.clip(np.log(x) - np.log(rest), 0.0, 750.0) + 45.0
    low, high = peak - reach - 45.0 / law.v_first, peak + 45.0 + 45.0 / law.v_second
    grid = np.linspace(low, high, SCAN, axis=1)
    for count in (SCAN, NODES):
        height = log_integrand(grid)
        seen = height > height.max(axis=1, keepdims=True) - 42.0
        begin = np.maximum(seen.argmax(axis=1) - 1, 0)
        end = np.minimum(SCAN - seen[:, ::-1].argmax(axis=1), SCAN - 1)
        rows = np.arange(x.size)
        grid = np.linspace(grid[rows, begin], grid[rows, end], count, axis=1)
    height = log_integrand(grid)
    step = (grid[:, -1] - grid[:, 0]) / (NODES - 1)
    return np.asarray(np.minimum(np.exp(height).sum(axis=1) * step, 1.0))


def solve(
    exceedance: Callable[[Floats], Floats], rate: Floats, low: npt.ArrayLike, high: npt.ArrayLike
) -> Floats:
    """Level at which a decreasing exceedance equals each rate: Illinois steps on its logarithm."""

    def excess(level: Floats) -> Floats:
        return np.asarray(np.log(np.maximum(exceedance(level), 1e-305) / rate))

    below = np.broadcast_to(np.asarray(low, dtype=np.float64), rate.shape).copy()
    above = np.broadcast_to(np.asarray(high, dtype=np.float64), rate.shape).copy()
    over, under = excess(below), excess(above)
    side = np.zeros(rate.shape)
    level = below
    for _ in range(100):
        fall = over - under
        level = below + (above - below) * (over / np.where(fall > 0, fall, 1.0))
        found = excess(level)
        if not np.any((np.abs(found) > 16 * EPS) & (level > below) & (level < above)):
            break
        raised = found > 0
        # An end that stays twice counts half, so that both ends close in.
        under = np.where(raised, np.where(side > 0, 0.5 * under, under), found)
        over = np.where(raised, found, np.where(side < 0, 0.5 * over, over))
        below, above = np.where(raised, level, below), np.where(raised, above, level)
        side = np.where(raised, 1.0, -1.0)
    return np.asarray(level)


def distinct(*values: npt.ArrayLike) -> tuple[list[Floats], Callable[[Floats], Floats]]:
    """Distinct combinations of broadcast values, and what spreads a result over the whole again."""
    wide = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
    table = np.stack([part.ravel() for part in wide])
    unique, where = np.unique(table, axis=1, return_inverse=True)

    def spread(found: Floats) -> Floats:
        return np.asarray(found[where.ravel()].reshape(wide[0].shape))

    return list(unique), spread

"""Spectra of Matern fields on a torus, in float64 numpy.

A correlation that is even along both axes is given by the quarter of its first
``rows // 2 + 1`` by ``cols // 2 + 1`` elements, and so is its spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mahal._arrays import check_choice, check_flag

Float64 = NDArray[np.float64]

TOLERANCE = 1e-12
"""Relative error that leaving out far images may cause in the smallest eigenvalue."""

DEFINITE = 1e-14
"""Smallest eigenvalue over largest, below which float64 tells nothing of its sign."""

MOST_POINTS = 1 << 26
"""Distances in the image sum of one spectrum; some seconds of work."""

_CHUNK = 1 << 17


@dataclass(frozen=True)
class Matern:
    """A stationary correlation on a torus, up to its range: what the public options say."""

    smoothness: float
    kernel: str
    convention: str
    normalize: bool

    @property
    def label(self) -> str:
        """The correlation in an error message."""
        return f"kernel={self.kernel!r}, smoothness={self.smoothness:g}"

    def scale(self, length: float) -> float:
        """Reciprocal of the range as it stands in the exponential."""
        factor = math.sqrt(2 * self.smoothness) if self.convention == "standard" else 1.0
        return factor / length


def matern_of(op: str, smoothness: Any, kernel: Any, convention: Any, normalize: Any) -> Matern:
    """The options of every function of the field, checked."""
    check_choice(op, "kernel", kernel, ("periodised", "wrapped"))
    check_choice(op, "convention", convention, ("standard", "paper"))
    check_flag(op, "normalize", normalize)
    value = check_scalar(op, "smoothness", smoothness)
    if not 0 < value <= 20:
        raise ValueError(f"{op}: smoothness: must be positive and at most 20, got {smoothness!r}")
    return Matern(value, kernel, convention, normalize)


def check_scalar(op: str, argument: str, value: Any) -> float:
    """A Python float; TypeError for anything that is no real number."""
    if not isinstance(value, bool) and hasattr(value, "__float__"):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    came = f"shape {value.shape}" if getattr(value, "shape", ()) else repr(value)
    raise TypeError(f"{op}: {argument}: must be one real number, got {came}")


def check_positive(op: str, argument: str, value: Any) -> float:
    """The same, positive and finite."""
    number = check_scalar(op, argument, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{op}: {argument}: must be positive and finite, got {number!r}")
    return number


def _half_integer_profile(a: Float64, half: int, orders: int) -> list[Float64]:
    """The closed forms ``polynomial(a) exp(-a)`` of smoothness half + 1/2."""
    coefficients = np.zeros(half + 1)
    for i in range(half + 1):
        coefficients[half - i] = (
            math.factorial(half + i)
            * 2.0 ** (half - i)
            / (math.factorial(i) * math.factorial(half - i))
        )
    coefficients *= math.factorial(half) / math.factorial(2 * half)
    decay = np.exp(-a)
    found = []
    for _ in range(orders):
        value = np.full_like(a, coefficients[-1])
        for c in coefficients[-2::-1]:
            value *= a
            value += c
        value *= decay
        found.append(value)
        # d/d log r = -a d/da, of p(a) exp(-a): (a p - a p') exp(-a).
        slope = np.zeros(len(coefficients) + 1)
        slope[1:] = coefficients
        slope[1 : len(coefficients)] -= coefficients[1:] * np.arange(1, len(coefficients))
        coefficients = slope
    return found


def _bessel_integrals(a: Float64, degrees: Sequence[float]) -> list[Float64]:
    """``K_q(a)`` for every degree, a > 0: the integral of ``exp(-a cosh t) cosh(q t)``.

    The trapezoidal rule converges like ``exp(-pi^2 / step)`` there.
    """
    step = 0.125
    totals = [np.zeros_like(a) for _ in degrees]
    highest = max(abs(q) for q in degrees)
    smallest = float(a.min(initial=math.inf))
    t = 0.0
    while smallest * math.cosh(t) - highest * t < 745.0:
        decay = np.exp(-math.cosh(t) * a)
        weight = step / 2 if t == 0 else step
        for total, q in zip(totals, degrees, strict=True):
            total += weight * math.cosh(q * t) * decay
        t += step
    return totals


def _general_profile(a: Float64, smoothness: float, orders: int) -> list[Float64]:
    """Any smoothness. With ``F_j = C a^(nu + j) K_(nu - j)(a)``, the derivative of F_j with
    respect to log r is ``F_(j + 1) - 2 j F_j``."""
    scale = 2.0 ** (1 - smoothness) / math.gamma(smoothness)
    apart = a > 0
    positive = a[apart]
    basis = _bessel_integrals(positive, [smoothness - j for j in range(orders)])
    for j, values in enumerate(basis):
        values *= scale * positive ** (smoothness + j)
    coefficients = [1.0]
    found = []
    for order in range(orders):
        value = np.zeros_like(a)
        # All but F_0, which is 1, vanish where the distance does.
        value[~apart] = 1.0 if order == 0 else 0.0
        value[apart] = sum(c * basis[j] for j, c in enumerate(coefficients))
        found.append(value)
        slope = [0.0] * (len(coefficients) + 1)
        for j, c in enumerate(coefficients):
            slope[j] -= 2 * j * c
            slope[j + 1] += c
        coefficients = slope
    return found


def profile(a: Float64, smoothness: float, orders: int) -> list[Float64]:
    """Matern correlation at scaled distances, and its derivatives with respect to log r.

    Parameters
    ----------
    a : array
        Distances over the range, with the factor of the convention.
    smoothness : float
    orders : int
        How many to return: the correlation first, then its derivatives.

    Returns
    -------
    list of arrays like a
    """
    half = smoothness - 0.5
    if half == int(half):
        return _half_integer_profile(a, int(half), orders)
    return _general_profile(a, smoothness, orders)


def _offsets(side: int, reach: float) -> tuple[Float64, NDArray[np.intp]]:
    """Distances along one axis from its first half to all images of 0 within reach, and where
    those of each element start. One element is no axis: it has no images."""
    half = side // 2 + 1
    if side == 1:
        return np.zeros(1), np.zeros(1, np.intp)
    images = math.ceil(reach / side + 0.5)
    wraps = side * np.arange(-images, images + 1, dtype=np.float64)
    grid = np.abs(np.arange(half, dtype=np.float64)[:, None] + wraps)
    kept = grid <= max(reach, side / 2)
    counts = kept.sum(axis=1)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.intp)
    return grid[kept], starts


def _reach(matern: Matern, length: float) -> float:
    """Distance from which on images of the correlation do not matter."""
    scale = matern.scale(length)
    condition = (1 + 2 * (math.pi / scale) ** 2) ** (matern.smoothness + 1)
    decades = math.log(100 * condition / TOLERANCE)
    # The correlation falls like a^nu exp(-a); two more powers count the images of a ring.
    return (decades + (matern.smoothness + 2) * math.log(decades)) / scale


def correlation(
    op: str, shape: tuple[int, int], length: float, matern: Matern, orders: int
) -> list[Float64]:
    """Quarter of the correlation on the torus and of its derivatives with respect to log r.

    The periodised kernel sums the correlation over the images of the origin; the wrapped one
    takes the nearest image alone.
    """
    scale = matern.scale(length)
    halves = tuple(side // 2 + 1 for side in shape)
    if matern.kernel == "wrapped":
        near, across = (np.arange(half, dtype=np.float64) for half in halves)
        starts = tuple(np.arange(half) for half in halves)
    else:
        reach = _reach(matern, length)
        points = [(2 * reach / side + 2) * half for side, half in zip(shape, halves, strict=True)]
        if points[0] * points[1] > MOST_POINTS:
            raise ValueError(
                f"{op}: range: must be small enough to sum over images on a {shape[0]} x "
                f"{shape[1]} torus, got {length:g}, which needs {points[0] * points[1]:.1g} terms"
            )
        (near, first), (across, second) = (_offsets(side, reach) for side in shape)
        starts = (first, second)
    near, across = near * scale, across * scale
    columns = np.square(across)
    single = len(columns) == halves[1]
    rows = max(1, _CHUNK // len(columns))
    partial = [np.empty((len(near), halves[1])) for _ in range(orders)]
    for begin in range(0, len(near), rows):
        part = slice(begin, begin + rows)
        a = np.sqrt(np.square(near[part])[:, None] + columns)
        for kept, values in zip(partial, profile(a, matern.smoothness, orders), strict=True):
            kept[part] = values if single else np.add.reduceat(values, starts[1], axis=1)
    if len(near) == halves[0]:
        found = partial
    else:
        found = [np.add.reduceat(values, starts[0], axis=0) for values in partial]
    return _normalized(found) if matern.normalize else found


def _normalized(values: list[Float64]) -> list[Float64]:
    """The same over the first at the origin, with the derivatives of the quotient."""
    origin = [float(v[0, 0]) for v in values]
    found: list[Float64] = []
    for k, value in enumerate(values):
        rest = sum(math.comb(k, j) * origin[j] * found[k - j] for j in range(1, k + 1))
        found.append((value - rest) / origin[0])
    return found


def _even_transform(quarter: Float64, side: int) -> Float64:
    """Fourier transform along the last axis of what is even there; real, and even again."""
    whole = np.concatenate([quarter, quarter[:, 1 : (side + 1) // 2][:, ::-1]], axis=1)
    return np.ascontiguousarray(np.fft.rfft(whole, axis=1).real)


def _spectra(values: list[Float64], shape: tuple[int, int]) -> list[Float64]:
    found = []
    for value in values:
        along = _even_transform(value, shape[1])
        found.append(np.ascontiguousarray(_even_transform(along.T, shape[0]).T))
    return found


def spectra(
    op: str, shape: tuple[int, int], length: float, matern: Matern, orders: int = 1
) -> list[Float64]:
    """Quarter of the eigenvalues of the correlation, and of their derivatives to log r.

    Raises
    ------
    ValueError
        When the smallest eigenvalue is not positive.
    """
    found = _spectra(correlation(op, shape, length, matern, orders), shape)
    smallest = float(found[0].min())
    if smallest <= DEFINITE * float(found[0].max()):
        largest = _largest_length(op, shape, length, matern)
        raise ValueError(
            f"{op}: range: must leave the covariance positive definite ({matern.label} on a "
            f"{shape[0]} x {shape[1]} torus allows up to {largest:.4g}), got {length:g} with "
            f"smallest eigenvalue {smallest:.3g}"
        )
    return found


def _largest_length(op: str, shape: tuple[int, int], bad: float, matern: Matern) -> float:
    """Largest range with positive eigenvalues, by bisection, rounded down to four digits."""
    good = bad
    for _ in range(60):
        good /= 2
        if _definite(op, shape, good, matern):
            break
    while bad / good > 1 + 1e-5:
        middle = math.sqrt(good * bad)
        if _definite(op, shape, middle, matern):
            good = middle
        else:
            bad = middle
    unit = 10.0 ** (math.floor(math.log10(good)) - 3)
    return math.floor(good / unit) * unit


def _definite(op: str, shape: tuple[int, int], length: float, matern: Matern) -> bool:
    spectrum = _spectra(correlation(op, shape, length, matern, 1), shape)[0]
    return bool(spectrum.min() > DEFINITE * spectrum.max())


def half_spectrum(quarter: Float64, shape: tuple[int, int]) -> Float64:
    """A quarter in the layout of `numpy.fft.rfft2`: all rows, the first half of the columns."""
    rows = np.arange(shape[0])
    whole: Float64 = quarter[np.minimum(rows, shape[0] - rows)]
    return whole


def weights(shape: tuple[int, int]) -> Float64:
    """How often each element of a quarter stands in the whole spectrum."""
    counts = []
    for side in shape:
        count = np.full(side // 2 + 1, 2.0)
        count[0] = 1.0
        if side % 2 == 0:
            count[-1] = 1.0
        counts.append(count)
    return np.outer(counts[0], counts[1])

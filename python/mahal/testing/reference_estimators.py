"""Slow float64 references of the covariance estimators, as `mahal.testing.reference` has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mahal.testing import reference
from mahal.testing.reference import (
    MASKED,
    NON_FINITE,
    OK,
    SINGULAR,
    TOO_FEW_SAMPLES,
    Float64,
    Numbers,
    Window,
)

__all__ = ["NOT_CONVERGED", "Estimate", "estimate", "local_covariance", "mean_covariance", "rx"]

NOT_CONVERGED = 5

SINGULAR_WINDOW_PIVOT = 1e-12
"""Smallest pivot of a window in the units of the image, relative to its diagonal entry."""


class Estimate(NamedTuple):
    """Mean, covariance (NaN where there is none), status and number of iterations."""

    mean: Numbers
    covariance: Numbers
    status: int
    steps: int = 0


def _distances(samples: Numbers, covariance: Numbers) -> Float64 | None:
    lower, status = reference._factor(covariance, SINGULAR_WINDOW_PIVOT)
    return None if status else reference._power(reference._forward(lower, samples))


def _products(samples: Numbers, weights: Float64) -> Numbers:
    return np.asarray((samples * weights[:, None]).T @ samples.conj())


def _fixed_point(
    start: Numbers,
    step: Callable[[Float64], Numbers],
    samples: Numbers,
    tolerance: float,
    max_iterations: int,
) -> tuple[Numbers, int, int]:
    current = start
    for k in range(1, max_iterations):
        distances = _distances(samples, current)
        if distances is None:
            return np.full_like(start, np.nan), SINGULAR, k
        following = step(distances)
        change = np.linalg.norm(following - current)
        size = np.linalg.norm(current)
        current = following
        if change <= tolerance * size:
            return current, OK, k + 1
    return current, NOT_CONVERGED, max_iterations


def estimate(
    samples: ArrayLike,
    estimator: str = "scm",
    *,
    center: bool = True,
    ddof: float = 1,
    loading: float = 1e-3,
    nu: float = 5.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
) -> Estimate:
    """Mean and covariance of (n, bands) samples by one of the estimators.

    Parameters
    ----------
    samples : (n, bands) array
        Real or complex, finite.
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
    center : bool
        False: the mean is zero by assumption.
    ddof : float
        Of "scm" and "loading": the divisor is n less this, or n without ``center``.
    loading, nu, tolerance, max_iterations : float, float, float, int
        As the ops have them.

    Returns
    -------
    Estimate

    References
    ----------
    O. Ledoit and M. Wolf, "A well-conditioned estimator for large-dimensional covariance
    matrices", J. Multivariate Analysis 88, 2004. Y. Chen et al., "Shrinkage algorithms for MMSE
    covariance estimation", IEEE Trans. Signal Processing 58(10), 2010. D. E. Tyler, "A
    distribution-free M-estimator of multivariate scatter", Annals of Statistics 15(1), 1987.
    J. T. Kent, D. E. Tyler and Y. Vardi, "A curious likelihood identity for the multivariate
    t-distribution", Communications in Statistics B 23(2), 1994: the steps of "student_t".
    """
    data = reference._double(np.asarray(samples))
    count, bands = data.shape
    parts = 2 if data.dtype.kind == "c" else 1
    missing = np.full((bands, bands), np.nan, data.dtype)
    unknown = np.full(bands, np.nan, data.dtype)
    if count == 0:
        return Estimate(unknown, missing, TOO_FEW_SAMPLES)
    mean, biased = reference._moments(data, 0, center)
    rank = count - int(center)
    fixed_point = estimator in ("tyler", "student_t")
    degrees = count - ddof if center else count
    if rank <= (bands if fixed_point else 0) or (estimator in ("scm", "loading") and degrees <= 0):
        return Estimate(mean, missing, TOO_FEW_SAMPLES)
    centred = data - data[0] - (data - data[0]).mean(axis=0) if center else data
    identity = np.eye(bands)
    if not fixed_point:
        trace = float(np.trace(biased).real)
        if trace == 0:
            return Estimate(mean, np.zeros_like(missing), SINGULAR)
        square = float((np.abs(biased) ** 2).sum())
        target = trace / bands * identity
        distance = float((np.abs(biased - target) ** 2).sum())
        if estimator in ("scm", "loading"):
            share = loading if estimator == "loading" else 0.0
            return Estimate(mean, (biased + share * target) * (count / degrees), OK)
        if estimator == "ledoit_wolf":
            fourth = float((reference._power(centred) ** 2).mean())
            spread = max(0.0, fourth - square) / count
        elif parts == 1:
            spread = (square + trace**2) / (count + 1)
        else:
            spread = (trace**2 - square / bands) / (count - 1 / bands)
        rho = min(1.0, spread / distance) if distance > 0 else 1.0
        return Estimate(mean, (1 - rho) * biased + rho * target, OK)
    if estimator == "student_t":

        def weighted(distances: Float64) -> Numbers:
            weights = (parts * bands + nu) / (nu + parts * distances)
            # The mean weight is 1 at the fixed point; dividing by it takes far fewer steps.
            return np.asarray(_products(centred, weights) / weights.sum())

        found, status, steps = _fixed_point(biased, weighted, centred, tolerance, max_iterations)
        return Estimate(mean, found, status, steps)
    lengths = np.sqrt(reference._power(centred))
    rays = centred[lengths > 0] / lengths[lengths > 0, None]
    if len(rays) - int(center) <= bands:
        return Estimate(mean, missing, SINGULAR)

    def directions(distances: Float64) -> Numbers:
        products = _products(rays, 1 / distances)
        return np.asarray(products * bands / np.trace(products).real)

    start = directions(np.ones(len(rays)))
    found, status, steps = _fixed_point(start, directions, rays, tolerance, max_iterations)
    return Estimate(mean, found, status, steps)


def mean_covariance(
    x: ArrayLike, *, mask: ArrayLike | None = None, **options: Any
) -> tuple[Numbers, Numbers]:
    """Mean and covariance of all usable samples of an image; ``options`` as for `estimate`."""
    data = np.asarray(x)
    samples = data.reshape(-1, data.shape[-1])
    usable = reference._finite(samples)
    if mask is not None:
        usable &= np.asarray(mask, dtype=bool).reshape(-1)
    found = estimate(samples[usable], **options)
    return found.mean, found.covariance


def local_covariance(
    image: ArrayLike,
    window: Window,
    *,
    border: str = "shift",
    mask: ArrayLike | None = None,
    **options: Any,
) -> tuple[Numbers, Numbers, NDArray[np.uint8]]:
    """Mean, covariance and status of the window of every pixel; ``options`` as for `estimate`."""
    data = reference._double(image)
    rows, cols, bands = data.shape
    flat = data.reshape(-1, bands)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    mean = np.full((rows, cols, bands), np.nan, data.dtype)
    covariance = np.full((rows, cols, bands, bands), np.nan, data.dtype)
    status = np.full((rows, cols), MASKED, np.uint8)
    for row in range(rows):
        for col in range(cols):
            ring = reference.ring_indices(row, col, rows, cols, window, border)
            if ring is None:
                continue
            samples = flat[ring[use[ring]]]
            if not np.isfinite(samples).all():
                status[row, col] = NON_FINITE
                continue
            found = estimate(samples, **options)
            mean[row, col], covariance[row, col], status[row, col] = found[:3]
    return mean, covariance, status


def rx(
    image: ArrayLike,
    *,
    window: Window,
    border: str = "shift",
    mask: ArrayLike | None = None,
    **options: Any,
) -> tuple[Float64, NDArray[np.uint8]]:
    """Scores of the local detector with one of the estimators, and their status.

    Tyler's estimate is scaled so that its samples have a mean squared distance of ``bands``.
    """
    data = reference._double(image)
    rows, cols, bands = data.shape
    flat = data.reshape(-1, bands)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    mean, covariance, status = local_covariance(image, window, border=border, mask=mask, **options)
    finite = np.isfinite(data).all(axis=-1)
    status[~finite] = NON_FINITE
    status[~use.reshape(rows, cols)] = MASKED
    scores = np.full((rows, cols), np.nan)
    for row, col in np.argwhere((status == OK) | (status == NOT_CONVERGED)):
        offset = (data[row, col] - mean[row, col])[None]
        distance = _distances(offset, covariance[row, col])
        if distance is None:
            status[row, col] = SINGULAR
            continue
        scale = 1.0
        ring = reference.ring_indices(row, col, rows, cols, window, border)
        if options.get("estimator") == "tyler" and ring is not None:
            own = _distances(flat[ring[use[ring]]] - mean[row, col], covariance[row, col])
            scale = np.nan if own is None else float(own.mean()) / bands
        scores[row, col] = distance[0] / scale
    return scores, status

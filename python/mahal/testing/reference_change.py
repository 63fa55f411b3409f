"""Slow float64 references of covariance distances and change maps, written to be read."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mahal.testing.reference import (
    MASKED,
    NON_FINITE,
    OK,
    SINGULAR,
    TOO_FEW_SAMPLES,
    ring_indices,
)

__all__ = [
    "change_map",
    "covariance_distance",
    "covariance_log",
    "pair_score",
    "structural_similarity",
]

Float64: TypeAlias = NDArray[np.float64]
Field: TypeAlias = NDArray[Any]

DISTANCES = ("frobenius", "logeuclid", "affine_invariant", "logdet", "wasserstein")
"""The metrics that have a square."""

CHANGE_PIVOT = 1e-10
"""Smallest pivot of a window's covariance in `change_map`, relative to its variance."""


def _function(a: Field, function: Any) -> Field:
    """A function of a Hermitian matrix through its eigenvalues."""
    values, vectors = np.linalg.eigh(a)
    return np.asarray((vectors * function(values)) @ vectors.conj().T)


def _logdet(a: Field) -> float:
    return float(np.linalg.slogdet(a)[1])


def _log_ratio(a: Field, b: Field, n: float, m: float) -> float:
    """-ln Q = (n + m) ln|pooled| - n ln|A| - m ln|B|."""
    pooled = (n * a + m * b) / (n + m)
    return (n + m) * _logdet(pooled) - n * _logdet(a) - m * _logdet(b)


def pair_score(a: Field, b: Field, metric: str, squared: bool, n: float, m: float) -> float:
    """Score of one pair of positive definite matrices by the textbook formula.

    Parameters
    ----------
    a, b : (p, p) array
        Real symmetric or Hermitian.
    metric, squared
        As in `mahal.covariance_distance`.
    n, m : float
        Looks.

    Returns
    -------
    float
    """
    p = len(a)
    square: float
    if metric == "frobenius":
        square = float((np.abs(a - b) ** 2).sum())
    elif metric == "logeuclid":
        square = float((np.abs(_function(a, np.log) - _function(b, np.log)) ** 2).sum())
    elif metric == "affine_invariant":
        whiten = _function(a, lambda v: v**-0.5)
        square = float((np.log(np.linalg.eigvalsh(whiten @ b @ whiten)) ** 2).sum())
    elif metric == "logdet":
        square = _logdet((a + b) / 2) - (_logdet(a) + _logdet(b)) / 2
    elif metric == "wasserstein":
        root = _function(b, np.sqrt)
        middle = np.sqrt(np.linalg.eigvalsh(root @ a @ root)).sum()
        square = float(np.trace(a).real + np.trace(b).real - 2 * middle)
    elif metric == "symmetric_kl":
        both = np.linalg.solve(a, b) + np.linalg.solve(b, a)
        return float(np.trace(both).real / 2 - p)
    elif metric == "hotelling_lawley":
        return float(np.trace(np.linalg.solve(b, a)).real)
    elif metric == "wishart":
        rho = 1 - (2 * p * p - 1) / (6 * p) * (1 / n + 1 / m - 1 / (n + m))
        return 2 * rho * _log_ratio(a, b, n, m)
    elif metric == "box_m":
        share = (2 * p * p + 3 * p - 1) / (6 * (p + 1))
        return (1 - share * (1 / n + 1 / m - 1 / (n + m))) * _log_ratio(a, b, n, m)
    else:
        raise ValueError(f"pair_score: metric: must be known, got {metric!r}")
    square = max(square, 0.0)
    return square if squared else square**0.5


def covariance_distance(
    a: ArrayLike,
    b: ArrayLike,
    metric: str = "frobenius",
    *,
    squared: bool = False,
    looks: float | tuple[float, float] | None = None,
) -> Float64:
    """Reference of `mahal.covariance_distance` for matrices that are positive definite.

    Parameters
    ----------
    a, b : (..., p, p) arrays
    metric, squared, looks
        As there.

    Returns
    -------
    (...,) float64 array
    """
    first, second = np.asarray(a), np.asarray(b)
    kind = complex if first.dtype.kind == "c" else float
    first, second = first.astype(kind), second.astype(kind)
    batch = np.broadcast_shapes(first.shape[:-2], second.shape[:-2])
    size = first.shape[-2:]
    first = np.broadcast_to(first, (*batch, *size))
    second = np.broadcast_to(second, (*batch, *size))
    n, m = looks if isinstance(looks, tuple) else (looks or 1.0, looks or 1.0)
    score = np.zeros(batch)
    for at in np.ndindex(*batch):
        score[at] = pair_score(first[at], second[at], metric, squared, n, m)
    return score


def covariance_log(a: ArrayLike, *, loading: float = 0.0) -> Field:
    """Reference of `mahal.covariance_log` for matrices that are positive definite.

    Parameters
    ----------
    a : (..., p, p) array
    loading : float

    Returns
    -------
    (..., p, p) float64 or complex128 array
    """
    matrices = np.asarray(a)
    matrices = matrices.astype(complex if matrices.dtype.kind == "c" else float)
    size = matrices.shape[-1]
    logarithm = np.zeros_like(matrices)
    for at in np.ndindex(*matrices.shape[:-2]):
        one = matrices[at]
        one = one + loading * np.trace(one).real / size * np.eye(size)
        logarithm[at] = _function(one, np.log)
    return logarithm


def _window(
    row: int, col: int, rows: int, cols: int, side: int, border: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows and columns of the window of one pixel, None where ``valid`` has none."""
    half = side // 2
    if border == "clip":
        return (
            np.arange(max(row - half, 0), min(row + half + 1, rows)),
            np.arange(max(col - half, 0), min(col + half + 1, cols)),
        )
    indices = ring_indices(row, col, rows, cols, side, border)
    if indices is None:
        return None
    square = indices.reshape(side, side)
    return square[:, 0] // cols, square[0] % cols


def _second_moments(x: Field, center: bool, divisor: float) -> Field:
    """Of (n, channels) samples, ``E x x^H``; relative to the first sample where centred."""
    if center:
        x = x - x[0]
        x = x - x.mean(axis=0)
    return np.asarray(x.T @ x.conj() / divisor)


def change_map(
    first: ArrayLike,
    second: ArrayLike,
    window: int,
    *,
    metric: str = "frobenius",
    squared: bool = True,
    center: bool = True,
    ddof: int | None = None,
    border: str = "clip",
    mask: ArrayLike | None = None,
    compat: str | None = None,
) -> tuple[Float64, NDArray[np.uint8]]:
    """Reference of `mahal.change_map`: one window after the other.

    Parameters
    ----------
    first, second, window, metric, squared, center, ddof, border, mask, compat
        As there.

    Returns
    -------
    score : (rows, cols) float64 array
    status : (rows, cols) uint8 array
    """
    images = [np.asarray(image) for image in (first, second)]
    kind = complex if images[0].dtype.kind == "c" else float
    images = [image.reshape(*image.shape[:2], -1).astype(kind) for image in images]
    rows, cols, channels = images[0].shape
    used = np.ones((rows, cols), dtype=bool) if mask is None else np.asarray(mask)
    degrees = (1 if center else 0) if ddof is None else ddof
    score = np.full((rows, cols), np.nan)
    status = np.full((rows, cols), MASKED, dtype=np.uint8)
    for row, col in np.ndindex(rows, cols):
        where = _window(row, col, rows, cols, window, border)
        if where is None:
            continue
        grid = np.ix_(*where)
        x, y = (image[grid][used[grid]] for image in images)
        n = len(x)
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            status[row, col] = NON_FINITE
            continue
        if n <= (0 if compat else degrees):
            status[row, col] = TOO_FEW_SAMPLES
            continue
        divisor = channels - 1 if compat else n - degrees
        a, b = (_second_moments(z, center, divisor) for z in (x, y))
        if metric != "frobenius" and not all(_regular(z) for z in (a, b)):
            status[row, col] = SINGULAR
            continue
        looks = n - 1 if center else n
        score[row, col] = pair_score(a, b, metric, squared, looks, looks)
        status[row, col] = OK
    return score, status


def _regular(a: Field) -> bool:
    """Whether all pivots exceed their share of the variances."""
    variances = np.diagonal(a).real
    if not (variances > 0).all():
        return False
    root = np.sqrt(variances)
    values = np.linalg.eigvalsh(a / root[:, None] / root)
    return bool(values[0] > CHANGE_PIVOT)


def structural_similarity(
    first: ArrayLike,
    second: ArrayLike,
    window: int,
    *,
    data_range: float,
    sigma: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    ddof: int | None = None,
    border: str = "reflect",
    channels: str = "mean",
) -> Float64:
    """Reference of `mahal.structural_similarity`: one window after the other.

    Parameters
    ----------
    first, second, window, data_range, sigma, k1, k2, ddof, border, channels
        As there; the window must be given.

    Returns
    -------
    (rows, cols) or (rows, cols, channels) float64 array
    """
    images = [np.asarray(image, dtype=np.float64) for image in (first, second)]
    shape = images[0].shape
    rows, cols = shape[:2]
    images = [image.reshape(rows, cols, -1) for image in images]
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    degrees = (0 if sigma else 1) if ddof is None else ddof
    half = window // 2
    offsets = np.arange(-half, half + 1)
    score = np.full(images[0].shape, np.nan)
    for row, col in np.ndindex(rows, cols):
        at = (row, col)
        if border == "shift":
            at = (min(max(row, half), rows - 1 - half), min(max(col, half), cols - 1 - half))
        where = _window(*at, rows, cols, window, border)
        if where is None:
            continue
        weights = np.ones((window, window))
        if sigma:
            weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
        if border == "clip":
            inside = [
                (a + offsets >= 0) & (a + offsets < n) for a, n in zip(at, shape, strict=False)
            ]
            weights = weights[np.ix_(*inside)]
        weights = weights / weights.sum()
        norm = weights.size / (weights.size - degrees)
        for j in range(images[0].shape[2]):
            x, y = (image[np.ix_(*where)][:, :, j] for image in images)
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (norm * (weights * (z - m) ** 2).sum() for z, m in ((x, mx), (y, my)))
            xy = norm * (weights * (x - mx) * (y - my)).sum()
            score[row, col, j] = ((2 * mx * my + c1) * (2 * xy + c2)) / (
                (mx**2 + my**2 + c1) * (vx + vy + c2)
            )
    if len(shape) == 2:
        return score[:, :, 0]
    return score.mean(-1) if channels == "mean" else score

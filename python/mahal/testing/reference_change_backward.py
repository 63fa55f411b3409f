"""Slow float64 references of gradients of covariance distances and of similarity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mahal.testing.reference_change import DISTANCES, Field, Float64, _window, pair_score

__all__ = [
    "covariance_distance_backward",
    "covariance_log_backward",
    "pair_gradient",
    "structural_similarity_backward",
]


def _function(a: Field, function: Any) -> Field:
    values, vectors = np.linalg.eigh(a)
    return np.asarray((vectors * function(values)) @ vectors.conj().T)


def _log_derivative(a: Field, direction: Field) -> Field:
    """Daleckii and Krein: divided differences in the basis of the eigenvectors."""
    values, vectors = np.linalg.eigh(a)
    x, y = values[:, None], values[None, :]
    equal = np.isclose(x, y, rtol=1e-6, atol=0)
    slope = np.where(equal, 2 / (x + y), (np.log(x) - np.log(y)) / np.where(equal, 1, x - y))
    turned = vectors.conj().T @ direction @ vectors
    return np.asarray(vectors @ (slope * turned) @ vectors.conj().T)


def pair_gradient(
    a: Field, b: Field, metric: str, squared: bool, n: float, m: float
) -> tuple[Field, Field]:
    """Gradients of `pair_score` by the textbook formulas: Hermitian matrices.

    Parameters
    ----------
    a, b, metric, squared, n, m
        As there.

    Returns
    -------
    grad_a, grad_b : (p, p) arrays
    """
    p = len(a)
    if np.array_equal(a, b) and metric != "hotelling_lawley":
        return np.zeros_like(a), np.zeros_like(b)
    inverse_a, inverse_b = np.linalg.inv(a), np.linalg.inv(b)
    if metric == "frobenius":
        grad_a, grad_b = 2 * (a - b), 2 * (b - a)
    elif metric == "logeuclid":
        gap = _function(a, np.log) - _function(b, np.log)
        grad_a, grad_b = _log_derivative(a, 2 * gap), -_log_derivative(b, 2 * gap)
    elif metric == "affine_invariant":
        whiten = _function(a, lambda v: v**-0.5)
        values, vectors = np.linalg.eigh(whiten @ b @ whiten)
        y = whiten @ vectors
        grad_a = -(y * (2 * np.log(values))) @ y.conj().T
        grad_b = (y * (2 * np.log(values) / values)) @ y.conj().T
    elif metric == "wasserstein":
        root = _function(a, np.sqrt)
        whiten = np.linalg.inv(root)
        transport = whiten @ _function(root @ b @ root, np.sqrt) @ whiten
        grad_a, grad_b = np.eye(p) - transport, np.eye(p) - np.linalg.inv(transport)
    elif metric == "symmetric_kl":
        grad_a = (inverse_b - inverse_a @ b @ inverse_a) / 2
        grad_b = (inverse_a - inverse_b @ a @ inverse_b) / 2
    elif metric == "hotelling_lawley":
        grad_a, grad_b = inverse_b, -inverse_b @ a @ inverse_b
    else:
        share = 1.0
        if metric == "logdet":
            n = m = 0.5
        else:
            looks = 1 / n + 1 / m - 1 / (n + m)
            if metric == "wishart":
                share = 2 * (1 - (2 * p * p - 1) / (6 * p) * looks)
            else:
                share = 1 - (2 * p * p + 3 * p - 1) / (6 * (p + 1)) * looks
        pooled = np.linalg.inv((n * a + m * b) / (n + m))
        grad_a, grad_b = share * n * (pooled - inverse_a), share * m * (pooled - inverse_b)
    if metric in DISTANCES and not squared:
        score = pair_score(a, b, metric, False, n, m)
        if metric == "wasserstein":  # without the difference of traces
            gap = np.eye(p) - transport
            score = float(np.trace(gap @ a @ gap).real) ** 0.5
        grad_a, grad_b = grad_a / (2 * score), grad_b / (2 * score)
    return grad_a, grad_b


def covariance_distance_backward(
    a: ArrayLike,
    b: ArrayLike,
    grad: ArrayLike,
    metric: str = "frobenius",
    *,
    squared: bool = False,
    looks: tuple[float, float] = (1.0, 1.0),
) -> tuple[Field, Field]:
    """Reference of the gradients of `mahal.covariance_distance`.

    Parameters
    ----------
    a, b : (..., p, p) arrays of one shape
    grad : (...,) array
    metric, squared, looks
        As in `mahal.covariance_distance`.

    Returns
    -------
    grad_a, grad_b : (..., p, p) float64 or complex128 arrays
    """
    first, second = np.asarray(a), np.asarray(b)
    kind = complex if first.dtype.kind == "c" else float
    first, second = first.astype(kind), second.astype(kind)
    upstream: Float64 = np.asarray(grad).astype(float)
    grad_a, grad_b = np.zeros_like(first), np.zeros_like(second)
    for at in np.ndindex(*first.shape[:-2]):
        pair = pair_gradient(first[at], second[at], metric, squared, *looks)
        grad_a[at], grad_b[at] = (upstream[at] * g for g in pair)
    return grad_a, grad_b


def covariance_log_backward(a: ArrayLike, grad: ArrayLike, *, loading: float = 0.0) -> Field:
    """Reference of the gradient of `mahal.covariance_log`.

    Parameters
    ----------
    a, grad : (..., p, p) arrays
    loading : float

    Returns
    -------
    (..., p, p) float64 or complex128 array
    """
    matrices, upstream = np.asarray(a), np.asarray(grad)
    kind = complex if matrices.dtype.kind == "c" else float
    matrices, upstream = matrices.astype(kind), upstream.astype(kind)
    size = matrices.shape[-1]
    result = np.zeros_like(matrices)
    for at in np.ndindex(*matrices.shape[:-2]):
        one = matrices[at]
        loaded = one + loading * np.trace(one).real / size * np.eye(size)
        direction = (upstream[at] + upstream[at].conj().T) / 2
        inner = _log_derivative(loaded, direction)
        result[at] = inner + loading * np.trace(inner).real / size * np.eye(size)
    return result


def structural_similarity_backward(
    first: ArrayLike,
    second: ArrayLike,
    grad: ArrayLike,
    window: int,
    *,
    data_range: float,
    sigma: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    ddof: int | None = None,
    border: str = "reflect",
) -> tuple[Float64, Float64]:
    """Reference of the gradients of `mahal.structural_similarity`: one window after the other.

    Parameters
    ----------
    first, second : (rows, cols, channels) arrays
    grad : (rows, cols, channels) array
        Derivative of a number by the score of every channel.
    window, data_range, sigma, k1, k2, ddof, border
        As there.

    Returns
    -------
    grad_first, grad_second : (rows, cols, channels) float64 arrays
    """
    images = [np.asarray(image, dtype=np.float64) for image in (first, second)]
    upstream = np.asarray(grad, dtype=np.float64)
    rows, cols, channels = images[0].shape
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    degrees = (0 if sigma else 1) if ddof is None else ddof
    half = window // 2
    offsets = np.arange(-half, half + 1)
    profile = np.exp(-(offsets**2) / (2 * sigma**2)) if sigma else np.ones(window)
    found = [np.zeros_like(image) for image in images]
    for row, col in np.ndindex(rows, cols):
        at = (row, col)
        if border == "shift":
            at = (min(max(row, half), rows - 1 - half), min(max(col, half), cols - 1 - half))
        where = _window(*at, rows, cols, window, border)
        if where is None:
            continue
        inside = [
            (a + offsets >= 0) & (a + offsets < n) if border == "clip" else offsets == offsets
            for a, n in zip(at, (rows, cols), strict=True)
        ]
        weights = np.outer(profile[inside[0]], profile[inside[1]])
        weights = weights / weights.sum()
        norm = weights.size / (weights.size - degrees)
        place = np.ix_(*where)
        for j in range(channels):
            x, y = (image[place][:, :, j] for image in images)
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (norm * (weights * (z - m) ** 2).sum() for z, m in ((x, mx), (y, my)))
            xy = norm * (weights * (x - mx) * (y - my)).sum()
            means, spread = mx**2 + my**2 + c1, vx + vy + c2
            alike, common = 2 * mx * my + c1, 2 * xy + c2
            score = alike * common / (means * spread)
            for own, other, m, n, total in ((x, y, mx, my, found[0]), (y, x, my, mx, found[1])):
                by_mean = 2 * n * common / (means * spread) - 2 * m * score / means
                by_spread = 2 * alike / (means * spread) * (other - n) - 2 * score / spread * (
                    own - m
                )
                slope = upstream[row, col, j] * weights * (by_mean + norm * by_spread)
                np.add.at(total[:, :, j], place, slope)
    return found[0], found[1]

"""Slow float64 references of the gradients of covariance distances, written to be read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mahal.testing.reference_change import DISTANCES, Field, Float64, pair_score

__all__ = ["covariance_distance_backward", "covariance_log_backward", "pair_gradient"]


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

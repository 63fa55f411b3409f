"""Slow float64 references of the Gaussian random fields: dense covariance matrices throughout."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Field", "covariance", "grf_kl", "grf_log_likelihood"]

Float64 = NDArray[np.float64]


class Field(NamedTuple):
    """Values and gradients; the gradients of range and variance are per plane."""

    value: Float64
    mean: Float64
    logvar: Float64
    range: Float64
    variance: Float64


def _profile(a: float, smoothness: float) -> tuple[float, float]:
    """Correlation at a scaled distance, and its derivative with respect to the log range."""
    if smoothness == 0.5:
        return math.exp(-a), a * math.exp(-a)
    if smoothness == 1.5:
        return (1 + a) * math.exp(-a), a * a * math.exp(-a)
    if smoothness == 2.5:
        return (1 + a + a * a / 3) * math.exp(-a), a * a * (1 + a) / 3 * math.exp(-a)
    raise ValueError(f"covariance: smoothness: must be 0.5, 1.5 or 2.5, got {smoothness}")


def covariance(
    shape: tuple[int, int],
    *,
    range: float,
    variance: float = 1.0,
    smoothness: float = 1.5,
    kernel: str = "periodised",
    convention: str = "standard",
    normalize: bool = False,
) -> tuple[Float64, Float64]:
    """(N, N) covariance of a plane in row-major order, and its derivative to the log range."""
    scale = (math.sqrt(2 * smoothness) if convention == "standard" else 1.0) / range
    wraps: list[list[int]] = []
    for side in shape:
        images = math.ceil(45 / (scale * side)) + 1
        alone = kernel == "wrapped" or side == 1
        wraps.append([0] if alone else [side * k for k in np.arange(-images, images + 1)])
    base = np.zeros((2, *shape))
    for i, j in itertools.product(np.arange(shape[0]), np.arange(shape[1])):
        near = min(i, shape[0] - i), min(j, shape[1] - j)
        terms = [
            _profile(scale * math.hypot(near[0] + k, near[1] + m), smoothness)
            for k, m in itertools.product(*wraps)
        ]
        base[:, i, j] = np.sum(terms, axis=0)
    if normalize:
        value, slope = base[:, 0, 0]
        base = np.stack([base[0] / value, base[1] / value - base[0] * slope / value**2])
    rows, cols = np.divmod(np.arange(shape[0] * shape[1]), shape[1])
    differences = (rows[:, None] - rows) % shape[0], (cols[:, None] - cols) % shape[1]
    matrices = variance * base[:, differences[0], differences[1]]
    return matrices[0], matrices[1]


def _planes(array: ArrayLike) -> Float64:
    array = np.asarray(array, dtype=np.float64)
    return array.reshape(-1, array.shape[-2] * array.shape[-1])


def _inverse(matrix: Float64) -> tuple[Float64, float]:
    """Inverse and log-determinant by the eigenvalues, which must be positive."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] <= 0:
        raise ValueError(f"covariance: must be positive definite, got eigenvalue {values[0]:.3g}")
    return (vectors / values) @ vectors.T, float(np.log(values).sum())


def grf_kl(
    mean: ArrayLike, logvar: ArrayLike, *, range: float, variance: float = 1.0, **kernel: Any
) -> Field:
    """Divergence from independent normals, by traces and determinants, with its gradients."""
    mean, logvar = np.broadcast_arrays(mean, logvar)
    shape = (mean.shape[-2], mean.shape[-1])
    matrix, slope = covariance(shape, range=range, variance=variance, **kernel)
    inverse, log_determinant = _inverse(matrix)
    steep = inverse @ slope @ inverse
    results = []
    for m, log_v in zip(_planes(mean), _planes(logvar), strict=True):
        v = np.exp(log_v)
        quad, trace = m @ inverse @ m, np.trace(inverse * v)
        value = (log_determinant + quad + trace - log_v.sum() - m.size) / 2
        to_range = (np.trace(inverse @ slope) - m @ steep @ m - np.trace(steep * v)) / 2
        to_variance = (m.size - quad - trace) / 2
        results.append((value, inverse @ m, (np.diag(inverse) * v - 1) / 2, to_range, to_variance))
    return _joined(results, mean.shape, range, variance)


def grf_log_likelihood(
    image: ArrayLike, *, range: float, variance: float = 1.0, **kernel: Any
) -> Field:
    """Log-density of planes without their means, with its gradients; that of `logvar` is zero."""
    image = np.asarray(image, dtype=np.float64)
    shape = (image.shape[-2], image.shape[-1])
    matrix, slope = covariance(shape, range=range, variance=variance, **kernel)
    inverse, log_determinant = _inverse(matrix)
    steep = inverse @ slope @ inverse
    results = []
    for plane in _planes(image):
        z = plane - plane.mean()
        quad = z @ inverse @ z
        value = -(z.size * math.log(2 * math.pi) + log_determinant + quad) / 2
        to_range = -(np.trace(inverse @ slope) - z @ steep @ z) / 2
        results.append((value, -inverse @ z, np.zeros_like(z), to_range, -(z.size - quad) / 2))
    return _joined(results, image.shape, range, variance)


def _joined(results: list[Any], shape: tuple[int, ...], length: float, variance: float) -> Field:
    columns = list(zip(*results, strict=True)) or [()] * 5
    shapes = [shape[:-2], shape, shape, shape[:-2], shape[:-2]]
    value, mean, logvar, to_range, to_variance = (
        np.asarray(column, dtype=np.float64).reshape(s)
        for column, s in zip(columns, shapes, strict=True)
    )
    return Field(value, mean, logvar, to_range / length, to_variance / variance)

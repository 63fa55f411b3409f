"""Arguments that whiten and mahalanobis share."""

from __future__ import annotations

from mahal._arrays import Array, as_float


def fixed_background(
    op: str, x: Array, mean: Array, covariance: Array
) -> tuple[Array, Array, Array]:
    """Pixels, mean and covariance as numbers that the kernels take."""
    x = as_float(op, "x", x, differentiable=True)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x: must have an axis of bands, got shape {tuple(x.shape)}")
    mean = as_float(op, "mean", mean, like=x, differentiable=True)
    covariance = as_float(op, "covariance", covariance, like=x, differentiable=True)
    return x, mean, covariance


def as_pixels(x: Array) -> Array:
    """The spectra with at most the two leading axes that the kernels take."""
    return x if x.ndim <= 3 else x.reshape(-1, x.shape[-1])

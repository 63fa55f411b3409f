"""Arguments that whiten and mahalanobis share."""

from __future__ import annotations

from mahal._arrays import Array, as_float


def fixed_background(
    op: str, x: Array, mean: Array, covariance: Array
) -> tuple[Array, Array, Array]:
    """Pixels, mean and covariance as the kernels take them."""
    x = as_float(op, "x", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"{op}: x: must have an axis of bands, got shape {tuple(x.shape)}")
    if x.ndim > 3:
        x = x.reshape(-1, x.shape[-1])
    mean = as_float(op, "mean", mean, like=x)
    covariance = as_float(op, "covariance", covariance, like=x)
    return x, mean, covariance

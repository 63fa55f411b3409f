"""Slow references in double precision of gradients.

As in `mahal.testing.reference`, nothing here calls a kernel of mahal. For complex numbers a
gradient is that of the real part plus i times that of the imaginary part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mahal.testing.reference import Float64, Numbers

__all__ = ["cholesky", "detector", "mean_covariance", "whiten"]


def _exact(a: Any) -> Numbers:
    array = np.asarray(a)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def cholesky(factor: Any, grad: Any, *, loading: float = 0.0) -> Numbers:
    """Of a Hermitian matrix, from that of its lower factor (Murray, 2016, eq. 10)."""
    lower, bar = _exact(factor), np.tril(_exact(grad))
    n = lower.shape[-1]
    upper = lower.conj().swapaxes(-1, -2)
    inner = np.tril(upper @ bar)
    diagonal = np.arange(n)
    inner[..., diagonal, diagonal] = inner[..., diagonal, diagonal].real / 2
    both = inner + inner.conj().swapaxes(-1, -2)
    inverse = np.linalg.inv(lower)
    found = inverse.conj().swapaxes(-1, -2) @ both @ inverse / 2
    trace = np.trace(found, axis1=-2, axis2=-1).real
    return np.asarray(found + loading / n * trace[..., None, None] * np.eye(n))


def whiten(grad: Any, y: Any, covariance: Any) -> tuple[Numbers, Numbers, Numbers]:
    """Of pixels, mean and covariance, from that of the whitened pixels y."""
    factor = np.linalg.cholesky(_exact(covariance))
    bands = factor.shape[0]
    inverse = np.linalg.inv(factor)
    v = _exact(grad) @ inverse.conj()
    rows = v.reshape(-1, bands)
    bar = -rows.T @ _exact(y).reshape(-1, bands).conj()
    return v, -rows.sum(0), cholesky(factor, bar)


def mean_covariance(
    x: Any,
    grad_mean: Any,
    grad_covariance: Any,
    *,
    mask: Any = None,
    ddof: float = 1,
    center: bool = True,
) -> Numbers:
    """Of pixels, from those of their mean and covariance."""
    pixels = _exact(x).reshape(-1, x.shape[-1])
    usable = np.isfinite(pixels).all(axis=1)
    if mask is not None:
        usable &= np.asarray(mask).reshape(-1)
    count = usable.sum()
    mean = pixels[usable].mean(axis=0) if center else np.zeros(x.shape[-1])
    both = _exact(grad_covariance) + _exact(grad_covariance).conj().T
    out = np.zeros_like(pixels)
    out[usable] = (pixels[usable] - mean) @ both.T / (count - (ddof if center else 0))
    if center:
        out[usable] += _exact(grad_mean) / count
    return np.asarray(out.reshape(x.shape))


def _slopes(
    score: str, a: Numbers, b: Float64, c: Float64
) -> tuple[Numbers, Float64 | float, Float64 | float]:
    """Derivatives of a score by product a, energy b of the pixel and energy c of the target."""
    size = np.abs(a)
    cosine = size**2 / (b * c)
    if score == "ace":
        return 2 * a / (b * c), -cosine / b, -cosine / c
    if score == "signed_ace":
        signed = a / np.sqrt(b * c)
        return 1 / np.sqrt(b * c), -signed / (2 * b), -signed / (2 * c)
    power = 1.0 if score == "filter" else 0.5
    sign = a / size if a.dtype.kind == "c" else np.ones_like(a)
    value = size if a.dtype.kind == "c" else a
    return sign / c**power, 0.0, -power * value / c ** (power + 1)


def detector(
    grad: Any, pixels: Any, mean: Any, covariance: Any, target: Any = None, score: str = "distance"
) -> tuple[Numbers, Numbers | None, Numbers, Numbers]:
    """Of pixels, targets, mean and covariance, from that of their scores, one pixel at a time."""
    bands = pixels.shape[-1]
    rows, weights = _exact(pixels).reshape(-1, bands), _exact(grad)
    inverse = np.linalg.inv(_exact(covariance))
    moved = rows - _exact(mean)
    z = moved @ inverse.T
    if target is None:
        g = weights.reshape(-1)
        out = 2 * g[:, None] * z
        return out.reshape(pixels.shape), None, -out.sum(0), -(g * z.T) @ z.conj()
    tau = _exact(target) - _exact(mean)
    u = tau @ inverse.T
    out, bar = np.zeros_like(rows), np.zeros_like(tau)
    matrix = np.zeros_like(inverse)
    for p, g in enumerate(weights.reshape(len(rows), -1)):
        b = np.vdot(moved[p], z[p]).real
        for k in range(len(tau)):
            a = np.asarray(np.vdot(tau[k], z[p]))
            s_a, s_b, s_c = _slopes(score, a, b, np.vdot(tau[k], u[k]).real)
            out[p] += g[k] * (s_a * u[k] + 2 * s_b * z[p])
            bar[k] += g[k] * (np.conj(s_a) * z[p] + 2 * s_c * u[k])
            one = s_a * np.outer(u[k], z[p].conj())
            matrix -= g[k] * (
                (one + one.conj().T) / 2
                + s_b * np.outer(z[p], z[p].conj())
                + s_c * np.outer(u[k], u[k].conj())
            )
    return out.reshape(pixels.shape), bar, -out.sum(0) - bar.sum(0), matrix

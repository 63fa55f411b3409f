"""Gradients of the windowed ops in slow float64: closed forms, one window after the other.

The gradient of a real function f of complex numbers z is that for which df = Re sum conj(g) dz, as
in torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mahal.testing import reference
from mahal.testing.reference import Numbers, Window


def _windows(
    data: Numbers, mask: ArrayLike | None, window: Window, border: str
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Pixels and the samples of their windows, where all of these are finite."""
    rows, cols, bands = data.shape
    flat = data.reshape(-1, bands)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    for pixel in range(len(flat)):
        ring = reference.ring_indices(pixel // cols, pixel % cols, rows, cols, window, border)
        if ring is None:
            continue
        ring = ring[use[ring]]
        if np.isfinite(flat[ring]).all():
            yield pixel, ring


def local_covariance(
    image: ArrayLike,
    mean_gradient: ArrayLike | None,
    covariance_gradient: ArrayLike | None,
    *,
    window: Window | list[Window],
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    mask: ArrayLike | None = None,
) -> Numbers:
    """Gradient of `mahal.local_covariance` with respect to the image.

    Parameters
    ----------
    image : (rows, cols, bands) array
    mean_gradient : (rows, cols, bands) array, optional
    covariance_gradient : (rows, cols, bands, bands) array, optional
        With an axis of windows after ``cols`` where ``window`` is a list.
    window, border, ddof, center, mask
        As for `mahal.local_covariance`.

    Returns
    -------
    (rows, cols, bands) array
    """
    data = reference._double(image)
    if isinstance(window, list):
        parts = [
            local_covariance(
                image,
                None if mean_gradient is None else np.asarray(mean_gradient)[:, :, k],
                None if covariance_gradient is None else np.asarray(covariance_gradient)[:, :, k],
                window=one,
                border=border,
                ddof=ddof,
                center=center,
                mask=mask,
            )
            for k, one in enumerate(window)
        ]
        return np.asarray(sum(parts))
    bands = data.shape[-1]
    flat = data.reshape(-1, bands)
    gradient = np.zeros_like(flat)
    for pixel, ring in _windows(data, mask, window, border):
        samples = flat[ring]
        if len(ring) == 0:
            continue
        if center and mean_gradient is not None:
            share = reference._double(mean_gradient).reshape(-1, bands)[pixel] / len(ring)
            np.add.at(gradient, ring, np.broadcast_to(share, samples.shape))
        divisor = len(ring) - ddof if center else len(ring)
        if covariance_gradient is not None and divisor > 0:
            g = reference._double(covariance_gradient).reshape(-1, bands, bands)[pixel]
            centred = samples - samples.mean(axis=0) if center else samples
            np.add.at(gradient, ring, centred @ (g + g.conj().T).T / divisor)
    return gradient.reshape(data.shape)


def _inverse(samples: Numbers, covariance: Numbers | None, center: bool) -> Numbers:
    if covariance is not None:
        return np.asarray(np.linalg.inv(covariance))
    centred = samples - samples.mean(axis=0) if center else samples
    return np.asarray(np.linalg.inv(centred.T @ centred / (len(samples) - int(center))))


def _score_gradients(kind: str, u: Any, v: Any, d: Any, w: Any, g: Any) -> tuple[Any, Any, Any]:
    """Gradients to the difference of the pixel, to those of the targets, and to S.

    u = S^-1 d and the rows of v = S^-1 w belong to the pixel and to the targets.
    """
    gamma = d @ u
    if kind == "rx":
        return 2 * g * u, np.zeros_like(w), -g * np.outer(u, u)
    if kind == "subspace_ace":
        products = w @ u
        shares = np.linalg.solve(w @ v.T, products)
        p = shares @ v
        power = products @ shares
        to_d = 2 * g * (p - power / gamma * u) / gamma
        to_w = 2 * g * np.outer(shares, u - p) / gamma
        to_s = -g * (np.outer(u, p) + np.outer(p, u) - np.outer(p, p)) / gamma
        return to_d, to_w, to_s + g * power / gamma**2 * np.outer(u, u)
    to_d, to_w, to_s = np.zeros_like(u), np.zeros_like(w), np.zeros((len(u), len(u)))
    for k, (one, aim) in enumerate(zip(v, w, strict=True)):
        alpha, beta = aim @ u, aim @ one
        score, of_alpha, of_beta, of_gamma = {
            "ace": (None, 2 * alpha / (beta * gamma), -1.0, -1.0),
            "signed_ace": (None, 1 / np.sqrt(beta * gamma), -0.5, -0.5),
            "filter": (None, 1 / beta, -1.0, 0.0),
            "normalized_filter": (None, 1 / np.sqrt(beta), -0.5, 0.0),
        }[kind]
        power = 2 if kind == "ace" else 1
        score = of_alpha * alpha / power
        a, b, c = g[k] * of_alpha, g[k] * of_beta * score / beta, g[k] * of_gamma * score / gamma
        to_d = to_d + a * one + 2 * c * u
        to_w[k] = a * u + 2 * b * one
        both = np.outer(u, one) + np.outer(one, u)
        to_s -= a / 2 * both + b * np.outer(one, one) + c * np.outer(u, u)
    return to_d, to_w, to_s


def local_scores(
    image: ArrayLike,
    score_gradient: ArrayLike,
    *,
    window: Window,
    kind: str = "rx",
    target: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    border: str = "shift",
    center: bool = True,
    mask: ArrayLike | None = None,
) -> tuple[Numbers, Numbers, Numbers]:
    """Gradients of local RX, ACE and matched filters of real images, in the units of the image.

    Parameters
    ----------
    image : (rows, cols, bands) array
    score_gradient : (rows, cols) or (rows, cols, targets) array
    window, border, center, mask
        As for `mahal.rx`. Singular windows give nothing.
    kind : {"rx", "ace", "signed_ace", "subspace_ace", "filter", "normalized_filter"}
    target : (targets, bands) array, optional
    covariance : (bands, bands) array, optional

    Returns
    -------
    image, target, covariance : arrays
        Gradients, those without such an argument zero.
    """
    data = reference._double(image)
    bands = data.shape[-1]
    flat = data.reshape(-1, bands)
    g = reference._double(score_gradient).reshape(len(flat), -1)
    targets = np.zeros((0, bands)) if target is None else reference._double(target)
    gradient, to_targets = np.zeros_like(flat), np.zeros_like(targets)
    to_covariance = np.zeros((bands, bands))
    fixed = None if covariance is None else reference._double(covariance)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    one_map = kind in ("rx", "subspace_ace")
    for pixel, ring in _windows(data, mask, window, border):
        n = len(ring)
        usable = use[pixel] and np.isfinite(flat[pixel]).all()
        if not usable or n < (bands + int(center) if fixed is None else 1):
            continue
        samples = flat[ring]
        mean = samples.mean(axis=0) if center else np.zeros(bands)
        if fixed is None:
            centred = samples - mean
            _, failed = reference._factor(
                centred.T @ centred / (n - int(center)), reference.SINGULAR_PIVOT
            )
            if failed:
                continue
        inverse = _inverse(samples, fixed, center)
        d, w = flat[pixel] - mean, targets - mean
        u, v = inverse @ d, w @ inverse
        to_d, to_w, to_s = _score_gradients(kind, u, v, d, w, g[pixel, 0] if one_map else g[pixel])
        gradient[pixel] += to_d
        to_targets += to_w
        to_mean = -to_d - to_w.sum(axis=0)
        if center:
            np.add.at(gradient, ring, np.broadcast_to(to_mean / n, samples.shape))
        if fixed is not None:
            to_covariance += to_s
        else:
            spread = (samples - mean) @ (to_s + to_s.T) / (n - int(center))
            np.add.at(gradient, ring, spread)
    return gradient.reshape(data.shape), to_targets, to_covariance

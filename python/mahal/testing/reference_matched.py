"""Slow references in double precision of the detectors of known targets.

As in `mahal.testing.reference`, nothing here calls a kernel of mahal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mahal.testing import reference, reference_estimators
from mahal.testing.reference import Float64, Numbers, Window

__all__ = ["ace", "cem", "matched_filter", "spectral_angle"]

Score: TypeAlias = Callable[[Numbers, Numbers], Float64]
"""From whitened pixels (n, bands) and whitened targets (targets, bands) to (n, maps)."""


def _products(y: Numbers, w: Numbers) -> Float64:
    """``<w, y>`` of every pair, the magnitude of ``w^H y`` where complex."""
    products = y @ w.conj().T
    return np.asarray(np.abs(products) if products.dtype.kind == "c" else products)


def _squared_cosine(y: Numbers, w: Numbers) -> Float64:
    return np.asarray(_cosine(y, w) ** 2)


def _cosine(y: Numbers, w: Numbers) -> Float64:
    lengths = np.linalg.norm(y, axis=1)[:, None] * np.linalg.norm(w, axis=1)
    none = np.zeros(lengths.shape)
    return np.asarray(np.divide(_products(y, w), lengths, out=none, where=lengths > 0))


def _subspace(y: Numbers, w: Numbers) -> Float64:
    basis, _ = np.linalg.qr(w.T)
    power = reference._power(y)[:, None]
    inside = reference._power(y @ basis.conj())[:, None]
    return np.asarray(np.divide(inside, power, out=np.zeros_like(inside), where=power > 0))


def _filter(y: Numbers, w: Numbers) -> Float64:
    return np.asarray(_products(y, w) / reference._power(w))


def _normalized_filter(y: Numbers, w: Numbers) -> Float64:
    return np.asarray(_products(y, w) / np.linalg.norm(w, axis=1))


def _estimated(
    samples: Numbers, estimation: dict[str, Any], center: bool
) -> tuple[Numbers, Numbers | None, int]:
    """Mean, Cholesky factor in the units of the image (None: there is none), and status."""
    estimator = estimation.get("estimator", "scm")
    bands = samples.shape[1]
    mean = np.zeros(bands)
    if estimator == "scm" and len(samples) < bands + int(center):
        return mean, None, reference.TOO_FEW_SAMPLES
    found = reference_estimators.estimate(samples, center=center, **estimation)
    if found.status not in (reference.OK, reference_estimators.NOT_CONVERGED):
        return mean, None, found.status
    mean = found.mean if center else mean
    lower, failed = reference._factor(found.covariance, reference_estimators.SINGULAR_WINDOW_PIVOT)
    if failed:
        return mean, None, reference.SINGULAR
    if estimator == "tyler":
        distances = reference._power(reference._forward(lower, samples - mean))
        lower = lower * np.sqrt(distances.mean() / bands)
    return mean, lower, found.status


def _detect_estimated(
    score: Score,
    image: ArrayLike,
    target: ArrayLike,
    *,
    window: Window | None = None,
    background: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    border: str = "shift",
    center: bool = True,
    **estimation: Any,
) -> tuple[Float64, NDArray[np.uint8]]:
    """Scores in the units of the image, where a singular estimate scores nothing."""
    data = reference._double(image)
    shape, bands = data.shape[:-1], data.shape[-1]
    flat = data.reshape(-1, bands)
    targets = np.atleast_2d(reference._double(target))
    maps = 1 if score is _subspace else len(targets)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    finite = reference._finite(flat)
    scores = np.full((len(flat), maps), np.nan)
    status = np.zeros(len(flat), dtype=np.uint8)
    status[~finite] = reference.NON_FINITE
    status[~use] = reference.MASKED
    scored = np.flatnonzero(use & finite)
    if window is None:
        other = flat[scored]
        if background is not None:
            other = reference._double(background).reshape(-1, bands)
            other = other[reference._finite(other)]
        everywhere = _estimated(other, estimation, center)
    for pixel in scored:
        if window is None:
            mean, lower, status[pixel] = everywhere
        else:
            row, col = divmod(int(pixel), shape[1])
            ring = reference.ring_indices(row, col, shape[0], shape[1], window, border)
            if ring is None:
                status[pixel] = reference.MASKED
                continue
            samples = flat[ring[use[ring]]]
            if not np.isfinite(samples).all():
                status[pixel] = reference.NON_FINITE
                continue
            mean, lower, status[pixel] = _estimated(samples, estimation, center)
        if lower is not None:
            y = reference._forward(lower, (flat[pixel] - mean)[None])
            scores[pixel] = score(y, reference._forward(lower, targets - mean))[0]
    one_map = np.ndim(target) == 1 or score is _subspace
    shown = shape if one_map else (*shape, maps)
    return scores.reshape(shown), status.reshape(shape)


def _detect(
    score: Score,
    image: ArrayLike,
    target: ArrayLike,
    *,
    window: Window | None = None,
    background: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
    **estimation: Any,
) -> tuple[Float64, NDArray[np.uint8]]:
    data = reference._double(image)
    estimated = estimation.get("estimator", "scm") != "scm"
    radar = data.dtype.kind == "c" or not center
    if estimated or (window is not None and covariance is None and radar):
        return _detect_estimated(
            score,
            image,
            target,
            window=window,
            background=background,
            mask=mask,
            border=border,
            center=center,
            **estimation,
        )
    shape, bands = data.shape[:-1], data.shape[-1]
    flat = data.reshape(-1, bands)
    targets = np.atleast_2d(reference._double(target))
    maps = 1 if score is _subspace else len(targets)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    finite = reference._finite(flat)
    scores = np.full((len(flat), maps), np.nan)
    status = np.zeros(len(flat), dtype=np.uint8)
    status[~finite] = reference.NON_FINITE
    status[~use] = reference.MASKED
    scored = np.flatnonzero(use & finite)

    if background is None:
        population = flat[use & finite]
    else:
        other = reference._double(background).reshape(-1, bands)
        population = other[reference._finite(other)]
    mean, estimate = reference._moments(population, 1, center)
    matrix = estimate if covariance is None else reference._double(covariance)
    one_map = np.ndim(target) == 1 or score is _subspace
    shown = shape if one_map else (*shape, maps)

    to_white = reference._whitening(mean, matrix)
    if window is None:
        if to_white.singular:
            status[scored] = reference.SINGULAR
        if not (to_white.singular and singular == "nan"):
            scores[scored] = score(to_white(flat[scored]), to_white(targets))
        return scores.reshape(shown), status.reshape(shape)

    rows, cols = shape
    white, aims = to_white(np.where(finite[:, None], flat, np.nan)), to_white(targets)
    needed = bands + 1 if covariance is None else 1
    for pixel in scored:
        ring = reference.ring_indices(pixel // cols, pixel % cols, rows, cols, window, border)
        if ring is None:
            status[pixel] = reference.MASKED
            continue
        samples = white[ring[use[ring]]]
        if not np.isfinite(samples).all():
            status[pixel] = reference.NON_FINITE
            continue
        if len(samples) < needed:
            status[pixel] = reference.TOO_FEW_SAMPLES
            continue
        local_mean, local = reference._moments(samples, 1)
        lower = np.eye(bands)
        if covariance is None:
            lower, failed = reference._factor(local, reference.SINGULAR_PIVOT)
            if failed or to_white.singular:
                status[pixel] = reference.SINGULAR
                if singular == "nan":
                    continue
                lower = reference._lower(local + reference.LOADING * np.eye(bands))
        y = reference._forward(lower, (white[pixel] - local_mean)[None])
        scores[pixel] = score(y, reference._forward(lower, aims - local_mean))[0]
    return scores.reshape(shown), status.reshape(shape)


def ace(
    image: ArrayLike,
    target: ArrayLike,
    *,
    window: Window | None = None,
    background: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    signed: bool = False,
    subspace: bool = False,
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
    **estimation: Any,
) -> tuple[Float64, NDArray[np.uint8]]:
    """Adaptive cosine estimator and status; see `mahal.ace`.

    The same steps as in `mahal.testing.reference.rx`: everything is done on the image whitened by
    the global covariance, and a window is judged there. With another ``estimator`` than "scm", and
    in windows of complex images or without ``center``, all is done in the units of the image.
    """
    score = _cosine if signed else _subspace if subspace else _squared_cosine
    return _detect(
        score,
        image,
        target,
        window=window,
        background=background,
        covariance=covariance,
        mask=mask,
        border=border,
        singular=singular,
        center=center,
        **estimation,
    )


def matched_filter(
    image: ArrayLike,
    target: ArrayLike,
    *,
    window: Window | None = None,
    background: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    normalized: bool = False,
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
    **estimation: Any,
) -> tuple[Float64, NDArray[np.uint8]]:
    """Matched filter and status; see `mahal.matched_filter`."""
    return _detect(
        _normalized_filter if normalized else _filter,
        image,
        target,
        window=window,
        background=background,
        covariance=covariance,
        mask=mask,
        border=border,
        singular=singular,
        center=center,
        **estimation,
    )


def cem(
    image: ArrayLike,
    target: ArrayLike,
    *,
    center: bool = False,
    background: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    singular: str = "load",
) -> tuple[Float64, NDArray[np.uint8]]:
    """Constrained energy minimisation and status; see `mahal.cem`."""
    return _detect(
        _filter,
        image,
        target,
        background=background,
        mask=mask,
        singular=singular,
        center=center,
    )


def spectral_angle(image: ArrayLike, target: ArrayLike) -> Float64:
    """Angles in radians; see `mahal.spectral_angle`."""
    data = np.asarray(image, dtype=np.float64)
    targets = np.asarray(target, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        u = data / np.linalg.norm(data, axis=-1, keepdims=True)
    v = targets / np.linalg.norm(targets, axis=-1, keepdims=True)
    u = u if targets.ndim == 1 else u[..., None, :]
    apart, across = np.linalg.norm(u - v, axis=-1), np.linalg.norm(u + v, axis=-1)
    return np.asarray(2 * np.arctan2(apart, across))

"""Slow float64 references of every op, written to be read.

Nothing here calls a kernel of mahal: the definitions below are plain numpy, one window after
the other, and they are what the kernels are compared with. All of them compute and return
float64, or complex128 where the input is complex, whatever the input dtype is.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DEGENERATE_LOADING",
    "LOADING",
    "MASKED",
    "NON_FINITE",
    "OK",
    "SINGULAR",
    "SINGULAR_GLOBAL_PIVOT",
    "SINGULAR_PIVOT",
    "TOO_FEW_SAMPLES",
    "Factor",
    "cholesky",
    "local_covariance",
    "mahalanobis",
    "mean_covariance",
    "pivot_ratios",
    "ring_indices",
    "rx",
    "whiten",
    "window_starts",
]

Float64: TypeAlias = NDArray[np.float64]
Window: TypeAlias = int | tuple[int, int]

Numbers: TypeAlias = NDArray[Any]
"""float64 or complex128"""

OK = 0
TOO_FEW_SAMPLES = 1
SINGULAR = 2
NON_FINITE = 3
MASKED = 4

LOADING = 1e-6
"""Share of the global covariance that rule ``"load"`` adds to a singular one."""

DEGENERATE_LOADING = 1e-10
"""Share of the mean variance that is added to the diagonal of a singular global covariance."""

SINGULAR_PIVOT = 1e-10
"""Smallest pivot of a window, relative to its diagonal entry on the whitened image.

Rounding leaves pivots of rank-deficient windows anywhere between -1e-10 and 1e-10 and of
either sign; those of regular windows of real scenes start near 1e-2."""

SINGULAR_GLOBAL_PIVOT = 1e-13
"""Smallest pivot of the global covariance, relative to its diagonal entry.

It is taken in the units of the image, where real scenes go down to 1e-9."""

_EPS = float(np.finfo(np.float64).eps)


def _double(x: ArrayLike) -> Numbers:
    """The values in double precision, real or complex as they are."""
    values = np.asarray(x)
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _power(y: Numbers) -> Float64:
    """Sum of the squared magnitudes over the last axis."""
    return np.asarray((np.abs(y) ** 2).sum(axis=-1))


class Factor(NamedTuple):
    """Lower Cholesky factors and their status (0 ok, 2 singular, 3 non-finite)."""

    lower: Numbers
    status: NDArray[np.uint8]


def window_starts(length: int, width: int) -> NDArray[np.int64]:
    """First index of the window of every position on one axis, shifted inside the axis.

    Parameters
    ----------
    length : int
        Number of positions on the axis.
    width : int
        Width of the window, at most ``length``.

    Returns
    -------
    (length,) int64 array
        ``min(max(i - width // 2, 0), length - width)`` for position ``i``: the window slides
        inside the axis, is never clipped and never padded (the rule of Spectral Python).
    """
    return np.minimum(np.maximum(np.arange(length) - width // 2, 0), length - width)


def _split_window(window: Window) -> tuple[int, int]:
    return (0, window) if isinstance(window, int) else (int(window[0]), int(window[1]))


def _mirror(index: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Indices of ``numpy.pad(mode="reflect")``: the edge sample is not repeated."""
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    index = np.abs(index) % period
    return np.where(index < length, index, period - index)


def ring_indices(
    row: int, col: int, rows: int, cols: int, window: Window, border: str = "shift"
) -> NDArray[np.int64] | None:
    """Background samples of one pixel: the outer window without the inner one.

    Parameters
    ----------
    row, col : int
        The pixel under test.
    rows, cols : int
        Size of the image.
    window : int or (inner, outer)
        Odd window sizes; a single size has no guard window.
    border : {"shift", "reflect", "valid"}
        ``shift`` slides both windows, each on its own, inside the image; ``reflect`` mirrors the
        image without repeating its edge; ``valid`` has no samples where the outer window
        leaves the image.

    Returns
    -------
    (samples,) int64 array or None
        Indices into the flattened ``rows * cols`` pixels, in row-major order of the window (with
        repetitions for ``reflect``); None where ``valid`` has no window.
    """
    inner, outer = _split_window(window)
    if border == "valid":
        half = outer // 2
        if not (half <= row < rows - half and half <= col < cols - half):
            return None
    if border == "reflect":
        offsets = np.arange(outer) - outer // 2
        wanted_rows = _mirror(row + offsets, rows)
        wanted_cols = _mirror(col + offsets, cols)
        guard = np.abs(offsets) <= inner // 2 if inner else np.zeros(outer, dtype=bool)
        keep = ~(guard[:, None] & guard[None, :])
    else:
        top, left = window_starts(rows, outer)[row], window_starts(cols, outer)[col]
        wanted_rows, wanted_cols = top + np.arange(outer), left + np.arange(outer)
        keep = np.ones((outer, outer), dtype=bool)
        if inner:
            guard_top = window_starts(rows, inner)[row] - top
            guard_left = window_starts(cols, inner)[col] - left
            keep[guard_top : guard_top + inner, guard_left : guard_left + inner] = False
    return (wanted_rows[:, None] * cols + wanted_cols[None, :])[keep]


def _moments(samples: Numbers, ddof: int, center: bool = True) -> tuple[Numbers, Numbers]:
    """Mean and covariance of (n, bands) samples, two passes, anchored at the first sample.

    The anchor makes the covariance of identical samples exactly zero. Without ``center`` the mean
    is zero by assumption and the divisor n.
    """
    if not center:
        return np.zeros_like(samples[0]), samples.T @ samples.conj() / len(samples)
    if len(samples) <= ddof:
        bands = samples.shape[1]
        return samples.mean(axis=0), np.full((bands, bands), np.nan)
    centred = samples - samples[0]
    shift = centred.mean(axis=0)
    centred = centred - shift
    return samples[0] + shift, centred.T @ centred.conj() / (len(samples) - ddof)


def _finite(samples: Numbers) -> NDArray[np.bool_]:
    """Which of the (n, bands) samples hold finite values only."""
    return np.asarray(np.isfinite(samples).all(axis=1))


def mean_covariance(
    x: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    estimator: str = "scm",
    ddof: int = 1,
    center: bool = True,
) -> tuple[Numbers, Numbers]:
    """Mean and covariance of all usable samples.

    Parameters
    ----------
    x : (..., bands) array
        Samples. Those with a non-finite value are left out.
    mask : (...) bool array, optional
        True where a sample may be used.
    estimator : {"scm"}
        Sample covariance matrix.
    ddof : int
        The sum of squares is divided by the sample count minus ``ddof``.
    center : bool
        False: the mean is zero by assumption, and the divisor the sample count.

    Returns
    -------
    mean : (bands,) array
    covariance : (bands, bands) array
        The mean of ``z_j conj(z_k)`` at (j, k).
    """
    if estimator != "scm":
        raise ValueError(f"mean_covariance: estimator: must be 'scm', got {estimator!r}")
    data = _double(x)
    samples = data.reshape(-1, data.shape[-1])
    ddof = ddof if center else 0
    usable = _finite(samples)
    if mask is not None:
        usable &= np.asarray(mask, dtype=bool).reshape(-1)
    if usable.sum() <= ddof:
        raise ValueError(
            f"mean_covariance: x: needs more than {ddof} usable samples, got {usable.sum()}"
        )
    return _moments(samples[usable], ddof, center)


def local_covariance(
    image: ArrayLike,
    window: Window | list[Window],
    *,
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    estimator: str = "scm",
    mask: ArrayLike | None = None,
) -> tuple[Numbers, Numbers]:
    """Mean and covariance of the window of every pixel.

    Parameters
    ----------
    image : (rows, cols, bands) array
    window : int, (inner, outer), or a list of them
        A list adds a scale axis after the columns.
    border : {"shift", "reflect", "valid"}
        See `ring_indices`.
    ddof : int
        The sum of squares is divided by the sample count minus ``ddof``.
    center : bool
        False: the mean is zero by assumption, and the divisor the sample count.
    estimator : {"scm"}
        Sample covariance matrix.
    mask : (rows, cols) bool array, optional
        True where a pixel may be used.

    Returns
    -------
    mean : (rows, cols[, scales], bands) array
    covariance : (rows, cols[, scales], bands, bands) array
        Both NaN where the window leaves the image (``valid``), holds a non-finite usable pixel or
        has no samples; the covariance also where it has no more than ``ddof``.
    """
    if estimator != "scm":
        raise ValueError(f"local_covariance: estimator: must be 'scm', got {estimator!r}")
    if isinstance(window, list):
        maps = [
            local_covariance(image, w, border=border, ddof=ddof, center=center, mask=mask)
            for w in window
        ]
        return np.stack([m for m, _ in maps], axis=2), np.stack([c for _, c in maps], axis=2)
    data = _double(image)
    rows, cols, bands = data.shape
    flat = data.reshape(-1, bands)
    use = np.ones(rows * cols, dtype=bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    mean = np.full((rows, cols, bands), np.nan, data.dtype)
    covariance = np.full((rows, cols, bands, bands), np.nan, data.dtype)
    for row in range(rows):
        for col in range(cols):
            ring = ring_indices(row, col, rows, cols, window, border)
            if ring is None:
                continue
            samples = flat[ring[use[ring]]]
            if len(samples) > 0 and np.isfinite(samples).all():
                mean[row, col], covariance[row, col] = _moments(samples, ddof, center)
    return mean, covariance


def pivot_ratios(a: ArrayLike) -> Float64:
    """Pivots of the Cholesky factorisation of ``a`` over its original diagonal.

    The list ends at the first pivot that is not positive. A ratio close to one says that a
    variable is nearly uncorrelated with those before it, a ratio near the rounding error that
    it is a linear combination of them.

    Parameters
    ----------
    a : (n, n) array

    Returns
    -------
    (k,) float64 array, k <= n
    """
    work = np.array(a, dtype=np.float64)
    diagonal = np.diag(work).copy()
    ratios = []
    for k in range(len(work)):
        pivot = work[k, k]
        ratios.append(pivot / diagonal[k] if diagonal[k] > 0 else 0.0)
        if not pivot > 0:
            break
        column = work[k + 1 :, k] / np.sqrt(pivot)
        work[k + 1 :, k + 1 :] -= np.outer(column, column)
    return np.array(ratios)


def _factor(a: Numbers, smallest: float) -> tuple[Numbers, int]:
    """Lower factor of one matrix by columns; NaN factor and the status where it fails.

    It fails where a pivot is not larger than ``smallest`` times the diagonal entry.
    """
    size = len(a)
    failed = np.full_like(a, np.nan)
    lower = np.zeros_like(a)
    if not np.isfinite(np.tril(a)).all():
        return failed, NON_FINITE
    for k in range(size):
        diagonal = a[k, k].real
        pivot = diagonal - _power(lower[k, :k])
        if pivot <= smallest * diagonal:
            return failed, SINGULAR
        lower[k, k] = np.sqrt(pivot)
        lower[k + 1 :, k] = (a[k + 1 :, k] - lower[k + 1 :, :k] @ lower[k, :k].conj()) / lower[k, k]
    return lower, OK


def cholesky(a: ArrayLike, *, loading: float = 0.0, eps: float = _EPS) -> Factor:
    """Lower Cholesky factor of ``a + loading * trace(a) / n * I``.

    Parameters
    ----------
    a : (..., n, n) array
        Symmetric or Hermitian matrices; only the lower triangle is read.
    loading : float
        Diagonal loading relative to the mean of the diagonal.
    eps : float
        A matrix is singular when a pivot is not larger than ``n * eps`` times its (loaded)
        diagonal entry.

    Returns
    -------
    Factor
        ``lower`` (..., n, n), NaN where the matrix is singular or not finite, and ``status``
        (...).
    """
    matrices = _double(a)
    size = matrices.shape[-1]
    batch = matrices.reshape(-1, size, size)
    lower = np.empty_like(batch)
    status = np.empty(len(batch), dtype=np.uint8)
    for k, matrix in enumerate(batch):
        loaded = matrix + loading * np.trace(matrix).real / size * np.eye(size)
        lower[k], status[k] = _factor(loaded, size * eps)
    return Factor(lower.reshape(matrices.shape), status.reshape(matrices.shape[:-2]))


def _lower(a: Numbers) -> Numbers:
    """Factor of a matrix that is known to be positive definite."""
    return np.asarray(np.linalg.cholesky(a))


def _forward(lower: Numbers, right: Numbers) -> Numbers:
    """Solve ``lower @ y = right`` for every row of ``right`` by forward substitution."""
    y = np.zeros_like(right)
    for k in range(len(lower)):
        y[:, k] = (right[:, k] - y[:, :k] @ lower[k, :k]) / lower[k, k]
    return y


def whiten(x: ArrayLike, mean: ArrayLike, covariance: ArrayLike) -> Numbers:
    """Whitened samples ``L^-1 (x - mean)`` with ``covariance = L L^H``.

    Parameters
    ----------
    x : (..., bands) array
    mean : (bands,) array
    covariance : (bands, bands) array
        Positive definite.

    Returns
    -------
    (..., bands) array
    """
    data = _double(x)
    lower, status = cholesky(covariance)
    if status != OK:
        raise ValueError("whiten: covariance: must be positive definite, got a singular matrix")
    bands = data.shape[-1]
    centred = data.reshape(-1, bands) - _double(mean)
    return _forward(lower, centred).reshape(data.shape)


def mahalanobis(x: ArrayLike, mean: ArrayLike, covariance: ArrayLike) -> Float64:
    """Squared Mahalanobis distance ``(x - mean)^H covariance^-1 (x - mean)``.

    Parameters
    ----------
    x : (..., bands) array
    mean : (bands,) array
    covariance : (bands, bands) array
        Positive definite.

    Returns
    -------
    (...) float64 array
    """
    return _power(whiten(x, mean, covariance))


class _Whitening(NamedTuple):
    """A map ``y = L^-1 (x - mean)`` and whether its covariance had to be loaded."""

    mean: Numbers
    lower: Numbers
    singular: bool

    def __call__(self, samples: Numbers) -> Numbers:
        return _forward(self.lower, samples - self.mean)


def _whitening(mean: Numbers, covariance: Numbers) -> _Whitening:
    lower, status = _factor(covariance, SINGULAR_GLOBAL_PIVOT)
    if status == OK:
        return _Whitening(mean, lower, False)
    bands = len(mean)
    average = np.trace(covariance).real / bands
    identity = np.eye(bands)
    loaded = covariance + DEGENERATE_LOADING * average * identity if average > 0 else identity
    loaded = loaded.astype(covariance.dtype)
    return _Whitening(mean, _lower(loaded), True)


def rx(
    image: ArrayLike,
    *,
    window: Window | None = None,
    background: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    estimator: str = "scm",
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
) -> tuple[Float64, NDArray[np.uint8]]:
    """Scores of the Reed-Xiaoli detector, ``d^H S^-1 d`` with ``d = x - m``, and their status.

    Parameters
    ----------
    image : (rows, cols, bands) or (n, bands) array
    window : int or (inner, outer), optional
        Local detector: m and S of every pixel from its own ring (see `ring_indices`). Without
        it, m and S are those of all usable pixels.
    background : (..., bands) array, optional
        Another image that gives m and S; not together with ``window``.
    covariance : (bands, bands) array, optional
        Fixed S; only m is estimated.
    mask : (rows, cols) or (n,) bool array, optional
        True where a pixel is used; the others are neither scored nor part of m and S.
    estimator : {"scm"}
        Sample covariance with divisor N - 1.
    border : {"shift", "reflect", "valid"}
    singular : {"load", "nan"}
        What happens where S is singular.
    center : bool
        False: m is zero by assumption, and S has divisor N.

    Returns
    -------
    scores : (rows, cols) or (n,) float64 array
    status : uint8 array of the same shape
        0 ok, 1 too few samples (fewer than bands + 1, or bands without ``center``; with a fixed
        covariance none), 2 singular,
        3 non-finite pixel in the window or under test, 4 masked, or at the edge for ``valid``.
        Scores are NaN for 1, 3 and 4.

    Notes
    -----
    Scores do not change when an invertible affine map is applied to the whole image, so all
    work is done on the image whitened by the covariance G of its usable pixels. There a window
    is singular when a Cholesky pivot is not larger than `SINGULAR_PIVOT` times its diagonal
    entry. This decision does not depend on the units of the bands. Where G itself is singular
    (a pivot not larger than `SINGULAR_GLOBAL_PIVOT` times its diagonal entry) every window is,
    because no window spans more than the image does.

    Rule ``load`` replaces a singular S by ``S + 1e-6 G``. Where G is singular, G is first
    loaded by ``1e-10 trace(G) / bands`` on its diagonal, or replaced by the identity when the
    image is constant (all scores are then zero).

    References
    ----------
    I. S. Reed and X. Yu, "Adaptive multiple-band CFAR detection of an optical pattern with
    unknown spectral distribution", IEEE Trans. ASSP 38(10), 1990.
    """
    if estimator != "scm":
        raise ValueError(f"rx: estimator: must be 'scm', got {estimator!r}")
    data = _double(image)
    shape, bands = data.shape[:-1], data.shape[-1]
    flat = data.reshape(-1, bands)
    use = np.ones(len(flat), bool) if mask is None else np.asarray(mask, bool).reshape(-1)
    finite = _finite(flat)
    scores = np.full(len(flat), np.nan)
    status = np.zeros(len(flat), dtype=np.uint8)
    status[~finite] = NON_FINITE
    status[~use] = MASKED
    scored = np.flatnonzero(use & finite)

    if background is None:
        population = flat[use & finite]
    else:
        other = _double(background).reshape(-1, bands)
        population = other[_finite(other)]
    needed = bands + int(center) if covariance is None else 1
    if window is None and len(population) < needed:
        raise ValueError(f"rx: image: needs {needed} usable pixels, got {len(population)}")
    if not len(scored):
        return scores.reshape(shape), status.reshape(shape)
    if covariance is not None:
        origin = population.mean(axis=0) if center else np.zeros(bands)
        to_white = _whitening(origin, _double(covariance))
        if to_white.singular:
            raise ValueError("rx: covariance: must be positive definite, got a singular matrix")
    elif len(population) > int(center):
        to_white = _whitening(*_moments(population, 1, center))
    else:
        to_white = _whitening(population[0], np.zeros((bands, bands)))
    white = to_white(np.where(finite[:, None], flat, np.nan))

    if window is None:
        power = _power(white[scored])
        if to_white.singular:
            # Whitened by its loaded self, S is I minus the small part that the loading added.
            own = _moments(to_white(population), 1, center)[1] + LOADING * np.eye(bands)
            power = _power(_forward(_lower(own), white[scored]))
            status[scored] = SINGULAR
            if singular == "nan":
                power = np.full(len(scored), np.nan)
        scores[scored] = power
        return scores.reshape(shape), status.reshape(shape)

    rows, cols = shape
    for pixel in scored:
        ring = ring_indices(pixel // cols, pixel % cols, rows, cols, window, border)
        if ring is None:
            status[pixel] = MASKED
            continue
        samples = white[ring[use[ring]]]
        if not np.isfinite(samples).all():
            status[pixel] = NON_FINITE
        elif len(samples) < needed:
            status[pixel] = TOO_FEW_SAMPLES
        elif covariance is not None:
            anchored = samples - samples[0]
            centred = white[pixel] - samples[0] - anchored.mean(axis=0)
            scores[pixel] = _power(centred)
        else:
            local_mean, local = _moments(samples, 1, center)
            lower, failed = _factor(local, SINGULAR_PIVOT)
            if failed or to_white.singular:
                status[pixel] = SINGULAR
                if singular == "nan":
                    continue
                lower = _lower(local + LOADING * np.eye(bands))
            scores[pixel] = _power(_forward(lower, (white[pixel] - local_mean)[None]))[0]
    return scores.reshape(shape), status.reshape(shape)

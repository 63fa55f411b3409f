"""Squared Mahalanobis distance to a fixed mean and covariance."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    as_threads,
    empty,
    real_dtype_name,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._fixed import as_pixels, fixed_background


def mahalanobis(x: Array, mean: Array, covariance: Array, *, threads: int | None = None) -> Array:
    """Squared Mahalanobis distance ``(x - mean)^H covariance^-1 (x - mean)``.

    Parameters
    ----------
    x : (..., bands) or (..., locations, bands) array
        Real or complex; integers are promoted to float32.
    mean : (bands,) or (locations, bands) array
        With locations, each has a mean and a covariance of its own, as the patches of PaDiM have;
        for arrays on the host.
    covariance : (bands, bands) or (locations, bands, bands) array
        Symmetric (Hermitian) and positive definite. Mean and covariance have the dtype of ``x`` or
        its double.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    array of the shape of the pixels of ``x``
        Of its library, device and precision, real. Computed as ``|L^-1 (x - mean)|^2`` with the
        Cholesky factor L in float64, so it is never negative.

    Raises
    ------
    ValueError
        Wrong shapes, or a covariance that is not symmetric and positive definite. Of arrays on a
        CUDA device such a covariance gives NaN instead: an error would have to wait for it.
    TypeError
        Arrays that are not numbers, or not of one library and dtype.

    References
    ----------
    T. Defard, A. Setkov, A. Loesch and R. Audigier, "PaDiM: a patch distribution modeling framework
    for anomaly detection and localization", ICPR workshops, 2021, eq. 2, for locations.
    """
    op = "mahalanobis"
    x, mean, covariance = fixed_background(op, x, mean, covariance)
    if mean.ndim == 2 and x.ndim < 2:
        raise ValueError(
            f"{op}: x: must have an axis of locations as the mean has, got shape {tuple(x.shape)}"
        )
    count = as_threads(op, threads)
    if wants_torch(x, mean, covariance):
        from mahal._torch.detectors import mahalanobis as differentiable

        return differentiable(x, mean, covariance, threads=count)
    score = empty(x, tuple(x.shape[:-1]), real_dtype_name(x))
    if 0 not in x.shape:
        score_into(score, x, mean, covariance, count)
    return score


def score_into(score: Array, x: Array, mean: Array, covariance: Array, threads: int) -> None:
    """Run the kernel for one background, or for one at every location."""
    if mean.ndim == 2:
        samples = x.reshape(-1, *x.shape[-2:])
        memory = workspace(samples, _core.mahalanobis_locations_workspace(samples, threads))
        _core.mahalanobis_locations(
            samples, mean, covariance, score.reshape(samples.shape[:-1]), memory, threads, stream(x)
        )
        return
    pixels = as_pixels(x)
    memory = workspace(pixels, _core.mahalanobis_workspace(pixels, threads))
    _core.mahalanobis(pixels, mean, covariance, score, memory, threads, stream(pixels))

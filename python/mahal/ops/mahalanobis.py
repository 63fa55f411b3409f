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
    x : (..., bands) array
        Real or complex; integers are promoted to float32.
    mean : (bands,) array
    covariance : (bands, bands) array
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
    """
    op = "mahalanobis"
    x, mean, covariance = fixed_background(op, x, mean, covariance)
    count = as_threads(op, threads)
    if wants_torch(x, mean, covariance):
        from mahal._torch.detectors import mahalanobis as differentiable

        return differentiable(x, mean, covariance, threads=count)
    score = empty(x, tuple(x.shape[:-1]), real_dtype_name(x))
    if 0 in x.shape:
        return score
    pixels = as_pixels(x)
    memory = workspace(pixels, _core.mahalanobis_workspace(pixels, count))
    _core.mahalanobis(pixels, mean, covariance, score, memory, count, stream(pixels))
    return score

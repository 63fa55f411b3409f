"""Whitening by a fixed mean and covariance."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    as_output,
    as_threads,
    refuse_output,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._fixed import as_pixels, fixed_background


def whiten(
    x: Array,
    mean: Array,
    covariance: Array,
    *,
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Whitened spectra ``L^-1 (x - mean)`` with ``covariance = L L^H``, L lower triangular.

    Parameters
    ----------
    x : (..., bands) array
        Real or complex; integers are promoted to float32.
    mean : (bands,) array
    covariance : (bands, bands) array
        Symmetric (Hermitian) and positive definite. Mean and covariance have the dtype of ``x`` or
        its double.
    out : array of the shape of ``x``, optional
        Contiguous array of the library, device and float dtype of ``x`` that takes the result.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    array of the shape of ``x``
        Of its library, device and dtype. Factor and substitution are in double precision. Over the
        pixels that made mean and covariance the result has mean 0 and covariance I.

    Raises
    ------
    ValueError
        Wrong shapes, or a covariance that is not symmetric and positive definite. Of arrays on a
        CUDA device such a covariance gives NaN instead: an error would have to wait for it.
    TypeError
        Arrays that are not numbers, or not of one library and dtype.
    """
    op = "whiten"
    x, mean, covariance = fixed_background(op, x, mean, covariance)
    count = as_threads(op, threads)
    if wants_torch(x, mean, covariance):
        from mahal._torch.whiten import whiten as differentiable

        refuse_output(op, out)
        return differentiable(x, mean, covariance, threads=count)
    y = as_output(op, "out", out, x, tuple(x.shape))
    if 0 in x.shape:
        return y
    pixels = as_pixels(x)
    memory = workspace(pixels, _core.whiten_workspace(pixels, count))
    _core.whiten(pixels, mean, covariance, y, memory, count, stream(pixels))
    return y

"""Gradients of logarithms of covariance matrices, by the kernel."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import Array, dtype_name, empty, stream, workspace


def covariance_log_backward(
    a: Array, status: Array, grad: Array, loading: float = 0.0, threads: int = 0
) -> Array:
    """Gradient of `mahal.covariance_log`; likewise its derivative in a Hermitian direction.

    Parameters
    ----------
    a : (..., p, p) array
        As it was passed there.
    status : (...,) contiguous array
        As it came back.
    grad : (..., p, p) contiguous array
        Derivative of a number by the logarithms.
    loading : float
        As there.
    threads : int
        CPU threads, 0 for the default.

    Returns
    -------
    (..., p, p) array
        Symmetric or Hermitian: ``dz = Re tr(G^H dA)``. NaN where the status is not 0, but zero
        where all of ``grad`` is.

    References
    ----------
    R. Bhatia, Positive Definite Matrices (2007), section 2.7, for the formula of Daleckii and
    Krein.
    """
    shape = tuple(a.shape)
    found = empty(a, shape, dtype_name(a))
    if 0 not in shape:
        memory = workspace(a, _core.covariance_log_backward_workspace(a, threads))
        _core.covariance_log_backward(a, status, grad, found, memory, loading, threads, stream(a))
    return found

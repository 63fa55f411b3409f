"""Logarithms of covariance matrices."""

from __future__ import annotations

from typing import Any, Literal, overload

from mahal import _core
from mahal._arrays import Array, as_threads, dtype_name, empty, stream, wants_torch, workspace
from mahal.ops._field import as_field


@overload
def covariance_log(
    a: Array,
    *,
    loading: float = ...,
    return_status: Literal[False] = ...,
    threads: int | None = ...,
) -> Array: ...
@overload
def covariance_log(
    a: Array, *, loading: float = ..., return_status: Literal[True], threads: int | None = ...
) -> tuple[Array, Array]: ...
def covariance_log(
    a: Array, *, loading: float = 0.0, return_status: bool = False, threads: int | None = None
) -> Any:
    """Logarithm of every covariance matrix: the same eigenvectors, logarithms of the eigenvalues.

    Parameters
    ----------
    a : (..., p, p) array
        Symmetric or Hermitian matrices, of which the lower triangles and the real parts of the
        diagonals are read.
    loading : float
        Diagonal loading relative to the mean diagonal entry, added first.
    return_status : bool
        Give a map of states as well.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    logarithm : (..., p, p) array
        Of the library, device and dtype of ``a``; NaN where the status is not 0. Computed in
        float64.
    status : (...,) uint8 array
        With ``return_status``: 0 fine, 2 not positive definite to working precision (a pivot not
        above ``p * eps`` times its diagonal entry), 3 a value that is not finite.

    Notes
    -----
    Differentiable in torch, also at repeated eigenvalues: the gradient is symmetric or Hermitian.

    Raises
    ------
    ValueError, TypeError
        Wrong shapes, values and dtypes.

    References
    ----------
    V. Arsigny, P. Fillard, X. Pennec and N. Ayache, SIAM J. Matrix Anal. Appl. 29 (2007).
    """
    op = "covariance_log"
    a = as_field(op, "a", a, differentiable=True)
    count = as_threads(op, threads)
    shape = tuple(a.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"{op}: a: must have shape (..., p, p) with p > 0, got {shape}")
    if not 0 <= loading < float("inf"):
        raise ValueError(f"{op}: loading: must be finite and not negative, got {loading!r}")
    if wants_torch(a):
        from mahal._torch.covariance_log import covariance_log as differentiable

        logarithm, status = differentiable(a, loading=float(loading), threads=count)
        return (logarithm, status) if return_status else logarithm
    logarithm = empty(a, shape, dtype_name(a))
    status = empty(a, shape[:-2], "uint8")
    if 0 not in shape:
        memory = workspace(a, _core.covariance_log_workspace(a, count))
        _core.covariance_log(a, logarithm, status, memory, loading, count, stream(a))
    return (logarithm, status) if return_status else logarithm

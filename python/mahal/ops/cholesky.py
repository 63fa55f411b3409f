"""Batched Cholesky factorisation."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    SingularError,
    as_float,
    as_output,
    as_threads,
    check_choice,
    empty,
    refuse_output,
    stream,
    to_host,
    wants_torch,
    workspace,
)


def cholesky(
    a: Array,
    *,
    loading: float = 0.0,
    singular: str = "raise",
    out: Array | None = None,
    threads: int | None = None,
) -> Array:
    """Lower triangular L with ``L L^H = a + loading * trace(a) / n * I`` for every matrix.

    Parameters
    ----------
    a : (..., n, n) array
        Symmetric or, where complex, Hermitian matrices, of which the lower triangle is read. The
        imaginary part of the diagonal is taken as zero.
    loading : float
        Diagonal loading relative to the mean diagonal entry.
    singular : {"raise", "nan"}
        What happens to matrices that are not positive definite to working precision (a pivot not
        above ``n * eps`` times its diagonal entry) or not finite: `SingularError`, or factors of
        NaN. The other matrices of the batch are untouched either way.
    out : (..., n, n) array, optional
        Contiguous array of the library, device and dtype of ``a`` that takes the result. Saves
        the memory manager's time where factors of one shape are made again and again.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    (..., n, n) array
        Of the library, device and dtype of ``a``, zero above the diagonal, which is real and
        positive.

    Raises
    ------
    SingularError
        With ``singular="raise"``; the text has the number of matrices.
    ValueError, TypeError
        Wrong shapes, values and dtypes.
    """
    op = "cholesky"
    check_choice(op, "singular", singular, ("raise", "nan"))
    a = as_float(op, "a", a, differentiable=True)
    count = as_threads(op, threads)
    shape = tuple(a.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"{op}: a: must have shape (..., n, n) with n > 0, got {shape}")
    if not 0 <= loading < float("inf"):
        raise ValueError(f"{op}: loading: must be finite and not negative, got {loading!r}")
    if wants_torch(a):
        from mahal._torch.cholesky import cholesky as differentiable

        refuse_output(op, out)
        return differentiable(a, loading=float(loading), singular=singular, threads=count)
    factor = as_output(op, "out", out, a, shape)
    if 0 not in shape:
        factor_into(factor, a, loading, singular, count)
    return factor


def factor_into(factor: Array, a: Array, loading: float, singular: str, threads: int) -> None:
    """Run the kernel, and raise where that is the rule for matrices that have no factor."""
    status = empty(a, a.shape[:-2], "uint8")
    memory = workspace(a, _core.cholesky_workspace(a, threads))
    _core.cholesky(a, factor, status, memory, loading, threads, stream(a))
    if singular == "raise":
        failed = to_host(status) != 0
        if failed.any():
            raise SingularError(
                f"cholesky: a: must be positive definite and finite, got {failed.sum()} of "
                f"{failed.size} matrices that are not"
            )

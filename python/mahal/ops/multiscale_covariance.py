"""Covariances of nested windows around every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from mahal._arrays import Array, check_choice, library_of
from mahal.ops.covariance_log import covariance_log
from mahal.ops.local_covariance import local_covariance

FORMS = ("matrix", "packed", "log")
"""Forms of `multiscale_covariance`."""


def pack_upper(matrices: Array, *, off_diagonal: float = 1.0) -> Array:
    """Upper triangles row by row: (0, 0), (0, 1) ... (0, p - 1), (1, 1) ... (p - 1, p - 1).

    Parameters
    ----------
    matrices : (..., p, p) array
    off_diagonal : float
        Factor of the entries off the diagonal.

    Returns
    -------
    (..., p (p + 1) / 2) array
    """
    n = matrices.shape[-1]
    if library_of(matrices) == "torch":
        import torch

        # Made where the matrices are: nothing is copied from the host, which would wait.
        row, col = torch.triu_indices(n, n, device=matrices.device).unbind()
        packed = matrices[..., row, col]
        if off_diagonal == 1.0:
            return packed
        return packed * packed.new_ones(len(row)).masked_fill(row != col, off_diagonal)
    rows = [i for i in range(n) for _ in range(i, n)]
    cols = [j for i in range(n) for j in range(i, n)]
    packed = matrices[..., rows, cols]
    if off_diagonal == 1.0:
        return packed
    factors = [1.0 if i == j else off_diagonal for i, j in zip(rows, cols, strict=True)]
    scale: Any = np.asarray(factors, dtype=packed.dtype)
    if library_of(packed) == "cupy":
        import cupy

        scale = cupy.asarray(scale)
    return packed * scale


@contextmanager
def _own_errors(op: str) -> Iterator[None]:
    """Errors of the functions that are called name ``op`` and its argument."""
    try:
        yield
    except (TypeError, ValueError) as error:
        _, argument, rule = str(error).split(": ", 2)
        if argument == "window":
            argument = "windows"
        raise type(error)(f"{op}: {argument}: {rule}") from None


def multiscale_covariance(
    image: Array,
    windows: list[Any],
    *,
    form: str = "matrix",
    border: str = "shift",
    ddof: int = 1,
    mask: Array | None = None,
    loading: float = 0.0,
    threads: int | None = None,
) -> Array:
    """Covariances of several windows around every pixel, as features of the pixel.

    Parameters
    ----------
    image : (..., rows, cols, bands) array
        Real or complex; integers are promoted to float32.
    windows : list of int or (inner, outer)
        The scales; odd sides in pixels, as in `local_covariance`.
    form : {"matrix", "packed", "log"}
        ``matrix``: the matrices. ``packed``: their upper triangles, row by row. ``log``: the upper
        triangles of their logarithms with sqrt(2) times the entries off the diagonal, so that
        the Euclidean distance of two such vectors is the log-Euclidean distance of the matrices.
    border : {"shift", "reflect", "valid"}
        As in `local_covariance`.
    ddof : int
        Subtracted from the number of samples in the divisor.
    mask : (..., rows, cols) bool array, optional
        True where a pixel is used as a sample.
    loading : float
        With ``log``, diagonal loading relative to the mean diagonal entry, so that windows with
        fewer samples than bands have a logarithm.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    (..., rows, cols, scales, bands, bands) array
        Or (..., rows, cols, scales, bands (bands + 1) / 2). Of the library, device and dtype of
        the image; matrices are Hermitian where that is complex. NaN where a window has no
        covariance, or with ``log`` one that is not positive definite.

    Raises
    ------
    ValueError, TypeError
        Wrong shapes, values and dtypes.

    References
    ----------
    N. He, M. E. Paoletti, J. M. Haut et al., IEEE Trans. Geosci. Remote Sens. 57 (2019), for
    multiscale covariance maps; V. Arsigny et al., SIAM J. Matrix Anal. Appl. 29 (2007), for the
    vectors of logarithms.
    """
    op = "multiscale_covariance"
    check_choice(op, "form", form, FORMS)
    if not isinstance(windows, list) or not windows:
        raise ValueError(f"{op}: windows: must be a list of windows, got {windows!r}")
    if form != "log" and loading != 0:
        raise ValueError(f"{op}: loading: is for form 'log', got {loading!r}")
    with _own_errors(op):
        _, covariance = local_covariance(
            image, windows, border=border, ddof=ddof, mask=mask, threads=threads
        )
    if form == "matrix":
        return covariance
    if form == "packed":
        return pack_upper(covariance)
    with _own_errors(op):
        logarithm = covariance_log(covariance, loading=loading, threads=threads)
    return pack_upper(logarithm, off_diagonal=2.0**0.5)

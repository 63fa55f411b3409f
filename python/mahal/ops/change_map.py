"""Change maps between two images by their window covariances."""

from __future__ import annotations

from typing import Any, Literal, overload

from mahal import _core
from mahal._arrays import (
    Array,
    as_mask,
    as_side,
    as_threads,
    check_choice,
    check_rank,
    dtype_name,
    empty,
    stream,
    workspace,
)
from mahal.ops._field import as_field, real_dtype
from mahal.ops.covariance_distance import check_metric

BORDERS = ("clip", "shift", "reflect", "valid")
"""Border rules of `change_map`."""


def as_pair(
    op: str, first: Array, second: Array, *, differentiable: bool = False
) -> tuple[Array, Array]:
    """Two images of one library, dtype and shape, with an axis of channels."""
    first = as_field(op, "first", first, differentiable=differentiable)
    check_rank(op, "first", first, 2, 3)
    second = as_field(op, "second", second, like=first, differentiable=differentiable)
    if dtype_name(first) != dtype_name(second):
        raise TypeError(
            f"{op}: second: must have the dtype of first ({dtype_name(first)}), "
            f"got {dtype_name(second)}"
        )
    if tuple(first.shape) != tuple(second.shape):
        raise ValueError(
            f"{op}: second: must have the shape of first {tuple(first.shape)}, "
            f"got {tuple(second.shape)}"
        )
    if first.ndim == 2:
        first, second = first[:, :, None], second[:, :, None]
    return first, second


@overload
def change_map(
    first: Array,
    second: Array,
    window: int,
    *,
    metric: str = ...,
    squared: bool = ...,
    center: bool = ...,
    ddof: int | None = ...,
    border: str = ...,
    mask: Array | None = ...,
    compat: str | None = ...,
    return_status: Literal[False] = ...,
    threads: int | None = ...,
) -> Array: ...
@overload
def change_map(
    first: Array,
    second: Array,
    window: int,
    *,
    metric: str = ...,
    squared: bool = ...,
    center: bool = ...,
    ddof: int | None = ...,
    border: str = ...,
    mask: Array | None = ...,
    compat: str | None = ...,
    return_status: Literal[True],
    threads: int | None = ...,
) -> tuple[Array, Array]: ...
def change_map(
    first: Array,
    second: Array,
    window: int,
    *,
    metric: str = "frobenius",
    squared: bool = True,
    center: bool = True,
    ddof: int | None = None,
    border: str = "clip",
    mask: Array | None = None,
    compat: str | None = None,
    return_status: bool = False,
    threads: int | None = None,
) -> Any:
    """How far the covariances of two images are apart in the window of every pixel.

    No covariance is written: one score per pixel leaves the kernel.

    Parameters
    ----------
    first, second : (rows, cols) or (rows, cols, channels) arrays
        Real or complex images of one shape and dtype; a complex image has Hermitian covariances.
    window : int
        Odd side in pixels, at most that of the image.
    metric : str
        As in `covariance_distance`, with ``first`` for A and ``second`` for B. ``wishart`` and
        ``box_m`` take the samples of each window for looks, less one with ``center``.
    squared : bool
        Square the scores that are distances, as published; the others have no root.
    center : bool
        Subtract the mean of the window; without it second moments about zero are compared.
    ddof : int, optional
        Subtracted from the number of samples in the divisor; by default 1 with ``center`` and 0
        without.
    border : {"clip", "shift", "reflect", "valid"}
        ``clip``: windows are cut at the edge of the image and have fewer samples there.
        ``shift``: they slide inside the image. ``reflect``: the image is mirrored about its edge
        pixels. ``valid``: NaN where a window is not complete.
    mask : (rows, cols) bool array, optional
        True where a pixel is used as a sample, in both images.
    compat : {"muzeau"}, optional
        The published divisor, channels - 1 in place of samples - 1 (M. Muzeau et al., 2022), for
        ``frobenius`` and ``logeuclid`` with centred, clipped windows of two channels or more.
    return_status : bool
        Give a map of states as well.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    score : (rows, cols) array
        Real, of the library and precision of the images; NaN where the status is not 0. Every
        window is summed on its own, in float64.
    status : (rows, cols) uint8 array
        With ``return_status``: 0 fine, 1 a window with no more samples than ``ddof``, 2 a
        covariance that is not positive definite (a pivot below 1e-10 of its variance;
        ``frobenius`` does not ask for it), 3 a value in the window that is not finite or a score
        that overflows, 4 no window at the edge with ``valid``.

    Raises
    ------
    ValueError
        Wrong shapes, windows, names, or options that contradict ``compat``.
    TypeError
        Wrong dtypes, arrays of several libraries, ``box_m`` of complex images.

    References
    ----------
    M. Muzeau, C. Ren, S. Angelliaume, M. Datcu and J.-P. Ovarlez, IEEE Open J. Signal Process. 3
    (2022), for the squared Frobenius score and its use on SAR images.
    """
    op = "change_map"
    first, second = as_pair(op, first, second)
    check_metric(op, metric, first)
    check_choice(op, "border", border, BORDERS)
    side = as_side(op, window)
    mask = as_mask(op, mask, first)
    if ddof is not None and (isinstance(ddof, bool) or not isinstance(ddof, int)):
        raise TypeError(f"{op}: ddof: must be a whole number, got {ddof!r}")
    if ddof is not None and ddof < 0:
        raise ValueError(f"{op}: ddof: must not be negative, got {ddof}")
    if compat is not None:
        check_choice(op, "compat", compat, ("muzeau",))
        check_choice(op, "metric", metric, ("frobenius", "logeuclid"))
        check_choice(op, "border", border, ("clip",))
        if not center or ddof is not None:
            raise ValueError(
                f"{op}: compat: 'muzeau' is centred with a divisor of its own, got "
                f"center={center!r}, ddof={ddof!r}"
            )
    degrees = (1 if center else 0) if ddof is None else ddof
    count = as_threads(op, threads)
    rows, cols, _ = first.shape
    options = (metric, side, border, bool(squared), bool(center), degrees, compat is not None)
    memory = workspace(first, _core.change_map_workspace(first, second, *options, count))
    score = empty(first, (rows, cols), real_dtype(first))
    status = empty(first, (rows, cols), "uint8")
    _core.change_map(first, second, mask, score, status, memory, *options, count, stream(first))
    return (score, status) if return_status else score

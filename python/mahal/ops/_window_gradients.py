"""Kernels of the gradients of windowed ops, on arrays of any library."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import Array, dtype_name, empty, stream, workspace


def local_covariance_backward(
    image: Array,
    mask: Array | None,
    mean_gradient: Array | None,
    covariance_gradient: Array | None,
    windows: list[tuple[int, int]],
    border: str,
    ddof: int,
    center: bool,
    threads: int,
    *,
    gradient: Array | None = None,
) -> Array:
    """Gradient of the image from those of its (rows, cols, windows, ...) means and covariances.

    ``gradient``, where given, is contiguous and takes the result.
    """
    if gradient is None:
        gradient = empty(image, tuple(image.shape), dtype_name(image))
    options = (windows, border, ddof, center, threads)
    memory = workspace(image, _core.local_covariance_backward_workspace(image, *options))
    _core.local_covariance_backward(
        image,
        mask,
        mean_gradient,
        covariance_gradient,
        gradient,
        memory,
        *options,
        stream(image),
    )
    return gradient

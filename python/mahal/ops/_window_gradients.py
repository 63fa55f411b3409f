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


def window_scores_backward(
    image: Array,
    target: Array | None,
    covariance: Array | None,
    mask: Array | None,
    status: Array,
    score_gradient: Array,
    needs: tuple[bool, bool],
    score: str,
    window: tuple[int, int],
    border: str,
    center: bool,
    threads: int,
) -> tuple[Array, Array | None, Array | None]:
    """Gradients of image, targets and covariance from that of (rows, cols, maps) local scores.

    ``score`` is "rx" or the name of one with targets. Of targets and covariance, ``needs`` tells
    which are wanted; they come in float64.
    """
    gradient = empty(image, tuple(image.shape), dtype_name(image))
    to_target = (
        empty(image, tuple(target.shape), "float64") if needs[0] and target is not None else None
    )
    to_covariance = (
        empty(image, tuple(covariance.shape), "float64")
        if needs[1] and covariance is not None
        else None
    )
    kind = "ace" if score == "rx" else score
    memory = workspace(
        image,
        _core.window_scores_backward_workspace(
            image, target, covariance, kind, window, border, center, threads
        ),
    )
    _core.window_scores_backward(
        image,
        target,
        covariance,
        mask,
        status,
        score_gradient,
        gradient,
        to_target,
        to_covariance,
        memory,
        kind,
        window,
        border,
        center,
        threads,
        stream(image),
    )
    return gradient, to_target, to_covariance

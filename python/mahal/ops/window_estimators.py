"""Covariance estimators beyond the sample covariance, for the window of every pixel."""

from __future__ import annotations

from collections.abc import Callable

from mahal import _core
from mahal._arrays import Array, empty, real_dtype_name, stream, workspace
from mahal.ops._estimators import Estimation, report_not_converged


def covariance_maps(
    op: str,
    image: Array,
    windows: list[tuple[int, int]],
    estimation: Estimation,
    mask: Array | None,
    results: tuple[Array, Array],
    border: str,
    ddof: int,
    center: bool,
    count: int,
) -> Array:
    """Fill mean and covariance maps with an axis of windows, and return those of the status.

    The arguments are checked already.
    """
    memory = workspace(
        image,
        _core.window_estimators_workspace(
            op, image, windows, border, estimation, ddof, center, count
        ),
    )
    status = empty(image, results[0].shape[:-1], "uint8")
    _core.window_estimators(
        op,
        image,
        mask,
        *results,
        None,
        status,
        memory,
        windows,
        border,
        estimation,
        ddof,
        center,
        count,
        stream(image),
        None,
    )
    report_not_converged(op, status, depth=5)
    return status


def window_scores(
    op: str,
    image: Array,
    window: tuple[int, int],
    estimation: Estimation,
    mask: Array | None,
    *,
    border: str,
    center: bool,
    count: int,
    progress: Callable[[int, int], object] | None,
) -> tuple[Array, Array]:
    """Squared Mahalanobis distance of every pixel to its window, and the status."""
    rows, cols, _ = image.shape
    shape = (rows, cols, 1)
    ddof = 1 if center else 0
    memory = workspace(
        image,
        _core.window_estimators_workspace(
            op, image, [window], border, estimation, ddof, center, count
        ),
    )
    scores = empty(image, shape, real_dtype_name(image))
    status = empty(image, shape, "uint8")
    _core.window_estimators(
        op,
        image,
        mask,
        None,
        None,
        scores,
        status,
        memory,
        [window],
        border,
        estimation,
        ddof,
        center,
        count,
        stream(image),
        progress,
    )
    return scores[:, :, 0], status[:, :, 0]

"""Counting the samples behind each pixel's statistics."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Border = Literal["shift", "reflect", "valid", "clip"]


def window_samples(
    shape: tuple[int, int],
    window: int | tuple[int, int],
    *,
    border: Border = "shift",
    mask: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Number of background samples in the window of every pixel.

    Parameters
    ----------
    shape : (rows, cols)
        Size of the image.
    window : int or (inner, outer)
        Odd sizes in pixels; one number is a window without a guard.
    border : {"shift", "reflect", "valid", "clip"}
        Border rule of `mahal.rx`, and the cut windows of `mahal.change_map`. With "reflect"
        mirrored pixels count each time they appear.
    mask : ndarray of bool (rows, cols), optional
        True marks the pixels that are used.

    Returns
    -------
    ndarray of int64 (rows, cols)
        Counts; 0 outside the interior for ``border="valid"``.

    Raises
    ------
    ValueError
        Sizes that are even, inverted or larger than the image, or a mask of another shape.
    """
    rows, cols = shape
    inner, outer = (0, window) if isinstance(window, (int, np.integer)) else window
    if outer < 1 or outer % 2 == 0 or inner < 0 or (inner > 0 and inner % 2 == 0):
        raise ValueError(f"window_samples: window: sizes must be odd, got {window}")
    if inner >= outer:
        raise ValueError(f"window_samples: window: inner must be below outer, got {window}")
    if outer > min(rows, cols):
        raise ValueError(
            f"window_samples: window: must fit the image of {rows} x {cols} pixels, got {window}"
        )
    used = np.ones(shape, dtype=bool) if mask is None else np.asarray(mask)
    if used.shape != (rows, cols) or used.dtype != np.bool_:
        raise ValueError(
            f"window_samples: mask: must be boolean {(rows, cols)}, got {used.dtype} {used.shape}"
        )
    if border == "shift":
        return _box_count(used, outer) - _box_count(used, inner)
    reach = outer // 2
    if border in ("reflect", "clip"):
        padded = np.pad(used, reach, mode="reflect" if border == "reflect" else "constant")
        count = _box_count(padded, outer) - _box_count(padded, inner)
        return count[reach : reach + rows, reach : reach + cols]
    if border == "valid":
        count = np.zeros(shape, dtype=np.int64)
        interior = (slice(reach, rows - reach), slice(reach, cols - reach))
        both = _box_count(used, outer) - _box_count(used, inner)
        count[interior] = both[interior]
        return count
    raise ValueError(
        f"window_samples: border: must be shift, reflect, valid or clip, got {border!r}"
    )


def _box_count(used: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.int64]:
    """Count of True in the box of each pixel, the box slid inside the image at its borders."""
    total = np.zeros((used.shape[0] + 1, used.shape[1] + 1), dtype=np.int64)
    total[1:, 1:] = used.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    low = [np.clip(np.arange(n) - width // 2, 0, n - width) for n in used.shape]
    top, left = np.ix_(low[0], low[1])
    bottom, right = top + width, left + width
    return total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]

"""Global and local RX in one score: the detector that is used when none is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from mahal._arrays import Array, as_float, as_mask, check_rank, library_of, to_host
from mahal.ops.mean_covariance import mean_covariance
from mahal.ops.rx import rx

COMPONENTS = 10
WINDOW = (11, 31)
NOT_FINITE = 3


def fused_rx(
    image: Array,
    *,
    components: int = COMPONENTS,
    window: tuple[int, int] = WINDOW,
    mask: Array | None = None,
    singular: str = "load",
    return_status: bool = False,
    progress: Callable[[int, int], object] | None = None,
    threads: int | None = None,
) -> Array | tuple[Array, Array]:
    """Anomalies of the whole scene and of the neighbourhood, in one score.

    Global RX finds what is unlike anything in the scene, local RX on the leading principal
    components what is unlike its surroundings. The score is the geometric mean of the two, each in
    units of its median over the scene.

    Parameters
    ----------
    image : (rows, cols, bands) array
        Real; integers are promoted to float32.
    components : int
        Leading principal components for local RX; all of them where the image has fewer.
    window : (inner, outer)
        Odd sides in pixels for local RX. Images smaller than ``outer`` take the largest window
        that fits, with ``inner`` in proportion.
    mask : (rows, cols) bool array, optional
        True where a pixel is used; the others get no score.
    singular : {"load", "nan", "raise"}
        As in `rx`.
    return_status : bool
        Also return the status of every pixel, the larger one of the two scores.
    progress : callable, optional
        Called as in `rx`, during the local scores.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    (rows, cols) array
        Of the library, device and precision of the image, at least 0, near 1 for an ordinary pixel,
        higher for an anomaly; NaN where a pixel has a value that is not finite or is masked. It
        has no law that real scenes follow: take thresholds from the scores of a scene.
    status : (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError
        Wrong shapes, or values out of range.
    TypeError
        Arrays that are not real numbers, or not of one library.

    References
    ----------
    I. S. Reed and X. Yu, IEEE Trans. Acoust. Speech Signal Process. 38 (1990), for RX. The choice
    of components, window and combination is measured by bench/default_detector.py, with every scene
    left out of its own choice.
    """
    op = "fused_rx"
    image = as_float(op, "image", image)
    check_rank(op, "image", image, 3)
    if "complex" in str(image.dtype):
        raise TypeError(f"{op}: image: must be real, got {image.dtype}")
    if isinstance(components, bool) or not isinstance(components, int) or components < 1:
        raise ValueError(
            f"{op}: components: must be a whole number of at least 1, got {components!r}"
        )
    if not isinstance(window, tuple):
        raise ValueError(f"{op}: window: must be (inner, outer), got {window!r}")
    mask = as_mask(op, mask, image)
    module = sys.modules[library_of(image) or "numpy"]
    finite = module.isfinite(image).all(-1)
    used = finite if mask is None else finite & mask
    options: dict[str, Any] = {
        "mask": used, "singular": singular, "return_status": True, "threads": threads,
    }  # fmt: skip
    whole, whole_status = rx(image, **options)
    near, near_status = rx(
        _leading(image, components, used),
        window=fitting(window, min(image.shape[:2])),
        progress=progress,
        **options,
    )
    score = (_in_medians(whole) * _in_medians(near)) ** 0.5
    if not return_status:
        return score
    status = module.maximum(whole_status, near_status)
    status[~finite if mask is None else ~finite & mask] = NOT_FINITE
    return score, status


def fitting(window: tuple[int, int], side: int) -> tuple[int, int]:
    inner, outer = window
    if outer <= side:
        return window
    largest = side - 1 + side % 2
    return max(1, min(largest - 2, round(inner * largest / outer) // 2 * 2 + 1)), largest


def _leading(image: Array, components: int, mask: Array | None) -> Array:
    """Principal components with the largest variances, about the mean of the scene."""
    bands = image.shape[2]
    if components >= bands:
        return image
    mean, covariance = mean_covariance(image, mask=mask)
    _, axes = np.linalg.eigh(to_host(covariance).astype(np.float64))
    chosen = np.ascontiguousarray(axes[:, bands - components :])
    module = sys.modules[library_of(image) or "numpy"]
    axes_there = module.asarray(chosen, dtype=image.dtype, **_device(image))
    return (image - mean) @ axes_there


def _device(array: Array) -> dict[str, Any]:
    return {"device": array.device} if library_of(array) == "torch" else {}


def _in_medians(scores: Array) -> Array:
    module = sys.modules[library_of(scores) or "numpy"]
    known = scores[~module.isnan(scores)]
    median = float(module.median(known)) if len(known) else 0.0
    # A scene of one spectrum scores zero everywhere.
    return scores / median if median > 0 else scores

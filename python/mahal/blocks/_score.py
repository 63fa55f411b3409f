"""Scores of one block of a scene, as the block has them within the whole scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

import mahal
from mahal import significance
from mahal.blocks._moments import STRIP_BYTES, Background

Array = npt.NDArray[Any]

SCORED, TOO_FEW, SINGULAR, NOT_FINITE, LEFT_OUT = 0, 1, 2, 3, 4


def score_windows(
    op: str,
    block: Array,
    mask: Array | None,
    target: Array | None,
    options: Mapping[str, Any],
) -> tuple[Array, Array]:
    """Scores and status of `mahal.rx`, `ace` or `matched_filter` with a window."""
    bands = block.shape[2]
    plain = options.get("estimator", "scm") == "scm" and options.get("covariance") is None
    needed = bands + int(options.get("center", True)) if plain else 1
    used = usable(block, mask)
    arguments = (block,) if target is None else (block, target)
    if int(used.sum()) >= needed:
        scores, status = getattr(mahal, op)(*arguments, mask=mask, return_status=True, **options)
        return scores, status
    # Too few pixels for the statistics of the block, which only stand for those of the scene: no
    # window has enough of them.
    window, border = options["window"], options.get("border", "shift")
    status = np.full(used.shape, TOO_FEW, np.uint8)
    bad = np.asarray(~np.isfinite(block).all(axis=-1))
    if mask is not None:
        bad &= mask
    reached = significance.window_samples(used.shape, window, border=border, mask=bad)
    status[reached > 0] = NOT_FINITE
    if border == "valid":
        inside = significance.window_samples(used.shape, window, border=border)
        status[inside == 0] = LEFT_OUT
    status[bad] = NOT_FINITE
    if mask is not None:
        status[~mask] = LEFT_OUT
    maps = () if target is None or target.ndim == 1 or options.get("subspace") else (len(target),)
    real = np.empty(0, float_dtype(block.dtype)).real.dtype
    return np.full((*used.shape, *maps), np.nan, real), status


def score_global(
    op: str,
    block: Array,
    mask: Array | None,
    target: Array | None,
    background: Background,
    options: Mapping[str, Any],
) -> tuple[Array, Array]:
    """The same with the statistics of the scene."""
    rows, cols, bands = block.shape
    mean, covariance = aligned(background.mean), aligned(background.covariance)
    threads, singular = options.get("threads"), options.get("singular", "load")
    kept = {k: v for k, v in options.items() if k in ("signed", "subspace", "normalized")}
    status = np.full((rows, cols), SINGULAR if background.singular else SCORED, np.uint8)
    kind = float_dtype(block.dtype)
    double = np.result_type(kind, np.float64)
    step = max(1, STRIP_BYTES // (cols * bands * double.itemsize))
    strips = []
    for row in range(0, rows, step):
        strip = block[row : row + step]
        used = usable(strip, None if mask is None else mask[row : row + step])
        if target is None:
            scores = mahal.mahalanobis(
                strip.astype(kind, copy=False), mean, covariance, threads=threads
            )
        else:
            # In double precision, as the given mean of a single sample has the type of the pixels.
            scores = getattr(mahal, "matched_filter" if op == "cem" else op)(
                strip.astype(double),
                target.astype(double),
                background=mean[None].astype(double),
                covariance=covariance,
                threads=threads,
                **kept,
            )
        scores = scores.astype(np.empty(0, kind).real.dtype, copy=False)
        scores[~used] = np.nan
        strips.append(scores)
        status[row : row + step][~used] = NOT_FINITE
    if mask is not None:
        status[~mask] = LEFT_OUT
    whole = np.concatenate(strips)
    if background.singular and singular == "nan":
        whole[:] = np.nan
    return whole, status


def project(block: Array, mean: Array, axes: Array) -> Array:
    """Coordinates of the pixels along some axes about the mean, in their own precision."""
    return np.asarray((block - mean) @ axes)


def aligned(array: Array) -> Array:
    """An array that the kernels take: what comes from another process may lie at any address."""
    return np.require(array, requirements=["C", "A"])


def usable(block: Array, mask: Array | None) -> npt.NDArray[np.bool_]:
    """Pixels that are finite and not masked."""
    used: npt.NDArray[np.bool_] = np.asarray(np.isfinite(block).all(axis=-1))
    return used if mask is None else used & mask


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """What the ops make of an image of this dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iu" or dtype == np.float16:
        return np.dtype(np.float32)
    native: np.dtype[Any] = dtype.newbyteorder("=")
    return native

"""Fitted models on scenes in blocks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from mahal.blocks._lazy import Output, apply, given, mask_of, reduce_blocks
from mahal.blocks._moments import Moments, background_of, merge_all, moments_of
from mahal.blocks._score import aligned, usable

Array = npt.NDArray[Any]


def score(model: Any, image: Any, *, mask: Any | None = None) -> Any:
    """Score a scene in blocks with a fitted model.

    Parameters
    ----------
    model : AnomalyDetector
        A fitted model of `mahal.models` whose scores depend on a pixel and what is around it. Those
        that compare with the mean and covariance of the scene (``window=None``) take one more pass
        over it, when the function is called.
    image : (rows, cols, bands) dask array or DataArray
    mask : (rows, cols) bool array, optional
        True where a pixel is used.

    Returns
    -------
    lazy (rows, cols) array
        float32; NaN where a pixel is masked or has a value that is not finite.

    Raises
    ------
    ModelError
        The model is not fitted, or scores an image as a whole.
    ValueError
        Another number of bands.
    """
    op = f"{type(model).__name__}.score"
    found = given(op, "image", image)
    lazy_mask = mask_of(op, mask, found)
    model._check_fitted("score")
    model._check_bands(op, found.data.shape[2])
    halo = model._reach()
    statistics = []
    if model._needs_scene():
        call = partial(feature_moments, model)
        for moments in reduce_blocks(call, _merge_lists, found.data, lazy_mask):
            known = background_of(op, moments)
            statistics.append((known.mean, known.covariance))
    output = Output(np.dtype(np.float32))
    shared = (model, statistics)
    (result,) = apply(model_scores, [found.data], lazy_mask, halo, [output], shared)
    return found.back(result, type(model).__name__)


def feature_moments(model: Any, block: Array, mask: Array | None) -> list[Moments]:
    """Moments of the features of a model in a block."""
    used = usable(block, mask)
    if not used.any():
        return []
    features = model._scene_features(model._read("score", block.astype(np.float32), used))
    return [moments_of(values[:, None], None) for values in features]


def _merge_lists(parts: list[list[Moments]]) -> list[Moments]:
    """Feature by feature; a block without pixels has none."""
    return [merge_all(same) for same in zip(*(part for part in parts if part), strict=True)]


def model_scores(
    blocks: tuple[Array, ...], mask: Array | None, shared: tuple[Any, Any]
) -> tuple[Array, ...]:
    """Scores of a block by a model."""
    model, statistics = shared
    used = usable(blocks[0], mask)
    if not used.any():
        return (np.full(used.shape, np.nan, np.float32),)
    pixels = model._read("score", blocks[0].astype(np.float32), used)
    known = [(aligned(mean), aligned(covariance)) for mean, covariance in statistics]
    return (model._block_score(pixels, known),)

"""Detectors and models on scenes that are larger than memory, block by block.

Images are dask arrays (rows, cols, bands) or xarray.DataArrays, such as `mahal.scenes.open` gives;
results are lazy ones of the same kind, a DataArray with the coordinates and attributes of the
image. Every block is scored with as many pixels around it as its windows reach, and trimmed.
Statistics of the whole scene take one pass over it, which runs when the function is called, with
dask's current scheduler: threads, or a `dask.distributed.Client`.

What a DataArray declares missing (its attribute ``nodata``) is masked.
"""

from mahal.blocks._models import score
from mahal.blocks._ops import (
    ace,
    cem,
    change_map,
    fused_rx,
    local_covariance,
    matched_filter,
    mean_covariance,
    multiscale_covariance,
    rx,
    spectral_angle,
    structural_similarity,
)

__all__ = [
    "ace",
    "cem",
    "change_map",
    "fused_rx",
    "local_covariance",
    "matched_filter",
    "mean_covariance",
    "multiscale_covariance",
    "rx",
    "score",
    "spectral_angle",
    "structural_similarity",
]

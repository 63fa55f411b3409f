"""Functions of blocks over dask arrays: overlap, one task per block, trim."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mahal.blocks._score import aligned
from mahal.scenes._lazy import band_dimension, big, opened_mask

Array = npt.NDArray[Any]
Lazy = Any
"""A dask array."""


class Given(NamedTuple):
    """An image as a dask array with the bands last and in one piece."""

    data: Lazy
    labels: Any | None  # the DataArray that it came as
    bands: Any | None  # its dimension of the bands

    @property
    def in_memory(self) -> bool:
        """Whether a DataArray had its values in memory, and results are to have them too."""
        return self.labels is not None and self.labels.chunks is None

    @property
    def threads(self) -> int | None:
        """For each block: as many as there are for a single one, else one, dask has the others."""
        return None if self.in_memory else 1

    def back(self, data: Lazy, name: str, more: Sequence[str] = ()) -> Any:
        """A result as what the image came as; ``more`` are its dimensions after the pixels."""
        if self.labels is None:
            return data
        if self.in_memory:
            data = data.compute(scheduler="synchronous")
        dims = [dim for dim in self.labels.dims if dim != self.bands]
        kept = {*dims, *more}
        coords = {
            key: coord for key, coord in self.labels.coords.items() if set(coord.dims) <= kept
        }
        return big("xarray").DataArray(
            data, dims=[*dims, *more], coords=coords, attrs=dict(self.labels.attrs), name=name
        )


def is_labelled(image: Any) -> bool:
    """Whether this is a DataArray."""
    xarray = sys.modules.get("xarray")
    return xarray is not None and isinstance(image, xarray.DataArray)


def given(op: str, name: str, image: Any, *ranks: int) -> Given:
    """The image of a call, checked; a DataArray of rank 3 gets its bands last."""
    labels = bands = None
    data = image
    if is_labelled(image):
        bands = band_dimension(image.dims) if image.ndim == 3 else None
        if bands is not None:
            image = image.transpose(*(dim for dim in image.dims if dim != bands), bands)
        labels, data = image, image.data
        if image.chunks is None:
            data = big("dask.array").from_array(np.asarray(data), chunks=-1)
    array = big("dask.array")
    if not isinstance(data, array.Array):
        raise TypeError(
            f"{op}: {name}: must be a dask array or a DataArray, got {type(image).__name__}"
        )
    ranks = ranks or (3,)
    if data.ndim not in ranks:
        rule = " or ".join(str(rank) for rank in ranks)
        raise ValueError(f"{op}: {name}: must have {rule} axes, got shape {data.shape}")
    if 0 in data.shape or any(np.isnan(n) for n in data.shape):
        raise ValueError(f"{op}: {name}: must have pixels and bands, got shape {data.shape}")
    if data.dtype.kind not in "fiuc":
        raise TypeError(f"{op}: {name}: must hold numbers, got {data.dtype}")
    if data.ndim == 3:
        data = data.rechunk({2: -1})
    return Given(data, labels, bands)


def mask_of(op: str, mask: Any, image: Given) -> Lazy | None:
    """The mask of a call as a dask array, without the pixels that a DataArray declares missing."""
    found = None
    pixels = image.data.shape[:2]
    if mask is not None:
        array = big("dask.array")
        data = mask.data if is_labelled(mask) else mask
        data = data if isinstance(data, array.Array) else array.asarray(np.asarray(data))
        if data.dtype != np.bool_:
            raise TypeError(f"{op}: mask: must be boolean, got {data.dtype}")
        if data.shape != pixels:
            raise ValueError(
                f"{op}: mask: must have the shape of the pixels {pixels}, got {data.shape}"
            )
        found = data
    if image.labels is not None:
        declared = opened_mask(image.labels.copy(data=image.data, deep=False))
        if declared is not None:
            found = declared if found is None else found & declared
    return None if found is None else found.rechunk(image.data.chunks[:2])


class Output(NamedTuple):
    """Dtype of one result and its axes after those of the pixels."""

    dtype: np.dtype[Any]
    trailing: tuple[int, ...] = ()


def apply(
    call: Callable[..., tuple[Array, ...]],
    images: Sequence[Lazy],
    mask: Lazy | None,
    halo: int,
    outputs: Sequence[Output],
    shared: Any = None,
) -> tuple[Lazy, ...]:
    """``call(blocks, mask, shared)`` for every block, with so many pixels around it.

    At the edge of the scene nothing is added: there a block ends where the scene does, so that
    rules for borders mean the same for both. Blocks get at least one pixel more than the halo: the
    window of every pixel that is kept then lies in its block as it lies in the scene, one that
    slides at the border included.
    """
    array, delayed, overlap = big("dask.array"), big("dask.delayed"), big("dask.array.overlap")
    chunks = tuple(
        overlap.ensure_minimum_chunksize(halo + 1, sizes) for sizes in images[0].chunks[:2]
    )
    arrays = [*images] if mask is None else [*images, mask]
    arrays = [one.rechunk((*chunks, *one.chunks[2:])) for one in arrays]
    if halo:
        arrays = [
            overlap.overlap(one, depth={0: halo, 1: halo}, boundary="none", allow_rechunk=False)
            for one in arrays
        ]
    inner = np.zeros((len(chunks[0]), len(chunks[1])), dtype=[("rows", "i4"), ("cols", "i4")])
    inner["rows"][1:] = inner["cols"][:, 1:] = halo
    sizes = [array.from_array(np.array(n), chunks=1) for n in chunks]
    operands: list[Any] = [array.from_array(inner, chunks=1), "ij", sizes[0], "i", sizes[1], "j"]
    for one in arrays:
        operands += [one, "ijk"[: one.ndim]]
    packed = array.blockwise(
        _one_block,
        "ij",
        *operands,
        call=call,
        shared=delayed.delayed(shared, traverse=False),
        masked=mask is not None,
        concatenate=True,
        align_arrays=False,
        adjust_chunks={"i": lambda n: 1, "j": lambda n: 1},
        dtype=object,
        meta=np.empty((0, 0), object),
    )
    found = [
        packed.map_blocks(
            _picked,
            index=index,
            new_axis=list(range(2, 2 + len(output.trailing))) or None,
            chunks=(*chunks, *((n,) for n in output.trailing)),
            dtype=output.dtype,
            meta=np.empty((0,) * (2 + len(output.trailing)), output.dtype),
        )
        for index, output in enumerate(outputs)
    ]
    # In the pieces of the image again, which files may need to be of one size.
    pieces = dict(enumerate(images[0].chunks[:2]))
    return tuple(one.rechunk(pieces) for one in found)


def _one_block(
    inner: Array,
    rows: Array,
    cols: Array,
    *blocks: Array,
    call: Callable[..., tuple[Array, ...]],
    shared: Any,
    masked: bool,
) -> Array:
    mask = aligned(blocks[-1]) if masked else None
    images = tuple(aligned(block) for block in blocks[: len(blocks) - masked])
    found = call(images, mask, shared)
    top, left = int(inner["rows"][0, 0]), int(inner["cols"][0, 0])
    packed = np.empty((1, 1), object)
    packed[0, 0] = tuple(
        np.ascontiguousarray(one[top : top + int(rows[0]), left : left + int(cols[0])])
        for one in found
    )
    return packed


def _picked(packed: Array, index: int) -> Array:
    found: Array = packed[0, 0][index]
    return found


def reduce_blocks(
    call: Callable[..., Any], merge: Callable[[list[Any]], Any], image: Lazy, mask: Lazy | None
) -> Any:
    """``call(block, mask)`` of every block merged in the order of the blocks, computed now."""
    delayed = big("dask.delayed").delayed
    blocks = image.to_delayed()[:, :, 0].ravel()
    masks = [None] * len(blocks) if mask is None else mask.to_delayed().ravel()
    parts = [delayed(call)(*pair) for pair in zip(blocks, masks, strict=True)]
    while len(parts) > 1:
        parts = [delayed(merge)(parts[k : k + 16]) for k in range(0, len(parts), 16)]
    return parts[0].compute()

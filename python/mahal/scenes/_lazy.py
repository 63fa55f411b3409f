"""Scenes that are read piece by piece: xarray.DataArray over dask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from mahal.scenes._files import Array, nanometres, reading
from mahal.scenes._read import (
    _envi_header,
    _envi_pair,
    _raster_wavelengths,
    _require_file,
)
from mahal.scenes._scene import SceneError, extra

LAZY_KINDS = "Zarr .zarr, ENVI with a .hdr, GeoTIFF .tif, NumPy .npy"
BAND_NAMES = ("band", "bands", "wavelength", "wavelengths", "channel", "channels")
"""Names under which a dimension is that of the bands."""

CHUNK_BYTES = 32 << 20


def big(name: str) -> ModuleType:
    """Import an optional module of the extra ``big``.

    Parameters
    ----------
    name : str
        Full module name.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        It cannot be imported; the message names the extra that brings it.
    """
    return extra(name, "big")


@dataclass(frozen=True)
class _Mapped:
    """A raw file as (rows, cols, bands); opened anew for every piece, so that it can be pickled."""

    path: str
    offset: int
    stored: str  # dtype in the file
    lengths: tuple[int, ...]  # axes in the order of the file
    order: tuple[int, ...]  # where rows, columns and bands are among them

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.lengths[axis] for axis in self.order)

    @property
    def dtype(self) -> np.dtype[Any]:
        native: np.dtype[Any] = np.dtype(self.stored).newbyteorder("=")
        return native

    @property
    def ndim(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Array:
        values = np.memmap(self.path, np.dtype(self.stored), "r", self.offset, self.lengths)
        part = np.transpose(values, self.order)[index]
        return np.array(part, dtype=self.dtype, order="C")


@dataclass(frozen=True)
class _Raster:
    """The bands of a file that rasterio reads, likewise."""

    path: str
    shape: tuple[int, int, int]
    kind: str

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.kind)

    @property
    def ndim(self) -> int:
        return 3

    def __getitem__(self, index: Any) -> Array:
        rows, cols, bands = (item.indices(n) for item, n in zip(index, self.shape, strict=True))
        window = ((rows[0], rows[1]), (cols[0], cols[1]))
        with extra("rasterio").open(self.path) as source:
            values = source.read([1 + band for band in range(*bands)], window=window)
        part = np.moveaxis(values, 0, -1)[:: rows[2], :: cols[2]]
        return np.ascontiguousarray(part, dtype=self.dtype)


def open(
    path: str | Path,
    *,
    chunks: int | tuple[int, int] | None = None,
    key: str | None = None,
    channels: Literal["last", "first"] | None = None,
) -> Any:
    """Open a scene that may be larger than memory.

    Parameters
    ----------
    path : path
        Zarr folder (an array, or a group with one image), ENVI header or data file, GeoTIFF or
        .npy. Numbers may be complex.
    chunks : int or (rows, cols), optional
        Size of the pieces in pixels; all bands are always in one piece. Not given: the pieces of a
        Zarr array, and squares of some 32 MB of other files.
    key : str, optional
        Image of a Zarr group that has several.
    channels : {"last", "first"}, optional
        Axis of the bands in .npy files and in Zarr arrays without names of dimensions; last when
        not given.

    Returns
    -------
    xarray.DataArray
        With the dimensions y, x and band, over a dask array; nothing but the header is read. Has
        the coordinates ``wavelength`` (nanometres) and ``x``, ``y`` (centres of the pixels) where
        the file tells them; what a Zarr group has is kept. The attributes are JSON values:
        ``format``, ``path``, and where the file has them ``crs`` (WKT), ``transform`` (the six
        numbers of rasterio's Affine) and ``nodata``; `mahal.blocks` leaves out pixels that have
        this value in any band. Bands that an ENVI header lists as bad are left out, their number
        is ``bad_bands``.

    Raises
    ------
    SceneError
        A missing, truncated or unknown file, several images without a key, or wrong sizes.
    ImportError
        A library is missing: ``pip install mahal[big]``.
    """
    path = Path(path)
    sides = _sides(path, chunks)
    if channels not in (None, "last", "first"):
        raise SceneError(f"{path}: channels: must be 'last' or 'first', got {channels!r}")
    if path.is_dir():
        return _open_zarr(path, sides, key, channels or "last")
    _require_file(path)
    suffix = path.suffix.lower()
    reader: _Mapped | _Raster
    if key is not None:
        raise SceneError(f"{path}: key: only Zarr groups have keys, got {key!r}")
    if channels is not None and suffix != ".npy":
        raise SceneError(
            f"{path}: channels: only NumPy and Zarr files have an order of axes to name, "
            f"got {channels!r}"
        )
    if suffix in (".tif", ".tiff"):
        reader, coords, attrs = _geotiff(path)
    elif suffix == ".npy":
        reader, coords, attrs = _npy(path, channels or "last"), {}, {}
    elif suffix == ".hdr" or _envi_header(path) is not None:
        return _open_envi(path, sides)
    else:
        raise SceneError(f"{path}: unknown kind of file to open, must be one of {LAZY_KINDS}")
    attrs = {"format": {".npy": "npy"}.get(suffix, "geotiff"), "path": str(path), **attrs}
    return _labelled(_dask(path, reader, sides), path.stem, coords, attrs)


def _sides(path: Path, chunks: Any) -> tuple[int, int] | None:
    if chunks is None:
        return None
    pair = (chunks, chunks) if isinstance(chunks, int) else chunks
    good = isinstance(pair, tuple) and len(pair) == 2
    if not good or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in pair):
        raise SceneError(f"{path}: chunks: must be a size or (rows, cols), got {chunks!r}")
    return pair


def _dask(path: Path, reader: Any, sides: tuple[int, int] | None) -> Any:
    rows, cols, bands = reader.shape
    if min(reader.shape) < 1:
        raise SceneError(f"{path}: image must be (rows, cols, bands), got shape {reader.shape}")
    if reader.dtype.kind not in "fiuc":
        raise SceneError(f"{path}: image must be numbers, got dtype {reader.dtype}")
    if sides is None:
        side = math.isqrt(CHUNK_BYTES // (bands * reader.dtype.itemsize))
        sides = (max(side // 64 * 64, 64),) * 2
    size = (min(sides[0], rows), min(sides[1], cols), bands)
    # The file is part of the name: what is cached under it belongs to this state of the file.
    stamp = path.stat()
    token = f"{path.resolve()}-{stamp.st_mtime_ns}-{stamp.st_size}-{size}-{reader}"
    name = "scene-" + str(big("dask.base").tokenize(token))
    return big("dask.array").from_array(
        reader, chunks=size, name=name, meta=np.empty((0, 0, 0), reader.dtype)
    )


def _labelled(image: Any, name: str, coords: Mapping[str, Any], attrs: Mapping[str, Any]) -> Any:
    return big("xarray").DataArray(
        image, dims=("y", "x", "band"), coords=dict(coords), attrs=dict(attrs), name=name
    )


# GeoTIFF and NumPy


def _geotiff(path: Path) -> tuple[_Raster, dict[str, Any], dict[str, Any]]:
    coords: dict[str, Any] = {}
    attrs: dict[str, Any] = {}
    with reading(path, "a GeoTIFF"), extra("rasterio").open(path) as source:
        kinds = set(source.dtypes)
        kind = source.dtypes[0] if len(kinds) == 1 else str(np.result_type(*source.dtypes))
        reader = _Raster(str(path.resolve()), (source.height, source.width, source.count), kind)
        wavelengths = _raster_wavelengths(source)
        if wavelengths is not None:
            coords["wavelength"] = ("band", wavelengths)
        names = [text or "" for text in source.descriptions]
        if all(names):
            coords["band_name"] = ("band", names)
        if source.nodata is not None:
            attrs["nodata"] = float(source.nodata)
        if source.crs is not None:
            attrs["crs"] = source.crs.to_wkt()
        if not source.transform.is_identity:
            attrs["transform"] = tuple(source.transform)[:6]
            coords |= _places(attrs["transform"], source.height, source.width)
    return reader, coords, attrs


def _places(transform: tuple[float, ...], rows: int, cols: int) -> dict[str, Any]:
    """Coordinates of the centres of the pixels, where the axes are those of the map."""
    a, b, c, d, e, f = transform
    if b or d:
        return {}
    return {
        "x": ("x", c + a * (np.arange(cols) + 0.5)),
        "y": ("y", f + e * (np.arange(rows) + 0.5)),
    }


def _npy(path: Path, channels: str) -> _Mapped:
    with reading(path, "a NumPy array"):
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        offset, shape = int(values.offset), values.shape
        columns_first = values.flags.f_contiguous and not values.flags.c_contiguous
    if values.ndim == 2:
        shape, channels = (*shape, 1), "last"
    if len(shape) != 3:
        raise SceneError(f"{path}: image must be (rows, cols, bands), got shape {values.shape}")
    order: tuple[int, ...] = (0, 1, 2) if channels == "last" else (1, 2, 0)
    if columns_first:
        # The file has the axes in reverse.
        shape, order = shape[::-1], tuple(2 - axis for axis in order)
    return _Mapped(str(path.resolve()), offset, values.dtype.str, shape, order)


# ENVI


def _open_envi(path: Path, sides: tuple[int, int] | None) -> Any:
    header, data = _envi_pair(path)
    with reading(header, "an ENVI header"):
        found = extra("spectral.io.envi").open(str(header), str(data))
        if not hasattr(found, "open_memmap"):
            raise SceneError(f"{header}: must describe an image, got a spectral library")
        metadata: dict[str, Any] = dict(found.metadata)
        rows, cols, bands = found.nrows, found.ncols, found.nbands
        interleave = metadata["interleave"].strip().lower()
        lengths, order = {
            "bip": ((rows, cols, bands), (0, 1, 2)),
            "bil": ((rows, bands, cols), (0, 2, 1)),
            "bsq": ((bands, rows, cols), (1, 2, 0)),
        }[interleave]
        stored = np.dtype(found.dtype).str
        reader = _Mapped(str(data.resolve()), int(found.offset), stored, lengths, order)
        coords: dict[str, Any] = {}
        attrs: dict[str, Any] = {"format": "envi", "path": str(data)}
        if "data ignore value" in metadata:
            attrs["nodata"] = float(metadata["data ignore value"])
        if len(metadata.get("wavelength", ())) == bands:
            centres = np.array([float(value) for value in metadata["wavelength"]])
            unit = str(metadata.get("wavelength units", ""))
            centres = nanometres(centres, "" if unit.lower() == "unknown" else unit)
            coords["wavelength"] = ("band", centres)
        if "coordinate system string" in metadata:
            text = metadata["coordinate system string"]
            attrs["crs"] = text if isinstance(text, str) else ",".join(text)
        good = np.array([float(value) != 0 for value in metadata.get("bbl", ())], dtype=bool)
        transform = _envi_transform(metadata.get("map info", ()))
    if transform is not None:
        attrs["transform"] = transform
        coords |= _places(transform, rows, cols)
    needed = reader.offset + int(np.prod(lengths)) * reader.dtype.itemsize
    if data.stat().st_size < needed:
        raise SceneError(
            f"{data}: truncated, needs {needed} bytes for {reader.shape}, got {data.stat().st_size}"
        )
    image = _labelled(_dask(data, reader, sides), header.stem, coords, attrs)
    if good.size != bands or good.all():
        return image
    if not good.any():
        raise SceneError(f"{header}: bbl must leave at least one band, got none")
    return image.isel(band=np.flatnonzero(good)).assign_attrs(bad_bands=int((~good).sum()))


def _envi_transform(info: Any) -> tuple[float, ...] | None:
    """The transform of a map info that is not turned."""
    if len(info) < 7 or any("rotation" in str(item).lower() for item in info):
        return None
    ref_x, ref_y, east, north, dx, dy = (float(item) for item in info[1:7])
    # The corner of the first pixel is (1, 1).
    return dx, 0.0, east - (ref_x - 1) * dx, 0.0, -dy, north + (ref_y - 1) * dy


# Zarr


def _open_zarr(path: Path, sides: tuple[int, int] | None, key: str | None, channels: str) -> Any:
    zarr = big("zarr")
    with reading(path, "a Zarr store"):
        node = zarr.open(str(path), mode="r")
        arrays = dict(node.arrays()) if isinstance(node, zarr.Group) else {}
        if not isinstance(node, zarr.Group):
            if key is not None:
                raise SceneError(f"{path}: key: a Zarr array has none, got {key!r}")
            array = node
        else:
            key = _zarr_key(path, arrays, key)
            array = arrays[key]
        if array.ndim != 3 or 0 in array.shape:
            raise SceneError(f"{path}: image must be (rows, cols, bands), got shape {array.shape}")
        dims: tuple[str, ...] | None = dimensions(array)
        if dims is None:
            dims = ("band", "y", "x") if channels == "first" else ("y", "x", "band")
        elif channels == "first":
            raise SceneError(f"{path}: channels: its dimensions have names, {', '.join(dims)}")
        bands = band_dimension(dims)
        order = [dim for dim in dims if dim != bands] + [bands]
        names = dict(zip(order, ("y", "x", "band"), strict=True))
        lengths = dict(zip(dims, array.shape, strict=True))
        coords = {}
        for name, other in arrays.items():
            along = dimensions(other) or ()
            if len(along) == 1 and lengths.get(along[0]) == other.shape[0]:
                coords[name] = (names[along[0]], other[...])
        attrs = {**dict(node.attrs), **dict(array.attrs), "format": "zarr", "path": str(path)}
        attrs.pop("_ARRAY_DIMENSIONS", None)
        values = big("dask.array").from_zarr(str(path), component=key, inline_array=True)
        values = values.transpose([dims.index(dim) for dim in order])
        size = (*(sides or values.chunksize[:2]), -1)
        return _labelled(values.rechunk(size), key or path.stem, coords, attrs)


def _zarr_key(path: Path, arrays: Mapping[str, Any], key: str | None) -> str:
    cubes = [name for name, item in arrays.items() if item.ndim == 3 and item.dtype.kind in "fiuc"]
    listing = ", ".join(f"{n} ({' x '.join(map(str, a.shape))})" for n, a in arrays.items())
    if key is not None:
        if key not in cubes:
            raise SceneError(f"{path}: key: no image {key!r}, has {listing or 'nothing'}")
        return key
    if len(cubes) != 1:
        rule = "several images, name one" if cubes else "no image (rows, cols, bands)"
        raise SceneError(f"{path}: key: {rule}, has {listing or 'nothing'}")
    return cubes[0]


def dimensions(array: Any) -> tuple[str, ...] | None:
    """Names of the dimensions: part of format 3, an attribute of xarray in format 2."""
    names = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(names) if names and all(names) else None


def band_dimension(dims: tuple[Any, ...]) -> Any:
    """The dimension of the bands: the one with such a name, else the last."""
    named = [dim for dim in dims if str(dim).lower() in BAND_NAMES]
    return named[0] if len(named) == 1 else dims[-1]


def opened_mask(image: Any) -> Any | None:
    """False where a pixel of a DataArray has its no-data value in any band; None without one."""
    nodata = image.attrs.get("nodata")
    if nodata is None:
        return None
    return ~missing(image.data, nodata).any(axis=-1)


def missing(values: Any, nodata: float) -> Any:
    """Where values are the one that stands for none."""
    return np.isnan(values) if np.isnan(nodata) else values == nodata

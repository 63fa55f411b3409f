"""Reading scenes, truth and score maps through the libraries their users trust."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mahal.scenes._scene import Bools, Scene, SceneError, extra

Array = npt.NDArray[Any]

KINDS = "MATLAB .mat, ENVI with a .hdr, GeoTIFF .tif, NumPy .npy"
# Variable names met in public scenes: the image, then the truth that goes with it.
IMAGE_NAMES = ("data", "hsi", "image", "hsi_img_sub")
TRUTH_NAMES = ("map", "groundtruth", "hsi_gt", "mask", "gt", "truth")
WAVELENGTH_NAMES = ("wavelengths", "wavelength", "wl")
ENVI_SUFFIXES = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip")
PICTURE_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")
CENTRE = re.compile(r"\s*([0-9]+\.?[0-9]*)\s*\(?\s*(nm|um|µm|[a-z]*met(?:er|re)s?)?", re.IGNORECASE)
MICROMETRES = {"micrometers", "micrometres", "micrometer", "um", "µm", "microns", "micron"}


class _Variable(NamedTuple):
    shape: tuple[int, ...]
    numeric: bool


class _Variables(NamedTuple):
    """What a MATLAB file holds, and how to load one of it."""

    listing: dict[str, _Variable]
    load: Callable[[str], Array]


def read(
    path: str | Path,
    key: str | None = None,
    map_key: str | None = None,
    *,
    mask_key: str | None = None,
    truth: str | Path | None = None,
) -> Scene:
    """Read a scene.

    Parameters
    ----------
    path : path
        MATLAB file (v5 or v7.3), ENVI header or data file (BIL, BIP, BSQ), GeoTIFF, or .npy with
        shape (rows, cols, bands).
    key : str, optional
        MATLAB variable with the image. Not given: data, hsi, image or hsi_img_sub, else the only
        three-dimensional numeric array.
    map_key : str, optional
        MATLAB variable with the truth, of the scene or of the file `truth`. Not given: map,
        groundtruth, hsi_gt, mask, gt or truth when the file has one of them.
    mask_key : str, optional
        MATLAB variable with the pixels to use (non-zero = use). Never guessed.
    truth : path, optional
        Separate file with the truth map, see `read_truth`.

    Returns
    -------
    Scene
        Pixels with the declared no-data value in any band are False in `mask`. Bands that an ENVI
        header lists as bad (bbl = 0) are left out; their number is ``metadata["bad_bands"]``. A
        truth map stored as (cols, rows) is turned when the image is not square.

    Raises
    ------
    SceneError
        Anything that keeps the file from being a scene: missing, unreadable, truncated, an unknown
        kind, an unknown or ambiguous key, a wrong rank, a truth map of another size.
    ImportError
        The library that reads this kind is not installed.
    """
    path = Path(path)
    _require_file(path)
    kind = _kind(path)
    if kind != "matlab":
        for name, value in (("key", key), ("mask_key", mask_key)):
            if value is not None:
                raise SceneError(f"{path}: {name}: only MATLAB files have keys, got {value!r}")
        if map_key is not None and truth is None:
            raise SceneError(f"{path}: map_key: only MATLAB files have keys, got {map_key!r}")
    if kind == "matlab":
        scene = _read_matlab(path, key, None if truth is not None else map_key, mask_key)
    elif kind == "envi":
        scene = _read_envi(path)
    elif kind == "geotiff":
        scene = _read_geotiff(path)
    else:
        scene = Scene(_cube(path, _load_npy(path)), path.stem, "npy", path)
    if truth is None:
        return scene
    found = read_truth(truth, map_key)
    return replace(scene, truth=_fit(Path(truth), found, scene.image.shape), map_key=map_key)


def read_map(path: str | Path, key: str | None = None) -> Array:
    """Read one map of numbers: scores or a truth map.

    Parameters
    ----------
    path : path
        .npy, MATLAB, ENVI, or a picture (.bmp, .png, .tif) with one band or with equal bands;
        palette entries that are not black count as 1.
    key : str, optional
        MATLAB variable. Not given: scores, map, groundtruth, hsi_gt, mask, gt or truth when the
        file has exactly one of them, else its only two-dimensional numeric array.

    Returns
    -------
    ndarray (rows, cols)
        Real numbers or booleans.

    Raises
    ------
    SceneError
        As for `read`.
    """
    path = Path(path)
    _require_file(path)
    kind = "picture" if path.suffix.lower() in PICTURE_SUFFIXES else _kind(path)
    if key is not None and kind != "matlab":
        raise SceneError(f"{path}: key: only MATLAB files have keys, got {key!r}")
    if kind == "picture":
        values = _load_picture(path)
    elif kind == "matlab":
        variables = _matlab_variables(path)
        values = variables.load(_map_key(path, variables, key))
    elif kind == "envi":
        cube, _ = _load_envi(path)
        if cube.shape[2] != 1:
            raise SceneError(f"{path}: a map must have one band, got {cube.shape[2]}")
        values = cube[:, :, 0]
    else:
        values = _load_npy(path)
    if values.ndim != 2 or values.size == 0:
        raise SceneError(f"{path}: a map must be (rows, cols), got shape {values.shape}")
    return _real(path, values)


def read_truth(path: str | Path, key: str | None = None) -> Bools:
    """Read a truth map: two values, of which 0 is background.

    Parameters
    ----------
    path, key
        As for `read_map`.

    Returns
    -------
    ndarray of bool (rows, cols)
        True marks the targets.

    Raises
    ------
    SceneError
        As for `read_map`, and for a map with more than two values.
    """
    values = read_map(path, key)
    labels = _labels(values)
    if labels is None:
        raise SceneError(f"{path}: truth must be 0 and one other value, got {_some(values)}")
    return labels


def _require_file(path: Path) -> None:
    if path.is_dir():
        raise SceneError(f"{path}: must be a file, got a folder")
    if not path.exists():
        raise SceneError(f"{path}: no such file")


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix == ".mat":
        return "matlab"
    if suffix in (".tif", ".tiff"):
        return "geotiff"
    if suffix == ".npy":
        return "npy"
    if suffix == ".hdr" or _envi_header(path) is not None:
        return "envi"
    raise SceneError(f"{path}: unknown kind of file, must be one of {KINDS}")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a reader library raises on a damaged file into one SceneError line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (SceneError, ImportError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SceneError(f"{path}: cannot be read as {what}: {reason[:200]}") from error


def _real(path: Path, values: Array) -> Array:
    if values.dtype.kind not in "bfiu":
        raise SceneError(f"{path}: values must be real numbers, got dtype {values.dtype}")
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _cube(path: Path, values: Array, what: str = "image") -> Array:
    if values.ndim != 3 or values.size == 0:
        raise SceneError(f"{path}: {what} must be (rows, cols, bands), got shape {values.shape}")
    if values.dtype.kind == "b":
        raise SceneError(f"{path}: {what} must be real numbers, got dtype bool")
    return _real(path, values)


def _some(values: Array) -> str:
    distinct = np.unique(values)
    return f"{distinct.size} values from {distinct[0]} to {distinct[-1]}"


def _labels(values: Array) -> Bools | None:
    distinct = np.unique(values)
    if distinct.size > 2 or (distinct.size == 2 and distinct[0] != 0) or np.isnan(distinct).any():
        return None
    return np.asarray(values != 0)


def _fit(path: Path, found: Array, shape: tuple[int, ...], what: str = "truth") -> Array:
    rows, cols = shape[:2]
    if found.shape == (rows, cols):
        return found
    if found.shape == (cols, rows):
        return np.ascontiguousarray(found.T)
    raise SceneError(
        f"{path}: {what} must have the size of the image {rows} x {cols}, "
        f"got {' x '.join(map(str, found.shape))}"
    )


def _nanometres(values: Array, unit: str | None) -> npt.NDArray[np.float64]:
    centres = np.asarray(values, dtype=np.float64)
    named = (unit or "").strip().lower()
    # Without a unit: no optical sensor has band centres below 100 nm or above 100 micrometres.
    micro = named in MICROMETRES or (not named and float(np.median(centres)) < 100)
    return centres * 1000.0 if micro else centres


def _load_npy(path: Path) -> Array:
    with _reading(path, "a NumPy array"):
        loaded: Array = np.load(path, allow_pickle=False)
    return loaded


# MATLAB


def _matlab_variables(path: Path) -> _Variables:
    with _reading(path, "a MATLAB file"):
        # Version 7.3 is an HDF5 file behind a header of 512 bytes that names it.
        with path.open("rb") as stream:
            start = stream.read(520)
        if start[:10] == b"MATLAB 7.3" or start[:8] == b"\x89HDF\r\n\x1a\n":
            return _matlab73(path)
        io = extra("scipy.io")
        listing = {
            name: _Variable(
                tuple(shape), kind not in ("char", "cell", "struct", "object", "sparse")
            )
            for name, shape, kind in io.whosmat(str(path))
        }
    if not listing:
        raise SceneError(f"{path}: holds no variable")

    def load(name: str) -> Array:
        with _reading(path, "a MATLAB file"):
            found: Array = io.loadmat(str(path), variable_names=[name])[name]
            return found

    return _Variables(listing, load)


def _matlab73(path: Path) -> _Variables:
    h5py = extra("h5py")
    with h5py.File(path, "r") as file:
        listing = {}
        for name, item in file.items():
            if name.startswith("#"):
                continue
            dataset = isinstance(item, h5py.Dataset)
            text = dataset and item.attrs.get("MATLAB_class") in (b"char", b"cell")
            shape = tuple(item.shape[::-1]) if dataset else (1, 1)
            listing[name] = _Variable(shape, dataset and not text and item.dtype.kind in "bfiuc")

    def load(name: str) -> Array:
        with _reading(path, "a MATLAB file"), h5py.File(path, "r") as file:
            # MATLAB stores column-major, HDF5 shows the same bytes with the axes reversed.
            found: Array = file[name][()].T
            return found

    return _Variables(listing, load)


def _contents(variables: _Variables) -> str:
    return ", ".join(
        f"{name} ({' x '.join(map(str, item.shape))}{'' if item.numeric else ', not numeric'})"
        for name, item in variables.listing.items()
    )


def _variable(path: Path, variables: _Variables, option: str, key: str, rank: int) -> str:
    if key not in variables.listing:
        raise SceneError(f"{path}: {option}: no variable {key!r}, has {_contents(variables)}")
    item = variables.listing[key]
    if not item.numeric or len(item.shape) != rank:
        raise SceneError(
            f"{path}: {option}: must be a numeric array of rank {rank}, "
            f"got {key} of shape {item.shape}"
        )
    return key


def _image_key(path: Path, variables: _Variables, key: str | None) -> str:
    if key is not None:
        return _variable(path, variables, "key", key, 3)
    cubes = [n for n, v in variables.listing.items() if v.numeric and len(v.shape) == 3]
    known = [name for name in cubes if name in IMAGE_NAMES]
    for names in (known, cubes):
        if len(names) == 1:
            return names[0]
    rule = "several images, name one" if cubes else "no image (rows, cols, bands)"
    raise SceneError(f"{path}: key: {rule}, has {_contents(variables)}")


def _truth_key(path: Path, variables: _Variables, shape: tuple[int, ...]) -> str | None:
    listing = variables.listing
    known = [n for n in TRUTH_NAMES if n in listing and listing[n].numeric]
    known = [n for n in known if len(listing[n].shape) == 2]
    fitting = [n for n in known if sorted(listing[n].shape) == sorted(shape[:2])]
    if len(fitting) > 1:
        raise SceneError(
            f"{path}: map_key: several truth maps, name one, has {_contents(variables)}"
        )
    if known and not fitting:
        return known[0]
    return fitting[0] if fitting else None


def _map_key(path: Path, variables: _Variables, key: str | None) -> str:
    if key is not None:
        return _variable(path, variables, "key", key, 2)
    maps = [
        name
        for name, item in variables.listing.items()
        if item.numeric and len(item.shape) == 2 and min(item.shape) > 1
    ]
    known = [name for name in maps if name in ("scores", *TRUTH_NAMES)]
    for names in (known, maps):
        if len(names) == 1:
            return names[0]
    rule = "several maps, name one" if maps else "no map (rows, cols)"
    raise SceneError(f"{path}: key: {rule}, has {_contents(variables)}")


def _read_matlab(path: Path, key: str | None, map_key: str | None, mask_key: str | None) -> Scene:
    variables = _matlab_variables(path)
    key = _image_key(path, variables, key)
    image = _cube(path, variables.load(key), key)
    truth = mask = wavelengths = None
    used = {key}
    if map_key is not None:
        found = variables.load(_variable(path, variables, "map_key", map_key, 2))
        truth = _labels(_real(path, found))
        if truth is None:
            raise SceneError(f"{path}: {map_key} must be 0 and one other value, got {_some(found)}")
    else:
        map_key = _truth_key(path, variables, image.shape)
        # A class map under a usual name is no truth for detection: it stays unused.
        truth = None if map_key is None else _labels(_real(path, variables.load(map_key)))
    if truth is None:
        map_key = None
    else:
        assert map_key is not None
        truth = _fit(path, truth, image.shape, map_key)
        used.add(map_key)
    if mask_key is not None:
        found = variables.load(_variable(path, variables, "mask_key", mask_key, 2))
        mask = _fit(path, np.asarray(_real(path, found) != 0), image.shape, mask_key)
        used.add(mask_key)
    for name in WAVELENGTH_NAMES:
        item = variables.listing.get(name)
        if item and item.numeric and int(np.prod(item.shape)) == image.shape[2]:
            wavelengths = _nanometres(_real(path, variables.load(name)).ravel(), None)
            used.add(name)
            break
    return Scene(
        image=image,
        name=path.stem,
        format="matlab",
        path=path,
        truth=truth,
        mask=mask,
        wavelengths=wavelengths,
        key=key,
        map_key=map_key,
        unused=tuple(
            f"{name} ({' x '.join(map(str, item.shape))})"
            for name, item in variables.listing.items()
            if name not in used
        ),
    )


# ENVI


def _envi_header(path: Path) -> Path | None:
    for header in (path.with_name(path.name + ".hdr"), path.with_suffix(".hdr")):
        if header.is_file():
            return header
    return None


def _envi_pair(path: Path) -> tuple[Path, Path]:
    if path.suffix.lower() != ".hdr":
        header = _envi_header(path)
        assert header is not None
        return header, path
    for suffix in ENVI_SUFFIXES:
        data = path.with_suffix(suffix)
        if data.is_file():
            return path, data
    raise SceneError(
        f"{path}: needs its data file beside it, one of {path.stem} with "
        f"{', '.join(suffix or 'no suffix' for suffix in ENVI_SUFFIXES)}"
    )


def _load_envi(path: Path) -> tuple[Array, dict[str, Any]]:
    header, data = _envi_pair(path)
    with _reading(header, "an ENVI header"):
        image = extra("spectral.io.envi").open(str(header), str(data))
        if not hasattr(image, "open_memmap"):
            raise SceneError(f"{header}: must describe an image, got a spectral library")
        metadata: dict[str, Any] = dict(image.metadata)
        shape = (image.nrows, image.ncols, image.nbands)
        needed = int(image.offset) + int(np.prod(shape)) * np.dtype(image.dtype).itemsize
    if min(shape) < 1:
        raise SceneError(f"{header}: lines, samples and bands must be positive, got {shape}")
    size = data.stat().st_size
    if size < needed:
        raise SceneError(f"{data}: truncated, needs {needed} bytes for {shape}, got {size}")
    with _reading(data, "ENVI data"):
        values: Array = image.open_memmap(interleave="bip", writable=False)
        if values is None:
            raise SceneError(f"{data}: cannot be mapped into memory")
        return _cube(data, np.asarray(values)), metadata


def _read_envi(path: Path) -> Scene:
    image, metadata = _load_envi(path)
    header, data = _envi_pair(path)
    with _reading(header, "an ENVI header"):
        mask = None
        if "data ignore value" in metadata:
            mask = _valid(image, float(metadata["data ignore value"]))
        wavelengths = None
        if len(metadata.get("wavelength", ())) == image.shape[2]:
            centres = np.array([float(value) for value in metadata["wavelength"]])
            unit = str(metadata.get("wavelength units", ""))
            wavelengths = _nanometres(centres, "" if unit.lower() == "unknown" else unit)
        bands = metadata.get("bbl", ())
        good = np.array([float(value) != 0 for value in bands], dtype=bool)
        if good.size == image.shape[2] and not good.all():
            if not good.any():
                raise SceneError(f"{header}: bbl must leave at least one band, got none")
            image = np.ascontiguousarray(image[:, :, good])
            wavelengths = None if wavelengths is None else wavelengths[good]
            metadata["bad_bands"] = int((~good).sum())
    return Scene(
        image=image,
        name=header.stem,
        format="envi",
        path=data,
        mask=mask,
        wavelengths=wavelengths,
        metadata=metadata,
    )


def _valid(image: Array, nodata: float) -> Bools | None:
    missing = np.isnan(image) if np.isnan(nodata) else image == nodata
    valid: Bools = np.asarray(~missing.any(axis=2), dtype=np.bool_)
    return None if valid.all() else valid


# GeoTIFF and pictures


def _read_geotiff(path: Path) -> Scene:
    with _reading(path, "a GeoTIFF"):
        rasterio = extra("rasterio")
        with rasterio.open(path) as source:
            image = _cube(path, np.moveaxis(source.read(), 0, -1))
            mask = None if source.nodata is None else _valid(image, source.nodata)
            wavelengths = _raster_wavelengths(source)
            metadata = {"crs": source.crs, "transform": source.transform, "gcps": source.gcps}
    return Scene(
        image=image,
        name=path.stem,
        format="geotiff",
        path=path,
        mask=mask,
        wavelengths=wavelengths,
        metadata=metadata,
    )


def _raster_wavelengths(source: Any) -> npt.NDArray[np.float64] | None:
    """Band centres from the tags GDAL and its ENVI driver use, or from band descriptions."""
    centres = []
    for band in range(1, source.count + 1):
        imagery = source.tags(band, ns="IMAGERY")
        tags = {name.lower(): value for name, value in source.tags(band).items()}
        if "CENTRAL_WAVELENGTH_UM" in imagery:
            centres.append(1000.0 * float(imagery["CENTRAL_WAVELENGTH_UM"]))
            continue
        text = tags.get("wavelength") or source.descriptions[band - 1] or ""
        found = re.match(
            r"\s*([0-9]+\.?[0-9]*)\s*\(?\s*(nm|um|µm|[a-z]*met(?:er|re)s?)?", text, re.I
        )
        unit = tags.get("wavelength_units") or (found and found[2])
        if not found or ("wavelength" not in tags and not unit):
            return None
        centres.append(float(_nanometres(np.array([float(found[1])]), unit)[0]))
    return np.array(centres)


def _load_picture(path: Path) -> Array:
    with _reading(path, "a picture"):
        rasterio = extra("rasterio")
        with rasterio.open(path) as source:
            bands: Array = source.read()
            if source.colorinterp[0].name == "palette":
                lit = [index for index, rgb in source.colormap(1).items() if any(rgb[:3])]
                return np.isin(bands[0], lit)
            # An opacity band says nothing about the map.
            colour = [item.name != "alpha" for item in source.colorinterp]
            bands = bands[colour]
    if np.any(bands[1:] != bands[:1]):
        raise SceneError(f"{path}: a map must have one band or equal bands, got {len(bands)} bands")
    first: Array = bands[0]
    return first

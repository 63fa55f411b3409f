"""Reading scenes, truth and score maps through the libraries their users trust."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mahal.scenes import _sar
from mahal.scenes._files import (
    Array,
    cube,
    fit,
    labels,
    load_npy,
    nanometres,
    oriented,
    reading,
    real,
    some,
)
from mahal.scenes._scene import Bools, Scene, SceneError, extra

KINDS = (
    "MATLAB .mat, ENVI with a .hdr, GeoTIFF .tif, NumPy .npy or .npz, NISAR .h5, a PolSARpro "
    "folder, a picture .bmp, .png or .jpg"
)
# Variable names met in public scenes: the image, then the truth that goes with it.
IMAGE_NAMES = ("data", "hsi", "image", "hsi_img_sub")
TRUTH_NAMES = ("map", "groundtruth", "hsi_gt", "mask", "gt", "truth")
WAVELENGTH_NAMES = ("wavelengths", "wavelength", "wl")
ENVI_SUFFIXES = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip")
PICTURE_SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg")
# Options of `read` that only some kinds of files have.
OPTIONS = {
    "key": ("MATLAB and .npz files have keys", ("matlab", "npz")),
    "map_key": ("MATLAB and .npz files have keys", ("matlab", "npz")),
    "mask_key": ("MATLAB files have keys of masks", ("matlab",)),
    "channels": ("NumPy files have an order of axes to name", ("npy", "npz")),
    "polarisations": ("SAR products have named polarisations", ("polsarpro", "nisar", "geotiff")),
    "frequency": ("NISAR files have frequencies", ("nisar",)),
}
CENTRE = re.compile(r"\s*([0-9]+\.?[0-9]*)\s*\(?\s*(nm|um|µm|[a-z]*met(?:er|re)s?)?", re.IGNORECASE)


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
    channels: Literal["last", "first"] | None = None,
    polarisations: Sequence[str] | None = None,
    frequency: str | None = None,
) -> Scene:
    """Read a scene.

    Parameters
    ----------
    path : path
        MATLAB file (v5 or v7.3), ENVI header or data file (BIL, BIP, BSQ), GeoTIFF, .npy or .npz,
        a NISAR range-Doppler .h5 (RSLC or SLC), a PolSARpro folder (T2, T3, T4, C2, C3, C4 or S2),
        or a picture (.bmp, .png, .jpg). Numbers may be complex.
    key : str, optional
        Variable with the image of a MATLAB or .npz file. Not given: data, hsi, image or
        hsi_img_sub (in .npz also slc), else the only three-dimensional numeric array.
    map_key : str, optional
        MATLAB variable with the truth, of the scene or of the file `truth`. Not given: map,
        groundtruth, hsi_gt, mask, gt or truth when the file has one of them. In a .npz the truth
        is never guessed, and its classes other than 0 are all targets; they are kept in
        ``metadata["classes"]``.
    mask_key : str, optional
        MATLAB variable with the pixels to use (non-zero = use). Never guessed.
    truth : path, optional
        Separate file with the truth map, see `read_truth`.
    channels : {"last", "first"}, optional
        Axis of the bands in .npy and .npz arrays; last when not given, never guessed. An array
        (rows, cols) is one band.
    polarisations : sequence of str, optional
        Channels to keep, in this order, of a file that names them: HH, HV, VH, VV of a scattering
        matrix, a NISAR product or a GeoTIFF with such band descriptions. Not given: all there are.
    frequency : {"A", "B"}, optional
        Band of a NISAR product; A when not given.

    Returns
    -------
    Scene
        Pixels with the declared no-data value in any band are False in `mask`. Bands that an ENVI
        header lists as bad (bbl = 0) are left out; their number is ``metadata["bad_bands"]``. A
        truth map stored as (cols, rows) is turned when the image is not square. A PolSARpro folder
        of coherency or covariance matrices fills `covariance`; its `image` has the amplitudes, the
        roots of the diagonal.

    Raises
    ------
    SceneError
        Anything that keeps the file from being a scene: missing, unreadable, truncated, an unknown
        kind, an unknown or ambiguous key, a wrong rank, a truth map of another size, an unknown
        polarisation.
    ImportError
        The library that reads this kind is not installed.
    """
    path = Path(path)
    if path.is_dir() and _sar.is_polsarpro(path):
        kind = "polsarpro"
    else:
        _require_file(path)
        kind = _kind(path)
    own_map_key = None if truth is not None else map_key
    given = {
        "key": key,
        "map_key": own_map_key,
        "mask_key": mask_key,
        "channels": channels,
        "polarisations": polarisations,
        "frequency": frequency,
    }
    for name, value in given.items():
        rule, kinds = OPTIONS[name]
        if value is not None and kind not in kinds:
            raise SceneError(f"{path}: {name}: only {rule}, got {value!r}")
    if channels not in (None, "last", "first"):
        raise SceneError(f"{path}: channels: must be 'last' or 'first', got {channels!r}")
    if kind == "matlab":
        scene = _read_matlab(path, key, own_map_key, mask_key)
    elif kind == "envi":
        scene = _read_envi(path)
    elif kind == "geotiff":
        scene = _read_geotiff(path, polarisations)
    elif kind == "npz":
        scene = _sar.read_npz(path, key, own_map_key, channels or "last")
    elif kind == "nisar":
        scene = _sar.read_nisar(path, frequency or "A", polarisations)
    elif kind == "polsarpro":
        scene = _sar.read_polsarpro(path, polarisations)
    elif kind == "picture":
        scene = Scene(_read_picture(path), path.stem, "picture", path)
    else:
        image = cube(path, oriented(load_npy(path), channels or "last"))
        scene = Scene(image, path.stem, "npy", path)
    if truth is None:
        return scene
    found = read_truth(truth, map_key)
    return replace(scene, truth=fit(Path(truth), found, scene.image.shape), map_key=map_key)


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
    kind = _kind(path)
    if kind in ("npz", "nisar"):
        raise SceneError(f"{path}: unknown kind of map, must be .npy, MATLAB, ENVI or a picture")
    if key is not None and kind != "matlab":
        raise SceneError(f"{path}: key: only MATLAB files have keys, got {key!r}")
    if kind in ("picture", "geotiff"):
        values = _load_picture(path)
    elif kind == "matlab":
        variables = _matlab_variables(path)
        values = variables.load(_map_key(path, variables, key))
    elif kind == "envi":
        image, _ = _load_envi(path)
        if image.shape[2] != 1:
            raise SceneError(f"{path}: a map must have one band, got {image.shape[2]}")
        values = image[:, :, 0]
    else:
        values = load_npy(path)
    if values.ndim != 2 or values.size == 0:
        raise SceneError(f"{path}: a map must be (rows, cols), got shape {values.shape}")
    return real(path, values)


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
    found = labels(values)
    if found is None:
        raise SceneError(f"{path}: truth must be 0 and one other value, got {some(values)}")
    return found


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
    if suffix in (".npy", ".npz"):
        return suffix[1:]
    if suffix in (".h5", ".hdf5"):
        return "nisar"
    if suffix in PICTURE_SUFFIXES:
        return "picture"
    if suffix == ".hdr" or _envi_header(path) is not None:
        return "envi"
    raise SceneError(f"{path}: unknown kind of file, must be one of {KINDS}")


# MATLAB


def _matlab_variables(path: Path) -> _Variables:
    with reading(path, "a MATLAB file"):
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
        with reading(path, "a MATLAB file"):
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
        with reading(path, "a MATLAB file"), h5py.File(path, "r") as file:
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
    image = cube(path, variables.load(key), key)
    truth = mask = wavelengths = None
    used = {key}
    if map_key is not None:
        found = variables.load(_variable(path, variables, "map_key", map_key, 2))
        truth = labels(real(path, found))
        if truth is None:
            raise SceneError(f"{path}: {map_key} must be 0 and one other value, got {some(found)}")
    else:
        map_key = _truth_key(path, variables, image.shape)
        # A class map under a usual name is no truth for detection: it stays unused.
        truth = None if map_key is None else labels(real(path, variables.load(map_key)))
    if truth is None:
        map_key = None
    else:
        assert map_key is not None
        truth = fit(path, truth, image.shape, map_key)
        used.add(map_key)
    if mask_key is not None:
        found = variables.load(_variable(path, variables, "mask_key", mask_key, 2))
        mask = fit(path, np.asarray(real(path, found) != 0), image.shape, mask_key)
        used.add(mask_key)
    for name in WAVELENGTH_NAMES:
        item = variables.listing.get(name)
        if item and item.numeric and int(np.prod(item.shape)) == image.shape[2]:
            wavelengths = nanometres(real(path, variables.load(name)).ravel(), None)
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
    with reading(header, "an ENVI header"):
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
    with reading(data, "ENVI data"):
        values: Array = image.open_memmap(interleave="bip", writable=False)
        if values is None:
            raise SceneError(f"{data}: cannot be mapped into memory")
        return cube(data, np.asarray(values)), metadata


def _read_envi(path: Path) -> Scene:
    image, metadata = _load_envi(path)
    header, data = _envi_pair(path)
    with reading(header, "an ENVI header"):
        mask = None
        if "data ignore value" in metadata:
            mask = _valid(image, float(metadata["data ignore value"]))
        wavelengths = None
        if len(metadata.get("wavelength", ())) == image.shape[2]:
            centres = np.array([float(value) for value in metadata["wavelength"]])
            unit = str(metadata.get("wavelength units", ""))
            wavelengths = nanometres(centres, "" if unit.lower() == "unknown" else unit)
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


def _read_geotiff(path: Path, polarisations: Sequence[str] | None) -> Scene:
    with reading(path, "a GeoTIFF"):
        rasterio = extra("rasterio")
        with rasterio.open(path) as source:
            names = tuple((text or "").strip().upper() for text in source.descriptions)
            named = len(set(names)) == len(names) and set(names) <= set(_sar.POLARISATIONS)
            bands = None
            if polarisations is not None:
                chosen = _sar.chosen(path, polarisations, names if named else ())
                bands, names = [names.index(name) + 1 for name in chosen], chosen
            image = cube(path, np.moveaxis(source.read(bands), 0, -1))
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
        polarisations=names if named else None,
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
        centres.append(float(nanometres(np.array([float(found[1])]), unit)[0]))
    return np.array(centres)


def _load_picture(path: Path) -> Array:
    bands, colours = _picture_bands(path)
    if colours is not None:
        lit = [index for index, rgb in colours.items() if any(rgb[:3])]
        return np.isin(bands[0], lit)
    if np.any(bands[1:] != bands[:1]):
        raise SceneError(f"{path}: a map must have one band or equal bands, got {len(bands)} bands")
    first: Array = bands[0]
    return first


def _read_picture(path: Path) -> Array:
    """Image (rows, cols, bands) of a picture; equal bands are one."""
    bands, colours = _picture_bands(path)
    if colours is not None:
        raise SceneError(f"{path}: image must have bands of its own, got a palette")
    if not np.any(bands[1:] != bands[:1]):
        bands = bands[:1]
    return cube(path, np.moveaxis(bands, 0, -1))


def _picture_bands(path: Path) -> tuple[Array, dict[int, tuple[int, ...]] | None]:
    """Bands (bands, rows, cols) without opacity, and the palette of a picture that has one."""
    with reading(path, "a picture"), extra("rasterio").open(path) as source:
        bands: Array = source.read()
        if source.colorinterp[0].name == "palette":
            return bands, source.colormap(1)
        # An opacity band says nothing about the picture.
        return bands[[item.name != "alpha" for item in source.colorinterp]], None

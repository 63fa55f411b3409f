"""Readers of radar data: complex arrays, PolSARpro folders, NISAR products."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mahal.scenes._files import Array, cube, fit, native, oriented, reading, some
from mahal.scenes._scene import Scene, SceneError, extra

POLARISATIONS = ("HH", "HV", "VH", "VV", "RH", "RV")
IMAGE_NAMES = ("data", "hsi", "image", "hsi_img_sub", "slc")
# Channels behind the diagonal of each matrix. The two of a 2 x 2 matrix depend on the sensor's
# mode, so these keep the names of the elements.
MATRICES = {
    "T4": ("HH+VV", "HH-VV", "HV+VH", "HV-VH"),
    "C4": ("HH", "HV", "VH", "VV"),
    "T3": ("HH+VV", "HH-VV", "HV"),
    "C3": ("HH", "HV", "VV"),
    "T2": ("T11", "T22"),
    "C2": ("C11", "C22"),
}
SCATTERING = {"HH": "s11.bin", "HV": "s12.bin", "VH": "s21.bin", "VV": "s22.bin"}


def chosen(path: Path, wanted: Sequence[str] | None, there: Sequence[str]) -> tuple[str, ...]:
    """Names of the channels to read."""
    if wanted is None:
        return tuple(there)
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for name in names:
        if name not in there:
            raise SceneError(
                f"{path}: polarisations: no {name!r}, has {', '.join(there) or 'no names'}"
            )
    if not names or len(set(names)) < len(names):
        raise SceneError(f"{path}: polarisations: must be different names, got {names}")
    return names


# NumPy .npz


def read_npz(path: Path, key: str | None, map_key: str | None, channels: str) -> Scene:
    with reading(path, "a .npz file"), path.open("rb") as stream:
        shapes = _npz_shapes(path)
        file = np.load(stream, allow_pickle=False)
        key = _npz_key(path, shapes, key)
        image = file[key]
        found = None
        if map_key is not None:
            _require_key(path, "map_key", map_key, shapes)
            found = file[map_key]
    image = cube(path, oriented(image, channels), key)
    truth = None
    metadata: dict[str, Any] = {}
    if found is not None:
        if found.ndim != 2 or found.dtype.kind not in "biu":
            raise SceneError(
                f"{path}: {map_key} must be whole numbers (rows, cols), "
                f"got {found.dtype} {found.shape}"
            )
        classes = fit(path, native(found), image.shape, str(map_key))
        if np.unique(classes).size > 256:
            raise SceneError(f"{path}: {map_key} must be classes, got {some(classes)}")
        truth, metadata["classes"] = classes != 0, classes
    return Scene(
        image=image,
        name=path.stem,
        format="npz",
        path=path,
        truth=truth,
        key=key,
        map_key=map_key,
        unused=tuple(
            f"{name} ({' x '.join(map(str, shape))})"
            for name, (shape, _) in shapes.items()
            if name not in (key, map_key)
        ),
        metadata=metadata,
    )


def _npz_shapes(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every array, from their headers alone."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as stream:
                    version = np.lib.format.read_magic(stream)
                    header = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = header(stream)
                shapes[name[:-4]] = (shape, dtype)
    return shapes


def _require_key(path: Path, option: str, key: str, shapes: dict[str, Any]) -> None:
    if key not in shapes:
        listed = ", ".join(f"{n} ({' x '.join(map(str, s))})" for n, (s, _) in shapes.items())
        raise SceneError(f"{path}: {option}: no array {key!r}, has {listed or 'none'}")


def _npz_key(
    path: Path, shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]], key: str | None
) -> str:
    if key is not None:
        _require_key(path, "key", key, shapes)
        return key
    cubes = [n for n, (shape, d) in shapes.items() if len(shape) == 3 and d.kind in "fiuc"]
    known = [name for name in cubes if name in IMAGE_NAMES]
    for names in (known, cubes):
        if len(names) == 1:
            return names[0]
    listed = ", ".join(f"{n} ({' x '.join(map(str, s))})" for n, (s, _) in shapes.items())
    rule = "several images, name one" if cubes else "no image of rank 3"
    raise SceneError(f"{path}: key: {rule}, has {listed or 'no array'}")


# PolSARpro


def is_polsarpro(folder: Path) -> bool:
    return any(
        (folder / name).is_file() for name in ("config.txt", "T11.bin", "C11.bin", "s11.bin")
    )


def read_polsarpro(folder: Path, polarisations: Sequence[str] | None) -> Scene:
    rows, cols = _polsarpro_size(folder)
    kinds = [letter for letter in "TCs" if (folder / f"{letter}11.bin").is_file()]
    if len(kinds) != 1:
        raise SceneError(
            f"{folder}: must hold one of T11.bin, C11.bin, s11.bin, "
            f"got {', '.join(f'{letter}11.bin' for letter in kinds) or 'none'}"
        )
    name = folder.name or folder.resolve().name
    metadata = {"polsarpro": "S2"}
    if kinds == ["s"]:
        names = chosen(folder, polarisations, tuple(SCATTERING))
        bands = [_bin(folder / SCATTERING[pol], rows, cols, "<c8") for pol in names]
        return Scene(
            cube(folder, np.stack(bands, axis=-1)),
            name,
            "polsarpro",
            folder,
            polarisations=names,
            metadata=metadata,
        )
    letter = kinds[0]
    size = max(p for p in (1, 2, 3, 4) if (folder / f"{letter}{p}{p}.bin").is_file())
    metadata["polsarpro"] = f"{letter}{size}"
    if metadata["polsarpro"] not in MATRICES:
        raise SceneError(f"{folder}: {letter}22.bin: no such file")
    covariance = np.empty((rows, cols, size, size), dtype=np.complex64)
    for i in range(size):
        for j in range(i, size):
            stem = f"{letter}{i + 1}{j + 1}"
            if i == j:
                covariance[:, :, i, i] = _bin(folder / f"{stem}.bin", rows, cols, "<f4")
                continue
            element = covariance[:, :, i, j]
            element.real = _bin(folder / f"{stem}_real.bin", rows, cols, "<f4")
            element.imag = _bin(folder / f"{stem}_imag.bin", rows, cols, "<f4")
            covariance[:, :, j, i] = element.conj()
    names = MATRICES[metadata["polsarpro"]]
    kept = [names.index(pol) for pol in chosen(folder, polarisations, names)]
    if polarisations is not None:
        covariance = np.ascontiguousarray(covariance[:, :, kept][:, :, :, kept])
    power = np.diagonal(covariance, axis1=2, axis2=3).real
    with np.errstate(invalid="ignore"):
        # A power below zero is no power: NaN marks the pixel.
        image = np.sqrt(np.where(power >= 0, power, np.nan))
    return Scene(
        cube(folder, image),
        name,
        "polsarpro",
        folder,
        polarisations=tuple(names[k] for k in kept),
        covariance=covariance,
        metadata=metadata,
    )


def _polsarpro_size(folder: Path) -> tuple[int, int]:
    config = folder / "config.txt"
    if not config.is_file():
        raise SceneError(f"{config}: no such file")
    with reading(config, "a PolSARpro configuration"):
        lines = [line.strip() for line in config.read_text(encoding="latin-1").splitlines()]
        found = dict(itertools.pairwise(lines))
        sizes = [found.get(word, "") for word in ("Nrow", "Ncol")]
    if not all(text.isdecimal() and int(text) > 0 for text in sizes):
        raise SceneError(f"{config}: must give Nrow and Ncol above 0, got {' x '.join(sizes)}")
    return int(sizes[0]), int(sizes[1])


def _bin(path: Path, rows: int, cols: int, dtype: str) -> Array:
    if not path.is_file():
        raise SceneError(f"{path}: no such file")
    needed, size = rows * cols * np.dtype(dtype).itemsize, path.stat().st_size
    if size != needed:
        raise SceneError(f"{path}: must have {needed} bytes for {rows} x {cols}, got {size}")
    return np.fromfile(path, dtype=dtype).reshape(rows, cols)


# NISAR


def read_nisar(path: Path, frequency: str, polarisations: Sequence[str] | None) -> Scene:
    h5py = extra("h5py")
    with reading(path, "a NISAR product"), h5py.File(path, "r") as file:
        swaths = [
            f"science/{sensor}/{product}/swaths"
            for sensor in ("LSAR", "SSAR")
            for product in ("RSLC", "SLC")
        ]
        places = [place for place in swaths if place in file]
        if len(places) != 1:
            raise SceneError(
                f"{path}: must have one of science/LSAR or SSAR, RSLC or SLC, "
                f"got {', '.join(places) or 'none'}"
            )
        group = file[places[0]]
        bands = [name[-1] for name in group if name.startswith("frequency")]
        if frequency not in bands:
            raise SceneError(f"{path}: frequency: no {frequency!r}, has {', '.join(bands)}")
        swath = group[f"frequency{frequency}"]
        there = tuple(pol for pol in POLARISATIONS if pol in swath)
        names = chosen(path, polarisations, there)
        if not names:
            raise SceneError(f"{path}: frequency {frequency} must have an image, got none")
        layers = [_complex(path, name, swath[name][()]) for name in names]
    return Scene(
        cube(path, np.stack(layers, axis=-1)),
        path.stem,
        "nisar",
        path,
        polarisations=names,
        metadata={"product": places[0], "frequency": frequency},
    )


def _complex(path: Path, name: str, values: Array) -> Array:
    if values.dtype.names == ("r", "i"):
        # Pairs of half precision, for which NumPy has no complex number.
        pair = np.empty(values.shape, dtype=np.complex64)
        pair.real, pair.imag = values["r"], values["i"]
        return pair
    if values.dtype.kind != "c":
        raise SceneError(f"{path}: {name} must be complex, got dtype {values.dtype}")
    return values

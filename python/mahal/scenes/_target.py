"""Target spectra from pixels, files and spectral libraries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from mahal.scenes._files import Array, load_npy, nanometres, reading
from mahal.scenes._scene import Scene, SceneError, extra

PIXEL = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*")


def read_target(source: str | Path, scene: Scene, name: str | None = None) -> Array:
    """Read target spectra for a scene.

    Parameters
    ----------
    source : str or path
        ``"row,col"``: that pixel of the scene, counted from 0. ``"truth"``: the mean of its true
        targets. Else a file: .npy, text (.csv, .txt)
        with values apart by commas or blanks, or an ENVI spectral library (.sli or .hdr). One
        spectrum may stand in a row or in a column; several are rows.
    scene : Scene
        Scene to detect in. A library whose wavelengths differ from the scene's is interpolated
        linearly to them; any other file must have the scene's bands.
    name : str, optional
        Spectrum of a library; all of them when not given.

    Returns
    -------
    ndarray (bands,) or (targets, bands)
        float64, or complex128 for complex numbers. Values are not scaled.

    Raises
    ------
    SceneError
        A pixel outside the scene, a scene without truth, a missing or unreadable file, an unknown
        name, another number of bands, wavelengths that the library does not reach, or values that
        are not finite.
    ImportError
        The library that reads this kind is not installed.
    """
    rows, cols, bands = scene.image.shape
    pixel = PIXEL.fullmatch(str(source))
    path = Path(source)
    library = path.suffix.lower() in (".sli", ".hdr")
    if name is not None and not library:
        raise SceneError(f"{source}: name: only ENVI libraries have names, got {name!r}")
    if pixel is not None:
        row, col = int(pixel[1]), int(pixel[2])
        if row >= rows or col >= cols:
            raise SceneError(f"{source}: target: must lie in the {rows} x {cols} pixels")
        found = scene.image[row, col]
    elif source == "truth":
        if scene.truth is None or not scene.truth.any():
            raise SceneError(f"{scene.name}: target: the scene must have true targets")
        found = scene.image[scene.truth].mean(axis=0)
    elif not path.is_file():
        raise SceneError(f"{path}: target: no such file, and not ROW,COL")
    elif library:
        found = _library(path, scene, name)
    elif path.suffix.lower() == ".npy":
        found = load_npy(path)
    else:
        found = _text(path)
    if found.dtype.kind not in "fiuc":
        raise SceneError(f"{source}: target: must be numbers, got dtype {found.dtype}")
    if found.ndim == 2 and 1 in found.shape and bands in found.shape:
        found = found.reshape(bands) if bands > 1 else found.reshape(-1, 1)
    if found.ndim not in (1, 2) or found.shape[-1] != bands or found.size == 0:
        raise SceneError(
            f"{source}: target: must have the {bands} bands of the scene, got shape {found.shape}"
        )
    if not np.isfinite(found).all():
        raise SceneError(f"{source}: target: must be finite")
    return np.asarray(found, dtype=np.complex128 if found.dtype.kind == "c" else np.float64)


def _text(path: Path) -> Array:
    with reading(path, "text with numbers"):
        lines = [
            line.partition("#")[0].replace(",", " ").split()
            for line in path.read_text(encoding="utf-8-sig").splitlines()
        ]
        rows = [[float(word) for word in line] for line in lines if line]
        if not rows or len({len(row) for row in rows}) > 1:
            raise SceneError(f"{path}: target: every line must have as many numbers")
    return np.array(rows)


def _library(path: Path, scene: Scene, name: str | None) -> Array:
    header = path if path.suffix.lower() == ".hdr" else _header(path)
    with reading(path, "an ENVI library"):
        data = None if path.suffix.lower() == ".hdr" else str(path)
        opened = extra("spectral.io.envi").open(str(header), data)
        if not hasattr(opened, "spectra"):
            raise SceneError(f"{header}: must be a spectral library, got an image")
        spectra: Array = np.asarray(opened.spectra, dtype=np.float64)
        names = [str(item).strip() for item in opened.names]
        centres: Any = opened.bands.centers
        unit = opened.bands.band_unit
    if name is not None:
        if name not in names:
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise SceneError(f"{path}: name: no spectrum {name!r}, has {shown}")
        spectra = spectra[[names.index(name)]]
    if centres is not None and scene.wavelengths is not None:
        spectra = _resampled(path, spectra, nanometres(np.array(centres), unit), scene)
    return spectra[0] if len(spectra) == 1 else spectra


def _header(path: Path) -> Path:
    for header in (path.with_suffix(".hdr"), path.with_name(path.name + ".hdr")):
        if header.is_file():
            return header
    raise SceneError(f"{path}: needs its header beside it, {path.stem}.hdr")


def _resampled(path: Path, spectra: Array, centres: Array, scene: Scene) -> Array:
    """Spectra at the wavelengths of the scene."""
    wanted = scene.wavelengths
    assert wanted is not None
    order = np.argsort(centres)
    centres, spectra = centres[order], spectra[:, order]
    # Headers round to a hundredth of a nanometre or so.
    if wanted.min() < centres[0] - 0.5 or wanted.max() > centres[-1] + 0.5:
        raise SceneError(
            f"{path}: target: must reach the {wanted.min():g} to {wanted.max():g} nm of the scene, "
            f"got {centres[0]:g} to {centres[-1]:g} nm"
        )
    return np.stack([np.interp(wanted, centres, spectrum) for spectrum in spectra])

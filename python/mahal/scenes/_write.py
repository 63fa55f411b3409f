"""Writing score maps in the scene's own kind of file, all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mahal.scenes._scene import Scene, SceneError, extra

# The first file of each kind is the one to name; ENVI keeps its numbers in a second one.
SUFFIXES = {"matlab": (".mat",), "envi": (".hdr", ".img"), "geotiff": (".tif",)}
SUFFIXES |= dict.fromkeys(("npy", "npz", "nisar", "polsarpro", "picture"), (".npy",))
GEOREFERENCE = ("map info", "coordinate system string", "projection info", "x start", "y start")


@contextmanager
def staged(folder: str | Path) -> Iterator[Path]:
    """Hidden folder inside `folder` whose files move up together at the end, or vanish.

    Parameters
    ----------
    folder : path
        Existing folder that will hold the files; files of the same names are replaced, and only
        when the block has ended without an error.

    Yields
    ------
    Path
        Folder to write into.

    Raises
    ------
    SceneError
        `folder` does not exist or cannot be written, or a folder has the name of a file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SceneError(f"{folder}: output folder does not exist")
    try:
        stage = Path(tempfile.mkdtemp(prefix=".mahal-", dir=folder))
    except OSError as error:
        raise SceneError(f"{folder}: output folder cannot be written: {error.strerror}") from error
    try:
        yield stage
        made = sorted(stage.iterdir())
        for file in made:
            if (folder / file.name).is_dir():
                raise SceneError(f"{folder / file.name}: must not be a folder, a file goes there")
        for file in made:
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def score_paths(path: str | Path, like: Scene) -> tuple[Path, ...]:
    """Files that `write` makes for a scene's kind.

    Parameters
    ----------
    path : path
        With the suffix of the kind (.mat, .hdr, .tif or .tiff, .npy), or without any of these: the
        suffix is then added.
    like : Scene
        Scene that decides the kind.

    Returns
    -------
    tuple of Path
        One path; two for ENVI, header first.

    Raises
    ------
    SceneError
        The suffix belongs to another kind.
    """
    path = Path(path)
    suffixes = SUFFIXES[like.format]
    given = path.suffix.lower()
    if given == suffixes[0] or (like.format == "geotiff" and given == ".tiff"):
        return (path, *(path.with_suffix(suffix) for suffix in suffixes[1:]))
    if any(given in others for others in SUFFIXES.values()) or given == ".tiff":
        raise SceneError(f"{path}: suffix must be {suffixes[0]} for a {like.format} scene")
    return tuple(path.with_name(path.name + suffix) for suffix in suffixes)


def write(path: str | Path, scores: npt.ArrayLike, *, like: Scene) -> tuple[Path, ...]:
    """Write a score map as the same kind of file as its scene.

    MATLAB scenes of any version give a v5 file with the variable ``scores``; ENVI scenes a BSQ pair
    with map information and projection of the scene; GeoTIFF scenes a GeoTIFF with its reference
    system and transform (or control points); all others, simulated scenes too, a .npy. Floats keep
    their precision, everything else is written as float64. NaN marks pixels without a score.

    Parameters
    ----------
    path : path
        See `score_paths`. The folder must exist; files of that name are replaced at the very end.
    scores : array_like (rows, cols)
        Real numbers.
    like : Scene
        Scene the scores belong to.

    Returns
    -------
    tuple of Path
        Files written.

    Raises
    ------
    SceneError
        Scores of another size than the scene, a wrong suffix, or a folder that does not exist.
    ImportError
        The library that writes this kind is not installed.
    """
    paths = score_paths(path, like)
    values = np.asarray(scores)
    rows, cols = like.image.shape[:2]
    if values.shape != (rows, cols) or values.dtype.kind not in "bfiu":
        raise SceneError(
            f"{paths[0]}: scores must be real numbers of shape {(rows, cols)}, "
            f"got {values.dtype} {values.shape}"
        )
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    with staged(paths[0].parent) as stage:
        _save(stage / paths[0].name, values, like)
    return paths


def _save(path: Path, values: npt.NDArray[np.floating], like: Scene) -> None:
    if like.format == "matlab":
        extra("scipy.io").savemat(
            str(path), {"scores": values}, appendmat=False, do_compression=True
        )
    elif like.format == "envi":
        metadata = {name: like.metadata[name] for name in GEOREFERENCE if name in like.metadata}
        metadata |= {"description": f"anomaly scores of {like.name}", "band names": ["score"]}
        metadata["data ignore value"] = "nan"
        extra("spectral.io.envi").save_image(
            str(path), values[:, :, None], metadata=metadata, interleave="bsq", ext=".img"
        )
    elif like.format == "geotiff":
        _save_geotiff(path, values, like)
    else:
        np.save(path, values, allow_pickle=False)


def _save_geotiff(path: Path, values: npt.NDArray[np.floating], like: Scene) -> None:
    rasterio = extra("rasterio")
    profile = {
        "driver": "GTiff",
        "height": values.shape[0],
        "width": values.shape[1],
        "count": 1,
        "dtype": values.dtype.name,
        "nodata": float("nan"),
        "compress": "deflate",
    }
    points, points_crs = like.metadata["gcps"]
    if not points:
        profile |= {"crs": like.metadata["crs"], "transform": like.metadata["transform"]}
    with warnings.catch_warnings():
        # A scene without georeferencing gives scores without it: nothing to warn about.
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as target:
            target.write(values, 1)
            target.set_band_description(1, "score")
            if points:
                target.gcps = (points, points_crs)

"""What the readers of all kinds of files share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mahal.scenes._scene import Bools, SceneError

Array = npt.NDArray[Any]

MICROMETRES = {"micrometers", "micrometres", "micrometer", "um", "µm", "microns", "micron"}


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
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


def real(path: Path, values: Array) -> Array:
    if values.dtype.kind not in "bfiu":
        raise SceneError(f"{path}: values must be real numbers, got dtype {values.dtype}")
    return native(values)


def native(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def cube(path: Path, values: Array, what: str = "image") -> Array:
    if values.ndim != 3 or values.size == 0:
        raise SceneError(f"{path}: {what} must be (rows, cols, bands), got shape {values.shape}")
    if values.dtype.kind not in "fiuc":
        raise SceneError(f"{path}: {what} must be numbers, got dtype {values.dtype}")
    return native(values)


def oriented(values: Array, channels: str) -> Array:
    """Array with its bands in the last axis; one of rank 2 gets an axis for its only band."""
    if values.ndim == 2:
        return values[:, :, None]
    return np.moveaxis(values, 0, -1) if values.ndim == 3 and channels == "first" else values


def some(values: Array) -> str:
    distinct = np.unique(values)
    return f"{distinct.size} values from {distinct[0]} to {distinct[-1]}"


def labels(values: Array) -> Bools | None:
    distinct = np.unique(values)
    if distinct.size > 2 or (distinct.size == 2 and distinct[0] != 0) or np.isnan(distinct).any():
        return None
    return np.asarray(values != 0)


def fit(path: Path, found: Array, shape: tuple[int, ...], what: str = "truth") -> Array:
    rows, cols = shape[:2]
    if found.shape == (rows, cols):
        return found
    if found.shape == (cols, rows):
        return np.ascontiguousarray(found.T)
    raise SceneError(
        f"{path}: {what} must have the size of the image {rows} x {cols}, "
        f"got {' x '.join(map(str, found.shape))}"
    )


def nanometres(values: Array, unit: str | None) -> npt.NDArray[np.float64]:
    centres = np.asarray(values, dtype=np.float64)
    named = (unit or "").strip().lower()
    # Without a unit: no optical sensor has band centres below 100 nm or above 100 micrometres.
    micro = named in MICROMETRES or (not named and float(np.median(centres)) < 100)
    return centres * 1000.0 if micro else centres


def load_npy(path: Path) -> Array:
    with reading(path, "a NumPy array"):
        loaded: Array = np.load(path, allow_pickle=False)
    return loaded

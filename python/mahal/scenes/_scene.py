"""The one form a scene has after reading."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]


class SceneError(ValueError):
    """A scene file that cannot be read or written; one line that names the path and the rule."""


@dataclass(frozen=True)
class Scene:
    """An image with what is known about it.

    Attributes
    ----------
    image : ndarray (rows, cols, bands)
        Values as stored in the file, C-contiguous, native byte order.
    name : str
        Short name for titles and output files.
    format : {"matlab", "envi", "geotiff", "npy", "npz", "nisar", "polsarpro", "picture"}
        Kind of file the scene is. `mahal.scenes.write` makes the same kind for the first four and
        .npy for the others.
    path : Path or None
        File or folder the image came from.
    truth : ndarray of bool (rows, cols) or None
        True marks the targets.
    mask : ndarray of bool (rows, cols) or None
        False marks pixels without data; None when every pixel counts.
    wavelengths : ndarray of float64 (bands,) or None
        Band centres in nanometres.
    polarisations : tuple of str (bands,) or None
        Names of the channels of a SAR scene.
    covariance : ndarray of complex64 (rows, cols, p, p) or None
        Polarimetric coherency or covariance matrix of every pixel, where the file has matrices;
        `image` then has the p amplitudes.
    key, map_key : str or None
        Names of the variables that hold image and truth, for files that have names.
    unused : tuple of str
        Variables of the file that were not used, each as ``name (shape)``.
    metadata : mapping
        What writing back needs (georeferencing), and facts about a simulation.
    """

    image: npt.NDArray[Any]
    name: str
    format: str
    path: Path | None = None
    truth: Bools | None = None
    mask: Bools | None = None
    wavelengths: npt.NDArray[np.float64] | None = None
    polarisations: tuple[str, ...] | None = None
    covariance: npt.NDArray[np.complex64] | None = None
    key: str | None = None
    map_key: str | None = None
    unused: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def extra(name: str, brings: str = "cli") -> ModuleType:
    """Import an optional module.

    Parameters
    ----------
    name : str
        Full module name.
    brings : str
        The extra of this package that brings it.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        It cannot be imported; the message names the extra that brings it.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{package} is needed here and cannot be imported ({error}): "
            f"pip install mahal[{brings}]"
        ) from error

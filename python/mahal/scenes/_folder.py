"""Folders of images, read one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mahal.scenes._files import labels
from mahal.scenes._read import PICTURE_SUFFIXES, read, read_map
from mahal.scenes._sar import is_polsarpro
from mahal.scenes._scene import Bools, SceneError

SUFFIXES = (*PICTURE_SUFFIXES, ".npy", ".npz", ".tif", ".tiff", ".mat", ".hdr")
TRUTH_ENDINGS = ("", "_mask", "_gt", "_truth")


def is_image_folder(path: str | Path) -> bool:
    """Whether this is a folder of images, and not a scene that is stored as a folder.

    Parameters
    ----------
    path : path

    Returns
    -------
    bool
    """
    path = Path(path)
    return path.is_dir() and path.suffix.lower() != ".zarr" and not is_polsarpro(path)


class Folder(Sequence[npt.NDArray[Any]]):
    """The images of a folder, in the order of their names, read when they are asked for.

    Parameters
    ----------
    path : path
        A folder, or one file.
    truth : path, optional
        Folder with the truth of every image that has anomalies, as files with the name of the
        image, with or without ``_mask``, ``_gt`` or ``_truth`` at the end.

    Raises
    ------
    SceneError
        There is no image, or the truth belongs to none of them.
    """

    def __init__(self, path: str | Path, truth: str | Path | None = None) -> None:
        path = Path(path)
        if not path.is_dir():
            self.paths = [path]
        else:
            found = (p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
            self.paths = sorted(found)
        if not self.paths:
            raise SceneError(f"{path}: has no images ({', '.join(SUFFIXES)})")
        self.truths: dict[Path, Path] = {}
        if truth is not None:
            self._find_truths(Path(truth))

    def _find_truths(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SceneError(f"{folder}: truth: must be a folder")
        known = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}
        for image in self.paths:
            for ending in TRUTH_ENDINGS:
                if image.stem + ending in known:
                    self.truths[image] = known[image.stem + ending]
                    break
        if not self.truths:
            raise SceneError(f"{folder}: truth: no file has the name of an image")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        """The image of this index, (rows, cols, bands)."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return read(self.paths[index]).image

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[i] for i in range(len(self)))

    def truth(self, index: int) -> Bools:
        """Where the image of this index is anomalous; nowhere, where no file says it.

        Masks of grey values count from the middle of their range on.
        """
        path = self.paths[index]
        if path not in self.truths:
            return np.zeros(self[index].shape[:2], np.bool_)
        values = read_map(self.truths[path])
        found = labels(values)
        if found is None:
            # The edges of drawn masks are grey.
            if values.dtype != np.uint8:
                raise SceneError(f"{self.truths[path]}: truth must be 0 and one other value")
            found = values > 127
        if found.shape != self[index].shape[:2]:
            raise SceneError(
                f"{self.truths[path]}: must have the size of {path.name}, "
                f"{self[index].shape[:2]}, got {found.shape}"
            )
        return found

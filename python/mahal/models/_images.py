"""Models that learn from many images and score one at a time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from mahal._arrays import library_of
from mahal.models._detector import AnomalyDetector, ModelError, host_array, used_pixels
from mahal.significance import score_tail

Array = Any
CALIBRATION_SCORES = 1 << 23
"""How many scores the thresholds come from at most; a tail needs no more."""

Self = TypeVar("Self", bound="ImageDetector")


class Picture:
    """A checked image: float32 or complex64 values on the host, and which pixels count."""

    def __init__(
        self,
        op: str,
        image: Array,
        mask: Array | None,
        *,
        complex_images: bool,
        name: str = "image",
    ) -> None:
        values = host_array(op, name, image)
        if values.ndim == 2:
            values = values[..., None]
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(
                f"{op}: {name}: must have shape (rows, cols) or (rows, cols, bands), none of them "
                f"0, got {tuple(values.shape)}"
            )
        kinds = "fiuc" if complex_images else "fiu"
        if values.dtype.kind not in kinds:
            rule = "numbers" if complex_images else "real numbers"
            raise TypeError(f"{op}: {name}: must hold {rule}, got {values.dtype}")
        self.op, self.name, self.dtype = op, name, values.dtype
        kind = np.complex64 if values.dtype.kind == "c" else np.float32
        self.values: npt.NDArray[Any] = np.ascontiguousarray(values, dtype=kind)
        self.used = used_pixels(op, name, self.values, mask)

    @property
    def bands(self) -> int:
        """Channels of the image."""
        return int(self.values.shape[2])

    def unit(self) -> npt.NDArray[np.float32]:
        """Values between 0 and 1; those of integer images as shares of the largest of their type.

        Pixels that do not count are 0.
        """
        values = np.where(self.used[..., None], self.values, np.float32(0))
        if self.dtype.kind in "iu":
            values = values / np.float32(np.iinfo(self.dtype).max)
        low, high = float(values.min()), float(values.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"{self.op}: {self.name}: must hold values between 0 and 1, or unsigned integers, "
                f"got {low:.6g} to {high:.6g}"
            )
        return np.asarray(values, np.float32)

    def map(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Scores of every pixel as a map, NaN where the pixel does not count."""
        return np.where(self.used, scores, np.float32(np.nan)).astype(np.float32, copy=False)


class Pictures(Sequence[Picture]):
    """Images that are read and checked when they are asked for."""

    def __init__(
        self, op: str, images: Any, masks: Any | None, *, complex_images: bool, name: str = "images"
    ) -> None:
        if getattr(images, "ndim", None) in (2, 3) and library_of(images) in ("numpy", "torch"):
            images = [images]
            masks = None if masks is None else [masks]
        if not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
            raise TypeError(
                f"{op}: {name}: must be an image or a sequence of images, got "
                f"{type(images).__name__}"
            )
        if len(images) == 0:
            raise ValueError(f"{op}: {name}: there is none, needs at least one image")
        if masks is not None and len(masks) != len(images):
            raise ValueError(
                f"{op}: masks: must be as many as the images, {len(images)}, got {len(masks)}"
            )
        self.op, self.name, self.images, self.masks = op, name, images, masks
        self.complex_images = complex_images
        self.bands = self[0].bands

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        """The checked image of this index."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name = f"{self.name}[{index}]"
        mask = None if self.masks is None else self.masks[index]
        found = Picture(
            self.op, self.images[index], mask, complex_images=self.complex_images, name=name
        )
        if found.bands != getattr(self, "bands", found.bands):
            raise ValueError(
                f"{self.op}: {name}: must have {self.bands} bands, as the first image, "
                f"got {found.bands}"
            )
        return found

    def __iter__(self) -> Iterator[Picture]:
        return (self[i] for i in range(len(self)))


class ImageDetector(AnomalyDetector):
    """A model of what normal images look like, from one or many of them."""

    complex_images: ClassVar[bool] = False
    """Whether complex images are taken."""

    def fit(
        self: Self,
        images: Any,
        *,
        masks: Any | None = None,
        progress: bool = False,
        checkpoint: str | Path | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> Self:
        """Learn what is normal from images, and calibrate thresholds on their scores.

        Parameters
        ----------
        images : (rows, cols) or (rows, cols, bands) array, or sequence of them
            numpy arrays or torch tensors, for instance a `mahal.scenes.Folder`, which reads its
            files when they are asked for.
        masks : (rows, cols) bool array, or sequence of them, optional
            True where a pixel is used; one for each image.
        progress : bool
            Show a progress bar.
        checkpoint : path, optional
            Folder for the state of the training after every epoch. Where it holds one of a training
            with the same parameters, that one goes on; it is removed at the end.
        trainer : mapping, optional
            Arguments of Lightning's ``Trainer``, such as ``{"devices": 4, "strategy": "ddp"}``.

        Returns
        -------
        ImageDetector
            The model itself.

        Raises
        ------
        ValueError
            No image, wrong shapes, or images that the model cannot learn from.
        TrainingError
            The loss is no longer finite. The model is as it was before.
        """
        pictures = self._read_many("fit", images, masks)
        with self._unchanged_on_failure():
            folder = None if checkpoint is None else Path(checkpoint)
            self._fit(pictures, progress, folder, dict(trainer or {}))
            self._calibrate(pictures)
        return self

    def calibrate(self: Self, images: Any, *, masks: Any | None = None) -> Self:
        """Take the thresholds of `predict` from the scores of these images.

        Images without anomalies that the training has not seen give the rates that new images will
        have; those of the training itself score a little lower.

        Parameters
        ----------
        images : (rows, cols) or (rows, cols, bands) array, or sequence of them
        masks : (rows, cols) bool array, or sequence of them, optional
            True where a pixel is used.

        Returns
        -------
        ImageDetector
            The model itself.
        """
        self._check_fitted("calibrate")
        pictures = self._read_many("calibrate", images, masks)
        self._check_bands(pictures.op, pictures.bands)
        self._calibrate(pictures)
        return self

    def _scores_are_cosines(self) -> bool:
        """Whether scores lie in [-1, 1], and not above 0."""
        return False

    def _calibrate(self, pictures: Pictures) -> None:
        share = CALIBRATION_SCORES // len(pictures)
        scores = []
        for picture in pictures:
            found = self._score(picture)
            found = found[np.isfinite(found)]
            scores.append(found[:: max(1, -(-found.size // max(share, 1)))])
        self.calibration_ = score_tail(np.concatenate(scores), cosine=self._scores_are_cosines())

    def _read(self, what: str, image: Array, mask: Array | None) -> Picture:
        op = f"{type(self).__name__}.{what}"
        picture = Picture(op, image, mask, complex_images=self.complex_images)
        self._check_bands(op, picture.bands)
        return picture

    def _read_many(self, what: str, images: Any, masks: Any | None) -> Pictures:
        op = f"{type(self).__name__}.{what}"
        return Pictures(op, images, masks, complex_images=self.complex_images)

    @abc.abstractmethod
    def _fit(
        self,
        pictures: Pictures,
        progress: bool,
        checkpoint: Path | None,
        trainer: Mapping[str, Any],
    ) -> None: ...


def check_size(picture: Picture, least: int) -> None:
    """An image of at least so many rows and columns."""
    rows, cols = picture.values.shape[:2]
    if min(rows, cols) < least:
        raise ModelError(
            f"{picture.op}: {picture.name}: must have at least {least} rows and columns, "
            f"got {rows} x {cols}"
        )

"""Despeckling of single-look complex images, learnt from such images alone.

Dalsasso, Denis and Tupin, "As if by magic: self-supervised training of deep despeckling networks
with MERLIN", IEEE Trans. Geosci. Remote Sens. 60 (2022): the real and the imaginary part of a pixel
are independent given its reflectivity, so that each is a noisy truth for the other.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from mahal._arrays import library_of
from mahal.models._convolution import Patches, cut, offsets, seeded
from mahal.models._detector import Model, ModelError, check_number
from mahal.models._images import Picture, Pictures, check_size
from mahal.models._training import Batches, Learner, one_thread, train

Amplitude = npt.NDArray[np.float32]
Self = TypeVar("Self", bound="Despeckler")

LEVELS = 3
"""Resolutions of the network."""
SIDE = 5
"""Of the mean that the network corrects."""
TILE, MARGIN = 512, 32
"""Of images that are despeckled part by part; the margin holds all that a pixel depends on."""
DARKEST = -8.0
"""Logarithm, relative to a channel's mean one, below which intensities are not told apart."""


class _Correction(nn.Module):
    """Log-reflectivity from the squares of one part: that of a 5 x 5 mean, corrected by a U-net."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width << level for level in range(LEVELS)]
        self.down = nn.ModuleList(
            _pair(a, b) for a, b in zip([2, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _pair(a + b, a) for a, b in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.last = nn.Conv2d(width, 1, 1)

    def forward(self, squares: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Maps (batch, 1, rows, cols), both sides multiples of 4; ``weight`` is 0 without data."""
        share = functional.avg_pool2d(weight, SIDE, 1, SIDE // 2)
        mean = functional.avg_pool2d(squares * weight, SIDE, 1, SIDE // 2)
        mean = _log(mean / share.clamp(min=1 / SIDE**2))
        x = torch.cat([_log(squares * weight), mean], dim=1)
        passed = []
        for level, layers in enumerate(self.down):
            x = layers(functional.avg_pool2d(x, 2) if level else x)
            passed.append(x)
        for layers, other in zip(self.up, passed[-2::-1], strict=True):
            x = layers(torch.cat([other, functional.interpolate(x, scale_factor=2.0)], dim=1))
        # Twice the mean square of one part is the reflectivity.
        found: torch.Tensor = mean + math.log(2) + self.last(x)
        return found


def _log(squares: torch.Tensor) -> torch.Tensor:
    return torch.log(squares.clamp(min=math.exp(DARKEST)))


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.LeakyReLU(0.1),
    )


class _DespecklingLearner(Learner):
    """The likelihood of one part under the reflectivity found from the other."""

    pixels: torch.Tensor
    first: torch.Tensor
    width: torch.Tensor

    def __init__(self, patches: Patches, network: _Correction, model: Despeckler) -> None:
        super().__init__(patches.buffers(), model.seed)
        self.network = network
        self.side, self.learning_rate = patches.side, model.learning_rate

    def training_step(self, index: torch.Tensor) -> torch.Tensor:
        """Both ways at once."""
        chosen = index[0]
        patches = cut(self.pixels, self.first[chosen], self.width[chosen], self.side)
        real, imaginary, weight = patches.split(1, dim=1)
        given, wanted = torch.cat([real, imaginary]), torch.cat([imaginary, real])
        weight = torch.cat([weight, weight])
        level = self.network(given, weight)
        loss = weight * (0.5 * level + wanted * torch.exp(-level))
        return self.checked(loss.sum() / weight.sum())

    def configure_optimizers(self) -> Any:
        """Adam, with a rate that falls to a hundredth."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, self.trainer.max_epochs, self.learning_rate / 100
        )
        return [optimizer], [decay]


class Despeckler(Model):
    """Despeckling that learns from single-look complex images alone (MERLIN).

    A network sees the real part of a patch and says its reflectivity R; the imaginary part b judges
    it by its likelihood, ``log(R) / 2 + b^2 / R``, and the other way round. Despeckled is the mean
    of the reflectivities that both parts give. Channels are despeckled one by one by the same
    network.

    Parameters
    ----------
    width : int
        Channels of the U-net at full resolution; twice and four times as many below.
    patch, stride : int
        Side of the patches of the training, a multiple of 4, and the step between them.
    iterations, batch_size, learning_rate : int, int, float
        Of the training with Adam; iterations are rounded up to whole passes over the patches, and
        the rate falls to a hundredth.
    symmetrise : bool
        Shift the centres of the spectra of azimuth and range to zero frequency first: the two parts
        are independent only where the spectrum is symmetric.
    seed : int
        The same seed gives the same image, bit for bit on the CPU.

    Notes
    -----
    The network is smaller than the published one, and corrects a 5 x 5 mean, where that one
    corrects the noisy pixel: it starts from a usable image and learns in minutes.
    """

    network_: _Correction
    shift_: Amplitude

    def __init__(
        self,
        *,
        width: int = 8,
        patch: int = 64,
        stride: int = 32,
        iterations: int = 400,
        batch_size: int = 16,
        learning_rate: float = 2e-3,
        symmetrise: bool = True,
        seed: int = 0,
    ) -> None:
        self.width, self.patch, self.stride = width, patch, stride
        self.iterations, self.batch_size = iterations, batch_size
        self.learning_rate, self.symmetrise, self.seed = learning_rate, symmetrise, seed
        op = type(self).__name__
        for name in ("width", "patch", "stride", "iterations", "batch_size"):
            check_number(op, name, getattr(self, name), 1, whole=True)
        check_number(op, "learning_rate", learning_rate, 0, whole=False, open_=True)
        check_number(op, "seed", seed, 0, whole=True)
        if patch % 4:
            raise ValueError(f"{op}: patch: must be a multiple of 4, got {patch}")

    def fit(
        self: Self,
        images: Any,
        *,
        masks: Any | None = None,
        progress: bool = False,
        checkpoint: str | Path | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> Self:
        """Learn from single-look complex images.

        Parameters
        ----------
        images : (rows, cols) or (rows, cols, channels) complex array, or sequence of them
            numpy arrays or torch tensors.
        masks : (rows, cols) bool array, or sequence of them, optional
            True where a pixel is used; one for each image.
        progress : bool
            Show a progress bar.
        checkpoint : path, optional
            Folder for the state of the training after every epoch, as for any model.
        trainer : mapping, optional
            Arguments of Lightning's ``Trainer``.

        Returns
        -------
        Despeckler
            The model itself.

        Raises
        ------
        ValueError
            No image, wrong shapes, or images smaller than a patch.
        TypeError
            Images that are not complex.
        TrainingError
            The loss is no longer finite. The model is as it was before.
        """
        op = "Despeckler.fit"
        pictures = Pictures(op, images, masks, complex_images=True)
        with self._unchanged_on_failure():
            folder = None if checkpoint is None else Path(checkpoint)
            self._fit(list(pictures), progress, folder, dict(trainer or {}))
        return self

    def _fit(
        self,
        pictures: list[Picture],
        progress: bool,
        checkpoint: Path | None,
        trainer: Mapping[str, Any],
    ) -> None:
        for picture in pictures:
            self._check(picture)
            check_size(picture, self.patch)
        parts = [self._parts(picture) for picture in pictures]
        logs = np.zeros(pictures[0].bands)
        for band in range(pictures[0].bands):
            squares = np.concatenate([p[band][..., :2][p[band][..., 2] > 0] for p in parts])
            if not squares.any():
                raise ModelError(f"{pictures[0].op}: images: channel {band} is zero everywhere")
            logs[band] = np.log(squares[squares > 0], dtype=np.float64).mean()
        self.shift_ = logs.astype(np.float32)
        self.bands_ = pictures[0].bands
        maps = [self._scaled(part, band) for p in parts for band, part in enumerate(p)]
        patches = Patches(maps, self.patch, self.stride)
        full = [(patch[:, 2].mean(dim=(1, 2)) > 0.5) for patch in patches.split(256)]
        patches.keep(torch.cat(full))
        if len(patches) == 0:
            raise ModelError(
                f"{pictures[0].op}: masks: must leave at least half of one patch of {self.patch} x "
                f"{self.patch} pixels"
            )
        network = seeded(lambda: _Correction(self.width), self.seed, "despeckler")
        learner = _DespecklingLearner(patches, network, self)
        batches = Batches(len(patches), self.batch_size, 1, self.seed)
        total = float(patches.pixels.sum(dtype=torch.float64))
        with one_thread():
            train(
                learner,
                batches,
                epochs=math.ceil(self.iterations / len(batches)),
                settings={**self.get_params(), "model": "Despeckler", "images": total},
                progress=progress,
                checkpoint=checkpoint,
                trainer=trainer,
            )
        self.network_ = learner.network.requires_grad_(False)

    def _check(self, picture: Picture) -> None:
        if picture.dtype.kind != "c":
            raise TypeError(
                f"{picture.op}: {picture.name}: must be single-look complex, got {picture.dtype}"
            )

    def _parts(self, picture: Picture) -> list[Amplitude]:
        """Squares of real and imaginary part and weight of every channel, (rows, cols, 3)."""
        values = np.where(picture.used[..., None], picture.values, 0)
        if self.symmetrise:
            values = symmetrised(values)
        weight = picture.used.astype(np.float32)
        return [
            np.stack([z.real**2, z.imag**2, weight], axis=-1).astype(np.float32)
            for z in np.moveaxis(values, 2, 0)
        ]

    def _scaled(self, part: Amplitude, band: int) -> Amplitude:
        factor = np.array([math.exp(-self.shift_[band])] * 2 + [1.0], np.float32)
        return part * factor

    def despeckle(self, image: Any, *, mask: Any | None = None) -> Any:
        """Amplitudes without speckle.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, channels) complex array
            numpy array or torch tensor, with as many channels as what the model was fitted to.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        array of the shape of the image
            float32, root of the reflectivity, which is the mean of ``|z|^2``; of the library and
            device of the image. NaN where no pixel is used.
        """
        self._check_fitted("despeckle")
        op = "Despeckler.despeckle"
        picture = Picture(op, image, mask, complex_images=True)
        self._check(picture)
        self._check_bands(op, picture.bands)
        found = self._despeckle(picture).reshape(image.shape)
        if library_of(image) == "torch":
            return torch.from_numpy(found).to(image.device)
        return found

    def _despeckle(self, picture: Picture) -> Amplitude:
        out = np.empty(picture.values.shape, np.float32)
        with one_thread(), torch.inference_mode():
            for band, part in enumerate(self._parts(picture)):
                maps = torch.from_numpy(self._scaled(part, band)).movedim(2, 0)
                power = self._reflectivity(maps).numpy() * math.exp(self.shift_[band])
                out[..., band] = np.sqrt(power)
        out[~picture.used] = np.nan
        return out

    def _reflectivity(self, maps: torch.Tensor) -> torch.Tensor:
        """Mean of what both parts give, tile by tile."""
        rows, cols = maps.shape[1:]
        # Without data beyond the edges, up to a multiple of what the levels halve.
        padded = functional.pad(maps, (0, -cols % 4, 0, -rows % 4))
        tall, wide = padded.shape[1:]
        out = torch.empty(tall, wide)
        for row in offsets(tall, min(tall, TILE), TILE):
            for col in offsets(wide, min(wide, TILE), TILE):
                top, left = max(row - MARGIN, 0), max(col - MARGIN, 0)
                window = padded[:, top : row + TILE + MARGIN, left : col + TILE + MARGIN]
                weight = window[2].expand(2, 1, -1, -1)
                power = torch.exp(self.network_(window[:2, None], weight)).mean(dim=0)[0]
                part = power[row - top :, col - left :][:TILE, :TILE]
                out[row : row + TILE, col : col + TILE] = part
        return out[:rows, :cols]

    # -- files

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {"shift": torch.from_numpy(self.shift_), **self.network_.state_dict()}

    def _restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        self.shift_ = tensors["shift"].numpy()
        self.network_ = seeded(lambda: _Correction(self.width), self.seed, "despeckler")
        self.network_.requires_grad_(False)
        self.network_.load_state_dict({n: t for n, t in tensors.items() if n != "shift"})


def symmetrised(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Complex image (rows, cols, channels) with its spectra centred; the modulus is unchanged.

    Real and imaginary part are independent where the spectrum is symmetric about zero frequency.
    Along each axis the centre of symmetry is where the power of the spectrum is most like its
    mirror image: half the lag of the largest value of its correlation with it.
    """
    out = image.astype(np.complex64, copy=True)
    for axis in (0, 1):
        length = image.shape[axis]
        power = np.abs(np.fft.fft(image, axis=axis)) ** 2
        profile = power.sum(axis=1 - axis, dtype=np.float64)
        like = np.fft.ifft(np.fft.fft(profile, axis=0) ** 2, axis=0).real
        twice = like.argmax(axis=0)
        for band in range(image.shape[2]):
            # Two frequencies fit, half the band apart: the centre has the power around it.
            centres = twice[band] / 2 + np.array([0, length / 2])
            distance = (np.arange(length)[:, None] - centres + length / 2) % length - length / 2
            spread = (profile[:, band, None] * distance**2).sum(axis=0)
            centre = centres[spread.argmin()]
            ramp = np.exp(-2j * np.pi * centre * np.arange(length) / length)
            shape = (-1, 1) if axis == 0 else (1, -1)
            out[..., band] *= ramp.reshape(shape).astype(np.complex64)
    return out


def deepdespeckling(
    image: Any, *, weights: str = "spotlight", symmetrise: bool = True
) -> Amplitude:
    """Amplitudes despeckled by the published MERLIN networks of the package deepdespeckling.

    Parameters
    ----------
    image : (rows, cols) or (rows, cols, channels) complex array
        Of at least 256 rows and columns.
    weights : {"spotlight", "stripmap", "Sentinel-TOPS"}
        Which of its networks.
    symmetrise : bool
        Centre the spectra first, as that package does.

    Returns
    -------
    ndarray of float32, of the shape of the image
        The networks know the units of the sensors that they were trained on: scale the image to
        them, and check the level of what comes back.

    Raises
    ------
    ImportError
        The package is not installed: ``pip install deepdespeckling``, which imports GDAL's Python
        module too.
    """
    op = "deepdespeckling"
    picture = Picture(op, image, None, complex_images=True)
    if picture.dtype.kind != "c":
        raise TypeError(f"{op}: image: must be single-look complex, got {picture.dtype}")
    side = 256
    check_size(picture, side)
    try:
        merlin: Any = importlib.import_module("deepdespeckling.merlin.merlin_denoiser")
    except ImportError as error:
        raise ImportError(
            f"{op}: {error.name} is needed and cannot be imported: pip install deepdespeckling, "
            "and GDAL with its Python module"
        ) from error
    denoiser = merlin.MerlinDenoiser(model_name=weights, symetrise=symmetrise)
    out = np.empty(picture.values.shape, np.float32)
    for band in range(picture.bands):
        values = picture.values[..., band]
        parts = np.stack([values.real, values.imag], axis=-1)
        found = denoiser.denoise_image(parts, patch_size=side, stride_size=side - 2)
        out[..., band] = found["denoised"]["full"]
    shaped: Amplitude = out.reshape(np.shape(image))
    return shaped

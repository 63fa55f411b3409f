"""Adversarial autoencoder of radar images, and the covariance change to what it rebuilds.

Muzeau, Ren, Angelliaume, Datcu and Ovarlez, "Self-supervised learning based anomaly detection in
synthetic aperture radar imaging", IEEE Open J. Signal Process. 3 (2022) 440-449, and by the same
group "Self-supervised SAR anomaly detection guided with RX detector", IGARSS 2023, 1918-1921.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

import mahal
from mahal.models._convolution import Patches, cut, offsets, seeded
from mahal.models._detector import ModelError, check_choice, check_number
from mahal.models._images import ImageDetector, Picture, Pictures, check_size
from mahal.models._training import Batches, Learner, one_thread, train
from mahal.models.despeckling import Despeckler
from mahal.ops._estimators import ESTIMATORS
from mahal.ops.covariance_distance import METRICS

Maps = npt.NDArray[np.float32]

POLARISATIONS = 4
NARROW = 16
"""Channels between the convolutions and the code."""
TINY = 1e-10
"""Added in the logarithms of the adversarial losses."""
DROPOUT = 0.2
DARKEST_SHARE = 1e-3
"""Of the pixels, below the lowest amplitude that is told apart."""
SCORED_TOGETHER = 256
"""Patches that pass through the networks together when an image is rebuilt."""
MIX = (0.7, 0.3)
"""Weights of mean and covariance in the mixed score."""
# Rows and columns of the neighbourhoods of the guidance.
PLUS = ((0, 1, 0), (1, 1, 1), (0, 1, 0))
DISK = ((0, 0, 1, 0, 0), (0, 1, 1, 1, 0), (1, 1, 1, 1, 1), (0, 1, 1, 1, 0), (0, 0, 1, 0, 0))


class _Discriminator(nn.Module):
    """Whether a code is a sample of N(0, I)."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        sizes = [latent, 64, 32, 16, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, code: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        """Probabilities (batch, 1); dropout comes before each rectifier."""
        for layer in self.layers[:-1]:
            code = layer(code)
            kept = torch.rand(code.shape, generator=noise, device=code.device) >= DROPOUT
            code = functional.relu(code * kept / (1 - DROPOUT))
        return torch.sigmoid(self.layers[-1](code))


class _Networks(nn.Module):
    """Encoder, decoder and discriminator."""

    def __init__(self, bands: int, patch: int, latent: int, width: int) -> None:
        super().__init__()
        side = patch // 16
        down = [bands, width, 2 * width, 4 * width, 4 * width]
        up = [4 * width, 4 * width, 2 * width, width, width]
        self.encoder = nn.Sequential(
            *(self._block(nn.Conv2d, a, b) for a, b in pairwise(down)),
            nn.Conv2d(down[-1], NARROW, 1),
            nn.Flatten(),
            nn.Linear(side**2 * NARROW, latent),
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, side**2 * NARROW),
            nn.Unflatten(1, (NARROW, side, side)),
            nn.Conv2d(NARROW, up[0], 1),
            *(self._block(nn.ConvTranspose2d, a, b) for a, b in pairwise(up)),
            nn.Conv2d(width, bands, 1),
            nn.Tanh(),
        )
        self.discriminator = _Discriminator(latent)

    @staticmethod
    def _block(kind: type[nn.Module], inputs: int, outputs: int) -> nn.Sequential:
        convolution = kind(inputs, outputs, 4, stride=2, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))

    def rebuild(self, x: torch.Tensor) -> torch.Tensor:
        """Patches through the code."""
        rebuilt: torch.Tensor = self.decoder(self.encoder(x))
        return rebuilt


class _AdversarialLearner(Learner):
    """Reconstruction, discriminator and generator, each with a step of its own, in this order."""

    pixels: torch.Tensor
    first: torch.Tensor
    width: torch.Tensor
    factor: torch.Tensor

    def __init__(
        self, patches: Patches, factor: Maps, networks: _Networks, model: SARAutoencoder
    ) -> None:
        super().__init__(
            {**patches.buffers(), "factor": torch.from_numpy(factor)[:, None, None]}, model.seed
        )
        self.automatic_optimization = False
        self.networks = networks
        self.model = model

    def training_step(self, index: torch.Tensor) -> None:
        """The three steps on one batch."""
        chosen = index[0]
        model, networks = self.model, self.networks
        cutout = cut(self.pixels, self.first[chosen], self.width[chosen], model.patch)
        x, used, normal = cutout[:, :-2], cutout[:, -2:-1], cutout[:, -1:]
        of_encoder, of_decoder, *adversarial = self.optimizers()

        self._zero()
        target, weight = self._target(x, used, normal)
        difference = self.factor * (networks.rebuild(x) - target)
        if model.reconstruction_loss == "likelihood":
            loss = difference + torch.exp(-difference)
        else:
            loss = difference.abs()
        self.manual_backward(self.checked((weight * loss).mean(), "reconstruction loss"))
        of_encoder.step()
        of_decoder.step()

        if adversarial:
            of_discriminator, of_generator = adversarial
            self._zero()
            # The code as it will be of new images: with the running statistics.
            networks.encoder.eval()
            with torch.no_grad():
                fake = networks.encoder(x)
            networks.encoder.train()
            real = torch.randn(fake.shape, generator=self.noise, device=fake.device)
            loss = -(self._log(real) + self._log(fake, inverse=True)).mean()
            self.manual_backward(self.checked(loss, "discriminator loss"))
            of_discriminator.step()

            self._zero()
            loss = self._log(networks.encoder(x), inverse=True).mean()
            self.manual_backward(self.checked(loss, "generator loss"))
            of_generator.step()
        for schedule in self.lr_schedulers():
            schedule.step()

    def _zero(self) -> None:
        self.networks.zero_grad(set_to_none=True)

    def _log(self, code: torch.Tensor, inverse: bool = False) -> torch.Tensor:
        told = self.networks.discriminator(code, self.noise)
        return torch.log((1 - told if inverse else told) + TINY)

    def _target(
        self, x: torch.Tensor, used: torch.Tensor, normal: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the patch is compared with, and the weight of every pixel."""
        fill = self.model.guidance_fill
        if self.model.guidance == "none":
            return x, used
        if fill == "delete":
            return x, used * normal
        known = torch.where((normal > 0.5) & (used > 0), x, torch.nan).flatten(2)
        level = known.nanmedian(dim=2).values if fill == "median" else known.nanmean(dim=2)
        # A patch without a normal pixel teaches nothing.
        some = torch.isfinite(level).all(dim=1)[:, None, None, None]
        level = torch.nan_to_num(level)[..., None, None]
        return normal * x + (1 - normal) * level, used * some

    def configure_optimizers(self) -> Any:
        """Adam for encoder, decoder, discriminator and again the encoder, with cyclic rates."""
        networks, model = self.networks, self.model
        parts = [networks.encoder, networks.decoder]
        if model.adversarial:
            parts += [networks.discriminator, networks.encoder]
        optimizers = [torch.optim.Adam(p.parameters(), lr=model.learning_rate) for p in parts]
        schedules = [
            torch.optim.lr_scheduler.CyclicLR(
                optimizer,
                model.learning_rate,
                model.highest_rate,
                step_size_up=model.half_cycle,
                cycle_momentum=False,
            )
            for optimizer in optimizers
        ]
        return optimizers, schedules


class SARAutoencoder(ImageDetector):
    """Adversarial autoencoder of radar images, scored by the covariance change of what it rebuilds.

    1. Images of one to four polarisations become amplitudes, despeckled where they are complex and
       that is asked for, and their logarithms are scaled to [0, 1].
    2. An autoencoder learns small patches of the images themselves, while a discriminator makes its
       codes normally distributed. It rebuilds what is frequent and not what is rare.
    3. The image is rebuilt from overlapping patches. The score of a pixel is how far the
       covariances of its window are apart in the image and in what was rebuilt
       (`mahal.change_map`).

    Parameters
    ----------
    patch : int
        Side of the patches, 32 or a larger multiple of 16: 64 in the paper, 32 in the authors'
        code.
    latent : int
        Size of the code.
    width : int
        Channels after the first convolution; 2, 4 and 4 times as many after the others.
    stride : int
        Step between the patches of the training.
    epochs, batch_size : int
        Of the training.
    learning_rate, highest_rate, half_cycle : float, float, int
        Of Adam: the rate goes up and down between the two, in so many batches each way.
    reconstruction_loss : {"l1", "likelihood"}
        Of the log-intensities: mean modulus of the difference, or the likelihood ``a + exp(-a)`` of
        single-look speckle.
    adversarial : bool
        False: no discriminator.
    scaling : {"log", "linear"}
        Whether logarithms of amplitudes or amplitudes are scaled to [0, 1].
    bounds : (low, high), optional
        Logarithms of the amplitudes, or amplitudes, that become 0 and 1 in all channels. None: for
        each channel what 0.1 % of its pixels are below, and its highest one.
    despeckling : {"none", "merlin"}
        ``merlin``: a `Despeckler` learns from the same images, which must be complex.
    despeckling_iterations : int
        Of its training.
    guidance : {"none", "binary", "fractional"}
        Keeps what RX finds unusual out of the training (2023): in [0, 1], scores of
        `guidance_level` or more are abnormal, where they are not alone, and a little around them;
        or the weight of a pixel falls linearly to 0 at that level.
    guidance_level : float
        Of the scores, once they are scaled to [0, 1].
    guidance_fill : {"median", "mean", "delete"}
        What the reconstruction is compared with there: median or mean of the normal pixels of the
        patch, or nothing.
    rx_window, rx_estimator : (inner, outer), str
        Of the RX of the guidance, of complex images without a mean, before any despeckling.
    window : int
        Odd side of the windows of the score.
    metric : str
        Any of `mahal.change_map`, or ``mean`` (squared distance of the means of the windows),
        ``mix`` (0.7 mean + 0.3 frobenius, each scaled to [0, 1] over the map) or ``l1`` (difference
        of the pixels alone).
    center : bool
        Whether covariances or second moments about zero are compared.
    domain : {"scaled", "amplitude"}
        Whether scaled images or amplitudes are compared.
    compat : {"muzeau"}, optional
        The divisor of the authors' code, see `mahal.change_map`.
    overlap_stride : int, optional
        Step between the patches an image is rebuilt from; None: half a patch.
    seed : int
        The same seed gives the same map, bit for bit on the CPU.

    Notes
    -----
    The architecture, the order of the steps and the losses are those of the authors' code, and
    `paper` has their sizes. Changes: the last row and column of patches are learnt too, and a
    smaller last batch is not filled up.
    """

    complex_images: ClassVar[bool] = True
    scoring_params: ClassVar[tuple[str, ...]] = (
        "window",
        "metric",
        "center",
        "domain",
        "compat",
        "overlap_stride",
    )

    low_: Maps
    high_: Maps
    networks_: _Networks
    despeckler_: Despeckler | None

    def __init__(
        self,
        *,
        patch: int = 32,
        latent: int = 128,
        width: int = 32,
        stride: int = 16,
        epochs: int = 30,
        batch_size: int = 100,
        learning_rate: float = 1e-3,
        highest_rate: float = 1e-2,
        half_cycle: int = 900,
        reconstruction_loss: str = "l1",
        adversarial: bool = True,
        scaling: str = "log",
        bounds: tuple[float, float] | None = None,
        despeckling: str = "none",
        despeckling_iterations: int = 400,
        guidance: str = "none",
        guidance_level: float = 0.04,
        guidance_fill: str = "median",
        rx_window: tuple[int, int] = (31, 39),
        rx_estimator: str = "scm",
        window: int = 11,
        metric: str = "frobenius",
        center: bool = True,
        domain: str = "scaled",
        compat: str | None = None,
        overlap_stride: int | None = None,
        seed: int = 0,
    ) -> None:
        self.patch, self.latent, self.width, self.stride = patch, latent, width, stride
        self.epochs, self.batch_size = epochs, batch_size
        self.learning_rate, self.highest_rate = learning_rate, highest_rate
        self.half_cycle = half_cycle
        self.reconstruction_loss, self.adversarial = reconstruction_loss, adversarial
        self.scaling, self.bounds = scaling, bounds
        self.despeckling, self.despeckling_iterations = despeckling, despeckling_iterations
        self.guidance, self.guidance_level = guidance, guidance_level
        self.guidance_fill = guidance_fill
        self.rx_window, self.rx_estimator = rx_window, rx_estimator
        self.window, self.metric, self.center = window, metric, center
        self.domain, self.compat, self.overlap_stride = domain, compat, overlap_stride
        self.seed = seed
        self._check()

    @classmethod
    def paper(cls, patch: int = 32, **params: Any) -> SARAutoencoder:
        """The settings of the authors' code, for images as large as theirs.

        Parameters
        ----------
        patch : {32, 64}
            32 as in the shipped weights, 64 as in the paper.
        **params
            Other parameters. ``bounds`` are those of their L-band sensor.

        Returns
        -------
        SARAutoencoder
        """
        if patch not in (32, 64):
            raise ValueError(f"SARAutoencoder.paper: patch: must be 32 or 64, got {patch!r}")
        sizes = {"stride": patch, "epochs": 50, "bounds": (-1.0, 10.5), "compat": "muzeau"}
        return cls(**{"patch": patch, **sizes, **params})

    def _check(self) -> None:
        op = type(self).__name__
        whole = ("patch", "latent", "width", "stride", "epochs", "batch_size", "half_cycle")
        for name in (*whole, "despeckling_iterations", "window"):
            check_number(op, name, getattr(self, name), 1, whole=True)
        if self.overlap_stride is not None:
            check_number(op, "overlap_stride", self.overlap_stride, 1, whole=True)
            if self.overlap_stride > self.patch:
                raise ValueError(
                    f"{op}: overlap_stride: must be at most the patch, {self.patch}, "
                    f"got {self.overlap_stride}"
                )
        check_number(op, "seed", self.seed, 0, whole=True)
        if self.patch % 16 or self.patch < 32:
            raise ValueError(f"{op}: patch: must be 32, 48, 64, ..., got {self.patch}")
        if self.window % 2 == 0:
            raise ValueError(f"{op}: window: must be odd, got {self.window}")
        check_number(op, "learning_rate", self.learning_rate, 0, whole=False, open_=True)
        check_number(op, "highest_rate", self.highest_rate, self.learning_rate, whole=False)
        check_number(op, "guidance_level", self.guidance_level, 0, whole=False, open_=True)
        check_choice(op, "reconstruction_loss", self.reconstruction_loss, ("l1", "likelihood"))
        check_choice(op, "scaling", self.scaling, ("log", "linear"))
        check_choice(op, "despeckling", self.despeckling, ("none", "merlin"))
        check_choice(op, "guidance", self.guidance, ("none", "binary", "fractional"))
        check_choice(op, "guidance_fill", self.guidance_fill, ("median", "mean", "delete"))
        check_choice(op, "rx_estimator", self.rx_estimator, ESTIMATORS)
        check_choice(op, "metric", self.metric, (*METRICS, "mean", "mix", "l1"))
        check_choice(op, "domain", self.domain, ("scaled", "amplitude"))
        if self.bounds is not None and not (
            len(self.bounds) == 2
            and np.isfinite(self.bounds).all()
            and self.bounds[0] < self.bounds[1]
        ):
            raise ValueError(
                f"{op}: bounds: must be two numbers, the lower one first, got {self.bounds!r}"
            )

    # -- images

    def _check_image(self, picture: Picture) -> None:
        op, name = picture.op, picture.name
        if picture.bands > POLARISATIONS:
            raise ModelError(
                f"{op}: {name}: must have 1 to {POLARISATIONS} polarisations, got {picture.bands}"
            )
        check_size(picture, self.patch)
        if picture.dtype.kind == "c":
            return
        if self.despeckling != "none":
            raise ModelError(
                f"{op}: {name}: must be single-look complex for despeckling, got {picture.dtype}"
            )
        lowest = picture.values[picture.used].min()
        if lowest < 0:
            raise ModelError(f"{op}: {name}: must hold amplitudes, none negative, got {lowest:.6g}")

    def _amplitude(self, picture: Picture) -> Maps:
        if self.despeckler_ is not None:
            return self.despeckler_._despeckle(picture)
        return np.asarray(np.abs(picture.values), np.float32)

    def _level(self, amplitude: Maps) -> Maps:
        """What is scaled: logarithms, or amplitudes."""
        return np.log(amplitude + np.float32(1e-20)) if self.scaling == "log" else amplitude

    def _find_bounds(self, amplitudes: list[Maps], pictures: list[Picture]) -> None:
        bands = pictures[0].bands
        if self.bounds is not None:
            self.low_, self.high_ = (np.full(bands, b, np.float32) for b in self.bounds)
            return
        self.low_, self.high_ = np.empty((2, bands), np.float32)
        for band in range(bands):
            chosen = zip(amplitudes, pictures, strict=True)
            values = np.concatenate([a[..., band][p.used] for a, p in chosen])
            if self.scaling == "log":
                values = values[values > 0]
            if values.size == 0 or values.min() == values.max():
                raise ModelError(
                    f"{pictures[0].op}: images: channel {band} is constant, there is nothing to "
                    "learn"
                )
            levels = self._level(values)
            self.low_[band], self.high_[band] = np.quantile(levels, DARKEST_SHARE), levels.max()

    def _scaled(self, amplitude: Maps, used: npt.NDArray[np.bool_]) -> Maps:
        """Image in [0, 1]; the median of each channel where no pixel is used."""
        span = self.high_ - self.low_
        known = np.where(used[..., None], amplitude, np.float32(0))
        scaled = np.clip((self._level(known) - self.low_) / span, 0, 1)
        if not used.all():
            scaled[~used] = np.median(scaled[used], axis=0)
        return np.asarray(scaled, np.float32)

    def _unscaled(self, image: Maps) -> Maps:
        level = image * (self.high_ - self.low_) + self.low_
        return np.asarray(np.exp(level) if self.scaling == "log" else level, np.float32)

    # -- guidance

    def _normality(self, picture: Picture) -> Maps:
        """Weight of every pixel, 1 where RX finds it normal."""
        if self.guidance == "none":
            return np.ones(picture.used.shape, np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mahal.SingularWarning)
            warnings.simplefilter("ignore", mahal.ConvergenceWarning)
            scores = mahal.rx(
                picture.values,
                window=tuple(self.rx_window),
                estimator=self.rx_estimator,
                center=picture.values.dtype.kind != "c",
                mask=picture.used,
            )
        low, high = np.nanmin(scores), np.nanmax(scores)
        scores = np.nan_to_num((scores - low) / (high - low) if high > low else scores * 0)
        if self.guidance == "fractional":
            level = self.guidance_level
            return np.asarray(1 - np.minimum(scores, level) / level, np.float32)
        abnormal = torch.from_numpy(np.asarray(scores >= self.guidance_level))
        abnormal &= _count(abnormal, PLUS) >= 3
        # Opening of the normal part: what is narrower than the disk counts as abnormal.
        normal = _count(_count(abnormal, DISK) == 0, DISK) > 0
        return np.asarray(normal.numpy(), np.float32)

    # -- learning

    def _fit(
        self,
        pictures: Pictures,
        progress: bool,
        checkpoint: Path | None,
        trainer: Mapping[str, Any],
    ) -> None:
        images = list(pictures)
        for picture in images:
            self._check_image(picture)
        self.despeckler_ = None
        if self.despeckling == "merlin":
            self.despeckler_ = self._despeckler()
            # A training that goes on learns it again, and it comes out the same.
            folder = None if checkpoint is None else checkpoint / "despeckler"
            self.despeckler_._fit(images, progress, folder, trainer)
        amplitudes = [self._amplitude(picture) for picture in images]
        self._find_bounds(amplitudes, images)
        self.bands_ = pictures.bands
        layers = []
        for picture, amplitude in zip(images, amplitudes, strict=True):
            weights = np.stack([picture.used, self._normality(picture)], axis=-1)
            layers.append(
                np.concatenate(
                    [self._scaled(amplitude, picture.used), weights], axis=-1, dtype=np.float32
                )
            )
        patches = Patches(layers, self.patch, self.stride)
        patches.keep(torch.cat([p[:, -2].mean(dim=(1, 2)) > 0.5 for p in patches.split(256)]))
        if len(patches) == 0:
            raise ModelError(
                f"{pictures.op}: masks: must leave at least half of one patch of {self.patch} x "
                f"{self.patch} pixels"
            )
        factor = np.ones_like(self.low_)
        if self.scaling == "log":
            factor = 2 * (self.high_ - self.low_)
        learner = _AdversarialLearner(patches, factor, self._networks(), self)
        with one_thread():
            train(
                learner,
                Batches(len(patches), self.batch_size, 1, self.seed),
                epochs=self.epochs,
                settings=self._settings(float(patches.pixels.sum(dtype=torch.float64))),
                progress=progress,
                checkpoint=checkpoint,
                trainer=trainer,
            )
        self.networks_ = learner.networks.eval().requires_grad_(False)

    def _settings(self, images: float) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        params = {k: v for k, v in self.get_params().items() if k not in self.scoring_params}
        return {**params, "model": type(self).__name__, "images": images}

    def _despeckler(self) -> Despeckler:
        return Despeckler(iterations=self.despeckling_iterations, seed=self.seed)

    def _networks(self) -> _Networks:
        return seeded(
            lambda: _Networks(self.bands_, self.patch, self.latent, self.width),
            self.seed,
            "autoencoder",
        )

    # -- scoring

    def _step(self) -> int:
        return self.overlap_stride or self.patch // 2

    def _rebuilt(self, scaled: Maps) -> Maps:
        """Mean of what all patches over a pixel say."""
        patches = Patches([scaled], self.patch, self._step())
        total = torch.zeros_like(patches.pixels)
        count = torch.zeros(len(total), 1)
        steps = torch.arange(self.patch)
        with one_thread(), torch.inference_mode():
            places = patches.first.split(SCORED_TOGETHER)
            for first, x in zip(places, patches.split(SCORED_TOGETHER), strict=True):
                index = first[:, None, None] + steps[:, None] * scaled.shape[1] + steps
                rebuilt = self.networks_.rebuild(x).movedim(1, 3)
                total.index_add_(0, index.flatten(), rebuilt.flatten(0, 2))
                count.index_add_(0, index.flatten(), torch.ones(index.numel(), 1))
        return np.asarray((total / count).reshape(scaled.shape).numpy(), np.float32)

    def _score(self, picture: Picture) -> Maps:
        self._check_image(picture)
        image = self._scaled(self._amplitude(picture), picture.used)
        rebuilt = self._rebuilt(image)
        if self.domain == "amplitude":
            image, rebuilt = self._unscaled(image), self._unscaled(rebuilt)
        return picture.map(self._change(image, rebuilt, picture.used))

    def _change(self, image: Maps, rebuilt: Maps, used: npt.NDArray[np.bool_]) -> Maps:
        if self.metric == "l1":
            return np.asarray(np.abs(image - rebuilt).sum(axis=2))
        if self.metric == "mean":
            return self._mean_change(image, rebuilt, used)
        metric = "frobenius" if self.metric == "mix" else self.metric
        scores = mahal.change_map(
            image,
            rebuilt,
            self.window,
            metric=metric,
            center=self.center,
            mask=used,
            compat=self.compat,
        )
        if self.metric == "mix":
            mean = self._mean_change(image, rebuilt, used)
            scores = sum(
                weight * _unit(part) for weight, part in zip(MIX, (mean, scores), strict=True)
            )
        return np.asarray(scores)

    def _mean_change(self, image: Maps, rebuilt: Maps, used: npt.NDArray[np.bool_]) -> Maps:
        first, second = (
            mahal.local_covariance(values, self.window, mask=used)[0] for values in (image, rebuilt)
        )
        return np.asarray(((first - second) ** 2).sum(axis=2))

    def reconstruct(self, image: Any, *, mask: Any | None = None) -> Maps:
        """Amplitudes that the autoencoder rebuilds, from overlapping patches.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, polarisations) array
            Complex or amplitude, as for `score`.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows, cols, polarisations) ndarray of float32
            In the units of the image; NaN where no pixel is used.
        """
        picture, scaled = self._prepared("reconstruct", image, mask)
        rebuilt = self._unscaled(self._rebuilt(scaled))
        rebuilt[~picture.used] = np.nan
        return rebuilt

    def despeckled(self, image: Any, *, mask: Any | None = None) -> Maps:
        """Amplitudes as the autoencoder sees them: despeckled, and cut at the bounds.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, polarisations) array
            Complex or amplitude, as for `score`.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows, cols, polarisations) ndarray of float32
            In the units of the image; NaN where no pixel is used.
        """
        picture, scaled = self._prepared("despeckled", image, mask)
        amplitude = self._unscaled(scaled)
        amplitude[~picture.used] = np.nan
        return amplitude

    def patch_codes(
        self, image: Any, *, mask: Any | None = None, stride: int | None = None
    ) -> Maps:
        """Codes of the patches of an image, for plots of the latent space.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, polarisations) array
            Complex or amplitude, as for `score`.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.
        stride : int, optional
            Step between patches; None: as `score` takes it. The last row and column of patches end
            with the image.

        Returns
        -------
        (patches down, patches across, latent) ndarray of float32
            See `mahal.pictures.latent_figure`.
        """
        if stride is not None:
            check_number(f"{type(self).__name__}.patch_codes", "stride", stride, 1, whole=True)
        _, scaled = self._prepared("patch_codes", image, mask)
        step = self._step() if stride is None else stride
        patches = Patches([scaled], self.patch, step)
        with one_thread(), torch.inference_mode():
            found = [self.networks_.encoder(x) for x in patches.split(SCORED_TOGETHER)]
        down = len(offsets(scaled.shape[0], self.patch, step))
        return np.asarray(torch.cat(found).reshape(down, -1, self.latent).numpy(), np.float32)

    def _prepared(self, what: str, image: Any, mask: Any | None) -> tuple[Picture, Maps]:
        self._check_fitted(what)
        picture = self._read(what, image, mask)
        self._check_image(picture)
        return picture, self._scaled(self._amplitude(picture), picture.used)

    # -- files

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {"low": torch.from_numpy(self.low_), "high": torch.from_numpy(self.high_)}
        tensors |= {f"networks.{n}": t for n, t in self.networks_.state_dict().items()}
        if self.despeckler_ is not None:
            tensors |= {f"despeckler.{n}": t for n, t in self.despeckler_._tensors().items()}
        return tensors

    def _restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        def under(prefix: str) -> dict[str, torch.Tensor]:
            return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}

        self.low_, self.high_ = tensors["low"].numpy(), tensors["high"].numpy()
        self.networks_ = self._networks().eval().requires_grad_(False)
        self.networks_.load_state_dict(under("networks."))
        self.despeckler_ = None
        if self.despeckling == "merlin":
            self.despeckler_ = self._despeckler()
            self.despeckler_.bands_ = self.bands_
            self.despeckler_._restore(under("despeckler."), {})


def _count(chosen: torch.Tensor, shape: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """How many pixels of a neighbourhood are chosen; none beyond the edge."""
    kernel = torch.tensor(shape, dtype=torch.float32)[None, None]
    image = chosen.to(torch.float32)[None, None]
    return functional.conv2d(image, kernel, padding=kernel.shape[-1] // 2)[0, 0].round()


def _unit(scores: Maps) -> Maps:
    """Scores scaled to [0, 1] over the map."""
    low, high = np.nanmin(scores), np.nanmax(scores)
    return (scores - low) / (high - low) if high > low else scores * 0

"""Convolutional variational autoencoder with a Gaussian random field as its prior.

H. Gangloff, M.-T. Pham, L. Courtrai and S. Lefevre, "Variational autoencoder with Gaussian random
field prior: application to unsupervised animal detection in aerial images", ICIP 2023. Equations
are those of that paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

import mahal
from mahal.models._detector import ModelError, check_choice, check_number
from mahal.models._images import ImageDetector, Picture, Pictures
from mahal.models._training import Batches, Learner, generator, train
from mahal.models.resnet import BasicBlock
from mahal.nn import GRFPrior

Maps = npt.NDArray[np.float32]

STRIDE = 8
"""Pixels of an image per pixel of its code."""
KINDS = ("mad_sm", "mad", "sm", "l2", "grad_elbo", "grad_elbo_sm", "iterative")
# A field of so short a range is white noise to the last bit: the prior of a plain autoencoder.
WHITE = 1e-2
# Closed forms of the continuous Bernoulli lose their digits below this logit, series above it.
SERIES = 0.3


class _ContinuousBernoulli(torch.autograd.Function):
    """Log-density of values in [0, 1], from the logit (Loaiza-Ganem and Cunningham, 2019).

    ``a x + log(a / (exp(a) - 1))``, whose derivative by the logit a is x minus the mean.
    """

    @staticmethod
    def forward(context: Any, x: torch.Tensor, logit: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x, logit)
        size = logit.abs()
        normal = torch.log(size / -torch.expm1(-size)) - functional.relu(logit)
        square = logit.square()
        series = square * (square / 2880 - 1 / 24) - logit / 2
        return logit * x + torch.where(size < SERIES, series, normal)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, logit = context.saved_tensors
        of_x = grads[0] * logit if context.needs_input_grad[0] else None
        of_logit = grads[0] * (x - bernoulli_mean(logit)) if context.needs_input_grad[1] else None
        return of_x, of_logit


def bernoulli_mean(logit: torch.Tensor) -> torch.Tensor:
    """Mean of the continuous Bernoulli, ``1 / (1 - exp(-a)) - 1 / a``, of every logit a."""
    small = logit.abs() < SERIES
    safe = torch.where(small, 1.0, logit)
    series = logit * (1 / 12 - logit.square() / 720) + 0.5
    return torch.where(small, series, -1 / torch.expm1(-safe) - 1 / safe)


class _Networks(nn.Module):
    """Encoder, decoder and prior (section III-D)."""

    def __init__(self, bands: int, width: int, latent: int, prior: GRFPrior) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(bands, width, 7, 2, 3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            BasicBlock(width, width),
            BasicBlock(width, width),
            BasicBlock(width, 2 * width, 2),
            BasicBlock(2 * width, 2 * width),
            nn.Conv2d(2 * width, 2 * latent, 1),
        )
        sizes = (latent, 2 * width, width, max(width // 2, 1))
        layers: list[nn.Module] = []
        for place, (a, b) in enumerate(pairwise(sizes)):
            side = (1, 1, 0) if place == 0 else (4, 2, 1)
            layers += [nn.ConvTranspose2d(a, b, *side), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.decoder = nn.Sequential(*layers, nn.ConvTranspose2d(sizes[-1], bands, 4, 2, 1))
        self.prior = prior

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and log-variances of the codes of images (batch, bands, rows, cols)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance

    def elbo(
        self, x: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-likelihood and divergence of every image, whose difference is the bound (Eq. 8).

        Without noise the code is its mean.
        """
        mean, log_variance = self.encode(x)
        code = mean if noise is None else mean + torch.exp(0.5 * log_variance) * noise
        # Sums over pixels are beyond the digits of half precision.
        logit = self.decoder(code).to(x.dtype)
        likelihood = _ContinuousBernoulli.apply(x, logit).sum((1, 2, 3))
        return likelihood, self.prior(mean, log_variance).sum(1)

    def rebuild(self, x: torch.Tensor) -> torch.Tensor:
        """What the mean of the code decodes to, as the mean of its distribution."""
        return bernoulli_mean(self.decoder(self.encode(x)[0]))


class _Tiles:
    """Images in memory, and the tiles that fit into them side by side."""

    def __init__(self, images: list[torch.Tensor], side: int) -> None:
        self.images, self.side = images, side
        self.places = [
            (number, row, col)
            for number, image in enumerate(images)
            for row in range(0, image.shape[1] - side + 1, side)
            for col in range(0, image.shape[2] - side + 1, side)
        ]

    def __len__(self) -> int:
        return len(self.places)

    def still(self, index: torch.Tensor) -> torch.Tensor:
        """The tiles where they lie, (batch, bands, side, side)."""
        return torch.stack([self._tile(*self.places[k]) for k in index.tolist()])

    def moved(self, index: torch.Tensor, draws: torch.Generator, flips: bool) -> torch.Tensor:
        """Tiles at random places of the same images, upside down or mirrored at random."""
        chances = torch.rand(len(index), 4, generator=draws)
        found = []
        for k, chance in zip(index.tolist(), chances.tolist(), strict=True):
            number = self.places[k][0]
            _, rows, cols = self.images[number].shape
            row = int(chance[0] * (rows - self.side + 1))
            col = int(chance[1] * (cols - self.side + 1))
            axes = [axis for axis in (1, 2) if flips and chance[axis + 1] < 0.5]
            found.append(self._tile(number, row, col).flip(axes))
        return torch.stack(found)

    def _tile(self, number: int, row: int, col: int) -> torch.Tensor:
        image = self.images[number]
        tile = image[:, row : row + self.side, col : col + self.side]
        return tile.float() / 255 if image.dtype == torch.uint8 else tile


class _GRFLearner(Learner):
    """The loss of Eq. 10, in nats per pixel."""

    def __init__(
        self, tiles: _Tiles, validation: _Tiles | None, networks: _Networks, model: VAEGRF
    ) -> None:
        super().__init__({}, model.seed)
        self.networks, self.model = networks, model
        self.tiles, self.unseen = tiles, validation
        self.beta = model.beta
        if model.weighting == "published":
            self.beta *= STRIDE**2 / model.latent
        self.draws = generator(self.seed)

    def on_train_epoch_start(self) -> None:
        """Places and flips of this epoch too."""
        super().on_train_epoch_start()
        self.draws = generator(self.seed, "tiles", self.current_epoch, self.global_rank)

    def on_validation_epoch_start(self) -> None:
        """The same noise in every epoch."""
        self.noise = generator(self.seed, "validation", self.global_rank, device=self.device)

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Minus the bound, and minus the likelihood of the images where it trains the prior."""
        shape = (len(x), self.model.latent, *(side // STRIDE for side in x.shape[2:]))
        noise = torch.randn(shape, generator=self.noise, device=x.device)
        likelihood, divergence = self.networks.elbo(x, noise)
        pixels = x.shape[2] * x.shape[3]
        self.checked(likelihood, "likelihood of the images")
        self.checked(divergence, "divergence from the prior")
        loss = (self.beta * divergence - likelihood).mean() / pixels
        if self.networks.prior.learn == "gradient":
            loss = loss - self.networks.prior.log_likelihood(x).sum(1).mean() / pixels
        return loss

    def training_step(self, index: torch.Tensor) -> torch.Tensor:
        """Of tiles at random places."""
        x = self.tiles.moved(index[0], self.draws, self.model.flips).to(self.device)
        return self.checked(self.loss(x))

    def validation_step(self, index: torch.Tensor) -> None:
        """Of the tiles of images that are not trained on."""
        assert self.unseen is not None
        x = self.unseen.still(index[0]).to(self.device)
        self.log("validation", self.loss(x), batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam; the two numbers of the prior have a rate of their own."""
        prior = list(self.networks.prior.parameters())
        others = [p for n, p in self.networks.named_parameters() if not n.startswith("prior.")]
        groups: list[dict[str, Any]] = [{"params": others}]
        if prior:
            groups.append({"params": prior, "lr": self.model.prior_learning_rate})
        return torch.optim.Adam(groups, lr=self.model.learning_rate)


class VAEGRF(ImageDetector):
    """Variational autoencoder whose latent planes have a Gaussian random field as their prior.

    A convolutional network codes an image as `latent` planes of an eighth of its side, normal with
    a mean and a variance in every pixel, and decodes them as a continuous Bernoulli distribution of
    every pixel and band. Training maximises the evidence lower bound (Eq. 8) with the divergence
    from the field (Eq. 12, `mahal.grf_kl`) weighted by ``beta``; it does not move the field, whose
    range and variance are those of the images (Eq. 14). ``prior="normal"`` is the plain variational
    autoencoder.

    Images hold values between 0 and 1, or unsigned integers, which count as shares of the largest
    of their type. They stay in memory while they are learnt, 8-bit ones as they are. Pixels that a
    mask leaves out take the mean of their image.

    Parameters
    ----------
    prior : {"grf", "normal"}
        Of the latent planes: the field, or independent standard normals.
    latent : int
        Number of the planes.
    width : int
        Channels after the first layer. The encoder is the first two stages of a ResNet-18 of this
        width, 64 in the paper.
    crop : int
        Side of the tiles that are learnt, a multiple of 8, at most that of the padded images. An
        epoch has as many tiles of an image as fit into it side by side, each at a random place.
    padding : int
        Pixels by which images are continued symmetrically before tiles are cut.
    flips : bool
        Turn tiles upside down and mirror them at random.
    beta : float
        Weight of the divergence.
    weighting : {"elbo", "published"}
        ``elbo``: likelihood and divergence are sums over pixels, so that 1 is the bound itself.
        ``published``: means over pixels and planes, as in the published code, which multiplies
        the divergence by 64 / latent, a quarter with 256 planes.
    learn : {"likelihood", "gradient", "fixed"}
        Of range and variance. ``likelihood``: their maximum over the images, once before the
        training (`mahal.grf_fit`); ``gradient``: from the likelihood of every batch, with Adam,
        starting at ``range`` and ``variance``; ``fixed``: those two.
    smoothness, kernel, convention
        Of the field, as for `mahal.grf_spectrum`.
    range, variance : float
        Range of the images in pixels, and variance.
    range_ratio : float
        Range of the latent field per range of the images, in pixels of each; the ratio of their
        sides in the paper (Eq. 7).
    epochs, batch_size, learning_rate : int, int, float
        Of the training with Adam.
    prior_learning_rate : float
        Of ``learn="gradient"``.
    held_out : float
        Share of the images that is not learnt but watched, for ``patience``.
    patience : int, optional
        Stop when the loss of those images has not fallen for so many epochs, and go back to the
        best.
    score_kind : {"mad_sm", "mad", "sm", "l2", "grad_elbo", "grad_elbo_sm", "iterative"}
        - ``mad``: mean absolute deviation of the latent means over the planes (Eq. 15), every
          latent pixel repeated over its 8 x 8 pixels.
        - ``sm``: product over the bands of one minus the structural similarity (Eq. 16,
          `mahal.structural_similarity`) of image and rebuilt image.
        - ``mad_sm``: the product of the two.
        - ``l2``: mean over the bands of the squared difference of image and rebuilt image.
        - ``grad_elbo``: mean over the bands of the modulus of the gradient of the bound by the
          image (Zimmerer et al., 2019). ``grad_elbo_sm``: times ``sm``.
        - ``iterative``: ``sm`` of the image and its iterative projection onto what the network
          rebuilds well (Dehaene et al., 2020).
    window : int
        Odd side of the windows of the structural similarity.
    normalize : bool
        Bring every map, and the factors of a product, to [0, 1] by its smallest and largest value,
        as in the paper. Scores of different images are then no longer comparable.
    projection_steps, projection_rate, projection_weight : int, float, float
        Of ``iterative``: steps, their size, and the weight of the distance from the image.
    seed : int
        The same seed gives the same map, bit for bit on the CPU with the same number of threads.

    Attributes
    ----------
    range_, variance_ : float
        Of the field after training, in pixels of the images; NaN for the plain autoencoder.

    Notes
    -----
    Rebuilt images are means of the continuous Bernoulli distribution.

    References
    ----------
    D. Zimmerer, F. Isensee, J. Petersen, S. Kohl and K. Maier-Hein, "Unsupervised anomaly
    localization using variational auto-encoders", MICCAI 2019.

    D. Dehaene, O. Frigo, S. Combrexelle and P. Eline, "Iterative energy-based projection on a
    normal data manifold for anomaly localization", ICLR 2020.
    """

    scoring_params: ClassVar[tuple[str, ...]] = (
        "score_kind",
        "window",
        "normalize",
        "projection_steps",
        "projection_rate",
        "projection_weight",
    )

    networks_: _Networks
    range_: float
    variance_: float

    def __init__(
        self,
        *,
        prior: str = "grf",
        latent: int = 32,
        width: int = 16,
        crop: int = 64,
        padding: int = 0,
        flips: bool = True,
        beta: float = 1.0,
        weighting: str = "elbo",
        learn: str = "likelihood",
        smoothness: float = 1.5,
        kernel: str = "periodised",
        convention: str = "standard",
        range: float = 1.0,
        variance: float = 1.0,
        range_ratio: float = 1 / STRIDE,
        epochs: int = 20,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        prior_learning_rate: float = 1e-2,
        held_out: float = 0.0,
        patience: int | None = None,
        score_kind: str = "mad_sm",
        window: int = 11,
        normalize: bool = False,
        projection_steps: int = 15,
        projection_rate: float = 0.5,
        projection_weight: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.prior, self.latent, self.width = prior, latent, width
        self.crop, self.padding, self.flips = crop, padding, flips
        self.beta, self.weighting, self.learn = beta, weighting, learn
        self.smoothness, self.kernel, self.convention = smoothness, kernel, convention
        self.range, self.variance, self.range_ratio = range, variance, range_ratio
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.prior_learning_rate = prior_learning_rate
        self.held_out, self.patience = held_out, patience
        self.score_kind, self.window, self.normalize = score_kind, window, normalize
        self.projection_steps, self.projection_rate = projection_steps, projection_rate
        self.projection_weight, self.seed = projection_weight, seed
        self._check()

    def _check(self) -> None:
        op = type(self).__name__
        check_choice(op, "prior", self.prior, ("grf", "normal"))
        check_choice(op, "weighting", self.weighting, ("elbo", "published"))
        check_choice(op, "learn", self.learn, ("likelihood", "gradient", "fixed"))
        check_choice(op, "score_kind", self.score_kind, KINDS)
        for name in ("latent", "width", "epochs", "batch_size", "projection_steps"):
            check_number(op, name, getattr(self, name), 1, whole=True)
        for name in ("padding", "seed"):
            check_number(op, name, getattr(self, name), 0, whole=True)
        rates = ("learning_rate", "prior_learning_rate", "projection_rate")
        for name in (*rates, "range", "variance", "range_ratio"):
            check_number(op, name, getattr(self, name), 0, whole=False, open_=True)
        for name in ("beta", "projection_weight"):
            check_number(op, name, getattr(self, name), 0, whole=False)
        check_number(op, "crop", self.crop, 2 * STRIDE, whole=True)
        if self.crop % STRIDE:
            raise ValueError(f"{op}: crop: must be a multiple of {STRIDE}, got {self.crop}")
        check_number(op, "window", self.window, 3, whole=True)
        if self.window % 2 == 0:
            raise ValueError(f"{op}: window: must be odd, got {self.window}")
        check_number(op, "held_out", self.held_out, 0, whole=False)
        if self.held_out > 0.5:
            raise ValueError(f"{op}: held_out: must be at most 0.5, got {self.held_out}")
        if self.patience is not None:
            check_number(op, "patience", self.patience, 1, whole=True)
        if (self.patience is None) != (self.held_out == 0):
            raise ValueError(
                f"{op}: patience: must be given where images are held out, and only there, got "
                f"{self.patience!r} with held_out={self.held_out}"
            )
        # It checks the parameters of the field, at a range that every kernel allows.
        mahal.grf_spectrum(
            (STRIDE, STRIDE),
            range=0.1,
            smoothness=self.smoothness,
            kernel=self.kernel,
            convention=self.convention,
        )

    @classmethod
    def paper(cls, data: str = "livestock", **params: Any) -> VAEGRF:
        """The settings of the paper, for a GPU.

        Parameters
        ----------
        data : {"livestock", "texture", "tile", "wood"}
            Which of its data; ``texture`` are all the others.
        **params
            Other parameters.

        Returns
        -------
        VAEGRF
        """
        check_choice("VAEGRF.paper", "data", data, ("livestock", "texture", "tile", "wood"))
        settings: dict[str, Any] = {
            "latent": 256,
            "width": 64,
            "crop": 256,
            "beta": 0.1 if data in ("livestock", "wood") else 1.0,
            "smoothness": 0.5 if data == "tile" else 1.5,
            "convention": "paper",
            "learn": "gradient",
            "epochs": 1000,
            "learning_rate": 1e-4,
            "window": 11 if data == "livestock" else 15,
            "normalize": True,
        }
        return cls(**{**settings, **params})

    # -- learning

    def _prior(self, length: float | None = None, variance: float | None = None) -> GRFPrior:
        """The field, of these numbers or those of the parameters."""
        if self.prior == "normal":
            return GRFPrior(range=WHITE, variance=1.0, learn="fixed")
        return GRFPrior(
            range=self.range if length is None else length,
            variance=self.variance if variance is None else variance,
            learn="gradient" if self.learn == "gradient" else "fixed",
            stride=1 / self.range_ratio,
            smoothness=self.smoothness,
            kernel=self.kernel,
            convention=self.convention,
        )

    def _networks(self, bands: int, prior: GRFPrior) -> _Networks:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, "weights").initial_seed())
            return _Networks(bands, self.width, self.latent, prior)

    def _fit(
        self,
        pictures: Pictures,
        progress: bool,
        checkpoint: Path | None,
        trainer: Mapping[str, Any],
    ) -> None:
        images = [self._packed(picture) for picture in pictures]
        unseen = self._held_out(pictures.op, len(images))
        tiles = _Tiles([image for k, image in enumerate(images) if k not in unseen], self.crop)
        watched = _Tiles([images[k] for k in sorted(unseen)], self.crop) if unseen else None
        prior = self._prior(*(self._likeliest(tiles) if self._searches else ()))
        learner = _GRFLearner(tiles, watched, self._networks(pictures.bands, prior), self)
        train(
            learner,
            Batches(len(tiles), self.batch_size, 1, self.seed),
            epochs=self.epochs,
            settings={
                **{k: v for k, v in self.get_params().items() if k not in self.scoring_params},
                "model": type(self).__name__,
                "images": [len(images), sum(float(i.sum(dtype=torch.float64)) for i in images)],
            },
            progress=progress,
            checkpoint=checkpoint,
            trainer=trainer,
            validation=None if watched is None else Batches(len(watched), self.batch_size, 1, 0),
            patience=self.patience,
        )
        self._keep(learner.networks)
        self.bands_ = pictures.bands

    @property
    def _searches(self) -> bool:
        return self.prior == "grf" and self.learn == "likelihood"

    def _packed(self, picture: Picture) -> torch.Tensor:
        """The image as (bands, rows, cols), padded; 8-bit images as they came."""
        rows, cols = (side + 2 * self.padding for side in picture.values.shape[:2])
        if min(rows, cols) < self.crop:
            raise ModelError(
                f"{picture.op}: {picture.name}: must have at least {self.crop} rows and columns "
                f"with its padding, as crop says, got {rows} x {cols}"
            )
        values = _filled(picture)
        if picture.dtype == np.uint8:
            values = np.rint(values * 255).astype(np.uint8)
        edge = (self.padding, self.padding)
        values = np.pad(values, (edge, edge, (0, 0)), mode="symmetric")
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    def _held_out(self, op: str, count: int) -> set[int]:
        if self.held_out == 0:
            return set()
        if count < 2:
            raise ModelError(f"{op}: images: must be at least 2 with held_out, got {count}")
        order = torch.randperm(count, generator=generator(self.seed, "held out"))
        return set(order[: max(1, round(self.held_out * count))].tolist())

    def _likeliest(self, tiles: _Tiles) -> tuple[float, float]:
        """Range and variance of the largest likelihood of the tiles."""
        total = np.zeros((self.crop, self.crop // 2 + 1))
        count = len(tiles)
        for index in torch.arange(count).split(self.batch_size):
            total += mahal.grf_power(tiles.still(index)) * (len(index) / count)
        fit = mahal.grf_fit(
            total,
            (self.crop, self.crop),
            smoothness=self.smoothness,
            kernel=self.kernel,
            convention=self.convention,
        )
        return fit.range, fit.variance

    def _keep(self, networks: _Networks) -> None:
        self.networks_ = networks.eval().requires_grad_(False)
        self.range_ = self.variance_ = float("nan")
        if self.prior == "grf":
            self.range_ = float(networks.prior.range)
            self.variance_ = float(networks.prior.variance)

    # -- scoring

    def _score(self, picture: Picture) -> Maps:
        return self._maps(picture, (self.score_kind,))[self.score_kind]

    def score_maps(
        self, image: Any, kinds: Iterable[str] = KINDS, *, mask: Any | None = None
    ) -> dict[str, Maps]:
        """Maps of several kinds, which share their passes through the network.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, bands) array
        kinds : iterable of str
            Values of ``score_kind``.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        dict of (rows, cols) ndarrays of float32
        """
        self._check_fitted("score_maps")
        kinds = tuple(kinds)
        for kind in kinds:
            check_choice(f"{type(self).__name__}.score_maps", "kinds", kind, KINDS)
        return self._maps(self._read("score_maps", image, mask), kinds)

    def reconstruct(self, image: Any, *, mask: Any | None = None) -> Maps:
        """The image as the network rebuilds it from the mean of its code.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows, cols, bands) ndarray of float32
            Between 0 and 1.
        """
        self._check_fitted("reconstruct")
        picture = self._read("reconstruct", image, mask)
        with torch.inference_mode():
            rebuilt = self.networks_.rebuild(self._input(picture))
        return self._image(rebuilt, picture)

    def latent_map(self, image: Any, *, mask: Any | None = None) -> Maps:
        """Means of the code, for plots of the latent space.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows / 8, cols / 8, latent) ndarray of float32
            Sides rounded up.
        """
        self._check_fitted("latent_map")
        with torch.inference_mode():
            mean = self.networks_.encode(self._input(self._read("latent_map", image, mask)))[0]
        return np.ascontiguousarray(mean[0].permute(1, 2, 0).numpy())

    def _input(self, picture: Picture) -> torch.Tensor:
        """The image as a batch of one, mirrored at its ends up to a multiple of the stride."""
        rows, cols = picture.values.shape[:2]
        least = max(2 * STRIDE, self.window)
        if min(rows, cols) < least:
            raise ModelError(
                f"{picture.op}: {picture.name}: must have at least {least} rows and columns, got "
                f"{rows} x {cols}"
            )
        edges = ((0, -rows % STRIDE), (0, -cols % STRIDE), (0, 0))
        values = np.pad(_filled(picture), edges, mode="symmetric")
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1))[None])

    def _image(self, batch: torch.Tensor, picture: Picture) -> Maps:
        """(rows, cols, bands) of the pixels of the image."""
        rows, cols = picture.values.shape[:2]
        inside = batch.detach()[0, :, :rows, :cols].permute(1, 2, 0)
        return np.ascontiguousarray(inside.numpy(), dtype=np.float32)

    def _maps(self, picture: Picture, kinds: tuple[str, ...]) -> dict[str, Maps]:
        networks = self.networks_
        x = self._input(picture)
        with torch.inference_mode():
            mean = networks.encode(x)[0]
        found: dict[str, Maps] = {}

        def single(kind: str) -> Maps:
            if kind not in found:
                found[kind] = self._scaled(_SINGLE[kind](self, picture, x, mean))
            return found[kind]

        maps = {}
        for kind in kinds:
            if kind in _SINGLE:
                values = single(kind)
            else:
                values = self._scaled(single(kind.removesuffix("_sm")) * single("sm"))
            maps[kind] = picture.map(values)
        return maps

    def _scaled(self, values: Maps) -> Maps:
        if not self.normalize:
            return values
        low, high = float(values.min()), float(values.max())
        return np.asarray((values - low) / max(high - low, np.finfo(np.float32).tiny), np.float32)

    def _deviation(self, picture: Picture, x: torch.Tensor, mean: torch.Tensor) -> Maps:
        deviation = (mean - mean.mean(1, keepdim=True)).abs().mean(1, keepdim=True)
        whole = functional.interpolate(deviation, scale_factor=STRIDE, mode="nearest")
        return self._image(whole, picture)[..., 0]

    def _dissimilarity(self, picture: Picture, x: torch.Tensor, other: torch.Tensor) -> Maps:
        alike = mahal.structural_similarity(
            self._image(x, picture),
            self._image(other, picture),
            self.window,
            data_range=1.0,
            channels="each",
        )
        # Rounding may bring the similarity of equal windows above 1.
        return np.asarray(np.maximum(1 - alike, 0).prod(axis=2), np.float32)

    def _unlike(self, picture: Picture, x: torch.Tensor, mean: torch.Tensor) -> Maps:
        with torch.inference_mode():
            return self._dissimilarity(picture, x, bernoulli_mean(self.networks_.decoder(mean)))

    def _squares(self, picture: Picture, x: torch.Tensor, mean: torch.Tensor) -> Maps:
        with torch.inference_mode():
            off = x - bernoulli_mean(self.networks_.decoder(mean))
            return self._image(off.square().mean(1, keepdim=True), picture)[..., 0]

    def _gradient(self, picture: Picture, x: torch.Tensor, mean: torch.Tensor) -> Maps:
        with torch.inference_mode(False), torch.enable_grad():
            at = x.clone().requires_grad_()
            likelihood, divergence = self.networks_.elbo(at)
            (slope,) = torch.autograd.grad((likelihood - divergence).sum(), at)
        return self._image(slope.abs().mean(1, keepdim=True), picture)[..., 0]

    def _projected(self, picture: Picture, x: torch.Tensor, mean: torch.Tensor) -> Maps:
        """Gradient steps on the squared residual, largest where the residual is."""
        with torch.inference_mode(False), torch.enable_grad():
            at = first = x.clone()
            for _ in range(self.projection_steps):
                at = at.detach().requires_grad_()
                residual = at - self.networks_.rebuild(at)
                far = (at - first).abs().sum()
                energy = residual.square().sum() + self.projection_weight * far
                (slope,) = torch.autograd.grad(energy, at)
                step = self.projection_rate * slope * residual.square()
                at = (at - step).clamp(0, 1)
        return self._dissimilarity(picture, x, at)

    # -- files

    def _tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.networks_.state_dict())

    def _restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        networks = self._networks(self.bands_, self._prior())
        networks.load_state_dict(dict(tensors))
        self._keep(networks)


_SINGLE = {
    "mad": VAEGRF._deviation,
    "sm": VAEGRF._unlike,
    "l2": VAEGRF._squares,
    "grad_elbo": VAEGRF._gradient,
    "iterative": VAEGRF._projected,
}


def _filled(picture: Picture) -> Maps:
    """Values between 0 and 1, with the mean of the image where a pixel does not count."""
    values = picture.unit()
    if not picture.used.all():
        values[~picture.used] = values[picture.used].mean(axis=0)
    return values

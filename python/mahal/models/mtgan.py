"""Twin least-square generative adversarial network over multi-scale covariance maps.

"MCM-aware twin-least-square GAN for hyperspectral anomaly detection" (MTGAN), 2022; the published
successor is Remote Sens. 14(12), 2859. There is no public code, and the paper leaves several steps
open: each is a parameter here, and the documentation gives the reasons for its default.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

import mahal
from mahal.models._detector import ModelError, Pixels, check_choice, check_number
from mahal.models._training import Batches, Learner, one_thread, train
from mahal.models.spectral import (
    Maps,
    _sizes,
    _SpectralModel,
    _Stacked,
)

Bools = npt.NDArray[np.bool_]

# Slope of the rectifiers for negative values.
SLOPE = 0.2


class _Chain(nn.Module):
    """Stacked layers with leaky rectifiers between them."""

    def __init__(self, runs: int, sizes: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Stacked(runs, a, b) for a, b in pairwise(sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = functional.leaky_relu(layer(x), SLOPE)
        return self.layers[-1](x)


class _TwinNetworks(nn.Module):
    """Encoder and decoder, and a discriminator for the codes and one for the spectra."""

    variational = False

    def __init__(self, sizes: list[int], runs: int, *, tied: bool, seed: int) -> None:
        super().__init__()
        self.tied = tied
        features = sizes[-1]
        self.encoder = _Chain(runs, sizes)
        self.decoder = _Chain(runs, sizes[::-1])
        self.of_features = _Chain(runs, [features, features, features, 1])
        self.of_spectra = _Chain(runs, [sizes[0], features, features, 1])
        for name, layer in self.named_modules():
            if isinstance(layer, _Stacked):
                layer.reset(seed, name)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Features of spectra, (runs, batch, features)."""
        return self.encoder(x)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Spectra in [0, 1] from features; with `tied` by the transposed weights (Eq. 2)."""
        pairs = zip(self.decoder.layers, self.encoder.layers[::-1], strict=True)
        for place, (own, other) in enumerate(pairs):
            weight = other.weight.transpose(1, 2) if self.tied else own.weight
            code = torch.baddbmm(own.bias, code, weight)
            if place < len(self.decoder.layers) - 1:
                code = functional.leaky_relu(code, SLOPE)
        return torch.sigmoid(code)


def _least_squares(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Eq. 5 and 6: towards 1 for the real ones and towards -1 for the others."""
    return 0.5 * (_mean((real - 1) ** 2) + _mean((fake + 1) ** 2))


def _mean(values: torch.Tensor) -> torch.Tensor:
    """Over the batch, summed over the runs, which do not touch each other."""
    return values.flatten(1).mean(dim=1).sum()


class _TwinLearner(Learner):
    """The three alternating updates of section 3.3.3."""

    spectra: torch.Tensor
    anomaly: torch.Tensor
    spread: torch.Tensor

    def __init__(
        self, data: dict[str, torch.Tensor], networks: _TwinNetworks, model: MTGAN
    ) -> None:
        super().__init__(data, model.seed)
        self.automatic_optimization = False
        self.networks = networks
        self.model = model

    def generator_loss(self, y: torch.Tensor) -> torch.Tensor:
        """Reconstruction less the rejected share (Eq. 8), and what the discriminators say."""
        code = self.networks.encode(y)
        rebuilt = self.networks.decode(code)
        loss = _mean((rebuilt - y) ** 2)
        if self.model.rejection:
            # Past the spread of the background there is nothing to gain: unbounded, the distance
            # would outweigh the reconstruction.
            distance = ((rebuilt - self.anomaly) ** 2).mean(dim=2)
            weight = self.suppression(distance.detach())
            loss = loss - _mean(weight * torch.minimum(distance, self.spread))
        if self.model.adversarial > 0 and self.model.twin:
            told = _mean((self.networks.of_features(code) - 1) ** 2)
            told = told + _mean((self.networks.of_spectra(rebuilt) - 1) ** 2)
            loss = loss + self.model.adversarial * 0.5 * told
        return loss

    def suppression(self, distance: torch.Tensor) -> torch.Tensor:
        """The coefficient alpha: near 0 where a rebuilt spectrum is close to the anomalies."""
        if self.model.suppression != "adaptive":
            return torch.full_like(distance, float(self.model.suppression))
        return 1 - torch.exp(-distance / self.spread)

    def training_step(self, index: torch.Tensor) -> None:
        """One update of each discriminator, then of encoder and decoder."""
        networks = self.networks
        y = self.spectra[index]
        optimizers = self.optimizers()
        if self.model.twin:
            with torch.no_grad():
                code = networks.encode(y)
                rebuilt = networks.decode(code)
            prior = torch.randn(
                code.shape, generator=self.noise, device=code.device, dtype=code.dtype
            )
            for optimizer, network, real, fake in (
                (optimizers[0], networks.of_features, prior, code),
                (optimizers[1], networks.of_spectra, y, rebuilt),
            ):
                self._step(optimizer, _least_squares(network(real), network(fake)))
        self._step(optimizers[2], self.generator_loss(y))

    def _step(self, optimizer: Any, loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(self.checked(loss))
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for each of the three parts."""
        networks = self.networks
        parts = (
            [*networks.of_features.parameters()],
            [*networks.of_spectra.parameters()],
            [*networks.encoder.parameters(), *networks.decoder.parameters()],
        )
        return [torch.optim.Adam(part, lr=self.model.learning_rate) for part in parts]


class MTGAN(_SpectralModel):
    """Adversarial autoencoder of the background, which multi-scale covariance maps single out.

    1. The scene is reduced to its leading principal components, and every pixel gets its squared
       Mahalanobis distance under the mean and covariance of windows of several sizes around it. The
       pixels with the largest distances are the anomaly dictionary X, the others the background
       dictionary Y (Eq. 3 and 4).
    2. An autoencoder learns Y, against a discriminator of its features and one of its rebuilt
       spectra, both with least-square losses (Eq. 5 and 6), while its rebuilt spectra are kept away
       from the mean of X (Eq. 8).
    3. The residuals of all pixels are scored by their Mahalanobis distance.

    Parameters
    ----------
    neighbourhood : int
        Odd side of the largest one. The paper finds 25 best for HYDICE and 15 for urban
        scenes.
    scales : int
        Number of nested neighbourhoods, down to the smallest with twice as many pixels as
        components.
    components : int
        Leading principal components that the covariance maps are made of.
    neighbours : int, optional
        Only so many pixels of a neighbourhood make its covariance map, those nearest to the
        central one; None: all of them.
    nearness : {"euclidean", "cosine"}
        What nearest means.
    combine : {"mean", "max"}
        Over the scales.
    share : float
        Of the pixels, that make the anomaly dictionary.
    maps : {"pixels", "logarithms", "none"}
        What the dictionaries come from: the distance of the pixel under its maps; the distance of
        its maps (logarithms, by `multiscale_covariance`) from those of the scene; or nothing, the
        ablation "without MCM": a random anomaly dictionary.
    twin : bool
        False: the ablation "without twin-least-square loss", no discriminators.
    rejection : bool
        False: the ablation "without anomaly rejection loss".
    suppression : "adaptive" or float
        The coefficient alpha of Eq. 8: ``1 - exp(-d / s)`` with the squared distance d of a rebuilt
        spectrum from the mean of X and its median s over Y, or a constant.
    adversarial : float
        Weight of the discriminators in the loss of the generator, 0: they only watch.
    layers, features : int
        Of encoder and decoder; size of the code.
    tied : bool
        The decoder has the transposed weights of the encoder, as Eq. 2 is written.
    iterations, batch_size, learning_rate : int, int, float
        Of the training with Adam; iterations are rounded up to whole passes over Y.
    window : int, (inner, outer) or None
        Of ``mahalanobis`` and ``latent``: background window; None: the whole scene, as printed.
    score_kind : {"mahalanobis", "latent", "mse", "l1", "sam"}
        As in `SpectralVAE`; the first is the paper's Gaussian discrimination.
    ensemble : {"mean", "max"}
        Over the score maps of the runs.
    runs : int
        Number of networks.
    seed : int
        The same seed gives the same map, bit for bit on the CPU.
    """

    variational: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("mahalanobis", "latent", "mse", "l1", "sam")
    loss = "mse"
    scaling = "scene"
    epochs = 1

    anomalies_: Bools

    def __init__(
        self,
        *,
        neighbourhood: int = 15,
        scales: int = 5,
        components: int = 20,
        neighbours: int | None = None,
        nearness: str = "euclidean",
        combine: str = "mean",
        share: float = 0.02,
        maps: str = "pixels",
        twin: bool = True,
        rejection: bool = True,
        suppression: str | float = "adaptive",
        adversarial: float = 1.0,
        layers: int = 3,
        features: int = 20,
        tied: bool = False,
        iterations: int = 5000,
        batch_size: int = 128,
        learning_rate: float = 1e-4,
        window: int | tuple[int, int] | None = None,
        score_kind: str = "mahalanobis",
        ensemble: str = "mean",
        runs: int = 1,
        seed: int = 0,
    ) -> None:
        self.neighbourhood, self.scales, self.components = neighbourhood, scales, components
        self.window, self.latent = window, features
        self.neighbours, self.nearness, self.combine = neighbours, nearness, combine
        self.share, self.maps = share, maps
        self.twin, self.rejection, self.suppression = twin, rejection, suppression
        self.adversarial, self.layers, self.features, self.tied = (
            adversarial,
            layers,
            features,
            tied,
        )
        self.iterations, self.batch_size = iterations, batch_size
        self.learning_rate = learning_rate
        self.score_kind, self.ensemble, self.runs, self.seed = score_kind, ensemble, runs, seed
        self._check()

    def _check(self) -> None:
        super()._check()
        op = type(self).__name__
        check_number(op, "neighbourhood", self.neighbourhood, 3, whole=True)
        if self.neighbourhood % 2 == 0:
            raise ValueError(f"{op}: neighbourhood: must be odd, got {self.neighbourhood}")
        for name in ("scales", "components", "iterations", "features"):
            check_number(op, name, getattr(self, name), 1, whole=True)
        if self.neighbours is not None:
            check_number(op, "neighbours", self.neighbours, self.components + 2, whole=True)
        check_choice(op, "nearness", self.nearness, ("euclidean", "cosine"))
        check_choice(op, "combine", self.combine, ("mean", "max"))
        check_choice(op, "maps", self.maps, ("pixels", "logarithms", "none"))
        if not (isinstance(self.share, float) and 0 < self.share < 0.5):
            raise ValueError(f"{op}: share: must lie between 0 and 0.5, got {self.share!r}")
        if self.suppression != "adaptive":
            check_number(op, "suppression", self.suppression, 0, whole=False)
        check_number(op, "adversarial", self.adversarial, 0, whole=False)

    # -- dictionaries

    def _sides(self) -> list[int]:
        """Odd sides of the nested neighbourhoods."""
        least = math.isqrt(2 * self.components) + 1
        least = min(least + 1 - least % 2, self.neighbourhood)
        first = least if self.scales > 1 else self.neighbourhood
        steps = np.linspace(first, self.neighbourhood, self.scales)
        return sorted({round((float(side) - 1) / 2) * 2 + 1 for side in steps})

    def covariance_map_scores(self, image: Any, *, mask: Any | None = None) -> Maps:
        """What splits the scene into dictionaries: the distance of every pixel, over all scales.

        Parameters
        ----------
        image : (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows, cols) ndarray of float32
            NaN where no pixel is used.
        """
        return self._map_scores(Pixels(f"{type(self).__name__}.covariance_map_scores", image, mask))

    def _map_scores(self, pixels: Pixels) -> Maps:
        rows, cols = pixels.used.shape
        if min(rows, cols) < self.neighbourhood:
            raise ModelError(
                f"{pixels.op}: neighbourhood: must fit into the image of {rows} x {cols} pixels, "
                f"got {self.neighbourhood}"
            )
        reduced = _principal(pixels, self.components)
        found = []
        with warnings.catch_warnings():
            # A window of one material has a singular covariance; its pixels are loaded.
            warnings.simplefilter("ignore", mahal.SingularWarning)
            for side in self._sides():
                if self.maps == "logarithms":
                    vectors = mahal.multiscale_covariance(
                        reduced, [side], form="log", loading=1e-3, mask=pixels.used
                    )[:, :, 0]
                    found.append(mahal.rx(vectors, mask=pixels.used))
                elif self.neighbours is None or self.neighbours >= side**2:
                    # The covariance maps and the distances in one pass; no map is stored.
                    found.append(mahal.rx(reduced, window=side, mask=pixels.used))
                else:
                    found.append(self._nearest(reduced, pixels.used, side))
        stacked = np.stack(found).astype(np.float32)
        return np.asarray(stacked.max(0) if self.combine == "max" else stacked.mean(0))

    def _nearest(self, reduced: Maps, used: Bools, side: int) -> Maps:
        """Distances under the covariance of the nearest neighbours in windows that slide inside."""
        assert self.neighbours is not None
        rows, cols, bands = reduced.shape
        row = np.clip(np.arange(rows) - side // 2, 0, rows - side)
        col = np.clip(np.arange(cols) - side // 2, 0, cols - side)
        steps = np.arange(side)
        values = np.where(used[..., None], reduced, np.inf).astype(np.float32)
        out = np.empty((rows, cols), np.float32)
        for r in range(rows):
            block = values[row[r] + steps][:, col[:, None] + steps]  # side, cols, side, bands
            block = block.transpose(1, 0, 2, 3).reshape(cols, side**2, bands)
            centre = reduced[r][:, None]
            finite = np.where(np.isfinite(block), block, 0)
            if self.nearness == "euclidean":
                far = ((finite - centre) ** 2).sum(2)
            else:
                norms = np.linalg.norm(finite, axis=2) * np.linalg.norm(centre, axis=2)
                far = -(finite * centre).sum(2) / np.maximum(norms, np.finfo(np.float32).tiny)
            far[~np.isfinite(block).all(2)] = np.inf
            chosen = np.argpartition(far, self.neighbours - 1, axis=1)[:, : self.neighbours]
            near = np.take_along_axis(finite, chosen[..., None], axis=1)
            weight = np.isfinite(np.take_along_axis(far, chosen, axis=1))[..., None]
            count = np.maximum(weight.sum(1, keepdims=True), 2)
            mean = (near * weight).sum(1, keepdims=True) / count
            centred = (near - mean) * weight
            covariance = centred.transpose(0, 2, 1) @ centred / (count - 1)
            factor = torch.from_numpy(mahal.cholesky(covariance, loading=1e-6))
            off = torch.from_numpy(np.ascontiguousarray((centre - mean).transpose(0, 2, 1)))
            white = torch.linalg.solve_triangular(factor, off, upper=False)
            out[r] = (white**2).sum((1, 2)).numpy()
        out[~used] = np.nan
        return out

    def _dictionaries(self, pixels: Pixels) -> Bools:
        """True for the used pixels that make the anomaly dictionary X."""
        count = int(pixels.used.sum())
        if self.maps == "none":
            scores = np.random.default_rng(self.seed).random(count, np.float32)
        else:
            scores = self._map_scores(pixels)[pixels.used]
        wanted = max(1, round(self.share * count))
        chosen = np.zeros(count, bool)
        chosen[np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:wanted]] = True
        return chosen

    # -- learning

    def _fit(self, pixels: Pixels, progress: bool, checkpoint: Path | None, trainer: Any) -> None:
        spectra = self._scaling(pixels)
        bands = spectra.shape[1]
        if bands <= self.features:
            raise ModelError(
                f"{pixels.op}: features: must be smaller than the number of bands that vary, "
                f"{bands}, got {self.features}"
            )
        unusual = self._dictionaries(pixels)
        self.anomalies_ = np.zeros(pixels.used.shape, bool)
        self.anomalies_[pixels.used] = unusual
        background = spectra[~unusual]
        anomaly = spectra[unusual].mean(axis=0)
        spread = np.median(((background - anomaly) ** 2).mean(axis=1))
        data = {
            "spectra": torch.from_numpy(background),
            "anomaly": torch.from_numpy(anomaly),
            "spread": torch.tensor(float(spread)),
        }
        learner = _TwinLearner(data, self._networks(bands), self)
        batches = Batches(len(background), self.batch_size, self.runs, self.seed)
        with one_thread():
            train(
                learner,
                batches,
                epochs=math.ceil(self.iterations / len(batches)),
                settings=self._settings(pixels, spectra),
                progress=progress,
                checkpoint=checkpoint,
                trainer=trainer,
            )
        self.networks_ = learner.networks.requires_grad_(False)
        self.bands_ = pixels.values.shape[2]

    def _networks(self, bands: int) -> Any:
        return _TwinNetworks(
            _sizes(bands, self.features, self.layers), self.runs, tied=self.tied, seed=self.seed
        )

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**super()._tensors(), "anomalies": torch.from_numpy(self.anomalies_)}

    def _restore(self, tensors: Any, facts: Any) -> None:
        super()._restore(tensors, facts)
        self.anomalies_ = tensors["anomalies"].numpy()


def _principal(pixels: Pixels, components: int) -> Maps:
    """Leading principal components of the scene, each divided by its deviation."""
    values = np.where(pixels.used[..., None], pixels.values, 0).astype(np.float32)
    mean, covariance = mahal.mean_covariance(values, mask=pixels.used)
    variances, axes = np.linalg.eigh(covariance.astype(np.float64))
    kept = np.arange(len(variances)) >= len(variances) - components
    kept &= variances > variances[-1] * 1e-12
    scale = axes[:, kept] / np.sqrt(variances[kept])
    return np.ascontiguousarray((values - mean) @ scale, np.float32)

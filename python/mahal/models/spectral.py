"""Autoencoders of single spectra.

Galuppini, Laurent and Senatore, "Evaluating autoencoders for hyperspectral anomaly detection",
2025: networks that squeeze every spectrum through a few numbers rebuild what is common in a scene
and miss what is rare.
"""

from __future__ import annotations

import math
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
from mahal.models._detector import (
    ModelError,
    Pixels,
    SceneDetector,
    check_choice,
    check_number,
)
from mahal.models._training import Batches, Learner, generator, one_thread, train

Maps = npt.NDArray[np.float32]
# Pixels that pass through the networks together when they are scored.
SCORED_TOGETHER = 1 << 14
# A latent unit whose mean divergence from the prior is below this carries nothing.
COLLAPSED_NATS = 0.01
# Far above the variance 1 of the prior, in logarithms.
MOST_LOG_VARIANCE = 10.0


class CollapseWarning(UserWarning):
    """Units of a variational autoencoder carry nothing."""


class _Stacked(nn.Module):
    """Fully connected layers of several networks of one shape, side by side."""

    def __init__(self, runs: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(runs, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(runs, 1, outputs))

    def reset(self, seed: int, name: str) -> None:
        """Normal weights of variance 2 / inputs; those of a run do not depend on the others."""
        for run in range(self.weight.shape[0]):
            noise = torch.randn(
                self.weight.shape[1:], generator=generator(seed, "weights", name, run)
            )
            self.weight.data[run] = noise * math.sqrt(2 / self.weight.shape[1])
        self.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(runs, batch, inputs) to (runs, batch, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


# Scores that are distances to the mean of the scene or of a window.
DISTANCES = ("mahalanobis", "latent")


def _sizes(bands: int, latent: int, layers: int) -> list[int]:
    """Widths from the spectrum to the code, each smaller by the same factor."""
    return [round(bands * (latent / bands) ** (k / layers)) for k in range(layers + 1)]


class _Networks(nn.Module):
    """Encoders and mirrored decoders; with `variational` the code has a mean and a log-variance."""

    def __init__(
        self, sizes: list[int], runs: int, *, variational: bool, positive: bool, seed: int
    ) -> None:
        super().__init__()
        self.variational, self.positive = variational, positive
        ends = list(pairwise(sizes))
        if variational:
            ends[-1] = (ends[-1][0], 2 * ends[-1][1])
        self.encoder = nn.ModuleList(_Stacked(runs, a, b) for a, b in ends)
        self.decoder = nn.ModuleList(_Stacked(runs, a, b) for a, b in pairwise(sizes[::-1]))
        for name, layer in self.named_modules():
            if isinstance(layer, _Stacked):
                layer.reset(seed, name)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes, or means and log-variances side by side."""
        for layer in self.encoder[:-1]:
            x = functional.relu(layer(x))
        x = self.encoder[-1](x)
        if not self.variational:
            return functional.relu(x)
        # A pixel that is far from all others must not overflow before the first step.
        mean, log_variance = x.chunk(2, dim=2)
        return torch.cat((mean, log_variance.clamp(max=MOST_LOG_VARIANCE)), dim=2)

    def decode(self, code: torch.Tensor) -> torch.Tensor:
        """Spectra from codes."""
        for layer in self.decoder[:-1]:
            code = functional.relu(layer(code))
        code = self.decoder[-1](code)
        return functional.relu(code) if self.positive else code


class _SpectralLearner(Learner):
    """Reconstruction loss, and the divergence from the prior where the code is a distribution."""

    spectra: torch.Tensor

    def __init__(self, spectra: torch.Tensor, networks: _Networks, model: _SpectralModel) -> None:
        super().__init__({"spectra": spectra}, model.seed)
        self.networks = networks
        self.loss_name = model.loss
        self.beta = getattr(model, "beta", 0.0)
        self.learning_rate = model.learning_rate

    def training_step(self, index: torch.Tensor) -> torch.Tensor:
        """Mean loss of every run, summed: the runs do not touch each other."""
        x = self.spectra[index]
        code = self.networks.encode(x)
        divergence = x.new_zeros(())
        if self.networks.variational:
            mean, log_variance = code.chunk(2, dim=2)
            noise = torch.randn(
                mean.shape, generator=self.noise, device=mean.device, dtype=mean.dtype
            )
            code = mean + torch.exp(0.5 * log_variance) * noise
            divergence = _divergence(mean, log_variance).sum(dim=2).mean(dim=1).sum()
        rebuilt = self.networks.decode(code)
        distance = functional.l1_loss if self.loss_name == "l1" else functional.mse_loss
        loss = distance(rebuilt, x, reduction="none").mean(dim=(1, 2)).sum()
        return self.checked(loss + self.beta * divergence)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, as in the paper."""
        return torch.optim.Adam(self.networks.parameters(), lr=self.learning_rate)


def _divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Of N(mean, variance) from N(0, 1), per unit (Eq. 9)."""
    return 0.5 * (mean**2 + torch.exp(log_variance) - log_variance - 1)


class _SpectralModel(SceneDetector):
    """What the two models have in common: scaling, training, residual scores, ensembles."""

    scoring_params: ClassVar[tuple[str, ...]] = ("score_kind", "ensemble", "window")
    variational: ClassVar[bool]
    kinds: ClassVar[tuple[str, ...]]

    layers: int
    latent: int
    epochs: int
    batch_size: int
    learning_rate: float
    loss: str
    scaling: str
    score_kind: str
    ensemble: str
    window: int | tuple[int, int] | None
    runs: int
    seed: int

    kept_: npt.NDArray[np.bool_]
    shift_: npt.NDArray[np.float32]
    scale_: npt.NDArray[np.float32]
    networks_: _Networks

    def _check(self) -> None:
        op = type(self).__name__
        check_number(op, "layers", self.layers, 1, whole=True)
        for name in ("latent", "epochs", "batch_size", "runs"):
            check_number(op, name, getattr(self, name), 1, whole=True)
        check_number(op, "learning_rate", self.learning_rate, 0, whole=False, open_=True)
        check_number(op, "seed", self.seed, 0, whole=True)
        check_choice(op, "loss", self.loss, ("mse", "l1"))
        check_choice(op, "scaling", self.scaling, ("bands", "scene"))
        check_choice(op, "score_kind", self.score_kind, self.kinds)
        check_choice(op, "ensemble", self.ensemble, ("mean", "max"))

    # -- learning

    def _fit(self, pixels: Pixels, progress: bool, checkpoint: Path | None, trainer: Any) -> None:
        spectra = self._scaling(pixels)
        kept = spectra.shape[1]
        if kept <= self.latent:
            raise ModelError(
                f"{pixels.op}: latent: must be smaller than the number of bands that vary, {kept}, "
                f"got {self.latent}"
            )
        learner = _SpectralLearner(torch.from_numpy(spectra), self._networks(kept), self)
        with one_thread():
            train(
                learner,
                Batches(len(spectra), self.batch_size, self.runs, self.seed),
                epochs=self.epochs,
                settings=self._settings(pixels, spectra),
                progress=progress,
                checkpoint=checkpoint,
                trainer=trainer,
            )
        self.networks_ = learner.networks.requires_grad_(False)
        self.bands_ = pixels.values.shape[2]

    def _settings(self, pixels: Pixels, spectra: npt.NDArray[np.float32]) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        return {
            **{k: v for k, v in self.get_params().items() if k not in self.scoring_params},
            "model": type(self).__name__,
            "scene": [*pixels.values.shape, float(spectra.sum(dtype=np.float64))],
        }

    def _networks(self, bands: int) -> _Networks:
        return _Networks(
            _sizes(bands, self.latent, self.layers),
            self.runs,
            variational=self.variational,
            positive=self.scaling == "scene",
            seed=self.seed,
        )

    def _scaling(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Find the scaling of the bands; the scaled spectra."""
        spectra = pixels.spectra()
        low, high = spectra.min(axis=0), spectra.max(axis=0)
        kept = low < high
        if not kept.any():
            raise ModelError(
                f"{pixels.op}: image: every band is constant, there is nothing to learn"
            )
        if not kept.all():
            names = ", ".join(map(str, np.flatnonzero(~kept)[:8]))
            more = ", ..." if (~kept).sum() > 8 else ""
            warnings.warn(
                f"{pixels.op}: image: {int((~kept).sum())} bands are constant and left out "
                f"({names}{more})",
                stacklevel=4,
            )
        self.kept_ = kept
        if self.scaling == "bands":
            mean = spectra[:, kept].mean(axis=0, dtype=np.float64)
            spread = spectra[:, kept].std(axis=0, dtype=np.float64)
            self.shift_, self.scale_ = mean.astype(np.float32), (1 / spread).astype(np.float32)
        else:
            self.shift_ = np.full(int(kept.sum()), low[kept].min(), np.float32)
            span = float(high[kept].max()) - float(low[kept].min())
            self.scale_ = np.full(int(kept.sum()), 1 / span, np.float32)
        return self._scaled(spectra)

    def _scaled(self, spectra: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.asarray((spectra[:, self.kept_] - self.shift_) * self.scale_, np.float32)

    # -- scoring

    def _score(self, pixels: Pixels) -> Maps:
        return self._block_score(pixels, [])

    def _reach(self) -> int:
        if self.score_kind not in DISTANCES or self.window is None:
            return 0
        return (self.window if isinstance(self.window, int) else self.window[1]) // 2

    def _needs_scene(self) -> bool:
        return self.score_kind in DISTANCES and self.window is None

    def _scene_features(self, pixels: Pixels) -> list[Maps]:
        spectra = torch.from_numpy(self._scaled(pixels.spectra()))
        codes, rebuilt = self._pass(spectra)
        found = codes if self.score_kind == "latent" else spectra - rebuilt
        return [one.numpy() for one in found]

    def _block_score(
        self, pixels: Pixels, statistics: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    ) -> Maps:
        total: npt.NDArray[np.float64] | None = None
        if statistics:
            runs = [
                mahal.mahalanobis(values, *one)
                for values, one in zip(self._scene_features(pixels), statistics, strict=True)
            ]
        else:
            runs = self._run_scores(pixels)
        for scores in runs:
            values = scores.astype(np.float64)
            if total is None:
                total = values
            elif self.ensemble == "max":
                np.maximum(total, values, out=total)
            else:
                total += values
        assert total is not None
        if self.ensemble == "mean":
            total /= self.runs
        return pixels.map(total)

    def score_runs(self, image: Any, *, mask: Any | None = None) -> Maps:
        """Score maps of the single runs.

        Parameters
        ----------
        image : (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (runs, rows, cols) ndarray of float32
        """
        self._check_fitted("score_runs")
        pixels = self._read("score_runs", image, mask)
        return np.stack([pixels.map(scores) for scores in self._run_scores(pixels)])

    def codes(self, image: Any, *, mask: Any | None = None) -> Maps:
        """Where every pixel lies in the latent space of each run.

        Parameters
        ----------
        image : (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (runs, rows, cols, units) ndarray of float32
            NaN where a pixel is not used; the means, where codes are distributions.
            `mahal.pictures.latent_figure` shows them.
        """
        self._check_fitted("codes")
        pixels = self._read("codes", image, mask)
        found, _ = self._pass(torch.from_numpy(self._scaled(pixels.spectra())))
        out = np.full((self.runs, *pixels.used.shape, found.shape[2]), np.nan, np.float32)
        out[:, pixels.used] = found.numpy()
        return out

    def _run_scores(self, pixels: Pixels) -> list[Maps]:
        spectra = torch.from_numpy(self._scaled(pixels.spectra()))
        codes, rebuilt = self._pass(spectra)
        if self.score_kind == "latent":
            return [self._distance(pixels, code) for code in codes.numpy()]
        scores = []
        for run in range(self.runs):
            residual = spectra - rebuilt[run]
            if self.score_kind == "mahalanobis":
                scores.append(self._distance(pixels, residual.numpy()))
            elif self.score_kind == "mse":
                scores.append((residual**2).mean(dim=1).numpy())
            elif self.score_kind == "l1":
                scores.append(residual.abs().mean(dim=1).numpy())
            else:
                cosine = functional.cosine_similarity(spectra, rebuilt[run], dim=1)
                scores.append(torch.arccos(cosine.clamp(-1, 1)).numpy())
        return scores

    @torch.inference_mode()
    def _pass(self, spectra: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (means, where they are distributions) and rebuilt spectra of every run."""
        codes, rebuilt = [], []
        for part in spectra.split(SCORED_TOGETHER):
            code = self.networks_.encode(part.expand(self.runs, *part.shape))
            if self.variational:
                code = code.chunk(2, dim=2)[0]
            codes.append(code)
            rebuilt.append(self.networks_.decode(code))
        return torch.cat(codes, dim=1), torch.cat(rebuilt, dim=1)

    def _distance(self, pixels: Pixels, values: npt.NDArray[np.float32]) -> Maps:
        """Squared Mahalanobis distance to the background, of the pixels that count."""
        cube = np.zeros((*pixels.used.shape, values.shape[1]), np.float32)
        cube[pixels.used] = values
        with warnings.catch_warnings():
            # Units that are zero everywhere are loaded, and add nothing.
            warnings.simplefilter("ignore", mahal.SingularWarning)
            scores = mahal.rx(cube, window=self.window, mask=pixels.used)
        return np.asarray(scores[pixels.used], np.float32)

    def latent_map(self, image: Any, *, mask: Any | None = None) -> Maps:
        """Codes of every pixel, for plots of the latent space.

        Parameters
        ----------
        image : (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (runs, rows, cols, latent) ndarray of float32
            Means of the codes where they are distributions; NaN where no pixel is used.
        """
        self._check_fitted("latent_map")
        pixels = self._read("latent_map", image, mask)
        codes, _ = self._pass(torch.from_numpy(self._scaled(pixels.spectra())))
        maps = np.full((self.runs, *pixels.used.shape, codes.shape[2]), np.nan, np.float32)
        maps[:, pixels.used] = codes.numpy()
        return maps

    # -- files

    def _tensors(self) -> dict[str, torch.Tensor]:
        arrays = {"kept": self.kept_, "shift": self.shift_, "scale": self.scale_}
        return {
            **{name: torch.from_numpy(array) for name, array in arrays.items()},
            **{f"networks.{name}": t for name, t in self.networks_.state_dict().items()},
        }

    def _restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        self.kept_, self.shift_, self.scale_ = (
            tensors[name].numpy() for name in ("kept", "shift", "scale")
        )
        self.networks_ = self._networks(int(self.kept_.sum())).requires_grad_(False)
        prefix = "networks."
        self.networks_.load_state_dict(
            {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
        )


class SpectralAutoencoder(_SpectralModel):
    """Autoencoder of single spectra; what it cannot rebuild is an anomaly.

    Fully connected encoder and mirrored decoder with ReLU, normal initial weights, Adam. Several
    networks (``runs``) are trained side by side and their score maps combined.

    Parameters
    ----------
    layers : int
        Of the encoder, and of the decoder. Widths fall from the bands to the code by one factor.
    latent : int
        Size of the code, smaller than the number of bands.
    epochs, batch_size, learning_rate : int, int, float
        Of the training with Adam.
    loss : {"mse", "l1"}
        Between spectrum and rebuilt spectrum.
    scaling : {"bands", "scene"}
        ``bands``: every band to mean 0 and deviation 1. ``scene``: the scene to [0, 1], with a ReLU
        behind the decoder, as in the paper.
    score_kind : {"mahalanobis", "mse", "l1", "sam"}
        Of the residual: squared Mahalanobis distance (`mahal.rx` of the residuals), mean square,
        mean modulus; ``sam``: angle between spectrum and rebuilt spectrum in radians.
    ensemble : {"mean", "max"}
        Over the score maps of the runs.
    window : int, (inner, outer) or None
        Of ``mahalanobis``: background window around every pixel; None: the whole scene.
    runs : int
        Number of networks.
    seed : int
        The same seed gives the same map, bit for bit on the CPU.

    Notes
    -----
    Galuppini, Laurent and Senatore (2025), sections 2.3 to 3. The defaults are what was stable over
    public scenes; `paper` has the settings of the paper.
    """

    variational: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = ("mahalanobis", "mse", "l1", "sam")

    def __init__(
        self,
        *,
        layers: int = 2,
        latent: int = 4,
        epochs: int = 1,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        loss: str = "mse",
        scaling: str = "bands",
        score_kind: str = "mahalanobis",
        ensemble: str = "mean",
        window: int | tuple[int, int] | None = None,
        runs: int = 5,
        seed: int = 0,
    ) -> None:
        self.layers, self.latent = layers, latent
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.loss, self.scaling = loss, scaling
        self.score_kind, self.ensemble, self.window = score_kind, ensemble, window
        self.runs, self.seed = runs, seed
        self._check()

    @classmethod
    def paper(cls, image: int = 1, **params: Any) -> SpectralAutoencoder:
        """The settings that the paper found best for its first or second image.

        Parameters
        ----------
        image : {1, 2}
            The lake shore (section 3.1) or the field with boards (section 3.2).
        **params
            Other parameters.

        Returns
        -------
        SpectralAutoencoder
        """
        if image not in (1, 2):
            raise ValueError(f"SpectralAutoencoder.paper: image: must be 1 or 2, got {image!r}")
        layers, batch, rate = (2, 32, 1e-3) if image == 1 else (4, 12, 5e-3)
        settings = {"layers": layers, "batch_size": batch, "learning_rate": rate}
        return cls(**{**settings, "scaling": "scene", "score_kind": "mse", **params})


class SpectralVAE(_SpectralModel):
    """Variational autoencoder of single spectra, scored in its latent space or by its residual.

    The code of a spectrum is a normal distribution; the loss adds ``beta`` times its divergence
    from the standard one (Eq. 10).

    Parameters
    ----------
    hidden : int
        Width of the layer between spectrum and code, on both sides.
    latent : int
        Size of the code.
    beta : float
        Weight of the divergence. On scaled spectra values near 1 make the code collapse: it then
        carries nothing, and the decoder returns the mean spectrum (`CollapseWarning`).
    epochs, batch_size, learning_rate : int, int, float
        Of the training with Adam.
    loss : {"mse", "l1"}
        Mean over the bands.
    scaling : {"bands", "scene"}
        As in `SpectralAutoencoder`.
    score_kind : {"mahalanobis", "latent", "mse", "l1", "sam"}
        ``latent``: squared Mahalanobis distance of the mean of the code (`mahal.rx` of the latent
        map); the others as in `SpectralAutoencoder`.
    ensemble : {"mean", "max"}
        Over the score maps of the runs.
    window : int, (inner, outer) or None
        Of ``latent`` and ``mahalanobis``: background window; None: the whole scene.
    runs : int
        Number of networks.
    seed : int
        The same seed gives the same map, bit for bit on the CPU.

    Notes
    -----
    Galuppini, Laurent and Senatore (2025), sections 2.5 and 4.
    """

    variational: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("mahalanobis", "latent", "mse", "l1", "sam")
    layers: int = 2

    def __init__(
        self,
        *,
        hidden: int = 32,
        latent: int = 8,
        beta: float = 1e-3,
        epochs: int = 20,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        loss: str = "mse",
        scaling: str = "bands",
        score_kind: str = "mahalanobis",
        ensemble: str = "mean",
        window: int | tuple[int, int] | None = None,
        runs: int = 5,
        seed: int = 0,
    ) -> None:
        self.hidden, self.latent, self.beta = hidden, latent, beta
        self.epochs, self.batch_size, self.learning_rate = epochs, batch_size, learning_rate
        self.loss, self.scaling = loss, scaling
        self.score_kind, self.ensemble, self.window = score_kind, ensemble, window
        self.runs, self.seed = runs, seed
        self._check()
        op = type(self).__name__
        check_number(op, "hidden", hidden, 1, whole=True)
        check_number(op, "beta", beta, 0, whole=False)

    @classmethod
    def paper(cls, tuned: bool = True, **params: Any) -> SpectralVAE:
        """The settings of the paper.

        Parameters
        ----------
        tuned : bool
            Those it ends with (5 epochs, batches of 128, L1, beta 5), or those it begins with.
        **params
            Other parameters.

        Returns
        -------
        SpectralVAE
        """
        begin = {"beta": 1.0, "epochs": 1, "batch_size": 32, "loss": "mse"}
        end = {"beta": 5.0, "epochs": 5, "batch_size": 128, "loss": "l1"}
        shape = {"hidden": 16, "latent": 2, "scaling": "scene", "score_kind": "latent"}
        settings = {**(end if tuned else begin), **shape}
        return cls(**{**settings, **params})

    def _networks(self, bands: int) -> _Networks:
        return _Networks(
            [bands, self.hidden, self.latent],
            self.runs,
            variational=True,
            positive=self.scaling == "scene",
            seed=self.seed,
        )

    def _fit(self, pixels: Pixels, progress: bool, checkpoint: Path | None, trainer: Any) -> None:
        super()._fit(pixels, progress, checkpoint, trainer)
        nats = self._unit_divergence(pixels)
        dead = int((nats < COLLAPSED_NATS).sum())
        if dead:
            warnings.warn(
                f"{pixels.op}: {dead} of {nats.size} latent units have collapsed (divergence from "
                f"the prior below {COLLAPSED_NATS} nats) and carry nothing: lower beta "
                f"({self.beta:g}) or train longer",
                CollapseWarning,
                stacklevel=3,
            )

    def divergence(self, image: Any, *, mask: Any | None = None) -> npt.NDArray[np.float32]:
        """Mean divergence of the codes from the prior, per unit: what the unit carries.

        Parameters
        ----------
        image : (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (runs, latent) ndarray of float32
            In nats; near 0 where a unit has collapsed.
        """
        self._check_fitted("divergence")
        nats: npt.NDArray[np.float32] = self._unit_divergence(self._read("divergence", image, mask))
        return nats

    @torch.inference_mode()
    def _unit_divergence(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        spectra = torch.from_numpy(self._scaled(pixels.spectra()))
        total = torch.zeros(self.runs, self.latent)
        for part in spectra.split(SCORED_TOGETHER):
            code = self.networks_.encode(part.expand(self.runs, *part.shape))
            total += _divergence(*code.chunk(2, dim=2)).sum(dim=1)
        nats = total / len(spectra)
        return np.asarray(nats.numpy(), np.float32)

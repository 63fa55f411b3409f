"""The detectors of the command line: what each needs, and the law of its scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

import mahal
from mahal import significance

Array = npt.NDArray[Any]


class Law(NamedTuple):
    """Threshold for a rate and p-value of a score, with the arguments of `mahal.significance`."""

    threshold: Callable[..., Any]
    pvalue: Callable[..., Any]
    estimators: tuple[str, ...] = ("scm",)


@dataclass(frozen=True)
class Detector:
    """A detector as the command line offers it."""

    name: str
    summary: str
    function: str
    needs_target: bool
    options: dict[str, Any]
    law: Law | None = None
    scale: Literal["log", "linear"] = "log"
    sign: float = 1.0
    continued: bool = False
    fixed: tuple[str, ...] = ()
    learned = False

    def takes(self, option: str) -> bool:
        """Whether the function behind it has this parameter, and it is not fixed here."""
        if option in self.fixed:
            return False
        parameters = inspect.signature(getattr(mahal, self.function)).parameters
        return option in parameters or any(
            item.kind is item.VAR_KEYWORD for item in parameters.values()
        )

    def score(
        self, image: Array, target: Array | None, **options: Any
    ) -> tuple[Array, npt.NDArray[np.uint8]]:
        """Scores, higher for a detection, and the status of every pixel."""
        arguments = (image,) if target is None else (image, target)
        used = {**self.options, **{k: v for k, v in options.items() if self.takes(k)}}
        function = getattr(mahal, self.function)
        if self.takes("return_status"):
            scores, status = function(*arguments, return_status=True, **used)
        else:
            scores = function(*arguments, **used)
            mask = options.get("mask")
            status = np.where(np.isnan(scores), 3, 0).astype(np.uint8)
            if mask is not None:
                scores, status = np.where(mask, scores, np.nan), np.where(mask, status, 4)
        return self.sign * scores, status.astype(np.uint8, copy=False)

    def tail(self, scores: Array) -> significance.ScoreTail | None:
        """What stands for a law where there is none: the tail of the scores of a scene."""
        return significance.score_tail(scores) if self.continued else None

    def has_law(self, estimator: str, inside: bool) -> bool:
        """Whether a false-alarm rate gives the threshold.

        ``inside``: the pixel is one of its own samples; there only sample covariances have laws.
        """
        if self.law is None or (inside and estimator != "scm"):
            return False
        return estimator in self.law.estimators


@dataclass(frozen=True)
class Learner(Detector):
    """A model: trained on the scene that it scores, or read from a file."""

    model: Any = field(default=None, compare=False)
    images: bool = False
    learned = True

    @classmethod
    def of(cls, name: str, class_name: str, summary: str, *, images: bool = False) -> Learner:
        """A model that is yet to be trained, on one scene or on many ``images``."""
        return cls(name, summary, class_name, False, {}, continued=True, images=images)

    @classmethod
    def read(cls, path: str | Path) -> Learner:
        """A model from a file."""
        model = _models().load(path)
        known = {d.function: d for d in DETECTORS.values() if isinstance(d, Learner)}
        name = type(model).__name__
        if name not in known:
            raise ValueError(f"{path}: must hold a detector, has a {name}")
        return replace(known[name], model=model)

    def create(self, **params: Any) -> Any:
        """The model with these parameters, not fitted."""
        return getattr(_models(), self.function)(**params)

    def trained(self, model: Any, image: Array, mask: Any, **options: Any) -> Any:
        """The model, fitted to one scene."""
        return model.fit(image, **{"masks" if self.images else "mask": mask}, **options)

    def fitted(self, image: Array, mask: Any, *, progress: bool) -> Learner:
        """With a model: the one there is, or one that is trained on this scene."""
        if self.model is not None:
            return self
        return replace(self, model=self.trained(self.create(), image, mask, progress=progress))

    def takes(self, option: str) -> bool:
        """Models have a mask and parameters of their own."""
        return option == "mask"

    def tail(self, scores: Array) -> significance.ScoreTail | None:
        """That of the scene of the training."""
        if self.model is None:
            return significance.score_tail(scores)
        tail: significance.ScoreTail = self.model.calibration_
        return tail

    def score(
        self, image: Array, target: Array | None, **options: Any
    ) -> tuple[Array, npt.NDArray[np.uint8]]:
        """Train, unless that is done, and score."""
        mask, progress = options.get("mask"), options.get("progress") is not None
        scores = self.fitted(image, mask, progress=progress).model.score(image, mask=mask)
        status = np.where(np.isnan(scores), 3, 0).astype(np.uint8)
        if mask is not None:
            status[~mask] = 4
        return scores, status


def _models() -> Any:
    import mahal.models

    return mahal.models


def _filter_threshold(rate: Any, bands: int, samples: Any, **law: Any) -> Any:
    # Of complex images the filter gives the modulus, of real ones a signed score.
    if law["complex_data"]:
        return np.sqrt(significance.amf_threshold(rate, bands, samples, **law))
    return significance.amf_threshold(rate, bands, samples, signed=True, **law)


def _filter_pvalue(scores: Array, bands: int, samples: Any, **law: Any) -> Any:
    if law["complex_data"]:
        return significance.amf_pvalue(np.square(scores), bands, samples, **law)
    return significance.amf_pvalue(scores, bands, samples, signed=True, **law)


_ACE = Law(significance.ace_threshold, significance.ace_pvalue, ("scm", "tyler"))
_SIGNED = Law(
    partial(significance.ace_threshold, signed=True),
    partial(significance.ace_pvalue, signed=True),
    ("scm", "tyler"),
)

DETECTORS: dict[str, Detector] = {
    detector.name: detector
    for detector in (
        Detector(
            "rx",
            "squared Mahalanobis distance to the background; finds what is unlike it",
            "rx",
            False,
            {},
            Law(significance.rx_threshold, significance.rx_pvalue),
        ),
        Detector(
            "fused_rx",
            "geometric mean of global RX and of local RX on leading components; the default",
            "fused_rx",
            False,
            {},
            continued=True,
            fixed=("window",),
        ),
        Detector(
            "ace",
            "squared cosine between pixel and target, once whitened (ANMF); blind to brightness",
            "ace",
            True,
            {},
            _ACE,
        ),
        Detector(
            "signed_ace",
            "the cosine itself, for real images; tells the target from its opposite",
            "ace",
            True,
            {"signed": True},
            _SIGNED,
            "linear",
        ),
        Detector(
            "matched_filter",
            "share of the target in standard deviations of the background",
            "matched_filter",
            True,
            {"normalized": True},
            Law(_filter_threshold, _filter_pvalue),
            "linear",
        ),
        Detector(
            "cem",
            "least output power that passes the target, no mean removed",
            "cem",
            True,
            {},
            None,
            "linear",
        ),
        Detector(
            "spectral_angle",
            "minus the angle between pixel and target in radians, no background",
            "spectral_angle",
            True,
            {},
            None,
            "linear",
            -1.0,
        ),
        Learner.of(
            "mtgan",
            "MTGAN",
            "adversarial autoencoder of a background that multi-scale covariance maps single out",
        ),
        Learner.of(
            "padim_ace",
            "PadimACE",
            "features unlike those of normal images at their place, or like a signature there",
            images=True,
        ),
        Learner.of(
            "sar_autoencoder",
            "SARAutoencoder",
            "radar structures that an adversarial autoencoder of patches cannot rebuild",
            images=True,
        ),
        Learner.of(
            "spectral_autoencoder",
            "SpectralAutoencoder",
            "what an autoencoder of single spectra cannot rebuild",
        ),
        Learner.of(
            "spectral_vae",
            "SpectralVAE",
            "the same with a variational autoencoder",
        ),
        Learner.of(
            "vae_grf",
            "VAEGRF",
            "what an autoencoder of images with a Gaussian random field prior finds odd",
            images=True,
        ),
    )
}

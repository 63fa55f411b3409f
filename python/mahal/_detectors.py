"""The detectors of the command line: what each needs, and the law of its scores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
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


class Detector(NamedTuple):
    """A detector as the command line offers it."""

    name: str
    summary: str
    function: str
    needs_target: bool
    options: dict[str, Any]
    law: Law | None = None
    scale: Literal["log", "linear"] = "log"
    sign: float = 1.0

    def takes(self, option: str) -> bool:
        """Whether the function behind it has this parameter."""
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

    def has_law(self, estimator: str, inside: bool) -> bool:
        """Whether a false-alarm rate gives the threshold.

        ``inside``: the pixel is one of its own samples; there only sample covariances have laws.
        """
        if self.law is None or (inside and estimator != "scm"):
            return False
        return estimator in self.law.estimators


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

DETECTORS = {
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
    )
}

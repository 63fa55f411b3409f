"""Detectors for pyod: RX and ACE as subclasses of its BaseDetector.

Samples are pixels, ``X`` has shape (pixels, bands). The detectors keep the sign of pyod: scores are
higher for what is less normal, and outliers have the label 1. Statistics are of all samples of
``fit``; for windows see `mahal.rx`.

Needs pyod: ``pip install mahal[pyod]``.
"""

from __future__ import annotations

import abc
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

import mahal
from mahal.sklearn import Whitener, _target_scores

try:
    from pyod.models.base import BaseDetector
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"pyod is needed here and cannot be imported ({error}): pip install mahal[pyod]"
    ) from error

__all__ = ["ACE", "RX"]

Array = npt.NDArray[Any]
Self = TypeVar("Self", bound="_Detector")


class _Detector(BaseDetector):
    """What RX and ACE share: the background, and how pyod keeps scores and labels."""

    decision_scores_: Array
    labels_: Array
    threshold_: float

    def __init__(
        self,
        contamination: float = 0.1,
        estimator: str = "scm",
        loading: float = 1e-3,
        nu: float = 5.0,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
    ) -> None:
        super().__init__(contamination=contamination)
        self.estimator = estimator
        self.loading = loading
        self.nu = nu
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def fit(self: Self, X: Any, y: Any = None) -> Self:  # noqa: N803
        """Estimate the background, and the threshold that the contamination exceeds.

        Parameters
        ----------
        X : (n, bands) array
            Real and finite. The outliers may be among them.
        y : object
            Not used; pyod warns where it is given.

        Returns
        -------
        BaseDetector
            The detector itself.

        Raises
        ------
        ValueError
            Values that are not finite, fewer than two samples, or a covariance that is not positive
            definite.
        """
        samples = validate_data(self, X, dtype=(np.float64, np.float32), ensure_min_samples=2)
        self._set_n_classes(y)
        background = Whitener(
            estimator=self.estimator,
            loading=self.loading,
            nu=self.nu,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        ).fit(samples)
        self.location_, self.covariance_ = background.location_, background.covariance_
        self.decision_scores_ = self._score(samples)
        self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Scores, higher for what is less normal.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) array
        """
        check_is_fitted(self, ["decision_scores_", "threshold_", "labels_"])
        samples = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return self._score(samples)

    @abc.abstractmethod
    def _score(self, samples: Array) -> Array: ...


class RX(_Detector):
    """Global RX detector: squared Mahalanobis distances to the background.

    Parameters
    ----------
    contamination : float
        Share of the training samples that are outliers, above 0 and at most 0.5.
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Of the covariance, see `mahal.mean_covariance`.
    loading, nu, tolerance, max_iterations : float, float, float, int
        Of the estimators, as there.

    Attributes
    ----------
    decision_scores_ : (n,) array
        Scores of the samples of `fit`.
    threshold_ : float
    labels_ : (n,) int array
        1 for the samples of `fit` above the threshold, 0 for others.
    location_, covariance_ : (bands,) and (bands, bands) float64 arrays
        Statistics of the samples of `fit`.

    References
    ----------
    I. S. Reed and X. Yu, "Adaptive multiple-band CFAR detection of an optical pattern with unknown
    spectral distribution", IEEE Trans. ASSP 38(10), 1990.
    """

    def _score(self, samples: Array) -> Array:
        scores: Array = mahal.mahalanobis(samples, self.location_, self.covariance_)
        return scores


class ACE(_Detector):
    """Signed adaptive cosine estimator of a known target: "outliers" are what looks like it.

    Parameters
    ----------
    target : (bands,) array
        Spectrum of the target in the units of the samples.
    contamination : float
        Share of the training samples that show the target, above 0 and at most 0.5.
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Of the covariance, see `mahal.mean_covariance`.
    loading, nu, tolerance, max_iterations : float, float, float, int
        Of the estimators, as there.

    Attributes
    ----------
    decision_scores_ : (n,) array
        Scores of the samples of `fit`, in [-1, 1].
    threshold_ : float
    labels_ : (n,) int array
        1 for the samples of `fit` above the threshold, 0 for others.
    location_, covariance_ : (bands,) and (bands, bands) float64 arrays
        Statistics of the samples of `fit`.
    """

    def __init__(
        self,
        target: Any,
        contamination: float = 0.1,
        estimator: str = "scm",
        loading: float = 1e-3,
        nu: float = 5.0,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
    ) -> None:
        super().__init__(contamination, estimator, loading, nu, tolerance, max_iterations)
        self.target = target

    def _score(self, samples: Array) -> Array:
        target = np.asarray(self.target, dtype=np.float64)
        return _target_scores("ace", samples, target, self.location_, self.covariance_)

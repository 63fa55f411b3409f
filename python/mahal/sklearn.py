"""Estimators for scikit-learn: RX, whitening and detectors of known targets.

Samples are pixels, ``X`` has shape (pixels, bands); ``image.reshape(-1, bands)`` makes it of a
scene. The estimators keep the sign of scikit-learn: what is less normal scores lower, and outliers
are -1. Statistics are of all samples of ``fit``; for windows see `mahal.rx`.

Needs scikit-learn: ``pip install mahal[sklearn]``.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

import mahal

try:
    from sklearn.base import (
        BaseEstimator,
        ClassifierMixin,
        ClassNamePrefixFeaturesOutMixin,
        OutlierMixin,
        TransformerMixin,
    )
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"scikit-learn is needed here and cannot be imported ({error}): pip install mahal[sklearn]"
    ) from error

__all__ = ["RXDetector", "TargetDetector", "Whitener"]

Array = npt.NDArray[Any]
SelfRX = TypeVar("SelfRX", bound="RXDetector")
SelfTarget = TypeVar("SelfTarget", bound="TargetDetector")
SelfWhitener = TypeVar("SelfWhitener", bound="Whitener")

_FLOATS = (np.float64, np.float32)


class _Background(BaseEstimator):
    """Mean and covariance of samples, by any estimator of `mahal.mean_covariance`."""

    estimator: str
    loading: float
    nu: float
    tolerance: float
    max_iterations: int

    location_: Array
    covariance_: Array

    def _fit_background(self, samples: Array) -> None:
        location, covariance = mahal.mean_covariance(
            samples,
            estimator=self.estimator,
            loading=self.loading,
            nu=self.nu,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
        )
        # In float64 they go with samples of either precision.
        location, covariance = location.astype(np.float64), covariance.astype(np.float64)
        try:
            # What cannot be factored is told at fit, with the way out.
            mahal.whiten(location, location, covariance)
        except ValueError as error:
            raise ValueError(
                f"{type(self).__name__}: X: must give a positive definite covariance "
                "(estimator='loading', 'ledoit_wolf' or 'oas' does with fewer samples than bands), "
                f"got {samples.shape[0]} samples of {samples.shape[1]} features"
            ) from error
        self.location_, self.covariance_ = location, covariance

    def _samples(self, X: Any, **how: Any) -> Array:  # noqa: N803
        samples: Array = validate_data(self, X, dtype=_FLOATS, **how)
        return samples


def _check_share(op: str, name: str, value: Any, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise TypeError(f"{op}: {name}: must be a number, got {value!r}")
    if not 0 < value <= most:
        raise ValueError(f"{op}: {name}: must be above 0 and at most {most}, got {value!r}")


def _target_scores(
    detector: str, samples: Array, target: Array, location: Array, covariance: Array
) -> Array:
    """Scores of a detector with the statistics of an earlier fit."""
    # One pixel at the mean, so that it is that mean which is subtracted.
    mean = location.astype(samples.dtype)[None]
    scores: Array
    if detector == "ace":
        scores = mahal.ace(samples, target, background=mean, covariance=covariance, signed=True)
    else:
        scores = mahal.matched_filter(samples, target, background=mean, covariance=covariance)
    return scores


class RXDetector(OutlierMixin, _Background):
    """Outliers by the global RX detector: squared Mahalanobis distances to the background.

    Parameters
    ----------
    contamination : float
        Share of the training samples that `predict` calls outliers, above 0 and at most 0.5.
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Of the covariance, see `mahal.mean_covariance`.
    loading, nu, tolerance, max_iterations : float, float, float, int
        Of the estimators, as there.

    Attributes
    ----------
    location_ : (bands,) float64 array
    covariance_ : (bands, bands) float64 array
        Statistics of the samples of `fit`.
    offset_ : float
        ``decision_function(X) = score_samples(X) - offset_``.
    n_features_in_ : int
    feature_names_in_ : (bands,) array
        Where the names of all features are strings.

    References
    ----------
    I. S. Reed and X. Yu, "Adaptive multiple-band CFAR detection of an optical pattern with unknown
    spectral distribution", IEEE Trans. ASSP 38(10), 1990.
    """

    offset_: float

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        estimator: str = "scm",
        loading: float = 1e-3,
        nu: float = 5.0,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
    ) -> None:
        self.contamination = contamination
        self.estimator = estimator
        self.loading = loading
        self.nu = nu
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def fit(self: SelfRX, X: Any, y: Any = None) -> SelfRX:  # noqa: N803
        """Estimate the background, and the offset that leaves out the contamination.

        Parameters
        ----------
        X : (n, bands) array
            Real and finite. The outliers may be among them.
        y : object
            Without effect.

        Returns
        -------
        RXDetector
            The estimator itself.

        Raises
        ------
        ValueError
            Values that are not finite, fewer than two samples, a parameter out of its range, or a
            covariance that is not positive definite.
        """
        _check_share(type(self).__name__, "contamination", self.contamination, 0.5)
        samples = self._samples(X, ensure_min_samples=2)
        self._fit_background(samples)
        scores = -mahal.mahalanobis(samples, self.location_, self.covariance_)
        self.offset_ = float(np.percentile(scores, 100 * self.contamination))
        return self

    def score_samples(self, X: Any) -> Array:  # noqa: N803
        """RX scores with the sign of scikit-learn.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) array
            ``-(x - m)^T S^-1 (x - m)``, at most 0.
        """
        check_is_fitted(self)
        samples = self._samples(X, reset=False)
        scores: Array = -mahal.mahalanobis(samples, self.location_, self.covariance_)
        return scores

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Scores from which the offset is subtracted: negative for outliers.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) array
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:  # noqa: N803
        """-1 for outliers, 1 for others.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) int array
        """
        return np.where(self.decision_function(X) < 0, -1, 1)


class Whitener(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Background):
    """Whitened samples ``L^-1 (x - m)``, with the covariance ``L L^T`` and L lower triangular.

    With the sample covariance, the samples of `fit` get mean 0 and covariance I (divisor n - 1).
    Unlike whitening by principal components, feature k depends on the first k bands only.

    Parameters
    ----------
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Of the covariance, see `mahal.mean_covariance`.
    loading, nu, tolerance, max_iterations : float, float, float, int
        Of the estimators, as there.

    Attributes
    ----------
    location_ : (bands,) float64 array
    covariance_ : (bands, bands) float64 array
        Statistics of the samples of `fit`.
    n_features_in_ : int
    feature_names_in_ : (bands,) array
        Where the names of all features are strings.
    """

    def __init__(
        self,
        *,
        estimator: str = "scm",
        loading: float = 1e-3,
        nu: float = 5.0,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
    ) -> None:
        self.estimator = estimator
        self.loading = loading
        self.nu = nu
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def fit(self: SelfWhitener, X: Any, y: Any = None) -> SelfWhitener:  # noqa: N803
        """Estimate mean and covariance.

        Parameters
        ----------
        X : (n, bands) array
            Real and finite.
        y : object
            Without effect.

        Returns
        -------
        Whitener
            The estimator itself.

        Raises
        ------
        ValueError
            Values that are not finite, fewer than two samples, or a covariance that is not positive
            definite.
        """
        self._fit_background(self._samples(X, ensure_min_samples=2))
        return self

    def transform(self, X: Any) -> Array:  # noqa: N803
        """Whiten.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n, bands) array
        """
        check_is_fitted(self)
        samples = self._samples(X, reset=False)
        whitened: Array = mahal.whiten(samples, self.location_, self.covariance_)
        return whitened

    def inverse_transform(self, X: Any) -> Array:  # noqa: N803
        """``L y + m``: what `transform` made back into samples.

        Parameters
        ----------
        X : (n, bands) array
            Whitened samples.

        Returns
        -------
        (n, bands) array
        """
        check_is_fitted(self)
        whitened = np.asarray(X)
        bands = self.location_.size
        if whitened.ndim != 2 or whitened.shape[1] != bands:
            raise ValueError(
                f"{type(self).__name__}: X: must have shape (n, {bands}), got {whitened.shape}"
            )
        samples: Array = whitened @ mahal.cholesky(self.covariance_).T + self.location_
        return samples

    @property
    def _n_features_out(self) -> int:
        return int(self.location_.size)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class TargetDetector(ClassifierMixin, _Background):
    """ACE or the matched filter as a classifier of two classes: background and target.

    The first class in sorted order is the background, whose samples give mean and covariance; the
    other is the target. A sample is called a target where its score is above the threshold that a
    share of the background samples exceeds.

    Parameters
    ----------
    target : (bands,) array, optional
        Spectrum of the target in the units of the samples. Default: the mean of the samples of the
        class of the target.
    detector : {"ace", "matched_filter"}
        Signed adaptive cosine estimator, or the filter whose response to the target is 1.
    false_alarm_rate : float
        Share of the background samples of `fit` above the threshold; more than 0, at most 0.5.
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Of the covariance, see `mahal.mean_covariance`.
    loading, nu, tolerance, max_iterations : float, float, float, int
        Of the estimators, as there.

    Attributes
    ----------
    classes_ : (2,) array
        Labels of background and target.
    target_ : (bands,) float64 array
    location_ : (bands,) float64 array
    covariance_ : (bands, bands) float64 array
        Statistics of the background.
    threshold_ : float
        ``decision_function(X) = score_samples(X) - threshold_``.
    n_features_in_ : int
    feature_names_in_ : (bands,) array
        Where the names of all features are strings.
    """

    classes_: Array
    target_: Array
    threshold_: float

    def __init__(
        self,
        *,
        target: Any = None,
        detector: str = "ace",
        false_alarm_rate: float = 0.01,
        estimator: str = "scm",
        loading: float = 1e-3,
        nu: float = 5.0,
        tolerance: float = 1e-6,
        max_iterations: int = 100,
    ) -> None:
        self.target = target
        self.detector = detector
        self.false_alarm_rate = false_alarm_rate
        self.estimator = estimator
        self.loading = loading
        self.nu = nu
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def fit(self: SelfTarget, X: Any, y: Any) -> SelfTarget:  # noqa: N803
        """Estimate the background, the target where it is not given, and the threshold.

        Parameters
        ----------
        X : (n, bands) array
            Real and finite.
        y : (n,) array
            Two different labels.

        Returns
        -------
        TargetDetector
            The estimator itself.

        Raises
        ------
        ValueError
            Values that are not finite, more or less than two classes, fewer than two background
            samples, a parameter out of its range, or a covariance that is not positive definite.
        """
        op = type(self).__name__
        _check_share(op, "false_alarm_rate", self.false_alarm_rate, 0.5)
        if self.detector not in ("ace", "matched_filter"):
            raise ValueError(
                f"{op}: detector: must be 'ace' or 'matched_filter', got {self.detector!r}"
            )
        samples, labels = validate_data(self, X, y, dtype=_FLOATS, ensure_min_samples=2)
        check_classification_targets(labels)
        kind = type_of_target(labels, input_name="y", raise_unknown=True)
        classes = np.unique(labels)
        if kind != "binary":
            raise ValueError(
                "Only binary classification is supported. The type of the target is "
                f"{kind}, with {classes.size} classes."
            )
        if classes.size < 2:
            raise ValueError(f"{op}: y: must have two classes, got one class: {classes[0]!r}")
        background = np.ascontiguousarray(samples[labels == classes[0]])
        if len(background) < 2:
            raise ValueError(f"{op}: y: must name two background samples or more, got 1 sample")
        self._fit_background(background)
        found = samples[labels == classes[1]].mean(axis=0) if self.target is None else self.target
        self.target_ = np.asarray(found, dtype=np.float64)
        self.classes_ = classes
        scores = self._score(background)
        self.threshold_ = float(np.quantile(scores, 1 - self.false_alarm_rate))
        return self

    def _score(self, samples: Array) -> Array:
        return _target_scores(
            self.detector, samples, self.target_, self.location_, self.covariance_
        )

    def score_samples(self, X: Any) -> Array:  # noqa: N803
        """Scores of `mahal.ace` (signed) or `mahal.matched_filter`: higher for the target.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) array
        """
        check_is_fitted(self)
        return self._score(self._samples(X, reset=False))

    def decision_function(self, X: Any) -> Array:  # noqa: N803
        """Scores from which the threshold is subtracted: positive for the target.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) array
        """
        return self.score_samples(X) - self.threshold_

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Labels of the samples.

        Parameters
        ----------
        X : (n, bands) array

        Returns
        -------
        (n,) array
            Values of ``classes_``.
        """
        found = self.decision_function(X) > 0
        labels: Array = self.classes_[found.astype(int)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        # The rate of false alarms is held, not the share of right labels, and the cosine leaves out
        # how far a sample lies from the background.
        tags.classifier_tags.poor_score = True
        return tags

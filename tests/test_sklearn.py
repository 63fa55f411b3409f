"""Estimators for scikit-learn."""

from __future__ import annotations

from pathlib import Path

import mahal
import numpy as np
import pytest

pytest.importorskip("sklearn")

from mahal.sklearn import RXDetector, TargetDetector, Whitener
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks


@parametrize_with_checks(
    [RXDetector(), Whitener(), TargetDetector(), TargetDetector(detector="matched_filter")]
)
def test_contract_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def pixels():
    """Correlated background pixels, and the same with a spectrum added to the first 20."""
    rng = np.random.default_rng(0)
    background = rng.standard_normal((1000, 8)) @ rng.standard_normal((8, 8)) + 50
    implanted = background.copy()
    implanted[:20] += 40 * rng.standard_normal(8)
    return background, implanted


@pytest.mark.parametrize("estimator", ["scm", "ledoit_wolf", "tyler"])
def test_rx_has_the_scores_of_the_op(pixels, estimator):
    image = pixels[1]
    found = RXDetector(estimator=estimator).fit(image)
    mean, covariance = mahal.mean_covariance(image, estimator=estimator)
    np.testing.assert_array_equal(found.location_, mean)
    wanted = mahal.rx(image, background=mean[None], covariance=covariance)
    np.testing.assert_allclose(-found.score_samples(image), wanted, rtol=1e-9)
    if estimator == "scm":
        np.testing.assert_allclose(-found.score_samples(image), mahal.rx(image), rtol=1e-9)


def test_rx_calls_the_implanted_pixels_outliers(pixels):
    labels = RXDetector(contamination=0.02).fit_predict(pixels[1])
    assert (labels[:20] == -1).all()
    assert (labels == -1).sum() == 20


def test_single_precision_goes_with_a_fit_in_double(pixels):
    image = pixels[1]
    for fitted, scored in ((np.float32, np.float64), (np.float64, np.float32)):
        found = RXDetector().fit(image.astype(fitted)).score_samples(image.astype(scored))
        assert found.dtype == scored
        np.testing.assert_allclose(found, RXDetector().fit(image).score_samples(image), rtol=1e-3)


def test_a_singular_covariance_is_told_at_fit(pixels):
    twice = pixels[0][:, [0, 0, 1]]
    with pytest.raises(ValueError, match="RXDetector: X: must give a positive definite covariance"):
        RXDetector().fit(twice)
    assert RXDetector(estimator="loading").fit(twice).score_samples(twice).shape == (1000,)


@pytest.mark.parametrize(
    ("contamination", "error"), [(0, ValueError), (0.6, ValueError), ("auto", TypeError)]
)
def test_contamination_is_a_share(pixels, contamination, error):
    with pytest.raises(error, match="RXDetector: contamination: must be"):
        RXDetector(contamination=contamination).fit(pixels[0])


def test_whitened_samples_have_the_identity_as_covariance(pixels):
    whitener = Whitener().fit(pixels[0])
    white = whitener.transform(pixels[0])
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-10)
    np.testing.assert_allclose(np.cov(white.T), np.eye(8), atol=1e-10)
    np.testing.assert_allclose(whitener.inverse_transform(white), pixels[0], rtol=1e-12)
    assert list(whitener.get_feature_names_out()) == [f"whitener{k}" for k in range(8)]
    with pytest.raises(ValueError, match=r"Whitener: X: must have shape \(n, 8\)"):
        whitener.inverse_transform(white[:, :3])


def test_rx_of_whitened_samples_is_their_squared_length(pixels):
    white = Whitener().fit_transform(pixels[1])
    scores = make_pipeline(Whitener(), RXDetector()).fit(pixels[1]).score_samples(pixels[1])
    np.testing.assert_allclose(-scores, (white**2).sum(axis=1), rtol=1e-9)


@pytest.mark.parametrize("detector", ["ace", "matched_filter"])
def test_target_detector_has_the_scores_of_the_op(pixels, detector):
    background, implanted = pixels
    samples = np.concatenate([background, implanted[:20]])
    labels = np.repeat(["grass", "panel"], [1000, 20])
    model = TargetDetector(detector=detector, false_alarm_rate=0.05).fit(samples, labels)
    target = implanted[:20].mean(axis=0)
    op, more = (mahal.ace, {"signed": True}) if detector == "ace" else (mahal.matched_filter, {})
    wanted = op(samples, target, background=background, **more)
    np.testing.assert_allclose(model.score_samples(samples), wanted, rtol=1e-9, atol=1e-12)
    found = model.predict(samples)
    assert (found[1000:] == "panel").mean() > 0.9
    assert (found[:1000] == "panel").sum() == 50
    again = clone(model).set_params(target=target).fit(samples, labels)
    np.testing.assert_allclose(again.score_samples(samples), wanted, rtol=1e-9, atol=1e-12)


def test_a_search_over_parameters_runs(pixels):
    background, implanted = pixels
    samples = np.concatenate([background[:100], implanted[:20]])
    labels = np.repeat([0, 1], [100, 20])
    search = GridSearchCV(TargetDetector(), {"detector": ["ace", "matched_filter"]}, cv=2)
    assert search.fit(samples, labels).best_score_ > 0.8
    with pytest.raises(ValueError, match="TargetDetector: detector: must be 'ace'"):
        TargetDetector(detector="cem").fit(samples, labels)


def test_example_of_the_page():
    page = Path(__file__).parents[1] / "docs" / "adapters.md"
    variables = {}
    for block in page.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(block.split("```")[0], variables)
    assert 0.009 < variables["outliers"].mean() < 0.011

"""Detectors for pyod."""

from __future__ import annotations

import mahal
import numpy as np
import pytest

pytest.importorskip("pyod")

from mahal.pyod import ACE, RX
from mahal.sklearn import RXDetector
from pyod.models.base import BaseDetector
from sklearn.base import clone


@pytest.fixture(scope="module")
def pixels():
    """Correlated pixels with a spectrum added to the first 20, and that spectrum at full."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((1000, 8)) @ rng.standard_normal((8, 8)) + 50
    added = 40 * rng.standard_normal(8)
    image[:20] += added
    return image, image[20:].mean(axis=0) + added


def test_rx_is_higher_for_the_implanted_pixels(pixels):
    image = pixels[0]
    model = RX(contamination=0.02).fit(image)
    assert isinstance(model, BaseDetector)
    np.testing.assert_allclose(model.decision_scores_, mahal.rx(image), rtol=1e-9)
    np.testing.assert_array_equal(model.decision_function(image), model.decision_scores_)
    np.testing.assert_array_equal(np.flatnonzero(model.labels_), np.arange(20))
    np.testing.assert_array_equal(model.predict(image), model.labels_)
    assert model.predict_proba(image)[:20, 1].min() > model.predict_proba(image)[20:, 1].max()


def test_rx_has_the_opposite_sign_of_scikit_learn(pixels):
    image = pixels[0]
    for estimator in ("scm", "ledoit_wolf"):
        scores = RX(estimator=estimator).fit(image).decision_function(image)
        other = RXDetector(estimator=estimator).fit(image).score_samples(image)
        np.testing.assert_array_equal(scores, -other)


def test_ace_finds_the_target(pixels):
    image, target = pixels
    model = ACE(target, contamination=0.02).fit(image)
    wanted = mahal.ace(image, target, signed=True)
    np.testing.assert_allclose(model.decision_scores_, wanted, rtol=1e-9, atol=1e-12)
    assert model.labels_[:20].mean() >= 0.9
    scores = model.decision_function(2 * model.location_ - image)
    np.testing.assert_allclose(scores, -wanted, rtol=1e-6, atol=1e-9)


def test_parameters_are_those_of_the_constructor(pixels):
    image, target = pixels
    model = clone(ACE(target, estimator="oas"))
    assert model.get_params()["estimator"] == "oas"
    assert model.fit(image).decision_scores_.shape == (1000,)


def test_what_cannot_be_fitted_is_refused(pixels):
    image, target = pixels
    with pytest.raises(ValueError, match="NaN"):
        RX().fit(np.where(image > 60, np.nan, image))
    with pytest.raises(ValueError, match="target: must"):
        ACE(target[:3]).fit(image)
    with pytest.raises(ValueError, match="contamination"):
        RX(contamination=0.7)
    with pytest.raises(ValueError, match="not fitted"):
        RX().decision_function(image)
    with pytest.raises(ValueError, match="8 features"):
        RX().fit(image).decision_function(image[:, :5])

"""The detector that is used when none is named, and the tail that sets its threshold."""

from __future__ import annotations

import mahal
import numpy as np
import pytest
from mahal import scenes, significance


@pytest.fixture(scope="module")
def image():
    return scenes.simulate(48, 40, 24, seed=3).image.astype(np.float64)


def oracle(image, components, window):
    """The definition, from numpy and `mahal.rx`."""
    mean, covariance = mahal.mean_covariance(image)
    axes = np.linalg.eigh(covariance)[1][:, -components:]
    whole, near = mahal.rx(image), mahal.rx((image - mean) @ axes, window=window)
    return np.sqrt(whole / np.median(whole) * near / np.median(near))


@pytest.mark.parametrize(("components", "window"), [(10, (11, 31)), (3, (1, 9))])
def test_definition(image, components, window):
    scores = mahal.fused_rx(image, components=components, window=window)
    np.testing.assert_allclose(scores, oracle(image, components, window), rtol=1e-9)
    assert 0.3 < np.median(scores) < 1.5


def test_it_does_not_depend_on_units(image):
    scores = mahal.fused_rx(image)
    moved = mahal.fused_rx(image * 1e-3 + 7)
    np.testing.assert_allclose(moved, scores, rtol=1e-6)


def test_images_smaller_than_the_window_and_with_few_bands(image):
    assert np.isfinite(mahal.fused_rx(image[:9, :12, :3])).all()
    assert np.isfinite(mahal.fused_rx(image[:30, :33, :1])).all()
    small = mahal.fused_rx(image[:20, :20], components=4)
    np.testing.assert_allclose(small, oracle(image[:20, :20], 4, (7, 19)), rtol=1e-9)


def test_pixels_without_values_cost_nobody_else_a_score(image):
    holed = image.copy()
    holed[5, 6, 7] = np.nan
    mask = np.ones(image.shape[:2], bool)
    mask[10:12] = False
    scores, status = mahal.fused_rx(holed, mask=mask, return_status=True)
    assert status[5, 6] == 3
    assert (status[10:12] == 4).all()
    assert (np.isnan(scores) == (status > 0)).all()
    assert np.isnan(scores).sum() == 1 + 2 * image.shape[1]


def test_torch_gives_torch(image):
    torch = pytest.importorskip("torch")
    scores = mahal.fused_rx(torch.from_numpy(image).float())
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores, mahal.fused_rx(image), rtol=2e-3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"components": 0}, "components: must be a whole number of at least 1, got 0"),
        ({"window": 7}, "window: must be"),
        ({"window": (4, 9)}, "window: "),
        ({"singular": "x"}, "singular: must be"),
    ],
)
def test_wrong_values(image, options, text):
    with pytest.raises(ValueError, match=text):
        mahal.fused_rx(image, **options)


def test_complex_images_are_refused(image):
    with pytest.raises(TypeError, match="fused_rx: image: must be real"):
        mahal.fused_rx(image.astype(complex))


# The tail of scores without a law.


def test_tail_of_a_pareto_law():
    random = np.random.default_rng(0)
    index = 3.0
    scores = (1 - random.random(200_000)) ** (-1 / index)
    tail = significance.score_tail(scores)
    # The estimate from k censored excesses has the relative deviation 1 / sqrt(k).
    assert tail.index == pytest.approx(index, rel=4 / np.sqrt(0.07 * scores.size))
    for rate in (0.5, 0.05, 1e-3, 1e-5):
        assert tail.threshold(rate) == pytest.approx(rate ** (-1 / index), rel=0.12)


def test_tail_inverts_and_falls():
    scores = np.random.default_rng(1).chisquare(5, 5000)
    tail = significance.score_tail(scores)
    rates = np.array([0.9, 0.3, 0.1, 0.03, 0.01, 1e-4, 1e-9])
    levels = tail.threshold(rates)
    np.testing.assert_allclose(tail.pvalue(levels), rates, rtol=1e-9)
    assert (np.diff(levels) > 0).all()
    assert np.isnan(tail.pvalue(np.nan))
    assert tail.pvalue(1e300) > 0


def test_few_anomalies_do_not_move_the_tail():
    scores = np.random.default_rng(2).chisquare(5, 10_000)
    raised = scores.copy()
    raised[np.argsort(scores)[-200:]] *= 1e6
    clean, seen = significance.score_tail(scores), significance.score_tail(raised)
    assert seen.threshold(1e-4) == clean.threshold(1e-4)


def test_scores_that_cannot_have_a_tail():
    flat = significance.score_tail(np.zeros(500))
    assert flat.threshold(1e-6) == 0
    assert flat.pvalue(1.0) == np.finfo(float).tiny
    with pytest.raises(ValueError, match="needs at least 100 that are finite, got 99"):
        significance.score_tail(np.r_[np.ones(99), np.nan])
    with pytest.raises(ValueError, match="must not be negative"):
        significance.score_tail(-np.ones(200))
    with pytest.raises(ValueError, match="more than 0 and less than 1"):
        flat.threshold(0)

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal.metrics import image_areas, mean_roc, over_runs, roc, roc_areas

EPS = np.finfo(np.float64).eps


def pairwise_area(scores, truth):
    """AUC(D,F) as the share of won (target, background) pairs, in rational arithmetic."""
    wins = Fraction(0)
    targets, background = scores[truth], scores[~truth]
    for s in targets:
        for b in background:
            wins += 1 if s > b else Fraction(1, 2) if s == b else 0
    return float(wins / (len(targets) * len(background)))


def step_area(part, low, high):
    """Area over tau of the share of `part` at or above tau, by summing the steps."""
    tau = np.unique(np.concatenate(([0.0, 1.0], (part - low) / (high - low))))
    share = [(part >= low + (a + b) / 2 * (high - low)).mean() for a, b in pairwise(tau)]
    return float(np.sum(np.diff(tau) * share))


@st.composite
def maps(draw):
    size = draw(st.integers(2, 40))
    levels = draw(st.integers(2, 50))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, size).astype(float)
    scores[:2] = 0, levels
    truth = rng.random(size) < 0.4
    truth[0], truth[1] = draw(st.permutations([True, False]))
    return scores, truth


@settings(deadline=None, max_examples=60)
@given(maps())
def test_exact_areas_equal_their_definitions(case):
    scores, truth = case
    areas = roc_areas(scores, truth)
    assert areas.auc_df == pairwise_area(scores, truth)
    low, high = scores.min(), scores.max()
    bound = 8 * EPS * scores.size
    assert areas.auc_dtau == pytest.approx(step_area(scores[truth], low, high), abs=bound)
    assert areas.auc_ftau == pytest.approx(step_area(scores[~truth], low, high), abs=bound)


@settings(deadline=None, max_examples=60)
@given(maps())
def test_curve_is_monotone_and_encloses_the_area(case):
    scores, truth = case
    curve = roc(scores, truth)
    assert np.all(np.diff(curve.thresholds) < 0)
    for rate in (curve.detection_rate, curve.false_alarm_rate):
        assert rate[0] == 0
        assert rate[-1] == 1
        assert np.all(np.diff(rate) >= 0)
    for t, d, f in zip(curve.thresholds, curve.detection_rate, curve.false_alarm_rate, strict=True):
        assert d == (scores[truth] >= t).mean()
        assert f == (scores[~truth] >= t).mean()
    d, f = curve.detection_rate, curve.false_alarm_rate
    area = np.sum(np.diff(f) * (d[1:] + d[:-1])) / 2
    assert area == pytest.approx(roc_areas(scores, truth).auc_df, abs=8 * EPS * scores.size)


def test_derived_areas_on_a_hand_made_map():
    # Normalised targets 1 and 1/2, background 1/2, 1/4, 0, 0: eight pairs, seven and a half won.
    scores = np.array([8.0, 4.0, 4.0, 2.0, 0.0, 0.0])
    truth = np.array([1, 1, 0, 0, 0, 0])
    a = roc_areas(scores, truth)
    assert (a.auc_df, a.auc_dtau, a.auc_ftau) == (7.5 / 8, 0.75, 0.1875)
    assert (a.td, a.bs, a.tdbs) == (1.6875, 0.75, 0.5625)
    assert (a.odp, a.od, a.snpr) == (1.5625, 1.5, 4.0)
    assert (a.positives, a.negatives, a.left_out) == (2, 4, 0)


def test_grid_of_thresholds():
    scores = np.array([0.0, 0.2, 0.5, 0.5, 0.9, 1.0])
    truth = np.array([0, 0, 0, 1, 0, 1], dtype=bool)
    curve = roc(3 + 2 * scores, truth, thresholds=3)
    np.testing.assert_array_equal(curve.thresholds, [5.0, 4.0, 3.0])
    np.testing.assert_array_equal(curve.detection_rate, [0.5, 1.0, 1.0])
    np.testing.assert_array_equal(curve.false_alarm_rate, [0.0, 0.5, 1.0])
    # Trapezoids between the three points: 0.5 * 0.75 + 0.5 * 1.
    assert roc_areas(3 + 2 * scores, truth, thresholds=3).auc_df == 0.875
    assert roc_areas(scores, truth).auc_df == 6.5 / 8


def test_grid_differs_where_one_large_score_squeezes_the_rest():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=2000)
    truth = rng.random(2000) < 0.1
    scores[truth] += 2
    scores[np.flatnonzero(truth)[0]] = 1e5
    exact = roc_areas(scores, truth).auc_df
    assert abs(roc_areas(scores, truth, thresholds=1001).auc_df - exact) > 0.05


def test_not_a_number_is_left_out_and_counted():
    scores = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, 0.0]])
    truth = np.array([[0, 1, 1], [0, 0, 0]])
    used = ~np.isnan(scores)
    areas, kept = roc_areas(scores, truth), roc_areas(scores[used], truth[used])
    assert areas.left_out == 2
    assert kept.left_out == 0
    assert (areas.auc_df, areas.auc_dtau, areas.auc_ftau) == (
        kept.auc_df,
        kept.auc_dtau,
        kept.auc_ftau,
    )
    assert roc(scores, truth).left_out == 2


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float32])
def test_dtypes_and_shapes_do_not_matter(dtype):
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 9, (6, 7)).astype(dtype)
    truth = rng.random((6, 7)) < 0.3
    assert roc_areas(scores, truth) == roc_areas(scores.astype(float).T, truth.T)


def test_constant_map_says_nothing():
    areas = roc_areas(np.full(10, 7.0), np.arange(10) < 3)
    assert (areas.auc_df, areas.auc_dtau, areas.auc_ftau) == (0.5, 0.0, 0.0)
    assert np.isnan(areas.snpr)


def test_span_of_huge_scores_does_not_overflow():
    high = np.finfo(np.float64).max
    areas = roc_areas(np.array([-high, 0.0, high]), np.array([0, 0, 1]))
    assert (areas.auc_dtau, areas.auc_ftau) == (1.0, 0.25)


@pytest.mark.parametrize("call", [roc, roc_areas])
@pytest.mark.parametrize(
    ("scores", "truth", "error", "text"),
    [
        ([1, 2, 3], [0, 1], ValueError, r"truth: must have the shape of scores \(3,\), got \(2,\)"),
        ([1, 2, 3], [0, 1, 2], ValueError, "truth: must be boolean or all 0 and 1, got values 0, "),
        ([1, 2, 3], [0, 1, np.nan], ValueError, "truth: must be boolean or all 0 and 1"),
        ([1, 2, 3], ["a", "b", "c"], ValueError, "truth: must be boolean or all 0 and 1, got dtyp"),
        ([1, 2, 3], [0, 0, 0], ValueError, "at least one target pixel"),
        ([1, 2, 3], [1, 1, 1], ValueError, "at least one background pixel"),
        ([1, np.nan, 3], [0, 1, 0], ValueError, "at least one target pixel whose score is not NaN"),
        ([1, np.inf, 3], [0, 1, 0], ValueError, "must be finite or NaN, got 1 infinite"),
        ([], [], ValueError, "at least one target pixel"),
        ([1j, 2, 3], [0, 1, 0], TypeError, "must be real numbers, got dtype complex128"),
    ],
)
def test_bad_input(call, scores, truth, error, text):
    with pytest.raises(error, match=f"^{call.__name__}: (scores|truth): .*") as caught:
        call(scores, truth)
    assert caught.match(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("thresholds", [1, 0, -3, 2.5, "many"])
def test_bad_number_of_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds: must be an integer of at least 2, got"):
        roc_areas([1, 2], [0, 1], thresholds=thresholds)


def test_mean_roc_averages_at_equal_false_alarm_rates():
    truth = np.array([1, 1, 0, 0, 0, 0], bool)
    one = np.array([6.0, 3, 5, 4, 2, 1])
    two = np.array([1.0, 6, 5, 4, 3, 2])
    found = mean_roc([one, two], truth)
    np.testing.assert_array_equal(found.false_alarm_rate, np.arange(5) / 4)
    np.testing.assert_array_equal(found.detection_rate, [0.5, 0.5, 0.75, 0.75, 1.0])
    np.testing.assert_array_equal(found.deviation, [0, 0, 0.25, 0.25, 0])
    areas = [roc_areas(s, truth).auc_df for s in (one, two)]
    assert found.auc_df == pytest.approx(np.mean(areas), abs=1e-15)
    assert found.auc_deviation == pytest.approx(np.std(areas), abs=1e-15)
    assert found.runs == 2


def test_mean_roc_of_one_run_is_its_roc():
    rng = np.random.default_rng(3)
    scores, truth = rng.normal(size=400), rng.random(400) < 0.1
    found, curve = mean_roc([scores], truth), roc(scores, truth)
    for rate, detection in zip(curve.false_alarm_rate, curve.detection_rate, strict=True):
        k = round(rate * curve.negatives)
        assert found.detection_rate[k] >= detection
    with pytest.raises(ValueError, match="at least one run"):
        mean_roc([], truth)


def test_areas_of_images_and_their_pixels():
    rng = np.random.default_rng(4)
    maps = [rng.normal(size=(6, 5 + k)) for k in range(4)]
    truths = [np.zeros(m.shape, bool) for m in maps]
    truths[1][2, 3] = truths[3][0, 0] = True
    maps[1][2, 3], maps[3][0, 0], maps[3][5, 5] = 9.0, 0.1, np.nan
    found = image_areas(maps, truths)
    flat = [np.concatenate([a.ravel() for a in part]) for part in (maps, truths)]
    assert found.pixel == roc_areas(*flat).auc_df
    highest = [np.nanmax(m) for m in maps]
    assert found.image == roc_areas(highest, [False, True, False, True]).auc_df
    single = [roc_areas(maps[k], truths[k]).auc_df for k in (1, 3)]
    assert found.pixel_mean == np.mean(single)
    assert (found.targets, found.images) == (2, 4)
    assert image_areas(maps, truths, image_scores=[0, 1, 0, 1]).image == 1
    assert np.isnan(image_areas(maps[1:2], truths[1:2]).image)
    with pytest.raises(ValueError, match="got 3 for 4"):
        image_areas(maps, truths[:3])
    with pytest.raises(ValueError, match=r"truths\[1\]: must have the shape"):
        image_areas(maps[:2], truths[::3])


def test_spread_over_runs():
    found = over_runs([0.5, 0.7, 0.9])
    assert (found.mean, found.runs) == (pytest.approx(0.7), 3)
    assert found.deviation == pytest.approx(np.sqrt(0.08 / 3))
    assert str(found) == "0.7000 ± 0.1633"
    assert str(over_runs([0.25])) == "0.2500"
    with pytest.raises(ValueError, match="at least one run"):
        over_runs([])

import itertools

import numpy as np
import pytest
from mahal.significance import rx_pvalue, rx_threshold, window_samples
from scipy import stats

EPS = np.finfo(np.float64).eps
LAWS = list(itertools.product(("local", "global"), ("estimated", "known"), (False, True)))


def simulate(count, bands, samples, background, mean, complex_data, seed):
    """RX scores of `count` independent experiments, straight from the definition."""
    rng = np.random.default_rng(seed)
    shape = (count, samples + 1, bands)
    data = rng.normal(size=shape)
    if complex_data:
        data = (data + 1j * rng.normal(size=shape)) / np.sqrt(2)
    # Any invertible map and offset: the law must not depend on them.
    mixing = rng.normal(size=(bands, bands)) + 2 * np.eye(bands)
    data = data @ mixing
    if mean == "estimated":
        data = data + 5 * rng.normal(size=bands)
    back = data[:, :samples]
    pixel = back[:, 0] if background == "global" else data[:, samples]
    centre = back.mean(axis=1) if mean == "estimated" else np.zeros((count, bands))
    z = back - centre[:, None]
    covariance = np.einsum("cni,cnj->cij", z, z.conj())
    covariance /= samples - 1 if mean == "estimated" else samples
    d = pixel - centre
    solved = np.linalg.solve(covariance, d[..., None])[..., 0]
    return np.einsum("ci,ci->c", d.conj(), solved).real


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
@pytest.mark.parametrize(("bands", "samples"), [(1, 5), (6, 40), (4, 6)])
def test_pvalues_of_simulated_background_are_uniform(
    background, mean, complex_data, bands, samples
):
    law = {"background": background, "mean": mean, "complex_data": complex_data}
    scores = simulate(4000, bands, samples, **law, seed=bands)
    pvalues = rx_pvalue(scores, bands, samples, **law)
    # 24 cases with fixed seeds: a level of 1e-3 keeps a chance failure out of them, and the
    # neighbouring laws below show that the test does reject.
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
def test_other_laws_are_rejected(background, mean, complex_data):
    law = {"background": background, "mean": mean, "complex_data": complex_data}
    scores = simulate(4000, 4, 6, **law, seed=2)
    for changed in LAWS:
        wrong = dict(zip(law, changed, strict=True))
        if wrong != law:
            pvalues = rx_pvalue(scores, 4, 6, **wrong)
            assert stats.kstest(pvalues, "uniform").pvalue < 1e-6, wrong


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
@pytest.mark.parametrize("rate", [0.1, 0.01])
def test_rate_above_threshold_is_the_rate_asked_for(background, mean, complex_data, rate):
    law = {"background": background, "mean": mean, "complex_data": complex_data}
    scores = simulate(20000, 3, 20, **law, seed=11)
    alarms = int((scores >= rx_threshold(rate, 3, 20, **law)).sum())
    low, high = stats.binom.interval(1 - 1e-4, scores.size, rate)
    assert low <= alarms <= high


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
def test_threshold_inverts_pvalue_down_to_tiny_rates(background, mean, complex_data):
    law = {"background": background, "mean": mean, "complex_data": complex_data}
    rate = np.logspace(-14, -0.1, 40)
    for bands, samples in ((1, 4), (20, 60), (162, 416), (207, 22500)):
        threshold = rx_threshold(rate, bands, samples, **law)
        assert np.all(np.diff(threshold) < 0)
        back = rx_pvalue(threshold, bands, samples, **law)
        # A relative error in the threshold moves log p by the slope times as much; the iteration
        # that inverts the incomplete beta function stops within 1000 eps of the root.
        slope = np.abs(np.gradient(np.log(rate), np.log(threshold)))
        assert np.all(np.abs(back / rate - 1) <= 1000 * EPS * (slope + 1))


def test_closed_form_one_band_known_mean():
    # One complex band, known mean: D / N = F(2, 2 N), whose survival function is (1 + D/N)^-N.
    d, n = np.array([0.1, 1.0, 30.0]), 12
    expected = (1 + d / n) ** -n
    got = rx_pvalue(d, 1, n, mean="known", complex_data=True)
    np.testing.assert_allclose(got, expected, rtol=16 * n * EPS)
    rate = 1e-5
    threshold = rx_threshold(rate, 1, n, mean="known", complex_data=True)
    assert threshold == pytest.approx(n * (rate ** (-1 / n) - 1), rel=16 * n * EPS)


def test_closed_form_one_band_inside():
    # One complex band among its own N samples, known mean: D / N ~ Beta(1, N - 1).
    d, n = np.array([0.1, 1.0, 11.5]), 12
    got = rx_pvalue(d, 1, n, background="global", mean="known", complex_data=True)
    np.testing.assert_allclose(got, (1 - d / n) ** (n - 1), rtol=64 * n * EPS)


def test_printed_form_of_the_guarded_window_law():
    bands, samples, rate = 162, 416, 1e-3
    ratio = samples * (samples - bands) / ((samples + 1) * (samples - 1) * bands)
    expected = stats.f.isf(rate, bands, samples - bands) / ratio
    assert rx_threshold(rate, bands, samples) == pytest.approx(expected, rel=1e-9)


def test_many_samples_approach_chi_square():
    rate, bands = np.array([0.1, 1e-3]), 30
    for background in ("local", "global"):
        got = rx_threshold(rate, bands, 10**9, background=background)
        # The laws differ from chi-square by terms of the order bands / samples.
        np.testing.assert_allclose(got, stats.chi2.isf(rate, bands), rtol=100 * bands / 10**9)


def test_score_at_and_beyond_the_end_of_the_inside_law():
    end = (20 - 1) ** 2 / 20
    got = rx_pvalue([0.0, end, end * (1 + 4 * EPS)], 3, 20, background="global")
    np.testing.assert_array_equal(got, [1.0, 0.0, 0.0])


def test_maps_of_samples_broadcast_and_mark_what_is_too_few():
    samples = np.array([[0, 5, 6], [7, 100, 416]])
    threshold = rx_threshold(0.01, 6, samples)
    assert threshold.shape == (2, 3)
    np.testing.assert_array_equal(np.isnan(threshold), samples <= 6)
    assert threshold[1, 1] == rx_threshold(0.01, 6, 100)
    pvalue = rx_pvalue(threshold, 6, samples)
    np.testing.assert_array_equal(np.isnan(pvalue), samples <= 6)
    assert np.isnan(rx_pvalue(np.nan, 6, 100))
    assert isinstance(rx_threshold(0.01, 6, 100), float)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: rx_threshold(0.0, 3, 9), "false_alarm_rate: must be more than 0 and less than 1"),
        (lambda: rx_threshold([0.1, 1.0], 3, 9), "less than 1, got 1.0"),
        (lambda: rx_threshold(np.nan, 3, 9), "less than 1, got nan"),
        (lambda: rx_threshold(0.1, 0, 9), "bands: must be an integer of at least 1, got 0"),
        (lambda: rx_threshold(0.1, 2.5, 9), "bands: must be an integer of at least 1, got 2.5"),
        (lambda: rx_threshold(0.1, 3, 3), "samples: needs at least 4 for 3 bands, got 3"),
        (lambda: rx_threshold(0.1, 3, 2, mean="known"), "samples: needs at least 3 for 3 bands"),
        (lambda: rx_threshold(0.1, 3, 4, background="global"), "samples: needs at least 5 for 3"),
        (lambda: rx_threshold(0.1, 3, []), "samples: needs at least 4 for 3 bands, got none"),
        (lambda: rx_threshold(0.1, 3, 9, background="far"), "background: must be 'local' or"),
        (lambda: rx_threshold(0.1, 3, 9, mean="maybe"), "mean: must be 'estimated' or 'known'"),
        (lambda: rx_pvalue([1, -2.0], 3, 9), "scores: must not be negative, got -2.0"),
    ],
)
def test_bad_input(call, text):
    with pytest.raises(ValueError, match=r"^rx_(threshold|pvalue): ") as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def count_by_loop(used, window, border):
    inner, outer = (0, window) if isinstance(window, int) else window
    rows, cols = used.shape
    pad = outer // 2
    padded = np.pad(used, pad, mode="constant" if border == "clip" else "reflect")
    count = np.zeros(used.shape, dtype=int)
    for i, j in np.ndindex(used.shape):
        if border == "shift":
            boxes = []
            for width in (outer, inner):
                top = min(max(i - width // 2, 0), rows - width)
                left = min(max(j - width // 2, 0), cols - width)
                boxes.append(used[top : top + width, left : left + width].sum())
        else:
            if border == "valid" and not (pad <= i < rows - pad and pad <= j < cols - pad):
                continue
            centre = (i + pad, j + pad)
            boxes = [
                padded[tuple(slice(c - w // 2, c - w // 2 + w) for c in centre)].sum()
                for w in (outer, inner)
            ]
        count[i, j] = boxes[0] - boxes[1]
    return count


@pytest.mark.parametrize("border", ["shift", "reflect", "valid", "clip"])
@pytest.mark.parametrize("window", [(1, 3), (3, 7), 5, (5, 9), 1])
def test_window_samples_equal_a_plain_loop(window, border):
    rng = np.random.default_rng(8)
    used = rng.random((9, 12)) < 0.8
    got = window_samples((9, 12), window, border=border, mask=used)
    np.testing.assert_array_equal(got, count_by_loop(used, window, border))
    if border == "shift":
        inner, outer = (0, window) if isinstance(window, int) else window
        assert np.all(window_samples((9, 12), window) == outer**2 - inner**2)


@pytest.mark.parametrize(
    ("window", "options", "text"),
    [
        (4, {}, "window: sizes must be odd, got 4"),
        ((2, 5), {}, "window: sizes must be odd"),
        ((5, 5), {}, "window: inner must be below outer"),
        ((1, 11), {}, "window: must fit the image of 9 x 12 pixels"),
        ((1, 3), {"border": "wrap"}, "border: must be shift, reflect, valid or clip, got 'wrap'"),
        ((1, 3), {"mask": np.ones((3, 3), dtype=bool)}, "mask: must be boolean (9, 12)"),
        ((1, 3), {"mask": np.ones((9, 12))}, "mask: must be boolean (9, 12), got float64"),
    ],
)
def test_window_samples_bad_input(window, options, text):
    with pytest.raises(ValueError, match=r"^window_samples: ") as caught:
        window_samples((9, 12), window, **options)
    assert text in str(caught.value)

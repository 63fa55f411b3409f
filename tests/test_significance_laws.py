"""Laws of the matched detectors, of equal covariances, and false discovery rates."""

import itertools
import math

import numpy as np
import pytest
from mahal import significance
from mahal.significance import (
    ace_pvalue,
    ace_threshold,
    amf_pvalue,
    amf_threshold,
    covariance_equality_pvalue,
    covariance_equality_threshold,
    false_discovery,
    intensity_ratio_pvalue,
    intensity_ratio_threshold,
    kelly_pvalue,
    kelly_threshold,
    rx_pvalue,
)
from scipy import integrate, special, stats

SHARE = 20000  # experiments per law where shares are counted
EPS = np.finfo(np.float64).eps
LAWS = list(itertools.product(("local", "global"), ("estimated", "known"), (False, True)))


def draw(rng, shape, complex_data):
    data = rng.normal(size=shape)
    return (data + 1j * rng.normal(size=shape)) / np.sqrt(2) if complex_data else data


def tyler(x, iterations=30):
    count, samples, bands = x.shape
    shape = np.broadcast_to(np.eye(bands), (count, bands, bands))
    for _ in range(iterations):
        q = np.einsum("cni,cin->cn", x.conj(), np.linalg.solve(shape, x.swapaxes(1, 2))).real
        shape = np.einsum("cni,cnj->cij", x / q[..., None], x.conj()) * bands / samples
    return shape


def simulate(count, bands, samples, background, mean, complex_data, seed, estimator="scm"):
    """Scores of independent experiments with one fixed target, straight from the definitions."""
    rng = np.random.default_rng(seed)
    # Any invertible map: no law depends on it.
    mixing = draw(rng, (bands, bands), complex_data) + 2 * np.eye(bands)
    data = draw(rng, (count, samples + 1, bands), complex_data) @ mixing
    offset = 5 * draw(rng, bands, complex_data) if mean == "estimated" else 0
    back = data[:, :samples] + offset
    pixel = back[:, 0] if background == "global" else data[:, samples] + offset
    centre = back.mean(axis=1) if mean == "estimated" else np.zeros((count, bands))
    z = back - centre[:, None]
    if estimator == "tyler":
        covariance = tyler(z)
    else:
        divisor = samples - 1 if mean == "estimated" else samples
        covariance = np.einsum("cni,cnj->cij", z, z.conj()) / divisor
    target = draw(rng, bands, complex_data)
    d = pixel - centre
    right = np.stack([d, np.broadcast_to(target, d.shape)], axis=-1)
    solved = np.linalg.solve(covariance, right)
    rx = np.einsum("ci,ci->c", d.conj(), solved[..., 0]).real
    own = np.einsum("i,ci->c", target.conj(), solved[..., 1]).real
    cross = np.einsum("i,ci->c", target.conj(), solved[..., 0])
    k = samples if mean == "known" else (samples - 1) * (samples + 1) / samples
    amf = np.abs(cross) ** 2 / own
    scores = {"ace": np.minimum(amf / rx, 1.0), "amf": amf, "kelly": amf / (k + rx)}
    if not complex_data:
        scores["signed ace"] = np.clip(cross / np.sqrt(own * rx), -1, 1)
        scores["signed amf"] = cross / np.sqrt(own)
    return scores


def pvalues_of(scores, bands, samples, background, mean, complex_data):
    law = {"mean": mean, "complex_data": complex_data}
    both = {"background": background, **law}
    found = {}
    for name, values in scores.items():
        if name == "kelly":
            if background == "local":
                found[name] = kelly_pvalue(values, bands, samples, **law)
            continue
        function = ace_pvalue if "ace" in name else amf_pvalue
        found[name] = function(values, bands, samples, **both, signed="signed" in name)
    return found


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
@pytest.mark.parametrize(("bands", "samples"), [(2, 5), (6, 40), (4, 7)])
def test_pvalues_of_simulated_background_are_uniform(
    background, mean, complex_data, bands, samples
):
    law = (background, mean, complex_data)
    scores = simulate(3000, bands, samples, *law, seed=bands)
    for name, pvalues in pvalues_of(scores, bands, samples, *law).items():
        # 100 cases with fixed seeds: a level of 1e-4 keeps a chance failure out of them, and the
        # neighbouring laws below show that the test does reject.
        assert stats.kstest(pvalues, "uniform").pvalue > 1e-4, name


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
def test_other_laws_are_rejected(background, mean, complex_data):
    law = (background, mean, complex_data)
    scores = simulate(2000, 4, 7, *law, seed=3)
    other = "global" if background == "local" else "local"
    for changed in ((other, mean, complex_data), (background, mean, not complex_data)):
        squared = {name: s for name, s in scores.items() if not name.startswith("signed")}
        for name, pvalues in pvalues_of(squared, 4, 7, *changed).items():
            if name != "kelly" or background == "local":
                assert stats.kstest(pvalues, "uniform").pvalue < 1e-4, (name, changed)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize(("bands", "samples"), [(3, 20), (8, 24)])
def test_share_of_background_above_the_threshold(bands, samples, complex_data):
    scores = simulate(SHARE, bands, samples, "local", "estimated", complex_data, seed=11)
    for rate in (0.1, 0.01, 0.001):
        low, high = stats.binom.interval(1 - 1e-5, SHARE, rate)
        thresholds = {
            "ace": ace_threshold(rate, bands, samples, complex_data=complex_data),
            "amf": amf_threshold(rate, bands, samples, complex_data=complex_data),
            "kelly": kelly_threshold(rate, bands, samples, complex_data=complex_data),
        }
        if not complex_data:
            thresholds["signed ace"] = ace_threshold(rate, bands, samples, signed=True)
            thresholds["signed amf"] = amf_threshold(rate, bands, samples, signed=True)
        for name, threshold in thresholds.items():
            assert low <= (scores[name] >= threshold).sum() <= high, (name, rate)


@pytest.mark.parametrize("complex_data", [False, True])
def test_tyler_scatters_like_fewer_samples(complex_data):
    scores = simulate(4000, 3, 60, "local", "known", complex_data, seed=5, estimator="tyler")
    law = {"mean": "known", "complex_data": complex_data}
    assert stats.kstest(ace_pvalue(scores["ace"], 3, 60, estimator="tyler", **law), "uniform")[
        1
    ] > (1e-3)
    fewer = 60 * 3 / (4 if complex_data else 5)
    np.testing.assert_array_equal(
        ace_pvalue(scores["ace"][:9], 3, 60, estimator="tyler", **law),
        ace_pvalue(scores["ace"][:9], 3, fewer, **law),
    )


def gauss_series(a, b, c, x):
    """Gauss's hypergeometric function by its series of positive terms."""
    terms, term, k = [], 1.0, 0
    while not terms or term > 1e-18 * terms[0]:
        terms.append(term)
        term *= (a + k) * (b + k) * x / ((c + k) * (k + 1))
        k += 1
    return math.fsum(terms)


@pytest.mark.parametrize(
    ("bands", "samples"), [(2, 9), (3, 10), (4, 121), (3, 560), (6, 40), (20, 60), (5, 5)]
)
@pytest.mark.parametrize("score", [1e-6, 0.05, 0.5, 0.95, 0.999])
def test_complex_ace_equals_the_hypergeometric_form(bands, samples, score):
    series = gauss_series(bands - 1, bands, samples + 1, score)
    expected = (1 - score) ** (bands - 1) * series
    got = ace_pvalue(score, bands, samples, mean="known", complex_data=True)
    # Rounding of 1 - score reaches the result with the power of the law, p - 1 at most N + 1.
    assert got == pytest.approx(expected, rel=32 * (samples + 1) * EPS)


def test_where_the_library_function_fails():
    # scipy.special.hyp2f1(3, 4, 122, 0.95) has been NaN; the truth is 1.10126.
    got = ace_pvalue(0.95, 4, 121, mean="known", complex_data=True)
    assert got == pytest.approx(0.05**3 * 1.10126, rel=5e-6)
    scores = np.linspace(0, 1, 2001)
    pvalues = ace_pvalue(scores, 4, 121, mean="known", complex_data=True)
    assert pvalues[0] == 1
    assert pvalues[-1] == 0
    assert np.all(np.diff(pvalues) < 0)


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize(("bands", "samples"), [(3, 4), (3, 30), (7, 60)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8, 0.98])
def test_laws_equal_the_mean_over_the_loss(bands, samples, complex_data, share):
    h = 1.0 if complex_data else 0.5
    free = samples - bands + 1
    loss = stats.beta(h * (free + 1), h * (bands - 1))
    ratio = stats.betaprime(h, h * free)
    grid = loss.ppf([1e-12, 0.01, 0.5, 0.99, 1 - 1e-12])

    def mean(survival):
        pieces = [
            integrate.quad(lambda b: loss.pdf(b) * survival(b), *ends, epsabs=0, epsrel=1e-10)[0]
            for ends in itertools.pairwise(grid)
        ]
        return sum(pieces)

    law = {"mean": "known", "complex_data": complex_data}
    tau = share / (1 - share)
    # The quadrature leaves out 1e-12 at either end and is only asked for ten digits.
    assert ace_pvalue(share, bands, samples, **law) == pytest.approx(
        mean(lambda b: ratio.sf(tau * (1 - b))), rel=1e-8, abs=1e-11
    )
    assert amf_pvalue(samples * tau, bands, samples, **law) == pytest.approx(
        mean(lambda b: ratio.sf(tau * b)), rel=1e-8, abs=1e-11
    )


def test_series_and_integral_agree():
    from mahal.significance import _matched, _mixture

    logit = np.linspace(-6, 5, 12)
    x, rest = special.expit(logit), special.expit(-logit)
    for complex_data, (bands, samples) in itertools.product(
        (False, True), [(2, 60), (6, 80), (4, 121), (20, 200)]
    ):
        options = ("local", "known", complex_data)
        count = np.full(12, float(samples))
        for law in (
            _matched._ace("ace", bands, count, *options, "scm"),
            _matched._amf("amf", bands, count, *options)[0],
        ):
            series = _mixture._series(x, rest, law)
            summed = np.isfinite(series)
            assert summed.sum() >= 5
            integral = _mixture._integral(x, rest, law)
            # Logarithms of the density reach N log N; their rounding becomes relative.
            bound = 64 * samples * math.log(samples) * EPS
            np.testing.assert_allclose(series[summed], integral[summed], rtol=bound, atol=1e-55)


def test_closed_forms():
    t, n, p = np.array([0.0, 0.1, 0.5, 0.99]), 12, 4
    known = {"mean": "known", "complex_data": True}
    bound = 64 * n * EPS
    np.testing.assert_allclose(kelly_pvalue(t, p, n, **known), (1 - t) ** (n - p + 1), rtol=bound)
    np.testing.assert_allclose(ace_pvalue(t, p, np.inf, **known), (1 - t) ** (p - 1), rtol=bound)
    inside = ace_pvalue(t, p, n, background="global", complex_data=True)
    np.testing.assert_allclose(inside, (1 - t) ** (p - 1), rtol=bound)
    # With one band the squared matched filter is RX.
    for background, mean, complex_data in LAWS:
        law = {"background": background, "mean": mean, "complex_data": complex_data}
        np.testing.assert_allclose(
            amf_pvalue(7 * t, 1, n, **law), rx_pvalue(7 * t, 1, n, **law), rtol=bound, atol=bound
        )
    # Many samples: a chi-square of two (complex: halved) or one degree.
    # The tail differs by a relative (score + bands)^2 / samples.
    many, bound = 10**9, 12**2 / 10**9
    np.testing.assert_allclose(amf_pvalue(9 * t, 3, many, **known), np.exp(-9 * t), rtol=bound)
    np.testing.assert_allclose(
        amf_pvalue(9 * t, 3, many, mean="known"), stats.chi2.sf(9 * t, 1), rtol=bound
    )


@pytest.mark.parametrize(("background", "mean", "complex_data"), LAWS)
def test_thresholds_invert_pvalues(background, mean, complex_data):
    law = {"background": background, "mean": mean, "complex_data": complex_data}
    rate = np.logspace(-8, -0.4, 5)
    for bands, samples in ((2, 9), (3, 560), (162, 416)):
        for threshold, pvalue in ((ace_threshold, ace_pvalue), (amf_threshold, amf_pvalue)):
            for signed in (False, True) if not complex_data else (False,):
                level = threshold(rate, bands, samples, **law, signed=signed)
                assert np.all(np.diff(level) < 0)
                back = pvalue(level, bands, samples, **law, signed=signed)
                # The level is rounded; near the end of a bounded law that rounds the distance from
                # the end, of which the p-value is a power of less than samples.
                share = level**2 if signed else level
                if threshold is amf_threshold:
                    known = mean == "known"
                    scale = samples if known else (samples - 1) ** 2 / samples
                    share = share / scale if background == "global" else 0.0
                bound = 64 * EPS * samples / (1 - share)
                assert np.all(np.abs(back / rate - 1) <= bound)
    level = kelly_threshold(rate, 3, 20, mean=mean, complex_data=complex_data)
    back = kelly_pvalue(level, 3, 20, mean=mean, complex_data=complex_data)
    # The inverse incomplete beta function stops within 1000 eps of the root.
    assert np.all(np.abs(back / rate - 1) <= 1000 * 20 * EPS / (1 - level))


def test_signed_scores_halve_the_rate():
    u = np.array([0.1, 0.5, 0.9])
    for pvalue, samples in ((ace_pvalue, 30), (amf_pvalue, 30)):
        both = pvalue(u * u, 4, samples)
        np.testing.assert_allclose(pvalue(u, 4, samples, signed=True), both / 2, rtol=1e-12)
        np.testing.assert_allclose(pvalue(-u, 4, samples, signed=True), 1 - both / 2, rtol=1e-12)


def test_signed_thresholds_of_any_rate_are_symmetric():
    rates = np.array([0.01, 0.3, 0.5, 0.7, 0.99])
    for threshold, pvalue in ((ace_threshold, ace_pvalue), (amf_threshold, amf_pvalue)):
        level = threshold(rates, 4, 30, signed=True)
        np.testing.assert_allclose(level, -level[::-1], rtol=1e-12, atol=1e-100)
        np.testing.assert_allclose(pvalue(level, 4, 30, signed=True), rates, rtol=1e-12)


def test_maps_of_samples_broadcast_and_mark_what_is_too_few():
    samples = np.array([[0, 5, 6], [7, 100, 416]])
    for threshold, pvalue in (
        (ace_threshold, ace_pvalue),
        (amf_threshold, amf_pvalue),
        (kelly_threshold, kelly_pvalue),
    ):
        level = threshold(0.01, 6, samples)
        assert level.shape == (2, 3)
        np.testing.assert_array_equal(np.isnan(level), samples <= 6)
        assert level[1, 1] == threshold(0.01, 6, 100)
        assert isinstance(threshold(0.01, 6, 100), float)
        np.testing.assert_array_equal(np.isnan(pvalue(level, 6, samples)), samples <= 6)
        np.testing.assert_array_equal(np.isnan(pvalue(0.5, 6, samples)), samples <= 6)
        assert np.isnan(pvalue(np.nan, 6, 100))
    # A float32 score may exceed 1 by rounding.
    assert ace_pvalue(np.float32(1) + np.finfo(np.float32).eps, 3, 20) == 0
    tyler_level = ace_threshold(0.01, 6, samples, estimator="tyler")
    np.testing.assert_array_equal(np.isnan(tyler_level), samples <= 7)


# Equality of covariances


def likelihood_ratio(rng, count, bands, n, m, mean, complex_data, correct=True):
    """Corrected likelihood ratio of two independent maps with equal covariances."""
    scatters, free = [], []
    for samples in (n, m):
        x = draw(rng, (count, samples, bands), complex_data)
        if mean == "estimated":
            x = x + 3.0
            x = x - x.mean(axis=1, keepdims=True)
        scatters.append(np.einsum("cni,cnj->cij", x, x.conj()))
        free.append(samples - (mean == "estimated"))

    def logdet(matrix, divisor):
        return np.linalg.slogdet(matrix / divisor)[1]

    total = sum(free)
    statistic = total * logdet(sum(scatters), total)
    statistic -= sum(v * logdet(s, v) for v, s in zip(free, scatters, strict=True))
    p, spread = bands, sum(1 / v for v in free) - 1 / total
    if complex_data:
        rho = 1 - (2 * p * p - 1) / (6 * p) * spread
    else:
        rho = 1 - (2 * p * p + 3 * p - 1) / (6 * (p + 1)) * spread
    return (2 if complex_data else 1) * (rho if correct else 1.0) * statistic


@pytest.mark.parametrize("complex_data", [False, True])
@pytest.mark.parametrize("mean", ["known", "estimated"])
@pytest.mark.parametrize(("bands", "n", "m"), [(3, 9, 12), (4, 41, 61), (2, 8, 25)])
def test_equal_covariances_are_called_different_at_the_rate(bands, n, m, mean, complex_data):
    rng = np.random.default_rng(bands)
    count = 20000
    law = {"mean": mean, "complex_data": complex_data}
    statistic = likelihood_ratio(rng, count, bands, n, m, **law)
    pvalues = covariance_equality_pvalue(statistic, bands, n, m, **law)
    for rate in (0.1, 0.01, 0.001):
        # The expansion is off by terms of the order v^-3, which is 2 % of the rate at most here.
        low, high = stats.binom.interval(1 - 1e-5, count, rate)
        alarms = (pvalues <= rate).sum()
        assert 0.98 * low <= alarms <= 1.02 * high
        level = covariance_equality_threshold(rate, bands, n, m, **law)
        assert (statistic >= level).sum() == alarms
    if n == 9:
        plain = likelihood_ratio(rng, count, bands, n, m, **law, correct=False)
        pvalues = covariance_equality_pvalue(plain, bands, n, m, **law)
        assert (pvalues <= 0.01).sum() > 1.5 * stats.binom.interval(1 - 1e-5, count, 0.01)[1]


def test_equality_law_is_the_published_expansion():
    p, n, m, z = 3, 9.0, 9.0, np.array([5.0, 15.0, 30.0])
    rho = 1 - (2 * p**2 - 1) / (6 * p) * (1 / n + 1 / m - 1 / (n + m))
    omega = p**2 * (p**2 - 1) / (24 * rho**2) * (1 / n**2 + 1 / m**2 - 1 / (n + m) ** 2)
    omega -= p**2 / 4 * (1 - 1 / rho) ** 2
    law = stats.chi2.cdf(z, p * p)
    law = law + omega * (stats.chi2.cdf(z, p * p + 4) - law)
    got = covariance_equality_pvalue(z, p, n, m, mean="known", complex_data=True)
    np.testing.assert_allclose(got, 1 - law, atol=8 * EPS)
    rates = np.logspace(-12, -0.2, 9)
    level = covariance_equality_threshold(rates, p, n, m, complex_data=True)
    back = covariance_equality_pvalue(level, p, n, m, complex_data=True)
    # The relative slope of a chi-square tail is below half its argument.
    np.testing.assert_allclose(back, rates, rtol=16 * EPS * level.max())


def test_equality_maps_and_rounding():
    counts = np.array([[2, 3], [4, 121]])
    level = covariance_equality_threshold(0.01, 3, counts, 121)
    np.testing.assert_array_equal(np.isnan(level[0]), True)
    assert np.isfinite(level[1, 1])
    assert covariance_equality_pvalue(-1e-13, 3, 20, 20) == 1
    assert np.isnan(covariance_equality_pvalue(np.nan, 3, 20, 20))


def test_intensity_ratio_is_the_law_of_fisher():
    ratio = np.array([0.2, 1.0, 3.0])
    got = intensity_ratio_pvalue(ratio, 4, 9)
    np.testing.assert_allclose(got, stats.f.sf(ratio, 8, 18), rtol=64 * EPS)
    got = intensity_ratio_pvalue(ratio, 4, 9, mean="estimated", complex_data=False)
    np.testing.assert_allclose(got, stats.f.sf(ratio, 3, 8), rtol=64 * EPS)
    rates = np.logspace(-10, -0.2, 7)
    level = intensity_ratio_threshold(rates, 4, 9)
    np.testing.assert_allclose(intensity_ratio_pvalue(level, 4, 9), rates, rtol=1e-11)
    rng = np.random.default_rng(4)
    speckle = rng.gamma(4, 1 / 4, 20000) / rng.gamma(9, 1 / 9, 20000)
    low, high = stats.binom.interval(1 - 1e-5, 20000, 0.01)
    assert low <= (speckle >= intensity_ratio_threshold(0.01, 4, 9)).sum() <= high


# False discovery rate


@pytest.mark.parametrize("dependent", [False, True])
def test_false_discovery_follows_the_definition(dependent):
    rng = np.random.default_rng(1)
    p = np.concatenate([rng.random(60), rng.random(20) * 0.01, [0.004, 0.004]])
    rng.shuffle(p)
    for rate in (0.01, 0.05, 0.3):
        scale = sum(1 / i for i in range(1, p.size + 1)) if dependent else 1
        passed = [
            k for k, v in enumerate(sorted(p), 1) if v <= k * rate / (p.size * scale) * (1 + EPS)
        ]
        expected = sorted(p)[max(passed) - 1] if passed else 0.0
        found = false_discovery(p.reshape(2, -1), rate, dependent=dependent)
        assert found.threshold == expected
        assert found.detected.shape == (2, p.size // 2)
        np.testing.assert_array_equal(found.detected, p.reshape(2, -1) <= expected)


def test_false_discovery_keeps_the_share():
    rng = np.random.default_rng(2)
    runs, nulls, targets, rate = 400, 900, 100, 0.1
    shares = []
    for _ in range(runs):
        p = np.concatenate([rng.random(nulls), special.ndtr(rng.normal(-3, 1, targets))])
        detected = false_discovery(p, rate).detected
        shares.append(detected[:nulls].sum() / max(detected.sum(), 1))
    # For independent p-values the expectation is exactly rate times the share of nulls.
    expected = rate * nulls / (nulls + targets)
    assert abs(np.mean(shares) - expected) <= 5 * np.std(shares) / math.sqrt(runs)


def test_false_discovery_leaves_nan_out():
    p = np.array([0.001, np.nan, 0.04, np.nan, 0.5])
    found = false_discovery(p, 0.06)
    np.testing.assert_array_equal(found.detected, [True, False, True, False, False])
    assert found.threshold == 0.04
    none = false_discovery([np.nan, np.nan], 0.1)
    assert not none.detected.any()
    assert none.threshold == 0
    assert not false_discovery([0.9, 0.8], 0.1).detected.any()
    assert false_discovery([], 0.1, dependent=True).detected.shape == (0,)
    np.testing.assert_array_equal(false_discovery([0.0, 0.9], 0.1).detected, [True, False])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ace_threshold(0.1, 1, 9), "bands: must be an integer of at least 2, got 1"),
        (lambda: ace_threshold(0.1, 3, 3), "samples: needs at least 4 for 3 bands, got 3"),
        (
            lambda: ace_threshold(0.1, 3, 9, signed=True, complex_data=True),
            "signed: must be False for complex data, got True",
        ),
        (lambda: ace_threshold(0.1, 3, 9, estimator="oas"), "estimator: must be 'scm' or 'tyler'"),
        (
            lambda: ace_threshold(0.1, 3, 9, estimator="tyler", background="global"),
            "background: must be 'local' for 'tyler', got 'global'",
        ),
        (lambda: ace_pvalue(1.1, 3, 9), "scores: must lie in [0, 1], got 1.1"),
        (lambda: ace_pvalue(-1.1, 3, 9, signed=True), "scores: must lie in [-1, 1], got -1.1"),
        (lambda: ace_pvalue(0.5, 3, 9, background="far"), "background: must be 'local' or"),
        (lambda: amf_pvalue(-1.0, 3, 9), "scores: must not be negative, got -1.0"),
        (lambda: amf_threshold(1.5, 3, 9), "more than 0 and less than 1, got 1.5"),
        (lambda: amf_threshold(0.1, 3, 9, mean="maybe"), "mean: must be 'estimated' or 'known'"),
        (lambda: kelly_threshold(0.1, 3, 3), "samples: needs at least 4 for 3 bands"),
        (lambda: kelly_pvalue(2.0, 3, 9), "scores: must lie in [0, 1], got 2.0"),
        (lambda: covariance_equality_threshold(0.1, 3, 9, 2), "second_samples: needs at least 4"),
        (lambda: covariance_equality_pvalue(1.0, 0, 9, 9), "bands: must be an integer of at least"),
        (
            lambda: covariance_equality_pvalue(1.0, 3, 2, 9, mean="known"),
            "first_samples: needs at least 3",
        ),
        (lambda: intensity_ratio_pvalue(-1, 4, 4), "scores: must not be negative"),
        (lambda: intensity_ratio_threshold(0.1, 0, 4), "first_samples: needs at least 1"),
        (lambda: false_discovery([0.1, 1.5], 0.1), "pvalues: must lie in [0, 1], got 1.5"),
        (lambda: false_discovery([0.1], 1.0), "rate: must be more than 0 and less than 1"),
    ],
)
def test_bad_input(call, text):
    names = "|".join(name for name in significance.__all__ if name[0].islower())
    with pytest.raises(ValueError, match=rf"^({names}): ") as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)

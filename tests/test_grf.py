"""Gaussian random fields: dense oracle, Fourier form, facts of the field, fits, errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.ops import _matern
from mahal.testing import (
    Case,
    OpSpec,
    backend,
    backends,
    reference_grf,
    run_op_checks,
    tolerance,
)

SHAPES = [((), (4, 6)), ((2,), (3, 5)), ((2, 3), (8, 8)), ((1,), (1, 7)), ((3,), (5, 1))]


def normals(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """White, so that the weight of no frequency exceeds that of the smallest eigenvalue."""
    return rng.standard_normal(shape), 0.4 * rng.standard_normal(shape) - 1.0


def kl_cases(rng: np.random.Generator) -> Iterator[Case]:
    kinds = [
        {"smoothness": 1.5, "range": 1.1},
        {"smoothness": 0.5, "range": 1.5, "variance": 0.3},
        {"smoothness": 2.5, "range": 0.8, "convention": "paper", "normalize": True},
        {"smoothness": 1.5, "range": 0.5, "convention": "paper", "kernel": "wrapped"},
        {"smoothness": 1.5, "range": 0.7},
    ]
    for (lead, torus), prior in zip(SHAPES, kinds, strict=True):
        terms = 4 + math.ceil(math.log2(torus[0] * torus[1]))
        axis = 0 if lead else None
        # What the eigenvalues of the oracle lose.
        condition = float(np.linalg.cond(reference_grf.covariance(torus, **prior)[0]))
        arrays = normals((*lead, *torus), rng)
        yield Case(f"{lead} {torus}", arrays, prior, condition, terms, axis)


def image_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in kl_cases(rng):
        yield Case(
            case.label,
            case.arrays[:1],
            case.params,
            case.condition,
            case.terms,
            case.broadcast_axis,
        )


def scale(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[float, ...]:
    """Values and slopes are sums of terms that may cancel, some of which are one per pixel."""
    pixels = case.arrays[0].shape[-2] * case.arrays[0].shape[-1]
    lengths = {0: 1.0, len(expected) - 2: case.params["range"]}
    lengths[len(expected) - 1] = case.params.get("variance", 1.0)
    return tuple(
        float(np.abs(e).max(initial=0.0)) + (pixels / lengths[k] if k in lengths else 0.0)
        for k, e in enumerate(expected)
    )


KL = OpSpec(
    name="grf_kl",
    function=lambda mean, logvar, **prior: tuple(
        mahal.grf_kl(mean, logvar, gradients=True, **prior)
    ),
    reference=lambda mean, logvar, **prior: tuple(reference_grf.grf_kl(mean, logvar, **prior)),
    cases=kl_cases,
    constant=2.0,
    scale=scale,
    emulated=True,
)


def likelihood_reference(image: np.ndarray, **prior: Any) -> tuple[np.ndarray, ...]:
    found = reference_grf.grf_log_likelihood(image, **prior)
    return found.value, found.mean, found.range, found.variance


LIKELIHOOD = OpSpec(
    name="grf_log_likelihood",
    function=lambda image, **prior: tuple(mahal.grf_log_likelihood(image, gradients=True, **prior)),
    reference=likelihood_reference,
    cases=image_cases,
    constant=2.0,
    scale=scale,
    emulated=True,
)


@pytest.mark.parametrize("spec", [KL, LIKELIHOOD], ids=lambda spec: spec.name)
def test_against_dense_covariances(spec: OpSpec) -> None:
    assert run_op_checks(spec, thread_counts=(1, 3)).failures == 0


def fourier_kl(mean: np.ndarray, logvar: np.ndarray, **prior: Any) -> tuple[np.ndarray, ...]:
    """The closed form by numpy's transforms, with the gradients of mean and logvar."""
    torus = mean.shape[-2:]
    spectrum = mahal.grf_spectrum(torus, **prior)
    twice = np.full(spectrum.shape, 2.0)
    twice[:, 0] = 1.0
    if torus[1] % 2 == 0:
        twice[:, -1] = 1.0
    pixels = torus[0] * torus[1]
    inner = np.sum(twice / spectrum) / pixels
    transform = np.fft.rfft2(np.asarray(mean, np.float64))
    variances = np.exp(np.asarray(logvar, np.float64))
    value = np.sum(twice * np.abs(transform) ** 2 / spectrum, axis=(-2, -1)) / pixels
    value = value + inner * variances.sum((-2, -1)) - np.asarray(logvar, np.float64).sum((-2, -1))
    value = (value + np.sum(twice * np.log(spectrum)) - pixels) / 2
    return value, np.fft.irfft2(transform / spectrum, torus), (inner * variances - 1) / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "torus",
    # Powers of two, all stages of the transforms, primes, one row.
    [(32, 32), (64, 16), (2, 128), (24, 40), (45, 49), (33, 1), (1, 251), (96, 22), (7, 256)],
)
def test_sizes_against_the_fourier_form(torus: tuple[int, int], dtype: Any) -> None:
    mean, logvar = normals((2, *torus), np.random.default_rng(sum(torus)))
    mean, logvar = mean.astype(dtype), logvar.astype(dtype)
    found = mahal.grf_kl(mean, logvar, range=1.2, gradients=True)
    expected = fourier_kl(mean, logvar, range=1.2)
    # Stages of a transform, and of a prime factor each term of its sum.
    terms = 8 + sum(p for p in (2, 3, 5, 7, 11, 251) for side in torus if side % p == 0)
    for got, want in zip(found, expected, strict=False):
        allowed = tolerance(dtype, terms=terms, constant=2.0)
        np.testing.assert_allclose(got, want, rtol=0, atol=allowed * np.abs(want).max())


@pytest.mark.skipif("emu" not in backends(), reason="needs a build with MAHAL_EMULATOR=ON")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    # In registers, by sums, and through memory: all radices, more than one tile and chunk.
    "shape",
    [(5, 16, 32), (2, 64, 3), (12, 9, 7), (2, 9, 33), (2, 70, 6), (1, 3, 96), (1, 68, 121)],
)
def test_device_kernels_of_every_size(shape: tuple[int, ...], dtype: Any) -> None:
    mean, logvar = (a.astype(dtype) for a in normals(shape, np.random.default_rng(shape[-1])))
    results = []
    for name in ("cpu", "emu"):
        with backend(name):
            posterior = mahal.grf_kl(mean, logvar, range=1.2, gradients=True, reduction="mean")
            value = mahal.grf_kl(mean, logvar, range=1.2)
            image = mahal.grf_log_likelihood(mean[:, ::-1, ::-1] + 9, range=1.2, gradients=True)
            results.append((*posterior, value, *image))
    terms = 8 + sum(p for p in (2, 3, 5, 7, 11, 17) for side in shape[1:] if side % p == 0)
    if max(shape[1:]) <= 64:
        terms = max(terms, *(side for side in shape[1:] if side & (side - 1)), 8)
    for expected, found in zip(*results, strict=True):
        allowed = tolerance(dtype, terms=terms, constant=2.0)
        # The slopes of the likelihood are differences of sums over all pixels.
        bound = allowed * max(float(np.abs(expected).max()), shape[-2] * shape[-1] / 2)
        if expected.shape == shape:
            bound = allowed * float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_any_strides_give_the_same_bits() -> None:
    mean, logvar = normals((2, 9, 20), np.random.default_rng(0))
    right = mahal.grf_kl(mean, logvar, range=1.0, gradients=True)
    large = np.zeros((2, 18, 40))
    large[:, ::2, ::2] = mean
    for view in (large[:, ::2, ::2], np.asfortranarray(mean), mean[:, ::-1, ::-1].copy()):
        view = view if view.base is not None or view.flags.f_contiguous else view[:, ::-1, ::-1]
        found = mahal.grf_kl(view, logvar, range=1.0, gradients=True)
        for a, b in zip(found, right, strict=True):
            np.testing.assert_array_equal(a, b)


def test_monte_carlo() -> None:
    rng = np.random.default_rng(3)
    mean, logvar = normals((4, 5), rng)
    draws = 200_000
    z = rng.standard_normal((draws, 20))
    samples = mean.ravel() + np.exp(logvar.ravel() / 2) * z
    matrix, _ = reference_grf.covariance((4, 5), range=0.9, variance=0.7)
    inverse, log_determinant = np.linalg.inv(matrix), np.linalg.slogdet(matrix)[1]
    log_q = -0.5 * (z**2).sum(1) - 0.5 * logvar.sum()
    log_p = -0.5 * np.einsum("si,ij,sj->s", samples, inverse, samples) - 0.5 * log_determinant
    gap = log_q - log_p
    value = mahal.grf_kl(mean, logvar, range=0.9, variance=0.7)
    assert abs(gap.mean() - value) <= 5 * gap.std() / math.sqrt(draws)


def close(found: Any, expected: Any, dtype: Any = np.float64, terms: int = 64) -> None:
    bound = tolerance(dtype, terms=terms) * float(np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def test_shifts_flips_and_permuted_variances_change_nothing() -> None:
    rng = np.random.default_rng(1)
    mean, logvar = normals((6, 10), rng)
    value = mahal.grf_kl(mean, logvar, range=1.3)
    for other in (np.roll(mean, (2, 5), (0, 1)), mean[::-1], mean[:, ::-1]):
        close(mahal.grf_kl(other, logvar, range=1.3), value)
    close(mahal.grf_kl(mean, rng.permutation(logvar.ravel()).reshape(6, 10), range=1.3), value)


def test_scaling_with_the_variance() -> None:
    mean, logvar = normals((8, 8), np.random.default_rng(2))
    value = mahal.grf_kl(mean, logvar, range=1.0, variance=0.5)
    scaled = mahal.grf_kl(1e-3 * mean, logvar + 2 * math.log(1e-3), range=1.0, variance=0.5e-6)
    close(scaled, value)


def test_short_ranges_give_the_diagonal_prior() -> None:
    mean, logvar = normals((5, 8, 9), np.random.default_rng(4))
    expected = 0.5 * (mean**2 + np.exp(logvar) - logvar - 1).sum((-2, -1))
    close(mahal.grf_kl(mean, logvar, range=0.02), expected)


def test_the_minimum_is_where_the_gradients_vanish() -> None:
    spectrum = mahal.grf_spectrum((6, 6), range=1.4)
    quarter = _matern.weights((6, 6))
    inner = np.sum(quarter / spectrum[:4]) / 36
    mean = np.zeros((6, 6))
    found = mahal.grf_kl(mean, mean - math.log(inner), range=1.4, gradients=True)
    smallest = 0.5 * (np.sum(quarter * np.log(spectrum[:4])) + 36 * math.log(inner))
    close(found.value, smallest, terms=500)
    assert np.abs(found.mean).max() == 0
    assert np.abs(found.logvar).max() <= 1e-14


def test_a_constant_changes_no_likelihood() -> None:
    rng = np.random.default_rng(5)
    # Multiples of 2^-10 below 8, which stay exact in float32 when 4096 is added.
    image = np.clip(np.rint(1024 * rng.standard_normal((3, 16, 20))), -8000, 8000) / 1024
    image = image.astype(np.float32)
    right = mahal.grf_log_likelihood(image.astype(np.float64), range=2.0)
    found = mahal.grf_log_likelihood(image + np.float32(4096), range=2.0)
    close(found, right, np.float32, terms=16)
    close(mahal.grf_log_likelihood(image, range=2.0), right, np.float32, terms=16)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_plane_leaves_the_others_alone(bad: float) -> None:
    mean, logvar = normals((5, 12, 12), np.random.default_rng(6))
    right = mahal.grf_kl(mean, logvar, range=1.0, gradients=True)
    for spoiled in (mean.copy(), logvar.copy()):
        target = spoiled.copy()
        target[2, 3, 4] = bad
        pair = (target, logvar) if np.array_equal(spoiled, mean) else (mean, target)
        found = mahal.grf_kl(*pair, range=1.0, gradients=True, threads=1)
        assert not np.isfinite(found.value[2])
        for a, b in zip(found, right, strict=True):
            np.testing.assert_array_equal(np.delete(a, 2, 0), np.delete(b, 2, 0))


def test_reductions() -> None:
    mean, logvar = normals((2, 3, 4, 4), np.random.default_rng(7))
    each = mahal.grf_kl(mean, logvar, range=1.0, gradients=True)
    assert each.value.shape == (2, 3)
    total = mahal.grf_kl(mean, logvar, range=1.0, reduction="sum", gradients=True)
    average = mahal.grf_kl(mean, logvar, range=1.0, reduction="mean", gradients=True)
    for k in range(5):
        whole = each[k] if k in (1, 2) else each[k].sum()
        close(total[k], whole)
        close(average[k], whole / 6)


def test_shapes_broadcast() -> None:
    mean, logvar = normals((2, 3, 4, 4), np.random.default_rng(8))
    value = mahal.grf_kl(mean, logvar[0, :1, :1, :1], range=1.0)
    whole = np.broadcast_to(logvar[0, :1, :1, :1], mean.shape)
    np.testing.assert_array_equal(value, mahal.grf_kl(mean, whole, range=1.0))
    assert mahal.grf_kl(mean[:0], logvar[:0], range=1.0).shape == (0, 3)


def test_the_stopped_prior_has_no_gradient() -> None:
    mean, logvar = normals((4, 4), np.random.default_rng(9))
    found = mahal.grf_kl(mean, logvar, range=1.0, prior_gradient="stop", gradients=True)
    assert found.range is None
    assert found.variance is None


def test_the_published_epsilon() -> None:
    mean, logvar = normals((8, 8), np.random.default_rng(10))
    prior = {"range": 0.8, "variance": 0.01, "convention": "paper", "kernel": "wrapped"}
    spectrum = np.fft.fft2(reference_grf.covariance((8, 8), **prior)[0][0].reshape(8, 8)).real
    inverse = 1 / (spectrum / 8 + 1e-6) / 8
    value = np.sum(np.log(spectrum + 1e-6)) + np.sum(np.abs(np.fft.fft2(mean)) ** 2 * inverse) / 64
    value = (value + inverse.mean() * np.exp(logvar).sum() - logvar.sum() - 64) / 2
    close(mahal.grf_kl(mean, logvar, compat_eps=True, **prior), value)
    with pytest.raises(ValueError, match=r"^grf_kl: compat_eps: .*, got True$"):
        mahal.grf_kl(mean, logvar, compat_eps=True, gradients=True, **prior)


# Smallest range over side with a negative eigenvalue of the wrapped kernel, to three digits.
ADMISSIBLE = [
    (0.5, "standard", {8: 0.3135, 9: 0.517, 16: 0.2255, 17: 0.325, 32: 0.1757}),
    (1.5, "paper", {8: 0.1128, 9: 0.156, 16: 0.0839, 32: 0.0656, 256: 0.0384}),
    (1.5, "standard", {8: 0.1954, 16: 0.1453, 33: 0.136}),
    (2.5, "paper", {8: 0.0799, 32: 0.0449}),
    (2.5, "standard", {8: 0.1786, 17: 0.158, 32: 0.1005}),
]


@pytest.mark.parametrize(("smoothness", "convention", "limits"), ADMISSIBLE)
def test_ranges_of_the_wrapped_kernel(
    smoothness: float, convention: str, limits: dict[int, float]
) -> None:
    options = {"smoothness": smoothness, "convention": convention}
    for side, limit in limits.items():
        step = 0.5 * 10.0 ** (-4 if len(str(limit)) > 5 else -3)
        good, bad = (limit - step) * side, (limit + step) * side
        mahal.grf_spectrum((side, side), range=good, kernel="wrapped", **options)
        with pytest.raises(ValueError, match=rf"^grf_spectrum: range: .*{side} x {side}.*eigen"):
            mahal.grf_spectrum((side, side), range=bad, kernel="wrapped", **options)
        mahal.grf_spectrum((side, side), range=bad, **options)


def test_the_error_names_the_largest_range() -> None:
    with pytest.raises(ValueError, match=r"wrapped.*allows up to 2\.1\).*got 4 with smallest eig"):
        mahal.grf_spectrum((32, 32), range=4.0, kernel="wrapped", convention="paper")


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5, 3.5])
def test_bessel_integrals_agree_with_closed_forms(smoothness: float) -> None:
    a = np.concatenate([[0.0], np.logspace(-4, 1.5, 60)])
    general = _matern._general_profile(a, smoothness, 3)
    closed = _matern._half_integer_profile(a, int(smoothness), 3)
    for order, (g, c) in enumerate(zip(general, closed, strict=True)):
        # Each derivative joins terms twice as large.
        np.testing.assert_allclose(g, c, rtol=0, atol=100 * 2.0**-52 * 4**order)


def test_general_smoothness_between_its_neighbours() -> None:
    special = pytest.importorskip("scipy.special")
    a = np.logspace(-3, 1.5, 50)
    for nu in (0.3, 1.0, 1.7, 4.2):
        value, slope = _matern.profile(a, nu, 2)
        factor = 2 ** (1 - nu) / special.gamma(nu)
        np.testing.assert_allclose(value, factor * a**nu * special.kv(nu, a), rtol=1e-12)
        right = factor * a ** (nu + 1) * special.kv(nu - 1, a)
        np.testing.assert_allclose(slope, right, rtol=1e-11)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("smoothness", [0.5, 1.2, 2.5])
def test_slopes_of_the_spectrum(smoothness: float, normalize: bool) -> None:
    matern = _matern.matern_of("test", smoothness, "periodised", "standard", normalize)
    step = 1e-4
    around = [
        _matern.spectra("test", (6, 9), 1.5 * math.exp(k * step), matern, 3) for k in (-1, 0, 1)
    ]
    for order in (1, 2):
        found = around[1][order]
        by_differences = (around[2][order - 1] - around[0][order - 1]) / (2 * step)
        # Truncation step^2 / 6 times a third derivative, rounding eps / step.
        allowed = 10 * step**2 * np.abs(around[1][order]).max()
        np.testing.assert_allclose(found, by_differences, rtol=0, atol=allowed)


def test_the_periodised_kernel_at_long_ranges() -> None:
    for side, length in ((16, 16.0), (9, 30.0), (32, 60.0)):
        spectrum = mahal.grf_spectrum((side, side), range=length)
        assert spectrum.min() > 0
    found = mahal.grf_spectrum((4, 6), range=3.0, smoothness=0.5)
    matrix, _ = reference_grf.covariance((4, 6), range=3.0, smoothness=0.5)
    expected = np.fft.rfft2(matrix[0].reshape(4, 6)).real
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    with pytest.raises(ValueError, match=r"^grf_spectrum: range: .*sum over images.*, got 100000"):
        mahal.grf_spectrum((8, 8), range=1e5, smoothness=0.5)
    # Eigenvalues below 1e-14 of the largest are not known to be positive.
    with pytest.raises(ValueError, match=r"^grf_spectrum: range: .*positive definite.*periodised"):
        mahal.grf_spectrum((16, 16), range=30.0, smoothness=10.5)


def test_normalized_fields_have_their_variance() -> None:
    for normalize in (True, False):
        spectrum = mahal.grf_spectrum((8, 10), range=3.0, variance=0.25, normalize=normalize)
        variance = np.sum(_matern.weights((8, 10)) * spectrum[:5]) / 80
        if normalize:
            assert variance == pytest.approx(0.25, rel=1e-14)
        else:
            assert variance > 1.01 * 0.25


def test_samples_have_the_covariance() -> None:
    draws = mahal.grf_sample((20_000, 4, 5), range=1.0, variance=2.0, generator=0)
    flat = draws.reshape(-1, 20)
    matrix, _ = reference_grf.covariance((4, 5), range=1.0, variance=2.0)
    found = flat.T @ flat / len(flat)
    # Six standard errors of a product of normals.
    bound = 6 * np.sqrt((np.outer(np.diag(matrix), np.diag(matrix)) + matrix**2) / len(flat))
    assert (np.abs(found - matrix) <= bound).all()
    again = mahal.grf_sample((20_000, 4, 5), range=1.0, variance=2.0, generator=0)
    np.testing.assert_array_equal(draws, again)
    assert mahal.grf_sample((3, 4), range=1.0, dtype="float32").dtype == np.float32


@pytest.mark.parametrize("shape", [(24, 30), (1, 512)])
def test_fit_finds_the_top_of_the_likelihood(shape: tuple[int, int]) -> None:
    images = mahal.grf_sample((12, *shape), range=2.5, variance=0.3, generator=1)
    power = (mahal.grf_power(images[:4]) + 2 * mahal.grf_power(images[4:])) / 3
    np.testing.assert_allclose(power, mahal.grf_power(images), rtol=1e-12)
    fit = mahal.grf_fit(power, shape)
    top = mahal.grf_log_likelihood(
        images, range=fit.range, variance=fit.variance, reduction="mean", gradients=True
    )
    assert top.value == pytest.approx(fit.log_likelihood, rel=1e-12)
    # The slopes vanish against what one percent of either parameter would make of them.
    beside = mahal.grf_log_likelihood(
        images, range=1.01 * fit.range, variance=1.01 * fit.variance, reduction="mean",
        gradients=True,
    )  # fmt: skip
    assert abs(top.range) <= 1e-4 * abs(beside.range)
    assert abs(top.variance) <= 1e-8 * abs(beside.variance)


NORMALS = np.zeros((2, 4, 4))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=0.0), "range"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=np.nan), "range"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, variance=-1.0), "variance"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, variance=0.0), "variance"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS[:, :3], range=1.0), "logvar"),
        (lambda: mahal.grf_kl(NORMALS[0, 0], NORMALS[0, 0], range=1.0), "mean"),
        (lambda: mahal.grf_kl(NORMALS[:, :0], NORMALS[:, :0], range=1.0), "mean"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, kernel="flat"), "kernel"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, convention="x"), "convention"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, smoothness=0), "smoothness"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, reduction="max"), "reduction"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, prior_gradient=1), "prior_gradient"),
        (lambda: mahal.grf_log_likelihood(NORMALS[0, 0], range=1.0), "image"),
        (lambda: mahal.grf_spectrum((4,), range=1.0), "shape"),
        (lambda: mahal.grf_spectrum((0, 4), range=1.0), "shape"),
        (lambda: mahal.grf_sample((4, 4), range=1.0, dtype="float16"), "dtype"),
        (lambda: mahal.grf_power(NORMALS[:0]), "image"),
        (lambda: mahal.grf_fit(np.ones((4, 4)), (4, 4)), "power"),
        (lambda: mahal.grf_fit(np.zeros((4, 3)), (4, 4)), "power"),
        (lambda: mahal.grf_fit(np.ones((4, 3)), (4, 4), bounds=(2.0, 1.0)), "bounds"),
    ],
)
def test_bad_values(call: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^grf_\w+: {argument}: .*, got .*$"):
        call()


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: mahal.grf_kl(NORMALS.astype(int), NORMALS, range=1.0), "mean"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS.astype(int), range=1.0), "logvar"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS.astype(np.float32), range=1.0), "logvar"),
        (lambda: mahal.grf_kl(NORMALS + 0j, NORMALS, range=1.0), "mean"),
        (lambda: mahal.grf_kl([[1.0]], NORMALS, range=1.0), "mean"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range="1"), "range"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=NORMALS), "range"),
        (lambda: mahal.grf_kl(NORMALS, NORMALS, range=1.0, gradients=1), "gradients"),
        (lambda: mahal.grf_spectrum(4, range=1.0), "shape"),
        (lambda: mahal.grf_sample((4, 4), range=1.0, generator="x"), "generator"),
    ],
)
def test_bad_types(call: Any, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^grf_\w+: {argument}: .*, got .*$"):
        call()


def test_integer_images_are_promoted() -> None:
    image = np.random.default_rng(11).integers(0, 255, (2, 8, 8), dtype=np.uint8)
    found = mahal.grf_log_likelihood(image, range=1.0, variance=5000.0)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(
        found, mahal.grf_log_likelihood(image.astype(np.float32), range=1.0, variance=5000.0)
    )

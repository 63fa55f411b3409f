"""mahalanobis: reference, closed forms, affine invariance, errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import (
    Case,
    OpSpec,
    backend,
    random_scene,
    random_spd,
    reference,
    run_op_checks,
    tolerance,
)

CONDITION = 50.0


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(4,), (37, 3), (1, 1), (9, 11, 5), (5, 33, 17), (6, 4, 6), (40, 70)]:
        x = random_scene(shape, rng, offset=1.0, scale=1.0)
        mean = 1.0 + 0.1 * rng.standard_normal(shape[-1])
        covariance = random_spd(shape[-1], CONDITION, rng)
        axis = 0 if len(shape) > 1 else None
        yield Case(
            f"shape {shape}",
            (x, mean, covariance),
            condition=CONDITION,
            terms=shape[-1],
            broadcast_axis=axis,
        )


def distances_are_not_negative(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    assert (outputs[0] >= 0).all()


SPEC = OpSpec(
    name="mahalanobis",
    function=lambda x, mean, covariance: mahal.mahalanobis(x, mean, covariance),
    reference=reference.mahalanobis,
    cases=cases,
    invariants=[distances_are_not_negative],
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


def few_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(4,), (9, 11, 5), (3, 40)]:
        x = random_scene(shape, rng, offset=1.0, scale=1.0)
        mean = 1.0 + 0.1 * rng.standard_normal(shape[-1])
        covariance = random_spd(shape[-1], CONDITION, rng)
        axis = 0 if len(shape) > 1 else None
        yield Case(
            f"shape {shape}",
            (x, mean, covariance),
            condition=CONDITION,
            terms=shape[-1],
            broadcast_axis=axis,
        )


needs_emulator = pytest.mark.skipif(
    not mahal.info()["emulator"], reason="needs a build with the emulator"
)


@needs_emulator
def test_the_cuda_kernels_against_the_reference() -> None:
    spec = replace(SPEC, cases=few_cases, emulated=True)
    run_op_checks(spec, backends=["emu"], libraries=["numpy"], thread_counts=())


@pytest.mark.cuda
def test_on_a_device_against_the_reference() -> None:
    run_op_checks(replace(SPEC, emulated=True), backends=["cuda"])


@needs_emulator
@pytest.mark.parametrize("bands", [3, 40])
def test_the_cuda_kernels_with_complex_numbers(bands: int) -> None:
    rng = np.random.default_rng(5)
    shape = (5, 8, bands)
    x = random_scene(shape, rng) + 1j * random_scene(shape, rng)
    draws = rng.standard_normal((2, bands, 2 * bands))
    roots = draws[0] + 1j * draws[1]
    covariance = roots @ roots.conj().T / bands
    mean = x.mean(axis=(0, 1))
    want = mahal.mahalanobis(x, mean, covariance)
    with backend("emu"):
        found = mahal.mahalanobis(x, mean, covariance)
    condition = float(np.linalg.cond(covariance))
    allowed = tolerance(np.float64, terms=2 * bands, condition=condition)
    np.testing.assert_allclose(found, want, rtol=0, atol=allowed * np.abs(want).max())


@needs_emulator
def test_bands_beyond_shared_memory() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((40, 450))
    mean, covariance = np.zeros(450), random_spd(450, CONDITION, rng)
    want = mahal.mahalanobis(x, mean, covariance)
    with backend("emu"):
        found = mahal.mahalanobis(x, mean, covariance)
    allowed = tolerance(np.float64, terms=450, condition=CONDITION)
    np.testing.assert_allclose(found, want, rtol=0, atol=allowed * np.abs(want).max())


@needs_emulator
@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_the_cuda_kernels_give_nan_for_a_bad_covariance(bad: float) -> None:
    covariance = np.eye(40)
    covariance[35, 35] = bad
    with backend("emu"):
        assert np.isnan(mahal.mahalanobis(np.ones((3, 40)), np.zeros(40), covariance)).all()


@needs_emulator
def test_the_cuda_kernels_give_nan_for_an_asymmetric_covariance() -> None:
    with backend("emu"):
        assert np.isnan(mahal.mahalanobis(X, MEAN, ASYMMETRIC)).all()


@needs_emulator
def test_a_band_that_is_not_finite_stays_with_its_pixel_on_a_device() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((33, 20))
    x[7, 11], x[32, 0] = np.nan, np.inf
    covariance = random_spd(20, CONDITION, rng)
    want = mahal.mahalanobis(x, np.zeros(20), covariance)
    with backend("emu"):
        found = mahal.mahalanobis(x, np.zeros(20), covariance)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(want))


def test_the_identity_gives_the_squared_euclidean_distance() -> None:
    x = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_array_equal(mahal.mahalanobis(x, np.zeros(2), np.eye(2)), [25.0, 0.0])


def test_a_diagonal_covariance_weighs_the_bands() -> None:
    x = np.array([[2.0, 3.0, 5.0]])
    covariance = np.diag([4.0, 9.0, 25.0])
    np.testing.assert_allclose(
        mahal.mahalanobis(x, np.zeros(3), covariance), [3.0], rtol=tolerance(np.float64)
    )


def test_it_is_the_squared_norm_of_whitened_samples() -> None:
    x = random_scene((30, 20, 6), np.random.default_rng(1))
    mean, covariance = mahal.mean_covariance(x)
    white = mahal.whiten(x, mean, covariance)
    np.testing.assert_allclose(
        mahal.mahalanobis(x, mean, covariance),
        (white**2).sum(axis=-1),
        rtol=tolerance(np.float64, terms=6, condition=CONDITION),
    )


def test_affine_invariance_at_large_scale() -> None:
    rng = np.random.default_rng(2)
    x = random_scene((300, 5), rng, offset=0.0, scale=1.0)
    mean, covariance = mahal.mean_covariance(x)
    a = 1e8 * random_spd(5, 10.0, rng)
    b = 1e9 * rng.standard_normal(5)
    moved = mahal.mahalanobis(x @ a.T + b, a @ mean + b, a @ covariance @ a.T)
    want = mahal.mahalanobis(x, mean, covariance)
    allowed = tolerance(np.float64, terms=5, condition=CONDITION * 100 * 10)
    np.testing.assert_allclose(moved, want, rtol=0, atol=allowed * want.max())


def test_scipy_agrees() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    x = random_scene((25, 4), np.random.default_rng(3))
    mean, covariance = mahal.mean_covariance(x)
    want = distance.cdist(x, mean[None], "mahalanobis", VI=np.linalg.inv(covariance))[:, 0] ** 2
    allowed = tolerance(np.float64, terms=4, condition=CONDITION)
    np.testing.assert_allclose(
        mahal.mahalanobis(x, mean, covariance), want, rtol=0, atol=allowed * want.max()
    )


X, MEAN, COVARIANCE = np.ones((5, 3)), np.zeros(3), np.eye(3)
ASYMMETRIC = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])


@pytest.mark.parametrize(
    ("x", "mean", "covariance", "argument"),
    [
        (np.ones((5, 0)), MEAN, COVARIANCE, "x"),
        (np.ones((5, 4)), MEAN, COVARIANCE, "(x|mean)"),
        (X, np.zeros(4), COVARIANCE, "mean"),
        (X, MEAN, np.eye(4), "covariance"),
        (X, MEAN, ASYMMETRIC, "covariance"),
        (X, MEAN, np.zeros((3, 3)), "covariance"),
    ],
)
def test_bad_values(x: Any, mean: Any, covariance: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^mahalanobis: {argument}: .*, got .*$"):
        mahal.mahalanobis(x, mean, covariance)


@pytest.mark.parametrize(
    ("x", "mean", "covariance", "argument"),
    [
        (X.astype(complex), MEAN, COVARIANCE, "mean"),
        (X, MEAN.astype(int), COVARIANCE, "mean"),
        (X, MEAN, COVARIANCE.astype(int), "covariance"),
    ],
)
def test_bad_types(x: Any, mean: Any, covariance: Any, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^mahalanobis: {argument}: .*, got .*$"):
        mahal.mahalanobis(x, mean, covariance)


def location_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, circular in [((4, 3, 5), False), ((2, 3, 2, 17), False), ((3, 2), False)]:
        locations, bands = shape[-2:]
        x = random_scene(shape, rng, offset=1.0, scale=1.0, circular=circular)
        mean = 1.0 + 0.1 * rng.standard_normal((locations, bands))
        covariance = np.stack([random_spd(bands, CONDITION, rng) for _ in range(locations)])
        yield Case(f"shape {shape}", (x, mean, covariance), condition=CONDITION, terms=bands)


def each_location(x: Any, mean: Any, covariance: Any) -> Any:
    scores = [reference.mahalanobis(x[..., k, :], mean[k], covariance[k]) for k in range(len(mean))]
    return np.stack(scores, axis=-1)


def test_every_location_has_a_background_of_its_own() -> None:
    spec = replace(SPEC, reference=each_location, cases=location_cases)
    assert run_op_checks(spec, backends=["cpu"]).failures == 0


def test_complex_locations_are_those_of_single_calls() -> None:
    rng = np.random.default_rng(8)
    x = random_scene((4, 2, 3), rng, circular=True).astype(np.complex64)
    mean = x.mean(axis=0)
    covariance = np.stack([random_spd(3, CONDITION, rng, hermitian=True) for _ in range(2)])
    found = mahal.mahalanobis(x, mean, covariance.astype(np.complex64))
    for k in range(2):
        one = mahal.mahalanobis(x[:, k], mean[k], covariance[k].astype(np.complex64))
        np.testing.assert_array_equal(found[:, k], one)


@pytest.mark.parametrize(
    ("x", "mean", "covariance", "argument"),
    [
        (np.ones(3), np.zeros((2, 3)), np.stack([np.eye(3)] * 2), "x"),
        (np.ones((4, 2, 3)), np.zeros((3, 3)), np.stack([np.eye(3)] * 2), "mean"),
        (np.ones((4, 2, 3)), np.zeros((2, 3)), np.stack([np.eye(3)] * 3), "covariance"),
        (np.ones((4, 2, 3)), np.zeros((2, 3)), np.eye(3), "covariance"),
        (np.ones((4, 2, 3)), np.zeros((2, 3)), np.stack([np.eye(3), ASYMMETRIC]), "covariance"),
        (np.ones((4, 2, 3)), np.zeros((2, 3)), np.zeros((2, 3, 3)), "covariance"),
    ],
)
def test_bad_locations(x: Any, mean: Any, covariance: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^mahalanobis: {argument}: .*, got .*$"):
        mahal.mahalanobis(x, mean, covariance)

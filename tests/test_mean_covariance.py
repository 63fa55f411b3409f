"""mean_covariance: reference, closed forms, masks, errors."""

from __future__ import annotations

import warnings
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


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(9, 13, 5), (40, 3), (2, 2), (1, 64, 7), (31, 1, 17), (7, 5, 1), (60, 40)]:
        x = random_scene(shape, rng)
        yield Case(f"shape {shape}", (x,), terms=x.size // shape[-1])
    x = random_scene((12, 10, 4), rng)
    yield Case("ddof 0", (x,), {"ddof": 0}, terms=120)
    yield Case("mask", (x,), {"mask": rng.random((12, 10)) < 0.5}, terms=120)


def scales(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    deviation = np.sqrt(np.diag(expected[1]))
    return float(np.abs(expected[0]).max()), np.outer(deviation, deviation)


def covariance_is_symmetric(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(outputs[1], outputs[1].T)


SPEC = OpSpec(
    name="mean_covariance",
    function=lambda x, **params: mahal.mean_covariance(x, **params),
    reference=reference.mean_covariance,
    cases=cases,
    constant=1.0,
    scale=scales,
    invariants=[covariance_is_symmetric],
    promoted=(np.uint8, np.uint16, np.int16),
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


needs_emulator = pytest.mark.skipif(
    not mahal.info()["emulator"], reason="needs a build with the emulator"
)
FEW_LAYOUTS = ("C", "sliced", "negative", "channel_first")


def few_cases(rng: np.random.Generator) -> Iterator[Case]:
    x = random_scene((9, 13, 5), rng)
    yield Case("mask", (x,), {"mask": rng.random((9, 13)) < 0.5}, terms=117)
    yield Case("(60, 20)", (random_scene((60, 20), rng),), terms=60)
    yield Case("ddof 0", (random_scene((4, 5, 2), rng),), {"ddof": 0}, terms=20)


@needs_emulator
def test_the_cuda_kernels_against_the_reference() -> None:
    spec = replace(SPEC, cases=few_cases, emulated=True, layouts=FEW_LAYOUTS, promoted=())
    run_op_checks(spec, backends=["emu"], libraries=["numpy"], thread_counts=())


@pytest.mark.cuda
def test_on_a_device_against_the_reference() -> None:
    run_op_checks(replace(SPEC, emulated=True), backends=["cuda"])


def field_scene(shape: tuple[int, ...], circular: bool, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return random_scene(shape, rng, circular=True) if circular else random_scene(shape, rng)


@needs_emulator
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    ("estimator", "center", "shape"),
    [
        ("scm", False, (300, 3)),
        ("scm", True, (40, 70)),
        ("loading", True, (9, 30, 5)),
        ("ledoit_wolf", True, (9, 30, 5)),
        ("ledoit_wolf", False, (40, 17)),
        ("oas", True, (40, 17)),
        ("tyler", True, (300, 3)),
        ("student_t", False, (60, 20)),
    ],
)
def test_estimators_of_the_cuda_kernels(
    estimator: str, center: bool, shape: tuple[int, ...], circular: bool
) -> None:
    x = field_scene(shape, circular, 4)
    x.reshape(-1, shape[-1])[0] = np.nan
    params: dict[str, Any] = {"estimator": estimator, "center": center, "max_iterations": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.ConvergenceWarning)
        want_mean, want = mahal.mean_covariance(x, **params)
    with backend("emu"):
        mean, covariance = mahal.mean_covariance(x, **params)
    # Steps of a fixed point solve with the estimate before.
    condition = float(np.linalg.cond(want)) if estimator in ("tyler", "student_t") else 1.0
    allowed = tolerance(np.float64, condition=condition, terms=x.size // shape[-1])
    np.testing.assert_allclose(mean, want_mean, rtol=allowed)
    deviation = np.sqrt(np.diag(want).real)
    assert (np.abs(covariance - want) <= allowed * np.outer(deviation, deviation)).all()


@needs_emulator
def test_an_iteration_on_a_device_ends_where_it_does_on_the_host() -> None:
    x = field_scene((200, 3), False, 5)
    params: dict[str, Any] = {"estimator": "tyler", "tolerance": 0.05, "max_iterations": 9}
    want = mahal.mean_covariance(x, **params)[1]
    with backend("emu"):
        found = mahal.mean_covariance(x, **params)[1]
    # One step more or less would differ by about the tolerance of the iteration.
    np.testing.assert_allclose(
        found, want, rtol=0, atol=tolerance(np.float64, condition=50, terms=200) * want.max()
    )


@needs_emulator
@pytest.mark.parametrize("estimator", ["scm", "oas", "tyler"])
def test_what_has_no_estimate_is_nan_on_a_device(estimator: str) -> None:
    x = np.full((8, 3), np.nan)
    with backend("emu"):
        mean, covariance = mahal.mean_covariance(x, estimator=estimator, max_iterations=3)
    assert np.isnan(mean).all()
    assert np.isnan(covariance).all()


@needs_emulator
def test_a_subspace_has_no_fixed_point_on_a_device() -> None:
    x = np.random.default_rng(6).standard_normal((40, 3)) @ np.diag([1.0, 1.0, 0.0])
    with backend("emu"):
        assert np.isnan(mahal.mean_covariance(x, estimator="tyler", max_iterations=9)[1]).all()


@needs_emulator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_samples_have_exactly_no_covariance_on_a_device(dtype: Any) -> None:
    x = np.full((40, 3), 0.1, dtype=dtype)
    x[0] = np.inf
    with backend("emu"):
        mean, covariance = mahal.mean_covariance(x)
    np.testing.assert_array_equal(mean, dtype(0.1))
    np.testing.assert_array_equal(covariance, 0.0)


def test_two_samples_by_hand() -> None:
    mean, covariance = mahal.mean_covariance(np.array([[1.0, 10.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(mean, [2.0, 7.0])
    np.testing.assert_array_equal(covariance, [[2.0, -6.0], [-6.0, 18.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_samples_have_exactly_no_covariance(dtype: Any) -> None:
    mean, covariance = mahal.mean_covariance(np.full((30, 31, 3), 0.1, dtype=dtype))
    np.testing.assert_array_equal(mean, dtype(0.1))
    np.testing.assert_array_equal(covariance, 0.0)


def test_large_offset_costs_no_accuracy() -> None:
    x = random_scene((50, 60, 6), np.random.default_rng(1), offset=1e4, scale=1.0)
    x = x.astype(np.float32)
    mean, covariance = mahal.mean_covariance(x)
    want_mean, want = reference.mean_covariance(x)
    eps = tolerance(np.float32, constant=1.0)
    np.testing.assert_allclose(mean, want_mean, rtol=eps)
    deviation = np.sqrt(np.diag(want))
    # The offset is 1e4 standard deviations; without anchoring nothing would be left.
    assert (np.abs(covariance - want) <= 16 * eps * np.outer(deviation, deviation)).all()


def test_masked_and_non_finite_samples_are_left_out() -> None:
    x = random_scene((8, 9, 3), np.random.default_rng(2))
    mask = np.ones((8, 9), dtype=bool)
    mask[2] = False
    spoiled = x.copy()
    spoiled[2] = 1e30
    spoiled[5, 5, 0] = np.nan
    spoiled[6, 6, 2] = -np.inf
    keep = mask.copy()
    keep[5, 5] = keep[6, 6] = False
    found = mahal.mean_covariance(spoiled, mask=mask)
    for got, want in zip(found, reference.mean_covariance(x[keep]), strict=True):
        np.testing.assert_allclose(got, want, rtol=tolerance(np.float64, terms=72), atol=1e-10)


def test_affine_equivariance() -> None:
    rng = np.random.default_rng(3)
    x = random_scene((400, 5), rng, offset=0.0, scale=1.0)
    a, b = random_spd(5, 10.0, rng), rng.standard_normal(5)
    mean, covariance = mahal.mean_covariance(x)
    moved_mean, moved = mahal.mean_covariance(x @ a.T + b)
    allowed = tolerance(np.float64, condition=10.0, terms=400)
    np.testing.assert_allclose(moved_mean, a @ mean + b, rtol=0, atol=allowed)
    np.testing.assert_allclose(moved, a @ covariance @ a.T, rtol=0, atol=allowed)


@pytest.mark.parametrize(
    ("x", "params", "argument"),
    [
        (np.zeros(5), {}, "x"),
        (np.zeros((0, 3)), {}, "x"),
        (np.zeros((4, 0)), {}, "x"),
        (np.ones((1, 3)), {}, "x"),
        (np.full((5, 3), np.nan), {}, "x"),
        (np.ones((5, 3)), {"ddof": 5}, "(x|ddof)"),
        (np.ones((5, 3)), {"ddof": -1}, "ddof"),
        (np.ones((5, 3)), {"estimator": "magic"}, "estimator"),
        (np.ones((4, 5, 3)), {"mask": np.ones((5, 4), dtype=bool)}, "mask"),
        (np.ones((4, 5, 3)), {"mask": np.zeros((4, 5), dtype=bool)}, "(x|mask)"),
    ],
)
def test_bad_values(x: np.ndarray, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^mean_covariance: {argument}: .*, got .*$"):
        mahal.mean_covariance(x, **params)


@pytest.mark.parametrize(
    ("x", "params", "argument"),
    [
        (np.ones((5, 3)), {"center": 1}, "center"),
        (np.ones((5, 3), dtype=object), {}, "x"),
        (np.ones((4, 5, 3)), {"mask": np.ones((4, 5))}, "mask"),
    ],
)
def test_bad_types(x: np.ndarray, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^mean_covariance: {argument}: .*, got .*$"):
        mahal.mean_covariance(x, **params)

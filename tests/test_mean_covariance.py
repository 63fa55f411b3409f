"""mean_covariance: reference, closed forms, masks, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import (
    Case,
    OpSpec,
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

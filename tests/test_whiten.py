"""whiten: reference, whitened covariance, equivariance, errors."""

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


SPEC = OpSpec(
    name="whiten",
    function=lambda x, mean, covariance: mahal.whiten(x, mean, covariance),
    reference=reference.whiten,
    cases=cases,
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
    want = mahal.whiten(x, mean, covariance)
    with backend("emu"):
        found = mahal.whiten(x, mean, covariance)
    condition = float(np.linalg.cond(covariance))
    allowed = tolerance(np.float64, terms=2 * bands, condition=condition)
    np.testing.assert_allclose(found, want, rtol=0, atol=allowed * np.abs(want).max())


@needs_emulator
def test_bands_beyond_shared_memory() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((40, 450))
    mean, covariance = np.zeros(450), random_spd(450, CONDITION, rng)
    want = mahal.whiten(x, mean, covariance)
    with backend("emu"):
        found = mahal.whiten(x, mean, covariance)
    allowed = tolerance(np.float64, terms=450, condition=CONDITION)
    np.testing.assert_allclose(found, want, rtol=0, atol=allowed * np.abs(want).max())


@needs_emulator
@pytest.mark.parametrize("bad", [np.nan, 0.0, -1.0])
def test_the_cuda_kernels_give_nan_for_a_bad_covariance(bad: float) -> None:
    covariance = np.eye(40)
    covariance[35, 35] = bad
    with backend("emu"):
        assert np.isnan(mahal.whiten(np.ones((3, 40)), np.zeros(40), covariance)).all()


@needs_emulator
def test_the_cuda_kernels_give_nan_for_an_asymmetric_covariance() -> None:
    with backend("emu"):
        assert np.isnan(mahal.whiten(X, MEAN, ASYMMETRIC)).all()


@needs_emulator
def test_a_band_that_is_not_finite_stays_with_its_pixel_on_a_device() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((33, 20))
    x[7, 11], x[32, 0] = np.nan, np.inf
    covariance = random_spd(20, CONDITION, rng)
    want = mahal.whiten(x, np.zeros(20), covariance)
    with backend("emu"):
        found = mahal.whiten(x, np.zeros(20), covariance)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(want))


@pytest.mark.parametrize(("dtype", "offset"), [(np.float64, 1e3), (np.float32, 1e2)])
def test_whitened_samples_have_identity_covariance(dtype: Any, offset: float) -> None:
    x = random_scene((50, 40, 7), np.random.default_rng(1), offset=offset, scale=1.0).astype(dtype)
    mean, covariance = mahal.mean_covariance(x)
    white = mahal.whiten(x, mean, covariance)
    white_mean, white_covariance = reference.mean_covariance(white)
    # Rounding of the mean, in units of the smallest deviation, moves every sample alike.
    shift = tolerance(dtype, constant=2.0) * offset * np.sqrt(CONDITION) * 7
    assert np.abs(white_mean).max() <= shift
    allowed = tolerance(dtype, condition=CONDITION, terms=7)
    np.testing.assert_allclose(white_covariance, np.eye(7), rtol=0, atol=allowed)


def test_one_band_is_a_z_score() -> None:
    x = np.array([[1.0], [3.0], [7.0]])
    white = mahal.whiten(x, np.array([3.0]), np.array([[4.0]]))
    np.testing.assert_array_equal(white, [[-1.0], [0.0], [2.0]])


def test_the_identity_only_centres() -> None:
    x = random_scene((6, 5, 3), np.random.default_rng(2))
    mean = np.array([100.0, 90.0, 110.0])
    np.testing.assert_array_equal(mahal.whiten(x, mean, np.eye(3)), x - mean)


def test_a_non_finite_sample_costs_only_itself() -> None:
    x = random_scene((40, 5), np.random.default_rng(3))
    mean, covariance = mahal.mean_covariance(x)
    right = mahal.whiten(x, mean, covariance)
    x[13, 2] = np.nan
    white = mahal.whiten(x, mean, covariance)
    others = np.arange(40) != 13
    np.testing.assert_array_equal(white[others], right[others])
    assert np.isnan(white[13, 2:]).all()


def test_large_offset_costs_no_accuracy() -> None:
    x = random_scene((200, 6), np.random.default_rng(4), offset=1e4, scale=1.0)
    x = x.astype(np.float32)
    mean, covariance = mahal.mean_covariance(x)
    want = reference.whiten(x, mean, covariance)
    allowed = tolerance(np.float32, condition=CONDITION, terms=6) * np.abs(want).max()
    np.testing.assert_allclose(mahal.whiten(x, mean, covariance), want, rtol=0, atol=allowed)


def test_float64_statistics_serve_float32_pixels() -> None:
    x = random_scene((60, 6), np.random.default_rng(5)).astype(np.float32)
    mean, covariance = reference.mean_covariance(x)
    white = mahal.whiten(x, mean, covariance)
    want = reference.whiten(x, mean, covariance)
    assert white.dtype == np.float32
    # Nothing but the result is rounded to float32.
    np.testing.assert_allclose(
        white, want, rtol=tolerance(np.float32, constant=1.0), atol=1e-12 * np.abs(want).max()
    )


X, MEAN, COVARIANCE = np.ones((5, 3)), np.zeros(3), np.eye(3)
ASYMMETRIC = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])


@pytest.mark.parametrize(
    ("x", "mean", "covariance", "argument"),
    [
        (np.array(1.0), MEAN, COVARIANCE, "x"),
        (np.ones((5, 0)), MEAN, COVARIANCE, "x"),
        (np.ones((5, 4)), MEAN, COVARIANCE, "(x|mean)"),
        (X, np.zeros(4), COVARIANCE, "mean"),
        (X, np.zeros((1, 3)), COVARIANCE, "mean"),
        (X, MEAN, np.eye(4), "covariance"),
        (X, MEAN, np.ones((3, 4)), "covariance"),
        (X, MEAN, np.ones(3), "covariance"),
        (X, MEAN, ASYMMETRIC, "covariance"),
        (X, MEAN, np.zeros((3, 3)), "covariance"),
        (X, MEAN, -np.eye(3), "covariance"),
        (X, MEAN, np.full((3, 3), np.nan), "covariance"),
    ],
)
def test_bad_values(x: Any, mean: Any, covariance: Any, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^whiten: {argument}: .*, got .*$"):
        mahal.whiten(x, mean, covariance)


@pytest.mark.parametrize(
    ("x", "mean", "covariance", "argument"),
    [
        (X.astype(complex), MEAN, COVARIANCE, "mean"),
        (X, MEAN.astype(int), COVARIANCE, "mean"),
        (X, MEAN, COVARIANCE.astype(int), "covariance"),
    ],
)
def test_bad_types(x: Any, mean: Any, covariance: Any, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^whiten: {argument}: .*, got .*$"):
        mahal.whiten(x, mean, covariance)

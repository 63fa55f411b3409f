"""CUDA kernels of rx, ace and matched_filter against windows, under the emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

pytestmark = [
    pytest.mark.skipif(not mahal.info()["emulator"], reason="needs a build with the emulator"),
    pytest.mark.filterwarnings("ignore::mahal.SingularWarning"),
]

# Whitening the image first leaves local covariances of this order.
CONDITION = 50.0

FEW_SAMPLES = 1


def on_device(function: Callable[..., Any], *arguments: Any, **params: Any) -> Any:
    with backend("emu"):
        return function(*arguments, **params)


def label(shape: tuple[int, ...], params: dict[str, Any]) -> str:
    names = (k if isinstance(v, np.ndarray) else f"{k}={v}" for k, v in params.items())
    return f"{shape} {', '.join(names)}"


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, params in [
        ((8, 9, 1), {"window": (1, 3)}),
        ((3, 20, 2), {"window": 3}),
        ((9, 40, 3), {"window": (1, 7), "border": "reflect"}),
        ((11, 12, 8), {"window": (3, 9), "border": "valid"}),
        ((10, 11, 17), {"window": (5, 9)}),
        ((10, 9, 40), {"window": (3, 9)}),
        ((10, 12, 4), {"window": (3, 9), "mask": rng.random((10, 12)) < 0.8}),
        ((10, 12, 4), {"window": (3, 7), "covariance": 400 * random_spd(4, 50.0, rng)}),
    ]:
        yield Case(
            label(shape, params),
            (random_scene(shape, rng),),
            {"return_status": True, **params},
            condition=CONDITION if shape[-1] < 40 else 4 * CONDITION,
            terms=max(shape[-1], 9),
            broadcast_axis=None,
        )


SPEC = OpSpec(
    name="rx",
    function=lambda image, **params: mahal.rx(image, **params),
    reference=lambda image, *, return_status, **params: reference.rx(image, **params),
    cases=cases,
    constant=2.0,
    layouts=("C",),
    emulated=True,
)


def test_against_the_reference() -> None:
    run_op_checks(SPEC, backends=["emu"], libraries=["numpy"], thread_counts=())


def test_layouts() -> None:
    def one(rng: np.random.Generator) -> Iterator[Case]:
        yield Case(
            "one",
            (random_scene((6, 7, 3), rng),),
            {"return_status": True, "window": (1, 5)},
            condition=CONDITION,
            terms=5,
            broadcast_axis=None,
        )

    layouts = ("F", "sliced", "offset", "negative", "channel_first")
    spec = replace(SPEC, cases=one, layouts=layouts)
    run_op_checks(spec, backends=["emu"], libraries=["numpy"], thread_counts=())


@pytest.mark.parametrize(
    ("shape", "dtype", "window"),
    [
        # Squares of eight bands, and four times as many samples as bands would not fit an image.
        ((12, 11, 70), np.float32, (3, 11)),
        # More bands than the threads of a block have squares for.
        ((11, 11, 105), np.float64, 11),
    ],
)
def test_many_bands(shape: tuple[int, ...], dtype: Any, window: Any) -> None:
    image = random_scene(shape, np.random.default_rng(1)).astype(dtype)
    want = mahal.rx(image.astype(np.float64), window=window)
    # Few more samples than bands leave covariances worse by what they lack.
    allowed = tolerance(dtype, condition=20 * CONDITION, terms=shape[-1]) * want.max()
    np.testing.assert_allclose(
        on_device(mahal.rx, image, window=window), want, rtol=0, atol=allowed
    )


def test_matrices_beyond_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_scene((13, 13, 130), np.random.default_rng(2)).astype(np.float32)
    whole = on_device(mahal.rx, image, window=13)
    monkeypatch.setenv("MAHAL_SIMT_SHARED_KIB", "48")
    np.testing.assert_array_equal(on_device(mahal.rx, image, window=13), whole)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("center", [True, False])
def test_complex_images(dtype: Any, center: bool) -> None:
    image = random_scene((9, 10, 3), np.random.default_rng(3), circular=True).astype(dtype)
    want = mahal.rx(image.astype(np.complex128), window=(3, 7), center=center)
    scores = on_device(mahal.rx, image, window=(3, 7), center=center)
    allowed = tolerance(scores.dtype, condition=CONDITION, terms=7) * want.max()
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", ["load", "nan"])
def test_singular_windows(dtype: Any, rule: str) -> None:
    image = random_scene((14, 16, 3), np.random.default_rng(4))
    image[:8, :9] = image[0, 0]
    image[3, 3] += 1
    image = image.astype(dtype)
    params = {"window": (3, 5), "singular": rule, "return_status": True}
    want, want_status = reference.rx(image, window=(3, 5), singular=rule)
    scores, status = on_device(mahal.rx, image, **params)
    assert (want_status == reference.SINGULAR).sum() > 10
    np.testing.assert_array_equal(status, want_status)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(want))
    regular = status == reference.OK
    allowed = tolerance(dtype, condition=CONDITION, terms=5)
    np.testing.assert_allclose(scores[regular], want[regular], rtol=allowed * 10, atol=allowed)
    if rule == "load":
        loaded = tolerance(dtype, condition=1 / reference.LOADING, terms=5)
        np.testing.assert_allclose(scores[~regular], want[~regular], rtol=loaded, atol=loaded)


@pytest.mark.parametrize("rule", ["load", "nan"])
def test_a_redundant_band_makes_every_window_singular(rule: str) -> None:
    image = random_scene((7, 8, 2), np.random.default_rng(5))
    image = np.concatenate([image, image[..., :1]], axis=2)
    want = mahal.rx(image, window=(1, 5), singular=rule)
    scores, status = on_device(mahal.rx, image, window=(1, 5), singular=rule, return_status=True)
    assert (status == reference.SINGULAR).all()
    # A loading of 1e-6 stands against rounding in the null space.
    np.testing.assert_allclose(scores, want, rtol=tolerance(np.float64, condition=1e6, terms=5))


def test_windows_with_too_few_samples() -> None:
    image = random_scene((8, 9, 5), np.random.default_rng(6))
    mask = np.zeros((8, 9), dtype=bool)
    mask[:, 6:] = True
    want, want_status = reference.rx(image, window=(1, 3), mask=mask)
    scores, status = on_device(mahal.rx, image, window=(1, 3), mask=mask, return_status=True)
    assert set(np.unique(want_status)) == {reference.OK, FEW_SAMPLES, reference.MASKED}
    np.testing.assert_array_equal(status, want_status)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(want))


def test_too_few_pixels_for_a_global_covariance() -> None:
    """An error would have to wait for the count."""
    image = random_scene((5, 6, 3), np.random.default_rng(15))
    mask = np.zeros((5, 6), dtype=bool)
    mask[2, 2:4] = True
    scores, status = on_device(mahal.rx, image, window=(1, 3), mask=mask, return_status=True)
    assert np.isnan(scores).all()
    np.testing.assert_array_equal(status, np.where(mask, FEW_SAMPLES, reference.MASKED))


def test_pixels_that_are_not_finite_cost_only_their_windows() -> None:
    image = random_scene((12, 13, 3), np.random.default_rng(7))
    image[5, 6, 1], image[0, 12, 0] = np.nan, np.inf
    want, want_status = reference.rx(image, window=(3, 5))
    scores, status = on_device(mahal.rx, image, window=(3, 5), return_status=True)
    np.testing.assert_array_equal(status, want_status)
    allowed = tolerance(np.float64, condition=CONDITION, terms=5) * np.nanmax(want)
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


def test_large_offset_costs_no_accuracy() -> None:
    image = random_scene((11, 40, 4), np.random.default_rng(8), offset=1e4, scale=1.0)
    image = image.astype(np.float32)
    want, _ = reference.rx(image, window=(3, 7))
    allowed = tolerance(np.float32, condition=CONDITION, terms=7) * want.max()
    np.testing.assert_allclose(
        on_device(mahal.rx, image, window=(3, 7)), want, rtol=0, atol=allowed
    )


@pytest.mark.parametrize("quiet", [1e-3, 1e-4, 1e-6])
def test_quiet_regions_far_from_the_mean(quiet: float) -> None:
    """Whitened pixels there have too few digits in float32 to tell their differences."""
    rng = np.random.default_rng(9)
    image = rng.standard_normal((12, 34, 3))
    image[:, 17:] = 3 + quiet * rng.standard_normal((12, 17, 3))
    image = image.astype(np.float32)
    want = mahal.rx(image.astype(np.float64), window=(1, 5))
    np.testing.assert_allclose(on_device(mahal.rx, image, window=(1, 5)), want, rtol=1e-3)
    target = np.array([3.0 + quiet, 3.0, 3.0 - quiet], dtype=np.float32)
    want = mahal.ace(image.astype(np.float64), target.astype(np.float64), window=(1, 5))
    scores = on_device(mahal.ace, image, target, window=(1, 5))
    np.testing.assert_allclose(scores, want, rtol=0, atol=1e-3)


TARGETS = [
    (mahal.ace, {}),
    (mahal.ace, {"signed": True}),
    (mahal.ace, {"subspace": True}),
    (mahal.matched_filter, {}),
    (mahal.matched_filter, {"normalized": True}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("detector", "params"), TARGETS)
def test_targets(
    detector: Callable[..., Any], params: dict[str, Any], fixed: bool, dtype: Any
) -> None:
    rng = np.random.default_rng(10)
    image = random_scene((8, 9, 4), rng)
    targets = image.mean(axis=(0, 1)) + 20 * rng.standard_normal((2, 4))
    image, targets = image.astype(dtype), targets.astype(dtype)
    given: dict[str, Any] = {"window": (3, 7), "return_status": True, **params}
    if fixed:
        given["covariance"] = (400 * random_spd(4, 50.0, rng)).astype(dtype)
    double = {k: v.astype(np.float64) if k == "covariance" else v for k, v in given.items()}
    want, want_status = detector(image.astype(np.float64), targets.astype(np.float64), **double)
    scores, status = on_device(detector, image, targets, **given)
    np.testing.assert_array_equal(status, want_status)
    allowed = tolerance(dtype, condition=CONDITION, terms=7) * np.abs(want).max()
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("subspace", [False, True])
def test_targets_in_complex_windows_of_fixed_covariance(subspace: bool) -> None:
    rng = np.random.default_rng(11)
    image = random_scene((7, 8, 3), rng, circular=True)
    targets = image[:2, 0] + 5
    params = {
        "window": 5,
        "covariance": 400 * random_spd(3, 50.0, rng, hermitian=True),
        "subspace": subspace,
    }
    want = mahal.ace(image, targets, **params)
    allowed = tolerance(np.float64, condition=CONDITION, terms=6)
    np.testing.assert_allclose(
        on_device(mahal.ace, image, targets, **params), want, rtol=0, atol=allowed
    )


@pytest.mark.parametrize(("detector", "params"), TARGETS)
@pytest.mark.parametrize("estimator", ["loading", "oas", "tyler"])
def test_targets_of_estimators(
    detector: Callable[..., Any], params: dict[str, Any], estimator: str
) -> None:
    rng = np.random.default_rng(16)
    image = random_scene((6, 7, 3), rng)
    image[2, 1, 0] = np.nan
    targets = np.nanmean(image, axis=(0, 1)) + 20 * rng.standard_normal((2, 3))
    given: dict[str, Any] = {"window": (1, 5), "estimator": estimator, "return_status": True}
    want, want_status = detector(image, targets, **given, **params)
    scores, status = on_device(detector, image, targets, **given, **params)
    np.testing.assert_array_equal(status, want_status)
    allowed = tolerance(np.float64, condition=CONDITION**2, terms=5) * np.nanmax(np.abs(want))
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


@pytest.mark.parametrize(("detector", "params"), [t for t in TARGETS if "signed" not in t[1]])
@pytest.mark.parametrize("center", [True, False])
def test_targets_in_complex_windows(
    detector: Callable[..., Any], params: dict[str, Any], center: bool
) -> None:
    rng = np.random.default_rng(17)
    image = random_scene((6, 7, 2), rng, circular=True, offset=10.0)
    targets = image[:2, 0] + 5
    given = {"window": 5, "center": center, **params}
    want = detector(image, targets, **given)
    # Without the mean, 10 for a deviation of 20 at most, a matrix has up to its square more.
    allowed = tolerance(np.float64, condition=20 * CONDITION, terms=5) * np.abs(want).max()
    np.testing.assert_allclose(
        on_device(detector, image, targets, **given), want, rtol=0, atol=allowed
    )


def test_dependent_targets_have_no_subspace() -> None:
    rng = np.random.default_rng(12)
    image = random_scene((6, 7, 3), rng)
    targets = np.repeat(image[:1, 0] + 9, 2, axis=0)
    scores, status = on_device(
        mahal.ace, image, targets, window=5, subspace=True, return_status=True
    )
    assert np.isnan(scores).all()
    assert (status == reference.SINGULAR).all()


def test_a_target_that_is_not_finite_scores_nan() -> None:
    image = random_scene((6, 7, 3), np.random.default_rng(13))
    targets = np.array([[90.0, 100.0, 120.0], [90.0, np.nan, 120.0]])
    scores, status = on_device(mahal.ace, image, targets, window=5, return_status=True)
    assert np.isnan(scores[..., 1]).all()
    assert np.isfinite(scores[..., 0]).all()
    assert (status == reference.SINGULAR).all()


def test_schedules_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_scene((6, 20, 9), np.random.default_rng(14)).astype(np.float32)
    found = []
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("MAHAL_SIMT_SEED", seed)
        found.append(on_device(mahal.rx, image, window=(1, 5)))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])

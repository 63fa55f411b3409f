"""local_covariance: reference over windows, borders and masks, closed forms, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal.testing import (
    Case,
    OpSpec,
    libraries,
    random_scene,
    reference,
    run_op_checks,
    to_library,
    to_numpy,
    tolerance,
)


def samples(window: Any) -> int:
    if isinstance(window, list):
        return max(samples(w) for w in window)
    inner, outer = window if isinstance(window, tuple) else (0, window)
    return outer * outer - inner * inner


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, window, params in [
        ((9, 12, 3), (1, 5), {}),
        ((12, 9, 2), 3, {}),
        ((7, 7, 4), 7, {}),
        ((7, 20, 8), (3, 7), {}),
        ((11, 10, 1), 5, {}),
        ((5, 33, 5), (1, 5), {"border": "reflect"}),
        ((9, 10, 3), 7, {"border": "valid"}),
        ((9, 10, 2), (3, 9), {"ddof": 0}),
        ((3, 4, 2), 1, {"ddof": 0}),
        ((24, 40, 8), [3, (1, 7), (5, 11)], {}),
        ((10, 12, 17), [5, 9], {"border": "reflect"}),
        ((14, 15, 3), [5, (3, 9)], {"mask": rng.random((14, 15)) < 0.6}),
        ((9, 9, 2), 3, {"mask": rng.random((9, 9)) < 0.2}),
    ]:
        image = random_scene(shape, rng)
        yield Case(
            f"{shape} window {window} {sorted(params)}",
            (image,),
            {"window": window, **params},
            terms=samples(window),
        )


def scales(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """Largest pixel and largest square about the mean: what the sums are made of."""
    image = case.arrays[0].astype(np.float64)
    spread = ((image - image.mean(axis=(0, 1))) ** 2).max()
    return float(np.abs(image).max()), float(spread)


def covariance_is_symmetric(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(outputs[1], np.swapaxes(outputs[1], -1, -2))


def variances_are_not_negative(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    variances = np.diagonal(outputs[1], axis1=-2, axis2=-1)
    assert not (variances < 0).any()


SPEC = OpSpec(
    name="local_covariance",
    function=lambda image, window, **params: mahal.local_covariance(image, window, **params),
    reference=reference.local_covariance,
    cases=cases,
    constant=2.0,
    scale=scales,
    invariants=[covariance_is_symmetric, variances_are_not_negative],
    promoted=(np.uint8, np.uint16, np.int16),
    emulated=True,
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    cols=st.integers(1, 20),
    bands=st.integers(1, 6),
    outer=st.integers(0, 4),
    guard=st.integers(-1, 3),
    steps=st.tuples(st.sampled_from([-2, -1, 1, 2]), st.sampled_from([-1, 1, 3])),
    border=st.sampled_from(["shift", "reflect", "valid"]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_stride_and_window(
    rows: int,
    cols: int,
    bands: int,
    outer: int,
    guard: int,
    steps: tuple[int, int],
    border: str,
    seed: int,
) -> None:
    outer = min(2 * outer + 1, rows - 1 + rows % 2, cols - 1 + cols % 2)
    inner = 2 * guard + 1
    window: Any = (inner, outer) if 0 < inner < outer else outer
    ddof = 0 if outer == 1 else 1
    large = random_scene((3 * rows, 3 * cols, bands), np.random.default_rng(seed))
    image = large[:: steps[0], :: steps[1]][:rows, :cols]
    found = mahal.local_covariance(image, window, border=border, ddof=ddof)
    expected = reference.local_covariance(image, window, border=border, ddof=ddof)
    # Sums slide over the image, so their rounding errors follow what passed through them.
    allowed = tolerance(np.float64, terms=samples(window) + rows + cols)
    spread = float(((image - image.mean(axis=(0, 1))) ** 2).max())
    for got, want, scale in zip(found, expected, (float(np.abs(image).max()), spread), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=allowed * scale)


def test_three_by_three_by_hand() -> None:
    image = np.arange(9.0).reshape(3, 3, 1)
    mean, covariance = mahal.local_covariance(image, (1, 3))
    np.testing.assert_array_equal(mean[1, 1], [4.0])
    assert covariance[1, 1, 0, 0] == pytest.approx(60.0 / 7.0, rel=4e-16)
    # In the corner the windows are shifted: the guard covers the corner pixel itself.
    np.testing.assert_array_equal(mean[0, 0], [36.0 / 8.0])


def test_one_window_gives_the_moments_of_the_image() -> None:
    image = random_scene((9, 9, 4), np.random.default_rng(1))
    mean, covariance = mahal.local_covariance(image, 9)
    whole_mean, whole = mahal.mean_covariance(image)
    allowed = tolerance(np.float64, terms=81)
    shape = (9, 9)
    np.testing.assert_allclose(mean, np.broadcast_to(whole_mean, (*shape, 4)), rtol=allowed)
    np.testing.assert_allclose(
        covariance, np.broadcast_to(whole, (*shape, 4, 4)), atol=allowed * np.abs(whole).max()
    )


def test_several_windows_are_the_single_ones() -> None:
    image = random_scene((20, 22, 4), np.random.default_rng(2))
    windows = [3, (3, 9), 15]
    mean, covariance = mahal.local_covariance(image, windows)
    assert mean.shape == (20, 22, 3, 4)
    assert covariance.shape == (20, 22, 3, 4, 4)
    for scale, window in enumerate(windows):
        one_mean, one = mahal.local_covariance(image, window)
        allowed = tolerance(np.float64, terms=225)
        np.testing.assert_allclose(mean[:, :, scale], one_mean, rtol=allowed)
        np.testing.assert_allclose(
            covariance[:, :, scale], one, rtol=0, atol=allowed * np.abs(one).max()
        )


def test_translation_equivariance() -> None:
    large = random_scene((30, 31, 3), np.random.default_rng(3))
    _, whole = mahal.local_covariance(large, (3, 7))
    _, part = mahal.local_covariance(large[5:25, 8:29], (3, 7))
    allowed = tolerance(np.float64, terms=40) * np.abs(whole).max()
    np.testing.assert_allclose(part[3:-3, 3:-3], whole[8:22, 11:26], rtol=0, atol=allowed)


def test_large_offset_costs_no_accuracy() -> None:
    image = random_scene((70, 40, 5), np.random.default_rng(4), offset=1e4, scale=1.0)
    image = image.astype(np.float32)
    _, covariance = mahal.local_covariance(image, (3, 11))
    _, want = reference.local_covariance(image, (3, 11))
    deviation = np.sqrt(np.diagonal(want, axis1=-2, axis2=-1))
    scale = deviation[..., :, None] * deviation[..., None, :]
    assert (np.abs(covariance - want) <= tolerance(np.float32, terms=112) * scale).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_image_has_exactly_no_covariance(dtype: Any) -> None:
    mean, covariance = mahal.local_covariance(np.full((40, 33, 3), 0.1, dtype=dtype), (3, 7))
    np.testing.assert_array_equal(mean, dtype(0.1))
    np.testing.assert_array_equal(covariance, 0.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_pixel_costs_only_its_windows(dtype: Any, bad: float) -> None:
    image = random_scene((40, 30, 3), np.random.default_rng(5)).astype(dtype)
    image[17, 12, 1] = bad
    found = mahal.local_covariance(image, (3, 7))
    expected = reference.local_covariance(image, (3, 7))
    assert 0 < np.isnan(expected[0][..., 0]).sum() <= 49
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        limit = tolerance(dtype, terms=40) * np.nanmax(np.abs(want))
        np.testing.assert_allclose(got, want, rtol=0, atol=limit)


def test_a_masked_non_finite_pixel_costs_nothing() -> None:
    image = random_scene((12, 13, 2), np.random.default_rng(6))
    mask = np.ones((12, 13), dtype=bool)
    mask[4, 5] = False
    clean = mahal.local_covariance(image, 5, mask=mask)
    image[4, 5] = np.nan
    for got, want in zip(mahal.local_covariance(image, 5, mask=mask), clean, strict=True):
        np.testing.assert_array_equal(got, want)
        assert np.isfinite(got).all()


@pytest.mark.parametrize("library", libraries())
@pytest.mark.parametrize("params", [{}, {"estimator": "oas", "return_status": True}])
def test_leading_axes_are_a_batch(library: str, params: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    images = random_scene((2, 3, 9, 11, 2), rng)
    masks = rng.random(images.shape[:-1]) < 0.8
    for window in (5, [3, (1, 5)]):
        found = mahal.local_covariance(
            to_library(images, library), window, mask=to_library(masks, library), **params
        )
        for index in np.ndindex(2, 3):
            want = mahal.local_covariance(images[index], window, mask=masks[index], **params)
            for batch, one in zip(found, want, strict=True):
                np.testing.assert_array_equal(to_numpy(batch)[index], one)
    mean, covariance = mahal.local_covariance(images[:0], 5)
    assert mean.shape == (0, 3, 9, 11, 2)
    assert covariance.shape == (0, 3, 9, 11, 2, 2)


IMAGE = np.ones((9, 12, 3))


@pytest.mark.parametrize(
    ("image", "window", "params", "argument"),
    [
        (np.ones((9, 12)), 3, {}, "image"),
        (np.ones((2, 9, 0, 3)), 3, {}, "image"),
        (np.ones((0, 12, 3)), 3, {}, "image"),
        (np.ones((9, 12, 0)), 3, {}, "image"),
        (IMAGE, 4, {}, "window"),
        (IMAGE, 0, {}, "window"),
        (IMAGE, -3, {}, "window"),
        (IMAGE, (2, 5), {}, "window"),
        (IMAGE, (3, 6), {}, "window"),
        (IMAGE, (5, 3), {}, "window"),
        (IMAGE, (5, 5), {}, "window"),
        (IMAGE, (1, 3, 5), {}, "window"),
        (IMAGE, 11, {}, "window"),
        (IMAGE, [], {}, "window"),
        (IMAGE, [3, 4], {}, "window"),
        (IMAGE, 1, {}, "(window|ddof)"),
        (IMAGE, 3, {"ddof": 9}, "(window|ddof)"),
        (IMAGE, 3, {"ddof": -1}, "ddof"),
        (IMAGE, 3, {"border": "wrap"}, "border"),
        (IMAGE, 3, {"estimator": "magic"}, "estimator"),
        (IMAGE, 3, {"mask": np.ones((12, 9), dtype=bool)}, "mask"),
    ],
)
def test_bad_values(image: np.ndarray, window: Any, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^local_covariance: {argument}: .*, got .*$"):
        mahal.local_covariance(image, window, **params)


@pytest.mark.parametrize(
    ("image", "window", "params", "argument"),
    [
        (IMAGE, 3, {"center": 1}, "center"),
        (IMAGE, 3.0, {}, "window"),
        (IMAGE, "3", {}, "window"),
        (IMAGE, 3, {"mask": np.ones((9, 12))}, "mask"),
    ],
)
def test_bad_types(image: np.ndarray, window: Any, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^local_covariance: {argument}: .*, got .*$"):
        mahal.local_covariance(image, window, **params)

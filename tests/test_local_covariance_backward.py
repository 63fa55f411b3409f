"""Gradients of local_covariance: closed forms over windows, borders and masks, and invariants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mahal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal import _core
from mahal.ops._window_gradients import local_covariance_backward
from mahal.testing import Case, OpSpec, backend, backends, random_scene, run_op_checks, tolerance
from mahal.testing import reference_window_gradients as reference


def sides(window: Any) -> list[tuple[int, int]]:
    windows = window if isinstance(window, list) else [window]
    return [w if isinstance(w, tuple) else (0, w) for w in windows]


def samples(window: Any) -> int:
    return max(outer * outer - inner * inner for inner, outer in sides(window))


def backward(
    image: Any,
    mean_gradient: Any,
    covariance_gradient: Any,
    *,
    window: Any,
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    mask: Any = None,
) -> Any:
    def with_scales(gradient: Any) -> Any:
        return gradient if gradient is None or isinstance(window, list) else gradient[:, :, None]

    return local_covariance_backward(
        image,
        mask,
        with_scales(mean_gradient),
        with_scales(covariance_gradient),
        sides(window),
        border,
        ddof,
        center,
        0,
    )


def numbers(rng: np.random.Generator, shape: tuple[int, ...], circular: bool) -> np.ndarray:
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if circular else real


def arguments(
    shape: tuple[int, ...], window: Any, rng: np.random.Generator, circular: bool = False
) -> tuple[np.ndarray, ...]:
    scales = (len(window),) if isinstance(window, list) else ()
    full = (*shape[:2], *scales, shape[2])
    image = random_scene(shape, rng, offset=0.0, scale=2.0, circular=circular)
    return image, numbers(rng, full, circular), numbers(rng, (*full, shape[2]), circular)


def cases(rng: np.random.Generator, circular: bool = False) -> Iterator[Case]:
    for shape, window, params in [
        ((9, 12, 3), (1, 5), {}),
        ((7, 7, 2), 7, {}),
        ((5, 43, 3), (1, 5), {"border": "reflect"}),
        ((9, 10, 1), (3, 7), {"border": "valid"}),
        ((9, 10, 2), 3, {"ddof": 0, "mask": rng.random((9, 10)) < 0.3}),
        ((8, 9, 2), (3, 5), {"center": False}),
        ((11, 12, 2), [3, (1, 9)], {"border": "reflect", "mask": rng.random((11, 12)) < 0.7}),
    ]:
        yield Case(
            f"{shape} window {window} {sorted(params)}",
            arguments(shape, window, rng, circular),
            {"window": window, **params},
            terms=samples(window),
            broadcast_axis=None,
        )


def scale(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[float]:
    """Largest term of the sums: a gradient times a pixel, over the least divisor."""
    image, mean, covariance = case.arrays
    return (float(np.abs(mean).max() + 2 * np.abs(covariance).max() * np.abs(image).max()),)


def spec(circular: bool) -> OpSpec:
    return OpSpec(
        name="local_covariance_backward",
        function=backward,
        reference=reference.local_covariance,
        cases=lambda rng: cases(rng, circular),
        scale=scale,
        dtypes=(np.complex64, np.complex128) if circular else (np.float32, np.float64),
        layouts=("C", "F", "sliced", "negative"),
    )


@pytest.mark.parametrize("circular", [False, True])
def test_against_the_reference(circular: bool) -> None:
    assert run_op_checks(spec(circular)).failures == 0


def few_cases(rng: np.random.Generator, circular: bool) -> Iterator[Case]:
    """For the emulator: each border and window, and more pixels than one block slides over."""
    for shape, window, params in [
        ((34, 4, 1), 3, {}),
        ((3, 35, 1), 3, {"border": "reflect"}),
        ((6, 7, 3), (1, 5), {"border": "reflect", "mask": rng.random((6, 7)) < 0.8}),
        ((7, 6, 2), (1, 3), {"border": "valid", "ddof": 0}),
        ((5, 6, 2), [3, (3, 5)], {"center": False}),
    ]:
        if circular and max(shape) > 30:
            continue
        yield Case(
            f"{shape} window {window} {sorted(params)}",
            arguments(shape, window, rng, circular),
            {"window": window, **params},
            terms=samples(window),
            broadcast_axis=None,
        )


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
@pytest.mark.parametrize("circular", [False, True])
def test_kernels_of_devices_against_the_reference(circular: bool) -> None:
    emulated = replace(
        spec(circular),
        cases=lambda rng: few_cases(rng, circular),
        layouts=("C", "negative"),
        emulated=True,
    )
    found = run_op_checks(emulated, backends=["emu"], libraries=["numpy"], thread_counts=(1,))
    assert found.failures == 0


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
@pytest.mark.parametrize("part", [0, 1])
def test_broken_gradients_and_windows_on_devices(part: int) -> None:
    rng = np.random.default_rng(7)
    image, *gradients = arguments((9, 10, 2), 3, rng)
    image[1, 1, 0] = np.nan
    gradients[part][6, 7] = np.inf
    gradients[part][1, 2] = np.nan  # its window has no result
    want = backward(image, *gradients, window=3)
    with backend("emu"):
        found = backward(image, *gradients, window=3)
    held = np.zeros((9, 10), bool)
    held[5:8, 6:9] = True
    np.testing.assert_array_equal(np.isnan(found).all(axis=-1), held)
    largest = np.nanmax(np.abs(want))
    np.testing.assert_allclose(found, want, rtol=0, atol=tolerance(np.float64, terms=9) * largest)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 12),
    cols=st.integers(1, 45),
    bands=st.integers(1, 4),
    outer=st.integers(0, 5),
    guard=st.integers(-1, 4),
    border=st.sampled_from(["shift", "reflect", "valid"]),
    seed=st.integers(0, 2**16),
)
def test_is_the_adjoint_of_the_change(
    rows: int, cols: int, bands: int, outer: int, guard: int, border: str, seed: int
) -> None:
    outer = min(2 * outer + 1, rows - 1 + rows % 2, cols - 1 + cols % 2)
    inner = 2 * guard + 1
    window: Any = (inner, outer) if 0 < inner < outer else outer
    ddof = 0 if outer == 1 else 1
    rng = np.random.default_rng(seed)
    image, mean, covariance = arguments((rows, cols, bands), window, rng)
    step = rng.standard_normal(image.shape)
    gradient = backward(image, mean, covariance, window=window, border=border, ddof=ddof)
    # S is quadratic and m linear in the image, so the central difference is the derivative.
    plus, minus = (
        mahal.local_covariance(image + s * step, window, border=border, ddof=ddof) for s in (1, -1)
    )
    changes = [np.nan_to_num((p - m) / 2) for p, m in zip(plus, minus, strict=True)]
    found = (gradient * step).sum()
    terms = [(mean * changes[0]).sum(), (covariance * changes[1]).sum()]
    bound = np.abs(mean * changes[0]).sum() + np.abs(covariance * changes[1]).sum()
    bound += np.abs(gradient * step).sum() + np.abs(mean).sum() + np.abs(covariance).sum()
    bound *= max(1.0, float(np.abs(image).max()), float(np.abs(step).max())) ** 2
    assert abs(found - sum(terms)) <= tolerance(np.float64, terms=samples(window)) * bound


def test_one_window_by_hand() -> None:
    # f = m: every sample gets 1 / n. f = S: 2 (x - m) / (n - 1).
    image = np.arange(9.0).reshape(3, 3, 1)
    alone = np.zeros((3, 3, 1))
    alone[1, 1] = 1.0
    found = backward(image, alone, None, window=(1, 3))
    expected = np.full((3, 3, 1), 1 / 8)
    expected[1, 1] = 0.0
    np.testing.assert_allclose(found, expected, rtol=4e-16, atol=0)
    found = backward(image, None, alone[..., None], window=(1, 3), border="valid")
    expected = 2 * (image - 4.0) / 7
    np.testing.assert_allclose(found, expected, rtol=0, atol=4e-16)


def test_an_offset_costs_no_digits() -> None:
    rng = np.random.default_rng(1)
    image, mean, covariance = arguments((20, 30, 3), 7, rng)
    plain = backward(image, mean, covariance, window=7)
    for far, dtype in ((2.0**20, np.float64), (2.0**10, np.float32)):
        # Rounded to multiples that both images can hold.
        spacing = np.spacing(dtype(4 * far))
        near = np.round(image / spacing) * spacing
        want = backward(near, mean, covariance, window=7)
        found = backward(
            (near + far).astype(dtype), mean.astype(dtype), covariance.astype(dtype), window=7
        )
        allowed = tolerance(dtype, terms=49) * np.abs(want).max()
        np.testing.assert_allclose(found, want, rtol=0, atol=allowed)
    assert np.isfinite(plain).all()


def test_windows_without_a_result_pass_nothing() -> None:
    rng = np.random.default_rng(2)
    image, _, covariance = arguments((12, 13, 2), 5, rng)
    image[6, 6, 1] = np.inf
    mask = rng.random((12, 13)) < 0.9
    mask[6, 6] = True
    mask[0:5, 0:5] = False
    for arguments_of_call in ({"window": 5}, {"window": 5, "border": "valid"}):
        _, of_result = mahal.local_covariance(image, mask=mask, **arguments_of_call)
        broken = np.isnan(of_result).any(axis=(-2, -1))
        assert broken.any()
        few = covariance.copy()
        few[broken] = np.nan
        found = backward(image, None, few, mask=mask, **arguments_of_call)
        assert np.isfinite(found).all()
        assert (found[~mask] == 0).all()
        assert (found[6, 6] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_gradient_stays_in_its_window(value: float) -> None:
    image, mean, covariance = arguments((40, 70, 2), 5, np.random.default_rng(3))
    clean = backward(image, mean, covariance, window=(1, 5))
    for gradient in (mean, covariance):
        kept = gradient[20, 30].copy()
        gradient[20, 30] = value
        found = backward(image, mean, covariance, window=(1, 5))
        gradient[20, 30] = kept
        held = np.zeros((40, 70), bool)
        held[18:23, 28:33] = True
        held[20, 30] = False
        np.testing.assert_array_equal(np.isnan(found).all(axis=-1), held)
        # Other windows lose the finite parts of this one alone.
        np.testing.assert_array_equal(found[:17], clean[:17])
        assert np.isfinite(found[~held]).all()


def test_expanded_gradients_need_no_copy() -> None:
    image, _, covariance = arguments((8, 9, 2), 3, np.random.default_rng(4))
    for one in (np.float64(0.5), covariance[:1, :1], covariance[:1, :1, :, :1]):
        wide = np.broadcast_to(one, covariance.shape)
        np.testing.assert_array_equal(
            backward(image, None, wide, window=3), backward(image, None, wide.copy(), window=3)
        )


def test_wrong_arguments() -> None:
    image, mean, covariance = arguments((8, 9, 2), 3, np.random.default_rng(5))
    with pytest.raises(ValueError, match=r"local_covariance_backward: mean_gradient: must have sh"):
        backward(image, mean[:-1], covariance, window=3)
    with pytest.raises(TypeError, match=r"covariance_gradient: must have the dtype of image"):
        backward(image, mean, covariance.astype(np.float32), window=3)
    with pytest.raises(ValueError, match=r"window: must not be larger than the image"):
        backward(image, mean, covariance, window=11)
    with pytest.raises(ValueError, match=r"workspace: must have at least"):
        _core.local_covariance_backward(
            image,
            None,
            mean[:, :, None],
            None,
            np.empty_like(image),
            np.empty(8, np.uint8),
            [(0, 3)],
            "shift",
            1,
            True,
            0,
            0,
        )

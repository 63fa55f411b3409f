"""Gradients of structural_similarity: reference, differences, borders, missing values, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.ops.structural_similarity_backward import structural_similarity_backward
from mahal.testing import Case, OpSpec, run_op_checks, tolerance
from mahal.testing import reference_change_backward as reference

BORDERS = ("reflect", "clip", "shift", "valid")


def pair(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Any, Any]:
    """An image and a noisy, darker copy."""
    first = 100.0 + 20.0 * rng.standard_normal(shape)
    return first, 0.8 * first + 8.0 * rng.standard_normal(shape)


@pytest.fixture(params=[name for name in mahal.testing.backends() if name != "cuda"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Host arrays on the CPU kernels, and through the CUDA kernels where the emulator is."""
    with mahal.testing.backend(request.param):
        yield request.param


def gradients(
    first: Any,
    second: Any,
    grad: Any,
    window: int = 7,
    *,
    data_range: float = 200.0,
    sigma: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    ddof: int | None = None,
    border: str = "reflect",
    needs: tuple[bool, bool] = (True, True),
) -> Any:
    degrees = (0 if sigma else 1) if ddof is None else ddof
    plain = grad.contiguous() if hasattr(grad, "contiguous") else np.ascontiguousarray(grad)
    constants = (window, sigma or 0.0, data_range, k1, k2, degrees, border)
    return structural_similarity_backward(first, second, plain, constants, 0, needs)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, window, params in [
        ((12, 21, 1), 7, {}),
        ((9, 10, 2), 5, {"sigma": 1.5}),
        ((11, 12, 1), 11, {"sigma": 1.5, "border": "clip"}),
        ((12, 9, 2), 3, {"border": "clip"}),
        ((9, 13, 1), 9, {"border": "shift", "ddof": 0}),
        ((7, 20, 1), 5, {"border": "valid", "k1": 0.02, "k2": 0.1}),
        ((9, 9, 1), 9, {}),
        ((4, 3, 1), 1, {"ddof": 0}),
    ]:
        yield Case(
            f"{shape} window {window} {sorted(params)}",
            (*pair(shape, rng), rng.standard_normal(shape)),
            {"window": window, "data_range": 200.0, **params},
            # As of the score, whose spread stands in the denominator once more.
            condition=100.0,
            terms=window,
            broadcast_axis=None,
        )


SPEC = OpSpec(
    name="structural_similarity_backward",
    function=gradients,
    reference=reference.structural_similarity_backward,
    cases=cases,
    layouts=("C", "F", "negative"),
    emulated=True,
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("sigma", [None, 1.5])
@pytest.mark.usefixtures("everywhere")
def test_differences_over_several_tiles(border: str, sigma: float | None) -> None:
    rng = np.random.default_rng(1)
    first, second = pair((50, 139, 1), rng)
    grad = rng.standard_normal(first.shape)
    params: dict[str, Any] = {"data_range": 200.0, "sigma": sigma, "border": border}
    found = gradients(first, second, grad, **params)
    size = 1e-3
    for k in range(2):
        step = [0.0, 0.0]
        step[k] = size * rng.standard_normal(first.shape)
        scores = [
            mahal.structural_similarity(
                first + s * step[0], second + s * step[1], 7, channels="each", **params
            )
            for s in (1, -1)
        ]
        change = np.nansum(grad * (scores[0] - scores[1])) / 2
        # Relative to the deviation of the second image, 8: two more steps of its size; and the
        # rounding of so many scores.
        allowed = (size / 8) ** 2 * np.abs(found[k]).sum() * size + tolerance(
            float, condition=100.0
        ) * np.sqrt(grad.size)
        assert (found[k] * step[k]).sum() == pytest.approx(change, abs=allowed)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.usefixtures("everywhere")
def test_identical_images_are_a_maximum(border: str) -> None:
    first, _ = pair((20, 30, 2), np.random.default_rng(2))
    found = gradients(first, first.copy(), np.ones_like(first), border=border)
    # Terms of the size of 1 / deviation cancel.
    np.testing.assert_allclose(found, 0, rtol=0, atol=tolerance(float, condition=100.0) / 20)


@pytest.mark.usefixtures("everywhere")
def test_an_offset_costs_no_digits() -> None:
    """Variances are about the mean: the gradient by structure does not see a level."""
    rng = np.random.default_rng(3)
    first, second = pair((40, 70, 1), rng)
    grad = rng.standard_normal(first.shape)
    # Large constants make the means irrelevant.
    params: dict[str, Any] = {"k1": 1e9, "data_range": 200.0}
    plain = gradients(first, second, grad, **params)
    moved = gradients(first + 1e6, second + 1e6, grad, **params)
    for one, other in zip(plain, moved, strict=True):
        allowed = tolerance(float, condition=1e6) * np.abs(one).max()
        np.testing.assert_allclose(other, one, rtol=0, atol=allowed)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.usefixtures("everywhere")
def test_missing_values(border: str) -> None:
    rng = np.random.default_rng(4)
    first, second = pair((30, 90, 2), rng)
    grad = rng.standard_normal(first.shape)
    right = gradients(first, second, grad, 5, border=border)
    first[12, 70, 0] = np.nan
    second[20, 8, 1] = np.inf
    found = gradients(first, second, grad, 5, border=border)
    near = np.zeros(first.shape, dtype=bool)
    near[8:17, 66:75, 0] = True
    near[16:25, 4:13, 1] = True
    for got, want in zip(found, right, strict=True):
        np.testing.assert_array_equal(np.isnan(got), near)
        np.testing.assert_allclose(got[~near], want[~near], rtol=1e-9, atol=1e-12)
    # A loss over the scores that are there.
    score = mahal.structural_similarity(
        first, second, 5, data_range=200.0, border=border, channels="each"
    )
    grad[np.isnan(score)] = 0
    assert np.isfinite(gradients(first, second, grad, 5, border=border)).all()


@pytest.mark.usefixtures("everywhere")
def test_one_gradient_alone() -> None:
    first, second = pair((9, 12, 1), np.random.default_rng(5))
    both = gradients(first, second, np.ones_like(first))
    only, none = gradients(first, second, np.ones_like(first), needs=(True, False))
    assert none is None
    np.testing.assert_array_equal(only, both[0])
    _, only = gradients(first, second, np.ones_like(first), needs=(False, True))
    np.testing.assert_array_equal(only, both[1])


def test_errors() -> None:
    first, second = pair((9, 12, 1), np.random.default_rng(6))
    with pytest.raises(ValueError, match=r"grad: must have shape \(9, 12, 1\), got \(9, 12, 2\)"):
        gradients(first, second, np.ones((9, 12, 2)))
    with pytest.raises(TypeError, match="grad: must have the dtype of first"):
        gradients(first, second, np.ones((9, 12, 1), np.float32))
    with pytest.raises(ValueError, match="window: must not be larger than the image"):
        gradients(first, second, np.ones_like(first), 11)

"""structural_similarity: reference, scikit-image, closed forms, borders, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import Case, OpSpec, random_scene, run_op_checks, tolerance
from mahal.testing import reference_change as reference


def pair(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image and a noisy, darker copy."""
    first = random_scene((*shape, 1)[: len(shape) + 1], rng, offset=100.0, scale=20.0)[..., 0]
    return first, 0.8 * first + 8.0 * rng.standard_normal(shape)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, window, params in [
        ((12, 21), 7, {}),
        ((9, 10, 3), 5, {"sigma": 1.5}),
        ((11, 12, 2), 11, {"sigma": 1.5, "border": "clip", "channels": "each"}),
        ((12, 9, 2), 3, {"border": "clip"}),
        ((14, 13), 9, {"border": "shift", "ddof": 0}),
        ((9, 40, 1), 5, {"border": "valid", "k1": 0.02, "k2": 0.1}),
        ((4, 3), 1, {"ddof": 0}),
    ]:
        yield Case(
            f"{shape} window {window} {sorted(params)}",
            pair(shape, rng),
            {"window": window, "data_range": 200.0, **params},
            # Rounding of the pixels against the smallest spread, that of C2.
            condition=30.0,
            terms=window,
        )


def at_most_one(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    score = outputs[0][~np.isnan(outputs[0])]
    assert score.max() <= 1 + tolerance(outputs[0].dtype)


SPEC = OpSpec(
    name="structural_similarity",
    function=lambda first, second, **params: mahal.structural_similarity(first, second, **params),
    reference=reference.structural_similarity,
    cases=cases,
    invariants=[at_most_one],
    promoted=(np.uint8,),
    emulated=True,
)


@pytest.fixture(params=[name for name in mahal.testing.backends() if name != "cuda"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Host arrays on the CPU kernels, and through the CUDA kernels where the emulator is."""
    with mahal.testing.backend(request.param):
        yield request.param


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


def test_scikit_image_agrees() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    first, second = pair((40, 50, 3), np.random.default_rng(1))
    common: dict[str, Any] = {"data_range": 255.0, "channel_axis": -1, "full": True}
    for ours, theirs, half in [
        ({}, {}, 3),
        ({"window": 11, "ddof": 0}, {"win_size": 11, "use_sample_covariance": False}, 5),
        # As in the source.
        (
            {"sigma": 1.5},
            {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False},
            5,
        ),
    ]:
        options: dict[str, Any] = {**common, **theirs}
        mean, expected = metrics.structural_similarity(first, second, **options)
        found = mahal.structural_similarity(
            first, second, data_range=255.0, channels="each", **ours
        )
        # Their mirror repeats the edge pixels.
        inside = np.s_[half:-half, half:-half]
        allowed = tolerance(float, condition=100.0, terms=121)
        np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=allowed)
        assert found[inside].mean() == pytest.approx(mean, abs=allowed)


@pytest.mark.parametrize("border", ["reflect", "clip", "shift", "valid"])
@pytest.mark.parametrize("sigma", [None, 1.5])
def test_closed_forms(everywhere: str, border: str, sigma: float | None) -> None:
    first, second = pair((30, 80), np.random.default_rng(2))
    params: dict[str, Any] = {"data_range": 255.0, "border": border, "sigma": sigma}
    allowed = tolerance(float, condition=100.0, terms=49)
    own = mahal.structural_similarity(first, first, **params)
    assert np.isnan(own).any() == (border == "valid")
    np.testing.assert_allclose(own[~np.isnan(own)], 1.0, rtol=allowed)
    np.testing.assert_allclose(
        mahal.structural_similarity(first, second, **params),
        mahal.structural_similarity(second, first, **params),
        rtol=0,
        atol=allowed,
    )
    # Constant images: what is left is the comparison of the means.
    flat = mahal.structural_similarity(np.full((30, 80), 100.0), np.full((30, 80), 50.0), **params)
    c1 = (0.01 * 255.0) ** 2
    expected = (2 * 100 * 50 + c1) / (100**2 + 50**2 + c1)
    np.testing.assert_allclose(flat[~np.isnan(flat)], expected, rtol=allowed)


def test_it_is_the_local_covariance_of_two_channels() -> None:
    first, second = pair((20, 22), np.random.default_rng(3))
    mean, covariance = mahal.local_covariance(np.stack([first, second], -1), 7, border="reflect")
    c1, c2 = (0.01 * 200) ** 2, (0.03 * 200) ** 2
    variances = covariance[..., 0, 0] + covariance[..., 1, 1]
    expected = (2 * mean[..., 0] * mean[..., 1] + c1) * (2 * covariance[..., 0, 1] + c2)
    expected /= ((mean**2).sum(-1) + c1) * (variances + c2)
    found = mahal.structural_similarity(first, second, 7, data_range=200.0)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=tolerance(float, condition=100.0, terms=49)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sigma", [None, 1.5])
@pytest.mark.parametrize("border", ["reflect", "clip", "shift", "valid"])
def test_values_that_are_not_finite_cost_their_windows(
    everywhere: str, border: str, sigma: float | None, value: float, dtype: Any
) -> None:
    first, second = (image.astype(dtype) for image in pair((20, 90), np.random.default_rng(4)))
    params: dict[str, Any] = {"window": 5, "data_range": 200.0, "border": border, "sigma": sigma}
    before = mahal.structural_similarity(first, second, **params)
    first[10, 40] = value
    second[4, 80] = value
    after = mahal.structural_similarity(first, second, **params)
    bad = np.isnan(before)
    bad[8:13, 38:43] = bad[2:7, 78:83] = True
    if border == "shift":  # windows of the first rows slide down to the fifth
        bad[:2, 78:83] = True
    np.testing.assert_array_equal(np.isnan(after), bad)
    np.testing.assert_allclose(after[~bad], before[~bad], rtol=tolerance(dtype, condition=1e3))


@pytest.mark.parametrize(
    ("shape", "params", "argument"),
    [
        ((9,), {}, "first"),
        ((0, 9), {}, "first"),
        ((9, 9), {"window": 4}, "window"),
        ((9, 9), {"window": 11}, "window"),
        ((9, 9), {"window": 1}, "ddof"),
        ((9, 9), {"ddof": -1}, "ddof"),
        ((9, 9), {"data_range": 0.0}, "data_range"),
        ((9, 9), {"data_range": np.nan}, "data_range"),
        ((9, 9), {"k1": 0.0}, "k1"),
        ((9, 9), {"sigma": 0.0, "window": 5}, "sigma"),
        ((9, 9), {"border": "wrap"}, "border"),
        ((9, 9), {"channels": "first"}, "channels"),
    ],
)
def test_bad_values(shape: tuple[int, ...], params: dict[str, Any], argument: str) -> None:
    image = np.ones(shape)
    options: dict[str, Any] = {"data_range": 1.0, **params}
    with pytest.raises(ValueError, match=rf"^structural_similarity: {argument}: .*, got .*$"):
        mahal.structural_similarity(image, image, **options)


def test_bad_types() -> None:
    image = np.ones((9, 9))
    with pytest.raises(TypeError, match=r"^structural_similarity: first: .*, got complex128$"):
        mahal.structural_similarity(image + 1j, image + 1j, data_range=1.0)
    with pytest.raises(TypeError, match=r"^structural_similarity: second: .*, got float32$"):
        mahal.structural_similarity(image, image.astype(np.float32), data_range=1.0)
    with pytest.raises(TypeError, match=r"^structural_similarity: ddof: .*, got 0.5$"):
        mahal.structural_similarity(image, image, data_range=1.0, ddof=0.5)  # type: ignore[arg-type]

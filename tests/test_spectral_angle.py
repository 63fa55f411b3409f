"""spectral_angle: reference, closed forms, both ends of the range, errors."""

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
    reference_matched,
    run_op_checks,
    tolerance,
)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, targets in [
        ((9, 11, 5), ()),
        ((700, 3), (4,)),
        ((8, 7, 1), (1,)),
        ((30, 1, 33), (2,)),
    ]:
        yield Case(
            f"{shape} {targets}",
            (
                random_scene(shape, rng, offset=3.0),
                random_scene((*targets, shape[-1]), rng, offset=-2.0),
            ),
            # An angle near 0 is as good as its chord: rounding of two unit vectors.
            terms=2 * shape[-1],
        )


SPEC = OpSpec(
    name="spectral_angle",
    function=mahal.spectral_angle,
    reference=reference_matched.spectral_angle,
    cases=cases,
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


needs_emulator = pytest.mark.skipif(
    not mahal.info()["emulator"], reason="needs a build with the emulator"
)


def few_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in cases(rng):
        image, target = case.arrays
        yield replace(case, arrays=(image[:40], target))


@needs_emulator
def test_the_cuda_kernels_against_the_reference() -> None:
    spec = replace(SPEC, cases=few_cases, emulated=True)
    run_op_checks(spec, backends=["emu"], libraries=["numpy"], thread_counts=())


@pytest.mark.cuda
def test_on_a_device_against_the_reference() -> None:
    run_op_checks(replace(SPEC, emulated=True), backends=["cuda"])


@needs_emulator
def test_the_cuda_kernels_give_nan_where_there_is_no_angle() -> None:
    image = np.array([[1.0, 0.0], [-3.0, 0.0], [0.0, 0.0], [np.nan, 1.0], [1e300, 1e300]])
    targets = np.array([[5.0, 0.0], [0.0, 0.0], [np.inf, 1.0]])
    with backend("emu"):
        angles = mahal.spectral_angle(image, targets)
    expected = [0.0, np.pi, np.nan, np.nan, np.pi / 4]
    np.testing.assert_allclose(angles[:, 0], expected, rtol=tolerance(np.float64))
    assert np.isnan(angles[:, 1:]).all()


@needs_emulator
def test_bands_beyond_shared_memory() -> None:
    rng = np.random.default_rng(7)
    image, target = rng.standard_normal((33, 500)), rng.standard_normal((2, 500))
    want = mahal.spectral_angle(image, target)
    with backend("emu"):
        found = mahal.spectral_angle(image, target)
    np.testing.assert_allclose(found, want, rtol=tolerance(np.float64, terms=500))


def test_angles_by_hand() -> None:
    image = np.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0], [0.0, 0.0], [np.nan, 1.0]])
    expected = [0.0, np.pi / 2, np.pi, np.pi / 4, np.nan, np.nan]
    angles = mahal.spectral_angle(image, np.array([5.0, 0.0]))
    np.testing.assert_allclose(angles, expected, rtol=tolerance(np.float64))


@pytest.mark.parametrize("small", [1e-4, 1e-7, 1e-10])
def test_small_angles_keep_their_digits(small: float) -> None:
    image = np.array([[np.cos(small), np.sin(small)], [-np.cos(small), np.sin(small)]])
    angles = mahal.spectral_angle(image, np.array([1.0, 0.0]))
    assert angles[0] == pytest.approx(small, rel=tolerance(np.float64))
    assert np.pi - angles[1] == pytest.approx(small, abs=tolerance(np.float64))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_scale_does_not_matter(scale: float) -> None:
    rng = np.random.default_rng(0)
    image, target = rng.random((20, 6)), rng.random(6)
    want = mahal.spectral_angle(image, target)
    allowed = tolerance(np.float64, terms=12)
    np.testing.assert_allclose(mahal.spectral_angle(scale * image, target), want, atol=allowed)
    np.testing.assert_allclose(mahal.spectral_angle(image, scale * target), want, atol=allowed)


def test_several_targets_are_single_ones_side_by_side() -> None:
    rng = np.random.default_rng(1)
    image, targets = rng.random((1, 9, 6)), rng.random((3, 6))
    angles = mahal.spectral_angle(image, targets)
    assert angles.shape == (1, 9, 3)
    for k in range(3):
        np.testing.assert_array_equal(angles[..., k], mahal.spectral_angle(image, targets[k]))
    assert mahal.spectral_angle(image, targets[:1]).shape == (1, 9, 1)


def test_integers_are_promoted() -> None:
    rng = np.random.default_rng(3)
    image, target = rng.integers(1, 200, (6, 5, 4)), rng.integers(1, 200, 4)
    angles = mahal.spectral_angle(image.astype(np.uint16), target.astype(np.uint16))
    assert angles.dtype == np.float32
    want = reference_matched.spectral_angle(image, target)
    np.testing.assert_allclose(angles, want, atol=tolerance(np.float32, terms=8))


IMAGE = random_scene((5, 6, 3), np.random.default_rng(2))


@pytest.mark.parametrize(
    ("image", "target", "argument"),
    [
        (IMAGE[0, 0], IMAGE[0, 0], "image"),
        (IMAGE[:0], IMAGE[0, 0], "image"),
        (IMAGE, IMAGE[0, 0, :2], "target"),
        (IMAGE, IMAGE, "target"),
        (IMAGE, IMAGE[0, :0], "target"),
        (IMAGE, np.zeros(3), "target"),
        (IMAGE, np.array([1.0, np.inf, 0.0]), "target"),
    ],
)
def test_bad_values(image: np.ndarray, target: np.ndarray, argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^spectral_angle: {argument}: .*, got .*$"):
        mahal.spectral_angle(image, target)


@pytest.mark.parametrize(
    ("image", "target", "argument"),
    [
        (IMAGE > 0, IMAGE[0, 0], "image"),
        (IMAGE, [1.0, 2.0, 3.0], "target"),
        (IMAGE.astype(complex), IMAGE[0, 0], "image"),
        (IMAGE, IMAGE[0, 0].astype(np.float32), "target"),
    ],
)
def test_bad_types(image: Any, target: Any, argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^spectral_angle: {argument}: .*, got .*$"):
        mahal.spectral_angle(image, target)

"""ace, matched_filter, cem: references, closed forms, invariances, degenerate input, errors."""

from __future__ import annotations

import itertools
import warnings
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
    reference_matched,
    run_op_checks,
    tolerance,
)

CONDITION = 50.0


def some_targets(image: np.ndarray, count: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Spectra a few standard deviations away from the mean."""
    parts = rng.standard_normal((2, *count, image.shape[-1]))
    return 100.0 + 40.0 * (parts[0] + 1j * parts[1] if np.iscomplexobj(image) else parts[0])


def cases_of(
    variants: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]],
    *,
    circular: bool = False,
) -> Any:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        for shape, count, params in variants:
            image = random_scene(shape, rng, circular=circular)
            for name in ("mask", "background", "covariance"):
                if params.get(name) == "random":
                    made = {
                        "mask": rng.random(shape[:-1]) < 0.8,
                        "background": random_scene((20, 11, shape[-1]), rng, circular=circular),
                        "covariance": 400
                        * random_spd(shape[-1], CONDITION, rng, hermitian=circular),
                    }
                    params = {**params, name: made[name]}
            label = " ".join(k for k in params)
            window = params.get("window", shape[-2])
            columns = window[1] if isinstance(window, tuple) else window
            yield Case(
                f"{shape} {count} {label} {params.get('window', '')} {params.get('border', '')}",
                (image, some_targets(image, count, rng)),
                {"return_status": True, **params},
                condition=CONDITION,
                terms=max(2 * shape[-1], columns),
                # Repeated rows leave as many distinct pixels as the statistics have columns.
                broadcast_axis=0 if len(shape) == 3 and columns > 2 * shape[2] else None,
            )

    return cases


def with_status(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda image, target, return_status, **params: function(image, target, **params)


def cosines_have_a_range(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    scores, status = outputs
    regular = scores[status == 0]
    assert (regular >= (-1 if case.params.get("signed") else 0)).all()
    assert (regular <= 1).all()


ACE = OpSpec(
    name="ace",
    function=mahal.ace,
    reference=with_status(reference_matched.ace),
    invariants=[cosines_have_a_range],
    cases=cases_of(
        [
            ((12, 15, 4), (), {}),
            ((60, 3), (2,), {}),
            ((9, 31, 1), (1,), {"signed": True}),
            ((40, 1, 5), (), {"signed": True}),
            ((22, 50, 20), (3,), {"signed": True}),
            ((12, 15, 4), (2,), {"subspace": True}),
            ((16, 18, 4), (), {"mask": "random"}),
            ((14, 13, 4), (3,), {"background": "random"}),
            ((14, 13, 4), (), {"covariance": "random"}),
            ((12, 15, 4), (), {"window": (1, 5)}),
            ((9, 23, 5), (3,), {"window": (3, 9), "signed": True}),
            ((9, 40, 6), (5,), {"window": 7, "border": "reflect"}),
            ((13, 14, 3), (2,), {"window": (1, 5), "border": "valid", "subspace": True}),
            ((22, 21, 20), (), {"window": (5, 9), "signed": True}),
            ((16, 18, 4), (2,), {"window": (3, 9), "mask": "random"}),
            ((14, 13, 4), (3,), {"window": (3, 7), "covariance": "random"}),
        ]
    ),
)

FILTER = OpSpec(
    name="matched_filter",
    function=mahal.matched_filter,
    reference=with_status(reference_matched.matched_filter),
    cases=cases_of(
        [
            ((12, 15, 4), (), {}),
            ((60, 3), (2,), {"normalized": True}),
            ((9, 31, 1), (1,), {}),
            ((22, 50, 20), (3,), {}),
            ((16, 18, 4), (), {"mask": "random"}),
            ((14, 13, 4), (3,), {"background": "random", "normalized": True}),
            ((14, 13, 4), (), {"covariance": "random"}),
            ((9, 23, 5), (3,), {"window": (3, 9)}),
            ((12, 15, 4), (), {"window": (1, 5), "normalized": True}),
            ((14, 13, 4), (2,), {"window": (3, 7), "covariance": "random", "normalized": True}),
        ]
    ),
)

COMPLEX_ACE = OpSpec(
    name="ace",
    function=mahal.ace,
    reference=with_status(reference_matched.ace),
    invariants=[cosines_have_a_range],
    dtypes=(np.complex64, np.complex128),
    cases=cases_of(
        [
            ((12, 15, 4), (), {}),
            ((9, 31, 1), (1,), {}),
            ((22, 50, 9), (3,), {"mask": "random"}),
            ((12, 15, 4), (2,), {"subspace": True}),
            ((14, 13, 4), (3,), {"background": "random"}),
            ((60, 3), (), {"covariance": "random"}),
            ((22, 21, 3), (2,), {"center": False}),
            ((14, 13, 3), (2,), {"window": (3, 7), "covariance": "random"}),
            ((9, 8, 3), (2,), {"window": 5, "covariance": "random", "subspace": True}),
        ],
        circular=True,
    ),
)

COMPLEX_FILTER = OpSpec(
    name="matched_filter",
    function=mahal.matched_filter,
    reference=with_status(reference_matched.matched_filter),
    dtypes=(np.complex64, np.complex128),
    cases=cases_of(
        [
            ((12, 15, 4), (2,), {}),
            ((40, 1, 3), (), {"normalized": True, "center": False}),
            ((60, 3), (), {"covariance": "random"}),
        ],
        circular=True,
    ),
)


def cem_cases(rng: np.random.Generator) -> Iterator[Case]:
    for case in cases_of(
        [
            ((12, 15, 4), (), {}),
            ((60, 3), (2,), {}),
            ((9, 31, 1), (1,), {"center": True}),
            ((16, 18, 4), (), {"mask": "random"}),
            ((14, 13, 4), (3,), {"background": "random"}),
        ]
    )(rng):
        # The mean is in the correlation matrix.
        samples = case.arrays[0].reshape(-1, case.arrays[0].shape[-1])
        condition = float(np.linalg.cond(samples.T @ samples))
        yield Case(
            case.label, case.arrays, case.params, max(condition, CONDITION), case.terms, None
        )


CEM = OpSpec(
    name="cem",
    function=mahal.cem,
    reference=with_status(reference_matched.cem),
    cases=cem_cases,
)


@pytest.mark.parametrize("spec", [ACE, FILTER, CEM, COMPLEX_ACE, COMPLEX_FILTER])
def test_against_the_reference(spec: OpSpec) -> None:
    assert run_op_checks(spec).failures == 0


needs_emulator = pytest.mark.skipif(
    not mahal.info()["emulator"], reason="needs a build with the emulator"
)
FEW_LAYOUTS = ("C", "sliced", "negative", "channel_first")

GLOBAL_ACE = replace(
    ACE,
    cases=cases_of(
        [
            ((12, 15, 4), (2,), {"mask": "random", "signed": True}),
            ((60, 20), (5,), {"background": "random"}),
            ((60, 3), (2,), {"covariance": "random", "subspace": True}),
        ]
    ),
)
GLOBAL_FILTER = replace(
    FILTER,
    cases=cases_of(
        [
            ((60, 20), (2,), {"mask": "random", "normalized": True}),
            ((14, 13, 4), (), {"covariance": "random"}),
        ]
    ),
)
GLOBAL_COMPLEX = replace(
    COMPLEX_ACE,
    cases=cases_of(
        [((12, 15, 3), (2,), {"subspace": True}), ((60, 9), (2,), {"center": False})],
        circular=True,
    ),
)
GLOBAL_COMPLEX_FILTER = replace(
    COMPLEX_FILTER, cases=cases_of([((12, 15, 3), (2,), {})], circular=True)
)
GLOBAL_CEM = replace(CEM, cases=lambda rng: itertools.islice(cem_cases(rng), 1, 2))


@needs_emulator
@pytest.mark.parametrize(
    "spec", [GLOBAL_ACE, GLOBAL_FILTER, GLOBAL_COMPLEX, GLOBAL_COMPLEX_FILTER, GLOBAL_CEM]
)
def test_global_scores_of_the_cuda_kernels_against_the_reference(spec: OpSpec) -> None:
    emulated = replace(spec, emulated=True, layouts=FEW_LAYOUTS)
    run_op_checks(emulated, backends=["emu"], libraries=["numpy"], thread_counts=())


@pytest.mark.cuda
@pytest.mark.parametrize(
    "spec", [GLOBAL_ACE, GLOBAL_FILTER, GLOBAL_COMPLEX, GLOBAL_COMPLEX_FILTER, GLOBAL_CEM]
)
def test_global_scores_on_a_device(spec: OpSpec) -> None:
    run_op_checks(replace(spec, emulated=True), backends=["cuda"])


@needs_emulator
@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
@pytest.mark.parametrize("bad", [0.0, np.nan])
def test_targets_without_a_direction_give_nan_on_a_device(bad: float) -> None:
    image = np.random.default_rng(11).standard_normal((40, 3))
    targets = np.array([[1.0, 2.0, 3.0], [bad, bad, bad]])
    want = mahal.ace(image, targets[:1], center=False)
    with backend("emu"):
        scores, status = mahal.ace(image, targets, center=False, return_status=True)
        alone = mahal.ace(image, targets, center=False, subspace=True)
    assert np.isnan(scores[:, 1]).all()
    assert np.isnan(alone).all()
    np.testing.assert_array_equal(status, 2)
    allowed = tolerance(np.float64, condition=CONDITION, terms=6)
    np.testing.assert_allclose(scores[:, :1], want, rtol=0, atol=allowed)


@pytest.mark.parametrize("name", ["ace", "matched_filter", "cem"])
def test_integer_images(name: str) -> None:
    rng = np.random.default_rng(0)
    image = np.rint(random_scene((12, 13, 4), rng)).astype(np.uint16)
    target = np.array([150, 90, 120, 60], dtype=np.uint16)
    scores = getattr(mahal, name)(image, target)
    want, _ = getattr(reference_matched, name)(image, target)
    assert scores.dtype == np.float32
    allowed = tolerance(np.float32) * np.abs(want).max()
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


def test_two_bands_by_hand() -> None:
    # Mean 0, covariance diag(8, 2) / 3.
    image = np.array([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    target = np.array([2.0, 1.0])
    # Whitened by the covariance, the target points along (1, 1).
    allowed = tolerance(np.float64)
    np.testing.assert_allclose(mahal.ace(image, target), [0.5] * 4, rtol=allowed)
    signed = mahal.ace(image, target, signed=True)
    np.testing.assert_allclose(signed, np.sqrt([0.5] * 4) * [1, -1, 1, -1], rtol=allowed)
    np.testing.assert_allclose(
        mahal.matched_filter(image, target), [0.5, -0.5, 0.5, -0.5], rtol=allowed
    )
    # |w|^2 = 4 * 3 / 8 + 3 / 2 = 3.
    np.testing.assert_allclose(
        mahal.matched_filter(image, target, normalized=True),
        np.sqrt(3) * np.array([0.5, -0.5, 0.5, -0.5]),
        rtol=allowed,
    )
    np.testing.assert_allclose(mahal.cem(image, target), [0.5, -0.5, 0.5, -0.5], rtol=allowed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_target_itself_its_opposite_and_the_mean(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    background = random_scene((400, 6), rng).astype(dtype)
    mean, _ = reference.mean_covariance(background)
    target = (100.0 + 40.0 * rng.standard_normal(6)).astype(dtype)
    opposite = (2 * mean - target).astype(dtype)
    image = np.stack([target, opposite, mean.astype(dtype)])
    # Rounding of the pixels, against a target several deviations away.
    allowed = tolerance(dtype, condition=CONDITION, terms=12)
    scores = mahal.ace(image, target, background=background)
    np.testing.assert_allclose(scores[:2], [1, 1], atol=allowed)
    scores = mahal.ace(image, target, background=background, signed=True)
    np.testing.assert_allclose(scores[:2], [1, -1], atol=allowed)
    scores = mahal.matched_filter(image, target, background=background)
    np.testing.assert_allclose(scores, [1, -1, 0], atol=allowed)
    assert mahal.cem(image, target, background=background)[0] == pytest.approx(1, abs=allowed * 1e3)


def test_a_pixel_on_the_mean_scores_zero() -> None:
    background = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    image = np.array([[0.0, 0.0], [3.0, 4.0]])
    for params in ({}, {"signed": True}, {"subspace": True}):
        scores = mahal.ace(image, np.array([[3.0, 4.0]]), background=background, **params)
        assert scores.ravel()[0] == 0.0
        assert scores.ravel()[1] == pytest.approx(1.0, abs=tolerance(np.float64))


def test_one_band() -> None:
    image = random_scene((9, 8, 1), np.random.default_rng(2))
    np.testing.assert_array_equal(mahal.ace(image, np.array([300.0])), 1.0)
    signed = mahal.ace(image, np.array([300.0]), signed=True)
    np.testing.assert_array_equal(signed, np.sign(image[..., 0] - image.mean()))


def test_affine_invariance_at_large_offset_and_scale() -> None:
    rng = np.random.default_rng(3)
    image = random_scene((20, 22, 4), rng, offset=0.0, scale=1.0)
    target = rng.standard_normal(4)
    matrix, shift = 1e6 * random_spd(4, 10.0, rng), 1e7 * rng.standard_normal(4)
    moved, aim = image @ matrix.T + shift, matrix @ target + shift
    # The map costs the digits by which its offset exceeds the quietest direction.
    allowed = tolerance(np.float64, condition=10 * 10 * CONDITION * 10, terms=9)
    for function in (mahal.ace, mahal.matched_filter):
        want = function(image, target)
        np.testing.assert_allclose(
            function(moved, aim), want, rtol=0, atol=allowed * np.abs(want).max()
        )


def test_the_scale_of_the_covariance_does_not_matter_to_ace_and_the_filter() -> None:
    rng = np.random.default_rng(4)
    image, target = random_scene((12, 11, 5), rng), 50 * rng.standard_normal(5)
    covariance = 400 * random_spd(5, CONDITION, rng)
    allowed = tolerance(np.float64, condition=CONDITION, terms=10)
    for function in (mahal.ace, mahal.matched_filter):
        want = function(image, target, covariance=covariance)
        again = function(image, target, covariance=1e9 * covariance)
        np.testing.assert_allclose(again, want, atol=allowed * np.abs(want).max())
    # The normalised filter is in standard deviations.
    plain = mahal.matched_filter(image, target, covariance=covariance, normalized=True)
    again = mahal.matched_filter(image, target, covariance=4 * covariance, normalized=True)
    np.testing.assert_allclose(again, plain / 2, atol=allowed * np.abs(plain).max())


@pytest.mark.parametrize("name", ["ace", "matched_filter"])
def test_large_offset_costs_no_accuracy(name: str) -> None:
    rng = np.random.default_rng(5)
    image = random_scene((30, 24, 5), rng, offset=1e4, scale=1.0).astype(np.float32)
    target = (1e4 + 3 * rng.standard_normal(5)).astype(np.float32)
    want, _ = getattr(reference_matched, name)(image, target)
    # The statistics are float64: what is left is the rounding of the result.
    allowed = tolerance(np.float32) * np.abs(want).max()
    np.testing.assert_allclose(getattr(mahal, name)(image, target), want, rtol=0, atol=allowed)


def test_the_normalized_filter_has_the_variance_one() -> None:
    rng = np.random.default_rng(6)
    image, target = random_scene((30, 31, 5), rng), rng.standard_normal(5)
    scores = mahal.matched_filter(image, target, normalized=True)
    allowed = tolerance(np.float64, condition=CONDITION, terms=30)
    assert scores.mean() == pytest.approx(0.0, abs=allowed)
    assert scores.var(ddof=1) == pytest.approx(1.0, abs=allowed)


def test_centred_cem_is_the_matched_filter() -> None:
    rng = np.random.default_rng(7)
    image, target = random_scene((14, 15, 4), rng), rng.standard_normal(4)
    np.testing.assert_array_equal(
        mahal.cem(image, target, center=True), mahal.matched_filter(image, target)
    )


def test_cem_has_the_least_power_of_all_filters_that_pass_the_target() -> None:
    rng = np.random.default_rng(8)
    image, target = random_scene((300, 4), rng, offset=10.0), rng.random(4)
    power = (mahal.cem(image, target) ** 2).sum()
    for _ in range(20):
        other = rng.standard_normal(4)
        other /= other @ target
        assert ((image @ other) ** 2).sum() > power


def test_several_targets_are_single_ones_side_by_side() -> None:
    rng = np.random.default_rng(9)
    image, targets = random_scene((1, 40, 4), rng), 50 * rng.standard_normal((3, 4))
    for function in (mahal.ace, mahal.matched_filter, mahal.cem):
        scores = function(image, targets)
        assert scores.shape == (1, 40, 3)
        for k in range(3):
            np.testing.assert_array_equal(scores[..., k], function(image, targets[k]))
        assert function(image, targets[:1]).shape == (1, 40, 1)
        assert function(image[0], targets[:1]).shape == (40, 1)


def test_a_subspace_of_one_target_is_that_target() -> None:
    rng = np.random.default_rng(10)
    image, target = random_scene((12, 13, 5), rng), 50 * rng.standard_normal(5)
    scores = mahal.ace(image, target, subspace=True)
    allowed = tolerance(np.float64, terms=5)
    np.testing.assert_allclose(scores, mahal.ace(image, target), rtol=0, atol=allowed)


def test_subspaces() -> None:
    rng = np.random.default_rng(11)
    image, targets = random_scene((12, 13, 5), rng), 50 * rng.standard_normal((5, 5))
    allowed = tolerance(np.float64, condition=CONDITION, terms=25)
    scores = mahal.ace(image, targets[:3], subspace=True)
    assert scores.shape == (12, 13)
    # The space matters, not the spectra that name it: mixtures whose weights sum to one.
    mix = rng.standard_normal((3, 3))
    mix /= mix.sum(axis=1, keepdims=True)
    mixed = mahal.ace(image, mix @ targets[:3], subspace=True)
    np.testing.assert_allclose(mixed, scores, atol=allowed * np.linalg.cond(mix))
    # It grows with the targets, up to the whole space.
    assert (scores >= mahal.ace(image, targets[:3]).max(axis=-1) - allowed).all()
    np.testing.assert_allclose(mahal.ace(image, targets, subspace=True), 1.0, atol=allowed)


@pytest.mark.parametrize("name", ["ace", "matched_filter", "cem"])
@pytest.mark.parametrize("rule", ["load", "nan", "raise"])
def test_singular_images(name: str, rule: str) -> None:
    rng = np.random.default_rng(12)
    image = random_scene((12, 13, 3), rng)
    # The offset keeps cem apart: its correlation matrix tells a constant band from nothing.
    spoiled = np.concatenate([image, image[..., 1:2]], axis=2)
    target = 50 * rng.standard_normal(3)
    aim = np.append(target, target[1])
    function = getattr(mahal, name)
    if rule == "raise":
        with pytest.raises(mahal.SingularError, match=rf"^{name}: .*\b156\b.*$"):
            function(spoiled, aim, singular=rule)
        return
    with pytest.warns(mahal.SingularWarning, match=rf"^{name}: 156 of 156") as caught:
        scores, status = function(spoiled, aim, singular=rule, return_status=True)
    assert caught[0].filename == __file__
    assert (status == reference.SINGULAR).all()
    if rule == "nan":
        assert np.isnan(scores).all()
        return
    plain = function(image, target)
    # A loading of 1e-10 on the mean variance, against the quietest direction.
    ratio = 1e4 if name == "cem" else 1.0
    np.testing.assert_allclose(
        scores, plain, rtol=0, atol=1e-10 * ratio * CONDITION * 10 * np.abs(plain).max()
    )


def test_a_constant_image() -> None:
    image = np.full((9, 8, 2), 0.1)
    with pytest.warns(mahal.SingularWarning, match=r"\b72\b"):
        scores = mahal.ace(image, np.array([1.0, 2.0]))
    np.testing.assert_array_equal(scores, 0.0)
    with pytest.raises(ValueError, match=r"^ace: target: must differ from the mean, got .*$"):
        mahal.ace(image, image[0, 0])


def test_regular_images_do_not_warn() -> None:
    rng = np.random.default_rng(13)
    image, target = random_scene((20, 20, 3), rng), rng.standard_normal(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (mahal.ace, mahal.matched_filter, mahal.cem):
            function(image, target)


@pytest.mark.parametrize("name", ["ace", "matched_filter", "cem"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pixels_that_are_not_finite_are_left_out(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(14)
    image = random_scene((15, 16, 3), rng).astype(dtype)
    target = (50 * rng.standard_normal((2, 3))).astype(dtype)
    spoiled = image.copy()
    spoiled[2, 3, 0] = np.nan
    spoiled[9, 1] = np.inf
    function = getattr(mahal, name)
    scores, status = function(spoiled, target, return_status=True)
    keep = np.ones((15, 16), dtype=bool)
    keep[2, 3] = keep[9, 1] = False
    np.testing.assert_array_equal(status, np.where(keep, reference.OK, reference.NON_FINITE))
    assert np.isnan(scores[~keep]).all()
    want = function(image[keep], target)
    allowed = tolerance(dtype, condition=1e3 * CONDITION if dtype == np.float64 else 1.0)
    np.testing.assert_allclose(scores[keep], want, rtol=0, atol=allowed * np.abs(want).max())


@pytest.mark.parametrize("name", ["ace", "matched_filter", "cem"])
def test_masked_pixels_do_not_matter(name: str) -> None:
    rng = np.random.default_rng(15)
    image, target = random_scene((18, 17, 3), rng), 50 * rng.standard_normal((2, 3))
    mask = rng.random((18, 17)) < 0.85
    function = getattr(mahal, name)
    scores, status = function(image, target, mask=mask, return_status=True)
    np.testing.assert_array_equal(status == reference.MASKED, ~mask)
    np.testing.assert_array_equal(np.isnan(scores).any(axis=-1), ~mask)
    for value in (1e30, np.nan):
        spoiled = np.where(mask[..., None], image, value)
        again, same = function(spoiled, target, mask=mask, return_status=True)
        np.testing.assert_array_equal(again, scores)
        np.testing.assert_array_equal(same, status)


def test_an_image_is_its_own_background() -> None:
    rng = np.random.default_rng(16)
    image, target = random_scene((14, 15, 3), rng), 50 * rng.standard_normal(3)
    allowed = tolerance(np.float64, condition=CONDITION, terms=3)
    _, covariance = mahal.mean_covariance(image)
    for function in (mahal.ace, mahal.matched_filter):
        scores = function(image, target)
        for params in ({"background": image}, {"covariance": covariance}):
            again = function(image, target, **params)
            np.testing.assert_allclose(again, scores, rtol=0, atol=allowed * np.abs(scores).max())


def test_thread_counts_give_the_same_bits() -> None:
    rng = np.random.default_rng(17)
    image = random_scene((40, 53, 6), rng).astype(np.float32)
    targets = (50 * rng.standard_normal((2, 6))).astype(np.float32)
    for function in (mahal.ace, mahal.matched_filter, mahal.cem, mahal.spectral_angle):
        first = function(image, targets, threads=1)
        for count in (2, 3, 4):
            np.testing.assert_array_equal(function(image, targets, threads=count), first)


WINDOWED = [mahal.ace, mahal.matched_filter]


@pytest.mark.parametrize("function", WINDOWED)
@pytest.mark.parametrize("bands", [1, 2, 5, 9, 17, 33])
def test_any_number_of_bands_and_targets_in_windows(function: Any, bands: int) -> None:
    rng = np.random.default_rng(bands)
    reference_of = getattr(reference_matched, function.__name__)
    for count, dtype in itertools.product((1, 4, 5, 9), (np.float32, np.float64)):
        image = random_scene((13, 14, bands), rng).astype(dtype)
        targets = some_targets(image, (count,), rng).astype(dtype)
        want, want_status = reference_of(image, targets, window=(1, 11))
        scores, status = function(image, targets, window=(1, 11), return_status=True)
        np.testing.assert_array_equal(status, want_status)
        allowed = tolerance(dtype, condition=CONDITION, terms=11 + bands)
        np.testing.assert_allclose(scores, want, rtol=0, atol=allowed * np.abs(want).max())


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_float32_targets_close_to_the_local_mean(distance: float) -> None:
    rng = np.random.default_rng(32)
    image = random_scene((13, 14, 3), rng).astype(np.float32)
    # The mean differs from pixel to pixel; where a target lies on it, its direction is left to the
    # precision of the sums.
    mean, _ = reference.local_covariance(image[:7, :7], (1, 5))
    targets = mean[3, 2:5] + distance * rng.standard_normal((3, 3))
    want, _ = reference_matched.ace(image, targets, window=(1, 5))
    scores = mahal.ace(image, targets, window=(1, 5))
    assert np.abs(scores - want).max() <= 1e-3


def test_local_closed_forms() -> None:
    rng = np.random.default_rng(21)
    image = random_scene((20, 21, 4), rng)
    allowed = tolerance(np.float64, condition=CONDITION, terms=9)
    for row, col in [(0, 0), (9, 12), (19, 4)]:
        target = image[row, col]
        assert mahal.ace(image, target, window=(1, 9))[row, col] == pytest.approx(1, abs=allowed)
        scores = mahal.matched_filter(image, target, window=(1, 9))
        assert scores[row, col] == pytest.approx(1, abs=allowed)
        ring = reference.ring_indices(row, col, 20, 21, (1, 9))
        opposite = 2 * image.reshape(-1, 4)[ring].mean(axis=0) - target
        scores = mahal.ace(image, opposite, window=(1, 9), signed=True)
        assert scores[row, col] == pytest.approx(-1, abs=allowed)
    signed = mahal.ace(image, image[3, 3], window=(1, 9), signed=True)
    squared = mahal.ace(image, image[3, 3], window=(1, 9))
    np.testing.assert_allclose(signed**2, squared, atol=allowed)
    power = mahal.rx(image, window=(1, 9))
    normalized = mahal.matched_filter(image, image[3, 3], window=(1, 9), normalized=True)
    np.testing.assert_allclose(signed * np.sqrt(power), normalized, atol=allowed * power.max())


@pytest.mark.parametrize("function", WINDOWED)
def test_local_scores_are_affine_invariant(function: Any) -> None:
    rng = np.random.default_rng(22)
    image = random_scene((20, 22, 4), rng, offset=0.0, scale=1.0)
    targets = rng.standard_normal((2, 4))
    matrix, shift = 1e6 * random_spd(4, 10.0, rng), 1e7 * rng.standard_normal(4)
    want = function(image, targets, window=(3, 9))
    scores = function(image @ matrix.T + shift, targets @ matrix.T + shift, window=(3, 9))
    allowed = tolerance(np.float64, condition=10 * 10 * CONDITION * 10, terms=9)
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed * np.abs(want).max())


@pytest.mark.parametrize("function", WINDOWED)
def test_large_offset_costs_no_accuracy_in_windows(function: Any) -> None:
    rng = np.random.default_rng(23)
    image = random_scene((30, 24, 5), rng, offset=1e4, scale=1.0).astype(np.float32)
    target = (1e4 + 3 * rng.standard_normal(5)).astype(np.float32)
    want, _ = getattr(reference_matched, function.__name__)(image, target, window=(3, 9))
    allowed = tolerance(np.float32, condition=CONDITION, terms=9) * np.abs(want).max()
    scores = function(image, target, window=(3, 9))
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


def test_a_subspace_of_one_target_is_that_target_in_windows_too() -> None:
    rng = np.random.default_rng(24)
    image, targets = random_scene((14, 15, 5), rng), 50 * rng.standard_normal((2, 5))
    allowed = tolerance(np.float64, condition=CONDITION, terms=9)
    scores = mahal.ace(image, targets[:1], window=(1, 9), subspace=True)
    plain = mahal.ace(image, targets[0], window=(1, 9))
    np.testing.assert_allclose(scores, plain, rtol=0, atol=allowed)
    both = mahal.ace(image, targets, window=(1, 9), subspace=True)
    assert (both >= plain - allowed).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", ["load", "nan"])
@pytest.mark.parametrize("params", [{}, {"signed": True}, {"subspace": True}])
def test_singular_windows(dtype: Any, rule: str, params: dict[str, Any]) -> None:
    rng = np.random.default_rng(8)
    image = random_scene((26, 30, 4), rng)
    image[:12, :14] = image[0, 0]
    image[3, 3] += 1
    image = image.astype(dtype)
    targets = some_targets(image, (2,), rng).astype(dtype)
    want, want_status = reference_matched.ace(
        image, targets, window=(3, 7), singular=rule, **params
    )
    with pytest.warns(mahal.SingularWarning, match=r"^ace: \d+ of 780"):
        scores, status = mahal.ace(
            image, targets, window=(3, 7), singular=rule, return_status=True, **params
        )
    np.testing.assert_array_equal(status, want_status)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(want))
    regular = status == reference.OK
    # Windows at the rim of the flat region see few distinct pixels.
    allowed = tolerance(dtype, condition=10 * CONDITION, terms=7)
    np.testing.assert_allclose(scores[regular], want[regular], rtol=0, atol=allowed)
    if rule == "load":
        loaded = tolerance(dtype, condition=1 / reference.LOADING, terms=7)
        np.testing.assert_allclose(scores[~regular], want[~regular], rtol=0, atol=loaded)


def test_a_target_on_the_mean_of_a_window_costs_only_that_pixel() -> None:
    rng = np.random.default_rng(25)
    image = random_scene((20, 21, 3), rng)
    ring = reference.ring_indices(9, 12, 20, 21, (1, 7))
    # Numbers whose mean is exact.
    image = np.rint(image)
    samples = image.reshape(-1, 3)[ring]
    image[6, 9] += np.rint(samples.mean(axis=0)) * 48 - samples.sum(axis=0)
    target = image.reshape(-1, 3)[ring].mean(axis=0)
    assert (target == np.rint(target)).all()
    covariance = np.eye(3)
    others = np.ones((20, 21), dtype=bool)
    others[9, 12] = False
    for params in ({"covariance": covariance}, {"covariance": covariance, "subspace": True}):
        with pytest.warns(mahal.SingularWarning, match="1 of 420 pixels have .* target"):
            scores, status = mahal.ace(
                image, target[None], window=(1, 7), return_status=True, **params
            )
        np.testing.assert_array_equal(status[..., None] == reference.OK, others[..., None])
        np.testing.assert_array_equal(np.isfinite(scores.reshape(20, 21)), others)


def test_dependent_targets_have_no_subspace_in_windows_either() -> None:
    rng = np.random.default_rng(26)
    image, target = random_scene((12, 13, 4), rng), 50 * rng.standard_normal(4)
    with pytest.warns(mahal.SingularWarning, match="156 of 156"):
        scores, status = mahal.ace(
            image, np.stack([target, target]), window=(1, 7), subspace=True, return_status=True
        )
    assert (status == reference.SINGULAR).all()
    assert np.isnan(scores).all()


@pytest.mark.parametrize("function", WINDOWED)
def test_one_pixel_that_is_not_finite_costs_only_its_windows(function: Any) -> None:
    rng = np.random.default_rng(27)
    image, targets = random_scene((30, 26, 3), rng), 50 * rng.standard_normal((2, 3))
    image[17, 12, 1] = np.nan
    reference_of = getattr(reference_matched, function.__name__)
    want, want_status = reference_of(image, targets, window=(3, 7))
    scores, status = function(image, targets, window=(3, 7), return_status=True)
    np.testing.assert_array_equal(status, want_status)
    allowed = tolerance(np.float64, condition=CONDITION, terms=7) * np.nanmax(np.abs(want))
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("function", WINDOWED)
def test_masks_in_windows(function: Any) -> None:
    rng = np.random.default_rng(28)
    image, targets = random_scene((18, 17, 3), rng), 50 * rng.standard_normal((2, 3))
    mask = rng.random((18, 17)) < 0.85
    scores, status = function(image, targets, window=(1, 7), mask=mask, return_status=True)
    spoiled = np.where(mask[..., None], image, np.nan)
    again, same = function(spoiled, targets, window=(1, 7), mask=mask, return_status=True)
    np.testing.assert_array_equal(again, scores)
    np.testing.assert_array_equal(same, status)


@pytest.mark.parametrize("window", [(3, 9), 11])
@pytest.mark.parametrize("function", WINDOWED)
def test_float32_scores_keep_their_promise_where_windows_are_ill_conditioned(
    window: Any, function: Any
) -> None:
    # Smooth spectra whose differences all but vanish in the left half: beyond float32 there,
    # while the whitening by the whole image knows the right half.
    rng = np.random.default_rng(29)
    image = np.cumsum(rng.standard_normal((80, 44, 48)), axis=2)
    image[:, :22] = image[:, :22, :1] + 1e-3 * image[:, :22]
    image[20:40, :22] += 40.0
    image = image.astype(np.float32)
    targets = np.stack([image[50, 30], image[10, 5], 3 * image[30, 10] + 1])
    precise, aims = image.astype(np.float64), targets.astype(np.float64)
    exact, status = function(precise, aims, window=window, return_status=True)
    scores = function(image, targets, window=window)
    assert (status == 0).all()
    error = np.abs(scores - exact)
    assert error.max() > 0
    if function is mahal.matched_filter:
        # Relative to |y| / |w|.
        normalized = mahal.matched_filter(precise, aims, window=window, normalized=True)
        lengths = np.abs(normalized / exact)
        error *= lengths / np.sqrt(mahal.rx(precise, window=window))[..., None]
    assert error.max() <= 1e-3


@pytest.mark.parametrize("function", WINDOWED)
def test_thread_counts_give_the_same_bits_in_windows(function: Any) -> None:
    rng = np.random.default_rng(30)
    image = random_scene((40, 53, 6), rng).astype(np.float32)
    targets = (50 * rng.standard_normal((2, 6))).astype(np.float32)
    first = function(image, targets, window=(3, 9), threads=1)
    for count in (2, 3, 4):
        again = function(image, targets, window=(3, 9), threads=count)
        np.testing.assert_array_equal(again, first)


def test_progress_is_reported() -> None:
    rng = np.random.default_rng(31)
    image = random_scene((70, 40, 4), rng)
    seen: list[tuple[int, int]] = []
    mahal.ace(
        image,
        image[0, 0] + 1,
        window=(1, 5),
        threads=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


def test_a_phase_does_not_matter_to_complex_scores() -> None:
    rng = np.random.default_rng(19)
    image = random_scene((14, 15, 3), rng, circular=True, offset=0.0)
    target = rng.standard_normal((2, 3)) @ (np.ones(3) + 1j * rng.standard_normal((3, 3)))
    mean, _ = mahal.mean_covariance(image)
    allowed = tolerance(np.float64, condition=CONDITION, terms=6)
    turned = mean + np.exp(0.7j) * (target - mean)
    for function in (mahal.ace, mahal.matched_filter):
        scores = function(image, target)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(
            function(image, turned), scores, rtol=0, atol=allowed * scores.max()
        )
        np.testing.assert_allclose(
            function(image.conj(), target.conj()), scores, rtol=0, atol=allowed * scores.max()
        )
    pixels = np.stack([turned[0], 2 * mean - target[0]])
    scores = mahal.ace(pixels, target[0], background=image, singular="nan")
    np.testing.assert_allclose(scores, 1.0, atol=allowed)
    # The uncentred filter of CEM, by its definition.
    correlation = np.einsum("rcj,rck->jk", image, image.conj()) / 210
    weights = np.linalg.solve(correlation, target[0])
    want = np.abs(image @ weights.conj()) / (target[0].conj() @ weights).real
    np.testing.assert_allclose(mahal.cem(image, target[0]), want, atol=allowed * want.max())


def test_uncentred_detectors_of_radar() -> None:
    rng = np.random.default_rng(33)
    image = random_scene((300, 3), rng, circular=True, offset=0.0)
    target = np.array([1.0, 1.0j, -1.0])
    correlation = image.T @ image.conj() / 300
    inverse = np.linalg.inv(correlation)
    products = image @ (inverse @ target).conj()
    power = np.einsum("ij,jk,ik->i", image.conj(), inverse, image).real
    length = (target.conj() @ inverse @ target).real
    allowed = tolerance(np.float64, condition=CONDITION, terms=6)
    scores = mahal.ace(image, target, center=False)
    np.testing.assert_allclose(scores, np.abs(products) ** 2 / length / power, atol=allowed)
    # The square is the adaptive matched filter.
    scores = mahal.matched_filter(image, target, center=False, normalized=True)
    want = np.abs(products) ** 2 / length
    np.testing.assert_allclose(scores**2, want, atol=allowed * want.max())
    given = mahal.ace(image, target, center=False, covariance=correlation)
    np.testing.assert_allclose(given, np.abs(products) ** 2 / length / power, atol=allowed)
    real = random_scene((300, 3), rng)
    plain = mahal.matched_filter(real, np.ones(3), center=False)
    np.testing.assert_array_equal(plain, mahal.cem(real, np.ones(3)))


def test_real_detectors_see_complex_images_with_real_values_alike() -> None:
    rng = np.random.default_rng(20)
    image, target = random_scene((14, 15, 3), rng), 50 * rng.standard_normal(3)
    allowed = tolerance(np.float64, condition=CONDITION, terms=6)
    scores = mahal.ace(image, target)
    again = mahal.ace(image.astype(complex), target.astype(complex))
    np.testing.assert_allclose(again, scores, atol=allowed)


IMAGE = random_scene((12, 13, 3), np.random.default_rng(18))
TARGET = np.array([150.0, 90.0, 120.0])
ASYMMETRIC = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])


@pytest.mark.parametrize("name", ["ace", "matched_filter", "cem"])
@pytest.mark.parametrize(
    ("image", "target", "params", "argument"),
    [
        (IMAGE[0, 0], TARGET, {}, "image"),
        (IMAGE[None], TARGET, {}, "image"),
        (IMAGE[:0], TARGET, {}, "image"),
        (IMAGE[0, :2], TARGET, {}, "image"),
        (np.full((5, 5, 3), np.nan), TARGET, {}, "image"),
        (IMAGE, TARGET[:2], {}, "target"),
        (IMAGE, np.ones((2, 2, 3)), {}, "target"),
        (IMAGE, np.ones((0, 3)), {}, "target"),
        (IMAGE, np.array(1.0), {}, "target"),
        (IMAGE, np.array([1.0, np.nan, 2.0]), {}, "target"),
        (IMAGE, TARGET, {"singular": "magic"}, "singular"),
        (IMAGE, TARGET, {"threads": -1}, "threads"),
        (IMAGE, TARGET, {"mask": np.ones((13, 12), dtype=bool)}, "mask"),
        (IMAGE, TARGET, {"mask": np.zeros((12, 13), dtype=bool)}, "(mask|image)"),
        (IMAGE, TARGET, {"background": IMAGE[..., :2]}, "background"),
        (IMAGE, TARGET, {"background": IMAGE[0, :2]}, "background"),
    ],
)
def test_bad_values(
    name: str, image: np.ndarray, target: np.ndarray, params: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: {argument}: .*, got .*$"):
        getattr(mahal, name)(image, target, **params)


@pytest.mark.parametrize(
    ("function", "target", "params", "argument"),
    [
        (mahal.ace, TARGET, {"covariance": np.eye(4)}, "covariance"),
        (mahal.ace, TARGET, {"window": 4}, "window"),
        (mahal.ace, TARGET, {"window": 5, "center": False, "covariance": np.eye(3)}, "center"),
        (mahal.ace, np.zeros(3), {"center": False}, "target"),
        (mahal.ace, TARGET, {"window": (1, 13)}, "window"),
        (mahal.matched_filter, TARGET, {"window": (1, 3, 5)}, "window"),
        (mahal.matched_filter, TARGET, {"window": 5, "border": "wrap"}, "border"),
        (mahal.ace, TARGET, {"window": (1, 5), "background": IMAGE}, "background"),
        (mahal.ace, np.array([np.nan, 1.0, 2.0]), {"window": (1, 5)}, "target"),
        (mahal.ace, TARGET, {"covariance": ASYMMETRIC}, "covariance"),
        (mahal.matched_filter, TARGET, {"covariance": -np.eye(3)}, "covariance"),
        (mahal.ace, np.stack([TARGET] * 2), {"subspace": True}, "target"),
        (mahal.ace, np.eye(4, 3), {"subspace": True}, "target"),
        (mahal.ace, TARGET, {"subspace": True, "signed": True}, "signed"),
        (mahal.ace, IMAGE.mean(axis=(0, 1)), {}, "target"),
        (mahal.matched_filter, IMAGE.mean(axis=(0, 1)), {}, "target"),
        (mahal.cem, np.zeros(3), {}, "target"),
    ],
)
def test_values_that_do_not_go_together(
    function: Any, target: np.ndarray, params: dict[str, Any], argument: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{function.__name__}: {argument}: .*, got .*$"):
        function(IMAGE, target, **params)


@pytest.mark.parametrize("name", ["ace", "matched_filter", "cem"])
@pytest.mark.parametrize(
    ("image", "target", "params", "argument"),
    [
        (IMAGE > 0, TARGET, {}, "image"),
        (IMAGE, list(TARGET), {}, "target"),
        (IMAGE, TARGET.astype(np.float32), {}, "target"),
        (IMAGE, TARGET, {"mask": np.ones((12, 13))}, "mask"),
        (IMAGE.astype(np.float32), TARGET, {"background": IMAGE}, "background"),
    ],
)
def test_bad_types(
    name: str, image: np.ndarray, target: Any, params: dict[str, Any], argument: str
) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: {argument}: .*, got .*$"):
        getattr(mahal, name)(image, target, **params)


def test_what_complex_images_do_not_have() -> None:
    image, target = IMAGE.astype(complex), TARGET.astype(complex)
    with pytest.raises(ValueError, match=r"^ace: signed: .*, got complex128$"):
        mahal.ace(image, target, signed=True)
    with pytest.raises(TypeError, match=r"^ace: center: .*, got 1$"):
        mahal.ace(image, target, center=1)
    with pytest.raises(TypeError, match=r"^spectral_angle: image: .*, got complex128$"):
        mahal.spectral_angle(image, target)
    with pytest.raises(TypeError, match=r"^ace: target: .*, got float64$"):
        mahal.ace(image, TARGET)


def test_a_float64_target_serves_a_float32_image() -> None:
    image = IMAGE.astype(np.float32)
    for function in (mahal.ace, mahal.matched_filter, mahal.cem, mahal.spectral_angle):
        scores = function(image, TARGET)
        assert scores.dtype == np.float32
        same = function(image, TARGET.astype(np.float32))
        np.testing.assert_array_equal(scores, same)

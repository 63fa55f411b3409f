"""ace and matched_filter with every estimator, and in windows of complex and uncentred images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import (
    Case,
    OpSpec,
    backends,
    random_scene,
    random_spd,
    reference_matched,
    run_op_checks,
    tolerance,
)

ESTIMATORS = ("scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t")
REAL = (np.float32, np.float64)
COMPLEX = (np.complex64, np.complex128)
CONDITION = 50.0
FUNCTIONS = {"ace": mahal.ace, "matched_filter": mahal.matched_filter}


def some_targets(shape: tuple[int, ...], rng: np.random.Generator, circular: bool) -> np.ndarray:
    parts = rng.standard_normal((2, *shape))
    return 10.0 + 40.0 * (parts[0] + 1j * parts[1] if circular else parts[0])


def cases(rng: np.random.Generator, name: str, circular: bool) -> Iterator[Case]:
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"subspace": True},
        {} if circular else {"signed": True},
    )
    if name == "matched_filter":
        kinds = ({}, {"normalized": True}, {"normalized": True})
    for k, estimator in enumerate(ESTIMATORS):
        for step, (shape, count, params) in enumerate(
            [
                ((6, 11, 1 + k % 3), (), {"window": (1, 5)}),
                ((8, 9, 4), (3,), {"window": (3, 7), "center": False}),
                ((7, 13, 7), (2,), {"window": 7}),
                ((7, 9, 2), (2,), {"window": 5, "border": "reflect", "center": False}),
                (
                    (8, 8, 3),
                    (),
                    {"window": (3, 7), "border": "valid", "mask": rng.random((8, 8)) < 0.7},
                ),
                ((13, 12, 4), (2,), {"mask": rng.random((13, 12)) < 0.8}),
                ((70, 3), (), {"center": False}),
            ]
        ):
            # Two thirds of all combinations meet every estimator, window and kind.
            if (2 * k + step) % 3 == 2:
                continue
            kind = kinds[(k + step) % 3]
            if kind.get("subspace") and (not count or shape[-1] <= count[0]):
                kind = {}
            image = random_scene(shape, rng, circular=circular, offset=10.0)
            options = {"estimator": estimator, "loading": 0.1, **params, **kind}
            yield Case(
                f"{estimator} {shape} {count} {sorted(options)}",
                (image, some_targets((*count, shape[-1]), rng, circular)),
                {"return_status": True, **options},
                # Uncentred, the mean is the direction that varies most.
                condition=CONDITION * (1.0 if params.get("center", True) else 10.0),
                terms=160,
                broadcast_axis=None,
            )


def with_status(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda image, target, return_status, **params: function(image, target, **params)


def ace_has_a_range(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    regular = outputs[0][np.isfinite(outputs[0])]
    assert (np.abs(regular) <= 1).all()


@pytest.mark.parametrize("dtypes", [REAL, COMPLEX])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_against_the_reference(name: str, dtypes: Any) -> None:
    spec = OpSpec(
        name=name,
        function=FUNCTIONS[name],
        reference=with_status(getattr(reference_matched, name)),
        cases=lambda rng: cases(rng, name, dtypes == COMPLEX),
        invariants=[ace_has_a_range] if name == "ace" else [],
        dtypes=dtypes,
        layouts=("C", "sliced"),
    )
    assert run_op_checks(spec, thread_counts=(2,)).failures == 0


def kernel_cases(rng: np.random.Generator, name: str, circular: bool) -> Iterator[Case]:
    """Windows, small ones for the emulator."""
    more = {"normalized": True} if name == "matched_filter" else {"subspace": True}
    for estimator in ESTIMATORS:
        for shape, count, params in [
            ((5, 6, 3), (2,), {"window": 5, "center": False, **more}),
            ((6, 5, 2), (), {"window": (1, 5), "mask": rng.random((6, 5)) < 0.9}),
        ]:
            image = random_scene(shape, rng, circular=circular, offset=10.0)
            if estimator == "scm" and not circular:
                params = {**params, "center": False}
            yield Case(
                f"{estimator} {shape} {sorted(params)}",
                (image, some_targets((*count, shape[-1]), rng, circular)),
                {"return_status": True, "estimator": estimator, "tolerance": 1e-3, **params},
                condition=CONDITION * 10.0,
                terms=160,
                broadcast_axis=None,
            )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("ace", np.float64),
        ("ace", np.complex64),
        ("matched_filter", np.float32),
        ("matched_filter", np.complex128),
    ],
)
def test_kernels_against_the_reference(name: str, dtype: Any) -> None:
    kernels = [place for place in backends() if place != "cpu"]
    if not kernels:
        pytest.skip("neither the emulator nor a device")
    spec = OpSpec(
        name=name,
        function=FUNCTIONS[name],
        reference=with_status(getattr(reference_matched, name)),
        cases=lambda rng: kernel_cases(rng, name, dtype in COMPLEX),
        dtypes=(dtype,),
        layouts=("C",),
        emulated=True,
    )
    libraries = None if "cuda" in kernels else ["numpy"]
    run = run_op_checks(
        spec, backends=kernels, libraries=libraries, isas=["base"], thread_counts=(1,)
    )
    assert run.failures == 0


def test_one_window_by_hand() -> None:
    rng = np.random.default_rng(0)
    image = random_scene((7, 7, 3), rng, circular=True, offset=0.0)
    target = np.array([1.0, 1.0j, -0.5])
    ring = np.ones((7, 7), dtype=bool)
    ring[2:5, 2:5] = False
    z, x = image[ring], image[3, 3]
    inverse = np.linalg.inv(z.T @ z.conj() / 40)
    product = abs(target.conj() @ inverse @ x)
    length = (target.conj() @ inverse @ target).real
    power = (x.conj() @ inverse @ x).real
    allowed = tolerance(np.float64, condition=CONDITION, terms=40)
    options: dict[str, Any] = {"window": (3, 7), "center": False}
    score = mahal.ace(image, target, **options)[3, 3]
    assert score == pytest.approx(product**2 / length / power, rel=allowed)
    score = mahal.matched_filter(image, target, **options)[3, 3]
    assert score == pytest.approx(product / length, rel=allowed)
    score = mahal.matched_filter(image, target, normalized=True, **options)[3, 3]
    assert score == pytest.approx(product / np.sqrt(length), rel=allowed)


@pytest.mark.parametrize("estimator", ["scm", "tyler"])
@pytest.mark.parametrize("circular", [False, True])
def test_a_subspace_of_one_target_is_that_target(estimator: str, circular: bool) -> None:
    rng = np.random.default_rng(1)
    image = random_scene((9, 11, 4), rng, circular=circular)
    target = some_targets((4,), rng, circular)
    options: dict[str, Any] = {"window": (1, 5), "estimator": estimator, "center": False}
    plain = mahal.ace(image, target, **options)
    allowed = tolerance(np.float64, condition=CONDITION * 100, terms=25)
    np.testing.assert_allclose(
        mahal.ace(image, target[None], subspace=True, **options), plain, rtol=0, atol=allowed
    )
    both = np.stack([target, (2.0 - 1.0j if circular else 2.0) * target + image[0, 0]])
    inside = mahal.ace(image, both, subspace=True, **options)
    assert (inside >= mahal.ace(image, both, **options).max(axis=-1) - allowed).all()
    # The space does not depend on the vectors that name it.
    other = np.array([[1.0, 2.0], [-1.0, 3.0]]) @ both
    again = mahal.ace(image, other, subspace=True, **options)
    np.testing.assert_allclose(again, inside, rtol=0, atol=10 * allowed)


@pytest.mark.parametrize("circular", [False, True])
def test_textures_do_not_matter_to_ace_with_tyler(circular: bool) -> None:
    rng = np.random.default_rng(2)
    image = random_scene((9, 10, 3), rng, circular=circular, offset=0.0)
    factors = 10.0 ** rng.uniform(-50, 50, (9, 10, 1))
    target = some_targets((2, 3), rng, circular)
    options: dict[str, Any] = {"window": (1, 5), "estimator": "tyler", "center": False}
    scores = mahal.ace(image, target, **options)
    allowed = tolerance(np.float64, condition=CONDITION, terms=25)
    np.testing.assert_allclose(
        mahal.ace(image * factors, 1e-3 * target, **options), scores, rtol=0, atol=3 * allowed
    )


@pytest.mark.parametrize("estimator", ["scm", "tyler", "student_t"])
def test_affine_invariance(estimator: str) -> None:
    rng = np.random.default_rng(3)
    image = random_scene((8, 9, 3), rng, circular=True, scale=1.0, offset=0.0)
    target = rng.standard_normal(3) + 1j
    a = random_spd(3, 10.0, rng, hermitian=True)
    options: dict[str, Any] = {"window": (1, 7), "estimator": estimator, "tolerance": 1e-13}
    allowed = tolerance(np.float64, condition=CONDITION * 100, terms=49)
    for function in FUNCTIONS.values():
        want = function(image, target, **options)
        again = function(image @ a.T + 3.0, a @ target + 3.0, **options)
        np.testing.assert_allclose(again, want, rtol=0, atol=allowed * want.max())


def test_windows_of_real_and_complex_values_and_both_engines_agree() -> None:
    rng = np.random.default_rng(4)
    image, target = random_scene((12, 13, 4), rng), some_targets((2, 4), rng, False)
    allowed = tolerance(np.float64, condition=CONDITION, terms=81)
    for function in FUNCTIONS.values():
        want = function(image, target, window=(3, 9))
        again = function(image, target, window=(3, 9), estimator="loading", loading=0.0)
        np.testing.assert_allclose(again, want, rtol=0, atol=allowed * np.abs(want).max())
        again = function(image.astype(complex), target.astype(complex), window=(3, 9))
        want = np.abs(want)
        np.testing.assert_allclose(again, want, rtol=0, atol=allowed * want.max())


@pytest.mark.parametrize("estimator", ["scm", "tyler"])
def test_false_alarms_of_complex_ace(estimator: str) -> None:
    # One row of windows side by side: every score has samples of its own.
    windows, side, hole, bands = 6000, 7, 3, 3
    stats = pytest.importorskip("scipy.stats")
    from mahal import significance

    rng = np.random.default_rng(5)
    white = rng.standard_normal((side, side * windows, bands, 2)) @ np.array([1.0, 1.0j])
    image = white @ np.linalg.cholesky(random_spd(bands, CONDITION, rng, hermitian=True)).T
    if estimator == "tyler":
        # Heavy tails, of which the law knows nothing.
        image *= np.sqrt(rng.gamma(0.5, size=image.shape[:2]))[..., None]
    target = np.array([1.0, 1.0j, -1.0])
    options: dict[str, Any] = {"window": (hole, side), "center": False, "border": "valid"}
    scores = mahal.ace(image, target, estimator=estimator, **options)
    scores = scores[side // 2, side // 2 :: side]
    assert scores.size == windows
    assert np.isfinite(scores).all()
    samples = side**2 - hole**2
    law: dict[str, Any] = {"mean": "known", "complex_data": True, "estimator": estimator}
    for rate in (0.1, 0.01):
        threshold = significance.ace_threshold(rate, bands, samples, **law)
        low, high = stats.binom.interval(1 - 1e-4, windows, rate)
        assert low <= (scores >= threshold).sum() <= high


@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_singular_windows(estimator: str, dtype: Any) -> None:
    rng = np.random.default_rng(6)
    image = random_scene((9, 24, 3), rng, circular=dtype == np.complex128).astype(dtype)
    image[:, :8, 2] = image[:, :8, 1]
    target = some_targets((2, 3), rng, dtype == np.complex128).astype(dtype)
    options: dict[str, Any] = {"window": (1, 5), "estimator": estimator, "center": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.ConvergenceWarning)
        if estimator in ("loading", "ledoit_wolf", "oas"):
            scores = mahal.ace(image, target, **options)
            assert np.isfinite(scores).all()
            return
        with pytest.warns(mahal.SingularWarning, match=r"and were set to NaN") as caught:
            scores, status = mahal.ace(image, target, return_status=True, **options)
        assert caught[0].filename == __file__
        flat = np.zeros((9, 24), dtype=bool)
        flat[:, :6] = True
        assert (status[flat] == 2).all()
        assert np.isnan(scores[flat]).all()
        assert (status[:, 10:] == 0).all()
        assert np.isfinite(scores[:, 10:]).all()
        alone = mahal.ace(image[:, 8:], target, **options)
        np.testing.assert_array_equal(scores[:, 10:], alone[:, 2:])
        with pytest.raises(mahal.SingularError, match=r"^ace: image: "):
            mahal.ace(image, target, singular="raise", **options)


@pytest.mark.parametrize("estimator", ["scm", "student_t"])
def test_targets_without_a_direction_cost_only_their_score(estimator: str) -> None:
    rng = np.random.default_rng(7)
    image = random_scene((9, 30, 3), rng, circular=True)
    mean = image[:5, :5].reshape(-1, 3).mean(axis=0)
    targets = np.stack([mean, mean + 1.0])
    options: dict[str, Any] = {"window": 5, "estimator": estimator, "return_status": True}
    with pytest.warns(mahal.SingularWarning, match=r"a target without a direction"):
        scores, status = mahal.ace(image, targets, **options)
    # The window of nine pixels at the corner.
    hit = np.zeros((9, 30), dtype=bool)
    hit[:3, :3] = True
    np.testing.assert_array_equal(status == 2, hit)
    np.testing.assert_array_equal(np.isnan(scores[..., 0]), hit)
    assert np.isfinite(scores[..., 1]).all()
    twice = np.stack([targets[1], targets[1], 2 * targets[1] - mean])
    with pytest.warns(mahal.SingularWarning):
        scores, status = mahal.ace(image, twice, subspace=True, **options)
    assert np.isnan(scores).all()
    assert (status == 2).all()


@pytest.mark.parametrize("estimator", ["scm", "tyler", "ledoit_wolf"])
def test_bad_and_masked_pixels_cost_only_their_windows(estimator: str) -> None:
    rng = np.random.default_rng(8)
    image = random_scene((9, 20, 3), rng, circular=True)
    target = some_targets((2, 3), rng, True)
    options: dict[str, Any] = {"window": (1, 5), "estimator": estimator, "return_status": True}
    clean, _ = mahal.matched_filter(image, target, **options)
    broken = image.copy()
    broken[4, 5, 1] = np.nan
    scores, status = mahal.matched_filter(broken, target, **options)
    near = np.zeros((9, 20), dtype=bool)
    near[:, 3:8] = True  # windows at the edge slide inside
    assert (status[near] == 3).all()
    assert np.isnan(scores[near]).all()
    np.testing.assert_array_equal(scores[~near], clean[~near])
    mask = np.isfinite(broken).all(axis=-1)
    scores, status = mahal.matched_filter(broken, target, mask=mask, **options)
    assert status[4, 5] == 4
    assert np.isnan(scores[4, 5]).all()
    assert (status[mask] == 0).all()
    assert np.isfinite(scores[mask]).all()
    # Too few samples are no covariance.
    mask[...] = False
    mask[0, :3] = True
    if estimator != "ledoit_wolf":
        _, status = mahal.matched_filter(image, target, mask=mask, **options)
        assert (status[mask] == 1).all()


def test_what_has_not_converged_is_scored_and_told() -> None:
    rng = np.random.default_rng(9)
    image, target = random_scene((9, 10, 3), rng), some_targets((3,), rng, False)
    for window in (None, (1, 5)):
        options: dict[str, Any] = {"window": window, "estimator": "tyler", "max_iterations": 2}
        with pytest.warns(mahal.ConvergenceWarning, match=r"^ace: 90 of 90 ") as caught:
            scores, status = mahal.ace(image, target, return_status=True, **options)
        assert caught[0].filename == __file__
        assert (status == 5).all()
        assert np.isfinite(scores).all()


def test_a_singular_image_has_no_robust_scores() -> None:
    image = random_scene((40, 3), np.random.default_rng(10))
    image[:, 2] = image[:, 1]
    with pytest.warns(mahal.SingularWarning, match=r"40 of 40 .* set to NaN"):
        scores = mahal.ace(image, np.ones(3), estimator="tyler")
    assert np.isnan(scores).all()
    assert np.isfinite(mahal.ace(image, np.ones(3), estimator="oas")).all()


def test_threads_progress_and_precise_targets() -> None:
    rng = np.random.default_rng(11)
    image = random_scene((20, 33, 4), rng, circular=True).astype(np.complex64)
    target = some_targets((2, 4), rng, True)
    options: dict[str, Any] = {"window": (3, 7), "estimator": "student_t"}
    first = mahal.ace(image, target, threads=1, **options)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(mahal.ace(image, target, threads=3, **options), first)
    seen: list[tuple[int, int]] = []
    mahal.ace(
        image,
        target,
        threads=1,
        progress=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert seen == [(k, 20) for k in range(1, 21)]


IMAGE = random_scene((12, 13, 3), np.random.default_rng(12))
TARGET = np.array([150.0, 90.0, 120.0])


@pytest.mark.parametrize(
    ("params", "argument"),
    [
        ({"estimator": "huber"}, "estimator"),
        ({"estimator": "tyler", "covariance": np.eye(3)}, "estimator"),
        ({"estimator": "loading", "loading": -1.0}, "loading"),
        ({"estimator": "student_t", "nu": 0.0, "window": 5}, "nu"),
        ({"estimator": "tyler", "tolerance": 2.0, "window": 5}, "tolerance"),
        ({"estimator": "tyler", "max_iterations": 0}, "max_iterations"),
        ({"estimator": "tyler", "window": (1, 13)}, "window"),
        ({"estimator": "tyler", "window": 5, "background": IMAGE}, "background"),
        ({"center": False, "window": (1, 3), "border": "wrap"}, "border"),
        ({"center": False, "window": (1, 5), "covariance": np.eye(3)}, "center"),
        ({"estimator": "tyler", "background": IMAGE[0, :4]}, "background"),
    ],
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bad_values(name: str, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: {argument}: .*, got .*$"):
        FUNCTIONS[name](IMAGE, TARGET, **params)


@pytest.mark.parametrize("options", [{"center": False}, {"estimator": "loading", "loading": 0.0}])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_targets_outlive_the_statistics_of_a_large_image(
    name: str, options: dict[str, Any]
) -> None:
    # Many bands and pixels: the sums of the mean take more memory than the tables of windows.
    image = np.random.default_rng(14).standard_normal((60, 60, 60)) + 3.0
    target = image[20, 20] + 1.0
    found = FUNCTIONS[name](image, target, window=(5, 21), **options)
    samples = np.delete(image[20:41, 20:41].reshape(441, 60), guarded(21, 5), axis=0)
    center = options.get("center", True)
    mean = samples.mean(axis=0) if center else np.zeros(60)
    covariance = (samples - mean).T @ (samples - mean) / (len(samples) - center)
    pixel, towards = image[30, 30] - mean, np.linalg.solve(covariance, target - mean)
    wanted = pixel @ towards / ((target - mean) @ towards)
    if name == "ace":
        length = pixel @ np.linalg.solve(covariance, pixel)
        wanted *= (pixel @ towards) / length
    assert found[30, 30] == pytest.approx(wanted, rel=1e-9)


def guarded(outer: int, inner: int) -> list[int]:
    """Places of the inner square in the list of the pixels of the outer one."""
    begin = (outer - inner) // 2
    return [r * outer + c for r in range(begin, begin + inner) for c in range(begin, begin + inner)]


def test_windows_that_are_too_small_and_targets_that_are_zero() -> None:
    image = random_scene((12, 13, 8), np.random.default_rng(13), circular=True)
    target = np.ones(8, dtype=complex)
    with pytest.raises(ValueError, match=r"^ace: window: must hold 9 samples or more, got 8 "):
        mahal.ace(image, target, window=(1, 3))
    assert np.isfinite(mahal.ace(image, target, window=(1, 3), center=False)).all()
    with pytest.raises(ValueError, match=r"^ace: window: must hold 9 samples or more, got 8 "):
        mahal.ace(image, target, window=(1, 3), center=False, estimator="tyler")
    assert np.isfinite(mahal.ace(image, target, window=(1, 3), estimator="oas")).all()
    with pytest.raises(ValueError, match=r"^ace: target: must not be zero, got zeros at 0$"):
        mahal.ace(image, 0 * target, window=(1, 5), center=False)
    with pytest.raises(ValueError, match=r"^ace: signed: .*, got complex128$"):
        mahal.ace(image, target, window=(1, 5), signed=True)
    with pytest.raises(TypeError, match=r"^ace: max_iterations: .*, got 1.5$"):
        mahal.ace(image, target, max_iterations=1.5)

"""Covariance estimators, per window and global: reference, parity with peers, laws, failures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import (
    Case,
    OpSpec,
    backend,
    backends,
    random_scene,
    random_spd,
    reference,
    reference_estimators,
    run_op_checks,
    tolerance,
)

ESTIMATORS = ("scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t")
ROBUST = ("tyler", "student_t")
REAL = (np.float32, np.float64)
COMPLEX = (np.complex64, np.complex128)
CONDITION = 50.0
# Not repeated rows: the fixed points of repeated samples need not exist.
LAYOUTS = ("C", "F", "sliced", "offset", "negative", "channel_first")


def cases(rng: np.random.Generator, circular: bool, scored: bool) -> Iterator[Case]:
    def scene(*shape: int) -> np.ndarray:
        return random_scene(shape, rng, circular=circular, offset=10.0)

    for k, estimator in enumerate(ESTIMATORS):
        for shape, window, params in [
            ((6, 11, 1 + k % 3), (1, 5), {}),
            ((8, 9, 4), 5, {"center": False}),
            ((7, 13, 7), 7, {}),
            # Mirrored samples are repeated ones: few bands leave fixed points well conditioned.
            ((7, 9, 2), 5, {"border": "reflect"}),
            ((8, 8, 3), (3, 7), {"border": "valid", "mask": rng.random((8, 8)) < 0.7}),
        ]:
            options = {"estimator": estimator, "window": window, "loading": 0.1, **params}
            if not scored:
                options["ddof"] = k % 2
            yield Case(
                f"{estimator} {shape} {sorted(params)}",
                (scene(*shape),),
                {"return_status": True, **options},
                # Uncentred, the mean is the direction that varies most.
                condition=CONDITION * (1.0 if params.get("center", True) else 10.0),
                terms=49,
                broadcast_axis=None,
            )


def largest_of_each(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    return tuple(
        float(np.nanmax(np.abs(e), initial=0.0)) if e.dtype.kind in "fc" else 0.0 for e in expected
    )


def map_reference(image: np.ndarray, *, return_status: bool, **params: Any) -> Any:
    return reference_estimators.local_covariance(image, **params)


def score_reference(image: np.ndarray, *, return_status: bool, **params: Any) -> Any:
    return reference_estimators.rx(image, **params)


def covariance_is_hermitian(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(outputs[1], np.conj(np.swapaxes(outputs[1], -1, -2)))


@pytest.mark.parametrize("dtypes", [REAL, COMPLEX])
def test_maps_against_the_reference(dtypes: Any) -> None:
    spec = OpSpec(
        name="local_covariance",
        function=lambda image, window, **params: mahal.local_covariance(image, window, **params),
        reference=map_reference,
        cases=lambda rng: cases(rng, dtypes == COMPLEX, False),
        scale=largest_of_each,
        invariants=[covariance_is_hermitian],
        dtypes=dtypes,
        layouts=LAYOUTS,
    )
    assert run_op_checks(spec, thread_counts=(1, 3)).failures == 0


@pytest.mark.parametrize("dtypes", [REAL, COMPLEX])
def test_scores_against_the_reference(dtypes: Any) -> None:
    spec = OpSpec(
        name="rx",
        function=lambda image, **params: mahal.rx(image, **params),
        reference=score_reference,
        cases=lambda rng: (c for c in cases(rng, dtypes == COMPLEX, True) if "scm" not in c.label),
        dtypes=dtypes,
        layouts=("C", "sliced"),
    )
    assert run_op_checks(spec, libraries=["numpy"], thread_counts=(2,)).failures == 0


def kernel_cases(rng: np.random.Generator, circular: bool, scored: bool) -> Iterator[Case]:
    """Small ones, for the emulator."""
    for k, estimator in enumerate(ESTIMATORS[1 if scored else 0 :]):
        for shape, window, params in [
            ((5, 6, 1 + k % 3), (1, 5), {}),
            ((5, 5, 2), 5, {"border": "reflect", "center": False}),
            ((6, 6, 2), (1, 5), {"border": "valid", "mask": rng.random((6, 6)) < 0.8}),
        ]:
            options = {"estimator": estimator, "window": window, "tolerance": 1e-3, **params}
            if not scored:
                options["ddof"] = k % 2
            yield Case(
                f"{estimator} {shape} {sorted(params)}",
                (random_scene(shape, rng, circular=circular, offset=10.0),),
                {"return_status": True, **options},
                condition=CONDITION * (1.0 if params.get("center", True) else 10.0),
                terms=49,
                broadcast_axis=None,
            )


@pytest.mark.parametrize(
    ("scored", "dtype"),
    [(False, np.float32), (False, np.complex128), (True, np.float64), (True, np.complex64)],
)
def test_kernels_against_the_reference(scored: bool, dtype: Any) -> None:
    kernels = [name for name in backends() if name != "cpu"]
    if not kernels:
        pytest.skip("neither the emulator nor a device")
    spec = OpSpec(
        name="rx" if scored else "local_covariance",
        function=mahal.rx if scored else mahal.local_covariance,
        reference=score_reference if scored else map_reference,
        cases=lambda rng: kernel_cases(rng, dtype in COMPLEX, scored),
        scale=largest_of_each,
        dtypes=(dtype,),
        layouts=("C", "sliced"),
        emulated=True,
    )
    libraries = None if "cuda" in kernels else ["numpy"]
    run = run_op_checks(
        spec, backends=kernels, libraries=libraries, isas=["base"], thread_counts=(1,)
    )
    assert run.failures == 0


@pytest.mark.parametrize("kib", [6, 12])
def test_kernels_with_little_shared_memory(kib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if "emu" not in backends():
        pytest.skip("built without the emulator")
    # Chunks of the samples, and at last matrices outside shared memory.
    image = random_scene((7, 7, 17), np.random.default_rng(21))
    want = mahal.local_covariance(image, (1, 7), estimator="student_t", tolerance=1e-3)
    monkeypatch.setenv("MAHAL_SIMT_SHARED_KIB", str(kib))
    with backend("emu"):
        found = mahal.local_covariance(image, (1, 7), estimator="student_t", tolerance=1e-3)
    allowed = tolerance(np.float64, condition=CONDITION, terms=49)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=allowed * np.abs(expected).max())


def global_cases(rng: np.random.Generator, circular: bool) -> Iterator[Case]:
    for estimator in ESTIMATORS:
        for shape, center in [((13, 14, 3), True), ((70, 6), False), ((1200, 1), True)]:
            x = random_scene(shape, rng, circular=circular, offset=10.0)
            params = {
                "estimator": estimator,
                "center": center,
                "mask": rng.random(shape[:-1]) < 0.8,
            }
            yield Case(
                f"{estimator} {shape}",
                (x,),
                params,
                condition=CONDITION * 10,
                terms=max(shape[:-1]),
                broadcast_axis=None,
            )


@pytest.mark.parametrize("dtypes", [REAL, COMPLEX])
def test_global_estimates_against_the_reference(dtypes: Any) -> None:
    spec = OpSpec(
        name="mean_covariance",
        function=lambda x, **params: mahal.mean_covariance(x, **params),
        reference=reference_estimators.mean_covariance,
        cases=lambda rng: global_cases(rng, dtypes == COMPLEX),
        scale=largest_of_each,
        dtypes=dtypes,
        layouts=LAYOUTS,
    )
    assert run_op_checks(spec).failures == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("circular", [False, True])
def test_global_scores_are_distances_to_the_estimate(estimator: str, circular: bool) -> None:
    x = random_scene((20, 21, 4), np.random.default_rng(1), circular=circular)
    other = random_scene((15, 14, 4), np.random.default_rng(2), circular=circular)
    for center in (True, False):
        for samples in (x, other):
            background = None if samples is x else samples
            scores = mahal.rx(x, background=background, estimator=estimator, center=center)
            mean, covariance = mahal.mean_covariance(samples, estimator=estimator, center=center)
            if estimator == "tyler":
                own = mahal.mahalanobis(samples, mean, covariance)
                covariance = covariance * (own.mean() / 4)
            want = mahal.mahalanobis(x, mean, covariance)
            allowed = tolerance(np.float64, condition=CONDITION * 26, terms=420)
            np.testing.assert_allclose(scores, want, rtol=allowed)


def window_samples(image: np.ndarray, row: int, col: int, window: Any) -> np.ndarray:
    ring = reference.ring_indices(row, col, *image.shape[:2], window)
    return image.reshape(-1, image.shape[-1])[ring]


def test_parity_with_scikit_learn() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    image = random_scene((9, 10, 5), np.random.default_rng(3))
    for name, model in (("ledoit_wolf", covariance.LedoitWolf), ("oas", covariance.OAS)):
        _, found = mahal.local_covariance(image, (1, 7), estimator=name)
        for row, col in [(0, 0), (4, 5), (8, 9)]:
            want = model().fit(window_samples(image, row, col, (1, 7))).covariance_
            allowed = tolerance(np.float64, terms=48) * np.abs(want).max()
            np.testing.assert_allclose(found[row, col], want, rtol=0, atol=allowed)
        want = model(assume_centered=True).fit(image.reshape(-1, 5)).covariance_
        found = mahal.mean_covariance(image, estimator=name, center=False)[1]
        allowed = tolerance(np.float64, terms=90) * np.abs(want).max()
        np.testing.assert_allclose(found, want, rtol=0, atol=allowed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parity_with_pyriemann() -> None:
    covariance = pytest.importorskip("pyriemann.geometry.covariance")
    for circular, names in ((True, ROBUST), (False, ("tyler",))):
        image = random_scene((9, 10, 4), np.random.default_rng(4), circular=circular, offset=5.0)
        for name in names:
            for center in (True, False):
                _, found = mahal.local_covariance(
                    image, 7, estimator=name, center=center, tolerance=1e-12
                )
                want = covariance.covariance_mest(
                    window_samples(image, 4, 5, 7).T,
                    name[:3],
                    tol=1e-12,
                    n_iter_max=1000,
                    assume_centered=not center,
                )
                # Both stop a step of 1e-12 short, of a sequence that halves its steps or better.
                np.testing.assert_allclose(
                    found[4, 5], want, rtol=0, atol=4e-12 * np.abs(want).max()
                )


@pytest.mark.parametrize("circular", [False, True])
def test_tyler_knows_directions_only(circular: bool) -> None:
    rng = np.random.default_rng(5)
    image = random_scene((9, 10, 3), rng, circular=circular, offset=0.0)
    factors = 10.0 ** rng.uniform(-100, 100, (9, 10, 1))
    options: dict[str, Any] = {"estimator": "tyler", "center": False}
    _, found = mahal.local_covariance(image, 5, **options)
    _, scaled = mahal.local_covariance(image * factors, 5, **options)
    allowed = tolerance(np.float64, condition=CONDITION, terms=25)
    np.testing.assert_allclose(scaled, found, rtol=0, atol=3 * allowed)
    traces = np.trace(found, axis1=-2, axis2=-1)
    np.testing.assert_allclose(traces, 3.0, rtol=tolerance(np.float64, terms=3))


@pytest.mark.parametrize("estimator", ["scm", *ROBUST])
@pytest.mark.parametrize("circular", [False, True])
def test_affine_equivariance(estimator: str, circular: bool) -> None:
    rng = np.random.default_rng(6)
    image = random_scene((8, 9, 3), rng, circular=circular, scale=1.0, offset=0.0)
    a = random_spd(3, 10.0, rng, hermitian=circular)
    options: dict[str, Any] = {"estimator": estimator, "tolerance": 1e-13}
    _, found = mahal.local_covariance(image, 7, **options)
    _, moved = mahal.local_covariance(image @ a.T + 3.0, 7, **options)
    want = a @ found @ a.conj().T
    if estimator == "tyler":
        want = want * 3 / np.trace(want, axis1=-2, axis2=-1)[..., None, None]
    allowed = tolerance(np.float64, condition=CONDITION * 100, terms=49) * np.abs(want).max()
    np.testing.assert_allclose(moved, want, rtol=0, atol=allowed)
    scores = mahal.rx(image, window=7, **options)
    np.testing.assert_allclose(
        mahal.rx(image @ a.T + 3.0, window=7, **options),
        scores,
        rtol=0,
        atol=tolerance(np.float64, condition=CONDITION * 100, terms=49) * scores.max(),
    )


def test_student_approaches_the_sample_covariance() -> None:
    image = random_scene((8, 9, 3), np.random.default_rng(7))
    _, found = mahal.local_covariance(image, 5, estimator="student_t", nu=1e12)
    _, want = mahal.local_covariance(image, 5, ddof=0)
    # The weights are 1 + (p - q) / nu with distances q of at most N.
    np.testing.assert_allclose(found, want, rtol=0, atol=50e-12 * np.abs(want).max())


def test_loading_adds_its_share_of_the_mean_variance() -> None:
    image = random_scene((8, 9, 3), np.random.default_rng(8), circular=True)
    _, plain = mahal.local_covariance(image, 5)
    _, loaded = mahal.local_covariance(image, 5, estimator="loading", loading=0.25)
    trace = np.trace(plain, axis1=-2, axis2=-1).real
    want = plain + 0.25 / 3 * trace[..., None, None] * np.eye(3)
    allowed = tolerance(np.float64, terms=25) * np.abs(want).max()
    np.testing.assert_allclose(loaded, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [np.float32, np.complex128])
def test_identical_samples(estimator: str, dtype: Any) -> None:
    image = np.full((9, 20, 2), 0.1, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, covariance, status = mahal.local_covariance(
            image, 5, estimator=estimator, return_status=True
        )
    np.testing.assert_array_equal(status, 2)
    np.testing.assert_array_equal(covariance, np.nan if estimator in ROBUST else 0.0)
    if estimator != "scm":
        with pytest.warns(mahal.SingularWarning, match=r"^rx: 180 of 180 .* set to NaN$"):
            scores, status = mahal.rx(image, window=5, estimator=estimator, return_status=True)
        assert np.isnan(scores).all()
        np.testing.assert_array_equal(status, 2)
        with pytest.raises(mahal.SingularError):
            mahal.rx(image, window=5, estimator=estimator, singular="raise")
        with pytest.warns(mahal.SingularWarning):
            assert np.isnan(mahal.rx(image, estimator=estimator)).all()
    if estimator in ROBUST:
        with pytest.raises(mahal.SingularError, match=r"^mean_covariance: x: .*, got "):
            mahal.mean_covariance(image, estimator=estimator)
    else:
        np.testing.assert_array_equal(mahal.mean_covariance(image, estimator=estimator)[1], 0.0)


@pytest.mark.filterwarnings("ignore::mahal.ConvergenceWarning")
@pytest.mark.parametrize("estimator", ROBUST)
def test_few_and_degenerate_samples(estimator: str) -> None:
    rng = np.random.default_rng(9)
    image = random_scene((12, 20, 3), rng, offset=0.0)
    mask = np.zeros((12, 20), dtype=bool)
    mask[:6, :6] = True
    _, covariance, status = mahal.local_covariance(
        image, 3, estimator=estimator, mask=mask, return_status=True
    )
    inside = np.zeros((12, 20), dtype=int)
    for row in range(12):
        for col in range(20):
            inside[row, col] = mask.reshape(-1)[reference.ring_indices(row, col, 12, 20, 3)].sum()
    # The fewer samples, the more steps it takes.
    status[status == 5] = 0
    np.testing.assert_array_equal(status, np.where(inside > 4, 0, 1))
    np.testing.assert_array_equal(np.isnan(covariance).any(axis=(2, 3)), status == 1)
    # A third band that repeats the first: no window has full rank, nor has the image.
    flat = image.copy()
    flat[..., 2] = flat[..., 0]
    with pytest.warns(mahal.SingularWarning):
        _, status = mahal.rx(flat, window=5, estimator=estimator, return_status=True)
    np.testing.assert_array_equal(status, 2)
    # Too many zero samples for Tyler, which a Student estimate takes.
    zeros = image.copy()
    zeros[:, :10] = 0
    zeros[2, 2:6] = image[2, 2:6]
    _, covariance, status = mahal.local_covariance(
        zeros, 5, estimator=estimator, center=False, return_status=True
    )
    if estimator == "tyler":
        assert status[4, 4] == 0
        assert status[9, 4] == 2
        assert np.isnan(covariance[9, 4]).all()
    np.testing.assert_array_equal(status[:, 12:], 0)


@pytest.mark.parametrize("estimator", ROBUST)
def test_what_has_not_converged_is_reported(estimator: str) -> None:
    image = random_scene((8, 9, 3), np.random.default_rng(10), circular=True)
    options: dict[str, Any] = {"estimator": estimator, "max_iterations": 3}
    with pytest.warns(mahal.ConvergenceWarning, match=r"^local_covariance: 72 of 72 "):
        _, covariance, status = mahal.local_covariance(image, 5, return_status=True, **options)
    np.testing.assert_array_equal(status, 5)
    want = reference_estimators.local_covariance(image, 5, **options)[1]
    allowed = tolerance(np.float64, condition=CONDITION, terms=25) * np.abs(want).max()
    np.testing.assert_allclose(covariance, want, rtol=0, atol=allowed)
    with pytest.warns(mahal.ConvergenceWarning, match=r"^rx: 72 of 72 "):
        scores, status = mahal.rx(image, window=5, return_status=True, **options)
    np.testing.assert_array_equal(status, 5)
    assert np.isfinite(scores).all()
    with pytest.warns(mahal.ConvergenceWarning, match=r"^mean_covariance: 1 of 1 ") as caught:
        mahal.mean_covariance(image, **options)
    assert caught[0].filename == __file__
    with pytest.warns(mahal.ConvergenceWarning, match=r"^rx: 72 of 72 ") as caught:
        _, status = mahal.rx(image, return_status=True, **options)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(status, 5)


@pytest.mark.parametrize("estimator", ESTIMATORS[1:])
def test_a_bad_pixel_costs_only_its_windows(estimator: str) -> None:
    image = random_scene((12, 30, 3), np.random.default_rng(11)).astype(np.float32)
    clean, _ = mahal.rx(image, window=(1, 5), estimator=estimator, return_status=True)
    spoiled = image.copy()
    spoiled[6, 12, 1] = np.nan
    scores, status = mahal.rx(spoiled, window=(1, 5), estimator=estimator, return_status=True)
    touched = np.zeros((12, 30), dtype=bool)
    touched[4:9, 10:15] = True
    np.testing.assert_array_equal(status, np.where(touched, 3, 0))
    np.testing.assert_array_equal(scores[~touched], clean[~touched])
    mask = np.ones((12, 30), dtype=bool)
    mask[6, 12] = False
    scores, status = mahal.rx(
        spoiled, window=(1, 5), estimator=estimator, mask=mask, return_status=True
    )
    assert status[6, 12] == 4
    assert (status == 0).sum() == 359
    np.testing.assert_array_equal(scores[~touched], clean[~touched])


def test_several_windows_and_torch_agree_with_single_ones() -> None:
    image = random_scene((12, 13, 3), np.random.default_rng(12), circular=True)
    windows: list[Any] = [5, (3, 9)]
    mean, covariance, status = mahal.local_covariance(
        image, windows, estimator="tyler", return_status=True
    )
    assert status.shape == (12, 13, 2)
    for k, window in enumerate(windows):
        one_mean, one = mahal.local_covariance(image, window, estimator="tyler")
        np.testing.assert_array_equal(mean[:, :, k], one_mean)
        np.testing.assert_array_equal(covariance[:, :, k], one)


def test_huge_samples_give_no_silent_score() -> None:
    image = random_scene((8, 9, 3), np.random.default_rng(13)) * 1e160
    with pytest.warns(mahal.SingularWarning):
        scores, status = mahal.rx(image, window=5, estimator="oas", return_status=True)
    np.testing.assert_array_equal(status, 2)
    assert np.isnan(scores).all()


IMAGE = random_scene((9, 12, 3), np.random.default_rng(14))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mahal.rx(IMAGE, window=5, estimator="magic"), "rx: estimator: must be"),
        (
            lambda: mahal.mean_covariance(IMAGE, estimator="loading", loading=-1.0),
            "mean_covariance: lo",
        ),
        (
            lambda: mahal.mean_covariance(IMAGE, estimator="student_t", nu=0),
            "mean_covariance: nu: ",
        ),
        (lambda: mahal.rx(IMAGE, estimator="tyler", tolerance=0), "rx: tolerance: must be between"),
        (lambda: mahal.rx(IMAGE, estimator="tyler", max_iterations=0), "rx: max_iterations: must"),
        (lambda: mahal.rx(IMAGE, estimator="oas", covariance=np.eye(3)), "rx: estimator: cannot"),
        (
            lambda: mahal.rx(IMAGE, estimator="oas", background=IMAGE, window=3),
            "rx: background: ca",
        ),
        (
            lambda: mahal.mean_covariance(IMAGE[0, :4], estimator="tyler"),
            "mean_covariance: x: needs 5",
        ),
        (
            lambda: mahal.local_covariance(
                IMAGE[..., [0, 1, 2, 0, 1, 2, 0, 1, 2]], 3, estimator="tyler"
            ),
            "local_covariance: window: must hold 11",
        ),
    ],
)
def test_bad_values(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}.*, got .*$"):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: mahal.rx(IMAGE, estimator="loading", loading="much"),
            "rx: loading: must be a num",
        ),
        (
            lambda: mahal.rx(IMAGE, estimator="tyler", max_iterations=2.5),
            "rx: max_iterations: must",
        ),
        (lambda: mahal.local_covariance(IMAGE, 3, return_status=1), "local_covariance: return_st"),
    ],
)
def test_bad_types(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^{message}.*, got .*$"):
        call()

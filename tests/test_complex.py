"""Complex images and the uncentred option, in every op that takes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import (
    LAYOUTS,
    Case,
    OpSpec,
    random_scene,
    random_spd,
    reference,
    run_op_checks,
    tolerance,
)

COMPLEX = (np.complex64, np.complex128)
CONDITION = 50.0


def adjoint(a: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(a, -1, -2))


def second_output_is_hermitian(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(outputs[1], adjoint(outputs[1]))
    assert not (np.diagonal(outputs[1], axis1=-2, axis2=-1).real < 0).any()


def mean_covariance_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(9, 13, 3), (40, 4), (31, 1, 17), (7, 5, 1)]:
        x = random_scene(shape, rng, circular=True)
        yield Case(f"shape {shape}", (x,), terms=x.size // shape[-1])
    x = random_scene((12, 10, 4), rng, circular=True)
    yield Case("uncentred", (x,), {"center": False, "ddof": 3}, terms=120)
    yield Case("mask", (x,), {"mask": rng.random((12, 10)) < 0.5, "ddof": 0}, terms=120)


def deviations(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    deviation = np.sqrt(np.diag(expected[1]).real)
    return float(np.abs(case.arrays[0]).max()), np.outer(deviation, deviation)


def test_mean_covariance_against_the_reference() -> None:
    spec = OpSpec(
        name="mean_covariance",
        function=lambda x, **params: mahal.mean_covariance(x, **params),
        reference=reference.mean_covariance,
        cases=mean_covariance_cases,
        constant=2.0,
        scale=deviations,
        invariants=[second_output_is_hermitian],
        dtypes=COMPLEX,
    )
    assert run_op_checks(spec).failures == 0


def local_covariance_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, window, params in [
        ((7, 9, 1), 3, {}),
        ((9, 12, 2), (1, 5), {}),
        ((12, 9, 3), 5, {"border": "reflect"}),
        ((7, 33, 4), (3, 7), {}),
        ((9, 10, 3), 7, {"border": "valid", "ddof": 0}),
        ((11, 10, 5), [5, (3, 9)], {}),
        ((9, 12, 9), (1, 5), {}),
        ((14, 15, 3), (3, 9), {"mask": rng.random((14, 15)) < 0.6}),
        ((10, 11, 4), 3, {"center": False, "mask": rng.random((10, 11)) < 0.2}),
        ((10, 11, 6), (1, 5), {"center": False}),
    ]:
        image = random_scene(shape, rng, circular=True)
        yield Case(
            f"{shape} window {window} {sorted(params)}",
            (image,),
            {"window": window, **params},
            terms=81,
        )


def spreads(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """Largest pixel and largest square about the origin: what the sums are made of."""
    image = case.arrays[0]
    origin = image.mean(axis=(0, 1)) if case.params.get("center", True) else 0.0
    return float(np.abs(image).max()), float((np.abs(image - origin) ** 2).max())


def test_local_covariance_against_the_reference() -> None:
    spec = OpSpec(
        name="local_covariance",
        function=lambda image, window, **params: mahal.local_covariance(image, window, **params),
        reference=reference.local_covariance,
        cases=local_covariance_cases,
        constant=2.0,
        scale=spreads,
        invariants=[second_output_is_hermitian],
        dtypes=COMPLEX,
        emulated=True,
    )
    assert run_op_checks(spec).failures == 0


def real_uncentred_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, window in [((9, 12, 3), (1, 5)), ((8, 11, 7), 3), ((9, 10, 10), 5)]:
        params = {"window": window, "center": False, "ddof": 1000}
        yield Case(f"{shape}", (random_scene(shape, rng),), params, terms=25)


def test_uncentred_local_covariance_of_real_images() -> None:
    spec = OpSpec(
        name="local_covariance",
        function=lambda image, window, **params: mahal.local_covariance(image, window, **params),
        reference=reference.local_covariance,
        cases=real_uncentred_cases,
        constant=2.0,
        scale=spreads,
        emulated=True,
    )
    assert run_op_checks(spec, libraries=["numpy"]).failures == 0


def hermitian_batch(
    shape: tuple[int, ...], size: int, condition: float, rng: np.random.Generator
) -> np.ndarray:
    count = int(np.prod(shape, dtype=int))
    stack = [random_spd(size, condition, rng, hermitian=True) for _ in range(count)]
    return np.stack(stack).reshape(*shape, size, size)


def cholesky_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, size in [
        ((), 3),
        ((7,), 1),
        ((9,), 2),
        ((2, 3), 4),
        ((17,), 5),
        ((4, 5), 7),
        ((3,), 16),
        ((3,), 33),
        ((1,), 64),
    ]:
        a = hermitian_batch(shape, size, 100.0, rng)
        axis = 0 if shape else None
        label = f"{shape} n={size}"
        yield Case(label, (a,), {}, condition=100.0, terms=size, broadcast_axis=axis)
    a = hermitian_batch((18,), 6, 10.0, rng)
    yield Case("loaded", (a,), {"loading": 0.5}, condition=3.0, terms=6)


def factor_is_triangular_and_real_on_its_diagonal(
    case: Case, outputs: tuple[np.ndarray, ...]
) -> None:
    np.testing.assert_array_equal(np.triu(outputs[0], 1), 0.0)
    diagonal = np.diagonal(outputs[0], axis1=-2, axis2=-1)
    assert (diagonal.imag == 0).all()
    assert (diagonal.real > 0).all()


def test_cholesky_against_the_reference() -> None:
    spec = OpSpec(
        name="cholesky",
        function=lambda a, **params: mahal.cholesky(a, **params),
        reference=lambda a, **params: reference.cholesky(a, **params).lower,
        cases=cholesky_cases,
        constant=2.0,
        invariants=[factor_is_triangular_and_real_on_its_diagonal],
        dtypes=COMPLEX,
    )
    assert run_op_checks(spec).failures == 0


@pytest.mark.parametrize("dtype", COMPLEX)
def test_a_bad_matrix_of_a_batch_fails_alone(dtype: Any) -> None:
    a = hermitian_batch((19,), 4, 10.0, np.random.default_rng(1)).astype(dtype)
    good = mahal.cholesky(a)
    a[3] = np.ones((4, 4))
    a[7, 2, 1] = complex(0.0, np.nan)
    a[9, 1, 2] = np.nan  # above the diagonal, where nothing is read
    a[11, 2, 2] += 5j
    factor = mahal.cholesky(a, singular="nan")
    failed = np.isnan(factor).all(axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(failed), [3, 7])
    np.testing.assert_array_equal(factor[~failed], good[~failed])
    with pytest.raises(mahal.SingularError, match=r"^cholesky: a: .*, got 2 of 19 matrices"):
        mahal.cholesky(a)


def fixed_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape in [(4,), (37, 3), (1, 1), (9, 11, 5), (5, 33, 9)]:
        x = random_scene(shape, rng, offset=1.0, scale=1.0, circular=True)
        mean = 1.0 + 0.1 * random_scene((shape[-1],), rng, offset=0.0, scale=1.0, circular=True)
        covariance = random_spd(shape[-1], CONDITION, rng, hermitian=True)
        axis = 0 if len(shape) > 1 else None
        arrays = (x, mean, covariance)
        yield Case(
            f"shape {shape}",
            arrays,
            condition=CONDITION,
            terms=2 * shape[-1],
            broadcast_axis=axis,
        )


@pytest.mark.parametrize("name", ["whiten", "mahalanobis"])
def test_fixed_background_against_the_reference(name: str) -> None:
    function = getattr(mahal, name)
    spec = OpSpec(
        name=name,
        function=lambda x, mean, covariance: function(x, mean, covariance),
        reference=getattr(reference, name),
        cases=fixed_cases,
        dtypes=COMPLEX,
    )
    assert run_op_checks(spec).failures == 0


def rx_cases(rng: np.random.Generator) -> Iterator[Case]:
    def scene(*shape: int) -> np.ndarray:
        return random_scene(shape, rng, circular=True)

    covariance = 400 * random_spd(4, 50.0, rng, hermitian=True)
    for shape, params in [
        ((12, 15, 4), {}),
        ((60, 3), {"center": False}),
        ((9, 31, 1), {}),
        ((16, 18, 4), {"mask": rng.random((16, 18)) < 0.8}),
        ((14, 13, 4), {"background": scene(20, 11, 4)}),
        ((14, 13, 4), {"background": scene(20, 11, 4), "center": False}),
        ((14, 13, 4), {"covariance": covariance}),
        ((14, 13, 4), {"covariance": covariance, "center": False}),
        ((14, 13, 4), {"covariance": covariance, "window": (3, 7)}),
        ((8, 19, 1), {"window": (1, 3)}),
        ((12, 15, 4), {"window": (1, 5)}),
        ((9, 40, 3), {"window": (3, 7), "border": "reflect"}),
        ((13, 14, 2), {"window": 5, "border": "valid", "center": False}),
        ((16, 18, 3), {"window": (3, 9), "mask": rng.random((16, 18)) < 0.8}),
        ((15, 16, 9), {"window": (5, 9)}),
        ((16, 18, 3), {"window": (3, 9), "mask": rng.random((16, 18)) < 0.8, "center": False}),
    ]:
        # The offset of 100 is five deviations, which the uncentred covariance takes in.
        grown = CONDITION * (1.0 if params.get("center", True) else 26.0)
        yield Case(
            f"{shape} {sorted(params)}",
            (scene(*shape),),
            {"return_status": True, **params},
            condition=grown,
            terms=2 * max(shape[-1], 7),
            broadcast_axis=None,
        )


def reference_rx(image: np.ndarray, *, return_status: bool, **params: Any) -> Any:
    return reference.rx(image, **params)


def test_rx_against_the_reference() -> None:
    spec = OpSpec(
        name="rx",
        function=lambda image, **params: mahal.rx(image, **params),
        reference=reference_rx,
        cases=rx_cases,
        constant=2.0,
        layouts=[name for name in LAYOUTS if name != "broadcast"],
        dtypes=COMPLEX,
    )
    assert run_op_checks(spec).failures == 0


def test_two_complex_samples_by_hand() -> None:
    mean, covariance = mahal.mean_covariance(np.array([[1.0, 1j], [3.0, 3 + 1j]]))
    np.testing.assert_array_equal(mean, [2.0, 1.5 + 1j])
    np.testing.assert_array_equal(covariance, [[2.0, 3.0], [3.0, 4.5]])
    mean, moments = mahal.mean_covariance(np.array([[1.0, 1j]]), center=False)
    np.testing.assert_array_equal(mean, 0.0)
    np.testing.assert_array_equal(moments, [[1.0, -1j], [1j, 1.0]])


def test_numpy_gives_the_same_covariance_and_its_factor() -> None:
    x = random_scene((50, 40, 4), np.random.default_rng(2), offset=0.0, circular=True)
    _, covariance = mahal.mean_covariance(x)
    want = np.cov(x.reshape(-1, 4), rowvar=False)
    allowed = tolerance(np.float64, terms=2000) * np.abs(want).max()
    np.testing.assert_allclose(covariance, want, rtol=0, atol=allowed)
    factor = np.linalg.cholesky(want)
    allowed = tolerance(np.float64, condition=CONDITION, terms=2000) * np.abs(factor).max()
    np.testing.assert_allclose(mahal.cholesky(covariance), factor, rtol=0, atol=allowed)


def test_global_scores_do_not_change_under_a_complex_linear_map() -> None:
    rng = np.random.default_rng(3)
    x = random_scene((20, 30, 3), rng, offset=0.0, scale=1.0, circular=True)
    a = random_spd(3, 10.0, rng, hermitian=True) * np.exp(1j * np.arange(3))
    for center in (True, False):
        scores = mahal.rx(x, center=center)
        allowed = tolerance(np.float64, condition=CONDITION * 100, terms=600)
        np.testing.assert_allclose(mahal.rx(x @ a.T, center=center), scores, rtol=allowed)
        # The scores of the samples that made the covariance add up to p (N - 1), or p N.
        total = 3 * (600 - 1 if center else 600)
        assert scores.sum() == pytest.approx(total, rel=allowed)


def test_pending_conjugation_of_a_tensor_is_resolved() -> None:
    torch = pytest.importorskip("torch")
    x = random_scene((9, 10, 2), np.random.default_rng(4), circular=True)
    lazy = torch.from_numpy(x).conj()
    mean, covariance = mahal.mean_covariance(lazy)
    want_mean, want = mahal.mean_covariance(x.conj())
    np.testing.assert_array_equal(mean.numpy(), want_mean)
    np.testing.assert_array_equal(covariance.numpy(), want)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_constant_and_spoiled_images(dtype: Any) -> None:
    image = np.full((9, 12, 3), 0.1 + 0.3j, dtype=dtype)
    _, covariance = mahal.local_covariance(image, (1, 5))
    np.testing.assert_array_equal(covariance, 0.0)
    np.testing.assert_array_equal(mahal.mean_covariance(image)[1], 0.0)
    image = random_scene((9, 12, 3), np.random.default_rng(5), circular=True).astype(dtype)
    image[4, 5, 1] = complex(1.0, np.inf)
    found = mahal.local_covariance(image, 3)[1]
    want = reference.local_covariance(image, 3)[1]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(want))
    scores, status = mahal.rx(image, return_status=True)
    assert status[4, 5] == 3
    assert (status == 0).sum() == 107
    np.testing.assert_array_equal(np.isnan(scores), status != 0)


IMAGE = random_scene((9, 12, 3), np.random.default_rng(6), circular=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mahal.rx(IMAGE, covariance=np.eye(3)), r"rx: covariance: must have dtype complex"),
        (lambda: mahal.rx(IMAGE.real, covariance=np.eye(3) + 0j), r"rx: covariance: must have dty"),
        (lambda: mahal.rx(IMAGE, background=IMAGE.real), r"rx: background: must have the dtype"),
        (
            lambda: mahal.whiten(IMAGE, np.zeros(3), np.eye(3) + 0j),
            r"whiten: mean: must have dtype complex",
        ),
    ],
)
def test_mixed_real_and_complex_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"^{message}.*, got .*$"):
        call()


def test_a_covariance_that_is_not_hermitian_is_refused() -> None:
    covariance = np.eye(3) + 0j
    covariance[0, 1] = covariance[1, 0] = 0.5j
    with pytest.raises(ValueError, match=r"^mahalanobis: covariance: must be Hermitian, got "):
        mahal.mahalanobis(IMAGE, np.zeros(3) + 0j, covariance)
    with pytest.raises(ValueError, match=r"^rx: center: must be true with a window and a covar"):
        mahal.rx(IMAGE, window=3, covariance=np.eye(3) + 0j, center=False)


def uncentred_local_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, params in [
        ((12, 35, 3), {"window": (1, 5)}),
        ((70, 12, 2), {"window": 5}),
        ((13, 14, 7), {"window": 9, "border": "reflect"}),
    ]:
        yield Case(
            f"{shape} {sorted(params)}",
            (random_scene(shape, rng, offset=5.0, scale=5.0),),
            {"return_status": True, "center": False, **params},
            condition=CONDITION,
            terms=9,
        )


def test_uncentred_local_scores_of_real_images() -> None:
    spec = OpSpec(
        name="rx",
        function=lambda image, **params: mahal.rx(image, **params),
        reference=reference_rx,
        cases=uncentred_local_cases,
        constant=2.0,
        layouts=("C", "negative"),
    )
    assert run_op_checks(spec, libraries=["numpy"], thread_counts=(2,)).failures == 0


@pytest.mark.parametrize("dtype", COMPLEX)
@pytest.mark.parametrize("center", [True, False])
def test_singular_complex_windows_follow_the_rule(dtype: Any, center: bool) -> None:
    image = random_scene((30, 41, 3), np.random.default_rng(7), offset=0.0, circular=True)
    # The last band is a multiple of the first here: exactly, so that rounding leaves it so.
    image = image.astype(dtype)
    image[:14, :18, 2] = image[:14, :18, 0] * 2j
    with pytest.warns(mahal.SingularWarning):
        scores, status = mahal.rx(image, window=(1, 7), center=center, return_status=True)
    want, want_status = reference.rx(image, window=(1, 7), center=center)
    assert 50 < (want_status == 2).sum() < 300
    np.testing.assert_array_equal(status, want_status)
    # Loading by 1e-6 bounds the condition number of a window.
    good = status == 0
    allowed = tolerance(dtype, condition=CONDITION, terms=14)
    np.testing.assert_allclose(scores[good], want[good], rtol=0, atol=allowed * want[good].max())
    exact = tolerance(np.float64, condition=1e6, terms=48) + np.finfo(dtype).eps
    np.testing.assert_allclose(scores[~good], want[~good], rtol=0, atol=exact * want.max())


def test_local_scores_do_not_change_under_a_complex_affine_map() -> None:
    rng = np.random.default_rng(8)
    image = random_scene((20, 33, 3), rng, offset=0.0, scale=1.0, circular=True)
    a = random_spd(3, 10.0, rng, hermitian=True) * np.exp(1j * np.arange(3))
    scores = mahal.rx(image, window=(3, 9))
    allowed = tolerance(np.float64, condition=CONDITION * 100, terms=72)
    moved = mahal.rx(image @ a.T + (3.0 - 2.0j), window=(3, 9))
    np.testing.assert_allclose(moved, scores, rtol=0, atol=allowed * scores.max())
    ring = reference.ring_indices(7, 8, 20, 33, (3, 9))
    samples = image.reshape(-1, 3)[ring]
    direct = mahal.mahalanobis(image[7, 8], *mahal.mean_covariance(samples))
    assert scores[7, 8] == pytest.approx(float(direct), rel=allowed)


@pytest.mark.parametrize("center", [True, False])
def test_local_scores_follow_their_law(center: bool) -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(9)
    bands, inner, outer = 3, 3, 7
    # One window per 7 columns: 600 independent ones.
    image = random_scene((outer, 600 * outer, bands), rng, offset=0.0, circular=True)
    scores = mahal.rx(image, window=(inner, outer), center=center, border="valid")
    scores = scores[outer // 2, outer // 2 :: outer]
    values = mahal.significance.rx_pvalue(
        scores,
        bands,
        outer**2 - inner**2,
        mean="estimated" if center else "known",
        complex_data=True,
    )
    assert stats.kstest(values, "uniform").pvalue > 1e-3

"""Gradients of covariance_distance: reference, differences, degenerate matrices, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal import _core
from mahal.ops.covariance_distance import METRICS
from mahal.ops.covariance_distance_backward import covariance_distance_backward
from mahal.testing import Case, OpSpec, random_spd, run_op_checks, tolerance
from mahal.testing import reference_change_backward as reference
from mahal.testing.reference_change import DISTANCES

LOOKS: dict[str, tuple[float, float]] = {"wishart": (60.0, 45.5), "box_m": (60.0, 45.0)}


def batch(
    count: int, size: int, condition: float, rng: np.random.Generator, hermitian: bool = False
) -> Any:
    """Positive definite matrices of different scales with a chosen condition number."""
    scales = rng.uniform(0.5, 2.0, (count, 1, 1))
    matrices = [random_spd(size, condition, rng, hermitian=hermitian) for _ in range(count)]
    return scales * np.stack(matrices)


@pytest.fixture(params=[name for name in mahal.testing.backends() if name != "cuda"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Host arrays on the CPU kernels, and through the CUDA kernels where the emulator is."""
    with mahal.testing.backend(request.param):
        yield request.param


def gradients(a: Any, b: Any, grad: Any, metric: str, *, squared: bool = False) -> Any:
    """Both gradients, through the forward op."""
    looks = LOOKS.get(metric)
    score, status = mahal.covariance_distance(
        a, b, metric, squared=squared, looks=looks, return_status=True
    )
    return covariance_distance_backward(
        a, b, score, status, grad, metric, squared, looks or (0.0, 0.0)
    )


def expected_of(a: Any, b: Any, grad: Any, metric: str, *, squared: bool = False) -> Any:
    return reference.covariance_distance_backward(
        a, b, grad, metric, squared=squared, looks=LOOKS.get(metric, (1.0, 1.0))
    )


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for metric in METRICS:
        for count, size in [(1, 1), (11, 3), (2, 9)]:
            a, b = (batch(count, size, 10.0, rng) for _ in range(2))
            params = {"metric": metric, "squared": size == 3}
            # Inverses of both matrices stand beside each other.
            yield Case(
                f"{metric} {count} x {size}",
                (a, b, rng.standard_normal(count)),
                params,
                100.0,
                size * size,
                broadcast_axis=None,
            )


SPEC = OpSpec(
    name="covariance_distance_backward",
    function=lambda a, b, grad, **params: gradients(a, b, _contiguous(grad), **params),
    reference=expected_of,
    cases=cases,
    layouts=("C", "F", "negative"),
    emulated=True,
)


def _contiguous(grad: Any) -> Any:
    return grad.contiguous() if hasattr(grad, "contiguous") else np.ascontiguousarray(grad)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_hermitian_against_the_reference(dtype: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    a, b = (batch(11, size, 10.0, rng, True).astype(dtype) for _ in range(2))
    grad = rng.standard_normal(11).astype(a.real.dtype)
    for metric in METRICS:
        if metric == "box_m":
            continue
        wanted = expected_of(a, b, grad, metric)
        for isa in mahal.testing.isas():
            with mahal.testing.isa(isa):
                found = gradients(a, b, grad, metric)
            for got, want in zip(found, wanted, strict=True):
                assert got.dtype == dtype
                allowed = tolerance(a.real.dtype, condition=100.0, terms=size * size)
                np.testing.assert_allclose(
                    got, want, rtol=0, atol=allowed * np.abs(want).max(), err_msg=metric
                )
                np.testing.assert_array_equal(got, got.conj().swapaxes(1, 2))


@pytest.mark.parametrize(
    ("dtype", "size", "count"),
    [
        (np.complex64, 3, 33),
        (np.complex128, 7, 5),
        (np.complex64, 9, 3),
        (np.complex128, 30, 1),
        (np.float32, 31, 2),
    ],
)
def test_kernels_for_larger_matrices(dtype: Any, size: int, count: int) -> None:
    """By a thread, a warp and a block for each pair."""
    if "emu" not in mahal.testing.backends():
        pytest.skip("built without the emulator")
    rng = np.random.default_rng(size)
    hermitian = np.dtype(dtype).kind == "c"
    a, b = (batch(count, size, 10.0, rng, hermitian).astype(dtype) for _ in range(2))
    grad = rng.standard_normal(count).astype(a.real.dtype)
    for metric in METRICS:
        if metric == "box_m" and hermitian:
            continue
        with mahal.testing.backend("emu"):
            found = gradients(a, b, grad, metric)
        for got, want in zip(found, expected_of(a, b, grad, metric), strict=True):
            allowed = tolerance(a.real.dtype, condition=100.0, terms=size * size)
            np.testing.assert_allclose(
                got, want, rtol=0, atol=allowed * np.abs(want).max(), err_msg=metric
            )
            np.testing.assert_array_equal(got, got.conj().swapaxes(1, 2))


@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_differences_of_the_score(metric: str, hermitian: bool) -> None:
    """z(A + h E, B + h F) - z(A - h E, B - h F) over 2 h: to h^2 and eps / h."""
    if hermitian and metric == "box_m":
        pytest.skip("real only")
    rng = np.random.default_rng(3)
    a, b = (batch(7, 4, 20.0, rng, hermitian) for _ in range(2))
    e, f = (batch(7, 4, 2.0, rng, hermitian) - batch(7, 4, 2.0, rng, hermitian) for _ in range(2))
    looks = LOOKS.get(metric)
    h = 1e-5
    up = mahal.covariance_distance(a + h * e, b + h * f, metric, looks=looks)
    down = mahal.covariance_distance(a - h * e, b - h * f, metric, looks=looks)
    grad_a, grad_b = gradients(a, b, np.ones(7), metric)
    slope = (grad_a.conj() * e + grad_b.conj() * f).real.sum(axis=(1, 2))
    # Two steps, of h |E| over the smallest eigenvalue each, and the rounding of both scores.
    allowed = (80 * h) ** 2 + tolerance(float, condition=40.0) / h
    size = max(np.abs(slope).max(), np.abs(up).max())
    np.testing.assert_allclose((up - down) / (2 * h), slope, rtol=0, atol=allowed * size)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.usefixtures("everywhere")
def test_equal_matrices(metric: str) -> None:
    """A distance has its least value there: nothing, not even of roots, which have no slope."""
    rng = np.random.default_rng(4)
    a = batch(9, 4, 10.0, rng)
    for squared in (False, True):
        grad_a, grad_b = gradients(a, a.copy(), np.ones(9), metric, squared=squared)
        if metric == "hotelling_lawley":
            allowed = tolerance(float, condition=100.0, terms=16)
            np.testing.assert_allclose(grad_a, np.linalg.inv(a), rtol=0, atol=20 * allowed)
            np.testing.assert_array_equal(np.isfinite(grad_b), True)
        else:
            assert not grad_a.any()
            assert not grad_b.any()


@pytest.mark.parametrize("metric", DISTANCES)
@pytest.mark.usefixtures("everywhere")
def test_almost_equal_matrices(metric: str) -> None:
    """All but the cancelled digits are there: roots keep gradients of the order of one."""
    rng = np.random.default_rng(5)
    a = batch(5, 3, 4.0, rng)
    step = 1e-6
    b = a + step * (batch(5, 3, 2.0, rng) - batch(5, 3, 2.0, rng))
    grad_a, grad_b = gradients(a, b, np.ones(5), metric, squared=True)
    # To the first order both gradients are opposite, and of the order of the step.
    largest = np.abs(grad_a).max()
    assert 0.01 * step < largest < 100 * step
    np.testing.assert_allclose(grad_a, -grad_b, rtol=0, atol=50 * step * largest)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.usefixtures("everywhere")
def test_repeated_eigenvalues(metric: str) -> None:
    eye = np.eye(4)[None]
    for a, b in [(eye, 3 * eye), (np.diag([1.0, 1, 2, 2])[None], np.diag([5.0, 5, 5, 1])[None])]:
        found = gradients(a, b, np.ones(1), metric)
        for got, want in zip(found, expected_of(a, b, np.ones(1), metric), strict=True):
            allowed = tolerance(float, condition=25.0, terms=16) * np.abs(want).max()
            np.testing.assert_allclose(got, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("metric", ["logeuclid", "affine_invariant"])
@pytest.mark.usefixtures("everywhere")
def test_graded_matrices(metric: str) -> None:
    """Beyond what the QL algorithm finds the small eigenvalues are still exact."""
    values = np.array([1.0, 1e-5, 3e-9, 2e-11])
    a, b = np.diag(values)[None], np.eye(4)[None]
    grad_a, grad_b = gradients(a, b, np.ones(1), metric, squared=True)
    slope = 2 * np.log(values)
    allowed = tolerance(float, terms=16)
    np.testing.assert_allclose(np.diag(grad_a[0]), slope / values, rtol=allowed)
    np.testing.assert_allclose(np.diag(grad_b[0]), -slope, rtol=allowed)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.usefixtures("everywhere")
def test_a_pair_does_not_depend_on_its_batch(metric: str) -> None:
    rng = np.random.default_rng(6)
    a, b = (batch(21, 3, 10.0, rng) for _ in range(2))
    grad = rng.standard_normal(21)
    right = gradients(a, b, grad, metric)
    a[4] = np.diag([1.0, 1e-8, 1e-3])
    a[9] = 0
    b[11, 2, 1] = np.nan
    b[12, 0, 0] = np.inf
    grad[12] = 0
    found = gradients(a, b, grad, metric)
    same = np.setdiff1d(np.arange(21), [4, 9, 11, 12])
    for got, want in zip(found, right, strict=True):
        np.testing.assert_array_equal(got[same], want[same])
        assert np.isnan(got[9]).all() == (metric != "frobenius")
        assert np.isnan(got[11]).all()
        # Whoever leaves such scores out of a loss gets nothing from them.
        assert not got[12].any()


@pytest.mark.usefixtures("everywhere")
def test_one_gradient_alone() -> None:
    rng = np.random.default_rng(7)
    a, b = (batch(5, 3, 10.0, rng) for _ in range(2))
    score, status = mahal.covariance_distance(a, b, "logdet", return_status=True)
    args = (a, b, score, status, np.ones(5), "logdet", False)
    both = covariance_distance_backward(*args)
    only_a, no_b = covariance_distance_backward(*args, needs=(True, False))
    no_a, only_b = covariance_distance_backward(*args, needs=(False, True))
    assert no_a is None
    assert no_b is None
    np.testing.assert_array_equal(only_a, both[0])
    np.testing.assert_array_equal(only_b, both[1])
    empty = np.zeros((0, 3, 3))
    none = np.zeros(0)
    found = covariance_distance_backward(
        empty, empty, none, none.astype("u1"), none, "logdet", False
    )
    assert [g.shape for g in found if g is not None] == [(0, 3, 3)] * 2


def test_errors() -> None:
    a = np.eye(3)[None].repeat(4, 0)
    score, status = np.zeros(4), np.zeros(4, np.uint8)
    out = np.empty_like(a)

    def call(score: Any = score, status: Any = status, grad: Any = score, to: Any = out) -> None:
        memory = np.zeros(1 << 20, np.uint8)
        _core.covariance_distance_backward(
            a, a, score, status, grad, to, None, memory, "logdet", False, 0.0, 0.0, 1, 0
        )

    call()
    with pytest.raises(ValueError, match="score: must be contiguous with one element per pair"):
        call(score=np.zeros(3))
    with pytest.raises(TypeError, match="grad: must have dtype float64, got float32"):
        call(grad=np.zeros(4, np.float32))
    with pytest.raises(TypeError, match="status: must have dtype uint8"):
        call(status=np.zeros(4))
    with pytest.raises(ValueError, match="grad_a: must be a contiguous array like a"):
        call(to=np.empty((3, 3, 3)))
    with pytest.raises(ValueError, match="metric: must be a known metric"):
        covariance_distance_backward(a, a, score, status, score, "euclid", False)

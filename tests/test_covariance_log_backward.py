"""Gradient of covariance_log: reference, adjoint, degenerate matrices, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal import _core
from mahal.ops.covariance_log_backward import covariance_log_backward
from mahal.testing import Case, OpSpec, random_spd, run_op_checks, tolerance
from mahal.testing import reference_change_backward as reference


def batch(count: int, size: int, rng: np.random.Generator, hermitian: bool = False) -> Any:
    """Positive definite matrices with condition number 10."""
    return np.stack([random_spd(size, 10.0, rng, hermitian=hermitian) for _ in range(count)])


@pytest.fixture(params=[name for name in mahal.testing.backends() if name != "cuda"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Host arrays on the CPU kernels, and through the CUDA kernels where the emulator is."""
    with mahal.testing.backend(request.param):
        yield request.param


def noise(shape: tuple[int, ...], rng: np.random.Generator, hermitian: bool) -> Any:
    real = rng.standard_normal(shape)
    return real + 1j * rng.standard_normal(shape) if hermitian else real


def gradient(a: Any, grad: Any, *, loading: float = 0.0) -> Any:
    _, status = mahal.covariance_log(a, loading=loading, return_status=True)
    plain = grad.contiguous() if hasattr(grad, "contiguous") else np.ascontiguousarray(grad)
    return covariance_log_backward(a, status, plain, loading)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for count, size in [(1, 1), (17, 2), (9, 5), (2, 12)]:
        a = batch(count, size, rng)
        yield Case(f"{count} x {size}", (a, noise(a.shape, rng, False)), {}, 100.0, size)
    a = batch(6, 3, rng).reshape(2, 3, 3, 3)
    yield Case("loaded", (a, noise(a.shape, rng, False)), {"loading": 0.5}, 10.0, 3)


SPEC = OpSpec(
    name="covariance_log_backward",
    function=gradient,
    reference=reference.covariance_log_backward,
    cases=cases,
    emulated=True,
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("size", [1, 3, 9])
def test_hermitian_against_the_reference(dtype: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    a = batch(11, size, rng, True).astype(dtype)
    grad = noise(a.shape, rng, True).astype(dtype)
    expected = reference.covariance_log_backward(a, grad, loading=0.1)
    for isa in mahal.testing.isas():
        with mahal.testing.isa(isa):
            found = gradient(a, grad, loading=0.1)
        assert found.dtype == dtype
        allowed = tolerance(a.real.dtype, condition=100.0, terms=size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=allowed * np.abs(expected).max())
        np.testing.assert_array_equal(found, found.conj().swapaxes(1, 2))


@pytest.mark.parametrize(
    ("dtype", "size", "count"),
    [(np.complex64, 3, 33), (np.complex128, 9, 3), (np.complex64, 44, 1), (np.float32, 60, 1)],
)
def test_kernels_for_larger_matrices(dtype: Any, size: int, count: int) -> None:
    """By a thread, a warp and a block for each matrix."""
    if "emu" not in mahal.testing.backends():
        pytest.skip("built without the emulator")
    rng = np.random.default_rng(size)
    hermitian = np.dtype(dtype).kind == "c"
    a = batch(count, size, rng, hermitian).astype(dtype)
    grad = noise(a.shape, rng, hermitian).astype(dtype)
    expected = reference.covariance_log_backward(a, grad, loading=0.1)
    with mahal.testing.backend("emu"):
        found = gradient(a, grad, loading=0.1)
    allowed = tolerance(a.real.dtype, condition=100.0, terms=size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed * np.abs(expected).max())
    np.testing.assert_array_equal(found, found.conj().swapaxes(1, 2))


@pytest.mark.parametrize("hermitian", [False, True])
def test_differences_of_the_logarithm(hermitian: bool) -> None:
    rng = np.random.default_rng(1)
    a = batch(5, 4, rng, hermitian)
    grad = noise(a.shape, rng, hermitian)
    e = batch(5, 4, rng, hermitian) - batch(5, 4, rng, hermitian)
    h = 1e-5
    up, down = (mahal.covariance_log(a + s * h * e, loading=0.2) for s in (1, -1))
    slope = (grad.conj() * (up - down)).real.sum(axis=(1, 2)) / (2 * h)
    found = (gradient(a, grad, loading=0.2).conj() * e).real.sum(axis=(1, 2))
    # The third derivative of the logarithm at eigenvalues from 1/10 on.
    allowed = 16 * ((10 * h) ** 2 * 10 + tolerance(float, condition=10.0) / h)
    np.testing.assert_allclose(found, slope, rtol=0, atol=allowed)


@pytest.mark.usefixtures("everywhere")
def test_closed_forms() -> None:
    rng = np.random.default_rng(2)
    grad = noise((3, 4, 4), rng, False)
    both = (grad + grad.swapaxes(1, 2)) / 2
    allowed = tolerance(float, terms=4)
    # At a multiple of the unit matrix, where all eigenvalues are one.
    eye = np.broadcast_to(5 * np.eye(4), (3, 4, 4))
    np.testing.assert_allclose(gradient(eye, grad), both / 5, rtol=allowed, atol=allowed)
    # The trace of the logarithm is ln|A|, whose gradient is the inverse.
    a = batch(3, 4, rng)
    trace = np.broadcast_to(np.eye(4), a.shape)
    np.testing.assert_allclose(
        gradient(a, trace), np.linalg.inv(a), rtol=0, atol=10 * tolerance(float, condition=100.0)
    )
    values = np.array([1.0, 1e-5, 1.0000001e-5, 2e-11])
    found = gradient(np.diag(values)[None], np.ones((1, 4, 4)))[0]
    x, y = values[:, None], values[None, :]
    apart = np.abs(x - y) > 1e-3 * x
    slope = np.where(apart, np.log(x / y) / np.where(apart, x - y, 1), 2 / (x + y))
    # Beside equal values the next term of the series is (1e-7)^2 / 12.
    np.testing.assert_allclose(found, slope, rtol=tolerance(float, terms=16))


@pytest.mark.usefixtures("everywhere")
def test_degenerate_matrices() -> None:
    rng = np.random.default_rng(3)
    a = batch(19, 3, rng)
    grad = noise(a.shape, rng, False)
    right = gradient(a, grad)
    a[2] = 0
    a[5, 1, 0] = np.nan
    a[7] *= -1
    grad[7] = 0
    found = gradient(a, grad)
    same = np.setdiff1d(np.arange(19), [2, 5, 7])
    np.testing.assert_array_equal(found[same], right[same])
    assert np.isnan(found[[2, 5]]).all()
    assert not found[7].any()
    empty = np.zeros((0, 3, 3))
    assert covariance_log_backward(empty, np.zeros(0, np.uint8), empty).shape == (0, 3, 3)


def test_errors() -> None:
    a = np.eye(3)[None].repeat(4, 0)
    status, out = np.zeros(4, np.uint8), np.empty_like(a)
    memory = np.zeros(1 << 20, np.uint8)
    with pytest.raises(ValueError, match="grad: must be a contiguous array like a"):
        _core.covariance_log_backward(a, status, a[:3], out, memory, 0.0, 1, 0)
    with pytest.raises(ValueError, match="status: must be uint8 with one element per matrix"):
        _core.covariance_log_backward(a, status[:3], a, out, memory, 0.0, 1, 0)
    with pytest.raises(ValueError, match="loading: must be finite and not negative"):
        _core.covariance_log_backward(a, status, a, out, memory, -1.0, 1, 0)

"""covariance_log: reference, closed forms, graded and degenerate matrices, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import Case, OpSpec, random_spd, run_op_checks, tolerance
from mahal.testing import reference_change as reference


def batch(
    count: int, size: int, condition: float, rng: np.random.Generator, hermitian: bool = False
) -> np.ndarray:
    """Positive definite matrices with a chosen condition number."""
    a: Any = np.stack([random_spd(size, condition, rng) for _ in range(count)])
    if hermitian:
        phases = np.exp(2j * np.pi * rng.random((count, size)))
        a = a * phases[:, :, None] * phases[:, None, :].conj()
    return np.asarray(a)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for count, size in [(1, 1), (17, 2), (9, 5), (3, 12), (9, 8)]:
        a = batch(count, size, 20.0, rng)
        yield Case(f"{count} x {size}", (a,), {}, 20.0, size)
    a = batch(6, 3, 20.0, rng).reshape(2, 3, 3, 3)
    yield Case("loaded", (a,), {"loading": 0.5}, 4.0, 3)
    # Beyond what the QL algorithm finds.
    yield Case("wide", (batch(9, 3, 1e4, rng),), {}, 1e4, 3)


def symmetric(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(outputs[0], np.swapaxes(outputs[0], -1, -2))


SPEC = OpSpec(
    name="covariance_log",
    function=lambda a, **params: mahal.covariance_log(a, **params),
    reference=reference.covariance_log,
    cases=cases,
    invariants=[symmetric],
    emulated=True,
)


@pytest.fixture(params=[name for name in mahal.testing.backends() if name != "cuda"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """Host arrays on the CPU kernels, and through the CUDA kernels where the emulator is."""
    with mahal.testing.backend(request.param):
        yield request.param


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("size", [1, 3, 6, 9, 54])
def test_hermitian_against_the_reference(everywhere: str, dtype: Any, size: int) -> None:
    count = 11 if size < 54 else 1
    a = batch(count, size, 20.0, np.random.default_rng(size), True).astype(dtype)
    expected = reference.covariance_log(a)
    for isa in mahal.testing.isas() if everywhere == "cpu" else mahal.testing.isas()[:1]:
        with mahal.testing.isa(isa):
            found = mahal.covariance_log(a)
        assert found.dtype == dtype
        scale = max(1.0, np.abs(expected).max())
        allowed = tolerance(found.real.dtype, condition=20.0, terms=size) * scale
        np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)
        np.testing.assert_array_equal(found, found.conj().swapaxes(1, 2))


def test_closed_forms(everywhere: str) -> None:
    np.testing.assert_array_equal(mahal.covariance_log(np.eye(5)), np.zeros((5, 5)))
    values = np.array([3.0, 1e-9, 7e4])
    allowed = tolerance(float)
    np.testing.assert_allclose(
        mahal.covariance_log(np.diag(values)), np.diag(np.log(values)), rtol=allowed
    )
    a = batch(5, 4, 1e3, np.random.default_rng(1))
    logarithm = mahal.covariance_log(a)
    # The trace of the logarithm is the logarithm of the determinant.
    np.testing.assert_allclose(
        np.trace(logarithm, axis1=1, axis2=2),
        np.linalg.slogdet(a)[1],
        rtol=tolerance(float, condition=1e3, terms=4),
    )
    np.testing.assert_allclose(
        mahal.covariance_log(8.0 * a),
        logarithm + np.log(8.0) * np.eye(4),
        rtol=0,
        atol=tolerance(float, condition=1e3, terms=4),
    )


@pytest.mark.parametrize("dtype", [np.float64, np.complex128, np.float32])
def test_a_matrix_does_not_depend_on_its_batch(everywhere: str, dtype: Any) -> None:
    """Whether the neighbours take a longer way or are no matrices at all."""
    rng = np.random.default_rng(2)
    hermitian = np.dtype(dtype).kind == "c"
    a = batch(21, 5, 30.0, rng, hermitian).astype(dtype)
    right = mahal.covariance_log(a)
    one = np.stack([mahal.covariance_log(x) for x in a])
    np.testing.assert_array_equal(one, right)
    a[4] = np.diag(10.0 ** -np.arange(5) * 1e-3)
    a[9] = np.diag([1, 1e-5, 1e-2, 1e-6, 1]) + 0
    a[11] = 0
    a[12] *= -1
    a[13, 3, 1] = np.nan
    logarithm, status = mahal.covariance_log(a, return_status=True)
    expected = np.zeros(21, dtype=np.uint8)
    expected[[11, 12]] = 2
    expected[13] = 3
    np.testing.assert_array_equal(status, expected)
    np.testing.assert_array_equal(np.isnan(logarithm).all(axis=(1, 2)), expected != 0)
    same = np.setdiff1d(np.arange(21), [4, 9, 11, 12, 13])
    np.testing.assert_array_equal(logarithm[same], right[same])


@pytest.mark.parametrize("hermitian", [False, True])
def test_spectra_that_converge_apart(hermitian: bool) -> None:
    """Blocks, repeated eigenvalues and random matrices side by side in the vectors."""
    rng = np.random.default_rng(5)
    size = 11
    a = batch(48, size, 1e3, rng, hermitian)
    for k in range(0, 48, 8):  # blocks of k // 8 + 1 rows and a rest
        cut = k // 8 + 1
        a[k, :cut, cut:] = a[k, cut:, :cut] = 0
        a[k + 1] = np.diag(rng.permutation(np.logspace(0, -5, size)))
        a[k + 2] = (1.0 + k) * np.eye(size)
        # Two and three eigenvalues.
        basis, _ = np.linalg.qr(a[k + 3])
        values = rng.choice([1.0, 1e-2, 1e-5][: 2 + k // 8 % 2], size)
        mixed = (basis * values) @ basis.conj().T
        a[k + 3] = (mixed + mixed.conj().T) / 2
        # Rows without the last one, and off-diagonal entries between small and none.
        a[k + 4, -1, :-1] = a[k + 4, :-1, -1] = 0
        a[k + 5] = np.eye(size) + np.diag([10.0 ** -(2 * k + 2)] * (size - 1), -1)
        a[k + 5] = (a[k + 5] + a[k + 5].conj().T) / 2
    a = a[rng.permutation(48)]
    expected = reference.covariance_log(a)
    for isa in mahal.testing.isas():
        with mahal.testing.isa(isa):
            found = mahal.covariance_log(a)
            one = np.stack([mahal.covariance_log(x) for x in a[:16]])
        np.testing.assert_array_equal(found[:16], one)
        # Of entries of order one; logarithms of the least eigenvalues lose the condition.
        allowed = tolerance(float, condition=1e5, terms=size)
        np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)


def test_distances_agree() -> None:
    rng = np.random.default_rng(3)
    a, b = (batch(8, 4, 50.0, rng, True) for _ in range(2))
    difference = mahal.covariance_log(a) - mahal.covariance_log(b)
    np.testing.assert_allclose(
        np.linalg.norm(difference, axis=(1, 2)),
        mahal.covariance_distance(a, b, "logeuclid"),
        rtol=tolerance(float, condition=50.0, terms=4),
    )


@pytest.mark.parametrize(
    ("a", "params", "argument"),
    [
        (np.ones(4), {}, "a"),
        (np.ones((3, 4)), {}, "a"),
        (np.ones((2, 0, 0)), {}, "a"),
        (np.eye(3), {"loading": -0.1}, "loading"),
        (np.eye(3), {"loading": np.inf}, "loading"),
    ],
)
def test_bad_values(a: np.ndarray, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^covariance_log: {argument}: .*, got .*$"):
        mahal.covariance_log(a, **params)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"^covariance_log: a: .*, got object$"):
        mahal.covariance_log(np.eye(3, dtype=object))

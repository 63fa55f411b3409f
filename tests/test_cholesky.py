"""cholesky: reference, factor identities, loading, singular matrices, batches, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal.testing import Case, OpSpec, random_spd, reference, run_op_checks, tolerance


def batch(shape: tuple[int, ...], size: int, condition: float, rng: np.random.Generator) -> Any:
    count = int(np.prod(shape, dtype=int))
    stack = np.stack([random_spd(size, condition, rng) for _ in range(count)])
    return stack.reshape(*shape, size, size)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, size in [
        ((), 3),
        ((1,), 1),
        ((5,), 2),
        ((17,), 5),
        ((2, 3), 8),
        ((33,), 16),
        ((3,), 33),
        ((4, 5), 7),
        ((2,), 64),
        ((1,), 100),
    ]:
        a = batch(shape, size, 100.0, rng)
        label = f"{shape} n={size}"
        axis = 0 if shape else None
        yield Case(label, (a,), {}, condition=100.0, terms=size, broadcast_axis=axis)
    a = batch((18,), 6, 10.0, rng)
    yield Case("loaded", (a,), {"loading": 0.5}, condition=3.0, terms=6)


def upper_triangle_is_zero(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(np.triu(outputs[0], 1), 0.0)


def factor_gives_the_matrix(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    """Backward stable: the residual does not grow with the condition number."""
    if "loading" in case.params:
        return
    lower = outputs[0].astype(np.float64)
    a = case.arrays[0].astype(np.float64)
    diagonal = np.sqrt(np.diagonal(a, axis1=-2, axis2=-1))
    scale = diagonal[..., :, None] * diagonal[..., None, :]
    residual = np.tril(np.abs(lower @ np.swapaxes(lower, -1, -2) - a) / scale)
    assert residual.max() <= tolerance(outputs[0].dtype, terms=a.shape[-1] + 1, constant=2.0)


SPEC = OpSpec(
    name="cholesky",
    function=lambda a, **params: mahal.cholesky(a, **params),
    reference=lambda a, **params: reference.cholesky(a, **params).lower,
    cases=cases,
    constant=1.0,
    invariants=[upper_triangle_is_zero, factor_gives_the_matrix],
    emulated=True,
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [31, 32, 128, 162, 200, 257])
def test_large_matrices_reproduce_themselves(dtype: Any, size: int) -> None:
    a = batch((2,), size, 1e3, np.random.default_rng(size)).astype(dtype)
    case = Case("large", (a,), {})
    lower = mahal.cholesky(a)
    upper_triangle_is_zero(case, (lower,))
    factor_gives_the_matrix(case, (lower,))


def kernel_backends() -> list[str]:
    """Where CUDA kernels run on host arrays."""
    return [name for name in mahal.testing.backends() if name == "emu"]


@pytest.mark.parametrize(
    ("size", "dtypes"),
    [
        (1, "fdFD"),
        (7, "FD"),
        (33, "FD"),
        (60, "D"),
        (70, "FD"),
        (257, "fD"),
    ],
)
def test_kernels_of_every_size(size: int, dtypes: str) -> None:
    """One warp, one block, and several launches for a matrix."""
    rng = np.random.default_rng(size)
    for dtype in map(np.dtype, dtypes):
        hermitian = dtype.kind == "c"
        a = np.stack([random_spd(size, 1e3, rng, hermitian=hermitian) for _ in range(2)])
        a = np.swapaxes(a.astype(dtype), 1, 2)
        wide = a[0].astype(np.complex128)
        wide += 0.25 * np.trace(wide) / size * np.eye(size)
        a[1, -1, 0] = a[1, 0, -1] = np.nan
        for name in kernel_backends():
            with mahal.testing.backend(name):
                good, bad = mahal.cholesky(a, loading=0.25, singular="nan")
            assert np.isnan(bad[np.tril_indices(size)]).all()
            np.testing.assert_array_equal(np.triu(good, 1), 0.0)
            scale = np.sqrt(np.diagonal(wide).real)
            good = good.astype(np.complex128)
            residual = np.abs(good @ good.conj().T - wide) / np.outer(scale, scale)
            # A complex product has four times the rounding of a real one.
            constant = 8.0 if hermitian else 2.0
            assert residual.max() <= tolerance(a.real.dtype, terms=size + 1, constant=constant)


def test_kernels_see_large_singular_matrices() -> None:
    size = 258
    a = np.stack([np.eye(size, dtype=np.float32)] * 3)
    a[0, 257, 257] = 0.0
    a[2, 30:40, 30:40] = 1.0
    for name in kernel_backends():
        with mahal.testing.backend(name):
            lower = mahal.cholesky(a, singular="nan")
        np.testing.assert_array_equal(lower[1], np.eye(size))
        assert np.isnan(lower[[0, 2]][:, np.tril_indices(size)[0], np.tril_indices(size)[1]]).all()


def test_two_by_two_by_hand() -> None:
    lower = mahal.cholesky(np.array([[4.0, 2.0], [2.0, 10.0]]))
    np.testing.assert_array_equal(lower, [[2.0, 0.0], [1.0, 3.0]])


def test_identity_and_scaling() -> None:
    np.testing.assert_array_equal(mahal.cholesky(np.eye(5)), np.eye(5))
    a = random_spd(9, 1e3, np.random.default_rng(1))
    # Powers of four scale every intermediate result exactly.
    np.testing.assert_array_equal(mahal.cholesky(a * 4.0**20), mahal.cholesky(a) * 2.0**20)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 4, 11, 40])
def test_a_matrix_does_not_depend_on_its_batch(dtype: Any, size: int) -> None:
    a = batch((37,), size, 100.0, np.random.default_rng(size)).astype(dtype)
    whole = mahal.cholesky(a)
    for start, stop in [(0, 1), (0, 16), (3, 36), (20, 37)]:
        np.testing.assert_array_equal(mahal.cholesky(a[start:stop]), whole[start:stop])


def test_loading_is_relative_to_the_mean_of_the_diagonal() -> None:
    a = np.array([[4.0, 0.0], [0.0, 0.0]])
    with pytest.raises(mahal.SingularError):
        mahal.cholesky(a)
    np.testing.assert_array_equal(mahal.cholesky(a, loading=0.5), [[np.sqrt(5.0), 0], [0, 1.0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [2, 9, 40])
def test_singular_matrices_leave_their_neighbours_alone(dtype: Any, size: int) -> None:
    a = batch((35,), size, 10.0, np.random.default_rng(size)).astype(dtype)
    right = mahal.cholesky(a)
    spoiled = a.copy()
    bad = np.zeros(35, dtype=bool)
    bad[[0, 7, 8, 34]] = True
    spoiled[0] = 0.0
    spoiled[7, -1, :] = spoiled[7, 0, :]
    spoiled[7, :, -1] = spoiled[7, :, 0]
    spoiled[8] *= -1
    spoiled[34, -1, 0] = spoiled[34, 0, -1] = np.nan
    lower = mahal.cholesky(spoiled, singular="nan")
    np.testing.assert_array_equal(lower[~bad], right[~bad])
    assert np.isnan(lower[bad][:, np.tril_indices(size)[0], np.tril_indices(size)[1]]).all()
    with pytest.raises(mahal.SingularError, match=r"^cholesky: a: .*\b[34] .*$"):
        mahal.cholesky(spoiled)
    assert issubclass(mahal.SingularError, ValueError)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 24),
    step=st.sampled_from([-2, -1, 1, 2]),
    transposed=st.booleans(),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_batch_size_and_stride(
    count: int, size: int, step: int, transposed: bool, double: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = batch((2 * count,), size, 30.0, rng).astype(np.float64 if double else np.float32)
    view = a[::step][:count]
    view = np.swapaxes(view, -1, -2) if transposed else view
    lower = mahal.cholesky(view)
    case = Case("strided", (np.ascontiguousarray(view),), {})
    factor_gives_the_matrix(case, (lower,))
    upper_triangle_is_zero(case, (lower,))


@pytest.mark.parametrize(
    ("a", "params", "argument"),
    [
        (np.ones(4), {}, "a"),
        (np.ones((3, 4)), {}, "a"),
        (np.ones((2, 0, 0)), {}, "a"),
        (np.eye(3), {"loading": -0.1}, "loading"),
        (np.eye(3), {"loading": np.nan}, "loading"),
        (np.eye(3), {"singular": "magic"}, "singular"),
        (np.zeros((3, 3)), {}, "a"),
    ],
)
def test_bad_values(a: np.ndarray, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^cholesky: {argument}: .*, got .*$"):
        mahal.cholesky(a, **params)


@pytest.mark.parametrize("dtype", [object, bool])
def test_bad_types(dtype: Any) -> None:
    with pytest.raises(TypeError, match=r"^cholesky: a: .*, got .*$"):
        mahal.cholesky(np.eye(3, dtype=dtype))

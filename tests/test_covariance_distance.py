"""covariance_distance: reference, identities, invariances, laws, degenerate matrices, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mahal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal.ops.covariance_distance import METRICS
from mahal.testing import Case, OpSpec, random_spd, run_op_checks, tolerance
from mahal.testing import reference_change as reference

DISTANCES = reference.DISTANCES
AFFINE = ("affine_invariant", "logdet", "symmetric_kl", "hotelling_lawley", "wishart", "box_m")
LOOKS: dict[str, Any] = {"wishart": {"looks": (60, 45.5)}, "box_m": {"looks": (60, 45)}}
# Roots of differences, in the reference at least: their rounding is that of the square.
SQUARED: dict[str, Any] = {"logdet": {"squared": True}, "wasserstein": {"squared": True}}


def batch(
    count: int, size: int, condition: float, rng: np.random.Generator, hermitian: bool = False
) -> np.ndarray:
    """Positive definite matrices of different scales with a chosen condition number."""
    scales = rng.uniform(0.5, 2.0, (count, 1, 1))
    if not hermitian:
        return scales * np.stack([random_spd(size, condition, rng) for _ in range(count)])
    parts = rng.standard_normal((2, count, size, size))
    basis, _ = np.linalg.qr(parts[0] + 1j * parts[1])
    values = np.logspace(0.0, -np.log10(condition), size)
    a = (basis * values) @ basis.conj().swapaxes(1, 2)
    return np.asarray(scales * (a + a.conj().swapaxes(1, 2)) / 2)


def metrics_of(hermitian: bool) -> list[str]:
    return [m for m in METRICS if not (hermitian and m == "box_m")]


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for metric in METRICS:
        params = {"metric": metric, **LOOKS.get(metric, {}), **SQUARED.get(metric, {})}
        for count, size in [(1, 1), (17, 2), (9, 5), (2, 12)]:
            a, b = (batch(count, size, 10.0, rng) for _ in range(2))
            yield Case(f"{metric} {count} x {size}", (a, b), params, 10.0, size * size)
    a, b = batch(6, 3, 5.0, rng).reshape(2, 3, 3, 3), batch(1, 3, 5.0, rng)[0]
    yield Case("one against many", (a, b), {"metric": "logeuclid"}, 5.0, 9)
    yield Case("root", (a, b), {"metric": "wasserstein"}, 5.0, 9)


def scale(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[Any]:
    """Statistics are sums of as many terms as there are looks."""
    looks = case.params.get("looks")
    return (np.maximum(expected[0].max(), sum(looks) if looks else 1.0),)


# The entries of the matrices may be rounded to float32: the scores change by condition * eps.
SPEC = OpSpec(
    name="covariance_distance",
    function=lambda a, b, **params: mahal.covariance_distance(a, b, **params),
    reference=lambda a, b, **params: reference.covariance_distance(a, b, **params),
    cases=cases,
    constant=4.0,
    scale=scale,
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
@pytest.mark.parametrize("size", [1, 2, 3, 4, 9, 17])
def test_hermitian_against_the_reference(dtype: Any, size: int) -> None:
    rng = np.random.default_rng(size)
    a, b = (batch(19, size, 10.0, rng, True).astype(dtype) for _ in range(2))
    for metric in metrics_of(True):
        params = {"metric": metric, **LOOKS.get(metric, {}), **SQUARED.get(metric, {})}
        for isa in mahal.testing.isas():
            with mahal.testing.isa(isa):
                found = mahal.covariance_distance(a, b, **params)
            check_hermitian(found, a, b, metric)


def check_hermitian(found: np.ndarray, a: np.ndarray, b: np.ndarray, metric: str) -> None:
    params = {"metric": metric, **LOOKS.get(metric, {}), **SQUARED.get(metric, {})}
    expected = reference.covariance_distance(a, b, **params)
    assert found.dtype == a.real.dtype
    size = a.shape[-1]
    largest = max(expected.max(), 106.0 if metric == "wishart" else 1.0)
    allowed = tolerance(found.dtype, condition=10.0, terms=size * size) * largest
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=metric)


@pytest.mark.parametrize(
    ("dtype", "size", "count"),
    [(np.complex64, 3, 40), (np.complex128, 5, 7), (np.complex64, 9, 5), (np.complex128, 33, 1)],
)
def test_kernels_for_hermitian_matrices(dtype: Any, size: int, count: int) -> None:
    """By a thread, a warp and a block for each pair."""
    if "emu" not in mahal.testing.backends():
        pytest.skip("built without the emulator")
    rng = np.random.default_rng(size)
    a, b = (batch(count, size, 10.0, rng, True).astype(dtype) for _ in range(2))
    for metric in metrics_of(True):
        params = {"metric": metric, **LOOKS.get(metric, {}), **SQUARED.get(metric, {})}
        with mahal.testing.backend("emu"):
            check_hermitian(mahal.covariance_distance(a, b, **params), a, b, metric)


@pytest.mark.parametrize("hermitian", [False, True])
def test_real_matrices_are_hermitian_ones(hermitian: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = (batch(5, 4, 20.0, rng, hermitian) for _ in range(2))
    for metric in metrics_of(True):
        params = {"metric": metric, **LOOKS.get(metric, {})}
        one = mahal.covariance_distance(a, b, **params)
        # Conjugation changes none of them; nor does a pair of real matrices in complex form.
        other = mahal.covariance_distance(
            a.conj().astype(complex), b.conj().astype(complex), **params
        )
        np.testing.assert_allclose(one, other, rtol=tolerance(float, condition=20.0, terms=16))


@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_laws_of_a_distance(metric: str, hermitian: bool) -> None:
    if metric not in metrics_of(hermitian):
        pytest.skip("real only")
    rng = np.random.default_rng(7)
    params = {"metric": metric, **LOOKS.get(metric, {})}
    size = 5
    a, b = (batch(40, size, 30.0, rng, hermitian) for _ in range(2))
    c = batch(40, size, 3.0, rng, hermitian)
    allowed = tolerance(float, condition=30.0, terms=size * size)
    score = mahal.covariance_distance(a, b, **params)
    if metric == "hotelling_lawley":
        np.testing.assert_allclose(
            mahal.covariance_distance(a, a, **params), size, rtol=0, atol=allowed * size
        )
    else:
        swapped = dict(params)
        if "looks" in swapped:
            swapped["looks"] = swapped["looks"][::-1]
        np.testing.assert_allclose(
            score, mahal.covariance_distance(b, a, **swapped), rtol=allowed, atol=0
        )
        itself = mahal.covariance_distance(a, a, **params)
        assert (itself >= 0).all()
        # The root of a difference of logarithms shows its rounding as the root of it.
        limit = 106 * allowed if "looks" in params else allowed
        assert itself.max() <= (np.sqrt(limit) if metric == "logdet" else limit)
        assert (score > itself).all()
    if metric in DISTANCES:
        square = mahal.covariance_distance(a, b, squared=True, **params)
        np.testing.assert_allclose(square, score**2, rtol=allowed)
        through = mahal.covariance_distance(a, c, **params) + mahal.covariance_distance(
            c, b, **params
        )
        assert (score <= through * (1 + allowed)).all()
    w = batch(1, size, 10.0, rng, hermitian)[0] @ batch(1, size, 10.0, rng, hermitian)[0]
    moved = [w @ x @ w.conj().T for x in (a, b)]
    moved_score = mahal.covariance_distance(*moved, **params)
    if metric in AFFINE:
        # The condition numbers of W multiply those of the matrices.
        np.testing.assert_allclose(moved_score, score, rtol=1e4 * allowed)
    else:
        assert (np.abs(moved_score / score - 1) > 1e-3).any()
    unitary, _ = np.linalg.qr(w)
    turned = [unitary @ x @ unitary.conj().T for x in (a, b)]
    np.testing.assert_allclose(
        mahal.covariance_distance(*turned, **params), score, rtol=4 * allowed
    )


def test_closed_forms() -> None:
    rng = np.random.default_rng(11)
    p, factor = 6, 3.7
    a, b = batch(20, p, 50.0, rng), batch(20, p, 50.0, rng)
    allowed = tolerance(float, condition=50.0, terms=p * p)

    def score(x: np.ndarray, y: np.ndarray, metric: str, **params: Any) -> np.ndarray:
        return np.asarray(mahal.covariance_distance(x, y, metric, **params))

    for metric in ("affine_invariant", "logeuclid"):
        np.testing.assert_allclose(
            score(a, factor * a, metric), np.sqrt(p) * np.log(factor), rtol=allowed
        )
        np.testing.assert_allclose(
            score(np.linalg.inv(a), np.linalg.inv(b), metric),
            score(a, b, metric),
            rtol=50 * allowed,
        )
    # Matrices that commute: everything happens on the eigenvalues.
    x, y = rng.uniform(0.5, 2.0, (2, 20, p))
    basis = np.linalg.qr(rng.standard_normal((p, p)))[0]
    c, d = ((basis * values[:, None, :]) @ basis.T for values in (x, y))
    ratio = np.log(x / y)
    closed = {
        "frobenius": np.sqrt(((x - y) ** 2).sum(1)),
        "wasserstein": np.sqrt(((np.sqrt(x) - np.sqrt(y)) ** 2).sum(1)),
        "logeuclid": np.sqrt((ratio**2).sum(1)),
        "affine_invariant": np.sqrt((ratio**2).sum(1)),
        "logdet": np.sqrt(np.log(np.cosh(ratio / 2)).sum(1)),
        "symmetric_kl": (np.cosh(ratio) - 1).sum(1),
        "hotelling_lawley": (x / y).sum(1),
    }
    for metric, expected in closed.items():
        np.testing.assert_allclose(score(c, d, metric), expected, rtol=4 * allowed, err_msg=metric)
    # Equal looks: the likelihood ratio is the log-det distance.
    looks = 25.0
    rho = 1 - (2 * p * p - 1) / (6 * p) * 1.5 / looks
    np.testing.assert_allclose(
        score(a, b, "wishart", looks=looks),
        4 * looks * rho * score(a, b, "logdet", squared=True),
        rtol=allowed,
    )


@pytest.mark.parametrize("hermitian", [False, True])
def test_nearly_equal_matrices_keep_their_digits(everywhere: str, hermitian: bool) -> None:
    """Roots of differences of large traces would leave 1e-8 here."""
    rng = np.random.default_rng(13)
    p, step = 5, 2.0**-30
    a = batch(10, p, 10.0, rng, hermitian)
    b = a * (1 + step)
    allowed = tolerance(float, condition=10.0, terms=p * p) / step
    expected = {
        "wasserstein": (np.sqrt(1 + step) - 1) * np.sqrt(np.trace(a, axis1=1, axis2=2).real),
        "affine_invariant": np.sqrt(p) * np.log1p(step) * np.ones(10),
        "logeuclid": np.sqrt(p) * np.log1p(step) * np.ones(10),
        "symmetric_kl": p * step**2 / (2 * (1 + step)) * np.ones(10),
    }
    for metric, value in expected.items():
        found = mahal.covariance_distance(a, b, metric)
        np.testing.assert_allclose(found, value, rtol=allowed, err_msg=metric)


def test_small_eigenvalues_keep_their_digits(everywhere: str) -> None:
    """Graded matrices: a solver that is exact relative to the norm would lose all digits."""
    exponents = np.array([0, -40, -80, -120])
    a = np.array([[[1, 0.3, 0.2, 0.1], [0.3, 1, 0.3, 0.2], [0.2, 0.3, 1, 0.3], [0.1, 0.2, 0.3, 1]]])
    powers = 2.0**exponents
    graded = a * powers[:, None] * powers
    allowed = tolerance(float, condition=4.0, terms=16)
    distance = mahal.covariance_distance(graded, np.diag(powers**2)[None], "affine_invariant")
    plain = mahal.covariance_distance(a, np.eye(4)[None], "affine_invariant")
    np.testing.assert_allclose(distance, plain, rtol=allowed)
    # Far apart scales decouple: the logarithms of the eigenvalues are those of the pivots.
    pivots = np.log(np.diagonal(np.linalg.cholesky(graded[0]))) * 2
    found = mahal.covariance_distance(graded, np.eye(4)[None], "logeuclid")
    np.testing.assert_allclose(found, np.linalg.norm(pivots), rtol=allowed)


@pytest.mark.parametrize("hermitian", [False, True])
def test_null_laws(hermitian: bool) -> None:
    """False alarms of the tests of equality at 1 and 10 per cent, within four deviations."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(17)
    p, n, m, runs = 3, 12, 20, 40_000
    factor = np.linalg.cholesky(batch(1, p, 20.0, rng, hermitian)[0])
    pair = []
    for looks in (n, m):
        x = rng.standard_normal((2, runs, p, looks))
        x = (x[0] + 1j * x[1]) / np.sqrt(2) if hermitian else x[0]
        x = factor @ x
        pair.append(x @ x.conj().swapaxes(1, 2) / looks)
    metric, degrees = ("wishart", p * p) if hermitian else ("box_m", p * (p + 1) // 2)
    score = mahal.covariance_distance(*pair, metric, looks=(n, m))
    for rate in (0.1, 0.01):
        found = (score > stats.chi2.isf(rate, degrees)).mean()
        # The chi-square law is itself good to a few per cent of the rate at so few looks.
        assert abs(found - rate) <= 4 * np.sqrt(rate / runs) + 0.12 * rate


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_bad_matrices_leave_their_neighbours_alone(
    everywhere: str, metric: str, dtype: Any
) -> None:
    hermitian = np.dtype(dtype).kind == "c"
    if metric not in metrics_of(hermitian):
        pytest.skip("real only")
    rng = np.random.default_rng(19)
    params = {"metric": metric, **LOOKS.get(metric, {})}
    a, b = (batch(19, 4, 10.0, rng, hermitian).astype(dtype) for _ in range(2))
    right = mahal.covariance_distance(a, b, **params)
    a[2] *= -1
    a[8] = np.ones((4, 4))
    b[9] = 0
    b[3, 2, 1] = np.nan
    a[18, 0, 0] = np.inf
    score, status = mahal.covariance_distance(a, b, return_status=True, **params)
    expected = np.zeros(19, dtype=np.uint8)
    if metric != "frobenius":
        expected[[2, 8, 9]] = 2
    expected[[3, 18]] = 3
    np.testing.assert_array_equal(status, expected)
    np.testing.assert_array_equal(np.isnan(score), expected != 0)
    same = expected == 0
    same[[2, 8, 9]] = False
    np.testing.assert_array_equal(score[same], right[same])


def test_overflow_is_reported(everywhere: str) -> None:
    a = np.full((1, 1, 1), 1e30, dtype=np.float32)
    score, status = mahal.covariance_distance(a, 2 * a, squared=True, return_status=True)
    assert np.isnan(score[0])
    assert status[0] == 3


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    size=st.integers(1, 9),
    step=st.sampled_from([-2, -1, 1, 2]),
    transposed=st.booleans(),
    many=st.booleans(),
    kind=st.sampled_from([np.float32, np.float64, np.complex64, np.complex128]),
    seed=st.integers(0, 2**16),
)
def test_any_shape_and_stride(
    shape: list[int], size: int, step: int, transposed: bool, many: bool, kind: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    hermitian = np.dtype(kind).kind == "c"
    count = int(np.prod(shape, dtype=int))
    large = batch(2 * count, size, 5.0, rng, hermitian).astype(kind)
    a = large[::step][:count].reshape(*shape, size, size)
    if transposed:
        a = np.moveaxis(np.ascontiguousarray(np.moveaxis(a, -1, 0)), 0, -1)
    b = batch(count if many else 1, size, 5.0, rng, hermitian).astype(kind)
    b = b.reshape(*shape, size, size) if many else b[0]
    found = mahal.covariance_distance(a, b, "affine_invariant")
    expected = reference.covariance_distance(a, b, "affine_invariant")
    allowed = tolerance(found.dtype, condition=5.0, terms=size * size)
    assert found.shape == tuple(shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed * max(1, expected.max()))


def test_complex_tensors() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(23)
    a, b = (batch(6, 3, 5.0, rng, True) for _ in range(2))
    expected = mahal.covariance_distance(a, b, "logeuclid")
    found = mahal.covariance_distance(torch.from_numpy(a), torch.from_numpy(b), "logeuclid")
    np.testing.assert_array_equal(found.numpy(), expected)
    pending = mahal.covariance_distance(
        torch.from_numpy(a.conj()).conj(), torch.from_numpy(b), "logeuclid"
    )
    np.testing.assert_array_equal(pending.numpy(), expected)


def test_pyriemann_agrees() -> None:
    geometry = pytest.importorskip("pyriemann.geometry.distance")
    rng = np.random.default_rng(29)
    names = {
        "frobenius": "euclid",
        "logeuclid": "logeuclid",
        "affine_invariant": "riemann",
        "logdet": "logdet",
        "wasserstein": "wasserstein",
        "symmetric_kl": "kullback_sym",
    }
    for hermitian in (False, True):
        a, b = (batch(30, 6, 20.0, rng, hermitian) for _ in range(2))
        for ours, theirs in names.items():
            expected = getattr(geometry, f"distance_{theirs}")(a, b)
            np.testing.assert_allclose(
                mahal.covariance_distance(a, b, ours),
                expected,
                rtol=tolerance(float, condition=20.0, terms=36),
                err_msg=ours,
            )


def test_empty_batches() -> None:
    score, status = mahal.covariance_distance(np.zeros((0, 3, 3)), np.eye(3), return_status=True)
    assert score.shape == status.shape == (0,)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("a", "b", "params", "argument"),
    [
        (np.ones(4), EYE, {}, "a"),
        (np.ones((3, 4)), EYE, {}, "a"),
        (np.ones((2, 0, 0)), EYE, {}, "a"),
        (EYE, np.eye(4), {}, "b"),
        (np.ones((2, 3, 3)), np.ones((4, 3, 3)), {}, "b"),
        (EYE, EYE, {"metric": "euclidean"}, "metric"),
        (EYE, EYE, {"looks": 9}, "looks"),
        (EYE, EYE, {"metric": "wishart", "looks": 2}, "looks"),
        (EYE, EYE, {"metric": "box_m", "looks": (9, np.inf)}, "looks"),
        (EYE, EYE, {"threads": 0}, "threads"),
    ],
)
def test_bad_values(a: Any, b: Any, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^covariance_distance: {argument}: .*, got .*$"):
        mahal.covariance_distance(a, b, **params)


@pytest.mark.parametrize(
    ("a", "b", "params", "argument"),
    [
        (EYE.astype(object), EYE, {}, "a"),
        (EYE, [[1.0]], {}, "b"),
        (EYE, EYE.astype(np.float32), {}, "b"),
        (EYE, EYE.astype(complex), {}, "b"),
        (EYE.astype(complex), EYE.astype(complex), {"metric": "box_m", "looks": 9}, "metric"),
        (EYE, EYE, {"metric": "wishart"}, "looks"),
        (EYE, EYE, {"metric": "wishart", "looks": (5, 6, 7)}, "looks"),
    ],
)
def test_bad_types(a: Any, b: Any, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^covariance_distance: {argument}: .*, got .*$"):
        mahal.covariance_distance(a, b, **params)

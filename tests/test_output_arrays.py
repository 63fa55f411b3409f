"""`out=`: results in arrays of the caller."""

import mahal
import numpy as np
import pytest
from mahal.testing import tolerance

RNG = np.random.default_rng(5)
IMAGE = RNG.standard_normal((9, 8, 4), dtype=np.float32)
MATRICES = np.stack([np.cov(RNG.standard_normal((6, 40))) for _ in range(5)])


def calls():
    mean, covariance = mahal.mean_covariance(IMAGE)
    yield "cholesky", MATRICES, lambda a, **k: mahal.cholesky(a, **k)
    yield "whiten", IMAGE, lambda a, **k: mahal.whiten(a, mean, covariance, **k)


CALLS = [pytest.param(source, call, id=name) for name, source, call in calls()]


@pytest.mark.parametrize(("source", "call"), CALLS)
def test_takes_the_result_and_returns_the_array(source, call):
    out = np.full_like(source, np.nan)
    assert call(source, out=out) is out
    np.testing.assert_array_equal(out, call(source))


@pytest.mark.parametrize("window", [3, (1, 5), [3, (1, 5)]])
def test_local_covariance(window):
    expected = mahal.local_covariance(IMAGE, window)
    out = tuple(np.full_like(part, np.nan) for part in expected)
    result = mahal.local_covariance(IMAGE, window, out=out)
    for given, returned, part in zip(out, result, expected, strict=True):
        assert given is returned
        np.testing.assert_array_equal(given, part)


def test_at_any_alignment():
    memory = np.empty(MATRICES.size + 8)
    for start in range(1, 8):
        out = memory[start : start + MATRICES.size].reshape(MATRICES.shape)
        np.testing.assert_array_equal(mahal.cholesky(MATRICES, out=out), mahal.cholesky(MATRICES))


@pytest.mark.parametrize("n", [8, 16, 24, 32, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_results_are_the_same(n, dtype):
    """Results past the size of the caches are written in another way."""
    count = (9 << 20) // (n * n * np.dtype(dtype).itemsize) + 3
    a = (np.eye(n) + RNG.standard_normal((count, 1, 1)) ** 2).astype(dtype)
    a[7] = np.nan
    whole = mahal.cholesky(a, singular="nan")
    parts = [mahal.cholesky(part, singular="nan") for part in np.array_split(a, 9)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    some = np.r_[0:7, count - 40 : count]
    condition = 1 + n * float(a[some, 0, 1].max())
    expected = np.linalg.cholesky(a[some].astype(np.float64))
    allowed = tolerance(dtype, condition=condition, terms=n)
    np.testing.assert_allclose(whole[some], expected, rtol=allowed, atol=allowed)
    assert np.isnan(whole[7]).all()
    assert np.isfinite(np.delete(whole, 7, axis=0)).all()


def test_torch():
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(MATRICES)
    out = torch.empty_like(a)
    assert mahal.cholesky(a, out=out) is out
    np.testing.assert_array_equal(out.numpy(), mahal.cholesky(MATRICES))
    with pytest.raises(TypeError, match="cholesky: out: must come from the library"):
        mahal.cholesky(a, out=np.empty_like(MATRICES))
    with pytest.raises(ValueError, match="cholesky: out: must be contiguous"):
        mahal.cholesky(a, out=torch.empty_like(a).mT)


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        (np.empty((5, 6, 7)), ValueError, r"must have shape \(5, 6, 6\), got \(5, 6, 7\)"),
        (np.empty((5, 6, 6), np.float32), TypeError, "must be float64, got float32"),
        (np.empty((5, 6, 6)).swapaxes(1, 2), ValueError, "must be contiguous, writable"),
        (np.broadcast_to(0.0, (5, 6, 6)), ValueError, "must be contiguous, writable"),
        (MATRICES, ValueError, "must not overlap"),
        ([], TypeError, "must be a numpy, torch or cupy array"),
    ],
)
def test_errors(out, error, text):
    before = MATRICES.copy()
    with pytest.raises(error, match=f"^cholesky: out: {text}"):
        mahal.cholesky(MATRICES, out=out)
    np.testing.assert_array_equal(MATRICES, before)


def test_local_covariance_wants_two():
    with pytest.raises(TypeError, match=r"local_covariance: out: must be a tuple"):
        mahal.local_covariance(IMAGE, 3, out=np.empty((9, 8, 4), np.float32))
    with pytest.raises(ValueError, match=r"local_covariance: out\[1\]: must have shape"):
        mahal.local_covariance(IMAGE, 3, out=(np.empty_like(IMAGE), np.empty_like(IMAGE)))

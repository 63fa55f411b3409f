"""multiscale_covariance: its forms, borders, masks, windows with few samples, errors."""

from __future__ import annotations

from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, reference, reference_change, tolerance

WINDOWS = [3, (1, 7), 9]


def test_matrices_are_local_covariances() -> None:
    image = random_scene((14, 15, 4), np.random.default_rng(1))
    mask = np.random.default_rng(2).random((14, 15)) < 0.9
    found = mahal.multiscale_covariance(image, WINDOWS, border="reflect", mask=mask, ddof=0)
    assert found.shape == (14, 15, 3, 4, 4)
    for k, window in enumerate(WINDOWS):
        _, one = mahal.local_covariance(image, window, border="reflect", mask=mask, ddof=0)
        np.testing.assert_array_equal(found[:, :, k], one)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_packed_upper_triangles(dtype: Any) -> None:
    image = random_scene((10, 11, 3), np.random.default_rng(3)).astype(dtype)
    matrices = mahal.multiscale_covariance(image, WINDOWS)
    packed = mahal.multiscale_covariance(image, WINDOWS, form="packed")
    assert packed.shape == (10, 11, 3, 6)
    assert packed.dtype == dtype
    for k, (i, j) in enumerate([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]):
        np.testing.assert_array_equal(packed[..., k], matrices[..., i, j])


def test_vectors_of_logarithms_keep_distances() -> None:
    image = random_scene((10, 11, 3), np.random.default_rng(4))
    matrices = mahal.multiscale_covariance(image, [5, 9])
    vectors = mahal.multiscale_covariance(image, [5, 9], form="log")
    assert vectors.shape == (10, 11, 2, 6)
    allowed = tolerance(float, condition=1e3, terms=3)
    expected = reference_change.covariance_log(matrices)
    np.testing.assert_allclose(
        np.linalg.norm(vectors, axis=-1), np.linalg.norm(expected, axis=(-2, -1)), rtol=allowed
    )
    np.testing.assert_allclose(
        np.linalg.norm(vectors[:, :, 0] - vectors[:, :, 1], axis=-1),
        mahal.covariance_distance(matrices[:, :, 0], matrices[:, :, 1], "logeuclid"),
        rtol=allowed,
    )


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_images(dtype: Any) -> None:
    rng = np.random.default_rng(7)
    parts = [random_scene((12, 13, 3), rng) for _ in range(2)]
    image = (parts[0] + 1j * parts[1]).astype(dtype)
    mask = rng.random((12, 13)) < 0.9
    params: dict[str, Any] = {"border": "reflect", "mask": mask}
    matrices = mahal.multiscale_covariance(image, [5, (1, 7)], **params)
    assert matrices.shape == (12, 13, 2, 3, 3)
    assert matrices.dtype == dtype
    np.testing.assert_array_equal(matrices, matrices.conj().swapaxes(-1, -2))
    allowed = tolerance(dtype, condition=1e3, terms=49)
    for k, window in enumerate([5, (1, 7)]):
        _, expected = reference.local_covariance(image, window, **params)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(matrices[:, :, k], expected, rtol=0, atol=allowed * scale)
    packed = mahal.multiscale_covariance(image, [5, (1, 7)], form="packed", **params)
    assert packed.dtype == dtype
    rows, cols = np.triu_indices(3)
    np.testing.assert_array_equal(packed, matrices[..., rows, cols])
    vectors = mahal.multiscale_covariance(image, [5, (1, 7)], form="log", **params)
    assert vectors.dtype == dtype
    factors = np.where(rows == cols, 1.0, 2.0**0.5)
    expected = reference_change.covariance_log(matrices)[..., rows, cols] * factors
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=allowed * np.abs(expected).max())
    np.testing.assert_allclose(
        np.linalg.norm(vectors[:, :, 0] - vectors[:, :, 1], axis=-1),
        mahal.covariance_distance(matrices[:, :, 0], matrices[:, :, 1], "logeuclid"),
        rtol=0,
        atol=allowed * np.abs(expected).max(),
    )


def test_few_samples_have_a_logarithm_once_loaded() -> None:
    image = random_scene((9, 10, 12), np.random.default_rng(5))
    vectors = mahal.multiscale_covariance(image, [3, 7], form="log")
    assert np.isnan(vectors[:, :, 0]).all()
    assert np.isfinite(vectors[:, :, 1]).all()
    loaded = mahal.multiscale_covariance(image, [3, 7], form="log", loading=1e-3)
    assert np.isfinite(loaded).all()
    image[4, 4, 0] = np.nan
    vectors = mahal.multiscale_covariance(image, [3, 7], form="log", loading=1e-3, border="valid")
    bad = np.isnan(vectors).all(axis=-1)
    expected = np.ones((9, 10), dtype=bool)
    expected[1:-1, 1:-1] = False
    expected[3:6, 3:6] = True
    np.testing.assert_array_equal(bad[:, :, 0], expected)


def test_tensors() -> None:
    torch = pytest.importorskip("torch")
    image = random_scene((8, 9, 3), np.random.default_rng(6)).astype(np.float32)
    for form in ("matrix", "packed", "log"):
        expected = mahal.multiscale_covariance(image, [3, 5], form=form)
        found = mahal.multiscale_covariance(torch.from_numpy(image), [3, 5], form=form)
        np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance(np.float32))


@pytest.mark.parametrize(
    ("windows", "params", "argument"),
    [
        ([], {}, "windows"),
        (5, {}, "windows"),
        ([3], {"form": "vector"}, "form"),
        ([3], {"loading": 0.1}, "loading"),
        ([3], {"loading": -0.1, "form": "log"}, "loading"),
        ([4], {}, "windows"),
        ([3, 11], {}, "windows"),
        ([(5, 3)], {}, "windows"),
        ([3], {"border": "wrap"}, "border"),
        ([3], {"ddof": -1}, "ddof"),
        ([3], {"threads": 0}, "threads"),
    ],
)
def test_bad_values(windows: Any, params: dict[str, Any], argument: str) -> None:
    image = np.ones((9, 9, 2))
    with pytest.raises(ValueError, match=rf"^multiscale_covariance: {argument}: .*, got .*$"):
        mahal.multiscale_covariance(image, windows, **params)


def test_bad_types() -> None:
    for windows, params, argument in (([3.5], {}, "windows"), ([3], {"ddof": 1.0}, "ddof")):
        with pytest.raises(TypeError, match=rf"^multiscale_covariance: {argument}: .*, got .*$"):
            mahal.multiscale_covariance(np.ones((9, 9, 2)), windows, **params)

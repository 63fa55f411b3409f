"""multiscale_covariance: its forms, borders, masks, windows with few samples, errors."""

from __future__ import annotations

from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, reference_change, tolerance

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
    ],
)
def test_bad_values(windows: Any, params: dict[str, Any], argument: str) -> None:
    image = np.ones((9, 9, 2))
    with pytest.raises(ValueError, match=rf"^multiscale_covariance: {argument}: .*, got .*$"):
        mahal.multiscale_covariance(image, windows, **params)

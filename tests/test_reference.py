"""The references against numpy, scipy and Spectral Python, and against themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mahal.testing import random_scene, random_spd, reference

EPS = float(np.finfo(np.float64).eps)


def scene(rows: int, cols: int, bands: int, seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return random_scene((rows, cols, bands), rng, offset=offset, scale=1.0)


@pytest.mark.parametrize(("length", "width"), [(7, 1), (7, 3), (7, 7), (30, 21), (22, 21), (5, 5)])
def test_windows_hold_the_pixel_and_stay_inside(length: int, width: int) -> None:
    starts = reference.window_starts(length, width)
    positions = np.arange(length)
    assert (starts >= 0).all()
    assert (starts + width <= length).all()
    assert ((starts <= positions) & (positions < starts + width)).all()
    centred = (positions >= width // 2) & (positions < length - width // 2)
    np.testing.assert_array_equal(starts[centred], positions[centred] - width // 2)


@pytest.mark.parametrize(("inner", "outer"), [(1, 3), (3, 7), (5, 21)])
def test_guard_window_lies_in_the_outer_one(inner: int, outer: int) -> None:
    for length in range(outer, outer + 8):
        guard = reference.window_starts(length, inner)
        whole = reference.window_starts(length, outer)
        assert (guard >= whole).all()
        assert (guard + inner <= whole + outer).all()


def test_windows_of_the_corner_and_the_edge() -> None:
    corner = reference.ring_indices(0, 0, 60, 50, (5, 21))
    assert corner is not None
    inside = set((np.arange(21)[:, None] * 50 + np.arange(21)).ravel())
    guard = set((np.arange(5)[:, None] * 50 + np.arange(5)).ravel())
    assert set(corner) == inside - guard
    assert len(corner) == 21 * 21 - 25


def test_reflected_windows_are_those_of_a_padded_image() -> None:
    rows, cols, window = 6, 5, (3, 7)
    index = np.arange(rows * cols).reshape(rows, cols)
    padded = np.pad(index, 3, mode="reflect")
    keep = np.ones((7, 7), dtype=bool)
    keep[2:5, 2:5] = False
    for row in range(rows):
        for col in range(cols):
            expected = padded[row : row + 7, col : col + 7][keep]
            found = reference.ring_indices(row, col, rows, cols, window, "reflect")
            np.testing.assert_array_equal(found, expected)


def test_valid_windows_exist_in_the_interior_only() -> None:
    present = [
        [reference.ring_indices(r, c, 7, 9, 5, "valid") is not None for c in range(9)]
        for r in range(7)
    ]
    expected = np.zeros((7, 9), dtype=bool)
    expected[2:5, 2:7] = True
    np.testing.assert_array_equal(present, expected)


@pytest.mark.parametrize("ddof", [0, 1])
def test_mean_covariance_is_that_of_numpy(ddof: int) -> None:
    x = scene(9, 8, 5, 1).reshape(-1, 5)
    mean, covariance = reference.mean_covariance(x, ddof=ddof)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=0, atol=4 * EPS * np.abs(x).max())
    np.testing.assert_allclose(covariance, np.cov(x, rowvar=False, ddof=ddof), rtol=1e-13)


def test_constant_samples_have_exactly_no_covariance() -> None:
    mean, covariance = reference.mean_covariance(np.full((7, 3), 0.1))
    np.testing.assert_array_equal(mean, 0.1)
    np.testing.assert_array_equal(covariance, 0.0)


def test_local_covariance_is_numpy_cov_of_each_ring() -> None:
    image = scene(8, 9, 3, 2)
    mean, covariance = reference.local_covariance(image, (1, 5))
    flat = image.reshape(-1, 3)
    for row, col in [(0, 0), (3, 4), (7, 8), (0, 5), (6, 1)]:
        ring = reference.ring_indices(row, col, 8, 9, (1, 5))
        np.testing.assert_allclose(mean[row, col], flat[ring].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            covariance[row, col], np.cov(flat[ring], rowvar=False), rtol=1e-12
        )


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_cholesky_is_that_of_numpy(size: int) -> None:
    rng = np.random.default_rng(size)
    a = np.stack([random_spd(size, 1e4, rng) for _ in range(3)])
    lower, status = reference.cholesky(a)
    np.testing.assert_array_equal(status, reference.OK)
    np.testing.assert_allclose(lower, np.linalg.cholesky(a), atol=size * EPS * 1e4)


def test_cholesky_reports_singular_and_non_finite_matrices() -> None:
    a = np.stack([np.eye(3)] * 4)
    a[1, 2] = a[1, 1]
    a[1, :, 2] = a[1, :, 1]
    a[2, 2, 0] = np.nan
    a[3] = 0.0
    lower, status = reference.cholesky(a)
    np.testing.assert_array_equal(
        status, [reference.OK, reference.SINGULAR, reference.NON_FINITE, reference.SINGULAR]
    )
    assert np.isnan(lower[1:]).all()


def test_distances_are_those_of_scipy() -> None:
    distance = pytest.importorskip("scipy.spatial.distance")
    x = scene(1, 20, 4, 3)[0]
    mean, covariance = reference.mean_covariance(x)
    inverse = np.linalg.inv(covariance)
    expected = [distance.mahalanobis(row, mean, inverse) ** 2 for row in x]
    np.testing.assert_allclose(reference.mahalanobis(x, mean, covariance), expected, rtol=1e-11)


@pytest.mark.parametrize("window", [None, (3, 9), (1, 7), (5, 11), 9])
@pytest.mark.parametrize("shape", [(13, 24, 6), (24, 13, 3)])
def test_rx_is_that_of_spectral_python(
    window: Any, shape: tuple[int, int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    spectral = pytest.importorskip("spectral")
    image = scene(*shape, seed=5)
    rival = window if isinstance(window, tuple) or window is None else (0, window)
    expected = spectral.rx(image, window=rival)
    scores, status = reference.rx(image, window=window)
    assert (status == reference.OK).all()
    # Spectral Python stores local scores in float32.
    np.testing.assert_allclose(scores, expected, rtol=1e-10 if window is None else 1e-7)


def test_rx_with_fixed_covariance_is_that_of_spectral_python() -> None:
    spectral = pytest.importorskip("spectral")
    image = scene(14, 15, 4, 6)
    covariance = random_spd(4, 10.0, np.random.default_rng(0))
    scores, _ = reference.rx(image, window=(3, 7), covariance=covariance)
    np.testing.assert_allclose(scores, spectral.rx(image, window=(3, 7), cov=covariance), rtol=1e-7)


def test_rx_of_another_scene_is_that_of_spectral_python() -> None:
    spectral = pytest.importorskip("spectral")
    image, other = scene(10, 11, 4, 7), scene(12, 9, 4, 8)
    expected = spectral.rx(image, background=spectral.calc_stats(other))
    np.testing.assert_allclose(reference.rx(image, background=other)[0], expected, rtol=1e-10)


def test_local_rx_is_its_definition() -> None:
    image = scene(9, 10, 3, 9, offset=50.0)
    scores, _ = reference.rx(image, window=(3, 7), border="reflect")
    flat = image.reshape(-1, 3)
    for row, col in [(0, 0), (4, 5), (8, 9), (0, 7)]:
        ring = flat[reference.ring_indices(row, col, 9, 10, (3, 7), "reflect")]
        d = image[row, col] - ring.mean(axis=0)
        expected = d @ np.linalg.solve(np.cov(ring, rowvar=False), d)
        assert scores[row, col] == pytest.approx(expected, rel=1e-10)


def test_singular_windows_are_loaded_by_the_global_covariance() -> None:
    image = scene(12, 20, 3, 10)
    image[:, 10:, 2] = image[:, 10:, 0] + image[:, 10:, 1]
    scores, status = reference.rx(image, window=(1, 5))
    flat = image.reshape(-1, 3)
    population = np.cov(flat, rowvar=False)
    assert (status[:, 12:] == reference.SINGULAR).all()
    assert (status[:, :8] == reference.OK).all()
    for row, col in [(0, 19), (6, 15), (11, 12)]:
        ring = flat[reference.ring_indices(row, col, 12, 20, (1, 5))]
        d = image[row, col] - ring.mean(axis=0)
        loaded = np.cov(ring, rowvar=False) + reference.LOADING * population
        assert scores[row, col] == pytest.approx(d @ np.linalg.solve(loaded, d), rel=1e-7)


@pytest.mark.parametrize("window", [None, (1, 5)])
def test_duplicated_and_constant_bands_are_singular_everywhere(window: Any) -> None:
    image = scene(9, 9, 3, 11)
    duplicated = image[..., [0, 1, 2, 1]]
    constant = np.concatenate([image, np.full((9, 9, 1), 0.1)], axis=2)
    plain = reference.rx(image, window=window)[0]
    for spoiled in (duplicated, constant):
        scores, status = reference.rx(spoiled, window=window)
        assert (status == reference.SINGULAR).all()
        # The loading takes about LOADING / (smallest local eigenvalue) of the score away.
        np.testing.assert_allclose(scores, plain, rtol=1e-3)
        assert np.isnan(reference.rx(spoiled, window=window, singular="nan")[0]).all()


@pytest.mark.parametrize("window", [None, (1, 5)])
def test_a_constant_image_scores_zero(window: Any) -> None:
    scores, status = reference.rx(np.full((7, 8, 2), 0.1), window=window)
    np.testing.assert_array_equal(scores, 0.0)
    np.testing.assert_array_equal(status, reference.SINGULAR)


def test_singular_windows_of_a_real_scene(data_dir: Any) -> None:
    """132 windows of this scene hold fewer distinct spectra than bands, all in one corner."""
    io = pytest.importorskip("scipy.io")
    path = data_dir / "hyperspectral" / "muufl-51x88x72.mat"
    image = io.loadmat(path)["hsi_img_sub"].astype(np.float64)
    rows, cols, bands = image.shape
    flat = image.reshape(-1, bands)
    white = reference.whiten(flat, *reference.mean_covariance(flat))
    least = np.full((rows, cols), np.inf)
    for row in range(32, rows):
        for col in range(64, cols):
            ring = reference.ring_indices(row, col, rows, cols, (5, 21))
            least[row, col] = reference.pivot_ratios(np.cov(white[ring], rowvar=False)).min()
    singular = least <= reference.SINGULAR_PIVOT
    assert singular.sum() == 132
    # Eight decades lie between the two kinds, so the count does not hang on the threshold.
    assert least[singular].max() < 0.0
    assert least[~singular].min() > 1e-2

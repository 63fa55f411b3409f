"""rx and whitening beside Spectral Python on float64 images, at every pixel."""

from __future__ import annotations

from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, random_spd, reference

spectral = pytest.importorskip("spectral")

# Spectral Python stores local scores in float32, and its pseudo-inverse keeps about nine digits.
RELATIVE = 1e-6

# It divides by rows // 10, so its images must have ten rows or more.
SHAPES = [(13, 31, 5), (31, 13, 4), (22, 22, 12), (11, 40, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [(1, 3), (1, 7), (3, 9), (5, 11), (9, 11)])
def test_local_scores(shape: tuple[int, int, int], window: tuple[int, int]) -> None:
    samples = window[1] ** 2 - window[0] ** 2
    if samples < 2 * shape[2]:
        window = (1, 11)
    image = random_scene(shape, np.random.default_rng(sum(shape)))
    expected = spectral.rx(image, window=window)
    np.testing.assert_allclose(mahal.rx(image, window=window), expected, rtol=RELATIVE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_global_scores(shape: tuple[int, int, int], offset: float) -> None:
    image = random_scene(shape, np.random.default_rng(1), offset=offset, scale=1.0)
    np.testing.assert_allclose(mahal.rx(image), spectral.rx(image), rtol=RELATIVE)


def test_background_of_another_scene() -> None:
    rng = np.random.default_rng(2)
    image, other = random_scene((12, 14, 6), rng), random_scene((20, 11, 6), rng)
    expected = spectral.rx(image, background=spectral.calc_stats(other))
    np.testing.assert_allclose(mahal.rx(image, background=other), expected, rtol=RELATIVE)


@pytest.mark.parametrize("window", [(1, 5), (3, 11)])
def test_fixed_covariance(window: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    image = random_scene((15, 26, 5), rng)
    covariance = 400 * random_spd(5, 50.0, rng)
    expected = spectral.rx(image, window=window, cov=covariance)
    scores = mahal.rx(image, window=window, covariance=covariance)
    np.testing.assert_allclose(scores, expected, rtol=RELATIVE)


def test_statistics() -> None:
    image = random_scene((15, 16, 7), np.random.default_rng(4))
    stats = spectral.calc_stats(image)
    mean, covariance = mahal.mean_covariance(image)
    np.testing.assert_allclose(mean, stats.mean, rtol=1e-12)
    np.testing.assert_allclose(covariance, stats.cov, rtol=0, atol=1e-12 * stats.cov.max())


@pytest.mark.parametrize(
    ("name", "key"), [("hydice-100x80-19px.mat", None), ("muufl-51x88x72.mat", "hsi_img_sub")]
)
def test_a_real_scene(data_dir: Any, name: str, key: str | None) -> None:
    io = pytest.importorskip("scipy.io")
    content = io.loadmat(data_dir / "hyperspectral" / name)
    if key is None:
        key = max(content, key=lambda k: getattr(content[k], "size", 0))
    image = content[key].astype(np.float64)
    np.testing.assert_allclose(mahal.rx(image), spectral.rx(image), rtol=RELATIVE)
    # A cut keeps the rival's time in bounds; every second band keeps its windows regular.
    cut = np.ascontiguousarray(image[:24, :30, ::4])
    expected = spectral.rx(cut, window=(3, 15))
    np.testing.assert_allclose(mahal.rx(cut, window=(3, 15)), expected, rtol=RELATIVE)


def test_singular_windows_of_a_real_scene(data_dir: Any) -> None:
    io = pytest.importorskip("scipy.io")
    content = io.loadmat(data_dir / "hyperspectral" / "muufl-51x88x72.mat")
    for dtype in (np.float32, np.float64):
        image = content["hsi_img_sub"].astype(dtype)
        with pytest.warns(mahal.SingularWarning, match=r"\b132\b"):
            scores, status = mahal.rx(image, window=(5, 21), return_status=True)
        assert (status == reference.SINGULAR).sum() == 132
        assert (status[40:, 76:] == reference.SINGULAR).all()
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_global_scores_of_targets(shape: tuple[int, int, int], offset: float) -> None:
    rng = np.random.default_rng(5)
    image = random_scene(shape, rng, offset=offset, scale=1.0)
    targets = offset + 3 * rng.standard_normal((3, shape[2]))
    count = min(3, shape[2] - 1)
    several = spectral.ace(image, list(targets))
    np.testing.assert_allclose(mahal.ace(image, targets), several, rtol=0, atol=RELATIVE)
    single = spectral.ace(image, targets[0])
    np.testing.assert_allclose(mahal.ace(image, targets[0]), single, rtol=0, atol=RELATIVE)
    space = spectral.ace(image, targets[:count])
    scores = mahal.ace(image, targets[:count], subspace=True)
    np.testing.assert_allclose(scores, space, rtol=0, atol=RELATIVE)
    filtered = spectral.matched_filter(image, targets[0])
    np.testing.assert_allclose(
        mahal.matched_filter(image, targets[0]),
        filtered,
        rtol=0,
        atol=RELATIVE * np.abs(filtered).max(),
    )


def test_targets_on_the_background_of_another_scene() -> None:
    rng = np.random.default_rng(6)
    image, other = random_scene((12, 14, 6), rng), random_scene((20, 11, 6), rng)
    target = 50 * rng.standard_normal(6)
    stats = spectral.calc_stats(other)
    expected = spectral.ace(image, target, background=stats)
    scores = mahal.ace(image, target, background=other)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=RELATIVE)
    expected = spectral.matched_filter(image, target, background=stats)
    scores = mahal.matched_filter(image, target, background=other)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())


def test_angles() -> None:
    rng = np.random.default_rng(7)
    image, targets = rng.random((9, 11, 6)), rng.random((3, 6))
    expected = spectral.spectral_angles(image, targets)
    np.testing.assert_allclose(mahal.spectral_angle(image, targets), expected, atol=RELATIVE)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window", [(1, 7), (3, 9), (9, 11)])
def test_local_scores_of_targets(shape: tuple[int, int, int], window: tuple[int, int]) -> None:
    if window[1] ** 2 - window[0] ** 2 < 2 * shape[2] + 2:
        window = (1, 11)
    rng = np.random.default_rng(8)
    image = random_scene(shape, rng)
    targets = 100 + 40 * rng.standard_normal((2, shape[2]))
    expected = spectral.ace(image, targets[0], window=window)
    scores = mahal.ace(image, targets, window=window)
    np.testing.assert_allclose(scores[..., 0], expected, rtol=0, atol=RELATIVE)
    expected = spectral.ace(image, targets, window=window)
    space = mahal.ace(image, targets, window=window, subspace=True)
    np.testing.assert_allclose(space, expected, rtol=0, atol=RELATIVE)
    covariance = 400 * random_spd(shape[2], 50.0, rng)
    expected = spectral.ace(image, targets[1], window=window, cov=covariance)
    scores = mahal.ace(image, targets[1], window=window, covariance=covariance)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=RELATIVE)


def test_local_matched_filter() -> None:
    rng = np.random.default_rng(9)
    image, target = random_scene((13, 21, 5), rng), 100 + 40 * rng.standard_normal(5)
    detector = spectral.MatchedFilter

    # The rival's own local filter fails with current numpy: it gives an array for every pixel.
    def score(background: Any, x: np.ndarray) -> float:
        return float(np.squeeze(detector(background, target)(x[None, None])))

    expected = spectral.map_outer_window_stats(score, image, 3, 9, dim_out=1)
    scores = mahal.matched_filter(image, target, window=(3, 9))
    np.testing.assert_allclose(scores, expected, rtol=0, atol=RELATIVE * np.abs(expected).max())

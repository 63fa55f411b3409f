"""change_map: reference, the published loop, properties of windows, outliers, errors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mahal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal.ops.covariance_distance import METRICS
from mahal.testing import Case, OpSpec, random_scene, run_op_checks, tolerance
from mahal.testing import reference_change as reference

BORDERS = ("clip", "shift", "reflect", "valid")


def pair(
    shape: tuple[int, ...], rng: np.random.Generator, hermitian: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Two images that differ: noise of another covariance, and an offset."""
    images = []
    for offset in (5.0, 7.0):
        image = random_scene(shape, rng, condition=9.0, offset=offset, scale=2.0)
        if hermitian:
            imaginary = random_scene(shape, rng, condition=4.0, offset=-offset, scale=1.0)
            image = image + 1j * imaginary
        images.append(image)
    return images[0], images[1]


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, window, params in [
        ((9, 12, 4), 5, {}),
        ((7, 21, 3), 7, {"border": "shift", "metric": "affine_invariant"}),
        ((12, 9, 2), 3, {"border": "reflect", "squared": False}),
        ((11, 10, 5), 9, {"border": "valid", "metric": "wishart"}),
        ((6, 40, 1), 5, {"metric": "logeuclid"}),
        ((13, 7, 6), 7, {"center": False, "metric": "symmetric_kl"}),
        ((3, 4, 2), 1, {"ddof": 0}),
        ((10, 11, 9), 5, {"mask": rng.random((10, 11)) < 0.8}),
        ((10, 11, 2), 5, {"mask": rng.random((10, 11)) < 0.7, "metric": "box_m"}),
        ((12, 13, 4), 5, {"compat": "muzeau"}),
    ]:
        label = f"{shape} window {window} {sorted(params)}"
        # Each of the two images is rounded to float32: covariances of the condition 9 and windows
        # with a few samples more than channels, whose condition is 30 times that.
        yield Case(
            label,
            pair(shape, rng),
            {"window": window, **params},
            condition=300.0 if "metric" in params else 9.0,
            terms=shape[-1] ** 2,
            broadcast_axis=None if "metric" in params else 0,
        )


def status_tells_where_scores_are(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    np.testing.assert_array_equal(np.isnan(outputs[0]), outputs[1] != 0)


SPEC = OpSpec(
    name="change_map",
    function=lambda first, second, **params: mahal.change_map(
        first, second, return_status=True, **params
    ),
    reference=lambda first, second, **params: reference.change_map(first, second, **params),
    cases=cases,
    invariants=[status_tells_where_scores_are],
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
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 7])
def test_complex_images_against_the_reference(everywhere: str, dtype: Any, channels: int) -> None:
    rng = np.random.default_rng(channels)
    first, second = (image.astype(dtype) for image in pair((11, 13, channels), rng, hermitian=True))
    mask = rng.random((11, 13)) < 0.9
    for metric, border, params in [
        ("frobenius", "clip", {"mask": mask}),
        ("frobenius", "shift", {"center": False}),
        ("wishart", "reflect", {}),
        ("hotelling_lawley", "valid", {"mask": mask}),
        ("affine_invariant", "clip", {}),
    ]:
        options: dict[str, Any] = {"metric": metric, "border": border, **params}
        expected, states = reference.change_map(first, second, 7, **options)
        allowed = tolerance(first.real.dtype, condition=100.0, terms=channels**2)
        for isa in mahal.testing.isas() if everywhere == "cpu" else mahal.testing.isas()[:1]:
            with mahal.testing.isa(isa):
                found, status = mahal.change_map(first, second, 7, return_status=True, **options)
            np.testing.assert_array_equal(status, states)
            np.testing.assert_allclose(
                found, expected, rtol=0, atol=allowed * np.nanmax(expected), err_msg=str(options)
            )


@pytest.mark.parametrize(
    ("channels", "metric", "dtype"),
    [(11, "affine_invariant", np.float64), (33, "logdet", np.complex128), (70, "frobenius", None)],
)
def test_many_channels(everywhere: str, channels: int, metric: str, dtype: Any) -> None:
    """By a warp and by a block for each pixel, and more products than are summed at once."""
    rng = np.random.default_rng(channels)
    kind = np.dtype(dtype or np.float32)
    first, second = (
        image.astype(kind) for image in pair((9, 10, channels), rng, hermitian=kind.kind == "c")
    )
    expected, _ = reference.change_map(first, second, 9, metric=metric, border="valid")
    found = mahal.change_map(first, second, 9, metric=metric, border="valid")
    allowed = tolerance(found.dtype, condition=300.0, terms=channels**2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed * np.nanmax(expected))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 14),
    cols=st.integers(1, 40),
    channels=st.integers(1, 5),
    half=st.integers(0, 4),
    steps=st.tuples(st.sampled_from([-2, -1, 1, 2]), st.sampled_from([-1, 1, 3])),
    border=st.sampled_from(BORDERS),
    hermitian=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_stride_and_window(
    rows: int,
    cols: int,
    channels: int,
    half: int,
    steps: tuple[int, int],
    border: str,
    hermitian: bool,
    seed: int,
) -> None:
    side = min(2 * half + 1, rows - 1 + rows % 2, cols - 1 + cols % 2)
    shape = (3 * rows, 3 * cols, channels)
    large = pair(shape, np.random.default_rng(seed), hermitian)
    first, second = (image[:: steps[0], :: steps[1]][:rows, :cols] for image in large)
    options: dict[str, Any] = {"border": border, "ddof": 0}
    found = mahal.change_map(first, second, side, **options)
    expected, _ = reference.change_map(first, second, side, **options)
    spread = max(float((np.abs(x - x.mean(axis=(0, 1))) ** 2).max()) for x in large)
    allowed = tolerance(np.float64, terms=side * side) * spread**2 * channels**2
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)


def published_loop(first: np.ndarray, second: np.ndarray, half: int) -> np.ndarray:
    """Squared Frobenius score with scatter / (channels - 1) in clipped windows, pixel by pixel."""
    rows, cols, channels = first.shape
    score = np.zeros((rows, cols))
    for r in range(rows):
        for c in range(cols):
            window = np.s_[max(r - half, 0) : r + half + 1, max(c - half, 0) : c + half + 1]
            difference = np.zeros((channels, channels))
            for image, sign in ((first, 1), (second, -1)):
                x = image[window].reshape(-1, channels)
                x = x - x.mean(0)
                difference += sign * (x.T @ x) / (channels - 1)
            score[r, c] = (difference**2).sum()
    return score


def test_published_score(everywhere: str) -> None:
    rng = np.random.default_rng(1)
    first, second = pair((20, 23, 4), rng)
    expected = published_loop(first, second, 5)
    found = mahal.change_map(first, second, 11, compat="muzeau")
    allowed = tolerance(np.float64, terms=121)
    np.testing.assert_allclose(found, expected, rtol=allowed)
    # Inside, the published covariances are 40 times the true ones; in a corner 35 / 3 times.
    ours = mahal.change_map(first, second, 11)
    ratio = found / ours
    np.testing.assert_allclose(ratio[5:-5, 5:-5], 40.0**2, rtol=allowed)
    np.testing.assert_allclose(ratio[0, 0], (35 / 3) ** 2, rtol=allowed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("border", BORDERS)
def test_constant_images_have_no_covariance(everywhere: str, dtype: Any, border: str) -> None:
    value = np.array([3.3, 1e6, -0.1, 7e-5]).astype(dtype)
    if np.dtype(dtype).kind == "c":
        value = value * (1 + 2j)
    image = np.broadcast_to(value.astype(dtype), (40, 90, 4))
    score, status = mahal.change_map(image, 2 * image, 5, border=border, return_status=True)
    assert (score[status == 0] == 0).all()
    assert (status != 0).any() == (border == "valid")
    _, status = mahal.change_map(image, image, 5, metric="logdet", return_status=True)
    assert (status == 2).all()


@pytest.mark.parametrize("metric", METRICS)
def test_an_image_does_not_differ_from_itself(everywhere: str, metric: str) -> None:
    image, other = pair((15, 17, 3), np.random.default_rng(2))
    score = mahal.change_map(image, image, 7, metric=metric)
    scale = float(mahal.change_map(image, other, 7, metric=metric).max())
    own = 3.0 if metric == "hotelling_lawley" else 0.0
    looks = 100.0
    allowed = tolerance(np.float64, condition=100.0, terms=9) * max(scale, looks)
    np.testing.assert_allclose(score, own, rtol=0, atol=allowed)


@pytest.mark.parametrize("hermitian", [False, True])
@pytest.mark.parametrize("metric", ["frobenius", "logdet"])
def test_a_changed_pixel_changes_its_windows_alone(
    everywhere: str, metric: str, hermitian: bool
) -> None:
    """However bright it is: every window is summed on its own."""
    allowed = tolerance(np.float64, condition=100.0, terms=49)
    first, second = pair((90, 150, 3), np.random.default_rng(3), hermitian)
    before = mahal.change_map(first, second, 7, metric=metric)
    # One pixel that outshines the rest a billion times leaves a covariance of rank one.
    bright = 1e9 if metric == "frobenius" else 1e3
    for at, factor in [((40, 70), bright), ((0, 149), 1e-3), ((66, 63), -2.0)]:
        changed = second.copy()
        changed[at] *= factor
        after = mahal.change_map(first, changed, 7, metric=metric)
        inside = np.zeros(before.shape, dtype=bool)
        inside[max(at[0] - 3, 0) : at[0] + 4, max(at[1] - 3, 0) : at[1] + 4] = True
        np.testing.assert_allclose(after[~inside], before[~inside], rtol=allowed)
        assert (np.abs(after[inside] / before[inside] - 1) > 1e3 * allowed).all()


@pytest.mark.parametrize("hermitian", [False, True])
def test_offsets_and_channel_order_do_not_matter(everywhere: str, hermitian: bool) -> None:
    first, second = pair((20, 25, 4), np.random.default_rng(4), hermitian)
    allowed = tolerance(np.float64, condition=1e4, terms=49)
    for metric in ("frobenius", "affine_invariant"):
        score = mahal.change_map(first, second, 7, metric=metric)
        moved = mahal.change_map(first + 1e3, second - 2e3, 7, metric=metric)
        np.testing.assert_allclose(moved, score, rtol=allowed)
        order = [2, 0, 3, 1]
        permuted = mahal.change_map(first[..., order], second[..., order], 7, metric=metric)
        np.testing.assert_allclose(permuted, score, rtol=allowed)
        turned = mahal.change_map(first[::-1], second[::-1], 7, metric=metric)[::-1]
        np.testing.assert_allclose(turned, score, rtol=allowed)


def test_large_offsets_in_float32_cost_no_digits(everywhere: str) -> None:
    rng = np.random.default_rng(5)
    parts = rng.integers(-20, 20, (2, 30, 40, 4)).astype(np.float32)
    score = mahal.change_map(parts[0], parts[1], 9)
    # Integers up to 2^20 are exact in float32.
    lifted = mahal.change_map(parts[0] + 2**20, parts[1] + 2**19, 9)
    np.testing.assert_allclose(lifted, score, rtol=tolerance(np.float32))


def test_two_axes_are_one_channel(everywhere: str) -> None:
    first, second = pair((12, 13, 1), np.random.default_rng(6))
    np.testing.assert_array_equal(
        mahal.change_map(first[..., 0], second[..., 0], 5), mahal.change_map(first, second, 5)
    )
    variance = [mahal.local_covariance(x, 5)[1][..., 0, 0] for x in (first, second)]
    np.testing.assert_allclose(
        mahal.change_map(first, second, 5, border="shift", squared=False),
        np.abs(variance[0] - variance[1]),
        rtol=0,
        atol=tolerance(np.float64, terms=25) * variance[0].max(),
    )


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in ("wishart", "box_m")])
def test_it_is_the_distance_of_local_covariances(metric: str) -> None:
    first, second = pair((14, 16, 4), np.random.default_rng(7))
    _, a = mahal.local_covariance(first, 9, border="reflect")
    _, b = mahal.local_covariance(second, 9, border="reflect")
    np.testing.assert_allclose(
        mahal.change_map(first, second, 9, metric=metric, border="reflect", squared=False),
        mahal.covariance_distance(a, b, metric),
        rtol=tolerance(np.float64, condition=100.0, terms=81),
    )


def test_windows_that_hold_nothing_or_too_much(everywhere: str) -> None:
    first, second = pair((20, 70, 3), np.random.default_rng(8))
    right = mahal.change_map(first, second, 5, metric="logdet")
    second[10, 30, 1] = np.nan
    first[4, 65, 2] = np.inf
    mask = np.ones((20, 70), dtype=bool)
    mask[12:, :14] = False
    score, status = mahal.change_map(
        first, second, 5, metric="logdet", mask=mask, return_status=True
    )
    expected = np.zeros((20, 70), dtype=np.uint8)
    expected[8:13, 28:33] = expected[2:7, 63:68] = 3
    assert ((status == 3) == (expected == 3)).all()
    # A window with one sample in its corner, and windows with none or too few for a covariance.
    assert (status[15:, :11] == 1).all()
    assert status[13, 13] == 0
    assert status[14, 12] == 0
    assert status[17, 13] == 2 or status[17, 13] == 0
    np.testing.assert_array_equal(np.isnan(score), status != 0)
    far = np.s_[:, 40:60]
    np.testing.assert_allclose(
        score[far], right[far], rtol=tolerance(np.float64, condition=100.0, terms=25)
    )
    # A masked pixel that is not finite is no sample.
    mask[10, 30] = mask[4, 65] = False
    _, status = mahal.change_map(first, second, 5, mask=mask, return_status=True)
    assert not (status == 3).any()


@pytest.mark.parametrize("hermitian", [False, True])
def test_false_alarms_on_speckle(hermitian: bool) -> None:
    """Windows that do not overlap, in two independent images of one covariance."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(9)
    p, side, count = 3, 7, 60
    images = []
    mixing = np.linalg.cholesky(mahal.testing.random_spd(p, 10.0, rng))
    for _ in range(2):
        parts = rng.standard_normal((2, count * side, count * side, p))
        x = parts[0] + 1j * parts[1] if hermitian else parts[0]
        images.append(x @ mixing.T + 4.0)
    metric, degrees = ("wishart", p * p) if hermitian else ("box_m", p * (p + 1) // 2)
    score = mahal.change_map(images[0], images[1], side, metric=metric)
    apart = score[side // 2 :: side, side // 2 :: side]
    for rate in (0.1, 0.01):
        found = (apart > stats.chi2.isf(rate, degrees)).mean()
        assert abs(found - rate) <= 4 * np.sqrt(rate / apart.size)


def read_t3(folder: Path) -> np.ndarray:
    """A PolSARpro T3 folder as Hermitian matrices (rows, cols, 3, 3)."""
    words = (folder / "config.txt").read_text().split()
    rows, cols = (int(words[words.index(name) + 1]) for name in ("Nrow", "Ncol"))

    def plane(name: str) -> np.ndarray:
        return np.fromfile(folder / f"{name}.bin", dtype="<f4").reshape(rows, cols)

    t3 = np.zeros((rows, cols, 3, 3), dtype=np.complex64)
    for i in range(3):
        t3[..., i, i] = plane(f"T{i + 1}{i + 1}")
        for j in range(i + 1, 3):
            name = f"T{i + 1}{j + 1}"
            t3[..., i, j] = plane(f"{name}_real") + 1j * plane(f"{name}_imag")
            t3[..., j, i] = t3[..., i, j].conj()
    return t3


def test_airsar_matrices_and_intensities(data_dir: Path) -> None:
    folders = sorted(path.parent for path in data_dir.rglob("T12_real.bin"))
    if not folders:
        pytest.skip("no T3 folder")
    t3 = read_t3(folders[0])[:150, :200]
    # The scene against the mean matrix of a part of it, as a classifier of clutter would.
    mean = t3[:40, :40].mean(axis=(0, 1))
    scores = {}
    for metric in ("frobenius", "logdet", "affine_invariant", "symmetric_kl", "wasserstein"):
        score, status = mahal.covariance_distance(t3, mean, metric, return_status=True)
        assert score.shape == t3.shape[:2]
        singular = np.linalg.eigvalsh(t3.astype(complex))[..., 0] <= 0
        assert ((status == 2) >= (singular & (metric != "frobenius"))).all()
        assert (status == 0).mean() > 0.9
        np.testing.assert_array_equal(np.isnan(score), status != 0)
        scores[metric] = score
    picked = np.argwhere(~np.isnan(scores["logdet"]))[::997]
    for r, c in picked:
        for metric, score in scores.items():
            a, b = t3[r, c].astype(complex), mean.astype(complex)
            expected = reference.pair_score(a, b, metric, False, 1, 1)
            values = np.linalg.eigvalsh(a)
            allowed = tolerance(np.float32, condition=values[-1] / values[0], terms=9)
            assert score[r, c] == pytest.approx(expected, rel=max(allowed, 1e-6))
    # Intensities in dB before and after a target is put in: the change is found where it is.
    image = 10 * np.log10(np.diagonal(t3, axis1=2, axis2=3).real + 1e-9).astype(np.float32)
    changed = image.copy()
    changed[70:74, 90:115] += 12
    score = mahal.change_map(image, changed, 11, metric="affine_invariant")
    assert score[:60].max() <= tolerance(np.float32)
    assert np.unravel_index(np.nanargmax(score), score.shape)[0] in range(60, 84)


@pytest.mark.parametrize(
    ("shape", "window", "params", "argument"),
    [
        ((9,), 3, {}, "first"),
        ((9, 0, 2), 3, {}, "first"),
        ((9, 9, 2), 4, {}, "window"),
        ((9, 9, 2), 0, {}, "window"),
        ((9, 9, 2), 11, {}, "window"),
        ((9, 9, 2), 1, {}, "ddof"),
        ((9, 9, 2), 3, {"ddof": -1}, "ddof"),
        ((9, 9, 2), 3, {"border": "wrap"}, "border"),
        ((9, 9, 2), 3, {"metric": "euclidean"}, "metric"),
        ((9, 9, 2), 3, {"compat": "matlab"}, "compat"),
        ((9, 9, 1), 3, {"compat": "muzeau"}, "compat"),
        ((9, 9, 2), 3, {"compat": "muzeau", "ddof": 1}, "compat"),
        ((9, 9, 2), 3, {"compat": "muzeau", "center": False}, "compat"),
        ((9, 9, 2), 3, {"compat": "muzeau", "border": "shift"}, "border"),
        ((9, 9, 2), 3, {"compat": "muzeau", "metric": "wishart"}, "metric"),
        ((9, 9, 2), 3, {"mask": np.ones((3, 3), dtype=bool)}, "mask"),
    ],
)
def test_bad_values(
    shape: tuple[int, ...], window: int, params: dict[str, Any], argument: str
) -> None:
    image = np.ones(shape)
    with pytest.raises(ValueError, match=rf"^change_map: {argument}: .*, got .*$"):
        mahal.change_map(image, image, window, **params)


def test_images_that_do_not_fit() -> None:
    image = np.ones((9, 9, 2))
    with pytest.raises(ValueError, match=r"^change_map: second: .*shape.*, got \(9, 8, 2\)$"):
        mahal.change_map(image, image[:, :8], 3)
    for other in (image.astype(np.float32), image.astype(complex), image.tolist()):
        with pytest.raises(TypeError, match=r"^change_map: second: .*, got .*$"):
            mahal.change_map(image, other, 3)
    hermitian = image.astype(complex)
    with pytest.raises(TypeError, match=r"^change_map: metric: .*, got complex128$"):
        mahal.change_map(hermitian, hermitian, 3, metric="box_m")
    with pytest.raises(TypeError, match=r"^change_map: (window|ddof): .*, got .*$"):
        mahal.change_map(image, image, 3.0)
    with pytest.raises(TypeError, match=r"^change_map: (window|ddof): .*, got .*$"):
        mahal.change_map(image, image, 3, ddof=1.5)

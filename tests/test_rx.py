"""rx: reference, laws of the detector, singular windows, masks, borders, errors."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import mahal
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mahal.testing import (
    Case,
    OpSpec,
    backend,
    random_scene,
    random_spd,
    reference,
    run_op_checks,
    tolerance,
)

# Whitening the image first leaves local covariances of this order.
CONDITION = 50.0


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, params in [
        ((12, 15, 4), {}),
        ((60, 3), {}),
        ((9, 31, 1), {}),
        ((40, 1, 5), {}),
        ((12, 15, 4), {"window": (1, 5)}),
        ((15, 12, 3), {"window": (3, 9)}),
        ((7, 19, 2), {"window": (5, 7)}),
        ((9, 9, 4), {"window": 9}),
        ((8, 9, 1), {"window": (1, 3)}),
        ((9, 40, 6), {"window": (1, 7), "border": "reflect"}),
        ((13, 14, 3), {"window": (1, 5), "border": "valid"}),
        ((22, 21, 20), {"window": (5, 9)}),
        ((16, 18, 4), {"window": (3, 9), "mask": rng.random((16, 18)) < 0.8}),
        ((16, 18, 4), {"mask": rng.random((16, 18)) < 0.8}),
        ((14, 13, 4), {"background": random_scene((20, 11, 4), rng)}),
        ((14, 13, 4), {"covariance": 400 * random_spd(4, 50.0, rng)}),
        ((14, 13, 4), {"covariance": 400 * random_spd(4, 50.0, rng), "window": (3, 7)}),
    ]:
        given_names = ", ".join(
            f"{k}={v}" if not isinstance(v, np.ndarray) else k for k, v in params.items()
        )
        window = params.get("window", 1)
        outer = window[1] if isinstance(window, tuple) else window
        image = random_scene(shape, rng)
        outer_columns = outer if "window" in params else shape[-2]
        yield Case(
            f"{shape} {given_names}",
            (image,),
            {"return_status": True, **params},
            condition=CONDITION,
            terms=max(shape[-1], outer),
            # Repeated rows leave as many distinct pixels as the statistics have columns.
            broadcast_axis=0 if len(shape) == 3 and outer_columns > 2 * shape[-1] else None,
        )


def scores_are_not_negative(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
    scores, status = outputs
    np.testing.assert_array_equal(np.isnan(scores), status != 0)
    assert (scores[status == 0] >= 0).all()


def reference_with_status(image: np.ndarray, *, return_status: bool, **params: Any) -> Any:
    return reference.rx(image, **params)


SPEC = OpSpec(
    name="rx",
    function=lambda image, **params: mahal.rx(image, **params),
    reference=reference_with_status,
    cases=cases,
    constant=2.0,
    invariants=[scores_are_not_negative],
    layouts=("C", "F", "sliced", "offset", "negative", "read_only", "channel_first", "broadcast"),
)

PROMOTED = OpSpec(
    name="rx",
    function=lambda image, **params: mahal.rx(image, **params),
    reference=reference_with_status,
    cases=lambda rng: (c for c in cases(rng) if not {"background", "covariance"} & set(c.params)),
    constant=2.0,
    dtypes=(np.float32,),
    promoted=(np.uint8, np.uint16, np.int16),
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC).failures == 0


def test_integer_images_against_the_reference() -> None:
    assert run_op_checks(PROMOTED).failures == 0


needs_emulator = pytest.mark.skipif(
    not mahal.info()["emulator"], reason="needs a build with the emulator"
)
FEW_LAYOUTS = ("C", "sliced", "negative", "channel_first")


def global_cases(rng: np.random.Generator) -> Iterator[Case]:
    for shape, params in [
        ((12, 15, 4), {"mask": rng.random((12, 15)) < 0.8}),
        ((60, 20), {"background": random_scene((20, 11, 20), rng)}),
        ((9, 7, 3), {"covariance": 400 * random_spd(3, 50.0, rng)}),
    ]:
        yield Case(
            f"{shape} {list(params)}",
            (random_scene(shape, rng),),
            {"return_status": True, **params},
            condition=CONDITION,
            terms=shape[-1],
            broadcast_axis=None,
        )


@needs_emulator
def test_global_scores_of_the_cuda_kernels_against_the_reference() -> None:
    spec = replace(SPEC, cases=global_cases, emulated=True, layouts=FEW_LAYOUTS)
    run_op_checks(spec, backends=["emu"], libraries=["numpy"], thread_counts=())


@pytest.mark.cuda
def test_global_scores_on_a_device_against_the_reference() -> None:
    run_op_checks(replace(SPEC, cases=global_cases, emulated=True), backends=["cuda"])


@pytest.mark.cuda
def test_global_scores_are_captured_into_a_graph() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    first, second = (torch.from_numpy(random_scene((40, 50, 20), rng)).cuda() for _ in range(2))
    want = mahal.rx(second)
    image = first.clone()
    mahal.rx(image)
    graph = torch.cuda.CUDAGraph()
    # A call that waited for the device, or copied from it, would end the capture.
    with torch.cuda.graph(graph):
        scores = mahal.rx(image)
    image.copy_(second)
    graph.replay()
    assert torch.equal(scores, want)


@needs_emulator
@pytest.mark.parametrize("estimator", ["scm", "loading", "ledoit_wolf", "student_t"])
@pytest.mark.parametrize("circular", [False, True])
def test_global_scores_of_the_cuda_kernels_for_every_estimator(
    estimator: str, circular: bool
) -> None:
    image = random_scene((12, 15, 4), np.random.default_rng(8), circular=circular)
    image[3, 4, 1] = np.nan
    params: dict[str, Any] = {"estimator": estimator, "max_iterations": 3, "return_status": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.ConvergenceWarning)
        want, want_status = mahal.rx(image, **params)
        with backend("emu"):
            scores, status = mahal.rx(image, **params)
    np.testing.assert_array_equal(status, want_status)
    allowed = tolerance(np.float64, condition=CONDITION, terms=180)
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed * np.nanmax(want))


@needs_emulator
@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
@pytest.mark.parametrize("singular", ["load", "nan"])
@pytest.mark.parametrize("estimator", ["scm", "oas"])
def test_singular_images_on_a_device(singular: str, estimator: str) -> None:
    params: dict[str, Any] = {"singular": singular, "estimator": estimator, "return_status": True}
    rng = np.random.default_rng(9)
    half = rng.standard_normal((40, 2))
    for image in (np.concatenate([half, half], axis=1), np.full((60, 40), 0.1)):
        want, want_status = mahal.rx(image, **params)
        with backend("emu"):
            scores, status = mahal.rx(image, **params)
        np.testing.assert_array_equal(status, want_status)
        # The repeated bands get 1e-10 of the mean variance.
        allowed = tolerance(np.float64, condition=1e10, terms=4)
        np.testing.assert_allclose(scores, want, rtol=allowed, atol=0)


@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
@pytest.mark.parametrize("window", [None, (1, 5)])
@pytest.mark.parametrize("name", [n for n in mahal.testing.backends() if n != "cuda"])
def test_products_beyond_the_range_of_the_type(name: str, window: Any) -> None:
    image = 1e200 * np.random.default_rng(12).standard_normal((9, 8, 2))
    with backend(name):
        scores, status = mahal.rx(image, window=window, return_status=True)
    assert np.isnan(scores).all()
    np.testing.assert_array_equal(status, 2)


@needs_emulator
@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
def test_what_the_device_finds_out_is_told_by_the_status() -> None:
    image = np.random.default_rng(10).standard_normal((30, 4))
    image[4:] = np.nan
    covariance = np.diag([1.0, 1.0, -1.0, 1.0])
    with backend("emu"):
        scores, status = mahal.rx(image, return_status=True)
        assert np.isnan(scores).all()
        np.testing.assert_array_equal(status, np.where(np.isnan(image[:, 0]), 3, 1))
        scores, status = mahal.rx(image, covariance=covariance, return_status=True)
        assert np.isnan(scores).all()
        np.testing.assert_array_equal(status, np.where(np.isnan(image[:, 0]), 3, 2))
        with pytest.raises(mahal.SingularError):
            mahal.rx(image, covariance=covariance, singular="raise")
        with pytest.raises(ValueError, match="rx: image: needs 5 usable pixels or more, got 4"):
            mahal.rx(image[:4])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(3, 14),
    cols=st.integers(3, 40),
    bands=st.integers(1, 5),
    half=st.integers(1, 4),
    guard=st.integers(-1, 2),
    steps=st.tuples(st.sampled_from([-2, -1, 1, 2]), st.sampled_from([-1, 1, 3])),
    border=st.sampled_from(["shift", "reflect", "valid"]),
    double=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_stride_and_window(
    rows: int,
    cols: int,
    bands: int,
    half: int,
    guard: int,
    steps: tuple[int, int],
    border: str,
    double: bool,
    seed: int,
) -> None:
    outer = min(2 * half + 1, rows - 1 + rows % 2, cols - 1 + cols % 2)
    inner = 2 * guard + 1
    window: Any = (inner, outer) if 0 < inner < outer else outer
    count = outer * outer - (max(inner, 0) ** 2 if isinstance(window, tuple) else 0)
    # With twice as many samples as bands no window comes near a singular one; with mirrored
    # samples a corner holds only about a quarter of them.
    bands = max(1, min(bands, count // 8))
    dtype = np.float64 if double else np.float32
    large = random_scene((3 * rows, 3 * cols, bands), np.random.default_rng(seed)).astype(dtype)
    image = large[:: steps[0], :: steps[1]][:rows, :cols]
    scores, status = mahal.rx(image, window=window, border=border, return_status=True)
    want, want_status = reference.rx(image, window=window, border=border)
    np.testing.assert_array_equal(status, want_status)
    allowed = tolerance(dtype, condition=2 * CONDITION, terms=max(bands, outer))
    largest = float(np.nanmax(np.where(np.isnan(want), 0.0, want)))
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed * largest)


def test_one_band_by_hand() -> None:
    image = np.array([[[0.0], [1.0], [2.0], [3.0], [9.0]]])
    # Mean 3, sum of squares 9 + 4 + 1 + 0 + 36 = 50, variance 12.5.
    np.testing.assert_allclose(
        mahal.rx(image), [[0.72, 0.32, 0.08, 0.0, 2.88]], rtol=tolerance(np.float64)
    )
    image = np.zeros((3, 3, 1))
    image[0] = 2.0
    image[1, 1] = 5.0
    # Ring of the centre: mean 6/8, sum of squares 3 (5/4)^2 + 5 (3/4)^2 = 7.5, variance 7.5/7.
    scores = mahal.rx(image, window=(1, 3))
    assert scores[1, 1] == pytest.approx((5 - 0.75) ** 2 * 7 / 7.5, rel=tolerance(np.float64))


@pytest.mark.parametrize("shape", [(40, 50, 6), (300, 4), (9, 200, 1), (50, 40, 30)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_global_scores_sum_to_bands_times_samples_less_one(
    shape: tuple[int, ...], dtype: Any
) -> None:
    image = random_scene(shape, np.random.default_rng(1)).astype(dtype)
    scores = mahal.rx(image)
    count, bands = image.size // shape[-1], shape[-1]
    total = scores.astype(np.float64).sum()
    assert total == pytest.approx(
        bands * (count - 1), rel=tolerance(dtype, condition=CONDITION, terms=bands)
    )
    assert scores.max() <= (count - 1) ** 2 / count


@pytest.mark.parametrize("window", [None, (3, 9)])
@pytest.mark.parametrize("border", ["shift", "reflect"])
def test_affine_invariance_at_large_offset_and_scale(window: Any, border: str) -> None:
    rng = np.random.default_rng(2)
    image = random_scene((20, 22, 4), rng, offset=0.0, scale=1.0)
    moved = image @ (1e6 * random_spd(4, 10.0, rng)).T + 1e7 * rng.standard_normal(4)
    want = mahal.rx(image, window=window, border=border)
    # The map costs the digits by which its offset exceeds the quietest direction.
    allowed = tolerance(np.float64, condition=10 * 10 * CONDITION * 10, terms=9)
    np.testing.assert_allclose(
        mahal.rx(moved, window=window, border=border), want, rtol=0, atol=allowed * want.max()
    )


@pytest.mark.parametrize("window", [None, (3, 9)])
def test_large_offset_costs_no_accuracy(window: Any) -> None:
    image = random_scene((30, 24, 5), np.random.default_rng(3), offset=1e4, scale=1.0)
    image = image.astype(np.float32)
    want, _ = reference.rx(image, window=window)
    allowed = tolerance(np.float32, condition=CONDITION, terms=9) * want.max()
    np.testing.assert_allclose(mahal.rx(image, window=window), want, rtol=0, atol=allowed)


def test_float32_scores_are_right_to_two_parts_in_a_million() -> None:
    image = random_scene((26, 40, 30), np.random.default_rng(4), condition=1e5)
    image = image.astype(np.float32)
    want, _ = reference.rx(image, window=(3, 13))
    scores = mahal.rx(image, window=(3, 13))
    np.testing.assert_allclose(scores, want, rtol=2e-6)


@pytest.mark.parametrize("quiet", [1e-3, 1e-4, 1e-5])
def test_quiet_regions_far_from_the_mean(quiet: float) -> None:
    """Whitened pixels there have too few digits in float32 to tell their differences."""
    rng = np.random.default_rng(24)
    image = rng.standard_normal((160, 60, 3))
    image[:, :40] = 3 + quiet * rng.standard_normal((160, 40, 3))
    image = image.astype(np.float32)
    want = mahal.rx(image.astype(np.float64), window=(1, 5))
    np.testing.assert_allclose(mahal.rx(image, window=(1, 5)), want, rtol=1e-3)
    target = np.array([3.0 + quiet, 3.0, 3.0 - quiet], dtype=np.float32)
    want = mahal.ace(image.astype(np.float64), target.astype(np.float64), window=(1, 5))
    np.testing.assert_allclose(mahal.ace(image, target, window=(1, 5)), want, rtol=0, atol=1e-3)


def test_translation_equivariance() -> None:
    rng = np.random.default_rng(5)
    large = random_scene((34, 40, 3), rng)
    covariance = 400 * random_spd(3, 10.0, rng)
    for params in ({}, {"covariance": covariance}):
        whole = mahal.rx(large, window=(3, 7), **params)
        part = mahal.rx(large[4:30, 9:38], window=(3, 7), **params)
        allowed = tolerance(np.float64, condition=CONDITION, terms=9) * whole.max()
        np.testing.assert_allclose(part[3:-3, 3:-3], whole[7:27, 12:35], rtol=0, atol=allowed)


def test_transposed_images_give_transposed_scores() -> None:
    image = random_scene((17, 23, 3), np.random.default_rng(6))
    allowed = tolerance(np.float64, condition=CONDITION, terms=9)
    scores = mahal.rx(image, window=(3, 9))
    flipped = mahal.rx(np.swapaxes(image, 0, 1), window=(3, 9)).T
    np.testing.assert_allclose(flipped, scores, rtol=0, atol=allowed * scores.max())


@pytest.mark.parametrize("rows", [1, 3, 7, 9])
def test_images_of_less_than_ten_rows(rows: int) -> None:
    image = random_scene((rows, 50, 2), np.random.default_rng(7))
    window = None if rows == 1 else (1, min(rows, 5))
    want, _ = reference.rx(image, window=window)
    allowed = tolerance(np.float64, condition=CONDITION, terms=5) * want.max()
    np.testing.assert_allclose(mahal.rx(image, window=window), want, rtol=0, atol=allowed)


def spoil(image: np.ndarray) -> np.ndarray:
    """Make a region flat, so that the windows inside it are singular."""
    spoiled = image.copy()
    spoiled[:12, :14] = spoiled[0, 0]
    return spoiled


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rule", ["load", "nan"])
def test_singular_windows(dtype: Any, rule: str) -> None:
    image = spoil(random_scene((26, 30, 4), np.random.default_rng(8))).astype(dtype)
    image[3, 3] += 1
    want, want_status = reference.rx(image, window=(3, 7), singular=rule)
    count = int((want_status == reference.SINGULAR).sum())
    assert count > 30
    with pytest.warns(mahal.SingularWarning, match=rf"\b{count}\b"):
        scores, status = mahal.rx(image, window=(3, 7), singular=rule, return_status=True)
    np.testing.assert_array_equal(status, want_status)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(want))
    regular = status == reference.OK
    allowed = tolerance(dtype, condition=CONDITION, terms=7)
    # Windows at the rim of the flat region see few distinct pixels, and score high.
    np.testing.assert_allclose(scores[regular], want[regular], rtol=allowed * 10, atol=allowed)
    if rule == "load":
        loaded = tolerance(dtype, condition=1 / reference.LOADING, terms=7)
        np.testing.assert_allclose(scores[~regular], want[~regular], rtol=loaded, atol=loaded)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bands", [1, 2, 5])
def test_a_pixel_in_a_flat_region(dtype: Any, bands: int) -> None:
    """A flat window has no scale of its own, whatever rounding leaves of its variance."""
    image = random_scene((24, 45, bands), np.random.default_rng(23)).astype(dtype)
    image[:, 20:] = dtype(0.1)
    image[12, 35] = 7
    want, want_status = reference.rx(image, window=(1, 7))
    assert want_status[12, 35] == want_status[3, 40] == reference.SINGULAR
    with pytest.warns(mahal.SingularWarning):
        scores, status = mahal.rx(image, window=(1, 7), return_status=True)
    np.testing.assert_array_equal(status, want_status)
    flat = want == 0
    assert (scores[flat] <= 1e-6).all()
    loaded = tolerance(dtype, condition=1 / reference.LOADING, terms=7)
    np.testing.assert_allclose(scores[12, 35], want[12, 35], rtol=loaded)


def test_singular_windows_leave_their_neighbours_alone() -> None:
    image = random_scene((26, 45, 4), np.random.default_rng(9))
    spoiled = spoil(image)
    with pytest.warns(mahal.SingularWarning):
        loaded, status = mahal.rx(spoiled, window=(3, 7), return_status=True)
    with pytest.warns(mahal.SingularWarning):
        dropped = mahal.rx(spoiled, window=(3, 7), singular="nan")
    regular = status == reference.OK
    np.testing.assert_array_equal(loaded[regular], dropped[regular])
    assert np.isnan(dropped[~regular]).all()


def test_singular_windows_can_raise() -> None:
    image = spoil(random_scene((26, 30, 4), np.random.default_rng(10)))
    count = int((reference.rx(image, window=(3, 7))[1] == reference.SINGULAR).sum())
    with pytest.raises(mahal.SingularError, match=rf"^rx: .*\b{count}\b.*$"):
        mahal.rx(image, window=(3, 7), singular="raise")
    assert issubclass(mahal.SingularError, ValueError)
    assert issubclass(mahal.SingularWarning, UserWarning)


def test_regular_images_do_not_warn() -> None:
    image = random_scene((20, 20, 3), np.random.default_rng(11))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mahal.rx(image, window=(1, 5))
        mahal.rx(image)


@pytest.mark.parametrize("window", [None, (1, 5)])
@pytest.mark.parametrize("kind", ["duplicated", "constant"])
def test_a_redundant_band_changes_nothing_but_the_status(window: Any, kind: str) -> None:
    image = random_scene((12, 13, 3), np.random.default_rng(12))
    extra = image[..., 1:2] if kind == "duplicated" else np.full((12, 13, 1), 7.0)
    spoiled = np.concatenate([image, extra], axis=2)
    with pytest.warns(mahal.SingularWarning, match=r"\b156\b"):
        scores, status = mahal.rx(spoiled, window=window, return_status=True)
    assert (status == reference.SINGULAR).all()
    # The loading is a millionth of the global covariance, and no local one is much smaller.
    plain = mahal.rx(image, window=window)
    np.testing.assert_allclose(scores, plain, rtol=1e3 * reference.LOADING)


@pytest.mark.parametrize("window", [None, (1, 5)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_image_scores_zero(window: Any, dtype: Any) -> None:
    image = np.full((9, 8, 2), 0.1, dtype=dtype)
    with pytest.warns(mahal.SingularWarning, match=r"\b72\b"):
        scores, status = mahal.rx(image, window=window, return_status=True)
    np.testing.assert_array_equal(scores, 0.0)
    np.testing.assert_array_equal(status, reference.SINGULAR)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_non_finite_pixel_costs_only_its_windows(dtype: Any) -> None:
    image = random_scene((40, 30, 3), np.random.default_rng(13)).astype(dtype)
    for row, col, value in [(17, 12, np.nan), (0, 29, np.inf)]:
        image[row, col, 1] = value
    want, want_status = reference.rx(image, window=(3, 7))
    scores, status = mahal.rx(image, window=(3, 7), return_status=True)
    np.testing.assert_array_equal(status, want_status)
    assert status[17, 12] == reference.NON_FINITE
    # The guard window keeps the neighbours free: the ring does not hold the pixel.
    assert status[17, 13] == reference.OK
    assert status[17, 15] == reference.NON_FINITE
    np.testing.assert_array_equal(np.isnan(scores), status == reference.NON_FINITE)
    allowed = tolerance(dtype, condition=CONDITION, terms=7) * np.nanmax(want)
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


def test_non_finite_pixels_are_left_out_of_global_statistics() -> None:
    image = random_scene((15, 16, 3), np.random.default_rng(14))
    spoiled = image.copy()
    spoiled[2, 3, 0] = np.nan
    scores, status = mahal.rx(spoiled, return_status=True)
    keep = np.ones((15, 16), dtype=bool)
    keep[2, 3] = False
    np.testing.assert_array_equal(status, np.where(keep, reference.OK, reference.NON_FINITE))
    np.testing.assert_allclose(
        scores[keep], mahal.rx(image[keep]), rtol=tolerance(np.float64, condition=CONDITION)
    )


@pytest.mark.parametrize("window", [None, (1, 7)])
def test_masked_pixels_do_not_matter(window: Any) -> None:
    rng = np.random.default_rng(15)
    image = random_scene((18, 17, 3), rng)
    mask = rng.random((18, 17)) < 0.85
    scores, status = mahal.rx(image, window=window, mask=mask, return_status=True)
    np.testing.assert_array_equal(status == reference.MASKED, ~mask)
    np.testing.assert_array_equal(np.isnan(scores), ~mask)
    for value in (1e30, np.nan):
        spoiled = np.where(mask[..., None], image, value)
        again, same = mahal.rx(spoiled, window=window, mask=mask, return_status=True)
        np.testing.assert_array_equal(again, scores)
        np.testing.assert_array_equal(same, status)


def test_a_mask_of_ones_changes_nothing() -> None:
    image = random_scene((14, 15, 3), np.random.default_rng(16))
    allowed = tolerance(np.float64, condition=CONDITION, terms=7)
    for window in (None, (1, 5)):
        scores = mahal.rx(image, window=window)
        masked = mahal.rx(image, window=window, mask=np.ones((14, 15), dtype=bool))
        np.testing.assert_allclose(masked, scores, rtol=0, atol=allowed * scores.max())


def test_windows_that_the_mask_leaves_too_few_samples() -> None:
    image = random_scene((16, 40, 5), np.random.default_rng(17))
    mask = np.ones((16, 40), dtype=bool)
    mask[:, :20] = False
    mask[8, 4] = True
    scores, status = mahal.rx(image, window=(1, 5), mask=mask, return_status=True)
    _, want_status = reference.rx(image, window=(1, 5), mask=mask)
    np.testing.assert_array_equal(status, want_status)
    assert status[8, 4] == reference.TOO_FEW_SAMPLES
    assert np.isnan(scores[8, 4])


def test_valid_borders_are_not_scored() -> None:
    image = random_scene((12, 13, 2), np.random.default_rng(18))
    scores, status = mahal.rx(image, window=(1, 5), border="valid", return_status=True)
    inside = np.zeros((12, 13), dtype=bool)
    inside[2:-2, 2:-2] = True
    np.testing.assert_array_equal(np.isfinite(scores), inside)
    np.testing.assert_array_equal(status, np.where(inside, reference.OK, reference.MASKED))
    allowed = tolerance(np.float64, condition=CONDITION, terms=5)
    np.testing.assert_allclose(
        scores[inside], mahal.rx(image, window=(1, 5))[inside], rtol=0, atol=allowed * 100
    )


def test_an_image_is_its_own_background() -> None:
    image = random_scene((14, 15, 3), np.random.default_rng(19))
    scores = mahal.rx(image)
    allowed = tolerance(np.float64, condition=CONDITION, terms=3)
    again = mahal.rx(image, background=image)
    np.testing.assert_allclose(again, scores, rtol=0, atol=allowed * scores.max())
    mean, covariance = mahal.mean_covariance(image)
    distance = mahal.mahalanobis(image, mean, covariance)
    np.testing.assert_allclose(distance, scores, rtol=0, atol=allowed * scores.max())
    fixed = mahal.rx(image, covariance=covariance)
    np.testing.assert_allclose(fixed, scores, rtol=0, atol=allowed * scores.max())


@pytest.mark.parametrize("window", [None, (3, 7)])
def test_a_float64_covariance_serves_a_float32_image(window: Any) -> None:
    image = random_scene((14, 15, 3), np.random.default_rng(22)).astype(np.float32)
    _, covariance = reference.mean_covariance(image)
    scores = mahal.rx(image, covariance=covariance, window=window)
    want, _ = reference.rx(image, covariance=covariance, window=window)
    assert scores.dtype == np.float32
    allowed = tolerance(np.float32, condition=CONDITION, terms=7) * want.max()
    np.testing.assert_allclose(scores, want, rtol=0, atol=allowed)


@pytest.mark.parametrize("window", [None, (3, 9), 7])
def test_thread_counts_give_the_same_bits(window: Any) -> None:
    image = random_scene((40, 53, 6), np.random.default_rng(20)).astype(np.float32)
    first = mahal.rx(image, window=window, threads=1)
    for count in (1, 2, 3, 4, 7):
        np.testing.assert_array_equal(mahal.rx(image, window=window, threads=count), first)


IMAGE = random_scene((12, 13, 3), np.random.default_rng(21))
ASYMMETRIC = np.array([[2.0, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])


@pytest.mark.parametrize(
    ("image", "params", "argument"),
    [
        (IMAGE[0, 0], {}, "image"),
        (IMAGE[None], {}, "image"),
        (IMAGE[:0], {}, "image"),
        (IMAGE[..., :0], {}, "image"),
        (IMAGE[0, :3], {}, "image"),
        (np.full((5, 5, 3), np.nan), {}, "image"),
        (IMAGE[0], {"window": (1, 5)}, "(window|image)"),
        (IMAGE, {"window": 4}, "window"),
        (IMAGE, {"window": 0}, "window"),
        (IMAGE, {"window": -5}, "window"),
        (IMAGE, {"window": (2, 7)}, "window"),
        (IMAGE, {"window": (1, 6)}, "window"),
        (IMAGE, {"window": (7, 3)}, "window"),
        (IMAGE, {"window": (5, 5)}, "window"),
        (IMAGE, {"window": (1, 3, 5)}, "window"),
        (IMAGE, {"window": (1, 13)}, "window"),
        (IMAGE, {"window": (1, 15)}, "window"),
        (random_scene((9, 9, 8), np.random.default_rng(0)), {"window": (1, 3)}, "window"),
        (IMAGE, {"border": "wrap", "window": 5}, "border"),
        (IMAGE, {"estimator": "magic"}, "estimator"),
        (IMAGE, {"singular": "magic"}, "singular"),
        (IMAGE, {"threads": -1}, "threads"),
        (IMAGE, {"mask": np.ones((13, 12), dtype=bool)}, "mask"),
        (IMAGE, {"mask": np.ones((12, 13, 3), dtype=bool)}, "mask"),
        (IMAGE, {"mask": np.zeros((12, 13), dtype=bool)}, "(mask|image)"),
        (IMAGE, {"covariance": np.ones((3, 4))}, "covariance"),
        (IMAGE, {"covariance": np.eye(4)}, "covariance"),
        (IMAGE, {"covariance": ASYMMETRIC}, "covariance"),
        (IMAGE, {"covariance": np.zeros((3, 3))}, "covariance"),
        (IMAGE, {"covariance": -np.eye(3)}, "covariance"),
        (IMAGE, {"covariance": np.full((3, 3), np.nan)}, "covariance"),
        (IMAGE, {"background": IMAGE[..., :2]}, "background"),
        (IMAGE, {"background": IMAGE[0, :3]}, "background"),
        (IMAGE, {"background": IMAGE, "window": (1, 5)}, "background"),
    ],
)
def test_bad_values(image: np.ndarray, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(ValueError, match=rf"^rx: {argument}: .*, got .*$"):
        mahal.rx(image, **params)


@pytest.mark.parametrize(
    ("image", "params", "argument"),
    [
        (IMAGE, {"center": 1}, "center"),
        (IMAGE > 0, {}, "image"),
        (IMAGE.astype(object), {}, "image"),
        (IMAGE, {"window": 5.0}, "window"),
        (IMAGE, {"window": (1.0, 5.0)}, "window"),
        (IMAGE, {"window": "5"}, "window"),
        (IMAGE, {"mask": np.ones((12, 13))}, "mask"),
        (IMAGE, {"covariance": np.eye(3, dtype=int)}, "covariance"),
        (IMAGE.astype(np.float32), {"background": IMAGE}, "background"),
    ],
)
def test_bad_types(image: np.ndarray, params: dict[str, Any], argument: str) -> None:
    with pytest.raises(TypeError, match=rf"^rx: {argument}: .*, got .*$"):
        mahal.rx(image, **params)


def test_progress_is_reported_and_its_errors_end_the_call() -> None:
    image = random_scene((70, 40, 4), np.random.default_rng(23))
    seen: list[tuple[int, int]] = []
    plain = mahal.rx(image, window=(1, 5))
    scores = mahal.rx(
        image, window=(1, 5), threads=1, progress=lambda done, total: seen.append((done, total))
    )
    np.testing.assert_array_equal(scores, plain)
    totals = {total for _, total in seen}
    assert len(totals) == 1
    assert [done for done, _ in seen] == list(range(1, totals.pop() + 1))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mahal.rx(image, window=(1, 5), threads=1, progress=stop)
    np.testing.assert_array_equal(mahal.rx(image, window=(1, 5)), plain)


@pytest.mark.parametrize("window", [(3, 9), 11])
@pytest.mark.parametrize("masked", [False, True])
def test_float32_scores_keep_their_promise_where_windows_are_ill_conditioned(
    window: Any, masked: bool
) -> None:
    # Smooth spectra whose differences all but vanish in the left half: beyond float32 there,
    # while the whitening by the whole image knows the right half.
    rng = np.random.default_rng(29)
    image = np.cumsum(rng.standard_normal((80, 44, 48)), axis=2)
    image[:, :22] = image[:, :22, :1] + 1e-3 * image[:, :22]
    image[20:40, :22] += 40.0
    image = image.astype(np.float32)
    mask = rng.random(image.shape[:2]) > 0.1 if masked else None
    exact, status = mahal.rx(image.astype(np.float64), window=window, mask=mask, return_status=True)
    scores = mahal.rx(image, window=window, mask=mask)
    regular = status == 0
    assert regular.sum() > 3000
    assert np.abs(scores - exact)[regular].max() > 0
    assert (np.abs(scores - exact)[regular] <= 1e-3 * exact[regular]).all()

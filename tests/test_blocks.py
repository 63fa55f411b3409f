"""Scenes in blocks give what the whole image gives."""

import pickle
import warnings

import mahal
import numpy as np
import pytest
from mahal import blocks
from mahal.blocks import _moments, _score

array = pytest.importorskip("dask.array")
dask = pytest.importorskip("dask")

BANDS = 5
# Blocks smaller than the windows and larger, and a last one of a single row.
CHUNKS = ((20, 3, 17, 24, 1), (31, 2, 19, 18), (BANDS,))
ROWS, COLS = sum(CHUNKS[0]), sum(CHUNKS[1])


@pytest.fixture(scope="module")
def image():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(BANDS, BANDS))
    return (random.normal(size=(ROWS, COLS, BANDS)) @ mixing + 20).astype(np.float32)


@pytest.fixture(scope="module")
def mask():
    used = np.random.default_rng(1).random((ROWS, COLS)) > 0.1
    # A swath that ends inside the scene: blocks without a single pixel, and with a few.
    used[:, 50:] = False
    used[10, 60] = True
    return used


def lazy(values, chunks=CHUNKS):
    return array.from_array(values, chunks=chunks[: values.ndim])


def computed(*results):
    return dask.compute(*results, scheduler="synchronous")


def equal(found, wanted):
    assert found.dtype == wanted.dtype
    np.testing.assert_array_equal(found, wanted)


WINDOWED = {
    "rx": [
        {"estimator": "ledoit_wolf"},
        {"estimator": "tyler"},
        {"center": False, "estimator": "oas"},
    ],
    "ace": [{"estimator": "oas"}, {"center": False}],
    "matched_filter": [{"center": False, "normalized": True}],
}


@pytest.mark.parametrize("border", ["shift", "reflect", "valid"])
@pytest.mark.parametrize(
    ("op", "options"), [(op, o) for op, all_ in WINDOWED.items() for o in all_]
)
def test_windows_are_those_of_the_whole_image_bit_for_bit(image, op, options, border):
    target = () if op == "rx" else (image[3, 4] + 1,)
    options = {**options, "window": (3, 11), "border": border, "return_status": True}
    wanted = getattr(mahal, op)(image, *target, **options)
    found = computed(*getattr(blocks, op)(lazy(image), *target, **options))
    for one, other in zip(found, wanted, strict=True):
        equal(one, other)


@pytest.mark.parametrize("op", ["rx", "ace", "matched_filter"])
@pytest.mark.parametrize(
    ("kind", "border"),
    [("float32", "shift"), ("float64", "reflect"), ("complex64", "valid"), ("uint16", "shift")],
)
def test_sample_covariances_of_windows_differ_by_rounding(image, op, border, kind):
    values = image.astype(kind)
    if kind == "complex64":
        values = values + 1j * values[::-1, ::-1]
    target = () if op == "rx" else (values[3, 4] * 1.5,)
    options = {"window": (3, 11), "border": border, "return_status": True}
    wanted, states = getattr(mahal, op)(values, *target, **options)
    found, status = computed(*getattr(blocks, op)(lazy(values), *target, **options))
    equal(status, states)
    assert found.dtype == wanted.dtype
    # The factor of the windows is conditioned like the image, some 1e2 here.
    scale = max(1.0, float(np.nanmax(np.abs(wanted))))
    bound = (3e-12 if kind == "float64" else 2e-5) * scale
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("border", ["shift", "reflect", "valid"])
@pytest.mark.parametrize("options", [{}, {"estimator": "oas"}, {"covariance": np.eye(BANDS)}])
def test_status_is_that_of_the_whole_image_where_pixels_are_missing(image, mask, border, options):
    values = image.copy()
    values[5, 7, 2] = np.nan
    values[60, 44, 0] = np.inf
    values[30, 66, 1] = np.nan
    options = {**options, "window": (3, 11), "border": border, "return_status": True}
    wanted, states = mahal.rx(values, mask=mask, **options)
    found, status = computed(*blocks.rx(lazy(values), mask=mask, **options))
    equal(status, states)
    assert {1, 3, 4} <= set(np.unique(status)) or "estimator" in options or "covariance" in options
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_a_fixed_covariance_leaves_the_sums_of_the_mean_to_round(image):
    for op, target in (("rx", ()), ("ace", (image[3, 4] + 1,))):
        options = {"window": (3, 11), "covariance": np.eye(BANDS)}
        found = computed(getattr(blocks, op)(lazy(image), *target, **options))[0]
        wanted = getattr(mahal, op)(image, *target, **options)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def test_singular_windows_are_told_in_every_block(image):
    values = image.copy()
    values[:, 40:] = values[0, 0]
    options = {"window": 5, "return_status": True}
    with pytest.warns(mahal.SingularWarning):
        _, states = mahal.rx(values, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.SingularWarning)
        found, status = computed(*blocks.rx(lazy(values), **options))
    equal(status, states)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("kind", ["float32", "float64", "complex64", "int16"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_statistics_of_the_scene_are_merged(image, mask, kind, with_mask):
    values = image.astype(kind)
    if kind == "complex64":
        values = values + 1j * values[::-1]
    used = mask if with_mask else None
    double = values.astype(np.complex128 if kind == "complex64" else np.float64)
    for center in (True, False):
        mean, covariance = mahal.mean_covariance(double, mask=used, center=center)
        found = blocks.mean_covariance(lazy(values), mask=used, center=center)
        np.testing.assert_allclose(found[0], mean, rtol=1e-13, atol=1e-13)
        np.testing.assert_allclose(found[1], covariance, rtol=0, atol=1e-12 * abs(covariance).max())
        assert found[0].dtype == double.dtype


def test_merging_keeps_digits_far_from_zero():
    random = np.random.default_rng(2)
    values = 1e6 + random.normal(size=(40, 40, 3))
    found = blocks.mean_covariance(array.from_array(values, chunks=(7, 40, 3)))
    # numpy centres on the mean of all first.
    wanted = np.cov(values.reshape(-1, 3) - 1e6, rowvar=False)
    np.testing.assert_allclose(found[1], wanted, rtol=1e-8, atol=1e-9)
    parts = [_moments.moments_of(values[k : k + 5], None) for k in range(0, 40, 5)]
    merged = _moments.merge_all([_moments.Moments.none(3, np.float64), *parts])
    np.testing.assert_allclose(merged.covariance(), wanted, rtol=1e-8, atol=1e-9)
    assert merged.pixels == 1600


GLOBAL = [
    ("rx", {}),
    ("rx", {"center": False}),
    ("ace", {}),
    ("ace", {"signed": True}),
    ("ace", {"center": False}),
    ("matched_filter", {}),
    ("matched_filter", {"normalized": True}),
    ("cem", {}),
    ("cem", {"center": True}),
]


@pytest.mark.parametrize(("op", "options"), GLOBAL)
@pytest.mark.parametrize("kind", ["float32", "complex64"])
def test_global_scores_are_those_of_the_whole_image(image, mask, op, options, kind):
    values = image.astype(kind)
    if kind == "complex64":
        if "signed" in options:
            pytest.skip("signed is for real images")
        values = values + 1j * values[::-1]
    values[7, 8, 1] = np.nan
    target = () if op == "rx" else (values[3, 4] * 1.5,)
    options = {**options, "mask": mask, "return_status": True}
    wanted, states = getattr(mahal, op)(values, *target, **options)
    found, status = computed(*getattr(blocks, op)(lazy(values), *target, **options))
    equal(status, states)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-7)
    assert np.mean(found == wanted) + np.mean(np.isnan(wanted)) > 0.97


def test_several_targets_and_a_given_background(image):
    targets = np.stack([image[3, 4], image[5, 6]])
    known = blocks.mean_covariance(lazy(image))
    found = computed(blocks.ace(lazy(image), targets, background=known))[0]
    np.testing.assert_allclose(found, mahal.ace(image, targets), rtol=2e-6, atol=1e-7)
    found = computed(blocks.ace(lazy(image), targets, window=9, subspace=True))[0]
    np.testing.assert_allclose(found, mahal.ace(image, targets, window=9, subspace=True), atol=2e-5)
    found = computed(blocks.spectral_angle(lazy(image), targets))[0]
    equal(found, mahal.spectral_angle(image, targets))


@pytest.mark.parametrize("singular", ["load", "nan", "raise"])
def test_a_singular_covariance_of_the_scene_follows_the_rule(image, singular):
    values = image.copy()
    values[:, :, 4] = values[:, :, 0]
    options = {"singular": singular, "return_status": True}
    if singular == "raise":
        with pytest.raises(mahal.SingularError, match="rx: image"):
            blocks.rx(lazy(values), **options)
        return
    with pytest.warns(mahal.SingularWarning):
        wanted, states = mahal.rx(values, **options)
    found, status = computed(*blocks.rx(lazy(values), **options))
    equal(status, states)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.parametrize("components", [3, 10])
def test_fused_rx_takes_medians_of_the_whole_scene(image, mask, components):
    values = image.copy()
    values[7, 8, 1] = np.nan
    options = {"components": components, "window": (3, 11), "mask": mask, "return_status": True}
    wanted, states = mahal.fused_rx(values, **options)
    found, status = computed(*blocks.fused_rx(lazy(values), **options))
    equal(status, states)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


def test_a_block_is_read_once_for_both_parts_of_fused_rx(image):
    calls = []

    def load(block):
        calls.append(block.shape)
        return block

    source = lazy(image).map_blocks(load, dtype=image.dtype, meta=np.empty((0, 0, 0), np.float32))
    known = blocks.mean_covariance(lazy(image))
    computed(blocks.fused_rx(source, background=known, window=(3, 5)))
    assert len(calls) == source.npartitions


@pytest.mark.parametrize("border", ["shift", "reflect", "valid"])
@pytest.mark.parametrize("window", [7, (3, 9), [(1, 5), 11]])
def test_window_covariances_are_those_of_the_whole_image(image, mask, window, border):
    options = {"border": border, "mask": mask, "return_status": True}
    wanted = mahal.local_covariance(image, window, **options)
    found = computed(*blocks.local_covariance(lazy(image), window, **options))
    equal(found[2], wanted[2])
    for one, other in zip(found[:2], wanted[:2], strict=True):
        assert one.dtype == other.dtype
        # Sums slide in float64 from where a block begins.
        np.testing.assert_allclose(one, other, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("form", ["matrix", "packed", "log"])
def test_multiscale_covariances_are_those_of_the_whole_image(image, form):
    wanted = mahal.multiscale_covariance(image, [5, (3, 9)], form=form)
    found = computed(blocks.multiscale_covariance(lazy(image), [5, (3, 9)], form=form))[0]
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("border", ["clip", "shift", "reflect", "valid"])
def test_two_scenes_are_compared_like_whole_images(image, mask, border):
    second = image[::-1] ** 2 / 20
    options = {"border": border, "return_status": True, "mask": mask}
    for metric in ("frobenius", "wishart"):
        wanted = mahal.change_map(image, second, 9, metric=metric, **options)
        found = computed(*blocks.change_map(lazy(image), lazy(second), 9, metric=metric, **options))
        equal(found[1], wanted[1])
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
    for channels in ("mean", "each"):
        options = {"border": border, "data_range": 20.0, "channels": channels}
        wanted = mahal.structural_similarity(image, second, 9, **options)
        found = computed(blocks.structural_similarity(lazy(image), lazy(second), 9, **options))[0]
        np.testing.assert_allclose(found, wanted, atol=3e-7)
    first = lazy(image[:, :, 0])
    found = computed(blocks.change_map(first, first * 2, 7, border=border))[0]
    equal(found, mahal.change_map(image[:, :, 0], image[:, :, 0] * 2, 7, border=border))


def test_results_do_not_depend_on_the_scheduler(image):
    scores = blocks.rx(lazy(image), window=(3, 11))
    once = scores.compute(scheduler="synchronous")
    equal(scores.compute(scheduler="threads", num_workers=3), once)
    assert len(pickle.dumps(scores)) < image.nbytes + 100_000


def test_what_comes_from_another_process_may_lie_anywhere(image):
    def moved(values):
        memory = np.empty(values.nbytes + 1, np.uint8)
        found = memory[1:].view(values.dtype).reshape(values.shape)
        found[...] = values
        return found

    known = _moments.background_of("rx", _moments.moments_of(image, None))
    away = _moments.Background(moved(known.mean), moved(known.covariance))
    for op, target in (("rx", None), ("ace", image[3, 4])):
        wanted = _score.score_global(op, image, None, target, known, {})
        equal(_score.score_global(op, image, None, target, away, {})[0], wanted[0])
    source = lazy(image).map_blocks(moved, dtype=image.dtype, meta=np.empty((0,) * 3, np.float32))
    equal(*computed(blocks.rx(source, window=9), blocks.rx(lazy(image), window=9)))


@pytest.mark.parametrize(
    ("call", "error", "rule"),
    [
        (lambda x: blocks.rx(x.compute()), TypeError, "rx: image: must be a dask array or"),
        (lambda x: blocks.rx(x[:, :, 0]), ValueError, "rx: image: must have 3 axes"),
        (lambda x: blocks.rx(x > 0), TypeError, "rx: image: must hold numbers, got bool"),
        (lambda x: blocks.rx(x, window=4), ValueError, "rx: window"),
        (lambda x: blocks.rx(x, window=3, border="odd"), ValueError, "rx: border"),
        (lambda x: blocks.rx(x, wrong=1), TypeError, "wrong"),
        (lambda x: blocks.rx(x, estimator="tyler"), ValueError, "rx: estimator: must be 'scm'"),
        (
            lambda x: blocks.rx(x, mask=np.ones(3, bool)),
            ValueError,
            "rx: mask: must have",
        ),
        (
            lambda x: blocks.rx(x, mask=np.ones((ROWS, COLS))),
            TypeError,
            "rx: mask: must be boolean",
        ),
        (lambda x: blocks.rx(x, background=(1, 2)), ValueError, "rx: background: must be a mean"),
        (lambda x: blocks.rx(x[:2, :2]), ValueError, "rx: image: needs 6 usable pixels"),
        (lambda x: blocks.ace(x, np.ones(3)), ValueError, "ace: target"),
        (lambda x: blocks.change_map(x, x[:5], 3), ValueError, "change_map: second"),
        (lambda x: blocks.local_covariance(x, []), ValueError, "local_covariance: window"),
        (lambda x: blocks.rx(x[:6, :6], window=(1, 9)).compute(), ValueError, "rx: window"),
        (
            lambda x: blocks.mean_covariance(x, mask=np.zeros((ROWS, COLS), bool)),
            ValueError,
            "mean_covariance: image: needs more than 1",
        ),
    ],
)
def test_wrong_arguments_are_refused_when_called(image, call, error, rule):
    with pytest.raises(error, match=rule):
        call(lazy(image))


@pytest.fixture(scope="module")
def fitted(image):
    torch = pytest.importorskip("torch")
    pytest.importorskip("lightning")
    from mahal.models import SpectralAutoencoder

    torch.set_num_threads(1)
    return SpectralAutoencoder(latent=2, epochs=1, runs=2, window=None).fit(image)


@pytest.mark.parametrize("kind", ["mse", "mahalanobis"])
@pytest.mark.parametrize("window", [None, (3, 11)])
def test_models_score_scenes_in_blocks(image, mask, fitted, kind, window):
    model = fitted.set_params(score_kind=kind, window=window)
    values = image.copy()
    values[7, 8, 1] = np.nan
    used = mask & np.isfinite(values).all(-1)
    wanted = model.score(values, mask=used)
    found = computed(blocks.score(model, lazy(values), mask=mask))[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_models_of_whole_images_are_refused(image, fitted):
    from mahal.models import ModelError, SpectralAutoencoder
    from mahal.models._images import ImageDetector

    with pytest.raises(ModelError, match="not fitted"):
        blocks.score(SpectralAutoencoder(), lazy(image))
    with pytest.raises(ModelError, match="must have 5 bands"):
        blocks.score(fitted, lazy(image[:, :, :3], (20, 20, 3)))
    with pytest.raises(ModelError, match="depends on the whole image"):
        ImageDetector._reach(fitted)

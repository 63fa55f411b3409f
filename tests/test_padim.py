"""PaDiM and PaDiM-ACE: statistics, scores, signatures, backbones and files."""

from __future__ import annotations

import re
from pathlib import Path

import mahal
import numpy as np
import pytest
from mahal import cli
from mahal.significance import score_tail
from scipy import ndimage

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from mahal import models  # noqa: E402
from mahal.models import LocationStatistics, ModelError, PadimACE, ResNet18  # noqa: E402
from mahal.models import backbones as networks  # noqa: E402
from mahal.models.padim import blur  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.nn import functional  # noqa: E402

LOCATIONS, D = 5, 6


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- statistics


def one_shot(features, used):
    """Mean and covariance of every location, by numpy."""
    x, used = features.permute(2, 3, 0, 1).flatten(0, 1).numpy(), used.flatten(1).T.numpy()
    means = [x[k][used[k]].mean(axis=0) for k in range(len(x))]
    covariances = [np.cov(x[k][used[k]], rowvar=False) for k in range(len(x))]
    return np.array(means), np.array(covariances)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("splits", [[40], [1, 39], [7, 20, 13], [2] * 20])
def test_streaming_and_merging_equal_one_shot(splits, masked):
    random = torch.Generator().manual_seed(1)
    features = 100 + torch.randn(40, D, 2, 3, generator=random, dtype=torch.float64)
    used = torch.rand(40, 2, 3, generator=random) < (0.5 if masked else 2)
    used[0, 0, 0] = not masked
    mean, covariance = one_shot(features, used)
    streamed, first, second = (LocationStatistics() for _ in range(3))
    for k, (x, u) in enumerate(zip(features.split(splits), used.split(splits), strict=True)):
        streamed.update(x, u if masked else None)
        (first if k % 2 else second).update(x, u if masked else None)
    second.merge(first)
    second.merge(LocationStatistics())
    for found in (streamed, second):
        np.testing.assert_array_equal(found.count, used.sum(dim=0).flatten())
        np.testing.assert_allclose(found.mean(), mean, rtol=1e-13)
        np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-10, atol=1e-12)
        # Asking does not change what is there.
        np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-10, atol=1e-12)


def test_float32_sums_are_accurate_far_from_zero():
    random = torch.Generator().manual_seed(2)
    features = 1e3 + torch.randn(64, D, 2, 2, generator=random)
    found = LocationStatistics()
    for batch in features.split(16):
        found.update(batch)
    covariance = one_shot(features.double(), torch.ones(64, 2, 2, dtype=torch.bool))[1]
    np.testing.assert_allclose(found.covariance(), covariance, atol=2e-6)


def test_statistics_refuse_what_does_not_fit():
    found, other = LocationStatistics(), LocationStatistics()
    with pytest.raises(ValueError, match="no batch yet"):
        found.mean()
    found.update(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"channels of the batches before, \(4, 3\)"):
        found.update(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="4 of 4 locations are used in fewer than two images"):
        found.covariance()
    other.update(torch.zeros(2, 3, 2, 3))
    with pytest.raises(ValueError, match="as many locations and channels"):
        found.merge(other)


# -- scores


class Given(PadimACE):
    """The scores of means, covariances and signatures that are given, in float64."""

    @classmethod
    def of(cls, mean, covariance, signature, **params):
        model = cls(**params)
        model.mean_ = torch.from_numpy(mean)
        model.factor_ = torch.linalg.cholesky(torch.from_numpy(covariance))
        model.signature_ = torch.from_numpy(signature)
        model._cache = {}
        return model

    def scores(self, x, *, ace=True):
        return self._scored(torch.from_numpy(x), ace).numpy()


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(LOCATIONS, D, D))
    covariance = a @ a.transpose(0, 2, 1) + 0.1 * np.eye(D)
    mean, signature = rng.normal(size=(2, LOCATIONS, D))
    return mean, covariance, signature, rng.normal(size=(LOCATIONS, D, 4))


def cosine(s, metric, delta):
    """Eq. 1 of the paper with its roots where they belong."""
    along = np.einsum("li,lij,ljn->ln", s, metric, delta)
    lengths = np.einsum("li,lij,lj->l", s, metric, s)[:, None]
    return along / np.sqrt(lengths * np.einsum("lin,lij,ljn->ln", delta, metric, delta))


def test_scores_equal_their_definitions(case):
    mean, covariance, s, x = case
    delta = x - mean[:, :, None]
    inverse = np.linalg.inv(covariance)
    model = Given.of(*case[:3])
    np.testing.assert_allclose(model.scores(x), cosine(s, inverse, delta), atol=1e-13)
    distance = np.einsum("lin,lij,ljn->ln", delta, inverse, delta)
    np.testing.assert_allclose(model.scores(x, ace=False), np.sqrt(distance), rtol=1e-12)
    own = mahal.mahalanobis(np.ascontiguousarray(x.transpose(2, 0, 1)), mean, covariance)
    np.testing.assert_allclose(model.scores(x, ace=False) ** 2, own.T, rtol=1e-12)
    for k in range(LOCATIONS):
        y, t = (
            mahal.whiten(v, mean[k], covariance[k]) for v in (x[k].T.copy(), (s + mean)[k][None])
        )
        angle = (y @ t[0]) / np.linalg.norm(y, axis=1) / np.linalg.norm(t)
        np.testing.assert_allclose(model.scores(x)[k], angle, atol=1e-13)
    model.set_params(center_signature=True)
    np.testing.assert_allclose(model.scores(x), cosine(s - mean, inverse, delta), atol=1e-13)


def test_what_ace_does_not_depend_on(case):
    mean, covariance, s, x = case
    scores = Given.of(mean, covariance, s).scores(x)
    assert np.abs(scores).max() < 1
    np.testing.assert_allclose(Given.of(mean, covariance, 3 * s).scores(x), scores, atol=1e-13)
    np.testing.assert_allclose(Given.of(mean, covariance, -s).scores(x), -scores, atol=1e-13)
    np.testing.assert_allclose(Given.of(mean, 7 * covariance, s).scores(x), scores, atol=1e-13)
    m = np.random.default_rng(4).normal(size=(D, D))
    moved = Given.of(mean @ m.T, m @ covariance @ m.T, s @ m.T)
    np.testing.assert_allclose(moved.scores(m @ x), scores, atol=1e-9)
    # The direction of the signature itself, and the mean.
    ends = np.stack([mean + s, mean - s, mean], axis=2)
    found = Given.of(mean, covariance, s).scores(ends)
    np.testing.assert_allclose(found, np.tile([1.0, -1, 0], (LOCATIONS, 1)), atol=1e-12)
    assert np.abs(found).max() <= 1


def test_kinds_of_covariance(case):
    mean, covariance, s, x = case
    delta = x - mean[:, :, None]
    model = Given.of(mean, covariance, s)
    plain = cosine(s, np.tile(np.eye(D), (LOCATIONS, 1, 1)), delta)
    isotropic = {
        "mean_diagonal": np.trace(covariance, axis1=1, axis2=2) / D,
        "mean_full": covariance.mean(axis=(1, 2)),
        "determinant": np.linalg.det(covariance),
        "trace": np.trace(covariance, axis1=1, axis2=2),
    }
    for aggregation, c in isotropic.items():
        model.set_params(covariance="isotropic", aggregation=aggregation)
        np.testing.assert_allclose(model.scores(x), plain, atol=1e-13)
        length = np.linalg.norm(delta, axis=1) / np.sqrt(c)[:, None]
        np.testing.assert_allclose(model.scores(x, ace=False), length, rtol=1e-10)
    diagonal = covariance * np.eye(D)
    model.set_params(covariance="diagonal")
    exact = Given.of(mean, diagonal, s)
    for ace in (True, False):
        np.testing.assert_allclose(model.scores(x, ace=ace), exact.scores(x, ace=ace), rtol=1e-10)


def test_scores_of_the_published_code(case):
    mean, covariance, s, x = case
    delta = x - mean[:, :, None]
    model = Given.of(mean, covariance, s, compat="padim-ace-2025")
    np.testing.assert_allclose(model.scores(x), cosine(s, covariance, delta), atol=1e-13)
    model.set_params(covariance="diagonal")
    metric = np.eye(D) / np.einsum("lii->li", np.linalg.inv(covariance))[:, None]
    metric = np.linalg.inv(np.eye(D) * (1 / np.einsum("lij->li", metric))[:, None])
    np.testing.assert_allclose(model.scores(x), cosine(s, np.linalg.inv(metric), delta), atol=1e-12)
    # Distances are those of the textbook.
    distance = Given.of(mean, covariance, s).scores(x, ace=False)
    model.set_params(covariance="full")
    np.testing.assert_array_equal(model.scores(x, ace=False), distance)


def test_a_determinant_that_has_no_number(case):
    mean, covariance, s, x = case
    model = Given.of(mean, covariance * 1e-60, s)
    model.set_params(covariance="isotropic", aggregation="determinant")
    assert np.isfinite(model.scores(x)).all()
    with pytest.raises(ModelError, match=r"determinant is no positive number .* at 5 of 5"):
        model.scores(x, ace=False)


@pytest.mark.parametrize("shape", [(40, 37), (12, 50)])
def test_blur_is_that_of_two_dimensions(shape):
    image = torch.from_numpy(np.random.default_rng(5).normal(size=shape))
    found = blur(image[None, None], 4.0)[0, 0]
    if min(shape) > 16:
        expected = ndimage.gaussian_filter(image.numpy(), 4.0, mode="mirror", radius=16)
        np.testing.assert_allclose(found, expected, atol=1e-14)
    assert found.shape == shape
    assert torch.equal(blur(image[None, None], 0)[0, 0], image)


def test_tail_of_cosines():
    cosines = np.clip(np.random.default_rng(6).normal(0, 0.3, 20_000), -1, 1)
    tail = score_tail(cosines, cosine=True)
    for rate in (0.5, 0.05, 0.01, 1e-4):
        level = tail.threshold(rate)
        assert -1 < level < 1
        np.testing.assert_allclose(tail.pvalue(level), rate, rtol=1e-6)
        if rate > 1e-3:
            np.testing.assert_allclose((cosines >= level).mean(), rate, rtol=0.5)
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
        score_tail(np.linspace(0, 2, 200), cosine=True)


# -- the model


def pyramid(x):
    """Feature maps of means and differences, 6 channels at 1/4 and 6 at 1/8 of the size."""
    small = functional.avg_pool2d(x, 4)
    down, across = functional.avg_pool2d(x.diff(dim=2), 4), functional.avg_pool2d(x.diff(dim=3), 4)
    rows, cols = small.shape[2:]
    grown = [functional.interpolate(m, (rows, cols)) for m in (down, across)]
    fine = torch.cat([small, *grown, small**2, small * grown[0], small * grown[1]], dim=1)
    return [functional.avg_pool2d(fine, 2) * 3, fine]


@pytest.fixture
def images():
    rng = np.random.default_rng(7)
    return [rng.integers(60, 140, (32, 40), dtype=np.uint8) for _ in range(30)]


def spoilt(image, top=12, left=20):
    image = image.copy()
    image[top : top + 8, left : left + 8] = 250
    return image


BOX = np.array([[12, 20, 20, 28]])


@pytest.mark.parametrize("kind", ["ace", "mahalanobis"])
def test_an_implanted_anomaly_ranks_first(images, kind):
    model = PadimACE(
        backbone=pyramid,
        dimensions=8,
        score_kind=kind,
        center_signature=True,
        smoothing=1.0,
        ridge_kind="relative",
        signature="global",
    )
    model.fit(images[:20], anomalous=[spoilt(i) for i in images[20:23]], areas=[BOX] * 3)
    assert model.mean_.shape == (80, 8)
    assert model.channels_ == [6, 6]
    strange = spoilt(images[24], 4, 8)
    scores = model.score(strange)
    assert scores.shape == (32, 40)
    row, col = np.unravel_index(scores.argmax(), scores.shape)
    assert 4 <= row < 12
    assert 8 <= col < 16
    found = model.calibrate(images[25:]).predict(strange, false_alarm_rate=1e-3)
    assert found[row, col]
    assert found[:, 28:].mean() < 0.05
    normal = [model.image_score(i) for i in images[25:]]
    assert model.image_score(strange) == scores.max() > max(normal)
    if kind == "ace":
        assert scores.max() <= 1
        assert scores.min() < 0
        both = model.location_scores(strange)
        assert both.ace.shape == both.mahalanobis.shape == (8, 10)
        model.set_params(score_kind="mahalanobis", smoothing=0.0)
        assert model.image_score(strange) == pytest.approx(both.mahalanobis.max(), rel=0.2)
        with pytest.raises(ModelError, match="call calibrate"):
            model.predict(strange)


def test_channels_are_taken_before_maps_are_enlarged(images):
    model = PadimACE(backbone=pyramid, dimensions=5, score_kind="mahalanobis").fit(images)
    coarse, fine = (m.clone() for m in pyramid(torch.randn(2, 1, 32, 40)))
    whole = torch.cat([fine, functional.interpolate(coarse, (8, 10), mode="nearest")], dim=1)
    torch.testing.assert_close(model._embed([fine, coarse]), whole[:, model.dimensions_])


def test_same_seed_same_scores_and_random_numbers_left_alone(images):
    def scored(seed):
        model = PadimACE(backbone="resnet18", dimensions=12, score_kind="mahalanobis", seed=seed)
        model.fit(images[:6])
        return model.dimensions_.tolist(), model.score(images[6])

    state = torch.get_rng_state()
    (first, one), (again, two), (other, _) = scored(0), scored(0), scored(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again != other
    np.testing.assert_array_equal(one, two)


def test_masked_pixels_do_not_count(images):
    masks = [np.ones(i.shape, np.bool_) for i in images]
    broken = [i.copy() for i in images]
    for k in range(4):
        broken[k][:, :8] = 255
        masks[k][:, :8] = False
    model = PadimACE(backbone=pyramid, dimensions=None, score_kind="mahalanobis", layers=(2,))
    model.fit(broken, masks=masks)
    clean = PadimACE(backbone=pyramid, dimensions=None, score_kind="mahalanobis", layers=(2,))
    clean.fit(images[4:])
    left = torch.arange(80).reshape(8, 10)[:, 0]
    torch.testing.assert_close(model.mean_[left], clean.mean_[left], atol=1e-4, rtol=1e-3)
    assert np.isnan(model.score(broken[0], mask=masks[0])[:, :8]).all()
    with pytest.raises(ValueError, match="16 of 80 locations are used in fewer than two"):
        model.fit(broken[:5], masks=masks[:5])


def test_signatures(images):
    model = PadimACE(backbone=pyramid, dimensions=None, smoothing=0.0)
    strange = [spoilt(i) for i in images[:2]]
    model.fit(images[2:], anomalous=strange)
    features = [model._features(model._read("x", i, None))[:, :, 0] for i in strange]
    torch.testing.assert_close(model.signature_, (features[0] + features[1]) / 2)
    model.set_signature(strange, areas=[BOX, BOX])
    inside = torch.arange(80).reshape(8, 10)[3:5, 5:7].flatten()
    mean = (features[0] + features[1]) / 2
    torch.testing.assert_close(model.signature_[inside], mean[inside])
    torch.testing.assert_close(model.signature_[0], mean[inside].mean(dim=0))
    boxed = model.signature_
    mask = np.zeros((32, 40), np.bool_)
    mask[12:20, 20:28] = True
    assert torch.equal(model.set_signature(strange, areas=[mask, mask]).signature_, boxed)
    expected = model.score(images[0])
    for target in (boxed.numpy(), boxed.reshape(8, 10, 12)):
        np.testing.assert_array_equal(model.set_signature(target=target).score(images[0]), expected)
    model.set_signature(target=np.ones(12))
    assert torch.equal(model.signature_, torch.ones(80, 12))
    kept = model.signature_
    for wrong, text in (
        ({"target": np.ones(11)}, r"must be finite, of shape \(12,\)"),
        ({"target": np.full(12, np.nan)}, "must be finite"),
        ({"target": np.zeros(12)}, "must have a direction, vanishes at 80 of 80"),
        ({}, "needs either images or a target"),
        ({"anomalous": strange, "areas": [BOX]}, "areas: must be as many as the images, 2, got 1"),
        ({"anomalous": strange, "areas": [mask & False] * 2}, "no pixel is marked"),
        ({"anomalous": strange, "areas": [BOX + 20] * 2}, "a box must lie in the image"),
        ({"anomalous": strange, "areas": [mask[:4]] * 2}, r"areas\[0\]: must be bool of shape"),
    ):
        with pytest.raises(ValueError, match=text):
            model.set_signature(**wrong)
        assert model.signature_ is kept


def test_errors_of_fit_and_score(images):
    for wrong, given, text in (
        ({}, {}, "ACE needs images with anomalies, or a target"),
        ({"score_kind": "mahalanobis"}, {"checkpoint": "x"}, "nothing is trained"),
        ({"score_kind": "mahalanobis"}, {"images": images[:1]}, "80 of 80 locations are used"),
        ({"score_kind": "mahalanobis", "dimensions": 13}, {}, "at most 12, the channels"),
        ({"score_kind": "mahalanobis", "layers": (3,)}, {}, "layers: must be from 1 to 2"),
        (
            {"score_kind": "mahalanobis"},
            {"images": [images[0], images[1][:20]]},
            r"images\[1\]: must have the size of the images of fit, \(32, 40\), got \(20, 40\)",
        ),
        ({"score_kind": "mahalanobis"}, {"images": [i[:8] for i in images]}, "at least 16 rows"),
        ({"score_kind": "mahalanobis", "ridge": 0.0}, {"images": images[:4]}, "positive definite"),
        (
            {"score_kind": "mahalanobis"},
            {"images": [i * np.float32(3) for i in images]},
            "values between 0 and 1",
        ),
    ):
        model = PadimACE(**{"backbone": pyramid, "dimensions": 8, **wrong})
        with pytest.raises(ValueError, match=text):
            model.fit(**{"images": images, **given})
        assert not hasattr(model, "bands_")
    with pytest.raises(TypeError, match="must be a name, a configuration or a function"):
        PadimACE(backbone=3)
    with pytest.raises(ValueError, match="covariance: must be one of"):
        PadimACE(covariance="tied")
    model = PadimACE(backbone=pyramid, dimensions=8, score_kind="mahalanobis").fit(images)
    with pytest.raises(ModelError, match="must have the size of the images of fit"):
        model.score(images[0][:20])
    with pytest.raises(ModelError, match="must have 1 bands"):
        model.score(np.zeros((32, 40, 3), np.uint8))
    with pytest.raises(ModelError, match="ACE needs a signature"):
        model.set_params(score_kind="ace").score(images[0])
    strange = PadimACE(backbone=lambda x: x[0], dimensions=1, score_kind="mahalanobis")
    with pytest.raises(ModelError, match=r"must give maps \(images, channels, rows, cols\)"):
        strange.fit(images)
    strange = PadimACE(backbone=lambda x: x.log() * 0, dimensions=1, score_kind="mahalanobis")
    with pytest.raises(ModelError, match=r"images\[0\]: the backbone gives values that are not f"):
        strange.fit(images)


def test_images_of_other_sizes_and_three_bands(images):
    colour = [np.stack([i, i // 2, i // 3], axis=2) for i in images]
    model = PadimACE(
        backbone=pyramid, dimensions=8, score_kind="mahalanobis", size=(24, 32), smoothing=1
    )
    model.fit([c[: 32 - k] for k, c in enumerate(colour[:12])])
    assert model.score(colour[0]).shape == (32, 40)
    assert model.score(torch.from_numpy(colour[0])[:20]).shape == (20, 40)


# -- files


def test_file_has_the_backbone_and_gives_the_same_map(images, tmp_path):
    model = PadimACE(dimensions=12, layers=(1, 2))
    model.fit(images[:6], anomalous=[spoilt(i) for i in images[6:9]])
    scores = model.score(images[9])
    model.save(tmp_path / "m.safetensors")
    again = models.load(tmp_path / "m.safetensors")
    assert repr(again) == repr(model)
    np.testing.assert_array_equal(again.score(images[9]), scores)
    assert again.threshold(0.01) == model.threshold(0.01)
    again.set_params(covariance="diagonal", compat="padim-ace-2025")
    assert np.abs(again.score(images[9]) - scores).max() > 0.01
    with pytest.raises(ModelError, match="backbone: must be None, the file has one"):
        PadimACE.load(tmp_path / "m.safetensors", backbone=pyramid)


def test_a_function_is_not_in_the_file(images, tmp_path):
    path = tmp_path / "m.safetensors"
    model = PadimACE(backbone=pyramid, dimensions=8, score_kind="mahalanobis").fit(images)
    model.save(path)
    with pytest.raises(ModelError, match=r"was a function, .*PadimACE.load\(path, backbone="):
        models.load(path).score(images[0])
    again = PadimACE.load(path, backbone=pyramid)
    np.testing.assert_array_equal(again.score(images[0]), model.score(images[0]))
    with pytest.raises(ModelError, match=r"maps of \[6, 6\] channels"):
        PadimACE.load(path, backbone=lambda x: x).score(images[0])


# -- backbones


def test_weights_of_torchvision_load(images, tmp_path):
    network = ResNet18(classes=1000, seed=3)
    state = network.state_dict()
    assert len(state) == 122
    for name in (
        "conv1.weight",
        "bn1.running_mean",
        "layer1.1.conv2.weight",
        "layer2.0.downsample.0.weight",
        "layer4.0.downsample.1.num_batches_tracked",
        "fc.bias",
    ):
        assert name in state
    torch.save(state, tmp_path / "net.pth")
    old = {k: v for k, v in state.items() if "num_batches" not in k}
    save_file(old, tmp_path / "net.safetensors")
    x = torch.randn(2, 3, 40, 48)
    expected = network.eval()(x)
    assert [tuple(m.shape[1:]) for m in expected] == [
        (64, 10, 12),
        (128, 5, 6),
        (256, 3, 3),
        (512, 2, 2),
    ]
    for name in ("net.pth", "net.safetensors"):
        backbone = networks.build("op", "resnet18", None, str(tmp_path / name), 0)
        for found, wanted in zip(backbone(x), expected, strict=False):
            torch.testing.assert_close(found, wanted.detach())
        assert not backbone.train().training
    bad = {k: v for k, v in old.items() if k not in ("layer2.1.bn1.bias", "layer3.0.conv1.weight")}
    save_file(bad, tmp_path / "bad.safetensors")
    with pytest.raises(ModelError, match=r"there is no layer2\.1\.bn1\.bias and 1 more"):
        networks.build("op", "resnet18", None, str(tmp_path / "bad.safetensors"), 0)
    for change, text in (
        ({"layer1.2.conv1.weight": torch.zeros(1)}, "there should be no layer1.2.conv1.weight"),
        ({"bn1.bias": torch.zeros(3)}, r"bn1.bias: must have shape \(64,\), got \(3,\)"),
    ):
        torch.save({**state, **change}, tmp_path / "bad.pth")
        with pytest.raises(ModelError, match=text):
            networks.build("op", "resnet18", None, str(tmp_path / "bad.pth"), 0)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "net.pth").read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        PadimACE(weights=tmp_path / "cut.pth", score_kind="mahalanobis").fit(images)
    with pytest.raises(FileNotFoundError, match="no such file"):
        PadimACE(weights=tmp_path / "none.pth", score_kind="mahalanobis").fit(images)
    with pytest.raises(ValueError, match="must be resnet18, a folder"):
        PadimACE(backbone="resnet50", score_kind="mahalanobis").fit(images)


def test_channels_last_are_seen_by_their_shape():
    x = torch.randn(2, 3, 32, 48)
    first = functional.avg_pool2d(x, 4)
    backbone = networks.Backbone(lambda _: {"a": first.permute(0, 2, 3, 1), "b": first})
    assert all(torch.equal(m, first) for m in backbone(x))


SMALL = {"depths": (1, 1, 1), "hidden_sizes": (8, 16, 24)}


@pytest.mark.parametrize(
    ("config", "channels"),
    [
        (
            {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, **SMALL},
            [8, 16, 24],
        ),
        ({"model_type": "convnext", "num_stages": 3, **SMALL}, [8, 16, 24]),
        (
            {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]},
            [8, 16, 32],
        ),
        (
            {
                "model_type": "mobilevit",
                "hidden_sizes": [16, 16, 16],
                "neck_hidden_sizes": [8, 8, 12, 16, 16, 16, 32],
            },
            [8, 12, 16],
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_networks_of_transformers(config, channels, images, tmp_path):
    pytest.importorskip("transformers")
    state = torch.get_rng_state()
    model = PadimACE(
        backbone=config, dimensions=10, score_kind="mahalanobis", size=(64, 64), ridge=1e-3
    )
    model.fit(images[:5])
    assert torch.equal(torch.get_rng_state(), state)
    assert model.channels_ == channels
    scores = model.score(images[5])
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(models.load(tmp_path / "m.safetensors").score(images[5]), scores)


def chips(count, seed):
    """Images of two classes, which differ by the way that their stripes run."""
    rng = np.random.default_rng(seed)
    stripes = 60 * np.sin(np.arange(66) / 2)
    labels = np.arange(count) % 2
    found = 120 + rng.normal(0, 20, (count, 66, 66))
    found += np.where(labels[:, None, None] == 1, stripes[:, None], stripes[None])
    return list(found.clip(0, 255).astype(np.uint8)), labels


def test_a_backbone_learns_its_classes_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    images, labels = chips(16, 0)
    options = {"epochs": 3, "batch_size": 8, "seed": 1}
    whole = models.train_backbone(images, labels, tmp_path / "a.safetensors", **options)
    tests, truth = chips(8, 1)
    x = torch.stack([networks.prepare(p, 3, None, "imagenet") for p in _pictures(tests)])
    assert whole.classify(x[:, :, 1:65, 1:65]).argmax(dim=1).tolist() == truth.tolist()
    state = load_file(tmp_path / "a.safetensors")
    assert state.keys() == ResNet18(classes=2).state_dict().keys()

    step = networks._Classifier.training_step

    def killed(self, index):
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        return step(self, index)

    monkeypatch.setattr(networks._Classifier, "training_step", killed)
    again = {**options, "checkpoint": tmp_path / "state"}
    with pytest.raises(RuntimeError, match="killed"):
        models.train_backbone(images, labels, tmp_path / "b.safetensors", **again)
    assert not (tmp_path / "b.safetensors").exists()
    monkeypatch.setattr(networks._Classifier, "training_step", step)
    models.train_backbone(images, labels, tmp_path / "b.safetensors", **again)
    resumed = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(resumed[name], state[name]) for name in state)


def _pictures(images):
    return networks.Pictures("op", list(images), None, complex_images=False)


def test_errors_of_training_a_backbone(tmp_path):
    images, labels = chips(4, 0)
    for given, text in (
        ({"labels": labels[:3]}, "labels: must be 4 whole numbers"),
        ({"labels": labels * 0}, "at least two classes"),
        ({"path": tmp_path / "a.pth"}, "must be a .safetensors file"),
        ({"crop": 32}, "crop: must be a whole number of at least 64"),
        ({"crop": 70}, "must have at least 70 rows"),
        ({"images": [*images[:3], images[3][:, 1:]]}, r"images\[3\]: must have the size"),
    ):
        inputs = {"images": images, "labels": labels, "path": tmp_path / "a.safetensors", **given}
        with pytest.raises(ValueError, match=text):
            models.train_backbone(**inputs)
    assert not any(tmp_path.iterdir())


# -- the command line and the page


def folder_of(path, content):
    path.mkdir()
    for k, image in enumerate(content):
        np.save(path / f"{k}.npy", image)


def test_page(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "normal", images[:4])
    folder_of(tmp_path / "strange", [spoilt(i) for i in images[4:6]])
    torch.save(ResNet18(classes=1000).state_dict(), "resnet18.pth")
    page = Path(__file__).resolve().parents[1] / "docs" / "padim.md"
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        variables = {"image": spoilt(images[6])}
        exec(compile(block, "padim.md", "exec"), variables)
    assert variables["scores"].max() <= 1 < variables["distance"].max()
    again = models.load("model.safetensors")
    np.testing.assert_array_equal(again.score(variables["image"]), variables["distance"])


def test_command_line(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "normal", images[:6])
    folder_of(tmp_path / "strange", [spoilt(i) for i in images[6:8]])
    folder_of(tmp_path / "new", [spoilt(images[8]), images[9]])
    folder_of(tmp_path / "truth", [spoilt(images[8]) == 250])
    command = ["train", "padim_ace", "normal", "--anomalous", "strange", "-o", "m.safetensors"]
    assert cli.main([*command, "--set", "dimensions=10"]) == 0
    command = ["detect", "new", "--truth", "truth", "--model", "m.safetensors", "-o", "found"]
    assert cli.main(command) == 0
    assert "AUC of pixels" in capsys.readouterr().out
    assert (tmp_path / "found" / "0_detections.png").is_file()

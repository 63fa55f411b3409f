"""The twin least-square network over covariance maps."""

from __future__ import annotations

import mahal
import numpy as np
import pytest
from mahal import metrics, scenes

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from mahal import models  # noqa: E402
from mahal.models import mtgan  # noqa: E402

QUICK = {"components": 6, "features": 5, "iterations": 60, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def scene():
    return scenes.simulate(40, 36, 24, seed=2, targets=3)


@pytest.fixture(scope="module")
def fitted(scene):
    return models.MTGAN(**QUICK).fit(scene.image)


@pytest.mark.parametrize(
    ("options", "sides"),
    [
        ({}, [7, 9, 11, 13, 15]),
        ({"neighbourhood": 25, "scales": 6}, [7, 11, 15, 17, 21, 25]),
        ({"scales": 1}, [15]),
        ({"neighbourhood": 5}, [5]),
        ({"components": 3, "scales": 2}, [3, 15]),
    ],
)
def test_neighbourhoods_are_nested_and_odd(options, sides):
    assert models.MTGAN(**options)._sides() == sides


def loop(image, side, neighbours=None, cosine=False):
    """Distance of every pixel under the covariance of its window (Eq. 4), one by one."""
    rows, cols, _ = image.shape
    out = np.empty((rows, cols))
    for r in range(rows):
        for c in range(cols):
            top = min(max(r - side // 2, 0), rows - side)
            left = min(max(c - side // 2, 0), cols - side)
            window = image[top : top + side, left : left + side].reshape(side**2, -1)
            if neighbours is not None:
                far = ((window - image[r, c]) ** 2).sum(1)
                if cosine:
                    norms = np.linalg.norm(window, axis=1) * np.linalg.norm(image[r, c])
                    far = -(window @ image[r, c]) / norms
                window = window[np.argsort(far)[:neighbours]]
            off = image[r, c] - window.mean(0)
            out[r, c] = off @ np.linalg.solve(np.cov(window.T), off)
    return out


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_scores_of_covariance_maps(scene, combine):
    image = scene.image[:18, :17].astype(float)
    model = models.MTGAN(components=4, scales=3, neighbourhood=9, combine=combine)
    mean, covariance = mahal.mean_covariance(image)
    reduced = (image - mean) @ np.linalg.eigh(covariance)[1][:, -4:]
    found = np.stack([loop(reduced, side) for side in model._sides()])
    expected = found.max(0) if combine == "max" else found.mean(0)
    np.testing.assert_allclose(model.covariance_map_scores(image), expected, rtol=2e-3)


@pytest.mark.parametrize("nearness", ["euclidean", "cosine"])
def test_nearest_neighbours_only(scene, nearness):
    image = scene.image[:12, :13].astype(float)
    model = models.MTGAN(
        components=3, scales=1, neighbourhood=7, neighbours=20, nearness=nearness
    )  # fmt: skip
    reduced = mtgan._principal(models._detector.Pixels("test", image, None), 3)
    expected = loop(reduced.astype(float), 7, 20, nearness == "cosine")
    np.testing.assert_allclose(model.covariance_map_scores(image), expected, rtol=5e-3)


def test_logarithms_of_covariance_maps(scene):
    image = scene.image.astype(np.float32)
    model = models.MTGAN(components=3, scales=1, neighbourhood=9, maps="logarithms")
    reduced = mtgan._principal(models._detector.Pixels("test", image, None), 3)
    vectors = mahal.multiscale_covariance(reduced, [9], form="log", loading=1e-3)[:, :, 0]
    np.testing.assert_allclose(model.covariance_map_scores(image), mahal.rx(vectors), rtol=1e-5)


def test_dictionaries(fitted, scene):
    count = round(0.02 * scene.image.shape[0] * scene.image.shape[1])
    assert fitted.anomalies_.sum() == count
    scores = fitted.covariance_map_scores(scene.image)
    assert scores[fitted.anomalies_].min() >= scores[~fitted.anomalies_].max()
    random = models.MTGAN(**QUICK, maps="none").fit(scene.image).anomalies_
    assert random.sum() == count
    assert not np.array_equal(random, fitted.anomalies_)


def learner_of(model, bands=24, seed=0):
    noise = torch.Generator().manual_seed(seed)
    data = {
        "spectra": torch.rand(200, bands, generator=noise),
        "anomaly": torch.rand(bands, generator=noise),
        "spread": torch.tensor(0.1),
    }
    return mtgan._TwinLearner(data, model._networks(bands), model)


def test_losses_of_the_paper():
    """Eq. 5, 6 and 8 in plain torch."""
    learner = learner_of(models.MTGAN(components=6, features=5))
    networks, y = learner.networks, learner.spectra[None, :50]
    code = networks.encode(y)
    rebuilt = networks.decode(code)
    distance = ((rebuilt - learner.anomaly) ** 2).mean(2)
    alpha = 1 - torch.exp(-distance / 0.1)
    expected = ((rebuilt - y) ** 2).mean() - (alpha * distance.clamp(max=0.1)).mean()
    told = ((networks.of_features(code) - 1) ** 2).mean()
    told = told + ((networks.of_spectra(rebuilt) - 1) ** 2).mean()
    loss = learner.generator_loss(y)
    assert loss.item() == pytest.approx((expected + 0.5 * told).item(), rel=1e-5)
    real, fake = networks.of_spectra(y), networks.of_spectra(rebuilt)
    twin = 0.5 * ((real - 1) ** 2).mean() + 0.5 * ((fake + 1) ** 2).mean()
    assert mtgan._least_squares(real, fake).item() == pytest.approx(twin.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, {"of_features", "of_spectra", "encoder", "decoder"}),
        ({"twin": False}, {"encoder", "decoder"}),
        ({"rejection": False}, {"of_features", "of_spectra", "encoder", "decoder"}),
    ],
)
def test_what_the_training_moves(scene, options, parts):
    model = models.MTGAN(**QUICK, **options)
    before = {n: p.clone() for n, p in model._networks(24).named_parameters()}
    after = model.fit(scene.image).networks_.named_parameters()
    moved = {name.split(".")[0] for name, p in after if not torch.equal(p, before[name])}
    assert moved == parts


def test_the_rejection_keeps_rebuilt_spectra_from_the_anomalies(scene):
    near = {}
    for rejection in (False, True):
        model = models.MTGAN(
            **{**QUICK, "iterations": 200}, rejection=rejection, suppression=1.0, adversarial=0.0
        ).fit(scene.image)
        spectra = model._scaled(scene.image.reshape(-1, 24).astype(np.float32))
        rebuilt = model._pass(torch.from_numpy(spectra))[1][0]
        mean = spectra[model.anomalies_.ravel()].mean(0)
        near[rejection] = float(((rebuilt - torch.from_numpy(mean)) ** 2).mean())
    assert near[True] > 1.2 * near[False]


def test_tied_weights():
    networks = models.MTGAN(components=6, features=5, tied=True)._networks(24)
    code = torch.rand(1, 7, 5)
    expected = code
    for own, other in zip(networks.decoder.layers, networks.encoder.layers[::-1], strict=True):
        expected = expected @ other.weight[0].T + own.bias
        if own is not networks.decoder.layers[-1]:
            expected = torch.nn.functional.leaky_relu(expected, 0.2)
    np.testing.assert_allclose(
        networks.decode(code).detach(), torch.sigmoid(expected).detach(), rtol=1e-5
    )


def test_it_finds_the_targets_and_repeats_itself(tmp_path):
    scene = scenes.simulate(40, 40, 24, seed=4, targets=0)
    image, truth = scene.image.astype(np.float32), np.zeros((40, 40), bool)
    truth[[5, 20, 31], [7, 33, 12]] = True
    image[truth, ::2] *= 1.5
    model = models.MTGAN(**{**QUICK, "iterations": 300}).fit(image)
    scores = model.score(image)
    assert metrics.roc_areas(scores, truth).auc_df > 0.95
    again = models.MTGAN(**model.get_params()).fit(image)
    np.testing.assert_array_equal(again.score(image), scores)
    model.save(tmp_path / "m")
    read = models.MTGAN.load(tmp_path / "m")
    np.testing.assert_array_equal(read.score(image), scores)
    np.testing.assert_array_equal(read.anomalies_, model.anomalies_)


def test_a_training_that_was_killed_goes_on(fitted, scene, tmp_path, monkeypatch):
    start = mtgan._TwinLearner.on_train_epoch_start

    def killed(self):
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        start(self)

    monkeypatch.setattr(mtgan._TwinLearner, "on_train_epoch_start", killed)
    model = models.MTGAN(**QUICK)
    with pytest.raises(RuntimeError, match="killed"):
        model.fit(scene.image, checkpoint=tmp_path / "state")
    monkeypatch.setattr(mtgan._TwinLearner, "on_train_epoch_start", start)
    model.fit(scene.image, checkpoint=tmp_path / "state")
    np.testing.assert_array_equal(model.score(scene.image), fitted.score(scene.image))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"neighbourhood": 8}, "neighbourhood: must be odd, got 8"),
        ({"share": 0.7}, "share: must lie between 0 and 0.5"),
        ({"maps": "mnf"}, "maps: must be one of pixels, logarithms, none"),
        ({"neighbours": 5}, "neighbours: must be a whole number of at least 22, got 5"),
        ({"suppression": -1.0}, "suppression: must be a number of at least 0"),
        ({"combine": "sum"}, "combine: must be one of mean, max"),
    ],
)
def test_wrong_parameters(options, text):
    with pytest.raises(ValueError, match=text):
        models.MTGAN(**options)


def test_wrong_images(scene):
    with pytest.raises(
        models.ModelError, match="neighbourhood: must fit into the image of 10 x 36"
    ):
        models.MTGAN().fit(scene.image[:10])
    with pytest.raises(models.ModelError, match="features: must be smaller than the number of"):
        models.MTGAN(features=30).fit(scene.image)

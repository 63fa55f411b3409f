"""Autoencoders of single spectra, and what all models do alike."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path

import mahal
import numpy as np
import pytest
from mahal import metrics, scenes

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from mahal import cli, models  # noqa: E402
from mahal.models import _training  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::mahal.models.CollapseWarning")
MODELS = (models.SpectralAutoencoder, models.SpectralVAE)
QUICK = {
    models.SpectralAutoencoder: {"runs": 2, "epochs": 2},
    models.SpectralVAE: {"runs": 2, "epochs": 3},
}


@pytest.fixture(scope="module")
def scene():
    return scenes.simulate(32, 28, 20, seed=5, targets=4)


@pytest.fixture(scope="module", params=MODELS, ids=lambda m: m.__name__)
def fitted(request, scene):
    return request.param(**QUICK[request.param]).fit(scene.image)


# Networks


@pytest.mark.parametrize(
    ("bands", "latent", "layers", "sizes"),
    [(200, 4, 2, [200, 28, 4]), (162, 4, 5, [162, 77, 37, 18, 8, 4]), (20, 4, 1, [20, 4])],
)
def test_widths_fall_by_one_factor(bands, latent, layers, sizes):
    from mahal.models import spectral

    assert spectral._sizes(bands, latent, layers) == sizes


def test_a_run_is_a_network_of_its_own(scene):
    """Trained side by side or alone: the same but for rounding."""
    two = models.SpectralAutoencoder(runs=2, epochs=1, score_kind="mse").fit(scene.image)
    one = models.SpectralAutoencoder(runs=1, epochs=1, score_kind="mse").fit(scene.image)
    np.testing.assert_allclose(
        two.score_runs(scene.image)[0], one.score_runs(scene.image)[0], rtol=1e-3
    )


def test_training_step_follows_the_published_loss(scene):
    """Reconstruction and divergence of Eq. 3, 9 and 10, in plain torch for one batch."""
    from mahal.models import spectral

    model = models.SpectralVAE(runs=1, latent=2, beta=0.3)
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    networks = model._networks(20)
    learner = spectral._SpectralLearner(x, networks, model)
    learner.noise = torch.Generator().manual_seed(1)
    index = torch.arange(50)[None]
    loss = learner.training_step(index)
    layers = [*networks.encoder, *networks.decoder]
    weights = [(layer.weight[0], layer.bias[0, 0]) for layer in layers]
    hidden = torch.relu(x @ weights[0][0] + weights[0][1])
    mean, log_variance = (hidden @ weights[1][0] + weights[1][1]).chunk(2, dim=1)
    noise = torch.randn(1, 50, 2, generator=torch.Generator().manual_seed(1))[0]
    code = mean + log_variance.exp().sqrt() * noise
    rebuilt = torch.relu(code @ weights[2][0] + weights[2][1]) @ weights[3][0] + weights[3][1]
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_variance.exp().sqrt()),
        torch.distributions.Normal(0.0, 1.0),
    )
    expected = ((rebuilt - x) ** 2).mean() + 0.3 * divergence.sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_batches_take_every_pixel_once_an_epoch():
    batches = _training.Batches(103, 10, 3, seed=1)
    first = torch.cat(list(batches), dim=1)
    assert len(batches) == 11
    assert all(sorted(run.tolist()) == list(range(103)) for run in first)
    assert not torch.equal(first[0], first[1])
    batches.epoch = 1
    assert not torch.equal(torch.cat(list(batches), dim=1), first)


# Scores


def test_score_kinds(fitted, scene):
    spectra = fitted._scaled(scene.image.astype(np.float32).reshape(-1, 20))
    codes, rebuilt = fitted._pass(torch.from_numpy(spectra))
    residual = spectra - rebuilt.numpy()
    shape = (2, 32, 28)
    cosine = (spectra * rebuilt.numpy()).sum(2) / np.linalg.norm(spectra, axis=1)
    cosine /= np.linalg.norm(rebuilt.numpy(), axis=2)
    expected = {
        "mse": (residual**2).mean(2),
        "l1": np.abs(residual).mean(2),
        "sam": np.arccos(cosine),
        "mahalanobis": np.stack([mahal.rx(r.reshape(32, 28, 20)) for r in residual]),
        "latent": np.stack([mahal.rx(c.reshape(32, 28, -1)) for c in codes.numpy()]),
    }
    before = fitted.score_kind
    for kind in fitted.kinds:
        fitted.set_params(score_kind=kind)
        runs = fitted.score_runs(scene.image)
        np.testing.assert_allclose(runs, expected[kind].reshape(shape), rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(fitted.score(scene.image), runs.mean(0), rtol=1e-5)
        fitted.set_params(ensemble="max")
        np.testing.assert_array_equal(fitted.score(scene.image), runs.max(0))
        fitted.set_params(ensemble="mean")
    fitted.set_params(score_kind=before).calibrate(scene.image)
    assert fitted.latent_map(scene.image).shape == (*shape, fitted.latent)


def test_masked_and_missing_pixels(scene):
    image = scene.image.astype(np.float32)
    image[3, 4, 5] = np.nan
    image[:, :, 7] = 2.0
    mask = np.ones(image.shape[:2], bool)
    mask[0] = False
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = models.SpectralAutoencoder(runs=1).fit(image, mask=mask)
    texts = [str(warning.message) for warning in seen]
    assert any("1 pixels have a value that is not finite" in text for text in texts)
    assert any("1 bands are constant and left out (7)" in text for text in texts)
    assert all(warning.filename == __file__ for warning in seen)
    with pytest.warns(UserWarning, match="not finite"):
        scores = model.score(image, mask=mask)
    assert np.isnan(scores).sum() == 28 + 1


def test_saturated_pixels_are_said(scene):
    image = scene.image.copy()
    image[2, 2, 1] = np.iinfo(image.dtype).max
    with pytest.warns(UserWarning, match="1 pixels are saturated"):
        models.SpectralAutoencoder(runs=1).fit(image)


def test_collapsed_units_are_said(scene):
    with pytest.warns(models.CollapseWarning, match=r"of 4 latent units .* carry nothing: lower"):
        model = models.SpectralVAE.paper(runs=2, epochs=40).fit(scene.image)
    assert (model.divergence(scene.image) < 0.01).any()


@pytest.mark.parametrize("model", MODELS)
def test_it_finds_the_targets(model):
    scene = scenes.simulate(48, 48, 30, seed=1, targets=0)
    image, truth = scene.image.astype(np.float32), np.zeros((48, 48), bool)
    truth[[5, 20, 31, 40], [7, 33, 12, 44]] = True
    image[truth, ::2] *= 1.5
    scores = model(runs=2).fit(image).score(image)
    assert metrics.roc_areas(scores, truth).auc_df > 0.95


# The protocol


def test_the_same_seed_gives_the_same_map(fitted, scene):
    again = type(fitted)(**fitted.get_params()).fit(scene.image)
    np.testing.assert_array_equal(again.score(scene.image), fitted.score(scene.image))
    other = type(fitted)(**{**fitted.get_params(), "seed": 1}).fit(scene.image)
    assert not np.array_equal(other.score(scene.image), fitted.score(scene.image))


def test_training_leaves_the_generator_of_the_caller_alone(scene):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    models.SpectralVAE(runs=1, epochs=1).fit(scene.image)
    assert torch.rand(1) == expected


def test_files(fitted, scene, tmp_path):
    path = tmp_path / "m.safetensors"
    fitted.save(path)
    for read in (models.load, type(fitted).load):
        model = read(path)
        assert model.get_params() == fitted.get_params()
        np.testing.assert_array_equal(model.score(scene.image), fitted.score(scene.image))
        assert model.threshold(1e-4) == fitted.threshold(1e-4)
    other = next(m for m in MODELS if m is not type(fitted))
    with pytest.raises(models.ModelError, match=f"must hold a {other.__name__}"):
        other.load(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_files_that_are_no_models(fitted, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no such file"):
        models.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(models.ModelError, match="is not a safetensors file"):
        models.load(tmp_path / "text")
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(models.ModelError, match="is not a model of mahal"):
        models.load(tmp_path / "other")
    header = {"format": "mahal-model-1", "model": "Later", "params": "{}", "facts": "{}"}
    save_file({"a": torch.zeros(2)}, tmp_path / "later", header)
    with pytest.raises(models.ModelError, match="does not know"):
        models.load(tmp_path / "later")
    save_file({"a": torch.zeros(2)}, tmp_path / "next", {**header, "format": "mahal-model-2"})
    with pytest.raises(models.ModelError, match="written as mahal-model-2, this version reads"):
        models.load(tmp_path / "next")
    fitted.save(tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-100])
    with pytest.raises(models.ModelError, match="is not a safetensors file"):
        models.load(tmp_path / "half")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        fitted.save(tmp_path / "no" / "m")


def test_a_training_that_was_killed_goes_on(fitted, scene, tmp_path, monkeypatch):
    folder = tmp_path / "state"
    start = _training.Learner.on_train_epoch_start

    def killed(self):
        if self.current_epoch == 1:
            raise RuntimeError("killed")
        start(self)

    monkeypatch.setattr(_training.Learner, "on_train_epoch_start", killed)
    model = type(fitted)(**fitted.get_params())
    with pytest.raises(RuntimeError, match="killed"):
        model.fit(scene.image, checkpoint=folder)
    assert (folder / "last.ckpt").exists()
    with pytest.raises(models.ModelError, match="not fitted"):
        model.score(scene.image)
    begun = []

    def counted(self):
        begun.append(self.current_epoch)
        start(self)

    monkeypatch.setattr(_training.Learner, "on_train_epoch_start", counted)
    other = type(fitted)(**{**fitted.get_params(), "seed": 3})
    with pytest.raises(ValueError, match="training with other parameters"):
        other.fit(scene.image, checkpoint=folder)
    model.fit(scene.image, checkpoint=folder)
    assert begun == list(range(1, model.epochs))
    np.testing.assert_array_equal(model.score(scene.image), fitted.score(scene.image))
    assert not folder.exists()


def test_a_loss_that_is_not_finite_changes_nothing(fitted, scene):
    before = fitted.score(scene.image)
    fitted.learning_rate, rate = 1e30, fitted.learning_rate
    with pytest.raises(models.TrainingError, match="loss is not finite in epoch"):
        fitted.fit(scene.image)
    fitted.learning_rate = rate
    np.testing.assert_array_equal(fitted.score(scene.image), before)


def test_parameters(scene):
    model = models.SpectralAutoencoder(latent=3)
    assert repr(model) == "SpectralAutoencoder(latent=3)"
    assert models.SpectralAutoencoder(**model.get_params()).get_params() == model.get_params()
    with pytest.raises(ValueError, match="depth: no such parameter, has layers"):
        model.set_params(depth=3)
    with pytest.raises(ValueError, match="layers: must be a whole number of at least 1, got 0"):
        model.set_params(latent=2, layers=0)
    assert model.latent == 3
    model.set_params(runs=1).fit(scene.image)
    model.set_params(score_kind="mse")
    with pytest.raises(models.ModelError, match="call calibrate first"):
        model.predict(scene.image)
    assert model.calibrate(scene.image).predict(scene.image).shape == (32, 28)
    model.set_params(latent=2)
    with pytest.raises(models.ModelError, match="not fitted"):
        model.score(scene.image)


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (models.SpectralAutoencoder, {"loss": "l2"}, "loss: must be one of mse, l1, got 'l2'"),
        (models.SpectralAutoencoder, {"learning_rate": 0}, "learning_rate: must be a number above"),
        (models.SpectralAutoencoder, {"score_kind": "latent"}, "score_kind: must be one of"),
        (models.SpectralVAE, {"beta": -1}, "beta: must be a number of at least 0, got -1"),
        (models.SpectralVAE, {"seed": 1.5}, "seed: must be a whole number"),
    ],
)
def test_wrong_parameters(model, options, text):
    with pytest.raises(ValueError, match=text):
        model(**options)


def test_wrong_images(fitted, scene):
    with pytest.raises(
        models.ModelError, match="must have 20 bands, as what the model was fitted to"
    ):
        fitted.score(scene.image[..., :7])
    with pytest.raises(ValueError, match=r"shape \(rows, cols, bands\)"):
        fitted.score(scene.image[0])
    with pytest.raises(TypeError, match="real numbers, got complex"):
        fitted.score(scene.image.astype(complex))
    with pytest.raises(ValueError, match="mask: must be bool of shape"):
        fitted.score(scene.image, mask=np.ones((3, 3), bool))
    with pytest.raises(models.ModelError, match="every band is constant"):
        models.SpectralAutoencoder().fit(np.ones((12, 12, 5)))
    with pytest.raises(models.ModelError, match="latent: must be smaller than the number of bands"):
        models.SpectralAutoencoder(latent=20).fit(scene.image)


def test_torch_gives_torch(fitted, scene):
    scores = fitted.score(torch.from_numpy(scene.image.astype(np.float32)))
    np.testing.assert_array_equal(scores.numpy(), fitted.score(scene.image))
    assert fitted.predict(torch.from_numpy(scene.image.astype(np.float32))).dtype == torch.bool


def test_thresholds_are_those_of_the_tail(fitted, scene):
    scores = fitted.score(scene.image)
    tail = mahal.significance.score_tail(scores)
    assert fitted.threshold(1e-3) == pytest.approx(tail.threshold(1e-3))
    found = fitted.predict(scene.image, false_alarm_rate=0.05)
    np.testing.assert_array_equal(found, scores >= fitted.threshold(0.05))


# The command line


def test_train_and_detect(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("s.npy", scene.image)
    quick = ["--set", "epochs=1", "--set", "runs=1", "--seed", "4"]
    assert cli.main(["train", "spectral-vae", "s.npy", *quick]) == 0
    assert "SpectralVAE(epochs=1, runs=1, seed=4)" in capsys.readouterr().out
    model = models.load("s_spectral_vae.safetensors")
    assert cli.main(["detect", "s.npy", "--model", "s_spectral_vae.safetensors"]) == 0
    np.testing.assert_array_equal(np.load("s_scores.npy"), model.score(scene.image))
    summary = json.loads((tmp_path / "s_summary.json").read_text())
    assert summary["threshold"] == pytest.approx(model.threshold(1e-3))
    assert summary["detector"] == "spectral_vae"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(["detect", "s.npy", "--detector", "spectral-autoencoder", "-o", "a"]) == 0
    expected = models.SpectralAutoencoder().fit(scene.image.astype(float)).score(scene.image)
    np.testing.assert_allclose(np.load("a_scores.npy"), expected, rtol=1e-4)
    capsys.readouterr()
    for text, arguments in (
        ("rx has nothing to learn", ["train", "rx", "s.npy"]),
        (
            "unexpected keyword argument 'epoch'",
            ["train", "spectral-vae", "s.npy", "--set", "epoch=2"],
        ),
        ("must be NAME=VALUE", ["train", "spectral-vae", "s.npy", "--set", "epochs"]),
        ("folder no does not exist", ["train", "spectral-vae", "s.npy", "-o", "no/m"]),
        ("exclude each other", ["detect", "s.npy", "--model", "x", "--detector", "rx"]),
        ("no such file", ["detect", "s.npy", "--model", "x"]),
    ):
        assert cli.main(arguments) == 2
        assert text in capsys.readouterr().err


def test_examples_of_the_page(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "models.md"
    monkeypatch.chdir(tmp_path)
    blocks = page.read_text(encoding="utf-8").split("```python\n")[1:]
    variables = {}
    for block in blocks:
        exec(block.split("```")[0], variables)
    np.testing.assert_array_equal(
        variables["again"].score(variables["scene"].image), variables["scores"]
    )


def test_codes(fitted, scene):
    mask = np.ones(scene.image.shape[:2], bool)
    mask[3, 4] = False
    codes = fitted.codes(scene.image, mask=mask)
    assert codes.shape == (fitted.runs, *mask.shape, fitted.latent)
    np.testing.assert_array_equal(np.isnan(codes).any(axis=(0, 3)), ~mask)
    if "latent" in fitted.kinds:
        again = copy.copy(fitted).set_params(score_kind="latent").score(scene.image, mask=mask)
        own = [mahal.rx(code.astype(np.float64), mask=mask) for code in codes]
        np.testing.assert_allclose(again, np.mean(own, axis=0), rtol=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_a_pixel_far_from_all_others(model, scene):
    image = scene.image.astype(np.float32)
    image[5, 6] *= 3000
    found = model(runs=2, epochs=1).fit(image).score(image)
    assert np.unravel_index(found.argmax(), found.shape) == (5, 6)

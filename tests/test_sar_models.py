"""Adversarial autoencoder of radar images, and despeckling that learns from them alone."""

from __future__ import annotations

import sys
import types

import mahal
import numpy as np
import pytest
from mahal import cli, metrics

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")
from mahal import models  # noqa: E402
from mahal.models import _training, despeckling, sar  # noqa: E402
from mahal.models._convolution import Patches, offsets  # noqa: E402
from mahal.models._images import Pictures  # noqa: E402

QUICK = {"width": 4, "latent": 8, "stride": 8, "epochs": 8, "batch_size": 8, "half_cycle": 30}
FAST = {"width": 4, "patch": 32, "stride": 16, "iterations": 40, "batch_size": 8}


def speckle(power, seed):
    """Single-look complex draw of a power."""
    rng = np.random.default_rng(seed)
    white = rng.normal(size=(*power.shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)
    return (white * np.sqrt(power)).astype(np.complex64)


def cross(rows, cols):
    truth = np.zeros((rows, cols), bool)
    truth[40:44, 30:56] = truth[30:56, 40:44] = True
    return truth


@pytest.fixture(scope="module")
def scene():
    """Amplitudes of two polarisations, smooth clutter with little speckle, and a bright cross."""
    rng = np.random.default_rng(0)
    truth = cross(96, 80)
    steps = np.add.outer(np.arange(96) / 9, np.arange(80) / 13)
    clutter = np.stack([2 + np.sin(steps), 2 + np.cos(0.7 * steps)], axis=-1)
    image = 30 * clutter * rng.gamma(20, 1 / 20, clutter.shape)
    image[truth] *= 6
    return image.astype(np.float32), truth


@pytest.fixture(scope="module")
def fitted(scene):
    return models.SARAutoencoder(**QUICK).fit(scene[0])


@pytest.mark.parametrize(
    ("patch", "counts"),
    [(32, [439_472, 453_700, 10_881]), (64, [464_048, 478_468, 10_881])],
)
def test_published_sizes(patch, counts):
    model = models.SARAutoencoder.paper(patch)
    model.bands_ = 4
    networks = model._networks()
    parts = (networks.encoder, networks.decoder, networks.discriminator)
    assert [sum(p.numel() for p in part.parameters()) for part in parts] == counts
    assert networks.rebuild(torch.zeros(2, 4, patch, patch)).shape == (2, 4, patch, patch)


def test_the_anomaly_ranks_first_and_the_training_learns(fitted, scene):
    image, truth = scene
    assert np.isfinite(fitted.score(image)).all()
    fitted.set_params(window=5)
    scores = fitted.score(image)
    fitted.set_params(window=11).calibrate(image)
    assert metrics.roc_areas(scores, truth).auc_df > 0.95
    assert truth[np.unravel_index(scores.argmax(), scores.shape)]
    short = models.SARAutoencoder(**{**QUICK, "epochs": 1}).fit(image)
    errors = [np.abs(m.reconstruct(image) - image)[~truth].mean() for m in (fitted, short)]
    assert errors[0] < 0.7 * errors[1]


def test_same_seed_same_map_and_the_caller_keeps_its_random_numbers(fitted, scene, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = models.SARAutoencoder(**QUICK).fit(scene[0])
    assert torch.equal(torch.get_rng_state(), before)
    scores = fitted.score(scene[0])
    np.testing.assert_array_equal(again.score(scene[0]), scores)
    other = models.SARAutoencoder(**{**QUICK, "epochs": 1, "seed": 1}).fit(scene[0])
    assert not np.array_equal(other.score(scene[0]), scores)
    fitted.save(tmp_path / "m.safetensors")
    loaded = models.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.score(scene[0]), scores)
    assert loaded.threshold(1e-2) == fitted.threshold(1e-2)


def test_a_training_goes_on_where_it_was_killed(fitted, scene, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    start = sar._AdversarialLearner.on_train_epoch_start

    def killed(self):
        if self.current_epoch == 5:
            raise RuntimeError("killed")
        start(self)

    monkeypatch.setattr(sar._AdversarialLearner, "on_train_epoch_start", killed)
    with pytest.raises(RuntimeError, match="killed"):
        models.SARAutoencoder(**QUICK).fit(scene[0], checkpoint=folder)
    monkeypatch.setattr(sar._AdversarialLearner, "on_train_epoch_start", start)
    with pytest.raises(ValueError, match="training with other parameters"):
        models.SARAutoencoder(**{**QUICK, "latent": 9}).fit(scene[0], checkpoint=folder)
    model = models.SARAutoencoder(**QUICK).fit(scene[0], checkpoint=folder)
    np.testing.assert_array_equal(model.score(scene[0]), fitted.score(scene[0]))
    assert not folder.exists()


def test_the_three_steps_of_a_batch(scene):
    """Order, losses and optimisers against the same steps written out."""
    image = scene[0][:32, :64]
    options = {**QUICK, "epochs": 1, "stride": 32, "batch_size": 2}
    model = models.SARAutoencoder(**options)
    found = model.fit(image).networks_.state_dict()

    networks = model._networks()
    x = torch.cat([*Patches([model._scaled(image, np.ones((32, 64), bool))], 32, 32).split(9)])
    order = torch.randperm(2, generator=_training.generator(0, "order", 0, 0))
    x = x[order]
    noise = _training.generator(0, "noise", 0)
    adams = [
        torch.optim.Adam(part.parameters(), lr=1e-3)
        for part in (networks.encoder, networks.decoder, networks.discriminator, networks.encoder)
    ]
    span = torch.from_numpy(2 * (model.high_ - model.low_))[:, None, None]
    (span * (networks.decoder(networks.encoder(x)) - x)).abs().mean().backward()
    adams[0].step()
    adams[1].step()
    networks.zero_grad()
    networks.encoder.eval()
    fake = networks.encoder(x).detach()
    real = torch.randn(fake.shape, generator=noise)
    one, other = networks.discriminator(real, noise), networks.discriminator(fake, noise)
    (-(torch.log(one + 1e-10) + torch.log(1 - other + 1e-10)).mean()).backward()
    adams[2].step()
    networks.zero_grad()
    networks.encoder.train()
    torch.log(1 - networks.discriminator(networks.encoder(x), noise) + 1e-10).mean().backward()
    adams[3].step()
    for name, tensor in networks.state_dict().items():
        # Adam's first steps have the size of the rate and the sign of the gradient, which is that
        # of the rounding where there is none, as for a bias before a normalisation.
        if not name.endswith((".0.bias", "running_mean")):
            same = torch.isclose(found[name], tensor, rtol=1e-4, atol=1e-5)
            assert same.float().mean() > 0.95, name


@pytest.mark.parametrize(("shape", "stride"), [((32, 32), 16), ((47, 70), 16), ((33, 50), 7)])
def test_overlapping_patches_give_the_image_back(shape, stride):
    model = models.SARAutoencoder(overlap_stride=stride)
    model.networks_ = types.SimpleNamespace(rebuild=lambda x: x)
    image = np.random.default_rng(1).random((*shape, 3), np.float32)
    np.testing.assert_allclose(model._rebuilt(image), image, rtol=1e-6)
    assert offsets(shape[0], 32, stride)[-1] == shape[0] - 32


def test_scores_are_change_maps_of_what_was_rebuilt(fitted, scene):
    image = scene[0]
    model = models.SARAutoencoder(**QUICK)
    vars(model).update(vars(fitted))
    scaled = model._scaled(image, np.ones(image.shape[:2], bool))
    rebuilt = model._rebuilt(scaled)
    assert scaled.min() == 0
    assert scaled.max() == 1
    for options in (
        {"metric": "affine_invariant"},
        {"metric": "wasserstein", "center": False, "window": 7},
        {"metric": "frobenius", "compat": "muzeau", "window": 11},
    ):
        model.set_params(**{"center": True, "compat": None, **options})
        wanted = mahal.change_map(
            scaled,
            rebuilt,
            model.window,
            metric=model.metric,
            center=model.center,
            compat=model.compat,
        )
        np.testing.assert_allclose(model.score(image), wanted, rtol=1e-5)
    model.set_params(compat=None, metric="l1")
    np.testing.assert_allclose(model.score(image), np.abs(scaled - rebuilt).sum(2), rtol=1e-5)
    model.set_params(metric="mean")
    mean = model.score(image)
    middle = [v[30:41, 20:31].mean((0, 1), dtype=np.float64) for v in (scaled, rebuilt)]
    assert mean[35, 25] == pytest.approx(((middle[0] - middle[1]) ** 2).sum(), rel=1e-4)
    model.set_params(metric="mix")
    assert 0.7 <= np.nanmax(model.score(image)) <= 1
    model.set_params(metric="frobenius", domain="amplitude")
    wanted = mahal.change_map(model.despeckled(image), model.reconstruct(image), 11)
    np.testing.assert_allclose(model.score(image), wanted, rtol=1e-4)
    with pytest.raises(models.ModelError, match="call calibrate first"):
        model.predict(image)
    assert model.calibrate(image).predict(image, false_alarm_rate=0.05).any()


def test_codes_are_those_of_the_patches(fitted, scene):
    codes = fitted.patch_codes(scene[0], stride=32)
    assert codes.shape == (3, 3, 8)
    last = fitted._scaled(scene[0], np.ones((96, 80), bool))[-32:, -32:]
    wanted = fitted.networks_.encoder(torch.from_numpy(last).movedim(2, 0)[None])
    np.testing.assert_allclose(codes[2, 2], wanted[0].numpy(), rtol=1e-4, atol=1e-5)


def test_masked_pixels_are_neither_learnt_nor_scored(scene):
    image, truth = scene[0].copy(), scene[1]
    mask = np.ones(truth.shape, bool)
    mask[:, 70:] = False
    image[:, 70:] = 1e9
    short = {**QUICK, "epochs": 2}
    model = models.SARAutoencoder(**short).fit(image, masks=mask)
    scores = model.score(image, mask=mask)
    np.testing.assert_array_equal(np.isnan(scores), ~mask)
    image[:, 70:] = 7
    again = models.SARAutoencoder(**short).fit(image, masks=mask)
    np.testing.assert_array_equal(again.score(image, mask=mask), scores)
    assert np.isnan(model.reconstruct(image, mask=mask)[:, 70:]).all()


def test_rx_keeps_the_unusual_out_of_the_training():
    power = np.ones((64, 64, 2), np.float32)
    truth = cross(64, 64)
    power[truth] = 100
    image = speckle(power, 3)
    image[5, 5] = 15
    model = models.SARAutoencoder(guidance="binary")
    picture = Pictures("op", image, None, complex_images=True)[0]
    weight = model._normality(picture)
    assert set(np.unique(weight)) == {0, 1}
    assert weight[truth].mean() < 0.5
    assert weight[:28, 60:].mean() == 1
    # One pixel alone is no structure.
    assert weight[5, 5] == 1
    soft = models.SARAutoencoder(guidance="fractional")
    assert soft._normality(picture)[5, 5] == 0
    assert 0.9 < np.median(soft._normality(picture)) < 1


@pytest.mark.parametrize("fill", ["median", "mean", "delete"])
def test_what_guided_training_compares_with(fill):
    model = models.SARAutoencoder(guidance="binary", guidance_fill=fill)
    rng = np.random.default_rng(2)
    layers = rng.random((32, 32, 5), np.float32)
    layers[..., 3] = 1
    layers[..., 4] = rng.random((32, 32)) < 0.8
    patches = Patches([layers], 32, 32)
    model.bands_ = 3
    learner = sar._AdversarialLearner(patches, np.ones(3, np.float32), model._networks(), model)
    patch = next(patches.split(1))
    target, weight = learner._target(patch[:, :3], patch[:, 3:4], patch[:, 4:])
    normal = layers[..., 4] > 0
    image = layers[..., :3]
    np.testing.assert_array_equal(target[0].movedim(0, 2).numpy()[normal], image[normal])
    if fill == "delete":
        np.testing.assert_array_equal(weight[0, 0].numpy(), normal)
        return
    assert weight.min() == 1
    # torch takes the lower of two middle values.
    level = np.sort(image[normal], axis=0)[(normal.sum() - 1) // 2]
    if fill == "mean":
        level = image[normal].mean(0)
    filled = target[0].movedim(0, 2).numpy()[~normal]
    np.testing.assert_allclose(filled, np.broadcast_to(level, filled.shape), rtol=1e-5)


def test_likelihood_and_plain_autoencoders_learn_too(scene):
    image, truth = scene
    for options in (
        {"reconstruction_loss": "likelihood"},
        {"adversarial": False, "guidance": "binary", "rx_window": (5, 21)},
        {"scaling": "linear", "bounds": (0.0, 400.0), "patch": 64},
    ):
        model = models.SARAutoencoder(**{**QUICK, "epochs": 4, **options}).fit(image)
        assert np.isfinite(model.score(image)).all()
    grey = models.SARAutoencoder(**{**QUICK, "epochs": 1}).fit(image[..., 0])
    assert grey.score(image[..., 0]).shape == truth.shape


def test_wrong_images(scene, fitted):
    image = scene[0]
    wrong = (
        (image[:31], {}, "must have at least 32 rows and columns, got 31 x 80"),
        (np.ones((40, 40, 5), np.float32), {}, "must have 1 to 4 polarisations, got 5"),
        (image - 100, {}, "must hold amplitudes, none negative, got -"),
        (image, {"despeckling": "merlin"}, "must be single-look complex for despeckling"),
        (np.ones((40, 40), np.float32), {}, "channel 0 is constant"),
    )
    for given, options, rule in wrong:
        with pytest.raises(models.ModelError, match=rule):
            models.SARAutoencoder(**QUICK, **options).fit(given)
    with pytest.raises(models.ModelError, match=r"score: image: must have at least 32 rows"):
        fitted.score(image[:20])
    mask = np.zeros(image.shape[:2], bool)
    mask[::3] = True
    with pytest.raises(models.ModelError, match="masks: must leave at least half of one patch"):
        models.SARAutoencoder(**QUICK).fit(image, masks=mask)
    rates = {"learning_rate": 1e30, "highest_rate": 1e31}
    with pytest.raises(models.TrainingError, match="loss is not finite in epoch 1, step"):
        models.SARAutoencoder(**{**QUICK, **rates}).fit(image)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"patch": 40}, "patch: must be 32, 48"),
        ({"window": 10}, "window: must be odd"),
        ({"metric": "cosine"}, "metric: must be one of"),
        ({"bounds": (3.0, 1.0)}, "bounds: must be two numbers"),
        ({"overlap_stride": 33}, "overlap_stride: must be at most the patch"),
        ({"highest_rate": 1e-4}, "highest_rate: must be a number of at least 0.001"),
        ({"guidance": "soft"}, "guidance: must be one of"),
    ],
)
def test_wrong_parameters(options, rule):
    with pytest.raises(ValueError, match=f"^SARAutoencoder: {rule}"):
        models.SARAutoencoder(**options)


def test_command_line_learns_and_detects(scene, tmp_path):
    file = str(tmp_path / "slc.npy")
    np.save(file, np.moveaxis(speckle(scene[0] ** 2, 7), 2, 0))
    model = str(tmp_path / "m.safetensors")
    options = [f"--set={name}={value}" for name, value in {**QUICK, "epochs": 1}.items()]
    line = ["train", "sar-autoencoder", file, "--channels", "first", "-o", model]
    assert cli.main([*line, *options]) == 0
    out = str(tmp_path / "out")
    assert cli.main(["detect", file, "--channels", "first", "--model", model, "-o", out]) == 0
    wanted = models.load(model).score(np.moveaxis(np.load(file), 0, 2))
    np.testing.assert_allclose(np.load(f"{out}_scores.npy").squeeze(), wanted, rtol=1e-5)


# -- despeckling


@pytest.fixture(scope="module")
def two_fields():
    power = np.ones((96, 90, 2), np.float32)
    power[:, 45:] = 20
    power[..., 1] *= 300
    return power, speckle(power, 4)


@pytest.fixture(scope="module")
def despeckler(two_fields):
    return models.Despeckler(**FAST).fit(two_fields[1])


def test_despeckling_keeps_levels_and_edges(despeckler, two_fields):
    power, image = two_fields
    found = despeckler.despeckle(image) ** 2
    assert found.dtype == np.float32
    for part in (np.s_[:, :38], np.s_[:, 52:]):
        ratio = (found / power)[part]
        np.testing.assert_allclose(ratio.mean((0, 1)), 1, atol=0.15)
        # Single-look intensities have a coefficient of variation of 1.
        assert (ratio.std((0, 1)) < 0.3).all()
    rise = found[:, 48].mean(0) / found[:, 41].mean(0)
    assert (rise > 8).all()


def test_despecklers_are_saved_and_repeat_themselves(despeckler, two_fields, tmp_path):
    found = despeckler.despeckle(two_fields[1])
    despeckler.save(tmp_path / "d.safetensors")
    loaded = models.load(tmp_path / "d.safetensors")
    np.testing.assert_array_equal(loaded.despeckle(two_fields[1]), found)
    torch_image = torch.from_numpy(two_fields[1])
    np.testing.assert_array_equal(loaded.despeckle(torch_image).numpy(), found)
    again = models.Despeckler(**FAST).fit(two_fields[1])
    np.testing.assert_array_equal(again.despeckle(two_fields[1]), found)


def test_tiles_give_what_the_whole_image_gives(despeckler, two_fields, monkeypatch):
    whole = despeckler.despeckle(two_fields[1])
    monkeypatch.setattr(despeckling, "TILE", 16)
    np.testing.assert_allclose(despeckler.despeckle(two_fields[1]), whole, rtol=1e-4)


def test_masked_pixels_do_not_reach_what_is_despeckled(despeckler, two_fields):
    image = two_fields[1].copy()
    mask = np.ones(image.shape[:2], bool)
    mask[20:30, 20:30] = False
    first = despeckler.despeckle(image, mask=mask)
    image[~mask] = 1e6
    np.testing.assert_array_equal(np.isnan(first[..., 0]), ~mask)
    np.testing.assert_array_equal(despeckler.despeckle(image, mask=mask), first)


@pytest.mark.parametrize("shape", [(64, 48), (63, 49)])
def test_spectra_are_centred(shape):
    rng = np.random.default_rng(6)
    white = (rng.normal(size=(*shape, 1, 2)) @ np.array([1, 1j])).astype(np.complex64)
    spectrum = np.fft.fft2(white, axes=(0, 1))
    for axis, length in enumerate(shape):
        near = np.abs((np.arange(length) + length // 2) % length - length // 2) < length // 4
        spectrum *= near.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    image = np.fft.ifft2(spectrum, axes=(0, 1))
    ramp = np.exp(2j * np.pi * np.add.outer(0.31 * np.arange(shape[0]), -0.2 * np.arange(shape[1])))
    found = despeckling.symmetrised((image * ramp[..., None]).astype(np.complex64))
    np.testing.assert_allclose(np.abs(found), np.abs(image), rtol=1e-4, atol=1e-5)
    power = np.abs(np.fft.fft2(found[..., 0])) ** 2
    for axis in (0, 1):
        profile = power.sum(axis=1 - axis)
        mirrored = np.roll(profile[::-1], 1)
        assert np.corrcoef(profile, mirrored)[0, 1] > 0.8
        middle = np.abs(np.fft.fftfreq(shape[axis])) < 0.3
        assert profile[middle].sum() > 0.95 * profile.sum()


def test_detection_with_despeckling_comes_from_one_file(two_fields, tmp_path):
    image = two_fields[1]
    quick = {**QUICK, "epochs": 3, "guidance": "binary", "rx_window": (7, 15)}
    model = models.SARAutoencoder(despeckling="merlin", despeckling_iterations=2, **quick)
    model.fit(image)
    scores = model.score(image)
    assert np.isfinite(scores).all()
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(models.load(tmp_path / "m.safetensors").score(image), scores)
    with pytest.raises(models.ModelError, match="must be single-look complex for despeckling"):
        model.score(np.abs(image))


def test_wrong_images_for_despeckling(despeckler, two_fields):
    with pytest.raises(TypeError, match=r"images\[0\]: must be single-look complex, got float32"):
        models.Despeckler(**FAST).fit(np.ones((40, 40), np.float32))
    with pytest.raises(models.ModelError, match="must have at least 32 rows and columns"):
        models.Despeckler(**FAST).fit(two_fields[1][:20])
    with pytest.raises(models.ModelError, match="must have 2 bands"):
        despeckler.despeckle(two_fields[1][..., 0])
    with pytest.raises(models.ModelError, match="channel 1 is zero everywhere"):
        models.Despeckler(**FAST).fit(two_fields[1] * [1, 0])
    with pytest.raises(models.ModelError, match="not fitted"):
        models.Despeckler().despeckle(two_fields[1])
    with pytest.raises(ValueError, match="patch: must be a multiple of 4, got 30"):
        models.Despeckler(patch=30)


def test_the_published_despeckling_package_is_optional(monkeypatch):
    image = speckle(np.ones((256, 260), np.float32), 5)
    monkeypatch.setitem(sys.modules, "deepdespeckling", None)
    with pytest.raises(ImportError, match="pip install deepdespeckling"):
        models.deepdespeckling(image)

    class Denoiser:
        def __init__(self, model_name, symetrise):
            assert (model_name, symetrise) == ("stripmap", True)

        def denoise_image(self, parts, patch_size, stride_size):
            assert parts.shape == (256, 260, 2)
            assert parts.dtype == np.float32
            return {"denoised": {"full": np.hypot(parts[..., 0], parts[..., 1])}}

    name = "deepdespeckling.merlin.merlin_denoiser"
    for part in ("deepdespeckling", "deepdespeckling.merlin", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].MerlinDenoiser = Denoiser
    found = models.deepdespeckling(image, weights="stripmap")
    np.testing.assert_allclose(found, np.abs(image), rtol=1e-6)
    with pytest.raises(TypeError, match="must be single-look complex"):
        models.deepdespeckling(np.abs(image))

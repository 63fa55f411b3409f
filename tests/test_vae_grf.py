"""Variational autoencoder with a Gaussian random field as its prior."""

from __future__ import annotations

import mahal
import numpy as np
import pytest
from mahal import metrics

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from mahal.models import VAEGRF, ModelError, TrainingError, _training, load, vae_grf  # noqa: E402

SMALL = {"width": 4, "latent": 4, "crop": 32, "epochs": 3, "batch_size": 8}


def texture(count, seed, side=64):
    """Fields of range 2 and deviation 0.1 in three bands, between 0 and 1."""
    fields = mahal.grf_sample((count, 3, side, side), range=2.0, variance=0.01, generator=seed)
    return list(np.clip(0.5 + fields, 0, 1).transpose(0, 2, 3, 1).astype(np.float32))


def implanted(seed):
    """An image with a square of noise, and where it is."""
    image = texture(1, seed)[0]
    truth = np.zeros((64, 64), np.bool_)
    truth[16:32, 24:40] = True
    image[truth] = np.random.default_rng(seed).integers(0, 2, (256, 3))
    return image, truth


@pytest.fixture(scope="module")
def images():
    return texture(12, 0)


@pytest.fixture(scope="module")
def fitted(images):
    model = VAEGRF(width=8, latent=16, crop=32, epochs=20, batch_size=8, learning_rate=3e-3)
    return model.fit(images)


# -- the continuous Bernoulli


def test_continuous_bernoulli_is_a_density_with_its_mean_and_gradients():
    logit = torch.tensor([-30.0, -3, -0.31, -0.29, -1e-3, 0, 1e-6, 0.1, 0.3, 2, 30])[:, None]
    nodes, weights = np.polynomial.legendre.leggauss(80)
    x = torch.from_numpy((nodes + 1) / 2)
    weight = torch.from_numpy(weights / 2)
    density = vae_grf._ContinuousBernoulli.apply(x, logit.double()).exp()
    torch.testing.assert_close(
        (density * weight).sum(1), torch.ones(11).double(), rtol=1e-8, atol=0
    )
    mean = (density * x * weight).sum(1)
    found = vae_grf.bernoulli_mean(logit.double())[:, 0]
    torch.testing.assert_close(found, mean, rtol=3e-7, atol=0)
    # In float32 as exactly as it goes.
    torch.testing.assert_close(
        vae_grf.bernoulli_mean(logit)[:, 0].double(), mean, rtol=2e-6, atol=0
    )
    half = torch.tensor([0.25, 0.75]).double().requires_grad_()
    at = torch.tensor([-2.0, 0.31]).double().requires_grad_()
    assert torch.autograd.gradcheck(vae_grf._ContinuousBernoulli.apply, (half, at))


# -- network, bound and prior


def test_the_network_of_the_paper_has_its_number_of_parameters():
    model = VAEGRF.paper()
    networks = model._networks(3, model._prior())
    assert sum(p.numel() for p in networks.parameters()) == 947_941
    mean, log_variance = networks.encode(torch.zeros(1, 3, 256, 256))
    assert mean.shape == log_variance.shape == (1, 256, 32, 32)
    assert networks.rebuild(torch.zeros(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    assert VAEGRF.paper("tile").smoothness == 0.5
    assert VAEGRF.paper("wood", epochs=2).beta == 0.1


def test_the_divergence_is_that_of_the_scaled_field_or_of_white_noise():
    rng = np.random.default_rng(1)
    mean, log_variance = rng.normal(size=(2, 5, 4, 8, 8)).astype(np.float32)
    given = (torch.from_numpy(mean), torch.from_numpy(log_variance))
    field = VAEGRF(learn="fixed", range=4.0, variance=0.3, range_ratio=0.25)._prior()
    wanted = mahal.grf_kl(mean, log_variance, range=1.0, variance=0.3)
    np.testing.assert_allclose(field(*given).numpy(), wanted, rtol=1e-5)
    white = VAEGRF(prior="normal")._prior()(*given).numpy()
    exact = 0.5 * (mean.astype(np.float64) ** 2 + np.exp(log_variance) - log_variance - 1)
    np.testing.assert_allclose(white, exact.sum((2, 3)), rtol=1e-5)


def learner(model, images):
    tiles = vae_grf._Tiles([torch.from_numpy(i.transpose(2, 0, 1)) for i in images], 32)
    return vae_grf._GRFLearner(tiles, None, model._networks(3, model._prior()), model)


def test_only_the_likelihood_of_images_moves_the_prior(images):
    model = VAEGRF(**SMALL, learn="gradient", range=1.5, variance=0.02, beta=1.0)
    found = learner(model, images)
    x = found.tiles.still(torch.arange(6))
    prior = found.networks.prior
    found.networks.elbo(x)[1].sum().backward()
    assert prior.log_range.grad is None
    assert prior.log_variance.grad is None
    found.loss(x).backward()
    moved = prior.log_range.grad.clone()
    prior.log_range.grad = None
    (-prior.log_likelihood(x).sum(1).mean() / 32**2).backward()
    torch.testing.assert_close(prior.log_range.grad, moved)
    assert moved != 0


def test_the_loss_is_the_bound_per_pixel_and_the_published_weighting_a_factor(images):
    losses = {}
    for beta, weighting in ((0.0, "elbo"), (1.0, "elbo"), (1.0, "published")):
        model = VAEGRF(**{**SMALL, "latent": 256}, beta=beta, weighting=weighting, learn="fixed")
        found = learner(model, images)
        found.noise = torch.Generator().manual_seed(0)
        losses[beta, weighting] = found.loss(found.tiles.still(torch.arange(4))).item()
    divergence = losses[1.0, "elbo"] - losses[0.0, "elbo"]
    assert divergence > 0
    assert losses[1.0, "published"] - losses[0.0, "elbo"] == pytest.approx(divergence / 4, rel=1e-4)


def test_tiles_lie_side_by_side_or_anywhere(images):
    bytes_ = (images[0][:32, :32] * 255).astype(np.uint8)
    model = VAEGRF(**{**SMALL, "crop": 16}, padding=8)
    picture = model._read_many("fit", [bytes_], None)[0]
    packed = model._packed(picture)
    assert packed.dtype == torch.uint8
    inner = packed[:, 8:-8, 8:-8].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(inner, bytes_)
    np.testing.assert_array_equal(packed[:, 7], packed[:, 8])
    tiles = vae_grf._Tiles([packed], 16)
    assert len(tiles) == 9
    torch.testing.assert_close(
        tiles.still(torch.tensor([4]))[0] * 255, packed[:, 16:32, 16:32].float()
    )
    draws = torch.Generator().manual_seed(3)
    moved = tiles.moved(torch.zeros(24, dtype=torch.long), draws, True)
    windows = packed.float().unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4) / 255
    windows = windows.flatten(0, 1)
    ways = {axes: windows.flip(axes) for axes in ((), (2,), (3,), (2, 3))}
    seen = set()
    for tile in moved:
        found = [axes for axes, w in ways.items() if (w == tile).flatten(1).all(1).any()]
        assert found
        seen.update(found)
    assert seen == set(ways)


# -- the whole model


def test_it_learns_the_field_and_finds_what_does_not_belong(fitted):
    assert fitted.range_ == pytest.approx(2.0, abs=0.2)
    assert fitted.variance_ == pytest.approx(0.01, rel=0.2)
    image, truth = implanted(9)
    maps = fitted.score_maps(image)
    areas = {kind: metrics.roc_areas(found, truth).auc_df for kind, found in maps.items()}
    assert list(areas) == list(vae_grf.KINDS)
    least = {"sm": 0.98, "l2": 0.98, "iterative": 0.98, "mad_sm": 0.9}
    assert all(area > least.get(kind, 0.75) for kind, area in areas.items()), areas
    scores = fitted.score(image)
    np.testing.assert_array_equal(scores, maps["mad_sm"])
    assert truth[np.unravel_index(scores.argmax(), scores.shape)]
    found = fitted.predict(image)
    assert found.any()
    assert truth[found].mean() > 0.9
    rebuilt = fitted.reconstruct(image)
    assert rebuilt.shape == image.shape
    assert np.abs(rebuilt - image)[~truth].mean() < np.abs(0.5 - image)[truth].mean()


def test_training_lowers_the_loss(images):
    model = VAEGRF(**{**SMALL, "epochs": 6}, learn="fixed", variance=0.01)
    found = learner(model, images)
    begin = learner(model, images)
    found.networks = model.fit(images).networks_
    losses = []
    for each in (begin, found):
        each.noise = torch.Generator().manual_seed(0)
        losses.append(each.loss(each.tiles.still(torch.arange(16))).item())
    assert losses[1] < losses[0] - 0.5


def test_maps_are_what_they_say(fitted):
    image = implanted(4)[0][:52, :45]
    maps = fitted.score_maps(image)
    padded = np.pad(image, ((0, 4), (0, 3), (0, 0)), mode="symmetric").transpose(2, 0, 1)
    mean = fitted.networks_.encode(torch.from_numpy(padded[None].copy()))[0][0].numpy()
    deviation = np.abs(mean - mean.mean(0)).mean(0).repeat(8, 0).repeat(8, 1)[:52, :45]
    np.testing.assert_allclose(maps["mad"], deviation, rtol=1e-4)
    np.testing.assert_array_equal(fitted.latent_map(image), mean.transpose(1, 2, 0))
    rebuilt = fitted.reconstruct(image)
    alike = mahal.structural_similarity(image, rebuilt, 11, data_range=1.0, channels="each")
    np.testing.assert_allclose(maps["sm"], (1 - alike).prod(2), rtol=1e-5)
    np.testing.assert_allclose(maps["l2"], ((image - rebuilt) ** 2).mean(2), rtol=1e-4)
    np.testing.assert_array_equal(maps["mad_sm"], maps["mad"] * maps["sm"])
    np.testing.assert_array_equal(maps["grad_elbo_sm"], maps["grad_elbo"] * maps["sm"])
    scaled = type(fitted)(**{**fitted.get_params(), "normalize": True})
    scaled.networks_, scaled.bands_ = fitted.networks_, 3
    scaled = scaled.score_maps(image)
    assert all(m.min() == 0 and m.max() == 1 for m in scaled.values())
    product = scaled["mad"] * scaled["sm"]
    product = (product - product.min()) / np.ptp(product)
    np.testing.assert_allclose(scaled["mad_sm"], product, atol=1e-6)
    with torch.inference_mode():
        np.testing.assert_array_equal(
            fitted.score_maps(image, ["iterative"])["iterative"], maps["iterative"]
        )
    with pytest.raises(ValueError, match="score_maps: kinds: must be one of"):
        fitted.score_maps(image, ("mse",))


def test_same_seed_same_map_and_the_random_state_of_the_caller_stays(images):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    maps = [
        VAEGRF(**{**SMALL, "epochs": 1}, seed=seed).fit(images[:4]).score(images[0])
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(maps[0], maps[1])
    assert not np.array_equal(maps[0], maps[2])


@pytest.mark.parametrize("learn", ["likelihood", "gradient"])
def test_file_has_the_same_map(images, tmp_path, learn):
    model = VAEGRF(**{**SMALL, "epochs": 1}, learn=learn).fit(images[:3])
    model.save(tmp_path / "m")
    again = load(tmp_path / "m")
    assert (again.range_, again.variance_) == (model.range_, model.variance_)
    for kind in ("mad_sm", "grad_elbo"):
        model.set_params(score_kind=kind)
        again.set_params(score_kind=kind)
        np.testing.assert_array_equal(again.score(images[3]), model.score(images[3]))
    with pytest.raises(ModelError, match="call calibrate first"):
        again.threshold(0.1)
    assert again.calibrate(images).threshold(0.1) > 0


def test_the_plain_autoencoder_is_the_same_class(images):
    model = VAEGRF(**{**SMALL, "epochs": 1}, prior="normal").fit(images[:2])
    assert np.isnan(model.range_)
    assert model.score(images[0]).shape == (64, 64)


def test_a_training_with_patience_that_was_killed_goes_on(images, tmp_path, monkeypatch):
    model = VAEGRF(**SMALL, learn="gradient", held_out=0.25, patience=2)
    whole = model.fit(images[:8])
    length, map_ = whole.range_, whole.score(images[9])
    assert length != model.range
    start = vae_grf._GRFLearner.on_train_epoch_start

    def killed(self):
        if self.current_epoch == 2:
            raise RuntimeError("killed")
        start(self)

    with monkeypatch.context() as patched:
        patched.setattr(vae_grf._GRFLearner, "on_train_epoch_start", killed)
        with pytest.raises(RuntimeError, match="killed"):
            model.fit(images[:8], checkpoint=tmp_path / "state")
    model.fit(images[:8], checkpoint=tmp_path / "state")
    assert model.range_ == length
    np.testing.assert_array_equal(model.score(images[9]), map_)


def test_early_stopping_watches_images_that_are_not_learnt(images, monkeypatch):
    seen = []
    monkeypatch.setattr(_training._BestWeights, "restore", lambda self, to: seen.append(self.best))
    VAEGRF(**{**SMALL, "epochs": 2}, held_out=0.2, patience=1).fit(images[:4])
    assert np.isfinite(seen[0]["loss"])
    with pytest.raises(ModelError, match="must be at least 2 with held_out"):
        VAEGRF(**SMALL, held_out=0.2, patience=1).fit(images[:1])


def test_masked_pixels_count_for_nothing(images):
    mask = np.ones((64, 64), np.bool_)
    mask[:20] = False
    spoilt = [i.copy() for i in images[:2]]
    spoilt[0][:20] = np.nan
    model = VAEGRF(**{**SMALL, "epochs": 1})
    first = model.fit(spoilt, masks=[mask, mask]).score(spoilt[0], mask=mask)
    np.testing.assert_array_equal(np.isnan(first), ~mask)
    spoilt[0][:20] = 0.7
    second = model.fit(spoilt, masks=[mask, mask]).score(spoilt[0], mask=mask)
    np.testing.assert_array_equal(first, second)


def test_bytes_are_the_same_as_their_shares(images):
    whole = [(i * 255).astype(np.uint8) for i in images[:3]]
    model = VAEGRF(**{**SMALL, "epochs": 1})
    first = model.fit(whole).score(whole[0])
    second = model.fit([i.astype(np.float32) / 255 for i in whole]).score(whole[0])
    np.testing.assert_allclose(first, second, rtol=1e-3)


def test_what_is_refused(images, fitted):
    with pytest.raises(ValueError, match="crop: must be a multiple of 8, got 20"):
        VAEGRF(crop=20)
    with pytest.raises(ValueError, match="window: must be odd"):
        VAEGRF(window=10)
    with pytest.raises(ValueError, match="patience: must be given where images are held out"):
        VAEGRF(patience=3)
    with pytest.raises(ValueError, match=r"held_out: must be at most 0\.5"):
        VAEGRF(held_out=0.9, patience=3)
    with pytest.raises(ValueError, match="prior: must be one of grf, normal"):
        VAEGRF(prior="white")
    with pytest.raises(ValueError, match="smoothness"):
        VAEGRF(smoothness=-1.0)
    with pytest.raises(ValueError, match="range: must be a number above 0"):
        VAEGRF(range=0.0)
    with pytest.raises(ModelError, match=r"images\[1\]: must have at least 32 rows and columns"):
        VAEGRF(**SMALL).fit([images[0], images[1][:20]])
    with pytest.raises(ValueError, match="values between 0 and 1"):
        VAEGRF(**SMALL).fit([images[0] * 300])
    with pytest.raises(ModelError, match="image: must have at least 16 rows and columns, got 15"):
        fitted.score(images[0][:15])
    with pytest.raises(ModelError, match="must have 3 bands"):
        fitted.score(images[0][..., :2])
    with pytest.raises(TrainingError, match=r"is not finite in epoch \d, step \d+"):
        VAEGRF(**SMALL, learning_rate=1e30).fit(images[:4])

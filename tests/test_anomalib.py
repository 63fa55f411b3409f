"""Parts for anomalib; without it, against a stand-in with its interface."""

from __future__ import annotations

import sys
import types

import mahal
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from mahal.anomalib import AnomalyMapGenerator, MultiVariateGaussian, use_in  # noqa: E402


class StockGaussian(torch.nn.Module):
    """What anomalib's class holds and gives."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("inv_covariance", torch.empty(0))

    def fit(self, embedding):
        x = embedding.flatten(2).double()
        self.mean = x.mean(0).float()
        eye = torch.eye(x.shape[1])
        rows = [torch.linalg.inv(torch.cov(x[:, :, k].T) + 0.01 * eye) for k in range(x.shape[2])]
        self.inv_covariance = torch.stack(rows).float()


class StandIn(torch.nn.Module):
    """The calls that anomalib's PadimModel makes."""

    def __init__(self, **arguments):
        super().__init__()
        self.arguments = arguments
        self.gaussian = StockGaussian()
        self.anomaly_map_generator = torch.nn.Identity()
        self.memory_bank = []

    def feature_extractor(self, images):
        return {"layer1": torch.nn.functional.avg_pool2d(images, 4)}

    def generate_embedding(self, features):
        return features["layer1"]

    def forward(self, images):
        embedding = self.generate_embedding(self.feature_extractor(images))
        if self.training:
            self.memory_bank.append(embedding)
            return embedding
        return self.anomaly_map_generator(
            embedding=embedding,
            mean=self.gaussian.mean,
            inv_covariance=self.gaussian.inv_covariance,
            image_size=images.shape[-2:],
        )

    def fit_gaussian(self):
        self.gaussian.fit(torch.cat(self.memory_bank))


def images(count, seed=0, channels=6, side=40):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, channels, side, side, generator=generator)
    mixed = torch.randn(channels, channels, generator=torch.Generator().manual_seed(5))
    return torch.einsum("kc,ncij->nkij", mixed, values) + 3


def fitted(count=40):
    model = use_in(StandIn()).train()
    for part in images(count).split(10):
        model(part)
    model.fit_gaussian()
    return model.eval()


def batches(count, size=16):
    gaussian = MultiVariateGaussian()
    for part in images(count).split(size):
        gaussian.update(torch.nn.functional.avg_pool2d(part, 4))
    gaussian.finish()
    return gaussian


@pytest.fixture(scope="module")
def embedding():
    return torch.nn.functional.avg_pool2d(images(40), 4)


def test_gaussian_has_the_statistics_of_every_location(embedding):
    gaussian = MultiVariateGaussian()
    mean, inverse = gaussian.fit(embedding)
    stock = StockGaussian()
    stock.fit(embedding)
    assert mean.shape == stock.mean.shape == (6, 100)
    torch.testing.assert_close(mean, stock.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(inverse, stock.inv_covariance, rtol=1e-3, atol=1e-3)
    assert torch.equal(inverse, gaussian.inv_covariance)
    assert torch.equal(gaussian.whitening, gaussian.whitening.tril())


def test_batches_give_the_statistics_of_all(embedding):
    once = MultiVariateGaussian()
    once.fit(embedding)
    for size in (7, 40):
        parts = batches(40, size)
        torch.testing.assert_close(parts.mean, once.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(parts.whitening, once.whitening, rtol=1e-3, atol=1e-3)


def test_distances_are_those_of_the_op(embedding):
    gaussian = MultiVariateGaussian()
    gaussian.fit(embedding)
    distance = torch.linalg.vector_norm(gaussian.whiten(embedding), dim=1).T
    x = embedding.flatten(2).permute(0, 2, 1).contiguous()
    covariance = torch.stack([torch.cov(x[:, k].T) + 0.01 * torch.eye(6) for k in range(100)])
    wanted = mahal.mahalanobis(x, gaussian.mean.T.contiguous(), covariance).sqrt()
    torch.testing.assert_close(distance, wanted, rtol=1e-3, atol=1e-3)


def test_fewer_images_than_channels_need_the_ridge(embedding):
    few = embedding[:4]
    gaussian = MultiVariateGaussian()
    gaussian.fit(few)
    assert torch.isfinite(gaussian.whiten(embedding)).all()
    with pytest.raises(mahal.SingularError):
        MultiVariateGaussian(ridge=0).fit(few)


def test_what_cannot_be_fitted_is_refused(embedding):
    with pytest.raises(ValueError, match="must have two images or more, got 1"):
        MultiVariateGaussian().fit(embedding[:1])
    with pytest.raises(ValueError, match="must be finite"):
        MultiVariateGaussian().fit(embedding / 0)
    with pytest.raises(ValueError, match=r"must have shape \(images"):
        MultiVariateGaussian().fit(embedding[0])
    with pytest.raises(ValueError, match="must have two images or more, got 0"):
        MultiVariateGaussian().finish()
    with pytest.raises(ValueError, match="is not fitted"):
        MultiVariateGaussian().whiten(embedding)
    with pytest.raises(ValueError, match="ridge: must be finite"):
        MultiVariateGaussian(ridge=-1)


def test_map_is_that_of_the_square_filter(embedding):
    gaussian = MultiVariateGaussian(inverse=False)
    gaussian.fit(embedding)
    assert gaussian.inv_covariance.numel() == 0
    found = AnomalyMapGenerator(gaussian)(embedding=embedding[:3], image_size=(40, 48))
    stock = StockGaussian()
    stock.fit(embedding)
    delta = (embedding[:3].flatten(2) - stock.mean).permute(2, 0, 1)
    squared = ((delta @ stock.inv_covariance) * delta).sum(2).T.reshape(3, 1, 10, 10)
    scores = torch.nn.functional.interpolate(squared.sqrt(), size=(40, 48), mode="bilinear")
    offsets = torch.arange(-16, 17) / 4
    kernel = torch.exp(-0.5 * (offsets[:, None] ** 2 + offsets**2))
    padded = torch.nn.functional.pad(scores, (16,) * 4, mode="reflect")
    wanted = torch.nn.functional.conv2d(padded, (kernel / kernel.sum())[None, None])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_an_odd_spot_scores_highest():
    model = fitted()
    odd = images(1, seed=9)
    odd[:, :, 28:34, 8:14] += torch.tensor([2.0, -2, 2, -2, 2, -2]).reshape(6, 1, 1)
    scores = model(odd)[0, 0]
    row, col = divmod(int(scores.argmax()), scores.shape[1])
    assert 26 <= row <= 36
    assert 6 <= col <= 16


@pytest.mark.parametrize("center", [False, True])
def test_ace_is_signed_and_bounded(embedding, center):
    gaussian = MultiVariateGaussian()
    gaussian.fit(embedding)
    generator = AnomalyMapGenerator(gaussian, sigma=0)
    signature = gaussian.mean + torch.linspace(-1, 2, 6)[:, None]
    generator.set_signature(signature, center=center)
    direction = signature - gaussian.mean if center else signature
    like = (gaussian.mean + 0.7 * direction).reshape(1, 6, 10, 10)
    opposite = (gaussian.mean - 0.7 * direction).reshape(1, 6, 10, 10)
    torch.testing.assert_close(generator(embedding=like), torch.ones(1, 1, 10, 10))
    torch.testing.assert_close(generator(embedding=opposite), -torch.ones(1, 1, 10, 10))
    scores = generator(embedding=embedding)
    assert scores.abs().max() <= 1 + 1e-6
    # At one location it is the op.
    x = embedding.flatten(2)[:, :, 37].contiguous()
    covariance = torch.cov(x.T) + 0.01 * torch.eye(6)
    target = gaussian.mean[:, 37] + direction[:, 37]
    wanted = mahal.ace(x, target, covariance=covariance, signed=True)
    torch.testing.assert_close(scores.flatten(1)[:, 37], wanted, rtol=1e-3, atol=1e-3)
    mean_only = gaussian.mean.reshape(1, 6, 10, 10)
    assert torch.equal(generator(embedding=mean_only), torch.zeros(1, 1, 10, 10))


def test_signatures_without_a_direction_are_refused(embedding):
    gaussian = MultiVariateGaussian()
    gaussian.fit(embedding)
    generator = AnomalyMapGenerator(gaussian)
    with pytest.raises(ValueError, match="must not be zero"):
        generator.set_signature(torch.zeros(6))
    with pytest.raises(ValueError, match="must not be zero"):
        generator.set_signature(gaussian.mean, center=True)
    with pytest.raises(ValueError, match=r"must have shape \(6,\) or \(6, 100\), got \(5,\)"):
        generator.set_signature(torch.ones(5))
    with pytest.raises(ValueError, match="sigma: must be finite"):
        AnomalyMapGenerator(gaussian, sigma=-1)


def test_a_state_dict_gives_the_same_map():
    model, other = fitted(), use_in(StandIn()).eval()
    signature = torch.linspace(-1, 1, 6)
    for with_signature in (False, True):
        if with_signature:
            model.anomaly_map_generator.set_signature(signature)
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(images(2, seed=3)), other(images(2, seed=3)))
    assert sorted(model.state_dict()) == [
        "anomaly_map_generator.target",
        "gaussian.mean",
        "gaussian.whitening",
    ]


def test_a_state_dict_of_anomalib_loads():
    stock = StandIn().train()
    stock(images(40))
    stock.fit_gaussian()
    state = stock.state_dict()
    state["anomaly_map_generator.blur.kernel"] = torch.ones(1, 1, 33, 33)
    other = use_in(StandIn()).eval()
    other.load_state_dict(state)
    wanted = fitted()(images(2, seed=3))
    torch.testing.assert_close(other(images(2, seed=3)), wanted, rtol=1e-3, atol=1e-3)


def test_whitening_exports_as_products(embedding):
    gaussian = MultiVariateGaussian()
    gaussian.fit(embedding)

    class Distances(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gaussian = gaussian
            self.maps = AnomalyMapGenerator(gaussian)

        def forward(self, x):
            return self.maps(embedding=x, image_size=(40, 40))

    program = torch.export.export(Distances(), (embedding[:2],))
    torch.testing.assert_close(program.module()(embedding[:2]), Distances()(embedding[:2]))


def test_only_padim_models_are_taken():
    with pytest.raises(TypeError, match="use_in: model: must be a PaDiM model of anomalib"):
        use_in(torch.nn.Identity())


def test_padim_ace_takes_its_signature_after_the_fit(monkeypatch):
    class Padim(torch.nn.Module):
        device = torch.device("cpu")
        pre_processor = None

        def __init__(self, **arguments):
            super().__init__()
            self.model = StandIn(**arguments)

    package, models = types.ModuleType("anomalib"), types.ModuleType("anomalib.models")
    models.Padim = Padim
    monkeypatch.setitem(sys.modules, "anomalib", package)
    monkeypatch.setitem(sys.modules, "anomalib.models", models)
    monkeypatch.delitem(sys.modules, "mahal.anomalib._padim_ace", raising=False)
    from mahal.anomalib import PadimACE

    model = PadimACE(backbone="resnet18", center_signature=True).train()
    assert model.model.arguments == {"backbone": "resnet18"}
    for part in images(40).split(16):
        assert model.training_step(types.SimpleNamespace(image=part)) == 0
    assert model.model.memory_bank == []
    with pytest.raises(ValueError, match="call set_anomalous first"):
        model.fit()
    step = torch.tensor([2.0, -2, 2, -2, 2, -2]).reshape(6, 1, 1)
    model.set_anomalous(images(3, seed=7) + step)
    model.fit()
    model.eval()
    assert torch.equal(model.model.gaussian.mean, batches(40).mean)
    spot = images(1, seed=9)
    spot[:, :, 28:34, 8:14] += step
    scores = model.model(spot)[0, 0]
    row, col = divmod(int(scores.argmax()), scores.shape[1])
    assert 26 <= row <= 36
    assert 6 <= col <= 16
    monkeypatch.delitem(sys.modules, "mahal.anomalib._padim_ace")


def test_in_anomalib_itself():
    pytest.importorskip("anomalib")
    from anomalib.models import Padim
    from mahal.anomalib import PadimACE

    model = use_in(Padim(pre_trained=False, n_features=20))
    torch_model = model.model.train()
    torch_model(torch.randn(4, 3, 64, 64))
    model.fit()
    assert torch_model.eval()(torch.randn(2, 3, 64, 64)).anomaly_map.shape == (2, 1, 64, 64)
    ace = PadimACE(pre_trained=False, n_features=20)
    ace.set_anomalous(torch.randn(2, 3, 64, 64))
    ace.training_step(types.SimpleNamespace(image=torch.randn(4, 3, 64, 64)))
    ace.fit()
    scores = ace.model.eval()(torch.randn(2, 3, 64, 64)).anomaly_map
    assert scores.abs().max() <= 1

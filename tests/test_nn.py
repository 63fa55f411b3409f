"""mahal.nn: what the modules compute, their states, devices, precision and errors."""

from __future__ import annotations

import copy
import doctest
import importlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_spd

torch = pytest.importorskip("torch")

from mahal import nn  # noqa: E402

STRUCTURES = ("full", "diagonal", "isotropic")


def features(shape: tuple[int, ...] = (6, 4, 5, 7), seed: int = 0) -> Any:
    """Correlated, about another mean, features in axis 1."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.cholesky(random_spd(shape[1], 20.0, rng))
    x = np.moveaxis(rng.standard_normal(shape), 1, -1) @ mixing.T + 3.0
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy()).float()


def rows(x: Any) -> Any:
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def round_trip(module: Any, other: Any) -> Any:
    """The state of one module in another one, through a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


# Background


@pytest.mark.parametrize("structure", STRUCTURES)
def test_fit_does_not_depend_on_the_split(structure: str) -> None:
    x = features((50, 4, 3), 1)
    whole = nn.Background(4, estimate="fixed", structure=structure).fit(x)
    parts = nn.Background(4, estimate="fixed", structure=structure)
    for part in x.split([2, 1, 30, 17]):
        parts.fit(part)
    assert int(parts.samples) == 150
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    covariance = rows(x).mT.cov()
    torch.testing.assert_close(whole.mean, rows(x).mean(0))
    expected = {
        "full": covariance,
        "diagonal": covariance.diagonal(),
        "isotropic": covariance.diagonal().mean(),
    }
    torch.testing.assert_close(whole.covariance, expected[structure])
    whole.reset()
    assert not whole.mean.any()
    assert int(whole.samples) == 0


@pytest.mark.parametrize("structure", STRUCTURES)
def test_running_averages(structure: str) -> None:
    background = nn.Background(4, structure=structure, momentum=0.25)
    first, second = (nn.Background(4, estimate="fixed", structure=structure) for _ in range(2))
    x, y = features(seed=1), features(seed=2) + 1
    first.fit(x)
    second.fit(y)
    background.update(x)
    torch.testing.assert_close(background.covariance, first.covariance)
    background.update(y)
    for name in ("mean", "covariance"):
        expected = 0.75 * getattr(first, name) + 0.25 * getattr(second, name)
        torch.testing.assert_close(getattr(background, name), expected)
    fixed = copy.deepcopy(second)
    fixed.update(x)
    assert torch.equal(fixed.mean, second.mean)
    pooled = nn.Background(4, structure=structure, momentum=None)
    pooled.update(x)
    pooled.update(y)
    both = nn.Background(4, estimate="fixed", structure=structure).fit(torch.cat([x, y]))
    torch.testing.assert_close(pooled.covariance, both.covariance)


def test_an_offset_costs_no_digits() -> None:
    x = features((4000, 3), 3)
    moved = nn.Background(3, estimate="fixed").fit(x + 4096)
    plain = nn.Background(3, estimate="fixed").fit((x + 4096) - 4096)
    # Samples keep 24 bits of 4096; the covariance must not lose 4096^2 more.
    torch.testing.assert_close(moved.covariance, plain.covariance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_learned_backgrounds(structure: str) -> None:
    torch.manual_seed(0)
    background = nn.Background(4, estimate="learned", structure=structure)
    mean, covariance = background()
    eye = {"full": torch.eye(4), "diagonal": torch.ones(4), "isotropic": torch.ones(1)}
    assert torch.equal(covariance, eye[structure].reshape(covariance.shape))
    assert not mean.any()
    with torch.no_grad():
        for parameter in background.parameters():
            parameter.normal_()
    covariance = background()[1]
    full = covariance if structure == "full" else torch.diag(covariance.expand(4))
    assert torch.linalg.eigvalsh(full).min() > 0
    torch.testing.assert_close(background.log_determinant(), torch.logdet(full))
    x = torch.randn(5, 4)
    expected = torch.linalg.solve_triangular(
        torch.linalg.cholesky(full), (x - background()[0]).mT, upper=False
    ).mT
    torch.testing.assert_close(background.whiten(x), expected)
    with pytest.raises(ValueError, match="fit: is for estimated backgrounds"):
        background.fit(x)


# Whiten


@pytest.mark.parametrize("shape", [(40, 4), (6, 4, 5, 7), (3, 4, 9)])
def test_whiten(shape: tuple[int, ...]) -> None:
    x = features(shape)
    module = nn.Whiten(4, loading=0.0)
    y = module(x)
    assert y.shape == x.shape
    torch.testing.assert_close(rows(y).mT.cov(), torch.eye(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows(y).mean(0), torch.zeros(4), rtol=0, atol=1e-5)
    # The first batch is all that the running statistics know.
    torch.testing.assert_close(module.eval()(x), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        rows(y), mahal.whiten(rows(x), rows(x).mean(0), rows(x).mT.cov()), rtol=1e-4, atol=1e-5
    )


def test_whiten_diagonal_is_batch_normalisation() -> None:
    x, y = features(seed=1), features(seed=2)
    ours = nn.Whiten(4, structure="diagonal", momentum=0.3, loading=0.0)
    theirs = torch.nn.BatchNorm2d(4, momentum=0.3, affine=False, eps=1e-12)
    # Their variance of a batch has the divisor n, ours n - 1; both average that with n - 1. The
    # first batch replaces the start of ours.
    n = x.numel() / 4
    theirs.running_mean.copy_(rows(x).mean(0))
    theirs.running_var.copy_(rows(x).var(0))
    for batch in (x, y):
        torch.testing.assert_close(ours(batch), theirs(batch) * (1 - 1 / n) ** 0.5)
    torch.testing.assert_close(ours.background.mean, theirs.running_mean)
    torch.testing.assert_close(ours.background.covariance, theirs.running_var)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_whiten_gradients(structure: str) -> None:
    module = nn.Whiten(3, structure=structure).double()
    x = features((7, 3), 4).double().requires_grad_()
    assert torch.autograd.gradcheck(module, (x,))
    module.eval()
    assert torch.autograd.gradcheck(module, (x,))


# ACE


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("center", [False, True])
def test_ace_is_the_cosine_in_whitened_space(structure: str, center: bool) -> None:
    torch.manual_seed(0)
    x = features()
    head = nn.ACE(
        4, 3, background="fixed", structure=structure, center_signatures=center, loading=0.0
    ).fit(x)
    score = head(x)
    assert score.shape == (6, 3, 5, 7)
    mean, covariance = head.background()
    full = covariance if structure == "full" else torch.diag(covariance.expand(4))
    inverse = torch.linalg.inv(full)
    s = head.signatures - mean if center else head.signatures
    d = rows(x) - mean
    top = d @ inverse @ s.mT
    below = ((d @ inverse) * d).sum(1)[:, None] * ((s @ inverse) * s).sum(1)
    torch.testing.assert_close(rows(score), top / below.sqrt(), rtol=1e-4, atol=1e-5)
    squared = copy.deepcopy(head)
    squared.signed = False
    torch.testing.assert_close(squared(x), score.square())
    if structure == "full":
        target = s[0] + mean
        expected = mahal.ace(
            rows(x).double().numpy(),
            target.detach().double().numpy(),
            background=rows(x).double().numpy(),
            signed=True,
        )
        np.testing.assert_allclose(rows(score)[:, 0].detach().numpy(), expected, rtol=0, atol=1e-4)


def test_ace_guards_and_gradients() -> None:
    head = nn.ACE(4, 2, background="fixed").double()
    head.background.fit(features())
    x = features((5, 4)).double()
    x[2] = head.background.mean
    x.requires_grad_()
    score = head(x)
    assert not score[2].any()
    score.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert not x.grad[2].any()
    assert torch.autograd.gradcheck(head, (features((3, 4)).double().requires_grad_(),))
    learned = nn.ACE(3, 2, background="learned").double()
    names = [name for name, _ in learned.named_parameters()]
    inputs = tuple(p.detach().clone().requires_grad_() for p in learned.parameters())

    def function(*parameters: Any) -> Any:
        given = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(learned, given, (features((5, 3)).double(),))

    assert torch.autograd.gradcheck(function, inputs)


def test_ace_fit_takes_class_means() -> None:
    x = features((30, 4))
    labels = torch.arange(30) % 3 - 1
    head = nn.ACE(4, 3, background="fixed")
    before = head.signatures[2].clone()
    head.fit(x, labels)
    for k in range(2):
        expected = x[labels == k].mean(0) - x.mean(0)
        torch.testing.assert_close(head.signatures[k], expected)
    assert torch.equal(head.signatures[2], before)
    with pytest.raises(ValueError, match="labels: must be below 3, got 3"):
        head.fit(x, labels + 2)
    with pytest.raises(TypeError, match=r"labels: must be whole numbers, got torch.float32"):
        head.fit(x, labels.float())
    with pytest.raises(ValueError, match="labels: must be given where the background is learned"):
        nn.ACE(4).fit(x)


# Covariance pooling


def test_local_covariance() -> None:
    x = features((2, 3, 8, 9))
    expected = torch.stack([mahal.local_covariance(one.movedim(0, -1), 5)[1] for one in x])
    full = nn.LocalCovariance(5, packed=False)(x)
    assert full.shape == (2, 3, 3, 8, 9)
    torch.testing.assert_close(full, expected.permute(0, 3, 4, 1, 2))
    packed = nn.LocalCovariance(5)(x)
    assert packed.shape == (2, 6, 8, 9)
    # Squared norms are those of the matrices.
    torch.testing.assert_close(packed.square().sum(1), full.square().sum((1, 2)))
    log = nn.LocalCovariance(5, log=True, loading=0.1, packed=False)(x)
    torch.testing.assert_close(
        log, mahal.covariance_log(expected, loading=0.1).permute(0, 3, 4, 1, 2)
    )
    scales = mahal.multiscale_covariance(x.movedim(1, -1), [3, 5], form="log", loading=0.1)
    torch.testing.assert_close(
        nn.LocalCovariance([3, 5], log=True, loading=0.1)(x), scales.permute(0, 3, 4, 1, 2)
    )
    several = nn.LocalCovariance([3, (1, 5)], packed=False)(x)
    assert several.shape == (2, 2, 3, 3, 8, 9)
    torch.testing.assert_close(several[:, 0], nn.LocalCovariance(3, packed=False)(x))
    z = torch.complex(x, features((2, 3, 8, 9), 5))
    hermitian = nn.LocalCovariance(5, packed=False)(z)
    torch.testing.assert_close(hermitian, hermitian.transpose(1, 2).conj())
    assert nn.LocalCovariance(5)(z).dtype == torch.complex64


def test_local_covariance_gradients() -> None:
    x = features((1, 2, 4, 5)).double().requires_grad_()
    module = nn.LocalCovariance(3, log=True, loading=0.1)
    assert torch.autograd.gradcheck(module, (x,), fast_mode=True)


# Loss


@pytest.mark.parametrize("structure", STRUCTURES)
def test_mahalanobis_loss(structure: str) -> None:
    x = features((50, 4))
    plain = nn.MahalanobisLoss(4, structure=structure, loading=0.0, reduction="none")
    distance = plain(x)
    # The batch is its own background: distances add up to (n - 1) times the features.
    assert float(distance.sum()) == pytest.approx(49 * 4, rel=1e-4)
    full = nn.MahalanobisLoss(4, structure=structure, loading=0.0, log_determinant=True)
    _, covariance = full.background.fit(x)()
    matrix = covariance if structure == "full" else torch.diag(covariance.expand(4))
    gaussian = torch.distributions.MultivariateNormal(full.background.mean, matrix)
    constant = 4 * np.log(2 * np.pi)
    torch.testing.assert_close(full.eval()(x), (-2 * gaussian.log_prob(x)).mean() - constant)
    target = features((50, 4), 7)
    torch.testing.assert_close(full(x, target), full(x - target), rtol=1e-4, atol=1e-4)
    maps = nn.MahalanobisLoss(4, structure=structure, reduction="none")(features())
    assert maps.shape == (6, 5, 7)


def test_a_learned_loss_finds_the_covariance() -> None:
    x = features((400, 3))
    loss = nn.MahalanobisLoss(3, background="learned", log_determinant=True)
    optimiser = torch.optim.LBFGS(loss.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimiser.zero_grad()
        value = loss(x)
        value.backward()
        return value

    optimiser.step(closure)
    mean, covariance = loss.background()
    torch.testing.assert_close(mean, x.mean(0), rtol=0, atol=1e-2)
    torch.testing.assert_close(covariance, x.mT.cov(correction=0), rtol=0.02, atol=1e-2)
    with pytest.raises(ValueError, match="log_determinant: must be True where the background"):
        nn.MahalanobisLoss(3, background="learned")


# All modules


def modules() -> list[tuple[Any, Any]]:
    """Pairs of a maker and an input."""
    return [
        (lambda: nn.Whiten(4), features()),
        (lambda: nn.Whiten(4, structure="diagonal"), features()),
        (lambda: nn.ACE(4, 2), features()),
        (lambda: nn.ACE(4, 2, background="running"), features()),
        (lambda: nn.MahalanobisLoss(4), features()),
        (lambda: nn.LocalCovariance(3), features()),
    ]


@pytest.mark.parametrize("number", range(6))
def test_state_precision_and_copies(number: int) -> None:
    make, x = modules()[number]
    module = make()
    module(x)
    module.eval()
    expected = module(x)
    other = round_trip(module, make()).eval()
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(module)(x), expected, rtol=0, atol=0)
    assert "ACE" in repr(module) or type(module).__name__ in repr(module)
    # Half precision comes back as such, statistics stay in float32.
    half = copy.deepcopy(module).bfloat16()
    assert all(b.dtype != torch.bfloat16 for b in half.buffers())
    found = half(x.bfloat16())
    if not isinstance(module, nn.MahalanobisLoss):
        assert found.dtype == torch.bfloat16
    torch.testing.assert_close(
        found.float(), expected, rtol=0.1, atol=0.1 * float(expected.detach().abs().max())
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    wide = copy.deepcopy(module).double()
    assert wide(x.double()).dtype == torch.float64
    # A float64 state survives a half-precision copy as well.
    assert all(b.dtype != torch.float16 for b in wide.half().buffers())


def test_meta_and_devices() -> None:
    with torch.device("meta"):
        module = nn.Whiten(4)
    assert module.background.mean.is_meta
    module = nn.Whiten(4)
    with pytest.raises(ValueError, match=r"x: must be on the device of the module \(cpu\)"):
        module(torch.zeros(2, 4, device="meta"))


def test_two_passes_before_a_backward() -> None:
    """Buffers move in place, which must not reach the first graph."""
    for make, x in modules():
        module = make()
        first = x.clone().requires_grad_()
        values = module(first), module(x + 1)
        (values[0].sum() + values[1].sum()).backward()


def test_compile() -> None:
    """Nothing waits for values on the way: one graph, in training as well."""
    x = features()
    for module in (nn.ACE(4, 2), nn.Whiten(4)):
        expected = copy.deepcopy(module)(x)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"x: must have shape \(batch, 4, ...\), got \(2, 3\)"):
        nn.Whiten(4)(torch.zeros(2, 3))
    with pytest.raises(TypeError, match=r"x: must be real floating point, got torch.int64"):
        nn.ACE(4)(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x: must be a torch tensor, got numpy.ndarray"):
        nn.ACE(4)(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="x: must have at least 2 samples for a covariance, got 1"):
        nn.Whiten(4)(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="x: must have at least 2 samples for a covariance, got 0"):
        nn.Background(4).fit(torch.zeros(0, 4))
    with pytest.raises(ValueError, match="structure: must be 'full' or 'diagonal' or 'isotropic'"):
        nn.Whiten(4, structure="block")
    with pytest.raises(TypeError, match=r"num_features: must be a whole number, got 4.0"):
        nn.ACE(4.0)
    with pytest.raises(ValueError, match="num_signatures: must be positive, got 0"):
        nn.ACE(4, 0)
    with pytest.raises(ValueError, match="momentum: must be from 0 to 1, got 2"):
        nn.Whiten(4, momentum=2)
    with pytest.raises(ValueError, match="target: must have the shape of x"):
        nn.MahalanobisLoss(4)(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x: must have shape \(batch, channels, rows, cols\)"):
        nn.LocalCovariance(3)(torch.zeros(4, 5, 6))


def test_without_torch() -> None:
    code = """
import sys
sys.modules["torch"] = None
import mahal
try:
    mahal.nn
except ImportError as error:
    assert "pip install mahal[torch]" in str(error), error
else:
    raise SystemExit("no error")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


PROCESSES = """
import os, sys, torch
from torch import distributed
from mahal import nn
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(10, 3) @ torch.randn(3, 3) + 5
whole = nn.Whiten(3)
y = x.clone().requires_grad_()
whole_y = whole(y)
whole_y.pow(3).sum().backward()
part = nn.Whiten(3, synchronize=True)
z = x[rank * 4 : 4 + rank * 6].clone().requires_grad_()
own = part(z)
own.pow(3).sum().backward()
here = slice(rank * 4, 4 + rank * 6)
torch.testing.assert_close(own, whole_y[here], rtol=1e-4, atol=1e-5)
torch.testing.assert_close(z.grad, y.grad[here], rtol=1e-3, atol=1e-4)
torch.testing.assert_close(part.background.covariance, whole.background.covariance)
assert int(part.background.samples) == 10
net = torch.nn.Sequential(torch.nn.Linear(3, 3), nn.ACE(3, 2, background="running"))
model = torch.nn.parallel.DistributedDataParallel(net)
for _ in range(2):
    model(z.detach()).sum().backward()
means = [torch.zeros(3) for _ in range(2)]
distributed.all_gather(means, next(p.grad for p in net.parameters()).sum(0))
torch.testing.assert_close(means[0], means[1])
prior = nn.GRFPrior(learn="likelihood", shape=(8, 8), synchronize=True)
planes = torch.randn(6, 8, 8)
prior.update(planes[2 * rank : 2 + 4 * rank])
alone = nn.GRFPrior(learn="likelihood", shape=(8, 8))
alone.update(planes)
torch.testing.assert_close(prior.power, alone.power)
assert int(prior.planes) == 6
distributed.destroy_process_group()
"""


def test_two_processes(tmp_path: Any) -> None:
    """Synchronised statistics, and modules inside DistributedDataParallel."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESSES, str(rank), str(tmp_path / "store")])
        for rank in range(2)
    ]
    assert [process.wait(120) for process in started] == [0, 0]


# The prior


def planes(count: int, seed: int, range_: float = 2.0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    prior = nn.GRFPrior(range=range_, variance=0.5, learn="fixed")
    return prior.sample((count, 16, 20), generator=generator)


def test_a_prior_has_the_values_of_the_functions() -> None:
    prior = nn.GRFPrior(range=8.0, variance=0.5, stride=4, smoothness=0.5)
    mean, logvar = torch.randn(2, 3, 8, 9), torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(
        prior(mean, logvar), mahal.grf_kl(mean, logvar, range=2.0, variance=0.5, smoothness=0.5)
    )
    image = planes(3, 0)
    torch.testing.assert_close(
        prior.log_likelihood(image),
        mahal.grf_log_likelihood(image, range=8.0, variance=0.5, smoothness=0.5),
    )
    torch.testing.assert_close(prior.range, torch.tensor(8.0))
    assert prior.sample((2, 5, 6), generator=torch.Generator()).shape == (2, 5, 6)


def test_the_divergence_does_not_train_the_prior() -> None:
    mean = torch.randn(2, 8, 9, requires_grad=True)
    logvar = torch.randn(2, 8, 9, requires_grad=True)
    for contract in ("stop", "full"):
        prior = nn.GRFPrior(range=2.0, prior_gradient=contract)
        prior(mean, logvar).sum().backward()
        assert mean.grad is not None
        assert logvar.grad is not None
        reached = [p.grad is not None and bool(p.grad.any()) for p in prior.parameters()]
        assert reached == [contract == "full"] * 2
        prior.zero_grad()
        prior.log_likelihood(planes(2, 1)).sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in prior.parameters())
    fixed = nn.GRFPrior(learn="fixed")
    assert not list(fixed.parameters())
    assert fixed(mean, logvar).requires_grad


def test_likelihood_updates() -> None:
    images = planes(40, 2)
    options: dict[str, Any] = {"learn": "likelihood", "shape": (16, 20)}
    whole = nn.GRFPrior(**options)
    whole.update(images)
    assert float(whole.range) == pytest.approx(2.0, rel=0.2)
    parts = nn.GRFPrior(**options)
    for part in images.split([1, 24, 15]):
        parts.update(part, refit=False)
    assert float(parts.range) == 1.0
    parts.refit()
    torch.testing.assert_close(parts.range, whole.range)
    torch.testing.assert_close(parts.power, whole.power)
    assert int(parts.planes) == 40
    # No step of a parameter can do better.
    best = float(whole.log_likelihood(images).sum())
    for factors in ((1.05, 1.0), (0.95, 1.0), (1.0, 1.05), (1.0, 0.95)):
        other = nn.GRFPrior(
            range=float(whole.range) * factors[0], variance=float(whole.variance) * factors[1]
        )
        assert float(other.log_likelihood(images).detach().sum()) < best
    moving = nn.GRFPrior(momentum=0.5, **options)
    for image in images[:3]:
        moving.update(image, refit=False)
    powers = [mahal.grf_power(image) for image in images[:3]]
    np.testing.assert_allclose(moving.power, powers[0] / 4 + powers[1] / 4 + powers[2] / 2)
    copied = round_trip(whole, nn.GRFPrior(**options))
    torch.testing.assert_close(copied.log_likelihood(images), whole.log_likelihood(images))
    half = copy.deepcopy(whole).half()
    assert torch.equal(half.power, whole.power)
    assert torch.equal(half.log_range, whole.log_range)
    wide = nn.GRFPrior().half()
    assert wide(torch.zeros(1, 8, 8).half(), torch.zeros(1, 8, 8).half()).shape == (1,)


def test_errors_of_the_prior() -> None:
    with pytest.raises(ValueError, match="variance: must be finite and positive, got 0"):
        nn.GRFPrior(variance=0)
    with pytest.raises(ValueError, match="range: must be finite and positive, got -1"):
        nn.GRFPrior(range=-1.0)
    with pytest.raises(ValueError, match="shape: must be given with learn='likelihood'"):
        nn.GRFPrior(learn="likelihood")
    with pytest.raises(ValueError, match="update: is for learn='likelihood', got 'gradient'"):
        nn.GRFPrior().update(planes(1, 3))
    with pytest.raises(ValueError, match=r"image: must have shape \(..., 8, 8\), got"):
        nn.GRFPrior(learn="likelihood", shape=(8, 8)).update(planes(1, 3))
    with pytest.raises(ValueError, match="refit: must come after update"):
        nn.GRFPrior(learn="likelihood", shape=(8, 8)).refit()


# The page and the docstrings


def test_examples() -> None:
    modules = ("_ace", "_grf", "_loss", "_pooling", "_whiten")
    for module in modules:
        found = doctest.testmod(importlib.import_module(f"mahal.nn.{module}"))
        assert found.failed == 0
        assert found.attempted > 0
    page = (Path(__file__).parents[1] / "docs" / "nn.md").read_text()
    # A fence would pass for output.
    blocks = "\n\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "docs/nn.md", None, None)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert result.failed == 0
    assert result.attempted > 20


@pytest.mark.cuda
def test_on_a_device() -> None:
    for make, x in modules():
        module = make().eval()
        expected = module(x)
        found = copy.deepcopy(module).cuda()(x.cuda())
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    prior = nn.GRFPrior(learn="likelihood", shape=(16, 20)).cuda()
    prior.update(planes(20, 1).cuda())
    other = nn.GRFPrior(learn="likelihood", shape=(16, 20))
    other.update(planes(20, 1))
    torch.testing.assert_close(prior.range.cpu(), other.range, rtol=1e-4, atol=0)

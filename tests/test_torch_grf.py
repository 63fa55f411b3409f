"""Gaussian random fields inside torch: gradients, tangents, transforms, graphs and training."""

from __future__ import annotations

import doctest
import math
from pathlib import Path
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import tolerance

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def arguments(shape: tuple[int, ...] = (2, 3, 4)) -> tuple[Any, ...]:
    """Mean, log-variance, range, variance."""
    rng = np.random.default_rng(0)
    mean, logvar = rng.standard_normal((2, *shape))
    numbers = (torch.tensor(v, dtype=torch.float64) for v in (0.9, 1.3))
    return torch.from_numpy(mean), torch.from_numpy(0.3 * logvar), *numbers


def with_grad(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


def kl(mean: Any, logvar: Any, length: Any, variance: Any, **options: Any) -> Any:
    return mahal.grf_kl(mean, logvar, range=length, variance=variance, **options)


def likelihood(image: Any, length: Any, variance: Any, **options: Any) -> Any:
    return mahal.grf_log_likelihood(image, range=length, variance=variance, **options)


def plain_kl(mean: Any, logvar: Any, length: Any, variance: Any) -> Any:
    """The closed form in torch, with the sum over images; half-integer smoothness 3/2 only."""
    rows, cols = mean.shape[-2:]
    near = [torch.minimum(torch.arange(n), n - torch.arange(n)).double() for n in (rows, cols)]
    wraps = torch.arange(-25, 26).double()
    i = (near[0][:, None] + rows * wraps)[:, None, :, None]
    j = (near[1][:, None] + cols * wraps)[None, :, None, :]
    # The root has no derivative at zero, and the range is what moves it.
    distance = (i * i + j * j).sqrt()
    a = math.sqrt(3) * distance / length
    base = variance * ((1 + a) * torch.exp(-a)).sum((-2, -1))
    spectrum = torch.fft.fft2(base).real
    power = torch.fft.fft2(mean.to(torch.complex128)).abs().square()
    pixels = rows * cols
    quad = (power / spectrum).sum((-2, -1)) / pixels
    trace = (1 / spectrum).mean() * logvar.exp().sum((-2, -1))
    return (spectrum.log().sum() + quad + trace - logvar.sum((-2, -1)) - pixels) / 2


def test_value_is_that_of_numpy() -> None:
    mean, logvar, length, variance = arguments((2, 6, 8))
    expected = mahal.grf_kl(mean.numpy(), logvar.numpy(), range=0.9, variance=1.3)
    for inputs in ((mean, logvar, 0.9, 1.3), with_grad(mean, logvar, length, variance)):
        np.testing.assert_array_equal(kl(*inputs).detach().numpy(), expected)
    expected = mahal.grf_log_likelihood(mean.numpy(), range=0.9, variance=1.3)
    found = likelihood(*with_grad(mean, length, variance))
    np.testing.assert_array_equal(found.detach().numpy(), expected)


OPTIONS = [
    {},
    {"smoothness": 0.5, "convention": "paper"},
    {"smoothness": 1.2, "normalize": True},
    {"smoothness": 2.5, "kernel": "wrapped", "convention": "paper"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options: dict[str, Any]) -> None:
    mean, logvar, length, variance = arguments()
    length = 0.2 * length if options.get("kernel") == "wrapped" else length
    inputs = with_grad(mean, logvar, length, variance)
    check = torch.autograd.gradcheck
    assert check(lambda *t: kl(*t, **options), inputs, check_forward_ad=True)
    images = (inputs[0], *inputs[2:])
    assert check(lambda *t: likelihood(*t, **options), images, check_forward_ad=True)


def test_gradgradcheck() -> None:
    inputs = with_grad(*arguments((1, 2, 3)))
    assert torch.autograd.gradgradcheck(kl, inputs, check_fwd_over_rev=True)
    images = (inputs[0], *inputs[2:])
    assert torch.autograd.gradgradcheck(likelihood, images, check_fwd_over_rev=True)


def test_opcheck() -> None:
    from mahal._torch.grf import _gradient, _planes, _spectrum_op

    tensors = arguments()
    torch.library.opcheck(_planes.raw, (tensors[0], None, *tensors[2:]))
    torch.library.opcheck(_planes.twin, with_grad(*tensors))
    value, range_slope, variance_slope, tables = _planes.raw(*tensors)
    saved = (torch.ones_like(value), *tensors, tables, range_slope, variance_slope)
    torch.library.opcheck(_gradient.raw, saved, {"wanted": 5})
    torch.library.opcheck(_spectrum_op.raw, (tensors[2].log(),), {"rows": 4, "cols": 3})


def loss(*tensors: Any) -> Any:
    return kl(*tensors).square().sum()


def plain_loss(*tensors: Any) -> Any:
    return plain_kl(*tensors).square().sum()


EVERY = (0, 1, 2, 3)


def test_compile() -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = with_grad(*arguments())
    compiled(*inputs).backward()
    for tensor, grad in zip(inputs, torch.func.grad(plain_loss, EVERY)(*arguments()), strict=True):
        torch.testing.assert_close(tensor.grad, grad)
    mean, logvar, length, variance = arguments((5, 2, 3, 4))
    mapped = torch.compile(
        lambda m, v: torch.vmap(kl, (0, 0, None, None))(m, v, length, variance),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(mapped(mean, logvar), plain_kl(mean, logvar, length, variance))


def test_func() -> None:
    tensors = arguments((2, 3, 4))
    torch.testing.assert_close(
        torch.func.grad(loss, EVERY)(*tensors), torch.func.grad(plain_loss, EVERY)(*tensors)
    )
    axes = (0, 0, None, None)
    mapped = [torch.vmap(torch.func.grad(f, EVERY), axes)(*tensors) for f in (loss, plain_loss)]
    torch.testing.assert_close(*mapped)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    torch.testing.assert_close(
        torch.func.jvp(kl, tensors, tangents), torch.func.jvp(plain_kl, tensors, tangents)
    )
    small = arguments((1, 2, 2))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(kl, EVERY)(*small), transform(plain_kl, EVERY)(*small))
    torch.testing.assert_close(
        torch.func.hessian(loss, EVERY)(*small), torch.func.hessian(plain_loss, EVERY)(*small)
    )


def test_vmap_over_the_parameters() -> None:
    mean, logvar, length, variance = arguments((3, 4))
    lengths = length * torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    found = torch.vmap(kl, (None, None, 0, None))(mean, logvar, lengths, variance)
    expected = torch.stack([kl(mean, logvar, r, variance) for r in lengths])
    assert torch.equal(found, expected)


def test_the_prior_of_the_divergence_may_stand_still() -> None:
    inputs = with_grad(*arguments())
    value = kl(*inputs, prior_gradient="stop")
    assert torch.equal(value, kl(*inputs))
    value.sum().backward()
    assert inputs[0].grad is not None
    assert inputs[2].grad is None
    assert inputs[3].grad is None
    likelihood(inputs[0], *inputs[2:]).sum().backward()
    assert inputs[2].grad != 0
    assert inputs[3].grad != 0


def test_gradients_of_the_fused_call() -> None:
    inputs = with_grad(*arguments())
    direct = mahal.grf_kl(
        inputs[0].detach(), inputs[1].detach(), range=0.9, variance=1.3, gradients=True,
        reduction="sum",
    )  # fmt: skip
    kl(*inputs, reduction="sum").backward()
    for found, tensor in zip(direct[1:], inputs, strict=True):
        torch.testing.assert_close(found.double(), tensor.grad, rtol=1e-14, atol=1e-14)
    with pytest.raises(ValueError, match=r"^grf_kl: mean: must not require grad"):
        mahal.grf_kl(inputs[0], inputs[1].detach(), range=0.9, gradients=True)


def test_strides_broadcasts_and_empty_batches() -> None:
    mean, logvar, length, variance = arguments((2, 6, 5))
    views = (mean.mT.contiguous().mT, mean[:1].expand(2, 6, 5))
    for view in views:
        leaf = view.detach().requires_grad_()
        single = logvar[0, 0, 0].clone().requires_grad_()
        kl(leaf, single, length, variance).sum().backward()
        other = with_grad(view.contiguous(), logvar[0, 0, 0].expand(2, 6, 5).contiguous())
        kl(*other, length, variance).sum().backward()
        torch.testing.assert_close(leaf.grad, other[0].grad, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(single.grad, other[1].grad.sum(), rtol=1e-13, atol=1e-13)
    empty = with_grad(mean[:0], logvar[:0], length)
    kl(*empty, variance).sum().backward()
    assert empty[0].grad.shape == (0, 6, 5)
    assert empty[2].grad == 0


def test_half_precision_and_autocast() -> None:
    mean, logvar, _, _ = arguments((2, 8, 8))
    mean, logvar = mean.bfloat16().requires_grad_(), logvar.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mahal.grf_kl(mean, logvar, range=1.0)
        value.sum().backward()
    assert value.dtype == torch.float32
    assert mean.grad.dtype == torch.bfloat16
    expected = mahal.grf_kl(mean.detach().float(), logvar.float(), range=1.0)
    assert torch.equal(value, expected)


def test_float32_gradients() -> None:
    inputs = with_grad(*(t.float() for t in arguments((3, 32, 32))))
    kl(*inputs).sum().backward()
    right = with_grad(*(t.double().detach() for t in inputs))
    kl(*right).sum().backward()
    for found, expected in zip(inputs, right, strict=True):
        assert found.grad.dtype == torch.float32
        # Ten stages there and ten back, and a sum over pixels that cancels.
        bound = tolerance(np.float32, terms=20) * float(expected.grad.abs().max())
        if found.ndim == 0:
            bound += tolerance(np.float32, terms=20) * 3 * 32 * 32 / found.item()
        assert float((found.grad.double() - expected.grad).abs().max()) <= bound


def test_spectra_and_samples_have_gradients() -> None:
    length, variance = with_grad(*arguments()[2:])
    assert torch.autograd.gradcheck(
        lambda r, v: mahal.grf_spectrum((3, 4), range=r, variance=v), (length, variance)
    )

    def draws(r: Any, v: Any) -> Any:
        return mahal.grf_sample((2, 3, 4), range=r, variance=v, generator=7)

    assert torch.autograd.gradcheck(draws, (length, variance))
    fixed = mahal.grf_sample((2, 3, 4), range=1.0, generator=torch.Generator().manual_seed(7))
    assert torch.equal(fixed, draws(torch.tensor(1.0), 1.0))


def test_training_reaches_the_fit() -> None:
    images = mahal.grf_sample((6, 24, 24), range=1.8, variance=0.4, generator=2)
    fit = mahal.grf_fit(mahal.grf_power(images), (24, 24))
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=40, line_search_fn="strong_wolfe")
    data = torch.from_numpy(images)

    def closure() -> Any:
        optimizer.zero_grad()
        value = -likelihood(data, *parameters.exp(), reduction="mean")
        value.backward()
        return value

    optimizer.step(closure)
    length, variance = parameters.exp().tolist()
    # Both stop where the likelihood is flat to rounding: at the root of it in the parameters.
    assert length == pytest.approx(fit.range, rel=1e-5)
    assert variance == pytest.approx(fit.variance, rel=1e-5)


def arrays(*tensors: Any) -> tuple[np.ndarray, ...]:
    return tuple(t.detach().numpy() for t in tensors)


@pytest.mark.parametrize(
    ("call", "error", "argument"),
    [
        (lambda m, v: kl(m, v, torch.tensor(1), 1.0), TypeError, "range"),
        (lambda m, v: kl(m, v, torch.ones(2), 1.0), ValueError, "range"),
        (lambda m, v: kl(m, v, torch.tensor(-1.0), 1.0), ValueError, "range"),
        (lambda m, v: kl(m, v, 1.0, torch.tensor(0.0)), ValueError, "variance"),
        (
            lambda m, v: kl(m.detach().numpy(), v.numpy(), torch.tensor(1.0), 1.0),
            TypeError,
            "range",
        ),
        (lambda m, v: kl(m.long(), v, 1.0, 1.0), TypeError, "mean"),
        (lambda m, v: kl(m, v.numpy(), 1.0, 1.0), TypeError, "logvar"),
        (lambda m, v: kl(m, v.float(), 1.0, 1.0), TypeError, "logvar"),
        (lambda m, v: kl(m.to("meta"), v, 1.0, 1.0), TypeError, "mean"),
        (
            lambda m, v: kl(m, v, torch.tensor(50.0), 1.0, kernel="wrapped"),
            ValueError,
            "range",
        ),
        (
            lambda m, v: kl(m, v, torch.tensor(1.0).requires_grad_(), 1.0, compat_eps=True),
            ValueError,
            "compat_eps",
        ),
    ],
)
def test_errors(call: Any, error: type[Exception], argument: str) -> None:
    mean, logvar = arguments()[:2]
    for leaf in (mean, mean.clone().requires_grad_()):
        with pytest.raises(error, match=rf"^grf_kl: {argument}: .*, got "):
            call(leaf, logvar)


@pytest.mark.cuda
def test_arrays_on_two_devices() -> None:
    mean, logvar = arguments()[:2]
    with pytest.raises(ValueError, match=r"^grf_kl: logvar: must be on the device"):
        kl(mean.cuda(), logvar, 1.0, 1.0)


def test_examples_of_the_page() -> None:
    page = Path(__file__).parents[1] / "docs" / "grf.md"
    # Tables and formulas between the examples are no output of theirs.
    text = page.read_text().replace("```", "\n")
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    result = doctest.DocTestRunner().run(test)
    assert result.failed == 0
    assert result.attempted > 10

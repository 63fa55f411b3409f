"""Local RX, ACE and matched filter inside torch: gradients, tangents, transforms and graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import backend, backends, random_scene

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

IMAGE = torch.from_numpy(
    random_scene((5, 6, 2), np.random.default_rng(0), condition=4.0, offset=1.0, scale=1.0)
)
TARGET = torch.tensor([[2.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)


def symmetric(matrix: Any) -> Any:
    """Finite differences move single entries, the ops take symmetric matrices only."""
    return (matrix + matrix.mT) / 2


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "rx": (lambda x: mahal.rx(x, window=(1, 5)), (IMAGE,)),
    "rx, fixed covariance": (
        lambda x, c: mahal.rx(x, window=3, covariance=symmetric(c)),
        (IMAGE, COVARIANCE),
    ),
    "rx, reflected": (
        lambda x: mahal.rx(x, window=(1, 5), center=False, border="reflect"),
        (IMAGE,),
    ),
    "ace": (lambda x, t: mahal.ace(x, t, window=(1, 5)), (IMAGE, TARGET)),
    "ace, fixed covariance": (
        lambda x, t, c: mahal.ace(x, t, window=3, covariance=symmetric(c)),
        (IMAGE, TARGET, COVARIANCE),
    ),
    "ace, signed": (
        lambda x, t: mahal.ace(x, t[1], window=(1, 5), signed=True, center=False),
        (IMAGE, TARGET),
    ),
    "ace, subspace": (
        lambda x, t: mahal.ace(x, t[:1], window=(1, 5), subspace=True),
        (IMAGE, TARGET),
    ),
    "matched filter": (lambda x, t: mahal.matched_filter(x, t[0], window=5), (IMAGE, TARGET)),
    "matched filter, normalized": (
        lambda x, t: mahal.matched_filter(x, t, window=5, normalized=True),
        (IMAGE, TARGET),
    ),
}


def with_grad(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize("name", CALLS)
def test_gradients(name: str) -> None:
    function, tensors = CALLS[name]
    inputs = with_grad(tensors)
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)


@pytest.mark.parametrize("name", ["rx", "ace, fixed covariance", "ace, subspace"])
def test_second_derivatives(name: str) -> None:
    function, tensors = CALLS[name]
    assert torch.autograd.gradgradcheck(function, with_grad(tensors), fast_mode=True)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_have_the_bits_of_arrays(name: str, dtype: Any) -> None:
    function, tensors = CALLS[name]
    tensors = tuple(t.to(dtype) for t in tensors)
    found = function(*with_grad(tensors))
    assert found.requires_grad
    with torch.no_grad():
        expected = function(*tensors)
    assert torch.equal(found, expected)
    assert expected.dtype == dtype


def test_single_precision_gradients() -> None:
    for function, tensors in CALLS.values():
        wide = with_grad(tensors)
        near = tuple(t.detach().float().requires_grad_() for t in tensors)
        for inputs in (wide, near):
            function(*inputs).sum().backward()
        for a, b in zip(near, wide, strict=True):
            assert a.grad.dtype == torch.float32
            torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-4, atol=1e-4)


def plain(image: Any, target: Any = None) -> Any:
    """Local RX or ACE of the window (1, 5), as torch composes it."""
    rows, cols = image.shape[-3:-1]

    def held(n: int, side: int) -> Any:
        start = (torch.arange(n) - side // 2).clamp(0, n - side)
        position = torch.arange(n)
        return (position >= start[:, None]) & (position < start[:, None] + side)

    weight = (held(rows, 5)[:, None, :, None] & held(cols, 5)[None, :, None, :]).double()
    weight = weight - (held(rows, 1)[:, None, :, None] & held(cols, 1)[None, :, None, :]).double()
    mean = torch.einsum("rcuv,uvb->rcb", weight, image) / 24
    apart = image - mean[..., None, None, :]
    covariance = torch.einsum("rcuv,rcuvi,rcuvj->rcij", weight, apart, apart) / 23
    inverse = torch.linalg.inv(covariance)
    d = image - mean
    u = (inverse @ d[..., None])[..., 0]
    energy = (d * u).sum(-1)
    if target is None:
        return energy
    w = target - mean
    return (w * u).sum(-1) ** 2 / ((w[..., None, :] @ inverse @ w[..., None])[..., 0, 0] * energy)


def loss(image: Any) -> Any:
    return mahal.rx(image, window=(1, 5)).pow(2).sum()


def plain_loss(image: Any) -> Any:
    return plain(image).pow(2).sum()


def test_func() -> None:
    images = torch.stack([IMAGE, IMAGE.flip(0), IMAGE**2])
    torch.testing.assert_close(torch.func.grad(loss)(IMAGE), torch.func.grad(plain_loss)(IMAGE))
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(loss))(images),
        torch.stack([torch.func.grad(plain_loss)(x) for x in images]),
    )
    moved = [
        torch.func.jvp(f, (IMAGE, TARGET[0]), (IMAGE.cos(), TARGET[1]))
        for f in (lambda x, t: mahal.ace(x, t, window=(1, 5)), plain)
    ]
    torch.testing.assert_close(*moved)
    jacobians = [torch.func.jacrev(f)(IMAGE) for f in (lambda x: mahal.rx(x, window=(1, 5)), plain)]
    torch.testing.assert_close(*jacobians)


def test_hessian() -> None:
    # Of one entry, against the slope of the gradient.
    (image,) = with_grad((IMAGE,))
    (grad,) = torch.autograd.grad(loss(image), image, create_graph=True)
    (row,) = torch.autograd.grad(grad[2, 3, 0], image)
    (other,) = torch.autograd.grad(plain_loss(image), image, create_graph=True)
    (want,) = torch.autograd.grad(other[2, 3, 0], image)
    torch.testing.assert_close(row, want)


@pytest.mark.parametrize("name", ["rx", "ace, fixed covariance"])
def test_compile(name: str) -> None:
    function, tensors = CALLS[name]
    compiled = torch.compile(lambda *a: function(*a).sum(), fullgraph=True, backend="aot_eager")
    inputs, again = with_grad(tensors), with_grad(tensors)
    compiled(*inputs).backward()
    function(*again).sum().backward()
    for a, b in zip(inputs, again, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_opcheck() -> None:
    from mahal._torch.window_scores import window_scores, window_scores_backward

    options = {"score": "ace", "window": [1, 5], "border": "shift", "center": True}
    given = (IMAGE, TARGET, COVARIANCE, torch.ones(5, 6, dtype=torch.bool))
    torch.library.opcheck(window_scores.raw, given, {**options, "singular": "load"})
    twin = (*with_grad(given[:3]), None)
    torch.library.opcheck(window_scores.twin, twin, {**options, "singular": "load"})
    scores, status = window_scores(*given, **options, singular="load")
    for needs in ([True, True], [False, True]):
        torch.library.opcheck(
            window_scores_backward.raw, (scores, *given, status), {**options, "needs": needs}
        )


@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
def test_pixels_without_a_score_of_their_own_pass_nothing() -> None:
    rng = np.random.default_rng(1)
    image = torch.from_numpy(random_scene((12, 13, 2), rng))
    image[2:8, 2:8] = image[4, 4].clone()
    image[10, 10] = float("nan")
    mask = torch.from_numpy(rng.random((12, 13)) < 0.9)
    mask[10, 10] = True
    for singular in ("load", "nan"):
        (x,) = with_grad((image,))
        scores, status = mahal.rx(
            x, window=(1, 5), mask=mask, singular=singular, return_status=True
        )
        assert {2, 3, 4} <= set(status.unique().tolist())
        good = status == 0
        value = scores[good].sum() + scores[~good].nansum()
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        assert torch.isfinite(grad).all()
        assert (grad[~mask] == 0).all()
        (second,) = torch.autograd.grad(grad.pow(2).sum(), x)
        assert torch.isfinite(second).all()
        (alone,) = torch.autograd.grad(mahal.rx(x, window=(1, 5), mask=mask)[good].sum(), x)
        torch.testing.assert_close(grad, alone)


def test_layouts_and_autocast() -> None:
    (leaf,) = with_grad((IMAGE.permute(2, 1, 0).contiguous(),))
    loss(leaf.permute(2, 1, 0)).backward()
    torch.testing.assert_close(leaf.grad.permute(2, 1, 0), torch.func.grad(loss)(IMAGE))
    half = IMAGE.to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half)
    value.backward()
    assert value.dtype == torch.float32
    wide = half.detach().float().requires_grad_()
    loss(wide).backward()
    torch.testing.assert_close(half.grad, wide.grad.to(torch.bfloat16))


def test_what_has_no_gradient() -> None:
    (image,) = with_grad((IMAGE,))
    with pytest.raises(ValueError, match=r"rx: image: must not require grad"):
        mahal.rx(image, window=5, estimator="oas")
    with pytest.raises(ValueError, match=r"rx: image: must not require grad"):
        mahal.rx(image.to(torch.complex128), window=5)
    with pytest.raises(ValueError, match=r"rx: background: cannot be combined with window"):
        mahal.rx(image, window=5, background=IMAGE)
    with pytest.raises(mahal.SingularError, match=r"rx: image: every covariance"):
        mahal.rx(image * 0 + 1, window=5, singular="raise")


def gradients_on(device: str, name: str) -> list[Any]:
    function, tensors = CALLS[name]
    inputs = with_grad(tuple(t.to(device) for t in tensors))
    function(*inputs).square().sum().backward()
    return [t.grad.cpu() for t in inputs]


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
@pytest.mark.parametrize("name", CALLS)
def test_kernels_of_devices(name: str) -> None:
    want = gradients_on("cpu", name)
    with backend("emu"):
        found = gradients_on("cpu", name)
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right)


@pytest.mark.cuda
@pytest.mark.parametrize("name", CALLS)
def test_on_a_device(name: str) -> None:
    for got, right in zip(gradients_on("cuda", name), gradients_on("cpu", name), strict=True):
        torch.testing.assert_close(got, right)

"""structural_similarity inside torch: gradients, tangents, transforms and graphs."""

from __future__ import annotations

from typing import Any

import mahal
import numpy as np
import pytest

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

BORDERS = ("reflect", "clip", "shift", "valid")


def images(shape: tuple[int, ...] = (6, 7), dtype: Any = torch.float64) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    first = rng.standard_normal(shape) + 2.0
    second = 0.7 * first + 0.5 * rng.standard_normal(shape)
    return torch.from_numpy(first).to(dtype), torch.from_numpy(second).to(dtype)


def similarity(first: Any, second: Any, **params: Any) -> Any:
    score = mahal.structural_similarity(first, second, 3, data_range=2.0, **params)
    # The edges of "valid" are no numbers.
    return score[1:-1, 1:-1] if params.get("border") == "valid" else score


def with_grad(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("sigma", [None, 0.8])
def test_gradients(border: str, sigma: float | None) -> None:
    def function(first: Any, second: Any) -> Any:
        return similarity(first, second, border=border, sigma=sigma)

    inputs = with_grad(*images())
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


def test_every_entry() -> None:
    inputs = with_grad(*images((4, 5, 2)))
    assert torch.autograd.gradcheck(lambda x, y: similarity(x, y, channels="each"), inputs)


def test_values_and_layouts() -> None:
    first, second = images((20, 30, 3), torch.float32)
    expected = mahal.structural_similarity(first.numpy(), second.numpy(), data_range=2.0)
    x, y = with_grad(first, second)
    score = mahal.structural_similarity(x, y, data_range=2.0)
    torch.testing.assert_close(score.detach(), torch.from_numpy(expected))
    score.sum().backward()
    # Channels first in memory.
    planes = first.permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    mahal.structural_similarity(planes, second, data_range=2.0).sum().backward()
    torch.testing.assert_close(planes.grad, x.grad, rtol=0, atol=0)
    half = first.half().requires_grad_()
    mahal.structural_similarity(half, second.half(), data_range=2.0).sum().backward()
    assert half.grad.dtype == torch.float16
    with torch.no_grad():
        assert torch.equal(mahal.structural_similarity(x, y, data_range=2.0), score)
    # The weight of an expanded image is the sum over its copies.
    one = first[:, :, :1].clone().requires_grad_()
    mahal.structural_similarity(one.expand(-1, -1, 3), second, data_range=2.0).sum().backward()
    assert one.grad.shape == (20, 30, 1)


def test_compile() -> None:
    def loss(first: Any, second: Any) -> Any:
        return (1 - similarity(first, second, sigma=1.0)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = with_grad(*images()), with_grad(*images())
    compiled(*found).backward()
    loss(*expected).backward()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_opcheck() -> None:
    from mahal._torch.structural_similarity import (
        structural_similarity,
        structural_similarity_backward,
    )

    first, second = images((8, 9, 2))
    torch.library.opcheck(structural_similarity.raw, (first, second))
    torch.library.opcheck(structural_similarity.twin, with_grad(first, second), {"window": 5})
    torch.library.opcheck(
        structural_similarity_backward.raw, (first, second, first), {"need_second": False}
    )


def test_func() -> None:
    first, second = images((3, 6, 7))

    def loss(x: Any, y: Any) -> Any:
        return similarity(x, y).pow(2).sum()

    every = (0, 1)
    mapped = torch.vmap(torch.func.grad(loss, every))(first, second)
    apart = [torch.func.grad(loss, every)(x, y) for x, y in zip(first, second, strict=True)]
    for k in every:
        torch.testing.assert_close(mapped[k], torch.stack([pair[k] for pair in apart]))
    one = torch.vmap(torch.func.grad(loss), (0, None))(first, second[0])
    torch.testing.assert_close(one[1], torch.func.grad(loss)(first[1], second[0]))
    x, y = first[0], second[0]
    jacobian = torch.func.jacrev(similarity)(x, y)
    torch.testing.assert_close(torch.func.jacfwd(similarity)(x, y), jacobian)
    directions = (torch.randn_like(x), torch.randn_like(x))
    _, tangent = torch.func.jvp(similarity, (x, y), directions)
    h = 1e-6
    up, down = (similarity(x + s * directions[0], y + s * directions[1]) for s in (h, -h))
    torch.testing.assert_close(tangent, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        torch.func.hessian(loss)(x, y), torch.func.jacrev(torch.func.jacrev(loss))(x, y)
    )


@pytest.mark.cuda
@pytest.mark.parametrize("border", BORDERS)
def test_on_a_device(border: str) -> None:
    grads = []
    for device in ("cpu", "cuda"):
        inputs = with_grad(*(t.to(device) for t in images((50, 140, 3))))
        similarity(*inputs, border=border).sum().backward()
        grads.append([t.grad.cpu() for t in inputs])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)

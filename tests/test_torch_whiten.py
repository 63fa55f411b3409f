"""whiten inside torch: gradients, tangents, transforms and graphs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, random_spd

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

BANDS = 3


def arguments(shape: tuple[int, ...] = (4, BANDS), *, dtype: Any = None) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    circular = dtype is not None and dtype.is_complex
    x = random_scene(shape, rng, offset=1.0, scale=1.0, circular=circular)
    mean = x.reshape(-1, shape[-1]).mean(axis=0) + 0.25
    covariance = random_spd(shape[-1], 10.0, rng, hermitian=circular)
    tensors = (torch.from_numpy(np.asarray(a)).to(dtype) for a in (x, mean, covariance))
    return tuple(tensors)


def function(x: Any, mean: Any, covariance: Any) -> Any:
    # Finite differences move single entries, the op takes Hermitian matrices only.
    return mahal.whiten(x, mean, (covariance + covariance.mH) / 2)


def plain(x: Any, mean: Any, covariance: Any) -> Any:
    factor = torch.linalg.cholesky((covariance + covariance.mH) / 2)
    return torch.linalg.solve_triangular(factor, (x - mean)[..., None], upper=False)[..., 0]


def with_grad(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


DTYPES = [torch.float64, torch.complex128]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradcheck(dtype: Any) -> None:
    assert torch.autograd.gradcheck(
        function, with_grad(*arguments(dtype=dtype)), check_forward_ad=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradgradcheck(dtype: Any) -> None:
    assert torch.autograd.gradgradcheck(
        function, with_grad(*arguments((2, 2), dtype=dtype)), check_fwd_over_rev=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: Any) -> None:
    from mahal._torch.whiten import whiten

    torch.library.opcheck(whiten.raw, arguments(dtype=dtype))
    torch.library.opcheck(whiten.twin, with_grad(*arguments(dtype=dtype)))
    y, factor = whiten.raw(*arguments())
    torch.library.opcheck(
        torch.ops.mahal.whiten_backward.default, (torch.ones_like(y), None, y, factor)
    )


def loss(x: Any, mean: Any, covariance: Any) -> Any:
    return function(x, mean, covariance).abs().pow(3).sum()


def plain_loss(x: Any, mean: Any, covariance: Any) -> Any:
    return plain(x, mean, covariance).abs().pow(3).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_compile(dtype: Any) -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    inputs = with_grad(*arguments(dtype=dtype))
    compiled(*inputs).backward()
    expected = torch.func.grad(plain_loss, argnums=(0, 1, 2))(*arguments(dtype=dtype))
    for tensor, grad in zip(inputs, expected, strict=True):
        torch.testing.assert_close(tensor.grad, grad)


def test_compile_of_vmap() -> None:
    x, mean, covariance = arguments((5, 4, BANDS))
    compiled = torch.compile(
        lambda a: torch.vmap(function, (0, None, None))(a, mean, covariance),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(compiled(x), plain(x, mean, covariance))


def test_compile_imports_the_ops() -> None:
    code = """
import mahal, sys
assert "torch" not in sys.modules
import torch
f = torch.compile(lambda x: mahal.whiten(x, torch.zeros(2), torch.eye(2)).sum(),
                  fullgraph=True, backend="aot_eager")
x = torch.ones(3, 2, requires_grad=True)
f(x).backward()
assert torch.equal(x.grad, torch.ones(3, 2))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_func(dtype: Any) -> None:
    tensors = arguments((5, 4, BANDS), dtype=dtype)
    every = (0, 1, 2)
    pairs = [(torch.func.grad(f, every), f is loss) for f in (loss, plain_loss)]
    torch.testing.assert_close(pairs[0][0](*tensors), pairs[1][0](*tensors))
    mapped = [
        torch.vmap(torch.func.grad(f, every), (0, None, None))(*tensors) for f in (loss, plain_loss)
    ]
    torch.testing.assert_close(*mapped)
    tangents = tuple(torch.randn_like(t) for t in tensors)
    moved = [torch.func.jvp(f, tensors, tangents) for f in (function, plain)]
    torch.testing.assert_close(*moved)
    if not dtype.is_complex:
        small = arguments((2, 2))
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(
                transform(function, every)(*small), transform(plain, every)(*small)
            )
        torch.testing.assert_close(
            torch.func.hessian(loss, every)(*small), torch.func.hessian(plain_loss, every)(*small)
        )


def test_vmap_over_every_argument() -> None:
    x, mean, covariance = arguments((5, 4, BANDS))
    means = mean + torch.arange(5.0)[:, None]
    covariances = covariance * torch.arange(1.0, 6.0)[:, None, None]
    found = torch.vmap(function)(x, means, covariances)
    expected = torch.stack([function(*a) for a in zip(x, means, covariances, strict=True)])
    assert torch.equal(found, expected)
    empty = torch.vmap(function)(x[:0], means[:0], covariances[:0])
    assert empty.shape == (0, 4, BANDS)

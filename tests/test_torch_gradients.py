"""Gradients, tangents, transforms and graphs of the ops with a global background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, random_spd

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

Tensors = tuple[Any, ...]


def hermitian(matrix: Any) -> Any:
    """Finite differences move single entries, the ops take Hermitian matrices only."""
    return (matrix + matrix.mH) / 2


def plain_background(samples: Any, center: bool = True, ddof: float = 1) -> Tensors:
    rows = samples.reshape(-1, samples.shape[-1])
    mean = rows.mean(0) if center else torch.zeros_like(rows[0])
    moved = rows - mean
    divisor = len(rows) - (ddof if center else 0)
    return mean, moved.mT @ moved.conj() / divisor


def plain_whiten(x: Any, mean: Any, covariance: Any) -> Any:
    factor = torch.linalg.cholesky(hermitian(covariance))
    return torch.linalg.solve_triangular(factor, (x - mean)[..., None], upper=False)[..., 0]


def plain_distance(x: Any, mean: Any, covariance: Any) -> Any:
    return plain_whiten(x, mean, covariance).abs().square().sum(-1)


def plain_matched(image: Any, target: Any, mean: Any, covariance: Any, score: str = "ace") -> Any:
    y = plain_whiten(image, mean, covariance)
    w = plain_whiten(target, mean, covariance)
    product = y @ w.mH
    b, c = y.abs().square().sum(-1)[..., None], w.abs().square().sum(-1)
    if score == "ace":
        return product.abs().square() / (b * c)
    if score == "signed":
        return product / (b * c).sqrt()
    size = product.abs() if image.is_complex() else product
    return size / (c.sqrt() if score == "normalized" else c)


def plain_cholesky(a: Any, loading: float = 0.0) -> Any:
    a = hermitian(a)
    trace = a.diagonal(dim1=-2, dim2=-1).real.mean(-1)[..., None, None]
    return torch.linalg.cholesky(a + loading * trace * torch.eye(a.shape[-1], dtype=a.dtype))


class Op(NamedTuple):
    function: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: Callable[[np.random.Generator, bool], tuple[np.ndarray, ...]]
    field: str = "both"  # "real": not for complex numbers


def matrices(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    return (np.stack([random_spd(3, 10.0, rng, hermitian=circular) for _ in range(4)]),)


def pixels(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    return (random_scene((4, 3, 3), rng, offset=1.0, scale=1.0, circular=circular),)


def fixed(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    (x,) = pixels(rng, circular)
    return x, x.mean((0, 1)) + 0.25, random_spd(3, 10.0, rng, hermitian=circular)


def with_target(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    (x,) = pixels(rng, circular)
    return x, random_scene((2, 3), rng, offset=2.0, scale=1.0, circular=circular)


def with_covariance(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    return (*with_target(rng, circular), random_spd(3, 10.0, rng, hermitian=circular))


def with_background(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    other = random_scene((9, 3), rng, offset=1.0, scale=1.0, circular=circular)
    return (*with_target(rng, circular), other)


OPS = {
    "cholesky": Op(lambda a: mahal.cholesky(hermitian(a)), plain_cholesky, matrices),
    "cholesky loaded": Op(
        lambda a: mahal.cholesky(hermitian(a), loading=0.1),
        lambda a: plain_cholesky(a, 0.1),
        matrices,
    ),
    "whiten": Op(lambda x, m, s: mahal.whiten(x, m, hermitian(s)), plain_whiten, fixed),
    "mahalanobis": Op(lambda x, m, s: mahal.mahalanobis(x, m, hermitian(s)), plain_distance, fixed),
    "mean_covariance": Op(mahal.mean_covariance, plain_background, pixels),
    "rx": Op(mahal.rx, lambda x: plain_distance(x, *plain_background(x)), pixels),
    "rx without mean": Op(
        lambda x: mahal.rx(x, center=False),
        lambda x: plain_distance(x, *plain_background(x, False)),
        pixels,
    ),
    "rx background": Op(
        lambda x, _, other: mahal.rx(x, background=other),
        lambda x, _, other: plain_distance(x, *plain_background(other)),
        with_background,
    ),
    "rx covariance": Op(
        lambda x, _, s: mahal.rx(x, covariance=hermitian(s)),
        lambda x, _, s: plain_distance(x, plain_background(x)[0], s),
        with_covariance,
    ),
    "ace": Op(mahal.ace, lambda x, t: plain_matched(x, t, *plain_background(x)), with_target),
    "ace background": Op(
        lambda x, t, other: mahal.ace(x, t, background=other),
        lambda x, t, other: plain_matched(x, t, *plain_background(other)),
        with_background,
    ),
    "ace covariance": Op(
        lambda x, t, s: mahal.ace(x, t[0], covariance=hermitian(s)),
        lambda x, t, s: plain_matched(x, t, plain_background(x)[0], s)[..., 0],
        with_covariance,
    ),
    "signed ace": Op(
        lambda x, t: mahal.ace(x, t, signed=True),
        lambda x, t: plain_matched(x, t, *plain_background(x), score="signed"),
        with_target,
        "real",
    ),
    "matched_filter": Op(
        mahal.matched_filter,
        lambda x, t: plain_matched(x, t, *plain_background(x), score="filter"),
        with_target,
    ),
    "normalized matched_filter": Op(
        lambda x, t: mahal.matched_filter(x, t, normalized=True),
        lambda x, t: plain_matched(x, t, *plain_background(x), score="normalized"),
        with_target,
    ),
    "cem": Op(
        mahal.cem,
        lambda x, t: plain_matched(x, t, *plain_background(x, False), score="filter"),
        with_target,
    ),
}
CASES = [
    pytest.param(name, dtype, id=f"{name} {dtype}")
    for name, op in OPS.items()
    for dtype in ("float64", "complex128")
    if op.field == "both" or dtype == "float64"
]

SOME = [
    pytest.param(name, dtype, id=f"{name} {dtype}")
    for name, dtype in [
        ("cholesky loaded", "float64"),
        ("whiten", "float64"),
        ("mahalanobis", "complex128"),
        ("mean_covariance", "float64"),
        ("rx", "float64"),
        ("ace covariance", "complex128"),
    ]
]


def tensors_of(op: Op, dtype: str, *, grad: bool = False) -> Tensors:
    arrays = op.arguments(np.random.default_rng(0), dtype.startswith("complex"))
    kind = getattr(torch, dtype)
    return tuple(torch.from_numpy(a).to(kind).requires_grad_(grad) for a in arrays)


def loss_of(function: Callable[..., Any]) -> Callable[..., Any]:
    def loss(*tensors: Any) -> Any:
        outputs = function(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum((o.abs() ** 3 + (o * (0.5 + 0.25j)).real).sum() for o in outputs)

    return loss


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_gradients(name: str, dtype: str) -> None:
    op = OPS[name]
    tensors = tensors_of(op, dtype, grad=True)
    found = torch.autograd.grad(loss_of(op.function)(*tensors), tensors, allow_unused=True)
    wanted = torch.autograd.grad(loss_of(op.plain)(*tensors), tensors, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_second_derivatives(name: str, dtype: str) -> None:
    op = OPS[name]
    tensors = tensors_of(op, dtype, grad=True)
    along = [torch.from_numpy(np.cos(np.arange(t.numel()))).reshape(t.shape) for t in tensors]
    products = []
    for function in (op.function, op.plain):
        loss = loss_of(function)(*tensors)
        first = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
        total = sum((g * d).real.sum() for g, d in zip(first, along, strict=True) if g is not None)
        products.append(torch.autograd.grad(total, tensors, allow_unused=True))
    for one, other in zip(*products, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "dtype"), SOME)
def test_finite_differences(name: str, dtype: str) -> None:
    op = OPS[name]
    # In fast mode torch compares random projections of the Jacobian.
    assert torch.autograd.gradcheck(
        op.function, tensors_of(op, dtype, grad=True), fast_mode=True, check_forward_ad=True
    )


@pytest.mark.parametrize("name", ["cholesky", "whiten", "mahalanobis"])
def test_second_finite_differences(name: str) -> None:
    op = OPS[name]
    tensors = tuple(t[:1].detach().requires_grad_() for t in tensors_of(op, "float64"))
    if name != "cholesky":
        tensors = (tensors[0], *tensors_of(op, "float64", grad=True)[1:])
    assert torch.autograd.gradgradcheck(
        op.function, tensors, fast_mode=True, check_fwd_over_rev=True
    )


def as_tuple(value: Any) -> Tensors:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_values_are_those_of_arrays(name: str, dtype: str) -> None:
    op = OPS[name]
    for precision in (dtype, {"float64": "float32", "complex128": "complex64"}[dtype]):
        tensors = tensors_of(op, precision)
        wanted = as_tuple(op.function(*tensors))
        found = as_tuple(op.function(*(t.clone().requires_grad_() for t in tensors)))
        for one, other in zip(found, wanted, strict=True):
            assert one.requires_grad
            assert torch.equal(one, other)


@pytest.mark.parametrize(("name", "dtype"), SOME)
def test_compile(name: str, dtype: str) -> None:
    op = OPS[name]
    torch.compiler.reset()
    loss = torch.compile(loss_of(op.function), fullgraph=True, backend="aot_eager")
    tensors = tensors_of(op, dtype, grad=True)
    found = torch.autograd.grad(loss(*tensors), tensors, allow_unused=True)
    wanted = torch.autograd.grad(loss_of(op.function)(*tensors), tensors, allow_unused=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_transforms(name: str, dtype: str) -> None:
    op = OPS[name]
    tensors = tensors_of(op, dtype)
    every = tuple(range(len(tensors)))
    torch.testing.assert_close(
        torch.func.grad(loss_of(op.function), every)(*tensors),
        torch.func.grad(loss_of(op.plain), every)(*tensors),
    )
    tangents = tuple(torch.randn_like(t) for t in tensors)
    torch.testing.assert_close(
        torch.func.jvp(op.function, tensors, tangents), torch.func.jvp(op.plain, tensors, tangents)
    )
    several = tuple(torch.stack([t, t * 1.25, t * 0.75]) for t in tensors)
    for dims in ((0,) * len(every), (0,) + (None,) * (len(every) - 1)):
        chosen = tuple(s if d == 0 else t for s, t, d in zip(several, tensors, dims, strict=True))
        found, wanted = (
            torch.vmap(torch.func.grad(loss_of(f), every), dims)(*chosen)
            for f in (op.function, op.plain)
        )
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["cholesky", "whiten", "mahalanobis", "rx", "ace"])
def test_jacobians(name: str) -> None:
    op = OPS[name]
    tensors = tuple(t[:2] if t.ndim == 3 else t for t in tensors_of(op, "float64"))
    every = tuple(range(len(tensors)))
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(
            transform(op.function, every)(*tensors), transform(op.plain, every)(*tensors)
        )
    torch.testing.assert_close(
        torch.func.hessian(loss_of(op.function))(*tensors),
        torch.func.hessian(loss_of(op.plain))(*tensors),
    )

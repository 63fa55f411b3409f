"""Gradients, tangents, transforms and graphs of the ops with a global background."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, random_spd, threads

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


def locations(rng: np.random.Generator, circular: bool) -> tuple[np.ndarray, ...]:
    (x,) = pixels(rng, circular)
    covariance = np.stack([random_spd(3, 10.0, rng, hermitian=circular) for _ in range(3)])
    return x, x.mean(0) + 0.25, covariance


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
    "mahalanobis locations": Op(
        lambda x, m, s: mahal.mahalanobis(x, m, hermitian(s)),
        lambda x, m, s: torch.vmap(plain_distance, (-2, 0, 0), -1)(x, m, s),
        locations,
    ),
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
        ("mean_covariance", "float64"),
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


@pytest.mark.parametrize("name", ["cholesky", "whiten"])
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


@pytest.mark.parametrize("name", ["cholesky", "whiten", "mahalanobis", "mean_covariance", "ace"])
def test_registration(name: str) -> None:
    from mahal._torch import cholesky, detectors, mean_covariance, whiten

    tensors = tensors_of(OPS[name], "float64")
    x, last = tensors[0], tensors[-1]
    score = {"caller": "ace", "score": "ace", "center": True}
    calls: list[tuple[Any, Tensors, dict[str, Any]]] = {
        "cholesky": [(cholesky.cholesky, (x,), {}), (cholesky.cholesky_backward, (x, x), {})],
        "whiten": [(whiten.whiten, tensors, {}), (whiten.whiten_backward, (x, x, last), {})],
        "mahalanobis": [(detectors.mahalanobis, tensors, {})],
        "mean_covariance": [
            (mean_covariance.mean_covariance, (x, None), {}),
            (mean_covariance.mean_covariance_backward, (None, torch.eye(3).double(), x, None), {}),
        ],
        "ace": [
            (detectors.detect, (*tensors, None, None, None), {**score, "singular": "nan"}),
            (
                detectors.detector_backward,
                (torch.ones(4, 3, 2).double(), *tensors, None, None, None, None),
                {**score, "estimate": True, "needs": [True, True, False, False, False]},
            ),
        ],
    }[name]
    for op, arguments, constants in calls:
        torch.library.opcheck(op.raw, arguments, constants, test_utils="test_schema")
        torch.library.opcheck(op.raw, arguments, constants, test_utils="test_faketensor")
        grads = tuple(
            a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in arguments
        )
        torch.library.opcheck(op.twin, grads, constants, test_utils="test_autograd_registration")
        torch.library.opcheck(op.twin, grads, constants, test_utils="test_aot_dispatch_static")


@pytest.mark.parametrize("name", ["cholesky", "whiten", "mahalanobis", "rx", "matched_filter"])
def test_memory_layouts(name: str) -> None:
    op = OPS[name]
    tensors = tensors_of(op, "float64")
    wanted = torch.func.grad(loss_of(op.function), tuple(range(len(tensors))))(*tensors)
    strided = tuple(torch.stack([t, t], -1)[..., 0].requires_grad_() for t in tensors)
    found = torch.autograd.grad(loss_of(op.function)(*strided), strided)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)
    if name in ("rx", "matched_filter"):
        return  # copies of pixels have a singular covariance
    # Expanded along an axis, and a gradient that is expanded: every copy adds its share.
    row = tensors[0][:1].clone().requires_grad_()
    many = row.expand(5, *row.shape[1:])
    function = op.function if name == "cholesky" else lambda x: op.function(x, *tensors[1:])
    copies = many.detach().clone().requires_grad_()
    (found_row,) = torch.autograd.grad(function(many).sum(), row)
    (each,) = torch.autograd.grad(function(copies).sum(), copies)
    torch.testing.assert_close(found_row[0], each.sum(0), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", ["cholesky", "whiten", "mahalanobis"])
def test_nothing_has_a_gradient_of_nothing(name: str) -> None:
    op = OPS[name]
    tensors = tensors_of(op, "float64")
    empty = tensors[0][:0].requires_grad_()
    rest = tuple(t.requires_grad_() for t in tensors[1:])
    grads = torch.autograd.grad(op.function(empty, *rest).sum(), (empty, *rest))
    assert grads[0].shape == empty.shape
    assert all(not g.any() for g in grads[1:])
    assert torch.vmap(op.function, (0,) + (None,) * len(rest))(empty, *rest).shape[0] == 0


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_autocast_and_half_precision(kind: str) -> None:
    half = getattr(torch, kind)
    x, mean, covariance = (t.to(half) for t in tensors_of(OPS["whiten"], "float64"))
    covariance = torch.eye(3, dtype=half) + hermitian(covariance)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score = mahal.mahalanobis(x, mean, covariance)
        loss = (torch.func.hessian(lambda m: mahal.mahalanobis(x, m, covariance).sum())(mean)).sum()
    assert score.dtype == torch.float32
    (grad,) = torch.autograd.grad(score.sum() + 0 * loss, x)
    assert grad.dtype == half
    exact = x.detach().double().requires_grad_()
    plain = plain_distance(exact, mean.double(), covariance.double())
    torch.testing.assert_close(score.double(), plain, rtol=1e-5, atol=1e-6)
    (wanted,) = torch.autograd.grad(plain.sum(), exact)
    assert torch.equal(grad, wanted.to(half))


def test_float64_statistics_of_float32_pixels() -> None:
    x, mean, covariance = tensors_of(OPS["mahalanobis"], "float64", grad=True)
    for function in (mahal.mahalanobis, mahal.whiten):
        score = function(x.float(), mean, covariance)
        assert score.dtype == torch.float32
        found = torch.autograd.grad(score.sum(), (x, mean, covariance))
        wanted = torch.autograd.grad(function(x, mean, covariance).sum(), (x, mean, covariance))
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == torch.float64
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_pixels_that_are_not_used_have_no_gradient() -> None:
    x = torch.from_numpy(random_scene((6, 5, 3), np.random.default_rng(1)))
    x[1, 2, 0] = torch.nan
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[3, 3] = False
    x.requires_grad_()
    scores, status = mahal.rx(x, mask=mask, return_status=True)
    used = status == 0
    assert used.sum() == 28
    weight = torch.linspace(0.5, 1.5, 30).reshape(6, 5).double()
    (grad,) = torch.autograd.grad((scores * weight)[used].sum(), x)
    assert not grad[~used].any()
    pixels = x.detach()[used].requires_grad_()
    plain = plain_distance(pixels, *plain_background(pixels))
    (wanted,) = torch.autograd.grad((plain * weight[used]).sum(), pixels)
    torch.testing.assert_close(grad[used], wanted)


def test_a_pixel_on_the_mean_has_no_gradient() -> None:
    rng = np.random.default_rng(2)
    background = torch.from_numpy(rng.standard_normal((20, 3)))
    x = background.mean(0, keepdim=True).clone().requires_grad_()
    score = mahal.ace(x, torch.ones(3).double(), background=background)
    score.backward(torch.ones_like(score))
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_gradients_do_not_depend_on_threads() -> None:
    x = torch.from_numpy(random_scene((60, 60, 5), np.random.default_rng(3))).requires_grad_()
    target = torch.from_numpy(random_scene((2, 5), np.random.default_rng(4))).requires_grad_()
    results = []
    for count in (1, 3):
        with threads(count):
            results.append(torch.autograd.grad(loss_of(mahal.ace)(x, target), (x, target)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_singular_backgrounds_have_no_gradient() -> None:
    x = torch.ones(10, 3, dtype=torch.float64, requires_grad=True)
    with pytest.warns(mahal.SingularWarning):
        scores = mahal.rx(x)
    with pytest.raises(ValueError, match=r"^rx: image: .*positive definite.*, got .*$"):
        scores.sum().backward()


def test_singular_matrices_keep_to_themselves() -> None:
    a = tensors_of(OPS["cholesky"], "float64")[0].clone()
    a[1] = 0
    a.requires_grad_()
    with pytest.raises(mahal.SingularError, match=r"^cholesky: a: .* 1 of 4 .*$"):
        mahal.cholesky(a)
    (grad,) = torch.autograd.grad(mahal.cholesky(a, singular="nan").sum(), a)
    assert grad[1].isnan().all()
    assert not grad[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: mahal.rx(x, estimator="oas"),
        lambda x: mahal.ace(x, x[0, :2], subspace=True),
        lambda x: mahal.mean_covariance(x, estimator="loading"),
        lambda x: mahal.spectral_angle(x, x[0, 0]),
    ],
)
def test_what_has_no_gradient_says_so(call: Callable[[Any], Any]) -> None:
    x = tensors_of(OPS["rx"], "float64", grad=True)[0]
    with pytest.raises(ValueError, match=r"^\w+: \w+: must not require grad .*detach\(\).*$"):
        call(x)


def test_outputs_of_the_caller_take_no_gradient() -> None:
    (a,) = tensors_of(OPS["cholesky"], "float64", grad=True)
    with pytest.raises(ValueError, match=r"^cholesky: out: must be None .*, got an array$"):
        mahal.cholesky(a, out=torch.empty_like(a))


def test_the_ops_are_made_on_first_use() -> None:
    code = """
import sys
import mahal
assert "torch" not in sys.modules
import torch
x = torch.ones(3, 2)
mahal.whiten(x, torch.zeros(2), torch.eye(2))
assert "mahal._torch.whiten" not in sys.modules
mahal.whiten(x.requires_grad_(), torch.zeros(2), torch.eye(2)).sum().backward()
assert torch.equal(x.grad, torch.ones(3, 2))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compile_of_a_map() -> None:
    x, mean, covariance = tensors_of(OPS["whiten"], "float64")
    torch.compiler.reset()
    compiled = torch.compile(
        lambda t: torch.vmap(mahal.whiten, (0, None, None))(t, mean, covariance),
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(x), mahal.whiten(x, mean, covariance))


def test_the_examples_of_the_page_run() -> None:
    page = (Path(__file__).parents[1] / "docs" / "torch.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    torch.compiler.reset()
    exec("\n".join(blocks), {})


@pytest.mark.cuda
@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_on_a_device(name: str, dtype: str) -> None:
    if name == "mahalanobis locations":
        pytest.skip("for arrays on the host")
    op = OPS[name]
    grads = []
    for device in ("cpu", "cuda"):
        tensors = tuple(t.to(device).requires_grad_() for t in tensors_of(op, dtype))
        loss = loss_of(op.function)(*tensors)
        found = torch.autograd.grad(loss, tensors, allow_unused=True)
        grads.append([None if g is None else g.cpu() for g in found])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)

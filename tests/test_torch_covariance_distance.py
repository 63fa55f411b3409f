"""covariance_distance and covariance_log inside torch: gradients, tangents, transforms, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.ops.covariance_distance import METRICS
from mahal.testing import random_spd

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

LOOKS: dict[str, Any] = {"wishart": (9.0, 7.5), "box_m": (9.0, 7.0)}
KINDS = [(m, d) for m in METRICS for d in ("float64", "complex128") if (m, d[0]) != ("box_m", "c")]


def pairs(count: int = 3, size: int = 3, dtype: str = "float64") -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    hermitian = dtype.startswith("complex")
    a = np.stack([random_spd(size, 5.0, rng, hermitian=hermitian) for _ in range(2 * count)])
    a *= rng.uniform(0.5, 2.0, (2 * count, 1, 1))
    tensors = torch.from_numpy(a).to(getattr(torch, dtype))
    return tensors[:count].clone(), tensors[count:].clone()


def hermitian(a: Any) -> Any:
    # Finite differences move single entries, the ops take Hermitian matrices only.
    return (a + a.mH) / 2


def distance(metric: str, *, squared: bool = False) -> Callable[[Any, Any], Any]:
    looks = LOOKS.get(metric)
    return lambda a, b: mahal.covariance_distance(
        hermitian(a), hermitian(b), metric, squared=squared, looks=looks
    )


def logarithm(a: Any) -> Any:
    return mahal.covariance_log(hermitian(a), loading=0.25)


def check(function: Any, *tensors: Any, second: bool = False) -> None:
    """Along random directions, which takes far less time than every entry."""
    inputs = with_grad(*tensors)
    if second:
        assert torch.autograd.gradgradcheck(
            function, inputs, check_fwd_over_rev=True, fast_mode=True
        )
    else:
        assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)


def with_grad(*tensors: Any) -> tuple[Any, ...]:
    return tuple(t.clone().requires_grad_() for t in tensors)


@pytest.mark.parametrize(("metric", "dtype"), KINDS)
def test_gradients(metric: str, dtype: str) -> None:
    check(distance(metric), *pairs(2, dtype=dtype))
    check(distance(metric), *pairs(1, 2, dtype=dtype), second=True)


def test_every_entry() -> None:
    inputs = with_grad(*pairs(2, dtype="complex128"))
    assert torch.autograd.gradcheck(distance("affine_invariant"), inputs)
    assert torch.autograd.gradcheck(logarithm, inputs[:1])


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_logarithm(dtype: str) -> None:
    a = pairs(2, 3, dtype)[0]
    check(logarithm, a)
    check(logarithm, a, second=True)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_repeated_eigenvalues(dtype: str) -> None:
    """Where derivatives through eigenvectors are not finite."""
    a = torch.eye(3, dtype=getattr(torch, dtype))[None] * 2.0
    b = torch.diag(torch.tensor([3.0, 1.0, 1.0], dtype=a.dtype))[None]
    for second in (False, True):
        for tensor in (a, b):
            check(logarithm, tensor, second=second)
        for metric in ("affine_invariant", "logeuclid", "wasserstein"):
            check(distance(metric), a, b, second=second)


@pytest.mark.parametrize("metric", METRICS)
def test_values_and_gradients_repeat_the_kernel(metric: str) -> None:
    a, b = pairs(5, dtype="float32")
    looks = LOOKS.get(metric)
    x, y = with_grad(a, b)
    score, status = mahal.covariance_distance(x, y, metric, looks=looks, return_status=True)
    expected = mahal.covariance_distance(a.numpy(), b.numpy(), metric, looks=looks)
    np.testing.assert_array_equal(score.detach().numpy(), expected)
    assert not status.requires_grad
    score.sum().backward()
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, x.grad.mT, rtol=0, atol=0)
    # One matrix against many: its gradient is the sum.
    one = b[:1].clone().requires_grad_()
    mahal.covariance_distance(a, one[0], metric, looks=looks).sum().backward()
    many = b[:1].expand(5, 3, 3).clone().requires_grad_()
    mahal.covariance_distance(a, many, metric, looks=looks).sum().backward()
    torch.testing.assert_close(one.grad[0], many.grad.sum(0))


def test_compile() -> None:
    for metric in ("affine_invariant", "wishart"):
        function = distance(metric)

        def loss(a: Any, b: Any, function: Any = function) -> Any:
            return function(a, b).pow(2).sum() + logarithm(a).pow(2).sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        found, expected = with_grad(*pairs()), with_grad(*pairs())
        compiled(*found).backward()
        loss(*expected).backward()
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_opcheck(dtype: str) -> None:
    from mahal._torch.covariance_distance import covariance_distance, covariance_distance_backward
    from mahal._torch.covariance_log import covariance_log, covariance_log_backward

    a, b = pairs(dtype=dtype)
    torch.library.opcheck(covariance_log.raw, (a,))
    torch.library.opcheck(covariance_log.twin, with_grad(a))
    status = torch.zeros(3, dtype=torch.uint8)
    torch.library.opcheck(covariance_log_backward.raw, (a, status, b))
    torch.library.opcheck(covariance_distance.raw, (a, b), {"metric": "logeuclid"})
    torch.library.opcheck(covariance_distance.twin, with_grad(a, b), {"metric": "logdet"})
    score = torch.ones(3, dtype=torch.float64)
    torch.library.opcheck(
        covariance_distance_backward.raw,
        (a, b, score, status, score),
        {"metric": "logeuclid", "need_b": False},
    )


@pytest.mark.parametrize("metric", ["affine_invariant", "logdet"])
def test_func(metric: str) -> None:
    a, b = pairs()
    function = distance(metric)

    def loss(a: Any, b: Any) -> Any:
        return function(a, b).sum() + logarithm(a).pow(2).sum()

    every = (0, 1)
    inputs = with_grad(a, b)
    loss(*inputs).backward()
    expected = tuple(t.grad for t in inputs)
    torch.testing.assert_close(torch.func.grad(loss, every)(a, b), expected)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss, every))(a, b), expected)
    # One argument is not mapped.
    one = torch.vmap(torch.func.grad(loss), (0, None))(a, b[0])
    torch.testing.assert_close(one, torch.func.grad(loss)(a, b[:1].expand_as(a)))
    jacobian = torch.func.jacrev(function)(a, b)
    torch.testing.assert_close(jacobian.sum(0), torch.func.grad(lambda a: function(a, b).sum())(a))
    torch.testing.assert_close(torch.func.jacfwd(function)(a, b), jacobian)
    directions = tuple(hermitian(torch.randn_like(t)) for t in (a, b))
    _, tangent = torch.func.jvp(function, (a, b), directions)
    h = 1e-6
    up, down = (function(a + s * directions[0], b + s * directions[1]) for s in (h, -h))
    torch.testing.assert_close(tangent, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    small = pairs(1, 2)
    hessian = torch.func.hessian(loss)(*small)
    torch.testing.assert_close(hessian, torch.func.jacrev(torch.func.jacrev(loss))(*small))


def test_half_precision_layouts_and_nothing() -> None:
    a, b = pairs(4, dtype="float32")
    half = a.half().requires_grad_()
    score = mahal.covariance_distance(half, b, "logdet")
    assert score.dtype == torch.float32
    score.sum().backward()
    assert half.grad.dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = a.clone().requires_grad_()
        mahal.covariance_distance(inside @ torch.eye(3), b, "logdet").sum().backward()
    assert inside.grad.dtype == torch.float32
    x = a.mT.clone().mT.requires_grad_()
    mahal.covariance_distance(x, b, "logdet").sum().backward()
    y = a.clone().requires_grad_()
    mahal.covariance_distance(y, b, "logdet").sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)
    none = torch.zeros(0, 3, 3, requires_grad=True)
    mahal.covariance_distance(none, none, "logdet").sum().backward()
    mahal.covariance_log(none).sum().backward()
    assert none.grad.shape == (0, 3, 3)


def test_scores_left_out_of_a_loss() -> None:
    a, b = pairs(3)
    a[1] = 0
    x = a.requires_grad_()
    score, status = mahal.covariance_distance(x, b, "logdet", return_status=True)
    assert status.tolist() == [0, 2, 0]
    score[status == 0].sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[1].any()


@pytest.mark.cuda
@pytest.mark.parametrize(("metric", "dtype"), KINDS)
def test_on_a_device(metric: str, dtype: str) -> None:
    grads = []
    for device in ("cpu", "cuda"):
        inputs = with_grad(*(t.to(device) for t in pairs(40, dtype=dtype)))
        loss = distance(metric)(*inputs).sum() + logarithm(inputs[0]).abs().square().sum()
        grads.append([g.cpu() for g in torch.autograd.grad(loss, inputs)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)

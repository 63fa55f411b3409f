"""Batched Cholesky factorisation, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._linalg import cholesky_gradient, cholesky_tangent
from mahal._torch._matrices import loaded
from mahal._torch._recipe import define, define_backward, folded
from mahal.ops.cholesky import factor_into

Tensor = Any


def _forward(a: Tensor, *, loading: float = 0.0, singular: str = "raise", threads: int = 0) -> Any:
    factor = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    if a.numel():
        factor_into(factor, a, loading, singular, threads)
    return factor


def _fake(a: Tensor, *, loading: float = 0.0, singular: str = "raise", threads: int = 0) -> Any:
    return torch.empty(a.shape, dtype=a.dtype, device=a.device)


def _forward_backward(
    factor: Tensor, grad: Tensor, *, loading: float = 0.0, threads: int = 0
) -> Any:
    factor, grad = torch.broadcast_tensors(factor, grad)
    out = torch.empty(factor.shape, dtype=factor.dtype, device=factor.device)
    if factor.numel():
        memory = workspace(factor, _core.cholesky_backward_workspace(factor, threads))
        _core.cholesky_backward(factor, grad, out, memory, loading, threads, stream(factor))
    return out


def _fake_backward(factor: Tensor, grad: Tensor, *, loading: float = 0.0, threads: int = 0) -> Any:
    shape = torch.broadcast_shapes(factor.shape, grad.shape)
    return torch.empty(shape, dtype=factor.dtype, device=factor.device)


def _plain_backward(
    factor: Tensor, grad: Tensor, *, loading: float = 0.0, threads: int = 0
) -> Tensor:
    return loaded(cholesky_gradient(factor, grad), loading)


cholesky_backward = define_backward(
    "cholesky_backward",
    "(Tensor factor, Tensor grad, *, float loading=0.0, int threads=0) -> Tensor",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
    vmap=folded((2, 2)),
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    return cholesky_backward(
        saved[0], grads[0], loading=constants["loading"], threads=constants["threads"]
    )


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    return cholesky_tangent(saved[0], loaded(tangents[0], constants["loading"]))


cholesky = define(
    "cholesky",
    '(Tensor a, *, float loading=0.0, str singular="raise", int threads=0) -> Tensor',
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (outputs[0],),
    backward=_backward,
    jvp=_jvp,
    vmap=folded((2,)),
)

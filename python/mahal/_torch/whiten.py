"""Whitening by a fixed mean and covariance, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._linalg import cholesky_gradient, cholesky_tangent, solve
from mahal._torch._outputs import arguments, as_pixels, empty_if, precise_dtype
from mahal._torch._recipe import define, define_backward, folded

Tensor = Any


def _forward(x: Tensor, mean: Tensor, covariance: Tensor, *, threads: int = 0) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        pixels = as_pixels(x)
        memory = workspace(pixels, _core.whiten_workspace(pixels, threads))
        _core.whiten(pixels, mean, covariance, y, memory, threads, stream(pixels))
    return y


def _fake(x: Tensor, mean: Tensor, covariance: Tensor, *, threads: int = 0) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_backward(
    grad: Tensor,
    y: Tensor,
    covariance: Tensor,
    *,
    need_x: bool = True,
    need_mean: bool = True,
    need_covariance: bool = True,
    threads: int = 0,
) -> Any:
    exact = precise_dtype(y)
    return (
        empty_if(need_x, y, y.shape),
        empty_if(need_mean, y, y.shape[-1:], exact),
        empty_if(need_covariance, y, covariance.shape, exact),
    )


def _forward_backward(grad: Tensor, y: Tensor, covariance: Tensor, **constants: Any) -> Any:
    outputs = _fake_backward(grad, y, covariance, **constants)
    if not y.numel():
        return tuple(output.zero_() for output in outputs)
    threads = constants.get("threads", 0)
    pixels, grads = as_pixels(y), as_pixels(grad)
    memory = workspace(pixels, _core.whiten_backward_workspace(pixels, threads))
    x_bar, mean_bar, covariance_bar = arguments(outputs)
    _core.whiten_backward(
        grads,
        pixels,
        covariance,
        x_bar,
        mean_bar,
        covariance_bar,
        memory,
        threads,
        stream(pixels),
    )
    return outputs


def _plain_backward(
    grad: Tensor,
    y: Tensor,
    covariance: Tensor,
    *,
    need_x: bool = True,
    need_mean: bool = True,
    need_covariance: bool = True,
    threads: int = 0,
) -> Any:
    factor = torch.linalg.cholesky(covariance.to(precise_dtype(y)))
    bands = y.shape[-1]
    v = solve(factor, grad.to(factor.dtype), adjoint=True)
    rows = v.reshape(-1, bands)
    lower = -rows.mT @ y.to(factor.dtype).reshape(-1, bands).conj()
    wanted = (need_x, need_mean, need_covariance)
    outputs = (v.to(y.dtype), -rows.sum(0), cholesky_gradient(factor, lower))
    return tuple(
        output if needed else output.new_zeros(0)
        for output, needed in zip(outputs, wanted, strict=True)
    )


whiten_backward = define_backward(
    "whiten_backward",
    "(Tensor grad, Tensor y, Tensor covariance, *, bool need_x=True, bool need_mean=True,"
    " bool need_covariance=True, int threads=0) -> (Tensor, Tensor, Tensor)",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    y, mean, covariance = saved
    x_bar, mean_bar, covariance_bar = whiten_backward(
        grads[0],
        y,
        covariance,
        need_x=needs[0],
        need_mean=needs[1],
        need_covariance=needs[2],
        **constants,
    )
    return (
        x_bar if needs[0] else None,
        mean_bar.to(mean.dtype) if needs[1] else None,
        covariance_bar.to(covariance.dtype) if needs[2] else None,
    )


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    y, _, covariance = saved
    factor = torch.linalg.cholesky(covariance.to(precise_dtype(y)))
    moved = torch.zeros_like(y, dtype=factor.dtype)
    x_dot, mean_dot, covariance_dot = tangents
    if x_dot is not None:
        moved = moved + x_dot
    if mean_dot is not None:
        moved = moved - mean_dot
    if covariance_dot is not None:
        factor_dot = cholesky_tangent(factor, covariance_dot.to(factor.dtype))
        moved = moved - y.to(factor.dtype) @ factor_dot.mT
    return solve(factor, moved).to(y.dtype)


whiten = define(
    "whiten",
    "(Tensor x, Tensor mean, Tensor covariance, *, int threads=0) -> Tensor",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (outputs[0], tensors[1], tensors[2]),
    backward=_backward,
    jvp=_jvp,
    vmap=folded((1, None, None)),
)

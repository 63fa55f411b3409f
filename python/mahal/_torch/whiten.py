"""Whitening by a fixed mean and covariance, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._linalg import cholesky_gradient, cholesky_tangent, solve
from mahal._torch._recipe import define, define_backward, folded

Tensor = Any


def _factor_dtype(x: Tensor) -> Any:
    return torch.complex128 if x.is_complex() else torch.float64


def _forward(x: Tensor, mean: Tensor, covariance: Tensor, *, threads: int = 0) -> Any:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    pixels = x if x.ndim <= 3 else x.reshape(-1, x.shape[-1])
    if x.numel():
        memory = workspace(pixels, _core.whiten_workspace(pixels, threads))
        _core.whiten(pixels, mean, covariance, y, memory, threads, stream(pixels))
    return y, torch.linalg.cholesky(covariance.to(_factor_dtype(x))).contiguous()


def _fake(x: Tensor, mean: Tensor, covariance: Tensor, *, threads: int = 0) -> Any:
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device),
        torch.empty(covariance.shape, dtype=_factor_dtype(x), device=x.device),
    )


def _plain_backward(
    grad: Tensor | None, grad_factor: Tensor | None, y: Tensor, factor: Tensor, *, threads: int = 0
) -> Any:
    lower = torch.zeros_like(factor)
    v = torch.zeros_like(y, dtype=factor.dtype)
    if grad is not None:
        v = solve(factor, grad.to(factor.dtype), adjoint=True)
        bands = y.shape[-1]
        lower = -torch.einsum(
            "ni,nj->ij", v.reshape(-1, bands), y.to(factor.dtype).reshape(-1, bands).conj()
        )
    if grad_factor is not None:
        lower = lower + grad_factor
    mean = -v.reshape(-1, y.shape[-1]).sum(0)
    return v.to(y.dtype), mean, cholesky_gradient(factor, lower)


def _fake_backward(
    grad: Tensor | None, grad_factor: Tensor | None, y: Tensor, factor: Tensor, *, threads: int = 0
) -> Any:
    return (
        torch.empty(y.shape, dtype=y.dtype, device=y.device),
        torch.empty(factor.shape[-1:], dtype=factor.dtype, device=y.device),
        torch.empty(factor.shape, dtype=factor.dtype, device=y.device),
    )


whiten_backward = define_backward(
    "whiten_backward",
    "(Tensor? grad, Tensor? grad_factor, Tensor y, Tensor factor, *, int threads=0)"
    " -> (Tensor, Tensor, Tensor)",
    forward=lambda *t, **c: tuple(r.resolve_conj().contiguous() for r in _plain_backward(*t, **c)),
    fake=_fake_backward,
    plain=_plain_backward,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    y, factor, mean, covariance = saved
    x_bar, mean_bar, covariance_bar = whiten_backward(grads[0], grads[1], y, factor, **constants)
    return x_bar, mean_bar.to(mean.dtype), covariance_bar.to(covariance.dtype)


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    y, factor, _, _ = saved
    x_dot, mean_dot, covariance_dot = tangents
    moved = torch.zeros_like(y, dtype=factor.dtype)
    if x_dot is not None:
        moved = moved + x_dot
    if mean_dot is not None:
        moved = moved - mean_dot
    factor_dot = torch.zeros_like(factor)
    if covariance_dot is not None:
        factor_dot = cholesky_tangent(factor, covariance_dot.to(factor.dtype))
        moved = moved - y.to(factor.dtype) @ factor_dot.mT
    return solve(factor, moved).to(y.dtype), factor_dot


whiten = define(
    "whiten",
    "(Tensor x, Tensor mean, Tensor covariance, *, int threads=0) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (*outputs, tensors[1], tensors[2]),
    backward=_backward,
    jvp=_jvp,
    vmap=folded((1, None, None), (True, False)),
)

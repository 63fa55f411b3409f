"""Distances between covariance matrices, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._matrices import hermitian, inner, stacked
from mahal._torch._recipe import define, define_backward
from mahal._torch.covariance_log import covariance_log, covariance_log_backward
from mahal.ops import covariance_distance_backward as kernel

Tensor = Any

_DISTANCES = ("frobenius", "logeuclid", "affine_invariant", "logdet", "wasserstein")
_CONSTANTS = (
    "str metric='frobenius', bool squared=False, float first=0.0, float second=0.0, int threads=0"
)


def _fake(a: Tensor, b: Tensor, **constants: Any) -> Any:
    kind = a.real.dtype if a.is_complex() else a.dtype
    return (
        torch.empty(a.shape[:-2], dtype=kind, device=a.device),
        torch.empty(a.shape[:-2], dtype=torch.uint8, device=a.device),
    )


def _forward(
    a: Tensor,
    b: Tensor,
    *,
    metric: str = "frobenius",
    squared: bool = False,
    first: float = 0.0,
    second: float = 0.0,
    threads: int = 0,
) -> Any:
    score, status = _fake(a, b)
    if a.numel():
        memory = workspace(
            a, _core.covariance_distance_workspace(a, b, metric, first, second, threads)
        )
        _core.covariance_distance(
            a, b, score, status, memory, metric, squared, first, second, threads, stream(a)
        )
    return score, status


def _absent(a: Tensor) -> Tensor:
    """In place of a gradient that nobody asked for."""
    return torch.empty((*a.shape[:-2], 0, 0), dtype=a.dtype, device=a.device)


def _forward_backward(
    a: Tensor,
    b: Tensor,
    score: Tensor,
    status: Tensor,
    grad: Tensor,
    *,
    metric: str = "frobenius",
    squared: bool = False,
    first: float = 0.0,
    second: float = 0.0,
    threads: int = 0,
    need_a: bool = True,
    need_b: bool = True,
) -> Any:
    found = kernel.covariance_distance_backward(
        a,
        b,
        score.contiguous(),
        status.contiguous(),
        grad.contiguous(),
        metric,
        squared,
        (first, second),
        threads,
        (need_a, need_b),
    )
    return tuple(_absent(a) if g is None else g for g in found)


def _fake_backward(
    a: Tensor, b: Tensor, *rest: Any, need_a: bool = True, need_b: bool = True, **constants: Any
) -> Any:
    plain = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    return (
        plain if need_a else _absent(a),
        torch.empty_like(plain) if need_b else _absent(a),
    )


def _log(matrix: Tensor) -> Tensor:
    return covariance_log(matrix)[0]


def _squared_gradients(a: Tensor, b: Tensor, metric: str, looks: tuple[float, float]) -> Any:
    """Of the squared distances and of the other metrics; the kernel has the same formulas."""
    gap = a - b
    if metric == "frobenius":
        return 2 * gap, -2 * gap
    if metric == "logeuclid":
        difference = 2 * (_log(a) - _log(b))
        regular = torch.zeros(a.shape[:-2], dtype=torch.uint8, device=a.device)
        return tuple(
            sign * covariance_log_backward(m, regular, difference) for m, sign in ((a, 1), (b, -1))
        )
    if metric in ("affine_invariant", "wasserstein"):
        factor = torch.linalg.cholesky(a)
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        root = torch.linalg.solve_triangular(factor, eye.expand_as(a), upper=False)
        if metric == "affine_invariant":
            middle = hermitian(root @ b @ root.mH)
            logarithm = _log(middle)
            scaled = torch.linalg.solve(middle, logarithm)
            return -2 * root.mH @ logarithm @ root, 2 * root.mH @ hermitian(scaled) @ root
        # The square root through the logarithm: it has derivatives at repeated eigenvalues.
        middle = torch.linalg.matrix_exp(_log(hermitian(factor.mH @ b @ factor)) / 2)
        transport = hermitian(root.mH @ middle @ root)
        return eye - transport, eye - torch.linalg.inv(transport)
    p, q = torch.linalg.inv(a), torch.linalg.inv(b)
    if metric == "symmetric_kl":
        return p @ gap @ (p + q) / 2, -q @ gap @ (p + q) / 2
    if metric == "hotelling_lawley":
        return q, -q @ a @ q
    n, m = (0.5, 0.5) if metric == "logdet" else looks
    size = a.shape[-1]
    spread = 0.0 if metric == "logdet" else 1 / n + 1 / m - 1 / (n + m)
    factor = 1.0
    if metric == "wishart":
        factor = 2 * (1 - (2 * size**2 - 1) / (6 * size) * spread)
    elif metric == "box_m":
        factor = 1 - (2 * size**2 + 3 * size - 1) / (6 * (size + 1)) * spread
    pooled = torch.linalg.inv((n * a + m * b) / (n + m))
    factor = factor * n * m / (n + m)
    return factor * pooled @ gap @ p, -factor * pooled @ gap @ q


def _plain_backward(
    a: Tensor,
    b: Tensor,
    score: Tensor,
    status: Tensor,
    grad: Tensor,
    *,
    metric: str = "frobenius",
    squared: bool = False,
    first: float = 0.0,
    second: float = 0.0,
    threads: int = 0,
    need_a: bool = True,
    need_b: bool = True,
) -> Any:
    regular = status == 0
    matrix = regular[..., None, None]
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    a, b = (hermitian(torch.where(matrix, t, eye)) for t in (a, b))
    scale = grad
    if metric in _DISTANCES and not squared:
        # A root has no slope at zero.
        apart = (score > 0) & (a != b).flatten(-2).any(-1)
        scale = torch.where(apart, grad / (2 * torch.where(apart, score, 1.0)), 0.0)
    scale = torch.where(regular, scale, torch.where(grad == 0, 0.0, torch.nan))
    found = _squared_gradients(a, b, metric, (first, second))
    return tuple(
        scale[..., None, None] * hermitian(g) if need else _absent(a)
        for g, need in zip(found, (need_a, need_b), strict=True)
    )


covariance_distance_backward = define_backward(
    "covariance_distance_backward",
    "(Tensor a, Tensor b, Tensor score, Tensor status, Tensor grad, *, "
    f"{_CONSTANTS}, bool need_a=True, bool need_b=True) -> (Tensor, Tensor)",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
    vmap=stacked,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    found = covariance_distance_backward(
        *saved, grads[0], **constants, need_a=needs[0], need_b=needs[1]
    )
    return tuple(g if need else None for g, need in zip(found, needs, strict=True))


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    score = saved[2]
    needs = [t is not None for t in tangents]
    found = covariance_distance_backward(
        *saved, torch.ones_like(score), **constants, need_a=needs[0], need_b=needs[1]
    )
    moved = torch.zeros_like(score)
    for gradient, tangent in zip(found, tangents, strict=True):
        if tangent is not None:
            moved = moved + inner(gradient, tangent)
    return moved, None


covariance_distance = define(
    "covariance_distance",
    f"(Tensor a, Tensor b, *, {_CONSTANTS}) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (*tensors, *outputs),
    backward=_backward,
    jvp=_jvp,
    vmap=stacked,
)

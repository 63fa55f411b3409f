"""Logarithms of covariance matrices, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._matrices import hermitian, loaded, second_log_derivative, stacked
from mahal._torch._recipe import define
from mahal.ops import covariance_log_backward as kernel

Tensor = Any


def _forward(a: Tensor, *, loading: float = 0.0, threads: int = 0) -> Any:
    logarithm, status = _fake(a)
    if a.numel():
        memory = workspace(a, _core.covariance_log_workspace(a, threads))
        _core.covariance_log(a, logarithm, status, memory, loading, threads, stream(a))
    return logarithm, status


def _fake(a: Tensor, *, loading: float = 0.0, threads: int = 0) -> Any:
    return (
        torch.empty(a.shape, dtype=a.dtype, device=a.device),
        torch.empty(a.shape[:-2], dtype=torch.uint8, device=a.device),
    )


def _forward_backward(
    a: Tensor, status: Tensor, grad: Tensor, *, loading: float = 0.0, threads: int = 0
) -> Tensor:
    return kernel.covariance_log_backward(
        a, status.contiguous(), grad.contiguous(), loading, threads
    )


def _moved(saved: Any, constants: Any, a_dot: Tensor | None, grad_dot: Tensor | None) -> Any:
    """Derivatives of the gradient in both directions; one may be None."""
    a, status, grad = saved
    loading, threads = constants["loading"], constants["threads"]
    matrix = loaded(a, loading)
    parts = []
    if a_dot is not None:
        regular = (status == 0)[..., None, None]
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        safe = hermitian(torch.where(regular, matrix, eye))
        second = second_log_derivative(safe, hermitian(grad), hermitian(loaded(a_dot, loading)))
        parts.append(torch.where(regular, second, torch.nan))
    if grad_dot is not None:
        parts.append(
            covariance_log_backward(matrix, status, grad_dot, loading=0.0, threads=threads)
        )
    return parts


def _backward_backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    # The gradient is P f'(P a)[grad] with the loading P, which is its own adjoint.
    seed = loaded(hermitian(grads[0]), constants["loading"])
    a, status, grad = saved
    matrix = loaded(a, constants["loading"])
    plain = {"loading": 0.0, "threads": constants["threads"]}
    first = _moved((matrix, status, grad), plain, seed, None)[0] if needs[0] else None
    third = _moved((matrix, status, grad), plain, None, seed)[0] if needs[2] else None
    return None if first is None else loaded(first, constants["loading"]), None, third


def _backward_jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    parts = _moved(saved, constants, tangents[0], tangents[2])
    return loaded(sum(parts[1:], parts[0]), constants["loading"])


covariance_log_backward = define(
    "covariance_log_backward",
    "(Tensor a, Tensor status, Tensor grad, *, float loading=0.0, int threads=0) -> Tensor",
    forward=_forward_backward,
    fake=lambda a, *rest, **constants: torch.empty(a.shape, dtype=a.dtype, device=a.device),
    save=lambda tensors, outputs: tensors,
    backward=_backward_backward,
    jvp=_backward_jvp,
    vmap=stacked,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    a, status = saved
    return (covariance_log_backward(a, status, grads[0], **constants),)


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    a, status = saved
    matrix, tangent = (loaded(t, constants["loading"]) for t in (a, tangents[0]))
    threads = constants["threads"]
    return covariance_log_backward(matrix, status, tangent, loading=0.0, threads=threads), None


covariance_log = define(
    "covariance_log",
    "(Tensor a, *, float loading=0.0, int threads=0) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (tensors[0], outputs[1]),
    backward=_backward,
    jvp=_jvp,
    vmap=stacked,
)

"""Mean and covariance of many spectra, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._outputs import precise_dtype
from mahal._torch._recipe import define, define_backward, tangents_of

Tensor = Any

_SAMPLE_COVARIANCE = ("scm", 1e-3, 5.0, 1e-6, 100)


def _forward(x: Tensor, mask: Tensor | None, *, ddof: float = 1.0, center: bool = True) -> Any:
    mean, covariance = _fake(x, mask)
    memory = workspace(x, _core.mean_covariance_workspace(x, _SAMPLE_COVARIANCE, 0))
    _core.mean_covariance(
        x, mask, mean, covariance, memory, ddof, center, _SAMPLE_COVARIANCE, 0, stream(x)
    )
    return mean, covariance


def _fake(x: Tensor, mask: Tensor | None, *, ddof: float = 1.0, center: bool = True) -> Any:
    bands = x.shape[-1]
    return (
        torch.empty((bands,), dtype=x.dtype, device=x.device),
        torch.empty((bands, bands), dtype=x.dtype, device=x.device),
    )


def _plain(x: Tensor, mask: Tensor | None, *, ddof: float = 1.0, center: bool = True) -> Any:
    pixels = x.reshape(-1, x.shape[-1]).to(precise_dtype(x))
    usable = torch.isfinite(pixels.detach()).all(-1)
    if mask is not None:
        usable = usable & mask.reshape(-1)
    count = usable.sum()
    pixels = torch.where(usable[:, None], pixels, 0)
    mean = pixels.sum(0) / count if center else torch.zeros_like(pixels[0])
    moved = torch.where(usable[:, None], pixels - mean, 0)
    covariance = moved.mT @ moved.conj() / (count - (ddof if center else 0))
    return mean.to(x.dtype), covariance.to(x.dtype)


def _forward_backward(
    grad_mean: Tensor | None,
    grad_covariance: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    *,
    ddof: float = 1.0,
    center: bool = True,
) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    memory = workspace(x, _core.mean_covariance_backward_workspace(x, 0))
    _core.mean_covariance_backward(
        x, mask, grad_mean, grad_covariance, out, memory, ddof, center, 0, stream(x)
    )
    return out


def _fake_backward(
    grad_mean: Tensor | None,
    grad_covariance: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    *,
    ddof: float = 1.0,
    center: bool = True,
) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _plain_backward(
    grad_mean: Tensor | None,
    grad_covariance: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    *,
    ddof: float = 1.0,
    center: bool = True,
) -> Tensor:
    pixels = x.reshape(-1, x.shape[-1])
    usable = torch.isfinite(pixels.detach()).all(-1)
    if mask is not None:
        usable = usable & mask.reshape(-1)
    count = usable.sum()
    pixels = torch.where(usable[:, None], pixels, 0)
    mean = pixels.sum(0) / count if center else torch.zeros_like(pixels[0])
    out = torch.zeros_like(pixels)
    if grad_mean is not None and center:
        out = out + grad_mean / count
    if grad_covariance is not None:
        both = grad_covariance + grad_covariance.mH
        out = out + (pixels - mean) @ both.mT / (count - (ddof if center else 0))
    return torch.where(usable[:, None], out, 0).reshape(x.shape).to(x.dtype)


mean_covariance_backward = define_backward(
    "mean_covariance_backward",
    "(Tensor? grad_mean, Tensor? grad_covariance, Tensor x, Tensor? mask, *, float ddof=1.0,"
    " bool center=True) -> Tensor",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    return mean_covariance_backward(*grads, *saved, **constants), None


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    return tangents_of(_plain, saved, constants, tangents)


mean_covariance = define(
    "mean_covariance",
    "(Tensor x, Tensor? mask, *, float ddof=1.0, bool center=True) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: tensors,
    backward=_backward,
    jvp=_jvp,
)

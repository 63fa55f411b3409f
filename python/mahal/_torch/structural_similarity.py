"""Structural similarity, with gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._recipe import define, define_backward
from mahal.ops import structural_similarity_backward as kernel

Tensor = Any

_CONSTANTS = (
    "int window=7, float sigma=0.0, float data_range=1.0, float k1=0.01, float k2=0.03, "
    "int ddof=1, str border='reflect', int threads=0"
)
# torch leaves out what has its default.
_DEFAULTS: dict[str, Any] = {
    "window": 7,
    "sigma": 0.0,
    "data_range": 1.0,
    "k1": 0.01,
    "k2": 0.03,
    "ddof": 1,
    "border": "reflect",
}


def _in_order(constants: dict[str, Any]) -> tuple[int, float, float, float, float, int, str]:
    """As the kernels take them."""
    c = {**_DEFAULTS, **constants}
    return c["window"], c["sigma"], c["data_range"], c["k1"], c["k2"], c["ddof"], c["border"]


def _forward(first: Tensor, second: Tensor, *, threads: int = 0, **constants: Any) -> Tensor:
    score = torch.empty(first.shape, dtype=first.dtype, device=first.device)
    plain = _in_order(constants)
    memory = workspace(first, _core.structural_similarity_workspace(first, second, *plain, threads))
    _core.structural_similarity(first, second, score, memory, *plain, threads, stream(first))
    return score


def _absent(image: Tensor) -> Tensor:
    """In place of a gradient that nobody asked for."""
    return torch.empty((0, 0, image.shape[2]), dtype=image.dtype, device=image.device)


def _forward_backward(
    first: Tensor,
    second: Tensor,
    grad: Tensor,
    *,
    threads: int = 0,
    need_first: bool = True,
    need_second: bool = True,
    **constants: Any,
) -> Any:
    found = kernel.structural_similarity_backward(
        first, second, grad.contiguous(), _in_order(constants), threads, (need_first, need_second)
    )
    return tuple(_absent(first) if g is None else g for g in found)


def _fake_backward(
    first: Tensor,
    second: Tensor,
    grad: Tensor,
    *,
    need_first: bool = True,
    need_second: bool = True,
    **constants: Any,
) -> Any:
    return tuple(
        torch.empty(first.shape, dtype=first.dtype, device=first.device) if need else _absent(first)
        for need in (need_first, need_second)
    )


def _as_channels(call: Any, size: int, in_dims: Any, tensors: Any, constants: Any) -> Any:
    """Rule under vmap: the mapped axis becomes channels, which the op keeps apart."""
    full = (
        t[..., None].expand(*t.shape, size) if dim is None else t.movedim(dim, -1)
        for t, dim in zip(tensors, in_dims, strict=True)
    )
    results = call(*(t.reshape(*t.shape[:2], -1) for t in full), **constants)

    def apart(result: Tensor) -> Tensor:
        return result.reshape(*result.shape[:2], result.shape[2] // size, size)

    if isinstance(results, torch.Tensor):
        return apart(results), 3
    return tuple(apart(r) for r in results), (3,) * len(results)


class _Axis(NamedTuple):
    weights: Tensor  # of the samples (n) in the window of every position (n)
    counts: Tensor


def _axis(n: int, constants: dict[str, Any], like: Tensor) -> _Axis:
    """Windows along one axis as a matrix."""
    window, sigma, border = (constants[name] for name in ("window", "sigma", "border"))
    half = window // 2
    offsets = torch.arange(-half, half + 1, device=like.device)
    z = offsets.to(torch.float64) / sigma if sigma > 0 else torch.zeros(window, device=like.device)
    profile = torch.exp(-0.5 * z**2).to(like.dtype)
    centres = torch.arange(n, device=like.device)
    if border in ("shift", "valid"):
        centres = centres.clamp(half, n - 1 - half)
    at = centres[:, None] + offsets
    inside = ((at >= 0) & (at < n)) if border == "clip" else torch.ones_like(at, dtype=torch.bool)
    at = at.abs()
    at = torch.where(at > n - 1, 2 * (n - 1) - at, at).clamp(0, n - 1)
    values = torch.where(inside, profile, torch.zeros_like(profile))
    weights = torch.zeros(n, n, dtype=like.dtype, device=like.device).scatter_add(1, at, values)
    return _Axis(weights / weights.sum(1, keepdim=True), inside.sum(1).to(like.dtype))


class _Similarity(NamedTuple):
    score: Tensor
    tangent: Tensor | None


def _similarity(
    first: Tensor, second: Tensor, constants: dict[str, Any], tangents: Any = None
) -> _Similarity:
    """The score as torch operations, and its derivative in the direction of both tangents."""
    constants = {**_DEFAULTS, **constants}
    rows = _axis(first.shape[0], constants, first)
    cols = _axis(first.shape[1], constants, first)
    count = rows.counts[:, None] * cols.counts
    norm = (count / (count - constants["ddof"]))[..., None]
    c1, c2 = ((constants[k] * constants["data_range"]) ** 2 for k in ("k1", "k2"))

    def mean(image: Tensor) -> Tensor:
        return torch.einsum("pr,qc,rcj->pqj", rows.weights, cols.weights, image)

    # A level in front of the squares, so that these do not cancel.
    levels = [image.detach().nanmean() for image in (first, second)]
    x, y = first - levels[0], second - levels[1]
    mx, my = mean(x), mean(y)
    spread = norm * (mean(x * x + y * y) - mx * mx - my * my) + c2
    common = 2 * norm * (mean(x * y) - mx * my) + c2
    top, bottom = mx + levels[0], my + levels[1]
    alike, means = 2 * top * bottom + c1, top * top + bottom * bottom + c1
    score = alike * common / (means * spread)
    if tangents is None:
        return _Similarity(score, None)
    dx, dy = (torch.zeros_like(x) if t is None else t for t in tangents)
    dmx, dmy = mean(dx), mean(dy)
    d_spread = 2 * norm * (mean(x * dx + y * dy) - mx * dmx - my * dmy)
    d_common = 2 * norm * (mean(x * dy + y * dx) - mx * dmy - my * dmx)
    d_alike = 2 * (top * dmy + bottom * dmx)
    d_means = 2 * (top * dmx + bottom * dmy)
    moved = (d_alike * common + alike * d_common) / (means * spread)
    return _Similarity(score, moved - score * (d_means / means + d_spread / spread))


def _plain_backward(
    first: Tensor,
    second: Tensor,
    grad: Tensor,
    *,
    need_first: bool = True,
    need_second: bool = True,
    **constants: Any,
) -> Any:
    if constants.get("border") == "valid":
        half = constants.get("window", _DEFAULTS["window"]) // 2
        inside = torch.zeros_like(grad, dtype=torch.bool)
        inside[half : grad.shape[0] - half, half : grad.shape[1] - half] = True
        grad = torch.where(inside, grad, 0.0)
    _, pull = torch.func.vjp(lambda x, y: _similarity(x, y, constants).score, first, second)
    found = pull(grad)
    return tuple(
        g if need else _absent(first)
        for g, need in zip(found, (need_first, need_second), strict=True)
    )


structural_similarity_backward = define_backward(
    "structural_similarity_backward",
    "(Tensor first, Tensor second, Tensor grad, *, "
    f"{_CONSTANTS}, bool need_first=True, bool need_second=True) -> (Tensor, Tensor)",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
    vmap=_as_channels,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    found = structural_similarity_backward(
        *saved, grads[0], **constants, need_first=needs[0], need_second=needs[1]
    )
    return tuple(g if need else None for g, need in zip(found, needs, strict=True))


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    first, second = saved
    return _similarity(first, second, constants, tangents).tangent


structural_similarity = define(
    "structural_similarity",
    f"(Tensor first, Tensor second, *, {_CONSTANTS}) -> Tensor",
    forward=_forward,
    fake=lambda first, second, **constants: torch.empty(
        first.shape, dtype=first.dtype, device=first.device
    ),
    save=lambda tensors, outputs: tensors,
    backward=_backward,
    jvp=_jvp,
    vmap=_as_channels,
)

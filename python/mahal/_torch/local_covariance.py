"""Window means and covariances, with gradients."""

from __future__ import annotations

import math
from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._recipe import VmapRule, define, folded
from mahal.ops._window_gradients import local_covariance_backward as backward_kernel

Tensor = Any

_OPTIONS = 'int[] windows=[], str border="shift", int ddof=1, bool center=True, int threads=0'


def _sides(windows: Any) -> list[tuple[int, int]]:
    """Pairs (inner, outer) from one list of both."""
    return list(zip(windows[::2], windows[1::2], strict=True))


def _shapes(image: Tensor, windows: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    scales, bands = len(windows) // 2, image.shape[-1]
    full = (*image.shape[:-1], scales, bands)
    return full, (*full, bands)


def _items(image: Tensor, tensor: Tensor | None, axes: int) -> Any:
    """The last axes of a tensor for every image of a batch, None where there is no tensor."""
    lead = image.shape[:-3]
    count = math.prod(lead)
    if tensor is None:
        return [None] * count
    item = tensor.shape[tensor.ndim - axes :]
    return tensor.expand(*lead, *item).reshape(count, *item)


def _images(image: Tensor, mask: Tensor | None) -> Any:
    """Every image of a batch with its mask."""
    return zip(_items(image, image, 3), _items(image, mask, 2), strict=True)


def _forward(
    image: Tensor,
    mask: Tensor | None,
    *,
    windows: Any = (),
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    threads: int = 0,
) -> Any:
    outputs = _fake(image, mask, windows=windows)
    options = (_sides(windows), border, ddof, center, threads)
    results = (_items(image, output, axes) for output, axes in zip(outputs, (4, 5), strict=True))
    for (one, usable), mean, covariance in zip(_images(image, mask), *results, strict=True):
        memory = workspace(one, _core.local_covariance_workspace(one, *options))
        _core.local_covariance(one, usable, mean, covariance, memory, *options, stream(one))
    return outputs


def _fake(image: Tensor, mask: Tensor | None, *, windows: Any = (), **options: Any) -> Any:
    return tuple(
        torch.empty(shape, dtype=image.dtype, device=image.device)
        for shape in _shapes(image, windows)
    )


def _forward_of_backward(
    image: Tensor,
    mask: Tensor | None,
    mean_gradient: Tensor | None,
    covariance_gradient: Tensor | None,
    *,
    windows: Any = (),
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    threads: int = 0,
) -> Any:
    gradient = _fake_backward(image)
    options = (_sides(windows), border, ddof, center, threads)
    for (one, usable), mean, covariance, result in zip(
        _images(image, mask),
        _items(image, mean_gradient, 4),
        _items(image, covariance_gradient, 5),
        _items(image, gradient, 3),
        strict=True,
    ):
        backward_kernel(one, usable, mean, covariance, *options, gradient=result)
    return gradient


def _fake_backward(image: Tensor, *others: Tensor | None, **options: Any) -> Any:
    return torch.empty(image.shape, dtype=image.dtype, device=image.device)


def _with_gaps(image: Tensor, x: Tensor) -> Tensor:
    """x without the pixels that the image lacks, so that the same windows have a result."""
    finite = torch.isfinite(image).all(-1, keepdim=True)
    return torch.where(finite, x, torch.full_like(x, float("nan")))


def _largest(x: Tensor) -> Tensor:
    """Largest deviation of an image from the mean of its finite pixels."""
    axes = (-3, -2)
    finite = torch.isfinite(x).all(-1, keepdim=True)
    known = torch.where(finite, x, torch.zeros_like(x))
    mean = known.sum(axes, keepdim=True) / finite.sum(axes, keepdim=True).clamp(min=1)
    apart = torch.where(finite, (known - mean).abs(), torch.zeros_like(known.real))
    return apart.amax((-3, -2, -1), keepdim=True).detach()


def _tangents(image: Tensor, mask: Tensor | None, tangent: Tensor, constants: Any) -> Any:
    """Changes of means and covariances: S is quadratic in the image, so a difference is exact.

    The steps are as large as the image, where the difference loses least to rounding.
    """
    tangent = _with_gaps(image, tangent)
    size, other = _largest(image), _largest(tangent)
    step = torch.where((size > 0) & (other > 0), size / other, torch.ones_like(size))
    step = step.clamp(1e-18, 1e18)
    above = local_covariance(image + step * tangent, mask, **constants)
    below = local_covariance(image - step * tangent, mask, **constants)
    mean, _ = local_covariance(tangent, mask, **constants)
    return mean, (above[1] - below[1]) / (2 * step[..., None, None])


def _batched(cores: tuple[int, ...], outputs: tuple[bool, ...]) -> VmapRule:
    """`folded`, with one image for every item where it is not mapped itself."""
    rule = folded(cores, outputs)

    def with_images(
        call: Any, size: int, in_dims: Any, tensors: Any, constants: Any
    ) -> tuple[Any, Any]:
        if in_dims[0] is None:
            tensors = (tensors[0].expand(size, *tensors[0].shape), *tensors[1:])
            in_dims = (0, *in_dims[1:])
        return rule(call, size, in_dims, tensors, constants)

    return with_images


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    image, mask = saved
    return local_covariance_backward(image, mask, *grads, **constants), None


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    image, mask = saved
    return _tangents(image, mask, tangents[0], constants)


def _second_backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    image, mask, _, covariance_gradient = saved
    (cotangent,) = grads
    mean, covariance, again = None, None, None
    if needs[2] or needs[3]:
        # Windows without a result pass nothing.
        mean, covariance = (
            torch.where(torch.isnan(t), torch.zeros_like(t), t)
            for t in _tangents(image, mask, cotangent, constants)
        )
    if needs[0] and covariance_gradient is not None:
        gaps = _with_gaps(image, cotangent)
        again = local_covariance_backward(gaps, mask, None, covariance_gradient, **constants)
    return again, None, mean if needs[2] else None, covariance if needs[3] else None


def _second_jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    image, mask, _, covariance_gradient = saved
    image_dot, _, mean_dot, covariance_dot = tangents
    moved = torch.zeros_like(image)
    if mean_dot is not None or covariance_dot is not None:
        moved = local_covariance_backward(image, mask, mean_dot, covariance_dot, **constants)
    if image_dot is not None and covariance_gradient is not None:
        gaps = _with_gaps(image, image_dot)
        moved = moved + local_covariance_backward(
            gaps, mask, None, covariance_gradient, **constants
        )
    return moved


local_covariance_backward = define(
    "local_covariance_backward",
    "(Tensor image, Tensor? mask, Tensor? mean_gradient, Tensor? covariance_gradient, *, "
    f"{_OPTIONS}) -> Tensor",
    forward=_forward_of_backward,
    fake=_fake_backward,
    save=lambda tensors, outputs: tensors,
    backward=_second_backward,
    jvp=_second_jvp,
    vmap=_batched((3, 2, 4, 5), (True,)),
)

local_covariance = define(
    "local_covariance",
    f"(Tensor image, Tensor? mask, *, {_OPTIONS}) -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: tensors,
    backward=_backward,
    jvp=_jvp,
    vmap=_batched((3, 2), (True, True)),
)

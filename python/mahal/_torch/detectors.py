"""Scores against one background, with gradients: Mahalanobis, RX, ACE, matched filter, CEM."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import real_dtype_name, stream, workspace
from mahal._torch._linalg import solve
from mahal._torch._outputs import arguments, as_pixels, empty_if, precise_dtype
from mahal._torch._recipe import define, define_backward, folded, gradients_of, tangents_of
from mahal.ops._estimators import Estimation, report_estimates
from mahal.ops.mahalanobis import score_into

Tensor = Any

_SAMPLE_COVARIANCE: Estimation = ("scm", 1e-3, 5.0, 1e-6, 100)


def _real_dtype(like: Tensor) -> Any:
    return getattr(torch, real_dtype_name(like))


def _score_shape(image: Tensor, target: Tensor | None) -> tuple[int, ...]:
    maps = () if target is None else (target.shape[0],)
    return (*image.shape[:-1], *maps)


def _plain_scores(
    image: Tensor,
    target: Tensor | None,
    mean: Tensor | None,
    background: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    *,
    score: str,
    center: bool,
    estimate: bool,
) -> Tensor:
    """The scores in torch. Those of pixels that are not used are without meaning."""
    bands, exact = image.shape[-1], precise_dtype(image)
    pixels = image.reshape(-1, bands).to(exact)
    if estimate:
        samples = pixels if background is None else background.reshape(-1, bands).to(exact)
        usable = torch.isfinite(samples.detach()).all(-1)
        if mask is not None and background is None:
            usable = usable & mask.reshape(-1)
        count = usable.sum()
        samples = torch.where(usable[:, None], samples, 0)
        mean = samples.sum(0) / count if center else torch.zeros_like(samples[0])
        if covariance is None:
            moved = torch.where(usable[:, None], samples - mean, 0)
            covariance = moved.mT @ moved.conj() / (count - int(center))
        used = torch.isfinite(pixels.detach()).all(-1)
        pixels = torch.where(used[:, None], pixels, mean.detach() + 1)
    assert mean is not None
    assert covariance is not None
    factor = torch.linalg.cholesky(covariance.to(exact))
    y = solve(factor, pixels - mean)
    energy = (y * y.conj()).real.sum(-1)
    if target is None:
        scores = energy
    else:
        w = solve(factor, target.to(exact) - mean)
        length = (w * w.conj()).real.sum(-1)
        product = y @ w.mH
        # A pixel on the mean has the score zero, and no gradient.
        safe = torch.where(energy == 0, 1, energy)[:, None]
        size = product.abs() if image.is_complex() else product
        if score == "ace":
            scores = (product * product.conj()).real / (safe * length)
        elif score == "signed_ace":
            scores = product / (safe * length).sqrt()
        elif score == "normalized_filter":
            scores = size / length.sqrt()
        else:
            scores = size / length
    return scores.reshape(_score_shape(image, target)).to(_real_dtype(image))


def _fake_backward(
    grad: Tensor,
    image: Tensor,
    target: Tensor | None,
    mean: Tensor | None,
    background: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    *,
    needs: list[bool],
    **_: Any,
) -> Any:
    exact = precise_dtype(image)

    def room(place: int, like: Tensor | None, dtype: Any) -> Tensor:
        shape = () if like is None else like.shape
        return empty_if(needs[place] and like is not None, image, shape, dtype)

    return (
        room(0, image, image.dtype),
        room(1, target, exact),
        room(2, mean, exact),
        room(3, background, image.dtype),
        room(4, covariance, exact),
    )


def _forward_backward(
    grad: Tensor,
    image: Tensor,
    target: Tensor | None,
    mean: Tensor | None,
    background: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    *,
    caller: str,
    score: str,
    center: bool,
    estimate: bool,
    needs: list[bool],
    threads: int = 0,
) -> Any:
    outputs = _fake_backward(grad, image, target, mean, background, covariance, mask, needs=needs)
    if not image.numel():
        return tuple(output.zero_() for output in outputs)
    pixels = as_pixels(image)
    flat = grad if image.ndim <= 3 else grad.reshape(pixels.shape[:-1])
    inputs = (flat, pixels, target, mean, background, covariance, mask)
    memory = workspace(
        pixels,
        _core.detector_backward_workspace(caller, score, *inputs, center, estimate, threads),
    )
    options = (center, estimate, threads, stream(pixels))
    call: Any = (caller, score, *inputs, *arguments(outputs), memory, *options)
    _core.detector_backward(*call)
    return outputs


def _plain_backward(
    grad: Tensor,
    *tensors: Tensor,
    caller: str,
    score: str,
    center: bool,
    estimate: bool,
    needs: list[bool],
    threads: int = 0,
) -> Any:
    image = tensors[0]
    constants = {"score": score, "center": center, "estimate": estimate}
    found = gradients_of(_plain_scores, tensors, constants, (grad,), (*needs, False))
    dtypes = (image.dtype, *[precise_dtype(image)] * 2, image.dtype, precise_dtype(image))
    return tuple(
        image.new_zeros(0, dtype=dtype) if output is None else output.to(dtype)
        for output, dtype in zip(found, dtypes, strict=False)
    )


detector_backward = define_backward(
    "detector_backward",
    "(Tensor grad, Tensor image, Tensor? target, Tensor? mean, Tensor? background,"
    " Tensor? covariance, Tensor? mask, *, str caller, str score, bool center, bool estimate,"
    " bool[] needs, int threads=0) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


def _mahalanobis(x: Tensor, mean: Tensor, covariance: Tensor, *, threads: int = 0) -> Tensor:
    scores = torch.empty(x.shape[:-1], dtype=_real_dtype(x), device=x.device)
    if x.numel():
        score_into(scores, x, mean, covariance, threads)
    return scores


def _fake_mahalanobis(x: Tensor, mean: Tensor, covariance: Tensor, *, threads: int = 0) -> Tensor:
    return torch.empty(x.shape[:-1], dtype=_real_dtype(x), device=x.device)


def _backward_of_mahalanobis(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    x, mean, covariance = saved
    if mean.ndim == 2 and not x.numel():
        zeros = (torch.zeros_like(t) for t in saved)
        return tuple(z if needed else None for z, needed in zip(zeros, needs, strict=True))
    if mean.ndim == 2:
        found = [
            _backward_of_mahalanobis(
                (x[..., k, :], mean[k], covariance[k]), constants, (grads[0][..., k],), needs
            )
            for k in range(len(mean))
        ]
        axes = (-2, 0, 0)
        return tuple(
            torch.stack(column, axis) if needed else None
            for column, axis, needed in zip(zip(*found, strict=True), axes, needs, strict=True)
        )
    found = detector_backward(
        grads[0],
        x,
        None,
        mean,
        None,
        covariance,
        None,
        caller="mahalanobis",
        score="distance",
        center=True,
        estimate=False,
        needs=[needs[0], False, needs[1], False, needs[2]],
        threads=constants["threads"],
    )
    pairs = zip((found[0], found[2], found[4]), saved, needs, strict=True)
    return tuple(g.to(t.dtype) if needed else None for g, t, needed in pairs)


def _jvp_of_mahalanobis(saved: Any, constants: Any, tangents: Any) -> Any:
    def plain(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        return _plain_scores(
            x, None, mean, None, covariance, None, score="distance", center=True, estimate=False
        )

    if saved[1].ndim == 2:
        return tangents_of(torch.vmap(plain, (-2, 0, 0), -1), saved, {}, tangents)
    return tangents_of(plain, saved, {}, tangents)


def _map_mahalanobis(
    call: Any, size: int, in_dims: Any, tensors: Any, constants: Any
) -> tuple[Any, Any]:
    cores = (1, None, None) if tensors[1].ndim - (in_dims[1] is not None) == 1 else (2, None, None)
    return folded(cores)(call, size, in_dims, tensors, constants)


mahalanobis = define(
    "mahalanobis",
    "(Tensor x, Tensor mean, Tensor covariance, *, int threads=0) -> Tensor",
    forward=_mahalanobis,
    fake=_fake_mahalanobis,
    save=lambda tensors, outputs: tensors,
    backward=_backward_of_mahalanobis,
    jvp=_jvp_of_mahalanobis,
    vmap=_map_mahalanobis,
)


def _detect(
    image: Tensor,
    target: Tensor | None,
    background: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    *,
    caller: str,
    score: str,
    center: bool,
    singular: str,
    threads: int = 0,
) -> Any:
    scores, status = _fake_detect(image, target, background, covariance, mask)
    rest = (mask, scores, status)
    load, where = singular == "load", ((0, 0), "shift")
    if target is None:
        memory = workspace(
            image,
            _core.rx_workspace(
                image, background, covariance, *where, center, _SAMPLE_COVARIANCE, threads
            ),
        )
        _core.rx(
            image, background, covariance, *rest, memory, *where, load, center,
            _SAMPLE_COVARIANCE, threads, stream(image), None, None,
        )  # fmt: skip
    else:
        given = (image, target, background, covariance)
        memory = workspace(
            image,
            _core.matched_workspace(*given, score, *where, center, _SAMPLE_COVARIANCE, threads),
        )
        _core.matched(
            *given, *rest, memory, score, *where, center, load,
            _SAMPLE_COVARIANCE, threads, stream(image), None,
        )  # fmt: skip
    report_estimates(caller, status, "scm", singular)
    return scores, status


def _fake_detect(
    image: Tensor,
    target: Tensor | None,
    background: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    **_: Any,
) -> Any:
    scores = torch.empty(_score_shape(image, target), dtype=_real_dtype(image), device=image.device)
    return scores, torch.empty(image.shape[:-1], dtype=torch.uint8, device=image.device)


def _kind(constants: Any) -> dict[str, Any]:
    """Score and centring as the gradient knows them."""
    score, center = constants["score"], constants["center"]
    if score in ("cem", "centered_cem"):
        return {"score": "filter", "center": score == "centered_cem"}
    return {"score": score, "center": center}


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    image, target, background, covariance, mask = saved
    found = detector_backward(
        grads[0],
        image,
        target,
        None,
        background,
        covariance,
        mask,
        caller=constants["caller"],
        **_kind(constants),
        estimate=True,
        needs=[needs[0], needs[1], False, needs[2], needs[3]],
        threads=constants["threads"],
    )
    pairs = zip((found[0], found[1], found[3], found[4]), saved, needs, strict=False)
    return (*(g.to(t.dtype) if needed else None for g, t, needed in pairs), None)


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    image, target, background, covariance, mask = saved
    found = tangents_of(
        _plain_scores,
        (image, target, None, background, covariance, mask),
        {**_kind(constants), "estimate": True},
        (tangents[0], tangents[1], None, tangents[2], tangents[3], None),
    )
    return found[0], None


detect = define(
    "detect",
    "(Tensor image, Tensor? target, Tensor? background, Tensor? covariance, Tensor? mask, *,"
    " str caller, str score, bool center, str singular, int threads=0) -> (Tensor, Tensor)",
    forward=_detect,
    fake=_fake_detect,
    save=lambda tensors, outputs: tensors,
    backward=_backward,
    jvp=_jvp,
)

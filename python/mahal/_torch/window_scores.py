"""Local RX, ACE and matched filter, with gradients."""

from __future__ import annotations

from typing import Any

import torch

from mahal import _core
from mahal._arrays import stream, workspace
from mahal._torch._recipe import define, define_backward, gradients_of, tangents_of
from mahal._torch.local_covariance import local_covariance
from mahal.ops._estimators import Estimation, report_estimates
from mahal.ops._window_gradients import window_scores_backward as backward_kernel

Tensor = Any

_SAMPLE_COVARIANCE: Estimation = ("scm", 1e-3, 5.0, 1e-6, 100)
_CALLERS = {"rx": "rx", "filter": "matched_filter", "normalized_filter": "matched_filter"}


def _shape(image: Tensor, target: Tensor | None, score: str) -> tuple[int, ...]:
    maps = 1 if target is None or score == "subspace_ace" else target.shape[0]
    return (*image.shape[:-1], maps)


def _forward(
    image: Tensor,
    target: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    *,
    score: str,
    window: list[int],
    border: str,
    center: bool,
    singular: str,
    threads: int = 0,
) -> Any:
    scores, status = _fake(image, target, covariance, mask, score=score)
    sides, load = (window[0], window[1]), singular == "load"
    rest = (mask, scores, status)
    if target is None:
        memory = workspace(
            image,
            _core.rx_workspace(
                image, None, covariance, sides, border, center, _SAMPLE_COVARIANCE, threads
            ),
        )
        _core.rx(
            image, None, covariance, *rest, memory, sides, border, load, center,
            _SAMPLE_COVARIANCE, threads, stream(image), None, None,
        )  # fmt: skip
    else:
        given = (image, target, None, covariance)
        memory = workspace(
            image,
            _core.matched_workspace(
                *given, score, sides, border, center, _SAMPLE_COVARIANCE, threads
            ),
        )
        _core.matched(
            *given, *rest, memory, score, sides, border, center, load,
            _SAMPLE_COVARIANCE, threads, stream(image), None,
        )  # fmt: skip
    what = "a singular covariance"
    if target is not None:
        what += " or a target without a direction of its own"
    loads = target is None or center
    report_estimates(_CALLERS.get(score, "ace"), status, "scm", singular, what=what, loads=loads)
    return scores, status


def _fake(
    image: Tensor,
    target: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    *,
    score: str,
    **_: Any,
) -> Any:
    return (
        torch.empty(_shape(image, target, score), dtype=image.dtype, device=image.device),
        torch.empty(image.shape[:-1], dtype=torch.uint8, device=image.device),
    )


def _plain(
    image: Tensor,
    target: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    status: Tensor,
    *,
    score: str,
    window: list[int],
    border: str,
    center: bool,
    threads: int = 0,
) -> Tensor:
    """The scores from maps of covariances; zero where the status is not."""
    exact = image.double()
    good = (status == 0)[..., None]
    means, matrices = local_covariance(
        exact, mask, windows=window, border=border, ddof=1, center=center, threads=threads
    )
    mean = torch.where(good, means[:, :, 0], 0)
    apart = torch.where(good, exact - mean, 0)
    if covariance is None:
        unit = torch.eye(image.shape[-1], dtype=exact.dtype, device=image.device)
        covariance = torch.where(good[..., None], matrices[:, :, 0], unit)
    factor = torch.linalg.cholesky(covariance.double())
    y = torch.linalg.solve_triangular(factor, apart[..., None], upper=False)
    energy = y.square().sum((-2, -1))[..., None]
    if target is None:
        return torch.where(good, energy, 0).to(image.dtype)
    aims = torch.where(good[..., None], target.double() - mean[:, :, None], 1)
    w = torch.linalg.solve_triangular(factor, aims.mT, upper=False)
    products = (w.mT @ y)[..., 0]
    # A pixel on the mean has the score 0, and no gradient.
    safe = torch.where(energy == 0, 1, energy)
    length = w.square().sum(-2)
    if score == "ace":
        scores = products.square() / (safe * length)
    elif score == "signed_ace":
        scores = products / (safe * length).sqrt()
    elif score == "subspace_ace":
        unit = torch.eye(w.shape[-1], dtype=exact.dtype, device=image.device)
        gram = torch.where(good[..., None], w.mT @ w, unit)
        shares = torch.linalg.solve(gram, products[..., None])[..., 0]
        scores = (products * shares).sum(-1, keepdim=True) / safe
    elif score == "normalized_filter":
        scores = products / length.sqrt()
    else:
        scores = products / length
    return torch.where(good, scores, 0).to(image.dtype)


def _forward_backward(
    grad: Tensor,
    image: Tensor,
    target: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    status: Tensor,
    *,
    score: str,
    window: list[int],
    border: str,
    center: bool,
    needs: list[bool],
    threads: int = 0,
) -> Any:
    found = backward_kernel(
        image,
        target,
        covariance,
        mask,
        status,
        grad,
        (needs[0], needs[1]),
        score,
        (window[0], window[1]),
        border,
        center,
        threads,
    )
    return tuple(_nothing(image) if t is None else t for t in found)


def _nothing(image: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.float64, device=image.device)


def _fake_backward(
    grad: Tensor,
    image: Tensor,
    target: Tensor | None,
    covariance: Tensor | None,
    mask: Tensor | None,
    status: Tensor,
    *,
    needs: list[bool],
    **_: Any,
) -> Any:
    inputs = ((target, needs[0]), (covariance, needs[1]))
    rest = (
        torch.empty(t.shape, dtype=torch.float64, device=image.device)
        if needed and t is not None
        else _nothing(image)
        for t, needed in inputs
    )
    return torch.empty(image.shape, dtype=image.dtype, device=image.device), *rest


def _plain_backward(grad: Tensor, *tensors: Tensor, needs: list[bool], **constants: Any) -> Any:
    image = tensors[0]
    wanted = (True, needs[0], needs[1], False, False)
    found = gradients_of(_plain, tensors, constants, (grad,), wanted)[:3]
    dtypes = (image.dtype, torch.float64, torch.float64)
    return tuple(
        _nothing(image) if t is None else t.to(dtype)
        for t, dtype in zip(found, dtypes, strict=True)
    )


window_scores_backward = define_backward(
    "window_scores_backward",
    "(Tensor grad, Tensor image, Tensor? target, Tensor? covariance, Tensor? mask, Tensor status,"
    " *, str score, int[] window, str border, bool center, bool[] needs, int threads=0)"
    " -> (Tensor, Tensor, Tensor)",
    forward=_forward_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


def _options(constants: Any) -> dict[str, Any]:
    return {k: v for k, v in constants.items() if k != "singular"}


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    _, target, covariance, _, _ = saved
    wanted = [bool(needs[1]), bool(needs[2])]
    image, to_target, to_covariance = window_scores_backward(
        grads[0], *saved, needs=wanted, **_options(constants)
    )
    return (
        image if needs[0] else None,
        to_target.to(target.dtype) if needs[1] else None,
        to_covariance.to(covariance.dtype) if needs[2] else None,
        None,
    )


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    status = saved[4]
    (moved,) = tangents_of(_plain, saved, _options(constants), (*tangents, None))
    return torch.where((status == 0)[..., None], moved, float("nan")), None


window_scores = define(
    "window_scores",
    "(Tensor image, Tensor? target, Tensor? covariance, Tensor? mask, *,"
    " str score, int[] window, str border, bool center, str singular, int threads=0)"
    " -> (Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (*tensors, outputs[1]),
    backward=_backward,
    jvp=_jvp,
)

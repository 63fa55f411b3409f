"""Target spectra as the kernels take them."""

from __future__ import annotations

from typing import Any

from mahal._arrays import Array, as_float, check_rank


def as_targets(
    op: str, target: Any, image: Array, *, differentiable: bool = False
) -> tuple[Array, bool]:
    """Targets as (targets, bands), and whether a single spectrum was meant."""
    target = as_float(op, "target", target, like=image, differentiable=differentiable)
    check_rank(op, "target", target, 1, 2)
    return (target[None], True) if target.ndim == 1 else (target, False)

"""Outputs of kernels, of which some may not be wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

Tensor = Any


def precise_dtype(like: Tensor) -> Any:
    """Double precision, real or complex."""
    return torch.complex128 if like.is_complex() else torch.float64


def empty_if(needed: bool, like: Tensor, shape: Sequence[int], dtype: Any = None) -> Tensor:
    """Memory for an output, or an empty tensor where it is not needed."""
    chosen = tuple(shape) if needed else (0,)
    return torch.empty(chosen, dtype=dtype or like.dtype, device=like.device)


def arguments(outputs: Sequence[Tensor]) -> Any:
    """The outputs as a kernel takes them: None where there is nothing to write."""
    return [output if output.numel() else None for output in outputs]


def as_pixels(x: Tensor) -> Tensor:
    """Spectra with at most the two leading axes that kernels take."""
    return x if x.ndim <= 3 else x.reshape(-1, x.shape[-1])

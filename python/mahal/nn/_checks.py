"""Arguments of the modules, and the precision they work in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

Tensor = Any


def as_count(module: str, argument: str, value: Any) -> int:
    """A positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{module}: {argument}: must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{module}: {argument}: must be positive, got {value}")
    return value


def _real(module: str, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{module}: {argument}: must be a number, got {value!r}")
    return float(value)


def as_share(module: str, argument: str, value: Any) -> float:
    """A number from 0 to 1."""
    number = _real(module, argument, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{module}: {argument}: must be from 0 to 1, got {value!r}")
    return number


def as_number(module: str, argument: str, value: Any, *, positive: bool = False) -> float:
    """A finite number that is not negative, or positive."""
    number = _real(module, argument, value)
    if not 0 <= number < float("inf") or (positive and number == 0):
        rule = "positive" if positive else "not negative"
        raise ValueError(f"{module}: {argument}: must be finite and {rule}, got {value!r}")
    return number


def check_features(module: str, argument: str, x: Any, size: int) -> None:
    """A real floating tensor with so many features in axis 1."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(
            f"{module}: {argument}: must be a torch tensor, got {type(x).__module__}."
            f"{type(x).__qualname__}"
        )
    if not x.is_floating_point():
        raise TypeError(f"{module}: {argument}: must be real floating point, got {x.dtype}")
    if x.ndim < 2 or x.shape[1] != size:
        raise ValueError(
            f"{module}: {argument}: must have shape (batch, {size}, ...), got {tuple(x.shape)}"
        )


def check_device(module: str, argument: str, x: Tensor, own: Tensor) -> None:
    """The tensor is where the module is."""
    if x.device != own.device:
        raise ValueError(
            f"{module}: {argument}: must be on the device of the module ({own.device}), "
            f"got {x.device}"
        )


def working_dtype(x: Tensor) -> torch.dtype:
    """float32 for half precision, others as they are."""
    return torch.float32 if x.element_size() < 4 else x.dtype


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast off: products of covariances and of whitened values do not bear half precision."""
    off: AbstractContextManager[Any] = torch.autocast(x.device.type, enabled=False)
    return off

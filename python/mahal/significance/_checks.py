"""Checks and vocabulary that all laws share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Background = Literal["local", "global"]
Mean = Literal["estimated", "known"]
Floats = npt.NDArray[np.float64]


def as_rate(op: str, value: npt.ArrayLike, name: str = "false_alarm_rate") -> Floats:
    """Probabilities between 0 and 1, both excluded."""
    rate = np.asarray(value, dtype=np.float64)
    bad = ~((rate > 0) & (rate < 1))
    if np.any(bad):
        raise ValueError(
            f"{op}: {name}: must be more than 0 and less than 1, got {first(rate, bad)}"
        )
    return rate


def as_scores(op: str, value: npt.ArrayLike, low: float, high: float = np.inf) -> Floats:
    """Scores in their range; NaN passes."""
    scores = np.asarray(value, dtype=np.float64)
    # Rounding may carry a bounded score an ulp or two past its end.
    slack = 8 * np.finfo(np.float32).eps if np.isfinite(high) else 0.0
    bad = (scores < low - (slack if low < 0 else 0.0)) | (scores > high + slack)
    if np.any(bad):
        rule = "must not be negative" if high == np.inf else f"must lie in [{low:g}, {high:g}]"
        raise ValueError(f"{op}: scores: {rule}, got {first(scores, bad)}")
    return np.clip(scores, low, high)


def as_bands(op: str, bands: int, least: int = 1) -> int:
    """Number of bands."""
    if not isinstance(bands, (int, np.integer)) or bands < least:
        raise ValueError(f"{op}: bands: must be an integer of at least {least}, got {bands!r}")
    return int(bands)


def as_samples(
    op: str, samples: npt.ArrayLike, bands: int, needed: int, name: str = "samples"
) -> Floats:
    """Sample counts; NaN where there are fewer than `needed`, an error where all are."""
    count = np.asarray(samples, dtype=np.float64)
    # A fractional count stands for samples that are partly dependent.
    enough = count > needed - 1
    if not np.any(enough):
        raise ValueError(
            f"{op}: {name}: needs at least {needed} for {bands} bands, "
            f"got {np.max(count) if count.size else 'none'}"
        )
    return np.where(enough, count, np.nan)


def check_option(op: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    """One of a few words."""
    if value not in allowed:
        words = ", ".join(map(repr, allowed[:-1])) + f" or {allowed[-1]!r}"
        raise ValueError(f"{op}: {name}: must be {words}, got {value!r}")


def first(values: Floats, bad: npt.NDArray[np.bool_]) -> float:
    """First value that breaks a rule, for the message."""
    return float(values[bad].flat[0]) if values.ndim else float(values)

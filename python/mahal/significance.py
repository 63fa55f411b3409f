"""False-alarm thresholds and p-values of RX scores on a Gaussian background.

A score ``D = (x - m)^H S^-1 (x - m)`` follows a known law when the pixel ``x`` and the N samples
behind the mean ``m`` and the covariance ``S`` are independent draws of one Gaussian with p bands.
Which law depends on two questions.

Is the pixel one of the samples?

- ``background="local"``: no. A dual window with a guard, or a background from another scene.
- ``background="global"``: yes. Statistics of the whole image, or a window without a guard.

Where does the mean come from?

- ``mean="estimated"``: from the samples, with the unbiased covariance (divisor N - 1).
- ``mean="known"``: given, with the divisor N in the covariance.

==========  =========  ================================================
background  mean       law for real data
==========  =========  ================================================
local       estimated  D N (N - p) / ((N + 1) (N - 1) p) ~ F(p, N - p)
local       known      D (N - p + 1) / (N p) ~ F(p, N - p + 1)
global      estimated  D N / (N - 1)^2 ~ Beta(p / 2, (N - p - 1) / 2)
global      known      D / N ~ Beta(p / 2, (N - p) / 2)
==========  =========  ================================================

For circular complex data both degrees of freedom of F, and both parameters of Beta, are doubled.

Sources: H. Hotelling, Ann. Math. Statist. 2 (1931); R. Gnanadesikan and J. R. Kettenring,
Biometrics 28 (1972); N. C. Giri, Ann. Math. Statist. 36 (1965) for complex data. The law is exact
for every single pixel; pixels that share samples are dependent. Real scenes have heavier tails than
the model, so the share of background pixels above a threshold can exceed the rate asked for.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["rx_pvalue", "rx_threshold", "window_samples"]

Background = Literal["local", "global"]
Mean = Literal["estimated", "known"]
Border = Literal["shift", "reflect", "valid"]
Floats = npt.NDArray[np.float64]


class _Law(NamedTuple):
    """D = scale q for a bounded law, scale q / (1 - q) otherwise, with q ~ Beta(first, second)."""

    first: Floats
    second: Floats
    scale: Floats
    bounded: bool


def rx_threshold(
    false_alarm_rate: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Score that RX exceeds with a chosen probability on a pure Gaussian background.

    Parameters
    ----------
    false_alarm_rate : array_like
        Probability, more than 0 and less than 1.
    bands : int
        Number of bands p.
    samples : array_like
        Number of background samples N behind each covariance: ``outer**2 - inner**2`` for a window,
        all used pixels for global statistics, or a map of counts (see `window_samples`).
    background : {"local", "global"}
        Whether the pixel is outside ("local") or inside ("global") its own background.
    mean : {"estimated", "known"}
        Whether the mean was estimated with the covariance or given.
    complex_data : bool
        Circular complex samples instead of real ones.

    Returns
    -------
    float or ndarray of float64
        Threshold on the squared Mahalanobis distance, for `false_alarm_rate` and `samples`
        broadcast together. NaN where a map entry of `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A rate out of range, bands below 1, an unknown option, or too few samples everywhere.
    """
    rate = np.asarray(false_alarm_rate, dtype=np.float64)
    if not np.all((rate > 0) & (rate < 1)):
        raise ValueError(
            "rx_threshold: false_alarm_rate: must be more than 0 and less than 1, "
            f"got {_first(rate, ~((rate > 0) & (rate < 1)))}"
        )
    law = _law("rx_threshold", bands, samples, background, mean, complex_data)
    from scipy import special

    if law.bounded:
        return (law.scale * special.betainccinv(law.first, law.second, rate))[()]
    # The complement 1 - q keeps its digits where q comes close to 1 (small rates).
    rest = special.betaincinv(law.second, law.first, rate)
    return (law.scale * (1.0 - rest) / rest)[()]


def rx_pvalue(
    scores: npt.ArrayLike,
    bands: int,
    samples: npt.ArrayLike,
    *,
    background: Background = "local",
    mean: Mean = "estimated",
    complex_data: bool = False,
) -> Any:
    """Probability that a pure Gaussian background pixel scores at least this high under RX.

    Parameters
    ----------
    scores : array_like
        Squared Mahalanobis distances, not negative; NaN gives NaN.
    bands, samples, background, mean, complex_data
        As for `rx_threshold`; `samples` broadcasts with `scores`.

    Returns
    -------
    float or ndarray of float64
        p-values in [0, 1]. NaN where the score is NaN or `samples` is too small for the bands.

    Raises
    ------
    ValueError
        A negative score, bands below 1, an unknown option, or too few samples everywhere.
    """
    values = np.asarray(scores, dtype=np.float64)
    if np.any(values < 0):
        raise ValueError(
            f"rx_pvalue: scores: must not be negative, got {_first(values, values < 0)}"
        )
    law = _law("rx_pvalue", bands, samples, background, mean, complex_data)
    from scipy import special

    if law.bounded:
        # Rounding may carry the largest score an ulp past the end of the law.
        share = np.minimum(values / law.scale, 1.0)
        return special.betaincc(law.first, law.second, share)[()]
    return special.betainc(law.second, law.first, law.scale / (law.scale + values))[()]


def window_samples(
    shape: tuple[int, int],
    window: int | tuple[int, int],
    *,
    border: Border = "shift",
    mask: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int64]:
    """Number of background samples in the window of every pixel.

    Parameters
    ----------
    shape : (rows, cols)
        Size of the image.
    window : int or (inner, outer)
        Odd sizes in pixels; one number is a window without a guard.
    border : {"shift", "reflect", "valid"}
        Border rule of `mahal.rx`. With "reflect" mirrored pixels count each time they appear.
    mask : ndarray of bool (rows, cols), optional
        True marks the pixels that are used.

    Returns
    -------
    ndarray of int64 (rows, cols)
        Counts; 0 outside the interior for ``border="valid"``.

    Raises
    ------
    ValueError
        Sizes that are even, inverted or larger than the image, or a mask of another shape.
    """
    rows, cols = shape
    inner, outer = (0, window) if isinstance(window, (int, np.integer)) else window
    if outer < 1 or outer % 2 == 0 or inner < 0 or (inner > 0 and inner % 2 == 0):
        raise ValueError(f"window_samples: window: sizes must be odd, got {window}")
    if inner >= outer:
        raise ValueError(f"window_samples: window: inner must be below outer, got {window}")
    if outer > min(rows, cols):
        raise ValueError(
            f"window_samples: window: must fit the image of {rows} x {cols} pixels, got {window}"
        )
    used = np.ones(shape, dtype=bool) if mask is None else np.asarray(mask)
    if used.shape != (rows, cols) or used.dtype != np.bool_:
        raise ValueError(
            f"window_samples: mask: must be boolean {(rows, cols)}, got {used.dtype} {used.shape}"
        )
    if border == "shift":
        return _box_count(used, outer) - _box_count(used, inner)
    reach = outer // 2
    if border == "reflect":
        padded = np.pad(used, reach, mode="reflect")
        count = _box_count(padded, outer) - _box_count(padded, inner)
        return count[reach : reach + rows, reach : reach + cols]
    if border == "valid":
        count = np.zeros(shape, dtype=np.int64)
        interior = (slice(reach, rows - reach), slice(reach, cols - reach))
        both = _box_count(used, outer) - _box_count(used, inner)
        count[interior] = both[interior]
        return count
    raise ValueError(f"window_samples: border: must be shift, reflect or valid, got {border!r}")


def _box_count(used: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.int64]:
    """Count of True in the box of each pixel, the box slid inside the image at its borders."""
    total = np.zeros((used.shape[0] + 1, used.shape[1] + 1), dtype=np.int64)
    total[1:, 1:] = used.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    low = [np.clip(np.arange(n) - width // 2, 0, n - width) for n in used.shape]
    top, left = np.ix_(low[0], low[1])
    bottom, right = top + width, left + width
    return total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]


def _law(
    op: str, bands: int, samples: npt.ArrayLike, background: str, mean: str, complex_data: bool
) -> _Law:
    if not isinstance(bands, (int, np.integer)) or bands < 1:
        raise ValueError(f"{op}: bands: must be an integer of at least 1, got {bands!r}")
    if background not in ("local", "global"):
        raise ValueError(f"{op}: background: must be 'local' or 'global', got {background!r}")
    if mean not in ("estimated", "known"):
        raise ValueError(f"{op}: mean: must be 'estimated' or 'known', got {mean!r}")
    count = np.asarray(samples, dtype=np.float64)
    inside, estimated = background == "global", mean == "estimated"
    free = count - bands + 1 - inside - estimated
    if not np.any(free > 0):
        raise ValueError(
            f"{op}: samples: needs at least {bands + inside + estimated} for {bands} bands, "
            f"got {count.max() if count.size else 'none'}"
        )
    count, free = (np.where(free > 0, value, np.nan) for value in (count, free))
    if inside:
        scale = (count - 1) ** 2 / count if estimated else count
    else:
        scale = (count + 1) * (count - 1) / count if estimated else count
    half = 1.0 if complex_data else 0.5
    return _Law(np.asarray(half * bands), half * free, scale, inside)


def _first(values: Floats, bad: npt.NDArray[np.bool_]) -> float:
    return float(values[bad].flat[0]) if values.ndim else float(values)

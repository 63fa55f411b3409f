"""Mean and covariance of a scene from those of its pieces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import mahal
from mahal._arrays import SingularError

Array = npt.NDArray[Any]

STRIP_BYTES = 8 << 20
# As the kernels do with a covariance of a whole image that is singular.
UNIT_LOADING = 1e-10


class Moments(NamedTuple):
    """Number, mean and centred sum of products of pixels, in double precision.

    Two of them merge into those of all their pixels (T. F. Chan, G. H. Golub and R. J. LeVeque,
    "Algorithms for computing the sample variance", Amer. Statist. 37, 1983), so that a scene needs
    one pass over its pieces, and each piece two passes over its pixels.
    """

    pixels: int
    mean: Array
    scatter: Array

    @classmethod
    def none(cls, bands: int, dtype: Any) -> Moments:
        """Of no pixel."""
        kind = np.complex128 if np.dtype(dtype).kind == "c" else np.float64
        return cls(0, np.zeros(bands, kind), np.zeros((bands, bands), kind))

    def covariance(self, center: bool = True, ddof: float = 1) -> Array:
        """Covariance, or the second moment about zero with divisor N."""
        if center:
            return self.scatter / (self.pixels - ddof)
        outer: Array = self.scatter / self.pixels + np.outer(self.mean, self.mean.conj())
        return outer


def merge(first: Moments, second: Moments) -> Moments:
    """Moments of the pixels of both."""
    if not first.pixels or not second.pixels:
        return first if first.pixels else second
    count = first.pixels + second.pixels
    step = second.mean - first.mean
    mean = first.mean + step * (second.pixels / count)
    share = first.pixels * (second.pixels / count)
    scatter = first.scatter + second.scatter + np.outer(step, step.conj()) * share
    return Moments(count, mean, scatter)


def merge_all(parts: Iterable[Moments]) -> Moments:
    """Moments of the pixels of all, merged in their order."""
    found: Moments | None = None
    for part in parts:
        found = part if found is None else merge(found, part)
    assert found is not None
    return found


def moments_of(block: Array, mask: Array | None, threads: int | None = None) -> Moments:
    """Moments of the usable pixels of a block (rows, cols, bands)."""
    rows, cols, bands = block.shape
    found = Moments.none(bands, block.dtype)
    step = max(1, STRIP_BYTES // (cols * bands * found.mean.itemsize))
    for row in range(0, rows, step):
        # In double precision strip by strip: a copy of the block would double its memory.
        strip = block[row : row + step].astype(found.mean.dtype)
        used = np.isfinite(strip).all(axis=-1)
        if mask is not None:
            used &= mask[row : row + step]
        count = int(used.sum())
        if count:
            mean, covariance = mahal.mean_covariance(strip, mask=used, ddof=0)
            found = merge(found, Moments(count, mean, covariance * count))
    return found


class Background(NamedTuple):
    """Mean and covariance that score every pixel, and whether the covariance had to be loaded."""

    mean: Array
    covariance: Array
    singular: bool = False


def background_of(
    op: str, moments: Moments, *, center: bool = True, singular: str = "load"
) -> Background:
    """What `mahal.rx` makes of the statistics of a whole image."""
    bands = moments.mean.size
    needed = bands + 1 if center else bands
    if moments.pixels < needed:
        raise ValueError(f"{op}: image: needs {needed} usable pixels or more, got {moments.pixels}")
    covariance = moments.covariance(center)
    mean = moments.mean if center else np.zeros_like(moments.mean)
    return checked(op, mean, covariance, singular)


def checked(op: str, mean: Array, covariance: Array, singular: str) -> Background:
    """The same of a given mean and covariance: loaded as far as it takes to invert it."""
    if _invertible(mean, covariance):
        return Background(mean, covariance)
    if singular == "raise":
        raise SingularError(f"{op}: image: the covariance must be positive definite")
    bands = mean.size
    trace = float(np.trace(covariance).real)
    extra = UNIT_LOADING * trace / bands if trace > 0 else 1.0
    while np.isfinite(extra):
        loaded = covariance + extra * np.eye(bands)
        if _invertible(mean, loaded):
            return Background(mean, loaded, True)
        extra *= 10
    raise SingularError(f"{op}: image: the covariance must be finite")


def _invertible(mean: Array, covariance: Array) -> bool:
    try:
        mahal.mahalanobis(mean[None], mean, covariance)
    except ValueError:
        return False
    return True

"""Distances, divergences and test statistics between covariance matrices."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from mahal import _core
from mahal._arrays import (
    Array,
    as_threads,
    check_choice,
    dtype_name,
    empty,
    library_of,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._field import as_field, is_complex, real_dtype

METRICS = (
    "frobenius",
    "logeuclid",
    "affine_invariant",
    "logdet",
    "wasserstein",
    "symmetric_kl",
    "hotelling_lawley",
    "wishart",
    "box_m",
)
"""Metrics of `covariance_distance` and `change_map`; the first five are distances."""


def check_metric(op: str, metric: str, image: Array) -> None:
    """ValueError for an unknown metric, TypeError for one that complex data have no use for."""
    check_choice(op, "metric", metric, METRICS)
    if metric == "box_m" and is_complex(image):
        raise TypeError(
            f"{op}: metric: 'box_m' is for real data, take 'wishart', got {dtype_name(image)}"
        )


def _looks(op: str, metric: str, looks: Any, size: int) -> tuple[float, float]:
    if metric not in ("wishart", "box_m"):
        if looks is not None:
            raise ValueError(f"{op}: looks: is for 'wishart' and 'box_m', got {looks!r}")
        return 0.0, 0.0
    pair = looks if isinstance(looks, tuple) else (looks, looks)
    try:
        first, second = (float(value) for value in pair)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: looks: must be a number or a pair, got {looks!r}") from None
    if not (size <= min(first, second) and max(first, second) < np.inf):
        raise ValueError(f"{op}: looks: must be finite and at least p = {size}, got {looks!r}")
    return first, second


def _broadcast(array: Array, shape: tuple[int, ...]) -> Array:
    if tuple(array.shape) == shape:
        return array
    if library_of(array) == "numpy":
        return np.broadcast_to(array, shape)
    if library_of(array) == "torch":
        return array.expand(shape)
    import cupy

    return cupy.broadcast_to(array, shape)


@overload
def covariance_distance(
    a: Array,
    b: Array,
    metric: str = ...,
    *,
    squared: bool = ...,
    looks: float | tuple[float, float] | None = ...,
    return_status: Literal[False] = ...,
    threads: int | None = ...,
) -> Array: ...
@overload
def covariance_distance(
    a: Array,
    b: Array,
    metric: str = ...,
    *,
    squared: bool = ...,
    looks: float | tuple[float, float] | None = ...,
    return_status: Literal[True],
    threads: int | None = ...,
) -> tuple[Array, Array]: ...
def covariance_distance(
    a: Array,
    b: Array,
    metric: str = "frobenius",
    *,
    squared: bool = False,
    looks: float | tuple[float, float] | None = None,
    return_status: bool = False,
    threads: int | None = None,
) -> Any:
    """How far covariance matrices are apart.

    Parameters
    ----------
    a, b : (..., p, p) arrays
        Symmetric or Hermitian matrices of one dtype, of which the lower triangles and the real
        parts of the diagonals are read. The axes before the last two broadcast, so that one
        matrix can be compared with many.
    metric : str
        With l the eigenvalues of A^-1 B and n, m the looks of A and B:

        ``frobenius``         ``||A - B||``
        ``logeuclid``         ``||log A - log B||``
        ``affine_invariant``  ``sqrt(sum ln(l)^2)``
        ``logdet``            ``sqrt(ln|(A + B) / 2| - (ln|A| + ln|B|) / 2)``, Jensen-Bregman
        ``wasserstein``       ``sqrt(tr A + tr B - 2 tr (B^1/2 A B^1/2)^1/2)``
        ``symmetric_kl``      ``sum(l + 1 / l) / 2 - p``; twice that for complex Gaussians
        ``hotelling_lawley``  ``tr(B^-1 A)``, not symmetric
        ``wishart``           ``-2 rho ln Q`` of complex Wishart matrices (Conradsen et al. 2003)
        ``box_m``             ``C M`` of real covariances (Box 1949)

        All but ``frobenius``, ``logeuclid`` and ``wasserstein`` keep their value when both
        matrices become ``W A W^H`` with an invertible W.
    squared : bool
        Square the first five, which are distances. The others have no root and do not change.
    looks : float or (float, float)
        For ``wishart`` and ``box_m``: number of independent samples behind A and B, less one
        where the mean was subtracted; at least p.
    return_status : bool
        Give a map of states as well.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    score : (...,) array
        Real, of the library and precision of ``a``; NaN where the status is not 0. Computed in
        float64.
    status : (...,) uint8 array
        With ``return_status``: 0 fine, 2 not positive definite to working precision (a pivot not
        above ``p * eps`` times its diagonal entry; ``frobenius`` does not ask for it), 3 a value
        that is not finite, or a score that overflows.

    Notes
    -----
    Differentiable in torch, in both matrices: the gradients are symmetric or Hermitian. Where both
    are the same the distances, roots or not, have gradient zero; so does a score that no loss
    depends on, whatever its status. Other scores with a status have NaN. Second derivatives read
    both triangles.

    Raises
    ------
    ValueError
        Wrong shapes, an unknown metric, looks that are missing or too few.
    TypeError
        Wrong dtypes, arrays of several libraries, ``box_m`` of complex matrices.

    References
    ----------
    A. Barachant, M. Congedo et al., pyRiemann, for the names of the distances.
    K. Conradsen, A. A. Nielsen, J. Schou and H. Skriver, IEEE Trans. Geosci. Remote Sens. 41
    (2003). G. E. P. Box, Biometrika 36 (1949). S. Sra, Proc. AMS 144 (2016), for ``logdet``.
    R. Bhatia, T. Jain and Y. Lim, Expo. Math. 37 (2019), for ``wasserstein``.
    """
    op = "covariance_distance"
    a = as_field(op, "a", a, differentiable=True)
    b = as_field(op, "b", b, like=a, differentiable=True)
    check_metric(op, metric, a)
    count = as_threads(op, threads)
    shape = tuple(a.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"{op}: a: must have shape (..., p, p) with p > 0, got {shape}")
    size = shape[-1]
    if tuple(b.shape[-2:]) != (size, size):
        raise ValueError(f"{op}: b: must have shape (..., {size}, {size}), got {tuple(b.shape)}")
    if dtype_name(a) != dtype_name(b):
        raise TypeError(f"{op}: b: must have the dtype of a ({dtype_name(a)}), got {dtype_name(b)}")
    try:
        batch = np.broadcast_shapes(shape[:-2], tuple(b.shape[:-2]))
    except ValueError:
        raise ValueError(
            f"{op}: b: must broadcast against a {shape}, got {tuple(b.shape)}"
        ) from None
    first, second = _looks(op, metric, looks, size)
    full = (*batch, size, size)
    a, b = _broadcast(a, full), _broadcast(b, full)
    if wants_torch(a, b):
        from mahal._torch.covariance_distance import covariance_distance as differentiable

        score, status = differentiable(
            a,
            b,
            metric=metric,
            squared=bool(squared),
            first=first,
            second=second,
            threads=count,
        )
        return (score, status) if return_status else score
    score = empty(a, batch, real_dtype(a))
    status = empty(a, batch, "uint8")
    if 0 not in batch:
        memory = workspace(
            a, _core.covariance_distance_workspace(a, b, metric, first, second, count)
        )
        _core.covariance_distance(
            a, b, score, status, memory, metric, bool(squared), first, second, count, stream(a)
        )
    return (score, status) if return_status else score

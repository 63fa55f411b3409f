"""Gradients of distances between covariance matrices, by the kernel."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import Array, dtype_name, empty, stream, workspace


def covariance_distance_backward(
    a: Array,
    b: Array,
    score: Array,
    status: Array,
    grad: Array,
    metric: str,
    squared: bool,
    looks: tuple[float, float] = (0.0, 0.0),
    threads: int = 0,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Array | None, Array | None]:
    """Gradients of the scores of `mahal.covariance_distance` with respect to both matrices.

    Parameters
    ----------
    a, b : (..., p, p) arrays of one shape
        As they were passed there.
    score, status : (...,) contiguous arrays
        As they came back.
    grad : (...,) contiguous array
        Derivative of a number by every score.
    metric, squared
        As there.
    looks : (float, float)
        Of ``wishart`` and ``box_m``.
    threads : int
        CPU threads, 0 for the default.
    needs : (bool, bool)
        Which gradients to compute.

    Returns
    -------
    grad_a, grad_b : (..., p, p) array or None
        Symmetric or Hermitian: ``dz = Re tr(G^H dA)``. Zero where both matrices are the same, but
        for ``hotelling_lawley``; NaN where the status is not 0 and ``grad`` is not zero.

    References
    ----------
    R. Bhatia, T. Jain and Y. Lim, Expo. Math. 37 (2019), for ``wasserstein``; R. Bhatia, Positive
    Definite Matrices (2007), chapters 2 and 6, for the others.
    """
    shape = tuple(a.shape)
    grad_a, grad_b = (empty(a, shape, dtype_name(a)) if need else None for need in needs)
    if 0 not in shape and any(needs):
        first, second = looks
        memory = workspace(
            a, _core.covariance_distance_backward_workspace(a, b, metric, first, second, threads)
        )
        _core.covariance_distance_backward(
            a,
            b,
            score,
            status,
            grad,
            grad_a,
            grad_b,
            memory,
            metric,
            squared,
            first,
            second,
            threads,
            stream(a),
        )
    return grad_a, grad_b

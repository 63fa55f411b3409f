"""Steps that ops on batches of Hermitian matrices share, written in torch."""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any


def stacked(call: Any, size: int, in_dims: Any, tensors: Any, constants: Any) -> Any:
    """Rule under vmap of an op whose tensors all have the same leading axes."""
    full = (
        t if t is None else t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    )
    results = call(*full, **constants)
    return results, (0 if isinstance(results, torch.Tensor) else (0,) * len(results))


def hermitian(matrix: Tensor) -> Tensor:
    """The Hermitian part."""
    return (matrix + matrix.mH) / 2


def inner(x: Tensor, y: Tensor) -> Tensor:
    """``Re tr(x^H y)``."""
    product = x.conj() * y
    return (product.real if product.is_complex() else product).sum((-2, -1))


def loaded(matrix: Tensor, loading: float) -> Tensor:
    """With so many times the mean of the diagonal added to it; its own adjoint."""
    if loading == 0:
        return matrix
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    mean = (diagonal.real if diagonal.is_complex() else diagonal).mean(-1)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return matrix + loading * mean[..., None, None] * eye


def _second_slopes(values: Tensor) -> Tensor:
    """Divided differences of the logarithm over three eigenvalues (..., p, p, p)."""
    every = torch.broadcast_tensors(
        values[..., :, None, None], values[..., None, :, None], values[..., None, None, :]
    )
    a, b, c = torch.stack(every).sort(0).values
    ratio = c / a
    near = ratio < 1.25
    # A series in the distances from the middle: sum (-1)^(k-1) h_(k-2) / k, where h are the
    # complete symmetric polynomials.
    middle = (a + b + c) / 3
    x, y, z = ((t - middle) / middle for t in (a, b, c))
    h_x, h_xy, h_xyz = torch.ones_like(x), torch.ones_like(x), torch.ones_like(x)
    series = torch.full_like(x, -0.5)
    for k in range(3, 24):
        h_x = x * h_x
        h_xy = h_x + y * h_xy
        h_xyz = h_xy + z * h_xyz
        series = series + (-1) ** (k - 1) / k * h_xyz

    def slope(low: Tensor, high: Tensor) -> Tensor:
        gap = high - low
        equal = gap == 0
        return torch.where(
            equal, 1 / low, torch.log1p(gap / low) / torch.where(equal, torch.ones_like(gap), gap)
        )

    wide = (slope(b, c) - slope(a, b)) / torch.where(near, torch.ones_like(a), c - a)
    return torch.where(near, series / middle**2, wide)


def second_log_derivative(matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Second derivative of the logarithm in two Hermitian directions.

    In the basis of the eigenvectors ``sum_j f_ijk (x_ij y_jk + y_ij x_jk)`` with second divided
    differences f (R. Bhatia, Matrix Analysis, 1997, section X.4). Symmetric in all three places:
    ``<z, D[x, y]> = <D[x, z], y>``.
    """
    values, vectors = torch.linalg.eigh(matrix)
    slopes = _second_slopes(values).to(matrix.dtype)
    x, y = (vectors.mH @ t @ vectors for t in (x, y))
    turned = torch.einsum("...ijk,...ij,...jk->...ik", slopes, x, y)
    return vectors @ (turned + turned.mH) @ vectors.mH

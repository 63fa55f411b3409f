"""Steps of derivatives that several ops share, written in torch."""

from __future__ import annotations

from typing import Any

import torch

from mahal._torch._matrices import hermitian

Tensor = Any


def solve(factor: Tensor, rows: Tensor, *, adjoint: bool = False) -> Tensor:
    """``L^-1 v`` or ``L^-H v`` for every row v (..., n)."""
    if adjoint:
        return torch.linalg.solve_triangular(factor.mH.mT, rows, upper=False, left=False)
    return torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False)


def _half_lower(matrix: Tensor) -> Tensor:
    """Lower triangle with half the diagonal, which is real for a Hermitian matrix."""
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    diagonal = diagonal.real.to(matrix.dtype)
    return matrix.tril(-1) + torch.diag_embed(diagonal / 2)


def cholesky_gradient(factor: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a Hermitian matrix from that of its lower factor (Murray, 2016, eq. 10)."""
    inner = _half_lower(factor.mH @ grad.tril())
    inner = inner + inner.mH
    left = torch.linalg.solve_triangular(factor.mH, inner, upper=True)
    return torch.linalg.solve_triangular(factor, left, upper=False, left=False) / 2


def cholesky_tangent(factor: Tensor, tangent: Tensor) -> Tensor:
    """Tangent of the lower factor from that of the matrix (Murray, 2016, eq. 8)."""
    left = torch.linalg.solve_triangular(factor, hermitian(tangent), upper=False)
    inner = torch.linalg.solve_triangular(factor.mH, left, upper=True, left=False)
    return factor @ _half_lower(inner)

"""Covariance pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mahal.nn._background import check_choice
from mahal.nn._checks import as_number, full_precision, working_dtype
from mahal.ops.covariance_log import covariance_log
from mahal.ops.local_covariance import local_covariance
from mahal.ops.multiscale_covariance import pack_upper

Tensor = Any


class LocalCovariance(nn.Module):
    """Covariance of the channels in a window around every pixel, as features.

    Parameters
    ----------
    window : int, (inner, outer), or a list of these
        As for `mahal.local_covariance`; a list adds an axis of scales.
    log : bool
        Logarithms of the covariances: matrices to which Euclidean layers apply (Arsigny et al.,
        2007).
    loading : float
        Of the logarithm: share of the mean variance that is added to the diagonal first.
    packed : bool
        The upper triangle as one axis, ``p (p + 1) / 2`` long, row by row, with entries off the
        diagonal times ``sqrt(2)``: products and distances of packed matrices are those of
        the matrices. With ``log`` these are the features of `mahal.multiscale_covariance`.
        Otherwise two axes.
    border : {"shift", "reflect", "valid"}
    ddof : int
    center : bool
        As for `mahal.local_covariance`.

    Notes
    -----
    Complex images have Hermitian covariances, whose diagonals are real.

    Examples
    --------
    >>> import torch
    >>> LocalCovariance(5, log=True)(torch.randn(2, 4, 20, 30)).shape
    torch.Size([2, 10, 20, 30])
    """

    def __init__(
        self,
        window: Any,
        *,
        log: bool = False,
        loading: float = 1e-3,
        packed: bool = True,
        border: str = "shift",
        ddof: int = 1,
        center: bool = True,
    ) -> None:
        super().__init__()
        self.window = window
        self.log = bool(log)
        self.loading = as_number("LocalCovariance", "loading", loading)
        self.packed = bool(packed)
        self.border = check_choice(
            "LocalCovariance", "border", border, ("shift", "reflect", "valid")
        )
        self.ddof = ddof
        self.center = center

    def extra_repr(self) -> str:
        return f"{self.window}, log={self.log}, packed={self.packed}, border={self.border!r}"

    def forward(self, x: Any) -> Tensor:
        """Covariances of a batch of images.

        Parameters
        ----------
        x : (batch, channels, rows, cols) tensor
            Real or complex.

        Returns
        -------
        (batch, packed, rows, cols) tensor, or (batch, channels, channels, rows, cols)
            With a list of windows (batch, scales, ...). Of the dtype of ``x``, computed in float32
            at least; a contiguous tensor of the last two axes is not promised.

        Raises
        ------
        ValueError, TypeError
            As `mahal.local_covariance`.
        """
        if not isinstance(x, torch.Tensor):
            raise TypeError(
                f"LocalCovariance: x: must be a torch tensor, got {type(x).__qualname__}"
            )
        if not (x.is_floating_point() or x.is_complex()):
            raise TypeError(f"LocalCovariance: x: must be floating point, got {x.dtype}")
        if x.ndim != 4:
            raise ValueError(
                f"LocalCovariance: x: must have shape (batch, channels, rows, cols), "
                f"got {tuple(x.shape)}"
            )
        with full_precision(x):
            covariance = local_covariance(
                x.to(working_dtype(x)).movedim(1, -1),
                self.window,
                border=self.border,
                ddof=self.ddof,
                center=self.center,
            )[1]
            if self.log:
                covariance = covariance_log(covariance, loading=self.loading)
            if self.packed:
                covariance = pack_upper(covariance, off_diagonal=2.0**0.5)
        # Scales and matrices, or what is left of them, go in front of the pixels.
        order = covariance.movedim((1, 2), (-2, -1))
        return order.to(x.dtype)

"""Losses from the Mahalanobis distance."""

from __future__ import annotations

from typing import Any

from torch import nn

from mahal.nn._background import Background, as_rows, check_choice
from mahal.nn._checks import check_features, full_precision, working_dtype

Tensor = Any


class MahalanobisLoss(nn.Module):
    """Squared Mahalanobis distance of features, or of residuals, to a Gaussian background.

    Parameters
    ----------
    num_features : int
        Size of axis 1.
    background : {"running", "fixed", "learned"}
        As for `ACE`; a learned one needs ``log_determinant``, or it would grow without end.
    structure : {"full", "diagonal", "isotropic"}
        Of the covariance; "diagonal" gives the loss of a heteroscedastic Gaussian.
    log_determinant : bool
        Add ``ln|S|``: twice the negative log-likelihood of a Gaussian but for a constant.
    reduction : {"mean", "sum", "none"}
        Over samples; features are summed.
    momentum, loading, synchronize
        As for `Background`.

    Attributes
    ----------
    background : Background

    Examples
    --------
    >>> import torch
    >>> loss = MahalanobisLoss(4, background="fixed")
    >>> _ = loss.background.fit(torch.randn(1000, 4))
    >>> loss(torch.zeros(2, 4)) < 0.1
    tensor(True)
    """

    def __init__(
        self,
        num_features: int,
        *,
        background: str = "running",
        structure: str = "full",
        log_determinant: bool = False,
        reduction: str = "mean",
        momentum: float | None = 0.1,
        loading: float = 1e-5,
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        self.reduction = check_choice(
            "MahalanobisLoss", "reduction", reduction, ("mean", "sum", "none")
        )
        check_choice("MahalanobisLoss", "background", background, ("running", "fixed", "learned"))
        self.log_determinant = bool(log_determinant)
        if background == "learned" and not self.log_determinant:
            raise ValueError(
                "MahalanobisLoss: log_determinant: must be True where the background is learned, "
                "got False"
            )
        self.background = Background(
            num_features,
            estimate=background,
            structure=structure,
            momentum=momentum,
            loading=loading,
            synchronize=synchronize,
        )

    def extra_repr(self) -> str:
        return f"log_determinant={self.log_determinant}, reduction={self.reduction!r}"

    def forward(self, x: Any, target: Any = None) -> Tensor:
        """The loss of a batch.

        Parameters
        ----------
        x : (batch, features, ...) tensor
        target : tensor of the shape of ``x``, optional
            Subtracted first; the background is then that of the residuals.

        Returns
        -------
        () tensor, or (batch, ...) without reduction
            Of the dtype of ``x``, in float32 at least.

        Raises
        ------
        ValueError, TypeError
            Wrong shapes, dtypes or devices.
        """
        size = self.background.num_features
        check_features("MahalanobisLoss", "x", x, size)
        if target is not None:
            check_features("MahalanobisLoss", "target", target, size)
            if target.shape != x.shape:
                raise ValueError(
                    f"MahalanobisLoss: target: must have the shape of x {tuple(x.shape)}, "
                    f"got {tuple(target.shape)}"
                )
        with full_precision(x):
            residual = x.to(working_dtype(x))
            if target is not None:
                residual = residual - target.to(working_dtype(target))
            if self.training:
                self.background.update(residual)
            y = self.background.whiten(as_rows(residual))
            loss = y.square().sum(-1)
            if self.log_determinant:
                loss = loss + self.background.log_determinant()
        if self.reduction == "none":
            return loss.reshape(x.shape[0], *x.shape[2:])
        return loss.mean() if self.reduction == "mean" else loss.sum()

"""Whitening with running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mahal.nn._background import Background, as_rows
from mahal.nn._checks import check_device, check_features, full_precision, working_dtype

Tensor = Any


class Whiten(nn.Module):
    """Whiten features: by the batch in training, by running statistics in evaluation.

    ``y = L^-1 (x - mean)`` with the Cholesky factor L of the covariance, over the batch and all
    axes behind the features. In training, gradients pass through mean and covariance, as they do in
    batch normalisation.

    Parameters
    ----------
    num_features : int
        Size of axis 1.
    structure : {"full", "diagonal", "isotropic"}
        ``diagonal`` is batch normalisation without an affine map; ``isotropic`` has one scale.
    momentum : float or None
        Weight of a new batch in the running statistics. None: all samples weigh the same.
    loading : float
        Share of the mean variance that is added to the diagonal. With 0 a batch must have more
        samples than features.
    synchronize : bool
        Statistics of the batches of all processes, where torch.distributed is initialised.

    Attributes
    ----------
    background : Background
        With the running statistics as buffers; its `fit` takes samples outside training.

    Notes
    -----
    Before any sample mean and covariance are 0 and I.

    Raises
    ------
    ValueError
        Wrong shapes or devices, or fewer than 2 samples in training.
    TypeError
        Features that are not real floating point.

    References
    ----------
    A. Siarohin, E. Sangineto and N. Sebe, ICLR 2019, for whitening by Cholesky factors.

    Examples
    --------
    >>> import torch
    >>> whiten = Whiten(3)
    >>> y = whiten(torch.randn(8, 3, 16, 16))
    >>> y.movedim(1, 0).reshape(3, -1).cov().sub(torch.eye(3)).abs().max() < 1e-3
    tensor(True)
    """

    def __init__(
        self,
        num_features: int,
        *,
        structure: str = "full",
        momentum: float | None = 0.1,
        loading: float = 1e-5,
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        self.background = Background(
            num_features,
            structure=structure,
            momentum=momentum,
            loading=loading,
            synchronize=synchronize,
        )

    def forward(self, x: Any) -> Tensor:
        """Whiten a batch.

        Parameters
        ----------
        x : (batch, features, ...) tensor

        Returns
        -------
        tensor of the shape and dtype of ``x``
            Computed in float32 at least.
        """
        background = self.background
        check_features("Whiten", "x", x, background.num_features)
        check_device("Whiten", "x", x, background.mean)
        with full_precision(x):
            rows = as_rows(x).to(torch.promote_types(working_dtype(x), background.mean.dtype))
            if self.training:
                y = background.apply_to(rows, *background.of_batch(x))
            else:
                y = background.whiten(rows)
            shape = (x.shape[0], *x.shape[2:], x.shape[1])
            return y.reshape(shape).movedim(-1, 1).to(x.dtype)

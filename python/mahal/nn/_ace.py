"""The adaptive cosine estimator as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mahal.nn._background import Background, as_rows, check_choice
from mahal.nn._checks import as_count, check_device, check_features, full_precision, working_dtype

Tensor = Any


def _unit(y: Tensor) -> Tensor:
    """Rows of length one; rows of zeros stay, and have no gradient."""
    squared = y.square().sum(-1, keepdim=True)
    there = squared > 0
    return y * torch.where(there, torch.where(there, squared, 1.0).rsqrt(), 0.0)


class ACE(nn.Module):
    """Cosines between features and learned signatures, in the whitened space of a background.

    ``s^T S^-1 (x - m) / (|s|_S |x - m|_S)`` with ``|v|_S^2 = v^T S^-1 v``: the LACE head of Peeples
    et al. (2022).

    Parameters
    ----------
    num_features : int
        Size of axis 1.
    num_signatures : int
        One or more, for instance one per class.
    background : {"running", "fixed", "learned"}
        ``running``: mean and covariance of the batch in training, through which gradients pass, and
        running averages of these in evaluation, as in `Whiten`. ``fixed``: those of `fit`.
        ``learned``: parameters, as in the source.
    structure : {"full", "diagonal", "isotropic"}
        Of the covariance; ``isotropic`` gives plain cosines about the mean.
    center_signatures : bool
        Signatures are points of the feature space, from which the mean is subtracted, instead of
        directions.
    signed : bool
        False: squared cosines.
    momentum, loading, synchronize
        As for `Background`.

    Attributes
    ----------
    signatures : (signatures, features) parameter
    background : Background

    References
    ----------
    J. Peeples, C. McCurley, S. Walker, D. Stewart and A. Zare, "Learnable adaptive cosine estimator
    (LACE) for image classification", WACV 2022. S. Kraut, L. Scharf and R. Butler, IEEE Trans.
    Signal Process. 53 (2005).

    Examples
    --------
    >>> import torch
    >>> head = ACE(16, 3)
    >>> head(torch.randn(8, 16)).shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_signatures: int = 1,
        *,
        background: str = "learned",
        structure: str = "full",
        center_signatures: bool = False,
        signed: bool = True,
        momentum: float | None = 0.1,
        loading: float = 1e-5,
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        self.num_features = as_count("ACE", "num_features", num_features)
        self.num_signatures = as_count("ACE", "num_signatures", num_signatures)
        check_choice("ACE", "background", background, ("running", "fixed", "learned"))
        self.center_signatures = bool(center_signatures)
        self.signed = bool(signed)
        self.background = Background(
            num_features,
            estimate=background,
            structure=structure,
            momentum=momentum,
            loading=loading,
            synchronize=synchronize,
        )
        self.signatures = nn.Parameter(torch.randn(num_signatures, num_features))

    def extra_repr(self) -> str:
        return f"{self.num_features}, {self.num_signatures}, signed={self.signed}"

    @torch.no_grad()
    def fit(self, x: Tensor, labels: Tensor | None = None) -> ACE:
        """Start from data: the background from all features, the signatures from labelled ones.

        Parameters
        ----------
        x : (batch, features, ...) tensor
        labels : (batch,) integer tensor, optional
            Which signature a sample is an example of; negative for none. A signature becomes the
            mean of its samples, less the mean of the background unless ``center_signatures``; one
            without samples stays.

        Returns
        -------
        ACE
            Itself.

        Raises
        ------
        ValueError, TypeError
            Wrong shapes, dtypes and labels; a learned background without labels.
        """
        check_features("ACE", "x", x, self.num_features)
        if self.background.estimate != "learned":
            self.background.fit(x)
        elif labels is None:
            raise ValueError("ACE: labels: must be given where the background is learned, got None")
        if labels is None:
            return self
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"ACE: labels: must be whole numbers, got {labels.dtype}")
        if tuple(labels.shape) != (x.shape[0],):
            raise ValueError(
                f"ACE: labels: must have shape ({x.shape[0]},), got {tuple(labels.shape)}"
            )
        if labels.numel() and int(labels.max()) >= self.num_signatures:
            raise ValueError(
                f"ACE: labels: must be below {self.num_signatures}, got {int(labels.max())}"
            )
        mean = self.background()[0]
        for k in range(self.num_signatures):
            own = x[labels == k]
            if own.shape[0] == 0:
                continue
            signature = as_rows(own).to(self.signatures.dtype).mean(0)
            self.signatures[k] = signature if self.center_signatures else signature - mean
        return self

    def forward(self, x: Any) -> Tensor:
        """Scores of a batch.

        Parameters
        ----------
        x : (batch, features, ...) tensor

        Returns
        -------
        (batch, signatures, ...) tensor
            From -1 to 1, squared without ``signed``; 0 where a feature vector is the mean itself.
            Of the dtype of ``x``, computed in float32 at least.

        Raises
        ------
        ValueError
            Wrong shapes or devices.
        TypeError
            Features that are not real floating point.
        """
        check_features("ACE", "x", x, self.num_features)
        check_device("ACE", "x", x, self.signatures)
        background = self.background
        with full_precision(x):
            if self.training and background.estimate == "running":
                mean, covariance = background.of_batch(x)
            else:
                mean, covariance = background()
            y = _unit(background.apply_to(as_rows(x).to(working_dtype(x)), mean, covariance))
            origin = mean if self.center_signatures else torch.zeros_like(mean)
            signatures = self.signatures.to(working_dtype(self.signatures))
            t = background.apply_to(signatures, origin, covariance)
            score = (y @ _unit(t).to(y.dtype).mT).clamp(-1, 1)
            score = score if self.signed else score.square()
            shape = (x.shape[0], *x.shape[2:], self.num_signatures)
            return score.reshape(shape).movedim(-1, 1).to(x.dtype)

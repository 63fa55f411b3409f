"""The Gaussian of every location of an embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import mahal
from mahal.models.padim import LocationStatistics

# Locations that are factored at a time: bounds the memory beside the result.
_CHUNK = 64


class MultiVariateGaussian(nn.Module):
    """Mean and covariance of the embeddings at every location, as PaDiM has them.

    Takes the place of the class of the same name in anomalib, as ``gaussian`` of its PaDiM model.
    Kept is ``W = L^-1`` with ``covariance + ridge I = L L^T``, so that the Mahalanobis distance is
    ``|W (x - mean)|`` and nothing can be negative under its root.

    Parameters
    ----------
    ridge : float
        Added to the diagonal of every covariance, in the units of the embeddings. 0.01 in the
        paper; anomalib adds 1e-5 more.
    inverse : bool
        False: `inv_covariance` is empty and saves its memory. For map generators that do not read
        it, such as `AnomalyMapGenerator`.

    Attributes
    ----------
    mean : (channels, locations) tensor
    whitening : (locations, channels, channels) tensor
        W, lower triangular. Both are buffers, empty before `fit`; they are what a state dict has.

    Notes
    -----
    State dicts of anomalib's class, with ``mean`` and ``inv_covariance``, load as well. The other
    way, assign both attributes to an object of that class.

    References
    ----------
    T. Defard, A. Setkov, A. Loesch and R. Audigier, "PaDiM: a patch distribution modeling framework
    for anomaly detection and localization", ICPR workshops, 2021, eq. 1 and 2.
    """

    mean: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, *, ridge: float = 0.01, inverse: bool = True) -> None:
        super().__init__()
        if not 0 <= ridge < float("inf"):
            raise ValueError(
                f"MultiVariateGaussian: ridge: must be finite and not negative, got {ridge!r}"
            )
        self.ridge = ridge
        self.inverse = inverse
        self.register_buffer("mean", torch.empty(0))
        self.register_buffer("whitening", torch.empty(0))
        self._inverse: torch.Tensor | None = None
        self._statistics = LocationStatistics()

    @torch.no_grad()
    def fit(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """Estimate mean and covariance (divisor n - 1) of every location.

        Parameters
        ----------
        embedding : (images, channels, rows, cols) tensor
            On the CPU or a CUDA device; two images or more.

        Returns
        -------
        list of two tensors
            ``mean`` and ``inv_covariance``.

        Raises
        ------
        ValueError
            Wrong shape, fewer than two images, or values that are not finite.
        SingularError
            Without a ridge, where there are no more images than channels.
        """
        self._statistics = LocationStatistics()
        self.update(embedding)
        self.finish()
        return [self.mean, self.inv_covariance]

    @torch.no_grad()
    def update(self, embedding: torch.Tensor) -> None:
        """Take in a batch; the memory does not grow with the number of images.

        Parameters
        ----------
        embedding : (images, channels, rows, cols) tensor

        Raises
        ------
        ValueError
            Wrong shape, or values that are not finite.
        """
        op = "MultiVariateGaussian"
        if embedding.ndim != 4:
            raise ValueError(
                f"{op}: embedding: must have shape (images, channels, rows, cols), "
                f"got {tuple(embedding.shape)}"
            )
        if not bool(torch.isfinite(embedding).all()):
            raise ValueError(f"{op}: embedding: must be finite, got NaN or infinity")
        self._statistics.update(embedding.detach())

    @torch.no_grad()
    def finish(self) -> None:
        """Take mean and covariance from the batches since the last fit.

        Raises
        ------
        ValueError
            Fewer than two images.
        SingularError
            Without a ridge, where there are no more images than channels.
        """
        count = self._statistics.count
        images = 0 if count is None else int(count.min())
        if images < 2:
            raise ValueError(
                f"MultiVariateGaussian: embedding: must have two images or more, got {images}"
            )
        mean = self._statistics.mean().T.contiguous()
        # The covariances, which their whitening matrices replace part by part.
        whitening = self._statistics.covariance()
        identity = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
        for part in whitening.split(_CHUNK):
            part.diagonal(dim1=1, dim2=2).add_(self.ridge)
            part[:] = torch.linalg.solve_triangular(mahal.cholesky(part), identity, upper=False)
        self._statistics = LocationStatistics()
        self.mean, self.whitening, self._inverse = mean, whitening, None

    def forward(self, embedding: torch.Tensor) -> list[torch.Tensor]:
        """As `fit`, which is what the call of anomalib's class does."""
        fitted: list[torch.Tensor] = self.fit(embedding)
        return fitted

    @property
    def inv_covariance(self) -> torch.Tensor:
        """``W^T W``, (locations, channels, channels); made when it is first asked for."""
        if not self.inverse or self.whitening.numel() == 0:
            return self.whitening.new_empty(0)
        known = self._inverse
        if known is None or known.device != self.whitening.device:
            known = self._inverse = self.whitening.mT @ self.whitening
        return known

    def whiten(self, embedding: torch.Tensor) -> torch.Tensor:
        """``W (x - mean)`` at every location, by products alone, which export to ONNX.

        Parameters
        ----------
        embedding : (images, channels, rows, cols) tensor

        Returns
        -------
        (locations, channels, images) tensor
        """
        if self.mean.numel() == 0:
            raise ValueError("MultiVariateGaussian: whiten: the Gaussian is not fitted, call fit")
        delta = (embedding.flatten(2) - self.mean).permute(2, 1, 0)
        return self.whitening @ delta

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *how: Any, **more: Any
    ) -> None:
        # From anomalib's class: P = W^T W by the Cholesky factor of P in reverse order.
        inverse = state_dict.pop(prefix + "inv_covariance", None)
        if inverse is not None and inverse.numel():
            reversed_factor = mahal.cholesky(inverse.detach().flip(1, 2).contiguous())
            inverse = reversed_factor.flip(1, 2).mT.contiguous()
        if inverse is not None:
            state_dict[prefix + "whitening"] = inverse
        for name in ("mean", "whitening"):
            given = state_dict.get(prefix + name)
            if given is not None:
                here = getattr(self, name)
                setattr(self, name, here.new_empty(given.shape))
        self._inverse = None
        super()._load_from_state_dict(state_dict, prefix, *how, **more)

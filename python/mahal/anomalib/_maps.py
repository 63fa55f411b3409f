"""Score maps of embeddings, from the whitened Gaussians of their locations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mahal.anomalib._gaussian import MultiVariateGaussian
from mahal.models.padim import blur


class AnomalyMapGenerator(nn.Module):
    """Mahalanobis or ACE map of an embedding, upsampled and smoothed.

    Takes the place of the class of the same name in anomalib, as ``anomaly_map_generator`` of its
    PaDiM model. The inverse covariance that it is called with is not read.

    Parameters
    ----------
    gaussian : MultiVariateGaussian
        It stays the module of somebody else: neither its buffers nor its device are taken over.
    sigma : float
        Standard deviation of the Gaussian filter in pixels of the map, 0 for none; cut off at four
        of them. As two passes along the axes it gives the map of anomalib's square kernel.

    Attributes
    ----------
    target : (locations, channels) tensor
        Whitened signature of length 1 per location, a buffer; empty as long as distances are
        scored.
    """

    target: torch.Tensor

    def __init__(self, gaussian: MultiVariateGaussian, *, sigma: float = 4) -> None:
        super().__init__()
        if not 0 <= sigma < float("inf"):
            raise ValueError(
                f"AnomalyMapGenerator: sigma: must be finite and not negative, got {sigma!r}"
            )
        # In a tuple, so that its buffers are not in the state dict twice.
        self._gaussian = (gaussian,)
        self.sigma = sigma
        self.register_buffer("target", torch.empty(0))

    @torch.no_grad()
    def set_signature(self, signature: torch.Tensor, *, center: bool = False) -> None:
        """Score the likeness to an anomaly, by ACE, from now on.

        Parameters
        ----------
        signature : (channels,) or (channels, locations) tensor
            Embedding of the anomaly, one for all locations or for each its own.
        center : bool
            Subtract the mean of the location, which makes it a direction from the background, as
            ACE is in the literature of hyperspectral images. False is PaDiM-ACE.

        Raises
        ------
        ValueError
            Wrong shape, or a signature that is zero at some location.
        """
        op = "AnomalyMapGenerator.set_signature"
        (gaussian,) = self._gaussian
        channels, locations = gaussian.mean.shape if gaussian.mean.ndim == 2 else (0, 0)
        if tuple(signature.shape) not in ((channels,), (channels, locations)):
            raise ValueError(
                f"{op}: signature: must have shape ({channels},) or ({channels}, {locations}), "
                f"got {tuple(signature.shape)}"
            )
        wanted = signature.to(gaussian.mean).reshape(channels, -1)
        if center:
            wanted = wanted - gaussian.mean
        whitened = (gaussian.whitening @ wanted.expand(channels, locations).T[..., None])[..., 0]
        length = torch.linalg.vector_norm(whitened, dim=1, keepdim=True)
        if not bool((length > 0).all()):
            raise ValueError(f"{op}: signature: must not be zero or the mean at any location")
        self.target = whitened / length

    def forward(
        self,
        *,
        embedding: torch.Tensor,
        mean: torch.Tensor | None = None,
        inv_covariance: torch.Tensor | None = None,
        image_size: tuple[int, int] | torch.Size | None = None,
    ) -> torch.Tensor:
        """The map, higher for what is less normal.

        Parameters
        ----------
        embedding : (images, channels, rows, cols) tensor
        mean, inv_covariance : tensors
            Without effect; anomalib's model gives them. Those of ``gaussian`` are used.
        image_size : (rows, cols), optional
            Size of the map, by bilinear interpolation; default: that of the embedding.

        Returns
        -------
        (images, 1, rows, cols) tensor
            Mahalanobis distances, or with a signature ACE scores in [-1, 1].
        """
        (gaussian,) = self._gaussian
        images, _, rows, cols = embedding.shape
        white = gaussian.whiten(embedding)
        scores = torch.linalg.vector_norm(white, dim=1)
        if self.target.numel():
            along = (self.target[..., None] * white).sum(dim=1)
            tiny = torch.finfo(scores.dtype).tiny
            scores = (along / scores.clamp(min=tiny)).clamp(-1, 1)
        scores = scores.T.reshape(images, 1, rows, cols)
        if image_size is not None:
            scores = functional.interpolate(
                scores, size=tuple(image_size), mode="bilinear", align_corners=False
            )
        return blur(scores, self.sigma)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *how: Any, **more: Any
    ) -> None:
        # anomalib's class has its filter in the state dict, and no signature.
        for name in [key for key in state_dict if key.startswith(prefix + "blur.")]:
            del state_dict[name]
        given = state_dict.setdefault(prefix + "target", torch.empty(0))
        self.target = self.target.new_empty(given.shape)
        super()._load_from_state_dict(state_dict, prefix, *how, **more)


def use_in(model: Any, *, ridge: float = 0.01, sigma: float = 4) -> Any:
    """Put mahal's Gaussian and map generator into a PaDiM model of anomalib.

    Parameters
    ----------
    model : anomalib.models.Padim or its torch model
        Not fitted yet; a checkpoint of either kind can be loaded afterwards.
    ridge, sigma : float
        Of `MultiVariateGaussian` and of `AnomalyMapGenerator`.

    Returns
    -------
    object
        The same model.

    Raises
    ------
    TypeError
        The model has no ``gaussian`` and ``anomaly_map_generator``.
    """
    torch_model = getattr(model, "model", model)
    for name in ("gaussian", "anomaly_map_generator"):
        if not hasattr(torch_model, name):
            raise TypeError(
                f"use_in: model: must be a PaDiM model of anomalib, "
                f"got {type(model).__name__} without {name}"
            )
    torch_model.gaussian = MultiVariateGaussian(ridge=ridge, inverse=False)
    torch_model.anomaly_map_generator = AnomalyMapGenerator(torch_model.gaussian, sigma=sigma)
    return model

"""PaDiM-ACE as a model of anomalib."""

from __future__ import annotations

from typing import Any

import torch
from anomalib.models import Padim

from mahal.anomalib._maps import use_in


class PadimACE(Padim):
    """PaDiM whose score is the likeness to known anomalies, by ACE at every location.

    Give an instance to `anomalib.engine.Engine`, after `set_anomalous`.

    Parameters
    ----------
    center_signature : bool
        See `AnomalyMapGenerator.set_signature`.
    ridge, sigma : float
        Of `MultiVariateGaussian` and of `AnomalyMapGenerator`.
    **padim
        What ``Padim`` takes: backbone, layers, n_features and the components.

    References
    ----------
    A. Ibarra and J. Peeples, "Patch distribution modeling framework adaptive cosine estimator
    (PaDiM-ACE) for anomaly detection and localization in synthetic aperture radar imagery", arXiv
    2504.08049, 2025. The score is the textbook ACE, ``cos`` of the whitened vectors: eq. 1 has a
    nested root that is not in the detector, and eq. 2 takes the eigenvectors of the inverse.
    """

    def __init__(
        self,
        *,
        center_signature: bool = False,
        ridge: float = 0.01,
        sigma: float = 4,
        **padim: Any,
    ) -> None:
        super().__init__(**padim)
        use_in(self, ridge=ridge, sigma=sigma)
        self.center_signature = center_signature
        self._anomalous: torch.Tensor | None = None

    def set_anomalous(self, images: torch.Tensor) -> None:
        """Images whose mean embedding is the signature.

        Parameters
        ----------
        images : (n, channels, rows, cols) tensor
            As the training images are; they go through the same pre-processor.
        """
        if images.ndim != 4 or len(images) == 0:
            raise ValueError(
                "PadimACE: images: must have shape (n, channels, rows, cols) with n > 0, "
                f"got {tuple(images.shape)}"
            )
        self._anomalous = images

    @torch.no_grad()
    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        model = self.model
        # It gives embeddings when it is in training, and the backbone must stay as it is.
        before, model.training = model.training, True
        try:
            embedding: torch.Tensor = model(images)
        finally:
            model.training = before
            model.memory_bank = model.memory_bank[:0]
        return embedding

    def training_step(self, batch: Any, *_: Any, **__: Any) -> torch.Tensor:
        """Take the embeddings of a batch into the statistics; none of them is kept.

        Parameters
        ----------
        batch : anomalib.data.Batch

        Returns
        -------
        () tensor
            A loss of 0, which Lightning wants.
        """
        self.model.gaussian.update(self._embed(batch.image))
        return torch.tensor(0.0, requires_grad=True, device=self.device)

    @torch.no_grad()
    def fit(self) -> None:
        """Finish the Gaussians of the training images, then take the signature.

        Raises
        ------
        ValueError
            `set_anomalous` has not been called.
        """
        if self._anomalous is None:
            raise ValueError("PadimACE: fit: has no anomalous images, call set_anomalous first")
        self.model.gaussian.finish()
        images = self._anomalous.to(self.device)
        if self.pre_processor is not None:
            images = self.pre_processor(images)
        signature = self._embed(images).mean(dim=0).flatten(1)
        self.model.anomaly_map_generator.set_signature(signature, center=self.center_signature)

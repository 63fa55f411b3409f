"""Gaussian backgrounds as torch modules: covariance pooling, whitening, detector heads, priors.

Features are in axis 1, as in ``(batch, channels, rows, cols)`` or ``(batch, channels)``. Statistics
are buffers: they go with ``state_dict``, move with the module, keep at least float32 when the
module becomes half precision, and survive DistributedDataParallel.
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"mahal.nn: needs PyTorch, which cannot be imported ({error}): pip install mahal[torch]"
    ) from None

from mahal.nn._ace import ACE
from mahal.nn._background import Background
from mahal.nn._grf import GRFPrior
from mahal.nn._loss import MahalanobisLoss
from mahal.nn._pooling import LocalCovariance
from mahal.nn._whiten import Whiten

__all__ = ["ACE", "Background", "GRFPrior", "LocalCovariance", "MahalanobisLoss", "Whiten"]

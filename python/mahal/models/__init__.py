"""Complete systems: models that learn what is normal in images, with one protocol for all.

`AnomalyDetector` is the protocol: ``fit``, ``score``, ``predict`` at a false-alarm rate, ``save``
and `load`; a `SceneDetector` learns from the pixels of one scene, an `ImageDetector` from many
images. Needs ``pip install mahal[models]``.
"""

try:
    from mahal.models._detector import (
        AnomalyDetector,
        ModelError,
        SceneDetector,
        TrainingError,
        load,
    )
    from mahal.models._images import ImageDetector
    from mahal.models.backbones import train_backbone
    from mahal.models.despeckling import Despeckler, deepdespeckling
    from mahal.models.mtgan import MTGAN
    from mahal.models.padim import LocationStatistics, PadimACE
    from mahal.models.resnet import ResNet18
    from mahal.models.sar import SARAutoencoder
    from mahal.models.spectral import CollapseWarning, SpectralAutoencoder, SpectralVAE
    from mahal.models.vae_grf import VAEGRF
except ImportError as error:
    raise ImportError(
        f"{error.name} is needed here and cannot be imported ({error}): pip install mahal[models]"
    ) from error

__all__ = [
    "MTGAN",
    "VAEGRF",
    "AnomalyDetector",
    "CollapseWarning",
    "Despeckler",
    "ImageDetector",
    "LocationStatistics",
    "ModelError",
    "PadimACE",
    "ResNet18",
    "SARAutoencoder",
    "SceneDetector",
    "SpectralAutoencoder",
    "SpectralVAE",
    "TrainingError",
    "deepdespeckling",
    "load",
    "train_backbone",
]

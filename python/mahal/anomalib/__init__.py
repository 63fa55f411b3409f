"""Parts for anomalib: its Gaussian of patch embeddings, its map generator, and PaDiM-ACE.

`MultiVariateGaussian`, `AnomalyMapGenerator` and `use_in` are plain torch and need no anomalib;
`PadimACE` is a model of anomalib 2 and imports it.
"""

from __future__ import annotations

from typing import Any

try:
    from mahal.anomalib._gaussian import MultiVariateGaussian
    from mahal.anomalib._maps import AnomalyMapGenerator, use_in
except ImportError as error:
    raise ImportError(
        f"{error.name} is needed here and cannot be imported ({error}): pip install mahal[torch]"
    ) from error

__all__ = ["AnomalyMapGenerator", "MultiVariateGaussian", "PadimACE", "use_in"]


def __getattr__(name: str) -> Any:
    if name == "PadimACE":
        from mahal.anomalib._padim_ace import PadimACE

        return PadimACE
    raise AttributeError(f"module 'mahal.anomalib' has no attribute {name!r}")

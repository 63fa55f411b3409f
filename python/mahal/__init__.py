"""Fast, exact anomaly detection for hyperspectral and other remote-sensing images."""

from __future__ import annotations

import importlib
from typing import Any

from mahal import _core
from mahal._arrays import ConvergenceWarning, SingularError, SingularWarning
from mahal._info import info
from mahal.ops.change_map import change_map
from mahal.ops.cholesky import cholesky
from mahal.ops.covariance_distance import covariance_distance
from mahal.ops.covariance_log import covariance_log
from mahal.ops.fused_rx import fused_rx
from mahal.ops.grf import (
    grf_fit,
    grf_kl,
    grf_log_likelihood,
    grf_power,
    grf_sample,
    grf_spectrum,
)
from mahal.ops.local_covariance import local_covariance
from mahal.ops.mahalanobis import mahalanobis
from mahal.ops.matched import ace, cem, matched_filter
from mahal.ops.mean_covariance import mean_covariance
from mahal.ops.multiscale_covariance import multiscale_covariance
from mahal.ops.rx import rx
from mahal.ops.spectral_angle import spectral_angle
from mahal.ops.structural_similarity import structural_similarity
from mahal.ops.whiten import whiten

__version__: str = _core.build_info()["version"]

# Imported on first use, so that `import mahal` stays quick.
_LAZY = (
    "benchmark",
    "blocks",
    "metrics",
    "models",
    "nn",
    "pictures",
    "report",
    "scenes",
    "significance",
    "testing",
    "tuning",
)

__all__ = [
    "ConvergenceWarning",
    "SingularError",
    "SingularWarning",
    "__version__",
    "ace",
    "cem",
    "change_map",
    "cholesky",
    "covariance_distance",
    "covariance_log",
    "fused_rx",
    "grf_fit",
    "grf_kl",
    "grf_log_likelihood",
    "grf_power",
    "grf_sample",
    "grf_spectrum",
    "info",
    "local_covariance",
    "mahalanobis",
    "matched_filter",
    "mean_covariance",
    "multiscale_covariance",
    "rx",
    "spectral_angle",
    "structural_similarity",
    "whiten",
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"mahal.{name}")
    raise AttributeError(f"module 'mahal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

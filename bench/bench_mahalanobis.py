"""Squared Mahalanobis distance of all pixels of a scene with one covariance.

python bench/bench_mahalanobis.py
"""

from __future__ import annotations

import mahal
import numpy as np
from bench_whiten import run

if __name__ == "__main__":
    run(
        "mahalanobis",
        __doc__,
        mahal.mahalanobis,
        lambda white: np.einsum("ij,ij->j", white, white),
        lambda white: (white * white).sum(dim=0),
        written=0,
    )

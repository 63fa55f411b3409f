"""Scores and their law.

The scores of a Gaussian scene follow the exact law of local RX to the last tail. A chi-square law,
which holds for a known covariance, promises far fewer false alarms than there are.
"""

import mahal
import numpy as np
from mahal import significance
from matplotlib.figure import Figure
from scipy import stats

bands, samples = 30, 11**2 - 3**2
image = np.random.default_rng(0).standard_normal((150, 150, bands))
scores = np.sort(mahal.rx(image, window=(3, 11), border="valid").ravel())
scores = scores[np.isfinite(scores)]
share = np.arange(scores.size, 0, -1) / scores.size

figure = Figure((7, 4.5), layout="constrained")
axes = figure.subplots()
axes.plot(scores, share, label="scores of Gaussian noise", linewidth=3, color="0.7")
exact = significance.rx_pvalue(scores, bands, samples)
axes.plot(scores, exact, label="exact law", color="C0")
axes.plot(scores, stats.chi2.sf(scores, bands), label="chi-square", color="C1", linestyle="--")
axes.set_yscale("log")
axes.set_ylim(0.5 / scores.size, 1.0)
axes.set_xlabel("local RX score")
axes.set_ylabel("share of pixels above")
axes.legend()
axes.grid(alpha=0.3)

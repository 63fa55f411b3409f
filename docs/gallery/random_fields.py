"""Gaussian random fields.

Fields with one variance and three ranges on a torus, and the range that a maximum-likelihood fit
finds again from 20 draws of each.
"""

import mahal
from matplotlib.figure import Figure

figure = Figure((9, 3.4), layout="constrained")
for axes, length in zip(figure.subplots(1, 3), (1.0, 3.0, 8.0), strict=True):
    draws = mahal.grf_sample((20, 64, 64), range=length, variance=1.0, generator=0)
    fit = mahal.grf_fit(mahal.grf_power(draws), (64, 64))
    axes.imshow(draws[0], cmap="cividis", interpolation="nearest")
    axes.set_title(f"range {length:g}, fitted {fit.range:.3f}", fontsize="medium")
    axes.set_axis_off()
    print(f"range {length:g}: fitted {fit.range:.3f}, variance {fit.variance:.3f}")

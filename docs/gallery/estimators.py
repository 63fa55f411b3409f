"""Covariance estimators with few samples and with outliers.

The error of six estimators of one covariance, relative in the Frobenius norm once scaled to one
trace, over the number of samples. Shrinkage wins with few samples. Where a tenth of the samples are
ten times as strong, Tyler and Student-t win as soon as there are enough of them.
"""

import mahal
import numpy as np
from matplotlib.figure import Figure

bands = 20
rng = np.random.default_rng(0)
true = 0.7 ** np.abs(np.subtract.outer(np.arange(bands), np.arange(bands)))
factor = np.linalg.cholesky(true)
counts = [30, 50, 80, 160, 320]

figure = Figure((9, 4), layout="constrained")
for axes, outliers in zip(figure.subplots(1, 2, sharey=True), (0.0, 0.1), strict=True):
    for name in ("scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"):
        errors = []
        for count in counts:
            error = []
            for _ in range(10):
                samples = rng.standard_normal((count, bands)) @ factor.T
                samples *= np.where(rng.random(count) < outliers, 10.0, 1.0)[:, None]
                _, found = mahal.mean_covariance(samples, estimator=name, max_iterations=1000)
                found *= bands / np.trace(found)
                error.append(np.linalg.norm(found - true) / np.linalg.norm(true))
            errors.append(np.mean(error))
        axes.plot(counts, errors, marker="o", label=name)
    axes.set_xscale("log")
    axes.set_xticks(counts, map(str, counts), minor=False)
    axes.minorticks_off()
    axes.set_xlabel("samples of 20 bands")
    axes.set_title(
        "Gaussian samples" if outliers == 0 else "10 % of the samples ten times as strong"
    )
    axes.grid(alpha=0.3)
figure.axes[0].set_ylabel("relative error")
figure.axes[0].legend()

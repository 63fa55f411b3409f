"""Change between two radar images.

Two acquisitions of speckle with three channels: in a square of the second image one channel has
become the copy of another. The power is the same everywhere, so a difference shows nothing; the
covariances of the windows are far apart, and the Wishart test knows how far is too far.
"""

import mahal
import numpy as np
from mahal import pictures, scenes, significance

rng = np.random.default_rng(1)
shape = (80, 80, 3)
images = [
    (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2) for _ in range(2)
]
truth = np.zeros(shape[:2], dtype=bool)
truth[30:50, 35:60] = True
mixed = 0.7 * images[1][..., 0] + np.sqrt(1 - 0.7**2) * images[1][..., 1]
images[1][..., 1] = np.where(truth, mixed, images[1][..., 1])

window = 9
scores = mahal.change_map(*images, window, metric="wishart", center=False)
samples = significance.window_samples(shape[:2], window, border="clip")
threshold = significance.covariance_equality_threshold(
    1e-4, 3, samples, samples, mean="known", complex_data=True
)
print("changed", int((scores >= threshold).sum()), "of", truth.sum(), "pixels")
first, second = (
    scenes.Scene(image, name, "npy")
    for image, name in zip(images, ("before", "after"), strict=True)
)
figure = pictures.change_figure(
    first, second, scores, threshold, truth=truth, label="Wishart statistic"
)

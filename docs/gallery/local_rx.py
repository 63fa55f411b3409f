"""Local RX.

The background of every pixel is the window around it, less a guard that keeps a target out of its
own background. The threshold is the exact one for a false-alarm rate of 0.001 on a Gaussian
background.
"""

import mahal
from mahal import pictures, scenes, significance

scene = scenes.simulate(60, 60, 40, seed=3)
scores = mahal.rx(scene.image.astype("float64"), window=(5, 17))
threshold = significance.rx_threshold(1e-3, bands=40, samples=17**2 - 5**2)
figure = pictures.detection_figure(
    scene, scores, threshold, truth=scene.truth, label="local RX, window 5 17"
)

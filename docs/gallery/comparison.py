"""ROC curves of several detectors.

What a detector knows decides how many false alarms a detection costs.
"""

import mahal
from mahal import pictures, scenes

scene = scenes.simulate(60, 60, 40, seed=3)
image = scene.image.astype("float64")
target = 1e4 * scene.metadata["target"]
figure = pictures.comparison_figure(
    {
        "global RX": mahal.rx(image),
        "local RX": mahal.rx(image, window=(5, 17)),
        "fused RX": mahal.fused_rx(image),
        "matched filter": mahal.matched_filter(image, target),
        "ACE": mahal.ace(image, target),
        "spectral angle": -mahal.spectral_angle(image, target),
    },
    scene.truth,
    title="a simulated scene of 60 x 60 pixels and 40 bands",
)

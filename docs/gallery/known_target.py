"""A known target.

With the spectrum of the target the question is no longer what is unusual but what looks like it.
ACE takes the angle to the target once the background is white, so it is blind to brightness.
"""

import mahal
from mahal import pictures, scenes, significance

scene = scenes.simulate(60, 60, 40, seed=3)
image = scene.image.astype("float64")
target = 1e4 * scene.metadata["target"]  # the image is in reflectance times 10000
scores = mahal.ace(image, target, signed=True)
threshold = significance.ace_threshold(
    1e-3, bands=40, samples=3600, background="global", signed=True
)
print("threshold", round(float(threshold), 3))
figure = pictures.detection_figure(
    scene, scores, threshold, truth=scene.truth, label="signed ACE", scale="linear"
)

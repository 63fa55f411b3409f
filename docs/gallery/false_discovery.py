"""False-alarm rate and false-discovery rate.

One threshold bounds the share of background pixels that are detected, the other the share of
detections that are false, so that it adapts to how much there is to find. Targets among the samples
of the background make both stricter than they promise.
"""

import mahal
from mahal import pictures, scenes, significance

scene = scenes.simulate(60, 60, 40, seed=3)
image = scene.image.astype("float64")
scores = mahal.matched_filter(image, 1e4 * scene.metadata["target"], normalized=True)
law = {"bands": 40, "samples": 3600, "background": "global", "signed": True}
pvalues = significance.amf_pvalue(scores, **law)
discovery = significance.false_discovery(pvalues, 0.05)
alarms = scores >= significance.amf_threshold(0.01, **law)
for name, found in (("false-alarm rate", alarms), ("false-discovery rate", discovery.detected)):
    true = int((found & scene.truth).sum())
    print(f"{name}: {int(found.sum())} detections, {true} of {scene.truth.sum()} targets")
figure = pictures.detection_figure(
    scene,
    scores,
    scores[discovery.detected].min(),
    truth=scene.truth,
    label="matched filter",
    scale="linear",
)

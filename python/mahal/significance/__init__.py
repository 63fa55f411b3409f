"""False-alarm thresholds and p-values of scores on a Gaussian background.

Every law here is that of a score when the pixel and the N samples behind the mean m and the
covariance S are independent draws of one Gaussian with p bands. Two questions decide which.

Is the pixel one of the samples?

- ``background="local"``: no. A dual window with a guard, or a background from another scene.
- ``background="global"``: yes. Statistics of the whole image, or a window without a guard.

Where does the mean come from?

- ``mean="estimated"``: from the samples, with the unbiased covariance (divisor N - 1).
- ``mean="known"``: given, with the divisor N in the covariance.

RX, the squared Mahalanobis distance D, for real data:

==========  =========  ================================================
background  mean       law
==========  =========  ================================================
local       estimated  D N (N - p) / ((N + 1) (N - 1) p) ~ F(p, N - p)
local       known      D (N - p + 1) / (N p) ~ F(p, N - p + 1)
global      estimated  D N / (N - 1)^2 ~ Beta(p / 2, (N - p - 1) / 2)
global      known      D / N ~ Beta(p / 2, (N - p) / 2)
==========  =========  ================================================

For circular complex data both degrees of freedom of F, and both parameters of Beta, are doubled.

Matched detectors with a target fixed in advance; ``h`` is 1/2 for real and 1 for complex data, M is
N for a known and N - 1 for an estimated mean, and k is N or (N - 1) (N + 1) / N. With independent
``g / (1 + g) ~ Beta(h, h (M - p + 1))`` and ``b ~ Beta(h (M - p + 2), h (p - 1))``:

===========================  ==========  =====================================
score                        background  law
===========================  ==========  =====================================
ACE                          local       g / (g + 1 - b)
ACE                          global      Beta(h, h (p - 1))
ACE, S known (N infinite)    either      Beta(h, h (p - 1))
matched filter, squared (a)  local       k g / b
matched filter, squared      global      (N - 1)^2 / N or N, times Beta(h, h (M - 1))
Kelly, a / (k + RX)          local       Beta(h, h (M - p + 1))
===========================  ==========  =====================================

Half of the excesses of a signed score of real data are positive.

Sources: H. Hotelling, Ann. Math. Statist. 2 (1931); R. Gnanadesikan and J. R. Kettenring,
Biometrics 28 (1972); N. C. Giri, Ann. Math. Statist. 36 (1965) for complex data; I. S. Reed,
J. D. Mallett and L. E. Brennan, IEEE Trans. AES 10(6) (1974); E. J. Kelly, IEEE Trans. AES 22(2)
(1986); F. C. Robey et al., IEEE Trans. AES 28(1) (1992); S. Kraut and L. L. Scharf, IEEE Trans. SP
47(9) (1999); F. Pascal et al., IEEE Trans. SP 56(6) (2008) for Tyler's estimator. Real data, the
estimated mean and the global background of the matched detectors follow from the same argument.
The laws are exact for every single pixel; pixels that share samples are dependent. Real scenes have
heavier tails than the model, so the share of background pixels above a threshold can exceed the
rate asked for. Scores without a law have `score_tail`, which continues those of a scene.
"""

from mahal.significance._discovery import FalseDiscovery, false_discovery
from mahal.significance._equality import (
    covariance_equality_pvalue,
    covariance_equality_threshold,
    intensity_ratio_pvalue,
    intensity_ratio_threshold,
)
from mahal.significance._matched import (
    ace_pvalue,
    ace_threshold,
    amf_pvalue,
    amf_threshold,
    kelly_pvalue,
    kelly_threshold,
)
from mahal.significance._rx import rx_pvalue, rx_threshold
from mahal.significance._tail import ScoreTail, score_tail
from mahal.significance._windows import window_samples

__all__ = [
    "FalseDiscovery",
    "ScoreTail",
    "ace_pvalue",
    "ace_threshold",
    "amf_pvalue",
    "amf_threshold",
    "covariance_equality_pvalue",
    "covariance_equality_threshold",
    "false_discovery",
    "intensity_ratio_pvalue",
    "intensity_ratio_threshold",
    "kelly_pvalue",
    "kelly_threshold",
    "rx_pvalue",
    "rx_threshold",
    "score_tail",
    "window_samples",
]

"""RX anomaly scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mahal import _core
from mahal._arrays import (
    Array,
    as_float,
    as_mask,
    as_threads,
    as_window,
    check_choice,
    check_flag,
    check_rank,
    empty,
    real_dtype_name,
    report_singular,
    stream,
    workspace,
)


def rx(
    image: Array,
    *,
    window: Any = None,
    background: Array | None = None,
    covariance: Array | None = None,
    mask: Array | None = None,
    estimator: str = "scm",
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
    return_status: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    """Squared Mahalanobis distance of every pixel to its background (Reed-Xiaoli detector).

    ``score = (x - m)^H S^-1 (x - m)`` with mean m and unbiased covariance S (divisor N - 1) of the
    whole image, of another image, or of a window around the pixel.

    Parameters
    ----------
    image : (rows, cols, bands) array; without ``window`` also (n, bands)
        Real or complex; integers are promoted to float32.
    window : int or (inner, outer), optional
        Local detector with odd sides in pixels: the samples are the outer square less the inner
        one; a single side means no inner square, and the pixel is one of its own samples.
    background : (rows, cols, bands) or (n, bands) array, optional
        Other pixels that give m and S. Not together with ``window``.
    covariance : (bands, bands) array, optional
        S itself, in the dtype of the image or its double; only m is estimated, from the image, the
        background or the window.
    mask : bool array of the shape of the pixels, optional
        True where a pixel is used; others are neither scored nor samples.
    estimator : {"scm"}
        Sample covariance.
    border : {"shift", "reflect", "valid"}
        ``shift``: both windows slide inside the image, each for itself, so that every pixel has
        the same number of samples (the rule of Spectral Python). ``reflect``: the image is
        mirrored about its edge pixels. ``valid``: NaN where the window is not centred.
    singular : {"load", "nan", "raise"}
        Rule for a pixel whose S is not positive definite: a Cholesky pivot of the whitened image
        is not above 1e-10 of its diagonal entry. ``load`` uses ``S + 1e-6 G`` with the covariance
        G of all usable pixels of the image, which keeps the score invariant under affine maps of
        the data; a singular G gets ``1e-10 trace(G) / bands`` on its diagonal first and stands in
        for a global S. ``nan`` scores NaN. ``raise`` raises `SingularError`. Other pixels are
        untouched.
    center : bool
        False: the mean is zero by assumption, ``m = 0`` and S has divisor N; the habit for
        single-look complex radar images.
    return_status : bool
        Also return the status of every pixel.
    threads : int, optional
        CPU threads; the result does not depend on it.
    progress : callable, optional
        Called as ``progress(done, total)`` from the calling thread.

    Returns
    -------
    scores : array of the shape of the pixels
        Of the library, device and precision of the image, real. NaN where the status is 1, 3 or 4.
    status : uint8 array, with ``return_status``
        0 scored; 1 too few samples; 2 singular, see ``singular``; 3 a value that is not finite in
        the pixel or, with a window, among its samples; 4 masked or, with ``border="valid"``, at
        the edge.

    Raises
    ------
    ValueError
        Wrong shapes; even, inverted or too large windows; fewer samples than bands + 1 (bands
        without ``center``).
    TypeError
        Arrays that are not numbers, or not of one library and dtype.
    SingularError
        With ``singular="raise"``; the text has the number of pixels.

    Warns
    -----
    SingularWarning
        Once, with the number of singular pixels, unless they raise.

    Notes
    -----
    Local scores are computed on the image whitened by G, in the dtype of the image. The rounding
    error of each is estimated from the factor and from the sums that made the covariance; where the
    estimate exceeds 1e-3 (float32) or 1e-8 (float64) of the score, or a pivot all but vanishes, the
    pixel or its block is scored again in float64.

    References
    ----------
    I. S. Reed and X. Yu, "Adaptive multiple-band CFAR detection of an optical pattern with unknown
    spectral distribution", IEEE Trans. ASSP 38(10), 1990.
    """
    op = "rx"
    check_choice(op, "estimator", estimator, ("scm",))
    check_choice(op, "border", border, ("shift", "reflect", "valid"))
    check_choice(op, "singular", singular, ("load", "nan", "raise"))
    image = as_float(op, "image", image)
    sides = (0, 0) if window is None else as_window(op, window)
    check_rank(op, "image", image, *((2, 3) if window is None else (3,)))
    if background is not None:
        background = as_float(op, "background", background, like=image)
    if covariance is not None:
        covariance = as_float(op, "covariance", covariance, like=image)
    mask = as_mask(op, mask, image)
    check_flag(op, "center", center)
    count = as_threads(op, threads)
    pixels = tuple(image.shape[:-1])
    memory = workspace(
        image, _core.rx_workspace(image, background, covariance, sides, border, center, count)
    )
    scores = empty(image, pixels, real_dtype_name(image))
    status = empty(image, pixels, "uint8")
    _core.rx(
        image,
        background,
        covariance,
        mask,
        scores,
        status,
        memory,
        sides,
        border,
        singular == "load",
        center,
        count,
        stream(image),
        progress,
        None,
    )
    report_singular(op, status, singular)
    return (scores, status) if return_status else scores

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
    check_array,
    check_choice,
    check_flag,
    check_rank,
    dtype_name,
    empty,
    real_dtype_name,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._estimators import as_estimation, report_estimates
from mahal.ops.window_estimators import window_scores


def rx(
    image: Array,
    *,
    window: Any = None,
    background: Array | None = None,
    covariance: Array | None = None,
    mask: Array | None = None,
    estimator: str = "scm",
    loading: float = 1e-3,
    nu: float = 5.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
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
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Sample covariance, the same with a loaded diagonal, two shrinkage estimators with the
        divisor N, and two robust ones; see the page on estimators.
    loading : float
        Of "loading": share of the mean variance that is added to the diagonal.
    nu : float
        Of "student_t": degrees of freedom.
    tolerance, max_iterations : float, int
        Of "tyler" and "student_t": the iteration ends when the Frobenius norm of a step is not
        above ``tolerance`` of the estimate, or with `ConvergenceWarning` after so many steps.
    border : {"shift", "reflect", "valid"}
        ``shift``: both windows slide inside the image, each for itself, so that every pixel has
        the same number of samples (the rule of Spectral Python). ``reflect``: the image is
        mirrored about its edge pixels. ``valid``: NaN where the window is not centred.
    singular : {"load", "nan", "raise"}
        Rule for a pixel whose S is not positive definite: a Cholesky pivot of the whitened image
        is not above 1e-10 of its diagonal entry. ``load`` uses ``S + 1e-6 G`` with the covariance
        G of all usable pixels of the image, which keeps the score invariant under affine maps of
        the data; a singular G gets ``1e-10 trace(G) / bands`` on its diagonal first and stands in
        for a global S. ``nan`` scores NaN, and so does ``load`` with another estimator than
        "scm", which is taken in the units of the image. ``raise`` raises `SingularError`. Other
        pixels are untouched.
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
        the edge; 5 scored with an estimate that has not converged.

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
    ConvergenceWarning
        Once, with the number of pixels whose estimate has not converged.

    Notes
    -----
    On a CUDA device what depends on the values of the pixels raises and warns of nothing, unless
    ``singular="raise"`` asks to wait for it: the status tells of too few usable pixels (1) and of a
    ``covariance`` that is not symmetric and positive definite (2).

    There the matrix of a window stays on the chip up to 240 real bands in float32 and 104 in
    float64, a complex band being two. With more bands every pixel is scored from its own samples
    in float64, up to some 1000 bands. ``progress`` is not called.

    Tyler's estimate has no scale: for scores it is scaled so that its samples have a mean squared
    distance of ``bands``, as those of a sample covariance have.

    Local scores with "scm" are computed on the image whitened by G, in the dtype of the image. The
    rounding error of each is estimated from the factor and from the sums that made the covariance;
    where the estimate exceeds 1e-3 (float32) or 1e-8 (float64) of the score, or a pivot all but
    vanishes, the pixel or its block is scored again in float64.

    References
    ----------
    I. S. Reed and X. Yu, "Adaptive multiple-band CFAR detection of an optical pattern with unknown
    spectral distribution", IEEE Trans. ASSP 38(10), 1990.
    """
    op = "rx"
    estimation = as_estimation(op, estimator, loading, nu, tolerance, max_iterations)
    check_choice(op, "border", border, ("shift", "reflect", "valid"))
    check_choice(op, "singular", singular, ("load", "nan", "raise"))
    differentiable = estimator == "scm"
    image = as_float(op, "image", image, differentiable=differentiable)
    if window is not None and real_dtype_name(image) != dtype_name(image):
        check_array(op, "image", image)
        differentiable = False
    sides = (0, 0) if window is None else as_window(op, window)
    check_rank(op, "image", image, *((2, 3) if window is None else (3,)))
    if background is not None:
        background = as_float(
            op, "background", background, like=image, differentiable=differentiable
        )
    if covariance is not None:
        covariance = as_float(
            op, "covariance", covariance, like=image, differentiable=differentiable
        )
    mask = as_mask(op, mask, image)
    check_flag(op, "center", center)
    count = as_threads(op, threads)
    pixels = tuple(image.shape[:-1])
    if covariance is not None and estimator != "scm":
        raise ValueError(f"{op}: estimator: cannot be combined with covariance, got {estimator!r}")
    if window is not None and estimator != "scm":
        if background is not None:
            raise ValueError(f"{op}: background: cannot be combined with window, got both")
        scores, status = window_scores(
            op,
            image,
            sides,
            estimation,
            mask,
            border=border,
            center=center,
            count=count,
            progress=progress,
        )
        report_estimates(op, status, estimator, singular)
        return (scores, status) if return_status else scores
    if differentiable and wants_torch(image, background, covariance):
        if window is None:
            from mahal._torch.detectors import detect

            scores, status = detect(
                image,
                None,
                background,
                covariance,
                mask,
                caller=op,
                score="distance",
                center=center,
                singular=singular,
                threads=count,
            )
        else:
            from mahal._torch.window_scores import window_scores as score_windows

            if background is not None:
                raise ValueError(f"{op}: background: cannot be combined with window, got both")
            scores, status = score_windows(
                image,
                None,
                covariance,
                mask,
                score="rx",
                window=sides,
                border=border,
                center=center,
                singular=singular,
                threads=count,
            )
            scores = scores[..., 0]
        return (scores, status) if return_status else scores
    memory = workspace(
        image,
        _core.rx_workspace(image, background, covariance, sides, border, center, estimation, count),
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
        estimation,
        count,
        stream(image),
        progress,
        None,
    )
    report_estimates(op, status, estimator, singular)
    return (scores, status) if return_status else scores

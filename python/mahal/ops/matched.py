"""Detectors of known targets: ACE, matched filter, CEM."""

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
from mahal.ops._estimators import Estimation, as_estimation, report_estimates
from mahal.ops._targets import as_targets


def ace(
    image: Array,
    target: Array,
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
    signed: bool = False,
    subspace: bool = False,
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
    return_status: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    """Adaptive cosine estimator: the squared cosine between pixel and target, once whitened.

    ``score = |<w, y>|^2 / (|w|^2 |y|^2)`` with ``y = L^-1 (x - m)``, ``w = L^-1 (t - m)`` and the
    covariance ``S = L L^H`` of the background.

    Parameters
    ----------
    image : (rows, cols, bands) array; without ``window`` also (n, bands)
        Real or complex; integers are promoted to float32.
    target : (bands,) or (targets, bands) array
        In the units of the image; its dtype or its double. Several targets are detected each for
        itself, unless ``subspace`` is set.
    window : int or (inner, outer), optional
        m and S of every pixel from a window around it, as for `mahal.rx`. The target becomes
        relative to the mean of that window.
    background : (rows, cols, bands) or (n, bands) array, optional
        Other pixels that give m and S. Not together with ``window``.
    covariance : (bands, bands) array, optional
        S itself, in the dtype of the image or its double; only m is estimated, from the image, the
        background or the window.
    mask : bool array of the shape of the pixels, optional
        True where a pixel is used; others are neither scored nor samples.
    estimator : {"scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t"}
        Of S, for the whole image or every window, as for `mahal.rx`; not with ``covariance``.
    loading, nu, tolerance, max_iterations : float, float, float, int
        Of the estimators, as for `mahal.rx`.
    signed : bool
        The cosine itself, in [-1, 1]: tells the target from its opposite ``2 m - t``, which the
        square does not. For real images only.
    subspace : bool
        One map for all targets: ``|Q^T y|^2 / |y|^2`` with an orthonormal basis Q of all w, the
        squared cosine between y and the space that they span.
    border : {"shift", "reflect", "valid"}
        Windows at the edge of the image, as for `mahal.rx`.
    singular : {"load", "nan", "raise"}
        Rule for an S that is not positive definite, as for `mahal.rx`: ``load`` adds
        ``1e-10 trace(S) / bands`` to the diagonal of a global S, and 1e-6 of the global S to that
        of a window; ``nan`` scores NaN, and so does ``load`` with another estimator than "scm" and
        in windows of complex images or without ``center``; ``raise`` raises `SingularError`.
    center : bool
        False: the mean is zero by assumption, ``m = 0`` and S has divisor N; the habit for
        single-look complex radar images. Must be true with a window and a covariance.
    return_status : bool
        Also return the status of every pixel.
    threads : int, optional
        CPU threads; the result does not depend on it.
    progress : callable, optional
        With a window, called as ``progress(done, total)`` from the calling thread.

    Returns
    -------
    scores : array of the shape of the pixels
        In [0, 1], or [-1, 1] when signed; 0 where the pixel is the mean. With two-dimensional
        targets and without ``subspace``, a last axis of targets is added. Of the library, device
        and precision of the image, real. NaN where the status is 1, 3 or 4.
    status : uint8 array of the shape of the pixels, with ``return_status``
        As for `mahal.rx`: 0 scored; 1 too few samples; 2 singular, see ``singular``; 3 a value that
        is not finite; 4 masked or at the edge; 5 scored with an estimate that has not converged.
        With a window, 2 also where a target lies on the local mean or depends on the others of a
        subspace, which scores NaN.

    Raises
    ------
    ValueError
        Wrong shapes; fewer samples than bands + 1 (bands without ``center``), one more for "tyler"
        and "student_t" and fewer for shrinkage; a target that is not finite or lies on the mean;
        targets of a subspace that are linearly dependent.
    TypeError
        Arrays that are not numbers, or not of one library and dtype.
    SingularError
        With ``singular="raise"``.

    Warns
    -----
    SingularWarning
        When S is singular, unless it raises.
    ConvergenceWarning
        With the number of pixels whose estimate has not converged.

    Notes
    -----
    On a CUDA device nothing waits for the values of the pixels, unless ``singular="raise"`` asks
    for it. The status tells what would be an error or a warning: 1 too few usable pixels, 2 also a
    ``covariance`` that is not symmetric and positive definite and targets without a direction.

    With one band every pixel has the score 1. Complex images use Hermitian forms: neither a phase
    of the pixel nor one of the target matters.

    For single-look radar, local ACE with ``center=False`` is the adaptive normalized matched filter
    (ANMF); with "tyler" it does not change when every sample of a window is scaled by a factor of
    its own, the texture of clutter.

    Local scores of real images with a mean and "scm" are computed on the image whitened by the
    covariance of all its pixels, in the dtype of the image. As in `mahal.rx`, what rounding does to
    them is estimated; where it may exceed 1e-3 (float32) or 1e-8 (float64) of the lengths of y and
    w, the pixel or its block is scored again in float64. All other windows are scored in float64,
    in the units of the image.

    Re-centring the target on the local mean, as Spectral Python does, makes the target depend on
    the data: the law of the scores in `mahal.significance` is that of a fixed ``t - m``.

    References
    ----------
    S. Kraut and L. L. Scharf, "The CFAR adaptive subspace detector is a scale-invariant GLRT", IEEE
    Trans. Signal Processing 47(9), 1999. F. Pascal, Y. Chitour, J.-P. Ovarlez, P. Forster and P.
    Larzabal, "Covariance structure maximum-likelihood estimates in compound Gaussian noise", IEEE
    Trans. Signal Processing 56(1), 2008.
    """
    op = "ace"
    if signed and subspace:
        raise ValueError(f"{op}: signed: must not be combined with subspace, got both")
    score = "signed_ace" if signed else "subspace_ace" if subspace else "ace"
    return _scores(
        op,
        score,
        image,
        target,
        window,
        background,
        covariance,
        mask,
        as_estimation(op, estimator, loading, nu, tolerance, max_iterations),
        border,
        singular,
        center,
        return_status,
        threads,
        progress,
    )


def matched_filter(
    image: Array,
    target: Array,
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
    normalized: bool = False,
    border: str = "shift",
    singular: str = "load",
    center: bool = True,
    return_status: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    """Matched filter: how much of a target is in every pixel, as seen against the background.

    ``score = <w, y> / |w|^2`` with ``y = L^-1 (x - m)``, ``w = L^-1 (t - m)`` and the covariance
    ``S = L L^H`` of the background: 1 for the target, 0 for the mean, linear in the pixel.

    Parameters
    ----------
    image, target, window, background, covariance, mask, border, singular, center
        As for `mahal.ace`.
    estimator, loading, nu, tolerance, max_iterations
        As for `mahal.ace`. "tyler" is scaled such that its samples have a mean squared distance of
        ``bands``.
    return_status, threads, progress
        As for `mahal.ace`.
    normalized : bool
        ``<w, y> / |w|`` instead, whose variance over the background is 1: the score in standard
        deviations, also called spectral matched filter. For complex images its square is the
        adaptive matched filter (AMF) of radar.

    Returns
    -------
    scores : array of the shape of the pixels
        Neither clipped nor squared. With two-dimensional targets a last axis of targets is added.
        Of the library, device and precision of the image, real: of complex images the magnitude of
        ``w^H y`` is taken. NaN where the status is 1, 3 or 4.
    status : uint8 array of the shape of the pixels, with ``return_status``
        As for `mahal.ace`.

    Raises
    ------
    ValueError, TypeError, SingularError
        As for `mahal.ace`.

    Warns
    -----
    SingularWarning, ConvergenceWarning
        As for `mahal.ace`.

    Notes
    -----
    Spectral Python's ``matched_filter`` is the plain form; hsi_toolkit's ``smf`` is the normalized
    one, and its ``cem`` the plain one.

    References
    ----------
    D. Manolakis, D. Marden and G. A. Shaw, "Hyperspectral image processing for automatic target
    detection applications", Lincoln Laboratory Journal 14(1), 2003.
    """
    op = "matched_filter"
    return _scores(
        op,
        "normalized_filter" if normalized else "filter",
        image,
        target,
        window,
        background,
        covariance,
        mask,
        as_estimation(op, estimator, loading, nu, tolerance, max_iterations),
        border,
        singular,
        center,
        return_status,
        threads,
        progress,
    )


def cem(
    image: Array,
    target: Array,
    *,
    center: bool = False,
    background: Array | None = None,
    mask: Array | None = None,
    singular: str = "load",
    return_status: bool = False,
    threads: int | None = None,
) -> Any:
    """Constrained energy minimisation: the linear filter of least output power that passes t.

    ``score = t^H R^-1 x / (t^H R^-1 t)`` with the correlation matrix ``R = 1/N sum x x^H`` of the
    background: 1 for the target. No mean is removed.

    Parameters
    ----------
    image, target, background, mask, singular, return_status, threads
        As for `mahal.ace`, with R in place of S.
    center : bool
        Remove the mean from pixels and target and use the covariance: then CEM is the
        `mahal.matched_filter`. This is what hsi_toolkit calls CEM; pysptools and the paper do not
        centre.

    Returns
    -------
    scores : array of the shape of the pixels
        As for `mahal.matched_filter`.
    status : uint8 array of the shape of the pixels, with ``return_status``
        As for `mahal.ace`.

    Raises
    ------
    ValueError, TypeError, SingularError
        As for `mahal.ace`; R needs as many samples as bands.

    Warns
    -----
    SingularWarning
        As for `mahal.ace`.

    References
    ----------
    J. C. Harsanyi, "Detection and classification of subpixel spectral signatures in hyperspectral
    image sequences", PhD thesis, University of Maryland Baltimore County, 1993.
    """
    check_flag("cem", "center", center)
    score = "centered_cem" if center else "cem"
    return _scores(
        "cem",
        score,
        image,
        target,
        None,
        background,
        None,
        mask,
        as_estimation("cem", "scm", 1e-3, 5.0, 1e-6, 100),
        "shift",
        singular,
        True,
        return_status,
        threads,
        None,
    )


def _scores(
    op: str,
    score: str,
    image: Any,
    target: Any,
    window: Any,
    background: Any,
    covariance: Any,
    mask: Any,
    estimation: Estimation,
    border: str,
    singular: str,
    center: bool,
    return_status: bool,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> Any:
    check_choice(op, "border", border, ("shift", "reflect", "valid"))
    check_choice(op, "singular", singular, ("load", "nan", "raise"))
    estimator = estimation[0]
    differentiable = estimator == "scm" and (window is not None or score != "subspace_ace")
    image = as_float(op, "image", image, differentiable=differentiable)
    if window is not None and real_dtype_name(image) != dtype_name(image):
        check_array(op, "image", image)
        differentiable = False
    sides = (0, 0) if window is None else as_window(op, window)
    check_rank(op, "image", image, *((2, 3) if window is None else (3,)))
    targets, single = as_targets(op, target, image, differentiable=differentiable)
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
    if covariance is not None and estimator != "scm":
        raise ValueError(f"{op}: estimator: cannot be combined with covariance, got {estimator!r}")
    if differentiable and wants_torch(image, targets, background, covariance):
        if window is None:
            from mahal._torch.detectors import detect

            scores, status = detect(
                image,
                targets,
                background,
                covariance,
                mask,
                caller=op,
                score=score,
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
                targets,
                covariance,
                mask,
                score=score,
                window=sides,
                border=border,
                center=center,
                singular=singular,
                threads=count,
            )
        scores = scores[..., 0] if single or score == "subspace_ace" else scores
        return (scores, status) if return_status else scores
    pixels = tuple(image.shape[:-1])
    maps = () if single or score == "subspace_ace" else (targets.shape[0],)
    scores = empty(image, (*pixels, *maps), real_dtype_name(image))
    status = empty(image, pixels, "uint8")
    memory = workspace(
        image,
        _core.matched_workspace(
            image, targets, background, covariance, score, sides, border, center, estimation, count
        ),
    )
    _core.matched(
        image,
        targets,
        background,
        covariance,
        mask,
        scores,
        status,
        memory,
        score,
        sides,
        border,
        center,
        singular == "load",
        estimation,
        count,
        stream(image),
        progress,
    )
    what = "a singular covariance"
    if window is not None:
        what += " or a target without a direction of its own"
    # Only the windows that local RX has too are loaded.
    loads = window is None or (center and real_dtype_name(image) == dtype_name(image))
    report_estimates(op, status, estimator, singular, what=what, loads=loads, depth=5)
    return (scores, status) if return_status else scores

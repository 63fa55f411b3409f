"""Maps of window means and covariances."""

from __future__ import annotations

from typing import Any

import numpy as np

from mahal import _core
from mahal._arrays import (
    Array,
    as_float,
    as_mask,
    as_output,
    as_threads,
    as_window,
    check_choice,
    check_flag,
    empty,
    refuse_output,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._estimators import as_estimation
from mahal.ops.window_estimators import covariance_maps


def local_covariance(
    image: Array,
    window: Any,
    *,
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    estimator: str = "scm",
    loading: float = 1e-3,
    nu: float = 5.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    mask: Array | None = None,
    out: tuple[Array, Array] | None = None,
    return_status: bool = False,
    threads: int | None = None,
) -> tuple[Array, ...]:
    """Mean and covariance of the window of every pixel.

    Parameters
    ----------
    image : (..., rows, cols, bands) array
        Real or complex; integers are promoted to float32. Axes before the last three are those of
        a batch of images.
    window : int, (inner, outer), or a list of these
        Odd sides in pixels. ``w`` is a full square; ``(inner, outer)`` is the outer square less
        the inner one. A list gives several windows in one call.
    border : {"shift", "reflect", "valid"}
        ``shift``: windows slide inside the image, the outer and the inner one separately, so that
        every pixel has the same number of samples. ``reflect``: the image is mirrored about its
        edge pixels. ``valid``: NaN where the outer window is not centred on the pixel.
    ddof : int
        Subtracted from the number of samples in the divisor.
    center : bool
        False: the mean is zero by assumption, and the divisor the number of samples whatever
        ``ddof`` is.
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
    mask : (..., rows, cols) bool array, optional
        True where a pixel is used as a sample.
    out : (mean, covariance), optional
        Two contiguous arrays of the shapes below, of the library, device and dtype of the image,
        that take the result.
    return_status : bool
        Also return the status of every window.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    mean : (..., rows, cols, bands) array
    covariance : (..., rows, cols, bands, bands) array
        Of the library, device and dtype of the image, Hermitian (``S_jk`` the mean of
        ``z_j conj(z_k)``) where that is complex; a list of windows adds an axis
        after ``cols``. NaN where a window holds a value that is not finite, and in the covariance
        where it has no more samples than ``ddof``. Sums run in float64.
    status : (..., rows, cols) uint8 array, with ``return_status``
        0 done; 1 too few samples: no more than ``ddof``, or bands (bands + 1 with ``center``) for
        a robust estimator; 2 no estimate, or zero for identical samples; 3 a value that is not
        finite; 4 at the edge with ``border="valid"``; 5 not converged, the last iterate.

    Raises
    ------
    ValueError
        Wrong shapes, even or inverted windows, or windows larger than the image.
    TypeError
        Arrays that are not numbers, or not of one library.
    RuntimeError
        A CUDA call failed, or an array is on a device that this build has no kernel for.

    Notes
    -----
    Tensors of torch have gradients with "scm" and without ``return_status``. Pixels that are no
    samples get a zero gradient, and windows without a result pass none.
    """
    op = "local_covariance"
    estimation = as_estimation(op, estimator, loading, nu, tolerance, max_iterations)
    check_choice(op, "border", border, ("shift", "reflect", "valid"))
    sampled = estimator == "scm" and not return_status
    image = as_float(op, "image", image, differentiable=sampled)
    if image.ndim < 3:
        raise ValueError(f"{op}: image: must have 3 axes or more, got shape {tuple(image.shape)}")
    mask = as_mask(op, mask, image)
    several = isinstance(window, list)
    if several and not window:
        raise ValueError(f"{op}: window: must name at least one window, got []")
    windows = [as_window(op, one) for one in (window if several else [window])]
    if isinstance(ddof, bool) or not isinstance(ddof, int):
        raise TypeError(f"{op}: ddof: must be a whole number, got {ddof!r}")
    if ddof < 0:
        raise ValueError(f"{op}: ddof: must not be negative, got {ddof}")
    check_flag(op, "center", center)
    count = as_threads(op, threads)
    check_flag(op, "return_status", return_status)
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"{op}: out: must be a tuple (mean, covariance), got {type(out).__name__}")
    pixels, bands = tuple(image.shape[:-1]), image.shape[-1]
    scales = (len(windows),) if several else ()
    if sampled and wants_torch(image):
        from mahal._torch.local_covariance import local_covariance as differentiable

        refuse_output(op, out)
        found = differentiable(
            image,
            mask,
            windows=[side for sides in windows for side in sides],
            border=border,
            ddof=ddof,
            center=center,
            threads=count,
        )
        return found if several else (found[0].squeeze(-2), found[1].squeeze(-3))
    means, covariances = (None, None) if out is None else out
    mean = as_output(op, "out[0]", means, image, (*pixels, *scales, bands))
    covariance = as_output(op, "out[1]", covariances, image, (*pixels, *scales, bands, bands))
    status = empty(image, (*pixels, len(windows)), "uint8") if not sampled else None
    item = (*pixels[-2:], len(windows), bands)
    for index in np.ndindex(pixels[:-2]):
        one = image[index]
        usable = None if mask is None else mask[index]
        results = mean[index].reshape(item), covariance[index].reshape((*item, bands))
        if status is not None:
            status[index] = covariance_maps(
                op, one, windows, estimation, usable, results, border, ddof, center, count
            )
            continue
        memory = workspace(
            one, _core.local_covariance_workspace(one, windows, border, ddof, center, count)
        )
        _core.local_covariance(
            one, usable, *results, memory, windows, border, ddof, center, count, stream(one)
        )
    if status is None or not return_status:
        return mean, covariance
    return mean, covariance, status.reshape((*pixels, *scales))

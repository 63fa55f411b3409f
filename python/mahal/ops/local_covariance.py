"""Maps of window means and covariances."""

from __future__ import annotations

from typing import Any

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
    check_rank,
    stream,
    workspace,
)


def local_covariance(
    image: Array,
    window: Any,
    *,
    border: str = "shift",
    ddof: int = 1,
    center: bool = True,
    estimator: str = "scm",
    mask: Array | None = None,
    out: tuple[Array, Array] | None = None,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Mean and covariance of the window of every pixel.

    Parameters
    ----------
    image : (rows, cols, bands) array
        Real or complex; integers are promoted to float32.
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
    estimator : {"scm"}
        Sample covariance.
    mask : (rows, cols) bool array, optional
        True where a pixel is used as a sample.
    out : (mean, covariance), optional
        Two contiguous arrays of the shapes below, of the library, device and dtype of the image,
        that take the result.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    mean : (rows, cols, bands) array
    covariance : (rows, cols, bands, bands) array
        Of the library, device and dtype of the image, Hermitian (``S_jk`` the mean of
        ``z_j conj(z_k)``) where that is complex; a list of windows adds an axis
        after ``cols``. NaN where a window holds a value that is not finite, and in the covariance
        where it has no more samples than ``ddof``. Sums run in float64.

    Raises
    ------
    ValueError
        Wrong shapes, even or inverted windows, or windows larger than the image.
    TypeError
        Arrays that are not numbers, or not of one library.
    RuntimeError
        A CUDA call failed, or an array is on a device that this build has no kernel for.
    """
    op = "local_covariance"
    check_choice(op, "estimator", estimator, ("scm",))
    check_choice(op, "border", border, ("shift", "reflect", "valid"))
    image = as_float(op, "image", image)
    check_rank(op, "image", image, 3)
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
    rows, cols, bands = image.shape
    scales = (len(windows),) if several else ()
    if out is not None and (not isinstance(out, tuple) or len(out) != 2):
        raise TypeError(f"{op}: out: must be a tuple (mean, covariance), got {type(out).__name__}")
    means, covariances = (None, None) if out is None else out
    mean = as_output(op, "out[0]", means, image, (rows, cols, *scales, bands))
    covariance = as_output(op, "out[1]", covariances, image, (rows, cols, *scales, bands, bands))
    memory = workspace(
        image, _core.local_covariance_workspace(image, windows, border, ddof, center, count)
    )
    full = (rows, cols, len(windows), bands)
    _core.local_covariance(
        image,
        mask,
        mean.reshape(full),
        covariance.reshape((*full, bands)),
        memory,
        windows,
        border,
        ddof,
        center,
        count,
        stream(image),
    )
    return mean, covariance

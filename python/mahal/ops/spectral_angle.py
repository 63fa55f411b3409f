"""Angles between pixels and target spectra."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    as_float,
    as_threads,
    check_rank,
    dtype_name,
    empty,
    stream,
    workspace,
)
from mahal.ops._targets import as_targets


def spectral_angle(image: Array, target: Array, *, threads: int | None = None) -> Array:
    """Angle between every pixel and a target spectrum (spectral angle mapper).

    ``arccos(<x, t> / (|x| |t|))``: small where the pixel is like the target, unchanged when either
    is scaled. No background is involved.

    Parameters
    ----------
    image : (rows, cols, bands) or (n, bands) array
        Integers are promoted to float32.
    target : (bands,) or (targets, bands) array
        Not zero; in the dtype of the image or float64.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    array of the shape of the pixels, for two-dimensional targets with a last axis of targets
        Radians in [0, pi], of the library, device and float dtype of the image. NaN where a pixel
        is zero or not finite.

    Raises
    ------
    ValueError
        Wrong shapes, or a target that is zero or not finite. On a CUDA device such a target has
        angles of NaN instead: an error would have to wait for it.
    TypeError
        Arrays that are not real, or not of one library and dtype.

    Notes
    -----
    The angle is ``2 atan2(|u - v|, |u + v|)`` with the unit vectors u and v along pixel and target,
    which keeps all digits near 0 and pi, where the arc cosine loses half of them.

    References
    ----------
    F. A. Kruse et al., "The spectral image processing system (SIPS)", Remote Sensing of
    Environment 44(2-3), 1993. W. Kahan, "How futile are mindless assessments of roundoff in
    floating-point computation?", section 12, 2006, for the formula.
    """
    op = "spectral_angle"
    image = as_float(op, "image", image)
    check_rank(op, "image", image, 2, 3)
    targets, single = as_targets(op, target, image)
    count = as_threads(op, threads)
    pixels = tuple(image.shape[:-1])
    angle = empty(image, pixels if single else (*pixels, targets.shape[0]), dtype_name(image))
    memory = workspace(image, _core.spectral_angle_workspace(image, targets, count))
    _core.spectral_angle(image, targets, angle, memory, count, stream(image))
    return angle

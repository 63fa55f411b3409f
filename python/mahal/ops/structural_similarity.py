"""Structural similarity of two images."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    as_side,
    as_threads,
    check_choice,
    dtype_name,
    empty,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._field import is_complex
from mahal.ops.change_map import BORDERS, as_pair


def structural_similarity(
    first: Array,
    second: Array,
    window: int | None = None,
    *,
    data_range: float,
    sigma: float | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    ddof: int | None = None,
    border: str = "reflect",
    channels: str = "mean",
    threads: int | None = None,
) -> Array:
    """How alike two images are in mean, contrast and structure around every pixel.

    With the means m, variances v and covariance c of the two images in the window of a pixel,
    ``(2 m1 m2 + C1) (2 c + C2) / ((m1^2 + m2^2 + C1) (v1 + v2 + C2))``, where C1 and C2 are the
    squares of ``k1`` and ``k2`` times the range of the data.

    Parameters
    ----------
    first, second : (rows, cols) or (rows, cols, channels) arrays
        Real images of one shape and dtype. Integers are promoted to float32.
    window : int, optional
        Odd side in pixels; by default 7, and 11 with ``sigma``.
    data_range : float
        Largest minus smallest value that the images can take.
    sigma : float, optional
        Standard deviation in pixels of Gaussian weights, 1.5 in the source; by default all
        weights are equal.
    k1, k2 : float
        Small constants.
    ddof : int, optional
        Variances and covariances are multiplied by ``n / (n - ddof)`` for a window of n pixels; by
        default 1, and 0 with ``sigma``.
    border : {"reflect", "clip", "shift", "valid"}
        ``reflect``: the image is mirrored about its edge pixels. ``clip``: windows are cut at the
        edge of the image. ``shift``: edge pixels have the score of the nearest whole window.
        ``valid``: NaN where a window is not complete.
    channels : {"mean", "each"}
        Mean over the channels, or a map for each.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    (rows, cols) array, or (rows, cols, channels) with ``"each"`` and three axes
        Of the library, device and float dtype of the images, at most 1, which is for identical
        windows. NaN where a window holds a value that is not finite. Sums run in float64.

    Notes
    -----
    Differentiable in torch, in both images, without a map between the passes. A score that is NaN
    gives NaN to the pixels of its window, but nothing where no loss depends on it.

    Raises
    ------
    ValueError
        Wrong shapes, windows, names or constants.
    TypeError
        Arrays that are not real, not of one dtype or not of one library.

    References
    ----------
    Z. Wang, A. C. Bovik, H. R. Sheikh and E. P. Simoncelli, IEEE Trans. Image Process. 13 (2004).
    """
    op = "structural_similarity"
    check_choice(op, "border", border, BORDERS)
    check_choice(op, "channels", channels, ("mean", "each"))
    flat = getattr(first, "ndim", 0) == 2
    first, second = as_pair(op, first, second, differentiable=True)
    if is_complex(first):
        raise TypeError(f"{op}: first: must hold real numbers, got {dtype_name(first)}")
    gaussian = sigma is not None
    side = as_side(op, window) if window is not None else (11 if gaussian else 7)
    width = 0.0
    if sigma is not None:
        width = float(sigma)
        if not 0 < width < float("inf"):
            raise ValueError(f"{op}: sigma: must be finite and positive, got {sigma!r}")
    if ddof is not None and (isinstance(ddof, bool) or not isinstance(ddof, int)):
        raise TypeError(f"{op}: ddof: must be a whole number, got {ddof!r}")
    degrees = (0 if gaussian else 1) if ddof is None else ddof
    count = as_threads(op, threads)
    constants = (side, width, float(data_range), float(k1), float(k2), degrees, border)
    if wants_torch(first, second):
        from mahal._torch.structural_similarity import structural_similarity as differentiable

        names = ("window", "sigma", "data_range", "k1", "k2", "ddof", "border")
        score = differentiable(
            first, second, **dict(zip(names, constants, strict=True)), threads=count
        )
    else:
        memory = workspace(
            first, _core.structural_similarity_workspace(first, second, *constants, count)
        )
        score = empty(first, tuple(first.shape), dtype_name(first))
        _core.structural_similarity(first, second, score, memory, *constants, count, stream(first))
    if flat:
        return score[:, :, 0]
    return score.mean(-1) if channels == "mean" else score

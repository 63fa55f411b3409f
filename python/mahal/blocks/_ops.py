"""The ops of scenes in blocks."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

import mahal
from mahal._arrays import as_window, check_flag
from mahal.blocks._lazy import Given, Output, apply, given, mask_of, reduce_blocks
from mahal.blocks._moments import (
    Background,
    Moments,
    background_of,
    checked,
    merge_all,
    moments_of,
)
from mahal.blocks._score import (
    NOT_FINITE,
    float_dtype,
    project,
    score_global,
    score_windows,
    usable,
)
from mahal.ops.fused_rx import COMPONENTS, WINDOW, fitting

Array = npt.NDArray[Any]


def rx(
    image: Any,
    *,
    window: Any = None,
    background: tuple[Any, Any] | None = None,
    mask: Any | None = None,
    return_status: bool = False,
    **options: Any,
) -> Any:
    """RX scores of a scene in blocks.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
    window : int or (inner, outer), optional
        As for `mahal.rx`; not given: statistics of the whole scene.
    background : (mean, covariance), optional
        Statistics to use without a window, as `mean_covariance` gives them; then no pass over the
        scene is made.
    mask : (rows, cols) bool array, optional
        numpy, dask or DataArray; True where a pixel is used.
    return_status : bool
        Also return the status of every pixel.
    **options
        Others of `mahal.rx`: ``border``, ``singular``, ``center``, ``threads`` (of each block, 1 by
        default), and with a window ``covariance``, ``estimator`` and what belongs to it.

    Returns
    -------
    scores : lazy (rows, cols) array
    status : lazy (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError, TypeError
        As for `mahal.rx`, when the function is called; what depends on the values of the pixels,
        when a block is computed.

    Notes
    -----
    Without a window, with ``covariance``, and with every estimator but "scm" in windows the scores
    are those of the whole image, to the last bit in almost every case; see the page on big scenes.
    Windows with "scm" are computed on the block whitened by its own covariance: the scores differ
    by rounding, and a singular window is loaded by the covariance of the block instead of that of
    the scene.
    """
    return _detect("rx", image, None, window, background, mask, return_status, options)


def ace(
    image: Any,
    target: Any,
    *,
    window: Any = None,
    background: tuple[Any, Any] | None = None,
    mask: Any | None = None,
    return_status: bool = False,
    **options: Any,
) -> Any:
    """Adaptive cosine estimator of a scene in blocks.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
    target : (bands,) or (targets, bands) array
    window, background, mask, return_status
        As for `rx`.
    **options
        Others of `mahal.ace`.

    Returns
    -------
    scores : lazy (rows, cols) array
        Several targets add an axis.
    status : lazy (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError, TypeError
        As for `mahal.ace`.
    """
    return _detect("ace", image, target, window, background, mask, return_status, options)


def matched_filter(
    image: Any,
    target: Any,
    *,
    window: Any = None,
    background: tuple[Any, Any] | None = None,
    mask: Any | None = None,
    return_status: bool = False,
    **options: Any,
) -> Any:
    """Matched filter of a scene in blocks.

    Parameters
    ----------
    image, target, window, background, mask, return_status
        As for `ace`.
    **options
        Others of `mahal.matched_filter`.

    Returns
    -------
    scores : lazy (rows, cols) array
    status : lazy (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError, TypeError
        As for `mahal.matched_filter`.
    """
    return _detect(
        "matched_filter", image, target, window, background, mask, return_status, options
    )


def cem(
    image: Any,
    target: Any,
    *,
    center: bool = False,
    background: tuple[Any, Any] | None = None,
    mask: Any | None = None,
    return_status: bool = False,
    **options: Any,
) -> Any:
    """Constrained energy minimisation of a scene in blocks.

    Parameters
    ----------
    image, target, mask, return_status
        As for `ace`.
    center : bool
        As for `mahal.cem`.
    background : (mean, covariance), optional
        The mean (zero unless ``center``) and the matrix R.
    **options
        Others of `mahal.cem`.

    Returns
    -------
    scores : lazy (rows, cols) array
    status : lazy (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError, TypeError
        As for `mahal.cem`.
    """
    options = {**options, "center": center}
    return _detect("cem", image, target, None, background, mask, return_status, options)


def _detect(
    op: str,
    image: Any,
    target: Any,
    window: Any,
    background: tuple[Any, Any] | None,
    mask: Any,
    return_status: bool,
    options: dict[str, Any],
) -> Any:
    found = given(op, "image", image)
    lazy_mask = mask_of(op, mask, found)
    check_flag(op, "return_status", return_status)
    options = {"threads": found.threads, **options}
    kind = float_dtype(found.data.dtype)
    target = None if target is None else np.asarray(target)
    halo = 0
    if window is not None:
        if background is not None:
            raise ValueError(f"{op}: background: cannot be combined with window, got both")
        halo = as_window(op, window)[1] // 2
        options["window"] = window
    elif options.get("estimator", "scm") != "scm":
        raise ValueError(
            f"{op}: estimator: must be 'scm' without a window, where blocks are merged, "
            f"got {options['estimator']!r}"
        )
    elif options.get("covariance") is not None:
        raise ValueError(
            f"{op}: covariance: needs a window here, pass background=(mean, covariance)"
        )
    sample = _sample(kind, 2 * (halo + found.data.shape[2]) + 1, found.data.shape[2])
    arguments = (sample,) if target is None else (sample, target)
    # The errors of wrong arguments, before anything is read.
    scores = getattr(mahal, op)(*arguments, **options)
    outputs = [Output(scores.dtype, scores.shape[2:]), Output(np.dtype(np.uint8))]
    if window is not None:
        call = partial(_windows_of, op=op, target=target, options=options)
        results = apply(call, [found.data], lazy_mask, halo, outputs)
    else:
        center = bool(options.get("center", True))
        singular = options.get("singular", "load")
        known = _background(op, found, lazy_mask, background, center, singular)
        call = partial(_global_of, op=op, target=target, options=options)
        results = apply(call, [found.data], lazy_mask, 0, outputs, known)
    more = ["target"] * len(scores.shape[2:])
    labelled = found.back(results[0], op, more), found.back(results[1], f"{op}_status")
    return labelled if return_status else labelled[0]


def _windows_of(
    blocks: tuple[Array, ...], mask: Array | None, shared: Any, **how: Any
) -> tuple[Array, ...]:
    return score_windows(how["op"], blocks[0], mask, how["target"], how["options"])


def _global_of(
    blocks: tuple[Array, ...], mask: Array | None, shared: Background, **how: Any
) -> tuple[Array, ...]:
    return score_global(how["op"], blocks[0], mask, how["target"], shared, how["options"])


def _background(
    op: str,
    image: Given,
    mask: Any,
    background: tuple[Any, Any] | None,
    center: bool,
    singular: str,
) -> Background:
    if background is None:
        return background_of(op, _scene_moments(image, mask), center=center, singular=singular)
    bands = image.data.shape[2]
    kind = np.result_type(float_dtype(image.data.dtype), np.float64)
    mean, covariance = (np.ascontiguousarray(item, kind) for item in background)
    if mean.shape != (bands,) or covariance.shape != (bands, bands):
        raise ValueError(
            f"{op}: background: must be a mean and a covariance of {bands} bands, "
            f"got shapes {mean.shape} and {covariance.shape}"
        )
    return checked(op, mean, covariance, singular)


def _scene_moments(image: Given, mask: Any) -> Moments:
    call = partial(moments_of, threads=image.threads)
    return cast(Moments, reduce_blocks(call, merge_all, image.data, mask))


def _sample(kind: np.dtype[Any], side: int, bands: int) -> Array:
    """A small image of this kind that every op takes."""
    generator = np.random.default_rng(0)
    values = generator.normal(size=(side, side, bands))
    if kind.kind == "c":
        values = values + 1j * generator.normal(size=values.shape)
    return values.astype(kind)


def mean_covariance(
    image: Any, *, mask: Any | None = None, ddof: float = 1, center: bool = True
) -> tuple[Array, Array]:
    """Mean and covariance of the pixels of a scene, in one pass over its blocks.

    Every block takes two passes over its pixels in double precision; the moments of the blocks are
    merged in their order, so the result depends on the blocks in its last digits, but not on the
    scheduler.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
    mask : (rows, cols) bool array, optional
        True where a pixel is used. Pixels with a value that is not finite are left out.
    ddof : float
        Subtracted from the number of pixels in the divisor.
    center : bool
        False: the mean is zero by assumption, and the divisor the number of pixels.

    Returns
    -------
    mean : (bands,) ndarray
    covariance : (bands, bands) ndarray
        float64 or complex128.

    Raises
    ------
    ValueError
        Wrong shapes, or no more usable pixels than ``ddof``.
    TypeError
        Not a dask array or DataArray of numbers.

    References
    ----------
    T. F. Chan, G. H. Golub and R. J. LeVeque, "Algorithms for computing the sample variance:
    analysis and recommendations", The American Statistician 37(3), 1983.
    """
    op = "mean_covariance"
    found = given(op, "image", image)
    check_flag(op, "center", center)
    if not 0 <= ddof < float("inf"):
        raise ValueError(f"{op}: ddof: must be finite and not negative, got {ddof!r}")
    moments = _scene_moments(found, mask_of(op, mask, found))
    if moments.pixels <= (ddof if center else 0):
        raise ValueError(
            f"{op}: image: needs more than {ddof if center else 0} usable pixels, "
            f"got {moments.pixels}"
        )
    mean = moments.mean if center else np.zeros_like(moments.mean)
    return mean, moments.covariance(center, ddof)


def spectral_angle(image: Any, target: Any, *, threads: int | None = None) -> Any:
    """Angle between every pixel of a scene in blocks and a target spectrum.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
    target : (bands,) or (targets, bands) array
    threads : int, optional
        Of each block, 1 by default.

    Returns
    -------
    lazy (rows, cols) array
        As of `mahal.spectral_angle`; several targets add an axis.

    Raises
    ------
    ValueError, TypeError
        As for `mahal.spectral_angle`.
    """
    op = "spectral_angle"
    found = given(op, "image", image)
    target = np.asarray(target)
    kind = float_dtype(found.data.dtype)
    angles = mahal.spectral_angle(_sample(kind, 1, found.data.shape[2]), target)
    options = {"threads": found.threads if threads is None else threads}
    call = partial(_plain_of, op=op, more=(target,), options=options)
    (result,) = apply(call, [found.data], None, 0, [Output(angles.dtype, angles.shape[2:])])
    return found.back(result, op, ["target"] * len(angles.shape[2:]))


def _plain_of(
    blocks: tuple[Array, ...],
    mask: Array | None,
    shared: Any,
    *,
    op: str,
    more: tuple[Any, ...],
    options: dict[str, Any],
) -> tuple[Array, ...]:
    if mask is not None:
        options = {**options, "mask": mask}
    found = getattr(mahal, op)(*blocks, *more, **options)
    return found if isinstance(found, tuple) else (found,)


def fused_rx(
    image: Any,
    *,
    components: int = COMPONENTS,
    window: tuple[int, int] = WINDOW,
    background: tuple[Any, Any] | None = None,
    mask: Any | None = None,
    singular: str = "load",
    return_status: bool = False,
    threads: int | None = None,
) -> Any:
    """Global and local RX of a scene in blocks, in one score.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
        Real.
    components, window, singular, return_status
        As for `mahal.fused_rx`.
    background : (mean, covariance), optional
        Of the scene, as `mean_covariance` gives them; then no pass over it is made.
    mask : (rows, cols) bool array, optional
        True where a pixel is used.
    threads : int, optional
        Of each block, 1 by default.

    Returns
    -------
    scores : lazy (rows, cols) array
    status : lazy (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError, TypeError
        As for `mahal.fused_rx`.

    Notes
    -----
    The medians are those of the whole scene: both score maps are in memory before the first score
    is ready, which is two values of every pixel.
    """
    op = "fused_rx"
    found = given(op, "image", image)
    lazy_mask = mask_of(op, mask, found)
    kind = float_dtype(found.data.dtype)
    bands = found.data.shape[2]
    mahal.fused_rx(
        _sample(kind, bands + 5, bands), components=components, window=window, singular=singular
    )
    known = _background(op, found, lazy_mask, background, True, singular)
    how: dict[str, Any] = {
        "axes": principal_axes(known.covariance, components, kind),
        "window": fitting(window, min(found.data.shape[:2])),
        "options": {
            "singular": singular,
            "threads": found.threads if threads is None else threads,
        },
    }
    halo = how["window"][1] // 2
    kinds = [Output(kind), Output(np.dtype(np.uint8))] * 2
    whole, whole_status, near, near_status = apply(
        fused_parts, [found.data], lazy_mask, halo, kinds, (known, how)
    )
    score = (whole / _median(whole) * (near / _median(near))) ** 0.5
    if not return_status:
        return found.back(score, op)
    status = np.maximum(whole_status, near_status)
    return found.back(score, op), found.back(status, f"{op}_status")


def principal_axes(covariance: Array, components: int, kind: np.dtype[Any]) -> Array | None:
    """Axes with the largest variances; None where all are wanted."""
    bands = len(covariance)
    if components >= bands:
        return None
    _, axes = np.linalg.eigh(covariance)
    return np.ascontiguousarray(axes[:, bands - components :], kind)


def fused_parts(
    blocks: tuple[Array, ...], mask: Array | None, shared: tuple[Background, dict[str, Any]]
) -> tuple[Array, ...]:
    """Global RX and local RX of a block and the status of each."""
    known, how = shared
    block = blocks[0].astype(float_dtype(blocks[0].dtype), copy=False)
    used = usable(block, mask)
    whole, whole_status = score_global("rx", block, used, None, known, how["options"])
    reduced = block
    if how["axes"] is not None:
        reduced = project(block, known.mean.astype(block.dtype), how["axes"])
    options = {**how["options"], "window": how["window"]}
    near, near_status = score_windows("rx", reduced, used, None, options)
    lost = ~used if mask is None else mask & ~used
    whole_status[lost] = near_status[lost] = NOT_FINITE
    return whole, whole_status, near, near_status


def _median(scores: Any) -> Any:
    """Median of what is known, 1 where that is zero, as a lazy array of one element."""
    flat = scores.ravel().rechunk(-1)
    return flat.map_blocks(_known_median, chunks=((1,),), dtype=scores.dtype)


def _known_median(scores: Array) -> Array:
    known = scores[~np.isnan(scores)]
    median = np.median(known) if known.size else 0.0
    return np.array([median if median > 0 else 1.0], scores.dtype)


def local_covariance(
    image: Any,
    window: Any,
    *,
    mask: Any | None = None,
    return_status: bool = False,
    **options: Any,
) -> tuple[Any, ...]:
    """Means and covariances of the windows of a scene in blocks.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
    window : int, (inner, outer), or a list of these
    mask : (rows, cols) bool array, optional
        True where a pixel is used as a sample.
    return_status : bool
        Also return the status of every window.
    **options
        Others of `mahal.local_covariance` but ``out``.

    Returns
    -------
    tuple of lazy arrays
        As of `mahal.local_covariance`.

    Raises
    ------
    ValueError, TypeError
        As for `mahal.local_covariance`.
    """
    op = "local_covariance"
    _refuse_out(op, options)
    found = given(op, "image", image)
    options = {"threads": found.threads, **options}
    if return_status:
        options["return_status"] = True
    halo = _reach(op, window)
    # Shapes from two bands: maps of all of them may be large.
    small = mahal.local_covariance(
        _sample(float_dtype(found.data.dtype), 2 * halo + 1, 2), window, **options
    )
    bands = found.data.shape[2]
    scales = small[0].shape[2:-1]
    kind = float_dtype(found.data.dtype)
    outputs = [Output(kind, (*scales, bands)), Output(kind, (*scales, bands, bands))]
    outputs += [Output(np.dtype(np.uint8), scales)] * (len(small) - 2)
    call = partial(_plain_of, op=op, more=(window,), options=options)
    results = apply(call, [found.data], mask_of(op, mask, found), halo, outputs)
    scale = ["scale"] * len(scales)
    band = str(found.bands)
    dims = [[*scale, band], [*scale, band, f"{band}_2"], scale]
    names = ("mean", "covariance", "status")
    return tuple(
        found.back(one, f"{op}_{name}", more)
        for one, name, more in zip(results, names, dims, strict=False)
    )


def multiscale_covariance(
    image: Any, windows: list[Any], *, mask: Any | None = None, **options: Any
) -> Any:
    """Covariances of several windows around every pixel of a scene in blocks.

    Parameters
    ----------
    image : (rows, cols, bands) dask array or DataArray
    windows : list of int or (inner, outer)
    mask : (rows, cols) bool array, optional
        True where a pixel is used as a sample.
    **options
        Others of `mahal.multiscale_covariance`.

    Returns
    -------
    lazy array
        As of `mahal.multiscale_covariance`.

    Raises
    ------
    ValueError, TypeError
        As for `mahal.multiscale_covariance`.
    """
    op = "multiscale_covariance"
    found = given(op, "image", image)
    options = {"threads": found.threads, **options}
    if not isinstance(windows, list) or not windows:
        raise ValueError(f"{op}: windows: must be a list of windows, got {windows!r}")
    halo = _reach(op, windows)
    kind = float_dtype(found.data.dtype)
    small = mahal.multiscale_covariance(_sample(kind, 2 * halo + 1, 2), windows, **options)
    bands = found.data.shape[2]
    matrix = small.ndim == 5
    features = (bands, bands) if matrix else (bands * (bands + 1) // 2,)
    call = partial(_plain_of, op=op, more=(windows,), options=options)
    output = Output(small.dtype, (len(windows), *features))
    (result,) = apply(call, [found.data], mask_of(op, mask, found), halo, [output])
    band = str(found.bands)
    return found.back(result, op, ["scale", *([band, f"{band}_2"] if matrix else ["feature"])])


def change_map(
    first: Any,
    second: Any,
    window: int,
    *,
    mask: Any | None = None,
    return_status: bool = False,
    **options: Any,
) -> Any:
    """Change between two scenes in blocks by their window covariances.

    Parameters
    ----------
    first, second : (rows, cols) or (rows, cols, channels) dask arrays or DataArrays
        Of one shape and dtype.
    window : int
        Odd side in pixels.
    mask : (rows, cols) bool array, optional
        True where a pixel is used.
    return_status : bool
        Also return the status of every pixel.
    **options
        Others of `mahal.change_map`.

    Returns
    -------
    score : lazy (rows, cols) array
        With the coordinates and attributes of ``first``.
    status : lazy (rows, cols) uint8 array, with ``return_status``

    Raises
    ------
    ValueError, TypeError
        As for `mahal.change_map`.
    """
    op = "change_map"
    options = {**options, "return_status": True}
    results, labels = _pair(op, first, second, (window,), window, mask, options)
    found = labels.back(results[0], op), labels.back(results[1], f"{op}_status")
    return found if return_status else found[0]


def structural_similarity(
    first: Any, second: Any, window: int | None = None, **options: Any
) -> Any:
    """Structural similarity of two scenes in blocks.

    Parameters
    ----------
    first, second : (rows, cols) or (rows, cols, channels) dask arrays or DataArrays
        Of one shape and dtype, real.
    window : int, optional
        Odd side in pixels.
    **options
        Others of `mahal.structural_similarity`; ``data_range`` is needed.

    Returns
    -------
    lazy (rows, cols) array, or (rows, cols, channels)
        As of `mahal.structural_similarity`, with the coordinates and attributes of ``first``.

    Raises
    ------
    ValueError, TypeError
        As for `mahal.structural_similarity`.
    """
    op = "structural_similarity"
    side = window
    if side is None:
        side = 7 if options.get("sigma") is None else 11
    results, labels = _pair(op, first, second, (window,), side, None, options)
    more = [str(labels.bands)] if results[0].ndim == 3 else []
    return labels.back(results[0], op, more)


def _pair(
    op: str,
    first: Any,
    second: Any,
    more: tuple[Any, ...],
    side: Any,
    mask: Any,
    options: dict[str, Any],
) -> tuple[tuple[Any, ...], Given]:
    """An op of two images, and the first of them."""
    found, other = given(op, "first", first, 2, 3), given(op, "second", second, 2, 3)
    if found.data.shape != other.data.shape:
        raise ValueError(
            f"{op}: second: must have the shape of first {found.data.shape}, got {other.data.shape}"
        )
    if found.data.dtype != other.data.dtype:
        raise TypeError(
            f"{op}: second: must have the dtype of first ({found.data.dtype}), "
            f"got {other.data.dtype}"
        )
    options = {"threads": found.threads, **options}
    halo = _reach(op, side)
    channels = found.data.shape[2] if found.data.ndim == 3 else 1
    sample = _sample(float_dtype(found.data.dtype), 2 * halo + 1, channels)
    sample = sample if found.data.ndim == 3 else sample[:, :, 0]
    shown = getattr(mahal, op)(sample, sample, *more, **options)
    shown = shown if isinstance(shown, tuple) else (shown,)
    lazy_mask = None
    if op == "change_map":
        masks = [mask_of(op, mask, found), mask_of(op, None, other)]
        known = [one for one in masks if one is not None]
        lazy_mask = known[0] if len(known) == 1 else known[0] & known[1] if known else None
    outputs = [Output(one.dtype, one.shape[2:]) for one in shown]
    call = partial(_plain_of, op=op, more=more, options=options)
    return apply(call, [found.data, other.data], lazy_mask, halo, outputs), found


def _reach(op: str, window: Any) -> int:
    """Pixels from the centre of the largest window to its edge."""
    windows = window if isinstance(window, list) else [window]
    if not windows:
        raise ValueError(f"{op}: window: must name at least one window, got []")
    return max(as_window(op, one)[1] // 2 for one in windows)


def _refuse_out(op: str, options: dict[str, Any]) -> None:
    if options.get("out") is not None:
        raise ValueError(f"{op}: out: must be None for a scene in blocks, got arrays")

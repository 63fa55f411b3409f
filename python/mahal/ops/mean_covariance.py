"""Mean and covariance of a list of spectra."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    as_float,
    as_mask,
    check_choice,
    check_flag,
    check_rank,
    dtype_name,
    empty,
    stream,
    workspace,
)


def mean_covariance(
    x: Array,
    *,
    mask: Array | None = None,
    estimator: str = "scm",
    ddof: float = 1,
    center: bool = True,
) -> tuple[Array, Array]:
    """Mean and sample covariance of all pixels of an image.

    ``m = 1/N sum x_i``, ``S = 1/(N - ddof) sum (x_i - m)(x_i - m)^H``.

    Parameters
    ----------
    x : (rows, cols, bands) or (n, bands) array
        Real or complex; integers are promoted to float32. Pixels with a value that is not finite
        are left out.
    mask : (rows, cols) or (n,) bool array, optional
        True where a pixel is used.
    estimator : {"scm"}
        Sample covariance.
    ddof : float
        Subtracted from the number of usable pixels in the divisor.
    center : bool
        False: the mean is zero by assumption, ``m = 0`` and ``S = 1/N sum x_i x_i^H``, whatever
        ``ddof`` is. The habit for single-look complex radar images.

    Returns
    -------
    mean : (bands,) array
    covariance : (bands, bands) array
        Both of the library, device and dtype of ``x``. Hermitian where complex: ``S_jk`` is the
        mean of ``z_j conj(z_k)``. Sums run in float64 over two
        passes, so a large offset costs no digits; the result does not depend on the number of
        threads.

    Raises
    ------
    ValueError
        Wrong shapes, or no more usable pixels than ``ddof``.
    TypeError
        Arrays that are not numbers, or not of one library.
    """
    op = "mean_covariance"
    check_choice(op, "estimator", estimator, ("scm",))
    x = as_float(op, "x", x)
    check_rank(op, "x", x, 2, 3)
    mask = as_mask(op, mask, x)
    check_flag(op, "center", center)
    if not 0 <= ddof < float("inf"):
        raise ValueError(f"{op}: ddof: must be finite and not negative, got {ddof!r}")
    bands, dtype = x.shape[-1], dtype_name(x)
    mean = empty(x, (bands,), dtype)
    covariance = empty(x, (bands, bands), dtype)
    memory = workspace(x, _core.mean_covariance_workspace(x, 0))
    _core.mean_covariance(x, mask, mean, covariance, memory, ddof, center, 0, stream(x))
    return mean, covariance

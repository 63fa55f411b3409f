"""Mean and covariance of a list of spectra."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import (
    Array,
    SingularError,
    as_float,
    as_mask,
    check_flag,
    check_rank,
    dtype_name,
    empty,
    stream,
    wants_torch,
    workspace,
)
from mahal.ops._estimators import (
    ITERATIVE,
    NOT_CONVERGED,
    SINGULAR,
    as_estimation,
    warn_not_converged,
)


def mean_covariance(
    x: Array,
    *,
    mask: Array | None = None,
    estimator: str = "scm",
    loading: float = 1e-3,
    nu: float = 5.0,
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    ddof: float = 1,
    center: bool = True,
) -> tuple[Array, Array]:
    """Mean and covariance of all pixels of an image.

    ``m = 1/N sum x_i``, ``S = 1/(N - ddof) sum (x_i - m)(x_i - m)^H``, or another
    estimate of the covariance.

    Parameters
    ----------
    x : (rows, cols, bands) or (n, bands) array
        Real or complex; integers are promoted to float32. Pixels with a value that is not finite
        are left out.
    mask : (rows, cols) or (n,) bool array, optional
        True where a pixel is used.
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
        Wrong shapes, or too few usable pixels: no more than ``ddof``, or bands (bands + 1 with
        ``center``) for a robust estimator.
    SingularError
        The pixels span no fixed point of a robust estimator.
    TypeError
        Arrays that are not numbers, or not of one library.

    Notes
    -----
    On a CUDA device what depends on the values of the pixels raises and warns of nothing, as that
    would have to wait for the device: both results are NaN where too few pixels are usable, the
    covariance where there is no fixed point, and an iteration that has not converged gives its last
    estimate.
    """
    op = "mean_covariance"
    estimation = as_estimation(op, estimator, loading, nu, tolerance, max_iterations)
    differentiable = estimator == "scm"
    x = as_float(op, "x", x, differentiable=differentiable)
    check_rank(op, "x", x, 2, 3)
    mask = as_mask(op, mask, x)
    check_flag(op, "center", center)
    if not 0 <= ddof < float("inf"):
        raise ValueError(f"{op}: ddof: must be finite and not negative, got {ddof!r}")
    if differentiable and wants_torch(x):
        from mahal._torch.mean_covariance import mean_covariance as in_torch

        moments: tuple[Array, Array] = in_torch(x, mask, ddof=float(ddof), center=center)
        return moments
    bands, dtype = x.shape[-1], dtype_name(x)
    mean = empty(x, (bands,), dtype)
    covariance = empty(x, (bands, bands), dtype)
    memory = workspace(x, _core.mean_covariance_workspace(x, estimation, 0))
    outcome = _core.mean_covariance(
        x, mask, mean, covariance, memory, ddof, center, estimation, 0, stream(x)
    )
    if outcome == SINGULAR and estimator in ITERATIVE:
        raise SingularError(
            f"{op}: x: must span all bands for {estimator!r}, got pixels of a smaller subspace"
        )
    if outcome == NOT_CONVERGED:
        warn_not_converged(op, 1, 1)
    return mean, covariance

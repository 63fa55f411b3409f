"""Gaussian random fields that are stationary on a torus."""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import numpy as np

from mahal._arrays import (
    Array,
    as_threads,
    check_array,
    check_choice,
    check_flag,
    library_of,
    to_host,
    wants_torch,
)
from mahal.ops._grf import (
    Shape,
    Terms,
    as_number,
    as_parameter,
    as_plane,
    check_torus,
    is_tensor,
    quarters,
    reduced,
    run,
    table_like,
    terms,
)
from mahal.ops._matern import Float64, Matern, half_spectrum, matern_of, spectra, weights

_REDUCTIONS = ("none", "sum", "mean")


class GrfKl(NamedTuple):
    """`grf_kl` with its gradients."""

    value: Array
    mean: Array
    logvar: Array
    range: Array | None
    variance: Array | None


class GrfLogLikelihood(NamedTuple):
    """`grf_log_likelihood` with its gradients."""

    value: Array
    image: Array
    range: Array
    variance: Array


class GrfFit(NamedTuple):
    """Parameters of the largest likelihood, and that likelihood per plane, in nats."""

    range: float
    variance: float
    log_likelihood: float


def _shape_of(op: str, shape: Any) -> tuple[int, ...]:
    try:
        sides = tuple(int(side) for side in shape)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: shape: must be a tuple of whole numbers, got {shape!r}") from None
    if any(side < 0 for side in sides):
        raise ValueError(f"{op}: shape: must not be negative, got {sides}")
    return sides


def grf_spectrum(
    shape: tuple[int, int],
    *,
    range: Any,
    variance: Any = 1.0,
    smoothness: float = 1.5,
    kernel: str = "periodised",
    convention: str = "standard",
    normalize: bool = False,
) -> Array:
    """Eigenvalues of the covariance of a Matern field on a torus.

    The correlation at distance d is ``2^(1 - nu) / Gamma(nu) a^nu K_nu(a)`` with the smoothness nu
    and ``a = sqrt(2 nu) d / range`` (Rasmussen and Williams, 2006, eq. 4.14): ``exp(-a)`` for 1/2,
    ``(1 + a) exp(-a)`` for 3/2, ``(1 + a + a^2 / 3) exp(-a)`` for 5/2.

    Parameters
    ----------
    shape : (int, int)
        Rows and columns of the torus. An axis of length 1 is no direction: a torus of 1 x n is a
        circle.
    range : float
        In pixels. A torch tensor of one element makes the result a tensor, with a gradient.
    variance : float
        Of the field on the plane, before it is wrapped.
    smoothness : float
        nu, up to 20. Halves of odd numbers have closed forms, which are quicker.
    kernel : {"periodised", "wrapped"}
        The covariance summed over all images of a pixel, which is positive definite at every range
        and slightly above ``variance`` at distance 0; or that of the nearest image alone, as in
        Gangloff et al. (2023), which is positive definite for short ranges only.
    convention : {"standard", "paper"}
        Whether a has the factor ``sqrt(2 nu)``; eq. 5 of Gangloff et al. (2023) leaves it out.
    normalize : bool
        Divide by the correlation at distance 0, so that ``variance`` is that of every pixel.

    Returns
    -------
    (rows, cols // 2 + 1) float64 array
        In the layout of `numpy.fft.rfft2`.

    Raises
    ------
    ValueError
        Parameters that are not positive; a range at which the smallest eigenvalue is not positive,
        or not known to be in float64.
    TypeError
        Parameters that are no numbers.

    References
    ----------
    Gangloff, Pham, Courtrai and Lefevre, "Unsupervised anomaly detection using variational
    autoencoder with Gaussian random field prior", ICIP 2023.
    """
    op = "grf_spectrum"
    matern = matern_of(op, smoothness, kernel, convention, normalize)
    torus = check_torus(op, "shape", _shape_of(op, shape))
    length = as_parameter(op, "range", range)
    scale = as_parameter(op, "variance", variance)
    if is_tensor(length) or is_tensor(scale):
        from mahal._torch.grf import half_spectrum_of

        return half_spectrum_of(op, torus, length, scale, matern)
    return scale * half_spectrum(spectra(op, torus, length, matern)[0], torus)


def _kernel_terms(
    op: str,
    torus: Shape,
    length: Any,
    scale: Any,
    matern: Matern,
    *,
    sloped: bool,
    posterior: bool,
    compat_eps: bool,
) -> Terms:
    reach, spread = as_number(op, "range", length), as_number(op, "variance", scale)
    tables = quarters(op, torus, reach, matern, sloped=sloped)
    return terms(torus, reach, spread, tables, posterior=posterior, compat_eps=compat_eps)


def _check_options(op: str, reduction: Any, gradients: Any, compat_eps: Any) -> None:
    check_choice(op, "reduction", reduction, _REDUCTIONS)
    check_flag(op, "gradients", gradients)
    check_flag(op, "compat_eps", compat_eps)


def _refuse_compat(op: str, compat_eps: bool, *wanted: bool) -> None:
    """The gradients of a value that belongs to no covariance are not offered."""
    if compat_eps and any(wanted):
        raise ValueError(
            f"{op}: compat_eps: must be False where gradients of range or variance are taken, "
            "got True"
        )


def _reduced_weight(field: Array, reduction: str) -> Array | None:
    """The factor of every plane's gradients under a reduction."""
    planes = math.prod(field.shape[:-2])
    if reduction != "mean" or planes == 0:
        return None
    return table_like(np.full(tuple(field.shape[:-2]), 1 / planes), field)


def grf_kl(
    mean: Array,
    logvar: Array,
    *,
    range: Any,
    variance: Any = 1.0,
    smoothness: float = 1.5,
    kernel: str = "periodised",
    convention: str = "standard",
    normalize: bool = False,
    prior_gradient: str = "full",
    compat_eps: bool = False,
    reduction: str = "none",
    gradients: bool = False,
    threads: int | None = None,
) -> Array | GrfKl:
    """Kullback-Leibler divergence from independent normals to a Gaussian random field.

    For every plane of N pixels, with the field's covariance S (`grf_spectrum`), ``KL(N(mean,
    diag exp(logvar)) || N(0, S))``, summed over the pixels (Gangloff et al., 2023, eq. 12, with its
    transforms normalised)::

        1/2 (log det S + mean^T S^-1 mean + (S^-1)_00 sum(exp(logvar)) - sum(logvar) - N)

    Parameters
    ----------
    mean, logvar : (..., rows, cols) arrays
        float32 or float64, of shapes that broadcast. Half precision is computed in float32. In
        torch both take gradients.
    range, variance : float
        Of the prior, as for `grf_spectrum`. Torch tensors of one element take gradients.
    smoothness, kernel, convention, normalize
        As for `grf_spectrum`.
    prior_gradient : {"full", "stop"}
        Whether the gradients of range and variance are true, or exactly none: the divergence alone
        would drive the prior to white noise, which is why Gangloff et al. (2023) train it by
        `grf_log_likelihood` only.
    compat_eps : bool
        Add 1e-6 where the published code does: to the orthonormal spectrum before it is inverted
        and to the eigenvalues under the logarithm. The result is the divergence from no field; for
        comparisons. Gradients of range and variance are refused.
    reduction : {"none", "sum", "mean"}
        Over all planes. Never over pixels.
    gradients : bool
        Return the gradients as well, from the same pass. Outside torch's autograd: tensors that
        require grad are refused.
    threads : int, optional
        CPU threads; the result does not depend on it.

    Returns
    -------
    (...) array, or one number where reduced
        In nats, of the library, device and dtype of ``mean``.
    GrfKl
        With ``gradients=True``: value and gradients, those of mean and logvar with the common
        shape, those of range and variance with the shape of the value (None for "stop").

    Raises
    ------
    ValueError
        Shapes that do not broadcast, different devices, parameters out of range.
    TypeError
        Arrays that are not real floating point, not of one library and dtype.

    Notes
    -----
    The value and the gradients are invariant to shifts along the torus, and computed by two real
    transforms each way (see docs/grf.md). Under autograd the forward pass keeps its arguments only,
    and the backward pass is one call of the kernel with the incoming gradient in it. A range or
    variance on a CUDA device is read back; keep it on the CPU to avoid waiting for the device.
    """
    op = "grf_kl"
    matern = matern_of(op, smoothness, kernel, convention, normalize)
    check_choice(op, "prior_gradient", prior_gradient, ("full", "stop"))
    _check_options(op, reduction, gradients, compat_eps)
    mean = as_plane(op, "mean", mean, integers=False, like=None)
    logvar = as_plane(op, "logvar", logvar, integers=False, like=mean)
    mean, logvar = _broadcast(op, mean, logvar)
    torus = check_torus(op, "mean", tuple(mean.shape))
    length = as_parameter(op, "range", range, like=mean)
    scale = as_parameter(op, "variance", variance, like=mean)
    count = as_threads(op, threads)
    full = prior_gradient == "full"
    if not gradients and wants_torch(mean, logvar, length, scale):
        from mahal._torch.grf import differentiable

        if not full:
            length, scale = _detached(length), _detached(scale)
        _refuse_compat(op, compat_eps, _requires_grad(length), _requires_grad(scale))
        values = differentiable(
            op,
            mean,
            logvar,
            length,
            scale,
            matern,
            sloped=full and is_tensor(length),
            compat_eps=compat_eps,
            threads=count,
        )
        return reduced(values, reduction)
    for name, array in (("mean", mean), ("logvar", logvar)):
        check_array(op, name, array)
    _refuse_compat(op, compat_eps, gradients and full)
    of = _kernel_terms(
        op,
        torus,
        length,
        scale,
        matern,
        sloped=gradients and full,
        posterior=True,
        compat_eps=compat_eps,
    )
    found = run(
        mean,
        logvar,
        of,
        field_gradient=gradients,
        log_variance_gradient=gradients,
        weight=_reduced_weight(mean, reduction) if gradients else None,
        threads=count,
    )
    value = reduced(found.value, reduction)
    if not gradients:
        return value
    return GrfKl(
        value,
        found.field_gradient,
        found.log_variance_gradient,
        reduced(found.range_slope, reduction) if full else None,
        reduced(found.variance_slope, reduction) if full else None,
    )


def grf_log_likelihood(
    image: Array,
    *,
    range: Any,
    variance: Any = 1.0,
    smoothness: float = 1.5,
    kernel: str = "periodised",
    convention: str = "standard",
    normalize: bool = False,
    compat_eps: bool = False,
    reduction: str = "none",
    gradients: bool = False,
    threads: int | None = None,
) -> Array | GrfLogLikelihood:
    """Log-likelihood of images under a Gaussian random field, each without its own mean.

    ``-1/2 (N log 2 pi + log det S + z^T S^-1 z)`` for every plane of N pixels, where z is the plane
    minus its mean and S the covariance (`grf_spectrum`), by its power spectrum (Whittle, 1954;
    exact on the torus).

    Parameters
    ----------
    image : (..., rows, cols) array
        float32 or float64; integers are promoted to float32. In torch it takes gradients.
    range, variance, smoothness, kernel, convention, normalize
        As for `grf_spectrum`; tensors of one element take gradients.
    compat_eps, reduction, gradients, threads
        As for `grf_kl`.

    Returns
    -------
    (...) array, or one number where reduced
        In nats, of the library, device and dtype of ``image``.
    GrfLogLikelihood
        With ``gradients=True``.

    Raises
    ------
    ValueError, TypeError
        As for `grf_kl`.
    """
    op = "grf_log_likelihood"
    matern = matern_of(op, smoothness, kernel, convention, normalize)
    _check_options(op, reduction, gradients, compat_eps)
    image = as_plane(op, "image", image, integers=True, like=None)
    torus = check_torus(op, "image", tuple(image.shape))
    length = as_parameter(op, "range", range, like=image)
    scale = as_parameter(op, "variance", variance, like=image)
    count = as_threads(op, threads)
    if not gradients and wants_torch(image, length, scale):
        from mahal._torch.grf import differentiable

        _refuse_compat(op, compat_eps, _requires_grad(length), _requires_grad(scale))
        values = differentiable(
            op,
            image,
            None,
            length,
            scale,
            matern,
            sloped=is_tensor(length),
            compat_eps=compat_eps,
            threads=count,
        )
        return reduced(values, reduction)
    check_array(op, "image", image)
    _refuse_compat(op, compat_eps, gradients)
    of = _kernel_terms(
        op, torus, length, scale, matern, sloped=gradients, posterior=False, compat_eps=compat_eps
    )
    found = run(
        image,
        None,
        of,
        field_gradient=gradients,
        weight=_reduced_weight(image, reduction) if gradients else None,
        threads=count,
    )
    value = reduced(found.value, reduction)
    if not gradients:
        return value
    return GrfLogLikelihood(
        value,
        found.field_gradient,
        reduced(found.range_slope, reduction),
        reduced(found.variance_slope, reduction),
    )


def _broadcast(op: str, mean: Array, logvar: Array) -> tuple[Array, Array]:
    try:
        shape = np.broadcast_shapes(tuple(mean.shape), tuple(logvar.shape))
    except ValueError:
        raise ValueError(
            f"{op}: logvar: must broadcast against mean {tuple(mean.shape)}, "
            f"got shape {tuple(logvar.shape)}"
        ) from None
    if tuple(mean.shape) == tuple(logvar.shape):
        return mean, logvar
    if library_of(mean) == "torch":
        return mean.expand(shape), logvar.expand(shape)
    if library_of(mean) == "cupy":
        import cupy

        return cupy.broadcast_to(mean, shape), cupy.broadcast_to(logvar, shape)
    return np.broadcast_to(mean, shape), np.broadcast_to(logvar, shape)


def _detached(value: Any) -> Any:
    return value.detach() if is_tensor(value) else value


def _requires_grad(value: Any) -> bool:
    return is_tensor(value) and bool(value.requires_grad)


def grf_sample(
    shape: tuple[int, ...],
    *,
    range: Any,
    variance: Any = 1.0,
    smoothness: float = 1.5,
    kernel: str = "periodised",
    convention: str = "standard",
    normalize: bool = False,
    generator: Any = None,
    dtype: str = "float64",
) -> Array:
    """Independent draws of a Gaussian random field with zero mean.

    White noise times the root of the covariance, in the Fourier domain (circulant embedding, exact
    on the torus).

    Parameters
    ----------
    shape : (..., int, int)
        The last two are the torus, each of the others counts fields.
    range, variance, smoothness, kernel, convention, normalize
        As for `grf_spectrum`. With torch tensors the draws are tensors, through which gradients
        reach range and variance.
    generator : numpy.random.Generator, torch.Generator or int, optional
        The source of the noise, or its seed. With a torch generator the draws are tensors on its
        device.
    dtype : {"float32", "float64"}

    Returns
    -------
    array of that shape

    Raises
    ------
    ValueError, TypeError
        As for `grf_spectrum`.
    """
    op = "grf_sample"
    check_choice(op, "dtype", dtype, ("float32", "float64"))
    sides = _shape_of(op, shape)
    torus = check_torus(op, "shape", sides)
    matern = matern_of(op, smoothness, kernel, convention, normalize)
    length = as_parameter(op, "range", range)
    scale = as_parameter(op, "variance", variance)
    tensors = is_tensor(length) or is_tensor(scale)
    if tensors or type(generator).__module__.split(".")[0] == "torch":
        from mahal._torch.grf import sample

        return sample(op, sides, length, scale, matern, generator, dtype)
    if not (generator is None or isinstance(generator, int | np.integer | np.random.Generator)):
        raise TypeError(
            f"{op}: generator: must be a numpy or torch generator, a seed or None, "
            f"got {type(generator).__qualname__}"
        )
    noise = np.random.default_rng(generator).standard_normal(sides)
    roots = np.sqrt(scale * half_spectrum(spectra(op, torus, length, matern)[0], torus))
    colored = np.fft.irfft2(np.fft.rfft2(noise) * roots, torus)
    return np.asarray(colored, dtype=dtype)


def grf_power(image: Array) -> Float64:
    """Mean power spectrum of planes, each without its own mean: all that `grf_fit` needs of them.

    Parameters
    ----------
    image : (..., rows, cols) array
        Real; one plane at least. Gradients are not taken.

    Returns
    -------
    (rows, cols // 2 + 1) float64 numpy array
        ``|rfft2(z)|^2`` averaged over the planes. Averages over batches, weighted by their numbers
        of planes, average over all of them.

    Raises
    ------
    ValueError, TypeError
        Wrong shapes and dtypes.
    """
    op = "grf_power"
    library = check_array(op, "image", image, differentiable=True)
    if library == "torch":
        image = image.detach()
    image = as_plane(op, "image", image, integers=True, like=None)
    torus = check_torus(op, "image", tuple(image.shape))
    planes = image.reshape(-1, *torus)
    if planes.shape[0] == 0:
        raise ValueError(f"{op}: image: must have one plane at least, got {tuple(image.shape)}")
    total: Any = 0.0
    for plane in planes:
        wide = plane.double() if library == "torch" else plane.astype("float64")
        spectrum = _fft_of(library).rfft2(wide - wide.mean())
        total = total + spectrum.real**2 + spectrum.imag**2
    return to_host(total / planes.shape[0])


def _fft_of(library: str) -> Any:
    return importlib.import_module(library).fft


def grf_fit(
    power: Float64,
    shape: tuple[int, int],
    *,
    smoothness: float = 1.5,
    kernel: str = "periodised",
    convention: str = "standard",
    normalize: bool = False,
    bounds: tuple[float, float] | None = None,
) -> GrfFit:
    """Range and variance of the largest likelihood, exactly and from the power spectrum alone.

    At a given range the best variance is ``sum(P / R) / N^2`` with the mean power spectrum P and
    the spectrum R of the correlation, so that the search is along the range only: a grid in its
    logarithm, then golden sections.

    Parameters
    ----------
    power : (rows, cols // 2 + 1) array
        From `grf_power`.
    shape : (int, int)
        Rows and columns of the images.
    smoothness, kernel, convention, normalize
        As for `grf_spectrum`.
    bounds : (float, float), optional
        Shortest and longest range that come into question, in pixels. The default is 0.1 to a
        quarter of the shorter side (of the longer one on a circle).

    Returns
    -------
    GrfFit
        Range, variance and the mean of `grf_log_likelihood` over the planes.

    Raises
    ------
    ValueError
        Wrong shapes, values and bounds; images without variance.
    """
    op = "grf_fit"
    matern = matern_of(op, smoothness, kernel, convention, normalize)
    torus = check_torus(op, "shape", _shape_of(op, shape))
    observed = np.asarray(power, dtype=np.float64)
    wanted = (torus[0], torus[1] // 2 + 1)
    if observed.shape != wanted:
        raise ValueError(f"{op}: power: must have shape {wanted}, got {observed.shape}")
    observed = observed.copy()
    observed[0, 0] = 0.0
    if not (np.isfinite(observed).all() and observed.min() >= 0 and observed.max() > 0):
        raise ValueError(
            f"{op}: power: must be finite, not negative and not zero throughout, "
            f"got {observed.min():g} to {observed.max():g} beside the mean"
        )
    side = max(torus) if 1 in torus else min(torus)
    shortest, longest = bounds if bounds is not None else (0.1, max(0.2, side / 4))
    if not 0 < shortest < longest < math.inf:
        raise ValueError(
            f"{op}: bounds: must be positive and increasing, got {(shortest, longest)}"
        )
    # Rows f and -f of a quarter spectrum are one.
    rows = np.arange(torus[0])
    quarter = np.zeros((torus[0] // 2 + 1, wanted[1]))
    np.add.at(quarter, np.minimum(rows, torus[0] - rows), observed)
    quarter /= np.bincount(np.minimum(rows, torus[0] - rows))[:, None]
    pixels = torus[0] * torus[1]
    count = weights(torus)

    def profiled(log_range: float) -> tuple[float, float]:
        try:
            spectrum = spectra(op, torus, math.exp(log_range), matern)[0]
        except ValueError:
            return -math.inf, math.nan
        variance = float(np.sum(count * quarter / spectrum)) / pixels**2
        constant = pixels * (1 + math.log(2 * math.pi) + math.log(variance))
        return -(constant + float(np.sum(count * np.log(spectrum)))) / 2, variance

    grid = np.linspace(math.log(shortest), math.log(longest), 25)
    heights = [profiled(at)[0] for at in grid]
    best = int(np.argmax(heights))
    if heights[best] == -math.inf:
        raise ValueError(
            f"{op}: bounds: must hold a range that leaves the covariance positive definite "
            f"({matern.label}), got {(shortest, longest)}"
        )
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    section = (math.sqrt(5) - 1) / 2
    left, right = high - section * (high - low), low + section * (high - low)
    left_height, right_height = profiled(left)[0], profiled(right)[0]
    # A maximum is known to half of the digits only.
    while high - low > 1e-8:
        if left_height >= right_height:
            high, right, right_height = right, left, left_height
            left = high - section * (high - low)
            left_height = profiled(left)[0]
        else:
            low, left, left_height = left, right, right_height
            right = low + section * (high - low)
            right_height = profiled(right)[0]
    candidates = [float(grid[best]), (low + high) / 2]
    at = max(candidates, key=lambda log_range: profiled(log_range)[0])
    height, variance = profiled(at)
    return GrfFit(math.exp(at), variance, height)

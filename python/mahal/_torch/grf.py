"""Stationary Gaussian fields, with gradients."""

from __future__ import annotations

import math
from typing import Any

import torch

from mahal._torch._recipe import define, define_backward, folded
from mahal.ops._grf import as_number, quarters, run, terms
from mahal.ops._matern import Matern, spectra, weights

Tensor = Any

_DEFAULTS = {
    "caller": "grf",
    "smoothness": 1.5,
    "kernel": "periodised",
    "convention": "standard",
    "normalize": False,
    "compat_eps": False,
    "sloped": True,
    "threads": 0,
    "order": 0,
}
_MATERN = (
    "str caller='grf', float smoothness=1.5, str kernel='periodised', str convention='standard', "
    "bool normalize=False"
)
_CONSTANTS = f"{_MATERN}, bool compat_eps=False, bool sloped=True, int threads=0"


def _given(constants: dict[str, Any]) -> dict[str, Any]:
    """All constants: the dispatcher leaves out those that have their default."""
    return {**_DEFAULTS, **constants}


def _matern(constants: dict[str, Any]) -> Matern:
    names = ("smoothness", "kernel", "convention", "normalize")
    return Matern(*(constants[name] for name in names))


def _options(matern: Matern) -> dict[str, Any]:
    return {
        "smoothness": matern.smoothness,
        "kernel": matern.kernel,
        "convention": matern.convention,
        "normalize": matern.normalize,
    }


# The quarter spectrum of the correlation, any number of times derived with respect to log range.


def _spectrum(log_range: Tensor, *, rows: int = 1, cols: int = 1, **constants: Any) -> Any:
    c = _given(constants)
    length = as_number(c["caller"], "range", math.exp(float(log_range)))
    found = spectra(c["caller"], (rows, cols), length, _matern(c), c["order"] + 1)
    return torch.from_numpy(found[c["order"]])


def _fake_spectrum(log_range: Tensor, *, rows: int = 1, cols: int = 1, **constants: Any) -> Any:
    return torch.empty((rows // 2 + 1, cols // 2 + 1), dtype=torch.float64)


def _next_order(saved: Any, constants: Any) -> Any:
    return _spectrum_op(saved[0], **{**constants, "order": constants.get("order", 0) + 1})


_spectrum_op = define(
    "grf_spectrum",
    f"(Tensor log_range, *, int rows=1, int cols=1, int order=0, {_MATERN}) -> Tensor",
    forward=_spectrum,
    fake=_fake_spectrum,
    save=lambda tensors, outputs: tensors,
    backward=lambda saved, c, grads, needs: ((grads[0] * _next_order(saved, c)).sum(),),
    jvp=lambda saved, c, tangents: (tangents[0] * _next_order(saved, c),),
)


def _parameter(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _half(quarter: Tensor, rows: int) -> Tensor:
    at = torch.arange(rows)
    return quarter[torch.minimum(at, rows - at)]


def half_spectrum_of(
    op: str, torus: tuple[int, int], length: Any, variance: Any, matern: Matern
) -> Tensor:
    """Spectrum in the layout of `torch.fft.rfft2`, float64 on the host."""
    log_range = _parameter(length).log()
    quarter = _spectrum_op(log_range, caller=op, rows=torus[0], cols=torus[1], **_options(matern))
    return _parameter(variance) * _half(quarter, torus[0])


def sample(
    op: str,
    shape: tuple[int, ...],
    length: Any,
    variance: Any,
    matern: Matern,
    generator: Any,
    dtype: str,
) -> Tensor:
    """Draws of the field on the device of the generator."""
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    if not (generator is None or isinstance(generator, torch.Generator)):
        raise TypeError(
            f"{op}: generator: must be a torch generator, a seed or None with tensors, "
            f"got {type(generator).__qualname__}"
        )
    device = "cpu" if generator is None else generator.device
    kind = getattr(torch, dtype)
    noise = torch.randn(shape, generator=generator, dtype=kind, device=device)
    torus = (shape[-2], shape[-1])
    roots = half_spectrum_of(op, torus, length, variance, matern).sqrt()
    colored = torch.fft.rfft2(noise) * roots.to(device=device, dtype=kind)
    return torch.fft.irfft2(colored, torus)


# The divergence where there is a log-variance, else the log-likelihood. `tables` are the quarter
# spectrum of the correlation and its slope, which the backward pass need not compute again.
# `wanted` has a bit for the gradient of the field, of the log-variance, and of range and variance:
# on a device the last two are read back, for which the host waits.


def _terms(field: Tensor, length: Any, variance: Any, tables: Any, posterior: bool, c: Any) -> Any:
    torus = (field.shape[-2], field.shape[-1])
    reach = as_number(c["caller"], "range", length)
    spread = as_number(c["caller"], "variance", variance)
    return terms(torus, reach, spread, tables, posterior=posterior, compat_eps=c["compat_eps"])


def _forward(
    field: Tensor, logvar: Tensor | None, length: Tensor, variance: Tensor, **constants: Any
) -> Any:
    c = _given(constants)
    torus = (field.shape[-2], field.shape[-1])
    reach = as_number(c["caller"], "range", length)
    tables = quarters(c["caller"], torus, reach, _matern(c), sloped=c["sloped"])
    of = _terms(field, length, variance, tables, logvar is not None, c)
    found = run(field, logvar, of, threads=c["threads"])
    value, range_slope = found.value, found.range_slope
    kept = torch.stack([torch.from_numpy(t) for t in tables if t is not None])
    if range_slope is None:
        range_slope = torch.zeros_like(value)
    return value, range_slope, found.variance_slope, kept


def _fake(
    field: Tensor, logvar: Tensor | None, length: Tensor, variance: Tensor, **constants: Any
) -> Any:
    rows, cols = field.shape[-2:]
    tables = (2 if _given(constants)["sloped"] else 1, rows // 2 + 1, cols // 2 + 1)
    values = (field.new_empty(field.shape[:-2]) for _ in range(3))
    return (*values, torch.empty(tables, dtype=torch.float64))


def _gradient_forward(
    weight: Tensor,
    field: Tensor,
    logvar: Tensor | None,
    length: Tensor,
    variance: Tensor,
    tables: Tensor,
    range_slope: Tensor,
    variance_slope: Tensor,
    *,
    wanted: int = 7,
    **constants: Any,
) -> Any:
    c = _given(constants)
    eigenvalues = tables[0].numpy()
    of = _terms(field, length, variance, (eigenvalues, None), logvar is not None, c)
    found = run(
        field,
        logvar,
        of,
        sums=False,
        field_gradient=bool(wanted & 1),
        log_variance_gradient=bool(wanted & 2),
        weight=weight.contiguous(),
        threads=c["threads"],
    )
    fields = (
        field.new_empty(0) if g is None else g
        for g in (found.field_gradient, found.log_variance_gradient)
    )
    if not wanted & 4:
        return *fields, *(torch.zeros((), dtype=torch.float64) for _ in range(2))
    slopes = (range_slope, variance_slope)
    return *fields, *((weight.double() * slope).sum().cpu() for slope in slopes)


def _gradient_fake(
    weight: Tensor, field: Tensor, *rest: Tensor, wanted: int = 7, **constants: Any
) -> Any:
    full, none = tuple(field.shape), (0,)
    return (
        field.new_empty(full if wanted & 1 else none),
        field.new_empty(full if wanted & 2 else none),
        torch.empty((), dtype=torch.float64),
        torch.empty((), dtype=torch.float64),
    )


def _plain_value(
    field: Tensor, logvar: Tensor | None, length: Tensor, variance: Tensor, c: Any
) -> Tensor:
    """The divergence or log-likelihood in torch operations."""
    rows, cols = field.shape[-2:]
    quarter = _spectrum_op(
        length.log(), caller=c["caller"], rows=rows, cols=cols, **_options(_matern(c))
    )
    eigenvalues = variance * quarter
    count = torch.from_numpy(weights((rows, cols)))
    pixels = rows * cols
    added = (1e-6 * math.sqrt(pixels), 1e-6) if c["compat_eps"] else (0.0, 0.0)
    precision = 1 / (pixels * (eigenvalues + added[0]))
    log_determinant = (count * (eigenvalues + added[1]).log()).sum()

    def here(scalar: Tensor) -> Tensor:
        return scalar.to(device=field.device, dtype=field.dtype)

    if logvar is None:
        field = field - field.mean((-2, -1), keepdim=True)
    twice = torch.full((cols // 2 + 1,), 2.0, dtype=torch.float64)
    twice[0] = 1.0
    if cols % 2 == 0:
        twice[-1] = 1.0
    spectrum = torch.fft.rfft2(field)
    power = spectrum.real.square() + spectrum.imag.square()
    quad = (here(twice * _half(precision, rows)) * power).sum((-2, -1))
    if logvar is None:
        return -(pixels * math.log(2 * math.pi) + here(log_determinant) + quad) / 2
    trace = here((count * precision).sum()) * logvar.exp().sum((-2, -1))
    return (here(log_determinant) + quad + trace - logvar.sum((-2, -1)) - pixels) / 2


def _gradient_plain(
    weight: Tensor,
    field: Tensor,
    logvar: Tensor | None,
    length: Tensor,
    variance: Tensor,
    *rest: Tensor,
    wanted: int,
    **c: Any,
) -> Any:
    def value(*tensors: Tensor) -> Tensor:
        among = tensors[3] if logvar is not None else None
        return _plain_value(tensors[0], among, tensors[1], tensors[2], c)

    given = (field, length, variance) if logvar is None else (field, length, variance, logvar)
    _, pull = torch.func.vjp(value, *given)
    found = pull(weight)
    absent, fixed = field.new_zeros(0), torch.zeros((), dtype=torch.float64)
    return (
        found[0] if wanted & 1 else absent,
        found[3] if wanted & 2 else absent,
        found[1] if wanted & 4 else fixed,
        found[2] if wanted & 4 else fixed,
    )


_gradient = define_backward(
    "grf_backward",
    "(Tensor weight, Tensor field, Tensor? logvar, Tensor length, Tensor variance, Tensor tables, "
    f"Tensor range_slope, Tensor variance_slope, *, int wanted=7, {_CONSTANTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    forward=_gradient_forward,
    fake=_gradient_fake,
    plain=_gradient_plain,
)


def _backward(saved: Any, constants: Any, grads: Any, needs: Any) -> Any:
    # Only the first output is the function; nothing depends on the others.
    field, logvar = saved[:2]
    if grads[0] is None:
        return (None,) * 4
    wanted = (1 if needs[0] else 0) + (2 if needs[1] and logvar is not None else 0)
    wanted += 4 if needs[2] or needs[3] else 0
    found = _gradient(grads[0].to(field.dtype), *saved, wanted=wanted, **constants)
    return tuple(g if needed else None for g, needed in zip(found, needs, strict=True))


def _jvp(saved: Any, constants: Any, tangents: Any) -> Any:
    logvar = saved[1]
    tables, range_slope, variance_slope = saved[4:]
    dots = [d is not None for d in tangents]
    wanted = (1 if dots[0] else 0) + (2 if dots[1] and logvar is not None else 0)
    total = torch.zeros_like(range_slope)
    if wanted:
        ones = torch.ones_like(range_slope)
        found = _gradient(ones, *saved, wanted=wanted, **constants)
        for gradient, tangent in zip(found[:2], tangents[:2], strict=True):
            if tangent is not None:
                total = total + (gradient * tangent).sum((-2, -1))
    for slope, tangent in zip((range_slope, variance_slope), tangents[2:], strict=True):
        if tangent is not None:
            total = total + slope * tangent.to(device=slope.device, dtype=slope.dtype)
    return total, *(torch.zeros_like(t) for t in (range_slope, variance_slope, tables))


_planes = define(
    "grf",
    "(Tensor field, Tensor? logvar, Tensor length, Tensor variance, *, "
    f"{_CONSTANTS}) -> (Tensor, Tensor, Tensor, Tensor)",
    forward=_forward,
    fake=_fake,
    save=lambda tensors, outputs: (*tensors, outputs[3], outputs[1], outputs[2]),
    backward=_backward,
    jvp=_jvp,
    vmap=folded((2, 2, None, None), (True, True, True, False)),
)


def differentiable(
    op: str,
    field: Tensor,
    logvar: Tensor | None,
    length: Any,
    variance: Any,
    matern: Matern,
    *,
    sloped: bool,
    compat_eps: bool,
    threads: int,
) -> Tensor:
    """Value per plane of the divergence, or of the log-likelihood without a log-variance."""
    values = _planes(
        field,
        logvar,
        _parameter(length),
        _parameter(variance),
        caller=op,
        compat_eps=compat_eps,
        sloped=sloped,
        threads=threads,
        **_options(matern),
    )
    return values[0]

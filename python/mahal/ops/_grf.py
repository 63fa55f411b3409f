"""What the functions of a stationary field share: arguments, tables of the kernel, one call."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from mahal import _core
from mahal._arrays import (
    Array,
    as_float,
    dtype_name,
    empty,
    library_of,
    stream,
    workspace,
)
from mahal.ops._matern import Float64, Matern, check_positive, spectra, weights

Shape = tuple[int, int]


class Terms(NamedTuple):
    """Tables and coefficients of ``_core.grf``, for one shape, range and variance."""

    precision: Float64
    slope: Float64 | None
    centered: bool
    shift: float
    value: tuple[float, float, float]
    range_slope: tuple[float, float, float]
    variance_slope: tuple[float, float, float]
    field_scale: float


def quarters(
    op: str, shape: Shape, length: float, matern: Matern, *, sloped: bool
) -> tuple[Float64, Float64 | None]:
    """Quarter spectrum of the correlation and, where asked for, its slope to the log range."""
    found = spectra(op, shape, length, matern, 2 if sloped else 1)
    return found[0], found[1] if sloped else None


def terms(
    shape: Shape,
    length: float,
    variance: float,
    tables: tuple[Float64, Float64 | None],
    *,
    posterior: bool,
    compat_eps: bool,
) -> Terms:
    """The Kullback-Leibler divergence from the field where there is a posterior, else the
    log-likelihood of a field without its mean."""
    eigenvalues = variance * tables[0]
    pixels = shape[0] * shape[1]
    count = weights(shape)
    # The published code adds 1e-6 to the spectrum of the orthonormal transform.
    added = (1e-6 * math.sqrt(pixels), 1e-6) if compat_eps else (0.0, 0.0)
    precision = 1 / (pixels * (eigenvalues + added[0]))
    log_determinant = float(np.sum(count * np.log(eigenvalues + added[1])))
    diagonal = float(np.sum(count * precision))
    slope, spread, steep = None, 0.0, 0.0
    if tables[1] is not None:
        rate = variance * tables[1]
        slope = rate / (pixels * eigenvalues**2)
        spread = float(np.sum(count * rate / eigenvalues))
        steep = float(np.sum(count * slope)) / diagonal
    if posterior:
        shift = math.log(diagonal)
        return Terms(
            precision,
            slope,
            False,
            shift,
            ((log_determinant + pixels * shift) / 2, 0.5, 0.5),
            ((spread - steep * pixels) / (2 * length), -0.5 / length, -steep / (2 * length)),
            (0.0, -0.5 / variance, -0.5 / variance),
            1.0,
        )
    return Terms(
        precision,
        slope,
        True,
        0.0,
        (-(pixels * math.log(2 * math.pi) + log_determinant) / 2, -0.5, 0.0),
        (-spread / (2 * length), 0.5 / length, 0.0),
        (-pixels / (2 * variance), 0.5 / variance, 0.0),
        -1.0,
    )


def table_like(values: Float64, like: Array) -> Array:
    """A table in the library and dtype of an array, on its device."""
    cast = np.ascontiguousarray(values, dtype=dtype_name(like))
    library = library_of(like)
    if library == "torch":
        import torch

        return torch.from_numpy(cast).to(like.device)
    if library == "cupy":
        import cupy

        return cupy.asarray(cast)
    return cast


class Found(NamedTuple):
    """Results of one call of the kernel; None where not asked for."""

    value: Array | None
    range_slope: Array | None
    variance_slope: Array | None
    field_gradient: Array | None
    log_variance_gradient: Array | None


def run(
    field: Array,
    log_variance: Array | None,
    of: Terms,
    *,
    sums: bool = True,
    field_gradient: bool = False,
    log_variance_gradient: bool = False,
    weight: Array | None = None,
    threads: int = 0,
) -> Found:
    """One call of the kernel. The range slope comes with the sums where the terms have one."""
    planes, kind = tuple(field.shape[:-2]), dtype_name(field)
    sloped = sums and of.slope is not None
    found = Found(
        empty(field, planes, kind) if sums else None,
        empty(field, planes, kind) if sloped else None,
        empty(field, planes, kind) if sums else None,
        empty(field, field.shape, kind) if field_gradient else None,
        empty(field, field.shape, kind) if log_variance_gradient else None,
    )
    if 0 in planes:
        return found
    precision = table_like(of.precision, field)
    slope = table_like(of.slope, field) if sloped and of.slope is not None else None
    size = _core.grf_workspace(field, slope, found.field_gradient, threads)
    memory = workspace(field, size)
    _core.grf(
        field,
        log_variance,
        precision,
        slope,
        weight,
        *found,
        memory,
        of.centered,
        of.shift,
        of.value,
        of.range_slope,
        of.variance_slope,
        of.field_scale,
        threads,
        stream(field),
    )
    return found


def as_plane(op: str, argument: str, array: Any, *, integers: bool, like: Array | None) -> Array:
    """A real floating-point array with two axes at least, of which the last are the torus."""
    name = dtype_name(array) if library_of(array) else ""
    if "complex" in name or (not integers and ("int" in name or name == "bool")):
        raise TypeError(f"{op}: {argument}: must hold real floating-point numbers, got {name}")
    field = as_float(op, argument, array, like=like, differentiable=True)
    if like is not None and dtype_name(field) != dtype_name(like):
        raise TypeError(
            f"{op}: {argument}: must have the precision of the other arrays "
            f"({dtype_name(like)}), got {dtype_name(field)}"
        )
    if like is not None and library_of(like) == "torch" and field.device != like.device:
        raise ValueError(
            f"{op}: {argument}: must be on the device of the other arrays ({like.device}), "
            f"got {field.device}"
        )
    return field


def check_torus(op: str, argument: str, shape: tuple[int, ...]) -> Shape:
    """The last two axes of a shape."""
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(
            f"{op}: {argument}: must have shape (..., rows, cols) with at least one of each, "
            f"got {tuple(shape)}"
        )
    return int(shape[-2]), int(shape[-1])


def is_tensor(value: Any) -> bool:
    """Whether a parameter is a torch tensor."""
    return library_of(value) == "torch"


def as_parameter(op: str, argument: str, value: Any, *, like: Array | None = None) -> Any:
    """A range or variance: a positive Python float, or a float64 tensor on the host.

    The value of a tensor is checked where it is read, which a compiler has no say in. With ``like``
    a tensor must go with tensors.
    """
    if not is_tensor(value):
        return check_positive(op, argument, value)
    import torch

    if like is not None and not is_tensor(like):
        raise TypeError(
            f"{op}: {argument}: must be a number where the arrays are of {library_of(like)}, "
            "got a torch tensor"
        )
    if not value.is_floating_point():
        raise TypeError(f"{op}: {argument}: must be floating point, got {dtype_name(value)}")
    if value.numel() != 1:
        raise ValueError(f"{op}: {argument}: must be one number, got shape {tuple(value.shape)}")
    return value.reshape(()).to(device="cpu", dtype=torch.float64)


def as_number(op: str, argument: str, value: Any) -> float:
    """The value of a parameter."""
    return check_positive(op, argument, float(value))


def reduced(values: Array, reduction: str) -> Array:
    """Over all planes."""
    if reduction == "none":
        return values
    return values.sum() if reduction == "sum" else values.mean()

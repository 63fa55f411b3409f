"""Arguments that may be real or complex."""

from __future__ import annotations

from typing import Any

from mahal._arrays import Array, as_float, check_array, dtype_name, library_of

_REAL = {"complex64": "float32", "complex128": "float64"}


def as_field(
    op: str,
    argument: str,
    array: Any,
    *,
    like: Array | None = None,
    differentiable: bool = False,
) -> Array:
    """complex64 and complex128 as they are, all else as `as_float` takes it."""
    library = check_array(op, argument, array, differentiable=differentiable)
    if dtype_name(array) not in _REAL:
        return as_float(op, argument, array, like=like, differentiable=differentiable)
    if like is not None and library != library_of(like):
        raise TypeError(
            f"{op}: {argument}: must come from the library of the other arrays "
            f"({library_of(like)}), got {library}"
        )
    if library == "torch":
        return array.resolve_conj().resolve_neg()
    native = library != "numpy" or array.dtype.isnative
    return array if native else array.astype(array.dtype.newbyteorder("="))


def real_dtype(array: Array) -> str:
    """Name of the dtype of the parts of a number."""
    name = dtype_name(array)
    return _REAL.get(name, name)


def is_complex(array: Array) -> bool:
    """Whether the array holds complex numbers."""
    return dtype_name(array) in _REAL

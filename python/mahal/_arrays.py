"""One way into the kernels for numpy, torch and cupy arrays."""

from __future__ import annotations

import mmap
import operator
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A numpy, torch or cupy array; what comes back is of the kind that went in."""

_ALIGNMENT = 64
_LARGE = 4 << 20

# Integers of any width become float32, as do the half-precision floats.
_TO_FLOAT32 = [
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float16",
    "bfloat16",
]
_REAL = ("float32", "float64")
_PARTS = {"complex64": "float32", "complex128": "float64"}

# Ops that have a gradient in torch, for some of their arguments at least.
_DIFFERENTIABLE = (
    "ace",
    "cem",
    "cholesky",
    "covariance_distance",
    "covariance_log",
    "grf_kl",
    "grf_log_likelihood",
    "grf_sample",
    "grf_spectrum",
    "local_covariance",
    "mahalanobis",
    "matched_filter",
    "mean_covariance",
    "multiscale_covariance",
    "rx",
    "structural_similarity",
    "whiten",
)


class SingularError(ValueError):
    """A covariance is not positive definite and ``singular="raise"`` was asked for."""


class ConvergenceWarning(UserWarning):
    """Some iterative estimates have not converged; their last iterate was used."""


class SingularWarning(UserWarning):
    """Some covariances are not positive definite; the documented rule was applied to them."""


def _loaded(name: str) -> Any:
    """The module, if the program imported it: only then can its arrays be at hand."""
    return sys.modules.get(name)


def library_of(array: Any) -> str | None:
    """ "numpy", "torch", "cupy", or None for anything else."""
    if isinstance(array, np.ndarray):
        return "numpy"
    torch = _loaded("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return "torch"
    cupy = _loaded("cupy")
    if cupy is not None and isinstance(array, cupy.ndarray):
        return "cupy"
    return None


def dtype_name(array: Array) -> str:
    """Name of the dtype without the library's prefix, such as ``float32``."""
    return str(array.dtype).removeprefix("torch.")


def real_dtype_name(array: Array) -> str:
    """The same, of the real and imaginary parts of a complex array."""
    name = dtype_name(array)
    return _PARTS.get(name, name)


def _came(array: Any) -> str:
    return f"{type(array).__module__}.{type(array).__qualname__}"


def check_array(op: str, argument: str, array: Any, *, differentiable: bool = False) -> str:
    """The library of an array argument; TypeError for anything else.

    Tensors that require grad are refused unless the call is differentiable.
    """
    library = library_of(array)
    if library is None:
        raise TypeError(
            f"{op}: {argument}: must be a numpy, torch or cupy array, got {_came(array)}"
        )
    if library == "torch":
        if not differentiable and array.requires_grad and _loaded("torch").is_grad_enabled():
            raise ValueError(
                f"{op}: {argument}: must not require grad in a call without gradient "
                f"(differentiable: {', '.join(_DIFFERENTIABLE)}), pass {argument}.detach(), "
                "or call under torch.no_grad(), got a tensor with requires_grad"
            )
        if array.device.type not in ("cpu", "cuda"):
            raise TypeError(
                f"{op}: {argument}: must be on the CPU or a CUDA device, got {array.device}"
            )
    return library


def check_rank(op: str, argument: str, array: Array, *allowed: int) -> None:
    """ValueError unless the array has one of the allowed numbers of axes."""
    if array.ndim not in allowed:
        ranks = " or ".join(str(rank) for rank in allowed)
        raise ValueError(
            f"{op}: {argument}: must have {ranks} axes, got shape {tuple(array.shape)}"
        )


def as_float(
    op: str,
    argument: str,
    array: Any,
    *,
    like: Array | None = None,
    differentiable: bool = False,
) -> Array:
    """An array that a kernel takes: floats and complex numbers as they are, integers as float32.

    With ``like`` the array must come from the same library. Tensors that require grad are refused
    unless the call is differentiable.
    """
    library = check_array(op, argument, array, differentiable=differentiable)
    if like is not None and library != library_of(like):
        raise TypeError(
            f"{op}: {argument}: must come from the library of the other arrays "
            f"({library_of(like)}), got {library}"
        )
    name = dtype_name(array)
    if name in _REAL or name in _PARTS:
        if library == "torch":
            return array.resolve_conj()
        native = library != "numpy" or array.dtype.isnative
        return array if native else array.astype(array.dtype.newbyteorder("="))
    if name in _TO_FLOAT32:
        return array.float() if library == "torch" else array.astype("float32")
    raise TypeError(
        f"{op}: {argument}: must hold numbers (float32, float64, complex64, complex128, "
        f"integers), got {name}"
    )


def as_mask(op: str, mask: Any, image: Array) -> Array | None:
    """A boolean array of the library of the image, or None."""
    if mask is None:
        return None
    library = check_array(op, "mask", mask)
    if library != library_of(image):
        raise TypeError(
            f"{op}: mask: must come from the library of the image ({library_of(image)}), "
            f"got {library}"
        )
    if dtype_name(mask) != "bool":
        raise TypeError(f"{op}: mask: must be boolean, got {dtype_name(mask)}")
    if tuple(mask.shape) != tuple(image.shape[:-1]):
        raise ValueError(
            f"{op}: mask: must have the shape of the pixels {tuple(image.shape[:-1])}, "
            f"got {tuple(mask.shape)}"
        )
    return mask


def as_side(op: str, value: Any) -> int:
    """A window side as an int; floats and text are refused."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: window: sides must be whole numbers, got {value!r}") from None


def as_window(op: str, window: Any) -> tuple[int, int]:
    """(inner, outer), with inner 0 for a single window.

    Ranges are checked by the kernel, which knows the image.
    """
    if isinstance(window, tuple):
        if len(window) != 2:
            raise ValueError(f"{op}: window: must be a side or (inner, outer), got {window!r}")
        inner, outer = (as_side(op, side) for side in window)
        if inner < 1:
            raise ValueError(f"{op}: window: sides must be odd and positive, got {window!r}")
        return inner, outer
    side = as_side(op, window)
    if side < 1:
        raise ValueError(f"{op}: window: sides must be odd and positive, got {window!r}")
    return 0, side


def check_choice(op: str, argument: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless the value is one of the choices."""
    if value not in choices:
        names = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{op}: {argument}: must be {names}, got {value!r}")


def check_flag(op: str, argument: str, value: Any) -> None:
    """TypeError unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {argument}: must be True or False, got {value!r}")


def as_threads(op: str, threads: Any) -> int:
    """Number of threads for the kernel, 0 for the default."""
    if threads is None:
        return 0
    try:
        count = operator.index(threads)
    except TypeError:
        raise TypeError(f"{op}: threads: must be a whole number, got {threads!r}") from None
    if count < 1:
        raise ValueError(f"{op}: threads: must be at least 1, got {count}")
    return count


def empty(like: Array, shape: Sequence[int], dtype: str) -> Array:
    """Uninitialised array of the library and device of ``like``."""
    library = library_of(like)
    if library == "torch":
        torch = _loaded("torch")
        return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device=like.device)
    if library == "cupy":
        with like.device:
            return _loaded("cupy").empty(tuple(shape), dtype=dtype)
    # numpy aligns to 16 bytes, streaming stores need 64.
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    memory = np.empty(size + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(kind).reshape(tuple(shape))


def _extent(array: Array) -> tuple[int, int]:
    """First and last address, one past the end, of the elements of an array."""
    library = library_of(array)
    if library == "numpy":
        start, item, strides = array.ctypes.data, 1, array.strides
    elif library == "torch":
        start, item, strides = array.data_ptr(), array.element_size(), array.stride()
    else:
        start, item, strides = array.data.ptr, 1, array.strides
    size = array.element_size() if library == "torch" else array.itemsize
    steps = [item * step * (n - 1) for n, step in zip(array.shape, strides, strict=True)]
    low = start + sum(step for step in steps if step < 0)
    return low, start + sum(step for step in steps if step > 0) + size


def as_output(op: str, argument: str, out: Any, like: Array, shape: Sequence[int]) -> Array:
    """``out`` where it can take a result of this shape made from ``like``, or a new array."""
    if out is None:
        return empty(like, shape, dtype_name(like))
    library = check_array(op, argument, out)
    if library != library_of(like):
        raise TypeError(
            f"{op}: {argument}: must come from the library of the other arrays "
            f"({library_of(like)}), got {library}"
        )
    if dtype_name(out) != dtype_name(like):
        raise TypeError(f"{op}: {argument}: must be {dtype_name(like)}, got {dtype_name(out)}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(
            f"{op}: {argument}: must have shape {tuple(shape)}, got {tuple(out.shape)}"
        )
    if library == "torch":
        good = out.is_contiguous() and out.device == like.device
    elif library == "cupy":
        good = out.flags.c_contiguous and out.device == like.device
    else:
        good = out.flags.c_contiguous and out.flags.writeable
    if not good:
        raise ValueError(
            f"{op}: {argument}: must be contiguous, writable and on the device of the other "
            "arrays, got one that is not"
        )
    if 0 not in out.shape and 0 not in like.shape:
        first, second = _extent(out), _extent(like)
        if first[0] < second[1] and second[0] < first[1]:
            raise ValueError(
                f"{op}: {argument}: must not overlap the argument it is made from, "
                "got one that does"
            )
    return out


def workspace(like: Array, size: int) -> Array:
    """Memory for the intermediate results of one call."""
    if library_of(like) == "numpy" and size >= _LARGE:
        # numpy asks for huge pages, which make memory resident that the kernels may never touch.
        return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    return empty(like, (size,), "uint8")


def wants_torch(*arrays: Array | None) -> bool:
    """Whether tensors are asked for a gradient, or a transform or compiler of torch is at work."""
    if all(library_of(array) != "torch" for array in arrays):
        return False
    from mahal._torch._recipe import wanted

    return wanted(*arrays)


def refuse_output(op: str, out: Any) -> None:
    """ValueError where ``out`` is given and torch keeps track of the result."""
    if out is not None:
        raise ValueError(
            f"{op}: out: must be None where torch takes gradients, transforms or compiles, "
            "got an array"
        )


def stream(like: Array) -> int:
    """Handle of the stream that the caller's library is using on the device of the array.

    0 on the host, and for the default stream.
    """
    library = library_of(like)
    if library == "torch" and like.device.type == "cuda":
        return int(_loaded("torch").cuda.current_stream(like.device).cuda_stream)
    if library == "cupy":
        return int(_loaded("cupy").cuda.get_current_stream(like.device.id).ptr)
    return 0


def on_device(array: Array) -> bool:
    """Whether the array is in GPU memory, where looking at a value means to wait for it."""
    return library_of(array) == "cupy" or (library_of(array) == "torch" and array.is_cuda)


def to_host(array: Array) -> np.ndarray:
    """A small array of states as numpy."""
    library = library_of(array)
    if library == "torch":
        return np.asarray(array.cpu())
    if library == "cupy":
        return np.asarray(array.get())
    return np.asarray(array)


_SINGULAR = 2


def report_singular(
    op: str, status: Array, singular: str, *, what: str = "a singular covariance", depth: int = 3
) -> None:
    """Warn of the pixels with a singular covariance, or raise.

    Of results on a device only where an error is asked for: a warning is not worth waiting for
    them. ``depth`` counts the frames from here to the user's.
    """
    if on_device(status) and singular != "raise":
        return
    found = to_host(status) == _SINGULAR
    if not found.any():
        return
    text = f"{found.sum()} of {found.size}"
    if singular == "raise":
        raise SingularError(
            f"{op}: image: every covariance must be positive definite, got {text} pixels with "
            f"{what}"
        )
    rule = "loaded by 1e-6 of the global covariance" if singular == "load" else "set to NaN"
    warnings.warn(
        f"{op}: {text} pixels have {what} and were {rule}",
        SingularWarning,
        stacklevel=depth,
    )

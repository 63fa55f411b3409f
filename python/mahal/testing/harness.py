"""One runner for the checks of one op.

The runner crosses the cases of an op with everything that must not matter to its result. A
failure names the combination, and the seed that brings it back.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]
Outputs: TypeAlias = tuple[Array, ...]

LAYOUTS = (
    "C",
    "F",
    "sliced",
    "offset",
    "negative",
    "broadcast",
    "read_only",
    "channel_first",
)
"""Memory layouts that `layouts` makes: what numpy calls C and F order; every second element of
every axis of a larger array; a start that is not aligned to a vector; all axes reversed; the
first slice repeated with stride zero; not writeable; and the last axis outermost in memory."""


class CheckError(AssertionError):
    """An op that gave a wrong result; the message carries the combination and the seed."""


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes
    ----------
    label : str
        Name in failure messages, different for every case of an op.
    arrays : tuple of arrays
        Positional arguments. Float and complex arrays are cast to the precision of the dtype
        under test, others are kept.
    params : mapping
        Keyword arguments; float arrays among them are cast as well.
    condition : float
        Condition number that the error may grow with.
    terms : int
        Length of the longest sum in the op.
    broadcast_axis : int or None
        Axis of the first array that layout ``broadcast`` repeats, None to leave it out.
    """

    label: str
    arrays: tuple[Array, ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    condition: float = 1.0
    terms: int = 1
    broadcast_axis: int | None = 0


def _largest(case: Case, expected: Outputs) -> tuple[Any, ...]:
    return tuple(
        float(np.nanmax(np.abs(e), initial=0.0)) if e.dtype.kind in "fc" else 0.0 for e in expected
    )


@dataclass(frozen=True)
class OpSpec:
    """What `run_op_checks` must know of an op.

    Attributes
    ----------
    name : str
        Name in failure messages.
    function : callable
        The op: arrays and keyword arguments to one array or a tuple of arrays.
    reference : callable
        The same on numpy arrays, in float64.
    cases : callable
        Random generator to the cases.
    constant : float
        c of the tolerance ``c * eps * condition * terms``, relative to the scale.
    scale : callable
        Case and expected outputs to one scale per output, a float or an array that broadcasts
        against it. The default is the largest magnitude of each output.
    invariants : sequence of callables
        Each takes the case, as passed to the op, and the outputs as numpy arrays, and raises
        AssertionError when they break a law of the op.
    dtypes : sequence of dtypes
        Floating or complex dtypes that the op takes and gives back. Outputs that are real in the
        reference have the dtype of the parts.
    promoted : sequence of dtypes
        Further dtypes that the op computes in float32.
    layouts : sequence of str
        Those of `LAYOUTS` that the op takes.
    emulated : bool
        Whether the op has CUDA kernels, which the emulator runs, and a device where there is one.
    """

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterable[Case]]
    constant: float = 4.0
    scale: Callable[[Case, Outputs], tuple[Any, ...]] = _largest
    invariants: Sequence[Callable[[Case, Outputs], None]] = ()
    dtypes: Sequence[DTypeLike] = (np.float32, np.float64)
    promoted: Sequence[DTypeLike] = ()
    layouts: Sequence[str] = LAYOUTS
    emulated: bool = False


class Summary(NamedTuple):
    """What `run_op_checks` ran: the number of calls of the op, of failures, and the axes."""

    calls: int
    failures: int
    isas: tuple[str, ...]
    backends: tuple[str, ...]
    libraries: tuple[str, ...]


def random_spd(
    size: int, condition: float, rng: np.random.Generator, *, hermitian: bool = False
) -> Array:
    """Symmetric or Hermitian positive definite matrix with a chosen condition number.

    Parameters
    ----------
    size : int
        Rows and columns.
    condition : float
        Largest over smallest eigenvalue; the eigenvalues are 1 .. 1 / condition, spaced
        evenly in the logarithm.
    rng : numpy.random.Generator
        Chooses the eigenvectors.
    hermitian : bool
        Complex eigenvectors.

    Returns
    -------
    (size, size) float64 array, or complex128
    """
    directions: Array = rng.standard_normal((size, size))
    if hermitian:
        directions = directions + 1j * rng.standard_normal((size, size))
    basis, _ = np.linalg.qr(directions)
    values = np.logspace(0.0, -np.log10(condition), size)
    matrix = (basis * values) @ basis.conj().T
    return np.asarray((matrix + matrix.conj().T) / 2)


def random_scene(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    *,
    condition: float = 50.0,
    offset: float = 100.0,
    scale: float = 20.0,
    circular: bool = False,
) -> Array:
    """Gaussian pixels with correlated bands.

    Parameters
    ----------
    shape : tuple of int
        Shape of the scene; the last axis is the bands.
    rng : numpy.random.Generator
    condition : float
        Condition number of the covariance.
    offset : float
        Mean of every band.
    scale : float
        Standard deviation of the direction that varies most.
    circular : bool
        Complex pixels, circular about their mean.

    Returns
    -------
    float64 array of that shape, or complex128
    """
    mixing = np.linalg.cholesky(random_spd(shape[-1], condition, rng, hermitian=circular))
    if circular:
        noise = rng.standard_normal((*shape, 2)) @ np.array([1.0, 1.0j]) / np.sqrt(2.0)
        return np.asarray(offset + scale * noise @ mixing.T)
    return np.asarray(offset + scale * rng.standard_normal(shape) @ mixing.T)


def tolerance(
    dtype: DTypeLike, *, condition: float = 1.0, terms: int = 1, constant: float = 4.0
) -> float:
    """Relative error that is allowed: ``constant * eps(dtype) * condition * terms``."""
    return constant * float(np.finfo(np.dtype(dtype)).eps) * condition * max(terms, 1)


def _core() -> Any:
    return importlib.import_module("mahal._core")


def isas() -> tuple[str, ...]:
    """Names of the instruction sets that were built and that this machine can run."""
    return tuple(_core().supported_isas())


def backends() -> tuple[str, ...]:
    """``"cpu"``, ``"emu"`` where the emulator was built, ``"cuda"`` where a device is."""
    core = _core()
    found = ["cpu"]
    if core.emulator_built():
        found.append("emu")
    if core.device_count() > 0:
        found.append("cuda")
    return tuple(found)


def libraries() -> tuple[str, ...]:
    """Array libraries that are installed and usable; cupy only where a device is."""
    found = ["numpy"]
    if importlib.util.find_spec("torch") is not None:
        found.append("torch")
    if importlib.util.find_spec("cupy") is not None and "cuda" in backends():
        found.append("cupy")
    return tuple(found)


# The parameters of `run_op_checks` have the names of these functions.
_supported_isas, _usable_backends, _usable_libraries = isas, backends, libraries


def _torch_reaches(device: str) -> bool:
    import torch

    return device == "cpu" or torch.cuda.is_available()


@contextmanager
def _switched(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Run the block on one instruction set: ``base``, ``avx2`` or ``avx512``."""
    core = _core()
    with _switched(core.active_isa, core.set_isa, name):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run the block with another default thread count."""
    core = _core()
    with _switched(core.default_threads, core.set_default_threads, count):
        yield


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Run the block with the kernels of one backend.

    ``"emu"`` sends host arrays through the CUDA kernels under the emulator. ``"cpu"`` and
    ``"cuda"`` are chosen by where the arrays are, so for them nothing is switched.
    """
    core = _core()
    wanted = "emulator" if name == "emu" else "automatic"
    with _switched(core.active_backend, core.set_backend, wanted):
        yield


def _laid_out(array: Array, layout: str, broadcast_axis: int | None) -> Array | None:
    """A view with the values of ``array`` in one layout, or None where that has no meaning."""
    if layout == "C":
        return np.ascontiguousarray(array)
    if layout == "F":
        return np.asfortranarray(array) if array.ndim > 1 else None
    if layout == "sliced":
        large = np.zeros([2 * n + 1 for n in array.shape], dtype=array.dtype)
        view: Array = large[tuple(slice(1, 2 * n + 1, 2) for n in array.shape)]
        view[...] = array
        return view
    if layout == "offset":
        line = np.zeros(array.size + 1, dtype=array.dtype)
        line[1:] = array.reshape(-1)
        return line[1:].reshape(array.shape)
    if layout == "negative":
        flip = (slice(None, None, -1),) * array.ndim
        return np.ascontiguousarray(array[flip])[flip]
    if layout == "broadcast":
        if broadcast_axis is None:
            return None
        first: Array = np.take(array, [0], axis=broadcast_axis)
        return np.broadcast_to(first, array.shape)
    if layout == "read_only":
        view = np.ascontiguousarray(array).view()
        view.flags.writeable = False
        return view
    if layout == "channel_first":
        if array.ndim < 2:
            return None
        planes = np.ascontiguousarray(np.moveaxis(array, -1, 0))
        return np.moveaxis(planes, 0, -1)
    raise ValueError(f"layouts: layout: must be one of {LAYOUTS}, got {layout!r}")


def layouts(
    array: Array, names: Sequence[str] = LAYOUTS, *, broadcast_axis: int | None = 0
) -> Iterator[tuple[str, Array]]:
    """Views with the values of one array and different layouts in memory.

    Parameters
    ----------
    array : array
        Values.
    names : sequence of str
        Which of `LAYOUTS`; those without a meaning for the array's rank are left out.
    broadcast_axis : int or None
        Axis that ``broadcast`` repeats: the only layout that changes values.

    Yields
    ------
    name : str
    view : array
    """
    for name in names:
        view = _laid_out(array, name, broadcast_axis)
        if view is not None:
            yield name, view


def to_library(array: Array, library: str, device: str = "cpu") -> Any:
    """The values and the strides of a numpy array in another library.

    Parameters
    ----------
    array : numpy array
    library : {"numpy", "torch", "cupy"}
    device : {"cpu", "cuda"}
        Where a torch tensor lives.

    Returns
    -------
    array or None
        None where the library has no such array: torch knows no negative strides.
    """
    if library == "numpy":
        return array
    flip = tuple(slice(None, None, -1 if s < 0 else 1) for s in array.strides)
    positive = array[flip]
    strides = tuple(s // array.itemsize for s in positive.strides)
    extent = 1 + sum((n - 1) * s for n, s in zip(positive.shape, strides, strict=True))
    if array.size == 0:
        extent, strides = 0, tuple(0 for _ in strides)
    line = np.lib.stride_tricks.as_strided(positive, (extent,), (array.itemsize,))
    # One element in front, so that a view that starts off the vector grid stays off it.
    lead = 1 if positive.__array_interface__["data"][0] % 16 else 0
    store = np.concatenate([np.zeros(lead, dtype=array.dtype), line])
    if library == "torch":
        if any(s < 0 for s in array.strides):
            return None
        import torch

        return torch.from_numpy(store).to(device).as_strided(array.shape, strides, lead)
    if library == "cupy":
        import cupy

        view = cupy.lib.stride_tricks.as_strided(
            cupy.asarray(store)[lead:], array.shape, [s * array.itemsize for s in strides]
        )
        return view[flip]
    raise ValueError(f"to_library: library: must be numpy, torch or cupy, got {library!r}")


def to_numpy(array: Any) -> Array:
    """A numpy array with the values of an array of any of the libraries."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "get"):
        return np.asarray(array.get())
    if hasattr(array, "detach"):
        return np.asarray(array.detach().cpu().numpy())
    return np.asarray(array)


def _library_of(array: Any) -> str:
    return type(array).__module__.split(".")[0]


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            return np.clip(np.rint(value), limits.min, limits.max).astype(dtype)
        return value.astype(_real(dtype))
    if isinstance(value, np.ndarray) and value.dtype.kind == "c":
        return value.astype(dtype)
    return value


def _real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of the parts of a complex one; others are their own."""
    return np.empty(0, dtype).real.dtype


class _Call(NamedTuple):
    """One combination, and what is passed to the op for it."""

    case: Case
    dtype: np.dtype[Any]
    layout: str
    library: str
    backend: str
    isa: str
    arrays: tuple[Any, ...]
    params: dict[str, Any]


class _Runner:
    def __init__(self, spec: OpSpec, seed: int) -> None:
        self.spec = spec
        self.seed = seed
        self.calls = 0
        self._expected: dict[tuple[Any, ...], Outputs] = {}

    def expected(self, case: Case, dtype: np.dtype[Any], layout: str) -> Outputs:
        key = (case.label, dtype, layout == "broadcast")
        if key not in self._expected:
            result = self.spec.reference(*case.arrays, **case.params)
            self._expected[key] = tuple(np.asarray(r) for r in _as_tuple(result))
        return self._expected[key]

    def fail(self, call: _Call, problem: str, thread_count: int | None = None) -> CheckError:
        where = (
            f"case={call.case.label!r} dtype={call.dtype} layout={call.layout} "
            f"library={call.library} backend={call.backend} isa={call.isa} seed={self.seed}"
        )
        if thread_count is not None:
            where += f" threads={thread_count}"
        return CheckError(f"{self.spec.name}: {problem} [{where}]")

    def run(self, call: _Call, thread_count: int | None = None) -> tuple[Any, ...]:
        with ExitStack() as stack:
            if call.isa:
                stack.enter_context(isa(call.isa))
            if call.backend == "emu":
                stack.enter_context(backend(call.backend))
            if thread_count is not None:
                stack.enter_context(threads(thread_count))
            self.calls += 1
            try:
                return _as_tuple(self.spec.function(*call.arrays, **call.params))
            except Exception as error:
                problem = f"raised {type(error).__name__}: {error}"
                raise self.fail(call, problem, thread_count) from error

    def check(self, call: _Call) -> None:
        before = [to_numpy(a).tobytes() for a in call.arrays]
        outputs = self.run(call)
        if before != [to_numpy(a).tobytes() for a in call.arrays]:
            raise self.fail(call, "changed its input")
        for k, output in enumerate(outputs):
            if _library_of(output) != call.library:
                raise self.fail(call, f"output {k} is of {_library_of(output)}")
            if call.library == "torch" and output.device != call.arrays[0].device:
                raise self.fail(call, f"output {k} is on {output.device}")
        found = tuple(to_numpy(o) for o in outputs)
        expected = self.expected(call.case, call.dtype, call.layout)
        if len(found) != len(expected):
            raise self.fail(call, f"gave {len(found)} outputs, not {len(expected)}")
        native = [np.dtype(d) for d in self.spec.dtypes]
        work = call.dtype if call.dtype in native else np.dtype(np.float32)
        allowed = tolerance(
            work,
            condition=call.case.condition,
            terms=call.case.terms,
            constant=self.spec.constant,
        )
        scales = self.spec.scale(call.case, expected)
        for k, (got, want, scale) in enumerate(zip(found, expected, scales, strict=True)):
            self.compare(call, k, got, want, allowed * np.asarray(scale), work)
        for invariant in self.spec.invariants:
            try:
                invariant(call.case, found)
            except AssertionError as error:
                raise self.fail(call, f"breaks {invariant.__name__}: {error}") from error

    def compare(
        self, call: _Call, k: int, got: Array, want: Array, allowed: Any, work: np.dtype[Any]
    ) -> None:
        if got.shape != want.shape:
            raise self.fail(call, f"output {k} has shape {got.shape}, not {want.shape}")
        if want.dtype.kind not in "fc":
            if not np.array_equal(got, want):
                first = tuple(int(i) for i in np.argwhere(got != want)[0])
                problem = f"output {k} at {first} is {got[first]}, not {want[first]}"
                raise self.fail(call, problem)
            return
        wanted = work if want.dtype.kind == "c" else _real(work)
        if got.dtype != wanted:
            raise self.fail(call, f"output {k} has dtype {got.dtype}, not {wanted}")
        wrong = np.isnan(got) != np.isnan(want)
        error = np.abs(got.astype(want.dtype) - want)
        wrong |= ~np.isnan(want) & ~(error <= allowed)
        if wrong.any():
            excess = np.where(wrong, np.nan_to_num(error, nan=np.inf), -1.0)
            worst = np.unravel_index(int(np.argmax(excess)), want.shape)
            limit = np.broadcast_to(allowed, want.shape)[worst]
            at = tuple(int(i) for i in worst)
            raise self.fail(
                call,
                f"output {k} at {at} is {got[worst]!r}, not {want[worst]!r}: error "
                f"{error[worst]:.3g} where {limit:.3g} is allowed, {int(wrong.sum())} of "
                f"{wrong.size} values wrong",
            )

    def check_repeatable(self, call: _Call, thread_counts: Sequence[int]) -> None:
        first = [to_numpy(o).tobytes() for o in self.run(call)]
        for count in (None, *thread_counts):
            again = [to_numpy(o).tobytes() for o in self.run(call, count)]
            if again != first:
                raise self.fail(call, "does not repeat its result bit for bit", count)


def _calls(
    spec: OpSpec, seed: int, isa_names: Sequence[str], where: Sequence[str], kinds: Sequence[str]
) -> Iterator[_Call]:
    combinations = [("cpu", name) for name in isa_names] or [("cpu", "")]
    combinations = combinations if "cpu" in where else []
    if "emu" in where and spec.emulated:
        combinations.append(("emu", ""))
    if "cuda" in where and spec.emulated:
        combinations.append(("cuda", ""))
    dtypes = [np.dtype(d) for d in (*spec.dtypes, *spec.promoted)]
    for case, dtype in itertools.product(spec.cases(np.random.default_rng(seed)), dtypes):
        arrays = tuple(_cast(a, dtype) for a in case.arrays)
        params = {k: _cast(v, dtype) for k, v in case.params.items()}
        for layout in spec.layouts:
            views = []
            for k, array in enumerate(arrays):
                plain = layout == "broadcast" and k > 0
                axis = case.broadcast_axis if k == 0 else None
                view = _laid_out(array, "C" if plain else layout, axis)
                views.append(np.ascontiguousarray(array) if view is None and k > 0 else view)
            if views[0] is None:
                continue
            shown = Case(
                case.label,
                tuple(v for v in views if v is not None),
                params,
                case.condition,
                case.terms,
                case.broadcast_axis,
            )
            for (place, isa_name), kind in itertools.product(combinations, kinds):
                device = "cuda" if place == "cuda" else "cpu"
                if kind == "torch":
                    # A tensor has no read-only flag, so that layout would repeat C.
                    if layout == "read_only" or not _torch_reaches(device):
                        continue
                elif (kind == "cupy") != (device == "cuda"):
                    continue
                passed = [to_library(v, kind, device) for v in shown.arrays]
                if any(p is None for p in passed):
                    continue
                named = {
                    k: to_library(v, kind, device) if isinstance(v, np.ndarray) else v
                    for k, v in params.items()
                }
                yield _Call(shown, dtype, layout, kind, place, isa_name, tuple(passed), named)


def run_op_checks(
    spec: OpSpec,
    *,
    seed: int = 0,
    isas: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    libraries: Sequence[str] | None = None,
    thread_counts: Sequence[int] = (1, 2, 3, 4),
    keep_going: bool = False,
) -> Summary:
    """Compare an op with its reference over everything that must not matter.

    Every case runs in every dtype, layout, library, instruction set and backend. Each result is
    checked for values, shape, dtype, library and device, and the inputs for not being written.
    On the C layout every combination also runs twice and with several thread counts and
    must give the same bits.

    Parameters
    ----------
    spec : OpSpec
        The op.
    seed : int
        Seed of the generator that is passed to the cases.
    isas, backends, libraries : sequence of str, optional
        Restrict the axes; the default is all that this machine can run. An empty ``isas``
        leaves instruction sets and thread counts alone: for functions that are not of mahal.
    thread_counts : sequence of int
        Thread counts of the repeatability check.
    keep_going : bool
        Count failures instead of raising the first one.

    Returns
    -------
    Summary

    Raises
    ------
    CheckError
        The message names the case, dtype, layout, library, backend, instruction set and seed.
    ValueError
        When there was nothing to run.
    """
    isa_names = tuple(_supported_isas() if isas is None else isas)
    where = tuple(_usable_backends() if backends is None else backends)
    kinds = tuple(_usable_libraries() if libraries is None else libraries)
    counts = tuple(thread_counts) if isa_names else ()
    runner = _Runner(spec, seed)
    failures = 0
    for call in _calls(spec, seed, isa_names, where, kinds):
        try:
            runner.check(call)
            if call.layout == "C":
                runner.check_repeatable(call, counts)
        except CheckError:
            if not keep_going:
                raise
            failures += 1
    if runner.calls == 0:
        raise ValueError(f"run_op_checks: spec: must give calls to run, got none for {spec.name}")
    return Summary(runner.calls, failures, isa_names, where, kinds)

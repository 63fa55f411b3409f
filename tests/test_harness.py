"""The harness itself: it must pass a right op and catch every planted fault."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mahal import testing
from mahal.testing import Case, CheckError, OpSpec, harness

Function = Callable[..., Any]


def centre(x: Any) -> Any:
    """A right op: subtract the column means, in float32 unless the input is float64."""
    data = testing.to_numpy(x)
    work = data.astype(np.float64)
    wide = data.dtype == np.float64
    result = (work - work.mean(axis=0)).astype(np.float64 if wide else np.float32)
    return testing.to_library(result, type(x).__module__.split(".")[0])


def centre_reference(x: np.ndarray) -> np.ndarray:
    data = np.asarray(x, dtype=np.float64)
    return data - data.mean(axis=0)


def centre_cases(rng: np.random.Generator) -> Iterator[Case]:
    yield Case("tall", (100 + 20 * rng.standard_normal((9, 4)),), terms=9)
    yield Case("one row", (100 + 20 * rng.standard_normal((1, 4)),))


def centre_scale(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[float, ...]:
    return (float(np.abs(case.arrays[0].astype(np.float64)).max()),)


def centre_spec(function: Function = centre, **options: Any) -> OpSpec:
    return OpSpec(
        name="centre",
        function=function,
        reference=centre_reference,
        cases=centre_cases,
        scale=centre_scale,
        promoted=(np.int16, np.uint8),
        **options,
    )


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the compiled module that records what the harness switches."""
    state = SimpleNamespace(isa="avx2", threads=2, backend="automatic", seen=set())
    stub = SimpleNamespace(
        state=state,
        supported_isas=lambda: ("base", "avx2"),
        active_isa=lambda: state.isa,
        set_isa=lambda name: setattr(state, "isa", name),
        default_threads=lambda: state.threads,
        set_default_threads=lambda count: setattr(state, "threads", count),
        active_backend=lambda: state.backend,
        set_backend=lambda name: setattr(state, "backend", name),
        emulator_built=lambda: True,
        device_count=lambda: 0,
    )
    monkeypatch.setattr(harness, "_core", lambda: stub)
    return stub


def recording(core: SimpleNamespace) -> Function:
    def function(x: Any) -> Any:
        core.state.seen.add((core.state.isa, core.state.threads, core.state.backend))
        return centre(x)

    return function


def test_a_right_op_passes_on_every_axis(core: SimpleNamespace) -> None:
    pytest.importorskip("torch")
    summary = testing.run_op_checks(centre_spec(recording(core), emulated=True))
    assert summary.failures == 0
    assert summary.isas == ("base", "avx2")
    assert summary.backends == ("cpu", "emu")
    assert summary.libraries[:2] == ("numpy", "torch")
    assert {isa for isa, _, _ in core.state.seen} == {"base", "avx2"}
    assert {count for _, count, _ in core.state.seen} == {1, 2, 3, 4}
    assert {name for _, _, name in core.state.seen} == {"automatic", "emulator"}
    assert (core.state.isa, core.state.threads, core.state.backend) == ("avx2", 2, "automatic")


def test_switches_are_undone_after_an_error(core: SimpleNamespace) -> None:
    def interrupted() -> None:
        with testing.isa("base"), testing.threads(7), testing.backend("emu"):
            assert (core.state.isa, core.state.threads) == ("base", 7)
            assert core.state.backend == "emulator"
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert (core.state.isa, core.state.threads, core.state.backend) == ("avx2", 2, "automatic")


def faulty(kind: str) -> Function:
    tick = itertools.count()

    def function(x: Any) -> Any:
        data = testing.to_numpy(x)
        right = centre(data)
        if kind == "value":
            right[-1, -1] += 1
        elif kind == "nan":
            right[0, 0] = np.nan
        elif kind == "shape":
            right = right[:, :2]
        elif kind == "dtype":
            right = right.astype(np.float64)
        elif kind == "input":
            if data.flags.writeable:
                data[0, 0] = 0
        elif kind == "memory order":
            line = np.lib.stride_tricks.as_strided(data, (data.size,), (data.itemsize,))
            right = centre(line.reshape(data.shape)) if min(data.strides) > 0 else right
        elif kind == "unrepeatable":
            right = right + np.finfo(right.dtype).eps * (next(tick) % 2)
        elif kind == "exception":
            raise RuntimeError("out of luck")
        elif kind == "number of outputs":
            return right, right
        return right

    return function


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("value", "error 1 where"),
        ("nan", "is .*nan"),
        ("shape", "has shape"),
        ("dtype", "has dtype float64, not float32"),
        ("input", "changed its input"),
        ("memory order", "layout=(F|sliced)"),
        ("unrepeatable", "bit for bit"),
        ("exception", "raised RuntimeError: out of luck"),
        ("number of outputs", "gave 2 outputs, not 1"),
    ],
)
def test_a_fault_is_caught_and_named(core: SimpleNamespace, kind: str, message: str) -> None:
    spec = centre_spec(faulty(kind))
    with pytest.raises(CheckError, match=message) as caught:
        testing.run_op_checks(spec, libraries=["numpy"], seed=11)
    for word in ("centre: ", "case=", "layout=", "isa=", "seed=11"):
        assert word in str(caught.value)
    assert testing.run_op_checks(spec, libraries=["numpy"], keep_going=True).failures > 0


def test_an_op_that_depends_on_threads_is_caught(core: SimpleNamespace) -> None:
    def function(x: Any) -> Any:
        right = centre(x)
        return right * (1 + np.finfo(right.dtype).eps) if core.state.threads == 3 else right

    with pytest.raises(CheckError, match="threads=3"):
        testing.run_op_checks(centre_spec(function), libraries=["numpy"])


def test_an_op_that_is_wrong_on_one_isa_is_caught(core: SimpleNamespace) -> None:
    def function(x: Any) -> Any:
        return centre(x) + (core.state.isa == "avx2")

    with pytest.raises(CheckError, match="isa=avx2"):
        testing.run_op_checks(centre_spec(function), libraries=["numpy"])


def test_an_op_that_gives_another_library_is_caught(core: SimpleNamespace) -> None:
    pytest.importorskip("torch")
    spec = centre_spec(lambda x: centre(testing.to_numpy(x)))
    with pytest.raises(CheckError, match=r"output 0 is of numpy .*library=torch"):
        testing.run_op_checks(spec)


def test_a_broken_invariant_is_named(core: SimpleNamespace) -> None:
    def sums_to_one(case: Case, outputs: tuple[np.ndarray, ...]) -> None:
        assert abs(outputs[0].sum() - 1) < 0.5, "sum is not one"

    with pytest.raises(CheckError, match="breaks sums_to_one: sum is not one"):
        testing.run_op_checks(centre_spec(invariants=[sums_to_one]), libraries=["numpy"])


def test_nothing_to_run_is_an_error(core: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="got none for centre"):
        testing.run_op_checks(centre_spec(), backends=["cuda"])


def test_layouts_differ_in_memory_and_not_in_value() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    views = dict(testing.layouts(array))
    assert tuple(views) == testing.LAYOUTS
    for name, view in views.items():
        if name != "broadcast":
            np.testing.assert_array_equal(view, array)
    assert views["F"].flags.f_contiguous
    assert all(s == 2 * t for s, t in zip(views["sliced"].strides[2:], (8,), strict=True))
    assert views["offset"].ctypes.data % 16 == 8
    assert all(s < 0 for s in views["negative"].strides)
    assert views["broadcast"].strides[0] == 0
    assert not views["read_only"].flags.writeable
    assert views["channel_first"].strides[2] == 48
    with pytest.raises(ValueError, match="layouts: layout: must be one of"):
        list(testing.layouts(array, ["diagonal"]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16, bool])
def test_torch_tensors_keep_values_and_strides(dtype: Any) -> None:
    pytest.importorskip("torch")
    array = (np.arange(24) % 7).reshape(2, 3, 4).astype(dtype)
    for name, view in testing.layouts(array):
        tensor = testing.to_library(view, "torch")
        if name == "negative":
            assert tensor is None
            continue
        np.testing.assert_array_equal(testing.to_numpy(tensor), view)
        assert tensor.stride() == tuple(s // view.itemsize for s in view.strides)


@pytest.mark.parametrize(("size", "condition"), [(1, 1.0), (2, 10.0), (12, 1e6)])
def test_random_spd_has_its_condition_number(size: int, condition: float) -> None:
    matrix = testing.random_spd(size, condition, np.random.default_rng(0))
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.cond(matrix) == pytest.approx(condition, rel=1e-6)


def test_tolerance_is_its_product() -> None:
    eps = np.finfo(np.float32).eps
    value = testing.tolerance(np.float32, condition=10.0, terms=7, constant=2.0)
    assert value == pytest.approx(140 * eps)

"""Arrays of any library become views: the three ways in, and what is refused."""

from __future__ import annotations

import array
import ctypes
import gc
import re
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mahal import _core

DTYPES = ["bool", "uint8", "int16", "uint16", "int32", "int64"]
DTYPES += ["float32", "float64", "complex64", "complex128"]


def used(shape, strides):
    """Strides, without those that no address depends on: libraries differ in them."""
    empty = 0 in shape
    return tuple(s if n > 1 and not empty else None for n, s in zip(shape, strides, strict=True))


def describe(array):
    shape, strides, dtype, device, read_only, path = _core._describe(array)
    return {
        "shape": shape,
        "strides": used(shape, strides),
        "dtype": dtype,
        "device": device,
        "read_only": read_only,
        "path": path,
    }


def expected(array, path):
    return {
        "shape": array.shape,
        "strides": used(array.shape, [s // array.itemsize for s in array.strides]),
        "dtype": array.dtype.name,
        "device": "cpu",
        "read_only": not array.flags.writeable,
        "path": path,
    }


class Exporter:
    """An array library of which only `__dlpack__` is known."""

    def __init__(self, array, *, versioned=True):
        self.array = array
        self.versioned = versioned
        self.requests = []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **arguments):
        self.requests.append(arguments)
        if not self.versioned:
            if arguments:
                raise TypeError("__dlpack__() got an unexpected keyword argument")
            return self.array.__dlpack__()
        return self.array.__dlpack__(**arguments)


def layouts(array):
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    return {
        "C": array,
        "F": np.asfortranarray(array),
        "sliced": wide[..., ::2],
        "offset": array[1:, 1:],
        "negative": array[::-1, :, ::-1],
        "transposed": array.transpose(2, 0, 1),
        "broadcast": np.broadcast_to(array[:1], (5, *array.shape[1:])),
        "scalar axes": array[:1, :1, :1],
        "no axes": array[0, 0, 0:1].reshape(()),
        "empty": array[:0],
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", layouts(np.zeros((2, 2, 2))))
def test_numpy_comes_through_the_buffer_protocol(dtype, layout):
    array = layouts(np.zeros((3, 4, 5), dtype))[layout]
    assert describe(array) == expected(array, "buffer")


def test_read_only_numpy_is_marked():
    array = np.zeros(3)
    array.flags.writeable = False
    assert describe(array)["read_only"]


@given(
    shape=st.lists(st.integers(0, 4), max_size=4),
    steps=st.lists(st.sampled_from([-2, -1, 1, 2, 3]), min_size=4, max_size=4),
    dtype=st.sampled_from(DTYPES),
)
def test_any_numpy_view(shape, steps, dtype):
    whole = np.zeros([3 * extent for extent in shape], dtype)
    view = whole[tuple(slice(None, None, step) for step, _ in zip(steps, shape, strict=False))]
    view = view.T
    assert describe(view) == expected(view, "buffer")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["C", "sliced", "offset", "transposed", "no axes", "empty"])
@pytest.mark.parametrize("versioned", [True, False])
def test_other_libraries_come_through_a_capsule(dtype, layout, versioned):
    array = layouts(np.zeros((3, 4, 5), dtype))[layout]
    assert describe(Exporter(array, versioned=versioned)) == expected(array, "capsule")


def test_a_capsule_carries_the_read_only_flag():
    array = np.zeros(3)
    array.flags.writeable = False
    assert describe(Exporter(array))["read_only"]


def test_a_host_capsule_is_asked_for_without_a_stream():
    exporter = Exporter(np.zeros(3))
    describe(exporter)
    assert exporter.requests == [{"max_version": (1, 0)}]


def test_a_device_capsule_is_asked_for_without_a_hidden_wait():
    class OnDevice(Exporter):
        def __dlpack_device__(self):
            return (2, 0)

        def __dlpack__(self, **arguments):
            self.requests.append(arguments)
            return self.array.__dlpack__()

    exporter = OnDevice(np.zeros(3))
    describe(exporter)
    assert exporter.requests == [{"stream": -1, "max_version": (1, 0)}]


def test_errors_of_the_exporter_pass_through():
    class Failing(Exporter):
        def __dlpack__(self, **arguments):
            raise OSError("device lost")

    with pytest.raises(OSError, match="device lost"):
        describe(Failing(np.zeros(3)))


def test_what_cannot_be_exported_is_refused_in_one_line():
    class Refusing(Exporter):
        def __dlpack__(self, **arguments):
            raise BufferError("not here\nand a stack trace")

    with pytest.raises(ValueError, match=r"^array: must have memory .* \(not here\)$"):
        describe(Refusing(np.zeros(3)))


class DLPackTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class ManagedVersioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", DLPackTensor),
    )


class Handmade:
    """A capsule with fields of our choice; counts the calls of its deleter."""

    def __init__(self, **fields):
        self.deleted = 0
        self.memory = (ctypes.c_double * 12)()
        shape = (ctypes.c_int64 * 9)(*([3, 4] + [1] * 7))
        values = {
            "data": ctypes.addressof(self.memory),
            "device_type": 1,
            "rank": 2,
            "code": 2,
            "bits": 64,
            "lanes": 1,
            "shape": shape,
        }
        tensor = DLPackTensor(**{k: v for k, v in {**values, **fields}.items() if k in _names()})
        self.deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._delete)
        self.managed = ManagedVersioned(
            major=fields.get("major", 1),
            flags=fields.get("flags", 0),
            deleter=ctypes.cast(self.deleter, ctypes.c_void_p),
            tensor=tensor,
        )

    def _delete(self, _):
        self.deleted += 1

    def __dlpack_device__(self):
        return (self.managed.tensor.device_type, 0)

    def __dlpack__(self, **_):
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self.managed), b"dltensor_versioned", None)


def _names():
    return {name for name, *_ in DLPackTensor._fields_}


def test_a_capsule_is_released_once_after_the_call():
    made = Handmade()
    assert describe(made)["shape"] == (3, 4)
    assert made.deleted == 1


def test_missing_strides_mean_c_order():
    assert describe(Handmade())["strides"] == (4, 1)


def test_a_copy_counts_as_read_only():
    assert not describe(Handmade())["read_only"]
    assert describe(Handmade(flags=1))["read_only"]
    assert describe(Handmade(flags=2))["read_only"]


def test_cuda_memory_is_recognised():
    assert describe(Handmade(device_type=2, device_id=1))["device"] == "cuda:1"
    assert describe(Handmade(device_type=13, device_id=0))["device"] == "cuda:0"
    assert describe(Handmade(device_type=3, device_id=0))["device"] == "cpu"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"major": 2}, TypeError, "DLPack version 1, got version 2"),
        ({"device_type": 8}, ValueError, "host or on a CUDA device, got DLPack device type 8"),
        ({"rank": 9}, ValueError, "at most 8 axes, got 9"),
        ({"code": 2, "bits": 16}, TypeError, "got float16"),
        ({"code": 4, "bits": 16}, TypeError, "got bfloat16"),
        ({"code": 1, "bits": 64}, TypeError, "got uint64"),
        ({"code": 0, "bits": 8}, TypeError, "got int8"),
        ({"lanes": 4}, TypeError, "got float64 x 4"),
        ({"code": 9, "bits": 8}, TypeError, "got DLPack type 9"),
        ({"byte_offset": 3}, ValueError, "aligned to 8 bytes"),
    ],
)
def test_a_capsule_that_cannot_be_viewed_is_refused(fields, error, message):
    made = Handmade(**fields)
    with pytest.raises(error, match=re.escape(message)):
        describe(made)
    # A capsule of another version is left to its owner, who cannot know that we looked at it.
    assert made.deleted == (0 if "major" in fields else 1)


def test_a_capsule_can_be_used_once():
    class Stale(Exporter):
        def __init__(self, array):
            super().__init__(array)
            self.capsule = array.__dlpack__()

        def __dlpack__(self, **arguments):
            return self.capsule

    exporter = Stale(np.zeros(3))
    describe(exporter)
    with pytest.raises(TypeError, match="unused DLPack capsule"):
        describe(exporter)


@pytest.mark.parametrize("wrap", [lambda array: array, Exporter], ids=["buffer", "capsule"])
def test_arrays_are_let_go_after_the_call(wrap):
    class Array(np.ndarray):
        pass

    array = Array((3, 4))
    gone = weakref.ref(array)
    describe(wrap(array))
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core._describe(array, array)
    del array
    gc.collect()
    assert gone() is None


def test_buffers_are_released_after_the_call():
    memory = bytearray(8)
    assert describe(memory)["dtype"] == "uint8"
    memory.append(1)  # refused by Python while the buffer is held
    signed = array.array("b", [1, 2, 3])
    with pytest.raises(TypeError, match="got buffer format 'b'"):
        describe(signed)
    signed.append(4)


def test_none_gives_no_view():
    assert _core._describe(None) is None


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "array: must be an array .*, got list$"),
        (1.0, TypeError, "got float$"),
        (np.zeros(3, ">f4"), TypeError, "array: dtype must be .*, got >f4$"),
        (np.zeros(3, "f2"), TypeError, "got float16$"),
        (np.zeros(3, "u8"), TypeError, "got uint64$"),
        (np.zeros(3, "i1"), TypeError, "got int8$"),
        (np.zeros(3, np.longdouble), TypeError, "got float128$|got longdouble$"),
        (np.zeros(3, object), TypeError, "got object$"),
        (np.zeros(3, "M8[s]"), TypeError, r"got datetime64\[s\]$"),
        (np.zeros(3, "U3"), TypeError, "got <U3$"),
        (np.zeros(3, "f4,f4"), TypeError, "got .*f0.*f1"),
        (np.zeros((1,) * 9), ValueError, "at most 8 axes, got 9$"),
        (np.zeros(3, [("a", "u1"), ("b", "f4")])["b"], ValueError, r"multiples .*got 5 bytes$"),
        (np.zeros(9, "u1")[1:].view("f4"), ValueError, "float32 must be aligned to 4 bytes"),
    ],
)
def test_what_cannot_be_viewed_is_refused(array, error, message):
    with pytest.raises(error, match=message) as caught:
        _core._describe(array)
    assert "\n" not in str(caught.value)


class TestTorch:
    """Tensors come through the C exchange interface."""

    @pytest.fixture
    def torch(self):
        return pytest.importorskip("torch")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes(self, torch, dtype):
        if dtype == "uint16" and not hasattr(torch, "uint16"):
            pytest.skip("torch without uint16")
        tensor = torch.zeros(3, 4, dtype=getattr(torch, dtype))
        seen = describe(tensor)
        assert seen.pop("path") in {"exchange", "capsule"}
        assert seen == {
            "shape": (3, 4),
            "strides": (4, 1),
            "dtype": dtype,
            "device": "cpu",
            "read_only": False,
        }

    def test_exchange_is_used_where_torch_has_it(self, torch):
        has = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
        assert describe(torch.zeros(3))["path"] == ("exchange" if has else "capsule")

    def test_layouts(self, torch):
        tensor = torch.zeros(3, 4, 5)
        for view in (
            tensor.permute(2, 0, 1),
            tensor[1:, ::2],
            tensor[:1].expand(6, 4, 5),
            tensor[:0],
            tensor[0, 0, 0],
        ):
            seen = describe(view)
            assert seen["shape"] == tuple(view.shape)
            assert seen["strides"] == used(view.shape, view.stride())

    def test_tensors_that_need_gradients_are_taken(self, torch):
        parameter = torch.nn.Parameter(torch.zeros(3))
        if hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
            assert describe(parameter)["path"] == "exchange"

    def test_values_that_were_not_computed_yet_are_refused(self, torch):
        tensor = torch.zeros(3, dtype=torch.complex64)
        with pytest.raises(ValueError, match=r"pending conjugation, call resolve_conj\(\)$"):
            describe(tensor.conj())
        with pytest.raises(ValueError, match=r"pending negation, call resolve_neg\(\)$"):
            describe(tensor.conj().imag)
        assert describe(tensor.conj().resolve_conj())["dtype"] == "complex64"

    def test_what_has_no_memory_is_refused_in_one_line(self, torch):
        for tensor in (torch.zeros(3, device="meta"), torch.zeros(3, 3).to_sparse()):
            with pytest.raises(ValueError, match="memory that can be viewed, got Tensor") as caught:
                describe(tensor)
            assert "\n" not in str(caught.value)

    def test_half_precision_is_refused(self, torch):
        for dtype in (torch.float16, torch.bfloat16):
            with pytest.raises(TypeError, match=rf"got {str(dtype).split('.')[1]}$"):
                describe(torch.zeros(3, dtype=dtype))

    @pytest.mark.cuda
    def test_device_tensors(self, torch):
        if not torch.cuda.is_available():
            pytest.skip("torch without CUDA")
        assert describe(torch.zeros(3, device="cuda"))["device"] == "cuda:0"


@pytest.mark.cuda
def test_cupy():
    cupy = pytest.importorskip("cupy")
    seen = describe(cupy.zeros((3, 4), dtype="float32")[:, ::2])
    assert seen["shape"] == (3, 2)
    assert seen["strides"] == (4, 2)
    assert seen["device"] == "cuda:0"

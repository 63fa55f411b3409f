"""GPU arrays: never copied to the host in silence, and told apart without a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import mahal
import numpy as np
import pytest
from mahal.testing import backends, random_scene

IMAGE = random_scene((12, 14, 4), np.random.default_rng(0))


class DeviceArray:
    """An array that lives on a GPU and says so; every way to the host is an error."""

    shape = (12, 14, 4)
    ndim = 3
    dtype = np.dtype(np.float64)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> NoReturn:
        raise BufferError("no device")

    def __array__(self, *args: Any, **options: Any) -> NoReturn:
        raise AssertionError("copied to the host")

    def __iter__(self) -> NoReturn:
        raise AssertionError("copied to the host")

    def get(self) -> NoReturn:
        raise AssertionError("copied to the host")


CALLS: dict[str, Callable[[Any], Any]] = {
    "rx": mahal.rx,
    "mean_covariance": mahal.mean_covariance,
    "local_covariance": lambda x: mahal.local_covariance(x, 3),
    "cholesky": mahal.cholesky,
    "whiten": lambda x: mahal.whiten(x, np.zeros(4), np.eye(4)),
    "mahalanobis": lambda x: mahal.mahalanobis(x, np.zeros(4), np.eye(4)),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_unknown_device_array_is_refused(name: str) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=rf"^{name}: .*, got .*$"):
        CALLS[name](DeviceArray())


def test_a_device_argument_beside_a_host_image_is_refused() -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"^rx: mask: .*, got .*$"):
        mahal.rx(IMAGE, mask=DeviceArray())


@pytest.mark.parametrize("value", [[[1.0, 2.0], [3.0, 4.0]], "image", None, 3.0, object()])
def test_things_that_are_no_arrays_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^rx: image: .*, got .*$"):
        mahal.rx(value)


@pytest.mark.cuda
def test_cupy_arrays_come_back() -> None:
    cupy = pytest.importorskip("cupy")
    if "cuda" not in backends():
        pytest.skip("no CUDA device")
    mean, covariance = mahal.local_covariance(cupy.asarray(IMAGE), 5)
    want_mean, want = mahal.local_covariance(IMAGE, 5)
    assert isinstance(mean, cupy.ndarray)
    assert isinstance(covariance, cupy.ndarray)
    np.testing.assert_allclose(mean.get(), want_mean, rtol=1e-13)
    np.testing.assert_allclose(covariance.get(), want, rtol=0, atol=1e-13 * want.max())

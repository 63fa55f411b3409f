"""Torch tensors in, torch tensors out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, reference, tolerance

torch = pytest.importorskip("torch")

IMAGE = random_scene((12, 14, 4), np.random.default_rng(0))
MEAN, COVARIANCE = reference.mean_covariance(IMAGE)

Call = Callable[..., Any]
CALLS: dict[str, tuple[Call, tuple[np.ndarray, ...]]] = {
    "rx": (mahal.rx, (IMAGE,)),
    "local rx": (lambda x: mahal.rx(x, window=(1, 5)), (IMAGE,)),
    "shrunk rx": (lambda x: mahal.rx(x, window=(1, 5), estimator="oas"), (IMAGE,)),
    "mean_covariance": (mahal.mean_covariance, (IMAGE,)),
    "local_covariance": (lambda x: mahal.local_covariance(x, (1, 5)), (IMAGE,)),
    "cholesky": (mahal.cholesky, (COVARIANCE,)),
    "whiten": (mahal.whiten, (IMAGE, MEAN, COVARIANCE)),
    "mahalanobis": (mahal.mahalanobis, (IMAGE, MEAN, COVARIANCE)),
}


def outputs(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tensors_come_back_with_the_bits_of_arrays(name: str, dtype: str) -> None:
    function, arrays = CALLS[name]
    arrays = tuple(a.astype(dtype) for a in arrays)
    expected = outputs(function(*arrays))
    found = outputs(function(*(torch.from_numpy(a) for a in arrays)))
    for tensor, array in zip(found, expected, strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.device.type == "cpu"
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_integer_tensors_are_promoted_to_float32(dtype: str) -> None:
    image = torch.from_numpy(np.rint(IMAGE).astype(dtype))
    scores = mahal.rx(image)
    assert scores.dtype == torch.float32
    np.testing.assert_array_equal(scores.numpy(), mahal.rx(image.numpy()))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_tensors_are_computed_in_float32(dtype: str) -> None:
    image = torch.from_numpy(IMAGE).to(getattr(torch, dtype))
    scores = mahal.rx(image)
    assert isinstance(scores, torch.Tensor)
    want, _ = reference.rx(image.to(torch.float64).numpy())
    coarse = torch.finfo(scores.dtype).eps
    allowed = max(coarse, tolerance(np.float32, condition=50.0, terms=4)) * want.max()
    np.testing.assert_allclose(scores.to(torch.float64).numpy(), want, rtol=0, atol=allowed)


def test_masks_are_tensors_as_well() -> None:
    mask = np.random.default_rng(1).random((12, 14)) < 0.8
    found, status = mahal.rx(
        torch.from_numpy(IMAGE), mask=torch.from_numpy(mask), return_status=True
    )
    expected, want = mahal.rx(IMAGE, mask=mask, return_status=True)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert status.dtype == torch.uint8
    np.testing.assert_array_equal(status.numpy(), want)


# Those with a gradient have their own tests.
@pytest.mark.parametrize("name", ["shrunk rx"])
def test_tensors_that_require_grad_are_refused(name: str) -> None:
    function, arrays = CALLS[name]
    tensors = [torch.from_numpy(a) for a in arrays]
    tensors[0].requires_grad_()
    with pytest.raises(ValueError, match=r"^\w+: \w+: .*detach\(\).*$"):
        function(*tensors)
    expected = outputs(function(*arrays))
    found = outputs(function(*(t.detach() for t in tensors)))
    for tensor, array in zip(found, expected, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_tensors_that_require_grad_pass_where_gradients_are_off() -> None:
    image = torch.from_numpy(IMAGE).requires_grad_()
    with torch.no_grad():
        scores = mahal.rx(image, estimator="oas")
    assert not scores.requires_grad
    np.testing.assert_array_equal(scores.numpy(), mahal.rx(IMAGE, estimator="oas"))


def test_libraries_do_not_mix() -> None:
    image = torch.from_numpy(IMAGE)
    with pytest.raises(TypeError, match=r"^rx: mask: .*, got .*$"):
        mahal.rx(image, mask=np.ones((12, 14), dtype=bool))
    with pytest.raises(TypeError, match=r"^rx: background: .*, got .*$"):
        mahal.rx(IMAGE, background=image)
    with pytest.raises(TypeError, match=r"^mahalanobis: mean: .*, got .*$"):
        mahal.mahalanobis(image, MEAN, COVARIANCE)


def test_dtypes_do_not_mix() -> None:
    image = torch.from_numpy(IMAGE)
    with pytest.raises(TypeError, match=r"^rx: background: .*, got .*$"):
        mahal.rx(image, background=image.float())


def test_meta_tensors_are_refused() -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"^rx: image: .*, got .*$"):
        mahal.rx(torch.from_numpy(IMAGE).to("meta"))


def test_results_do_not_depend_on_torch_threads() -> None:
    image = torch.from_numpy(IMAGE)
    first = mahal.rx(image, window=(1, 5))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(mahal.rx(image, window=(1, 5)), first)
    finally:
        torch.set_num_threads(before)

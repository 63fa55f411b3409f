"""Kernels of gradients: references, chunks of pixels, large matrices, pixels that take no part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from mahal import _core
from mahal._arrays import empty, workspace
from mahal.testing import (
    LAYOUTS,
    Case,
    OpSpec,
    backend,
    backends,
    random_scene,
    random_spd,
    run_op_checks,
    tolerance,
)
from mahal.testing import reference_gradients as gradients

CONDITION = 20.0

Cases = Callable[[np.random.Generator], Iterator[Case]]


def normal(rng: np.random.Generator, shape: tuple[int, ...], circular: bool) -> np.ndarray:
    values = rng.standard_normal(shape)
    return values + 1j * rng.standard_normal(shape) if circular else values


def cholesky(factor: Any, grad: Any, *, loading: float = 0.0) -> Any:
    out = empty(factor, factor.shape, str(factor.dtype))
    memory = workspace(factor, _core.cholesky_backward_workspace(factor, 0))
    _core.cholesky_backward(factor, grad, out, memory, loading, 0, 0)
    return out


def rounded(arrays: tuple[Any, ...], like: Any) -> tuple[Any, ...]:
    """Results in double precision as the checks of one precision expect them."""
    return tuple(a.astype(like.dtype) for a in arrays)


def precise(like: Any) -> str:
    return "complex128" if like.dtype.kind == "c" else "float64"


def whiten(grad: Any, y: Any, covariance: Any) -> Any:
    bands = y.shape[-1]
    exact = precise(y)
    out = (
        empty(y, y.shape, str(y.dtype)),
        empty(y, (bands,), exact),
        empty(y, (bands, bands), exact),
    )
    memory = workspace(y, _core.whiten_backward_workspace(y, 0))
    _core.whiten_backward(grad, y, covariance, *out, memory, 0, 0)
    return rounded(out, y)


def moments(
    x: Any, grad_mean: Any, grad_covariance: Any, *, mask: Any = None, center: bool = True
) -> Any:
    out = empty(x, x.shape, str(x.dtype))
    memory = workspace(x, _core.mean_covariance_backward_workspace(x, 0))
    _core.mean_covariance_backward(
        x, mask, grad_mean, grad_covariance, out, memory, 1, center, 0, 0
    )
    return out


def detector(
    grad: Any, pixels: Any, mean: Any, covariance: Any, target: Any = None, *, score: str
) -> Any:
    bands = pixels.shape[-1]
    exact = precise(pixels)
    out = (
        empty(pixels, pixels.shape, str(pixels.dtype)),
        None if target is None else empty(pixels, target.shape, exact),
        empty(pixels, (bands,), exact),
        None,
        empty(pixels, (bands, bands), exact),
    )
    inputs = (grad, pixels, target, mean, None, covariance, None)
    options = ("detector", score, *inputs)
    memory = workspace(pixels, _core.detector_backward_workspace(*options, True, False, 0))
    _core.detector_backward(*options, *out, memory, True, False, 0, 0)
    return rounded(tuple(o for o in out if o is not None), pixels)


def known(
    grad: Any, pixels: Any, mean: Any, covariance: Any, target: Any = None, *, score: str
) -> Any:
    found = gradients.detector(grad, pixels, mean, covariance, target, score)
    return tuple(f for f in found if f is not None)


def cholesky_cases(circular: bool, small: bool) -> Cases:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        # Real sizes beyond 48 are worked on one by one.
        sizes = (
            [((3,), 4), ((), 27)] if circular else [((11,), 3), ((), 1), ((2, 5), 8), ((2,), 53)]
        )
        for batch, n in sizes:
            matrices = [
                random_spd(n, CONDITION, rng, hermitian=circular)
                for _ in range(int(np.prod(batch)))
            ]
            a = np.stack(matrices).reshape(*batch, n, n)
            factor = np.linalg.cholesky(a)
            grad = np.tril(normal(rng, a.shape, circular))
            yield Case(
                f"n {n}",
                (factor, grad),
                {"loading": 0.1} if n == 8 else {},
                condition=CONDITION,
                terms=n,
                broadcast_axis=0 if batch else None,
            )

    return cases


def whiten_cases(circular: bool, small: bool) -> Cases:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        for shape in (
            [(5, 3), (4,), (9, 8, 11)] if circular else [(6, 5, 4), (3,), (1500, 2), (70, 19)]
        ):
            y = normal(rng, shape, circular)
            covariance = random_spd(shape[-1], CONDITION, rng, hermitian=circular)
            yield Case(
                f"shape {shape}",
                (normal(rng, shape, circular), y, covariance),
                condition=CONDITION,
                terms=shape[-1] * int(np.prod(shape[:-1])),
                broadcast_axis=0 if len(shape) > 1 else None,
            )

    return cases


def moment_cases(circular: bool, small: bool) -> Cases:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        shapes = [(9, 2), (4, 6, 7)]
        if not circular:
            shapes = [(6, 5, 3), (30, 1), (1300, 5), (50, 21)]
        if small:
            shapes = [(6, 2), (3, 5, 3)] if circular else [(6, 5, 3), (5, 34)]
        for shape in shapes:
            x = random_scene(shape, rng, offset=1.0, scale=1.0, circular=circular)
            params: dict[str, Any] = {"center": shape[-1] != 2}
            if len(shape) == 3:
                params["mask"] = rng.random(shape[:-1]) < 0.8
                x[0, 0, 0] = np.nan
            bands = shape[-1]
            yield Case(
                f"shape {shape}",
                (x, normal(rng, (bands,), circular), normal(rng, (bands, bands), circular)),
                params,
                terms=bands * int(np.prod(shape[:-1])),
                broadcast_axis=None,
            )

    return cases


def detector_cases(circular: bool, small: bool) -> Cases:
    def cases(rng: np.random.Generator) -> Iterator[Case]:
        scores = ["distance", "ace", "filter", "normalized_filter"]
        scores += [] if circular else ["signed_ace"]
        shapes = [(9, 7, 5), (40, 3), (3, 4, 2), (30, 18), (6, 4)]
        if small:
            shapes = [(270, 1), (3, 3, 4), (7, 2), (5, 3), (6, 4)]
            if circular:
                shapes = [(4, 17), (2, 3, 2), (4, 3), (5, 2)]
        for score, shape in zip(scores, shapes, strict=False):
            pixels = random_scene(shape, rng, offset=1.0, scale=1.0, circular=circular)
            bands = shape[-1]
            covariance = random_spd(bands, CONDITION, rng, hermitian=circular)
            arrays = (pixels, normal(rng, (bands,), circular), covariance)
            maps: tuple[int, ...] = ()
            if score != "distance":
                maps = (2,)
                target = random_scene((2, bands), rng, offset=3.0, scale=1.0, circular=circular)
                arrays = (*arrays, target)
            yield Case(
                f"{score} {shape}",
                (rng.standard_normal((*shape[:-1], *maps)), *arrays),
                {"score": score},
                condition=CONDITION**2,
                terms=bands * int(np.prod(shape[:-1])),
                broadcast_axis=0,
            )

    return cases


REAL, COMPLEX = (np.float32, np.float64), (np.complex64, np.complex128)
KERNELS: dict[str, tuple[Any, Any, Any]] = {
    "cholesky": (cholesky, gradients.cholesky, cholesky_cases),
    "whiten": (whiten, gradients.whiten, whiten_cases),
    "mean_covariance": (moments, gradients.mean_covariance, moment_cases),
    "detector": (detector, known, detector_cases),
}


def spec_of(name: str, circular: bool, small: bool = False) -> OpSpec:
    function, expected, cases = KERNELS[name]
    return OpSpec(
        name=f"{name} backward",
        function=function,
        reference=expected,
        cases=cases(circular, small),
        dtypes=COMPLEX if circular else REAL,
        layouts=("C", "negative") if small else LAYOUTS,
        emulated=True,
    )


FIELDS = pytest.mark.parametrize("circular", [False, True], ids=["real", "complex"])


@FIELDS
@pytest.mark.parametrize("name", KERNELS)
def test_against_the_reference(name: str, circular: bool) -> None:
    spec = spec_of(name, circular)
    assert run_op_checks(spec, libraries=["numpy"], backends=["cpu"]).failures == 0


@FIELDS
@pytest.mark.parametrize("name", KERNELS)
def test_cuda_kernels_in_the_emulator(name: str, circular: bool) -> None:
    if "emu" not in backends():
        pytest.skip("this build has no emulator")
    spec = spec_of(name, circular, small=True)
    found = run_op_checks(spec, libraries=["numpy"], backends=["emu"], thread_counts=())
    assert found.failures == 0


def test_matrices_beyond_shared_memory() -> None:
    n = 80
    if "emu" not in backends():
        pytest.skip("this build has no emulator")
    rng = np.random.default_rng(5)
    factor = np.linalg.cholesky(random_spd(n, CONDITION, rng))
    grad = np.tril(rng.standard_normal((n, n)))
    with backend("emu"):
        found = cholesky(factor, grad)
    allowed = tolerance(np.float64, condition=CONDITION, terms=n)
    expected = gradients.cholesky(factor, grad)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed * np.abs(expected).max())


def global_gradients(score: str, circular: bool, center: bool, extra: str) -> list[np.ndarray]:
    """Of image, targets, background and covariance, whichever there are."""
    rng = np.random.default_rng(6)
    image = random_scene((5, 4, 3), rng, offset=1.0, scale=1.0, circular=circular)
    mask = rng.random((5, 4)) < 0.9
    image[1, 1, 2] = np.nan
    bands = 3
    target = None if score == "distance" else normal(rng, (2, bands), circular) + 2
    background = normal(rng, (11, bands), circular) if extra == "background" else None
    covariance = None
    if extra == "covariance":
        covariance = random_spd(bands, CONDITION, rng, hermitian=circular)
    grad = rng.standard_normal((5, 4) if target is None else (5, 4, 2))
    exact = precise(image)
    like = (image, target, None, background, covariance)
    out = tuple(None if a is None else empty(image, a.shape, exact) for a in like)
    inputs = (grad, image, target, None, background, covariance, mask)
    options = ("ace", score, *inputs)
    memory = workspace(image, _core.detector_backward_workspace(*options, center, True, 0))
    _core.detector_backward(*options, *out, memory, center, True, 0, 0)
    return [o for o in out if o is not None]


@pytest.mark.parametrize(
    "case",
    [
        ("distance", False, True, ""),
        ("distance", True, True, "background"),
        ("ace", False, True, ""),
        ("ace", True, False, ""),
        ("filter", False, True, "background"),
        ("normalized_filter", False, True, "covariance"),
    ],
)
def test_estimated_backgrounds_in_the_emulator(case: tuple[str, bool, bool, str]) -> None:
    if "emu" not in backends():
        pytest.skip("this build has no emulator")
    expected = global_gradients(*case)
    with backend("emu"):
        found = global_gradients(*case)
    # The condition number of a few samples is not that of their law.
    allowed = tolerance(np.float64, condition=1e3, terms=60)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=allowed * np.abs(other).max())

"""Gradients of local RX, ACE and matched filter: closed forms, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import mahal
import numpy as np
import pytest
from mahal.ops._window_gradients import window_scores_backward
from mahal.testing import (
    Case,
    OpSpec,
    backend,
    backends,
    random_scene,
    random_spd,
    run_op_checks,
    tolerance,
)
from mahal.testing import reference_window_gradients as reference

Window = tuple[int, int]

KINDS = ("rx", "ace", "signed_ace", "subspace_ace", "filter", "normalized_filter")


def scores(image: Any, target: Any, kind: str, **params: Any) -> Any:
    """Scores and status of the forward op."""
    if kind == "rx":
        return mahal.rx(image, return_status=True, singular="nan", **params)
    if "ace" in kind:
        return mahal.ace(
            image,
            target,
            signed=kind == "signed_ace",
            subspace=kind == "subspace_ace",
            return_status=True,
            singular="nan",
            **params,
        )
    return mahal.matched_filter(
        image,
        target,
        normalized=kind == "normalized_filter",
        return_status=True,
        singular="nan",
        **params,
    )


@pytest.fixture(autouse=True)
def _without_numpy_warnings() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def backward(
    image: Any,
    gradient: Any,
    target: Any = None,
    covariance: Any = None,
    *,
    kind: str,
    window: Window,
    border: str = "shift",
    center: bool = True,
    mask: Any = None,
) -> tuple[Any, ...]:
    public = window if window[0] > 0 else window[1]
    params = {"window": public, "border": border, "center": center, "mask": mask}
    _, status = scores(image, target, kind, covariance=covariance, **params)
    found = window_scores_backward(
        image,
        target,
        covariance,
        mask,
        status,
        gradient,
        (True, True),
        kind,
        window,
        border,
        center,
        0,
    )
    given = [t for t in found if t is not None]
    if hasattr(image, "astype"):
        return tuple(t.astype(image.dtype) for t in given)
    return tuple(t.to(image.dtype) for t in given)


def expected(image: Any, gradient: Any, target: Any = None, covariance: Any = None, **params: Any):
    found = reference.local_scores(image, gradient, target=target, covariance=covariance, **params)
    wanted = (True, target is not None, covariance is not None)
    return tuple(f for f, keep in zip(found, wanted, strict=True) if keep)


def arguments(
    shape: tuple[int, ...],
    kind: str,
    rng: np.random.Generator,
    targets: int = 1,
    *,
    condition: float = 10.0,
) -> tuple[np.ndarray, ...]:
    image = random_scene(shape, rng, condition=condition, offset=3.0, scale=1.0)
    if kind == "rx":
        return image, rng.standard_normal((*shape[:2], 1))
    maps = 1 if kind == "subspace_ace" else targets
    aims = 3.0 + rng.standard_normal((targets, shape[2]))
    return image, rng.standard_normal((*shape[:2], maps)), aims


def cases(rng: np.random.Generator) -> Iterator[Case]:
    for kind, shape, targets, params in [
        ("rx", (9, 12, 3), 0, {"window": (1, 5)}),
        ("rx", (8, 30, 2), 0, {"window": (3, 7), "border": "reflect"}),
        ("rx", (9, 9, 2), 0, {"window": (1, 5), "center": False, "mask": rng.random((9, 9)) < 0.7}),
        ("ace", (7, 9, 3), 2, {"window": (1, 5), "border": "valid"}),
        ("signed_ace", (7, 9, 2), 1, {"window": (3, 5)}),
        ("subspace_ace", (7, 9, 4), 2, {"window": (1, 5)}),
        ("filter", (7, 9, 2), 3, {"window": (1, 5), "mask": rng.random((7, 9)) < 0.8}),
        ("normalized_filter", (7, 9, 3), 1, {"window": (1, 5), "center": False}),
    ]:
        inner, outer = params["window"]
        terms = outer * outer - inner * inner
        given = arguments(shape, kind, rng, targets)
        yield Case(
            f"{kind} {shape} {sorted(params)}",
            given,
            {"kind": kind, **params},
            condition=10.0,
            terms=terms,
            broadcast_axis=None,
        )
    given = (*arguments((8, 9, 3), "ace", rng, 2), random_spd(3, 10.0, rng))
    params = {"window": (1, 5), "border": "reflect", "mask": rng.random((8, 9)) < 0.8}
    yield Case("fixed", given, {"kind": "ace", **params}, condition=10.0, terms=24)


def scale(case: Case, expected: tuple[np.ndarray, ...]) -> tuple[float, ...]:
    """Largest gradient over what may be small on the way to it: the square of the difference."""
    return tuple(10.0 * float(np.abs(e).max()) for e in expected)


SPEC = OpSpec(
    name="window_scores_backward",
    function=backward,
    reference=expected,
    cases=cases,
    scale=scale,
    layouts=("C", "sliced", "negative"),
)


def test_against_the_reference() -> None:
    assert run_op_checks(SPEC, thread_counts=(1, 3)).failures == 0


def few_cases(rng: np.random.Generator) -> Iterator[Case]:
    """For the emulator: each score, border and size of the squares of a thread."""
    for kind, shape, targets, params in [
        ("rx", (6, 7, 3), 0, {"window": (1, 5)}),
        ("rx", (5, 6, 2), 0, {"window": (3, 5), "border": "reflect"}),
        ("rx", (7, 7, 33), 0, {"window": (1, 7), "border": "valid"}),
        ("rx", (5, 5, 2), 0, {"window": (0, 3), "center": False, "mask": rng.random((5, 5)) < 0.8}),
        ("ace", (5, 6, 3), 2, {"window": (1, 5)}),
        ("signed_ace", (5, 5, 2), 1, {"window": (1, 3), "mask": rng.random((5, 5)) < 0.9}),
        ("subspace_ace", (5, 6, 4), 2, {"window": (1, 5)}),
        ("filter", (5, 5, 2), 2, {"window": (1, 5), "border": "reflect"}),
        ("normalized_filter", (5, 5, 3), 1, {"window": (1, 5), "center": False}),
    ]:
        inner, outer = params["window"]
        yield Case(
            f"{kind} {shape} {sorted(params)}",
            arguments(shape, kind, rng, targets),
            {"kind": kind, **params},
            condition=10.0,
            terms=outer * outer - inner * inner,
            broadcast_axis=None,
        )
    for kind in ("ace", "subspace_ace"):
        given = (*arguments((5, 6, 3), kind, rng, 2), random_spd(3, 10.0, rng))
        params = {"window": (1, 5), "border": "reflect", "mask": rng.random((5, 6)) < 0.8}
        yield Case(f"fixed {kind}", given, {"kind": kind, **params}, condition=10.0, terms=24)


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
@pytest.mark.parametrize(("layout", "count"), [("C", 1), ("negative", None)])
def test_kernels_of_devices_against_the_reference(layout: str, count: int | None) -> None:
    def some(rng: np.random.Generator) -> Iterator[Case]:
        return islice(few_cases(rng), count)

    emulated = replace(SPEC, cases=some, layouts=(layout,), emulated=True)
    found = run_op_checks(emulated, backends=["emu"], libraries=["numpy"], thread_counts=(1,))
    assert found.failures == 0


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
def test_matrices_beyond_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    image, gradient, target = arguments((11, 11, 80), "ace", np.random.default_rng(10))
    given = (image, gradient, target)
    found = []
    for kib in ("227", "36"):
        monkeypatch.setenv("MAHAL_SIMT_SHARED_KIB", kib)
        with backend("emu"):
            found.append(backward(*given, kind="ace", window=(1, 11), border="valid"))
    for near, far in zip(*found, strict=True):
        np.testing.assert_array_equal(near, far)
    ring = np.delete(image.reshape(121, 80), 60, axis=0)
    condition = float(np.linalg.cond(np.cov(ring.T)))
    want = expected(*given, kind="ace", window=(1, 11), border="valid")
    for got, right in zip(found[0], want, strict=True):
        allowed = tolerance(np.float64, condition=condition, terms=120) * np.abs(right).max()
        np.testing.assert_allclose(got, right, rtol=0, atol=allowed)


@pytest.mark.cuda
def test_on_a_device_against_the_reference() -> None:
    assert run_op_checks(replace(SPEC, emulated=True), backends=["cuda"]).failures == 0


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["rx", "filter"])
def test_broken_gradients_and_windows_on_devices(kind: str, fixed: bool) -> None:
    rng = np.random.default_rng(8)
    image, gradient, *target = arguments((9, 12, 2), kind, rng)
    image[1:6, 1:6] = image[3, 3]  # a constant window
    image[8, 0, 0] = np.nan
    mask = rng.random((9, 12)) < 0.9
    mask[8, 0] = True
    given = (target[0] if target else None, random_spd(2, 4.0, rng) if fixed else None)
    params: dict[str, Any] = {"kind": kind, "window": (1, 5), "mask": mask}
    for value in (gradient[4, 8, 0], np.nan):
        gradient[4, 8] = value
        want = backward(image, gradient, *given, **params)
        with backend("emu"):
            found = backward(image, gradient, *given, **params)
        for got, right in zip(found, want, strict=True):
            np.testing.assert_array_equal(np.isnan(got), np.isnan(right))
            assert np.isnan(value) == np.isnan(right).any()
            rest = ~np.isnan(right)
            largest = np.abs(right[rest]).max(initial=0)
            np.testing.assert_allclose(
                got[rest], right[rest], rtol=0, atol=tolerance(np.float64, terms=24) * 10 * largest
            )


@pytest.mark.skipif("emu" not in backends(), reason="no emulator in this build")
@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
def test_without_scores_the_gradients_on_devices_are_zero() -> None:
    rng = np.random.default_rng(9)
    image, gradient, target = arguments((4, 5, 2), "ace", rng)
    negative = np.diag([1.0, -1.0])
    lonely = np.zeros((4, 5), bool)
    lonely[2, 2] = True
    with backend("emu"):
        for covariance, mask in ((negative, None), (None, lonely)):
            found = backward(
                image, gradient, target, covariance, kind="ace", window=(1, 3), mask=mask
            )
            assert all((f == 0).all() for f in found)


@pytest.mark.parametrize("kind", KINDS)
def test_is_the_slope_of_the_scores(kind: str) -> None:
    # Richardson extrapolation of central differences, in one direction per argument.
    rng = np.random.default_rng(0)
    image, gradient, *target = arguments((7, 8, 3), kind, rng, 2)
    aims = target[0] if target else None
    covariance = random_spd(3, 4.0, rng)
    for fixed in (None, covariance):
        found = backward(image, gradient, aims, fixed, kind=kind, window=(1, 5))
        steps = [rng.standard_normal(np.shape(a)) for a in (image, aims, fixed) if a is not None]
        if fixed is not None:
            steps[-1] = (steps[-1] + steps[-1].T) / 2

        def value(h: float, fixed: Any = fixed, steps: Any = steps) -> float:
            given = [a for a in (image, aims, fixed) if a is not None]
            moved = [a + h * s for a, s in zip(given, steps, strict=True)]
            of_targets = moved[1] if aims is not None else None
            of_covariance = moved[-1] if fixed is not None else None
            map_, _ = scores(moved[0], of_targets, kind, window=(1, 5), covariance=of_covariance)
            return float((map_.reshape(gradient.shape) * gradient).sum())

        def slope(h: float, value: Any = value) -> float:
            return (value(h) - value(-h)) / (2 * h)

        extrapolated = (4 * slope(5e-5) - slope(1e-4)) / 3
        total = sum(float((f * s).sum()) for f, s in zip(found, steps, strict=True))
        # Rounding over the step, and the fourth power of the step.
        size = sum(float(np.abs(f * s).sum()) for f, s in zip(found, steps, strict=True))
        assert abs(total - extrapolated) < 1e-7 * max(size, 1.0)


def test_an_affine_map_of_the_data_turns_the_gradient() -> None:
    # score(A x + b) = score(x), so the gradients differ by A^T.
    rng = np.random.default_rng(1)
    image, gradient, target = arguments((9, 9, 3), "ace", rng, 1)
    a = rng.standard_normal((3, 3)) + 2 * np.eye(3)
    b = rng.standard_normal(3)
    found = backward(image, gradient, target, kind="ace", window=(1, 5))
    moved = backward(image @ a.T + b, gradient, target @ a.T + b, kind="ace", window=(1, 5))
    allowed = tolerance(np.float64, condition=np.linalg.cond(a) ** 2, terms=24)
    for got, want in zip(moved, found, strict=True):
        np.testing.assert_allclose(got @ a, want, rtol=0, atol=10 * allowed * np.abs(want).max())


@pytest.mark.filterwarnings("ignore::mahal.SingularWarning")
@pytest.mark.parametrize("kind", ["rx", "ace"])
def test_windows_without_a_score_pass_nothing(kind: str) -> None:
    rng = np.random.default_rng(2)
    image, gradient, *target = arguments((14, 15, 2), kind, rng)
    image[2:9, 2:9] = image[5, 5]  # constant windows inside
    image[11, 12, 0] = np.nan
    mask = rng.random((14, 15)) < 0.9
    mask[11, 12] = True
    _, status = scores(image, *(target or [None]), kind, window=(1, 5), mask=mask)
    assert {0, 2, 3, 4} <= set(np.unique(status))
    gradient[status != 0] = np.nan
    found = backward(image, gradient, *target, kind=kind, window=(1, 5), mask=mask)
    assert all(np.isfinite(f).all() for f in found)
    gradient[status != 0] = 0
    want = expected(image, gradient, *target, kind=kind, window=(1, 5), mask=mask)
    for got, right in zip(found, want, strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=1e-11 * np.abs(right).max())


def test_a_broken_gradient_stays_in_its_window() -> None:
    image, gradient = arguments((30, 50, 2), "rx", np.random.default_rng(3))
    gradient[15, 25] = np.nan
    (found,) = backward(image, gradient, kind="rx", window=(1, 5))
    held = np.zeros((30, 50), bool)
    held[13:18, 23:28] = True
    # The pixel is not in its own window, but its own score moves with it.
    np.testing.assert_array_equal(np.isnan(found).all(axis=-1), held)
    assert np.isfinite(found[~held]).all()


@pytest.mark.parametrize("kind", ["rx", "ace"])
def test_a_glaring_pixel_costs_the_others_no_digits(kind: str) -> None:
    # Sums that slide past it lose their digits; such windows are solved again on their own.
    rng = np.random.default_rng(4)
    image, gradient, *target = arguments((16, 17, 2), kind, rng)
    image[3, 4] *= 1e5
    far = np.ones((16, 17), bool)
    far[:9, :10] = False
    gradient[~far] = 0
    found = backward(image, gradient, *target, kind=kind, window=(1, 5))
    want = expected(image, gradient, *target, kind=kind, window=(1, 5))
    np.testing.assert_allclose(found[0], want[0], rtol=0, atol=1e-6 * np.abs(want[0]).max())


def test_a_pixel_on_its_mean_has_no_gradient() -> None:
    image = np.zeros((5, 5, 2))
    image[::2, :, 0] = 1.0
    image[:, ::2, 1] = 1.0
    rng = np.random.default_rng(5)
    image += 0.1 * rng.standard_normal(image.shape)
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    image[2, 2] = image[ring].mean(axis=0)
    gradient = np.zeros((5, 5, 1))
    gradient[2, 2] = 1.0
    target = np.array([[3.0, 4.0]])
    for kind in ("ace", "signed_ace", "subspace_ace"):
        found = backward(image, gradient, target, kind=kind, window=(1, 5), border="valid")
        assert all(np.isfinite(f).all() for f in found)


def test_wrong_arguments() -> None:
    image, gradient = arguments((8, 9, 2), "rx", np.random.default_rng(6))
    with pytest.raises(
        ValueError, match=r"window_scores_backward: score_gradient: must have shape"
    ):
        backward(image, gradient[:-1], kind="rx", window=(1, 5))
    with pytest.raises(TypeError, match=r"score_gradient: must have the dtype of image"):
        backward(image, gradient.astype(np.float32), kind="rx", window=(1, 5))

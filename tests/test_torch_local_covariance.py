"""local_covariance inside torch: gradients, tangents, transforms and graphs."""

from __future__ import annotations

from typing import Any

import mahal
import numpy as np
import pytest
from mahal.testing import random_scene, tolerance
from mahal.testing import reference_window_gradients as reference

torch = pytest.importorskip("torch")

# torch compiles some derivatives of its own functions with it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

DTYPES = [torch.float64, torch.complex128]
OPTIONS: list[dict[str, Any]] = [
    {"window": (1, 3)},
    {"window": [3, 1], "ddof": 0, "border": "reflect"},
    {"window": 3, "center": False},
]


def scene(shape: tuple[int, ...], dtype: Any = torch.float64, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    image = random_scene(shape, rng, offset=1.0, scale=1.0, circular=dtype.is_complex)
    return torch.from_numpy(image).to(dtype)


def plain(image: Any, window: Any = 3, mask: Any = None) -> Any:
    """The same for one window of a border "shift", as torch composes it."""
    inner, outer = window if isinstance(window, tuple) else (0, window)
    rows, cols = image.shape[-3:-1]

    def held(n: int, side: int) -> Any:
        start = (torch.arange(n) - side // 2).clamp(0, n - side)
        position = torch.arange(n)
        return (position >= start[:, None]) & (position < start[:, None] + side)

    weight = (held(rows, outer)[:, None, :, None] & held(cols, outer)[None, :, None, :]).double()
    if inner:
        guard = held(rows, inner)[:, None, :, None] & held(cols, inner)[None, :, None, :]
        weight = weight - guard.double()
    if mask is not None:
        weight = weight * mask
    weight = weight.to(image.dtype)
    n = weight.sum((-2, -1))[..., None].real
    mean = torch.einsum("rcuv,...uvb->...rcb", weight, image) / n
    apart = image[..., None, None, :, :, :] - mean[..., None, None, :]
    products = torch.einsum("rcuv,...rcuvi,...rcuvj->...rcij", weight, apart, apart.conj())
    return mean, products / (n[..., None] - 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options: dict[str, Any], dtype: Any) -> None:
    image = scene((3, 4, 2), dtype).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: mahal.local_covariance(x, **options), image, check_forward_ad=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
def test_gradgradcheck(options: dict[str, Any], dtype: Any) -> None:
    image = scene((3, 3, 2), dtype).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: mahal.local_covariance(x, **options),
        image,
        check_fwd_over_rev=True,
        fast_mode=True,
    )


def test_third_derivative() -> None:
    image = scene((3, 3, 2)).requires_grad_()

    def slope(x: Any) -> Any:
        value = mahal.local_covariance(x, 3)[1].pow(2).sum()
        (first,) = torch.autograd.grad(value, x, create_graph=True)
        return first.pow(3).sum()

    assert torch.autograd.gradgradcheck(slope, image)


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES])
def test_values_have_the_bits_of_arrays(dtype: Any) -> None:
    image = scene((6, 7, 3), dtype)
    expected = mahal.local_covariance(image.numpy(), [5, (1, 3)])
    for found, want in zip(
        mahal.local_covariance(image.requires_grad_(), [5, (1, 3)]), expected, strict=True
    ):
        assert found.requires_grad
        np.testing.assert_array_equal(found.detach().numpy(), want)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded", "batch"])
def test_layouts(layout: str) -> None:
    image = {
        "contiguous": scene((6, 7, 3)),
        "transposed": scene((3, 7, 6)).permute(2, 1, 0),
        "expanded": scene((6, 7, 1)).expand(6, 7, 3),
        "batch": scene((2, 2, 6, 7, 3)),
    }[layout]
    found = image.clone().requires_grad_() if layout == "contiguous" else image.requires_grad_()
    leaf = found if found.is_leaf else image

    def loss(outputs: Any) -> Any:
        return sum(t.abs().pow(3).sum() for t in outputs)

    (grad,) = torch.autograd.grad(loss(mahal.local_covariance(found, 3)), leaf)
    (want,) = torch.autograd.grad(loss(plain(found)), leaf)
    torch.testing.assert_close(grad, want)


def test_masks_and_gaps() -> None:
    rng = np.random.default_rng(1)
    image = scene((9, 10, 2), seed=1)
    image[4, 5, 0] = float("nan")
    mask = torch.from_numpy(rng.random((9, 10)) < 0.8)
    mask[4, 5] = True
    x = image.clone().requires_grad_()
    outputs = mahal.local_covariance(x, (1, 5), mask=mask)
    good = torch.isfinite(outputs[1]).all(-1).all(-1)
    weights = [torch.randn(t.shape, dtype=t.dtype) for t in outputs]
    value = sum((t * w)[good].sum() for t, w in zip(outputs, weights, strict=True))
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    want = reference.local_covariance(
        image.numpy(),
        *(torch.where(good.reshape(9, 10, *[1] * (w.ndim - 2)), w, 0 * w) for w in weights),
        window=(1, 5),
        mask=mask.numpy(),
    )
    np.testing.assert_allclose(
        grad.detach(), want, rtol=0, atol=tolerance(np.float64, terms=24) * 20
    )
    assert (grad[~mask] == 0).all()
    (second,) = torch.autograd.grad(grad.pow(2).sum(), x)
    assert torch.isfinite(second).all()


def loss(image: Any) -> Any:
    return sum(t.abs().pow(3).sum() for t in mahal.local_covariance(image, 3))


def plain_loss(image: Any) -> Any:
    return sum(t.abs().pow(3).sum() for t in plain(image))


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: Any) -> None:
    from mahal._torch.local_covariance import local_covariance, local_covariance_backward

    image = scene((4, 5, 2), dtype)
    mask = torch.rand(4, 5) < 0.9
    options = {"windows": [0, 3, 1, 3]}
    outputs = local_covariance.raw(image, mask, **options)
    torch.library.opcheck(local_covariance.raw, (image, mask), options)
    torch.library.opcheck(local_covariance.twin, (image.requires_grad_(), None), options)
    torch.library.opcheck(local_covariance_backward.raw, (image.detach(), mask, *outputs), options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compile(dtype: Any) -> None:
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    image = scene((4, 5, 2), dtype).requires_grad_()
    compiled(image).backward()
    torch.testing.assert_close(image.grad, torch.func.grad(plain_loss)(image.detach()))


@pytest.mark.parametrize("form", ["matrix", "packed"])
def test_multiscale(form: str) -> None:
    def features(x: Any) -> Any:
        return mahal.multiscale_covariance(x, [3, (1, 3)], form=form)

    image = scene((4, 4, 2)).requires_grad_()
    assert torch.autograd.gradcheck(features, image)
    compiled = torch.compile(features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), features(image))


@pytest.mark.parametrize("dtype", DTYPES)
def test_func(dtype: Any) -> None:
    images = scene((3, 4, 5, 2), dtype)
    torch.testing.assert_close(
        torch.func.grad(loss)(images[0]), torch.func.grad(plain_loss)(images[0])
    )
    torch.testing.assert_close(
        torch.vmap(torch.func.grad(loss))(images), torch.vmap(torch.func.grad(plain_loss))(images)
    )
    tangents = torch.randn_like(images)
    torch.testing.assert_close(
        torch.func.jvp(lambda x: mahal.local_covariance(x, 3), (images,), (tangents,)),
        torch.func.jvp(plain, (images,), (tangents,)),
    )
    if not dtype.is_complex:
        small = images[0, :3, :3]
        for transform in (torch.func.jacrev, torch.func.jacfwd):
            torch.testing.assert_close(
                transform(lambda x: mahal.local_covariance(x, 3))(small), transform(plain)(small)
            )
        torch.testing.assert_close(
            torch.func.hessian(loss)(small), torch.func.hessian(plain_loss)(small)
        )


def test_vmap_of_masks() -> None:
    images = scene((3, 5, 6, 2))
    masks = torch.rand(3, 5, 6) < 0.9

    def covariance(x: Any, mask: Any) -> Any:
        return mahal.local_covariance(x, 3, mask=mask)[1]

    for x, mask, dims in (
        (images, masks, (0, 0)),
        (images[0], masks, (None, 0)),
        (images, masks[0], (0, None)),
    ):
        found = torch.vmap(covariance, dims)(x, mask)
        want = torch.stack(
            [
                covariance(x if dims[0] is None else x[k], mask if dims[1] is None else mask[k])
                for k in range(3)
            ]
        )
        assert torch.equal(found, want)


def test_half_precision_and_autocast() -> None:
    image = scene((6, 7, 2)).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, covariance = mahal.local_covariance(image, 3)
        (mean.pow(2).sum() + covariance.pow(2).sum()).backward()
    assert covariance.dtype == torch.float32
    wide = image.detach().float().requires_grad_()
    mean, covariance = mahal.local_covariance(wide, 3)
    (mean.pow(2).sum() + covariance.pow(2).sum()).backward()
    assert image.grad.dtype == torch.bfloat16
    torch.testing.assert_close(image.grad, wide.grad.to(torch.bfloat16))


def test_an_empty_batch() -> None:
    image = torch.zeros(0, 5, 6, 2, requires_grad=True)
    mahal.local_covariance(image, 3)[1].sum().backward()
    assert image.grad.shape == image.shape


def test_what_has_no_gradient() -> None:
    image = scene((5, 6, 2)).requires_grad_()
    for options in ({"estimator": "oas"}, {"return_status": True}):
        with pytest.raises(ValueError, match=r"local_covariance: image: must not require grad"):
            mahal.local_covariance(image, 3, **options)
    out = (torch.empty(5, 6, 2).double(), torch.empty(5, 6, 2, 2).double())
    with pytest.raises(ValueError, match=r"local_covariance: out: must be None"):
        mahal.local_covariance(image, 3, out=out)

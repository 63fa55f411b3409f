"""Gradients inside the code that torch itself compiles."""

from __future__ import annotations

import mahal
import pytest

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_whitening_and_covariances_in_one_graph():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(12, 10, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(x):
        mean, covariance = mahal.mean_covariance(x)
        white = mahal.whiten(x, mean, covariance)
        _, maps = mahal.local_covariance(white, 5)
        return mahal.cholesky(maps).square().mean() + mahal.rx(x).mean()

    expected = torch.autograd.grad(loss(image), image)[0]
    compiled = torch.compile(loss, fullgraph=True, backend="inductor")
    found = torch.autograd.grad(compiled(image), image)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)

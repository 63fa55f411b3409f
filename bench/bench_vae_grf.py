"""What the field costs in training: steps at the size of the paper, beside the plain autoencoder.

    python bench/bench_vae_grf.py

One step is likelihood, divergence, gradients and Adam. The plain autoencoder has the divergence as
torch composes it from elementwise operations; the same network with mahal's kernel and a field so
short that it is white is another row. The last rows are what the field itself adds: the divergence
alone, and the likelihood of the images that moves range and variance. Times are of the processor,
not of the clock, so that other work on the machine weighs less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _harness import Row, finish, parser, set_threads
from mahal.models import VAEGRF
from mahal.models.vae_grf import STRIDE, _GRFLearner, _Tiles
from torch import nn

PLAIN = "plain autoencoder"


class Elementwise(nn.Module):
    """Divergence from independent standard normals, as usually written."""

    learn = "fixed"

    def forward(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        terms = mean**2 + torch.exp(log_variance) - log_variance - 1
        return 0.5 * terms.sum((2, 3))


def models(small: bool) -> dict[str, VAEGRF]:
    """The paper's network with each prior."""
    size: dict[str, Any] = {"width": 8, "latent": 8, "crop": 64} if small else {}
    field = {"range": 1.67, "variance": 0.004}
    return {
        PLAIN: VAEGRF.paper(prior="normal", **size),
        "white field": VAEGRF.paper(prior="normal", **size),
        "VAE-GRF, prior fitted before": VAEGRF.paper(learn="fixed", **field, **size),
        "VAE-GRF, prior by gradient": VAEGRF.paper(learn="gradient", **field, **size),
    }


def stepper(model: VAEGRF, plain: bool, images: torch.Tensor) -> Callable[[], None]:
    """One step of training, without Lightning around it."""
    networks = model._networks(3, model._prior())
    if plain:
        networks.prior = Elementwise()
    learner = _GRFLearner(_Tiles(list(images), model.crop), None, networks, model)
    optimizer = learner.configure_optimizers()
    learner.train()

    def step() -> None:
        optimizer.zero_grad()
        learner.loss(images).backward()
        optimizer.step()

    return step


def divergence(prior: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    """The prior's share of a step."""
    draws = torch.Generator().manual_seed(1)
    mean, log_variance = (
        (0.1 * torch.randn(shape, generator=draws)).requires_grad_() for _ in range(2)
    )

    def step() -> None:
        torch.autograd.grad(prior(mean, log_variance).sum(), (mean, log_variance))

    return step


def likelihood(model: VAEGRF, images: torch.Tensor) -> Callable[[], None]:
    """What moves range and variance."""
    prior = model._prior()

    def step() -> None:
        torch.autograd.grad(prior.log_likelihood(images).sum(), list(prior.parameters()))

    return step


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(threads=[1])
    args = options.parse_args()
    batch = 2 if args.quick else 16
    found = models(args.quick)
    crop, latent = found[PLAIN].crop, found[PLAIN].latent
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, crop, crop, generator=draws)
    code = (batch, latent, crop // STRIDE, crop // STRIDE)
    gradient = found["VAE-GRF, prior by gradient"]
    cases = {
        f"step {batch}x3x{crop}x{crop}": {
            name: stepper(model, name == PLAIN, images) for name, model in found.items()
        },
        "divergence alone": {
            PLAIN: divergence(Elementwise(), code),
            "white field": divergence(found["white field"]._prior(), code),
            "VAE-GRF": divergence(gradient._prior(), code),
        },
        "likelihood alone": {"VAE-GRF": likelihood(gradient, images)},
    }
    rows: list[Row] = []
    for threads in args.threads:
        set_threads(threads)
        base = 0.0
        for case, steps in cases.items():
            times: dict[str, list[float]] = {name: [] for name in steps}
            for turn in range(args.repeats + 1):
                for name, step in steps.items():
                    begin = time.process_time()
                    step()
                    # The first turn allocates.
                    if turn:
                        times[name].append(time.process_time() - begin)
            base = base or statistics.median(times[PLAIN])
            for name, seen in times.items():
                middle = statistics.median(seen)
                row = Row(case, name, threads, middle, middle)
                row.facts["of a plain step"] = f"{100 * middle / base:.2f} %"
                rows.append(row)
    finish("vae_grf", rows, {})


if __name__ == "__main__":
    main()

"""Gaussian random fields: mahal, the published form and the best plain torch, in one process.

    python bench/bench_grf.py

The published form is what the code of Gangloff et al. (2023) computes, written here: complex
transforms throughout, gradients by autograd. The best plain torch has real transforms, Parseval's
identity and gradients in closed form. Both get the distances and the powers of two for nothing.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mahal
import numpy as np
import torch
from _harness import Candidate, Row, add_ratios, compare, finish, parser

PRIOR: dict[str, Any] = {"kernel": "wrapped", "convention": "paper"}


def distances(rows: int, cols: int) -> torch.Tensor:
    """From pixel (0, 0) on the torus."""
    i, j = np.arange(rows), np.arange(cols)
    near = np.minimum(i, rows - i)[:, None], np.minimum(j, cols - j)
    return torch.from_numpy(np.hypot(*near))


def base_of(distance: torch.Tensor, length: Any, variance: Any) -> torch.Tensor:
    """First column of the covariance, Matern 3/2."""
    a = distance / length
    return variance * (1 + a) * torch.exp(-a)


class Published:
    """Complex transforms of everything, one after the other, under autograd."""

    def __init__(self, rows: int, cols: int, dtype: torch.dtype) -> None:
        self.distance = distances(rows, cols).to(dtype)

    def _parts(self, length: Any, variance: Any) -> tuple[torch.Tensor, torch.Tensor]:
        spectrum = torch.fft.fft2(base_of(self.distance, length, variance)).real
        inverse = torch.fft.ifft2(1 / spectrum).real
        return torch.log(spectrum).sum(), inverse

    @staticmethod
    def _product(inverse: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft2(torch.fft.fft2(inverse) * torch.fft.fft2(field)).real

    def kl(self, mean: torch.Tensor, logvar: torch.Tensor, length: Any, variance: Any) -> Any:
        log_determinant, inverse = self._parts(length, variance)
        quad = (mean * self._product(inverse, mean)).sum((-2, -1))
        trace = (inverse[0, 0] * torch.exp(logvar)).sum((-2, -1))
        rest = logvar.sum((-2, -1)) + self.distance.numel()
        return (log_determinant + quad + trace - rest) / 2

    def log_likelihood(self, image: torch.Tensor, length: Any, variance: Any) -> Any:
        log_determinant, inverse = self._parts(length, variance)
        z = image - image.mean((-2, -1), keepdim=True)
        quad = (z * self._product(inverse, z)).sum((-2, -1))
        return -(self.distance.numel() * math.log(2 * math.pi) + log_determinant + quad) / 2


class Plain:
    """Real transforms and closed forms, with the parts of the spectrum in float64."""

    def __init__(self, rows: int, cols: int) -> None:
        self.distance = distances(rows, cols)
        self.shape = (rows, cols)
        twice = torch.full((cols // 2 + 1,), 2.0, dtype=torch.float64)
        twice[0] = 1.0
        if cols % 2 == 0:
            twice[-1] = 1.0
        self.twice = twice

    def spectra(self, length: float, variance: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues and their derivative with respect to the log range."""
        a = self.distance / length
        decay = variance * torch.exp(-a)
        values = torch.stack([(1 + a) * decay, a * a * decay])
        found = torch.fft.rfft2(values).real
        return found[0], found[1]


class PlainKl(torch.autograd.Function):
    """The divergence with its gradients, from one transform each way."""

    @staticmethod
    def forward(ctx: Any, mean: Any, logvar: Any, length: Any, variance: Any, plain: Plain) -> Any:
        eigenvalues, slopes = plain.spectra(float(length), float(variance))
        count, pixels = plain.twice, plain.distance.numel()
        inverse = 1 / eigenvalues
        inner = float((count * inverse).sum() / pixels)
        transform = torch.fft.rfft2(mean)
        scaled = transform * inverse.to(mean.dtype)
        gradient = torch.fft.irfft2(scaled, plain.shape)
        exponential = logvar.exp()
        quad, total = (mean * gradient).sum((-2, -1)), exponential.sum((-2, -1))
        steep = (count * slopes).to(mean.dtype) / pixels
        steep = (torch.view_as_real(scaled).square().sum(-1) * steep).sum((-2, -1))
        ctx.save_for_backward(gradient, exponential, quad, total, steep)
        ctx.facts = (inner, eigenvalues, slopes, count, pixels, float(length), float(variance))
        rest = float((count * eigenvalues.log()).sum()) - pixels
        return (quad + inner * total - logvar.sum((-2, -1)) + rest) / 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        gradient, exponential, quad, total, steep = ctx.saved_tensors
        inner, eigenvalues, slopes, count, pixels, length, variance = ctx.facts
        factor = grad[..., None, None]
        spread = float((count * slopes / eigenvalues).sum())
        inner_slope = float((count * slopes / eigenvalues**2).sum() / pixels)
        to_length = (grad * (spread - steep - inner_slope * total)).sum() / (2 * length)
        to_variance = (grad * (pixels - quad - inner * total)).sum() / (2 * variance)
        return (
            gradient * factor,
            (inner * exponential - 1) * (factor / 2),
            to_length,
            to_variance,
            None,
        )


class PlainLikelihood(torch.autograd.Function):
    """The log-likelihood with its gradients, alike."""

    @staticmethod
    def forward(ctx: Any, image: Any, length: Any, variance: Any, plain: Plain) -> Any:
        eigenvalues, slopes = plain.spectra(float(length), float(variance))
        count, pixels = plain.twice, plain.distance.numel()
        inverse = 1 / eigenvalues
        z = image - image.mean((-2, -1), keepdim=True)
        transform = torch.fft.rfft2(z)
        scaled = transform * inverse.to(image.dtype)
        power = torch.view_as_real(scaled).square().sum(-1)
        weight = (count * eigenvalues).to(image.dtype) / pixels
        steep = (count * slopes).to(image.dtype) / pixels
        quad, steep = (power * weight).sum((-2, -1)), (power * steep).sum((-2, -1))
        gradient = torch.fft.irfft2(scaled, plain.shape) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(gradient, quad, steep)
        spread = float((count * slopes / eigenvalues).sum())
        ctx.facts = (spread, pixels, float(length), float(variance))
        constant = pixels * math.log(2 * math.pi) + float((count * eigenvalues.log()).sum())
        return -(quad + constant) / 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        gradient, quad, steep = ctx.saved_tensors
        spread, pixels, length, variance = ctx.facts
        to_length = -(grad * (spread - steep)).sum() / (2 * length)
        to_variance = -(grad * (pixels - quad)).sum() / (2 * variance)
        to_image = None if gradient is None else gradient * -grad[..., None, None]
        return to_image, to_length, to_variance, None


Step = Callable[[], tuple[Any, ...]]


def steps(
    shape: tuple[int, ...], length: float, *, kl: bool, image: bool = True
) -> dict[str, Step]:
    """One forward and backward pass of everyone, on the same tensors."""
    torch.manual_seed(0)
    rows, cols = shape[-2:]
    field = torch.randn(shape, requires_grad=image)
    logvar = (0.3 * torch.randn(shape) - 1).requires_grad_() if kl else None
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (length, 1.0)]
    inputs = [t for t in (field, logvar, *parameters) if t is not None and t.requires_grad]
    # The transforms of the published form are of the dtype of its parameters.
    singles = [p.detach().float().requires_grad_() for p in parameters]
    published, plain = Published(rows, cols, torch.float32), Plain(rows, cols)

    def ours() -> Any:
        options = {"range": parameters[0], "variance": parameters[1], **PRIOR}
        if logvar is None:
            return mahal.grf_log_likelihood(field, reduction="sum", **options)
        return mahal.grf_kl(field, logvar, reduction="sum", **options)

    def theirs() -> Any:
        if logvar is None:
            return published.log_likelihood(field, *singles).sum()
        return published.kl(field, logvar, *singles).sum()

    def best() -> Any:
        if logvar is None:
            return PlainLikelihood.apply(field, *parameters, plain).sum()
        return PlainKl.apply(field, logvar, *parameters, plain).sum()

    def step(value: Callable[[], Any], leaves: list[Any]) -> Step:
        return lambda: torch.autograd.grad(0.5 * value(), leaves)

    others = [*inputs[:-2], *singles]
    return {
        "mahal": step(ours, inputs),
        "published form": step(theirs, others),
        "plain torch": step(best, inputs),
    }


CASES: dict[str, tuple[tuple[int, ...], float, dict[str, bool]]] = {
    "KL 16x256x32x32": ((16, 256, 32, 32), 1.0, {"kl": True}),
    "likelihood 16x3x256x256": ((16, 3, 256, 256), 4.0, {"kl": False}),
    "likelihood 16x3x256x256, parameters only": (
        (16, 3, 256, 256), 4.0, {"kl": False, "image": False},
    ),
}  # fmt: skip


def peak_memory(case: str, name: str) -> float:
    """Bytes by which one pass raises the peak of a fresh process over its inputs."""
    command = [sys.executable, __file__, "--peak", case, name]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def resident(line: str) -> float:
    """A line of the process's status in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * float(status.split(f"{line}:")[1].split()[0])


def report_peak(case: str, name: str) -> None:
    """Print it."""
    torch.set_num_threads(1)
    mahal._core.set_default_threads(1)
    shape, length, kind = CASES[case]
    # A small pass loads the code first.
    steps((1, 1, *shape[-2:]), length, **kind)[name]()
    step = steps(shape, length, **kind)[name]
    # 5 resets the peak (proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    kept = step()
    print(resident("VmHWM") - before)
    del kept


def largest_error(found: tuple[Any, ...], expected: tuple[Any, ...]) -> float:
    """Over all gradients, relative to the largest element of each."""
    return max(
        float((f.double() - e.double()).abs().max() / e.double().abs().max())
        for f, e in zip(found, expected, strict=True)
    )


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        report_peak(*sys.argv[2:])
        return
    options = parser(__doc__)
    options.set_defaults(threads=[1])
    args = options.parse_args()
    rows: list[Row] = []
    for case, (shape, length, kind) in CASES.items():
        used = (2, 2, *shape[-2:]) if args.quick else shape
        for threads in args.threads:
            everyone = steps(used, length, **kind)
            expected = everyone["plain torch"]()
            candidates = [Candidate(name, step) for name, step in everyone.items()]
            some = compare(case, candidates, threads=threads, repeats=args.repeats)
            add_ratios(some)
            for row in some:
                row.facts["difference"] = largest_error(everyone[row.name](), expected)
                if not args.quick and threads == 1:
                    row.facts["peak MB"] = peak_memory(case, row.name) / 1e6
            rows += some
    finish("grf", rows, {})


if __name__ == "__main__":
    main()

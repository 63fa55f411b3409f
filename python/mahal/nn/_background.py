"""Mean and covariance of a background: learned, running or fixed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import distributed, nn

from mahal.nn._checks import (
    as_count,
    as_number,
    as_share,
    check_device,
    check_features,
    working_dtype,
)
from mahal.ops.whiten import whiten

Tensor = Any

STRUCTURES = ("full", "diagonal", "isotropic")
ESTIMATES = ("running", "fixed", "learned")


class Moments(NamedTuple):
    """Number of samples, their mean and their scatter about it, as the structure has it."""

    count: Tensor
    mean: Tensor
    scatter: Tensor


def check_choice(module: str, argument: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of the choices."""
    if value not in choices:
        names = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{module}: {argument}: must be {names}, got {value!r}")
    return str(value)


def as_rows(x: Tensor) -> Tensor:
    """(batch, features, ...) as (samples, features)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def several_processes(synchronize: bool) -> bool:
    """Whether there are sums to take over processes."""
    return synchronize and distributed.is_available() and distributed.is_initialized()


def _summed(tensor: Tensor, synchronize: bool) -> Tensor:
    """The sum over all processes, with gradients."""
    if not several_processes(synchronize):
        return tensor
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(tensor)


def moments(rows: Tensor, structure: str, synchronize: bool) -> Moments:
    """Of the samples of all processes. Scatter is about the common mean: nothing cancels."""
    count = _summed(rows.new_full((), rows.shape[0]), synchronize)
    # Sums about a sample of our own would differ between processes; a mean of means does as well.
    mean = _summed(rows.sum(0), synchronize) / count
    mean = mean + _summed((rows - mean).sum(0), synchronize) / count
    centred = rows - mean
    if structure == "full":
        scatter = centred.mT @ centred
    else:
        scatter = centred.square().sum(0)
        scatter = scatter.mean() if structure == "isotropic" else scatter
    return Moments(count, mean, _summed(scatter, synchronize))


class Statistics(nn.Module):
    """A module whose buffers keep at least float32, whatever its parameters become."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            old = before[name]
            if buffer is None or old is None or not buffer.is_floating_point():
                continue
            if buffer.element_size() < min(old.element_size(), 4):
                self._buffers[name] = old.to(buffer.device)
        return self


class Background(Statistics):
    """Mean and covariance of features, from data or as parameters.

    Parameters
    ----------
    num_features : int
        Size of axis 1.
    estimate : {"running", "fixed", "learned"}
        ``running``: exponential averages, moved by `update`. ``fixed``: those of all samples given
        to `fit`; `update` does nothing. ``learned``: parameters, at first mean 0 and covariance I.
    structure : {"full", "diagonal", "isotropic"}
        Of the covariance.
    momentum : float or None
        Of running averages: the weight of a new batch. None: all samples so far weigh the same.
    loading : float
        Share of the mean variance that is added to the diagonal of what was estimated.
    synchronize : bool
        Sum over all processes where torch.distributed is initialised.

    Attributes
    ----------
    mean : (features,) tensor
    covariance : (features, features), (features,) or () tensor
        By structure, without loading; the divisor is the number of samples less one. Buffers, or
        with "learned" no attributes: call the module.
    samples : int64 tensor
        Number of samples behind them.

    Notes
    -----
    A learned covariance is ``L L^T`` with the diagonal of L in logarithms, so that it stays
    positive definite.
    """

    mean: Tensor
    covariance: Tensor
    samples: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        estimate: str = "running",
        structure: str = "full",
        momentum: float | None = 0.1,
        loading: float = 1e-5,
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.num_features = as_count(name, "num_features", num_features)
        self.estimate = check_choice(name, "estimate", estimate, ESTIMATES)
        self.structure = check_choice(name, "structure", structure, STRUCTURES)
        self.momentum = None if momentum is None else as_share(name, "momentum", momentum)
        self.loading = as_number(name, "loading", loading)
        self.synchronize = bool(synchronize)
        size = self.num_features
        shape = {"full": (size, size), "diagonal": (size,), "isotropic": ()}[self.structure]
        if self.estimate == "learned":
            self.location = nn.Parameter(torch.zeros(size))
            self.log_scale = nn.Parameter(torch.zeros(shape[-1:]))
            if self.structure == "full":
                self.lower = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("mean", torch.zeros(size))
            start = torch.eye(size) if self.structure == "full" else torch.ones(shape)
            self.register_buffer("covariance", start)
            self.register_buffer("samples", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"{self.num_features}, estimate={self.estimate!r}, structure={self.structure!r}"

    def _moments(self, x: Tensor) -> Moments:
        name = type(self).__name__
        check_features(name, "x", x, self.num_features)
        check_device(name, "x", x, self.mean)
        self._check_count(x)
        rows = as_rows(x.detach()).to(torch.promote_types(working_dtype(x), self.mean.dtype))
        return moments(rows, self.structure, self.synchronize)

    def _check_count(self, x: Tensor) -> None:
        # What other processes have would take a wait for the device.
        count = x.numel() // self.num_features
        if count < 2 and not several_processes(self.synchronize):
            raise ValueError(
                f"{type(self).__name__}: x: must have at least 2 samples for a covariance, got "
                f"{count} in a tensor of shape {tuple(x.shape)}"
            )

    @torch.no_grad()
    def fit(self, x: Tensor) -> Background:
        """Take more samples in, all with the same weight; the order of calls does not matter.

        Parameters
        ----------
        x : (batch, features, ...) tensor

        Returns
        -------
        Background
            Itself.

        Raises
        ------
        ValueError
            A learned background, fewer than 2 samples, wrong shapes or devices.
        """
        if self.estimate == "learned":
            raise ValueError(
                f"{type(self).__name__}: fit: is for estimated backgrounds, "
                "got one with estimate='learned'"
            )
        found = self._moments(x)
        before = self.samples.to(found.mean.dtype)
        total = before + found.count
        # Chan, Golub and LeVeque (1983): scatters about two means.
        shift = found.mean - self.mean
        apart = torch.outer(shift, shift)
        if self.structure != "full":
            apart = apart.diagonal()
            apart = apart.mean() if self.structure == "isotropic" else apart
        scatter = self.covariance * (before - 1).clamp(min=0) + found.scatter
        scatter = scatter + apart * (before * found.count / total)
        self.covariance.copy_(scatter / (total - 1))
        self.mean.add_((shift * (found.count / total)).to(self.mean.dtype))
        self.samples.add_(found.count.to(torch.int64))
        return self

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move running averages towards a batch; nothing in other modes.

        Parameters
        ----------
        x : (batch, features, ...) tensor
        """
        if self.estimate != "running":
            return
        if self.momentum is None:
            self.fit(x)
            return
        self._average(self._moments(x))

    def of_batch(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and loaded covariance of a batch, with gradients; the running averages follow.

        Parameters
        ----------
        x : (batch, features, ...) tensor

        Raises
        ------
        ValueError
            Fewer than 2 samples, where those of one process count.
        """
        self._check_count(x)
        rows = as_rows(x).to(torch.promote_types(working_dtype(x), self.mean.dtype))
        found = moments(rows, self.structure, self.synchronize)
        if self.momentum is None:
            self.fit(x)
        else:
            self._average(found)
        return found.mean, self.loaded(found.scatter / (found.count - 1))

    @torch.no_grad()
    def _average(self, found: Moments) -> None:
        """Move running averages by the momentum; the first batch takes their place."""
        assert self.momentum is not None
        weight = torch.where(self.samples == 0, 1.0, self.momentum).to(self.mean.dtype)
        self.mean.lerp_(found.mean.to(self.mean.dtype), weight)
        covariance = found.scatter / (found.count - 1)
        self.covariance.lerp_(covariance.to(self.covariance.dtype), weight)
        self.samples.add_(found.count.to(torch.int64))

    @torch.no_grad()
    def reset(self) -> None:
        """Forget all samples, or go back to mean 0 and covariance I."""
        if self.estimate == "learned":
            for parameter in self.parameters():
                parameter.zero_()
            return
        self.samples.zero_()
        self.mean.zero_()
        start = torch.eye(self.num_features) if self.structure == "full" else torch.ones(())
        self.covariance.copy_(start.expand_as(self.covariance))

    def loaded(self, covariance: Tensor) -> Tensor:
        """The covariance of the structure with its diagonal loaded."""
        if self.structure == "full":
            eye = torch.eye(self.num_features, dtype=covariance.dtype, device=covariance.device)
            return covariance + self.loading * covariance.diagonal().mean() * eye
        return covariance + self.loading * covariance.mean()

    def forward(self) -> tuple[Tensor, Tensor]:
        """Mean and covariance, the latter loaded and with the shape of the structure."""
        if self.estimate != "learned":
            return self.mean.clone(), self.loaded(self.covariance)
        if self.structure != "full":
            return self.location, (2 * self.log_scale).exp()
        factor = self.lower.tril(-1) + torch.diag_embed(self.log_scale.exp())
        return self.location, factor @ factor.mT

    def whiten(self, x: Tensor, *, center: bool = True) -> Tensor:
        """Features with mean 0 and covariance I under this background.

        Parameters
        ----------
        x : (..., features) tensor
            In the last axis; float32 or float64.
        center : bool
            Subtract the mean; without it x is a direction.

        Returns
        -------
        tensor of the shape of ``x``
            In its dtype or that of the statistics, whichever is wider.
        """
        mean, covariance = self()
        return self.apply_to(x, mean if center else torch.zeros_like(mean), covariance)

    def apply_to(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """``L^-1 (x - mean)``; the covariance has the shape of the structure."""
        dtype = torch.promote_types(x.dtype, mean.dtype)
        x, mean, covariance = (t.to(dtype) for t in (x, mean, covariance))
        if self.structure == "full":
            return torch.as_tensor(whiten(x, mean, covariance))
        return (x - mean) * covariance.rsqrt()

    def log_determinant(self) -> Tensor:
        """ln|covariance|."""
        covariance = self()[1]
        if self.structure == "full":
            factor = torch.linalg.cholesky(covariance.double())
            return 2 * factor.diagonal().log().sum().to(covariance.dtype)
        return covariance.log().expand(self.num_features).sum()

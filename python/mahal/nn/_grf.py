"""A Gaussian random field as the prior of a latent image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributed, nn

from mahal.nn._background import Statistics, check_choice, several_processes
from mahal.nn._checks import as_number, as_share
from mahal.ops.grf import grf_fit, grf_kl, grf_log_likelihood, grf_power, grf_sample

Tensor = Any


class GRFPrior(Statistics):
    """A stationary Gaussian random field whose range and variance are trained.

    Parameters
    ----------
    range : float
        At first, in pixels of the images.
    variance : float
        At first.
    learn : {"gradient", "likelihood", "fixed"}
        ``gradient``: `log_range` and `log_variance` are parameters. ``likelihood``: they are
        buffers that `update` sets to the maximum of the likelihood, in closed form in the variance.
        ``fixed``: they are buffers.
    shape : (int, int), optional
        Rows and columns of the images, which "likelihood" needs.
    stride : float
        Pixels of the images per pixel of the latent planes, by which the divergence divides the
        range.
    prior_gradient : {"stop", "full"}
        Whether the divergence reaches range and variance. "stop" is the contract of the source: the
        prior is trained by the likelihood of images alone, as the divergence by itself would drive
        it to white noise.
    momentum : float or None
        Of "likelihood": weight of a new batch in the mean power spectrum. None: all planes weigh
        the same.
    smoothness, kernel, convention, normalize
        As for `mahal.grf_spectrum`.
    bounds : (float, float), optional
        Of "likelihood": shortest and longest range that come into question, as for `mahal.grf_fit`.
        Long ranges take most of its time.
    synchronize : bool
        Power spectra of all processes, where torch.distributed is initialised.

    Attributes
    ----------
    log_range, log_variance : () parameters or buffers
    power : (rows, cols // 2 + 1) float64 buffer
        Of "likelihood": mean power spectrum of the planes so far.
    planes : int64 buffer
        Number of them.

    References
    ----------
    H. Gangloff, M.-T. Pham, L. Courtrai and S. Lefevre, "Unsupervised anomaly detection using
    variational autoencoder with Gaussian random field prior", ICIP 2023.

    Examples
    --------
    >>> import torch
    >>> prior = GRFPrior(range=2.0, learn="likelihood", shape=(32, 32), stride=4)
    >>> prior.update(prior.sample((64, 1, 32, 32), generator=torch.Generator().manual_seed(0)))
    >>> abs(prior.range.item() - 2) < 0.2
    True
    >>> prior(torch.zeros(5, 3, 8, 8), torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 3])
    """

    log_range: Tensor
    log_variance: Tensor
    power: Tensor
    planes: Tensor

    def __init__(
        self,
        *,
        range: float = 1.0,
        variance: float = 1.0,
        learn: str = "gradient",
        shape: tuple[int, int] | None = None,
        stride: float = 1.0,
        prior_gradient: str = "stop",
        momentum: float | None = None,
        smoothness: float = 1.5,
        kernel: str = "periodised",
        convention: str = "standard",
        normalize: bool = False,
        bounds: tuple[float, float] | None = None,
        synchronize: bool = False,
    ) -> None:
        super().__init__()
        self.learn = check_choice("GRFPrior", "learn", learn, ("gradient", "likelihood", "fixed"))
        start = {
            "log_range": math.log(as_number("GRFPrior", "range", range, positive=True)),
            "log_variance": math.log(as_number("GRFPrior", "variance", variance, positive=True)),
        }
        self.stride = as_number("GRFPrior", "stride", stride, positive=True)
        self.prior_gradient = check_choice(
            "GRFPrior", "prior_gradient", prior_gradient, ("stop", "full")
        )
        self.momentum = None if momentum is None else as_share("GRFPrior", "momentum", momentum)
        self.options: dict[str, Any] = {
            "smoothness": smoothness,
            "kernel": kernel,
            "convention": convention,
            "normalize": normalize,
        }
        self.bounds = bounds
        self.synchronize = bool(synchronize)
        for name, value in start.items():
            tensor = torch.tensor(value)
            if self.learn == "gradient":
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        if self.learn == "likelihood":
            if shape is None:
                raise ValueError("GRFPrior: shape: must be given with learn='likelihood', got None")
            rows, cols = shape
            self.shape = (int(rows), int(cols))
            half = (self.shape[0], self.shape[1] // 2 + 1)
            self.register_buffer("power", torch.zeros(half, dtype=torch.float64))
            self.register_buffer("planes", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        return f"learn={self.learn!r}, stride={self.stride:g}, {self.options}"

    @property
    def range(self) -> Tensor:
        """In pixels of the images."""
        return self.log_range.float().exp()

    @property
    def variance(self) -> Tensor:
        """Of the field on the plane."""
        return self.log_variance.float().exp()

    def forward(self, mean: Tensor, logvar: Tensor) -> Tensor:
        """Divergence of independent normals from this prior.

        Parameters
        ----------
        mean, logvar : (..., rows, cols) tensors
            Of the posterior, in latent pixels.

        Returns
        -------
        (...) tensor
            In nats per plane, as `mahal.grf_kl` gives it.
        """
        value = grf_kl(
            mean,
            logvar,
            range=self.range / self.stride,
            variance=self.variance,
            prior_gradient=self.prior_gradient,
            **self.options,
        )
        assert isinstance(value, torch.Tensor)
        return value

    def log_likelihood(self, image: Tensor) -> Tensor:
        """Of images, each plane without its mean; this is what range and variance are trained by.

        Parameters
        ----------
        image : (..., rows, cols) tensor

        Returns
        -------
        (...) tensor
            In nats per plane, as `mahal.grf_log_likelihood` gives it.
        """
        value = grf_log_likelihood(image, range=self.range, variance=self.variance, **self.options)
        assert isinstance(value, torch.Tensor)
        return value

    @torch.no_grad()
    def update(self, image: Tensor, *, refit: bool = True) -> None:
        """Take images in and go to the maximum of the likelihood of all so far.

        Parameters
        ----------
        image : (..., rows, cols) tensor
        refit : bool
            False: take them in only, and call `refit` after many batches.

        Raises
        ------
        ValueError
            Another ``learn`` than "likelihood", or images of another shape.
        """
        self._check_likelihood("update")
        if tuple(image.shape[-2:]) != self.shape:
            raise ValueError(
                f"GRFPrior: image: must have shape (..., {self.shape[0]}, {self.shape[1]}), "
                f"got {tuple(image.shape)}"
            )
        found = torch.from_numpy(grf_power(image)).to(self.power.device)
        count = self.planes.new_tensor(image.shape[:-2].numel())
        if several_processes(self.synchronize):
            found = found * count
            distributed.all_reduce(found)
            distributed.all_reduce(count)
            found = found / count
        weight = count / (self.planes + count)
        if self.momentum is not None:
            weight = torch.where(self.planes == 0, 1.0, self.momentum)
        self.power.lerp_(found, weight.to(found.dtype))
        self.planes.add_(count)
        if refit:
            self.refit()

    @torch.no_grad()
    def refit(self) -> None:
        """Go to the maximum of the likelihood of all images so far.

        Raises
        ------
        ValueError
            Another ``learn`` than "likelihood", or no images yet.
        """
        self._check_likelihood("refit")
        if self.planes == 0:
            raise ValueError("GRFPrior: refit: must come after update, got no images yet")
        power = self.power.cpu().numpy()
        fit = grf_fit(power, self.shape, bounds=self.bounds, **self.options)
        self.log_range.fill_(math.log(fit.range))
        self.log_variance.fill_(math.log(fit.variance))

    def _check_likelihood(self, method: str) -> None:
        if self.learn != "likelihood":
            raise ValueError(f"GRFPrior: {method}: is for learn='likelihood', got {self.learn!r}")

    @torch.no_grad()
    def sample(self, shape: tuple[int, ...], *, generator: Any = None) -> Tensor:
        """Draws of the field in the pixels of the images.

        Parameters
        ----------
        shape : (..., int, int)
        generator : torch.Generator, optional

        Returns
        -------
        float32 tensor of that shape
        """
        drawn = grf_sample(
            shape,
            range=self.range,
            variance=self.variance,
            generator=generator,
            dtype="float32",
            **self.options,
        )
        return torch.as_tensor(drawn)

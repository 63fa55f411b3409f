"""What convolutional models share: patches of images, and weights that come from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mahal.models._training import generator

Network = TypeVar("Network", bound=nn.Module)


def seeded(make: Callable[[], Network], seed: int, purpose: str) -> Network:
    """A network with torch's usual uniform weights, drawn without its global random state."""
    with torch.device("meta"):
        network = make()
    network = network.to_empty(device="cpu")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            noise = generator(seed, "weights", purpose, name)
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for tensor in (layer.weight, layer.bias):
                if tensor is not None:
                    tensor.data.uniform_(-bound, bound, generator=noise)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    return network


def offsets(length: int, side: int, stride: int) -> list[int]:
    """Where patches begin along one axis; the last one ends with the image."""
    return [*range(0, length - side, stride), length - side]


class Patches:
    """Square patches of images of any size, cut out when they are asked for.

    ``pixels`` has the pixels of all images below each other; ``first`` the pixel in the upper left
    corner of each patch, and ``width`` the columns of its image.
    """

    def __init__(self, images: Sequence[npt.NDArray[np.float32]], side: int, stride: int) -> None:
        first, width, begin = [], [], 0
        for image in images:
            rows, cols = image.shape[:2]
            for row in offsets(rows, side, stride):
                for col in offsets(cols, side, stride):
                    first.append(begin + row * cols + col)
                    width.append(cols)
            begin += rows * cols
        self.side = side
        self.pixels = torch.from_numpy(np.concatenate([i.reshape(-1, i.shape[2]) for i in images]))
        self.first, self.width = torch.tensor(first), torch.tensor(width)

    def __len__(self) -> int:
        return len(self.first)

    def keep(self, wanted: torch.Tensor) -> None:
        """Only these patches."""
        self.first, self.width = self.first[wanted], self.width[wanted]

    def buffers(self) -> dict[str, torch.Tensor]:
        """What a learner takes to its device."""
        return {"pixels": self.pixels, "first": self.first, "width": self.width}

    def split(self, together: int) -> Iterator[torch.Tensor]:
        """All patches, so many at a time."""
        for first, width in zip(
            self.first.split(together), self.width.split(together), strict=True
        ):
            yield cut(self.pixels, first, width, self.side)


def cut(pixels: torch.Tensor, first: torch.Tensor, width: torch.Tensor, side: int) -> torch.Tensor:
    """Patches (count, channels, side, side)."""
    steps = torch.arange(side, device=pixels.device)
    index = first[:, None, None] + steps[:, None] * width[:, None, None] + steps
    return pixels[index].movedim(3, 1)

"""ResNet-18 in plain torch, with the names that torchvision gives its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from mahal.models._detector import ModelError
from mahal.models._training import generator

WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class ResNet18(nn.Module):
    """The residual network with 18 layers of He et al. (CVPR 2016), for images of any size.

    Parameters
    ----------
    channels : int
        Channels of the images.
    classes : int, optional
        Classes of a last linear layer; without it there is none.
    stages : int
        How many of the four stages there are. They have 64, 128, 256 and 512 channels at 1/4, 1/8,
        1/16 and 1/32 of the size of the image.
    seed : int
        Of the random weights: He normal convolutions, identical batch normalisations.
    """

    def __init__(
        self, *, channels: int = 3, classes: int | None = None, stages: int = 4, seed: int = 0
    ) -> None:
        if stages not in (1, 2, 3, 4):
            raise ValueError(f"ResNet18: stages: must be 1, 2, 3 or 4, got {stages!r}")
        if classes is not None and stages != 4:
            raise ValueError(f"ResNet18: classes: need all four stages, got stages={stages}")
        super().__init__()
        # Layers draw weights when they are made, which are replaced.
        with torch.random.fork_rng(devices=[]):
            self._build(channels, classes, stages)
        random = generator(seed, "weights")
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=random
                )
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01, generator=random)
                nn.init.zeros_(module.bias)

    def _build(self, channels: int, classes: int | None, stages: int) -> None:
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, width in enumerate(WIDTHS[:stages], 1):
            first = BasicBlock(inputs, width, 1 if stage == 1 else 2)
            self.add_module(f"layer{stage}", nn.Sequential(first, BasicBlock(width, width)))
            inputs = width
        self.stages = stages
        if classes is not None:
            self.fc = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of all stages.

        Parameters
        ----------
        x : (images, channels, rows, cols) tensor

        Returns
        -------
        list of (images, width, rows / 2^(k + 1), cols / 2^(k + 1)) tensors, k = 1, 2, ...
        """
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
            maps.append(x)
        return maps

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the classes, (images, classes)."""
        return self.fc(self(x)[-1].mean(dim=(2, 3)))


def read_weights(op: str, path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, or of a file of ``torch.save`` with tensors alone."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{op}: weights: {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Both readers have an exception of their own for every kind of damage.
        text = str(error).split("\n")[0]
        raise ModelError(f"{op}: weights: {path}: cannot be read ({text})") from error
    tensors = isinstance(found, Mapping) and all(
        isinstance(v, torch.Tensor) for v in found.values()
    )
    if not tensors:
        raise ModelError(f"{op}: weights: {path}: must hold tensors by name and nothing else")
    return dict(found)


def resnet18(
    op: str, tensors: Mapping[str, torch.Tensor] | None, stages: int, seed: int
) -> ResNet18:
    """The network with these weights, or with random ones. Later stages and `fc` are left out."""
    if tensors is None:
        return ResNet18(stages=stages, seed=seed)
    first = tensors.get("conv1.weight")
    if first is None or first.ndim != 4:
        raise ModelError(f"{op}: weights: are not of a ResNet-18, there is no conv1.weight")
    network = ResNet18(channels=int(first.shape[1]), stages=stages)
    known = {*ResNet18().state_dict(), "fc.weight", "fc.bias"}
    load_tensors(op, network, tensors, known)
    return network


def load_tensors(
    op: str, network: nn.Module, tensors: Mapping[str, torch.Tensor], known: set[str]
) -> None:
    """Put tensors into a network; more of them may be there if they are among the known."""
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in tensors]
    # Files of old versions do not count batches, and nothing here needs the counts.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    strange = [name for name in tensors if name not in known]
    for word, names in (("there is no", missing), ("there should be no", strange)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{op}: weights: are not of this {type(network).__name__}, {word} {names[0]}{more}"
            )
    for name, tensor in wanted.items():
        if name in tensors and tensors[name].shape != tensor.shape:
            raise ModelError(
                f"{op}: weights: {name}: must have shape {tuple(tensor.shape)}, got "
                f"{tuple(tensors[name].shape)}"
            )
    network.load_state_dict({name: tensors.get(name, t) for name, t in wanted.items()})

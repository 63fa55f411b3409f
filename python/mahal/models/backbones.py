"""Networks that turn an image into maps of features, and a trainer for one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mahal.models._detector import ModelError, check_number, write_tensors
from mahal.models._images import Picture, Pictures, check_size
from mahal.models._training import Batches, Learner, generator, train
from mahal.models.resnet import ResNet18, load_tensors, read_weights, resnet18

MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
"""Of the red, green and blue of ImageNet, as networks trained on it expect them."""
HIDDEN_STATES = ("mobilevit", "mobilevitv2")
"""Networks of transformers that have no AutoBackbone; the outputs of their stages are the maps."""


def prepare(
    picture: Picture, channels: int | None, size: tuple[int, int] | None, normalization: str
) -> torch.Tensor:
    """An image as a network takes it, (channels, rows, cols); unused pixels have the mean."""
    values = picture.unit() if normalization == "imagenet" else picture.values
    x = torch.from_numpy(values).permute(2, 0, 1).clone()
    used = torch.from_numpy(picture.used)
    if not used.all():
        x[:, ~used] = x[:, used].mean(dim=1, keepdim=True)
    if channels is not None and x.shape[0] != channels:
        if x.shape[0] != 1:
            raise ModelError(
                f"{picture.op}: {picture.name}: must have {channels} bands, as the backbone takes "
                f"them, or one, got {x.shape[0]}"
            )
        x = x.expand(channels, *x.shape[1:])
    if normalization == "imagenet":
        mean, deviation = torch.tensor(MEAN), torch.tensor(DEVIATION)
        if x.shape[0] != len(MEAN):
            mean, deviation = mean.mean(), deviation.mean()
        x = (x - mean.reshape(-1, 1, 1)) / deviation.reshape(-1, 1, 1)
    if size is not None and tuple(x.shape[1:]) != size:
        x = functional.interpolate(x[None], size, mode="bilinear", antialias=True)[0]
    return x.contiguous()


class Backbone(nn.Module):
    """A frozen network that gives feature maps of an image, largest first.

    Parameters
    ----------
    network : module or callable
        Gives a list, tuple or mapping of feature maps.
    layers : tuple of int, optional
        Which of the maps are used, counted from 1; all where not given.
    channels : int, optional
        Channels of the images; None: as they are.
    """

    def __init__(
        self,
        network: Any,
        layers: tuple[int, ...] | None = None,
        channels: int | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = layers
        self.channels = channels
        self.config: dict[str, Any] | None = None
        if isinstance(network, nn.Module):
            network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Frozen: it stays as it is for evaluation."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps (images, channels, rows, cols) of images (images, channels, rows, cols)."""
        found = self.network(x)
        if isinstance(found, Mapping):
            found = list(found.values())
        if isinstance(found, torch.Tensor):
            found = [found]
        if not isinstance(found, Iterable):
            raise ModelError(
                f"PadimACE: backbone: must give feature maps, gave {type(found).__name__}"
            )
        maps = list(found)
        if self.layers is not None:
            if max(self.layers) > len(maps):
                raise ModelError(
                    f"PadimACE: layers: must be from 1 to {len(maps)}, the maps that the backbone "
                    f"gives, got {self.layers}"
                )
            maps = [maps[layer - 1] for layer in self.layers]
        maps = [_channels_first(m, x) for m in maps]
        return sorted(maps, key=lambda m: -m.shape[2] * m.shape[3])


def _channels_first(features: Any, x: torch.Tensor) -> torch.Tensor:
    """The map with its channels second, where the backbone has put them last."""
    good = isinstance(features, torch.Tensor) and features.ndim == 4
    if not good or features.shape[0] != x.shape[0]:
        what = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features)
        raise ModelError(
            "PadimACE: backbone: must give maps (images, channels, rows, cols) or (images, rows, "
            f"cols, channels), gave {what}"
        )

    rows, cols = int(x.shape[2]), int(x.shape[3])

    def same_stride(r: int, c: int) -> bool:
        # A stride s leaves between n // s and n // s + 1 rows of n.
        return r <= rows and abs(cols * r / rows - c) <= 1

    first, last = same_stride(*features.shape[2:]), same_stride(*features.shape[1:3])
    return features.permute(0, 3, 1, 2) if last and not first else features


def build(
    op: str, spec: Any, layers: tuple[int, ...] | None, weights: str | None, seed: int
) -> Backbone:
    """The backbone that a name, a configuration, a folder or a function stands for."""
    if callable(spec):
        if weights is not None:
            raise ValueError(
                f"{op}: weights: must be None where backbone is a function, got {weights}"
            )
        return Backbone(spec, layers)
    layers = layers or (1, 2, 3)
    tensors = None if weights is None else read_weights(op, weights)
    if spec == "resnet18":
        if max(layers) > 4:
            raise ValueError(f"{op}: layers: must be from 1 to 4 for resnet18, got {layers}")
        network = resnet18(op, tensors, max(layers), seed)
        return Backbone(network, layers, network.conv1.in_channels)
    if isinstance(spec, str) and weights is not None:
        raise ValueError(f"{op}: weights: must be None where backbone is a folder, which has them")
    found = _transformer(op, spec, layers, seed)
    if tensors is not None:
        load_tensors(op, found.network, tensors, set(found.network.state_dict()))
    return found


def rebuild(
    op: str,
    spec: Any,
    layers: tuple[int, ...] | None,
    facts: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> Backbone:
    """The backbone that a model was saved with."""
    layers = layers or (1, 2, 3)
    if spec == "resnet18":
        network = resnet18(op, tensors, max(layers), 0)
        return Backbone(network, layers, network.conv1.in_channels)
    found = _transformer(op, dict(facts["config"]), layers, 0)
    load_tensors(op, found.network, tensors, set(found.network.state_dict()))
    return found


def _transformer(
    op: str, spec: str | Mapping[str, Any], layers: tuple[int, ...], seed: int
) -> Backbone:
    """A network of transformers, from its configuration or from the folder that it was saved in."""
    # A name that is no folder must not become a download.
    if isinstance(spec, str) and not (Path(spec) / "config.json").is_file():
        raise ValueError(
            f"{op}: backbone: must be resnet18, a folder with a config.json, a configuration or a "
            f"function, got {spec!r}"
        )
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{op}: backbone: {spec!r} needs transformers: {error}") from error
    try:
        if isinstance(spec, str):
            config = transformers.AutoConfig.from_pretrained(spec, local_files_only=True)
        else:
            given = {name: value for name, value in spec.items() if name != "model_type"}
            config = transformers.AutoConfig.for_model(spec["model_type"], **given)
        for name in ("depths", "hidden_sizes"):
            # Some of them add a list to it, and have a tuple themselves.
            if isinstance(getattr(config, name, None), tuple):
                setattr(config, name, list(getattr(config, name)))
        kind: Any = transformers.AutoModel
        if config.model_type not in HIDDEN_STATES:
            kind = transformers.AutoBackbone
            config.out_indices = list(layers)
        with torch.random.fork_rng():
            torch.manual_seed(generator(seed, "weights").initial_seed())
            if isinstance(spec, str):
                network = kind.from_pretrained(spec, config=config, local_files_only=True)
            else:
                network = kind.from_config(config)
    except (KeyError, OSError, TypeError, ValueError) as error:
        text = str(error).split("\n")[0]
        raise ValueError(f"{op}: backbone: transformers cannot make it ({text})") from error
    found = Backbone(_Maps(network), None, getattr(config, "num_channels", 3))
    if config.model_type in HIDDEN_STATES:
        found.layers = layers
    found.config = config.to_dict()
    return found


class _Maps(nn.Module):
    """A network of transformers as one that returns feature maps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> Any:
        if hasattr(self.network.config, "out_indices"):
            return self.network(pixel_values=x).feature_maps
        return self.network(pixel_values=x, output_hidden_states=True).hidden_states


class _Classifier(Learner):
    """ResNet-18 that learns the classes of images."""

    def __init__(
        self,
        network: ResNet18,
        data: Mapping[str, torch.Tensor],
        crop: int,
        learning_rate: float,
        seed: int,
    ) -> None:
        super().__init__(data, seed)
        self.network, self.crop, self.learning_rate = network, crop, learning_rate

    def training_step(self, index: torch.Tensor) -> torch.Tensor:
        """Cross entropy of a batch, each image cut at a place of its own."""
        images = self.images[index[0]]
        room = [side - self.crop + 1 for side in images.shape[2:]]
        places = torch.stack(
            [
                torch.randint(n, (len(images),), generator=self.noise, device=self.device)
                for n in room
            ]
        )
        cut = torch.stack(
            [
                image[:, r : r + self.crop, c : c + self.crop]
                for image, (r, c) in zip(images, places.T.tolist(), strict=True)
            ]
        )
        logits = self.network.classify(cut)
        return self.checked(functional.cross_entropy(logits, self.labels[index[0]]))

    def configure_optimizers(self) -> Any:
        """AdamW, its rate falling to nothing along half a cosine."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs)
        return [optimizer], [schedule]


def train_backbone(
    images: Any,
    labels: Sequence[int],
    path: str | Path,
    *,
    crop: int = 64,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
    checkpoint: str | Path | None = None,
    trainer: Mapping[str, Any] | None = None,
) -> ResNet18:
    """Train a ResNet-18 to tell classes of images, and write its weights for `PadimACE`.

    For features of a kind of image that no published weights know, such as radar, from chips with a
    class each. AdamW, cross entropy, a learning rate that falls along half a cosine, and every
    image cut at a random place in every epoch.

    Parameters
    ----------
    images : sequence of (rows, cols) or (rows, cols, bands) arrays
        All of one size and at least ``crop`` pixels wide and high; values between 0 and 1, or
        unsigned integers. One band is repeated to three.
    labels : sequence of int (images,)
        Class of every image, 0 and up; at least two classes.
    path : path
        The .safetensors file of the weights, under the names that torchvision has for them.
    crop : int
        Rows and columns of what is cut from an image, at least 64.
    epochs, batch_size, learning_rate
        Of the training.
    seed : int
        Of first weights, order and places.
    progress : bool
        Show a progress bar.
    checkpoint : path, optional
        Folder for the state of the training after every epoch, as for `ImageDetector.fit`.
    trainer : mapping, optional
        Arguments of Lightning's ``Trainer``.

    Returns
    -------
    ResNet18
        Trained, on the CPU; ``classify`` gives logits.

    Raises
    ------
    ValueError
        Wrong shapes, labels or sizes.
    TrainingError
        The loss is no longer finite; nothing is written.
    """
    op = "train_backbone"
    path = Path(path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise ValueError(
            f"{op}: path: must be a .safetensors file in a folder that exists, got {path}"
        )
    for name, value in (("crop", crop), ("epochs", epochs), ("batch_size", batch_size)):
        check_number(op, name, value, 64 if name == "crop" else 1, whole=True)
    check_number(op, "learning_rate", learning_rate, 0, whole=False, open_=True)
    pictures = Pictures(op, images, None, complex_images=False)
    classes = torch.as_tensor(labels)
    whole = not classes.is_floating_point() and not classes.is_complex()
    if not whole or classes.shape != (len(pictures),) or classes.min() < 0 or classes.max() < 1:
        raise ValueError(
            f"{op}: labels: must be {len(pictures)} whole numbers from 0 on, of at least two "
            f"classes, got {tuple(classes.shape)} from {classes.min()} to {classes.max()}"
        )
    channels = 3 if pictures.bands == 1 else pictures.bands
    prepared = []
    for picture in pictures:
        check_size(picture, crop)
        prepared.append(prepare(picture, channels, None, "imagenet"))
        if prepared[-1].shape != prepared[0].shape:
            raise ValueError(
                f"{op}: {picture.name}: must have the size of the first image, "
                f"{tuple(prepared[0].shape[1:])}, got {tuple(prepared[-1].shape[1:])}"
            )
    network = ResNet18(channels=channels, classes=int(classes.max()) + 1, seed=seed)
    data = {"images": torch.stack(prepared), "labels": classes.long()}
    learner = _Classifier(network, data, crop, learning_rate, seed)
    train(
        learner,
        Batches(len(pictures), batch_size, 1, seed),
        epochs=epochs,
        settings={
            "images": [*data["images"].shape, float(data["images"].sum(dtype=torch.float64))],
            "crop": crop,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "seed": seed,
            "labels": classes.tolist(),
        },
        progress=progress,
        checkpoint=None if checkpoint is None else Path(checkpoint),
        trainer=trainer,
    )
    network.eval().requires_grad_(False)
    write_tensors(path, network.state_dict())
    return network

"""Training on Lightning: the same trainer for every model."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import distributed

from mahal.models._detector import TrainingError


def generator(seed: int, *stream: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of their own for a seed and a purpose."""
    text = json.dumps([seed, *stream]).encode()
    value = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
    return torch.Generator(device).manual_seed(value)


class Batches:
    """Indices of the samples of one epoch after the other, every run in its own order.

    Yields (runs, batch) indices; a last batch that is smaller comes too. The order depends on the
    seed and the epoch only, so that a training that goes on takes the same. Of several processes
    each takes its share of every batch.
    """

    def __init__(self, samples: int, batch_size: int, runs: int, seed: int) -> None:
        self.samples, self.batch_size, self.runs, self.seed = samples, batch_size, runs, seed
        self.epoch = 0

    def __len__(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        order = torch.stack(
            [
                torch.randperm(
                    self.samples, generator=generator(self.seed, "order", run, self.epoch)
                )
                for run in range(self.runs)
            ]
        )
        rank, world = _place()
        for batch in order.split(self.batch_size, dim=1):
            # Every process takes as many steps as the others, or they would wait for it.
            if batch.shape[1] >= world:
                yield batch[:, rank::world]


def _place() -> tuple[int, int]:
    """Which of how many processes that train together this one is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class Learner(LightningModule):
    """A network with its data, as Lightning trains it: a subclass has `losses` and optimisers.

    ``data`` moves to the device once, with the network; batches are indices into it.
    """

    def __init__(self, data: Mapping[str, torch.Tensor], seed: int) -> None:
        super().__init__()
        for name, tensor in data.items():
            self.register_buffer(name, tensor, persistent=False)
        self.seed = seed
        self.noise = generator(seed)
        self.means: dict[str, tuple[torch.Tensor, int]] = {}

    def on_train_epoch_start(self) -> None:
        """Order and noise of this epoch, whatever came before it."""
        self.trainer.train_dataloader.epoch = self.current_epoch
        self.means = {}
        place = _place()[:1] if _place()[0] else ()
        self.noise = generator(self.seed, "noise", self.current_epoch, *place, device=self.device)

    def checked(self, value: torch.Tensor, name: str = "loss") -> torch.Tensor:
        """The loss, or a tensor on the way to it, if it is finite."""
        if not torch.isfinite(value.detach()).all():
            raise TrainingError(
                f"the {name} is not finite in epoch {self.current_epoch + 1}, step "
                f"{self.global_step + 1}: lower learning_rate"
            )
        total, count = self.means.get(name, (value.new_zeros(()), 0))
        self.means[name] = (total + value.detach().mean(), count + 1)
        return value

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch, once, for callbacks such as Lightning's EarlyStopping."""
        for name, (total, count) in self.means.items():
            self.log(name, total / count, sync_dist=_place()[1] > 1)


class _BestWeights(Callback):
    """Stops when the loss of validation has not fallen for some epochs, and keeps the best state.

    The learner has logged that loss under the name "validation".
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best: dict[str, Any] = {"loss": math.inf, "epoch": -1, "weights": None, "last": False}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that had come to its end before it was killed does not go on."""
        trainer.should_stop = self.best["last"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the loss of this epoch."""
        loss = float(trainer.callback_metrics["validation"])
        if loss < self.best["loss"]:
            weights = {name: t.detach().clone() for name, t in pl_module.state_dict().items()}
            self.best.update(loss=loss, epoch=trainer.current_epoch, weights=weights)
        elif trainer.current_epoch - self.best["epoch"] >= self.patience:
            self.best["last"] = trainer.should_stop = True

    def restore(self, learner: Learner) -> None:
        """Go back to the best."""
        if self.best["weights"] is not None:
            learner.load_state_dict(self.best["weights"])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What a checkpoint has kept."""
        self.best = dict(state_dict)


@contextmanager
def one_thread() -> Iterator[None]:
    """Small layers run ten times slower where two threads wait for each other, and not faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on hardware and on logging that was not asked for."""
    names = ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            warnings.filterwarnings("ignore", module="torch.utils.*", category=FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train(
    learner: Learner,
    batches: Batches,
    *,
    epochs: int,
    settings: Mapping[str, Any],
    progress: bool,
    checkpoint: Path | None,
    trainer: Mapping[str, Any] | None = None,
    validation: Batches | None = None,
    patience: int | None = None,
) -> None:
    """Train for a number of epochs, on a GPU where there is one.

    ``settings`` name the training: a checkpoint of other settings is refused. With ``validation``
    the training stops when its loss has not fallen for ``patience`` epochs, and the best state is
    the one that stays.
    """
    options = {"accelerator": "auto", "devices": 1, **(trainer or {})}
    best = None if patience is None else _BestWeights(patience)
    callbacks: list[Callback] = [] if best is None else [best]
    # Before the checkpoint, which keeps their state.
    callbacks += options.pop("callbacks", None) or []
    resume = None
    if checkpoint is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        named = checkpoint / "settings.json"
        text = json.dumps(dict(settings), sort_keys=True)
        last = checkpoint / "last.ckpt"
        if last.exists():
            if not named.exists() or named.read_text(encoding="utf-8") != text:
                raise ValueError(
                    f"{checkpoint}: holds the checkpoint of a training with other parameters or "
                    "another scene; remove it or choose another folder"
                )
            resume = str(last)
        named.write_text(text, encoding="utf-8")
        callbacks.append(
            ModelCheckpoint(
                dirpath=checkpoint,
                filename="last",
                save_on_train_epoch_end=True,
                enable_version_counter=False,
            )
        )
    with _quiet():
        run = Trainer(
            max_epochs=epochs,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=checkpoint is not None,
            enable_progress_bar=progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **options,
        )
        run.fit(learner, batches, validation, ckpt_path=resume)
        if run.interrupted:
            raise KeyboardInterrupt
    # Not in a hook: Lightning calls none for a training that was killed after its last epoch.
    if best is not None:
        best.restore(learner)
    learner.to("cpu")
    learner.trainer = None
    if checkpoint is not None:
        shutil.rmtree(checkpoint)

"""What every model does: fit, score, predict, save and load, in one manner."""

from __future__ import annotations

import abc
import inspect
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mahal._arrays import library_of
from mahal.significance import ScoreTail, score_tail

Array = Any
FORMAT = "mahal-model-1"

Self = TypeVar("Self", bound="Model")


class ModelError(ValueError):
    """A model that cannot do what was asked of it, or a file that is no model."""


class TrainingError(ArithmeticError):
    """Training has failed; what was there before is unchanged."""


def check_number(
    op: str, name: str, value: Any, low: float, *, whole: bool, open_: bool = False
) -> None:
    """A finite number, whole or not, of at least ``low`` or above it."""
    kinds = (int,) if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not good or value < low or (open_ and value == low):
        rule = f"{'a whole number' if whole else 'a number'} {'above' if open_ else 'of at least'}"
        raise ValueError(f"{op}: {name}: must be {rule} {low}, got {value!r}")


def check_choice(op: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """One of several words."""
    if value not in allowed:
        raise ValueError(f"{op}: {name}: must be one of {', '.join(allowed)}, got {value!r}")


_CLASSES: dict[str, type[Model]] = {}


class Model(abc.ABC):
    """Parameters, and a file for what was learnt: what detectors and what prepares images share.

    Parameters are keyword arguments of the constructor and attributes of the same name; what a
    training finds has names that end with an underscore. A subclass says what it keeps
    (`_tensors`, `_facts`, `_restore`).
    """

    scoring_params: ClassVar[tuple[str, ...]] = ()
    """Parameters that may change after `fit`, without another training."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not inspect.isabstract(cls):
            _CLASSES[cls.__name__] = cls

    # -- parameters

    @classmethod
    def _param_names(cls) -> tuple[str, ...]:
        parameters = inspect.signature(cls.__init__).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name.

        Parameters
        ----------
        deep : bool
            Without effect; scikit-learn asks for it.

        Returns
        -------
        dict
        """
        return {name: getattr(self, name) for name in self._param_names()}

    def set_params(self: Self, **params: Any) -> Self:
        """Change parameters.

        A change of anything but a scoring parameter makes the model one that has not been fitted; a
        change of a scoring parameter asks for another `calibrate` before `predict`.

        Returns
        -------
        Model
            The model itself.

        Raises
        ------
        ValueError
            A name or value that the model does not have.
        """
        op = type(self).__name__
        for name in params:
            if name not in self._param_names():
                raise ValueError(
                    f"{op}: {name}: no such parameter, has {', '.join(self._param_names())}"
                )
        changed = {name for name, value in params.items() if getattr(self, name) != value}
        # The constructor checks them; a wrong one leaves the model as it was.
        fresh = type(self)(**{**self.get_params(), **params})
        kept = changed <= set(self.scoring_params)
        for name, value in vars(fresh).items():
            if name in self._param_names() or not kept:
                setattr(self, name, value)
        for name in [n for n in vars(self) if n not in vars(fresh) and not kept]:
            delattr(self, name)
        if changed and hasattr(self, "calibration_"):
            del self.calibration_
        return self

    def __repr__(self) -> str:
        """The constructor call, with what differs from the defaults."""
        defaults = inspect.signature(type(self).__init__).parameters
        given = (
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value != defaults[name].default
        )
        return f"{type(self).__name__}({', '.join(given)})"

    # -- learning

    calibration_: ScoreTail
    bands_: int

    @contextmanager
    def _unchanged_on_failure(self) -> Iterator[None]:
        """What an error or an interruption leaves is the model of before."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _check_fitted(self, what: str) -> None:
        if not hasattr(self, "bands_"):
            raise ModelError(f"{type(self).__name__}: {what}: the model is not fitted, call fit")

    def _check_bands(self, op: str, bands: int) -> None:
        if bands != self.bands_:
            raise ModelError(
                f"{op}: image: must have {self.bands_} bands, as what the model was fitted to, "
                f"got {bands}"
            )

    # -- files

    def _saved_params(self) -> dict[str, Any]:
        """Parameters as JSON has them, for `load` to make the model with."""
        return self.get_params()

    @abc.abstractmethod
    def _tensors(self) -> dict[str, torch.Tensor]: ...

    def _facts(self) -> dict[str, Any]:
        """What else `_restore` needs, as JSON has it."""
        return {}

    @abc.abstractmethod
    def _restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None: ...

    def save(self, path: str | Path) -> None:
        """Write the fitted model into one safetensors file, its parameters as JSON in the header.

        Parameters
        ----------
        path : path
            Its folder must exist. The file appears when it is complete.

        Raises
        ------
        ValueError
            The model is not fitted.
        """
        self._check_fitted("save")
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
        facts: dict[str, Any] = {**self._facts(), "bands": self.bands_}
        tensors = self._tensors()
        if hasattr(self, "calibration_"):
            tensors["calibration"] = torch.from_numpy(self.calibration_.quantiles)
            facts["tail_index"] = self.calibration_.index
            facts["tail_cosine"] = self.calibration_.cosine
        header = {
            "format": FORMAT,
            "model": type(self).__name__,
            "params": json.dumps(self._saved_params()),
            "facts": json.dumps(facts),
        }
        write_tensors(path, tensors, header)

    @classmethod
    def load(cls: type[Self], path: str | Path) -> Self:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : path

        Returns
        -------
        Model
            Fitted, on the CPU.

        Raises
        ------
        ModelError
            The file is no model of this class.
        """
        model = load(path)
        if not isinstance(model, cls):
            raise ModelError(f"{path}: must hold a {cls.__name__}, has a {type(model).__name__}")
        return model


class AnomalyDetector(Model):
    """A model of what is normal, and a score for what is not.

    A subclass of `SceneDetector` or `ImageDetector` says how it learns (`_fit`) and how it scores
    (`_score`).
    """

    def score(self, image: Array, *, mask: Array | None = None) -> Array:
        """Score every pixel, higher for what is less normal.

        Parameters
        ----------
        image : (rows, cols, bands) array
            numpy array or torch tensor, with the bands of what the model was fitted to.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows, cols) array
            float32, of the library and device of the image; NaN where a pixel is masked or has a
            value that is not finite.
        """
        self._check_fitted("score")
        scores = self._score(self._read("score", image, mask))
        if library_of(image) == "torch":
            return torch.from_numpy(scores).to(image.device)
        return scores

    def threshold(self, false_alarm_rate: float) -> float:
        """Score that a share of background pixels reaches.

        Parameters
        ----------
        false_alarm_rate : float
            More than 0 and less than 1. See `mahal.significance.score_tail`, of the scores of the
            calibration scene.

        Returns
        -------
        float
        """
        self._check_fitted("threshold")
        if not hasattr(self, "calibration_"):
            raise ModelError(
                f"{type(self).__name__}: threshold: a scoring parameter has changed, call "
                "calibrate first"
            )
        return float(self.calibration_.threshold(false_alarm_rate))

    def predict(
        self, image: Array, *, false_alarm_rate: float = 1e-3, mask: Array | None = None
    ) -> Array:
        """Where the score reaches the threshold for a false-alarm rate.

        Parameters
        ----------
        image : (rows, cols, bands) array
        false_alarm_rate : float
            Of what the thresholds were calibrated on, see `threshold`.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        (rows, cols) bool array
            Of the library and device of the image.
        """
        level = self.threshold(false_alarm_rate)
        return self.score(image, mask=mask) >= level

    @abc.abstractmethod
    def _read(self, what: str, image: Array, mask: Array | None) -> Any:
        """The checked image, as `_score` takes it."""

    @abc.abstractmethod
    def _score(self, image: Any) -> npt.NDArray[np.float32]: ...

    # -- blocks of a scene, see mahal.blocks.score

    def _reach(self) -> int:
        """How far around a pixel its score looks, in pixels."""
        raise ModelError(
            f"{type(self).__name__}: score: a score depends on the whole image, so a scene cannot "
            "be scored in blocks"
        )

    def _needs_scene(self) -> bool:
        """Whether scores need the mean and covariance of features over the scene."""
        return False

    def _scene_features(self, image: Any) -> list[npt.NDArray[np.float32]]:
        """These features (pixels, n), of each run."""
        return []

    def _block_score(
        self, image: Any, statistics: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    ) -> npt.NDArray[np.float32]:
        """Scores with the means and covariances of `_scene_features`."""
        return self._score(image)


SelfScene = TypeVar("SelfScene", bound="SceneDetector")


class SceneDetector(AnomalyDetector):
    """A model of the pixels of one scene."""

    def fit(
        self: SelfScene,
        image: Array,
        *,
        mask: Array | None = None,
        progress: bool = False,
        checkpoint: str | Path | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> SelfScene:
        """Learn what is normal from the pixels of a scene, and calibrate thresholds on its scores.

        Parameters
        ----------
        image : (rows, cols, bands) array
            numpy array or torch tensor. Anomalies may be in it; they are few by assumption.
        mask : (rows, cols) bool array, optional
            True where a pixel is used.
        progress : bool
            Show a progress bar.
        checkpoint : path, optional
            Folder for the state of the training after every epoch. Where it holds one of a training
            with the same parameters, that one goes on; it is removed at the end.
        trainer : mapping, optional
            Arguments of Lightning's ``Trainer``, such as ``{"profiler": "simple"}``.

        Returns
        -------
        AnomalyDetector
            The model itself.

        Raises
        ------
        ValueError
            Wrong shapes, an image that the model cannot learn from, or fewer than 100 pixels.
        TrainingError
            The loss is no longer finite. The model is as it was before.
        """
        pixels = self._read("fit", image, mask)
        with self._unchanged_on_failure():
            folder = None if checkpoint is None else Path(checkpoint)
            self._fit(pixels, progress, folder, dict(trainer or {}))
            self._calibrate(pixels)
        return self

    def calibrate(self: SelfScene, image: Array, *, mask: Array | None = None) -> SelfScene:
        """Take the thresholds of `predict` from the scores of this scene.

        Parameters
        ----------
        image : (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        AnomalyDetector
            The model itself.
        """
        self._check_fitted("calibrate")
        self._calibrate(self._read("calibrate", image, mask))
        return self

    def _calibrate(self, pixels: Pixels) -> None:
        self.calibration_ = score_tail(self._score(pixels))

    def _read(self, what: str, image: Array, mask: Array | None) -> Pixels:
        op = f"{type(self).__name__}.{what}"
        pixels = Pixels(op, image, mask)
        if what != "fit":
            self._check_bands(op, pixels.values.shape[2])
        return pixels

    @abc.abstractmethod
    def _fit(
        self, pixels: Pixels, progress: bool, checkpoint: Path | None, trainer: Mapping[str, Any]
    ) -> None: ...


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, which appears when it is complete."""
    content = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        save_file(content, name, None if header is None else dict(header))
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def load(path: str | Path) -> Any:
    """Read a model of any class from the file that its `save` wrote.

    Parameters
    ----------
    path : path

    Returns
    -------
    Model
        Fitted, on the CPU; one with a class of its own, so without a static type.

    Raises
    ------
    ModelError
        The file is not a model of this package, or is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        # safetensors has an exception of its own for every kind of damage.
        raise ModelError(f"{path}: is not a safetensors file ({error})") from error
    written = header.get("format", "")
    if written != FORMAT:
        if written.startswith(FORMAT.rstrip("0123456789")):
            raise ModelError(f"{path}: was written as {written}, this version reads {FORMAT}")
        raise ModelError(f"{path}: is not a model of mahal ({FORMAT})")
    name = header["model"]
    if name not in _CLASSES:
        raise ModelError(f"{path}: has a {name}, which this version of mahal does not know")
    params, facts = json.loads(header["params"]), json.loads(header["facts"])
    # JSON has no tuples.
    params = {key: tuple(v) if isinstance(v, list) else v for key, v in params.items()}
    model = _CLASSES[name](**params)
    model.bands_ = facts["bands"]
    if "calibration" in tensors:
        quantiles = tensors.pop("calibration").numpy()
        model.calibration_ = ScoreTail(quantiles, facts["tail_index"], facts["tail_cosine"])
    model._restore(tensors, facts)
    return model


def host_array(op: str, name: str, image: Array) -> npt.NDArray[Any]:
    """A numpy array of the values of a numpy array or torch tensor."""
    if library_of(image) not in ("numpy", "torch"):
        raise TypeError(f"{op}: {name}: must be a numpy array or a torch tensor")
    return np.asarray(image.detach().cpu() if library_of(image) == "torch" else image)


def used_pixels(
    op: str, name: str, values: npt.NDArray[Any], mask: Array | None
) -> npt.NDArray[np.bool_]:
    """Pixels of the mask whose values are finite; says how many of them are not."""
    used: npt.NDArray[np.bool_] = np.asarray(np.isfinite(values).all(axis=2))
    lost = ~used
    if mask is not None:
        given = host_array(op, "mask", mask)
        if given.dtype != np.bool_ or given.shape != values.shape[:2]:
            raise ValueError(
                f"{op}: mask: must be bool of shape {values.shape[:2]}, "
                f"got {given.dtype} of shape {given.shape}"
            )
        lost &= given
        used &= given
    if lost.any():
        warnings.warn(
            f"{op}: {name}: {int(lost.sum())} pixels have a value that is not finite and are left "
            "out",
            stacklevel=5,
        )
    if not used.any():
        raise ValueError(f"{op}: {name}: has no pixel that can be used")
    return used


class Pixels:
    """A checked scene: values as float32 on the host, and which pixels count."""

    def __init__(self, op: str, image: Array, mask: Array | None) -> None:
        values = host_array(op, "image", image)
        if values.ndim != 3 or 0 in values.shape:
            raise ValueError(
                f"{op}: image: must have shape (rows, cols, bands), none of them 0, "
                f"got {tuple(values.shape)}"
            )
        if values.dtype.kind not in "fiu":
            raise TypeError(f"{op}: image: must hold real numbers, got {values.dtype}")
        if values.dtype.kind in "iu":
            saturated = int((values == np.iinfo(values.dtype).max).any(axis=2).sum())
            if saturated:
                warnings.warn(
                    f"{op}: image: {saturated} pixels are saturated "
                    f"(a band at {np.iinfo(values.dtype).max})",
                    stacklevel=4,
                )
        self.op = op
        self.values: npt.NDArray[np.float32] = np.ascontiguousarray(values, dtype=np.float32)
        self.used = used_pixels(op, "image", self.values, mask)

    def spectra(self) -> npt.NDArray[np.float32]:
        """The pixels that count, (pixels, bands)."""
        return self.values[self.used]

    def map(self, scores: Array) -> npt.NDArray[np.float32]:
        """Scores of the pixels that count as a map, NaN elsewhere."""
        out = np.full(self.used.shape, np.nan, np.float32)
        out[self.used] = scores
        return out

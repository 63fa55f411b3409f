"""What all models of images do: reading, early stopping, several processes, folders."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mahal import cli, models, scenes
from mahal._detectors import DETECTORS
from mahal._detectors import Learner as LearnedDetector
from matplotlib.image import imread

torch = pytest.importorskip("torch")
pytest.importorskip("lightning")

from mahal.models import (  # noqa: E402
    ImageDetector,
    ModelError,
    TrainingError,
    _training,
    load,
)
from mahal.models._images import check_size  # noqa: E402
from mahal.models._training import Batches, Learner, train  # noqa: E402
from torch import nn  # noqa: E402


class Offset(ImageDetector):
    """Learns one number for each band, and scores the distance from it."""

    def __init__(
        self, *, epochs: int = 4, learning_rate: float = 0.1, patience: int | None = None
    ) -> None:
        self.epochs, self.learning_rate, self.patience = epochs, learning_rate, patience

    def _fit(self, pictures, progress, checkpoint, trainer):
        for picture in pictures:
            check_size(picture, 4)
        pixels = np.concatenate([p.values[p.used] for p in pictures])
        learner = _Learner(torch.from_numpy(pixels), self.learning_rate)
        train(
            learner,
            Batches(len(pixels), 64, 1, 0),
            epochs=self.epochs,
            settings=self.get_params(),
            progress=progress,
            checkpoint=checkpoint,
            trainer=trainer,
            validation=None if self.patience is None else Batches(len(pixels), 64, 1, 0),
            patience=self.patience,
        )
        self.offset_ = learner.offset.detach()
        self.steps_ = learner.steps
        self.bands_ = pictures.bands

    def _score(self, picture):
        distance = np.abs(picture.values - self.offset_.numpy()).sum(axis=2)
        return picture.map(distance)

    def _tensors(self):
        return {"offset": self.offset_}

    def _facts(self):
        return {"steps": self.steps_}

    def _restore(self, tensors, facts):
        self.offset_ = tensors["offset"]
        self.steps_ = facts["steps"]


class _Learner(Learner):
    def __init__(self, pixels, learning_rate):
        super().__init__({"pixels": pixels}, 0)
        self.offset = nn.Parameter(torch.zeros(pixels.shape[1]))
        self.learning_rate = learning_rate
        self.steps = 0

    last = None

    def on_train_epoch_start(self):
        if self.current_epoch == self.last:
            _die()
        super().on_train_epoch_start()

    def training_step(self, index):
        self.steps += 1
        return self.checked(((self.pixels[index[0]] - self.offset) ** 2).mean(), "distance")

    def validation_step(self, index):
        self.log("validation", ((self.pixels[index[0]] - self.offset) ** 2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)


@pytest.fixture
def images():
    rng = np.random.default_rng(5)
    return [rng.normal(3, 1, size=(12, 16, 2)).astype(np.float32) for _ in range(3)]


def test_fit_score_predict_and_file(images, tmp_path):
    model = Offset(epochs=20).fit(images)
    strange = images[0].copy()
    strange[4, 5] = 20
    scores = model.score(strange)
    assert np.unravel_index(scores.argmax(), scores.shape) == (4, 5)
    assert model.predict(strange)[4, 5]
    model.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.steps_ == model.steps_
    np.testing.assert_array_equal(again.score(strange), scores)
    assert isinstance(again.score(torch.from_numpy(strange)), torch.Tensor)


def test_masks(images):
    spoilt = [images[0].copy(), *images[1:]]
    spoilt[0][:, :8] = 1000
    masks = [np.ones((12, 16), np.bool_) for _ in images]
    masks[0][:, :8] = False
    model = Offset(epochs=20).fit(spoilt, masks=masks)
    np.testing.assert_allclose(model.offset_, [3, 3], atol=0.3)
    scores = model.score(spoilt[0], mask=masks[0])
    np.testing.assert_array_equal(np.isnan(scores), ~masks[0])


def test_one_image_and_no_bands(images):
    model = Offset(epochs=2).fit(images[0][..., 0])
    assert model.score(images[1][..., 0]).shape == (12, 16)
    with pytest.raises(ModelError, match="must have 1 bands"):
        model.score(images[0])
    with pytest.raises(ModelError, match="must have 1 bands"):
        model.calibrate(images)


def test_wrong_images(images):
    with pytest.raises(ValueError, match="there is none"):
        Offset().fit([])
    with pytest.raises(TypeError, match="sequence of images"):
        Offset().fit(3)
    with pytest.raises(ValueError, match=r"images\[1\]: must have 2 bands"):
        Offset().fit([images[0], images[1][..., :1]])
    with pytest.raises(ValueError, match="as many as the images"):
        Offset().fit(images, masks=[np.ones((12, 16), np.bool_)])
    with pytest.raises(TypeError, match="real numbers"):
        Offset().fit(images[0] * 1j)
    with pytest.raises(ModelError, match=r"images\[0\]: must have at least 4 rows"):
        Offset().fit(images[0][:3])


def test_a_loss_that_is_not_finite_names_step_and_tensor(images):
    model = Offset().fit(images)
    kept = model.offset_
    model.learning_rate = 1e30
    with pytest.raises(TrainingError, match=r"distance is not finite in epoch 1, step \d+"):
        model.fit(images)
    np.testing.assert_array_equal(model.offset_, kept)


def test_early_stopping_ends_a_training_that_gets_worse(images):
    steps = Offset(epochs=60, learning_rate=1.05, patience=2).fit(images).steps_
    assert steps < 60 * 9


@pytest.mark.parametrize(("patience", "kills"), [(2, (2, "end")), (9, ("end",))])
def test_early_stopping_goes_on_where_it_was_killed(images, tmp_path, monkeypatch, patience, kills):
    # Every step goes to the mean of its batch: the loss goes up and down.
    model = Offset(epochs=9, learning_rate=0.5, patience=patience)
    losses = []
    validate = _training._BestWeights.on_validation_epoch_end

    def watched(self, trainer, learner):
        validate(self, trainer, learner)
        losses.append((float(trainer.callback_metrics["validation"]), learner.offset.tolist()))

    monkeypatch.setattr(_training._BestWeights, "on_validation_epoch_end", watched)
    whole = model.fit(images).offset_.tolist()
    epochs = len(losses)
    assert whole == min(losses)[1] != losses[-1][1]
    assert epochs == 9 if patience == 9 else 3 < epochs < 9
    for kill in kills:
        with monkeypatch.context() as patched:
            if kill == "end":
                patched.setattr(_training.shutil, "rmtree", _die)
            else:
                patched.setattr(_Learner, "last", kill)
            with pytest.raises(RuntimeError, match="killed"):
                model.fit(images, checkpoint=tmp_path / "state")
        losses.clear()
        assert model.fit(images, checkpoint=tmp_path / "state").offset_.tolist() == whole
        assert len(losses) == (0 if kill == "end" else epochs - kill)


def _die(*arguments):
    raise RuntimeError("killed")


def test_callbacks_see_the_losses(images):
    from lightning.pytorch.callbacks import EarlyStopping

    stop = EarlyStopping("distance", patience=2, min_delta=0.01)
    steps = Offset(epochs=60).fit(images, trainer={"callbacks": [stop]}).steps_
    assert steps == 9 * (stop.stopped_epoch + 1)
    assert 3 <= stop.stopped_epoch < 40
    assert float(stop.best_score) == pytest.approx(1, abs=0.1)  # the variance of the pixels


def test_two_processes_learn_what_one_does(images):
    # Each takes half of every batch and the gradients are averaged.
    one = Offset().fit(images).offset_
    two = Offset().fit(images, trainer={"accelerator": "cpu", "devices": 2, "strategy": "ddp_fork"})
    np.testing.assert_allclose(two.offset_, one, rtol=1e-5)


def test_folder(tmp_path, images):
    pictures, truth = tmp_path / "images", tmp_path / "truth"
    pictures.mkdir()
    truth.mkdir()
    for k, image in enumerate(images):
        np.save(pictures / f"tile{k}.npy", image)
    mask = np.zeros((12, 16), np.uint8)
    mask[3, 4] = 255
    np.save(truth / "tile1_mask.npy", mask)
    (pictures / "notes.txt").write_text("no image")
    folder = scenes.Folder(pictures, truth)
    assert len(folder) == 3
    np.testing.assert_array_equal(folder[2], images[2])
    assert not folder.truth(0).any()
    assert np.argwhere(folder.truth(1)).tolist() == [[3, 4]]
    mask[3, 5] = 100
    np.save(truth / "tile1_mask.npy", mask)
    assert np.argwhere(folder.truth(1)).tolist() == [[3, 4]]
    assert Offset(epochs=1).fit(folder).score(folder[0]).shape == (12, 16)
    with pytest.raises(scenes.SceneError, match="has no images"):
        scenes.Folder(truth / "..", truth).paths[0]
    np.save(truth / "tile1_mask.npy", mask[:5])
    with pytest.raises(scenes.SceneError, match="must have the size"):
        folder.truth(1)


def test_command_line(tmp_path, images, monkeypatch, capsys):
    detector = LearnedDetector.of("offset", "Offset", "distance from the mean", images=True)
    monkeypatch.setitem(DETECTORS, "offset", detector)
    monkeypatch.setattr(models, "Offset", Offset, raising=False)
    normal, tested, truth = (tmp_path / name for name in ("normal", "tested", "truth"))
    for folder in (normal, tested, truth):
        folder.mkdir()
    for k, image in enumerate(images):
        np.save(normal / f"n{k}.npy", image)
        strange = image.copy()
        if k:
            strange[k, 3] = 20
            mask = np.zeros(image.shape[:2], np.uint8)
            mask[k, 3] = 1
            np.save(truth / f"t{k}_mask.npy", mask)
        np.save(tested / f"t{k}.npy", strange)
    file = tmp_path / "offset.safetensors"
    words = ["train", "offset", str(normal), "-o", str(file), "--set", "epochs=20"]
    assert cli.main(words) == 0
    assert "3 of" in capsys.readouterr().out
    assert cli.main([*words, "--anomalous", str(tested)]) != 0
    assert "--anomalous: not for Offset" in capsys.readouterr().err
    out = tmp_path / "out"
    words = ["detect", str(tested), "--model", str(file), "-o", str(out)]
    assert cli.main([*words, "--truth", str(truth)]) == 0
    assert "AUC of images" in capsys.readouterr().out
    summary = json.loads((out / "summary.json").read_text())
    assert summary["image_auc"] == 1
    assert summary["pixel_auc_mean"] == summary["pixel_auc_pooled"] == 1
    assert [row["anomalous_pixels"] for row in summary["images"]] == [0, 1, 1]
    model = load(file)
    np.testing.assert_array_equal(
        np.load(out / "t1_scores.npy"), model.score(np.load(tested / "t1.npy"))
    )
    for name in ("t1_detections.png", "roc.png"):
        assert imread(out / name).shape[0] > 200
    # Trainings with several seeds, here of other lengths.
    second = tmp_path / "longer.safetensors"
    train = ["train", "offset", str(normal), "-o", str(second), "--set", "epochs=30"]
    assert cli.main(train) == 0
    runs = tmp_path / "runs"
    several = ["detect", str(tested), "--model", str(file), "--model", str(second)]
    assert cli.main([*several, "-o", str(runs), "--truth", str(truth)]) == 0
    assert "AUC of images                    1.00000 ± 0.00000" in capsys.readouterr().out
    summary = json.loads((runs / "summary.json").read_text())
    assert summary["image_auc"] == {"mean": 1, "deviation": 0, "runs": 2}
    assert [run["run"] for run in summary["runs"]] == ["offset", "longer"]
    assert (runs / "longer" / "t1_scores.npy").exists()
    assert imread(runs / "roc.png").shape[0] > 200
    assert cli.main(["detect", str(tested / "t1.npy"), *several[2:]]) == 2
    assert "only with a folder of images" in capsys.readouterr().err
    # One image goes the way of a scene.
    assert cli.main(["detect", str(tested / "t1.npy"), "--model", str(file), "-o", f"{out}/"]) == 0
    assert json.loads((out / "t1_summary.json").read_text())["detector"] == "offset"
    assert cli.main(["detect", str(tested)]) == 2
    assert "a folder of images needs --model" in capsys.readouterr().err
    assert cli.main([*words, "--key", "x"]) == 2
    assert "--key: not for a folder of images" in capsys.readouterr().err
    assert cli.main(["detect", str(tested), "--model", str(file), "-o", str(file)]) != 0
    assert "must be a folder" in capsys.readouterr().err

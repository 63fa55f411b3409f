"""Grid search over the parameters of a model."""

from __future__ import annotations

import csv
import itertools

import numpy as np
import pytest
import scipy.io
from mahal import cli, metrics, scenes, tuning
from matplotlib.image import imread

pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    for seed in range(2):
        scene = scenes.simulate(24, 22, 8, seed=seed, targets=3)
        scipy.io.savemat(folder / f"s{seed}.mat", {"data": scene.image, "map": scene.truth})
    return sorted(folder.iterdir())


GRID = {"latent": [2, 3], "learning_rate": [1e-3, 3e-3], "runs": [1]}


def test_every_combination_is_measured(files, tmp_path):
    told = []
    settings = tuning.grid_search(
        "spectral_autoencoder", files, GRID, runs=2, output=tmp_path, report=told.append
    )
    assert len(told) == 4 * 2 * 2
    wanted = [dict(zip(GRID, v, strict=True)) for v in itertools.product(*GRID.values())]
    assert sorted(map(repr, wanted)) == sorted(repr(one.params) for one in settings)
    areas = [one.auc_df for one in settings]
    assert areas == sorted(areas, reverse=True)

    from mahal import models

    best = settings[0]
    own = []
    for file in files:
        scene = scenes.read(file)
        image = scene.image.astype(np.float64)
        for seed in range(2):
            model = models.SpectralAutoencoder(**best.params, seed=seed).fit(image)
            own.append(metrics.roc_areas(model.score(image), scene.truth).auc_df)
    assert best.auc_df == pytest.approx(np.mean(own), abs=1e-12)
    assert best.worst == pytest.approx(min(np.mean(own[:2]), np.mean(own[2:])), abs=1e-12)

    with (tmp_path / "grid.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "on the scene left out" in (tmp_path / "grid.md").read_text()
    for name in ("grid_roc.png", "grid_auc.png"):
        assert imread(tmp_path / name).shape[0] > 200
    # Started again, nothing is trained.
    (tmp_path / "grid.md").unlink()
    again = tuning.grid_search("spectral_autoencoder", files, GRID, runs=2, output=tmp_path)
    assert again == settings


def test_left_out():
    areas = np.array([[0.9, 0.1], [0.5, 0.6]])
    # The first is best on scene 0, the second on scene 1; each is judged on the other.
    np.testing.assert_array_equal(tuning.left_out(areas), [0.5, 0.1])


@pytest.mark.parametrize(
    ("name", "grid", "words"),
    [
        ("rx", GRID, "name: must be one of"),
        ("spectral_autoencoder", {}, "grid: needs at least one"),
        ("spectral_autoencoder", {"latent": []}, "grid: needs at least one"),
        ("spectral_autoencoder", {"width": [3]}, "width: no such parameter"),
        ("spectral_autoencoder", {"latent": [4, 0]}, "latent: must be"),
    ],
)
def test_wrong_grids(name, grid, words, files, tmp_path):
    with pytest.raises(ValueError, match=words):
        tuning.grid_search(name, files, grid, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(files, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["tune", "spectral-autoencoder", str(files[0]), "--grid", "latent=2,3"]
    assert cli.main([*words, "--grid", "runs=1", "--runs", "1", "-o", str(out)]) == 0
    assert "| latent | runs | AUC(D,F) |" in capsys.readouterr().out
    assert cli.main(["tune", "rx", str(files[0]), "--grid", "latent=2"]) == 2
    assert "rx has nothing to learn" in capsys.readouterr().err
    assert cli.main([*words, "--grid", "latent"]) == 2
    assert "must be NAME=A,B,..." in capsys.readouterr().err

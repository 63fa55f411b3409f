"""Tables of detectors on scenes with ground truth."""

from __future__ import annotations

import csv
import json

import mahal
import numpy as np
import pytest
import scipy.io
from mahal import benchmark, cli, metrics, scenes
from matplotlib.image import imread


@pytest.fixture
def folder(tmp_path):
    """Two scenes, the truth of one in a file of its own."""
    for seed, name in enumerate(("a", "b")):
        scene = scenes.simulate(28, 26, 12, seed=seed, targets=3)
        content = {"data": scene.image}
        if name == "a":
            content["map"] = scene.truth
        else:
            scipy.io.savemat(tmp_path / "b_gt.mat", {"map": scene.truth})
        scipy.io.savemat(tmp_path / f"{name}.mat", content)
    return tmp_path


def test_table_of_two_scenes(folder, monkeypatch):
    told = []
    rows = benchmark.run([folder], ("rx", "local_rx"), output=folder / "out", report=told.append)
    assert [(row.scene, row.detector) for row in rows] == [
        (scene, name) for scene in "ab" for name in ("distance", "angle", "rx", "local_rx")
    ]
    assert told[0] == "a: distance"
    scene = scenes.read(folder / "a.mat")
    image = scene.image.astype(float)
    centred = image - image.mean((0, 1))
    expected = {
        "distance": (centred**2).sum(2),
        "angle": mahal.spectral_angle(image, image.mean((0, 1))),
        "rx": mahal.rx(image),
        "local_rx": mahal.rx(image, window=(5, 21)),
    }
    for row in rows[:4]:
        areas = metrics.roc_areas(expected[row.detector], scene.truth)
        assert row.runs == 1
        assert row.areas["auc_df"] == (areas.auc_df, 0.0)
        assert row.areas["auc_ftau"][0] == pytest.approx(areas.auc_ftau, rel=1e-9)
        assert row.seconds > 0
    out = folder / "out"
    with (out / "table.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 8
    assert float(table[2]["AUC(D,F) mean"]) == rows[2].areas["auc_df"][0]
    text = (out / "table.md").read_text()
    assert f"| a | rx | 1 | {rows[2].areas['auc_df'][0]:.5f} |" in text
    assert imread(out / "maps.png").shape[0] > 200
    assert imread(out / "a_roc.png").shape[0] > 200
    # Started again, nothing is scored.
    monkeypatch.setattr(mahal, "rx", None)
    again = benchmark.run([folder], ("rx", "local_rx"), output=out)
    assert again == rows


def test_runs_of_what_learns(folder, monkeypatch):
    pytest.importorskip("lightning")
    from mahal import models

    seeds = []

    class Quick(models.SpectralAutoencoder):
        def __init__(self, *, seed=0):
            seeds.append(seed)
            super().__init__(runs=1, seed=seed)

    monkeypatch.setattr(models, "SpectralAutoencoder", Quick)
    (row,) = [
        row
        for row in benchmark.run(
            [folder / "a.mat"], ["spectral_autoencoder"], runs=2, output=folder / "out"
        )
        if row.detector == "spectral_autoencoder"
    ]
    assert (row.runs, seeds) == (2, [0, 1])
    scene = scenes.read(folder / "a.mat")
    areas = [
        metrics.roc_areas(Quick(seed=s).fit(scene.image).score(scene.image), scene.truth).auc_df
        for s in (0, 1)
    ]
    assert row.areas["auc_df"] == pytest.approx((np.mean(areas), np.std(areas)), rel=1e-3)


def test_a_run_of_something_else_is_done_again(folder):
    first = benchmark.run([folder / "a.mat"], [], output=folder / "out")
    notes = folder / "out" / "runs" / "a-angle-0.json"
    kept = json.loads(notes.read_text())
    kept["areas"]["auc_df"] = 0.123
    notes.write_text(json.dumps(kept))
    assert (
        benchmark.run([folder / "a.mat"], [], output=folder / "out")[1].areas["auc_df"][0] == 0.123
    )
    kept["key"]["mahal"] = "0.0.0"
    notes.write_text(json.dumps(kept))
    assert benchmark.run([folder / "a.mat"], [], output=folder / "out")[1].areas == first[1].areas


def test_wrong_arguments(folder):
    out = folder / "out"
    with pytest.raises(ValueError, match="detectors: no 'nope', has distance, angle"):
        benchmark.run([folder], ["nope"], output=out)
    with pytest.raises(ValueError, match="runs: must be a whole number of at least 1, got 0"):
        benchmark.run([folder], runs=0, output=out)
    with pytest.raises(scenes.SceneError, match="no such file or folder"):
        benchmark.run([folder / "none"], output=out)
    (folder / "empty").mkdir()
    with pytest.raises(scenes.SceneError, match="has no scene"):
        benchmark.run([folder / "empty"], output=out)
    np.save(folder / "bare.npy", np.zeros((9, 9, 3)))
    with (
        pytest.warns(UserWarning, match="bare.npy: has no ground truth and is left out"),
        pytest.raises(ValueError, match="has no scene with ground truth"),
    ):
        benchmark.run([folder / "bare.npy"], output=out)


def test_command_line(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["benchmark", "a.mat", "--detectors", "fused-rx", "-o", "o"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| scene | detector |")
    assert "| a | fused_rx | 1 |" in out
    assert (folder / "o" / "table.md").read_text() in out
    assert cli.main(["benchmark", "a.mat", "--detectors", "ace"]) == 2
    assert "no 'ace'" in capsys.readouterr().err

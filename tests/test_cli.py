import json
import os
import re
import subprocess
import sys

import mahal
import numpy as np
import pytest
import rasterio
import scipy.io
import spectral.io.envi
from mahal import cli, metrics, scenes, significance
from matplotlib.image import imread
from rasterio.transform import Affine

ROWS, COLS, BANDS = 24, 30, 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working folder of the command; inputs lie in another one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def simulated():
    return scenes.simulate(ROWS, COLS, BANDS, seed=1, targets=4)


def save_mat(path, scene, **more):
    scipy.io.savemat(path, {"data": scene.image, "map": scene.truth, **more})
    return str(path)


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def accepted(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    return dict(re.findall(r"^(\S+(?: \S+)*) {2,}(.*)$", out, re.MULTILINE)), out


def refused(capsys, folder, text, *arguments):
    """Exit code 2, one line on stderr with `text`, and no file made or changed."""
    before = contents(folder)
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("mahal: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert text in err, err
    assert contents(folder) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def test_global_rx_end_to_end(folder, capsys, simulated):
    path = save_mat(folder / "in" / "s.mat", simulated)
    rows, out = accepted(capsys, "detect", path, "--detector", "rx", "-o", "out")
    assert made(folder / "out") == [
        "s_detections.png",
        "s_roc.png",
        "s_scores.mat",
        "s_summary.json",
    ]
    scores = mahal.rx(simulated.image.astype(float))
    written = scenes.read_map(folder / "out" / "s_scores.mat")
    np.testing.assert_array_equal(written, scores)
    threshold = significance.rx_threshold(1e-3, BANDS, ROWS * COLS, background="global")
    areas = metrics.roc_areas(scores, simulated.truth)
    summary = json.loads((folder / "out" / "s_summary.json").read_text())
    assert summary["threshold"] == threshold
    assert summary["samples"] == ROWS * COLS
    assert summary["detections"] == int((scores >= threshold).sum())
    assert summary["areas"]["auc_df"] == areas.auc_df
    assert summary["files"] == [
        f"s_{n}" for n in ("scores.mat", "detections.png", "roc.png", "summary.json")
    ]
    assert rows["size"] == "24 x 30 pixels, 6 bands, uint16"
    assert rows["detector"] == "global RX"
    assert rows["samples"] == "720"
    assert rows["AUC(D,F)"] == f"{areas.auc_df:.5f}"
    assert rows["SNPR"] == f"{areas.snpr:.5f}"
    assert rows["scene"] == f"{path}, key data, truth map"
    assert imread(folder / "out" / "s_detections.png").shape[0] > 300
    columns = {len(re.match(r"(\S+(?: \S+)*)? +", line)[0]) for line in out.splitlines()}
    assert len(columns) == 1


@pytest.mark.parametrize(
    ("sizes", "window", "samples", "background"),
    [((3, 7), (3, 7), 40, "local"), ((7,), 7, 49, "global")],
)
@pytest.mark.parametrize("first", [True, False])
def test_local_rx_takes_its_law_and_samples(
    folder, capsys, simulated, sizes, window, samples, background, first
):
    np.save("in/s.npy", simulated.image)
    options = ["--window", *sizes]
    arguments = [*options, "in/s.npy"] if first else ["in/s.npy", *options]
    rows, _ = accepted(capsys, "detect", *arguments, "--false-alarm-rate", "0.01")
    assert made(folder) == ["s_detections.png", "s_scores.npy", "s_summary.json"]
    # Integer scenes are scored in float64.
    scores = mahal.rx(simulated.image.astype(float), window=window)
    np.testing.assert_array_equal(np.load("s_scores.npy"), scores)
    summary = json.loads((folder / "s_summary.json").read_text())
    expected = significance.rx_threshold(0.01, BANDS, samples, background=background)
    assert (summary["threshold"], summary["samples"]) == (expected, samples)
    assert summary["areas"] is None
    assert summary["targets"] is None
    name = " ".join(map(str, sizes))
    assert rows["detector"] == f"local RX, window {name}, border shift"


def test_border_valid_has_no_scores_outside(folder, capsys, simulated):
    np.save("in/s.npy", simulated.image)
    rows, _ = accepted(capsys, "detect", "in/s.npy", "--window", 3, 7, "--border", "valid")
    scores = np.load("s_scores.npy")
    assert np.isnan(scores).sum() == ROWS * COLS - (ROWS - 6) * (COLS - 6)
    assert rows["samples"] == "40"
    assert "of 432 scored" in rows["detections"]
    assert rows["at the edge"] == "288 pixels"
    assert "masked" not in rows


def test_mask_lowers_the_samples_and_is_not_scored(folder, capsys, simulated):
    use = np.ones((ROWS, COLS), dtype=np.uint8)
    use[:5] = 0
    path = save_mat(folder / "in" / "s.mat", simulated, use=use)
    rows, _ = accepted(capsys, "detect", path, "--mask-key", "use", "--window", 3, 9)
    scores = scenes.read_map("s_scores.mat")
    np.testing.assert_array_equal(np.isnan(scores), use == 0)
    counts = significance.window_samples((ROWS, COLS), (3, 9), mask=use.astype(bool))
    assert rows["masked"] == "150 pixels"
    assert rows["samples"] == f"{counts[use == 1].min()} to {counts.max()}"
    threshold = significance.rx_threshold(1e-3, BANDS, counts)
    summary = json.loads((folder / "s_summary.json").read_text())
    assert summary["detections"] == int((scores >= threshold).sum())
    rows, _ = accepted(capsys, "detect", path)
    assert rows["not used"] == "use (24 x 30)"


def test_pixel_that_is_not_finite_is_counted(folder, capsys, simulated):
    image = simulated.image.astype(np.float64)
    image[3, 4, 2] = np.nan
    np.save("in/s.npy", image)
    rows, _ = accepted(capsys, "detect", "in/s.npy")
    assert rows["not finite"] == "1 pixels"
    assert rows["samples"] == "719"


def test_singular_pixels_are_counted(folder, capsys, simulated):
    image = simulated.image.astype(np.float64)
    image[:9, :9] = 7.0
    np.save("in/s.npy", image)
    rows, _ = accepted(capsys, "detect", "in/s.npy", "--window", 1, 5, "--singular", "nan")
    count = int(np.isnan(np.load("s_scores.npy")).sum())
    assert count > 0
    assert rows["singular"] == f"{count} pixels (rule: nan)"
    os.remove("s_scores.npy")
    before = contents(folder)
    refused(capsys, folder, "rx: ", "detect", "in/s.npy", "--window", 1, 5, "--singular", "raise")
    assert contents(folder) == before


@pytest.mark.parametrize("kinds", [("uint16", "uint16"), ("uint16", "float64"), ("f8", "f4")])
def test_background_of_another_scene(folder, capsys, simulated, kinds):
    other = scenes.simulate(20, 20, BANDS, seed=9, targets=0)
    np.save("in/s.npy", simulated.image.astype(kinds[0]))
    scipy.io.savemat("in/b.mat", {"data": other.image.astype(kinds[1])})
    rows, _ = accepted(capsys, "detect", "in/s.npy", "--background", "in/b.mat")
    expected = mahal.rx(simulated.image.astype(float), background=other.image.astype(float))
    written = np.load("s_scores.npy")
    np.testing.assert_allclose(written, expected, rtol=1e3 * np.finfo(np.float32).eps)
    assert rows["samples"] == "400"
    assert "background in/b.mat" in rows["detector"]
    summary = json.loads((folder / "s_summary.json").read_text())
    assert summary["threshold"] == significance.rx_threshold(1e-3, BANDS, 400)


def test_georeferenced_scenes_give_georeferenced_scores(folder, capsys, simulated):
    place = {"crs": "EPSG:32611", "transform": Affine(3.5, 0, 480805.4, 0, -3.5, 3618830.5)}
    size = {"height": ROWS, "width": COLS, "count": BANDS, "dtype": "uint16"}
    with rasterio.open("in/s.tif", "w", driver="GTiff", **size, **place) as file:
        file.write(np.moveaxis(simulated.image, -1, 0))
    info = ["UTM", "1.0", "1.0", "480805.4", "3618830.5", "3.5", "3.5", "11", "North"]
    spectral.io.envi.save_image(
        "in/e.hdr", simulated.image, interleave="bil", metadata={"map info": info}
    )
    for name, data in (("s.tif", "s.tif"), ("e.hdr", "e.img")):
        accepted(capsys, "detect", f"in/{name}", "-o", "out/r")
        with (
            rasterio.open(f"in/{data}") as before,
            rasterio.open(f"out/r_scores{data[1:]}") as after,
        ):
            assert after.transform == before.transform == place["transform"]
            assert after.crs == before.crs
            assert before.crs is not None


def test_demo_needs_no_data(folder, capsys):
    rows, _ = accepted(capsys, "detect", "--demo")
    assert made(folder) == [
        "mahal-demo_detections.png",
        "mahal-demo_roc.png",
        "mahal-demo_scores.npy",
        "mahal-demo_summary.json",
    ]
    assert float(rows["AUC(D,F)"]) > 0.9
    found, targets = map(int, re.match(r"(\d+) of (\d+)", rows["targets"]).groups())
    assert 0.5 * targets < found <= targets


def test_no_detector_named(folder, capsys, simulated):
    path = save_mat(folder / "in" / "s.mat", simulated)
    rows, _ = accepted(capsys, "detect", path, "--false-alarm-rate", 0.02)
    scores = mahal.fused_rx(simulated.image.astype(float))
    np.testing.assert_array_equal(scenes.read_map(folder / "s_scores.mat"), scores)
    threshold = significance.score_tail(scores).threshold(0.02)
    summary = json.loads((folder / "s_summary.json").read_text())
    assert (summary["threshold"], summary["threshold_rule"]) == (threshold, "tail of the scores")
    assert summary["detections"] == (scores >= threshold).sum()
    assert rows["detector"] == "fused rx"
    # What only RX has asks for RX.
    for options in (["--window", 3, 7], ["--estimator", "tyler"], ["--uncentred"]):
        rows, _ = accepted(capsys, "detect", path, *options)
        assert "RX" in rows["detector"]
    refused(
        capsys, folder, "--window: not for fused_rx",
        "detect", path, "--detector", "fused_rx", "--window", 3, 7,
    )  # fmt: skip


def test_truth_without_targets_gives_no_roc(folder, capsys, simulated):
    scipy.io.savemat("in/s.mat", {"data": simulated.image, "map": np.zeros((ROWS, COLS))})
    rows, _ = accepted(capsys, "detect", "in/s.mat")
    assert rows["targets"] == "0 of 0 pixels"
    assert rows["areas"].startswith("none")
    assert "s_roc.png" not in made(folder)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (None, "s_scores.npy"),
        ("out", "out/s_scores.npy"),
        ("out/", "out/s_scores.npy"),
        ("out/run1", "out/run1_scores.npy"),
        ("run1.v2", "run1.v2_scores.npy"),
        (".", "s_scores.npy"),
    ],
)
def test_output_is_a_folder_or_the_beginning_of_names(folder, capsys, simulated, output, expected):
    np.save("in/s.npy", simulated.image)
    accepted(capsys, "detect", "in/s.npy", *(() if output is None else ("-o", output)))
    assert (folder / expected).is_file()


def test_existing_results_are_replaced(folder, capsys, simulated):
    np.save("in/s.npy", simulated.image)
    (folder / "s_scores.npy").write_text("old")
    accepted(capsys, "detect", "in/s.npy")
    assert np.load("s_scores.npy").shape == (ROWS, COLS)


def test_evaluate_equals_the_metrics(folder, capsys, simulated):
    scene = save_mat(folder / "in" / "s.mat", simulated)
    accepted(capsys, "detect", scene)
    before = made(folder)
    rows, _ = accepted(capsys, "evaluate", "s_scores.mat", scene)
    areas = metrics.roc_areas(scenes.read_map("s_scores.mat"), simulated.truth)
    for field, name in cli.AREAS.items():
        assert rows[name] == f"{getattr(areas, field):.5f}"
    assert rows["pixels"] == f"{areas.positives} target, {areas.negatives} background"
    assert made(folder) == before
    rows, _ = accepted(
        capsys, "evaluate", "s_scores.mat", scene, "--thresholds", 101, "-o", "out/e"
    )
    grid = metrics.roc_areas(
        scenes.read_map("s_scores.mat"), simulated.truth, thresholds=101
    ).auc_df
    assert rows["AUC(D,F)"] == f"{grid:.5f}"
    assert rows["thresholds"] == "101"
    assert made(folder / "out") == ["e_roc.png", "e_summary.json"]
    summary = json.loads((folder / "out" / "e_summary.json").read_text())
    assert summary["areas"]["auc_df"] == grid


def test_evaluate_counts_what_has_no_score(folder, capsys):
    scores = np.arange(12.0).reshape(3, 4)
    scores[0, 0] = np.nan
    np.save("in/scores.npy", scores)
    np.save("in/truth.npy", scores > 8)
    rows, _ = accepted(capsys, "evaluate", "in/scores.npy", "in/truth.npy")
    assert rows["not scored"] == "1 pixels"
    assert rows["AUC(D,F)"] == "1.00000"


def test_info_lists_what_the_library_says(capsys):
    rows, _ = accepted(capsys, "info")
    assert rows["version"] == mahal.__version__


def test_files_that_cannot_be_used(folder, capsys, simulated):
    scene = save_mat(folder / "in" / "s.mat", simulated)
    refused(capsys, folder, "in/none.mat: no such file", "detect", "in/none.mat")
    (folder / "in" / "x.foo").write_bytes(b"abc")
    refused(capsys, folder, "in/x.foo: unknown kind of file", "detect", "in/x.foo")
    (folder / "in" / "x.mat").write_bytes(b"abc" * 100)
    refused(capsys, folder, "in/x.mat: cannot be read as a MATLAB", "detect", "in/x.mat")
    np.save("in/s.npy", simulated.image)
    os.truncate("in/s.npy", os.path.getsize("in/s.npy") // 2)
    refused(capsys, folder, "in/s.npy: cannot be read as a NumPy", "detect", "in/s.npy")
    spectral.io.envi.save_image("in/e.hdr", simulated.image)
    os.truncate("in/e.img", 1000)
    refused(capsys, folder, "in/e.img: truncated, needs 8640 bytes", "detect", "in/e.hdr")
    refused(capsys, folder, "key: no variable 'x', has data", "detect", scene, "--key", "x")
    refused(capsys, folder, "map_key: no variable 'x'", "detect", scene, "--map-key", "x")
    refused(capsys, folder, "mask_key: no variable 'x'", "detect", scene, "--mask-key", "x")
    refused(capsys, folder, "in/t.png: no such file", "detect", scene, "--truth", "in/t.png")
    refused(capsys, folder, "in/b.npy: no such", "detect", scene, "--background", "in/b.npy")
    np.save("in/b.npy", simulated.image[..., :3])
    refused(
        capsys,
        folder,
        "must have the 6 bands of the scene, got 3",
        "detect",
        scene,
        "--background",
        "in/b.npy",
    )
    np.save("in/flat.npy", simulated.image[0, :, 0])
    refused(capsys, folder, "image must be (rows, cols, bands), got", "detect", "in/flat.npy")
    np.save("in/t.npy", simulated.truth[:5])
    refused(
        capsys,
        folder,
        "truth must have the size of the image 24 x 30, got 5 x 30",
        "detect",
        scene,
        "--truth",
        "in/t.npy",
    )
    refused(
        capsys,
        folder,
        "truth: must have the shape of scores",
        "evaluate",
        scene,
        "in/t.npy",
        "--key",
        "map",
    )
    refused(capsys, folder, "key: no variable 'x'", "evaluate", scene, scene, "--key", "x")
    refused(capsys, folder, "thresholds: must be", "evaluate", scene, scene, "--thresholds", 1)


@pytest.mark.parametrize("command", ["detect", "evaluate"])
@pytest.mark.parametrize("output", ["none/", "none/x", "in/s.mat/x"])
def test_output_folder_that_does_not_exist_stops_before_any_work(
    folder, capsys, simulated, monkeypatch, command, output
):
    scene = save_mat(folder / "in" / "s.mat", simulated)

    def unexpected(*args, **kwargs):
        raise AssertionError("work began")

    monkeypatch.setattr(scenes, "read", unexpected)
    monkeypatch.setattr(scenes, "read_map", unexpected)
    inputs = [scene] if command == "detect" else [scene, scene]
    refused(capsys, folder, "--output: folder", command, *inputs, "-o", output)


def test_results_must_not_replace_the_scene(folder, capsys, simulated):
    np.save("in/s_scores.npy", simulated.image)
    refused(
        capsys,
        folder,
        "--output: must not replace an input file",
        "detect",
        "in/s_scores.npy",
        "-o",
        "in/s",
    )


@pytest.mark.parametrize(
    "sizes", [(4,), (2, 7), (3, 8), (7, 3), (5, 5), (3, 25), (25,), (-3, 7), (0,), (1, 1)]
)
def test_windows_that_break_the_rule(folder, capsys, simulated, sizes):
    np.save("in/s.npy", simulated.image)
    refused(capsys, folder, "window: ", "detect", "in/s.npy", "--window", *sizes)


def test_too_few_samples_for_the_bands(folder, capsys):
    image = scenes.simulate(12, 12, 30, targets=0).image
    np.save("in/s.npy", image)
    refused(capsys, folder, "rx: ", "detect", "in/s.npy", "--window", 1, 5)
    np.save("in/s.npy", image[:5, :6])
    refused(capsys, folder, "rx: ", "detect", "in/s.npy")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["guess"], "invalid choice: 'guess'"),
        (["detect"], "needs either SCENE or --demo"),
        (["detect", "s.mat", "--demo"], "needs either SCENE or --demo"),
        (["detect", "--demo", "--key", "data"], "--key: not for --demo"),
        (["detect", "--demo", "--mask-key", "use"], "--mask-key: not for --demo"),
        (["detect", "--demo", "--truth", "t.npy"], "--truth: not for --demo"),
        (["detect", "--demo", "--window", "3", "7", "--background", "b.npy"], "exclude each other"),
        (["detect", "--demo", "--window"], "must be one size or INNER OUTER, got nothing"),
        (["detect", "--demo", "--window", "1", "3", "5"], "INNER OUTER, got 1,3,5"),
        (["detect", "--demo", "--window", "x"], "--window: must be one size or INNER OUTER"),
        (["detect", "--demo", "--false-alarm-rate", "0"], "more than 0 and less than 1, got 0"),
        (["detect", "--demo", "--false-alarm-rate", "no"], "more than 0 and less than 1, got no"),
        (["detect", "--demo", "--threads", "0"], "must be an integer of at least 1, got 0"),
        (["detect", "--demo", "--threads", "-2"], "must be an integer of at least 1, got -2"),
        (["detect", "--demo", "--border", "wrap"], "invalid choice: 'wrap'"),
        (["detect", "--demo", "--detector", "nope"], "no 'nope', has rx, fused_rx"),
        (["detect", "--demo", "--no-such"], "--no-such"),
        (["evaluate", "a.npy"], "the following arguments are required: TRUTH"),
    ],
)
def test_command_lines_that_cannot_be_used(folder, capsys, arguments, text):
    refused(capsys, folder, text, *arguments)


@pytest.mark.parametrize("error", [OSError(28, "No space left"), MemoryError("too\nlarge")])
def test_failure_while_writing_leaves_nothing(folder, capsys, simulated, monkeypatch, error):
    np.save("in/s.npy", simulated.image)
    (folder / "s_scores.npy").write_text("old")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(cli.pictures, "save", fail)
    text = str(error).replace("\n", " ")
    refused(capsys, folder, text, "detect", "in/s.npy")
    assert made(folder) == ["s_scores.npy"]


def test_interrupt_leaves_nothing(folder, capsys, simulated, monkeypatch):
    np.save("in/s.npy", simulated.image)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(mahal, "fused_rx", interrupt)
    before = sorted(folder.rglob("*"))
    code, out, err = run(capsys, "detect", "in/s.npy")
    assert (code, out, err) == (130, "", "mahal: interrupted, nothing was written\n")
    assert sorted(folder.rglob("*")) == before


def test_missing_library_is_reported_before_the_work(folder, capsys, simulated, monkeypatch):
    np.save("in/s.npy", simulated.image)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(mahal, "fused_rx", None)
    refused(capsys, folder, "pip install mahal[cli]", "detect", "in/s.npy")


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_progress_waits_a_moment_and_then_counts_on_one_line():
    now = [0.0]
    terminal = Terminal()
    progress = cli._Progress(terminal, clock=lambda: now[0])
    progress(1, 100)
    now[0] = 0.4
    progress(10, 100)
    assert terminal.text == ""
    now[0] = 1.0
    progress(25, 100)
    assert terminal.text == "\rscoring  25 %, 3 s left  "
    progress(26, 100)
    assert terminal.text.count("scoring") == 1
    progress.clear()
    assert terminal.text.endswith("\r")
    assert "\n" not in terminal.text


def test_progress_reaches_the_detector_only_on_a_terminal(folder, capsys, simulated, monkeypatch):
    np.save("in/s.npy", simulated.image)
    seen = []
    rx = mahal.rx

    def spy(*args, progress, **kwargs):
        seen.append(progress)
        return rx(*args, **kwargs)

    monkeypatch.setattr(mahal, "rx", spy)
    accepted(capsys, "detect", "in/s.npy", "--window", 3, 7)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    accepted(capsys, "detect", "in/s.npy", "--window", 3, 7)
    assert seen[0] is None
    assert isinstance(seen[1], cli._Progress)


def test_version_and_help_leave_with_zero(capsys):
    for arguments, text in ((["--version"], mahal.__version__), (["detect", "-h"], "INNER OUTER")):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_command_in_a_process_of_its_own(folder):
    program = "import sys; from mahal.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "detect", "none.mat"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "mahal: error: none.mat: no such file\n"

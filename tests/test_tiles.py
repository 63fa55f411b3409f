"""`mahal detect` in tiles: the scores of the whole scene, and runs that go on."""

import json
import os
import re
import sys
from pathlib import Path

import mahal
import numpy as np
import pytest
from mahal import cli, significance

zarr = pytest.importorskip("zarr")
pytest.importorskip("dask.array")
pytest.importorskip("scipy")

from mahal.blocks import _stream  # noqa: E402

ROWS, COLS, BANDS = 70, 83, 5


@pytest.fixture(scope="module")
def image():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(BANDS, BANDS))
    values = random.normal(size=(ROWS, COLS, BANDS)) @ mixing + 20
    values[33, 41] += 30
    return values.astype(np.float32)


@pytest.fixture
def folder(tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    _stream._source.cache_clear()
    save("scene.zarr", image)
    return tmp_path


def save(path, values, chunks=(16, 25, BANDS), **attrs):
    array = zarr.create_array(path, shape=values.shape, chunks=chunks, dtype=values.dtype)
    array[...] = values
    array.attrs.update(attrs)


def run(capsys, *arguments):
    code = cli.main(["detect", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def detected(capsys, *arguments):
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    rows = dict(re.findall(r"^(\S+(?: \S+)*) {2,}(.*)$", out, re.MULTILINE))
    return zarr.open_group(rows["written"], mode="r"), rows


def test_local_rx_in_tiles_has_the_scores_and_detections_of_the_whole(folder, image, capsys):
    found, rows = detected(
        capsys,
        "scene.zarr",
        "--window",
        "3",
        "11",
        "--tile",
        "24",
        "--threads",
        "2",
        "-o",
        "o.zarr",
    )
    wanted = mahal.rx(image, window=(3, 11))
    np.testing.assert_allclose(found["scores"][...], wanted, rtol=2e-5)
    level = significance.rx_threshold(1e-3, BANDS, 112, background="local")
    np.testing.assert_array_equal(found["detections"][...], found["scores"][...] >= level)
    assert found["detections"][33, 41]
    summary = found.attrs["summary"]
    assert summary["threshold"] == pytest.approx(float(level))
    assert summary["pixels_scored"] == ROWS * COLS
    assert summary["detections"] == int(found["detections"][...].sum())
    assert summary["tiles"] == 12
    assert rows["tiles"] == "12 of 24 x 24 pixels"
    assert found["scores"].chunks == (24, 24)
    assert found["scores"].metadata.dimension_names == ("y", "x")
    assert "moments" not in found


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--detector", "rx"], lambda x: mahal.rx(x)),
        (["--detector", "rx", "--uncentred"], lambda x: mahal.rx(x, center=False)),
        (["--detector", "ace", "--target", "3,4"], lambda x: mahal.ace(x, x[3, 4])),
        (["--detector", "cem", "--target", "3,4"], lambda x: mahal.cem(x, x[3, 4])),
        (
            ["--detector", "spectral-angle", "--target", "3,4"],
            lambda x: -mahal.spectral_angle(x, x[3, 4]),
        ),
        (
            ["--detector", "matched-filter", "--target", "3,4", "--window", "9"],
            lambda x: mahal.matched_filter(x, x[3, 4], window=9, normalized=True),
        ),
        (
            ["--window", "9", "--estimator", "oas", "--border", "valid"],
            lambda x: mahal.rx(x, window=9, estimator="oas", border="valid"),
        ),
        ([], lambda x: mahal.fused_rx(x)),
    ],
)
def test_every_detector_has_the_scores_of_the_whole(folder, image, capsys, arguments, wanted):
    found, _ = detected(capsys, "scene.zarr", *arguments, "--tile", "32")
    np.testing.assert_allclose(found["scores"][...], wanted(image), rtol=3e-5, atol=2e-5)
    assert not np.isnan(found.attrs["summary"]["threshold"])
    assert "local_rx" not in found


def test_declared_gaps_raise_the_threshold_beside_them(folder, image, capsys):
    values = image.copy()
    values[:, :30] = -1
    save("holes.zarr", values, nodata=-1.0)
    found, rows = detected(capsys, "holes.zarr", "--window", "1", "7", "--tile", "20")
    used = np.ones((ROWS, COLS), bool)
    used[:, :30] = False
    wanted, states = mahal.rx(image, window=(1, 7), mask=used, return_status=True)
    np.testing.assert_array_equal(found["status"][...], states)
    # Windows of hardly more samples than bands are conditioned badly.
    np.testing.assert_allclose(found["scores"][...], wanted, rtol=2e-4)
    counts = significance.window_samples((ROWS, COLS), (1, 7), mask=used)
    level = np.full(counts.shape, np.nan)
    level[used] = significance.rx_threshold(1e-3, BANDS, counts[used], background="local")
    assert len(np.unique(counts[used])) > 3
    np.testing.assert_array_equal(found["detections"][...], found["scores"][...] >= level)
    assert rows["left out"] == f"{30 * ROWS} pixels"


def test_integers_are_scored_in_double_precision(folder, image, capsys):
    np.save("scene.npy", (100 * image).astype(np.uint16))
    found, _ = detected(capsys, "scene.npy", "--tile", "40", "--detector", "rx")
    assert found["scores"].dtype == np.float64
    wanted = mahal.rx((100 * image).astype(np.uint16).astype(np.float64))
    np.testing.assert_allclose(found["scores"][...], wanted, rtol=1e-10)


@pytest.mark.parametrize(
    ("stage", "detector"), [("tile_statistics", "rx"), ("tile_scores", "fused-rx")]
)
def test_an_interrupted_run_goes_on_without_doing_tiles_again(
    folder, image, capsys, monkeypatch, stage, detector
):
    arguments = ("scene.zarr", "--detector", detector, "--tile", "32", "--threads", "1")
    whole, _ = detected(capsys, *arguments, "-o", "whole.zarr")
    task, calls = getattr(_stream, stage), []

    def interrupted(job, tile, *known):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(tile)
        task(job, tile, *known)

    monkeypatch.setattr(_stream, stage, interrupted)
    code, out, err = run(capsys, *arguments, "-o", "cut.zarr")
    assert code == 130
    assert out == ""
    assert "keeps the tiles that are finished" in err
    assert err.count("\n") == 1

    def once(job, tile, *known):
        assert tile not in calls
        calls.append(tile)
        task(job, tile, *known)

    monkeypatch.setattr(_stream, stage, once)
    found, rows = detected(capsys, *arguments[:-4], "--threads", "1", "-o", "cut.zarr")
    assert sorted(calls) == [(row, col) for row in range(3) for col in range(3)]
    assert rows["found"].startswith("5 finished" if stage == "tile_statistics" else "14 finished")
    for name in ("scores", "status", "detections"):
        np.testing.assert_array_equal(found[name][...], whole[name][...])
    # A run that is complete is only told.
    monkeypatch.setattr(_stream, stage, None)
    _, again = detected(capsys, *arguments, "-o", "cut.zarr")
    assert again == rows


def test_the_result_does_not_depend_on_the_threads(folder, capsys):
    for threads in (1, 3):
        found, _ = detected(
            capsys, "scene.zarr", "--tile", "42", "--threads", threads, "-o", f"{threads}.zarr"
        )
    first = zarr.open_group("1.zarr", mode="r")
    np.testing.assert_array_equal(first["scores"][...], found["scores"][...])


def test_default_tiles_are_whole_pieces_that_fit(folder, image, monkeypatch, capsys):
    found, _ = detected(capsys, "scene.zarr", "--window", "9", "--threads", "1")
    assert found.attrs["tile"] == COLS
    # Room for 60 x 60 pixels with what their windows reach.
    monkeypatch.setattr(_stream, "MEMORY", 60**2 * 5 * BANDS * 4)
    found, _ = detected(capsys, "scene.zarr", "--window", "9", "--threads", "1", "-o", "small.zarr")
    assert found.attrs["tile"] == 50


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 40])
def test_the_median_of_a_stored_map_is_exact(tmp_path, kind, count):
    job = _stream.Job(
        "", None, "", "rx", None, None, None, "shift", "load", "scm", True, 1e-3,
        7, 9, 1, "<f4", None, 4,
    )  # fmt: skip
    values = np.full((7, 9), np.nan, kind)
    values.flat[:count] = np.random.default_rng(count).gamma(0.5, size=count)
    values.flat[: count // 3] = 0
    array = zarr.create_array(str(tmp_path / "map"), data=values, chunks=(4, 4))
    wanted = np.median(values.flat[:count]) if count else 0
    assert _stream._median(job, array) == wanted


def test_a_model_scores_in_tiles(folder, image, capsys):
    torch = pytest.importorskip("torch")
    pytest.importorskip("lightning")
    from mahal.models import SpectralAutoencoder

    torch.set_num_threads(1)
    model = SpectralAutoencoder(latent=2, epochs=1, runs=2, score_kind="mahalanobis").fit(image)
    model.save("model.safetensors")
    found, rows = detected(capsys, "scene.zarr", "--model", "model.safetensors", "--tile", "32")
    np.testing.assert_allclose(found["scores"][...], model.score(image), rtol=1e-4)
    level = model.threshold(1e-3)
    assert found.attrs["summary"]["threshold"] == pytest.approx(level)
    np.testing.assert_array_equal(found["detections"][...], found["scores"][...] >= level)
    assert "tail of the scores of the training" in rows["threshold"]


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["gone.zarr"], "gone.zarr: no such file"),
        (["scene.zarr", "-o", "x.tif"], "--output: must end in .zarr"),
        (["scene.zarr", "-o", "scene.zarr"], "must not replace an input file"),
        (["scene.zarr", "-o", "no/x.zarr"], "folder no does not exist"),
        (["scene.zarr", "--truth", "a.npy"], "--truth: not for a scene in tiles"),
        (["scene.zarr", "--false-discovery-rate", "0.1"], "--false-discovery-rate: not for"),
        (["scene.zarr", "--estimator", "tyler"], "--estimator: needs --window"),
        (["scene.zarr", "--detector", "ace"], "--target: ace needs one"),
        (["scene.zarr", "--detector", "cem", "--window", "9"], "--window: not for cem"),
        (["scene.zarr", "--detector", "ace", "--target", "99,0"], "must lie in the 70 x 83"),
        (["scene.zarr", "--detector", "mtgan"], "has to be trained first"),
        (["scene.zarr", "--window", "4"], "window"),
        (["scene.zarr", "--window", "99"], "window"),
        (["scene.zarr", "--key", "a"], "key: a Zarr array has none"),
        (["scene.zarr", "--scheduler", "nowhere"], "--scheduler: no answer from nowhere"),
    ],
)
def test_what_cannot_be_done_in_tiles_is_one_line(folder, capsys, arguments, rule):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("mahal: error: ")
    assert err.count("\n") == 1
    assert rule in err


def test_another_run_does_not_touch_the_output(folder, capsys):
    detected(capsys, "scene.zarr", "--tile", "32", "--window", "9", "-o", "o.zarr")
    code, _, err = run(capsys, "scene.zarr", "--tile", "32", "--window", "11", "-o", "o.zarr")
    assert code == 2
    assert "not of a run with the same scene and options" in err
    code, _, err = run(capsys, "scene.zarr", "--tile", "16", "--window", "9", "-o", "o.zarr")
    assert code == 2
    assert "--tile: the run that is there has tiles of 32" in err


def test_xarray_opens_the_output(folder, image, capsys):
    xarray = pytest.importorskip("xarray")
    source = xarray.DataArray(
        image,
        dims=("y", "x", "band"),
        coords={"y": np.arange(ROWS) * 2.0, "x": np.arange(COLS) + 0.5},
        attrs={"crs": "EPSG:32633"},
        name="radiance",
    )
    source.to_zarr("labelled.zarr", consolidated=False)
    detected(capsys, "labelled.zarr", "--window", "9", "-o", "o.zarr")
    found = xarray.open_zarr("o.zarr", consolidated=False)
    assert found["scores"].dims == ("y", "x")
    assert found["scores"].attrs["crs"] == "EPSG:32633"
    xarray.testing.assert_equal(found["y"], source["y"])
    wanted = mahal.rx(image, window=9)[5, 7]
    assert float(found["scores"].sel(y=10, x=7.5)) == pytest.approx(float(wanted), rel=1e-4)


def test_the_summary_is_json(folder, capsys):
    found, _ = detected(capsys, "scene.zarr", "--window", "9")
    text = json.dumps(dict(found.attrs))
    assert json.loads(text)["complete"] is True


def test_a_cluster_gives_what_threads_give(folder, capsys):
    distributed = pytest.importorskip("distributed")
    whole, _ = detected(capsys, "scene.zarr", "--tile", "42", "-o", "whole.zarr")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        found, _ = detected(
            capsys, "scene.zarr", "--tile", "42", "--scheduler", cluster.scheduler_address
        )
    np.testing.assert_array_equal(found["scores"][...], whole["scores"][...])


def die_once(job, tile):
    """The statistics of a tile, but the first worker that gets here dies."""
    try:
        (Path(job.output) / "died").touch(exist_ok=False)
    except FileExistsError:
        return _stream.tile_statistics(job, tile)
    os._exit(1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_loses_no_tile(folder, capsys, monkeypatch):
    distributed = pytest.importorskip("distributed")
    whole, _ = detected(capsys, "scene.zarr", "--tile", "32", "-o", "whole.zarr")
    task = _stream._run

    def run_with_death(job, stage, call, *rest):
        return task(job, stage, die_once if call is _stream.tile_statistics else call, *rest)

    monkeypatch.setattr(_stream, "_run", run_with_death)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        cluster.get_client().run(sys.path.append, str(Path(__file__).parent))
        code, _, err = run(
            capsys, "scene.zarr", "--tile", "32", "-o", "o.zarr",
            "--scheduler", cluster.scheduler_address,
        )  # fmt: skip
    assert code == 0, err
    assert (folder / "o.zarr" / "died").exists()
    found = zarr.open_group("o.zarr", mode="r")
    np.testing.assert_array_equal(found["scores"][...], whole["scores"][...])

"""Detectors on public scenes against printed and independently measured figures.

The scenes are not part of the project; without them the tests are skipped.
"""

import importlib.util
import sys
import warnings
from pathlib import Path

import mahal
import numpy as np
import pytest
from mahal import cli, metrics, scenes
from mahal.ops._window_gradients import window_scores_backward
from mahal.testing import backend, reference_window_gradients, tolerance
from scipy import stats


def load_bench(name):
    path = Path(__file__).resolve().parents[1] / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = load_bench("real_scenes")
radar_bench = load_bench("sar_scenes")
SOURCES = {Path(source.file).name: source for source in bench.SOURCES}
HALF_DIGIT = 0.5e-5  # figures with five decimals

# Global RX: AUC(D,F) and AUC(F,tau), exact, on raw digital numbers in float64.
GLOBAL = {
    "hydice-100x80-19px.mat": (0.97628, 0.03798),
    "abu-urban-2.mat": (0.99463, 0.01351),
    "abu-urban-4.mat": (0.98872, 0.01140),
    "abu-airport-1.mat": (0.82209, 0.04232),
    "abu-beach-1.mat": (0.98072, 0.00652),
    "sandiego-57px.mat": (0.90547, 0.03806),
    "muufl-gulfport-crop-269px.mat": (0.99195, 0.03564),
    "hydice-autoad-17px.mat": (0.99324, 0.03304),
    "pavia-105x120-43px.mat": (0.99821, 0.02330),
    "SDData.hdr": (0.91059, 0.02959),
    "LHData.hdr": (0.99101, 0.07973),
}

# Local RX, window (5, 21), AUC(D,F): one float64 Cholesky factorisation per pixel in a plain loop.
LOCAL = {
    "hydice-100x80-19px.mat": 0.99331,
    "abu-urban-2.mat": 0.92836,
    "abu-urban-4.mat": 0.97649,
    "abu-airport-1.mat": 0.86148,
    "abu-beach-1.mat": 0.97037,
    "sandiego-57px.mat": 0.79491,
    "muufl-gulfport-crop-269px.mat": 0.77657,
    "hydice-autoad-17px.mat": 0.99802,
    "pavia-105x120-43px.mat": 0.99597,
    "SDData.hdr": 0.79253,
    "LHData.hdr": 0.97979,
}


@pytest.fixture(scope="session")
def folder(data_dir):
    return data_dir / "hyperspectral"


@pytest.fixture(scope="module")
def measured(folder):
    """Figures of each scene, measured once."""
    found = {}

    def measure(name):
        if name not in found:
            source = SOURCES[name]
            found[name] = bench.measure(bench.read(folder, source), source)
        return found[name]

    return measure


@pytest.mark.parametrize("name", [n for n, s in SOURCES.items() if s.printed_df is not None])
def test_global_rx_reproduces_the_printed_row(measured, name):
    row = measured(name)
    assert round(row["global_df_1001"], 5) == row["printed_df"]
    assert round(row["global_ftau"], 5) == row["printed_ftau"]


@pytest.mark.parametrize("name", GLOBAL)
def test_global_rx_areas(measured, name):
    row = measured(name)
    assert (row["global_df"], row["global_ftau"]) == pytest.approx(GLOBAL[name], abs=HALF_DIGIT)


@pytest.mark.parametrize("name", LOCAL)
def test_local_rx_areas(measured, name):
    row = measured(name)
    assert row["local_singular"] == 0
    # The area counts pairs of pixels: rounding can only swap pairs whose scores nearly tie.
    assert row["local_df"] == pytest.approx(LOCAL[name], abs=2 * HALF_DIGIT)


@pytest.mark.parametrize("name", GLOBAL)
def test_scores_of_global_rx_sum_to_bands_times_samples_less_one(folder, name):
    image = bench.read(folder, SOURCES[name]).image.astype(np.float64)
    rows, cols, bands = image.shape
    covariance = np.cov(image.reshape(-1, bands), rowvar=False)
    bound = 8 * bands * np.finfo(np.float64).eps * np.linalg.cond(covariance)
    assert mahal.rx(image).sum() == pytest.approx(bands * (rows * cols - 1), rel=bound)


@pytest.mark.parametrize("name", ["hydice-100x80-19px.mat", "abu-urban-2.mat", "abu-airport-1.mat"])
@pytest.mark.parametrize("detector", [mahal.ace, mahal.matched_filter, mahal.cem])
def test_knowing_the_target_finds_more_than_rx(folder, name, detector):
    scene = bench.read(folder, SOURCES[name])
    image = scene.image.astype(np.float64)
    target = image[scene.truth].mean(axis=0)
    areas = metrics.roc_areas(detector(image, target), scene.truth)
    assert areas.auc_df > GLOBAL[name][0]


@pytest.mark.parametrize("name", ["sandiego-57px.mat", "hydice-autoad-17px.mat"])
def test_knowing_the_target_finds_more_than_rx_in_windows_too(folder, name):
    scene = bench.read(folder, SOURCES[name])
    image = scene.image.astype(np.float32)
    target = image[scene.truth].mean(axis=0)
    scores = mahal.ace(image, target, window=(5, 21))
    assert metrics.roc_areas(scores, scene.truth).auc_df > LOCAL[name]
    exact = mahal.ace(image.astype(np.float64), target.astype(np.float64), window=(5, 21))
    error = np.abs(scores - exact).max()
    assert 0 < error <= 1e-3


def test_windows_that_are_not_positive_definite_are_counted(folder):
    scene = scenes.read(folder / "muufl-51x88x72.mat")
    assert scene.image.shape == (51, 88, 72)
    assert scene.unused == ("mask_sub (51 x 88)",)
    with pytest.warns(mahal.SingularWarning, match="132"):
        scores, status = mahal.rx(
            scene.image.astype(np.float64), window=(5, 21), singular="nan", return_status=True
        )
    assert int((status == 2).sum()) == 132
    np.testing.assert_array_equal(np.isnan(scores), status == 2)


@pytest.mark.skipif(not mahal.info()["emulator"], reason="needs a build with the emulator")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_cuda_kernels_score_a_scene_as_the_others_do(folder, dtype):
    image = scenes.read(folder / "muufl-51x88x72.mat").image.astype(dtype)
    target = image[10, 10]
    condition = np.linalg.cond(np.cov(image.reshape(-1, 72).T.astype(np.float64)))
    # In float64, then rounded to the dtype of the image.
    allowed = np.finfo(dtype).eps + tolerance(np.float64, condition=condition, terms=72)
    for detector in (mahal.rx, mahal.ace, mahal.matched_filter):
        arguments = (image,) if detector is mahal.rx else (image, target)
        want = detector(*arguments)
        with backend("emu"):
            found = detector(*arguments)
        np.testing.assert_allclose(found, want, rtol=0, atol=allowed * np.abs(want).max())


def test_both_envi_scenes_have_wavelengths_and_two_readers_agree(folder):
    import rasterio

    for name, first, last in (("SDData", 429.41, 2470.46), ("LHData", 390.19, 856.45)):
        scene = scenes.read(folder / "envi" / f"{name}.hdr")
        np.testing.assert_allclose(scene.wavelengths[[0, -1]], (first, last), atol=0.005)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(folder / "envi" / name) as file:
                np.testing.assert_array_equal(scene.image, np.moveaxis(file.read(), 0, -1))


@pytest.mark.parametrize(
    ("name", "truth", "ending"),
    [
        ("abu-urban-2.mat", None, "mat"),
        ("hydice-autoad-17px.mat", None, "mat"),
        ("pavia-105x120-43px.mat", "pavia-105x120-43px.mask.mat", "mat"),
        ("envi/SDData.hdr", "envi/SDDataGt.bmp", "hdr"),
        ("envi/LHData.hdr", "envi/LHDataGt.bmp", "hdr"),
    ],
)
def test_command_on_real_scenes(tmp_path, capsys, folder, name, truth, ending):
    options = ["--detector", "rx"]
    options += [] if truth is None else ["--truth", str(folder / truth)]
    assert cli.main(["detect", str(folder / name), *options, "-o", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    source = SOURCES[Path(name).name]
    scene = bench.read(folder, source)
    scores = scenes.read_map(tmp_path / f"{scene.name}_scores.{ending}")
    areas = metrics.roc_areas(scores, scene.truth)
    assert f"AUC(D,F)    {areas.auc_df:.5f}" in out
    # Integer scenes are scored in float32.
    assert areas.auc_df == pytest.approx(GLOBAL[Path(name).name][0], abs=1e-4)


def test_radar_products_are_read(data_dir):
    folder = data_dir / "sar"
    matrices = scenes.read(folder / "airsar_sanfrancisco_t3")
    assert matrices.covariance.shape == (450, 512, 3, 3)
    assert matrices.polarisations == ("HH+VV", "HH-VV", "HV")
    diagonal = np.fromfile(folder / "airsar_sanfrancisco_t3" / "T22.bin", "<f4")
    np.testing.assert_array_equal(matrices.image[:, :, 1].ravel(), np.sqrt(diagonal))
    # The few matrices of the full scene that are not positive definite lie outside this crop.
    assert np.linalg.eigvalsh(matrices.covariance.astype(np.complex128)).min() > 0
    slc = scenes.read(folder / "onera_slc_muzeau" / "slc_256x256_c128.npy")
    assert slc.image.dtype == np.complex128
    assert slc.image.shape == (256, 256, 1)
    rslc = scenes.read(folder / "uavsar_nisar_rslc" / "calib_slc_pass1_20mhz.h5")
    assert rslc.image.dtype == np.complex64
    assert (rslc.image.shape, rslc.polarisations) == ((200, 1907, 1), ("HH",))
    other = scenes.read(folder / "uavsar_nisar_rslc" / "SanAnd_129.h5", frequency="B")
    assert other.image.shape == (150, 50, 1)


def test_false_alarm_rates_on_homogeneous_clutter(data_dir):
    rows = radar_bench.false_alarms(data_dir, windows=(None,))
    measured = {r["detector"]: r["shares"] for r in rows if r["data"] == "homogeneous clutter"}
    assert set(measured) == {"RX", "ACE", "matched filter"}
    for shares in measured.values():
        for share, rate in zip(shares, radar_bench.RATES, strict=True):
            # One covariance of 65536 pixels: nearly independent scores.
            low, high = stats.binom.interval(1 - 1e-5, 256**2, rate)
            assert low <= share * 256**2 <= high


def test_false_alarm_rates_of_windows_on_homogeneous_clutter(data_dir):
    rows = radar_bench.false_alarms(data_dir, windows=((5, 11),))
    measured = {
        r["detector"]: r["shares"]
        for r in rows
        if r["data"] == "homogeneous clutter" and r["window"]
    }
    assert set(measured) == {"RX", "ACE, scm", "ACE, tyler"}
    pixels = 256**2
    for shares in measured.values():
        for share, rate in zip(shares, radar_bench.RATES, strict=True):
            # Overlapping windows share their covariance: to the binomial variance comes that of the
            # rate given a covariance, at most its square, over the number of disjoint windows.
            variance = (1 - rate) / (rate * pixels) + 11**2 / pixels
            assert abs(share / rate - 1) <= 5 * np.sqrt(variance)


def test_windows_and_a_robust_estimator_on_the_simulated_radar_scene(data_dir):
    rows = radar_bench.areas(data_dir, windows=((5, 11),), estimators=("scm", "tyler"))
    found = {row["detector"]: row["auc"] for row in rows if row["window"]}
    expected = {
        "RX, scm": 0.80926,
        "RX, tyler": 0.85810,
        "ACE, surface crosses, scm": 0.83084,
        "ACE, dihedral crosses, scm": 0.82385,
        "ACE, cross-pol crosses, scm": 0.81913,
        "ACE, surface crosses, tyler": 0.89503,
        "ACE, dihedral crosses, tyler": 0.89474,
        "ACE, cross-pol crosses, tyler": 0.89245,
    }
    assert found == pytest.approx(expected, abs=2 * HALF_DIGIT)


def test_areas_on_the_simulated_radar_scene(data_dir):
    rows = radar_bench.areas(data_dir, windows=(None,), estimators=("scm",))
    found = {row["detector"]: row["auc"] for row in rows}
    expected = {
        "RX, scm": 0.96144,
        "ACE, surface crosses": 0.98722,
        "ACE, dihedral crosses": 0.98970,
        "ACE, cross-pol crosses": 0.99415,
    }
    assert found == pytest.approx(expected, abs=2 * HALF_DIGIT)


def test_command_on_radar_scenes(data_dir, tmp_path, capsys):
    scene = data_dir / "sar" / "simulated_quadpol" / "scene.npz"
    options = ["--channels", "first", "--map-key", "mask", "--uncentred", "-o", str(tmp_path)]
    assert cli.main(["compare", str(scene), "--detectors", "rx", *options]) == 0
    assert "0.96144" in capsys.readouterr().out
    folder = data_dir / "sar" / "airsar_sanfrancisco_t3"
    assert (
        cli.main(
            [
                "detect",
                str(folder),
                "--detector",
                "rx",
                "--false-alarm-rate",
                "1e-15",
                "-o",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert "channels    HH+VV, HH-VV, HV" in capsys.readouterr().out


def test_change_maps_of_radar_pairs(data_dir):
    rows = radar_bench.changes(data_dir, names=("frobenius", "logeuclid"))
    found = {row["pair"]: row["areas"] for row in rows}
    expected = {
        "bern": {"log ratio": 0.97798, "frobenius": 0.98629, "logeuclid": 0.99397},
        "san": {"log ratio": 0.97823, "frobenius": 0.92011, "logeuclid": 0.96991},
        "simulated quad-pol, with and without crosses": {
            "frobenius": 0.98982,
            "logeuclid": 0.99469,
        },
        "AIRSAR, two simulated dates": {"frobenius": 0.53250, "logeuclid": 0.94581},
    }
    assert set(found) == set(expected)
    for pair, areas in expected.items():
        # Rounding of single precision can only swap pairs of pixels whose scores nearly tie.
        assert found[pair] == pytest.approx(areas, abs=2 * HALF_DIGIT)


def test_command_on_a_radar_pair(data_dir, tmp_path, capsys):
    folder = data_dir / "sar" / "change_pairs_8bit"
    pair = [str(folder / f"bern_{name}.bmp") for name in ("1", "2")]
    options = ["--truth", str(folder / "bern_gt.bmp"), "--uncentred", "-o", f"{tmp_path}/"]
    assert cli.main(["change", *pair, *options]) == 0
    assert "AUC(D,F)    0.98629" in capsys.readouterr().out
    assert (tmp_path / "bern_1_bern_2_change.png").is_file()


# Simulated from a real quad-pol scene, complex RX with mean zero: figures of a plain numpy loop.
QUAD_POL = {(31, 39): 0.9924, 21: 0.8396, (5, 11): 0.8095}


@pytest.mark.parametrize("window", QUAD_POL, ids=str)
def test_complex_scene_with_implanted_crosses(data_dir, window):
    with np.load(data_dir / "sar" / "simulated_quadpol" / "scene.npz") as scene:
        image = np.moveaxis(scene["slc"], 0, -1)
        truth = scene["mask"] > 0
    outer = window[1] if isinstance(window, tuple) else window
    inside = (slice(outer // 2, -(outer // 2)),) * 2
    areas = {}
    for estimator in ("scm", "tyler") if outer < 39 else ("scm",):
        scores, status = mahal.rx(
            image,
            window=window,
            center=False,
            estimator=estimator,
            tolerance=1e-3,
            return_status=True,
        )
        assert (status == 0).all()
        areas[estimator] = metrics.roc_areas(scores[inside], truth[inside]).auc_df
    assert areas["scm"] == pytest.approx(QUAD_POL[window], abs=0.5e-4)
    # Crosses that reach into the window do not hide the pixel from a robust estimate.
    assert areas.get("tyler", 1.0) > areas["scm"]


@pytest.mark.parametrize("name", ["hydice-100x80-19px.mat", "pavia-105x120-43px.mat"])
def test_gradients_of_local_scores_on_a_scene(folder, name):
    # float32 kernels against closed forms in float64, in the raw units of the scene.
    cube = bench.read(folder, SOURCES[name]).image
    image = np.ascontiguousarray(cube[20:40, 20:44, ::12], dtype=np.float32)
    bands = image.shape[-1]
    rng = np.random.default_rng(0)
    target = image[5:7, 5] * np.float32(1.1)
    for kind, maps in (("rx", 1), ("signed_ace", 2)):
        aims = None if kind == "rx" else target
        weights = rng.standard_normal((*image.shape[:2], maps)).astype(np.float32)
        if kind == "rx":
            _, status = mahal.rx(image, window=(3, 11), return_status=True)
        else:
            _, status = mahal.ace(image, aims, window=(3, 11), signed=True, return_status=True)
        assert (status == 0).all()
        found, _, _ = window_scores_backward(
            image, aims, None, None, status, weights, (True, False), kind, (3, 11), "shift", True, 0
        )
        want, _, _ = reference_window_gradients.local_scores(
            image, weights, window=(3, 11), kind=kind, target=aims
        )
        # Of the reference, which works in the units of the image.
        condition = np.linalg.cond(mahal.mean_covariance(image.astype(np.float64))[1])
        allowed = tolerance(np.float64, condition=condition, terms=112 * bands)
        allowed += tolerance(np.float32)
        np.testing.assert_allclose(found, want, rtol=0, atol=allowed * np.abs(want).max())

"""The command with every detector, with several at once, and on pairs of images."""

import json

import mahal
import numpy as np
import pytest
import scipy.io
from mahal import cli, metrics, scenes, significance
from mahal._detectors import DETECTORS
from matplotlib.image import imread

ROWS, COLS, BANDS = 24, 30, 6
TARGETED = [name for name, detector in DETECTORS.items() if detector.needs_target]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.fixture
def scene(folder):
    scene = scenes.simulate(ROWS, COLS, BANDS, seed=1, targets=6, fraction=(0.4, 0.9))
    np.save("s.npy", scene.image)
    np.save("t.npy", scene.truth)
    np.savetxt("target.csv", scene.metadata["target"][None] * 10000, delimiter=",")
    return scene


def accepted(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return captured.out


def refused(capsys, folder, text, *arguments):
    before = sorted(folder.rglob("*"))
    assert cli.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mahal: error: ")
    assert captured.err.count("\n") == 1
    assert text in captured.err, captured.err
    assert sorted(folder.rglob("*")) == before


def summary_of(name):
    with open(f"out/{name}_summary.json") as file:
        return json.load(file)


def test_list_has_one_line_for_every_detector(capsys):
    lines = accepted(capsys, "detectors").splitlines()
    assert [line.split()[0] for line in lines] == list(DETECTORS)
    assert all("\t" not in line and len(line) > 40 for line in lines)
    assert "takes a window" in lines[0]
    assert "the default" in lines[1]
    assert "needs a target" in lines[2]


@pytest.mark.parametrize("name", TARGETED)
def test_detectors_of_a_target(folder, capsys, scene, name):
    options = ["--truth", "t.npy", "--target", "target.csv", "-o", "out/"]
    out = accepted(capsys, "detect", "s.npy", "--detector", name, *options)
    scores = np.load("out/s_scores.npy")
    image, target = scene.image.astype(float), np.loadtxt("target.csv", delimiter=",")
    expected = {
        "ace": lambda: mahal.ace(image, target),
        "signed_ace": lambda: mahal.ace(image, target, signed=True),
        "matched_filter": lambda: mahal.matched_filter(image, target, normalized=True),
        "cem": lambda: mahal.cem(image, target),
        "spectral_angle": lambda: -mahal.spectral_angle(image, target),
    }[name]()
    np.testing.assert_array_equal(scores, expected)
    summary = summary_of("s")
    samples = ROWS * COLS
    law = {
        "ace": lambda: significance.ace_threshold(1e-3, BANDS, samples, background="global"),
        "signed_ace": lambda: significance.ace_threshold(
            1e-3, BANDS, samples, background="global", signed=True
        ),
        "matched_filter": lambda: significance.amf_threshold(
            1e-3, BANDS, samples, background="global", signed=True
        ),
    }.get(name, lambda: np.quantile(scores, 1 - 1e-3))()
    assert summary["threshold"] == pytest.approx(law, rel=1e-12)
    rule = "share of the pixels" if DETECTORS[name].law is None else "law of the scores"
    assert summary["threshold_rule"] == rule
    assert summary["detections"] == (scores >= law).sum()
    assert summary["target"] == "target.csv"
    areas = metrics.roc_areas(scores, scene.truth)
    assert f"AUC(D,F)    {areas.auc_df:.5f}" in out
    assert imread("out/s_detections.png").shape[0] > 300
    assert imread("out/s_roc.png").shape[0] > 300


def test_target_of_a_pixel_and_of_the_truth(folder, capsys, scene):
    image = scene.image.astype(float)
    accepted(capsys, "detect", "s.npy", "--detector", "ace", "--target", "3,4", "-o", "out/")
    np.testing.assert_array_equal(np.load("out/s_scores.npy"), mahal.ace(image, image[3, 4]))
    options = ["--truth", "t.npy", "--target", "truth", "-o", "out/"]
    accepted(capsys, "detect", "s.npy", "--detector", "ace", *options)
    mean = scene.image[scene.truth].mean(axis=0)
    np.testing.assert_array_equal(np.load("out/s_scores.npy"), mahal.ace(image, mean))


@pytest.mark.parametrize("window", [None, (3, 9)])
def test_false_discovery_rate(folder, capsys, scene, window):
    options = [] if window is None else ["--window", *window]
    rate = 0.2
    mask = np.ones((ROWS, COLS), dtype=bool)
    if window is not None:
        mask[5:8, 9:12] = False
    scipy.io.savemat("s.mat", {"data": scene.image, "use": mask})
    options += ["--mask-key", "use", "--false-discovery-rate", rate, "-o", "out/"]
    out = accepted(capsys, "detect", "s.mat", "--detector", "rx", *options)
    image = scene.image.astype(float)
    scores = mahal.rx(image, window=window, mask=mask)
    samples = mask.sum()
    if window is not None:
        samples = significance.window_samples((ROWS, COLS), window, mask=mask)
    law = {"background": "global" if window is None else "local"}
    pvalues = significance.rx_pvalue(scores, BANDS, samples, **law)
    found = significance.false_discovery(pvalues, rate)
    assert 0 < found.detected.sum() < mask.sum() / 2
    summary = summary_of("s")
    assert summary["detections"] == found.detected.sum()
    assert summary["false_discovery_rate"] == rate
    assert summary["false_alarm_rate"] is None
    assert "at false-discovery rate 0.2" in out


def test_no_discovery(folder, capsys):
    np.save("n.npy", np.random.default_rng(2).normal(size=(ROWS, COLS, 3)))
    accepted(capsys, "detect", "n.npy", "--false-discovery-rate", 1e-9, "-o", "out/")
    assert summary_of("n")["detections"] == 0


def test_complex_scene_about_zero(folder, capsys):
    rng = np.random.default_rng(6)
    slc = rng.normal(size=(ROWS, COLS, 3)) + 1j * rng.normal(size=(ROWS, COLS, 3))
    np.save("slc.npy", np.moveaxis(slc.astype(np.complex64), -1, 0))
    options = ["--channels", "first", "--uncentred", "--false-alarm-rate", 0.01, "-o", "out/"]
    out = accepted(capsys, "detect", "slc.npy", *options)
    assert "mean zero" in out
    expected = mahal.rx(slc.astype(np.complex64), center=False)
    np.testing.assert_array_equal(np.load("out/slc_scores.npy"), expected)
    law = {"background": "global", "mean": "known", "complex_data": True}
    threshold = significance.rx_threshold(0.01, 3, ROWS * COLS, **law)
    assert summary_of("slc")["threshold"] == pytest.approx(threshold)
    target = [*options[:2], "--detector", "matched_filter", "--target", "2,3", *options[3:]]
    accepted(capsys, "detect", "slc.npy", *target)
    law["mean"] = "estimated"
    threshold = np.sqrt(significance.amf_threshold(0.01, 3, ROWS * COLS, **law))
    assert summary_of("slc")["threshold"] == pytest.approx(threshold)
    np.save("real.npy", slc.real)
    np.save("z.npy", slc[0, 0])
    real = ["--detector", "ace", "--target", "z.npy"]
    refused(capsys, folder, "--target: must be real for a real image", "detect", "real.npy", *real)


def test_estimators_reach_the_function_and_leave_the_law(folder, capsys, scene, monkeypatch):
    rx, seen = mahal.rx, {}

    def robust(image, *, estimator="scm", **options):
        seen.update(options, estimator=estimator)
        return rx(image, **options)

    monkeypatch.setattr(mahal, "rx", robust)
    out = accepted(capsys, "detect", "s.npy", "--estimator", "tyler", "-o", "out/")
    assert seen["estimator"] == "tyler"
    assert "global RX (tyler)" in out
    assert "share of pixels 0.001" in out
    assert summary_of("s")["threshold_rule"] == "share of the pixels"
    fdr = ["--estimator", "oas", "--false-discovery-rate", 0.1]
    refused(capsys, folder, "needs the law of the scores, and rx with oas", "detect", "s.npy", *fdr)


def test_local_ace_of_radar_has_thresholds_with_tyler_too(folder, capsys):
    rng = np.random.default_rng(9)
    slc = rng.normal(size=(ROWS, COLS, 3)) + 1j * rng.normal(size=(ROWS, COLS, 3))
    slc = slc.astype(np.complex64)
    np.save("slc.npy", slc)
    np.save("t.npy", np.array([1.0, 1.0j, 0.0]))
    options = ["--detector", "ace", "--target", "t.npy", "--uncentred", "--estimator", "tyler"]
    law = {"mean": "known", "complex_data": True, "estimator": "tyler"}
    window = ["--window", 3, 9, "--false-alarm-rate", 0.01, "-o", "out/"]
    out = accepted(capsys, "detect", "slc.npy", *options, *window)
    assert "local ace (tyler), mean zero, window 3 9" in out
    target = np.array([1.0, 1.0j, 0.0], dtype=np.complex64)
    expected = mahal.ace(slc, target, window=(3, 9), estimator="tyler", center=False)
    np.testing.assert_array_equal(np.load("out/slc_scores.npy"), expected)
    summary = summary_of("slc")
    assert summary["threshold_rule"] == "law of the scores"
    threshold = significance.ace_threshold(0.01, 3, 9**2 - 3**2, **law)
    assert summary["threshold"] == pytest.approx(threshold)
    # A pixel among its own samples has no law with Tyler.
    for sides in ([], ["--window", 9]):
        accepted(capsys, "detect", "slc.npy", *options, *sides, "-o", "out/")
        assert summary_of("slc")["threshold_rule"] == "share of the pixels"
    fdr = ["--false-discovery-rate", 0.1]
    refused(
        capsys, folder, "law of the scores, and ace with tyler", "detect", "slc.npy", *options, *fdr
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--detector", "ace"], "--target: ace needs one"),
        (["--target", "1,1"], "--target: not for rx"),
        (["--detector", "cem", "--target", "1,1", "--uncentred"], "--uncentred: not for cem"),
        (
            ["--detector", "cem", "--target", "1,1", "--false-discovery-rate", "0.1"],
            "--false-discovery-rate: needs the law of the scores, and cem",
        ),
        (
            ["--detector", "spectral_angle", "--target", "1,1", "--window", "3", "5"],
            "--window: not for spectral_angle",
        ),
        (
            ["--detector", "spectral_angle", "--target", "1,1", "--background", "s.npy"],
            "--background: not for spectral_angle",
        ),
        (["--detector", "ace", "--target", "99,1"], "must lie in the 24 x 30 pixels"),
        (["--detector", "ace", "--target", "truth"], "the scene must have true targets"),
        (["--detector", "ace", "--target", "two.txt"], "must be one spectrum, got 2"),
        (["--detector", "ace", "--target", "1,1", "--target-name", "a"], "only ENVI libraries"),
        (
            ["--false-alarm-rate", "0.1", "--false-discovery-rate", "0.1"],
            "not allowed with argument",
        ),
        (["--polarisations", "HH"], "polarisations: only SAR products have named polarisations"),
        (["--frequency", "A"], "frequency: only NISAR files have frequencies"),
    ],
)
def test_refusals(folder, capsys, scene, arguments, text):
    np.savetxt("two.txt", np.ones((2, BANDS)))
    refused(capsys, folder, text, "detect", "s.npy", *arguments)


def test_scores_must_not_replace_the_target(folder, capsys, scene):
    np.save("s_scores.npy", np.arange(1.0, BANDS + 1))
    options = ["--detector", "ace", "--target", "s_scores.npy"]
    refused(capsys, folder, "must not replace an input file", "detect", "s.npy", *options)


# compare


def test_comparison_of_detectors(folder, capsys, scene):
    options = ["--truth", "t.npy", "--target", "truth", "--window", 3, 11, "-o", "out/"]
    out = accepted(capsys, "compare", "s.npy", *options)
    results = summary_of("s")["results"]
    names = [row["name"] for row in results]
    assert len(set(names)) == len(names)
    assert {row["detector"] for row in results} == {
        name for name, detector in DETECTORS.items() if not detector.learned
    }
    assert "local RX, window 3 11" in names
    image = scene.image.astype(float)
    areas = metrics.roc_areas(mahal.rx(image), scene.truth)
    (row,) = (row for row in results if row["name"] == "global RX")
    assert row["areas"]["auc_df"] == areas.auc_df
    table = [line for line in out.splitlines() if line.startswith(tuple(names))]
    printed = [line.split()[-4] for line in table]
    ordered = sorted(results, key=lambda row: -row["areas"]["auc_df"])
    assert printed == [f"{row['areas']['auc_df']:.5f}" for row in ordered]
    assert imread("out/s_roc.png").shape[0] > 300


def test_comparison_without_a_target_and_with_named_detectors(folder, capsys, scene):
    accepted(capsys, "compare", "s.npy", "--truth", "t.npy", "-o", "out/")
    assert [row["name"] for row in summary_of("s")["results"]] == ["global RX", "fused rx"]
    options = ["--truth", "t.npy", "--target", "truth", "-o", "out/"]
    accepted(capsys, "compare", "s.npy", "--detectors", "cem,ace", *options)
    assert [row["detector"] for row in summary_of("s")["results"]] == ["cem", "ace"]
    refused(capsys, folder, "needs ground truth", "compare", "s.npy")
    options = ["--truth", "t.npy", "--detectors"]
    refused(capsys, folder, "no 'x', has rx, fused_rx", "compare", "s.npy", *options, "x")
    refused(capsys, folder, "--target: ace needs one", "compare", "s.npy", *options, "ace")


# change


def substitute(seen):
    """A change map with the interface of the real one: squared difference of window means."""

    def change_map(first, second, window, **options):
        seen.update(options, window=window, first=first, second=second)
        scores = np.abs(first - second).sum(axis=2) ** 2
        return scores, np.zeros(scores.shape, dtype=np.uint8)

    return change_map


@pytest.fixture
def pair(folder):
    rng = np.random.default_rng(4)
    truth = np.zeros((ROWS, COLS), dtype=bool)
    truth[8:14, 9:17] = True
    first, second = rng.gamma(4, 1, (2, ROWS, COLS, 2)).astype(np.float32)
    second[truth] *= 4
    np.save("a.npy", first)
    np.save("b.npy", second)
    np.save("t.npy", truth)
    return first, second, truth


def test_change_of_a_pair(folder, capsys, pair, monkeypatch):
    first, _, truth = pair
    seen = {}
    monkeypatch.setattr(mahal, "change_map", substitute(seen))
    options = ["--truth", "t.npy", "--window", 5, "--false-alarm-rate", 0.05, "-o", "out/"]
    out = accepted(capsys, "change", "a.npy", "b.npy", *options)
    scores = np.load("out/a_b_scores.npy")
    assert seen["window"] == 5
    assert (seen["metric"], seen["center"], seen["border"]) == ("frobenius", True, "clip")
    assert seen["compat"] is None
    np.testing.assert_array_equal(seen["first"], first)
    summary = summary_of("a_b")
    assert summary["threshold"] == np.quantile(scores, 0.95)
    assert summary["changes"] == (scores >= np.quantile(scores, 0.95)).sum()
    assert summary["areas"]["auc_df"] == metrics.roc_areas(scores, truth).auc_df
    assert "share of pixels 0.05" in out
    assert imread("out/a_b_change.png").shape[1] > imread("out/a_b_change.png").shape[0]
    assert imread("out/a_b_roc.png").shape[0] > 300


def test_domain_of_the_values(folder, capsys, pair, monkeypatch):
    first, _, _ = pair
    first[0, 0, 0] = 0
    np.save("a.npy", first * np.exp(2j).astype(np.complex64))
    np.save("b.npy", first + 0j)
    seen = {}
    monkeypatch.setattr(mahal, "change_map", substitute(seen))
    accepted(capsys, "change", "a.npy", "b.npy", "--domain", "amplitude", "-o", "out/")
    np.testing.assert_allclose(seen["first"], first, rtol=1e-6)
    accepted(capsys, "change", "a.npy", "b.npy", "--domain", "log", "-o", "out/")
    lowest = first[first > 0].min()
    np.testing.assert_allclose(
        seen["first"], np.log(np.maximum(first, lowest)), rtol=1e-5, atol=1e-6
    )
    accepted(capsys, "change", "a.npy", "b.npy", "--uncentred", "-o", "out/")
    assert seen["first"].dtype == np.complex64
    assert seen["center"] is False


@pytest.mark.parametrize("metric", ["frobenius", "logeuclid", "box_m"])
def test_change_writes_the_change_map(folder, capsys, pair, metric):
    options = ["--metric", metric, "--window", 5, "--border", "valid", "-o", "out/"]
    accepted(capsys, "change", "a.npy", "b.npy", *options)
    expected = mahal.change_map(*pair[:2], 5, metric=metric, border="valid")
    np.testing.assert_array_equal(np.load("out/a_b_scores.npy"), expected)


@pytest.mark.parametrize(("metric", "complex_data"), [("wishart", True), ("box_m", False)])
def test_change_threshold_by_the_law(folder, capsys, pair, monkeypatch, metric, complex_data):
    seen = {}
    monkeypatch.setattr(mahal, "change_map", substitute(seen))
    if complex_data:
        for name, values in zip("ab", pair[:2], strict=True):
            np.save(f"{name}.npy", values.astype(np.complex64))
    options = ["--metric", metric, "--false-alarm-rate", 0.001, "-o", "out/"]
    accepted(capsys, "change", "a.npy", "b.npy", *options)
    samples = significance.window_samples((ROWS, COLS), 11, border="clip")
    threshold = significance.covariance_equality_threshold(
        1e-3, 2, samples, samples, complex_data=complex_data
    )
    summary = summary_of("a_b")
    assert summary["threshold_rule"] == "law of the scores"
    assert summary["threshold"] == pytest.approx([threshold.min(), threshold.max()])


def test_change_refusals(folder, capsys, pair):
    np.save("c.npy", pair[0][1:])
    text = "must have the shape of the first image (24, 30, 2), got (23, 30, 2)"
    refused(capsys, folder, text, "change", "a.npy", "c.npy")
    refused(capsys, folder, "must be an odd size, got 4", "change", "a", "b", "--window", 4)
    refused(capsys, folder, "no such file", "change", "a.npy", "none.npy")
    refused(capsys, folder, "invalid choice: 'x'", "change", "a.npy", "b.npy", "--metric", "x")
    np.save("zero.npy", np.zeros((4, 4, 2)))
    arguments = ["change", "zero.npy", "zero.npy", "--domain", "log"]
    refused(capsys, folder, "log needs values that are not zero", *arguments)

"""The page that `mahal detect --report` writes: what it counts, what it holds, how it is used."""

import dataclasses
import re
import shutil

import mahal
import numpy as np
import pytest
from mahal import cli, pictures, report, scenes, significance
from matplotlib.image import imread

ROWS, COLS, BANDS = 24, 30, 16


@pytest.fixture(scope="module")
def scene():
    return scenes.simulate(ROWS, COLS, BANDS, seed=1, targets=4)


@pytest.fixture(scope="module")
def scores(scene):
    return mahal.rx(scene.image.astype(np.float64))


def rx_pvalue(values):
    return significance.rx_pvalue(values, BANDS, ROWS * COLS, background="global")


def rx_threshold(rate):
    return float(significance.rx_threshold(rate, BANDS, ROWS * COLS, background="global"))


def test_every_step_counts_what_numpy_counts(scores, scene):
    threshold = rx_threshold(1e-2)
    scores = scores.copy()
    scores[3, 4] = np.nan
    steps = report._steps(scores, np.asarray(threshold), rx_pvalue, "log")
    assert steps.grid[steps.begin] == threshold
    scored = np.isfinite(scores)
    for among in (scored, scored & scene.truth):
        expected = [int((scores[among] >= limit).sum()) for limit in steps.grid]
        assert steps.count(among) == expected
    assert steps.count(scored)[-1] == 0
    assert steps.count(scored)[0] >= scored.sum() // 2
    np.testing.assert_allclose(steps.rates, rx_pvalue(steps.grid))


def test_a_threshold_map_runs_over_rates(scores):
    samples = np.full(scores.shape, 400)
    samples[:, :10] = 60
    law = {"background": "local"}
    limit = significance.rx_threshold(1e-2, BANDS, samples, **law)

    def pvalue(values):
        return significance.rx_pvalue(values, BANDS, samples, **law)

    steps = report._steps(scores, limit, pvalue, "log")
    assert steps.by_rate
    counts = steps.count(np.ones_like(scores, dtype=bool))
    assert counts[steps.begin] == (scores >= limit).sum()
    np.testing.assert_allclose(steps.rates[steps.begin], 1e-2)
    for step in (5, 100, 300):
        assert counts[step] == (pvalue(scores) <= steps.rates[step] * (1 + 1e-12)).sum()


@pytest.mark.parametrize("values", [np.zeros((3, 4)), -np.arange(12.0).reshape(3, 4)])
def test_scores_without_a_logarithm(values):
    steps = report._steps(values, np.asarray(-2.0), None, "log")
    assert steps.rates is None
    counts = steps.count(np.ones_like(values, dtype=bool))
    assert counts[steps.begin] == (values >= -2.0).sum()
    assert counts[-1] == 0


def test_spectra_and_surroundings(scene):
    image = scene.image.astype(np.float64)
    image[10, 12] = np.nan
    rows, cols = np.indices((ROWS, COLS))
    found = report._spectra(
        dataclasses.replace(scene, image=image), (rows, cols), 1, (3, 9), "shift"
    )

    def unpacked(name):
        codes = found.values[name].reshape(ROWS, COLS, BANDS)
        low, step = np.array(found.ranges[name])
        return np.where(codes == 65535, np.nan, low + codes * step), step

    spectrum, step = unpacked("spectrum")
    assert np.nanmax(np.abs(spectrum - image) / step) <= 0.5 + 1e-6
    np.testing.assert_array_equal(np.isnan(spectrum), np.isnan(image))
    # The pixel that is not finite is no sample of its surroundings.
    around = np.array(
        [
            image[r, c]
            for r in range(10 - 4, 10 + 5)
            for c in range(14 - 4, 14 + 5)
            if max(abs(r - 10), abs(c - 14)) > 1 and (r, c) != (10, 12)
        ]
    )
    for name, expected in (("mean", around.mean(axis=0)), ("spread", around.std(axis=0, ddof=1))):
        values, step = unpacked(name)
        assert np.all(np.abs(values[10, 14] - expected) <= 0.51 * step)


def test_large_scenes_are_shown_smaller():
    assert report._reduction((100, 100, 200)) == (1, 1)
    assert report._reduction((150, 150, 188)) == (1, 2)
    assert report._reduction((500, 500, 3)) == (1, 1)
    side, thin = report._reduction((1000, 2000, 200))
    assert report._bytes((1000, 2000, 200), side, thin) <= report.BUDGET
    values = np.random.default_rng(0).normal(size=(11, 14))
    values[10, 13] = np.nan
    rows, cols = report._cells(values, 4)
    assert rows.shape == (3, 4)
    for r in range(3):
        for c in range(4):
            block = values[4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
            assert values[rows[r, c], cols[r, c]] == np.nanmax(block)


def test_the_page_stands_alone(scene, scores):
    odd = "<script>alert(1)</script> & $row"
    text = report.page(
        dataclasses.replace(scene, name=odd), scores, 30.0, rule=odd, facts=[(odd, odd)]
    )
    assert "<script>alert" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", text)
    assert text.rstrip().endswith("</html>")


def test_errors_of_the_page(scene, scores):
    for arguments, rule in (
        ((scores[1:], 1.0), "scores: must have the size"),
        ((np.full_like(scores, np.nan), 1.0), "needs a pixel with a score"),
        ((scores, scores), "threshold: a map needs pvalue"),
    ):
        with pytest.raises(ValueError, match=rule):
            report.page(scene, *arguments)


@pytest.fixture
def folder(tmp_path, monkeypatch, scene):
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "s.npz", image=scene.image, truth=scene.truth)
    (tmp_path / "out").mkdir()
    return tmp_path


def detect(*arguments):
    return cli.main(["detect", "s.npz", "--key", "image", "--map-key", "truth", *arguments])


@pytest.mark.parametrize(
    "options",
    [
        ["--window", "3", "11", "--border", "valid", "--detector", "rx"],
        ["--false-discovery-rate", "0.1"],
        ["--detector", "signed_ace", "--target", "truth"],
    ],
)
def test_report_of_every_kind_of_threshold(folder, capsys, options):
    assert detect(*options, "-o", "out", "--report", "r.html") == 0
    assert "r.html" in capsys.readouterr().out.split("written")[1]
    summary = (folder / "out" / "s_summary.json").read_text()
    found = int(re.search(r'"detections": (\d+)', summary)[1])
    text = (folder / "r.html").read_text(encoding="utf-8")
    begin = int(re.search(r'value="(\d+)"', text)[1])
    counts = re.search(r'\["counts",(?:\{[^[]*)?\[([\d,]*)\]', text)[1].split(",")
    assert int(counts[begin]) == found


def test_nothing_is_written_when_the_page_fails(folder, capsys, monkeypatch):
    def fails(*_, **__):
        raise ValueError("page: no room")

    monkeypatch.setattr(report, "page", fails)
    (folder / "r.html").write_text("earlier")
    assert detect("-o", "out", "--report", "r.html") == 2
    assert "no room" in capsys.readouterr().err
    assert (folder / "r.html").read_text() == "earlier"
    assert list((folder / "out").iterdir()) == []


def test_a_folder_of_images_has_no_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.Learner, "read", lambda _: cli.DETECTORS["spectral_vae"])
    arguments = ["detect", str(tmp_path), "--model", "m", "--report", str(tmp_path / "r.html")]
    assert cli.main(arguments) == 2
    assert "--report: not for a folder of images" in capsys.readouterr().err


def test_errors_of_the_option(folder, capsys):
    for value, rule in (
        ("s.npz", "argument --report: must end in .html, got s.npz"),
        ("no/r.html", "--report: folder no does not exist"),
    ):
        assert detect("-o", "out", "--report", value) == 2
        assert rule in capsys.readouterr().err
    assert list((folder / "out").iterdir()) == []


@pytest.fixture
def browser(tmp_path):
    programs = [shutil.which("chromium") or shutil.which("google-chrome")]
    programs.append(shutil.which("chromedriver"))
    if None in programs:
        pytest.skip("no chromium and chromedriver")
    from selenium import webdriver
    from selenium.common.exceptions import SessionNotCreatedException
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1440,1500",
        f"user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        driver = webdriver.Chrome(options=options, service=Service(programs[1]))
    except SessionNotCreatedException as error:
        pytest.skip(f"chromium does not start: {error.msg}")
    yield driver
    driver.quit()


def test_the_page_in_a_browser(browser, scene, scores, tmp_path):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    text = report.page(scene, scores, rx_threshold(1e-2), pvalue=rx_pvalue, label="RX score")
    (tmp_path / "r.html").write_text(text, encoding="utf-8")
    browser.get((tmp_path / "r.html").as_uri())
    body = browser.find_element(By.TAG_NAME, "body")
    WebDriverWait(browser, 60).until(lambda _: body.get_attribute("data-ready") == "yes")

    def numbers():
        shown = browser.find_element(By.ID, "numbers")
        return {
            name: float(shown.get_attribute(f"data-{name}"))
            for name in ("threshold", "count", "expected", "hits")
        }

    # The slider, by keys.
    slider = browser.find_element(By.ID, "threshold")
    seen = []
    for keys in ("", Keys.ARROW_RIGHT * 40, Keys.HOME, Keys.END, Keys.ARROW_LEFT * 3):
        slider.send_keys(keys)
        found = numbers()
        above = scores >= found["threshold"]
        assert found["count"] == above.sum()
        assert found["hits"] == (above & scene.truth).sum()
        assert found["expected"] == pytest.approx(rx_pvalue(found["threshold"]) * scores.size)
        assert f"{above.sum()} of {scores.size}" in slider.get_attribute("aria-valuetext")
        seen.append(found["count"])
    assert len(set(seen)) >= 4
    browser.find_element(By.ID, "again").click()
    assert numbers()["threshold"] == rx_threshold(1e-2)

    # The pointer.
    def title():
        words = browser.find_element(By.ID, "spectrum-title").text
        return re.fullmatch(r"Spectrum of row (\d+), column (\d+): RX score (\S+), p.*", words)

    def place():
        return int(title()[1]), int(title()[2])

    places = [np.unravel_index(scores.argmax(), scores.shape)]
    assert place() == places[0]
    canvas = browser.find_elements(By.CSS_SELECTOR, "figure div[role=img]")[0]
    for step in (0, 5):
        # One pixel of the scene is SIDE / COLS wide.
        offset = round(step * report.SIDE / COLS)
        ActionChains(browser).move_to_element_with_offset(canvas, offset, offset).perform()
        WebDriverWait(browser, 30).until(lambda _: place() not in places)
        row, col = place()
        assert float(title()[3]) == pytest.approx(scores[row, col], rel=1e-5)
        shown = browser.execute_script(
            "const d = Bokeh.documents[0].get_model_by_name('line').data;"
            "return [Array.from(d.pixel), Array.from(d.mean)]"
        )
        span = np.ptp(scene.image.astype(float), axis=(0, 1)).max()
        np.testing.assert_allclose(shown[0], scene.image[row, col], atol=span / 65534)
        places.append((row, col))
    assert np.subtract(places[2], places[1]).tolist() == [5, 5]

    # The detections table.
    button = browser.find_element(By.CSS_SELECTOR, "button[data-row]")
    button.send_keys(Keys.ENTER)
    assert title()[1] == button.get_attribute("data-row")

    # The picture.
    browser.save_screenshot(str(tmp_path / "r.png"))
    shot = np.rint(imread(tmp_path / "r.png")[:, :, :3] * 255).astype(int)
    detections = (scores >= rx_threshold(1e-2)) & scene.truth
    hits = (shot == (0x56, 0xB4, 0xE9)).all(axis=2).sum()
    size = (report.SIDE / COLS) ** 2
    assert 0.8 * detections.sum() * size < hits < 1.2 * detections.sum() * size + 400
    rgb, _ = pictures.false_colour(scene)
    colour = np.rint(255 * rgb[row, col]).astype(int)
    assert (shot == colour).all(axis=2).sum() > 0.4 * size

    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []

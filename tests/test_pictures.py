import itertools
import subprocess
import sys

import numpy as np
import pytest
from mahal import pictures
from mahal.metrics import roc_areas
from mahal.scenes import Scene, simulate
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.image import imread


def scene_of(rows, cols, bands=12, wavelengths=None, **options):
    image = np.random.default_rng(0).normal(100, 20, (rows, cols, bands)).astype(np.float32)
    return Scene(image, "s", "npy", wavelengths=wavelengths, **options)


def outlines(axes):
    """Colour and edges of each outline drawn on a panel."""
    return {
        tuple(item.get_colors()[0]): {
            tuple(sorted(map(tuple, np.round(edge, 6)))) for edge in item.get_segments()
        }
        for item in axes.collections
        if isinstance(item, LineCollection)
    }


def edges(mask):
    """Edges between pixels inside and outside of a mask, one by one."""
    found = set()
    rows, cols = mask.shape
    for r, c in np.argwhere(mask):
        for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            inside = 0 <= r + dr < rows and 0 <= c + dc < cols
            if inside and mask[r + dr, c + dc]:
                continue
            if dr:
                y = r + dr / 2
                found.add(((c - 0.5, y), (c + 0.5, y)))
            else:
                x = c + dc / 2
                found.add(((x, r - 0.5), (x, r + 0.5)))
    return found


def test_detections_and_truth_are_outlined_on_both_panels():
    scene = scene_of(9, 11)
    scores = np.random.default_rng(1).chisquare(3, (9, 11))
    scores[4, 4] = np.nan
    truth = np.zeros((9, 11), dtype=bool)
    truth[5, 6:8] = True
    figure = pictures.detection_figure(scene, scores, 5.0, truth=truth)
    grown = np.zeros_like(truth)
    grown[4:7, 5:9] = True
    for axes in figure.axes[:2]:
        drawn = outlines(axes)
        assert drawn[to_rgba(pictures.DETECTED)] == edges(scores >= 5.0)
        assert drawn[to_rgba(pictures.TRUTH)] == edges(grown)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"detections: {(scores >= 5.0).sum()} pixels", "truth: 2 pixels"]


def test_threshold_map_decides_pixel_by_pixel_and_no_truth_no_entry():
    scene = scene_of(6, 6)
    limit = np.full((6, 6), 2.0)
    limit[0], limit[1] = 4.0, np.nan
    figure = pictures.detection_figure(scene, np.full((6, 6), 3.0), limit)
    expected = np.ones((6, 6), dtype=bool)
    expected[:2] = False
    drawn = outlines(figure.axes[1])
    assert drawn == {to_rgba(pictures.DETECTED): edges(expected)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["detections: 24 pixels"]


@pytest.mark.parametrize("size", [(60, 60), (30, 120), (120, 30), (20, 400), (400, 20), (9, 200)])
def test_nothing_overlaps_and_pixels_are_square(size):
    scene = simulate(*size, 20, targets=1)
    scores = np.random.default_rng(2).chisquare(20, size)
    title = "scene · local RX, window (5, 21) · false-alarm rate 0.001"
    figure = pictures.detection_figure(scene, scores, 45.0, truth=scene.truth, title=title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    left, right = figure.axes[:2]
    for axes in (left, right):
        box = axes.get_window_extent(renderer)
        assert box.width / box.height == pytest.approx(size[1] / size[0], rel=0.02)
    bar = right.child_axes[0]
    parts = {
        "left": left.get_window_extent(renderer),
        "right": right.get_window_extent(renderer),
        "bar": bar.get_tightbbox(renderer),
        "legend": figure.legends[0].get_window_extent(renderer),
        "title": figure._suptitle.get_window_extent(renderer),
        **{
            f"{place} {name}": item.get_window_extent(renderer)
            for place, axes in (("left", left), ("right", right))
            for name, item in (
                ("title", axes.title),
                ("x", axes.xaxis.label),
                ("y", axes.yaxis.label),
            )
        },
    }
    for (first, a), (second, b) in itertools.combinations(parts.items(), 2):
        shared_x = min(a.x1, b.x1) - max(a.x0, b.x0)
        shared_y = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert shared_x <= 1 or shared_y <= 1, (first, second)
    for name, box in parts.items():
        assert min(box.x0, box.y0) >= -1, name
        assert box.x1 <= figure.bbox.x1 + 1, name
        assert box.y1 <= figure.bbox.y1 + 1, name


@pytest.mark.parametrize(
    ("wavelengths", "caption"),
    [
        (np.linspace(400, 2500, 200), "true colour (643, 548, 463 nm)"),
        (np.linspace(500, 1000, 100), "colour infrared (859, 652, 551 nm)"),
        (np.linspace(1000, 2500, 100), "false colour (bands 25, 14, 8)"),
        (None, "false colour (bands 25, 14, 8)"),
    ],
)
def test_bands_follow_the_wavelengths(wavelengths, caption):
    bands = 100 if wavelengths is None else len(wavelengths)
    scene = scene_of(4, 5, bands, wavelengths)
    rgb, said = pictures.false_colour(scene)
    assert said == caption
    assert rgb.shape == (4, 5, 3)
    assert rgb.min() == 0.0
    assert rgb.max() == 1.0


@pytest.mark.parametrize(("bands", "said"), [(1, "band 1"), (2, "band 1"), (3, "bands 3, 2, 1")])
def test_few_bands(bands, said):
    rgb, caption = pictures.false_colour(scene_of(4, 5, bands))
    assert said in caption
    assert np.all(rgb[..., 0] == rgb[..., 1]) == (bands < 3)


def test_missing_pixels_are_grey_and_do_not_move_the_stretch():
    plain = scene_of(8, 8)
    mask = np.ones((8, 8), dtype=bool)
    mask[0, 0] = False
    image = plain.image.copy()
    image[0, 0], image[1, 1] = -9999, np.nan
    rgb, _ = pictures.false_colour(Scene(image, "s", "npy", mask=mask))
    reference = plain.image[:, :, 0].copy()
    reference[0, 0] = reference[1, 1] = np.nan
    low, high = np.nanpercentile(reference, (2, 98))
    assert np.all(rgb[0, 0] == rgb[1, 1])
    assert 0.5 < rgb[0, 0, 0] < 0.6
    inside = np.clip((reference[2:] - low) / (high - low), 0, 1) ** 0.75
    np.testing.assert_allclose(rgb[2:, :, 2], inside, atol=1e-5)


@pytest.mark.parametrize(
    "scores",
    [
        np.full((6, 7), np.nan),
        np.zeros((6, 7)),
        np.full((6, 7), 5.0),
        np.geomspace(1e-3, 1e9, 42).reshape(6, 7),
        np.linspace(100, 101, 42).reshape(6, 7),
    ],
)
@pytest.mark.parametrize("threshold", [5.0, np.nan])
def test_odd_score_maps_still_give_a_picture(scores, threshold, tmp_path):
    figure = pictures.detection_figure(scene_of(6, 7), scores, threshold, title="t")
    pictures.save(figure, tmp_path / "a.png")
    image = imread(tmp_path / "a.png")
    assert image.shape[0] > 300
    assert image[..., :3].std() > 0.05


def test_flat_and_empty_scenes_still_give_a_picture(tmp_path):
    flat = Scene(np.full((6, 7, 4), 3, dtype=np.uint8), "s", "npy")
    empty = Scene(np.full((6, 7, 4), np.nan), "s", "npy")
    for scene in (flat, empty):
        figure = pictures.detection_figure(scene, np.ones((6, 7)), 2.0)
        pictures.save(figure, tmp_path / "a.png")


def test_same_content_same_bytes(tmp_path):
    scene = simulate(20, 20, 12, targets=2)
    for name in ("a.png", "b.png"):
        figure = pictures.detection_figure(scene, scene.image[..., 0], 900.0, truth=scene.truth)
        pictures.save(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_roc_figure_shows_the_curve_and_the_operating_point(tmp_path):
    rng = np.random.default_rng(3)
    truth = rng.random(500) < 0.1
    scores = rng.normal(size=500) + 2 * truth
    figure = pictures.roc_figure(scores, truth, threshold=1.5, title="t")
    left, right = figure.axes
    curve, _, point = left.lines
    alarm, detection = (scores[~truth] >= 1.5).mean(), (scores[truth] >= 1.5).mean()
    assert point.get_xydata().tolist() == [[alarm, detection]]
    assert curve.get_xdata()[-1] == curve.get_ydata()[-1] == 1.0
    for line, part in zip(right.lines[:2], (truth, ~truth), strict=True):
        tau, rate = line.get_data()
        between = (tau[1:-1] + tau[2:]) / 2 * np.ptp(scores) + scores.min()
        share = (scores[part] >= between[:, None]).mean(axis=1)
        # From each threshold down to the next one the rate of the upper one holds.
        assert line.get_drawstyle() == "steps-post"
        np.testing.assert_array_equal(rate[1:-1], share)
    pictures.save(figure, tmp_path / "roc.png")


@pytest.mark.parametrize("threshold", [-5.0, 0.0, 9.0])
def test_roc_figure_with_an_operating_point_outside_the_scores(threshold, tmp_path):
    figure = pictures.roc_figure([0.0, 1.0, 2.0], [0, 0, 1], threshold=threshold)
    pictures.save(figure, tmp_path / "roc.png")
    point = figure.axes[0].lines[2].get_xydata().tolist()
    assert point == [[1.0, 1.0]] if threshold <= 0 else [[0.25, 0.0]]


@pytest.mark.parametrize(
    ("scores", "truth", "text"),
    [
        (np.zeros((5, 6)), None, "scores: must have the size of the scene (6, 7), got (5, 6)"),
        (np.zeros((6, 7)), np.zeros(3), "truth: must have the size of the scene (6, 7), got (3,)"),
    ],
)
def test_bad_input(scores, truth, text):
    with pytest.raises(ValueError, match=r"^detection_figure: ") as caught:
        pictures.detection_figure(scene_of(6, 7), scores, 1.0, truth=truth)
    assert text in str(caught.value)


def test_pyplot_stays_out_of_it():
    program = (
        "import sys, numpy as np; from mahal import pictures, scenes;"
        "s = scenes.simulate(10, 10, 5, targets=1);"
        "pictures.detection_figure(s, s.image[..., 0], 1.0);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def radar(rows, cols, names, complex_data=True):
    rng = np.random.default_rng(9)
    values = rng.normal(size=(rows, cols, len(names), 2)) @ np.array([1, 1j])
    values = values.astype(np.complex64) if complex_data else np.abs(values).astype(np.float32)
    return Scene(values, "r", "npy", polarisations=tuple(names))


def stretched(layers):
    """The documented stretch of powers in dB."""
    level = 20 * np.log10(np.abs(np.stack(layers, axis=-1)).astype(np.float32))
    low, high = np.percentile(level, (2, 98), axis=(0, 1))
    return np.clip((level - low) / (high - low), 0, 1)


def test_radar_is_shown_in_decibels():
    scene = radar(20, 30, ("HH", "HV", "VH", "VV"))
    hh, hv, _, vv = np.moveaxis(scene.image, 2, 0)
    rgb, caption = pictures.false_colour(scene)
    assert caption == "Pauli in dB"
    np.testing.assert_allclose(rgb, stretched([hh - vv, 2 * hv, hh + vv]), atol=1e-5)
    named = {
        ("HH+VV", "HH-VV", "HV"): ((1, 2, 0), "Pauli in dB"),
        ("HH", "HV", "VV"): ((0, 1, 2), "HH, HV, VV in dB"),
        ("HV", "VH", "VV"): ((0, 1, 2), "HV, VH, VV in dB"),
        ("HH", "HV"): ((0, 0, 0), "HH in dB"),
    }
    for names, (order, expected) in named.items():
        scene = radar(20, 30, names, complex_data=False)
        rgb, caption = pictures.false_colour(scene)
        assert caption == expected
        layers = [scene.image[:, :, k] for k in order]
        np.testing.assert_allclose(rgb, stretched(layers), atol=1e-5)
    unnamed = Scene(radar(9, 9, ("a",)).image, "u", "npy")
    assert pictures.false_colour(unnamed)[1] == "channel 1 in dB"


def test_radar_without_power_is_grey():
    scene = radar(12, 12, ("HH", "HV", "VV"))
    scene.image[3, 4] = 0
    scene.image[5, 6] = np.nan
    rgb, _ = pictures.false_colour(scene)
    grey = np.all(rgb == np.float32(0x8C / 255), axis=2)
    assert grey[3, 4]
    assert grey[5, 6]
    assert grey.sum() == 2


def test_scores_of_both_signs_have_a_linear_bar():
    scene = scene_of(12, 12)
    scores = np.random.default_rng(3).normal(size=(12, 12))
    scores[0, 0] = np.nan
    figure = pictures.detection_figure(scene, scores, 1.5, scale="linear", label="s")
    picture = figure.axes[1].images[0]
    assert type(picture.norm).__name__ == "Normalize"
    low, high = picture.norm.vmin, picture.norm.vmax
    assert low < -1
    assert high > 1.5
    assert figure.axes[1].child_axes[0].get_ylabel() == "s (line: threshold 1.5)"
    shown = np.ma.getdata(picture.get_array())[scores > low]
    np.testing.assert_array_equal(shown, scores[scores > low])


def test_change_has_both_images_and_the_map():
    first, second = scene_of(12, 14), scene_of(12, 14)
    scores = np.random.default_rng(1).chisquare(3, (12, 14))
    truth = scores > 9
    figure = pictures.change_figure(first, second, scores, 6.0, truth=truth, title="pair")
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels[:2]] == [
        f"s: {pictures.false_colour(first)[1]}"
    ] * 2
    for axes in panels:
        assert outlines(axes)[to_rgba(pictures.DETECTED)] == edges(scores >= 6.0)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0] == f"changes: {(scores >= 6.0).sum()} pixels"
    with pytest.raises(ValueError, match=r"^change_figure: second: must have the size") as caught:
        pictures.change_figure(first, scene_of(12, 15), scores, 6.0)
    assert "got (12, 15)" in str(caught.value)


def test_comparison_sorts_curves_by_their_area(tmp_path):
    rng = np.random.default_rng(2)
    truth = rng.random((30, 30)) < 0.1
    maps = {f"d{k}": rng.normal(size=truth.shape) + k * truth for k in (1, 3, 2)}
    figure = pictures.comparison_figure(maps, truth, title="three")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.split(":")[0] for text in texts[:3]] == ["d3", "d2", "d1"]
    assert texts[0] == f"d3: {roc_areas(maps['d3'], truth).auc_df:.5f}"
    pictures.save(figure, tmp_path / "c.png")
    assert imread(tmp_path / "c.png").shape[0] > 300
    with pytest.raises(ValueError, match=r"^comparison_figure: scores: needs at least one"):
        pictures.comparison_figure({}, truth)


def test_latent_space_is_shown_in_its_principal_plane(tmp_path):
    rng = np.random.default_rng(3)
    codes = rng.normal(size=(20, 30, 6)) * [0.1, 5, 0.1, 2, 0.1, 0.1]
    codes[2, 3, 1] = np.nan
    figure = pictures.latent_figure(codes, title="codes")
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    wanted = codes.reshape(-1, 6)[np.isfinite(codes).all(2).ravel()][:, [1, 3]]
    assert len(points) == 599
    for axis in (0, 1):
        assert np.corrcoef(points[:, axis], wanted[:, axis])[0, 1] > 0.99
    assert figure.axes[0].get_xlabel().startswith("component 1: 8")
    pictures.save(figure, tmp_path / "l.png")
    assert imread(tmp_path / "l.png").shape[0] > 300


def test_latent_space_has_classes_or_scores():
    codes = np.random.default_rng(4).normal(size=(200, 2))
    labels = np.arange(200) % 10 == 0
    axes = pictures.latent_figure(codes, labels=labels).axes[0]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["False: 180", "True: 20"]
    assert axes.get_xlabel() == "unit 1"
    figure = pictures.latent_figure(codes, scores=codes[:, 1], label="height")
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_array_equal(drawn, codes[np.argsort(codes[:, 1])])
    assert figure.axes[1].get_ylabel() == "height"


@pytest.mark.parametrize(
    ("codes", "options", "rule"),
    [
        (np.zeros((9, 1)), {}, "codes: must have shape"),
        (np.full((9, 2), np.nan), {}, "codes: needs 3 finite ones"),
        (np.zeros((9, 2)), {"labels": np.zeros(8)}, "labels: must have the shape"),
        (np.zeros((9, 2)), {"labels": np.zeros(9), "scores": np.zeros(9)}, "labels: must not be"),
    ],
)
def test_wrong_codes(codes, options, rule):
    with pytest.raises(ValueError, match=f"^latent_figure: {rule}"):
        pictures.latent_figure(codes, **options)


def test_sheet_of_maps_has_no_panel_without_truth():
    scene = scene_of(8, 8)
    maps = {"rx": np.random.default_rng(0).random((8, 8))}
    titles = [a.get_title() for a in pictures.map_sheet([(scene, maps)], side=3.0).axes]
    assert titles == ["s", "rx"]


def test_photographs_keep_their_colours():
    image = np.zeros((4, 5, 3), np.uint8)
    image[1, 2] = 200, 0, 0
    rgb, caption = pictures.false_colour(Scene(image, "photo", "picture"))
    assert caption == "colour"
    assert rgb[1, 2, 0] > rgb[1, 2, 2]

import os

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import spectral.io.envi
from mahal import scenes
from mahal.scenes import SceneError
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

SHAPE = (5, 7, 4)
TRANSFORM = Affine(3.5, 0.0, 480805.4, 0.0, -3.5, 3618830.5)
UTM = ["UTM", "1.0", "1.0", "480805.4", "3618830.5", "3.5", "3.5", "11", "North", "units=Meters"]


@pytest.fixture
def cube():
    return np.random.default_rng(1).integers(-50, 6000, SHAPE).astype(np.int16)


@pytest.fixture
def target():
    return np.random.default_rng(2).random(SHAPE[:2]) < 0.2


def save_v5(path, **variables):
    scipy.io.savemat(path, variables)


def save_v73(path, **variables):
    """The layout MATLAB writes: 512 bytes of text in front, arrays with their axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            if isinstance(value, str):
                letters = np.frombuffer(value.encode("utf-16le"), "u2")
                item = file.create_dataset(name, data=letters)
                item.attrs["MATLAB_class"] = np.bytes_("char")
            else:
                file.create_dataset(name, data=np.asarray(value).T)
    with open(path, "r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(128))


def save_envi(path, cube, interleave="bip", **metadata):
    spectral.io.envi.save_image(
        str(path), cube, interleave=interleave, metadata=metadata, ext=".img", force=True
    )


def save_raster(path, bands, driver="GTiff", **options):
    bands = np.atleast_3d(bands)
    if "crs" not in options and "transform" not in options:
        options["transform"] = TRANSFORM
    with rasterio.open(
        path,
        "w",
        driver=driver,
        height=bands.shape[0],
        width=bands.shape[1],
        count=bands.shape[2],
        dtype=bands.dtype,
        **options,
    ) as file:
        file.write(np.moveaxis(bands, -1, 0))


@pytest.mark.parametrize("save", [save_v5, save_v73])
@pytest.mark.parametrize(
    "names",
    [
        ("data", "map"),
        ("data", "groundtruth"),
        ("hsi", "hsi_gt"),
        ("image", "mask"),
        ("hsi_img_sub", "gt"),
        ("Pavia", "map"),
    ],
)
def test_matlab_finds_image_and_truth_by_their_usual_names(tmp_path, cube, target, save, names):
    path = tmp_path / "s.mat"
    key, map_key = names
    save(path, **{key: cube, map_key: target.astype(float), "note": "text", "other": np.eye(2)})
    scene = scenes.read(path)
    np.testing.assert_array_equal(scene.image, cube)
    np.testing.assert_array_equal(scene.truth, target)
    assert scene.image.dtype == np.int16
    assert scene.image.flags.c_contiguous
    assert (scene.key, scene.map_key, scene.name, scene.format) == (key, map_key, "s", "matlab")
    assert {text.split()[0] for text in scene.unused} == {"note", "other"}


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_matlab_keys_by_name(tmp_path, cube, target, save):
    path = tmp_path / "s.mat"
    valid = np.ones(SHAPE[:2])
    valid[0] = 0
    save(path, a=cube, b=2 * cube, goal=target.astype(np.uint8), map=valid, valid=valid)
    scene = scenes.read(path, "b", "goal", mask_key="valid")
    np.testing.assert_array_equal(scene.image, 2 * cube)
    np.testing.assert_array_equal(scene.truth, target)
    np.testing.assert_array_equal(scene.mask, valid.astype(bool))


def test_matlab_wavelengths_in_micrometres_or_nanometres(tmp_path, cube):
    for factor in (1e-3, 1.0):
        centres = np.array([400.0, 700.0, 1000.0, 2500.0])
        save_v5(tmp_path / "s.mat", data=cube, wavelengths=centres * factor)
        np.testing.assert_allclose(scenes.read(tmp_path / "s.mat").wavelengths, centres)


def test_truth_of_the_turned_size_is_turned(tmp_path, cube, target):
    save_v5(tmp_path / "s.mat", data=cube, map=target.T.astype(np.uint8))
    np.testing.assert_array_equal(scenes.read(tmp_path / "s.mat").truth, target)


def test_class_map_under_a_usual_name_is_left_alone(tmp_path, cube):
    save_v5(tmp_path / "s.mat", data=cube, gt=np.arange(35).reshape(5, 7) % 3)
    scene = scenes.read(tmp_path / "s.mat")
    assert scene.truth is None
    assert scene.unused == ("gt (5 x 7)",)
    with pytest.raises(SceneError, match="gt must be 0 and one other value, got 3 values from 0"):
        scenes.read(tmp_path / "s.mat", map_key="gt")


@pytest.mark.parametrize("interleave", ["bil", "bip", "bsq"])
@pytest.mark.parametrize("byteorder", [0, 1])
def test_envi_interleaves_and_byte_orders(tmp_path, cube, interleave, byteorder):
    spectral.io.envi.save_image(
        str(tmp_path / "s.hdr"),
        cube,
        interleave=interleave,
        byteorder=byteorder,
        metadata={"wavelength": ["0.4", "0.5", "0.6", "0.7"], "wavelength units": "Micrometers"},
    )
    for name in ("s.hdr", "s.img"):
        scene = scenes.read(tmp_path / name)
        np.testing.assert_array_equal(scene.image, cube)
        assert scene.image.dtype.isnative
        assert scene.image.flags.c_contiguous
        np.testing.assert_allclose(scene.wavelengths, [400, 500, 600, 700])
        assert (scene.name, scene.format) == ("s", "envi")


def test_envi_data_file_without_suffix(tmp_path, cube):
    save_envi(tmp_path / "s.hdr", cube)
    os.rename(tmp_path / "s.img", tmp_path / "s")
    for name in ("s", "s.hdr"):
        np.testing.assert_array_equal(scenes.read(tmp_path / name).image, cube)


def test_envi_bad_bands_and_ignored_values(tmp_path, cube):
    cube[1, 2, 0] = cube[3, 3, 2] = -9999
    save_envi(
        tmp_path / "s.hdr",
        cube,
        **{"bbl": ["1", "0", "1", "1"], "data ignore value": "-9999", "wavelength": list("4567")},
    )
    scene = scenes.read(tmp_path / "s.hdr")
    np.testing.assert_array_equal(scene.image, cube[:, :, [0, 2, 3]])
    np.testing.assert_allclose(scene.wavelengths, [4000, 6000, 7000])
    assert scene.metadata["bad_bands"] == 1
    expected = np.ones(SHAPE[:2], dtype=bool)
    expected[1, 2] = expected[3, 3] = False
    np.testing.assert_array_equal(scene.mask, expected)


def test_geotiff_keeps_its_place_and_marks_missing_pixels(tmp_path, cube):
    cube[0, 0] = -1
    save_raster(tmp_path / "s.tif", cube, crs="EPSG:32611", transform=TRANSFORM, nodata=-1)
    with rasterio.open(tmp_path / "s.tif", "r+") as file:
        for band in range(1, 5):
            file.update_tags(band, wavelength=str(0.4 + band / 10), wavelength_units="Micrometers")
    scene = scenes.read(tmp_path / "s.tif")
    np.testing.assert_array_equal(scene.image, cube)
    assert scene.metadata["crs"] == CRS.from_epsg(32611)
    assert scene.metadata["transform"] == TRANSFORM
    assert not scene.mask[0, 0]
    assert scene.mask.sum() == 34
    np.testing.assert_allclose(scene.wavelengths, [500, 600, 700, 800])


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (["450 nm", "550.5 nm", "0.65 um", "band 4"], None),
        (["450 nm", "550.5 nm", "0.65 um", "865 Nanometers"], [450, 550.5, 650, 865]),
        (["1", "2", "3", "4"], None),
    ],
)
def test_geotiff_wavelengths_from_descriptions(tmp_path, cube, descriptions, expected):
    save_raster(tmp_path / "s.tif", cube)
    with rasterio.open(tmp_path / "s.tif", "r+") as file:
        file.descriptions = descriptions
    found = scenes.read(tmp_path / "s.tif").wavelengths
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected)


def test_numpy_scene(tmp_path, cube):
    np.save(tmp_path / "s.npy", np.asfortranarray(cube.astype(">i2")))
    scene = scenes.read(tmp_path / "s.npy")
    np.testing.assert_array_equal(scene.image, cube)
    assert scene.image.dtype.isnative
    assert scene.image.flags.c_contiguous


def truth_file(tmp_path, kind, target):
    path = tmp_path / f"truth.{kind}"
    if kind == "mat":
        save_v5(path, anything=target.astype(np.uint8), row=np.arange(4))
    elif kind == "npy":
        np.save(path, target)
    elif kind == "hdr":
        save_envi(path, target.astype(np.uint8)[:, :, None])
    else:
        driver = {"bmp": "BMP", "png": "PNG", "tif": "GTiff"}[kind]
        save_raster(path, target.astype(np.uint8) * 255, driver=driver)
    return path


@pytest.mark.parametrize("kind", ["mat", "npy", "hdr", "bmp", "png", "tif"])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_separate_truth(tmp_path, cube, target, kind):
    np.save(tmp_path / "s.npy", cube)
    path = truth_file(tmp_path, kind, target)
    np.testing.assert_array_equal(scenes.read(tmp_path / "s.npy", truth=path).truth, target)
    np.testing.assert_array_equal(scenes.read_truth(path), target)


def test_separate_truth_goes_before_the_one_inside_and_takes_the_key(tmp_path, cube, target):
    save_v5(tmp_path / "s.mat", data=cube, map=np.zeros(SHAPE[:2]))
    save_v5(tmp_path / "t.mat", a=target.astype(int), b=~target)
    scene = scenes.read(tmp_path / "s.mat", map_key="a", truth=tmp_path / "t.mat")
    np.testing.assert_array_equal(scene.truth, target)


def test_palette_counts_by_colour_not_by_index(tmp_path, target):
    # Index 0 is white here, as in pictures with an inverted palette.
    path = tmp_path / "t.png"
    save_raster(path, (~target).astype(np.uint8), driver="GTiff", photometric="palette")
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 255, 255, 255), 1: (0, 0, 0, 255)})
    np.testing.assert_array_equal(scenes.read_truth(path), target)


def test_grey_picture_stored_as_colour(tmp_path, target):
    grey = np.repeat(target[:, :, None].astype(np.uint8) * 255, 3, axis=2)
    save_raster(tmp_path / "t.tif", grey, photometric="RGB")
    np.testing.assert_array_equal(scenes.read_truth(tmp_path / "t.tif"), target)
    grey[0, 0, 1] ^= 255
    save_raster(tmp_path / "t.tif", grey, photometric="RGB")
    with pytest.raises(SceneError, match="one band or equal bands, got 3 bands"):
        scenes.read_truth(tmp_path / "t.tif")


def refused(text, *args, **kwargs):
    """The call must end in one line that names the path and has `text` in it."""
    with pytest.raises(SceneError) as caught:
        scenes.read(*args, **kwargs)
    message = str(caught.value)
    assert text in message
    assert message.startswith(str(args[0].parent))
    assert "\n" not in message


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_matlab_refusals(tmp_path, cube, target, save):
    path = tmp_path / "s.mat"
    save(path, a=cube, b=cube, gt=target, map=target, small=np.eye(2), text="abc")
    refused("key: several images, name one, has a (5 x 7 x 4), b (5 x 7 x 4)", path)
    refused("key: no variable 'c', has a (5 x 7 x 4), b", path, "c")
    refused("key: must be a numeric array of rank 3, got gt of shape (5, 7)", path, "gt")
    refused("key: must be a numeric array of rank 3, got text", path, "text")
    refused("map_key: several truth maps, name one, has", path, "a")
    refused("map_key: no variable 'x'", path, "a", "x")
    refused("map_key: must be a numeric array of rank 2, got b", path, "a", "b")
    refused("small must have the size of the image 5 x 7, got 2 x 2", path, "a", "small")
    refused("mask_key: no variable 'x'", path, "a", "gt", mask_key="x")
    save(path, x=np.eye(3))
    refused("key: no image (rows, cols, bands), has x (3 x 3)", path)
    save(path, data=cube, map=np.eye(6))
    refused("map must have the size of the image 5 x 7, got 6 x 6", path)


@pytest.mark.parametrize("save", [save_v5, save_v73])
def test_complex_matlab_image(tmp_path, cube, save):
    save(tmp_path / "s.mat", data=cube + 1j)
    np.testing.assert_array_equal(scenes.read(tmp_path / "s.mat").image, cube + 1j)


def test_square_image_with_truth_of_another_size(tmp_path):
    np.save(tmp_path / "s.npy", np.zeros((6, 6, 3)))
    np.save(tmp_path / "t.npy", np.zeros((6, 5)))
    refused(
        "t.npy: truth must have the size of the image 6 x 6, got 6 x 5",
        tmp_path / "s.npy",
        truth=tmp_path / "t.npy",
    )


def test_other_refusals(tmp_path, cube):
    refused("no such file", tmp_path / "none.mat")
    refused("must be a file, got a folder", tmp_path / ".")
    (tmp_path / "s.jp3").write_bytes(b"?")
    refused("unknown kind of file, must be one of MATLAB", tmp_path / "s.jp3")
    np.save(tmp_path / "flat.npy", cube[0, :, 0])
    refused("image must be (rows, cols, bands), got shape (7,)", tmp_path / "flat.npy")
    np.save(tmp_path / "none.npy", cube[:0])
    refused("image must be (rows, cols, bands), got shape (0, 7, 4)", tmp_path / "none.npy")
    np.save(tmp_path / "text.npy", np.full(SHAPE, "a"))
    refused("image must be numbers, got dtype <U1", tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    refused("cannot be read as a NumPy array", tmp_path / "objects.npy")
    np.save(tmp_path / "s.npy", cube)
    for option in ("key", "map_key", "mask_key"):
        refused(f"{option}: only MATLAB", tmp_path / "s.npy", **{option: "data"})
    save_envi(tmp_path / "s.hdr", cube, bbl=["0"] * 4)
    refused("bbl must leave at least one band", tmp_path / "s.hdr")
    (tmp_path / "s.img").unlink()
    refused("needs its data file beside it", tmp_path / "s.hdr")
    (tmp_path / "e.mat").write_bytes(b"")
    refused("cannot be read as a MATLAB file", tmp_path / "e.mat")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.arange(35).reshape(5, 7), "truth must be 0 and one other value, got 35 values from 0"),
        (np.full((5, 7), np.nan), "truth must be 0 and one other value"),
        (np.arange(35.0).reshape(5, 7) % 2 + 1, "truth must be 0 and one other value, got 2 val"),
        (np.zeros((5, 7, 2)), "a map must be (rows, cols), got shape (5, 7, 2)"),
    ],
)
def test_truth_refusals(tmp_path, values, text):
    np.save(tmp_path / "t.npy", values)
    with pytest.raises(SceneError) as caught:
        scenes.read_truth(tmp_path / "t.npy")
    assert text in str(caught.value)


def test_map_of_a_matlab_file(tmp_path, cube, target):
    path = tmp_path / "s.mat"
    save_v5(path, a=np.eye(3), scores=2.5 * np.eye(4), data=cube)
    np.testing.assert_array_equal(scenes.read_map(path), 2.5 * np.eye(4))
    np.testing.assert_array_equal(scenes.read_map(path, "a"), np.eye(3))
    save_v5(path, a=np.eye(3), b=np.eye(4))
    with pytest.raises(SceneError, match="key: several maps, name one, has a"):
        scenes.read_map(path)
    save_v5(path, data=cube)
    with pytest.raises(SceneError, match="key: no map"):
        scenes.read_map(path)


@pytest.mark.parametrize("kind", ["v5", "v5-compressed", "v73", "envi", "tif", "npy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95])
def test_truncated_file(tmp_path, kind, share):
    cube = np.random.default_rng(4).integers(0, 2**15, (20, 30, 8)).astype(np.int16)
    path = tmp_path / {"envi": "s.hdr", "tif": "s.tif", "npy": "s.npy"}.get(kind, "s.mat")
    if kind == "v73":
        save_v73(path, data=cube)
    elif kind.startswith("v5"):
        scipy.io.savemat(path, {"data": cube}, do_compression=kind == "v5-compressed")
    elif kind == "envi":
        save_envi(path, cube)
    elif kind == "tif":
        save_raster(path, cube, crs="EPSG:32611", transform=TRANSFORM)
    else:
        np.save(path, cube)
    np.testing.assert_array_equal(scenes.read(path).image, cube)
    damaged = path.with_suffix(".img") if kind == "envi" else path
    os.truncate(damaged, int(share * damaged.stat().st_size))
    refused("", path)


def scene_of(kind, tmp_path, cube):
    path = tmp_path / {"envi": "s.hdr", "geotiff": "s.tif", "npy": "s.npy"}.get(kind, "s.mat")
    if kind == "matlab":
        save_v5(path, data=cube)
    elif kind == "v73":
        save_v73(path, data=cube)
    elif kind == "envi":
        save_envi(path, cube, **{"map info": UTM})
    elif kind == "geotiff":
        save_raster(path, cube, crs="EPSG:32611", transform=TRANSFORM)
    else:
        np.save(path, cube)
    return scenes.read(path)


@pytest.mark.parametrize("kind", ["matlab", "v73", "envi", "geotiff", "npy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_come_back_in_the_scenes_kind(tmp_path, cube, kind, dtype):
    scene = scene_of(kind, tmp_path, cube)
    scores = np.random.default_rng(6).normal(size=SHAPE[:2]).astype(dtype)
    scores[2, 3] = np.nan
    written = scenes.write(tmp_path / "out_scores", scores, like=scene)
    assert written == scenes.score_paths(tmp_path / "out_scores", scene)
    assert all(path.is_file() for path in written)
    back = scenes.read_map(written[0])
    np.testing.assert_array_equal(back, scores)
    assert back.dtype == dtype
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_geotiff_scores_keep_their_place(tmp_path, cube):
    scene = scene_of("geotiff", tmp_path, cube)
    (path,) = scenes.write(tmp_path / "a.tiff", np.zeros(SHAPE[:2]), like=scene)
    with rasterio.open(path) as file:
        assert file.crs == CRS.from_epsg(32611)
        assert file.transform == TRANSFORM
        assert np.isnan(file.nodata)


def test_geotiff_scores_keep_control_points(tmp_path, cube):
    corners = [(0, 0, 10.0, 50.0), (5, 7, 10.5, 49.5), (0, 7, 10.5, 50.0)]
    points = [GroundControlPoint(*corner) for corner in corners]
    save_raster(tmp_path / "s.tif", cube, gcps=points, crs="EPSG:4326")
    scene = scenes.read(tmp_path / "s.tif")
    (path,) = scenes.write(tmp_path / "a", np.zeros(SHAPE[:2]), like=scene)
    with rasterio.open(path) as file:
        back, crs = file.gcps
        assert [(p.row, p.col, p.x, p.y) for p in back] == corners
        assert crs == CRS.from_epsg(4326)


def test_geotiff_without_place_gives_scores_without(tmp_path, cube):
    path = tmp_path / "s.tif"
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        save_raster(path, cube, transform=Affine.identity())
    scene = scenes.read(path)
    (written,) = scenes.write(tmp_path / "a", np.ones(SHAPE[:2]), like=scene)
    np.testing.assert_array_equal(scenes.read_map(written), np.ones(SHAPE[:2]))


def test_envi_scores_keep_their_place(tmp_path, cube):
    wkt = CRS.from_epsg(26711).to_wkt(version="WKT1_ESRI")
    save_envi(
        tmp_path / "s.hdr",
        cube,
        **{"map info": UTM, "coordinate system string": wkt.split(","), "x start": 28},
    )
    scene = scenes.read(tmp_path / "s.hdr")
    header, data = scenes.write(tmp_path / "a", np.zeros(SHAPE[:2]), like=scene)
    with rasterio.open(tmp_path / "s.img") as before, rasterio.open(data) as after:
        assert before.crs is not None
        assert after.crs == before.crs
        assert after.transform == before.transform
    assert spectral.io.envi.read_envi_header(str(header))["x start"] == "28"


def test_suffix_of_another_kind_is_refused(tmp_path, cube):
    scene = scene_of("npy", tmp_path, cube)
    assert scenes.score_paths("a.b", scene) == (scenes.score_paths("a.b.npy", scene)[0],)
    for name in ("a.mat", "a.tif", "a.hdr", "a.img", "a.tiff"):
        with pytest.raises(SceneError, match=r"suffix must be \.npy for a npy scene"):
            scenes.write(tmp_path / name, np.zeros(SHAPE[:2]), like=scene)


def test_write_refusals_leave_nothing(tmp_path, cube):
    scene = scene_of("npy", tmp_path, cube)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SceneError, match="output folder does not exist"):
        scenes.write(tmp_path / "none" / "a", np.zeros(SHAPE[:2]), like=scene)
    for wrong in (np.zeros((5, 6)), np.zeros((5, 7), dtype=complex), np.full((5, 7), "a")):
        with pytest.raises(SceneError, match=r"scores must be real numbers of shape \(5, 7\)"):
            scenes.write(tmp_path / "a", wrong, like=scene)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kind", ["matlab", "envi", "geotiff", "npy"])
def test_failure_while_writing_keeps_what_was_there(tmp_path, cube, kind, monkeypatch):
    scene = scene_of(kind, tmp_path, cube)
    written = scenes.write(tmp_path / "a", np.ones(SHAPE[:2]), like=scene)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    target = {
        "matlab": "scipy.io.savemat",
        "envi": "spectral.io.envi.save_image",
        "geotiff": "rasterio.open",
        "npy": "numpy.save",
    }[kind]

    def fail(path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(target, fail)
    with pytest.raises(OSError, match="disk full"):
        scenes.write(written[0], np.zeros(SHAPE[:2]), like=scene)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def fill_and_raise(folder, names, error):
    with scenes.staged(folder) as stage:
        for name in names:
            (stage / name).write_text("new")
        if error is not None:
            raise error


def test_staged_files_move_together_or_not_at_all(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(SceneError, match="must not be a folder"):
        fill_and_raise(tmp_path, ["a", "b"], None)
    assert os.listdir(tmp_path) == ["b"]
    with pytest.raises(KeyboardInterrupt):
        fill_and_raise(tmp_path, ["a"], KeyboardInterrupt())
    assert os.listdir(tmp_path) == ["b"]
    fill_and_raise(tmp_path, ["a", "c"], None)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_missing_library_names_the_extra(tmp_path, cube, monkeypatch):
    save_v5(tmp_path / "s.mat", data=cube)
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(ImportError, match=r"^scipy is needed here .*pip install mahal\[cli\]"):
        scenes.read(tmp_path / "s.mat")


def test_simulation_is_repeatable_and_depends_on_the_seed():
    first, same, other = (scenes.simulate(30, 40, 20, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, same.image)
    np.testing.assert_array_equal(first.truth, same.truth)
    assert np.any(first.image != other.image)
    assert np.any(first.truth != other.truth)
    assert first.image.shape == (30, 40, 20)
    assert first.image.dtype == np.uint16


def test_simulation_follows_its_mixing_model():
    plain = scenes.simulate(40, 50, 30, seed=5, targets=0, noise=0.0)
    mixed = scenes.simulate(40, 50, 30, seed=5, targets=12, noise=0.0)
    fractions = mixed.metadata["fractions"]
    np.testing.assert_array_equal(mixed.truth, fractions > 0)
    assert not plain.truth.any()
    assert 12 <= mixed.truth.sum() <= 48
    assert np.unique(fractions[mixed.truth]).size == 12
    f = fractions[..., None]
    expected = (1 - f) * plain.image + f * 10000 * mixed.metadata["target"]
    # Both images are rounded to whole numbers: half a unit each.
    assert np.abs(mixed.image - expected).max() <= 1.0
    np.testing.assert_allclose(mixed.metadata["abundances"].sum(axis=-1), 1.0, rtol=1e-12)


def test_simulated_noise_has_the_stated_level():
    quiet, noisy = (scenes.simulate(80, 80, 40, seed=6, noise=noise) for noise in (0.0, 0.004))
    difference = noisy.image.astype(float) - quiet.image
    level = difference.std(axis=(0, 1))
    # The quietest band: 40 units, times the root of 0.5 + reflectance / 0.4 with reflectance < 0.5.
    assert 40 * np.sqrt(0.5) < level.min() < 40 * np.sqrt(1.75)
    assert level[-1] > 1.5 * level.min()
    assert level[np.abs(quiet.wavelengths - 1880).argmin()] > 80


def test_simulated_bands_and_pixels_are_correlated():
    scene = scenes.simulate(60, 60, 50, seed=7)
    values = scene.image.astype(float)
    bands = np.corrcoef(values.reshape(-1, 50).T)
    assert np.median(np.diag(bands, 1)) > 0.9
    near = np.corrcoef(values[:, :-1, 20].ravel(), values[:, 1:, 20].ravel())[0, 1]
    far = np.corrcoef(values[:, :-30, 20].ravel(), values[:, 30:, 20].ravel())[0, 1]
    assert near > 0.8 > far


def test_simulation_of_extreme_sizes():
    assert scenes.simulate(1, 1, 1, targets=0).image.shape == (1, 1, 1)
    assert scenes.simulate(7, 70, 3, targets=10).truth.any(axis=0).reshape(10, 7).any(axis=1).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"rows": 0}, "rows: must be at least 1, got 0"),
        ({"bands": -1}, "bands: must be at least 1, got -1"),
        ({"targets": 999}, "targets: must be 0 to 196 in 100 x 100 pixels, got 999"),
        ({"targets": -1}, "targets: must be 0 to 196"),
        ({"fraction": (0.0, 0.5)}, "fraction: must be 0 < low <= high <= 1"),
        ({"fraction": (0.5, 0.4)}, "fraction: must be 0 < low <= high <= 1"),
        ({"fraction": (0.5, 1.1)}, "fraction: must be 0 < low <= high <= 1"),
        ({"noise": -1.0}, "noise: must not be negative, got -1.0"),
    ],
)
def test_simulation_refusals(arguments, text):
    with pytest.raises(ValueError, match=r"^simulate: ") as caught:
        scenes.simulate(**arguments)
    assert text in str(caught.value)

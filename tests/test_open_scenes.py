"""Scenes that are read piece by piece."""

import pickle

import numpy as np
import pytest
from mahal import scenes

pytest.importorskip("dask.array")
xarray = pytest.importorskip("xarray")
zarr = pytest.importorskip("zarr")
rasterio = pytest.importorskip("rasterio")
envi = pytest.importorskip("spectral.io.envi")


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(37, 45, 6)).astype(np.float32)


def same_pieces(opened, image):
    """Dimensions, dtype, values, and values of a part that cuts through pieces."""
    assert opened.dims == ("y", "x", "band")
    assert opened.dtype == image.dtype
    assert opened.data.numblocks[2] == 1
    np.testing.assert_array_equal(opened.data.compute(scheduler="sync"), image)
    part = opened[5:31, 9:40, 1:4].data.compute(scheduler="sync")
    np.testing.assert_array_equal(part, image[5:31, 9:40, 1:4])


@pytest.mark.parametrize("interleave", ["bip", "bil", "bsq"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_envi_of_every_interleave_is_read_in_pieces(tmp_path, image, interleave, order):
    metadata = {
        "wavelength": list(np.linspace(0.4, 1.0, 6)),
        "wavelength units": "Micrometers",
        "data ignore value": -1,
        "map info": ["UTM", 1, 1, 500000.0, 4000000.0, 2.0, 2.0, 33, "North"],
    }
    path = tmp_path / "scene.hdr"
    big = order == ">"
    envi.save_image(str(path), image, interleave=interleave, byteorder=int(big), metadata=metadata)
    opened = scenes.open(path, chunks=(16, 20))
    assert opened.data.chunks == ((16, 16, 5), (20, 20, 5), (6,))
    same_pieces(opened, image)
    np.testing.assert_allclose(opened["wavelength"], np.linspace(400, 1000, 6))
    assert opened.attrs["nodata"] == -1
    assert float(opened.x[0]) == 500001.0
    assert float(opened.y[0]) == 3999999.0
    assert opened.name == "scene"


def test_bad_bands_of_envi_are_left_out(tmp_path, image):
    path = tmp_path / "scene.hdr"
    envi.save_image(str(path), image, metadata={"bbl": [1, 1, 0, 1, 0, 1]})
    opened = scenes.open(path)
    same_pieces(opened, image[:, :, [0, 1, 3, 5]])
    assert opened.attrs["bad_bands"] == 2
    np.testing.assert_array_equal(scenes.read(path).image, opened.values)


@pytest.mark.parametrize("kind", ["float32", "uint16", "complex64"])
def test_geotiff_is_read_in_pieces(tmp_path, image, kind):
    values = (100 * np.abs(image)).astype(kind)
    path = tmp_path / "scene.tif"
    place = rasterio.Affine(0.5, 0, 10, 0, -0.25, 50)
    profile = {"width": 45, "height": 37, "count": 6, "dtype": kind, "transform": place}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:4326", nodata=0, **profile) as target:
        target.write(np.moveaxis(values, -1, 0))
        for band in range(6):
            target.set_band_description(band + 1, f"{400 + band} nm")
    opened = scenes.open(path, chunks=16)
    same_pieces(opened, values)
    assert opened.attrs["transform"] == (0.5, 0.0, 10.0, 0.0, -0.25, 50.0)
    assert opened.attrs["nodata"] == 0
    assert "4326" in opened.attrs["crs"]
    np.testing.assert_allclose(opened.y[:2], [49.875, 49.625])
    np.testing.assert_allclose(opened["wavelength"], 400 + np.arange(6))
    assert list(opened["band_name"].values[:2]) == ["400 nm", "401 nm"]


@pytest.mark.parametrize("layout", ["C", "F"])
def test_npy_is_read_in_pieces(tmp_path, image, layout):
    path = tmp_path / "scene.npy"
    np.save(path, np.asarray(image, order=layout))
    same_pieces(scenes.open(path, chunks=16), image)
    np.save(path, np.asarray(np.moveaxis(image, -1, 0), order=layout))
    same_pieces(scenes.open(path, channels="first"), image)
    np.save(path, image[:, :, 0])
    same_pieces(scenes.open(path), image[:, :, :1])


def test_zarr_array_is_opened_with_its_own_pieces(tmp_path, image):
    path = tmp_path / "scene.zarr"
    array = zarr.create_array(str(path), shape=image.shape, chunks=(16, 16, 3), dtype="float32")
    array[...] = image
    array.attrs["nodata"] = -1.0
    opened = scenes.open(path)
    assert opened.data.chunks == ((16, 16, 5), (16, 16, 13), (6,))
    same_pieces(opened, image)
    assert opened.attrs["nodata"] == -1.0
    same_pieces(scenes.open(path, channels="first"), np.moveaxis(image, 0, -1))


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_of_xarray_keeps_names_coordinates_and_attributes(tmp_path, image, version):
    source = xarray.DataArray(
        np.moveaxis(image, -1, 0),
        dims=("wavelength", "lat", "lon"),
        coords={"wavelength": np.linspace(400, 900, 6), "lat": np.arange(37.0), "lon": range(45)},
        attrs={"crs": "EPSG:4326"},
        name="radiance",
    )
    path = tmp_path / "scene.zarr"
    source.to_zarr(path, zarr_format=version, consolidated=False)
    opened = scenes.open(path, chunks=20)
    same_pieces(opened, image)
    assert opened.name == "radiance"
    assert opened.attrs["crs"] == "EPSG:4326"
    assert opened["wavelength"].dims == ("band",)
    assert opened["lat"].dims == ("y",)
    np.testing.assert_array_equal(opened["lon"], np.arange(45))


def test_pieces_can_be_sent_to_other_processes(tmp_path, image):
    np.save(tmp_path / "scene.npy", image)
    opened = scenes.open(tmp_path / "scene.npy", chunks=16)
    sent = pickle.dumps(opened)
    assert len(sent) < image.nbytes / 4
    np.testing.assert_array_equal(pickle.loads(sent).data.compute(scheduler="sync"), image)


def test_a_file_written_anew_is_another_array(tmp_path, image):
    path = tmp_path / "scene.npy"
    np.save(path, image)
    first = scenes.open(path).data.name
    assert scenes.open(path).data.name == first
    np.save(path, image[:30])
    assert scenes.open(path).data.name != first


@pytest.mark.parametrize(
    ("make", "options", "rule"),
    [
        (lambda p, x: p / "gone.npy", {}, "no such file"),
        (lambda p, x: saved(p / "a.npy", x), {"chunks": 0}, "chunks: must be"),
        (lambda p, x: saved(p / "a.npy", x), {"chunks": (4, 4, 4)}, "chunks: must be"),
        (lambda p, x: saved(p / "a.npy", x), {"key": "b"}, "only Zarr groups have keys"),
        (lambda p, x: saved(p / "a.npy", x), {"channels": "up"}, "channels: must be"),
        (lambda p, x: saved(p / "a.npy", x[0, 0]), {}, "image must be"),
        (lambda p, x: saved(p / "a.npy", x > 0), {}, "image must be numbers"),
        (lambda p, x: written(p / "a.dat"), {}, "unknown kind of file to open"),
        (lambda p, x: truncated(p, x), {}, "truncated"),
        (lambda p, x: group(p, x, 2), {}, "several images, name one"),
        (lambda p, x: group(p, x, 0), {}, "no image"),
        (lambda p, x: group(p, x, 1), {"key": "z"}, "no image 'z'"),
        (lambda p, x: p, {}, "cannot be read as a Zarr store"),
    ],
)
def test_what_is_no_scene_is_refused(tmp_path, image, make, options, rule):
    path = make(tmp_path, image)
    with pytest.raises(scenes.SceneError, match=rule) as error:
        scenes.open(path, **options)
    assert "\n" not in str(error.value)


def saved(path, values):
    np.save(path, values)
    return path


def written(path):
    path.write_bytes(b"abc")
    return path


def truncated(folder, image):
    envi.save_image(str(folder / "cut.hdr"), image)
    (folder / "cut.img").write_bytes(b"0" * 100)
    return folder / "cut.hdr"


def group(folder, image, count):
    path = folder / "group.zarr"
    root = zarr.create_group(str(path))
    for name in "ab"[:count]:
        root.create_array(name, data=image)
    return path

"""The accessor gives what the functions give, with the names of the scene."""

import re
from pathlib import Path

import mahal
import numpy as np
import pytest

xarray = pytest.importorskip("xarray")
pytest.importorskip("dask.array")

import mahal.xarray  # noqa: E402

TARGET = np.array([1.0, 2.0, 0.5, 1.5])


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(40, 36, 4)).astype(np.float32)


@pytest.fixture(params=["memory", "dask"])
def scene(image, request):
    found = xarray.DataArray(
        image,
        dims=("northing", "easting", "band"),
        coords={
            "northing": np.arange(40.0)[::-1],
            "easting": np.arange(36.0),
            "wavelength": ("band", [400.0, 500, 600, 700]),
            "slope": (("northing", "easting"), image[:, :, 0]),
            "time": 7,
        },
        attrs={"crs": "EPSG:32633"},
        name="radiance",
    )
    return found.chunk(northing=15, easting=20) if request.param == "dask" else found


CALLS = {
    "rx": ((), {"window": (3, 9), "estimator": "oas"}),
    "ace": ((TARGET,), {}),
    "matched_filter": ((TARGET,), {"window": 9, "center": False}),
    "cem": ((TARGET,), {}),
    "spectral_angle": ((TARGET,), {}),
    "fused_rx": ((), {"window": (3, 9), "components": 2}),
}


@pytest.mark.parametrize("op", CALLS)
def test_scores_keep_coordinates_and_attributes(scene, image, op):
    arguments, options = CALLS[op]
    found = getattr(scene.mahal, op)(*arguments, **options)
    assert (found.chunks is None) == (scene.chunks is None)
    assert found.dims == ("northing", "easting")
    assert found.attrs == scene.attrs
    assert found.name == op
    assert set(found.coords) == {"northing", "easting", "slope", "time"}
    xarray.testing.assert_equal(found["slope"], scene["slope"])
    wanted = getattr(mahal, op)(image, *arguments, **options)
    np.testing.assert_allclose(found.values, wanted, rtol=2e-5, atol=1e-6)
    assert found.dtype == wanted.dtype


def test_the_bands_may_be_any_dimension(scene, image):
    turned = scene.transpose("band", "easting", "northing")
    found = turned.mahal.rx()
    assert found.dims == ("easting", "northing")
    np.testing.assert_allclose(found.values.T, mahal.rx(image), rtol=1e-6)


def test_a_label_finds_the_pixel(scene, image):
    found, status = scene.mahal.rx(window=9, return_status=True)
    assert status.name == "rx_status"
    wanted = mahal.rx(image, window=9)[39 - 12, 5]
    assert float(found.sel(northing=12, easting=5)) == pytest.approx(float(wanted), rel=1e-4)


def test_declared_gaps_are_masked(scene, image):
    holed = scene.copy(data=scene.data.copy())
    holed = holed.where((holed.northing > 30) | (holed.easting > 3), -9999.0)
    holed.attrs["nodata"] = -9999.0
    used = (holed.northing.values[:, None] > 30) | (holed.easting.values > 3)
    found, status = holed.mahal.rx(return_status=True)
    np.testing.assert_array_equal(status.values == 4, ~used)
    np.testing.assert_allclose(found.values, mahal.rx(image, mask=used), rtol=1e-6)


def test_covariances_have_two_dimensions_of_bands(scene, image):
    mean, covariance = scene.mahal.local_covariance(7)
    assert mean.dims == ("northing", "easting", "band")
    assert covariance.dims == ("northing", "easting", "band", "band_2")
    np.testing.assert_array_equal(mean["wavelength"], scene["wavelength"])
    wanted = mahal.local_covariance(image, 7)
    np.testing.assert_allclose(covariance.values, wanted[1], rtol=1e-6, atol=1e-7)
    scales = scene.mahal.local_covariance([5, 7], return_status=True)
    assert scales[1].dims == ("northing", "easting", "scale", "band", "band_2")
    assert scales[2].dims == ("northing", "easting", "scale")


def test_changes_are_those_of_the_arrays(scene, image):
    other = scene * 1.5
    found = scene.mahal.change_map(other, 9)
    assert found.attrs == scene.attrs
    np.testing.assert_allclose(found.values, mahal.change_map(image, image * 1.5, 9), rtol=1e-6)


def test_several_targets_get_a_dimension(scene):
    found = scene.mahal.ace(np.stack([TARGET, TARGET[::-1]]))
    assert found.dims == ("northing", "easting", "target")
    assert found.shape[2] == 2


def test_errors_name_the_op(scene):
    with pytest.raises(ValueError, match=r"^rx: window"):
        scene.mahal.rx(window=4)
    with pytest.raises(ValueError, match=r"^rx: image: must have 3 axes"):
        scene[:, :, 0].mahal.rx()


def test_results_have_the_pieces_of_the_scene(scene):
    found = scene.mahal.rx(window=(3, 31))
    assert found.chunks == (None if scene.chunks is None else scene.chunks[:2])


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    rasterio = pytest.importorskip("rasterio")
    pytest.importorskip("torch")
    pytest.importorskip("lightning")
    from mahal.models import SpectralAutoencoder

    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(1).normal(size=(50, 45, 6)).astype(np.float32)
    place = rasterio.Affine(2, 0, 500000, 0, -2, 4000000)
    profile = {"height": 50, "width": 45, "count": 6, "dtype": "float32", "transform": place}
    with rasterio.open("BIG.tif", "w", driver="GTiff", crs="EPSG:32633", **profile) as target:
        target.write(np.moveaxis(image, -1, 0))
    SpectralAutoencoder(latent=2, epochs=1, runs=1).fit(image).save("model.safetensors")
    text = (Path(__file__).parents[1] / "docs" / "big.md").read_text(encoding="utf-8")
    variables = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        exec(block, variables)
    stored = xarray.open_zarr("scores.zarr", consolidated=False)["rx"]
    np.testing.assert_allclose(stored.values, mahal.rx(image, window=(5, 21)), rtol=2e-5)
    assert "32633" in stored.attrs["crs"]
    assert float(stored.x[0]) == 500001.0
    np.testing.assert_allclose(variables["scores"].values, mahal.rx(image), rtol=1e-6)
    assert variables["anomalies"].shape == (50, 45)

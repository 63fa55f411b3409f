"""Reading radar data and targets: what each kind of file means, and what is refused."""

import h5py
import numpy as np
import pytest
import rasterio
import spectral.io.envi
from mahal import scenes
from mahal.scenes import SceneError
from rasterio.transform import Affine

ROWS, COLS = 6, 5


@pytest.fixture
def slc():
    rng = np.random.default_rng(3)
    both = rng.normal(size=(2, ROWS, COLS, 4))
    return (both[0] + 1j * both[1]).astype(np.complex64)


def refused(text, call, *args, **kwargs):
    with pytest.raises(SceneError) as caught:
        call(*args, **kwargs)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


# NumPy


def test_layout_of_numpy_arrays_is_what_the_caller_says(tmp_path, slc):
    path = tmp_path / "s.npy"
    np.save(path, slc)
    np.testing.assert_array_equal(scenes.read(path).image, slc)
    first = scenes.read(path, channels="first").image
    np.testing.assert_array_equal(first, np.moveaxis(slc, 0, -1))
    assert first.flags.c_contiguous
    np.save(path, slc[:, :, 0])
    for channels in (None, "last", "first"):
        np.testing.assert_array_equal(scenes.read(path, channels=channels).image, slc[:, :, :1])
    refused("channels: must be 'last' or 'first', got 'auto'", scenes.read, path, channels="auto")
    np.save(path, slc.real.astype(">f4"))
    assert scenes.read(path).image.dtype == np.dtype("=f4")


def test_npz_by_names(tmp_path, slc):
    path = tmp_path / "s.npz"
    classes = np.zeros((ROWS, COLS), dtype=np.uint8)
    classes[1, 2], classes[3, 4] = 1, 3
    np.savez_compressed(path, slc=np.moveaxis(slc, -1, 0), clutter=slc[:3], mask=classes)
    scene = scenes.read(path, channels="first")
    np.testing.assert_array_equal(scene.image, slc)
    assert (scene.format, scene.key, scene.truth, scene.map_key) == ("npz", "slc", None, None)
    assert scene.unused == ("clutter (3 x 5 x 4)", "mask (6 x 5)")
    scene = scenes.read(path, map_key="mask", channels="first")
    np.testing.assert_array_equal(scene.truth, classes > 0)
    np.testing.assert_array_equal(scene.metadata["classes"], classes)
    assert scenes.read(path, "clutter").image.shape == (3, 5, 4)
    assert scenes.score_paths(tmp_path / "o", scene) == (tmp_path / "o.npy",)
    refused("key: no array 'x', has slc (4 x 6 x 5), clutter", scenes.read, path, "x")
    refused("map_key: no array 'x'", scenes.read, path, map_key="x")
    refused("mask must have the size of the image 3 x 5", scenes.read, path, "clutter", "mask")
    refused("slc must be whole numbers (rows, cols)", scenes.read, path, "clutter", "slc")
    np.savez(path, a=slc, b=slc)
    refused("key: several images, name one, has a (6 x 5 x 4), b", scenes.read, path)
    np.savez(path, a=slc[0, 0])
    refused("key: no image of rank 3, has a (4)", scenes.read, path)
    refused("a must be (rows, cols, bands), got shape (4,)", scenes.read, path, "a")
    path.write_bytes(path.read_bytes()[:50])
    refused("cannot be read as a .npz file", scenes.read, path)
    refused("unknown kind of map", scenes.read_map, path)


# PolSARpro


def config(folder, rows=ROWS, cols=COLS):
    folder.mkdir(exist_ok=True)
    text = f"Nrow\n{rows}\n---------\nNcol\n{cols}\n---------\nPolarCase\nmonostatic\n"
    (folder / "config.txt").write_text(text + "---------\nPolarType\nfull\n")


def save_matrices(folder, letter, matrices):
    config(folder)
    size = matrices.shape[-1]
    for i in range(size):
        for j in range(i, size):
            stem, values = f"{letter}{i + 1}{j + 1}", matrices[:, :, i, j]
            if i == j:
                values.real.astype("<f4").tofile(folder / f"{stem}.bin")
            else:
                values.real.astype("<f4").tofile(folder / f"{stem}_real.bin")
                values.imag.astype("<f4").tofile(folder / f"{stem}_imag.bin")


@pytest.mark.parametrize("kind", ["T2", "T3", "T4", "C2", "C3", "C4"])
def test_matrix_folders(tmp_path, slc, kind):
    size = int(kind[1])
    vectors = slc[:, :, :size]
    matrices = np.einsum("rci,rcj->rcij", vectors, vectors.conj())
    save_matrices(tmp_path / kind, kind[0], matrices)
    scene = scenes.read(tmp_path / kind)
    np.testing.assert_array_equal(scene.covariance, scene.covariance.conj().swapaxes(2, 3))
    bound = 4 * np.finfo(np.float32).eps * np.abs(matrices).max()
    np.testing.assert_allclose(scene.covariance, matrices, rtol=0, atol=bound)
    amplitude = np.sqrt(np.diagonal(scene.covariance, axis1=2, axis2=3).real)
    np.testing.assert_array_equal(scene.image, amplitude)
    assert scene.image.dtype == np.float32
    assert scene.covariance.dtype == np.complex64
    assert (scene.name, scene.format, scene.path) == (kind, "polsarpro", tmp_path / kind)
    assert len(scene.polarisations) == size
    names = scene.polarisations[1], scene.polarisations[0]
    part = scenes.read(tmp_path / kind, polarisations=names)
    np.testing.assert_array_equal(part.image, scene.image[:, :, 1::-1])
    np.testing.assert_array_equal(part.covariance, scene.covariance[:, :, 1::-1, 1::-1])
    assert part.polarisations == names


def test_scattering_folder(tmp_path, slc):
    folder = tmp_path / "S2"
    config(folder)
    for k, stem in enumerate(("s11", "s12", "s21", "s22")):
        slc[:, :, k].astype("<c8").tofile(folder / f"{stem}.bin")
    scene = scenes.read(folder)
    np.testing.assert_array_equal(scene.image, slc)
    assert scene.polarisations == ("HH", "HV", "VH", "VV")
    assert scene.covariance is None
    part = scenes.read(folder, polarisations=("VV", "HH"))
    np.testing.assert_array_equal(part.image, slc[:, :, [3, 0]])
    refused("polarisations: no 'RH', has HH, HV, VH, VV", scenes.read, folder, polarisations="RH")
    for wrong in (("HH", "HH"), ()):
        refused("polarisations: must be different", scenes.read, folder, polarisations=wrong)


def test_negative_power_has_no_amplitude(tmp_path):
    matrices = np.tile(np.eye(3, dtype=np.complex64), (ROWS, COLS, 1, 1))
    matrices[1, 1, 2, 2] = -1
    save_matrices(tmp_path / "T3", "T", matrices)
    scene = scenes.read(tmp_path / "T3")
    missing = np.zeros(scene.image.shape, dtype=bool)
    missing[1, 1, 2] = True
    np.testing.assert_array_equal(np.isnan(scene.image), missing)
    assert scene.covariance[1, 1, 2, 2] == -1


def test_polsarpro_refusals(tmp_path):
    folder = tmp_path / "T3"
    matrices = np.tile(np.eye(3, dtype=np.complex64), (ROWS, COLS, 1, 1))
    save_matrices(folder, "T", matrices)
    refused("frequency: only NISAR files have frequencies", scenes.read, folder, frequency="A")
    (folder / "T13_imag.bin").write_bytes(b"1234")
    refused("T13_imag.bin: must have 120 bytes for 6 x 5, got 4", scenes.read, folder)
    (folder / "T13_imag.bin").unlink()
    refused("T13_imag.bin: no such file", scenes.read, folder)
    (folder / "C11.bin").write_bytes(b"")
    refused("must hold one of T11.bin, C11.bin, s11.bin, got T11.bin, C11.bin", scenes.read, folder)
    config(folder, rows=0)
    refused("config.txt: must give Nrow and Ncol above 0, got 0 x 5", scenes.read, folder)
    (folder / "config.txt").unlink()
    refused("config.txt: no such file", scenes.read, folder)
    empty = tmp_path / "empty"
    config(empty)
    refused("must hold one of T11.bin, C11.bin, s11.bin, got none", scenes.read, empty)
    np.ones((ROWS, COLS), "<f4").tofile(empty / "T11.bin")
    refused("T22.bin: no such file", scenes.read, empty)
    refused("must be a file, got a folder", scenes.read, tmp_path)


# GeoTIFF and NISAR


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_geotiff(tmp_path, slc, dtype):
    values = np.round(100 * slc[:, :, :2]) if dtype == "complex_int16" else slc[:, :, :2]
    path = tmp_path / "s.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=ROWS,
        width=COLS,
        count=2,
        dtype=dtype,
        transform=Affine(3.5, 0, 4e5, 0, -3.5, 3e6),
    ) as file:
        file.write(np.moveaxis(values, -1, 0).astype("c16" if dtype == "complex128" else "c8"))
        file.descriptions = ("HH", "hv")
    scene = scenes.read(path)
    np.testing.assert_array_equal(scene.image, values)
    assert scene.image.dtype.kind == "c"
    assert scene.polarisations == ("HH", "HV")
    part = scenes.read(path, polarisations=["HV"])
    np.testing.assert_array_equal(part.image, values[:, :, 1:])
    assert part.polarisations == ("HV",)
    refused("polarisations: no 'VV', has HH, HV", scenes.read, path, polarisations=["VV"])


def save_nisar(path, sensor="LSAR", product="RSLC", **frequencies):
    with h5py.File(path, "w") as file:
        file.create_group(f"science/{sensor}/identification")
        for name, layers in frequencies.items():
            group = file.create_group(f"science/{sensor}/{product}/swaths/{name}")
            group["slantRange"] = np.arange(3.0)
            for pol, values in layers.items():
                group[pol] = values


@pytest.mark.parametrize("product", ["RSLC", "SLC"])
def test_nisar_layers_of_both_number_types(tmp_path, slc, product):
    half = np.zeros((ROWS, COLS), dtype=[("r", "<f2"), ("i", "<f2")])
    half["r"], half["i"] = slc[:, :, 1].real, slc[:, :, 1].imag
    path = tmp_path / "s.h5"
    save_nisar(
        path,
        product=product,
        frequencyA={"HV": half, "HH": slc[:, :, 0]},
        frequencyB={"VV": slc[:, :, 2]},
    )
    scene = scenes.read(path)
    assert scene.polarisations == ("HH", "HV")
    assert scene.image.dtype == np.complex64
    np.testing.assert_array_equal(scene.image[:, :, 0], slc[:, :, 0])
    np.testing.assert_array_equal(scene.image[:, :, 1], half["r"] + 1j * half["i"])
    assert scene.metadata["frequency"] == "A"
    other = scenes.read(path, frequency="B")
    np.testing.assert_array_equal(other.image, slc[:, :, 2:3])
    part = scenes.read(path, polarisations=["HV"])
    assert part.image.shape == (ROWS, COLS, 1)
    refused("polarisations: no 'VV', has HH, HV", scenes.read, path, polarisations=["VV"])
    refused("frequency: no 'C', has A, B", scenes.read, path, frequency="C")


def test_nisar_refusals(tmp_path, slc):
    path = tmp_path / "s.h5"
    save_nisar(path, product="GCOV", frequencyA={"HH": slc[:, :, 0]})
    refused("must have one of science/LSAR or SSAR, RSLC or SLC, got none", scenes.read, path)
    save_nisar(path, frequencyA={"HH": slc[:, :, 0].real})
    refused("HH must be complex, got dtype float32", scenes.read, path)
    save_nisar(path, frequencyA={})
    refused("frequency A must have an image, got none", scenes.read, path)
    refused("key: only MATLAB and .npz files have keys", scenes.read, path, "HH")
    path.write_bytes(path.read_bytes()[:200])
    refused("cannot be read as a NISAR product", scenes.read, path)


def save_bmp(path, bands):
    with rasterio.open(
        path,
        "w",
        driver="BMP",
        height=bands.shape[0],
        width=bands.shape[1],
        count=bands.shape[2],
        dtype="uint8",
    ) as file:
        file.write(np.moveaxis(bands, -1, 0))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_are_scenes(tmp_path):
    rng = np.random.default_rng(5)
    rgb = rng.integers(0, 255, (ROWS, COLS, 3), dtype=np.uint8)
    save_bmp(tmp_path / "s.bmp", rgb)
    np.testing.assert_array_equal(scenes.read(tmp_path / "s.bmp").image, rgb)
    save_bmp(tmp_path / "s.bmp", np.repeat(rgb[:, :, :1], 3, axis=2))
    scene = scenes.read(tmp_path / "s.bmp")
    np.testing.assert_array_equal(scene.image, rgb[:, :, :1])
    assert scene.format == "picture"
    refused("channels: only NumPy files", scenes.read, tmp_path / "s.bmp", channels="first")


# Targets


@pytest.fixture
def scene():
    rng = np.random.default_rng(8)
    return scenes.Scene(
        rng.random((ROWS, COLS, 4)), "s", "npy", wavelengths=np.array([500.0, 600, 700, 800])
    )


def test_target_from_a_pixel_and_from_files(tmp_path, scene):
    np.testing.assert_array_equal(scenes.read_target("2,3", scene), scene.image[2, 3])
    values = np.array([0.1, 0.25, 1e-3, 4.0])
    for text in ("0.1,0.25,1e-3,4\n", "# spectrum\n0.1\n0.25\n1e-3\n4.0\n", " 0.1 0.25  1e-3 4"):
        (tmp_path / "t.csv").write_text(text)
        np.testing.assert_array_equal(scenes.read_target(tmp_path / "t.csv", scene), values)
    (tmp_path / "t.txt").write_text("1 2 3 4\n5 6 7 8\n")
    assert scenes.read_target(tmp_path / "t.txt", scene).shape == (2, 4)
    np.save(tmp_path / "t.npy", values.astype(np.complex64) * 1j)
    found = scenes.read_target(tmp_path / "t.npy", scene)
    np.testing.assert_array_equal(found, values.astype(np.complex64) * 1j)
    assert found.dtype == np.complex128


def save_library(path, spectra, names, wavelengths=None, units="Nanometers"):
    metadata = {"spectra names": names}
    if wavelengths is not None:
        metadata |= {"wavelength": list(wavelengths), "wavelength units": units}
    library = spectral.io.envi.SpectralLibrary(np.asarray(spectra, dtype=np.float32), metadata)
    library.save(str(path))


def test_target_from_a_library(tmp_path, scene):
    spectra = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    save_library(tmp_path / "lib", spectra, ["roof", "grass, dry"])
    for name in ("lib.sli", "lib.hdr"):
        np.testing.assert_array_equal(scenes.read_target(tmp_path / name, scene), spectra)
        found = scenes.read_target(tmp_path / name, scene, "roof")
        np.testing.assert_array_equal(found, spectra[0])
    refused("name: no spectrum 'x', has roof", scenes.read_target, tmp_path / "lib.sli", scene, "x")
    # A straight line is what linear interpolation keeps.
    fine = np.arange(0.4, 0.91, 0.05)
    save_library(tmp_path / "fine", [3 * fine + 1], ["line"], fine, "Micrometers")
    found = scenes.read_target(tmp_path / "fine.sli", scene)
    np.testing.assert_allclose(found, 3 * scene.wavelengths / 1000 + 1, rtol=1e-6)
    save_library(tmp_path / "short", [fine[:5]], ["line"], fine[:5], "Micrometers")
    refused(
        "target: must reach the 500 to 800 nm of the scene, got 400 to 600 nm",
        scenes.read_target,
        tmp_path / "short.sli",
        scene,
    )


def test_target_refusals(tmp_path, scene):
    def wrong(text, source, name=None):
        refused(text, scenes.read_target, source, scene, name)

    wrong("6,0: target: must lie in the 6 x 5 pixels", "6,0")
    wrong("target: no such file, and not ROW,COL", tmp_path / "none.txt")
    wrong("name: only ENVI libraries have names, got 'a'", "1,1", "a")
    (tmp_path / "t.txt").write_text("1 2 3\n")
    wrong("target: must have the 4 bands of the scene, got shape (1, 3)", tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("1 2 3 4\n1 2\n")
    wrong("every line must have as many numbers", tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("red green\n")
    wrong("cannot be read as text with numbers", tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text("1 2 3 nan\n")
    wrong("target: must be finite", tmp_path / "t.txt")
    (tmp_path / "t.sli").write_bytes(b"")
    wrong("needs its header beside it, t.hdr", tmp_path / "t.sli")
    spectral.io.envi.save_image(str(tmp_path / "i.hdr"), scene.image, ext=".img")
    wrong("must be a spectral library, got an image", tmp_path / "i.hdr")
    np.save(tmp_path / "t.npy", np.array(["a"] * 4))
    wrong("target: must be numbers, got dtype <U1", tmp_path / "t.npy")

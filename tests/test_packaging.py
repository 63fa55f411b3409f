"""What is installed: files, symbols, dependencies."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from mahal import _core

ROOT = Path(__file__).parents[1]
PACKAGE = Path(_core.__file__).parent
LIBRARY = PACKAGE / "lib" / "libmahal.so"

needs_binutils = pytest.mark.skipif(
    shutil.which("nm") is None or shutil.which("readelf") is None, reason="needs nm and readelf"
)


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def dynamic(path, tag):
    return re.findall(rf"\({tag}\).*\[(.*)\]", output("readelf", "-d", str(path)))


@pytest.fixture
def kernel_objects():
    """Objects of the kernels that are compiled once per instruction set."""
    if "MAHAL_BUILD_DIR" not in os.environ:
        pytest.skip("no build folder (MAHAL_BUILD_DIR)")
    objects = list(Path(os.environ["MAHAL_BUILD_DIR"]).rglob("mahal_simd_*.dir/**/*.o"))
    assert objects
    return objects


@needs_binutils
def test_kernels_have_no_weak_symbols(kernel_objects):
    # A weak symbol is one that the linker may take from the object of another instruction set.
    for path in kernel_objects:
        symbols = [line.split() for line in output("nm", "--defined-only", str(path)).splitlines()]
        weak = [symbol[-1] for symbol in symbols if symbol[-2] in {"W", "V", "u", "w", "v"}]
        assert not weak, f"{path}: {weak[:5]}"
        assert any(symbol[-2] == "T" for symbol in symbols), f"{path} defines nothing"


@needs_binutils
def test_kernels_call_nothing_but_memory_and_maths(kernel_objects):
    allowed = re.compile(
        r"mem(cpy|move|set|cmp)|_GLOBAL_OFFSET_TABLE_|__stack_chk_fail|(sqrt|log|exp|pow|fma)f?"
    )
    for path in kernel_objects:
        wanted = [line.split()[-1] for line in output("nm", "-u", str(path)).splitlines()]
        assert not [symbol for symbol in wanted if not allowed.fullmatch(symbol)], path


@needs_binutils
@pytest.mark.parametrize("path", [LIBRARY, Path(_core.__file__)], ids=["libmahal", "_core"])
def test_only_system_libraries_are_needed(path):
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libpthread.so.0"}
    system |= {"libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    own = set() if path == LIBRARY else {"libmahal.so"}
    assert set(dynamic(path, "NEEDED")) - system == own


@needs_binutils
def test_the_module_finds_its_library_beside_it():
    assert dynamic(_core.__file__, "RUNPATH") == ["$ORIGIN/lib"]
    assert dynamic(LIBRARY, "RUNPATH") == []


@needs_binutils
def test_the_library_shows_its_own_symbols_only():
    listed = output("nm", "-DC", "--defined-only", str(LIBRARY)).splitlines()
    names = [line.split(" ", 2)[2] for line in listed]
    assert any("mahal::active_isa" in name for name in names)
    # Templates of the standard library are weak and shared by design; anything else is ours.
    foreign = [
        name
        for line, name in zip(listed, names, strict=True)
        if line.split()[1] not in {"W", "V", "u"} and "mahal::" not in name
    ]
    assert foreign == []


def test_installed_files():
    for name in (
        "lib/libmahal.so",
        "lib/cmake/mahal/mahalConfig.cmake",
        "lib/cmake/mahal/mahalConfigVersion.cmake",
        "include/mahal/tensor.hpp",
        "include/mahal/error.hpp",
        "include/mahal/context.hpp",
        "include/mahal/version.hpp",
    ):
        assert (PACKAGE / name).is_file(), name


def test_every_public_header_is_installed():
    headers = {p.name for p in (ROOT / "csrc" / "include" / "mahal").glob("*.hpp")}
    assert headers <= {p.name for p in (PACKAGE / "include" / "mahal").glob("*.hpp")}


def test_the_cmake_package_names_no_folder_of_the_build():
    for path in (PACKAGE / "lib" / "cmake" / "mahal").glob("*.cmake"):
        assert str(ROOT) not in path.read_text()


def test_contents_of_the_wheel():
    if "MAHAL_WHEEL" not in os.environ:
        pytest.skip("no wheel (MAHAL_WHEEL)")
    names = zipfile.ZipFile(os.environ["MAHAL_WHEEL"]).namelist()
    for wanted in ("mahal/py.typed", "mahal/_core.pyi", "mahal/ops/__init__.py"):
        assert wanted in names
    ours = re.compile(r"\.(py|pyi|so|hpp|cmake|html|js)$|py\.typed$|^mahal-[^/]+\.dist-info/")
    strange = [
        name for name in names if not ours.search(name) or not name.startswith(("mahal/", "mahal-"))
    ]
    assert strange == []
    assert not [name for name in names if "__pycache__" in name or name.startswith("mahal/tests")]


def test_contents_of_the_source_distribution():
    if "MAHAL_SDIST" not in os.environ:
        pytest.skip("no source distribution (MAHAL_SDIST)")
    with tarfile.open(os.environ["MAHAL_SDIST"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()} - {"PKG-INFO"}
    ours = set(output("git", "-C", str(ROOT), "ls-files").split())
    assert names <= ours, "files that git does not track"
    assert {"CMakeLists.txt", "csrc/bindings.cpp", "tests/conftest.py", "LICENSE"} <= names


@pytest.fixture
def unpacked(tmp_path):
    """The wheel, unpacked, and what the smoke test says of it as it is then."""
    if "MAHAL_WHEEL" not in os.environ:
        pytest.skip("no wheel (MAHAL_WHEEL)")
    zipfile.ZipFile(os.environ["MAHAL_WHEEL"]).extractall(tmp_path)

    def failures():
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / "smoke.py")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            check=False,
            timeout=600,
        )
        lines = done.stdout.splitlines()
        failed = [line.split(":")[0] for line in lines if not line.startswith("ok ")]
        assert done.returncode == bool(failed), done.stderr
        return failed, done.stdout

    return tmp_path, failures


def test_the_smoke_test_names_what_is_broken(unpacked):
    folder, failures = unpacked
    assert failures()[0] == []
    (folder / "mahal" / "py.typed").unlink()
    (folder / "mahal" / "include" / "mahal" / "rx.hpp").unlink()
    (folder / "mahal.libs").mkdir()
    (folder / "mahal.libs" / "libcudart.so.12").touch()
    (metadata,) = folder.glob("mahal-*.dist-info/METADATA")
    metadata.write_text(
        re.sub(r"(?m)^Version: .*$", "Version: 99.0", metadata.read_text(), count=1)
    )
    failed, text = failures()
    assert failed == [
        "FAIL one version",
        "FAIL no foreign libraries",
        "FAIL cmake package",
        "FAIL typed",
    ]
    assert "the repair of the wheel put in libraries" in text
    assert "libcudart.so.12" in text


def test_the_smoke_test_names_a_missing_library(unpacked):
    folder, failures = unpacked
    (folder / "mahal" / "lib" / "libmahal.so").unlink()
    failed, text = failures()
    assert failed[0] == "FAIL imports"
    assert "libmahal.so: cannot open shared object file" in text


def test_ci_runs_the_test_command_of_the_readme():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.startswith("python3 -m venv")
    assert command in (ROOT / "README.md").read_text()

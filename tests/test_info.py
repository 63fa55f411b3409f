"""What mahal tells about itself, and the process-wide settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mahal
import pytest
from mahal import _core


def run(*arguments, **environment):
    """A fresh Python, away from the source tree."""
    keep = {k: v for k, v in os.environ.items() if k not in {"MAHAL_ISA", "MAHAL_THREADS"}}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=Path(sys.prefix),
        env={**keep, **environment},
        check=False,
        timeout=300,
    )


def last_line(completed):
    return completed.stderr.strip().splitlines()[-1]


def test_info_has_all_facts():
    facts = mahal.info()
    assert set(facts) == {
        "version",
        "compiler",
        "isas",
        "isa",
        "threads",
        "cuda",
        "cuda_toolkit",
        "cuda_architectures",
        "devices",
        "emulator",
    }
    assert facts["version"] == mahal.__version__
    assert facts["isa"] in facts["isas"]
    assert facts["isas"][0] == "base"
    assert facts["threads"] >= 1
    assert bool(facts["cuda_toolkit"]) == bool(facts["cuda_architectures"]) == facts["cuda"]
    assert len(facts["devices"]) == _core.device_count()


def test_version_is_that_of_the_package():
    from importlib.metadata import version

    assert mahal.__version__ == version("mahal")


def test_info_prints_as_json():
    assert json.loads(run("-m", "mahal", "--info").stdout)["version"] == mahal.__version__


def test_folders_of_the_library_are_printed():
    cmake = Path(run("-m", "mahal", "--cmake-dir").stdout.strip())
    include = Path(run("-m", "mahal", "--include-dir").stdout.strip())
    assert (cmake / "mahalConfig.cmake").is_file()
    assert (include / "mahal" / "tensor.hpp").is_file()


def test_unknown_attributes_are_refused():
    with pytest.raises(AttributeError, match="module 'mahal' has no attribute 'nothing'"):
        _ = mahal.nothing


@pytest.mark.parametrize("isa", ["base", "avx2", "avx512"])
def test_environment_chooses_the_instruction_set(isa):
    done = run("-c", "import mahal; print(mahal.info()['isa'])", MAHAL_ISA=isa)
    if isa in _core.supported_isas():
        assert done.stdout.strip() == isa
    else:
        assert last_line(done).startswith(
            "ValueError: MAHAL_ISA: must be a level that this machine"
        )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAHAL_ISA", "sse9", "MAHAL_ISA: must be base, avx2 or avx512, got 'sse9'"),
        ("MAHAL_THREADS", "two", "MAHAL_THREADS: must be a whole number from 1 to 1024, got 'two'"),
        ("MAHAL_THREADS", "0", "MAHAL_THREADS: must be a whole number from 1 to 1024, got '0'"),
        ("MAHAL_THREADS", "3x", "MAHAL_THREADS: must be a whole number from 1 to 1024, got '3x'"),
        ("MAHAL_THREADS", "9999", "got '9999'"),
    ],
)
def test_bad_environment_is_refused(name, value, message):
    done = run("-c", "import mahal; mahal.info()", **{name: value})
    assert done.returncode != 0
    assert last_line(done).startswith("ValueError: ")
    assert message in last_line(done)


def test_environment_chooses_the_threads():
    done = run("-c", "import mahal; print(mahal.info()['threads'])", MAHAL_THREADS="7")
    assert done.stdout.strip() == "7"


def test_threads_default_to_the_cpus_of_the_process():
    done = run("-c", "import mahal; print(mahal.info()['threads'])")
    assert int(done.stdout) == len(os.sched_getaffinity(0))


def test_instruction_set_is_switched_and_checked():
    before = _core.active_isa()
    try:
        for isa in _core.supported_isas():
            _core.set_isa(isa)
            assert _core.active_isa() == isa
        with pytest.raises(ValueError, match="set_isa: isa: must be base, avx2 or avx512, got 'x'"):
            _core.set_isa("x")
    finally:
        _core.set_isa(before)


def test_backend_is_switched_and_checked():
    assert _core.active_backend() == "automatic"
    with pytest.raises(ValueError, match="must be automatic or emulator, got 'x'"):
        _core.set_backend("x")
    if _core.emulator_built():
        try:
            _core.set_backend("emulator")
            assert _core.active_backend() == "emulator"
        finally:
            _core.set_backend("automatic")
    else:
        with pytest.raises(RuntimeError, match="MAHAL_EMULATOR=ON"):
            _core.set_backend("emulator")


def test_no_driver_means_no_devices():
    done = run("-c", "import mahal; print(mahal.info()['devices'])", CUDA_VISIBLE_DEVICES="")
    assert done.stdout.strip() == "[]"


def test_import_is_quick_and_needs_numpy_only():
    code = (
        "import sys, time; start = time.perf_counter(); import mahal; "
        "print(time.perf_counter() - start, *{m.split('.')[0] for m in sys.modules})"
    )
    outputs = [run("-I", "-c", code).stdout.split() for _ in range(5)]
    assert min(float(output[0]) for output in outputs) < 0.3
    heavy = {"torch", "cupy", "scipy", "matplotlib", "h5py", "spectral", "rasterio"}
    assert not heavy & set(outputs[0][1:])

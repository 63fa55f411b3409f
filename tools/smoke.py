"""Try an installed mahal where nothing but numpy is: `python tools/smoke.py`.

Every check names the fault that it catches. Prints a line for each, and fails if one fails.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

CHECKS: list[tuple[str, Callable[[], None]]] = []


def catches(fault: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A check, in the order of this file, and what is wrong when it fails."""

    def add(check: Callable[[], None]) -> Callable[[], None]:
        CHECKS.append((fault, check))
        return check

    return add


def in_python(code: str, **environment: str) -> str:
    """What a fresh Python prints; what it dies of is the detail of the failure."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise RuntimeError(f"exit status {done.returncode}: {last}")
    return done.stdout


SCORES = """
import mahal, numpy as np
rng = np.random.default_rng(0)
image = (rng.standard_normal((24, 20, 7)) @ rng.standard_normal((7, 7))).astype("float32")
flat = image.reshape(-1, 7).astype(float)
d = flat - flat.mean(0)
wanted = np.einsum("ij,jk,ik->i", d, np.linalg.inv(np.cov(flat.T)), d)
np.testing.assert_allclose(mahal.rx(image).ravel(), wanted, rtol=1e-4)
local = mahal.rx(image, window=(3, 9))
assert np.isfinite(local).all()
print(mahal.info()["isa"], *local[::5, ::5].ravel())
"""


@catches(
    "the compiled module or libmahal does not load: wrong platform, a missing or moved library"
)
def imports() -> None:
    in_python("import mahal")


@catches("Python files and compiled library come from different builds")
def one_version() -> None:
    import mahal

    facts = mahal.info()
    versions = {importlib.metadata.version("mahal"), mahal.__version__, facts["version"]}
    assert len(versions) == 1, versions


@catches("importing mahal needs more than numpy, or takes in what is optional")
def imports_numpy_only() -> None:
    foreign = ("torch", "scipy", "sklearn", "matplotlib", "lightning", "h5py")
    code = f"import sys, mahal; print([m for m in {foreign} if m in sys.modules])"
    assert in_python(code).strip() == "[]"


@catches("an instruction set was not built, or the machine's own is not chosen")
def instruction_sets() -> None:
    found = json.loads(
        in_python("import json, mahal; print(json.dumps(mahal.info()))", MAHAL_ISA="")
    )
    assert found["isas"][0] == "base", found["isas"]
    assert found["isa"] == found["isas"][-1], found
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if re.search(r"^flags.*\bavx2\b.*\bbmi2\b", flags, re.MULTILINE):
        assert "avx2" in found["isas"], found["isas"]


@catches("kernels of one instruction set are miscompiled, or use another's instructions")
def same_scores_on_every_instruction_set() -> None:
    import mahal

    maps = {}
    for isa in mahal.info()["isas"]:
        name, *scores = in_python(SCORES, MAHAL_ISA=isa).split()
        assert name == isa, f"{isa} was asked for, {name} runs"
        maps[isa] = [float(score) for score in scores]
    for isa, scores in maps.items():
        far = max(abs(a - b) / b for a, b in zip(scores, maps["base"], strict=True))
        assert far < 1e-4, f"{isa} differs from base by {far:.1e}"


@catches("threads do not start, or results depend on them")
def same_scores_with_threads() -> None:
    one, three = (in_python(SCORES, MAHAL_THREADS=n) for n in ("1", "3"))
    assert one == three


@catches("C++ exceptions do not cross the module: another libstdc++, or hidden type information")
def errors_arrive() -> None:
    import mahal
    import numpy as np

    try:
        mahal.rx(np.ones((8, 8, 3)), window=(3, 6))
    except ValueError as error:
        assert str(error).startswith("rx: window: "), error  # noqa: PT017
    else:
        raise AssertionError("an even window was taken")


@catches("the CUDA runtime is not linked in, or asks for a driver at import")
def no_driver_needed() -> None:
    import mahal

    assert isinstance(mahal.info()["devices"], list)
    maps = Path("/proc/self/maps").read_text()
    assert "libcudart" not in maps, "libcudart is loaded"


@catches("the repair of the wheel put in libraries that belong to the system or to the driver")
def no_foreign_libraries() -> None:
    import mahal

    package = Path(mahal.__file__).parent
    shared = sorted(path.name for path in package.rglob("*.so*"))
    own = [name for name in shared if re.fullmatch(r"_core\..*so|libmahal\.so", name)]
    assert shared == own, shared
    grafted = package.parent / "mahal.libs"
    assert not grafted.exists(), sorted(path.name for path in grafted.iterdir())


@catches("headers or the CMake package are missing, so that C++ projects cannot find mahal")
def cmake_package() -> None:
    for option, wanted in (
        ("--cmake-dir", ("mahalConfig.cmake", "mahalConfigVersion.cmake", "mahalTargets.cmake")),
        ("--include-dir", ("mahal/rx.hpp", "mahal/version.hpp", "mahal/tensor.hpp")),
    ):
        command = [sys.executable, "-m", "mahal", option]
        folder = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        missing = [name for name in wanted if not (Path(folder) / name).is_file()]
        assert not missing, f"{folder} has no {missing}"


@catches("type checkers see an untyped package")
def typed() -> None:
    import mahal

    package = Path(mahal.__file__).parent
    assert (package / "py.typed").is_file(), "py.typed"
    assert (package / "_core.pyi").is_file(), "_core.pyi"


def main() -> int:
    """Run the checks; the number of failures."""
    failures = 0
    for fault, check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            check()
        except Exception as error:
            failures += 1
            detail = str(error) or traceback.format_exc().strip().splitlines()[-1]
            print(f"FAIL {name}: {fault} ({' '.join(detail.split())})")
        else:
            print(f"ok   {name}")
    return failures


if __name__ == "__main__":
    sys.exit(1 if main() else 0)

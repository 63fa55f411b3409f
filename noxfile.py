"""The verbs of this project: `nox` runs what CI runs, `nox -s tests` one of them.

Builds are kept in build/nox-* and reused. Arguments after `--` go to pytest.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nox

ROOT = Path(__file__).parent
BUILD = ROOT / "build"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
# tests/test_NAME.py of the ops: run by themselves on every instruction set and under sanitizers.
OPS = (
    "change_map",
    "cholesky",
    "complex",
    "covariance_distance",
    "covariance_distance_backward",
    "covariance_log",
    "covariance_log_backward",
    "gradients",
    "grf",
    "local_covariance",
    "local_covariance_backward",
    "mahalanobis",
    "matched",
    "matched_estimators",
    "mean_covariance",
    "rx",
    "spectral_angle",
    "structural_similarity",
    "structural_similarity_backward",
    "whiten",
    "window_estimators",
    "window_scores",
    "window_scores_backward",
)
TORCH = "torch==2.13.0"
WHEEL_BUILD = BUILD / "nox-wheel"
WHEEL_DIST = BUILD / "wheel"
# One pytest per core, which take tests from each other at the end.
PARALLEL = ("-n", "auto", "--dist", "worksteal")

nox.needs_version = ">=2025.5.1"
# The tests come last, so that their summary stands at the end.
nox.options.sessions = ["lint", "types", "tsan", "emulator", "wheel", "docs", "tests"]
nox.options.reuse_existing_virtualenvs = True

_reports: list[Path] = []


@atexit.register
def _summary() -> None:
    """One line for all pytest runs, after everything that nox itself has to say."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for report in _reports:
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            for key in counts:
                counts[key] += int(suite.get(key, 0))
    if counts["tests"]:
        failed = counts["failures"] + counts["errors"]
        passed = counts["tests"] - failed - counts["skipped"]
        sys.stderr.flush()
        print(f"{passed} passed, {failed} failed, {counts['skipped']} skipped", flush=True)


def _group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


def _nvcc() -> str | None:
    return (
        os.environ.get("CUDACXX")
        or shutil.which("nvcc")
        or shutil.which("/usr/local/cuda/bin/nvcc")
    )


def _cuda_environment(*, cuda: bool = True) -> dict[str, str]:
    """CUDA must work where nvcc is; two architectures show it, and a release has them all."""
    chosen = os.environ.get("MAHAL_CUDA", "ON" if _nvcc() else "OFF") if cuda else "OFF"
    architectures = os.environ.get("MAHAL_CUDA_ARCHITECTURES", "80-real;90")
    return {"MAHAL_CUDA": chosen, "MAHAL_CUDA_ARCHITECTURES": architectures}


def _sees_gpu() -> bool:
    listing = shutil.which("nvidia-smi")
    return (
        listing is not None
        and subprocess.run([listing, "-L"], capture_output=True, check=False).returncode == 0
    )


def _install(
    session: nox.Session, build_dir: Path, extra: str, *, cuda: bool = True, **defines: str
) -> None:
    """Build the working tree into the environment of the session; the build folder is kept."""
    session.install(*_group("build"))
    # The build imports what stands behind entry points: an installed mahal that is broken stops it.
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", "mahal", silent=True)
    settings = [f"build-dir={build_dir.relative_to(ROOT)}", "install.strip=false"]
    settings += [f"cmake.define.{name}={value}" for name, value in defines.items()]
    session.install(
        "--no-build-isolation",
        f".{extra}",
        *(f"--config-settings={setting}" for setting in settings),
        env=_cuda_environment(cuda=cuda),
    )


def _install_wheel(session: nox.Session, build_dir: Path, extra: str, **defines: str) -> Path:
    """The wheel that `wheel` has built of this very tree, else a build; where its objects are."""
    built = list(WHEEL_DIST.glob("*.whl"))
    parts = [p for name in ("csrc", "python") for p in (ROOT / name).rglob("*") if p.is_file()]
    parts += [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]
    sources = [p for p in parts if "__pycache__" not in p.parts]
    if built and built[0].stat().st_mtime > max(p.stat().st_mtime for p in sources):
        session.install("--force-reinstall", "--no-deps", str(built[0]))
        session.install(f"{built[0]}{extra}")
        return WHEEL_BUILD
    # Device code that nothing here can run is compiled once, for the wheel.
    cuda = _sees_gpu() or "MAHAL_CUDA" in os.environ
    _install(session, build_dir, extra, cuda=cuda, **defines)
    return build_dir


def _pytest(
    session: nox.Session,
    *arguments: str,
    python: str = "python",
    env: dict[str, str] | None = None,
) -> None:
    report = BUILD / f"report-{session.name}-{len(_reports)}.xml"
    report.unlink(missing_ok=True)
    try:
        session.run(
            python, "-m", "pytest", f"--junit-xml={report}", *arguments, *session.posargs,
            env=env, external=True,
        )  # fmt: skip
    finally:
        if report.exists():
            _reports.append(report)


def _test_files(*names: str) -> list[str]:
    return [str(path) for name in names if (path := ROOT / "tests" / f"test_{name}.py").exists()]


def _sources(*patterns: str) -> list[str]:
    folders = (ROOT / "csrc", ROOT / "tests" / "cpp", ROOT / "bench", ROOT / "examples")
    return sorted(
        str(p) for folder in folders for pattern in patterns for p in folder.rglob(pattern)
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style of Python and C++, and the house rules."""
    session.install(*_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("clang-format", "--dry-run", "-Werror", *_sources("*.hpp", "*.cpp", "*.cu"))
    session.run("python", "tools/house_rules.py")


@nox.session(name="format", default=False)
def format_(session: nox.Session) -> None:
    """Bring Python and C++ into the style that `lint` asks for."""
    session.install(*_group("lint"))
    session.run("ruff", "check", "--fix", ".")
    session.run("ruff", "format", ".")
    session.run("clang-format", "-i", *_sources("*.hpp", "*.cpp", "*.cu"))


@nox.session
def types(session: nox.Session) -> None:
    """Types of the Python layer."""
    session.install(*_group("types"))
    # A cache from before a merge can hold modules that have changed since.
    session.run("mypy", "--cache-dir", os.devnull)


@nox.session
def tsan(session: nox.Session) -> None:
    """The thread pool, plain and under the thread sanitizer."""
    session.install(*_group("build"))
    # High randomisation of addresses upsets the sanitizer of older compilers.
    fixed = ["setarch", "-R"]
    if subprocess.run([*fixed, "true"], capture_output=True, check=False).returncode:
        fixed = []
    for name, sanitizer, prefix in (("plain", "", []), ("tsan", "thread", fixed)):
        folder = BUILD / f"nox-{name}"
        session.run(
            "cmake", "-S", ".", "-B", str(folder), "-G", "Ninja",
            "-DCMAKE_BUILD_TYPE=RelWithDebInfo", "-DMAHAL_PYTHON=OFF", "-DMAHAL_CUDA=OFF",
            "-DMAHAL_TESTS=ON", "-DMAHAL_WERROR=ON", f"-DMAHAL_SANITIZE={sanitizer}",
        )  # fmt: skip
        session.run("cmake", "--build", str(folder), "--target", "test_threads")
        program = str(folder / "tests" / "cpp" / "test_threads")
        session.run(*prefix, program, env={"TSAN_OPTIONS": "halt_on_error=1"}, external=True)


@nox.session
def emulator(session: nox.Session) -> None:
    """CUDA kernels on the CPU, with the whole library under the address and UB sanitizers."""
    folder = BUILD / "nox-emulator"
    session.install("pytest", "pytest-xdist", "hypothesis", "numpy")
    # The tests of the ops run without torch; an environment that is used again has it.
    session.run("python", "-m", "pip", "uninstall", "-q", "-y", "torch", silent=True)
    _install(
        session,
        folder,
        "",
        cuda=False,
        CMAKE_BUILD_TYPE="RelWithDebInfo",
        MAHAL_EMULATOR="ON",
        MAHAL_TESTS="ON",
        MAHAL_WERROR="ON",
        MAHAL_SANITIZE="address,undefined",
    )
    session.run("ctest", "--test-dir", str(folder), "--output-on-failure", "-j", "2")
    preload = [_compiler_file(name) for name in ("libasan.so", "libstdc++.so")]
    sanitized = {
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
    ops = _test_files("caster", "threads", "emulator", *OPS)
    _pytest(session, *PARALLEL, *ops, env=sanitized)
    # Gradients of windows in torch have kernels that no other verb runs.
    session.install(TORCH)
    gradients = _test_files("torch_window_scores")
    _pytest(session, *PARALLEL, *gradients, "-k", "kernels_of_devices", env=sanitized)


def _compiler_file(name: str) -> str:
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@nox.session
def wheel(session: nox.Session) -> None:
    """The wheel as users get it: contents, dependencies, and a project that builds on it."""
    dist = WHEEL_DIST
    shutil.rmtree(dist, ignore_errors=True)
    shutil.rmtree(WHEEL_BUILD, ignore_errors=True)
    session.install("build", "pytest", "numpy")
    settings = (
        "--config-setting=cmake.define.MAHAL_WERROR=ON",
        f"--config-setting=build-dir={WHEEL_BUILD}",
    )
    session.run("python", "-m", "build", "--outdir", str(dist), *settings, env=_cuda_environment())
    (built,) = dist.glob("*.whl")

    clean = Path(session.create_tmp()) / "clean"
    shutil.rmtree(clean, ignore_errors=True)
    session.run("python", "-m", "venv", str(clean), silent=True)
    python = str(clean / "bin" / "python")
    # No compiler and no nvcc from here on.
    bare = {"PATH": str(clean / "bin")}
    session.run(python, "-m", "pip", "install", "-q", str(built), "pytest", env=bare, external=True)
    _pytest(session, *_test_files("info"), python=python, env=bare)

    session.install(str(built), "nanobind", *_group("build"))
    (source,) = dist.glob("*.tar.gz")
    artifacts = {"MAHAL_WHEEL": str(built), "MAHAL_SDIST": str(source)}
    _pytest(session, *_test_files("packaging"), env=artifacts)
    session.install("--no-build-isolation", "--no-deps", "./examples/nanobind_embedding")
    session.run("python", "examples/nanobind_embedding/check.py")

    # Away from this tree, as a project of somebody else is.
    project = Path(session.create_tmp()) / "cpp_local_rx"
    shutil.rmtree(project, ignore_errors=True)
    shutil.copytree(ROOT / "examples" / "cpp_local_rx", project)
    found = session.run("python", "-m", "mahal", "--cmake-dir", silent=True)
    session.run(
        "cmake", "-S", str(project), "-B", str(project / "build"), "-G", "Ninja",
        f"-Dmahal_DIR={str(found).strip()}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror",
    )  # fmt: skip
    session.run("cmake", "--build", str(project / "build"))
    session.run("ctest", "--test-dir", str(project / "build"), "--output-on-failure")
    session.run("python", "tools/smoke.py")


# MiB of a wheel. PyPI takes files up to 100 MiB; the CPU's share is what everybody downloads.
WHEEL_BUDGET = {"cpu": 8, "cuda": 95}


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Source distribution and repaired wheel of this machine: contents, size, and a trial."""
    dist, wheelhouse = (BUILD / "release" / name for name in ("dist", "wheelhouse"))
    shutil.rmtree(BUILD / "release", ignore_errors=True)
    session.install(*_group("release"))
    session.run("cibuildwheel", "--platform", "linux", "--print-build-identifiers")
    # The wheel is built from the unpacked source distribution, for all devices of a release.
    architectures = os.environ.get("MAHAL_CUDA_ARCHITECTURES", "")
    settings = {**_cuda_environment(), "MAHAL_CUDA_ARCHITECTURES": architectures}
    session.run("python", "-m", "build", "--outdir", str(dist), env=settings)
    (built,) = dist.glob("*.whl")
    session.run("auditwheel", "show", str(built))
    session.run(
        "auditwheel", "repair", "--exclude", "libcuda.so.1", "-w", str(wheelhouse), str(built)
    )
    (repaired,) = wheelhouse.glob("*.whl")

    clean = Path(session.create_tmp()) / "clean"
    shutil.rmtree(clean, ignore_errors=True)
    session.run("python", "-m", "venv", str(clean), silent=True)
    python = str(clean / "bin" / "python")
    bare = {"PATH": str(clean / "bin")}
    session.run(python, "-m", "pip", "install", "-q", str(repaired), env=bare, external=True)
    session.run(python, str(ROOT / "tools" / "smoke.py"), env=bare, external=True)

    # pyod brings numba and LLVM with it, 200 MB that CI does without.
    session.run(
        python, "-m", "pip", "install", "-q", "pyod", "scikit-learn", "pytest",
        env=bare, external=True,
    )  # fmt: skip
    _pytest(session, *_test_files("pyod"), python=python, env=bare)

    asks = "import mahal; print('cuda' if mahal.info()['cuda'] else 'cpu')"
    kind = str(session.run(python, "-c", asks, silent=True, external=True)).strip()
    size = repaired.stat().st_size / 2**20
    session.log(f"{repaired.name}: {size:.1f} MiB of {WHEEL_BUDGET[kind]}")
    if size > WHEEL_BUDGET[kind]:
        session.error(f"{repaired.name} is larger than its budget of {WHEEL_BUDGET[kind]} MiB")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site in build/site, with the pictures of the gallery."""
    session.install(*_group("docs"))
    _install_wheel(session, BUILD / "nox-docs", "[cli]")
    session.run("mkdocs", "build", "--strict", "--site-dir", str(BUILD / "site"))


def _kernel_table(report: str) -> list[str]:
    """Registers and spilled bytes of every kernel, one line for all architectures."""
    filt = shutil.which("c++filt")
    if filt:
        report = subprocess.run([filt], input=report, capture_output=True, text=True).stdout
    entry = re.compile(
        r"Compiling entry function '(?P<name>[^']*)' for 'sm_(?P<arch>\d+\w*)'"
        r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
        r".*?Used (?P<registers>\d+) registers",
        re.DOTALL,
    )
    kernels: dict[str, dict[str, tuple[int, int]]] = {}
    for found in entry.finditer(report):
        name = re.sub(r"mahal::|cuda::|\(anonymous namespace\)::|^void ", "", found["name"])
        name = re.sub(r"\([^()]*\)$", "", name)
        spilled = int(found["stores"]) + int(found["loads"])
        kernels.setdefault(name, {})[found["arch"]] = (int(found["registers"]), spilled)
    targets = sorted({arch for row in kernels.values() for arch in row}, key=int)
    width = max(map(len, kernels), default=0)
    lines = [f"{'registers (spilled bytes)':{width}}" + "".join(f"{t:>12}" for t in targets)]
    for name, row in sorted(kernels.items()):
        cells = [f"{r} ({s})" if s else f"{r}" for r, s in (row.get(t, (0, 0)) for t in targets)]
        lines.append(f"{name:{width}}" + "".join(f"{cell:>12}" for cell in cells))
    return lines


@nox.session
def cuda_all(session: nox.Session) -> None:
    """Every kernel for every architecture of a release, with a table of registers and spills."""
    nvcc = _nvcc()
    if nvcc is None:
        session.error("cuda_all needs nvcc on PATH, in CUDACXX or in /usr/local/cuda/bin")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True)
    wanted = ("75", "80", "86", "89", "90", "100", "120")
    targets = [a for a in wanted if f"compute_{a}" in known.stdout.split()]
    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        report = session.run(
            nvcc, "-std=c++20", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v",
            "-Icsrc", "-Icsrc/include", "-c", str(source), "-o", os.devnull,
            *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in targets),
            external=True, silent=True,
        )  # fmt: skip
        session.log("\n".join([source.name, *_kernel_table(str(report))]))


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, on every instruction set that this machine has."""
    session.install(TORCH, "mypy")
    # The emulator has a verb of its own, under sanitizers.
    folder = _install_wheel(session, BUILD / "nox-tests", "[test]", MAHAL_WERROR="ON")
    session.run(
        "python",
        "-m",
        "mypy.stubtest",
        "mahal._core",
        "--mypy-config-file",
        os.devnull,
    )
    ask = "from mahal import _core; print(*_core.supported_isas())"
    isas = str(session.run("python", "-c", ask, silent=True)).split()
    failed = []
    for isa in isas[:-1]:
        try:
            _pytest(session, "-q", *PARALLEL, *_test_files(*OPS), env={"MAHAL_ISA": isa})
        except nox.command.CommandFailed:
            failed.append(isa)
    _pytest(session, *PARALLEL, env={"MAHAL_BUILD_DIR": str(folder)})
    if failed:
        session.error(f"tests failed on {', '.join(failed)}")

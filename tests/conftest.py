"""What all tests share: which backends run, the real scenes, and the rule about CUDA devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mahal import _core, info


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-cuda", action="store_true", help="fail when there is no CUDA device"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-cuda") and _core.device_count() == 0:
        raise pytest.UsageError("--require-cuda: mahal sees no CUDA device")


def pytest_report_header(config: pytest.Config) -> list[str]:
    facts = info()
    backends = ["cpu"]
    if facts["emulator"]:
        backends.append("emulator")
    backends += [f"cuda ({device['name']})" for device in facts["devices"]]
    return [
        f"mahal {facts['version']} from {Path(_core.__file__).parent}",
        f"instruction set {facts['isa']} of {', '.join(facts['isas'])}; {facts['threads']} threads",
        f"backends: {', '.join(backends)}",
        f"real scenes: {_data_dir() or 'not found, their tests are skipped (MAHAL_DATA)'}",
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _core.device_count() > 0:
        # What goes through the harness runs on the device too: `-m cuda` selects it.
        for item in items:
            code = getattr(getattr(item, "function", None), "__code__", None)
            if code is not None and "run_op_checks" in code.co_names:
                item.add_marker(pytest.mark.cuda)
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)


def _data_dir() -> Path | None:
    named = os.environ.get("MAHAL_DATA")
    if named:
        path = Path(named)
        if not path.is_dir():
            raise pytest.UsageError(f"MAHAL_DATA: must be a folder, got {named}")
        return path
    path = Path(__file__).parents[2] / "shared" / "data"
    return path if path.is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real scenes; the test is skipped where there is none."""
    path = _data_dir()
    if path is None:
        pytest.skip("real scenes not found (MAHAL_DATA)")
    return path

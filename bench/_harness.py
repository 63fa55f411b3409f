"""What all benches share: timing, rivals, results.

Candidates of one comparison run in turns within one process, so that a change in the load of
the machine meets all of them, and the fastest run of each counts.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import mahal
import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"

SETTLE = 0.05
"""Seconds of rest before a measurement."""


@dataclass
class Row:
    """One line of a result table.

    Attributes
    ----------
    case : str
        What was computed.
    name : str
        Who computed it.
    threads : int
    seconds : float
        Fastest run; for an extrapolated row, scaled to the whole case.
    median : float
        Median run, scaled alike.
    measured : str
        Empty, or the part of the case that was run and extrapolated from.
    facts : dict
        Further figures: rates, shares of a ceiling, errors.
    """

    case: str
    name: str
    threads: int
    seconds: float
    median: float
    measured: str = ""
    facts: dict[str, float | str] = field(default_factory=dict)


@dataclass
class Candidate:
    """One contestant: what to call, and by how much its part is scaled to the whole case."""

    name: str
    call: Callable[[], Any]
    scale: float = 1.0
    measured: str = ""


def environment() -> dict[str, Any]:
    """CPU, software versions and what of mahal runs here."""
    model = platform.processor() or "unknown"
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        found = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
        model = found.group(1) if found else model
        # Hypervisors hide the marketing name; family and model still tell the generation.
        numbers = [re.search(rf"^{k}\s*:\s*(\d+)$", text, re.M) for k in ("cpu family", "model")]
        if all(numbers):
            model += " (family {}, model {})".format(*(n.group(1) for n in numbers if n))
    versions = {"python": platform.python_version()}
    for package in ("numpy", "scipy", "torch", "spectral"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"cpu": model, "versions": versions, "mahal": mahal.info()}


def isa() -> str:
    """Instruction set in use."""
    return str(mahal.info()["isa"])


def _blas_setters() -> Iterator[Callable[[int], Any]]:
    names = ("openblas_set_num_threads", "scipy_openblas_set_num_threads64_")
    names += ("scipy_openblas_set_num_threads", "openblas_set_num_threads64_")
    with contextlib.suppress(OSError):
        mapped = Path("/proc/self/maps").read_text().splitlines()
        for path in {line.split()[-1] for line in mapped if "openblas" in line}:
            library = ctypes.CDLL(path)
            for name in names:
                if hasattr(library, name):
                    yield getattr(library, name)


def set_threads(count: int) -> None:
    """Give every library of the comparison the same number of threads."""
    mahal._core.set_default_threads(count)
    for setter in _blas_setters():
        setter(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def optional(name: str) -> ModuleType | None:
    """A rival's module, or None with a note where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"(without {name}: not installed)")
        return None


def spectral_from(folder: str) -> ModuleType:
    """Spectral Python from another folder than the installed one, beside it.

    Parameters
    ----------
    folder : str
        Made by ``pip install --target FOLDER spectral==VERSION --no-deps``.

    Returns
    -------
    module
    """
    kept = {k: m for k, m in sys.modules.items() if k.split(".")[0] == "spectral"}
    for name in kept:
        del sys.modules[name]
    sys.path.insert(0, folder)
    try:
        module = importlib.import_module("spectral")
    finally:
        sys.path.remove(folder)
        for name in [k for k in sys.modules if k.split(".")[0] == "spectral"]:
            del sys.modules[name]
        sys.modules.update(kept)
    if not str(module.__file__).startswith(str(Path(folder).resolve())):
        raise RuntimeError(f"spectral_from: folder: must hold spectral, got {folder}")
    return module


def compare(
    case: str,
    candidates: Sequence[Candidate],
    *,
    threads: int,
    repeats: int = 7,
    budget: float = 60.0,
    least: float = 2e-3,
) -> list[Row]:
    """Time candidates in turns.

    Parameters
    ----------
    case : str
        Label of the rows.
    candidates : sequence of Candidate
    threads : int
        Threads that every library may use.
    repeats : int
        Rounds; in each of them every candidate runs once.
    budget : float
        Seconds for each candidate, after which it runs no more rounds.
    least : float
        Shortest run in seconds: quicker calls are repeated within a run.

    Returns
    -------
    list of Row
    """
    set_threads(threads)
    inner = []
    for candidate in candidates:
        begin = time.perf_counter()
        candidate.call()
        once = time.perf_counter() - begin
        if once < budget / 10:
            begin = time.perf_counter()
            candidate.call()
            once = time.perf_counter() - begin
        inner.append(max(1, int(np.ceil(least / max(once, 1e-9)))))
    times: list[list[float]] = [[] for _ in candidates]
    gc.collect()
    for _ in range(repeats):
        for candidate, count, seen in zip(candidates, inner, times, strict=True):
            if sum(seen) * count > budget:
                continue
            # The threads of the library before spin for a while after its work.
            time.sleep(SETTLE)
            begin = time.perf_counter()
            for _ in range(count):
                candidate.call()
            seen.append((time.perf_counter() - begin) / count)
    return [
        Row(
            case,
            c.name,
            threads,
            min(seen) * c.scale,
            statistics.median(seen) * c.scale,
            c.measured,
        )
        for c, seen in zip(candidates, times, strict=True)
    ]


def add_ratios(rows: Sequence[Row], ours: str = "mahal") -> None:
    """Write how many times slower than ours each row of the same case and threads is."""
    for row in rows:
        base = next(r for r in rows if (r.case, r.threads, r.name) == (row.case, row.threads, ours))
        row.facts["ratio"] = row.seconds / base.seconds


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every bench takes."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--repeats", type=int, default=7, help="rounds of every comparison")
    options.add_argument("--quick", action="store_true", help="small sizes, to try the bench")
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    return options


def table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and rows as text, one column for every fact that occurs."""
    facts = list(dict.fromkeys(k for r in rows for k in r.facts))
    lines = [["case", "implementation", "threads", "time", *facts]]
    for row in rows:
        note = "" if not row.measured else f" (from {row.measured})"
        cells = [row.case, row.name, str(row.threads), show_seconds(row.seconds) + note]
        cells += [show(row.facts[k]) if k in row.facts else "" for k in facts]
        lines.append(cells)
    return lines


def show_seconds(seconds: float) -> str:
    """A time with three digits and its unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def show(value: float | str) -> str:
    """A figure with three digits."""
    return value if isinstance(value, str) else f"{value:.3g}"


def finish(name: str, rows: Sequence[Row], ceilings: dict[str, float]) -> None:
    """Print the table and write ``results/NAME.json``."""
    lines = table(rows)
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    for label, value in ceilings.items():
        print(f"ceiling {label}: {value / 1e9:.1f}e9")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "bench": name,
        "environment": environment(),
        "ceilings": ceilings,
        "rows": [asdict(row) for row in rows],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")

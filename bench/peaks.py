"""Ceilings of this machine, measured, and native helpers compiled on the fly.

    python bench/peaks.py

prints the fused multiply-add rate per instruction set and precision, and the store and copy
bandwidth for some working sets, with one and two threads. The other benches take the share of
these ceilings from here. Needs a C++ compiler (``CXX``, default ``c++``) on x86-64.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTOR_BITS = {"base": 128, "avx2": 256, "avx512": 512}
MARCH = {"base": "x86-64-v2", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}


def compile_library(source: str, *flags: str) -> ctypes.CDLL:
    """Compile a C++ file of this folder to a shared library and load it.

    Parameters
    ----------
    source : str
        File name in this folder.
    *flags : str
        Further compiler flags.

    Returns
    -------
    ctypes.CDLL

    Raises
    ------
    RuntimeError
        When this is no x86-64 machine, there is no compiler or it refuses the file.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise RuntimeError(f"compile_library: needs x86-64, got {platform.machine()}")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        raise RuntimeError("compile_library: needs a C++ compiler on PATH or in CXX, got none")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "native.so"
        command = [compiler, "-std=c++20", "-O3", "-shared", "-fPIC", "-pthread", *flags]
        run = subprocess.run(
            [*command, str(HERE / source), "-o", str(library)], capture_output=True, text=True
        )
        if run.returncode != 0:
            raise RuntimeError(f"compile_library: {source} did not compile: {run.stderr}")
        return ctypes.CDLL(str(library))


@functools.cache
def _native() -> ctypes.CDLL:
    native = compile_library("peaks.cpp")
    native.peak_flops.restype = ctypes.c_double
    native.peak_flops.argtypes = [ctypes.c_int] * 4
    native.peak_bandwidth.restype = ctypes.c_double
    native.peak_bandwidth.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
    return native


@functools.cache
def flops(isa: str, itemsize: int, threads: int = 1, repeats: int = 400) -> float:
    """Fused multiply-add rate, two operations each, of all threads together.

    Parameters
    ----------
    isa : {"base", "avx2", "avx512"}
        ``base`` has no fused operation: a multiplication and an addition make the pair.
    itemsize : {4, 8}
        Bytes per element.
    threads : int
    repeats : int
        The best of so many runs counts.

    Returns
    -------
    float
        Floating point operations per second.
    """
    return float(_native().peak_flops(VECTOR_BITS[isa], itemsize, threads, repeats))


@functools.cache
def bandwidth(kind: str, working_set: int, threads: int = 1, repeats: int = 40) -> float:
    """Memory bandwidth of all threads together.

    Parameters
    ----------
    kind : {"store", "copy"}
        Streaming stores, or a copy with them; a copy counts read and written bytes.
    working_set : int
        Bytes per buffer, shared among the threads.
    threads : int
    repeats : int
        The best of so many runs counts.

    Returns
    -------
    float
        Bytes per second.
    """
    return float(_native().peak_bandwidth(int(kind == "copy"), working_set, threads, repeats))


def main() -> None:
    import mahal

    for isa in mahal.info()["isas"]:
        for name, itemsize in (("float32", 4), ("float64", 8)):
            rates = [flops(isa, itemsize, threads) / 1e9 for threads in (1, 2)]
            print(f"{isa:7s} {name}: {rates[0]:7.1f} and {rates[1]:7.1f} GF/s on 1 and 2 threads")
    for kind in ("store", "copy"):
        for mebibytes in (1, 16, 64, 256):
            rates = [bandwidth(kind, mebibytes << 20, threads) / 1e9 for threads in (1, 2)]
            print(
                f"{kind:5s} {mebibytes:4d} MiB: {rates[0]:6.1f} and {rates[1]:6.1f} GB/s "
                "on 1 and 2 threads"
            )


if __name__ == "__main__":
    main()

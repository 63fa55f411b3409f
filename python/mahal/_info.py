"""What was built and what this machine runs."""

from __future__ import annotations

from typing import Any

from mahal import _core


def info() -> dict[str, Any]:
    """Facts about this build of mahal and about the machine.

    Returns
    -------
    dict
        ``version`` : str
        ``compiler`` : str, name and version of the C++ compiler
        ``isas`` : list of str, instruction sets that were built and that this CPU runs
        ``isa`` : str, the one in use (``MAHAL_ISA`` chooses another)
        ``threads`` : int, threads of a call that does not say (``MAHAL_THREADS``)
        ``cuda`` : bool, whether CUDA kernels were built
        ``cuda_toolkit`` : str, version of nvcc, empty without CUDA
        ``cuda_architectures`` : list of str, such as ``"90-real"``, empty without CUDA
        ``devices`` : list of dict with ``name``, ``compute_capability`` and ``memory_bytes``;
        empty without a driver
        ``emulator`` : bool, whether the CUDA kernels were also built for the CPU, for tests

    Raises
    ------
    ValueError
        If ``MAHAL_ISA`` or ``MAHAL_THREADS`` holds what it must not.
    """
    build = _core.build_info()
    architectures = build["cuda_architectures"]
    return {
        "version": build["version"],
        "compiler": build["compiler"],
        "isas": _core.supported_isas(),
        "isa": _core.active_isa(),
        "threads": _core.default_threads(),
        "cuda": build["cuda"],
        "cuda_toolkit": build["cuda_toolkit"],
        "cuda_architectures": architectures.split(",") if architectures else [],
        "devices": _core.devices(),
        "emulator": build["emulator"],
    }

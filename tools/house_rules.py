"""Rules that no linter knows. Prints each breach as `file:line: rule` and fails if there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CODE = ("*.hpp", "*.cpp", "*.cu", "*.py", "*.pyi", "*.cmake", "CMakeLists.txt")

# Sources that are compiled once per instruction set: a standard template instantiated there could
# be kept by the linker for all of them.
KERNEL_HEADERS = {"cstddef", "cstdint", "immintrin.h", "arm_neon.h"}

RULES = (
    (("*.cu", "*.cpp", "*.hpp"), re.compile(r"<<<"), "launch through core/simt.hpp, not <<<>>>"),
    (CODE, re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b|NotImplemented" r"Error"), "finish it"),
    (("*_simd.cpp",), re.compile(r"\bstd::(?!(u?int\d+_t|size_t|ptrdiff_t|uintptr_t)\b)"),
     "no standard library in kernels"),
)  # fmt: skip


def tracked(patterns: tuple[str, ...]) -> list[Path]:
    """Files that git knows, ignored ones left out."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split() if (path := ROOT / name).is_file()]


def breaches() -> list[str]:
    """All breaches in the working tree."""
    found = []
    for patterns, forbidden, rule in RULES:
        for path in tracked(patterns):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if forbidden.search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {rule}")
    for path in tracked(("*_simd.cpp",)):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            header = re.match(r"#include <(.+)>", line)
            if header and header[1] not in KERNEL_HEADERS:
                found.append(f"{path.relative_to(ROOT)}:{number}: <{header[1]}> in a kernel")
    return found


if __name__ == "__main__":
    listed = breaches()
    print("\n".join(listed) or "house rules hold")
    sys.exit(bool(listed))

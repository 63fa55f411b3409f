"""``python -m mahal``: where the C++ parts lie, facts about the build, or the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mahal import _core, info


def main(arguments: list[str]) -> int:
    """Answer ``--cmake-dir``, ``--include-dir`` and ``--info``; leave the rest to `mahal.cli`."""
    package = Path(_core.__file__).parent
    if arguments == ["--cmake-dir"]:
        print(package / "lib" / "cmake" / "mahal")
    elif arguments == ["--include-dir"]:
        print(package / "include")
    elif arguments == ["--info"]:
        print(json.dumps(info(), indent=2))
    else:
        from mahal import cli

        return cli.main(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

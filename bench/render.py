"""Put the tables of bench/results into Markdown files.

    python bench/render.py README.md docs/*.md [--check]

A table stands between the lines ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``, where NAME
is the name of a file in bench/results. ``bench:NAME:KEYWORD`` keeps the rows whose case holds the
keyword. With ``--check`` nothing is written, and the exit code tells whether all is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
BLOCK = re.compile(r"(<!-- bench:([\w]+)(?::([^>]*?))? -->\n).*?(<!-- /bench:\2 -->)", re.DOTALL)


def seconds(value: float) -> str:
    """A time with three digits and its unit."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def cell(name: str, value: Any) -> str:
    """One figure in its usual form."""
    if isinstance(value, str):
        return value
    if name in ("ratio", "speed-up"):
        return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
    if name.startswith("share"):
        return f"{100 * value:.0f} %"
    return f"{value:.3g}"


def table(content: dict[str, Any], keyword: str | None) -> str:
    """Markdown table of one result file, with the machine below it."""
    rows = [r for r in content["rows"] if keyword is None or keyword in r["case"]]
    if not rows:
        raise ValueError(f"render: keyword: must occur in a case, got {keyword!r}")
    facts = list(dict.fromkeys(name for row in rows for name in row["facts"]))
    lines = ["| " + " | ".join(["case", "implementation", "threads", "time", *facts]) + " |"]
    lines.append("|---|---|--:|--:|" + "--:|" * len(facts))
    for row in rows:
        mark = "\\*" if row["measured"] else ""
        cells = [row["case"], row["name"], str(row["threads"]), seconds(row["seconds"]) + mark]
        cells += [cell(f, row["facts"][f]) if f in row["facts"] else "" for f in facts]
        lines.append("| " + " | ".join(cells) + " |")
    extrapolated = dict.fromkeys(f"{r['name']} from {r['measured']}" for r in rows if r["measured"])
    if extrapolated:
        lines += ["", f"\\* extrapolated: {', '.join(extrapolated)}."]
    where = content["environment"]
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    lines += ["", f"{where['cpu']}, {where['mahal']['isa']}; {versions}."]
    ceilings = "; ".join(f"{k} {v / 1e9:.0f}e9" for k, v in content["ceilings"].items())
    if ceilings:
        lines += ["", f"Measured ceilings: {ceilings}."]
    return "\n".join(lines) + "\n"


def render(text: str) -> str:
    """The text with every table replaced by the current one."""

    def replace(match: re.Match[str]) -> str:
        path = RESULTS / f"{match[2]}.json"
        if not path.exists():
            raise ValueError(f"render: bench:{match[2]}: must have a result file, got none")
        return match[1] + table(json.loads(path.read_text()), match[3]) + match[4]

    return BLOCK.sub(replace, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="only tell whether all is current")
    options = parser.parse_args()
    stale = []
    for path in options.files:
        before = path.read_text()
        after = render(before)
        if after != before:
            stale.append(str(path))
            if not options.check:
                path.write_text(after)
    print("changed: " + ", ".join(stale) if stale else "all tables are current")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

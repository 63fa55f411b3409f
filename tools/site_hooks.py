"""What mkdocs does beyond its pages: the gallery, formulas as MathML, colours of code.

The gallery pages and their pictures are made by running the scripts in docs/gallery, so they show
what this version draws. Formulas become MathML, which browsers draw without any script.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import runpy
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File
from pygments.formatters import HtmlFormatter

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<body>.*?)\\[)\]]</(?P=tag)>', re.S
)

FENCE = re.compile(r"\\([lr])([vV])ert\b")


def fence(found: re.Match[str]) -> str:
    """``\\lvert`` as ``\\left\\vert``."""
    side = "left" if found[1] == "l" else "right"
    return f"\\{side}\\{found[2]}ert"


def on_files(files: Any, config: Any) -> Any:
    """Add the gallery and the style of code to the files of the site."""
    code = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    files.append(File.generated(config, "code.css", content=code))
    rows = []
    for script in sorted((Path(config.docs_dir) / "gallery").glob("*.py")):
        title, page, picture = shown(script)
        name = f"gallery/{script.stem}"
        files.append(File.generated(config, f"{name}.md", content=page))
        files.append(File.generated(config, f"{name}.png", content=picture))
        rows.append(f"## [{title}]({script.stem}.md)\n\n[![{title}]({script.stem}.png)]"
                    f"({script.stem}.md)\n")  # fmt: skip
    lead = (
        "# Gallery\n\nEvery picture is made by the script below it when these pages are built, on "
        "simulated scenes.\n"
    )
    files.append(File.generated(config, "gallery/index.md", content="\n".join([lead, *rows])))
    return files


def shown(script: Path) -> tuple[str, str, bytes]:
    """Title, page and picture of a script, which leaves its picture in ``figure``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        variables = runpy.run_path(str(script))
    picture = io.BytesIO()
    variables["figure"].savefig(picture, format="png", dpi=100, metadata={"Software": None})
    title, _, text = variables["__doc__"].strip().partition("\n")
    source = script.read_text(encoding="utf-8").split('"""', 2)[2].strip()
    title = title.rstrip(".")
    parts = [f"# {title}", text.strip(), f"![{title}]({script.stem}.png)"]
    parts.append(f"```python\n{source}\n```")
    if printed.getvalue():
        parts.append(f"It prints\n\n```text\n{printed.getvalue()}```")
    return title, "\n\n".join(parts) + "\n", picture.getvalue()


def on_page_content(content: str, **_: Any) -> str:
    """Formulas in TeX become MathML."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found["kind"] == "[" else "inline"
        # As fences, bars keep their distance and their height.
        text = FENCE.sub(fence, html.unescape(found["body"]))
        return str(convert(text.strip(), display=display))

    return FORMULA.sub(formula, content)

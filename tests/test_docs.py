"""The pages run: examples of the pages, scripts of the gallery, and links of the site."""

import re
import runpy
import warnings
from pathlib import Path

import mahal
import numpy as np
import pytest
from mahal import scenes
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Run by the tests that name them: examples with output, or with what they train.
TESTS = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
NAMED = "".join(path.read_text(encoding="utf-8") for path in TESTS)


def blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def test_gallery_covers():
    assert len(list((DOCS / "gallery").glob("*.py"))) >= 8


@pytest.mark.parametrize("script", sorted((DOCS / "gallery").glob("*.py")), ids=lambda p: p.stem)
def test_gallery(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = runpy.run_path(str(script))
    assert isinstance(variables["figure"], Figure)
    assert variables["figure"].axes
    assert variables["__doc__"].splitlines()[0].endswith(".")


PAGES = [
    page for page in sorted(DOCS.glob("*.md")) if f'"{page.name}"' not in NAMED and blocks(page)
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = scenes.simulate(60, 60, 8, seed=2)
    image = scene.image.astype(np.float64)
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((2, 60, 60, 4))
    spd = [m @ m.T + np.eye(4) for m in rng.standard_normal((3, 4, 4))]
    # What the pages take as given.
    variables = {
        "mahal": mahal,
        "image": image,
        "slc": parts[0] + 1j * parts[1],
        "before": image,
        "after": image + rng.standard_normal(image.shape),
        "first": image[:, :, 0],
        "second": image[:, :, 1],
        "a": spd[0],
        "b": spd[1],
        "t3": np.stack(spd).astype(complex),
        "mean": spd[2].astype(complex),
        "target": 1e4 * scene.metadata["target"],
        "library": np.stack([1e4 * scene.metadata["target"], image[0, 0]]),
        "truth": scene.truth,
        "mask": rng.random((60, 60)) > 0.1,
        "rows": 60,
        "cols": 60,
        "scores": mahal.rx(image),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mahal.ConvergenceWarning)
        warnings.simplefilter("ignore", mahal.SingularWarning)
        for block in blocks(page):
            code = compile(block, page.name, "exec")
            try:
                exec(code, variables)
            except (FileNotFoundError, scenes.SceneError) as error:
                if "no such file" not in str(error).lower():
                    raise
                pytest.skip(f"a file of the reader: {error}")

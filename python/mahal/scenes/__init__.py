"""Scenes: reading, writing beside them, and simulating them.

`read` brings MATLAB, ENVI, GeoTIFF and NumPy files into one `Scene`, `write` puts a score map into
the scene's own kind of file, `simulate` makes a scene with known truth.
"""

from mahal.scenes._read import KINDS, read, read_map, read_truth
from mahal.scenes._scene import Scene, SceneError, extra
from mahal.scenes._simulate import simulate
from mahal.scenes._write import score_paths, staged, write

__all__ = [
    "KINDS",
    "Scene",
    "SceneError",
    "extra",
    "read",
    "read_map",
    "read_truth",
    "score_paths",
    "simulate",
    "staged",
    "write",
]

"""Scenes: reading, writing beside them, and simulating them.

`read` brings optical and radar images of many kinds of files into one `Scene`, `read_target` brings
spectra to look for, `write` puts a score map into the scene's own kind of file, `simulate` makes a
scene with known truth. `Folder` reads many images, one at a time; `open` reads one that may be
larger than memory, piece by piece.
"""

from mahal.scenes._folder import Folder, is_image_folder
from mahal.scenes._lazy import open
from mahal.scenes._read import KINDS, read, read_map, read_truth
from mahal.scenes._scene import Scene, SceneError, extra
from mahal.scenes._simulate import simulate
from mahal.scenes._target import read_target
from mahal.scenes._write import score_paths, staged, write

__all__ = [
    "KINDS",
    "Folder",
    "Scene",
    "SceneError",
    "extra",
    "is_image_folder",
    "open",
    "read",
    "read_map",
    "read_target",
    "read_truth",
    "score_paths",
    "simulate",
    "staged",
    "write",
]

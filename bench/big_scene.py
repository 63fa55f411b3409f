"""Time and peak memory of `mahal detect` on a scene that is larger than the memory it may take.

A scene is simulated piece by piece into an uncompressed Zarr array: spectra of a few materials that
mix smoothly, noise, and a bright pixel of another spectrum every 512 pixels. `mahal detect` then
scores it in a process of its own, whose peak memory the operating system reports.

    python bench/big_scene.py FOLDER [--gigabytes 20] [--detectors rx,fused_rx,local_rx]

FOLDER needs room for the scene, which is deleted at the end; one of this size that is there already
is used and kept. Every run adds a row to the result file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mahal
import numpy as np
import zarr

BANDS = 100
PIECE = 256
MATERIALS = 6
SPACING = 512
RUNS = {
    "rx": ["--detector", "rx"],
    "fused_rx": [],
    "local_rx": ["--detector", "rx", "--window", "5", "21"],
}


def targets(side):
    """Rows or columns that the implanted pixels lie in."""
    return np.arange(SPACING // 2, side, SPACING)


def simulate(path, side):
    """A scene side x side x BANDS of float32."""
    random = np.random.default_rng(0)
    steps = random.normal(size=(MATERIALS, BANDS)).cumsum(axis=1)
    spectra = (100 + 10 * steps).astype(np.float32)
    other = (8 * random.normal(size=BANDS)).astype(np.float32)
    phases = random.uniform(0, 2 * np.pi, size=(MATERIALS, 2))
    scene = zarr.create_array(
        str(path),
        shape=(side, side, BANDS),
        chunks=(PIECE, PIECE, BANDS),
        dtype="float32",
        compressors=None,
        dimension_names=("y", "x", "band"),
    )
    places = targets(side)
    for row in range(0, side, PIECE):
        for col in range(0, side, PIECE):
            y, x = np.mgrid[row : min(row + PIECE, side), col : min(col + PIECE, side)]
            shares = [
                1.1 + np.sin((k + 1) * y / 301 + a) * np.sin((k + 1) * x / 257 + b)
                for k, (a, b) in enumerate(phases)
            ]
            mixed = np.stack(shares, axis=-1).astype(np.float32)
            mixed /= mixed.sum(axis=-1, keepdims=True)
            part = mixed @ spectra
            generator = np.random.default_rng([1, row, col])
            part += generator.standard_normal(part.shape, dtype=np.float32)
            hit = np.isin(y, places) & np.isin(x, places)
            part[hit] += other
            scene[row : row + PIECE, col : col + PIECE] = part


def measured(command):
    """Seconds and peak resident bytes of a process."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    if code:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--detectors", default=",".join(RUNS))
    parser.add_argument("--out", type=Path, default=Path("bench/results/big_scene.json"))
    args = parser.parse_args()
    side = math.ceil(math.sqrt(args.gigabytes * 1e9 / (4 * BANDS)) / PIECE) * PIECE
    path, output = args.folder / "big_scene.zarr", args.folder / "big_scene_scores.zarr"
    kept = path.exists() and zarr.open_array(str(path), mode="r").shape == (side, side, BANDS)
    results = {"machine": platform.machine(), "mahal": mahal.__version__, "runs": []}
    if args.out.exists():
        results = json.loads(args.out.read_text(encoding="utf-8"))
    try:
        if not kept:
            simulate(path, side)
        for name in args.detectors.split(","):
            shutil.rmtree(output, ignore_errors=True)
            command = [sys.executable, "-m", "mahal", "detect", str(path), "-o", str(output)]
            seconds, cpu, peak = measured([*command, *RUNS[name], "--threads", str(args.threads)])
            found = zarr.open_group(str(output), mode="r")
            summary = dict(found.attrs["summary"])
            places = (targets(side), targets(side))
            run = {
                "detector": name,
                "rows": side,
                "cols": side,
                "bands": BANDS,
                "bytes": side * side * BANDS * 4,
                "threads": args.threads,
                "seconds": seconds,
                "cpu_seconds": cpu,
                "peak_bytes": peak,
                "tile": summary["tile"],
                "tiles": summary["tiles"],
                "detections": summary["detections"],
                "implanted": targets(side).size ** 2,
                "implanted_found": int(found["detections"].get_orthogonal_selection(places).sum()),
            }
            print(json.dumps(run), flush=True)
            results["runs"].append(run)
            args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(output, ignore_errors=True)
        if not kept:
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()

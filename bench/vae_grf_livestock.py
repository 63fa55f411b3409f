"""VAE-GRF and the plain autoencoder on aerial tiles with animals, beside Table III of the paper.

    python bench/vae_grf_livestock.py FOLDER [--seeds 0 1] [--sheet maps.png]

FOLDER has Train and Test of the Livestock tiles as the authors cut them: JPEG tiles of 256 x 256
pixels, masks NAME_gt.png beside the test tiles. A subset of the training tiles is learnt by a small
network, so that a CPU does it in minutes; --paper takes the paper's network and recipe on all of
them, for a GPU. Writes results/vae_grf_livestock.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import mahal
import numpy as np
import torch
from _harness import RESULTS, environment
from mahal import metrics, pictures, scenes
from mahal.models import VAEGRF
from mahal.models.vae_grf import KINDS

PRINTED = {
    "VAE-GRF": {"mad": 0.84, "mad_sm": 0.83, "sm": 0.76},
    "plain VAE": {"l2": 0.67, "grad_elbo": 0.77, "grad_elbo_sm": 0.52, "iterative": 0.68},
}
SMALL = {"width": 16, "latent": 32, "crop": 64, "beta": 0.1, "convention": "paper"}
PRODUCTS = ("mad_sm", "grad_elbo_sm")


def tiles(folder: Path, count: int | None, seed: int) -> list[Path]:
    """Some of the tiles, in an order that does not depend on the machine."""
    found = sorted(folder.glob("*.jpg"))
    order = np.random.default_rng(seed).permutation(len(found))
    return [found[k] for k in order[:count]]


def image(path: Path) -> Any:
    """(rows, cols, 3) bytes."""
    return scenes.read(path).image


def truth(path: Path) -> Any:
    """Where the animals are: from the middle of the range of the mask on."""
    return scenes.read_map(path.with_name(f"{path.stem}_gt.png")) > 127


def areas(maps: list[Any], truths: list[Any]) -> dict[str, float]:
    """Both conventions."""
    found = metrics.image_areas(maps, truths)
    return {"per image": found.pixel_mean, "pooled": found.pixel}


def evaluate(model: VAEGRF, images: list[Any], truths: list[Any]) -> dict[str, Any]:
    """Areas of every kind of score: of maps in [0, 1] per image, and pooled as they are."""
    plain = [model.score_maps(tile) for tile in images]
    model.set_params(normalize=True)
    scaled = [model.score_maps(tile, PRODUCTS) for tile in images]
    model.set_params(normalize=False)
    found = {}
    for kind in KINDS:
        found[kind] = areas([m[kind] for m in plain], truths)
        if kind in PRODUCTS:
            per_image = areas([m[kind] for m in scaled], truths)["per image"]
            found[kind]["per image"] = per_image
    return {"areas": found, "maps": plain}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=128, help="training tiles")
    parser.add_argument("--test", type=int, default=60, help="test tiles")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--paper", action="store_true", help="the paper's recipe on all tiles")
    parser.add_argument("--sheet", type=Path, help="picture of maps")
    parser.add_argument("--out", type=Path, default=RESULTS / "vae_grf_livestock.json")
    args = parser.parse_args()
    if not args.paper:
        torch.set_num_threads(1)
    count = None if args.paper else args.train
    learnt = [image(path) for path in tiles(args.folder / "Train", count, 0)]
    paths = tiles(args.folder / "Test", None if args.paper else args.test, 0)
    images, truths = [image(path) for path in paths], [truth(path) for path in paths]
    rows: list[dict[str, Any]] = []
    shown: dict[str, list[Any]] = {}

    def add(name: str, seed: int, found: dict[str, Any], **facts: Any) -> None:
        rows.append({"model": name, "seed": seed, **facts, "areas": found})
        text = ", ".join(f"{k} {v['per image']:.3f}/{v['pooled']:.3f}" for k, v in found.items())
        print(f"{name}, seed {seed}: {text} {facts}", flush=True)

    add("RX of the colours", 0, {"rx": areas([mahal.rx(tile) for tile in images], truths)})
    settings = {} if args.paper else {**SMALL, "epochs": args.epochs}
    create = VAEGRF.paper if args.paper else VAEGRF
    variants: dict[str, dict[str, Any]] = {
        "VAE-GRF": {},
        "plain VAE": {"prior": "normal"},
        "VAE-GRF, untrained": {"epochs": 1, "learning_rate": 1e-12},
    }
    for seed in args.seeds:
        for name, changes in variants.items():
            if "untrained" in name and (args.paper or seed != args.seeds[0]):
                continue
            params = {**settings, **changes, "normalize": False, "seed": seed}
            begin, clock = time.process_time(), time.perf_counter()
            model = create(**params)
            model.fit(learnt, progress=args.paper)
            facts = {
                "processor seconds": time.process_time() - begin,
                "seconds": time.perf_counter() - clock,
                "range": None if np.isnan(model.range_) else model.range_,
                "variance": None if np.isnan(model.variance_) else model.variance_,
            }
            found = evaluate(model, images, truths)
            add(name, seed, found["areas"], **facts)
            shown.setdefault(name, found["maps"])
    if args.sheet:
        sheet = []
        for k in range(6):
            scene = scenes.Scene(images[k], paths[k].stem, "picture", truth=truths[k])
            maps = {kind: shown["VAE-GRF"][k][kind] for kind in KINDS}
            sheet.append((scene, {**maps, "mad, plain": shown["plain VAE"][k]["mad"]}))
        pictures.save(pictures.map_sheet(sheet), args.sheet)
    content = {
        "bench": "vae_grf_livestock",
        "environment": environment(),
        "training": {"tiles": len(learnt), "test tiles": len(images), **settings},
        "printed": PRINTED,
        "rows": rows,
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(markdown(rows))


def markdown(rows: list[dict[str, Any]]) -> str:
    """Means over the seeds, in both conventions, beside the printed figures."""
    lines = [
        "| score | model | Table III | per image | pooled |",
        "|---|---|--:|--:|--:|",
    ]
    names = list(dict.fromkeys(row["model"] for row in rows))
    for kind in ("rx", *KINDS):
        for name in names:
            runs = [
                row["areas"][kind] for row in rows if row["model"] == name and kind in row["areas"]
            ]
            if not runs:
                continue
            printed = PRINTED.get(name, {}).get(kind)
            cells = [kind, name, "" if printed is None else f"{printed:.2f}"]
            for convention in ("per image", "pooled"):
                spread = metrics.over_runs([run[convention] for run in runs])
                cells.append(
                    f"{spread.mean:.3f}" + (f" ± {spread.deviation:.3f}" if len(runs) > 1 else "")
                )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

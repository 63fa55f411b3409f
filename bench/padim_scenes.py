"""PaDiM and PaDiM-ACE on radar scenes with boxes, ships with masks, and a sample of leather.

    python bench/padim_scenes.py --data ../shared/data --output padim

trains a ResNet-18 on MSTAR chips (padim/backbone.safetensors, kept where it is there already), fits
with the seeds 0, 1, 2, and writes padim_scenes.md, padim_scenes.json and a sheet of maps for each
set of images. Images are cut into tiles. Half of the images, drawn by the seed, give normal tiles
for the background and anomalous ones for the signature; the others are the test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from mahal import metrics, models, pictures, scenes
from mahal.models import backbones
from mahal.models.padim import blur

SEEDS = (0, 1, 2)
TESTS = 60
"""How many tiles with anomalies are tested at most, and how many without."""
CHIP, CROP = 88, 64
TRAINING = {"crop": CROP, "epochs": 16, "batch_size": 16}
KINDS = {
    "brightness, blurred": None,
    "Mahalanobis, full (PaDiM)": {"score_kind": "mahalanobis"},
    "Mahalanobis, diagonal": {"score_kind": "mahalanobis", "covariance": "diagonal"},
    **{
        f"Mahalanobis, isotropic, {aggregation.replace('_', ' ')}": {
            "score_kind": "mahalanobis",
            "covariance": "isotropic",
            "aggregation": aggregation,
        }
        for aggregation in ("mean_diagonal", "mean_full", "determinant")
    },
    "ACE, full (PaDiM-ACE)": {},
    "ACE, diagonal": {"covariance": "diagonal"},
    "ACE, isotropic": {"covariance": "isotropic"},
    "ACE, full, centred": {"center_signature": True},
    "ACE, as published, full": {"compat": "padim-ace-2025"},
}
MARKED = "ACE, full, centred, marked pixels"
SHOWN = ("Mahalanobis, full (PaDiM)", "ACE, full (PaDiM-ACE)", "ACE, isotropic", MARKED)


class Tile(NamedTuple):
    """A part of an image with its truth."""

    source: int
    image: np.ndarray
    truth: np.ndarray


def grey(path: Path) -> np.ndarray:
    """One band of a picture whose bands are equal."""
    return np.ascontiguousarray(scenes.read(path).image[:, :, 0])


def coloured(image: np.ndarray) -> np.ndarray:
    """Three bands, equal ones where there is one."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image.copy()


def chips(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """Centres of chips, and their classes."""
    found, labels = [], []
    for label, place in enumerate(sorted(p for p in folder.iterdir() if p.is_dir())):
        for path in sorted(place.iterdir()):
            image = grey(path)
            top, left = ((side - CHIP) // 2 for side in image.shape)
            found.append(image[top : top + CHIP, left : left + CHIP])
            labels.append(label)
    return found, np.array(labels)


def backbone(data: Path, path: Path) -> dict[str, object]:
    """Train the backbone unless it is there, and say what it can do."""
    facts = path.with_suffix(".json")
    if not path.exists():
        images, labels = chips(data / "sar/mstar_chips/train")
        begin = time.process_time()
        network = models.train_backbone(images, labels, path, **TRAINING)
        seconds = time.process_time() - begin
        images, labels = chips(data / "sar/mstar_chips/test")
        low = (CHIP - CROP) // 2
        right = 0
        for k, picture in enumerate(backbones.Pictures("test", images, None, complex_images=False)):
            x = backbones.prepare(picture, 3, None, "imagenet")[None]
            logits = network.classify(x[:, :, low : low + CROP, low : low + CROP])
            right += int(logits.argmax() == labels[k])
        content = {**TRAINING, "cpu_seconds": round(seconds), "accuracy": right / len(labels)}
        facts.write_text(json.dumps(content))
    found: dict[str, object] = json.loads(facts.read_text())
    return found


def tiles(source: int, image: np.ndarray, truth: np.ndarray, side: int) -> Iterator[Tile]:
    """Tiles beside each other, what is left over at the end of the image left out."""
    for top in range(0, image.shape[0] - side + 1, side):
        for left in range(0, image.shape[1] - side + 1, side):
            part = np.s_[top : top + side, left : left + side]
            yield Tile(source, coloured(image[part]), truth[part].copy())


def mstar(folder: Path) -> list[Tile]:
    """Tiles around every box, and up to two without any of each scene."""
    found, side = [], 160
    for source, path in enumerate(sorted((folder / "sar/mstar_scenes/images").iterdir())):
        image = grey(path)
        truth = np.zeros(image.shape, np.bool_)
        root = ElementTree.parse(folder / f"sar/mstar_scenes/boxes/{path.stem}.xml").getroot()
        corners = []
        for box in root.iter("bndbox"):
            names = ("ymin", "xmin", "ymax", "xmax")
            top, left, bottom, right = (int(box.findtext(name, "")) for name in names)
            truth[top - 1 : bottom, left - 1 : right] = True
            middle = ((top + bottom) // 2, (left + right) // 2)
            corners.append(
                [
                    min(max(m - side // 2, 0), n - side)
                    for m, n in zip(middle, image.shape, strict=True)
                ]
            )
        for top, left in corners:
            part = np.s_[top : top + side, left : left + side]
            found.append(Tile(source, coloured(image[part]), truth[part].copy()))
        normal = [tile for tile in tiles(source, image, truth, side) if not tile.truth.any()]
        found += normal[:2]
    return found


def hrsid(folder: Path) -> list[Tile]:
    """All tiles of the images with ships."""
    found = []
    for source, path in enumerate(sorted((folder / "sar/hrsid/images").iterdir())):
        truth = scenes.read(folder / f"sar/hrsid/masks/{path.stem}.png").image.max(axis=2) > 0
        found += tiles(source, grey(path), truth, 160)
    return found


def leather(folder: Path) -> list[Tile]:
    """All tiles at half the resolution."""
    found = []
    paths = sorted((folder / "texture/leather").glob("t*/*/*.png"))
    for source, path in enumerate(paths):
        image = scenes.read(path).image.astype(np.float32) / 255
        mask = folder / f"texture/leather/ground_truth/{path.parent.name}/{path.stem}_mask.png"
        if path.parent.name != "good" and not mask.exists():
            continue
        truth = np.zeros(image.shape[:2], np.bool_)
        if mask.exists():
            truth = scenes.read(mask).image[:, :, 0] > 127
        rows, cols = (n // 2 for n in truth.shape)
        image = image.reshape(rows, 2, cols, 2, 3).mean(axis=(1, 3))
        truth = truth.reshape(rows, 2, cols, 2).any(axis=(1, 3))
        found += tiles(source, image, truth, 128)
    return found


SETS = {"MSTAR scenes": mstar, "HRSID": hrsid, "leather": leather}


class Kept:
    """A backbone that computes the features of an image once."""

    def __init__(self, weights: Path) -> None:
        self.network = backbones.build("bench", "resnet18", None, str(weights), 0)
        self.maps: dict[bytes, list[torch.Tensor]] = {}

    def __call__(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = []
        for image in x:
            key = hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()
            if key not in self.maps:
                self.maps[key] = self.network(image[None])
            found.append(self.maps[key])
        return [torch.cat(maps) for maps in zip(*found, strict=True)]


def evaluate(
    all_tiles: list[Tile], network: Kept, seed: int
) -> tuple[dict[str, metrics.ImageAreas], dict[str, int], list[tuple[Tile, dict[str, np.ndarray]]]]:
    """Areas of every kind of score with one seed, the numbers of tiles, and some maps."""
    sources = sorted({tile.source for tile in all_tiles})
    order = np.random.default_rng(seed).permutation(sources)
    fitted = set(order[: len(sources) // 2].tolist())
    normal = [t for t in all_tiles if t.source in fitted and not t.truth.any()]
    strange = [t for t in all_tiles if t.source in fitted and t.truth.any()]
    others = [t for t in all_tiles if t.source not in fitted]
    test = []
    for kind in (True, False):
        own = [t for t in others if t.truth.any() == kind]
        test += own[:: -(-len(own) // TESTS)]
    model = models.PadimACE(backbone=network, seed=seed)
    examples = [t.image for t in strange]
    model.fit([t.image for t in normal], anomalous=examples)
    maps: dict[str, list[np.ndarray]] = {}
    defaults = {name: model.get_params()[name] for name in model.scoring_params}
    for name, params in KINDS.items():
        if params is None:
            grey_tiles = [t.image.mean(axis=2, dtype=np.float32) for t in test]
            values = torch.from_numpy(np.stack(grey_tiles))[:, None]
            maps[name] = list(blur(values, 4.0)[:, 0].numpy())
            continue
        model.set_params(**{**defaults, **params})
        try:
            maps[name] = [model.score(t.image) for t in test]
        except models.ModelError as error:
            print(f"{name}: {error}", flush=True)
    model.set_params(**{**defaults, "center_signature": True, "signature": "global"})
    model.set_signature(examples, areas=[t.truth for t in strange])
    maps[MARKED] = [model.score(t.image) for t in test]
    areas = {
        name: metrics.image_areas(found, [t.truth for t in test]) for name, found in maps.items()
    }
    counts = {
        "normal": len(normal),
        "signature": len(strange),
        "test": len(test),
        "test_anomalous": sum(bool(t.truth.any()) for t in test),
    }
    chosen = [k for k, t in enumerate(test) if t.truth.any()][
        :: max(1, counts["test_anomalous"] // 5)
    ]
    shown = [(test[k], {name: maps[name][k] for name in SHOWN}) for k in chosen[:6]]
    return areas, counts, shown


def table(rows: list[dict[str, object]]) -> str:
    """Markdown, a row for every kind of score."""
    names = list(SETS)
    lines = [
        "| score | " + " | ".join(f"{n}: image | pixel" for n in names) + " |",
        "|---|" + "--:|" * 2 * len(names),
    ]
    for kind in (*KINDS, MARKED):
        cells = []
        for name in names:
            own = [r for r in rows if r["set"] == name and r["score"] == kind]
            for what in ("image", "pixel"):
                cells.append(str(metrics.over_runs([r[what] for r in own])) if own else "-")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Everything, in the order of the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(exist_ok=True)
    weights = arguments.output / "backbone.safetensors"
    content: dict[str, object] = {"backbone": backbone(arguments.data, weights)}
    rows: list[dict[str, object]] = []
    counts: dict[str, object] = {}
    for name, read in SETS.items():
        begin = time.process_time()
        all_tiles, network = read(arguments.data), Kept(weights)
        for seed in SEEDS:
            areas, counted, shown = evaluate(all_tiles, network, seed)
            rows += [
                {"set": name, "score": kind, "seed": seed, "image": a.image, "pixel": a.pixel}
                for kind, a in areas.items()
            ]
            counts[f"{name}, seed {seed}"] = counted
            if seed == SEEDS[0]:
                sheet = [
                    (
                        scenes.Scene(
                            np.atleast_3d(t.image), f"{name} {k}", "picture", truth=t.truth
                        ),
                        m,
                    )
                    for k, (t, m) in enumerate(shown)
                ]
                file = arguments.output / f"{name.replace(' ', '_').lower()}.png"
                pictures.save(pictures.map_sheet(sheet), file)
        print(f"{name}: {time.process_time() - begin:.0f} s of one core", flush=True)
        # What is there counts, should the rest be interrupted.
        content |= {"tiles": counts, "rows": rows}
        text = json.dumps(content, indent=1) + "\n"
        (arguments.output / "padim_scenes.json").write_text(text)
        (arguments.output / "padim_scenes.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

"""One small data set, from real photos, in the layouts in which people have their labels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import SHARED
from PIL import Image

MSRC = SHARED / "data" / "msrc_v2"
needs_photos = pytest.mark.skipif(not MSRC.exists(), reason=f"needs the photos in {MSRC}")
STEMS = ["1_13_s", "2_16_s", "3_11_s", "4_6_s", "5_16_s", "6_1_s"]
COLOURS = np.random.default_rng(5).integers(1, 255, (256, 3), np.uint8)
IDS = np.array(
    [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 40, 50, 60, 70]
)  # of 23 names


def names() -> list[str]:
    return (MSRC / "names.txt").read_text().split("\n")[:23]


def labels(stem: str) -> np.ndarray:
    """uint8 [H, W], 0 to 22 or 255."""
    return np.array(Image.open(MSRC / "labels" / f"{stem}.png").convert("L"))


def copy_photos(folder: Path, before: str = "", after: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS:
        shutil.copy(MSRC / "images" / f"{stem}.jpg", folder / f"{before}{stem}{after}.jpg")
    return folder


def write(folder: Path, draw: Callable[[np.ndarray], Any], before: str = "", after: str = "") -> Path:
    """Label images, each made by ``draw`` from labels [H, W]."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in STEMS:
        drawn = draw(labels(stem))
        image = drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)
        image.save(folder / f"{before}{stem}{after}.png")
    return folder


def write_names(file: Path, lines: list[str] | None = None) -> Path:
    file.write_text("\n".join(lines or names()) + "\n")
    return file


# ---- the layouts: each writes into a folder and returns the keys of `data`


def plain(root: Path) -> dict[str, Any]:
    return {"images": copy_photos(root / "images"), "labels": write(root / "labels", lambda values: values),
            "names": write_names(root / "names.txt")}  # fmt: skip


def coloured(root: Path) -> dict[str, Any]:
    """RGB, named by the labelmap.txt of an annotation tool; no names file."""
    lines = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(names(), COLOURS[:23].tolist(), strict=True)]
    (root / "labelmap.txt").write_text("\n".join(["# label:color_rgb:parts:actions", *lines, "void:0,0,0::"]) + "\n")
    table = np.concatenate([COLOURS[:255], [[0, 0, 0]]]).astype(np.uint8)
    return {"images": copy_photos(root / "images"), "labels": write(root / "labels", lambda values: table[values]),
            "label_map": str(root / "labelmap.txt")}  # fmt: skip


def transparent(root: Path) -> dict[str, Any]:
    """RGBA, nothing painted where nothing is labelled; colours as hexadecimal numbers in JSON, names in a file."""
    table = np.concatenate([COLOURS, np.full((256, 1), 255)], axis=1).astype(np.uint8)
    table[255] = 0
    entries = {name: "#{:02x}{:02x}{:02x}".format(*COLOURS[index]) for index, name in enumerate(names())}
    (root / "colours.json").write_text(json.dumps(entries))
    return {"images": copy_photos(root / "images"), "labels": write(root / "labels", lambda values: table[values]),
            "names": write_names(root / "names.txt"), "label_map": str(root / "colours.json")}  # fmt: skip


def reordered(root: Path) -> dict[str, Any]:
    """Palette images whose indices differ from file to file: the colours count."""
    table = np.concatenate([COLOURS[:255], [[0, 0, 0]]]).astype(np.uint8)
    orders = iter(np.random.default_rng(1).permuted(np.tile(np.arange(256), (len(STEMS), 1)), axis=1))

    def draw(values: np.ndarray) -> Image.Image:
        order = next(orders)
        image = Image.fromarray(order[values].astype(np.uint8)).convert("L")
        image.putpalette(table[np.argsort(order)].ravel().tolist())
        return image

    return coloured(root) | {"labels": write(root / "palette", draw)}


def gaps(root: Path) -> dict[str, Any]:
    """Ids with gaps, named in YAML."""
    table = np.concatenate([IDS, np.zeros(233)]).astype(np.uint8)
    entries = "".join(f"{value}: {name}\n" for value, name in zip(IDS, names(), strict=True))
    (root / "ids.yaml").write_text(f"# ids\n{entries}0: null\n")
    return {"images": copy_photos(root / "images"), "labels": write(root / "labels", lambda values: table[values]),
            "names": write_names(root / "names.txt"), "label_map": str(root / "ids.yaml")}  # fmt: skip


def numbered_names(root: Path) -> dict[str, Any]:
    """The same, and the names file alone says the ids."""
    keys = gaps(root)
    lines = [f"{value}: {name}" for value, name in zip(IDS, names(), strict=True)]
    write_names(root / "names.txt", ["# ids", *lines[::-1], "0: unlabeled"])
    return {key: keys[key] for key in ("images", "labels", "names")}


def coloured_names(root: Path) -> dict[str, Any]:
    """RGB, and the names file is the labelmap.txt."""
    keys = coloured(root)
    return {"images": keys["images"], "labels": keys["labels"], "names": Path(keys["label_map"])}


def void_zero(root: Path) -> dict[str, Any]:
    """0 is void, the names begin at 1."""
    return plain(root) | {"labels": write(root / "shifted", lambda values: values + np.uint8(1)), "ignore": [0, 255]}


def void_zero_alone(root: Path) -> dict[str, Any]:
    """The same, and nothing else is void."""
    return void_zero(root) | {"ignore": 0}


def suffixed(root: Path) -> dict[str, Any]:
    """Photos and masks in one folder, with suffixes."""
    copy_photos(root / "all", after="_leftImg8bit")
    write(root / "all", lambda values: values, after="_gtFine_labelIds")
    write(root / "all", lambda values: COLOURS[values], after="_gtFine_color")
    return {"images": root / "all", "names": write_names(root / "names.txt"), "image_suffix": "_leftImg8bit",
            "label_suffix": "_gtFine_labelIds"}  # fmt: skip


def one_folder(root: Path) -> dict[str, Any]:
    """x.jpg and x.png side by side."""
    copy_photos(root / "all")
    return {"images": root / "all", "labels": write(root / "all", lambda values: values),
            "names": write_names(root / "names.txt")}  # fmt: skip


def grey_in_rgb(root: Path) -> dict[str, Any]:
    """Three equal channels, as many tools save them."""
    return plain(root) | {"labels": write(root / "rgb", lambda values: np.stack([values] * 3, axis=-1))}


def annotations(root: Path, segment: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    """COCO annotations: category ids are 3 (n + 1), photos lie in a folder of their own."""
    images, found = [], []
    for number, stem in enumerate(STEMS):
        values = labels(stem)
        images.append({"id": 100 + number, "file_name": f"train/{stem}.jpg", "height": values.shape[0],
                       "width": values.shape[1]})  # fmt: skip
        for label in sorted(set(values.ravel().tolist()) - {255}):
            found.append({"id": len(found) + 1, "image_id": 100 + number, "category_id": 3 * (label + 1), "iscrowd": 0,
                          "segmentation": segment(values == label)})  # fmt: skip
    categories = [{"id": 3 * (index + 1), "name": name} for index, name in enumerate(names())]
    file = root / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": found, "categories": categories}))
    return {"images": copy_photos(root / "photos"), "labels": file}


def coco_runs(root: Path) -> dict[str, Any]:
    """Run lengths as plain numbers."""

    def segment(mask: np.ndarray) -> dict[str, Any]:
        flat = np.concatenate([[0], mask.ravel(order="F"), [0]]).astype(int)
        edges = np.flatnonzero(np.diff(flat))
        counts = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
        return {"size": list(mask.shape), "counts": counts}

    return annotations(root, segment)


def coco_compressed(root: Path) -> dict[str, Any]:
    """Run lengths as COCO's text, read with a names file."""
    mask_api = pytest.importorskip("pycocotools.mask")

    def segment(mask: np.ndarray) -> dict[str, Any]:
        encoded = mask_api.encode(np.asfortranarray(mask, np.uint8))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}

    return annotations(root, segment) | {"names": write_names(root / "names.txt")}


def coco_polygons(root: Path) -> dict[str, Any]:
    """Polygons: every run of a row is a rectangle."""

    def segment(mask: np.ndarray) -> list[list[float]]:
        boxes = []
        for y, row in enumerate(mask):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]]).astype(int)))
            boxes += [[a, y, b, y, b, y + 1, a, y + 1] for a, b in edges.reshape(-1, 2).tolist()]
        return boxes

    return annotations(root, segment)


def coco_panoptic(root: Path) -> dict[str, Any]:
    """Panoptic PNGs: two segments of every class, ids beyond 8 bits, 0 is void."""
    keys = coco_runs(root)
    data = json.loads(keys["labels"].read_text())
    found = []
    for number, stem in enumerate(STEMS):
        values = labels(stem).astype(np.int64)
        ids = np.where(values == 255, 0, 1000 + 2 * values + (np.arange(values.shape[1]) % 2))
        (root / "annotations").mkdir(exist_ok=True)
        Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(
            root / "annotations" / f"{stem}.png"
        )
        segments = [{"id": one, "category_id": 3 * ((one - 1000) // 2 + 1)} for one in np.unique(ids).tolist() if one]
        found.append({"image_id": 100 + number, "file_name": f"{stem}.png", "segments_info": segments})
    keys["labels"].write_text(json.dumps(data | {"annotations": found}))
    return keys


LAYOUTS = {layout.__name__: layout for layout in (
    plain, coloured, transparent, reordered, gaps, numbered_names, coloured_names, void_zero, void_zero_alone, suffixed,
    one_folder, grey_in_rgb,
    coco_runs, coco_compressed, coco_polygons, coco_panoptic,
)}  # fmt: skip

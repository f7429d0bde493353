"""Small data sets: folders that are drawn, a few pairs of each benchmark set, and ways to damage them."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_sets import draw_sets
from paths import SHARED
from PIL import Image

from fgaseg.config import DataConfig
from fgaseg.data.benchmark_sets import BENCHMARK_SETS, CLASS_LISTS
from fgaseg.data.images import CLIP_MEAN, CLIP_STD

SAMPLES = SHARED / "data" / "protocol"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason=f"needs the sample photos in {SAMPLES}")
FULL = "ADE20K_2021_17_01"
CONTEXT = "VOCdevkit/VOC2010"
STEMS = ["2008_000002", "2008_000003", "2008_000007"]  # of the validation list; the photos are noise


def make_folder(root: Path, count: int = 4, size: tuple[int, int] = (40, 56), **settings: object) -> DataConfig:
    """``count`` photos whose red value is 40 times the label, void at the left edge."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "names.txt").write_text("sky\ngrass\ncat\n")
    rng = np.random.default_rng(0)
    for number in range(count):
        labels = np.kron(rng.integers(0, 3, (size[0] // 8, size[1] // 8)), np.ones((8, 8))).astype(np.uint8)
        photo = np.stack([labels * 40, np.full_like(labels, 50), np.full_like(labels, 90)], axis=-1)
        labels[:, :3] = 255
        Image.fromarray(photo).save(root / "images" / f"p{number}.png")
        Image.fromarray(labels).save(root / "labels" / f"p{number}.png")
    paths = {"images": root / "images", "labels": root / "labels", "names": root / "names.txt"}
    return DataConfig(**(paths | {"flip": False, "color_jitter": False, "crop": 32} | settings))


def as_bytes(pixels: torch.Tensor) -> torch.Tensor:
    return ((pixels * torch.tensor(CLIP_STD)[:, None, None] + torch.tensor(CLIP_MEAN)[:, None, None]) * 255).round()


def copy_samples(root: Path) -> Path:
    """A writable copy of the samples, or drawn ones where they are not there, in the same number.

    A-847's three photos are also its validation split. PASCAL Context is drawn in either case.
    """
    if SAMPLES.exists():
        shutil.copytree(SAMPLES, root)
    else:
        draw_sets(root, sorted(shipped_ids("ade847")))
    shutil.copytree(root / FULL / "images/ADE/training", root / FULL / "images/ADE/validation")
    draw_context(root / CONTEXT)
    return root


def draw_context(folder: Path) -> None:
    """PASCAL Context as documented: LabelMap in .mat files, and COCO's compressed run lengths in one JSON file.

    No file of it was at hand, so these stand in for it: rectangles of every category that the sets know.
    """
    savemat = pytest.importorskip("scipy.io").savemat
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "trainval").mkdir()
    rng = np.random.default_rng(0)
    ids = [value for value in shipped_ids("pc59") if value]
    images, masks = [], []
    for number, stem in enumerate([*STEMS, "2008_999999"]):  # the last is in the training phase
        height, width = 60 + number, 80
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        noise.save(folder / "JPEGImages" / f"{stem}.jpg")
        label_map = np.kron(rng.integers(1, 460, (height, 8)), np.ones((1, 10))).astype(np.uint16)
        savemat(folder / "trainval" / f"{stem}.mat", {"LabelMap": label_map}, do_compression=bool(number % 2))
        images.append({"file_name": f"{stem}.jpg", "phase": "val" if stem in STEMS else "train", "height": height,
                       "width": width, "image_id": 1000 + number})  # fmt: skip
        for category in ids[number::3]:
            (top, left), (high, wide) = rng.integers(0, 40, 2), rng.integers(1, 40, 2)
            mask = np.zeros((height, width), np.uint8)
            mask[top : top + high, left : left + wide] = 1
            masks.append({"image_id": 1000 + number, "category_id": category, "id": len(masks), "iscrowd": 0,
                          "segmentation": {"size": [height, width], "counts": compressed(mask)}})  # fmt: skip
    (folder / "trainval_merged.json").write_text(json.dumps({"images": images, "annos_segmentation": masks}))
    names = BENCHMARK_SETS["pc459"].names
    (folder / "labels.txt").write_text("".join(f"{number}: {name}\n" for number, name in enumerate(names, 1)))


def compressed(mask: np.ndarray) -> str:
    """COCO's text of a mask, written from its description: column by column, differences from the fourth count on."""
    runs = [(value, len(list(group))) for value, group in itertools.groupby(mask.ravel(order="F").tolist())]
    counts = [count for _, count in ([(0, 0)] if runs[0][0] else []) + runs]
    text = ""
    for index, count in enumerate(counts):
        left = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, left = left & 31, left >> 5
            more = left != (-1 if group & 16 else 0)
            text += chr(group + (32 if more else 0) + 48)
    return text


def shipped_ids(name: str) -> dict[int, int]:
    folder = SAMPLES.parent / "classes"
    table = json.loads(((folder if folder.exists() else CLASS_LISTS) / f"{name}_id_to_train_id.json").read_text())
    return {int(key): value for key, value in table.items()}


def hashes(root: Path) -> dict[str, str]:
    files = [file for file in sorted(root.rglob("*")) if file.is_file()]
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def values(file: Path) -> list[list[int]]:
    """Pixel values by another route than numpy's view of the file."""
    image = Image.open(file)
    flat = list(image.getdata() if not hasattr(image, "get_flattened_data") else image.get_flattened_data())
    return [flat[row * image.width : (row + 1) * image.width] for row in range(image.height)]


def damage(file: Path, how: str | int) -> None:
    if how == "remove":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "small":
        Image.new("RGB", (20, 10)).save(file)
    else:
        labels = np.array(Image.open(file))
        labels[5, 7] = how
        Image.fromarray(labels).save(file)

"""Benchmark sets in their published layouts, drawn: photos of noise, and blocks of every value that a set defines."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

BLOCK = 4
COCO = [value for value in range(182) if value not in (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)]
VOC = {  # each with few values, of which the first are COCO-Stuff's too
    "2011_000003": [0, 2, 255, 11, 20],
    "2011_000006": [0, 1, 5, 19, 255],
    "2011_000025": [0, 7, 6],
    "fcn_demo": [0, 1, 15, 255],
}
ADE_VALIDATION = (1, 2, 3, 1232, 1349, 1517, 1599, 1697, 1996)


def draw_sets(root: Path, full_ids: list[int]) -> None:
    """COCO-Stuff, ADE20K in both versions and VOC; `full_ids` are those of the 847 classes of ADE20K's second."""
    rng = np.random.default_rng(0)
    for split, count in (("train2017", 13), ("val2017", 8)):
        for number in range(count):
            name = f"{number * 977 + 139:012}"
            _photo(rng, root / "coco-stuff/images" / split / f"{name}.jpg", (96, 64 + number))
            _labels(rng, root / "coco-stuff/annotations" / split / f"{name}.png", (96, 64 + number), [*COCO, 255])
    ade = root / "ADEChallengeData2016"
    for split, short, numbers in (("training", "train", range(6)), ("validation", "val", ADE_VALIDATION)):
        for number in numbers:
            size = (683, 512) if number == 1 else (80 + number % 7, 72)
            _photo(rng, ade / "images" / split / f"ADE_{short}_{number:08}.jpg", size)
            _labels(rng, ade / "annotations" / split / f"ADE_{short}_{number:08}.png", size, range(148))
    voc = root / "VOCdevkit/VOC2012"
    for stem, values in VOC.items():
        _photo(rng, voc / "JPEGImages" / f"{stem}.jpg", (100, 75))
        _labels(rng, voc / "SegmentationClassAug" / f"{stem}.png", (100, 75), values, palette=True)
    _made(voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(VOC) + "\n")
    # at 759x744 it matters how OpenCV rounds the positions of the pixels that are kept
    for number, size in enumerate([(759, 744), (1100, 700), (640, 530)]):
        _draw_full(rng, root / "ADE20K_2021_17_01/images/ADE/training/urban/street", number, size, full_ids)


def _draw_full(rng: np.random.Generator, folder: Path, number: int, size: tuple[int, int], ids: list[int]) -> None:
    """A photo of ADE20K's second version: a class c is red c // 256 * 10 and green c % 256, blue an instance."""
    stem = f"ADE_train_{16869 + number:08}"
    _photo(rng, folder / f"{stem}.jpg", size)
    drawn = _blocks(rng, size, [*rng.choice(ids, 60), 0])
    coded = np.stack([drawn // 256 * 10, drawn % 256, drawn * 7 % 256], axis=-1)
    for part in ("seg", "parts_1"):
        Image.fromarray(coded.astype(np.uint8)).save(folder / f"{stem}_{part}.png")
    objects = [{"id": i, "name_ndx": value} for i, value in enumerate(np.unique(drawn).tolist())]
    (folder / f"{stem}.json").write_text(json.dumps({"annotation": {"object": objects}}))


def _blocks(rng: np.random.Generator, size: tuple[int, int], values: object) -> np.ndarray:
    """int64 [H, W]: the smallest and the largest of the values in the first blocks, any of them in the others."""
    values = np.array(list(values), np.int64)
    width, height = size
    drawn = rng.choice(values, (-(-height // BLOCK), -(-width // BLOCK)))
    drawn[0, :2] = values.min(), values.max()
    return np.kron(drawn, np.ones((BLOCK, BLOCK), np.int64))[:height, :width]


def _labels(rng: np.random.Generator, file: Path, size: tuple[int, int], values: object, palette: bool = False) -> None:
    image = Image.fromarray(_blocks(rng, size, values).astype(np.uint8))
    if palette:
        image.putpalette(np.arange(256).repeat(3)[::-1].tolist())
    image.save(_made(file))


def _photo(rng: np.random.Generator, file: Path, size: tuple[int, int]) -> None:
    width, height = size
    noise = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
    noise.resize(size).save(_made(file))


def _made(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return file

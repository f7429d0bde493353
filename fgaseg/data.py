"""Photos and label pictures in folders, as training and validation items."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from .config import DataConfig
from .images import ImageError, open_image, read_image, to_pixels

Item = dict[str, Any]  # {"pixels" or "image", "labels", "stem"}

_PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_LABELS = (".png", ".tif", ".tiff", ".bmp")
_PAD = 128


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what is wrong and what to do."""


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Class names in label order: UTF-8 text with one a line, or a JSON list of strings. Outer spaces are dropped."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 text: save the names file as UTF-8") from error
    except OSError as error:
        raise DataError(
            f"{file}: cannot be read as a names file ({error.strerror}): give one class name a line"
        ) from error
    names = _json_names(file, text) if text.lstrip().startswith("[") else text.rstrip().split("\n")
    names = [name.strip() for name in names]
    if not any(names):
        raise DataError(f"{file}: holds no names: give one class name a line, label 0 first")
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name:
            raise DataError(f"{file}: name {number + 1} is empty: each line is a class, and its place is its label")
        if name in first:
            raise DataError(
                f"{file}: names {first[name] + 1} and {number + 1} are both {name!r}: each class is named once"
            )
        first[name] = number
    return names


def _json_names(file: Path, text: str) -> list[str]:
    try:
        names = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}: is not valid JSON (line {error.lineno}: {error.msg}): give a list of strings"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f'{file}: is not a JSON list of strings: give ["first class", "second class", ...]')
    return names


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of a label picture, int64 [H, W]: 8 or 16-bit grey, or palette indices. EXIF is not applied."""
    with open_image(path) as image:
        if image.mode not in ("L", "P", "1", "I") and not image.mode.startswith("I;16"):
            raise DataError(
                f"{path}: is a {image.mode} picture: labels are one number per pixel, 8 or 16-bit grey or a palette"
            )
        try:
            return np.asarray(image).astype(np.int64)
        except Exception as error:  # every reader of Pillow has its own
            raise ImageError(f"{path}: is truncated or corrupt ({error}): fetch or copy it again") from error


class EpochDataset(Dataset[Item]):
    """A data set whose items change from epoch to epoch, by ``set_epoch`` alone.

    The epoch lies in shared memory, so that ``set_epoch`` also reaches the persistent workers of a DataLoader.
    """

    names: list[str]
    skipped: list[str]

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)


class PairDataset(EpochDataset):
    """Pairs of a photo and a label picture as items; FolderDataset and ``sets.open_set`` say which pairs.

    pairs     (stem, photo, label picture) of each item
    names     the prompts that the model is given; ``classes`` (default: names) are the classes that labels index and
              that are scored, ``class_of`` the class of each prompt (None: prompt i is class i)
    For ``config``, ``split``, ``seed`` and the items see FolderDataset. ``names_from`` says in errors where the classes
    come from.
    """

    def __init__(
        self,
        config: DataConfig,
        split: str,
        seed: int,
        *,
        name: str,
        names: list[str],
        pairs: list[tuple[str, Path, Path]],
        names_from: str,
        classes: list[str] | None = None,
        class_of: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.split, self.seed, self.ignore = config, split, seed, config.ignore
        self.name, self.names, self.pairs, self.names_from = name, names, pairs, names_from
        self.classes, self.class_of = classes or names, class_of
        self.skipped = []

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        stem, photo, label = self.pairs[index]
        image, labels = read_image(photo), self._read_labels(label)
        if image.size != labels.shape[::-1]:
            sizes = f"{image.width}x{image.height} (upright) and {labels.shape[1]}x{labels.shape[0]}"
            raise DataError(
                f"{photo} and {label} differ in size, {sizes}: a label picture has a pixel for each of the photo's"
            )
        if self.split == "val":
            return {"image": torch.from_numpy(np.array(image)), "labels": torch.from_numpy(labels), "stem": stem}
        rng = np.random.default_rng([self.seed, self.epoch, index])
        image, labels = augment(image, labels, self.config, rng)
        return {"pixels": to_pixels(image), "labels": torch.from_numpy(labels), "stem": stem}

    def _read_labels(self, file: Path) -> np.ndarray:
        labels = read_labels(file)
        others = labels[(labels < 0) | (labels >= len(self.classes))]
        wrong = others[others != self.ignore]
        if wrong.size:
            raise DataError(
                f"{file}: holds label {wrong[0]}, but labels are 0 to {len(self.classes) - 1} ({self.names_from}) or "
                f"{self.ignore} (ignored): correct the file, the names or data.ignore"
            )
        return labels


class FolderDataset(PairDataset):
    """A folder of photos and a folder of label pictures, paired by their paths without suffix, and a names file.

    config    images, labels, names; train_list and val_list restrict a split to the paths they list, one a line, in
              that order; val_images and val_labels are the validation split's own folders
    split     "train": {"pixels" float32 [3, crop, crop] CLIP-normalised, "labels" int64 [crop, crop], "stem"}, the
              photo randomly scaled, cropped (padded with grey 128 and ``ignore``), flipped and colour-jittered. "val":
              {"image" uint8 [H, W, 3], "labels" int64 [H, W], "stem"} at full size
    seed      item i of "train" depends only on (seed, epoch, i), whatever the number of workers and processes

    ``names`` are the classes, ``skipped`` says for every file left out why; a warning gives their number. Sub-folders
    are searched; the "stem" is then the path below the folder. Raises DataError or ImageError, which name the file.
    """

    def __init__(self, config: DataConfig, split: str, seed: int = 0) -> None:
        if split not in ("train", "val"):
            raise DataError(f"FolderDataset: split is {split!r}: give 'train' or 'val'")
        names = read_names(_given(config, "names"))
        if config.ignore < len(names):
            raise DataError(
                f"data.ignore is {config.ignore}, the label of {names[config.ignore]!r} in {config.names}: "
                "set it to a value that no class has, such as 65535"
            )
        own = split == "val"
        photos = _folder(config, "val_images" if own and config.val_images else "images")
        labels = _folder(config, "val_labels" if own and config.val_labels else "labels")
        super().__init__(config, split, seed, name=str(photos), names=names, pairs=[],
                         names_from=f"the names of {config.names}")  # fmt: skip
        self.pairs = self._pair(photos, labels, config.val_list if own else config.train_list)
        if own and config.train_list and not (config.val_list or config.val_images):
            trained = {stem for stem, *_ in self._pair(photos, labels, config.train_list)}
            self.pairs = [pair for pair in self.pairs if pair[0] not in trained]

    def _pair(self, photos: Path, labels: Path, wanted: Path | None) -> list[tuple[str, Path, Path]]:
        photo_of, label_of = self._files(photos, _PHOTOS), self._files(labels, _LABELS)
        if wanted is None:
            self.skipped += [
                f"{photo_of[stem]}: has no label picture in {labels}" for stem in photo_of.keys() - label_of.keys()
            ]
            self.skipped += [
                f"{label_of[stem]}: has no photo in {photos}" for stem in label_of.keys() - photo_of.keys()
            ]
            stems = sorted(photo_of.keys() & label_of.keys())
        else:
            stems = _read_list(wanted)
            for stem in stems:
                for found, folder, what in ((photo_of, photos, "photo"), (label_of, labels, "label picture")):
                    if stem not in found:
                        raise DataError(
                            f"{wanted}: lists {stem!r}, which has no {what} in {folder}: add the file or drop the line"
                        )
        if not stems:
            examples = f"{_first(photo_of)} and {_first(label_of)}"
            raise DataError(
                f"{photos} ({len(photo_of)} photos) and {labels} ({len(label_of)} label pictures) have no pair, "
                f"for example {examples}: a pair has the same name up to its suffix"
            )
        self.skipped.sort()
        if self.skipped:
            warnings.warn(
                f"{self.split}: {len(self.skipped)} files left out, the first: {self.skipped[0]}", stacklevel=3
            )
        return [(stem, photo_of[stem], label_of[stem]) for stem in stems]

    def _files(self, folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in sorted(folder.rglob("[!.]*")):
            if file.suffix.lower() not in suffixes:
                if not file.is_dir():
                    self.skipped.append(f"{file}: is none of {', '.join(suffixes)}")
                continue
            stem = file.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise DataError(f"{file} and {found[stem]} have the same name: keep one of them")
            found[stem] = file
        return found


def _given(config: DataConfig, key: str) -> Path:
    value = getattr(config, key)
    if value is None:
        raise DataError(f"data.{key} is not set: set it to a path, for example data.{key}=my_data/{key}")
    return Path(value)


def _folder(config: DataConfig, key: str) -> Path:
    folder = _given(config, key)
    if not folder.is_dir():
        raise DataError(f"data.{key}={folder}: is {'not a folder' if folder.exists() else 'missing'}: name a folder")
    return folder


def _first(found: dict[str, Path]) -> str:
    return next((str(file) for file in found.values()), "no file at all")


def _read_list(file: Path) -> list[str]:
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}): give a text file with one file name a line") from error
    paths = [Path(line.strip()) for line in lines if line.strip()]
    stems = [(path.with_suffix("") if path.suffix.lower() in _PHOTOS else path).as_posix() for path in paths]
    if not stems:
        raise DataError(f"{file}: is empty: list the files of this split, one a line")
    return list(dict.fromkeys(stems))


def augment(
    image: Image.Image, labels: np.ndarray, config: DataConfig, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Random scale, crop, flip and colour jitter; an RGB image and int64 labels [H, W], both become crop x crop.

    The shorter side becomes ``short_edge`` (``crop`` if None) times a random number in ``scale``; what the crop does
    not fill is padded right and below, the image with 128 and the labels with ``ignore``.
    """
    crop = config.crop
    short = (config.short_edge or crop) * rng.uniform(*config.scale)
    factor = short / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    left, top = int(rng.integers(max(width - crop, 0) + 1)), int(rng.integers(max(height - crop, 0) + 1))
    out = min(width, crop), min(height, crop)
    # Resizing only the part that the crop keeps; the fractions are those of the resized picture.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + out[0]) * across, (top + out[1]) * down)
    image = image.resize(out, Image.Resampling.BILINEAR, box=box)
    x = np.minimum((left + np.arange(out[0]) + 0.5) * across, labels.shape[1] - 1).astype(np.int64)
    y = np.minimum((top + np.arange(out[1]) + 0.5) * down, labels.shape[0] - 1).astype(np.int64)
    labels = labels[y][:, x]  # in two steps: faster than pairs of indices
    if config.flip and rng.random() < 0.5:
        image, labels = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
    if config.color_jitter:
        image = _jitter(image, rng)
    padded = Image.new("RGB", (crop, crop), (_PAD, _PAD, _PAD))
    padded.paste(image)
    filled = np.full((crop, crop), config.ignore, np.int64)
    filled[: out[1], : out[0]] = labels
    return padded, filled


def _jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """SSD's colour distortion: each step in one case of two, contrast before or after saturation and hue."""
    steps = [(_brightness, (-32.0, 32.0)), (_saturation, (0.5, 1.5)), (_hue, (-25.6, 25.6))]  # a tenth of a turn
    steps.insert(1 if rng.random() < 0.5 else 3, (_contrast, (0.5, 1.5)))
    for adjust, (low, high) in steps:
        if rng.random() < 0.5:
            image = adjust(image, rng.uniform(low, high))
    return image


_VALUES = np.arange(256)


def _brightness(image: Image.Image, by: float) -> Image.Image:
    return _mapped(image, _VALUES + by)


def _contrast(image: Image.Image, by: float) -> Image.Image:
    return _mapped(image, _VALUES * by)


def _saturation(image: Image.Image, by: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (hue, _mapped(saturation, _VALUES * by), value)).convert("RGB")


def _hue(image: Image.Image, by: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    return Image.merge("HSV", (_mapped(hue, (_VALUES + round(by)) % 256), saturation, value)).convert("RGB")


def _mapped(image: Image.Image, table: np.ndarray) -> Image.Image:
    """Every value v of the image becomes table[v], cut to 0..255."""
    return image.point(np.clip(table, 0, 255).astype(np.uint8).tolist() * len(image.getbands()))

"""Photos and label pictures in folders, as training and validation items."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import DataConfig
from ..errors import DataError, ImageError
from .augmentation import augment
from .class_names import read_names
from .images import open_image, read_image, to_pixels

Item = dict[str, Any]  # {"pixels" or "image", "labels", "stem"}

_PHOTOS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")
_LABELS = (".png", ".tif", ".tiff", ".bmp")


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

"""Data sets of photo/label pairs: what an item holds, and what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ..config import DataConfig
from ..errors import DataError
from ..vocabulary import ClassPrompts
from .augmentation import augment
from .class_names import LabelSpace
from .coco import CocoLabels
from .images import CLIP_NORMALIZATION, Normalization, orientation, read_image, to_pixels, turn_upright
from .label_formats import read_stored
from .samples import View

Item = dict[str, Any]  # {"pixels" or "image", "labels", "stem"}
Labels = Path | CocoLabels  # of one photo: a label image, or annotations
Pair = tuple[str, Path, Labels]  # stem, photo, labels


class EpochDataset(Dataset[Item]):
    """A data set whose training items change from epoch to epoch, as ``set_epoch`` says.

    The epoch is kept in shared memory, so that ``set_epoch`` also reaches the persistent workers of a DataLoader.

    backdrops      the names of what things lie on, for captions
    normalization  mean and standard deviation of the items' pixels: CLIP's, until the trainer gives the encoder's
    """

    names: Sequence[str | ClassPrompts]
    backdrops: Sequence[str] = ()
    normalization: Normalization = CLIP_NORMALIZATION

    def __init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)


class PairDataset(EpochDataset):
    """Pairs of a photo and a label image, as items for training or for evaluation.

    name          of the data set, for the record of an evaluation
    pairs         (stem, photo, labels) of each item, the labels being an image or annotations
    label_space   what the label values mean; its ``prompts`` become the attribute ``names``
    augmentation  a DataConfig: training items, augmented as it says; None: evaluation items, whole photos
    seed          of the augmentation; item i depends only on (seed, epoch, i), whatever the number of workers
    rotated       labels were drawn on photos before their EXIF orientation is applied; None: where the sizes say so
    view          which bands and values of the photos are shown

    Training items are {"pixels" float32 [3, crop, crop] normalised, "labels" int64 [crop, crop], "stem"}, see
    ``augment``; evaluation items are {"image" uint8 [H, W, 3], "labels" int64 [H, W], "stem"}. Reading an item raises
    DataError or ImageError naming the file: unreadable, photo and labels of different size, values without a meaning.
    """

    def __init__(
        self,
        name: str,
        pairs: Sequence[Pair],
        label_space: LabelSpace,
        augmentation: DataConfig | None = None,
        seed: int = 0,
        rotated: bool | None = None,
        view: View | None = None,
    ) -> None:
        super().__init__()
        self.name, self.pairs, self.label_space = name, list(pairs), label_space
        self.names, self.classes, self.class_of = label_space.prompts, label_space.classes, label_space.class_of
        self.ignore = label_space.ignore
        self.augmentation, self.seed, self.rotated = augmentation, seed, rotated
        self.view = view or View()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        stem = self.pairs[index][0]
        image, labels = self.read_pair(index)
        if self.augmentation is None:
            return {"image": torch.from_numpy(np.array(image)), "labels": torch.from_numpy(labels), "stem": stem}
        rng = np.random.default_rng([self.seed, self.epoch, index])
        image, labels = augment(image, labels, self.augmentation, rng)
        pixels = to_pixels(image, normalization=self.normalization)
        return {"pixels": pixels, "labels": torch.from_numpy(labels), "stem": stem}

    def read_pair(self, index: int, strict: bool = True) -> tuple[Image.Image, np.ndarray]:
        """The whole upright photo of an item, RGB, and its labels int64 [H, W].

        strict  values without a meaning are errors; else they become ``ignore``
        """
        _, photo, source = self.pairs[index]
        image, stored = self.read_photo(photo), read_source(source, self.label_space)
        stored = upright_labels(stored, photo, image.size, self.rotated)
        if image.size != stored.shape[::-1]:
            sizes = f"{image.width}x{image.height} (upright) and {stored.shape[1]}x{stored.shape[0]}"
            raise DataError(f"{photo} and {source} differ in size, {sizes}: every pixel of a photo needs a label")
        if strict:
            return image, self.label_space.decode(stored, source)
        labels, missing = self.label_space.labels(stored)
        return image, np.where(missing, self.ignore, labels)

    def read_photo(self, photo: Path) -> Image.Image:
        """As ``view`` says."""
        return read_image(photo, bands=self.view.bands, value_range=self.view.value_range)


def read_source(source: Labels, label_space: LabelSpace) -> np.ndarray:
    """The stored values of labels, int64 [H, W]: see ``label_formats``. Raises DataError or ImageError naming them."""
    return read_stored(source, label_space.named) if isinstance(source, Path) else source.paint()[0]


def upright_labels(stored: np.ndarray, photo: Path, size: tuple[int, int], rotated: bool | None) -> np.ndarray:
    """Labels [H, W] turned as the photo was, where they were drawn on it before its EXIF orientation was applied.

    size      (width, height) of the upright photo
    rotated   whether they were; None: where only the photo as stored has the size of the labels
    """
    if rotated is False or (rotated is None and size == stored.shape[::-1]):
        return stored
    turned = turn_upright(stored, orientation(photo))
    return turned if size == turned.shape[::-1] else stored

"""Data sets of photo/label pairs: what an item holds, and what it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..config import DataConfig
from ..errors import DataError
from .augmentation import augment
from .class_names import LabelSpace
from .images import CLIP_NORMALIZATION, Normalization, read_image, to_pixels
from .label_formats import read_labels

Item = dict[str, Any]  # {"pixels" or "image", "labels", "stem"}
Pair = tuple[str, Path, Path]  # stem, photo, label image


class EpochDataset(Dataset[Item]):
    """A data set whose training items change from epoch to epoch, as ``set_epoch`` says.

    The epoch is kept in shared memory, so that ``set_epoch`` also reaches the persistent workers of a DataLoader.

    normalization  mean and standard deviation of the items' pixels: CLIP's, until the trainer gives the encoder's
    """

    names: list[str]
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
    pairs         (stem, photo, label image) of each item
    label_space   what the label values mean; its ``prompts`` become the attribute ``names``
    augmentation  a DataConfig: training items, augmented as it says; None: evaluation items, whole photos
    seed          of the augmentation; item i depends only on (seed, epoch, i), whatever the number of workers

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
    ) -> None:
        super().__init__()
        self.name, self.pairs, self.label_space = name, list(pairs), label_space
        self.names, self.classes, self.class_of = label_space.prompts, label_space.classes, label_space.class_of
        self.ignore = label_space.ignore
        self.augmentation, self.seed = augmentation, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        stem, photo, label = self.pairs[index]
        image, labels = read_image(photo), self._read_labels(label)
        if image.size != labels.shape[::-1]:
            sizes = f"{image.width}x{image.height} (upright) and {labels.shape[1]}x{labels.shape[0]}"
            raise DataError(f"{photo} and {label} differ in size, {sizes}: every pixel of a photo needs a label")
        if self.augmentation is None:
            return {"image": torch.from_numpy(np.array(image)), "labels": torch.from_numpy(labels), "stem": stem}
        rng = np.random.default_rng([self.seed, self.epoch, index])
        image, labels = augment(image, labels, self.augmentation, rng)
        pixels = to_pixels(image, normalization=self.normalization)
        return {"pixels": pixels, "labels": torch.from_numpy(labels), "stem": stem}

    def _read_labels(self, file: Path) -> np.ndarray:
        labels = read_labels(file)
        if wrong := self.label_space.undefined(labels):
            raise DataError(
                f"{file}: holds label {wrong[0]}, but labels are 0 to {len(self.classes) - 1} "
                f"({self.label_space.origin}) or {self.ignore} (ignored): correct the file, the names or data.ignore"
            )
        return labels

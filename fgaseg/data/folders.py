"""A user's own photos and labels as a data set."""

from __future__ import annotations

import warnings
from pathlib import Path

from ..config import DataConfig
from ..errors import DataError
from .datasets import PairDataset
from .label_spaces import open_label_space
from .pairing import PairNames, find_pairs
from .samples import View


class FolderDataset(PairDataset):
    """A folder of photos, a folder of label images (or a COCO file) and class names, as they stand in a configuration.

    config    ``images``, ``labels`` and ``names``; ``label_map``, ``ignore``, ``image_suffix`` and ``label_suffix`` say
              what files and values mean; ``train_list`` and ``val_list`` restrict a split to the paths they list;
              ``val_images`` and ``val_labels`` are the validation split's own folders; see DataConfig
    split     "train": augmented items {"pixels" float32 [3, crop, crop] normalised, "labels" int64 [crop, crop],
              "stem"}. "val": whole photos {"image" uint8 [H, W, 3], "labels" int64 [H, W], "stem"}, without those of
              ``train_list`` where the two splits share a folder and ``val_list`` is not given
    seed      of the augmentation; item i depends only on (seed, epoch, i), and ``set_epoch`` sets the epoch

    ``skipped`` holds a line for every file that was left out, and why; a warning gives their number. Raises DataError
    if a path is missing, a list names a file that is not there, or nothing can be paired.
    """

    def __init__(self, config: DataConfig, split: str, seed: int = 0) -> None:
        if split not in ("train", "val"):
            raise DataError(f"FolderDataset: split is {split!r}: give 'train' or 'val'")
        validation = split == "val"
        photos, labels = split_folders(config, split)
        listed, excluded = config.train_list, None
        if validation:
            listed = config.val_list
            excluded = None if config.val_list or config.val_images else config.train_list
        label_space = open_label_space(config, labels)
        names = PairNames.parse(config.image_suffix, config.label_suffix)
        pairs, self.skipped = find_pairs(photos, labels, listed, excluded, names)
        if self.skipped:
            warnings.warn(f"{split}: {len(self.skipped)} files left out, the first: {self.skipped[0]}", stacklevel=2)
        augmentation, view = None if validation else config, View(config.bands, config.value_range)
        super().__init__(str(photos), pairs, label_space, augmentation, seed, config.rotate_labels, view)
        self.config = config


def split_folders(config: DataConfig, split: str) -> tuple[Path, Path]:
    """Photos and labels of a split. Labels that have a suffix of their own may lie among the photos."""
    validation = split == "val"
    photos = (config.val_images if validation else None) or _required(config, "images")
    labels = (config.val_labels if validation else None) or config.labels
    if labels is None and config.label_suffix:
        labels = photos
    return Path(photos), Path(labels or _required(config, "labels"))


def _required(config: DataConfig, key: str) -> Path:
    value = getattr(config, key)
    if value is None:
        raise DataError(f"data.{key} is not set: set it to a path, for example data.{key}=my_data/{key}")
    return Path(value)

"""Which data sets a configuration names."""

from __future__ import annotations

import warnings
from typing import Any

from ..config import Config, DataConfig
from .datasets import PairDataset
from .folders import FolderDataset
from .prepared_sets import open_set
from .scenes import SceneDataset

TRAINING_SCENES = 10_000  # in an epoch
VALIDATION_SCENES = 100


def data_sets(config: Config) -> tuple[PairDataset | SceneDataset, dict[str, Any]]:
    """The training set, and the validation sets by name, that ``config.data`` names.

    Scenes: the validation sets "seen" and "unseen". Benchmark sets: see ``benchmark_data_sets``. Otherwise the
    configuration's own folders, with the validation set "val". Raises DataError or ConfigError.
    """
    data, seed = config.data, config.train.seed
    if data.scenes:
        length = data.val_count or VALIDATION_SCENES
        train_set = SceneDataset("train", TRAINING_SCENES, data.crop, seed)
        return train_set, {split: SceneDataset(split, length, data.crop) for split in ("seen", "unseen")}
    if data.set or data.val_set:
        return benchmark_data_sets(data, seed)
    if not (data.train_list or data.val_list or data.val_images):
        warnings.warn(
            "the validation photos are the training photos, so the mIoU measures memorisation: give "
            "data.val_images and data.val_labels, data.val_list or data.train_list",
            stacklevel=2,
        )
    return FolderDataset(data, "train", seed), {"val": FolderDataset(data, "val")}


def benchmark_data_sets(data: DataConfig, seed: int = 0) -> tuple[PairDataset, dict[str, PairDataset]]:
    """The training set of ``data.set``, and the validation set of ``data.val_set`` by its name.

    Without ``data.set`` the training set is the folder ``data.images``; without ``data.val_set`` nothing is scored.
    """
    scored: dict[str, PairDataset] = {data.val_set: open_set(data.val_set, data.root)} if data.val_set else {}
    if data.set is None:
        return FolderDataset(data, "train", seed), scored
    return open_set(data.set, data.root, "train", config=data, seed=seed), scored

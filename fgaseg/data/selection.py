"""Which data sets a configuration names."""

from __future__ import annotations

import warnings
from typing import Any

from ..config import Config, DataConfig
from .benchmark_sets import default_root, open_set
from .folders import FolderDataset, PairDataset
from .scenes import SceneDataset

SCENES_PER_EPOCH = 10_000
SCENES_SCORED = 100


def data_sets(config: Config) -> tuple[Any, dict[str, Any]]:
    """The training set, and the validation sets by name."""
    data, seed = config.data, config.train.seed
    if data.scenes:
        scored = data.val_count or SCENES_SCORED
        train_set = SceneDataset("train", SCENES_PER_EPOCH, data.crop, seed)
        return train_set, {split: SceneDataset(split, scored, data.crop) for split in ("seen", "unseen")}
    if data.set or data.val_set:
        return training_sets(data, seed)
    if not (data.train_list or data.val_list or data.val_images):
        warnings.warn(
            "the validation photos are the training photos: the mIoU says how well they are remembered. Give "
            "data.val_images and data.val_labels, data.val_list or data.train_list",
            stacklevel=2,
        )
    return FolderDataset(data, "train", seed), {"val": FolderDataset(data, "val")}


def training_sets(data: DataConfig, seed: int = 0) -> tuple[PairDataset, dict[str, PairDataset]]:
    """What ``data.set`` and ``data.val_set`` name: the training set and the validation sets by name.

    Without ``data.set`` the training set is the one in ``data.images``; without ``data.val_set`` nothing is scored.
    """
    root = data.root or default_root()
    scored: dict[str, PairDataset] = {data.val_set: open_set(data.val_set, root)} if data.val_set else {}
    if data.set is None:
        return FolderDataset(data, "train", seed), scored
    return open_set(data.set, root, "train", config=data, seed=seed), scored

"""Before the first step: are the labels of training and validation what the names say?"""

from __future__ import annotations

from typing import Any

import torch

from ..data import FolderDataset, check_labels
from ..distributed import any_process, rank
from ..errors import DataError, FGASegError

SECONDS = 1.0  # for the labels of the training set; those of validation are all read


def check_before_training(
    train_set: Any, val_sets: dict[str, Any], val_count: int | None, device: torch.device, progress: bool
) -> None:
    """`check_labels` of a user's own folders, on the main process; of validation, those that are scored.

    Raises DataError or ImageError on every process.
    """
    error: FGASegError | None = None
    if rank() == 0:
        try:
            if isinstance(train_set, FolderDataset):
                check_labels(train_set, "training labels", seconds=SECONDS, training=True)
            for one in val_sets.values():
                if isinstance(one, FolderDataset):
                    check_labels(one, "validation labels", count=val_count, progress=progress)
        except FGASegError as found:
            error = found
    if any_process(error is not None, device):
        raise error or DataError("the labels cannot be used; the message of the main process says why")

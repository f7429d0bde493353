"""The trainer and its parts."""

from .losses import segmentation_losses
from .trainer import SCENES_SCORED, Signals, data_sets, train

__all__ = ["SCENES_SCORED", "Signals", "data_sets", "segmentation_losses", "train"]

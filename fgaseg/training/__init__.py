"""The trainer and its parts."""

from .losses import segmentation_losses
from .trainer import Signals, train

__all__ = ["Signals", "segmentation_losses", "train"]

"""Training: `train` is the entry point, `Trainer` the run behind it, `Callback` how to follow it."""

from .callbacks import Callback
from .losses import segmentation_losses
from .results import Summary
from .signals import Signals
from .trainer import Trainer, train

__all__ = ["Callback", "Signals", "Summary", "Trainer", "segmentation_losses", "train"]

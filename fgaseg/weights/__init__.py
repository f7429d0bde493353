"""Model files, training state, and the key names of other projects' checkpoints."""

from .model_files import load_weights, read_weights, write_weights
from .released import load, our_key, save
from .training_state import load_training, remove_leftovers, save_training, set_damaged_aside
from .warm_start import warm_start

__all__ = [
    "load",
    "load_training",
    "load_weights",
    "our_key",
    "read_weights",
    "remove_leftovers",
    "save",
    "save_training",
    "set_damaged_aside",
    "warm_start",
    "write_weights",
]

"""Model files, training checkpoints, and checkpoints of other projects."""

from .hub import fetch_file, fetch_first, list_files
from .key_maps import PI_SEG_KEYS, RELEASED_KEYS, KeyMap
from .model_files import load_weights, read_weights, write_weights
from .released import ConversionReport, ReleasedCheckpoint, read_released, to_released, write_released
from .training_state import load_training, remove_leftovers, save_training, set_damaged_aside
from .warm_start import WarmStartReport, warm_start

__all__ = [
    "PI_SEG_KEYS",
    "RELEASED_KEYS",
    "ConversionReport",
    "KeyMap",
    "ReleasedCheckpoint",
    "WarmStartReport",
    "fetch_file",
    "fetch_first",
    "list_files",
    "load_training",
    "load_weights",
    "read_released",
    "read_weights",
    "remove_leftovers",
    "save_training",
    "set_damaged_aside",
    "to_released",
    "warm_start",
    "write_released",
    "write_weights",
]

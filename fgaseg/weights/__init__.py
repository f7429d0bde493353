"""Model files, training checkpoints, and checkpoints of other projects."""

from .hub import fetch_file, fetch_first, list_files, megabytes
from .hub_upload import upload_folder
from .key_maps import DECLIP_KEYS, PI_SEG_KEYS, RELEASED_KEYS, KeyMap
from .model_card import facts_of, model_card, read_results
from .model_files import load_weights, read_weights, write_weights
from .named_models import MODELS, NamedModel, find_named, name_hint
from .released import ConversionReport, ReleasedCheckpoint, read_released, to_released, write_released
from .training_state import load_training, remove_leftovers, save_training, set_damaged_aside
from .warm_start import WarmStartReport, warm_start

__all__ = [
    "DECLIP_KEYS",
    "MODELS",
    "PI_SEG_KEYS",
    "RELEASED_KEYS",
    "ConversionReport",
    "KeyMap",
    "NamedModel",
    "ReleasedCheckpoint",
    "WarmStartReport",
    "facts_of",
    "fetch_file",
    "fetch_first",
    "find_named",
    "list_files",
    "load_training",
    "load_weights",
    "megabytes",
    "model_card",
    "name_hint",
    "read_released",
    "read_results",
    "read_weights",
    "remove_leftovers",
    "save_training",
    "set_damaged_aside",
    "to_released",
    "upload_folder",
    "warm_start",
    "write_released",
    "write_weights",
]

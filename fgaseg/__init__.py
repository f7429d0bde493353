"""FGAseg: open-vocabulary semantic segmentation. A photo and any list of class names; a label for every pixel."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Config, ModelConfig, load_config
    from .inference import Result
    from .model import FGASeg
    from .vocabulary import Vocabulary

__version__ = "0.1.0"

__all__ = ["Config", "FGASeg", "ModelConfig", "Result", "Vocabulary", "load_config"]

_HOME = {
    "Config": "config",
    "ModelConfig": "config",
    "load_config": "config",
    "FGASeg": "model",
    "Result": "inference",
    "Vocabulary": "vocabulary",
}


def __getattr__(name: str):
    # loaded when first asked for: fgaseg.kernels alone needs nothing but torch
    if name not in _HOME:
        raise AttributeError(f"module 'fgaseg' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)

"""FGAseg: open-vocabulary semantic segmentation. A photo and any list of class names; a label for every pixel.

    import fgaseg

    model = fgaseg.load("cat-seg-b16")  # published weights; also a folder, a file, a hub id
    result = model.segment("photo.jpg", ["cat", "sofa", "wooden floor"])
    result.overlay().save("out.png")

Everything in `dir(fgaseg)` is public. Names are loaded when they are first used, so `import fgaseg` itself is fast, and
`fgaseg.kernels` needs nothing but PyTorch and Triton.
"""

import importlib
from typing import TYPE_CHECKING

from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    EncoderError,
    ExportError,
    FGASegError,
    ImageError,
    Interrupted,
    NotFiniteError,
    PredictionError,
    ProcessLostError,
    ResultError,
    TrainingError,
    UnfinishedError,
    UsageError,
    VocabularyError,
)

__version__ = "0.1.0"

__all__ = [
    "Callback",
    "CheckpointError",
    "Config",
    "ConfigError",
    "DataConfig",
    "DataError",
    "EncoderConfig",
    "EncoderError",
    "ExportError",
    "ExportOptions",
    "FGASeg",
    "FGASegError",
    "FolderDataset",
    "ImageError",
    "Interrupted",
    "LossConfig",
    "ModelConfig",
    "NotFiniteError",
    "PredictionError",
    "ProcessLostError",
    "Result",
    "ResultError",
    "Scores",
    "Tiles",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "UnfinishedError",
    "UsageError",
    "Vocabulary",
    "VocabularyError",
    "__version__",
    "evaluate",
    "export_model",
    "kernels",
    "load",
    "load_config",
    "open_set",
    "pipeline",
    "quantize",
    "read_image",
    "register_encoder",
    "segment_raster",
    "segment_video",
    "train",
]

if TYPE_CHECKING:
    from . import kernels
    from .config import Config, DataConfig, EncoderConfig, LossConfig, ModelConfig, TrainConfig, load_config
    from .data import FolderDataset, open_set, read_image
    from .evaluation import Scores, evaluate
    from .export import ExportOptions, Tiles, export_model
    from .inference import Result, segment_raster, segment_video
    from .model import FGASeg, load, pipeline, quantize, register_encoder
    from .training import Callback, Trainer, train
    from .vocabulary import Vocabulary
else:
    _LAZY = {
        "config": ("Config", "DataConfig", "EncoderConfig", "LossConfig", "ModelConfig", "TrainConfig", "load_config"),
        "data": ("FolderDataset", "open_set", "read_image"),
        "evaluation": ("Scores", "evaluate"),
        "export": ("ExportOptions", "Tiles", "export_model"),
        "inference": ("Result", "segment_raster", "segment_video"),
        "model": ("FGASeg", "load", "pipeline", "quantize", "register_encoder"),
        "training": ("Callback", "Trainer", "train"),
        "vocabulary": ("Vocabulary",),
    }
    _MODULE_OF = {name: module for module, names in _LAZY.items() for name in names}

    def __getattr__(name):
        if name == "kernels":
            return importlib.import_module(".kernels", __name__)
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'fgaseg' has no attribute '{name}'")
        value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value  # from now on found without this function
        return value


def __dir__() -> list[str]:
    return sorted(__all__)

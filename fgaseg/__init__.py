"""FGAseg: open-vocabulary semantic segmentation. A photo and any list of class names; a label for every pixel."""

from .config import Config, ModelConfig, load_config
from .model import FGASeg
from .segment import Result
from .text import Vocabulary

__version__ = "0.1.0"

__all__ = ["Config", "FGASeg", "ModelConfig", "Result", "Vocabulary", "load_config"]

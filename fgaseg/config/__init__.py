"""Typed configuration: a YAML file plus overrides, checked before anything is computed.

Defaults are the `paper` preset. `preset: released` changes defaults only, so a key that is written down always wins.
Relative paths are relative to the working directory. Objects are immutable; `Config.override` makes a changed copy.
"""

from .data import DataConfig
from .model import EncoderConfig, LossConfig, ModelConfig
from .root import Config, load_config
from .train import TrainConfig

__all__ = ["Config", "DataConfig", "EncoderConfig", "LossConfig", "ModelConfig", "TrainConfig", "load_config"]

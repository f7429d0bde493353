"""Encoders: one page per family of open_clip's image towers, the text tower, and encoders of one's own."""

from pathlib import Path

from torch import nn

from ...config import EncoderConfig
from .architecture import is_open_clip
from .clip_vit import run_block
from .interface import Encoder, ImageFeatures
from .open_clip_encoder import OpenClipEncoder
from .registry import OwnEncoder, register_encoder, registered
from .text_tower import PROMPTS_PER_BATCH, TextTower
from .tokenizers import Tokenizer

__all__ = [
    "PROMPTS_PER_BATCH",
    "Encoder",
    "ImageFeatures",
    "OpenClipEncoder",
    "TextTower",
    "Tokenizer",
    "build_encoder",
    "is_open_clip",
    "own_encoder",
    "register_encoder",
    "run_block",
]


def build_encoder(config: EncoderConfig, own: nn.Module | None = None, tokenizer: str | Path | None = None) -> Encoder:
    """The encoder that a configuration names, with its weights, float32.

    own        one's own instead (`register_encoder`)
    tokenizer  a folder with the files of the tokenizer, in place of those that open_clip names

    Raises EncoderError, and CheckpointError for a file of weights that does not fit.
    """
    own = own_encoder(config) if own is None else own
    if own is not None:
        return OwnEncoder(own, config, config.name)
    return OpenClipEncoder(config, tokenizer)


def own_encoder(config: EncoderConfig) -> nn.Module | None:
    """A new encoder of one's own, if a configuration names one that is registered."""
    return None if config.architecture is not None or is_open_clip(config.name) else registered(config.name)

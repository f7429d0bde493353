"""Whether weights fit a configuration, told by shapes alone, before memory is taken or anything is computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config import ModelConfig
from ..errors import CheckpointError
from ..weights.model_files import check_shapes
from .encoders import Encoder, OpenClipEncoder, build_encoder
from .head import Head

Shapes = Mapping[str, Sequence[int]]


def check_fits(config: ModelConfig, own: nn.Module | None, given: Shapes, source: Any) -> None:
    """Raise the CheckpointError that loading the weights would raise, if their shapes are not the model's.

    own    the encoder, if it is one of one's own, of which `config` describes nothing
    given  the shapes of a file's tensors, by name
    source for messages

    Takes milliseconds, and no memory to speak of, whatever sizes the configuration asks for.
    """
    if config.encoder.architecture is not None:
        _check_size(config.encoder.architecture, given, source)
    check_shapes(shapes_of(config, own), given, source)


def shapes_of(config: ModelConfig, own: nn.Module | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights, by name; built on the meta device, which has no memory. Raises EncoderError."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when the model is built
        encoder: Encoder = (
            OpenClipEncoder(config.encoder, skeleton=True) if own is None else build_encoder(config.encoder, own)
        )
        head = Head(config, encoder.channels, encoder.width)
    parts = {"clip": encoder.module, "head": head}
    return {f"{part}.{key}": tuple(value.shape) for part, module in parts.items()
            for key, value in module.state_dict().items()}  # fmt: skip


def _check_size(architecture: dict[str, Any], given: Shapes, source: Any) -> None:
    """Refuse towers that need far more values than there are, at which building even their shapes would take long."""
    there = sum(math.prod(shape) for shape in given.values())
    for tower in ("vision_cfg", "text_cfg"):
        described = architecture[tower]
        if described.get("timm_model_name"):
            continue
        width, layers = described.get("width", 512), described.get("layers", 12)
        needed = 4 * layers * width**2  # attention alone
        if needed > there:
            raise CheckpointError(
                f"{source}: these weights do not fit this model configuration: encoder.architecture.{tower} describes "
                f"{layers} layers of width {width}, at least {needed:,} values, and the file has {there:,}"
            )

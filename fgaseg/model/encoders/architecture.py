"""What a configuration asks of open_clip: the description of the towers, the weights, and how their pixels are made."""

import difflib
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from ...config import EncoderConfig
from ...errors import EncoderError
from .image_tower import Colour
from .registry import registered_names

AUTO = "auto"


@dataclass(frozen=True)
class Request:
    """A configuration's encoder, resolved.

    architecture  open_clip's description: embed_dim, vision_cfg, text_cfg, ...
    weights       an open_clip tag or a path; None: random weights
    tag           what open_clip knows about that tag; None: it is no tag
    mean, std     of the pixels; None: as the family's
    """

    architecture: dict[str, Any]
    weights: str | None
    tag: dict[str, Any] | None
    mean: Colour | None
    std: Colour | None


def resolve(config: EncoderConfig) -> Request:
    """Look the configuration's names up in open_clip. Raises EncoderError."""
    if config.architecture is not None:
        weights = None if config.pretrained == AUTO else config.pretrained
        return Request(deepcopy(config.architecture), weights, None, config.mean, config.std)
    if not is_open_clip(config.name):
        raise EncoderError(_unknown_name(config.name))
    architecture: dict[str, Any] = open_clip.get_model_config(config.name)
    weights = _chosen_tag(config.name) if config.pretrained == AUTO else config.pretrained
    tag = open_clip.pretrained.get_pretrained_cfg(config.name, weights) if weights else None
    if "timm_model_name" in architecture["vision_cfg"]:  # regularisers of pretraining, off as in evaluation
        architecture["vision_cfg"] |= {"timm_drop": 0.0, "timm_drop_path": None, "timm_model_pretrained": False}
    _decide_activation(config, architecture, weights, tag)
    mean, std = _normalization(config, weights, tag)
    return Request(architecture, weights, tag or None, mean, std)


def is_open_clip(name: str) -> bool:
    """Whether open_clip knows a model of that name (not hf-hub:..., which it would fetch)."""
    return name in open_clip.list_models()


def _unknown_name(name: str) -> str:
    """The message for a name that is neither open_clip's nor registered."""
    known = [*open_clip.list_models(), *registered_names()]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"encoder.name: open_clip knows no model {name!r}, and no encoder is registered under that name; {hint}see "
        "open_clip.list_models(). An encoder of your own has to be registered before it is named: "
        "fgaseg.register_encoder"
    )


def tags_of(name: str) -> list[str]:
    """The weights that open_clip knows for a name."""
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    return tags


def _chosen_tag(name: str) -> str:
    tags = tags_of(name)
    if "openai" in tags:
        return "openai"
    if len(tags) == 1:
        return tags[0]
    known = f"give one of {', '.join(tags)}" if tags else "open_clip has no weights for it"
    raise EncoderError(f"encoder.pretrained: {known} for {name}, a local file, or null for random weights")


def _decide_activation(
    config: EncoderConfig, architecture: dict[str, Any], weights: str | None, tag: dict[str, Any] | None
) -> None:
    if tag and bool(tag.get("quick_gelu", False)) != bool(architecture.get("quick_gelu", False)):
        # open_clip only warns here, but the two activations give different features: the weights decide
        architecture["quick_gelu"] = bool(tag.get("quick_gelu", False))
    if config.quick_gelu is not None:
        architecture["quick_gelu"] = config.quick_gelu
    elif weights and not tag and not architecture.get("quick_gelu") and "openai" in tags_of(config.name):
        warnings.warn(
            f"encoder.pretrained: {weights} is read as weights for the plain GELU of {config.name}; if they "
            "are OpenAI's, set encoder.quick_gelu: true (the other activation gives other features)",
            stacklevel=2,
        )


def _normalization(
    config: EncoderConfig, weights: str | None, tag: dict[str, Any] | None
) -> tuple[Colour | None, Colour | None]:
    """Mean and standard deviation: as given, as of the tag, or as of all tags of the name if they agree."""
    known = {(tuple(one["mean"]), tuple(one["std"])) for one in _descriptions(config.name, tag)}
    given = config.mean is not None and config.std is not None
    if weights and not tag and len(known) > 1 and not given and Path(weights).is_file():
        warnings.warn(
            f"encoder.pretrained: the published weights of {config.name} differ in the mean and standard deviation of "
            f"their pixels, and {weights} does not say which it needs; set encoder.mean and encoder.std",
            stacklevel=2,
        )
    mean, std = known.pop() if len(known) == 1 else (None, None)
    return config.mean or mean, config.std or std


def _descriptions(name: str, tag: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [tag] if tag else [open_clip.pretrained.get_pretrained_cfg(name, other) for other in tags_of(name)]

"""Weights of an open_clip model from a file or a tag, under the keys of towers with separate q, k and v."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from torch import Tensor, nn

from ...data import CLIP_MEAN, CLIP_STD
from ...errors import CheckpointError, EncoderError
from ...weights import fetch_first, load_weights, read_weights
from ...weights.saved_config import is_saved_model, read_config
from .architecture import tags_of
from .image_tower import Colour

OTHER_FORMATS = {  # the beginning of a key, and whose it is
    "vision_model.": "the keys of transformers",
    "visual.patch_embed.": "the keys of the original EVA-CLIP code",
    "visual.blocks.": "the keys of the original EVA-CLIP code",
    "image_encoder.": "the keys of Apple's MobileCLIP code",
    "patch_embed.": "the keys of an image tower alone (timm)",
    "blocks.": "the keys of an image tower alone (timm)",
    "vision_tower.": "the keys of another project",
}
# where open_clip's module has one projection: its key, and the keys of its parts in order
FUSED = (
    (re.compile(r"(.*attn\.)in_proj_weight"), ("q_proj_weight", "k_proj_weight", "v_proj_weight")),
    (re.compile(r"(visual\.trunk\..*attn\.)qkv\.(weight|bias)"), ("q_proj", "k_proj", "v_proj")),
    (re.compile(r"(visual\.trunk\.attn_pool\.)kv\.(weight|bias)"), ("k_proj", "v_proj")),
)
RENAMED = (
    (re.compile(r"(visual\.trunk\.attn_pool\.)q\.(weight|bias)"), r"\1q_proj.\2"),
    (re.compile(r"(visual\.trunk\..*attn\.)(q|v)_bias"), r"\1\2_proj.bias"),
)
STRUCTURAL = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")


def split_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's keys with every projection that is one tensor for q, k and v in parts."""
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        for pattern, parts in FUSED:
            if match := pattern.fullmatch(key):
                ending = f".{match[2]}" if len(match.groups()) > 1 else ""
                pieces = zip(parts, value.chunk(len(parts)), strict=True)
                out |= {f"{match[1]}{part}{ending}": piece for part, piece in pieces}
                break
        else:
            for pattern, template in RENAMED:
                key = pattern.sub(template, key)
            out[key] = value
    return out


def weights_path(name: str, weights: str, tag: dict[str, Any] | None) -> Path:
    """Where the weights of a tag or a path are, fetched if need be. Raises EncoderError."""
    if tag:
        try:
            path = _fetched(tag)
        except Exception as error:
            raise EncoderError(
                f"encoder.pretrained: the weights {weights!r} of {name} could not be downloaded "
                f"({error}); or give the path of a local checkpoint file"
            ) from error
    else:
        path = Path(weights)
    if not path.exists():
        known = ", ".join(tags_of(name)) or "none"
        raise EncoderError(
            f"encoder.pretrained: {str(path)!r} is neither a file or folder here nor a tag of {name} ({known})"
        )
    return path


def _fetched(tag: dict[str, Any]) -> Path:
    """A tag's file: of the Hugging Face Hub, safetensors where there is one; else from the tag's own address."""
    repo, _, file = tag.get("hf_hub", "").rpartition("/")
    if not repo:
        return Path(open_clip.download_pretrained(tag))
    if not file:
        return fetch_first(repo, (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))
    return fetch_first(repo, (str(Path(file).with_suffix(".safetensors")), file))


def saved_normalization(path: Path) -> tuple[Colour | None, Colour | None]:
    """Mean and standard deviation of a saved fgaseg model's pixels, given its folder or weights; None: it is none."""
    folder = path.parent if path.name == "model.safetensors" else path
    if not is_saved_model(folder):
        return None, None
    encoder = read_config(folder / "config.json", folder)[0].encoder
    return encoder.mean or CLIP_MEAN, encoder.std or CLIP_STD


def load_towers(clip: nn.Module, path: Path) -> None:
    """Load both towers from one checkpoint file. Raises CheckpointError for what is missing or of another shape."""
    weights = read_weights(path)
    own = clip.state_dict()
    if any(k.startswith("clip.") for k in weights):  # a whole FGASeg model: take its encoder
        weights = {k.removeprefix("clip."): v for k, v in weights.items() if k.startswith("clip.")}
    for beginning, whose in OTHER_FORMATS.items():
        if any(key.startswith(beginning) for key in weights):
            raise CheckpointError(f"{path}: has {whose}; a checkpoint with open_clip's keys is needed")
    if not any(key.startswith("text.") for key in weights) and hasattr(clip, "text"):
        parts = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")
        weights = {f"text.{k}" if k.startswith(parts) else k: v for k, v in weights.items()}  # open_clip's older form
    weights = {key: value for key, value in split_projections(weights).items() if key not in STRUCTURAL}
    if not any(k in weights for k in own if not k.startswith(("visual.", "logit_"))):
        raise CheckpointError(f"{path}: has no text tower; FGAseg needs both towers of one CLIP")
    for key in ("logit_scale", "logit_bias"):  # of the loss of pretraining, in one of two shapes; never read
        if key in own:
            weights[key] = weights[key].reshape(own[key].shape) if key in weights else own[key]
        elif key == "logit_bias":
            weights.pop(key, None)
    load_weights(clip, {k: _as_float(v) for k, v in weights.items()}, path)


def _as_float(value: Tensor) -> Tensor:
    return value.float() if value.dtype.is_floating_point else value

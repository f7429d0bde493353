"""CLIP through open_clip: building both towers, their blocks, loading weights, and which weights are fine-tuned."""

import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from ..config import EncoderConfig
from ..errors import CheckpointError, EncoderError
from ..weights import load_weights, read_weights


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with separate q, k and v weights, so that q and v can train while k stays frozen.

    The layout is (N, L, D), whatever open_clip's blocks use.
    """

    def __init__(self, source: nn.MultiheadAttention):
        super().__init__()
        self.heads = source.num_heads
        q, k, v = source.in_proj_weight.detach().chunk(3)
        self.q_proj_weight = nn.Parameter(q.clone())
        self.k_proj_weight = nn.Parameter(k.clone())
        self.v_proj_weight = nn.Parameter(v.clone())
        self.in_proj_bias = source.in_proj_bias
        self.out_proj = source.out_proj

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        q, k, v = (
            F.linear(x, w, b).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for w, b in zip(weights, self.in_proj_bias.chunk(3), strict=True)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(out.transpose(1, 2).flatten(2))

    def values(self, x: Tensor) -> Tensor:
        """The value path alone: attention in which every token attends to itself only."""
        return self.out_proj(F.linear(x, self.v_proj_weight, self.in_proj_bias.chunk(3)[2]))


def run_block(block: ResidualAttentionBlock, x: Tensor, causal: bool = False) -> Tensor:
    """One pre-norm transformer block of open_clip, (N, L, D)."""
    x = x + block.attn(block.ln_1(x), causal)
    return x + block.mlp(block.ln_2(x))


def run_dense_block(block: ResidualAttentionBlock, x: Tensor) -> Tensor:
    """The last visual block without attention: value path, the class token's residual on every token, MLP."""
    v = block.attn.values(block.ln_1(x)) + x[:, :1]
    return v + block.mlp(block.ln_2(v))


def resized_positions(table: Tensor, stored: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The positional table [1 + h·w, D] at another grid: bicubic, without antialiasing; the class row is kept."""
    if grid == stored:
        return table
    square = table[1:].unflatten(0, stored).permute(2, 0, 1)[None]
    square = F.interpolate(square.float(), size=grid, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([table[:1], square[0].flatten(1).T.to(table.dtype)])


def resolve_architecture(config: EncoderConfig) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """open_clip's description of the two towers, and of the pretrained tag if there is one."""
    if config.architecture is not None:
        return deepcopy(config.architecture), None
    architecture = open_clip.get_model_config(config.name)
    if architecture is None:
        raise EncoderError(f"encoder.name: open_clip knows no model {config.name!r}; see open_clip.list_models()")
    tag = open_clip.pretrained.get_pretrained_cfg(config.name, config.pretrained) if config.pretrained else None
    if tag and bool(tag.get("quick_gelu", False)) != bool(architecture.get("quick_gelu", False)):
        # open_clip only warns here, but the two activations give different features: the weights decide
        architecture["quick_gelu"] = bool(tag.get("quick_gelu", False))
    if config.quick_gelu is not None:
        architecture["quick_gelu"] = config.quick_gelu
    elif config.pretrained and not tag and not architecture.get("quick_gelu") and _has_openai_weights(config.name):
        warnings.warn(
            f"encoder.pretrained: {config.pretrained} is read as weights for the plain GELU of {config.name}; if they "
            "are OpenAI's, set encoder.quick_gelu: true (the other activation gives other features)",
            stacklevel=2,
        )
    return architecture, tag or None


def _has_openai_weights(name: str) -> bool:
    return "openai" in open_clip.list_pretrained_tags_by_model(name)


def split_projections(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's keys with every fused `attn.in_proj_weight` split into q, k and v."""
    out: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.endswith("attn.in_proj_weight"):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                out[key.replace("in_proj_weight", f"{part}_proj_weight")] = piece
        else:
            out[key] = value
    return out


def build_clip(config: EncoderConfig) -> tuple[CLIP, dict[str, Any]]:
    """The two towers with their weights, float32, and the architecture they were built from."""
    architecture, tag = resolve_architecture(config)
    clip = _instantiate(architecture, config.name)
    if config.pretrained:
        if tag:
            try:
                path = open_clip.download_pretrained(tag)
            except Exception as error:
                raise EncoderError(
                    f"encoder.pretrained: the weights {config.pretrained!r} of {config.name} could not be downloaded "
                    f"({error}); give the path of a local checkpoint file instead"
                ) from error
        else:
            path = config.pretrained
        if not Path(path).exists():
            known = ", ".join(open_clip.list_pretrained_tags_by_model(config.name)) or "none"
            raise EncoderError(
                f"encoder.pretrained: {path!r} is neither a file or folder here nor a tag of {config.name} ({known})"
            )
        load_clip(clip, path)
    if config.finetune == "prompt":
        width, layers = clip.visual.conv1.out_channels, len(clip.visual.transformer.resblocks)
        clip.visual.transformer.prompt_tokens = nn.Parameter(torch.randn(layers, config.prompt_tokens, width) * 0.02)
    set_finetuning(clip, config.finetune)
    return clip, architecture


def _instantiate(architecture: dict[str, Any], name: str) -> CLIP:
    arguments = {k: v for k, v in architecture.items() if k != "custom_text"}
    if architecture.get("custom_text") or "multimodal_cfg" in architecture:
        raise EncoderError(f"encoder: {name} has a text tower that is not CLIP's own; FGAseg needs a plain CLIP ViT")
    try:
        clip = CLIP(**arguments)
    except (TypeError, AssertionError) as error:
        raise EncoderError(f"encoder.architecture: open_clip refuses it: {error}") from error
    visual = clip.visual
    plain = isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok"
    if not plain or any(type(b) is not ResidualAttentionBlock for b in visual.transformer.resblocks):
        raise EncoderError(f"encoder: the image tower of {name} is not a plain CLIP ViT with a class token")
    if visual.patch_size[0] != visual.patch_size[1]:
        raise EncoderError(f"encoder: {name} has patches of {visual.patch_size}; they must be square")
    if clip.text_projection.shape[1] != visual.proj.shape[1]:
        raise EncoderError(
            f"encoder: the text tower gives {clip.text_projection.shape[1]} channels and the image tower "
            f"{visual.proj.shape[1]}; the two towers must come from one CLIP"
        )
    for tower in (visual.transformer, clip.transformer):
        for block in tower.resblocks:
            block.attn = SelfAttention(block.attn)
    return clip


def load_clip(clip: CLIP, path: str | Path) -> None:
    """Load both towers from one checkpoint file. Raises CheckpointError for what is missing or of another shape."""
    weights = split_projections(read_weights(path))
    own = clip.state_dict()
    if any(k.startswith("clip.") for k in weights):  # a whole FGASeg model: take its encoder
        weights = {k.removeprefix("clip."): v for k, v in weights.items() if k.startswith("clip.")}
    for key in ("input_resolution", "context_length", "vocab_size", "attn_mask"):
        weights.pop(key, None)
    if not any(k in weights for k in own if not k.startswith("visual.")):
        raise CheckpointError(f"{path}: has no text tower; FGAseg needs both towers of one CLIP")
    load_weights(clip, {k: v.float() for k, v in weights.items()}, path)


def set_finetuning(clip: CLIP, strategy: str) -> None:
    """Which CLIP weights train (Table VII): attention (q, v), prompt, full (all blocks), none, scratch (everything)."""
    clip.requires_grad_(strategy == "scratch")
    towers = (clip.visual.transformer, clip.transformer)
    if strategy == "full":
        for tower in towers:
            tower.requires_grad_(True)
    if strategy == "attention":
        for tower in towers:
            for block in tower.resblocks:
                block.attn.q_proj_weight.requires_grad_(True)
                block.attn.v_proj_weight.requires_grad_(True)
    if strategy == "prompt":
        clip.visual.transformer.prompt_tokens.requires_grad_(True)
    clip.logit_scale.requires_grad_(False)  # the head uses cosines: the scale has no gradient
    if strategy != "none" and not any(p.requires_grad for p in clip.parameters()):
        warnings.warn(f"encoder.finetune={strategy!r} trains no weight of this encoder", stacklevel=3)

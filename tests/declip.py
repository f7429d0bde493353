"""Made-up checkpoints of CAT-Seg on DeCLIP's EVA-02, with the keys that its public code registers."""

import math
import re
from typing import Any

import timm
import torch
from checkpoint_shapes import HEAD, Shapes, aggregator, convolution, linear, norm
from open_clip import factory
from timm.models import _registry as registry
from torch import Tensor

from fgaseg.weights import released_config

CLIP = f"{HEAD}clip_model."


def eva(width: int, hidden: int, layers: int, patch: int, rows: int, channels: int, texts: int, depth: int) -> Shapes:
    """The encoders, as eva_clip/eva_vit_model.py and eva_clip/transformer.py register them."""
    shapes = {
        "logit_scale": [], "visual.cls_token": [1, 1, width], "visual.pos_embed": [1, rows, width],
        **convolution("visual.patch_embed.proj", 3, width, patch), **norm("visual.norm", width),
        **linear("visual.head", width, channels), "text.positional_embedding": [77, texts],
        "text.text_projection": [texts, channels], "text.token_embedding.weight": [49408, texts],
        **norm("text.ln_final", texts),
    }  # fmt: skip
    rope = {f"rope.freqs_{wave}": [rows - 1, 64] for wave in ("cos", "sin")}
    shapes |= {f"visual.{key}": shape for key, shape in rope.items()}
    for n in range(layers):
        block = f"visual.blocks.{n}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= {f"{block}.attn.{x}_proj.weight": [width, width] for x in "qkv"}
        shapes |= {f"{block}.attn.{x}_bias": [width] for x in "qv"}
        shapes |= {f"{block}.attn.{key}": shape for key, shape in rope.items()}
        shapes |= norm(f"{block}.attn.inner_attn_ln", width) | linear(f"{block}.attn.proj", width, width)
        shapes |= linear(f"{block}.mlp.w1", width, hidden) | linear(f"{block}.mlp.w2", width, hidden)
        shapes |= norm(f"{block}.mlp.ffn_ln", hidden) | linear(f"{block}.mlp.w3", hidden, width)
    for n in range(depth):
        block = f"text.transformer.resblocks.{n}"
        shapes |= norm(f"{block}.ln_1", texts) | norm(f"{block}.ln_2", texts)
        shapes |= {f"{block}.attn.in_proj_weight": [3 * texts, texts], f"{block}.attn.in_proj_bias": [3 * texts]}
        shapes |= linear(f"{block}.attn.out_proj", texts, texts)
        shapes |= linear(f"{block}.mlp.c_fc", texts, 4 * texts) | linear(f"{block}.mlp.c_proj", 4 * texts, texts)
    return {CLIP + key: shape for key, shape in shapes.items()}


BASE = {**eva(768, 2048, 12, 16, 197, 512, 512, 12), **aggregator(768, 512)}
LARGE = {**eva(1024, 2730, 24, 14, 577, 768, 768, 12), **aggregator(1024, 768)}
NARROW = {**eva(128, 341, 3, 16, 17, 64, 64, 2), **aggregator(128, 64)}


def register_narrow(monkeypatch: Any) -> None:
    """Make a small EVA-02 known to timm and open_clip for the time of a test."""

    def create(pretrained: bool = False, **values):
        sizes = {"embed_dim": 128, "depth": 3, "num_heads": 2, "img_size": 64}
        return timm.models.eva.eva02_base_patch16_clip_224(pretrained, **{**sizes, **values})

    vision = {"image_size": 64, "timm_model_name": "eva02_narrow", "timm_pool": "token", "timm_proj": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    description = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    monkeypatch.setitem(registry._model_entrypoints, "eva02_narrow", create)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "EVA02-narrow", description)
    monkeypatch.setitem(released_config.EVA_NAMES, (128, 3, 16, 17), "EVA02-narrow")


def narrow_weights() -> dict[str, Tensor]:
    """A checkpoint of it."""
    torch.manual_seed(3)
    weights = {key: torch.randn(shape) / math.sqrt(shape[-1] if len(shape) > 1 else 4) for key, shape in NARROW.items()}
    return {key: x + 1 if re.search(r"(norm\d?|ln(_\w+)?)\.weight$", key) else x for key, x in weights.items()}

"""The configuration that the keys and shapes of a released FGAseg or CAT-Seg checkpoint imply."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from .key_maps import RELEASED_KEYS, SHIFT_MASK, key_pattern

HEAD_WIDTH = 64  # of all of OpenAI's CLIP models
GRID = 24  # patches a side in the released training, assumed where no shift mask shows it
SIZES = {12: "B", 24: "L", 32: "H"}  # of ViTs, by the number of visual blocks
LCS, T2P = "transformer.Local_align.txt.weight", "proj.txt.weight"


def infer_config(weights: Mapping[str, Tensor], source: str | Path = "state dict") -> ModelConfig:
    """The `released` preset with everything that keys and shapes show; only the latter counts as set explicitly.

    weights  released keys without prefix to tensors (meta tensors will do)
    source   the file that an error names
    Raises CheckpointError when a key that is needed for this is absent or has an impossible shape.
    """
    shapes = _Shapes(weights, source)
    encoder = _encoder(shapes)
    channels = encoder["architecture"]["embed_dim"]
    patch = encoder["architecture"]["vision_cfg"]["patch_size"]
    early, late = shapes.of("upsample1.weight", 4)[1], shapes.of("upsample2.weight", 4)[1]
    guidance = tuple(shapes.of(f"transformer.decoder_guidance_projection.{i}.0.weight", 4)[0] for i in (0, 1))
    decoder = tuple(shapes.of(f"transformer.decoder{i}.conv.double_conv.0.weight", 4)[0] for i in (1, 2))
    data: dict[str, Any] = {
        "preset": "released",
        "encoder": encoder,
        "p2t_layers": shapes.count("DCDT.cross_atten_text.#."),
        "t2p": T2P in weights,
        "lcs": LCS in weights,
        "hidden": shapes.of("transformer.conv1.weight", 4)[0],
        "aggregation_layers": shapes.count("transformer.layers.#."),
        "guidance_channels": (early, late),
        "guidance_hidden": guidance,
        "decoder_channels": decoder,
        "fast": "transformer.head_auxi_0.weight" in weights,
        "image_size": GRID * patch,
    }
    if data["lcs"]:
        data["kernel_size"] = shapes.kernel_size(LCS, channels)
        data["fusion"] = "cat" if "transformer.conv_cat.weight" in weights else "add"
    if data["t2p"]:
        data["t2p_kernel_size"] = shapes.kernel_size(T2P, channels // 2)
    if data["fast"]:
        data["loss"] = {"aux_heads": shapes.count("transformer.head_auxi_#.")}
    if not any(key.endswith("padding_tokens") for key in weights):  # neither padded nor capped
        data |= {"pad_classes": 0, "class_cap": None}
    mask = next((weights[key] for key in weights if key_pattern(SHIFT_MASK).fullmatch(key)), None)
    if mask is not None and mask.ndim == 3:  # [windows of the grid, window², window²]
        data["window"] = math.isqrt(mask.shape[1])
        data["image_size"] = math.isqrt(mask.shape[0]) * data["window"] * patch
    return ModelConfig.from_json(json.dumps(data), str(source))


class _Shapes:
    """Shapes of a checkpoint's tensors, checked as they are read."""

    def __init__(self, weights: Mapping[str, Tensor], source: str | Path) -> None:
        self.weights, self.source = weights, source

    def of(self, key: str, dimensions: int) -> tuple[int, ...]:
        if key not in self.weights:
            raise CheckpointError(
                f"{self.source}: not a checkpoint of the released FGAseg code or of CAT-Seg: it has no {key} (with or "
                f"without {RELEASED_KEYS.prefix})"
            )
        shape = tuple(self.weights[key].shape)
        if len(shape) != dimensions:
            raise CheckpointError(f"{self.source}: {key} {list(shape)}: {dimensions} dimensions are needed")
        return shape

    def kernel_size(self, key: str, channels: int) -> int:
        """K of a linear layer whose rows are `channels` kernels of K×K taps, and the bias's row."""
        rows = self.of(key, 2)[0] - 1
        size = math.isqrt(max(rows, 0) // channels)
        if size**2 * channels != rows or size % 2 == 0:
            raise CheckpointError(
                f"{self.source}: {key} {list(self.weights[key].shape)}: its rows, less the bias's one, must be "
                f"{channels} channels times an odd number squared"
            )
        return size

    def count(self, pattern: str) -> int:
        """How many modules are numbered from 0 where the pattern has #."""
        regex = key_pattern(pattern)
        return max((int(match[1]) for key in self.weights if (match := regex.match(key))), default=-1) + 1


def _encoder(shapes: _Shapes) -> dict[str, Any]:
    width, _, patch, _ = shapes.of("clip_model.visual.conv1.weight", 4)
    positions = "clip_model.visual.positional_embedding"
    rows = shapes.of(positions, 2)[0] - 1
    if math.isqrt(rows) ** 2 != rows:
        raise CheckpointError(
            f"{shapes.source}: {positions}: {rows} rows besides the class token's are not a square grid"
        )
    context, text_width = shapes.of("clip_model.positional_embedding", 2)
    layers = shapes.count("clip_model.visual.transformer.resblocks.#.")
    encoder: dict[str, Any] = {
        "name": f"ViT-{SIZES.get(layers, f'{layers}x{width}')}-{patch}",
        "architecture": {
            "embed_dim": shapes.of("clip_model.visual.proj", 2)[1],
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": math.isqrt(rows) * patch,
                "layers": layers,
                "width": width,
                "patch_size": patch,
                "head_width": HEAD_WIDTH,
            },
            "text_cfg": {
                "context_length": context,
                "vocab_size": shapes.of("clip_model.token_embedding.weight", 2)[0],
                "width": text_width,
                "heads": text_width // HEAD_WIDTH,
                "layers": shapes.count("clip_model.transformer.resblocks.#."),
            },
        },
    }
    prompts = "clip_model.visual.transformer.prompt_tokens"
    if prompts in shapes.weights:
        encoder |= {"finetune": "prompt", "prompt_tokens": shapes.of(prompts, 3)[1]}
    return encoder

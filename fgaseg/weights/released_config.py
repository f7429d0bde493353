"""The configuration that the keys and shapes of a checkpoint of FGAseg's released code or of CAT-Seg's family imply."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config import ModelConfig
from ..errors import CheckpointError
from .key_maps import RELEASED_KEYS, KeyMap, Translation, key_pattern

HEAD_WIDTH = 64  # of all of OpenAI's CLIP models
GRID = 24  # patches a side in the released training, assumed where no shift mask shows it
SIZES = {12: "B", 24: "L", 32: "H"}  # of ViTs, by the number of visual blocks
EVA = "clip.visual.trunk."
# open_clip's names of EVA-02 by width, blocks, patch and rows of the positional table
EVA_NAMES = {(768, 12, 16, 197): "EVA02-B-16", (1024, 24, 14, 577): "EVA02-L-14-336"}
LCS, T2P = "head.lcs.text.weight", "head.t2p.text.weight"


def infer_config(
    weights: Mapping[str, Tensor], source: str | Path = "state dict", keys: KeyMap = RELEASED_KEYS
) -> ModelConfig:
    """The `released` preset with everything that keys and shapes show; only the latter counts as set explicitly.

    weights  a state dict of the project whose map `keys` is; meta tensors will do
    source   the file that an error names
    Raises CheckpointError when a key that is needed for this is absent or has an impossible shape.
    """
    return config_of(keys.translate(weights, str(source)), source, keys)


def config_of(weights: Translation, source: str | Path, keys: KeyMap, **known: Any) -> ModelConfig:
    """`infer_config` of a state dict that is translated already.

    known  fields of ModelConfig that the project's code decides, in place of the preset's
    """
    shapes = _Shapes(weights.tensors, source, keys)
    encoder, channels, patch = (_eva if any(key.startswith(EVA) for key in shapes.weights) else _encoder)(shapes)
    data: dict[str, Any] = {
        "preset": "released",
        "encoder": encoder,
        "p2t_layers": shapes.count("head.p2t.layers.#."),
        "t2p": T2P in shapes.weights,
        "lcs": LCS in shapes.weights,
        "hidden": shapes.of("head.embed_global.conv.weight", 4)[0],
        "aggregation_layers": shapes.count("head.layers.#."),
        "guidance_channels": tuple(shapes.of(f"head.{name}_up.weight", 4)[1] for name in ("early", "late")),
        "guidance_hidden": tuple(shapes.of(f"head.{name}_guidance.weight", 4)[0] for name in ("early", "late")),
        "decoder_channels": tuple(shapes.of(f"head.decoder.stage{i}.conv1.conv.weight", 4)[0] for i in (1, 2)),
        "fast": "head.aux_heads.0.conv.weight" in shapes.weights,
        "image_size": GRID * patch,
        **known,
    }
    if data["lcs"]:
        data["kernel_size"] = shapes.kernel_size(LCS, channels)
        data["fusion"] = "cat" if "head.fuse.linear.weight" in shapes.weights else "add"
    if data["t2p"]:
        data["t2p_kernel_size"] = shapes.kernel_size(T2P, channels // 2)
    if data["fast"]:
        data["loss"] = {"aux_heads": shapes.count("head.aux_heads.#.")}
    if not any(key.endswith("classes.pad_token") for key in shapes.weights):  # neither padded nor capped
        data |= {"pad_classes": 0, "class_cap": None}
    mask = next((x for key, x in weights.structural.items() if key.endswith("attn_mask") and x.ndim == 3), None)
    if mask is not None:  # [windows of the grid, window², window²]
        windows, tokens, _ = mask.shape
        data["window"] = math.isqrt(tokens)
        data["image_size"] = math.isqrt(windows) * data["window"] * patch
    return ModelConfig.from_json(json.dumps(data), str(source))


class _Shapes:
    """Shapes of a checkpoint's tensors, checked as they are read."""

    def __init__(self, weights: Mapping[str, Tensor], source: str | Path, keys: KeyMap) -> None:
        self.weights, self.source, self.keys = weights, source, keys

    def name(self, key: str) -> str:
        """One of our keys as the file has it, without the prefixes."""
        return self.keys.bare(self.keys.to_theirs(key) or key)

    def of(self, key: str, dimensions: int) -> tuple[int, ...]:
        if key not in self.weights:
            raise CheckpointError(
                f"{self.source}: not a checkpoint of FGAseg's released code or of CAT-Seg's family: it has no "
                f"{self.name(key)} (with or without {self.keys.prefix})"
            )
        shape = tuple(self.weights[key].shape)
        if len(shape) != dimensions:
            raise CheckpointError(f"{self.source}: {self.name(key)} {list(shape)}: {dimensions} dimensions are needed")
        return shape

    def kernel_size(self, key: str, channels: int) -> int:
        """K of a linear layer whose rows are `channels` kernels of K×K taps, and the bias's row."""
        rows = self.of(key, 2)[0] - 1
        size = math.isqrt(abs(rows) // channels)  # of no row at all: 0, which is even
        if size**2 * channels != rows or size % 2 == 0:
            raise CheckpointError(
                f"{self.source}: {self.name(key)} {list(self.weights[key].shape)}: its rows, less the bias's one, must "
                f"be {channels} channels times an odd number squared"
            )
        return size

    def count(self, pattern: str) -> int:
        """How many modules are numbered from 0 where the pattern has #."""
        regex = key_pattern(pattern)
        return max((int(match[1]) for key in self.weights if (match := regex.match(key))), default=-1) + 1


def _eva(shapes: _Shapes) -> tuple[dict[str, Any], int, int]:
    """The section `encoder` of an EVA-02 tower, the channels of its embeddings and the side of a patch."""
    width, _, patch, _ = shapes.of(f"{EVA}patch_embed.proj.weight", 4)
    size = (width, shapes.count(f"{EVA}blocks.#."), patch, shapes.of(f"{EVA}pos_embed", 3)[1])
    if size not in EVA_NAMES:
        raise CheckpointError(
            f"{shapes.source}: an EVA-02 of width {size[0]}, {size[1]} blocks, patches of {size[2]} and {size[3]} "
            f"positions is none of {', '.join(EVA_NAMES.values())}"
        )
    # its code reads the tower by csa; keys do not show it
    encoder = {"name": EVA_NAMES[size], "pretrained": None, "dense": "csa"}
    return encoder, shapes.of(f"{EVA}head.weight", 2)[0], patch


def _encoder(shapes: _Shapes) -> tuple[dict[str, Any], int, int]:
    """The section `encoder` of a plain CLIP ViT, the channels of its embeddings and the side of a patch."""
    width, _, patch, _ = shapes.of("clip.visual.conv1.weight", 4)
    positions = "clip.visual.positional_embedding"
    rows = shapes.of(positions, 2)[0] - 1
    if math.isqrt(rows) ** 2 != rows:
        raise CheckpointError(
            f"{shapes.source}: {shapes.name(positions)}: {rows} rows besides the class token's are not a square grid"
        )
    channels = shapes.of("clip.visual.proj", 2)[1]
    context, text_width = shapes.of("clip.positional_embedding", 2)
    layers = shapes.count("clip.visual.transformer.resblocks.#.")
    encoder: dict[str, Any] = {
        "name": f"ViT-{SIZES.get(layers, f'{layers}x{width}')}-{patch}",
        "architecture": {
            "embed_dim": channels,
            "quick_gelu": True,
            "vision_cfg": {
                "image_size": math.isqrt(rows) * patch,
                "layers": layers,
                "width": width,
                "patch_size": patch,
                "head_width": min(HEAD_WIDTH, width),
            },
            "text_cfg": {
                "context_length": context,
                "vocab_size": shapes.of("clip.token_embedding.weight", 2)[0],
                "width": text_width,
                "heads": max(text_width // HEAD_WIDTH, 1),
                "layers": shapes.count("clip.transformer.resblocks.#."),
            },
        },
    }
    prompts = "clip.visual.transformer.prompt_tokens"
    if prompts in shapes.weights:
        encoder |= {"finetune": "prompt", "prompt_tokens": shapes.of(prompts, 3)[1]}
    return encoder, channels, patch

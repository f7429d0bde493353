"""timm's Eva as open_clip's image tower: EVA-01, EVA-02 and PE-Core."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from torch import Tensor

from .image_tower import Colour, Unsupported
from .timm_vit import HALF, TimmTower, check_timm_attention, check_trunk


def rotary_table(rope: RotaryEmbeddingCat, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Sines and cosines [h·w, 2d] of a grid's patches, for `rotate`; half of the d angles each for the two axes.

    Positions are scaled to the grid that the weights were trained at, so that any grid spans the same angles (EVA-02,
    Fang et al., 2023).
    """
    count = rope.dim // 4
    steps = torch.arange(count, dtype=torch.int64, device=device).to(torch.float32)
    bands = 1.0 / (float(rope.temperature) ** (steps / count))
    places = []
    for i, size in enumerate(grid):
        place = torch.arange(size, dtype=torch.int64, device=device).to(torch.float32) + rope.grid_offset
        places.append(place if rope.ref_feat_shape is None else place / size * rope.ref_feat_shape[i])
    axes = torch.meshgrid(places[0], places[1], indexing="ij")
    positions = torch.stack(axes if rope.grid_indexing == "ij" else axes[::-1], dim=-1)
    angles = (positions[..., None] * bands).flatten(2).flatten(0, 1).repeat_interleave(2, dim=-1)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class EVA(TimmTower):
    """EVA-01 and EVA-02: a class token; in EVA-02 rotary positions, SwiGLU and norms inside attention and MLP.

    Dense features, of unit length: `csa` by default, SCLIP's self-correlation in the last block without scaling, rotary
    positions, residual and MLP, as the published head on EVA02-B-16 reads them (DeCLIP's CAT-Seg, Wang et al., CVPR
    2025); `qq` likewise; `value` runs the last block without attention, with each token's own residual (the same code's
    maskclip mode).
    """

    family = "EVA"
    default_dense = "csa"

    @staticmethod
    def check(visual: Any) -> None:
        """Raise Unsupported for what this page does not compute as open_clip does."""
        trunk = visual.trunk
        check_trunk(visual)
        for block in trunk.blocks:
            if type(block) not in (EvaBlock, EvaBlockPostNorm):
                raise Unsupported(f"the blocks of its image tower are timm's {type(block).__name__}")
            check_timm_attention(block, (EvaAttention, AttentionRope))
        if trunk.rope is not None:
            _check_rotation(trunk.rope)

    def separate(self) -> None:
        super().separate()
        for block in self.blocks:
            block.attn.correlation_scale = 1.0

    def rotation(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        return None if self.trunk.rope is None else rotary_table(self.trunk.rope, grid, device)

    def run(self, block: Any, x: Tensor, rotation: Tensor | None) -> Tensor:
        if isinstance(block, EvaBlockPostNorm):
            x = x + block.norm1(block.attn(x, rotation))
            return x + block.norm2(block.mlp(x))
        x = x + _scaled(block.attn(block.norm1(x), rotation), block.gamma_1)
        return x + _scaled(block.mlp(block.norm2(x)), block.gamma_2)

    def last_block(self, block: Any, x: Tensor) -> Tensor:
        post = isinstance(block, EvaBlockPostNorm)
        read = x if post else block.norm1(x)
        out = block.attn.values(read) if self.dense == "value" else block.attn.correlated(read, self.dense)
        out = block.norm1(out) if post else _scaled(out, block.gamma_1)
        if self.dense != "value":
            return out
        x = x + out
        return x + (block.norm2(block.mlp(x)) if post else _scaled(block.mlp(block.norm2(x)), block.gamma_2))

    def dense_tokens(self, x: Tensor) -> Tensor:
        return F.normalize(super().dense_tokens(x), dim=-1)


class PerceptionEncoder(EVA):
    """PE-Core (Bolya et al., 2025): rotary positions, a pooling head, and in all but bigG a class token beside it.

    Dense features: those of the pooling head, as SigLIP's (`SigLIP`), projected as the pooled vector is; there is no
    published head.
    """

    family = "PE-Core"
    default_dense = "value"

    @property
    def normalization(self) -> tuple[Colour, Colour]:
        return HALF, HALF

    def dense_tokens(self, x: Tensor) -> Tensor:
        return TimmTower.dense_tokens(self, x)


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else gamma * x


def _check_rotation(rope: Any) -> None:
    known = {"in_pixels": False, "rotate_half": False, "grid_type": "index", "aug_active": False}
    if type(rope) is not RotaryEmbeddingCat:
        raise Unsupported(f"its rotary positions are timm's {type(rope).__name__}")
    if other := {name: getattr(rope, name) for name, value in known.items() if getattr(rope, name, value) != value}:
        raise Unsupported(f"its rotary positions have {other}")

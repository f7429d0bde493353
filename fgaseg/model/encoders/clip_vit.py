"""Plain CLIP ViTs, the towers of open_clip's own: OpenAI, LAION, DataComp, DFN, MetaCLIP 1 and 2."""

from typing import Any, cast

import torch
from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from ...kernels import Norm, mlp
from ..precision import counts_launches
from .attention import SelfAttention, packed_projections
from .image_tower import ImageTower, Unsupported, resized_positions
from .interface import ImageFeatures


def run_block(block: Any, x: Tensor, causal: bool = False) -> Tensor:
    """One pre-norm transformer block of open_clip, (N, L, D)."""
    plain = isinstance(block.ls_1, nn.Identity)
    if plain and is_fused(block) and counts_launches(x):
        return cast("Tensor", block.mlp(x, Norm.of(block.ln_2), block.attn(block.ln_1(x), causal)))
    if plain:
        x = block.attn(block.ln_1(x), causal, residual=x)
    else:
        x = x + block.ls_1(block.attn(block.ln_1(x), causal))
    return run_mlp(block, x)


def activation_of(layer: nn.Module) -> str:
    """Its name for `mlp`; "": it has none."""
    if type(layer) is nn.GELU and layer.approximate == "none":
        return "gelu"
    return "quick_gelu" if type(layer) is QuickGELU else ""


class MLP(nn.Sequential):
    """open_clip's [linear, activation, linear]; with a norm, x and what it adds to the normalised x, in one pass.

    A module's own call, because sharded weights are gathered there.
    """

    def forward(self, x: Tensor, norm: Norm | None = None, added: Tensor | None = None) -> Tensor:
        if norm is None:
            return cast("Tensor", super().forward(x))
        first, activation, last = cast("Any", self)
        rule = activation_of(activation)
        return mlp(x, norm, first.weight, first.bias, last.weight, last.bias, rule, added=added)


def adapt_block(block: Any) -> None:
    """Give a block separate q, k and v, and an MLP in one pass where `mlp` has its activation."""
    block.attn = SelfAttention(block.attn)
    if activation_of(block.mlp[1]):
        block.mlp.__class__ = MLP


def is_fused(block: Any) -> bool:
    """Whether a block's MLP is one op with its norm and residual."""
    return isinstance(block.mlp, MLP) and isinstance(block.ls_2, nn.Identity)


def run_mlp(block: Any, x: Tensor) -> Tensor:
    """x and what the MLP of a block adds to it."""
    if is_fused(block):
        return cast("Tensor", block.mlp(x, Norm.of(block.ln_2)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def check_blocks(blocks: Any, tower: str) -> None:
    """Raise Unsupported for blocks that `run_block` does not compute."""
    for block in blocks:
        if type(block) is not ResidualAttentionBlock:
            raise Unsupported(f"the blocks of its {tower} tower are open_clip's {type(block).__name__}")
        if any(type(part) not in (nn.Identity, LayerScale) for part in (block.ls_1, block.ls_2)):
            raise Unsupported(f"the blocks of its {tower} tower scale their outputs in an unknown way")


class ClipViT(ImageTower):
    """open_clip's VisionTransformer with a class token.

    Dense features: `value` runs the last block without attention, its value path and MLP, with the class token's
    residual in place of a patch's own, as the released code of CAT-Seg and FGAseg does (after MaskCLIP, Zhou et al.,
    ECCV 2022); `qq` and `csa` are the self-correlation of the last block alone, without residual and MLP (ClearCLIP,
    Lan et al., ECCV 2024).
    """

    family = "CLIP ViT"

    def __init__(self, visual: Any):
        self.visual, self.stack, self.blocks = visual, visual.transformer, visual.transformer.resblocks
        self.patch = int(visual.patch_size[0])
        self.width, self.channels = visual.proj.shape
        self.prefix, self.last = 1, len(self.blocks) - 1

    @staticmethod
    def check(visual: Any) -> None:
        """Raise Unsupported for what this page does not compute as open_clip does."""
        if visual.attn_pool is not None or visual.pool_type != "tok":
            kind = "attention" if visual.attn_pool is not None else f"pool_type {visual.pool_type!r}"
            raise Unsupported(f"its image tower pools patches ({kind}); a class token is needed")
        if not isinstance(visual.patch_dropout, nn.Identity):
            raise Unsupported("patch_dropout leaves out patches, and every patch gets a label: set it to 0")
        if visual.output_tokens:
            raise Unsupported("output_tokens: its image tower returns more than an embedding")
        if visual.patch_size[0] != visual.patch_size[1]:
            raise Unsupported(f"it has patches of {tuple(visual.patch_size)}; they must be square")
        check_blocks(visual.transformer.resblocks, "image")

    def separate(self) -> None:
        """Give every attention separate q, k and v."""
        for block in self.blocks:
            adapt_block(block)

    def attention(self) -> list[Any]:
        return [block.attn for block in self.blocks]

    def features(self, pixels: Tensor) -> ImageFeatures:
        if not counts_launches(pixels):
            return super().features(pixels)
        with packed_projections([block.attn for block in self.blocks[: self.last]]):
            return super().features(pixels)

    def embed(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        visual = self.visual
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([visual.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        return visual.ln_pre(x + resized_positions(visual.positional_embedding, visual.grid_size, grid))

    def run(self, block: Any, x: Tensor, rotation: Tensor | None) -> Tensor:
        return run_block(block, x)

    def dense_tokens(self, x: Tensor) -> Tensor:
        block = self.blocks[-1]
        if self.dense == "value":
            x = block.ls_1(block.attn.values(block.ln_1(x))) + x[:, :1]
            x = run_mlp(block, x)
        else:
            x = block.ls_1(block.attn.correlated(block.ln_1(x), self.dense))
        return self.visual.ln_post(x[:, 1:]) @ self.visual.proj

    def pool(self, x: Tensor) -> Tensor:
        return self.visual.ln_post(x[:, 0]) @ self.visual.proj

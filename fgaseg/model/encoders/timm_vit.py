"""timm's VisionTransformer as open_clip's image tower: MobileCLIP with a class token, SigLIP with a pooling head."""

from typing import Any

import torch
from timm.layers import Attention, HybridEmbed, LayerScale, PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from .attention import RotaryAttention
from .image_tower import Colour, ImageTower, Unsupported, resized_positions
from .pooling_head import PoolingHead, unsupported

HALF = (0.5, 0.5, 0.5)


def check_trunk(visual: Any) -> None:
    """Raise Unsupported for what is outside the blocks of a timm trunk and would be computed otherwise than here."""
    trunk, embed = visual.trunk, visual.trunk.patch_embed
    if trunk.attn_pool is None and trunk.global_pool != "token":
        raise Unsupported(
            f"its image tower pools patches ({trunk.global_pool}); a class token or a pooling head is needed"
        )
    if trunk.attn_pool is not None and (why := unsupported(trunk.attn_pool)):
        raise Unsupported(why)
    if len(visual.head):
        raise Unsupported("its projection is open_clip's, not timm's (timm_proj)")
    normed = not isinstance(getattr(embed, "norm", nn.Identity()), nn.Identity)
    if type(embed) not in (PatchEmbed, HybridEmbed) or normed:
        raise Unsupported(f"its patch embedding is timm's {type(embed).__name__}, or has a norm")
    ratio = embed.feat_ratio(as_scalar=False)
    if ratio[0] != ratio[1]:
        raise Unsupported(f"it has patches of {tuple(ratio)}; they must be square")
    if trunk.reg_token is not None:
        raise Unsupported("its image tower has register tokens")
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in trunk.modules()):
        raise Unsupported("its image tower drops values in training: set timm_drop to 0")
    if not isinstance(getattr(trunk, "patch_drop", None) or nn.Identity(), nn.Identity):
        raise Unsupported("patch_dropout leaves out patches, and every patch gets a label: set it to 0")


def check_timm_attention(block: Any, kinds: tuple[type, ...]) -> None:
    """Raise Unsupported for a block whose attention RotaryAttention does not compute, or that is left out at random."""
    attention = block.attn
    if type(attention) not in kinds or getattr(attention, "gate", None) is not None:
        raise Unsupported(f"the attention of its image tower is timm's {type(attention).__name__}, or gated")
    if getattr(attention, "num_kv_groups", 1) != 1 or getattr(attention, "rotate_half", False):
        raise Unsupported("the attention of its image tower shares keys between heads, or rotates halves")
    if any(not isinstance(part, nn.Identity) for part in (block.drop_path1, block.drop_path2)):
        raise Unsupported("its image tower leaves out blocks in training: set timm_drop_path to 0")


class TimmTower(ImageTower):
    """What timm's two kinds of trunks do alike: patches, positions, class token, projection."""

    def __init__(self, visual: Any):
        trunk = visual.trunk
        self.trunk, self.stack, self.blocks = trunk, trunk, trunk.blocks
        self.patch = int(trunk.patch_embed.feat_ratio())
        self.width = trunk.embed_dim
        self.channels = trunk.num_classes or trunk.embed_dim
        self.prefix = trunk.num_prefix_tokens
        self.last = len(self.blocks) - (trunk.attn_pool is None)

    def separate(self) -> None:
        """Give every attention separate q, k and v."""
        for block in self.blocks:
            block.attn = RotaryAttention(block.attn)
        if self.trunk.attn_pool is not None:
            self.trunk.attn_pool = PoolingHead(self.trunk.attn_pool)

    def attention(self) -> list[Any]:
        head = self.trunk.attn_pool
        return [*(block.attn for block in self.blocks), *([] if head is None else [head])]

    def embed(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        trunk, embed = self.trunk, self.trunk.patch_embed
        maps = embed.backbone(pixels) if isinstance(embed, HybridEmbed) else pixels
        x = embed.proj(maps).flatten(2).transpose(1, 2)
        before = 0 if trunk.no_embed_class else self.prefix  # whether the table has a row for the class token
        table = None if trunk.pos_embed is None else resized_positions(
            trunk.pos_embed[0], embed.grid_size, grid, before
        )  # fmt: skip
        if table is not None and not before:
            x = x + table
        if self.prefix:
            x = torch.cat([trunk.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if table is not None and before:
            x = x + table
        return trunk.norm_pre(x)

    def project(self, x: Tensor) -> Tensor:
        """From the width of the tower to the joint space."""
        return self.trunk.head(self.trunk.fc_norm(x))

    def dense_tokens(self, x: Tensor) -> Tensor:
        if self.trunk.attn_pool is not None:
            x = self.trunk.attn_pool.dense(self.trunk.norm(x), self.dense)
        else:
            x = self.trunk.norm(self.last_block(self.blocks[-1], x))
        return self.project(x[:, self.prefix :])

    def pool(self, x: Tensor) -> Tensor:
        x = self.trunk.norm(x)
        return self.project(x[:, 0] if self.trunk.attn_pool is None else self.trunk.attn_pool(x))

    def last_block(self, block: Any, x: Tensor) -> Tensor:
        """The last block by the dense rule, where there is no pooling head."""
        raise NotImplementedError


class TimmViT(TimmTower):
    """MobileCLIP 1 and 2 B and MobileCLIP2-L-14: a class token, read after the last block.

    Dense features: as those of plain CLIP ViTs, whose form these have (`ClipViT`); there is no published head.
    MobileCLIP-B's stem of convolutions always uses the stored statistics of its BatchNorm, in training too.
    """

    family = "timm ViT with class token"

    @property
    def normalization(self) -> tuple[Colour, Colour]:
        plain = isinstance(self.trunk.patch_embed, PatchEmbed)
        return super().normalization if plain else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    @staticmethod
    def check(visual: Any) -> None:
        """Raise Unsupported for what this page does not compute as open_clip does."""
        trunk = visual.trunk
        check_trunk(visual)
        for block in trunk.blocks:
            if type(block) is not Block:
                raise Unsupported(f"the blocks of its image tower are timm's {type(block).__name__}")
            check_timm_attention(block, (Attention,))
            if any(type(part) not in (nn.Identity, LayerScale) for part in (block.ls1, block.ls2)):
                raise Unsupported("the blocks of its image tower scale their outputs in an unknown way")
        if trunk.attn_pool is not None and trunk.num_prefix_tokens:
            raise Unsupported("its image tower has a class token beside its pooling head")

    def run(self, block: Any, x: Tensor, rotation: Tensor | None) -> Tensor:
        x = x + block.ls1(block.attn(block.norm1(x)))
        return x + block.ls2(block.mlp(block.norm2(x)))

    def last_block(self, block: Any, x: Tensor) -> Tensor:
        if self.dense != "value":
            return block.ls1(block.attn.correlated(block.norm1(x), self.dense))
        x = block.ls1(block.attn.values(block.norm1(x))) + x[:, :1]
        return x + block.ls2(block.mlp(block.norm2(x)))


class SigLIP(TimmViT):
    """SigLIP and SigLIP 2: no class token, a pooling head (`PoolingHead`).

    Dense features: those of the pooling head, `value` by default: MaskCLIP's rule (Zhou et al., ECCV 2022), which reads
    the values of the attention that pools, applied to this head. DeCLIP (Wang et al., CVPR 2025) reads SigLIP by `qq`.
    """

    family = "SigLIP"

    @property
    def normalization(self) -> tuple[Colour, Colour]:
        return HALF, HALF

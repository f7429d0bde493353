"""CLIP through open_clip: the dense image tower and its intermediate guidance."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor

from ..config import EncoderConfig
from ..errors import EncoderError
from .clip import resized_positions, run_block, run_dense_block


class ImageFeatures(NamedTuple):
    """What the head reads of images (H×W patches)."""

    embedding: Tensor  # V_I [B, C, H, W], unnormalised, in the space of the text embeddings
    early: Tensor  # [B, D, H, W], raw output of the first guidance block
    late: Tensor  # [B, D, H, W], raw output of the second guidance block

    def image(self, index: int) -> "ImageFeatures":
        """Those of one image, B = 1."""
        return ImageFeatures(*(x[index : index + 1] for x in self))


class ImageEncoder:
    """CLIP's image tower, run densely. Wraps the tower without owning its weights.

    pixels [B, 3, h, w] → ImageFeatures at ceil(h / patch) × ceil(w / patch); sizes that the patch does not divide
    are padded with zeros (CLIP's mean colour) at the bottom and on the right.
    """

    def __init__(self, visual: VisionTransformer, guidance_blocks: tuple[int, int]):
        self.visual = visual
        self.guidance_blocks = guidance_blocks
        self.patch = int(visual.patch_size[0])

    def __call__(self, pixels: Tensor) -> ImageFeatures:
        height, width = pixels.shape[-2:]
        return self._encode(F.pad(pixels, (0, -width % self.patch, 0, -height % self.patch)))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """torch.compile of the tower, in place."""
        self._encode = torch.compile(self._encode, *args, **kwargs)  # type: ignore[method-assign]

    def _encode(self, pixels: Tensor) -> ImageFeatures:
        """Features of whole patches."""
        visual = self.visual
        patches = visual.conv1(pixels)
        grid = (patches.shape[2], patches.shape[3])
        x = torch.cat([visual.class_embedding.expand(len(patches), 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = visual.ln_pre(x + resized_positions(visual.positional_embedding, visual.grid_size, grid))
        blocks = visual.transformer.resblocks
        prompts = getattr(visual.transformer, "prompt_tokens", None)
        kept = {}
        for i, block in enumerate(blocks[:-1]):
            if prompts is None:
                x = run_block(block, x)
            else:
                tokens = prompts[i].expand(len(x), -1, -1)
                x = run_block(block, torch.cat([x[:, :1], tokens, x[:, 1:]], dim=1))
                x = torch.cat([x[:, :1], x[:, 1 + tokens.shape[1] :]], dim=1)
            kept[i] = x
        embedding = visual.ln_post(run_dense_block(blocks[-1], x)[:, 1:]) @ visual.proj

        def as_map(tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).unflatten(2, grid)

        early, late = (as_map(kept[i][:, 1:]) for i in self.guidance_blocks)
        return ImageFeatures(as_map(embedding), early, late)


def guidance_blocks(config: EncoderConfig, layers: int) -> tuple[int, int]:
    """The two 0-based blocks whose outputs guide the decoder: (3, 7) of 12, (7, 15) of 24."""
    chosen = config.guidance_blocks or (max(layers // 3 - 1, 0), max(2 * layers // 3 - 1, 0))
    if not all(0 <= i < layers - 1 for i in chosen):
        raise EncoderError(
            f"encoder.guidance_blocks: {chosen} must name two of the first {layers - 1} blocks "
            f"(the image tower has {layers} and the last one runs densely)"
        )
    return chosen

"""Reference implementation of the model: every stage as the paper writes it, nothing shared, chunked or fused.

The accelerated stages are tested against it, and `fgaseg bench model` measures both: all classes under the cap go
through all stages, guidance is copied to every class map, missing classes are filled up with pad tokens, windows are
rolled copies under a mask, prompts run at CLIP's full length, and score maps are resized whole. It reads the weights of
a model and computes one image at a time.
"""

from collections.abc import Iterable
from math import isqrt
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ..inference import STRIDE, WINDOW, released_views
from ..kernels.kernel_softmax.reference import kernel_softmax_reference
from ..kernels.lcs_conv.reference import lcs_conv_reference
from ..kernels.upsample_argmax.reference import averaged_scores
from .aggregation import AggregationLayer, ClassAttention, SwinBlock
from .decoder import Decoder, LocalUp, SharedGuidanceConv, UpStage
from .encoders import ImageFeatures, OpenClipEncoder, run_block
from .encoders.tokenizers import Tokenizer
from .fgaseg import FGASeg
from .head import Head, Output
from .packed_maps import DROPPED
from .supplement import Fusion, LocalSupplement
from .text_encoder import TextEncoder


def text_tower(encoder: TextEncoder, prompts: list[str]) -> Tensor:
    """Unit embeddings [N, C] of prompts, all tokens of each, by one of open_clip's text towers."""
    tower = cast(OpenClipEncoder, encoder.encoder).text_tower
    tokens = cast(Tokenizer, tower.tokenizer)(prompts)
    x = tower.parts.token_embedding(tokens) + tower.parts.positional_embedding
    for block in tower.blocks:
        x = run_block(block, x, causal=tower.causal)
    x = tower.parts.ln_final(x)[torch.arange(len(x)), tower.ends(tokens)]
    return F.normalize(tower.project(x), dim=-1)


def similarity(head: Head, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """V_emb of unit length [T, C], S_g [T, H, W] and S_l [T, H, W] of one image; pixels [1, C, H, W]."""
    unit_texts = F.normalize(head.p2t(pixels, texts)[0], dim=-1)
    unit_pixels = F.normalize(pixels.to(unit_texts.dtype), dim=1)
    gcs = torch.einsum("chw,tc->thw", unit_pixels[0], unit_texts)
    return unit_texts, gcs, None if head.lcs is None else local_map(head.lcs, unit_pixels, unit_texts)


def local_map(lcs: LocalSupplement, pixels: Tensor, texts: Tensor) -> Tensor:
    """S_l [T, H, W] of unit pixels [1, C, H, W] and unit texts [T, C]."""
    outputs, norm, border = lcs.text(texts[None]), lcs.kernel_norm, 0
    kernels, bias = outputs[..., :-1], outputs[..., -1]
    if norm == "cosine":
        by_channel = kernel_softmax_reference(kernels, lcs.kernel_size, "taps")
        kernels, norm = (by_channel * texts[:, :, None, None]).flatten(2), "none"
    if lcs.padding == "replicate":
        border = lcs.kernel_size // 2
        pixels = F.pad(pixels, (border,) * 4, mode="replicate")
    maps = lcs_conv_reference(pixels, kernels, bias, lcs.kernel_size, norm)[0]
    return maps[:, border : maps.shape[1] - border, border : maps.shape[2] - border]


def fuse(fusion: Fusion | None, x: Tensor, local: Tensor | None) -> Tensor:
    if fusion is None or local is None:  # no LCS
        return x
    return x + local if fusion.linear is None else fusion.linear(torch.cat([x, local], dim=-1))


def swin_block(block: SwinBlock, x: Tensor, guidance: Tensor) -> Tensor:
    """x [T, H, W, D], guidance of the image [H, W, G]."""
    height, width = x.shape[1:3]
    window, shift = (block.window, block.shift) if min(height, width) > block.window else (min(height, width), 0)
    guided = torch.cat([block.norm1(x), guidance.expand(len(x), -1, -1, -1)], dim=-1)
    guided = F.pad(guided, (0, 0, 0, -width % window, 0, -height % window))
    guided = torch.roll(guided, (-shift, -shift), (1, 2))
    attended = _window_attention(block, guided, window, window_mask((height, width), window, shift, x))
    attended = torch.roll(attended, (shift, shift), (1, 2))[:, :height, :width]
    x = x + attended
    return x + block.mlp(block.norm2(x))


def window_mask(grid: tuple[int, int], window: int, shift: int, like: Tensor) -> Tensor:
    """[windows, window², window²]: -100 between regions that only the roll brought together, -inf for padding."""
    padded = [n + -n % window for n in grid]
    places = torch.stack(torch.meshgrid(*(torch.arange(n, device=like.device) for n in padded), indexing="ij"), -1)
    region = torch.zeros(padded, device=like.device)
    for axis, n in enumerate(padded):
        crossed = (places[..., axis] >= n - window).int() + (places[..., axis] >= n - shift).int()
        region = 3 * region + (crossed if shift else 0)
    real = torch.roll((places < places.new_tensor(grid)).all(-1), (-shift, -shift), (0, 1))
    region, real = (rearrange(t, "(a y) (b x) -> (a b) (y x)", y=window, x=window) for t in (region, real))
    mask = (region[:, :, None] != region[:, None, :]) * like.new_tensor(-100.0)
    return mask.masked_fill(~real[:, None, :], float("-inf"))


def _window_attention(block: SwinBlock, guided: Tensor, window: int, mask: Tensor) -> Tensor:
    attention = block.attention
    values = guided[..., : attention.v.in_features]
    q, k, v = (
        rearrange(t, "t (a y) (b x) (h d) -> t (a b) h (y x) d", y=window, x=window, h=attention.heads)
        for t in (attention.q.linear(guided), attention.k.linear(guided), attention.v(values))
    )
    weights = (q @ k.mT / q.shape[-1] ** 0.5 + mask[:, None]).softmax(dim=-1)
    rows = guided.shape[1] // window
    out = rearrange(weights @ v, "t (a b) h (y x) d -> t (a y) (b x) (h d)", a=rows, y=window)
    return attention.proj(out)


def class_attention(layer: ClassAttention, x: Tensor, guidance: Tensor) -> Tensor:
    """x [T, P, D], guidance of the texts [T, G]; filled up with pad tokens to the layer's length."""
    classes, pixels = x.shape[:2]
    missing = max(layer.pad_classes - classes, 0)
    if missing:
        x = torch.cat([x, layer.pad_token.expand(missing, pixels, -1)])
        guidance = torch.cat([guidance, layer.pad_guidance.expand(missing, -1)])
    normed = layer.norm1(x)
    guided = torch.cat([normed, repeat(guidance, "t g -> t p g", p=pixels)], dim=-1)
    q, k, v = (
        t.unflatten(-1, (layer.heads, -1)) for t in (layer.q.linear(guided), layer.k.linear(guided), layer.v(normed))
    )
    q, k = F.elu(q) + 1, F.elu(k) + 1
    summary = torch.einsum("tphd,tphe->phde", k, v / len(x))
    scale = 1 / (torch.einsum("tphd,phd->tph", q, k.sum(0)) + 1e-6)
    attended = torch.einsum("tphd,phde,tph->tphe", q, summary, scale) * len(x)
    x = x + attended.flatten(-2)
    return (x + layer.mlp(layer.norm2(x)))[:classes]


def across_classes(layer: AggregationLayer, x: Tensor, guidance: Tensor, pooling: int) -> Tensor:
    """x [T, H, W, D]; class attention on the map averaged over pooling×pooling pixels, resized and added."""
    maps = x.permute(0, 3, 1, 2)
    if pooling > 1:
        maps = F.avg_pool2d(maps, pooling, ceil_mode=True, count_include_pad=False)
    size = maps.shape[2:]
    mixed = class_attention(layer.classes, rearrange(maps, "t d h w -> t (h w) d"), guidance)
    mixed = rearrange(mixed, "t (h w) d -> t d h w", h=size[0])
    if pooling > 1:
        mixed = F.interpolate(mixed, x.shape[1:3], mode="bilinear", align_corners=True)
    return x + mixed.permute(0, 2, 3, 1)


def _conv(conv: SharedGuidanceConv, x: Tensor, guidance: Tensor) -> Tensor:
    return conv.conv(torch.cat([x, guidance.expand(len(x), -1, -1, -1)], dim=1))


def up_stage(stage: UpStage, x: Tensor, guidance: Tensor) -> Tensor:
    """x [T, H, W, D], guidance [1, G, 2H, 2W] → [T, 2H, 2W, channels]."""
    x = F.relu(stage.norm1(_conv(stage.conv1, stage.up(x.permute(0, 3, 1, 2)), guidance)))
    return F.relu(stage.norm2(stage.conv2(x))).permute(0, 2, 3, 1)


def local_up(stage: LocalUp, x: Tensor) -> Tensor:
    """The embedded local map [T, H, W, D] at twice the size."""
    x = F.relu(stage.norm1(stage.conv1(stage.up(x.permute(0, 3, 1, 2)))))
    return F.relu(stage.norm2(stage.conv2(x))).permute(0, 2, 3, 1)


def decoder(part: Decoder, x: Tensor, local: Tensor | None, early: Tensor, late: Tensor) -> Tensor:
    """Class maps [T, H, W, D] to logits [T, 4H, 4W]."""
    x = up_stage(part.stage1, fuse(part.fuse1, x, local), early)
    if part.local_up is not None and local is not None:
        local = local_up(part.local_up, local)
    return part.head(up_stage(part.stage2, fuse(part.fuse2, x, local), late))


def run_head(head: Head, features: ImageFeatures, texts: Tensor) -> Tensor:
    """Logits [1, T, 4H, 4W] of one image, not in fast mode; classes that the cap leaves out get DROPPED."""
    unit_texts, gcs, lcs = similarity(head, features.embedding, texts)
    kept = torch.arange(len(texts), device=texts.device)
    if head.config.class_cap is not None and len(texts) > head.config.class_cap:
        kept = head.selector.cap(gcs[None], head.config.class_cap).rows
    logits = propagate(head, features, unit_texts[kept], gcs[kept], None if lcs is None else lcs[kept])
    out = logits.new_full((1, len(texts), *logits.shape[1:]), DROPPED)
    out[0, kept] = logits
    return out


def embed(head: Head, gcs: Tensor, lcs: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The fused class maps [T, H, W, D] of S_g and S_l [T, H, W], and the embedded local map."""
    local = None if lcs is None or head.embed_local is None else head.embed_local(lcs)
    return fuse(head.fuse, head.embed_global(gcs), local), local


def shared_guidance(head: Head, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor]:
    """What all classes of one image share: [H, W, D] for the aggregation, [1, G, 2H, 2W] and [1, G, 4H, 4W] later."""
    image = F.relu(head.image_guidance(features.embedding))[0].permute(1, 2, 0)
    early = F.relu(head.early_guidance(head.early_up(features.early)))
    return image, early, F.relu(head.late_guidance(head.late_up(features.late)))


def propagate(head: Head, features: ImageFeatures, texts: Tensor, gcs: Tensor, lcs: Tensor | None) -> Tensor:
    """Aggregation and decoding of one image's maps S_g and S_l [T, H, W]: logits [T, 4H, 4W]; texts V_emb [T, C]."""
    x, local = embed(head, gcs, lcs)
    image, early, late = shared_guidance(head, features)
    guidance = F.relu(head.text_guidance(texts.to(head.text_guidance.weight.dtype)))
    pooling = head.config.class_pooling if head.training else head.config.class_pooling_eval
    for layer in cast(Iterable[AggregationLayer], head.layers):
        normed = layer.guidance_norm(image)
        x = swin_block(layer.block2, swin_block(layer.block1, x, normed), normed)
        x = across_classes(layer, x, guidance, pooling)
    return decoder(head.decoder, x, local, early, late)


def forward(model: FGASeg, pixels: Tensor, texts: Tensor) -> Tensor:
    """Logits [B, T, 4H, 4W], one image at a time."""
    return torch.cat([run_head(model.head, model.image_encoder(image[None]), texts) for image in pixels])


def training_forward(model: FGASeg, pixels: Tensor, texts: Tensor) -> Output:
    """What a training step computes for one image: logits and, with T2P, the maps of its loss."""
    features, head = model.image_encoder(pixels), model.head
    aligned = head.p2t(features.embedding, texts)
    align = None if head.t2p is None else head.t2p(features.embedding, aligned)
    gcs = torch.zeros(0)  # the losses do not read it
    return Output(run_head(head, features, texts), gcs, None, align, [], None)


def labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [H, W] of one image: every class's map at the photo's size, then the largest."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def windows(model: FGASeg, photo: Tensor, texts: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [H, W] of a photo [3, h, w] 0..255 by the released code's views, with every class's maps at every size."""
    logits = forward(model, released_views(model, photo), texts)
    scores = averaged_scores(logits, isqrt(len(logits) - 1), WINDOW, STRIDE, True)
    return labels(scores[None], size)

"""Propagation (section III-C3): Swin blocks within every class map, linear attention across the classes of a pixel.

Class maps are rows [N, H, W, D] with N = images · classes, image-major, channels last. Guidance is never copied to
the rows: for a linear layer W [x; g] = W_x x + W_g g, and the second term is computed once per image (or class).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..kernels import class_lookup, class_summary, window_attention
from ..kernels.class_attention import add_pads


class ClassSums(NamedTuple):
    """What linear attention keeps of the classes of every image: float32, or float64 for float64."""

    summary: Tensor  # [B, P, heads, d, d]
    total: Tensor  # [B, P, heads, d]


class Guided(nn.Module):
    """A linear layer on [x; guidance] whose guidance part is shared: call it with x and with `project(guidance)`."""

    def __init__(self, inputs: int, guidance: int, outputs: int):
        super().__init__()
        self.inputs = inputs
        self.linear = nn.Linear(inputs + guidance, outputs)

    def project(self, guidance: Tensor) -> Tensor:
        return F.linear(guidance, self.linear.weight[:, self.inputs :], self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight[:, : self.inputs])


class WindowAttention(nn.Module):
    """Attention inside windows of every class map; guidance enters queries and keys, not values."""

    def __init__(self, hidden: int, guidance: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = Guided(hidden, guidance, hidden)
        self.k = Guided(hidden, guidance, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, guidance: Tensor, window: int, shift: int) -> Tensor:
        """x [B·T, H, W, D] and guidance of the images [B, H, W, G]."""
        hidden = x.shape[-1]
        own = [part.linear.weight[:, :hidden] for part in (self.q, self.k)]
        bias = F.pad(self.v.bias, (2 * hidden, 0))  # those of queries and keys come with the guidance
        q, k, v = F.linear(x, torch.cat([*own, self.v.weight]), bias).split(hidden, -1)
        guides = self.q.project(guidance), self.k.project(guidance)
        return self.proj(window_attention(q, k, v, *guides, self.heads, window, shift))


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP on every class map, the windows moved by `shift`."""

    def __init__(self, hidden: int, guidance: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(hidden)
        self.attention = WindowAttention(hidden, guidance, heads)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        smaller = min(x.shape[1], x.shape[2])
        window, shift = (self.window, self.shift) if smaller > self.window else (smaller, 0)
        x = x + self.attention(self.norm1(x), guidance, window, shift)
        inner = self.mlp[0](self.norm2(x))
        if not torch.is_grad_enabled():
            return x + self.mlp[1:](inner)
        # The backward pass computes the GELU again (and stops there): cheap, and its output is as large as four maps.
        return x + checkpoint(self.mlp[1:], inner, use_reentrant=False, preserve_rng_state=False)


class ClassAttention(nn.Module):
    """Linear attention over the classes of every (pooled) pixel, text guidance in queries and keys.

    Feature map elu + 1. `pad_classes` > 0: where fewer classes enter, a learned token stands in the sequence for
    each missing one (released checkpoints). The copies are identical, so their keys and values enter in closed form.

    It is two passes over the classes, which may come in pieces: `summarize` adds up what all of them offer, `attend`
    lets every one of them look. Rows are packed, x [R, P, D] with P pooled pixels, guidance [R, G]; rows offsets[b] to
    offsets[b + 1] belong to image b.
    """

    def __init__(self, hidden: int, guidance: int, heads: int, pad_classes: int):
        super().__init__()
        self.heads, self.pad_classes = heads, pad_classes
        self.norm1 = nn.LayerNorm(hidden)
        self.q = Guided(hidden, guidance, hidden)
        self.k = Guided(hidden, guidance, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.ReLU(inplace=True), nn.Linear(4 * hidden, hidden))
        if pad_classes:
            self.pad_token = nn.Parameter(torch.zeros(hidden))
            self.pad_guidance = nn.Parameter(torch.zeros(guidance))

    def forward(self, x: Tensor, guidance: Tensor, offsets: Tensor) -> Tensor:
        """Both passes over all classes: [R, P, D], residuals included."""
        return self.attend(x, guidance, offsets, self.pad(self.summarize(x, guidance, offsets), offsets.diff()))

    def summarize(self, x: Tensor, guidance: Tensor, offsets: Tensor) -> ClassSums:
        """Keys times values [B, P, heads, d, d], and keys [B, P, heads, d], summed over the rows of every image."""
        hidden = x.shape[-1]
        weight = torch.cat([self.k.linear.weight[:, :hidden], self.v.weight])
        k, v = F.linear(self.norm1(x), weight, F.pad(self.v.bias, (hidden, 0))).split(hidden, -1)
        return ClassSums(*class_summary(k, v, self.k.project(guidance), offsets, self.heads))

    def pad(self, sums: ClassSums, classes: Tensor) -> ClassSums:
        """Adds to the sums of images with `classes` [B] classes what the pad tokens of the missing ones contribute."""
        if not self.pad_classes:
            return sums
        token = self.norm1(self.pad_token)
        key = self.k(token) + self.k.project(self.pad_guidance)
        missing = (self.pad_classes - classes).clamp(min=0)
        return ClassSums(*add_pads(*sums, key, self.v(token), missing))

    def attend(self, x: Tensor, guidance: Tensor, offsets: Tensor, sums: ClassSums) -> Tensor:
        q = self.q(self.norm1(x))
        x = x + class_lookup(q, self.q.project(guidance), *sums, offsets, self.heads, 1e-6)
        return x + self.mlp(self.norm2(x))


class AggregationLayer(nn.Module):
    """Spatial aggregation (a pair of Swin blocks), then class aggregation, on class maps as rows [R, H, W, D]."""

    def __init__(self, hidden: int, heads: int, window: int, pad_classes: int):
        super().__init__()
        self.guidance_norm = nn.LayerNorm(hidden)
        self.block1 = SwinBlock(hidden, hidden, heads, window, 0)
        self.block2 = SwinBlock(hidden, hidden, heads, window, window // 2)
        self.classes = ClassAttention(hidden, hidden, heads, pad_classes)

    def spatial(self, x: Tensor, guidance: Tensor) -> Tensor:
        """Guidance of the images [B, H, W, D]; every image has as many rows."""
        guidance = self.guidance_norm(guidance)
        return self.block2(self.block1(x, guidance), guidance)

    def summarize(self, x: Tensor, guidance: Tensor, offsets: Tensor, pooling: int) -> ClassSums:
        """The class attention's first pass, on maps averaged over pooling×pooling pixels; guidance of texts [R, D]."""
        return self.classes.summarize(_pooled(x, pooling).flatten(1, 2), guidance, offsets)

    def across_classes(self, x: Tensor, guidance: Tensor, offsets: Tensor, sums: ClassSums, pooling: int) -> Tensor:
        """Its second pass, resized to the map and added to it. `sums` are those of all rows, pad tokens included."""
        pooled = _pooled(x, pooling)
        mixed = self.classes.attend(pooled.flatten(1, 2), guidance, offsets, sums).unflatten(1, pooled.shape[1:3])
        if pooling > 1:
            mixed = F.interpolate(mixed.permute(0, 3, 1, 2), x.shape[1:3], mode="bilinear", align_corners=True)
            mixed = mixed.permute(0, 2, 3, 1)
        return x + mixed


def _pooled(x: Tensor, pooling: int) -> Tensor:
    if pooling == 1:
        return x
    x = F.avg_pool2d(x.permute(0, 3, 1, 2), pooling, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1).contiguous()

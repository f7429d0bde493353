"""Propagation (section III-C3): Swin blocks within every class map, linear attention across the classes of a pixel.

Class maps are rows [R, H, W, D], R = images · classes, image after image, channels last. Guidance is never copied to
the rows: a linear layer on [x; g] is W_x x + W_g g, and the second term is computed once per image (or class).
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import Int8Weight, Norm, class_lookup, class_summary, linear, mlp, window_attention
from ..kernels.class_attention import add_pads
from .precision import counts_launches


class ClassSums(NamedTuple):
    """What linear attention keeps of the classes of every image: float32, or float64 for float64."""

    summary: Tensor  # [B, P, heads, d, d]
    total: Tensor  # [B, P, heads, d]

    def plus(self, other: "ClassSums") -> "ClassSums":
        """The sums of both; without gradients in the memory of these."""
        if torch.is_grad_enabled():
            return ClassSums(self.summary + other.summary, self.total + other.total)
        return ClassSums(self.summary.add_(other.summary), self.total.add_(other.total))


class PackedLinear(NamedTuple):
    """Several linear layers on the same input as one: their weights below each other."""

    weight: Tensor | Int8Weight
    bias: Tensor


def stacked(*weights: Tensor | Int8Weight) -> Tensor | Int8Weight:
    """Weights on the same input, below each other; either all tensors or all of 8 bits."""
    if any(isinstance(weight, Int8Weight) for weight in weights):
        return Int8Weight.stacked(cast("Sequence[Int8Weight]", weights))
    return torch.cat(cast("tuple[Tensor, ...]", weights))


class BlockGuidance(NamedTuple):
    """What a Swin block needs besides the maps, made once for all of them."""

    q: Tensor  # guidance of the queries [B, H, W, D], their bias included
    k: Tensor  # likewise of the keys
    qkv: PackedLinear

    def of(self, images: slice) -> "BlockGuidance":
        return BlockGuidance(self.q[images], self.k[images], self.qkv)


class LayerGuidance(NamedTuple):
    """What an aggregation layer needs besides the maps and their texts, made once for all of them."""

    block1: BlockGuidance
    block2: BlockGuidance
    kv: PackedLinear  # of the class attention

    def of(self, images: slice) -> "LayerGuidance":
        return LayerGuidance(self.block1.of(images), self.block2.of(images), self.kv)


class SharedGuidanceLinear(nn.Module):
    """A linear layer on [x; guidance] whose guidance term is shared: `forward(x) + project(guidance)`.

    quantized  W_x in 8 bits, in a quantized model
    """

    def __init__(self, inputs: int, guidance: int, outputs: int):
        super().__init__()
        self.inputs = inputs
        self.linear = nn.Linear(inputs + guidance, outputs)
        self.quantized: Int8Weight | None = None

    @property
    def own_weight(self) -> Tensor | Int8Weight:
        """W_x [outputs, inputs]."""
        return self.linear.weight[:, : self.inputs] if self.quantized is None else self.quantized

    @property
    def guidance_weight(self) -> Tensor:
        """W_g [outputs, guidance]."""
        return self.linear.weight[:, self.inputs :]

    def project(self, guidance: Tensor) -> Tensor:
        return F.linear(guidance, self.guidance_weight, self.linear.bias)

    def forward(self, x: Tensor, norm: Norm | None = None) -> Tensor:
        return linear(x, self.own_weight, norm=norm)


class WindowAttention(nn.Module):
    """Attention inside windows of every class map; guidance enters queries and keys, not values."""

    def __init__(self, hidden: int, guidance: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = SharedGuidanceLinear(hidden, guidance, hidden)
        self.k = SharedGuidanceLinear(hidden, guidance, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, hidden)

    def prepare(self, guidance: Tensor) -> BlockGuidance:
        """guidance of the images [B, H, W, G]."""
        weight = stacked(self.q.own_weight, self.k.own_weight, self.v.weight)
        bias = F.pad(self.v.bias, (2 * self.v.out_features, 0))  # those of queries and keys come with the guidance
        return BlockGuidance(self.q.project(guidance), self.k.project(guidance), PackedLinear(weight, bias))

    def forward(
        self, x: Tensor, norm: Norm, guidance: BlockGuidance, window: int, shift: int, residual: Tensor | None = None
    ) -> Tensor:
        """The attention of the normalised maps x [R, H, W, D], and the residual added."""
        q, k, v = linear(x, *guidance.qkv, norm=norm).split(x.shape[-1], -1)
        attended = window_attention(q, k, v, guidance.q, guidance.k, self.heads, window, shift)
        return linear(attended, self.proj.weight, self.proj.bias, residual=residual)


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP on every class map, the windows moved by `shift`."""

    def __init__(self, hidden: int, guidance: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.norm1 = nn.LayerNorm(hidden)
        self.attention = WindowAttention(hidden, guidance, heads)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(self, x: Tensor, guidance: BlockGuidance) -> Tensor:
        """x [R, H, W, D]; guidance of the images, which have equally many rows."""
        window, shift = self.window, self.shift
        if not torch.compiler.is_exporting():  # the exported form of the op does this for any grid
            smaller = min(x.shape[1], x.shape[2])
            window, shift = (window, shift) if smaller > window else (smaller, 0)
        norm = Norm.of(self.norm1)
        if counts_launches(x):
            attended = self.attention(x, norm, guidance, window, shift)
            return run_mlp(x, self.norm2, self.mlp, "gelu", attended)
        x = self.attention(x, norm, guidance, window, shift, residual=x)
        return run_mlp(x, self.norm2, self.mlp, "gelu")


def run_mlp(
    x: Tensor, norm: nn.LayerNorm, layers: nn.Sequential, activation: str, added: Tensor | None = None
) -> Tensor:
    """x + layers(norm(x)) with layers [linear, activation, linear]; `added` is added to x before that."""
    first, last = cast("nn.Linear", layers[0]), cast("nn.Linear", layers[2])
    return mlp(x, Norm.of(norm), first.weight, first.bias, last.weight, last.bias, activation, added=added)


class ClassAttention(nn.Module):
    """Linear attention over the classes of every (pooled) pixel, text guidance in queries and keys.

    Feature map elu + 1. `pad_classes` > 0: where an image has fewer classes, a learned token stands in the sequence for
    each missing one (released checkpoints). The copies are identical, so their keys and values enter in closed form.

    It takes two passes over the classes, each possibly in chunks: `summarize` contributes to the sums over all classes,
    `attend` reads them. Rows are packed: x [R, P, D] with P pooled pixels, guidance [R, G]; rows offsets[b] to
    offsets[b + 1] belong to image b.
    """

    def __init__(self, hidden: int, guidance: int, heads: int, pad_classes: int):
        super().__init__()
        self.heads, self.pad_classes = heads, pad_classes
        self.norm1 = nn.LayerNorm(hidden)
        self.q = SharedGuidanceLinear(hidden, guidance, hidden)
        self.k = SharedGuidanceLinear(hidden, guidance, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.ReLU(inplace=True), nn.Linear(4 * hidden, hidden))
        if pad_classes:
            self.pad_token = nn.Parameter(torch.zeros(hidden))
            self.pad_guidance = nn.Parameter(torch.zeros(guidance))

    def packed_kv(self) -> PackedLinear:
        weight = stacked(self.k.own_weight, self.v.weight)
        return PackedLinear(weight, F.pad(self.v.bias, (self.v.out_features, 0)))

    def summarize(self, x: Tensor, kv: PackedLinear, guidance: Tensor, offsets: Tensor) -> ClassSums:
        """Keys times values [B, P, heads, d, d], and keys [B, P, heads, d], summed over the rows of every image."""
        k, v = linear(x, *kv, norm=Norm.of(self.norm1)).split(x.shape[-1], -1)
        return ClassSums(*class_summary(k, v, self.k.project(guidance), offsets, self.heads))

    def add_pads(self, sums: ClassSums, classes: int | Tensor) -> ClassSums:
        """Adds what the pad tokens contribute to the sums of images with `classes` classes each, or [B] classes."""
        if not self.pad_classes:
            return sums
        token = self.norm1(self.pad_token)
        key = self.k(token) + self.k.project(self.pad_guidance)
        missing = (
            (self.pad_classes - classes).clamp(min=0)
            if isinstance(classes, Tensor)
            else sums.total.new_full((sums.total.shape[0],), torch.sym_max(self.pad_classes - classes, 0))
        )
        return ClassSums(*add_pads(*sums, key, self.v(token), missing))

    def attend(self, x: Tensor, guidance: Tensor, offsets: Tensor, sums: ClassSums) -> Tensor:
        """[R, P, D], residuals included; `sums` over all classes, pad tokens included."""
        q = self.q(x, Norm.of(self.norm1))
        looked_up = class_lookup(q, self.q.project(guidance), *sums, offsets, self.heads, 1e-6)
        return run_mlp(x, self.norm2, self.mlp, "relu", looked_up)


class AggregationLayer(nn.Module):
    """Spatial aggregation (a pair of Swin blocks), then class aggregation, on class maps as rows [R, H, W, D]."""

    def __init__(self, hidden: int, heads: int, window: int, pad_classes: int):
        super().__init__()
        self.guidance_norm = nn.LayerNorm(hidden)
        self.block1 = SwinBlock(hidden, hidden, heads, window, 0)
        self.block2 = SwinBlock(hidden, hidden, heads, window, window // 2)
        self.classes = ClassAttention(hidden, hidden, heads, pad_classes)

    def prepare(self, guidance: Tensor) -> LayerGuidance:
        """guidance of the images [B, H, W, D]."""
        guidance = self.guidance_norm(guidance)
        if counts_launches(guidance):
            return self._prepare_at_once(guidance)
        block1, block2 = (block.attention.prepare(guidance) for block in (self.block1, self.block2))
        return LayerGuidance(block1, block2, self.classes.packed_kv())

    def _prepare_at_once(self, guidance: Tensor) -> LayerGuidance:
        """The same with all weights in one concatenation, and the projections of the guidance in one product."""
        one, two, classes = self.block1.attention, self.block2.attention, self.classes
        hidden, shared = one.q.inputs, [part for block in (one, two) for part in (block.q, block.k)]
        weights = [one.q.own_weight, one.k.own_weight, one.v.weight, two.q.own_weight, two.k.own_weight, two.v.weight,
                   classes.k.own_weight, classes.v.weight, *(part.guidance_weight for part in shared)]  # fmt: skip
        none = guidance.new_zeros(2 * hidden)
        biases = [none, one.v.bias, none, two.v.bias, none[:hidden], classes.v.bias,
                  *(part.linear.bias for part in shared)]  # fmt: skip
        sizes = [3 * hidden, 3 * hidden, 2 * hidden, 4 * hidden]
        whole = (torch.cat(cast("list[Tensor]", x)).split(sizes) for x in (weights, biases))
        *packed, (weight, bias) = zip(*whole, strict=True)
        first, second, kv = (PackedLinear(*x) for x in packed)
        # a product for each of the four, so that each is contiguous
        each = weight.unflatten(0, (4, hidden)).transpose(1, 2)
        projected = torch.baddbmm(bias.view(4, 1, hidden), guidance.flatten(0, 2).expand(4, -1, -1), each)
        q1, k1, q2, k2 = projected.unflatten(1, guidance.shape[:3])
        return LayerGuidance(BlockGuidance(q1, k1, first), BlockGuidance(q2, k2, second), kv)

    def spatial(self, x: Tensor, guidance: LayerGuidance) -> Tensor:
        return self.block2(self.block1(x, guidance.block1), guidance.block2)

    def summarize(self, x: Tensor, kv: PackedLinear, guidance: Tensor, offsets: Tensor, pooling: int) -> ClassSums:
        """The class attention's first pass, on maps averaged over pooling×pooling pixels; guidance of texts [R, D]."""
        return self.classes.summarize(_pooled(x, pooling).flatten(1, 2), kv, guidance, offsets)

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
    x = x.permute(0, 3, 1, 2)
    if torch.compiler.is_exporting():  # OpenVINO pools no map that is smaller than the window: whole windows, padded
        rest = (0, -x.shape[3] % pooling, 0, -x.shape[2] % pooling)
        shares = F.avg_pool2d(F.pad(torch.ones_like(x[:1, :1]), rest), pooling)  # of each window, inside the map
        x = F.avg_pool2d(F.pad(x, rest), pooling) / shares
    else:
        x = F.avg_pool2d(x, pooling, ceil_mode=True, count_include_pad=False)
    return x.permute(0, 2, 3, 1).contiguous()

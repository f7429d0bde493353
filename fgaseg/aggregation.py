"""Propagation (section III-C3): Swin blocks within every class map, linear attention across the classes of a pixel.

Class maps are rows [N, H, W, D] with N = images · classes, image-major, channels last. Guidance is never copied to
the rows: for a linear layer W [x; g] = W_x x + W_g g, and the second term is computed once per image (or class).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TOKENS_PER_STEP = 64 * 24 * 24  # class-attention tokens computed at once when no gradient is recorded


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


def window_mask(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor | None:
    """Additive attention mask [windows, window², window²] of a padded and shifted grid, None where all may attend.

    -100 between regions that only the shift brought together (as Swin has it), -inf for padding.
    """
    height, width = grid
    padded = [n + -n % window for n in grid]
    if shift == 0 and tuple(padded) == tuple(grid):
        return None
    region = torch.zeros(padded, device=device)
    if shift:
        edges = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
        for i, rows in enumerate(edges):
            for j, columns in enumerate(edges):
                region[rows, columns] = 3 * i + j
    real = torch.zeros(padded, dtype=torch.bool, device=device)
    real[:height, :width] = True
    real = torch.roll(real, (-shift, -shift), (0, 1))

    def windows(x: Tensor) -> Tensor:
        return rearrange(x, "(a y) (b x) -> (a b) (y x)", y=window, x=window)

    regions, keys = windows(region), windows(real)
    mask = torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)
    return mask.masked_fill(~keys[:, None, :], float("-inf"))


class WindowAttention(nn.Module):
    """Attention inside windows of every class map; guidance enters queries and keys, not values."""

    def __init__(self, hidden: int, guidance: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q = Guided(hidden, guidance, hidden)
        self.k = Guided(hidden, guidance, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.proj = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor, guidance: Tensor, window: int, mask: Tensor | None) -> Tensor:
        """x [B·T, H, W, D] and guidance [B, H, W, G], both padded and shifted alike; H and W divide by window."""
        batch = len(guidance)
        q, k = (
            (part(x).unflatten(0, (batch, -1)) + part.project(guidance)[:, None]).flatten(0, 1)
            for part in (self.q, self.k)
        )
        q, k, v = (self._windows(t, window) for t in (q, k, self.v(x)))
        if mask is not None:  # windows and heads share one axis, so that the mask broadcasts over rows only
            mask = mask.repeat_interleave(self.heads, dim=0)[None].to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(self._merge(out, window, x.shape[1]))

    def _windows(self, x: Tensor, size: int) -> Tensor:
        return rearrange(x, "n (a y) (b x) (h d) -> n (a b h) (y x) d", y=size, x=size, h=self.heads)

    def _merge(self, x: Tensor, size: int, height: int) -> Tensor:
        return rearrange(x, "n (a b h) (y x) d -> n (a y) (b x) (h d)", a=height // size, h=self.heads, y=size)


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
        grid = (x.shape[1], x.shape[2])
        window, shift = (self.window, self.shift) if min(grid) > self.window else (min(grid), 0)
        x = x + self._attend(self.norm1(x), guidance, grid, window, shift)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, guidance: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
        below, right = (-n % window for n in grid)

        def prepare(t: Tensor) -> Tensor:
            if below or right:
                t = F.pad(t, (0, 0, 0, right, 0, below))
            return torch.roll(t, (-shift, -shift), (1, 2)) if shift else t

        out = self.attention(prepare(x), prepare(guidance), window, window_mask(grid, window, shift, x.device))
        if shift:
            out = torch.roll(out, (shift, shift), (1, 2))
        return out[:, : grid[0], : grid[1]]


def positive(x: Tensor) -> Tensor:
    """elu(x) + 1. Spelt out because elu's backward has other strides when traced than when run (seen in torch 2.14)."""
    return F.relu(x) + torch.expm1(x.clamp(max=0)) + 1


class ClassAttention(nn.Module):
    """Linear attention over the classes of every (pooled) pixel, text guidance in queries and keys.

    Feature map elu + 1. `pad_classes` > 0: where fewer classes enter, a learned token stands in the sequence for
    each missing one (released checkpoints). The copies are identical, so their keys and values enter in closed form.
    """

    def __init__(self, hidden: int, guidance: int, heads: int, pad_classes: int):
        super().__init__()
        self.heads, self.pad_classes = heads, pad_classes
        self.norm1 = nn.LayerNorm(hidden)
        self.q = Guided(hidden, guidance, hidden)
        self.k = Guided(hidden, guidance, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.norm2 = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.ReLU(), nn.Linear(4 * hidden, hidden))
        if pad_classes:
            self.pad_token = nn.Parameter(torch.zeros(hidden))
            self.pad_guidance = nn.Parameter(torch.zeros(guidance))

    def forward(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x [B, T, P, D] (P pooled pixels), guidance [B, T, G] → [B, T, P, D], residuals included."""
        classes = x.shape[0] * x.shape[1]
        if torch.is_grad_enabled() or classes * x.shape[2] <= TOKENS_PER_STEP:
            return self._layer(x, guidance)
        parts = x.split(max(TOKENS_PER_STEP // classes, 1), dim=2)  # pixels do not see each other here
        return torch.cat([self._layer(part, guidance) for part in parts], dim=2)

    def _layer(self, x: Tensor, guidance: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x), guidance)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, guidance: Tensor) -> Tensor:
        q = positive(self._split(self.q(x) + self.q.project(guidance)[:, :, None]))
        k = positive(self._split(self.k(x) + self.k.project(guidance)[:, :, None]))
        v = self._split(self.v(x))
        missing = max(self.pad_classes - x.shape[1], 0)
        length = x.shape[1] + missing
        summary = torch.einsum("btphd,btphe->bphde", k, v / length)
        total = k.sum(dim=1)
        if missing:
            pad_k, pad_v = self._pad()
            summary = summary + missing * (pad_k[:, :, None] * (pad_v / length)[:, None, :])
            total = total + missing * pad_k
        scale = 1 / (torch.einsum("btphd,bphd->btph", q, total) + 1e-6)
        out = torch.einsum("btphd,bphde->btphe", q, summary) * scale[..., None] * length
        return out.flatten(-2)

    def _pad(self) -> tuple[Tensor, Tensor]:
        token = self.norm1(self.pad_token)
        key = self.k(token) + self.k.project(self.pad_guidance)
        return positive(key.unflatten(-1, (self.heads, -1))), self.v(token).unflatten(-1, (self.heads, -1))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class AggregationLayer(nn.Module):
    """Spatial aggregation (a pair of Swin blocks), then class aggregation, on class maps as rows."""

    def __init__(self, hidden: int, heads: int, window: int, pad_classes: int):
        super().__init__()
        self.guidance_norm = nn.LayerNorm(hidden)
        self.block1 = SwinBlock(hidden, hidden, heads, window, 0)
        self.block2 = SwinBlock(hidden, hidden, heads, window, window // 2)
        self.classes = ClassAttention(hidden, hidden, heads, pad_classes)

    def spatial(self, x: Tensor, guidance: Tensor) -> Tensor:
        """x [B·T, H, W, D], guidance of the image [B, H, W, D]."""
        guidance = self.guidance_norm(guidance)
        return self.block2(self.block1(x, guidance), guidance)

    def across_classes(self, x: Tensor, guidance: Tensor, pooling: int) -> Tensor:
        """x [B·T, H, W, D], guidance of the texts [B, T, D]; averaged over pooling×pooling pixels in between."""
        batch, (height, width) = len(guidance), x.shape[1:3]
        pooled = x
        if pooling > 1:
            pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), pooling, ceil_mode=True, count_include_pad=False)
            pooled = pooled.permute(0, 2, 3, 1)
        size = pooled.shape[1:3]
        pooled = self.classes(pooled.flatten(1, 2).unflatten(0, (batch, -1)), guidance)
        pooled = pooled.flatten(0, 1).unflatten(1, size)
        if pooling > 1:
            pooled = F.interpolate(pooled.permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=True)
            pooled = pooled.permute(0, 2, 3, 1)
        return x + pooled

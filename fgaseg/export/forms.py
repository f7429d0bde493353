"""The ops as they are exported: plain ATen operations that hold for any number of images and classes and any grid.

The references of fgaseg.kernels define the ops; those here give the same numbers without reading a size while tracing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels._dispatch import reference_forms
from ..kernels.class_attention.reference import features
from ..kernels.kernel_softmax.reference import kernel_softmax_reference
from ..kernels.window_attention.reference import padded


class Forms:
    """The forms of one trace.

    present  [B, T] bool: classes that take part in the class attention; None: all of them
    """

    def __init__(self) -> None:
        self.present: Tensor | None = None

    @contextlib.contextmanager
    def used(self) -> Iterator[Forms]:
        """Inside the block the ops run these forms, or their references."""
        own: dict[str, Callable[..., Any]] = {
            "class_summary": self.class_summary,
            "class_lookup": class_lookup,
            "lcs_conv_from_text": lcs_conv_from_text,
            "window_attention": window_attention,
        }
        with reference_forms(own):
            yield self

    def class_summary(
        self, k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int
    ) -> tuple[Tensor, Tensor]:
        """The sums over the present classes of images that have equally many rows."""
        images = offsets.shape[0] - 1
        keys = features(k, k_guidance, heads)
        keys, values = (x.unflatten(0, (images, -1)) for x in (keys, v.to(keys.dtype).unflatten(-1, (heads, -1))))
        if self.present is not None:  # what is left out may be NaN, which no factor of 0 would keep out
            keys, values = (torch.where(self.present[:, :, None, None, None], x, 0.0) for x in (keys, values))
        keys = keys.permute(0, 2, 3, 4, 1)  # [B, P, heads, d, T]
        return keys @ values.permute(0, 2, 3, 1, 4), keys.sum(-1)


def class_lookup(
    q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float
) -> Tensor:
    queries = features(q, q_guidance, heads).unflatten(0, (offsets.shape[0] - 1, -1))
    queries = queries.permute(0, 2, 3, 1, 4)  # [B, P, heads, T, d]
    weights = queries @ total[..., None] + eps
    out = queries @ summary / weights
    return out.permute(0, 3, 1, 2, 4).flatten(3).flatten(0, 1).to(q.dtype)


def lcs_conv_from_text(
    texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str
) -> Tensor:
    """A product of the kernels with the shifted pixels, side by side."""
    outputs = F.linear(texts, weight, bias)
    kernels = kernel_softmax_reference(outputs[..., :-1], kernel_size, norm)
    height, width = pixels.shape[2:]
    around = F.pad(pixels, (kernel_size // 2,) * 4)
    shifted = [around[:, :, y : y + height, x : x + width] for y in range(kernel_size) for x in range(kernel_size)]
    columns = torch.stack(shifted, dim=2).flatten(3).flatten(1, 2)  # [B, C*K*K, H*W]
    return (kernels.flatten(2) @ columns).unflatten(2, (height, width)) + outputs[..., -1][..., None, None]


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor, heads: int, window: int, shift: int
) -> Tensor:
    """A grid that is not larger than the window is one window as wide as its smaller side, without a shift.

    Windows are gathered by index: padding repeats the last pixel and is masked, a shift rotates the indices.
    """
    images, height, width, channels = q_guidance.shape
    smaller = torch.sym_min(height, width)
    shift = cast(int, shift * torch.sym_min(torch.sym_max(smaller - window, 0), 1))
    window = cast(int, torch.sym_min(window, smaller))
    tall, wide = padded(height, window), padded(width, window)
    down, along = rotated(tall, tall, shift, q.device), rotated(wide, wide, shift, q.device)
    rows, columns = down.clamp(max=height - 1), along.clamp(max=width - 1)

    def windows(x: Tensor) -> Tensor:  # [N, H, W, D] -> [N, windows, heads, window*window, d]
        x = x.index_select(1, rows).index_select(2, columns)
        x = x.reshape(-1, tall // window, window, wide // window, window, heads, channels // heads)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 2)

    def guided(x: Tensor, guidance: Tensor) -> Tensor:
        return (x.unflatten(0, (images, -1)) + guidance[:, None]).flatten(0, 1)

    mask = window_mask(down, along, (height, width), window, shift).to(q.dtype)
    q, k, v = windows(guided(q, q_guidance)), windows(guided(k, k_guidance)), windows(v)
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + mask).softmax(-1)
    y = (weights @ v).unflatten(3, (window, window)).unflatten(1, (tall // window, wide // window))
    y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, tall, wide, channels)
    y = y.index_select(1, rotated(height, tall, tall - shift, q.device))
    return y.index_select(2, rotated(width, wide, wide - shift, q.device))


def rotated(count: int, size: int, by: int, device: torch.device) -> Tensor:
    """(i + by) modulo size for i below count, 0 <= by <= size. ONNX has no remainder by a size."""
    moved = torch.arange(count, device=device) + by
    return torch.where(moved < size, moved, moved - size)


def window_mask(down: Tensor, along: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """What is added to the scores, [windows, 1, window*window, window*window]: -inf for keys that are padding, -100
    between pixels of which only one was rolled over an edge. down, along: the pixels of the rolled grid."""
    wrapped = (down < shift).long()[:, None] * 2 + (along < shift).long()
    valid = (down < grid[0])[:, None] & (along < grid[1])

    def windows(x: Tensor) -> Tensor:
        x = x.unflatten(0, (-1, window)).unflatten(2, (-1, window))
        return x.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)

    region, keys = windows(wrapped), windows(valid)
    apart = torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)
    return apart.masked_fill(~keys[:, None, :], float("-inf"))[:, None]

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
            "lcs_conv": lcs_conv,
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


def lcs_conv(pixels: Tensor, kernel_logits: Tensor, bias: Tensor, kernel_size: int, norm: str) -> Tensor:
    """A product of the kernels with the shifted pixels, side by side."""
    kernels = kernel_softmax_reference(kernel_logits, kernel_size, norm)
    height, width = pixels.shape[2:]
    around = F.pad(pixels, (kernel_size // 2,) * 4)
    shifted = [around[:, :, y : y + height, x : x + width] for y in range(kernel_size) for x in range(kernel_size)]
    columns = torch.stack(shifted, dim=2).flatten(3).flatten(1, 2)  # [B, C*K*K, H*W]
    return (kernels.flatten(2) @ columns).unflatten(2, (height, width)) + bias[..., None, None]


def lcs_conv_from_text(
    texts: Tensor, weight: Tensor, bias: Tensor, pixels: Tensor, kernel_size: int, norm: str
) -> Tensor:
    outputs = F.linear(texts, weight, bias)
    return lcs_conv(pixels, outputs[..., :-1], outputs[..., -1], kernel_size, norm)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor, heads: int, window: int, shift: int
) -> Tensor:
    """A grid that is not larger than the window is one window as wide as its smaller side, without a shift.

    Pixels are gathered into windows by index, and back. Padding repeats a pixel of the edge and is masked.
    """
    images, height, width, _ = q_guidance.shape
    smaller = torch.sym_min(height, width)
    shift = cast(int, shift * torch.sym_min(torch.sym_max(smaller - window, 0), 1))
    window = cast(int, torch.sym_min(window, smaller))
    down, along = padded(height, window) // window, padded(width, window) // window
    rows, columns = rolled(down, window, shift, q.device)[:, None, :, None], rolled(along, window, shift, q.device)
    columns = columns[:, None]  # with the rows [down, along, window, window]
    pixels = flat(rows.clamp(max=height - 1) * width + columns.clamp(max=width - 1)).flatten()
    mask = window_mask(rows, columns, (height, width), shift).to(q.dtype)

    def guided(x: Tensor, guidance: Tensor) -> Tensor:
        return (x.unflatten(0, (images, -1)) + guidance[:, None]).flatten(0, 1)

    def windows(x: Tensor) -> Tensor:  # [N, H, W, D] -> [N, windows, heads, window*window, d]
        x = x.flatten(1, 2).index_select(1, pixels).unflatten(-1, (heads, -1))
        return x.unflatten(1, (down * along, window * window)).transpose(2, 3)

    q, k, v = windows(guided(q, q_guidance)), windows(guided(k, k_guidance)), windows(v)
    weights = (q @ k.mT * q.shape[-1] ** -0.5 + mask).softmax(-1)
    y = (weights @ v).transpose(2, 3).flatten(3).flatten(1, 2)
    places = torch.arange(down * along * window * window, device=q.device).view(down, along, window, window)
    places = places.transpose(1, 2).flatten(2).flatten(0, 1)  # of the rolled grid's pixels among those of the windows
    places = places.index_select(0, rotated(height, down * window, shift, q.device))
    places = places.index_select(1, rotated(width, along * window, shift, q.device))
    return y.index_select(1, places.flatten()).unflatten(1, (height, width))


def rolled(count: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Which rows of the padded grid are in each window after it was rolled up by `shift`, [count, window]."""
    row = torch.arange(count, device=device)[:, None] * window + torch.arange(window, device=device) + shift
    return torch.where(row < count * window, row, row - count * window)


def rotated(count: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Where the first rows of a grid of `size` are after it was rolled up. ONNX has no remainder by a size."""
    row = torch.arange(count, device=device) - shift
    return torch.where(row >= 0, row, row + size)


def flat(x: Tensor) -> Tensor:
    """[down, along, window, window] to [windows, window*window]."""
    return x.flatten(2).flatten(0, 1)


def window_mask(rows: Tensor, columns: Tensor, grid: tuple[int, int], shift: int) -> Tensor:
    """What is added to the scores, [windows, 1, window*window, window*window]: -inf for keys that are padding, -100
    between pixels of which only one was rolled over an edge."""
    region = flat((rows < shift).long() * 2 + (columns < shift).long())
    apart = torch.where(region[:, :, None] == region[:, None, :], 0.0, -100.0)
    padding = flat((rows >= grid[0]) | (columns >= grid[1]))
    return apart.masked_fill(padding[:, None, :], float("-inf"))[:, None]

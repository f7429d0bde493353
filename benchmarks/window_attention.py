"""window_attention against PyTorch's own attention and FlexAttention, with the released model's windows.

The reference copies (guided, padded and rolled) and calls scaled_dot_product_attention with an additive mask;
FlexAttention gets the same copies and the regions of a shifted window as its mask, which is built once.
Read: q, k and v, N*H*W*D elements each; written: as many. Operations: 4*window^2*N*H*W*D.
"""

from functools import cache
from typing import NamedTuple

import pytest
import torch
from shapes import DEVICE, providers
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from fgaseg.kernels import window_attention
from fgaseg.kernels.window_attention.reference import in_windows, padded, rolled, window_attention_reference

HEADS, SIZE, WINDOW = 4, 32, 12


class Maps(NamedTuple):
    """T classes of one image on a grid of H×W."""

    t: int
    h: int
    w: int
    shift: int


SHAPES = {
    "small": Maps(1, 13, 12, 6),  # padded to 24x12
    **{f"T={t} shift={shift}": Maps(t, 24, 24, shift) for t in (20, 150) for shift in (0, 6)},
    "T=20 48x48 shift=6": Maps(20, 48, 48, 6),
    "T=20 40x30 shift=6": Maps(20, 40, 30, 6),  # padded to 48x36
}


@cache
def regions_mask(height: int, width: int, shift: int, device: str) -> BlockMask:
    """Which keys of a window a query sees: those that lie in its region of the map, or beyond the map as it does."""
    tall, wide = padded(height, WINDOW), padded(width, WINDOW)
    y, x = torch.arange(tall, device=device)[:, None], torch.arange(wide, device=device)
    region = torch.where((y < height) & (x < width), 2 * (y < shift).long() + (x < shift), 4)
    region = in_windows(rolled(region[None, :, :, None], WINDOW, shift), WINDOW, 1)[0, ..., 0]

    def seen(window, head, query, key):
        return region[window, query] == region[window, key]

    return create_block_mask(seen, len(region), None, WINDOW**2, WINDOW**2, device=device)


@cache
def compiled_flex_attention():
    return torch.compile(flex_attention, dynamic=False) if DEVICE == "cuda" else flex_attention


def by_flex_attention(q, k, v, q_guidance, k_guidance, shift: int):
    """window_attention of one image [T, H, W, D]; windows are FlexAttention's batch, classes and heads its heads."""
    t, height, width, channels = q.shape
    down, across = padded(height, WINDOW) // WINDOW, padded(width, WINDOW) // WINDOW
    windows = [
        in_windows(rolled(part, WINDOW, shift), WINDOW, HEADS)
        .unflatten(1, (-1, HEADS))
        .transpose(0, 1)
        .flatten(1, 2)
        .contiguous()
        for part in (q + q_guidance, k + k_guidance, v)
    ]
    masked = shift or (height, width) != (down * WINDOW, across * WINDOW)
    mask = regions_mask(height, width, shift, str(q.device)) if masked else None
    y = compiled_flex_attention()(*windows, block_mask=mask)
    y = y.reshape(down, across, t, HEADS, WINDOW, WINDOW, SIZE).permute(2, 0, 4, 1, 5, 3, 6)
    y = y.reshape(t, down * WINDOW, across * WINDOW, channels)
    return torch.roll(y, (shift, shift), (1, 2))[:, :height, :width].contiguous()


def form(provider: str, shift: int):
    """A function of one image [1, T, H, W, D]."""

    def attend(q, k, v, *guidance):
        rows = (x.flatten(0, 1) for x in (q, k, v))
        if provider == "FlexAttention":
            return by_flex_attention(*rows, *guidance, shift)[None]
        if provider == "torch.compile":
            return window_attention_reference(*rows, *guidance, HEADS, WINDOW, shift)[None]
        return window_attention(*rows, *guidance, HEADS, WINDOW, shift, backend=provider)[None]

    return attend


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", providers("window_attention", "FlexAttention"))
def test_window_attention(measure, new, shape, gradient, provider):
    if provider == "FlexAttention" and gradient and DEVICE != "cuda":
        pytest.skip(reason="FlexAttention has no gradient on a CPU")
    t, h, w, shift = SHAPES[shape]
    d = HEADS * SIZE
    inputs = [*(new(1, t, h, w, d) for _ in range(3)), *(new(1, h, w, d) for _ in range(2))]
    flops, elements = 4.0 * WINDOW**2 * t * h * w * d, 4 * t * h * w * d
    nbytes = elements * inputs[0].element_size()
    reference = form("reference", shift)
    measure("window_attention", shape, provider, form(provider, shift), reference, inputs, gradient, flops, nbytes)

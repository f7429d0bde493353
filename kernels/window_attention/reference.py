"""The definition of window_attention, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor, heads: int, window: int, shift: int
) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v in every window of the grid, which is padded and then rolled by -shift."""
    images, height, width, channels = q_guidance.shape
    classes = q.shape[0] // max(images, 1)

    def guided(x: Tensor, guidance: Tensor) -> Tensor:
        return (x.unflatten(0, (images, classes)) + guidance[:, None]).flatten(0, 1)

    q, k, v = (
        in_windows(rolled(x, window, shift), window, heads)
        for x in (guided(q, q_guidance), guided(k, k_guidance), v)
    )  # fmt: skip
    mask = window_mask((height, width), window, shift, q.device)
    if mask is not None:  # windows and heads share one axis, so one mask serves all rows
        mask = mask.repeat_interleave(heads, dim=0)[None].to(q.dtype)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    tall, wide = padded(height, window), padded(width, window)
    y = y.reshape(len(y), tall // window, wide // window, heads, window, window, y.shape[-1])
    y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(y), tall, wide, channels)
    if shift:
        y = torch.roll(y, (shift, shift), (1, 2))
    return y[:, :height, :width].contiguous()


def padded(n: int, window: int) -> int:
    return (n + window - 1) // window * window


def rolled(x: Tensor, window: int, shift: int) -> Tensor:
    """x [N, H, W, D], padded with zeros below and on the right to whole windows, then rolled up and left by shift."""
    below, right = (padded(n, window) - n for n in x.shape[1:3])
    if below or right:
        x = F.pad(x, (0, 0, 0, right, 0, below))
    return torch.roll(x, (-shift, -shift), (1, 2)) if shift else x


def in_windows(x: Tensor, window: int, heads: int) -> Tensor:
    """[N, H, W, heads*d] -> [N, H/window * W/window * heads, window*window, d]"""
    rows, height, width, channels = x.shape
    x = x.reshape(rows, height // window, window, width // window, window, heads, channels // heads)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 3)


def window_mask(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor | None:
    """The mask that is added to the scores, [windows, window*window queries, window*window keys]; None for no mask.

    It is -inf for keys that are padding and -100 between regions that only the shift brought together (as in Swin).
    """
    sizes = [padded(n, window) for n in grid]
    if shift == 0 and sizes == list(grid):
        return None
    wrapped = [(torch.arange(n, device=device) < shift).long() for n in sizes]  # rolled over the top or left edge
    region = 2 * wrapped[0][:, None] + wrapped[1]
    valid = torch.ones(grid, dtype=torch.long, device=device)
    regions, keys = (
        in_windows(rolled(x[None, :, :, None], window, shift), window, 1)[0, ..., 0] for x in (region, valid)
    )
    mask = torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)
    return mask.masked_fill(keys[:, None, :] == 0, float("-inf"))

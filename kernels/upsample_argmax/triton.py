"""upsample_argmax and upsample_argmax_windows on a GPU, in Triton.

A program owns neighbouring pixels of the result and walks the classes with the winner in registers: four numbers of a
map a pixel and class, which lie in a few lines of the first-level cache, as a row of the result reads two short rows.
Floor: the maps read once (T=150, 96x96, bf16: 2.8 MB) and 12 bytes a pixel written; 7 operations a pixel and class and
the loads' throughput are above it.

The windowed form goes through the frame: nested, a pixel of the photo would take four pixels of the frame, each of them
up to 8 sigmoids and 32 loads. So the averaged scores of CLASSES classes are written to a buffer, and the first kernel
goes on with the winners so far. CLASSES = 16 frames of 640x640 are 26 MB, in the second-level cache of an H100.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import TYPES, Configuration

BLOCK = 256  # pixels: two a thread, so that the loads of two are under way
CLASSES = 16


@triton.jit
def _neighbours(i, source, target, scale):
    """Which two of `source` numbers the i-th of `target` lies between, and the second one's weight (op.py)."""
    at = tl.maximum(scale * (i.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(at.to(tl.int32), source - 1)
    second = tl.minimum(first + (source != target).to(tl.int32), source - 1)
    return first.to(tl.int64), second.to(tl.int64), tl.minimum(at - first.to(tl.float32), 1.0)


@triton.jit
def _between(map, top, bottom, weight_y, left, right, weight_x, inside):
    """The bilinear mix of four numbers; top and bottom are offsets of rows, left and right of columns."""
    a = (1 - weight_x) * tl.load(map + top + left, inside, other=0).to(tl.float32)
    a += weight_x * tl.load(map + top + right, inside, other=0).to(tl.float32)
    b = (1 - weight_x) * tl.load(map + bottom + left, inside, other=0).to(tl.float32)
    b += weight_x * tl.load(map + bottom + right, inside, other=0).to(tl.float32)
    return (1 - weight_y) * a + weight_y * b


@triton.jit(do_not_specialize=["before", "classes", "h", "w", "height", "width", "scale_y", "scale_x"])
def _upsample_argmax(
    maps,
    labels,
    scores,
    totals,
    before,
    classes,
    h,
    w,
    height,
    width,
    scale_y,
    scale_x,
    stride_image,
    stride_class,
    stride_y,
    stride_x,
    TOTAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Goes on with the winners of the `before` classes that came before these."""
    blocks = tl.cdiv(height * width, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    top, bottom, weight_y = _neighbours(pixel // width, h, height, scale_y)
    left, right, weight_x = _neighbours(pixel % width, w, width, scale_x)
    top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
    maps += image * stride_image
    to = image * height * width + pixel
    resumed = tl.where(before > 0, inside, False)
    best = tl.load(scores + to, resumed, other=float("-inf"))
    label = tl.load(labels + to, resumed, other=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(0, classes):
        x = _between(maps, top, bottom, weight_y, left, right, weight_x, inside)
        wins = (x > best) | ((x != x) & (best == best))  # a NaN wins, the first one
        if TOTAL:
            below = tl.where(wins, best - x, x - best)
            e = tl.where(below <= 0, tl.exp(below), 0.0)
            total = tl.where(wins, total * e + 1, total + e)
        best = tl.where(wins, x, best)
        label = tl.where(wins, (before + t).to(tl.int64), label)
        maps += stride_class
    tl.store(labels + to, label, inside)
    tl.store(scores + to, best, inside)
    if TOTAL:  # NaN where the winner is infinite or NaN, as the sum written out would be
        tl.store(totals + to, tl.where(tl.abs(best) < float("inf"), total, float("nan")), inside)


@triton.jit
def _score(map, y, x, h, w, window, scale_y, scale_x, stride_y, stride_x, inside, SIGMOID: tl.constexpr):
    """A view's score at pixel (y, x) of its window."""
    top, bottom, weight_y = _neighbours(y, h, window, scale_y)
    left, right, weight_x = _neighbours(x, w, window, scale_x)
    logit = _between(
        map, top * stride_y, bottom * stride_y, weight_y, left * stride_x, right * stride_x, weight_x, inside
    )
    return tl.sigmoid(logit) if SIGMOID else logit


@triton.jit(do_not_specialize=["h", "w", "side", "window", "stride", "scale_y", "scale_x", "scale_frame"])
def _upsample_argmax_frame(
    logits,
    frames,
    h,
    w,
    side,
    window,
    stride,
    scale_y,
    scale_x,
    scale_frame,
    stride_view,
    stride_class,
    stride_y,
    stride_x,
    SIGMOID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """frames [classes, frame, frame]: the mean of the crops' average and the global view."""
    frame = (side - 1) * stride + window
    blocks = tl.cdiv(frame * frame, BLOCK)
    of_class = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < frame * frame
    y, x = pixel // frame, pixel % frame
    logits += of_class * stride_class
    total = tl.zeros((BLOCK,), tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    for view in range(0, side * side):
        tile_y, tile_x = y - view // side * stride, x - view % side * stride
        covered = inside & (tile_y >= 0) & (tile_y < window) & (tile_x >= 0) & (tile_x < window)
        score = _score(logits, tile_y, tile_x, h, w, window, scale_y, scale_x, stride_y, stride_x, covered, SIGMOID)
        total += tl.where(covered, score, 0.0)
        count += covered.to(tl.float32)
        logits += stride_view
    top, bottom, weight_y = _neighbours(y, window, frame, scale_frame)
    left, right, weight_x = _neighbours(x, window, frame, scale_frame)
    whole = tl.zeros((BLOCK,), tl.float32)
    for corner in range(0, 4):  # a loop, so that one tile's addresses at a time are in registers
        tile_y, tile_x = tl.where(corner < 2, top, bottom), tl.where(corner % 2 == 0, left, right)
        weight = tl.where(corner < 2, 1 - weight_y, weight_y) * tl.where(corner % 2 == 0, 1 - weight_x, weight_x)
        whole += weight * _score(
            logits, tile_y, tile_x, h, w, window, scale_y, scale_x, stride_y, stride_x, inside, SIGMOID
        )
    crops = total / tl.maximum(count, 1.0)  # 0 only beyond the frame
    tl.store(frames + of_class * frame * frame + pixel, (crops + whole) / 2, inside)


def _walk(maps: Tensor, before: int, labels: Tensor, scores: Tensor, totals: Tensor) -> None:
    batch, height, width = labels.shape
    classes, h, w = maps.shape[1:]
    sizes = (before, classes, h, w, height, width, h / height, w / width)
    grid = (batch * triton.cdiv(height * width, BLOCK),)
    if labels.numel():
        _upsample_argmax[grid](
            maps, labels, scores, totals, *sizes, *maps.stride(), TOTAL=totals.numel() > 0, BLOCK=BLOCK
        )


def upsample_argmax(maps: Tensor, height: int, width: int, total: bool) -> tuple[Tensor, Tensor, Tensor]:
    labels = maps.new_empty(maps.shape[0], height, width, dtype=torch.int64)
    scores = maps.new_empty(labels.shape, dtype=torch.float32)
    totals = maps.new_empty(maps.shape[0] if total else 0, height, width, dtype=torch.float32)
    _walk(maps, 0, labels, scores, totals)
    return labels, scores, totals


def upsample_argmax_windows(
    logits: Tensor, side: int, window: int, stride: int, height: int, width: int, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    classes, h, w = logits.shape[1:]
    frame = (side - 1) * stride + window
    labels = logits.new_empty(1, height, width, dtype=torch.int64)
    scores = logits.new_empty(labels.shape, dtype=torch.float32)
    frames = logits.new_empty(1, min(classes, CLASSES), frame, frame, dtype=torch.float32)
    sizes = (h, w, side, window, stride, h / window, w / window, window / frame)
    for before in range(0, classes, CLASSES):
        part = logits[:, before : before + CLASSES]
        grid = (part.shape[1] * triton.cdiv(frame * frame, BLOCK),)
        _upsample_argmax_frame[grid](part, frames, *sizes, *part.stride(), SIGMOID=sigmoid, BLOCK=BLOCK)
        _walk(frames[:, : part.shape[1]], before, labels, scores, scores[:0])
    return labels[0], scores[0]


def configurations() -> Iterator[Configuration]:
    """Both kernels for every type, with total and without, with sigmoid and without. A stride of 1 is a constant."""
    sizes = ["before", "classes", "h", "w", "height", "width"]
    strides = dict.fromkeys(["stride_class", "stride_y"], "i64")
    for kind in TYPES.values():
        for total in (False, True):
            signature = {"maps": "*" + kind, "labels": "*i64", "scores": "*fp32", "totals": "*fp32"}
            signature |= dict.fromkeys(sizes, "i32") | dict.fromkeys(["scale_y", "scale_x"], "fp32")
            signature |= {"stride_image": "i64"} | strides
            constants = {"stride_x": 1, "TOTAL": total, "BLOCK": BLOCK}
            yield Configuration(f"{kind} total" if total else kind, _upsample_argmax, signature, constants)
        for sigmoid in (False, True):
            signature = {"logits": "*" + kind, "frames": "*fp32"}
            signature |= dict.fromkeys(["h", "w", "side", "window", "stride"], "i32")
            signature |= dict.fromkeys(["scale_y", "scale_x", "scale_frame"], "fp32")
            signature |= {"stride_view": "i64"} | strides
            constants = {"stride_x": 1, "SIGMOID": sigmoid, "BLOCK": BLOCK}
            yield Configuration(f"{kind} sigmoid" if sigmoid else kind, _upsample_argmax_frame, signature, constants)

"""upsample_argmax and upsample_argmax_windows on a GPU, in Triton.

A program owns adjacent pixels of the result and loops over the classes with the winner in registers: per pixel and
class it reads four elements of a map, which lie in a few lines of the first-level cache, as a row of the result reads
two short rows.

The windowed form goes through the frame: if the two resizings were nested, a pixel of the photo would need four pixels
of the frame, each of them up to 8 sigmoids and 32 loads. So the averaged scores of CLASSES classes are written to a
buffer, and the first kernel continues with the winners so far.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, far_apart, launch, recorded, strides

BLOCK = 256  # pixels: two a thread, so that the loads of two are in flight
CLASSES = 16  # with frames of 640x640, a buffer of 26 MB: it stays in the second-level cache of an H100


@triton.jit
def _neighbours(i, source, target, scale):
    """The two of `source` elements that element i of `target` lies between, and the second one's weight (op.py)."""
    position = tl.maximum(scale * (i.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), source - 1)
    second = tl.minimum(first + (source != target).to(tl.int32), source - 1)
    return first.to(tl.int64), second.to(tl.int64), tl.minimum(position - first.to(tl.float32), 1.0)


@triton.jit
def _interpolate(map, top, bottom, weight_y, left, right, weight_x, inside):
    """Bilinear interpolation; top and bottom are offsets of rows, left and right of columns."""
    a = (1 - weight_x) * tl.load(map + top + left, inside, other=0).to(tl.float32)
    a += weight_x * tl.load(map + top + right, inside, other=0).to(tl.float32)
    b = (1 - weight_x) * tl.load(map + bottom + left, inside, other=0).to(tl.float32)
    b += weight_x * tl.load(map + bottom + right, inside, other=0).to(tl.float32)
    return (1 - weight_y) * a + weight_y * b


@triton.jit(do_not_specialize=["before", "classes", "h", "w", "height", "width", "scale_y", "scale_x"])
def _upsample_argmax(
    maps, labels, scores, totals, before, classes, h, w, height, width, scale_y, scale_x,
    stride_image, stride_class, stride_y, stride_x, TOTAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The winners among these classes and the `before` classes that precede them, whose winners are in the results."""
    blocks = tl.cdiv(height * width, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    top, bottom, weight_y = _neighbours(pixel // width, h, height, scale_y)
    left, right, weight_x = _neighbours(pixel % width, w, width, scale_x)
    top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
    maps += image * stride_image
    output = image * height * width + pixel
    resumed = tl.where(before > 0, inside, False)
    best = tl.load(scores + output, resumed, other=float("-inf"))
    label = tl.load(labels + output, resumed, other=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(0, classes):
        x = _interpolate(maps, top, bottom, weight_y, left, right, weight_x, inside)
        wins = (x > best) | ((x != x) & (best == best))  # the first NaN wins
        if TOTAL:
            below = tl.where(wins, best - x, x - best)
            e = tl.where(below <= 0, tl.exp(below), 0.0)
            total = tl.where(wins, total * e + 1, total + e)
        best = tl.where(wins, x, best)
        label = tl.where(wins, (before + t).to(tl.int64), label)
        maps += stride_class
    tl.store(labels + output, label, inside)
    tl.store(scores + output, best, inside)
    if TOTAL:  # NaN where the winner is infinite or NaN, as sum_t exp(up - scores) is
        tl.store(totals + output, tl.where(tl.abs(best) < float("inf"), total, float("nan")), inside)


@triton.jit
def _score(map, y, x, h, w, window, scale_y, scale_x, stride_y, stride_x, inside, SIGMOID: tl.constexpr):
    """A view's score at pixel (y, x) of its window."""
    top, bottom, weight_y = _neighbours(y, h, window, scale_y)
    left, right, weight_x = _neighbours(x, w, window, scale_x)
    logit = _interpolate(
        map, top * stride_y, bottom * stride_y, weight_y, left * stride_x, right * stride_x, weight_x, inside
    )
    return tl.sigmoid(logit) if SIGMOID else logit


@triton.jit(do_not_specialize=["h", "w", "side", "window", "stride", "scale_y", "scale_x", "scale_frame"])
def _upsample_argmax_frame(
    logits, frames, h, w, side, window, stride, scale_y, scale_x, scale_frame,
    stride_view, stride_class, stride_y, stride_x, SIGMOID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """frames [classes, frame, frame]: the mean of the crops' average and the global view."""
    frame = (side - 1) * stride + window
    blocks = tl.cdiv(frame * frame, BLOCK)
    class_ = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < frame * frame
    y, x = pixel // frame, pixel % frame
    logits += class_ * stride_class
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
    for corner in range(0, 4):  # a loop, so that registers hold the addresses of one tile at a time
        tile_y, tile_x = tl.where(corner < 2, top, bottom), tl.where(corner % 2 == 0, left, right)
        weight = tl.where(corner < 2, 1 - weight_y, weight_y) * tl.where(corner % 2 == 0, 1 - weight_x, weight_x)
        whole += weight * _score(
            logits, tile_y, tile_x, h, w, window, scale_y, scale_x, stride_y, stride_x, inside, SIGMOID
        )
    crops = total / tl.maximum(count, 1.0)  # the count is 0 only outside the frame
    tl.store(frames + class_ * frame * frame + pixel, (crops + whole) / 2, inside)


def _argmax(maps: Tensor, before: int, labels: Tensor, scores: Tensor, totals: Tensor) -> None:
    """Updates labels and scores [B, H, W], which hold the winners of `before` classes, with maps [B, T, h, w]."""
    batch, height, width = labels.shape
    classes, h, w = maps.shape[1:]
    call = {
        **dict(maps=maps, labels=labels, scores=scores, totals=totals, before=before, classes=classes),
        **dict(h=h, w=w, height=height, width=width, scale_y=h / height, scale_x=w / width),
        **strides(maps, "stride_image", "stride_class", "stride_y", "stride_x"),
        **dict(TOTAL=totals.numel() > 0, BLOCK=BLOCK),
    }
    if labels.numel():
        launch(_upsample_argmax, batch * triton.cdiv(height * width, BLOCK), call)


def _average(logits: Tensor, frames: Tensor, side: int, window: int, stride: int, sigmoid: bool) -> None:
    """Fills frames [T, frame, frame] from logits [side * side + 1, T, h, w]."""
    classes, h, w = logits.shape[1:]
    frame = frames.shape[-1]
    call = {
        **dict(logits=logits, frames=frames, h=h, w=w, side=side, window=window, stride=stride),
        **dict(scale_y=h / window, scale_x=w / window, scale_frame=window / frame),
        **strides(logits, "stride_view", "stride_class", "stride_y", "stride_x"),
        **dict(SIGMOID=sigmoid, BLOCK=BLOCK),
    }
    launch(_upsample_argmax_frame, classes * triton.cdiv(frame * frame, BLOCK), call)


def upsample_argmax(maps: Tensor, height: int, width: int, total: bool) -> tuple[Tensor, Tensor, Tensor]:
    labels = maps.new_empty(maps.shape[0], height, width, dtype=torch.int64)
    scores = maps.new_empty(labels.shape, dtype=torch.float32)
    totals = maps.new_empty(maps.shape[0] if total else 0, height, width, dtype=torch.float32)
    _argmax(maps, 0, labels, scores, totals)
    return labels, scores, totals


def upsample_argmax_windows(
    logits: Tensor, side: int, window: int, stride: int, height: int, width: int, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    classes = logits.shape[1]
    frame = (side - 1) * stride + window
    labels = logits.new_empty(1, height, width, dtype=torch.int64)
    scores = logits.new_empty(labels.shape, dtype=torch.float32)
    frames = logits.new_empty(1, min(classes, CLASSES), frame, frame, dtype=torch.float32)
    for before in range(0, classes, CLASSES):
        part = logits[:, before : before + CLASSES]
        _average(part, frames[0], side, window, stride, sigmoid)
        _argmax(frames[:, : part.shape[1]], before, labels, scores, scores[:0])
    return labels[0], scores[0]


def configurations() -> Iterator[Configuration]:
    """Both kernels for every type, with total and without, with sigmoid and without."""
    frames = torch.empty(16, 640, 640, device="meta")
    for (dtype, name), switch in product(FLOATS.items(), (False, True)):
        maps = far_apart(5, 150, 96, 96, dtype=dtype)
        for one in recorded(upsample_argmax, maps, 480, 640, switch):
            yield Configuration(f"{name} total" if switch else name, one)
        for one in recorded(_average, maps, frames, 2, 384, 256, switch):
            yield Configuration(f"{name} sigmoid" if switch else name, one)

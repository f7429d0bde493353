"""upsample_argmax and upsample_argmax_windows on a GPU, in Triton.

A program owns a tile of the result and loops over the classes with the winner in registers: per pixel and class it
reads four elements of a map, which lie in a few lines of the first-level cache, as a row of the result reads two short
rows. The rows cannot be interpolated once for all pixels that need them, as in CUDA (csrc/upsample_argmax/kernel.cu):
that takes exchanges between threads that Triton does not have.

The windowed form goes through the frame: if the two resizings were nested, a pixel of the photo would need four pixels
of the frame, each of them up to 8 sigmoids and 32 loads. So the averaged scores of CLASSES classes are written to a
buffer, and the first kernel continues with the winners so far. The global view is activated once, by the same kernel,
before it is interpolated. Most tiles of the frame are covered by the same crops everywhere, and only those are read.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, far_apart, launch, planned, recorded

TILE_Y, TILE_X = 8, 32  # pixels: two a thread, so that the loads of two are in flight
CLASSES = 16  # with frames of 640x640, a buffer of 26 MB: it stays in the second-level cache of an H100


@triton.jit
def _tile(height, width, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """This program's image (or class) and the first row and column of its tile."""
    across, down = tl.cdiv(width, TILE_X), tl.cdiv(height, TILE_Y)
    tile = tl.program_id(0) // across
    return (tile // down).to(tl.int64), tile % down * TILE_Y, tl.program_id(0) % across * TILE_X


@triton.jit
def _neighbours(i, source, target, scale):
    """The two of `source` elements that element i of `target` lies between, and the second one's weight (op.py)."""
    position = tl.maximum(scale * (i.to(tl.float32) + 0.5) - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), source - 1)
    second = tl.minimum(first + (source != target).to(tl.int32), source - 1)
    return first.to(tl.int64), second.to(tl.int64), tl.minimum(position - first.to(tl.float32), 1.0)


@triton.jit
def _interpolate(map, top, bottom, weight_y, left, right, weight_x):
    """Bilinear interpolation; top and bottom are offsets of rows, left and right of columns."""
    a = (1 - weight_x) * tl.load(map + top + left).to(tl.float32)
    a += weight_x * tl.load(map + top + right).to(tl.float32)
    b = (1 - weight_x) * tl.load(map + bottom + left).to(tl.float32)
    b += weight_x * tl.load(map + bottom + right).to(tl.float32)
    return (1 - weight_y) * a + weight_y * b


@triton.jit(do_not_specialize=["before", "classes", "h", "w", "height", "width", "scale_y", "scale_x"])
def _upsample_argmax(
    maps, labels, scores, totals, before, classes, h, w, height, width, scale_y, scale_x,
    stride_image, stride_class, stride_y, stride_x,
    TOTAL: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """The winners among these classes and the `before` classes that precede them, whose winners are in the results."""
    image, y, x = _tile(height, width, TILE_Y, TILE_X)
    y += tl.arange(0, TILE_Y * TILE_X) // TILE_X
    x += tl.arange(0, TILE_Y * TILE_X) % TILE_X
    inside = (y < height) & (x < width)
    y, x = tl.minimum(y, height - 1), tl.minimum(x, width - 1)  # so that loads need no mask
    output = (image * height + y) * width + x
    top, bottom, weight_y = _neighbours(y, h, height, scale_y)
    left, right, weight_x = _neighbours(x, w, width, scale_x)
    top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
    maps += image * stride_image
    resumed = tl.where(before > 0, inside, False)
    best = tl.load(scores + output, resumed, other=float("-inf"))
    label = tl.load(labels + output, resumed, other=0).to(tl.int32)
    total = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    for t in range(0, classes):
        value = _interpolate(maps, top, bottom, weight_y, left, right, weight_x)
        wins = (value > best) | ((value != value) & (best == best))  # the first NaN wins
        if TOTAL:
            below = tl.where(wins, best - value, value - best)
            e = tl.where(below <= 0, tl.exp(below), 0.0)
            total = tl.where(wins, total * e + 1, total + e)
        best = tl.where(wins, value, best)
        label = tl.where(wins, before + t, label)
        maps += stride_class
    tl.store(labels + output, label.to(tl.int64), inside)
    tl.store(scores + output, best, inside)
    if TOTAL:  # NaN where the winner is infinite or NaN, as sum_t exp(up - scores) is
        tl.store(totals + output, tl.where(tl.abs(best) < float("inf"), total, float("nan")), inside)


@triton.jit(do_not_specialize=["h", "w", "side", "window", "stride", "scale_y", "scale_x", "scale_frame"])
def _upsample_argmax_frame(
    logits, whole, frames, h, w, side, window, stride, scale_y, scale_x, scale_frame,
    stride_view, stride_class, stride_y, stride_x,
    WHOLE: tl.constexpr, SIGMOID: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """frames [classes, frame, frame]: the average of the crops or, with WHOLE, its mean with the global view.

    whole [classes, window, window] holds the global view's scores.
    """
    frame = (side - 1) * stride + window
    class_, first_y, first_x = _tile(frame, frame, TILE_Y, TILE_X)
    y = first_y + tl.arange(0, TILE_Y * TILE_X) // TILE_X
    x = first_x + tl.arange(0, TILE_Y * TILE_X) % TILE_X
    inside = (y < frame) & (x < frame)
    y, x = tl.minimum(y, frame - 1), tl.minimum(x, frame - 1)
    logits += class_ * stride_class
    total = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    count = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    for view in range(0, side * side):
        crop_y, crop_x = view // side * stride, view % side * stride
        if (first_y + TILE_Y > crop_y) & (first_y < crop_y + window):
            if (first_x + TILE_X > crop_x) & (first_x < crop_x + window):
                covered = (y >= crop_y) & (y < crop_y + window) & (x >= crop_x) & (x < crop_x + window)
                tile_y = tl.minimum(tl.maximum(y - crop_y, 0), window - 1)
                tile_x = tl.minimum(tl.maximum(x - crop_x, 0), window - 1)
                top, bottom, weight_y = _neighbours(tile_y, h, window, scale_y)
                left, right, weight_x = _neighbours(tile_x, w, window, scale_x)
                top, bottom, left, right = top * stride_y, bottom * stride_y, left * stride_x, right * stride_x
                score = _interpolate(logits, top, bottom, weight_y, left, right, weight_x)
                if SIGMOID:
                    score = tl.sigmoid(score)
                total += tl.where(covered, score, 0.0)
                count += covered.to(tl.float32)
        logits += stride_view
    result = total / count
    if WHOLE:
        top, bottom, weight_y = _neighbours(y, window, frame, scale_frame)
        left, right, weight_x = _neighbours(x, window, frame, scale_frame)
        whole += class_ * window * window
        result = (result + _interpolate(whole, top * window, bottom * window, weight_y, left, right, weight_x)) / 2
    tl.store(frames + (class_ * frame + y) * frame + x, result, inside)


@planned
def _argmax_plan(maps: tuple[int, ...], places: tuple[int, ...], height: int, width: int) -> tuple[int, dict[str, Any]]:
    """The programs and all arguments but the tensors and `before`, for the sizes and strides of maps [B, T, h, w]."""
    batch, classes, h, w = maps
    image, class_, y, x = places
    return batch * _tiles(height, width), {
        **dict(classes=classes, h=h, w=w, height=height, width=width, scale_y=h / height, scale_x=w / width),
        **dict(stride_image=image, stride_class=class_, stride_y=y, stride_x=x, TILE_Y=TILE_Y, TILE_X=TILE_X),
    }


def _argmax(
    maps: Tensor, before: int, labels: Tensor, scores: Tensor, totals: Tensor | None, height: int, width: int
) -> None:
    """Updates labels and scores [B, H, W], which hold the winners of `before` classes, with maps [B, T, h, w]."""
    programs, shared = _argmax_plan(maps.shape, maps.stride(), height, width)
    results = {"labels": labels, "scores": scores, "totals": scores if totals is None else totals}
    if programs:
        call = {"maps": maps, **results, "before": before, "TOTAL": totals is not None, **shared}
        launch(_upsample_argmax, programs, call)


@planned
def _average_plan(
    logits: tuple[int, ...], places: tuple[int, ...], side: int, window: int, stride: int
) -> tuple[int, dict[str, Any]]:
    """The programs and all arguments but the tensors and switches, for the sizes and strides of the crops."""
    _, classes, h, w = logits
    view, class_, y, x = places
    frame = (side - 1) * stride + window
    return classes * _tiles(frame, frame), {
        **dict(h=h, w=w, side=side, window=window, stride=stride),
        **dict(scale_y=h / window, scale_x=w / window, scale_frame=window / frame),
        **dict(stride_view=view, stride_class=class_, stride_y=y, stride_x=x, TILE_Y=TILE_Y, TILE_X=TILE_X),
    }


def _average(
    logits: Tensor, whole: Tensor | None, frames: Tensor, side: int, window: int, stride: int, sigmoid: bool
) -> None:
    """Fills frames [T, frame, frame] from crops and, if given, whole [T, window, window].

    The crops are the first side * side of logits [V, T, h, w]; the frame's side is (side - 1) * stride + window.
    """
    programs, shared = _average_plan(logits.shape, logits.stride(), side, window, stride)
    tensors = {"logits": logits, "whole": frames if whole is None else whole, "frames": frames}
    call = {**tensors, **shared, "WHOLE": whole is not None, "SIGMOID": sigmoid}
    launch(_upsample_argmax_frame, programs, call)


def _tiles(height: int, width: int) -> int:
    return triton.cdiv(height, TILE_Y) * triton.cdiv(width, TILE_X)


def upsample_argmax(maps: Tensor, height: int, width: int, total: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch = maps.shape[0]
    labels = maps.new_empty(batch, height, width, dtype=torch.int64)
    scores = maps.new_empty(batch, height, width, dtype=torch.float32)
    totals = scores.new_empty(batch if total else 0, height, width)
    _argmax(maps, 0, labels, scores, totals if total else None, height, width)
    return labels, scores, totals


def upsample_argmax_windows(
    logits: Tensor, side: int, window: int, stride: int, height: int, width: int, sigmoid: bool
) -> tuple[Tensor, Tensor]:
    classes = logits.shape[1]
    frame = (side - 1) * stride + window
    labels = logits.new_empty(height, width, dtype=torch.int64)
    scores = logits.new_empty(height, width, dtype=torch.float32)
    whole = scores.new_empty(min(classes, CLASSES), window, window)
    frames = scores.new_empty(1, min(classes, CLASSES), frame, frame)
    for before in range(0, classes, CLASSES):
        part = logits if classes <= CLASSES else logits[:, before : before + CLASSES]
        _average(part[-1:], None, whole, 1, window, window, sigmoid)
        _average(part, whole, frames, side, window, stride, sigmoid)
        winners = frames if part.shape[1] == frames.shape[1] else frames[:, : part.shape[1]]
        _argmax(winners, before, labels, scores, None, height, width)
    return labels, scores


def configurations() -> Iterator[Configuration]:
    """Both kernels for every type and switch; "whole" is the activation of the global view."""
    whole = torch.empty(16, 384, 384, device="meta")
    frames = torch.empty(16, 640, 640, device="meta")
    for (dtype, name), switch in product(FLOATS.items(), (False, True)):
        maps = far_apart(5, 150, 96, 96, dtype=dtype)
        for one in recorded(upsample_argmax, maps, 480, 640, switch):
            yield Configuration(f"{name} total" if switch else name, one)
        for one in recorded(_average, maps, whole, frames, 2, 384, 256, switch):
            yield Configuration(f"{name} sigmoid" if switch else name, one)
        for one in recorded(_average, maps[-1:], None, whole, 1, 384, 384, switch):
            yield Configuration(f"{name} whole sigmoid" if switch else f"{name} whole", one)

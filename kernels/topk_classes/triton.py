"""topk_classes, gather_classes and scatter_classes on a GPU, in Triton.

topk_classes: a program takes all classes of 16 pixels. A score and its class become one integer key, unique within a
pixel: the score's bits, transformed so that they order like the score, above the class counted from the end, so that of
equal scores the lower class is larger; NaN and -inf become 0. The k-th largest key is found bit by bit: a bit stays set
if k keys are at least as large. That takes as many steps as a key has bits, 26 for bf16 at T = 847 and 42 for float32,
whatever k is, and needs no sorting and no lists. The first 1024 classes stay in registers; the others are read again in
every step, from cache. Marks are stores of one value, in any order.

Marks become rows by prefix sums, one program per image, each counting the marks before its own. The host waits once,
for the number of rows.

gather, scatter: one read and one write of what is kept; a scattered row finds its source by binary search in the
ascending rows, so each output is written once. Elements are copied as integers of their width, which keeps every bit of
any type. A row index that is out of range is not read: gather gives zeros for it, and no row of scatter looks for it.
"""

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, far_apart, launch, planned, recorded, strides

BLOCK_PIXELS = 16  # 32 bytes of a half type: a sector
STREAMED = 64  # classes that are read again together
BLOCK = 1024  # marks
COPIED = 4096  # elements a program copies: 16 a thread, one load of 16 bytes or more where rows are aligned
COPY_WARPS = 8
WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
KEY_BITS = {torch.float32: 32, torch.float16: 19, torch.bfloat16: 16}  # of a float32, those that a score can use


@triton.jit
def _keys(scores, offset, stride_class, inside, first, classes, KEY_BITS: tl.constexpr, CLASSES: tl.constexpr):
    """The keys [CLASSES, pixels] of the classes from `first` on."""
    class_ = (first + tl.arange(0, CLASSES))[:, None]
    inside = (class_ < classes) & inside[None, :]
    x = tl.load(scores + class_.to(tl.int64) * stride_class + offset[None, :], inside, other=float("-inf"))
    x = x.to(tl.float32)
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 0x80000000
    key = (ordered >> (32 - KEY_BITS)) * classes + (classes - 1 - class_)
    return tl.where(x > float("-inf"), key, 0)


@triton.jit
def _store_marks(marks, kept, first, classes, CLASSES: tl.constexpr):
    """Marks the classes that any pixel keeps; kept [CLASSES, pixels]."""
    class_ = first + tl.arange(0, CLASSES)
    kept = (tl.sum(kept.to(tl.int32), 1) > 0) & (class_ < classes)
    tl.store(marks + class_, tl.full((CLASSES,), 1, tl.int8), kept)


@triton.jit(do_not_specialize=["k", "classes", "pixels", "width", "bits"])
def _topk_classes_mark(
    scores, marks, k, classes, pixels, width, bits, stride_image, stride_class, stride_y, stride_x, stride_marks,
    KEY_BITS: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_PIXELS: tl.constexpr, STREAMED: tl.constexpr,
):  # fmt: skip
    """marks [images, classes]: 1 for every class that is among the k best of some pixel."""
    blocks = tl.cdiv(pixels, BLOCK_PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < pixels
    scores += image * stride_image
    marks += image * stride_marks
    offset = (pixel // width).to(tl.int64) * stride_y + (pixel % width).to(tl.int64) * stride_x
    keys = _keys(scores, offset, stride_class, inside, 0, classes, KEY_BITS, BLOCK_CLASSES)
    kth = tl.zeros((BLOCK_PIXELS,), tl.int64)
    one = tl.full((BLOCK_PIXELS,), 1, tl.int64)
    for step in range(0, bits):
        candidate = kth | (one << (bits - 1 - step))
        count = tl.sum((keys >= candidate[None, :]).to(tl.int32), 0)
        for first in range(BLOCK_CLASSES, classes, STREAMED):
            more = _keys(scores, offset, stride_class, inside, first, classes, KEY_BITS, STREAMED)
            count += tl.sum((more >= candidate[None, :]).to(tl.int32), 0)
        kth = tl.where(count >= k, candidate, kth)
    kth = tl.maximum(kth, 1)  # fewer than k scores are selectable: all of them
    _store_marks(marks, keys >= kth[None, :], 0, classes, BLOCK_CLASSES)
    for first in range(BLOCK_CLASSES, classes, STREAMED):
        more = _keys(scores, offset, stride_class, inside, first, classes, KEY_BITS, STREAMED)
        _store_marks(marks, more >= kth[None, :], first, classes, STREAMED)


@triton.jit(do_not_specialize=["classes", "marked"])
def _topk_classes_rows(marks, rows, counts, total, classes, marked, BLOCK: tl.constexpr):
    """From marks to rows. `marked` is the number of marks: those of every image, or of one that all images share."""
    start = tl.program_id(0).to(tl.int64) * classes
    before = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, start, BLOCK):
        row = first + tl.arange(0, BLOCK)
        before += tl.load(marks + row % marked, row < start, other=0).to(tl.int64)
    begin = tl.sum(before, 0)
    end = begin
    for first in range(0, classes, BLOCK):
        class_ = first + tl.arange(0, BLOCK)
        mark = tl.load(marks + (start + class_) % marked, class_ < classes, other=0).to(tl.int64)
        tl.store(rows + end + tl.cumsum(mark, 0) - 1, start + class_, mark != 0)
        end += tl.sum(mark, 0)
    tl.store(counts + tl.program_id(0), end - begin)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(total, end)


@triton.jit(do_not_specialize=["classes", "all_rows"])
def _topk_classes_gather(x, rows, y, classes, all_rows, size, stride_image, stride_class, stride, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    packed = (tl.program_id(0) // blocks).to(tl.int64)
    element = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + packed)
    x += row // classes * stride_image + row % classes * stride_class
    inside = tl.where((row >= 0) & (row < all_rows), element < size, False)
    tl.store(y + packed * size + element, tl.load(x + element * stride, inside, other=0), element < size)


@triton.jit(do_not_specialize=["packed_rows", "steps", "fill"])
def _topk_classes_scatter(y, rows, x, packed_rows, steps, size, stride_row, stride, fill, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    element = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((), tl.int64)
    high = low + packed_rows
    for _ in range(0, steps):  # finds the first packed row that is not below this one
        middle = (low + high) // 2
        below = (middle < high) & (tl.load(rows + middle, middle < high, other=0) < row)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    found = (low < packed_rows) & (tl.load(rows + low, low < packed_rows, other=-1) == row)
    value = tl.load(y + low * stride_row + element * stride, tl.where(found, element < size, False), other=0)
    tl.store(x + row * size + element, tl.where(found, value, fill.to(value.dtype)), element < size)


def _choice(dtype: torch.dtype, classes: int) -> tuple[dict[str, int], int]:
    """The constants and warps of the marking kernel: 32 keys a thread."""
    block, warps = (256, 4) if classes <= 256 else (1024, 16)
    sizes = {"BLOCK_CLASSES": block, "BLOCK_PIXELS": BLOCK_PIXELS, "STREAMED": STREAMED}
    return {"KEY_BITS": KEY_BITS[dtype], **sizes}, warps


@planned
def _mark_plan(sizes: tuple[int, ...], dtype: torch.dtype, k: int) -> tuple[int, dict[str, int], int]:
    """The programs of the marking kernel, all arguments but tensors and strides, and the warps."""
    batch, classes, height, width = sizes
    constants, warps = _choice(dtype, classes)
    bits = ((classes << constants["KEY_BITS"]) - 1).bit_length()  # of the largest key
    numbers = {"k": min(k, classes), "classes": classes, "pixels": height * width, "width": width, "bits": bits}
    return batch * triton.cdiv(height * width, BLOCK_PIXELS), {**numbers, **constants}, warps


def _mark(scores: Tensor, k: int, marks: Tensor) -> None:
    """Marks [B or 1, T] the classes that are among the k best of some pixel of scores [B, T, H, W]."""
    sizes = scores.shape
    programs, numbers, warps = _mark_plan(sizes, scores.dtype, k)
    places = strides(scores, "stride_image", "stride_class", "stride_y", "stride_x")
    places["stride_marks"] = sizes[1] if marks.shape[0] == sizes[0] else 0
    launch(_topk_classes_mark, programs, {"scores": scores, "marks": marks, **numbers, **places}, num_warps=warps)


def _rows(marks: Tensor, counts: Tensor, rows: Tensor, total: Tensor) -> None:
    """Fills counts [B], total [1] and the first `total` of rows [B*T]."""
    sizes = {"classes": marks.shape[1], "marked": marks.numel(), "BLOCK": BLOCK}
    call = {"marks": marks, "rows": rows, "counts": counts, "total": total, **sizes}
    launch(_topk_classes_rows, counts.shape[0], call)


def topk_classes(scores: Tensor, k: int, union: str) -> tuple[Tensor, Tensor]:
    batch, classes = scores.shape[:2]
    counts = scores.new_zeros(batch, dtype=torch.int64)
    if not scores.numel():
        return counts.new_empty(0), counts
    marks = scores.new_zeros(1 if union == "batch" else batch, classes, dtype=torch.int8)
    rows, total = counts.new_empty(batch * classes), counts.new_empty(1)
    _mark(scores, k, marks)
    _rows(marks, counts, rows, total)
    return rows[: total.item()], counts  # the host waits here


def _bits(x: Tensor) -> Tensor:
    return x.view(WIDTHS[x.element_size()])


def gather_classes(x: Tensor, rows: Tensor) -> Tensor:
    batch, classes = x.shape[:2]
    y = x.new_empty(rows.shape[0], *x.shape[2:])
    if y.numel():
        size = y.numel() // rows.shape[0]
        bits = _bits(x).reshape(batch, classes, size)  # a copy only if the elements of a row are unevenly spaced
        call = {
            **dict(x=bits, rows=rows.contiguous(), y=_bits(y), classes=classes, all_rows=batch * classes, size=size),
            **strides(bits, "stride_image", "stride_class", "stride"),
        }
        programs = rows.shape[0] * triton.cdiv(size, COPIED)
        launch(_topk_classes_gather, programs, call | {"BLOCK": COPIED}, num_warps=COPY_WARPS)
    return y


def scatter_classes(y: Tensor, rows: Tensor, batch: int, classes: int, fill: float) -> Tensor:
    x = y.new_empty(batch, classes, *y.shape[1:])
    if x.numel():
        size, packed_rows = x.numel() // (batch * classes), rows.shape[0]
        bits = _bits(y).reshape(packed_rows, size)  # a copy only if the elements of a row are unevenly spaced
        fill_bits = _bits(torch.tensor(fill, dtype=y.dtype)).item()
        call = {
            **dict(y=bits, rows=rows.contiguous(), x=_bits(x), fill=fill_bits),
            **dict(packed_rows=packed_rows, steps=packed_rows.bit_length(), size=size),
            **strides(bits, "stride_row", "stride"),
        }
        programs = batch * classes * triton.cdiv(size, COPIED)
        launch(_topk_classes_scatter, programs, call | {"BLOCK": COPIED}, num_warps=COPY_WARPS)
    return x


def configurations() -> Iterator[Configuration]:
    """Up to 256 classes, and more; every width of an element."""
    rows, total = (torch.empty(n, dtype=torch.int64, device="meta") for n in (40, 1))
    for (dtype, name), classes in product(FLOATS.items(), (256, 1024)):
        marks = torch.empty(2, classes, dtype=torch.int8, device="meta")
        for one in recorded(_mark, far_apart(2, classes, 24, 24, dtype=dtype), 8, marks):
            yield Configuration(f"{name} mark T<={classes}", one)
    for one in recorded(_rows, marks, rows, rows, total):
        yield Configuration("rows", one)
    for width, dtype in WIDTHS.items():
        for one in recorded(gather_classes, far_apart(2, 40, 100, dtype=dtype), rows):
            yield Configuration(f"gather {8 * width} bits", one)
        fill = -(2**40) if width == 8 else 0  # of a type of 64 bits
        for one in recorded(scatter_classes, far_apart(40, 100, dtype=dtype), rows, 2, 40, fill):
            yield Configuration(f"scatter {8 * width} bits", one)

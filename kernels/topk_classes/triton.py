"""topk_classes, gather_classes and scatter_classes on a GPU, in Triton.

topk_classes: floor, the scores read once: S3 (5, 847, 24*24) in bf16 is 4.9 MB. A program takes all classes of 16
pixels. A score and its class become one integer, distinct within a pixel: the score's bits, made to order like the
number, above the class counted from the end, so that of equal scores the lower class is larger; NaN and -inf become 0.
The k-th largest is found bit by bit: a bit stays set if k keys are at least as large. That takes as many steps as a key
has bits, 26 for bf16 at T = 847 and 42 for float32, whatever k is, and needs no sorting and no lists. The first 1024
classes stay in registers; more are read again in every step, from cache. Marks are stores of one value, in any order.

Marks become rows by prefix sums, one program an image, each counting the marks before its own. The host waits once, for
the number of rows.

gather, scatter: one read and one write of what is kept; a scattered row finds its source by binary search in the
ascending rows, so each output is written once. Numbers are copied as integers of their width, which keeps every bit of
any type. A row that is not in the tensor is not read: gather gives zeros for it.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import TYPES, Configuration

BLOCK_PIXELS = 16  # 32 bytes of a half type: a sector
STREAMED = 64  # classes that are read again together
BLOCK = 1024  # marks
COPIED = 4096  # numbers a program copies: 16 a thread, one load of 16 bytes or more where rows are aligned
COPY_WARPS = 8
WIDTHS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
KEY_BITS = {torch.float32: 32, torch.float16: 19, torch.bfloat16: 16}  # of a float32, those that a score can use


@triton.jit
def _keys(scores, at, stride_class, inside, first, classes, KEY_BITS: tl.constexpr, CLASSES: tl.constexpr):
    """The keys [CLASSES, pixels] of the classes from `first` on."""
    of_class = (first + tl.arange(0, CLASSES))[:, None]
    inside = (of_class < classes) & inside[None, :]
    x = tl.load(scores + of_class.to(tl.int64) * stride_class + at[None, :], inside, other=float("-inf"))
    x = x.to(tl.float32)
    bits = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)  # -0 is 0
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 0x80000000
    key = (ordered >> (32 - KEY_BITS)) * classes + (classes - 1 - of_class)
    return tl.where(x > float("-inf"), key, 0)


@triton.jit
def _mark(marks, kept, first, classes, CLASSES: tl.constexpr):
    """Marks the classes kept [CLASSES, pixels] of any pixel."""
    of_class = first + tl.arange(0, CLASSES)
    kept = (tl.sum(kept.to(tl.int32), 1) > 0) & (of_class < classes)
    tl.store(marks + of_class, tl.full((CLASSES,), 1, tl.int8), kept)


@triton.jit(do_not_specialize=["k", "classes", "pixels", "width", "bits"])
def _topk_classes_mark(
    scores,
    marks,
    k,
    classes,
    pixels,
    width,
    bits,
    stride_image,
    stride_class,
    stride_y,
    stride_x,
    stride_marks,
    KEY_BITS: tl.constexpr,
    BLOCK_CLASSES: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    STREAMED: tl.constexpr,
):
    blocks = tl.cdiv(pixels, BLOCK_PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixel < pixels
    scores += image * stride_image
    marks += image * stride_marks
    at = (pixel // width).to(tl.int64) * stride_y + (pixel % width).to(tl.int64) * stride_x
    keys = _keys(scores, at, stride_class, inside, 0, classes, KEY_BITS, BLOCK_CLASSES)
    kth = tl.zeros((BLOCK_PIXELS,), tl.int64)
    one = tl.full((BLOCK_PIXELS,), 1, tl.int64)
    for step in range(0, bits):
        candidate = kth | (one << (bits - 1 - step))
        count = tl.sum((keys >= candidate[None, :]).to(tl.int32), 0)
        for first in range(BLOCK_CLASSES, classes, STREAMED):
            more = _keys(scores, at, stride_class, inside, first, classes, KEY_BITS, STREAMED)
            count += tl.sum((more >= candidate[None, :]).to(tl.int32), 0)
        kth = tl.where(count >= k, candidate, kth)
    kth = tl.maximum(kth, 1)  # fewer than k scores are selectable: all of them
    _mark(marks, keys >= kth[None, :], 0, classes, BLOCK_CLASSES)
    for first in range(BLOCK_CLASSES, classes, STREAMED):
        more = _keys(scores, at, stride_class, inside, first, classes, KEY_BITS, STREAMED)
        _mark(marks, more >= kth[None, :], first, classes, STREAMED)


@triton.jit(do_not_specialize=["classes", "marked"])
def _topk_classes_rows(marks, rows, counts, total, classes, marked, BLOCK: tl.constexpr):
    """marks [marked] -> rows; all images have the same marks where there are fewer than images."""
    start = tl.program_id(0).to(tl.int64) * classes
    before = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, start, BLOCK):
        row = first + tl.arange(0, BLOCK)
        before += tl.load(marks + row % marked, row < start, other=0).to(tl.int64)
    place = tl.sum(before, 0)
    end = place
    for first in range(0, classes, BLOCK):
        of_class = first + tl.arange(0, BLOCK)
        mark = tl.load(marks + (start + of_class) % marked, of_class < classes, other=0).to(tl.int64)
        tl.store(rows + end + tl.cumsum(mark, 0) - 1, start + of_class, mark != 0)
        end += tl.sum(mark, 0)
    tl.store(counts + tl.program_id(0), end - place)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(total, end)


@triton.jit(do_not_specialize=["classes", "all_rows"])
def _topk_classes_gather(x, rows, y, classes, all_rows, size, stride_image, stride_class, stride, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    packed = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + packed)
    x += row // classes * stride_image + row % classes * stride_class
    inside = tl.where((row >= 0) & (row < all_rows), at < size, False)
    tl.store(y + packed * size + at, tl.load(x + at * stride, inside, other=0), at < size)


@triton.jit(do_not_specialize=["packed_rows", "steps", "fill"])
def _topk_classes_scatter(y, rows, x, packed_rows, steps, size, stride_row, stride, fill, BLOCK: tl.constexpr):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros((), tl.int64)
    high = low + packed_rows
    for _ in range(0, steps):  # the first place whose row is not below this one
        middle = (low + high) // 2
        below = (middle < high) & (tl.load(rows + middle, middle < high, other=0) < row)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    found = (low < packed_rows) & (tl.load(rows + low, low < packed_rows, other=-1) == row)
    value = tl.load(y + low * stride_row + at * stride, tl.where(found, at < size, False), other=0)
    tl.store(x + row * size + at, tl.where(found, value, fill.to(value.dtype)), at < size)


def _choice(dtype: torch.dtype, classes: int) -> tuple[dict[str, int], int]:
    """The constants and warps of the marking kernel: 32 keys a thread."""
    block, warps = (256, 4) if classes <= 256 else (1024, 16)
    sizes = {"BLOCK_CLASSES": block, "BLOCK_PIXELS": BLOCK_PIXELS, "STREAMED": STREAMED}
    return {"KEY_BITS": KEY_BITS[dtype], **sizes}, warps


def topk_classes(scores: Tensor, k: int, union: str) -> tuple[Tensor, Tensor]:
    batch, classes, height, width = scores.shape
    counts = scores.new_zeros(batch, dtype=torch.int64)
    if not scores.numel():
        return counts.new_empty(0), counts
    united = union == "batch"
    marks = scores.new_zeros(1 if united else batch, classes, dtype=torch.int8)
    rows, total = counts.new_empty(batch * classes), counts.new_empty(1)
    constants, warps = _choice(scores.dtype, classes)
    bits = ((classes << constants["KEY_BITS"]) - 1).bit_length()  # of the largest key
    sizes = (min(k, classes), classes, height * width, width, bits)
    strides = (*scores.stride(), 0 if united else classes)
    grid = (batch * triton.cdiv(height * width, BLOCK_PIXELS),)
    _topk_classes_mark[grid](scores, marks, *sizes, *strides, **constants, num_warps=warps)
    _topk_classes_rows[(batch,)](marks, rows, counts, total, classes, marks.numel(), BLOCK=BLOCK)
    return rows[: total.item()], counts  # the host waits here


def _bits(x: Tensor) -> Tensor:
    return x.view(WIDTHS[x.element_size()])


def gather_classes(x: Tensor, rows: Tensor) -> Tensor:
    batch, classes = x.shape[:2]
    y = x.new_empty(rows.shape[0], *x.shape[2:])
    if y.numel():
        size = y.numel() // rows.shape[0]
        bits = _bits(x).reshape(batch, classes, size)  # a copy only if what a row holds is unevenly spaced
        grid = (rows.shape[0] * triton.cdiv(size, COPIED),)
        sizes = (classes, batch * classes, size)
        _topk_classes_gather[grid](
            bits, rows.contiguous(), _bits(y), *sizes, *bits.stride(), BLOCK=COPIED, num_warps=COPY_WARPS
        )
    return y


def scatter_classes(y: Tensor, rows: Tensor, batch: int, classes: int, fill: float) -> Tensor:
    x = y.new_empty(batch, classes, *y.shape[1:])
    if x.numel():
        size = x.numel() // (batch * classes)
        bits = _bits(y).reshape(rows.shape[0], size)  # a copy only if what a row holds is unevenly spaced
        fill_bits = _bits(torch.tensor(fill, dtype=y.dtype)).item()
        grid = (batch * classes * triton.cdiv(size, COPIED),)
        sizes = (rows.shape[0], rows.shape[0].bit_length(), size)
        _topk_classes_scatter[grid](
            bits, rows.contiguous(), _bits(x), *sizes, *bits.stride(), fill_bits, BLOCK=COPIED, num_warps=COPY_WARPS
        )
    return x


def configurations() -> Iterator[Configuration]:
    """Up to 256, and more classes; every width of a number. Triton makes a stride of 1 a constant."""
    for dtype, classes in ((dtype, classes) for dtype in TYPES for classes in (256, 1024)):
        constants, warps = _choice(dtype, classes)
        signature = {"scores": "*" + TYPES[dtype], "marks": "*i8"}
        signature |= dict.fromkeys(["k", "classes", "pixels", "width", "bits"], "i32")
        signature |= dict.fromkeys(["stride_image", "stride_class", "stride_y"], "i64") | {"stride_marks": "i32"}
        label = f"{TYPES[dtype]} mark T<={classes}"
        yield Configuration(label, _topk_classes_mark, signature, {"stride_x": 1, **constants}, num_warps=warps)
    signature = {"marks": "*i8", "rows": "*i64", "counts": "*i64", "total": "*i64", "classes": "i32", "marked": "i32"}
    yield Configuration("rows", _topk_classes_rows, signature, {"BLOCK": BLOCK})
    for width in WIDTHS:
        pointer, constants = f"*i{8 * width}", {"stride": 1, "BLOCK": COPIED}
        signature = {"x": pointer, "rows": "*i64", "y": pointer}
        signature |= dict.fromkeys(["classes", "all_rows", "size"], "i32")
        signature |= dict.fromkeys(["stride_image", "stride_class"], "i64")
        yield Configuration(f"gather {8 * width} bits", _topk_classes_gather, signature, constants, COPY_WARPS)
        signature = {"y": pointer, "rows": "*i64", "x": pointer}
        signature |= dict.fromkeys(["packed_rows", "steps", "size"], "i32") | {"stride_row": "i64"}
        signature["fill"] = "i64" if width == 8 else "i32"
        yield Configuration(f"scatter {8 * width} bits", _topk_classes_scatter, signature, constants, COPY_WARPS)

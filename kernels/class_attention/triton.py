"""class_summary and class_lookup on a GPU, in Triton: one program a pixel and head of an image walks its rows.

    S = sum over rows of phi(k) v^T,  z = sum over rows of phi(k)
    y = phi(q) S / (phi(q) . z + eps)

Floor: k, v and q are read once, y is written once, and S, z (4 d (d + 1) bytes a pixel and head) once written and once
read; 2*R*P*D*d operations for S and as many for y. In bf16 at R = 150, P = 576, D = 128, d = 32 that is 44 + 22 + 22 +
2 * 10 MB = 108 MB, 36 us at 3 TB/s, and 1.4 Gop, 3 us: memory decides, so nothing here is tuned for the tensor cores.

A program keeps its sums, d*d numbers, in registers from the first row to the last, so that nothing is added through
memory and an image's offsets are all it has to know: it reads them on the device, and the grid, B*P*heads, does not
depend on them. Heads of a pixel are neighbours in the grid: together they use whole lines of the cache.

All operands of tl.dot are float32. For half types they are multiplied as tf32, whose 11 bits hold every float16 and
bfloat16 and round phi as float16 would, with float32's range: sums over 847 classes would overflow float16, which is
why the released code divides by their number. float32 itself is multiplied as torch's matrix products are.

Backward walks the rows likewise and makes phi again, in the lookup also phi S. The gradient of the guidance sums that
of k (or q) over the pixels, in a second pass by torch.sum: another read of it, but in a fixed order, without atomics.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import TYPES, Configuration, precision

ROWS = 32  # of an image at a time


@triton.jit
def _program(offsets, rows, pixels, HEADS: tl.constexpr):
    """This program's number, head and pixel, and the rows of its image, cut to those that exist."""
    number = tl.program_id(0)
    image = number // (pixels * HEADS)
    first = tl.maximum(tl.load(offsets + image), 0)
    last = tl.minimum(tl.load(offsets + image + 1), rows)
    return number.to(tl.int64), number % HEADS, number // HEADS % pixels, first, last


@triton.jit
def _features(x, guidance, inside):
    """phi = elu + 1 in float32, 0 where there is nothing."""
    x = x.to(tl.float32) + guidance.to(tl.float32)
    # where and not minimum, which would turn NaN into 0
    return tl.where(inside, tl.where(x > 0, x + 1, tl.exp(tl.where(x > 0, 0.0, x))), 0.0)


@triton.jit
def _slope(phi):
    return tl.minimum(phi, 1.0)


@triton.jit
def _place(row, last, channel, head, stride, WIDTH: tl.constexpr):
    """Where a block of rows of one head lies, but for the pixel, and which of it exists."""
    inside = (row < last)[:, None] & (channel < WIDTH)[None, :]
    return row[:, None] * stride + (head * WIDTH + channel)[None, :], inside


@triton.jit
def _class_summary(
    k, v, guidance, offsets, summary, total,
    rows, pixels, k_row, k_pixel, v_row, v_pixel, guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number, head, pixel, first, last = _program(offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    k += pixel.to(tl.int64) * k_pixel
    v += pixel.to(tl.int64) * v_pixel
    sums, z = tl.zeros([BLOCK, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        at, inside = _place(row, last, channel, head, guidance_row, WIDTH)
        g = tl.load(guidance + at, inside, other=0.0)
        at, inside = _place(row, last, channel, head, k_row, WIDTH)
        phi = _features(tl.load(k + at, inside, other=0.0), g, inside)
        at, inside = _place(row, last, channel, head, v_row, WIDTH)
        values = tl.load(v + at, inside, other=0.0).to(tl.float32)
        sums = tl.dot(tl.trans(phi), values, sums, input_precision=PRECISION)
        z += tl.sum(phi, 0)
    real = channel < WIDTH
    square = channel[:, None] * WIDTH + channel[None, :]
    tl.store(summary + number * (WIDTH * WIDTH) + square, sums, real[:, None] & real[None, :])
    tl.store(total + number * WIDTH + channel, z, real)


@triton.jit
def _class_summary_backward(
    summary_grad, total_grad, k, v, guidance, offsets, k_grad, v_grad,
    rows, pixels, k_row, k_pixel, v_row, v_pixel, guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number, head, pixel, first, last = _program(offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    k += pixel.to(tl.int64) * k_pixel
    v += pixel.to(tl.int64) * v_pixel
    k_grad += pixel.to(tl.int64) * (HEADS * WIDTH)
    v_grad += pixel.to(tl.int64) * (HEADS * WIDTH)
    real = channel < WIDTH
    square = channel[:, None] * WIDTH + channel[None, :]
    sums = tl.load(summary_grad + number * (WIDTH * WIDTH) + square, real[:, None] & real[None, :], other=0.0)
    z = tl.load(total_grad + number * WIDTH + channel, real, other=0.0)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        at, inside = _place(row, last, channel, head, guidance_row, WIDTH)
        g = tl.load(guidance + at, inside, other=0.0)
        at, inside = _place(row, last, channel, head, k_row, WIDTH)
        phi = _features(tl.load(k + at, inside, other=0.0), g, inside)
        at, inside = _place(row, last, channel, head, v_row, WIDTH)
        values = tl.load(v + at, inside, other=0.0).to(tl.float32)
        dphi = tl.dot(values, tl.trans(sums), input_precision=PRECISION) + z[None, :]
        dvalues = tl.dot(phi, sums, input_precision=PRECISION)
        at, inside = _place(row, last, channel, head, tl.cast(pixels, tl.int64) * (HEADS * WIDTH), WIDTH)
        tl.store(k_grad + at, (dphi * _slope(phi)).to(k_grad.dtype.element_ty), inside)
        tl.store(v_grad + at, dvalues.to(v_grad.dtype.element_ty), inside)


@triton.jit
def _class_lookup(
    q, guidance, summary, total, offsets, y, eps,
    rows, pixels, q_row, q_pixel, guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number, head, pixel, first, last = _program(offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    q += pixel.to(tl.int64) * q_pixel
    y += pixel.to(tl.int64) * (HEADS * WIDTH)
    real = channel < WIDTH
    square = channel[:, None] * WIDTH + channel[None, :]
    sums = tl.load(summary + number * (WIDTH * WIDTH) + square, real[:, None] & real[None, :], other=0.0)
    z = tl.load(total + number * WIDTH + channel, real, other=0.0)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        at, inside = _place(row, last, channel, head, guidance_row, WIDTH)
        g = tl.load(guidance + at, inside, other=0.0)
        at, inside = _place(row, last, channel, head, q_row, WIDTH)
        phi = _features(tl.load(q + at, inside, other=0.0), g, inside)
        out = tl.dot(phi, sums, input_precision=PRECISION) / (tl.sum(phi * z[None, :], 1) + eps)[:, None]
        at, inside = _place(row, last, channel, head, tl.cast(pixels, tl.int64) * (HEADS * WIDTH), WIDTH)
        tl.store(y + at, out.to(y.dtype.element_ty), inside)


@triton.jit
def _class_lookup_backward(
    grad, q, guidance, summary, total, offsets, q_grad, summary_grad, total_grad, eps,
    rows, pixels, grad_row, grad_pixel, q_row, q_pixel, guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    number, head, pixel, first, last = _program(offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    grad += pixel.to(tl.int64) * grad_pixel
    q += pixel.to(tl.int64) * q_pixel
    q_grad += pixel.to(tl.int64) * (HEADS * WIDTH)
    real = channel < WIDTH
    square, both = channel[:, None] * WIDTH + channel[None, :], real[:, None] & real[None, :]
    sums = tl.load(summary + number * (WIDTH * WIDTH) + square, both, other=0.0)
    z = tl.load(total + number * WIDTH + channel, real, other=0.0)
    dsums, dz = tl.zeros([BLOCK, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        at, inside = _place(row, last, channel, head, guidance_row, WIDTH)
        g = tl.load(guidance + at, inside, other=0.0)
        at, inside = _place(row, last, channel, head, q_row, WIDTH)
        phi = _features(tl.load(q + at, inside, other=0.0), g, inside)
        at, inside = _place(row, last, channel, head, grad_row, WIDTH)
        dout = tl.load(grad + at, inside, other=0.0).to(tl.float32)
        # rows beyond the last have phi = 0, so that their weight, 0 / eps or 0 / 0, must be kept out
        inverse = tl.where(row < last, 1 / (tl.sum(phi * z[None, :], 1) + eps), 0.0)
        out = tl.dot(phi, sums, input_precision=PRECISION)
        weight = -tl.sum(out * dout, 1) * inverse * inverse
        dout *= inverse[:, None]
        dphi = tl.dot(dout, tl.trans(sums), input_precision=PRECISION) + weight[:, None] * z[None, :]
        dsums = tl.dot(tl.trans(phi), dout, dsums, input_precision=PRECISION)
        dz += tl.sum(phi * weight[:, None], 0)
        at, inside = _place(row, last, channel, head, tl.cast(pixels, tl.int64) * (HEADS * WIDTH), WIDTH)
        tl.store(q_grad + at, (dphi * _slope(phi)).to(q_grad.dtype.element_ty), inside)
    tl.store(summary_grad + number * (WIDTH * WIDTH) + square, dsums, both)
    tl.store(total_grad + number * WIDTH + channel, dz, real)


def _choice(dtype: torch.dtype, heads: int, width: int) -> tuple[dict[str, Any], int]:
    """Constants and warps of the kernels; a thread has at most 16 numbers of S. With half the warps float32 spills."""
    block = max(triton.next_power_of_2(width), 16)
    exact = "tf32" if dtype != torch.float32 else precision()
    constants = {"HEADS": heads, "WIDTH": width, "BLOCK": block, "ROWS": ROWS, "PRECISION": exact}
    return constants, {16: 2, 32: 4, 64: 8}[block]


def _neighbours(x: Tensor) -> Tensor:
    """x with neighbouring channels neighbours in memory: copied only where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _launch(kernel: Any, x: Tensor, offsets: Tensor, heads: int, *arguments: Any) -> None:
    programs = (offsets.shape[0] - 1) * x.shape[1] * heads
    if programs:
        constants, warps = _choice(x.dtype, heads, x.shape[2] // heads)
        kernel[(programs,)](*arguments, **constants, num_warps=warps)


def class_summary(k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    k, v, k_guidance, offsets = _neighbours(k), _neighbours(v), _neighbours(k_guidance), offsets.contiguous()
    images, width = offsets.shape[0] - 1, k.shape[2] // heads
    summary = k.new_empty(images, k.shape[1], heads, width, width, dtype=torch.float32)
    total = k.new_empty(images, k.shape[1], heads, width, dtype=torch.float32)
    _launch(
        _class_summary, k, offsets, heads, k, v, k_guidance, offsets, summary, total,
        *k.shape[:2], *k.stride()[:2], *v.stride()[:2], k_guidance.stride(0),
    )  # fmt: skip
    return summary, total


def class_summary_backward(
    summary_grad: Tensor, total_grad: Tensor, k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    k, v, k_guidance, offsets = _neighbours(k), _neighbours(v), _neighbours(k_guidance), offsets.contiguous()
    k_grad, v_grad = k.new_empty(k.shape), k.new_empty(k.shape)
    _launch(
        _class_summary_backward, k, offsets, heads,
        summary_grad.contiguous(), total_grad.contiguous(), k, v, k_guidance, offsets, k_grad, v_grad,
        *k.shape[:2], *k.stride()[:2], *v.stride()[:2], k_guidance.stride(0),
    )  # fmt: skip
    return k_grad, v_grad, k_grad.sum(1)


def class_lookup(
    q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float
) -> Tensor:
    q, q_guidance, offsets = _neighbours(q), _neighbours(q_guidance), offsets.contiguous()
    y = q.new_empty(q.shape)
    _launch(
        _class_lookup, q, offsets, heads, q, q_guidance, summary.contiguous(), total.contiguous(), offsets, y, eps,
        *q.shape[:2], *q.stride()[:2], q_guidance.stride(0),
    )  # fmt: skip
    return y


def class_lookup_backward(
    grad: Tensor, q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, q, q_guidance, offsets = _neighbours(grad), _neighbours(q), _neighbours(q_guidance), offsets.contiguous()
    q_grad = q.new_empty(q.shape)
    summary_grad, total_grad = summary.new_empty(summary.shape), total.new_empty(total.shape)
    _launch(
        _class_lookup_backward, q, offsets, heads,
        grad, q, q_guidance, summary.contiguous(), total.contiguous(), offsets, q_grad, summary_grad, total_grad, eps,
        *q.shape[:2], *grad.stride()[:2], *q.stride()[:2], q_guidance.stride(0),
    )  # fmt: skip
    return q_grad, q_grad.sum(1), summary_grad, total_grad


def configurations() -> Iterator[Configuration]:
    """Heads of 32 channels (the model's), of the most that there may be, and of an odd number."""
    sums = ("summary", "total", "summary_grad", "total_grad")
    for dtype in TYPES:
        for heads, width in ((4, 32), (4, 64), (3, 20)):
            constants, warps = _choice(dtype, heads, width)
            for kernel in (_class_summary, _class_summary_backward, _class_lookup, _class_lookup_backward):
                signature = {}
                for name in (p.name for p in kernel.params if p.name not in constants):
                    if name == "eps":
                        signature[name] = "fp32"
                    elif name in ("rows", "pixels"):
                        signature[name] = "i32"
                    elif name.endswith(("_row", "_pixel")):
                        signature[name] = "i64"
                    elif name == "offsets":
                        signature[name] = "*i64"
                    else:
                        signature[name] = "*fp32" if name in sums else "*" + TYPES[dtype]
                label = f"{TYPES[dtype]} heads={heads} d={width}"
                matrix = constants["PRECISION"] == "tf32"
                yield Configuration(label, kernel, signature, constants, num_warps=warps, matrix=matrix)

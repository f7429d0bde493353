"""class_summary and class_lookup on a GPU, in Triton: one program per pixel and head of an image loops over its rows.

    S = sum over rows of phi(k) v^T,  z = sum over rows of phi(k)
    y = phi(q) S / (phi(q) . z + eps)

A program keeps its d*d sums in registers from the first row to the last, so nothing is accumulated through memory, and
an image's row offsets are all that it has to know: it reads them on the device, and the grid, B*P*heads, does not
depend on them. The heads of a pixel are neighbours in the grid: together they use whole cache lines.

All operands of tl.dot are float32. For half types they are multiplied as tf32, which has float32's range: sums over 847
classes would overflow float16, which is why the released code divides by their number. Of an operand, tensor cores read
the first 11 significant bits and ignore the others; Triton does not round them before. That holds every float16 and
bfloat16, so v loses nothing, but phi, S and the gradients, which are float32, become up to 1/1024 smaller: y by about
0.0008 of its size, a quarter of which is left if they are rounded. At 847 classes of random float16 its largest error
is then 1.6e-3 of the largest y, against 0.5e-3 from rounding y alone (bfloat16: 4.3e-3, 3.7e-3). float32 itself is
multiplied as torch's matrix products are.

Backward loops over the rows likewise and recomputes phi, in the lookup also phi S. The gradient of the guidance is that
of k (or q) summed over the pixels by torch.sum, which reads it once more but in a fixed order, without atomics.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, far_apart, launch, planned, precision, recorded

ROWS = 32  # of an image at a time


@triton.jit
def _program(row_offsets, rows, pixels, HEADS: tl.constexpr):
    """This program's index, head and pixel, and the range of its image's rows, limited to those that exist."""
    program = tl.program_id(0)
    image = program // (pixels * HEADS)
    first = tl.maximum(tl.load(row_offsets + image), 0)
    last = tl.minimum(tl.load(row_offsets + image + 1), rows)
    return program.to(tl.int64), program % HEADS, program // HEADS % pixels, first, last


@triton.jit
def _features(x, guidance, inside):
    """phi = elu + 1 in float32, 0 outside."""
    x = x.to(tl.float32) + guidance.to(tl.float32)
    # where instead of minimum, which would turn NaN into 0
    return tl.where(inside, tl.where(x > 0, x + 1, tl.exp(tl.where(x > 0, 0.0, x))), 0.0)


@triton.jit
def _slope(phi):
    return tl.minimum(phi, 1.0)


@triton.jit
def _offsets(row, last, channel, head, stride, WIDTH: tl.constexpr):
    """Offsets [rows, channels] of one head within a pixel, and which of them exist."""
    inside = (row < last)[:, None] & (channel < WIDTH)[None, :]
    return row[:, None] * stride + (head * WIDTH + channel)[None, :], inside


@triton.jit
def _class_summary(
    k, v, guidance, row_offsets, summary, total,
    rows, pixels, stride_k_row, stride_k_pixel, stride_v_row, stride_v_pixel, stride_guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, head, pixel, first, last = _program(row_offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    k += pixel.to(tl.int64) * stride_k_pixel
    v += pixel.to(tl.int64) * stride_v_pixel
    sums, z = tl.zeros([BLOCK, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        offsets, inside = _offsets(row, last, channel, head, stride_guidance_row, WIDTH)
        g = tl.load(guidance + offsets, inside, other=0.0)
        offsets, inside = _offsets(row, last, channel, head, stride_k_row, WIDTH)
        phi = _features(tl.load(k + offsets, inside, other=0.0), g, inside)
        offsets, inside = _offsets(row, last, channel, head, stride_v_row, WIDTH)
        values = tl.load(v + offsets, inside, other=0.0).to(tl.float32)
        sums = tl.dot(tl.trans(phi), values, sums, input_precision=PRECISION)
        z += tl.sum(phi, 0)
    valid = channel < WIDTH
    square = channel[:, None] * WIDTH + channel[None, :]
    tl.store(summary + program * (WIDTH * WIDTH) + square, sums, valid[:, None] & valid[None, :])
    tl.store(total + program * WIDTH + channel, z, valid)


@triton.jit
def _class_summary_backward(
    summary_grad, total_grad, k, v, guidance, row_offsets, k_grad, v_grad,
    rows, pixels, stride_k_row, stride_k_pixel, stride_v_row, stride_v_pixel, stride_guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, head, pixel, first, last = _program(row_offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    k += pixel.to(tl.int64) * stride_k_pixel
    v += pixel.to(tl.int64) * stride_v_pixel
    k_grad += pixel.to(tl.int64) * (HEADS * WIDTH)
    v_grad += pixel.to(tl.int64) * (HEADS * WIDTH)
    valid = channel < WIDTH
    square = channel[:, None] * WIDTH + channel[None, :]
    sums = tl.load(summary_grad + program * (WIDTH * WIDTH) + square, valid[:, None] & valid[None, :], other=0.0)
    z = tl.load(total_grad + program * WIDTH + channel, valid, other=0.0)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        offsets, inside = _offsets(row, last, channel, head, stride_guidance_row, WIDTH)
        g = tl.load(guidance + offsets, inside, other=0.0)
        offsets, inside = _offsets(row, last, channel, head, stride_k_row, WIDTH)
        phi = _features(tl.load(k + offsets, inside, other=0.0), g, inside)
        offsets, inside = _offsets(row, last, channel, head, stride_v_row, WIDTH)
        values = tl.load(v + offsets, inside, other=0.0).to(tl.float32)
        dphi = tl.dot(values, tl.trans(sums), input_precision=PRECISION) + z[None, :]
        dvalues = tl.dot(phi, sums, input_precision=PRECISION)
        offsets, inside = _offsets(row, last, channel, head, tl.cast(pixels, tl.int64) * (HEADS * WIDTH), WIDTH)
        tl.store(k_grad + offsets, (dphi * _slope(phi)).to(k_grad.dtype.element_ty), inside)
        tl.store(v_grad + offsets, dvalues.to(v_grad.dtype.element_ty), inside)


@triton.jit
def _class_lookup(
    q, guidance, summary, total, row_offsets, y, eps,
    rows, pixels, stride_q_row, stride_q_pixel, stride_guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, head, pixel, first, last = _program(row_offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    q += pixel.to(tl.int64) * stride_q_pixel
    y += pixel.to(tl.int64) * (HEADS * WIDTH)
    valid = channel < WIDTH
    square = channel[:, None] * WIDTH + channel[None, :]
    sums = tl.load(summary + program * (WIDTH * WIDTH) + square, valid[:, None] & valid[None, :], other=0.0)
    z = tl.load(total + program * WIDTH + channel, valid, other=0.0)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        offsets, inside = _offsets(row, last, channel, head, stride_guidance_row, WIDTH)
        g = tl.load(guidance + offsets, inside, other=0.0)
        offsets, inside = _offsets(row, last, channel, head, stride_q_row, WIDTH)
        phi = _features(tl.load(q + offsets, inside, other=0.0), g, inside)
        out = tl.dot(phi, sums, input_precision=PRECISION) / (tl.sum(phi * z[None, :], 1) + eps)[:, None]
        offsets, inside = _offsets(row, last, channel, head, tl.cast(pixels, tl.int64) * (HEADS * WIDTH), WIDTH)
        tl.store(y + offsets, out.to(y.dtype.element_ty), inside)


@triton.jit
def _class_lookup_backward(
    grad, q, guidance, summary, total, row_offsets, q_grad, summary_grad, total_grad, eps,
    rows, pixels, stride_grad_row, stride_grad_pixel, stride_q_row, stride_q_pixel, stride_guidance_row,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program, head, pixel, first, last = _program(row_offsets, rows, pixels, HEADS)
    channel = tl.arange(0, BLOCK)
    grad += pixel.to(tl.int64) * stride_grad_pixel
    q += pixel.to(tl.int64) * stride_q_pixel
    q_grad += pixel.to(tl.int64) * (HEADS * WIDTH)
    valid = channel < WIDTH
    square, both = channel[:, None] * WIDTH + channel[None, :], valid[:, None] & valid[None, :]
    sums = tl.load(summary + program * (WIDTH * WIDTH) + square, both, other=0.0)
    z = tl.load(total + program * WIDTH + channel, valid, other=0.0)
    dsums, dz = tl.zeros([BLOCK, BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        offsets, inside = _offsets(row, last, channel, head, stride_guidance_row, WIDTH)
        g = tl.load(guidance + offsets, inside, other=0.0)
        offsets, inside = _offsets(row, last, channel, head, stride_q_row, WIDTH)
        phi = _features(tl.load(q + offsets, inside, other=0.0), g, inside)
        offsets, inside = _offsets(row, last, channel, head, stride_grad_row, WIDTH)
        dout = tl.load(grad + offsets, inside, other=0.0).to(tl.float32)
        # phi is 0 in rows beyond the last, so their weight would be 0 / eps or 0 / 0
        inverse = tl.where(row < last, 1 / (tl.sum(phi * z[None, :], 1) + eps), 0.0)
        out = tl.dot(phi, sums, input_precision=PRECISION)
        weight = -tl.sum(out * dout, 1) * inverse * inverse
        dout *= inverse[:, None]
        dphi = tl.dot(dout, tl.trans(sums), input_precision=PRECISION) + weight[:, None] * z[None, :]
        dsums = tl.dot(tl.trans(phi), dout, dsums, input_precision=PRECISION)
        dz += tl.sum(phi * weight[:, None], 0)
        offsets, inside = _offsets(row, last, channel, head, tl.cast(pixels, tl.int64) * (HEADS * WIDTH), WIDTH)
        tl.store(q_grad + offsets, (dphi * _slope(phi)).to(q_grad.dtype.element_ty), inside)
    tl.store(summary_grad + program * (WIDTH * WIDTH) + square, dsums, both)
    tl.store(total_grad + program * WIDTH + channel, dz, valid)


@planned
def _choice(dtype: torch.dtype, heads: int, width: int, exact: str) -> tuple[dict[str, Any], int]:
    """The kernels' constants and warps; a thread has at most 16 elements of S. With half the warps float32 spills."""
    block = max(triton.next_power_of_2(width), 16)
    constants = {"HEADS": heads, "WIDTH": width, "BLOCK": block, "ROWS": ROWS, "PRECISION": exact}
    return constants, {16: 2, 32: 4, 64: 8}[block]


def _with_dense_channels(x: Tensor) -> Tensor:
    """x, copied if the channels of a pixel are not adjacent in memory."""
    return x if x.stride()[-1] == 1 else x.contiguous()


def _launch(kernel: Any, x: Tensor, offsets: Tensor, heads: int, places: dict[str, int], **arguments: Any) -> None:
    """Runs a kernel, one program per pixel and head of an image; x has the shape and dtype of q or k.

    places  the strides of the kernel's inputs
    """
    rows, pixels, channels = x.shape
    programs = (offsets.shape[0] - 1) * pixels * heads
    if programs:
        constants, warps = _choice(
            x.dtype, heads, channels // heads, precision() if x.dtype == torch.float32 else "tf32"
        )
        shared = {"row_offsets": offsets.contiguous(), "rows": rows, "pixels": pixels}
        launch(kernel, programs, {**shared, **constants, **places, **arguments}, num_warps=warps)


def _places(guidance: Tensor, **maps: Tensor) -> dict[str, int]:
    """The strides of maps [R, P, D] and of their guidance [R, D], whose channels are adjacent, for ``_launch``."""
    places = {"stride_guidance_row": guidance.stride(0)}
    for name, x in maps.items():
        places[f"stride_{name}_row"], places[f"stride_{name}_pixel"], _ = x.stride()
    return places


def class_summary(k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    k, v, guidance = map(_with_dense_channels, (k, v, k_guidance))
    images, (_, pixels, channels) = offsets.shape[0] - 1, k.shape
    width = channels // heads
    summary = k.new_empty(images, pixels, heads, width, width, dtype=torch.float32)
    total = summary.new_empty(images, pixels, heads, width)
    places = _places(guidance, k=k, v=v)
    _launch(_class_summary, k, offsets, heads, places, k=k, v=v, guidance=guidance, summary=summary, total=total)
    return summary, total


def class_summary_backward(
    summary_grad: Tensor, total_grad: Tensor, k: Tensor, v: Tensor, k_guidance: Tensor, offsets: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    k, v, guidance = map(_with_dense_channels, (k, v, k_guidance))
    k_grad, v_grad = k.new_empty(k.shape), k.new_empty(k.shape)
    _launch(
        _class_summary_backward, k, offsets, heads, _places(guidance, k=k, v=v),
        k=k, v=v, guidance=guidance, k_grad=k_grad, v_grad=v_grad,
        summary_grad=summary_grad.contiguous(), total_grad=total_grad.contiguous(),
    )  # fmt: skip
    return k_grad, v_grad, k_grad.sum(1)


def class_lookup(
    q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float
) -> Tensor:
    q, guidance = map(_with_dense_channels, (q, q_guidance))
    y = q.new_empty(*q.shape)
    _launch(
        _class_lookup, q, offsets, heads, _places(guidance, q=q), q=q, guidance=guidance, y=y, eps=eps,
        summary=summary.contiguous(), total=total.contiguous(),
    )  # fmt: skip
    return y


def class_lookup_backward(
    grad: Tensor, q: Tensor, q_guidance: Tensor, summary: Tensor, total: Tensor, offsets: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, q, guidance = map(_with_dense_channels, (grad, q, q_guidance))
    q_grad = q.new_empty(q.shape)
    summary_grad, total_grad = summary.new_empty(summary.shape), total.new_empty(total.shape)
    _launch(
        _class_lookup_backward, q, offsets, heads, _places(guidance, q=q, grad=grad),
        grad=grad, q=q, guidance=guidance, eps=eps,
        summary=summary.contiguous(), total=total.contiguous(),
        q_grad=q_grad, summary_grad=summary_grad, total_grad=total_grad,
    )  # fmt: skip
    return q_grad, q_grad.sum(1), summary_grad, total_grad


def configurations() -> Iterator[Configuration]:
    """Heads of 32 channels (the model's), of the most that are supported, and of an odd number."""
    offsets = torch.empty(3, dtype=torch.int64, device="meta")
    for (dtype, name), (heads, width) in product(FLOATS.items(), ((4, 32), (4, 64), (3, 20))):
        x, guidance = far_apart(9, 24 * 24, heads * width, dtype=dtype), far_apart(9, heads * width, dtype=dtype)
        total = torch.empty(2, 24 * 24, heads, width, device="meta")
        summary = total[..., None].expand(-1, -1, -1, -1, width)
        launches = recorded(class_summary, x, x, guidance, offsets, heads)
        launches += recorded(class_summary_backward, summary, total, x, x, guidance, offsets, heads)
        launches += recorded(class_lookup, x, guidance, summary, total, offsets, heads, 1e-6)
        launches += recorded(class_lookup_backward, x, x, guidance, summary, total, offsets, heads, 1e-6)
        for one in launches:
            matrix = one.arguments["PRECISION"] == "tf32"
            yield Configuration(f"{name} heads={heads} d={width}", one, matrix=matrix)

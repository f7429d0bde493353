"""window_attention on a GPU, in Triton: one program per block of tokens of one head of one window.

    S = a (q + g)(k + h)^T + mask, a = 1 / sqrt(d), P = softmax(S), y = P v, and G the gradient of y
    c_i = sum_j P_ij <G_i, v_j>;  dS = P (G v^T - c);  dq = a dS (k + h);  dk = a dS^T (q + g);  dv = P^T G
    dg, dh = the sums of dq, dk over the classes of an image

A token is a pixel of a window, numbered t = window * y + x. Its coordinates on the map, whether it is padding, and on
which side of the shift's seam it lies follow from t by a few integer operations; so nothing is rolled or padded in
memory, and the mask is a comparison of two vectors.

Backward: a first kernel computes, for every query, log2 of the softmax's denominator and c, then dq; a second computes
dk and dv from these. No atomics. The sums over classes are PyTorch's. Half types are multiplied in half precision and
summed in float32; q + g is rounded to the input's type, as in the reference. docs/design/kernels.md explains the tiles.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, launch, planned, precision, recorded

LOG2E = tl.constexpr(1.4426950408889634)
ROW = ("row", "y", "x")  # axes of q, k and v whose strides the kernels take


@triton.jit
def _block(program, H, W, heads, window, BLOCK: tl.constexpr):
    """A program's row, window (down, across), head and first token."""
    blocks, across, down = tl.cdiv(window * window, BLOCK), tl.cdiv(W, window), tl.cdiv(H, window)
    first, program = program % blocks * BLOCK, program // blocks
    head, program = program % heads, program // heads
    index, row = program % (down * across), program // (down * across)
    return row.to(tl.int64), index // across, index % across, head, first


@triton.jit
def _tokens(t, down, across, H, W, window, shift):
    """For the tokens t of a window: y and x on the map, whether they are pixels, and their region of the shift."""
    tall, wide = tl.cdiv(H, window) * window, tl.cdiv(W, window) * window
    y, x = down * window + t // window + shift, across * window + t % window + shift
    region = (y >= tall).to(tl.int32) * 2 + (x >= wide).to(tl.int32)
    y, x = tl.where(y >= tall, y - tall, y), tl.where(x >= wide, x - wide, x)
    return y, x, (t < window * window) & (y < H) & (x < W), region


@triton.jit
def _offsets(y, x, stride_y, stride_x, d):
    """Offsets [tokens, channels] within one row's map, in 32 bits: 64-bit ones would double the registers."""
    return (y * stride_y + x * stride_x)[:, None] + d[None, :]


@triton.jit
def _guided(x, offsets, guidance, guidance_offsets, inside):
    """x + guidance, summed in float32 and rounded to their type; 0 outside."""
    own = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    shared = tl.load(guidance + guidance_offsets, mask=inside, other=0.0).to(tl.float32)
    return (own + shared).to(x.dtype.element_ty)


@triton.jit
def _scores(q, k, region_q, region_k, valid_k, scale, PRECISION: tl.constexpr):
    """Masked scores [queries, keys], times log2(e)."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    s += tl.where(region_q[:, None] == region_k[None, :], 0.0, -100.0 * LOG2E)
    return tl.where(valid_k[None, :], s, float("-inf"))


@triton.jit
def _window_attention_forward(
    q, k, v, q_guidance, k_guidance, out,
    stride_q_row, stride_q_y, stride_q_x, stride_k_row, stride_k_y, stride_k_x, stride_v_row, stride_v_y, stride_v_x,
    classes, H, W, heads, size, window, shift, scale,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """program = (row, window, head, BLOCK queries)"""
    row, down, across, head, first = _block(tl.program_id(0), H, W, heads, window, BLOCK)
    D, d = heads * size, head * size + tl.arange(0, SIZE)
    in_head = (tl.arange(0, SIZE) < size)[None, :]
    image = row // classes * H * W * D
    y, x, valid, region = _tokens(first + tl.arange(0, BLOCK), down, across, H, W, window, shift)
    inside = valid[:, None] & in_head
    dense = _offsets(y, x, W * D, D, d)
    queries = _guided(
        q + row * stride_q_row, _offsets(y, x, stride_q_y, stride_q_x, d), q_guidance + image, dense, inside
    )

    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, SIZE], tl.float32)
    for start in range(0, window * window, STEP):
        ky, kx, valid_k, region_k = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_k = valid_k[:, None] & in_head
        offsets = _offsets(ky, kx, stride_k_y, stride_k_x, d)
        keys = _guided(k + row * stride_k_row, offsets, k_guidance + image, _offsets(ky, kx, W * D, D, d), inside_k)
        s = _scores(queries, keys, region, region_k, valid_k, scale, PRECISION)
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # only padding so far
        p, fade = tl.exp2(s - base[:, None]), tl.exp2(top - base)
        values = tl.load(v + row * stride_v_row + _offsets(ky, kx, stride_v_y, stride_v_x, d), mask=inside_k, other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION)
        total, top = total * fade + tl.sum(p, 1), higher
    tl.store(out + row * H * W * D + dense, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _window_attention_queries_grad(
    grad, q, k, v, q_guidance, k_guidance, sums, dots, out,
    stride_q_row, stride_q_y, stride_q_x, stride_k_row, stride_k_y, stride_k_x, stride_v_row, stride_v_y, stride_v_x,
    classes, H, W, heads, size, window, shift, scale,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, and for every query sums = log2 sum exp S and dots = c; program = (row, window, head, BLOCK queries)"""
    row, down, across, head, first = _block(tl.program_id(0), H, W, heads, window, BLOCK)
    D, d = heads * size, head * size + tl.arange(0, SIZE)
    in_head = (tl.arange(0, SIZE) < size)[None, :]
    image = row // classes * H * W * D
    y, x, valid, region = _tokens(first + tl.arange(0, BLOCK), down, across, H, W, window, shift)
    inside = valid[:, None] & in_head
    dense = _offsets(y, x, W * D, D, d)
    queries = _guided(
        q + row * stride_q_row, _offsets(y, x, stride_q_y, stride_q_x, d), q_guidance + image, dense, inside
    )
    g = tl.load(grad + row * H * W * D + dense, mask=inside, other=0.0)

    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    dot = tl.zeros([BLOCK], tl.float32)
    for start in range(0, window * window, STEP):
        ky, kx, valid_k, region_k = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_k = valid_k[:, None] & in_head
        offsets = _offsets(ky, kx, stride_k_y, stride_k_x, d)
        keys = _guided(k + row * stride_k_row, offsets, k_guidance + image, _offsets(ky, kx, W * D, D, d), inside_k)
        s = _scores(queries, keys, region, region_k, valid_k, scale, PRECISION)
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p, fade = tl.exp2(s - base[:, None]), tl.exp2(top - base)
        values = tl.load(v + row * stride_v_row + _offsets(ky, kx, stride_v_y, stride_v_x, d), mask=inside_k, other=0.0)
        dp = tl.dot(g, tl.trans(values), input_precision=PRECISION)
        dot = dot * fade + tl.sum(p * dp, 1)
        total, top = total * fade + tl.sum(p, 1), higher
    dot, total = dot / total, top + tl.log2(total)
    query = (row * heads + head) * H * W + y * W + x
    tl.store(sums + query, total, mask=valid)
    tl.store(dots + query, dot, mask=valid)

    acc = tl.zeros([BLOCK, SIZE], tl.float32)
    for start in range(0, window * window, STEP):
        ky, kx, valid_k, region_k = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_k = valid_k[:, None] & in_head
        offsets = _offsets(ky, kx, stride_k_y, stride_k_x, d)
        keys = _guided(k + row * stride_k_row, offsets, k_guidance + image, _offsets(ky, kx, W * D, D, d), inside_k)
        p = tl.exp2(_scores(queries, keys, region, region_k, valid_k, scale, PRECISION) - total[:, None])
        values = tl.load(v + row * stride_v_row + _offsets(ky, kx, stride_v_y, stride_v_x, d), mask=inside_k, other=0.0)
        ds = p * (tl.dot(g, tl.trans(values), input_precision=PRECISION) - dot[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision=PRECISION)
    tl.store(out + row * H * W * D + dense, (acc * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _window_attention_keys_grad(
    grad, q, k, v, q_guidance, k_guidance, sums, dots, dk, dv,
    stride_q_row, stride_q_y, stride_q_x, stride_k_row, stride_k_y, stride_k_x, stride_v_row, stride_v_y, stride_v_x,
    classes, H, W, heads, size, window, shift, scale,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv, with the sums and dots of the queries' kernel; program = (row, window, head, BLOCK keys)"""
    row, down, across, head, first = _block(tl.program_id(0), H, W, heads, window, BLOCK)
    D, d = heads * size, head * size + tl.arange(0, SIZE)
    in_head = (tl.arange(0, SIZE) < size)[None, :]
    image, of_head = row // classes * H * W * D, (row * heads + head) * H * W
    y, x, valid, region = _tokens(first + tl.arange(0, BLOCK), down, across, H, W, window, shift)
    inside = valid[:, None] & in_head
    dense = _offsets(y, x, W * D, D, d)
    keys = _guided(k + row * stride_k_row, _offsets(y, x, stride_k_y, stride_k_x, d), k_guidance + image, dense, inside)
    values = tl.load(v + row * stride_v_row + _offsets(y, x, stride_v_y, stride_v_x, d), mask=inside, other=0.0)

    keys_acc, values_acc = tl.zeros([BLOCK, SIZE], tl.float32), tl.zeros([BLOCK, SIZE], tl.float32)
    for start in range(0, window * window, STEP):
        qy, qx, valid_q, region_q = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_q, dense_q = valid_q[:, None] & in_head, _offsets(qy, qx, W * D, D, d)
        queries = _guided(
            q + row * stride_q_row, _offsets(qy, qx, stride_q_y, stride_q_x, d), q_guidance + image, dense_q, inside_q
        )
        g = tl.load(grad + row * H * W * D + dense_q, mask=inside_q, other=0.0)
        total = tl.load(sums + of_head + qy * W + qx, mask=valid_q, other=0.0)
        dot = tl.load(dots + of_head + qy * W + qx, mask=valid_q, other=0.0)
        # the rows of s are keys; for a query that is padding g, total and dot are 0, so it adds 0 to both sums
        s = _scores(keys, queries, region, region_q, valid_q, scale, PRECISION)
        p = tl.exp2(s - total[None, :])
        values_acc = tl.dot(p.to(g.dtype), g, values_acc, input_precision=PRECISION)
        ds = p * (tl.dot(values, tl.trans(g), input_precision=PRECISION) - dot[None, :])
        keys_acc = tl.dot(ds.to(queries.dtype), queries, keys_acc, input_precision=PRECISION)
    tl.store(dk + row * H * W * D + dense, (keys_acc * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + row * H * W * D + dense, values_acc.to(dv.dtype.element_ty), mask=inside)


def _choice(dtype: torch.dtype, tokens: int, size: int, exact: str) -> dict[str, Any]:
    """The constants of the kernels for windows of so many tokens and heads of so many channels."""
    length = max(16, triton.next_power_of_2(size))
    # without tensor cores a product keeps whole rows of its operands in registers: smaller tiles, or they spill
    largest = 64 if dtype != torch.float32 else 32 if length <= 32 else 16
    block = min(largest, max(16, triton.next_power_of_2(tokens)))
    return dict(BLOCK=block, STEP=16, SIZE=length, PRECISION=exact)


def _warps(dtype: torch.dtype, constants: dict[str, Any]) -> int:
    if dtype == torch.float32:
        return 8 if constants["BLOCK"] == 32 or constants["SIZE"] > 32 else 4
    return constants["BLOCK"] // (16 if constants["SIZE"] <= 32 else 8)  # a warp's product has 16 rows


@planned
def _plan(
    sizes: tuple[int, ...], places: tuple[tuple[int, ...], ...], images: int, dtype: torch.dtype, heads: int,
    window: int, shift: int, exact: str,
) -> tuple[int, dict[str, Any], int]:  # fmt: skip
    """The programs, all arguments but the tensors, and the warps, for the sizes of q and the strides of q, k and v."""
    rows, height, width, channels = sizes
    size = channels // heads
    constants = _choice(dtype, window**2, size, exact)
    windows = triton.cdiv(height, window) * triton.cdiv(width, window)
    programs = rows * windows * heads * triton.cdiv(window**2, constants["BLOCK"])
    strides = {
        f"stride_{x}_{axis}": n for x, own in zip("qkv", places, strict=True) for axis, n in zip(ROW, own, strict=False)
    }
    numbers = dict(heads=heads, window=window, shift=shift, H=height, W=width, size=size, scale=1 / math.sqrt(size))
    return programs, {**strides, **numbers, "classes": rows // images, **constants}, _warps(dtype, constants)


class _Call:
    """One call of the op: its inputs, as the kernels take them, and everything that all of its launches share."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor,
        heads: int, window: int, shift: int,
    ) -> None:  # fmt: skip
        q, k, v = _with_dense_channels(q), _with_dense_channels(k), _with_dense_channels(v)
        # half types have only one precision
        exact = precision() if q.dtype == torch.float32 else "ieee"
        places, images = (q.stride(), k.stride(), v.stride()), q_guidance.shape[0]
        self._programs, plan, self._warps = _plan(q.shape, places, images, q.dtype, heads, window, shift, exact)
        # the guidance, which is small, is copied rather than given strides of its own
        guidance = {"q_guidance": q_guidance.contiguous(), "k_guidance": k_guidance.contiguous()}
        self._arguments = {"q": q, "k": k, "v": v, **guidance, **plan}

    def launch(self, kernel: Any, **tensors: Tensor) -> None:
        launch(kernel, self._programs, {**self._arguments, **tensors}, num_warps=self._warps)


def _with_dense_channels(x: Tensor) -> Tensor:
    """x, copied if the channels of a pixel are not adjacent in memory: they could not be loaded as vectors."""
    return x if x.stride()[3] == 1 else x.contiguous()


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor, heads: int, window: int, shift: int
) -> Tensor:
    y = q.new_empty(*q.shape)
    if y.numel():
        call = _Call(q, k, v, q_guidance, k_guidance, heads, window, shift)
        call.launch(_window_attention_forward, out=y)
    return y


def window_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor,
    heads: int, window: int, shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (x.new_empty(*x.shape) for x in (q, k, v))
    if dq.numel():
        call = _Call(q, k, v, q_guidance, k_guidance, heads, window, shift)
        grad = grad.contiguous()  # it is often expanded
        sums, dots = (q.new_empty((q.shape[0], heads, *q.shape[1:3]), dtype=torch.float32) for _ in range(2))
        call.launch(_window_attention_queries_grad, grad=grad, sums=sums, dots=dots, out=dq)
        call.launch(_window_attention_keys_grad, grad=grad, sums=sums, dots=dots, dk=dk, dv=dv)
    images = len(q_guidance)
    classes = len(q) // max(images, 1)
    over_classes = (x.unflatten(0, (images, classes)).sum(1) for x in (dq, dk))
    return dq, dk, dv, *over_classes


def configurations() -> Iterator[Configuration]:
    """Heads of several sizes in windows of 12 pixels; smaller windows have fewer warps and registers."""
    for (dtype, name), size in product(FLOATS.items(), (16, 32, 64)):
        rows, images = (torch.empty(n, 24, 24, 4 * size, dtype=dtype, device="meta") for n in (6, 2))
        call = (rows, rows, rows, images, images, 4, 12, 6)
        launches = recorded(window_attention, *call) + recorded(window_attention_backward, rows, *call)
        for one in launches:
            yield Configuration(f"{name} d={size}", one, matrix=dtype != torch.float32)

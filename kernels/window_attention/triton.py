"""window_attention on a GPU, in Triton: a program for a block of tokens of one head of one window.

    S = a (q + g)(k + h)^T + mask, a = 1 / sqrt(d), P = softmax(S), y = P v, and G the gradient of y
    c_i = sum_j P_ij <G_i, v_j>;  dS = P (G v^T - c);  dq = a dS (k + h);  dk = a dS^T (q + g);  dv = P^T G
    dg, dh = the sums of dq, dk over the classes of an image

Floor at N = 150, 24x24, D = 128, window 12 in bf16: forward 88 MB, 6.4 Gop and 50 M exponentials; backward 155 MB and
16 Gop. Memory, if scores stay in registers: a program loads its queries once, and the keys of a window, which its two
neighbours read too, come from the second-level cache.

A token of a window is a number t = window * y + x. Where it lies on the map, whether it is padding and on which side of
the shift's seam are a few integer operations a token, so nothing is rolled or padded in memory, and the mask is the
comparison of two vectors.

tl.arange takes powers of two only. 144 tokens are 9 steps of 16 keys and nearly 3 blocks of 64 queries, a tile of
Hopper's tensor cores: 1.33 times the products that are needed, which are not what bounds it. Steps of 32 keys would be
1.5 times, and compiled they take 255 registers a thread in backward and spill on sm_80. In float32 tiles are smaller.

Backward: per block of queries the logarithm of the softmax's sum and c, two float32 a token and head, all that is
kept, then dq; per block of keys dk and dv. No atomics. PyTorch sums over classes. Half types are multiplied in half
and added in float32; q + g is rounded to the type, as in the reference.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import TYPES, Configuration, precision

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _block(tile, H, W, heads, window, BLOCK: tl.constexpr):
    """From the number of a program: row, window (down, across), head, first token."""
    blocks, across, down = tl.cdiv(window * window, BLOCK), tl.cdiv(W, window), tl.cdiv(H, window)
    first, tile = tile % blocks * BLOCK, tile // blocks
    head, tile = tile % heads, tile // heads
    place, row = tile % (down * across), tile // (down * across)
    return row.to(tl.int64), place // across, place % across, head, first


@triton.jit
def _tokens(t, down, across, H, W, window, shift):
    """Of tokens t of a window: row and column of the map, which are real, and the region of the shift they are in."""
    tall, wide = tl.cdiv(H, window) * window, tl.cdiv(W, window) * window
    y, x = down * window + t // window + shift, across * window + t % window + shift
    region = (y >= tall).to(tl.int32) * 2 + (x >= wide).to(tl.int32)
    y, x = tl.where(y >= tall, y - tall, y), tl.where(x >= wide, x - wide, x)
    return y, x, (t < window * window) & (y < H) & (x < W), region


@triton.jit
def _places(y, x, stride_y, stride_x, d):
    """Within one row's map, in 32 bits: 64-bit places for a matrix of loads cost half of the registers."""
    return (y * stride_y + x * stride_x)[:, None] + d[None, :]


@triton.jit
def _guided(x, places, guidance, shared_places, inside):
    """x + guidance, added in float32 and rounded to their type; 0 outside."""
    own = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    shared = tl.load(guidance + shared_places, mask=inside, other=0.0).to(tl.float32)
    return (own + shared).to(x.dtype.element_ty)


@triton.jit
def _scores(q, k, region_q, region_k, real_k, scale, PRECISION: tl.constexpr):
    """Masked scores [queries, keys] in units of log 2."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    s += tl.where(region_q[:, None] == region_k[None, :], 0.0, -100.0 * LOG2E)
    return tl.where(real_k[None, :], s, float("-inf"))


@triton.jit
def _window_attention_forward(
    q, k, v, q_guidance, k_guidance, out,
    q_row, q_y, q_x, k_row, k_y, k_x, v_row, v_y, v_x,
    classes, H, W, heads, size, window, shift, scale,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """program = (row, window, head, BLOCK queries)"""
    row, down, across, head, first = _block(tl.program_id(0), H, W, heads, window, BLOCK)
    D, d = heads * size, head * size + tl.arange(0, SIZE)
    of_head = (tl.arange(0, SIZE) < size)[None, :]
    image = row // classes * H * W * D
    y, x, real, region = _tokens(first + tl.arange(0, BLOCK), down, across, H, W, window, shift)
    inside = real[:, None] & of_head
    shared = _places(y, x, W * D, D, d)
    queries = _guided(q + row * q_row, _places(y, x, q_y, q_x, d), q_guidance + image, shared, inside)

    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    acc = tl.zeros([BLOCK, SIZE], tl.float32)
    for start in range(0, window * window, STEP):
        ky, kx, real_k, region_k = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_k = real_k[:, None] & of_head
        places = _places(ky, kx, k_y, k_x, d)
        keys = _guided(k + row * k_row, places, k_guidance + image, _places(ky, kx, W * D, D, d), inside_k)
        s = _scores(queries, keys, region, region_k, real_k, scale, PRECISION)
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing but padding so far
        p, fade = tl.exp2(s - base[:, None]), tl.exp2(top - base)
        values = tl.load(v + row * v_row + _places(ky, kx, v_y, v_x, d), mask=inside_k, other=0.0)
        acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision=PRECISION)
        total, top = total * fade + tl.sum(p, 1), higher
    tl.store(out + row * H * W * D + shared, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _window_attention_queries_grad(
    grad, q, k, v, q_guidance, k_guidance, sums, dots, out,
    q_row, q_y, q_x, k_row, k_y, k_x, v_row, v_y, v_x,
    classes, H, W, heads, size, window, shift, scale,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq, and of every query sums = log2 sum exp S and dots = sum P (G v^T); program = (row, window, head, BLOCK)"""
    row, down, across, head, first = _block(tl.program_id(0), H, W, heads, window, BLOCK)
    D, d = heads * size, head * size + tl.arange(0, SIZE)
    of_head = (tl.arange(0, SIZE) < size)[None, :]
    image = row // classes * H * W * D
    y, x, real, region = _tokens(first + tl.arange(0, BLOCK), down, across, H, W, window, shift)
    inside = real[:, None] & of_head
    shared = _places(y, x, W * D, D, d)
    queries = _guided(q + row * q_row, _places(y, x, q_y, q_x, d), q_guidance + image, shared, inside)
    g = tl.load(grad + row * H * W * D + shared, mask=inside, other=0.0)

    top, total = tl.full([BLOCK], float("-inf"), tl.float32), tl.zeros([BLOCK], tl.float32)
    dot = tl.zeros([BLOCK], tl.float32)
    for start in range(0, window * window, STEP):
        ky, kx, real_k, region_k = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_k = real_k[:, None] & of_head
        places = _places(ky, kx, k_y, k_x, d)
        keys = _guided(k + row * k_row, places, k_guidance + image, _places(ky, kx, W * D, D, d), inside_k)
        s = _scores(queries, keys, region, region_k, real_k, scale, PRECISION)
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        p, fade = tl.exp2(s - base[:, None]), tl.exp2(top - base)
        values = tl.load(v + row * v_row + _places(ky, kx, v_y, v_x, d), mask=inside_k, other=0.0)
        dp = tl.dot(g, tl.trans(values), input_precision=PRECISION)
        dot = dot * fade + tl.sum(p * dp, 1)
        total, top = total * fade + tl.sum(p, 1), higher
    dot, total = dot / total, top + tl.log2(total)
    of_query = (row * heads + head) * H * W + y * W + x
    tl.store(sums + of_query, total, mask=real)
    tl.store(dots + of_query, dot, mask=real)

    acc = tl.zeros([BLOCK, SIZE], tl.float32)
    for start in range(0, window * window, STEP):
        ky, kx, real_k, region_k = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_k = real_k[:, None] & of_head
        places = _places(ky, kx, k_y, k_x, d)
        keys = _guided(k + row * k_row, places, k_guidance + image, _places(ky, kx, W * D, D, d), inside_k)
        p = tl.exp2(_scores(queries, keys, region, region_k, real_k, scale, PRECISION) - total[:, None])
        values = tl.load(v + row * v_row + _places(ky, kx, v_y, v_x, d), mask=inside_k, other=0.0)
        ds = p * (tl.dot(g, tl.trans(values), input_precision=PRECISION) - dot[:, None])
        acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision=PRECISION)
    tl.store(out + row * H * W * D + shared, (acc * scale).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _window_attention_keys_grad(
    grad, q, k, v, q_guidance, k_guidance, sums, dots, dk, dv,
    q_row, q_y, q_x, k_row, k_y, k_x, v_row, v_y, v_x,
    classes, H, W, heads, size, window, shift, scale,
    BLOCK: tl.constexpr, STEP: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv from what the queries' pass has left; program = (row, window, head, BLOCK keys)"""
    row, down, across, head, first = _block(tl.program_id(0), H, W, heads, window, BLOCK)
    D, d = heads * size, head * size + tl.arange(0, SIZE)
    of_head = (tl.arange(0, SIZE) < size)[None, :]
    image, of_row = row // classes * H * W * D, (row * heads + head) * H * W
    y, x, real, region = _tokens(first + tl.arange(0, BLOCK), down, across, H, W, window, shift)
    inside = real[:, None] & of_head
    shared = _places(y, x, W * D, D, d)
    keys = _guided(k + row * k_row, _places(y, x, k_y, k_x, d), k_guidance + image, shared, inside)
    values = tl.load(v + row * v_row + _places(y, x, v_y, v_x, d), mask=inside, other=0.0)

    keys_acc, values_acc = tl.zeros([BLOCK, SIZE], tl.float32), tl.zeros([BLOCK, SIZE], tl.float32)
    for start in range(0, window * window, STEP):
        qy, qx, real_q, region_q = _tokens(start + tl.arange(0, STEP), down, across, H, W, window, shift)
        inside_q, shared_q = real_q[:, None] & of_head, _places(qy, qx, W * D, D, d)
        queries = _guided(q + row * q_row, _places(qy, qx, q_y, q_x, d), q_guidance + image, shared_q, inside_q)
        g = tl.load(grad + row * H * W * D + shared_q, mask=inside_q, other=0.0)
        total = tl.load(sums + of_row + qy * W + qx, mask=real_q, other=0.0)
        dot = tl.load(dots + of_row + qy * W + qx, mask=real_q, other=0.0)
        # keys down, queries across; of a query that is padding, g, total and dot are 0, so it adds 0 to both sums
        s = _scores(keys, queries, region, region_q, real_q, scale, PRECISION)
        p = tl.exp2(s - total[None, :])
        values_acc = tl.dot(p.to(g.dtype), g, values_acc, input_precision=PRECISION)
        ds = p * (tl.dot(values, tl.trans(g), input_precision=PRECISION) - dot[None, :])
        keys_acc = tl.dot(ds.to(queries.dtype), queries, keys_acc, input_precision=PRECISION)
    tl.store(dk + row * H * W * D + shared, (keys_acc * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + row * H * W * D + shared, values_acc.to(dv.dtype.element_ty), mask=inside)


def _constants(dtype: torch.dtype, tokens: int, size: int) -> dict[str, Any]:
    length = max(16, triton.next_power_of_2(size))
    # without tensor cores a product holds whole rows of its operands in registers: smaller tiles, or they spill
    largest = 64 if dtype != torch.float32 else 32 if length <= 32 else 16
    block = min(largest, max(16, triton.next_power_of_2(tokens)))
    return dict(BLOCK=block, STEP=16, SIZE=length, PRECISION=precision())


def _warps(dtype: torch.dtype, constants: dict[str, Any]) -> int:
    if dtype == torch.float32:
        return 8 if constants["BLOCK"] == 32 or constants["SIZE"] > 32 else 4
    return constants["BLOCK"] // (16 if constants["SIZE"] <= 32 else 8)  # 16 rows are the product of a warp


def _launch(
    kernel: Any, tensors: list[Tensor], maps: list[Tensor], images: int, heads: int, window: int, shift: int
) -> None:
    """``maps`` are q, k and v, which may have any strides but the last."""
    rows, height, width, channels = maps[0].shape
    constants = _constants(maps[0].dtype, window**2, channels // heads)
    windows = triton.cdiv(height, window) * triton.cdiv(width, window)
    grid = (rows * windows * heads * triton.cdiv(window**2, constants["BLOCK"]),)
    kernel[grid](
        *tensors, *(stride for x in maps for stride in x.stride()[:3]),
        rows // images, height, width, heads, channels // heads, window, shift, 1 / math.sqrt(channels // heads),
        **constants, num_warps=_warps(maps[0].dtype, constants),
    )  # fmt: skip


def _neighbouring(x: Tensor) -> Tensor:
    """x, copied if the numbers of a pixel do not lie side by side: their loads would not be vectors."""
    return x if x.stride(3) == 1 else x.contiguous()


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor, heads: int, window: int, shift: int
) -> Tensor:
    y = q.new_empty(q.shape)
    if y.numel():
        maps = [_neighbouring(x) for x in (q, k, v)]
        tensors = [*maps, q_guidance.contiguous(), k_guidance.contiguous(), y]
        _launch(_window_attention_forward, tensors, maps, len(q_guidance), heads, window, shift)
    return y


def window_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, q_guidance: Tensor, k_guidance: Tensor,
    heads: int, window: int, shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    if dq.numel():
        maps = [_neighbouring(x) for x in (q, k, v)]
        # grad, often expanded, and the guidance, small, are copied rather than given strides of their own
        inputs = [grad.contiguous(), *maps, q_guidance.contiguous(), k_guidance.contiguous()]
        kept = [q.new_empty((q.shape[0], heads, *q.shape[1:3]), dtype=torch.float32) for _ in range(2)]
        call = (maps, len(q_guidance), heads, window, shift)
        _launch(_window_attention_queries_grad, [*inputs, *kept, dq], *call)
        _launch(_window_attention_keys_grad, [*inputs, *kept, dk, dv], *call)
    images = len(q_guidance)
    classes = len(q) // max(images, 1)
    over_classes = (x.unflatten(0, (images, classes)).sum(1) for x in (dq, dk))
    return dq, dk, dv, *over_classes


def configurations() -> Iterator[Configuration]:
    """Window 12 (a smaller one has fewer warps and registers) for several sizes of a head."""
    kernels = (_window_attention_forward, _window_attention_queries_grad, _window_attention_keys_grad)
    for (dtype, name), size, kernel in product(TYPES.items(), (16, 32, 64), kernels):
        constants = _constants(dtype, 144, size)
        types = dict.fromkeys(["grad", "q", "k", "v", "q_guidance", "k_guidance", "out", "dk", "dv"], f"*{name}")
        types |= {"sums": "*fp32", "dots": "*fp32", "scale": "fp32"}
        signature = {p: types.get(p, "i32") for p in kernel.arg_names if p not in constants}
        warps, half = _warps(dtype, constants), dtype != torch.float32
        yield Configuration(f"{name} d={size}", kernel, signature, constants, warps, matrix=half)

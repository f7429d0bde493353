"""lcs_conv on a GPU, in Triton: a chunk of kernels at a time is normalised and then multiplied with shifted pixels.

    kernels[b,t,c,tap] = softmax over taps of logits
    S[b,t,n] = bias[b,t] + sum_{tap,c} kernels[b,t,c,tap] x[b,c,n+tap]
    dx[b,c,n] = sum_{tap,t} kernels[b,t,c,tap] g[b,t,n-tap];    dk[b,t,c,tap] = sum_n g[b,t,n] x[b,c,n+tap]
    dlogits = kernels (dk - sum_tap kernels dk);                dbias = sum_n g

The tap is a loop, not a dimension: pixels lie channels last, so under each tap the operand is a plain matrix [n, c]
with shifted rows, loaded by cp.async 16 bytes at a time; a pixel outside the image is one mask per row. There is no
im2col and no padding of K*K. The kernels must then lie as [tap, t, c]: they are written so, at most SCRATCH elements at
a time (some channels, of some images if need be), and read again from the second-level cache. The logits are read from
memory once, and working memory does not grow with C; chunks add up in float32. Up to 25 taps their softmax goes tap
after tap, over vectors of channels, so that it needs neither shuffles nor padding; with more taps those strided loads
would overflow the cache.

Small problems (S1 has 15 programs) split the sum into parts, which are added afterwards in a fixed order. Backward
recomputes the kernels; dk is kept a chunk at a time in float32. norm="channels" composes kernel_softmax with
norm="none". docs/design/kernels.md counts bytes and operations and describes a design that was given up.
"""

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, cdiv, launch, planned, precision, recorded, strides
from ..kernel_softmax.triton import kernel_softmax, kernel_softmax_backward

SCRATCH = 1 << 23  # kernel elements at a time, 16 MiB in half: a third of the second-level cache of an H100
DEPTH = 32  # the depth of a tl.dot; channels and classes are padded with zeros to its multiples
STAGES = 4
BLOCK_M = 64  # rows of a tile of the product
PROGRAMS = 264  # wanted at least: two for each multiprocessor of an H100


@triton.jit
def _kernels_of(logits, inside, normalise):
    """Kernels [BLOCK_C, TAPS] in float32, from logits that were loaded as 0 beyond the taps."""
    x = logits.to(tl.float32)
    if normalise:
        x = tl.where(inside, x, float("-inf"))
        x = tl.exp(x - tl.max(x, 1)[:, None])
        x *= (1 / tl.sum(x, 1))[:, None]
    return x


@triton.jit(do_not_specialize=["normalise"])
def _lcs_conv_kernels(
    logits, out, stride_b, stride_t, stride_c, stride_tap,
    T, C, taps, pitch, normalise,
    BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """out[b,tap,t,c] = kernels[b,t,c,tap], 0 for C <= c < pitch; program = (b, t, BLOCK_C)."""
    tiles_c = tl.cdiv(pitch, BLOCK_C)
    tile = tl.program_id(0)
    first, c, tap = tile % tiles_c * BLOCK_C, tl.arange(0, BLOCK_C), tl.arange(0, TAPS)
    b, t = (tile // tiles_c // T).to(tl.int64), (tile // tiles_c % T).to(tl.int64)
    inside = (c < C - first)[:, None] & (tap < taps)[None, :]
    logits += b * stride_b + t * stride_t + first.to(tl.int64) * stride_c
    x = tl.load(logits + c[:, None] * stride_c + tap[None, :] * stride_tap, mask=inside, other=0.0)
    x = tl.where(inside, _kernels_of(x, (tap < taps)[None, :], normalise), 0.0)
    out += (b * taps * T + t) * pitch + first
    offset = tap[None, :] * (T * pitch) + c[:, None]
    tl.store(out + offset, x.to(out.dtype.element_ty), mask=(c < pitch - first)[:, None] & (tap < taps)[None, :])


@triton.jit(do_not_specialize=["normalise"])
def _lcs_conv_kernels_few_taps(
    logits, out, stride_b, stride_t, stride_c, stride_tap,
    T, C, taps, pitch, normalise,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The same, tap after tap as vectors over channels; the second and third read of a logit find it in the cache."""
    tiles_c = tl.cdiv(pitch, BLOCK_C)
    tile = tl.program_id(0)
    first, c = tile % tiles_c * BLOCK_C, tl.arange(0, BLOCK_C)
    b, t = (tile // tiles_c // T).to(tl.int64), (tile // tiles_c % T).to(tl.int64)
    inside = c < C - first
    logits += b * stride_b + t * stride_t + first.to(tl.int64) * stride_c
    out += (b * taps * T + t) * pitch + first
    largest, scale = tl.full([BLOCK_C], float("-inf"), tl.float32), tl.zeros([BLOCK_C], tl.float32)
    if normalise:
        for tap in range(taps):
            x = tl.load(logits + tap * stride_tap + c * stride_c, mask=inside, other=0.0)
            largest = tl.maximum(largest, x.to(tl.float32))
        for tap in range(taps):
            x = tl.load(logits + tap * stride_tap + c * stride_c, mask=inside, other=0.0)
            scale += tl.exp(x.to(tl.float32) - largest)
        scale = 1 / scale
    for tap in range(taps):
        x = tl.load(logits + tap * stride_tap + c * stride_c, mask=inside, other=0.0).to(tl.float32)
        if normalise:
            x = tl.exp(x - largest) * scale
        x = tl.where(inside, x, 0.0).to(out.dtype.element_ty)
        tl.store(out + tap * (T * pitch) + c, x, mask=c < pitch - first)


@triton.jit
def _under(tap, y, x, H, W, K):
    """The pixels under a tap of kernels centred on (y, x), and which of them are inside the image."""
    y, x = y + (tap // K - K // 2), x + (tap % K - K // 2)
    return y * W + x, (y >= 0) & (y < H) & (x >= 0) & (x < W)


@triton.jit(do_not_specialize=["first", "last"])
def _lcs_conv_product(
    kernels, maps, bias, sums, out, stride_bias_b, stride_bias_t, stride_out_b,
    B, T, H, W, K, blocks_c, blocks_depth, blocks_maps, M, steps, first, last,
    BACKWARD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Forward:  out[b,t,n] = bias[b,t] + sum_{tap,c} kernels[b,tap,t,c] maps[b,n+tap,c], with M = T.
    BACKWARD: out[b,c,n] = sum_{tap,t} kernels[b,tap,t,c] maps[b,n-tap,t], with M = C.
    program = (part of the sum, b, BLOCK_M, BLOCK_N)."""
    tiles_n, tiles_m = tl.cdiv(H * W, BLOCK_N), tl.cdiv(M, BLOCK_M)
    tile = tl.program_id(0)
    n = (tile % tiles_n) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = (tile // tiles_n % tiles_m) * BLOCK_M + tl.arange(0, BLOCK_M)
    part_b = tile // tiles_n // tiles_m
    part, b = part_b // B, (part_b % B).to(tl.int64)
    pitch = blocks_c * DEPTH
    depth = tl.arange(0, DEPTH)
    y, x = tl.where(n < H * W, n // W, -K), n % W  # pixels beyond the map lie above the image under every tap
    kernels += b * (K * K) * T * pitch
    maps += b * (H * W) * (blocks_maps * DEPTH)

    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(part * steps, tl.minimum(part * steps + steps, K * K * blocks_depth)):
        tap, d = step // blocks_depth, step % blocks_depth * DEPTH + depth
        if BACKWARD:
            rows = (tap * T + d).to(tl.int64)[:, None] * pitch + m[None, :]
            weights = tl.trans(tl.load(kernels + rows, mask=(d < T)[:, None] & (m < pitch)[None, :], other=0.0))
            source, inside = _under(K * K - 1 - tap, y, x, H, W, K)
        else:
            rows = (tap * T + m).to(tl.int64)[:, None] * pitch + d[None, :]
            weights = tl.load(kernels + rows, mask=(m < M)[:, None], other=0.0)
            source, inside = _under(tap, y, x, H, W, K)
        rows = source.to(tl.int64)[:, None] * (blocks_maps * DEPTH) + d[None, :]
        pixels = tl.load(maps + rows, mask=inside[:, None], other=0.0)
        acc = tl.dot(weights, tl.trans(pixels), acc, input_precision=PRECISION)

    if not BACKWARD:
        with_bias = tl.where((first != 0) & (part == 0), m < M, False)
        shift = tl.load(bias + b * stride_bias_b + m.to(tl.int64) * stride_bias_t, mask=with_bias, other=0.0)
        acc += shift.to(tl.float32)[:, None]
    row = m.to(tl.int64)
    offset = (part_b.to(tl.int64) * M + row)[:, None] * (tiles_n * BLOCK_N) + n[None, :]
    if first == 0:
        acc += tl.load(sums + offset, mask=(m < M)[:, None], other=0.0)
    if last:
        rows = b * stride_out_b + row * (H * W)
        inside = (m < M)[:, None] & (n < H * W)[None, :]
        tl.store(out + rows[:, None] + n[None, :], acc.to(out.dtype.element_ty), mask=inside)
    else:
        tl.store(sums + offset, acc, mask=(m < M)[:, None])


@triton.jit
def _lcs_conv_taps_grad(
    grad, pixels, out, T, H, W, K, blocks_t, blocks_c, blocks_pixels,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[b,tap,t,c] = sum_n grad[b,n,t] pixels[b,n+tap,c] in float32; program = (b, tap, BLOCK_T, BLOCK_C)."""
    pitch_t, pitch_c = blocks_t * DEPTH, blocks_c * DEPTH
    tiles_t, tiles_c = tl.cdiv(T, BLOCK_T), tl.cdiv(pitch_c, BLOCK_C)
    tile = tl.program_id(0)
    t = (tile % tiles_t) * BLOCK_T + tl.arange(0, BLOCK_T)
    c = (tile // tiles_t % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    b_tap = tile // tiles_t // tiles_c
    tap, b = b_tap % (K * K), (b_tap // (K * K)).to(tl.int64)
    grad += b * (H * W) * pitch_t
    pixels += b * (H * W) * (blocks_pixels * DEPTH)

    acc = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in range(0, H * W, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        source, inside = _under(tap, n // W, n % W, H, W, K)
        rows = n.to(tl.int64)[:, None] * pitch_t + t[None, :]
        g = tl.load(grad + rows, mask=(n < H * W)[:, None] & (t < pitch_t)[None, :], other=0.0)
        rows = source.to(tl.int64)[:, None] * (blocks_pixels * DEPTH) + c[None, :]
        x = tl.load(pixels + rows, mask=inside[:, None] & (c < pitch_c)[None, :], other=0.0)
        acc = tl.dot(tl.trans(g), x, acc, input_precision=PRECISION)
    offset = (b_tap.to(tl.int64) * T + t)[:, None] * pitch_c + c[None, :]
    tl.store(out + offset, acc, mask=(t < T)[:, None] & (c < pitch_c)[None, :])


@triton.jit(do_not_specialize=["normalise"])
def _lcs_conv_logits_grad(
    logits, grad, out, stride_b, stride_t, stride_c, stride_tap, stride_out_b, stride_out_t,
    T, C, taps, pitch, normalise,
    BLOCK_C: tl.constexpr, TAPS: tl.constexpr,
):  # fmt: skip
    """From the kernels' gradient grad[b,tap,t,c] to the logits' out[b,t,c,tap]; program = (b, t, BLOCK_C)."""
    tiles_c = tl.cdiv(C, BLOCK_C)
    tile = tl.program_id(0)
    first, c, tap = tile % tiles_c * BLOCK_C, tl.arange(0, BLOCK_C), tl.arange(0, TAPS)
    b, t = (tile // tiles_c // T).to(tl.int64), (tile // tiles_c % T).to(tl.int64)
    inside = (c < C - first)[:, None] & (tap < taps)[None, :]
    grad += (b * taps * T + t) * pitch + first
    g = tl.load(grad + tap[None, :] * (T * pitch) + c[:, None], mask=inside, other=0.0)
    if normalise:
        logits += b * stride_b + t * stride_t + first.to(tl.int64) * stride_c
        x = tl.load(logits + c[:, None] * stride_c + tap[None, :] * stride_tap, mask=inside, other=0.0)
        p = _kernels_of(x, (tap < taps)[None, :], normalise)
        g = p * (g - tl.sum(p * g, 1)[:, None])
    out += b * stride_out_b + t * stride_out_t + first.to(tl.int64) * taps
    tl.store(out + c[:, None] * taps + tap[None, :], g.to(out.dtype.element_ty), mask=inside)


def _exact(dtype: torch.dtype) -> str:
    return precision() if dtype == torch.float32 else "ieee"  # half types have only one way


def _softmax_constants(taps: int) -> dict[str, Any]:
    length = max(16, triton.next_power_of_2(taps))
    return dict(BLOCK_C=max(16, 2048 // length), TAPS=length)


def _padded(length: int) -> int:
    return cdiv(length, DEPTH) * DEPTH


def _rows(maps: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H*W, D padded with zeros to a multiple of DEPTH]; no copy if maps already lies like that."""
    depth = maps.shape[1]
    rows = maps.permute(0, 2, 3, 1)
    rows = F.pad(rows, (0, _padded(depth) - depth)) if depth % DEPTH else rows
    return rows.contiguous().flatten(1, 2)


@planned
def _chunks(batch: int, classes: int, channels: int, taps: int, most: int) -> list[tuple[slice, slice]]:
    """The images and channels of every chunk: at most so many kernel elements, but at least DEPTH channels."""
    smallest = classes * taps * DEPTH
    images = min(max(1, most // smallest), batch)
    step = max(1, most // (images * smallest)) * DEPTH
    return [
        (slice(b, min(b + images, batch)), slice(c, min(c + step, channels)))
        for b, c in product(range(0, batch, images), range(0, channels, step))
    ]


def _of_chunk(x: Tensor, images: slice, channels: slice) -> Tensor:
    """x[images, :, channels]; x itself if that is all of it, because a view takes the host more than a microsecond."""
    if images.stop - images.start == x.shape[0] and channels.stop - channels.start == x.shape[2]:
        return x
    return x[images, :, channels]


def of_images(x: Tensor, images: slice) -> Tensor:
    """Likewise x[images]."""
    return x if images.stop - images.start == x.shape[0] else x[images]


@planned
def _kernels_plan(sizes: tuple[int, ...], normalise: bool) -> tuple[Any, int, int, dict[str, int]]:
    """For logits of these sizes the kernel that is launched, its programs, the pitch, sizes and constants."""
    batch, classes, channels, taps = sizes
    few, pitch = taps <= 25, _padded(channels)
    constants = dict(BLOCK_C=256) if few else _softmax_constants(taps)
    numbers = dict(T=classes, C=channels, taps=taps, pitch=pitch, normalise=int(normalise), **constants)
    programs = batch * classes * triton.cdiv(pitch, constants["BLOCK_C"])
    return _lcs_conv_kernels_few_taps if few else _lcs_conv_kernels, programs, pitch, numbers


def _kernels(logits: Tensor, normalise: bool) -> Tensor:
    """Kernels [B, K*K, T, C padded to a multiple of DEPTH] from logits [B, T, C, K*K] of any strides."""
    sizes = logits.shape
    kernel, programs, pitch, numbers = _kernels_plan(sizes, normalise)
    kernels = logits.new_empty(sizes[0], sizes[3], sizes[1], pitch)
    places = strides(logits, "stride_b", "stride_t", "stride_c", "stride_tap")
    launch(kernel, programs, {"logits": logits, "out": kernels, **places, **numbers})
    return kernels


@planned
def _tiles(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[int, int]:
    """The programs of one part of a sum for results [B, M, H, W], and the length of a row of their tiles."""
    batch, rows, height, width = sizes
    block = _block(dtype)
    across = triton.cdiv(height * width, block)
    return batch * triton.cdiv(rows, BLOCK_M) * across, across * block


def _block(dtype: torch.dtype) -> int:
    """Pixels of a tile of the product."""
    return 64 if dtype == torch.float32 else 128


def _sums(out: Tensor, depth: int, chunks: int) -> Tensor:
    """Accumulators [parts, B, M, N] in float32 for _product, empty if it can write out [B, M, H, W] at once.

    If that takes few programs, the sum over ``depth`` is split into parts, which are added at the end in a fixed order.
    """
    programs, length = _tiles(out.shape, out.dtype)
    parts = max(1, min(PROGRAMS // programs, depth // (8 * DEPTH)))
    if parts * chunks == 1:
        return out.new_empty(0, dtype=torch.float32)
    return out.new_empty(parts, *out.shape[:2], length, dtype=torch.float32)


@planned
def _product_plan(
    kernels: tuple[int, ...], results: tuple[int, ...], dtype: torch.dtype, exact: str, maps_pitch: int, parts: int,
    backward: bool, first: bool, last: bool,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """The programs and all arguments but tensors and strides, for the sizes of kernels and results."""
    _, taps, classes, pitch = kernels
    batch, m, height, width = results
    blocks_depth = (_padded(classes) if backward else pitch) // DEPTH
    return parts * _tiles(results, dtype)[0], {
        **dict(B=batch, T=classes, H=height, W=width, K=math.isqrt(taps), M=m),
        **dict(blocks_c=pitch // DEPTH, blocks_depth=blocks_depth, blocks_maps=maps_pitch // DEPTH),
        **dict(steps=triton.cdiv(taps * blocks_depth, parts), first=int(first), last=int(last and parts == 1)),
        **dict(BACKWARD=backward, BLOCK_M=BLOCK_M, BLOCK_N=_block(dtype), DEPTH=DEPTH, PRECISION=exact),
    }


def _product(
    kernels: Tensor, rows: Tensor, bias: Tensor | None, out: Tensor, sums: Tensor, first: bool = True, last: bool = True
) -> None:
    """One launch of _lcs_conv_product for out [B, M, H, W], which may be a slice: the forward one if there is a bias.

    ``first`` and ``last``: it is for the first or last chunk of the sum.
    """
    dtype, parts, backward = out.dtype, sums.shape[0] or 1, bias is None
    programs, numbers = _product_plan(
        kernels.shape, out.shape, dtype, _exact(dtype), rows.stride()[1], parts, backward, first, last
    )
    bias_image, bias_class = (0, 0) if bias is None else bias.stride()
    call = {
        **{"kernels": kernels, "maps": rows, "bias": out if bias is None else bias, "sums": sums, "out": out},
        **{"stride_out_b": out.stride()[0], "stride_bias_b": bias_image, "stride_bias_t": bias_class},
        **numbers,
    }
    warps = 4 if dtype == torch.float32 else 8
    launch(_lcs_conv_product, programs, call, num_warps=warps, num_stages=STAGES)
    if last and parts > 1:
        height, width = out.shape[2:]
        out.copy_(sums.sum(0)[..., : height * width].unflatten(2, (height, width)))


def _taps_grad(grad_rows: Tensor, rows: Tensor, kernels: Tensor, height: int, width: int) -> Tensor:
    """The gradient of the kernels, in float32 and in their layout."""
    batch, taps, classes, pitch = kernels.shape
    constants = dict(BLOCK_T=64, BLOCK_C=64, BLOCK_N=32, DEPTH=DEPTH, PRECISION=_exact(rows.dtype))
    out = torch.empty_like(kernels, dtype=torch.float32)
    call = {
        **dict(grad=grad_rows, pixels=rows, out=out, T=classes, H=height, W=width, K=math.isqrt(taps)),
        **dict(blocks_t=grad_rows.stride(1) // DEPTH, blocks_c=pitch // DEPTH, blocks_pixels=rows.stride(1) // DEPTH),
        **constants,
    }
    tiles = triton.cdiv(classes, constants["BLOCK_T"]) * triton.cdiv(pitch, constants["BLOCK_C"])
    launch(_lcs_conv_taps_grad, batch * taps * tiles, call, num_stages=STAGES)
    return out


def _logits_grad(logits: Tensor, taps_grad: Tensor, out: Tensor, normalise: bool) -> None:
    batch, classes, channels, taps = logits.shape
    constants = _softmax_constants(taps)
    call = {
        **dict(logits=logits, grad=taps_grad, out=out, T=classes, C=channels, taps=taps, pitch=taps_grad.shape[3]),
        **strides(logits, "stride_b", "stride_t", "stride_c", "stride_tap"),
        **strides(out, "stride_out_b", "stride_out_t"),
        **dict(normalise=int(normalise), **constants),
    }
    launch(_lcs_conv_logits_grad, batch * classes * triton.cdiv(channels, constants["BLOCK_C"]), call)


# Takes the images and the channels of a chunk; returns its logits, or where their gradient goes: [b, T, c, K*K].
OfChunk = Callable[[slice, slice], Tensor]


def convolve(pixels: Tensor, bias: Tensor, kernel_size: int, normalise: bool, logits_of: OfChunk) -> Tensor:
    """lcs_conv [B, T, H, W] with logits that are asked for a chunk at a time."""
    (batch, channels, height, width), classes = pixels.shape, bias.shape[1]
    out = pixels.new_empty(batch, classes, height, width)
    if not out.numel() or channels == 0:
        return out.copy_(bias[:, :, None, None])
    rows = _rows(pixels)
    for images, chunk in _chunks(batch, classes, channels, kernel_size**2, SCRATCH):
        first, last, part = chunk.start == 0, chunk.stop == channels, of_images(out, images)
        if first:
            sums = _sums(part, kernel_size**2 * chunk.stop, cdiv(channels, chunk.stop))
        kernels = _kernels(logits_of(images, chunk), normalise)
        _product(kernels, _of_chunk(rows, images, chunk), of_images(bias, images), part, sums, first, last)
    return out


def convolve_backward(
    grad: Tensor,
    pixels: Tensor,
    dpixels: Tensor,
    kernel_size: int,
    normalise: bool,
    logits_of: OfChunk,
    dlogits_of: OfChunk,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Fills dpixels chunk after chunk; yields every chunk and ``dlogits_of`` it, filled with its logits' gradient."""
    (batch, channels, height, width), classes = pixels.shape, grad.shape[1]
    if not dpixels.numel() or not classes:
        dpixels.zero_()
        return
    rows, grad_rows = _rows(pixels), _rows(grad)
    for images, chunk in _chunks(batch, classes, channels, kernel_size**2, SCRATCH):
        logits, out = logits_of(images, chunk), dpixels[images, chunk]
        kernels = _kernels(logits, normalise)
        _product(kernels, grad_rows[images], None, out, _sums(out, kernel_size**2 * classes, 1))
        taps_grad = _taps_grad(grad_rows[images], rows[images, :, chunk], kernels, height, width)
        dlogits = dlogits_of(images, chunk)
        _logits_grad(logits, taps_grad, dlogits, normalise)
        yield images, chunk, dlogits


def lcs_conv(pixels: Tensor, kernel_logits: Tensor, bias: Tensor, kernel_size: int, norm: str) -> Tensor:
    if norm == "channels":
        kernel_logits = kernel_softmax(kernel_logits, kernel_size, norm).flatten(2)
    batch, classes, _ = kernel_logits.shape
    logits = kernel_logits.view(batch, classes, pixels.shape[1], kernel_size**2)  # whatever the strides
    return convolve(pixels, bias, kernel_size, norm == "taps", lambda images, chunk: _of_chunk(logits, images, chunk))


def lcs_conv_backward(
    grad: Tensor, pixels: Tensor, kernel_logits: Tensor, kernel_size: int, norm: str
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = kernel_softmax(kernel_logits, kernel_size, norm) if norm == "channels" else None
    logits = (kernel_logits if kernels is None else kernels.flatten(2)).unflatten(2, (pixels.shape[1], kernel_size**2))
    dpixels, dlogits = pixels.new_empty(pixels.shape), kernel_logits.new_empty(logits.shape)
    parts = convolve_backward(
        grad, pixels, dpixels, kernel_size, norm == "taps",
        lambda images, chunk: logits[images, :, chunk], lambda images, chunk: dlogits[images, :, chunk],
    )  # fmt: skip
    for _ in parts:
        pass
    if kernels is not None:
        return dpixels, kernel_softmax_backward(dlogits.view(kernels.shape), kernels, norm), grad.sum((2, 3))
    return dpixels, dlogits.flatten(2), grad.sum((2, 3))


def configurations() -> Iterator[Configuration]:
    """No stride is 1, the general case."""

    def spaced(*sizes: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*sizes, 2, dtype=dtype, device="meta")[..., 0]

    b, t, c, h, w = 2, 40, 64, 24, 20
    for dtype, name in FLOATS.items():
        half = dtype != torch.float32
        kernels, bias = torch.empty(b, 9, t, c, dtype=dtype, device="meta"), spaced(b, t, dtype=dtype)
        pixels, grad = (torch.empty(b, n, h, w, dtype=dtype, device="meta") for n in (c, t))
        sums = torch.empty(0, device="meta")
        for one in recorded(_product, kernels, _rows(pixels), bias, grad, sums):
            yield Configuration(f"{name} forward", one, half)
        for one in recorded(_product, kernels, _rows(grad), None, pixels, sums):
            yield Configuration(f"{name} pixels gradient", one, half)
        for one in recorded(_taps_grad, _rows(grad), _rows(pixels), kernels, h, w):
            yield Configuration(f"{name} taps gradient", one, half)
        for kernel_size in (3, 5, 7, 11, 15):
            logits = spaced(b, t, c, kernel_size**2, dtype=dtype)
            taps_grad = torch.empty(b, kernel_size**2, t, c, device="meta")
            if kernel_size != 3:  # 5 is the same configuration
                for one in recorded(_kernels, logits, True):
                    yield Configuration(f"{name} kernels K={kernel_size}", one)
            for one in recorded(_logits_grad, logits, taps_grad, logits, True):
                yield Configuration(f"{name} logits gradient K={kernel_size}", one)

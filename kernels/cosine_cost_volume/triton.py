"""cosine_cost_volume on a GPU, in Triton.

    S[n, x] = <t_n, v_x> / (|t_n| |v_x|)    texts t_n, n = (prompt, class), N = P*T; pixels v_x, X = H*W; lengths >= eps
    dv_x = (sum_n u_n G[n, x] - u_x sum_n G[n, x] S[n, x]) / |v_x|    G the gradient of S, u = v / |v|; the second term
    dt_n = (sum_x u_x G[n, x] - u_n sum_x G[n, x] S[n, x]) / |t_n|    is 0 where a length was raised to eps: a constant

Floor, forward: inputs read and S written once, 2*B*N*X*C operations: S3 (5, 512, 847, 24*24) in bf16 is 2.9 + 4.3 + 4.9
MB and 2.5 GFLOP, what a launch alone costs. So it is one launch: a matrix product that sums the squares of its two
tiles as they pass. Dividing the product, not the vectors, leaves no normalised copy and rounds less.

Backward, three launches of 2*B*N*X*C operations each. Both second terms come from one product G*S, whose sums need S
again but not all channels of a gradient at once; so no raw gradient goes through memory. Launch 1 computes S, its sums
over each tile, and 1 / |.|; 2 and 3 are the two products, with the second term at the end. Scratch, float32:
N + X + N*ceil(X/64) + X*ceil(N/64) numbers an image, 69 KB in S3. Unit vectors are rounded to the inputs' type for the
tensor cores, as they are in PyTorch. Every sum has one order: no atomics.

Tiles are 64*64, forward with half types 128*64 where that still fills the processors: a quarter fewer reads from the
second-level cache. Eight warps, 64 bytes at a time along the sum: with less of the one or more of the other, grids such
as 7*9, whose rows are not aligned, ran out of registers.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import TYPES, Configuration, precision

PROCESSORS = 128  # about those of an A100 or H100
UNSPECIALISED = ("texts_size", "classes")  # whether 16 divides them changes no load
AXES = ("TEXTS", "PIXELS", "CHANNELS")  # of a tile: rows, columns, and along what is summed
PIXELS_GRAD, TEXTS_GRAD = ("CHANNELS", "PIXELS", "TEXTS"), ("CHANNELS", "TEXTS", "PIXELS")


@triton.jit
def _of_text(text, classes, stride_class, stride_prompt):
    """Offsets of the rows `text` = (prompt, class) of texts that are laid out (class, prompt)."""
    return (text // classes).to(tl.int64) * stride_prompt + (text % classes).to(tl.int64) * stride_class


@triton.jit
def _products(
    pixels,
    texts,
    pixel,
    text,
    of_text,
    channels,
    size,
    texts_size,
    stride_pixels_channel,
    stride_pixel,
    stride_texts_channel,
    BLOCK_TEXTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """<t, v> of a tile, and the lengths of its texts and pixels."""
    product = tl.zeros((BLOCK_TEXTS, BLOCK_PIXELS), tl.float32)
    # summed over blocks number by number: threads exchange once, at the end
    texts_squares = tl.zeros((BLOCK_TEXTS, BLOCK_CHANNELS), tl.float32)
    pixels_squares = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        at = of_text[:, None] + channel[None, :].to(tl.int64) * stride_texts_channel
        t = tl.load(texts + at, (text[:, None] < texts_size) & (channel[None, :] < channels), other=0.0)
        at = channel[:, None].to(tl.int64) * stride_pixels_channel + pixel[None, :].to(tl.int64) * stride_pixel
        v = tl.load(pixels + at, (channel[:, None] < channels) & (pixel[None, :] < size), other=0.0)
        product = tl.dot(t, v, product, input_precision=PRECISION)
        texts_squares += t.to(tl.float32) * t.to(tl.float32)
        pixels_squares += v.to(tl.float32) * v.to(tl.float32)
    return product, tl.sqrt(tl.sum(texts_squares, 1)), tl.sqrt(tl.sum(pixels_squares, 0))


@triton.jit
def _tile(size, texts_size, BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """This program's image, and its texts and pixels; neighbouring programs share texts."""
    block = tl.program_id(0)
    pixel_blocks = tl.cdiv(size, BLOCK_PIXELS)
    text_blocks = tl.cdiv(texts_size, BLOCK_TEXTS)
    image = (block // (pixel_blocks * text_blocks)).to(tl.int64)
    text_block = block // pixel_blocks % text_blocks
    return image, text_block, block % pixel_blocks


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume(
    pixels,
    texts,
    cosines,
    channels,
    size,
    texts_size,
    classes,
    stride_pixels_image,
    stride_pixels_channel,
    stride_pixel,
    stride_texts_image,
    stride_class,
    stride_prompt,
    stride_texts_channel,
    eps,
    BLOCK_TEXTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    image, text_block, pixel_block = _tile(size, texts_size, BLOCK_TEXTS, BLOCK_PIXELS)
    text = text_block * BLOCK_TEXTS + tl.arange(0, BLOCK_TEXTS)
    pixel = pixel_block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    product, text_length, pixel_length = _products(
        pixels + image * stride_pixels_image,
        texts + image * stride_texts_image,
        pixel,
        text,
        _of_text(text, classes, stride_class, stride_prompt),
        channels,
        size,
        texts_size,
        stride_pixels_channel,
        stride_pixel,
        stride_texts_channel,
        BLOCK_TEXTS,
        BLOCK_PIXELS,
        BLOCK_CHANNELS,
        PRECISION,
    )
    # one after the other: the product of two small lengths could underflow
    cosine = product * (1.0 / tl.maximum(text_length, eps))[:, None] * (1.0 / tl.maximum(pixel_length, eps))[None, :]
    at = (image * texts_size + text[:, None]) * size + pixel[None, :]
    inside = (text[:, None] < texts_size) & (pixel[None, :] < size)
    tl.store(cosines + at, cosine.to(cosines.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume_sums(
    grad,
    pixels,
    texts,
    pixels_inverse,
    texts_inverse,
    pixels_sums,
    texts_sums,
    channels,
    size,
    texts_size,
    classes,
    stride_grad_image,
    stride_grad_text,
    stride_grad,
    stride_pixels_image,
    stride_pixels_channel,
    stride_pixel,
    stride_texts_image,
    stride_class,
    stride_prompt,
    stride_texts_channel,
    eps,
    BLOCK_TEXTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    image, text_block, pixel_block = _tile(size, texts_size, BLOCK_TEXTS, BLOCK_PIXELS)
    text = text_block * BLOCK_TEXTS + tl.arange(0, BLOCK_TEXTS)
    pixel = pixel_block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    product, text_length, pixel_length = _products(
        pixels + image * stride_pixels_image,
        texts + image * stride_texts_image,
        pixel,
        text,
        _of_text(text, classes, stride_class, stride_prompt),
        channels,
        size,
        texts_size,
        stride_pixels_channel,
        stride_pixel,
        stride_texts_channel,
        BLOCK_TEXTS,
        BLOCK_PIXELS,
        BLOCK_CHANNELS,
        PRECISION,
    )
    text_inverse = 1.0 / tl.maximum(text_length, eps)
    pixel_inverse = 1.0 / tl.maximum(pixel_length, eps)
    at = text[:, None].to(tl.int64) * stride_grad_text + pixel[None, :].to(tl.int64) * stride_grad
    g = tl.load(
        grad + image * stride_grad_image + at, (text[:, None] < texts_size) & (pixel[None, :] < size), other=0.0
    ).to(tl.float32)
    weighted = g * (product * text_inverse[:, None] * pixel_inverse[None, :])
    # a length that was raised to eps has no gradient
    text_sum = tl.where(text_length >= eps, tl.sum(weighted, 1), 0.0)
    pixel_sum = tl.where(pixel_length >= eps, tl.sum(weighted, 0), 0.0)
    of_texts = (image * tl.cdiv(size, BLOCK_PIXELS) + pixel_block) * texts_size
    of_pixels = (image * tl.cdiv(texts_size, BLOCK_TEXTS) + text_block) * size
    tl.store(texts_sums + of_texts + text, text_sum, text < texts_size)
    tl.store(pixels_sums + of_pixels + pixel, pixel_sum, pixel < size)
    tl.store(
        texts_inverse + image * texts_size + text, text_inverse, tl.where(pixel_block == 0, text < texts_size, False)
    )
    tl.store(pixels_inverse + image * size + pixel, pixel_inverse, tl.where(text_block == 0, pixel < size, False))


@triton.jit
def _sum_of_blocks(sums, blocks, size, index):
    """The sums [blocks, size] of one image added up, first block first."""
    total = tl.zeros(index.shape, tl.float32)
    for block in range(0, blocks):
        total += tl.load(sums + block * size + index, index < size, other=0.0)
    return total


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume_pixels_grad(
    grad,
    pixels,
    texts,
    pixels_inverse,
    texts_inverse,
    pixels_sums,
    pixels_grad,
    channels,
    size,
    texts_size,
    classes,
    blocks,
    stride_grad_image,
    stride_grad_text,
    stride_grad,
    stride_pixels_image,
    stride_pixels_channel,
    stride_pixel,
    stride_texts_image,
    stride_class,
    stride_prompt,
    stride_texts_channel,
    BLOCK_TEXTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    image, channel_block, pixel_block = _tile(size, channels, BLOCK_CHANNELS, BLOCK_PIXELS)
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[:, None]
    pixel = pixel_block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    product = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    for first in range(0, texts_size, BLOCK_TEXTS):
        text = first + tl.arange(0, BLOCK_TEXTS)
        at = _of_text(text, classes, stride_class, stride_prompt)[None, :] + channel.to(tl.int64) * stride_texts_channel
        inside = (text[None, :] < texts_size) & (channel < channels)
        t = tl.load(texts + image * stride_texts_image + at, inside, other=0.0)
        inverse = tl.load(texts_inverse + image * texts_size + text, text < texts_size, other=0.0)
        unit = (t.to(tl.float32) * inverse[None, :]).to(t.dtype)
        at = text[:, None].to(tl.int64) * stride_grad_text + pixel[None, :].to(tl.int64) * stride_grad
        g = tl.load(
            grad + image * stride_grad_image + at, (text[:, None] < texts_size) & (pixel[None, :] < size), other=0.0
        )
        product = tl.dot(unit, g, product, input_precision=PRECISION)
    along = _sum_of_blocks(pixels_sums + image * blocks * size, blocks, size, pixel)
    inverse = tl.load(pixels_inverse + image * size + pixel, pixel < size, other=0.0)
    inside = (channel < channels) & (pixel[None, :] < size)
    at = channel.to(tl.int64) * stride_pixels_channel + pixel[None, :].to(tl.int64) * stride_pixel
    v = tl.load(pixels + image * stride_pixels_image + at, inside, other=0.0).to(tl.float32)
    dv = (product - v * (inverse * along)[None, :]) * inverse[None, :]
    at = (image * channels + channel) * size + pixel[None, :]
    tl.store(pixels_grad + at, dv.to(pixels_grad.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume_texts_grad(
    grad,
    pixels,
    texts,
    pixels_inverse,
    texts_inverse,
    texts_sums,
    texts_grad,
    channels,
    size,
    texts_size,
    classes,
    blocks,
    stride_grad_image,
    stride_grad_text,
    stride_grad,
    stride_pixels_image,
    stride_pixels_channel,
    stride_pixel,
    stride_texts_image,
    stride_class,
    stride_prompt,
    stride_texts_channel,
    BLOCK_TEXTS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # transposed, [channels, texts], so that pixels are neighbours in memory and in both operands
    image, channel_block, text_block = _tile(texts_size, channels, BLOCK_CHANNELS, BLOCK_TEXTS)
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[:, None]
    text = text_block * BLOCK_TEXTS + tl.arange(0, BLOCK_TEXTS)
    product = tl.zeros((BLOCK_CHANNELS, BLOCK_TEXTS), tl.float32)
    for first in range(0, size, BLOCK_PIXELS):
        pixel = first + tl.arange(0, BLOCK_PIXELS)
        at = channel.to(tl.int64) * stride_pixels_channel + pixel[None, :].to(tl.int64) * stride_pixel
        inside = (channel < channels) & (pixel[None, :] < size)
        v = tl.load(pixels + image * stride_pixels_image + at, inside, other=0.0)
        inverse = tl.load(pixels_inverse + image * size + pixel, pixel < size, other=0.0)
        unit = (v.to(tl.float32) * inverse[None, :]).to(v.dtype)
        at = text[:, None].to(tl.int64) * stride_grad_text + pixel[None, :].to(tl.int64) * stride_grad
        g = tl.load(
            grad + image * stride_grad_image + at, (text[:, None] < texts_size) & (pixel[None, :] < size), other=0.0
        )
        product = tl.dot(unit, tl.trans(g), product, input_precision=PRECISION)
    along = _sum_of_blocks(texts_sums + image * blocks * texts_size, blocks, texts_size, text)
    inverse = tl.load(texts_inverse + image * texts_size + text, text < texts_size, other=0.0)
    inside = (channel < channels) & (text[None, :] < texts_size)
    at = _of_text(text, classes, stride_class, stride_prompt)[None, :] + channel.to(tl.int64) * stride_texts_channel
    t = tl.load(texts + image * stride_texts_image + at, inside, other=0.0).to(tl.float32)
    dt = (product - t * (inverse * along)[None, :]) * inverse[None, :]
    row = image * texts_size + _of_text(text, classes, texts_size // classes, 1)
    tl.store(texts_grad + row[None, :] * channels + channel, dt.to(texts_grad.dtype.element_ty), inside)


def _choice(dtype: torch.dtype, axes: tuple[str, str, str] = AXES, large: bool = False) -> dict[str, Any]:
    """The constants of a product whose rows, columns and sum are these axes, and how to launch it."""
    sizes = (64, 64, 16) if dtype == torch.float32 else (128 if large else 64, 64, 32)
    blocks = {f"BLOCK_{axis}": size for axis, size in zip(axes, sizes, strict=True)}
    # half types have one way to be multiplied
    return blocks | {"PRECISION": precision() if dtype == torch.float32 else "ieee", "num_warps": 8, "num_stages": 3}


def _views(pixels: Tensor, texts: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """pixels [B, C, X], the sizes and the strides of both; a copy only if rows of pixels are unevenly spaced."""
    pixels = pixels.flatten(2)
    sizes = (*pixels.shape[1:], texts.shape[1] * texts.shape[2], texts.shape[1])
    return pixels, sizes, (*pixels.stride(), *texts.stride())


def cosine_cost_volume(pixels: Tensor, texts: Tensor, eps: float) -> Tensor:
    batch, classes, prompts, _ = texts.shape
    cosines = pixels.new_empty(batch, prompts, classes, *pixels.shape[2:])
    if cosines.numel():
        pixels, sizes, strides = _views(pixels, texts)
        large = batch * triton.cdiv(sizes[2], 128) * triton.cdiv(sizes[1], 64) >= PROCESSORS
        chosen = _choice(pixels.dtype, large=large)
        grid = (batch * triton.cdiv(sizes[2], chosen["BLOCK_TEXTS"]) * triton.cdiv(sizes[1], 64),)
        _cosine_cost_volume[grid](pixels, texts, cosines, *sizes, *strides, eps, **chosen)
    return cosines


def cosine_cost_volume_backward(grad: Tensor, pixels: Tensor, texts: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    pixels_grad, texts_grad = pixels.new_empty(pixels.shape), texts.new_empty(texts.shape)
    if not grad.numel():
        return pixels_grad.zero_(), texts_grad.zero_()
    if not pixels.numel():  # no channels
        return pixels_grad, texts_grad
    pixels, sizes, strides = _views(pixels, texts)
    batch, channels, size = pixels.shape
    texts_size = sizes[2]
    grad = grad.reshape(batch, texts_size, size)  # a view, also of an expanded gradient; a copy if unevenly spaced
    text_blocks, pixel_blocks, channel_blocks = (triton.cdiv(rows, 64) for rows in (texts_size, size, channels))
    scratch = partial(pixels.new_empty, dtype=torch.float32)
    inverse = scratch(batch, size), scratch(batch, texts_size)
    pixels_sums, texts_sums = scratch(batch, text_blocks, size), scratch(batch, pixel_blocks, texts_size)
    inputs, strides = (grad, pixels, texts, *inverse), (*grad.stride(), *strides)
    _cosine_cost_volume_sums[(batch * text_blocks * pixel_blocks,)](
        *inputs, pixels_sums, texts_sums, *sizes, *strides, eps, **_choice(pixels.dtype)
    )
    _cosine_cost_volume_pixels_grad[(batch * channel_blocks * pixel_blocks,)](
        *inputs, pixels_sums, pixels_grad, *sizes, text_blocks, *strides, **_choice(pixels.dtype, PIXELS_GRAD)
    )
    _cosine_cost_volume_texts_grad[(batch * channel_blocks * text_blocks,)](
        *inputs, texts_sums, texts_grad, *sizes, pixel_blocks, *strides, **_choice(pixels.dtype, TEXTS_GRAD)
    )
    if channels == 1:  # a cosine is then 1 or -1 whatever the lengths: a gradient of 0, not what rounding leaves of it
        pixels_grad.view(pixels.shape).masked_fill_(pixels.abs() >= eps, 0)
        texts_grad.masked_fill_(texts.abs() >= eps, 0)
    return pixels_grad, texts_grad


def _launches(pointer: str) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any]]]:
    """Every kernel with its signature and the arguments of its _choice."""
    integers = dict.fromkeys(["channels", "size", "texts_size", "classes"], "i32")
    grad_strides = dict.fromkeys(["stride_grad_image", "stride_grad_text"], "i64")
    strides = ["stride_pixels_image", "stride_pixels_channel", "stride_texts_image", "stride_class", "stride_prompt"]
    end = dict.fromkeys(strides, "i64")
    tensors = dict.fromkeys(["pixels", "texts"], pointer)
    scratch = ["pixels_inverse", "texts_inverse", "pixels_sums", "texts_sums"]
    forward = tensors | {"cosines": pointer} | integers | end | {"eps": "fp32"}
    yield "forward", _cosine_cost_volume, forward, {}
    if pointer != "*fp32":
        yield "forward large", _cosine_cost_volume, forward, {"large": True}
    start = {"grad": pointer} | tensors
    sums = start | dict.fromkeys(scratch, "*fp32") | integers | grad_strides | end | {"eps": "fp32"}
    yield "sums", _cosine_cost_volume_sums, sums, {}
    end = integers | {"blocks": "i32"} | grad_strides | end
    start |= dict.fromkeys(scratch[:2], "*fp32")
    pixels = start | {"pixels_sums": "*fp32", "pixels_grad": pointer} | end
    yield "pixels_grad", _cosine_cost_volume_pixels_grad, pixels, {"axes": PIXELS_GRAD}
    texts = start | {"texts_sums": "*fp32", "texts_grad": pointer} | end
    yield "texts_grad", _cosine_cost_volume_texts_grad, texts, {"axes": TEXTS_GRAD}


def configurations() -> Iterator[Configuration]:
    """Neighbouring pixels and channels are neighbours in memory; float32 is multiplied in both ways."""
    for dtype, name in TYPES.items():
        for (what, kernel, signature, choice), tf32 in product(_launches("*" + name), (False, True)):
            if tf32 and name != "fp32":
                continue
            chosen = _choice(dtype, **choice) | {"PRECISION": "tf32" if tf32 else "ieee"}
            launch = {option: chosen.pop(option) for option in ("num_warps", "num_stages")}
            # Triton makes a stride of 1 a constant
            ones = {s: 1 for s in ("stride_grad", "stride_pixel", "stride_texts_channel") if s in kernel.arg_names}
            matrix = tf32 or name != "fp32"
            label = f"{'tf32' if tf32 else name} {what}"
            yield Configuration(label, kernel, signature, ones | chosen, matrix=matrix, **launch)

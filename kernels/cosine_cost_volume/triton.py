"""cosine_cost_volume on a GPU, in Triton.

    S[n, x] = <t_n, v_x> / (|t_n| |v_x|)    texts t_n, n = (prompt, class), N = P*T; pixels v_x, X = H*W; lengths >= eps
    dv_x = (sum_n u_n G[n, x] - u_x sum_n G[n, x] S[n, x]) / |v_x|    G the gradient of S, u = v / |v|; the second term
    dt_n = (sum_x u_x G[n, x] - u_n sum_x G[n, x] S[n, x]) / |t_n|    is 0 where a length was raised to eps: a constant

Forward is one launch: a matrix product that sums the squares of its two tiles as they pass. Dividing the product
instead of the vectors needs no normalised copy and rounds less.

Backward is three launches, each a product of the same size. Both second terms come from one product G*S, whose sums
need S again but not all channels of a gradient at once, so no raw gradient goes through memory. Launch 1 computes S,
the sums of G*S over each tile, and 1 / |.|; launches 2 and 3 are the two products, with the second term at the end.
Unit vectors are rounded to the inputs' type for the tensor cores, as they are in PyTorch. Every sum has one order: no
atomics. docs/design/kernels.md counts bytes and operations and explains the tiles.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, far_apart, launch, planned, precision, recorded, strides

PROCESSORS = 128  # about those of an A100 or H100
UNSPECIALISED = ("texts_size", "classes")  # whether 16 divides them changes no load
AXES = ("TEXTS", "PIXELS", "CHANNELS")  # of a product: its rows, its columns, and the axis that is summed
PIXELS_GRAD, TEXTS_GRAD = ("CHANNELS", "PIXELS", "TEXTS"), ("CHANNELS", "TEXTS", "PIXELS")


@triton.jit
def _text_offsets(text, classes, stride_class, stride_prompt):
    """Offsets of the texts `text` = (prompt, class) in a tensor that is laid out (class, prompt)."""
    return (text // classes).to(tl.int64) * stride_prompt + (text % classes).to(tl.int64) * stride_class


@triton.jit
def _products(
    pixels, texts, pixel, text, text_offset, channels, size, texts_size,
    stride_pixels_channel, stride_pixel, stride_texts_channel,
    BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """<t, v> of a tile, and the lengths of its texts and pixels."""
    product = tl.zeros((BLOCK_TEXTS, BLOCK_PIXELS), tl.float32)
    # squares are summed over blocks element by element: threads exchange once, at the end
    texts_squares = tl.zeros((BLOCK_TEXTS, BLOCK_CHANNELS), tl.float32)
    pixels_squares = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        channel = first + tl.arange(0, BLOCK_CHANNELS)
        offset = text_offset[:, None] + channel[None, :].to(tl.int64) * stride_texts_channel
        t = tl.load(texts + offset, (text[:, None] < texts_size) & (channel[None, :] < channels), other=0.0)
        offset = channel[:, None].to(tl.int64) * stride_pixels_channel + pixel[None, :].to(tl.int64) * stride_pixel
        v = tl.load(pixels + offset, (channel[:, None] < channels) & (pixel[None, :] < size), other=0.0)
        product = tl.dot(t, v, product, input_precision=PRECISION)
        texts_squares += t.to(tl.float32) * t.to(tl.float32)
        pixels_squares += v.to(tl.float32) * v.to(tl.float32)
    return product, tl.sqrt(tl.sum(texts_squares, 1)), tl.sqrt(tl.sum(pixels_squares, 0))


@triton.jit
def _tile(size, texts_size, BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr):
    """This program's image, block of texts and block of pixels; neighbouring programs share texts."""
    block = tl.program_id(0)
    pixel_blocks = tl.cdiv(size, BLOCK_PIXELS)
    text_blocks = tl.cdiv(texts_size, BLOCK_TEXTS)
    image = (block // (pixel_blocks * text_blocks)).to(tl.int64)
    text_block = block // pixel_blocks % text_blocks
    return image, text_block, block % pixel_blocks


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume(
    pixels, texts, cosines, channels, size, texts_size, classes,
    stride_pixels_image, stride_pixels_channel, stride_pixel,
    stride_texts_image, stride_class, stride_prompt, stride_texts_channel, eps,
    BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, text_block, pixel_block = _tile(size, texts_size, BLOCK_TEXTS, BLOCK_PIXELS)
    text = text_block * BLOCK_TEXTS + tl.arange(0, BLOCK_TEXTS)
    pixel = pixel_block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    product, text_length, pixel_length = _products(
        pixels + image * stride_pixels_image, texts + image * stride_texts_image,
        pixel, text, _text_offsets(text, classes, stride_class, stride_prompt), channels, size, texts_size,
        stride_pixels_channel, stride_pixel, stride_texts_channel,
        BLOCK_TEXTS, BLOCK_PIXELS, BLOCK_CHANNELS, PRECISION,
    )  # fmt: skip
    # one after the other: the product of two small lengths could underflow
    cosine = product * (1.0 / tl.maximum(text_length, eps))[:, None] * (1.0 / tl.maximum(pixel_length, eps))[None, :]
    offset = (image * texts_size + text[:, None]) * size + pixel[None, :]
    inside = (text[:, None] < texts_size) & (pixel[None, :] < size)
    tl.store(cosines + offset, cosine.to(cosines.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume_sums(
    grad, pixels, texts, pixels_inverse, texts_inverse, pixels_sums, texts_sums, channels, size, texts_size, classes,
    stride_grad_image, stride_grad_text, stride_grad, stride_pixels_image, stride_pixels_channel, stride_pixel,
    stride_texts_image, stride_class, stride_prompt, stride_texts_channel, eps,
    BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The sums of G*S over each tile, along both of its axes, and the inverse lengths."""
    image, text_block, pixel_block = _tile(size, texts_size, BLOCK_TEXTS, BLOCK_PIXELS)
    text = text_block * BLOCK_TEXTS + tl.arange(0, BLOCK_TEXTS)
    pixel = pixel_block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    product, text_length, pixel_length = _products(
        pixels + image * stride_pixels_image, texts + image * stride_texts_image,
        pixel, text, _text_offsets(text, classes, stride_class, stride_prompt), channels, size, texts_size,
        stride_pixels_channel, stride_pixel, stride_texts_channel,
        BLOCK_TEXTS, BLOCK_PIXELS, BLOCK_CHANNELS, PRECISION,
    )  # fmt: skip
    text_inverse = 1.0 / tl.maximum(text_length, eps)
    pixel_inverse = 1.0 / tl.maximum(pixel_length, eps)
    offset = text[:, None].to(tl.int64) * stride_grad_text + pixel[None, :].to(tl.int64) * stride_grad
    g = tl.load(
        grad + image * stride_grad_image + offset, (text[:, None] < texts_size) & (pixel[None, :] < size), other=0.0
    ).to(tl.float32)
    weighted = g * (product * text_inverse[:, None] * pixel_inverse[None, :])
    # a length that was raised to eps has no gradient
    text_sum = tl.where(text_length >= eps, tl.sum(weighted, 1), 0.0)
    pixel_sum = tl.where(pixel_length >= eps, tl.sum(weighted, 0), 0.0)
    first_text = (image * tl.cdiv(size, BLOCK_PIXELS) + pixel_block) * texts_size
    first_pixel = (image * tl.cdiv(texts_size, BLOCK_TEXTS) + text_block) * size
    tl.store(texts_sums + first_text + text, text_sum, text < texts_size)
    tl.store(pixels_sums + first_pixel + pixel, pixel_sum, pixel < size)
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
    grad, pixels, texts, pixels_inverse, texts_inverse, pixels_sums, pixels_grad,
    channels, size, texts_size, classes, blocks,
    stride_grad_image, stride_grad_text, stride_grad, stride_pixels_image, stride_pixels_channel, stride_pixel,
    stride_texts_image, stride_class, stride_prompt, stride_texts_channel,
    BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image, channel_block, pixel_block = _tile(size, channels, BLOCK_CHANNELS, BLOCK_PIXELS)
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[:, None]
    pixel = pixel_block * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    product = tl.zeros((BLOCK_CHANNELS, BLOCK_PIXELS), tl.float32)
    for first in range(0, texts_size, BLOCK_TEXTS):
        text = first + tl.arange(0, BLOCK_TEXTS)
        offset = _text_offsets(text, classes, stride_class, stride_prompt)[None, :]
        offset += channel.to(tl.int64) * stride_texts_channel
        inside = (text[None, :] < texts_size) & (channel < channels)
        t = tl.load(texts + image * stride_texts_image + offset, inside, other=0.0)
        inverse = tl.load(texts_inverse + image * texts_size + text, text < texts_size, other=0.0)
        unit = (t.to(tl.float32) * inverse[None, :]).to(t.dtype)
        offset = text[:, None].to(tl.int64) * stride_grad_text + pixel[None, :].to(tl.int64) * stride_grad
        g = tl.load(
            grad + image * stride_grad_image + offset, (text[:, None] < texts_size) & (pixel[None, :] < size), other=0.0
        )
        product = tl.dot(unit, g, product, input_precision=PRECISION)
    along = _sum_of_blocks(pixels_sums + image * blocks * size, blocks, size, pixel)
    inverse = tl.load(pixels_inverse + image * size + pixel, pixel < size, other=0.0)
    inside = (channel < channels) & (pixel[None, :] < size)
    offset = channel.to(tl.int64) * stride_pixels_channel + pixel[None, :].to(tl.int64) * stride_pixel
    v = tl.load(pixels + image * stride_pixels_image + offset, inside, other=0.0).to(tl.float32)
    dv = (product - v * (inverse * along)[None, :]) * inverse[None, :]
    offset = (image * channels + channel) * size + pixel[None, :]
    tl.store(pixels_grad + offset, dv.to(pixels_grad.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _cosine_cost_volume_texts_grad(
    grad, pixels, texts, pixels_inverse, texts_inverse, texts_sums, texts_grad,
    channels, size, texts_size, classes, blocks,
    stride_grad_image, stride_grad_text, stride_grad, stride_pixels_image, stride_pixels_channel, stride_pixel,
    stride_texts_image, stride_class, stride_prompt, stride_texts_channel,
    BLOCK_TEXTS: tl.constexpr, BLOCK_PIXELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # transposed, [channels, texts], so that pixels are adjacent in memory and in both operands
    image, channel_block, text_block = _tile(texts_size, channels, BLOCK_CHANNELS, BLOCK_TEXTS)
    channel = channel_block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)[:, None]
    text = text_block * BLOCK_TEXTS + tl.arange(0, BLOCK_TEXTS)
    product = tl.zeros((BLOCK_CHANNELS, BLOCK_TEXTS), tl.float32)
    for first in range(0, size, BLOCK_PIXELS):
        pixel = first + tl.arange(0, BLOCK_PIXELS)
        offset = channel.to(tl.int64) * stride_pixels_channel + pixel[None, :].to(tl.int64) * stride_pixel
        inside = (channel < channels) & (pixel[None, :] < size)
        v = tl.load(pixels + image * stride_pixels_image + offset, inside, other=0.0)
        inverse = tl.load(pixels_inverse + image * size + pixel, pixel < size, other=0.0)
        unit = (v.to(tl.float32) * inverse[None, :]).to(v.dtype)
        offset = text[:, None].to(tl.int64) * stride_grad_text + pixel[None, :].to(tl.int64) * stride_grad
        g = tl.load(
            grad + image * stride_grad_image + offset, (text[:, None] < texts_size) & (pixel[None, :] < size), other=0.0
        )
        product = tl.dot(unit, tl.trans(g), product, input_precision=PRECISION)
    along = _sum_of_blocks(texts_sums + image * blocks * texts_size, blocks, texts_size, text)
    inverse = tl.load(texts_inverse + image * texts_size + text, text < texts_size, other=0.0)
    inside = (channel < channels) & (text[None, :] < texts_size)
    text_offset = _text_offsets(text, classes, stride_class, stride_prompt)
    offset = text_offset[None, :] + channel.to(tl.int64) * stride_texts_channel
    t = tl.load(texts + image * stride_texts_image + offset, inside, other=0.0).to(tl.float32)
    dt = (product - t * (inverse * along)[None, :]) * inverse[None, :]
    row = image * texts_size + _text_offsets(text, classes, texts_size // classes, 1)
    tl.store(texts_grad + row[None, :] * channels + channel, dt.to(texts_grad.dtype.element_ty), inside)


def _constants(dtype: torch.dtype, axes: tuple[str, str, str], large: bool, exact: str) -> dict[str, Any]:
    """The constants of a product whose rows, columns and summed axis are these."""
    sizes = (64, 64, 16) if dtype == torch.float32 else (128 if large else 64, 64, 32)
    blocks = {f"BLOCK_{axis}": size for axis, size in zip(axes, sizes, strict=True)}
    return blocks | {"PRECISION": exact}


@planned
def _plan(
    axes: tuple[str, str, str], pixels: tuple[int, ...], texts: tuple[int, ...], dtype: torch.dtype, processors: int,
    exact: str,
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    """The programs, one per tile of the product, the sizes and the constants for pixels [B, C, X] and texts.

    processors  tiles are larger if these many get one; 0: they are not
    """
    large = 0 < processors <= pixels[0] * triton.cdiv(texts[1] * texts[2], 128) * triton.cdiv(pixels[2], 64)
    sizes = {"PIXELS": pixels[2], "TEXTS": texts[1] * texts[2], "CHANNELS": pixels[1]}
    constants = _constants(dtype, axes, large, exact)
    tiles = [triton.cdiv(sizes[axis], constants[f"BLOCK_{axis}"]) for axis in axes[:2]]
    numbers = dict(channels=sizes["CHANNELS"], size=sizes["PIXELS"], texts_size=sizes["TEXTS"], classes=texts[1])
    return pixels[0] * tiles[0] * tiles[1], {**numbers, **constants}


def _launch(
    kernel: Any, axes: tuple[str, str, str], pixels: Tensor, texts: Tensor, processors: int = 0, **arguments: Any
) -> None:
    """Runs a kernel for pixels [B, C, X] and texts [B, T, P, C], one program per tile of its product."""
    exact = precision() if pixels.dtype == torch.float32 else "ieee"  # half types have only one way
    programs, shared = _plan(axes, pixels.shape, texts.shape, pixels.dtype, processors, exact)
    places = {
        **strides(pixels, "stride_pixels_image", "stride_pixels_channel", "stride_pixel"),
        **strides(texts, "stride_texts_image", "stride_class", "stride_prompt", "stride_texts_channel"),
    }
    call = {"pixels": pixels, "texts": texts, **shared, **places, **arguments}
    launch(kernel, programs, call, num_warps=8, num_stages=3)


def cosine_cost_volume(pixels: Tensor, texts: Tensor, eps: float) -> Tensor:
    batch, classes, prompts, _ = texts.shape
    _, _, height, width = pixels.shape
    cosines = pixels.new_empty(batch, prompts, classes, height, width)
    if cosines.numel():
        pixels = pixels.flatten(2)  # a copy only if the rows of an image are unevenly spaced
        _launch(_cosine_cost_volume, AXES, pixels, texts, PROCESSORS, cosines=cosines, eps=eps)
    return cosines


def cosine_cost_volume_backward(grad: Tensor, pixels: Tensor, texts: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    pixels_grad, texts_grad = pixels.new_empty(pixels.shape), texts.new_empty(texts.shape)
    if not grad.numel():
        return pixels_grad.zero_(), texts_grad.zero_()
    if not pixels.numel():  # no channels
        return pixels_grad, texts_grad
    pixels = pixels.flatten(2)
    batch, size, texts_size = len(pixels), pixels.shape[2], texts.shape[1] * texts.shape[2]
    grad = grad.reshape(batch, texts_size, size)  # a view, also of an expanded gradient; a copy if unevenly spaced
    text_blocks, pixel_blocks = triton.cdiv(texts_size, 64), triton.cdiv(size, 64)
    scratch = partial(pixels.new_empty, dtype=torch.float32)
    pixels_sums, texts_sums = scratch(batch, text_blocks, size), scratch(batch, pixel_blocks, texts_size)
    shared: dict[str, Any] = {
        **dict(pixels=pixels, texts=texts, grad=grad),
        **dict(pixels_inverse=scratch(batch, size), texts_inverse=scratch(batch, texts_size)),
        **dict(pixels_sums=pixels_sums, texts_sums=texts_sums),
        **strides(grad, "stride_grad_image", "stride_grad_text", "stride_grad"),
    }
    _launch(_cosine_cost_volume_sums, AXES, **shared, eps=eps)
    _launch(_cosine_cost_volume_pixels_grad, PIXELS_GRAD, **shared, pixels_grad=pixels_grad, blocks=text_blocks)
    _launch(_cosine_cost_volume_texts_grad, TEXTS_GRAD, **shared, texts_grad=texts_grad, blocks=pixel_blocks)
    if pixels.shape[1] == 1:  # a cosine is 1 or -1 whatever the lengths: its gradient is 0, not what rounding leaves
        pixels_grad.view(pixels.shape).masked_fill_(pixels.abs() >= eps, 0)
        texts_grad.masked_fill_(texts.abs() >= eps, 0)
    return pixels_grad, texts_grad


def configurations() -> Iterator[Configuration]:
    """Adjacent pixels and channels are adjacent in memory; float32 is multiplied in both ways."""
    labels = ("forward", "forward large", "sums", "pixels_grad", "texts_grad")
    for dtype, name in FLOATS.items():
        pixels = far_apart(2, 512, 24 * 24, dtype=dtype).unflatten(2, (24, 24))
        texts, many = (far_apart(2, classes, 2, 512, dtype=dtype) for classes in (60, 847))
        grad = far_apart(2, 2 * 60, 24 * 24, dtype=dtype).view(2, 2, 60, 24, 24)
        launches = recorded(cosine_cost_volume, pixels, texts, 1e-12)
        launches += recorded(cosine_cost_volume, pixels, many, 1e-12)
        launches += recorded(cosine_cost_volume_backward, grad, pixels, texts, 1e-12)
        for label, one in zip(labels, launches, strict=True):
            if dtype != torch.float32:
                yield Configuration(f"{name} {label}", one, matrix=True)
            elif label != "forward large":  # float32 has one size of tiles
                for exact in ("ieee", "tf32"):
                    same = replace(one, arguments=one.arguments | {"PRECISION": exact})
                    yield Configuration(f"{name if exact == 'ieee' else exact} {label}", same, matrix=exact == "tf32")

"""group_norm_relu on a GPU, in Triton: one program for every map and group, which reads its share of x twice.

    y = relu(w u + b),  u = (x - mean) / deviation
    dx = (w g - mean(w g) - u mean(w g u)) / deviation,  g the gradient, 0 where ReLU cut off;  dw = sum g u, db = sum g

Every element of a tile of [pixels, channels of the group] keeps the mean of what it has read and the sum of squared
differences from it (Welford's recurrence), and the elements are combined once, at the end: nothing cancels, and threads
exchange nothing in the loop. The second loop goes back from the last tile, which is still in the second-level cache.

Backward is one launch of the same form, with the sums of g and g u over the pixels in its first loop. They are written
for every map, and PyTorch adds the maps up. Every sum has one order: no atomics.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, launch, planned, recorded

ELEMENTS = 4096  # of a tile, 16 a thread
WARPS = 8


@triton.jit
def _place(pixels, channels, groups, SIZE: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr):
    """This program's map and group, where it begins, and the pixels, channels and offsets of a tile."""
    map_, group = (tl.program_id(0) // groups).to(tl.int64), tl.program_id(0) % groups
    pixel, channel = tl.arange(0, PIXELS)[:, None], tl.arange(0, BLOCK)[None, :]
    return map_, group, map_ * pixels * channels + group * SIZE, pixel, channel, pixel * channels + channel


@triton.jit
def _group_norm_relu(
    x, weight, bias, y, moments, pixels, channels, groups, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    map_, group, first, pixel, channel, offset = _place(pixels, channels, groups, SIZE, BLOCK, PIXELS)
    valid, row = channel < SIZE, tl.cast(channels, tl.int64)
    mean = tl.zeros((PIXELS, BLOCK), tl.float32)
    squares = tl.zeros((PIXELS, BLOCK), tl.float32)
    for start in range(0, pixels, PIXELS):
        inside = valid & (pixel < pixels - start)
        value = tl.load(x + (first + start * row) + offset, inside, other=0.0).to(tl.float32)
        difference = tl.where(inside, value - mean, 0.0)
        mean += difference * (1.0 / (start // PIXELS + 1))
        squares += difference * (value - mean)
    # the elements beyond the last pixel have read one tile less, or none
    count = tl.where(valid, (pixels - pixel + PIXELS - 1) // PIXELS, 0).to(tl.float32)
    size = tl.cast(pixels, tl.float32) * SIZE
    centre = tl.sum(tl.sum(mean * count, 1), 0) / size
    apart = mean - centre
    variance = tl.sum(tl.sum(squares + count * apart * apart, 1), 0) / size
    inverse = 1.0 / tl.sqrt(variance + eps)
    at = moments + (map_ * groups + group) * 2
    tl.store(at, centre)
    tl.store(at + 1, inverse)
    scale = tl.load(weight + group * SIZE + channel, valid, other=0.0).to(tl.float32) * inverse
    shift = tl.load(bias + group * SIZE + channel, valid, other=0.0).to(tl.float32)
    for step in range(0, pixels, PIXELS):
        start = (pixels - 1 - step) // PIXELS * PIXELS
        inside = valid & (pixel < pixels - start)
        place = (first + start * row) + offset
        value = tl.load(x + place, inside, other=0.0).to(tl.float32)
        z = (value - centre) * scale + shift
        if RELU:
            z = tl.where(z < 0, 0.0, z)  # NaN stays
        tl.store(y + place, z.to(y.dtype.element_ty), inside)


@triton.jit
def _normalised(grad, x, place, inside, centre, inverse, scale, shift, RELU: tl.constexpr):
    """g, which is 0 where ReLU cut off, and u of a tile; both 0 outside."""
    u = tl.where(inside, (tl.load(x + place, inside, other=0.0).to(tl.float32) - centre) * inverse, 0.0)
    g = tl.load(grad + place, inside, other=0.0).to(tl.float32)
    if RELU:
        g = tl.where(u * scale + shift <= 0, 0.0, g)
    return g, u


@triton.jit
def _group_norm_relu_backward(
    grad, x, weight, bias, moments, x_grad, sums, maps, pixels, channels, groups,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PIXELS: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    map_, group, first, pixel, channel, offset = _place(pixels, channels, groups, SIZE, BLOCK, PIXELS)
    valid, row = channel < SIZE, tl.cast(channels, tl.int64)
    at = moments + (map_ * groups + group) * 2
    centre, inverse = tl.load(at), tl.load(at + 1)
    scale = tl.load(weight + group * SIZE + channel, valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + group * SIZE + channel, valid, other=0.0).to(tl.float32)
    total = tl.zeros((PIXELS, BLOCK), tl.float32)
    weighted = tl.zeros((PIXELS, BLOCK), tl.float32)
    for start in range(0, pixels, PIXELS):
        inside = valid & (pixel < pixels - start)
        place = (first + start * row) + offset
        g, u = _normalised(grad, x, place, inside, centre, inverse, scale, shift, RELU)
        total += g
        weighted += g * u
    of_bias = tl.sum(total, 0)[None, :]
    of_weight = tl.sum(weighted, 0)[None, :]
    to = sums + map_ * channels + group * SIZE + channel
    tl.store(to, of_weight, valid)
    tl.store(to + maps * row, of_bias, valid)
    size = tl.cast(pixels, tl.float32) * SIZE
    mean = tl.sum(tl.sum(of_bias * scale, 1), 0) / size
    slope = tl.sum(tl.sum(of_weight * scale, 1), 0) / size
    for step in range(0, pixels, PIXELS):
        start = (pixels - 1 - step) // PIXELS * PIXELS
        inside = valid & (pixel < pixels - start)
        place = (first + start * row) + offset
        g, u = _normalised(grad, x, place, inside, centre, inverse, scale, shift, RELU)
        dx = (g * scale - mean - u * slope) * inverse
        tl.store(x_grad + place, dx.to(x_grad.dtype.element_ty), inside)


@planned
def _plan(sizes: tuple[int, ...], groups: int, relu: bool) -> dict[str, int]:
    maps, height, width, channels = sizes
    size = channels // groups
    block = triton.next_power_of_2(size)
    tile = {"SIZE": size, "BLOCK": block, "PIXELS": ELEMENTS // block, "RELU": relu}
    return {"maps": maps, "pixels": height * width, "channels": channels, "groups": groups, **tile}


def _launch(kernel: Any, x: Tensor, groups: int, relu: bool, **arguments: Any) -> None:
    shared = _plan(x.shape, groups, relu)
    if shared["maps"]:
        launch(kernel, shared["maps"] * groups, {"x": x, **shared, **arguments}, num_warps=WARPS)


def group_norm_relu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, relu: bool
) -> tuple[Tensor, Tensor]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y, moments = x.new_empty(*x.shape), x.new_empty(x.shape[0], groups, 2, dtype=torch.float32)
    _launch(_group_norm_relu, x, groups, relu, weight=weight, bias=bias, y=y, moments=moments, eps=eps)
    return y, moments


def group_norm_relu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, moments: Tensor, groups: int, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad, x, weight, bias = grad.contiguous(), x.contiguous(), weight.contiguous(), bias.contiguous()
    x_grad, sums = x.new_empty(x.shape), x.new_empty(2, x.shape[0], x.shape[3], dtype=torch.float32)
    inputs = {"grad": grad, "weight": weight, "bias": bias, "moments": moments.contiguous()}
    _launch(_group_norm_relu_backward, x, groups, relu, **inputs, x_grad=x_grad, sums=sums)
    return x_grad, sums[0].sum(0).to(x.dtype), sums[1].sum(0).to(x.dtype)


def configurations() -> Iterator[Configuration]:
    """The model's groups of 16 channels, and one that is no power of two; more elements than 32 bits count."""
    for (dtype, name), (size, relu) in product(FLOATS.items(), ((16, True), (12, False))):
        x = torch.empty(3000, 96, 96, 8 * size, dtype=dtype, device="meta")
        weight, moments = x.new_empty(8 * size), x.new_empty(3000, 8, 2, dtype=torch.float32)
        launches = recorded(group_norm_relu, x, weight, weight, 8, 1e-5, relu)
        launches += recorded(group_norm_relu_backward, x, x, weight, weight, moments, 8, relu)
        for one in launches:
            yield Configuration(f"{name} C/groups={size} relu={relu}", one)

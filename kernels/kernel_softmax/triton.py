"""kernel_softmax on a GPU, in Triton.

    "taps"      p[c, i] = exp(x[c, i] - max_i x[c, i]) / sum_i      a class is a matrix of C channels by K*K taps,
    "channels"  p[c, i] = exp(x[c, i] - max_c x[c, i]) / sum_c      normalised along one of its axes
    backward    dx = p (g - sum p g) along the same axis: only the output is kept

A program holds a tile [BLOCK_CHANNELS, BLOCK_TAPS] of one class in registers, in float32, whole along the summed axis,
so nothing is read twice. Taps are padded to a power of two and masked; as rows are adjacent in memory, every sector
that is fetched is used. Up to 9 taps, each of them is a vector over channels, so that sums stay within a thread. More
than 1024 channels do not fit: a loop with a running maximum sums them, and they are read again for the result.
docs/design/kernels.md has the counts.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .._triton import FLOATS, Configuration, far_apart, launch, planned, recorded

UNSPECIALISED = ("classes", "channels", "taps")  # not worth compilations of their own


@triton.jit
def _tile(classes, channels, taps, BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr):
    """This program's image and class, and its tile's channels [BLOCK_CHANNELS, 1] and taps [1, BLOCK_TAPS]."""
    tap_blocks = tl.cdiv(taps, BLOCK_TAPS)
    channel_blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    block = tl.program_id(0)
    row = block // (channel_blocks * tap_blocks)
    channel = block // tap_blocks % channel_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    tap = block % tap_blocks * BLOCK_TAPS + tl.arange(0, BLOCK_TAPS)
    return (row // classes).to(tl.int64), (row % classes).to(tl.int64), channel[:, None], tap[None, :]


@triton.jit(do_not_specialize=UNSPECIALISED)
def _kernel_softmax(
    logits, kernels, classes, channels, taps, stride_image, stride_class, stride,
    AXIS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    image, class_, channel, tap = _tile(classes, channels, taps, BLOCK_CHANNELS, BLOCK_TAPS)
    inside = (channel < channels) & (tap < taps)
    offset = (channel * taps + tap).to(tl.int64)
    logits += image * stride_image + class_ * stride_class
    kernels += (image * classes + class_) * channels * taps
    x = tl.load(logits + offset * stride, inside, other=0.0).to(tl.float32)
    # padding along the axis is -inf, which exp makes 0; across it, it is rows of zeros that are not stored
    if AXIS == 1:
        x = tl.where(tap < taps, x, float("-inf"))
    else:
        x = tl.where(channel < channels, x, float("-inf"))
    e = tl.exp(x - tl.max(x, AXIS, keep_dims=True))
    p = e * (1.0 / tl.sum(e, AXIS, keep_dims=True))
    tl.store(kernels + offset, p.to(kernels.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _kernel_softmax_backward(
    grad, kernels, logits_grad, classes, channels, taps, stride_image, stride_class, stride,
    AXIS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    image, class_, channel, tap = _tile(classes, channels, taps, BLOCK_CHANNELS, BLOCK_TAPS)
    inside = (channel < channels) & (tap < taps)
    offset = (channel * taps + tap).to(tl.int64)
    grad += image * stride_image + class_ * stride_class
    first = (image * classes + class_) * channels * taps
    p = tl.load(kernels + first + offset, inside, other=0.0).to(tl.float32)
    g = tl.load(grad + offset * stride, inside, other=0.0).to(tl.float32)
    dx = p * (g - tl.sum(p * g, AXIS, keep_dims=True))
    tl.store(logits_grad + first + offset, dx.to(logits_grad.dtype.element_ty), inside)


@triton.jit
def _load_taps(pointer, channel, stride, inside, taps: tl.constexpr):
    """Loads every tap as a vector over channels."""
    vectors = ()
    for tap in tl.static_range(taps):
        offset = (channel * taps + tap).to(tl.int64) * stride
        vectors += (tl.load(pointer + offset, inside, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    return vectors


@triton.jit
def _store_taps(pointer, channel, channels, vectors, taps: tl.constexpr, LOG_TAPS: tl.constexpr):
    """Stores the vectors as one tile [channels, 2^LOG_TAPS], whose rows are contiguous in memory."""
    for _ in tl.static_range(taps, 1 << LOG_TAPS):
        vectors += (vectors[0],)  # padding, which the mask leaves out
    for log_half in tl.static_range(LOG_TAPS - 1, -1, -1):
        joined = ()
        for i in tl.static_range(1 << log_half):
            joined += (tl.join(vectors[i], vectors[i + (1 << log_half)]),)  # type: ignore[assignment]
        vectors = joined
    tile = tl.reshape(vectors[0], (channel.shape[0], 1 << LOG_TAPS))
    tap = tl.arange(0, 1 << LOG_TAPS)[None, :]
    offset = (channel[:, None] * taps + tap).to(tl.int64)
    tl.store(pointer + offset, tile.to(pointer.dtype.element_ty), (channel[:, None] < channels) & (tap < taps))


@triton.jit(do_not_specialize=UNSPECIALISED[:2])
def _kernel_softmax_few_taps(
    logits, kernels, classes, channels, taps: tl.constexpr, stride_image, stride_class, stride,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr, LOG_TAPS: tl.constexpr,
):  # fmt: skip
    image, class_, channel, _ = _tile(classes, channels, taps, BLOCK_CHANNELS, BLOCK_TAPS)
    channel = tl.reshape(channel, (BLOCK_CHANNELS,))
    logits += image * stride_image + class_ * stride_class
    x = _load_taps(logits, channel, stride, channel < channels, taps)
    top = x[0]
    for tap in tl.static_range(1, taps):
        top = tl.maximum(top, x[tap])
    e = ()
    total = tl.zeros_like(top)
    for tap in tl.static_range(taps):
        e += (tl.exp(x[tap] - top),)  # type: ignore[assignment]
        total += e[tap]
    scale = 1.0 / total
    p = ()
    for tap in tl.static_range(taps):
        p += (e[tap] * scale,)  # type: ignore[assignment]
    first = (image * classes + class_) * channels * taps
    _store_taps(kernels + first, channel, channels, p, taps, LOG_TAPS)


@triton.jit(do_not_specialize=UNSPECIALISED[:2])
def _kernel_softmax_few_taps_backward(
    grad, kernels, logits_grad, classes, channels, taps: tl.constexpr, stride_image, stride_class, stride,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr, LOG_TAPS: tl.constexpr,
):  # fmt: skip
    image, class_, channel, _ = _tile(classes, channels, taps, BLOCK_CHANNELS, BLOCK_TAPS)
    channel = tl.reshape(channel, (BLOCK_CHANNELS,))
    grad += image * stride_image + class_ * stride_class
    first = (image * classes + class_) * channels * taps
    p = _load_taps(kernels + first, channel, 1, channel < channels, taps)
    g = _load_taps(grad, channel, stride, channel < channels, taps)
    dot = tl.zeros_like(p[0])
    for tap in tl.static_range(taps):
        dot += p[tap] * g[tap]
    dx = ()
    for tap in tl.static_range(taps):
        dx += (p[tap] * (g[tap] - dot),)  # type: ignore[assignment]
    _store_taps(logits_grad + first, channel, channels, dx, taps, LOG_TAPS)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _kernel_softmax_many_channels(
    logits, kernels, classes, channels, taps, stride_image, stride_class, stride,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    # the grid has one block of channels; the loops run over all
    image, class_, channel, tap = _tile(classes, BLOCK_CHANNELS, taps, BLOCK_CHANNELS, BLOCK_TAPS)
    logits += image * stride_image + class_ * stride_class
    kernels += (image * classes + class_) * channels * taps
    top = tl.full((1, BLOCK_TAPS), float("-inf"), tl.float32)
    total = tl.zeros((1, BLOCK_TAPS), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        inside = (first + channel < channels) & (tap < taps)
        offset = ((first + channel) * taps + tap).to(tl.int64)
        x = tl.load(logits + offset * stride, inside, other=0.0).to(tl.float32)
        x = tl.where(first + channel < channels, x, float("-inf"))
        higher = tl.maximum(top, tl.max(x, 0, keep_dims=True))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # only -inf so far: the sum is 0 instead of NaN
        total = total * tl.exp(top - level) + tl.sum(tl.exp(x - level), 0, keep_dims=True)
        top = higher
    scale = 1.0 / total
    for first in range(0, channels, BLOCK_CHANNELS):
        inside = (first + channel < channels) & (tap < taps)
        offset = ((first + channel) * taps + tap).to(tl.int64)
        x = tl.load(logits + offset * stride, inside, other=0.0).to(tl.float32)
        tl.store(kernels + offset, (tl.exp(x - top) * scale).to(kernels.dtype.element_ty), inside)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _kernel_softmax_many_channels_backward(
    grad, kernels, logits_grad, classes, channels, taps, stride_image, stride_class, stride,
    BLOCK_CHANNELS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
):  # fmt: skip
    image, class_, channel, tap = _tile(classes, BLOCK_CHANNELS, taps, BLOCK_CHANNELS, BLOCK_TAPS)
    grad += image * stride_image + class_ * stride_class
    kernels += (image * classes + class_) * channels * taps
    logits_grad += (image * classes + class_) * channels * taps
    dot = tl.zeros((1, BLOCK_TAPS), tl.float32)
    for first in range(0, channels, BLOCK_CHANNELS):
        inside = (first + channel < channels) & (tap < taps)
        offset = ((first + channel) * taps + tap).to(tl.int64)
        p = tl.load(kernels + offset, inside, other=0.0).to(tl.float32)
        dot += tl.sum(p * tl.load(grad + offset * stride, inside, other=0.0).to(tl.float32), 0, keep_dims=True)
    for first in range(0, channels, BLOCK_CHANNELS):
        inside = (first + channel < channels) & (tap < taps)
        offset = ((first + channel) * taps + tap).to(tl.int64)
        p = tl.load(kernels + offset, inside, other=0.0).to(tl.float32)
        g = tl.load(grad + offset * stride, inside, other=0.0).to(tl.float32)
        tl.store(logits_grad + offset, (p * (g - dot)).to(logits_grad.dtype.element_ty), inside)


def _choice(channels: int, taps: int, norm: str) -> tuple[tuple[Any, Any], dict[str, int], int]:
    """The kernels forward and backward, their constants and their warps."""
    if norm == "taps" and taps <= 9:
        kernels = _kernel_softmax_few_taps, _kernel_softmax_few_taps_backward
        log_taps = (taps - 1).bit_length()
        return kernels, {"BLOCK_CHANNELS": 256, "BLOCK_TAPS": 1 << log_taps, "LOG_TAPS": log_taps}, 4
    kernels = _kernel_softmax, _kernel_softmax_backward
    if norm == "taps":
        # a row of taps stays within one warp, and from K = 7 on a thread sums several of its taps
        block = triton.next_power_of_2(taps)
        size, warps = (2048, 4) if block <= 32 else (1024, min(16, max(1, block // 1024)))
        return kernels, {"AXIS": 1, "BLOCK_CHANNELS": max(1, size // block), "BLOCK_TAPS": block}, warps
    if channels > 1024:
        kernels = _kernel_softmax_many_channels, _kernel_softmax_many_channels_backward
        return kernels, {"BLOCK_CHANNELS": 512, "BLOCK_TAPS": 16}, 8
    if channels > 512:
        return kernels, {"AXIS": 0, "BLOCK_CHANNELS": 1024, "BLOCK_TAPS": 16}, 16
    # twice as many adjacent taps where there are as many: less is fetched for the edges
    block = 16 if taps <= 16 else 32
    return kernels, {"AXIS": 0, "BLOCK_CHANNELS": 512, "BLOCK_TAPS": block}, block // 2


@planned
def _plan(sizes: tuple[int, ...], norm: str, backward: bool) -> tuple[Any, int, dict[str, int], int]:
    """For kernels of these sizes the kernel that is launched, its programs, constants and warps."""
    batch, classes, channels, rows, columns = sizes
    taps = rows * columns
    both, constants, warps = _choice(channels, taps, norm)
    kernel = both[backward]
    loops = kernel in (_kernel_softmax_many_channels, _kernel_softmax_many_channels_backward)
    blocks = 1 if loops else triton.cdiv(channels, constants["BLOCK_CHANNELS"])
    programs = batch * classes * blocks * triton.cdiv(taps, constants["BLOCK_TAPS"])
    return kernel, programs, {"classes": classes, "channels": channels, "taps": taps, **constants}, warps


def _launch(x: Tensor, kernels: Tensor, norm: str, backward: bool, **tensors: Tensor) -> None:
    """Runs the kernel for x [B, T, C*K*K], the tensor that may have any strides, and kernels [B, T, C, K, K]."""
    kernel, programs, shared, warps = _plan(kernels.shape, norm, backward)
    image, class_, stride = x.stride()
    places = {"stride_image": image, "stride_class": class_, "stride": stride, "kernels": kernels}
    launch(kernel, programs, {**shared, **places, **tensors}, num_warps=warps)


def kernel_softmax(kernel_logits: Tensor, kernel_size: int, norm: str) -> Tensor:
    batch, classes, length = kernel_logits.shape
    kernels = kernel_logits.new_empty(batch, classes, length // kernel_size**2, kernel_size, kernel_size)
    if norm == "none":
        kernels.view(kernel_logits.shape).copy_(kernel_logits)
    elif kernels.numel():
        _launch(kernel_logits, kernels, norm, False, logits=kernel_logits)
    return kernels


def kernel_softmax_backward(grad: Tensor, kernels: Tensor, norm: str) -> Tensor:
    logits_grad = kernels.new_empty(kernels.flatten(2).shape)
    grad = grad.reshape(logits_grad.shape)  # a view, also of an expanded gradient; a copy if taps are unevenly spaced
    if norm == "none":
        logits_grad.copy_(grad)
    elif logits_grad.numel():
        # kernel_softmax returned contiguous kernels
        _launch(grad, kernels.contiguous(), norm, True, grad=grad, logits_grad=logits_grad)
    return logits_grad


def configurations() -> Iterator[Configuration]:
    """K = 1 to 15 over taps; 512, 1024 and more channels, with few and many taps at 512."""
    sizes = [(512, size, "taps") for size in (1, 3, 5, 7, 11, 15)]
    sizes += [(512, 3, "channels"), (512, 5, "channels"), (1024, 3, "channels"), (2048, 3, "channels")]
    for (dtype, name), (channels, size, norm) in product(FLOATS.items(), sizes):
        logits = far_apart(2, 5, channels * size**2, dtype=dtype)
        kernels = logits.new_empty(2, 5, channels, size, size)
        label = f"{name} {norm} C={channels} K*K={size**2}"
        for one in recorded(kernel_softmax, logits, size, norm):
            yield Configuration(label, one)
        for one in recorded(kernel_softmax_backward, logits.view(kernels.shape), kernels, norm):
            yield Configuration(f"{label} backward", one)
